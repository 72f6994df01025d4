//! Server transaction, INVITE and other.
//!
//! Standard: [RFC3261 17.2, 13.3.1.4], [RFC6026 7.1, 8.7].
//! In: repeated requests, the user's answers, ACKs, timers. Out: `ServerStep`.
//! Owner: `Endpoint`.
//! Invariants: a repeated request is answered by the last response, byte for byte, and never reaches the user; a 2xx to
//! an INVITE is repeated over every transport until its ACK; all responses above 100 carry one To tag.
//! Not here: matching (`endpoint`).

use crate::proto::sip::fields;
use crate::proto::sip::message::{Flow, Headers, Request, Response};
use crate::proto::sip::timer::{Alarms, TIMER_C, Timer, Timing};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// [RFC3261 figures 7 and 8], [RFC6026 figure 5]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proto::sip) enum ServerState {
    /// Not finally answered (`Trying` or `Proceeding`).
    Proceeding,
    /// Finally answered, but for a 2xx to an INVITE.
    Completed,
    /// Our 300..=699 to an INVITE was acknowledged.
    Confirmed,
    /// An INVITE answered 2xx, its ACK awaited.
    Accepted,
    /// An INVITE answered 2xx and acknowledged: repeats of both are absorbed.
    Acknowledged,
}

/// What is to be done after a step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::proto::sip) struct ServerStep {
    /// To be sent to the transaction's flow.
    pub send: Option<Bytes>,
    /// Our 2xx was acknowledged for the first time.
    pub acknowledged: bool,
    /// No ACK came for our 2xx.
    pub no_ack: bool,
    /// The user has not answered an INVITE in time: the endpoint answers 408 for it.
    pub unanswered: bool,
    /// The transaction is over.
    pub done: bool,
}

/// One server transaction.
#[derive(Debug)]
pub(in crate::proto::sip) struct ServerTx {
    /// Where the request came from, last seen; responses go there.
    pub flow: Flow,
    /// The key it is found by.
    pub key: Arc<str>,
    /// Call-ID and CSeq number, the key of ACKs; for INVITE alone.
    pub call: Option<Arc<str>>,
    pub state: ServerState,
    pub alarms: Alarms,
    /// What the table of deadlines holds for this transaction.
    pub entered: Option<Instant>,
    /// The user has been told of the CANCEL.
    pub cancelled: bool,
    /// The headers every response copies: Via (stamped), From, To, Call-ID, CSeq, Record-Route.
    copied: Headers,
    /// The To tag: the request's, or ours.
    to_tag: String,
    to_tag_given: bool,
    last: Option<Bytes>,
    interval: Duration,
}

impl ServerTx {
    /// `to_tag` is used unless the request has one or the user's first response brings its own.
    pub fn new(
        now: Instant,
        flow: Flow,
        key: Arc<str>,
        call: Option<Arc<str>>,
        request: &Request,
        to_tag: String,
        timing: &Timing,
    ) -> Self {
        let given = fields::tag(&request.headers, "To").to_owned();
        let to_tag_given = !given.is_empty();
        let mut alarms = Alarms::default();
        let wait = if call.is_some() { TIMER_C } else { timing.life() };
        alarms.end_at(now + wait, Timer::Unanswered);
        Self {
            flow,
            key,
            call,
            state: ServerState::Proceeding,
            alarms,
            entered: None,
            cancelled: false,
            copied: copied_headers(&request.headers, flow),
            to_tag: if to_tag_given { given } else { to_tag },
            to_tag_given,
            last: None,
            interval: timing.t1,
        }
    }

    fn is_invite(&self) -> bool {
        self.call.is_some()
    }

    /// The tag the peer calls us by.
    pub fn to_tag(&self) -> &str {
        &self.to_tag
    }

    /// The peer's tag; empty for peers of RFC 2543.
    pub fn peer_tag(&self) -> &str {
        fields::tag(&self.copied, "From")
    }

    /// True while the user may answer.
    pub fn is_open(&self) -> bool {
        self.state == ServerState::Proceeding
    }

    /// Puts the request's headers and the To tag on the user's answer.
    pub fn complete(&mut self, mut response: Response) -> Response {
        let own_tag = response.headers.get("To").map(fields::tag_of).unwrap_or("").to_owned();
        if !self.to_tag_given && !own_tag.is_empty() && response.status > 100 {
            self.to_tag = own_tag;
            self.to_tag_given = true;
        }
        let mut headers = Headers::new();
        let method = fields::cseq(&self.copied).map_or("", |(_, method)| method);
        // [RFC3261 12.1.1]: a response that makes a dialog carries the route back.
        let makes_dialog = matches!(method, "INVITE" | "SUBSCRIBE") && (101..300).contains(&response.status);
        for (name, value) in self.copied.iter() {
            if name.eq_ignore_ascii_case("To") {
                headers.push(name, with_tag(value, if response.status > 100 { &self.to_tag } else { "" }));
            } else if !name.eq_ignore_ascii_case("Record-Route") || makes_dialog {
                headers.push(name, value);
            }
        }
        for (name, value) in response.headers.iter() {
            if !COPIED.iter().any(|copied| name.eq_ignore_ascii_case(copied)) {
                headers.push(name, value);
            }
        }
        response.headers = headers;
        response
    }

    /// The user's (or the endpoint's) answer, encoded. Only while `is_open`.
    pub fn on_answer(&mut self, now: Instant, status: u16, bytes: Bytes, timing: &Timing) -> ServerStep {
        let reliable = self.flow.transport.is_reliable();
        let mut step = ServerStep { send: Some(bytes.clone()), ..Default::default() };
        self.last = Some(bytes);
        if status < 200 {
            if self.is_invite() {
                self.alarms.end_at(now + TIMER_C, Timer::Unanswered);
            }
            return step;
        }
        self.interval = timing.t1;
        match (self.is_invite(), status) {
            (true, ..300) => {
                self.state = ServerState::Accepted;
                self.alarms.repeat_at(now + timing.t1, Timer::G);
                self.alarms.end_at(now + timing.life(), Timer::L);
            }
            (true, _) => {
                self.state = ServerState::Completed;
                if !reliable {
                    self.alarms.repeat_at(now + timing.t1, Timer::G);
                }
                self.alarms.end_at(now + timing.life(), Timer::H);
            }
            (false, _) => {
                self.state = ServerState::Completed;
                self.alarms.end_at(now + timing.life(), Timer::J);
                step.done = reliable;
            }
        }
        step
    }

    /// The request came again: the last response goes out again. A 2xx has its own clock. [RFC6026 7.1]
    pub fn on_repeat(&mut self, flow: Flow) -> ServerStep {
        self.flow = flow;
        let send = match self.state {
            ServerState::Proceeding | ServerState::Completed => self.last.clone(),
            ServerState::Confirmed | ServerState::Accepted | ServerState::Acknowledged => None,
        };
        ServerStep { send, ..Default::default() }
    }

    pub fn on_ack(&mut self, now: Instant, timing: &Timing) -> ServerStep {
        match self.state {
            ServerState::Completed if self.is_invite() => {
                self.state = ServerState::Confirmed;
                self.last = None;
                self.alarms.stop_repeat();
                self.alarms.end_at(now + timing.t4, Timer::I);
                ServerStep { done: self.flow.transport.is_reliable(), ..Default::default() }
            }
            ServerState::Accepted => {
                self.state = ServerState::Acknowledged;
                self.last = None;
                self.alarms.stop_repeat();
                ServerStep { acknowledged: true, ..Default::default() }
            }
            _ => ServerStep::default(),
        }
    }

    pub fn on_timer(&mut self, now: Instant, timer: Timer, timing: &Timing) -> ServerStep {
        match timer {
            Timer::G => {
                self.interval = timing.after(self.interval);
                self.alarms.repeat_at(now + self.interval, Timer::G);
                ServerStep { send: self.last.clone(), ..Default::default() }
            }
            Timer::L => ServerStep { no_ack: self.state == ServerState::Accepted, done: true, ..Default::default() },
            Timer::Unanswered if self.is_invite() => ServerStep { unanswered: true, ..Default::default() },
            _ => ServerStep { done: true, ..Default::default() },
        }
    }
}

/// What a response takes from its request. [RFC3261 8.2.6.2]
const COPIED: [&str; 6] = ["Via", "From", "To", "Call-ID", "CSeq", "Record-Route"];

/// The headers a response copies, the topmost Via stamped with where the request came from.
pub(in crate::proto::sip) fn copied_headers(request: &Headers, flow: Flow) -> Headers {
    let mut headers = Headers::new();
    for name in COPIED {
        for (i, value) in request.get_all(name).enumerate() {
            match (name, i) {
                ("Via", 0) => headers.push(name, fields::stamped_via(value, flow.peer)),
                _ => headers.push(name, value),
            }
        }
    }
    headers
}

/// A To value with `tag` unless it has one or `tag` is empty.
pub(in crate::proto::sip) fn with_tag(to: &str, tag: &str) -> String {
    if tag.is_empty() || !fields::tag_of(to).is_empty() { to.to_owned() } else { format!("{to};tag={tag}") }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a base for virtual time")]
mod tests {
    use super::*;
    use crate::proto::sip::message::Transport;

    const TIMING: Timing =
        Timing { t1: Duration::from_millis(500), t2: Duration::from_secs(4), t4: Duration::from_secs(5) };
    const BYTES: Bytes = Bytes::from_static(b"response");

    fn start(method: &str, transport: Transport, to: &str) -> (Instant, ServerTx) {
        let mut headers = Headers::new();
        headers.push("Via", "SIP/2.0/UDP 192.0.2.1;rport;branch=z9hG4bK1");
        headers.push("Record-Route", "<sip:p;lr>");
        headers.push("From", "<sip:a@x>;tag=f");
        headers.push("To", to);
        headers.push("CSeq", format!("9 {method}"));
        let request = Request { method: method.into(), uri: "sip:b@y".into(), headers, body: Bytes::new() };
        let flow = Flow {
            transport,
            local: "192.0.2.2:5060".parse().unwrap(),
            peer: "192.0.2.1:6000".parse().unwrap(),
            conn: None,
        };
        let now = Instant::now();
        let call = (method == "INVITE").then(|| "c".into());
        (now, ServerTx::new(now, flow, "k".into(), call, &request, "ours".into(), &TIMING))
    }

    fn run(start: Instant, tx: &mut ServerTx) -> (Vec<u128>, u128, ServerStep) {
        let mut sent = Vec::new();
        loop {
            let now = tx.alarms.next().expect("armed until the end");
            let timer = tx.alarms.take_due(now).unwrap();
            let step = tx.on_timer(now, timer, &TIMING);
            if step.send.is_some() {
                sent.push((now - start).as_millis());
            }
            if step.done || step.unanswered {
                return (sent, (now - start).as_millis(), step);
            }
        }
    }

    const REPEATS: [u128; 10] = [500, 1500, 3500, 7500, 11500, 15500, 19500, 23500, 27500, 31500];

    #[test]
    fn timers_g_h_and_i() {
        let (now, mut tx) = start("INVITE", Transport::Udp, "<sip:b@y>");
        tx.on_answer(now, 486, BYTES, &TIMING);
        let (sent, end, step) = run(now, &mut tx);
        assert_eq!((sent, end, step.no_ack), (REPEATS.to_vec(), 32000, false));

        let (now, mut tx) = start("INVITE", Transport::Udp, "<sip:b@y>");
        tx.on_answer(now, 486, BYTES, &TIMING);
        let flow = tx.flow;
        assert_eq!(tx.on_repeat(flow).send, Some(BYTES));
        assert_eq!(tx.on_ack(now, &TIMING), ServerStep::default());
        assert_eq!(tx.on_ack(now, &TIMING), ServerStep::default());
        assert_eq!(tx.on_repeat(flow).send, None);
        assert_eq!(run(now, &mut tx).1, 5000);

        let (now, mut tx) = start("INVITE", Transport::Tcp, "<sip:b@y>");
        tx.on_answer(now, 486, BYTES, &TIMING);
        assert_eq!(tx.alarms.next(), Some(now + TIMING.life()), "no repeats over TCP");
        assert!(tx.on_ack(now, &TIMING).done, "timer I is zero");
    }

    #[test]
    fn timer_j() {
        let (now, mut tx) = start("MESSAGE", Transport::Udp, "<sip:b@y>");
        let flow = tx.flow;
        assert_eq!(tx.on_repeat(flow).send, None, "nothing to repeat yet");
        assert!(!tx.on_answer(now, 200, BYTES, &TIMING).done);
        assert_eq!(tx.on_repeat(flow).send, Some(BYTES));
        assert_eq!(run(now, &mut tx), (vec![], 32000, ServerStep { done: true, ..Default::default() }));
        let (now, mut tx) = start("MESSAGE", Transport::Tcp, "<sip:b@y>");
        assert!(tx.on_answer(now, 200, BYTES, &TIMING).done, "timer J is zero");
    }

    #[test]
    fn a_2xx_is_repeated_over_every_transport_until_the_ack() {
        for transport in [Transport::Udp, Transport::Tcp] {
            let (now, mut tx) = start("INVITE", transport, "<sip:b@y>");
            tx.on_answer(now, 200, BYTES, &TIMING);
            let (sent, end, step) = run(now, &mut tx);
            assert_eq!((sent, end, step.no_ack), (REPEATS.to_vec(), 32000, true));

            let (now, mut tx) = start("INVITE", transport, "<sip:b@y>");
            tx.on_answer(now, 200, BYTES, &TIMING);
            assert_eq!(tx.on_repeat(tx.flow).send, None, "absorbed");
            assert!(tx.on_ack(now, &TIMING).acknowledged);
            assert!(!tx.on_ack(now, &TIMING).acknowledged, "a repeated ACK is absorbed");
            let (sent, end, step) = run(now, &mut tx);
            assert_eq!((sent, end, step.no_ack), (vec![], 32000, false));
        }
    }

    #[test]
    fn an_unanswered_request_does_not_stay_for_ever() {
        let (now, mut tx) = start("MESSAGE", Transport::Udp, "<sip:b@y>");
        assert_eq!(run(now, &mut tx).1, 32000);
        let (now, mut tx) = start("INVITE", Transport::Udp, "<sip:b@y>");
        let at = now + Duration::from_secs(100);
        tx.on_answer(at, 180, BYTES, &TIMING);
        let (_, end, step) = run(now, &mut tx);
        assert_eq!((end, step.unanswered, step.done), (281_000, true, false));
    }

    #[test]
    fn responses_copy_the_request_and_carry_one_tag() {
        let answer = |status, to: Option<&str>| {
            let mut headers = Headers::new();
            headers.push("CSeq", "1 WRONG");
            headers.push("Contact", "<sip:b@192.0.2.2>");
            if let Some(to) = to {
                headers.push("To", to);
            }
            Response { status, reason: String::new(), headers, body: Bytes::new() }
        };
        let (_, mut tx) = start("INVITE", Transport::Udp, "<sip:b@y>");
        let trying = tx.complete(answer(100, None));
        assert_eq!(trying.headers.get("To"), Some("<sip:b@y>"));
        assert_eq!(trying.headers.get("Record-Route"), None);
        let ok = tx.complete(answer(200, None));
        assert_eq!(ok.headers.get("To"), Some("<sip:b@y>;tag=ours"));
        assert_eq!(ok.headers.get("CSeq"), Some("9 INVITE"));
        assert_eq!(ok.headers.get("Record-Route"), Some("<sip:p;lr>"));
        assert_eq!(ok.headers.get("Contact"), Some("<sip:b@192.0.2.2>"));
        let via = "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1;received=192.0.2.1;rport=6000";
        assert_eq!(ok.headers.get("Via"), Some(via));

        let (_, mut tx) = start("INVITE", Transport::Udp, "<sip:b@y>");
        assert_eq!(tx.complete(answer(180, Some("<sip:b@y>;tag=user"))).headers.get("To"), Some("<sip:b@y>;tag=user"));
        assert_eq!(tx.complete(answer(200, None)).headers.get("To"), Some("<sip:b@y>;tag=user"));
        assert_eq!(tx.complete(answer(200, Some("<sip:b@y>;tag=2"))).headers.get("To"), Some("<sip:b@y>;tag=user"));

        let (_, mut tx) = start("INFO", Transport::Udp, "<sip:b@y>;tag=dialog");
        assert_eq!(tx.complete(answer(200, Some("<sip:b@y>;tag=z"))).headers.get("To"), Some("<sip:b@y>;tag=dialog"));
        assert_eq!(tx.to_tag(), "dialog");
    }
}
