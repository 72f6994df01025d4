//! The hub with its workers, in real time: who is told what, and that nothing is left behind.

use super::bed::{check, fat, key, ms, picture, tracks};
use super::receive::{SSRC, device};
use crate::clock::{self, WallClock};
use crate::media::hub::{
    Hub, HubConfig, HubHandle, Seat, SinkReady, SourceFailure, SourceHandle, SourceRequest, SubscribeError,
};
use crate::media::sink::{SinkEnd, SinkEvent, SinkId, SinkMeters, SinkSpec, SinkTransport};
use crate::media::{
    AudioCodec, FrameFeed, MediaOptions, PlanePolicy, ReceiveEvent, ReceiveMeters, ReceiveSpec, ReceiveTransport,
    SsrcRule, StreamKey, receive,
};
use crate::sim::clip::{Clip, ClipLibrary};
use crate::transport::port_pool::{MediaSockets, PortPool, PortUse};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes, on a loaded machine too.
const SOON: Duration = Duration::from_secs(10);

struct Rig {
    hub: HubHandle,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    ports: PortPool,
    source: SourceHandle,
    requests: mpsc::Receiver<SourceRequest>,
    events: mpsc::Receiver<(SinkId, SinkEvent)>,
    events_tx: mpsc::Sender<(SinkId, SinkEvent)>,
}

type Answer = oneshot::Receiver<Result<SinkReady, SubscribeError>>;

/// Each rig has a port range of its own.
fn ports() -> PortPool {
    static NEXT: AtomicU16 = AtomicU16::new(21_000);
    let from = NEXT.fetch_add(400, Ordering::Relaxed);
    PortPool::new(from..=from + 399, Duration::from_secs(30), 0).unwrap()
}

impl Rig {
    fn new(ready_limit: Duration) -> Rig {
        let config = HubConfig { options: MediaOptions::default(), workers: 2, pin: false };
        let (mut hub, handle) = Hub::new(config, WallClock::new(), Arc::new(|_, _| {})).unwrap();
        hub.set_ready_limit(ready_limit);
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(hub.run(stop.clone()));
        let (tx, requests) = mpsc::channel(16);
        let (events_tx, events) = mpsc::channel(1024);
        Rig { hub: handle, stop, tasks, ports: ports(), source: SourceHandle::new(tx), requests, events, events_tx }
    }

    fn spec(&self, destination: SocketAddr) -> SinkSpec {
        let (lease, sockets) =
            self.ports.allocate(clock::now(), Ipv4Addr::LOCALHOST.into(), PortUse::Udp).expect("a port is free");
        let MediaSockets::Udp { rtp, rtcp } = sockets else { panic!("asked for UDP") };
        SinkSpec {
            ssrc: 1,
            first_sequence: 1,
            payload_max: 1400,
            payload_type: 96,
            transport: SinkTransport::Udp { socket: rtp, rtcp: Some(rtcp), destination },
            port: Some(lease),
            cname: "x".into(),
            meters: SinkMeters::default(),
            events: self.events_tx.clone(),
        }
    }

    fn subscribe(&self, destination: SocketAddr) -> Answer {
        self.hub.subscribe(key(), self.spec(destination), self.source.clone()).unwrap()
    }

    async fn want(&mut self) -> Seat {
        match timeout(SOON, self.requests.recv()).await.expect("the owner hears of it") {
            Some(SourceRequest::Want { seat }) if seat.key().number == 0 => seat,
            other => panic!("{other:?}"),
        }
    }

    async fn idle(&mut self) {
        let request = timeout(SOON, self.requests.recv()).await.expect("the owner hears of it");
        assert!(matches!(&request, Some(SourceRequest::Idle { key }) if key.number == 0), "{request:?}");
    }

    /// Waits until every port is given back.
    async fn all_ports_free(&self) {
        let free = async {
            while self.ports.in_use() > 0 {
                // Each round trip through the hub gives the worker its time.
                self.hub.snapshot().await;
                tokio::time::sleep(ms(2)).await;
            }
        };
        timeout(SOON, free).await.unwrap_or_else(|_| panic!("{} ports are kept", self.ports.in_use()));
    }

    async fn ended(&mut self) -> (SinkId, SinkEnd) {
        let wait = async {
            loop {
                if let (id, SinkEvent::Ended(why)) = self.events.recv().await.unwrap() {
                    return (id, why);
                }
            }
        };
        timeout(SOON, wait).await.expect("the end is told")
    }

    async fn stop(mut self) {
        self.stop.cancel();
        timeout(SOON, self.tasks.join_next()).await.expect("the hub stops").unwrap().unwrap();
    }
}

async fn ready(answer: Answer) -> SinkReady {
    timeout(SOON, answer).await.expect("an answer comes").unwrap().unwrap()
}

async fn refused(answer: Answer) -> SubscribeError {
    timeout(SOON, answer).await.expect("an answer comes").unwrap().unwrap_err()
}

/// Plays a clip in real time for ever, and notes when each picture was pushed.
async fn play(clip: Arc<Clip>, feed: FrameFeed, pushed: Arc<Mutex<Vec<Instant>>>, key_size: usize) {
    feed.started(tracks(&clip, None));
    let began = tokio::time::Instant::now();
    for n in 0.. {
        tokio::time::sleep_until(began + clip.due(n)).await;
        let (unit, ticks) = clip.looped(n);
        let data = if unit.key { fat(&clip, n, key_size) } else { unit.bytes.clone() };
        let now = clock::now();
        pushed.lock().unwrap().push(now);
        feed.push(picture(unit.key, ticks as i64, data, now));
    }
}

fn run(seat: &Seat) -> CancellationToken {
    let cancel = CancellationToken::new();
    assert!(seat.run(cancel.clone(), |feed| play(ClipLibrary::h264(), feed, Arc::default(), 0)));
    cancel
}

/// Packets until `count` frames are whole.
async fn frames(socket: &UdpSocket, count: usize) -> Vec<(Instant, Vec<u8>)> {
    let (mut packets, mut buf, mut whole) = (Vec::new(), vec![0; 2048], 0);
    while whole < count {
        let n = timeout(SOON, socket.recv(&mut buf)).await.expect("packets come").unwrap();
        whole += usize::from(buf[1] & 0x80 != 0);
        packets.push((clock::now(), buf[..n].to_vec()));
    }
    packets
}

async fn receiver() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

#[tokio::test]
async fn cold_then_warm_then_idle() {
    let mut rig = Rig::new(SOON);
    let (first, to) = receiver().await;
    let answer = rig.subscribe(to);
    let seat = rig.want().await;
    assert_eq!(seat.key(), &key());
    run(&seat);
    let cold = ready(answer).await;
    assert_eq!(cold.tracks.unwrap().size, Some((640, 360)));
    cold.lease.start();
    check(&frames(&first, 5).await).expect_clip(&ClipLibrary::h264(), 0);

    let (second, to) = receiver().await;
    let warm = ready(rig.subscribe(to)).await;
    warm.lease.start();
    let got = check(&frames(&second, 5).await);
    assert!(got.pictures()[0].0, "it begins with the cached key frame");
    assert!(rig.requests.try_recv().is_err(), "one pull");
    let [snapshot] = &rig.hub.snapshot().await[..] else { panic!("one stream") };
    assert_eq!((snapshot.sinks, snapshot.key.clone()), (2, key()));

    drop(cold);
    let got = frames(&second, 2).await;
    assert!(!got.is_empty(), "the other one goes on");
    assert!(rig.requests.try_recv().is_err());
    drop(warm);
    rig.idle().await;
    rig.all_ports_free().await;
    seat.close();
    let gone = async { while !rig.hub.snapshot().await.is_empty() {} };
    timeout(SOON, gone).await.expect("the stream is taken away");
    rig.stop().await;
}

#[tokio::test]
async fn a_failure_is_answered_at_once_and_frees_everything() {
    let mut rig = Rig::new(Duration::from_secs(60));
    let (_socket, to) = receiver().await;
    let answers: Vec<_> = (0..3).map(|_| rig.subscribe(to)).collect();
    let seat = rig.want().await;
    let failure = SourceFailure { reason: "unauthorised", text: "401".into() };
    seat.failed(failure.clone());
    for answer in answers {
        assert_eq!(refused(answer).await, SubscribeError::Source(failure.clone()));
    }
    rig.idle().await;
    rig.all_ports_free().await;
    // The next one is tried again, also while the owner has not closed the stream.
    let answer = rig.subscribe(to);
    run(&rig.want().await);
    ready(answer).await;
    rig.stop().await;
}

#[tokio::test]
async fn silence_of_the_source_is_answered_in_time() {
    let mut rig = Rig::new(ms(300));
    let (_socket, to) = receiver().await;
    let asked = clock::now();
    let answer = rig.subscribe(to);
    let _seat = rig.want().await;
    assert_eq!(refused(answer).await, SubscribeError::Timeout(ms(300)));
    assert!(clock::now() - asked >= ms(300));
    rig.idle().await;
    rig.all_ports_free().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_hundred_subscribers_have_one_pull() {
    let mut rig = Rig::new(SOON);
    let mut sockets = Vec::new();
    let mut answers = Vec::new();
    for _ in 0..100 {
        let (socket, to) = receiver().await;
        answers.push(rig.subscribe(to));
        sockets.push(socket);
    }
    run(&rig.want().await);
    let mut leases = Vec::new();
    for answer in answers {
        let ready = ready(answer).await;
        ready.lease.start();
        leases.push(ready.lease);
    }
    for socket in &sockets {
        let got = check(&frames(socket, 3).await);
        assert!(got.pictures()[0].0);
    }
    assert!(rig.requests.try_recv().is_err());
    assert_eq!(rig.ports.in_use(), 100);
    drop(leases);
    rig.idle().await;
    rig.all_ports_free().await;
    assert!(rig.requests.try_recv().is_err(), "told once");
    rig.stop().await;
}

#[tokio::test]
async fn a_subscriber_that_goes_away_before_the_first_picture_frees_everything() {
    let mut rig = Rig::new(Duration::from_secs(60));
    let (_socket, to) = receiver().await;
    let (gone, stays) = (rig.subscribe(to), rig.subscribe(to));
    let _seat = rig.want().await;
    drop(gone);
    let one = async {
        while rig.ports.in_use() > 1 {
            rig.hub.snapshot().await;
            tokio::time::sleep(ms(2)).await;
        }
    };
    timeout(Duration::from_secs(3), one).await.expect("its port is free long before the limit");
    assert!(rig.requests.try_recv().is_err(), "the other one still waits");
    drop(stays);
    rig.idle().await;
    rig.all_ports_free().await;
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_kept_warm_serves_at_once_and_outlives_its_viewers() {
    let mut rig = Rig::new(SOON);
    let seat = rig.hub.open(key(), rig.source.clone()).await.unwrap();
    let cancel = run(&seat);
    for _ in 0..2 {
        let (socket, to) = receiver().await;
        let viewer = ready(rig.subscribe(to)).await;
        viewer.lease.start();
        assert!(check(&frames(&socket, 3).await).pictures()[0].0);
        drop(viewer);
        // The first viewer found it wanted, the second one has it asked for again: both times the owner is told the end.
        loop {
            match timeout(SOON, rig.requests.recv()).await.unwrap().unwrap() {
                SourceRequest::Idle { .. } => break,
                SourceRequest::Want { seat: again } => assert_eq!(again.key(), seat.key()),
                other => panic!("{other:?}"),
            }
        }
        rig.all_ports_free().await;
        assert_eq!(rig.hub.snapshot().await.len(), 1);
    }
    cancel.cancel();
    rig.stop().await;
}

#[tokio::test]
async fn a_camera_taken_away_ends_its_sinks_and_waiters() {
    let mut rig = Rig::new(SOON);
    let (_socket, to) = receiver().await;
    let answer = rig.subscribe(to);
    let seat = rig.want().await;
    let cancel = run(&seat);
    let viewer = ready(answer).await;
    viewer.lease.start();
    let other = StreamKey { number: 1, ..key() };
    let waiting = rig.hub.subscribe(other, rig.spec(to), rig.source.clone()).unwrap();
    let Some(SourceRequest::Want { seat: second }) = rig.requests.recv().await else { panic!("wanted") };
    cancel.cancel();
    seat.remove();
    second.remove();
    // Both sinks, each on its worker.
    let mut ends = [rig.ended().await, rig.ended().await];
    ends.sort_by_key(|(id, _)| id.0);
    assert_eq!(ends[0], (viewer.lease.id(), SinkEnd::StreamClosed));
    assert_eq!(ends[1].1, SinkEnd::StreamClosed);
    assert!(matches!(refused(waiting).await, SubscribeError::Source(f) if f.reason == "closed"));
    // The ports do not wait for the lease: the stream is gone.
    rig.all_ports_free().await;
    assert!(rig.hub.snapshot().await.is_empty());
    drop(viewer);
    rig.stop().await;
}

#[tokio::test]
async fn closing_and_subscribing_at_once_lose_nobody() {
    let mut rig = Rig::new(SOON);
    let (socket, to) = receiver().await;
    let answer = rig.subscribe(to);
    let seat = rig.want().await;
    let cancel = run(&seat);
    drop(ready(answer).await);
    rig.idle().await;
    // The owner closes when its linger is over, and in the same moment somebody comes.
    let answer = rig.subscribe(to);
    cancel.cancel();
    seat.close();
    let seat = rig.want().await;
    run(&seat);
    let viewer = ready(answer).await;
    viewer.lease.start();
    frames(&socket, 3).await;
    drop(viewer);
    rig.idle().await;
    // The other way round: the close is first.
    seat.close();
    let answer = rig.subscribe(to);
    run(&rig.want().await);
    ready(answer).await.lease.start();
    rig.stop().await;
}

#[tokio::test]
async fn a_pull_that_panics_takes_nothing_else_with_it() {
    let mut rig = Rig::new(SOON);
    let (socket, to) = receiver().await;
    let answer = rig.subscribe(to);
    let seat = rig.want().await;
    assert!(seat.run(CancellationToken::new(), |_| async { panic!("a fault in the client") }));
    run(&seat);
    ready(answer).await.lease.start();
    drop(socket);
    rig.stop().await;
}

#[tokio::test]
async fn stopping_answers_waiters_and_ends_sinks() {
    let mut rig = Rig::new(Duration::from_secs(60));
    let (_socket, to) = receiver().await;
    let answer = rig.subscribe(to);
    run(&rig.want().await);
    let viewer = ready(answer).await;
    viewer.lease.start();
    let waiting = rig.hub.subscribe(StreamKey { number: 1, ..key() }, rig.spec(to), rig.source.clone()).unwrap();
    rig.stop.cancel();
    assert_eq!(refused(waiting).await, SubscribeError::Stopping);
    let mut ends = vec![rig.ended().await];
    while ends.last().is_some_and(|(id, _)| *id != viewer.lease.id()) {
        ends.push(rig.ended().await);
    }
    timeout(SOON, rig.tasks.join_next()).await.expect("the hub stops").unwrap().unwrap();
    assert_eq!(rig.ports.in_use(), 0);
    let late = rig.hub.subscribe(key(), rig.spec(to), rig.source.clone());
    assert_eq!(late.unwrap_err(), SubscribeError::Stopping);
    assert_eq!(rig.ports.in_use(), 0);
}

#[tokio::test]
async fn key_frames_are_asked_for_only_where_they_are_far_apart() {
    let mut rig = Rig::new(SOON);
    assert!(rig.hub.request_key_frame(key()), "an unknown stream is no fault");
    let (_socket, to) = receiver().await;
    let answer = rig.subscribe(to);
    let seat = rig.want().await;
    rig.hub.request_key_frame(key());
    let request = timeout(SOON, rig.requests.recv()).await.unwrap();
    assert!(matches!(&request, Some(SourceRequest::KeyFrame { key }) if key.number == 0), "{request:?}");
    run(&seat);
    ready(answer).await.lease.start();
    // Once the figures know of a key frame a second.
    let known = async {
        while rig.hub.snapshot().await[0].stats.gop.is_zero() {
            tokio::time::sleep(ms(10)).await
        }
    };
    timeout(SOON, known).await.unwrap();
    rig.hub.request_key_frame(key());
    rig.hub.snapshot().await;
    assert!(!matches!(rig.requests.try_recv(), Ok(SourceRequest::KeyFrame { .. })));
    rig.stop().await;
}

/// What the engine adds: from the frame being in its hands to the packets at the receiver.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_time_is_added() {
    let mut rig = Rig::new(SOON);
    let (socket, to) = receiver().await;
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20);
    let answer = rig.subscribe(to);
    let seat = rig.want().await;
    let pushed = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&pushed);
    // Key frames of 100 packets, the others of a few.
    assert!(seat.run(CancellationToken::new(), move |feed| play(ClipLibrary::h264(), feed, times, 139_000)));
    let viewer = ready(answer).await;
    viewer.lease.start();
    let got = check(&frames(&socket, 80).await);
    let pushed = pushed.lock().unwrap().clone();
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for (n, frame) in got.frames.iter().enumerate().skip(25) {
        let took = frame.last.saturating_duration_since(pushed[n]);
        if frame.map.is_some() { large.push(took) } else { small.push(took) }
    }
    small.sort_unstable();
    large.sort_unstable();
    let p99 = small[small.len() * 99 / 100];
    println!("added: p50 {:?}, p99 {p99:?}; key frames of 100 packets whole after {large:?}", small[small.len() / 2]);
    // Generous: this machine may be busy with other tests.
    assert!(small[small.len() / 2] < ms(20), "{:?}", small[small.len() / 2]);
    assert!(large[0] < ms(60), "{large:?}");
    rig.stop().await;
}

/// The same beside 49 other streams of the same worker threads. A measurement: run it alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, to be run alone: -- --ignored --nocapture fifty"]
async fn little_time_is_added_at_fifty_streams() {
    let mut rig = Rig::new(SOON);
    let (socket, to) = receiver().await;
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20);
    let pushed = Arc::new(Mutex::new(Vec::new()));
    let (mut viewers, mut others) = (Vec::new(), Vec::new());
    for n in 0..50 {
        let (target, times) = if n == 0 {
            (to, Arc::clone(&pushed))
        } else {
            let (other, addr) = receiver().await;
            others.push(other);
            (addr, Arc::default())
        };
        let stream = StreamKey::live(format!("stream-{n}"), 0);
        let answer = rig.hub.subscribe(stream, rig.spec(target), rig.source.clone()).unwrap();
        let seat = rig.want().await;
        assert!(seat.run(CancellationToken::new(), move |feed| play(ClipLibrary::h264(), feed, times, 139_000)));
        let viewer = ready(answer).await;
        viewer.lease.start();
        viewers.push(viewer);
    }
    let got = check(&frames(&socket, 500).await);
    let pushed = pushed.lock().unwrap().clone();
    let first = pushed.len().saturating_sub(got.frames.len());
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for (n, frame) in got.frames.iter().enumerate().skip(100) {
        // The receiver's n-th frame is the source's n-th too: it was there before the first picture.
        let took = frame.last.saturating_duration_since(pushed[n]);
        if frame.map.is_some() { large.push(took) } else { small.push(took) }
    }
    small.sort_unstable();
    large.sort_unstable();
    let at = |list: &[Duration], p: usize| list[(list.len() * p / 100).min(list.len() - 1)];
    println!(
        "50 streams, {first} pushed beyond: small frames p50 {:?} p99 {:?}; of 100 packets p50 {:?} p99 {:?}",
        at(&small, 50),
        at(&small, 99),
        at(&large, 50),
        at(&large, 99)
    );
    assert!(at(&small, 50) < ms(20));
    rig.stop().await;
}

#[tokio::test]
async fn a_recording_is_declared_ready_and_its_owner_hears_of_the_start() {
    let mut rig = Rig::new(SOON);
    let (socket, to) = receiver().await;
    let recording = StreamKey { session: 7, ..key() };
    let answer = rig.hub.subscribe(recording.clone(), rig.spec(to), rig.source.clone()).unwrap();
    let seat = rig.want().await;
    seat.ready(None);
    let viewer = ready(answer).await;
    assert_eq!(viewer.tracks, None);
    assert!(rig.requests.try_recv().is_err(), "nobody has started");
    // The device is in a hurry: two seconds, with two key frames, are there before the viewer is.
    let began = seat.run(CancellationToken::new(), |feed| async move {
        let clip = ClipLibrary::h264();
        feed.started(tracks(&clip, None));
        for n in 0..50 {
            let (unit, ticks) = clip.looped(n);
            feed.push(picture(unit.key, ticks as i64, unit.bytes.clone(), clock::now()));
        }
        std::future::pending().await
    });
    assert!(began);
    while rig.hub.snapshot().await.iter().all(|s| s.tracks.is_none()) {
        tokio::time::sleep(ms(2)).await;
    }
    viewer.lease.start();
    let request = timeout(SOON, rig.requests.recv()).await.expect("told").unwrap();
    assert!(matches!(&request, SourceRequest::Started { key } if *key == recording), "{request:?}");
    let got = check(&frames(&socket, 50).await);
    got.expect_clip(&ClipLibrary::h264(), 0);
    viewer.lease.start();
    drop(viewer);
    let request = timeout(SOON, rig.requests.recv()).await.expect("told").unwrap();
    assert!(matches!(request, SourceRequest::Idle { .. }), "the start is told once: {request:?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_device_is_received_on_its_seat_and_the_plane_is_shown() {
    for (policy, shown) in [(PlanePolicy::Auto, ("relay", "clean")), (PlanePolicy::Remux, ("remux", "policy"))] {
        let mut rig = Rig::new(SOON);
        let (socket, to) = receiver().await;
        let answer = rig.subscribe(to);
        let seat = rig.want().await;
        let (lease, sockets) = rig.ports.allocate(clock::now(), Ipv4Addr::LOCALHOST.into(), PortUse::Udp).unwrap();
        let MediaSockets::Udp { rtp, rtcp } = sockets else { panic!("asked for UDP") };
        let port = rtp.local_addr().unwrap();
        let (events, mut told) = mpsc::channel(8);
        let spec = ReceiveSpec {
            transport: ReceiveTransport::Udp { rtp, rtcp: Some(rtcp), from: Vec::new() },
            port: Some(lease),
            ssrc: SsrcRule::Strict(SSRC),
            plane: policy,
            session: false,
            first_packet_limit: SOON,
            silence_limit: SOON,
            meters: ReceiveMeters::default(),
            events,
            token: 5,
        };
        let cancel = CancellationToken::new();
        assert!(seat.run(cancel.clone(), move |feed| receive(spec, feed)));
        let from = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let sent = device(&ClipLibrary::h264(), &ClipLibrary::pcma(), 0..60, &mut 7);
        let mut play = JoinSet::new();
        play.spawn(async move {
            let began = tokio::time::Instant::now();
            for packet in sent {
                tokio::time::sleep_until(began + packet.due).await;
                from.send_to(&packet.bytes, port).await.unwrap();
            }
        });
        let viewer = ready(answer).await;
        let tracks = viewer.tracks.unwrap();
        assert_eq!((tracks.size, tracks.audio), (Some((640, 360)), Some(AudioCodec::G711A)));
        viewer.lease.start();
        frames(&socket, 40).await;
        assert!(matches!(told.recv().await, Some((5, ReceiveEvent::FirstPacket(_)))));
        assert!(
            matches!(told.recv().await, Some((5, ReceiveEvent::Playing { plane, .. })) if plane.as_str() == shown.0)
        );
        let seen = async {
            loop {
                let stats = rig.hub.snapshot().await[0].stats;
                if stats.fps > 0.0 {
                    return stats;
                }
                tokio::time::sleep(ms(20)).await;
            }
        };
        let stats = timeout(SOON, seen).await.unwrap();
        assert_eq!((stats.plane, stats.plane_reason), shown);
        assert!(stats.lost == 0 && (15.0..35.0).contains(&stats.fps), "{stats:?}");
        play.abort_all();
        cancel.cancel();
        drop(viewer);
        rig.all_ports_free().await;
        rig.stop().await;
    }
}
