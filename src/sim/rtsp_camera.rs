//! A simulated RTSP camera: a real RTSP/1.0 server on real sockets that plays clips of known content.
//!
//! Standard: [RFC 2326], RTP over UDP and interleaved in TCP [RFC 2326 10.12], digest [RFC 2617]; SDP [RFC 4566].
//! In: a `SimCameraConfig`. Out: a listening camera, and a `SimCameraHandle` to count and to break it.
//! Invariants: every session plays its mount's clip from the first (key) unit, in real time times `speed`, with continuous
//! timestamps across loops; what is sent is the clip's bytes and nothing else.
//! Not here: clips (`sim::clip`), requests (`wire`), packets (`payload`), one connection (`session`).

mod payload;
#[cfg(test)]
mod retina_tests;
mod session;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::sim::clip::{AudioClip, Clip};

/// RTSP sessions at once; further SETUPs get 453. A camera serves a handful; this many serve a load test.
pub const SESSIONS_MAX: usize = 256;

/// Connections at once; further ones are closed: every session has one, and as many may be probing.
pub const CONNECTIONS_MAX: usize = 2 * SESSIONS_MAX;

/// Mounts of one camera: an encoder has a few streams, a load test up to this many.
pub const MOUNTS_MAX: usize = 1024;

/// Pending connections the kernel keeps for us while the accept loop is busy.
const BACKLOG: u32 = 512;

/// Pause after a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a camera does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SimCameraError {
    /// The address is taken or not ours.
    #[error("cannot listen on {addr}: {reason}: choose an address of this machine and a free port")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// The system's words.
        reason: String,
    },
    /// The configuration cannot be served.
    #[error("cannot serve {what}: {value}: {allowed}")]
    Config {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        allowed: &'static str,
    },
}

/// One stream of the camera.
#[derive(Debug, Clone)]
pub struct Mount {
    /// Path of the URL, from its slash on: `/main`.
    pub path: String,
    /// The pictures.
    pub video: Arc<Clip>,
    /// The sound, if any.
    pub audio: Option<Arc<AudioClip>>,
    /// Whether SDP carries the parameter sets; they are in the stream before every key picture in any case.
    pub sprop: bool,
}

impl Mount {
    /// A mount with pictures only, parameter sets in SDP.
    pub fn video(path: &str, video: Arc<Clip>) -> Self {
        Mount { path: path.to_owned(), video, audio: None, sprop: true }
    }

    /// The same mount with sound.
    pub fn with_audio(mut self, audio: Arc<AudioClip>) -> Self {
        self.audio = Some(audio);
        self
    }
}

/// The account of a camera that asks for one.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What a simulated camera is.
#[derive(Debug, Clone)]
pub struct SimCameraConfig {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Digest account; `None` lets everybody in.
    pub account: Option<Account>,
    /// Digest realm.
    pub realm: String,
    /// The streams, at most [`MOUNTS_MAX`].
    pub mounts: Vec<Mount>,
    /// Largest RTP payload in bytes, 64 to 65000.
    pub payload_max: usize,
    /// Pictures leave this many times faster than the clip's rate says (1 to 1000); timestamps stay those of the clip.
    pub speed: u32,
    /// Delay of every session's first picture, so that many cameras do not send their key pictures all at once.
    pub phase: Duration,
    /// A session without a request or other bytes from its client for this long is ended; told in SETUP, in whole seconds.
    pub session_timeout: Duration,
    /// Seed of SSRCs, sequence numbers, timestamps, session ids and nonces.
    pub seed: u64,
}

impl SimCameraConfig {
    /// A camera on a free port of loopback without account, 1400-byte payloads, in real time.
    pub fn on_loopback(mounts: Vec<Mount>) -> Self {
        SimCameraConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            account: None,
            realm: "Simulated camera".to_owned(),
            mounts,
            payload_max: 1400,
            speed: 1,
            phase: Duration::ZERO,
            session_timeout: Duration::from_secs(60),
            seed: 1,
        }
    }

    fn check(&self) -> Result<(), SimCameraError> {
        let refuse = |what, value: String, allowed| Err(SimCameraError::Config { what, value, allowed });
        if self.mounts.is_empty() || self.mounts.len() > MOUNTS_MAX {
            return refuse("mounts", self.mounts.len().to_string(), "give 1 to 1024");
        }
        if let Some(mount) = self.mounts.iter().find(|m| !m.path.starts_with('/') || m.path.ends_with('/')) {
            return refuse("path", mount.path.clone(), "begin it with a slash, end it without");
        }
        if !(payload::PAYLOAD_MIN..=payload::PAYLOAD_MAX).contains(&self.payload_max) {
            return refuse("payload_max", self.payload_max.to_string(), "give 64 to 65000");
        }
        if !(1..=1000).contains(&self.speed) {
            return refuse("speed", self.speed.to_string(), "give 1 to 1000");
        }
        if self.session_timeout < Duration::from_secs(1) {
            return refuse("session_timeout", format!("{:?}", self.session_timeout), "give at least 1 s");
        }
        Ok(())
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What the camera has done so far.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        struct Counts {
            $($name: AtomicU64,)*
        }

        impl Counts {
            fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// TCP connections accepted.
    connections,
    /// Requests of any kind.
    requests,
    /// DESCRIBEs answered 200.
    describes,
    /// SETUPs answered 200.
    setups,
    /// PLAYs answered 200 that began to play.
    plays,
    /// TEARDOWNs answered 200.
    teardowns,
    /// Requests answered 401 although they had credentials.
    auth_failures,
    /// Pictures sent, over all sessions.
    pictures,
    /// Audio frames sent, over all sessions.
    sounds,
    /// RTP packets sent, over all sessions.
    packets,
    /// RTP packets held back by `drop_packets`.
    dropped,
    /// Pictures not sent, because of a stall or a client that does not keep up.
    skipped,
    /// UDP sends that failed; the client's port is closed.
    send_errors,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// What a test or an operator has broken.
#[derive(Debug, Default)]
struct Faults {
    refuse_auth: AtomicBool,
    mute: AtomicBool,
    stall: AtomicBool,
    wrong_ssrc: AtomicBool,
    to_drop: AtomicU64,
    /// Added to every RTP timestamp, in milliseconds.
    jump_ms: AtomicI64,
    /// Added to the wall time of sender reports, in milliseconds.
    wall_offset_ms: AtomicI64,
    describe_delay_ms: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    config: SimCameraConfig,
    counts: Counts,
    faults: Faults,
    sessions: AtomicUsize,
    playing: AtomicUsize,
    connections: AtomicUsize,
    /// Cancelled and replaced to close every connection of the moment.
    generation: Mutex<CancellationToken>,
    rng: Mutex<StdRng>,
}

impl Shared {
    fn random(&self) -> u32 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).random()
    }

    fn generation(&self) -> CancellationToken {
        self.generation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the next RTP packet is to be held back.
    fn take_drop(&self) -> bool {
        let taken = self.faults.to_drop.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        taken.is_ok()
    }
}

/// One of a bounded number of something, given back on drop.
#[derive(Debug)]
struct Slot {
    shared: Arc<Shared>,
    of: fn(&Shared) -> &AtomicUsize,
}

impl Slot {
    fn take(shared: &Arc<Shared>, of: fn(&Shared) -> &AtomicUsize, max: usize) -> Option<Self> {
        let taken = of(shared).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
        taken.ok().map(|_| Slot { shared: Arc::clone(shared), of })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        (self.of)(&self.shared).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts and breaks a running camera. Cheap to clone; works from any thread; settings hold for all sessions from now on.
#[derive(Debug, Clone)]
pub struct SimCameraHandle {
    shared: Arc<Shared>,
}

impl SimCameraHandle {
    /// What the camera has done so far.
    pub fn counters(&self) -> Counters {
        self.shared.counts.snapshot()
    }

    /// Sessions set up and not yet ended.
    pub fn sessions(&self) -> usize {
        self.shared.sessions.load(Ordering::Relaxed)
    }

    /// Sessions that play.
    pub fn playing(&self) -> usize {
        self.shared.playing.load(Ordering::Relaxed)
    }

    /// Answers 401 to everything, right credentials or not.
    pub fn refuse_auth(&self, on: bool) {
        self.shared.faults.refuse_auth.store(on, Ordering::Relaxed);
    }

    /// Accepts connections and reads requests, and never answers. Sessions that play go on playing.
    pub fn mute(&self, on: bool) {
        self.shared.faults.mute.store(on, Ordering::Relaxed);
    }

    /// Sends no media while on, with connections left open; afterwards goes on at the next key picture.
    pub fn stall(&self, on: bool) {
        self.shared.faults.stall.store(on, Ordering::Relaxed);
    }

    /// Sends RTP under an SSRC other than the announced one.
    pub fn wrong_ssrc(&self, on: bool) {
        self.shared.faults.wrong_ssrc.store(on, Ordering::Relaxed);
    }

    /// Holds back the next `n` RTP packets, their sequence numbers used up.
    pub fn drop_packets(&self, n: u64) {
        self.shared.faults.to_drop.fetch_add(n, Ordering::Relaxed);
    }

    /// Moves RTP timestamps by `ms` milliseconds (negative: back), once, on top of earlier moves.
    pub fn jump_timestamps(&self, ms: i64) {
        self.shared.faults.jump_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Sets the camera's wall clock, as its sender reports tell it, `ms` milliseconds off.
    pub fn set_clock_offset(&self, ms: i64) {
        self.shared.faults.wall_offset_ms.store(ms, Ordering::Relaxed);
    }

    /// Waits this long before it answers DESCRIBE.
    pub fn delay_describe(&self, delay: Duration) {
        let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.shared.faults.describe_delay_ms.store(ms, Ordering::Relaxed);
    }

    /// Closes every connection of the moment, and with it every session.
    pub fn drop_sessions(&self) {
        let mut generation = self.shared.generation.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *generation, CancellationToken::new()).cancel();
    }
}

/// A running camera; stops when dropped.
#[derive(Debug)]
pub struct SimCamera {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its controls.
    pub handle: SimCameraHandle,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl SimCamera {
    /// Binds and begins to serve. A camera can be started again at once on the port of one that has stopped.
    ///
    /// # Errors
    /// See [`SimCameraError`].
    pub async fn start(config: SimCameraConfig) -> Result<Self, SimCameraError> {
        config.check()?;
        let listen = config.listen;
        let refuse = |e: io::Error| SimCameraError::Listen { addr: listen, reason: e.to_string() };
        let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(refuse)?;
        socket.set_reuseaddr(true).map_err(refuse)?;
        socket.bind(listen).map_err(refuse)?;
        let listener = socket.listen(BACKLOG).map_err(refuse)?;
        let addr = listener.local_addr().map_err(refuse)?;
        let shared = Arc::new(Shared {
            rng: Mutex::new(StdRng::seed_from_u64(config.seed)),
            config,
            counts: Counts::default(),
            faults: Faults::default(),
            sessions: AtomicUsize::new(0),
            playing: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            generation: Mutex::new(CancellationToken::new()),
        });
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared), stop.clone()));
        Ok(SimCamera { addr, handle: SimCameraHandle { shared }, tasks, stop })
    }

    /// The URL of a mount, without credentials.
    pub fn url(&self, path: &str) -> String {
        format!("rtsp://{}{path}", self.addr)
    }

    /// Closes the listener and every connection, and waits until they are gone.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "simulated camera cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        add(&shared.counts.connections, 1);
        let Some(slot) = Slot::take(&shared, |s| &s.connections, CONNECTIONS_MAX) else {
            continue;
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let _slot = slot;
            let generation = shared.generation();
            let served = session::serve(shared, stream, peer);
            if let Some(Err(e)) = generation.run_until_cancelled(served).await {
                tracing::debug!(%peer, error = %e, "simulated camera lost a connection");
            }
        });
    }
    connections.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::future::Future;

    use md5::{Digest, Md5};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpStream, UdpSocket};

    use super::payload::tests::Reassembly;
    use super::*;
    use crate::sim::clip::{ClipFollower, ClipLibrary, Comparison, VideoCodec};

    /// How fast the cameras of these tests run: a clip of 5 s takes 50 ms.
    const SPEED: u32 = 100;

    async fn in_time<T>(test: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("a test waits for what never comes")
    }

    async fn start(mounts: Vec<Mount>, change: impl FnOnce(&mut SimCameraConfig)) -> SimCamera {
        let mut config = SimCameraConfig::on_loopback(mounts);
        config.speed = SPEED;
        change(&mut config);
        SimCamera::start(config).await.unwrap()
    }

    #[derive(Debug)]
    struct Response {
        status: u16,
        headers: HashMap<String, String>,
        body: String,
    }

    struct Packet {
        channel: u8,
        bytes: Vec<u8>,
    }

    impl Packet {
        fn sequence(&self) -> u16 {
            u16::from_be_bytes([self.bytes[2], self.bytes[3]])
        }
        fn time(&self) -> u32 {
            u32::from_be_bytes(self.bytes[4..8].try_into().unwrap())
        }
        fn ssrc(&self) -> u32 {
            u32::from_be_bytes(self.bytes[8..12].try_into().unwrap())
        }
        fn marker(&self) -> bool {
            self.bytes[1] & 0x80 != 0
        }
    }

    /// A client as simple as can be.
    struct Client {
        stream: BufReader<TcpStream>,
        url: String,
        cseq: u32,
        session: Option<String>,
        authorization: Option<String>,
    }

    impl Client {
        async fn connect(camera: &SimCamera, path: &str) -> Client {
            let stream = BufReader::new(TcpStream::connect(camera.addr).await.unwrap());
            Client { stream, url: camera.url(path), cseq: 0, session: None, authorization: None }
        }

        async fn send(&mut self, method: &str, suffix: &str, extra: &str) {
            self.cseq += 1;
            let mut text = format!("{method} {}{suffix} RTSP/1.0\r\nCSeq: {}\r\n{extra}", self.url, self.cseq);
            for (name, value) in [("Session", &self.session), ("Authorization", &self.authorization)] {
                if let Some(value) = value {
                    text.push_str(&format!("{name}: {value}\r\n"));
                }
            }
            text.push_str("\r\n");
            self.stream.get_mut().write_all(text.as_bytes()).await.unwrap();
        }

        /// Next interleaved packet, or the first byte of something else.
        async fn packet(&mut self) -> Result<Packet, u8> {
            let first = self.stream.read_u8().await.unwrap();
            if first != b'$' {
                return Err(first);
            }
            let channel = self.stream.read_u8().await.unwrap();
            let mut bytes = vec![0; usize::from(self.stream.read_u16().await.unwrap())];
            self.stream.read_exact(&mut bytes).await.unwrap();
            Ok(Packet { channel, bytes })
        }

        /// Next response; interleaved packets before it go to `packets`.
        async fn response(&mut self, packets: &mut Vec<Packet>) -> Response {
            let mut head = loop {
                match self.packet().await {
                    Ok(packet) => packets.push(packet),
                    Err(first) => break vec![first],
                }
            };
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let (status, rest) = head.split_once("\r\n").unwrap();
            let headers: HashMap<String, String> =
                rest.lines().filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.into(), v.into())).collect();
            let len = headers.get("Content-Length").map_or(0, |l| l.parse().unwrap());
            let mut body = vec![0; len];
            self.stream.read_exact(&mut body).await.unwrap();
            if let Some(session) = headers.get("Session") {
                self.session = Some(session.split(';').next().unwrap().to_owned());
            }
            let status = status.split(' ').nth(1).unwrap().parse().unwrap();
            Response { status, headers, body: String::from_utf8(body).unwrap() }
        }

        async fn ask(&mut self, method: &str, suffix: &str, extra: &str) -> Response {
            self.send(method, suffix, extra).await;
            self.response(&mut Vec::new()).await
        }

        /// SETUP of the pictures over TCP, and PLAY.
        async fn play(camera: &SimCamera, path: &str) -> (Client, Response) {
            let mut client = Client::connect(camera, path).await;
            let setup = client.ask("SETUP", "/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n").await;
            assert_eq!(setup.status, 200);
            assert_eq!(client.ask("PLAY", "", "").await.status, 200);
            (client, setup)
        }

        /// Next RTP packet of the pictures.
        async fn picture_packet(&mut self) -> Packet {
            loop {
                match self.packet().await {
                    Ok(packet) if packet.channel == 0 => return packet,
                    Ok(_) => {}
                    Err(first) => panic!("byte {first} between packets"),
                }
            }
        }

        /// Next whole picture as Annex B bytes, with its RTP time.
        async fn picture(&mut self, codec: VideoCodec) -> (Vec<u8>, u32) {
            let mut joined = Reassembly::default();
            loop {
                let packet = self.picture_packet().await;
                joined.push(codec, &packet.bytes[12..]);
                if packet.marker() {
                    return (joined.annex_b, packet.time());
                }
            }
        }
    }

    fn hex32(header: &str, key: &str) -> u32 {
        let value = header.split([';', ',']).find_map(|f| f.strip_prefix(key)).unwrap();
        u32::from_str_radix(value, 16).unwrap()
    }

    #[tokio::test]
    async fn tcp_brings_the_clip_byte_for_byte_across_loops() {
        let clips = [ClipLibrary::h264(), ClipLibrary::h265(), ClipLibrary::h264_bframes()];
        let mounts = clips.iter().enumerate().map(|(i, c)| Mount::video(&format!("/m{i}"), Arc::clone(c))).collect();
        let camera = start(mounts, |c| c.payload_max = 700).await;
        in_time(async {
            for (i, clip) in clips.iter().enumerate() {
                let (mut client, setup) = Client::play(&camera, &format!("/m{i}")).await;
                let ssrc = hex32(&setup.headers["Transport"], "ssrc=");
                let mut follower = ClipFollower::new(Arc::clone(clip));
                let mut joined = Reassembly::default();
                let (mut sequence, mut base, mut n) = (None, None, 0);
                while n < 160 {
                    let packet = client.picture_packet().await;
                    assert!(packet.bytes.len() <= 712);
                    assert_eq!((packet.bytes[0], packet.bytes[1] & 0x7F, packet.ssrc()), (0x80, 96, ssrc));
                    assert_eq!(packet.sequence(), sequence.unwrap_or(packet.sequence()));
                    sequence = Some(packet.sequence().wrapping_add(1));
                    let pts = clip.looped(n).1 as u32;
                    assert_eq!(packet.time().wrapping_sub(pts), *base.get_or_insert(packet.time().wrapping_sub(pts)));
                    joined.push(clip.codec(), &packet.bytes[12..]);
                    if packet.marker() {
                        follower.push(&std::mem::take(&mut joined.annex_b));
                        n += 1;
                    }
                }
                assert_eq!(follower.sum(), Comparison { exact: 160, keys: 7, altered: 0, missing: 0 });
            }
        })
        .await;
        let counters = camera.handle.counters();
        assert_eq!((counters.setups, counters.plays, counters.dropped, counters.skipped), (3, 3, 0, 0));
        assert!(counters.pictures >= 3 * 160);
        camera.stop().await;
    }

    #[tokio::test]
    async fn udp_brings_pictures_sound_and_reports() {
        let clip = ClipLibrary::h264();
        let sounds = ClipLibrary::pcma();
        let mount = Mount::video("/main", Arc::clone(&clip)).with_audio(Arc::clone(&sounds));
        let camera = start(vec![mount], |c| c.speed = 20).await;
        in_time(async {
            let mut client = Client::connect(&camera, "/main").await;
            let mut sockets = Vec::new();
            for track in 0..2 {
                let rtp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                let port = rtp.local_addr().unwrap().port();
                let rtcp = UdpSocket::bind(("127.0.0.1", port + 1)).await;
                let transport = format!("Transport: RTP/AVP;unicast;client_port={port}-{}\r\n", port + 1);
                let setup = client.ask("SETUP", &format!("/trackID={track}"), &transport).await;
                assert_eq!(setup.status, 200, "{setup:?}");
                let transport = &setup.headers["Transport"];
                let server = transport.split(';').find_map(|f| f.strip_prefix("server_port=")).unwrap();
                let (first, second) = server.split_once('-').unwrap();
                let (first, second): (u16, u16) = (first.parse().unwrap(), second.parse().unwrap());
                assert!(first % 2 == 0 && second == first + 1, "{server}");
                rtp.connect(("127.0.0.1", first)).await.unwrap();
                sockets.push((rtp, rtcp, transport.clone()));
            }
            let play = client.ask("PLAY", "", "").await;
            let info = &play.headers["RTP-Info"];
            assert!(info.contains("/main/trackID=0;seq=") && info.contains("/main/trackID=1;seq="), "{info}");
            let mut buf = vec![0; 2000];
            let mut follower = ClipFollower::new(Arc::clone(&clip));
            let mut joined = Reassembly::default();
            while follower.sum().exact + follower.sum().altered < 130 {
                let len = sockets[0].0.recv(&mut buf).await.unwrap();
                joined.push(clip.codec(), &buf[12..len]);
                if buf[1] & 0x80 != 0 {
                    follower.push(&std::mem::take(&mut joined.annex_b));
                }
            }
            assert_eq!(follower.sum(), Comparison { exact: 130, keys: 6, altered: 0, missing: 0 });
            for n in 0..200 {
                let len = sockets[1].0.recv(&mut buf).await.unwrap();
                assert_eq!((buf[1], &buf[12..len]), (8, &sounds.frames()[n].payload[..]));
            }
            if let Ok(rtcp) = &sockets[0].1 {
                let len = rtcp.recv(&mut buf).await.unwrap();
                let ssrc = hex32(&sockets[0].2, "ssrc=");
                assert!(len > 28 && buf[1] == 200 && buf[4..8] == ssrc.to_be_bytes());
            }
            assert_eq!(camera.handle.playing(), 1);
            assert_eq!(client.ask("TEARDOWN", "", "").await.status, 200);
            assert_eq!((camera.handle.sessions(), camera.handle.playing()), (0, 0));
        })
        .await;
    }

    #[tokio::test]
    async fn the_description_names_what_is_sent() {
        let mut bare = Mount::video("/bare", ClipLibrary::h264());
        bare.sprop = false;
        let mounts = vec![
            Mount::video("/main", ClipLibrary::h264()).with_audio(ClipLibrary::aac()),
            Mount::video("/sub", ClipLibrary::h265()).with_audio(ClipLibrary::pcmu()),
            bare,
        ];
        let camera = start(mounts, |_| {}).await;
        in_time(async {
            let mut client = Client::connect(&camera, "/main").await;
            let main = client.ask("DESCRIBE", "?profile=1", "Accept: application/sdp\r\n").await;
            assert_eq!(main.headers["Content-Base"], format!("{}/", camera.url("/main")));
            let sdp = &main.body;
            assert!(
                sdp.contains("a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;profile-level-id=4D40"),
                "{sdp}"
            );
            assert!(
                sdp.contains(";sprop-parameter-sets=Z") && sdp.contains("config=1408\r\na=control:trackID=1\r\n"),
                "{sdp}"
            );
            client.url = camera.url("/sub/");
            let sdp = client.ask("DESCRIBE", "", "").await.body;
            assert!(sdp.contains("a=fmtp:96 sprop-vps=") && sdp.contains("m=audio 0 RTP/AVP 0\r\n"), "{sdp}");
            client.url = camera.url("/bare");
            assert!(!client.ask("DESCRIBE", "", "").await.body.contains("sprop"));
            client.url = camera.url("/none");
            assert_eq!(client.ask("DESCRIBE", "", "").await.status, 404);
        })
        .await;
        assert_eq!(camera.handle.counters().describes, 3);
    }

    #[tokio::test]
    async fn digest_lets_in_who_knows_the_password() {
        let camera = start(vec![Mount::video("/main", ClipLibrary::h264())], |c| {
            c.account = Some(Account { username: "admin".into(), password: "Pass-1234".into() });
        })
        .await;
        in_time(async {
            let mut client = Client::connect(&camera, "/main").await;
            let challenge = client.ask("DESCRIBE", "", "").await;
            assert_eq!(challenge.status, 401);
            let quoted = |key: &str| {
                let (_, rest) = challenge.headers["WWW-Authenticate"].split_once(key).unwrap();
                rest.split('"').nth(1).unwrap().to_owned()
            };
            let (realm, nonce, uri) = (quoted("realm="), quoted("nonce="), client.url.clone());
            let md5 = |text: String| Md5::digest(text).iter().map(|b| format!("{b:02x}")).collect::<String>();
            let answer = |password: &str| {
                let (a, b) = (md5(format!("admin:{realm}:{password}")), md5(format!("DESCRIBE:{uri}")));
                let response = md5(format!("{a}:{nonce}:{b}"));
                Some(format!(
                    "Digest username=\"admin\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{uri}\", response=\"{response}\""
                ))
            };
            client.authorization = answer("pass-1234");
            assert_eq!(client.ask("DESCRIBE", "", "").await.status, 401);
            client.authorization = answer("Pass-1234");
            assert_eq!(client.ask("DESCRIBE", "", "").await.status, 200);
            camera.handle.refuse_auth(true);
            assert_eq!(client.ask("DESCRIBE", "", "").await.status, 401);
        })
        .await;
        let counters = camera.handle.counters();
        assert_eq!((counters.auth_failures, counters.describes), (2, 1));
    }

    #[tokio::test]
    async fn requests_out_of_place_are_refused() {
        let mount = Mount::video("/main", ClipLibrary::h264()).with_audio(ClipLibrary::pcma());
        let camera = start(vec![mount, Mount::video("/sub", ClipLibrary::h264())], |_| {}).await;
        in_time(async {
            let mut client = Client::connect(&camera, "/main").await;
            assert_eq!(client.ask("PLAY", "", "").await.status, 454);
            assert_eq!(client.ask("ANNOUNCE", "", "").await.status, 501);
            assert_eq!(client.ask("GET_PARAMETER", "", "").await.status, 200);
            let tcp = "Transport: RTP/AVP/TCP;unicast\r\n";
            assert_eq!(client.ask("SETUP", "/trackID=0", "").await.status, 461);
            assert_eq!(client.ask("SETUP", "/trackID=0", "Transport: RTP/SAVP;unicast\r\n").await.status, 461);
            assert_eq!(client.ask("SETUP", "/trackID=2", tcp).await.status, 404);
            assert_eq!(client.ask("SETUP", "", tcp).await.status, 459);
            assert_eq!(camera.handle.sessions(), 0, "a refused SETUP leaves no session");
            let first = client.ask("SETUP", "/trackID=0", tcp).await;
            assert!(first.headers["Transport"].contains("interleaved=0-1"), "{first:?}");
            let overlapping = "Transport: RTP/AVP/TCP;unicast;interleaved=1-2\r\n";
            assert_eq!(client.ask("SETUP", "/trackID=1", overlapping).await.status, 461);
            let second = client.ask("SETUP", "/trackID=1", tcp).await;
            assert!(second.headers["Transport"].contains("interleaved=2-3"), "{second:?}");
            assert_eq!(client.ask("SETUP", "/trackID=1", tcp).await.status, 455, "twice");
            let session = client.session.replace("other".into());
            assert_eq!(client.ask("PLAY", "", "").await.status, 454);
            client.session = session;
            assert_eq!(client.ask("PLAY", "", "").await.status, 200);
            client.send("SETUP", "/trackID=1", tcp).await;
            assert_eq!(client.response(&mut vec![]).await.status, 455, "while playing");
            client.stream.get_mut().write_all(b"HELO\r\n\r\n").await.unwrap();
            assert_eq!(client.response(&mut vec![]).await.status, 400);
            let mut rest = vec![];
            client.stream.read_to_end(&mut rest).await.unwrap();
            // one stream may be set up without naming the track
            let mut client = Client::connect(&camera, "/sub").await;
            assert_eq!(client.ask("SETUP", "", tcp).await.status, 200);
        })
        .await;
    }

    #[tokio::test]
    async fn faults_show_on_the_wire() {
        let clip = ClipLibrary::h264();
        let camera = start(vec![Mount::video("/main", Arc::clone(&clip))], |_| {}).await;
        let handle = camera.handle.clone();
        in_time(async {
            let (mut client, setup) = Client::play(&camera, "/main").await;
            let ssrc = hex32(&setup.headers["Transport"], "ssrc=");
            let before = client.picture_packet().await;
            handle.drop_packets(3);
            let (mut last, mut gap) = (before.sequence(), 0);
            while gap < 3 {
                let packet = client.picture_packet().await;
                gap += packet.sequence().wrapping_sub(last) - 1;
                last = packet.sequence();
            }
            assert_eq!((gap, handle.counters().dropped), (3, 3));

            handle.wrong_ssrc(true);
            while client.picture_packet().await.ssrc() == ssrc {}
            handle.wrong_ssrc(false);
            while client.picture_packet().await.ssrc() != ssrc {}

            handle.jump_timestamps(-3_600_000);
            let mut last = client.picture_packet().await.time();
            loop {
                let time = client.picture_packet().await.time();
                let step = time.wrapping_sub(last) as i32;
                if step < 0 {
                    assert_eq!(step, 3600 - 3_600_000 * 90);
                    break;
                }
                last = time;
            }

            handle.stall(true);
            let mut packets = vec![];
            let skipped = |h: &SimCameraHandle| h.counters().skipped;
            while skipped(&handle) < 30 {
                packets.clear();
                client.send("GET_PARAMETER", "", "").await;
                client.response(&mut packets).await;
            }
            assert!(packets.is_empty(), "{} packets during a stall", packets.len());
            handle.stall(false);
            let (picture, _) = client.picture(clip.codec()).await;
            assert!(clip.units()[clip.find(&picture).unwrap()].key, "goes on at a key picture");

            handle.mute(true);
            let requests = handle.counters().requests;
            client.send("OPTIONS", "", "").await;
            while handle.counters().requests == requests {
                client.picture_packet().await;
            }
            handle.mute(false);
            let heard = client.ask("OPTIONS", "", "").await;
            assert_eq!(heard.headers["CSeq"], client.cseq.to_string(), "the muted one stays unanswered");

            handle.drop_sessions();
            client.stream.read_to_end(&mut vec![]).await.unwrap();
            while handle.sessions() > 0 {
                tokio::task::yield_now().await;
            }
            let (mut client, _) = Client::play(&camera, "/main").await;
            assert_eq!(
                clip.find(&client.picture(clip.codec()).await.0),
                Some(0),
                "a new session starts at the beginning"
            );
        })
        .await;
    }

    #[tokio::test]
    async fn a_silent_session_ends_and_a_camera_restarts_on_its_port() {
        let mounts = vec![Mount::video("/main", ClipLibrary::h264())];
        let camera = start(mounts.clone(), |c| c.session_timeout = Duration::from_secs(1)).await;
        in_time(async {
            let (mut client, setup) = Client::play(&camera, "/main").await;
            assert!(setup.headers["Session"].ends_with(";timeout=1"));
            client.stream.read_to_end(&mut vec![]).await.unwrap();
            let (mut open, _) = Client::play(&camera, "/main").await;
            let addr = camera.addr;
            camera.stop().await;
            open.stream.read_to_end(&mut vec![]).await.ok();
            let again = start(mounts, |c| c.listen = addr).await;
            let (mut client, _) = Client::play(&again, "/main").await;
            client.picture_packet().await;
            let taken = SimCamera::start(again.handle.shared.config.clone()).await;
            assert!(matches!(taken, Err(SimCameraError::Listen { addr: a, .. }) if a == addr));
        })
        .await;
    }

    #[tokio::test]
    async fn what_cannot_be_served_is_refused_at_once() {
        let refused = |change: fn(&mut SimCameraConfig)| {
            let mut config = SimCameraConfig::on_loopback(vec![Mount::video("/main", ClipLibrary::h264())]);
            change(&mut config);
            match config.check() {
                Err(SimCameraError::Config { what, .. }) => what,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(|c| c.mounts.clear()), "mounts");
        assert_eq!(refused(|c| c.mounts[0].path = "main".into()), "path");
        assert_eq!(refused(|c| c.payload_max = 10), "payload_max");
        assert_eq!(refused(|c| c.speed = 0), "speed");
        assert_eq!(refused(|c| c.session_timeout = Duration::ZERO), "session_timeout");
    }

    #[tokio::test]
    async fn sessions_and_their_slots_are_bounded() {
        let camera = start(vec![Mount::video("/main", ClipLibrary::h264())], |_| {}).await;
        let shared = &camera.handle.shared;
        let slots: Vec<Slot> = std::iter::from_fn(|| Slot::take(shared, |s| &s.sessions, SESSIONS_MAX)).collect();
        assert_eq!(slots.len(), SESSIONS_MAX);
        in_time(async {
            let mut client = Client::connect(&camera, "/main").await;
            let tcp = "Transport: RTP/AVP/TCP;unicast\r\n";
            assert_eq!(client.ask("SETUP", "/trackID=0", tcp).await.status, 453);
            drop(slots);
            assert_eq!(client.ask("SETUP", "/trackID=0", tcp).await.status, 200);
        })
        .await;
    }

    /// `cargo test --lib serves_for_a_look -- --ignored --nocapture`, then `ffprobe -rtsp_transport tcp|udp URL`.
    #[tokio::test]
    #[ignore = "for a look by hand with ffprobe or a player: serves for half a minute"]
    async fn serves_for_a_look() {
        let mounts = vec![
            Mount::video("/h264", ClipLibrary::h264()).with_audio(ClipLibrary::pcma()),
            Mount::video("/h265", ClipLibrary::h265()).with_audio(ClipLibrary::pcmu()),
            Mount::video("/bframes", ClipLibrary::h264_bframes()).with_audio(ClipLibrary::aac()),
            Mount { sprop: false, ..Mount::video("/h265_in_band", ClipLibrary::h265()) },
        ];
        let camera = start(mounts, |c| {
            c.speed = 1;
            c.listen = SocketAddr::from(([127, 0, 0, 1], 18_554));
            c.account = Some(Account { username: "admin".into(), password: "Pass-1234".into() });
        })
        .await;
        for path in ["/h264", "/h265", "/bframes", "/h265_in_band"] {
            println!("rtsp://admin:Pass-1234@{}{path}", camera.addr);
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        println!("{:?}", camera.handle.counters());
    }
}
