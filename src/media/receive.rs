//! Receives PS over RTP from a device, on the stream's worker: UDP, TCP it opens, TCP we open.
//! Standard: [GB/T28181-2022 annex C, D], [RFC3550 6] receiver reports, [RFC4571].
//! In: a [`ReceiveSpec`] with its sockets. Out: frames into the stream's [`FrameFeed`], [`ReceiveEvent`]s.
//! Invariants: sockets are drained in batches with one reading of the clock each; a source's end is told once; RTCP is
//! answered only to where the device's own came from, and sparsely; a recording's silence is no loss.
//! Bounds: `DRAIN` batches a turn, one connection at a time, `CONNECT_ATTEMPTS` attempts; see `intake` for the rest.
//! Not here: which packets count and what is made of them (`intake`).

use super::frame::Tracks;
use super::hub::SourceFailure;
use super::intake::{Intake, IntakeNote};
use super::worker::FrameFeed;
use crate::clock;
use crate::metrics::Counter;
use crate::proto::rtp::{Frame as Framed, Framer, is_rtcp, rtcp};
use crate::transport::batch::{UdpBatch, receive_trains};
use crate::transport::port_pool::PortLease;
use crate::transport::sockopt::{UDP_BUFFER, bind_active, tune_tcp};
use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::Sleep;

/// Batches taken in one turn: 512 datagrams or trains, several slots of the fastest device.
const DRAIN: usize = 32;
/// Reads of a TCP connection in one turn: 4 MiB.
const TCP_DRAIN: usize = 64;
/// How often limits are looked at, and the RTCP port.
const LOOK: Duration = Duration::from_millis(250);
/// Receiver reports [RFC3550 6.2 asks for 5 s at least].
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// One attempt to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Pause between attempts [GB/T28181-2022 annex D: at least 1 s].
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
/// The first attempt and the retries the standard asks for [GB/T28181-2022 annex D: at least 3].
const CONNECT_ATTEMPTS: u32 = 4;
/// A connection that brought nothing for so long gives way to a new one of the device.
const STALE: Duration = Duration::from_secs(2);
/// How long a device has to connect again after it closed its connection.
const CLOSED_GRACE: Duration = Duration::from_secs(3);
/// Name in our receiver reports.
const CNAME: &str = "menshen";

/// How the device's packets come.
#[derive(Debug)]
pub enum ReceiveTransport {
    /// To `rtp`, with reports to and from `rtcp`.
    Udp {
        /// Bound to the address and port the SDP offer names.
        rtp: std::net::UdpSocket,
        /// Bound to the port above it.
        rtcp: Option<std::net::UdpSocket>,
        /// Only from these addresses; empty: from anybody.
        from: Vec<IpAddr>,
    },
    /// The device connects to us.
    TcpPassive {
        /// Listening on what the SDP offer names.
        listener: std::net::TcpListener,
        /// Only from these addresses; empty: from anybody.
        from: Vec<IpAddr>,
    },
    /// We connect to the device.
    TcpActive {
        /// Our address and port.
        local: SocketAddr,
        /// From the device's answer.
        to: SocketAddr,
    },
}

/// Whose packets count. The number is the one of the `y=` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SsrcRule {
    /// This one alone.
    Strict(u32),
    /// This one, or the first other one that sends several packets in sequence; from then on that one alone.
    Learn(u32),
}

/// How a stream reaches its sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlanePolicy {
    /// By relay where nothing needs mending.
    #[default]
    Auto,
    /// Always demuxed and muxed anew.
    Remux,
    /// Always as it came, whatever is wrong with it.
    Relay,
}

/// How a stream does reach its sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plane {
    /// Demuxed and muxed anew.
    Remux,
    /// RTP payloads pass as they came.
    Relay,
}

impl Plane {
    /// Fixed word for logs and the console.
    pub fn as_str(self) -> &'static str {
        match self {
            Plane::Remux => "remux",
            Plane::Relay => "relay",
        }
    }
}

/// What a source counts; cheap clones of registered metrics.
#[derive(Debug, Clone, Default)]
pub struct ReceiveMeters {
    /// RTP packets of the device.
    pub packets: Counter,
    /// Their bytes, headers included.
    pub bytes: Counter,
    /// Packets found missing.
    pub lost: Counter,
    /// Packets of another SSRC, or from an address that was not named.
    pub alien: Counter,
    /// Packets put in order.
    pub reordered: Counter,
    /// Packets that came twice.
    pub duplicates: Counter,
    /// Packets that came after their place was given up.
    pub late: Counter,
    /// Times the program stream's structure was lost although no packet was.
    pub resyncs: Counter,
}

/// Everything a source is made of.
#[derive(Debug)]
pub struct ReceiveSpec {
    /// Where from.
    pub transport: ReceiveTransport,
    /// Holds the port while it receives.
    pub port: Option<PortLease>,
    /// Whose packets count.
    pub ssrc: SsrcRule,
    /// How the stream is to reach its sinks.
    pub plane: PlanePolicy,
    /// A recording: silence is not loss, its owner says when it is over.
    pub session: bool,
    /// Without a packet within this there is no source. Not of a recording.
    pub first_packet_limit: Duration,
    /// Without a picture for so long the source is lost. Not of a recording.
    pub silence_limit: Duration,
    /// What it adds to.
    pub meters: ReceiveMeters,
    /// Who wants to know; room for a few events, the last one is waited for.
    pub events: mpsc::Sender<(u64, ReceiveEvent)>,
    /// Returned with every event.
    pub token: u64,
}

/// Told to the source's owner.
#[derive(Debug, Clone, PartialEq)]
pub enum ReceiveEvent {
    /// The first packet of the device came.
    FirstPacket(Instant),
    /// The first picture is here; again when the tracks change.
    Playing {
        /// What the stream carries.
        tracks: Tracks,
        /// How it reaches its sinks.
        plane: Plane,
        /// The device's SSRC.
        ssrc: u32,
    },
    /// It is over: `no_media`, `stalled`, `no_video`, `unreachable`, `closed`, `socket`, `broken`.
    Ended(SourceFailure),
}

fn failure(reason: &'static str, text: impl Into<String>) -> SourceFailure {
    SourceFailure { reason, text: text.into() }
}

/// Receives until cancelled (dropped) or the source is lost. To be run on the stream's seat.
pub async fn receive(spec: ReceiveSpec, feed: FrameFeed) {
    let told = Told { events: spec.events.clone(), token: spec.token };
    let stream = !matches!(spec.transport, ReceiveTransport::Udp { .. });
    let mut source = Source {
        intake: Intake::new(spec.ssrc, spec.plane, stream, feed, spec.meters.clone()),
        meters: spec.meters,
        session: spec.session,
        first_packet_limit: spec.first_packet_limit,
        silence_limit: spec.silence_limit,
        began: clock::now(),
        events: spec.events,
        token: spec.token,
        ssrc: spec.ssrc,
    };
    // The port is freed after its sockets, which the transport holds.
    let _port = spec.port;
    let result = match spec.transport {
        ReceiveTransport::Udp { rtp, rtcp, from } => source.udp(rtp, rtcp, &from).await,
        ReceiveTransport::TcpPassive { listener, from } => source.tcp_passive(listener, &from).await,
        ReceiveTransport::TcpActive { local, to } => source.tcp_active(local, to).await,
    };
    let failure = match result {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let Told { events, token } = &told;
    let _ = events.send((*token, ReceiveEvent::Ended(failure))).await;
}

/// A fault of ours is told too; cancelling is not, for who cancels knows.
struct Told {
    events: mpsc::Sender<(u64, ReceiveEvent)>,
    token: u64,
}

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let failure = failure("broken", "a fault in the gateway's media receiver ended it");
            let _ = self.events.try_send((self.token, ReceiveEvent::Ended(failure)));
        }
    }
}

enum Never {}

struct Source {
    intake: Intake,
    meters: ReceiveMeters,
    session: bool,
    first_packet_limit: Duration,
    silence_limit: Duration,
    began: Instant,
    events: mpsc::Sender<(u64, ReceiveEvent)>,
    token: u64,
    ssrc: SsrcRule,
}

impl Source {
    /// After every batch and every [`LOOK`]: tells what there is to tell; an error when the source is lost.
    fn look(&mut self, now: Instant) -> Result<(), SourceFailure> {
        self.intake.poll(now);
        while let Some(note) = self.intake.pop_note() {
            let event = match note {
                IntakeNote::FirstPacket => ReceiveEvent::FirstPacket(now),
                IntakeNote::Playing(tracks, plane) => {
                    let (SsrcRule::Strict(expected) | SsrcRule::Learn(expected)) = self.ssrc;
                    let ssrc = self.intake.ssrc().unwrap_or(expected);
                    ReceiveEvent::Playing { tracks, plane, ssrc }
                }
            };
            let _ = self.events.try_send((self.token, event));
        }
        if self.session {
            return Ok(());
        }
        let Some(first) = self.intake.first_packet() else {
            if now.saturating_duration_since(self.began) < self.first_packet_limit {
                return Ok(());
            }
            let limit = self.first_packet_limit;
            return Err(failure(
                "no_media",
                format!("no packet within {limit:?}: check the way for media to our port"),
            ));
        };
        // Only a picture moves this on: a device whose encoder hangs may still send sound.
        let (since, reason) = match self.intake.last_picture() {
            Some(at) => (at, "stalled"),
            None => (first, "no_video"),
        };
        if now.saturating_duration_since(since) < self.silence_limit {
            return Ok(());
        }
        let limit = self.silence_limit;
        Err(match reason {
            "stalled" => failure("stalled", format!("no picture for {limit:?}")),
            _ => failure("no_video", self.intake.why_no_picture()),
        })
    }
}

/// A timer that is set anew only when its time changes.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
    look: Instant,
}

impl Alarm {
    fn new(now: Instant) -> Self {
        let look = now + LOOK;
        Alarm { sleep: Box::pin(tokio::time::sleep_until(look.into())), at: look, look }
    }

    /// Set to the next look, or sooner.
    fn set(&mut self, sooner: Option<Instant>) -> Pin<&mut Sleep> {
        let at = sooner.map_or(self.look, |t| t.min(self.look));
        if at != self.at {
            self.at = at;
            self.sleep.as_mut().reset(at.into());
        }
        self.sleep.as_mut()
    }

    /// Whether it is time for the slow things.
    fn is_look(&mut self, now: Instant) -> bool {
        let due = now >= self.look;
        if due {
            self.look = now + LOOK;
        }
        due
    }
}

fn is_named(from: &[IpAddr], ip: IpAddr) -> bool {
    from.is_empty() || from.contains(&ip.to_canonical())
}

// ---- UDP ----

thread_local! {
    /// One for all sources of a worker: it is read out at once.
    static BATCH: RefCell<UdpBatch> = RefCell::default();
}

impl Source {
    async fn udp(
        &mut self,
        rtp: std::net::UdpSocket,
        rtcp: Option<std::net::UdpSocket>,
        from: &[IpAddr],
    ) -> Result<Never, SourceFailure> {
        let broken = |e: io::Error| failure("socket", format!("cannot receive: {e}"));
        receive_trains(&rtp);
        // The kernel caps what it will not give.
        let _ = socket2::SockRef::from(&rtp).set_recv_buffer_size(UDP_BUFFER);
        for socket in [Some(&rtp), rtcp.as_ref()].into_iter().flatten() {
            socket.set_nonblocking(true).map_err(broken)?;
        }
        let socket = UdpSocket::from_std(rtp).map_err(broken)?;
        let mut reports = Reports { rtcp, device: None, to: None, sender_report: None, last: None };
        let mut alarm = Alarm::new(clock::now());
        loop {
            tokio::select! {
                biased;
                ready = socket.readable() => ready.map_err(broken)?,
                () = alarm.set(self.intake.next_timeout()) => {}
            }
            let now = clock::now();
            for _ in 0..DRAIN {
                let mut full = false;
                let result = BATCH.with_borrow_mut(|batch| {
                    let result = socket.try_io(tokio::io::Interest::READABLE, || {
                        full = batch.receive(&socket)?;
                        // All of it is taken: the next datagram wakes us anew.
                        if full { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
                    });
                    for (bytes, sender) in batch.datagrams() {
                        self.datagram(bytes, sender, from, &mut reports, now);
                    }
                    batch.clear();
                    result
                });
                match result {
                    Err(e) if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                        return Err(broken(e));
                    }
                    _ => {}
                }
                if !full {
                    break;
                }
            }
            self.look(now)?;
            if alarm.is_look(now) {
                reports.exchange(&mut self.intake, &socket, now);
            }
        }
    }

    fn datagram(&mut self, bytes: &[u8], sender: SocketAddr, from: &[IpAddr], reports: &mut Reports, now: Instant) {
        if !is_named(from, sender.ip()) {
            self.meters.alien.inc();
        } else if is_rtcp(bytes) {
            reports.heard(bytes, sender, true, self.intake.ssrc(), now);
        } else if self.intake.packet(bytes, now) {
            reports.device = Some(sender.ip());
        }
    }
}

/// The RTCP of one UDP source.
struct Reports {
    rtcp: Option<std::net::UdpSocket>,
    /// Where its RTP comes from.
    device: Option<IpAddr>,
    /// Where its RTCP came from, and whether to our RTP port.
    to: Option<(SocketAddr, bool)>,
    /// The middle of its last report's NTP time, and when it came.
    sender_report: Option<(u32, Instant)>,
    last: Option<Instant>,
}

impl Reports {
    fn heard(&mut self, bytes: &[u8], sender: SocketAddr, muxed: bool, ssrc: Option<u32>, now: Instant) {
        if self.device != Some(sender.ip()) {
            // Before its first packet nobody knows who it is; a stranger is never answered.
            return;
        }
        self.to = Some((sender, muxed));
        rtcp::read(bytes, |report| {
            if let rtcp::Report::Sender { ssrc: of, ntp, .. } = report
                && Some(of) == ssrc
            {
                self.sender_report = Some(((ntp >> 16) as u32, now));
            }
        });
    }

    /// Reads what came to the RTCP port and answers when it is time.
    fn exchange(&mut self, intake: &mut Intake, rtp: &UdpSocket, now: Instant) {
        let mut scratch = [0u8; 1500];
        for _ in 0..8 {
            let Some(Ok((length, sender))) = self.rtcp.as_ref().map(|s| s.recv_from(&mut scratch)) else { break };
            if is_rtcp(&scratch[..length]) {
                self.heard(&scratch[..length], sender, false, intake.ssrc(), now);
            }
        }
        let (Some((to, muxed)), Some(source)) = (self.to, intake.ssrc()) else { return };
        if self.last.is_some_and(|t| now.saturating_duration_since(t) < REPORT_INTERVAL) {
            return;
        }
        self.last = Some(now);
        let (last_sender_report, at) = self.sender_report.unwrap_or((0, now));
        let stream = rtcp::ReceivedStream {
            // Any number but the source's.
            ssrc: !source,
            source,
            last_sender_report,
            since_sender_report: now.saturating_duration_since(at),
        };
        let mut report = [0u8; rtcp::MAX_COMPOUND];
        if let Ok(length) = rtcp::write_receiver_report(&mut report, &stream, intake.sequence_mut(), CNAME) {
            // A report that does not leave is no loss: the next one does.
            let _ = match (&self.rtcp, muxed) {
                (Some(socket), false) => socket.send_to(&report[..length], to),
                _ => rtp.try_send_to(&report[..length], to),
            };
        }
    }
}

// ---- TCP ----

struct Connection {
    stream: TcpStream,
    framer: Framer,
    peer: SocketAddr,
    last_read: Instant,
}

impl Connection {
    fn new(stream: TcpStream, peer: SocketAddr, now: Instant) -> Self {
        // On a connection that is gone already the next read tells.
        let _ = tune_tcp(&stream);
        Connection { stream, framer: Framer::new(), peer, last_read: now }
    }
}

/// Readable, or never.
async fn readable(connection: Option<&Connection>) {
    match connection {
        // An error shows in the read.
        Some(connection) => drop(connection.stream.readable().await),
        None => std::future::pending().await,
    }
}

impl Source {
    /// Takes what is there; an error when the connection is of no more use.
    fn read(&mut self, connection: &mut Connection, now: Instant) -> Result<(), String> {
        let Connection { stream, framer, last_read, .. } = connection;
        for _ in 0..TCP_DRAIN {
            match stream.try_read(framer.space()) {
                Ok(0) => return Err("the device closed it".into()),
                Ok(count) => framer.commit(count),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.to_string()),
            }
            *last_read = now;
            loop {
                match framer.pull() {
                    Ok(Some(Framed::Rtp(bytes))) => _ = self.intake.packet(bytes, now),
                    Ok(Some(Framed::RawPs(bytes))) => self.intake.bare(bytes, now),
                    Ok(Some(Framed::Rtcp(_))) => {}
                    Ok(None) => break,
                    Err(e) => return Err(e.to_string()),
                }
            }
        }
        Ok(())
    }

    async fn tcp_passive(&mut self, listener: std::net::TcpListener, from: &[IpAddr]) -> Result<Never, SourceFailure> {
        let broken = |e: io::Error| failure("socket", format!("cannot accept: {e}"));
        listener.set_nonblocking(true).map_err(broken)?;
        let listener = TcpListener::from_std(listener).map_err(broken)?;
        let mut current: Option<Connection> = None;
        let mut closed: Option<(Instant, String)> = None;
        let mut alarm = Alarm::new(clock::now());
        loop {
            let accepted = tokio::select! {
                biased;
                () = readable(current.as_ref()) => None,
                accepted = listener.accept() => Some(accepted),
                () = alarm.set(self.intake.next_timeout()) => None,
            };
            let now = clock::now();
            match accepted {
                None => {}
                Some(Ok((_, peer))) if !is_named(from, peer.ip()) => {
                    self.meters.alien.inc();
                    tracing::warn!(%peer, "media connection from an address that was not named: closed");
                }
                Some(Ok((stream, peer))) => {
                    let alive = |c: &Connection| now.saturating_duration_since(c.last_read) < STALE;
                    if current.as_ref().is_some_and(alive) {
                        tracing::warn!(%peer, "a second media connection while the first one brings data: closed");
                    } else {
                        if closed.is_some() || current.is_some() {
                            self.intake.reconnected();
                        }
                        closed = None;
                        current = Some(Connection::new(stream, peer, now));
                    }
                }
                Some(Err(e)) => tracing::debug!(error = %e, "accept for media failed"),
            }
            if let Some(connection) = &mut current
                && let Err(why) = self.read(connection, now)
            {
                tracing::info!(peer = %connection.peer, why, "a media connection ended");
                current = None;
                closed = Some((now, why));
            }
            self.look(now)?;
            alarm.is_look(now);
            if let Some((since, why)) = &closed
                && now.saturating_duration_since(*since) >= CLOSED_GRACE
            {
                return Err(failure("closed", format!("the media connection ended: {why}")));
            }
        }
    }

    async fn tcp_active(&mut self, local: SocketAddr, to: SocketAddr) -> Result<Never, SourceFailure> {
        let (mut attempts, mut reason) = (0, "unreachable");
        loop {
            attempts += 1;
            let why = match tokio::time::timeout(CONNECT_LIMIT, connect(local, to)).await {
                Ok(Ok(stream)) => {
                    let now = clock::now();
                    if reason == "closed" {
                        self.intake.reconnected();
                    }
                    (attempts, reason) = (0, "closed");
                    self.serve(Connection::new(stream, to, now)).await?
                }
                Ok(Err(e)) => e.to_string(),
                Err(_) => format!("no answer within {CONNECT_LIMIT:?}"),
            };
            tracing::info!(%to, attempts, why, "no media connection");
            if attempts >= CONNECT_ATTEMPTS {
                return Err(failure(reason, format!("cannot connect to {to} for media: {why}")));
            }
            tokio::time::sleep(CONNECT_PAUSE).await;
            self.look(clock::now())?;
        }
    }

    /// Reads one connection to its end, and says why it ended; an error when the source is lost.
    async fn serve(&mut self, mut connection: Connection) -> Result<String, SourceFailure> {
        let mut alarm = Alarm::new(clock::now());
        loop {
            tokio::select! {
                biased;
                () = readable(Some(&connection)) => {}
                () = alarm.set(self.intake.next_timeout()) => {}
            }
            let now = clock::now();
            if let Err(why) = self.read(&mut connection, now) {
                return Ok(why);
            }
            self.look(now)?;
            alarm.is_look(now);
        }
    }
}

async fn connect(local: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = bind_active(local).map_err(io::Error::other)?;
    let stream = TcpStream::from_std(socket.connect(to)?)?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(e) => Err(e),
        None => Ok(stream),
    }
}
