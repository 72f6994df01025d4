//! What comes in by SIP, by method; MESSAGE in full, and the list answers it may start.

use super::*;

impl Link {
    pub(super) async fn on_sip(&mut self, event: Event) {
        let now = clock::now();
        match event {
            Event::Response { tx, response, flow, .. } => self.on_response(now, tx, response, flow).await,
            Event::ClientFailed { tx, reason } => self.on_client_failed(now, tx, reason).await,
            Event::Request { tx, request, flow } => self.on_request(now, tx, request, flow).await,
            Event::Ack { request, .. } => {
                let call_id = request.headers.call_id().unwrap_or_default().to_owned();
                if let Some(key) = self.call_by_id(&call_id) {
                    let ms = self.now_ms();
                    if self.calls[&key].is_live() {
                        self.ladder.ok(Rung::Ack, ms, format!("ACK of {call_id}"));
                    }
                    self.feed(key, CallInput::Ack).await;
                }
            }
            Event::Cancelled { tx, .. } => {
                if let Some(key) = self.calls.iter().find(|(_, c)| c.tx == tx).map(|(k, _)| *k) {
                    self.feed(key, CallInput::Cancel).await;
                }
            }
            Event::NoAck { tx } => {
                if let Some(key) = self.calls.iter().find(|(_, c)| c.tx == tx).map(|(k, _)| *k) {
                    let ms = self.now_ms();
                    if self.calls[&key].is_live() {
                        self.ladder.failed(Rung::Ack, ms, None, "no ACK within 32 s");
                    }
                    tracing::warn!(uplink = %self.user, call_id = %self.calls[&key].call_id, "no ACK: BYE");
                    self.feed(key, CallInput::NoAck).await;
                }
            }
            Event::ConnClosed { conn } => {
                if self.conn == Some(conn) {
                    self.conn = None;
                    if self.closing.is_none() {
                        self.registration.connection_lost(now);
                    }
                }
            }
        }
    }

    pub(super) async fn on_response(&mut self, now: Instant, tx: ClientTxId, response: Response, flow: Flow) {
        if response.status < 200 {
            return;
        }
        let Some(pending) = self.pending.remove(&tx) else { return };
        let ms = self.now_ms();
        match pending {
            Pending::Register => {
                if let Some(conn) = flow.conn {
                    self.conn = Some(conn);
                }
                self.learn_version(&response);
                match response.status {
                    401 | 407 => {
                        self.ladder.ok(Rung::Challenge, ms, format!("{} {}", response.status, response.reason))
                    }
                    s if s >= 300 => self.tell_other_code(&response),
                    _ => self.refused.clear(),
                }
                self.registration.response(now, Kind::Register, &response);
            }
            Pending::Keepalive { sn, sent } => {
                if (200..300).contains(&response.status) {
                    self.deps.metrics.uplink_keepalive_answered(&self.label, now.saturating_duration_since(sent));
                    self.ladder.ok(Rung::Keepalive, ms, format!("keepalive {sn} answered"));
                } else {
                    self.deps.metrics.uplink_keepalive_missed(&self.label);
                    self.ladder.failed(Rung::Keepalive, ms, Some(response.status), format!("{}", response.status));
                }
                self.registration.response(now, Kind::Keepalive { sn }, &response);
            }
            Pending::Page { answer } => self.next_page(answer, response.status < 300).await,
            Pending::Notify { call_id } => self.on_notified(&call_id, response.status < 300, now).await,
            Pending::MediaStatus { key } => self.on_finish_told(key, response.status < 300).await,
            Pending::Alarm { seq } => self.on_alarm_answered(now, seq, Some(response.status)),
            Pending::Reply | Pending::Bye => {}
        }
    }

    pub(super) async fn on_client_failed(&mut self, now: Instant, tx: ClientTxId, reason: ClientFailure) {
        match self.pending.remove(&tx) {
            Some(Pending::Register) => self.registration.failed(now, Kind::Register, reason),
            Some(Pending::Keepalive { sn, .. }) => {
                self.deps.metrics.uplink_keepalive_missed(&self.label);
                self.registration.failed(now, Kind::Keepalive { sn }, reason);
            }
            Some(Pending::Page { answer }) => self.next_page(answer, false).await,
            Some(Pending::Notify { call_id }) => self.on_notified(&call_id, false, now).await,
            Some(Pending::MediaStatus { key }) => self.on_finish_told(key, false).await,
            Some(Pending::Alarm { seq }) => self.on_alarm_answered(now, seq, None),
            Some(Pending::Reply | Pending::Bye) | None => {}
        }
    }

    /// Platforms are often handed over with a wrong code; the right one stands in what they answer.
    pub(super) fn tell_other_code(&mut self, response: &Response) {
        let theirs: String = response.headers.to_user().unwrap_or_default().chars().take(32).collect();
        let status = response.status;
        self.refused = plain(&format!("{status} {}", response.reason));
        if !theirs.is_empty() && theirs != self.local_id.as_str() {
            tracing::warn!(uplink = %self.user, status, ours = %self.local_id, answered_for = %theirs,
                "the platform answers for another code than ours");
            self.refused.push_str(&format!(", for {} in place of {}", plain(&theirs), self.local_id));
        }
    }

    pub(super) fn learn_version(&mut self, response: &Response) {
        if self.cfg.uplink.standard != Standard::Auto {
            return;
        }
        let Some(version) = response.headers.get("X-GB-Ver").and_then(Version::parse) else { return };
        let profile = profile_of(&self.cfg, Some(version));
        if profile != self.profile {
            tracing::info!(uplink = %self.user, version = version.as_str(), "the platform told its edition");
            self.profile = profile;
            self.spec = self.cfg.view_spec(self.local_id, version);
            self.seen = None;
        }
    }

    pub(super) async fn on_request(&mut self, now: Instant, tx: ServerTxId, request: Request, flow: Flow) {
        match request.method.as_str() {
            "INVITE" => self.on_invite(now, tx, request, flow).await,
            "BYE" => self.on_bye(tx, request, flow).await,
            "MESSAGE" => self.on_message(tx, request, flow).await,
            "SUBSCRIBE" => self.on_subscribe(now, tx, request, flow).await,
            "INFO" => self.on_info(tx, request, flow).await,
            "OPTIONS" => {
                let mut response = response_to(&request, &flow, 200, None, "");
                response.headers.push("Allow", crate::transport::sip_driver::ALLOWED_METHODS.join(", "));
                response.headers.push("Accept", "application/sdp, Application/MANSCDP+xml");
                self.respond_with(tx, response).await;
            }
            "NOTIFY" => self.respond(tx, &request, &flow, 481, "we have subscribed to nothing").await,
            _ => self.respond(tx, &request, &flow, 403, "not taken from an upper platform").await,
        }
    }

    // ---- MESSAGE ----

    pub(super) fn parse_body(&self, request: &Request) -> Result<Incoming, Refusal> {
        let xml = request.headers.get("Content-Type").is_none_or(|_| {
            ["application/manscdp+xml", "application/xml", "text/xml"]
                .iter()
                .any(|t| header::content_type_is(&request.headers, t))
        });
        if !xml {
            return Err(Refusal::new(415, "the body is not Application/MANSCDP+xml"));
        }
        // `charset` is about what we send. What comes in is seen by its bytes; only where they are ambiguous does the
        // setting help.
        let utf8 =
            self.cfg.uplink.charset == crate::config::Charset::Utf8 && std::str::from_utf8(&request.body).is_ok();
        manscdp::parse(&request.body, utf8.then_some(Charset::Utf8)).map_err(|e| Refusal::new(400, e.to_string()))
    }

    pub(super) async fn on_message(&mut self, tx: ServerTxId, request: Request, flow: Flow) {
        let incoming = match self.parse_body(&request) {
            Ok(incoming) => incoming,
            Err(refusal) => {
                if refusal.status == 400 && is_notify(&request.body) {
                    // News nobody here can read harms nobody; a refusal would only be sent again.
                    tracing::debug!(uplink = %self.user, reason = %refusal.reason, "Notify not understood");
                    self.deps.metrics.sip_lenient(&self.label, "unknown_notify");
                    return self.respond(tx, &request, &flow, 200, "").await;
                }
                tracing::warn!(uplink = %self.user, status = refusal.status, reason = %refusal.reason, "MESSAGE refused");
                return self.refuse(tx, &request, &flow, &refusal).await;
            }
        };
        self.on_alarm_response(&incoming);
        self.refresh_view();
        let snapshot = self.deps.directory.now();
        let verdict = {
            let cx = Context {
                snapshot: &snapshot,
                spec: &self.spec,
                view: &self.view,
                profile: self.profile,
                allowed: self.allowed(),
                now: UnixMillis(self.now_ms()),
            };
            message::answer(&incoming, &cx)
        };
        if verdict.unknown_notify {
            self.deps.metrics.sip_lenient(&self.label, "unknown_notify");
        }
        if !verdict.reason.is_empty() {
            tracing::info!(uplink = %self.user, cmd = %message::cmd(&incoming), device = %incoming.device_id,
                status = verdict.status, reason = %verdict.reason, "refused");
        }
        if let Then::Relay { channel, response } = verdict.then {
            return match verdict.audit {
                Some(action) => self.relay_control(action, channel, response, incoming, tx, request, flow).await,
                None => self.relay_query(channel, incoming, tx, &request, &flow).await,
            };
        }
        if let Then::KeyFrame(channel) = verdict.then {
            // A control is done only once it is on record.
            let mut streams: Vec<StreamKey> = self
                .calls
                .values()
                .filter(|c| c.is_live() && c.channel == channel.id)
                .map(|c| StreamKey::live(channel.id.clone(), c.number))
                .collect();
            if streams.is_empty() {
                let number = stream_number(None, self.cfg.uplink.stream, channel.streams);
                streams.push(StreamKey::live(channel.id.clone(), number));
            }
            streams.sort();
            streams.dedup();
            let entry = self.entry("key_frame", "channel", channel.id.to_string(), Outcome::Ok, String::new(), &flow);
            let store = self.deps.store.clone();
            let request = Box::new(request);
            self.jobs.spawn(async move {
                let recorded = store.audit(entry).await.is_ok();
                Job::KeyFrame { tx, request, flow, streams, recorded }
            });
            return;
        }
        if let Some(action) = verdict.audit {
            self.record_refusal(action, incoming.device_id, &verdict.reason, &flow);
        }
        self.respond(tx, &request, &flow, verdict.status, verdict.sip_reason()).await;
        match verdict.then {
            Then::Reply(body) => {
                let message = self.message(body);
                self.send(message, Pending::Reply).await;
            }
            Then::Catalog { sn, device_id } => self.start_catalog(sn, device_id).await,
            Then::Nothing | Then::KeyFrame(_) | Then::Relay { .. } => {}
        }
    }

    pub(super) fn allowed(&self) -> Allowed {
        let has = |p| self.cfg.uplink.permissions.contains(&p);
        Allowed {
            live: has(Permission::Live),
            ptz: has(Permission::Ptz),
            config: has(Permission::Config),
            guard: has(Permission::Guard),
            talk: has(Permission::Talk),
        }
    }

    pub(super) fn entry(
        &self,
        action: &str,
        kind: &str,
        id: String,
        outcome: Outcome,
        reason: String,
        flow: &Flow,
    ) -> AuditEntry {
        let mut entry =
            AuditEntry::new(self.now_ms(), Actor::peer(self.cfg.uplink.name.clone()), action, kind, &id, outcome);
        entry.source = flow.peer.to_string();
        entry.reason = reason;
        entry
    }

    pub(super) fn record(&mut self, entry: AuditEntry) {
        let store = self.deps.store.clone();
        self.jobs.spawn(async move {
            if let Err(e) = store.audit(entry).await {
                tracing::error!(error = %e, "audit record lost");
            }
            Job::Recorded
        });
    }

    pub(super) fn record_job(&mut self, action: &str, kind: &str, id: String, outcome: Outcome, reason: String) {
        let mut entry = AuditEntry::new(self.now_ms(), Actor::system("northbound"), action, kind, &id, outcome);
        entry.reason = reason;
        self.record(entry);
    }

    pub(super) fn record_refusal(&mut self, action: &'static str, id: DeviceId, reason: &str, flow: &Flow) {
        let now = clock::now();
        if self.refusals.len() >= MAX_REFUSALS {
            self.refusals.retain(|_, at| now.saturating_duration_since(*at) < REFUSAL_AUDIT);
        }
        if self.refusals.get(&(action, id)).is_some_and(|at| now.saturating_duration_since(*at) < REFUSAL_AUDIT)
            || self.refusals.len() >= MAX_REFUSALS
        {
            return;
        }
        self.refusals.insert((action, id), now);
        let entry = self.entry(action, "channel", id.to_string(), Outcome::Deny, reason.to_owned(), flow);
        self.record(entry);
    }

    pub(super) async fn refuse(&self, tx: ServerTxId, request: &Request, flow: &Flow, refusal: &Refusal) {
        let reason = Some(plain(&refusal.reason)).filter(|text| !text.is_empty());
        let mut response = response_to(request, flow, refusal.status, reason.as_deref(), "");
        if let Some(reason) = reason {
            // Twice: some stacks put their own phrase in place of ours. [RFC3326]
            let text = reason.replace('\\', "\\\\").replace('"', "\\\"");
            response.headers.push("Reason", format!("SIP;cause={};text=\"{text}\"", refusal.status));
        }
        match refusal.status {
            415 if request.method == "INVITE" => response.headers.push("Accept", "application/sdp"),
            415 => response.headers.push("Accept", "Application/MANSCDP+xml"),
            486 | 503 => response.headers.push("Retry-After", "5"),
            489 => response.headers.push("Allow-Events", "Catalog, presence, Alarm"),
            _ => {}
        }
        self.respond_with(tx, response).await;
    }

    // ---- catalogue ----

    /// Brings the view up to date, if anything changed since.
    pub(super) fn refresh_view(&mut self) {
        let snapshot = self.deps.directory.now();
        if self.seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &snapshot)) {
            let fresh = view(&snapshot, &self.spec);
            self.seen = Some(snapshot);
            self.faulty = fresh.devices().filter(|i| i.status == Some(Status::Off)).map(|i| i.device_id).collect();
            self.view = Arc::new(fresh);
        }
    }

    pub(super) fn on_directory(&mut self, now: Instant) {
        for subscription in &mut self.subscriptions {
            subscription.view_changed(now);
        }
        if self.fault_due.is_none() {
            let earliest = self.fault_keepalive.map_or(now, |t| t + FAULT_KEEPALIVE);
            self.fault_due = Some(earliest.max(now + Duration::from_secs(1)));
        }
    }

    /// A fault is reported by a keepalive outside its turn [GB/T28181-2022 9.6.1].
    pub(super) fn look_for_faults(&mut self, now: Instant) {
        self.refresh_view();
        if self.told_faulty != self.faulty && self.closing.is_none() {
            self.fault_keepalive = Some(now);
            self.registration.keepalive_now();
        }
    }

    pub(super) fn page_size(&self) -> PageSize {
        PageSize::new(self.cfg.uplink.catalog_items_per_message.set(), self.transport().is_reliable())
    }

    pub(super) async fn start_catalog(&mut self, sn: u32, device_id: DeviceId) {
        self.refresh_view();
        let view = Arc::clone(&self.view);
        let items = view.select(&device_id, &self.local_id);
        let list = ListAnswer::catalog(self.profile, sn, device_id, &items);
        self.start_reply(device_id, list).await;
    }

    /// A new answer of the same kind for the same device supersedes the one under way.
    pub(super) async fn start_reply(&mut self, device_id: DeviceId, list: ListAnswer) {
        let reply = PagedReply::new(self.profile, list, self.page_size());
        let superseded = self.replies.iter().find(|(_, old)| old.is_of(reply.cmd_type(), &device_id));
        let oldest = self.replies.iter().next().filter(|_| self.replies.len() >= MAX_REPLIES);
        if let Some(number) = superseded.or(oldest).map(|(number, _)| *number)
            && let Some(old) = self.replies.remove(&number)
        {
            let (sent, of) = old.progress();
            tracing::info!(uplink = %self.user, cmd = old.cmd_type(), sent, of, "list answer superseded by a new query");
        }
        self.answers += 1;
        self.replies.insert(self.answers, reply);
        self.next_page(self.answers, true).await;
    }

    /// The page before was accepted, or not: the next one of the same answer.
    pub(super) async fn next_page(&mut self, answer: u64, ok: bool) {
        let Some(reply) = self.replies.get_mut(&answer) else { return };
        let (sent, of) = reply.progress();
        let catalog = QueryKind::parse(reply.cmd_type()) == Some(QueryKind::Catalog);
        let page = if ok { reply.next_page() } else { None };
        if let Some(body) = page {
            let message = self.message(body);
            if !self.send(message, Pending::Page { answer }).await {
                self.replies.remove(&answer);
            }
            return;
        }
        let Some(reply) = self.replies.remove(&answer) else { return };
        let (cmd, ms) = (reply.cmd_type(), self.now_ms());
        if ok {
            tracing::info!(uplink = %self.user, cmd, items = of, "list sent");
        } else {
            tracing::warn!(uplink = %self.user, cmd, sent, of, "list answer broken off: a page was not accepted");
        }
        match (catalog, ok) {
            (true, true) => self.ladder.ok(Rung::Catalog, ms, format!("{of} items sent and accepted")),
            (true, false) => self.ladder.failed(Rung::Catalog, ms, None, format!("{sent} of {of} items sent")),
            (false, _) => {}
        }
    }
}

/// A readable body with root Notify, whatever is in it.
fn is_notify(body: &[u8]) -> bool {
    manscdp::Element::parse(body, None).is_ok_and(|e| e.is(Root::Notify.as_str()))
}
