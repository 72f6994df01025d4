//! One live stream on its worker: frames in, stamped, cached, muxed once a profile, sent to all sinks.
//! Standard: [GB/T28181-2022 C.1] PS in RTP, one timestamp a frame, marker on its last packet, pacing 4.3.6.
//! In: [`Frame`]s from the pull on the same thread. Out: packets through `sink`, [`StreamNote`]s for the hub.
//! Invariants: one mux per profile, shared by all its live sinks; a joining sink first gets the cached group of
//! pictures at no more than [`CATCH_UP`] times the stream's rate, then the shared images, in order and without a gap.
//! Not here: who wants the stream (`hub`), threads and slots (`worker`).

use super::assemble::{Assembled, Assembler};
use super::frame::{Frame, FrameKind, StreamKey, Tracks};
use super::gop_cache::{BACKLOG, Cached, GopCache, StampedFrame};
use super::mux::{Image, MuxProfile, ProfileMux};
use super::receive::Plane;
use super::relay::{Burst, StampedBurst};
use super::sink::{SMALL_PAYLOAD, Sent, Sink, SinkEnd, SinkId, SinkSpec};
use super::timeline::{CLOCK, Stamp, Timeline};
use super::{MediaOptions, StreamStats};
use crate::proto::codec::{ParameterSets, VideoCodec, inspect, misplaced_delimiter};
use crate::proto::ps::MuxRate;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// A joining sink is sent the cached group at this many times the stream's own rate.
pub const CATCH_UP: f64 = 4.0;
/// Frames up to this many packets leave at once; larger ones are spread over `media.pacing_max`.
pub const PACED_FROM: usize = 64;
/// Without a frame for so long the viewers are told that the source is lost: never silence beyond 15 s.
pub const SILENCE: Duration = Duration::from_secs(12);
/// Images waiting behind one that is being paced; more came in a burst and leave at once.
const MAX_QUEUED_IMAGES: usize = 64;
/// A joining sink may lag this many times the cache's bound behind before it is sent to the next key frame instead.
const MAX_BACKLOG: usize = 2;
/// A step of a device's clock beyond this, or beyond the time that passed and this, is a jump.
const MAX_STEP: i64 = 2 * CLOCK;
/// A clock that jumped goes on by a frame at least.
const LEAST_STEP: i64 = CLOCK / 25;
/// What a joining receiver has to its credit: enough for one packet at once, because it waits for it.
const FIRST_CREDIT: f64 = 1.0;

/// What the hub must know.
#[derive(Debug)]
pub enum StreamNote {
    /// The first key frame is here: sinks can be answered.
    Ready(Tracks),
    /// The first sink of a recording was started.
    Started,
    /// A sink is gone: its lease was dropped, or it ended and the lease was dropped after.
    SinkGone(SinkId),
    /// The group of pictures is beyond the cache's bounds.
    LongGop,
}

#[derive(Debug)]
enum Position {
    /// Waits for the next key frame.
    Waiting,
    /// Is sent what was cached, faster than it comes, and what came meanwhile.
    CatchUp(Box<CatchUp>),
    /// Takes the shared images from this frame number on.
    Live { next_frame: u64 },
}

/// What a joining sink is sent.
#[derive(Debug)]
enum Item {
    Frame(StampedFrame),
    Burst(StampedBurst),
}

impl Item {
    fn length(&self) -> usize {
        match self {
            Item::Frame(frame) => frame.length(),
            Item::Burst(burst) => burst.length(),
        }
    }
}

/// Of a stream whose payloads pass as they came.
#[derive(Debug)]
struct Relay {
    gop: GopCache<StampedBurst>,
    /// Added to the device's timestamps.
    offset: Option<i64>,
    last_ticks: i64,
    last_at: Option<Instant>,
    /// Bytes of the largest payload so far.
    largest: usize,
    /// Muxes anew for the sinks that cannot take payloads as they are; there while there is such a sink.
    side: Option<Assembler>,
}

#[derive(Debug)]
struct CatchUp {
    items: VecDeque<Item>,
    /// In `items`.
    bytes: usize,
    /// Bytes of frames that may be sent now.
    credit: f64,
    mux: ProfileMux,
    /// The frame on its way.
    image: Option<Started>,
}

#[derive(Debug)]
struct Started {
    image: Image,
    sent: usize,
    /// Bytes of the frame in each packet.
    cost: f64,
}

impl CatchUp {
    /// Sends what is left of a frame that is half sent, so that the receiver has it whole.
    fn finish_frame(&mut self, sink: &mut Sink, now: Instant) {
        if let Some(Started { mut image, sent, .. }) = self.image.take() {
            let left = image.packets() - sent;
            send_packets(sink, now, &mut image, sent, left);
        }
    }
}

#[derive(Debug)]
struct Seat {
    sink: Sink,
    profile: MuxProfile,
    /// The largest payload its receiver takes, bytes.
    payload_max: u16,
    position: Position,
    joined: bool,
    /// Waits because it was too slow.
    slow: bool,
}

impl Seat {
    fn is_live(&self) -> bool {
        matches!(self.position, Position::Live { .. }) && self.sink.is_open()
    }

    /// Whether it can be sent payloads of this size as they came. By TCP any.
    fn takes(&self, largest: usize) -> bool {
        self.profile.tcp || largest <= usize::from(self.payload_max)
    }

    /// Puts it on a plane. Sinks that are relayed to share packets whatever their limit.
    fn set_plane(&mut self, relay: bool) {
        self.profile.relay = relay;
        self.profile.payload_max = if relay { u16::MAX } else { self.payload_max };
    }

    /// Takes it out of the stream until the next key frame. `why` is not `All`.
    fn stop(&mut self, why: Sent, stream: &StreamKey) {
        self.position = Position::Waiting;
        if why == Sent::TooLarge {
            tracing::warn!(
                %stream, from = self.payload_max, to = SMALL_PAYLOAD,
                "the path refuses packets of this size: this receiver gets smaller ones"
            );
            self.payload_max = SMALL_PAYLOAD.min(self.payload_max);
            self.set_plane(false);
            // One that has nothing yet may begin with the cached group again.
            self.joined = self.sink.has_sent();
        } else {
            tracing::info!(%stream, sink = self.sink.id().0, "a slow receiver: it goes on with the next key frame");
            self.slow = true;
        }
    }
}

impl Group {
    /// A key frame begins the next one.
    fn end(&mut self, dts: u64) {
        if let Some(span) = self.from.and_then(|from| dts.checked_sub(from)).filter(|s| *s > 0) {
            self.rate = Some(self.bytes as f64 * 90_000.0 / span as f64);
        }
        self.from = Some(dts);
        self.bytes = 0;
    }
}

/// See the file's head.
#[derive(Debug)]
pub struct Stream {
    key: StreamKey,
    options: MediaOptions,
    tracks: Option<Tracks>,
    announced: bool,
    told_started: bool,
    /// What is pushed was cached before.
    replaying: bool,
    timeline: Timeline,
    parameter_sets: ParameterSets,
    gop: GopCache,
    relay: Option<Box<Relay>>,
    group: Group,
    muxes: Vec<ProfileMux>,
    seats: Vec<Seat>,
    next_frame: u64,
    last_frame: Option<Instant>,
    last_dts: u64,
    last_dts_at: Option<Instant>,
    /// RTP timestamp of the last frame.
    last_rtp: Option<u64>,
    /// The same of what is muxed anew beside a relay.
    last_side_rtp: Option<u64>,
    peak: MuxRate,
    mux_rate: u32,
    window: Window,
    stats: StreamStats,
    notes: VecDeque<StreamNote>,
}

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    frames: u32,
    bytes: u64,
    last_key: Option<Instant>,
}

/// The group of pictures that is coming in, and the rate of the last whole one.
#[derive(Debug, Default)]
struct Group {
    from: Option<u64>,
    bytes: u64,
    rate: Option<f64>,
}

impl Stream {
    /// A stream without frames and sinks.
    pub fn new(key: StreamKey, options: MediaOptions) -> Self {
        let gop = match key.session {
            0 => GopCache::new(options.gop_cache, options.gop_cache_max_age),
            _ => GopCache::backlog(options.gop_cache, options.gop_cache_max_age),
        };
        Stream {
            key,
            gop,
            relay: None,
            options,
            tracks: None,
            announced: false,
            told_started: false,
            replaying: false,
            timeline: Timeline::new(),
            parameter_sets: ParameterSets::new(VideoCodec::H264),
            group: Group::default(),
            muxes: Vec::new(),
            seats: Vec::new(),
            next_frame: 0,
            last_frame: None,
            last_dts: 0,
            last_dts_at: None,
            last_rtp: None,
            last_side_rtp: None,
            peak: MuxRate::default(),
            mux_rate: 0,
            window: Window::default(),
            stats: StreamStats::default(),
            notes: VecDeque::new(),
        }
    }

    /// Rate, frame rate, losses.
    pub fn stats(&self) -> StreamStats {
        self.stats
    }
    /// Takes what the hub must know.
    pub fn pop_note(&mut self) -> Option<StreamNote> {
        self.notes.pop_front()
    }
    /// Sinks, started or not.
    pub fn sinks(&self) -> usize {
        self.seats.len()
    }

    /// The source (re)started with these tracks.
    pub fn source_started(&mut self, tracks: Tracks, now: Instant) {
        self.interrupt(now, |_| true);
        if let (Some(_), Some(line)) = (self.relay.take(), self.last_rtp) {
            self.timeline = Timeline::after(line, now);
        }
        self.seats.iter_mut().for_each(|seat| seat.set_plane(false));
        self.frames_started(tracks);
        self.announced = false;
    }

    /// The source (re)started with these tracks, and its payloads pass as they come.
    pub fn relay_started(&mut self, tracks: Tracks, now: Instant) {
        self.interrupt(now, |_| true);
        let options = self.options;
        let unseen = self.is_recording() && self.seats.iter().all(|seat| !seat.joined);
        let gop = if unseen { GopCache::backlog } else { GopCache::new };
        self.relay = Some(Box::new(Relay {
            gop: gop(options.gop_cache, options.gop_cache_max_age),
            // A recording's times are its own.
            offset: self.is_recording().then_some(0),
            last_ticks: 0,
            last_at: self.last_dts_at,
            largest: 0,
            side: None,
        }));
        self.gop.clear();
        self.gop.taken();
        self.seats.iter_mut().for_each(|seat| seat.set_plane(true));
        self.group.from = None;
        self.window.last_key = None;
        self.tracks = Some(tracks);
        self.stats.size = tracks.size;
        self.announced = false;
    }

    /// Which plane the source is on, for the console.
    pub fn set_plane(&mut self, plane: Plane, reason: &'static str) {
        (self.stats.plane, self.stats.plane_reason) = (plane.as_str(), reason);
    }

    /// What comes now does not continue what these sinks have: they get the rest of it, then the next key frame.
    fn interrupt(&mut self, now: Instant, whom: impl Fn(&Seat) -> bool) {
        self.send_live(now, self.options.pacing_max);
        for seat in self.seats.iter_mut().filter(|seat| whom(seat)) {
            if let Position::CatchUp(catch_up) = &mut seat.position {
                catch_up.finish_frame(&mut seat.sink, now);
            }
            seat.position = Position::Waiting;
        }
    }

    fn frames_started(&mut self, tracks: Tracks) {
        self.timeline.restart_source();
        self.parameter_sets = ParameterSets::new(tracks.video);
        self.gop.clear();
        self.group.from = None;
        self.window.last_key = None;
        for mux in &mut self.muxes {
            mux.retrack(tracks);
        }
        self.tracks = Some(tracks);
    }

    /// Adds a sink that waits for its start.
    pub fn add_sink(&mut self, id: SinkId, spec: SinkSpec, alive: Arc<AtomicBool>) {
        let payload_max = spec.payload_max;
        let (payload_type, tcp) = (spec.payload_type, spec.transport.is_tcp());
        let profile = MuxProfile { payload_max, payload_type, tcp, relay: false };
        let events = spec.events.clone();
        match Sink::new(id, spec, alive) {
            Ok(sink) => {
                let position = Position::Waiting;
                let mut seat = Seat { sink, profile, payload_max, position, joined: false, slow: false };
                seat.set_plane(self.relay.is_some());
                self.seats.push(seat);
            }
            Err(e) => {
                tracing::warn!(stream = %self.key, error = %e, "cannot use the media socket");
                let _ = events.try_send((id, super::sink::SinkEvent::Ended(SinkEnd::ConnectFailed)));
                self.notes.push_back(StreamNote::SinkGone(id));
            }
        }
    }

    /// The ACK came.
    pub fn start_sink(&mut self, id: SinkId, now: Instant) {
        if let Some(seat) = self.seats.iter_mut().find(|s| s.sink.id() == id) {
            seat.sink.start(now);
            if self.is_recording() && !std::mem::replace(&mut self.told_started, true) {
                self.notes.push_back(StreamNote::Started);
            }
        }
    }

    /// Played for one viewer, from its beginning, at the speed the device chooses: its silence is a pause, and nothing of
    /// it is dropped before the viewer has it.
    fn is_recording(&self) -> bool {
        self.key.session != 0
    }

    /// The stream goes away under its sinks.
    pub fn close(&mut self) {
        for seat in &mut self.seats {
            seat.sink.end(SinkEnd::StreamClosed);
        }
    }

    /// One frame from the source.
    pub fn push(&mut self, frame: Frame) {
        let Some(tracks) = self.tracks else { return };
        let now = frame.arrived;
        // What a relay has muxed anew beside it was counted as it came.
        let counts = self.relay.is_none();
        if counts {
            self.window.bytes += frame.data.len() as u64;
            self.stats.lost += u64::from(frame.loss);
        }
        match frame.kind {
            FrameKind::Audio => {
                if tracks.audio.is_none() {
                    return;
                }
                let Some(pts) = self.timeline.audio(frame.ticks, tracks.audio_clock, now) else {
                    return;
                };
                // Sound that runs ahead of the picture would take the RTP time with it.
                let due = pts.min(self.line_at(now));
                self.distribute(frame, Stamp { pts, dts: pts }, due, tracks);
            }
            FrameKind::Video { key } => {
                self.window.frames += u32::from(counts);
                self.last_frame = Some(now);
                let mut frame = frame;
                // Sources may take IDR alone for a key frame; CRA and BLA of open groups of pictures are ones too.
                let key = key || inspect(tracks.video, &frame.data).key;
                frame.kind = FrameKind::Video { key };
                if key {
                    if counts {
                        self.key_came(now);
                    }
                    if self.parameter_sets.observe(&frame.data)
                        && let Some(Ok(facts)) = self.parameter_sets.facts()
                    {
                        self.timeline.set_reorder_depth(usize::from(facts.reorder_depth));
                        self.stats.size = Some((facts.width, facts.height));
                    }
                    if !inspect(tracks.video, &frame.data).has_parameter_sets(tracks.video) {
                        // The PS wants them in front of every key frame [GB/T28181-2022 annex E].
                        frame.data = prepend(self.parameter_sets.prefix(), &frame.data);
                    }
                    if let Some(at) = misplaced_delimiter(tracks.video, &frame.data) {
                        frame.data =
                            [&frame.data[at.clone()], &frame.data[..at.start], &frame.data[at.end..]].concat().into();
                    }
                }
                let stamp = self.timeline.video(frame.ticks, tracks.video_clock, now);
                self.last_dts = stamp.dts;
                self.last_dts_at = Some(now);
                self.distribute(frame, stamp, stamp.dts, tracks);
                if key {
                    self.announce(tracks);
                }
            }
        }
    }

    fn key_came(&mut self, now: Instant) {
        if let Some(last) = self.window.last_key.replace(now) {
            self.stats.gop = now.saturating_duration_since(last);
        }
    }

    fn announce(&mut self, tracks: Tracks) {
        if !std::mem::replace(&mut self.announced, true) {
            let size = self.stats.size;
            self.notes.push_back(StreamNote::Ready(Tracks { size, ..tracks }));
        }
    }

    /// Packets of one frame from the source, on the relay plane.
    pub fn push_burst(&mut self, burst: Burst) {
        let recording = self.is_recording();
        let (Some(relay), Some(tracks)) = (&mut self.relay, self.tracks) else { return };
        let now = burst.arrived;
        self.window.bytes += burst.octets() as u64;
        self.window.frames += u32::from(burst.picture);
        self.stats.lost += u64::from(burst.lost);
        self.last_frame = Some(now);
        let (rtp, jumped) = relay.stamp(burst.ticks, now, self.last_rtp.filter(|_| !recording), recording);
        self.stats.clock_jumps += u64::from(jumped);
        relay.largest = relay.largest.max(burst.largest());
        self.last_rtp = Some(rtp);
        (self.last_dts, self.last_dts_at) = (rtp, Some(now));
        let number = self.next_frame;
        self.next_frame += 1;
        let key = burst.key;
        let length = burst.octets();
        if key {
            self.group.end(rtp);
        }
        self.group.bytes += length as u64;
        let burst = StampedBurst { burst, rtp };
        if relay.gop.push(&burst) {
            self.notes.push_back(StreamNote::LongGop);
        }
        let (largest, backlog) = (relay.largest, relay.gop.is_backlog());
        if let Some(side) = &mut relay.side {
            feed_side(side, &burst.burst);
        }
        if key {
            self.key_came(now);
        }
        // One that cannot take this is muxed for from its next key frame on.
        let mut outgrown = false;
        for seat in self.seats.iter_mut().filter(|seat| seat.profile.relay && !seat.takes(largest)) {
            seat.set_plane(false);
            seat.position = Position::Waiting;
            seat.joined = seat.sink.has_sent();
            outgrown = true;
        }
        if outgrown {
            tracing::info!(stream = %self.key, largest, "payloads too large for a receiver: it is muxed for anew");
        }
        let max_backlog = self.max_backlog();
        for seat in self.seats.iter_mut().filter(|seat| seat.profile.relay) {
            match &mut seat.position {
                Position::Live { .. } => continue,
                Position::CatchUp(catch_up) => {
                    catch_up.bytes += burst.length();
                    if catch_up.bytes <= max_backlog {
                        catch_up.items.push_back(Item::Burst(burst.clone()));
                        continue;
                    }
                    catch_up.finish_frame(&mut seat.sink, now);
                    seat.position = Position::Waiting;
                }
                Position::Waiting => {}
            }
            if !seat.sink.is_open() {
                continue;
            }
            if key && !backlog {
                seat.joined = true;
                seat.slow = false;
                seat.position = Position::Live { next_frame: number };
            } else if seat.slow {
                seat.sink.skipped(burst.burst.packets() as u64);
            }
        }
        self.enqueue(&Item::Burst(burst), number, tracks, now);
        self.drain_side();
        if key {
            self.announce(tracks);
        }
    }

    /// What a joining or lagging sink may have waiting.
    fn max_backlog(&self) -> usize {
        match self.is_recording() {
            true => MAX_BACKLOG * BACKLOG,
            false => self.options.gop_cache.saturating_mul(MAX_BACKLOG),
        }
    }

    /// Begins to mux anew beside the relay, from the cached group on.
    fn start_side(&mut self, now: Instant) {
        let Some(relay) = &mut self.relay else { return };
        let mut side = Assembler::new();
        for burst in relay.gop.frames() {
            feed_side(&mut side, &burst.burst);
        }
        // What was sent by this mux before has nothing to do with it; the line is the relay's.
        self.timeline = Timeline::after(relay.gop.frames().first().map_or(self.last_dts, |b| b.rtp), now);
        relay.side = Some(side);
        self.gop.clear();
        // It fills the cache; who waits is sent it as any cached group.
        self.replaying = true;
        self.drain_side();
        self.replaying = false;
    }

    fn drain_side(&mut self) {
        while let Some(item) = self.relay.as_mut().and_then(|relay| relay.side.as_mut()).and_then(Assembler::pop) {
            match item {
                Assembled::Started(tracks) => {
                    // A burst came before, at this time.
                    if let Some(now) = self.last_frame {
                        self.interrupt(now, |seat| !seat.profile.relay);
                    }
                    self.frames_started(tracks);
                }
                Assembled::Frame(frame) => self.push(frame),
            }
        }
    }

    fn distribute(&mut self, frame: Frame, stamp: Stamp, due: u64, tracks: Tracks) {
        let number = self.next_frame;
        self.next_frame += 1;
        let now = frame.arrived;
        let last = if self.relay.is_some() { &mut self.last_side_rtp } else { &mut self.last_rtp };
        let rtp = last.map_or(due, |last| due.max(last + 1));
        *last = Some(rtp);
        let key = matches!(frame.kind, FrameKind::Video { key: true });
        let length = frame.data.len();
        self.peak.frame(stamp.dts, length);
        if key {
            self.mux_rate = self.mux_rate.max(self.peak.wanted());
        }
        if self.relay.is_none() {
            if key {
                self.group.end(stamp.dts);
            }
            self.group.bytes += length as u64;
        }
        let frame = StampedFrame { frame, stamp, rtp, mux_rate: self.mux_rate };
        if self.gop.push(&frame) {
            self.notes.push_back(StreamNote::LongGop);
        }
        let max_backlog = self.max_backlog();
        for seat in self.seats.iter_mut().filter(|seat| !seat.profile.relay) {
            match &mut seat.position {
                Position::Live { .. } => {}
                Position::CatchUp(catch_up) => {
                    catch_up.bytes += length;
                    if catch_up.bytes > max_backlog {
                        catch_up.finish_frame(&mut seat.sink, now);
                        seat.position = Position::Waiting;
                    } else {
                        catch_up.items.push_back(Item::Frame(frame.clone()));
                    }
                }
                Position::Waiting => {}
            }
            if !matches!(seat.position, Position::Waiting) || !seat.sink.is_open() {
                continue;
            }
            if key && !self.gop.is_backlog() && !self.replaying {
                seat.joined = true;
                seat.slow = false;
                seat.position = Position::Live { next_frame: number };
            } else if seat.slow {
                seat.sink.skipped(length.div_ceil(usize::from(seat.payload_max)) as u64);
            }
        }
        self.enqueue(&Item::Frame(frame), number, tracks, now);
    }

    /// Muxes or copies an item once for each packaging of its live sinks.
    fn enqueue(&mut self, item: &Item, number: u64, tracks: Tracks, now: Instant) {
        let mut full = false;
        let relay = matches!(item, Item::Burst(_));
        let seats = &self.seats;
        for i in 0..seats.len() {
            let profile = seats[i].profile;
            if profile.relay != relay
                || !seats[i].is_live()
                || seats[..i].iter().any(|s| s.profile == profile && s.is_live())
            {
                continue;
            }
            let at = match self.muxes.iter().position(|m| m.profile() == profile) {
                Some(at) => at,
                None => {
                    let mux = match self.muxes.iter().find(|m| !m.profile().relay) {
                        Some(other) => ProfileMux::like(other, profile),
                        None => ProfileMux::new(profile, tracks),
                    };
                    self.muxes.push(mux);
                    self.muxes.len() - 1
                }
            };
            let mux = &mut self.muxes[at];
            match item {
                Item::Frame(frame) => mux.enqueue(frame, number),
                Item::Burst(burst) => mux.enqueue_burst(burst, number),
            }
            full |= mux.queued() > MAX_QUEUED_IMAGES;
        }
        if full {
            // A burst (the way from the camera was blocked for seconds) is passed on as it came.
            self.send_live(now, self.options.pacing_max);
        }
    }

    /// Sends what is due in this slot; `slot` is its length, `slow` is set about twice a second.
    pub fn tick(&mut self, now: Instant, slot: Duration, slow: bool, unix: Duration) {
        let rtp_now = self.line_at(now) as u32;
        let recording = self.is_recording();
        let lost = self.last_frame.is_some_and(|t| now.saturating_duration_since(t) > SILENCE);
        if let Some(relay) = &self.relay {
            let (largest, running) = (relay.largest, relay.side.is_some());
            let joining = self.seats.iter_mut().filter(|seat| seat.profile.relay && !seat.takes(largest));
            joining.for_each(|seat| seat.set_plane(false));
            let wanted = self.seats.iter().any(|seat| !seat.profile.relay && seat.sink.is_open());
            if wanted && !running {
                self.start_side(now);
            } else if !wanted && running && slow {
                self.relay.iter_mut().for_each(|relay| relay.side = None);
            } else if let Some(side) = self.relay.as_mut().and_then(|relay| relay.side.as_mut()) {
                side.poll(now);
                self.drain_side();
            }
        }
        for seat in &mut self.seats {
            seat.sink.tick(now, slow, unix, rtp_now);
            if !seat.sink.is_open() {
                continue;
            }
            // Also when the source lives and its key frames are too rare: what stays silent is ended.
            if slow && !recording && (lost || seat.sink.silence(now) > SILENCE) {
                seat.sink.end(SinkEnd::SourceLost);
                seat.position = Position::Waiting;
            } else if !seat.joined {
                seat.joined = true;
                let (items, bytes): (VecDeque<Item>, usize) = match &mut self.relay {
                    Some(relay) if seat.profile.relay => {
                        (relay.gop.frames().iter().cloned().map(Item::Burst).collect(), relay.gop.bytes())
                    }
                    _ => (self.gop.frames().iter().cloned().map(Item::Frame).collect(), self.gop.bytes()),
                };
                if let Some(tracks) = self.tracks.filter(|_| !items.is_empty()) {
                    seat.position = Position::CatchUp(Box::new(CatchUp {
                        items,
                        bytes,
                        credit: FIRST_CREDIT,
                        mux: ProfileMux::new(seat.profile, tracks),
                        image: None,
                    }));
                }
                self.gop.taken();
                self.relay.iter_mut().for_each(|relay| relay.gop.taken());
            }
        }
        self.catch_up(now, slot);
        self.send_live(now, slot);
        let notes = &mut self.notes;
        self.seats.retain(|s| {
            let keep = s.sink.is_leased();
            if !keep {
                notes.push_back(StreamNote::SinkGone(s.sink.id()));
            }
            keep
        });
        if slow {
            self.measure(now);
            let seats = &self.seats;
            // The last one stays, for its clock.
            let mut left = self.muxes.len();
            self.muxes.retain(|m| {
                let keep = left == 1 || m.queued() > 0 || seats.iter().any(|s| s.profile == m.profile());
                left -= usize::from(!keep);
                keep
            });
        }
    }

    /// The DTS that belongs to `now`.
    fn line_at(&self, now: Instant) -> u64 {
        let since = self.last_dts_at.map_or(Duration::ZERO, |t| now.saturating_duration_since(t));
        self.last_dts.wrapping_add(since.as_micros() as u64 * 9 / 100)
    }

    fn catch_up(&mut self, now: Instant, slot: Duration) {
        let recording = self.is_recording();
        let earned = CATCH_UP * self.rate() * slot.as_secs_f64();
        for seat in &mut self.seats {
            let Position::CatchUp(catch_up) = &mut seat.position else {
                continue;
            };
            let burst = PACED_FROM as f64 * f64::from(seat.payload_max);
            // A recording may come many times faster than its own rate: it is caught up with by bursts.
            catch_up.credit = if recording { burst } else { (catch_up.credit + earned).min(burst) };
            while catch_up.credit > 0.0 {
                if catch_up.image.is_none() {
                    if catch_up.mux.queued() == 0 {
                        let Some(item) = catch_up.items.pop_front() else { break };
                        catch_up.bytes -= item.length();
                        match &item {
                            Item::Frame(frame) => catch_up.mux.enqueue(frame, 0),
                            Item::Burst(burst) => catch_up.mux.enqueue_burst(burst, 0),
                        }
                    }
                    catch_up.image = catch_up.mux.take_image().map(|image| {
                        seat.sink.leave_out(image.missing());
                        let cost = image.length() as f64 / image.packets().max(1) as f64;
                        Started { image, sent: 0, cost }
                    });
                }
                let Some(Started { image, sent, cost }) = &mut catch_up.image else { continue };
                let due = (catch_up.credit / cost.max(1.0)).ceil() as usize;
                let count = due.min(image.packets() - *sent);
                let verdict = send_packets(&mut seat.sink, now, image, *sent, count);
                *sent += count;
                catch_up.credit -= count as f64 * *cost;
                if *sent >= image.packets()
                    && let Some(Started { image, .. }) = catch_up.image.take()
                {
                    catch_up.mux.recycle(image);
                }
                match verdict {
                    Sent::All => {}
                    Sent::SkipToKey | Sent::TooLarge => {
                        seat.stop(verdict, &self.key);
                        break;
                    }
                }
            }
            if let Position::CatchUp(catch_up) = &mut seat.position
                && catch_up.image.is_none()
                && catch_up.mux.queued() == 0
                && catch_up.items.is_empty()
            {
                let next_frame = self.next_frame;
                let Position::CatchUp(done) = std::mem::replace(&mut seat.position, Position::Live { next_frame })
                else {
                    continue;
                };
                if !self.muxes.iter().any(|m| m.profile() == seat.profile) {
                    self.muxes.push(done.mux);
                }
            }
        }
    }

    /// Bytes of frames a second: the mean of the last whole group of pictures, before that of what there is.
    fn rate(&self) -> f64 {
        if let Some(rate) = self.group.rate {
            return rate;
        }
        if let Some(relay) = &self.relay {
            return self.stats.bytes_per_second.max(relay.gop.bytes() as f64);
        }
        let frames = self.gop.frames();
        let span = match (frames.first(), frames.last()) {
            (Some(a), Some(b)) => b.stamp.dts.saturating_sub(a.stamp.dts).max(90_000),
            _ => 90_000,
        };
        self.stats.bytes_per_second.max(self.gop.bytes() as f64 * 90_000.0 / span as f64)
    }

    fn send_live(&mut self, now: Instant, slot: Duration) {
        let slots = (self.options.pacing_max.as_micros() / slot.as_micros().max(1)).max(1) as usize;
        for mux in &mut self.muxes {
            let profile = mux.profile();
            while let Some((mut image, mut sent)) = mux.take_front() {
                let left = image.packets() - sent;
                let budget = if profile.tcp || image.packets() <= PACED_FROM {
                    left
                } else {
                    image.packets().div_ceil(slots).max(crate::transport::batch::TRAIN).min(left)
                };
                for seat in &mut self.seats {
                    let Position::Live { next_frame } = &mut seat.position else {
                        continue;
                    };
                    if seat.profile != profile || image.number() < *next_frame {
                        continue;
                    }
                    if sent == 0 {
                        seat.sink.leave_out(image.missing());
                    }
                    match send_packets(&mut seat.sink, now, &mut image, sent, budget) {
                        Sent::All => {}
                        verdict => seat.stop(verdict, &self.key),
                    }
                }
                sent += budget;
                if sent < image.packets() {
                    mux.put_front(image, sent);
                    break;
                }
                mux.recycle(image);
            }
        }
    }

    fn measure(&mut self, now: Instant) {
        let since = *self.window.since.get_or_insert(now);
        let span = now.saturating_duration_since(since).as_secs_f64();
        if span >= 1.0 {
            self.stats.fps = f64::from(self.window.frames) / span;
            self.stats.bytes_per_second = self.window.bytes as f64 / span;
            self.window.frames = 0;
            self.window.bytes = 0;
            self.window.since = Some(now);
        }
        match &self.relay {
            Some(relay) => self.stats.gop_bytes = relay.gop.bytes(),
            None => {
                self.stats.clock_jumps = self.timeline.jumps();
                self.stats.gop_bytes = self.gop.bytes();
            }
        }
    }
}

impl Relay {
    /// Puts a device's timestamp on the stream's line; true with it when its clock had jumped. A line that is there
    /// already goes on by the time that passed.
    fn stamp(&mut self, ticks: i64, now: Instant, line: Option<u64>, recording: bool) -> (u64, bool) {
        let passed = self.last_at.map_or(0, |t| now.saturating_duration_since(t).as_micros() as i64 * 9 / 100);
        let step = ticks.saturating_sub(self.last_ticks);
        let bounds = -MAX_STEP..=passed.saturating_add(MAX_STEP);
        let jumped = !recording && self.offset.is_some() && self.last_at.is_some() && !bounds.contains(&step);
        if jumped || self.offset.is_none() {
            let resume = line.map_or(CLOCK, |line| (line as i64).saturating_add(passed.max(LEAST_STEP)));
            self.offset = Some(resume.wrapping_sub(ticks));
        }
        (self.last_ticks, self.last_at) = (ticks, Some(now));
        (ticks.wrapping_add(self.offset.unwrap_or(0)) as u64, jumped)
    }
}

fn feed_side(side: &mut Assembler, burst: &Burst) {
    if burst.lost > 0 {
        side.lose(burst.lost);
    }
    for (payload, marker) in burst.payloads() {
        side.payload(payload, burst.arrived);
        if marker {
            side.end_of_frame(burst.arrived);
        }
    }
}

fn prepend(prefix: &[u8], frame: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(prefix.len() + frame.len());
    out.extend_from_slice(prefix);
    out.extend_from_slice(frame);
    out.freeze()
}

fn send_packets(sink: &mut Sink, now: Instant, image: &mut Image, from: usize, count: usize) -> Sent {
    let block = image.block();
    let bytes = image.bytes_mut();
    let end = ((from + count) * block).min(bytes.len());
    sink.send(now, &mut bytes[from * block..end], block)
}
