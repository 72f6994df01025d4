//! One upper platform: the actor that registers with it, answers it and gives out streams to it.
//! Standard: [GB/T28181-2022 9], the lower platform's side.
//! In: SIP events, answers of the hub, sink events, directory changes, time. Out: SIP requests and answers, sinks,
//! [`UplinkStatus`]. Owner: one task per uplink; what it decides is in the pure pieces beside it.
//! Invariants: requests come from this platform only (the driver routes by address and code); nothing here waits for
//! a camera, a disk or a peer: such answers come back as inputs of the loop.
//! Bounds: `max_sessions` calls, [`MAX_SUBSCRIPTIONS`] subscriptions, [`MAX_REPLIES`] list answers at a time (a new query
//! supersedes an old one of its kind and device), [`CLOSE_LIMIT`] for the goodbye.
//! Files: `alarms`, `register`, `requests`, `relay`, `subscribe`, `calls`, `records`, `publish` hold the methods of their subject.

mod alarms;
mod calls;
mod publish;
mod records;
mod register;
mod relay;
mod requests;
mod subscribe;

use alarms::Alarms;
use calls::{CallEntry, stream_number, transport_name};
use records::{Record, kind_word};
use register::{contact, host_ip, host_port, profile_of, registration, route};
use relay::{Control, Relay};

use super::alarm_notify::Read;
use super::call::{Call, CallInput, CallOutput, CallState};
use super::invite::{self, Refusal, Wanted};
use super::ladder::{Ladder, Rung};
use super::message::{self, Allowed, Context, Then};
use super::paged_reply::{HEAD, ListAnswer, PageSize, PagedReply, UDP_MESSAGE};
use super::relayed::Asked as AskedOf;
use super::status::{CallStatus, UplinkStatus};
use super::subscription::{Asked, DEFAULT_EXPIRES, MAX_EXPIRES, Subscription, Telling};
use super::{LinkConfig, LinkDeps};
use crate::catalog::{
    Channel, CommandAnswer, CommandError, DirectorySnapshot, RecordEvent, RecordSession, View, ViewSpec,
    shared_channel, view,
};
use crate::clock;
use crate::config::{DialogMatch as DialogPolicy, H265Policy, Permission, SsrcPolicy, Standard, Transport as Via};
use crate::media::{
    AudioCodec, SinkEnd, SinkEvent, SinkId, SinkLease, SinkMeters, SinkReady, SinkSpec, SinkTransport, SourceHandle,
    StreamKey, SubscribeError, Tracks, VideoCodec,
};
use crate::metrics::{Counter, PeerLabel, RtpSent, SessionCount, SessionKind, SessionTransport};
use crate::proto::gb28181::{Charset, DeviceId, Profile, UnixMillis, Version};
use crate::proto::manscdp::notify::Keepalive;
use crate::proto::manscdp::response::{device_status, read_result, result};
use crate::proto::manscdp::{self, Incoming, QueryKind, Root, Status};
use crate::proto::mansrtsp;
use crate::proto::sdp::ssrc::{Generator, format_y};
use crate::proto::sdp::{
    Answer as SdpAnswer, AudioCodec as SdpAudio, AudioParams, F, MediaTransport, Resolution, SessionKind as OfferKind,
    VideoCodec as SdpVideo, VideoParams,
};
use crate::proto::sip::dialog::{Dialog, DialogMatch};
use crate::proto::sip::digest::{DigestClient, pick_challenge};
use crate::proto::sip::endpoint::{ClientFailure, ClientTxId, Event, ServerTxId, response_to};
use crate::proto::sip::header;
use crate::proto::sip::message::{ConnId, Flow, Headers, Request, Response, Transport};
use crate::proto::sip::registration::{
    Answer, Kind, Reason, RedirectTarget, Registration, RegistrationConfig, RegistrationOutput, State,
};
use crate::store::{Actor, AuditEntry, OutboxRow, Outcome, StoreError};
use crate::transport::port_pool::{MediaSockets, PoolError, PortUse};
use crate::transport::sip_driver::{PeerAddr, Route, UserId};
use crate::transport::sockopt::local_ip_towards;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// An upper platform needs one; a few more while it restarts.
const MAX_SUBSCRIPTIONS: usize = 16;
/// BYEs and the unregistering must be done within this when the link stops.
const CLOSE_LIMIT: Duration = Duration::from_secs(4);
/// Sink events: two per session and a margin.
const SINK_EVENTS: usize = 4096;
/// Ended sinks remembered: more than ever wait for the hub's answer about a moment ago.
const ENDED_SINKS: usize = 256;
/// A keepalive outside its turn because a channel failed or came back, at most so often.
const FAULT_KEEPALIVE: Duration = Duration::from_secs(5);
/// The same refused control of the same channel is recorded once in this time: a peer that repeats itself must not fill
/// the disk.
const REFUSAL_AUDIT: Duration = Duration::from_secs(60);
/// List answers under way at once: an operator's screen asks for a few; the oldest gives way.
const MAX_REPLIES: usize = 16;
/// Refusals remembered for that.
const MAX_REFUSALS: usize = 256;
/// A larger difference to the platform's clock is a step, which is logged and recorded; a smaller one is slewed.
const CLOCK_STEP: i64 = 2_000;
/// Slewing: milliseconds a second.
const CLOCK_SLEW: i64 = 50;
/// News of many sessions are told at most so often: each costs a copy of them all, and a hundred INVITEs come at once.
const PUBLISH_GAP: Duration = Duration::from_millis(20);
/// Up to so many sessions it costs too little to wait.
const CHEAP_TO_PUBLISH: usize = 8;

enum Pending {
    Register,
    Keepalive { sn: u32, sent: Instant },
    Page { answer: u64 },
    Reply,
    Notify { call_id: String },
    MediaStatus { key: u64 },
    Alarm { seq: i64 },
    Bye,
}

enum Job {
    Subscribed {
        key: u64,
        result: Result<SinkReady, SubscribeError>,
    },
    KeyFrame {
        tx: ServerTxId,
        request: Box<Request>,
        flow: Flow,
        streams: Vec<StreamKey>,
        recorded: bool,
    },
    Opened {
        key: u64,
        result: Result<RecordSession, CommandError>,
    },
    RecordNews {
        key: u64,
        event: Option<RecordEvent>,
        events: mpsc::Receiver<RecordEvent>,
    },
    Controlled {
        key: u64,
        tx: ServerTxId,
        request: Box<Request>,
        flow: Flow,
        asked: mansrtsp::Request,
        result: Result<(u16, Bytes), CommandError>,
    },
    ControlRecorded {
        number: u64,
        recorded: bool,
    },
    Relayed {
        number: u64,
        result: Result<CommandAnswer, CommandError>,
    },
    AlarmRows {
        read: Read,
        rows: Result<Vec<OutboxRow>, StoreError>,
    },
    Recorded,
}

/// See the file's head.
pub(super) struct Link {
    cfg: LinkConfig,
    deps: LinkDeps,
    user: UserId,
    label: PeerLabel,
    local_id: DeviceId,
    registration: Registration,
    events: mpsc::Receiver<Event>,
    sink_events: mpsc::Receiver<(SinkId, SinkEvent)>,
    sink_tx: mpsc::Sender<(SinkId, SinkEvent)>,
    /// Sinks that ended before their call knew them, newest first.
    ended_sinks: VecDeque<SinkId>,
    jobs: JoinSet<Job>,
    pending: HashMap<ClientTxId, Pending>,
    calls: HashMap<u64, CallEntry>,
    next_call: u64,
    subscriptions: Vec<Subscription>,
    /// List answers under way, by number: what comes back for the page of a superseded one is of no interest.
    replies: BTreeMap<u64, PagedReply>,
    alarms: Alarms,
    answers: u64,
    /// Controls that wait for their audit record, in the order they came.
    controls: VecDeque<Control>,
    /// What is with the owners of channels, by number.
    relays: HashMap<u64, Relay>,
    next_relay: u64,
    profile: Profile,
    spec: ViewSpec,
    view: Arc<View>,
    /// What `view` was made of.
    seen: Option<Arc<DirectorySnapshot>>,
    faulty: Vec<DeviceId>,
    /// As the last keepalive said.
    told_faulty: Vec<DeviceId>,
    fault_keepalive: Option<Instant>,
    fault_due: Option<Instant>,
    refusals: HashMap<(&'static str, DeviceId), Instant>,
    peer: SocketAddr,
    redirected: Option<RedirectTarget>,
    redirect_unusable: bool,
    conn: Option<ConnId>,
    route_ip: Option<IpAddr>,
    learned: (Option<IpAddr>, Option<u16>),
    rng: StdRng,
    sn: u32,
    ssrcs: Option<Generator>,
    cseq: u32,
    ladder: Ladder,
    state_since: i64,
    why: String,
    /// Status and phrase of the last REGISTER that was refused, and whom it was answered for if not us.
    refused: String,
    published: Option<(Instant, &'static str)>,
    publish_due: Option<Instant>,
    clock_offset: Option<i64>,
    clock_target: Option<i64>,
    slew_at: Option<Instant>,
    closing: Option<Instant>,
    unregistered: bool,
    drops: (Counter, Counter),
    sent: RtpSent,
}

impl Link {
    /// Registers the uplink with the SIP driver. None when the driver has stopped.
    pub(super) async fn new(cfg: LinkConfig, deps: LinkDeps, seed: u64) -> Option<Link> {
        let mut rng = StdRng::seed_from_u64(seed);
        let user = UserId::new(cfg.uplink.name.as_str());
        let label = deps.metrics.add_uplink(&cfg.uplink.name);
        let local_id = DeviceId::parse(cfg.uplink.local_id.as_str()).ok()?;
        let peer = cfg.uplink.server_addr;
        let profile = profile_of(&cfg, None);
        let spec = cfg.view_spec(local_id, profile.version());
        let (sink_tx, sink_events) = mpsc::channel(SINK_EVENTS);
        let events =
            deps.sip.register_user(user.clone(), vec![route(&cfg, peer, cfg.uplink.server_id.as_str())]).await.ok()?;
        let route_ip = cfg.bind_ip().or_else(|| local_ip_towards(peer).ok());
        let scope = format!("uplink:{}", cfg.uplink.name);
        let known = deps.store.learnt(&scope).await.unwrap_or_default();
        let learned =
            (known.get("received").and_then(|v| v.parse().ok()), known.get("rport").and_then(|v| v.parse().ok()));
        let registration = registration(&cfg, &mut rng, contact(&cfg, learned, route_ip), profile);
        let drops = (deps.metrics.rtp_dropped(&label, "slow_receiver"), deps.metrics.rtp_dropped(&label, "send_error"));
        let sent = deps.metrics.rtp_sent(&label);
        let ssrcs = Generator::new(&local_id, rng.random());
        Some(Link {
            user,
            label,
            local_id,
            registration,
            events,
            sink_events,
            sink_tx,
            ended_sinks: VecDeque::with_capacity(ENDED_SINKS),
            jobs: JoinSet::new(),
            pending: HashMap::new(),
            calls: HashMap::new(),
            next_call: 1,
            subscriptions: Vec::new(),
            alarms: Alarms::new(deps.alarms.news(), &mut rng),
            replies: BTreeMap::new(),
            answers: 0,
            controls: VecDeque::new(),
            relays: HashMap::new(),
            next_relay: 1,
            profile,
            spec,
            view: Arc::default(),
            seen: None,
            faulty: Vec::new(),
            told_faulty: Vec::new(),
            fault_keepalive: None,
            fault_due: None,
            refusals: HashMap::new(),
            peer,
            redirected: None,
            redirect_unusable: false,
            conn: None,
            route_ip,
            learned,
            rng,
            sn: 0,
            ssrcs,
            cseq: 0,
            ladder: Ladder::default(),
            state_since: deps.wall.unix().as_millis() as i64,
            why: String::new(),
            refused: String::new(),
            published: None,
            publish_due: None,
            clock_offset: None,
            clock_target: None,
            slew_at: None,
            closing: None,
            unregistered: false,
            drops,
            sent,
            cfg,
            deps,
        })
    }

    /// Runs until cancelled and said goodbye.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let mut directory = self.deps.directory.watch();
        let now_ms = self.now_ms();
        match self.route_ip {
            Some(ip) => self.ladder.ok(Rung::Route, now_ms, format!("from {ip} to {}", self.peer)),
            None => self.ladder.failed(Rung::Route, now_ms, None, format!("no route to {}", self.peer)),
        }
        self.registration.start(clock::now());
        loop {
            self.drain_registration().await;
            self.serve_alarms(clock::now()).await;
            self.publish_soon(clock::now());
            if self.is_finished() {
                break;
            }
            let due = self.next_timeout();
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
                Some((sink, event)) = self.sink_events.recv() => self.on_sink(sink, event).await,
                Some(job) = self.jobs.join_next() => if let Ok(job) = job { self.on_job(job).await },
                Ok(()) = self.alarms.news.changed() => self.alarms.queue.news(),
                Ok(()) = directory.changed() => self.on_directory(clock::now()),
                () = sleep => self.on_timeout().await,
            }
        }
        // Who has not acknowledged by now will not: a BYE is the best that can be said.
        for key in self.calls.keys().copied().collect::<Vec<_>>() {
            self.feed(key, CallInput::NoAck).await;
        }
        self.publish();
        let _ = self.deps.sip.remove_user(self.user.clone()).await;
        self.deps.metrics.uplink_registered(&self.label, false);
    }

    fn now_ms(&self) -> i64 {
        self.deps.wall.unix().as_millis() as i64
    }

    fn is_finished(&self) -> bool {
        let Some(deadline) = self.closing else { return false };
        let byes = self.pending.values().any(|p| matches!(p, Pending::Bye));
        clock::now() >= deadline || (self.unregistered && !byes && self.calls.is_empty())
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.registration
            .next_timeout()
            .into_iter()
            .chain(self.subscriptions.iter().map(Subscription::next_timeout))
            .chain(self.alarms_due())
            .chain(self.fault_due)
            .chain(self.slew_at)
            .chain(self.publish_due)
            .chain(self.records_due())
            .chain(self.closing)
            .min()
    }

    async fn on_timeout(&mut self) {
        let now = clock::now();
        self.registration.timeout(now);
        if self.fault_due.is_some_and(|t| now >= t) {
            self.fault_due = None;
            self.look_for_faults(now);
        }
        if self.slew_at.is_some_and(|t| now >= t) {
            self.slew(now);
        }
        self.serve_records(now).await;
        self.serve_subscriptions(now).await;
    }

    async fn begin_closing(&mut self) {
        let now = clock::now();
        self.closing = Some(now + CLOSE_LIMIT);
        self.replies.clear();
        self.relays.clear();
        let keys: Vec<u64> = self.calls.keys().copied().collect();
        for key in keys {
            self.feed(key, CallInput::Drop).await;
        }
        for subscription in std::mem::take(&mut self.subscriptions) {
            self.terminate(subscription, "deactivated").await;
        }
        self.end_alarm_subscriptions().await;
        self.registration.stop(now);
    }

    // ---- sending ----

    fn transport(&self) -> Transport {
        match self.cfg.uplink.transport {
            Via::Udp => Transport::Udp,
            Via::Tcp => Transport::Tcp,
            Via::Tls => Transport::Tls,
        }
    }

    fn flow(&self) -> Flow {
        // A connection of ours leaves from the address this uplink is bound to, whatever the listener's is.
        let local = self.cfg.uplink.bind.set().unwrap_or(self.cfg.listener.ip());
        let local = SocketAddr::new(local, self.cfg.listener.port());
        Flow { transport: self.transport(), local, peer: self.peer, conn: None }
    }

    /// Where requests inside a dialog go: over UDP to where its request came from (large platforms have a port for each
    /// of their servers); over TCP on the connection it was made on while that lives, else to the platform's own address,
    /// because nobody listens at the other end of a connection.
    fn dialog_flow(&self, made_on: Flow) -> Flow {
        let flow = self.flow();
        let same = made_on.transport == flow.transport && made_on.peer.ip() == flow.peer.ip();
        if same && made_on.transport.is_reliable() { Flow { conn: made_on.conn, ..flow } } else { made_on }
    }

    fn sent_by(&self) -> String {
        host_port(&self.cfg, self.learned, self.route_ip)
    }

    async fn send(&mut self, request: Request, pending: Pending) -> bool {
        let flow = self.flow();
        self.send_on(flow, request, pending).await
    }

    async fn send_on(&mut self, flow: Flow, request: Request, pending: Pending) -> bool {
        let via = Some(self.sent_by());
        match self.deps.sip.request(&self.user, flow, via, request).await {
            Ok(tx) => {
                self.pending.insert(tx, pending);
                true
            }
            Err(e) => {
                tracing::warn!(uplink = %self.user, error = %e, "request not sent");
                false
            }
        }
    }

    /// A MESSAGE to the platform with an XML body.
    fn message(&mut self, body: Vec<u8>) -> Request {
        self.cseq = self.cseq.wrapping_add(1) % 0x7fff_ffff;
        let server = self.server_id().to_owned();
        let domain = &self.cfg.uplink.domain;
        let mut headers = Headers::new();
        headers.push("From", format!("<sip:{}@{domain}>;tag={:016x}", self.local_id, self.rng.random::<u64>()));
        headers.push("To", format!("<sip:{server}@{domain}>"));
        headers.push("Call-ID", format!("{:016x}@{}", self.rng.random::<u64>(), self.cfg.listener.ip()));
        headers.push("CSeq", format!("{} MESSAGE", self.cseq));
        headers.push("Content-Type", "Application/MANSCDP+xml");
        Request { method: "MESSAGE".into(), uri: format!("sip:{server}@{}", self.peer), headers, body: body.into() }
    }

    fn next_sn(&mut self) -> u32 {
        self.sn = self.sn % 0x7fff_ffff + 1;
        self.sn
    }

    fn contact_header(&self) -> String {
        format!("<{}>", contact(&self.cfg, self.learned, self.route_ip))
    }

    async fn respond(&self, tx: ServerTxId, request: &Request, flow: &Flow, status: u16, reason: &str) {
        if status >= 300 {
            return self.refuse(tx, request, flow, &Refusal::new(status, reason)).await;
        }
        self.respond_with(tx, response_to(request, flow, status, None, "")).await;
    }

    async fn respond_with(&self, tx: ServerTxId, response: Response) {
        if let Err(e) = self.deps.sip.respond(tx, response).await {
            tracing::debug!(uplink = %self.user, error = %e, "answer not sent");
        }
    }
}

/// One line, no control characters: fit for a reason phrase or a log field.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}
