//! One receiver of a stream: an RTP/UDP destination, or a TCP connection we accept or open (RFC 4571 framing).
//! Standard: [GB/T28181-2022 annex D] TCP media, reconnects ≥ 1 s and ≥ 3 times; [RFC4571].
//! In: RTP images of `mux`, ticks of the worker. Out: packets, [`SinkEvent`]s. Owner: `stream` on its worker thread.
//! Invariants: nothing leaves before `start` (the ACK); sequence numbers rise by one for each packet, also for those of
//! a frame that the system refused in its middle; what a slow receiver cannot take is dropped up to its next key frame
//! and counted, and no other sink notices; its end is told once.
//! Bounds: [`MAX_PENDING`] bytes and one frame wait for a TCP receiver; one that takes nothing for [`STALLED`] is ended.

use crate::metrics::{Counter, RtpSent};
use crate::proto::rtp::{restamp, restamp_rfc4571, rtcp};
use crate::transport::batch::UdpTrainSender;
use crate::transport::port_pool::PortLease;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What may wait for a TCP receiver: two large key frames. Beyond it whole frames are dropped.
pub const MAX_PENDING: usize = 2 * 1024 * 1024;
/// A TCP receiver that takes nothing for so long is gone.
pub const STALLED: Duration = Duration::from_secs(10);
/// One attempt to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Pause between attempts [GB/T28181-2022 annex D: at least 1 s].
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
/// The first attempt and the retries the standard asks for [GB/T28181-2022 annex D: at least 3].
const CONNECT_ATTEMPTS: u32 = 4;
/// How long the receiver has to connect to us after its ACK.
const ACCEPT_LIMIT: Duration = Duration::from_secs(10);
/// ICMP "port unreachable" for so long without a pause: nobody is there.
const REFUSED_LIMIT: Duration = Duration::from_secs(30);
/// A pause in them: hosts send about one a second however many packets come in vain.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// Bytes of `pending` already written before what is left is moved to the front.
const COMPACT: usize = 256 * 1024;
/// Bytes of an RTP header as we write it.
const RTP_HEADER: usize = 12;
/// Sender reports [RFC3550 6.2 asks for 5 s at least].
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// RTP payload size after the path refused a larger one.
pub const SMALL_PAYLOAD: u16 = 1300;

/// Identifies a sink within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SinkId(pub u64);

/// Counters a sink adds to; cheap clones of registered metrics.
#[derive(Debug, Clone, Default)]
pub struct SinkMeters {
    /// RTP packets that left, and their bytes.
    pub sent: RtpSent,
    /// Packets not sent because the receiver was too slow.
    pub dropped_slow: Counter,
    /// Packets the system refused for another reason.
    pub dropped_error: Counter,
}

/// How the receiver gets its packets.
#[derive(Debug)]
pub enum SinkTransport {
    /// RTP over UDP from `socket`; sender reports from `rtcp` to the port above `destination`.
    Udp {
        /// Bound to the address and port the SDP answer names.
        socket: UdpSocket,
        /// Bound to the port above it.
        rtcp: Option<UdpSocket>,
        /// From the offer.
        destination: SocketAddr,
    },
    /// The receiver connects to us.
    TcpPassive {
        /// Listening on what the SDP answer names.
        listener: TcpListener,
        /// Only from here.
        from: Vec<IpAddr>,
    },
    /// We connect to the receiver after its ACK, from the port the SDP answer names.
    TcpActive {
        /// Our address and port.
        local: SocketAddr,
        /// From the offer.
        destination: SocketAddr,
    },
}

impl SinkTransport {
    /// True where packets carry the RFC 4571 length prefix.
    pub fn is_tcp(&self) -> bool {
        !matches!(self, SinkTransport::Udp { .. })
    }
}

/// Everything a sink is made of.
#[derive(Debug)]
pub struct SinkSpec {
    /// Written into every packet.
    pub ssrc: u32,
    /// First sequence number.
    pub first_sequence: u16,
    /// RTP payload limit in bytes, 600..=1400.
    pub payload_max: u16,
    /// RTP payload type, 96 as a rule.
    pub payload_type: u8,
    /// Where to.
    pub transport: SinkTransport,
    /// Holds the port while the sink lives.
    pub port: Option<PortLease>,
    /// CNAME of our sender reports.
    pub cname: Arc<str>,
    /// What it adds to.
    pub meters: SinkMeters,
    /// Who wants to know; a full channel loses the event, the lease's end is what counts.
    pub events: mpsc::Sender<(SinkId, SinkEvent)>,
}

/// Told to the sink's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkEvent {
    /// TCP is up.
    Connected,
    /// The first RTP packet left.
    FirstPacket(Instant),
    /// It is over; the user drops its lease.
    Ended(SinkEnd),
}

/// Why a sink ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SinkEnd {
    /// The receiver closed its TCP connection.
    PeerClosed,
    /// We could not connect, after all attempts.
    ConnectFailed,
    /// The receiver never connected.
    NeverConnected,
    /// A TCP receiver that took nothing any more.
    Stalled,
    /// UDP: nobody listens there.
    Refused,
    /// The source gave nothing for too long.
    SourceLost,
    /// The stream was taken away (camera removed, shutdown).
    StreamClosed,
}

impl SinkEnd {
    /// Fixed word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            SinkEnd::PeerClosed => "peer_closed",
            SinkEnd::ConnectFailed => "connect_failed",
            SinkEnd::NeverConnected => "never_connected",
            SinkEnd::Stalled => "stalled",
            SinkEnd::Refused => "refused",
            SinkEnd::SourceLost => "source_lost",
            SinkEnd::StreamClosed => "stream_closed",
        }
    }
}

#[derive(Debug)]
enum Wire {
    Udp {
        sender: UdpTrainSender,
        rtcp: Option<UdpSocket>,
        refused: Option<Refused>,
    },
    Listening {
        listener: TcpListener,
        from: Vec<IpAddr>,
        deadline: Option<Instant>,
    },
    Dialing {
        local: SocketAddr,
        destination: SocketAddr,
        attempts: u32,
        next: Option<Instant>,
        socket: Option<(Socket, Instant)>,
    },
    Tcp {
        stream: TcpStream,
        pending: Vec<u8>,
        written: usize,
        progress: Instant,
    },
}

/// ICMP answers without a pause.
#[derive(Debug, Clone, Copy)]
struct Refused {
    since: Instant,
    last: Instant,
}

impl Refused {
    fn again(refused: &mut Option<Self>, now: Instant) {
        let since = refused.map_or(now, |r| r.since);
        *refused = Some(Refused { since, last: now });
    }
}

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All of it left, or is queued in order.
    All,
    /// The receiver is too slow: skip to the next key frame.
    SkipToKey,
    /// The packets are too large for the path: use [`SMALL_PAYLOAD`] from the next key frame on.
    TooLarge,
}

/// See the file's head.
#[derive(Debug)]
pub struct Sink {
    id: SinkId,
    ssrc: u32,
    sequence: u16,
    wire: Wire,
    started: Option<Instant>,
    packets: u32,
    octets: u32,
    last_report: Option<Instant>,
    last_sent: Option<Instant>,
    cname: Arc<str>,
    meters: SinkMeters,
    events: mpsc::Sender<(SinkId, SinkEvent)>,
    alive: Arc<AtomicBool>,
    ended: Option<SinkEnd>,
    told: bool,
    _port: Option<PortLease>,
}

impl Sink {
    /// Builds the sink; `alive` is cleared by its lease. Errors are the socket's.
    pub fn new(id: SinkId, spec: SinkSpec, alive: Arc<AtomicBool>) -> io::Result<Self> {
        let wire = match spec.transport {
            SinkTransport::Udp { socket, rtcp, destination } => {
                if let Some(r) = &rtcp {
                    r.set_nonblocking(true)?;
                }
                Wire::Udp { sender: UdpTrainSender::new(socket, destination)?, rtcp, refused: None }
            }
            SinkTransport::TcpPassive { listener, from } => {
                listener.set_nonblocking(true)?;
                Wire::Listening { listener, from, deadline: None }
            }
            SinkTransport::TcpActive { local, destination } => {
                Wire::Dialing { local, destination, attempts: 0, next: None, socket: None }
            }
        };
        Ok(Sink {
            id,
            ssrc: spec.ssrc,
            sequence: spec.first_sequence,
            wire,
            started: None,
            packets: 0,
            octets: 0,
            last_report: None,
            last_sent: None,
            cname: spec.cname,
            meters: spec.meters,
            events: spec.events,
            alive,
            ended: None,
            told: false,
            _port: spec.port,
        })
    }

    /// Its id.
    pub fn id(&self) -> SinkId {
        self.id
    }
    /// True while its lease is held.
    pub fn is_leased(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }
    /// True from the ACK on, once the way to the receiver is open.
    pub fn is_open(&self) -> bool {
        self.ended.is_none() && self.started.is_some() && matches!(self.wire, Wire::Udp { .. } | Wire::Tcp { .. })
    }

    /// The ACK came: packets may leave.
    pub fn start(&mut self, now: Instant) {
        if self.started.is_none() {
            self.started = Some(now);
            match &mut self.wire {
                Wire::Listening { deadline, .. } => *deadline = Some(now + ACCEPT_LIMIT),
                Wire::Dialing { next, .. } => *next = Some(now),
                Wire::Udp { .. } | Wire::Tcp { .. } => {}
            }
        }
    }

    fn tell(&self, event: SinkEvent) {
        let _ = self.events.try_send((self.id, event));
    }

    /// Ends it, once.
    pub fn end(&mut self, why: SinkEnd) {
        if self.ended.is_none() {
            self.ended = Some(why);
            self.tell_end();
        }
    }

    /// Somebody waits for this one: a full channel is tried again with the next slot.
    fn tell_end(&mut self) {
        if let Some(why) = self.ended.filter(|_| !self.told) {
            let result = self.events.try_send((self.id, SinkEvent::Ended(why)));
            self.told = !matches!(result, Err(mpsc::error::TrySendError::Full(_)));
        }
    }

    /// True once something left.
    pub fn has_sent(&self) -> bool {
        self.packets > 0
    }

    /// For how long nothing has left; counts from the first call on an open sink.
    pub fn silence(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.last_sent.get_or_insert(now))
    }

    /// Leaves out the numbers of packets that the device lost, so that the receiver sees it.
    pub fn leave_out(&mut self, packets: u32) {
        if self.packets > 0 && self.ended.is_none() {
            self.sequence = self.sequence.wrapping_add(packets as u16);
        }
    }

    /// Counts packets of frames that a slow receiver is not even offered.
    pub fn skipped(&self, packets: u64) {
        self.meters.dropped_slow.inc_by(packets);
    }

    /// Connects, accepts, flushes; called once a slot. `slow` is set now and then: also look for a closed peer and
    /// send reports.
    pub fn tick(&mut self, now: Instant, slow: bool, unix: Duration, rtp_now: u32) {
        if self.ended.is_some() {
            return self.tell_end();
        }
        match self.advance(now, slow) {
            Ok(()) => {}
            Err(why) => return self.end(why),
        }
        if slow {
            self.report(now, unix, rtp_now);
        }
    }

    fn advance(&mut self, now: Instant, slow: bool) -> Result<(), SinkEnd> {
        let mut opened = None;
        match &mut self.wire {
            Wire::Udp { sender, refused, .. } => {
                if slow {
                    if sender.drain() {
                        Refused::again(refused, now);
                    }
                    if refused.is_some_and(|r| now.saturating_duration_since(r.last) > REFUSED_PAUSE) {
                        *refused = None;
                    }
                    if refused.is_some_and(|r| now.saturating_duration_since(r.since) > REFUSED_LIMIT) {
                        return Err(SinkEnd::Refused);
                    }
                }
            }
            Wire::Listening { listener, from, deadline } => {
                match listener.accept() {
                    Ok((stream, peer)) if from.contains(&peer.ip()) => opened = Some(stream),
                    Ok((_, peer)) => {
                        tracing::warn!(%peer, "media connection from an address the SDP did not name: closed")
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => tracing::debug!(error = %e, "accept for media failed"),
                }
                if opened.is_none() && deadline.is_some_and(|d| now >= d) {
                    return Err(SinkEnd::NeverConnected);
                }
            }
            Wire::Dialing { local, destination, attempts, next, socket } => {
                if let Some((s, since)) = socket {
                    match s.take_error() {
                        Ok(None) if s.peer_addr().is_ok() => opened = socket.take().map(|(s, _)| TcpStream::from(s)),
                        Ok(None) if now.saturating_duration_since(*since) < CONNECT_LIMIT => {}
                        Ok(None) => *socket = None,
                        Ok(Some(e)) | Err(e) => {
                            tracing::info!(%destination, attempt = *attempts, error = %e, "cannot connect to the media receiver");
                            *socket = None;
                        }
                    }
                    if opened.is_none() && socket.is_none() {
                        if *attempts >= CONNECT_ATTEMPTS {
                            return Err(SinkEnd::ConnectFailed);
                        }
                        *next = Some(now + CONNECT_PAUSE);
                    }
                } else if next.is_some_and(|t| now >= t) {
                    *attempts += 1;
                    match dial(*local, *destination) {
                        Ok(s) => *socket = Some((s, now)),
                        Err(e) => {
                            tracing::info!(%destination, attempt = *attempts, error = %e, "cannot connect to the media receiver");
                            if *attempts >= CONNECT_ATTEMPTS {
                                return Err(SinkEnd::ConnectFailed);
                            }
                            *next = Some(now + CONNECT_PAUSE);
                        }
                    }
                }
            }
            Wire::Tcp { stream, pending, written, progress } => {
                flush(stream, pending, written, progress, now)?;
                if !pending.is_empty() && now.saturating_duration_since(*progress) > STALLED {
                    return Err(SinkEnd::Stalled);
                }
                if slow {
                    drain(stream)?;
                }
            }
        }
        if let Some(stream) = opened {
            let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if ready.is_err() {
                return Err(SinkEnd::PeerClosed);
            }
            self.wire = Wire::Tcp { stream, pending: Vec::new(), written: 0, progress: now };
            self.tell(SinkEvent::Connected);
        }
        Ok(())
    }

    /// Restamps and sends `blocks` of one image: packets of `block` bytes, the last may be shorter.
    pub fn send(&mut self, now: Instant, blocks: &mut [u8], block: usize) -> Sent {
        if self.ended.is_some() || blocks.is_empty() {
            return Sent::All;
        }
        let total = blocks.len().div_ceil(block);
        let prefix = usize::from(matches!(self.wire, Wire::Tcp { .. })) * 2;
        if prefix == 0 {
            restamp(blocks, block, self.sequence, self.ssrc);
        } else {
            restamp_rfc4571(blocks, block, self.sequence, self.ssrc);
        }
        let (sent, verdict) = match &mut self.wire {
            Wire::Udp { sender, refused, .. } => {
                let (mut sent, mut result) = sender.send(blocks, block);
                if result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
                    // The ICMP answer to an earlier packet; this one has not been tried yet.
                    Refused::again(refused, now);
                    let (more, again) = sender.send(&blocks[sent * block..], block);
                    sent += more;
                    result = again;
                }
                if block <= usize::from(SMALL_PAYLOAD) + RTP_HEADER
                    && result.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EMSGSIZE))
                {
                    // Smaller we do not go: one by one the system cuts them for the path.
                    sender.send_singly();
                    let (more, again) = sender.send(&blocks[sent * block..], block);
                    sent += more;
                    result = again;
                }
                let verdict = match result {
                    Ok(()) => Sent::All,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.meters.dropped_slow.inc_by((total - sent) as u64);
                        Sent::SkipToKey
                    }
                    Err(e)
                        if e.raw_os_error() == Some(libc::EMSGSIZE)
                            && block > usize::from(SMALL_PAYLOAD) + RTP_HEADER =>
                    {
                        self.meters.dropped_error.inc_by((total - sent) as u64);
                        Sent::TooLarge
                    }
                    Err(e) => {
                        self.meters.dropped_error.inc_by((total - sent) as u64);
                        tracing::debug!(error = %e, destination = %sender.destination(), "RTP packet refused by the system");
                        Sent::All
                    }
                };
                (sent, verdict)
            }
            Wire::Tcp { stream, pending, written, progress } => {
                if flush(stream, pending, written, progress, now).is_err() {
                    self.end(SinkEnd::PeerClosed);
                    return Sent::All;
                }
                // With nothing waiting a frame is taken whatever its size, or one larger than the bound never got through.
                if !pending.is_empty() && pending.len() - *written + blocks.len() > MAX_PENDING {
                    self.meters.dropped_slow.inc_by(total as u64);
                    return Sent::SkipToKey;
                }
                let mut done = 0;
                if pending.is_empty() {
                    *progress = now;
                    match stream.write(blocks) {
                        Ok(n) => done = n,
                        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                        Err(_) => {
                            self.end(SinkEnd::PeerClosed);
                            return Sent::All;
                        }
                    }
                }
                pending.extend_from_slice(&blocks[done..]);
                (total, Sent::All)
            }
            Wire::Listening { .. } | Wire::Dialing { .. } => return Sent::All,
        };
        if sent > 0 {
            if self.packets == 0 {
                self.tell(SinkEvent::FirstPacket(now));
            }
            self.last_sent = Some(now);
            let bytes = (sent * block).min(blocks.len()) - sent * prefix;
            self.packets = self.packets.wrapping_add(sent as u32);
            self.octets = self.octets.wrapping_add((bytes - RTP_HEADER * sent) as u32);
            self.meters.sent.sent(sent as u64, bytes as u64);
        }
        if sent > 0 || verdict != Sent::TooLarge {
            // Also over what did not leave: the receiver must see that its frame is not whole.
            self.sequence = self.sequence.wrapping_add(total as u16);
        }
        verdict
    }

    fn report(&mut self, now: Instant, unix: Duration, rtp_now: u32) {
        let Wire::Udp { sender, rtcp: Some(socket), .. } = &self.wire else {
            return;
        };
        if self.packets == 0 || self.last_report.is_some_and(|t| now.saturating_duration_since(t) < REPORT_INTERVAL) {
            return;
        }
        self.last_report = Some(now);
        let to = sender.destination();
        if let Some(port) = to.port().checked_add(1) {
            let info = rtcp::SentStream {
                ssrc: self.ssrc,
                unix,
                rtp_timestamp: rtp_now,
                packets: self.packets,
                octets: self.octets,
            };
            let mut report = [0u8; rtcp::MAX_COMPOUND];
            if let Ok(length) = rtcp::write_sender_report(&mut report, &info, &self.cname) {
                let _ = socket.send_to(&report[..length], SocketAddr::new(to.ip(), port));
            }
        }
        let mut scratch = [0u8; 1500];
        for _ in 0..8 {
            if socket.recv(&mut scratch).is_err() {
                break;
            }
        }
    }
}

fn dial(local: SocketAddr, destination: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(destination), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(local))?;
    match socket.connect(&SockAddr::from(destination)) {
        Ok(()) => Ok(socket),
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

fn flush(
    stream: &mut TcpStream,
    pending: &mut Vec<u8>,
    written: &mut usize,
    progress: &mut Instant,
    now: Instant,
) -> Result<(), SinkEnd> {
    while *written < pending.len() {
        match stream.write(&pending[*written..]) {
            Ok(0) => return Err(SinkEnd::PeerClosed),
            Ok(n) => {
                *written += n;
                *progress = now;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                // A receiver that is always a little behind must not make this grow for ever.
                if *written >= COMPACT.max(pending.len() / 2) {
                    pending.drain(..*written);
                    *written = 0;
                }
                return Ok(());
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(SinkEnd::PeerClosed),
        }
    }
    pending.clear();
    *written = 0;
    Ok(())
}

/// Receivers may send RTCP back; what matters is whether they are still there.
fn drain(stream: &mut TcpStream) -> Result<(), SinkEnd> {
    let mut scratch = [0u8; 2048];
    for _ in 0..16 {
        match stream.read(&mut scratch) {
            Ok(0) => return Err(SinkEnd::PeerClosed),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(SinkEnd::PeerClosed),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn a_receiver_that_is_always_a_little_behind_does_not_make_the_queue_grow() {
        // Buffers of a fixed size: ones that grow would take all that waits, sooner or later.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&listener).set_recv_buffer_size(256 * 1024).unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket2::SockRef::from(&stream).set_send_buffer_size(256 * 1024).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let now = Instant::now();
        let (mut pending, mut written, mut progress) = (Vec::new(), 0, now);
        let mut piece = vec![0u8; 64 * 1024];
        let (mut queued, mut largest) = (0u8, 0);
        let mut step = |pending: &mut Vec<u8>, written: &mut usize| {
            queued = queued.wrapping_add(1);
            pending.extend(std::iter::repeat_n(queued, 64 * 1024));
            flush(&mut stream, pending, written, &mut progress, now).unwrap();
        };
        while pending.len() - written < 1 << 20 {
            step(&mut pending, &mut written);
        }
        let mut expected = 0u8;
        for _ in 0..800 {
            receiver.read_exact(&mut piece).unwrap();
            expected = expected.wrapping_add(1);
            assert!(piece.iter().all(|b| *b == expected), "nothing is lost or moved");
            step(&mut pending, &mut written);
            largest = largest.max(pending.len());
            assert!(pending.len() > written, "it stays behind");
        }
        // 50 MB went through.
        assert!(largest < 4 << 20, "{largest}");
    }
}
