//! The link's registration: states, clock, learnt address, redirects, keepalives.

use super::*;

impl Link {
    pub(super) async fn drain_registration(&mut self) {
        while let Some(output) = self.registration.poll_output() {
            let now = clock::now();
            match output {
                RegistrationOutput::Send(request) => {
                    if self.redirect_unusable {
                        self.registration.failed(now, Kind::Register, ClientFailure::Transport);
                        continue;
                    }
                    let sent = self.send(request, Pending::Register).await;
                    let ms = self.now_ms();
                    match sent {
                        true => self.ladder.ok(Rung::Register, ms, format!("REGISTER sent to {}", self.peer)),
                        false => self.registration.failed(now, Kind::Register, ClientFailure::Transport),
                    }
                }
                RegistrationOutput::SendKeepalive { sn } => {
                    let body = self.keepalive(sn);
                    let request = self.message(body);
                    if !self.send(request, Pending::Keepalive { sn, sent: now }).await {
                        self.registration.failed(now, Kind::Keepalive { sn }, ClientFailure::Transport);
                    }
                }
                RegistrationOutput::StateChanged { from, to, reason } => self.on_state(from, to, reason).await,
                RegistrationOutput::Date { text, sent, received } => self.on_date(&text, received - sent, now).await,
                RegistrationOutput::Learned { received, rport } => self.on_learned(received, rport, now),
                RegistrationOutput::Redirected { to } => self.on_redirected(to).await,
                RegistrationOutput::Unregistered { confirmed } => {
                    tracing::info!(uplink = %self.user, confirmed, "unregistered");
                    self.unregistered = true;
                }
            }
        }
    }

    pub(super) async fn on_state(&mut self, from: State, to: State, reason: Reason) {
        let ms = self.now_ms();
        self.state_since = ms;
        let registered = to == State::Registered;
        self.deps.metrics.uplink_registered(&self.label, registered);
        let (status, mut text) = reason_text(reason);
        if matches!(reason, Reason::Rejected(_)) && !self.refused.is_empty() {
            text = format!("the platform answered {}", self.refused);
        }
        if registered {
            self.why.clear();
            self.restate(clock::now()).await;
            self.alarms.queue.restart();
            self.ladder.ok(Rung::Registered, ms, format!("registered at {}", self.peer));
            tracing::info!(uplink = %self.user, platform = %self.cfg.uplink.server_id, server = %self.peer, "registered");
        } else {
            self.why = text.clone();
        }
        match to {
            State::Waiting { until, .. } => {
                self.deps.metrics.uplink_register_failed(&self.label);
                let wait = until.saturating_duration_since(clock::now()).as_secs();
                tracing::warn!(uplink = %self.user, server = %self.peer, reason = %text, next_try_s = wait, "not registered");
                let rung = match reason {
                    Reason::NoCredentials => Rung::Challenge,
                    Reason::Rejected(_) | Reason::BadCredentials => Rung::Registered,
                    _ => Rung::Register,
                };
                self.ladder.reset_from(Rung::Registered);
                self.ladder.failed(rung, ms, status, text);
                // The platform is away: what it watched ends [GB/T28181-2022 annex K b].
                self.drop_calls().await;
            }
            State::Registering if from == State::Registered => {
                self.ladder.failed(Rung::Keepalive, ms, status, text.clone());
                tracing::warn!(uplink = %self.user, reason = %text, "registration lost, registering anew");
                if matches!(reason, Reason::KeepaliveMissed(_)) {
                    self.drop_calls().await;
                }
            }
            _ => {}
        }
        // /readyz must not lag behind the truth.
        self.publish();
    }

    pub(super) async fn drop_calls(&mut self) {
        let keys: Vec<u64> = self.calls.keys().copied().collect();
        for key in keys {
            self.feed(key, CallInput::Drop).await;
        }
    }

    pub(super) async fn on_date(&mut self, text: &str, round_trip: Duration, now: Instant) {
        let Ok(date) = UnixMillis::parse_sip_date(text) else {
            let shown: String = text.chars().take(40).collect();
            tracing::debug!(uplink = %self.user, date = %shown, "Date in the answer to REGISTER is unreadable");
            return;
        };
        // Measured against the system's clock; the correction in use is a part of ours.
        let system = clock::system_unix().as_millis() as i64;
        let offset = date.0 + round_trip.as_millis() as i64 / 2 - system;
        self.clock_offset = Some(offset);
        self.deps.metrics.uplink_clock_offset(&self.label, offset as f64 / 1000.0);
        if !self.cfg.is_time_source {
            return;
        }
        let step = offset - self.deps.wall.offset_ms();
        if step.unsigned_abs() > self.cfg.max_clock_step.as_millis() as u64 {
            tracing::error!(uplink = %self.user, step_ms = step, max = ?self.cfg.max_clock_step,
                "the platform's clock differs by more than time.max_step: not followed");
            self.record_job("time.step", "uplink", self.cfg.uplink.name.clone(), Outcome::Deny, format!("{step} ms"));
        } else if step.abs() > CLOCK_STEP {
            tracing::warn!(uplink = %self.user, step_ms = step, "protocol clock stepped to the platform's");
            self.deps.wall.slew(offset, i64::MAX / 2);
            self.clock_target = Some(offset);
            self.slew_at = None;
            self.record_job("time.step", "uplink", self.cfg.uplink.name.clone(), Outcome::Ok, format!("{step} ms"));
        } else {
            self.clock_target = Some(offset);
            self.slew_at = Some(now);
        }
    }

    pub(super) fn slew(&mut self, now: Instant) {
        self.slew_at = None;
        if let Some(target) = self.clock_target
            && self.deps.wall.slew(target, CLOCK_SLEW) != 0
        {
            self.slew_at = Some(now + Duration::from_secs(1));
        }
    }

    pub(super) fn on_learned(&mut self, received: Option<IpAddr>, rport: Option<u16>, now: Instant) {
        self.learned = (received, rport);
        let scope = format!("uplink:{}", self.cfg.uplink.name);
        let ms = self.now_ms();
        for (key, value) in [("received", received.map(|v| v.to_string())), ("rport", rport.map(|v| v.to_string()))] {
            let _ = self.deps.store.learn(&scope, key, &value.unwrap_or_default(), ms);
        }
        let contact = contact(&self.cfg, self.learned, self.route_ip);
        self.registration.set_contact(now, contact);
    }

    pub(super) async fn on_redirected(&mut self, to: Option<RedirectTarget>) {
        self.redirect_unusable = false;
        let (peer, server_id) = match &to {
            None => (self.cfg.uplink.server_addr, self.cfg.uplink.server_id.to_string()),
            Some(target) => match target.host.parse::<IpAddr>() {
                Ok(ip) => {
                    let code = if target.user.is_empty() { self.cfg.uplink.server_id.as_str() } else { &target.user };
                    (SocketAddr::new(ip, target.port.unwrap_or(5060)), code.to_owned())
                }
                Err(_) => {
                    tracing::warn!(uplink = %self.user, host = %target.host, "redirected to a host name: not followed, only addresses are");
                    self.redirect_unusable = true;
                    return;
                }
            },
        };
        tracing::info!(uplink = %self.user, server = %peer, "redirected");
        if let Some(wants) = to.as_ref().and_then(|t| t.transport.as_deref())
            && !wants.eq_ignore_ascii_case(self.transport().as_str())
        {
            tracing::warn!(uplink = %self.user, server = %peer, wants = %plain(wants), ours = self.transport().as_str(),
                "the redirect names another transport than this uplink's, which is kept");
        }
        self.peer = peer;
        self.redirected = to;
        // The connection to the server before says nothing about this one, and this one may be of another edition.
        self.conn = None;
        self.route_ip = self.cfg.bind_ip().or_else(|| local_ip_towards(peer).ok());
        let routes = vec![route(&self.cfg, peer, &server_id)];
        let _ = self.deps.sip.set_routes(self.user.clone(), routes).await;
    }

    pub(super) fn server_id(&self) -> &str {
        let sent_to = self.redirected.as_ref().map(|t| t.user.as_str()).filter(|user| !user.is_empty());
        sent_to.unwrap_or(self.cfg.uplink.server_id.as_str())
    }

    pub(super) fn keepalive(&mut self, sn: u32) -> Vec<u8> {
        self.refresh_view();
        let reliable = self.transport().is_reliable();
        // Each id costs 42 bytes; a message that is too large for UDP is worse than a shorter list.
        let room = if reliable { 200 } else { (UDP_MESSAGE - HEAD - 180) / 42 };
        self.told_faulty.clone_from(&self.faulty);
        let faulty: Vec<DeviceId> = self.faulty.iter().take(room).copied().collect();
        Keepalive { ok: true, faulty }.write(self.profile, sn, &self.local_id)
    }
}

fn reason_text(reason: Reason) -> (Option<u16>, String) {
    match reason {
        Reason::Rejected(status) => (Some(status), format!("the platform answered {status}")),
        Reason::BadCredentials => (Some(401), "user name or password is wrong".into()),
        Reason::NoCredentials => (Some(401), "the platform's challenge cannot be answered".into()),
        Reason::NoAnswer => (None, "no answer".into()),
        Reason::NoTransport => (None, "cannot be reached".into()),
        Reason::ConnectionLost => (None, "the connection was lost".into()),
        Reason::KeepaliveRejected(status) => (Some(status), format!("a keepalive was answered {status}")),
        Reason::KeepaliveMissed(n) => (None, format!("{n} keepalives without answer")),
        Reason::Started | Reason::RetryDue => (None, "registering".into()),
        Reason::Accepted => (None, "accepted".into()),
        Reason::Redirected => (None, "redirected".into()),
        Reason::Stopped => (None, "stopped".into()),
    }
}

pub(super) fn profile_of(cfg: &LinkConfig, learnt: Option<Version>) -> Profile {
    let version = match cfg.uplink.standard {
        Standard::V2011 => Version::V2011,
        Standard::V2016 => Version::V2016,
        Standard::V2022 => Version::V2022,
        Standard::Auto => learnt.unwrap_or(Version::V2016),
    };
    let profile = Profile::new(version);
    match cfg.uplink.charset {
        crate::config::Charset::Auto => profile,
        crate::config::Charset::Gb2312 => profile.with_charset(Charset::Gb2312),
        crate::config::Charset::Gb18030 => profile.with_charset(Charset::Gb18030),
        crate::config::Charset::Utf8 => profile.with_charset(Charset::Utf8),
    }
}

pub(super) fn route(cfg: &LinkConfig, peer: SocketAddr, server_id: &str) -> Route {
    Route {
        peers: vec![PeerAddr::from(peer)],
        server_id: Some(server_id.to_owned()),
        local_id: Some(cfg.uplink.local_id.to_string()),
        listener: Some(cfg.listener),
        registrar: false,
    }
}

pub(super) fn host_ip(
    cfg: &LinkConfig,
    learned: (Option<IpAddr>, Option<u16>),
    route_ip: Option<IpAddr>,
) -> Option<IpAddr> {
    let uplink = &cfg.uplink;
    uplink.advertised_address.set().or(uplink.bind.set()).or(learned.0).or(cfg.sip_advertised).or(route_ip)
}

pub(super) fn host_port(cfg: &LinkConfig, learned: (Option<IpAddr>, Option<u16>), route_ip: Option<IpAddr>) -> String {
    let fixed = cfg.uplink.advertised_address.set().is_some() || cfg.uplink.bind.set().is_some();
    let ip = host_ip(cfg, learned, route_ip).unwrap_or(cfg.listener.ip());
    // Over TCP rport is the connection's ephemeral port, where nobody listens.
    let port = match learned.1 {
        Some(port) if !fixed && learned.0.is_some() && cfg.uplink.transport == Via::Udp => port,
        _ => cfg.listener.port(),
    };
    SocketAddr::new(ip, port).to_string()
}

pub(super) fn contact(cfg: &LinkConfig, learned: (Option<IpAddr>, Option<u16>), route_ip: Option<IpAddr>) -> String {
    let host = host_port(cfg, learned, route_ip);
    match cfg.uplink.transport {
        Via::Udp => format!("sip:{}@{host}", cfg.uplink.local_id),
        Via::Tcp => format!("sip:{}@{host};transport=tcp", cfg.uplink.local_id),
        Via::Tls => format!("sip:{}@{host};transport=tls", cfg.uplink.local_id),
    }
}

pub(super) fn registration(cfg: &LinkConfig, rng: &mut StdRng, contact_uri: String, profile: Profile) -> Registration {
    let u = &cfg.uplink;
    let version = match (u.xgbver, u.standard) {
        (false, _) => None,
        // What we can do, not what we guess of the peer.
        (true, Standard::Auto) => Some(Profile::new(Version::V2022).xgbver().to_owned()),
        (true, _) => Some(profile.xgbver().to_owned()),
    };
    let config = RegistrationConfig {
        server_uri: format!("sip:{}@{}", u.server_id, u.server_addr),
        local_uri: format!("sip:{}@{}", u.local_id, u.domain),
        contact_uri,
        expires: u.register_expires.duration(),
        retry: u.register_retry.duration(),
        keepalive_interval: u.keepalive_interval.duration(),
        keepalive_max_missed: u.keepalive_max_missed,
        version,
    };
    let username = u.username.clone();
    let password = u.password.clone();
    let mut cnonce = StdRng::from_rng(rng);
    let answer: Answer = Box::new(move |response, request| {
        let password = password.as_ref()?;
        let (source, target) = match response.status {
            407 => ("Proxy-Authenticate", "Proxy-Authorization"),
            _ => ("WWW-Authenticate", "Authorization"),
        };
        let challenge = match pick_challenge(response.headers.get_all(source), false) {
            Ok(challenge) => challenge,
            Err(e) => {
                tracing::warn!(error = %e, "the platform's challenge cannot be answered");
                return None;
            }
        };
        let cnonce = format!("{:016x}", cnonce.random::<u64>());
        let mut client = DigestClient::new(challenge);
        let value = client.answer(&request.method, &request.uri, &username, password.expose(), &cnonce);
        Some((target.to_owned(), value))
    });
    Registration::new(config, answer, StdRng::from_rng(rng))
}
