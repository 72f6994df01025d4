//! Reads one session's RTP packets and compares the pictures in them with the camera's clip. Sans-IO.
//!
//! Standard: [RFC3550 5.1], [GB/T28181-2022 4.3.6] timestamps and marker, [GB/T28181-2022 annex C] PS over RTP.
//! In: packets as they came, with their time. Out: `Verdict`.
//! Invariants: any bytes are survived; what is compared are the demuxed access units, in the order of their numbers.
//! Decision: a packet of another SSRC or payload type is counted and not read, as a strict receiver would.
//! Not here: sockets (`super`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::verdict::{Alteration, Verdict};
use crate::proto::codec::nal_units;
use crate::proto::ps::{DemuxConfig, Demuxer, Unit};
use crate::proto::rtp::{CLOCK_RATE, Packet, Pulled, Reorder, Sequence};
use crate::sim::clip::{Clip, ClipFollower, Seen, VideoCodec};

/// What a program stream's pack begins with [ISO13818-1 2.5.3.3].
const PACK_START: &[u8] = &[0, 0, 1, 0xBA];
/// Parameter sets and delimiters looked through before a picture; a clip's key picture has five NAL units at most.
const MAX_PREFIX: usize = 16;

/// What is to come.
#[derive(Debug, Clone)]
pub struct Expected {
    /// `y=` of the answer; `None` takes the first packet's.
    pub ssrc: Option<u32>,
    /// Payload type of the answer.
    pub payload_type: u8,
    /// What the camera plays; `None` compares nothing.
    pub clip: Option<Arc<Clip>>,
}

#[derive(Debug)]
struct Held {
    payload: Bytes,
    marker: bool,
    timestamp: u32,
}

/// Where in a frame the stream stands.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Nothing is known: the stream begins, or packets are missing.
    Unknown,
    /// A frame of this timestamp has begun and not ended.
    Inside(u32),
    /// A frame of this timestamp has ended with its marker.
    After(u32),
}

/// Reads one session.
#[derive(Debug)]
pub(super) struct Verifier {
    expected: Expected,
    began: Instant,
    sequence: Sequence,
    reorder: Reorder<Held>,
    place: Place,
    demuxer: Demuxer,
    follower: Option<ClipFollower>,
    /// The clip's picture that is due.
    due: Option<usize>,
    last_dts: Option<u64>,
    verdict: Verdict,
    /// Payloads in order, for a file; `None` keeps none.
    dump: Option<BytesMut>,
}

impl Verifier {
    /// `began`: when the INVITE left. `dump`: keep the program stream for [`Self::take_dump`].
    pub fn new(expected: Expected, began: Instant, dump: bool) -> Self {
        Verifier {
            follower: expected.clip.clone().map(ClipFollower::new),
            expected,
            began,
            sequence: Sequence::new(CLOCK_RATE),
            reorder: Reorder::new(),
            place: Place::Unknown,
            demuxer: Demuxer::new(DemuxConfig::default()),
            due: None,
            last_dts: None,
            verdict: Verdict::default(),
            dump: dump.then(BytesMut::new),
        }
    }

    /// One datagram or frame.
    pub fn packet(&mut self, now: Instant, bytes: &[u8]) {
        let Ok(packet) = Packet::parse(bytes) else {
            self.verdict.not_rtp += 1;
            return;
        };
        let want = *self.expected.ssrc.get_or_insert(packet.ssrc);
        if packet.ssrc != want {
            self.verdict.wrong_ssrc += 1;
            self.verdict.ssrc_seen = Some((packet.ssrc, want));
            return;
        }
        if packet.payload_type != self.expected.payload_type {
            self.verdict.wrong_payload_type += 1;
            self.verdict.payload_type_seen = Some(packet.payload_type);
            return;
        }
        self.verdict.first_packet_after.get_or_insert(now.saturating_duration_since(self.began));
        self.verdict.bytes += packet.payload.len() as u64;
        self.sequence.observe(packet.sequence, packet.timestamp, now);
        let held = Held {
            payload: Bytes::copy_from_slice(packet.payload),
            marker: packet.marker,
            timestamp: packet.timestamp,
        };
        self.reorder.push(packet.sequence, now, held);
        self.advance(now);
    }

    /// One RTCP packet.
    pub fn rtcp(&mut self) {
        self.verdict.rtcp += 1;
    }

    /// Something else than RTP and RTCP.
    pub fn foreign(&mut self) {
        self.verdict.not_rtp += 1;
    }

    /// A new connection carries the stream: numbers may begin anew, and a frame may have been cut.
    pub fn reconnected(&mut self) {
        self.verdict.connections += 1;
        if self.verdict.connections > 1 {
            self.reorder = Reorder::new();
            self.demuxer.discontinuity();
            self.place = Place::Unknown;
        }
    }

    /// Gives up waiting for packets that are late. Call when [`Self::next_timeout`] has come.
    pub fn advance(&mut self, now: Instant) {
        while let Some(pulled) = self.reorder.pull(now) {
            self.in_order(now, &pulled);
        }
    }

    /// When to call [`Self::advance`].
    pub fn next_timeout(&self) -> Option<Instant> {
        self.reorder.next_timeout()
    }

    /// The stream has ended: what waits for late packets waits no longer. A frame cut by the end is left out.
    pub fn finish(&mut self, now: Instant) {
        self.advance(now + Duration::from_secs(1));
    }

    /// Counts of the socket's side.
    pub fn verdict_mut(&mut self) -> &mut Verdict {
        &mut self.verdict
    }

    /// The counts so far.
    pub fn verdict(&self) -> Verdict {
        let stats = self.sequence.stats();
        let missing = self.follower.as_ref().map_or(0, |f| f.sum().missing);
        Verdict {
            packets: stats.received,
            lost: stats.lost,
            duplicates: stats.duplicates,
            reordered: stats.disordered,
            restarts: stats.restarts,
            missing,
            ps: self.demuxer.counters(),
            ..self.verdict.clone()
        }
    }

    /// The program stream received since the last call.
    pub fn take_dump(&mut self) -> Option<Bytes> {
        let dump = self.dump.as_mut().filter(|dump| !dump.is_empty())?;
        Some(dump.split().freeze())
    }

    fn in_order(&mut self, now: Instant, pulled: &Pulled<Held>) {
        let packet = &pulled.item;
        if pulled.lost > 0 || pulled.restarted {
            self.demuxer.discontinuity();
            self.place = Place::Unknown;
        }
        self.look_at(packet);
        if let Some(dump) = &mut self.dump {
            dump.extend_from_slice(&packet.payload);
        }
        self.demuxer.push(&packet.payload);
        if packet.marker {
            self.demuxer.end_of_frame();
        }
        while let Some(unit) = self.demuxer.pull() {
            self.unit(now, unit);
        }
    }

    /// Timestamp and marker against those before.
    fn look_at(&mut self, packet: &Held) {
        let verdict = &mut self.verdict;
        let pack = packet.payload.starts_with(PACK_START);
        match self.place {
            Place::Unknown => {}
            Place::Inside(timestamp) if timestamp == packet.timestamp => {}
            Place::Inside(timestamp) => {
                let count = match pack {
                    true => &mut verdict.markers_missing,
                    false => &mut verdict.timestamps_mixed,
                };
                *count += 1;
                verdict.timestamps_back += u64::from(is_before(packet.timestamp, timestamp));
            }
            Place::After(timestamp) if timestamp == packet.timestamp => {
                let count = match pack {
                    true => &mut verdict.timestamps_repeated,
                    false => &mut verdict.markers_early,
                };
                *count += 1;
            }
            Place::After(timestamp) => verdict.timestamps_back += u64::from(is_before(packet.timestamp, timestamp)),
        }
        self.place = match packet.marker {
            true => Place::After(packet.timestamp),
            false => Place::Inside(packet.timestamp),
        };
    }

    fn unit(&mut self, now: Instant, unit: Unit) {
        let verdict = &mut self.verdict;
        match unit {
            Unit::Video { codec, dts, key, annexb, .. } => {
                verdict.frames += 1;
                verdict.keys += u64::from(key);
                verdict.video = Some(codec);
                verdict.first_is_key.get_or_insert(key);
                verdict.first_picture_after.get_or_insert(now.saturating_duration_since(self.began));
                verdict.dts_back += u64::from(self.last_dts.replace(dts).is_some_and(|before| dts <= before));
                self.compare(&annexb);
            }
            Unit::Audio { codec, payload, .. } => {
                verdict.audio = Some(codec);
                verdict.audio_frames += 1;
                verdict.audio_bytes += payload.len() as u64;
            }
            Unit::Gap => verdict.gaps += 1,
        }
    }

    fn compare(&mut self, annexb: &[u8]) {
        let (Some(follower), Some(clip)) = (&mut self.follower, &self.expected.clip) else {
            return;
        };
        let length = clip.units().len();
        match follower.push(without_prefix(clip, annexb)) {
            Seen::Exact(index) => {
                self.verdict.exact += 1;
                self.due = Some((index + 1) % length);
            }
            Seen::Altered => {
                self.verdict.altered += 1;
                let due = self.due.map(|index| &clip.units()[index].bytes);
                let alteration = Alteration {
                    picture: self.verdict.frames,
                    expected: self.due,
                    at: due.map(|due| first_difference(due, annexb)),
                    length: annexb.len(),
                    expected_length: due.map(Bytes::len),
                };
                self.verdict.first_alteration.get_or_insert(alteration);
                self.due = self.due.map(|index| (index + 1) % length);
            }
        }
    }
}

fn is_before(timestamp: u32, other: u32) -> bool {
    (timestamp.wrapping_sub(other) as i32) < 0
}

fn first_difference(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// The picture without what a gateway may put before it: an access unit delimiter, and the clip's own parameter sets.
fn without_prefix<'a>(clip: &Clip, annexb: &'a [u8]) -> &'a [u8] {
    let delimiter = match clip.codec() {
        VideoCodec::H264 => 9,
        VideoCodec::H265 => 35,
    };
    let mut rest = annexb;
    for nal in nal_units(annexb).take(MAX_PREFIX) {
        if clip.find(rest).is_some() {
            return rest;
        }
        let added = clip.codec().nal_type(nal) == delimiter || clip.parameter_sets().iter().any(|set| set == nal);
        let skipped = nal.len() + 4;
        if !added || rest.len() <= skipped || !rest[4..].starts_with(nal) {
            break;
        }
        rest = &rest[skipped..];
    }
    annexb
}
