//! A body of one peer written again for another: controls, configurations, queries, answers and news that are passed on.
//! Standard: [GB/T28181-2022 A.2.1, A.2.3, A.2.4, A.2.6], [GB/T28181-2016 A.2.3] for the spellings that differ.
//! In: a parsed `Incoming` and how the other peer is spoken to (`Respell`). Out: a body.
//! Invariants: elements keep their order; what is not known passes unchanged; all text is escaped again, so that no
//! markup of one peer reaches the other; at most `xml::MAX_BYTES`; written again for the same peer it is the same.
//! The fields of the head (CmdType, SN, DeviceID) are written anew; elements inside them, which nobody sends, go.
//! Respelt: IFameCmd and IFrameCmd, Info and ExtraInfo as free text, combined alarm methods, SumNum of presets.
//! Not here: catalogue items and positions (rendered anew by their modules), what a version or a peer may not do.

use super::request::{Incoming, Root};
use super::xml::{Element, MAX_BYTES, XmlWriter, escape_into};
use crate::proto::gb28181::{DeviceId, Profile, Version};
use std::fmt::Write as _;

/// Longest element or attribute name passed on; the standard's longest has 28 characters.
const MAX_NAME: usize = 128;

/// Why a body cannot be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// An element or attribute name that would not be read as one.
    #[error("MANSCDP relay: name {0:?} is no XML name: correct the sender")]
    Name(String),
    /// Above `MAX_BYTES` after writing.
    #[error("MANSCDP relay: {0} bytes after writing: send at most 4 MiB")]
    TooLong(usize),
}

/// How to write a body for another peer.
pub struct Respell<'a> {
    /// SN of the new exchange: ours for what we ask, the asker's for an answer.
    pub sn: u32,
    /// DeviceID of the body (TargetID of a broadcast).
    pub device_id: DeviceId,
    /// Version and character set.
    pub profile: Profile,
    /// CmdType where it is not the one received: an answer repeats the asker's spelling. The misprint PersetQuery in a query
    /// is corrected where this is `None`.
    pub cmd_type: Option<&'a str>,
    /// Every other id: those of items and their parents and groups, of places of storage, of a second camera. The id
    /// itself where nothing is to be changed. Texts that are no ids pass unchanged.
    pub map_id: &'a dyn Fn(&DeviceId) -> DeviceId,
}

/// Elements whose text is an id, or ids joined with `/`.
const ID_ELEMENTS: [&str; 9] = [
    "DeviceID",
    "DeviceID2",
    "ParentID",
    "BusinessGroupID",
    "RecorderID",
    "RecordLocation",
    "SourceID",
    "TargetID",
    "AlarmDeviceID",
];

impl Respell<'_> {
    /// Writes the body.
    ///
    /// # Errors
    /// [`RelayError`]: it cannot be written so that it is read as what it was.
    pub fn write(&self, incoming: &Incoming) -> Result<Vec<u8>, RelayError> {
        let root = &incoming.element;
        let mut w = XmlWriter::new();
        w.open(incoming.root.as_str());
        let (mut cmd_type, mut sn, mut device_id) = (false, false, false);
        let adds_sum = self.adds_preset_sum(incoming);
        for child in &root.children {
            // the first that says something is the one that counts, as in reading; others of the name pass like any
            let counts = |done: bool, name: &str| !done && child.is(name) && !child.text.is_empty();
            if counts(cmd_type, "CmdType") {
                cmd_type = true;
                w.text("CmdType", self.cmd_type_of(incoming));
            } else if counts(sn, "SN") {
                sn = true;
                w.text("SN", self.sn);
            } else if counts(device_id, self.id_element(root)) {
                device_id = true;
                w.text(self.id_element(root), self.device_id);
                if !sn && root.text_of("SN").is_none() {
                    // only a Notify comes without
                    sn = true;
                    w.text("SN", self.sn);
                }
            } else {
                if adds_sum && child.is("PresetList") {
                    w.text("SumNum", child.children_named("Item").count());
                }
                self.tree(&mut w, incoming, child)?;
            }
        }
        w.close(incoming.root.as_str());
        let body = w.into_body(self.profile.charset());
        if body.len() > MAX_BYTES { Err(RelayError::TooLong(body.len())) } else { Ok(body) }
    }

    fn is_new(&self) -> bool {
        self.profile.version() >= Version::V2022
    }

    fn id_element(&self, root: &Element) -> &'static str {
        if root.text_of("DeviceID").is_some() { "DeviceID" } else { "TargetID" }
    }

    fn cmd_type_of<'b>(&'b self, incoming: &'b Incoming) -> &'b str {
        let misprint = incoming.is(Root::Query, "PersetQuery");
        self.cmd_type.unwrap_or(if misprint { "PresetQuery" } else { &incoming.cmd_type })
    }

    fn is_preset_answer(incoming: &Incoming) -> bool {
        incoming.is(Root::Response, "PresetQuery") || incoming.is(Root::Response, "PersetQuery")
    }

    /// 2022 counts presets, 2016 does not.
    fn adds_preset_sum(&self, incoming: &Incoming) -> bool {
        let lists = incoming.element.children_named("PresetList").count();
        let said = incoming.element.child("SumNum").is_some();
        self.profile.preset_sum_num() && Self::is_preset_answer(incoming) && lists == 1 && !said
    }

    /// A child of the root with all that is in it.
    fn tree(&self, w: &mut XmlWriter, incoming: &Incoming, top: &Element) -> Result<(), RelayError> {
        let drops = !self.profile.preset_sum_num() && Self::is_preset_answer(incoming);
        if drops && top.is("SumNum") && incoming.element.child("PresetList").is_some() {
            return Ok(());
        }
        // an element to open, or the name of one to close
        enum Step<'e> {
            Open(&'e Element, bool),
            Close(&'e str),
        }
        let mut open = vec![Step::Open(top, true)];
        while let Some(step) = open.pop() {
            let (e, is_top) = match step {
                Step::Close(name) => {
                    w.close(name);
                    continue;
                }
                Step::Open(e, is_top) => (e, is_top),
            };
            let name = if is_top { self.name(incoming, e) } else { &e.name };
            let mut tag = format!("<{}", sound(name)?);
            for (key, value) in &e.attrs {
                write!(tag, " {}=\"", sound(key)?).expect("a String takes all that is written to it");
                escape_into(value, &mut tag);
                tag.push('"');
            }
            tag.push('>');
            escape_into(&self.text(incoming, e), &mut tag);
            if e.children.is_empty() {
                w.raw(&tag).close(name);
                continue;
            }
            tag.push_str("\r\n");
            w.raw(&tag);
            open.push(Step::Close(name));
            open.extend(e.children.iter().rev().map(|child| Step::Open(child, false)));
        }
        Ok(())
    }

    /// The name of a child of the root in the peer's version.
    fn name<'e>(&self, incoming: &Incoming, e: &'e Element) -> &'e str {
        let key_frame = e.is("IFameCmd") || e.is("IFrameCmd");
        if key_frame && incoming.root == Root::Control {
            // before 2016 there is no such command: the older spelling is what older equipment would know
            return if self.is_new() { "IFrameCmd" } else { "IFameCmd" };
        }
        // an Info with elements in it is a structure, which keeps its name
        let free_text = e.children.is_empty() && e.attrs.is_empty() && (e.is("Info") || e.is("ExtraInfo"));
        if free_text {
            return self.profile.extension_element();
        }
        &e.name
    }

    fn text<'e>(&self, incoming: &Incoming, e: &'e Element) -> std::borrow::Cow<'e, str> {
        if ID_ELEMENTS.iter().any(|name| e.is(name)) {
            return self.ids(&e.text).into();
        }
        if e.is("AlarmMethod")
            && incoming.root != Root::Notify
            && let Some(methods) = alarm_methods(&e.text)
        {
            return self.profile.join_alarm_methods(&methods).into();
        }
        e.text.as_str().into()
    }

    fn ids(&self, text: &str) -> String {
        let mapped = text.split('/').map(|part| match DeviceId::parse(part.trim()) {
            Ok(id) => (self.map_id)(&id).to_string(),
            Err(_) => part.to_owned(),
        });
        mapped.collect::<Vec<_>>().join("/")
    }
}

/// A combination of several alarm methods, `12` or `1/2`; `None` for anything else.
fn alarm_methods(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<&str> = match text.contains('/') {
        true => text.split('/').map(str::trim).collect(),
        false => text.split("").filter(|t| !t.is_empty()).collect(),
    };
    let methods: Option<Vec<u8>> =
        digits.iter().map(|d| d.parse().ok().filter(|n| d.len() == 1 && (1..=7).contains(n))).collect();
    methods.filter(|m| (2..=7).contains(&m.len()))
}

/// A name that the reader takes for one: ASCII at its start, no markup in it.
fn sound(name: &str) -> Result<&str, RelayError> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let goes_on = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if starts && goes_on && name.len() <= MAX_NAME {
        Ok(name)
    } else {
        Err(RelayError::Name(name.chars().take(MAX_NAME).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gb28181::Charset;
    use crate::proto::manscdp::{ChecksumPolicy, DeviceControl, RecordResponse, device_control, parse};

    const A: &str = "34020000001320000001";
    const B: &str = "41130000581320000002";

    fn id(text: &str) -> DeviceId {
        DeviceId::parse(text).unwrap()
    }

    fn same(id: &DeviceId) -> DeviceId {
        *id
    }

    fn to(version: Version) -> Respell<'static> {
        Respell { sn: 900, device_id: id(B), profile: Profile::new(version), cmd_type: None, map_id: &same }
    }

    fn incoming(root: &str, cmd_type: &str, inner: &str) -> Incoming {
        let text = format!("<{root}><CmdType>{cmd_type}</CmdType><SN>7</SN><DeviceID>{A}</DeviceID>{inner}</{root}>");
        parse(text.as_bytes(), None).unwrap()
    }

    /// What is between DeviceID and the end.
    fn inner(respell: &Respell<'_>, incoming: &Incoming) -> String {
        let body = respell.write(incoming).unwrap();
        let text = crate::proto::gb28181::charset::decode(&body, Some(respell.profile.charset())).replace("\r\n", "");
        let root = incoming.root.as_str();
        let (head, rest) = text.split_once("</DeviceID>").unwrap();
        assert!(head.ends_with(&format!("<SN>900</SN><DeviceID>{B}")), "{head}");
        rest.strip_suffix(&format!("</{root}>")).unwrap().to_owned()
    }

    #[test]
    fn controls_between_versions() {
        let new = "<IFrameCmd>Send</IFrameCmd><ExtraInfo>东门 &lt;1&gt; &amp;</ExtraInfo>";
        let old = "<IFameCmd>Send</IFameCmd><Info>东门 &lt;1&gt; &amp;</Info>";
        let control = incoming("Control", "DeviceControl", new);
        for version in [Version::V2011, Version::V2016] {
            assert_eq!(inner(&to(version), &control), old);
        }
        let there = parse(&to(Version::V2016).write(&control).unwrap(), None).unwrap();
        assert_eq!((there.sn, there.device_id), (900, id(B)));
        assert_eq!(inner(&to(Version::V2022), &there), new);
        assert_eq!(device_control(&there, ChecksumPolicy::Verify), Ok(DeviceControl::KeyFrame));
        // a structured Info keeps its name, alarm methods are joined as the version has it
        let reset = "<AlarmCmd>ResetAlarm</AlarmCmd><Info><AlarmMethod>25</AlarmMethod><AlarmType>6</AlarmType></Info>";
        let reset = incoming("Control", "DeviceControl", reset);
        let written = inner(&to(Version::V2022), &reset);
        assert!(written.contains("<Info><AlarmMethod>2/5</AlarmMethod><AlarmType>6</AlarmType></Info>"), "{written}");
        let back = parse(&to(Version::V2022).write(&reset).unwrap(), None).unwrap();
        assert!(inner(&to(Version::V2016), &back).contains("<AlarmMethod>25</AlarmMethod>"));
        // what nobody knows, attributes and order stay
        let vendor = "<PTZCmd>A50F0001400000F5</PTZCmd><Z a=\"1\" b=\"&lt;&quot;\"><Y/>t</Z><A>x</A>";
        let vendor = incoming("Control", "DeviceControl", vendor);
        assert_eq!(
            inner(&to(Version::V2016), &vendor),
            "<PTZCmd>A50F0001400000F5</PTZCmd><Z a=\"1\" b=\"&lt;&quot;\">t<Y></Y></Z><A>x</A>"
        );
    }

    #[test]
    fn configuration_loses_nothing() {
        let blocks = "<BasicParam><Name>a&amp;b</Name><Expiration>3600</Expiration></BasicParam>\
            <VideoParamAttribute Num=\"2\"><Item><StreamNumber>0</StreamNumber></Item><Item></Item>\
            </VideoParamAttribute><FrameMirror>1</FrameMirror>";
        let config = incoming("Control", "DeviceConfig", blocks);
        for version in [Version::V2016, Version::V2022] {
            assert_eq!(inner(&to(version), &config), blocks);
        }
    }

    #[test]
    fn answers_with_their_items() {
        let text = format!(
            "<Name>n</Name><SumNum>1</SumNum><RecordList Num=\"1\"><Item><DeviceID>{A}</DeviceID><Name>n</Name>\
             <RecorderID>operator</RecorderID><RecordLocation>{A}</RecordLocation></Item></RecordList>"
        );
        let records = incoming("Response", "RecordInfo", &text);
        let map = |from: &DeviceId| if *from == id(A) { id(B) } else { *from };
        let respell = Respell { map_id: &map, cmd_type: Some("recordinfo"), ..to(Version::V2022) };
        assert_eq!(inner(&respell, &records), text.replace(A, B));
        let body = respell.write(&records).unwrap();
        assert!(String::from_utf8_lossy(&body).contains("<CmdType>recordinfo</CmdType>"));
        assert_eq!(RecordResponse::read(&parse(&body, None).unwrap()).unwrap().items[0].device_id, id(B));
        let parents = incoming("Response", "Catalog", &format!("<Item><ParentID>{A}/x/ 34</ParentID></Item>"));
        assert_eq!(inner(&respell, &parents), format!("<Item><ParentID>{B}/x/34</ParentID></Item>"));
    }

    #[test]
    fn presets_are_counted_as_the_version_has_it() {
        let list = "<PresetList Num=\"1\"><Item><PresetID>1</PresetID></Item></PresetList>";
        let old = incoming("Response", "PresetQuery", list);
        let new = inner(&to(Version::V2022), &old);
        assert_eq!(new, format!("<SumNum>1</SumNum>{list}"));
        assert_eq!(inner(&to(Version::V2016), &incoming("Response", "PresetQuery", &new)), list);
        // the misprint of 2014 is not passed on in a query
        let query = incoming("Query", "PersetQuery", "");
        assert!(String::from_utf8_lossy(&to(Version::V2022).write(&query).unwrap()).contains(">PresetQuery<"));
        let alarm = incoming("Query", "Alarm", "<AlarmMethod>1/2</AlarmMethod>");
        assert_eq!(inner(&to(Version::V2016), &alarm), "<AlarmMethod>12</AlarmMethod>");
        for text in ["0", "5", "1/9", "12345678", "1/", "a"] {
            assert_eq!(alarm_methods(text), None, "{text}");
        }
    }

    #[test]
    fn broadcast_and_news_without_sn() {
        let text = format!(
            "<Notify><CmdType>Broadcast</CmdType><SN>1</SN><SourceID>34</SourceID><TargetID>{A}</TargetID></Notify>"
        );
        let broadcast = parse(text.as_bytes(), None).unwrap();
        let respell = Respell { map_id: &|_| id("35"), ..to(Version::V2016) };
        let body = String::from_utf8(respell.write(&broadcast).unwrap()).unwrap();
        assert!(body.contains(&format!("<SourceID>35</SourceID>\r\n<TargetID>{B}</TargetID>")), "{body}");
        let text = format!("<Notify><CmdType>Keepalive</CmdType><DeviceID>{A}</DeviceID><Status>OK</Status></Notify>");
        let read = parse(&to(Version::V2016).write(&parse(text.as_bytes(), None).unwrap()).unwrap(), None).unwrap();
        assert_eq!((read.sn, read.element.text_of("Status")), (900, Some("OK")));
    }

    #[test]
    fn hostile_markup_does_not_get_through() {
        let evil =
            incoming("Notify", "Alarm", "<AlarmDescription><![CDATA[</AlarmDescription><X>1</X>]]></AlarmDescription>");
        assert_eq!(
            inner(&to(Version::V2016), &evil),
            "<AlarmDescription>&lt;/AlarmDescription&gt;&lt;X&gt;1&lt;/X&gt;</AlarmDescription>"
        );
        let odd = incoming("Control", "DeviceControl", "<g:1a>x</g:1a>");
        assert_eq!(to(Version::V2016).write(&odd), Err(RelayError::Name("1a".into())));
        // a character the set lacks
        let rare = incoming("Control", "DeviceControl", "<Info>\u{20000}</Info>");
        let gbk = Respell { profile: Profile::new(Version::V2016).with_charset(Charset::Gb2312), ..to(Version::V2016) };
        assert!(String::from_utf8_lossy(&gbk.write(&rare).unwrap()).contains("<Info>&#131072;</Info>"));
        let long = incoming("Control", "DeviceControl", &format!("<Info>{}</Info>", "\"".repeat(MAX_BYTES / 4)));
        assert!(matches!(to(Version::V2016).write(&long), Err(RelayError::TooLong(n)) if n > MAX_BYTES));
    }
}
