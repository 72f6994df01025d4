//! The registering client: one lower platform's registration with one upper platform, and its keepalives.
//!
//! Standard: [GB/T28181-2022 9.1.1, 9.1.2.2, 9.1.2.3, 9.6, 9.10, annex I], [RFC3261 10.2, 22.1].
//! In: start, stop, responses, failures, a lost connection, timeouts. Out: `RegistrationOutput` by `poll_output`.
//! Invariants: one REGISTER is under way at most; nothing is tried again without a wait, but for the one REGISTER that
//! answers a lost keepalive; the state follows the last REGISTER, not the first success.
//! Not here: transactions (`endpoint`), the keepalive's body and the digest (caller), where the server is reached.

use super::endpoint::ClientFailure;
use super::fields;
use super::header::SipUri;
use super::message::{Headers, Request, Response};
use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// After a rejection the next try waits at least this long. [GB/T28181-2022 9.1.1]
const RETRY_MIN: Duration = Duration::from_secs(60);

/// And after this many 403 in a row, `RETRY_FORBIDDEN`: an upper platform that forbids us is not to be pestered, and
/// many lock an account out.
const FORBIDDEN_LIMIT: u32 = 3;
const RETRY_FORBIDDEN: Duration = Duration::from_secs(600);

/// The random part of the wait after a rejection. [GB/T28181-2022 7.1]
const RETRY_RANDOM_MS: u64 = 10_000;

/// Longest wait when nobody answers; the waits are 2, 4, 8 … s, each ± 20 %.
const SILENCE_MAX_SECONDS: u64 = 60;

/// A REGISTER whose outcome nobody told in this time (the endpoint gives up after 64·T1 = 32 s) is taken for unanswered:
/// a lost event must not end the registering for ever.
const OUTCOME_LIMIT: Duration = Duration::from_secs(45);

/// A new Contact is told at once, but no more often: behind a NAT that gives every REGISTER another port it would never
/// end.
const CONTACT_PAUSE: Duration = Duration::from_secs(60);

/// How many 302 are followed in a row; more is a loop.
const MAX_REDIRECTS: u32 = 3;

/// Longest expiry a 423 may ask for.
const MIN_EXPIRES_LIMIT: u32 = 7 * 86_400;

/// Answers a challenge: gets the 401 or 407 and the REGISTER it answers, gives header name and value
/// (`Authorization: Digest …`) for that same REGISTER, or `None` when it cannot.
pub type Answer = Box<dyn FnMut(&Response, &Request) -> Option<(String, String)> + Send + Sync>;

/// What a registration needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationConfig {
    /// Request-URI: `sip:<server id>@<domain or host:port>`.
    pub server_uri: String,
    /// From and To: `sip:<own id>@<domain or host:port>`.
    pub local_uri: String,
    /// Contact: `sip:<own id>@<host:port>`.
    pub contact_uri: String,
    /// Asked for; the standard wants at least 3,600 s.
    pub expires: Duration,
    /// Wait after a rejection; at least 60 s are kept.
    pub retry: Duration,
    /// Between keepalives; at least 1 s is kept.
    pub keepalive_interval: Duration,
    /// So many keepalives in a row without response: the server is offline. At least 1.
    pub keepalive_max_missed: u32,
    /// `X-GB-Ver` (`3.0`); `None` sends no such header. [GB/T28181-2022 annex I]
    pub version: Option<String>,
}

/// Which of our requests an answer or a failure belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The last `Send`.
    Register,
    /// A `SendKeepalive`.
    Keepalive {
        /// Its number.
        sn: u32,
    },
}

/// Where the registration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not started.
    Idle,
    /// A REGISTER is under way, and we are not registered.
    Registering,
    /// Registered (a refresh may be under way).
    Registered,
    /// Not registered; the next REGISTER goes out at `until`.
    Waiting {
        /// When.
        until: Instant,
        /// What went wrong.
        why: Reason,
    },
    /// A REGISTER with Expires 0 is under way.
    Unregistering,
    /// Stopped; `start` begins anew.
    Stopped,
}

/// Why the state changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// `start` was called.
    Started,
    /// The server said 200.
    Accepted,
    /// The server said no, with this status (200: it granted no time).
    Rejected(u16),
    /// A second challenge in a row: user name or password is wrong.
    BadCredentials,
    /// A challenge nobody here can answer: unknown scheme or algorithm, no password.
    NoCredentials,
    /// No answer in time.
    NoAnswer,
    /// It could not be sent.
    NoTransport,
    /// The connection has ended.
    ConnectionLost,
    /// A keepalive was answered with this status: the server does not know us any more.
    KeepaliveRejected(u16),
    /// So many keepalives went without response.
    KeepaliveMissed(u32),
    /// The server sent us to another.
    Redirected,
    /// The wait is over.
    RetryDue,
    /// `stop` was called, or what followed from it is done.
    Stopped,
}

/// The server a 302 named. [GB/T28181-2022 9.1.2.3]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectTarget {
    /// The Contact's URI: the new Request-URI.
    pub uri: String,
    /// The server's id.
    pub user: String,
    /// Its host, without brackets.
    pub host: String,
    /// Its port; `None`: 5060.
    pub port: Option<u16>,
    /// The URI's `transport`, as written.
    pub transport: Option<String>,
}

/// What the caller does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistrationOutput {
    /// Send this REGISTER to the current server. Tell the outcome by `response` (final) or `failed`, once.
    Send(Request),
    /// Send a keepalive MESSAGE. Tell the outcome likewise.
    SendKeepalive {
        /// Its SN, rising from 1.
        sn: u32,
    },
    /// The state changed.
    StateChanged {
        /// From.
        from: State,
        /// To.
        to: State,
        /// Why.
        reason: Reason,
    },
    /// The 200 carried the server's time. [GB/T28181-2022 9.10]
    Date {
        /// The header's text.
        text: String,
        /// When the REGISTER it answers went out.
        sent: Instant,
        /// When it came.
        received: Instant,
    },
    /// The server sees us at another address than before. [RFC3581]
    Learned {
        /// The top Via's `received`.
        received: Option<IpAddr>,
        /// The top Via's `rport`.
        rport: Option<u16>,
    },
    /// From here all requests go to this server; `None`: to the configured one again.
    Redirected {
        /// Where to.
        to: Option<RedirectTarget>,
    },
    /// The end after `stop`.
    Unregistered {
        /// The server confirmed it.
        confirmed: bool,
    },
}

/// The REGISTER under way.
#[derive(Debug)]
struct InFlight {
    request: Request,
    cseq: u32,
    sent: Instant,
    attempt: Attempt,
}

/// One try, over all its challenges.
#[derive(Debug, Clone, Copy, Default)]
struct Attempt {
    unregister: bool,
    challenged: bool,
    renewed: bool,
    interval_raised: bool,
}

/// The machine. See the file's head.
pub struct Registration {
    cfg: RegistrationConfig,
    answer: Answer,
    rng: StdRng,
    state: State,
    call_id: String,
    from_tag: String,
    cseq: u32,
    /// What Expires asks for, seconds.
    asked: u32,
    target: Option<RedirectTarget>,
    redirects: u32,
    in_flight: Option<InFlight>,
    refresh_at: Option<Instant>,
    keepalive_at: Option<Instant>,
    sn: u32,
    /// The last keepalive, while it has no outcome.
    awaited: Option<u32>,
    missed: u32,
    /// A lost keepalive made us register anew, and no keepalive has been answered since: the next loss has to wait.
    recovering: bool,
    silences: u32,
    forbidden: u32,
    learned: (Option<IpAddr>, Option<u16>),
    /// When a refresh last told a new Contact, or will.
    contact_told: Option<Instant>,
    outputs: VecDeque<RegistrationOutput>,
}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registration").field("state", &self.state).field("target", &self.target).finish_non_exhaustive()
    }
}

impl Registration {
    /// A registration in state `Idle`. `rng` makes Call-IDs, tags and the random parts of waits.
    pub fn new(cfg: RegistrationConfig, answer: Answer, rng: StdRng) -> Self {
        Self {
            asked: u32::try_from(cfg.expires.as_secs()).unwrap_or(u32::MAX).max(1),
            cfg,
            answer,
            rng,
            state: State::Idle,
            call_id: String::new(),
            from_tag: String::new(),
            cseq: 0,
            target: None,
            redirects: 0,
            in_flight: None,
            refresh_at: None,
            keepalive_at: None,
            sn: 0,
            awaited: None,
            missed: 0,
            recovering: false,
            silences: 0,
            forbidden: 0,
            learned: (None, None),
            contact_told: None,
            outputs: VecDeque::new(),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// The server in use when it is not the configured one.
    pub fn redirect_target(&self) -> Option<&RedirectTarget> {
        self.target.as_ref()
    }

    /// Keepalives in a row without response.
    pub fn keepalives_missed(&self) -> u32 {
        self.missed
    }

    /// Next thing for the caller to do; drain after every call.
    pub fn poll_output(&mut self) -> Option<RegistrationOutput> {
        self.outputs.pop_front()
    }

    /// When to call `timeout` at the latest.
    pub fn next_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until, .. } => Some(until),
            State::Registered => [self.refresh_at, self.keepalive_at, self.outcome_due()].into_iter().flatten().min(),
            State::Registering | State::Unregistering => self.outcome_due(),
            State::Idle | State::Stopped => None,
        }
    }

    fn outcome_due(&self) -> Option<Instant> {
        self.in_flight.as_ref().map(|sent| sent.sent + OUTCOME_LIMIT)
    }

    /// Begins to register; without effect unless `Idle` or `Stopped`.
    pub fn start(&mut self, now: Instant) {
        if matches!(self.state, State::Idle | State::Stopped) {
            self.fall_back();
            self.new_series();
            self.recovering = false;
            (self.silences, self.forbidden) = (0, 0);
            self.go(State::Registering, Reason::Started);
            self.send(now, Attempt::default(), None);
        }
    }

    /// Unregisters, if there may be something to unregister, and stops. A REGISTER under way is overtaken: the server
    /// tells them apart by CSeq. [RFC3261 10.3]
    pub fn stop(&mut self, now: Instant) {
        match self.state {
            State::Registering | State::Registered => {
                self.go(State::Unregistering, Reason::Stopped);
                self.rest();
                self.send(now, Attempt { unregister: true, ..Attempt::default() }, None);
            }
            State::Idle | State::Waiting { .. } => self.stopped(false),
            State::Unregistering | State::Stopped => {}
        }
    }

    /// Another Contact from now on (what `Learned` taught); when registered, the server is told at once, or a minute
    /// after it was last told one.
    pub fn set_contact(&mut self, now: Instant, contact_uri: String) {
        if self.cfg.contact_uri != contact_uri {
            self.cfg.contact_uri = contact_uri;
            if self.state == State::Registered && self.in_flight.is_none() {
                self.plan_contact(now);
                if self.refresh_at.is_some_and(|at| at <= now) {
                    self.refresh(now);
                }
            }
        }
    }

    fn plan_contact(&mut self, now: Instant) {
        let at = match self.contact_told {
            Some(due) if due > now => due,
            told => told.map_or(now, |told| now.max(told + CONTACT_PAUSE)),
        };
        self.contact_told = Some(at);
        self.refresh_at = Some(self.refresh_at.map_or(at, |refresh| refresh.min(at)));
    }

    /// Other keepalive times from now on (the server may configure them). [GB/T28181-2022 9.6]
    pub fn set_keepalive(&mut self, now: Instant, interval: Duration, max_missed: u32) {
        self.cfg.keepalive_interval = interval;
        self.cfg.keepalive_max_missed = max_missed;
        if self.keepalive_at.is_some() {
            self.keepalive_at = Some(now + self.keepalive_interval());
        }
    }

    /// A keepalive at once, because a fault was found or has gone; without effect unless registered. It comes on top of
    /// the regular ones: it does not put off the next, and one that is still unanswered does not count as missed for it.
    /// [GB/T28181-2022 9.6.1]
    pub fn keepalive_now(&mut self) {
        if self.state == State::Registered {
            let sn = self.next_keepalive();
            self.awaited.get_or_insert(sn);
        }
    }

    /// `next_timeout` has come.
    pub fn timeout(&mut self, now: Instant) {
        if let State::Waiting { until, .. } = self.state
            && until <= now
        {
            self.go(State::Registering, Reason::RetryDue);
            self.send(now, Attempt::default(), None);
        }
        if self.keepalive_at.is_some_and(|at| at <= now) {
            self.keepalive(now);
        }
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh(now);
        }
        if self.outcome_due().is_some_and(|at| at <= now) {
            self.failed(now, Kind::Register, ClientFailure::Timeout);
        }
    }

    /// A response to one of our requests. Provisional ones may come too.
    pub fn response(&mut self, now: Instant, kind: Kind, response: &Response) {
        self.learn(response);
        match kind {
            _ if response.status < 200 => {}
            Kind::Register => {
                let cseq = fields::cseq(&response.headers).map(|(seq, _)| seq);
                // Anything else answers a REGISTER that was overtaken.
                if let Some(sent) = self.in_flight.take_if(|sent| Some(sent.cseq) == cseq) {
                    self.on_final(now, response, sent);
                }
            }
            Kind::Keepalive { sn } => self.on_keepalive_answer(now, sn, response.status),
        }
    }

    /// One of our requests has failed without a final response (or could not be handed to the endpoint).
    pub fn failed(&mut self, now: Instant, kind: Kind, reason: ClientFailure) {
        match kind {
            Kind::Register => {
                let Some(sent) = self.in_flight.take() else { return };
                let reason = match reason {
                    ClientFailure::Timeout => Reason::NoAnswer,
                    ClientFailure::Transport => Reason::NoTransport,
                };
                if sent.attempt.unregister {
                    return self.stopped(false);
                }
                self.fall_back();
                self.silence(now, reason);
            }
            Kind::Keepalive { sn } => self.keepalive_missed(now, sn),
        }
    }

    /// The connection the registration lives on has ended. [GB/T28181-2022 9.1.1 f]
    pub fn connection_lost(&mut self, now: Instant) {
        match self.state {
            State::Registering | State::Registered => self.silence(now, Reason::ConnectionLost),
            State::Unregistering => self.stopped(false),
            State::Idle | State::Waiting { .. } | State::Stopped => {}
        }
    }

    // ---- REGISTER ----

    fn on_final(&mut self, now: Instant, response: &Response, sent: InFlight) {
        match response.status {
            401 | 407 => self.challenged(now, response, sent),
            200..300 if sent.attempt.unregister => self.stopped(true),
            _ if sent.attempt.unregister => self.stopped(false),
            200..300 => self.accepted(now, response, &sent),
            300..=399 => self.redirected(now, response),
            423 => self.too_brief(now, response, sent.attempt),
            status => self.rejected(now, Reason::Rejected(status)),
        }
    }

    fn accepted(&mut self, now: Instant, response: &Response, sent: &InFlight) {
        let granted = self.granted(&response.headers);
        if granted == 0 {
            return self.rejected(now, Reason::Rejected(response.status));
        }
        if let Some(text) = response.headers.get("Date") {
            let text = text.to_owned();
            self.outputs.push_back(RegistrationOutput::Date { text, sent: sent.sent, received: now });
        }
        (self.silences, self.forbidden, self.redirects) = (0, 0, 0);
        self.refresh_at = Some(now + refresh_after(granted));
        if self.state != State::Registered {
            self.missed = 0;
            self.awaited = None;
            self.keepalive_at = Some(now + self.keepalive_interval());
            self.go(State::Registered, Reason::Accepted);
        }
        if sent.request.headers.get("Contact") != Some(self.contact().as_str()) {
            self.plan_contact(now);
        }
    }

    /// Seconds granted: our own Contact's `expires`, else the Expires header, else what was asked for.
    /// [RFC3261 10.2.4]
    fn granted(&self, headers: &Headers) -> u32 {
        let own = headers
            .get_all("Contact")
            .flat_map(|value| fields::split_outside(value, b','))
            .find(|contact| fields::uri_of(contact) == self.cfg.contact_uri);
        own.and_then(|contact| fields::param(contact, "expires"))
            .and_then(fields::seconds)
            .or_else(|| headers.get("Expires").and_then(fields::seconds))
            .unwrap_or(self.asked)
    }

    /// The first challenge of a try is answered, and one more that only says the nonce was stale. Another one means
    /// that the credentials are wrong. [RFC3261 22.1]
    fn challenged(&mut self, now: Instant, response: &Response, sent: InFlight) {
        let mut attempt = sent.attempt;
        let refused = if !attempt.challenged {
            attempt.challenged = true;
            false
        } else {
            !is_stale(&response.headers) || std::mem::replace(&mut attempt.renewed, true)
        };
        let answer = if refused { None } else { (self.answer)(response, &sent.request) };
        match answer {
            Some(authorization) => self.send(now, attempt, Some(authorization)),
            None if attempt.unregister => self.stopped(false),
            None => self.rejected(now, if refused { Reason::BadCredentials } else { Reason::NoCredentials }),
        }
    }

    fn redirected(&mut self, now: Instant, response: &Response) {
        let target = redirect_target(&response.headers).filter(|_| self.redirects < MAX_REDIRECTS);
        let Some(target) = target else {
            return self.rejected(now, Reason::Rejected(response.status));
        };
        self.redirects += 1;
        self.new_series();
        self.target = Some(target.clone());
        self.outputs.push_back(RegistrationOutput::Redirected { to: Some(target) });
        self.rest();
        if self.state != State::Registering {
            self.go(State::Registering, Reason::Redirected);
        }
        self.send(now, Attempt::default(), None);
    }

    /// [RFC3261 10.2.8]
    fn too_brief(&mut self, now: Instant, response: &Response, attempt: Attempt) {
        let least = response.headers.get("Min-Expires").and_then(fields::seconds).unwrap_or(0);
        if attempt.interval_raised || least <= self.asked || least > MIN_EXPIRES_LIMIT {
            return self.rejected(now, Reason::Rejected(response.status));
        }
        self.asked = least;
        self.send(now, Attempt { interval_raised: true, ..Attempt::default() }, None);
    }

    /// The server said no.
    fn rejected(&mut self, now: Instant, why: Reason) {
        self.silences = 0;
        self.forbidden = if why == Reason::Rejected(403) { self.forbidden.saturating_add(1) } else { 0 };
        let mut wait = self.cfg.retry.max(RETRY_MIN);
        if self.forbidden >= FORBIDDEN_LIMIT {
            wait = wait.max(RETRY_FORBIDDEN);
        }
        self.fall_back();
        let random = Duration::from_millis(self.rng.random_range(0..=RETRY_RANDOM_MS));
        self.wait(now, wait + random, why);
    }

    /// The server said nothing.
    fn silence(&mut self, now: Instant, why: Reason) {
        self.silences = self.silences.saturating_add(1);
        let seconds = 1u64.checked_shl(self.silences).unwrap_or(u64::MAX).clamp(2, SILENCE_MAX_SECONDS);
        let wait = Duration::from_millis(seconds * self.rng.random_range(800..=1200));
        self.wait(now, wait, why);
    }

    fn wait(&mut self, now: Instant, wait: Duration, why: Reason) {
        self.rest();
        self.in_flight = None;
        self.redirects = 0;
        self.go(State::Waiting { until: now + wait, why }, why);
    }

    /// A server we were sent to has rejected us or is offline: back to the one that sent us. [GB/T28181-2022 9.1.2.3]
    fn fall_back(&mut self) {
        if self.target.is_some() {
            self.new_series();
            self.outputs.push_back(RegistrationOutput::Redirected { to: None });
        }
    }

    fn refresh(&mut self, now: Instant) {
        self.refresh_at = None;
        self.send(now, Attempt::default(), None);
    }

    /// A registration series: one Call-ID, rising CSeq, one server.
    fn new_series(&mut self) {
        self.call_id = format!("{:032x}", self.rng.random::<u128>());
        self.from_tag = format!("{:016x}", self.rng.random::<u64>());
        self.cseq = 0;
        self.target = None;
    }

    fn contact(&self) -> String {
        format!("<{}>", self.cfg.contact_uri)
    }

    fn send(&mut self, now: Instant, attempt: Attempt, authorization: Option<(String, String)>) {
        self.cseq = self.cseq.saturating_add(1);
        let mut headers = Headers::new();
        headers.push("From", format!("<{}>;tag={}", self.cfg.local_uri, self.from_tag));
        headers.push("To", format!("<{}>", self.cfg.local_uri));
        headers.push("Call-ID", self.call_id.as_str());
        headers.push("CSeq", format!("{} REGISTER", self.cseq));
        headers.push("Contact", self.contact());
        headers.push("Expires", if attempt.unregister { "0".to_owned() } else { self.asked.to_string() });
        if let Some(version) = &self.cfg.version {
            headers.push("X-GB-Ver", version.as_str());
        }
        if let Some((name, value)) = authorization {
            headers.push(name, value);
        }
        let uri = self.target.as_ref().map_or(&self.cfg.server_uri, |target| &target.uri).clone();
        let request = Request { method: "REGISTER".into(), uri, headers, body: Bytes::new() };
        self.in_flight = Some(InFlight { request: request.clone(), cseq: self.cseq, sent: now, attempt });
        self.outputs.push_back(RegistrationOutput::Send(request));
    }

    // ---- keepalive ----

    fn keepalive_interval(&self) -> Duration {
        self.cfg.keepalive_interval.max(Duration::from_secs(1))
    }

    fn keepalive(&mut self, now: Instant) {
        if let Some(sn) = self.awaited {
            self.keepalive_missed(now, sn);
        }
        if self.state == State::Registered {
            self.awaited = Some(self.next_keepalive());
            self.keepalive_at = Some(now + self.keepalive_interval());
        }
    }

    fn next_keepalive(&mut self) -> u32 {
        self.sn = self.sn.wrapping_add(1).max(1);
        self.outputs.push_back(RegistrationOutput::SendKeepalive { sn: self.sn });
        self.sn
    }

    fn on_keepalive_answer(&mut self, now: Instant, sn: u32, status: u16) {
        match status {
            // The server does not know us.
            401 | 403 | 404 | 481 => {
                // A late answer to an earlier keepalive may be about an earlier registration.
                if self.awaited == Some(sn) {
                    self.keepalive_lost(now, Reason::KeepaliveRejected(status));
                }
            }
            // Somebody on the way says that the server is not there.
            408 | 480 | 500.. => self.keepalive_missed(now, sn),
            _ => {
                self.missed = 0;
                self.awaited = self.awaited.filter(|awaited| *awaited != sn);
                self.recovering &= status >= 300;
            }
        }
    }

    /// Counts each keepalive once: at its failure, or when the next one is due.
    fn keepalive_missed(&mut self, now: Instant, sn: u32) {
        if self.awaited != Some(sn) {
            return;
        }
        self.awaited = None;
        self.missed = self.missed.saturating_add(1);
        if self.missed >= self.cfg.keepalive_max_missed.max(1) {
            self.keepalive_lost(now, Reason::KeepaliveMissed(self.missed));
        }
    }

    /// One REGISTER at once; if that did not help the last time, only after the wait of a rejection.
    fn keepalive_lost(&mut self, now: Instant, reason: Reason) {
        if self.state != State::Registered {
            return;
        }
        if self.recovering {
            return self.rejected(now, reason);
        }
        self.recovering = true;
        self.rest();
        self.go(State::Registering, reason);
        if matches!(reason, Reason::KeepaliveMissed(_)) && self.target.is_some() {
            self.in_flight = None;
            self.fall_back();
        }
        if self.in_flight.is_none() {
            self.send(now, Attempt::default(), None);
        }
    }

    // ---- the rest ----

    /// No refresh and no keepalive any more.
    fn rest(&mut self) {
        (self.refresh_at, self.keepalive_at, self.awaited) = (None, None, None);
    }

    fn stopped(&mut self, confirmed: bool) {
        self.rest();
        self.in_flight = None;
        self.outputs.push_back(RegistrationOutput::Unregistered { confirmed });
        self.go(State::Stopped, Reason::Stopped);
    }

    fn go(&mut self, to: State, reason: Reason) {
        let from = std::mem::replace(&mut self.state, to);
        self.outputs.push_back(RegistrationOutput::StateChanged { from, to, reason });
    }

    fn learn(&mut self, response: &Response) {
        let Some(via) = fields::top_via(&response.headers) else {
            return;
        };
        let seen = (via.received(), via.rport());
        if seen != (None, None) && seen != self.learned {
            self.learned = seen;
            self.outputs.push_back(RegistrationOutput::Learned { received: seen.0, rport: seen.1 });
        }
    }
}

/// When to refresh what was granted for `expires` seconds: 60 s before its end or at 0.8 of it, whichever is sooner,
/// but not in its first half.
fn refresh_after(expires: u32) -> Duration {
    let expires = Duration::from_secs(expires.into());
    let early = expires.saturating_sub(Duration::from_secs(60)).min(expires * 4 / 5);
    early.max(expires / 2)
}

/// The server a 3xx names.
fn redirect_target(headers: &Headers) -> Option<RedirectTarget> {
    let contact = fields::split_outside(headers.get("Contact")?, b',').next()?;
    // It becomes our Request-URI: only what is one, and without the headers it may carry. [RFC3261 19.1.1]
    let uri = SipUri { headers: None, ..SipUri::parse(fields::uri_of(contact)).ok()? }.to_string();
    let uri = uri.as_str();
    let (user, host_port) = fields::user_and_host(uri)?;
    Some(RedirectTarget {
        uri: uri.to_owned(),
        user: user.to_owned(),
        host: fields::host_of(host_port).to_owned(),
        port: fields::port_of(host_port),
        transport: fields::uri_param(uri, "transport").map(str::to_owned),
    })
}

/// True when a challenge says that only the nonce was too old. [RFC2617 3.2.1]
fn is_stale(headers: &Headers) -> bool {
    ["WWW-Authenticate", "Proxy-Authenticate"].into_iter().flat_map(|name| headers.get_all(name)).any(|challenge| {
        // The first parameter stands behind the scheme.
        let params = challenge.trim_start().split_once(char::is_whitespace).map_or("", |(_, params)| params);
        fields::split_outside(params, b',').any(|param| {
            param.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("stale") && value.trim().trim_matches('"').eq_ignore_ascii_case("true")
            })
        })
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a base for virtual time")]
mod tests {
    use super::RegistrationOutput as Out;
    use super::*;
    use rand::SeedableRng;

    const SERVER: &str = "sip:34010000002000000001@3401000000";

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn machine_with(seed: u64, answer: Answer) -> Registration {
        let cfg = RegistrationConfig {
            server_uri: SERVER.into(),
            local_uri: "sip:34020000002000000001@3402000000".into(),
            contact_uri: "sip:34020000002000000001@198.51.100.7:5060".into(),
            expires: seconds(3600),
            retry: seconds(60),
            keepalive_interval: seconds(60),
            keepalive_max_missed: 3,
            version: Some("3.0".into()),
        };
        Registration::new(cfg, answer, StdRng::seed_from_u64(seed))
    }

    fn machine() -> Registration {
        machine_with(1, Box::new(|_, request| Some(("Authorization".into(), format!("Digest for {}", request.uri)))))
    }

    /// A server's answer to the REGISTER in flight.
    fn answer(m: &Registration, status: u16, extra: &[(&str, &str)]) -> Response {
        let mut headers = Headers::new();
        let cseq = m.in_flight.as_ref().map_or(0, |sent| sent.cseq);
        headers.push("CSeq", format!("{cseq} REGISTER"));
        extra.iter().for_each(|(name, value)| headers.push(*name, *value));
        Response { status, reason: String::new(), headers, body: Bytes::new() }
    }

    fn reply(m: &mut Registration, now: Instant, status: u16, extra: &[(&str, &str)]) {
        let response = answer(m, status, extra);
        m.response(now, Kind::Register, &response);
    }

    fn keepalive_reply(m: &mut Registration, now: Instant, sn: u32, status: u16) {
        let response = answer(m, status, &[]);
        m.response(now, Kind::Keepalive { sn }, &response);
    }

    fn drain(m: &mut Registration) -> Vec<Out> {
        std::iter::from_fn(|| m.poll_output()).collect()
    }

    /// The one REGISTER among what is put out.
    fn sent(m: &mut Registration) -> Request {
        let mut sent = drain(m).into_iter().filter_map(|out| if let Out::Send(r) = out { Some(r) } else { None });
        let request = sent.next().expect("a REGISTER");
        assert_eq!(sent.next(), None, "only one REGISTER");
        request
    }

    fn nothing_sent(m: &mut Registration) {
        assert!(!drain(m).iter().any(|out| matches!(out, Out::Send(_) | Out::SendKeepalive { .. })));
    }

    fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
        request.headers.get(name)
    }

    fn registered() -> (Instant, Registration) {
        let now = Instant::now();
        let mut m = machine();
        m.start(now);
        reply(&mut m, now, 200, &[("Expires", "3600")]);
        assert_eq!(m.state(), State::Registered);
        drain(&mut m);
        (now, m)
    }

    /// Seconds from `now` to the end of the wait, and its reason; the wait is let pass and the REGISTER taken.
    fn wait_over(m: &mut Registration, now: Instant) -> (f64, Reason, Request, Instant) {
        let State::Waiting { until, why } = m.state() else { panic!("not waiting: {:?}", m.state()) };
        nothing_sent(m);
        m.timeout(until - Duration::from_millis(1));
        nothing_sent(m);
        assert_eq!(m.next_timeout(), Some(until));
        m.timeout(until);
        assert_eq!(m.state(), State::Registering);
        ((until - now).as_secs_f64(), why, sent(m), until)
    }

    #[test]
    fn registers_with_a_challenge_and_reports_the_servers_time() {
        let now = Instant::now();
        let mut m = machine();
        m.start(now);
        let first = sent(&mut m);
        assert_eq!((first.method.as_str(), first.uri.as_str()), ("REGISTER", SERVER));
        let to = header(&first, "To").unwrap();
        assert!(header(&first, "From").unwrap().starts_with(&format!("{to};tag=")));
        assert_eq!(header(&first, "Contact"), Some("<sip:34020000002000000001@198.51.100.7:5060>"));
        assert_eq!((header(&first, "Expires"), header(&first, "X-GB-Ver")), (Some("3600"), Some("3.0")));
        assert_eq!((header(&first, "CSeq"), header(&first, "Authorization")), (Some("1 REGISTER"), None));

        reply(&mut m, now, 100, &[]);
        nothing_sent(&mut m);
        let again = now + seconds(1);
        reply(&mut m, again, 401, &[("WWW-Authenticate", "Digest realm=\"3401000000\",nonce=\"n\"")]);
        let second = sent(&mut m);
        assert_eq!(header(&second, "Authorization"), Some(format!("Digest for {SERVER}").as_str()));
        assert_eq!(
            (header(&second, "CSeq"), header(&second, "Call-ID")),
            (Some("2 REGISTER"), header(&first, "Call-ID"))
        );
        assert_eq!(header(&second, "From"), header(&first, "From"));

        let end = now + seconds(2);
        reply(&mut m, end, 200, &[("Expires", "3600"), ("Date", "2026-11-23T21:15:04.128")]);
        let text = "2026-11-23T21:15:04.128".to_owned();
        let change = Out::StateChanged { from: State::Registering, to: State::Registered, reason: Reason::Accepted };
        assert_eq!(drain(&mut m), [Out::Date { text, sent: again, received: end }, change]);
    }

    #[test]
    fn start_and_stop_may_be_called_twice() {
        let now = Instant::now();
        let mut m = machine();
        m.timeout(now);
        m.connection_lost(now);
        m.keepalive_now();
        assert_eq!((drain(&mut m), m.next_timeout()), (vec![], None));
        m.start(now);
        m.start(now);
        sent(&mut m);
        m.stop(now);
        m.stop(now);
        assert_eq!(header(&sent(&mut m), "Expires"), Some("0"));
    }

    #[test]
    fn refreshes_in_one_series_and_is_challenged_anew() {
        let (now, mut m) = registered();
        let at = now + seconds(2880);
        let mut keepalives = 0;
        while let Some(next) = m.next_timeout().filter(|next| *next < at) {
            m.timeout(next);
            for out in drain(&mut m) {
                let Out::SendKeepalive { sn } = out else { panic!("{out:?}") };
                keepalive_reply(&mut m, next, sn, 200);
                keepalives += 1;
            }
        }
        assert_eq!(keepalives, 47);
        m.timeout(at);
        let outs = drain(&mut m);
        let [Out::SendKeepalive { sn: 48 }, Out::Send(refresh)] = &outs[..] else { panic!("{outs:?}") };
        assert_eq!((header(refresh, "CSeq"), header(refresh, "Expires")), (Some("2 REGISTER"), Some("3600")));
        assert_eq!(m.state(), State::Registered);
        reply(&mut m, at, 401, &[]);
        assert!(header(&sent(&mut m), "Authorization").is_some());
        reply(&mut m, at, 200, &[("Expires", "100")]);
        assert_eq!(drain(&mut m), [], "still registered: no change");
        assert_eq!(m.refresh_at, Some(at + seconds(50)));
    }

    #[test]
    fn the_refresh_time_follows_what_was_granted() {
        for (granted, expect_ms) in
            [(86_400, 69_120_000), (3600, 2_880_000), (300, 240_000), (200, 140_000), (100, 50_000), (1, 500)]
        {
            assert_eq!(refresh_after(granted).as_millis(), expect_ms, "{granted}");
        }
        assert_eq!(refresh_after(u32::MAX).as_secs(), u64::from(u32::MAX) * 4 / 5);
        let m = machine();
        let granted = |lines: &[(&str, &str)]| m.granted(&answer(&m, 200, lines).headers);
        let own = "<sip:34020000002000000001@198.51.100.7:5060>;expires=120";
        assert_eq!(granted(&[]), 3600);
        assert_eq!(granted(&[("Expires", "600")]), 600);
        assert_eq!(granted(&[("Expires", "600"), ("Contact", own)]), 120);
        assert_eq!(granted(&[("Contact", &format!("<sip:old@x>;expires=9, {own}"))]), 120);
        assert_eq!(granted(&[("Contact", "<sip:old@x>;expires=9"), ("Expires", "x")]), 3600);
    }

    #[test]
    fn a_second_challenge_is_a_rejection_unless_the_nonce_was_stale() {
        let stale = [("WWW-Authenticate", "Digest realm=\"a, stale=no\", STALE=\"TRUE\", nonce=\"m\"")];
        let fresh = [("WWW-Authenticate", "Digest realm=\"stale=true\", nonce=\"m\"")];
        let now = Instant::now();
        for (answers, end) in [
            (vec![&fresh, &fresh], Some(Reason::BadCredentials)),
            (vec![&fresh, &stale, &fresh], Some(Reason::BadCredentials)),
            (vec![&fresh, &stale, &stale], Some(Reason::BadCredentials)),
            (vec![&stale, &stale], None),
        ] {
            let mut m = machine();
            m.start(now);
            answers.iter().for_each(|challenge| reply(&mut m, now, 401, *challenge));
            match (m.state(), end) {
                (State::Waiting { why, .. }, Some(expect)) => assert_eq!(why, expect),
                (State::Registering, None) => {}
                other => panic!("{other:?}"),
            }
        }
        let mut m = machine_with(1, Box::new(|_, _| None));
        m.start(now);
        drain(&mut m);
        reply(&mut m, now, 407, &[]);
        assert_eq!(wait_over(&mut m, now).1, Reason::NoCredentials);
    }

    #[test]
    fn a_rejection_waits_60_to_70_seconds_and_403_at_last_10_minutes() {
        let mut now = Instant::now();
        let mut m = machine();
        m.start(now);
        let first = sent(&mut m);
        let mut waits = Vec::new();
        for (status, least) in
            [(404, 60.0), (403, 60.0), (403, 60.0), (403, 600.0), (403, 600.0), (500, 60.0), (403, 60.0)]
        {
            reply(&mut m, now, status, &[]);
            let (wait, why, request, until) = wait_over(&mut m, now);
            assert!((least..=least + 10.0).contains(&wait), "{status}: {wait}");
            assert_eq!(why, Reason::Rejected(status));
            assert_eq!(header(&request, "Call-ID"), header(&first, "Call-ID"));
            waits.push((wait - least).to_bits());
            now = until;
        }
        waits.dedup();
        assert_eq!(waits.len(), 7, "the waits are random");
    }

    #[test]
    fn silence_waits_longer_and_longer() {
        let mut now = Instant::now();
        let mut m = machine();
        m.start(now);
        drain(&mut m);
        for (i, about) in [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0].into_iter().enumerate() {
            let (reason, expect) = match i % 2 {
                0 => (ClientFailure::Timeout, Reason::NoAnswer),
                _ => (ClientFailure::Transport, Reason::NoTransport),
            };
            m.failed(now, Kind::Register, reason);
            let (wait, why, _, until) = wait_over(&mut m, now);
            assert!((about * 0.8..=about * 1.2).contains(&wait), "{about}: {wait}");
            assert_eq!(why, expect);
            now = until;
        }
        reply(&mut m, now, 200, &[]);
        m.connection_lost(now);
        let (wait, why, ..) = wait_over(&mut m, now);
        assert!((1.6..=2.4).contains(&wait), "a success begins anew: {wait}");
        assert_eq!(why, Reason::ConnectionLost);
    }

    #[test]
    fn the_state_follows_the_last_refresh() {
        let (now, mut m) = registered();
        m.timeout(now + seconds(2880));
        drain(&mut m);
        reply(&mut m, now + seconds(2880), 400, &[]);
        assert!(matches!(m.state(), State::Waiting { why: Reason::Rejected(400), .. }));
        let (now, mut m) = registered();
        reply(&mut m, now, 200, &[]);
        m.failed(now, Kind::Register, ClientFailure::Timeout);
        assert_eq!((m.state(), drain(&mut m)), (State::Registered, vec![]), "nothing was under way");
        m.timeout(now + seconds(2880));
        reply(&mut m, now + seconds(2880), 200, &[("Expires", "0")]);
        assert!(matches!(m.state(), State::Waiting { why: Reason::Rejected(200), .. }));
    }

    #[test]
    fn unregisters_with_a_challenge() {
        let (now, mut m) = registered();
        m.stop(now);
        let first = sent(&mut m);
        assert_eq!((header(&first, "Expires"), header(&first, "CSeq")), (Some("0"), Some("2 REGISTER")));
        reply(&mut m, now, 401, &[]);
        let second = sent(&mut m);
        assert_eq!((header(&second, "Expires"), header(&second, "Authorization").is_some()), (Some("0"), true));
        assert_eq!(m.state(), State::Unregistering);
        reply(&mut m, now, 200, &[("Expires", "0")]);
        assert!(drain(&mut m).contains(&Out::Unregistered { confirmed: true }));
        assert_eq!((m.state(), m.next_timeout()), (State::Stopped, None));
        m.start(now);
        let anew = sent(&mut m);
        assert_ne!(header(&anew, "Call-ID"), header(&first, "Call-ID"));
        assert_eq!(header(&anew, "CSeq"), Some("1 REGISTER"));
    }

    #[test]
    fn a_stop_ends_whatever_happens() {
        let ways: [fn(&mut Registration, Instant); 4] = [
            |m, now| m.failed(now, Kind::Register, ClientFailure::Timeout),
            |m, now| m.connection_lost(now),
            |m, now| reply(m, now, 403, &[]),
            |m, now| {
                reply(m, now, 401, &[]);
                reply(m, now, 401, &[]);
            },
        ];
        for way in ways {
            let (now, mut m) = registered();
            m.stop(now);
            way(&mut m, now);
            assert_eq!(m.state(), State::Stopped);
            assert!(drain(&mut m).contains(&Out::Unregistered { confirmed: false }));
        }
        let now = Instant::now();
        let mut m = machine();
        m.start(now);
        m.failed(now, Kind::Register, ClientFailure::Timeout);
        drain(&mut m);
        m.stop(now);
        nothing_sent(&mut m);
        assert_eq!(m.state(), State::Stopped);
    }

    #[test]
    fn a_stop_overtakes_the_register_under_way() {
        let now = Instant::now();
        let mut m = machine();
        m.start(now);
        let late = answer(&m, 200, &[]);
        m.stop(now);
        drain(&mut m);
        m.response(now, Kind::Register, &late);
        assert_eq!(m.state(), State::Unregistering, "the answer to the overtaken one says nothing");
        reply(&mut m, now, 200, &[]);
        assert_eq!(m.state(), State::Stopped);
    }

    #[test]
    fn keepalives_run_and_misses_count_once() {
        let (now, mut m) = registered();
        let mut at = now;
        for sn in 1..=2 {
            at = m.next_timeout().unwrap();
            assert_eq!(at, now + seconds(60) * sn);
            m.timeout(at);
            assert_eq!(drain(&mut m), [Out::SendKeepalive { sn }]);
            m.failed(at + seconds(32), Kind::Keepalive { sn }, ClientFailure::Timeout);
            m.failed(at + seconds(32), Kind::Keepalive { sn }, ClientFailure::Timeout);
            assert_eq!(m.keepalives_missed(), sn);
        }
        m.timeout(at + seconds(60));
        keepalive_reply(&mut m, at + seconds(60), 3, 200);
        assert_eq!((m.keepalives_missed(), m.state()), (0, State::Registered));
    }

    #[test]
    fn missed_keepalives_bring_one_register_at_once() {
        // The interval is shorter than the transaction: a keepalive without outcome counts when the next is due.
        let (now, mut m) = registered();
        m.set_keepalive(now, seconds(5), 3);
        for i in 1..=3 {
            m.timeout(now + seconds(5 * i));
            assert_eq!(drain(&mut m).len(), 1);
        }
        let lost = now + seconds(20);
        m.timeout(lost);
        let outs = drain(&mut m);
        let reason = Reason::KeepaliveMissed(3);
        assert_eq!(outs[0], Out::StateChanged { from: State::Registered, to: State::Registering, reason });
        assert!(matches!(&outs[1..], [Out::Send(r)] if header(r, "CSeq") == Some("2 REGISTER")));
        m.failed(lost + seconds(12), Kind::Keepalive { sn: 3 }, ClientFailure::Timeout);
        assert_eq!(drain(&mut m), []);
        m.failed(lost + seconds(32), Kind::Register, ClientFailure::Timeout);
        assert!((1.6..=2.4).contains(&wait_over(&mut m, lost + seconds(32)).0));
    }

    #[test]
    fn a_rejected_keepalive_registers_at_once_but_only_once() {
        for status in [401, 403, 404, 481] {
            let (now, mut m) = registered();
            m.timeout(now + seconds(60));
            drain(&mut m);
            keepalive_reply(&mut m, now + seconds(60), 1, status);
            assert_eq!(header(&sent(&mut m), "CSeq"), Some("2 REGISTER"));
            reply(&mut m, now + seconds(60), 200, &[]);
            m.timeout(now + seconds(120));
            drain(&mut m);
            keepalive_reply(&mut m, now + seconds(120), 2, status);
            let (wait, why, _, at) = wait_over(&mut m, now + seconds(120));
            assert!((60.0..=70.0).contains(&wait));
            assert_eq!(why, Reason::KeepaliveRejected(status));
            // An answered keepalive makes the next loss a first one again.
            reply(&mut m, at, 200, &[]);
            m.timeout(at + seconds(60));
            keepalive_reply(&mut m, at + seconds(60), 3, 200);
            m.timeout(at + seconds(120));
            drain(&mut m);
            keepalive_reply(&mut m, at + seconds(120), 4, status);
            sent(&mut m);
            reply(&mut m, at + seconds(120), 200, &[]);
            drain(&mut m);
            keepalive_reply(&mut m, at + seconds(120), 4, status);
            assert_eq!(drain(&mut m), [], "a late answer about the registration before");
        }
    }

    #[test]
    fn other_answers_to_keepalives() {
        let (now, mut m) = registered();
        for (i, (status, missed)) in [(503, 1), (408, 2), (400, 0), (600, 1), (200, 0)].into_iter().enumerate() {
            let at = now + seconds(60) * (i as u32 + 1);
            m.timeout(at);
            drain(&mut m);
            keepalive_reply(&mut m, at, i as u32 + 1, status);
            assert_eq!((m.keepalives_missed(), m.state()), (missed, State::Registered), "{status}");
        }
        m.keepalive_now();
        assert_eq!(drain(&mut m), [Out::SendKeepalive { sn: 6 }]);
        assert_eq!(m.next_timeout(), Some(now + seconds(360)), "the regular one is not put off");
    }

    #[test]
    fn keepalives_out_of_turn_do_not_make_others_missed() {
        let (now, mut m) = registered();
        m.timeout(now + seconds(60));
        for _ in 0..10 {
            m.keepalive_now();
        }
        assert_eq!((drain(&mut m).len(), m.keepalives_missed(), m.state()), (11, 0, State::Registered));
        m.failed(now + seconds(92), Kind::Keepalive { sn: 5 }, ClientFailure::Timeout);
        assert_eq!(m.keepalives_missed(), 0, "one loss is counted once");
        m.failed(now + seconds(92), Kind::Keepalive { sn: 1 }, ClientFailure::Timeout);
        assert_eq!(m.keepalives_missed(), 1);
        keepalive_reply(&mut m, now + seconds(93), 9, 200);
        assert_eq!(m.keepalives_missed(), 0);
    }

    #[test]
    fn a_port_that_changes_with_each_register_is_told_once_a_minute() {
        let (now, mut m) = registered();
        let mut sent_at = Vec::new();
        let mut at = now;
        for n in 0..400u32 {
            at = now + Duration::from_millis(500) * n;
            m.set_contact(at, format!("sip:34020000002000000001@198.51.100.8:{}", 40000 + n));
            if m.next_timeout().is_some_and(|due| due <= at) {
                m.timeout(at);
            }
            if drain(&mut m).iter().any(|out| matches!(out, Out::Send(_))) {
                sent_at.push((at - now).as_secs());
                reply(&mut m, at, 200, &[("Expires", "3600")]);
            }
        }
        assert_eq!(sent_at, [0, 60, 120, 180]);
        assert!(at > now);
    }

    #[test]
    fn a_lost_outcome_does_not_end_the_registering() {
        let now = Instant::now();
        let mut m = machine();
        m.start(now);
        drain(&mut m);
        let due = m.next_timeout().expect("a REGISTER under way has a limit");
        m.timeout(due);
        let (_, why, ..) = wait_over(&mut m, due);
        assert_eq!(why, Reason::NoAnswer);
    }

    #[test]
    fn follows_a_redirect_and_falls_back() {
        let moved = [("Contact", "<sip:34010000002000000009@[2001:db8::9]:5061;transport=tcp>"), ("Expires", "3600")];
        let target = RedirectTarget {
            uri: "sip:34010000002000000009@[2001:db8::9]:5061;transport=tcp".into(),
            user: "34010000002000000009".into(),
            host: "2001:db8::9".into(),
            port: Some(5061),
            transport: Some("tcp".into()),
        };
        type Way = fn(&mut Registration, Instant);
        let rejected: Way = |m, now| reply(m, now, 403, &[]);
        let silent: Way = |m, now| m.failed(now, Kind::Register, ClientFailure::Timeout);
        for (way, least) in [(rejected, 60.0), (silent, 1.6)] {
            let now = Instant::now();
            let mut m = machine();
            m.start(now);
            let first = sent(&mut m);
            reply(&mut m, now, 401, &[]);
            drain(&mut m);
            reply(&mut m, now, 302, &moved);
            let outs = drain(&mut m);
            let [Out::Redirected { to: Some(to) }, Out::Send(second)] = &outs[..] else { panic!("{outs:?}") };
            assert_eq!((to, &second.uri), (&target, &target.uri));
            assert_ne!(header(second, "Call-ID"), header(&first, "Call-ID"));
            assert_eq!((header(second, "CSeq"), header(second, "To")), (Some("1 REGISTER"), header(&first, "To")));
            reply(&mut m, now, 401, &[]);
            assert!(header(&sent(&mut m), "Authorization").is_some_and(|value| value.ends_with(&target.uri)));
            way(&mut m, now);
            assert_eq!(m.poll_output(), Some(Out::Redirected { to: None }));
            let (wait, _, third, _) = wait_over(&mut m, now);
            assert!(wait >= least, "no loop without a wait");
            assert_eq!(third.uri, SERVER);
            assert_eq!(m.redirect_target(), None);
        }
    }

    #[test]
    fn a_redirected_client_goes_back_when_keepalives_are_missed() {
        let now = Instant::now();
        let mut m = machine();
        m.start(now);
        reply(&mut m, now, 302, &[("Contact", "<sip:9@192.0.2.9>")]);
        reply(&mut m, now, 200, &[]);
        assert_eq!((m.state(), m.redirect_target().map(|t| t.port)), (State::Registered, Some(None)));
        // The connection alone says nothing about the server.
        drain(&mut m);
        m.connection_lost(now);
        assert_eq!(wait_over(&mut m, now).2.uri, "sip:9@192.0.2.9");
        reply(&mut m, now, 200, &[]);
        drain(&mut m);
        for sn in 1..=3 {
            let at = now + seconds(60) * sn;
            m.timeout(at);
            m.failed(at, Kind::Keepalive { sn }, ClientFailure::Transport);
        }
        assert_eq!(sent(&mut m).uri, SERVER);
    }

    #[test]
    fn a_restart_begins_at_the_configured_server() {
        let now = Instant::now();
        let mut m = machine();
        m.start(now);
        reply(&mut m, now, 302, &[("Contact", "<sip:9@192.0.2.9>")]);
        reply(&mut m, now, 200, &[]);
        drain(&mut m);
        m.stop(now);
        assert_eq!(sent(&mut m).uri, "sip:9@192.0.2.9", "unregisters where it is registered");
        reply(&mut m, now, 200, &[]);
        drain(&mut m);
        m.start(now);
        assert_eq!(m.poll_output(), Some(Out::Redirected { to: None }));
        assert_eq!(sent(&mut m).uri, SERVER);
    }

    #[test]
    fn redirects_are_bounded_and_need_a_contact() {
        let now = Instant::now();
        let mut m = machine();
        m.start(now);
        for _ in 0..MAX_REDIRECTS {
            drain(&mut m);
            reply(&mut m, now, 302, &[("Contact", "<sip:9@192.0.2.9>")]);
            sent(&mut m);
        }
        reply(&mut m, now, 302, &[("Contact", "<sip:9@192.0.2.9>")]);
        assert_eq!(wait_over(&mut m, now).1, Reason::Rejected(302));
        for no_target in ["*", "<sip:9@192.0.2.9 x>", "<http://9@192.0.2.9>"] {
            reply(&mut m, now, 302, &[("Contact", no_target)]);
            assert_eq!(wait_over(&mut m, now).1, Reason::Rejected(302), "{no_target}");
        }
        reply(&mut m, now, 302, &[("Contact", "<sip:9@192.0.2.9>")]);
        assert_eq!(sent(&mut m).uri, "sip:9@192.0.2.9", "after a wait it may try again");
        reply(&mut m, now, 302, &[("Contact", "<sip:9@192.0.2.9:5061;transport=tcp?Route=x>")]);
        assert_eq!(sent(&mut m).uri, "sip:9@192.0.2.9:5061;transport=tcp");
    }

    #[test]
    fn a_too_brief_interval_is_raised_once() {
        let now = Instant::now();
        let mut m = machine();
        m.start(now);
        drain(&mut m);
        reply(&mut m, now, 423, &[("Min-Expires", "7200")]);
        assert_eq!(header(&sent(&mut m), "Expires"), Some("7200"));
        reply(&mut m, now, 423, &[("Min-Expires", "9000")]);
        assert_eq!(wait_over(&mut m, now).1, Reason::Rejected(423));
        reply(&mut m, now, 423, &[("Min-Expires", "4294967295")]);
        assert_eq!(wait_over(&mut m, now).1, Reason::Rejected(423));
    }

    #[test]
    fn learns_its_address_and_tells_the_server_once() {
        let (now, mut m) = registered();
        let via = [("Via", "SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK1;received=198.51.100.8;rport=40000")];
        m.timeout(now + seconds(2880));
        drain(&mut m);
        reply(&mut m, now, 401, &via);
        let (received, rport) = ("198.51.100.8".parse().ok(), Some(40000));
        assert!(drain(&mut m).contains(&Out::Learned { received, rport }));
        // The Contact changes while a REGISTER with the old one is under way.
        m.set_contact(now, "sip:34020000002000000001@198.51.100.8:40000".into());
        nothing_sent(&mut m);
        reply(&mut m, now, 200, &via);
        assert_eq!(drain(&mut m), [], "nothing new learnt");
        assert_eq!(m.next_timeout(), Some(now));
        m.timeout(now);
        assert_eq!(header(&sent(&mut m), "Contact"), Some("<sip:34020000002000000001@198.51.100.8:40000>"));
        reply(&mut m, now, 200, &[]);
        assert_eq!(m.refresh_at, Some(now + seconds(2880)));
        m.set_contact(now, "sip:34020000002000000001@198.51.100.8:40000".into());
        nothing_sent(&mut m);
        m.set_contact(now, "sip:34020000002000000001@198.51.100.8:40001".into());
        nothing_sent(&mut m);
        m.timeout(now + CONTACT_PAUSE);
        assert!(drain(&mut m).iter().any(|out| matches!(out, Out::Send(_))), "the next one a minute later");
    }

    #[test]
    fn the_same_seed_gives_the_same_course() {
        let now = Instant::now();
        let course = |seed| {
            let mut m = machine_with(seed, Box::new(|_, _| None));
            m.start(now);
            reply(&mut m, now, 403, &[]);
            drain(&mut m)
        };
        assert_eq!(course(1), course(1));
        assert_ne!(course(1), course(2));
    }
}
