//! A media worker: one named thread with a current-thread runtime for its cameras' pulls.
//! In: [`WorkerCommand`]s (bounded queue). Out: packets, and notes for the hub. Owner: `hub`.
//! Idle it blocks on its queue. With a stream it runs slots: take commands, drive the runtime (all arrived camera
//! bytes become frames), then mux and send what is ready for all sinks, then sleep to the next slot.
//! Invariants: a pull, its stream and its sinks live on one worker; nothing here waits for anybody.
//! Bounds: [`COMMANDS`] queued commands, [`FEED`] frames a slot; a pull that yields more in a slot loses the rest
//! and the loss is counted as the source's.

use super::frame::{Frame, StreamKey, Tracks};
use super::hub::HubInput;
use super::receive::Plane;
use super::relay::Burst;
use super::sink::{SinkId, SinkSpec};
use super::stream::{Stream, StreamNote};
use super::{MediaOptions, StreamId, StreamStats};
use crate::clock::{self, WallClock};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Commands waiting for a worker: a burst of INVITEs takes a few each; more means that the worker is stuck.
const COMMANDS: usize = 4096;
/// Frames of one stream taken in one slot; a camera yields one or two.
const FEED: usize = 512;
/// Close peers, sender reports, figures.
const SLOW: Duration = Duration::from_millis(500);
/// After the last pull ended the runtime is driven on for so long, so that RTSP TEARDOWNs get out.
const AFTERGLOW: Duration = Duration::from_secs(3);

/// What a pull writes its frames into. Lives on the worker's thread.
#[derive(Debug, Clone, Default)]
pub struct FrameFeed {
    inner: Rc<RefCell<Feed>>,
}

#[derive(Debug, Default)]
struct Feed {
    items: VecDeque<FeedItem>,
    overflow: u16,
    overruns: u64,
}

/// What a stream is fed with.
#[derive(Debug)]
pub(super) enum FeedItem {
    /// A source session begins.
    Started {
        /// What it carries.
        tracks: Tracks,
        /// What it is made of: frames, or bursts.
        plane: Plane,
        /// Why.
        reason: &'static str,
    },
    /// A frame of it.
    Frame(Frame),
    /// Packets of it.
    Burst(Burst),
}

impl FrameFeed {
    /// A new source session with these tracks begins: its clock starts anew.
    pub fn started(&self, tracks: Tracks) {
        self.begin(tracks, Plane::Remux, "frames");
    }

    /// The same for either plane, with the reason for it.
    pub(super) fn begin(&self, tracks: Tracks, plane: Plane, reason: &'static str) {
        self.inner.borrow_mut().items.push_back(FeedItem::Started { tracks, plane, reason });
    }

    /// Packets of one frame, as [`Self::push`].
    pub(super) fn relay(&self, mut burst: Burst) {
        let mut feed = self.inner.borrow_mut();
        if feed.items.len() >= FEED {
            let missing = u16::try_from(burst.packets() + burst.lost as usize).unwrap_or(u16::MAX);
            feed.overflow = feed.overflow.saturating_add(missing);
            feed.overruns += 1;
            return;
        }
        burst.lost = burst.lost.saturating_add(std::mem::take(&mut feed.overflow).into());
        feed.items.push_back(FeedItem::Burst(burst));
    }

    /// One access unit or audio packet. Never waits; beyond the bound it is dropped and counted as lost.
    pub fn push(&self, mut frame: Frame) {
        let mut feed = self.inner.borrow_mut();
        if feed.items.len() >= FEED {
            feed.overflow = feed.overflow.saturating_add(1);
            feed.overruns += 1;
            return;
        }
        frame.loss = frame.loss.saturating_add(std::mem::take(&mut feed.overflow));
        feed.items.push_back(FeedItem::Frame(frame));
    }

    /// Takes the oldest item.
    pub(super) fn pop(&self) -> Option<FeedItem> {
        self.inner.borrow_mut().items.pop_front()
    }
}

/// A pull, made on the worker's thread.
pub type MakePull = Box<dyn FnOnce(FrameFeed) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// What a worker does for the hub.
pub(super) enum WorkerCommand {
    AddStream { id: StreamId, key: StreamKey },
    RemoveStream { id: StreamId },
    RunPull { id: StreamId, make: MakePull, cancel: CancellationToken },
    AddSink { stream: StreamId, id: SinkId, spec: Box<SinkSpec>, alive: Arc<AtomicBool> },
    StartSink { stream: StreamId, id: SinkId },
    Stop,
}

/// The way to a worker.
#[derive(Debug, Clone)]
pub(super) struct WorkerHandle {
    tx: SyncSender<WorkerCommand>,
}

impl WorkerHandle {
    /// False when the worker's queue is full or the worker is gone.
    pub(super) fn send(&self, command: WorkerCommand) -> bool {
        match self.tx.try_send(command) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                tracing::error!("a media worker does not keep up with its commands");
                false
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

/// Starts a worker thread.
pub(super) fn spawn(
    index: usize,
    options: MediaOptions,
    wall: WallClock,
    hub: mpsc::Sender<HubInput>,
    cpu: Option<usize>,
) -> std::io::Result<(WorkerHandle, std::thread::JoinHandle<()>)> {
    let (tx, rx) = sync_channel(COMMANDS);
    let thread = std::thread::Builder::new().name(format!("media-{index}")).spawn(move || {
        if let Some(cpu) = cpu {
            pin(cpu);
        }
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => Worker::new(options, wall, rx, hub).run(&runtime),
            Err(e) => tracing::error!(error = %e, "cannot start the runtime of a media worker"),
        }
    })?;
    Ok((WorkerHandle { tx }, thread))
}

/// Pins the calling thread; failure only costs speed.
#[allow(unsafe_code)]
fn pin(cpu: usize) {
    // SAFETY: a zeroed cpu_set_t is a valid empty set, CPU_SET writes inside it for the bounded index, and the kernel
    // only reads it.
    let rc = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu % libc::CPU_SETSIZE as usize, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if rc != 0 {
        tracing::debug!(cpu, "cannot pin a media worker");
    }
}

struct Entry {
    stream: Stream,
    feed: FrameFeed,
    pulls: usize,
}

struct Worker {
    options: MediaOptions,
    wall: WallClock,
    rx: Receiver<WorkerCommand>,
    hub: mpsc::Sender<HubInput>,
    entries: HashMap<StreamId, Entry>,
    local: tokio::task::LocalSet,
    pulls: Vec<(StreamId, tokio::task::JoinHandle<()>)>,
    notes: VecDeque<HubInput>,
    busy_until: Option<Instant>,
    last_slow: Option<Instant>,
    stopping: bool,
}

impl Worker {
    fn new(options: MediaOptions, wall: WallClock, rx: Receiver<WorkerCommand>, hub: mpsc::Sender<HubInput>) -> Self {
        Worker {
            options,
            wall,
            rx,
            hub,
            entries: HashMap::new(),
            local: tokio::task::LocalSet::new(),
            pulls: Vec::new(),
            notes: VecDeque::new(),
            busy_until: None,
            last_slow: None,
            stopping: false,
        }
    }

    fn is_active(&self, now: Instant) -> bool {
        !self.pulls.is_empty()
            || !self.notes.is_empty()
            || self.entries.values().any(|e| e.stream.sinks() > 0)
            || self.busy_until.is_some_and(|t| now < t)
    }

    fn run(mut self, runtime: &tokio::runtime::Runtime) {
        let mut next_slot = clock::now();
        loop {
            let mut now = clock::now();
            if !self.is_active(now) {
                if self.stopping {
                    break;
                }
                match self.rx.recv_timeout(Duration::from_secs(3600)) {
                    Ok(command) => self.take(command),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                now = clock::now();
                next_slot = now;
            }
            loop {
                match self.rx.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.stopping = true;
                        break;
                    }
                }
            }
            // One turn polls the sockets, the second one runs what they woke.
            runtime.block_on(self.local.run_until(async {
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            }));
            now = clock::now();
            self.slot(now);
            next_slot += self.options.slot;
            let after = clock::now();
            if next_slot > after {
                std::thread::sleep(next_slot - after);
            } else if after - next_slot > Duration::from_millis(100) {
                // Far behind (a suspended machine): no use in running the missed slots.
                next_slot = after;
            }
        }
        // What is left of the pulls sends its TEARDOWN, with a limit.
        self.pulls.clear();
        runtime.block_on(async {
            let _ = tokio::time::timeout(AFTERGLOW, self.local).await;
        });
    }

    fn take(&mut self, command: WorkerCommand) {
        match command {
            WorkerCommand::AddStream { id, key } => {
                let feed = FrameFeed::default();
                self.entries.insert(id, Entry { stream: Stream::new(key, self.options), feed, pulls: 0 });
            }
            WorkerCommand::RemoveStream { id } => {
                if let Some(mut entry) = self.entries.remove(&id) {
                    entry.stream.close();
                }
            }
            WorkerCommand::RunPull { id, make, cancel } => {
                let Some(entry) = self.entries.get_mut(&id) else { return };
                entry.pulls += 1;
                let pull = make(entry.feed.clone());
                let handle = self.local.spawn_local(async move {
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => {}
                        () = pull => {}
                    }
                });
                self.pulls.push((id, handle));
            }
            WorkerCommand::AddSink { stream, id, spec, alive } => match self.entries.get_mut(&stream) {
                Some(entry) => entry.stream.add_sink(id, *spec, alive),
                None => self.notes.push_back(HubInput::SinkGone { stream, sink: id }),
            },
            WorkerCommand::StartSink { stream, id } => {
                if let Some(entry) = self.entries.get_mut(&stream) {
                    entry.stream.start_sink(id, clock::now());
                }
            }
            WorkerCommand::Stop => {
                self.stopping = true;
                self.busy_until = None;
                for entry in self.entries.values_mut() {
                    entry.stream.close();
                }
                self.entries.clear();
                for (_, pull) in &self.pulls {
                    pull.abort();
                }
            }
        }
    }

    fn slot(&mut self, now: Instant) {
        let slow = self.last_slow.is_none_or(|t| now.saturating_duration_since(t) >= SLOW);
        if slow {
            self.last_slow = Some(now);
        }
        let unix = self.wall.unix();
        let entries = &mut self.entries;
        let glow = if self.stopping { AFTERGLOW / 3 } else { AFTERGLOW };
        self.pulls.retain(|(id, handle)| {
            let keep = !handle.is_finished();
            if !keep {
                self.busy_until = Some(now + glow);
                if let Some(entry) = entries.get_mut(id) {
                    entry.pulls -= 1;
                }
            }
            keep
        });
        for (id, entry) in entries.iter_mut() {
            loop {
                match entry.feed.pop() {
                    Some(FeedItem::Started { tracks, plane: Plane::Remux, reason }) => {
                        entry.stream.source_started(tracks, now);
                        entry.stream.set_plane(Plane::Remux, reason);
                    }
                    Some(FeedItem::Started { tracks, plane: Plane::Relay, reason }) => {
                        entry.stream.relay_started(tracks, now);
                        entry.stream.set_plane(Plane::Relay, reason);
                    }
                    Some(FeedItem::Frame(frame)) => entry.stream.push(frame),
                    Some(FeedItem::Burst(burst)) => entry.stream.push_burst(burst),
                    None => break,
                }
            }
            entry.stream.tick(now, self.options.slot, slow, unix);
            while let Some(note) = entry.stream.pop_note() {
                self.notes.push_back(match note {
                    StreamNote::Ready(tracks) => HubInput::Ready { stream: *id, tracks },
                    StreamNote::Started => HubInput::Started { stream: *id },
                    StreamNote::SinkGone(sink) => HubInput::SinkGone { stream: *id, sink },
                    StreamNote::LongGop => HubInput::LongGop { stream: *id },
                });
            }
            if slow && entry.pulls > 0 {
                let overruns = entry.feed.inner.borrow().overruns;
                let stats = StreamStats { overruns, ..entry.stream.stats() };
                // Figures are worth a queue slot, never a wait.
                let _ = self.hub.try_send(HubInput::Stats { stream: *id, stats });
            }
        }
        while let Some(note) = self.notes.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(note)) = self.hub.try_send(note) {
                self.notes.push_front(note);
                break;
            }
        }
    }
}
