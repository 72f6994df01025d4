//! Opening sockets with the options the product wants, and saying plainly when the system refuses.
//! Standard: [RFC3261 18.2.1] one port for UDP and TCP.
//! In: addresses. Out: bound, non-blocking std sockets; `BindError`; `BufferCheck`.
//! Invariants: a refused buffer size is never an error (the kernel caps it), a refused address always is.
//! Not here: which ports (`port_pool`), reading and writing (`sip_driver`, `media`).

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

/// Asked of the kernel for UDP buffers: a burst of key frames, or of registrations after a power cut.
pub const UDP_BUFFER: usize = 4 << 20;
/// A peer that acknowledges nothing for this long is gone.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections waiting to be accepted.
const BACKLOG: i32 = 1024;
/// First keepalive probe on a quiet TCP connection; with 3 more at 5 s a dead peer is found in 35 s.
const KEEPALIVE_TIME: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// Why an address could not be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BindFault {
    /// Another socket holds the port.
    InUse,
    /// No network card has this address.
    NotOurAddress,
    /// The port is privileged.
    Forbidden,
    /// Too many open files.
    NoDescriptors,
    /// A listener that is neither UDP, TCP nor TLS, or TCP and TLS at once.
    Contradiction,
    /// Anything else the system said.
    System(io::ErrorKind),
}

/// An address could not be bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot bind {protocol} {addr}: {}: {}", self.why(), self.what_to_do())]
pub struct BindError {
    /// `UDP`, `TCP` or `TLS`.
    pub protocol: &'static str,
    /// The address asked for.
    pub addr: SocketAddr,
    /// What is wrong with it.
    pub fault: BindFault,
}

impl BindError {
    pub(crate) fn new(protocol: &'static str, addr: SocketAddr, error: &io::Error) -> Self {
        let fault = match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => BindFault::NoDescriptors,
            _ => match error.kind() {
                io::ErrorKind::AddrInUse => BindFault::InUse,
                io::ErrorKind::AddrNotAvailable => BindFault::NotOurAddress,
                io::ErrorKind::PermissionDenied => BindFault::Forbidden,
                kind => BindFault::System(kind),
            },
        };
        BindError { protocol, addr, fault }
    }

    /// The reason in a few words.
    pub fn why(&self) -> String {
        match self.fault {
            BindFault::InUse => format!("port {} is in use by another program", self.addr.port()),
            BindFault::NotOurAddress => format!("{} is not an address of this machine", self.addr.ip()),
            BindFault::Forbidden => format!("port {} needs a privilege this process does not have", self.addr.port()),
            BindFault::NoDescriptors => "too many open files".to_string(),
            BindFault::Contradiction => "one TCP port speaks either plain TCP or TLS".to_string(),
            BindFault::System(kind) => kind.to_string(),
        }
    }

    /// What mends it.
    pub fn what_to_do(&self) -> String {
        let flag = if self.protocol == "UDP" { "u" } else { "t" };
        match self.fault {
            BindFault::InUse => {
                format!(
                    "find it with `ss -l{flag}np 'sport = :{}'` and stop it, or choose another port",
                    self.addr.port()
                )
            }
            BindFault::NotOurAddress => "use 0.0.0.0, or one of the addresses `ip addr` shows".to_string(),
            BindFault::Forbidden => "choose a port above 1023, or grant CAP_NET_BIND_SERVICE".to_string(),
            BindFault::NoDescriptors => "raise LimitNOFILE (ulimit -n)".to_string(),
            BindFault::Contradiction => "give plain TCP and TLS two ports".to_string(),
            BindFault::System(_) => "check the address and the network set-up".to_string(),
        }
    }
}

fn open(addr: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
    if addr.is_ipv6() {
        // An IPv6 listener must not take the IPv4 port too: peers would appear as ::ffff:a.b.c.d and match no route.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A bound UDP socket, non-blocking, with both buffers raised as far as the kernel allows.
///
/// # Errors
/// `BindError` with the address, the reason and what to do.
pub fn bind_udp(addr: SocketAddr) -> Result<UdpSocket, BindError> {
    let bind = || {
        let socket = open(addr, Type::DGRAM, Protocol::UDP)?;
        // The kernel caps what it will not give; `buffer_check` reports the shortfall once at start.
        let _ = socket.set_recv_buffer_size(UDP_BUFFER);
        let _ = socket.set_send_buffer_size(UDP_BUFFER);
        socket.bind(&SockAddr::from(addr))?;
        Ok(socket.into())
    };
    bind().map_err(|e| BindError::new("UDP", addr, &e))
}

/// A listening TCP socket, non-blocking. `protocol` (`TCP` or `TLS`) is for the error text.
///
/// # Errors
/// `BindError` with the address, the reason and what to do.
pub fn bind_tcp(addr: SocketAddr, protocol: &'static str) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = open(addr, Type::STREAM, Protocol::TCP)?;
        // A restart must not wait for the old connections' TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(addr))?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    bind().map_err(|e| BindError::new(protocol, addr, &e))
}

/// A TCP socket bound to `addr` and not yet connected; [`ActiveSocket::connect`] does that.
///
/// # Errors
/// `BindError` with the address, the reason and what to do.
pub fn bind_active(addr: SocketAddr) -> Result<ActiveSocket, BindError> {
    let bind = || {
        let socket = open(addr, Type::STREAM, Protocol::TCP)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(addr))?;
        Ok(ActiveSocket { socket })
    };
    bind().map_err(|e| BindError::new("TCP", addr, &e))
}

/// A TCP socket that holds its local port before it connects, so that SDP can name the port.
#[derive(Debug)]
pub struct ActiveSocket {
    socket: Socket,
}

impl ActiveSocket {
    /// Starts connecting. The stream is non-blocking and usable once it is writable and `take_error()` is `None`.
    ///
    /// # Errors
    /// What the system says at once (no route, port still in TIME_WAIT towards this peer, …).
    pub fn connect(self, peer: SocketAddr) -> io::Result<std::net::TcpStream> {
        tune_stream(&self.socket)?;
        match self.socket.connect(&SockAddr::from(peer)) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) || e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        Ok(self.socket.into())
    }
}

/// No delay, [`TCP_USER_TIMEOUT`], keepalive: for every TCP connection, in or out, signalling or media.
///
/// # Errors
/// The system's, which in practice means the connection is already gone.
pub fn tune_tcp(stream: &impl std::os::fd::AsFd) -> io::Result<()> {
    tune_stream(&socket2::SockRef::from(stream))
}

fn tune_stream(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)
}

/// The address this machine would use towards `peer`: what `advertised_address = "auto"` means. Sends nothing.
///
/// # Errors
/// No route to `peer`.
pub fn local_ip_towards(peer: SocketAddr) -> io::Result<IpAddr> {
    let any = match peer {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

/// What the kernel really gives where [`UDP_BUFFER`] is asked for. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferCheck {
    /// Asked for, both directions.
    pub wanted: usize,
    /// Receive buffer granted.
    pub receive: usize,
    /// Send buffer granted.
    pub send: usize,
}

impl BufferCheck {
    /// A sentence with the line to paste, when either buffer is smaller than wanted.
    pub fn advice(&self) -> Option<String> {
        if self.receive >= self.wanted && self.send >= self.wanted {
            return None;
        }
        let mut settings = String::new();
        if self.receive < self.wanted {
            settings.push_str(&format!(" net.core.rmem_max={}", self.wanted));
        }
        if self.send < self.wanted {
            settings.push_str(&format!(" net.core.wmem_max={}", self.wanted));
        }
        Some(format!(
            "UDP socket buffers are {} KiB (receive) and {} KiB (send), {} KiB are wanted: bursts may be lost: \
             run `sysctl -w{settings}` and keep it in /etc/sysctl.d/90-menshen.conf",
            self.receive >> 10,
            self.send >> 10,
            self.wanted >> 10
        ))
    }
}

/// Asks a throw-away socket for `wanted` bytes each way and reads back what was granted.
///
/// # Errors
/// No socket could be made at all.
pub fn buffer_check(wanted: usize) -> io::Result<BufferCheck> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    let _ = socket.set_recv_buffer_size(wanted);
    let _ = socket.set_send_buffer_size(wanted);
    // Linux reports twice the usable size: half is set aside for its own book-keeping.
    let usable = |reported: usize| {
        if cfg!(target_os = "linux") { reported / 2 } else { reported }
    };
    Ok(BufferCheck { wanted, receive: usable(socket.recv_buffer_size()?), send: usable(socket.send_buffer_size()?) })
}

/// Datagrams this machine dropped for want of receive buffer since boot (`RcvbufErrors`), IPv4 and IPv6 together.
/// `None` where the kernel does not tell.
pub fn udp_receive_buffer_errors() -> Option<u64> {
    let v4 = std::fs::read_to_string("/proc/self/net/snmp").ok().and_then(|text| snmp_udp_field(&text, "RcvbufErrors"));
    let v6 = std::fs::read_to_string("/proc/self/net/snmp6").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("Udp6RcvbufErrors"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    match (v4, v6) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
    }
}

/// `/proc/net/snmp` has two lines for each protocol: the names, then the values.
fn snmp_udp_field(text: &str, field: &str) -> Option<u64> {
    let mut udp = text.lines().filter(|l| l.starts_with("Udp:"));
    let names = udp.next()?;
    let values = udp.next()?;
    let at = names.split_whitespace().position(|n| n == field)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_the_command_that_finds_it() {
        let first = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = first.local_addr().unwrap();
        let error = bind_udp(addr).unwrap_err();
        assert_eq!(error.fault, BindFault::InUse);
        let text = error.to_string();
        assert!(text.contains(&format!("cannot bind UDP {addr}: port {} is in use", addr.port())), "{text}");
        assert!(text.contains(&format!("ss -lunp 'sport = :{}'", addr.port())), "{text}");

        let listener = bind_tcp("127.0.0.1:0".parse().unwrap(), "TCP").unwrap();
        let error = bind_tcp(listener.local_addr().unwrap(), "TLS").unwrap_err();
        assert_eq!((error.protocol, error.fault), ("TLS", BindFault::InUse));
    }

    #[test]
    fn a_foreign_address_is_said_to_be_foreign() {
        let error = bind_udp("192.0.2.1:5060".parse().unwrap()).unwrap_err();
        assert_eq!(error.fault, BindFault::NotOurAddress);
        assert!(error.to_string().contains("192.0.2.1 is not an address of this machine"));
    }

    #[test]
    fn an_active_socket_keeps_its_port_through_connect() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let active = bind_active("127.0.0.1:0".parse().unwrap()).unwrap();
        let held = active.socket.local_addr().unwrap().as_socket().unwrap();
        let stream = active.connect(listener.local_addr().unwrap()).unwrap();
        let (_accepted, from) = listener.accept().unwrap();
        assert_eq!(from, held);
        assert_eq!(stream.local_addr().unwrap(), held);
        assert!(stream.take_error().unwrap().is_none());
    }

    #[test]
    fn buffers_are_reported_and_only_a_shortfall_gives_advice() {
        let small = buffer_check(16 << 10).unwrap();
        assert_eq!(small.advice(), None, "{small:?}");
        let huge = BufferCheck { wanted: 4 << 20, receive: 208 << 10, send: 4 << 20 };
        let advice = huge.advice().unwrap();
        assert!(advice.contains("sysctl -w net.core.rmem_max=4194304`"), "{advice}");
    }

    #[test]
    fn the_address_towards_loopback_is_loopback() {
        assert_eq!(local_ip_towards("127.0.0.1:9".parse().unwrap()).unwrap(), IpAddr::from([127, 0, 0, 1]));
    }

    #[test]
    fn the_kernel_table_is_read_by_column_name() {
        let text = "Ip: Forwarding\nIp: 1\nUdp: InDatagrams NoPorts RcvbufErrors SndbufErrors\nUdp: 9 8 7 6\nUdpLite: RcvbufErrors\nUdpLite: 5\n";
        assert_eq!(snmp_udp_field(text, "RcvbufErrors"), Some(7));
        assert_eq!(snmp_udp_field("Udp: A\n", "A"), None);
    }
}
