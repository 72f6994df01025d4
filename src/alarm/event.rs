//! An alarm inside the program, and the reset of one.
//!
//! Invariants: `channel` is our northbound code, `device` the code by which the device calls itself.

use crate::proto::gb28181::{DeviceId, UnixMillis};
use crate::proto::manscdp::notify::Alarm;
use crate::store::AlarmRecord;

/// Something happened at a channel.
#[derive(Debug, Clone, PartialEq)]
pub struct AlarmEvent {
    /// Where, by our northbound code.
    pub channel: DeviceId,
    /// Who says so, by its own code.
    pub device: DeviceId,
    /// 1 (most urgent) to 4 [GB/T28181-2022 A.2.5.3].
    pub priority: u8,
    /// 1 telephone, 2 device, 3 SMS, 4 GPS, 5 video, 6 fault, 7 other.
    pub method: u8,
    /// AlarmType within the method.
    pub kind: Option<u32>,
    /// EventType: 1 entering, 2 leaving an area.
    pub type_param: Option<u8>,
    /// By the device's clock.
    pub device_time: Option<UnixMillis>,
    /// By our protocol clock, Unix milliseconds.
    pub received_at_ms: i64,
    /// In words; cut at 1024 bytes.
    pub description: Option<String>,
    /// Degrees.
    pub longitude: Option<f64>,
    /// Degrees.
    pub latitude: Option<f64>,
    /// The device's SN; 0 for none.
    pub sn: u32,
}

impl AlarmEvent {
    /// What a device notified us of.
    pub fn of(channel: DeviceId, device: DeviceId, sn: u32, alarm: Alarm, received_at_ms: i64) -> Self {
        AlarmEvent {
            channel,
            device,
            priority: alarm.priority,
            method: alarm.method,
            kind: alarm.alarm_type,
            type_param: alarm.event_type,
            device_time: Some(alarm.time),
            received_at_ms,
            description: alarm.description,
            longitude: alarm.longitude,
            latitude: alarm.latitude,
            sn,
        }
    }

    pub(super) fn into_record(self) -> AlarmRecord {
        AlarmRecord {
            channel: self.channel.to_string(),
            device: self.device.to_string(),
            priority: self.priority,
            method: self.method,
            kind: self.kind,
            type_param: self.type_param,
            device_time: self.device_time.map(|t| t.0),
            received_at: self.received_at_ms,
            sn: self.sn,
            description: self.description,
            longitude: self.longitude,
            latitude: self.latitude,
        }
    }
}

/// AlarmCmd=ResetAlarm: which device alarms are over [GB/T28181-2022 A.2.3.1.6].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlarmReset {
    /// Of this channel; `None`: of all.
    pub channel: Option<DeviceId>,
    /// Only of these methods; empty: of all.
    pub methods: Vec<u8>,
    /// Only of this type.
    pub kind: Option<u32>,
}
