//! What comes from a device: by an in-process path that loses, repeats and turns about packets in virtual time, and
//! over real sockets.

use super::bed::{ms, some_instant};
use crate::media::intake::{Intake, IntakeNote};
use crate::media::receive::{ReceiveEvent, ReceiveMeters, ReceiveSpec, ReceiveTransport, SsrcRule, receive};
use crate::media::worker::{FeedItem, FrameFeed};
use crate::media::{AudioCodec, Frame, FrameKind, Plane, PlanePolicy, Tracks, VideoCodec};
use crate::proto::ps::{MuxConfig, Muxer, VideoUnit};
use crate::proto::rtp::{Framing, ImageWriter, PT_PS, restamp, rtcp};
use crate::sim::clip::{self, AudioClip, Clip, ClipLibrary};
use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

pub(super) const SSRC: u32 = 0x0102_0304;
const SOON: Duration = Duration::from_secs(10);

/// One RTP packet of the device.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) due: Duration,
    pub(super) bytes: Vec<u8>,
    /// Number of its picture; None: sound.
    picture: Option<u64>,
}

/// What a device sends: pictures `range` of the clips with the sound between, PS in RTP.
pub(super) fn device(video: &Clip, audio: &AudioClip, range: std::ops::Range<u64>, sequence: &mut u16) -> Vec<Sent> {
    let codec = match video.codec() {
        clip::VideoCodec::H264 => VideoCodec::H264,
        clip::VideoCodec::H265 => VideoCodec::H265,
    };
    let sound = match audio.codec() {
        clip::AudioCodec::Pcma => AudioCodec::G711A,
        clip::AudioCodec::Pcmu => AudioCodec::G711U,
        clip::AudioCodec::Aac => AudioCodec::Aac,
    };
    let mut muxer = Muxer::new(MuxConfig { video: Some(codec), audio: Some(sound) });
    let mut sent = Vec::new();
    let mut pack =
        |picture: Option<u64>, due: Duration, timestamp: u64, write: &mut dyn FnMut(&mut ImageWriter<'_>)| {
            let mut image = BytesMut::new();
            let mut writer = ImageWriter::new(&mut image, 1400, Framing::Datagram);
            write(&mut writer);
            let shape = writer.finish(true, PT_PS, timestamp as u32);
            *sequence = restamp(&mut image, shape.block, *sequence, SSRC);
            sent.extend(image.chunks(shape.block).map(|bytes| Sent { due, bytes: bytes.to_vec(), picture }));
        };
    let from = video.due(range.start);
    let mut sounds = (0..).find(|n| audio.due(*n) >= from).unwrap();
    for n in range {
        let (unit, ticks) = video.looped(n);
        let pts = ticks + 90_000;
        pack(Some(n), video.due(n) - from, pts, &mut |writer| {
            // The clip's times are those of presentation; decoding is not later.
            let dts = pts.min(90_000 + n * 3600);
            muxer.write_video(writer, &VideoUnit { annexb: &unit.bytes, pts, dts, key: unit.key });
        });
        while audio.due(sounds) < video.due(n + 1) {
            let (frame, ticks) = audio.looped(sounds);
            let pts = ticks * 90_000 / u64::from(audio.clock()) + 90_000;
            pack(None, audio.due(sounds) - from, pts, &mut |writer| {
                muxer.write_audio(writer, &frame.bytes, pts);
            });
            sounds += 1;
        }
    }
    sent
}

/// The receiving side in virtual time.
struct Bench {
    intake: Intake,
    feed: FrameFeed,
    meters: ReceiveMeters,
    base: Instant,
    tracks: Vec<Tracks>,
    frames: Vec<Frame>,
    notes: Vec<IntakeNote>,
}

impl Bench {
    fn new(rule: SsrcRule) -> Bench {
        let (feed, meters) = (FrameFeed::default(), ReceiveMeters::default());
        let intake = Intake::new(rule, PlanePolicy::Remux, false, feed.clone(), meters.clone());
        Bench { intake, feed, meters, base: some_instant(), tracks: Vec::new(), frames: Vec::new(), notes: Vec::new() }
    }

    fn give(&mut self, bytes: &[u8], at: Duration) -> bool {
        let now = self.base + at;
        let ours = self.intake.packet(bytes, now);
        self.poll(at);
        ours
    }

    fn poll(&mut self, at: Duration) {
        self.intake.poll(self.base + at);
        self.notes.extend(std::iter::from_fn(|| self.intake.pop_note()));
        while let Some(item) = self.feed.pop() {
            match item {
                FeedItem::Started { tracks, .. } => self.tracks.push(tracks),
                FeedItem::Frame(frame) => self.frames.push(frame),
                FeedItem::Burst(_) => panic!("nothing is relayed here"),
            }
        }
    }

    fn pictures(&self) -> Vec<&Frame> {
        self.frames.iter().filter(|f| f.kind != FrameKind::Audio).collect()
    }

    fn sounds(&self) -> usize {
        self.frames.len() - self.pictures().len()
    }

    fn counts(&self) -> [u64; 6] {
        let m = &self.meters;
        [&m.packets, &m.lost, &m.alien, &m.duplicates, &m.late, &m.resyncs].map(|c| c.get())
    }
}

fn clips() -> [(Arc<Clip>, Arc<AudioClip>); 3] {
    [
        (ClipLibrary::h264(), ClipLibrary::pcma()),
        (ClipLibrary::h265(), ClipLibrary::aac()),
        (ClipLibrary::h264_bframes(), ClipLibrary::pcmu()),
    ]
}

/// Those pictures, byte for byte and with their times.
fn expect(bench: &Bench, clip: &Clip, expected: impl IntoIterator<Item = u64>) {
    let expected: Vec<u64> = expected.into_iter().collect();
    let pictures = bench.pictures();
    assert_eq!(pictures.len(), expected.len());
    for (frame, n) in pictures.iter().zip(expected) {
        let (unit, ticks) = clip.looped(n);
        assert!(frame.data == unit.bytes, "picture {n} is {:?}", clip.find(&frame.data));
        assert_eq!((frame.kind, frame.ticks), (FrameKind::Video { key: unit.key }, ticks as i64 + 90_000));
    }
}

#[test]
fn a_clean_way_gives_every_frame_when_it_is_whole() {
    for (video, audio) in clips() {
        let mut bench = Bench::new(SsrcRule::Strict(SSRC));
        let sent = device(&video, &audio, 0..150, &mut 65_000);
        let mut whole = Vec::new();
        for packet in &sent {
            bench.give(&packet.bytes, packet.due);
            whole.push((packet.picture, packet.bytes[1] & 0x80 != 0, bench.pictures().len()));
        }
        expect(&bench, &video, 0..150);
        assert!(bench.sounds() >= 150 * 40 / 64, "{}", bench.sounds());
        // A picture is there with its last packet, not with the next one (but for the first, which waits for sound).
        for (picture, marker, there) in whole.iter().skip(40) {
            if let (Some(n), true) = (picture, marker) {
                assert_eq!(*there as u64, n + 1);
            }
        }
        assert_eq!(bench.tracks.len(), 1);
        assert!(bench.tracks[0].audio.is_some() && bench.tracks[0].size == Some((640, 360)));
        assert_eq!(bench.counts(), [sent.len() as u64, 0, 0, 0, 0, 0]);
        assert_eq!(bench.notes.len(), 2);
        assert!(matches!(bench.notes[..], [IntakeNote::FirstPacket, IntakeNote::Playing(_, Plane::Remux)]));
    }
}

#[test]
fn what_is_lost_is_counted_and_what_comes_is_exact() {
    for (percent, seed) in [(1, 1), (5, 2), (20, 3), (1, 4), (5, 5)] {
        for (video, audio) in clips() {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut bench = Bench::new(SsrcRule::Strict(SSRC));
            let sent = device(&video, &audio, 0..500, &mut 60_000);
            // The first group comes whole, so that sound is known, and the last packet, so that all loss shows.
            let lost: Vec<bool> =
                (0..sent.len()).map(|i| i > 100 && i + 1 < sent.len() && rng.random_range(0..100) < percent).collect();
            // A picture is of use when nothing was lost since its group began.
            let (mut expected, mut good) = (Vec::new(), false);
            for (i, packet) in sent.iter().enumerate() {
                let begins = packet.picture.is_some() && (i == 0 || sent[i - 1].picture != packet.picture);
                good |= begins && packet.picture.is_some_and(|n| video.looped(n).0.key);
                good &= !lost[i];
                if let Some(n) = packet.picture.filter(|_| good && packet.bytes[1] & 0x80 != 0) {
                    expected.push(n);
                }
            }
            for (packet, _) in sent.iter().zip(&lost).filter(|(_, lost)| !**lost) {
                bench.give(&packet.bytes, packet.due);
            }
            let end = sent.last().unwrap().due;
            (0..50).for_each(|i| bench.poll(end + ms(20 * i)));
            expect(&bench, &video, expected);
            let injected = lost.iter().filter(|lost| **lost).count() as u64;
            assert_eq!(bench.counts(), [sent.len() as u64 - injected, injected, 0, 0, 0, 0], "{percent} %");
            let told: u64 = bench.frames.iter().map(|f| u64::from(f.loss)).sum();
            assert!(told <= injected && told + 200 > injected, "{told} of {injected}");
        }
    }
}

#[test]
fn disorder_and_repetition_do_not_show() {
    let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
    for seed in 0..5 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bench = Bench::new(SsrcRule::Strict(SSRC));
        let mut sent = device(&video, &audio, 0..200, &mut 64_000);
        let total = sent.len();
        // Neighbours change places, within what arrives in 100 ms. The first one stays: its group begins there.
        let due: Vec<Duration> = sent.iter().map(|p| p.due).collect();
        for block in sent[1..].chunks_mut(10) {
            for i in 0..block.len() {
                let j = rng.random_range(0..block.len());
                block.swap(i, j);
            }
        }
        let mut repeated = 0;
        for (packet, due) in sent.iter().zip(due) {
            bench.give(&packet.bytes, due);
            if rng.random_range(0..10) == 0 {
                repeated += 1;
                bench.give(&packet.bytes, due);
            }
        }
        expect(&bench, &video, 0..200);
        assert_eq!(bench.counts(), [total as u64 + repeated, 0, 0, repeated, 0, 0]);
        assert!(bench.meters.reordered.get() > 50);
    }
}

fn with_ssrc(packet: &Sent, ssrc: u32) -> Vec<u8> {
    let mut bytes = packet.bytes.clone();
    bytes[8..12].copy_from_slice(&ssrc.to_be_bytes());
    bytes
}

#[test]
fn alien_packets_are_dropped_and_counted() {
    let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
    let sent = device(&video, &audio, 0..50, &mut 7);
    for rule in [SsrcRule::Strict(SSRC), SsrcRule::Learn(SSRC), SsrcRule::Learn(99)] {
        let own = if rule == SsrcRule::Learn(99) { 77 } else { SSRC };
        let mut bench = Bench::new(rule);
        let mut aliens = 0;
        for (i, packet) in sent.iter().enumerate() {
            bench.give(&with_ssrc(packet, own), packet.due);
            if i >= 10 && i % 3 == 0 {
                aliens += 1;
                assert!(!bench.give(&with_ssrc(packet, 99 + i as u32), packet.due));
            }
        }
        assert_eq!(bench.intake.ssrc(), Some(own));
        expect(&bench, &video, 0..50);
        assert_eq!(bench.counts()[..3], [sent.len() as u64, 0, aliens], "{rule:?}");
    }
    // Strict is strict.
    let mut bench = Bench::new(SsrcRule::Strict(1));
    sent.iter().for_each(|p| _ = bench.give(&p.bytes, p.due));
    assert_eq!(bench.counts(), [0, 0, sent.len() as u64, 0, 0, 0]);
    assert!(bench.frames.is_empty() && bench.notes.is_empty());
    // Scattered packets of strangers do not become the source, the device still does.
    let mut bench = Bench::new(SsrcRule::Learn(1));
    for (i, packet) in sent.iter().enumerate() {
        if i < 12 {
            bench.give(&with_ssrc(packet, 1000 + i as u32 % 4), packet.due);
        } else {
            bench.give(&packet.bytes, packet.due);
        }
    }
    assert_eq!((bench.intake.ssrc(), bench.meters.alien.get()), (Some(SSRC), 12));
}

#[test]
fn after_thirty_seconds_of_nothing_it_goes_on_with_the_next_key_frame() {
    let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
    for restart in [false, true] {
        let mut bench = Bench::new(SsrcRule::Strict(SSRC));
        let mut sequence = 100;
        let before = device(&video, &audio, 0..35, &mut sequence);
        before.iter().for_each(|p| _ = bench.give(&p.bytes, p.due));
        let cut = before.last().unwrap().due;
        for i in 0..300 {
            bench.poll(cut + ms(100 * i));
        }
        assert_eq!(bench.pictures().len(), 35);
        // The cut is in mid-group; the device counts on, or anew.
        let mut sequence = if restart { 40_000 } else { sequence.wrapping_add(1000) };
        for packet in device(&video, &audio, 785..830, &mut sequence) {
            bench.give(&packet.bytes, cut + ms(30_000) + packet.due);
        }
        expect(&bench, &video, (0..35).chain(800..830));
        assert_eq!(bench.meters.lost.get(), if restart { 0 } else { 1000 });
        assert_eq!(bench.tracks.len(), 1, "the same tracks are not announced again");
    }
}

#[test]
fn an_hour_of_a_bad_way_holds_no_more_than_its_windows() {
    // Every packet of a group but its first is lost, or numbers jump about: nothing piles up.
    let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
    let mut rng = StdRng::seed_from_u64(9);
    let mut bench = Bench::new(SsrcRule::Learn(5));
    let sent = device(&video, &audio, 0..50, &mut 7);
    for round in 0..200u64 {
        for packet in &sent {
            let mut bytes = with_ssrc(packet, rng.random_range(0..3));
            bytes[2..4].copy_from_slice(&rng.random::<u16>().to_be_bytes());
            bytes.truncate(rng.random_range(0..bytes.len()));
            bench.intake.packet(&bytes, bench.base + ms(round * 20));
            bench.poll(ms(round * 20));
        }
        bench.frames.clear();
    }
    assert!(bench.meters.alien.get() > 10_000);
}

#[test]
fn a_device_without_markers_is_not_waited_for_by_its_next_frame() {
    let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
    let mut bench = Bench::new(SsrcRule::Strict(SSRC));
    let mut sent = device(&video, &audio, 0..75, &mut 7);
    sent.iter_mut().for_each(|p| p.bytes[1] &= 0x7F);
    let mut late = 0;
    for (i, packet) in sent.iter().enumerate() {
        bench.give(&packet.bytes, packet.due);
        if sent.get(i + 1).is_some_and(|next| next.due > packet.due) {
            bench.poll(packet.due + ms(8));
            late += u64::from(packet.picture.is_some_and(|n| n > 25 && bench.pictures().len() as u64 != n + 1));
        }
    }
    assert_eq!(late, 0);
    expect(&bench, &video, 0..75);
}

// ---- over sockets ----

struct Running {
    feed: FrameFeed,
    meters: ReceiveMeters,
    events: mpsc::Receiver<(u64, ReceiveEvent)>,
    task: tokio::task::JoinHandle<()>,
    frames: Vec<Frame>,
}

impl Running {
    /// On the current LocalSet.
    fn start(transport: ReceiveTransport, session: bool, limits: [Duration; 2]) -> Running {
        let (feed, meters) = (FrameFeed::default(), ReceiveMeters::default());
        let (tx, events) = mpsc::channel(8);
        let spec = ReceiveSpec {
            transport,
            port: None,
            ssrc: SsrcRule::Learn(SSRC),
            plane: PlanePolicy::Remux,
            session,
            first_packet_limit: limits[0],
            silence_limit: limits[1],
            meters: meters.clone(),
            events: tx,
            token: 42,
        };
        let task = tokio::task::spawn_local(receive(spec, feed.clone()));
        Running { feed, meters, events, task, frames: Vec::new() }
    }

    async fn event(&mut self) -> ReceiveEvent {
        let (token, event) = tokio::time::timeout(SOON, self.events.recv()).await.expect("it is told").unwrap();
        assert_eq!(token, 42);
        event
    }

    async fn pictures(&mut self, count: usize) -> Vec<Frame> {
        let wait = async {
            loop {
                while let Some(item) = self.feed.pop() {
                    if let FeedItem::Frame(frame) = item {
                        self.frames.extend((frame.kind != FrameKind::Audio).then_some(frame));
                    }
                }
                if self.frames.len() >= count {
                    return;
                }
                tokio::time::sleep(ms(1)).await;
            }
        };
        let done = tokio::time::timeout(SOON, wait).await;
        assert!(done.is_ok(), "{} of {count} pictures came", self.frames.len());
        std::mem::take(&mut self.frames)
    }
}

fn same(frames: &[Frame], clip: &Clip, from: u64) {
    for (i, frame) in frames.iter().enumerate() {
        assert!(frame.data == clip.looped(from + i as u64).0.bytes, "picture {i} is {:?}", clip.find(&frame.data));
    }
}

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn loopback() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

/// A pair of sockets on neighbouring ports.
fn pair() -> (UdpSocket, UdpSocket) {
    for _ in 0..100 {
        let rtp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let Some(port) = rtp.local_addr().unwrap().port().checked_add(1) else { continue };
        if let Ok(rtcp) = UdpSocket::bind(("127.0.0.1", port)) {
            return (rtp, rtcp);
        }
    }
    panic!("no pair of ports is free");
}

#[test]
fn over_udp_with_reports_answered_to_the_device_alone() {
    local(async {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        let (rtp, rtcp_socket) = pair();
        let (to, reports_to) = (rtp.local_addr().unwrap(), rtcp_socket.local_addr().unwrap());
        let transport = ReceiveTransport::Udp { rtp, rtcp: Some(rtcp_socket), from: vec![loopback()] };
        let mut running = Running::start(transport, false, [SOON, SOON]);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own_rtcp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let stranger = tokio::net::UdpSocket::bind("127.0.0.2:0").await.unwrap();
        let info = rtcp::SentStream { ssrc: SSRC, unix: SOON, rtp_timestamp: 5, packets: 1, octets: 1 };
        let mut report = [0; rtcp::MAX_COMPOUND];
        let length = rtcp::write_sender_report(&mut report, &info, "device").unwrap();
        let sent = device(&video, &audio, 0..40, &mut 9);
        for (i, packet) in sent.iter().enumerate() {
            socket.send_to(&packet.bytes, to).unwrap();
            if i == 5 {
                own_rtcp.send_to(&report[..length], reports_to).await.unwrap();
                stranger.send_to(&report[..length], reports_to).await.unwrap();
                stranger.send_to(&packet.bytes, to).await.unwrap();
            }
            if i % 50 == 0 {
                tokio::time::sleep(ms(2)).await;
            }
        }
        same(&running.pictures(40).await, &video, 0);
        assert!(matches!(running.event().await, ReceiveEvent::FirstPacket(_)));
        let ReceiveEvent::Playing { tracks, plane, ssrc } = running.event().await else { panic!("playing") };
        assert_eq!((tracks.audio, plane, ssrc), (Some(AudioCodec::G711A), Plane::Remux, SSRC));
        let mut answer = [0; 1500];
        let (n, from) = tokio::time::timeout(SOON, own_rtcp.recv_from(&mut answer)).await.expect("answered").unwrap();
        assert_eq!(from, reports_to);
        let mut blocks = Vec::new();
        rtcp::read(&answer[..n], |r| blocks.push(r));
        assert!(matches!(blocks[0], rtcp::Report::Block { source: SSRC, cumulative_lost: 0, .. }), "{blocks:?}");
        assert!(stranger.try_recv(&mut answer).is_err(), "no third party is answered");
        assert!(running.meters.packets.get() + 2 >= sent.len() as u64);
        assert_eq!((running.meters.lost.get(), running.meters.alien.get()), (0, 1));
        running.task.abort();
    });
}

/// Writes packets as RFC 4571 in pieces of `piece` bytes.
async fn write_framed(stream: &mut tokio::net::TcpStream, sent: &[Sent], piece: usize) {
    let bytes: Vec<u8> =
        sent.iter().flat_map(|p| [&(p.bytes.len() as u16).to_be_bytes()[..], &p.bytes].concat()).collect();
    stream.set_nodelay(true).unwrap();
    for piece in bytes.chunks(piece) {
        stream.write_all(piece).await.unwrap();
        if piece.len() < 1000 {
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn over_tcp_whichever_side_connects_cut_anywhere() {
    local(async {
        let (video, audio) = (ClipLibrary::h265(), ClipLibrary::aac());
        for (active, piece) in [(false, 1), (false, 1399), (true, 3), (true, 77), (false, 20_001), (true, 1413)] {
            let count = if piece < 10 { 26 } else { 60 };
            let sent = device(&video, &audio, 0..count, &mut 65_500);
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let to = listener.local_addr().unwrap();
            let (mut running, mut stream) = if active {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let local = SocketAddr::new(loopback(), 0);
                let running = Running::start(ReceiveTransport::TcpActive { local, to }, false, [SOON, SOON]);
                let (stream, _) = tokio::time::timeout(SOON, listener.accept()).await.unwrap().unwrap();
                (running, stream)
            } else {
                let transport = ReceiveTransport::TcpPassive { listener, from: vec![loopback()] };
                let running = Running::start(transport, false, [SOON, SOON]);
                (running, tokio::net::TcpStream::connect(to).await.unwrap())
            };
            write_framed(&mut stream, &sent, piece).await;
            same(&running.pictures(count as usize).await, &video, 0);
            // A sound may come behind the last picture.
            while (running.meters.packets.get() as usize) < sent.len() {
                tokio::time::sleep(ms(1)).await;
            }
            assert_eq!((running.meters.packets.get() as usize, running.meters.lost.get()), (sent.len(), 0));
            running.task.abort();
        }
    });
}

#[test]
fn a_device_that_connects_again_goes_on_with_its_next_key_frame() {
    local(async {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let mut running =
            Running::start(ReceiveTransport::TcpPassive { listener, from: Vec::new() }, false, [SOON, SOON]);
        let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
        let mut sent = device(&video, &audio, 0..30, &mut 3);
        write_framed(&mut stream, &sent, 5000).await;
        running.pictures(30).await;
        // A second one beside it is turned away.
        let mut second = tokio::net::TcpStream::connect(to).await.unwrap();
        let closed = tokio::time::timeout(SOON, tokio::io::AsyncReadExt::read(&mut second, &mut [0; 10])).await;
        assert!(matches!(closed, Ok(Ok(0) | Err(_))));
        // In the middle of a packet.
        sent.truncate(20);
        sent[19].bytes.truncate(500);
        stream.write_all(&[5, 0]).await.unwrap();
        drop(stream);
        tokio::time::sleep(ms(20)).await;
        let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
        write_framed(&mut stream, &device(&video, &audio, 40..60, &mut 9000), 5000).await;
        same(&running.pictures(10).await, &video, 50);
        drop(stream);
        running.event().await;
        running.event().await;
        assert!(matches!(running.event().await, ReceiveEvent::Ended(f) if f.reason == "closed"));
    });
}

#[test]
fn silence_ends_a_live_source_and_not_a_recording() {
    local(async {
        let limits = [ms(300), ms(300)];
        let (rtp, _) = pair();
        let mut nothing = Running::start(ReceiveTransport::Udp { rtp, rtcp: None, from: vec![] }, false, limits);
        let (rtp, _) = pair();
        let to = rtp.local_addr().unwrap();
        let mut live = Running::start(ReceiveTransport::Udp { rtp, rtcp: None, from: vec![] }, false, limits);
        let (rtp, _) = pair();
        let recording_to = rtp.local_addr().unwrap();
        let mut recording = Running::start(ReceiveTransport::Udp { rtp, rtcp: None, from: vec![] }, true, limits);
        let (rtp, _) = pair();
        let dull_to = rtp.local_addr().unwrap();
        let mut dull = Running::start(ReceiveTransport::Udp { rtp, rtcp: None, from: vec![] }, false, limits);
        let local = SocketAddr::new(loopback(), 0);
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut refused = Running::start(ReceiveTransport::TcpActive { local, to: gone }, false, [SOON, SOON]);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        for packet in device(&video, &audio, 0..5, &mut 3) {
            socket.send_to(&packet.bytes, to).unwrap();
            let mut noise = packet.bytes;
            noise[12..].fill(7);
            socket.send_to(&noise, dull_to).unwrap();
        }
        assert!(matches!(nothing.event().await, ReceiveEvent::Ended(f) if f.reason == "no_media"));
        live.event().await;
        live.event().await;
        assert!(matches!(live.event().await, ReceiveEvent::Ended(f) if f.reason == "stalled"));
        dull.event().await;
        let ReceiveEvent::Ended(failure) = dull.event().await else { panic!("ended") };
        assert!(failure.reason == "no_video" && failure.text.contains("no program stream"), "{failure:?}");
        // The device sends when it is told to, and pauses.
        assert!(recording.events.try_recv().is_err());
        for packet in device(&video, &audio, 0..5, &mut 3) {
            socket.send_to(&packet.bytes, recording_to).unwrap();
        }
        same(&recording.pictures(5).await, &video, 0);
        tokio::time::sleep(ms(700)).await;
        recording.event().await;
        recording.event().await;
        assert!(recording.events.try_recv().is_err() && !recording.task.is_finished());
        assert!(matches!(refused.event().await, ReceiveEvent::Ended(f) if f.reason == "unreachable"));
    });
}

// ---- the relay plane ----

mod relay {
    use super::*;
    use crate::media::sink::SinkTransport;
    use crate::media::stream::Stream;
    use crate::media::tests::bed::{Bed, Receiver, SLOT};
    use crate::proto::ps::{DemuxConfig, Demuxer, Unit};
    use crate::proto::rtp::Packet;
    use std::net::TcpListener;

    /// A device, the gateway's intake and stream, and receivers, slot by slot in virtual time.
    struct Through {
        bed: Bed,
        intake: Intake,
        feed: FrameFeed,
        sent: Vec<Sent>,
        at: usize,
        began: Instant,
        planes: Vec<(Plane, &'static str)>,
    }

    impl Through {
        fn new(policy: PlanePolicy, recording: bool, sent: Vec<Sent>) -> Through {
            let mut bed =
                if recording { Bed::recording(ClipLibrary::h264()) } else { Bed::new(ClipLibrary::h264(), None) };
            bed.stream = Stream::new(
                crate::media::StreamKey { session: u64::from(recording), ..super::super::bed::key() },
                crate::media::MediaOptions::default(),
            );
            bed.player.on = false;
            let feed = FrameFeed::default();
            let intake = Intake::new(SsrcRule::Strict(SSRC), policy, false, feed.clone(), ReceiveMeters::default());
            let began = bed.now;
            Through { bed, intake, feed, sent, at: 0, began, planes: Vec::new() }
        }

        fn run(&mut self, time: Duration) {
            let until = self.bed.now + time;
            while self.bed.now < until {
                let now = self.bed.now;
                while self.sent.get(self.at).is_some_and(|p| self.began + p.due <= now) {
                    self.intake.packet(&self.sent[self.at].bytes, now);
                    self.at += 1;
                }
                self.intake.poll(now);
                while let Some(item) = self.feed.pop() {
                    match item {
                        FeedItem::Started { tracks, plane, reason } => {
                            self.planes.push((plane, reason));
                            match plane {
                                Plane::Remux => self.bed.stream.source_started(tracks, now),
                                Plane::Relay => self.bed.stream.relay_started(tracks, now),
                            }
                        }
                        FeedItem::Frame(frame) => self.bed.stream.push(frame),
                        FeedItem::Burst(burst) => self.bed.stream.push_burst(burst),
                    }
                }
                self.bed.tick();
                self.bed.now += SLOT;
            }
        }

        /// Another device in its place: its packets begin now.
        fn restart(&mut self, sent: Vec<Sent>) {
            (self.sent, self.at, self.began) = (sent, 0, self.bed.now);
        }

        fn payloads(&self, receiver: usize) -> Vec<Vec<u8>> {
            self.bed.receivers[receiver].packets.iter().map(|(_, p)| p[12..].to_vec()).collect()
        }
    }

    fn payloads(sent: &[Sent]) -> Vec<Vec<u8>> {
        sent.iter().map(|p| p.bytes[12..].to_vec()).collect()
    }

    /// The pictures in what a receiver got are the clip's from `first` on. (Its timestamps are the device's: those of sound
    /// and picture need not rise together.)
    fn expect_pictures(receiver: &Receiver, clip: &Clip, first: u64, count: usize) {
        let mut demuxer = Demuxer::new(DemuxConfig::default());
        let mut pictures = Vec::new();
        for (_, bytes) in &receiver.packets {
            let packet = Packet::parse(bytes).unwrap();
            demuxer.push(packet.payload);
            if packet.marker {
                demuxer.end_of_frame();
            }
            while let Some(unit) = demuxer.pull() {
                match unit {
                    Unit::Video { annexb, .. } => pictures.push(annexb),
                    Unit::Audio { .. } => {}
                    Unit::Gap => panic!("nothing is missing"),
                }
            }
        }
        assert_eq!(pictures.len(), count);
        for (i, data) in pictures.iter().enumerate() {
            assert!(*data == clip.looped(first + i as u64).0.bytes, "picture {i} is {:?}", clip.find(data));
        }
    }

    fn sequences(receiver: &Receiver) -> Vec<u16> {
        receiver.packets.iter().map(|(_, p)| Packet::parse(p).unwrap().sequence).collect()
    }

    #[test]
    fn payloads_pass_as_they_came_over_udp_and_tcp() {
        for (video, audio) in clips() {
            let sent = device(&video, &audio, 0..150, &mut 65_400);
            let mut through = Through::new(PlanePolicy::Auto, false, sent.clone());
            let (udp, u) = through.bed.add_udp();
            let (tcp, t) = through.bed.add_tcp();
            through.bed.start(&udp);
            through.bed.start(&tcp);
            through.run(ms(7_000));
            assert_eq!(through.planes, [(Plane::Relay, "clean")]);
            let packets = through.bed.receivers[u].packets.len();
            through.bed.settle(t, packets);
            assert!(through.payloads(u) == payloads(&sent) && through.payloads(t) == payloads(&sent));
            expect_pictures(&through.bed.receivers[u], &video, 0, 150);
            let offset = |p: &[u8], s: &[u8]| {
                Packet::parse(p).unwrap().timestamp.wrapping_sub(Packet::parse(s).unwrap().timestamp)
            };
            for (handle, receiver) in [(&udp, u), (&tcp, t)] {
                let got = &through.bed.receivers[receiver].packets;
                let first = offset(&got[0].1, &sent[0].bytes);
                for (i, ((_, p), s)) in got.iter().zip(&sent).enumerate() {
                    let packet = Packet::parse(p).unwrap();
                    assert_eq!((packet.sequence, packet.ssrc), (65_500u16.wrapping_add(i as u16), handle.ssrc));
                    assert_eq!((packet.payload_type, p[1] & 0x80), (96, s.bytes[1] & 0x80));
                    assert_eq!(offset(p, &s.bytes), first, "distances in time are the device's");
                }
            }
            // What came in a slot left in it, once it was decided.
            let late = through.bed.receivers[u].packets.iter().zip(&sent).skip(60);
            let late = late.map(|((at, _), s)| at.saturating_duration_since(through.began + s.due)).max().unwrap();
            assert!(late <= SLOT, "{late:?}");
            let stats = through.bed.stream.stats();
            assert!((24.0..26.5).contains(&stats.fps) || stats.fps < 26.0, "{stats:?}");
            assert_eq!((stats.size, stats.lost), (Some((640, 360)), 0));
        }
    }

    #[test]
    fn joining_in_the_middle_begins_with_the_key_frame_and_misses_nothing() {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        for join in [1_010, 1_500, 1_970] {
            let sent = device(&video, &audio, 0..150, &mut 5);
            let mut through = Through::new(PlanePolicy::Auto, false, sent.clone());
            through.run(ms(join));
            let (udp, u) = through.bed.add_udp();
            let (tcp, t) = through.bed.add_tcp();
            through.bed.start(&udp);
            through.bed.start(&tcp);
            through.run(ms(7_000 - join));
            let from = sent.iter().position(|p| p.picture == Some(25)).unwrap();
            let packets = through.bed.receivers[u].packets.len();
            through.bed.settle(t, packets);
            assert!(through.payloads(u) == payloads(&sent[from..]), "joined at {join}");
            assert!(through.payloads(t) == payloads(&sent[from..]));
            expect_pictures(&through.bed.receivers[u], &video, 25, 125);
        }
    }

    #[test]
    fn what_the_device_lost_is_missing_in_the_numbers() {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        let all = device(&video, &audio, 0..150, &mut 5);
        let mut rng = StdRng::seed_from_u64(4);
        let kept: Vec<bool> = (0..all.len()).map(|i| i < 100 || rng.random_range(0..20) > 0).collect();
        let sent: Vec<Sent> = all.iter().zip(&kept).filter(|(_, k)| **k).map(|(p, _)| p.clone()).collect();
        let mut through = Through::new(PlanePolicy::Auto, false, sent.clone());
        let (udp, u) = through.bed.add_udp();
        through.bed.start(&udp);
        through.run(ms(7_000));
        let numbers = sequences(&through.bed.receivers[u]);
        let expected = (0..all.len()).filter(|i| kept[*i]).map(|i| 65_500u16.wrapping_add(i as u16));
        assert_eq!(numbers, expected.collect::<Vec<_>>());
        assert!(through.payloads(u) == payloads(&sent));
        let last = kept.iter().rposition(|k| *k).unwrap();
        assert_eq!(through.bed.stream.stats().lost as usize, kept[..last].iter().filter(|k| !**k).count());
    }

    #[test]
    fn a_device_that_starts_anew_goes_on_on_the_same_line() {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        let mut through = Through::new(PlanePolicy::Auto, false, device(&video, &audio, 0..60, &mut 5));
        let (udp, u) = through.bed.add_udp();
        through.bed.start(&udp);
        through.run(ms(5_000));
        // Its clock and its numbers begin anew, far away.
        let again = device(&video, &audio, 1_000_000..1_000_060, &mut 30_000);
        through.restart(again.clone());
        through.run(ms(3_000));
        let receiver = &through.bed.receivers[u];
        assert!(sequences(receiver).windows(2).all(|w| w[1] == w[0].wrapping_add(1)));
        assert!(through.payloads(u).ends_with(&payloads(&again)));
        let times: Vec<u32> = receiver.packets.iter().map(|(_, p)| Packet::parse(p).unwrap().timestamp).collect();
        assert!(times.windows(2).all(|w| w[1].wrapping_sub(w[0]) < 90_000 * 4));
        let told = f64::from(times.last().unwrap().wrapping_sub(times[0])) / 90_000.0;
        assert!((7.0..8.0).contains(&told), "{told} s on the wire");
        assert_eq!(through.bed.stream.stats().clock_jumps, 1);
    }

    #[test]
    fn a_sink_with_smaller_packets_is_muxed_for_anew_beside_the_relay() {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        let sent = device(&video, &audio, 0..150, &mut 5);
        let mut through = Through::new(PlanePolicy::Auto, false, sent.clone());
        let (relayed, r) = through.bed.add_udp();
        through.bed.start(&relayed);
        through.run(ms(1_500));
        let receiver = Receiver::udp();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let transport = SinkTransport::Udp { socket, rtcp: None, destination: receiver.addr() };
        let small = through.bed.add(transport, 800);
        through.bed.receivers.push(receiver);
        through.bed.start(&small);
        through.run(ms(5_500));
        assert!(through.payloads(r) == payloads(&sent));
        let receiver = &through.bed.receivers[1];
        let got = receiver.checked();
        // It begins with the cached group; the last picture may wait for its successor.
        got.expect_clip(&video, 25);
        assert_eq!(got.pictures().len(), 125);
        assert!(receiver.packets.iter().all(|(_, p)| p.len() <= 812));
        assert!(got.sounds().len() > 100, "{}", got.sounds().len());
    }

    #[test]
    fn a_recording_keeps_its_own_times_and_waits_for_its_viewer() {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        let sent = device(&video, &audio, 0..100, &mut 5);
        let mut through = Through::new(PlanePolicy::Auto, true, sent.clone());
        let (tcp, t) = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let to = listener.local_addr().unwrap();
            let handle = through.bed.add(SinkTransport::TcpPassive { listener, from: vec![to.ip()] }, 1400);
            through.bed.receivers.push(Receiver::tcp(std::net::TcpStream::connect(to).unwrap()));
            (handle, through.bed.receivers.len() - 1)
        };
        through.run(ms(3_000));
        through.bed.start(&tcp);
        through.run(ms(2_000));
        through.bed.settle(t, sent.len());
        assert!(through.payloads(t) == payloads(&sent));
        for ((_, p), s) in through.bed.receivers[t].packets.iter().zip(&sent) {
            assert_eq!(p[4..8], s.bytes[4..8], "the device's own time");
        }
    }

    #[test]
    fn what_needs_mending_is_muxed_anew() {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        let good = device(&video, &audio, 0..60, &mut 5);
        let spoil = |spoil: &dyn Fn(&mut Vec<u8>)| {
            let mut sent = good.clone();
            sent.iter_mut().for_each(|p| spoil(&mut p.bytes));
            sent
        };
        let map = |p: &[u8]| p.windows(4).position(|w| w == [0, 0, 1, 0xBC]);
        let without_marker = spoil(&|p| p[1] &= 0x7F);
        let bad_crc = spoil(&|p| {
            if let Some(at) = map(p) {
                let end = at + 6 + usize::from(p[at + 5]);
                p[end - 1] ^= 1;
            }
        });
        // A map that does not name the sound.
        let without_map = spoil(&|p| {
            if let Some(at) = map(p) {
                p[at + 3] = 0xBF;
            }
        });
        for (sent, reason) in [(without_marker, "no_marker"), (bad_crc, "map_crc"), (without_map, "no_map")] {
            for policy in [PlanePolicy::Auto, PlanePolicy::Relay] {
                let mut through = Through::new(policy, false, sent.clone());
                let (udp, u) = through.bed.add_udp();
                through.bed.start(&udp);
                through.run(ms(3_000));
                let expected = match policy {
                    PlanePolicy::Auto => (Plane::Remux, reason),
                    _ => (Plane::Relay, "policy"),
                };
                assert_eq!(through.planes, [expected]);
                if policy == PlanePolicy::Auto {
                    through.bed.receivers[u].checked().expect_clip(&video, 0);
                } else {
                    assert!(through.payloads(u) == payloads(&sent));
                }
            }
        }
    }

    /// GStreamer's muxer gives one picture in a dozen a pack.
    #[test]
    fn pictures_without_packs_of_their_own_are_not_relayed() {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        let mut sent = device(&video, &audio, 0..60, &mut 5);
        for packet in &mut sent {
            if packet.bytes[12..].starts_with(&[0, 0, 1, 0xBA]) && packet.bytes[26..].starts_with(&[0, 0, 1, 0xE0]) {
                packet.bytes.drain(12..26);
            }
        }
        let mut through = Through::new(PlanePolicy::Auto, false, sent);
        let (udp, u) = through.bed.add_udp();
        through.bed.start(&udp);
        through.run(ms(3_000));
        assert_eq!(through.planes, [(Plane::Relay, "clean"), (Plane::Remux, "no_key_pack")]);
        let packets = &through.bed.receivers[u].packets;
        assert!(packets.iter().any(|(at, _)| *at > packets[0].0 + ms(1_500)), "it goes on");
    }

    #[test]
    fn a_slow_sink_goes_on_with_a_key_frame_and_no_other_notices() {
        let (video, audio) = (ClipLibrary::h264(), ClipLibrary::pcma());
        let mut sent = device(&video, &audio, 0..6_000, &mut 5);
        // Forty times as fast after the first second, so that what the kernel takes is soon full.
        for packet in &mut sent {
            packet.due = packet.due.min(ms(1_000)) + packet.due.saturating_sub(ms(1_000)) / 40;
        }
        let mut through = Through::new(PlanePolicy::Auto, false, sent.clone());
        let (slow, s) = through.bed.add_tcp();
        let (good, g) = through.bed.add_udp();
        through.bed.start(&slow);
        through.bed.start(&good);
        through.run(ms(1_000));
        through.bed.receivers[s].asleep = true;
        through.run(ms(6_500));
        through.bed.receivers[s].asleep = false;
        let more = device(&video, &audio, 6_000..6_060, &mut 60_000);
        through.restart(more.clone());
        through.run(ms(3_000));
        sent.extend(more);
        assert!(through.payloads(g) == payloads(&sent), "the other one has everything");
        assert!(slow.meters.dropped_slow.get() > 0);
        assert_eq!((through.bed.end_of(slow.id), through.bed.end_of(good.id)), (None, None));
        // What the slow one got is what was sent, and after each gap it begins with a key frame.
        let (all, mut at) = (payloads(&sent), 0);
        for payload in through.payloads(s) {
            let next = at + all[at..].iter().position(|p| *p == payload).expect("it was sent, in this order");
            let begins = sent[next].picture.is_some_and(|n| n % 25 == 0) && payload.starts_with(&[0, 0, 1, 0xBA]);
            assert!(next == at || begins, "packet {next} after {at}");
            at = next + 1;
        }
        assert_eq!(at, all.len(), "it is back");
    }
}
