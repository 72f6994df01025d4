//! Catalogue items, answers and change notices: one renderer for all of them, and the tolerant reader.
//! Standard: [GB/T28181-2022 A.2.6.4, annexes J, M, N], [GB/T28181-2016 annexes N, O, P].
//! In: `CatalogItem`s, or a parsed body. Out: bodies in the peer's version, or `CatalogItem`s.
//! Invariants: elements in the schema's order; which are written is decided by the kind of the item and the version;
//! passwords are neither read nor written; SumNum is never trusted for anything but counting.
//! Deviations read: Parental=65535, Status=ONLINE, a ParentID that names the item itself, `null`, PTZType outside
//! Info, blank and zero coordinates.
//! Not here: which items a peer may see, loops through several items, duplicates over several messages.

use super::assembly::Chunk;
use super::body;
use super::pages::{ListFrame, write_list};
use super::policy::{CatalogPolicy, Policies};
use super::request::{Incoming, Root};
use super::xml::{Element, XmlWriter};
use crate::proto::gb28181::version::CatalogSet;
use crate::proto::gb28181::{DeviceId, IdKind, Profile, UnixMillis, Version};

pub use super::pages::MAX_ITEMS;

/// Longest text kept of one field, in characters: the standard's longest free text.
pub(super) const MAX_TEXT: usize = 1024;
/// Most ids kept of one ParentID: a device has a parent of each kind, a few more where paths merge.
const MAX_PARENTS: usize = 8;

/// ON or OFF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Usable.
    On,
    /// Not.
    Off,
}

impl Status {
    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::On => "ON",
            Status::Off => "OFF",
        }
    }

    /// Reads ON, OFF and what equipment sends instead (ONLINE, OFFLINE, OK, ERROR, 1, 0), in any case.
    pub fn parse(text: &str) -> Option<Self> {
        let is = |words: &[&str]| words.iter().any(|w| text.eq_ignore_ascii_case(w));
        if is(&["ON", "ONLINE", "OK", "1", "true"]) {
            Some(Status::On)
        } else if is(&["OFF", "OFFLINE", "ERROR", "0", "false"]) {
            Some(Status::Off)
        } else {
            None
        }
    }
}

/// The `Info` block of an item. Lists in one text are joined with `/`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ItemInfo {
    /// 1 dome, 2 half-dome, 3 fixed, 4 PTZ bullet; since 2022 5 PTZ half-dome, 6 panorama, 7 split channel.
    pub ptz_type: Option<u8>,
    /// 1-10, until 2016.
    pub position_type: Option<u8>,
    /// 1 visible, 2 thermal ..., 2022.
    pub photoelectric_imaging_type: Option<String>,
    /// Seven digits, 2022 annex O.
    pub capture_position_type: Option<String>,
    /// 1 outdoor, 2 indoor.
    pub room_type: Option<u8>,
    /// 1 public security, 2 traffic, 3 key; until 2016.
    pub use_type: Option<u8>,
    /// 1 none, 2 infrared, 3 white; since 2022 4 laser, 9 other.
    pub supply_light_type: Option<u8>,
    /// 1 east ... 8 north-west.
    pub direction_type: Option<u8>,
    /// Codes of the SDP f= field.
    pub resolution: Option<String>,
    /// `0/1/2`, 2022.
    pub stream_number_list: Option<String>,
    /// `1/2/4`.
    pub download_speed: Option<String>,
    /// 0-3.
    pub svc_space_support_mode: Option<u8>,
    /// 0-3.
    pub svc_time_support_mode: Option<u8>,
    /// `4:3/2:1`, 2022.
    pub ssvc_ratio_support_list: Option<String>,
    /// 1 robot, 2 body-worn ..., 2022.
    pub mobile_device_type: Option<u8>,
    /// Degrees, 2022.
    pub horizontal_field_angle: Option<f64>,
    /// Degrees, 2022.
    pub vertical_field_angle: Option<f64>,
    /// Metres, 2022.
    pub max_view_distance: Option<f64>,
    /// Six digits, 2022; `000000` is written where unset.
    pub grassroots_code: Option<String>,
    /// 1-3, 9 other, 2022; 9 is written for a camera where unset.
    pub point_type: Option<u8>,
    /// Another name, 2022.
    pub point_common_name: Option<String>,
    /// `XX-XX-XX-XX-XX-XX`, 2022.
    pub mac: Option<String>,
    /// `01/02`, 2022.
    pub function_type: Option<String>,
    /// Video code of the SDP f= field, 2022.
    pub encode_type: Option<String>,
    /// When it was installed, 2022.
    pub install_time: Option<UnixMillis>,
    /// Who looks after it, 2022.
    pub management_unit: Option<String>,
    /// Telephone numbers, 2022.
    pub contact_info: Option<String>,
    /// Days of recordings kept, 2022.
    pub record_save_days: Option<u32>,
    /// GB/T 4754 code, 2022.
    pub industrial_classification: Option<String>,
}

/// An item of a catalogue: division, system, business group, virtual organisation or device by its id.
#[derive(Debug, Clone, PartialEq)]
pub struct CatalogItem {
    /// Who.
    pub device_id: DeviceId,
    /// Name.
    pub name: String,
    /// Make.
    pub manufacturer: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// Owner, until 2016.
    pub owner: Option<String>,
    /// 2, 4, 6 or 8 digits; where unset that of the id is written.
    pub civil_code: Option<String>,
    /// Police district.
    pub block: Option<String>,
    /// Where it stands.
    pub address: Option<String>,
    /// Has children.
    pub parental: Option<bool>,
    /// Parents; joined with `/`. Many upper platforms understand one only.
    pub parent_id: Vec<DeviceId>,
    /// 0 none, 2-4, until 2016.
    pub safety_way: Option<u8>,
    /// 1 digest, 2-4.
    pub register_way: Option<u8>,
    /// A, B or C of GB 35114, 2022.
    pub security_level_code: Option<String>,
    /// Certificate number, until 2016.
    pub cert_num: Option<String>,
    /// Certificate valid, until 2016.
    pub certifiable: Option<bool>,
    /// Why the certificate is not, until 2016.
    pub err_code: Option<i32>,
    /// End of the certificate, until 2016.
    pub end_time: Option<UnixMillis>,
    /// Secret.
    pub secrecy: Option<bool>,
    /// Address.
    pub ip_address: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Usable.
    pub status: Option<Status>,
    /// Degrees, WGS-84.
    pub longitude: Option<f64>,
    /// Degrees, WGS-84.
    pub latitude: Option<f64>,
    /// The business group of a virtual organisation or a device.
    pub business_group_id: Option<DeviceId>,
    /// The Info block.
    pub info: ItemInfo,
}

impl CatalogItem {
    /// An item with nothing but id and name.
    pub fn new(device_id: DeviceId, name: impl Into<String>) -> Self {
        Self {
            device_id,
            name: name.into(),
            manufacturer: None,
            model: None,
            owner: None,
            civil_code: None,
            block: None,
            address: None,
            parental: None,
            parent_id: Vec::new(),
            safety_way: None,
            register_way: None,
            security_level_code: None,
            cert_num: None,
            certifiable: None,
            err_code: None,
            end_time: None,
            secrecy: None,
            ip_address: None,
            port: None,
            status: None,
            longitude: None,
            latitude: None,
            business_group_id: None,
            info: ItemInfo::default(),
        }
    }

    /// Reads an `Item`. `None` without a usable DeviceID; every other field may be missing or odd.
    pub fn read(item: &Element) -> Option<Self> {
        Self::read_noting(item, &mut Policies::default())
    }

    /// The same; what was tolerated is noted.
    pub fn read_noting(item: &Element, policies: &mut Policies) -> Option<Self> {
        let Some(device_id) = item.text_of("DeviceID").and_then(|t| DeviceId::parse(t).ok()) else {
            policies.note(CatalogPolicy::UnreadableId);
            return None;
        };
        policies.note_if(has_odd_length(&device_id), CatalogPolicy::OddIdLength);
        let notes = std::cell::RefCell::new(&mut *policies);
        let note = |policy| notes.borrow_mut().note(policy);
        let details = item.child("Info");
        let is_text = |t: &&str| {
            let null = t.eq_ignore_ascii_case("null");
            notes.borrow_mut().note_if(null, CatalogPolicy::NullWord);
            !null
        };
        // fields of Info are found beside it too, and the other way round
        let get = |name: &str| item.text_of(name).or_else(|| details?.text_of(name)).filter(is_text);
        let inner = |name: &str| {
            let beside = item.text_of(name);
            notes.borrow_mut().note_if(beside.is_some(), CatalogPolicy::FieldOutsideInfo);
            beside.or_else(|| details?.text_of(name)).filter(is_text)
        };
        fn keep<T>(value: Option<T>, note: &impl Fn(CatalogPolicy)) -> Option<T> {
            if value.is_none() {
                note(CatalogPolicy::UnreadableValue);
            }
            value
        }
        let short = |t: &str| t.chars().take(MAX_TEXT).collect::<String>();
        let text = |name: &str| get(name).map(short);
        let inner_text = |name: &str| inner(name).map(short);
        let number = |name: &str| get(name).and_then(|t| keep(t.parse::<u8>().ok(), &note));
        let inner_number = |name: &str| inner(name).and_then(|t| keep(t.parse::<u8>().ok(), &note));
        let flag = |name: &str, odd| match get(name)? {
            "0" => Some(false),
            "1" => Some(true),
            _ => {
                note(odd);
                None
            }
        };
        let time = |text: Option<&str>| text.and_then(|t| keep(UnixMillis::parse_local(t).ok(), &note));
        let positive = |name: &str| {
            inner(name).and_then(|t| keep(t.parse::<f64>().ok().filter(|v| v.is_finite() && *v > 0.0), &note))
        };
        let degrees = |name: &str, limit: f64| {
            let value = get(name).map(str::parse::<f64>);
            // zero is what unset coordinates look like
            let empty = item.child(name).is_some_and(|e| e.text.is_empty()) || value == Some(Ok(0.0));
            if empty {
                note(CatalogPolicy::EmptyCoordinate);
                return None;
            }
            value.and_then(|v| keep(v.ok().filter(|v| v.is_finite() && v.abs() <= limit), &note))
        };
        let parents = get("ParentID").unwrap_or("").split('/').map(str::trim).filter(|p| !p.is_empty());
        let parents = parents.filter_map(|p| match DeviceId::parse(p) {
            Ok(id) if id == device_id => {
                note(CatalogPolicy::ParentIsSelf);
                None
            }
            Ok(id) => {
                notes.borrow_mut().note_if(has_odd_length(&id), CatalogPolicy::OddParentLength);
                Some(id)
            }
            Err(_) => {
                note(CatalogPolicy::UnreadableParent);
                None
            }
        });
        let status = |text: &str| {
            let status = Status::parse(text);
            let spelt = status.is_some_and(|s| text == s.as_str());
            notes.borrow_mut().note_if(!spelt, CatalogPolicy::StatusSpelling);
            status
        };
        let name = text("Name").unwrap_or_else(|| {
            note(CatalogPolicy::MissingName);
            String::new()
        });
        Some(Self {
            device_id,
            name,
            manufacturer: text("Manufacturer"),
            model: text("Model"),
            owner: text("Owner"),
            civil_code: text("CivilCode"),
            block: text("Block"),
            address: text("Address"),
            parental: flag("Parental", CatalogPolicy::OddParental),
            parent_id: parents.take(MAX_PARENTS).collect(),
            safety_way: number("SafetyWay"),
            register_way: number("RegisterWay"),
            security_level_code: text("SecurityLevelCode"),
            cert_num: text("CertNum"),
            certifiable: flag("Certifiable", CatalogPolicy::UnreadableValue),
            err_code: get("ErrCode").and_then(|t| keep(t.parse().ok(), &note)),
            end_time: time(get("EndTime")),
            secrecy: flag("Secrecy", CatalogPolicy::UnreadableValue),
            ip_address: text("IPAddress"),
            port: get("Port").and_then(|t| keep(t.parse().ok(), &note)),
            status: get("Status").and_then(status),
            longitude: degrees("Longitude", 180.0),
            latitude: degrees("Latitude", 90.0),
            business_group_id: get("BusinessGroupID").and_then(|t| keep(DeviceId::parse(t).ok(), &note)),
            info: ItemInfo {
                ptz_type: inner_number("PTZType"),
                position_type: inner_number("PositionType"),
                photoelectric_imaging_type: inner_text("PhotoelectricImagingType"),
                capture_position_type: inner_text("CapturePositionType"),
                room_type: inner_number("RoomType"),
                use_type: inner_number("UseType"),
                supply_light_type: inner_number("SupplyLightType"),
                direction_type: inner_number("DirectionType"),
                resolution: inner_text("Resolution"),
                stream_number_list: inner_text("StreamNumberList"),
                download_speed: inner_text("DownloadSpeed"),
                svc_space_support_mode: inner_number("SVCSpaceSupportMode"),
                svc_time_support_mode: inner_number("SVCTimeSupportMode"),
                ssvc_ratio_support_list: inner_text("SSVCRatioSupportList"),
                mobile_device_type: inner_number("MobileDeviceType"),
                horizontal_field_angle: positive("HorizontalFieldAngle"),
                vertical_field_angle: positive("VerticalFieldAngle"),
                max_view_distance: positive("MaxViewDistance"),
                grassroots_code: inner_text("GrassrootsCode"),
                point_type: inner_number("PointType"),
                point_common_name: inner_text("PointCommonName"),
                mac: inner_text("MAC"),
                function_type: inner_text("FunctionType"),
                encode_type: inner_text("EncodeType"),
                install_time: time(inner("InstallTime")),
                management_unit: inner_text("ManagementUnit"),
                contact_info: inner_text("ContactInfo"),
                record_save_days: inner("RecordSaveDays").and_then(|t| keep(t.parse().ok(), &note)),
                industrial_classification: inner_text("IndustrialClassification"),
            },
        })
    }
}

/// Lengths the standard gives no code. [GB/T28181-2022 A.2.1]
fn has_odd_length(id: &DeviceId) -> bool {
    !matches!(id.as_str().len(), 2 | 4 | 6 | 8 | 20)
}

/// An item as `<Item>...</Item>`, to be put into `catalog_page`.
pub fn item_xml(item: &CatalogItem, profile: Profile) -> String {
    write_item(item, None, item.status, profile)
}

fn write_item(item: &CatalogItem, event: Option<CatalogEvent>, status: Option<Status>, profile: Profile) -> String {
    let new = profile.version() >= Version::V2022;
    let mut w = XmlWriter::new();
    w.open("Item").text("DeviceID", item.device_id).opt("Event", event.map(CatalogEvent::as_str));
    w.text("Name", &item.name);
    let civil_code = item.civil_code.as_deref().or(item.device_id.civil_code());
    let parents: Vec<&str> = item.parent_id.iter().map(DeviceId::as_str).collect();
    let parent_id = (!parents.is_empty()).then(|| parents.join("/"));
    match item.device_id.kind() {
        IdKind::Division => {}
        IdKind::BusinessGroup | IdKind::VirtualOrganisation => {
            w.opt("CivilCode", civil_code.filter(|_| new)).opt("ParentID", parent_id);
            if item.device_id.kind() == IdKind::VirtualOrganisation {
                w.opt("BusinessGroupID", item.business_group_id);
            }
        }
        kind => {
            let system = kind == IdKind::Platform;
            let mandatory = |text: &Option<String>| text.clone().unwrap_or_default();
            w.text("Manufacturer", mandatory(&item.manufacturer)).text("Model", mandatory(&item.model));
            if !new {
                w.text("Owner", mandatory(&item.owner));
            }
            w.opt("CivilCode", civil_code).opt("Block", item.block.as_ref().filter(|_| !system));
            w.text("Address", mandatory(&item.address));
            if !system {
                w.text("Parental", u8::from(item.parental.unwrap_or(false)));
            }
            w.opt("ParentID", parent_id);
            if !new && !system {
                w.text("SafetyWay", item.safety_way.unwrap_or(0));
            }
            w.text("RegisterWay", item.register_way.filter(|n| new || *n <= 3).unwrap_or(1));
            if new {
                w.opt("SecurityLevelCode", item.security_level_code.as_ref());
            } else if !system {
                w.opt("CertNum", item.cert_num.as_ref()).opt("Certifiable", item.certifiable.map(u8::from));
                w.opt("ErrCode", item.err_code).opt("EndTime", item.end_time);
            }
            w.text("Secrecy", u8::from(item.secrecy.unwrap_or(false)));
            if system {
                w.opt("Status", status.or(new.then_some(Status::On)).map(Status::as_str));
            } else {
                w.opt("IPAddress", item.ip_address.as_ref()).opt("Port", item.port);
                w.text("Status", status.unwrap_or(Status::Off).as_str());
                let degrees = |v: Option<f64>| v.filter(|v| v.is_finite()).map(|v| format!("{v:.6}"));
                w.opt("Longitude", degrees(item.longitude)).opt("Latitude", degrees(item.latitude));
                if new {
                    w.opt("BusinessGroupID", item.business_group_id);
                }
                write_info(&mut w, item, profile.catalog_set());
            }
        }
    }
    w.close("Item");
    w.into_string()
}

fn write_info(w: &mut XmlWriter, item: &CatalogItem, set: CatalogSet) {
    let i = &item.info;
    let mut inner = XmlWriter::new();
    match set {
        CatalogSet::Plain => {}
        CatalogSet::Info2016 => {
            // a moving half-dome is a dome to those who know no half-domes that move; 6 and 7 have no older word
            let ptz_type = i.ptz_type.map(|t| if t == 5 { 1 } else { t }).filter(|t| *t <= 4);
            inner
                .opt("PTZType", ptz_type)
                .opt("PositionType", i.position_type)
                .opt("RoomType", i.room_type)
                .opt("UseType", i.use_type)
                .opt("SupplyLightType", i.supply_light_type.filter(|t| *t <= 3))
                .opt("DirectionType", i.direction_type)
                .opt("Resolution", i.resolution.as_ref())
                .opt("BusinessGroupID", item.business_group_id)
                .opt("DownloadSpeed", i.download_speed.as_ref())
                .opt("SVCSpaceSupportMode", i.svc_space_support_mode)
                .opt("SVCTimeSupportMode", i.svc_time_support_mode);
        }
        CatalogSet::Full2022 => {
            let camera = matches!(item.device_id.type_code(), Some(131 | 132));
            let finite = |v: Option<f64>| v.filter(|v| v.is_finite());
            inner
                .opt("PTZType", i.ptz_type)
                .opt("PhotoelectricImagingType", i.photoelectric_imaging_type.as_ref())
                .opt("CapturePositionType", i.capture_position_type.as_ref())
                .opt("RoomType", i.room_type)
                .opt("SupplyLightType", i.supply_light_type)
                .opt("DirectionType", i.direction_type)
                .opt("Resolution", i.resolution.as_ref())
                .opt("StreamNumberList", i.stream_number_list.as_ref())
                .opt("DownloadSpeed", i.download_speed.as_ref())
                .opt("SVCSpaceSupportMode", i.svc_space_support_mode)
                .opt("SVCTimeSupportMode", i.svc_time_support_mode)
                .opt("SSVCRatioSupportList", i.ssvc_ratio_support_list.as_ref())
                .opt("MobileDeviceType", i.mobile_device_type)
                .opt("HorizontalFieldAngle", finite(i.horizontal_field_angle))
                .opt("VerticalFieldAngle", finite(i.vertical_field_angle))
                .opt("MaxViewDistance", finite(i.max_view_distance))
                .text("GrassrootsCode", i.grassroots_code.as_deref().unwrap_or("000000"))
                .opt("PointType", i.point_type.or(camera.then_some(9)))
                .opt("PointCommonName", i.point_common_name.as_ref())
                .opt("MAC", i.mac.as_ref())
                .opt("FunctionType", i.function_type.as_ref())
                .opt("EncodeType", i.encode_type.as_ref())
                .opt("InstallTime", i.install_time)
                .opt("ManagementUnit", i.management_unit.as_ref())
                .opt("ContactInfo", i.contact_info.as_ref())
                .opt("RecordSaveDays", i.record_save_days)
                .opt("IndustrialClassification", i.industrial_classification.as_ref());
        }
    }
    if !inner.is_empty() {
        w.open("Info").raw(&inner.into_string()).close("Info");
    }
}

/// One message of a catalogue answer: `items` are texts of `item_xml`, `sum_num` counts the whole answer. Without items
/// there is no list, as the standard has it for an empty result.
pub fn catalog_page<S: AsRef<str>>(
    profile: Profile,
    sn: u32,
    device_id: &DeviceId,
    sum_num: usize,
    items: &[S],
) -> Vec<u8> {
    FRAME.page(profile, sn, device_id, sum_num, items)
}

const FRAME: ListFrame<'static> = ListFrame { cmd_type: "Catalog", list: "DeviceList", name: None };

/// How many of `items` fit into one `catalog_page` of at most `max_bytes` after encoding: at least 1 if there are any,
/// at most `MAX_ITEMS`.
pub fn items_that_fit<S: AsRef<str>>(profile: Profile, device_id: &DeviceId, items: &[S], max_bytes: usize) -> usize {
    FRAME.fit(profile, device_id, items, max_bytes)
}

/// What happened to an item. [GB/T28181-2022 annex N]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CatalogEvent {
    /// Came up.
    On,
    /// Went down.
    Off,
    /// Lost its video.
    Vlost,
    /// Is faulty.
    Defect,
    /// Is new.
    Add,
    /// Is gone.
    Del,
    /// Changed.
    Update,
}

impl CatalogEvent {
    const ALL: [CatalogEvent; 7] = [
        CatalogEvent::On,
        CatalogEvent::Off,
        CatalogEvent::Vlost,
        CatalogEvent::Defect,
        CatalogEvent::Add,
        CatalogEvent::Del,
        CatalogEvent::Update,
    ];

    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            CatalogEvent::On => "ON",
            CatalogEvent::Off => "OFF",
            CatalogEvent::Vlost => "VLOST",
            CatalogEvent::Defect => "DEFECT",
            CatalogEvent::Add => "ADD",
            CatalogEvent::Del => "DEL",
            CatalogEvent::Update => "UPDATE",
        }
    }

    /// Reads it in any case.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| text.eq_ignore_ascii_case(e.as_str()))
    }

    /// True if the notice carries the whole item.
    pub fn carries_item(self) -> bool {
        matches!(self, CatalogEvent::Add | CatalogEvent::Update)
    }

    /// The status the event leaves behind, where it says one.
    pub fn status(self) -> Option<Status> {
        match self {
            CatalogEvent::On => Some(Status::On),
            CatalogEvent::Off | CatalogEvent::Vlost | CatalogEvent::Defect | CatalogEvent::Del => Some(Status::Off),
            CatalogEvent::Add | CatalogEvent::Update => None,
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub struct CatalogChange {
    /// What happened.
    pub event: CatalogEvent,
    /// To whom.
    pub device_id: DeviceId,
    /// The item as it is now: due for ADD and UPDATE, and for every event to a peer of 2011.
    pub item: Option<Box<CatalogItem>>,
}

impl CatalogChange {
    /// A change with its item.
    pub fn of(event: CatalogEvent, item: CatalogItem) -> Self {
        Self { event, device_id: item.device_id, item: Some(Box::new(item)) }
    }

    /// A change of state; not for ADD and UPDATE.
    pub fn state(event: CatalogEvent, device_id: DeviceId) -> Self {
        Self { event, device_id, item: None }
    }
}

/// One change as `<Item>...</Item>`, to be put into `catalog_notify_page`. 2011 knows no events: it gets the item with
/// the status the event leaves behind.
pub fn change_xml(change: &CatalogChange, profile: Profile) -> String {
    let old = profile.version() == Version::V2011;
    match &change.item {
        Some(item) if old => write_item(item, None, change.event.status().or(item.status), profile),
        Some(item) if change.event.carries_item() => write_item(item, Some(change.event), item.status, profile),
        _ => {
            let mut w = XmlWriter::new();
            w.open("Item").text("DeviceID", change.device_id);
            if old {
                w.opt("Status", change.event.status().map(Status::as_str));
            } else {
                w.text("Event", change.event.as_str());
            }
            w.close("Item");
            w.into_string()
        }
    }
}

/// A catalogue NOTIFY of rendered changes: SumNum counts this message alone. Without changes the list is empty but
/// there, which is what the first NOTIFY of a subscription without news looks like.
pub fn catalog_notify_page<S: AsRef<str>>(profile: Profile, sn: u32, device_id: &DeviceId, changes: &[S]) -> Vec<u8> {
    body(profile, profile.catalog_notify_root(), "Catalog", sn, device_id, |w| {
        w.text("SumNum", changes.len());
        write_list(w, FRAME.list, changes);
    })
}

/// The same from changes.
pub fn catalog_notify(profile: Profile, sn: u32, device_id: &DeviceId, changes: &[CatalogChange]) -> Vec<u8> {
    let items: Vec<String> = changes.iter().map(|c| change_xml(c, profile)).collect();
    catalog_notify_page(profile, sn, device_id, &items)
}

/// A catalogue answer as received.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CatalogResponse {
    /// Items of the whole answer, as the sender says; `None` if missing or negative. May be wrong or absurd.
    pub sum_num: Option<u32>,
    /// Items of this message, as the sender says; as little to be believed.
    pub num: Option<u32>,
    /// Items of this message.
    pub items: Vec<CatalogItem>,
    /// Items without a usable DeviceID, and items above `MAX_ITEMS`.
    pub dropped: usize,
    /// What was tolerated in the body and its items.
    pub policies: Policies,
}

impl CatalogResponse {
    /// Reads a Response/Catalog; `None` if it is none.
    pub fn read(incoming: &Incoming) -> Option<Self> {
        if !incoming.is(Root::Response, "Catalog") {
            return None;
        }
        let mut out = Self {
            sum_num: incoming.element.number_of("SumNum"),
            num: list_num(&incoming.element, FRAME.list),
            policies: incoming.policies,
            ..Self::default()
        };
        for item in list_items(&incoming.element) {
            if out.items.len() == MAX_ITEMS {
                out.policies.note(CatalogPolicy::OverLimit);
                out.dropped += 1;
                continue;
            }
            match CatalogItem::read_noting(item, &mut out.policies) {
                Some(item) => out.items.push(item),
                None => out.dropped += 1,
            }
        }
        Some(out)
    }

    /// For `assembly`. `bytes` is the length of the body.
    pub fn into_chunk(self, bytes: usize) -> Chunk<CatalogItem> {
        let Self { sum_num, num, items, dropped, policies } = self;
        Chunk { sum_num, num, items, dropped, bytes, policies }
    }
}

/// `Num` of a list; of the first, where it comes in several.
pub(super) fn list_num(e: &Element, list: &str) -> Option<u32> {
    e.child(list)?.attr("Num")?.parse().ok()
}

fn list_items(e: &Element) -> impl Iterator<Item = &Element> {
    e.children_named("DeviceList").flat_map(|list| list.children_named("Item"))
}

/// Reads the changes of a catalogue NOTIFY (root Notify, or Response from a peer of 2011, whose items count as UPDATE).
/// `None` if it is none. At most `MAX_ITEMS` are taken.
pub fn read_catalog_notify(incoming: &Incoming) -> Option<Vec<CatalogChange>> {
    if !incoming.is(Root::Notify, "Catalog") && !incoming.is(Root::Response, "Catalog") {
        return None;
    }
    let changes = list_items(&incoming.element).filter_map(|e| {
        let item = CatalogItem::read(e)?;
        let event = e.text_of("Event").and_then(CatalogEvent::parse).unwrap_or(CatalogEvent::Update);
        Some(match event.carries_item() {
            true => CatalogChange::of(event, item),
            false => CatalogChange::state(event, item.device_id),
        })
    });
    Some(changes.take(MAX_ITEMS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::manscdp::parse;
    use proptest::prelude::*;

    const QUIRKS: &[u8] = include_bytes!("../../../proto-fixtures/manscdp/synthetic-catalog-field-quirks-gbk.xml");

    fn id(text: &str) -> DeviceId {
        DeviceId::parse(text).unwrap()
    }

    fn profile(version: Version) -> Profile {
        Profile::new(version)
    }

    fn camera() -> CatalogItem {
        CatalogItem {
            manufacturer: Some("ACME".into()),
            model: Some("C1".into()),
            owner: Some("0".into()),
            civil_code: Some("340200".into()),
            address: Some("east gate".into()),
            parental: Some(false),
            parent_id: vec![id("34020000002000000001")],
            safety_way: Some(0),
            register_way: Some(1),
            secrecy: Some(false),
            status: Some(Status::On),
            longitude: Some(118.312),
            latitude: Some(31.354),
            info: ItemInfo { ptz_type: Some(3), ..ItemInfo::default() },
            ..CatalogItem::new(id("34020000001320000001"), "Gate-1")
        }
    }

    #[test]
    fn page_of_2016_is_the_sample() {
        let sample = include_bytes!("../../../proto-fixtures/manscdp/standard-2016-catalog-response.xml");
        let p = profile(Version::V2016);
        let page = catalog_page(p, 7, &id("34020000002000000001"), 120, &[item_xml(&camera(), p)]);
        assert_eq!(String::from_utf8_lossy(&page), String::from_utf8_lossy(sample));
        let back = CatalogResponse::read(&parse(sample, None).unwrap()).unwrap();
        assert_eq!((back.sum_num, back.items, back.dropped), (Some(120), vec![camera()], 0));
        assert!(back.policies.is_empty(), "{:?}", back.policies);
    }

    #[test]
    fn shapes_by_kind() {
        let names = |item: &CatalogItem, version| -> Vec<String> {
            let xml = item_xml(item, profile(version));
            let e = Element::parse(xml.as_bytes(), None).unwrap();
            e.children.into_iter().map(|c| c.name).collect()
        };
        let division = CatalogItem::new(id("340200"), "city");
        assert_eq!(names(&division, Version::V2022), ["DeviceID", "Name"]);
        let mut group = CatalogItem::new(id("34020000002150000001"), "group");
        group.parent_id = vec![id("34020000002000000001")];
        assert_eq!(names(&group, Version::V2016), ["DeviceID", "Name", "ParentID"]);
        assert_eq!(names(&group, Version::V2022), ["DeviceID", "Name", "CivilCode", "ParentID"]);
        let mut organisation = CatalogItem::new(id("34020000002160000001"), "vo");
        organisation.business_group_id = Some(group.device_id);
        assert_eq!(names(&organisation, Version::V2016), ["DeviceID", "Name", "BusinessGroupID"]);
        assert_eq!(names(&organisation, Version::V2022), ["DeviceID", "Name", "CivilCode", "BusinessGroupID"]);
        let system = CatalogItem::new(id("34020000002000000001"), "platform");
        let of_2016 =
            ["DeviceID", "Name", "Manufacturer", "Model", "Owner", "CivilCode", "Address", "RegisterWay", "Secrecy"];
        assert_eq!(names(&system, Version::V2016), of_2016);
        let of_2022 =
            ["DeviceID", "Name", "Manufacturer", "Model", "CivilCode", "Address", "RegisterWay", "Secrecy", "Status"];
        assert_eq!(names(&system, Version::V2022), of_2022);
        let device = CatalogItem::new(id("34020000001320000001"), "");
        let of_2022 = [
            "DeviceID",
            "Name",
            "Manufacturer",
            "Model",
            "CivilCode",
            "Address",
            "Parental",
            "RegisterWay",
            "Secrecy",
            "Status",
            "Info",
        ];
        assert_eq!(names(&device, Version::V2022), of_2022);
        assert!(!names(&device, Version::V2011).contains(&"Info".to_owned()));
        let e = Element::parse(item_xml(&device, profile(Version::V2022)).as_bytes(), None).unwrap();
        assert_eq!(e.child("Info").unwrap().text_of("GrassrootsCode"), Some("000000"));
        assert_eq!(e.child("Info").unwrap().text_of("PointType"), Some("9"));
        assert_eq!((e.text_of("CivilCode"), e.text_of("Status")), (Some("340200"), Some("OFF")));
    }

    #[test]
    fn newer_values_are_translated_down() {
        let mut item = camera();
        item.register_way = Some(4);
        item.info = ItemInfo { ptz_type: Some(5), supply_light_type: Some(9), ..ItemInfo::default() };
        let xml = item_xml(&item, profile(Version::V2016));
        assert!(xml.contains("<PTZType>1</PTZType>") && !xml.contains("SupplyLightType"));
        assert!(xml.contains("<RegisterWay>1</RegisterWay>"));
        item.info.ptz_type = Some(6);
        assert!(!item_xml(&item, profile(Version::V2016)).contains("PTZType"));
        assert!(item_xml(&item, profile(Version::V2022)).contains("<PTZType>6</PTZType>"));
    }

    #[test]
    fn empty_answer_has_no_list() {
        let page = catalog_page::<&str>(profile(Version::V2016), 1, &id("34020000002000000001"), 0, &[]);
        let text = String::from_utf8(page).unwrap();
        assert!(text.contains("<SumNum>0</SumNum>") && !text.contains("DeviceList"));
    }

    #[test]
    fn pages_keep_to_their_size() {
        for version in [Version::V2016, Version::V2022] {
            let p = profile(version);
            let me = id("34020000002000000001");
            let items: Vec<String> =
                (0..50).map(|n| item_xml(&CatalogItem { name: "东门枪机".repeat(n % 7), ..camera() }, p)).collect();
            let (mut at, mut pages) = (0, 0);
            while at < items.len() {
                let take = items_that_fit(p, &me, &items[at..], 1300);
                assert!(take >= 1);
                let page = catalog_page(p, u32::MAX, &me, items.len(), &items[at..at + take]);
                assert!(page.len() <= 1300, "{} bytes", page.len());
                if at + take < items.len() {
                    let more = catalog_page(p, u32::MAX, &me, items.len(), &items[at..at + take + 1]);
                    assert!(more.len() + 16 > 1300, "room was left: {}", more.len());
                }
                (at, pages) = (at + take, pages + 1);
            }
            assert!(pages >= 17);
            assert_eq!(items_that_fit(p, &me, &items, 10), 1);
            assert_eq!(items_that_fit::<&str>(p, &me, &[], 1300), 0);
        }
    }

    #[test]
    fn notices() {
        let me = id("34020000002000000001");
        let changes = [
            CatalogChange::state(CatalogEvent::Off, id("34020000001320000004")),
            CatalogChange::of(CatalogEvent::Add, camera()),
            CatalogChange::of(CatalogEvent::Vlost, camera()),
        ];
        for version in [Version::V2016, Version::V2022] {
            let bytes = catalog_notify(profile(version), 162, &me, &changes);
            let incoming = parse(&bytes, None).unwrap();
            assert_eq!((incoming.root, incoming.element.text_of("SumNum")), (Root::Notify, Some("3")));
            let back = read_catalog_notify(&incoming).unwrap();
            assert_eq!(back[0], changes[0]);
            assert_eq!((back[1].event, back[1].device_id), (CatalogEvent::Add, camera().device_id));
            assert_eq!(back[2], CatalogChange::state(CatalogEvent::Vlost, camera().device_id));
            // Event stands right after DeviceID
            assert!(String::from_utf8_lossy(&bytes).contains("0001</DeviceID>\r\n<Event>ADD</Event>"));
        }
        let incoming = parse(&catalog_notify(profile(Version::V2011), 1, &me, &changes), None).unwrap();
        assert_eq!(incoming.root, Root::Response);
        let back = read_catalog_notify(&incoming).unwrap();
        assert!(back.iter().all(|c| c.event == CatalogEvent::Update));
        let status: Vec<_> = back.iter().map(|c| c.item.as_ref().unwrap().status).collect();
        assert_eq!(status, [Some(Status::Off), Some(Status::On), Some(Status::Off)]);
        let first = String::from_utf8(catalog_notify(profile(Version::V2016), 1, &me, &[])).unwrap();
        assert!(first.contains("<SumNum>0</SumNum>\r\n<DeviceList Num=\"0\">"));
    }

    #[test]
    fn field_items_are_read() {
        let page = CatalogResponse::read(&parse(QUIRKS, None).unwrap()).unwrap();
        // SumNum says -1, Num says 2: neither is believed
        assert_eq!((page.sum_num, page.items.len(), page.dropped), (None, 4, 1));
        use CatalogPolicy::*;
        let noted: Vec<_> = page.policies.iter().collect();
        let expected = [
            (CharsetMislabelled, 1),
            (ControlCharacters, 1),
            (BareMarkup, 2),
            (BrokenNesting, 1),
            (UnreadableId, 1),
            (MissingName, 1),
            (StatusSpelling, 2),
            (OddParental, 1),
            (ParentIsSelf, 1),
            (UnreadableParent, 1),
            (NullWord, 1),
            (FieldOutsideInfo, 1),
            (EmptyCoordinate, 2),
            (UnreadableValue, 1),
        ];
        assert_eq!(noted, expected);
        let [a, b, c, d] = page.items.try_into().unwrap();
        assert_eq!(a.name, "东门&西门<1号>");
        assert_eq!((a.parental, a.status, a.longitude), (None, Some(Status::On), None));
        assert!(a.parent_id.is_empty(), "its own parent");
        assert_eq!((a.info.ptz_type, a.civil_code.as_deref()), (Some(1), None));
        assert_eq!(b.parent_id, [id("34020000002160000001"), id("34020000001180000001")]);
        assert_eq!((b.status, b.secrecy, b.port), (Some(Status::Off), Some(false), None));
        assert_eq!(b.business_group_id, Some(id("34020000002150000001")));
        // a Name whose end is misspelt is lost, the item is not
        assert_eq!((c.name.as_str(), c.model.as_deref(), c.status), ("", Some("C2"), Some(Status::On)));
        assert_eq!(d.device_id, a.device_id, "duplicates are the collector's business");
    }

    #[test]
    fn odd_items_are_kept_and_named() {
        use CatalogPolicy::*;
        let noted = |inner: &str| {
            let xml = format!("<Item>{inner}</Item>");
            let mut policies = Policies::default();
            let item = CatalogItem::read_noting(&Element::parse(xml.as_bytes(), None).unwrap(), &mut policies);
            (item, policies.iter().map(|(policy, _)| policy).collect::<Vec<_>>())
        };
        let head = "<DeviceID>34020000001320000001</DeviceID><Name>n</Name>";
        let cases: [(String, &[CatalogPolicy]); 14] = [
            (head.into(), &[]),
            ("<DeviceID>340200000032000001</DeviceID><Name>rule B</Name>".into(), &[OddIdLength]),
            ("<DeviceID>3402000000132000000101</DeviceID><Name>n</Name>".into(), &[OddIdLength]),
            ("<DeviceID>340200</DeviceID><Name></Name>".into(), &[MissingName]),
            (format!("{head}<Status>On</Status>"), &[StatusSpelling]),
            (format!("{head}<Status>sleeping</Status>"), &[StatusSpelling]),
            (format!("{head}<ParentID>3402000000200000001</ParentID>"), &[OddParentLength]),
            (format!("{head}<ParentID>34020000002000000001/34020000002160000001/</ParentID>"), &[]),
            (format!("{head}<Longitude/><Latitude>0.000</Latitude>"), &[EmptyCoordinate]),
            (format!("{head}<Longitude>181</Longitude>"), &[UnreadableValue]),
            (format!("{head}<EndTime>soon</EndTime>"), &[UnreadableValue]),
            (format!("{head}<Info><PTZType> 3 </PTZType></Info>"), &[]),
            (format!("{head}<Info><PTZType>dome</PTZType></Info>"), &[UnreadableValue]),
            (format!("{head}<Secrecy> 0 </Secrecy><Parental>1</Parental>"), &[]),
        ];
        for (inner, policies) in cases {
            let (item, noted) = noted(&inner);
            assert_eq!(noted, policies, "{inner}");
            assert!(item.is_some(), "{inner}");
        }
        assert_eq!(noted("<Name>n</Name>"), (None, vec![UnreadableId]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn items_round_trip_in_2022(name in "[ -~一-龥]{0,30}", serial in 0u32..1_000_000, lon in -180.0f64..180.0,
                                    ptz in proptest::option::of(1u8..8), on in any::<bool>(), port in any::<u16>()) {
            let item = CatalogItem {
                manufacturer: Some("M".into()),
                model: Some("&<>".into()),
                civil_code: Some("340200".into()),
                address: Some("a".into()),
                parental: Some(on),
                parent_id: vec![id("34020000002000000001"), id("34020000002160000009")],
                register_way: Some(1),
                security_level_code: Some("A".into()),
                secrecy: Some(false),
                ip_address: Some("2001:db8::1".into()),
                port: Some(port),
                status: Some(if on { Status::On } else { Status::Off }),
                longitude: Some((lon * 1e6).round() / 1e6).filter(|v| *v != 0.0),
                business_group_id: Some(id("34020000002150000001")),
                info: ItemInfo {
                    ptz_type: ptz,
                    grassroots_code: Some("000000".into()),
                    point_type: Some(1),
                    horizontal_field_angle: Some(90.5),
                    install_time: Some(UnixMillis::from_secs(i64::from(serial))),
                    record_save_days: Some(90),
                    mac: Some("00-11-22-33-44-55".into()),
                    ..ItemInfo::default()
                },
                ..CatalogItem::new(DeviceId::mint("3402000000", 132, 0, serial).unwrap(), name.trim())
            };
            let p = profile(Version::V2022);
            let page = catalog_page(p, 1, &item.device_id, 1, &[item_xml(&item, p)]);
            let back = CatalogResponse::read(&parse(&page, Some(p.charset())).unwrap()).unwrap();
            prop_assert_eq!(back.items, vec![item]);
        }

        #[test]
        fn mutated_answers_never_panic(edits in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
            let mut body = QUIRKS.to_vec();
            for (at, byte) in edits {
                let at = at % body.len();
                body[at] = byte;
            }
            if let Ok(incoming) = parse(&body, None) {
                let _ = CatalogResponse::read(&incoming);
                let _ = read_catalog_notify(&incoming);
            }
        }
    }
}
