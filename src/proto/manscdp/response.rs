//! Answers to queries and controls, but for the catalogue's.
//! Standard: [GB/T28181-2022 A.2.6], [GB/T28181-2016 A.2.6].
//! In: small values and the request's CmdType, SN, DeviceID. Out: bodies; and the same values read from bodies.
//! Invariants: CmdType is repeated as the peer sent it, so that a misspelt query finds its answer; a refusal has
//! the shape of the answer it stands for.
//! Not here: catalogue pages (`catalog`), news (`notify`).

use super::body;
use super::request::{Incoming, QueryKind, Root};
use super::xml::Element;
use crate::proto::gb28181::{DeviceId, Profile, UnixMillis, Version};

/// Most alarm devices, presets and the like read from one answer.
const MAX_ENTRIES: usize = 256;

fn ok_text(ok: bool) -> &'static str {
    if ok { "OK" } else { "ERROR" }
}

/// `Result` of a body; `None` if it has none. Anything but OK is a failure.
pub fn read_result(incoming: &Incoming) -> Option<bool> {
    incoming.element.text_of("Result").map(|t| t.eq_ignore_ascii_case("OK"))
}

/// A bare Result: for DeviceControl, DeviceConfig, Alarm, Broadcast, and the 200 to SUBSCRIBE until 2016.
pub fn result(profile: Profile, cmd_type: &str, sn: u32, device_id: &DeviceId, ok: bool) -> Vec<u8> {
    body(profile, "Response", cmd_type, sn, device_id, |w| {
        w.text("Result", ok_text(ok));
    })
}

/// The answer to a query that is not served. Lists are empty (SumNum 0 and no list), the rest says Result=ERROR.
/// `cmd_type` is the query's, known or not.
pub fn query_error(profile: Profile, cmd_type: &str, sn: u32, device_id: &DeviceId) -> Vec<u8> {
    let kind = QueryKind::parse(cmd_type);
    match kind {
        Some(QueryKind::DeviceStatus) => return device_status(profile, sn, device_id, &DeviceStatus::failed()),
        Some(QueryKind::PresetQuery) => return preset_list(profile, cmd_type, sn, device_id, &[]),
        _ => {}
    }
    body(profile, "Response", cmd_type, sn, device_id, |w| {
        match kind {
            Some(QueryKind::RecordInfo) => w.text("Name", ""),
            Some(QueryKind::CruiseTrackQuery) => w.text("Number", 0),
            _ => w,
        };
        match kind {
            Some(kind) if kind.is_list_query() => w.text("SumNum", 0),
            _ => w.text("Result", ok_text(false)),
        };
    })
}

/// Make, model and channel count. [GB/T28181-2022 A.2.6.5]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceInfo {
    /// Name, since 2016.
    pub device_name: Option<String>,
    /// The query succeeded.
    pub ok: bool,
    /// Make.
    pub manufacturer: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// Firmware version.
    pub firmware: Option<String>,
    /// Video inputs.
    pub channel: Option<u32>,
}

impl DeviceInfo {
    /// Reads a Response/DeviceInfo.
    pub fn read(incoming: &Incoming) -> Option<Self> {
        let e = answer(incoming, "DeviceInfo")?;
        let text = |name| e.text_of(name).map(str::to_owned);
        Some(Self {
            device_name: text("DeviceName"),
            ok: read_result(incoming).unwrap_or(true),
            manufacturer: text("Manufacturer"),
            model: text("Model"),
            firmware: text("Firmware"),
            channel: e.number_of("Channel"),
        })
    }
}

fn answer<'a>(incoming: &'a Incoming, cmd_type: &str) -> Option<&'a Element> {
    incoming.is(Root::Response, cmd_type).then_some(&incoming.element)
}

/// Response/DeviceInfo.
pub fn device_info(profile: Profile, sn: u32, device_id: &DeviceId, info: &DeviceInfo) -> Vec<u8> {
    body(profile, "Response", "DeviceInfo", sn, device_id, |w| {
        if profile.version() >= Version::V2016 {
            w.opt("DeviceName", info.device_name.as_ref());
        }
        w.text("Result", ok_text(info.ok))
            .opt("Manufacturer", info.manufacturer.as_ref())
            .opt("Model", info.model.as_ref())
            .opt("Firmware", info.firmware.as_ref())
            .opt("Channel", info.channel);
    })
}

/// What an alarm device is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DutyStatus {
    /// Armed.
    OnDuty,
    /// Not armed.
    OffDuty,
    /// In alarm.
    Alarm,
}

impl DutyStatus {
    const ALL: [(&'static str, DutyStatus); 3] =
        [("ONDUTY", DutyStatus::OnDuty), ("OFFDUTY", DutyStatus::OffDuty), ("ALARM", DutyStatus::Alarm)];

    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            DutyStatus::OnDuty => "ONDUTY",
            DutyStatus::OffDuty => "OFFDUTY",
            DutyStatus::Alarm => "ALARM",
        }
    }
}

/// State of a device. [GB/T28181-2022 A.2.6.3]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceStatus {
    /// The query succeeded.
    pub ok: bool,
    /// Reachable.
    pub online: bool,
    /// Works as it should.
    pub working: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Encoding.
    pub encode: Option<bool>,
    /// Recording.
    pub record: Option<bool>,
    /// Its clock.
    pub device_time: Option<UnixMillis>,
    /// Its alarm devices.
    pub alarm_status: Vec<(DeviceId, DutyStatus)>,
}

impl DeviceStatus {
    /// What is answered for a device that is not known, or where the query failed.
    pub fn failed() -> Self {
        Self::default()
    }

    /// Reads a Response/DeviceStatus.
    pub fn read(incoming: &Incoming) -> Option<Self> {
        let e = answer(incoming, "DeviceStatus")?;
        let word = |name, yes: &str| e.text_of(name).map(|t| t.eq_ignore_ascii_case(yes));
        let duty = |item: &Element| {
            let id = DeviceId::parse(item.text_of("DeviceID")?).ok()?;
            let text = item.text_of("DutyStatus")?;
            let (_, status) = DutyStatus::ALL.into_iter().find(|(name, _)| text.eq_ignore_ascii_case(name))?;
            Some((id, status))
        };
        let alarms = e.child("Alarmstatus").map(|list| list.children_named("Item"));
        Some(Self {
            ok: read_result(incoming).unwrap_or(true),
            online: word("Online", "ONLINE").unwrap_or(false),
            working: word("Status", "OK").unwrap_or(false),
            reason: e.text_of("Reason").map(str::to_owned),
            encode: word("Encode", "ON"),
            record: word("Record", "ON"),
            device_time: e.text_of("DeviceTime").and_then(|t| UnixMillis::parse_local(t).ok()),
            alarm_status: alarms.into_iter().flatten().filter_map(duty).take(MAX_ENTRIES).collect(),
        })
    }
}

/// Response/DeviceStatus.
pub fn device_status(profile: Profile, sn: u32, device_id: &DeviceId, status: &DeviceStatus) -> Vec<u8> {
    let switch = |on: Option<bool>| on.map(|on| if on { "ON" } else { "OFF" });
    body(profile, "Response", "DeviceStatus", sn, device_id, |w| {
        w.text("Result", ok_text(status.ok))
            .text("Online", if status.online { "ONLINE" } else { "OFFLINE" })
            .text("Status", ok_text(status.working))
            .opt("Reason", status.reason.as_ref())
            .opt("Encode", switch(status.encode))
            .opt("Record", switch(status.record))
            .opt("DeviceTime", status.device_time);
        if !status.alarm_status.is_empty() {
            w.open_num("Alarmstatus", status.alarm_status.len());
            for (id, duty) in &status.alarm_status {
                w.open("Item").text("DeviceID", id).text("DutyStatus", duty.as_str()).close("Item");
            }
            w.close("Alarmstatus");
        }
    })
}

/// Response/PresetQuery with numbers and names. The list is mandatory even when empty; 2022 counts it in SumNum.
/// `cmd_type` is the query's own spelling. [GB/T28181-2022 A.2.6.10]
pub fn preset_list(
    profile: Profile,
    cmd_type: &str,
    sn: u32,
    device_id: &DeviceId,
    presets: &[(u8, String)],
) -> Vec<u8> {
    body(profile, "Response", cmd_type, sn, device_id, |w| {
        if profile.preset_sum_num() {
            w.text("SumNum", presets.len());
        }
        w.open_num("PresetList", presets.len());
        for (number, name) in presets {
            w.open("Item").text("PresetID", number).text("PresetName", name).close("Item");
        }
        w.close("PresetList");
    })
}

/// The block every device can answer a ConfigDownload with. [GB/T28181-2022 A.2.6.9]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicParam {
    /// Name.
    pub name: String,
    /// Registration expiry, seconds.
    pub expiration: u32,
    /// Seconds between keepalives.
    pub heart_beat_interval: u32,
    /// Keepalives missed before offline.
    pub heart_beat_count: u32,
}

/// Response/ConfigDownload with BasicParam.
pub fn config_basic_param(profile: Profile, sn: u32, device_id: &DeviceId, param: &BasicParam) -> Vec<u8> {
    body(profile, "Response", "ConfigDownload", sn, device_id, |w| {
        w.text("Result", ok_text(true))
            .open("BasicParam")
            .text("Name", &param.name)
            .text("Expiration", param.expiration)
            .text("HeartBeatInterval", param.heart_beat_interval)
            .text("HeartBeatCount", param.heart_beat_count);
        if profile.version() < Version::V2022 {
            w.text("PositionCapability", 0);
        }
        w.close("BasicParam");
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::manscdp::{CatalogItem, catalog, parse};

    fn id() -> DeviceId {
        DeviceId::parse("34020000001320000001").unwrap()
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap().replace("\r\n", "")
    }

    fn tail(bytes: Vec<u8>) -> String {
        let text = text(bytes);
        text.split_once("</DeviceID>").unwrap().1.trim_end_matches("</Response>").to_owned()
    }

    #[test]
    fn bare_result() {
        assert_eq!(
            text(result(Profile::new(Version::V2022), "DeviceControl", 1201, &id(), true)),
            "<?xml version=\"1.0\" encoding=\"GB18030\"?><Response><CmdType>DeviceControl</CmdType><SN>1201</SN>\
             <DeviceID>34020000001320000001</DeviceID><Result>OK</Result></Response>"
        );
        let incoming = parse(&result(Profile::default(), "Alarm", 1, &id(), false), None).unwrap();
        assert_eq!(read_result(&incoming), Some(false));
    }

    #[test]
    fn refusals_have_the_shape_of_the_answer() {
        for (kind, of_2016, of_2022) in [
            ("Catalog", "<SumNum>0</SumNum>", "<SumNum>0</SumNum>"),
            ("RecordInfo", "<Name></Name><SumNum>0</SumNum>", "<Name></Name><SumNum>0</SumNum>"),
            (
                "PresetQuery",
                "<PresetList Num=\"0\"></PresetList>",
                "<SumNum>0</SumNum><PresetList Num=\"0\"></PresetList>",
            ),
            ("CruiseTrackListQuery", "<SumNum>0</SumNum>", "<SumNum>0</SumNum>"),
            ("CruiseTrackQuery", "<Number>0</Number><SumNum>0</SumNum>", "<Number>0</Number><SumNum>0</SumNum>"),
            ("SDCardStatus", "<SumNum>0</SumNum>", "<SumNum>0</SumNum>"),
            ("DeviceInfo", "<Result>ERROR</Result>", "<Result>ERROR</Result>"),
            ("ConfigDownload", "<Result>ERROR</Result>", "<Result>ERROR</Result>"),
            ("HomePositionQuery", "<Result>ERROR</Result>", "<Result>ERROR</Result>"),
            ("PTZPosition", "<Result>ERROR</Result>", "<Result>ERROR</Result>"),
            ("MobilePosition", "<Result>ERROR</Result>", "<Result>ERROR</Result>"),
            ("Alarm", "<Result>ERROR</Result>", "<Result>ERROR</Result>"),
            ("SensorCatalog", "<Result>ERROR</Result>", "<Result>ERROR</Result>"),
            (
                "DeviceStatus",
                "<Result>ERROR</Result><Online>OFFLINE</Online><Status>ERROR</Status>",
                "<Result>ERROR</Result><Online>OFFLINE</Online><Status>ERROR</Status>",
            ),
        ] {
            assert_eq!(tail(query_error(Profile::new(Version::V2016), kind, 1, &id())), of_2016, "{kind}");
            assert_eq!(tail(query_error(Profile::new(Version::V2022), kind, 1, &id())), of_2022, "{kind}");
        }
        // the misprint of 2014 gets its answer under the name it asked with; hostile names are escaped
        assert!(text(query_error(Profile::default(), "PersetQuery", 1, &id())).contains("<CmdType>PersetQuery<"));
        assert!(text(query_error(Profile::default(), "<a>", 1, &id())).contains("<CmdType>&lt;a&gt;<"));
    }

    #[test]
    fn device_info_round_trip() {
        let info = DeviceInfo {
            device_name: Some("机关集中办公区".into()),
            ok: true,
            manufacturer: Some("Menshen".into()),
            model: Some("gateway".into()),
            firmware: Some("0.1".into()),
            channel: Some(64),
        };
        for version in [Version::V2016, Version::V2022] {
            let bytes = device_info(Profile::new(version), 5, &id(), &info);
            assert_eq!(DeviceInfo::read(&parse(&bytes, None).unwrap()), Some(info.clone()));
        }
        let old = parse(&device_info(Profile::new(Version::V2011), 5, &id(), &info), None).unwrap();
        assert_eq!(DeviceInfo::read(&old).unwrap().device_name, None);
        assert_eq!(DeviceStatus::read(&old), None);
    }

    #[test]
    fn device_status_round_trip() {
        let status = DeviceStatus {
            ok: true,
            online: true,
            working: false,
            reason: Some("disk".into()),
            encode: Some(true),
            record: Some(false),
            device_time: Some(UnixMillis::from_secs(1_795_439_704)),
            alarm_status: vec![(id(), DutyStatus::OnDuty), (id(), DutyStatus::Alarm)],
        };
        let bytes = device_status(Profile::default(), 5, &id(), &status);
        assert_eq!(DeviceStatus::read(&parse(&bytes, None).unwrap()), Some(status));
    }

    #[test]
    fn presets_and_configuration() {
        let presets = [(1, "东门".to_owned()), (2, "a&b".to_owned())];
        let body = preset_list(Profile::new(Version::V2022), "PresetQuery", 3, &id(), &presets);
        let incoming = parse(&body, None).unwrap();
        let list = incoming.element.child("PresetList").unwrap();
        assert_eq!((incoming.element.text_of("SumNum"), list.attr("Num")), (Some("2"), Some("2")));
        assert_eq!(list.children[1].text_of("PresetName"), Some("a&b"));
        let param = BasicParam { name: "g".into(), expiration: 3600, heart_beat_interval: 60, heart_beat_count: 3 };
        assert!(tail(config_basic_param(Profile::default(), 1, &id(), &param)).starts_with(
            "<Result>OK</Result><BasicParam><Name>g</Name><Expiration>3600</Expiration>\
             <HeartBeatInterval>60</HeartBeatInterval><HeartBeatCount>3</HeartBeatCount><PositionCapability>0<"
        ));
    }

    #[test]
    fn an_item_of_another_answer_is_no_catalogue() {
        let item = catalog::item_xml(&CatalogItem::new(id(), "x"), Profile::default());
        let text = format!("<Response><CmdType>RecordInfo</CmdType><SN>1</SN><DeviceID>34</DeviceID>{item}</Response>");
        assert_eq!(catalog::CatalogResponse::read(&parse(text.as_bytes(), None).unwrap()), None);
    }
}
