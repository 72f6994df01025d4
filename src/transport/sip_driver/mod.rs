//! The SIP driver: one task owns the SIP endpoint, all SIP sockets and connections.
//! Standard: [RFC3261 18], [RFC3261 8.2], [RFC5626 3.5.1], [GB/T28181-2022 4.3].
//! In: datagrams and streams, commands of [`SipHandle`], time. Out: [`SipEvent`]s to the users, messages to the network.
//! Invariants: the driver never waits for a user or a peer; every queue, table and wait is bounded; a stranger costs one
//! stateless answer and leaves nothing behind.
//! Order of an incoming request: rate of its source, parser, route, precheck, endpoint, user. Whoever fails before the
//! endpoint is answered without state; responses skip the rate, because we asked for them.
//! Not here: transactions (`proto::sip::endpoint`), what a request means (the users: links, registrar).

mod conn;
mod counters;
mod handle;
mod inbound;
mod outbound;
mod rate;
mod route;
mod settings;
#[cfg(test)]
mod tests;

pub use counters::{
    Count, Direction, DriverCounters, Hooks, MalformedHook, MessageHook, MessageKind, MessageSeen, TraceHook,
    TraceRecord,
};
pub use handle::{HandleError, SipHandle};
pub use inbound::ALLOWED_METHODS;
pub use rate::RateLimit;
pub use route::{PeerAddr, Route};
pub use settings::{BoundListener, DriverError, Limits, Listener, SipDriverConfig, TlsClient, UserId};

use super::sockopt::BindError;
use crate::proto::sip::endpoint::{ClientTxId, Endpoint, Event, Input, Output, ServerTxId};
use crate::proto::sip::message::{ConnId, Flow, Response, Transport};
use bytes::Bytes;
use conn::{CloseReason, NET_QUEUE, NET_QUEUE_BYTES, Net, NetSender};
use handle::{COMMAND_QUEUE, Command};
use inbound::makes_dialog;
use outbound::Conn;
use rand::rngs::StdRng;
use rate::RateLimiter;
use route::RouteTable;
use settings::{BoundSockets, bind_listener};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::RandomState;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Events a user has not fetched yet. A link handles one in microseconds; a thousand means it hangs.
const EVENT_QUEUE: usize = 1024;
/// Inputs handled with one reading of the clock.
const NET_BATCH: usize = 64;
/// Seconds in `Retry-After` when a user's queue is full.
const RETRY_AFTER: &str = "5";
/// What strangers' OPTIONS are answered at most, for each source.
const STRANGER_OPTIONS: RateLimit = RateLimit { per_second: 1, burst: 5 };
/// Time for connections to write what is queued when the driver stops.
const STOP_TIME: Duration = Duration::from_secs(1);

/// Events to a user: the endpoint's.
pub type SipEvent = Event;

/// Binds all listeners and makes the driver; nothing is read until [`SipDriver::run`] is spawned.
/// `rng` makes branches and tags.
///
/// # Errors
/// [`BindError`] of the first address that cannot be had.
pub fn bind(config: SipDriverConfig, rng: StdRng) -> Result<(SipHandle, SipDriver, Vec<BoundListener>), BindError> {
    let mut sockets = Vec::with_capacity(config.listeners.len());
    for listener in &config.listeners {
        sockets.push(bind_listener(listener)?);
    }
    let bound = sockets.iter().map(BoundSockets::bound).collect();
    let (commands_tx, commands) = mpsc::channel(COMMAND_QUEUE);
    let (net_tx, net) = mpsc::channel(NET_QUEUE);
    let counters = Arc::new(DriverCounters::new());
    let net_sender =
        NetSender { tx: net_tx, budget: Arc::new(Semaphore::new(NET_QUEUE_BYTES)), counters: counters.clone() };
    let limits = config.limits;
    let driver = SipDriver {
        // A client transaction lives 64*T1 at most, and so does an INVITE's server transaction after its answer.
        transaction_life: config.endpoint.t1 * 128,
        endpoint: Endpoint::new(config.endpoint, rng),
        commands,
        net,
        net_sender,
        pending: sockets,
        listeners: Vec::new(),
        conns: HashMap::new(),
        closing: HashMap::new(),
        by_peer: HashMap::new(),
        accepted_by_ip: HashMap::new(),
        accepted: 0,
        next_conn: 1,
        tls_clients: config.tls_clients.into_iter().collect(),
        routes: RouteTable::default(),
        users: HashMap::new(),
        client_users: HashMap::new(),
        invite_users: HashMap::new(),
        finished: VecDeque::new(),
        held: false,
        limiter: RateLimiter::new(limits.request_rate, limits.trusted_factor),
        stranger_options: RateLimiter::new(STRANGER_OPTIONS, 1),
        tag_key: RandomState::new(),
        limits,
        hooks: config.hooks,
        counters: counters.clone(),
        tasks: JoinSet::new(),
        task_roles: HashMap::new(),
    };
    Ok((SipHandle { commands: commands_tx, counters }, driver, bound))
}

struct OpenListener {
    bound: BoundListener,
    udp: Option<Arc<UdpSocket>>,
    tasks: Vec<AbortHandle>,
}

/// What a task of the driver's set is.
#[derive(Debug, Clone, Copy)]
enum TaskRole {
    Listener(SocketAddr),
    Conn(ConnId),
}

#[derive(Debug, Clone, Copy)]
enum Finished {
    Client(ClientTxId),
    Invite(ServerTxId),
}

/// The driver. Made by [`bind`]; [`SipDriver::run`] is its life.
pub struct SipDriver {
    endpoint: Endpoint,
    commands: mpsc::Receiver<Command>,
    net: mpsc::Receiver<Net>,
    net_sender: NetSender,
    /// Bound, not yet read.
    pending: Vec<BoundSockets>,
    listeners: Vec<OpenListener>,
    conns: HashMap<ConnId, Conn>,
    /// Gone, and whom to tell; empty again after each drain.
    closing: HashMap<ConnId, Vec<UserId>>,
    /// Newest last.
    by_peer: HashMap<(Transport, SocketAddr), Vec<ConnId>>,
    accepted_by_ip: HashMap<IpAddr, usize>,
    accepted: usize,
    next_conn: u64,
    tls_clients: HashMap<SocketAddr, TlsClient>,
    routes: RouteTable,
    users: HashMap<UserId, mpsc::Sender<SipEvent>>,
    /// Bounded by the endpoint's tables; an entry outlives its transaction by `transaction_life` at most.
    client_users: HashMap<ClientTxId, UserId>,
    invite_users: HashMap<ServerTxId, UserId>,
    /// Entries of the two maps above, and when they may go. In order of time.
    finished: VecDeque<(Instant, Finished)>,
    transaction_life: Duration,
    limiter: RateLimiter,
    stranger_options: RateLimiter,
    /// Makes the To tags of stateless answers: the same for the same request, guessed by nobody.
    tag_key: RandomState,
    limits: Limits,
    hooks: Hooks,
    counters: Arc<DriverCounters>,
    tasks: JoinSet<()>,
    task_roles: HashMap<tokio::task::Id, TaskRole>,
    /// What comes from the network waits.
    held: bool,
}

impl fmt::Debug for SipDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SipDriver").field("conns", &self.conns.len()).finish_non_exhaustive()
    }
}

impl SipDriver {
    /// Runs until `cancel`, then closes the listeners, lets connections write what is queued, and returns.
    ///
    /// # Errors
    /// [`DriverError`]: nothing the driver could go on without.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), DriverError> {
        for sockets in std::mem::take(&mut self.pending) {
            self.start_listener(sockets)?;
        }
        let mut batch = Vec::with_capacity(NET_BATCH);
        loop {
            let deadline = self.endpoint.next_timeout();
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended)?,
                Some(command) = self.commands.recv() => {
                    let now = crate::clock::now();
                    self.command(now, command);
                }
                () = sleep_until(deadline) => {
                    let now = crate::clock::now();
                    self.input(now, Input::Timeout, None);
                    self.forget_finished(now);
                }
                _ = self.net.recv_many(&mut batch, NET_BATCH), if !self.held => {
                    let now = crate::clock::now();
                    for input in batch.drain(..) {
                        self.net_input(now, input);
                    }
                    self.forget_finished(now);
                }
            }
        }
        self.stop().await;
        Ok(())
    }

    async fn stop(mut self) {
        for listener in &self.listeners {
            listener.tasks.iter().for_each(AbortHandle::abort);
        }
        // Connections still being read must not wait for us.
        self.net.close();
        self.net_sender.budget.close();
        // Without its queue's sender a connection writes what is left and closes.
        self.conns.clear();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIME, all).await.is_err() {
            tracing::debug!("SIP connections did not finish in time");
        }
    }

    fn task_ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) -> Result<(), DriverError> {
        let (id, failed) = match &ended {
            Ok((id, ())) => (*id, false),
            Err(e) => (e.id(), e.is_panic()),
        };
        match self.task_roles.remove(&id) {
            Some(TaskRole::Listener(local)) if failed => Err(DriverError::ListenerFailed(local)),
            Some(TaskRole::Conn(conn)) if failed => {
                tracing::error!(conn = conn.0, "a SIP connection's task has failed");
                let now = crate::clock::now();
                self.conn_gone(now, conn, &CloseReason::Io(io::ErrorKind::Other));
                self.drain(now, None);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn start_listener(&mut self, sockets: BoundSockets) -> Result<(), BindError> {
        let bound = sockets.bound();
        let local = sockets.local;
        let mut tasks = Vec::new();
        let mut udp = None;
        if let Some(socket) = sockets.udp {
            let socket = Arc::new(UdpSocket::from_std(socket).map_err(|e| BindError::new("UDP", local, &e))?);
            tasks.push(self.tasks.spawn(conn::read_udp(local, socket.clone(), self.net_sender.clone())));
            udp = Some(socket);
        }
        if let Some(listener) = sockets.tcp {
            let listener = TcpListener::from_std(listener).map_err(|e| BindError::new("TCP", local, &e))?;
            tasks.push(self.tasks.spawn(conn::accept_tcp(local, listener, sockets.tls, self.net_sender.clone())));
        }
        for task in &tasks {
            self.task_roles.insert(task.id(), TaskRole::Listener(local));
        }
        self.listeners.push(OpenListener { bound, udp, tasks });
        Ok(())
    }

    // ── commands ──

    fn command(&mut self, now: Instant, command: Command) {
        // A caller that no longer waits for its answer is no concern of ours: hence `let _ =`.
        match command {
            Command::RegisterUser(user, routes, reply) => {
                let (tx, rx) = mpsc::channel(EVENT_QUEUE);
                self.routes.set(&user, routes);
                self.users.insert(user, tx);
                self.limiter.trust(now, self.routes.peer_ips());
                let _ = reply.send(Ok(rx));
            }
            Command::SetRoutes(user, routes, reply) => {
                let _ = reply.send(if self.users.contains_key(&user) {
                    self.routes.set(&user, routes);
                    self.limiter.trust(now, self.routes.peer_ips());
                    Ok(())
                } else {
                    Err(HandleError::UnknownUser(user))
                });
            }
            Command::RemoveUser(user, reply) => {
                self.routes.remove(&user);
                self.users.remove(&user);
                self.limiter.trust(now, self.routes.peer_ips());
                let _ = reply.send(Ok(()));
            }
            Command::Claim { user, code, ip, conn } => {
                if self.routes.claim(code, &user, ip) {
                    self.limiter.trust_also(now, ip);
                } else {
                    tracing::warn!(%user, "too many devices: this one's requests are taken for a stranger's");
                }
                if let Some(conn) = conn.and_then(|c| self.conns.get(&c)) {
                    conn.known.store(true, std::sync::atomic::Ordering::Relaxed);
                }
            }
            Command::Hold(held) => self.held = held,
            Command::Unclaim(user, code) => {
                if let Some(ip) = self.routes.unclaim(&code, &user).filter(|ip| !self.routes.knows(*ip)) {
                    self.limiter.distrust(ip);
                }
            }
            Command::Request { user, flow, via_sent_by, request, reply } => {
                if !self.users.contains_key(&user) {
                    let _ = reply.send(Err(HandleError::UnknownUser(user)));
                    return;
                }
                if let Some(call_id) = makes_dialog(&request) {
                    self.routes.remember_call(call_id, &user);
                }
                let sent = self.endpoint.request(now, flow, via_sent_by, request);
                if let Ok(id) = &sent {
                    self.client_users.insert(*id, user.clone());
                }
                let _ = reply.send(sent.map_err(HandleError::from));
                self.drain(now, Some(&user));
            }
            Command::Ack { user, flow, via_sent_by, request, reply } => {
                self.endpoint.ack(now, flow, via_sent_by, request);
                let _ = reply.send(Ok(()));
                self.drain(now, Some(&user));
            }
            Command::Cancel(tx, reply) => {
                let _ = reply.send(self.endpoint.cancel(now, tx).map_err(HandleError::from));
                let user = self.client_users.get(&tx).cloned();
                self.drain(now, user.as_ref());
            }
            Command::Respond(tx, response, reply) => {
                if response.status >= 200 && self.invite_users.contains_key(&tx) {
                    self.finished.push_back((now + self.transaction_life, Finished::Invite(tx)));
                }
                let _ = reply.send(self.endpoint.respond(now, tx, response).map_err(HandleError::from));
                let user = self.invite_users.get(&tx).cloned();
                self.drain(now, user.as_ref());
            }
            Command::AddListener(listener, reply) => {
                let added = bind_listener(&listener).and_then(|sockets| {
                    let bound = sockets.bound();
                    self.start_listener(sockets).map(|()| bound)
                });
                let _ = reply.send(added.map_err(HandleError::from));
            }
            Command::RemoveListener(local, reply) => {
                let _ = reply.send(self.remove_listener(now, local));
                self.drain(now, None);
            }
            Command::SetTlsClient(peer, client, reply) => {
                self.set_tls_client(now, peer, client);
                let _ = reply.send(Ok(()));
                self.drain(now, None);
            }
            Command::Counts(reply) => {
                let _ = reply.send(Ok(self.endpoint.counts()));
            }
        }
    }

    fn remove_listener(&mut self, now: Instant, local: SocketAddr) -> Result<(), HandleError> {
        let Some(at) = self.listeners.iter().position(|l| l.bound.local == local) else {
            return Err(HandleError::UnknownListener(local));
        };
        self.listeners.remove(at).tasks.iter().for_each(AbortHandle::abort);
        let conns: Vec<ConnId> = self.conns.iter().filter(|(_, c)| c.local == local).map(|(id, _)| *id).collect();
        for conn in conns {
            self.close_conn(now, conn, &CloseReason::Ours);
        }
        Ok(())
    }

    fn set_tls_client(&mut self, now: Instant, peer: SocketAddr, client: Option<TlsClient>) {
        let same = match (self.tls_clients.get(&peer), &client) {
            (Some(old), Some(new)) => old.same_as(new),
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        match client {
            Some(client) => self.tls_clients.insert(peer, client),
            None => self.tls_clients.remove(&peer),
        };
        // What was trusted under the old settings may not be trusted now.
        let conns = self.by_peer.get(&(Transport::Tls, peer)).cloned().unwrap_or_default();
        for conn in conns {
            if self.conns.get(&conn).is_some_and(|c| !c.accepted) {
                self.close_conn(now, conn, &CloseReason::Ours);
            }
        }
    }

    // ── the endpoint ──

    fn input(&mut self, now: Instant, input: Input, user: Option<&UserId>) {
        self.endpoint.handle_input(now, input);
        self.drain(now, user);
    }

    /// Performs all the endpoint has to say. `user`: whom it is about, where the output itself does not tell.
    fn drain(&mut self, now: Instant, user: Option<&UserId>) {
        while let Some(output) = self.endpoint.poll_output() {
            match output {
                Output::Transmit { flow, bytes } => {
                    if !self.transmit(now, flow, bytes, user) {
                        self.endpoint.handle_input(now, Input::TransportFailed { flow });
                    }
                }
                Output::Event(event) => self.deliver(now, event, user),
            }
        }
    }

    fn deliver(&mut self, now: Instant, event: Event, current: Option<&UserId>) {
        let user = match &event {
            Event::Request { tx, request, .. } => {
                if let Some(user) = current
                    && request.method == "INVITE"
                {
                    self.invite_users.insert(*tx, user.clone());
                }
                current.cloned()
            }
            Event::Ack { .. } => current.cloned(),
            Event::Cancelled { tx, .. } => self.invite_users.get(tx).or(current).cloned(),
            Event::NoAck { tx } => self.invite_users.remove(tx),
            Event::ClientFailed { tx, .. } => self.client_users.remove(tx),
            Event::Response { tx, response, repeat, .. } => {
                let user = self.client_users.get(tx).cloned();
                // Repeats of a 2xx still find their user for a while.
                if response.status >= 200 && !*repeat {
                    self.finished.push_back((now + self.transaction_life, Finished::Client(*tx)));
                }
                user
            }
            Event::ConnClosed { conn } => return self.tell_closed(*conn),
        };
        let request = match &event {
            Event::Request { tx, .. } => Some(*tx),
            _ => None,
        };
        // The user has been removed while its transaction was under way, or hangs.
        let lost = match user.and_then(|user| self.users.get(&user)) {
            Some(queue) => queue.try_send(event).is_err(),
            None => true,
        };
        if !lost {
            return;
        }
        match request {
            None => self.counters.add(Count::EventLost),
            Some(tx) => {
                self.counters.add(Count::QueueFull);
                let mut answer =
                    Response { status: 503, reason: String::new(), headers: Default::default(), body: Bytes::new() };
                answer.headers.push("Retry-After", RETRY_AFTER);
                self.invite_users.remove(&tx);
                // The transaction was made a moment ago; were it gone, there would be nobody to answer.
                let _ = self.endpoint.respond(now, tx, answer);
            }
        }
    }

    fn tell_closed(&mut self, conn: ConnId) {
        for user in self.closing.remove(&conn).unwrap_or_default() {
            if let Some(queue) = self.users.get(&user)
                && queue.try_send(Event::ConnClosed { conn }).is_err()
            {
                self.counters.add(Count::EventLost);
            }
        }
    }

    fn forget_finished(&mut self, now: Instant) {
        while let Some((due, finished)) = self.finished.front().copied()
            && due <= now
        {
            self.finished.pop_front();
            match finished {
                Finished::Client(tx) => self.client_users.remove(&tx),
                Finished::Invite(tx) => self.invite_users.remove(&tx),
            };
        }
    }

    // ── telling ──

    fn seen(
        &self,
        direction: Direction,
        transport: Transport,
        user: Option<&UserId>,
        kind: MessageKind,
        method: &'static str,
        size: usize,
    ) {
        if let Some(hook) = &self.hooks.on_message {
            hook(&MessageSeen { direction, transport, user: user.cloned(), kind, method, size });
        }
    }

    fn trace(&self, direction: Direction, flow: Flow, user: Option<&UserId>, whole: impl FnOnce() -> Bytes) {
        if let Some(hook) = &self.hooks.trace {
            hook(&TraceRecord { direction, flow, bytes: whole(), user: user.cloned() });
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
