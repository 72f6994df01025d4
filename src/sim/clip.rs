//! Clips of known content: elementary streams cut into access units and audio frames.
//!
//! Standard: [ITU-T H.264 7.4.1.2.3] and [ITU-T H.265 7.4.2.4.4] for where an access unit begins, [ITU-T H.264 Annex B] for the
//! byte stream, [ISO/IEC 13818-7 6.2] for ADTS.
//! In: an elementary stream. Out: `Clip` and `AudioClip`, endless by looping with continuous timestamps, and `ClipFollower`, which
//! tells whether what a receiver got is the clip.
//! Invariants: a unit's bytes are canonical (4-byte start codes, no trailing zeros), every key unit carries its parameter sets.
//! Not here: packetisation (`rtsp_camera::payload`).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h264_reader::Context;
use h264_reader::nal::pps::PicParameterSet;
use h264_reader::nal::slice::{PicOrderCountLsb, SliceHeader};
use h264_reader::nal::sps::{PicOrderCntType, SeqParameterSet};
use h264_reader::nal::{Nal, RefNal};
use memchr::memmem;

/// Clock of every video timestamp here, in Hz [RFC 6184 8.2.1].
pub const VIDEO_CLOCK: u32 = 90_000;

/// Largest elementary stream we cut up: a clip is held in memory, and a minute of 8 Mbit/s is enough for any test.
pub const CLIP_MAX: usize = 64 << 20;

/// Why an elementary stream is not a clip.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClipError {
    /// Nothing to play.
    #[error("no picture or frame in {0} bytes: give an elementary stream, not a container")]
    Empty(usize),
    /// More than `CLIP_MAX`.
    #[error("the stream has {0} bytes: cut it to at most {CLIP_MAX}")]
    TooLong(usize),
    /// A receiver could not start there.
    #[error("key picture {0} has no parameter sets before it: encode with repeat-headers=1")]
    NoParameterSets(usize),
    /// A receiver could not start at all.
    #[error("the first picture is no key picture: cut the stream at one")]
    NoKeyFirst,
    /// Zero, or beyond what a 90 kHz clock tells apart.
    #[error("frame rate {0}: give 1 to 240")]
    FrameRate(u32),
    /// The parameter sets or a slice header cannot be read.
    #[error("cannot read {what} of picture {unit}: {reason}")]
    Syntax {
        /// Which structure.
        what: &'static str,
        /// Number of the access unit, from 0.
        unit: usize,
        /// The parser's words.
        reason: String,
    },
    /// Not ADTS where a frame should begin.
    #[error("no ADTS frame at byte {0}: give AAC-LC in ADTS, one raw block a frame")]
    Adts(usize),
}

/// Video codec of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VideoCodec {
    /// ITU-T H.264 (AVC).
    H264,
    /// ITU-T H.265 (HEVC).
    H265,
}

impl VideoCodec {
    /// `nal_unit_type` of a NAL unit; 0xFF when it is empty.
    pub fn nal_type(self, nal: &[u8]) -> u8 {
        match (self, nal.first()) {
            (_, None) => 0xFF,
            (VideoCodec::H264, Some(b)) => b & 0x1F,
            (VideoCodec::H265, Some(b)) => (b >> 1) & 0x3F,
        }
    }

    fn is_slice(self, nal: &[u8]) -> bool {
        match self {
            VideoCodec::H264 => (1..=5).contains(&self.nal_type(nal)),
            VideoCodec::H265 => self.nal_type(nal) < 32,
        }
    }

    fn is_key_slice(self, nal: &[u8]) -> bool {
        match self {
            VideoCodec::H264 => self.nal_type(nal) == 5,
            VideoCodec::H265 => (16..=23).contains(&self.nal_type(nal)),
        }
    }

    fn is_parameter_set(self, nal: &[u8]) -> bool {
        match self {
            VideoCodec::H264 => matches!(self.nal_type(nal), 7 | 8),
            VideoCodec::H265 => matches!(self.nal_type(nal), 32..=34),
        }
    }

    /// Parameter sets a receiver needs: SPS and PPS, or VPS, SPS and PPS.
    fn parameter_set_count(self) -> usize {
        match self {
            VideoCodec::H264 => 2,
            VideoCodec::H265 => 3,
        }
    }

    /// Whether this NAL unit, coming after a slice, begins the next access unit.
    fn begins_unit(self, nal: &[u8]) -> bool {
        let first_slice = match self {
            // first_mb_in_slice == 0 is the single bit 1
            VideoCodec::H264 => nal.get(1).is_some_and(|b| b & 0x80 != 0),
            // first_slice_segment_in_pic_flag
            VideoCodec::H265 => nal.get(2).is_some_and(|b| b & 0x80 != 0),
        };
        match (self, self.nal_type(nal)) {
            _ if self.is_slice(nal) => first_slice,
            (VideoCodec::H264, 6..=9 | 14..=18) => true,
            (VideoCodec::H265, 32..=35 | 39 | 41..=44 | 48..=55) => true,
            _ => false,
        }
    }
}

/// One coded picture with everything that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessUnit {
    /// The unit as an Annex B byte stream, every start code four bytes long.
    pub bytes: Bytes,
    /// The same NAL units without start codes.
    pub nals: Vec<Bytes>,
    /// A receiver can start here.
    pub key: bool,
    /// Presentation time in 90 kHz ticks from the clip's start; never before the unit's turn in decoding order.
    pub pts: u64,
}

/// A video clip, played endlessly.
#[derive(Debug, Clone)]
pub struct Clip {
    codec: VideoCodec,
    fps: u32,
    units: Vec<AccessUnit>,
    parameter_sets: Vec<Bytes>,
    by_bytes: HashMap<Bytes, usize>,
}

impl Clip {
    /// Cuts an Annex B byte stream of `fps` pictures a second into access units.
    ///
    /// # Errors
    /// See [`ClipError`]: the stream must begin with a key picture and repeat its parameter sets before each.
    pub fn parse(codec: VideoCodec, stream: &Bytes, fps: u32) -> Result<Self, ClipError> {
        if stream.len() > CLIP_MAX {
            return Err(ClipError::TooLong(stream.len()));
        }
        if !(1..=240).contains(&fps) {
            return Err(ClipError::FrameRate(fps));
        }
        let mut groups: Vec<Vec<Bytes>> = Vec::new();
        let mut seen_slice = true;
        for nal in split_nals(stream) {
            if seen_slice && (groups.is_empty() || codec.begins_unit(&nal)) {
                groups.push(Vec::new());
                seen_slice = false;
            }
            seen_slice |= codec.is_slice(&nal);
            if let Some(group) = groups.last_mut() {
                group.push(nal);
            }
        }
        if !seen_slice {
            groups.pop(); // parameter sets or SEI left over at the end
        }
        let Some(first) = groups.first() else {
            return Err(ClipError::Empty(stream.len()));
        };
        if !first.iter().any(|n| codec.is_key_slice(n)) {
            return Err(ClipError::NoKeyFirst);
        }
        let parameter_sets = first.iter().filter(|n| codec.is_parameter_set(n)).cloned().collect();
        let ranks = match codec {
            VideoCodec::H264 => h264_display_ranks(&groups)?,
            VideoCodec::H265 => (0..groups.len()).collect(), // our H.265 clips have no B-frames
        };
        // The delay that keeps every picture's presentation at or after its decoding.
        let delay = ranks.iter().enumerate().map(|(i, rank)| i.saturating_sub(*rank)).max().unwrap_or(0);
        let mut units = Vec::with_capacity(groups.len());
        let mut by_bytes = HashMap::with_capacity(groups.len());
        for (i, nals) in groups.into_iter().enumerate() {
            let key = nals.iter().any(|n| codec.is_key_slice(n));
            let sets = nals.iter().filter(|n| codec.is_parameter_set(n)).count();
            if key && sets < codec.parameter_set_count() {
                return Err(ClipError::NoParameterSets(i));
            }
            let bytes = annex_b(&nals);
            by_bytes.entry(bytes.clone()).or_insert(i);
            let pts = (ranks[i] + delay) as u64 * u64::from(VIDEO_CLOCK) / u64::from(fps);
            units.push(AccessUnit { bytes, nals, key, pts });
        }
        Ok(Clip { codec, fps, units, parameter_sets, by_bytes })
    }

    /// The codec.
    pub fn codec(&self) -> VideoCodec {
        self.codec
    }

    /// Pictures a second.
    pub fn fps(&self) -> u32 {
        self.fps
    }

    /// The access units of one pass, in decoding order; never empty, the first one a key unit.
    pub fn units(&self) -> &[AccessUnit] {
        &self.units
    }

    /// SPS and PPS, or VPS, SPS and PPS, without start codes.
    pub fn parameter_sets(&self) -> &[Bytes] {
        &self.parameter_sets
    }

    /// The `n`-th unit of the endless loop, and its presentation time in 90 kHz ticks since the loop began.
    pub fn looped(&self, n: u64) -> (&AccessUnit, u64) {
        let len = self.units.len() as u64;
        let unit = &self.units[(n % len) as usize];
        let pass = len * u64::from(VIDEO_CLOCK) / u64::from(self.fps);
        (unit, (n / len).wrapping_mul(pass).wrapping_add(unit.pts))
    }

    /// When the `n`-th unit of the endless loop leaves the camera, from the loop's beginning.
    pub fn due(&self, n: u64) -> Duration {
        Duration::from_nanos(n.saturating_mul(1_000_000_000) / u64::from(self.fps))
    }

    /// Which unit these Annex B bytes are, if they are one of the clip's to the last bit.
    pub fn find(&self, annex_b: &[u8]) -> Option<usize> {
        self.by_bytes.get(annex_b).copied()
    }
}

/// NAL units of an Annex B byte stream, without start codes and trailing zeros.
fn split_nals(stream: &Bytes) -> Vec<Bytes> {
    let starts: Vec<usize> = memmem::find_iter(stream, b"\0\0\x01").map(|at| at + 3).collect();
    let mut nals = Vec::with_capacity(starts.len());
    for (i, &start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).map_or(stream.len(), |next| next - 3);
        let body = &stream[start..end.max(start)];
        let len = body.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        if len > 0 {
            nals.push(stream.slice(start..start + len));
        }
    }
    nals
}

fn annex_b(nals: &[Bytes]) -> Bytes {
    let mut out = BytesMut::with_capacity(nals.iter().map(|n| n.len() + 4).sum());
    for nal in nals {
        out.put_slice(b"\0\0\0\x01");
        out.put_slice(nal);
    }
    out.freeze()
}

/// For every unit in decoding order its place in display order, from the picture order counts [ITU-T H.264 8.2.1].
fn h264_display_ranks(groups: &[Vec<Bytes>]) -> Result<Vec<usize>, ClipError> {
    let codec = VideoCodec::H264;
    let mut ctx = Context::new();
    let mut order: Vec<(usize, i64)> = Vec::with_capacity(groups.len()); // (key units so far, picture order count)
    let (mut sequence, mut last_lsb, mut poc) = (0usize, 0i64, 0i64);
    for (unit, nals) in groups.iter().enumerate() {
        let syntax = |what, reason| ClipError::Syntax { what, unit, reason };
        let Some(slice) = nals.iter().find(|n| codec.is_slice(n)) else {
            return Err(syntax("slice header", "there is no slice".into()));
        };
        for set in nals.iter().filter(|n| codec.is_parameter_set(n)) {
            let bits = RefNal::new(set, &[], true);
            if codec.nal_type(set) == 7 {
                let sps = SeqParameterSet::from_bits(bits.rbsp_bits())
                    .map_err(|e| syntax("sequence parameter set", format!("{e:?}")))?;
                ctx.put_seq_param_set(sps);
            } else {
                let pps = PicParameterSet::from_bits(&ctx, bits.rbsp_bits())
                    .map_err(|e| syntax("picture parameter set", format!("{e:?}")))?;
                ctx.put_pic_param_set(pps);
            }
        }
        if codec.is_key_slice(slice) {
            (sequence, last_lsb, poc) = (sequence + 1, 0, 0);
        }
        let nal = RefNal::new(slice, &[], true);
        let header = nal.header().map_err(|e| syntax("NAL header", format!("{e:?}")))?;
        let (header, sps, _) = SliceHeader::from_bits(&ctx, &mut nal.rbsp_bits(), header)
            .map_err(|e| syntax("slice header", format!("{e:?}")))?;
        let lsb = match header.pic_order_cnt_lsb {
            Some(PicOrderCountLsb::Frame(lsb)) => Some(lsb),
            Some(PicOrderCountLsb::FieldsAbsolute { pic_order_cnt_lsb, .. }) => Some(pic_order_cnt_lsb),
            _ => None,
        };
        match (lsb, &sps.pic_order_cnt) {
            (Some(lsb), PicOrderCntType::TypeZero { log2_max_pic_order_cnt_lsb_minus4 }) => {
                let modulus = 1i64 << (u32::from(*log2_max_pic_order_cnt_lsb_minus4) + 4);
                let step = (i64::from(lsb) - last_lsb + modulus / 2).rem_euclid(modulus) - modulus / 2;
                (last_lsb, poc) = (i64::from(lsb), poc + step);
            }
            _ => poc += 1, // types 1 and 2 of a frame-coded stream without B-frames: decoding order is display order
        }
        order.push((sequence, poc));
    }
    let mut by_display: Vec<usize> = (0..order.len()).collect();
    by_display.sort_by_key(|i| order[*i]);
    let mut ranks = vec![0; order.len()];
    for (rank, unit) in by_display.into_iter().enumerate() {
        ranks[unit] = rank;
    }
    Ok(ranks)
}

/// Audio codec of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AudioCodec {
    /// G.711 A-law, 8 kHz mono.
    Pcma,
    /// G.711 µ-law, 8 kHz mono.
    Pcmu,
    /// AAC-LC.
    Aac,
}

/// One audio frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AudioFrame {
    /// The frame as the elementary stream has it: for AAC with its ADTS header.
    pub bytes: Bytes,
    /// What RTP carries: for AAC without the ADTS header.
    pub payload: Bytes,
}

/// An audio clip, played endlessly.
#[derive(Debug, Clone)]
pub struct AudioClip {
    codec: AudioCodec,
    clock: u32,
    channels: u8,
    frame_ticks: u32,
    frames: Vec<AudioFrame>,
    config: Vec<u8>,
}

/// Bytes, and samples, of a G.711 frame of 20 ms [RFC 3551 4.5.14].
const G711_FRAME: usize = 160;

/// Sampling frequencies by index [ISO/IEC 14496-3 Table 1.18].
const AAC_RATES: [u32; 13] = [96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350];

impl AudioClip {
    /// Cuts raw G.711, or AAC in ADTS, into frames. A G.711 remainder shorter than a frame is left out.
    ///
    /// # Errors
    /// See [`ClipError`].
    pub fn parse(codec: AudioCodec, stream: &Bytes) -> Result<Self, ClipError> {
        if stream.len() > CLIP_MAX {
            return Err(ClipError::TooLong(stream.len()));
        }
        let mut clip = AudioClip {
            codec,
            clock: 8000,
            channels: 1,
            frame_ticks: G711_FRAME as u32,
            frames: vec![],
            config: vec![],
        };
        if codec == AudioCodec::Aac {
            clip.cut_adts(stream)?;
        } else {
            for start in (0..stream.len() / G711_FRAME).map(|n| n * G711_FRAME) {
                let bytes = stream.slice(start..start + G711_FRAME);
                clip.frames.push(AudioFrame { payload: bytes.clone(), bytes });
            }
        }
        if clip.frames.is_empty() { Err(ClipError::Empty(stream.len())) } else { Ok(clip) }
    }

    fn cut_adts(&mut self, stream: &Bytes) -> Result<(), ClipError> {
        let mut at = 0;
        while at < stream.len() {
            let [0xFF, b1, b2, b3, b4, b5, b6, ..] = stream[at..] else {
                return Err(ClipError::Adts(at));
            };
            let rate_index = (b2 >> 2) & 0x0F;
            let len = usize::from(b3 & 0x03) << 11 | usize::from(b4) << 3 | usize::from(b5) >> 5;
            let head = if b1 & 1 == 1 { 7 } else { 9 };
            let rate = AAC_RATES.get(usize::from(rate_index));
            let (Some(rate), true) = (rate, b1 & 0xF6 == 0xF0 && b6 & 3 == 0 && len > head && at + len <= stream.len())
            else {
                return Err(ClipError::Adts(at));
            };
            if at == 0 {
                let channels = (b2 & 1) << 2 | b3 >> 6;
                // AudioSpecificConfig: object type 5 bits, rate index 4, channels 4, then three zero flags
                let object = (b2 >> 6) + 1;
                self.config = vec![object << 3 | rate_index >> 1, (rate_index & 1) << 7 | channels << 3];
                (self.clock, self.channels, self.frame_ticks) = (*rate, channels, 1024);
            }
            self.frames
                .push(AudioFrame { bytes: stream.slice(at..at + len), payload: stream.slice(at + head..at + len) });
            at += len;
        }
        Ok(())
    }

    /// The codec.
    pub fn codec(&self) -> AudioCodec {
        self.codec
    }

    /// RTP clock, which is the sampling rate, in Hz.
    pub fn clock(&self) -> u32 {
        self.clock
    }

    /// Channels.
    pub fn channels(&self) -> u8 {
        self.channels
    }

    /// Samples a frame.
    pub fn frame_ticks(&self) -> u32 {
        self.frame_ticks
    }

    /// The frames of one pass; never empty.
    pub fn frames(&self) -> &[AudioFrame] {
        &self.frames
    }

    /// AudioSpecificConfig [ISO/IEC 14496-3 1.6.2.1]; empty for G.711.
    pub fn config(&self) -> &[u8] {
        &self.config
    }

    /// The `n`-th frame of the endless loop, and its time in samples since the loop began.
    pub fn looped(&self, n: u64) -> (&AudioFrame, u64) {
        (&self.frames[(n % self.frames.len() as u64) as usize], n.wrapping_mul(u64::from(self.frame_ticks)))
    }

    /// When the `n`-th frame of the endless loop leaves the camera, from the loop's beginning.
    pub fn due(&self, n: u64) -> Duration {
        let nanos = u128::from(n) * u128::from(self.frame_ticks) * 1_000_000_000 / u128::from(self.clock);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What a receiver's unit turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The clip's unit of this index, to the last bit.
    Exact(usize),
    /// No unit of the clip.
    Altered,
}

/// Sum of a receiver's comparison.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Units that are the clip's to the last bit.
    pub exact: u64,
    /// Of them key units.
    pub keys: u64,
    /// Units that are none of the clip's.
    pub altered: u64,
    /// Units missing between two exact ones (modulo the clip's length).
    pub missing: u64,
}

/// Follows a receiver through a clip: compares every access unit and notices gaps.
#[derive(Debug, Clone)]
pub struct ClipFollower {
    clip: Arc<Clip>,
    next: Option<usize>,
    sum: Comparison,
}

impl ClipFollower {
    /// A follower that accepts any unit as the first.
    pub fn new(clip: Arc<Clip>) -> Self {
        ClipFollower { clip, next: None, sum: Comparison::default() }
    }

    /// Takes the next received access unit as Annex B bytes with 4-byte start codes.
    pub fn push(&mut self, annex_b: &[u8]) -> Seen {
        let len = self.clip.units.len();
        let Some(index) = self.clip.find(annex_b) else {
            self.sum.altered += 1;
            // An altered unit stands in its place: it is not missing as well.
            self.next = self.next.map(|n| (n + 1) % len);
            return Seen::Altered;
        };
        let expected = self.next.unwrap_or(index);
        self.sum.missing += ((index + len - expected) % len) as u64;
        self.sum.exact += 1;
        self.sum.keys += u64::from(self.clip.units[index].key);
        self.next = Some((index + 1) % len);
        Seen::Exact(index)
    }

    /// The sum so far.
    pub fn sum(&self) -> Comparison {
        self.sum
    }
}

/// The clips embedded in the program, cut up on first use and shared.
#[derive(Debug, Clone, Copy)]
pub struct ClipLibrary;

macro_rules! embedded {
    ($(#[$doc:meta])* $name:ident: $kind:ty = $file:literal, $parse:expr) => {
        $(#[$doc])*
        pub fn $name() -> Arc<$kind> {
            static CLIP: LazyLock<Arc<$kind>> = LazyLock::new(|| {
                let stream = Bytes::from_static(include_bytes!(concat!("../../proto-fixtures/media/", $file)));
                Arc::new($parse(&stream).expect("the embedded clips are part of the program, and a test parses each"))
            });
            Arc::clone(&CLIP)
        }
    };
}

impl ClipLibrary {
    embedded! {
        /// H.264 Main, 640x360, 25 pictures a second, a key picture every 25.
        h264: Clip = "h264.h264", |s| Clip::parse(VideoCodec::H264, s, 25)
    }
    embedded! {
        /// The same with two B-frames between references and two slices a picture.
        h264_bframes: Clip = "h264_bframes.h264", |s| Clip::parse(VideoCodec::H264, s, 25)
    }
    embedded! {
        /// H.265 Main, 640x360, 25 pictures a second, a key picture every 25.
        h265: Clip = "h265.h265", |s| Clip::parse(VideoCodec::H265, s, 25)
    }
    embedded! {
        /// G.711 A-law, 8 kHz mono.
        pcma: AudioClip = "tone.alaw", |s| AudioClip::parse(AudioCodec::Pcma, s)
    }
    embedded! {
        /// G.711 µ-law, 8 kHz mono.
        pcmu: AudioClip = "tone.mulaw", |s| AudioClip::parse(AudioCodec::Pcmu, s)
    }
    embedded! {
        /// AAC-LC, 16 kHz mono.
        aac: AudioClip = "tone.aac", |s| AudioClip::parse(AudioCodec::Aac, s)
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn videos() -> [Arc<Clip>; 3] {
        [ClipLibrary::h264(), ClipLibrary::h265(), ClipLibrary::h264_bframes()]
    }

    #[test]
    fn every_clip_is_five_groups_of_25_distinct_pictures() {
        for clip in videos() {
            assert_eq!(clip.units().len(), 125, "{:?}", clip.codec());
            assert_eq!(clip.by_bytes.len(), 125, "two pictures of {:?} have the same bytes", clip.codec());
            for (i, unit) in clip.units().iter().enumerate() {
                assert_eq!(unit.key, i % 25 == 0, "{:?} picture {i}", clip.codec());
                assert_eq!(clip.find(&unit.bytes), Some(i));
            }
            assert_eq!(clip.parameter_sets().len(), clip.codec().parameter_set_count());
        }
    }

    #[test]
    fn no_byte_of_the_stream_is_lost_but_padding() {
        let file = Bytes::from_static(include_bytes!("../../proto-fixtures/media/h264_bframes.h264"));
        let clip = ClipLibrary::h264_bframes();
        let nals: Vec<Bytes> = clip.units().iter().flat_map(|u| u.nals.clone()).collect();
        assert_eq!(nals, split_nals(&file));
        // two slices a picture stay in one unit
        assert_eq!(clip.units()[1].nals.len(), 2);
        let payload: usize = nals.iter().map(Bytes::len).sum();
        let codes = memmem::find_iter(&file, b"\0\0\x01").count() * 3 + memmem::find_iter(&file, b"\0\0\0\x01").count();
        assert_eq!(payload + codes, file.len());
    }

    #[test]
    fn presentation_follows_the_picture_order() {
        let plain: Vec<u64> = ClipLibrary::h264().units().iter().map(|u| u.pts).collect();
        assert_eq!(plain, (0..125).map(|i| i * 3600).collect::<Vec<u64>>());
        let clip = ClipLibrary::h264_bframes();
        let frames: Vec<u64> = clip.units().iter().map(|u| u.pts / 3600).collect();
        // I P B B P B B …, delayed by one frame
        assert_eq!(frames[..7], [1, 4, 2, 3, 7, 5, 6]);
        let mut sorted = frames.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (1..=125).collect::<Vec<u64>>(), "every display slot is taken once");
        assert!(frames.iter().enumerate().all(|(i, f)| *f >= i as u64), "nothing is shown before it is decoded");
    }

    #[test]
    fn loops_go_on_in_time() {
        let clip = ClipLibrary::h265();
        let (unit, pts) = clip.looped(125 * 3 + 2);
        assert_eq!((unit, pts), (&clip.units()[2], (125 * 3 + 2) * 3600));
        assert_eq!(clip.due(125 * 3), Duration::from_secs(15));
        let audio = ClipLibrary::aac();
        let (frame, samples) = audio.looped(81);
        assert_eq!((frame, samples), (&audio.frames()[1], 81 * 1024));
        assert_eq!(audio.due(125), Duration::from_secs(8));
        assert_eq!(clip.due(u64::MAX).as_nanos(), u128::from(u64::MAX / 25), "no overflow at the end of time");
    }

    #[test]
    fn audio_is_cut_into_frames() {
        for clip in [ClipLibrary::pcma(), ClipLibrary::pcmu()] {
            assert_eq!((clip.frames().len(), clip.clock(), clip.frame_ticks()), (250, 8000, 160));
            assert!(clip.frames().iter().all(|f| f.payload.len() == 160));
        }
        let aac = ClipLibrary::aac();
        assert_eq!((aac.frames().len(), aac.clock(), aac.channels()), (80, 16000, 1));
        assert_eq!(aac.config(), [0x14, 0x08]); // AAC-LC, 16 kHz, mono
        assert!(aac.frames().iter().all(|f| f.bytes.len() == f.payload.len() + 7));
    }

    #[test]
    fn the_follower_tells_exact_altered_and_missing() {
        let clip = ClipLibrary::h264();
        let mut follower = ClipFollower::new(Arc::clone(&clip));
        assert_eq!(follower.push(&clip.units()[124].bytes), Seen::Exact(124));
        assert_eq!(follower.push(&clip.units()[0].bytes), Seen::Exact(0));
        let mut spoilt = clip.units()[1].bytes.to_vec();
        *spoilt.last_mut().unwrap() ^= 1;
        assert_eq!(follower.push(&spoilt), Seen::Altered);
        assert_eq!(follower.push(&clip.units()[5].bytes), Seen::Exact(5));
        assert_eq!(follower.sum(), Comparison { exact: 3, keys: 1, altered: 1, missing: 3 });
    }

    #[test]
    fn what_is_no_clip_is_refused() {
        let parse = |s: &'static [u8]| Clip::parse(VideoCodec::H264, &Bytes::from_static(s), 25).map(|c| c.units.len());
        assert_eq!(parse(b""), Err(ClipError::Empty(0)));
        assert_eq!(parse(b"\0\0\x01\0\0\x01\0\0"), Err(ClipError::Empty(8)));
        assert_eq!(parse(b"\0\0\x01\x41\x9a\x02"), Err(ClipError::NoKeyFirst));
        assert!(matches!(parse(b"\0\0\x01\x65\x88\x84"), Err(ClipError::Syntax { what: "slice header", .. })));
        let file = Bytes::from_static(include_bytes!("../../proto-fixtures/media/h264.h264"));
        assert!(matches!(Clip::parse(VideoCodec::H264, &file, 0), Err(ClipError::FrameRate(0))));
        assert!(matches!(AudioClip::parse(AudioCodec::Aac, &file), Err(ClipError::Adts(0))));
    }

    #[test]
    fn the_manifest_tells_the_truth() {
        let text = include_str!("../../proto-fixtures/media/MANIFEST.toml");
        let manifest: toml_edit::DocumentMut = text.parse().unwrap();
        let frames = |name: &str| match name {
            "h264.h264" => ClipLibrary::h264().units().len(),
            "h264_bframes.h264" => ClipLibrary::h264_bframes().units().len(),
            "h265.h265" => ClipLibrary::h265().units().len(),
            "tone.alaw" => ClipLibrary::pcma().frames().len(),
            "tone.mulaw" => ClipLibrary::pcmu().frames().len(),
            "tone.aac" => ClipLibrary::aac().frames().len(),
            other => panic!("{other} is not embedded"),
        };
        let files = manifest["file"].as_array_of_tables().unwrap();
        assert_eq!(files.len(), 6);
        for file in files {
            let name = file["name"].as_str().unwrap();
            let path = format!("{}/proto-fixtures/media/{name}", env!("CARGO_MANIFEST_DIR"));
            let bytes = std::fs::read(path).unwrap();
            let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(file["sha256"].as_str(), Some(digest.as_str()), "{name}");
            assert_eq!(file["bytes"].as_integer(), Some(bytes.len() as i64), "{name}");
            assert_eq!(file["frames"].as_integer(), Some(frames(name) as i64), "{name}");
        }
    }
}
