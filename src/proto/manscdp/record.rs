//! Recordings: the answer to a RecordInfo query, written and read.
//! Standard: [GB/T28181-2022 A.2.6.7, annex M], [GB/T28181-2016 A.2.6.7].
//! In: `RecordItem`s, or a parsed body. Out: bodies in the peer's version, or `RecordItem`s.
//! Invariants: elements in the schema's order; what a version lacks is not written; an empty result has no list.
//! Deviations read: no DeviceID in an item (it counts as the asked device's), types and times in odd forms, blanks.
//! Not here: queries (`request`), putting pages together (`assembly`), files.

use super::assembly::{Chunk, Keyed};
use super::catalog::{MAX_TEXT, list_num};
use super::pages::{ListFrame, MAX_ITEMS};
use super::policy::{CatalogPolicy, Policies};
use super::request::{Incoming, Root};
use super::xml::{Element, XmlWriter};
use crate::proto::gb28181::{DeviceId, Profile, UnixMillis, Version};

/// Most recordings of one result: two months of a camera that begins a file every five minutes.
pub const MAX_RECORDS: usize = 20_000;

/// Why something was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    /// By the plan.
    Time,
    /// By an alarm.
    Alarm,
    /// By hand.
    Manual,
}

impl RecordKind {
    const ALL: [RecordKind; 3] = [RecordKind::Time, RecordKind::Alarm, RecordKind::Manual];

    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            RecordKind::Time => "time",
            RecordKind::Alarm => "alarm",
            RecordKind::Manual => "manual",
        }
    }

    /// Reads it in any case.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| text.eq_ignore_ascii_case(k.as_str()))
    }
}

/// One recording.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordItem {
    /// Whose.
    pub device_id: DeviceId,
    /// Name of the device.
    pub name: String,
    /// Where it lies, in the words of who stores it.
    pub file_path: Option<String>,
    /// Place of the device.
    pub address: Option<String>,
    /// From.
    pub start: Option<UnixMillis>,
    /// To.
    pub end: Option<UnixMillis>,
    /// Secret.
    pub secrecy: Option<bool>,
    /// `Type`.
    pub kind: Option<RecordKind>,
    /// Who started it.
    pub recorder_id: Option<String>,
    /// Octets, since 2016.
    pub file_size: Option<u64>,
    /// The system or device that stores it, 2022.
    pub record_location: Option<DeviceId>,
    /// 0 main, 1 first sub-stream, 2022.
    pub stream_number: Option<u8>,
}

impl RecordItem {
    /// A recording with nothing but its device and times.
    pub fn new(device_id: DeviceId, name: impl Into<String>, start: UnixMillis, end: UnixMillis) -> Self {
        Self {
            device_id,
            name: name.into(),
            file_path: None,
            address: None,
            start: Some(start),
            end: Some(end),
            secrecy: None,
            kind: None,
            recorder_id: None,
            file_size: None,
            record_location: None,
            stream_number: None,
        }
    }

    /// Reads an `Item`; `owner` stands for a DeviceID that is missing or no code. What was tolerated is noted.
    pub fn read(item: &Element, owner: &DeviceId, policies: &mut Policies) -> Self {
        let device_id = item.text_of("DeviceID").and_then(|t| DeviceId::parse(t).ok());
        policies.note_if(device_id.is_none(), CatalogPolicy::UnreadableId);
        policies.note_if(item.text_of("Name").is_none(), CatalogPolicy::MissingName);
        let mut get = |name: &str| {
            let text = item.text_of(name)?;
            let null = text.eq_ignore_ascii_case("null");
            policies.note_if(null, CatalogPolicy::NullWord);
            (!null).then(|| text.chars().take(MAX_TEXT).collect::<String>())
        };
        let name = get("Name").unwrap_or_default();
        let [file_path, address, recorder_id] = ["FilePath", "Address", "RecorderID"].map(&mut get);
        let [start, end, secrecy, kind, file_size, location, stream] =
            ["StartTime", "EndTime", "Secrecy", "Type", "FileSize", "RecordLocation", "StreamNumber"].map(&mut get);
        let mut unreadable = 0;
        fn value<T>(text: Option<String>, unreadable: &mut usize, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
            let text = text?;
            let value = parse(&text);
            *unreadable += usize::from(value.is_none());
            value
        }
        let time = |t: &str| UnixMillis::parse_local(t).ok();
        let read = Self {
            device_id: device_id.unwrap_or(*owner),
            name,
            file_path,
            address,
            start: value(start, &mut unreadable, time),
            end: value(end, &mut unreadable, time),
            secrecy: value(secrecy, &mut unreadable, |t| match t {
                "0" => Some(false),
                "1" => Some(true),
                _ => None,
            }),
            kind: value(kind, &mut unreadable, RecordKind::parse),
            recorder_id,
            file_size: value(file_size, &mut unreadable, |t| t.parse().ok()),
            record_location: value(location, &mut unreadable, |t| DeviceId::parse(t).ok()),
            stream_number: value(stream, &mut unreadable, |t| t.parse().ok()),
        };
        policies.note_many(CatalogPolicy::UnreadableValue, unreadable);
        read
    }
}

/// Recordings are told apart by what is played of them, not by their names.
impl Keyed for RecordItem {
    type Key = (DeviceId, Option<UnixMillis>, Option<UnixMillis>, Option<u8>, Option<String>);

    fn key(&self) -> Self::Key {
        (self.device_id, self.start, self.end, self.stream_number, self.file_path.clone())
    }
}

/// A recording as `<Item>...</Item>`, to be put into `record_page`.
pub fn record_xml(item: &RecordItem, profile: Profile) -> String {
    let version = profile.version();
    let mut w = XmlWriter::new();
    w.open("Item")
        .text("DeviceID", item.device_id)
        .text("Name", &item.name)
        .opt("FilePath", item.file_path.as_ref())
        .opt("Address", item.address.as_ref())
        .opt("StartTime", item.start)
        .opt("EndTime", item.end)
        .text("Secrecy", u8::from(item.secrecy.unwrap_or(false)))
        .opt("Type", item.kind.map(RecordKind::as_str))
        .opt("RecorderID", item.recorder_id.as_ref());
    if version >= Version::V2016 {
        w.opt("FileSize", item.file_size);
    }
    if version >= Version::V2022 {
        w.opt("RecordLocation", item.record_location).opt("StreamNumber", item.stream_number);
    }
    w.close("Item");
    w.into_string()
}

fn frame(name: &str) -> ListFrame<'_> {
    ListFrame { cmd_type: "RecordInfo", list: "RecordList", name: Some(name) }
}

/// One message of an answer: `name` is the device's, `items` are texts of `record_xml`, `sum_num` counts the whole answer.
/// Without items there is no list.
pub fn record_page<S: AsRef<str>>(
    profile: Profile,
    sn: u32,
    device_id: &DeviceId,
    name: &str,
    sum_num: usize,
    items: &[S],
) -> Vec<u8> {
    frame(name).page(profile, sn, device_id, sum_num, items)
}

/// How many of `items` fit into one `record_page` of at most `max_bytes` after encoding: at least 1 if there are any,
/// at most `MAX_ITEMS`.
pub fn records_that_fit<S: AsRef<str>>(
    profile: Profile,
    device_id: &DeviceId,
    name: &str,
    items: &[S],
    max_bytes: usize,
) -> usize {
    frame(name).fit(profile, device_id, items, max_bytes)
}

/// One message of an answer as received.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordResponse {
    /// Name of the device.
    pub name: String,
    /// Recordings of the whole answer, as the sender says; `None` if missing or negative. May be wrong or absurd.
    pub sum_num: Option<u32>,
    /// Recordings of this message, as the sender says; as little to be believed.
    pub num: Option<u32>,
    /// Recordings of this message.
    pub items: Vec<RecordItem>,
    /// Items above `MAX_ITEMS`.
    pub dropped: usize,
    /// What was tolerated in the body and its items.
    pub policies: Policies,
}

impl RecordResponse {
    /// Reads a Response/RecordInfo; `None` if it is none.
    pub fn read(incoming: &Incoming) -> Option<Self> {
        if !incoming.is(Root::Response, "RecordInfo") {
            return None;
        }
        let e = &incoming.element;
        let mut out = Self {
            name: e.text_of("Name").unwrap_or("").chars().take(MAX_TEXT).collect(),
            sum_num: e.number_of("SumNum"),
            num: list_num(e, "RecordList"),
            policies: incoming.policies,
            ..Self::default()
        };
        for item in e.children_named("RecordList").flat_map(|list| list.children_named("Item")) {
            if out.items.len() < MAX_ITEMS {
                out.items.push(RecordItem::read(item, &incoming.device_id, &mut out.policies));
            } else {
                out.dropped += 1;
            }
        }
        out.policies.note_many(CatalogPolicy::OverLimit, out.dropped);
        Some(out)
    }

    /// For `assembly`. `bytes` is the length of the body.
    pub fn into_chunk(self, bytes: usize) -> Chunk<RecordItem> {
        let Self { sum_num, num, items, dropped, policies, .. } = self;
        Chunk { sum_num, num, items, dropped, bytes, policies }
    }
}

/// Recordings in order of their start (those without last), exact duplicates once, at most `MAX_RECORDS`: the earliest.
/// For results of several answers, such as those of a centre and its devices, or of one time window after another.
pub fn merge(items: impl IntoIterator<Item = RecordItem>) -> Vec<RecordItem> {
    let mut items: Vec<RecordItem> = items.into_iter().collect();
    let order = |a: &RecordItem, b: &RecordItem| {
        let time = |r: &RecordItem| (r.start.is_none(), r.start, r.end.is_none(), r.end);
        time(a).cmp(&time(b)).then_with(|| a.cmp(b))
    };
    items.sort_by(order);
    items.dedup();
    items.truncate(MAX_RECORDS);
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::manscdp::parse;
    use proptest::prelude::*;

    const SAMPLE: &[u8] = include_bytes!("../../../proto-fixtures/manscdp/standard-2016-record-response.xml");

    fn id(text: &str) -> DeviceId {
        DeviceId::parse(text).unwrap()
    }

    fn at(text: &str) -> UnixMillis {
        UnixMillis::parse_local(text).unwrap()
    }

    fn sample() -> Vec<RecordItem> {
        let camera = id("34020000001320000001");
        let first = RecordItem {
            file_path: Some("1763856000".into()),
            address: Some("east gate".into()),
            secrecy: Some(false),
            kind: Some(RecordKind::Time),
            recorder_id: Some("34020000001180000001".into()),
            file_size: Some(734_003_200),
            ..RecordItem::new(camera, "Gate-1", at("2026-11-23T08:00:00"), at("2026-11-23T09:00:00"))
        };
        let second = RecordItem {
            secrecy: Some(false),
            kind: Some(RecordKind::Alarm),
            ..RecordItem::new(camera, "Gate-1", at("2026-11-23T09:00:00"), at("2026-11-23T09:05:30"))
        };
        vec![first, second]
    }

    #[test]
    fn page_of_2016_is_the_sample() {
        let p = Profile::new(Version::V2016);
        let items: Vec<String> = sample().iter().map(|r| record_xml(r, p)).collect();
        let page = record_page(p, 301, &id("34020000001320000001"), "Gate-1", 2, &items);
        assert_eq!(String::from_utf8_lossy(&page), String::from_utf8_lossy(SAMPLE));
        let back = RecordResponse::read(&parse(SAMPLE, None).unwrap()).unwrap();
        assert!(back.policies.is_empty(), "{:?}", back.policies);
        assert_eq!((back.sum_num, back.num, back.dropped, back.name.as_str()), (Some(2), Some(2), 0, "Gate-1"));
        assert_eq!(back.items, sample());
        let chunk = back.into_chunk(SAMPLE.len());
        assert_eq!((chunk.items.len(), chunk.bytes), (2, SAMPLE.len()));
    }

    #[test]
    fn versions_and_empty_results() {
        let record = RecordItem {
            file_size: Some(1),
            record_location: Some(id("34020000001180000001")),
            stream_number: Some(1),
            ..sample().remove(0)
        };
        let xml = |version| record_xml(&record, Profile::new(version));
        assert!(!xml(Version::V2011).contains("FileSize"));
        assert!(xml(Version::V2016).contains("FileSize") && !xml(Version::V2016).contains("RecordLocation"));
        let new = xml(Version::V2022);
        assert!(new.ends_with(
            "<FileSize>1</FileSize>\r\n<RecordLocation>34020000001180000001</RecordLocation>\r\n\
             <StreamNumber>1</StreamNumber>\r\n</Item>\r\n"
        ));
        let empty = record_page::<&str>(Profile::default(), 1, &record.device_id, "a", 0, &[]);
        let text = String::from_utf8(empty.clone()).unwrap();
        assert!(text.contains("<Name>a</Name>\r\n<SumNum>0</SumNum>\r\n</Response>"));
        let back = RecordResponse::read(&parse(&empty, None).unwrap()).unwrap();
        assert_eq!((back.sum_num, back.num, back.items.len()), (Some(0), None, 0));
        let catalog = text.replace("RecordInfo", "Catalog");
        assert_eq!(RecordResponse::read(&parse(catalog.as_bytes(), None).unwrap()), None);
    }

    #[test]
    fn pages_keep_to_their_size() {
        let p = Profile::new(Version::V2022);
        let me = id("34020000001320000001");
        let items: Vec<String> = sample().iter().cycle().take(40).map(|r| record_xml(r, p)).collect();
        let take = records_that_fit(p, &me, "东门", &items, 1300);
        assert!(take >= 2);
        assert!(record_page(p, u32::MAX, &me, "东门", 40, &items[..take]).len() <= 1300);
        assert!(record_page(p, u32::MAX, &me, "东门", 40, &items[..take + 1]).len() + 16 > 1300);
    }

    #[test]
    fn field_items_are_read() {
        use CatalogPolicy::*;
        let text = "<Response><CmdType>RecordInfo</CmdType><SN>1</SN><DeviceID>34020000001320000001</DeviceID>\
            <SumNum> 3 </SumNum><RecordList Num=\" 2 \">\
            <Item><StartTime>2026-11-23 8:0:0</StartTime><EndTime>2026-11-23T09:00:00.250+08:00</EndTime>\
            <Secrecy> 0 </Secrecy><Type>TIME</Type><FileSize>-1</FileSize><Address>null</Address></Item>\
            <Item><DeviceID>cam</DeviceID><Name>n</Name><StartTime>2026-11-23T24:00:00</StartTime><EndTime/>\
            <Type>all</Type><Secrecy>no</Secrecy></Item></RecordList><RecordList><Item>\
            <DeviceID>34020000001320000009</DeviceID><Name>n</Name></Item></RecordList></Response>";
        let back = RecordResponse::read(&parse(text.as_bytes(), None).unwrap()).unwrap();
        let noted: Vec<_> = back.policies.iter().collect();
        assert_eq!(noted, [(UnreadableId, 2), (MissingName, 1), (NullWord, 1), (UnreadableValue, 4)]);
        assert_eq!((back.sum_num, back.num, back.items.len()), (Some(3), Some(2), 3));
        let first = &back.items[0];
        assert_eq!(first.device_id, id("34020000001320000001"));
        assert_eq!(
            (first.start, first.end.map(UnixMillis::secs)),
            (Some(at("2026-11-23T08:00:00")), Some(1_795_395_600))
        );
        assert_eq!((first.kind, first.secrecy, first.file_size), (Some(RecordKind::Time), Some(false), None));
        assert_eq!((back.items[1].start, back.items[1].kind, back.items[1].secrecy), (None, None, None));
        assert_eq!(back.items[2].device_id, id("34020000001320000009"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn merging_sorts_and_keeps_each_once(times in proptest::collection::vec((0i64..9, proptest::option::of(0i64..9)), 0..40)) {
            let camera = id("34020000001320000001");
            let items: Vec<_> = times.iter().map(|(start, end)| RecordItem {
                start: (*start > 0).then(|| UnixMillis::from_secs(*start)),
                end: end.map(UnixMillis::from_secs),
                ..RecordItem::new(camera, "", UnixMillis(0), UnixMillis(0))
            }).collect();
            let merged = merge(items.iter().cloned());
            prop_assert!(merged.is_sorted_by_key(|r| (r.start.is_none(), r.start)));
            let unique: std::collections::BTreeSet<_> = items.iter().cloned().collect();
            prop_assert_eq!(merged.len(), unique.len());
            prop_assert!(merged.iter().all(|r| unique.contains(r)));
            prop_assert_eq!(merge(items.into_iter().rev().chain(merged.clone())), merged);
        }

        #[test]
        fn records_round_trip(name in "[ -~一-龥]{0,20}", size in proptest::option::of(any::<u64>()), stream in proptest::option::of(any::<u8>()),
                              start in 0i64..4_000_000_000, kind in 0usize..3) {
            let p = Profile::new(Version::V2022);
            let record = RecordItem {
                secrecy: Some(true),
                kind: Some(RecordKind::ALL[kind]),
                file_size: size,
                stream_number: stream,
                record_location: Some(id("34020000002000000001")),
                file_path: Some("a/<b>&".into()),
                ..RecordItem::new(id("34020000001320000001"), name.trim(), UnixMillis::from_secs(start), UnixMillis::from_secs(start + 9))
            };
            prop_assume!(!record.name.eq_ignore_ascii_case("null"));
            let page = record_page(p, 1, &record.device_id, name.trim(), 1, &[record_xml(&record, p)]);
            let back = RecordResponse::read(&parse(&page, Some(p.charset())).unwrap()).unwrap();
            prop_assert_eq!(back.items, vec![record]);
        }
    }
}
