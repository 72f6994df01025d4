//! What the network brings: rate, parser, route, precheck, then the endpoint.
//! Standard: [RFC3261 8.2], [RFC3261 8.2.7], [RFC3261 18.2.1], [GB/T28181-2022 4.3].
//! In: [`Net`]. Out: inputs of the endpoint; stateless answers to strangers and to what cannot be processed.
//! Invariants: a request no route claims never reaches endpoint or user; the same request hears the same answer.
//! Not here: reading and framing (`conn`), sending (`outbound`).

use super::conn::{CloseReason, Net};
use super::counters::{Count, Direction, MessageKind, method_label};
use super::route::Marks;
use super::{SipDriver, UserId};
use crate::proto::sip::endpoint::{Input, response_to};
use crate::proto::sip::header::SipUri;
use crate::proto::sip::message::{ConnId, Flow, Message, Request, Response, Transport};
use crate::proto::sip::parse::{Malformed, ParseError, parse_datagram, parse_framed, precheck};
use bytes::{Bytes, BytesMut};
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// What users may be asked; anything else is answered 405 or 501. [GB/T28181-2022 4.3]
pub const ALLOWED_METHODS: &[&str] =
    &["INVITE", "ACK", "CANCEL", "BYE", "INFO", "MESSAGE", "OPTIONS", "SUBSCRIBE", "NOTIFY", "REGISTER"];
/// Option tags of Require that we can honour: none.
const SUPPORTED: &[&str] = &[];

impl SipDriver {
    pub(super) fn net_input(&mut self, now: Instant, input: Net) {
        match input {
            Net::Datagram { local, peer, bytes, .. } => self.datagram(now, local, peer, bytes),
            Net::Accepted { local, peer, stream, tls } => self.accepted(local, peer, stream, tls),
            Net::Message { conn, head, body, .. } => self.framed(now, conn, &head, body),
            Net::Broken { conn, error } => self.broken(now, conn, error),
            Net::Closed { conn, why } => {
                self.conn_gone(now, conn, &why);
                self.drain(now, None);
            }
        }
    }

    /// A stream that is not SIP, or a message beyond the limits: one answer if there is one, then the end.
    fn broken(&mut self, now: Instant, conn: ConnId, error: ParseError) {
        let Some(open) = self.conns.get(&conn) else { return };
        let flow = Flow { transport: open.transport, local: open.local, peer: open.peer, conn: Some(conn) };
        let reason = error.reason.as_label();
        self.malformed(now, flow, error, Bytes::new);
        // Without its queue's sender the connection writes what is left and closes.
        self.conn_gone(now, conn, &CloseReason::Framing(reason));
        self.drain(now, None);
    }

    fn datagram(&mut self, now: Instant, local: SocketAddr, peer: SocketAddr, bytes: Bytes) {
        let flow = Flow { transport: Transport::Udp, local, peer, conn: None };
        if self.over_rate(now, peer.ip(), &bytes) {
            return;
        }
        let parsed = parse_datagram(&bytes);
        self.parsed(now, flow, parsed, bytes.len(), || bytes.clone());
    }

    fn framed(&mut self, now: Instant, conn: ConnId, head: &Bytes, body: Bytes) {
        // A connection closed by us meanwhile.
        let Some(open) = self.conns.get(&conn) else { return };
        let flow = Flow { transport: open.transport, local: open.local, peer: open.peer, conn: Some(conn) };
        if self.over_rate(now, flow.peer.ip(), head) {
            return;
        }
        let parsed = parse_framed(head, body.clone());
        self.parsed(now, flow, parsed, head.len() + body.len(), || {
            let mut whole = BytesMut::with_capacity(head.len() + body.len());
            whole.extend_from_slice(head);
            whole.extend_from_slice(&body);
            whole.freeze()
        });
    }

    /// Takes a token for a request. Silent towards the peer: an answer would double the flood.
    fn over_rate(&mut self, now: Instant, ip: IpAddr, bytes: &[u8]) -> bool {
        let start = bytes.trim_ascii_start();
        let response = start.get(..4).is_some_and(|s| s.eq_ignore_ascii_case(b"SIP/"));
        if response || self.limiter.allow(now, ip) {
            return false;
        }
        self.counters.add(Count::RateLimited);
        true
    }

    fn parsed(
        &mut self,
        now: Instant,
        flow: Flow,
        parsed: Result<Message, ParseError>,
        size: usize,
        whole: impl FnOnce() -> Bytes,
    ) {
        let message = match parsed {
            Ok(message) => message,
            Err(error) => return self.malformed(now, flow, error, whole),
        };
        let (user, kind, method) = match &message {
            Message::Request(request) => {
                let in_dialog = request.headers.to_tag().is_some();
                let from_user = request.headers.from_user();
                let to_user = request.headers.to_user();
                let uri_user = SipUri::parse(&request.uri).ok().and_then(|uri| uri.user);
                let marks = Marks {
                    local: flow.local,
                    peer: flow.peer,
                    from_user: from_user.as_deref(),
                    to_user: to_user.as_deref(),
                    uri_user: uri_user.as_deref(),
                    register: request.method == "REGISTER",
                };
                let call_id = if in_dialog { request.headers.call_id() } else { None };
                let user = self.routes.find(&marks, call_id).cloned();
                (user, MessageKind::Request, method_label(&request.method))
            }
            Message::Response(response) => {
                let user = self.routes.by_address(flow.local, flow.peer).cloned();
                let method = response.headers.cseq().map_or("other", |c| method_label(&c.method));
                (user, MessageKind::Response(response.status), method)
            }
        };
        self.seen(Direction::In, flow.transport, user.as_ref(), kind, method, size);
        self.trace(Direction::In, flow, user.as_ref(), whole);
        match message {
            Message::Response(_) => self.input(now, Input::Message { flow, message }, user.as_ref()),
            Message::Request(request) => match user {
                None => self.stranger(now, flow, &request),
                Some(user) => self.request_of(now, flow, request, &user),
            },
        }
    }

    fn malformed(&mut self, now: Instant, flow: Flow, error: ParseError, whole: impl FnOnce() -> Bytes) {
        if error.reason == Malformed::Keepalive {
            return;
        }
        let reason = error.reason.as_label();
        self.counters.add(Count::Malformed);
        if let Some(hook) = &self.hooks.on_malformed {
            hook(flow.transport, reason);
        }
        tracing::debug!(peer = %flow.peer, transport = flow.transport.as_str(), reason, "malformed SIP message");
        let user = self.routes.by_address(flow.local, flow.peer).cloned();
        self.trace(Direction::In, flow, user.as_ref(), whole);
        if let Some(answer) = error.answer {
            self.answer(now, flow, *answer, user.as_ref());
        }
    }

    fn request_of(&mut self, now: Instant, flow: Flow, request: Request, user: &UserId) {
        if let Some(conn) = flow.conn.and_then(|c| self.conns.get_mut(&c)) {
            conn.concerns(user);
        }
        if let Err((status, headers)) = precheck(&request, ALLOWED_METHODS, SUPPORTED) {
            let mut answer = response_to(&request, &flow, status, None, &self.stateless_tag(&request));
            for (name, value) in headers.iter() {
                answer.headers.push(name, value);
            }
            self.answer(now, flow, answer, Some(user));
            return;
        }
        if let Some(call_id) = makes_dialog(&request) {
            self.routes.remember_call(call_id, user);
        }
        self.input(now, Input::Message { flow, message: Message::Request(request) }, Some(user));
    }

    /// A request from nobody's peer: one answer, no state. [RFC3261 8.2.7]
    fn stranger(&mut self, now: Instant, flow: Flow, request: &Request) {
        self.counters.add(Count::Stranger);
        let tag = self.stateless_tag(request);
        match request.method.as_str() {
            "ACK" => {}
            "OPTIONS" if !self.stranger_options.allow(now, flow.peer.ip()) => self.counters.add(Count::StrangerMuted),
            "OPTIONS" => {
                let mut answer = response_to(request, &flow, 200, None, &tag);
                answer.headers.set("Allow", ALLOWED_METHODS.join(", "));
                self.answer(now, flow, answer, None);
            }
            _ => {
                let answer = response_to(request, &flow, 403, Some("Not a Configured Peer"), &tag);
                self.answer(now, flow, answer, None);
            }
        }
    }

    fn stateless_tag(&self, request: &Request) -> String {
        let headers = &request.headers;
        let key = (headers.get("Via"), headers.get("Call-ID"), headers.get("From"), headers.get("CSeq"));
        format!("{:016x}", self.tag_key.hash_one(key))
    }

    /// Sends a stateless answer the way the request came.
    fn answer(&mut self, now: Instant, flow: Flow, response: Response, user: Option<&UserId>) {
        // It has no transaction that could fail.
        let _ = self.transmit(now, flow, response.to_bytes(), user);
        self.drain(now, None);
    }
}

/// The Call-ID of a request that makes a dialog.
pub(super) fn makes_dialog(request: &Request) -> Option<&str> {
    matches!(request.method.as_str(), "INVITE" | "SUBSCRIBE").then(|| request.headers.call_id()).flatten()
}
