//! Writes program streams: one pack a frame, system header and PSM in every key frame's pack.
//!
//! Standard: [ISO13818-1 2.5.3, 2.5.4, 2.4.3.6], [GB/T28181-2022 annex C, figure C.1].
//! In: one access unit or audio frame at a time, times in 90 kHz ticks that need no wrapping. Out: bytes into a
//! [`PutBytes`]: a buffer, or an RTP image directly.
//! Invariants: SCR never goes back; no PES is longer than `PES_LENGTH_MAX` or of length 0; rates change at key frames
//! only and never sink; nothing is allocated, and the payload is copied once.
//! Not here: parameter sets and start codes (see `codec::access_unit`), RTP timestamps, smoothing of times.

use super::{AUDIO, CLOCK_MASK, CLOCK_RATE, PACK, PSM, SYSTEM, VIDEO, audio_stream_type, crc32, video_stream_type};
use crate::proto::codec::{AudioCodec, VideoCodec};
use crate::proto::rtp::PutBytes;

/// Largest PES_packet_length written: some receivers take no more than 0xFF80.
pub const PES_LENGTH_MAX: usize = 0xFF80;
/// How much before its decoding time a frame's first byte is due, in ticks: 40 ms.
pub const SCR_LEAD: u64 = 3600;
/// The mux rate stated until a stream proves faster, in units of 50 bytes a second: 2.4 Mbit/s.
pub const DEFAULT_MUX_RATE: u32 = 6106;
/// The rate bound stated until a stream proves faster, same unit.
const DEFAULT_RATE_BOUND: u32 = 26_234;
/// Both rates have 22 bits.
const MAX_RATE: u32 = (1 << 22) - 1;
/// Without video, how often the stream map is repeated, in ticks: a receiver that joins knows the codec within 1 s.
const AUDIO_MAP_INTERVAL: u64 = CLOCK_RATE;
/// Pack header 14, system header 18, PSM 24, PES header 19: the most that stands before a frame.
const MAX_HEADERS: usize = 75;

/// What a muxer carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MuxConfig {
    /// The video track, stream id 0xE0.
    pub video: Option<VideoCodec>,
    /// The audio track, stream id 0xC0.
    pub audio: Option<AudioCodec>,
}

/// One access unit to write.
#[derive(Debug, Clone, Copy)]
pub struct VideoUnit<'a> {
    /// Annex B bytes; a key frame with its parameter sets.
    pub annexb: &'a [u8],
    /// Presentation time in ticks.
    pub pts: u64,
    /// Decoding time in ticks; written only where it differs from `pts`.
    pub dts: u64,
    /// IDR or IRAP: system header and PSM go before it.
    pub key: bool,
}

/// Follows a stream's peak rate, so that every muxer of it states the same.
#[derive(Debug, Clone, Default)]
pub struct MuxRate {
    /// Bytes of the last ten tenths of a second, by tenth modulo ten.
    tenths: [u64; 10],
    tenth: u64,
    /// Most bytes in any second.
    peak: u64,
}

impl MuxRate {
    /// Counts a frame of `payload` bytes, due at `ticks`.
    pub fn frame(&mut self, ticks: u64, payload: usize) {
        self.observe(ticks, Muxer::max_length(payload));
    }

    fn observe(&mut self, ticks: u64, bytes: usize) {
        let tenth = ticks / (CLOCK_RATE / 10);
        let step = tenth.abs_diff(self.tenth);
        if step >= 10 {
            self.tenths = [0; 10];
        } else if tenth > self.tenth {
            (self.tenth + 1..=tenth).for_each(|t| self.tenths[(t % 10) as usize] = 0);
        }
        if tenth > self.tenth || step >= 10 {
            self.tenth = tenth;
        }
        self.tenths[(self.tenth % 10) as usize] += bytes as u64;
        self.peak = self.peak.max(self.tenths.iter().sum());
    }

    /// 1.5 times the peak of any second so far, in units of 50 bytes a second.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        (self.peak * 3).div_ceil(100).min(u64::from(MAX_RATE)) as u32
    }
}

/// Headers gathered before they are put.
struct Headers {
    bytes: [u8; MAX_HEADERS],
    length: usize,
}

impl Headers {
    fn new() -> Self {
        Self { bytes: [0; MAX_HEADERS], length: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        debug_assert!(end <= MAX_HEADERS, "the longest headers are counted in MAX_HEADERS");
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
            self.length = end;
        }
    }

    fn put(&mut self, out: &mut impl PutBytes) -> usize {
        out.put(&self.bytes[..self.length]);
        std::mem::take(&mut self.length)
    }
}

/// The muxer of one stream.
#[derive(Debug, Clone)]
pub struct Muxer {
    config: MuxConfig,
    /// version of the stream map, 0 to 31.
    psm_version: u8,
    psm: [u8; 24],
    psm_length: usize,
    rate: MuxRate,
    mux_rate: u32,
    /// What the next map states at least.
    rate_floor: u32,
    /// Last SCR in unwrapped ticks.
    scr: u64,
    /// Decoding time of the last picture, in unwrapped ticks.
    picture_due: u64,
    /// When the map was last written, in ticks; `None` when it is due.
    mapped_at: Option<u64>,
}

impl Muxer {
    /// A muxer at the start of a stream.
    #[must_use]
    pub fn new(config: MuxConfig) -> Self {
        let mut muxer = Self {
            config,
            psm_version: 0,
            psm: [0; 24],
            psm_length: 0,
            rate: MuxRate::default(),
            mux_rate: DEFAULT_MUX_RATE,
            rate_floor: 0,
            scr: 0,
            picture_due: 0,
            mapped_at: None,
        };
        muxer.build_psm();
        muxer
    }

    /// What is carried.
    #[must_use]
    pub fn config(&self) -> MuxConfig {
        self.config
    }

    /// Changes the tracks; the map's version rises when they differ. Takes effect with the next map, so follow it with
    /// a key frame.
    pub fn set_config(&mut self, config: MuxConfig) {
        if config != self.config {
            self.config = config;
            self.psm_version = (self.psm_version + 1) & 0x1F;
            self.mapped_at = None;
            self.build_psm();
        }
    }

    /// Lets times begin anew, after a seek: the next SCR may go back.
    pub fn restart_clock(&mut self) {
        self.scr = 0;
        self.picture_due = 0;
        self.mapped_at = None;
    }

    /// States at least `units` of 50 bytes a second from the next map on: what [`MuxRate::wanted`] says of a stream that
    /// others have watched for longer.
    pub fn state_at_least(&mut self, units: u32) {
        self.rate_floor = self.rate_floor.max(units.min(MAX_RATE));
    }

    /// The most bytes [`Self::write_video`] and [`Self::write_audio`] make of `payload` bytes.
    #[must_use]
    pub fn max_length(payload: usize) -> usize {
        payload + MAX_HEADERS + payload / (PES_LENGTH_MAX - 3) * 9
    }

    /// Writes the pack of one frame; returns its length. Nothing is written for an empty unit or without a video track.
    pub fn write_video(&mut self, out: &mut impl PutBytes, unit: &VideoUnit<'_>) -> usize {
        if self.config.video.is_none() || unit.annexb.is_empty() {
            return 0;
        }
        self.rate.observe(unit.dts, Self::max_length(unit.annexb.len()));
        let dts = (unit.dts != unit.pts).then_some(unit.dts);
        self.picture_due = self.picture_due.max(unit.dts);
        self.write_pack(out, VIDEO, unit.annexb, unit.dts, unit.pts, dts, unit.key)
    }

    /// Writes the pack of one audio frame group (G.711 samples, or AAC frames with ADTS); returns its length.
    ///
    /// Nothing is written for an empty payload or without an audio track.
    pub fn write_audio(&mut self, out: &mut impl PutBytes, payload: &[u8], pts: u64) -> usize {
        if self.config.audio.is_none() || payload.is_empty() {
            return 0;
        }
        self.rate.observe(pts, Self::max_length(payload.len()));
        let due = self.mapped_at.is_none_or(|at| pts.abs_diff(at) >= AUDIO_MAP_INTERVAL);
        let map = self.config.video.is_none() && due;
        // Sound that runs ahead must not push the clock past the decoding time of the next picture.
        let clock = if self.config.video.is_some() { pts.min(self.picture_due + SCR_LEAD) } else { pts };
        self.write_pack(out, AUDIO, payload, clock, pts, None, map)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one pack, in the order they are written")]
    fn write_pack(
        &mut self,
        out: &mut impl PutBytes,
        stream: u8,
        payload: &[u8],
        due: u64,
        pts: u64,
        dts: Option<u64>,
        map: bool,
    ) -> usize {
        if map {
            self.mux_rate = self.mux_rate.max(self.rate.wanted()).max(self.rate_floor);
            self.mapped_at = Some(pts);
        }
        self.scr = self.scr.max(due.saturating_sub(SCR_LEAD));
        let mut headers = Headers::new();
        headers.add(&pack_header(self.scr, self.mux_rate));
        if map {
            self.add_system_header(&mut headers);
            headers.add(&self.psm[..self.psm_length]);
        }
        let (mut rest, mut written) = (payload, 0);
        let mut times = Some((pts, dts));
        while !rest.is_empty() {
            let stamps = times.map_or(0, |(_, dts)| if dts.is_some() { 10 } else { 5 });
            let (now, later) = rest.split_at(rest.len().min(PES_LENGTH_MAX - 3 - stamps));
            let length = (3 + stamps + now.len()) as u16;
            let [high, low] = length.to_be_bytes();
            // '10', not scrambled; data_alignment_indicator on the piece the frame begins with
            let flags = if times.is_some() { 0x84 } else { 0x80 };
            headers.add(&[0, 0, 1, stream, high, low, flags]);
            match times.take() {
                Some((pts, None)) => {
                    headers.add(&[0x80, 5]);
                    headers.add(&timestamp(2, pts));
                }
                Some((pts, Some(dts))) => {
                    headers.add(&[0xC0, 10]);
                    headers.add(&timestamp(3, pts));
                    headers.add(&timestamp(1, dts));
                }
                None => headers.add(&[0, 0]),
            }
            written += headers.put(out) + now.len();
            out.put(now);
            rest = later;
        }
        written
    }

    fn add_system_header(&self, headers: &mut Headers) {
        let video = u8::from(self.config.video.is_some());
        let audio = u8::from(self.config.audio.is_some());
        let [_, r2, r1, r0] = (self.mux_rate.max(DEFAULT_RATE_BOUND) << 1 | 1).to_be_bytes();
        let length = 6 + 3 * (video + audio);
        // audio_bound, variable rate; audio and video locked, video_bound; no packet rate restriction
        headers.add(&[0, 0, 1, SYSTEM, 0, length, 0x80 | r2, r1, r0, audio << 2, 0xE0 | video, 0x7F]);
        if video == 1 {
            headers.add(&[VIDEO, 0xE0 | 1, 0x90]); // 400 units of 1,024 bytes
        }
        if audio == 1 {
            headers.add(&[AUDIO, 0xC0, 0x20]); // 32 units of 128 bytes
        }
    }

    fn build_psm(&mut self) {
        let video = self.config.video.map(|codec| [video_stream_type(codec), VIDEO, 0, 0]);
        let audio = self.config.audio.map(|codec| [audio_stream_type(codec), AUDIO, 0, 0]);
        let map = 4 * (u8::from(video.is_some()) + u8::from(audio.is_some()));
        let mut at = 12;
        self.psm[..at].copy_from_slice(&[0, 0, 1, PSM, 0, 10 + map, 0xE0 | self.psm_version, 0xFF, 0, 0, 0, map]);
        for entry in [video, audio].into_iter().flatten() {
            self.psm[at..at + 4].copy_from_slice(&entry);
            at += 4;
        }
        let crc = crc32(&self.psm[..at]);
        self.psm[at..at + 4].copy_from_slice(&crc.to_be_bytes());
        self.psm_length = at + 4;
    }
}

/// Pack header without stuffing; SCR extension 0.
fn pack_header(scr: u64, mux_rate: u32) -> [u8; 14] {
    let scr = scr & CLOCK_MASK;
    let [_, r2, r1, r0] = (mux_rate.min(MAX_RATE) << 2 | 3).to_be_bytes();
    [
        0,
        0,
        1,
        PACK,
        0x44 | (scr >> 27 & 0x38) as u8 | (scr >> 28 & 3) as u8,
        (scr >> 20) as u8,
        0x04 | (scr >> 12 & 0xF8) as u8 | (scr >> 13 & 3) as u8,
        (scr >> 5) as u8,
        0x04 | (scr << 3 & 0xF8) as u8,
        0x01,
        r2,
        r1,
        r0,
        0xF8,
    ]
}

/// PTS or DTS with its 4-bit prefix.
fn timestamp(prefix: u8, ticks: u64) -> [u8; 5] {
    [
        prefix << 4 | (ticks >> 29 & 0x0E) as u8 | 1,
        (ticks >> 22) as u8,
        (ticks >> 14) as u8 | 1,
        (ticks >> 7) as u8,
        (ticks << 1) as u8 | 1,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rtp::{Framing, ImageWriter};
    use bytes::BytesMut;

    const H264_ALAW: MuxConfig = MuxConfig { video: Some(VideoCodec::H264), audio: Some(AudioCodec::G711A) };

    fn unit(annexb: &[u8], pts: u64, key: bool) -> VideoUnit<'_> {
        VideoUnit { annexb, pts, dts: pts, key }
    }

    fn scr(pack: &[u8]) -> u64 {
        assert_eq!(pack[..4], [0, 0, 1, PACK]);
        let b: Vec<u64> = pack[4..9].iter().map(|b| u64::from(*b)).collect();
        (b[0] >> 3 & 7) << 30
            | (b[0] & 3) << 28
            | b[1] << 20
            | (b[2] >> 3) << 15
            | (b[2] & 3) << 13
            | b[3] << 5
            | b[4] >> 3
    }

    fn mux_rate(pack: &[u8]) -> u32 {
        u32::from_be_bytes([0, pack[10], pack[11], pack[12]]) >> 2
    }

    #[test]
    fn key_frame_layout_byte_by_byte() {
        let mut out = Vec::new();
        let mut muxer = Muxer::new(H264_ALAW);
        let written = muxer.write_video(&mut out, &unit(&[0, 0, 0, 1, 0x65, 0x88], 93_600, true));
        assert_eq!(written, out.len());
        let expected = [
            // SCR 90000, 6106 * 50 bytes/s
            &[0, 0, 1, 0xBA, 0x44, 0x00, 0x16, 0xFC, 0x84, 0x01, 0x00, 0x5F, 0x6B, 0xF8][..],
            // rate bound 26234, one audio, one video
            &[0, 0, 1, 0xBB, 0, 12, 0x80, 0xCC, 0xF5, 0x04, 0xE1, 0x7F, 0xE0, 0xE1, 0x90, 0xC0, 0xC0, 0x20],
            &[0, 0, 1, 0xBC, 0, 18, 0xE0, 0xFF, 0, 0, 0, 8, 0x1B, 0xE0, 0, 0, 0x90, 0xC0, 0, 0],
            &crc32(&out[32..52]).to_be_bytes(),
            // PTS 93600
            &[0, 0, 1, 0xE0, 0, 14, 0x84, 0x80, 5, 0x21, 0x00, 0x05, 0xDB, 0x41],
            &[0, 0, 0, 1, 0x65, 0x88],
        ]
        .concat();
        assert_eq!(out, expected);
    }

    #[test]
    fn delta_frames_and_audio_have_a_pack_and_a_pes_only() {
        let mut out = Vec::new();
        let mut muxer = Muxer::new(H264_ALAW);
        assert_eq!(muxer.write_video(&mut out, &unit(&[1; 10], 90_000, false)), 14 + 14 + 10);
        assert_eq!(muxer.write_audio(&mut out, &[2; 20], 90_000), 14 + 14 + 20);
        assert_eq!((out[17], out[38 + 17]), (VIDEO, AUDIO));
        let mut out = Vec::new();
        let b_frame = VideoUnit { annexb: &[1; 10], pts: 97_200, dts: 93_600, key: false };
        assert_eq!(muxer.write_video(&mut out, &b_frame), 14 + 19 + 10);
        assert_eq!((out[21] & 0xC0, out[23] >> 4, out[28] >> 4), (0xC0, 3, 1));
    }

    #[test]
    fn what_has_no_track_or_no_bytes_is_not_written() {
        let mut out = Vec::new();
        let mut muxer = Muxer::new(MuxConfig { video: None, audio: Some(AudioCodec::Aac) });
        assert_eq!(muxer.write_video(&mut out, &unit(&[1], 0, true)), 0);
        assert_eq!(muxer.write_audio(&mut out, &[], 0), 0);
        assert!(out.is_empty());
    }

    #[test]
    fn long_frames_are_split_without_further_times() {
        let payload = vec![7; 200_000];
        let mut out = Vec::new();
        let written = Muxer::new(H264_ALAW).write_video(&mut out, &unit(&payload, 90_000, false));
        assert!(written <= Muxer::max_length(payload.len()));
        let (mut at, mut total, mut pes) = (14, 0, 0);
        while at < out.len() {
            assert_eq!(out[at..at + 4], [0, 0, 1, VIDEO]);
            let length = usize::from(u16::from_be_bytes([out[at + 4], out[at + 5]]));
            assert!(length <= PES_LENGTH_MAX);
            assert_eq!((out[at + 6], out[at + 7]), if pes == 0 { (0x84, 0x80) } else { (0x80, 0) });
            total += length - 3 - usize::from(out[at + 8]);
            at += 6 + length;
            pes += 1;
        }
        assert_eq!((total, pes), (200_000, 4));
    }

    #[test]
    fn scr_leads_by_40_ms_is_clamped_wraps_and_never_goes_back() {
        let mut muxer = Muxer::new(H264_ALAW);
        let mut next = |pts| {
            let mut out = Vec::new();
            muxer.write_video(&mut out, &unit(&[1], pts, false));
            scr(&out)
        };
        assert_eq!((next(0), next(3600), next(7200)), (0, 0, 3600));
        assert_eq!((next(90_000), next(50_000), next(93_600)), (86_400, 86_400, 90_000));
        assert_eq!(next(CLOCK_MASK + 1 + 7200), 3600);
        muxer.restart_clock();
        let mut out = Vec::new();
        muxer.write_video(&mut out, &unit(&[1], 7200, false));
        assert_eq!(scr(&out), 3600);
    }

    #[test]
    fn rate_is_one_and_a_half_times_the_peak_and_changes_at_key_frames() {
        let mut muxer = Muxer::new(H264_ALAW);
        let frame = vec![1; 40_000];
        let mut rates = Vec::new();
        for i in 0..100u64 {
            let mut out = Vec::new();
            muxer.write_video(&mut out, &unit(&frame, 90_000 + i * 3600, i % 50 == 0));
            rates.push(mux_rate(&out));
        }
        assert_eq!(rates[..50], [DEFAULT_MUX_RATE; 50]);
        // 25 frames a second; a window of ten whole tenths sees 25
        let floor = 25 * 40_000 * 3 / 2 / 50;
        assert!((floor..floor + floor / 20).contains(&rates[50]), "{} of {floor}", rates[50]);
        assert_eq!(rates[50..], [rates[50]; 50]);
        let mut out = Vec::new();
        muxer.write_video(&mut out, &unit(&frame, 4_000_000, true));
        let bound = u32::from_be_bytes([0, out[20], out[21], out[22]]) >> 1 & MAX_RATE;
        assert!(bound >= mux_rate(&out) && mux_rate(&out) == rates[99]);
        (0..10_000).for_each(|_| muxer.rate.observe(4_000_000, usize::MAX >> 16));
        assert_eq!(muxer.rate.wanted(), MAX_RATE);
    }

    #[test]
    fn what_others_saw_of_the_rate_is_stated_from_the_next_map_on() {
        let mut muxer = Muxer::new(H264_ALAW);
        muxer.state_at_least(20_000);
        let mut rate = |key| {
            let mut out = Vec::new();
            muxer.write_video(&mut out, &unit(&[1; 10], 90_000, key));
            mux_rate(&out)
        };
        assert_eq!((rate(false), rate(true), rate(false)), (DEFAULT_MUX_RATE, 20_000, 20_000));
        let mut seen = MuxRate::default();
        (0..25u64).for_each(|i| seen.frame(90_000 + i * 3600, 40_000));
        assert!(seen.wanted() >= 25 * 40_000 * 3 / 2 / 50);
    }

    #[test]
    fn sound_that_runs_ahead_does_not_push_the_clock_past_the_picture() {
        let mut muxer = Muxer::new(H264_ALAW);
        let mut clocks = Vec::new();
        for i in 0..5u64 {
            let mut out = Vec::new();
            muxer.write_video(&mut out, &unit(&[1], 90_000 + i * 3600, i == 0));
            clocks.push((scr(&out), 90_000 + i * 3600));
            let mut out = Vec::new();
            muxer.write_audio(&mut out, &[2; 160], 190_000 + i * 1800);
            clocks.push((scr(&out), 90_000 + i * 3600));
        }
        assert!(clocks.windows(2).all(|w| w[0].0 <= w[1].0), "{clocks:?}");
        assert!(clocks.iter().all(|(scr, dts)| scr <= dts), "{clocks:?}");
    }

    #[test]
    fn map_version_rises_with_each_change_and_wraps() {
        let mut muxer = Muxer::new(H264_ALAW);
        let version = |muxer: &mut Muxer| {
            let mut out = Vec::new();
            muxer.write_video(&mut out, &unit(&[1], 0, true));
            let at = out.windows(4).position(|w| w == [0, 0, 1, PSM]).unwrap();
            let end = at + 6 + usize::from(out[at + 5]);
            assert_eq!(crc32(&out[at..end]), 0, "a map with its CRC divides evenly");
            out[at + 6] & 0x1F
        };
        assert_eq!(version(&mut muxer), 0);
        muxer.set_config(H264_ALAW);
        assert_eq!(version(&mut muxer), 0);
        muxer.set_config(MuxConfig { video: Some(VideoCodec::H265), audio: None });
        assert_eq!(version(&mut muxer), 1);
        for _ in 0..16 {
            muxer.set_config(MuxConfig { video: Some(VideoCodec::H264), audio: None });
            muxer.set_config(MuxConfig { video: Some(VideoCodec::H265), audio: None });
        }
        assert_eq!(version(&mut muxer), 1);
    }

    #[test]
    fn audio_alone_repeats_the_map_each_second() {
        let mut muxer = Muxer::new(MuxConfig { video: None, audio: Some(AudioCodec::G711U) });
        let mapped: Vec<u64> =
            (0..50u64).filter(|i| muxer.write_audio(&mut Vec::new(), &[1; 320], i * 3600) > 14 + 14 + 320).collect();
        assert_eq!(mapped, [0, 25]);
    }

    #[test]
    fn an_image_holds_the_same_bytes() {
        let payload: Vec<u8> = (0..70_000u32).map(|i| i as u8).collect();
        let (mut plain, mut image) = (Vec::new(), BytesMut::new());
        let frame = unit(&payload, 5000, true);
        Muxer::new(H264_ALAW).write_video(&mut plain, &frame);
        let mut writer = ImageWriter::new(&mut image, 1388, Framing::Datagram);
        Muxer::new(H264_ALAW).write_video(&mut writer, &frame);
        let shape = writer.finish(true, 96, 5000);
        let read: Vec<u8> = image.chunks(shape.block).flat_map(|packet| packet[12..].to_vec()).collect();
        assert_eq!(read, plain);
    }
}
