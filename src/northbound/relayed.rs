//! A device's answer in the words of the uplink that asked.
//! Standard: [GB/T28181-2022 9.3, 9.5, 9.7, A.2.6], [GB/T28181-2016 A.2.6].
//! In: what was asked, and the answer of the channel's owner. Out: bodies, list answers. Pure.
//! Invariants: CmdType, SN and DeviceID are the query's; the device's own code of the channel stands nowhere in it; a
//! failure has the shape of the answer due. Recordings come in pages; every other list is short and goes in one
//! message, because few platforms put its parts together.

use super::paged_reply::ListAnswer;
use crate::proto::gb28181::{DeviceId, Profile};
use crate::proto::manscdp::record::record_xml;
use crate::proto::manscdp::response::query_error;
use crate::proto::manscdp::{Element, Incoming, Policies, QueryKind, RecordItem, Respell, XmlWriter};

/// A query of the uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its own spelling.
    pub cmd_type: String,
    /// To be repeated.
    pub sn: u32,
    /// As it named the channel.
    pub device_id: DeviceId,
    /// Our name of the channel, where an answer needs one.
    pub name: String,
}

impl Asked {
    /// What an answer needs to know of a query.
    pub fn of(incoming: &Incoming, name: &str) -> Asked {
        Asked {
            cmd_type: incoming.cmd_type.clone(),
            sn: incoming.sn,
            device_id: incoming.device_id,
            name: name.to_owned(),
        }
    }

    fn kind(&self) -> Option<QueryKind> {
        QueryKind::parse(&self.cmd_type)
    }

    /// True where the answer is a list.
    pub fn is_list(&self) -> bool {
        self.kind().is_some_and(QueryKind::is_list_query)
    }

    /// The answer where there is none.
    pub fn failed(&self, profile: Profile) -> Vec<u8> {
        query_error(profile, &self.cmd_type, self.sn, &self.device_id)
    }

    /// The device's own answer in one message; the answer of a failure where it cannot be written.
    pub fn message(&self, profile: Profile, answer: &Incoming) -> Vec<u8> {
        let map_id = |id: &DeviceId| if *id == answer.device_id { self.device_id } else { *id };
        let respell = Respell {
            sn: self.sn,
            device_id: self.device_id,
            profile,
            cmd_type: Some(&self.cmd_type),
            map_id: &map_id,
        };
        respell.write(answer).unwrap_or_else(|e| {
            tracing::warn!(cmd = %self.cmd_type, error = %e, "a device's answer cannot be passed on");
            self.failed(profile)
        })
    }

    /// A list but that of recordings, put together again from its head and all its items.
    pub fn whole(&self, profile: Profile, head: &Incoming, items: &[Element]) -> Vec<u8> {
        let Some(name) = self.kind().and_then(QueryKind::answer_list) else { return self.failed(profile) };
        let mut answer = head.clone();
        let root = &mut answer.element;
        root.children.retain(|c| !c.is("SumNum") && !c.is(name));
        let text =
            |name: &str, text: usize| Element { name: name.into(), text: text.to_string(), ..Element::default() };
        if self.kind() != Some(QueryKind::PresetQuery) || profile.preset_sum_num() {
            root.children.push(text("SumNum", items.len()));
        }
        if self.kind() == Some(QueryKind::PresetQuery) || !items.is_empty() {
            let attrs = vec![("Num".to_owned(), items.len().to_string())];
            let children = items.to_vec();
            root.children.push(Element { name: name.into(), attrs, children, ..Element::default() });
        }
        self.message(profile, &answer)
    }

    /// The device's recordings. None where something else was asked for.
    pub fn recordings(&self, profile: Profile, head: &Incoming, items: &[Element]) -> Option<ListAnswer> {
        if self.kind() != Some(QueryKind::RecordInfo) {
            return None;
        }
        let mut before = XmlWriter::new();
        before.text("Name", head.element.text_of("Name").unwrap_or(&self.name));
        let mut policies = Policies::default();
        let items = items.iter().map(|item| {
            let mut item = RecordItem::read(item, &self.device_id, &mut policies);
            item.device_id = self.device_id;
            if item.recorder_id.as_deref() == Some(head.device_id.as_str()) {
                item.recorder_id = Some(self.device_id.to_string());
            }
            item.record_location =
                item.record_location.map(|id| if id == head.device_id { self.device_id } else { id });
            record_xml(&item, profile)
        });
        let items = items.collect();
        Some(ListAnswer {
            cmd_type: self.cmd_type.clone(),
            sn: self.sn,
            device_id: self.device_id,
            before: before.into_string(),
            list: "RecordList",
            items,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gb28181::Version;
    use crate::proto::manscdp::parse;

    const OURS: &str = "41130000581320000001";
    const THEIRS: &str = "34020000001320000009";

    fn asked(cmd: &str) -> Asked {
        let device_id = DeviceId::parse(OURS).unwrap();
        Asked { cmd_type: cmd.into(), sn: 77, device_id, name: "东门".into() }
    }

    fn response(cmd: &str, inner: &str) -> Incoming {
        let text =
            format!("<Response><CmdType>{cmd}</CmdType><SN>3</SN><DeviceID>{THEIRS}</DeviceID>{inner}</Response>");
        parse(text.as_bytes(), None).unwrap()
    }

    #[test]
    fn an_answer_keeps_what_it_says_under_our_names() {
        let answer = response(
            "DeviceStatus",
            "<Result>OK</Result><Online>ONLINE</Online><Reason>a&amp;b &lt;c&gt;</Reason>\
             <Alarmstatus Num=\"1\"><Item><DeviceID>34020000001320000009</DeviceID><DutyStatus>ALARM</DutyStatus></Item>\
             </Alarmstatus><Info>more</Info>",
        );
        for (version, extension) in [(Version::V2016, "Info"), (Version::V2022, "ExtraInfo")] {
            let body = asked("devicestatus").message(Profile::new(version), &answer);
            let e = parse(&body, None).unwrap();
            assert_eq!((e.sn, e.device_id.as_str(), e.cmd_type.as_str()), (77, OURS, "devicestatus"));
            assert_eq!(e.element.text_of("Reason"), Some("a&b <c>"));
            let list = e.element.child("Alarmstatus").unwrap();
            assert_eq!((list.attr("Num"), list.children[0].text_of("DeviceID")), (Some("1"), Some(OURS)));
            assert_eq!(e.element.text_of(extension), Some("more"));
            assert!(!String::from_utf8_lossy(&body).contains(THEIRS));
        }
    }

    #[test]
    fn what_cannot_be_written_is_a_failure() {
        let mut answer = response("DeviceInfo", "<Result>OK</Result>");
        answer.element.children.push(Element { name: "a><b".into(), text: "x".into(), ..Element::default() });
        let asked = asked("DeviceInfo");
        assert_eq!(asked.message(Profile::default(), &answer), asked.failed(Profile::default()));
    }

    #[test]
    fn recordings_are_the_channels_own() {
        let item = Element::parse(
            b"<Item><DeviceID>34020000001320000009</DeviceID><Name>r</Name><StartTime>2026-11-23 8:00:00</StartTime>\
              <RecorderID>34020000001320000009</RecorderID></Item>",
            None,
        )
        .unwrap();
        let head = response("RecordInfo", "");
        let list = asked("RecordInfo").recordings(Profile::default(), &head, &[item]).unwrap();
        assert_eq!((list.before.as_str(), list.list, list.sn), ("<Name>东门</Name>\r\n", "RecordList", 77));
        let xml = &list.items[0];
        assert!(xml.contains(OURS) && !xml.contains(THEIRS) && xml.contains("2026-11-23T08:00:00"), "{xml}");
        assert_eq!(asked("PresetQuery").recordings(Profile::default(), &head, &[]), None);
    }

    #[test]
    fn other_lists_are_whole_and_have_the_shape_of_their_edition() {
        let preset = Element::parse(b"<Item><PresetID>1</PresetID><PresetName>n</PresetName></Item>", None).unwrap();
        let head = response("PresetQuery", "<SumNum>9</SumNum><PresetList Num=\"1\"><Item/></PresetList>");
        for (version, sum_num) in [(Version::V2016, None), (Version::V2022, Some("2"))] {
            let items = [preset.clone(), preset.clone()];
            let body = asked("PersetQuery").whole(Profile::new(version), &head, &items);
            let e = parse(&body, None).unwrap();
            let list = e.element.child("PresetList").unwrap();
            assert_eq!((list.children.len(), list.attr("Num"), e.element.text_of("SumNum")), (2, Some("2"), sum_num));
            let none = asked("PresetQuery").whole(Profile::new(version), &head, &[]);
            assert_eq!(parse(&none, None).unwrap().element.child("PresetList").unwrap().attr("Num"), Some("0"));
        }
        let head = response("CruiseTrackQuery", "<Number>2</Number><Name>n</Name><SumNum>3</SumNum>");
        let track = parse(&asked("CruiseTrackQuery").whole(Profile::default(), &head, &[]), None).unwrap();
        assert_eq!((track.element.text_of("Number"), track.element.text_of("SumNum")), (Some("2"), Some("0")));
    }
}
