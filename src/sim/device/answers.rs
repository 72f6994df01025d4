//! What the device answers to queries: its catalogue in messages, its recordings, the rest in one body each.
//!
//! Standard: [GB/T28181-2022 9.5, A.2.6, annex M].
//! In: a query. Out: bodies; of a catalogue a plan, so that a message is rendered when its turn comes.
//! Invariants: SumNum counts the whole answer, unless a fault says otherwise; every body repeats the query's SN.
//! Not here: sending one after the other (`serve`).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::state::Shared;
use super::{CatalogFaults, SimChannel};
use crate::clock;
use crate::proto::gb28181::charset::Charset;
use crate::proto::gb28181::{DeviceId, Profile, UnixMillis};
use crate::proto::manscdp::catalog::{catalog_page, item_xml};
use crate::proto::manscdp::request::RecordQuery;
use crate::proto::manscdp::response::{
    BasicParam, DeviceInfo, DeviceStatus, DutyStatus, config_basic_param, device_info, device_status, preset_list,
    query_error,
};
use crate::proto::manscdp::{CatalogItem, Incoming, Query, QueryKind, Status, XmlWriter};
use crate::sim::clip::VideoCodec;

/// Most recordings of one answer: a year of files of an hour.
const MAX_RECORDS: i64 = 8784;
/// Bytes a second that FileSize is told by: 1 Mbit/s, about what the clips have.
const FILE_RATE: i64 = 125_000;

/// What becomes of a query.
#[derive(Debug)]
pub(super) enum Reply {
    /// One body.
    One(Vec<u8>),
    /// A body for each message of a list.
    List(Vec<Vec<u8>>),
    /// A catalogue.
    Catalog(Arc<CatalogJob>, VecDeque<PagePlan>),
}

/// A catalogue being sent.
#[derive(Debug)]
pub(super) struct CatalogJob {
    profile: Profile,
    sn: u32,
    /// Whose catalogue was asked for.
    target: DeviceId,
    owner: DeviceId,
    channels: Arc<Vec<SimChannel>>,
    faults: CatalogFaults,
}

/// One of its messages.
#[derive(Debug, Clone)]
pub(super) struct PagePlan {
    items: Range<usize>,
    sum_num: usize,
}

/// The catalogue item of a channel.
pub(super) fn item(channel: &SimChannel, owner: DeviceId) -> CatalogItem {
    let mut item = CatalogItem::new(channel.id, channel.name.clone());
    item.manufacturer = Some("Menshen".to_owned());
    item.model = Some("SIM-1".to_owned());
    item.owner = Some("0".to_owned());
    item.address = Some("教学楼".to_owned());
    item.parental = Some(false);
    item.parent_id = vec![owner];
    item.status = Some(if channel.online { Status::On } else { Status::Off });
    item.info.ptz_type = Some(1);
    item.info.download_speed = Some("1/2/4".to_owned());
    item.info.encode_type = Some(if channel.clip.codec() == VideoCodec::H264 { "2" } else { "5" }.to_owned());
    item
}

impl CatalogJob {
    fn new(shared: &Shared, sn: u32, target: DeviceId) -> Self {
        let (config, faults) = (&shared.config, shared.faults().catalog);
        let channels = match target == config.id {
            true => shared.channels(),
            false => Arc::new(shared.channel(&target).into_iter().collect()),
        };
        CatalogJob { profile: config.profile, sn, target, owner: config.id, channels, faults }
    }

    fn plan(&self, per_message: usize) -> VecDeque<PagePlan> {
        let (total, faults) = (self.channels.len(), &self.faults);
        let sum_num = if faults.sum_num_zero { 0 } else { total + usize::from(faults.wrong_sum_num) };
        let plan = |items| PagePlan { items, sum_num };
        let step = per_message.max(1);
        let mut pages: VecDeque<PagePlan> =
            (0..total).step_by(step).map(|start| plan(start..(start + step).min(total))).collect();
        if pages.is_empty() {
            pages.push_back(plan(0..0));
        }
        if faults.lost_message {
            pages.remove(pages.len() / 2);
        }
        if faults.disorder {
            pages.make_contiguous().reverse();
        }
        if faults.duplicate_message
            && let Some(first) = pages.front().cloned()
        {
            pages.push_front(first);
        }
        pages
    }

    /// The body of one message.
    pub fn body(&self, page: &PagePlan) -> Vec<u8> {
        let faults = &self.faults;
        let profile = if faults.in_text() { self.profile.with_charset(Charset::Utf8) } else { self.profile };
        let channels = self.channels.get(page.items.clone()).unwrap_or_default();
        let render = |channel: &SimChannel| {
            let mut item = item(channel, if faults.parent_is_self { channel.id } else { self.owner });
            if faults.bare_ampersand {
                item.name.push_str(" A&B");
            }
            item_xml(&item, profile)
        };
        let items: Vec<String> = channels.iter().map(render).collect();
        let body = catalog_page(profile, self.sn, &self.target, page.sum_num, &items);
        if !faults.in_text() {
            return body;
        }
        // It is UTF-8: it was written so above.
        let mut text = String::from_utf8_lossy(&body).into_owned();
        if faults.bare_ampersand {
            text = text.replace("&amp;", "&");
        }
        if faults.num_mismatch {
            let num = |count: usize| format!("Num=\"{count}\"");
            text = text.replace(&num(items.len()), &num(items.len() + 1));
        }
        let label = match faults.mislabelled {
            true => Charset::Utf8.label(),
            false => self.profile.charset().label(),
        };
        let rest = text.split_once("?>").map_or(text.as_str(), |(_, rest)| rest.trim_start());
        let text = match faults.no_declaration {
            true => rest.to_owned(),
            false => format!("<?xml version=\"1.0\" encoding=\"{label}\"?>\r\n{rest}"),
        };
        match faults.mislabelled {
            true => Charset::Gb2312.encode_xml(&text),
            false => self.profile.charset().encode_xml(&text),
        }
    }
}

/// Answers a query; `query` is `None` for one that is not the standard's.
pub(super) fn reply(shared: &Shared, incoming: &Incoming, query: Option<&Query>) -> Reply {
    let (config, sn, target) = (&shared.config, incoming.sn, &incoming.device_id);
    let profile = config.profile;
    let body = match query {
        _ if !shared.is_ours(target) => None,
        Some(Query::Catalog(_)) => {
            let job = CatalogJob::new(shared, sn, *target);
            let plan = job.plan(config.items_per_message);
            return Reply::Catalog(Arc::new(job), plan);
        }
        Some(Query::RecordInfo(query)) => return Reply::List(records(shared, incoming, query)),
        Some(Query::ConfigDownload(blocks)) => {
            let basic = blocks.iter().any(|block| block.eq_ignore_ascii_case("BasicParam"));
            let seconds = |duration: std::time::Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
            let param = BasicParam {
                name: name_of(shared, target),
                expiration: seconds(config.expires),
                heart_beat_interval: seconds(config.keepalive),
                heart_beat_count: config.keepalive_max_missed,
            };
            basic.then(|| config_basic_param(profile, sn, target, &param))
        }
        Some(Query::Plain(QueryKind::DeviceInfo)) => {
            let info = DeviceInfo {
                device_name: Some(name_of(shared, target)),
                ok: true,
                manufacturer: Some("Menshen".to_owned()),
                model: Some("SIM-1".to_owned()),
                firmware: Some(env!("CARGO_PKG_VERSION").to_owned()),
                channel: Some(if *target == config.id { shared.channels().len() as u32 } else { 1 }),
            };
            Some(device_info(profile, sn, target, &info))
        }
        Some(Query::Plain(QueryKind::DeviceStatus)) => {
            let online = *target == config.id || shared.channel(target).is_some_and(|channel| channel.online);
            let alarm = super::state::lock(&shared.in_alarm).contains(target);
            let status = DeviceStatus {
                ok: true,
                online,
                working: true,
                encode: Some(true),
                record: Some(true),
                device_time: Some(now()),
                alarm_status: vec![(*target, if alarm { DutyStatus::Alarm } else { DutyStatus::OnDuty })],
                ..DeviceStatus::default()
            };
            Some(device_status(profile, sn, target, &status))
        }
        Some(Query::Plain(QueryKind::PresetQuery)) => {
            Some(preset_list(profile, &incoming.cmd_type, sn, target, &shared.presets(target)))
        }
        _ => None,
    };
    Reply::One(body.unwrap_or_else(|| {
        shared.count(|s| s.queries_refused += 1);
        query_error(profile, &incoming.cmd_type, sn, target)
    }))
}

fn name_of(shared: &Shared, id: &DeviceId) -> String {
    shared.channel(id).map_or_else(|| shared.config.name.clone(), |channel| channel.name)
}

pub(super) fn now() -> UnixMillis {
    UnixMillis(i64::try_from(clock::system_unix().as_millis()).unwrap_or(i64::MAX))
}

/// Starts of the recorded files that overlap the time asked for and have ended by `now`, in Unix seconds.
fn files(query: &RecordQuery, length: i64, now: i64) -> Vec<i64> {
    let (Some(start), Some(end)) = (query.start, query.end) else { return Vec::new() };
    // RecordInfo asks by what made a recording; these are all made by plan.
    if !matches!(query.record_type.as_deref(), None | Some("all" | "time")) {
        return Vec::new();
    }
    if start >= end {
        return Vec::new();
    }
    let first = start.secs().div_euclid(length);
    let end = end.secs().min(now);
    (first..first.saturating_add(MAX_RECORDS))
        .map_while(|number| number.checked_mul(length))
        .take_while(|start| *start < end && start.saturating_add(length) <= now)
        .collect()
}

fn records(shared: &Shared, incoming: &Incoming, query: &RecordQuery) -> Vec<Vec<u8>> {
    let (config, target) = (&shared.config, incoming.device_id);
    let length = i64::try_from(config.record_length.as_secs()).unwrap_or(i64::MAX).max(1);
    let files = files(query, length, now().secs());
    let name = name_of(shared, &target);
    let page = |page: &[i64]| {
        let mut w = XmlWriter::new();
        w.open("Response").text("CmdType", &incoming.cmd_type).text("SN", incoming.sn).text("DeviceID", target);
        w.text("Name", &name).text("SumNum", files.len());
        if !page.is_empty() {
            w.open_num("RecordList", page.len());
        }
        for start in page {
            w.open("Item").text("DeviceID", target).text("Name", &name).text("FilePath", start);
            w.text("Address", "教学楼").text("StartTime", UnixMillis::from_secs(*start));
            w.text("EndTime", UnixMillis::from_secs(start.saturating_add(length)));
            w.text("Secrecy", 0).text("Type", "time").text("RecorderID", config.id);
            w.text("FileSize", length.saturating_mul(FILE_RATE)).close("Item");
        }
        if !page.is_empty() {
            w.close("RecordList");
        }
        w.close("Response");
        w.into_body(config.profile.charset())
    };
    match files.is_empty() {
        true => vec![page(&[])],
        false => files.chunks(config.items_per_message).map(page).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_whole_and_have_ended() {
        let query = |start, end| RecordQuery {
            start: Some(UnixMillis::from_secs(start)),
            end: Some(UnixMillis::from_secs(end)),
            ..RecordQuery::default()
        };
        // From the middle of a file to the start of another.
        assert_eq!(files(&query(1800, 10_800), 3600, 1_000_000), [0, 3600, 7200]);
        assert_eq!(files(&query(0, 3600), 3600, 1_000_000), [0]);
        // The last one is still being written.
        assert_eq!(files(&query(0, 100_000), 3600, 9000), [0, 3600]);
        assert!(files(&query(3600, 0), 3600, 1_000_000).is_empty());
        assert_eq!(files(&query(i64::MIN / 1000, i64::MAX / 1000), 1, 1_000_000).len(), MAX_RECORDS as usize);
        let alarm = RecordQuery { record_type: Some("alarm".to_owned()), ..query(0, 3600) };
        assert!(files(&alarm, 3600, 1_000_000).is_empty());
        assert!(files(&RecordQuery::default(), 3600, 1_000_000).is_empty());
    }
}
