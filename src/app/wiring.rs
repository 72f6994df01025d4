//! The only file that knows every module: builds the running gateway from a configuration, changes it on reload, and
//! takes it down in order.
//!
//! Shutdown is the reverse of wiring, each step with its own limit inside ten seconds: links say BYE and unregister,
//! cameras and workers say TEARDOWN, then SIP, HTTP and the store close.

use super::convert::{camera_config, catalog_item, table_config};
use crate::alarm::{AlarmConfig, AlarmDeps, AlarmInbox, Alarms};
use crate::catalog::{Area, Channel, ChannelState, Directory, DirectoryHandle};
use crate::clock::{self, WallClock};
use crate::config::{
    Area as AreaSection, Auto, Camera as CameraSection, Config, TimeSource, Transport as Via, Uplink, diff,
};
use crate::console::{self, ConsoleConfig, ConsoleDeps, TraceStore};
use crate::media::{Hub, HubConfig, HubHandle, MediaOptions, SourceHandle};
use crate::metrics::{self, Metrics};
use crate::northbound::{self, LinkConfig, LinkDeps, OwnSockets, UplinkStatus};
use crate::proto::sip::endpoint::EndpointConfig;
use crate::proto::sip::message::Transport;
use crate::southbound::gb28181::{DeviceTable, TableDeps, TableHandle};
use crate::southbound::rtsp::{Camera, CameraConfig, CameraDeps};
use crate::store::{Actor, AuditEntry, Location, Outcome, StoreConfig, StoreError, StoreHandle};
use crate::task::{Scope, TaskEvent};
use crate::transport::port_pool::{DEFAULT_QUARANTINE, PortPool};
use crate::transport::sip_driver::{self, Hooks, Limits, Listener, MessageKind, SipDriverConfig, SipHandle, TlsClient};
use crate::transport::{sockopt, tls};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// BYEs and unregistering: the link's own limit is 4 s.
const LINK_GOODBYE: Duration = Duration::from_millis(4500);

/// Seconds between looks at our certificates: a renewed file shows within the hour.
const CERTIFICATES_EVERY: u64 = 3600;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be had: exit code 69.
    #[error("{0}")]
    Bind(String),
    /// The configuration names something unusable: exit code 78.
    #[error("{0}")]
    Config(String),
    /// The store: exit code 70.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Anything else: exit code 70.
    #[error("{0}")]
    Internal(String),
}

/// How the gateway is started; the demo and the tests differ from the daemon in this alone.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// Keep everything in memory instead of `gateway.data_dir`.
    pub ephemeral: bool,
    /// Seeds every random number; None asks the system.
    pub seed: Option<u64>,
    /// Revision of the source.
    pub commit: &'static str,
}

struct CameraEntry {
    config: CameraConfig,
    source: SourceHandle,
    scope: Scope,
}

struct LinkEntry {
    config: LinkConfig,
    scope: Scope,
}

/// The running gateway.
pub struct Gateway {
    config: Config,
    rng: StdRng,
    root: Scope,
    camera_scope: Scope,
    link_scope: Scope,
    media_scope: Scope,
    sip_scope: Scope,
    http_scope: Scope,
    store_scope: Scope,
    store: StoreHandle,
    metrics: Metrics,
    directory: DirectoryHandle,
    alarms: AlarmInbox,
    hub: HubHandle,
    sip: SipHandle,
    ports: PortPool,
    wall: WallClock,
    trace: TraceStore,
    own_addresses: Arc<[IpAddr]>,
    cameras: HashMap<String, CameraEntry>,
    devices: watch::Sender<Option<TableHandle>>,
    links: HashMap<String, LinkEntry>,
    book: watch::Sender<BTreeMap<String, watch::Receiver<UplinkStatus>>>,
    listeners: Vec<sip_driver::BoundListener>,
    http_addr: SocketAddr,
}

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReloadSummary {
    /// For the log.
    pub done: Vec<String>,
    /// Keys that were not taken: they need a restart.
    pub restart_needed: Vec<String>,
}

impl Gateway {
    /// Binds, opens and starts everything.
    pub async fn start(config: Config, options: StartOptions) -> Result<Gateway, StartError> {
        let seed = options.seed.unwrap_or_else(|| {
            use std::hash::{BuildHasher, Hasher, RandomState};
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u128(clock::system_unix().as_nanos());
            hasher.finish()
        });
        let mut rng = StdRng::seed_from_u64(seed);
        let wall = WallClock::new();
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), options.commit);
        let observer = metrics.clone();
        let root = Scope::root(move |event| match event {
            TaskEvent::Panicked { task } => {
                tracing::error!(task, "a task panicked: this is a fault of the program, please report it");
                observer.task_panicked(task);
            }
            other => tracing::warn!(event = ?other, "supervised task"),
        });

        let location =
            if options.ephemeral { Location::Memory } else { Location::File(data_dir(&config)?.join("menshen.db")) };
        let created_at = wall.unix().as_millis() as i64;
        let store_config = StoreConfig { location, site_id: config.gateway.id.to_string(), created_at };
        let store = tokio::task::spawn_blocking(move || StoreHandle::open(&store_config))
            .await
            .map_err(|e| StartError::Internal(format!("the store could not be opened: {e}")))??;

        let trace = TraceStore::new(wall.clone());
        let (sip, driver, listeners) = bind_sip(&config, &metrics, &trace, &mut rng)?;
        // Until platforms and devices are known; first in the driver's queue.
        sip.hold(true).await;
        let http = std::net::TcpListener::bind(config.http.listen).map_err(|e| {
            StartError::Bind(format!(
                "cannot bind HTTP {}: {e}: free the port or change http.listen",
                config.http.listen
            ))
        })?;
        let http_addr = http.local_addr().map_err(|e| StartError::Internal(e.to_string()))?;
        let sip_scope = root.child("sip");
        sip_scope.essential("sip_driver", move |token| driver.run(token));
        let gone = store.gone();
        let store_scope = root.child("store");
        store_scope.essential("store", async move |token| {
            tokio::select! {
                () = token.cancelled() => Ok(()),
                () = gone => Err("the store's thread has ended"),
            }
        });

        let range = config.media.port_range;
        let ports = PortPool::new(range.first..=range.last, DEFAULT_QUARANTINE, rng.random())
            .map_err(|e| StartError::Config(e.to_string()))?;
        let media_scope = root.child("media");
        let hub_metrics = metrics.clone();
        let workers = match config.media.workers.set() {
            Some(n) => usize::from(n),
            None => std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1)),
        };
        let hub_config = HubConfig {
            options: MediaOptions {
                gop_cache: config.media.gop_cache.bytes() as usize,
                gop_cache_max_age: config.media.gop_cache_max_age.duration(),
                slot: config.media.slot.duration(),
                pacing_max: config.media.pacing_max.duration(),
            },
            workers,
            pin: false,
        };
        let (hub_task, hub) = Hub::new(
            hub_config,
            wall.clone(),
            Arc::new(move |key, stats| {
                if key.number == 0 {
                    let label = hub_metrics.camera(&key.channel);
                    let s = stats.unwrap_or_default();
                    hub_metrics.camera_measured(&label, s.fps, (s.bytes_per_second * 8.0) as u64);
                }
            }),
        )
        .map_err(|e| StartError::Internal(format!("cannot start the media workers: {e}")))?;
        let token = media_scope.token();
        media_scope.spawn("hub", hub_task.run(token));
        let (directory_task, directory) = Directory::new();
        let token = media_scope.token();
        media_scope.spawn("directory", directory_task.run(token));
        let deps = AlarmDeps {
            store: store.clone(),
            directory: directory.clone(),
            metrics: metrics.clone(),
            wall: wall.clone(),
        };
        let (alarm_task, alarms) = Alarms::new(AlarmConfig::default(), deps);
        store_scope.essential("alarms", move |token| alarm_task.run(token));

        let (book, book_reader) = watch::channel(BTreeMap::new());
        let http_scope = root.child("http");
        let camera_scope = root.child("cameras");
        let link_scope = root.child("uplinks");
        let mut gateway = Gateway {
            own_addresses: own_addresses().into(),
            rng,
            root,
            camera_scope,
            link_scope,
            media_scope,
            sip_scope,
            http_scope,
            store_scope,
            store,
            metrics,
            directory,
            alarms,
            hub,
            sip,
            ports,
            wall,
            trace,
            cameras: HashMap::new(),
            devices: watch::channel(None).0,
            links: HashMap::new(),
            book,
            listeners,
            http_addr,
            config,
        };
        gateway.audit("process.start", "gateway", Outcome::Ok, env!("CARGO_PKG_VERSION")).await?;
        gateway.apply_areas(&gateway.config.areas.clone()).await?;
        for camera in gateway.config.cameras.clone() {
            gateway.put_camera(&camera).await;
        }
        gateway.apply_devices().await?;
        gateway.directory.settled().await;
        for uplink in gateway.config.uplinks.clone() {
            gateway.put_link(&uplink).await?;
        }
        gateway.sip.hold(false).await;
        gateway.start_console(http, book_reader, options.commit)?;
        gateway.start_figures();
        Ok(gateway)
    }

    fn start_console(
        &mut self,
        listener: std::net::TcpListener,
        uplinks: northbound::UplinkBook,
        commit: &'static str,
    ) -> Result<(), StartError> {
        let http = &self.config.http;
        let config = ConsoleConfig::new(http).map_err(|e| StartError::Config(e.to_string()))?;
        let deps = ConsoleDeps {
            commit,
            gateway_id: self.config.gateway.id.to_string(),
            gateway_name: self.config.gateway.name.clone(),
            sip_listeners: self.listeners.clone(),
            metrics: self.metrics.clone(),
            directory: self.directory.clone(),
            hub: self.hub.clone(),
            sip: self.sip.clone(),
            store: self.store.clone(),
            uplinks,
            devices: self.devices.subscribe(),
            trace: self.trace.clone(),
            wall: self.wall.clone(),
        };
        let token = self.http_scope.token();
        self.http_scope.spawn("http", async move {
            if let Err(e) = console::serve(listener, config, deps, token).await {
                tracing::error!(error = %e, "the console has stopped");
            }
        });
        Ok(())
    }

    /// Once a second: what is counted by looking.
    fn start_figures(&self) {
        let server = self.config.sip.tls.iter().filter_map(|t| Some((None, "sip_server", t.cert.clone()?)));
        let clients = self
            .config
            .uplinks
            .iter()
            .filter_map(|u| Some((Some(u.name.clone()), "tls", u.tls.as_ref()?.cert.clone()?)));
        let certificates: Vec<(Option<String>, &'static str, PathBuf)> = server.chain(clients).collect();
        let (metrics, directory, ports, token) =
            (self.metrics.clone(), self.directory.clone(), self.ports.clone(), self.http_scope.token());
        self.http_scope.spawn("figures", async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            let mut seconds = 0u64;
            loop {
                tokio::select! {
                    () = token.cancelled() => return,
                    _ = tick.tick() => {}
                }
                metrics.media_ports(ports.in_use(), ports.size());
                if seconds.is_multiple_of(CERTIFICATES_EVERY) {
                    let now = clock::system_unix().as_secs() as i64;
                    for (uplink, kind, path) in &certificates {
                        if let Some(end) = tls::expires_at(path) {
                            let label = uplink.as_ref().map_or_else(metrics::PeerLabel::other, |u| metrics.peer(u));
                            metrics.certificate_expires_in(&label, kind, (end - now).div_euclid(86_400));
                        }
                    }
                }
                seconds += 1;
                let snapshot = directory.now();
                let mut counts: HashMap<&str, [usize; 3]> = HashMap::from([("rtsp", [0; 3])]);
                for channel in snapshot.channels.values() {
                    let up = channel.state.online;
                    counts.entry(channel.kind).or_default()[match up {
                        Some(true) => 0,
                        Some(false) => 1,
                        None => 2,
                    }] += 1;
                    // Thousands of channels of devices have no series of their own.
                    if channel.kind == "rtsp" {
                        metrics.camera_up(&metrics.camera(&channel.id), up == Some(true));
                    }
                }
                for kind in ["rtsp", "gb28181"] {
                    let counts = counts.get(kind).copied().unwrap_or_default();
                    metrics.channels_counted(kind, metrics::ChannelState::Online, counts[0]);
                    metrics.channels_counted(kind, metrics::ChannelState::Offline, counts[1]);
                    metrics.channels_counted(kind, metrics::ChannelState::Unknown, counts[2]);
                }
            }
        });
    }

    /// Where SIP listens, with real ports.
    pub fn listeners(&self) -> &[sip_driver::BoundListener] {
        &self.listeners
    }
    /// Where the console listens.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }
    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// Channels.
    pub fn directory(&self) -> &DirectoryHandle {
        &self.directory
    }

    /// Where alarms come in.
    pub fn alarms(&self) -> &AlarmInbox {
        &self.alarms
    }
    /// Streams.
    pub fn hub(&self) -> &HubHandle {
        &self.hub
    }
    /// Signalling.
    pub fn sip(&self) -> &SipHandle {
        &self.sip
    }
    /// The store.
    pub fn store(&self) -> &StoreHandle {
        &self.store
    }
    /// Counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
    /// Media ports.
    pub fn ports(&self) -> &PortPool {
        &self.ports
    }
    /// Devices that register with us; none where nobody may.
    pub fn devices(&self) -> Option<TableHandle> {
        self.devices.borrow().clone()
    }
    /// The uplinks' states.
    pub fn uplinks(&self) -> northbound::UplinkBook {
        self.book.subscribe()
    }
    /// A part the program cannot go on without has failed.
    pub async fn fatal(&self) -> String {
        self.root.fatal().await.to_string()
    }

    async fn audit(&self, action: &str, object: &str, outcome: Outcome, reason: &str) -> Result<(), StoreError> {
        let at = self.wall.unix().as_millis() as i64;
        let mut entry =
            AuditEntry::new(at, Actor::system("app"), action, object, self.config.gateway.id.as_str(), outcome);
        entry.reason = reason.to_owned();
        self.store.audit(entry).await.map(drop)
    }

    async fn apply_areas(&self, sections: &[AreaSection]) -> Result<(), StartError> {
        let at = self.wall.unix().as_millis() as i64;
        let gateway = &self.config.gateway;
        let prefix = gateway.id.domain().to_owned();
        let network = gateway.id.as_str().as_bytes().get(13).map_or(0, |d| d.saturating_sub(b'0'));
        let group = self.store.mint("group", "compound", prefix.clone(), 215, network, at).await?;
        let mut areas = Vec::new();
        for area in sections {
            let code = self.store.mint("area", &area.id, prefix.clone(), 216, network, at).await?;
            areas.push(Area { id: area.id.as_str().into(), name: area.name.clone(), code: code.into() });
        }
        for known in self.store.minted("area").await? {
            if !sections.iter().any(|a| a.id == known.key) {
                self.store.retire("area", &known.key, at).await?;
            }
        }
        self.directory.areas(areas, Some(group.into()), gateway.name.clone()).await;
        Ok(())
    }

    /// Starts the table of devices, or tells it what has changed. Once it is there it stays: a configuration without
    /// devices lets nobody register.
    async fn apply_devices(&mut self) -> Result<(), StartError> {
        let Some(config) = table_config(&self.config) else {
            if let Some(table) = self.devices() {
                let empty = Config { registrar: Some(Default::default()), ..self.config.clone() };
                if let Some(config) = table_config(&empty) {
                    table.reconfigure(config).await;
                }
            }
            return Ok(());
        };
        if let Some(table) = self.devices() {
            table.reconfigure(config).await;
            return Ok(());
        }
        let deps = TableDeps {
            sip: self.sip.clone(),
            hub: self.hub.clone(),
            directory: self.directory.clone(),
            store: self.store.clone(),
            alarms: self.alarms.clone(),
            metrics: self.metrics.clone(),
            ports: self.ports.clone(),
            wall: self.wall.clone(),
            listeners: self.listeners.iter().map(|l| l.local).collect(),
        };
        // Large while it restores what the store knows, and deep inside starting and reloading.
        let (table, handle) = Box::pin(DeviceTable::new(config, deps, self.rng.random()))
            .await
            .ok_or_else(|| StartError::Internal("the SIP driver has stopped".into()))?;
        let scope = self.camera_scope.child("devices");
        scope.essential("device_table", async move |token| {
            table.run(token.clone()).await;
            if token.is_cancelled() { Ok(()) } else { Err("the SIP driver forgot the devices") }
        });
        self.devices.send_replace(Some(handle));
        Ok(())
    }

    async fn put_camera(&mut self, section: &CameraSection) {
        let id = section.id.to_string();
        let (Some(config), Some(item)) = (camera_config(section), catalog_item(section)) else {
            tracing::error!(camera = %id, "the camera's configuration cannot be used");
            return;
        };
        let keep = self.cameras.get(&id).is_some_and(|entry| entry.config == config);
        if !keep {
            self.drop_camera_task(&id).await;
            self.metrics.add_camera(&id);
            let deps = CameraDeps {
                hub: self.hub.clone(),
                directory: self.directory.clone(),
                wall: self.wall.clone(),
                metrics: self.metrics.clone(),
            };
            let (camera, source) = Camera::new(config.clone(), deps);
            let scope = self.camera_scope.child(&id);
            let (token, seed) = (scope.token(), self.rng.random());
            self.cameras.insert(id.clone(), CameraEntry { config: config.clone(), source, scope: scope.clone() });
            self.publish_channel(&id, section, item).await;
            scope.spawn("rtsp_camera", camera.run(token, seed));
        } else {
            self.publish_channel(&id, section, item).await;
        }
    }

    async fn publish_channel(&self, id: &str, section: &CameraSection, item: crate::proto::manscdp::CatalogItem) {
        let Some(entry) = self.cameras.get(id) else { return };
        let channel = Channel {
            id: id.into(),
            area: section.area.as_deref().map(Into::into),
            parent: None,
            item: Arc::new(item),
            streams: entry.config.streams.len().min(255) as u8,
            source: entry.source.clone(),
            state: ChannelState::unknown(),
            commands: None,
            kind: "rtsp",
        };
        self.directory.put(channel).await;
    }

    async fn drop_camera_task(&mut self, id: &str) {
        if let Some(entry) = self.cameras.remove(id) {
            report_aborted(entry.scope.shutdown(Duration::from_secs(2)).await);
        }
    }

    async fn remove_camera(&mut self, id: &str) {
        self.directory.remove(id.into()).await;
        self.drop_camera_task(id).await;
        self.metrics.remove_camera(id);
    }

    fn link_config(&self, uplink: &Uplink) -> Result<LinkConfig, StartError> {
        let wants_tls = uplink.transport == Via::Tls;
        let bind = uplink.bind.set();
        let usable = |l: &&sip_driver::BoundListener| if wants_tls { l.tls } else { l.udp && l.tcp };
        let listener = self
            .listeners
            .iter()
            .filter(usable)
            .find(|l| bind.is_some_and(|ip| l.local.ip() == ip))
            .or_else(|| self.listeners.iter().filter(usable).find(|l| bind.is_none() || l.local.ip().is_unspecified()))
            // An outgoing TLS connection needs no TLS listener of ours.
            .or_else(|| self.listeners.first())
            .ok_or_else(|| StartError::Internal("no SIP listener".into()))?;
        Ok(LinkConfig {
            uplink: uplink.clone(),
            gateway_name: self.config.gateway.name.clone(),
            civil_code: self.config.gateway.civil_code.clone(),
            listener: listener.local,
            sip_advertised: self.config.sip.advertised_address.set(),
            media_advertised: northbound::media_advertised(uplink, self.config.media.advertised_address),
            rtp_payload_max: uplink.rtp_payload_max.unwrap_or(self.config.media.rtp_payload_max),
            is_time_source: self.config.time.source == TimeSource::Uplink(uplink.name.clone()),
            max_clock_step: self.config.time.max_step.duration(),
        })
    }

    async fn put_link(&mut self, uplink: &Uplink) -> Result<(), StartError> {
        if !uplink.enabled {
            tracing::info!(uplink = %uplink.name, "not enabled");
            self.alarms.remove_audience(&uplink.name);
            return Ok(());
        }
        if let Auto::Set(ip) = uplink.bind {
            let covered = self.listeners.iter().any(|l| l.local.ip() == ip || l.local.ip().is_unspecified());
            if !covered {
                let local = SocketAddr::new(ip, self.config.sip.listen.port());
                let listener = Listener { local, udp: true, tcp: true, tls: None };
                let bound = self.sip.add_listener(listener).await.map_err(|e| StartError::Bind(e.to_string()))?;
                tracing::info!(address = %bound.local, "SIP listener (UDP, TCP)");
                self.listeners.push(bound);
            }
        }
        let config = self.link_config(uplink)?;
        let Some(status) = UplinkStatus::initial(&config) else {
            return Err(StartError::Config(format!("uplink {}: local_id is no code", uplink.name)));
        };
        if uplink.transport == Via::Tls {
            let client = tls_client(uplink)?;
            self.sip
                .set_tls_client(uplink.server_addr, Some(client))
                .await
                .map_err(|e| StartError::Internal(e.to_string()))?;
        }
        let (sender, reader) = watch::channel(status);
        let deps = LinkDeps {
            sip: self.sip.clone(),
            hub: self.hub.clone(),
            directory: self.directory.clone(),
            store: self.store.clone(),
            alarms: self.alarms.clone(),
            metrics: self.metrics.clone(),
            ports: self.ports.clone(),
            wall: self.wall.clone(),
            own: self.own_sockets(),
            status: sender,
        };
        let scope = self.link_scope.child(&uplink.name);
        northbound::spawn(config.clone(), deps, &scope, self.rng.random());
        self.links.insert(uplink.name.clone(), LinkEntry { config, scope });
        self.book.send_modify(|book| drop(book.insert(uplink.name.clone(), reader)));
        Ok(())
    }

    fn own_sockets(&self) -> OwnSockets {
        let ports = self.listeners.iter().map(|l| l.local.port()).chain([self.http_addr.port()]);
        OwnSockets { addresses: self.own_addresses.clone(), ports: ports.collect() }
    }

    /// Says goodbye to these platforms, to all at once: one that is away must not keep the others waiting.
    async fn remove_links(&mut self, names: &[&str]) {
        let mut goodbyes = tokio::task::JoinSet::new();
        let mut gone = Vec::new();
        for name in names {
            if let Some(entry) = self.links.remove(*name) {
                let scope = entry.scope.clone();
                goodbyes.spawn(async move { scope.shutdown(LINK_GOODBYE).await });
                gone.push(entry);
            }
        }
        while let Some(aborted) = goodbyes.join_next().await {
            report_aborted(aborted.unwrap_or_default());
        }
        for entry in gone.iter().filter(|e| e.config.uplink.transport == Via::Tls) {
            let server = entry.config.uplink.server_addr;
            let mut others = self.links.values().map(|e| &e.config.uplink);
            if !others.any(|u| u.transport == Via::Tls && u.server_addr == server) {
                let _ = self.sip.set_tls_client(server, None).await;
            }
        }
        for name in names {
            self.book.send_modify(|book| drop(book.remove(*name)));
            self.trace.forget(name);
            self.metrics.remove_uplink(name);
        }
    }

    /// Closes listeners that were opened for the `bind` of uplinks that are gone.
    async fn close_unused_listeners(&mut self) {
        let used = |l: &sip_driver::BoundListener| {
            let configured = l.tls || l.local.ip() == self.config.sip.listen.ip();
            configured || self.links.values().any(|e| e.config.listener == l.local)
        };
        let unused: Vec<SocketAddr> = self.listeners.iter().filter(|l| !used(l)).map(|l| l.local).collect();
        for local in unused {
            let _ = self.sip.remove_listener(local).await;
            self.listeners.retain(|l| l.local != local);
            tracing::info!(address = %local, "SIP listener closed");
        }
    }

    /// Takes what can be taken live: cameras, uplinks and areas added, changed or removed; nothing else is touched.
    /// What needs a restart stays as it is and is named. An uplink that cannot be put up is named in the error; the rest
    /// is done all the same, and the next reload tries it again.
    pub async fn reload(&mut self, new: Config) -> Result<ReloadSummary, StartError> {
        let changes = diff(&self.config, &new);
        let mut summary = ReloadSummary { restart_needed: changes.restart_needed.clone(), ..ReloadSummary::default() };
        if changes.is_empty() {
            return Ok(summary);
        }
        // First on record, then done: a change nobody could trace is not made.
        let text = format!("{changes:?}");
        self.audit("config.reload", "gateway", Outcome::Ok, &text).await?;
        if changes.areas_changed {
            self.apply_areas(&new.areas).await?;
            self.config.areas = new.areas;
            summary.done.push("areas".into());
        }
        let leaving: Vec<&str> =
            changes.uplinks.removed.iter().chain(&changes.uplinks.changed).map(String::as_str).collect();
        self.remove_links(&leaving).await;
        self.config.uplinks.retain(|u| !leaving.contains(&u.name.as_str()));
        for name in &changes.uplinks.removed {
            let _ = self.store.forget(&format!("uplink:{name}"));
            self.alarms.remove_audience(name);
            summary.done.push(format!("uplink {name} removed"));
        }
        for id in &changes.cameras.removed {
            self.remove_camera(id).await;
            summary.done.push(format!("camera {id} removed"));
        }
        for camera in &new.cameras {
            let id = camera.id.to_string();
            let (added, changed) = (changes.cameras.added.contains(&id), changes.cameras.changed.contains(&id));
            if added || changed {
                self.put_camera(camera).await;
                summary.done.push(format!("camera {id} {}", if added { "added" } else { "changed" }));
            }
        }
        self.config.cameras = new.cameras;
        if changes.devices_changed {
            self.config.devices = new.devices;
            summary.done.push("devices".into());
        }
        // Cameras and areas count for devices too: no channel takes a camera's code.
        self.apply_devices().await?;
        // Who asks after the reload sees what it did.
        self.directory.settled().await;
        self.config.log = new.log;
        let mut failed = None;
        for uplink in new.uplinks {
            let (added, changed) =
                (changes.uplinks.added.contains(&uplink.name), changes.uplinks.changed.contains(&uplink.name));
            if !added && !changed {
                continue;
            }
            match self.put_link(&uplink).await {
                Ok(()) => {
                    let text = format!("uplink {} {}", uplink.name, if added { "added" } else { "changed" });
                    summary.done.push(text);
                    self.config.uplinks.push(uplink);
                }
                Err(e) => {
                    tracing::error!(uplink = %uplink.name, error = %e, "reload: the uplink cannot be put up");
                    failed.get_or_insert(e);
                }
            }
        }
        self.close_unused_listeners().await;
        failed.map_or(Ok(summary), Err)
    }

    /// Says goodbye to everybody, within ten seconds.
    pub async fn shutdown(mut self) {
        let _ = self.audit("process.stop", "gateway", Outcome::Ok, "").await;
        report_aborted(self.link_scope.shutdown(LINK_GOODBYE).await);
        report_aborted(self.camera_scope.shutdown(Duration::from_millis(2300)).await);
        report_aborted(self.media_scope.shutdown(Duration::from_millis(2000)).await);
        self.http_scope.cancel();
        report_aborted(self.sip_scope.shutdown(Duration::from_millis(1000)).await);
        report_aborted(self.http_scope.shutdown(Duration::from_millis(300)).await);
        report_aborted(self.store_scope.shutdown(Duration::from_millis(100)).await);
        if let Err(e) = self.store.close(Duration::from_millis(700)).await {
            tracing::error!(error = %e, "the store did not close in time");
        }
        report_aborted(self.root.shutdown(Duration::from_millis(200)).await);
        self.cameras.clear();
        self.links.clear();
    }
}

fn report_aborted(names: Vec<String>) {
    if !names.is_empty() {
        tracing::warn!(tasks = %names.join(", "), "tasks did not stop in time and were aborted");
    }
}

fn data_dir(config: &Config) -> Result<PathBuf, StartError> {
    let dir = config.gateway.data_dir.clone();
    std::fs::create_dir_all(&dir).map_err(|e| {
        StartError::Config(format!(
            "gateway.data_dir {}: {e}: create it and give it to the user menshen runs as",
            dir.display()
        ))
    })?;
    Ok(dir)
}

fn bind_sip(
    config: &Config,
    metrics: &Metrics,
    trace: &TraceStore,
    rng: &mut StdRng,
) -> Result<(SipHandle, sip_driver::SipDriver, Vec<sip_driver::BoundListener>), StartError> {
    let mut listeners = vec![Listener { local: config.sip.listen, udp: true, tcp: true, tls: None }];
    if let Some(section) = &config.sip.tls {
        let (Some(cert), Some(key)) = (&section.cert, &section.key) else {
            return Err(StartError::Config("sip.tls: cert and key are needed".into()));
        };
        let identity = tls::Identity { cert: cert.clone(), key: key.clone() };
        let server = tls::server_config(&identity, section.client_ca.as_deref())
            .map_err(|e| StartError::Config(format!("sip.tls: {e}")))?;
        listeners.push(Listener { local: section.listen, udp: false, tcp: false, tls: Some(server) });
    }
    let (seen, malformed) = (metrics.clone(), metrics.clone());
    let hooks = Hooks {
        trace: Some(trace.hook()),
        on_message: Some(Arc::new(move |m| {
            let peer = match m.user.as_ref().map(|u| u.as_str()) {
                None => metrics::PeerLabel::other(),
                Some(console::trace::DEVICES) => metrics::PeerLabel::devices(),
                Some(uplink) => seen.peer(uplink),
            };
            let direction = match m.direction {
                sip_driver::Direction::In => metrics::Direction::In,
                sip_driver::Direction::Out => metrics::Direction::Out,
            };
            match m.kind {
                MessageKind::Request => seen.sip_request(&peer, m.method, direction),
                MessageKind::Response(code) => seen.sip_response(&peer, m.method, code),
            }
            if m.direction == sip_driver::Direction::Out && m.transport == Transport::Udp && m.size > 1300 {
                seen.sip_oversize(&peer);
            }
        })),
        on_malformed: Some(Arc::new(move |transport, reason| {
            let transport = match transport {
                Transport::Udp => metrics::SipTransport::Udp,
                Transport::Tcp => metrics::SipTransport::Tcp,
                Transport::Tls => metrics::SipTransport::Tls,
            };
            malformed.sip_malformed(transport, reason);
        })),
    };
    let driver_config = SipDriverConfig {
        listeners,
        tls_clients: Vec::new(),
        limits: Limits::default(),
        endpoint: EndpointConfig { user_agent: "Menshen".into(), ..EndpointConfig::default() },
        hooks,
    };
    sip_driver::bind(driver_config, StdRng::from_rng(rng)).map_err(|e| StartError::Bind(e.to_string()))
}

fn tls_client(uplink: &Uplink) -> Result<TlsClient, StartError> {
    let wrong = |e: tls::TlsError| StartError::Config(format!("uplink {}: tls: {e}", uplink.name));
    let section = uplink
        .tls
        .as_ref()
        .ok_or_else(|| StartError::Config(format!("uplink {}: transport tls needs [uplink.tls]", uplink.name)))?;
    let trust = match (&section.pin_sha256, &section.ca) {
        (Some(pin), _) => tls::ServerTrust::Pins(vec![tls::Pin::parse(pin).map_err(wrong)?]),
        (None, Some(ca)) => tls::ServerTrust::Ca(ca.clone()),
        (None, None) => {
            return Err(StartError::Config(format!("uplink {}: tls needs ca or pin_sha256", uplink.name)));
        }
    };
    let identity = match (&section.cert, &section.key) {
        (Some(cert), Some(key)) => Some(tls::Identity { cert: cert.clone(), key: key.clone() }),
        _ => None,
    };
    let config = tls::client_config(&trust, identity.as_ref()).map_err(wrong)?;
    let name = section.server_name.clone().unwrap_or_else(|| uplink.server_addr.ip().to_string());
    Ok(TlsClient { config, server_name: tls::server_name(&name).map_err(wrong)? })
}

/// Addresses of our own interfaces: media is never sent there. Read from the kernel's tables; what cannot be read is
/// left out, because loopback is refused by its own rule anyway.
fn own_addresses() -> Vec<IpAddr> {
    let mut found = Vec::new();
    if let Ok(text) = std::fs::read_to_string("/proc/net/fib_trie") {
        let mut last: Option<IpAddr> = None;
        for line in text.lines() {
            let line = line.trim();
            if let Some(rest) = line.strip_prefix("|-- ") {
                last = rest.parse().ok();
            } else if line.starts_with("/32 host LOCAL")
                && let Some(ip) = last
                && !found.contains(&ip)
            {
                found.push(ip);
            }
        }
    }
    if let Ok(text) = std::fs::read_to_string("/proc/net/if_inet6") {
        for line in text.lines() {
            if let Some(hex) = line.split_ascii_whitespace().next()
                && let Ok(bits) = u128::from_str_radix(hex, 16)
            {
                found.push(IpAddr::V6(bits.into()));
            }
        }
    }
    found
}

/// Told at start: a socket buffer that is too small for video, with the line to paste.
pub fn warn_of_small_buffers() {
    if let Ok(check) = sockopt::buffer_check(sockopt::UDP_BUFFER)
        && let Some(advice) = check.advice()
    {
        tracing::warn!("{advice}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_addresses_hold_loopback() {
        let own = own_addresses();
        assert!(own.contains(&IpAddr::from([127, 0, 0, 1])), "{own:?}");
    }
}
