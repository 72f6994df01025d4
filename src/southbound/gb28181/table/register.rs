//! Registrations: REGISTER, keepalives, who is there, and what is kept over a restart.
//! Standard: [GB/T28181-2022 9.1, 9.6].

use super::super::call::CallInput;
use super::*;
use crate::catalog::ChannelState;
use crate::proto::gb28181::Version;
use crate::proto::sip::message::Transport;
use crate::proto::sip::registrar::{Binding, BindingRecord, Change, KeepaliveVerdict, OfflineReason, Refusal};
use crate::store::StoredBinding;

impl DeviceTable {
    /// What the store knows from before: bindings, which a keepalive from the same place revives, and catalogues.
    pub(super) async fn restore(&mut self) {
        let (now, ms) = (clock::now(), self.now_ms());
        let records = match self.deps.store.bindings(ms).await {
            Ok(bindings) => bindings,
            Err(e) => {
                tracing::warn!(error = %e, "bindings of before are not known: devices register anew");
                Vec::new()
            }
        };
        let records = records.into_iter().map(|b| BindingRecord {
            id: b.device,
            contact: b.contact,
            transport: b.transport,
            local: b.local,
            peer: b.source,
            version: b.version,
            user_agent: b.user_agent.unwrap_or_default(),
            registered_unix_ms: b.registered_at,
            last_seen_unix_ms: b.registered_at,
            expires_unix_ms: b.expires_at,
        });
        let restored = self.registrar.restore(now, ms, records);
        if restored.kept + restored.dropped > 0 {
            tracing::info!(kept = restored.kept, dropped = restored.dropped, "registrations of before the restart");
        }
        let kept: Vec<Binding> = self.registrar.bindings().cloned().collect();
        for binding in kept {
            self.put_device(&binding, DeviceState::Silent, "not heard since the restart");
            self.deps.sip.claim(&self.user, binding.id.as_str(), &binding.flow).await;
        }
        self.restore_items().await;
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.deps.wall.unix().as_millis() as i64
    }

    fn put_device(&mut self, binding: &Binding, state: DeviceState, reason: &'static str) {
        let Some((class, label)) = self.class_of(&binding.id) else { return };
        if !self.devices.contains_key(&binding.id) {
            self.reserved = None;
        }
        let profile = class.profile(binding.version);
        let since_ms = self.now_ms();
        let device = self.devices.entry(binding.id).or_insert_with(|| Device {
            class: class.clone(),
            label: label.clone(),
            profile,
            flow: binding.flow,
            user_agent: Box::default(),
            state: DeviceState::Offline,
            reason: "",
            since_ms,
            inventory: Inventory::default(),
            media_failure: String::new(),
            streams: 0,
            answers: 0,
            alarms: 0,
        });
        (device.class, device.label) = (class, label);
        device.profile = profile;
        device.flow = binding.flow;
        device.user_agent.clone_from(&binding.user_agent);
        if device.state != state {
            device.since_ms = since_ms;
        }
        device.state = state;
        device.reason = reason;
    }

    /// Behind a prefix at most `max` devices are known: the one that has been away longest gives way to a new one.
    async fn make_room(&mut self, id: &DeviceId) {
        let Some((class, _)) = self.class_of(id).filter(|(c, _)| c.prefix && self.devices.len() >= c.max) else {
            return;
        };
        if self.devices.contains_key(id) {
            return;
        }
        let same = self.devices.iter().filter(|(_, d)| Arc::ptr_eq(&d.class, &class));
        if same.clone().count() < class.max {
            return;
        }
        let away = same.filter(|(_, d)| d.state == DeviceState::Offline).min_by_key(|(_, d)| d.since_ms);
        if let Some(oldest) = away.map(|(id, _)| *id) {
            tracing::info!(device = %oldest, "forgotten: as many devices as may be are behind its prefix");
            self.forget(oldest).await;
        }
    }

    /// A device known from its catalogue alone: it has not registered since.
    pub(super) fn known_device(&mut self, id: DeviceId) {
        let Some((class, label)) = self.class_of(&id).filter(|_| !self.devices.contains_key(&id)) else { return };
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let device = Device {
            profile: class.profile(None),
            class,
            label,
            flow: Flow { transport: Transport::Udp, local: nowhere, peer: nowhere, conn: None },
            user_agent: Box::default(),
            state: DeviceState::Offline,
            reason: "not registered since the restart",
            since_ms: self.now_ms(),
            inventory: Inventory::default(),
            media_failure: String::new(),
            streams: 0,
            answers: 0,
            alarms: 0,
        };
        self.reserved = None;
        self.devices.insert(id, device);
    }

    /// The class a device belongs to: the exact code wins over the longest prefix.
    pub(super) fn class_of(&self, id: &DeviceId) -> Option<(Arc<DeviceClass>, ChannelLabel)> {
        let exact = self.exact.get(id.as_str()).and_then(|at| self.classes.get(*at));
        let found = exact.or_else(|| {
            let prefixes = self.classes.iter().filter(|(c, _)| c.prefix && id.as_str().starts_with(&c.id));
            prefixes.max_by_key(|(c, _)| c.id.len())
        });
        found.cloned()
    }

    pub(super) async fn on_register(&mut self, now: Instant, tx: ServerTxId, request: Request, flow: Flow) {
        let verdict = self.registrar.handle_register(now, self.now_ms(), &request, &flow);
        self.respond_with(tx, verdict.response).await;
        self.apply(verdict.changes).await;
    }

    /// A keepalive: answered at once, and nothing is written [GB/T28181-2022 9.6.1].
    pub(super) async fn on_keepalive(&mut self, now: Instant, id: &DeviceId, flow: &Flow) -> u16 {
        let verdict = self.registrar.handle_keepalive(now, id, flow);
        self.heard(*id, flow, verdict, "keepalive").await;
        verdict.status()
    }

    /// A device gave a sign of life: one that was silent is back, and one whose port moved is followed.
    pub(super) async fn heard(&mut self, id: DeviceId, flow: &Flow, verdict: KeepaliveVerdict, evidence: &'static str) {
        let KeepaliveVerdict::Alive { was_offline, moved } = verdict else { return };
        if moved && let Some(device) = self.devices.get_mut(&id) {
            device.flow = *flow;
            self.mark_dirty(id);
        }
        if was_offline {
            self.came(id, evidence).await;
        }
    }

    pub(super) async fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Registered { binding, new, moved_from } => {
                    tracing::info!(device = %binding.id, source = %binding.flow.peer, transport = binding.flow.transport.as_str(),
                        version = binding.version.map(Version::as_str), user_agent = %binding.user_agent, new, "device registered");
                    if let Some(from) = moved_from {
                        tracing::warn!(device = %binding.id, from = %from.peer, to = %binding.flow.peer,
                            "the device registered from elsewhere: if this goes on, two devices have this code");
                    }
                    let was_online = self.devices.get(&binding.id).is_some_and(|d| d.state == DeviceState::Online);
                    self.make_room(&binding.id).await;
                    self.put_device(&binding, DeviceState::Online, "registered");
                    self.deps.sip.claim(&self.user, binding.id.as_str(), &binding.flow).await;
                    self.mark_dirty(binding.id);
                    if !was_online || new {
                        self.came(binding.id, "registered").await;
                    }
                }
                Change::Refreshed { binding } => {
                    let was_online = self.devices.get(&binding.id).is_some_and(|d| d.state == DeviceState::Online);
                    self.put_device(&binding, DeviceState::Online, "registered");
                    self.mark_dirty(binding.id);
                    if !was_online {
                        self.came(binding.id, "registered").await;
                    }
                }
                Change::Unregistered { binding } => self.left(binding.id, "unregistered").await,
                Change::Expired { binding } => self.left(binding.id, "registration expired").await,
                Change::Removed { binding } => self.left(binding.id, "its account is gone or has changed").await,
                Change::Offline { id, reason: OfflineReason::ConnectionLost } => {
                    self.left(id, "connection lost").await;
                }
                Change::Offline { id, reason: OfflineReason::Silent } => {
                    if let Some(device) = self.devices.get(&id) {
                        self.deps.metrics.device_silent(&device.label);
                    }
                    self.went(id, DeviceState::Silent, "keepalives are missing").await;
                }
                Change::Refused { id, source, reason } => {
                    if let Some((_, label)) = self.class_of(&id) {
                        self.deps.metrics.device_refused(&label, reason.as_str());
                    }
                    tracing::warn!(device = %id, %source, reason = reason.as_str(), "registration refused");
                }
                Change::Pending(pending) => {
                    tracing::info!(device = %pending.id, source = %pending.source, user_agent = %pending.user_agent,
                        "an unknown device would like to register: add a [[device]] for it if it is yours");
                }
                Change::LockedOut { source, id, .. } => {
                    let id = id.map(|id| id.to_string()).unwrap_or_default();
                    tracing::warn!(%source, device = %id, "locked out after repeated failures");
                }
            }
        }
    }

    fn mark_dirty(&mut self, id: DeviceId) {
        self.gone.remove(&id);
        self.dirty.insert(id);
        self.flush_soon();
    }

    fn flush_soon(&mut self) {
        if !std::mem::replace(&mut self.flushing, true) {
            self.after(FLUSH, Timer::Flush);
        }
    }

    /// Writes changed bindings; those of TCP and TLS are worth nothing after a restart.
    pub(super) fn flush(&mut self) {
        self.flushing = false;
        let (now, ms) = (clock::now(), self.now_ms());
        let dirty = std::mem::take(&mut self.dirty);
        let mut gone = std::mem::take(&mut self.gone);
        let bindings: Vec<&Binding> = dirty.iter().filter_map(|id| self.registrar.binding(id)).collect();
        // An older binding by UDP must not come back in place of a connection.
        gone.extend(bindings.iter().filter(|b| b.flow.transport.is_reliable()).map(|b| b.id));
        let kept: Vec<StoredBinding> = bindings
            .into_iter()
            .filter(|b| !b.flow.transport.is_reliable())
            .map(|b| b.to_record(now, ms))
            .map(|r| StoredBinding {
                device: r.id,
                contact: r.contact,
                source: r.peer,
                local: r.local,
                transport: r.transport,
                expires_at: r.expires_unix_ms,
                registered_at: r.registered_unix_ms,
                version: r.version,
                user_agent: Some(r.user_agent).filter(|u| !u.is_empty()),
            })
            .collect();
        let dropped: Vec<String> = gone.iter().map(ToString::to_string).collect();
        let stored = if kept.is_empty() { Ok(()) } else { self.deps.store.keep_bindings(kept) };
        let done =
            stored.and_then(|()| if dropped.is_empty() { Ok(()) } else { self.deps.store.drop_bindings(dropped) });
        if let Err(e) = done {
            tracing::warn!(error = %e, "bindings not stored: tried again with the next change");
            self.dirty.extend(dirty);
            self.gone.extend(gone);
        }
    }

    /// A device is there (again).
    async fn came(&mut self, id: DeviceId, evidence: &'static str) {
        let ms = self.now_ms();
        let Some(device) = self.devices.get_mut(&id) else { return };
        if device.state != DeviceState::Online {
            device.since_ms = ms;
        }
        device.state = DeviceState::Online;
        device.reason = evidence;
        self.tell_states(&id, None).await;
        self.interview(id).await;
        for token in self.calls_of(&id) {
            self.feed(token, CallInput::Online).await;
        }
    }

    /// A device is no longer registered.
    async fn left(&mut self, id: DeviceId, why: &'static str) {
        self.dirty.remove(&id);
        self.gone.insert(id);
        self.flush_soon();
        self.deps.sip.unclaim(&self.user, id.as_str()).await;
        self.went(id, DeviceState::Offline, why).await;
    }

    async fn went(&mut self, id: DeviceId, state: DeviceState, why: &'static str) {
        let ms = self.now_ms();
        let Some(device) = self.devices.get_mut(&id) else { return };
        let changed = device.state != state;
        device.state = state;
        device.reason = why;
        device.inventory.unsubscribe();
        if changed {
            device.since_ms = ms;
            tracing::info!(device = %id, reason = why, "device offline");
            self.tell_states(&id, None).await;
        }
        self.drop_queries(&id);
        for token in self.calls_of(&id) {
            self.feed(token, CallInput::Offline).await;
        }
    }

    /// What is known of a device's channels, to the directory: of all, or of those named by the device's identifiers.
    pub(super) async fn tell_states(&mut self, id: &DeviceId, only: Option<&HashSet<DeviceId>>) {
        let since_ms = self.now_ms();
        let Some(device) = self.devices.get(id) else { return };
        let online = device.state == DeviceState::Online;
        let states: Vec<(Arc<str>, ChannelState)> = device
            .inventory
            .items()
            .filter(|(own_id, item)| item.playable && only.is_none_or(|only| only.contains(own_id)))
            .map(|(_, item)| {
                let (up, reason, evidence) = match (online, item.off) {
                    (false, _) => (false, "device_offline", format!("device {id}: {}", device.reason)),
                    (true, true) => (false, "reported_off", format!("device {id} says OFF")),
                    (true, false) => (true, "ok", format!("device {id}: {}", device.reason)),
                };
                (item.code.clone(), ChannelState { online: Some(up), reason, evidence, since_ms })
            })
            .collect();
        let nodes = if only.is_none() { device.inventory.nodes(online) } else { Vec::new() };
        if !states.is_empty() {
            self.deps.directory.put_states(states).await;
        }
        if !nodes.is_empty() {
            self.deps.directory.nodes(nodes, Vec::new()).await;
        }
    }

    pub(super) async fn reconfigure(&mut self, cfg: TableConfig) {
        let changes = self.registrar.reconfigure(cfg.registrar.clone());
        let labels: HashSet<String> = cfg.classes.iter().map(DeviceClass::label).collect();
        for (class, _) in std::mem::take(&mut self.classes) {
            if !labels.contains(&class.label()) {
                self.deps.metrics.remove_device(&class.label());
            }
        }
        self.cfg = cfg;
        self.reserved = None;
        self.exact = exact_classes(&self.cfg.classes);
        let metrics = &self.deps.metrics;
        self.classes = self.cfg.classes.iter().map(|c| (Arc::new(c.clone()), metrics.add_device(&c.label()))).collect();
        for id in self.devices.keys().copied().collect::<Vec<_>>() {
            match self.class_of(&id) {
                Some((class, label)) => {
                    let version = self.registrar.binding(&id).and_then(|b| b.version);
                    if let Some(device) = self.devices.get_mut(&id) {
                        device.profile = class.profile(version);
                        (device.class, device.label) = (class, label);
                    }
                    self.publish(&id).await;
                }
                None => self.forget(id).await,
            }
        }
        self.apply(changes).await;
    }

    /// A device that is no longer configured goes with all its channels.
    async fn forget(&mut self, id: DeviceId) {
        // Without its channels first, so that its sessions end for their viewers too.
        if let Some(device) = self.devices.get(&id) {
            for (_, item) in device.inventory.items() {
                self.channels.remove(&item.code);
            }
        }
        for token in self.calls_of(&id) {
            self.feed(token, CallInput::Shutdown).await;
        }
        self.drop_queries(&id);
        let Some(device) = self.devices.remove(&id) else { return };
        self.reserved = None;
        let nodes = device.inventory.node_ids();
        for (_, item) in device.inventory.items().filter(|(_, item)| item.playable) {
            self.deps.directory.remove(item.code.clone()).await;
        }
        self.deps.directory.nodes(Vec::new(), nodes).await;
        self.dirty.remove(&id);
        self.gone.insert(id);
        self.flush_soon();
        self.deps.sip.unclaim(&self.user, id.as_str()).await;
    }

    /// How many stand where, and how old the oldest catalogue is, a class.
    pub(super) fn count_devices(&mut self) {
        self.after(FIGURES, Timer::Figures);
        let counts = self.registrar.counts();
        let refused = Refusal::ALL.map(|reason| (reason.as_str(), counts.refused(reason)));
        self.deps.metrics.registrar_counted(counts.named(), refused);
        let ms = self.now_ms();
        let mut counts: HashMap<&str, ([usize; 3], i64)> = HashMap::new();
        for device in self.devices.values() {
            let (by_state, oldest) = counts.entry(&device.class.id).or_default();
            by_state[device.state as usize] += 1;
            if device.state == DeviceState::Online {
                *oldest = (*oldest).max(device.inventory.had_at_ms.map_or(0, |at| ms - at));
            }
        }
        for (class, label) in &self.classes {
            let (by_state, oldest) = counts.get(class.id.as_str()).copied().unwrap_or_default();
            self.deps.metrics.devices_counted(label, by_state, Duration::from_millis(oldest.max(0) as u64));
        }
    }
}

/// Places of the classes that are one device.
pub(super) fn exact_classes(classes: &[DeviceClass]) -> HashMap<String, usize> {
    classes.iter().enumerate().filter(|(_, c)| !c.prefix).map(|(at, c)| (c.id.clone(), at)).collect()
}
