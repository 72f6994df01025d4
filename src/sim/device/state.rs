//! What the device's tasks and its handles share: channels, faults, presets, counters, what was seen.
//!
//! Standard: none.
//! In: changes by all parts. Out: snapshots; requests outside a dialog with their identifying headers.
//! Invariants: locks are held for a few map operations, never across an await; every table has a bound.
//! Not here: what changes them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::watch;

use super::{Faults, MediaFaults, SimChannel, SimDeviceConfig};
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::DeviceControl;
use crate::proto::mansrtsp;
use crate::proto::sip::message::{Flow, Headers, Request};

/// Content-Type of MANSCDP bodies.
pub(super) const MANSCDP: &str = "Application/MANSCDP+xml";
/// Controls and playback requests remembered, each; the oldest are forgotten.
const MAX_SEEN: usize = 1024;
/// Presets every channel is delivered with.
const PRESETS: [(u8, &str); 2] = [(1, "大门"), (2, "走廊")];

/// A DeviceControl as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlSeen {
    /// The device commanded: a channel, or the device itself.
    pub target: DeviceId,
    /// The command.
    pub control: DeviceControl,
}

/// A playback request as it came in an INFO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlaybackSeen {
    /// The channel played.
    pub channel: DeviceId,
    /// The request.
    pub request: mansrtsp::Request,
}

/// What has happened so far. Counts are since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Registered now.
    pub registered: bool,
    /// Times it came to be registered, refreshes not counted.
    pub registrations: u64,
    /// Times registering failed, or the registration was lost.
    pub registration_failures: u64,
    /// Keepalives sent.
    pub keepalives: u64,
    /// Keepalives answered with 2xx.
    pub keepalives_answered: u64,
    /// Queries.
    pub queries: u64,
    /// Queries answered with an error or an empty list: not the standard's, not served, or for nobody here.
    pub queries_refused: u64,
    /// Messages of catalogues and lists of recordings sent.
    pub list_messages: u64,
    /// DeviceControl commands understood.
    pub controls: u64,
    /// DeviceControl and DeviceConfig commands refused.
    pub controls_refused: u64,
    /// DeviceConfig commands obeyed.
    pub configurations: u64,
    /// Playback requests in INFO.
    pub playback_requests: u64,
    /// INVITEs.
    pub invites: u64,
    /// INVITEs refused.
    pub invites_refused: u64,
    /// INVITEs cancelled in time.
    pub invites_cancelled: u64,
    /// Calls now.
    pub calls: usize,
    /// Calls acknowledged: media began.
    pub calls_started: u64,
    /// BYEs of the platform.
    pub byes_received: u64,
    /// BYEs sent.
    pub byes_sent: u64,
    /// Recordings played to their end.
    pub recordings_finished: u64,
    /// Calls whose media could not be sent: no connection, or it broke.
    pub media_failures: u64,
    /// Pictures sent.
    pub pictures: u64,
    /// RTP packets sent.
    pub packets: u64,
    /// Subscriptions now.
    pub subscriptions: usize,
    /// NOTIFYs sent.
    pub notifies: u64,
    /// Alarms raised.
    pub alarms: u64,
    /// Alarm messages sent again because nobody answered.
    pub alarms_repeated: u64,
    /// Alarms answered with a Response.
    pub alarms_answered: u64,
    /// Alarms given up.
    pub alarms_given_up: u64,
}

/// What the device's tasks and its handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: SimDeviceConfig,
    /// The listener's address: `local` of flows.
    pub local: SocketAddr,
    /// Where the platform reaches us.
    pub advertised: SocketAddr,
    pub snapshot: watch::Sender<Snapshot>,
    pub channels: Mutex<Arc<Vec<SimChannel>>>,
    /// Channels in alarm until they are reset; none but channels, so bounded like them.
    pub in_alarm: Mutex<HashSet<DeviceId>>,
    faults: Mutex<Faults>,
    controls: Mutex<VecDeque<ControlSeen>>,
    playback: Mutex<VecDeque<PlaybackSeen>>,
    /// Of channels whose presets were changed; none but channels, so bounded like them.
    presets: Mutex<HashMap<DeviceId, BTreeMap<u8, String>>>,
    rng: Mutex<StdRng>,
    sn: AtomicU32,
}

/// No code under one of these locks can panic half-way through a change.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remember<T>(seen: &Mutex<VecDeque<T>>, what: T) {
    let mut seen = lock(seen);
    if seen.len() == MAX_SEEN {
        seen.pop_front();
    }
    seen.push_back(what);
}

impl Shared {
    pub fn new(config: SimDeviceConfig, local: SocketAddr, advertised: SocketAddr, rng: StdRng) -> Self {
        Shared {
            channels: Mutex::new(Arc::new(config.channels.clone())),
            faults: Mutex::new(config.faults.clone()),
            config,
            local,
            advertised,
            snapshot: watch::Sender::default(),
            in_alarm: Mutex::default(),
            controls: Mutex::default(),
            playback: Mutex::default(),
            presets: Mutex::default(),
            rng: Mutex::new(rng),
            sn: AtomicU32::new(0),
        }
    }

    pub fn count(&self, change: impl FnOnce(&mut Snapshot)) {
        self.snapshot.send_modify(change);
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }

    pub fn media_faults(&self) -> MediaFaults {
        self.faults().media
    }

    pub fn channels(&self) -> Arc<Vec<SimChannel>> {
        lock(&self.channels).clone()
    }

    pub fn channel(&self, id: &DeviceId) -> Option<SimChannel> {
        self.channels().iter().find(|channel| channel.id == *id).cloned()
    }

    /// The device itself, or one of its channels.
    pub fn is_ours(&self, id: &DeviceId) -> bool {
        *id == self.config.id || self.channels().iter().any(|channel| channel.id == *id)
    }

    // What was seen is kept before it is counted: who waits for the count finds it.

    pub fn control_seen(&self, target: DeviceId, control: DeviceControl) {
        remember(&self.controls, ControlSeen { target, control });
        self.count(|s| s.controls += 1);
    }

    pub fn playback_seen(&self, channel: DeviceId, request: mansrtsp::Request) {
        remember(&self.playback, PlaybackSeen { channel, request });
        self.count(|s| s.playback_requests += 1);
    }

    pub fn controls(&self) -> Vec<ControlSeen> {
        lock(&self.controls).iter().cloned().collect()
    }

    pub fn playback(&self) -> Vec<PlaybackSeen> {
        lock(&self.playback).iter().copied().collect()
    }

    pub fn presets(&self, channel: &DeviceId) -> Vec<(u8, String)> {
        match lock(&self.presets).get(channel) {
            Some(presets) => presets.iter().map(|(number, name)| (*number, name.clone())).collect(),
            None => PRESETS.iter().map(|(number, name)| (*number, (*name).to_owned())).collect(),
        }
    }

    /// Stores a preset, or forgets it where `name` is `None`.
    pub fn set_preset(&self, channel: DeviceId, number: u8, name: Option<String>) {
        let delivered = || PRESETS.iter().map(|(number, name)| (*number, (*name).to_owned())).collect();
        let mut presets = lock(&self.presets);
        let presets = presets.entry(channel).or_insert_with(delivered);
        match name {
            Some(name) => presets.insert(number, name),
            None => presets.remove(&number),
        };
    }

    /// A fresh SN; never 0.
    pub fn next_sn(&self) -> u32 {
        self.sn.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1)
    }

    pub fn random<T>(&self) -> T
    where
        rand::distr::StandardUniform: rand::distr::Distribution<T>,
    {
        lock(&self.rng).random()
    }

    /// A fresh tag.
    pub fn tag(&self) -> String {
        format!("{:016x}", self.random::<u64>())
    }

    /// A MESSAGE to the platform, outside any dialog.
    pub fn message(&self, body: Bytes) -> Request {
        let config = &self.config;
        let (id, domain) = (&config.id, config.id.domain().unwrap_or(config.id.as_str()));
        let uri = format!("sip:{}@{}", config.server_id, config.server_domain);
        let mut headers = Headers::new();
        headers.push("From", format!("<sip:{id}@{domain}>;tag={}", self.tag()));
        headers.push("To", format!("<{uri}>"));
        headers.push("Call-ID", format!("{:032x}", self.random::<u128>()));
        headers.push("CSeq", "1 MESSAGE");
        headers.push("Content-Type", MANSCDP);
        Request { method: "MESSAGE".to_owned(), uri, headers, body }
    }

    /// The URI of our Contact.
    pub fn contact_uri(&self) -> String {
        let transport = if self.config.transport.is_reliable() { ";transport=tcp" } else { "" };
        format!("sip:{}@{}{transport}", self.config.id, self.advertised)
    }

    /// Our Contact.
    pub fn contact(&self) -> String {
        format!("<{}>", self.contact_uri())
    }

    /// `sent-by` of Via, where it is not the listener's address.
    pub fn sent_by(&self) -> Option<String> {
        (self.advertised != self.local).then(|| self.advertised.to_string())
    }

    /// The way to the platform.
    pub fn flow(&self) -> Flow {
        Flow { transport: self.config.transport, local: self.local, peer: self.config.server, conn: None }
    }
}
