//! A simulated upper platform: registrar, asker and viewer, on the product's own SIP driver.
//!
//! Standard: [GB/T28181-2022 9.1] registration, [9.6] keepalive, [9.5] queries, [9.3] controls, [9.11] subscriptions,
//! [9.2] live play, [9.7] to [9.9] recordings, annexes B, G to N; the same of 2016 and 2011 by the configured profile.
//! In: a `SimPlatformConfig`. Out: a listening platform, and a `PlatformHandle` to ask of lower platforms whatever an
//! upper platform may, and to misbehave as upper platforms do.
//! Invariants: every call has a limit in time and ends in a value; requests go on the flow the lower platform registered
//! from; tables and queues are bounded.
//! Not here: media (`sim::receiver`), judging many channels (`sim::check`).
//!
//! Read in this order: `state` (tables), `serve` (what comes in), `handle` (what goes out), `call`, `records`, `subscription`, `run`.

mod call;
mod catalog;
mod handle;
#[cfg(test)]
pub(crate) mod lower;
mod records;
mod run;
mod serve;
mod state;
mod subscription;
#[cfg(test)]
mod tests;

pub use call::{InviteFailure, InviteOptions, RequestEdit, SdpEdit, Session, SessionEnd};
pub use catalog::CatalogResult;
pub use handle::{ControlOutcome, PlatformHandle};
pub use records::{ControlAnswer, RecordList};
pub use run::{ClipOf, PlatformArgs, run_platform};
pub use state::{LowerPlatform, OfflineReason, PlatformEvent};
pub use subscription::{Notice, Subscription};

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::proto::gb28181::{DeviceId, Profile, Version};
use crate::proto::sip::digest::{Algorithm, DigestServer};
use crate::proto::sip::endpoint::{ClientFailure, EndpointConfig};
use crate::transport::sip_driver::{
    HandleError, Hooks, Limits, Listener, RateLimit, Route, SipDriverConfig, UserId, bind,
};
use crate::transport::sockopt::BindError;
use serve::Serve;
use state::Shared;

/// How long a nonce is good for.
const NONCE_LIFETIME: Duration = Duration::from_secs(300);
/// Commands waiting for the platform's task; senders wait when it is full.
const COMMAND_QUEUE: usize = 256;

/// When a lower platform counts as offline. [GB/T28181-2022 9.6]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepalivePolicy {
    /// Between keepalives.
    pub interval: Duration,
    /// So many missing in a row: offline. 0: keepalives are not waited for.
    pub max_missed: u32,
}

impl Default for KeepalivePolicy {
    /// The standard's: 60 s, 3.
    fn default() -> Self {
        KeepalivePolicy { interval: Duration::from_secs(60), max_missed: 3 }
    }
}

/// What a platform does that it should not, or need not. Can be changed while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// Answers every REGISTER with this status.
    pub reject_register: Option<u16>,
    /// So many REGISTERs hear nothing.
    pub ignore_registers: u32,
    /// So many MESSAGEs hear nothing.
    pub ignore_messages: u32,
    /// Answers keepalives with this status in place of 200.
    pub keepalive_status: Option<u16>,
    /// Answers NOTIFYs with this status in place of 200.
    pub notify_status: Option<u16>,
    /// Alarms get no Response of their own.
    pub leave_alarms: bool,
    /// Sends whoever registers to this server. [GB/T28181-2022 9.1.2.3]
    pub redirect: Option<(DeviceId, SocketAddr)>,
}

/// What a simulated platform is.
#[derive(Clone)]
pub struct SimPlatformConfig {
    /// UDP and TCP; port 0 takes a free one.
    pub listen: SocketAddr,
    /// SIP over TLS alone, in place of UDP and TCP.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Its code.
    pub id: DeviceId,
    /// SIP domain and digest realm: the first ten digits of its code, or what it likes.
    pub domain: String,
    /// Asked of everybody who registers; `None` lets everybody in.
    pub password: Option<String>,
    /// User name of the digest; `None`: the registering code.
    pub username: Option<String>,
    /// Version and character set it speaks.
    pub profile: Profile,
    /// Sends `X-GB-Ver`.
    pub version_header: bool,
    /// Longest registration granted.
    pub expires: Duration,
    /// When a lower platform is offline.
    pub keepalive: KeepalivePolicy,
    /// Where media is to go; `None`: the address it is reached at.
    pub media_ip: Option<IpAddr>,
    /// `Date` in the 200 to REGISTER, off from the machine's clock by so many milliseconds; `None` sends none.
    pub date: Option<i64>,
    /// Offers qop=auth.
    pub qop: bool,
    /// Digest algorithms in the order offered; SHA-256 alone demands it.
    pub algorithms: Vec<Algorithm>,
    /// Oddities.
    pub behaviour: Behaviour,
    /// Seed of tags, Call-IDs, nonces and SSRC serials.
    pub seed: u64,
}

impl fmt::Debug for SimPlatformConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimPlatformConfig")
            .field("listen", &self.listen)
            .field("id", &self.id)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

impl SimPlatformConfig {
    /// A platform of 2022 on a free port of loopback that asks for a password the usual way.
    pub fn on_loopback(id: DeviceId, password: Option<&str>) -> Self {
        SimPlatformConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            domain: id.domain().unwrap_or(id.as_str()).to_owned(),
            id,
            password: password.map(str::to_owned),
            username: None,
            profile: Profile::new(Version::V2022),
            version_header: true,
            expires: Duration::from_secs(86_400),
            keepalive: KeepalivePolicy::default(),
            media_ip: None,
            date: Some(0),
            qop: false,
            algorithms: vec![Algorithm::Md5],
            behaviour: Behaviour::default(),
            seed: 1,
        }
    }
}

/// Why the platform could not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// The address cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The platform's code makes no SSRC.
    #[error("platform code {0}: not 20 digits: give a full code")]
    Code(DeviceId),
    /// Nobody of this code is registered, or it is offline.
    #[error("{0} is not registered: wait until it is")]
    NotRegistered(DeviceId),
    /// The platform has been stopped.
    #[error("the simulated platform has been stopped")]
    Stopped,
    /// The limit given has passed.
    #[error("no {what} within {limit:?}: look at the lower platform")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// No final response.
    #[error("request not answered: {0:?}: look at the network")]
    Unanswered(ClientFailure),
    /// A final response, and it says no.
    #[error("{method} answered {status}: look at the lower platform")]
    Refused {
        /// The request.
        method: &'static str,
        /// The answer.
        status: u16,
    },
    /// The configured version has no such command.
    #[error("the platform's version has no such command: choose a newer one")]
    NotInVersion,
    /// A 2xx that makes no dialog.
    #[error("the answer makes no dialog: look at its To and Contact")]
    NoDialog,
    /// As many calls or subscriptions as the platform keeps.
    #[error("{0} at once are too many: end some first")]
    TooMany(&'static str),
    /// The driver refused.
    #[error(transparent)]
    Sip(HandleError),
    /// Nothing more can be written.
    #[error("cannot write: {0}")]
    Output(std::io::ErrorKind),
}

impl From<HandleError> for PlatformError {
    fn from(error: HandleError) -> Self {
        match error {
            HandleError::Stopped => PlatformError::Stopped,
            other => PlatformError::Sip(other),
        }
    }
}

/// A running platform. Dropping it ends it at once; [`SimPlatform::stop`] lets what is queued be written.
#[derive(Debug)]
pub struct SimPlatform {
    addr: SocketAddr,
    handle: PlatformHandle,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

impl SimPlatform {
    /// Binds and starts.
    ///
    /// # Errors
    /// [`PlatformError::Bind`], [`PlatformError::Code`].
    pub async fn start(config: SimPlatformConfig) -> Result<Self, PlatformError> {
        let driver_config = SipDriverConfig {
            listeners: vec![match &config.tls {
                None => Listener { local: config.listen, udp: true, tcp: true, tls: None },
                Some(tls) => Listener { local: config.listen, udp: false, tcp: false, tls: Some(tls.clone()) },
            }],
            tls_clients: Vec::new(),
            // One peer alone talks to it, and catalogues of ten thousand come a message each.
            limits: Limits { request_rate: RateLimit { per_second: 20_000, burst: 20_000 }, ..Limits::default() },
            endpoint: EndpointConfig { user_agent: "Simulated platform".to_owned(), ..EndpointConfig::default() },
            hooks: Hooks::default(),
        };
        let mut rng = StdRng::seed_from_u64(config.seed);
        let (sip, driver, bound) = bind(driver_config, StdRng::seed_from_u64(rng.random()))?;
        let addr = bound.first().map_or(config.listen, |listener| listener.local);
        let cancel = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let driver_cancel = cancel.clone();
        tasks.spawn(async move {
            if let Err(error) = driver.run(driver_cancel).await {
                tracing::error!(%error, "the simulated platform's SIP driver has failed");
            }
        });
        let user = UserId::new("platform");
        let events = sip.register_user(user.clone(), vec![Route::default()]).await?;
        let digest = DigestServer::new(
            rng.random(),
            config.domain.clone(),
            config.algorithms.clone(),
            config.qop,
            NONCE_LIFETIME,
        );
        let shared = Arc::new(Shared::new(config, addr, rng)?);
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let serve = Serve::new(shared.clone(), sip.clone(), user.clone(), digest);
        tasks.spawn(serve.run(events, queue, cancel.clone()));
        let handle = PlatformHandle { shared, sip, user, commands };
        Ok(SimPlatform { addr, handle, cancel, tasks })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// To ask things of it. Cheap to clone.
    pub fn handle(&self) -> PlatformHandle {
        self.handle.clone()
    }

    /// Stops it and waits for its tasks.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}
