//! Media sessions of the link: INVITE, ACK, BYE, CANCEL, and what the hub and the sinks say.

use super::*;

/// One session and everything it holds.
pub(super) struct CallEntry {
    pub(super) call: Call,
    pub(super) tx: ServerTxId,
    pub(super) request: Request,
    pub(super) flow: Flow,
    pub(super) call_id: String,
    pub(super) tag: String,
    pub(super) wanted: Wanted,
    pub(super) channel: Arc<str>,
    pub(super) number: u8,
    pub(super) ssrc: u32,
    pub(super) remote: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) transport: SessionTransport,
    pub(super) dialog: Option<Dialog>,
    pub(super) lease: Option<SinkLease>,
    pub(super) tracks: Option<Tracks>,
    pub(super) refusal: String,
    pub(super) count: Option<SessionCount>,
    pub(super) invited: Instant,
    pub(super) since_ms: i64,
    pub(super) first_packet: bool,
    pub(super) answered_body: Bytes,
    /// None for live pictures.
    pub(super) record: Option<Record>,
}

impl CallEntry {
    /// For the audit log: which stream, where to, which part of a recording.
    fn describe(&self) -> String {
        let text = format!("stream {}, to {}", self.number, self.remote);
        match self.wanted.offer.time {
            Some((start, end)) => format!("{text}, t={start}-{end}"),
            None => text,
        }
    }
}

impl Link {
    pub(super) fn call_by_id(&self, call_id: &str) -> Option<u64> {
        self.calls.iter().find(|(_, c)| c.call_id == call_id).map(|(k, _)| *k)
    }

    /// The call an in-dialog request belongs to, by this uplink's matching policy.
    pub(super) fn call_for(&self, request: &Request) -> Option<u64> {
        let strict = self.cfg.uplink.dialog_match == DialogPolicy::Strict;
        let mut lenient = None;
        for (key, call) in &self.calls {
            let found = match &call.dialog {
                Some(dialog) => dialog.matches(request, strict),
                None if Some(call.call_id.as_str()) == request.headers.call_id() => DialogMatch::Lenient,
                None => DialogMatch::None,
            };
            match found {
                DialogMatch::Exact => return Some(*key),
                DialogMatch::Lenient => lenient = Some(*key),
                DialogMatch::None => {}
            }
        }
        if lenient.is_some() {
            self.deps.metrics.sip_lenient(&self.label, "dialog_match");
        }
        lenient
    }

    pub(super) async fn on_bye(&mut self, tx: ServerTxId, request: Request, flow: Flow) {
        let Some(key) = self.call_for(&request) else {
            return self.respond(tx, &request, &flow, 481, "no such session").await;
        };
        let stale =
            self.calls.get_mut(&key).and_then(|c| c.dialog.as_mut()).is_some_and(|d| d.check_cseq(&request).is_err());
        if stale {
            return self.respond(tx, &request, &flow, 500, "CSeq out of order").await;
        }
        self.respond(tx, &request, &flow, 200, "").await;
        self.feed(key, CallInput::Bye).await;
    }

    pub(super) async fn on_invite(&mut self, now: Instant, tx: ServerTxId, request: Request, flow: Flow) {
        if request.headers.to_tag().is_some() {
            return self.on_reinvite(tx, request, flow).await;
        }
        let ms = self.now_ms();
        let history = invite::is_history(&request);
        let call_id = request.headers.call_id().unwrap_or_default().to_owned();
        match self.prepare(now, &request, tx, flow).await {
            Ok(()) if history => {}
            Ok(()) => {
                self.ladder.ok(Rung::Invite, ms, format!("INVITE {call_id}"));
                self.ladder.reset_from(Rung::Ack);
            }
            Err(refusal) => {
                tracing::warn!(uplink = %self.user, %call_id, uri = %plain(&request.uri), status = refusal.status,
                    reason = %refusal.reason, "INVITE refused");
                if !history {
                    let evidence = format!("{} {}", refusal.status, refusal.reason);
                    self.ladder.failed(Rung::Invite, ms, Some(refusal.status), evidence);
                }
                self.refuse(tx, &request, &flow, &refusal).await;
            }
        }
    }

    /// The same offer again is answered the same; a changed one is refused.
    pub(super) async fn on_reinvite(&mut self, tx: ServerTxId, request: Request, flow: Flow) {
        let Some(key) = self.call_for(&request) else {
            return self.respond(tx, &request, &flow, 481, "no such session").await;
        };
        let contact = self.contact_header();
        let call = &self.calls[&key];
        let same = call.call.state() == CallState::Established && request.body == call.request.body;
        if !same {
            return self.respond(tx, &request, &flow, 488, "a session cannot be changed: end it and invite anew").await;
        }
        let mut response = response_to(&request, &flow, 200, None, &call.tag);
        response.headers.push("Contact", contact);
        response.headers.push("Content-Type", "APPLICATION/SDP");
        response.body = call.answered_body.clone();
        self.respond_with(tx, response).await;
    }

    pub(super) async fn prepare(
        &mut self,
        now: Instant,
        request: &Request,
        tx: ServerTxId,
        flow: Flow,
    ) -> Result<(), Refusal> {
        if self.closing.is_some() {
            return Err(Refusal::new(503, "stopping"));
        }
        let wanted = invite::read(request, &self.local_id)?;
        self.may_open(wanted.offer.kind)?;
        let snapshot = self.deps.directory.now();
        let channel: Arc<Channel> = shared_channel(&snapshot, &self.spec, &wanted.channel)
            .map_err(|_| Refusal::new(404, format!("channel {} is unknown or not shared", wanted.channel)))?;
        let recording = match wanted.offer.kind.is_history() {
            true => Some(self.record_request(&wanted.offer, &channel)?),
            false => None,
        };
        if self.call_by_id(request.headers.call_id().unwrap_or_default()).is_some() {
            // ACK and BYE are told apart by Call-ID; a merged or repeated INVITE is one of the two [RFC3261 8.2.2.2].
            return Err(Refusal::new(482, "a session with this Call-ID is under way"));
        }
        if let Some(ended) = self.stale_session(&wanted) {
            tracing::info!(uplink = %self.user, "a session of the same Subject is replaced");
            if let Some(call) = self.calls.get_mut(&ended) {
                call.refusal = "replaced by a newer INVITE with the same Subject".into();
            }
            self.feed(ended, CallInput::Drop).await;
        }
        if self.calls.len() >= self.cfg.uplink.max_sessions as usize {
            return Err(Refusal::new(486, format!("max_sessions {} reached", self.cfg.uplink.max_sessions)));
        }
        let remote = wanted.offer.remote;
        if !self.cfg.media_allowed(remote, &self.deps.own) {
            let (ip, bits) = (remote.ip(), if remote.is_ipv4() { 32 } else { 128 });
            let text = format!(
                "media to {remote} is outside media_networks: add media_networks = [\"auto\", \"{ip}/{bits}\"]"
            );
            return Err(Refusal::new(403, text));
        }
        let number = stream_number(wanted.offer.stream_number, self.cfg.uplink.stream, channel.streams);
        let bind = self.route_ip.unwrap_or(self.cfg.listener.ip());
        if bind.is_ipv4() != remote.is_ipv4() {
            let text = format!("c= {} cannot be reached from {bind}: offer an address of the same family", remote.ip());
            return Err(Refusal::new(488, text));
        }
        let (port_use, transport) = match wanted.offer.transport {
            MediaTransport::Udp => (PortUse::Udp, SessionTransport::Udp),
            // Named from the offerer's side: a passive offerer is connected to.
            MediaTransport::TcpPassive => (PortUse::TcpActive, SessionTransport::TcpActive),
            MediaTransport::TcpActive => (PortUse::TcpPassive, SessionTransport::TcpPassive),
        };
        let (port, sockets) = self.deps.ports.allocate(now, bind, port_use).map_err(|e| match e {
            PoolError::Exhausted { .. } => Refusal::new(486, e.to_string()),
            _ => Refusal::new(503, e.to_string()),
        })?;
        let local = SocketAddr::new(bind, port.port());
        let sink_transport = match sockets {
            MediaSockets::Udp { rtp, rtcp } => {
                SinkTransport::Udp { socket: rtp, rtcp: Some(rtcp), destination: remote }
            }
            MediaSockets::TcpPassive(listener) => {
                SinkTransport::TcpPassive { listener, from: vec![remote.ip(), self.peer.ip()] }
            }
            // Reserved until here by the bound socket, from here by the lease; each attempt binds anew.
            MediaSockets::TcpActive(_) => SinkTransport::TcpActive { local, destination: remote },
        };
        let ssrc = match (self.cfg.uplink.ssrc, wanted.offer.ssrc) {
            (SsrcPolicy::Echo, Some(ssrc)) => ssrc,
            _ => self.own_ssrc(recording.is_some()),
        };
        let spec = SinkSpec {
            ssrc,
            first_sequence: self.rng.random(),
            payload_max: self.cfg.rtp_payload_max,
            payload_type: wanted.payload_type,
            transport: sink_transport,
            port: Some(port),
            cname: self.local_id.as_str().into(),
            meters: SinkMeters {
                sent: self.sent.clone(),
                dropped_slow: self.drops.0.clone(),
                dropped_error: self.drops.1.clone(),
            },
            events: self.sink_tx.clone(),
        };
        let key = self.next_call;
        self.next_call += 1;
        let record = match recording {
            Some(request) => Some(self.open_record(key, &channel, request, spec)),
            None => {
                self.subscribe(key, StreamKey::live(channel.id.clone(), number), spec, channel.source.clone())?;
                None
            }
        };
        let call_id = request.headers.call_id().unwrap_or_default().to_owned();
        let entry = CallEntry {
            call: Call::new(),
            tx,
            request: request.clone(),
            flow,
            call_id,
            tag: format!("{:016x}", self.rng.random::<u64>()),
            wanted,
            channel: channel.id.clone(),
            number,
            ssrc,
            remote,
            local,
            transport,
            dialog: None,
            lease: None,
            tracks: None,
            refusal: String::new(),
            count: None,
            invited: now,
            since_ms: self.now_ms(),
            first_packet: false,
            answered_body: Bytes::new(),
            record,
        };
        self.calls.insert(key, entry);
        Ok(())
    }

    /// Asks the hub for the stream of call `key`.
    pub(super) fn subscribe(
        &mut self,
        key: u64,
        stream: StreamKey,
        spec: SinkSpec,
        source: SourceHandle,
    ) -> Result<(), Refusal> {
        let answer = self.deps.hub.subscribe(stream, spec, source).map_err(|e| Refusal::new(503, e.to_string()))?;
        self.jobs.spawn(async move {
            let result = answer.await.unwrap_or(Err(SubscribeError::Stopping));
            Job::Subscribed { key, result }
        });
        Ok(())
    }

    /// A session this INVITE replaces: the same Subject in another call [GB/T28181-2022 annex K c].
    pub(super) fn stale_session(&self, wanted: &Wanted) -> Option<u64> {
        let subject = wanted.subject.as_ref()?;
        // The receiver's half belongs to it: platforms with one serial for all live streams number their windows there,
        // and a second window must not end the first.
        self.calls.iter().find(|(_, c)| c.wanted.subject.as_ref() == Some(subject)).map(|(k, _)| *k)
    }

    /// 0, or 1 for a recording, digits 4-8 of our code, and a number that is not used again soon.
    pub(super) fn own_ssrc(&mut self, history: bool) -> u32 {
        let used: Vec<u32> = self.calls.values().map(|c| c.ssrc).collect();
        self.ssrcs
            .as_mut()
            .and_then(|g| g.next(history, |s| used.contains(&s)))
            .unwrap_or_else(|| u32::from(history) * 1_000_000_000 + self.rng.random_range(1..1_000_000_000))
    }

    pub(super) async fn on_job(&mut self, job: Job) {
        match job {
            Job::Recorded => {}
            Job::ControlRecorded { number, recorded } => self.on_control_recorded(number, recorded).await,
            Job::Opened { key, result } => self.on_opened(key, result).await,
            Job::RecordNews { key, event, events } => self.on_record_news(key, event, events).await,
            Job::Controlled { key, tx, request, flow, asked, result } => {
                self.on_info_answered(key, (tx, request, flow), asked, result).await;
            }
            Job::Relayed { number, result } => self.on_relayed(number, result).await,
            Job::AlarmRows { read, rows } => self.alarms.queue.loaded(clock::now(), read, rows),
            Job::KeyFrame { tx, request, flow, streams, recorded } => {
                if recorded {
                    for stream in streams {
                        self.deps.hub.request_key_frame(stream);
                    }
                    self.respond(tx, &request, &flow, 200, "").await;
                } else {
                    let refusal = Refusal::new(503, "the audit log cannot be written: controls are refused");
                    self.refuse(tx, &request, &flow, &refusal).await;
                }
            }
            Job::Subscribed { key, result } => {
                let Some(entry) = self.calls.get_mut(&key) else { return };
                match result {
                    Ok(ready) if self.ended_sinks.contains(&ready.lease.id()) => {
                        entry.refusal = "the stream ended before it began".into();
                        self.feed(key, CallInput::Failed(503)).await;
                    }
                    Ok(ready) => {
                        let h265 = ready.tracks.is_some_and(|t| t.video == VideoCodec::H265);
                        if h265 && self.cfg.uplink.h265 == H265Policy::Refuse && self.profile.version() < Version::V2022
                        {
                            entry.refusal = "the channel is H.265 and h265 = \"refuse\"".into();
                            return self.feed(key, CallInput::Failed(488)).await;
                        }
                        entry.tracks = ready.tracks;
                        entry.lease = Some(ready.lease);
                        self.feed(key, CallInput::Ready).await;
                    }
                    Err(e) => {
                        entry.refusal = e.to_string();
                        let status = match &e {
                            SubscribeError::Timeout(_) => 504,
                            // The channel's device takes no more, by its own word or by `max_streams`.
                            SubscribeError::Source(why) if why.reason == "device_busy" => 486,
                            _ => 503,
                        };
                        self.feed(key, CallInput::Failed(status)).await;
                    }
                }
            }
        }
    }

    pub(super) async fn on_sink(&mut self, sink: SinkId, event: SinkEvent) {
        let found = self.calls.iter().find(|(_, c)| c.lease.as_ref().is_some_and(|l| l.id() == sink)).map(|(k, _)| *k);
        let Some(key) = found else {
            if matches!(event, SinkEvent::Ended(_)) {
                // Its call may not know its sink yet: the hub's answer is another way, and may be later.
                self.ended_sinks.truncate(ENDED_SINKS - 1);
                self.ended_sinks.push_front(sink);
            }
            return;
        };
        let ms = self.now_ms();
        match event {
            SinkEvent::Connected => tracing::debug!(uplink = %self.user, "media connection is up"),
            SinkEvent::FirstPacket(at) => {
                if let Some(call) = self.calls.get_mut(&key) {
                    call.first_packet = true;
                    let after = at.saturating_duration_since(call.invited);
                    self.deps.metrics.media_first_packet(&self.label, after);
                    let to = call.remote;
                    if call.is_live() {
                        let evidence = format!("first packet to {to} after {} ms", after.as_millis());
                        self.ladder.ok(Rung::FirstRtp, ms, evidence);
                    }
                }
            }
            SinkEvent::Ended(why) => {
                let call = &self.calls[&key];
                tracing::info!(uplink = %self.user, call_id = %call.call_id, channel = %call.channel,
                    remote = %call.remote, reason = why.as_str(), "media ended");
                if call.is_live() && matches!(why, SinkEnd::ConnectFailed | SinkEnd::NeverConnected | SinkEnd::Refused)
                {
                    self.ladder.failed(Rung::FirstRtp, ms, None, format!("{}: {}", call.remote, why.as_str()));
                }
                if !self.record_drained(key, why) {
                    self.feed(key, CallInput::MediaEnded).await;
                }
            }
        }
    }

    pub(super) async fn feed(&mut self, key: u64, input: CallInput) {
        let Some(entry) = self.calls.get_mut(&key) else { return };
        let mut outputs = VecDeque::from(entry.call.handle(input));
        while let Some(output) = outputs.pop_front() {
            match output {
                CallOutput::Accept => self.accept(key).await,
                CallOutput::Refuse(status) => {
                    let entry = &self.calls[&key];
                    let reason = match (status, entry.refusal.as_str()) {
                        (487, _) => "cancelled".to_owned(),
                        (_, "") => "the session ended before it began".to_owned(),
                        (_, text) => text.to_owned(),
                    };
                    if status != 487 {
                        tracing::warn!(uplink = %self.user, call_id = %entry.call_id, channel = %entry.channel, status,
                            reason = %reason, "INVITE refused");
                        if entry.is_live() {
                            let ms = self.now_ms();
                            self.ladder.failed(Rung::Invite, ms, Some(status), format!("{status} {reason}"));
                        }
                    }
                    let entry = &self.calls[&key];
                    self.refuse(entry.tx, &entry.request, &entry.flow, &Refusal::new(status, reason)).await;
                }
                CallOutput::Start => {
                    let Some(entry) = self.calls.get_mut(&key) else { continue };
                    if !entry.lease.as_ref().is_some_and(SinkLease::start) {
                        tracing::error!(uplink = %self.user, call_id = %entry.call_id, "the media worker is stuck: BYE");
                        outputs.extend(entry.call.handle(CallInput::MediaEnded));
                    }
                }
                CallOutput::Bye => {
                    let Some(dialog) = self.calls.get_mut(&key).and_then(|c| c.dialog.as_mut()) else { continue };
                    let mut request = dialog.request("BYE");
                    let flow = dialog.flow();
                    let flow = self.dialog_flow(flow);
                    request.headers.push("Contact", self.contact_header());
                    self.send_on(flow, request, Pending::Bye).await;
                }
                CallOutput::Release => {
                    if let Some(entry) = self.calls.remove(&key) {
                        self.finish(entry);
                    }
                }
            }
        }
    }

    pub(super) fn finish(&mut self, entry: CallEntry) {
        if entry.count.is_none() {
            return;
        }
        let seconds = (self.now_ms() - entry.since_ms).max(0) / 1000;
        tracing::info!(uplink = %self.user, call_id = %entry.call_id, channel = %entry.channel, seconds, "session ended");
        let text = format!("{seconds} s, {}", entry.describe());
        let action = format!("{}.end", kind_word(entry.kind()));
        let record = self.entry(&action, "channel", entry.channel.to_string(), Outcome::Ok, text, &entry.flow);
        self.record(record);
    }

    pub(super) async fn accept(&mut self, key: u64) {
        let media_ip = self
            .cfg
            .media_advertised
            .unwrap_or_else(|| host_ip(&self.cfg, self.learned, self.route_ip).unwrap_or(self.cfg.listener.ip()));
        let contact = self.contact_header();
        let Some(entry) = self.calls.get_mut(&key) else { return };
        let Some(port) = NonZeroU16::new(entry.local.port()) else { return };
        let answer = SdpAnswer {
            offer: &entry.wanted.offer,
            sender: entry.wanted.channel,
            address: media_ip,
            port,
            ssrc: entry.ssrc,
            f: entry.tracks.map(|t| f_of(&t)),
            file_size: entry.record.as_ref().and_then(Record::file_size),
        };
        let body = Bytes::from(answer.to_sdp().to_string());
        let mut response = response_to(&entry.request, &entry.flow, 200, None, &entry.tag);
        response.headers.push("Contact", contact);
        response.headers.push("Content-Type", "APPLICATION/SDP");
        response.body = body.clone();
        entry.answered_body = body;
        entry.dialog = Dialog::uas(&entry.request, &response, entry.flow).ok();
        let kind = match entry.kind() {
            OfferKind::Playback => SessionKind::Playback,
            OfferKind::Download => SessionKind::Download,
            OfferKind::Play | OfferKind::Talk => SessionKind::Play,
        };
        entry.count = Some(self.deps.metrics.media_session_started(&self.label, kind, entry.transport));
        let tx = entry.tx;
        let waited = clock::now().saturating_duration_since(entry.invited);
        tracing::info!(uplink = %self.user, call_id = %entry.call_id, channel = %entry.channel, stream = entry.number,
            remote = %entry.remote, transport = transport_name(entry.transport), ssrc = entry.ssrc,
            after_ms = waited.as_millis() as u64, "INVITE accepted");
        let (text, action) = (entry.describe(), format!("{}.begin", kind_word(entry.kind())));
        let (channel, flow) = (entry.channel.to_string(), entry.flow);
        let record = self.entry(&action, "channel", channel, Outcome::Ok, text, &flow);
        self.record(record);
        self.respond_with(tx, response).await;
    }
}

/// Which of a camera's `streams` is given: the one asked for, else the uplink's; its last one where it has fewer.
pub(super) fn stream_number(asked: Option<u8>, default: u8, streams: u8) -> u8 {
    asked.unwrap_or(default).min(streams.saturating_sub(1))
}

pub(super) fn transport_name(transport: SessionTransport) -> &'static str {
    match transport {
        SessionTransport::Udp => "udp",
        SessionTransport::TcpActive => "tcp_active",
        SessionTransport::TcpPassive => "tcp_passive",
    }
}

/// What we send, in the words of the f= line [GB/T28181-2022 G.1.6].
fn f_of(tracks: &Tracks) -> F {
    let codec = match tracks.video {
        VideoCodec::H264 => SdpVideo::H264,
        VideoCodec::H265 => SdpVideo::H265,
    };
    let resolution = tracks.size.and_then(|(w, h)| match (w, h) {
        (176, 144) => Some(Resolution::Code(1)),
        (352, 288) => Some(Resolution::Code(2)),
        (704, 576) => Some(Resolution::Code(3)),
        (720, 576 | 480) => Some(Resolution::Code(4)),
        (1280, 720) => Some(Resolution::Code(5)),
        (1920, 1080) => Some(Resolution::Code(6)),
        (w, h) => Some(Resolution::Size(u16::try_from(w).ok()?, u16::try_from(h).ok()?)),
    });
    let audio = match tracks.audio {
        None => AudioParams::default(),
        Some(AudioCodec::Aac) => AudioParams { codec: Some(SdpAudio::Aac), ..AudioParams::default() },
        Some(AudioCodec::G711A | AudioCodec::G711U) => AudioParams::G711,
    };
    F { video: VideoParams { codec: Some(codec), resolution, ..VideoParams::default() }, audio }
}
