//! One answer to a catalogue query: pages sent one after the other.
//! Standard: [GB/T28181-2022 annex M], [GB/T28181-2016 annex N]: same SN and SumNum in each page, the next page only
//! after the answer to the one before; no ends marker. Pure.
//! Bounds: a UDP page keeps the whole message within [`UDP_MESSAGE`] unless a single item is larger.

use crate::proto::gb28181::{DeviceId, Profile};
use crate::proto::manscdp::CatalogItem;
use crate::proto::manscdp::catalog::{MAX_ITEMS, catalog_page, item_xml, items_that_fit};

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

/// See the file's head.
#[derive(Debug)]
pub struct CatalogReply {
    profile: Profile,
    sn: u32,
    device_id: DeviceId,
    items: Vec<String>,
    sent: usize,
    page: PageSize,
    done: bool,
}

impl CatalogReply {
    /// The answer to query `sn` for `device_id`.
    pub fn new(profile: Profile, sn: u32, device_id: DeviceId, items: &[&CatalogItem], page: PageSize) -> Self {
        let items = items.iter().map(|i| item_xml(i, profile)).collect();
        CatalogReply { profile, sn, device_id, items, sent: 0, page, done: false }
    }

    /// The next page's body; None when all are out. An empty result is one page with SumNum 0.
    pub fn next_page(&mut self) -> Option<Vec<u8>> {
        if self.done {
            return None;
        }
        let rest = &self.items[self.sent..];
        let count = self.page.take(self.profile, &self.device_id, rest);
        let body = catalog_page(self.profile, self.sn, &self.device_id, self.items.len(), &rest[..count]);
        self.sent += count;
        self.done = self.sent >= self.items.len();
        Some(body)
    }

    /// Items sent so far and in all.
    pub fn progress(&self) -> (usize, usize) {
        (self.sent, self.items.len())
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

    #[test]
    fn pages_are_small_equal_in_sum_and_complete() {
        let all = items(57);
        let refs: Vec<_> = all.iter().collect();
        for version in [Version::V2011, Version::V2016, Version::V2022] {
            let id = DeviceId::parse("41130000582000000001").unwrap();
            let mut reply = CatalogReply::new(Profile::new(version), 7, id, &refs, PageSize::new(None, false));
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
        let mut reply = CatalogReply::new(Profile::new(Version::V2016), 1, id, &[], PageSize::new(None, false));
        let body = String::from_utf8(reply.next_page().unwrap()).unwrap();
        assert!(body.contains("<SumNum>0</SumNum>") && !body.contains("DeviceList"));
        assert_eq!(reply.next_page(), None);
    }

    #[test]
    fn a_fixed_number_of_items() {
        let all = items(5);
        let refs: Vec<_> = all.iter().collect();
        let id = DeviceId::parse("41130000582000000001").unwrap();
        let mut reply = CatalogReply::new(Profile::new(Version::V2016), 1, id, &refs, PageSize::new(Some(2), false));
        let mut pages = 0;
        while reply.next_page().is_some() {
            pages += 1;
        }
        assert_eq!(pages, 3);
    }
}
