//! From program-stream bytes to frames with their tracks announced: what a source needs that is no RTSP camera.
//! Standard: [GB/T28181-2022 annex C]; every departure from it that the demuxer forgives.
//! In: RTP payloads in order, markers, losses, time. Out: [`Assembled`].
//! Invariants: tracks are announced with a key frame and never in the middle of a group; after a loss nothing comes
//! before the next key frame; sound is waited for at most [`AUDIO_WAIT`] before the first picture is let through.
//! Bounds: [`MAX_WAITING`] frames and [`MAX_WAITING_BYTES`] wait for sound; the demuxer's own.
//! Not here: RTP order (`intake`), time lines and caching (`stream`).

use super::frame::{AudioCodec, Frame, FrameKind, Tracks, VideoCodec};
use crate::proto::codec::ParameterSets;
use crate::proto::ps::{CLOCK_RATE, DemuxConfig, DemuxCounters, Demuxer, Unit};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long the first key frame waits for sound that the stream map names: devices send it every 20 to 100 ms. Sound that
/// comes later is announced with the next key frame.
pub const AUDIO_WAIT: Duration = Duration::from_millis(300);
/// Frames that wait with it.
const MAX_WAITING: usize = 256;
/// And their bytes: two of the longest frames.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// What a source yields.
#[derive(Debug)]
pub enum Assembled {
    /// What follows has these tracks; the next frame is a key frame.
    Started(Tracks),
    /// A frame.
    Frame(Frame),
}

#[derive(Debug)]
struct Waiting {
    tracks: Tracks,
    until: Instant,
    frames: Vec<Frame>,
    bytes: usize,
}

/// See the file's head.
#[derive(Debug)]
pub struct Assembler {
    demux: Demuxer,
    tracks: Option<Tracks>,
    waiting: Option<Waiting>,
    /// The last sound that was heard.
    heard: Option<AudioCodec>,
    /// Nothing before a key frame is of use.
    resync: bool,
    /// Packets lost since the last frame.
    lost: u32,
    sets: ParameterSets,
    out: VecDeque<Assembled>,
}

impl Default for Assembler {
    fn default() -> Self {
        Self::new()
    }
}

impl Assembler {
    /// Before the first byte.
    pub fn new() -> Self {
        Assembler {
            demux: Demuxer::new(DemuxConfig::default()),
            tracks: None,
            waiting: None,
            heard: None,
            resync: true,
            lost: 0,
            sets: ParameterSets::new(VideoCodec::H264),
            out: VecDeque::new(),
        }
    }

    /// What the demuxer met.
    pub fn counters(&self) -> DemuxCounters {
        self.demux.counters()
    }

    /// One RTP payload, in order.
    pub fn payload(&mut self, bytes: &[u8], now: Instant) {
        self.demux.push(bytes);
        self.pull(now);
    }

    /// The packet whose payload came last ended a frame, as its marker says.
    pub fn end_of_frame(&mut self, now: Instant) {
        self.demux.end_of_frame();
        self.pull(now);
    }

    /// The sender sets no markers, and nothing came for longer than within a frame.
    pub fn pause(&mut self, now: Instant) {
        self.demux.pause();
        self.pull(now);
    }

    /// `packets` are missing before what comes next (0: how many is not known).
    pub fn lose(&mut self, packets: u32) {
        self.lost = self.lost.saturating_add(packets);
        self.demux.discontinuity();
    }

    /// Time passes: sound is not waited for for ever.
    pub fn poll(&mut self, now: Instant) {
        if self.waiting.as_ref().is_some_and(|w| now >= w.until) {
            self.release();
        }
    }

    /// When to poll.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|w| w.until)
    }

    /// What is ready.
    pub fn pop(&mut self) -> Option<Assembled> {
        self.out.pop_front()
    }

    fn pull(&mut self, now: Instant) {
        while let Some(unit) = self.demux.pull() {
            match unit {
                Unit::Gap => self.resync = true,
                Unit::Video { codec, pts, key, annexb, .. } => self.picture(codec, pts, key, annexb, now),
                Unit::Audio { codec, pts, payload } => self.sound(codec, pts, payload, now),
            }
        }
        self.poll(now);
    }

    fn picture(&mut self, codec: VideoCodec, pts: u64, key: bool, data: Bytes, now: Instant) {
        let coming = self.waiting.as_ref().map(|w| w.tracks).or(self.tracks);
        self.resync |= coming.is_none_or(|t| t.video != codec);
        if self.resync && !key {
            return;
        }
        self.resync = false;
        let loss = u16::try_from(std::mem::take(&mut self.lost)).unwrap_or(u16::MAX);
        let frame = Frame { kind: FrameKind::Video { key }, ticks: pts as i64, data, loss, arrived: now };
        if key && self.waiting.is_none() && self.tracks.is_none_or(|t| t.video != codec || t.audio != self.heard) {
            let tracks = self.tracks_now(codec, &frame.data);
            if self.tracks.is_none() && self.heard.is_none() && self.demux.may_have_audio() {
                self.waiting = Some(Waiting { tracks, until: now + AUDIO_WAIT, frames: Vec::new(), bytes: 0 });
            } else {
                self.announce(tracks);
            }
        }
        self.give(frame);
    }

    fn sound(&mut self, codec: AudioCodec, pts: u64, data: Bytes, now: Instant) {
        self.heard = Some(codec);
        let frame = Frame { kind: FrameKind::Audio, ticks: pts as i64, data, loss: 0, arrived: now };
        if let Some(waiting) = &mut self.waiting {
            waiting.tracks.audio = Some(codec);
            self.give(frame);
            self.release();
        } else if self.tracks.is_some_and(|t| t.audio == Some(codec)) {
            self.give(frame);
        }
    }

    fn tracks_now(&mut self, codec: VideoCodec, key_frame: &[u8]) -> Tracks {
        if self.sets.codec() != codec {
            self.sets = ParameterSets::new(codec);
        }
        self.sets.observe(key_frame);
        let size = match self.sets.facts() {
            Some(Ok(facts)) => Some((facts.width, facts.height)),
            _ => None,
        };
        let clock = CLOCK_RATE as u32;
        // Time stamps of sound are on the clock of the picture here.
        Tracks { video: codec, audio: self.heard, video_clock: clock, audio_clock: clock, size }
    }

    fn announce(&mut self, tracks: Tracks) {
        self.tracks = Some(tracks);
        self.out.push_back(Assembled::Started(tracks));
    }

    fn give(&mut self, frame: Frame) {
        let Some(waiting) = &mut self.waiting else {
            self.out.push_back(Assembled::Frame(frame));
            return;
        };
        waiting.bytes += frame.data.len();
        waiting.frames.push(frame);
        if waiting.frames.len() >= MAX_WAITING || waiting.bytes >= MAX_WAITING_BYTES {
            self.release();
        }
    }

    fn release(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            self.announce(waiting.tracks);
            self.out.extend(waiting.frames.into_iter().map(Assembled::Frame));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ps::{MuxConfig, Muxer, VideoUnit};
    use crate::sim::clip::ClipLibrary;

    #[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn base() -> Instant {
        Instant::now()
    }

    /// Pictures `from..to` of the H.264 clip and the sounds between, each with its time.
    fn stream(muxer: &mut Muxer, from: u64, to: u64, sounds: bool) -> Vec<Vec<u8>> {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        let mut packs = Vec::new();
        for n in from..to {
            let (unit, ticks) = video.looped(n);
            let mut pack = Vec::new();
            let unit = VideoUnit { annexb: &unit.bytes, pts: ticks, dts: ticks, key: unit.key };
            muxer.write_video(&mut pack, &unit);
            packs.push(pack);
            for sound in 2 * n..2 * n + 2 {
                let (frame, ticks) = audio.looped(sound);
                let mut pack = Vec::new();
                muxer.write_audio(&mut pack, &frame.bytes, ticks * 90 / 8);
                packs.extend(sounds.then_some(pack));
            }
        }
        packs
    }

    fn run(assembler: &mut Assembler, packs: &[Vec<u8>], now: Instant) -> Vec<Assembled> {
        for pack in packs {
            assembler.payload(pack, now);
            assembler.end_of_frame(now);
        }
        std::iter::from_fn(|| assembler.pop()).collect()
    }

    fn muxer(audio: Option<AudioCodec>) -> Muxer {
        Muxer::new(MuxConfig { video: Some(VideoCodec::H264), audio })
    }

    #[test]
    fn tracks_come_with_the_first_sound_or_when_it_stays_away() {
        let t = base();
        let (mut muxer_a, mut a) = (muxer(Some(AudioCodec::G711A)), Assembler::new());
        let out = run(&mut a, &stream(&mut muxer_a, 0, 3, true), t);
        let Assembled::Started(tracks) = out[0] else { panic!("tracks first") };
        assert_eq!(
            (tracks.video, tracks.audio, tracks.size),
            (VideoCodec::H264, Some(AudioCodec::G711A), Some((640, 360)))
        );
        assert_eq!(out.len(), 1 + 9);

        // The map names sound that is not sent: the picture waits for it, not for ever.
        let (mut muxer_b, mut b) = (muxer(Some(AudioCodec::G711A)), Assembler::new());
        assert!(run(&mut b, &stream(&mut muxer_b, 0, 3, false), t).is_empty());
        assert_eq!(b.next_timeout(), Some(t + AUDIO_WAIT));
        let out = run(&mut b, &stream(&mut muxer_b, 3, 4, false), t + AUDIO_WAIT);
        assert!(matches!(out[0], Assembled::Started(Tracks { audio: None, .. })));
        assert_eq!(out.len(), 1 + 4);
        // It comes after all: told with the next key frame, not before, and nothing of it before either.
        let out = run(&mut b, &stream(&mut muxer_b, 4, 27, true), t + AUDIO_WAIT);
        let at = out.iter().position(|o| matches!(o, Assembled::Started(_))).unwrap();
        assert_eq!(at, 21, "pictures alone up to the key frame");
        assert!(matches!(out[at], Assembled::Started(Tracks { audio: Some(AudioCodec::G711A), .. })));
        assert!(matches!(&out[at + 1], Assembled::Frame(f) if f.kind == FrameKind::Video { key: true }));
        assert!(matches!(&out[at + 2], Assembled::Frame(f) if f.kind == FrameKind::Audio));

        // Without sound in the map nothing waits.
        let (mut muxer_c, mut c) = (muxer(None), Assembler::new());
        assert_eq!(run(&mut c, &stream(&mut muxer_c, 0, 1, false), t).len(), 2);
    }

    #[test]
    fn after_a_loss_nothing_comes_before_the_next_key_frame() {
        let t = base();
        let (mut muxer, mut a) = (muxer(None), Assembler::new());
        run(&mut a, &stream(&mut muxer, 0, 5, false), t);
        a.lose(3);
        let out = run(&mut a, &stream(&mut muxer, 5, 30, false), t);
        assert_eq!(out.len(), 5);
        assert!(matches!(&out[0], Assembled::Frame(f) if f.kind == FrameKind::Video { key: true } && f.loss == 3));
    }

    #[test]
    fn another_codec_is_announced_with_its_key_frame() {
        let t = base();
        let (mut muxer, mut a) = (muxer(None), Assembler::new());
        run(&mut a, &stream(&mut muxer, 0, 5, false), t);
        let clip = ClipLibrary::h265();
        muxer.set_config(MuxConfig { video: Some(VideoCodec::H265), audio: None });
        let mut packs = Vec::new();
        for n in 25..30 {
            let (unit, ticks) = clip.looped(n);
            let mut pack = Vec::new();
            muxer.write_video(&mut pack, &VideoUnit { annexb: &unit.bytes, pts: ticks, dts: ticks, key: unit.key });
            packs.push(pack);
        }
        let out = run(&mut a, &packs, t);
        assert!(matches!(out[0], Assembled::Started(Tracks { video: VideoCodec::H265, .. })));
        assert!(matches!(&out[1], Assembled::Frame(f) if f.data == clip.units()[25].bytes));
        assert_eq!(out.len(), 1 + 5);
    }
}
