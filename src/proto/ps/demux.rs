//! Reads program streams as cameras, recorders and platforms really send them.
//!
//! Standard: [ISO13818-1 2.5], [ISO11172-1] for MPEG-1 packs, [GB/T28181-2022 annex C].
//! In: bytes split anywhere ([`Demuxer::push`]), RTP markers ([`Demuxer::end_of_frame`]), losses
//! ([`Demuxer::discontinuity`]). Out: [`Unit`]s by [`Demuxer::pull`].
//! Invariants: any bytes are survived; header bytes held are at most `HEAD`, a frame at most 8 MiB, units waiting at most
//! `MAX_QUEUED`; after damage reading goes on at the next pack header, or PES header with time stamp; every departure
//! from the standard that is forgiven has a counter; in steady state nothing is allocated while units are dropped in time.
//! Not here: RTP order and loss (see `rtp::reorder`), joining AAC frames split over PES.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use memchr::memchr;

use super::frames::{Frames, Oversize, Times};
use super::{AUDIO, CLOCK_MASK, END, PACK, PRIVATE_1, PSM, VIDEO, crc32};
use crate::proto::codec::annexb::find_start_code;
use crate::proto::codec::{AdtsHeader, AudioCodec, VideoCodec};

/// Longest stream map read, with its start code and length [ISO13818-1 2.5.4.1: 1,018 bytes].
const MAX_PSM: usize = 6 + 1018;
/// Bytes of a header held: a stream map; a PES header is at most 9 + 255.
const HEAD: usize = MAX_PSM;
/// Units waiting to be pulled: one RTP packet rarely brings more than two, a 64 KiB read of a file under 700.
const MAX_QUEUED: usize = 1024;
/// Steps of the clock above need a second stamp to be believed, in ticks: 10 min.
const MAX_JUMP: u64 = 600 * 90_000;
/// Largest distance of DTS and PTS that is not damage, in ticks: 10 s.
const MAX_REORDER: u64 = 10 * 90_000;
/// What the audio buffer grows by at least.
const AUDIO_SLAB: usize = 4096;
/// Zero or 0xFF bytes forgiven between two parts of a stream.
const MAX_STUFFING: u32 = 64;
/// Longest MPEG-1 PES header: 16 stuffing bytes, buffer size, two time stamps.
const MPEG1_PES: usize = 16 + 2 + 10;
/// Bytes of a PES header with one time stamp: enough to believe it.
const PES_PROOF: usize = 14;

/// What to do with a stream map whose CRC is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BadPsmCrc {
    /// Use it for what is not known yet: old cameras of a large maker never compute the CRC right. What a right map or
    /// the NAL units have told stays.
    #[default]
    Accept,
    /// Drop it.
    Ignore,
}

/// How forgiving a demuxer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DemuxConfig {
    /// Stream maps with a wrong CRC.
    pub bad_psm_crc: BadPsmCrc,
}

/// What a program stream holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    /// One access unit.
    Video {
        /// Proven by its NAL units, else as the stream map says.
        codec: VideoCodec,
        /// Presentation time in 90 kHz ticks, unwrapped: it goes on over 33 bits, and back where the sender's does.
        pts: u64,
        /// Decoding time, same clock; `pts` where the sender gives none.
        dts: u64,
        /// IDR or IRAP.
        key: bool,
        /// The bytes from a start code on, as sent.
        annexb: Bytes,
    },
    /// The payload of one audio PES: G.711 samples, or AAC with ADTS headers.
    Audio {
        /// As the stream map says; AAC is recognised without.
        codec: AudioCodec,
        /// Presentation time in 90 kHz ticks, same clock as video.
        pts: u64,
        /// The bytes as sent.
        payload: Bytes,
    },
    /// Something was lost before what follows: frames up to the next key frame may refer to it.
    Gap,
}

/// What a demuxer met. All counts are since its creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DemuxCounters {
    /// Pack headers.
    pub packs: u64,
    /// Pack headers of MPEG-1 form.
    pub mpeg1_packs: u64,
    /// Access units given out.
    pub frames: u64,
    /// Audio payloads given out.
    pub audio: u64,
    /// Access units dropped because part of them was missing or damaged.
    pub frames_dropped: u64,
    /// Access units over 8 MiB, dropped.
    pub oversize_frames: u64,
    /// Access units dropped because nothing told their codec yet.
    pub undecided_frames: u64,
    /// Audio payloads dropped because their codec is unknown or not carried.
    pub undecided_audio: u64,
    /// Access units without time stamps; theirs were continued.
    pub times_missing: u64,
    /// Times the structure was lost and looked for anew.
    pub resyncs: u64,
    /// Bytes skipped before the first pack, or while looking.
    pub skipped_bytes: u64,
    /// PES whose length ran past the next pack header.
    pub length_lies: u64,
    /// Video PES of length 0.
    pub unbounded_pes: u64,
    /// PES headers that contradict themselves.
    pub bad_pes: u64,
    /// Stream maps read.
    pub psm: u64,
    /// Stream maps with a wrong CRC.
    pub psm_bad_crc: u64,
    /// Stream maps that cannot be read.
    pub psm_malformed: u64,
    /// Times the codec stated was not the codec sent.
    pub codec_lies: u64,
    /// Frames that went on after their RTP marker.
    pub marker_lies: u64,
    /// PES that claimed to begin with an access unit and did not.
    pub alignment_lies: u64,
    /// Private PES skipped (metadata of some makers).
    pub private_pes: u64,
    /// PES of second video and audio streams, skipped.
    pub other_streams: u64,
    /// Units dropped because nobody pulled.
    pub queue_overflows: u64,
}

/// Where units and counts go.
#[derive(Debug, Default)]
pub(super) struct Output {
    queue: VecDeque<Unit>,
    pub(super) counters: DemuxCounters,
    /// There was something before, so that a loss is a gap.
    synced: bool,
}

impl Output {
    pub(super) fn push(&mut self, unit: Unit) {
        if self.queue.len() < MAX_QUEUED {
            self.queue.push_back(unit);
            return;
        }
        self.counters.queue_overflows += 1;
        if let Some(last) = self.queue.back_mut() {
            *last = Unit::Gap;
        }
    }

    pub(super) fn gap(&mut self) {
        if self.synced && self.queue.back() != Some(&Unit::Gap) {
            self.push(Unit::Gap);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Video,
    Audio,
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Looking for a place to begin: this many bytes of `00 00 01` have matched.
    Sync(usize),
    /// A start code is due; this many stuffing bytes were passed over.
    Start(u32),
    /// Gathering a header. `tentative`: found by looking, so it must prove itself.
    Head { tentative: bool },
    /// This many bytes of payload are due.
    Body(Sink, usize),
    /// Video up to the next start code of the system layer; this many bytes of `00 00 01` are held back.
    Unbounded(usize),
}

/// What the gathered header bytes amount to.
enum Head {
    More(usize),
    Bad,
    Pack { stuffing: usize, mpeg1: bool },
    Map,
    Skip(usize),
    Pes(Pes),
}

#[derive(Clone, Copy)]
struct Pes {
    /// Bytes of the header with its start code.
    header: usize,
    /// Bytes of payload; `None` for an unbounded one.
    payload: Option<usize>,
    pts: Option<u64>,
    dts: Option<u64>,
    aligned: bool,
}

/// The demuxer of one stream. Pull until `None` after every push.
#[derive(Debug)]
pub struct Demuxer {
    config: DemuxConfig,
    state: State,
    head: [u8; HEAD],
    held: usize,
    frames: Frames,
    audio: BytesMut,
    audio_pts: Option<u64>,
    /// Duration of the last audio payload in ticks, for one without time stamp.
    audio_step: u64,
    video_id: Option<u8>,
    /// The video stream id has delivered something.
    video_seen: bool,
    audio_id: Option<u8>,
    audio_codec: Option<AudioCodec>,
    /// A stream map was read, so that silence about a stream means something.
    mapped: bool,
    clock: Option<u64>,
    /// A time stamp far from `clock`, not confirmed yet.
    jump: Option<u64>,
    out: Output,
}

impl Default for Demuxer {
    fn default() -> Self {
        Self::new(DemuxConfig::default())
    }
}

impl Demuxer {
    /// A demuxer before the first byte.
    #[must_use]
    pub fn new(config: DemuxConfig) -> Self {
        Self {
            config,
            state: State::Sync(0),
            head: [0; HEAD],
            held: 0,
            frames: Frames::new(),
            audio: BytesMut::new(),
            audio_pts: None,
            audio_step: 0,
            video_id: None,
            video_seen: false,
            audio_id: None,
            audio_codec: None,
            mapped: false,
            clock: None,
            jump: None,
            out: Output::default(),
        }
    }

    /// The counters now.
    #[must_use]
    pub fn counters(&self) -> DemuxCounters {
        self.out.counters
    }

    /// Whether sound may come: a stream map names one that is carried, or no map has told yet.
    #[must_use]
    pub fn may_have_audio(&self) -> bool {
        !self.mapped || self.audio_codec.is_some()
    }

    /// Takes in the next bytes. Give RTP payloads one by one: a pack header at the start of one is believed over a PES
    /// length that runs past it.
    pub fn push(&mut self, bytes: &[u8]) {
        let inside = matches!(self.state, State::Body(_, 1..));
        if inside && bytes.first_chunk().is_some_and(|head: &[u8; 14]| is_pack_header(head)) {
            self.out.counters.length_lies += 1;
            self.end_body();
        }
        self.consume(bytes);
    }

    /// The next unit; `None` until more is pushed.
    pub fn pull(&mut self) -> Option<Unit> {
        self.out.queue.pop_front()
    }

    /// The RTP packet whose payload was pushed last had the marker bit: gives out the frame without waiting for the next.
    ///
    /// Senders that set the bit in mid-frame are found out and then not listened to.
    pub fn end_of_frame(&mut self) {
        if self.is_between() {
            self.frames.marker(&mut self.out);
        }
    }

    /// The sender sets no markers and has been silent for longer than within a frame: the same, once frames have been seen
    /// to end where PES do. Those of FFmpeg's muxer do not.
    pub fn pause(&mut self) {
        if self.is_between() {
            self.frames.pause(&mut self.out);
        }
    }

    fn is_between(&self) -> bool {
        matches!(self.state, State::Unbounded(_)) || matches!(self.state, State::Start(_)) && self.held == 0
    }

    /// RTP packets are missing before what is pushed next: drops the frame at hand and looks for the next header.
    pub fn discontinuity(&mut self) {
        self.lose();
    }

    /// The stream has ended: gives out the last frame.
    pub fn finish(&mut self) {
        match self.state {
            State::Start(_) | State::Unbounded(_) => self.frames.finish(&mut self.out),
            _ => self.lose(),
        }
    }

    fn lose(&mut self) {
        self.frames.lose(&mut self.out);
        self.audio.clear();
        self.out.gap();
        self.held = 0;
        self.state = State::Sync(0);
    }

    fn consume(&mut self, mut input: &[u8]) {
        while !input.is_empty() {
            match self.state {
                State::Sync(matched) => self.sync(matched, &mut input),
                State::Start(stuffing) => self.start(stuffing, &mut input),
                State::Head { tentative } => self.gather(tentative, &mut input),
                State::Body(sink, left) => {
                    let (now, rest) = input.split_at(input.len().min(left));
                    input = rest;
                    self.state = State::Body(sink, left - now.len());
                    self.payload(sink, now);
                    if self.state == State::Body(sink, 0) {
                        self.end_body();
                    }
                }
                State::Unbounded(matched) => self.unbounded(matched, &mut input),
            }
        }
    }

    fn take<'a>(input: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (now, rest) = input.split_at(count.min(input.len()));
        *input = rest;
        now
    }

    /// Looks for a start code a stream may be entered at.
    fn sync(&mut self, mut matched: usize, input: &mut &[u8]) {
        while let Some(&byte) = input.first() {
            if matched == 0 {
                let zero = memchr(0, input);
                let passed = Self::take(input, zero.unwrap_or(input.len())).len();
                self.out.counters.skipped_bytes += passed as u64;
                if zero.is_some() {
                    Self::take(input, 1);
                    matched = 1;
                }
                continue;
            }
            Self::take(input, 1);
            let before = matched;
            matched = match (matched, byte) {
                (1, 0) => 2,
                (2, 1) => 3,
                (2, 0) => 2,
                (3, PACK | AUDIO..=0xEF) => {
                    self.enter_head(byte, true);
                    return;
                }
                (_, 0) => 1,
                _ => 0,
            };
            self.out.counters.skipped_bytes += (before + 1 - matched) as u64;
        }
        self.state = State::Sync(matched);
    }

    fn enter_head(&mut self, id: u8, tentative: bool) {
        if id == END {
            // no header: nothing more need come
            self.held = 0;
            self.state = State::Start(0);
            self.frames.finish(&mut self.out);
            return;
        }
        self.head[..4].copy_from_slice(&[0, 0, 1, id]);
        self.held = 4;
        self.state = State::Head { tentative };
    }

    /// Expects a start code; a little stuffing before it is forgiven.
    fn start(&mut self, mut stuffing: u32, input: &mut &[u8]) {
        while let Some(&byte) = Self::take(input, 1).first() {
            let fits = match self.held {
                0 | 1 => byte == 0,
                2 => byte == 1,
                _ => byte >= END,
            };
            if fits && self.held == 3 {
                self.enter_head(byte, false);
                return;
            }
            if fits {
                self.head[self.held] = byte;
                self.held += 1;
                continue;
            }
            let surplus = self.held == 2 && byte == 0 || self.held == 0 && byte == 0xFF;
            stuffing += 1;
            if !surplus || stuffing > MAX_STUFFING {
                self.head[self.held] = byte;
                self.held += 1;
                self.misaligned();
                return;
            }
        }
        self.state = State::Start(stuffing);
    }

    /// The structure is not what it should be: what was gathered is looked through again.
    fn misaligned(&mut self) {
        let mut again = [0; PES_PROOF];
        let count = self.held.min(PES_PROOF);
        again[..count].copy_from_slice(&self.head[..count]);
        if self.state == (State::Head { tentative: true }) {
            self.held = 0;
            self.state = State::Sync(0);
        } else {
            self.out.counters.resyncs += 1;
            self.lose();
        }
        // one byte fewer each time, so this ends
        self.out.counters.skipped_bytes += 1;
        self.consume(&again[1.min(count)..count]);
    }

    fn gather(&mut self, tentative: bool, input: &mut &[u8]) {
        loop {
            match self.parse_head(tentative) {
                Head::More(needed) => {
                    let needed = needed.min(HEAD);
                    let now = Self::take(input, needed.saturating_sub(self.held));
                    if now.is_empty() {
                        return;
                    }
                    self.head[self.held..self.held + now.len()].copy_from_slice(now);
                    self.held += now.len();
                }
                Head::Bad => return self.misaligned(),
                head => return self.enter(head),
            }
        }
    }

    fn parse_head(&mut self, tentative: bool) -> Head {
        let head = &self.head[..self.held];
        let id = head[3];
        if id == PACK {
            let Some(&first) = head.get(4) else {
                return Head::More(5);
            };
            let mpeg1 = first >> 4 == 2;
            let needed = if mpeg1 { 12 } else { 14 };
            if !mpeg1 && first >> 6 != 1 {
                return Head::Bad;
            }
            if head.len() < needed {
                return Head::More(needed);
            }
            if tentative && !is_pack_header(head) {
                return Head::Bad;
            }
            return Head::Pack { stuffing: if mpeg1 { 0 } else { usize::from(head[13] & 7) }, mpeg1 };
        }
        let &[_, _, _, _, high, low, ..] = head else {
            return Head::More(6);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        match id {
            PSM if 6 + length > MAX_PSM => {
                self.out.counters.psm_malformed += 1;
                Head::Skip(length)
            }
            PSM if head.len() < 6 + length => Head::More(6 + length),
            PSM => Head::Map,
            AUDIO..=0xEF => self.parse_pes(id, length, tentative),
            PRIVATE_1 => {
                self.out.counters.private_pes += 1;
                Head::Skip(length)
            }
            _ => Head::Skip(length),
        }
    }

    fn parse_pes(&mut self, id: u8, length: usize, tentative: bool) -> Head {
        let head = &self.head[..self.held];
        let bounded = length > 0;
        if tentative && length > 0 && length < PES_PROOF - 6 || !bounded && id < VIDEO {
            return Head::Bad;
        }
        if bounded && length < 3 {
            self.out.counters.bad_pes += 1;
            return Head::Skip(length);
        }
        let needed = if tentative { PES_PROOF } else { 9 };
        if head.len() < needed {
            return Head::More(needed);
        }
        if head[6] >> 6 != 2 {
            return if tentative || !bounded { Head::Bad } else { self.parse_mpeg1_pes(length) };
        }
        let header = 9 + usize::from(head[8]);
        let has_pts = head[7] & 0x80 != 0;
        if tentative && !(has_pts && head[8] >= 5 && head[9] >> 5 == 1 && head[9] & head[11] & head[13] & 1 == 1) {
            return Head::Bad;
        }
        if bounded && header > 6 + length {
            self.out.counters.bad_pes += 1;
            return Head::Skip((6 + length).saturating_sub(head.len()));
        }
        if head.len() < header {
            return Head::More(header);
        }
        let has_dts = head[7] & 0xC0 == 0xC0;
        Head::Pes(Pes {
            header,
            payload: bounded.then(|| 6 + length - header),
            pts: head[9..header].first_chunk().filter(|_| has_pts).map(timestamp),
            dts: head.get(14..header).and_then(|dts| dts.first_chunk()).filter(|_| has_dts).map(timestamp),
            aligned: head[6] & 4 != 0,
        })
    }

    /// The PES header of MPEG-1 [ISO11172-1 2.4.3.3]. What is gathered beyond it is payload.
    fn parse_mpeg1_pes(&mut self, length: usize) -> Head {
        let needed = 6 + length.min(MPEG1_PES);
        let head = &self.head[..self.held];
        if head.len() < needed {
            return Head::More(needed);
        }
        let mut at = 6 + head[6..].iter().take(16).take_while(|&&b| b == 0xFF).count();
        if head.get(at).is_some_and(|b| b >> 6 == 1) {
            at += 2;
        }
        let stamp = |at: usize| head.get(at..).and_then(|stamp| stamp.first_chunk()).map(timestamp);
        let (pts, dts, size) = match head.get(at).map(|b| b >> 4) {
            Some(2) => (stamp(at), None, 5),
            Some(3) => (stamp(at), stamp(at + 5), 10),
            _ => (None, None, 1),
        };
        let header = at + size;
        if header > 6 + length || head.len() < header {
            self.out.counters.bad_pes += 1;
            return Head::Skip((6 + length).saturating_sub(head.len()));
        }
        Head::Pes(Pes { header, payload: Some(6 + length - header), pts, dts, aligned: false })
    }

    fn enter(&mut self, head: Head) {
        let id = self.head[3];
        let held = std::mem::take(&mut self.held);
        self.state = State::Start(0);
        self.out.synced = true;
        match head {
            Head::More(_) | Head::Bad => {}
            Head::Pack { stuffing, mpeg1 } => {
                self.out.counters.packs += 1;
                self.out.counters.mpeg1_packs += u64::from(mpeg1);
                self.frames.pack();
                self.skip(stuffing);
            }
            Head::Skip(count) => self.skip(count),
            Head::Map => self.map(held),
            Head::Pes(pes) => self.begin_pes(id, held, pes),
        }
    }

    fn skip(&mut self, count: usize) {
        if count > 0 {
            self.state = State::Body(Sink::Skip, count);
        }
    }

    fn begin_pes(&mut self, id: u8, held: usize, pes: Pes) {
        let pts = pes.pts.map(|pts| self.unwrap(pts));
        let sink = if id >= VIDEO {
            if self.video_id.is_none() || !self.video_seen {
                self.video_id = Some(id);
            }
            if self.video_id == Some(id) { Sink::Video } else { Sink::Skip }
        } else {
            self.audio_id.get_or_insert(id);
            if self.audio_id == Some(id) { Sink::Audio } else { Sink::Skip }
        };
        match sink {
            Sink::Video => {
                self.video_seen = true;
                let times = pts.map(|pts| {
                    let dts = pes.dts.map_or(pts, |dts| nearest(pts, dts));
                    Times { pts, dts: if dts.abs_diff(pts) <= MAX_REORDER { dts } else { pts } }
                });
                self.frames.begin(times, pes.aligned, &mut self.out);
            }
            Sink::Audio => {
                self.audio.clear();
                let continued = self.audio_pts.map(|last| last.saturating_add(self.audio_step));
                self.audio_pts = pts.or(continued);
            }
            Sink::Skip => self.out.counters.other_streams += 1,
        }
        match pes.payload {
            Some(count) => {
                self.state = State::Body(sink, count);
                // an MPEG-1 header is gathered with payload behind it
                let surplus = held - pes.header;
                if surplus > 0 || count == 0 {
                    let mut copy = [0; MPEG1_PES];
                    let surplus = surplus.min(count).min(MPEG1_PES);
                    copy[..surplus].copy_from_slice(&self.head[pes.header..pes.header + surplus]);
                    self.state = State::Body(sink, count - surplus);
                    self.payload(sink, &copy[..surplus]);
                    if self.state == State::Body(sink, 0) {
                        self.end_body();
                    }
                }
            }
            None => {
                self.out.counters.unbounded_pes += 1;
                self.state = State::Unbounded(0);
            }
        }
    }

    /// Hands payload on; a frame that grows too long ends in looking for the next pack.
    fn payload(&mut self, sink: Sink, bytes: &[u8]) {
        match sink {
            Sink::Video => {
                if let Err(Oversize) = self.frames.append(bytes, &mut self.out) {
                    self.lose();
                }
            }
            Sink::Audio => {
                if self.audio.capacity() - self.audio.len() < bytes.len() {
                    self.audio.reserve(bytes.len().max(AUDIO_SLAB));
                }
                self.audio.extend_from_slice(bytes);
            }
            Sink::Skip => {}
        }
    }

    fn end_body(&mut self) {
        if matches!(self.state, State::Body(Sink::Audio, _)) {
            self.end_audio();
        }
        self.held = 0;
        self.state = State::Start(0);
    }

    fn end_audio(&mut self) {
        let payload = self.audio.split();
        if payload.is_empty() {
            return;
        }
        let adts = AdtsHeader::parse(&payload).ok().filter(|adts| adts.frame_length <= payload.len());
        let codec = match (self.audio_codec, adts) {
            (Some(AudioCodec::Aac), Some(_)) => Some(AudioCodec::Aac),
            // a single sync word may stand in G.711 by chance; a frame of exactly this length does not
            (Some(_), Some(adts)) if adts.frame_length == payload.len() => {
                self.out.counters.codec_lies += 1;
                Some(AudioCodec::Aac)
            }
            (None, Some(_)) if !self.mapped => Some(AudioCodec::Aac),
            (Some(AudioCodec::Aac), None) => None,
            (stated, _) => stated,
        };
        let (Some(codec), Some(pts)) = (codec, self.audio_pts) else {
            self.out.counters.undecided_audio += 1;
            return;
        };
        self.audio_step = match codec {
            AudioCodec::G711A | AudioCodec::G711U => payload.len() as u64 * 90 / 8,
            AudioCodec::Aac => adts.map_or(0, |adts| 1024 * 90_000 / u64::from(adts.params.sample_rate())),
        };
        self.out.counters.audio += 1;
        self.out.push(Unit::Audio { codec, pts, payload: payload.freeze() });
    }

    /// A PES without length lasts until a start code of the system layer, none of which can begin a NAL unit.
    fn unbounded(&mut self, mut matched: usize, input: &mut &[u8]) {
        const CODE: [u8; 3] = [0, 0, 1];
        while matched > 0 {
            let Some(&byte) = input.first() else { break };
            match (matched, byte) {
                (1, 0) | (2, 1) => matched += 1,
                (2, 0) => self.payload(Sink::Video, &[0]),
                (3, END..) => {
                    Self::take(input, 1);
                    self.enter_head(byte, false);
                    return;
                }
                _ => {
                    self.payload(Sink::Video, &CODE[..matched]);
                    matched = 0;
                    break;
                }
            }
            Self::take(input, 1);
        }
        if !matches!(self.state, State::Unbounded(_)) {
            return;
        }
        self.state = State::Unbounded(matched);
        if input.is_empty() || matched > 0 {
            return;
        }
        let mut from = 0;
        let (end, next) = loop {
            match find_start_code(input, from) {
                Some(code) => match input.get(code + 3) {
                    Some(&id) if id >= END => break (code, Some(id)),
                    Some(_) => from = code + 3,
                    None => break (code, None),
                },
                None => {
                    let zeros = input.iter().rev().take(2).take_while(|&&b| b == 0).count();
                    break (input.len() - zeros, None);
                }
            }
        };
        let now = Self::take(input, end);
        let held_back = if next.is_some() { 4 } else { input.len() };
        Self::take(input, held_back);
        self.state = State::Unbounded(if next.is_some() { 0 } else { held_back });
        self.payload(Sink::Video, now);
        if let (Some(id), State::Unbounded(_)) = (next, self.state) {
            self.enter_head(id, false);
        } else if let Some(id) = next {
            // the frame was too long and looking has begun: this is a place to end it
            self.enter_head(id, true);
        }
    }

    /// Reads the stream map gathered in `head`.
    fn map(&mut self, held: usize) {
        let map = &self.head[..held];
        let Some(Map { video, audio }) = parse_map(map) else {
            self.out.counters.psm_malformed += 1;
            return;
        };
        let sound = crc32(map) == 0;
        if !sound {
            self.out.counters.psm_bad_crc += 1;
            if self.config.bad_psm_crc == BadPsmCrc::Ignore {
                return;
            }
        }
        self.out.counters.psm += 1;
        self.mapped = true;
        if let Some((stream_type, id)) = video.filter(|_| sound || self.frames.codec().is_none()) {
            let codec = match stream_type {
                0x1B => Some(VideoCodec::H264),
                0x24 => Some(VideoCodec::H265),
                _ => None,
            };
            if self.video_id != Some(id) {
                (self.video_id, self.video_seen) = (Some(id), false);
            }
            self.frames.map(codec, &mut self.out);
        }
        if let Some((stream_type, id)) = audio.filter(|_| sound || self.audio_codec.is_none()) {
            self.audio_id = Some(id);
            self.audio_codec = match stream_type {
                0x90 => Some(AudioCodec::G711A),
                0x91 => Some(AudioCodec::G711U),
                0x0F => Some(AudioCodec::Aac),
                _ => None,
            };
        }
    }

    /// Continues a 33-bit time stamp on the last one, forward or back by less than half its range.
    ///
    /// A jump moves the clock only when the next stamp confirms it: one damaged stamp must not turn 33 bits over.
    fn unwrap(&mut self, stamp: u64) -> u64 {
        let Some(last) = self.clock else {
            return *self.clock.insert(stamp);
        };
        let ticks = nearest(last, stamp);
        if ticks.abs_diff(last) <= MAX_JUMP {
            (self.clock, self.jump) = (Some(ticks), None);
            return ticks;
        }
        if let Some(jump) = self.jump {
            let ticks = nearest(jump, stamp);
            if ticks.abs_diff(jump) <= MAX_JUMP {
                (self.clock, self.jump) = (Some(ticks), None);
                return ticks;
            }
        }
        *self.jump.insert(ticks)
    }
}

/// The count of ticks closest to `last` whose low 33 bits are `stamp`; never below 0.
fn nearest(last: u64, stamp: u64) -> u64 {
    let ahead = stamp.wrapping_sub(last) & CLOCK_MASK;
    let back = CLOCK_MASK + 1 - ahead;
    if back < ahead && back <= last { last - back } else { last.saturating_add(ahead) }
}

/// The first video and the first audio stream of a map: stream type and id.
pub(super) struct Map {
    pub(super) video: Option<(u8, u8)>,
    pub(super) audio: Option<(u8, u8)>,
}

/// Reads a stream map with its start code [ISO13818-1 2.5.4]; lengths that overshoot are cut to what is there, which
/// also takes a map whose CRC was left out.
pub(super) fn parse_map(map: &[u8]) -> Option<Map> {
    let body = map.get(6..)?;
    let length = |at: usize| Some(usize::from(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?])));
    let entries_at = 4 + length(2)? + 2;
    let entries = body.get(entries_at..)?;
    let mut entries = &entries[..entries.len().min(length(entries_at - 2)?)];
    let mut found = Map { video: None, audio: None };
    while let &[stream_type, id, high, low, ref rest @ ..] = entries {
        match id {
            VIDEO..=0xEF => _ = found.video.get_or_insert((stream_type, id)),
            AUDIO..VIDEO => _ = found.audio.get_or_insert((stream_type, id)),
            _ => {}
        }
        entries = rest.get(usize::from(u16::from_be_bytes([high, low]))..).unwrap_or(&[]);
    }
    Some(found)
}

/// PTS or DTS without regard to its marker bits.
fn timestamp(bytes: &[u8; 5]) -> u64 {
    let [a, b, c, d, e] = bytes.map(u64::from);
    (a >> 1 & 7) << 30 | b << 22 | (c >> 1) << 15 | d << 7 | e >> 1
}

/// Whether bytes are a pack header by their fixed bits: 14 of MPEG-2, or 12 of MPEG-1.
fn is_pack_header(head: &[u8]) -> bool {
    match *head {
        [0, 0, 1, PACK, first, _, third, _, fifth, sixth, _, _, ninth, ..] if first >> 6 == 1 => {
            first & third & fifth & 4 != 0 && sixth & 1 == 1 && ninth & 3 == 3
        }
        [0, 0, 1, PACK, first, _, third, _, fifth, sixth, _, last, ..] if first >> 4 == 2 => {
            first & third & fifth & 1 == 1 && sixth & 0x80 != 0 && last & 1 == 1
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ps::round_trip::{annexb, by_kind, pull_all};
    use crate::proto::ps::{MuxConfig, Muxer, VideoUnit};
    use proptest::prelude::*;

    const KEY: bool = true;

    fn run(bytes: &[u8]) -> (Vec<Unit>, DemuxCounters) {
        let mut demuxer = Demuxer::default();
        let mut units = Vec::new();
        for chunk in bytes.chunks(1400) {
            demuxer.push(chunk);
            units.extend(pull_all(&mut demuxer));
        }
        demuxer.finish();
        units.extend(pull_all(&mut demuxer));
        (units, demuxer.counters())
    }

    fn h264(key: bool, body: &[u8]) -> Vec<u8> {
        annexb(VideoCodec::H264, key, body)
    }

    fn pack() -> Vec<u8> {
        vec![0, 0, 1, PACK, 0x44, 0, 4, 0, 4, 1, 0, 0x5F, 0x6B, 0xF8]
    }

    /// A PES of MPEG-2 form; `length` None: the true one.
    fn pes(id: u8, flags: u8, pts: Option<u64>, length: Option<u16>, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0x80 | flags, 0, 0];
        if let Some(pts) = pts {
            header[1..].copy_from_slice(&[0x80, 5]);
            let b = |shift: u32| (pts >> shift) as u8;
            header.extend([0x21 | b(29) & 0xE, b(22), b(14) | 1, b(7), b(0) << 1 | 1]);
        }
        let true_length = (header.len() + payload.len()) as u16;
        let [high, low] = length.unwrap_or(true_length).to_be_bytes();
        [&[0, 0, 1, id, high, low][..], &header, payload].concat()
    }

    fn aligned(pts: u64, payload: &[u8]) -> Vec<u8> {
        pes(0xE0, 4, Some(pts), None, payload)
    }

    fn psm(entries: &[(u8, u8)]) -> Vec<u8> {
        let map = entries.len() as u8 * 4;
        let mut psm = vec![0, 0, 1, PSM, 0, 10 + map, 0xE1, 0xFF, 0, 0, 0, map];
        entries.iter().for_each(|(stream_type, id)| psm.extend([*stream_type, *id, 0, 0]));
        let crc = crc32(&psm);
        psm.extend(crc.to_be_bytes());
        psm
    }

    /// Three frames of 3600 ticks each by `wrap(pts, annexb)`, each in its pack.
    fn three(wrap: impl Fn(u64, &[u8]) -> Vec<u8>) -> Vec<u8> {
        let frames = [h264(KEY, &[5; 90]), h264(false, &[6; 50]), h264(false, &[7; 70])];
        frames.iter().enumerate().flat_map(|(i, au)| [pack(), wrap(3600 * (i as u64 + 1), au)].concat()).collect()
    }

    /// What `three` must give.
    fn assert_three(units: &[Unit]) {
        let frames = [h264(KEY, &[5; 90]), h264(false, &[6; 50]), h264(false, &[7; 70])];
        let expected: Vec<_> = frames
            .into_iter()
            .enumerate()
            .map(|(i, au)| {
                let pts = 3600 * (i as u64 + 1);
                Unit::Video { codec: VideoCodec::H264, pts, dts: pts, key: i == 0, annexb: au.into() }
            })
            .collect();
        assert_eq!(units, expected);
    }

    #[test]
    fn without_a_map_the_codec_is_told_by_nal_units() {
        let (units, counters) = run(&three(aligned));
        assert_three(&units);
        assert_eq!((counters.psm, counters.packs, counters.frames), (0, 3, 3));
        let (units, _) = run(&three(|pts, au| pes(0xE2, 0, Some(pts), None, au)));
        assert_three(&units);
    }

    #[test]
    fn without_a_key_frame_the_codec_stays_open() {
        let delta = [pack(), aligned(0, &h264(false, &[6; 50]))].concat();
        let (units, counters) = run(&[delta, three(aligned)].concat());
        assert_three(&units);
        assert_eq!(counters.undecided_frames, 1);
    }

    #[test]
    fn a_map_that_lies_about_the_codec_is_overruled() {
        let (units, counters) = run(&[pack(), psm(&[(0x24, 0xE0)]), three(aligned)].concat());
        assert_three(&units);
        assert_eq!(counters.codec_lies, 1);
        let (units, _) = run(&[pack(), psm(&[(0x10, 0xE0)]), three(aligned)].concat());
        assert_three(&units);
        let (units, _) = run(&[pack(), psm(&[(0x1B, 0xE5)]), three(aligned)].concat());
        assert_three(&units);
    }

    #[test]
    fn a_wrong_crc_is_a_policy() {
        let mut map = psm(&[(0x1B, 0xE0)]);
        *map.last_mut().unwrap() ^= 1;
        let stream = [pack(), map, aligned(0, &h264(false, &[6; 9]))].concat();
        let (units, counters) = run(&stream);
        assert_eq!((units.len(), counters.psm_bad_crc, counters.psm), (1, 1, 1));
        let mut strict = Demuxer::new(DemuxConfig { bad_psm_crc: BadPsmCrc::Ignore });
        strict.push(&stream);
        strict.finish();
        assert_eq!((strict.pull(), strict.counters().psm, strict.counters().undecided_frames), (None, 0, 1));
    }

    #[test]
    fn broken_maps_cost_nothing_but_themselves() {
        let overlong_entry = [&psm(&[(0x1B, 0xE0)])[..14], &[0xFF, 0xFF, 1, 2, 3, 4]].concat();
        let long = [&[0, 0, 1, PSM, 0x03, 0xFF][..], &[0; 1023]].concat();
        let past_end = {
            let mut map = psm(&[(0x1B, 0xE0)]);
            map[11] = 200;
            map
        };
        for map in [vec![0, 0, 1, PSM, 0, 0], vec![0, 0, 1, PSM, 0, 3, 9, 9, 9], overlong_entry, long, past_end] {
            let (units, counters) = run(&[pack(), map, three(aligned)].concat());
            assert_three(&units);
            assert_eq!(counters.psm_malformed + counters.psm_bad_crc, 1);
            assert_eq!(counters.resyncs, 0);
        }
    }

    #[test]
    fn parts_of_no_interest_are_skipped() {
        let extras = |pts: u64, au: &[u8]| {
            [
                pes(PRIVATE_1, 0, None, None, &[0, 0, 1, 0xE0, 0, 0]),
                aligned(pts, au),
                vec![0, 0, 1, 0xBE, 0, 3, 255, 255, 255],
                vec![0, 0, 1, 0xBF, 0, 2, 1, 1],
                vec![0, 0, 1, 0xF2, 0, 0],
                pes(0xE1, 4, Some(pts), None, au),
                vec![0xFF; 5],
            ]
            .concat()
        };
        let (units, counters) = run(&three(extras));
        assert_three(&units);
        assert_eq!((counters.private_pes, counters.other_streams, counters.resyncs), (3, 3, 0));
    }

    #[test]
    fn pack_stuffing_and_mpeg1_packs() {
        let frames = three(aligned);
        let mut stuffed = frames.clone();
        stuffed[13] = 0xFF;
        stuffed.splice(14..14, [0xFF; 7]);
        assert_three(&run(&stuffed).0);

        let mpeg1 = |pts: u64, au: &[u8]| {
            let b = |shift: u32| (pts >> shift) as u8;
            let times = [0xFF, 0xFF, 0x60, 0x20, 0x21 | b(29) & 0xE, b(22), b(14) | 1, b(7), b(0) << 1 | 1];
            let [high, low] = ((times.len() + au.len()) as u16).to_be_bytes();
            [&[0, 0, 1, PACK, 0x21, 0, 1, 0, 1, 0x80, 1, 1, 0, 0, 1, 0xE0, high, low][..], &times, au].concat()
        };
        let stream = three(mpeg1);
        let pack_length = pack().len();
        let mut stream = stream[pack_length..].to_vec();
        while let Some(at) = stream.windows(pack_length).position(|w| w == pack()) {
            stream.drain(at..at + pack_length);
        }
        let (units, counters) = run(&stream);
        assert_three(&units);
        assert_eq!((counters.mpeg1_packs, counters.resyncs), (3, 0));
    }

    #[test]
    fn pes_of_length_zero() {
        for flags in [0, 4] {
            let stream = three(|pts, au| pes(0xE0, flags, Some(pts), Some(0), au));
            let (units, counters) = run(&stream);
            assert_three(&units);
            assert_eq!((counters.unbounded_pes, counters.resyncs), (3, 0));
            for cut in 0..stream.len() {
                let mut demuxer = Demuxer::default();
                demuxer.push(&stream[..cut]);
                demuxer.push(&stream[cut..]);
                demuxer.finish();
                assert_three(&pull_all(&mut demuxer));
            }
        }
    }

    #[test]
    fn lengths_that_lie() {
        // past the next pack: believed is the pack at the start of the next packet
        let frames = [h264(KEY, &[5; 90]), h264(false, &[6; 50]), h264(false, &[7; 70])];
        let mut demuxer = Demuxer::default();
        for (i, au) in frames.iter().enumerate() {
            let length = if i == 0 { Some(9000) } else { None };
            demuxer.push(&[pack(), pes(0xE0, 4, Some(3600 * (i as u64 + 1)), length, au)].concat());
        }
        demuxer.finish();
        assert_eq!(demuxer.counters().length_lies, 1);
        assert_three(&pull_all(&mut demuxer));

        // too short: what is left over is garbage up to the next pack
        let short = three(|pts, au| pes(0xE0, 4, Some(pts), if pts == 3600 { Some(40) } else { None }, au));
        let (units, counters) = run(&[&three(aligned)[..], &short].concat());
        assert_three(&units[..3]);
        assert_eq!((counters.resyncs, counters.frames_dropped), (1, 1));
        assert_eq!(units[3], Unit::Gap);
        assert_eq!(units.len(), 6);

        // of 1 and 2, and header longer than packet
        for pes in
            [vec![0, 0, 1, 0xE0, 0, 1, 9], vec![0, 0, 1, 0xE0, 0, 2, 9, 9], vec![0, 0, 1, 0xE0, 0, 3, 0x80, 0x80, 9]]
        {
            let (units, counters) = run(&[pack(), pes, three(aligned)].concat());
            assert_three(&units);
            assert_eq!((counters.bad_pes, counters.resyncs), (1, 0));
        }
    }

    #[test]
    fn odd_pes_headers() {
        // header stuffing, and PTS_DTS_flags 01
        let stuffed = |pts: u64, au: &[u8]| {
            let mut bytes = aligned(pts, au);
            bytes[8] += 3;
            let [high, low] = (u16::from_be_bytes([bytes[4], bytes[5]]) + 3).to_be_bytes();
            bytes[4..6].copy_from_slice(&[high, low]);
            bytes.splice(14..14, [0xFF; 3]);
            bytes
        };
        assert_three(&run(&three(stuffed)).0);
        let forbidden = |pts: u64, au: &[u8]| {
            let mut bytes = aligned(pts, au);
            bytes[7] = if pts == 7200 { 0x40 } else { 0x80 };
            bytes
        };
        let (units, counters) = run(&three(forbidden));
        assert_three(&units);
        assert_eq!(counters.times_missing, 1, "continued from the frame before");
    }

    #[test]
    fn no_pack_headers_and_prefixes() {
        let frames = three(aligned);
        let bare: Vec<u8> = {
            let mut stream = frames.clone();
            while let Some(at) = stream.windows(14).position(|w| w == pack()) {
                stream.drain(at..at + 14);
            }
            stream
        };
        assert_three(&run(&bare).0);
        let prefix = [&b"IMKH"[..], &[0; 36]].concat();
        let (units, counters) = run(&[prefix, frames.clone()].concat());
        assert_three(&units);
        assert_eq!((counters.skipped_bytes, counters.resyncs), (40, 0));
        let teasers = [&[0, 0, 1, PACK, 0, 0, 1, PACK, 0x44, 0, 0, 1, 0xE0, 0, 0][..], &[0, 0], &frames].concat();
        assert_three(&run(&teasers).0);
    }

    /// What FFmpeg's muxer makes: a pack ends in mid-frame, and the one with the next time stamp begins with the rest. A
    /// marker before a new time stamp is then wrong, for every frame.
    #[test]
    fn markers_in_mid_frame_of_unaligned_pes_are_found_out() {
        let frames: Vec<_> = (0..8u8).map(|i| h264(i % 4 == 0, &[i + 5; 60])).collect();
        let mut demuxer = Demuxer::default();
        let (mut rest, mut units) = (Vec::new(), Vec::new());
        for (i, frame) in frames.iter().enumerate() {
            let (now, later) = frame.split_at(frame.len() - 20);
            let payload = [&rest[..], now].concat();
            demuxer.push(&[pack(), pes(0xE0, 0, Some(3600 * (i as u64 + 1)), None, &payload)].concat());
            demuxer.end_of_frame();
            units.extend(pull_all(&mut demuxer));
            rest = later.to_vec();
        }
        let Unit::Video { annexb, .. } = &units[0] else { panic!() };
        assert_eq!(annexb, &frames[0][..frames[0].len() - 20], "nobody could know");
        assert_eq!(units[1], Unit::Gap, "what refers to it is of no use");
        let whole: Vec<_> = units[2..]
            .iter()
            .map(|unit| match unit {
                Unit::Video { annexb, pts, .. } => (*pts, annexb.to_vec()),
                other => panic!("{other:?}"),
            })
            .collect();
        let expected: Vec<_> = (1..7).map(|i| (3600 * (i as u64 + 1), frames[i].clone())).collect();
        assert_eq!((whole, demuxer.counters().marker_lies), (expected, 1));

        // Without markers a pause is not taken for one.
        let (mut demuxer, mut rest, mut units) = (Demuxer::default(), Vec::new(), Vec::new());
        for (i, frame) in frames.iter().enumerate() {
            let (now, later) = frame.split_at(frame.len() - 20);
            let payload = [&rest[..], now].concat();
            demuxer.push(&[pack(), pes(0xE0, 0, Some(3600 * (i as u64 + 1)), None, &payload)].concat());
            demuxer.pause();
            units.extend(pull_all(&mut demuxer));
            rest = later.to_vec();
        }
        assert_eq!((units.len(), demuxer.counters().marker_lies), (7, 0));
        assert!(units.iter().zip(&frames).all(|(u, f)| matches!(u, Unit::Video { annexb, .. } if annexb == f)));
    }

    #[test]
    fn parameter_sets_in_pes_of_their_own_are_merged() {
        let key = h264(KEY, &[5; 90]);
        let (sps, pps, idr) = (&key[..8], &key[8..15], &key[15..]);
        for flags in [0, 4] {
            let apart = |pts: u64, au: &[u8]| {
                if au == key {
                    [sps, pps, idr].map(|nal| pes(0xE0, flags, Some(pts), None, nal)).concat()
                } else {
                    pes(0xE0, flags, Some(pts), None, au)
                }
            };
            assert_three(&run(&three(apart)).0);
        }
    }

    #[test]
    fn a_clock_that_stands_still_does_not_join_frames() {
        for flags in [0, 4] {
            let (units, _) = run(&three(|_, au| pes(0xE0, flags, Some(3600), None, au)));
            assert_eq!(units.len(), 3);
        }
        let (units, counters) = run(&three(|_, au| pes(0xE0, 4, None, None, au)));
        assert_eq!((units.len(), counters.times_missing), (3, 3));
        let Unit::Video { pts, .. } = units[2] else { panic!() };
        assert_eq!(pts, 7200, "25 frames a second are assumed");
    }

    #[test]
    fn alignment_that_lies_is_found_out() {
        // everything cut into PES of 60 bytes regardless of frames, each claiming alignment, times on those a frame begins in
        let frames: Vec<_> = (0..8).map(|i| h264(i % 4 == 0, &[5 + i; 100])).collect();
        let (mut stream, all) = (Vec::new(), frames.concat());
        let begins: Vec<usize> = frames.iter().scan(0, |at, f| Some(std::mem::replace(at, *at + f.len()))).collect();
        for (i, piece) in all.chunks(60).enumerate() {
            let begun = begins.iter().position(|b| (i * 60..i * 60 + 60).contains(b));
            stream.extend([pack(), pes(0xE0, 4, begun.map(|b| 3600 * b as u64), None, piece)].concat());
        }
        let (units, counters) = run(&stream);
        assert_eq!(counters.alignment_lies, 1);
        let (video, _) = by_kind(units);
        let whole =
            video.iter().filter(|u| matches!(u, Unit::Video { annexb, .. } if frames.iter().any(|f| f == annexb)));
        assert!(whole.count() >= 5, "{video:#?}");
    }

    #[test]
    fn two_changes_of_codec_at_once() {
        let h265 = annexb(VideoCodec::H265, KEY, &[9; 40]);
        let stream = [
            [pack(), psm(&[(0x1B, 0xE0)]), aligned(0, &h264(KEY, &[5; 90]))].concat(),
            [pack(), psm(&[(0x24, 0xE0)]), aligned(3600, &h265)].concat(),
            [pack(), psm(&[(0x1B, 0xE0)]), aligned(7200, &h264(KEY, &[5; 90]))].concat(),
        ]
        .concat();
        let (units, counters) = run(&stream);
        let codecs = units.iter().filter_map(|u| if let Unit::Video { codec, .. } = u { Some(*codec) } else { None });
        assert_eq!(codecs.collect::<Vec<_>>(), [VideoCodec::H264, VideoCodec::H265, VideoCodec::H264]);
        assert_eq!((counters.codec_lies, counters.psm), (0, 3));
    }

    #[test]
    fn a_whole_pack_inside_a_payload_is_payload() {
        let nested = [pack(), aligned(9, &[1; 20])].concat();
        let mut stream = [pack(), psm(&[(0x1B, 0xE0), (0x90, 0xC0)])].concat();
        stream.extend(pes(0xC0, 0, Some(3600), None, &nested));
        stream.extend(pes(0xC0, 0, None, None, &[0x55; 80]));
        let (units, _) = run(&stream);
        assert_eq!(
            units,
            [
                Unit::Audio { codec: AudioCodec::G711A, pts: 3600, payload: nested.clone().into() },
                Unit::Audio {
                    codec: AudioCodec::G711A,
                    pts: 3600 + nested.len() as u64 * 90 / 8,
                    payload: vec![0x55; 80].into()
                },
            ]
        );
    }

    #[test]
    fn audio_that_is_not_what_the_map_says() {
        let adts = [&[0xFF, 0xF1, 0x60, 0x40, 0x02, 0x1F, 0xFC][..], &[7; 9]].concat();
        let audio = |stream_type: Option<u8>, payload: &[u8]| {
            let map = stream_type.map_or(vec![], |stream_type| psm(&[(stream_type, 0xC0)]));
            let (units, counters) = run(&[pack(), map, pes(0xC0, 0, Some(0), None, payload)].concat());
            match units[..] {
                [Unit::Audio { codec, .. }] => Ok(codec),
                [] => Err(counters.undecided_audio),
                _ => panic!("{units:?}"),
            }
        };
        assert_eq!(audio(Some(0x0F), &adts), Ok(AudioCodec::Aac));
        assert_eq!(audio(None, &adts), Ok(AudioCodec::Aac));
        assert_eq!(audio(Some(0x90), &adts), Ok(AudioCodec::Aac), "AAC called G.711");
        assert_eq!(audio(Some(0x91), &[0x55; 80]), Ok(AudioCodec::G711U));
        assert_eq!(audio(Some(0x0F), &[0x55; 80]), Err(1), "no AAC");
        assert_eq!(audio(None, &[0x55; 80]), Err(1));
        assert_eq!(audio(Some(0x92), &[0x55; 80]), Err(1), "G.722.1 is not carried");
    }

    #[test]
    fn times_wrap_and_go_back() {
        let near = CLOCK_MASK - 1000;
        let times = [near, (near + 3600) & CLOCK_MASK, 500_000, 3600];
        let stream: Vec<u8> =
            times.iter().flat_map(|pts| [pack(), aligned(*pts, &h264(KEY, &[5; 9]))].concat()).collect();
        let pts: Vec<_> = run(&stream)
            .0
            .iter()
            .filter_map(|u| if let Unit::Video { pts, .. } = u { Some(*pts) } else { None })
            .collect();
        let base = CLOCK_MASK + 1;
        assert_eq!(pts, [near, near + 3600, base + 500_000, base + 3600]);
    }

    #[test]
    fn one_damaged_time_stamp_does_not_move_the_clock() {
        let hour = 3600 * 90_000;
        let times = [0, 3600, 5 << 30, 10_800, 14_400, 20 * hour, 20 * hour + 3600, 30 * hour];
        let stream: Vec<u8> =
            times.iter().flat_map(|pts| [pack(), aligned(pts & CLOCK_MASK, &h264(KEY, &[5; 9]))].concat()).collect();
        let pts: Vec<_> = run(&stream)
            .0
            .iter()
            .filter_map(|u| if let Unit::Video { pts, .. } = u { Some(*pts) } else { None })
            .collect();
        assert_eq!(pts[3..5], [10_800, 14_400]);
        let after = &pts[5..];
        assert_eq!((after[1] - after[0], after[2] - after[0]), (3600, 10 * hour), "a jump that goes on is one");
    }

    #[test]
    fn an_endless_frame_is_dropped() {
        let mut demuxer = Demuxer::default();
        demuxer.push(&[pack(), pes(0xE0, 4, Some(0), Some(0), &h264(KEY, &[5; 9]))].concat());
        for _ in 0..9 << 10 {
            demuxer.push(&[1; 1024]);
        }
        assert_eq!((demuxer.counters().oversize_frames, demuxer.counters().frames_dropped), (1, 1));
        demuxer.push(&three(aligned));
        demuxer.finish();
        let units = pull_all(&mut demuxer);
        assert_eq!(units[0], Unit::Gap);
        assert_three(&units[1..]);
    }

    #[test]
    fn nobody_pulls() {
        let mut demuxer = Demuxer::default();
        for i in 0..2000 {
            demuxer.push(&[pack(), aligned(i * 3600, &h264(KEY, &[5; 9]))].concat());
            demuxer.end_of_frame();
        }
        assert_eq!(demuxer.counters().queue_overflows, 2000 - MAX_QUEUED as u64);
        let units = pull_all(&mut demuxer);
        assert_eq!((units.len(), units.last()), (MAX_QUEUED, Some(&Unit::Gap)));
    }

    #[test]
    fn nothing_before_the_first_header_is_a_gap() {
        let mut demuxer = Demuxer::default();
        demuxer.discontinuity();
        demuxer.push(&[7; 300]);
        demuxer.discontinuity();
        assert_eq!(demuxer.pull(), None);
    }

    struct Made {
        frames: Vec<(u64, bool)>,
        bytes: Vec<u8>,
        audio: usize,
    }

    fn made(stream: &[u8], codec_expected: VideoCodec) -> (Made, DemuxCounters) {
        let (units, counters) = run(stream);
        let mut made = Made { frames: Vec::new(), bytes: Vec::new(), audio: 0 };
        for unit in units {
            match unit {
                Unit::Video { codec, pts, key, annexb, .. } => {
                    assert_eq!(codec, codec_expected);
                    made.frames.push((pts, key));
                    made.bytes.extend_from_slice(&annexb);
                }
                Unit::Audio { codec, payload, .. } => {
                    assert_eq!(codec, AudioCodec::Aac);
                    made.audio += payload.len();
                }
                Unit::Gap => panic!("nothing is missing: {counters:?}"),
            }
        }
        (made, counters)
    }

    fn even(start: u64) -> Vec<(u64, bool)> {
        (0..12).map(|i| (start + i * 3600, i % 6 == 0)).collect()
    }

    #[test]
    fn streams_of_ffmpeg() {
        let h264 = include_bytes!("../../../proto-fixtures/ps/ffmpeg-h264-e2.ps");
        let (made_264, counters) = made(h264, VideoCodec::H264);
        assert_eq!(made_264.frames, even(45_982), "times of frames without are continued");
        assert_eq!((made_264.bytes.len(), crc32(&made_264.bytes)), (17_492, 0x1332_01B3));
        assert_eq!((counters.psm, counters.resyncs, counters.frames_dropped, counters.undecided_audio), (0, 0, 0, 2));
        let h265 = include_bytes!("../../../proto-fixtures/ps/ffmpeg-h265.ps");
        let (made_265, counters) = made(h265, VideoCodec::H265);
        assert_eq!((made_265.frames.len(), made_265.frames[6].1), (12, true));
        assert_eq!((made_265.bytes.len(), crc32(&made_265.bytes)), (13_417, 0x1701_C54F));
        assert_eq!((counters.resyncs, counters.frames_dropped), (0, 0));
    }

    #[test]
    fn a_stream_of_gstreamer() {
        let stream = include_bytes!("../../../proto-fixtures/ps/gst-h264-aac.ps");
        let (made, counters) = made(stream, VideoCodec::H264);
        assert_eq!((made.bytes.len(), crc32(&made.bytes)), (17_532, 0x4DAB_EAFB));
        assert_eq!(made.frames, even(made.frames[0].0));
        assert!(made.audio > 1500);
        assert_eq!((counters.psm, counters.psm_bad_crc, counters.packs), (1, 0, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(prop_oneof![
            4 => any::<u8>().prop_map(|b| vec![b]),
            1 => (0xB9u8..=0xF2).prop_map(|id| vec![0, 0, 1, id]),
            1 => Just(vec![0, 0, 1, PACK, 0x44, 0, 4, 0, 4, 1, 0, 0x5F, 0x6B, 0xF8]),
            1 => Just(vec![0, 0, 1, 0xE0, 0, 0, 0x80, 0x80, 5, 0x21, 0, 1, 0, 1]),
            1 => Just(vec![0, 0, 0, 1, 0x65, 0x88]),
        ], 0..200), chunk in 1usize..40, markers: bool, losses in 0usize..20) {
            let bytes = bytes.concat();
            let mut demuxer = Demuxer::default();
            for (i, piece) in bytes.chunks(chunk).enumerate() {
                demuxer.push(piece);
                if markers {
                    demuxer.end_of_frame();
                }
                if i % 20 == losses {
                    demuxer.discontinuity();
                }
            }
            demuxer.finish();
            let given: usize = pull_all(&mut demuxer).iter().map(|unit| match unit {
                Unit::Video { annexb, .. } => annexb.len(),
                Unit::Audio { payload, .. } => payload.len(),
                Unit::Gap => 0,
            }).sum();
            prop_assert!(given <= bytes.len());
        }

        #[test]
        fn damage_heals(at in 0usize..5000, with in proptest::collection::vec(any::<u8>(), 1..40)) {
            let mut muxer = Muxer::new(MuxConfig { video: Some(VideoCodec::H264), audio: None });
            let (mut stream, mut ends) = (Vec::new(), Vec::new());
            let frames: Vec<_> = (0..40u64).map(|i| (i * 3600, h264(i % 10 == 0, &[9; 300]))).collect();
            for (pts, annexb) in &frames {
                muxer.write_video(&mut stream, &VideoUnit { annexb, pts: *pts, dts: *pts, key: *pts % 36_000 == 0 });
                ends.push(stream.len());
            }
            // not the first frame: without it nothing tells the codec up to the next key frame
            let at = ends[0] + at;
            stream[at..at + with.len()].copy_from_slice(&with);
            let (mut demuxer, mut begin) = (Demuxer::default(), 0);
            for end in ends {
                demuxer.push(&stream[begin..end]);
                begin = end;
            }
            demuxer.finish();
            let whole = pull_all(&mut demuxer).iter().filter(|unit| matches!(unit, Unit::Video { annexb, pts, .. }
                if frames.iter().any(|(at, frame)| at == pts && frame == annexb))).count();
            // 40 bytes touch two frames, and the one before waits for its end
            prop_assert!(whole >= 37, "{whole}");
        }
    }
}
