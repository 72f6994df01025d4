//! What the platform knows: who is registered, which answers, calls and notices are waited for.
//!
//! Standard: [GB/T28181-2022 9.1, 9.6].
//! In: changes by `serve` and `handle`. Out: snapshots, news.
//! Invariants: locks are held for a few map operations, never across an await; every table has a bound.
//! Not here: what changes them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::{Behaviour, PlatformError, SimPlatformConfig};
use crate::proto::gb28181::{DeviceId, Version};
use crate::proto::manscdp::Incoming;
use crate::proto::manscdp::notify::Alarm;
use crate::proto::sdp::ssrc::Generator;
use crate::proto::sip::message::{Flow, Request};
use crate::transport::sockopt::local_ip_towards;

use super::subscription::Notice;

/// Lower platforms known; a load test has this many.
pub(super) const MAX_LOWERS: usize = 4096;
/// Queries, calls and subscriptions waited for, each.
pub(super) const MAX_WAITING: usize = 20_000;
/// News nobody has read yet; the oldest are lost.
const NEWS: usize = 1024;

/// Why a lower platform is offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfflineReason {
    /// It said so.
    Unregistered,
    /// The registration was not refreshed.
    Expired,
    /// Its keepalives stayed away.
    NoKeepalive,
    /// The connection it registered on has ended.
    ConnectionLost,
}

/// A lower platform that is, or was, registered.
#[derive(Debug, Clone, PartialEq)]
pub struct LowerPlatform {
    /// Its code.
    pub id: DeviceId,
    /// The URI of its Contact.
    pub contact: String,
    /// Where its REGISTER came from: where requests go.
    pub flow: Flow,
    /// What its `X-GB-Ver` said.
    pub version: Option<Version>,
    /// Its `User-Agent`.
    pub user_agent: Option<String>,
    /// Granted.
    pub expires: Duration,
    /// Last accepted REGISTER.
    pub registered_at: Instant,
    /// Accepted REGISTERs.
    pub registers: u64,
    /// Keepalives since it first registered.
    pub keepalives: u64,
    /// The last keepalive.
    pub last_keepalive: Option<Instant>,
    /// What the last keepalive said of itself.
    pub ok: bool,
    /// What the last keepalive said of others.
    pub faulty: Vec<DeviceId>,
    /// `None` while it is registered and alive.
    pub offline: Option<OfflineReason>,
}

impl LowerPlatform {
    /// Registered and alive.
    pub fn is_online(&self) -> bool {
        self.offline.is_none()
    }
}

/// News.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PlatformEvent {
    /// A REGISTER was accepted.
    Registered {
        /// Who.
        id: DeviceId,
        /// From where, and how.
        flow: Flow,
        /// Granted.
        expires: Duration,
        /// It was not online before.
        fresh: bool,
    },
    /// A REGISTER was refused, a challenge not counted.
    RegisterRefused {
        /// Who called itself so.
        id: String,
        /// The answer.
        status: u16,
    },
    /// A lower platform was sent to another server. [GB/T28181-2022 9.1.2.3]
    Redirected {
        /// Who.
        id: DeviceId,
        /// Where to.
        to: SocketAddr,
    },
    /// A lower platform has gone.
    Offline {
        /// Who.
        id: DeviceId,
        /// Why.
        why: OfflineReason,
    },
    /// A keepalive.
    Keepalive {
        /// From whom.
        id: DeviceId,
        /// How many so far.
        count: u64,
        /// What it says of itself.
        ok: bool,
        /// What it says of others.
        faulty: Vec<DeviceId>,
    },
    /// An alarm.
    Alarm {
        /// From whom.
        id: DeviceId,
        /// Of which device.
        device: DeviceId,
        /// What.
        alarm: Alarm,
    },
    /// The lower platform has sent a recording to its end. [GB/T28181-2022 9.8]
    MediaStatus {
        /// From whom.
        id: DeviceId,
        /// Of which channel.
        channel: DeviceId,
        /// 121.
        notify_type: u32,
    },
    /// The lower platform has ended a call.
    Hangup {
        /// Of which channel.
        channel: DeviceId,
    },
    /// Any other MESSAGE, answered 200.
    Message {
        /// From whom.
        id: DeviceId,
        /// Its CmdType.
        cmd_type: String,
    },
    /// A MESSAGE that was refused.
    MessageRefused {
        /// Who called itself so.
        id: String,
        /// The answer.
        status: u16,
    },
}

/// An application answer: a MESSAGE with root Response.
#[derive(Debug)]
pub(super) struct Answer {
    pub incoming: Incoming,
    /// Of the whole SIP message.
    pub bytes: usize,
}

/// A call as `serve` knows it.
#[derive(Debug)]
pub(super) struct CallEntry {
    /// Whom it was made to.
    pub lower: DeviceId,
    pub channel: DeviceId,
    /// Told that the recording has come to its end, once.
    pub finished: Option<oneshot::Sender<u32>>,
    /// Told the lower platform's BYE, once.
    pub ended: Option<oneshot::Sender<Request>>,
}

/// What the platform's task and its handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: SimPlatformConfig,
    pub addr: SocketAddr,
    pub behaviour: Mutex<Behaviour>,
    pub lowers: watch::Sender<BTreeMap<DeviceId, LowerPlatform>>,
    /// By SN.
    pub answers: Mutex<HashMap<u32, mpsc::Sender<Answer>>>,
    /// By Call-ID.
    pub calls: Mutex<HashMap<String, CallEntry>>,
    /// By Call-ID.
    pub subscriptions: Mutex<HashMap<String, mpsc::Sender<Notice>>>,
    pub news: broadcast::Sender<PlatformEvent>,
    sn: AtomicU32,
    ssrcs: Mutex<Generator>,
    rng: Mutex<StdRng>,
}

/// No code under one of these locks can panic half-way through a change.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(config: SimPlatformConfig, addr: SocketAddr, mut rng: StdRng) -> Result<Self, PlatformError> {
        let ssrcs = Generator::new(&config.id, rng.random()).ok_or(PlatformError::Code(config.id))?;
        Ok(Shared {
            behaviour: Mutex::new(config.behaviour.clone()),
            config,
            addr,
            lowers: watch::Sender::default(),
            answers: Mutex::default(),
            calls: Mutex::default(),
            subscriptions: Mutex::default(),
            news: broadcast::Sender::new(NEWS),
            sn: AtomicU32::new(0),
            ssrcs: Mutex::new(ssrcs),
            rng: Mutex::new(rng),
        })
    }

    pub fn tell(&self, event: PlatformEvent) {
        // Nobody listening is fine.
        let _ = self.news.send(event);
    }

    /// A fresh SN; never 0.
    pub fn next_sn(&self) -> u32 {
        self.sn.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1)
    }

    /// A fresh SSRC of the platform's domain.
    pub fn next_ssrc(&self, history: bool) -> u32 {
        // With nothing in use there is always one.
        lock(&self.ssrcs).next(history, |_| false).unwrap_or_default()
    }

    /// A fresh Call-ID.
    pub fn call_id(&self) -> String {
        format!("{:032x}", lock(&self.rng).random::<u128>())
    }

    /// A fresh tag.
    pub fn tag(&self) -> String {
        format!("{:016x}", lock(&self.rng).random::<u64>())
    }

    pub fn lower(&self, id: &DeviceId) -> Option<LowerPlatform> {
        self.lowers.borrow().get(id).cloned()
    }

    pub fn online(&self, id: &DeviceId) -> Result<LowerPlatform, PlatformError> {
        let lower = self.lower(id).filter(LowerPlatform::is_online);
        lower.ok_or(PlatformError::NotRegistered(*id))
    }

    /// The address `peer` reaches us at.
    pub fn advertised(&self, peer: SocketAddr) -> SocketAddr {
        match self.addr.ip().is_unspecified() {
            false => self.addr,
            // Without a route the request will fail and say so.
            true => SocketAddr::new(local_ip_towards(peer).unwrap_or(self.addr.ip()), self.addr.port()),
        }
    }

    /// Where `peer` is to send media.
    pub fn media_ip(&self, peer: SocketAddr) -> IpAddr {
        self.config.media_ip.unwrap_or_else(|| self.advertised(peer).ip())
    }
}
