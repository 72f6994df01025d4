//! The hub: which stream is pulled where, who wants it, and who is told when it is ready.
//! In: requests of `northbound` (subscribe) and `southbound` (seats, failures), notes of the workers. Out: worker
//! commands, [`SourceRequest`]s to the channel's owner, answers to subscribers. Owner: one task.
//! Invariants: one pull per stream however many sinks; a subscriber is answered exactly once: ready, failed, or
//! after its deadline; the hub never waits for anybody.
//! Bounds: [`INPUTS`] queued inputs (a full queue refuses the subscriber), [`MAX_STREAMS`] streams.

use super::frame::{StreamKey, Tracks};
use super::sink::{SinkId, SinkSpec};
use super::worker::{self, FrameFeed, WorkerCommand, WorkerHandle};
use super::{MediaOptions, StreamId, StreamStats};
use crate::clock::{self, WallClock};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Queued inputs: two bursts of a hundred INVITEs with all their notes.
const INPUTS: usize = 4096;
/// More cameras than any compound has; a bound against a loop in the configuration.
const MAX_STREAMS: usize = 10_000;
/// A source that says nothing at all within this has failed. Below what upper platforms wait for (10 s and more).
const READY_LIMIT: Duration = Duration::from_secs(8);
/// How often waiting subscribers are looked at: whether their time is over, whether they have gone away (CANCEL).
const LOOK: Duration = Duration::from_millis(100);

/// Key frames no farther apart than this need not be asked for.
const KEY_FRAME_NEAR: Duration = Duration::from_secs(2);

/// What the hub is made of.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// For every stream.
    pub options: MediaOptions,
    /// Worker threads.
    pub workers: usize,
    /// Pin worker n to core n.
    pub pin: bool,
}

/// Why a source cannot deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFailure {
    /// Fixed word: `unreachable`, `unauthorised`, `no_video`, `stalled`, …
    pub reason: &'static str,
    /// For the log and the Reason header, without secrets.
    pub text: String,
}

/// To the owner of a channel.
#[derive(Debug)]
pub enum SourceRequest {
    /// Somebody wants this stream: run its pull on the seat.
    Want {
        /// Where to run it; its key says which.
        seat: Seat,
    },
    /// Nobody wants it any more; let it linger as configured.
    Idle {
        /// Which.
        key: StreamKey,
    },
    /// A viewer asks for a key frame.
    KeyFrame {
        /// Which.
        key: StreamKey,
    },
    /// The first sink of a recording was started (its ACK came): the device may send. Told once a stream, and not of live
    /// streams, which run before anybody sees them.
    Started {
        /// Which.
        key: StreamKey,
    },
}

/// The way to the owner of a channel's streams. Defined here, filled by `southbound`, carried by `catalog`.
#[derive(Debug, Clone)]
pub struct SourceHandle {
    tx: mpsc::Sender<SourceRequest>,
}

impl SourceHandle {
    /// Wraps the owner's queue.
    pub fn new(tx: mpsc::Sender<SourceRequest>) -> Self {
        SourceHandle { tx }
    }
    fn send(&self, request: SourceRequest) -> bool {
        self.tx.try_send(request).is_ok()
    }
}

/// Where the pull of one stream runs.
#[derive(Debug, Clone)]
pub struct Seat {
    stream: StreamId,
    key: StreamKey,
    worker: WorkerHandle,
    hub: mpsc::Sender<HubInput>,
}

impl Seat {
    /// The stream.
    pub fn key(&self) -> &StreamKey {
        &self.key
    }

    /// Runs a pull on the stream's worker until it ends or `cancel` fires. `make` is called there. False when the
    /// worker is stuck or gone.
    pub fn run<F, Fut>(&self, cancel: CancellationToken, make: F) -> bool
    where
        F: FnOnce(FrameFeed) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        self.worker.send(WorkerCommand::RunPull {
            id: self.stream,
            make: Box::new(move |feed| Box::pin(make(feed)) as Pin<Box<dyn Future<Output = ()>>>),
            cancel,
        })
    }

    /// Declares the stream ready before there is a picture: whoever waits for it is answered now. For a recording, whose
    /// device answered 200 and sends only once the viewer has started. `tracks`: what is known of it already.
    pub fn ready(&self, tracks: Option<Tracks>) {
        let _ = self.hub.try_send(HubInput::Declared { stream: self.stream, tracks });
    }

    /// The source cannot deliver now: whoever waits for its first picture is told at once.
    pub fn failed(&self, failure: SourceFailure) {
        let _ = self.hub.try_send(HubInput::SourceFailed { stream: self.stream, failure });
    }

    /// The pull ended and nobody lingers. If somebody wants the stream again meanwhile, nothing happens: the owner
    /// finds a `Want` in its queue.
    pub fn close(self) {
        let _ = self.hub.try_send(HubInput::Close { stream: self.stream, force: false });
    }

    /// The camera is taken away: its sinks end too.
    pub fn remove(self) {
        let _ = self.hub.try_send(HubInput::Close { stream: self.stream, force: true });
    }
}

/// A subscriber's stream is ready.
#[derive(Debug)]
pub struct SinkReady {
    /// Holds the sink; nothing is sent before [`SinkLease::start`].
    pub lease: SinkLease,
    /// What the stream carries; not known yet where the owner declared it ready before its first picture.
    pub tracks: Option<Tracks>,
}

/// Holds a sink. Dropping it stops the sending and frees port and stream.
#[derive(Debug)]
pub struct SinkLease {
    id: SinkId,
    stream: StreamId,
    worker: WorkerHandle,
    alive: Arc<AtomicBool>,
}

impl SinkLease {
    /// Its id, as events name it.
    pub fn id(&self) -> SinkId {
        self.id
    }
    /// Lets packets leave (the ACK came).
    pub fn start(&self) -> bool {
        self.worker.send(WorkerCommand::StartSink { stream: self.stream, id: self.id })
    }
}

impl Drop for SinkLease {
    fn drop(&mut self) {
        // The worker looks at this every slot: nothing that could be lost in a full queue.
        self.alive.store(false, Ordering::Relaxed);
    }
}

/// Why there is no sink.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The source said so.
    #[error("the source failed: {}: {}", .0.reason, .0.text)]
    Source(SourceFailure),
    /// Nothing came in time.
    #[error("no picture within {0:?}")]
    Timeout(Duration),
    /// Too many streams, or a queue is full.
    #[error("the media engine is overloaded")]
    Overloaded,
    /// The process is stopping.
    #[error("the media engine is stopping")]
    Stopping,
}

/// One stream, for the console.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamSnapshot {
    /// Channel and number.
    pub key: StreamKey,
    /// Set once the first key frame came.
    pub tracks: Option<Tracks>,
    /// Sinks.
    pub sinks: usize,
    /// Figures.
    pub stats: StreamStats,
}

/// Everything the hub hears. The variants outside this module are made by its handles.
#[derive(Debug)]
pub(super) enum HubInput {
    Subscribe {
        key: StreamKey,
        spec: Box<SinkSpec>,
        source: SourceHandle,
        reply: oneshot::Sender<Result<SinkReady, SubscribeError>>,
    },
    Open {
        key: StreamKey,
        source: SourceHandle,
        reply: oneshot::Sender<Option<Seat>>,
    },
    KeyFrame {
        key: StreamKey,
    },
    SourceFailed {
        stream: StreamId,
        failure: SourceFailure,
    },
    Close {
        stream: StreamId,
        force: bool,
    },
    Ready {
        stream: StreamId,
        tracks: Tracks,
    },
    Declared {
        stream: StreamId,
        tracks: Option<Tracks>,
    },
    Started {
        stream: StreamId,
    },
    SinkGone {
        stream: StreamId,
        sink: SinkId,
    },
    LongGop {
        stream: StreamId,
    },
    Stats {
        stream: StreamId,
        stats: StreamStats,
    },
    Snapshot {
        reply: oneshot::Sender<Vec<StreamSnapshot>>,
    },
}

/// Asks the hub.
#[derive(Debug, Clone)]
pub struct HubHandle {
    tx: mpsc::Sender<HubInput>,
}

impl HubHandle {
    /// A sink for this stream, pulled from `source` if nobody does yet. Answers when the first picture is in hand,
    /// or why there is none; never later than the hub's limit.
    pub fn subscribe(
        &self,
        key: StreamKey,
        spec: SinkSpec,
        source: SourceHandle,
    ) -> Result<oneshot::Receiver<Result<SinkReady, SubscribeError>>, SubscribeError> {
        let (reply, answer) = oneshot::channel();
        match self.tx.try_send(HubInput::Subscribe { key, spec: Box::new(spec), source, reply }) {
            Ok(()) => Ok(answer),
            Err(mpsc::error::TrySendError::Full(_)) => Err(SubscribeError::Overloaded),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SubscribeError::Stopping),
        }
    }

    /// A seat for a stream that is to be pulled without a subscriber (`pull = "keep_warm"`).
    pub async fn open(&self, key: StreamKey, source: SourceHandle) -> Option<Seat> {
        let (reply, answer) = oneshot::channel();
        self.tx.try_send(HubInput::Open { key, source, reply }).ok()?;
        answer.await.ok().flatten()
    }

    /// Passes the wish for a key frame to the source; false when nobody pulls that stream or the queue is full.
    pub fn request_key_frame(&self, key: StreamKey) -> bool {
        self.tx.try_send(HubInput::KeyFrame { key }).is_ok()
    }

    /// All streams.
    pub async fn snapshot(&self) -> Vec<StreamSnapshot> {
        let (reply, answer) = oneshot::channel();
        if self.tx.try_send(HubInput::Snapshot { reply }).is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }
}

struct Waiter {
    sink: SinkId,
    alive: Arc<AtomicBool>,
    deadline: Instant,
    reply: oneshot::Sender<Result<SinkReady, SubscribeError>>,
}

struct Entry {
    key: StreamKey,
    worker: usize,
    source: SourceHandle,
    tracks: Option<Tracks>,
    /// The owner declared it ready.
    declared: bool,
    sinks: Vec<SinkId>,
    waiters: Vec<Waiter>,
    /// The owner was told `Want` and not yet `Idle`.
    wanted: bool,
    /// The source failed since; a newcomer asks again, so that it is told at once what the owner knows.
    failed: bool,
    /// `Idle` did not fit its queue: it is told again with the next figures.
    owes_idle: bool,
    /// The same for `Started`.
    owes_started: bool,
    stats: StreamStats,
    told_long_gop: bool,
}

/// Told of rates and advice; the wiring turns them into metrics and log lines.
pub type StatsHook = Arc<dyn Fn(&StreamKey, Option<StreamStats>) + Send + Sync>;

/// See the file's head.
pub struct Hub {
    config: HubConfig,
    tx: mpsc::Sender<HubInput>,
    rx: mpsc::Receiver<HubInput>,
    workers: Vec<(WorkerHandle, Option<std::thread::JoinHandle<()>>)>,
    streams: HashMap<StreamId, Entry>,
    by_key: HashMap<StreamKey, StreamId>,
    next_stream: u64,
    next_sink: u64,
    ready_limit: Duration,
    hook: StatsHook,
}

impl Hub {
    /// Starts the worker threads.
    pub fn new(config: HubConfig, wall: WallClock, hook: StatsHook) -> std::io::Result<(Hub, HubHandle)> {
        let (tx, rx) = mpsc::channel(INPUTS);
        let mut workers = Vec::new();
        for index in 0..config.workers.max(1) {
            let cpu = config.pin.then_some(index);
            let (handle, thread) = worker::spawn(index, config.options, wall.clone(), tx.clone(), cpu)?;
            workers.push((handle, Some(thread)));
        }
        let handle = HubHandle { tx: tx.clone() };
        let hub = Hub {
            config,
            tx,
            rx,
            workers,
            streams: HashMap::new(),
            by_key: HashMap::new(),
            next_stream: 1,
            next_sink: 1,
            ready_limit: READY_LIMIT,
            hook,
        };
        Ok((hub, handle))
    }

    /// Runs until cancelled; then stops the workers and waits for them, at most 4 s.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut look = clock::now() + LOOK;
        loop {
            let now = clock::now();
            if look <= now {
                // Before any input: a busy queue must not keep those who wait from being told.
                self.expire(now);
                look = now + LOOK;
            }
            let waiting = self.streams.values().any(|e| !e.waiters.is_empty());
            let deadline = waiting.then_some(look);
            let sleep = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                input = self.rx.recv() => match input {
                    Some(input) => self.handle(input, clock::now()),
                    None => break,
                },
                () = sleep => {}
            }
        }
        self.rx.close();
        while let Ok(input) = self.rx.try_recv() {
            if let HubInput::Subscribe { reply, .. } = input {
                let _ = reply.send(Err(SubscribeError::Stopping));
            }
        }
        for (_, entry) in self.streams.drain() {
            for waiter in entry.waiters {
                let _ = waiter.reply.send(Err(SubscribeError::Stopping));
            }
        }
        let mut threads = Vec::new();
        for (worker, thread) in &mut self.workers {
            worker.send(WorkerCommand::Stop);
            threads.extend(thread.take());
        }
        let join = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join())));
        if tokio::time::timeout(Duration::from_secs(4), join).await.is_err() {
            tracing::warn!("a media worker did not stop in time");
        }
    }

    fn handle(&mut self, input: HubInput, now: Instant) {
        match input {
            HubInput::Subscribe { key, spec, source, reply } => self.subscribe(key, *spec, source, reply, now),
            HubInput::Open { key, source, reply } => {
                let id = self.entry_for(&key, &source);
                let seat = id.and_then(|id| self.seat(id));
                if let Some(entry) = id.and_then(|id| self.streams.get_mut(&id)) {
                    entry.wanted = true;
                }
                let _ = reply.send(seat);
            }
            HubInput::KeyFrame { key } => {
                // With key frames this near the next one is as quick as any a camera could be made to send.
                let near = |e: &&Entry| e.stats.gop.is_zero() || e.stats.gop > KEY_FRAME_NEAR;
                if let Some(entry) = self.by_key.get(&key).and_then(|id| self.streams.get(id)).filter(near) {
                    entry.source.send(SourceRequest::KeyFrame { key });
                }
            }
            HubInput::SourceFailed { stream, failure } => {
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.tracks = None;
                    entry.declared = false;
                    entry.failed = true;
                    for waiter in entry.waiters.drain(..) {
                        let _ = waiter.reply.send(Err(SubscribeError::Source(failure.clone())));
                        waiter.alive.store(false, Ordering::Relaxed);
                    }
                }
            }
            HubInput::Close { stream, force } => self.close(stream, force),
            HubInput::Ready { stream, tracks } => {
                let Some(entry) = self.streams.get_mut(&stream) else {
                    return;
                };
                entry.tracks = Some(tracks);
                entry.failed = false;
                let worker = self.workers[entry.worker].0.clone();
                for waiter in entry.waiters.drain(..) {
                    answer(waiter, stream, worker.clone(), entry.tracks);
                }
            }
            HubInput::Declared { stream, tracks } => {
                let Some(entry) = self.streams.get_mut(&stream) else {
                    return;
                };
                entry.tracks = tracks.or(entry.tracks);
                entry.declared = true;
                entry.failed = false;
                let worker = self.workers[entry.worker].0.clone();
                for waiter in entry.waiters.drain(..) {
                    answer(waiter, stream, worker.clone(), entry.tracks);
                }
            }
            HubInput::Started { stream } => {
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.owes_started = !entry.source.send(SourceRequest::Started { key: entry.key.clone() });
                }
            }
            HubInput::SinkGone { stream, sink } => {
                let Some(entry) = self.streams.get_mut(&stream) else {
                    return;
                };
                entry.sinks.retain(|s| *s != sink);
                if let Some(at) = entry.waiters.iter().position(|w| w.sink == sink) {
                    // Its socket could not be used, or the worker had no such stream any more.
                    let text = "the media engine could not make the sink".to_owned();
                    let failure = SourceFailure { reason: "no_sink", text };
                    let _ = entry.waiters.swap_remove(at).reply.send(Err(SubscribeError::Source(failure)));
                }
                if entry.sinks.is_empty() && entry.wanted {
                    entry.wanted = false;
                    entry.owes_idle = !entry.source.send(SourceRequest::Idle { key: entry.key.clone() });
                }
            }
            HubInput::LongGop { stream } => {
                if let Some(entry) = self.streams.get_mut(&stream).filter(|e| !e.told_long_gop) {
                    entry.told_long_gop = true;
                    tracing::warn!(
                        stream = %entry.key,
                        "its key frames are too far apart to be cached: viewers wait for the next one. \
                         Switch smart coding (Smart264/Smart265/H.264+/H.265+) off in the camera or set its I-frame interval to 2 s"
                    );
                }
            }
            HubInput::Stats { stream, stats } => {
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.stats = stats;
                    if entry.owes_idle && !entry.wanted {
                        entry.owes_idle = !entry.source.send(SourceRequest::Idle { key: entry.key.clone() });
                    }
                    if entry.owes_started {
                        entry.owes_started = !entry.source.send(SourceRequest::Started { key: entry.key.clone() });
                    }
                    (self.hook)(&entry.key, Some(stats));
                }
            }
            HubInput::Snapshot { reply } => {
                let mut all: Vec<_> = self
                    .streams
                    .values()
                    .map(|e| StreamSnapshot {
                        key: e.key.clone(),
                        tracks: e.tracks,
                        sinks: e.sinks.len(),
                        stats: e.stats,
                    })
                    .collect();
                all.sort_by(|a, b| a.key.cmp(&b.key));
                let _ = reply.send(all);
            }
        }
    }

    fn subscribe(
        &mut self,
        key: StreamKey,
        spec: SinkSpec,
        source: SourceHandle,
        reply: oneshot::Sender<Result<SinkReady, SubscribeError>>,
        now: Instant,
    ) {
        let Some(id) = self.entry_for(&key, &source) else {
            let _ = reply.send(Err(SubscribeError::Overloaded));
            return;
        };
        let seat = self.seat(id);
        let (Some(entry), Some(seat)) = (self.streams.get_mut(&id), seat) else {
            return;
        };
        let sink = SinkId(self.next_sink);
        self.next_sink += 1;
        let alive = Arc::new(AtomicBool::new(true));
        let worker = self.workers[entry.worker].0.clone();
        let command = WorkerCommand::AddSink { stream: id, id: sink, spec: Box::new(spec), alive: Arc::clone(&alive) };
        if !worker.send(command) {
            let _ = reply.send(Err(SubscribeError::Overloaded));
            return;
        }
        entry.sinks.push(sink);
        entry.source = source;
        if !entry.wanted || entry.failed {
            let asked = entry.source.send(SourceRequest::Want { seat });
            entry.wanted |= asked;
            entry.failed &= !asked;
            if !entry.wanted {
                alive.store(false, Ordering::Relaxed);
                let _ = reply.send(Err(SubscribeError::Overloaded));
                return;
            }
        }
        let waiter = Waiter { sink, alive, deadline: now + self.ready_limit, reply };
        if entry.declared || entry.tracks.is_some() {
            answer(waiter, id, worker, entry.tracks);
        } else {
            entry.waiters.push(waiter);
        }
    }

    fn entry_for(&mut self, key: &StreamKey, source: &SourceHandle) -> Option<StreamId> {
        if let Some(id) = self.by_key.get(key) {
            return Some(*id);
        }
        if self.streams.len() >= MAX_STREAMS {
            return None;
        }
        let mut load = vec![0usize; self.workers.len()];
        for entry in self.streams.values() {
            load[entry.worker] += 1 + entry.sinks.len();
        }
        let worker = (0..load.len()).min_by_key(|i| load[*i])?;
        let id = StreamId(self.next_stream);
        if !self.workers[worker].0.send(WorkerCommand::AddStream { id, key: key.clone() }) {
            return None;
        }
        self.next_stream += 1;
        self.by_key.insert(key.clone(), id);
        let entry = Entry {
            key: key.clone(),
            worker,
            source: source.clone(),
            tracks: None,
            declared: false,
            sinks: Vec::new(),
            waiters: Vec::new(),
            wanted: false,
            failed: false,
            owes_idle: false,
            owes_started: false,
            stats: StreamStats::default(),
            told_long_gop: false,
        };
        self.streams.insert(id, entry);
        Some(id)
    }

    fn seat(&self, id: StreamId) -> Option<Seat> {
        let entry = self.streams.get(&id)?;
        Some(Seat {
            stream: id,
            key: entry.key.clone(),
            worker: self.workers[entry.worker].0.clone(),
            hub: self.tx.clone(),
        })
    }

    fn close(&mut self, id: StreamId, force: bool) {
        if !force && self.streams.get(&id).is_some_and(|e| e.wanted) {
            return;
        }
        let Some(entry) = self.streams.remove(&id) else { return };
        self.by_key.remove(&entry.key);
        self.workers[entry.worker].0.send(WorkerCommand::RemoveStream { id });
        (self.hook)(&entry.key, None);
        for waiter in entry.waiters {
            let failure = SourceFailure { reason: "closed", text: "the camera was taken away or stopped".into() };
            let _ = waiter.reply.send(Err(SubscribeError::Source(failure)));
        }
    }

    fn expire(&mut self, now: Instant) {
        for entry in self.streams.values_mut() {
            let mut kept = Vec::new();
            for waiter in entry.waiters.drain(..) {
                if waiter.reply.is_closed() {
                    waiter.alive.store(false, Ordering::Relaxed);
                } else if waiter.deadline <= now {
                    waiter.alive.store(false, Ordering::Relaxed);
                    let _ = waiter.reply.send(Err(SubscribeError::Timeout(self.ready_limit)));
                } else {
                    kept.push(waiter);
                }
            }
            entry.waiters = kept;
        }
    }

    #[cfg(test)]
    pub(super) fn set_ready_limit(&mut self, limit: Duration) {
        self.ready_limit = limit;
    }

    /// Worker threads.
    pub fn workers(&self) -> usize {
        self.config.workers.max(1)
    }
}

fn answer(waiter: Waiter, stream: StreamId, worker: WorkerHandle, tracks: Option<Tracks>) {
    let lease = SinkLease { id: waiter.sink, stream, worker, alive: waiter.alive };
    // A subscriber that went away drops the lease here, which ends the sink.
    let _ = waiter.reply.send(Ok(SinkReady { lease, tracks }));
}
