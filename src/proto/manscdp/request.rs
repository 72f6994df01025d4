//! Incoming bodies: the head every body has, and typed views of queries and controls.
//! Standard: [GB/T28181-2022 A.2.3, A.2.4, 9.3.1].
//! In: body bytes. Out: `Incoming`, then `Query` or `DeviceControl` by CmdType.
//! Invariants: names match in any case; a field that does not parse is absent unless its command is nothing without it.
//! Deviations: `PersetQuery` is PresetQuery (2014 amendment's misprint); IFameCmd is IFrameCmd (2016's); StartTime
//! and EndTime stand for StartAlarmTime and EndAlarmTime (2016's sample).
//! Not here: answers (`response`), permissions, what a camera can do.

use super::policy::Policies;
use super::ptz::{ChecksumPolicy, PtzCommand, PtzError};
use super::xml::{Element, XmlError};
use crate::proto::gb28181::{Charset, DeviceId, DeviceIdError, UnixMillis};

/// Longest CmdType: the standard's longest has 22 characters.
const MAX_CMD_TYPE: usize = 64;
/// Most names taken from one ConfigType: the standard knows 12.
const MAX_CONFIG_TYPES: usize = 32;

/// Why a body is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Not XML, or XML that is refused.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// Root other than Control, Query, Notify, Response.
    #[error("MANSCDP root element: not Control, Query, Notify or Response: correct the sender")]
    UnknownRoot,
    /// No CmdType, or one of more than 64 characters.
    #[error("MANSCDP CmdType: missing or too long: correct the sender")]
    CmdType,
    /// No SN where an answer would have to repeat it.
    #[error("MANSCDP SN: missing: send a positive number")]
    MissingSn,
    /// SN is no number from 0 to 4294967295.
    #[error("MANSCDP SN: not a number below 4294967296: send a positive number")]
    BadSn,
    /// No DeviceID (in a broadcast: TargetID).
    #[error("MANSCDP DeviceID: missing: correct the sender")]
    MissingDeviceId,
    /// DeviceID is no identifier.
    #[error("MANSCDP body: {0}")]
    BadDeviceId(DeviceIdError),
}

impl RequestError {
    /// A short fixed name for counters.
    pub fn label(self) -> &'static str {
        match self {
            RequestError::Xml(XmlError::TooLong(_)) => "xml_too_long",
            RequestError::Xml(XmlError::NoRoot) => "xml_no_root",
            RequestError::Xml(XmlError::Dtd) => "xml_dtd",
            RequestError::Xml(XmlError::TooDeep) => "xml_too_deep",
            RequestError::Xml(XmlError::TooManyElements) => "xml_too_many_elements",
            RequestError::Xml(XmlError::Truncated) => "xml_truncated",
            RequestError::Xml(XmlError::SecondRoot) => "xml_second_root",
            RequestError::Xml(XmlError::Syntax) => "xml_syntax",
            RequestError::UnknownRoot => "unknown_root",
            RequestError::CmdType => "cmd_type",
            RequestError::MissingSn => "missing_sn",
            RequestError::BadSn => "bad_sn",
            RequestError::MissingDeviceId => "missing_device_id",
            RequestError::BadDeviceId(_) => "bad_device_id",
        }
    }
}

/// The four root elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Root {
    /// Commands.
    Control,
    /// Questions.
    Query,
    /// News.
    Notify,
    /// Answers.
    Response,
}

impl Root {
    /// The element name.
    pub fn as_str(self) -> &'static str {
        match self {
            Root::Control => "Control",
            Root::Query => "Query",
            Root::Notify => "Notify",
            Root::Response => "Response",
        }
    }
}

/// A body with its head read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Kind of message.
    pub root: Root,
    /// CmdType as sent (an answer repeats it); compare with `is`.
    pub cmd_type: String,
    /// SN; 0 where a Notify has none.
    pub sn: u32,
    /// DeviceID; TargetID of a broadcast.
    pub device_id: DeviceId,
    /// The whole body.
    pub element: Element,
    /// What had to be repaired to read it.
    pub policies: Policies,
}

impl Incoming {
    /// True if root and CmdType are these.
    pub fn is(&self, root: Root, cmd_type: &str) -> bool {
        self.root == root && self.cmd_type.eq_ignore_ascii_case(cmd_type)
    }
}

/// Reads a body. `forced` is the peer's configured character set, if any.
pub fn parse(body: &[u8], forced: Option<Charset>) -> Result<Incoming, RequestError> {
    let mut policies = Policies::default();
    let element = Element::parse_noting(body, forced, &mut policies)?;
    let root = [Root::Control, Root::Query, Root::Notify, Root::Response]
        .into_iter()
        .find(|r| element.is(r.as_str()))
        .ok_or(RequestError::UnknownRoot)?;
    let cmd_type =
        element.text_of("CmdType").filter(|t| t.len() <= MAX_CMD_TYPE).ok_or(RequestError::CmdType)?.to_owned();
    let sn = match element.text_of("SN") {
        Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().map_err(|_| RequestError::BadSn)?,
        Some(_) => return Err(RequestError::BadSn),
        None if root == Root::Notify => 0,
        None => return Err(RequestError::MissingSn),
    };
    let id = element.text_of("DeviceID").or_else(|| element.text_of("TargetID"));
    let device_id = DeviceId::parse(id.ok_or(RequestError::MissingDeviceId)?).map_err(RequestError::BadDeviceId)?;
    Ok(Incoming { root, cmd_type, sn, device_id, element, policies })
}

/// The queries of all versions. [GB/T28181-2022 A.2.4]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueryKind {
    /// Catalogue.
    Catalog,
    /// Make and model.
    DeviceInfo,
    /// State.
    DeviceStatus,
    /// Recordings.
    RecordInfo,
    /// Alarms (a subscription since 2022).
    Alarm,
    /// Configuration.
    ConfigDownload,
    /// Presets.
    PresetQuery,
    /// Positions (a subscription).
    MobilePosition,
    /// Home position.
    HomePositionQuery,
    /// Cruise tracks.
    CruiseTrackListQuery,
    /// One cruise track.
    CruiseTrackQuery,
    /// Present PTZ position.
    PtzPosition,
    /// SD cards.
    SdCardStatus,
}

impl QueryKind {
    /// All of them.
    pub const ALL: [QueryKind; 13] = [
        QueryKind::Catalog,
        QueryKind::DeviceInfo,
        QueryKind::DeviceStatus,
        QueryKind::RecordInfo,
        QueryKind::Alarm,
        QueryKind::ConfigDownload,
        QueryKind::PresetQuery,
        QueryKind::MobilePosition,
        QueryKind::HomePositionQuery,
        QueryKind::CruiseTrackListQuery,
        QueryKind::CruiseTrackQuery,
        QueryKind::PtzPosition,
        QueryKind::SdCardStatus,
    ];

    /// Reads a CmdType.
    pub fn parse(cmd_type: &str) -> Option<Self> {
        if cmd_type.eq_ignore_ascii_case("PersetQuery") {
            return Some(QueryKind::PresetQuery);
        }
        Self::ALL.into_iter().find(|k| cmd_type.eq_ignore_ascii_case(k.as_str()))
    }

    /// The CmdType.
    pub fn as_str(self) -> &'static str {
        match self {
            QueryKind::Catalog => "Catalog",
            QueryKind::DeviceInfo => "DeviceInfo",
            QueryKind::DeviceStatus => "DeviceStatus",
            QueryKind::RecordInfo => "RecordInfo",
            QueryKind::Alarm => "Alarm",
            QueryKind::ConfigDownload => "ConfigDownload",
            QueryKind::PresetQuery => "PresetQuery",
            QueryKind::MobilePosition => "MobilePosition",
            QueryKind::HomePositionQuery => "HomePositionQuery",
            QueryKind::CruiseTrackListQuery => "CruiseTrackListQuery",
            QueryKind::CruiseTrackQuery => "CruiseTrackQuery",
            QueryKind::PtzPosition => "PTZPosition",
            QueryKind::SdCardStatus => "SDCardStatus",
        }
    }

    /// The list element of the answer, where the answer is a list counted by SumNum (2016's presets are not counted).
    pub fn answer_list(self) -> Option<&'static str> {
        match self {
            QueryKind::Catalog => Some("DeviceList"),
            QueryKind::RecordInfo => Some("RecordList"),
            QueryKind::PresetQuery => Some("PresetList"),
            QueryKind::CruiseTrackListQuery => Some("CruiseTrackList"),
            QueryKind::CruiseTrackQuery => Some("CruisePointList"),
            QueryKind::SdCardStatus => Some("SDCardStatusInfo"),
            _ => None,
        }
    }

    /// True if the answer is a list.
    pub fn is_list_query(self) -> bool {
        self.answer_list().is_some()
    }

    /// True if SUBSCRIBE may carry it.
    pub fn is_subscription(self) -> bool {
        matches!(self, QueryKind::Catalog | QueryKind::Alarm | QueryKind::MobilePosition | QueryKind::PtzPosition)
    }
}

/// Window of a catalogue query: when items were added. Absent is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CatalogQuery {
    /// From.
    pub start: Option<UnixMillis>,
    /// To.
    pub end: Option<UnixMillis>,
}

/// A query for recordings. The times are mandatory; a reader that finds one absent answers an empty list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordQuery {
    /// From.
    pub start: Option<UnixMillis>,
    /// To.
    pub end: Option<UnixMillis>,
    /// File path.
    pub file_path: Option<String>,
    /// Part of an address.
    pub address: Option<String>,
    /// Secret recordings.
    pub secrecy: Option<bool>,
    /// `time`, `alarm`, `manual`, `all`.
    pub record_type: Option<String>,
    /// Who started the recording.
    pub recorder_id: Option<String>,
    /// True: search centre and front end and merge.
    pub indistinct: bool,
    /// Stream. [GB/T28181-2022 A.2.4.5]
    pub stream_number: Option<u8>,
}

/// An alarm query or subscription. Empty methods and absent bounds mean all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlarmQuery {
    /// Lowest priority number asked for, 1-4.
    pub start_priority: Option<u8>,
    /// Highest priority number asked for, 1-4.
    pub end_priority: Option<u8>,
    /// Methods 1-7.
    pub methods: Vec<u8>,
    /// Type within the method.
    pub alarm_type: Option<u32>,
    /// From.
    pub start: Option<UnixMillis>,
    /// To.
    pub end: Option<UnixMillis>,
}

/// A query with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Query {
    /// Catalogue.
    Catalog(CatalogQuery),
    /// Recordings.
    RecordInfo(RecordQuery),
    /// Alarms.
    Alarm(AlarmQuery),
    /// Configuration blocks by name.
    ConfigDownload(Vec<String>),
    /// Positions every so many seconds.
    MobilePosition {
        /// Seconds, 5 unless told.
        interval: u32,
    },
    /// A cruise track by number, from 0.
    CruiseTrack(u32),
    /// Any query without arguments.
    Plain(QueryKind),
}

impl Query {
    /// The typed view; `None` if the body is no Query or its CmdType is not the standard's.
    pub fn of(incoming: &Incoming) -> Option<Self> {
        if incoming.root != Root::Query {
            return None;
        }
        let e = &incoming.element;
        Some(match QueryKind::parse(&incoming.cmd_type)? {
            QueryKind::Catalog => Query::Catalog(CatalogQuery { start: time(e, "StartTime"), end: time(e, "EndTime") }),
            QueryKind::RecordInfo => Query::RecordInfo(RecordQuery {
                start: time(e, "StartTime"),
                end: time(e, "EndTime"),
                file_path: e.text_of("FilePath").map(str::to_owned),
                address: e.text_of("Address").map(str::to_owned),
                secrecy: e.number_of::<u8>("Secrecy").map(|n| n == 1),
                record_type: e.text_of("Type").map(str::to_ascii_lowercase),
                recorder_id: e.text_of("RecorderID").map(str::to_owned),
                indistinct: e.number_of::<u8>("IndistinctQuery") == Some(1),
                stream_number: e.number_of("StreamNumber"),
            }),
            QueryKind::Alarm => Query::Alarm(AlarmQuery {
                start_priority: e.number_of("StartAlarmPriority").filter(|n| *n != 0),
                end_priority: e.number_of("EndAlarmPriority").filter(|n| *n != 0),
                methods: alarm_methods(e.text_of("AlarmMethod").unwrap_or("")),
                alarm_type: e.number_of("AlarmType"),
                start: time(e, "StartAlarmTime").or_else(|| time(e, "StartTime")),
                end: time(e, "EndAlarmTime").or_else(|| time(e, "EndTime")),
            }),
            QueryKind::ConfigDownload => Query::ConfigDownload(
                e.text_of("ConfigType")
                    .unwrap_or("")
                    .split('/')
                    .map(str::trim)
                    .filter(|t| !t.is_empty())
                    .take(MAX_CONFIG_TYPES)
                    .map(str::to_owned)
                    .collect(),
            ),
            QueryKind::MobilePosition => Query::MobilePosition { interval: e.number_of("Interval").unwrap_or(5) },
            QueryKind::CruiseTrackQuery => Query::CruiseTrack(e.number_of("Number").unwrap_or(0)),
            kind => Query::Plain(kind),
        })
    }

    /// Which query it is.
    pub fn kind(&self) -> QueryKind {
        match self {
            Query::Catalog(_) => QueryKind::Catalog,
            Query::RecordInfo(_) => QueryKind::RecordInfo,
            Query::Alarm(_) => QueryKind::Alarm,
            Query::ConfigDownload(_) => QueryKind::ConfigDownload,
            Query::MobilePosition { .. } => QueryKind::MobilePosition,
            Query::CruiseTrack(_) => QueryKind::CruiseTrackQuery,
            Query::Plain(kind) => *kind,
        }
    }
}

fn time(e: &Element, name: &str) -> Option<UnixMillis> {
    e.text_of(name).and_then(|t| UnixMillis::parse_local(t).ok())
}

/// `12`, `1/2`, `1,2`; 0 is all and comes out empty.
pub(super) fn alarm_methods(text: &str) -> Vec<u8> {
    let mut methods: Vec<u8> = text.bytes().filter(|b| (b'1'..=b'7').contains(b)).map(|b| b - b'0').collect();
    methods.sort_unstable();
    methods.dedup();
    methods
}

/// The sub-commands of DeviceControl. [GB/T28181-2022 A.2.3.1]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControlKind {
    /// PTZCmd.
    Ptz,
    /// TeleBoot.
    TeleBoot,
    /// RecordCmd.
    Record,
    /// GuardCmd.
    Guard,
    /// AlarmCmd.
    AlarmReset,
    /// IFrameCmd, IFameCmd.
    KeyFrame,
    /// DragZoomIn.
    DragZoomIn,
    /// DragZoomOut.
    DragZoomOut,
    /// HomePosition.
    HomePosition,
    /// PTZPreciseCtrl.
    PtzPrecise,
    /// DeviceUpgrade.
    Upgrade,
    /// FormatSDCard.
    FormatSdCard,
    /// TargetTrack.
    TargetTrack,
}

impl ControlKind {
    const NAMES: [(&'static str, ControlKind); 14] = [
        ("PTZCmd", ControlKind::Ptz),
        ("TeleBoot", ControlKind::TeleBoot),
        ("RecordCmd", ControlKind::Record),
        ("GuardCmd", ControlKind::Guard),
        ("AlarmCmd", ControlKind::AlarmReset),
        ("IFrameCmd", ControlKind::KeyFrame),
        ("IFameCmd", ControlKind::KeyFrame),
        ("DragZoomIn", ControlKind::DragZoomIn),
        ("DragZoomOut", ControlKind::DragZoomOut),
        ("HomePosition", ControlKind::HomePosition),
        ("PTZPreciseCtrl", ControlKind::PtzPrecise),
        ("DeviceUpgrade", ControlKind::Upgrade),
        ("FormatSDCard", ControlKind::FormatSdCard),
        ("TargetTrack", ControlKind::TargetTrack),
    ];

    /// Reads an element name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(n, _)| name.eq_ignore_ascii_case(n)).map(|(_, kind)| kind)
    }

    /// The element name of 2022.
    pub fn as_str(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// True if the controlled side owes a `Response` besides the SIP 200. [GB/T28181-2022 9.3.1]
    pub fn response_due(self) -> bool {
        matches!(
            self,
            ControlKind::Record
                | ControlKind::Guard
                | ControlKind::AlarmReset
                | ControlKind::HomePosition
                | ControlKind::Upgrade
        )
    }
}

/// A box the operator drew on a picture, in pixels of the window; origin top left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawnBox {
    /// `Length`: width of the window.
    pub window_width: u32,
    /// `Width`: height of the window.
    pub window_height: u32,
    /// `MidPointX`: centre of the box.
    pub x: u32,
    /// `MidPointY`: centre of the box.
    pub y: u32,
    /// `LengthX`: width of the box.
    pub width: u32,
    /// `LengthY`: height of the box.
    pub height: u32,
}

/// How to track a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackMode {
    /// The device chooses.
    Auto,
    /// The target in the box.
    Manual,
    /// No longer.
    Stop,
}

/// A DeviceControl command with its arguments.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum DeviceControl {
    /// PTZ, lens, presets, cruises, scans, switches.
    Ptz {
        /// The command.
        command: PtzCommand,
        /// Name given to the preset or cruise. [GB/T28181-2022 A.2.3.1.2]
        name: Option<String>,
    },
    /// Restart.
    TeleBoot,
    /// Start or stop recording.
    Record {
        /// Start.
        start: bool,
        /// 0 main, 1 first sub-stream.
        stream_number: u8,
    },
    /// Arm or disarm.
    Guard {
        /// Arm.
        set: bool,
    },
    /// Reset alarms; empty methods: all.
    AlarmReset {
        /// Methods 1-7.
        methods: Vec<u8>,
        /// Type within the method.
        alarm_type: Option<u32>,
    },
    /// Send a key frame now.
    KeyFrame,
    /// Zoom so that the box fills the window (in), or the window shrinks into the box (out).
    DragZoom {
        /// In or out.
        inward: bool,
        /// The box.
        area: DrawnBox,
    },
    /// Return to a preset when nobody has moved the camera for a while.
    HomePosition {
        /// On.
        enabled: bool,
        /// Seconds of rest.
        reset_time: Option<u32>,
        /// Preset.
        preset: Option<u8>,
    },
    /// Absolute position; axes left out stay.
    PtzPrecise {
        /// Degrees clockwise, 0-360.
        pan: Option<f64>,
        /// Degrees, up is negative.
        tilt: Option<f64>,
        /// Factor, 1 and up.
        zoom: Option<f64>,
    },
    /// Fetch and install firmware.
    Upgrade {
        /// Version.
        firmware: String,
        /// Where it is.
        file_url: String,
        /// Make.
        manufacturer: String,
        /// Repeated in the result, 32 to 128 characters.
        session_id: String,
    },
    /// Format a card; 0 formats all.
    FormatSdCard(u32),
    /// Track a target.
    TargetTrack {
        /// How.
        mode: TrackMode,
        /// The panorama channel the box was drawn on.
        panorama: Option<DeviceId>,
        /// The target, for `Manual`.
        area: Option<DrawnBox>,
    },
    /// An element the standard does not define.
    Unknown(String),
}

impl DeviceControl {
    /// Which command it is.
    pub fn kind(&self) -> Option<ControlKind> {
        Some(match self {
            DeviceControl::Ptz { .. } => ControlKind::Ptz,
            DeviceControl::TeleBoot => ControlKind::TeleBoot,
            DeviceControl::Record { .. } => ControlKind::Record,
            DeviceControl::Guard { .. } => ControlKind::Guard,
            DeviceControl::AlarmReset { .. } => ControlKind::AlarmReset,
            DeviceControl::KeyFrame => ControlKind::KeyFrame,
            DeviceControl::DragZoom { inward: true, .. } => ControlKind::DragZoomIn,
            DeviceControl::DragZoom { inward: false, .. } => ControlKind::DragZoomOut,
            DeviceControl::HomePosition { .. } => ControlKind::HomePosition,
            DeviceControl::PtzPrecise { .. } => ControlKind::PtzPrecise,
            DeviceControl::Upgrade { .. } => ControlKind::Upgrade,
            DeviceControl::FormatSdCard(_) => ControlKind::FormatSdCard,
            DeviceControl::TargetTrack { .. } => ControlKind::TargetTrack,
            DeviceControl::Unknown(_) => return None,
        })
    }

    /// True if a `Response` is owed. Nobody can wait for one to a command nobody knows.
    pub fn response_due(&self) -> bool {
        self.kind().is_some_and(ControlKind::response_due)
    }
}

/// Why a DeviceControl is refused. `response_due` says whether the refusal needs a `Response` with Result=ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No sub-command.
    #[error("DeviceControl: no command in it: send one of A.2.3.1")]
    Empty,
    /// The eight bytes of a PTZCmd.
    #[error(transparent)]
    Ptz(#[from] PtzError),
    /// A command without a usable argument.
    #[error("DeviceControl {}: {what} missing or out of range: correct the sender", kind.as_str())]
    Argument {
        /// The command.
        kind: ControlKind,
        /// The argument.
        what: &'static str,
    },
}

impl ControlError {
    /// True if a `Response` is owed.
    pub fn response_due(self) -> bool {
        matches!(self, ControlError::Argument { kind, .. } if kind.response_due())
    }
}

/// The typed view of a DeviceControl. The caller has seen root Control and CmdType DeviceControl.
pub fn device_control(incoming: &Incoming, policy: ChecksumPolicy) -> Result<DeviceControl, ControlError> {
    let e = &incoming.element;
    let Some((kind, command)) = e.children.iter().find_map(|c| Some((ControlKind::parse(&c.name)?, c))) else {
        const HEAD: [&str; 5] = ["CmdType", "SN", "DeviceID", "Info", "ExtraInfo"];
        let unknown = e.children.iter().find(|c| !HEAD.iter().any(|h| c.is(h)));
        return unknown.map(|c| DeviceControl::Unknown(c.name.clone())).ok_or(ControlError::Empty);
    };
    let missing = |what| ControlError::Argument { kind, what };
    let word = |yes: &str, no: &str| match command.text.as_str() {
        t if t.eq_ignore_ascii_case(yes) => Ok(true),
        t if t.eq_ignore_ascii_case(no) => Ok(false),
        _ => Err(ControlError::Argument { kind, what: "value" }),
    };
    Ok(match kind {
        ControlKind::Ptz => {
            let params = e.child("PTZCmdParams");
            let name = params.and_then(|p| p.text_of("PresetName").or_else(|| p.text_of("CruiseTrackName")));
            DeviceControl::Ptz { command: PtzCommand::parse(&command.text, policy)?, name: name.map(str::to_owned) }
        }
        ControlKind::TeleBoot => {
            word("Boot", "").ok().filter(|b| *b).map(|_| DeviceControl::TeleBoot).ok_or(missing("Boot"))?
        }
        ControlKind::Record => DeviceControl::Record {
            start: word("Record", "StopRecord")?,
            stream_number: e.number_of("StreamNumber").unwrap_or(0),
        },
        ControlKind::Guard => DeviceControl::Guard { set: word("SetGuard", "ResetGuard")? },
        ControlKind::AlarmReset => {
            let details = e.children_named("Info").find(|i| !i.children.is_empty()).unwrap_or(e);
            DeviceControl::AlarmReset {
                methods: alarm_methods(details.text_of("AlarmMethod").unwrap_or("")),
                alarm_type: details.number_of("AlarmType"),
            }
        }
        ControlKind::KeyFrame => DeviceControl::KeyFrame,
        ControlKind::DragZoomIn | ControlKind::DragZoomOut => DeviceControl::DragZoom {
            inward: kind == ControlKind::DragZoomIn,
            area: drawn_box(command).ok_or(missing("box"))?,
        },
        ControlKind::HomePosition => DeviceControl::HomePosition {
            enabled: command.number_of::<u8>("Enabled").filter(|n| *n <= 1).ok_or(missing("Enabled"))? == 1,
            reset_time: command.number_of("ResetTime"),
            preset: command.number_of("PresetIndex"),
        },
        ControlKind::PtzPrecise => {
            let angle = |name| command.number_of::<f64>(name).filter(|v| v.is_finite());
            let (pan, tilt, zoom) = (angle("Pan"), angle("Tilt"), angle("Zoom"));
            if pan.is_none() && tilt.is_none() && zoom.is_none() {
                return Err(missing("Pan, Tilt and Zoom"));
            }
            DeviceControl::PtzPrecise { pan, tilt, zoom }
        }
        ControlKind::Upgrade => {
            let text = |name| command.text_of(name).map(str::to_owned).ok_or(missing(name));
            DeviceControl::Upgrade {
                firmware: text("Firmware")?,
                file_url: text("FileURL")?,
                manufacturer: text("Manufacturer")?,
                session_id: text("SessionID")?,
            }
        }
        ControlKind::FormatSdCard => {
            DeviceControl::FormatSdCard(command.text.parse().map_err(|_| missing("card number"))?)
        }
        ControlKind::TargetTrack => {
            let mode = match command.text.to_ascii_lowercase().as_str() {
                "auto" => TrackMode::Auto,
                "manual" => TrackMode::Manual,
                "stop" => TrackMode::Stop,
                _ => return Err(missing("mode")),
            };
            let area = e.child("TargetArea").and_then(drawn_box);
            if mode == TrackMode::Manual && area.is_none() {
                return Err(missing("TargetArea"));
            }
            let panorama = e.text_of("DeviceID2").and_then(|t| DeviceId::parse(t).ok());
            DeviceControl::TargetTrack { mode, panorama, area }
        }
    })
}

fn drawn_box(e: &Element) -> Option<DrawnBox> {
    let drawn = DrawnBox {
        window_width: e.number_of("Length")?,
        window_height: e.number_of("Width")?,
        x: e.number_of("MidPointX")?,
        y: e.number_of("MidPointY")?,
        width: e.number_of("LengthX")?,
        height: e.number_of("LengthY")?,
    };
    // a box without area has no zoom factor
    let sides = [drawn.window_width, drawn.window_height, drawn.width, drawn.height];
    (!sides.contains(&0)).then_some(drawn)
}

/// Names of the blocks a DeviceConfig sets, in order. [GB/T28181-2022 A.2.3.2]
pub fn config_blocks(incoming: &Incoming) -> impl Iterator<Item = &Element> {
    let head = |c: &&Element| !["CmdType", "SN", "DeviceID", "Info", "ExtraInfo"].iter().any(|h| c.is(h));
    incoming.element.children.iter().filter(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "34020000001320000001";

    fn control(inner: &str) -> Result<DeviceControl, ControlError> {
        let text =
            format!("<Control><CmdType>DeviceControl</CmdType><SN>1</SN><DeviceID>{ID}</DeviceID>{inner}</Control>");
        device_control(&parse(text.as_bytes(), None).unwrap(), ChecksumPolicy::Verify)
    }

    fn query(cmd: &str, inner: &str) -> Query {
        let text = format!("<Query><CmdType>{cmd}</CmdType><SN>1</SN><DeviceID>{ID}</DeviceID>{inner}</Query>");
        Query::of(&parse(text.as_bytes(), None).unwrap()).unwrap()
    }

    #[test]
    fn head() {
        let i = parse(
            b"<?xml version=\"1.0\"?>\n<query><cmdtype>catalog </cmdtype><SN> 017 </SN><DeviceID>34</DeviceID></query>",
            None,
        )
        .unwrap();
        assert_eq!((i.root, i.cmd_type.as_str(), i.sn, i.device_id.as_str()), (Root::Query, "catalog", 17, "34"));
        assert!(i.is(Root::Query, "Catalog"));
        let i = parse(
            b"<Notify><CmdType>Broadcast</CmdType><SN>9</SN><SourceID>3401</SourceID>\
              <TargetID>3402</TargetID></Notify>",
            None,
        )
        .unwrap();
        assert_eq!(i.device_id.as_str(), "3402");
        // a keepalive without SN is good enough: nobody repeats it
        assert_eq!(
            parse(b"<Notify><CmdType>Keepalive</CmdType><DeviceID>34</DeviceID></Notify>", None).map(|i| i.sn),
            Ok(0)
        );
    }

    #[test]
    fn bad_heads() {
        let cases: [(&str, RequestError); 14] = [
            ("", RequestError::Xml(XmlError::NoRoot)),
            ("<Foo><CmdType>a</CmdType></Foo>", RequestError::UnknownRoot),
            ("<Query><SN>1</SN><DeviceID>34</DeviceID></Query>", RequestError::CmdType),
            ("<Query><CmdType/><SN>1</SN><DeviceID>34</DeviceID></Query>", RequestError::CmdType),
            ("<Query><CmdType>A</CmdType><DeviceID>34</DeviceID></Query>", RequestError::MissingSn),
            ("<Query><CmdType>A</CmdType><SN>-1</SN><DeviceID>34</DeviceID></Query>", RequestError::BadSn),
            ("<Query><CmdType>A</CmdType><SN>+1</SN><DeviceID>34</DeviceID></Query>", RequestError::BadSn),
            ("<Query><CmdType>A</CmdType><SN>4294967296</SN><DeviceID>34</DeviceID></Query>", RequestError::BadSn),
            (
                "<Query><CmdType>A</CmdType><SN>9223372036854775808</SN><DeviceID>34</DeviceID></Query>",
                RequestError::BadSn,
            ),
            ("<Query><CmdType>A</CmdType><SN>1</SN></Query>", RequestError::MissingDeviceId),
            ("<Query><CmdType>A</CmdType><SN>1</SN><DeviceID> </DeviceID></Query>", RequestError::MissingDeviceId),
            (
                "<Query><CmdType>A</CmdType><SN>1</SN><DeviceID>34x</DeviceID></Query>",
                RequestError::BadDeviceId(DeviceIdError::NotDigit(3)),
            ),
            ("<Query></Query><Query></Query>", RequestError::Xml(XmlError::SecondRoot)),
            ("<!DOCTYPE a><Query/>", RequestError::Xml(XmlError::Dtd)),
        ];
        for (text, error) in cases {
            assert_eq!(parse(text.as_bytes(), None).map(|i| i.sn), Err(error), "{text}");
            assert!(!error.label().is_empty());
        }
    }

    /// Every file says in its name what it is refused for (`ok`: it is read).
    #[test]
    fn malformed_fixtures() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/proto-fixtures/manscdp/malformed");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let label = parse(&std::fs::read(&path).unwrap(), None).map_or_else(RequestError::label, |_| "ok");
            assert_eq!(Some(label), name.split('-').nth(1), "{name}");
            seen += 1;
        }
        assert!(seen >= 20);
    }

    #[test]
    fn queries() {
        assert_eq!(query("Catalog", ""), Query::Catalog(CatalogQuery::default()));
        let Query::Catalog(q) = query("Catalog", "<StartTime>2026-11-23T21:15:04</StartTime><EndTime></EndTime>")
        else {
            panic!("catalog");
        };
        assert_eq!((q.start.map(UnixMillis::secs), q.end), (Some(1_795_439_704), None));
        let Query::RecordInfo(q) = query(
            "RecordInfo",
            "<StartTime>2026-11-23T08:00:00</StartTime><EndTime>2026-11-23T24:00:00</EndTime><Secrecy> 0 </Secrecy>\
             <Type>ALL</Type><IndistinctQuery>1</IndistinctQuery><StreamNumber>1</StreamNumber>",
        ) else {
            panic!("records");
        };
        assert!(q.start.is_some() && q.end.is_none() && q.indistinct);
        assert_eq!((q.record_type.as_deref(), q.secrecy, q.stream_number), (Some("all"), Some(false), Some(1)));
        for (text, methods) in [("0", vec![]), ("12", vec![1, 2]), ("2/5", vec![2, 5]), ("9", vec![])] {
            let Query::Alarm(q) = query("Alarm", &format!("<AlarmMethod>{text}</AlarmMethod>")) else {
                panic!("alarm")
            };
            assert_eq!(q.methods, methods);
        }
        let Query::Alarm(q) =
            query("Alarm", "<StartAlarmPriority>0</StartAlarmPriority><StartTime>2026-1-1T0:0:0</StartTime>")
        else {
            panic!("alarm")
        };
        assert!(q.start_priority.is_none() && q.start.is_some());
        assert_eq!(
            query("ConfigDownload", "<ConfigType>BasicParam / VideoParamOpt/</ConfigType>"),
            Query::ConfigDownload(vec!["BasicParam".into(), "VideoParamOpt".into()])
        );
        assert_eq!(query("PersetQuery", ""), Query::Plain(QueryKind::PresetQuery));
        assert_eq!(query("ptzposition", ""), Query::Plain(QueryKind::PtzPosition));
        assert_eq!(query("MobilePosition", ""), Query::MobilePosition { interval: 5 });
        assert_eq!(query("CruiseTrackQuery", "<Number>3</Number>"), Query::CruiseTrack(3));
        for kind in QueryKind::ALL {
            assert_eq!(QueryKind::parse(kind.as_str()), Some(kind));
            assert_eq!(query(kind.as_str(), "").kind(), kind);
        }
        assert_eq!(QueryKind::parse("SensorCatalog"), None);
    }

    #[test]
    fn controls() {
        use DeviceControl::*;
        let drawn = "<Length>704</Length><Width>576</Width><MidPointX>350</MidPointX><MidPointY>200</MidPointY>\
                     <LengthX>100</LengthX><LengthY>80</LengthY>";
        let area = DrawnBox { window_width: 704, window_height: 576, x: 350, y: 200, width: 100, height: 80 };
        let cases = [
            ("<PTZCmd>A50F0000000000B4</PTZCmd>".to_owned(), Ptz { command: PtzCommand::STOP, name: None }, false),
            ("<TeleBoot>boot</TeleBoot>".to_owned(), TeleBoot, false),
            ("<RecordCmd>Record</RecordCmd>".to_owned(), Record { start: true, stream_number: 0 }, true),
            (
                "<RecordCmd>StopRecord</RecordCmd><StreamNumber>1</StreamNumber>".to_owned(),
                Record { start: false, stream_number: 1 },
                true,
            ),
            ("<GuardCmd> SetGuard </GuardCmd>".to_owned(), Guard { set: true }, true),
            ("<GuardCmd>ResetGuard</GuardCmd>".to_owned(), Guard { set: false }, true),
            (
                "<AlarmCmd>ResetAlarm</AlarmCmd><Info>note</Info>\
                 <Info><AlarmMethod>25</AlarmMethod><AlarmType>6</AlarmType></Info>"
                    .to_owned(),
                AlarmReset { methods: vec![2, 5], alarm_type: Some(6) },
                true,
            ),
            ("<IFameCmd>Send</IFameCmd>".to_owned(), KeyFrame, false),
            ("<IFrameCmd>Send</IFrameCmd>".to_owned(), KeyFrame, false),
            (format!("<DragZoomIn>{drawn}</DragZoomIn>"), DragZoom { inward: true, area }, false),
            (format!("<DragZoomOut>{drawn}</DragZoomOut>"), DragZoom { inward: false, area }, false),
            (
                "<HomePosition><Enabled>1</Enabled><ResetTime>60</ResetTime><PresetIndex>3</PresetIndex></HomePosition>"
                    .to_owned(),
                HomePosition { enabled: true, reset_time: Some(60), preset: Some(3) },
                true,
            ),
            (
                "<PTZPreciseCtrl><Pan>123.50</Pan><Tilt>10.00</Tilt><Zoom>4.00</Zoom></PTZPreciseCtrl>".to_owned(),
                PtzPrecise { pan: Some(123.5), tilt: Some(10.0), zoom: Some(4.0) },
                false,
            ),
            ("<FormatSDCard>0</FormatSDCard>".to_owned(), FormatSdCard(0), false),
            (
                format!("<TargetTrack>Manual</TargetTrack><DeviceID2>{ID}</DeviceID2><TargetArea>{drawn}</TargetArea>"),
                TargetTrack { mode: TrackMode::Manual, panorama: DeviceId::parse(ID).ok(), area: Some(area) },
                false,
            ),
            ("<Vendor>1</Vendor>".to_owned(), Unknown("Vendor".into()), false),
        ];
        for (inner, command, due) in cases {
            let parsed = control(&inner).unwrap_or_else(|e| panic!("{inner}: {e}"));
            assert_eq!(parsed.response_due(), due, "{inner}");
            assert_eq!(parsed, command, "{inner}");
        }
        let Ok(Ptz { name, .. }) =
            control("<PTZCmd>A50F00810005003A</PTZCmd><PTZCmdParams><PresetName>东门</PresetName></PTZCmdParams>")
        else {
            panic!("ptz")
        };
        assert_eq!(name.as_deref(), Some("东门"));
    }

    #[test]
    fn bad_controls() {
        for (inner, due) in [
            ("", false),
            ("<Info><ControlPriority>5</ControlPriority></Info>", false),
            ("<PTZCmd>A50F0000000000B</PTZCmd>", false),
            ("<PTZCmd>A50F0000000000B40</PTZCmd>", false),
            ("<PTZCmd>A50F0000000000B5</PTZCmd>", false),
            ("<PTZCmd/>", false),
            ("<TeleBoot/>", false),
            ("<RecordCmd>Maybe</RecordCmd>", true),
            ("<GuardCmd/>", true),
            ("<DragZoomIn><Length>0</Length></DragZoomIn>", false),
            ("<HomePosition><Enabled>7</Enabled></HomePosition>", true),
            ("<PTZPreciseCtrl><Pan>NaN</Pan></PTZPreciseCtrl>", false),
            ("<DeviceUpgrade><Firmware>1</Firmware></DeviceUpgrade>", true),
            ("<FormatSDCard>-1</FormatSDCard>", false),
            ("<TargetTrack>Manual</TargetTrack>", false),
        ] {
            let error = control(inner).expect_err(inner);
            assert_eq!(error.response_due(), due, "{inner}: {error}");
        }
    }

    #[test]
    fn config_block_names() {
        let text = format!(
            "<Control><CmdType>DeviceConfig</CmdType><SN>1</SN><DeviceID>{ID}</DeviceID>\
             <BasicParam><Name>a</Name></BasicParam><FrameMirror>1</FrameMirror><ExtraInfo>x</ExtraInfo></Control>"
        );
        let incoming = parse(text.as_bytes(), None).unwrap();
        let names: Vec<_> = config_blocks(&incoming).map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["BasicParam", "FrameMirror"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn mutated_bodies_never_panic(at in 0usize..400, byte in any::<u8>(), cut in 0usize..400) {
            let text = format!(
                "<?xml version=\"1.0\" encoding=\"GB2312\"?>\r\n<Control>\r\n<CmdType>DeviceControl</CmdType>\r\n\
                 <SN>1201</SN>\r\n\
                 <DeviceID>{ID}</DeviceID>\r\n<PTZCmd>A50F0001400000F5</PTZCmd>\r\n\
                 <Info><ControlPriority>5</ControlPriority></Info>\r\n</Control>\r\n"
            );
            let mut body = text.into_bytes();
            let at = at % body.len();
            body[at] = byte;
            if cut > body.len() / 2 { body.truncate(cut); }
            if let Ok(incoming) = parse(&body, None) {
                let _ = device_control(&incoming, ChecksumPolicy::Ignore);
                let _ = Query::of(&incoming);
            }
        }
    }
}
