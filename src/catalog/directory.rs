//! The directory: which channels and areas there are, and what is known of each channel's state.
//! In: changes by `southbound` and the wiring (bounded queue). Out: a snapshot behind a `watch`. Owner: one task.
//! Invariants: a state is what evidence said, with its time, never a stored row; readers never wait for the writer.

use super::command::CommandHandle;
use crate::media::SourceHandle;
use crate::proto::manscdp::CatalogItem;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Changes waiting to be applied: every camera changing at once, a few times over.
const CHANGES: usize = 8192;

/// What is known of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelState {
    /// None until the first evidence.
    pub online: Option<bool>,
    /// Fixed word: `ok`, `unreachable`, `unauthorised`, `stalled`, `no_video`, `not_probed`.
    pub reason: &'static str,
    /// What was seen, for people.
    pub evidence: String,
    /// When that was, Unix milliseconds.
    pub since_ms: i64,
}

impl ChannelState {
    /// Nothing known yet.
    pub fn unknown() -> Self {
        ChannelState { online: None, reason: "not_probed", evidence: String::new(), since_ms: 0 }
    }
}

/// One camera channel.
#[derive(Debug, Clone)]
pub struct Channel {
    /// Its 20-digit code.
    pub id: Arc<str>,
    /// Key of its area in the configuration.
    pub area: Option<Arc<str>>,
    /// Its place in its device's own tree: a node, if any.
    pub parent: Option<Arc<str>>,
    /// Everything the catalogue says of it; status and parent are filled in per uplink.
    pub item: Arc<CatalogItem>,
    /// GB stream numbers it has: 0..streams.
    pub streams: u8,
    /// Who pulls it.
    pub source: SourceHandle,
    /// Who can be asked more of it; none for a camera that only streams.
    pub commands: Option<CommandHandle>,
    /// What is known.
    pub state: ChannelState,
    /// `rtsp`, later `gb28181` …
    pub kind: &'static str,
}

/// What a device brings besides channels: itself, and the groups and systems of a lower platform's tree. Shown to an
/// uplink only above channels it sees.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its 20-digit code.
    pub id: Arc<str>,
    /// The node above it, if any. The owner sees to it that there is no circle.
    pub parent: Option<Arc<str>>,
    /// Everything the catalogue says of it; parent and status are filled in per uplink.
    pub item: Arc<CatalogItem>,
    /// Whether it is there now.
    pub online: bool,
}

/// A key area of the compound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    /// Key in the configuration.
    pub id: Arc<str>,
    /// Name on the tree.
    pub name: String,
    /// Its virtual organisation code (type 216), minted once.
    pub code: Arc<str>,
}

impl DirectorySnapshot {
    /// The topmost node above (or at) this one: the device a channel or node belongs to.
    pub fn root_of<'a>(&'a self, id: &'a str) -> &'a str {
        let mut at = id;
        // The owner sees to it that there is no circle; a bound all the same.
        for _ in 0..32 {
            match self.nodes.get(at).and_then(|node| node.parent.as_deref()) {
                Some(above) => at = above,
                None => break,
            }
        }
        at
    }
}

/// All of it, at one moment.
#[derive(Debug, Clone, Default)]
pub struct DirectorySnapshot {
    /// By channel id.
    pub channels: BTreeMap<Arc<str>, Channel>,
    /// Nodes of devices' trees, by id.
    pub nodes: BTreeMap<Arc<str>, Arc<Node>>,
    /// In the order of the configuration.
    pub areas: Vec<Area>,
    /// Code of the business group (type 215) over all areas.
    pub group: Option<Arc<str>>,
    /// Name of that group.
    pub group_name: String,
}

#[derive(Debug)]
enum Change {
    Put(Vec<Channel>),
    Remove(Arc<str>),
    States(Vec<(Arc<str>, ChannelState)>),
    Nodes { put: Vec<Node>, remove: Vec<Arc<str>> },
    Areas { areas: Vec<Area>, group: Option<Arc<str>>, group_name: String },
    Settle(oneshot::Sender<()>),
}

/// Changes the directory and reads it.
#[derive(Debug, Clone)]
pub struct DirectoryHandle {
    tx: mpsc::Sender<Change>,
    snapshot: watch::Receiver<Arc<DirectorySnapshot>>,
}

impl DirectoryHandle {
    /// Adds or replaces a channel; a replaced one keeps its known state.
    pub async fn put(&self, channel: Channel) {
        self.put_all(vec![channel]).await;
    }
    /// The same for many: a recorder's whole catalogue.
    pub async fn put_all(&self, channels: Vec<Channel>) {
        let _ = self.tx.send(Change::Put(channels)).await;
    }
    /// Takes a channel away.
    pub async fn remove(&self, id: Arc<str>) {
        let _ = self.tx.send(Change::Remove(id)).await;
    }
    /// Adds or replaces nodes, and takes others away.
    pub async fn nodes(&self, put: Vec<Node>, remove: Vec<Arc<str>>) {
        let _ = self.tx.send(Change::Nodes { put, remove }).await;
    }
    /// New evidence. False when the queue is full (the next evidence will tell the same).
    pub fn state(&self, id: Arc<str>, state: ChannelState) -> bool {
        self.states(vec![(id, state)])
    }
    /// The same for many: all channels of a device that went away.
    pub fn states(&self, states: Vec<(Arc<str>, ChannelState)>) -> bool {
        self.tx.try_send(Change::States(states)).is_ok()
    }
    /// The same, waiting for room in the queue: news that nobody would tell again.
    pub async fn put_states(&self, states: Vec<(Arc<str>, ChannelState)>) {
        let _ = self.tx.send(Change::States(states)).await;
    }
    /// The areas and their group.
    pub async fn areas(&self, areas: Vec<Area>, group: Option<Arc<str>>, group_name: String) {
        let _ = self.tx.send(Change::Areas { areas, group, group_name }).await;
    }
    /// Returns when everything asked for before is in the snapshot.
    pub async fn settled(&self) {
        let (done, settled) = oneshot::channel();
        if self.tx.send(Change::Settle(done)).await.is_ok() {
            let _ = settled.await;
        }
    }
    /// The newest snapshot.
    pub fn now(&self) -> Arc<DirectorySnapshot> {
        self.snapshot.borrow().clone()
    }
    /// To be told of changes.
    pub fn watch(&self) -> watch::Receiver<Arc<DirectorySnapshot>> {
        self.snapshot.clone()
    }
}

/// The owning task.
#[derive(Debug)]
pub struct Directory {
    rx: mpsc::Receiver<Change>,
    publish: watch::Sender<Arc<DirectorySnapshot>>,
    state: DirectorySnapshot,
}

impl Directory {
    /// An empty directory.
    pub fn new() -> (Directory, DirectoryHandle) {
        let (tx, rx) = mpsc::channel(CHANGES);
        let (publish, snapshot) = watch::channel(Arc::default());
        (Directory { rx, publish, state: DirectorySnapshot::default() }, DirectoryHandle { tx, snapshot })
    }

    /// Applies changes until cancelled. What is queued is applied together and published once.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                n = self.rx.recv_many(&mut batch, CHANGES) => if n == 0 { return },
            }
            let (mut changed, mut waiting) = (false, Vec::new());
            for change in batch.drain(..) {
                match change {
                    Change::Settle(done) => waiting.push(done),
                    change => changed |= apply(&mut self.state, change),
                }
            }
            if changed {
                self.publish.send_replace(Arc::new(self.state.clone()));
            }
            for done in waiting {
                let _ = done.send(());
            }
        }
    }
}

fn apply(state: &mut DirectorySnapshot, change: Change) -> bool {
    match change {
        Change::Put(channels) => {
            for mut channel in channels {
                if let Some(old) = state.channels.get(&channel.id) {
                    channel.state = old.state.clone();
                }
                state.channels.insert(channel.id.clone(), channel);
            }
            true
        }
        Change::Remove(id) => state.channels.remove(&id).is_some(),
        Change::States(news) => {
            let mut changed = false;
            for (id, new) in news {
                let Some(channel) = state.channels.get_mut(&id) else { continue };
                let old = &channel.state;
                if old.online == new.online && old.reason == new.reason {
                    continue;
                }
                tracing::info!(
                    channel = %id, online = new.online, reason = new.reason, evidence = %new.evidence, "channel state"
                );
                channel.state = new;
                changed = true;
            }
            changed
        }
        Change::Nodes { put, remove } => {
            let mut changed = false;
            for id in remove {
                changed |= state.nodes.remove(&id).is_some();
            }
            for node in put {
                if state.nodes.get(&node.id).is_none_or(|old| **old != node) {
                    state.nodes.insert(node.id.clone(), Arc::new(node));
                    changed = true;
                }
            }
            changed
        }
        Change::Areas { areas, group, group_name } => {
            let changed = state.areas != areas || state.group != group || state.group_name != group_name;
            state.areas = areas;
            state.group = group;
            state.group_name = group_name;
            changed
        }
        Change::Settle(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gb28181::DeviceId;

    fn channel(id: &str, name: &str) -> Channel {
        let (tx, _rx) = mpsc::channel(1);
        Channel {
            id: id.into(),
            area: None,
            parent: None,
            item: Arc::new(CatalogItem::new(DeviceId::parse(id).unwrap(), name)),
            streams: 1,
            source: SourceHandle::new(tx),
            state: ChannelState::unknown(),
            commands: None,
            kind: "rtsp",
        }
    }

    #[tokio::test]
    async fn changes_are_in_the_snapshot_once_settled_and_a_replaced_channel_keeps_its_state() {
        let (directory, handle) = Directory::new();
        let cancel = CancellationToken::new();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(directory.run(cancel.clone()));
        let (id, other): (Arc<str>, Arc<str>) = ("41130000581320000001".into(), "41130000581320000002".into());
        let up = ChannelState { online: Some(true), reason: "ok", evidence: "RTSP 200".into(), since_ms: 5 };
        handle.put(channel(&id, "a")).await;
        handle.put(channel(&other, "b")).await;
        assert!(handle.state(id.clone(), up.clone()));
        handle.put(channel(&id, "renamed")).await;
        handle.remove(other.clone()).await;
        handle.settled().await;
        let now = handle.now();
        assert!(!now.channels.contains_key(&other));
        assert_eq!((now.channels[&id].item.name.as_str(), &now.channels[&id].state), ("renamed", &up));
        // The same evidence again is no news.
        assert!(handle.state(id, ChannelState { since_ms: 9, ..up }));
        handle.settled().await;
        assert!(Arc::ptr_eq(&now, &handle.now()));
        cancel.cancel();
        task.join_next().await.unwrap().unwrap();
        handle.settled().await;
    }
}
