//! What a driver is made of: listeners, limits, TLS settings, names of users.
//! Standard: [RFC3261 18.2.1] UDP and TCP on one port.
//! In: configuration by value. Out: bound sockets, errors that name the address.
//! Invariants: nothing is read from a socket before the driver runs.
//! Not here: certificates (`transport::tls`), socket options (`transport::sockopt`).

use super::{Hooks, RateLimit};
use crate::proto::sip::endpoint::EndpointConfig;
use crate::transport::sockopt::{BindError, BindFault, bind_tcp, bind_udp};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Ports tried until UDP and TCP share one, when the system chooses it.
const SAME_PORT_TRIES: usize = 16;

/// A user of the driver: an uplink's configured name, `registrar`, … Also its label in metrics and trace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// From a configured name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        UserId(name.into())
    }
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address to listen on.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Port 0: the system chooses one, the same for UDP and TCP.
    pub local: SocketAddr,
    /// UDP there.
    pub udp: bool,
    /// Plain TCP there.
    pub tcp: bool,
    /// TLS on the TCP port there. Not together with `tcp`.
    pub tls: Option<Arc<ServerConfig>>,
}

/// A listener as it came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundListener {
    /// With the real port: the `local` of its flows.
    pub local: SocketAddr,
    /// UDP there.
    pub udp: bool,
    /// Plain TCP there.
    pub tcp: bool,
    /// TLS there.
    pub tls: bool,
}

/// How to speak TLS to a peer.
#[derive(Debug, Clone)]
pub struct TlsClient {
    /// Trust and own certificate, see `transport::tls::client_config`.
    pub config: Arc<ClientConfig>,
    /// The name its certificate must show (not looked at when it is pinned).
    pub server_name: ServerName<'static>,
}

impl TlsClient {
    pub(super) fn same_as(&self, other: &TlsClient) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.server_name == other.server_name
    }
}

/// Bounds of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests one source may send.
    pub request_rate: RateLimit,
    /// How much more the peers of routes may send.
    pub trusted_factor: u32,
    /// Connections accepted and open, in all. Peers of routes are let in beyond it.
    pub connections: usize,
    /// Connections accepted and open, from one address.
    pub connections_per_ip: usize,
    /// A connection on which nothing moved for this long is closed.
    pub idle_close: Duration,
    /// A message must be complete within this, from its first byte.
    pub message_time: Duration,
    /// TLS handshake.
    pub handshake_time: Duration,
    /// Opening a connection.
    pub connect_time: Duration,
    /// Bytes waiting to be written to one connection; beyond, it is closed.
    pub write_queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            request_rate: RateLimit { per_second: 200, burst: 400 },
            trusted_factor: 10,
            connections: 4096,
            connections_per_ip: 256,
            idle_close: Duration::from_secs(600),
            message_time: Duration::from_secs(10),
            handshake_time: Duration::from_secs(10),
            connect_time: Duration::from_secs(5),
            write_queue: 4 << 20,
        }
    }
}

/// What a driver is made of.
#[derive(Debug, Clone)]
pub struct SipDriverConfig {
    /// Where to listen.
    pub listeners: Vec<Listener>,
    /// How to speak TLS to whom; see [`SipHandle::set_tls_client`].
    pub tls_clients: Vec<(SocketAddr, TlsClient)>,
    /// Bounds.
    pub limits: Limits,
    /// Timers and tables of the endpoint.
    pub endpoint: EndpointConfig,
    /// Callbacks.
    pub hooks: Hooks,
}

/// Why the driver's task ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// A bound socket could not be taken over by the runtime.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The task that reads a listener has ended: a fault of the program.
    #[error("the task reading SIP listener {0} has failed")]
    ListenerFailed(SocketAddr),
}

/// Sockets of a listener before the runtime has them.
pub(super) struct BoundSockets {
    pub local: SocketAddr,
    pub udp: Option<std::net::UdpSocket>,
    pub tcp: Option<std::net::TcpListener>,
    pub tls: Option<Arc<ServerConfig>>,
}

impl BoundSockets {
    pub(super) fn bound(&self) -> BoundListener {
        BoundListener {
            local: self.local,
            udp: self.udp.is_some(),
            tcp: self.tcp.is_some() && self.tls.is_none(),
            tls: self.tls.is_some(),
        }
    }
}

pub(super) fn bind_listener(listener: &Listener) -> Result<BoundSockets, BindError> {
    let protocol = match (listener.tcp, &listener.tls) {
        (true, None) => Some("TCP"),
        (false, Some(_)) => Some("TLS"),
        (false, None) if listener.udp => None,
        _ => {
            return Err(BindError { protocol: "TCP", addr: listener.local, fault: BindFault::Contradiction });
        }
    };
    let mut tries = if listener.local.port() == 0 { SAME_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let mut local = listener.local;
        let mut udp = None;
        if listener.udp {
            let socket = bind_udp(local)?;
            local = socket.local_addr().map_err(|e| BindError::new("UDP", local, &e))?;
            udp = Some(socket);
        }
        let mut tcp = None;
        if let Some(protocol) = protocol {
            let socket = match bind_tcp(local, protocol) {
                Err(e) if e.fault == BindFault::InUse && tries > 0 => continue,
                other => other?,
            };
            local = socket.local_addr().map_err(|e| BindError::new(protocol, local, &e))?;
            tcp = Some(socket);
        }
        return Ok(BoundSockets { local, udp, tcp, tls: listener.tls.clone() });
    }
}
