//! What one device sends, from RTP packets to the stream's feed, in no hurry of its own: no socket, no clock.
//! Standard: [RFC3550], [GB/T28181-2022 annex C, D], SSRC and `y=` [GB/T28181-2022 annex G].
//! In: RTP packets as they arrive, with their time. Out: frames or bursts into a [`FrameFeed`], [`IntakeNote`]s, counts.
//! Decides once, with the first key frame in hand, whether the stream can be relayed or has to be muxed anew; again when
//! its stream map changes.
//! Invariants: packets of one SSRC alone get through, what is alien is dropped and counted; what passes is in order; a
//! gap is given up after 64 packets or 200 ms, then the picture goes on with the next key frame.
//! Bounds: [`LEARN`] packets while the SSRC is learnt, the reorder window, the demuxer's and assembler's own.
//! Not here: sockets, connections and how long to wait for them (`receive`).

use super::assemble::{Assembled, Assembler};
use super::frame::{FrameKind, Tracks};
use super::receive::{Plane, PlanePolicy, ReceiveMeters, SsrcRule};
use super::relay::{Burst, Gatherer};
use super::worker::FrameFeed;
use crate::proto::codec::{VideoCodec, inspect};
use crate::proto::ps::DemuxCounters;
use crate::proto::ps::peek::MapTypes;
use crate::proto::rtp::sequence::MAX_DROPOUT;
use crate::proto::rtp::{CLOCK_RATE, Packet, Pushed, Reorder, ReorderCounters, Sequence};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Packets of one SSRC, in sequence, after which it is believed to be the device's own.
const LEARN: usize = 4;
/// A device that never sets the marker: its frame is whole when nothing came for so long.
const FLUSH: Duration = Duration::from_millis(6);
/// Over TCP a gap in the numbers is a loss only where they have been counted properly for so many packets.
const HONEST: u32 = 32;
/// What held packets' bytes are cut from.
const SLAB: usize = 64 * 1024;

/// What the owner of the source may be told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum IntakeNote {
    /// The first packet that counts.
    FirstPacket,
    /// Tracks were announced.
    Playing(Tracks, Plane),
}

/// Packets held while it is decided: a key frame of 4K and what comes while sound is waited for.
const MAX_HELD: usize = 4096;
/// And their bytes.
const MAX_HELD_BYTES: usize = 16 << 20;

/// Frames after which a key frame that none of the packets began with is not waited for.
const UNDECIDED: usize = 8;

/// What is done with packets in order.
#[derive(Debug)]
enum Stage {
    /// Demuxed, and held from the last key frame on, until it is known what they are.
    Deciding { held: Vec<Burst>, packets: usize, bytes: usize, frames: Vec<Assembled> },
    /// Demuxed.
    Remux,
    /// Passed on; this is what the map says.
    Relay { map: Option<MapTypes> },
}

impl Stage {
    fn deciding() -> Self {
        Stage::Deciding { held: Vec::new(), packets: 0, bytes: 0, frames: Vec::new() }
    }
}

/// What a receiver would have to forgive; None: nothing.
fn defect(c: &DemuxCounters) -> Option<&'static str> {
    let checks = [
        (c.psm == 0, "no_map"),
        (c.psm_bad_crc > 0, "map_crc"),
        (c.psm_malformed > 0, "map_malformed"),
        (c.codec_lies > 0, "codec_lie"),
        (c.mpeg1_packs > 0, "mpeg1"),
        (c.length_lies > 0 || c.bad_pes > 0, "pes_length"),
        (c.unbounded_pes > 0, "pes_unbounded"),
        (c.times_missing > 0, "no_times"),
        (c.marker_lies > 0, "marker"),
        (c.undecided_audio > 0, "audio_unknown"),
        (c.resyncs > 0, "structure"),
    ];
    checks.into_iter().find(|(found, _)| *found).map(|(_, reason)| reason)
}

/// A packet that waits for its turn.
#[derive(Debug)]
struct Held {
    marker: bool,
    timestamp: u32,
    payload: Bytes,
}

/// How packets come.
#[derive(Debug)]
enum Order {
    /// By UDP: in any order.
    Window(Box<Reorder<Held>>, ReorderCounters),
    /// By TCP: in order; the last number, and how many have followed each other.
    Stream { last: Option<u16>, honest: u32 },
}

/// Packets of an SSRC that is not believed yet.
#[derive(Debug, Default)]
struct Candidate {
    ssrc: u32,
    next: u16,
    packets: Vec<Bytes>,
}

/// See the file's head.
#[derive(Debug)]
pub struct Intake {
    rule: SsrcRule,
    ssrc: Option<u32>,
    candidate: Candidate,
    order: Order,
    sequence: Sequence,
    assembler: Assembler,
    gatherer: Gatherer,
    stage: Stage,
    /// Why it is muxed anew.
    reason: &'static str,
    policy: PlanePolicy,
    feed: FrameFeed,
    meters: ReceiveMeters,
    resyncs: u64,
    /// Markers are being set.
    marked: bool,
    first_packet: Option<Instant>,
    last_packet: Option<Instant>,
    flushed: bool,
    last_picture: Option<Instant>,
    slab: BytesMut,
    notes: VecDeque<IntakeNote>,
}

impl Intake {
    /// Before the first packet. `stream`: packets come by TCP.
    pub fn new(rule: SsrcRule, policy: PlanePolicy, stream: bool, feed: FrameFeed, meters: ReceiveMeters) -> Self {
        let order = match stream {
            true => Order::Stream { last: None, honest: 0 },
            false => Order::Window(Box::default(), ReorderCounters::default()),
        };
        Intake {
            rule,
            ssrc: None,
            candidate: Candidate::default(),
            order,
            sequence: Sequence::new(CLOCK_RATE),
            assembler: Assembler::new(),
            gatherer: Gatherer::new(VideoCodec::H264),
            stage: if policy == PlanePolicy::Remux { Stage::Remux } else { Stage::deciding() },
            reason: "policy",
            policy,
            feed,
            meters,
            resyncs: 0,
            marked: false,
            first_packet: None,
            last_packet: None,
            flushed: true,
            last_picture: None,
            slab: BytesMut::new(),
            notes: VecDeque::new(),
        }
    }

    /// The SSRC that is let through, once it is known.
    pub fn ssrc(&self) -> Option<u32> {
        self.ssrc
    }
    /// For receiver reports.
    pub fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.sequence
    }
    /// When the first packet that counts came.
    pub fn first_packet(&self) -> Option<Instant> {
        self.first_packet
    }
    /// When the last whole picture came.
    pub fn last_picture(&self) -> Option<Instant> {
        self.last_picture
    }
    /// What there is to tell.
    pub fn pop_note(&mut self) -> Option<IntakeNote> {
        self.notes.pop_front()
    }

    /// Another connection of the same device: its numbering and framing begin anew.
    pub fn reconnected(&mut self) {
        if let Order::Stream { last, honest } = &mut self.order {
            (*last, *honest) = (None, 0);
        }
        self.sequence = Sequence::new(CLOCK_RATE);
        self.assembler.lose(0);
        self.gatherer.interrupted();
    }

    /// One RTP packet. False when it is none of the device's: not RTP, or an alien SSRC.
    pub fn packet(&mut self, bytes: &[u8], now: Instant) -> bool {
        let Ok(packet) = Packet::parse(bytes) else { return false };
        if self.ssrc != Some(packet.ssrc) {
            if !self.admit(&packet, bytes) {
                return false;
            }
            // What came while it was not believed counts now.
            for bytes in std::mem::take(&mut self.candidate.packets) {
                if let Ok(packet) = Packet::parse(&bytes) {
                    self.accept(&packet, bytes.len(), now);
                }
            }
        }
        self.accept(&packet, bytes.len(), now);
        true
    }

    /// True when the packet is the device's by what is known of its SSRC; it may still have to wait.
    fn admit(&mut self, packet: &Packet<'_>, bytes: &[u8]) -> bool {
        let (SsrcRule::Strict(expected) | SsrcRule::Learn(expected)) = self.rule;
        if self.ssrc.is_some() {
            self.meters.alien.inc();
            return false;
        }
        if packet.ssrc == expected {
            self.meters.alien.inc_by(std::mem::take(&mut self.candidate.packets).len() as u64);
            self.ssrc = Some(expected);
            return true;
        }
        if matches!(self.rule, SsrcRule::Strict(_)) {
            self.meters.alien.inc();
            return false;
        }
        let candidate = &mut self.candidate;
        if candidate.ssrc != packet.ssrc || candidate.next != packet.sequence {
            self.meters.alien.inc_by(candidate.packets.len() as u64);
            candidate.packets.clear();
            candidate.ssrc = packet.ssrc;
        }
        candidate.next = packet.sequence.wrapping_add(1);
        if candidate.packets.len() + 1 < LEARN {
            candidate.packets.push(Bytes::copy_from_slice(bytes));
            // Not alien, and not let through yet.
            return false;
        }
        tracing::info!(expected, ssrc = packet.ssrc, "the device sends an SSRC of its own: accepted");
        self.ssrc = Some(packet.ssrc);
        true
    }

    fn arrived(&mut self, now: Instant) {
        self.last_packet = Some(now);
        if self.first_packet.is_none() {
            self.first_packet = Some(now);
            self.notes.push_back(IntakeNote::FirstPacket);
        }
    }

    fn accept(&mut self, packet: &Packet<'_>, length: usize, now: Instant) {
        self.arrived(now);
        self.meters.packets.inc();
        self.meters.bytes.inc_by(length as u64);
        self.sequence.observe(packet.sequence, packet.timestamp, now);
        match &mut self.order {
            Order::Stream { last, honest } => {
                let step = last.replace(packet.sequence).map_or(1, |last| packet.sequence.wrapping_sub(last));
                let counts = *honest >= HONEST;
                *honest = if step == 1 { honest.saturating_add(1) } else { 0 };
                let lost = if counts && (2..MAX_DROPOUT as u16).contains(&step) { u32::from(step) - 1 } else { 0 };
                self.meters.lost.inc_by(lost.into());
                self.deliver(packet.payload, packet.marker, packet.timestamp, (lost, false), now);
            }
            Order::Window(window, _) => {
                if window.pass(packet.sequence) {
                    return self.deliver(packet.payload, packet.marker, packet.timestamp, (0, false), now);
                }
                if self.slab.capacity() < packet.payload.len() {
                    self.slab.reserve(SLAB.max(packet.payload.len()));
                }
                self.slab.extend_from_slice(packet.payload);
                let held =
                    Held { marker: packet.marker, timestamp: packet.timestamp, payload: self.slab.split().freeze() };
                // What is far off waits in the window itself, or is counted there.
                let _: Pushed = window.push(packet.sequence, now, held);
                self.drain(now);
            }
        }
    }

    fn drain(&mut self, now: Instant) {
        loop {
            let Order::Window(window, _) = &mut self.order else { return };
            let Some(next) = window.pull(now) else { return };
            let Held { marker, timestamp, payload } = &next.item;
            self.deliver(payload, *marker, *timestamp, (next.lost, next.restarted), now);
        }
    }

    /// One packet in order; `gap`: how many are missing before it, and whether the numbering began anew with it.
    fn deliver(&mut self, payload: &[u8], marker: bool, timestamp: u32, gap: (u32, bool), now: Instant) {
        let (lost, restarted) = gap;
        self.flushed = marker;
        self.marked |= marker;
        if !matches!(self.stage, Stage::Remux) {
            if restarted {
                self.gatherer.interrupted();
            }
            self.gatherer.packet(payload, marker, timestamp, lost, now);
        }
        if !matches!(self.stage, Stage::Relay { .. }) {
            if lost > 0 || restarted {
                self.assembler.lose(lost);
            }
            self.assembler.payload(payload, now);
            if marker {
                self.assembler.end_of_frame(now);
            }
        }
        self.hand_over();
    }

    /// Bytes of a program stream that came without RTP.
    pub fn bare(&mut self, bytes: &[u8], now: Instant) {
        self.arrived(now);
        self.meters.bytes.inc_by(bytes.len() as u64);
        // Without RTP there is nothing to relay.
        if !matches!(self.stage, Stage::Remux) {
            self.decide_for_remux("no_rtp");
        }
        self.assembler.payload(bytes, now);
        self.flushed = false;
        self.hand_over();
    }

    /// Time passes, and a batch of packets is through: gives up gaps that are too old, ends frames without marker.
    pub fn poll(&mut self, now: Instant) {
        self.drain(now);
        if !self.marked && !self.flushed && self.last_packet.is_some_and(|t| now >= t + FLUSH) {
            self.flushed = true;
            self.assembler.pause(now);
        }
        self.assembler.poll(now);
        self.gatherer.flush();
        self.hand_over();
        if let Order::Window(window, told) = &mut self.order {
            let counters = window.counters();
            if counters != *told {
                self.meters.lost.inc_by(counters.lost - told.lost);
                self.meters.duplicates.inc_by(counters.duplicates - told.duplicates);
                self.meters.late.inc_by(counters.late - told.late);
                self.meters.reordered.inc_by(counters.reordered - told.reordered);
                *told = counters;
            }
        }
        let resyncs = self.assembler.counters().resyncs;
        self.meters.resyncs.inc_by(resyncs - std::mem::replace(&mut self.resyncs, resyncs));
    }

    /// When to poll although nothing comes.
    pub fn next_timeout(&self) -> Option<Instant> {
        let window = match &self.order {
            Order::Window(window, _) => window.next_timeout(),
            Order::Stream { .. } => None,
        };
        let flush = self.last_packet.filter(|_| !self.marked && !self.flushed).map(|t| t + FLUSH);
        [window, flush, self.assembler.next_timeout()].into_iter().flatten().min()
    }

    fn hand_over(&mut self) {
        while let Some(burst) = self.gatherer.pop() {
            self.take_burst(burst);
        }
        while let Some(item) = self.assembler.pop() {
            match &mut self.stage {
                Stage::Deciding { frames, .. } => {
                    if let Assembled::Started(tracks) = &item {
                        self.gatherer.set_codec(tracks.video);
                    }
                    frames.push(item);
                }
                Stage::Remux => self.give(item, self.reason),
                Stage::Relay { .. } => {}
            }
        }
        if let Stage::Deciding { held, packets, bytes, frames } = &self.stage
            && !frames.is_empty()
        {
            // Its key frame may have to be looked at further; what is held is bounded all the same.
            let full = *packets > MAX_HELD || *bytes > MAX_HELD_BYTES;
            if !held.is_empty() || full || frames.len() > UNDECIDED {
                self.decide();
            }
        }
    }

    /// A frame or tracks into the feed.
    fn give(&mut self, item: Assembled, reason: &'static str) {
        match item {
            Assembled::Started(tracks) => {
                self.feed.begin(tracks, Plane::Remux, reason);
                self.notes.push_back(IntakeNote::Playing(tracks, Plane::Remux));
            }
            Assembled::Frame(frame) => {
                if matches!(frame.kind, FrameKind::Video { .. }) {
                    self.last_picture = Some(frame.arrived);
                }
                self.feed.push(frame);
            }
        }
    }

    fn take_burst(&mut self, burst: Burst) {
        match &mut self.stage {
            Stage::Remux => {}
            Stage::Relay { map } if burst.key && burst.map != *map => {
                // Other streams are in it now: what they are is found out anew.
                self.assembler = Assembler::new();
                self.resyncs = 0;
                self.stage = Stage::deciding();
                for (payload, marker) in burst.payloads() {
                    self.assembler.payload(payload, burst.arrived);
                    if marker {
                        self.assembler.end_of_frame(burst.arrived);
                    }
                }
                self.take_burst(burst);
            }
            Stage::Relay { .. } if burst.bare && self.policy == PlanePolicy::Auto => {
                // Key frames without a pack would be none to whoever joins later.
                self.assembler = Assembler::new();
                self.resyncs = 0;
                self.decide_for_remux("no_key_pack");
                for (payload, marker) in burst.payloads() {
                    self.assembler.payload(payload, burst.arrived);
                    if marker {
                        self.assembler.end_of_frame(burst.arrived);
                    }
                }
            }
            Stage::Relay { .. } => {
                if burst.picture {
                    self.last_picture = Some(burst.arrived);
                }
                self.feed.relay(burst);
            }
            Stage::Deciding { held, packets, bytes, frames } => {
                // Once frames are out what is held belongs to them.
                if burst.key && frames.is_empty() {
                    held.clear();
                    (*packets, *bytes) = (0, 0);
                }
                if (burst.key || !held.is_empty()) && *packets <= MAX_HELD && *bytes <= MAX_HELD_BYTES {
                    *packets += burst.packets();
                    *bytes += burst.octets();
                    held.push(burst);
                }
            }
        }
    }

    /// The first key frame and its tracks are here.
    fn decide(&mut self) {
        let counters = self.assembler.counters();
        let Stage::Deciding { held, packets, bytes, frames } = &self.stage else { return };
        let whole = match frames.as_slice() {
            [Assembled::Started(tracks), Assembled::Frame(frame), ..] => {
                inspect(tracks.video, &frame.data).has_parameter_sets(tracks.video)
            }
            _ => false,
        };
        let begins = held.first().is_some_and(|burst| burst.key);
        let reason = if !begins || *packets > MAX_HELD || *bytes > MAX_HELD_BYTES {
            // Nothing a receiver could begin with: this is no matter of policy.
            Some("no_key_pack")
        } else if self.policy == PlanePolicy::Relay {
            None
        } else if !whole {
            Some("no_parameter_sets")
        } else if self.gatherer.unmarked() > 0 || !self.marked {
            Some("no_marker")
        } else if held[0].map.is_none() {
            Some("no_map")
        } else {
            defect(&counters)
        };
        let Some(reason) = reason else { return self.decide_for_relay() };
        self.decide_for_remux(reason);
    }

    fn decide_for_relay(&mut self) {
        let Stage::Deciding { held, frames, .. } = &mut self.stage else { return };
        let (held, frames) = (std::mem::take(held), std::mem::take(frames));
        let map = held.first().and_then(|burst| burst.map);
        self.stage = Stage::Relay { map };
        if let Some(Assembled::Started(tracks)) = frames.first() {
            let reason = if self.policy == PlanePolicy::Relay { "policy" } else { "clean" };
            self.feed.begin(*tracks, Plane::Relay, reason);
            self.notes.push_back(IntakeNote::Playing(*tracks, Plane::Relay));
        }
        for burst in held {
            self.take_burst(burst);
        }
    }

    fn decide_for_remux(&mut self, reason: &'static str) {
        self.reason = reason;
        if let Stage::Deciding { frames, .. } = std::mem::replace(&mut self.stage, Stage::Remux) {
            tracing::info!(reason, "the program stream is muxed anew");
            for item in frames {
                self.give(item, reason);
            }
        }
    }

    /// What to say of a source that sends and never shows a picture.
    pub fn why_no_picture(&self) -> &'static str {
        let c = self.assembler.counters();
        if c.packs == 0 {
            "what comes is no program stream: set the device to PS over RTP (payload 96)"
        } else if c.undecided_frames > 0 {
            "its video is neither H.264 nor H.265: set the device's encoding"
        } else if c.frames == 0 {
            "the program stream holds no video"
        } else {
            "no key frame came: set the device's I-frame interval to 2 s"
        }
    }
}
