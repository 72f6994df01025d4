//! Puts video PES payloads together into access units.
//!
//! Standard: [ISO13818-1 2.4.3.7] for what a time stamp belongs to, [H.264 7.4.1.2.3], [H.265 7.4.2.4.4].
//! In: PES beginnings (times, alignment), payload pieces, RTP markers, losses. Out: [`Unit::Video`].
//! Three ways to the end of an access unit: the next PES with other times when PES are aligned to access units; the NAL
//! unit that opens the next one when they are not; and the RTP marker, as long as it has not been caught lying.
//! Invariants: at most `MAX_FRAME` bytes are held; what is given out begins with a start code; payload is copied once.
//! Not here: PES syntax.

use bytes::BytesMut;

use super::demux::{Output, Unit};
use crate::proto::codec::VideoCodec;
use crate::proto::codec::access_unit::{inspect, is_picture, opens_access_unit, sniff};
use crate::proto::codec::annexb::{find_start_code, leading_start_code, nal_starts};

/// Longest access unit: a key frame of 4K at the highest quality cameras know is under 4 MiB.
pub(super) const MAX_FRAME: usize = 8 << 20;
/// What the buffer grows by at least.
const SLAB: usize = 64 * 1024;
/// How far into an aligned PES with unchanged times a new access unit is looked for.
const WINDOW: usize = 16;
/// Bytes of a NAL unit needed to judge it: two of header, one of slice.
const NAL_HEAD: usize = 3;
/// Markers in mid-frame after which markers count for nothing.
const MARKER_STRIKES: u32 = 2;
/// Step assumed for a frame without times before one is known: 25 frames a second.
const DEFAULT_STEP: u64 = 3600;
/// Steps above are gaps, not a frame rate.
const MAX_STEP: u64 = 10 * 90_000;

/// Unwrapped times of a frame in 90 kHz ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) pts: u64,
    pub(super) dts: u64,
}

/// The access unit is longer than `MAX_FRAME`; it has been dropped.
#[derive(Debug)]
pub(super) struct Oversize;

#[derive(Debug)]
pub(super) struct Frames {
    buffer: BytesMut,
    /// `buffer` begins at the beginning of an access unit.
    started: bool,
    /// Times of the access unit at the start of `buffer`.
    times: Option<Times>,
    /// Times for the first access unit that begins at this offset or later.
    pending: Option<(usize, Times)>,
    /// Access units are told by their NAL units, since PES are not aligned to them.
    scan: bool,
    /// A PES claimed alignment and had none: the claim is worth nothing.
    alignment_lies: bool,
    /// `buffer` was searched up to here, and is to be searched up to there.
    scanned: usize,
    scan_end: usize,
    /// While scanning: the access unit at the start of `buffer` has a slice.
    has_picture: bool,
    /// A pack header came since the access unit began.
    pack_since: bool,
    /// The last access unit was ended by a marker, and nothing has come since.
    after_marker: bool,
    /// `buffer` is what came first after such an access unit.
    behind_marker: bool,
    /// Access units were seen to end where PES do; one that did not is enough to know better.
    ends_with_pes: Option<bool>,
    strikes: u32,
    /// What the stream map says, and what the NAL units prove.
    hint: Option<VideoCodec>,
    proven: Option<VideoCodec>,
    last: Option<Times>,
    step: u64,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            started: false,
            times: None,
            pending: None,
            scan: true,
            alignment_lies: false,
            scanned: 0,
            scan_end: usize::MAX,
            has_picture: false,
            pack_since: false,
            after_marker: false,
            behind_marker: false,
            ends_with_pes: None,
            strikes: 0,
            hint: None,
            proven: None,
            last: None,
            step: DEFAULT_STEP,
        }
    }

    /// The codec as far as it is known.
    pub(super) fn codec(&self) -> Option<VideoCodec> {
        self.proven.or(self.hint)
    }

    /// The stream map names the codec, or one this gateway does not carry. A change ends the frame at hand.
    pub(super) fn map(&mut self, hint: Option<VideoCodec>, out: &mut Output) {
        if hint != self.hint {
            self.finish(out);
            self.hint = hint;
            self.proven = None;
        }
    }

    pub(super) fn pack(&mut self) {
        self.pack_since = true;
    }

    /// A video PES begins.
    pub(super) fn begin(&mut self, times: Option<Times>, aligned: bool, out: &mut Output) {
        let after_marker = std::mem::take(&mut self.after_marker);
        if self.buffer.is_empty() {
            self.behind_marker = after_marker;
        }
        if after_marker && !self.pack_since && (times.is_none() || times == self.last) {
            // the frame goes on after its marker
            self.strikes += 1;
            out.counters.marker_lies += 1;
        }
        if times.is_some() {
            self.scan = !aligned || self.alignment_lies;
        }
        let at = self.buffer.len();
        if at == 0 {
            self.restart(times);
            // without times it may be the middle of a frame whose beginning was lost
            self.started = !self.scan && times.is_some();
            self.scan_end = if self.started { 0 } else { usize::MAX };
            if self.started {
                (self.times, self.pending) = (times, None);
            }
            return;
        }
        if self.scan {
            if let Some(new) = times.filter(|_| times != self.times) {
                self.pending = Some((at, new));
            }
        } else if !self.started {
            if times.is_some() {
                out.counters.skipped_bytes += at as u64;
                self.buffer.clear();
                self.begin(times, aligned, out);
            }
        } else if times.is_some() && times != self.times {
            self.emit_all(out);
            self.begin(times, aligned, out);
        } else if self.pack_since {
            // same times, or none, yet a pack of its own: devices whose clock stands still send this
            if self.codec().is_none() {
                let held = std::mem::take(&mut self.buffer);
                self.prove_by(&held, out);
                self.buffer = held;
            }
            self.pending = times.map(|times| (at, times));
            (self.scanned, self.scan_end) = (at, at + WINDOW);
        }
    }

    fn restart(&mut self, times: Option<Times>) {
        self.pending = times.map(|times| (0, times));
        self.times = None;
        self.has_picture = false;
        self.scanned = 0;
        self.pack_since = false;
    }

    /// Payload of the PES that began last.
    pub(super) fn append(&mut self, bytes: &[u8], out: &mut Output) -> Result<(), Oversize> {
        if self.buffer.len() + bytes.len() > MAX_FRAME {
            out.counters.oversize_frames += 1;
            self.lose(out);
            return Err(Oversize);
        }
        if self.buffer.capacity() - self.buffer.len() < bytes.len() {
            self.buffer.reserve(bytes.len().max(self.buffer.len()).max(SLAB));
        }
        self.buffer.extend_from_slice(bytes);
        if self.scanned < self.scan_end {
            self.scan(out);
        }
        Ok(())
    }

    /// Looks for NAL units that open an access unit.
    fn scan(&mut self, out: &mut Output) {
        loop {
            let end = self.buffer.len().min(self.scan_end);
            let Some(code) = find_start_code(&self.buffer[..end], self.scanned.min(end)) else {
                self.scanned = self.scanned.max(end.saturating_sub(2));
                if self.buffer.len() >= self.scan_end {
                    (self.scanned, self.scan_end) = (0, 0);
                }
                return;
            };
            let nal = &self.buffer[code + 3..];
            if nal.len() < NAL_HEAD {
                self.scanned = code;
                return;
            }
            let begin = code - usize::from(code > 0 && self.buffer[code - 1] == 0);
            let proof = sniff(nal);
            if self.codec().is_none() {
                self.proven = proof;
            }
            let codec = proof.or(self.codec());
            // a PES with new times that begins with a NAL unit begins an access unit, whatever the NAL unit is
            let with_pes = self.scan && self.pending.is_some_and(|(at, _)| at == begin || at == code);
            let opens = with_pes || codec.is_some_and(|codec| opens_access_unit(codec, nal));
            let picture = codec.is_some_and(|codec| is_picture(codec, nal));
            if !self.started {
                if std::mem::take(&mut self.behind_marker) && self.buffer[..begin].iter().any(|byte| *byte != 0) {
                    // The end of the frame before: where PES are not aligned, markers that follow them cut every frame.
                    self.strikes = MARKER_STRIKES;
                    out.counters.marker_lies += 1;
                    out.gap();
                }
                if opens {
                    out.counters.skipped_bytes += begin as u64;
                    self.cut(begin);
                    self.started = true;
                    self.has_picture = picture;
                    self.scanned = code - begin + 3;
                    self.scan_end = if self.scan { usize::MAX } else { 0 };
                } else {
                    self.scanned = code + 3;
                }
            } else if opens && self.has_picture_before(begin) {
                self.ends_with_pes = Some(with_pes && self.ends_with_pes != Some(false));
                let times = self.times;
                let frame = self.cut(begin);
                self.emit(frame, times, out);
                self.has_picture = picture;
                self.scanned = code - begin + 3;
                self.scan_end = if self.scan { usize::MAX } else { 0 };
            } else {
                self.has_picture |= picture;
                self.scanned = code + 3;
            }
            // only now: a frame given out just above was of the codec before
            self.prove(proof, out);
            if self.scan_end == 0 {
                return;
            }
        }
    }

    /// Looks for proof of the codec up to the first slice.
    fn prove_by(&mut self, frame: &[u8], out: &mut Output) {
        for start in nal_starts(frame) {
            let nal = &frame[start..];
            let proof = sniff(nal);
            self.prove(proof, out);
            if proof.is_some() || self.codec().is_some_and(|codec| is_picture(codec, nal)) {
                break;
            }
        }
    }

    fn prove(&mut self, proof: Option<VideoCodec>, out: &mut Output) {
        if let Some(proof) = proof {
            out.counters.codec_lies += u64::from(self.codec().is_some_and(|codec| codec != proof));
            self.proven = Some(proof);
        }
    }

    fn has_picture_before(&self, end: usize) -> bool {
        if self.scan && self.scan_end == usize::MAX {
            return self.has_picture || self.codec().is_none();
        }
        self.codec().is_none_or(|codec| inspect(codec, &self.buffer[..end]).has_picture)
    }

    /// Splits the buffer; what stays begins an access unit and takes the times that wait for it.
    fn cut(&mut self, at: usize) -> BytesMut {
        self.times = match self.pending {
            Some((from, times)) if from <= at => {
                self.pending = None;
                Some(times)
            }
            Some((from, times)) => {
                self.pending = Some((from - at, times));
                None
            }
            None => None,
        };
        self.pack_since = false;
        self.buffer.split_to(at)
    }

    /// The RTP packet just taken in carried the marker and ended with a PES.
    pub(super) fn marker(&mut self, out: &mut Output) {
        if self.strikes >= MARKER_STRIKES || !self.started || self.buffer.is_empty() {
            return;
        }
        let complete = self.codec().is_none_or(|codec| inspect(codec, &self.buffer).has_picture);
        if complete {
            self.emit_all(out);
            self.after_marker = true;
        }
    }

    /// Nothing came for longer than within a frame: as a marker, where frames are known to end with their PES.
    pub(super) fn pause(&mut self, out: &mut Output) {
        if !self.scan || self.ends_with_pes == Some(true) {
            self.marker(out);
        }
    }

    /// Gives out what is held: the stream ends or changes.
    pub(super) fn finish(&mut self, out: &mut Output) {
        if self.started && !self.buffer.is_empty() {
            self.emit_all(out);
        }
    }

    /// Data is missing: the frame at hand is of no use.
    pub(super) fn lose(&mut self, out: &mut Output) {
        if !self.buffer.is_empty() {
            out.counters.frames_dropped += 1;
        }
        self.buffer.clear();
        self.started = false;
        self.restart(None);
        (self.after_marker, self.behind_marker) = (false, false);
    }

    fn emit_all(&mut self, out: &mut Output) {
        let times = self.times;
        let frame = self.buffer.split();
        self.started = false;
        self.restart(None);
        self.emit(frame, times, out);
    }

    fn emit(&mut self, frame: BytesMut, times: Option<Times>, out: &mut Output) {
        if leading_start_code(&frame).is_none() {
            // only PES taken at their word get here
            self.alignment_lies = true;
            out.counters.alignment_lies += 1;
            out.counters.frames_dropped += 1;
            out.gap();
            return;
        }
        self.prove_by(&frame, out);
        let Some(codec) = self.codec() else {
            out.counters.undecided_frames += 1;
            return;
        };
        let times = times.unwrap_or_else(|| {
            out.counters.times_missing += 1;
            let step = |ticks: u64| ticks.saturating_add(self.step);
            self.last.map_or(Times { pts: 0, dts: 0 }, |last| Times { pts: step(last.dts), dts: step(last.dts) })
        });
        if let Some(last) = self.last {
            let step = times.dts.saturating_sub(last.dts);
            if (1..MAX_STEP).contains(&step) {
                self.step = step;
            }
        }
        self.last = Some(times);
        let key = inspect(codec, &frame).key;
        let unit = Unit::Video { codec, pts: times.pts, dts: times.dts, key, annexb: frame.freeze() };
        out.counters.frames += 1;
        out.push(unit);
    }
}
