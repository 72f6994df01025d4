//! A hub with one worker, a directory and cameras; viewers receive over UDP.

use crate::catalog::{Channel, ChannelState, Directory, DirectoryHandle};
use crate::clock::{self, WallClock};
use crate::config;
use crate::media::{
    Hub, HubConfig, HubHandle, MediaOptions, SinkEnd, SinkEvent, SinkId, SinkMeters, SinkReady, SinkSpec,
    SinkTransport, SourceFailure, SourceHandle, StreamKey, SubscribeError,
};
use crate::metrics::Metrics;
use crate::proto::gb28181::device_id::DeviceId;
use crate::proto::manscdp::CatalogItem;
use crate::proto::ps::{DemuxConfig, Demuxer, Unit};
use crate::proto::rtp::Packet;
use crate::southbound::rtsp::{Camera, CameraConfig, CameraDeps, Policies, PullConfig, Rules};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes, on a loaded machine too.
pub const SOON: Duration = Duration::from_secs(15);

pub const POLICIES: Policies = Policies {
    session_id: config::SessionIdPolicy::UseFirst,
    initial_timestamp: config::InitialTimestampPolicy::Permissive,
    initial_seq: config::InitialSeqPolicy::Ignore,
    unknown_rtcp_ssrc: config::UnknownRtcpSsrcPolicy::Drop,
    unassigned_channel: config::UnassignedChannelPolicy::Auto,
    teardown: config::TeardownPolicy::Auto,
};

pub const RULES: Rules =
    Rules { keep_warm: false, linger: Duration::from_millis(200), probe_interval: Duration::from_millis(200) };

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn pull(url: &str, udp: bool) -> PullConfig {
    PullConfig {
        url: url.parse().unwrap(),
        credentials: Some(("admin".into(), "Pass-1234".into())),
        udp,
        audio: true,
        step_limit: Duration::from_secs(5),
        stall_limit: Duration::from_secs(5),
        policies: POLICIES,
    }
}

pub struct Rig {
    pub hub: HubHandle,
    pub directory: DirectoryHandle,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    cameras: u32,
    events: mpsc::Receiver<(SinkId, SinkEvent)>,
    events_tx: mpsc::Sender<(SinkId, SinkEvent)>,
}

/// A camera's actor.
pub struct Running {
    pub id: Arc<str>,
    pub source: SourceHandle,
    pub cancel: CancellationToken,
}

impl Rig {
    pub fn new() -> Rig {
        let options = HubConfig { options: MediaOptions::default(), workers: 1, pin: false };
        let (hub, handle) = Hub::new(options, WallClock::new(), Arc::new(|_, _| {})).unwrap();
        let (directory, directory_handle) = Directory::new();
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(hub.run(stop.clone()));
        tasks.spawn(directory.run(stop.clone()));
        let (events_tx, events) = mpsc::channel(1024);
        Rig { hub: handle, directory: directory_handle, stop, tasks, cameras: 0, events, events_tx }
    }

    pub async fn camera(&mut self, streams: Vec<PullConfig>, rules: Rules) -> Running {
        self.cameras += 1;
        let id: Arc<str> = format!("3402000000132000{:04}", self.cameras).into();
        let count = streams.len() as u8;
        let deps = CameraDeps {
            hub: self.hub.clone(),
            directory: self.directory.clone(),
            wall: WallClock::new(),
            metrics: Metrics::new("1", "x"),
        };
        let (camera, source) = Camera::new(CameraConfig { id: id.clone(), streams, rules }, deps);
        let item = CatalogItem::new(DeviceId::parse(&id).unwrap(), "camera");
        let channel = Channel {
            id: id.clone(),
            area: None,
            parent: None,
            item: Arc::new(item),
            streams: count,
            source: source.clone(),
            state: ChannelState::unknown(),
            commands: None,
            kind: "rtsp",
        };
        self.directory.put(channel).await;
        let cancel = self.stop.child_token();
        self.tasks.spawn(camera.run(cancel.clone(), 7));
        Running { id, source, cancel }
    }

    pub async fn subscribe(&self, camera: &Running, number: u8) -> Result<Viewer, SubscribeError> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20);
        let spec = SinkSpec {
            ssrc: 7,
            first_sequence: 65_000,
            payload_max: 1400,
            payload_type: 96,
            transport: SinkTransport::Udp {
                socket: std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
                rtcp: None,
                destination: socket.local_addr().unwrap(),
            },
            port: None,
            cname: "x".into(),
            meters: SinkMeters::default(),
            events: self.events_tx.clone(),
        };
        let key = StreamKey::live(camera.id.clone(), number);
        let answer = self.hub.subscribe(key, spec, camera.source.clone())?;
        let ready = timeout(SOON, answer).await.expect("an answer comes").unwrap()?;
        ready.lease.start();
        Ok(Viewer { ready, socket, demuxer: Demuxer::new(DemuxConfig::default()), last: None, units: Vec::new() })
    }

    /// Why the source could not deliver, and after how long that was told.
    pub async fn refusal(&self, camera: &Running, number: u8) -> (SourceFailure, Duration) {
        let asked = clock::now();
        match self.subscribe(camera, number).await {
            Err(SubscribeError::Source(failure)) => (failure, clock::now() - asked),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it delivers"),
        }
    }

    pub fn state(&self, camera: &Running) -> ChannelState {
        self.directory.now().channels.get(&camera.id).map_or_else(ChannelState::unknown, |c| c.state.clone())
    }

    /// Waits until the catalogue says so; returns how long that took.
    pub async fn until(&self, camera: &Running, online: bool) -> Duration {
        let began = clock::now();
        let mut watch = self.directory.watch();
        let wait = watch.wait_for(|d| d.channels.get(&camera.id).is_some_and(|c| c.state.online == Some(online)));
        timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never {online}: {:?}", self.state(camera))).unwrap();
        clock::now() - began
    }

    pub fn ends(&mut self) -> Vec<SinkEnd> {
        let mut ends = Vec::new();
        while let Ok((_, event)) = self.events.try_recv() {
            if let SinkEvent::Ended(why) = event {
                ends.push(why);
            }
        }
        ends
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some_and(|r| r.map(|()| true).unwrap()) {} };
        timeout(SOON, all).await.expect("everything stops");
    }
}

/// Polls until `done`; for what has no event of its own.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(ms(5)).await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{what} never happens"));
}

/// One viewer; asserts order, rising timestamps and whole frames of all it receives.
pub struct Viewer {
    pub ready: SinkReady,
    socket: UdpSocket,
    demuxer: Demuxer,
    last: Option<(u16, u32, bool)>,
    pub units: Vec<Unit>,
}

impl Viewer {
    /// Receives until `count` more pictures are here; returns when the first packet came.
    pub async fn pictures(&mut self, count: usize) -> Instant {
        let (mut buf, mut first) = (vec![0; 2048], None);
        let target = self.seen().len() + count;
        while self.seen().len() < target {
            let n = timeout(SOON, self.socket.recv(&mut buf)).await.expect("packets come").unwrap();
            let packet = Packet::parse(&buf[..n]).unwrap();
            first.get_or_insert_with(clock::now);
            if let Some((sequence, timestamp, marker)) = self.last {
                assert_eq!(packet.sequence, sequence.wrapping_add(1));
                let step = packet.timestamp.wrapping_sub(timestamp) as i32;
                assert!(if marker { step > 0 } else { step == 0 }, "{step} after marker {marker}");
            }
            self.last = Some((packet.sequence, packet.timestamp, packet.marker));
            self.demuxer.push(packet.payload);
            if packet.marker {
                self.demuxer.end_of_frame();
            }
            while let Some(unit) = self.demuxer.pull() {
                self.units.push(unit);
            }
        }
        first.unwrap()
    }

    pub fn seen(&self) -> Vec<(bool, bytes::Bytes)> {
        let video = |u: &Unit| match u {
            Unit::Video { key, annexb, .. } => Some((*key, annexb.clone())),
            _ => None,
        };
        self.units.iter().filter_map(video).collect()
    }

    pub fn heard(&self) -> Vec<bytes::Bytes> {
        let audio = |u: &Unit| match u {
            Unit::Audio { payload, .. } => Some(payload.clone()),
            _ => None,
        };
        self.units.iter().filter_map(audio).collect()
    }
}
