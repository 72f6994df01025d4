//! Client transaction, INVITE and other.
//!
//! Standard: [RFC3261 17.1, 9.1], [RFC6026 7.2, 8.4].
//! In: responses that the endpoint has matched, timers, the user's wish to cancel. Out: `ClientStep`.
//! Owner: `Endpoint`.
//! Invariants: the user is told one final response or one failure, never both, never none (2xx of an INVITE may come
//! again, marked as a repeat); the ACK of 300..=699 is made here, the ACK of 2xx by the user.
//! Not here: making the CANCEL's own transaction (`endpoint`).

use crate::proto::sip::fields;
use crate::proto::sip::message::{Flow, Headers, Request, Response};
use crate::proto::sip::timer::{Alarms, TIMER_C, Timer, Timing};
use bytes::Bytes;
use std::time::{Duration, Instant};

/// How many different To tags of one INVITE's 2xx are told apart (forking proxies); further ones count as repeats.
const MAX_FORKS: usize = 8;

/// [RFC3261 figures 5 and 6]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proto::sip) enum ClientState {
    /// Nothing heard yet (`Calling` or `Trying`).
    Calling,
    /// A provisional response came.
    Proceeding,
    /// A final response came; its repeats are absorbed.
    Completed,
    /// A 2xx to an INVITE came; its repeats go to the user, marked. [RFC6026 7.2]
    Accepted,
}

/// What is to be done after a step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::proto::sip) struct ClientStep {
    /// To be sent, with the flow it goes to.
    pub send: Option<(Flow, Bytes)>,
    /// The response goes to the user; `true` when it is a repeated 2xx.
    pub deliver: Option<bool>,
    /// Time has run out.
    pub timed_out: bool,
    /// A CANCEL is to be sent now.
    pub send_cancel: bool,
    /// The transaction is over.
    pub done: bool,
}

/// Why an INVITE cannot be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proto::sip) enum CancelRefusal {
    /// Only INVITE can be cancelled. [RFC3261 9.1]
    NotInvite,
    /// The final response is here.
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cancel {
    No,
    /// Wanted, but a CANCEL must not go out before a provisional response. [RFC3261 9.1]
    Wanted,
    Sent,
}

/// What only an INVITE needs.
#[derive(Debug)]
struct Invite {
    /// The request's head that ACK and CANCEL are made of; its body is dropped.
    head: Request,
    /// Our Via, whole, with the branch.
    via: String,
    cancel: Cancel,
    /// Our ACK to 300..=699.
    failure_ack: Option<Bytes>,
    /// The To tags of the 2xx seen, each with the user's ACK.
    accepted: Vec<(String, Option<(Flow, Bytes)>)>,
}

/// One client transaction.
#[derive(Debug)]
pub(in crate::proto::sip) struct ClientTx {
    /// Where the request went.
    pub flow: Flow,
    /// The key it is found by.
    pub key: Box<str>,
    /// Call-ID and CSeq number, the key of the user's ACK; for INVITE alone.
    pub call: Option<Box<str>>,
    pub state: ClientState,
    /// Made by the endpoint itself (CANCEL): the user hears nothing of it.
    pub internal: bool,
    pub alarms: Alarms,
    /// What the table of deadlines holds for this transaction.
    pub entered: Option<Instant>,
    request: Bytes,
    interval: Duration,
    invite: Option<Box<Invite>>,
}

impl ClientTx {
    /// Starts the timers for a request that goes out now. `head` and `via` are kept for an INVITE alone.
    pub fn new(
        now: Instant,
        flow: Flow,
        key: Box<str>,
        request: &Request,
        via: String,
        bytes: Bytes,
        timing: &Timing,
    ) -> Self {
        let is_invite = request.method == "INVITE";
        let mut alarms = Alarms::default();
        alarms.end_at(now + timing.life(), if is_invite { Timer::B } else { Timer::F });
        if !flow.transport.is_reliable() {
            alarms.repeat_at(now + timing.t1, if is_invite { Timer::A } else { Timer::E });
        }
        let invite = is_invite.then(|| {
            let head = Request { body: Bytes::new(), ..request.clone() };
            Box::new(Invite { head, via, cancel: Cancel::No, failure_ack: None, accepted: Vec::new() })
        });
        Self {
            flow,
            key,
            call: None,
            state: ClientState::Calling,
            internal: false,
            alarms,
            entered: None,
            request: bytes,
            interval: timing.t1,
            invite,
        }
    }

    /// True while the user waits for a final response.
    pub fn is_open(&self) -> bool {
        matches!(self.state, ClientState::Calling | ClientState::Proceeding)
    }

    pub fn on_response(&mut self, now: Instant, response: &Response, timing: &Timing) -> ClientStep {
        let reliable = self.flow.transport.is_reliable();
        let flow = self.flow;
        match (self.state, response.status) {
            (ClientState::Calling | ClientState::Proceeding, ..200) => self.on_provisional(now, response.status),
            (ClientState::Calling | ClientState::Proceeding, status) => {
                self.request = Bytes::new();
                self.alarms = Alarms::default();
                let mut step = ClientStep { deliver: Some(false), ..Default::default() };
                match &mut self.invite {
                    Some(invite) if status < 300 => {
                        self.state = ClientState::Accepted;
                        invite.accepted.push((fields::tag(&response.headers, "To").to_owned(), None));
                        self.alarms.end_at(now + timing.life(), Timer::M);
                    }
                    Some(invite) => {
                        self.state = ClientState::Completed;
                        let ack = invite.failure_ack(response);
                        invite.failure_ack = Some(ack.clone());
                        step.send = Some((flow, ack));
                        step.done = reliable;
                        self.alarms.end_at(now + timing.d(), Timer::D);
                    }
                    None => {
                        self.state = ClientState::Completed;
                        step.done = reliable;
                        self.alarms.end_at(now + timing.t4, Timer::K);
                    }
                }
                step
            }
            (ClientState::Completed, 300..) => {
                let ack = self.invite.as_ref().and_then(|invite| invite.failure_ack.clone());
                ClientStep { send: ack.map(|bytes| (flow, bytes)), ..Default::default() }
            }
            (ClientState::Accepted, 200..300) => {
                let Some(invite) = &mut self.invite else {
                    return ClientStep::default();
                };
                let tag = fields::tag(&response.headers, "To");
                match invite.accepted.iter().find(|(seen, _)| seen == tag) {
                    Some((_, ack)) => ClientStep { send: ack.clone(), deliver: Some(true), ..Default::default() },
                    None if invite.accepted.len() < MAX_FORKS => {
                        invite.accepted.push((tag.to_owned(), None));
                        ClientStep { deliver: Some(false), ..Default::default() }
                    }
                    None => ClientStep { deliver: Some(true), ..Default::default() },
                }
            }
            _ => ClientStep::default(),
        }
    }

    fn on_provisional(&mut self, now: Instant, status: u16) -> ClientStep {
        let first = self.state == ClientState::Calling;
        self.state = ClientState::Proceeding;
        let mut step = ClientStep { deliver: Some(false), ..Default::default() };
        if let Some(invite) = &mut self.invite {
            self.alarms.stop_repeat();
            if invite.cancel == Cancel::Wanted {
                step.send_cancel = true;
            } else if invite.cancel == Cancel::No && (first || status > 100) {
                self.alarms.end_at(now + TIMER_C, Timer::C);
            }
        }
        step
    }

    pub fn on_timer(&mut self, now: Instant, timer: Timer, timing: &Timing) -> ClientStep {
        match timer {
            Timer::A => {
                self.interval = self.interval.saturating_mul(2);
                self.alarms.repeat_at(now + self.interval, Timer::A);
                ClientStep { send: Some((self.flow, self.request.clone())), ..Default::default() }
            }
            Timer::E => {
                self.interval =
                    if self.state == ClientState::Proceeding { timing.t2 } else { timing.after(self.interval) };
                self.alarms.repeat_at(now + self.interval, Timer::E);
                ClientStep { send: Some((self.flow, self.request.clone())), ..Default::default() }
            }
            // Who rings for ever is cancelled; what then comes is 487 or, 64·T1 later, the end.
            Timer::C if self.invite.as_ref().is_some_and(|invite| invite.cancel == Cancel::No) => {
                ClientStep { send_cancel: true, ..Default::default() }
            }
            Timer::B | Timer::C | Timer::F => ClientStep { timed_out: true, done: true, ..Default::default() },
            _ => ClientStep { done: true, ..Default::default() },
        }
    }

    /// The user gives up an INVITE. `Ok(true)`: send the CANCEL now. `Ok(false)`: it goes out with the first
    /// provisional response, or has gone out already.
    pub fn wish_cancel(&mut self) -> Result<bool, CancelRefusal> {
        let open = self.is_open();
        let Some(invite) = &mut self.invite else {
            return Err(CancelRefusal::NotInvite);
        };
        if !open {
            return Err(CancelRefusal::Finished);
        }
        if invite.cancel == Cancel::No {
            invite.cancel = Cancel::Wanted;
        }
        Ok(invite.cancel == Cancel::Wanted && self.state == ClientState::Proceeding)
    }

    /// The CANCEL of this INVITE and its Via. From here the INVITE ends after 64·T1 at the latest. [RFC3261 9.1]
    pub fn make_cancel(&mut self, now: Instant, timing: &Timing) -> Option<(Request, String)> {
        let invite = self.invite.as_mut()?;
        invite.cancel = Cancel::Sent;
        self.alarms.end_at(now + timing.life(), Timer::B);
        let to = invite.head.headers.get("To").unwrap_or("").to_owned();
        Some((invite.same_hop("CANCEL", &to), invite.via.clone()))
    }

    /// Keeps the user's ACK, to be sent again when the 2xx is repeated.
    pub fn keep_ack(&mut self, to_tag: &str, flow: Flow, bytes: &Bytes) {
        let Some(invite) = &mut self.invite else { return };
        if let Some((_, ack)) = invite.accepted.iter_mut().find(|(tag, _)| tag == to_tag) {
            *ack = Some((flow, bytes.clone()));
        }
    }
}

impl Invite {
    /// A request of this INVITE's own hop: same Request-URI, Via, Route, From, Call-ID and CSeq number.
    /// [RFC3261 9.1, 17.1.1.3]
    fn same_hop(&self, method: &str, to: &str) -> Request {
        let head = &self.head.headers;
        let mut headers = Headers::new();
        headers.push("Via", self.via.as_str());
        headers.push("Max-Forwards", "70");
        for route in head.get_all("Route") {
            headers.push("Route", route);
        }
        headers.push("From", head.get("From").unwrap_or(""));
        headers.push("To", to);
        headers.push("Call-ID", fields::call_id(head));
        headers.push("CSeq", format!("{} {method}", fields::cseq(head).map_or(0, |(seq, _)| seq)));
        Request { method: method.into(), uri: self.head.uri.clone(), headers, body: Bytes::new() }
    }

    fn failure_ack(&self, response: &Response) -> Bytes {
        let to = response.headers.get("To").or(self.head.headers.get("To")).unwrap_or("");
        self.same_hop("ACK", to).to_bytes()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a base for virtual time")]
mod tests {
    use super::*;
    use crate::proto::sip::message::Transport;

    const TIMING: Timing =
        Timing { t1: Duration::from_millis(500), t2: Duration::from_secs(4), t4: Duration::from_secs(5) };

    fn request(method: &str) -> Request {
        let mut headers = Headers::new();
        headers.push("Route", "<sip:p;lr>");
        headers.push("From", "<sip:a@x>;tag=f");
        headers.push("To", "<sip:b@y>");
        headers.push("Call-ID", "c");
        headers.push("CSeq", format!("9 {method}"));
        headers.push("Authorization", "secret");
        Request { method: method.into(), uri: "sip:b@y".into(), headers, body: Bytes::from_static(b"sdp") }
    }

    fn response(status: u16, to_tag: &str) -> Response {
        let mut headers = Headers::new();
        headers.push("To", format!("<sip:b@y>;tag={to_tag}"));
        Response { status, reason: String::new(), headers, body: Bytes::new() }
    }

    fn start(method: &str, transport: Transport) -> (Instant, ClientTx) {
        let now = Instant::now();
        let flow = Flow {
            transport,
            local: "192.0.2.1:5060".parse().unwrap(),
            peer: "192.0.2.2:5060".parse().unwrap(),
            conn: None,
        };
        let via = "SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1".to_owned();
        (now, ClientTx::new(now, flow, "k".into(), &request(method), via, Bytes::from_static(b"request"), &TIMING))
    }

    /// Runs all timers until the transaction ends: the milliseconds of each sending, the end, and whether it failed.
    fn run(start: Instant, tx: &mut ClientTx) -> (Vec<u128>, u128, bool) {
        let mut sent = Vec::new();
        loop {
            let now = tx.alarms.next().expect("armed until the end");
            let timer = tx.alarms.take_due(now).unwrap();
            let step = tx.on_timer(now, timer, &TIMING);
            if step.send.is_some() {
                sent.push((now - start).as_millis());
            }
            if step.done {
                return (sent, (now - start).as_millis(), step.timed_out);
            }
        }
    }

    #[test]
    fn timers_a_and_b() {
        let (now, mut tx) = start("INVITE", Transport::Udp);
        assert_eq!(run(now, &mut tx), (vec![500, 1500, 3500, 7500, 15500, 31500], 32000, true));
        let (now, mut tx) = start("INVITE", Transport::Tcp);
        assert_eq!(run(now, &mut tx), (vec![], 32000, true));
    }

    #[test]
    fn timers_e_and_f() {
        let expect = vec![500, 1500, 3500, 7500, 11500, 15500, 19500, 23500, 27500, 31500];
        let (now, mut tx) = start("MESSAGE", Transport::Udp);
        assert_eq!(run(now, &mut tx), (expect, 32000, true));
        let (now, mut tx) = start("MESSAGE", Transport::Tls);
        assert_eq!(run(now, &mut tx), (vec![], 32000, true));
    }

    #[test]
    fn timer_e_runs_at_t2_after_a_provisional() {
        let (now, mut tx) = start("MESSAGE", Transport::Udp);
        tx.on_response(now + Duration::from_millis(100), &response(100, ""), &TIMING);
        assert_eq!(run(now, &mut tx), (vec![500, 4500, 8500, 12500, 16500, 20500, 24500, 28500], 32000, true));
    }

    #[test]
    fn timer_k_absorbs_repeats() {
        let (now, mut tx) = start("MESSAGE", Transport::Udp);
        assert_eq!(tx.on_response(now, &response(200, "t"), &TIMING).deliver, Some(false));
        assert_eq!(tx.on_response(now, &response(200, "t"), &TIMING), ClientStep::default());
        assert_eq!(run(now, &mut tx), (vec![], 5000, false));
        let (now, mut tx) = start("MESSAGE", Transport::Tcp);
        assert!(tx.on_response(now, &response(200, "t"), &TIMING).done, "timer K is zero");
    }

    #[test]
    fn timer_d_and_the_ack_of_a_refusal() {
        let (now, mut tx) = start("INVITE", Transport::Udp);
        let step = tx.on_response(now, &response(486, "t"), &TIMING);
        assert_eq!((step.deliver, step.done), (Some(false), false));
        let (_, ack) = step.send.unwrap();
        let text = String::from_utf8(ack.to_vec()).unwrap();
        assert!(
            text.starts_with("ACK sip:b@y SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1\r\n"),
            "{text}"
        );
        assert!(text.contains("\r\nRoute: <sip:p;lr>\r\n") && text.contains("\r\nTo: <sip:b@y>;tag=t\r\n"), "{text}");
        assert!(text.contains("\r\nCSeq: 9 ACK\r\n") && !text.contains("secret") && !text.contains("sdp"), "{text}");
        let again = tx.on_response(now, &response(486, "t"), &TIMING);
        assert_eq!(again.send.map(|(_, b)| b), Some(ack));
        assert_eq!(again.deliver, None);
        assert_eq!(tx.on_response(now, &response(200, "t"), &TIMING), ClientStep::default(), "too late for a 2xx");
        assert_eq!(run(now, &mut tx), (vec![], 32000, false));
    }

    #[test]
    fn timer_m_and_repeated_2xx() {
        let (now, mut tx) = start("INVITE", Transport::Tcp);
        assert_eq!(tx.on_response(now, &response(200, "t"), &TIMING).deliver, Some(false));
        assert_eq!(tx.on_response(now, &response(200, "t"), &TIMING).deliver, Some(true));
        let flow = tx.flow;
        tx.keep_ack("t", flow, &Bytes::from_static(b"ack"));
        let step = tx.on_response(now, &response(200, "t"), &TIMING);
        assert_eq!(step.send, Some((flow, Bytes::from_static(b"ack"))));
        let other = tx.on_response(now, &response(200, "u"), &TIMING);
        assert_eq!((other.deliver, other.send), (Some(false), None), "another fork is a new dialog");
        assert_eq!(tx.on_response(now, &response(180, "t"), &TIMING), ClientStep::default());
        assert_eq!(run(now, &mut tx), (vec![], 32000, false));
    }

    #[test]
    fn forks_are_bounded() {
        let (now, mut tx) = start("INVITE", Transport::Udp);
        let told: Vec<_> =
            (0..20).map(|i| tx.on_response(now, &response(200, &i.to_string()), &TIMING).deliver.unwrap()).collect();
        assert_eq!(told.iter().filter(|repeat| !**repeat).count(), MAX_FORKS);
    }

    #[test]
    fn cancel_waits_for_a_provisional_and_ends_64_t1_later() {
        let (now, mut tx) = start("INVITE", Transport::Udp);
        assert_eq!(tx.wish_cancel(), Ok(false));
        let at = now + Duration::from_secs(2);
        assert!(tx.on_response(at, &response(100, ""), &TIMING).send_cancel);
        let (cancel, via) = tx.make_cancel(at, &TIMING).unwrap();
        assert_eq!((cancel.method.as_str(), cancel.headers.get("CSeq")), ("CANCEL", Some("9 CANCEL")));
        assert_eq!(cancel.headers.get("To"), Some("<sip:b@y>"));
        assert_eq!(cancel.headers.get("Via"), Some(via.as_str()));
        assert_eq!(tx.wish_cancel(), Ok(false), "only one CANCEL");
        assert!(!tx.on_response(at, &response(180, ""), &TIMING).send_cancel);
        assert_eq!(run(now, &mut tx), (vec![], 34000, true));
        assert_eq!(start("MESSAGE", Transport::Udp).1.wish_cancel(), Err(CancelRefusal::NotInvite));
    }

    #[test]
    fn timer_c_cancels_endless_ringing() {
        let (now, mut tx) = start("INVITE", Transport::Udp);
        tx.on_response(now, &response(100, ""), &TIMING);
        tx.on_response(now + Duration::from_secs(60), &response(100, ""), &TIMING);
        assert_eq!(tx.alarms.next(), Some(now + TIMER_C), "100 does not prolong it");
        let at = now + Duration::from_secs(61);
        tx.on_response(at, &response(180, ""), &TIMING);
        assert_eq!(tx.alarms.next(), Some(at + TIMER_C));
        let timer = tx.alarms.take_due(at + TIMER_C).unwrap();
        assert!(tx.on_timer(at + TIMER_C, timer, &TIMING).send_cancel);
    }
}
