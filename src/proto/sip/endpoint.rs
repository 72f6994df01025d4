//! The SIP endpoint: all transactions of one process, matching, bounds, and what is answered without the user.
//!
//! Standard: [RFC3261 8.1.3, 8.2, 9, 17.1.3, 17.2.3, 18.1.2, 18.2.2], [RFC3581], [RFC6026].
//! In: parsed messages with their flow, lost connections, timeouts; requests and responses of the user.
//! Out: bytes to send and events, by `poll_output`; drain it after every call.
//! Invariants: each request, final response and failure reaches the user once; both tables are bounded; every wait
//! has a deadline, so the endpoint forgets everything by itself.
//! Not here: sockets and framing (driver), parsing, dialogs (`dialog`), who may ask what (user).

use super::fields;
use super::message::{ConnId, Flow, Headers, Message, Request, Response};
use super::status::reason_phrase;
use super::timer::{Deadlines, Timing};
use super::transaction::{
    CancelRefusal, ClientStep, ClientTx, ServerState, ServerStep, ServerTx, copied_headers, with_tag,
};
use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What branches of RFC 3261 begin with. [RFC3261 8.1.1.7]
const MAGIC_COOKIE: &str = "z9hG4bK";

/// `Retry-After` of the 503 when the table is full: after 64·T1 today's transactions have gone.
const RETRY_AFTER_SECONDS: u32 = 32;

/// How many INVITEs of one Call-ID and CSeq an ACK is compared with; more than one is an attack or a forking proxy.
const MAX_ACK_CANDIDATES: usize = 16;

/// A client transaction. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientTxId(u64);

/// A server transaction. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerTxId(u64);

/// Sizes and times of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Round-trip estimate; taken as 10 ms..=10 s. [RFC3261 17.1.1.1]
    pub t1: Duration,
    /// Longest interval between repeats; taken as T1..=60 s.
    pub t2: Duration,
    /// Longest life of a message in the network; at most 60 s.
    pub t4: Duration,
    /// Client transactions at once; above: `ApiError::TableFull`.
    pub max_client: usize,
    /// Server transactions at once; above: 503 without a transaction.
    pub max_server: usize,
    /// Put on requests that have no `User-Agent`; empty: none.
    pub user_agent: String,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            t1: Duration::from_millis(500),
            t2: Duration::from_secs(4),
            t4: Duration::from_secs(5),
            // About 1 KiB each: 10,000 devices that are all asked twice at once.
            max_client: 20_000,
            // About 1 KiB each, kept 32 s over UDP: some 1,500 requests a second.
            max_server: 50_000,
            user_agent: String::new(),
        }
    }
}

/// What the driver hands in.
#[derive(Debug)]
pub enum Input {
    /// A parsed message.
    Message {
        /// Where it came from.
        flow: Flow,
        /// The message.
        message: Message,
    },
    /// A connection has ended: open client transactions on it fail, the user is told.
    ConnClosed {
        /// Which.
        conn: ConnId,
    },
    /// Bytes for `flow` (as it was in `Output::Transmit`) could not be sent.
    TransportFailed {
        /// Which.
        flow: Flow,
    },
    /// `next_timeout` has come.
    Timeout,
}

/// What the driver does.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Send `bytes` to `flow`.
    Transmit {
        /// Where to.
        flow: Flow,
        /// One whole message.
        bytes: Bytes,
    },
    /// Tell the user.
    Event(Event),
}

/// What the user is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A new request: any but ACK and CANCEL. Answer it with `respond`; an INVITE has had its 100.
    Request {
        /// What to answer.
        tx: ServerTxId,
        /// The request.
        request: Request,
        /// Where it came from.
        flow: Flow,
    },
    /// The ACK of a 2xx, once; that 2xx is no longer repeated.
    Ack {
        /// The ACK.
        request: Request,
        /// Where it came from.
        flow: Flow,
    },
    /// An INVITE is cancelled, once. The CANCEL has been answered; answer the INVITE 487.
    Cancelled {
        /// The INVITE.
        tx: ServerTxId,
        /// The CANCEL.
        request: Request,
    },
    /// A response: provisional ones as they come, a final one once.
    Response {
        /// What it answers.
        tx: ClientTxId,
        /// The response.
        response: Response,
        /// Where it came from.
        flow: Flow,
        /// A 2xx to an INVITE came again; the ACK, if `ack` was called, has been sent again.
        repeat: bool,
    },
    /// No final response will come.
    ClientFailed {
        /// What failed.
        tx: ClientTxId,
        /// Why.
        reason: ClientFailure,
    },
    /// No ACK came for our 2xx in 64·T1: end the call with BYE. [RFC3261 13.3.1.4]
    NoAck {
        /// The INVITE.
        tx: ServerTxId,
    },
    /// A connection has ended; failures of transactions on it came before.
    ConnClosed {
        /// Which.
        conn: ConnId,
    },
}

/// Why a client transaction ended without a final response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientFailure {
    /// Nobody answered in 64·T1 (or an INVITE only rang, and its CANCEL did not end it).
    Timeout,
    /// It could not be sent, or its connection ended.
    Transport,
}

/// A call the endpoint refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// `max_client` transactions are open.
    #[error("request not sent: {open} client transactions are open: send fewer at once or raise the limit")]
    TableFull {
        /// How many.
        open: usize,
    },
    /// Never was, or is over.
    #[error("no such transaction: it has ended: drop the answer")]
    UnknownTransaction,
    /// It has its final response.
    #[error("response not sent: the request has its final response: send only one")]
    AlreadyAnswered,
    /// Not 100..=699.
    #[error("response not sent: status {0}: use 100 to 699")]
    BadStatus(u16),
    /// CANCEL is for INVITE.
    #[error("request not cancelled: it is no INVITE: wait for its answer")]
    NotInvite,
    /// The final response came before.
    #[error("INVITE not cancelled: its final response is here: end the call with BYE")]
    TooLate,
    /// The request lacks a header no transaction can do without, or its method has its own call.
    #[error("request not sent: header or method unusable: {0}: set it before sending")]
    Unusable(&'static str),
}

/// How full the tables are, and what was dropped since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Client transactions now.
    pub client: usize,
    /// Server transactions now.
    pub server: usize,
    /// 2xx to INVITE waiting for their ACK now.
    pub accepted_2xx: usize,
    /// Responses dropped because they came from another address than the request went to.
    pub alien_responses: u64,
    /// Responses dropped because they match no transaction.
    pub stray_responses: u64,
    /// ACKs dropped because they match no INVITE.
    pub stray_acks: u64,
    /// Messages dropped because Via or CSeq cannot be read.
    pub unusable: u64,
    /// Requests answered 503 because the table was full.
    pub refused_full: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum TxRef {
    Client(u64),
    Server(u64),
}

/// What a client transaction hangs on: losing it fails the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    Conn(ConnId),
    Peer(SocketAddr),
}

fn line_of(flow: &Flow) -> Line {
    flow.conn.map_or(Line::Peer(flow.peer), Line::Conn)
}

/// All transactions of one process. See the file's head.
#[derive(Debug)]
pub struct Endpoint {
    timing: Timing,
    max_client: usize,
    max_server: usize,
    user_agent: String,
    rng: StdRng,
    /// Makes To tags of stateless answers the same for a repeated request, and different for every process.
    tag_salt: u64,
    next_id: u64,
    clients: HashMap<u64, ClientTx>,
    /// Branch and method. [RFC3261 17.1.3]
    client_keys: HashMap<Box<str>, u64>,
    client_lines: BTreeSet<(Line, u64)>,
    /// INVITEs by Call-ID and CSeq, for the user's ACKs.
    client_calls: HashMap<Box<str>, u64>,
    servers: HashMap<u64, ServerTx>,
    server_keys: HashMap<Arc<str>, u64>,
    /// INVITEs by Call-ID and CSeq, for ACKs that have a branch of their own.
    server_calls: BTreeSet<(Arc<str>, u64)>,
    deadlines: Deadlines<TxRef>,
    outputs: VecDeque<Output>,
    counts: Counts,
}

impl Endpoint {
    /// An endpoint without transactions. `rng` makes branches and tags.
    pub fn new(cfg: EndpointConfig, mut rng: StdRng) -> Self {
        let minute = Duration::from_secs(60);
        let t1 = cfg.t1.clamp(Duration::from_millis(10), Duration::from_secs(10));
        let timing = Timing { t1, t2: cfg.t2.clamp(t1, minute), t4: cfg.t4.min(minute) };
        Self {
            timing,
            max_client: cfg.max_client,
            max_server: cfg.max_server,
            user_agent: cfg.user_agent,
            tag_salt: rng.random(),
            rng,
            next_id: 0,
            clients: HashMap::new(),
            client_keys: HashMap::new(),
            client_lines: BTreeSet::new(),
            client_calls: HashMap::new(),
            servers: HashMap::new(),
            server_keys: HashMap::new(),
            server_calls: BTreeSet::new(),
            deadlines: Deadlines::default(),
            outputs: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Takes one input. Never fails: what cannot be used is dropped and counted.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        match input {
            Input::Message { flow, message: Message::Request(request) } => self.on_request(now, flow, request),
            Input::Message { flow, message: Message::Response(response) } => self.on_response(now, flow, response),
            Input::ConnClosed { conn } => {
                self.fail_line(Line::Conn(conn), |_| true);
                self.outputs.push_back(Output::Event(Event::ConnClosed { conn }));
            }
            Input::TransportFailed { flow } => {
                self.fail_line(line_of(&flow), |tx| tx.transport == flow.transport && tx.local == flow.local);
            }
            Input::Timeout => self.on_timeout(now),
        }
    }

    /// Next thing for the driver to do; `None` when all is done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call with `Input::Timeout` at the latest.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.deadlines.first()
    }

    /// How full the tables are, and what was dropped.
    pub fn counts(&self) -> Counts {
        Counts { client: self.clients.len(), server: self.servers.len(), ..self.counts }
    }

    /// Sends a request. Puts on Via (branch and rport; `via_sent_by` as `host[:port]`, default `flow.local`), and
    /// Max-Forwards and User-Agent when missing. The request must have From, To, Call-ID and a CSeq of its method.
    ///
    /// # Errors
    /// `TableFull`; `Unusable` for a missing header, for ACK (`ack`) and CANCEL (`cancel`).
    pub fn request(
        &mut self,
        now: Instant,
        flow: Flow,
        via_sent_by: Option<String>,
        mut request: Request,
    ) -> Result<ClientTxId, ApiError> {
        match request.method.as_str() {
            "ACK" => return Err(ApiError::Unusable("ACK")),
            "CANCEL" => return Err(ApiError::Unusable("CANCEL")),
            method if fields::cseq(&request.headers).is_none_or(|(_, of)| of != method) => {
                return Err(ApiError::Unusable("CSeq"));
            }
            _ => {}
        }
        if let Some(missing) = ["From", "To", "Call-ID"].into_iter().find(|name| request.headers.get(name).is_none()) {
            return Err(ApiError::Unusable(missing));
        }
        if self.clients.len() >= self.max_client {
            return Err(ApiError::TableFull { open: self.clients.len() });
        }
        let via = self.put_on(&mut request, &flow, via_sent_by);
        Ok(ClientTxId(self.start_client(now, flow, request, via, false)))
    }

    /// Cancels an INVITE: at once, or as soon as a provisional response allows it. [RFC3261 9.1]
    /// What comes then is a final response (487, or a 2xx that was faster) or `ClientFailed`.
    ///
    /// # Errors
    /// `UnknownTransaction`, `NotInvite`, `TooLate`.
    pub fn cancel(&mut self, now: Instant, id: ClientTxId) -> Result<(), ApiError> {
        let tx = self.clients.get_mut(&id.0).ok_or(ApiError::UnknownTransaction)?;
        let send_now = tx.wish_cancel().map_err(|refusal| match refusal {
            CancelRefusal::NotInvite => ApiError::NotInvite,
            CancelRefusal::Finished => ApiError::TooLate,
        })?;
        if send_now {
            self.send_cancel(now, id.0);
            self.settle_client(id.0, false);
        }
        Ok(())
    }

    /// Sends the ACK of a 2xx; it is sent again whenever that 2xx comes again. [RFC3261 13.2.2.4]
    pub fn ack(&mut self, _now: Instant, flow: Flow, via_sent_by: Option<String>, mut request: Request) {
        self.put_on(&mut request, &flow, via_sent_by);
        let call = call_key(&request.headers);
        let to_tag = fields::tag(&request.headers, "To").to_owned();
        let bytes = request.to_bytes();
        if let Some(tx) = call.and_then(|key| self.client_calls.get(&*key)).and_then(|id| self.clients.get_mut(id)) {
            tx.keep_ack(&to_tag, flow, &bytes);
        }
        self.outputs.push_back(Output::Transmit { flow, bytes });
    }

    /// Answers a request. Via, From, To, Call-ID, CSeq (and Record-Route where a dialog is made) are the request's; To
    /// gets the tag the response brings, else one of the endpoint's, the same for all responses of the transaction.
    ///
    /// # Errors
    /// `UnknownTransaction`, `AlreadyAnswered`, `BadStatus`.
    pub fn respond(&mut self, now: Instant, id: ServerTxId, mut response: Response) -> Result<(), ApiError> {
        let status = response.status;
        if !(100..700).contains(&status) {
            return Err(ApiError::BadStatus(status));
        }
        let tx = self.servers.get_mut(&id.0).ok_or(ApiError::UnknownTransaction)?;
        if !tx.is_open() {
            return Err(ApiError::AlreadyAnswered);
        }
        if response.reason.is_empty() {
            response.reason = reason_phrase(status).to_owned();
        }
        let bytes = tx.complete(response).to_bytes();
        let step = tx.on_answer(now, status, bytes, &self.timing);
        if tx.state == ServerState::Accepted {
            self.counts.accepted_2xx += 1;
        }
        self.apply_server(now, id.0, step);
        Ok(())
    }

    // ---- client side ----

    /// Puts the endpoint's headers on a request; gives its Via.
    fn put_on(&mut self, request: &mut Request, flow: &Flow, via_sent_by: Option<String>) -> String {
        let sent_by = via_sent_by.unwrap_or_else(|| flow.local.to_string());
        let branch: u128 = self.rng.random();
        let via = format!("SIP/2.0/{} {sent_by};rport;branch={MAGIC_COOKIE}{branch:032x}", flow.transport.as_str());
        request.headers.remove("Via");
        request.headers.push_front("Via", via.as_str());
        if request.headers.get("Max-Forwards").is_none() {
            request.headers.push("Max-Forwards", "70");
        }
        if request.headers.get("User-Agent").is_none() && !self.user_agent.is_empty() {
            request.headers.push("User-Agent", self.user_agent.as_str());
        }
        via
    }

    fn start_client(&mut self, now: Instant, flow: Flow, request: Request, via: String, internal: bool) -> u64 {
        let id = self.take_id();
        let key = client_key(&request.headers, &request.method).unwrap_or_default();
        let call = call_key(&request.headers).filter(|_| request.method == "INVITE");
        let message = Message::Request(request);
        let bytes = message.to_bytes();
        if let Message::Request(request) = &message {
            let mut tx = ClientTx::new(now, flow, key.clone(), request, via, bytes.clone(), &self.timing);
            tx.internal = internal;
            if let Some(call) = call {
                let call: Box<str> = call.into();
                tx.call = Some(call.clone());
                self.client_calls.insert(call, id);
            }
            self.clients.insert(id, tx);
        }
        self.client_keys.insert(key, id);
        self.client_lines.insert((line_of(&flow), id));
        self.outputs.push_back(Output::Transmit { flow, bytes });
        self.settle_client(id, false);
        id
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The CANCEL's own transaction. It is not held to `max_client`: there is at most one for each INVITE, and it is
    /// what makes room.
    fn send_cancel(&mut self, now: Instant, invite: u64) {
        let Some(tx) = self.clients.get_mut(&invite) else {
            return;
        };
        let flow = tx.flow;
        if let Some((request, via)) = tx.make_cancel(now, &self.timing) {
            self.start_client(now, flow, request, via, true);
        }
    }

    fn on_response(&mut self, now: Instant, flow: Flow, response: Response) {
        let key = fields::cseq(&response.headers).and_then(|(_, method)| client_key(&response.headers, method));
        let Some(key) = key else {
            self.counts.unusable += 1;
            return;
        };
        let Some(&id) = self.client_keys.get(&key) else {
            self.counts.stray_responses += 1;
            return;
        };
        let Some(tx) = self.clients.get_mut(&id) else { return };
        if tx.flow.peer.ip() != flow.peer.ip() {
            self.counts.alien_responses += 1;
            tracing::debug!(sent_to = %tx.flow.peer, came_from = %flow.peer, "response from a foreign address dropped");
            return;
        }
        if tx.flow.conn.is_none() && flow.conn.is_some() && tx.flow.transport == flow.transport {
            // The driver chose the connection; from here the transaction lives and dies with it.
            self.client_lines.remove(&(line_of(&tx.flow), id));
            tx.flow.conn = flow.conn;
            self.client_lines.insert((line_of(&tx.flow), id));
        }
        let step = tx.on_response(now, &response, &self.timing);
        self.apply_client(now, id, step, Some((response, flow)));
    }

    fn apply_client(&mut self, now: Instant, id: u64, step: ClientStep, response: Option<(Response, Flow)>) {
        let internal = self.clients.get(&id).is_none_or(|tx| tx.internal);
        if let Some((flow, bytes)) = step.send {
            self.outputs.push_back(Output::Transmit { flow, bytes });
        }
        if let (false, Some(repeat), Some((response, flow))) = (internal, step.deliver, response) {
            self.outputs.push_back(Output::Event(Event::Response { tx: ClientTxId(id), response, flow, repeat }));
        }
        if step.timed_out && !internal {
            let reason = ClientFailure::Timeout;
            self.outputs.push_back(Output::Event(Event::ClientFailed { tx: ClientTxId(id), reason }));
        }
        if step.send_cancel {
            self.send_cancel(now, id);
        }
        self.settle_client(id, step.done);
    }

    /// Brings the deadline up to date, or forgets the transaction.
    fn settle_client(&mut self, id: u64, done: bool) {
        let Some(tx) = self.clients.get_mut(&id) else { return };
        let next = if done { None } else { tx.alarms.next() };
        self.deadlines.shift(TxRef::Client(id), &mut tx.entered, next);
        if !done {
            return;
        }
        self.client_lines.remove(&(line_of(&tx.flow), id));
        let Some(tx) = self.clients.remove(&id) else { return };
        self.client_keys.remove(&tx.key);
        if let Some(call) = tx.call
            && self.client_calls.get(&call) == Some(&id)
        {
            self.client_calls.remove(&call);
        }
    }

    fn fail_line(&mut self, line: Line, concerned: impl Fn(&Flow) -> bool) {
        let ids: Vec<u64> = self.client_lines.range((line, 0)..=(line, u64::MAX)).map(|(_, id)| *id).collect();
        for id in ids {
            let Some(tx) = self.clients.get(&id) else { continue };
            if !tx.is_open() || !concerned(&tx.flow) {
                continue;
            }
            if !tx.internal {
                let reason = ClientFailure::Transport;
                self.outputs.push_back(Output::Event(Event::ClientFailed { tx: ClientTxId(id), reason }));
            }
            self.settle_client(id, true);
        }
    }

    // ---- server side ----

    fn on_request(&mut self, now: Instant, flow: Flow, request: Request) {
        let Some(key) = server_key(&flow, &request) else {
            self.counts.unusable += 1;
            return;
        };
        match request.method.as_str() {
            "ACK" => return self.on_ack(now, flow, request, &key),
            "CANCEL" => return self.on_cancel(flow, request, &key),
            _ => {}
        }
        if let Some(&id) = self.server_keys.get(&*key) {
            if let Some(tx) = self.servers.get_mut(&id) {
                let step = tx.on_repeat(flow);
                self.apply_server(now, id, step);
            }
            return;
        }
        if self.servers.len() >= self.max_server {
            self.counts.refused_full += 1;
            let retry = ("Retry-After", RETRY_AFTER_SECONDS.to_string());
            self.answer_stateless(flow, &request, 503, &self.stateless_tag(&key), Some(retry));
            return;
        }
        let id = self.take_id();
        let key: Arc<str> = key.into();
        let is_invite = request.method == "INVITE";
        let call: Option<Arc<str>> = call_key(&request.headers).filter(|_| is_invite).map(Into::into);
        let tag = self.new_tag();
        let tx = ServerTx::new(now, flow, key.clone(), call.clone(), &request, tag, &self.timing);
        self.servers.insert(id, tx);
        self.server_keys.insert(key, id);
        if let Some(call) = call {
            self.server_calls.insert((call, id));
            let mut headers = Headers::new();
            if let Some(stamp) = request.headers.get("Timestamp") {
                headers.push("Timestamp", stamp);
            }
            let trying = Response { status: 100, reason: String::new(), headers, body: Bytes::new() };
            // A transaction made above takes a provisional response; there is nothing to report.
            let _ = self.respond(now, ServerTxId(id), trying);
        }
        self.settle_server(id, false);
        self.outputs.push_back(Output::Event(Event::Request { tx: ServerTxId(id), request, flow }));
    }

    /// [RFC3261 17.2.3] by branch; then, for the ACK of a 2xx, by Call-ID, CSeq and tags.
    fn on_ack(&mut self, now: Instant, flow: Flow, request: Request, key: &str) {
        let id = self.server_keys.get(key).copied().or_else(|| self.find_acked(&flow, &request.headers));
        let Some((id, tx)) = id.and_then(|id| Some((id, self.servers.get_mut(&id)?))) else {
            self.counts.stray_acks += 1;
            return;
        };
        let step = tx.on_ack(now, &self.timing);
        if step.acknowledged {
            self.counts.accepted_2xx -= 1;
            self.outputs.push_back(Output::Event(Event::Ack { request, flow }));
        }
        self.apply_server(now, id, step);
    }

    /// The INVITE an ACK with a branch of its own means: both tags fit; or, from the INVITE's own address, those tags
    /// fit that the ACK has (devices leave them out).
    fn find_acked(&self, flow: &Flow, ack: &Headers) -> Option<u64> {
        let call: Arc<str> = call_key(ack)?.into();
        let (from, to) = (fields::tag(ack, "From"), fields::tag(ack, "To"));
        let mut lenient = None;
        let candidates = self.server_calls.range((call.clone(), 0)..=(call, u64::MAX)).take(MAX_ACK_CANDIDATES);
        for (_, id) in candidates {
            let Some(tx) = self.servers.get(id) else { continue };
            if tx.peer_tag() == from && tx.to_tag() == to {
                return Some(*id);
            }
            let fits = |have: &str, want: &str| have.is_empty() || want.is_empty() || have == want;
            if fits(from, tx.peer_tag()) && fits(to, tx.to_tag()) && tx.flow.peer.ip() == flow.peer.ip() {
                lenient.get_or_insert(*id);
            }
        }
        lenient
    }

    /// [RFC3261 9.2] `key` is that of the INVITE with this branch and sent-by. Stateless: a repeated CANCEL gets the
    /// same answer by the same way, and the user hears of the first one only.
    fn on_cancel(&mut self, flow: Flow, request: Request, key: &str) {
        let found = self.server_keys.get(key).copied().and_then(|id| Some((id, self.servers.get_mut(&id)?)));
        let Some((id, tx)) = found else {
            let tag = self.stateless_tag(key);
            return self.answer_stateless(flow, &request, 481, &tag, None);
        };
        let tell = tx.is_open() && !std::mem::replace(&mut tx.cancelled, true);
        let tag = tx.to_tag().to_owned();
        self.answer_stateless(flow, &request, 200, &tag, None);
        if tell {
            self.outputs.push_back(Output::Event(Event::Cancelled { tx: ServerTxId(id), request }));
        }
    }

    fn answer_stateless(
        &mut self,
        flow: Flow,
        request: &Request,
        status: u16,
        to_tag: &str,
        extra: Option<(&str, String)>,
    ) {
        let mut response = response_to(request, &flow, status, None, to_tag);
        if let Some((name, value)) = extra {
            response.headers.push(name, value);
        }
        let bytes = response.to_bytes();
        self.outputs.push_back(Output::Transmit { flow, bytes });
    }

    fn apply_server(&mut self, now: Instant, id: u64, step: ServerStep) {
        let Some(tx) = self.servers.get(&id) else { return };
        if let Some(bytes) = step.send {
            self.outputs.push_back(Output::Transmit { flow: tx.flow, bytes });
        }
        if step.no_ack {
            self.counts.accepted_2xx -= 1;
            self.outputs.push_back(Output::Event(Event::NoAck { tx: ServerTxId(id) }));
        }
        if step.unanswered {
            let (headers, body) = (Headers::new(), Bytes::new());
            // Only an open INVITE is unanswered, and that takes a response.
            let _ = self.respond(now, ServerTxId(id), Response { status: 408, reason: String::new(), headers, body });
        }
        self.settle_server(id, step.done);
    }

    fn settle_server(&mut self, id: u64, done: bool) {
        let Some(tx) = self.servers.get_mut(&id) else { return };
        let next = if done { None } else { tx.alarms.next() };
        self.deadlines.shift(TxRef::Server(id), &mut tx.entered, next);
        if done && let Some(tx) = self.servers.remove(&id) {
            self.server_keys.remove(&tx.key);
            if let Some(call) = tx.call {
                self.server_calls.remove(&(call, id));
            }
        }
    }

    fn new_tag(&mut self) -> String {
        let tag: u64 = self.rng.random();
        format!("{tag:016x}")
    }

    /// [RFC3261 8.2.7]: a stateless answer to a repeated request must carry the same tag.
    fn stateless_tag(&self, key: &str) -> String {
        let mut hasher = DefaultHasher::new();
        self.tag_salt.hash(&mut hasher);
        key.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    // ---- time ----

    fn on_timeout(&mut self, now: Instant) {
        while let Some(key) = self.deadlines.due(now) {
            match key {
                TxRef::Client(id) => {
                    let Some(tx) = self.clients.get_mut(&id) else { return };
                    let step = tx.alarms.take_due(now).map(|timer| tx.on_timer(now, timer, &self.timing));
                    self.apply_client(now, id, step.unwrap_or_default(), None);
                }
                TxRef::Server(id) => {
                    let Some(tx) = self.servers.get_mut(&id) else { return };
                    let step = tx.alarms.take_due(now).map(|timer| tx.on_timer(now, timer, &self.timing));
                    self.apply_server(now, id, step.unwrap_or_default());
                }
            }
        }
    }
}

/// Branch and CSeq method. [RFC3261 17.1.3]
fn client_key(headers: &Headers, method: &str) -> Option<Box<str>> {
    let branch = fields::top_via(headers)?.branch();
    Some(format!("{branch}\n{method}").into())
}

/// The key a request is found by. ACK and CANCEL get the key of the INVITE they mean.
///
/// Beyond [RFC3261 17.2.3] the source address is part of it: cameras fresh from the factory share one private sent-by
/// and count their branches from 1, and a stranger must not cancel a call. A branch without the magic cookie, or that
/// is nothing else, says nothing: then the parts of RFC 2543 count.
fn server_key(flow: &Flow, request: &Request) -> Option<String> {
    let via = fields::top_via(&request.headers)?;
    let (seq, _) = fields::cseq(&request.headers)?;
    let method = match request.method.as_str() {
        "ACK" | "CANCEL" => "INVITE",
        method => method,
    };
    let ip = flow.peer.ip();
    let branch = via.branch();
    let cookie = branch.get(..MAGIC_COOKIE.len()).is_some_and(|head| head.eq_ignore_ascii_case(MAGIC_COOKIE));
    // Header values hold no line ends, so the parts cannot run into one another.
    if cookie && branch.len() > MAGIC_COOKIE.len() {
        return Some(format!("{ip}\n{method}\n{}\n{branch}", via.sent_by.to_ascii_lowercase()));
    }
    let (call_id, from_tag) = (fields::call_id(&request.headers), fields::tag(&request.headers, "From"));
    Some(format!("{ip}\n{method}\n{call_id}\n{seq}\n{from_tag}\n{}\n{}", request.uri, via.text))
}

/// Call-ID and CSeq number.
fn call_key(headers: &Headers) -> Option<String> {
    let (seq, _) = fields::cseq(headers)?;
    Some(format!("{}\n{seq}", fields::call_id(headers)))
}

/// A response to `request` with the headers every response copies: Via (the topmost with `received` and `rport`), From,
/// To with `to_tag` unless it has a tag (and none on a 100), Call-ID, CSeq. [RFC3261 8.2.6.2], [RFC3581 4]
/// `reason`: default is the status's own phrase.
pub fn response_to(request: &Request, flow: &Flow, status: u16, reason: Option<&str>, to_tag: &str) -> Response {
    let mut headers = copied_headers(&request.headers, *flow);
    headers.remove("Record-Route");
    if status > 100
        && let Some(to) = headers.get("To").map(|to| with_tag(to, to_tag))
    {
        headers.set("To", to);
    }
    let reason = reason.map_or_else(|| reason_phrase(status).to_owned(), str::to_owned);
    Response { status, reason, headers, body: Bytes::new() }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a base for virtual time")]
mod tests {
    use super::super::message::Transport;
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use std::collections::BTreeMap;

    fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Bytes back to a message; the tests' own, good for what `encode` writes.
    fn decode(bytes: &[u8]) -> Message {
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&bytes[..at]).unwrap();
        let body = Bytes::copy_from_slice(&bytes[at + 4..]);
        let (line, rest) = head.split_once("\r\n").unwrap();
        let mut headers = Headers::new();
        rest.split("\r\n").map(|l| l.split_once(": ").unwrap()).for_each(|(n, v)| headers.push(n, v));
        let length = headers.get("Content-Length").map(|l| l.parse().unwrap());
        assert_eq!(length, Some(body.len()));
        assert_eq!(headers.iter().last().unwrap().0, "Content-Length");
        headers.remove("Content-Length");
        let parts: Vec<&str> = line.splitn(3, ' ').collect();
        match parts[0] {
            "SIP/2.0" => {
                let (status, reason) = (parts[1].parse().unwrap(), parts[2].to_owned());
                Message::Response(Response { status, reason, headers, body })
            }
            method => Message::Request(Request { method: method.into(), uri: parts[1].into(), headers, body }),
        }
    }

    fn endpoint(cfg: EndpointConfig) -> Endpoint {
        Endpoint::new(cfg, StdRng::seed_from_u64(1))
    }

    fn flow_at(transport: Transport, conn: Option<u64>) -> Flow {
        Flow {
            transport,
            local: "192.0.2.1:5060".parse().unwrap(),
            peer: "192.0.2.2:5070".parse().unwrap(),
            conn: conn.map(ConnId),
        }
    }

    fn udp() -> Flow {
        flow_at(Transport::Udp, None)
    }

    /// A request as our user makes it.
    fn request(method: &str, call_id: &str) -> Request {
        let mut headers = Headers::new();
        headers.push("From", "<sip:a@x>;tag=f");
        headers.push("To", "<sip:b@y>");
        headers.push("Call-ID", call_id);
        headers.push("CSeq", format!("1 {method}"));
        Request { method: method.into(), uri: "sip:b@y".into(), headers, body: Bytes::new() }
    }

    /// A request as it comes in.
    fn incoming(method: &str, call_id: &str, branch: &str) -> Request {
        let mut request = request(method, call_id);
        request.headers.push_front("Via", format!("SIP/2.0/UDP 192.0.2.2:5070;branch={branch}"));
        request
    }

    fn answer(status: u16) -> Response {
        Response { status, reason: String::new(), headers: Headers::new(), body: Bytes::new() }
    }

    fn put(end: &mut Endpoint, now: Instant, flow: Flow, request: Request) {
        end.handle_input(now, Input::Message { flow, message: Message::Request(request) });
    }

    fn drain(end: &mut Endpoint) -> (Vec<Message>, Vec<Event>) {
        let (mut messages, mut events) = (Vec::new(), Vec::new());
        while let Some(output) = end.poll_output() {
            match output {
                Output::Transmit { bytes, .. } => messages.push(decode(&bytes)),
                Output::Event(event) => events.push(event),
            }
        }
        (messages, events)
    }

    fn statuses(messages: &[Message]) -> Vec<u16> {
        messages.iter().map(|m| if let Message::Response(r) = m { r.status } else { 0 }).collect()
    }

    /// Hands in a request that must be new; gives its transaction.
    fn accept(end: &mut Endpoint, now: Instant, flow: Flow, request: Request) -> ServerTxId {
        put(end, now, flow, request);
        let (_, events) = drain(end);
        match events.as_slice() {
            [Event::Request { tx, .. }] => *tx,
            other => panic!("no request: {other:?}"),
        }
    }

    /// Runs the clock to `until`; the milliseconds since `from` of every message sent, and all events.
    fn run(end: &mut Endpoint, from: Instant, until: Instant) -> (Vec<u128>, Vec<Event>) {
        let (mut sent, mut all) = (Vec::new(), Vec::new());
        while let Some(now) = end.next_timeout().filter(|at| *at <= until) {
            end.handle_input(now, Input::Timeout);
            let (messages, events) = drain(end);
            sent.extend(messages.iter().map(|_| (now - from).as_millis()));
            all.extend(events);
        }
        (sent, all)
    }

    fn response_of(sent: &Request, status: u16, to_tag: &str) -> Message {
        Message::Response(response_to(sent, &udp(), status, None, to_tag))
    }

    fn sent_request(end: &mut Endpoint) -> Request {
        match drain(end).0.pop() {
            Some(Message::Request(request)) => request,
            other => panic!("no request sent: {other:?}"),
        }
    }

    #[test]
    fn a_request_gets_the_endpoints_headers_and_unique_branches() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig { user_agent: "Menshen".into(), ..Default::default() });
        let mut message = request("MESSAGE", "c");
        message.body = Bytes::from_static(b"\xb9\xe3\r\n\r\n\xff");
        end.request(now, udp(), None, message.clone()).unwrap();
        let first = sent_request(&mut end);
        assert_eq!(first.body, message.body);
        let via = first.headers.get("Via").unwrap();
        assert!(via.starts_with("SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bK"), "{via}");
        assert_eq!(first.headers.get("Max-Forwards"), Some("70"));
        assert_eq!(first.headers.get("User-Agent"), Some("Menshen"));
        end.request(now, flow_at(Transport::Tcp, None), Some("203.0.113.9:5061".into()), message).unwrap();
        let second = sent_request(&mut end);
        assert!(second.headers.get("Via").unwrap().starts_with("SIP/2.0/TCP 203.0.113.9:5061;"));
        assert_ne!(
            fields::top_via(&first.headers).unwrap().branch(),
            fields::top_via(&second.headers).unwrap().branch()
        );
    }

    #[test]
    fn unusable_requests_are_refused() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        for (method, drop, expect) in
            [("ACK", "", "ACK"), ("CANCEL", "", "CANCEL"), ("INFO", "CSeq", "CSeq"), ("INFO", "To", "To")]
        {
            let mut message = request(method, "c");
            message.headers.remove(drop);
            assert_eq!(end.request(now, udp(), None, message), Err(ApiError::Unusable(expect)));
        }
        assert_eq!(end.respond(now, ServerTxId(9), answer(200)), Err(ApiError::UnknownTransaction));
        assert_eq!(end.respond(now, ServerTxId(9), answer(99)), Err(ApiError::BadStatus(99)));
        assert_eq!(end.cancel(now, ClientTxId(9)), Err(ApiError::UnknownTransaction));
        assert_eq!(end.poll_output(), None);
        assert_eq!(end.next_timeout(), None);
    }

    #[test]
    fn an_invite_gets_100_before_the_user_hears_of_it() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let mut invite = incoming("INVITE", "c", "z9hG4bK1");
        invite.headers.push("Timestamp", "5.5");
        put(&mut end, now, udp(), invite.clone());
        let Some(Output::Transmit { flow, bytes }) = end.poll_output() else { panic!("no 100") };
        assert_eq!(flow, udp());
        let Message::Response(trying) = decode(&bytes) else { panic!() };
        assert_eq!((trying.status, trying.headers.get("To")), (100, Some("<sip:b@y>")));
        assert_eq!(trying.headers.get("Timestamp"), Some("5.5"));
        assert!(matches!(end.poll_output(), Some(Output::Event(Event::Request { .. }))));
        put(&mut end, now, udp(), invite);
        assert_eq!(end.poll_output(), Some(Output::Transmit { flow: udp(), bytes }), "repeated byte for byte");
        assert_eq!(end.poll_output(), None);
    }

    #[test]
    fn repeats_are_answered_again_and_go_to_where_they_come_from() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let message = incoming("MESSAGE", "c", "z9hG4bK1");
        let tx = accept(&mut end, now, udp(), message.clone());
        put(&mut end, now, udp(), message.clone());
        assert_eq!(end.poll_output(), None, "not answered yet");
        end.respond(now, tx, answer(200)).unwrap();
        let Some(Output::Transmit { bytes, .. }) = end.poll_output() else { panic!() };
        assert_eq!(end.respond(now, tx, answer(200)), Err(ApiError::AlreadyAnswered));
        let moved = Flow { peer: "192.0.2.2:6000".parse().unwrap(), ..udp() };
        put(&mut end, now, moved, message.clone());
        assert_eq!(end.poll_output(), Some(Output::Transmit { flow: moved, bytes }));
        run(&mut end, now, now + millis(32_000));
        assert_eq!(end.counts(), Counts::default());
        accept(&mut end, now + millis(32_000), udp(), message);
    }

    #[test]
    fn branches_that_say_nothing_do_not_collide() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        for branch in ["z9hG4bK", "Z9HG4BK", "1", ""] {
            for call in ["a", "b"] {
                let call = format!("{branch}{call}");
                let message = incoming("MESSAGE", &call, branch);
                accept(&mut end, now, udp(), message.clone());
                put(&mut end, now, udp(), message.clone());
                assert_eq!(drain(&mut end).1, [], "a repeat of {branch} {call}");
                let mut next = message;
                next.headers.set("CSeq", "2 MESSAGE");
                accept(&mut end, now, udp(), next);
            }
        }
        // The same branch and sent-by behind another address is another device.
        accept(&mut end, now, udp(), incoming("MESSAGE", "m", "z9hG4bK1"));
        let other = Flow { peer: "198.51.100.1:5070".parse().unwrap(), ..udp() };
        accept(&mut end, now, other, incoming("MESSAGE", "n", "z9hG4bK1"));
    }

    #[test]
    fn an_invite_of_rfc_2543_is_cancelled_and_acknowledged() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let tx = accept(&mut end, now, udp(), incoming("INVITE", "c", "1"));
        let mut cancel = incoming("CANCEL", "c", "1");
        put(&mut end, now, udp(), cancel.clone());
        let (sent, events) = drain(&mut end);
        assert_eq!(statuses(&sent), [200]);
        assert_eq!(events, [Event::Cancelled { tx, request: cancel.clone() }]);
        end.respond(now, tx, answer(487)).unwrap();
        drain(&mut end);
        put(&mut end, now, udp(), incoming("ACK", "c", "1"));
        assert_eq!(run(&mut end, now, now + millis(60_000)), (vec![], vec![]), "no repeat of the 487");
        cancel.headers.set("Call-ID", "d");
        put(&mut end, now, udp(), cancel);
        assert_eq!(statuses(&drain(&mut end).0), [481]);
    }

    #[test]
    fn cancel_is_answered_by_the_endpoint() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let cancel = |branch: &str| incoming("CANCEL", "c", branch);
        put(&mut end, now, udp(), cancel("z9hG4bK1"));
        let (sent, events) = drain(&mut end);
        assert_eq!((statuses(&sent), events), (vec![481], vec![]));
        put(&mut end, now, udp(), cancel("z9hG4bK1"));
        assert_eq!(drain(&mut end).0, sent, "the same tag");

        let tx = accept(&mut end, now, udp(), incoming("INVITE", "c", "z9hG4bK1"));
        let stranger = Flow { peer: "198.51.100.1:5070".parse().unwrap(), ..udp() };
        put(&mut end, now, stranger, cancel("z9hG4bK1"));
        assert_eq!(statuses(&drain(&mut end).0), [481], "a stranger cancels nothing");
        for expect in [1, 0] {
            put(&mut end, now, udp(), cancel("z9hG4bK1"));
            let (sent, events) = drain(&mut end);
            assert_eq!((statuses(&sent), events.len()), (vec![200], expect));
        }
        end.respond(now, tx, answer(487)).unwrap();
        drain(&mut end);

        let tx = accept(&mut end, now, udp(), incoming("INVITE", "c", "z9hG4bK2"));
        end.respond(now, tx, answer(200)).unwrap();
        drain(&mut end);
        put(&mut end, now, udp(), cancel("z9hG4bK2"));
        let (sent, events) = drain(&mut end);
        assert_eq!((statuses(&sent), events), (vec![200], vec![]), "too late, but understood");
    }

    #[test]
    fn responses_from_elsewhere_and_unasked_ones_are_dropped() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let id = end.request(now, udp(), None, request("MESSAGE", "c")).unwrap();
        let sent = sent_request(&mut end);
        let alien = Flow { peer: "198.51.100.1:5070".parse().unwrap(), ..udp() };
        end.handle_input(now, Input::Message { flow: alien, message: response_of(&sent, 200, "t") });
        let mut unasked = sent.clone();
        unasked.headers.set("CSeq", "1 INFO");
        end.handle_input(now, Input::Message { flow: udp(), message: response_of(&unasked, 200, "t") });
        unasked.headers.remove("CSeq");
        end.handle_input(now, Input::Message { flow: udp(), message: response_of(&unasked, 200, "t") });
        assert_eq!(end.poll_output(), None);
        let counts = end.counts();
        assert_eq!((counts.alien_responses, counts.stray_responses, counts.unusable), (1, 1, 1));
        let moved = Flow { peer: "192.0.2.2:9".parse().unwrap(), ..udp() };
        end.handle_input(now, Input::Message { flow: moved, message: response_of(&sent, 200, "t") });
        assert!(matches!(drain(&mut end).1[..], [Event::Response { tx, repeat: false, .. }] if tx == id));
    }

    #[test]
    fn tables_are_bounded() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig { max_client: 2, max_server: 2, ..Default::default() });
        for call in ["a", "b"] {
            end.request(now, udp(), None, request("INVITE", call)).unwrap();
            accept(&mut end, now, udp(), incoming("MESSAGE", call, &format!("z9hG4bK{call}")));
        }
        assert_eq!(end.request(now, udp(), None, request("INFO", "c")), Err(ApiError::TableFull { open: 2 }));
        for _ in 0..2 {
            put(&mut end, now, udp(), incoming("MESSAGE", "c", "z9hG4bKc"));
        }
        let (sent, events) = drain(&mut end);
        assert_eq!((statuses(&sent), events), (vec![503, 503], vec![]));
        assert_eq!(sent[0], sent[1], "the same To tag");
        let Message::Response(refusal) = &sent[0] else { panic!() };
        assert_eq!(refusal.headers.get("Retry-After"), Some("32"));
        let counts = end.counts();
        assert_eq!((counts.client, counts.server, counts.refused_full), (2, 2, 2));
        run(&mut end, now, now + millis(40_000));
        assert_eq!((end.counts().client, end.counts().server), (0, 0));
    }

    #[test]
    fn a_2xx_is_repeated_until_its_ack_over_udp_and_tcp() {
        for flow in [udp(), flow_at(Transport::Tcp, Some(7))] {
            let now = Instant::now();
            let mut end = endpoint(EndpointConfig::default());
            let tx = accept(&mut end, now, flow, incoming("INVITE", "c", "z9hG4bK1"));
            end.respond(now, tx, answer(200)).unwrap();
            drain(&mut end);
            assert_eq!(end.counts().accepted_2xx, 1);
            let (sent, events) = run(&mut end, now, now + millis(60_000));
            assert_eq!(sent, [500, 1500, 3500, 7500, 11500, 15500, 19500, 23500, 27500, 31500]);
            assert_eq!(events, [Event::NoAck { tx }]);
            assert_eq!(end.counts(), Counts::default());
        }
    }

    #[test]
    fn only_the_fitting_ack_ends_a_2xx() {
        let now = Instant::now();
        let stranger = Flow { peer: "198.51.100.1:5070".parse().unwrap(), ..udp() };
        // From, To, branch, flow of the ACK, and whether it fits; our To tag is `t`.
        let cases = [
            ("<sip:a@x>;tag=f", "<sip:b@y>;tag=t", "z9hG4bK2", udp(), true),
            ("<sip:a@x>;tag=f", "<sip:b@y>;tag=t", "z9hG4bK2", stranger, true),
            ("<sip:a@x>;tag=f", "<sip:b@y>;tag=other", "z9hG4bK2", udp(), false),
            ("<sip:a@x>;tag=other", "<sip:b@y>;tag=t", "z9hG4bK2", udp(), false),
            ("<sip:a@x>", "<sip:b@y>", "z9hG4bK2", udp(), true),
            ("<sip:a@x>", "<sip:b@y>;tag=t", "z9hG4bK2", stranger, false),
            // A device that keeps the INVITE's branch.
            ("<sip:a@x>;tag=f", "<sip:b@y>", "z9hG4bK1", udp(), true),
        ];
        for (from, to, branch, flow, fits) in cases {
            let mut end = endpoint(EndpointConfig::default());
            let tx = accept(&mut end, now, udp(), incoming("INVITE", "c", "z9hG4bK1"));
            let mut ok = answer(200);
            ok.headers.push("To", "<sip:b@y>;tag=t");
            end.respond(now, tx, ok).unwrap();
            drain(&mut end);
            let mut ack = incoming("ACK", "c", branch);
            ack.headers.set("From", from);
            ack.headers.set("To", to);
            for first in [true, false] {
                put(&mut end, now, flow, ack.clone());
                let told = drain(&mut end).1;
                let expect = if fits && first { vec![Event::Ack { request: ack.clone(), flow }] } else { vec![] };
                assert_eq!(told, expect, "{from} {to} {branch}");
            }
            put(&mut end, now, udp(), incoming("INVITE", "c", "z9hG4bK1"));
            assert_eq!(drain(&mut end), (vec![], vec![]), "a late INVITE is absorbed");
            let (sent, events) = run(&mut end, now, now + millis(60_000));
            assert_eq!((sent.is_empty(), events.is_empty()), (fits, fits), "{from} {to} {branch}");
            assert_eq!((end.counts().server, end.counts().accepted_2xx), (0, 0));
        }
    }

    #[test]
    fn an_ack_with_a_new_branch_ends_a_refusal_too() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let tx = accept(&mut end, now, udp(), incoming("INVITE", "c", "z9hG4bK1"));
        end.respond(now, tx, answer(486)).unwrap();
        drain(&mut end);
        put(&mut end, now, udp(), incoming("ACK", "c", "z9hG4bK2"));
        assert_eq!(drain(&mut end), (vec![], vec![]));
        assert_eq!(run(&mut end, now, now + millis(60_000)), (vec![], vec![]));
        put(&mut end, now, udp(), incoming("ACK", "c", "z9hG4bK2"));
        assert_eq!(end.counts().stray_acks, 1);
    }

    #[test]
    fn an_invite_the_user_forgets_is_answered_408() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let tx = accept(&mut end, now, udp(), incoming("INVITE", "c", "z9hG4bK1"));
        end.handle_input(now + super::super::timer::TIMER_C, Input::Timeout);
        assert_eq!(statuses(&drain(&mut end).0), [408]);
        assert_eq!(end.respond(now, tx, answer(200)), Err(ApiError::AlreadyAnswered));
        run(&mut end, now, now + millis(400_000));
        assert_eq!(end.counts(), Counts::default());
    }

    #[test]
    fn the_users_ack_is_sent_again_with_a_repeated_2xx() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let id = end.request(now, udp(), None, request("INVITE", "c")).unwrap();
        let sent = sent_request(&mut end);
        let ok = response_of(&sent, 200, "t");
        end.handle_input(now, Input::Message { flow: udp(), message: ok.clone() });
        assert!(matches!(drain(&mut end).1[..], [Event::Response { repeat: false, .. }]));
        let mut ack = request("ACK", "c");
        ack.headers.set("To", "<sip:b@y>;tag=t");
        end.ack(now, udp(), None, ack);
        let ack = sent_request(&mut end);
        assert_ne!(ack.headers.get("Via"), sent.headers.get("Via"));
        end.handle_input(now, Input::Message { flow: udp(), message: ok.clone() });
        let (again, events) = drain(&mut end);
        assert_eq!(again, [Message::Request(ack)]);
        assert!(matches!(events[..], [Event::Response { repeat: true, .. }]));
        assert_eq!(end.cancel(now, id), Err(ApiError::TooLate));
        run(&mut end, now, now + millis(32_000));
        end.handle_input(now, Input::Message { flow: udp(), message: ok });
        assert_eq!((end.counts().client, end.counts().stray_responses), (0, 1));
        assert!(end.client_calls.is_empty() && end.client_keys.is_empty() && end.client_lines.is_empty());
    }

    #[test]
    fn lost_lines_fail_open_transactions() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let tcp = flow_at(Transport::Tcp, Some(7));
        let on_conn = end.request(now, tcp, None, request("MESSAGE", "a")).unwrap();
        let learnt = end.request(now, flow_at(Transport::Tcp, None), None, request("INVITE", "b")).unwrap();
        let invite = sent_request(&mut end);
        let other = end.request(now, flow_at(Transport::Tcp, Some(8)), None, request("MESSAGE", "c")).unwrap();
        let over_udp = end.request(now, udp(), None, request("MESSAGE", "d")).unwrap();
        end.handle_input(now, Input::Message { flow: tcp, message: response_of(&invite, 180, "t") });
        drain(&mut end);
        end.handle_input(now, Input::ConnClosed { conn: ConnId(7) });
        let failed = |tx| Event::ClientFailed { tx, reason: ClientFailure::Transport };
        assert_eq!(drain(&mut end).1, [failed(on_conn), failed(learnt), Event::ConnClosed { conn: ConnId(7) }]);
        end.handle_input(now, Input::TransportFailed { flow: udp() });
        assert_eq!(drain(&mut end).1, [failed(over_udp)]);
        end.handle_input(now, Input::TransportFailed { flow: flow_at(Transport::Tcp, None) });
        assert_eq!(drain(&mut end).1, []);
        let (sent, events) = run(&mut end, now, now + millis(60_000));
        assert_eq!((sent, events), (vec![], vec![Event::ClientFailed { tx: other, reason: ClientFailure::Timeout }]));
    }

    #[test]
    fn a_cancel_goes_out_with_the_first_provisional() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let id = end.request(now, udp(), None, request("INVITE", "c")).unwrap();
        let invite = sent_request(&mut end);
        end.cancel(now, id).unwrap();
        assert_eq!(end.poll_output(), None);
        end.handle_input(now, Input::Message { flow: udp(), message: response_of(&invite, 100, "") });
        let cancel = sent_request(&mut end);
        assert_eq!((cancel.method.as_str(), cancel.headers.get("Via")), ("CANCEL", invite.headers.get("Via")));
        end.cancel(now, id).unwrap();
        assert_eq!(end.poll_output(), None, "one CANCEL is enough");
        end.handle_input(now, Input::Message { flow: udp(), message: response_of(&cancel, 200, "t") });
        assert_eq!(drain(&mut end), (vec![], vec![]), "its answer is not the user's");
        end.handle_input(now, Input::Message { flow: udp(), message: response_of(&invite, 487, "t") });
        let (sent, events) = drain(&mut end);
        assert!(matches!(&sent[..], [Message::Request(ack)] if ack.method == "ACK"));
        assert!(matches!(&events[..], [Event::Response { tx, response, .. }] if *tx == id && response.status == 487));
        let (sent, events) = run(&mut end, now, now + millis(60_000));
        assert_eq!((sent, events, end.counts()), (vec![], vec![], Counts::default()));
    }

    #[test]
    fn unreadable_requests_are_dropped() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        let mut message = incoming("MESSAGE", "c", "z9hG4bK1");
        message.headers.set("CSeq", "x MESSAGE");
        put(&mut end, now, udp(), message);
        put(&mut end, now, udp(), request("MESSAGE", "c"));
        assert_eq!(end.poll_output(), None);
        assert_eq!((end.counts().unusable, end.counts().server), (2, 0));
    }

    #[test]
    fn twenty_thousand_transactions_end_on_time() {
        let now = Instant::now();
        let mut end = endpoint(EndpointConfig::default());
        for i in 0..20_000u64 {
            let at = now + Duration::from_micros(i);
            end.request(at, flow_at(Transport::Tcp, Some(i)), None, request("MESSAGE", "c")).unwrap();
            end.poll_output();
        }
        end.handle_input(now + millis(32_000), Input::Timeout);
        assert_eq!(drain(&mut end).1.len(), 1);
        end.handle_input(now + millis(32_020), Input::Timeout);
        assert_eq!(drain(&mut end).1.len(), 19_999);
        assert_eq!((end.counts(), end.next_timeout()), (Counts::default(), None));
    }

    /// Two endpoints on a network that loses, doubles and reorders datagrams; the clock is the net's.
    struct SimNet {
        now: Instant,
        ends: [Endpoint; 2],
        addresses: [SocketAddr; 2],
        /// Datagrams on their way: arrival and order, receiver, bytes.
        wire: BTreeMap<(Instant, u64), (usize, Bytes)>,
        order: u64,
        rng: StdRng,
        loss: f64,
        doubles: f64,
        jitter_ms: u64,
        events: Vec<(usize, Event)>,
    }

    impl SimNet {
        fn new(seed: u64, loss: f64, doubles: f64, jitter_ms: u64) -> Self {
            let end = |n: u64| Endpoint::new(EndpointConfig::default(), StdRng::seed_from_u64(seed ^ (n << 32)));
            Self {
                now: Instant::now(),
                ends: [end(1), end(2)],
                addresses: ["192.0.2.1:5060".parse().unwrap(), "192.0.2.2:5060".parse().unwrap()],
                wire: BTreeMap::new(),
                order: 0,
                rng: StdRng::seed_from_u64(seed),
                loss,
                doubles,
                jitter_ms,
                events: Vec::new(),
            }
        }

        fn flow(&self, of: usize) -> Flow {
            Flow { transport: Transport::Udp, local: self.addresses[of], peer: self.addresses[1 - of], conn: None }
        }

        fn collect(&mut self) {
            for end in 0..2 {
                while let Some(output) = self.ends[end].poll_output() {
                    match output {
                        Output::Event(event) => self.events.push((end, event)),
                        Output::Transmit { bytes, .. } => {
                            let copies = 1 + usize::from(self.rng.random_bool(self.doubles));
                            for _ in 0..copies {
                                if !self.rng.random_bool(self.loss) {
                                    self.order += 1;
                                    let at = self.now + millis(1 + self.rng.random_range(0..=self.jitter_ms));
                                    self.wire.insert((at, self.order), (1 - end, bytes.clone()));
                                }
                            }
                        }
                    }
                }
            }
        }

        /// Goes on to the next arrival or deadline; false when nothing is left to happen.
        fn step(&mut self) -> bool {
            self.collect();
            let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
            let due = [arrival, self.ends[0].next_timeout(), self.ends[1].next_timeout()];
            let Some(next) = due.into_iter().flatten().min() else {
                return false;
            };
            self.now = self.now.max(next);
            while let Some(entry) = self.wire.first_entry().filter(|e| e.key().0 <= self.now) {
                let (to, bytes) = entry.remove();
                let flow = self.flow(to);
                self.ends[to].handle_input(self.now, Input::Message { flow, message: decode(&bytes) });
            }
            self.ends.iter_mut().for_each(|end| end.handle_input(self.now, Input::Timeout));
            self.collect();
            true
        }

        /// Lets both users answer until all is quiet: MESSAGE 200, INVITE 180 and then 200 or 486. Gives for each
        /// request of side 0 its final status, and how many ACK and NoAck events side 1 had.
        fn play(&mut self) -> (BTreeMap<ClientTxId, u16>, usize, usize) {
            let mut finals = BTreeMap::new();
            let (mut acks, mut no_acks, mut accepted) = (0, 0, 0u32);
            while self.step() {
                for (end, event) in std::mem::take(&mut self.events) {
                    let now = self.now;
                    match event {
                        Event::Request { tx, request, .. } if request.method == "INVITE" => {
                            self.ends[end].respond(now, tx, answer(180)).unwrap();
                            accepted += 1;
                            let status = if accepted.is_multiple_of(3) { 486 } else { 200 };
                            self.ends[end].respond(now, tx, answer(status)).unwrap();
                        }
                        Event::Request { tx, .. } => self.ends[end].respond(now, tx, answer(200)).unwrap(),
                        Event::Response { tx, response, flow, repeat } if response.status >= 200 => {
                            if !repeat {
                                assert_eq!(finals.insert(tx, response.status), None, "a final response twice");
                            }
                            let (seq, method) = fields::cseq(&response.headers).unwrap();
                            if method == "INVITE" && response.status < 300 && !repeat {
                                let mut ack = request("ACK", fields::call_id(&response.headers));
                                ack.headers.set("To", response.headers.get("To").unwrap());
                                ack.headers.set("CSeq", format!("{seq} ACK"));
                                self.ends[end].ack(now, flow, None, ack);
                            }
                        }
                        Event::Response { .. } => {}
                        Event::Ack { .. } => acks += 1,
                        Event::NoAck { .. } => no_acks += 1,
                        other => panic!("unexpected {other:?}"),
                    }
                }
            }
            (finals, acks, no_acks)
        }
    }

    #[test]
    fn all_transactions_finish_under_loss_doubling_and_reordering() {
        for seed in 1..=3 {
            let mut net = SimNet::new(seed, 0.05, 0.05, 700);
            let flow = net.flow(0);
            for i in 0..300 {
                let method = if i % 2 == 0 { "INVITE" } else { "MESSAGE" };
                net.ends[0].request(net.now, flow, None, request(method, &format!("call-{i}"))).unwrap();
            }
            let (finals, acks, no_acks) = net.play();
            assert_eq!(finals.len(), 300);
            assert_eq!(finals.values().filter(|status| **status == 486).count(), 50);
            assert_eq!((acks, no_acks), (100, 0));
            for end in &net.ends {
                let counts = end.counts();
                assert_eq!((counts.client, counts.server, counts.accepted_2xx), (0, 0, 0));
                assert_eq!((counts.alien_responses, counts.unusable), (0, 0));
                assert!(end.server_keys.is_empty() && end.server_calls.is_empty() && end.client_keys.is_empty());
            }
        }
    }

    #[test]
    fn a_quiet_net_repeats_nothing() {
        let mut net = SimNet::new(7, 0.0, 0.0, 0);
        let flow = net.flow(0);
        net.ends[0].request(net.now, flow, None, request("MESSAGE", "m")).unwrap();
        net.ends[0].request(net.now, flow, None, request("INVITE", "i")).unwrap();
        let (finals, acks, _) = net.play();
        assert_eq!((finals.len(), acks), (2, 1));
        // MESSAGE and 200; INVITE, 100, 180, 200 and ACK.
        assert_eq!(net.order, 7);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        /// Any order of inputs and calls: no panic, both tables within bounds, and in the end nothing is left.
        #[test]
        fn any_order_of_operations_ends_empty(ops in prop::collection::vec((0u8..12, 0u8..6, 0u64..20_000), 1..60)) {
            let mut now = Instant::now();
            let mut end = endpoint(EndpointConfig { max_client: 4, max_server: 4, ..Default::default() });
            let (mut servers, mut clients, mut sent) = (vec![ServerTxId(0)], vec![ClientTxId(0)], Vec::new());
            for (op, pick, wait) in ops {
                now += millis(wait);
                let method = ["INVITE", "MESSAGE", "ACK", "CANCEL", "BYE", "INVITE"][usize::from(pick)];
                let flow = if pick % 2 == 0 { udp() } else { flow_at(Transport::Tcp, Some(pick.into())) };
                let branch = ["z9hG4bK1", "z9hG4bK", "x", "z9hG4bK2"][usize::from(pick % 4)];
                let status = [100, 180, 200, 202, 404, 600][usize::from(pick)];
                match op {
                    0..4 => put(&mut end, now, flow, incoming(method, "c", branch)),
                    4 | 5 => {
                        let tx = servers[usize::from(pick) % servers.len()];
                        let _ = end.respond(now, tx, answer(status));
                    }
                    6 => clients.extend(end.request(now, flow, None, request(method, "c"))),
                    7 => { let _ = end.cancel(now, clients[usize::from(pick) % clients.len()]); }
                    8 => end.ack(now, flow, None, request("ACK", "c")),
                    9 => end.handle_input(now, Input::ConnClosed { conn: ConnId(pick.into()) }),
                    10 if !sent.is_empty() => {
                        let of: &Request = &sent[usize::from(pick) % sent.len()];
                        let message = response_of(of, status, "t");
                        end.handle_input(now, Input::Message { flow, message });
                    }
                    _ => end.handle_input(now, Input::Timeout),
                }
                let (messages, events) = drain(&mut end);
                sent.extend(messages.into_iter().filter_map(|message| match message {
                    Message::Request(request) => Some(request),
                    Message::Response(_) => None,
                }));
                servers.extend(events.iter().filter_map(|event| match event {
                    Event::Request { tx, .. } => Some(*tx),
                    _ => None,
                }));
                let counts = end.counts();
                prop_assert!(counts.client <= 8 && counts.server <= 4 && counts.accepted_2xx <= 4);
                prop_assert_eq!(end.deadlines.len(), counts.client + counts.server);
            }
            run(&mut end, now, now + millis(1_000_000));
            let counts = end.counts();
            prop_assert_eq!((counts.client, counts.server, counts.accepted_2xx), (0, 0, 0));
            prop_assert!(end.client_lines.is_empty() && end.client_calls.is_empty() && end.server_calls.is_empty());
        }
    }
}
