//! Commands of the north: controls and queries passed on in the device's own spelling, recordings opened.
//! Standard: [GB/T28181-2022 9.3, 9.5, 9.7, 9.8].

use super::calls::Purpose;
use super::messages::{Query, Wanted};
use super::*;
use crate::alarm::AlarmReset;
use crate::catalog::{CommandAnswer, RecordControl, RecordRequest, RecordSession};
use crate::proto::manscdp::relay::{RelayError, Respell};
use crate::proto::manscdp::{ChecksumPolicy, DeviceControl, Incoming, QueryKind, Root, device_control, query};

/// Playback controls of one session that wait: people press buttons.
const CONTROLS: usize = 16;
/// News of a recording's session: it ends once, perhaps twice.
const RECORD_EVENTS: usize = 4;

impl DeviceTable {
    pub(super) async fn on_command(&mut self, command: ChannelCommand) {
        match command {
            ChannelCommand::Message { channel, message, reply } => self.pass_on(&channel, *message, reply).await,
            ChannelCommand::Open { channel, request, reply } => {
                let _ = reply.send(self.open_record(&channel, request));
            }
        }
    }

    fn owner(&self, channel: &Arc<str>) -> Result<(DeviceId, DeviceId), CommandError> {
        let (device, own_id) = self.channels.get(channel).copied().ok_or(CommandError::Gone)?;
        match self.devices.get(&device) {
            Some(d) if d.state == DeviceState::Online => Ok((device, own_id)),
            _ => Err(CommandError::Offline),
        }
    }

    async fn pass_on(
        &mut self,
        channel: &Arc<str>,
        message: Incoming,
        reply: oneshot::Sender<Result<CommandAnswer, CommandError>>,
    ) {
        let (device_id, own_id) = match self.owner(channel) {
            Ok(owner) => owner,
            Err(e) => return drop(reply.send(Err(e))),
        };
        let (flow, profile) = match self.devices.get(&device_id) {
            Some(device) => (device.flow, device.profile),
            None => return drop(reply.send(Err(CommandError::Gone))),
        };
        // A configuration is answered always; of controls, those the standard says [GB/T28181-2022 9.3.1].
        let due = message.root == Root::Query
            || device_control(&message, ChecksumPolicy::default()).map_or(true, |control| {
                self.reset_latch(channel, &control);
                control.response_due()
            });
        let sn = self.next_sn();
        let body = match self.respelt(&message, sn, own_id, profile) {
            Ok(body) => body,
            Err(e) => {
                tracing::info!(device = %device_id, error = %e, "a command cannot be passed on");
                return drop(reply.send(Err(CommandError::Unsupported)));
            }
        };
        let request = self.message(&flow, &device_id, body);
        if !due {
            if let Err(Pending::Control { reply }) = self.send(flow, request, Pending::Control { reply }).await {
                let _ = reply.send(Err(CommandError::Busy("too many requests are open")));
            }
            return;
        }
        let list = match QueryKind::parse(&message.cmd_type).filter(|_| message.root == Root::Query) {
            Some(kind) => kind.answer_list(),
            None => None,
        };
        let wanted = Wanted::Command { reply, list };
        self.ask(device_id, sn, message.cmd_type.clone(), wanted, request).await;
    }

    /// Whoever resets a device's alarm wants to hear of the next one, whatever the device makes of it
    /// [GB/T28181-2022 A.2.3.1.6].
    fn reset_latch(&mut self, channel: &Arc<str>, control: &DeviceControl) {
        if let DeviceControl::AlarmReset { methods, alarm_type } = control {
            let reset =
                AlarmReset { channel: DeviceId::parse(channel).ok(), methods: methods.clone(), kind: *alarm_type };
            let alarms = self.deps.alarms.clone();
            self.jobs.spawn(async move {
                if let Err(e) = alarms.reset(reset).await {
                    tracing::warn!(error = %e, "an alarm's latch could not be reset");
                }
                Job::Nothing
            });
        }
    }

    /// The message in the device's words. Identifiers in it are of this channel or its neighbours, as the upper platform
    /// knows them.
    fn respelt(
        &self,
        message: &Incoming,
        sn: u32,
        device_id: DeviceId,
        profile: Profile,
    ) -> Result<Vec<u8>, RelayError> {
        let map_id = |id: &DeviceId| self.channels.get(id.as_str()).map_or(*id, |(_, own_id)| *own_id);
        Respell { sn, device_id, profile, cmd_type: None, map_id: &map_id }.write(message)
    }

    /// Sends a query and waits for its answer, without waiting here.
    pub(super) async fn ask(&mut self, device: DeviceId, sn: u32, cmd_type: String, wanted: Wanted, request: Request) {
        let Some(flow) = self.devices.get(&device).map(|d| d.flow) else { return };
        if self.queries.len() >= MAX_QUERIES {
            return self
                .answer_query(
                    Query::new(device, cmd_type, wanted),
                    Err(CommandError::Busy("too many questions are open")),
                )
                .await;
        }
        self.queries.insert(sn, Query::new(device, cmd_type, wanted));
        self.after(messages::ANSWER_LIMIT, Timer::Query(sn));
        if self.send(flow, request, Pending::Message { device, sn: Some(sn) }).await.is_err()
            && let Some(query) = self.queries.remove(&sn)
        {
            self.answer_query(query, Err(CommandError::Busy("too many requests are open"))).await;
        }
    }

    /// A key frame for a viewer that would wait long [GB/T28181-2016 A.2.3 f].
    pub(super) async fn ask_key_frame(&mut self, key: &StreamKey) {
        let Ok((device_id, own_id)) = self.owner(&key.channel) else { return };
        let Some((flow, profile)) = self.devices.get(&device_id).map(|d| (d.flow, d.profile)) else { return };
        let sn = self.next_sn();
        if let Some(body) = query::control(profile, sn, &own_id, &DeviceControl::KeyFrame) {
            let request = self.message(&flow, &device_id, body);
            let _ = self.send(flow, request, Pending::Message { device: device_id, sn: None }).await;
        }
    }

    fn open_record(&mut self, channel: &Arc<str>, request: RecordRequest) -> Result<RecordSession, CommandError> {
        let (device_id, own_id) = self.owner(channel)?;
        if self.closing.is_some() {
            return Err(CommandError::Gone);
        }
        if self.devices.get(&device_id).is_some_and(|d| d.streams >= d.class.max_streams) {
            return Err(CommandError::Busy("the device has as many sessions as it may (max_streams)"));
        }
        let (control, controls) = mpsc::channel(CONTROLS);
        let (events_tx, events) = mpsc::channel(RECORD_EVENTS);
        let facts = Arc::default();
        let key = StreamKey {
            channel: channel.clone(),
            number: request.stream_number.unwrap_or(0),
            session: self.next_token,
        };
        let stop = CancellationToken::new();
        let purpose = Purpose::Record {
            request: Box::new(request),
            facts: Arc::clone(&facts),
            events: events_tx,
            control: Some(stop.clone()),
        };
        let token = self.add_call(key.clone(), device_id, own_id, purpose);
        let table = self.record_tx.clone();
        self.jobs.spawn(forward(token, controls, table, stop));
        Ok(RecordSession { key, source: self.source.clone(), facts, control, events })
    }

    pub(super) async fn on_record(&mut self, token: u64, control: Option<RecordControl>) {
        match control {
            Some(RecordControl { body, reply }) => self.control_record(token, body, reply).await,
            // The viewer is gone, whether it came or not.
            None => self.feed(token, super::super::call::CallInput::Shutdown).await,
        }
    }
}

/// Hands a session's controls to the table, and its end.
async fn forward(
    token: u64,
    mut controls: mpsc::Receiver<RecordControl>,
    table: mpsc::Sender<(u64, Option<RecordControl>)>,
    stop: CancellationToken,
) -> Job {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Job::Nothing,
            control = controls.recv() => {
                let last = control.is_none();
                if table.send((token, control)).await.is_err() || last {
                    return Job::Nothing;
                }
            }
        }
    }
}
