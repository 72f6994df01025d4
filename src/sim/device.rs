//! A simulated GB/T 28181 camera or NVR: registers with a platform, and answers, plays and reports as equipment does.
//!
//! Standard: [GB/T28181-2022 9.1] registration, [9.2, 9.8, 9.9] live, playback, download, [9.3] control, [9.4] alarms,
//! [9.5] queries, [9.6] keepalive, [9.11] subscriptions; the same of 2016 and 2011 by the configured profile.
//! In: a `SimDeviceConfig`. Out: a device on real sockets, and a `DeviceHandle` to watch it, to raise alarms, to change
//! its channels, and to make it misbehave as equipment in the field does.
//! Invariants: what it plays is its channel's clip from a key picture on, changed only where a fault says so; every
//! table, queue and wait is bounded; nothing a platform sends ends it.
//! Not here: the registrar (the gateway's, or `sim::platform`), voice broadcast.
//!
//! Read in this order: `state` (tables), `serve` (the task), `answers`, `call`, `stream` (media), `subscription`, `handle`.

mod alarm;
mod answers;
mod call;
mod control;
mod faults;
mod handle;
mod run;
mod serve;
mod state;
mod stream;
mod subscription;
#[cfg(test)]
mod tests;

pub use faults::{CallFaults, CatalogFaults, Faults, MediaFaults, SubscriptionFaults};
pub use handle::DeviceHandle;
pub use run::{DeviceArgs, run_device};
pub use state::{ControlSeen, PlaybackSeen, Snapshot};

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, oneshot};

use crate::proto::gb28181::{DeviceId, Profile, Version};
use crate::proto::sip::endpoint::EndpointConfig;
use crate::proto::sip::message::Transport;
use crate::sim::clip::{AudioClip, Clip, ClipLibrary};
use crate::task::Scope;
use crate::transport::sip_driver::{
    HandleError, Hooks, Limits, Listener, RateLimit, Route, SipDriverConfig, SipHandle, UserId, bind,
};
use crate::transport::sockopt::{BindError, local_ip_towards};
use serve::{Command, Serve};
use state::Shared;

/// Commands waiting for the device's task; senders wait when it is full.
const COMMAND_QUEUE: usize = 256;
/// What unregistering may take before the device goes without.
const STOP_TIME: Duration = Duration::from_secs(5);
/// What the tasks are given to end once they are told.
const END_TIME: Duration = Duration::from_secs(2);
/// Most channels: ten times what one message may list.
pub const MAX_CHANNELS: usize = 100_000;
/// Most catalogue items of one message over UDP: a datagram has 64 KiB, an item at most about 650 bytes.
pub const MAX_ITEMS_UDP: usize = 90;
/// And over TCP. [GB/T28181-2022 annex M]
pub const MAX_ITEMS_TCP: usize = 10_000;

/// A channel of the device.
#[derive(Debug, Clone)]
pub struct SimChannel {
    /// Its code.
    pub id: DeviceId,
    /// Its name.
    pub name: String,
    /// What it plays, live and recorded.
    pub clip: Arc<Clip>,
    /// Its sound, if any.
    pub audio: Option<Arc<AudioClip>>,
    /// Status ON; a channel that is OFF refuses calls with 480.
    pub online: bool,
}

impl SimChannel {
    /// A channel that is ON and has no sound.
    pub fn new(id: DeviceId, name: impl Into<String>, clip: Arc<Clip>) -> Self {
        SimChannel { id, name: name.into(), clip, audio: None, online: true }
    }

    /// The same with sound.
    pub fn with_audio(mut self, audio: Arc<AudioClip>) -> Self {
        self.audio = Some(audio);
        self
    }

    /// `count` cameras in the domain of `device`, numbered from 1: H.264, H.265, H.264 with B-frames in turn, with
    /// A-law, without sound, with AAC. `None` when the device's code has no ten digits to begin theirs with.
    pub fn numbered(device: &DeviceId, count: u32) -> Option<Vec<SimChannel>> {
        let prefix = device.as_str().get(..10)?;
        let channel = |serial: u32| {
            let id = DeviceId::mint(prefix, 132, 0, serial).ok()?;
            let name = format!("摄像机{serial}");
            Some(match serial % 3 {
                1 => SimChannel::new(id, name, ClipLibrary::h264()).with_audio(ClipLibrary::pcma()),
                2 => SimChannel::new(id, name, ClipLibrary::h265()),
                _ => SimChannel::new(id, name, ClipLibrary::h264_bframes()).with_audio(ClipLibrary::aac()),
            })
        };
        (1..=count).map(channel).collect()
    }
}

/// What a simulated device is.
#[derive(Clone)]
pub struct SimDeviceConfig {
    /// SIP over UDP and TCP; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Over which it registers.
    pub transport: Transport,
    /// Its code.
    pub id: DeviceId,
    /// User name of the digest; `None`: its code.
    pub username: Option<String>,
    /// Password of the digest.
    pub password: String,
    /// The platform's code.
    pub server_id: DeviceId,
    /// Where the platform is.
    pub server: SocketAddr,
    /// Host of the platform's URIs: its SIP domain.
    pub server_domain: String,
    /// Version and character set it speaks.
    pub profile: Profile,
    /// Sends `X-GB-Ver`.
    pub version_header: bool,
    /// Asked of the registrar.
    pub expires: Duration,
    /// Between keepalives; at least 1 s is kept.
    pub keepalive: Duration,
    /// So many keepalives without answer: registers anew.
    pub keepalive_max_missed: u32,
    /// Name of DeviceInfo.
    pub name: String,
    /// Its channels, at most [`MAX_CHANNELS`]. The clips are shared, however many there are.
    pub channels: Vec<SimChannel>,
    /// Items of one message of a catalogue or a list of recordings: 1 to [`MAX_ITEMS_UDP`], over TCP to
    /// [`MAX_ITEMS_TCP`].
    pub items_per_message: usize,
    /// Calls at once; more are refused with 486.
    pub max_streams: usize,
    /// Pictures leave so many times faster than the clip's rate says (1 to 1000); timestamps stay the clip's.
    pub speed: u32,
    /// Length of one recorded file: RecordInfo lists such files, on whole multiples of it. Whole seconds, at least 1.
    pub record_length: Duration,
    /// What is there to play of any recording asked for, at most; `None`: all of the time asked.
    pub recorded: Option<Duration>,
    /// An alarm whose Response stays away is sent again after this.
    pub alarm_repeat: Duration,
    /// So often at most.
    pub alarm_tries: u32,
    /// Faults from the start on.
    pub faults: Faults,
    /// Seed of tags, Call-IDs, and of what faults strike.
    pub seed: u64,
}

impl fmt::Debug for SimDeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDeviceConfig")
            .field("listen", &self.listen)
            .field("id", &self.id)
            .field("server", &self.server)
            .field("channels", &self.channels.len())
            .finish_non_exhaustive()
    }
}

impl SimDeviceConfig {
    /// A device of 2022 on a free port of loopback, over UDP, without channels or faults.
    pub fn on_loopback(id: DeviceId, password: &str, server_id: DeviceId, server: SocketAddr) -> Self {
        SimDeviceConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            transport: Transport::Udp,
            id,
            username: None,
            password: password.to_owned(),
            server_id,
            server,
            server_domain: server_id.domain().unwrap_or(server_id.as_str()).to_owned(),
            profile: Profile::new(Version::V2022),
            version_header: true,
            expires: Duration::from_secs(86_400),
            keepalive: Duration::from_secs(60),
            keepalive_max_missed: 3,
            name: "模拟录像机".to_owned(),
            channels: Vec::new(),
            items_per_message: 4,
            max_streams: 64,
            speed: 1,
            record_length: Duration::from_secs(3600),
            recorded: None,
            alarm_repeat: Duration::from_secs(5),
            alarm_tries: 5,
            faults: Faults::default(),
            seed: 1,
        }
    }

    fn check(&self) -> Result<(), DeviceError> {
        let refuse = |what, value: String, allowed| Err(DeviceError::Config { what, value, allowed });
        if self.channels.len() > MAX_CHANNELS {
            return refuse("channels", self.channels.len().to_string(), "give at most 100000");
        }
        if !(1..=self.max_items()).contains(&self.items_per_message) {
            let allowed = "give 1 to 90, over TCP 1 to 10000";
            return refuse("items_per_message", self.items_per_message.to_string(), allowed);
        }
        if !(1..=1000).contains(&self.speed) {
            return refuse("speed", self.speed.to_string(), "give 1 to 1000");
        }
        if self.record_length.as_secs() == 0 {
            return refuse("record_length", format!("{:?}", self.record_length), "give at least 1 s");
        }
        if self.transport == Transport::Tls {
            return refuse("transport", "TLS".to_owned(), "give UDP or TCP");
        }
        Ok(())
    }

    fn max_items(&self) -> usize {
        if self.transport.is_reliable() { MAX_ITEMS_TCP } else { MAX_ITEMS_UDP }
    }
}

/// Why the device could not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The address cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No way to the platform.
    #[error("no route to {server}: {reason:?}: look at the network")]
    NoRoute {
        /// The platform.
        server: SocketAddr,
        /// The system's word.
        reason: std::io::ErrorKind,
    },
    /// A value of the configuration.
    #[error("simulated device: {what} {value}: {allowed}")]
    Config {
        /// Which.
        what: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        allowed: &'static str,
    },
    /// No channel of this code.
    #[error("the device has no channel {0}: name one of its own")]
    NoChannel(DeviceId),
    /// As many channels as the device keeps.
    #[error("the device has 100000 channels: remove one first")]
    TooManyChannels,
    /// It is latched after an alarm of method 2 until the platform resets it. [GB/T28181-2022 9.4.1]
    #[error("channel {0} is in alarm: wait until the platform resets it")]
    InAlarm(DeviceId),
    /// The limit given has passed.
    #[error("no {what} within {limit:?}: look at the platform")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The device has been stopped.
    #[error("the simulated device has been stopped")]
    Stopped,
    /// The driver refused.
    #[error(transparent)]
    Sip(HandleError),
    /// Nothing more can be written.
    #[error("cannot write: {0}")]
    Output(std::io::ErrorKind),
}

impl From<HandleError> for DeviceError {
    fn from(error: HandleError) -> Self {
        match error {
            HandleError::Stopped => DeviceError::Stopped,
            other => DeviceError::Sip(other),
        }
    }
}

/// A running device. Dropping it ends it without a word, as a power failure does; [`SimDevice::stop`] unregisters.
#[derive(Debug)]
pub struct SimDevice {
    addr: SocketAddr,
    handle: DeviceHandle,
    commands: mpsc::Sender<Command>,
    scope: Scope,
}

impl SimDevice {
    /// Binds, and begins to register.
    ///
    /// # Errors
    /// [`DeviceError::Config`], [`DeviceError::Bind`], [`DeviceError::NoRoute`].
    pub async fn start(config: SimDeviceConfig) -> Result<Self, DeviceError> {
        config.check()?;
        let driver_config = SipDriverConfig {
            listeners: vec![Listener { local: config.listen, udp: true, tcp: true, tls: None }],
            tls_clients: Vec::new(),
            // One peer alone talks to it, and catalogues of ten thousand come a message each.
            limits: Limits { request_rate: RateLimit { per_second: 20_000, burst: 20_000 }, ..Limits::default() },
            endpoint: EndpointConfig { user_agent: "Simulated device".to_owned(), ..EndpointConfig::default() },
            hooks: Hooks::default(),
        };
        let ip = advertised_ip(&config)?;
        let mut rng = StdRng::seed_from_u64(config.seed);
        let (sip, driver, bound) = bind(driver_config, StdRng::seed_from_u64(rng.random()))?;
        let addr = bound.first().map_or(config.listen, |listener| listener.local);
        let scope = Scope::root(|_| {});
        let token = scope.token();
        scope.spawn("SIP driver", async move {
            if let Err(error) = driver.run(token).await {
                tracing::error!(%error, "the simulated device's SIP driver has failed");
            }
        });
        match SimDevice::begin(config, addr, ip, sip, rng, &scope).await {
            Ok((handle, commands)) => Ok(SimDevice { addr, handle, commands, scope }),
            Err(error) => {
                scope.cancel();
                Err(error)
            }
        }
    }

    async fn begin(
        config: SimDeviceConfig,
        addr: SocketAddr,
        ip: IpAddr,
        sip: SipHandle,
        rng: StdRng,
        scope: &Scope,
    ) -> Result<(DeviceHandle, mpsc::Sender<Command>), DeviceError> {
        let user = UserId::new("device");
        let events = sip.register_user(user.clone(), vec![Route::default()]).await?;
        let shared = Arc::new(Shared::new(config, addr, SocketAddr::new(ip, addr.port()), rng));
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let serve = Serve::new(shared.clone(), sip, user, scope.clone());
        scope.spawn("device", serve.run(events, queue));
        Ok((DeviceHandle { shared, commands: commands.clone() }, commands))
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// To watch it and to ask things of it. Cheap to clone.
    pub fn handle(&self) -> DeviceHandle {
        self.handle.clone()
    }

    /// Ends its calls, unregisters, and waits for its tasks. True when the platform confirmed the end of the
    /// registration.
    pub async fn stop(self) -> bool {
        let (tell, told) = oneshot::channel();
        let stopped = async {
            self.commands.send(Command::Stop(tell)).await.ok()?;
            told.await.ok()
        };
        let confirmed = tokio::time::timeout(STOP_TIME, stopped).await.ok().flatten();
        self.scope.shutdown(END_TIME).await;
        confirmed.unwrap_or(false)
    }
}

impl Drop for SimDevice {
    fn drop(&mut self) {
        self.scope.cancel();
    }
}

/// The address the platform reaches us at.
fn advertised_ip(config: &SimDeviceConfig) -> Result<IpAddr, DeviceError> {
    match config.listen.ip().is_unspecified() {
        false => Ok(config.listen.ip()),
        true => local_ip_towards(config.server)
            .map_err(|error| DeviceError::NoRoute { server: config.server, reason: error.kind() }),
    }
}
