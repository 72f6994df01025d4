//! A catalogue subscription: what an upper platform was told, and what it must be told next.
//! Standard: [GB/T28181-2022 annex N, 9.11], [RFC6665]; the first NOTIFY lists only what is abnormal, later ones the
//! changes since, batched; NOTIFYs go one after the other.
//! In: views and time. Out: NOTIFY bodies. Pure; the link sends them inside the dialog.
//! Invariants: what is told is always the difference between the last told view and the present one, so that flapping
//! within a batch is not told at all and nothing is ever lost by a full queue.

use super::paged_reply::PageSize;
use crate::catalog::{View, changes};
use crate::proto::gb28181::{DeviceId, IdKind, Profile};
use crate::proto::manscdp::catalog::{catalog_notify_page, change_xml};
use crate::proto::manscdp::{CatalogChange, CatalogEvent, Status};
use crate::proto::sip::dialog::Dialog;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Changes within this time of the first one go together: an area that loses power is one NOTIFY, and an operator still
/// sees a loss within seconds.
pub const BATCH: Duration = Duration::from_secs(1);
/// Default and longest life of a subscription [GB/T28181-2022 annex N: 600 s].
pub const DEFAULT_EXPIRES: u32 = 600;
/// A subscription is never longer, whatever was asked.
pub const MAX_EXPIRES: u32 = 86_400;

/// See the file's head.
#[derive(Debug)]
pub struct Subscription {
    /// Its dialog.
    pub dialog: Dialog,
    /// The Event header, echoed verbatim.
    pub event: String,
    /// Where the changes are asked for.
    pub device_id: DeviceId,
    expires_at: Instant,
    told: Arc<View>,
    batch_at: Option<Instant>,
    pages: VecDeque<Vec<String>>,
    in_flight: bool,
}

/// What the platform asked for.
#[derive(Debug)]
pub struct Asked {
    /// The dialog its SUBSCRIBE made.
    pub dialog: Dialog,
    /// Its Event header.
    pub event: String,
    /// Where the changes are asked for.
    pub device_id: DeviceId,
    /// Seconds.
    pub expires: u32,
}

/// How it is told.
#[derive(Debug, Clone, Copy)]
pub struct Telling {
    /// Our code towards it.
    pub local_id: DeviceId,
    /// Its edition and charset.
    pub profile: Profile,
    /// How much a NOTIFY may carry.
    pub page: PageSize,
}

/// A NOTIFY to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Notice {
    /// XML body.
    pub body: Vec<u8>,
    /// Seconds the subscription still has.
    pub expires: u32,
}

impl Subscription {
    /// A new subscription; its first NOTIFY (what is off, maybe nothing) is queued at once.
    pub fn new(asked: Asked, now: Instant, view: Arc<View>, telling: Telling) -> Self {
        let Asked { dialog, event, device_id, expires } = asked;
        let mut subscription = Subscription {
            dialog,
            event,
            device_id,
            expires_at: now + Duration::from_secs(u64::from(expires)),
            told: Arc::clone(&view),
            batch_at: None,
            pages: VecDeque::new(),
            in_flight: false,
        };
        subscription.tell_off(telling);
        subscription
    }

    /// Queues what is off; RFC 6665 wants a NOTIFY at once even where that is nothing.
    fn tell_off(&mut self, telling: Telling) {
        let off = self.statuses(telling).filter(|c| c.event == CatalogEvent::Off).collect::<Vec<_>>();
        self.queue(&off, telling);
        if self.pages.is_empty() {
            self.pages.push_back(Vec::new());
        }
    }

    /// How everything in range stands, as last told.
    fn statuses(&self, telling: Telling) -> impl Iterator<Item = CatalogChange> {
        self.told.select(&self.device_id, &telling.local_id).into_iter().filter_map(|item| {
            let is_device = matches!(item.device_id.kind(), IdKind::FrontEnd | IdKind::Peripheral);
            let event = match item.status.filter(|_| is_device)? {
                Status::On => CatalogEvent::On,
                Status::Off => CatalogEvent::Off,
            };
            Some(CatalogChange::of(event, item.clone()))
        })
    }

    /// The peer asked for more time. [RFC6665 4.2.1.2]: it is told how things stand.
    pub fn refresh(&mut self, now: Instant, expires: u32, telling: Telling) {
        self.expires_at = now + Duration::from_secs(u64::from(expires));
        if self.pages.is_empty() {
            self.tell_off(telling);
        }
    }

    /// The peer may have lost sight of us: it is told ON or OFF of everything, unless news wait already.
    pub fn restate(&mut self, telling: Telling) {
        if !self.pages.is_empty() {
            return;
        }
        let all = self.statuses(telling).collect::<Vec<_>>();
        self.queue(&all, telling);
    }

    /// True once it is over.
    pub fn is_expired(&self, now: Instant) -> bool {
        now >= self.expires_at
    }

    /// Seconds left.
    pub fn expires(&self, now: Instant) -> u32 {
        self.expires_at.saturating_duration_since(now).as_secs() as u32
    }

    /// The directory changed.
    pub fn view_changed(&mut self, now: Instant) {
        self.batch_at.get_or_insert(now + BATCH);
    }

    /// When something is due.
    pub fn next_timeout(&self) -> Instant {
        self.batch_at.map_or(self.expires_at, |t| t.min(self.expires_at))
    }

    /// Puts what changed since the last time into the queue, if the batch's time has come.
    pub fn collect(&mut self, now: Instant, view: &Arc<View>, telling: Telling) {
        if self.batch_at.is_none_or(|t| now < t) {
            return;
        }
        self.batch_at = None;
        let mut list = changes(&self.told, view);
        let local_id = &telling.local_id;
        if self.device_id != *local_id {
            let both = [view, &self.told].into_iter();
            let covered: HashSet<DeviceId> =
                both.flat_map(|v| v.select(&self.device_id, local_id)).map(|item| item.device_id).collect();
            list.retain(|c| covered.contains(&c.device_id));
        }
        self.told = Arc::clone(view);
        self.queue(&list, telling);
    }

    fn queue(&mut self, list: &[CatalogChange], Telling { profile, page, .. }: Telling) {
        let items: Vec<String> = list.iter().map(|c| change_xml(c, profile)).collect();
        let mut rest = &items[..];
        while !rest.is_empty() {
            let n = page.take(profile, &self.device_id, rest).max(1);
            self.pages.push_back(rest[..n].to_vec());
            rest = &rest[n..];
        }
    }

    /// The next NOTIFY, if none is under way.
    pub fn next_notice(&mut self, now: Instant, sn: u32, profile: Profile) -> Option<Notice> {
        if self.in_flight {
            return None;
        }
        let items = self.pages.pop_front()?;
        self.in_flight = true;
        Some(Notice { body: catalog_notify_page(profile, sn, &self.device_id, &items), expires: self.expires(now) })
    }

    /// The NOTIFY under way was answered, or will not be.
    pub fn answered(&mut self) {
        self.in_flight = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gb28181::Version;
    use crate::proto::manscdp::CatalogItem;
    use crate::proto::manscdp::catalog::read_catalog_notify;
    use crate::proto::manscdp::parse;

    const LOCAL: &str = "41130000582000000001";

    fn id(n: u32) -> DeviceId {
        DeviceId::parse(&format!("4113000058132{n:07}")).unwrap()
    }

    fn view_of(items: &[(u32, Status)]) -> Arc<View> {
        let mut snapshot = crate::catalog::DirectorySnapshot::default();
        for (n, status) in items {
            let (tx, _rx) = tokio::sync::mpsc::channel(1);
            let channel = crate::catalog::Channel {
                id: id(*n).as_str().into(),
                area: None,
                parent: None,
                item: Arc::new(CatalogItem::new(id(*n), "c")),
                streams: 1,
                source: crate::media::SourceHandle::new(tx),
                state: crate::catalog::ChannelState {
                    online: Some(*status == Status::On),
                    ..crate::catalog::ChannelState::unknown()
                },
                commands: None,
                kind: "rtsp",
            };
            snapshot.channels.insert(channel.id.clone(), channel);
        }
        let spec = crate::catalog::ViewSpec {
            local_id: DeviceId::parse(LOCAL).unwrap(),
            name: "x".into(),
            civil_code: "411300".into(),
            share: vec![crate::catalog::Share::All],
            groups: false,
            multi_parent: false,
            version: Version::V2016,
        };
        Arc::new(crate::catalog::view(&snapshot, &spec))
    }

    fn dialog() -> Dialog {
        use crate::proto::sip::message::{Flow, Headers, Request, Response, Transport};
        let mut headers = Headers::new();
        headers.push("Via", "SIP/2.0/UDP 127.0.0.1:15060;branch=z9hG4bK1");
        headers.push("From", "<sip:1@x>;tag=a");
        headers.push("To", "<sip:2@x>;tag=b");
        headers.push("Call-ID", "c");
        headers.push("CSeq", "1 SUBSCRIBE");
        headers.push("Contact", "<sip:1@127.0.0.1:15060>");
        let request = Request {
            method: "SUBSCRIBE".into(),
            uri: "sip:2@x".into(),
            headers: headers.clone(),
            body: Default::default(),
        };
        let response = Response { status: 200, reason: "OK".into(), headers, body: Default::default() };
        let a = "127.0.0.1:15060".parse().unwrap();
        Dialog::uas(&request, &response, Flow { transport: Transport::Udp, local: a, peer: a, conn: None }).unwrap()
    }

    #[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn now() -> Instant {
        Instant::now()
    }

    fn telling(items: usize) -> Telling {
        Telling {
            local_id: DeviceId::parse(LOCAL).unwrap(),
            profile: Profile::new(Version::V2016),
            page: PageSize::Items(items),
        }
    }

    fn subscribe(at: Instant, view: Arc<View>) -> Subscription {
        let local = DeviceId::parse(LOCAL).unwrap();
        let asked = Asked { dialog: dialog(), event: "Catalog;id=1".into(), device_id: local, expires: 600 };
        Subscription::new(asked, at, view, telling(100))
    }

    fn events(notice: &Notice) -> Vec<(CatalogEvent, DeviceId)> {
        let incoming = parse(&notice.body, None).unwrap();
        read_catalog_notify(&incoming).unwrap().into_iter().map(|c| (c.event, c.device_id)).collect()
    }

    #[test]
    fn first_notice_tells_what_is_off_then_changes_come_batched_and_one_at_a_time() {
        let t = now();
        let profile = Profile::new(Version::V2016);
        let mut s = subscribe(t, view_of(&[(1, Status::On), (2, Status::Off)]));
        let first = s.next_notice(t, 1, profile).unwrap();
        assert_eq!(events(&first), [(CatalogEvent::Off, id(2))]);
        assert_eq!(first.expires, 600);
        let changed = view_of(&[(1, Status::Off), (2, Status::Off), (3, Status::On)]);
        s.view_changed(t);
        s.collect(t + BATCH / 2, &changed, telling(1));
        s.collect(t + BATCH, &changed, telling(1));
        assert!(s.next_notice(t, 2, profile).is_none(), "one NOTIFY at a time");
        s.answered();
        assert_eq!(events(&s.next_notice(t, 2, profile).unwrap()), [(CatalogEvent::Off, id(1))]);
        s.answered();
        assert_eq!(events(&s.next_notice(t, 3, profile).unwrap()), [(CatalogEvent::Add, id(3))]);
        s.answered();
        assert!(s.next_notice(t, 4, profile).is_none());
    }

    #[test]
    fn a_refresh_and_a_new_registration_tell_how_things_stand() {
        let t = now();
        let profile = Profile::new(Version::V2016);
        let mut s = subscribe(t, view_of(&[(1, Status::On), (2, Status::Off)]));
        s.next_notice(t, 1, profile).unwrap();
        s.answered();
        s.refresh(t, 900, telling(9));
        let again = s.next_notice(t, 2, profile).unwrap();
        assert_eq!((events(&again), again.expires), (vec![(CatalogEvent::Off, id(2))], 900));
        s.answered();
        s.restate(telling(9));
        s.restate(telling(9));
        let all = s.next_notice(t, 3, profile).unwrap();
        assert_eq!(events(&all), [(CatalogEvent::On, id(1)), (CatalogEvent::Off, id(2))]);
        s.answered();
        assert!(s.next_notice(t, 4, profile).is_none(), "told once");
    }

    #[test]
    fn a_subscription_to_a_camera_hears_of_that_camera_alone() {
        let t = now();
        let asked = Asked { dialog: dialog(), event: "Catalog".into(), device_id: id(1), expires: 600 };
        let profile = Profile::new(Version::V2016);
        let mut s = Subscription::new(asked, t, view_of(&[(1, Status::On), (2, Status::Off)]), telling(9));
        assert!(events(&s.next_notice(t, 1, profile).unwrap()).is_empty());
        s.answered();
        s.view_changed(t);
        s.collect(t + BATCH, &view_of(&[(1, Status::Off), (2, Status::On)]), telling(9));
        assert_eq!(events(&s.next_notice(t, 2, profile).unwrap()), [(CatalogEvent::Off, id(1))]);
        s.answered();
        s.view_changed(t);
        s.collect(t + BATCH, &view_of(&[(2, Status::Off)]), telling(9));
        assert_eq!(events(&s.next_notice(t, 3, profile).unwrap()), [(CatalogEvent::Del, id(1))]);
    }

    #[test]
    fn flapping_within_a_batch_is_not_told() {
        let t = now();
        let profile = Profile::new(Version::V2016);
        let steady = view_of(&[(1, Status::On)]);
        let mut s = subscribe(t, steady.clone());
        let first = s.next_notice(t, 1, profile).unwrap();
        assert!(events(&first).is_empty(), "a first NOTIFY without news still comes");
        s.answered();
        s.view_changed(t);
        s.view_changed(t);
        s.collect(t + BATCH, &steady, telling(9));
        assert!(s.next_notice(t + BATCH, 2, profile).is_none());
        assert!(s.is_expired(t + Duration::from_secs(600)) && !s.is_expired(t + Duration::from_secs(599)));
    }
}
