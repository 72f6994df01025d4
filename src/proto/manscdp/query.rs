//! What an upper platform sends: queries and controls.
//! Standard: [GB/T28181-2022 A.2.3, A.2.4].
//! In: the same types that `request` reads. Out: bodies.
//! Invariants: what is written here, `request` reads as the same value; what a version lacks is not written.
//! Not here: answers, SN bookkeeping.

use super::body;
use super::ptz::PtzCommand;
use super::request::{AlarmQuery, ControlKind, DeviceControl, DrawnBox, Query, TrackMode};
use super::xml::XmlWriter;
use crate::proto::gb28181::{DeviceId, Profile, Version};

/// A query, also as body of SUBSCRIBE.
pub fn query(profile: Profile, sn: u32, device_id: &DeviceId, query: &Query) -> Vec<u8> {
    body(profile, "Query", query.kind().as_str(), sn, device_id, |w| match query {
        Query::Plain(_) => {}
        Query::Catalog(q) => {
            w.opt("StartTime", q.start).opt("EndTime", q.end);
        }
        Query::RecordInfo(q) => {
            w.opt("StartTime", q.start)
                .opt("EndTime", q.end)
                .opt("FilePath", q.file_path.as_ref())
                .opt("Address", q.address.as_ref())
                .opt("Secrecy", q.secrecy.map(u8::from))
                // some recorders answer nothing without it
                .text("Type", q.record_type.as_deref().unwrap_or("all"))
                .opt("RecorderID", q.recorder_id.as_ref());
            if q.indistinct {
                w.text("IndistinctQuery", 1);
            }
            if profile.version() >= Version::V2022 {
                w.opt("StreamNumber", q.stream_number);
            }
        }
        Query::Alarm(q) => alarm_query(w, profile, q),
        Query::ConfigDownload(types) => {
            w.text("ConfigType", types.join("/"));
        }
        Query::MobilePosition { interval } => {
            w.text("Interval", interval);
        }
        Query::CruiseTrack(number) => {
            w.text("Number", number);
        }
    })
}

fn alarm_query(w: &mut XmlWriter, profile: Profile, q: &AlarmQuery) {
    let methods = if q.methods.is_empty() { "0".to_owned() } else { profile.join_alarm_methods(&q.methods) };
    w.text("StartAlarmPriority", q.start_priority.unwrap_or(0))
        .text("EndAlarmPriority", q.end_priority.unwrap_or(0))
        .text("AlarmMethod", methods)
        .opt("AlarmType", q.alarm_type)
        .opt("StartAlarmTime", q.start)
        .opt("EndAlarmTime", q.end);
}

/// A DeviceControl. `None` if the peer's version has no such command.
pub fn control(profile: Profile, sn: u32, device_id: &DeviceId, control: &DeviceControl) -> Option<Vec<u8>> {
    let version = profile.version();
    let since = match control.kind()? {
        ControlKind::Ptz | ControlKind::TeleBoot | ControlKind::Record | ControlKind::Guard => Version::V2011,
        ControlKind::AlarmReset => Version::V2011,
        ControlKind::DragZoomIn | ControlKind::DragZoomOut => Version::V2011Amd,
        ControlKind::KeyFrame | ControlKind::HomePosition => Version::V2016,
        ControlKind::PtzPrecise | ControlKind::Upgrade | ControlKind::FormatSdCard | ControlKind::TargetTrack => {
            Version::V2022
        }
    };
    if version < since {
        return None;
    }
    let new = version >= Version::V2022;
    Some(body(profile, "Control", "DeviceControl", sn, device_id, |w| match control {
        DeviceControl::Ptz { command, name } => {
            w.text("PTZCmd", command.to_hex());
            if let Some(name) = name.as_ref().filter(|_| new) {
                let element =
                    if matches!(command, PtzCommand::Preset { .. }) { "PresetName" } else { "CruiseTrackName" };
                w.open("PTZCmdParams").text(element, name).close("PTZCmdParams");
            }
        }
        DeviceControl::TeleBoot => {
            w.text("TeleBoot", "Boot");
        }
        DeviceControl::Record { start, stream_number } => {
            w.text("RecordCmd", if *start { "Record" } else { "StopRecord" });
            if new {
                w.text("StreamNumber", stream_number);
            }
        }
        DeviceControl::Guard { set } => {
            w.text("GuardCmd", if *set { "SetGuard" } else { "ResetGuard" });
        }
        DeviceControl::AlarmReset { methods, alarm_type } => {
            w.text("AlarmCmd", "ResetAlarm");
            if version > Version::V2011 && (!methods.is_empty() || alarm_type.is_some()) {
                w.open("Info");
                if !methods.is_empty() {
                    w.text("AlarmMethod", profile.join_alarm_methods(methods));
                }
                w.opt("AlarmType", *alarm_type).close("Info");
            }
        }
        DeviceControl::KeyFrame => {
            if let Some(element) = profile.key_frame_element() {
                w.text(element, "Send");
            }
        }
        DeviceControl::DragZoom { inward, area } => {
            drawn_box(w, if *inward { "DragZoomIn" } else { "DragZoomOut" }, area);
        }
        DeviceControl::HomePosition { enabled, reset_time, preset } => {
            w.open("HomePosition")
                .text("Enabled", u8::from(*enabled))
                .opt("ResetTime", *reset_time)
                .opt("PresetIndex", *preset)
                .close("HomePosition");
        }
        DeviceControl::PtzPrecise { pan, tilt, zoom } => {
            let two = |v: &Option<f64>| v.filter(|v| v.is_finite()).map(|v| format!("{v:.2}"));
            w.open("PTZPreciseCtrl")
                .opt("Pan", two(pan))
                .opt("Tilt", two(tilt))
                .opt("Zoom", two(zoom))
                .close("PTZPreciseCtrl");
        }
        DeviceControl::Upgrade { firmware, file_url, manufacturer, session_id } => {
            w.open("DeviceUpgrade")
                .text("Firmware", firmware)
                .text("FileURL", file_url)
                .text("Manufacturer", manufacturer)
                .text("SessionID", session_id)
                .close("DeviceUpgrade");
        }
        DeviceControl::FormatSdCard(card) => {
            w.text("FormatSDCard", card);
        }
        DeviceControl::TargetTrack { mode, panorama, area } => {
            let mode = match mode {
                TrackMode::Auto => "Auto",
                TrackMode::Manual => "Manual",
                TrackMode::Stop => "Stop",
            };
            w.text("TargetTrack", mode).opt("DeviceID2", *panorama);
            if let Some(area) = area {
                drawn_box(w, "TargetArea", area);
            }
        }
        // `kind` said None above
        DeviceControl::Unknown(_) => {}
    }))
}

fn drawn_box(w: &mut XmlWriter, element: &str, b: &DrawnBox) {
    w.open(element)
        .text("Length", b.window_width)
        .text("Width", b.window_height)
        .text("MidPointX", b.x)
        .text("MidPointY", b.y)
        .text("LengthX", b.width)
        .text("LengthY", b.height)
        .close(element);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gb28181::UnixMillis;
    use crate::proto::manscdp::request::{CatalogQuery, QueryKind, RecordQuery};
    use crate::proto::manscdp::{ChecksumPolicy, device_control, parse};

    fn id() -> DeviceId {
        DeviceId::parse("34020000001320000001").unwrap()
    }

    #[test]
    fn queries_read_back() {
        let time = Some(UnixMillis::from_secs(1_795_439_704));
        let mut queries = vec![
            Query::Catalog(CatalogQuery { start: time, end: None }),
            Query::RecordInfo(RecordQuery {
                start: time,
                end: time,
                file_path: Some("a/b".into()),
                address: Some("东".into()),
                secrecy: Some(false),
                record_type: Some("all".into()),
                recorder_id: Some("x".into()),
                indistinct: true,
                stream_number: Some(1),
            }),
            Query::Alarm(AlarmQuery {
                start_priority: Some(1),
                end_priority: Some(4),
                methods: vec![2, 5],
                alarm_type: Some(1),
                start: time,
                end: time,
            }),
            Query::Alarm(AlarmQuery::default()),
            Query::ConfigDownload(vec!["BasicParam".into(), "OSDConfig".into()]),
            Query::MobilePosition { interval: 10 },
            Query::CruiseTrack(2),
        ];
        queries.extend([QueryKind::DeviceInfo, QueryKind::DeviceStatus, QueryKind::PtzPosition].map(Query::Plain));
        for q in queries {
            let incoming = parse(&query(Profile::new(Version::V2022), 7, &id(), &q), None).unwrap();
            assert_eq!(Query::of(&incoming), Some(q));
        }
    }

    #[test]
    fn record_query_is_the_sample() {
        let sample = include_bytes!("../../../proto-fixtures/manscdp/standard-2016-record-query.xml");
        let q = Query::RecordInfo(RecordQuery {
            start: UnixMillis::parse_local("2026-11-23T08:00:00").ok(),
            end: UnixMillis::parse_local("2026-11-23T12:00:00").ok(),
            secrecy: Some(false),
            ..RecordQuery::default()
        });
        assert_eq!(query(Profile::default(), 301, &id(), &q), sample);
    }

    #[test]
    fn controls_read_back() {
        let area = DrawnBox { window_width: 704, window_height: 576, x: 1, y: 2, width: 3, height: 4 };
        let preset = PtzCommand::Preset { action: crate::proto::manscdp::ptz::PresetAction::Set, number: 5 };
        let controls = [
            DeviceControl::Ptz { command: preset, name: Some("东门".into()) },
            DeviceControl::Ptz { command: PtzCommand::CruiseStart { group: 1 }, name: Some("巡航".into()) },
            DeviceControl::TeleBoot,
            DeviceControl::Record { start: true, stream_number: 1 },
            DeviceControl::Guard { set: false },
            DeviceControl::AlarmReset { methods: vec![2], alarm_type: None },
            DeviceControl::AlarmReset { methods: vec![], alarm_type: None },
            DeviceControl::KeyFrame,
            DeviceControl::DragZoom { inward: false, area },
            DeviceControl::HomePosition { enabled: false, reset_time: None, preset: Some(1) },
            DeviceControl::PtzPrecise { pan: Some(123.5), tilt: Some(-10.0), zoom: None },
            DeviceControl::Upgrade {
                firmware: "1".into(),
                file_url: "http://192.0.2.30/f?a=1&b=2".into(),
                manufacturer: "ACME".into(),
                session_id: "0".repeat(32),
            },
            DeviceControl::FormatSdCard(1),
            DeviceControl::TargetTrack { mode: TrackMode::Manual, panorama: Some(id()), area: Some(area) },
        ];
        for c in controls {
            let bytes = control(Profile::new(Version::V2022), 7, &id(), &c).unwrap();
            let incoming = parse(&bytes, None).unwrap();
            assert_eq!(device_control(&incoming, ChecksumPolicy::Verify), Ok(c));
        }
    }

    #[test]
    fn older_versions_lack_commands() {
        let write = |version, c: &DeviceControl| control(Profile::new(version), 7, &id(), c);
        let text = |b: Option<Vec<u8>>| String::from_utf8(b.unwrap()).unwrap();
        assert_eq!(write(Version::V2011Amd, &DeviceControl::KeyFrame), None);
        assert!(text(write(Version::V2016, &DeviceControl::KeyFrame)).contains("<IFameCmd>Send<"));
        assert!(text(write(Version::V2022, &DeviceControl::KeyFrame)).contains("<IFrameCmd>Send<"));
        assert_eq!(write(Version::V2016, &DeviceControl::FormatSdCard(1)), None);
        assert_eq!(write(Version::V2022, &DeviceControl::Unknown("x".into())), None);
        let ptz = DeviceControl::Ptz { command: PtzCommand::STOP, name: Some("x".into()) };
        assert!(!text(write(Version::V2016, &ptz)).contains("PTZCmdParams"));
    }
}
