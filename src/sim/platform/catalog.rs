//! A catalogue put together from its pages.
//!
//! Standard: [GB/T28181-2022 annex M]: every page repeats SN and SumNum; there is no end mark.
//! In: answers as they come. Out: `CatalogResult`.
//! Invariants: ends when SumNum items have come, or when nothing has for `IDLE`; bounded in items and time.
//! Not here: what the items mean.

use std::collections::HashSet;
use std::time::Duration;

use super::PlatformError;
use super::handle::{PlatformHandle, within};
use super::state::Answer;
use crate::clock;
use crate::proto::gb28181::DeviceId;
use crate::proto::manscdp::catalog::CatalogResponse;
use crate::proto::manscdp::request::CatalogQuery;
use crate::proto::manscdp::{CatalogItem, Query};

/// A catalogue that pauses for this long has ended; platforms in the field wait as long.
const IDLE: Duration = Duration::from_secs(5);
/// Most items kept: ten times the largest message.
const MAX_ITEMS: usize = 100_000;

/// A catalogue as received.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CatalogResult {
    /// The items in order of arrival, each code once.
    pub items: Vec<CatalogItem>,
    /// SumNum of the first page.
    pub sum_num: Option<u32>,
    /// Pages whose SumNum is another one.
    pub sum_num_changes: usize,
    /// Pages.
    pub messages: usize,
    /// The largest SIP message among them, in bytes.
    pub max_message_bytes: usize,
    /// Codes that came more than once.
    pub duplicates: Vec<DeviceId>,
    /// Items that cannot be used (no code).
    pub dropped: usize,
    /// What SumNum says beyond what came.
    pub missing: usize,
    /// From the query to the first page.
    pub first_after: Duration,
    /// From the query to the last page.
    pub took: Duration,
}

impl CatalogResult {
    /// As many items as announced, no code twice, SumNum the same on every page.
    pub fn is_complete(&self) -> bool {
        self.sum_num.is_some()
            && self.missing == 0
            && self.duplicates.is_empty()
            && self.dropped == 0
            && self.sum_num_changes == 0
            && self.sum_num.is_some_and(|sum| sum as usize == self.items.len())
    }

    /// The channels that can be played: cameras and video channels, types 131 and 132. [GB/T28181-2022 E.1]
    pub fn cameras(&self) -> impl Iterator<Item = &CatalogItem> {
        self.items.iter().filter(|item| matches!(item.device_id.type_code(), Some(131 | 132)))
    }

    /// Takes a page; true when it was the last.
    fn take(&mut self, answer: &Answer, seen: &mut HashSet<DeviceId>) -> bool {
        let Some(page) = CatalogResponse::read(&answer.incoming) else {
            return false;
        };
        self.sum_num_changes += usize::from(self.messages > 0 && page.sum_num != self.sum_num);
        if self.messages == 0 {
            self.sum_num = page.sum_num;
        }
        self.messages += 1;
        self.max_message_bytes = self.max_message_bytes.max(answer.bytes);
        self.dropped += page.dropped;
        for item in page.items {
            match seen.insert(item.device_id) {
                true if self.items.len() < MAX_ITEMS => self.items.push(item),
                true => self.dropped += 1,
                false => self.duplicates.push(item.device_id),
            }
        }
        self.duplicates.truncate(MAX_ITEMS);
        let sum = self.sum_num.map_or(0, |sum| sum as usize);
        self.missing = sum.saturating_sub(self.items.len() + self.duplicates.len() + self.dropped);
        self.sum_num.is_some() && self.missing == 0
    }
}

impl PlatformHandle {
    /// Asks `lower` for its catalogue and puts the pages together. What has come by the end of `limit` is the result;
    /// see [`CatalogResult::is_complete`].
    ///
    /// # Errors
    /// [`PlatformError`]: not registered, refused, or no page at all within `limit`.
    pub async fn query_catalog(&self, lower: &DeviceId, limit: Duration) -> Result<CatalogResult, PlatformError> {
        let began = clock::now();
        let query = Query::Catalog(CatalogQuery::default());
        let asked = self.ask(lower, lower, &query);
        let mut answers = within(limit, "response to the catalogue query", asked).await??;
        let (mut result, mut seen) = (CatalogResult::default(), HashSet::new());
        loop {
            let left = limit.saturating_sub(clock::now().saturating_duration_since(began));
            let idle = if result.messages == 0 { left } else { left.min(IDLE) };
            let answer = match tokio::time::timeout(idle, answers.queue.recv()).await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(PlatformError::Stopped),
                Err(_) if result.messages > 0 => return Ok(result),
                Err(_) => {
                    let what = "catalogue";
                    return Err(PlatformError::Timeout { what, limit });
                }
            };
            result.took = clock::now().saturating_duration_since(began);
            if result.messages == 0 {
                result.first_after = result.took;
            }
            if result.take(&answer, &mut seen) {
                return Ok(result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gb28181::{Profile, Version};
    use crate::proto::manscdp::catalog::{catalog_page, item_xml};
    use crate::proto::manscdp::parse;

    fn page(sum: usize, serials: &[u32]) -> Answer {
        let profile = Profile::new(Version::V2022);
        let owner = DeviceId::parse("41130000582000000001").unwrap();
        let items: Vec<String> = serials
            .iter()
            .map(|serial| {
                let id = DeviceId::mint("4113000058", 132, 0, *serial).unwrap();
                item_xml(&CatalogItem::new(id, format!("摄像机{serial}")), profile)
            })
            .collect();
        Answer {
            incoming: parse(&catalog_page(profile, 7, &owner, sum, &items), None).unwrap(),
            bytes: 1000 + serials.len(),
        }
    }

    #[test]
    fn pages_add_up_and_faults_are_seen() {
        let (mut result, mut seen) = (CatalogResult::default(), HashSet::new());
        assert!(!result.take(&page(3, &[1, 2]), &mut seen));
        assert_eq!((result.missing, result.messages), (1, 1));
        assert!(result.take(&page(3, &[3]), &mut seen));
        assert!(result.is_complete());
        assert_eq!((result.max_message_bytes, result.cameras().count()), (1002, 3));
        assert_eq!(result.items[0].name, "摄像机1");

        let (mut result, mut seen) = (CatalogResult::default(), HashSet::new());
        assert!(!result.take(&page(3, &[1]), &mut seen));
        assert!(!result.take(&page(4, &[1]), &mut seen));
        assert_eq!((result.duplicates.len(), result.sum_num_changes, result.missing), (1, 1, 1));
        assert!(!result.is_complete());

        let (mut result, mut seen) = (CatalogResult::default(), HashSet::new());
        assert!(result.take(&page(0, &[]), &mut seen) && result.is_complete());
    }
}
