//! The device's task: its registration, what comes in, what its handles ask for, and what is due.
//!
//! Standard: [GB/T28181-2022 9.1, 9.3.3, 9.5.3, 9.6]: a MESSAGE is answered at once, what it asks for follows in
//! MESSAGEs of its own; those of one list one after the other [annex M].
//! In: SIP events, commands, ends of streams, time. Out: requests and responses by the driver.
//! Invariants: one task owns all of this, and never waits for the platform.
//! Not here: bodies (`answers`), calls (`call`), subscriptions (`subscription`), alarms (`alarm`), media (`stream`).

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, oneshot};

use super::alarm::Waiting;
use super::answers::{self, CatalogJob, PagePlan, Reply};
use super::call::Call;
use super::state::Shared;
use super::stream::Ending;
use super::subscription::Subscribed;
use crate::clock;
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::notify::{Alarm, Broadcast, Keepalive};
use crate::proto::manscdp::response::result;
use crate::proto::manscdp::{CatalogChange, Incoming, Query, Root, parse};
use crate::proto::sip::digest::{DigestClient, pick_challenge};
use crate::proto::sip::endpoint::{ClientFailure, ClientTxId, Event, ServerTxId};
use crate::proto::sip::message::{Flow, Headers, Request, Response};
use crate::proto::sip::registration::{
    Kind, Reason, RedirectTarget, Registration, RegistrationConfig, RegistrationOutput, State,
};
use crate::task::Scope;
use crate::transport::sip_driver::{SipEvent, SipHandle, UserId};

/// Messages of lists waiting for their turn: two catalogues of the largest device, item by item, are not waited for.
const MAX_PAGES: usize = 100_000;
/// Ends of streams the task has not heard of yet; streams wait when it is full.
const ENDING_QUEUE: usize = 64;
/// Wait when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);
/// Between registrations after a refusal; the client keeps at least this. [GB/T28181-2022 9.1.1]
const RETRY: Duration = Duration::from_secs(60);

/// What handles ask for.
#[derive(Debug)]
pub(super) enum Command {
    Keepalive,
    Alarm {
        channel: DeviceId,
        alarm: Alarm,
        reply: oneshot::Sender<u32>,
    },
    /// The channels have changed so.
    Changed(Vec<CatalogChange>),
    /// End the calls of a channel.
    HangUp(DeviceId),
    /// Any body to the platform.
    Message(Bytes),
    /// End everything; told whether the platform confirmed it.
    Stop(oneshot::Sender<bool>),
}

/// What a request of ours was for.
#[derive(Debug)]
pub(super) enum Pending {
    Registration(Kind),
    /// A message of a list: the next follows.
    Page,
    /// Of the subscription with this Call-ID.
    Notify(String),
    Other,
}

enum Page {
    Body(Vec<u8>),
    Catalog(Arc<CatalogJob>, PagePlan),
}

/// The task's own state.
pub(super) struct Serve {
    pub shared: Arc<Shared>,
    pub sip: SipHandle,
    pub user: UserId,
    pub scope: Scope,
    flow: Flow,
    registration: Registration,
    pending: HashMap<ClientTxId, Pending>,
    pages: VecDeque<Page>,
    page_sent: bool,
    /// By Call-ID.
    pub calls: HashMap<String, Call>,
    pub subscriptions: Vec<Subscribed>,
    pub alarms: Vec<Waiting>,
    pub endings: mpsc::Sender<(String, Ending)>,
    ended: mpsc::Receiver<(String, Ending)>,
    stopping: Option<oneshot::Sender<bool>>,
    done: bool,
}

impl Serve {
    pub fn new(shared: Arc<Shared>, sip: SipHandle, user: UserId, scope: Scope) -> Self {
        let config = &shared.config;
        let registration = Registration::new(
            RegistrationConfig {
                server_uri: format!("sip:{}@{}", config.server_id, config.server_domain),
                local_uri: format!("sip:{}@{}", config.id, config.id.domain().unwrap_or(config.id.as_str())),
                contact_uri: shared.contact_uri(),
                expires: config.expires,
                retry: RETRY,
                keepalive_interval: config.keepalive,
                keepalive_max_missed: config.keepalive_max_missed,
                version: config.version_header.then(|| config.profile.xgbver().to_owned()),
            },
            credentials(&shared),
            StdRng::seed_from_u64(shared.random()),
        );
        let (endings, ended) = mpsc::channel(ENDING_QUEUE);
        Serve {
            flow: shared.flow(),
            shared,
            sip,
            user,
            scope,
            registration,
            pending: HashMap::new(),
            pages: VecDeque::new(),
            page_sent: false,
            calls: HashMap::new(),
            subscriptions: Vec::new(),
            alarms: Vec::new(),
            endings,
            ended,
            stopping: None,
            done: false,
        }
    }

    /// Runs until the scope ends, or until it has stopped as told.
    pub async fn run(mut self, mut events: mpsc::Receiver<SipEvent>, mut commands: mpsc::Receiver<Command>) {
        let token = self.scope.token();
        self.registration.start(clock::now());
        loop {
            self.drive().await;
            if self.done {
                return;
            }
            let deadline = self.next_timeout().unwrap_or_else(|| clock::now() + IDLE);
            tokio::select! {
                () = token.cancelled() => return,
                event = events.recv() => match event {
                    Some(event) => self.event(event).await,
                    // The driver has ended.
                    None => return,
                },
                Some(command) = commands.recv() => self.command(command).await,
                Some((call_id, ending)) = self.ended.recv() => self.stream_ended(&call_id, ending).await,
                () = tokio::time::sleep_until(deadline.into()) => self.timeout(clock::now()).await,
            }
            let (calls, subscriptions) = (self.calls.len(), self.subscriptions.len());
            self.shared.snapshot.send_if_modified(|s| {
                let changed = (s.calls, s.subscriptions) != (calls, subscriptions);
                (s.calls, s.subscriptions) = (calls, subscriptions);
                changed
            });
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        let calls = self.calls.values().filter_map(|call| call.bye_at);
        let subscriptions = self.subscriptions.iter().map(|subscribed| subscribed.until);
        let alarms = self.alarms.iter().map(|waiting| waiting.again_at);
        self.registration.next_timeout().into_iter().chain(calls).chain(subscriptions).chain(alarms).min()
    }

    async fn timeout(&mut self, now: Instant) {
        self.registration.timeout(now);
        self.calls_due(now).await;
        self.subscriptions_due(now).await;
        self.alarms_due(now).await;
    }

    // ---- out ----

    /// Sends a request; the outcome comes as an event.
    pub async fn send(&mut self, flow: Flow, request: Request, pending: Pending) {
        match self.sip.request(&self.user, flow, self.shared.sent_by(), request).await {
            Ok(tx) => {
                self.pending.insert(tx, pending);
            }
            Err(error) => {
                tracing::debug!(%error, "a request of the simulated device was not sent");
                self.failed(&pending, ClientFailure::Transport);
            }
        }
    }

    /// Sends a body to the platform.
    pub async fn message(&mut self, body: Vec<u8>, pending: Pending) {
        let request = self.shared.message(body.into());
        self.send(self.flow, request, pending).await;
    }

    pub async fn respond(&self, tx: ServerTxId, status: u16, headers: Headers, body: Bytes) {
        respond(&self.sip, tx, status, headers, body).await;
    }

    pub async fn refuse(&self, tx: ServerTxId, status: u16) {
        self.respond(tx, status, Headers::new(), Bytes::new()).await;
    }

    async fn drive(&mut self) {
        while let Some(output) = self.registration.poll_output() {
            match output {
                RegistrationOutput::Send(request) => {
                    self.send(self.flow, request, Pending::Registration(Kind::Register)).await;
                }
                RegistrationOutput::SendKeepalive { sn } => self.keepalive(sn).await,
                RegistrationOutput::StateChanged { to, reason, .. } => self.shared.count(|s| {
                    s.registered = to == State::Registered;
                    s.registrations += u64::from(to == State::Registered);
                    let failed = matches!(to, State::Waiting { .. }) && reason != Reason::Redirected;
                    s.registration_failures += u64::from(failed);
                }),
                RegistrationOutput::Redirected { to } => {
                    self.flow.peer = to.and_then(|target| address_of(&target)).unwrap_or(self.shared.config.server);
                }
                RegistrationOutput::Unregistered { confirmed } => {
                    if let Some(reply) = self.stopping.take() {
                        // Who asked may have given up.
                        let _ = reply.send(confirmed);
                        self.done = true;
                    }
                }
                RegistrationOutput::Date { .. } | RegistrationOutput::Learned { .. } => {}
            }
        }
    }

    async fn keepalive(&mut self, sn: u32) {
        let kind = Kind::Keepalive { sn };
        if self.shared.faults().no_keepalive {
            // The registration believes in an answer, so that it goes on.
            let response = Response { status: 200, reason: String::new(), headers: Headers::new(), body: Bytes::new() };
            return self.registration.response(clock::now(), kind, &response);
        }
        let config = &self.shared.config;
        let keepalive = Keepalive { ok: true, faulty: Vec::new() };
        let body = keepalive.write(config.profile, sn, &config.id);
        self.message(body, Pending::Registration(kind)).await;
        self.shared.count(|s| s.keepalives += 1);
    }

    fn queue_page(&mut self, page: Page) {
        if self.pages.len() < MAX_PAGES {
            self.pages.push_back(page);
        }
    }

    /// The next message of a list, once the one before has been answered.
    async fn next_page(&mut self) {
        if self.page_sent {
            return;
        }
        let Some(page) = self.pages.pop_front() else { return };
        let body = match page {
            Page::Body(body) => body,
            Page::Catalog(job, plan) => job.body(&plan),
        };
        self.page_sent = true;
        self.shared.count(|s| s.list_messages += 1);
        self.message(body, Pending::Page).await;
    }

    // ---- in ----

    async fn event(&mut self, event: SipEvent) {
        match event {
            Event::Request { tx, request, flow } => self.request(tx, request, flow).await,
            Event::Ack { request, .. } => self.acknowledged(&request),
            Event::Cancelled { tx, .. } => {
                self.shared.count(|s| s.invites_cancelled += 1);
                self.refuse(tx, 487).await;
            }
            Event::NoAck { tx } => self.not_acknowledged(tx).await,
            Event::Response { tx, response, .. } if response.status >= 200 => {
                if let Some(pending) = self.pending.remove(&tx) {
                    self.answered(pending, &response).await;
                }
            }
            Event::Response { .. } => {}
            Event::ClientFailed { tx, reason } => {
                if let Some(pending) = self.pending.remove(&tx) {
                    self.failed(&pending, reason);
                }
            }
            Event::ConnClosed { .. } => self.registration.connection_lost(clock::now()),
        }
    }

    async fn answered(&mut self, pending: Pending, response: &Response) {
        let good = (200..300).contains(&response.status);
        match pending {
            Pending::Registration(kind) => {
                if good && matches!(kind, Kind::Keepalive { .. }) {
                    self.shared.count(|s| s.keepalives_answered += 1);
                }
                self.registration.response(clock::now(), kind, response);
            }
            Pending::Page => {
                self.page_over(good);
                self.next_page().await;
            }
            Pending::Notify(call_id) if response.status == 481 => {
                self.subscriptions.retain(|subscribed| subscribed.call_id() != call_id);
            }
            Pending::Notify(_) | Pending::Other => {}
        }
    }

    fn failed(&mut self, pending: &Pending, reason: ClientFailure) {
        match pending {
            Pending::Registration(kind) => self.registration.failed(clock::now(), *kind, reason),
            Pending::Page => self.page_over(false),
            Pending::Notify(_) | Pending::Other => {}
        }
    }

    /// A list of which a message was refused or lost is given up: the platform will ask again.
    fn page_over(&mut self, good: bool) {
        self.page_sent = false;
        if !good {
            self.pages.clear();
        }
    }

    async fn request(&mut self, tx: ServerTxId, request: Request, flow: Flow) {
        match request.method.as_str() {
            "MESSAGE" => self.on_message(tx, &request).await,
            "INVITE" => self.invite(tx, &request, flow).await,
            "BYE" => self.bye_received(tx, &request).await,
            "INFO" => self.playback_control(tx, &request).await,
            "SUBSCRIBE" => self.subscribe(tx, &request, flow).await,
            _ => self.refuse(tx, 200).await,
        }
    }

    async fn on_message(&mut self, tx: ServerTxId, request: &Request) {
        let Ok(incoming) = parse(&request.body, None) else {
            return self.refuse(tx, 400).await;
        };
        self.refuse(tx, 200).await;
        match incoming.root {
            Root::Query => self.query(&incoming).await,
            Root::Control => self.control(&incoming).await,
            Root::Response if incoming.is(Root::Response, "Alarm") => self.alarm_answered(incoming.sn),
            Root::Notify => {
                if let Some(broadcast) = Broadcast::read(&incoming) {
                    // There is no loudspeaker here.
                    self.result(&incoming, &broadcast.target, false).await;
                }
            }
            Root::Response => {}
        }
    }

    /// A Response that says OK or ERROR.
    pub async fn result(&mut self, incoming: &Incoming, device: &DeviceId, ok: bool) {
        if !self.shared.faults().no_answers {
            let body = result(self.shared.config.profile, &incoming.cmd_type, incoming.sn, device, ok);
            self.message(body, Pending::Other).await;
        }
    }

    async fn query(&mut self, incoming: &Incoming) {
        self.shared.count(|s| s.queries += 1);
        if self.shared.faults().no_answers {
            return;
        }
        match answers::reply(&self.shared, incoming, Query::of(incoming).as_ref()) {
            Reply::One(body) => self.message(body, Pending::Other).await,
            Reply::List(bodies) => bodies.into_iter().for_each(|body| self.queue_page(Page::Body(body))),
            Reply::Catalog(job, plan) => {
                // A new question takes the place of one that is still being answered.
                self.pages.retain(|page| matches!(page, Page::Body(_)));
                plan.into_iter().for_each(|page| self.queue_page(Page::Catalog(job.clone(), page)));
            }
        }
        self.next_page().await;
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Keepalive => self.registration.keepalive_now(),
            Command::Alarm { channel, alarm, reply } => {
                let sn = self.raise(channel, &alarm).await;
                // Who asked may have given up.
                let _ = reply.send(sn);
            }
            Command::Changed(changes) => self.notify_changes(&changes).await,
            Command::HangUp(channel) => self.hang_up(|call| call.channel == channel).await,
            Command::Message(body) => self.message(body.into(), Pending::Other).await,
            Command::Stop(reply) => {
                self.hang_up(|_| true).await;
                self.stopping = Some(reply);
                self.registration.stop(clock::now());
            }
        }
    }

    /// Other keepalive times from now on. [GB/T28181-2022 A.2.3.2]
    pub fn set_keepalive(&mut self, interval: Duration, max_missed: u32) {
        self.registration.set_keepalive(clock::now(), interval, max_missed);
    }
}

/// Answers the registrar's challenges.
fn credentials(shared: &Shared) -> crate::proto::sip::registration::Answer {
    let config = &shared.config;
    let (username, password) =
        (config.username.clone().unwrap_or_else(|| config.id.to_string()), config.password.clone());
    let mut rng = StdRng::seed_from_u64(shared.random());
    Box::new(move |response: &Response, request: &Request| {
        let challenge = pick_challenge(response.headers.get_all("WWW-Authenticate"), false).ok()?;
        let cnonce = format!("{:08x}", rng.random::<u32>());
        let mut client = DigestClient::new(challenge);
        let value = client.answer(&request.method, &request.uri, &username, &password, &cnonce);
        Some(("Authorization".to_owned(), value))
    })
}

fn address_of(target: &RedirectTarget) -> Option<SocketAddr> {
    Some(SocketAddr::new(target.host.parse().ok()?, target.port.unwrap_or(5060)))
}

/// Answers a request; a transaction that is over is no matter.
pub(super) async fn respond(sip: &SipHandle, tx: ServerTxId, status: u16, headers: Headers, body: Bytes) {
    let response = Response { status, reason: String::new(), headers, body };
    if let Err(error) = sip.respond(tx, response).await {
        tracing::debug!(%error, status, "a response of the simulated device was not sent");
    }
}
