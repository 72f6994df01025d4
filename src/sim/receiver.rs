//! The receiving end of a simulated platform's media: RTP over UDP or TCP, read and compared with the camera's clip.
//!
//! Standard: [RFC3550 11] port pairs, [RFC4571], [GB/T28181-2022 annex D] media over TCP in both roles.
//! In: a role, then what the answer said. Out: a `Verdict` that is published while it grows.
//! Invariants: a receiver listens before its port is offered; it reads until cancelled, and then what the system has
//! already taken in; no wait is without end.
//! Not here: reading the packets (`verify`), what is wrong with them (`verdict`), the call (`sim::platform`).

mod verdict;
mod verify;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use verdict::{Alteration, Problem, Verdict};
pub use verify::Expected;

use crate::clock;
use crate::proto::rtp::{Frame, Framer, is_rtcp};
use crate::proto::sdp::MediaTransport;
use crate::transport::sockopt::{ActiveSocket, BindError, bind_active, bind_tcp, bind_udp, tune_tcp};
use verify::Verifier;

/// Ports tried until an even one with a free neighbour turns up.
const PORT_TRIES: usize = 64;
/// Datagrams read before the verdict is published and others have their turn.
const BATCH: usize = 64;
/// Reads after the end: more than the largest socket buffer holds, so that a sender who does not stop cannot hold us.
const DRAIN: usize = 64;
/// Longest datagram there can be.
const DATAGRAM: usize = 65_536;
/// Tries to connect, and the pause between them [GB/T28181-2022 annex D: at least 3, at least 1 s].
const CONNECT_TRIES: usize = 3;
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
/// One try to connect.
const CONNECT_TIME: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Sockets {
    Udp { rtp: std::net::UdpSocket, rtcp: std::net::UdpSocket },
    Listener(std::net::TcpListener),
    Active(ActiveSocket),
}

/// A receiver's port: bound, not yet read.
#[derive(Debug)]
pub struct ReceiverPort {
    sockets: Sockets,
    local: SocketAddr,
    port: NonZeroU16,
}

/// What a receiver is to do.
#[derive(Debug, Clone)]
pub struct ReceivePlan {
    /// The sender's address out of its answer.
    pub remote: SocketAddr,
    /// What is to come.
    pub expected: Expected,
    /// When the INVITE left: what times are counted from.
    pub began: Instant,
    /// Write the program stream there.
    pub dump: Option<PathBuf>,
}

impl ReceiverPort {
    /// Binds what `transport` (the role is the receiver's) needs, on a free port of `ip`; over UDP an even one, with
    /// RTCP on the port above.
    ///
    /// # Errors
    /// [`BindError`] with the address.
    pub fn bind(ip: IpAddr, transport: MediaTransport) -> Result<Self, BindError> {
        let any = SocketAddr::new(ip, 0);
        let failed = |error: io::Error| BindError::new(if transport.is_tcp() { "TCP" } else { "UDP" }, any, &error);
        let (sockets, local) = match transport {
            MediaTransport::Udp => {
                let (rtp, rtcp) = bind_pair(any)?;
                let local = rtp.local_addr().map_err(failed)?;
                (Sockets::Udp { rtp, rtcp }, local)
            }
            MediaTransport::TcpPassive => {
                let listener = bind_tcp(any, "TCP")?;
                let local = listener.local_addr().map_err(failed)?;
                (Sockets::Listener(listener), local)
            }
            MediaTransport::TcpActive => {
                // A free port, so that the offer can name the one the connection will come from.
                let free = bind_tcp(any, "TCP")?.local_addr().map_err(failed)?;
                (Sockets::Active(bind_active(free)?), free)
            }
        };
        let port = NonZeroU16::new(local.port())
            .ok_or_else(|| BindError::new("UDP", any, &io::Error::from(io::ErrorKind::AddrNotAvailable)))?;
        Ok(ReceiverPort { sockets, local, port })
    }

    /// The port to offer.
    pub fn port(&self) -> NonZeroU16 {
        self.port
    }

    /// Receives until `cancel`, then reads what has already come, and ends. `verdict` follows.
    pub async fn run(self, plan: ReceivePlan, verdict: watch::Sender<Verdict>, cancel: CancellationToken) {
        let mut reading =
            Reading { verifier: Verifier::new(plan.expected, plan.began, plan.dump.is_some()), dump: None, verdict };
        if let Some(path) = &plan.dump {
            match File::create(path).await {
                Ok(file) => reading.dump = Some(file),
                Err(error) => reading.verifier.verdict_mut().dump_error = Some(error.to_string()),
            }
        }
        let ended = match self.sockets {
            Sockets::Udp { rtp, rtcp } => reading.udp(rtp, rtcp, plan.remote, &cancel).await,
            Sockets::Listener(listener) => reading.accept(listener, &cancel).await,
            Sockets::Active(socket) => reading.connect(socket, self.local, plan.remote, &cancel).await,
        };
        if let Err(error) = ended {
            reading.verifier.verdict_mut().connect_error = Some(error.to_string());
            reading.publish().await;
            cancel.cancelled().await;
        }
        reading.verifier.finish(clock::now());
        reading.publish().await;
        if let Some(mut file) = reading.dump.take() {
            // What could not be written was reported when it was.
            let _ = file.flush().await;
        }
    }
}

/// An even port and the one above it.
fn bind_pair(any: SocketAddr) -> Result<(std::net::UdpSocket, std::net::UdpSocket), BindError> {
    let mut tries = PORT_TRIES;
    loop {
        tries -= 1;
        let rtp = bind_udp(any)?;
        let local = rtp.local_addr().map_err(|error| BindError::new("UDP", any, &error))?;
        let above = local.port().checked_add(1).filter(|_| local.port() % 2 == 0);
        let rtcp = above.map(|port| bind_udp(SocketAddr::new(local.ip(), port)));
        match rtcp {
            Some(Ok(rtcp)) => return Ok((rtp, rtcp)),
            Some(Err(error)) if tries == 0 => return Err(error),
            None if tries == 0 => {
                return Err(BindError::new("UDP", any, &io::Error::from(io::ErrorKind::AddrInUse)));
            }
            _ => {}
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// A running receiver.
struct Reading {
    verifier: Verifier,
    dump: Option<File>,
    verdict: watch::Sender<Verdict>,
}

impl Reading {
    async fn publish(&mut self) {
        if let Some(bytes) = self.verifier.take_dump()
            && let Some(file) = &mut self.dump
            && let Err(error) = file.write_all(&bytes).await
        {
            self.verifier.verdict_mut().dump_error = Some(error.to_string());
            self.dump = None;
        }
        self.verdict.send_replace(self.verifier.verdict());
    }

    async fn udp(
        &mut self,
        rtp: std::net::UdpSocket,
        rtcp: std::net::UdpSocket,
        remote: SocketAddr,
        cancel: &CancellationToken,
    ) -> io::Result<()> {
        let (rtp, rtcp) = (UdpSocket::from_std(rtp)?, UdpSocket::from_std(rtcp)?);
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let deadline = self.verifier.next_timeout();
            let mut ended = false;
            tokio::select! {
                biased;
                () = cancel.cancelled() => ended = true,
                ready = rtp.readable() => ready?,
                ready = rtcp.readable() => ready?,
                () = until(deadline) => self.verifier.advance(clock::now()),
            }
            // After the end what is already there is still read.
            for _ in 0..if ended { DRAIN } else { 1 } {
                let more = self.datagrams(&rtp, remote, &mut buffer) | self.datagrams(&rtcp, remote, &mut buffer);
                if !more {
                    break;
                }
            }
            self.publish().await;
            if ended {
                return Ok(());
            }
        }
    }

    /// Reads up to [`BATCH`] datagrams; true when there may be more. Errors of a socket are those of packets sent before
    /// (port unreachable) and say nothing about receiving.
    fn datagrams(&mut self, socket: &UdpSocket, remote: SocketAddr, buffer: &mut [u8]) -> bool {
        let now = clock::now();
        for _ in 0..BATCH {
            let Ok((length, from)) = socket.try_recv_from(buffer) else {
                return false;
            };
            let datagram = &buffer[..length];
            if is_rtcp(datagram) {
                self.verifier.rtcp();
                continue;
            }
            if from != remote {
                self.verifier.verdict_mut().from_elsewhere += 1;
            }
            self.verifier.packet(now, datagram);
        }
        true
    }

    async fn accept(&mut self, listener: std::net::TcpListener, cancel: &CancellationToken) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let stream = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted?.0,
            };
            self.stream(stream, cancel).await;
        }
    }

    async fn connect(
        &mut self,
        socket: ActiveSocket,
        local: SocketAddr,
        remote: SocketAddr,
        cancel: &CancellationToken,
    ) -> io::Result<()> {
        let mut socket = Some(socket);
        for left in (0..CONNECT_TRIES).rev() {
            let socket = match socket.take() {
                Some(socket) => socket,
                None => bind_active(local).map_err(io::Error::other)?,
            };
            let connected = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                connected = open(socket, remote) => connected,
            };
            match connected {
                Ok(stream) => {
                    self.stream(stream, cancel).await;
                    cancel.cancelled().await;
                    return Ok(());
                }
                Err(error) if left == 0 => return Err(error),
                Err(error) => tracing::debug!(%remote, %error, "media connection failed, trying again"),
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(CONNECT_PAUSE) => {}
            }
        }
        Ok(())
    }

    /// Reads one connection to its end.
    async fn stream(&mut self, mut stream: TcpStream, cancel: &CancellationToken) {
        // Options make it better, not possible.
        let _ = tune_tcp(&stream);
        self.verifier.reconnected();
        let mut framer = Framer::new();
        let (mut ended, mut drained) = (false, 0);
        while drained < DRAIN {
            let deadline = self.verifier.next_timeout();
            let read = if ended {
                drained += 1;
                stream.try_read(framer.space())
            } else {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {
                        ended = true;
                        continue;
                    }
                    read = stream.read(framer.space()) => read,
                    () = until(deadline) => {
                        self.verifier.advance(clock::now());
                        self.publish().await;
                        continue;
                    }
                }
            };
            match read {
                // The end, a reset, or (after the cancellation) nothing more to read.
                Ok(0) | Err(_) => break,
                Ok(length) => framer.commit(length),
            }
            let now = clock::now();
            let usable = loop {
                match framer.pull() {
                    Ok(Some(Frame::Rtp(packet))) => self.verifier.packet(now, packet),
                    Ok(Some(Frame::Rtcp(_))) => self.verifier.rtcp(),
                    Ok(Some(Frame::RawPs(_))) => self.verifier.foreign(),
                    Ok(None) => break true,
                    Err(error) => {
                        self.verifier.verdict_mut().framing_error = Some(error);
                        break false;
                    }
                }
            };
            self.publish().await;
            if !usable {
                break;
            }
        }
        let counters = framer.counters();
        self.verifier.verdict_mut().not_rtp += counters.short + counters.empty + counters.resyncs;
        self.publish().await;
    }
}

async fn open(socket: ActiveSocket, remote: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(socket.connect(remote)?)?;
    let writable = tokio::time::timeout(CONNECT_TIME, stream.writable()).await;
    writable.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

#[cfg(test)]
mod tests;
