//! One list answer: pages sent one after the other.
//! Standard: [GB/T28181-2022 annex M], [GB/T28181-2016 annex N]: same SN and SumNum in each page, the next page only
//! after the answer to the one before; no ends marker. Pure.
//! Bounds: a UDP page keeps the whole message within [`UDP_MESSAGE`] unless a single item is larger.

use crate::proto::gb28181::{DeviceId, Profile};
use crate::proto::manscdp::catalog::{MAX_ITEMS, item_xml, items_that_fit};
use crate::proto::manscdp::{CatalogItem, QueryKind, XmlWriter};

/// What passes most paths unfragmented [RFC3261 18.1.1].
pub const UDP_MESSAGE: usize = 1300;
/// Head of our MESSAGE: start line, Via, From, To, Call-ID and the rest, measured generously.
pub const HEAD: usize = 520;
/// A page on a stream: large enough to be quick, small enough to let other messages in between.
const STREAM_PAGE: usize = 48 * 1024;

/// How large a page may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// As many items as keep the message within so many bytes of body.
    Bytes(usize),
    /// So many items.
    Items(usize),
}

impl PageSize {
    /// By the configuration (`catalog_items_per_message`) and the transport.
    pub fn new(items: Option<u16>, reliable: bool) -> Self {
        match items {
            Some(n) => PageSize::Items(usize::from(n).clamp(1, MAX_ITEMS)),
            None if reliable => PageSize::Bytes(STREAM_PAGE),
            None => PageSize::Bytes(UDP_MESSAGE - HEAD),
        }
    }

    /// Items of the next page of `items`.
    pub fn take<S: AsRef<str>>(self, profile: Profile, id: &DeviceId, items: &[S]) -> usize {
        match self {
            PageSize::Items(n) => n.min(items.len()),
            PageSize::Bytes(n) => items_that_fit(profile, id, items, n),
        }
    }
}

/// The answer, before it is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListAnswer {
    /// The query's own spelling.
    pub cmd_type: String,
    /// The query's.
    pub sn: u32,
    /// As the query named it.
    pub device_id: DeviceId,
    /// What stands between DeviceID and SumNum (a name, a number), as XML; repeated in each page.
    pub before: String,
    /// Name of the list element.
    pub list: &'static str,
    /// The items, as XML.
    pub items: Vec<String>,
}

impl ListAnswer {
    /// The answer to catalogue query `sn` for `device_id`.
    pub fn catalog(profile: Profile, sn: u32, device_id: DeviceId, items: &[&CatalogItem]) -> Self {
        ListAnswer {
            cmd_type: QueryKind::Catalog.as_str().into(),
            sn,
            device_id,
            before: String::new(),
            list: "DeviceList",
            items: items.iter().map(|i| item_xml(i, profile)).collect(),
        }
    }
}

/// See the file's head.
#[derive(Debug)]
pub struct PagedReply {
    profile: Profile,
    answer: ListAnswer,
    sent: usize,
    page: PageSize,
    done: bool,
}

impl PagedReply {
    /// The answer, in pages.
    pub fn new(profile: Profile, answer: ListAnswer, page: PageSize) -> Self {
        PagedReply { profile, answer, sent: 0, page, done: false }
    }

    /// The next page's body; None when all are out. An empty result is one page with SumNum 0.
    pub fn next_page(&mut self) -> Option<Vec<u8>> {
        if self.done {
            return None;
        }
        let rest = &self.answer.items[self.sent..];
        let count = match self.page {
            PageSize::Items(n) => n.min(rest.len()),
            PageSize::Bytes(n) => self.that_fit(rest, n),
        };
        let body = self.body(&rest[..count]);
        self.sent += count;
        self.done = self.sent >= self.answer.items.len();
        Some(body)
    }

    fn that_fit(&self, rest: &[String], bytes: usize) -> usize {
        // The longest number there can be in Num.
        let mut used = self.body(&[String::new()]).len() + MAX_ITEMS.ilog10() as usize;
        let fits = rest.iter().take(MAX_ITEMS).take_while(|item| {
            used += self.profile.charset().encode_xml(item).len();
            used <= bytes
        });
        fits.count().max(1).min(rest.len())
    }

    fn body(&self, items: &[String]) -> Vec<u8> {
        let answer = &self.answer;
        let mut w = XmlWriter::new();
        w.open("Response").text("CmdType", &answer.cmd_type).text("SN", answer.sn).text("DeviceID", answer.device_id);
        w.raw(&answer.before);
        w.text("SumNum", answer.items.len());
        if !items.is_empty() {
            w.open_num(answer.list, items.len());
            for item in items {
                w.raw(item);
            }
            w.close(answer.list);
        }
        w.close("Response");
        w.into_body(self.profile.charset())
    }

    /// What kind of list it is, in the query's spelling.
    pub fn cmd_type(&self) -> &str {
        &self.answer.cmd_type
    }

    /// True if a new query of this kind for this device makes it pointless.
    pub fn is_of(&self, cmd_type: &str, device_id: &DeviceId) -> bool {
        self.answer.cmd_type.eq_ignore_ascii_case(cmd_type) && self.answer.device_id == *device_id
    }

    /// Items sent so far and in all.
    pub fn progress(&self) -> (usize, usize) {
        (self.sent, self.answer.items.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gb28181::Version;
    use crate::proto::manscdp::catalog::CatalogResponse;
    use crate::proto::manscdp::parse;
    use std::collections::BTreeSet;

    fn items(n: usize) -> Vec<CatalogItem> {
        (0..n)
            .map(|i| {
                CatalogItem::new(
                    DeviceId::parse(&format!("4113000058132{:07}", i + 1)).unwrap(),
                    format!("东门枪机{i}"),
                )
            })
            .collect()
    }

    fn paged(version: Version, sn: u32, id: DeviceId, items: &[&CatalogItem], page: PageSize) -> PagedReply {
        let profile = Profile::new(version);
        PagedReply::new(profile, ListAnswer::catalog(profile, sn, id, items), page)
    }

    #[test]
    fn pages_are_small_equal_in_sum_and_complete() {
        let all = items(57);
        let refs: Vec<_> = all.iter().collect();
        for version in [Version::V2011, Version::V2016, Version::V2022] {
            let id = DeviceId::parse("41130000582000000001").unwrap();
            let mut reply = paged(version, 7, id, &refs, PageSize::new(None, false));
            let mut seen = BTreeSet::new();
            while let Some(body) = reply.next_page() {
                assert!(body.len() + HEAD <= UDP_MESSAGE || seen.len() + 1 == reply.progress().0, "{}", body.len());
                let incoming = parse(&body, None).unwrap();
                assert_eq!(incoming.sn, 7);
                let page = CatalogResponse::read(&incoming).unwrap();
                assert_eq!(page.sum_num, Some(57));
                for item in page.items {
                    assert!(item.name.starts_with("东门枪机"));
                    assert!(seen.insert(item.device_id), "twice");
                }
            }
            assert_eq!(seen.len(), 57);
        }
    }

    #[test]
    fn an_empty_answer_is_one_page() {
        let id = DeviceId::parse("41130000582000000001").unwrap();
        let mut reply = paged(Version::V2016, 1, id, &[], PageSize::new(None, false));
        let body = String::from_utf8(reply.next_page().unwrap()).unwrap();
        assert!(body.contains("<SumNum>0</SumNum>") && !body.contains("DeviceList"));
        assert_eq!(reply.next_page(), None);
    }

    #[test]
    fn a_fixed_number_of_items() {
        let all = items(5);
        let refs: Vec<_> = all.iter().collect();
        let id = DeviceId::parse("41130000582000000001").unwrap();
        let mut reply = paged(Version::V2016, 1, id, &refs, PageSize::new(Some(2), false));
        let mut pages = 0;
        while reply.next_page().is_some() {
            pages += 1;
        }
        assert_eq!(pages, 3);
    }

    #[test]
    fn a_list_of_recordings_has_its_head_in_each_page() {
        let id = DeviceId::parse("41130000581320000001").unwrap();
        let answer = ListAnswer {
            cmd_type: "RecordInfo".into(),
            sn: 9,
            device_id: id,
            before: "<Name>东门</Name>\r\n".into(),
            list: "RecordList",
            items: (0..30).map(|n| format!("<Item><FilePath>{n}{}</FilePath></Item>\r\n", "x".repeat(80))).collect(),
        };
        let profile = Profile::new(Version::V2022);
        let mut reply = PagedReply::new(profile, answer, PageSize::new(None, false));
        let (mut pages, mut seen) = (0, 0);
        while let Some(body) = reply.next_page() {
            assert!(body.len() + HEAD <= UDP_MESSAGE);
            let e = parse(&body, None).unwrap().element;
            assert_eq!((e.text_of("Name"), e.text_of("SumNum")), (Some("东门"), Some("30")));
            let list = e.child("RecordList").unwrap();
            assert_eq!(list.attr("Num"), Some(list.children.len().to_string().as_str()));
            (pages, seen) = (pages + 1, seen + list.children.len());
        }
        assert!(pages > 3 && seen == 30, "{pages} {seen}");
    }
}
