//! A device's answer in the words of the uplink that asked.
//! Standard: [GB/T28181-2022 9.3, 9.5, A.2.6], [GB/T28181-2016 A.2.6].
//! In: what was asked, and the answer of the channel's owner. Out: bodies, list answers. Pure.
//! Invariants: CmdType, SN and DeviceID are the query's; the device's own code stands nowhere in it; what the device
//! wrote is escaped anew, and an element whose name is none is left out; a failure has the shape of the answer due.

use super::paged_reply::ListAnswer;
use crate::proto::gb28181::{DeviceId, Profile, Version};
use crate::proto::manscdp::response::query_error;
use crate::proto::manscdp::xml::escape_into;
use crate::proto::manscdp::{Element, Incoming, QueryKind, XmlWriter};

/// What every body begins with.
const HEAD: [&str; 3] = ["CmdType", "SN", "DeviceID"];

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

    /// The device's own answer in one message.
    pub fn message(&self, profile: Profile, answer: &Incoming) -> Vec<u8> {
        let rewrite = Rewrite { profile, theirs: &answer.device_id, ours: &self.device_id };
        let mut w = XmlWriter::new();
        w.open("Response").text("CmdType", &self.cmd_type).text("SN", self.sn).text("DeviceID", self.device_id);
        for child in answer.element.children.iter().filter(|c| !HEAD.iter().any(|h| c.is(h))) {
            rewrite.element(child, &mut w);
        }
        w.close("Response");
        w.into_body(profile.charset())
    }

    /// The device's list. None where the query's answer is no list.
    pub fn list(&self, profile: Profile, head: &Incoming, items: &[Element]) -> Option<ListAnswer> {
        let kind = self.kind()?;
        let list = kind.answer_list()?;
        let rewrite = Rewrite { profile, theirs: &head.device_id, ours: &self.device_id };
        let mut before = XmlWriter::new();
        let names: &[&str] = match kind {
            QueryKind::RecordInfo => &["Name"],
            QueryKind::CruiseTrackQuery => &["Number", "Name"],
            _ => &[],
        };
        for name in names {
            match head.element.child(name) {
                Some(child) => rewrite.element(child, &mut before),
                None if kind == QueryKind::RecordInfo => {
                    before.text(name, &self.name);
                }
                None => {}
            }
        }
        let items = items.iter().map(|item| {
            let mut w = XmlWriter::new();
            rewrite.element(item, &mut w);
            w.into_string()
        });
        let presets = kind == QueryKind::PresetQuery;
        Some(ListAnswer {
            cmd_type: self.cmd_type.clone(),
            sn: self.sn,
            device_id: self.device_id,
            before: before.into_string(),
            list,
            counted: !presets || profile.preset_sum_num(),
            always: presets,
            items: items.filter(|item| !item.is_empty()).collect(),
        })
    }
}

/// Writes elements of a device for an uplink.
struct Rewrite<'a> {
    profile: Profile,
    /// The device's code of the channel.
    theirs: &'a DeviceId,
    /// The uplink's.
    ours: &'a DeviceId,
}

impl Rewrite<'_> {
    fn element(&self, e: &Element, w: &mut XmlWriter) {
        if !is_name(&e.name) {
            return;
        }
        // Free text changed its name with the edition [GB/T28181-2022 A.2.1].
        let name = match e.children.is_empty() && (e.is("Info") || e.is("ExtraInfo")) {
            true if self.profile.version() >= Version::V2022 => "ExtraInfo",
            true => "Info",
            false => e.name.as_str(),
        };
        let mut tag = format!("<{name}");
        for (attribute, value) in e.attrs.iter().filter(|(attribute, _)| is_name(attribute)) {
            tag.push_str(&format!(" {attribute}=\""));
            escape_into(value, &mut tag);
            tag.push('"');
        }
        w.raw(&tag).raw(">");
        if e.children.is_empty() {
            let text = if e.text == self.theirs.as_str() { self.ours.as_str() } else { &e.text };
            let mut escaped = String::new();
            escape_into(text, &mut escaped);
            w.raw(&escaped);
        } else {
            w.raw("\r\n");
            e.children.iter().for_each(|child| self.element(child, w));
        }
        w.close(name);
    }
}

/// A name as the standard makes them; a device's may be anything its bytes gave.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::manscdp::parse;

    const OURS: &str = "41130000581320000001";

    fn asked(cmd: &str) -> Asked {
        let device_id = DeviceId::parse(OURS).unwrap();
        Asked { cmd_type: cmd.into(), sn: 77, device_id, name: "东门".into() }
    }

    fn response(cmd: &str, inner: &str) -> Incoming {
        let text = format!(
            "<Response><CmdType>{cmd}</CmdType><SN>3</SN><DeviceID>34020000001320000009</DeviceID>{inner}</Response>"
        );
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
            assert!(!String::from_utf8_lossy(&body).contains("34020000001320000009"));
        }
    }

    #[test]
    fn names_that_are_none_are_left_out() {
        let mut answer = response("DeviceInfo", "<Result>OK</Result>");
        let hostile = Element { name: "a><b".into(), text: "x".into(), ..Element::default() };
        answer.element.children.push(hostile.clone());
        let odd = Element { name: "Model".into(), attrs: vec![("n\" x".into(), "\"><".into())], ..hostile };
        answer.element.children.push(odd);
        let body = String::from_utf8(asked("DeviceInfo").message(Profile::default(), &answer)).unwrap();
        assert!(body.contains("<Model>x</Model>") && !body.contains("a><b"), "{body}");
        assert!(parse(body.as_bytes(), None).is_ok());
    }

    #[test]
    fn lists_have_the_shape_of_their_edition() {
        let item = Element::parse(
            b"<Item><DeviceID>34020000001320000009</DeviceID><Name>r</Name><StartTime>2026-11-23T08:00:00</StartTime></Item>",
            None,
        )
        .unwrap();
        let list = asked("RecordInfo").list(Profile::default(), &response("RecordInfo", ""), &[item]).unwrap();
        assert_eq!((list.before.as_str(), list.list, list.sn), ("<Name>东门</Name>\r\n", "RecordList", 77));
        assert!(list.items[0].contains(OURS) && list.counted && !list.always);
        for (version, counted) in [(Version::V2016, false), (Version::V2022, true)] {
            let presets = asked("PresetQuery").list(Profile::new(version), &response("PresetQuery", ""), &[]).unwrap();
            assert!(presets.always && presets.counted == counted);
        }
        let head = response("CruiseTrackQuery", "<Number>2</Number><Name>n</Name><SumNum>0</SumNum>");
        let track = asked("CruiseTrackQuery").list(Profile::default(), &head, &[]).unwrap();
        assert_eq!(track.before, "<Number>2</Number>\r\n<Name>n</Name>\r\n");
        assert_eq!(asked("DeviceInfo").list(Profile::default(), &head, &[]), None);
    }
}
