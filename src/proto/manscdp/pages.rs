//! Answers that are lists in pages: the frame every page has, and how many items go into one.
//! Standard: [GB/T28181-2022 A.2.6, annex M].
//! In: items rendered by their own module. Out: bodies.
//! Invariants: SumNum counts the whole answer, Num this page; an empty result has no list.
//! Not here: items (`catalog`, `record`), when a page is sent.

use super::body;
use super::xml::XmlWriter;
use crate::proto::gb28181::{DeviceId, Profile};

/// Most items of one message. [GB/T28181-2022 annex M]
pub const MAX_ITEMS: usize = 10_000;

/// What a list's pages have around their items.
#[derive(Clone, Copy)]
pub(super) struct ListFrame<'a> {
    /// CmdType.
    pub cmd_type: &'a str,
    /// The list element.
    pub list: &'a str,
    /// `Name` before SumNum, where the answer has one.
    pub name: Option<&'a str>,
}

impl ListFrame<'_> {
    /// One page.
    pub fn page<S: AsRef<str>>(
        self,
        profile: Profile,
        sn: u32,
        device_id: &DeviceId,
        sum_num: usize,
        items: &[S],
    ) -> Vec<u8> {
        body(profile, "Response", self.cmd_type, sn, device_id, |w| {
            w.opt("Name", self.name).text("SumNum", sum_num);
            if !items.is_empty() {
                write_list(w, self.list, items);
            }
        })
    }

    /// How many of `items` fit into one page of at most `max_bytes` after encoding: at least 1 if there are any, at
    /// most `MAX_ITEMS`.
    pub fn fit<S: AsRef<str>>(self, profile: Profile, device_id: &DeviceId, items: &[S], max_bytes: usize) -> usize {
        // the longest numbers there can be in SN, SumNum and Num
        let empty = self.page(profile, u32::MAX, device_id, u32::MAX as usize, &[""]).len();
        let mut used = empty + MAX_ITEMS.ilog10() as usize;
        let mut count = 0;
        for item in items.iter().take(MAX_ITEMS) {
            used += profile.charset().encode_xml(item.as_ref()).len();
            if count > 0 && used > max_bytes {
                break;
            }
            count += 1;
        }
        count
    }
}

/// A list element around rendered items.
pub(super) fn write_list<S: AsRef<str>>(w: &mut XmlWriter, list: &str, items: &[S]) {
    w.open_num(list, items.len());
    for item in items {
        w.raw(item.as_ref());
    }
    w.close(list);
}
