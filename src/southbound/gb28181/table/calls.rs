//! Media sessions with devices: INVITE, ACK, BYE, INFO, and the receivers.
//! Standard: [GB/T28181-2022 9.2.1, 9.8, 9.9, annex C, annex G, annex L].

use super::super::MediaPolicy;
use super::super::call::{Call, CallInput, CallOutput, CallState};
use super::*;
use crate::catalog::{RecordEvent, RecordFacts, RecordRequest};
use crate::media::{ReceiveMeters, ReceiveSpec, ReceiveTransport, Seat, SourceFailure, SsrcRule, receive};
use crate::metrics::SourceCounters;
use crate::proto::sdp::ssrc::format_y;
use crate::proto::sdp::{Invite, MediaAnswer, MediaTransport, RecordType, Sdp, SessionKind};
use crate::proto::sip::dialog::Dialog;
use crate::transport::port_pool::{MediaSockets, PortLease, PortUse};
use std::num::NonZeroU16;
use std::sync::OnceLock;

/// A device that sends nothing within this after its 200 has no picture for us. Below what the hub waits.
const FIRST_PACKET: Duration = Duration::from_secs(6);
/// A live stream without a picture for so long is asked for anew. Below what viewers wait.
const SILENCE: Duration = Duration::from_secs(8);

/// What a call is for.
pub(super) enum Purpose {
    Live,
    Record {
        request: Box<RecordRequest>,
        facts: Arc<OnceLock<RecordFacts>>,
        events: mpsc::Sender<RecordEvent>,
        control: Option<CancellationToken>,
    },
}

/// A call and everything it holds.
pub(super) struct CallEntry {
    pub(super) call: Call,
    pub(super) device: DeviceId,
    own_id: DeviceId,
    key: StreamKey,
    purpose: Purpose,
    seat: Option<Seat>,
    invite: Option<ClientTxId>,
    call_id: String,
    ssrc: u32,
    transport: MediaTransport,
    local: Option<SocketAddr>,
    sockets: Option<(PortLease, MediaSockets)>,
    answer: Option<MediaAnswer>,
    pub(super) dialog: Option<Dialog>,
    receiving: Option<CancellationToken>,
    failure: SourceFailure,
    counted: bool,
}

fn meters(c: SourceCounters) -> ReceiveMeters {
    ReceiveMeters {
        packets: c.packets,
        bytes: c.bytes,
        lost: c.lost,
        alien: c.alien_ssrc,
        reordered: c.reordered,
        duplicates: c.duplicates,
        late: c.late,
        resyncs: c.resyncs,
    }
}

fn failure(reason: &'static str, text: impl Into<String>) -> SourceFailure {
    SourceFailure { reason, text: text.into() }
}

impl DeviceTable {
    pub(super) fn call_by_id(&self, call_id: &str) -> Option<u64> {
        self.calls.iter().find(|(_, c)| c.call_id == call_id).map(|(token, _)| *token)
    }

    pub(super) fn calls_of(&self, device: &DeviceId) -> Vec<u64> {
        self.calls.iter().filter(|(_, c)| c.device == *device).map(|(token, _)| *token).collect()
    }

    pub(super) async fn on_source(&mut self, request: SourceRequest) {
        match request {
            SourceRequest::Want { seat } => {
                let key = seat.key().clone();
                if !self.by_stream.contains_key(&key) {
                    let Some((device, own_id)) = self.channels.get(&key.channel).copied().filter(|_| key.session == 0)
                    else {
                        seat.failed(failure("closed", "the channel is not there any more"));
                        return seat.remove();
                    };
                    self.add_call(key.clone(), device, own_id, Purpose::Live);
                }
                let Some(token) = self.by_stream.get(&key).copied() else { return };
                if let Some(entry) = self.calls.get_mut(&token) {
                    entry.seat = Some(seat);
                }
                self.feed(token, CallInput::Want).await;
            }
            SourceRequest::Idle { key } => {
                if let Some(token) = self.by_stream.get(&key).copied() {
                    self.feed(token, CallInput::Idle).await;
                }
            }
            SourceRequest::Started { key } => {
                if let Some(token) = self.by_stream.get(&key).copied() {
                    self.feed(token, CallInput::Started).await;
                }
            }
            SourceRequest::KeyFrame { key } => self.ask_key_frame(&key).await,
        }
    }

    pub(super) fn add_call(&mut self, key: StreamKey, device: DeviceId, own_id: DeviceId, purpose: Purpose) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let linger = self.devices.get(&device).map_or(Duration::ZERO, |d| d.class.linger);
        let mut call = Call::new(matches!(purpose, Purpose::Live), linger);
        if self.devices.get(&device).is_none_or(|d| d.state != DeviceState::Online) {
            call.handle(CallInput::Offline);
        }
        self.by_stream.insert(key.clone(), token);
        self.calls.insert(
            token,
            CallEntry {
                call,
                device,
                own_id,
                key,
                purpose,
                seat: None,
                invite: None,
                call_id: String::new(),
                ssrc: 0,
                transport: MediaTransport::Udp,
                local: None,
                sockets: None,
                answer: None,
                dialog: None,
                receiving: None,
                failure: failure("device_offline", "the device is not registered"),
                counted: false,
            },
        );
        token
    }

    pub(super) async fn feed(&mut self, token: u64, input: CallInput) {
        let Some(entry) = self.calls.get_mut(&token) else { return };
        let mut outputs: VecDeque<CallOutput> = entry.call.handle(input).into();
        while let Some(output) = outputs.pop_front() {
            match output {
                CallOutput::Invite => {
                    if let Err(why) = self.invite(token).await {
                        let Some(entry) = self.calls.get_mut(&token) else { return };
                        entry.failure = why;
                        outputs.extend(entry.call.handle(CallInput::Refused { answered: false }));
                    }
                }
                CallOutput::Cancel => {
                    let tx = self.calls.get(&token).and_then(|e| e.invite);
                    if let Some(tx) = tx {
                        let _ = self.deps.sip.cancel(tx).await;
                    }
                }
                CallOutput::Ack => self.acknowledge(token).await,
                CallOutput::Bye => self.goodbye(token).await,
                CallOutput::Receive => self.receive(token),
                CallOutput::StopReceive => self.stop_receiving(token),
                CallOutput::Ready => {
                    if let Some(seat) = self.calls.get(&token).and_then(|e| e.seat.as_ref()) {
                        seat.ready(None);
                    }
                }
                CallOutput::Failed => {
                    let Some(entry) = self.calls.get(&token) else { return };
                    tracing::info!(device = %entry.device, channel = %entry.key, reason = entry.failure.reason,
                        error = %entry.failure.text, "no media");
                    if let Some(seat) = &entry.seat {
                        seat.failed(entry.failure.clone());
                    }
                    let text = format!("{}: {}", entry.failure.reason, entry.failure.text);
                    if let Some(device) = self.devices.get_mut(&entry.device) {
                        device.media_failure = text;
                    }
                }
                CallOutput::After(wait, n) => self.after(wait, Timer::Call(token, n)),
                CallOutput::Close => {
                    let Some(entry) = self.calls.remove(&token) else { return };
                    self.by_stream.remove(&entry.key);
                    if let Purpose::Record { events, control, .. } = &entry.purpose {
                        let _ = events.try_send(RecordEvent::Ended(entry.failure.text.clone()));
                        if let Some(control) = control {
                            control.cancel();
                        }
                    }
                    if let Some(seat) = entry.seat {
                        match entry.purpose {
                            // Its viewers stay as long as its channel is there.
                            Purpose::Live
                                if self.closing.is_none() && self.channels.contains_key(&entry.key.channel) =>
                            {
                                seat.close();
                            }
                            _ => seat.remove(),
                        }
                    }
                }
            }
        }
    }

    /// Takes ports and an SSRC and sends the INVITE.
    async fn invite(&mut self, token: u64) -> Result<(), SourceFailure> {
        let Some(entry) = self.calls.get(&token) else { return Err(failure("closed", "gone")) };
        let (device_id, own_id) = (entry.device, entry.own_id);
        let history = !matches!(entry.purpose, Purpose::Live);
        let Some(device) = self.devices.get(&device_id) else {
            return Err(failure("closed", "the device is not configured any more"));
        };
        if device.state != DeviceState::Online {
            return Err(failure("device_offline", format!("the device is not there: {}", device.reason)));
        }
        if device.streams >= device.class.max_streams {
            let text = format!("{} sessions, the most this device is asked for (max_streams)", device.streams);
            return Err(failure("device_busy", text));
        }
        let (flow, profile, class) = (device.flow, device.profile, device.class.clone());
        let transport = match class.media {
            MediaPolicy::Udp => MediaTransport::Udp,
            MediaPolicy::TcpActive => MediaTransport::TcpActive,
            MediaPolicy::TcpPassive => MediaTransport::TcpPassive,
            MediaPolicy::Auto if profile.has_tcp_media() => MediaTransport::TcpPassive,
            MediaPolicy::Auto => MediaTransport::Udp,
        };
        let port_use = match transport {
            MediaTransport::Udp => PortUse::Udp,
            MediaTransport::TcpPassive => PortUse::TcpPassive,
            MediaTransport::TcpActive => PortUse::TcpActive,
        };
        let bind = self.local_ip(&flow);
        let (lease, sockets) =
            self.deps.ports.allocate(clock::now(), bind, port_use).map_err(|e| failure("no_port", e.to_string()))?;
        let port = NonZeroU16::new(lease.port()).ok_or_else(|| failure("no_port", "port 0"))?;
        let used: Vec<u32> = self.calls.values().map(|c| c.ssrc).collect();
        let ssrc = self
            .ssrcs
            .as_mut()
            .and_then(|g| g.next(history, |s| used.contains(&s)))
            .unwrap_or_else(|| self.rng.random_range(1..1_000_000_000));
        let Some(entry) = self.calls.get_mut(&token) else { return Err(failure("closed", "gone")) };
        let number = entry.key.number;
        let mut invite = Invite {
            kind: SessionKind::Play,
            receiver: self.cfg.gateway_id,
            channel: own_id,
            address: self.cfg.media_advertised.unwrap_or(bind),
            port,
            transport,
            ssrc,
            time: None,
            record_type: RecordType::All,
            stream_number: (number > 0 && profile.has_stream_number()).then_some(number),
            download_speed: None,
            f: None,
        };
        if let Purpose::Record { request, .. } = &entry.purpose {
            invite.kind = request.kind;
            invite.time = Some((request.start, request.end));
            invite.record_type = request.uri.map_or(RecordType::All, |u| match u.record_type {
                1 => RecordType::Manual,
                2 => RecordType::Alarm,
                3 => RecordType::Time,
                _ => RecordType::All,
            });
            invite.download_speed = (request.kind == SessionKind::Download).then_some(request.speed);
        }
        entry.ssrc = ssrc;
        entry.transport = transport;
        entry.local = Some(SocketAddr::new(bind, port.get()));
        entry.sockets = Some((lease, sockets));
        entry.answer = None;
        entry.dialog = None;
        entry.failure = failure("no_answer", "the device did not answer");
        let mut message = self.request(&flow, "INVITE", &own_id);
        message.headers.push("Contact", self.contact(&flow));
        // The first digit of the sender's serial tells live from history [GB/T28181-2022 annex L]; y= has it too.
        let subject = format!("{own_id}:{},{}:{token}", format_y(ssrc), self.cfg.gateway_id);
        message.headers.push("Subject", subject);
        message.headers.push("Content-Type", "APPLICATION/SDP");
        message.body = Bytes::from(invite.to_sdp().to_string());
        let call_id = message.headers.call_id().unwrap_or_default().to_owned();
        let pending = Pending::Invite { token, request: Box::new(message.clone()) };
        let sent = self.send(flow, message, pending).await;
        let Some(entry) = self.calls.get_mut(&token) else { return Err(failure("closed", "gone")) };
        match sent {
            Ok(tx) => {
                entry.invite = Some(tx);
                entry.call_id = call_id;
                entry.counted = true;
                if let Some(device) = self.devices.get_mut(&device_id) {
                    device.streams += 1;
                }
                Ok(())
            }
            Err(_) => {
                entry.sockets = None;
                Err(failure("overloaded", "the INVITE could not be sent"))
            }
        }
    }

    pub(super) async fn on_invite_answer(&mut self, token: u64, request: Request, response: Response, flow: Flow) {
        let current = self.calls.get(&token).is_some_and(|e| {
            request.headers.call_id() == Some(e.call_id.as_str())
                && matches!(e.call.state(), CallState::Inviting | CallState::Cancelling)
        });
        if !current {
            // Nobody waits for it any more: a 2xx is acknowledged and said goodbye to [RFC3261 15].
            if response.status < 300
                && let Ok(mut dialog) = Dialog::uac(&request, &response, flow)
            {
                self.send_ack(&mut dialog, flow).await;
                self.send_bye(&mut dialog, flow).await;
            }
            return;
        }
        let Some(entry) = self.calls.get_mut(&token) else { return };
        entry.invite = None;
        if response.status >= 300 {
            let text = format!("the device answered {} {}", response.status, response.reason);
            let reason = if matches!(response.status, 486 | 600 | 603) { "device_busy" } else { "refused" };
            entry.failure = failure(reason, text);
            return self.feed(token, CallInput::Refused { answered: false }).await;
        }
        let Ok(dialog) = Dialog::uac(&request, &response, flow) else {
            entry.failure = failure("bad_answer", "the device's 200 lacks what a dialog needs");
            return self.feed(token, CallInput::Refused { answered: false }).await;
        };
        entry.dialog = Some(dialog);
        let answer = Sdp::parse(&response.body)
            .map_err(|e| e.to_string())
            .and_then(|sdp| MediaAnswer::from_sdp(&sdp).map_err(|e| e.to_string()));
        match answer {
            Ok(answer) => {
                if let Purpose::Record { facts, .. } = &entry.purpose {
                    let _ = facts.set(RecordFacts { file_size: answer.file_size });
                }
                entry.answer = Some(answer);
                self.feed(token, CallInput::Answered).await;
            }
            Err(e) => {
                entry.failure = failure("bad_answer", format!("the device's SDP cannot be used: {e}"));
                self.feed(token, CallInput::Refused { answered: true }).await;
            }
        }
    }

    pub(super) async fn on_invite_failed(&mut self, token: u64, tx: ClientTxId) {
        // That of an INVITE given up long ago says nothing about a newer one.
        let Some(entry) = self.calls.get_mut(&token).filter(|e| e.invite == Some(tx)) else { return };
        entry.invite = None;
        entry.failure = failure("no_answer", "the device did not answer");
        self.feed(token, CallInput::Refused { answered: false }).await;
    }

    async fn send_ack(&self, dialog: &mut Dialog, flow: Flow) {
        let request = dialog.request("ACK");
        let via = Some(self.sent_by(&flow));
        if let Err(e) = self.deps.sip.ack(&self.user, flow, via, request).await {
            tracing::debug!(error = %e, "ACK to a device not sent");
        }
    }

    async fn send_bye(&mut self, dialog: &mut Dialog, flow: Flow) {
        let mut request = dialog.request("BYE");
        request.headers.push("Contact", self.contact(&flow));
        let _ = self.send(flow, request, Pending::Goodbye).await;
    }

    /// Where a session's requests go: to where it was answered from; over a connection, to the one its device has now.
    fn session_flow(&self, token: u64) -> Option<Flow> {
        let entry = self.calls.get(&token)?;
        let dialog = entry.dialog.as_ref().map(Dialog::flow);
        let device = self.devices.get(&entry.device).map(|d| d.flow);
        dialog.filter(|flow| !flow.transport.is_reliable()).or(device).or(dialog)
    }

    async fn acknowledge(&mut self, token: u64) {
        let Some(flow) = self.session_flow(token) else { return };
        let Some(mut dialog) = self.calls.get_mut(&token).and_then(|e| e.dialog.take()) else { return };
        self.send_ack(&mut dialog, flow).await;
        if let Some(entry) = self.calls.get_mut(&token) {
            entry.dialog = Some(dialog);
        }
    }

    async fn goodbye(&mut self, token: u64) {
        let Some(flow) = self.session_flow(token) else { return };
        if let Some(mut dialog) = self.calls.get_mut(&token).and_then(|e| e.dialog.take()) {
            self.send_bye(&mut dialog, flow).await;
        }
    }

    fn receive(&mut self, token: u64) {
        let events = self.receive_tx.clone();
        let Some(entry) = self.calls.get_mut(&token) else { return };
        let (Some(seat), Some(answer), Some((port, sockets)), Some(local)) =
            (entry.seat.as_ref(), entry.answer, entry.sockets.take(), entry.local)
        else {
            return;
        };
        let Some(device) = self.devices.get(&entry.device) else { return };
        // Some devices send from another of their addresses than the one they answer with, or through a NAT.
        let from = vec![device.flow.peer.ip(), answer.remote.ip()];
        let transport = match sockets {
            MediaSockets::Udp { rtp, rtcp } => ReceiveTransport::Udp { rtp, rtcp: Some(rtcp), from },
            MediaSockets::TcpPassive(listener) => ReceiveTransport::TcpPassive { listener, from },
            MediaSockets::TcpActive(_) => ReceiveTransport::TcpActive { local, to: answer.remote },
        };
        let told = answer.ssrc.unwrap_or(entry.ssrc);
        let spec = ReceiveSpec {
            transport,
            port: Some(port),
            ssrc: if device.class.ssrc_strict { SsrcRule::Strict(entry.ssrc) } else { SsrcRule::Learn(told) },
            plane: device.class.plane,
            session: entry.key.session != 0,
            first_packet_limit: FIRST_PACKET,
            silence_limit: SILENCE,
            meters: meters(self.deps.metrics.source(&device.label)),
            events,
            token,
        };
        let cancel = CancellationToken::new();
        entry.receiving = Some(cancel.clone());
        if !seat.run(cancel, move |feed| receive(spec, feed)) {
            tracing::warn!(channel = %entry.key, "the media worker is stuck");
        }
    }

    fn stop_receiving(&mut self, token: u64) {
        let Some(entry) = self.calls.get_mut(&token) else { return };
        if let Some(cancel) = entry.receiving.take() {
            cancel.cancel();
        }
        entry.sockets = None;
        if std::mem::take(&mut entry.counted)
            && let Some(device) = self.devices.get_mut(&entry.device)
        {
            device.streams = device.streams.saturating_sub(1);
        }
    }

    pub(super) async fn on_receive(&mut self, token: u64, event: ReceiveEvent) {
        let Some(entry) = self.calls.get_mut(&token) else { return };
        match event {
            ReceiveEvent::FirstPacket(_) => tracing::debug!(channel = %entry.key, "first packet of the device"),
            ReceiveEvent::Playing { tracks, plane, ssrc } => {
                tracing::info!(device = %entry.device, channel = %entry.key, video = ?tracks.video, audio = ?tracks.audio,
                    plane = plane.as_str(), ssrc, "the device's stream plays");
                if let Some(device) = self.devices.get_mut(&entry.device) {
                    device.media_failure.clear();
                }
                self.feed(token, CallInput::Playing).await;
            }
            ReceiveEvent::Ended(why) => {
                // An old receiver's last word says nothing about the new one.
                if entry.receiving.take().is_some() {
                    entry.failure = why;
                    self.feed(token, CallInput::MediaLost).await;
                }
            }
        }
    }

    pub(super) async fn on_bye(&mut self, tx: ServerTxId, request: Request, flow: Flow, device: DeviceId) {
        let token = request.headers.call_id().and_then(|c| self.call_by_id(c));
        let token = token.filter(|token| self.calls[token].device == device);
        let Some(token) = token else {
            return self.respond(tx, &request, &flow, 481, "no such session").await;
        };
        self.respond(tx, &request, &flow, 200, "").await;
        if let Some(entry) = self.calls.get_mut(&token) {
            entry.failure = failure("closed", "the device ended the session");
        }
        self.feed(token, CallInput::PeerBye).await;
    }

    /// The device has sent a recording to its end (MediaStatus 121) [GB/T28181-2022 9.8.3].
    pub(super) fn record_finished(&mut self, call_id: Option<&str>, channel: &DeviceId, device: &DeviceId) {
        let by_call = call_id.and_then(|c| self.call_by_id(c)).filter(|token| self.calls[token].device == *device);
        // Some devices say it outside the session: then it is the only recording of that channel.
        let token = by_call.or_else(|| {
            let mut found = self.calls.iter().filter(|(_, c)| {
                c.device == *device
                    && (c.own_id == *channel || channel == device)
                    && !matches!(c.purpose, Purpose::Live)
            });
            let first = found.next().map(|(token, _)| *token);
            first.filter(|_| found.next().is_none())
        });
        let Some(entry) = token.and_then(|t| self.calls.get(&t)) else {
            tracing::debug!(%device, %channel, "MediaStatus for no session we know");
            return;
        };
        if let Purpose::Record { events, .. } = &entry.purpose {
            let _ = events.try_send(RecordEvent::Finished);
        }
    }

    /// Passes a playback control on.
    pub(super) async fn control_record(
        &mut self,
        token: u64,
        body: Bytes,
        reply: oneshot::Sender<Result<(u16, Bytes), CommandError>>,
    ) {
        let flow = self.session_flow(token);
        let taken = self.calls.get_mut(&token).and_then(|e| Some((e.dialog.as_mut()?.request("INFO"), flow?)));
        let Some((mut request, flow)) = taken else {
            let _ = reply.send(Err(CommandError::Gone));
            return;
        };
        request.headers.push("Contact", self.contact(&flow));
        request.headers.push("Content-Type", "Application/MANSRTSP");
        request.body = body;
        if let Err(Pending::Info { reply }) = self.send(flow, request, Pending::Info { reply }).await {
            let _ = reply.send(Err(CommandError::Busy("too many requests are open")));
        }
    }
}
