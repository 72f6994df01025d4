//! What can be asked of a running device: to be watched, to raise alarms, to change its channels, to misbehave.
//!
//! Standard: none.
//! In: calls, each with a limit in time where it waits. Out: values.
//! Invariants: nothing waits longer than its limit.
//! Not here: doing it (`serve`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::answers::{self, item};
use super::serve::Command;
use super::state::{ControlSeen, PlaybackSeen, Shared, Snapshot, lock};
use super::{DeviceError, Faults, MAX_CHANNELS, SimChannel};
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::notify::Alarm;
use crate::proto::manscdp::{CatalogChange, CatalogEvent};

/// The method of alarms that latch. [GB/T28181-2022 9.4.1]
const DEVICE_ALARM: u8 = 2;
/// The priority of alarms nobody gave one.
const LOWEST_PRIORITY: u8 = 4;

/// Asks things of a running device. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeviceHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl DeviceHandle {
    /// The device's code.
    pub fn id(&self) -> DeviceId {
        self.shared.config.id
    }

    /// What has happened so far.
    pub fn snapshot(&self) -> Snapshot {
        *self.shared.snapshot.borrow()
    }

    /// To follow what happens.
    pub fn watch(&self) -> watch::Receiver<Snapshot> {
        self.shared.snapshot.subscribe()
    }

    /// Waits until what has happened is as `wanted` says.
    ///
    /// # Errors
    /// [`DeviceError::Timeout`] naming `what`, [`DeviceError::Stopped`].
    pub async fn wait(
        &self,
        limit: Duration,
        what: &'static str,
        wanted: impl FnMut(&Snapshot) -> bool,
    ) -> Result<Snapshot, DeviceError> {
        let mut snapshots = self.shared.snapshot.subscribe();
        let reached = tokio::time::timeout(limit, snapshots.wait_for(wanted)).await;
        let reached = reached.map_err(|_| DeviceError::Timeout { what, limit })?;
        reached.map(|snapshot| *snapshot).map_err(|_| DeviceError::Stopped)
    }

    /// Waits until it is registered.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub async fn wait_registered(&self, limit: Duration) -> Result<Snapshot, DeviceError> {
        self.wait(limit, "registration", |snapshot| snapshot.registered).await
    }

    /// The last 1024 DeviceControl commands, oldest first.
    pub fn controls(&self) -> Vec<ControlSeen> {
        self.shared.controls()
    }

    /// The last 1024 playback requests, oldest first.
    pub fn playback_requests(&self) -> Vec<PlaybackSeen> {
        self.shared.playback()
    }

    /// Its channels as they are now.
    pub fn channels(&self) -> Arc<Vec<SimChannel>> {
        self.shared.channels()
    }

    /// The faults in force.
    pub fn faults(&self) -> Faults {
        self.shared.faults().clone()
    }

    /// Other faults from now on; media heeds them from its next picture on.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.faults());
    }

    async fn tell(&self, command: Command) -> Result<(), DeviceError> {
        self.commands.send(command).await.map_err(|_| DeviceError::Stopped)
    }

    /// A keepalive now, when it is registered.
    ///
    /// # Errors
    /// [`DeviceError::Stopped`].
    pub async fn keepalive(&self) -> Result<(), DeviceError> {
        self.tell(Command::Keepalive).await
    }

    /// An alarm of now and of the lowest priority; its SN. `method`: 1 to 7, `alarm_type` within it.
    /// [GB/T28181-2022 A.2.5.3]
    ///
    /// # Errors
    /// As [`Self::send_alarm`].
    pub async fn raise_alarm(
        &self,
        channel: &DeviceId,
        method: u8,
        alarm_type: Option<u32>,
        description: &str,
    ) -> Result<u32, DeviceError> {
        let alarm = Alarm {
            priority: LOWEST_PRIORITY,
            method,
            time: answers::now(),
            description: Some(description.to_owned()),
            longitude: None,
            latitude: None,
            alarm_type,
            event_type: None,
        };
        self.send_alarm(channel, alarm).await
    }

    /// An alarm of a channel, or of the device itself; its SN. It is sent again until the platform answers.
    ///
    /// # Errors
    /// [`DeviceError::NoChannel`], [`DeviceError::InAlarm`], [`DeviceError::Stopped`].
    pub async fn send_alarm(&self, channel: &DeviceId, alarm: Alarm) -> Result<u32, DeviceError> {
        if !self.shared.is_ours(channel) {
            return Err(DeviceError::NoChannel(*channel));
        }
        if self.shared.faults().latches_alarms
            && alarm.method == DEVICE_ALARM
            && !lock(&self.shared.in_alarm).insert(*channel)
        {
            return Err(DeviceError::InAlarm(*channel));
        }
        let (reply, sn) = oneshot::channel();
        self.tell(Command::Alarm { channel: *channel, alarm, reply }).await?;
        sn.await.map_err(|_| DeviceError::Stopped)
    }

    /// Switches a channel ON or OFF; subscribers of the catalogue hear of it.
    ///
    /// # Errors
    /// [`DeviceError::NoChannel`], [`DeviceError::Stopped`].
    pub async fn set_online(&self, channel: &DeviceId, online: bool) -> Result<(), DeviceError> {
        let event = if online { CatalogEvent::On } else { CatalogEvent::Off };
        let change = self.change(event, |channels| {
            let found = channels.iter_mut().find(|known| known.id == *channel);
            let found = found.ok_or(DeviceError::NoChannel(*channel))?;
            found.online = online;
            Ok(found.clone())
        })?;
        self.tell(Command::Changed(vec![change])).await
    }

    /// Adds a channel, or replaces the one of the same code; subscribers of the catalogue hear of it.
    ///
    /// # Errors
    /// [`DeviceError::TooManyChannels`], [`DeviceError::Stopped`].
    pub async fn add_channel(&self, channel: SimChannel) -> Result<(), DeviceError> {
        let known = self.shared.channel(&channel.id).is_some();
        let event = if known { CatalogEvent::Update } else { CatalogEvent::Add };
        let change = self.change(event, |channels| {
            match channels.iter().position(|known| known.id == channel.id) {
                Some(at) => channels[at] = channel.clone(),
                None if channels.len() >= MAX_CHANNELS => return Err(DeviceError::TooManyChannels),
                None => channels.push(channel.clone()),
            }
            Ok(channel)
        })?;
        self.tell(Command::Changed(vec![change])).await
    }

    /// Removes a channel; its calls are ended, subscribers of the catalogue hear of it.
    ///
    /// # Errors
    /// [`DeviceError::NoChannel`], [`DeviceError::Stopped`].
    pub async fn remove_channel(&self, channel: &DeviceId) -> Result<(), DeviceError> {
        let change = self.change(CatalogEvent::Del, |channels| {
            let at = channels.iter().position(|known| known.id == *channel);
            Ok(channels.remove(at.ok_or(DeviceError::NoChannel(*channel))?))
        })?;
        self.tell(Command::HangUp(*channel)).await?;
        self.tell(Command::Changed(vec![change])).await
    }

    fn change(
        &self,
        event: CatalogEvent,
        edit: impl FnOnce(&mut Vec<SimChannel>) -> Result<SimChannel, DeviceError>,
    ) -> Result<CatalogChange, DeviceError> {
        let mut channels = lock(&self.shared.channels);
        let changed = edit(Arc::make_mut(&mut channels))?;
        Ok(CatalogChange::of(event, item(&changed, self.shared.config.id)))
    }

    /// Hangs up all calls of a channel.
    ///
    /// # Errors
    /// [`DeviceError::Stopped`].
    pub async fn hang_up(&self, channel: &DeviceId) -> Result<(), DeviceError> {
        self.tell(Command::HangUp(*channel)).await
    }

    /// Sends any body in a MESSAGE to the platform.
    ///
    /// # Errors
    /// [`DeviceError::Stopped`].
    pub async fn raw_message(&self, body: Bytes) -> Result<(), DeviceError> {
        self.tell(Command::Message(body)).await
    }
}
