//! One monotone 90 kHz time line per stream, over reconnects, clock jumps and B-frames.
//! Standard: RTP timestamp and SCR follow DTS and never go back; DTS is found from the reorder depth of the SPS.
//! In: source ticks and arrival instants. Out: [`Stamp`]. Owner: `stream`.
//! Invariants: DTS rises with every video frame by at least one tick and never passes its PTS.
//! Not here: 33-bit and 32-bit wrapping (the muxer and the packetizer cut to their widths).

use std::time::{Duration, Instant};

/// 90,000 ticks a second.
pub const CLOCK: i64 = 90_000;
/// A step forward that exceeds the time that really passed by more than this is the source's clock having jumped.
/// Buffers on the way shorten what we see of a pause, by a second or so.
const MAX_AHEAD: i64 = 2 * CLOCK;
/// With B-frames a step back beyond this is a jump; less is reordering.
const MAX_BACK: i64 = 2 * CLOCK;
/// Without B-frames any step back is one, but for a little jitter of careless encoders.
const MAX_BACK_IN_ORDER: i64 = CLOCK / 4;
/// Sound farther than this from the picture is brought back to it: late by seconds is worse than a step.
const MAX_DRIFT: i64 = 3 * CLOCK;
/// 25 frames a second, until the stream shows its own rate.
const DEFAULT_FRAME: i64 = 3_600;
/// The deepest reordering any profile allows.
const MAX_DEPTH: usize = 16;

/// Presentation and decoding time, 90 kHz, unwrapped, never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Presentation time.
    pub pts: u64,
    /// Decoding time; equal to `pts` without B-frames.
    pub dts: u64,
}

/// See the file's head.
#[derive(Debug)]
pub struct Timeline {
    /// Added to source time (90 kHz) to give our time; None until the first frame of a source session.
    offset: Option<i64>,
    /// The same for sound whose clock has nothing to do with the picture's.
    audio_offset: Option<i64>,
    /// Source PTS of the newest video frame, 90 kHz.
    last_source: i64,
    last_dts: i64,
    last_pts: i64,
    last_arrival: Option<Instant>,
    frame_duration: i64,
    depth: usize,
    window: Vec<i64>,
    jumps: u64,
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}

impl Timeline {
    /// Starts at one second, so that an SCR 40 ms before the first DTS is still positive.
    pub fn new() -> Self {
        Timeline {
            offset: None,
            audio_offset: None,
            last_source: 0,
            last_dts: CLOCK - 1,
            last_pts: CLOCK - 1,
            last_arrival: None,
            frame_duration: DEFAULT_FRAME,
            depth: 0,
            window: Vec::with_capacity(MAX_DEPTH + 1),
            jumps: 0,
        }
    }

    /// A line that goes on where another one is now.
    pub fn after(line: u64, now: Instant) -> Self {
        let last = line.min(i64::MAX as u64) as i64;
        Timeline { last_dts: last, last_pts: last, last_arrival: Some(now), ..Timeline::new() }
    }

    /// The source starts anew (reconnect): its clock has nothing to do with the old one.
    pub fn restart_source(&mut self) {
        self.offset = None;
        self.audio_offset = None;
        self.window.clear();
    }

    /// How many pictures may be shown before one that was decoded earlier, from the SPS.
    pub fn set_reorder_depth(&mut self, depth: usize) {
        let depth = depth.min(MAX_DEPTH);
        if depth != self.depth {
            self.depth = depth;
            self.window.clear();
        }
    }

    /// Clock jumps mended so far.
    pub fn jumps(&self) -> u64 {
        self.jumps
    }

    fn to_90k(ticks: i64, clock: u32) -> i64 {
        if i64::from(clock) == CLOCK {
            ticks
        } else {
            (i128::from(ticks) * i128::from(CLOCK) / i128::from(clock.max(1))) as i64
        }
    }

    fn elapsed_90k(&self, now: Instant) -> i64 {
        let d = self.last_arrival.map_or(Duration::ZERO, |t| now.saturating_duration_since(t));
        (d.as_micros() as i64) * 9 / 100
    }

    /// Stamps a video frame.
    pub fn video(&mut self, ticks: i64, clock: u32, arrived: Instant) -> Stamp {
        let source = Self::to_90k(ticks, clock);
        let step = source.wrapping_sub(self.last_source);
        let elapsed = self.elapsed_90k(arrived);
        let back = if self.depth == 0 { MAX_BACK_IN_ORDER } else { MAX_BACK };
        let jumped = self.offset.is_some() && (step < -back || step > elapsed.saturating_add(MAX_AHEAD));
        if jumped {
            self.jumps += 1;
        }
        if jumped || self.offset.is_none() {
            // Go on from where we are by the time that really passed: at least one frame.
            let gap = elapsed.max(self.frame_duration);
            let ahead = self.depth as i64 * self.frame_duration;
            let resume = if self.last_arrival.is_some() { self.last_dts + gap + ahead } else { CLOCK };
            self.offset = Some(resume.wrapping_sub(source));
            self.audio_offset = None;
            self.window.clear();
        } else if step > 0 && self.depth == 0 {
            self.frame_duration = step.clamp(CLOCK / 240, CLOCK);
        }
        self.last_source = source;
        self.last_arrival = Some(arrived);
        let mut pts = source.wrapping_add(self.offset.unwrap_or(0));
        let mut dts = self.decode_time(pts);
        if dts <= self.last_dts {
            dts = self.last_dts + 1;
        }
        if pts < dts {
            pts = dts;
        }
        self.last_dts = dts;
        self.last_pts = pts;
        Stamp { pts: pts as u64, dts: dts as u64 }
    }

    /// With a reorder depth of n the k-th picture decoded gets the k-n-th smallest PTS: the window holds the n
    /// newest ones that are not yet given away.
    fn decode_time(&mut self, pts: i64) -> i64 {
        if self.depth == 0 {
            return pts;
        }
        let at = self.window.partition_point(|&p| p < pts);
        self.window.insert(at, pts);
        if self.window.len() > self.depth {
            return self.window.remove(0);
        }
        let ahead = (self.depth + 1 - self.window.len()) as i64;
        self.window[0] - ahead * self.frame_duration
    }

    /// Stamps an audio packet on the same line. None before the first video frame of this source session: audio
    /// alone has no anchor, and no sink can start without a picture anyway.
    pub fn audio(&mut self, ticks: i64, clock: u32, arrived: Instant) -> Option<u64> {
        let common = self.offset?;
        let source = Self::to_90k(ticks, clock);
        let picture = self.last_pts.saturating_add(self.elapsed_90k(arrived));
        let near = |offset: i64| {
            let pts = source.wrapping_add(offset);
            (pts.saturating_sub(picture).saturating_abs() <= MAX_DRIFT).then_some(pts)
        };
        // Its own offset as long as that holds, then the picture's (both clocks jumped), else it is anchored anew and
        // its packets keep their distances.
        let pts = self.audio_offset.and_then(near).or_else(|| {
            self.audio_offset = None;
            near(common)
        });
        let pts = pts.unwrap_or_else(|| {
            self.audio_offset = Some(picture.wrapping_sub(source));
            picture
        });
        Some(pts.max(0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(base: Instant, ms: u64) -> Instant {
        base + Duration::from_millis(ms)
    }

    #[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn base() -> Instant {
        Instant::now()
    }

    #[test]
    fn without_b_frames_dts_is_pts() {
        let (b, mut t) = (base(), Timeline::new());
        for i in 0..10 {
            let s = t.video(i * 3600, 90_000, at(b, i as u64 * 40));
            assert_eq!(s.pts, s.dts);
            assert_eq!(s.pts, (CLOCK + i * 3600) as u64);
        }
    }

    #[test]
    fn b_frames_get_rising_dts_not_after_pts() {
        let (b, mut t) = (base(), Timeline::new());
        t.set_reorder_depth(2);
        let order = [0, 4, 2, 1, 3, 8, 6, 5, 7, 12, 10, 9, 11];
        let mut last = 0;
        let mut shown = Vec::new();
        for (i, p) in order.iter().enumerate() {
            let s = t.video(p * 3600, 90_000, at(b, i as u64 * 40));
            assert!(s.dts > last && s.dts <= s.pts, "frame {i}: {s:?}");
            last = s.dts;
            shown.push(s.pts);
        }
        // presentation distances are kept exactly
        assert_eq!(shown[1] - shown[0], 4 * 3600);
        assert_eq!(shown[3] - shown[0], 3600);
    }

    #[test]
    fn a_reconnect_goes_on_by_the_time_that_passed() {
        let (b, mut t) = (base(), Timeline::new());
        let first = t.video(1_000_000, 90_000, b);
        t.restart_source();
        let second = t.video(7, 90_000, at(b, 5_000));
        assert_eq!(second.pts - first.pts, 5 * 90_000);
    }

    #[test]
    fn clock_jumps_do_not_show() {
        let (b, mut t) = (base(), Timeline::new());
        let a = t.video(0, 90_000, b);
        let c = t.video(3_600_000_000, 90_000, at(b, 40));
        assert_eq!(c.pts - a.pts, 3600);
        let d = t.video(0, 90_000, at(b, 80));
        assert_eq!(d.pts - c.pts, 3600);
        assert_eq!(t.jumps(), 2);
    }

    #[test]
    fn equal_timestamps_still_rise() {
        let (b, mut t) = (base(), Timeline::new());
        let a = t.video(0, 90_000, b);
        let c = t.video(0, 90_000, at(b, 40));
        assert!(c.dts > a.dts);
    }

    #[test]
    fn audio_follows_the_picture() {
        let (b, mut t) = (base(), Timeline::new());
        assert_eq!(t.audio(0, 8000, b), None);
        t.video(0, 90_000, b);
        assert_eq!(t.audio(800, 8000, b), Some((CLOCK + 9000) as u64));
    }

    #[test]
    fn sound_with_a_clock_of_its_own_is_anchored_once_and_keeps_its_distances() {
        let (b, mut t) = (base(), Timeline::new());
        let mut sounds = Vec::new();
        for i in 0..50u64 {
            t.video(i as i64 * 3600, 90_000, at(b, i * 40));
            // an hour off
            sounds.push(t.audio(28_800_000 + i as i64 * 320, 8000, at(b, i * 40)).unwrap() as i64);
        }
        assert!(sounds.windows(2).all(|w| w[1] - w[0] == 3600), "{sounds:?}");
        assert!((sounds[0] - CLOCK).abs() < 3600);
    }

    #[test]
    fn sound_follows_a_jump_of_both_clocks() {
        let (b, mut t) = (base(), Timeline::new());
        let jump = 3600 * 90_000;
        let mut apart = Vec::new();
        for i in 0..20u64 {
            let (video, audio) = if i < 10 { (0, 0) } else { (jump, jump) };
            let v = t.video(i as i64 * 3600 + video, 90_000, at(b, i * 40)).pts;
            let a = t.audio((i as i64 * 3600 + audio) * 8 / 90, 8000, at(b, i * 40)).unwrap();
            apart.push(v.abs_diff(a));
        }
        assert!(apart.iter().all(|d| *d <= 12), "{apart:?}");
        assert_eq!(t.jumps(), 1);
    }

    #[test]
    fn a_step_back_without_b_frames_is_a_jump() {
        let (b, mut t) = (base(), Timeline::new());
        t.set_reorder_depth(0);
        let mut last = t.video(90_000_000, 90_000, b).pts;
        for i in 1..10u64 {
            // a clock set back by one second, say by time synchronisation
            let pts = t.video(90_000_000 - 90_000 + i as i64 * 3600, 90_000, at(b, i * 40)).pts;
            assert_eq!(pts - last, 3600, "frame {i}");
            last = pts;
        }
        assert_eq!(t.jumps(), 1);
    }

    #[test]
    fn a_jump_ahead_of_real_time_is_mended_and_a_real_pause_is_kept() {
        let (b, mut t) = (base(), Timeline::new());
        let first = t.video(0, 90_000, b).pts;
        let jumped = t.video(5 * 90_000, 90_000, at(b, 40)).pts;
        assert_eq!((jumped - first, t.jumps()), (3600, 1));
        let paused = t.video(25 * 90_000, 90_000, at(b, 20_040)).pts;
        assert_eq!((paused - jumped, t.jumps()), (20 * 90_000, 1));
    }

    #[test]
    fn extreme_ticks_never_panic() {
        let (b, mut t) = (base(), Timeline::new());
        for (i, v) in [i64::MAX / 4, i64::MIN / 4, 0, i64::MAX / 8, -1].into_iter().enumerate() {
            let s = t.video(v, 1, at(b, i as u64));
            assert!(s.dts <= s.pts);
            t.audio(v, 8000, at(b, i as u64));
        }
    }
}
