//! A stream in virtual time with receivers on loopback.
//! Invariants: time moves in slots of 2 ms; frames are pushed when due; every receiver is read after every slot, so that
//! what it got in which slot is known.

use crate::media::frame::{Frame, FrameKind, StreamKey, Tracks};
use crate::media::sink::{SinkEnd, SinkEvent, SinkId, SinkMeters, SinkSpec, SinkTransport};
use crate::media::stream::{Stream, StreamNote};
use crate::media::{AudioCodec, MediaOptions, VideoCodec};
use crate::proto::ps::{DemuxConfig, Demuxer, Unit};
use crate::proto::rtp::{Frame as Framed, Framer, Packet};
use crate::sim::clip::{self, AudioClip, Clip};
use bytes::Bytes;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

pub const SLOT: Duration = Duration::from_millis(2);
/// Wall time of the virtual beginning.
pub const UNIX: Duration = Duration::from_secs(1_700_000_000);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
pub fn some_instant() -> Instant {
    Instant::now()
}

pub fn key() -> StreamKey {
    StreamKey::live("34020000001320000001", 0)
}

pub fn tracks(video: &Clip, audio: Option<&AudioClip>) -> Tracks {
    Tracks {
        video: match video.codec() {
            clip::VideoCodec::H264 => VideoCodec::H264,
            clip::VideoCodec::H265 => VideoCodec::H265,
        },
        audio: audio.map(|a| match a.codec() {
            clip::AudioCodec::Pcma => AudioCodec::G711A,
            clip::AudioCodec::Pcmu => AudioCodec::G711U,
            clip::AudioCodec::Aac => AudioCodec::Aac,
        }),
        video_clock: 90_000,
        audio_clock: audio.map_or(8000, AudioClip::clock),
        size: None,
    }
}

pub fn picture(key: bool, ticks: i64, data: Bytes, arrived: Instant) -> Frame {
    Frame { kind: FrameKind::Video { key }, ticks, data, loss: 0, arrived }
}

/// A clip's unit blown up to `length` bytes; its first NAL units stay what they are.
pub fn fat(clip: &Clip, n: u64, length: usize) -> Bytes {
    let unit = &clip.looped(n).0.bytes;
    let mut data = unit.to_vec();
    data.extend((data.len()..length).map(|i| 0x80 | (i as u8 ^ n as u8)));
    data.into()
}

/// Plays clips into a stream.
pub struct Player {
    pub video: Arc<Clip>,
    pub audio: Option<Arc<AudioClip>>,
    /// When its clock began.
    pub began: Instant,
    /// Added to the clock, 90 kHz.
    pub jump: i64,
    /// The next ones.
    pub pictures: u64,
    pub sounds: u64,
    /// Pictures are blown up to this: key pictures, others.
    pub fat: Option<(usize, usize)>,
    pub on: bool,
}

pub struct Bed {
    pub stream: Stream,
    pub now: Instant,
    pub base: Instant,
    pub player: Player,
    slots: u64,
    next_id: u64,
    events: mpsc::Receiver<(SinkId, SinkEvent)>,
    pub events_tx: mpsc::Sender<(SinkId, SinkEvent)>,
    /// Everything that was told, and when.
    pub told: Vec<(SinkId, SinkEvent, Instant)>,
    pub notes: Vec<StreamNote>,
    pub receivers: Vec<Receiver>,
}

/// A sink on the stream's side.
pub struct Handle {
    pub id: SinkId,
    pub alive: Arc<AtomicBool>,
    pub meters: SinkMeters,
    pub ssrc: u32,
}

impl Handle {
    pub fn drop_lease(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }
}

pub enum Wire {
    Udp { rtp: UdpSocket, rtcp: UdpSocket },
    Tcp { stream: TcpStream, framer: Box<Framer> },
}

/// A receiver, with every packet it got.
pub struct Receiver {
    pub wire: Wire,
    pub packets: Vec<(Instant, Vec<u8>)>,
    pub reports: Vec<(Instant, Vec<u8>)>,
    pub closed: bool,
    /// Stops reading.
    pub asleep: bool,
}

impl Receiver {
    /// RTP on an even port, RTCP on the one above.
    pub fn udp() -> Receiver {
        for _ in 0..100 {
            let rtp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let port = rtp.local_addr().unwrap().port();
            let Some(Ok(rtcp)) = port.checked_add(1).map(|p| UdpSocket::bind(("127.0.0.1", p))) else { continue };
            rtp.set_nonblocking(true).unwrap();
            rtcp.set_nonblocking(true).unwrap();
            let _ = socket2::SockRef::from(&rtp).set_recv_buffer_size(4 << 20);
            return Receiver::new(Wire::Udp { rtp, rtcp });
        }
        panic!("no pair of ports is free");
    }

    pub fn tcp(stream: TcpStream) -> Receiver {
        stream.set_nonblocking(true).unwrap();
        Receiver::new(Wire::Tcp { stream, framer: Box::default() })
    }

    fn new(wire: Wire) -> Receiver {
        Receiver { wire, packets: Vec::new(), reports: Vec::new(), closed: false, asleep: false }
    }

    pub fn addr(&self) -> SocketAddr {
        match &self.wire {
            Wire::Udp { rtp, .. } => rtp.local_addr().unwrap(),
            Wire::Tcp { stream, .. } => stream.local_addr().unwrap(),
        }
    }

    /// Takes what is there.
    pub fn read(&mut self, now: Instant) {
        if self.asleep {
            return;
        }
        let mut buf = vec![0u8; 64 * 1024];
        match &mut self.wire {
            Wire::Udp { rtp, rtcp } => {
                while let Ok(n) = rtp.recv(&mut buf) {
                    self.packets.push((now, buf[..n].to_vec()));
                }
                while let Ok(n) = rtcp.recv(&mut buf) {
                    self.reports.push((now, buf[..n].to_vec()));
                }
            }
            Wire::Tcp { stream, framer } => loop {
                match stream.read(framer.space()) {
                    Ok(0) => {
                        self.closed = true;
                        break;
                    }
                    Ok(n) => framer.commit(n),
                    Err(_) => break,
                }
                while let Some(frame) = framer.pull().expect("the framing is right") {
                    let Framed::Rtp(bytes) = frame else { panic!("RTP alone goes over TCP") };
                    self.packets.push((now, bytes.to_vec()));
                }
                assert_eq!(framer.counters().garbage_bytes, 0);
            },
        }
    }

    /// The packets so far, checked; see [`check`].
    pub fn checked(&self) -> Checked {
        check(&self.packets)
    }
}

impl Bed {
    pub fn new(video: Arc<Clip>, audio: Option<Arc<AudioClip>>) -> Bed {
        Bed::with(video, audio, MediaOptions::default())
    }

    pub fn with(video: Arc<Clip>, audio: Option<Arc<AudioClip>>, options: MediaOptions) -> Bed {
        let base = some_instant();
        let (events_tx, events) = mpsc::channel(64);
        Bed::of(key(), video, audio, options, base, events_tx, events)
    }

    /// A recording played for one viewer.
    pub fn recording(video: Arc<Clip>) -> Bed {
        let (events_tx, events) = mpsc::channel(64);
        let key = StreamKey { session: 1, ..key() };
        Bed::of(key, video, None, MediaOptions::default(), some_instant(), events_tx, events)
    }

    fn of(
        key: StreamKey,
        video: Arc<Clip>,
        audio: Option<Arc<AudioClip>>,
        options: MediaOptions,
        base: Instant,
        events_tx: mpsc::Sender<(SinkId, SinkEvent)>,
        events: mpsc::Receiver<(SinkId, SinkEvent)>,
    ) -> Bed {
        let mut stream = Stream::new(key, options);
        stream.source_started(tracks(&video, audio.as_deref()), base);
        let player = Player { video, audio, began: base, jump: 0, pictures: 0, sounds: 0, fat: None, on: true };
        Bed {
            stream,
            now: base,
            base,
            player,
            slots: 0,
            next_id: 1,
            events,
            events_tx,
            told: Vec::new(),
            notes: Vec::new(),
            receivers: Vec::new(),
        }
    }

    pub fn add(&mut self, transport: SinkTransport, payload_max: u16) -> Handle {
        let (id, alive, meters) = (SinkId(self.next_id), Arc::new(AtomicBool::new(true)), SinkMeters::default());
        self.next_id += 1;
        let ssrc = 1000 + id.0 as u32;
        let spec = SinkSpec {
            ssrc,
            first_sequence: 65_500,
            payload_max,
            payload_type: 96,
            transport,
            port: None,
            cname: "34020000002000000001".into(),
            meters: meters.clone(),
            events: self.events_tx.clone(),
        };
        self.stream.add_sink(id, spec, Arc::clone(&alive));
        Handle { id, alive, meters, ssrc }
    }

    /// A UDP sink and its receiver's index.
    pub fn add_udp(&mut self) -> (Handle, usize) {
        let receiver = Receiver::udp();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let rtcp = Some(UdpSocket::bind("127.0.0.1:0").unwrap());
        let handle = self.add(SinkTransport::Udp { socket, rtcp, destination: receiver.addr() }, 1400);
        self.receivers.push(receiver);
        (handle, self.receivers.len() - 1)
    }

    /// A TCP sink to which the receiver has connected.
    pub fn add_tcp(&mut self) -> (Handle, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let handle = self.add(SinkTransport::TcpPassive { listener, from: vec![to.ip()] }, 1400);
        let receiver = Receiver::tcp(TcpStream::connect(to).unwrap());
        self.receivers.push(receiver);
        (handle, self.receivers.len() - 1)
    }

    pub fn start(&mut self, handle: &Handle) {
        self.stream.start_sink(handle.id, self.now);
    }

    /// The camera comes back with its clock at zero; what it plays begins with a key picture.
    pub fn restart(&mut self, video: Arc<Clip>, audio: Option<Arc<AudioClip>>) {
        self.stream.source_started(tracks(&video, audio.as_deref()), self.now);
        let fat = self.player.fat;
        self.player = Player { video, audio, began: self.now, jump: 0, pictures: 0, sounds: 0, fat, on: true };
    }

    fn push_due(&mut self) {
        let p = &mut self.player;
        while p.began + p.video.due(p.pictures) <= self.now {
            let (unit, ticks) = p.video.looped(p.pictures);
            let data = match p.fat {
                Some((key, other)) => fat(&p.video, p.pictures, if unit.key { key } else { other }),
                None => unit.bytes.clone(),
            };
            if p.on {
                self.stream.push(picture(unit.key, ticks as i64 + p.jump, data, self.now));
            }
            p.pictures += 1;
        }
        let Some(audio) = &p.audio else { return };
        while p.began + audio.due(p.sounds) <= self.now {
            let (sound, ticks) = audio.looped(p.sounds);
            let jump = p.jump * i64::from(audio.clock()) / 90_000;
            let frame = Frame {
                kind: FrameKind::Audio,
                ticks: ticks as i64 + jump,
                data: sound.bytes.clone(),
                loss: 0,
                arrived: self.now,
            };
            if p.on {
                self.stream.push(frame);
            }
            p.sounds += 1;
        }
    }

    /// One slot: what is due, a tick, and all receivers are read.
    pub fn slot(&mut self) {
        self.push_due();
        self.tick();
        self.now += SLOT;
    }

    pub fn tick(&mut self) {
        let slow = self.slots.is_multiple_of(250);
        self.slots += 1;
        self.stream.tick(self.now, SLOT, slow, UNIX + (self.now - self.base));
        while let Some(note) = self.stream.pop_note() {
            self.notes.push(note);
        }
        while let Ok((id, event)) = self.events.try_recv() {
            self.told.push((id, event, self.now));
        }
        for receiver in &mut self.receivers {
            receiver.read(self.now);
        }
    }

    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.slot();
        }
    }

    /// Reads a TCP receiver until it has as many packets as `other`; the kernel may need a moment.
    pub fn settle(&mut self, receiver: usize, packets: usize) {
        let give_up = some_instant() + Duration::from_secs(10);
        while self.receivers[receiver].packets.len() < packets && some_instant() < give_up {
            self.stream.tick(self.now, SLOT, false, UNIX);
            self.receivers[receiver].read(self.now);
            std::thread::yield_now();
        }
        assert_eq!(self.receivers[receiver].packets.len(), packets);
    }

    /// Why the sink ended; asserts that it was told once.
    pub fn end_of(&self, id: SinkId) -> Option<(SinkEnd, Instant)> {
        let mut ends = self.told.iter().filter_map(|(sink, event, at)| match event {
            SinkEvent::Ended(why) if *sink == id => Some((*why, *at)),
            _ => None,
        });
        let end = ends.next();
        assert_eq!(ends.next(), None, "an end is told once");
        end
    }

    pub fn was_told(&self, id: SinkId, event: &SinkEvent) -> bool {
        self.told.iter().any(|(sink, e, _)| *sink == id && e == event)
    }
}

/// One frame on the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct WireFrame {
    pub timestamp: u32,
    pub packets: usize,
    pub first: Instant,
    pub last: Instant,
    pub scr: u64,
    pub mux_rate: u32,
    pub rate_bound: Option<u32>,
    /// A stream map with this version is in it.
    pub map: Option<u8>,
    pub bytes: usize,
}

/// What packets hold.
#[derive(Debug)]
pub struct Checked {
    pub frames: Vec<WireFrame>,
    pub units: Vec<Unit>,
    pub ssrc: u32,
    pub payload: usize,
    pub last_sequence: u16,
}

impl Checked {
    pub fn pictures(&self) -> Vec<(bool, Bytes)> {
        let video = |u: &Unit| match u {
            Unit::Video { key, annexb, .. } => Some((*key, annexb.clone())),
            _ => None,
        };
        self.units.iter().filter_map(video).collect()
    }

    /// PTS and DTS of the pictures.
    pub fn times(&self) -> Vec<(u64, u64)> {
        let video = |u: &Unit| match u {
            Unit::Video { pts, dts, .. } => Some((*pts, *dts)),
            _ => None,
        };
        self.units.iter().filter_map(video).collect()
    }

    pub fn sounds(&self) -> Vec<(u64, Bytes)> {
        let audio = |u: &Unit| match u {
            Unit::Audio { pts, payload, .. } => Some((*pts, payload.clone())),
            _ => None,
        };
        self.units.iter().filter_map(audio).collect()
    }

    /// The pictures are the clip's from the `first`-th one on, none missing, none altered.
    pub fn expect_clip(&self, clip: &Clip, first: u64) {
        let pictures = self.pictures();
        assert!(!pictures.is_empty());
        for (i, (key, data)) in pictures.iter().enumerate() {
            let unit = clip.looped(first + i as u64).0;
            assert!(*data == unit.bytes && *key == unit.key, "picture {i} is {:?}", clip.find(data));
        }
    }
}

/// Reads packets as a receiver does and asserts what holds of all we send: one SSRC, sequence numbers without a gap,
/// one timestamp a frame with the marker on its last packet, timestamps that rise, an SCR that does not go back and does
/// not pass the DTS, a mux rate that changes at key frames only and is 1.5 times the rate there has been.
pub fn check(packets: &[(Instant, Vec<u8>)]) -> Checked {
    let mut demuxer = Demuxer::new(DemuxConfig::default());
    let mut checked = Checked { frames: Vec::new(), units: Vec::new(), ssrc: 0, payload: 0, last_sequence: 0 };
    let mut frame: Option<WireFrame> = None;
    let mut start = Vec::new();
    for (i, (at, bytes)) in packets.iter().enumerate() {
        let packet = Packet::parse(bytes).unwrap();
        assert_eq!(packet.payload_type, 96);
        if i == 0 {
            checked.ssrc = packet.ssrc;
        } else {
            assert_eq!(packet.sequence, checked.last_sequence.wrapping_add(1), "packet {i}");
        }
        checked.last_sequence = packet.sequence;
        assert_eq!(packet.ssrc, checked.ssrc);
        checked.payload += packet.payload.len();
        let f = frame.get_or_insert_with(|| {
            start = packet.payload.to_vec();
            WireFrame {
                timestamp: packet.timestamp,
                packets: 0,
                first: *at,
                last: *at,
                scr: 0,
                mux_rate: 0,
                rate_bound: None,
                map: None,
                bytes: 0,
            }
        });
        assert_eq!(packet.timestamp, f.timestamp, "packet {i}");
        f.packets += 1;
        f.last = *at;
        f.bytes += bytes.len();
        demuxer.push(packet.payload);
        if packet.marker {
            demuxer.end_of_frame();
            let mut f = frame.take().unwrap();
            read_pack(&start, &mut f);
            if let Some(before) = checked.frames.last() {
                assert!(f.timestamp.wrapping_sub(before.timestamp) as i32 > 0, "timestamps rise");
                assert!(f.scr >= before.scr, "the SCR does not go back");
                assert!(f.map.is_some() || f.mux_rate == before.mux_rate, "the mux rate changes at key frames");
            }
            checked.frames.push(f);
        }
        while let Some(unit) = demuxer.pull() {
            assert_ne!(unit, Unit::Gap);
            checked.units.push(unit);
        }
    }
    assert!(frame.is_none(), "the last frame is not whole");
    let dts: Vec<u64> = checked.times().iter().map(|t| t.1).collect();
    assert!(dts.windows(2).all(|w| w[0] < w[1]), "DTS rises");
    assert_eq!(demuxer.counters().frames_dropped, 0);
    checked
}

fn read_pack(b: &[u8], frame: &mut WireFrame) {
    assert_eq!(b[..4], [0, 0, 1, 0xBA], "a frame begins with a pack");
    let n = |i: usize| u64::from(b[i]);
    frame.scr = (n(4) >> 3 & 7) << 30
        | (n(4) & 3) << 28
        | n(5) << 20
        | (n(6) >> 3) << 15
        | (n(6) & 3) << 13
        | n(7) << 5
        | n(8) >> 3;
    frame.mux_rate = u32::from_be_bytes([0, b[10], b[11], b[12]]) >> 2;
    if b.get(14..18) == Some(&[0, 0, 1, 0xBB]) {
        frame.rate_bound = Some(u32::from_be_bytes([0, b[20], b[21], b[22]]) >> 1 & 0x3F_FFFF);
        let at = 14 + 6 + usize::from(u16::from_be_bytes([b[18], b[19]]));
        assert_eq!(b[at..at + 4], [0, 0, 1, 0xBC], "the map follows the system header");
        frame.map = Some(b[at + 6] & 0x1F);
    }
    // The picture's SCR is not later than its DTS (PTS where there is none).
    if let Some(at) = b.windows(4).take(200).position(|w| w == [0, 0, 1, 0xE0]) {
        let flags = b[at + 7];
        let field = if flags & 0x40 != 0 { at + 14 } else { at + 9 };
        let t = |i: usize| u64::from(b[field + i]);
        let dts = (t(0) >> 1 & 7) << 30 | t(1) << 22 | (t(2) >> 1) << 15 | t(3) << 7 | t(4) >> 1;
        assert!(frame.scr <= dts, "SCR {} of a picture due at {dts}", frame.scr);
    }
}
