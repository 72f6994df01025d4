//! What goes to the network, and the table of connections.
//! Standard: [RFC3261 18.1.1], [RFC3261 18.2.2], [RFC5923] reuse of connections.
//! In: whole messages with their flow. Out: datagrams; bytes in a connection's queue.
//! Invariants: sending never waits; a message that will not leave is reported to the endpoint; a connection's end is told
//! to the endpoint first, then to the users it concerns.
//! Not here: reading and writing (`conn`).

use super::conn::{CloseReason, ConnTask, Origin, WRITE_QUEUE};
use super::counters::{Count, Direction, sniff};
use super::{SipDriver, TaskRole, UserId};
use crate::proto::sip::endpoint::Input;
use crate::proto::sip::message::{ConnId, Flow, Transport};
use bytes::Bytes;
use rustls::ServerConfig;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Flows and users remembered for one connection; more than one platform's uplinks ever are.
const CONN_FLOWS: usize = 16;

/// A connection, open or opening.
pub(super) struct Conn {
    pub transport: Transport,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// The address the connection really has on our side, where known.
    pub local_ip: Option<IpAddr>,
    pub accepted: bool,
    /// Taken away to let the connection finish writing and close.
    pub queue: mpsc::Sender<Bytes>,
    pub queued: Arc<AtomicUsize>,
    /// Set once its peer is known: its messages may be large from then on.
    pub known: Arc<AtomicBool>,
    pub task: AbortHandle,
    /// Flows without connection that were sent here: what fails with it.
    pub flows: Vec<Flow>,
    /// Whom its end concerns.
    pub users: Vec<UserId>,
}

impl Conn {
    /// Its end will be told to `user`.
    pub(super) fn concerns(&mut self, user: &UserId) {
        if !self.users.contains(user) && self.users.len() < CONN_FLOWS {
            self.users.push(user.clone());
        }
    }
}

impl SipDriver {
    /// Sends a message. False: it did not and will not leave.
    pub(super) fn transmit(&mut self, now: Instant, flow: Flow, bytes: Bytes, user: Option<&UserId>) -> bool {
        let by_address = if user.is_none() { self.routes.by_address(flow.local, flow.peer).cloned() } else { None };
        let user = user.or(by_address.as_ref());
        if let Some((kind, method)) = sniff(&bytes) {
            self.seen(Direction::Out, flow.transport, user, kind, method, bytes.len());
        }
        self.trace(Direction::Out, flow, user, || bytes.clone());
        match flow.transport {
            Transport::Udp => self.send_datagram(flow, &bytes),
            Transport::Tcp | Transport::Tls => self.send_stream(now, flow, bytes, user),
        }
    }

    fn send_datagram(&self, flow: Flow, bytes: &[u8]) -> bool {
        let sockets = || self.listeners.iter().filter_map(|l| Some((l.bound.local, l.udp.as_ref()?)));
        let any = |local: SocketAddr| local.ip().is_unspecified() && local.is_ipv4() == flow.local.is_ipv4();
        let socket = sockets()
            .find(|(local, _)| *local == flow.local)
            .or_else(|| sockets().find(|(local, _)| any(*local)))
            .map(|(_, socket)| socket);
        let Some(socket) = socket else {
            self.counters.add(Count::UdpFailed);
            return false;
        };
        match socket.try_send_to(bytes, flow.peer) {
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                // As good as lost on the way: timers repeat it.
                self.counters.add(Count::UdpBlocked);
                true
            }
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => {
                // This message's fault, not the way's: the other transactions with this peer must not fail with it.
                self.counters.add(Count::UdpFailed);
                tracing::warn!(peer = %flow.peer, size = bytes.len(), "SIP message too large for UDP: use TCP with this peer");
                true
            }
            Err(e) => {
                self.counters.add(Count::UdpFailed);
                tracing::debug!(local = %flow.local, peer = %flow.peer, size = bytes.len(), error = %e, "datagram not sent");
                false
            }
        }
    }

    fn send_stream(&mut self, now: Instant, flow: Flow, bytes: Bytes, user: Option<&UserId>) -> bool {
        let Some(id) = self.conn_for(flow).or_else(|| self.open_conn(flow)) else {
            return false;
        };
        let Some(conn) = self.conns.get_mut(&id) else {
            return false;
        };
        if let Some(user) = user {
            conn.concerns(user);
        }
        if flow.conn != Some(id) && !conn.flows.contains(&flow) && conn.flows.len() < CONN_FLOWS {
            conn.flows.push(flow);
        }
        let waiting = conn.queued.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if waiting > self.limits.write_queue || conn.queue.try_send(bytes).is_err() {
            self.close_conn(now, id, &CloseReason::WriteStall);
            return false;
        }
        true
    }

    /// The connection a flow names, else the newest to the same peer from the same address.
    fn conn_for(&self, flow: Flow) -> Option<ConnId> {
        if let Some(id) = flow.conn
            && self.conns.contains_key(&id)
        {
            return Some(id);
        }
        let wanted = Some(flow.local.ip()).filter(|ip| !ip.is_unspecified());
        let fits = |c: &Conn| wanted.is_none() || c.local_ip == wanted;
        let ids = self.by_peer.get(&(flow.transport, flow.peer))?;
        ids.iter().rev().find(|id| self.conns.get(id).is_some_and(fits)).copied()
    }

    fn open_conn(&mut self, flow: Flow) -> Option<ConnId> {
        let tls = match flow.transport {
            Transport::Tls => match self.tls_clients.get(&flow.peer) {
                Some(client) => Some(client.clone()),
                None => {
                    self.counters.add(Count::OpenFailed);
                    tracing::warn!(peer = %flow.peer, "no TLS settings for this peer");
                    return None;
                }
            },
            _ => None,
        };
        let local_ip = Some(flow.local.ip()).filter(|ip| !ip.is_unspecified());
        self.counters.add(Count::Opened);
        let origin = Origin::Connect { local_ip, peer: flow.peer, tls };
        Some(self.spawn_conn(flow.transport, flow.local, flow.peer, local_ip, false, origin))
    }

    pub(super) fn accepted(
        &mut self,
        local: SocketAddr,
        peer: SocketAddr,
        stream: tokio::net::TcpStream,
        tls: Option<Arc<ServerConfig>>,
    ) {
        let of_ip = self.accepted_by_ip.get(&peer.ip()).copied().unwrap_or(0);
        let trusted = self.limiter.is_trusted(peer.ip());
        let full = self.accepted >= self.limits.connections && !trusted;
        if full || of_ip >= self.limits.connections_per_ip {
            // Dropping the stream closes it.
            self.counters.add(Count::Refused);
            return;
        }
        self.accepted += 1;
        *self.accepted_by_ip.entry(peer.ip()).or_default() += 1;
        self.counters.add(Count::Accepted);
        let transport = if tls.is_some() { Transport::Tls } else { Transport::Tcp };
        let local_ip = stream.local_addr().ok().map(|a| a.ip());
        self.spawn_conn(transport, local, peer, local_ip, true, Origin::Accepted { stream, tls, trusted });
    }

    fn spawn_conn(
        &mut self,
        transport: Transport,
        local: SocketAddr,
        peer: SocketAddr,
        local_ip: Option<IpAddr>,
        accepted: bool,
        origin: Origin,
    ) -> ConnId {
        let id = ConnId(self.next_conn);
        self.next_conn += 1;
        let (queue, queue_rx) = mpsc::channel(WRITE_QUEUE);
        let queued = Arc::new(AtomicUsize::new(0));
        let known = Arc::new(AtomicBool::new(false));
        let task = ConnTask {
            id,
            origin,
            queue: queue_rx,
            queued: queued.clone(),
            known: known.clone(),
            net: self.net_sender.clone(),
            limits: self.limits.clone(),
        };
        let task = self.tasks.spawn(task.run());
        self.task_roles.insert(task.id(), TaskRole::Conn(id));
        let conn = Conn {
            transport,
            local,
            peer,
            local_ip,
            accepted,
            queue,
            queued,
            known,
            task,
            flows: Vec::new(),
            users: Vec::new(),
        };
        self.conns.insert(id, conn);
        self.by_peer.entry((transport, peer)).or_default().push(id);
        self.counters.connections_set(self.conns.len());
        id
    }

    /// Ends a connection now; what it has not written is lost.
    pub(super) fn close_conn(&mut self, now: Instant, id: ConnId, why: &CloseReason) {
        if let Some(conn) = self.conns.get(&id) {
            conn.task.abort();
        }
        self.conn_gone(now, id, why);
    }

    /// Forgets a connection and tells the endpoint and the users. The caller drains the endpoint.
    pub(super) fn conn_gone(&mut self, now: Instant, id: ConnId, why: &CloseReason) {
        let Some(conn) = self.conns.remove(&id) else { return };
        if let Some(ids) = self.by_peer.get_mut(&(conn.transport, conn.peer)) {
            ids.retain(|i| *i != id);
            if ids.is_empty() {
                self.by_peer.remove(&(conn.transport, conn.peer));
            }
        }
        if conn.accepted {
            self.accepted -= 1;
            if let Some(n) = self.accepted_by_ip.get_mut(&conn.peer.ip()) {
                *n -= 1;
                if *n == 0 {
                    self.accepted_by_ip.remove(&conn.peer.ip());
                }
            }
        }
        self.counters.connections_set(self.conns.len());
        if let Some(count) = why.count() {
            self.counters.add(count);
        }
        let users: Vec<&str> = conn.users.iter().map(UserId::as_str).collect();
        // A stranger's connection is a debug matter, a configured peer's is worth a line.
        if users.is_empty() || matches!(why, CloseReason::Ours | CloseReason::Idle) {
            tracing::debug!(peer = %conn.peer, transport = conn.transport.as_str(), ?why, "SIP connection closed");
        } else {
            tracing::info!(peer = %conn.peer, transport = conn.transport.as_str(), ?users, ?why, "SIP connection closed");
        }
        for flow in conn.flows {
            self.endpoint.handle_input(now, Input::TransportFailed { flow });
        }
        // Whom to tell, once the endpoint says so: after the failures of what was under way. Nobody knows a connection
        // that never came to be.
        if !matches!(why, CloseReason::Open(_) | CloseReason::Handshake(_)) {
            self.closing.insert(id, conn.users);
        }
        self.endpoint.handle_input(now, Input::ConnClosed { conn: id });
    }
}
