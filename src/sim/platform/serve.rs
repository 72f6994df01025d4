//! The platform's one task: what lower platforms send, and the transactions of the platform's own requests.
//!
//! Standard: [GB/T28181-2022 9.1.2] registration, [9.6] keepalive, [9.4] alarms, [9.3.3, 9.5.3] answer first, then act.
//! In: events of the SIP driver, commands of the handles, time. Out: responses, news, answers to whoever waits.
//! Invariants: it waits for nobody but the driver; a request is answered at once, unless the behaviour says to ignore it.
//! Not here: requests of the platform (`handle`, `call`, `subscription`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::state::{Answer, LowerPlatform, MAX_LOWERS, OfflineReason, PlatformEvent, Shared, lock};
use super::subscription::Notice;
use crate::clock;
use crate::proto::gb28181::{DeviceId, UnixMillis, Version};
use crate::proto::manscdp::notify::{self, Keepalive};
use crate::proto::manscdp::{Incoming, Root, catalog, parse, response};
use crate::proto::sip::dialog::Dialog;
use crate::proto::sip::digest::{DigestError, DigestServer};
use crate::proto::sip::endpoint::{ClientFailure, ClientTxId, Event, ServerTxId};
use crate::proto::sip::message::{Flow, Headers, Request, Response};
use crate::transport::sip_driver::{ALLOWED_METHODS, HandleError, SipEvent, SipHandle, UserId};

/// Provisional responses remembered of one request; a handful is usual.
const MAX_PROVISIONAL: usize = 16;
/// Granted to a REGISTER that asks for nothing. [RFC3261 10.2.1.1]
const DEFAULT_EXPIRES: u32 = 3600;

/// How a request of ours ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A final response, the flow it came from, and the statuses before it.
    Final(Response, Flow, Vec<u16>),
    /// None will come.
    Failed(ClientFailure),
}

/// What a handle asks of the task.
#[derive(Debug)]
pub(super) enum Command {
    /// Send a request, and tell how it ends.
    Send {
        flow: Flow,
        request: Request,
        started: oneshot::Sender<Result<ClientTxId, HandleError>>,
        done: oneshot::Sender<Outcome>,
    },
    /// Send a request nobody waits for.
    Forget { flow: Flow, request: Request },
}

struct Waiting {
    done: oneshot::Sender<Outcome>,
    provisional: Vec<u16>,
    /// An INVITE, kept to hang up on a 2xx nobody waits for any more.
    invite: Option<Request>,
}

pub(super) struct Serve {
    shared: Arc<Shared>,
    sip: SipHandle,
    user: UserId,
    digest: DigestServer,
    /// Bounded by the endpoint's table.
    waiting: HashMap<ClientTxId, Waiting>,
}

impl Serve {
    pub fn new(shared: Arc<Shared>, sip: SipHandle, user: UserId, digest: DigestServer) -> Self {
        Serve { shared, sip, user, digest, waiting: HashMap::new() }
    }

    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<SipEvent>,
        mut commands: mpsc::Receiver<Command>,
        cancel: CancellationToken,
    ) {
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                Some(command) = commands.recv() => self.command(command).await,
                event = events.recv() => match event {
                    Some(event) => self.event(event).await,
                    None => return,
                },
                () = until(deadline) => self.expire(clock::now()),
            }
        }
    }

    // ---- our requests ----

    async fn command(&mut self, command: Command) {
        match command {
            Command::Send { flow, request, started, done } => {
                let invite = (request.method == "INVITE").then(|| request.clone());
                let sent = self.send(flow, request).await;
                if let Ok(tx) = sent {
                    let waiting = Waiting { done, provisional: Vec::new(), invite };
                    self.waiting.insert(tx, waiting);
                }
                // Whoever has gone meanwhile does not need to know.
                let _ = started.send(sent);
            }
            Command::Forget { flow, request } => self.send_and_forget(flow, request).await,
        }
    }

    async fn send(&self, flow: Flow, request: Request) -> Result<ClientTxId, HandleError> {
        let sent_by = self.shared.advertised(flow.peer).to_string();
        self.sip.request(&self.user, flow, Some(sent_by), request).await
    }

    async fn send_and_forget(&self, flow: Flow, request: Request) {
        let method = request.method.clone();
        if let Err(error) = self.send(flow, request).await {
            tracing::debug!(method, %error, "request of the simulated platform not sent");
        }
    }

    async fn response(&mut self, tx: ClientTxId, response: Response, flow: Flow) {
        let Some(waiting) = self.waiting.get_mut(&tx) else { return };
        if response.status < 200 {
            if waiting.provisional.len() < MAX_PROVISIONAL {
                waiting.provisional.push(response.status);
            }
            return;
        }
        let Some(waiting) = self.waiting.remove(&tx) else { return };
        let outcome = Outcome::Final(response, flow, waiting.provisional);
        let Err(Outcome::Final(response, flow, _)) = waiting.done.send(outcome) else {
            return;
        };
        // Nobody waits: a call that was set up after all is ended.
        if let Some(invite) = waiting.invite
            && let Ok(mut dialog) = Dialog::uac(&invite, &response, flow)
        {
            let sent_by = Some(self.shared.advertised(flow.peer).to_string());
            let ack = dialog.request("ACK");
            if self.sip.ack(&self.user, flow, sent_by, ack).await.is_ok() {
                self.send_and_forget(flow, dialog.request("BYE")).await;
            }
        }
    }

    // ---- what comes in ----

    async fn event(&mut self, event: SipEvent) {
        match event {
            Event::Request { tx, request, flow } => self.request(tx, &request, flow).await,
            Event::Response { tx, response, flow, repeat: false } => self.response(tx, response, flow).await,
            Event::ClientFailed { tx, reason } => {
                if let Some(waiting) = self.waiting.remove(&tx) {
                    // Whoever has gone meanwhile does not need to know.
                    let _ = waiting.done.send(Outcome::Failed(reason));
                }
            }
            Event::ConnClosed { conn } => {
                self.take_offline(|lower| (lower.flow.conn == Some(conn)).then_some(OfflineReason::ConnectionLost));
            }
            Event::Cancelled { tx, .. } => self.answer(tx, 487, Headers::new()).await,
            Event::Response { .. } | Event::Ack { .. } | Event::NoAck { .. } => {}
        }
    }

    async fn request(&mut self, tx: ServerTxId, request: &Request, flow: Flow) {
        match request.method.as_str() {
            "REGISTER" => self.register(tx, request, flow).await,
            "MESSAGE" => self.message(tx, request).await,
            "NOTIFY" => self.notify(tx, request).await,
            "BYE" => self.bye(tx, request).await,
            "OPTIONS" => {
                let mut headers = Headers::new();
                headers.push("Allow", ALLOWED_METHODS.join(", "));
                self.answer(tx, 200, headers).await;
            }
            // In-dialog news of a call.
            "INFO" => {
                let known = request.headers.call_id().is_some_and(|id| lock(&self.shared.calls).contains_key(id));
                self.answer(tx, if known { 200 } else { 481 }, Headers::new()).await;
            }
            "INVITE" => self.answer(tx, 488, Headers::new()).await,
            "SUBSCRIBE" => self.answer(tx, 489, Headers::new()).await,
            _ => self.answer(tx, 501, Headers::new()).await,
        }
    }

    async fn answer(&self, tx: ServerTxId, status: u16, headers: Headers) {
        let response = Response { status, reason: String::new(), headers, body: Bytes::new() };
        if let Err(error) = self.sip.respond(tx, response).await {
            tracing::debug!(status, %error, "response of the simulated platform not sent");
        }
    }

    // ---- registration ----

    async fn register(&mut self, tx: ServerTxId, request: &Request, flow: Flow) {
        let now = clock::now();
        let behaviour = {
            let mut behaviour = lock(&self.shared.behaviour);
            if behaviour.ignore_registers > 0 {
                behaviour.ignore_registers -= 1;
                return;
            }
            behaviour.clone()
        };
        let mut headers = Headers::new();
        if self.shared.config.version_header {
            headers.push("X-GB-Ver", self.shared.config.profile.xgbver());
        }
        let status = match behaviour.reject_register {
            Some(status) => status,
            None => self.judge(request, flow, &mut headers),
        };
        let name = request.headers.from_user().unwrap_or_default();
        let id = match (status, DeviceId::parse(&name)) {
            (200, Ok(id)) => id,
            (401, _) => return self.answer(tx, 401, headers).await,
            (status, _) => {
                let status = if status == 200 { 400 } else { status };
                self.shared.tell(PlatformEvent::RegisterRefused { id: name, status });
                return self.answer(tx, status, headers).await;
            }
        };
        let asked = request.headers.expires().unwrap_or(DEFAULT_EXPIRES);
        let granted = asked.min(u32::try_from(self.shared.config.expires.as_secs()).unwrap_or(u32::MAX));
        if let Some((server, addr)) = behaviour.redirect {
            headers.push("Contact", format!("<sip:{server}@{addr}>"));
            headers.push("Expires", granted.to_string());
            self.answer(tx, 302, headers).await;
            return self.shared.tell(PlatformEvent::Redirected { id, to: addr });
        }
        if granted == 0 {
            headers.push("Expires", "0");
            self.answer(tx, 200, headers).await;
            self.take_offline(|lower| (lower.id == id).then_some(OfflineReason::Unregistered));
            return;
        }
        if self.shared.lowers.borrow().len() >= MAX_LOWERS && self.shared.lower(&id).is_none() {
            return self.answer(tx, 503, headers).await;
        }
        if let Some(contact) = request.headers.get("Contact") {
            headers.push("Contact", contact);
        }
        headers.push("Expires", granted.to_string());
        if let Some(off) = self.shared.config.date {
            let now_ms = i64::try_from(clock::system_unix().as_millis()).unwrap_or(i64::MAX);
            headers.push("Date", UnixMillis(now_ms.saturating_add(off)).to_sip_date());
        }
        // The answer first: requests that follow the news must not overtake it.
        self.answer(tx, 200, headers).await;
        self.registered(now, id, request, flow, granted);
    }

    fn registered(&mut self, now: Instant, id: DeviceId, request: &Request, flow: Flow, granted: u32) {
        let expires = Duration::from_secs(granted.into());
        let before = self.shared.lower(&id);
        let fresh = before.as_ref().is_none_or(|lower| !lower.is_online());
        let lower = LowerPlatform {
            id,
            contact: request.headers.contact_uri().unwrap_or_else(|| format!("sip:{id}@{}", flow.peer)),
            flow,
            version: request.headers.get("X-GB-Ver").and_then(Version::parse),
            user_agent: request.headers.get("User-Agent").map(str::to_owned),
            expires,
            registered_at: now,
            registers: before.as_ref().map_or(0, |lower| lower.registers) + 1,
            keepalives: before.as_ref().map_or(0, |lower| lower.keepalives),
            // Being registered anew, it has all its keepalives before it.
            last_keepalive: before.as_ref().and_then(|lower| lower.last_keepalive).filter(|_| !fresh),
            ok: before.as_ref().is_none_or(|lower| lower.ok),
            faulty: before.map(|lower| lower.faulty).unwrap_or_default(),
            offline: None,
        };
        self.shared.lowers.send_modify(|lowers| {
            lowers.insert(id, lower);
        });
        self.shared.tell(PlatformEvent::Registered { id, flow, expires, fresh });
    }

    /// 200, or why not. A 401 leaves its challenges in `headers`.
    fn judge(&mut self, request: &Request, flow: Flow, headers: &mut Headers) -> u16 {
        let config = &self.shared.config;
        let Some(password) = &config.password else { return 200 };
        let (now, source) = (clock::system_unix().as_secs(), flow.peer.ip());
        let from = request.headers.from_user();
        let username = config.username.as_ref().or(from.as_ref());
        let known = |user: &str| (username.is_some_and(|name| name == user)).then(|| password.clone());
        let mut judged = Err(DigestError::NoCredentials);
        for credentials in request.headers.get_all("Authorization") {
            judged = self.digest.verify(now, source, "REGISTER", known, credentials);
            if judged.is_ok() {
                return 200;
            }
        }
        let stale = match judged {
            Err(DigestError::Wrong | DigestError::Unknown) => return 403,
            Err(DigestError::Stale | DigestError::Replay) => true,
            _ => false,
        };
        for challenge in self.digest.challenge(now, source, stale) {
            headers.push("WWW-Authenticate", challenge);
        }
        401
    }

    /// When somebody expires next.
    fn next_deadline(&self) -> Option<Instant> {
        let lowers = self.shared.lowers.borrow();
        let online = lowers.values().filter(|lower| lower.is_online());
        online.filter_map(|lower| self.deadline(lower).map(|(at, _)| at)).min()
    }

    fn deadline(&self, lower: &LowerPlatform) -> Option<(Instant, OfflineReason)> {
        let policy = self.shared.config.keepalive;
        let expires = lower.registered_at.checked_add(lower.expires);
        let alive = policy.interval.saturating_mul(policy.max_missed);
        let silent = lower.last_keepalive.unwrap_or(lower.registered_at).checked_add(alive);
        let silent = silent.filter(|_| policy.max_missed > 0);
        let both = [expires.map(|at| (at, OfflineReason::Expired)), silent.map(|at| (at, OfflineReason::NoKeepalive))];
        both.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn expire(&self, now: Instant) {
        self.take_offline(|lower| {
            let (at, why) = self.deadline(lower)?;
            (at <= now).then_some(why)
        });
    }

    fn take_offline(&self, why: impl Fn(&LowerPlatform) -> Option<OfflineReason>) {
        let mut gone = Vec::new();
        self.shared.lowers.send_if_modified(|lowers| {
            for lower in lowers.values_mut().filter(|lower| lower.is_online()) {
                if let Some(why) = why(lower) {
                    lower.offline = Some(why);
                    gone.push((lower.id, why));
                }
            }
            !gone.is_empty()
        });
        for (id, why) in gone {
            self.shared.tell(PlatformEvent::Offline { id, why });
        }
    }

    // ---- MESSAGE ----

    async fn message(&mut self, tx: ServerTxId, request: &Request) {
        let keepalive_status = {
            let mut behaviour = lock(&self.shared.behaviour);
            if behaviour.ignore_messages > 0 {
                behaviour.ignore_messages -= 1;
                return;
            }
            behaviour.keepalive_status
        };
        let name = request.headers.from_user().unwrap_or_default();
        // Inside a call it comes from the channel; the call says whose that is.
        let call_id = request.headers.call_id().unwrap_or_default();
        let of_call = lock(&self.shared.calls).get(call_id).map(|call| call.lower);
        let lower = of_call.map_or_else(|| DeviceId::parse(&name), Ok).map(|id| self.shared.online(&id));
        let (status, incoming) = match (lower, parse(&request.body, None)) {
            (Ok(Ok(lower)), Ok(incoming)) => (200, Some((lower, incoming))),
            (Ok(Ok(_)), Err(error)) => {
                tracing::debug!(from = name, %error, "MESSAGE not understood");
                (400, None)
            }
            _ => (403, None),
        };
        let Some((lower, incoming)) = incoming else {
            self.shared.tell(PlatformEvent::MessageRefused { id: name, status });
            return self.answer(tx, status, Headers::new()).await;
        };
        let keepalive = Keepalive::read(&incoming);
        let status = keepalive_status.filter(|_| keepalive.is_some()).unwrap_or(200);
        self.answer(tx, status, Headers::new()).await;
        if status >= 300 {
            return self.shared.tell(PlatformEvent::MessageRefused { id: name, status });
        }
        if let Some(keepalive) = keepalive {
            return self.keepalive(clock::now(), &lower, keepalive);
        }
        if incoming.root == Root::Response {
            let bytes = request.to_bytes().len();
            return self.application_answer(Answer { incoming, bytes });
        }
        self.news(&lower, &incoming, call_id).await;
    }

    fn keepalive(&mut self, now: Instant, lower: &LowerPlatform, keepalive: Keepalive) {
        let Keepalive { ok, faulty } = keepalive;
        let count = lower.keepalives + 1;
        let id = lower.id;
        self.shared.lowers.send_modify(|lowers| {
            if let Some(lower) = lowers.get_mut(&id) {
                lower.keepalives = count;
                lower.last_keepalive = Some(now);
                lower.ok = ok;
                lower.faulty.clone_from(&faulty);
            }
        });
        self.shared.tell(PlatformEvent::Keepalive { id, count, ok, faulty });
    }

    /// To whoever asked; nobody: it is late, or was never asked for.
    fn application_answer(&self, answer: Answer) {
        let sn = answer.incoming.sn;
        let asker = lock(&self.shared.answers).get(&sn).cloned();
        let taken = asker.is_some_and(|asker| asker.try_send(answer).is_ok());
        if !taken {
            tracing::debug!(sn, "an answer nobody waits for");
        }
    }

    async fn news(&self, lower: &LowerPlatform, incoming: &Incoming, call_id: &str) {
        let id = lower.id;
        if let Some(alarm) = notify::Alarm::read(incoming) {
            let device = incoming.device_id;
            if !lock(&self.shared.behaviour).leave_alarms {
                // [GB/T28181-2022 9.4.2]
                let body = response::result(self.shared.config.profile, &incoming.cmd_type, incoming.sn, &device, true);
                let confirm = self.shared.message(lower, body.into());
                self.send_and_forget(lower.flow, confirm).await;
            }
            self.shared.tell(PlatformEvent::Alarm { id, device, alarm });
        } else if let Some(notify_type) = notify::read_media_status(incoming) {
            let channel = incoming.device_id;
            let waiting = lock(&self.shared.calls).get_mut(call_id).and_then(|call| call.finished.take());
            if let Some(waiting) = waiting {
                // A session that has just been dropped does not need to know.
                let _ = waiting.send(notify_type);
            }
            self.shared.tell(PlatformEvent::MediaStatus { id, channel, notify_type });
        } else {
            let cmd_type = incoming.cmd_type.clone();
            self.shared.tell(PlatformEvent::Message { id, cmd_type });
        }
    }

    // ---- dialogs ----

    async fn notify(&self, tx: ServerTxId, request: &Request) {
        let asked = lock(&self.shared.behaviour).notify_status;
        let call_id = request.headers.call_id().unwrap_or_default();
        let subscriber = lock(&self.shared.subscriptions).get(call_id).cloned();
        let status = match (&subscriber, asked) {
            (_, Some(status)) => status,
            (None, None) => 481,
            (Some(_), None) => 200,
        };
        self.answer(tx, status, Headers::new()).await;
        let Some(subscriber) = subscriber.filter(|_| status == 200) else {
            return;
        };
        let incoming = parse(&request.body, None).ok();
        let header = |name| request.headers.get(name).unwrap_or_default().to_owned();
        let notice = Notice {
            event: header("Event"),
            state: header("Subscription-State"),
            cseq: request.headers.cseq().map_or(0, |cseq| cseq.seq),
            changes: incoming.as_ref().and_then(catalog::read_catalog_notify).unwrap_or_default(),
            incoming,
            bytes: request.to_bytes().len(),
        };
        if subscriber.try_send(notice).is_err() {
            tracing::debug!(call_id, "a NOTIFY nobody fetches");
        }
    }

    async fn bye(&self, tx: ServerTxId, request: &Request) {
        let call_id = request.headers.call_id().unwrap_or_default();
        let call = {
            let mut calls = lock(&self.shared.calls);
            let entry = calls.get_mut(call_id);
            entry.map(|entry| (entry.channel, entry.ended.take()))
        };
        let status = if call.is_some() { 200 } else { 481 };
        self.answer(tx, status, Headers::new()).await;
        if let Some((channel, Some(ended))) = call {
            // A session that has just been dropped does not need to know.
            let _ = ended.send(request.clone());
            self.shared.tell(PlatformEvent::Hangup { channel });
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
