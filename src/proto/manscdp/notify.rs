//! News from a device or a lower platform: keepalive, alarm, end of a file, broadcast.
//! Standard: [GB/T28181-2022 A.2.5, 9.4, 9.6, 9.8, 9.12].
//! In: small values. Out: bodies; and the same values read from bodies.
//! Invariants: lists are bounded on reading; elements in the schema's order on writing.
//! Not here: catalogue changes (`catalog`), when to send what.

use super::body;
use super::request::{Incoming, Root};
use super::xml::XmlWriter;
use crate::proto::gb28181::{DeviceId, Profile, UnixMillis, Version};

/// Most faulty devices read from one keepalive: what an NVR can have.
const MAX_FAULTY: usize = 1024;
/// NotifyType of a history file that was sent to its end. [GB/T28181-2022 9.8]
pub const FILE_FINISHED: u32 = 121;

/// Notify/Keepalive. [GB/T28181-2022 9.6]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keepalive {
    /// Works as it should.
    pub ok: bool,
    /// Devices that do not.
    pub faulty: Vec<DeviceId>,
}

impl Keepalive {
    /// Reads it. A missing Status is OK: the sender is alive.
    pub fn read(incoming: &Incoming) -> Option<Self> {
        if !incoming.is(Root::Notify, "Keepalive") {
            return None;
        }
        let e = &incoming.element;
        let ids = e.children_named("Info").flat_map(|i| i.children_named("DeviceID"));
        Some(Self {
            ok: e.text_of("Status").is_none_or(|t| t.eq_ignore_ascii_case("OK") || t.eq_ignore_ascii_case("ON")),
            faulty: ids.filter_map(|c| DeviceId::parse(&c.text).ok()).take(MAX_FAULTY).collect(),
        })
    }

    /// Writes it. 2011 knows no list of faulty devices.
    pub fn write(&self, profile: Profile, sn: u32, device_id: &DeviceId) -> Vec<u8> {
        body(profile, "Notify", "Keepalive", sn, device_id, |w| {
            w.text("Status", if self.ok { "OK" } else { "ERROR" });
            if !self.faulty.is_empty() && profile.version() > Version::V2011 {
                w.open("Info");
                for id in &self.faulty {
                    w.text("DeviceID", id);
                }
                w.close("Info");
            }
        })
    }
}

/// Notify/MediaStatus 121: the file was sent to its end. `device_id` is the sender of the media.
pub fn file_finished(profile: Profile, sn: u32, device_id: &DeviceId) -> Vec<u8> {
    body(profile, "Notify", "MediaStatus", sn, device_id, |w| {
        w.text("NotifyType", FILE_FINISHED);
    })
}

/// The NotifyType of a Notify/MediaStatus; a missing one is 121, the only one there is.
pub fn read_media_status(incoming: &Incoming) -> Option<u32> {
    let is = incoming.is(Root::Notify, "MediaStatus");
    is.then(|| incoming.element.number_of("NotifyType").unwrap_or(FILE_FINISHED))
}

/// Notify/Alarm. [GB/T28181-2022 A.2.5.3]
#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    /// 1 (most urgent) to 4.
    pub priority: u8,
    /// 1 telephone, 2 device, 3 SMS, 4 GPS, 5 video, 6 fault, 7 other.
    pub method: u8,
    /// When.
    pub time: UnixMillis,
    /// What, in words.
    pub description: Option<String>,
    /// Degrees.
    pub longitude: Option<f64>,
    /// Degrees.
    pub latitude: Option<f64>,
    /// Type within the method.
    pub alarm_type: Option<u32>,
    /// 1 entering, 2 leaving an area.
    pub event_type: Option<u8>,
}

impl Alarm {
    /// Reads it, wherever AlarmType stands (in `<info>` of any case, or beside it). `None` without priority, method
    /// or time.
    pub fn read(incoming: &Incoming) -> Option<Self> {
        if !incoming.is(Root::Notify, "Alarm") {
            return None;
        }
        let e = &incoming.element;
        let details = e.children_named("Info").find(|i| !i.children.is_empty()).unwrap_or(e);
        let degrees = |name, limit: f64| e.number_of::<f64>(name).filter(|v| v.abs() <= limit && *v != 0.0);
        Some(Self {
            priority: e.number_of("AlarmPriority").filter(|n| (1..=4).contains(n))?,
            method: e.number_of("AlarmMethod").filter(|n| (1..=7).contains(n))?,
            time: UnixMillis::parse_local(e.text_of("AlarmTime")?).ok()?,
            description: e.text_of("AlarmDescription").map(str::to_owned),
            longitude: degrees("Longitude", 180.0),
            latitude: degrees("Latitude", 90.0),
            alarm_type: details.number_of("AlarmType"),
            event_type: details.child("AlarmTypeParam").and_then(|p| p.number_of("EventType")),
        })
    }

    /// Writes it. 2011 knows no alarm types.
    pub fn write(&self, profile: Profile, sn: u32, device_id: &DeviceId) -> Vec<u8> {
        let degrees = |v: Option<f64>| v.filter(|v| v.is_finite()).map(|v| format!("{v:.6}"));
        body(profile, "Notify", "Alarm", sn, device_id, |w| {
            w.text("AlarmPriority", self.priority)
                .text("AlarmMethod", self.method)
                .text("AlarmTime", self.time)
                .opt("AlarmDescription", self.description.as_ref())
                .opt("Longitude", degrees(self.longitude))
                .opt("Latitude", degrees(self.latitude));
            if self.alarm_type.is_some() && profile.version() > Version::V2011 {
                w.open("Info").opt("AlarmType", self.alarm_type);
                if let Some(event) = self.event_type {
                    w.open("AlarmTypeParam").text("EventType", event).close("AlarmTypeParam");
                }
                w.close("Info");
            }
        })
    }
}

/// Notify/Broadcast: `source` wants to be heard at `target`. [GB/T28181-2022 9.12.1]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broadcast {
    /// Voice input, or the platform.
    pub source: DeviceId,
    /// Voice output, or the main device.
    pub target: DeviceId,
}

impl Broadcast {
    /// Reads it.
    pub fn read(incoming: &Incoming) -> Option<Self> {
        if !incoming.is(Root::Notify, "Broadcast") {
            return None;
        }
        let id = |name| DeviceId::parse(incoming.element.text_of(name)?).ok();
        Some(Self { source: id("SourceID")?, target: id("TargetID")? })
    }

    /// Writes it; the one body without DeviceID.
    pub fn write(&self, profile: Profile, sn: u32) -> Vec<u8> {
        let mut w = XmlWriter::new();
        w.open("Notify")
            .text("CmdType", "Broadcast")
            .text("SN", sn)
            .text("SourceID", self.source)
            .text("TargetID", self.target)
            .close("Notify");
        w.into_body(profile.charset())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::manscdp::parse;

    fn id(text: &str) -> DeviceId {
        DeviceId::parse(text).unwrap()
    }

    #[test]
    fn keepalive_is_the_sample() {
        let sample = include_bytes!("../../../proto-fixtures/manscdp/standard-2016-keepalive.xml");
        let me = id("34020000002000000001");
        let keepalive = Keepalive { ok: true, faulty: vec![] };
        assert_eq!(keepalive.write(Profile::default(), 43, &me), sample);
        assert_eq!(Keepalive::read(&parse(sample, None).unwrap()), Some(keepalive));
        let ill = Keepalive { ok: false, faulty: vec![id("34020000001320000001"), id("34020000001320000002")] };
        assert_eq!(Keepalive::read(&parse(&ill.write(Profile::default(), 1, &me), None).unwrap()), Some(ill.clone()));
        let old = parse(&ill.write(Profile::new(Version::V2011), 1, &me), None).unwrap();
        assert!(Keepalive::read(&old).unwrap().faulty.is_empty());
        let bare = parse(b"<Notify><CmdType>keepalive</CmdType><DeviceID>1</DeviceID></Notify>", None).unwrap();
        assert!(Keepalive::read(&bare).unwrap().ok);
    }

    #[test]
    fn media_status_is_the_sample() {
        let sample = include_bytes!("../../../proto-fixtures/manscdp/standard-2016-media-status.xml");
        assert_eq!(file_finished(Profile::default(), 8, &id("34020000001320000001")), sample);
        assert_eq!(read_media_status(&parse(sample, None).unwrap()), Some(121));
    }

    #[test]
    fn alarm_is_the_sample() {
        let sample = include_bytes!("../../../proto-fixtures/manscdp/standard-2016-alarm-notify.xml");
        let alarm = Alarm {
            priority: 4,
            method: 5,
            time: UnixMillis::from_secs(1_795_439_704),
            description: Some("intrusion".into()),
            longitude: None,
            latitude: None,
            alarm_type: Some(6),
            event_type: Some(1),
        };
        let incoming = parse(sample, None).unwrap();
        assert_eq!(Alarm::read(&incoming), Some(alarm.clone()));
        let written = parse(&alarm.write(Profile::default(), 88, &id("34020000001320000004")), None).unwrap();
        assert_eq!(written, incoming);
        let odd = b"<Notify><CmdType>Alarm</CmdType><SN>1</SN><DeviceID>1</DeviceID>\
            <AlarmTime>2026-1-2 3:4:5</AlarmTime>\
            <AlarmPriority>1</AlarmPriority><AlarmMethod>2</AlarmMethod><info>words</info>\
            <info><AlarmType>2</AlarmType></info>\
            <Longitude>NaN</Longitude></Notify>";
        let odd = Alarm::read(&parse(odd, None).unwrap()).unwrap();
        assert_eq!((odd.alarm_type, odd.longitude), (Some(2), None));
        let none = b"<Notify><CmdType>Alarm</CmdType><SN>1</SN><DeviceID>1</DeviceID>\
            <AlarmPriority>9</AlarmPriority></Notify>";
        assert_eq!(Alarm::read(&parse(none, None).unwrap()), None);
    }

    #[test]
    fn broadcast_round_trip() {
        let broadcast = Broadcast { source: id("34010000001360000001"), target: id("34020000001370000001") };
        let incoming = parse(&broadcast.write(Profile::default(), 992), None).unwrap();
        assert_eq!((incoming.sn, incoming.device_id), (992, broadcast.target));
        assert_eq!(Broadcast::read(&incoming), Some(broadcast));
    }
}
