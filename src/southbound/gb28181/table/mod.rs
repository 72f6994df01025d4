//! The table of devices that register with us: one actor for all of them.
//! Standard: [GB/T28181-2022 9], the upper platform's side.
//! In: SIP events, wishes of the hub, commands of the north, events of receivers, time. Out: SIP requests and answers,
//! channels and their states for the directory, streams for the hub. Owner: one task.
//! Invariants: a device's requests count only from where it registered; requests to it go there and nowhere else;
//! nothing here waits for a device or a disk: such answers come back as inputs of the loop.
//! Bounds: [`INTERVIEWS`] catalogue queries at once, [`MAX_QUERIES`] open questions, `max_streams` sessions a device.
//! Files: `register`, `messages`, `inventory`, `calls`, `commands` hold the methods of their subject.

mod calls;
mod commands;
mod inventory;
mod messages;
mod register;

use calls::CallEntry;
use inventory::{Inventory, Topic};
use messages::Query;

use super::status::{DeviceState, DeviceStatus, PendingStatus};
use super::{DeviceClass, TableConfig, TableDeps};
use crate::alarm::Receipt;
use crate::catalog::{ChannelCommand, CommandError, CommandHandle, RecordControl};
use crate::clock;
use crate::media::{ReceiveEvent, SourceHandle, SourceRequest, StreamKey};
use crate::metrics::ChannelLabel;
use crate::proto::gb28181::{DeviceId, Profile};
use crate::proto::sdp::ssrc::Generator;
use crate::proto::sip::endpoint::{ClientTxId, Event, ServerTxId, response_to};
use crate::proto::sip::message::{Flow, Headers, Request, Response};
use crate::proto::sip::registrar::Registrar;
use crate::store::StoreError;
use crate::transport::sip_driver::{Route, UserId};
use crate::transport::sockopt::local_ip_towards;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Name of the table towards the SIP driver.
const USER: &str = "devices";
/// Wishes of the hub and commands of the north that wait: a burst of a hundred INVITEs takes a few each.
const REQUESTS: usize = 1024;
/// Events of receivers: two each and a margin.
const RECEIVE_EVENTS: usize = 4096;
/// Catalogue queries at once: ten thousand devices that come back together are asked in turn.
const INTERVIEWS: usize = 64;
/// Open questions in all: every device asked twice.
const MAX_QUERIES: usize = 20_000;
/// Changed bindings are written so often.
const FLUSH: Duration = Duration::from_secs(1);
/// Devices are counted so often.
const FIGURES: Duration = Duration::from_secs(5);
/// BYEs must be out within this when the table stops.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Asks the table.
#[derive(Debug, Clone)]
pub struct TableHandle {
    tx: mpsc::Sender<TableCommand>,
}

#[derive(Debug)]
enum TableCommand {
    Reconfigure(Box<TableConfig>),
    Snapshot(oneshot::Sender<(Vec<DeviceStatus>, Vec<PendingStatus>)>),
    Refresh(DeviceId, oneshot::Sender<bool>),
}

impl TableHandle {
    /// Takes another configuration; devices that stay keep their registrations and streams.
    pub async fn reconfigure(&self, config: TableConfig) {
        let _ = self.tx.send(TableCommand::Reconfigure(Box::new(config))).await;
    }

    /// All devices and all strangers that would like to be.
    pub async fn snapshot(&self) -> (Vec<DeviceStatus>, Vec<PendingStatus>) {
        let (reply, answer) = oneshot::channel();
        if self.tx.send(TableCommand::Snapshot(reply)).await.is_err() {
            return Default::default();
        }
        answer.await.unwrap_or_default()
    }

    /// Asks a device for its catalogue now. False when it is not registered.
    pub async fn refresh(&self, device: DeviceId) -> bool {
        let (reply, answer) = oneshot::channel();
        self.tx.send(TableCommand::Refresh(device, reply)).await.is_ok() && answer.await.unwrap_or(false)
    }
}

/// What is being waited for from a client transaction.
enum Pending {
    /// An application answer to something the device told us.
    Answer {
        device: DeviceId,
    },
    /// A MESSAGE that asks or tells; the query, if an application answer is due.
    Message {
        device: DeviceId,
        sn: Option<u32>,
    },
    /// A control without an application answer: its 200 is the answer.
    Control {
        reply: oneshot::Sender<Result<crate::catalog::CommandAnswer, CommandError>>,
    },
    Invite {
        token: u64,
        request: Box<Request>,
    },
    Subscribe {
        device: DeviceId,
        topic: Topic,
        request: Box<Request>,
    },
    Info {
        reply: oneshot::Sender<Result<(u16, Bytes), CommandError>>,
    },
    Goodbye,
}

/// What is due at a moment. Old ones are recognised when they come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Timer {
    Query(u32),
    Assembly(u32),
    Catalog(DeviceId, u32),
    Subscription(DeviceId, Topic, u32),
    Call(u64, u32),
    Flush,
    Figures,
    Interviews,
    Slot(DeviceId, u32),
}

/// What comes back from the store.
enum Job {
    Kept { device: DeviceId, plan: Box<inventory::Plan>, codes: Result<Vec<String>, StoreError> },
    Alarm { device: DeviceId, subject: DeviceId, sn: u32, receipt: Receipt },
    Nothing,
}

/// One device that is, or was, registered.
struct Device {
    class: Arc<DeviceClass>,
    label: ChannelLabel,
    profile: Profile,
    flow: Flow,
    user_agent: Box<str>,
    state: DeviceState,
    reason: &'static str,
    since_ms: i64,
    inventory: Inventory,
    media_failure: String,
    streams: usize,
    /// Answers of ours that it has not acknowledged.
    answers: usize,
    /// Alarms of it that are being stored.
    alarms: usize,
}

/// See the file's head.
pub struct DeviceTable {
    cfg: TableConfig,
    deps: TableDeps,
    user: UserId,
    registrar: Registrar,
    rng: StdRng,
    ssrcs: Option<Generator>,
    classes: Vec<(Arc<DeviceClass>, ChannelLabel)>,
    /// Of single devices, by code.
    exact: HashMap<String, usize>,
    /// Codes no channel may take; made anew when devices come and go.
    reserved: Option<Arc<HashSet<String>>>,
    devices: HashMap<DeviceId, Device>,
    /// By our code: whose it is, and the device's own identifier of it.
    channels: HashMap<Arc<str>, (DeviceId, DeviceId)>,
    calls: HashMap<u64, CallEntry>,
    by_stream: HashMap<StreamKey, u64>,
    next_token: u64,
    queries: HashMap<u32, Query>,
    sn: u32,
    cseq: u32,
    interviews: VecDeque<DeviceId>,
    interviewing: usize,
    pending: HashMap<ClientTxId, Pending>,
    timers: BTreeMap<(Instant, u64), Timer>,
    next_timer: u64,
    jobs: JoinSet<Job>,
    dirty: HashSet<DeviceId>,
    gone: HashSet<DeviceId>,
    flushing: bool,
    table_rx: mpsc::Receiver<TableCommand>,
    requests: mpsc::Receiver<SourceRequest>,
    source: SourceHandle,
    commands: mpsc::Receiver<ChannelCommand>,
    command_handle: CommandHandle,
    record_tx: mpsc::Sender<(u64, Option<RecordControl>)>,
    record_controls: mpsc::Receiver<(u64, Option<RecordControl>)>,
    receive_tx: mpsc::Sender<(u64, ReceiveEvent)>,
    receive_events: mpsc::Receiver<(u64, ReceiveEvent)>,
    events: mpsc::Receiver<Event>,
    closing: Option<Instant>,
}

impl DeviceTable {
    /// Takes the registrar's place at the SIP driver, and what the store knows. None when the driver has stopped.
    pub async fn new(cfg: TableConfig, deps: TableDeps, seed: u64) -> Option<(DeviceTable, TableHandle)> {
        let mut rng = StdRng::seed_from_u64(seed);
        let user = UserId::new(USER);
        let route = Route { local_id: Some(cfg.gateway_id.to_string()), registrar: true, ..Route::default() };
        let events = deps.sip.register_user(user.clone(), vec![route]).await.ok()?;
        let registrar = Registrar::new(cfg.registrar.clone(), StdRng::from_rng(&mut rng));
        let (tx, table_rx) = mpsc::channel(64);
        let (source_tx, requests) = mpsc::channel(REQUESTS);
        let (command_tx, commands) = mpsc::channel(REQUESTS);
        let (receive_tx, receive_events) = mpsc::channel(RECEIVE_EVENTS);
        let (record_tx, record_controls) = mpsc::channel(REQUESTS);
        let ssrcs = Generator::new(&cfg.gateway_id, rng.random());
        let classes = cfg.classes.iter().map(|c| (Arc::new(c.clone()), deps.metrics.add_device(&c.label()))).collect();
        let mut table = DeviceTable {
            user,
            registrar,
            ssrcs,
            classes,
            exact: register::exact_classes(&cfg.classes),
            reserved: None,
            devices: HashMap::new(),
            channels: HashMap::new(),
            calls: HashMap::new(),
            by_stream: HashMap::new(),
            next_token: 1,
            queries: HashMap::new(),
            sn: rng.random_range(1..1_000_000),
            cseq: 0,
            interviews: VecDeque::new(),
            interviewing: 0,
            pending: HashMap::new(),
            timers: BTreeMap::new(),
            next_timer: 0,
            jobs: JoinSet::new(),
            dirty: HashSet::new(),
            gone: HashSet::new(),
            flushing: false,
            table_rx,
            requests,
            source: SourceHandle::new(source_tx),
            commands,
            command_handle: CommandHandle::new(command_tx),
            record_tx,
            record_controls,
            receive_tx,
            receive_events,
            events,
            closing: None,
            rng,
            cfg,
            deps,
        };
        table.restore().await;
        table.count_devices();
        Some((table, TableHandle { tx }))
    }

    /// Runs until cancelled and said goodbye to its sessions.
    pub async fn run(mut self, cancel: CancellationToken) {
        loop {
            let now = clock::now();
            self.timers_due(now).await;
            if self.closing.is_some_and(|at| now >= at || (self.calls.is_empty() && !self.says_goodbye())) {
                break;
            }
            let first = self.timers.first_key_value().map(|((at, _), _)| *at);
            let due = first.into_iter().chain(self.registrar.next_timeout()).chain(self.closing).min();
            let sleep = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled(), if self.closing.is_none() => self.begin_closing().await,
                event = self.events.recv() => match event {
                    Some(event) => self.on_sip(event).await,
                    None => break,
                },
                Some((token, event)) = self.receive_events.recv() => self.on_receive(token, event).await,
                Some((token, control)) = self.record_controls.recv() => self.on_record(token, control).await,
                Some(request) = self.requests.recv() => self.on_source(request).await,
                Some(command) = self.commands.recv() => self.on_command(command).await,
                Some(command) = self.table_rx.recv() => self.on_table(command).await,
                Some(Ok(job)) = self.jobs.join_next() => self.on_job(job).await,
                () = sleep => {}
            }
        }
        self.flush();
        let _ = self.deps.sip.remove_user(self.user.clone()).await;
    }

    fn says_goodbye(&self) -> bool {
        self.pending.values().any(|p| matches!(p, Pending::Goodbye))
    }

    async fn begin_closing(&mut self) {
        self.closing = Some(clock::now() + CLOSE_LIMIT);
        for token in self.calls.keys().copied().collect::<Vec<_>>() {
            self.feed(token, super::call::CallInput::Shutdown).await;
        }
    }

    async fn on_table(&mut self, command: TableCommand) {
        match command {
            TableCommand::Reconfigure(cfg) => self.reconfigure(*cfg).await,
            TableCommand::Snapshot(reply) => drop(reply.send(self.snapshot())),
            TableCommand::Refresh(device, reply) => {
                let there = self.devices.get(&device).is_some_and(|d| d.state == DeviceState::Online);
                if there {
                    self.interview(device).await;
                }
                let _ = reply.send(there);
            }
        }
    }

    async fn on_job(&mut self, job: Job) {
        match job {
            Job::Kept { device, plan, codes } => self.catalog_kept(device, *plan, codes).await,
            Job::Alarm { device, subject, sn, receipt } => self.alarm_kept(device, subject, sn, receipt).await,
            Job::Nothing => {}
        }
    }

    // ---- time ----

    fn after(&mut self, wait: Duration, timer: Timer) {
        self.next_timer += 1;
        self.timers.insert((clock::now() + wait, self.next_timer), timer);
    }

    async fn timers_due(&mut self, now: Instant) {
        if self.registrar.next_timeout().is_some_and(|at| at <= now) {
            let changes = self.registrar.handle_timeout(now);
            self.apply(changes).await;
        }
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            match entry.remove() {
                Timer::Query(sn) => self.query_overdue(sn).await,
                Timer::Assembly(sn) => self.assembly_overdue(now, sn).await,
                Timer::Catalog(device, round) => self.catalog_due(device, round).await,
                Timer::Subscription(device, topic, round) => self.subscription_due(device, topic, round).await,
                Timer::Call(token, n) => self.feed(token, super::call::CallInput::Timer(n)).await,
                Timer::Flush => self.flush(),
                Timer::Figures => self.count_devices(),
                Timer::Interviews => self.next_interviews().await,
                Timer::Slot(device, sn) => self.slot_overdue(&device, sn).await,
            }
        }
    }

    // ---- SIP ----

    async fn on_sip(&mut self, event: Event) {
        let now = clock::now();
        match event {
            Event::Request { tx, request, flow } => self.on_request(now, tx, request, flow).await,
            Event::Response { tx, response, flow, repeat } => {
                if !repeat && response.status >= 200 {
                    self.on_response(tx, response, flow).await;
                }
            }
            Event::ClientFailed { tx, .. } => self.on_failed(tx).await,
            Event::ConnClosed { conn } => {
                let changes = self.registrar.connection_closed(conn);
                self.apply(changes).await;
            }
            // No INVITE of a device is ever accepted.
            Event::Ack { .. } | Event::Cancelled { .. } | Event::NoAck { .. } => {}
        }
    }

    async fn on_request(&mut self, now: Instant, tx: ServerTxId, request: Request, flow: Flow) {
        match request.method.as_str() {
            "REGISTER" => self.on_register(now, tx, request, flow).await,
            "OPTIONS" => {
                let mut response = response_to(&request, &flow, 200, None, "");
                response.headers.push("Allow", crate::transport::sip_driver::ALLOWED_METHODS.join(", "));
                self.respond_with(tx, response).await;
            }
            method => {
                let id = request.headers.from_user().and_then(|user| DeviceId::parse(&user).ok());
                let device = self.sender(now, id, &request, &flow);
                match (method, device) {
                    ("MESSAGE", device) => self.on_message(now, tx, request, flow, device).await,
                    (_, None) => self.respond(tx, &request, &flow, 403, "register first").await,
                    ("NOTIFY", Some(device)) => self.on_notify(tx, request, flow, device).await,
                    ("BYE", Some(device)) => self.on_bye(tx, request, flow, device).await,
                    ("INVITE", Some(_)) => {
                        let why = "a device is invited by the platform; nothing was announced to it";
                        self.respond(tx, &request, &flow, 403, why).await;
                    }
                    _ => self.respond(tx, &request, &flow, 403, "not taken from a device").await,
                }
            }
        }
    }

    /// The registered device a request is from. Inside a session some devices write the channel's code into From: the
    /// session then tells whose it is.
    fn sender(&mut self, now: Instant, id: Option<DeviceId>, request: &Request, flow: &Flow) -> Option<DeviceId> {
        let in_dialog = request.headers.to_tag().is_some();
        let call = request.headers.call_id().filter(|_| in_dialog).and_then(|c| self.call_by_id(c));
        let by_call = call.map(|token| self.calls[&token].device);
        let from = id.filter(|id| self.devices.contains_key(id));
        by_call.into_iter().chain(from).find(|id| self.registrar.authenticate_source(now, id, flow).is_some())
    }

    fn answer_taken(&mut self, device: &DeviceId) {
        if let Some(device) = self.devices.get_mut(device) {
            device.answers = device.answers.saturating_sub(1);
        }
    }

    async fn on_response(&mut self, tx: ClientTxId, response: Response, flow: Flow) {
        let Some(pending) = self.pending.remove(&tx) else { return };
        let ok = response.status < 300;
        match pending {
            Pending::Answer { device } => self.answer_taken(&device),
            Pending::Message { device, sn } => {
                if !ok {
                    self.message_refused(device, sn, response.status).await;
                }
            }
            Pending::Control { reply } => {
                let answer = if ok {
                    Ok(crate::catalog::CommandAnswer::Accepted)
                } else {
                    Err(CommandError::Refused(response.status))
                };
                let _ = reply.send(answer);
            }
            Pending::Invite { token, request } => self.on_invite_answer(token, *request, response, flow).await,
            Pending::Subscribe { device, topic, request } => {
                self.on_subscribed(device, topic, &request, &response, flow);
            }
            Pending::Info { reply } => {
                let _ = reply.send(Ok((response.status, response.body)));
            }
            Pending::Goodbye => {}
        }
    }

    async fn on_failed(&mut self, tx: ClientTxId) {
        match self.pending.remove(&tx) {
            Some(Pending::Answer { device }) => self.answer_taken(&device),
            Some(Pending::Message { device, sn }) => self.message_refused(device, sn, 408).await,
            Some(Pending::Control { reply }) => drop(reply.send(Err(CommandError::Timeout))),
            Some(Pending::Invite { token, .. }) => self.on_invite_failed(token, tx).await,
            Some(Pending::Subscribe { device, topic, .. }) => self.subscription_failed(device, topic, 408),
            Some(Pending::Info { reply }) => drop(reply.send(Err(CommandError::Timeout))),
            Some(Pending::Goodbye) | None => {}
        }
    }

    /// The address of ours a device reaches: the one it came to, or the one that leads to it.
    fn local_ip(&self, flow: &Flow) -> IpAddr {
        let ip = flow.local.ip();
        if ip.is_unspecified() { local_ip_towards(flow.peer).unwrap_or(ip) } else { ip }
    }

    fn sent_by(&self, flow: &Flow) -> String {
        let ip = self.cfg.sip_advertised.unwrap_or_else(|| self.local_ip(flow));
        // The listener's port, whatever a connection's is.
        let port = self.deps.listeners.iter().find(|l| l.ip() == flow.local.ip()).or(self.deps.listeners.first());
        SocketAddr::new(ip, port.map_or(flow.local.port(), SocketAddr::port)).to_string()
    }

    fn contact(&self, flow: &Flow) -> String {
        format!("<sip:{}@{}>", self.cfg.gateway_id, self.sent_by(flow))
    }

    fn next_sn(&mut self) -> u32 {
        self.sn = self.sn % 0x7fff_ffff + 1;
        self.sn
    }

    /// A request outside dialogs for `user` (a device or one of its channels), without its body.
    fn request(&mut self, flow: &Flow, method: &str, user: &DeviceId) -> Request {
        self.cseq = self.cseq.wrapping_add(1) % 0x7fff_ffff;
        let mut headers = Headers::new();
        let tag = self.rng.random::<u64>();
        headers.push("From", format!("<sip:{}@{}>;tag={tag:016x}", self.cfg.gateway_id, self.cfg.domain));
        headers.push("To", format!("<sip:{user}@{}>", flow.peer));
        headers.push("Call-ID", format!("{:016x}@{}", self.rng.random::<u64>(), self.local_ip(flow)));
        headers.push("CSeq", format!("{} {method}", self.cseq));
        Request { method: method.into(), uri: format!("sip:{user}@{}", flow.peer), headers, body: Bytes::new() }
    }

    fn message(&mut self, flow: &Flow, device: &DeviceId, body: Vec<u8>) -> Request {
        let mut request = self.request(flow, "MESSAGE", device);
        request.headers.push("Content-Type", "Application/MANSCDP+xml");
        request.body = body.into();
        request
    }

    async fn send(&mut self, flow: Flow, request: Request, pending: Pending) -> Result<ClientTxId, Pending> {
        let via = Some(self.sent_by(&flow));
        match self.deps.sip.request(&self.user, flow, via, request).await {
            Ok(tx) => {
                self.pending.insert(tx, pending);
                Ok(tx)
            }
            Err(e) => {
                tracing::warn!(error = %e, peer = %flow.peer, "request to a device not sent");
                Err(pending)
            }
        }
    }

    async fn respond(&self, tx: ServerTxId, request: &Request, flow: &Flow, status: u16, reason: &str) {
        let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
        let reason = (!reason.is_empty() && status >= 300).then_some(reason);
        self.respond_with(tx, response_to(request, flow, status, reason.as_deref(), "")).await;
    }

    async fn respond_with(&self, tx: ServerTxId, response: Response) {
        if let Err(e) = self.deps.sip.respond(tx, response).await {
            tracing::debug!(error = %e, "answer to a device not sent");
        }
    }

    // ---- what is seen from outside ----

    fn snapshot(&self) -> (Vec<DeviceStatus>, Vec<PendingStatus>) {
        let mut devices: Vec<DeviceStatus> = self
            .devices
            .iter()
            .map(|(id, d)| DeviceStatus {
                id: id.to_string(),
                class: d.class.label(),
                state: d.state,
                reason: d.reason.to_owned(),
                since_ms: d.since_ms,
                source: d.flow.peer.to_string(),
                transport: d.flow.transport.as_str(),
                standard: d.profile.version().as_str(),
                user_agent: d.user_agent.to_string(),
                manufacturer: d.inventory.told.manufacturer.clone().unwrap_or_default(),
                model: d.inventory.told.model.clone().unwrap_or_default(),
                channels: d.inventory.channels(),
                catalog_at_ms: d.inventory.had_at_ms,
                catalog_mode: d.inventory.mode(),
                catalog_policies: d.inventory.policies.clone(),
                catalog_failure: d.inventory.failure.clone(),
                streams: d.streams,
                media_failure: d.media_failure.clone(),
            })
            .collect();
        devices.sort_by(|a, b| a.id.cmp(&b.id));
        let pending = self.registrar.pending().map(|p| PendingStatus {
            id: p.id.to_string(),
            source: p.source.to_string(),
            user_agent: p.user_agent.to_string(),
            tries: u64::from(p.tries),
        });
        (devices, pending.collect())
    }
}
