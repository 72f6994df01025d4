//! The owner of alarms on their way in: batches them into the store, latches device alarms, ages the outbox.
//!
//! In: submissions and resets by one bounded queue. Out: receipts, after the commit; a wake-up for the links.
//! Invariants: a batch is one transaction, repeated as a whole until it is in or refused as a whole, so that nothing
//! overtakes anything; a latch ends by a reset or after [`AlarmConfig::latch_limit`], and is never for ever.
//! Bounds: [`INBOX`] requests wait, then submissions are refused at once; a store that does not take a batch within
//! [`STORE_WAITS`] refuses it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::{AlarmEvent, AlarmReset};
use crate::catalog::{Channel, DirectoryHandle, DirectorySnapshot, ViewSpec};
use crate::clock::WallClock;
use crate::metrics::{Metrics, OTHER, PeerLabel};
use crate::store::{
    AppendRules, Appended, LatchReset, NewAlarm, PRUNE_MAX, PruneRules, Released, StoreError, StoreHandle,
};

/// Requests that may wait: a burst of 1,000 a second over a second of stalled disk. Overflow: refused at once, and the
/// device, which gets no answer, sends again.
pub const INBOX: usize = 1024;
/// Alarms that share one commit at most.
const BATCH: usize = 256;
/// Pauses before a batch is tried again: 6.3 s in all, well within the 32 s a device waits for its SIP answer
/// [RFC3261 17.1.2.2].
const STORE_WAITS: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_millis(3200),
];
/// The unit in which ages are counted.
const TICK: Duration = Duration::from_secs(600);
const DAY: Duration = Duration::from_secs(86_400);

/// How alarms are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlarmConfig {
    /// The same device, SN, time, method and type within this time is the same alarm, sent again.
    pub dedup_window: Duration,
    /// A device alarm (AlarmMethod 2) holds back the following ones of its channel until a reset
    /// [GB/T28181-2022 A.2.5.3], for so long at most: many platforms never reset, so a channel whose latch ran out is
    /// not latched again before somebody does. `None`: nothing is ever held.
    pub latch_limit: Option<Duration>,
    /// Alarms one uplink may owe; above, its oldest are given up and counted.
    pub outbox_max: u64,
    /// Running time after which an alarm nobody could be told of is given up and counted.
    pub outbox_age: Duration,
    /// Running time an alarm stays in the log.
    pub log_age: Duration,
    /// Alarms that stay in the log.
    pub log_max: u64,
}

impl Default for AlarmConfig {
    /// A day of a busy compound, a week of an absent platform, 400 days of log (13 months of evidence).
    fn default() -> Self {
        AlarmConfig {
            dedup_window: Duration::from_secs(300),
            latch_limit: Some(Duration::from_secs(600)),
            outbox_max: 100_000,
            outbox_age: 7 * DAY,
            log_age: 400 * DAY,
            log_max: 1_000_000,
        }
    }
}

/// What the service works with.
#[derive(Debug, Clone)]
pub struct AlarmDeps {
    /// Where alarms are kept.
    pub store: StoreHandle,
    /// Channels.
    pub directory: DirectoryHandle,
    /// Counters.
    pub metrics: Metrics,
    /// The protocol clock.
    pub wall: WallClock,
}

/// Why an alarm was not taken in. It must not be acknowledged to the device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The queue is full.
    #[error("alarm not taken in: {INBOX} wait already: answer 503, the device sends it again")]
    Overloaded,
    /// The store does not take it.
    #[error("alarm not taken in: {0}")]
    Storage(#[from] StoreError),
    /// The service has stopped.
    #[error("alarm not taken in: the program is stopping: answer 503, the device sends it again")]
    Stopped,
}

/// What became of a submitted alarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receipt {
    /// It is on the disk, and every uplink that may see it will be told: acknowledge it.
    Stored {
        /// Its number in the log.
        id: i64,
    },
    /// It is on the disk since an earlier submission: acknowledge it.
    Duplicate,
    /// It is not: do not acknowledge it.
    Refused(Refusal),
}

enum Request {
    Submit(Box<AlarmEvent>, oneshot::Sender<Receipt>),
    Reset(AlarmReset, oneshot::Sender<Result<usize, Refusal>>),
}

type Audience = BTreeMap<Arc<str>, ViewSpec>;

/// The way to the service; cheap to clone.
#[derive(Debug, Clone)]
pub struct AlarmInbox {
    tx: mpsc::Sender<Request>,
    news: watch::Receiver<u64>,
    audience: watch::Sender<Audience>,
    metrics: Metrics,
}

impl AlarmInbox {
    /// Hands an alarm over, now; the future tells what became of it, and need not be awaited.
    pub fn submit(&self, event: AlarmEvent) -> impl Future<Output = Receipt> + Send + 'static {
        let (reply, receipt) = oneshot::channel();
        let queued = self.tx.try_send(Request::Submit(Box::new(event), reply));
        if matches!(queued, Err(mpsc::error::TrySendError::Full(_))) {
            self.metrics.alarm_dropped("overloaded", 1);
        }
        async move {
            match queued {
                Ok(()) => receipt.await.unwrap_or(Receipt::Refused(Refusal::Stopped)),
                Err(mpsc::error::TrySendError::Full(_)) => Receipt::Refused(Refusal::Overloaded),
                Err(mpsc::error::TrySendError::Closed(_)) => Receipt::Refused(Refusal::Stopped),
            }
        }
    }

    /// Ends latches; what they held back goes out. Returns how many there were.
    ///
    /// # Errors
    /// As for an alarm: the latches stand.
    pub async fn reset(&self, reset: AlarmReset) -> Result<usize, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.tx.send(Request::Reset(reset, reply)).await.map_err(|_| Refusal::Stopped)?;
        answer.await.unwrap_or(Err(Refusal::Stopped))
    }

    /// This uplink is owed every alarm of a channel that `spec` shares, from now on. A second call replaces `spec`.
    pub fn set_audience(&self, uplink: &str, spec: ViewSpec) {
        self.audience.send_modify(|audience| drop(audience.insert(uplink.into(), spec)));
    }

    /// The uplink has left the configuration: it is owed no further alarm. What it was owed already stays so, for its
    /// return, until it is too old.
    pub fn remove_audience(&self, uplink: &str) {
        self.audience.send_modify(|audience| drop(audience.remove(uplink)));
    }

    /// Changes whenever there is something new in the outbox: read it from the store.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.clone()
    }
}

/// A latch that runs out.
struct Limit {
    channel: String,
    latch: u64,
    sleep: Pin<Box<Sleep>>,
}

/// The service; see the file's head.
pub struct Alarms {
    cfg: AlarmConfig,
    deps: AlarmDeps,
    rx: mpsc::Receiver<Request>,
    news: watch::Sender<u64>,
    audience: watch::Receiver<Audience>,
    /// Latched channels, and which of their latches it is.
    latched: HashMap<String, u64>,
    latches: u64,
    /// In the order they run out, ended ones among them.
    limits: VecDeque<Limit>,
    /// Channels whose latch ran out without a reset: not latched before there is one.
    relaxed: HashSet<String>,
}

impl Alarms {
    /// The service and the way to it.
    pub fn new(cfg: AlarmConfig, deps: AlarmDeps) -> (Alarms, AlarmInbox) {
        let (tx, rx) = mpsc::channel(INBOX);
        let (news, heard) = watch::channel(0);
        let (audience, listeners) = watch::channel(Audience::new());
        let inbox = AlarmInbox { tx, news: heard, audience, metrics: deps.metrics.clone() };
        let alarms = Alarms {
            cfg,
            deps,
            rx,
            news,
            audience: listeners,
            latched: HashMap::new(),
            latches: 0,
            limits: VecDeque::new(),
            relaxed: HashSet::new(),
        };
        (alarms, inbox)
    }

    /// Runs until cancelled. What waits then is refused.
    ///
    /// # Errors
    /// The store's, when what is latched cannot be read at the start.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), StoreError> {
        if self.cfg.latch_limit.is_none() {
            // What an earlier setting held.
            self.release(LatchReset::default()).await?;
        }
        for channel in self.deps.store.latched_channels().await? {
            self.latch(channel);
        }
        let mut ticks = tokio::time::interval(TICK);
        let mut requests = Vec::with_capacity(BATCH);
        // Of the first tick, which comes at once, no time has passed.
        let mut ticked = false;
        loop {
            let limit = async {
                match self.limits.front_mut() {
                    Some(limit) => limit.sleep.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = limit => self.latch_ran_out().await,
                _ = ticks.tick() => {
                    self.prune(ticked).await;
                    ticked = true;
                }
                n = self.rx.recv_many(&mut requests, BATCH) => {
                    if n == 0 {
                        return Ok(());
                    }
                    let work = self.serve(&mut requests);
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Ok(()),
                        () = work => {}
                    }
                }
            }
        }
    }

    async fn serve(&mut self, requests: &mut Vec<Request>) {
        let mut batch = Vec::with_capacity(requests.len());
        for request in requests.drain(..) {
            match request {
                Request::Submit(event, reply) => batch.push((event, reply)),
                Request::Reset(reset, reply) => {
                    // What was submitted before it is latched before it.
                    self.keep(std::mem::take(&mut batch)).await;
                    let _ = reply.send(self.reset(reset).await);
                }
            }
        }
        self.keep(batch).await;
    }

    // ---- taking in ----

    async fn keep(&mut self, batch: Vec<(Box<AlarmEvent>, oneshot::Sender<Receipt>)>) {
        if batch.is_empty() {
            return;
        }
        let snapshot = self.deps.directory.now();
        let mut alarms = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        for (event, reply) in batch {
            alarms.push(self.new_alarm(*event, &snapshot));
            replies.push(reply);
        }
        match self.append(&alarms).await {
            Ok(results) => self.kept(&alarms, results, replies),
            // One of them must be the fault, and shall not take the others with it.
            Err(error) if !is_passing(&error) && alarms.len() > 1 => {
                for (alarm, reply) in alarms.into_iter().zip(replies) {
                    match self.append(std::slice::from_ref(&alarm)).await {
                        Ok(results) => self.kept(&[alarm], results, vec![reply]),
                        Err(error) => self.refuse(error, vec![reply]),
                    }
                }
            }
            Err(error) => self.refuse(error, replies),
        }
    }

    fn new_alarm(&self, event: AlarmEvent, snapshot: &DirectorySnapshot) -> NewAlarm {
        let channel = snapshot.channels.get(event.channel.as_str());
        // Of a device itself, or of something at it that is no channel: for all who see a channel of that device.
        let node = snapshot.nodes.get(event.channel.as_str());
        let device = node.map(|node| snapshot.root_of(&node.id));
        let below = |c: &Channel| device.is_some() && c.parent.as_deref().map(|p| snapshot.root_of(p)) == device;
        let sees = |spec: &ViewSpec| snapshot.channels.values().any(|c| below(c) && spec.shares(c));
        let owed = |spec: &ViewSpec| {
            spec.local_id == event.channel || channel.map_or_else(|| device.is_some() && sees(spec), |c| spec.shares(c))
        };
        let audience = self.audience.borrow();
        let uplinks = audience.iter().filter(|(_, spec)| owed(spec)).map(|(name, _)| name.clone()).collect();
        drop(audience);
        let record = event.into_record();
        let latch = self.cfg.latch_limit.is_some() && !self.relaxed.contains(&record.channel);
        NewAlarm { record, uplinks, latch }
    }

    /// Tries again while the store may come back.
    async fn append(&self, alarms: &[NewAlarm]) -> Result<Vec<Appended>, StoreError> {
        let rules = AppendRules {
            dedup_window_ms: i64::try_from(self.cfg.dedup_window.as_millis()).unwrap_or(i64::MAX),
            outbox_max: self.cfg.outbox_max,
        };
        let mut waits = STORE_WAITS.iter();
        loop {
            let error = match self.deps.store.append_alarms(alarms.to_vec(), rules).await {
                Err(error) if is_passing(&error) => error,
                result => return result,
            };
            let Some(wait) = waits.next() else { return Err(error) };
            tracing::warn!(alarms = alarms.len(), %error, "alarms cannot be stored, trying again");
            tokio::time::sleep(*wait).await;
        }
    }

    fn kept(&mut self, alarms: &[NewAlarm], results: Vec<Appended>, replies: Vec<oneshot::Sender<Receipt>>) {
        let metrics = &self.deps.metrics;
        let mut latched = Vec::new();
        for ((alarm, result), reply) in alarms.iter().zip(results).zip(replies) {
            let NewAlarm { record, uplinks, .. } = alarm;
            let receipt = match result {
                Appended::Duplicate => {
                    metrics.alarm_dropped("duplicate", 1);
                    Receipt::Duplicate
                }
                Appended::Stored { id, latched: latches, held, dropped } => {
                    metrics.alarm_received(record.method);
                    tracing::info!(
                        id,
                        channel = record.channel,
                        device = record.device,
                        priority = record.priority,
                        method = record.method,
                        kind = record.kind,
                        uplinks = uplinks.len(),
                        held,
                        "alarm"
                    );
                    for uplink in uplinks {
                        self.moved(uplink, 1);
                    }
                    for uplink in &dropped {
                        self.moved(uplink, -1);
                    }
                    if !dropped.is_empty() {
                        metrics.alarm_dropped("overrun", dropped.len() as u64);
                        tracing::warn!(uplink = %dropped[0], rows = dropped.len(), max = self.cfg.outbox_max,
                            "too many alarms wait for the platform: the oldest is given up");
                    }
                    if latches {
                        latched.push(record.channel.clone());
                    }
                    Receipt::Stored { id }
                }
            };
            // A device that no longer waits for its answer has still been heard.
            let _ = reply.send(receipt);
        }
        for channel in latched {
            self.latch(channel);
        }
        self.news.send_modify(|n| *n += 1);
    }

    fn refuse(&self, error: StoreError, replies: Vec<oneshot::Sender<Receipt>>) {
        tracing::error!(alarms = replies.len(), %error, "alarms refused: they cannot be stored");
        self.deps.metrics.alarm_dropped("storage", replies.len() as u64);
        for reply in replies {
            let _ = reply.send(Receipt::Refused(error.clone().into()));
        }
    }

    fn moved(&self, uplink: &str, by: i64) {
        if let Some(label) = self.label(uplink) {
            self.deps.metrics.alarm_outbox_moved(&label, by);
        }
    }

    fn label(&self, uplink: &str) -> Option<PeerLabel> {
        Some(self.deps.metrics.peer(uplink)).filter(|label| label.as_str() != OTHER)
    }

    // ---- latches ----

    fn latch(&mut self, channel: String) {
        let Some(limit) = self.cfg.latch_limit else { return };
        self.latches += 1;
        self.latched.insert(channel.clone(), self.latches);
        // All limits are equally long: the newest runs out last.
        self.limits.push_back(Limit { channel, latch: self.latches, sleep: Box::pin(tokio::time::sleep(limit)) });
    }

    async fn reset(&mut self, reset: AlarmReset) -> Result<usize, Refusal> {
        if !reset.methods.is_empty() && !reset.methods.contains(&2) {
            return Ok(0);
        }
        match &reset.channel {
            Some(channel) => drop(self.relaxed.remove(channel.as_str())),
            None => self.relaxed.clear(),
        }
        let channel = reset.channel.map(|c| c.to_string());
        let released = self.release(LatchReset { channel, kind: reset.kind, relatch: true }).await?;
        Ok(released.len())
    }

    async fn latch_ran_out(&mut self) {
        let Some(limit) = self.limits.pop_front() else { return };
        let channel = limit.channel;
        if self.latched.get(&channel) != Some(&limit.latch) {
            return;
        }
        let reset = LatchReset { channel: Some(channel.clone()), kind: None, relatch: false };
        match self.release(reset).await {
            Ok(_) => {
                tracing::warn!(channel, limit = ?self.cfg.latch_limit, "no platform has reset this device alarm: \
                    further ones of the channel are sent without waiting for a reset");
                self.relaxed.insert(channel);
            }
            // It stands, and is tried again after the same time.
            Err(error) => {
                tracing::warn!(channel, %error, "latch not cleared");
                self.latch(channel);
            }
        }
    }

    async fn release(&mut self, reset: LatchReset) -> Result<Vec<Released>, StoreError> {
        let released = self.deps.store.reset_latches(reset).await?;
        for Released { channel, rows, latched } in &released {
            self.latched.remove(channel);
            tracing::info!(channel, rows, "device alarm reset");
            if *latched {
                self.latch(channel.clone());
            }
        }
        // A latch that is over needs no limit; they would pile up where alarm and reset follow quickly.
        let latched = &self.latched;
        self.limits.retain(|limit| latched.get(&limit.channel) == Some(&limit.latch));
        self.news.send_modify(|n| *n += 1);
        Ok(released)
    }

    // ---- ageing ----

    async fn prune(&self, mut tick: bool) {
        let ticks = |age: Duration| i64::try_from(age.as_secs() / TICK.as_secs()).unwrap_or(i64::MAX);
        let rules = PruneRules {
            outbox_ticks: ticks(self.cfg.outbox_age),
            log_ticks: ticks(self.cfg.log_age),
            log_max: i64::try_from(self.cfg.log_max).unwrap_or(i64::MAX),
        };
        loop {
            let pruned = match self.deps.store.prune_alarms(rules, tick, self.deps.wall.unix().as_millis() as i64).await
            {
                Ok(pruned) => pruned,
                Err(error) => {
                    tracing::warn!(%error, "alarms not pruned");
                    return;
                }
            };
            tick = false;
            if pruned.expired > 0 {
                self.deps.metrics.alarm_dropped("expired", pruned.expired);
                tracing::warn!(rows = pruned.expired, "alarms given up: their platform was away for too long");
            }
            for (uplink, undone) in &pruned.undone {
                if let Some(label) = self.label(uplink) {
                    self.deps.metrics.alarm_outbox(&label, *undone);
                }
            }
            if pruned.expired.max(pruned.forgotten) < u64::from(PRUNE_MAX) {
                return;
            }
        }
    }
}

/// True where the same request may succeed a little later.
fn is_passing(error: &StoreError) -> bool {
    matches!(error, StoreError::DiskFull | StoreError::Overloaded | StoreError::Io(_) | StoreError::ReadOnly)
}
