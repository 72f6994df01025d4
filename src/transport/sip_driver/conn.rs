//! The sockets' side: one task for each UDP socket, each TCP listener, each connection.
//! Standard: [RFC3261 18], [RFC5626 3.5.1] CRLF keep-alive.
//! In: bytes of the network, a connection's bounded queue of messages to send. Out: [`Net`] inputs to the driver.
//! Invariants: every wait has a limit; a task's last word is [`Net::Closed`], unless the driver has aborted it; what
//! stands in the driver's queue is bounded in number and in bytes, the rest waits in the kernel.
//! Not here: what messages mean, which connection to use (`super`).

use super::counters::{Count, DriverCounters};
use super::{Limits, TlsClient};
use crate::proto::sip::framer::{Frame, FrameError, Framer, Limits as FrameLimits};
use crate::proto::sip::message::ConnId;
use crate::transport::sockopt;
use bytes::Bytes;
use rustls::ServerConfig;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Inputs waiting for the driver. Small: behind it stand the sockets' own buffers.
pub(super) const NET_QUEUE: usize = 1024;
/// Bytes of messages waiting for the driver: 1,024 datagrams of 64 KiB would be four times as much.
pub(super) const NET_QUEUE_BYTES: usize = 16 << 20;
/// The largest datagram IPv4 can carry.
const DATAGRAM_MAX: usize = 65_536;
/// Read in one go from a connection: one ordinary message; each connection has such a buffer.
const READ_SIZE: usize = 4 << 10;
/// Messages written to a connection in one go at most.
const WRITE_BATCH: usize = 64;
/// Messages waiting to be written to one connection; the limit in bytes is the one that matters.
pub(super) const WRITE_QUEUE: usize = 1024;
/// A peer that takes nothing for this long does not read.
const WRITE_STALL: Duration = Duration::from_secs(10);
/// An accepted connection shows its first message within this, or goes: empty connections cost strangers nothing.
const FIRST_MESSAGE: Duration = Duration::from_secs(60);
/// What a connection of nobody's peer may hold half received: all strangers together stay below 330 MiB.
const STRANGER_FRAME: FrameLimits = FrameLimits { head: 16 << 10, body: 64 << 10 };
/// TLS farewell.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Without descriptors, accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// After an error of a UDP socket that is not a peer's ICMP answer.
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);

/// What the sockets tell the driver.
#[derive(Debug)]
pub(super) enum Net {
    Datagram {
        local: SocketAddr,
        peer: SocketAddr,
        bytes: Bytes,
        _budget: OwnedSemaphorePermit,
    },
    Accepted {
        local: SocketAddr,
        peer: SocketAddr,
        stream: TcpStream,
        tls: Option<Arc<ServerConfig>>,
    },
    Message {
        conn: ConnId,
        head: Bytes,
        body: Bytes,
        _budget: OwnedSemaphorePermit,
    },
    /// The stream cannot be cut further. The task waits for the driver to let go of its queue, so that a last answer
    /// can still leave.
    Broken {
        conn: ConnId,
        error: FrameError,
    },
    Closed {
        conn: ConnId,
        why: CloseReason,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// The driver let go of its end.
    Ours,
    Peer,
    Idle,
    Io(io::ErrorKind),
    MessageTimeout,
    /// Said by the driver, after [`Net::Broken`].
    Framing(&'static str),
    WriteStall,
    Open(String),
    Handshake(String),
}

impl CloseReason {
    pub(super) fn count(&self) -> Option<Count> {
        match self {
            CloseReason::Ours | CloseReason::Peer | CloseReason::Io(_) => None,
            CloseReason::Idle => Some(Count::Idle),
            CloseReason::MessageTimeout => Some(Count::MessageTimeout),
            CloseReason::Framing(_) => Some(Count::Framing),
            CloseReason::WriteStall => Some(Count::SlowPeer),
            CloseReason::Open(_) => Some(Count::OpenFailed),
            CloseReason::Handshake(_) => Some(Count::HandshakeFailed),
        }
    }
}

/// The way into the driver; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct NetSender {
    pub tx: mpsc::Sender<Net>,
    pub budget: Arc<Semaphore>,
    pub counters: Arc<DriverCounters>,
}

impl NetSender {
    /// Waits for room. `None` when the driver has gone.
    async fn permit(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = bytes.clamp(1, NET_QUEUE_BYTES) as u32;
        self.budget.clone().acquire_many_owned(bytes).await.ok()
    }
}

/// Reads datagrams until the driver has gone.
pub(super) async fn read_udp(local: SocketAddr, socket: Arc<UdpSocket>, net: NetSender) {
    let mut buf = vec![0; DATAGRAM_MAX];
    loop {
        match socket.recv_from(&mut buf).await {
            Ok((n, peer)) => {
                let Some(_budget) = net.permit(n).await else { return };
                let bytes = Bytes::copy_from_slice(&buf[..n]);
                if net.tx.send(Net::Datagram { local, peer, bytes, _budget }).await.is_err() {
                    return;
                }
            }
            Err(e) => {
                net.counters.add(Count::UdpReceiveFailed);
                // An ICMP answer to something sent earlier: says nothing about this socket.
                if !matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) {
                    tracing::warn!(%local, error = %e, "receiving datagrams failed");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }
}

/// Accepts connections until the driver has gone. The driver decides whether they may stay.
pub(super) async fn accept_tcp(
    local: SocketAddr,
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    net: NetSender,
) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if net.tx.send(Net::Accepted { local, peer, stream, tls: tls.clone() }).await.is_err() {
                    return;
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            Err(e) => {
                net.counters.add(Count::AcceptPaused);
                tracing::warn!(%local, error = %e, "accepting connections paused: raise LimitNOFILE if descriptors are short");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How a connection begins.
pub(super) enum Origin {
    Accepted { stream: TcpStream, tls: Option<Arc<ServerConfig>>, trusted: bool },
    Connect { local_ip: Option<IpAddr>, peer: SocketAddr, tls: Option<TlsClient> },
}

/// One connection, from opening to closing.
pub(super) struct ConnTask {
    pub id: ConnId,
    pub origin: Origin,
    pub queue: mpsc::Receiver<Bytes>,
    /// Bytes in `queue`; the driver adds, this task takes away.
    pub queued: Arc<AtomicUsize>,
    /// The driver sets it when a stranger has become a known peer.
    pub known: Arc<AtomicBool>,
    pub net: NetSender,
    pub limits: Limits,
}

impl ConnTask {
    pub(super) async fn run(self) {
        let ConnTask { id, origin, queue, queued, known, net, limits } = self;
        let (frame_limits, first_message) = match &origin {
            Origin::Accepted { trusted: false, .. } => (STRANGER_FRAME, Some(FIRST_MESSAGE)),
            _ => (FrameLimits::default(), None),
        };
        let link = Link { id, queue, queued, known, net: net.clone(), limits, frame_limits, first_message };
        let why = link.open(origin).await;
        // The driver may be gone, then nobody wants to know.
        let _ = net.tx.send(Net::Closed { conn: id, why }).await;
    }
}

struct Link {
    id: ConnId,
    queue: mpsc::Receiver<Bytes>,
    queued: Arc<AtomicUsize>,
    known: Arc<AtomicBool>,
    net: NetSender,
    limits: Limits,
    frame_limits: FrameLimits,
    first_message: Option<Duration>,
}

impl Link {
    async fn open(self, origin: Origin) -> CloseReason {
        let handshake_time = self.limits.handshake_time;
        match origin {
            Origin::Accepted { stream, tls, .. } => {
                if let Err(e) = sockopt::tune_tcp(&stream) {
                    return CloseReason::Io(e.kind());
                }
                match tls {
                    None => self.exchange(stream).await,
                    Some(config) => match timeout(handshake_time, TlsAcceptor::from(config).accept(stream)).await {
                        Ok(Ok(stream)) => self.exchange(stream).await,
                        Ok(Err(e)) => CloseReason::Handshake(e.to_string()),
                        Err(_) => CloseReason::Handshake("too slow".to_string()),
                    },
                }
            }
            Origin::Connect { local_ip, peer, tls } => {
                let stream = match timeout(self.limits.connect_time, connect(local_ip, peer)).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(e)) => return CloseReason::Open(e.to_string()),
                    Err(_) => return CloseReason::Open("no answer".to_string()),
                };
                match tls {
                    None => self.exchange(stream).await,
                    Some(TlsClient { config, server_name }) => {
                        let handshake = TlsConnector::from(config).connect(server_name, stream);
                        match timeout(handshake_time, handshake).await {
                            Ok(Ok(stream)) => self.exchange(stream).await,
                            Ok(Err(e)) => CloseReason::Handshake(e.to_string()),
                            Err(_) => CloseReason::Handshake("too slow".to_string()),
                        }
                    }
                }
            }
        }
    }

    async fn exchange<S: AsyncRead + AsyncWrite>(self, stream: S) -> CloseReason {
        let (reader, writer) = tokio::io::split(stream);
        let shared = Shared { pong: Notify::new(), start: Instant::now(), wrote_ms: AtomicU64::new(0) };
        let Link { id, queue, queued, known, net, limits, frame_limits, first_message } = self;
        let reading = Reading { conn: id, net, limits, known, framer: Framer::new(frame_limits), first_message };
        tokio::select! {
            why = reading.run(reader, &shared) => why,
            why = write(writer, queue, &queued, &shared) => why,
        }
    }
}

/// What the two halves of a connection tell each other.
struct Shared {
    /// The reader saw a ping.
    pong: Notify,
    start: Instant,
    /// When the writer last wrote, since `start`.
    wrote_ms: AtomicU64,
}

async fn connect(local_ip: Option<IpAddr>, peer: SocketAddr) -> io::Result<TcpStream> {
    let socket = if peer.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(ip) = local_ip {
        socket.bind(SocketAddr::new(ip, 0))?;
    }
    let stream = socket.connect(peer).await?;
    sockopt::tune_tcp(&stream)?;
    Ok(stream)
}

/// The reading half of a connection.
struct Reading {
    conn: ConnId,
    net: NetSender,
    limits: Limits,
    known: Arc<AtomicBool>,
    framer: Framer,
    first_message: Option<Duration>,
}

impl Reading {
    async fn run<R: AsyncRead + Unpin>(mut self, mut reader: R, shared: &Shared) -> CloseReason {
        let mut buf = vec![0; READ_SIZE];
        // When anything last moved.
        let mut active = shared.start;
        // When the message that is incomplete now began to come in.
        let mut incomplete: Option<Instant> = None;
        loop {
            let deadline = match (incomplete, self.first_message) {
                (Some(since), _) => since + self.limits.message_time,
                (None, Some(first)) => shared.start + first.min(self.limits.idle_close),
                (None, None) => active + self.limits.idle_close,
            };
            let n = match timeout_at(deadline, reader.read(&mut buf)).await {
                Ok(Ok(0)) => return CloseReason::Peer,
                Ok(Ok(n)) => n,
                Ok(Err(e)) => return CloseReason::Io(e.kind()),
                Err(_) if incomplete.is_some() => return CloseReason::MessageTimeout,
                Err(_) => {
                    let wrote = shared.start + Duration::from_millis(shared.wrote_ms.load(Ordering::Relaxed));
                    if wrote <= active || self.first_message.is_some() {
                        return CloseReason::Idle;
                    }
                    active = wrote;
                    continue;
                }
            };
            if self.known.load(Ordering::Relaxed) {
                self.framer.set_limits(FrameLimits::default());
            }
            self.framer.push(&buf[..n]);
            let Some(complete) = self.pull_all(shared).await else {
                // The driver stops: the writing half sends what is left and ends this connection.
                return std::future::pending().await;
            };
            active = Instant::now();
            incomplete = match (self.framer.is_idle(), incomplete) {
                (true, _) => None,
                (false, Some(since)) if !complete => Some(since),
                (false, _) => Some(active),
            };
        }
    }

    /// Hands all whole messages to the driver; true when there was one. `None` when the driver has gone.
    async fn pull_all(&mut self, shared: &Shared) -> Option<bool> {
        let conn = self.conn;
        let mut complete = false;
        loop {
            match self.framer.pull() {
                Ok(None) => return Some(complete),
                Ok(Some(Frame::Ping)) => shared.pong.notify_one(),
                Ok(Some(Frame::Pong)) => {}
                Ok(Some(Frame::Message { head, body })) => {
                    complete = true;
                    self.first_message = None;
                    let _budget = self.net.permit(head.len() + body.len()).await?;
                    self.net.tx.send(Net::Message { conn, head, body, _budget }).await.ok()?;
                }
                Err(error) => {
                    self.net.tx.send(Net::Broken { conn, error }).await.ok()?;
                    // The writing half ends this connection, when the driver has let go.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut queue: mpsc::Receiver<Bytes>,
    queued: &AtomicUsize,
    shared: &Shared,
) -> CloseReason {
    let mut batch = Vec::with_capacity(WRITE_BATCH);
    loop {
        let open = tokio::select! {
            biased;
            n = queue.recv_many(&mut batch, WRITE_BATCH) => n > 0,
            () = shared.pong.notified() => { batch.push(Bytes::from_static(b"\r\n")); queued.fetch_add(2, Ordering::Relaxed); true }
        };
        if !open {
            // The driver has let go and everything is written.
            let _ = timeout(CLOSE_TIME, writer.shutdown()).await;
            return CloseReason::Ours;
        }
        for bytes in batch.drain(..) {
            match timeout(WRITE_STALL, writer.write_all(&bytes)).await {
                Ok(Ok(())) => {
                    queued.fetch_sub(bytes.len(), Ordering::Relaxed);
                }
                Ok(Err(e)) => return CloseReason::Io(e.kind()),
                Err(_) => return CloseReason::WriteStall,
            }
        }
        // TLS keeps what is not flushed.
        match timeout(WRITE_STALL, writer.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return CloseReason::Io(e.kind()),
            Err(_) => return CloseReason::WriteStall,
        }
        shared.wrote_ms.store(shared.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}
