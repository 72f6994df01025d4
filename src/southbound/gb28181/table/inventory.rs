//! What a device has: its catalogue asked for, subscribed to, kept, and shown.
//! Standard: [GB/T28181-2022 9.5, 9.11, annex M, annex N].
//! Invariants: a channel keeps its code of ours for ever (the store sees to it); its state is what the device said and
//! whether the device is there, never a stored row; a catalogue that came in part takes nothing away.

use super::messages::Wanted;
use super::*;
use crate::catalog::{Channel, ChannelState, Node};
use crate::proto::gb28181::IdKind;
use crate::proto::gb28181::{Charset, Version};
use crate::proto::manscdp::assembly::{Ending, Outcome};
use crate::proto::manscdp::catalog::item_xml;
use crate::proto::manscdp::request::{AlarmQuery, CatalogQuery};
use crate::proto::manscdp::response::DeviceInfo;
use crate::proto::manscdp::tree::CatalogTree;
use crate::proto::manscdp::{CatalogItem, Element, Query as Question, QueryKind, Status, query};
use crate::proto::sip::dialog::Dialog;
use crate::store::NewItem;

/// A subscription is asked for so long, and renewed at half of it [GB/T28181-2022 9.11.1: default 600 s].
const SUBSCRIBE_FOR: Duration = Duration::from_secs(3600);
/// Of the Event header of catalogue subscriptions: a device has one of ours.
const EVENT_ID: u32 = 1;
/// So long a device may keep the slot of a catalogue query without having begun to answer.
const SLOT: Duration = Duration::from_secs(10);
/// A catalogue that failed is asked for again after this, and later each time.
const RETRY: Duration = Duration::from_secs(60);
/// News that demand the whole catalogue come in bursts.
const SOON: Duration = Duration::from_secs(2);

/// One item of a device's catalogue.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) code: Arc<str>,
    pub(super) playable: bool,
    /// The device says that it is off.
    pub(super) off: bool,
    item: CatalogItem,
    /// The device's identifier of what is above it; `None`: the device itself.
    parent: Option<DeviceId>,
}

/// What we subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    Catalog,
    Alarm,
}

impl Topic {
    pub(super) const ALL: [Topic; 2] = [Topic::Catalog, Topic::Alarm];

    fn question(self) -> Question {
        match self {
            Topic::Catalog => Question::Catalog(CatalogQuery::default()),
            Topic::Alarm => Question::Alarm(AlarmQuery::default()),
        }
    }
}

/// A subscription of ours at a device.
#[derive(Debug, Default)]
struct Subscription {
    /// The device said yes.
    dialog: Option<Box<Dialog>>,
    /// A NOTIFY has come.
    heard: bool,
    /// SUBSCRIBE is out.
    asked: bool,
    /// Tells old timers from new ones.
    round: u32,
}

/// What is known of a device's catalogue.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    items: BTreeMap<DeviceId, Item>,
    /// What it told of itself.
    pub(super) told: DeviceInfo,
    subscriptions: [Subscription; 2],
    /// Tells old timers from new ones.
    round: u32,
    /// A catalogue query is open; another is wanted once it is over.
    asking: bool,
    again: bool,
    /// Catalogue queries in a row that came to nothing.
    failures: u32,
    pub(super) had_at_ms: Option<i64>,
    pub(super) policies: Vec<&'static str>,
    pub(super) failure: String,
    /// The device's own code, once it is shown as a node.
    node: Option<DeviceId>,
}

impl Inventory {
    /// By the device's own identifiers.
    pub(super) fn items(&self) -> impl Iterator<Item = (&DeviceId, &Item)> {
        self.items.iter()
    }

    /// Those that can be played.
    pub(super) fn channels(&self) -> usize {
        self.items.values().filter(|i| i.playable).count()
    }

    pub(super) fn mode(&self) -> &'static str {
        let news = &self.subscriptions[Topic::Catalog as usize];
        match (&news.dialog, news.heard) {
            (None, _) => "polling",
            (Some(_), false) => "subscribed",
            (Some(_), true) => "subscription",
        }
    }

    pub(super) fn unsubscribe(&mut self) {
        for topic in Topic::ALL {
            self.end_subscription(topic);
        }
        self.round += 1;
    }

    fn end_subscription(&mut self, topic: Topic) {
        let subscription = &mut self.subscriptions[topic as usize];
        subscription.dialog = None;
        subscription.heard = false;
        subscription.asked = false;
        subscription.round += 1;
    }

    /// The subscription a NOTIFY belongs to; it works, then.
    pub(super) fn notified(&mut self, request: &Request) -> Option<Topic> {
        let call_id = request.headers.call_id()?;
        let of = |s: &Subscription| s.dialog.as_ref().is_some_and(|dialog| dialog.call_id() == call_id);
        let topic = Topic::ALL.into_iter().find(|t| of(&self.subscriptions[*t as usize]))?;
        self.subscriptions[topic as usize].heard = true;
        Some(topic)
    }

    /// Where something a device names stands: at a channel or node of it, at the device itself, or at its only channel,
    /// where the device is not shown.
    pub(super) fn place_of(&self, own_id: &DeviceId, device: &DeviceId) -> DeviceId {
        let shown = |i: &&Item| i.playable || i.item.device_id.is_code20();
        let named = self.items.get(own_id).filter(shown).map(|i| &i.code);
        let mut channels = self.items.values().filter(|i| i.playable).map(|i| &i.code);
        let only = channels.next().filter(|_| self.node.is_none() && channels.next().is_none());
        named.or(only).and_then(|code| DeviceId::parse(code).ok()).unwrap_or(*device)
    }

    /// True when that is news.
    pub(super) fn set_status(&mut self, own_id: &DeviceId, status: Status) -> bool {
        let off = status == Status::Off;
        match self.items.get_mut(own_id) {
            Some(item) => std::mem::replace(&mut item.off, off) != off,
            None => false,
        }
    }

    /// The node a channel or node stands under.
    fn home(&self, item: &Item) -> Option<Arc<str>> {
        let above = item.parent.and_then(|id| self.items.get(&id)).filter(|above| !above.playable);
        above.map(|above| above.code.clone()).or_else(|| self.node.map(|id| id.as_str().into()))
    }

    /// Everything of it that is no channel.
    pub(super) fn nodes(&self, online: bool) -> Vec<Node> {
        let own = self.node.map(|id| Node {
            id: id.as_str().into(),
            parent: None,
            item: Arc::new(self.own_item(id)),
            online,
        });
        let rest = self.items.values().filter(|i| !i.playable && i.item.device_id.is_code20()).map(|i| Node {
            id: i.code.clone(),
            parent: self.home(i),
            item: Arc::new(recoded(&i.item, &i.code)),
            online: online && !i.off,
        });
        own.into_iter().chain(rest).collect()
    }

    pub(super) fn node_ids(&self) -> Vec<Arc<str>> {
        self.nodes(false).into_iter().map(|node| node.id).collect()
    }

    fn own_item(&self, id: DeviceId) -> CatalogItem {
        let name = self.told.device_name.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| id.to_string());
        let mut item = CatalogItem::new(id, name);
        item.manufacturer = Some(self.told.manufacturer.clone().unwrap_or_else(|| "unknown".into()));
        item.model = Some(self.told.model.clone().unwrap_or_else(|| "unknown".into()));
        item.owner = Some("unknown".into());
        item.parental = Some(true);
        item.register_way = Some(1);
        item.secrecy = Some(false);
        item
    }
}

/// A device's item under our code. What only the device can mean is taken out.
fn recoded(item: &CatalogItem, code: &str) -> CatalogItem {
    let mut item = item.clone();
    if let Ok(id) = DeviceId::parse(code) {
        item.device_id = id;
    }
    item.parent_id = Vec::new();
    item.business_group_id = None;
    let division = |c: &String| matches!(c.len(), 2 | 4 | 6 | 8) && c.bytes().all(|b| b.is_ascii_digit());
    item.civil_code = item.civil_code.filter(division);
    item
}

/// What a catalogue comes to, before the store has given codes.
pub(super) struct Plan {
    items: Vec<Entry>,
    whole: bool,
    policies: Vec<&'static str>,
}

/// An item, what is above it (`None`: the device), and whether it can be played.
type Entry = (DeviceId, CatalogItem, Option<DeviceId>, bool);

/// What to believe of a device's catalogue, parents before children, and what was odd about it.
fn entries(device: DeviceId, items: impl IntoIterator<Item = CatalogItem>) -> (Vec<Entry>, Vec<&'static str>) {
    let mut tree = CatalogTree::build(device, items);
    let channels = tree.channels();
    let playable: HashSet<DeviceId> = channels.iter().map(|c| c.own_id).collect();
    let own = channels.into_iter().find(|c| c.own_id == device).map(|c| (device, c.item, None, true));
    let entry = |item: &CatalogItem| {
        let id = item.device_id;
        (id, item.clone(), tree.parent(&id).filter(|p| *p != device), playable.contains(&id))
    };
    let rest: Vec<Entry> = tree.items().map(entry).collect();
    let odd = tree.policies().iter().map(|(policy, _)| policy.as_str()).collect();
    (own.into_iter().chain(rest).collect(), odd)
}

impl DeviceTable {
    // ---- asking ----

    /// Asks a device who it is and what it has, when its turn comes.
    pub(super) async fn interview(&mut self, id: DeviceId) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        if device.inventory.asking {
            device.inventory.again = true;
            return;
        }
        device.inventory.asking = true;
        self.interviews.push_back(id);
        self.next_interviews().await;
    }

    /// A catalogue query is over; `slot`: it still held its slot.
    pub(super) fn interview_over(&mut self, id: &DeviceId, slot: bool) {
        if let Some(device) = self.devices.get_mut(id) {
            device.inventory.asking = false;
            if std::mem::take(&mut device.inventory.again) {
                self.catalog_after(*id, SOON);
            }
        }
        if slot {
            self.free_slot();
        }
    }

    /// A device that is slow to begin does not keep the others waiting; its query stays open.
    pub(super) async fn slot_overdue(&mut self, device: &DeviceId, sn: u32) {
        let held = |q: &mut super::messages::Query| q.device == *device && std::mem::take(&mut q.slot);
        if self.queries.get_mut(&sn).is_some_and(held) {
            self.free_slot();
        }
    }

    fn free_slot(&mut self) {
        self.interviewing = self.interviewing.saturating_sub(1);
        // The next one is begun from the loop: this is called while others are being answered.
        if !self.interviews.is_empty() {
            self.after(Duration::ZERO, Timer::Interviews);
        }
    }

    pub(super) async fn next_interviews(&mut self) {
        while self.interviewing < INTERVIEWS {
            let Some(id) = self.interviews.pop_front() else { return };
            let Some(device) = self.devices.get_mut(&id) else { continue };
            if device.state != DeviceState::Online {
                device.inventory.asking = false;
                continue;
            }
            device.inventory.round += 1;
            let (flow, profile) = (device.flow, device.profile);
            self.interviewing += 1;
            for (kind, wanted) in [
                (Question::Plain(QueryKind::DeviceInfo), Wanted::DeviceInfo),
                (Question::Catalog(CatalogQuery::default()), Wanted::Catalog),
            ] {
                let sn = self.next_sn();
                let body = query::query(profile, sn, &id, &kind);
                let request = self.message(&flow, &id, body);
                if matches!(wanted, Wanted::Catalog) {
                    self.after(SLOT, Timer::Slot(id, sn));
                }
                self.ask(id, sn, kind.kind().as_str().to_owned(), wanted, request).await;
            }
        }
    }

    /// News that demand the whole catalogue.
    pub(super) fn catalog_soon(&mut self, id: DeviceId) {
        self.catalog_after(id, SOON);
    }

    fn catalog_after(&mut self, id: DeviceId, wait: Duration) {
        if let Some(device) = self.devices.get_mut(&id) {
            device.inventory.round += 1;
            let round = device.inventory.round;
            self.after(wait, Timer::Catalog(id, round));
        }
    }

    pub(super) async fn catalog_due(&mut self, id: DeviceId, round: u32) {
        if self.devices.get(&id).is_some_and(|d| d.inventory.round == round) {
            self.interview(id).await;
        }
    }

    pub(super) fn catalog_failed(&mut self, id: DeviceId, why: String) {
        tracing::warn!(device = %id, reason = %why, "no catalogue");
        if let Some(device) = self.devices.get_mut(&id) {
            device.inventory.failure = why;
            device.inventory.failures += 1;
            let wait = RETRY * 2u32.saturating_pow(device.inventory.failures.min(10) - 1);
            let wait = wait.min(device.class.catalog_interval.max(RETRY));
            self.catalog_after(id, wait);
        }
    }

    // ---- the answer ----

    pub(super) async fn catalog_came(&mut self, id: DeviceId, outcome: Outcome<CatalogItem>) {
        let policies: Vec<&'static str> = outcome.policies.iter().map(|(policy, _)| policy.as_str()).collect();
        for policy in &policies {
            if let Some(device) = self.devices.get(&id) {
                self.deps.metrics.device_policy(&device.label, policy);
            }
        }
        if outcome.ending == Ending::Nothing {
            return self.catalog_failed(id, "the device did not answer the catalogue query".into());
        }
        let whole = matches!(outcome.ending, Ending::Complete | Ending::Uncounted);
        if !whole {
            tracing::warn!(device = %id, items = outcome.items.len(), expected = outcome.expected,
                "the catalogue came in part: what was known before stays");
        }
        let (items, odd) = entries(id, outcome.items);
        let all = policies.into_iter().chain(odd).collect();
        self.keep(id, Plan { items, whole, policies: all });
    }

    /// Has the store give codes.
    fn keep(&mut self, id: DeviceId, plan: Plan) {
        let stored = Profile::new(Version::V2022).with_charset(Charset::Utf8);
        let (prefix, network) = self.cfg.mint.clone();
        let items: Vec<NewItem> = plan
            .items
            .iter()
            .map(|(own_id, item, _, playable)| NewItem {
                own_id: own_id.to_string(),
                wish: own_id.is_code20().then(|| own_id.to_string()),
                type_code: if *playable { 132 } else { own_id.type_code().unwrap_or(216) },
                item: item_xml(item, stored),
            })
            .collect();
        // A device's own code is its own, and no item of another's may take it.
        let (devices, configured) = (&self.devices, &self.cfg.reserved);
        let reserved = self.reserved.get_or_insert_with(|| {
            Arc::new(configured.iter().cloned().chain(devices.keys().map(ToString::to_string)).collect())
        });
        let reserved = Arc::clone(reserved);
        let (store, at) = (self.deps.store.clone(), self.now_ms());
        let whole = plan.whole;
        self.jobs.spawn(async move {
            let codes = store.keep_items(id.as_str(), items, reserved, (prefix, network), whole, at).await;
            Job::Kept { device: id, plan: Box::new(plan), codes }
        });
    }

    pub(super) async fn catalog_kept(&mut self, id: DeviceId, plan: Plan, codes: Result<Vec<String>, StoreError>) {
        let codes = match codes {
            Ok(codes) => codes,
            Err(e) => return self.catalog_failed(id, format!("its channels could not be given codes: {e}")),
        };
        let ms = self.now_ms();
        let Some(device) = self.devices.get_mut(&id) else { return };
        device.inventory.failures = 0;
        let before: Vec<(Arc<str>, bool)> =
            device.inventory.items.values().map(|i| (i.code.clone(), i.playable)).collect();
        if plan.whole {
            device.inventory.items.clear();
        }
        let found = plan.items.len();
        for ((own_id, item, parent, playable), code) in plan.items.into_iter().zip(codes) {
            let off = item.status == Some(Status::Off);
            device.inventory.items.insert(own_id, Item { code: code.into(), playable, off, item, parent });
        }
        device.inventory.had_at_ms = Some(ms);
        device.inventory.policies = plan.policies;
        device.inventory.failure = if plan.whole { String::new() } else { "it came in part".to_owned() };
        let channels = device.inventory.channels();
        tracing::info!(device = %id, items = found, channels, whole = plan.whole, odd = ?device.inventory.policies,
            "catalogue of a device");
        // What turned from a channel into a folder, or back, leaves its old place too.
        let now: HashSet<(Arc<str>, bool)> =
            device.inventory.items.values().map(|i| (i.code.clone(), i.playable)).collect();
        let (class, online) = (device.class.clone(), device.state == DeviceState::Online);
        for (code, playable) in before.into_iter().filter(|was| !now.contains(was)) {
            self.channels.remove(&code);
            if playable {
                self.deps.directory.remove(code).await;
            } else {
                self.deps.directory.nodes(Vec::new(), vec![code]).await;
            }
        }
        self.publish(&id).await;
        self.tell_states(&id, None).await;
        if online {
            self.catalog_after(id, if plan.whole { class.catalog_interval } else { RETRY });
            let topics = [(Topic::Catalog, class.catalog_subscribe), (Topic::Alarm, class.alarm_subscribe)];
            for (topic, _) in topics.into_iter().filter(|(_, wanted)| *wanted) {
                let there = |d: &Device| {
                    let subscription = &d.inventory.subscriptions[topic as usize];
                    subscription.dialog.is_some() || subscription.asked
                };
                if !self.devices.get(&id).is_some_and(there) {
                    self.subscribe(id, topic).await;
                }
            }
        }
    }

    /// What the store knows from before: shown at once, with nothing known of its state.
    pub(super) async fn restore_items(&mut self) {
        let rows = match self.deps.store.items().await {
            Ok(rows) => rows,
            Err(e) => return tracing::warn!(error = %e, "catalogues of before are not known"),
        };
        let mut by_device: BTreeMap<DeviceId, Vec<(CatalogItem, DeviceId, String)>> = BTreeMap::new();
        for row in rows {
            let (Ok(device), Ok(own_id)) = (DeviceId::parse(&row.device), DeviceId::parse(&row.own_id)) else {
                continue;
            };
            let Some(item) =
                Element::parse(row.item.as_bytes(), Some(Charset::Utf8)).ok().and_then(|e| CatalogItem::read(&e))
            else {
                continue;
            };
            by_device.entry(device).or_default().push((item, own_id, row.code));
        }
        for (id, rows) in by_device {
            if self.class_of(&id).is_none() {
                continue;
            }
            self.known_device(id);
            let codes: HashMap<DeviceId, String> =
                rows.iter().map(|(_, own_id, code)| (*own_id, code.clone())).collect();
            let (items, _) = entries(id, rows.into_iter().map(|(item, _, _)| item));
            let Some(device) = self.devices.get_mut(&id) else { continue };
            for (own_id, item, parent, playable) in items {
                let Some(code) = codes.get(&own_id) else { continue };
                let item = Item { code: code.as_str().into(), playable, off: false, item, parent };
                device.inventory.items.insert(own_id, item);
            }
            self.publish(&id).await;
        }
    }

    /// Puts a device's channels and nodes into the directory; those that are there keep their state.
    pub(super) async fn publish(&mut self, id: &DeviceId) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let inventory = &mut device.inventory;
        // A camera that is its own only channel needs no folder above it.
        let alone = inventory.items.len() == 1;
        let group = matches!(id.kind(), IdKind::BusinessGroup | IdKind::VirtualOrganisation);
        // Nor one whose code a channel has.
        let taken = self.cfg.reserved.iter().any(|code| code == id.as_str())
            || inventory.items.values().any(|i| i.playable && *i.code == *id.as_str())
            || self.channels.get(id.as_str()).is_some_and(|(device, _)| device != id);
        let shown = id.is_code20() && !alone && !group && !taken;
        inventory.node = (shown && inventory.channels() > 0).then_some(*id);
        let area: Option<Arc<str>> = device.class.area.as_deref().map(Into::into);
        let mut channels = Vec::new();
        for (own_id, item) in &inventory.items {
            self.channels.insert(item.code.clone(), (*id, *own_id));
            if !item.playable {
                continue;
            }
            let mut shown = recoded(&item.item, &item.code);
            let unknown = |told: &Option<String>| Some(told.clone().unwrap_or_else(|| "unknown".into()));
            shown.manufacturer = shown.manufacturer.or_else(|| unknown(&inventory.told.manufacturer));
            shown.model = shown.model.or_else(|| unknown(&inventory.told.model));
            shown.owner.get_or_insert_with(|| "unknown".into());
            shown.parental = Some(false);
            shown.register_way.get_or_insert(1);
            shown.secrecy.get_or_insert(false);
            let address = if shown.name.is_empty() { item.code.to_string() } else { shown.name.clone() };
            shown.address.get_or_insert(address);
            if shown.name.is_empty() {
                shown.name = item.code.to_string();
            }
            let streams =
                shown.info.stream_number_list.as_deref().map_or(1, |list| list.split('/').count().clamp(1, 8));
            channels.push(Channel {
                id: item.code.clone(),
                area: area.clone(),
                parent: inventory.home(item),
                item: Arc::new(shown),
                streams: streams as u8,
                source: self.source.clone(),
                commands: Some(self.command_handle.clone()),
                state: ChannelState::unknown(),
                kind: "gb28181",
            });
        }
        let nodes = device.inventory.nodes(device.state == DeviceState::Online);
        let gone = if device.inventory.node.is_none() { vec![id.as_str().into()] } else { Vec::new() };
        self.deps.directory.nodes(nodes, gone).await;
        self.deps.directory.put_all(channels).await;
    }

    // ---- subscription ----

    /// Subscribes, or renews. A device that refuses is polled.
    async fn subscribe(&mut self, id: DeviceId, topic: Topic) {
        let Some(device) = self.devices.get_mut(&id) else { return };
        let (flow, profile) = (device.flow, device.profile);
        let dialog = device.inventory.subscriptions[topic as usize].dialog.as_mut();
        let renewed = dialog.map(|dialog| dialog.request("SUBSCRIBE"));
        let sn = self.next_sn();
        let body = query::query(profile, sn, &id, &topic.question());
        let mut request = match renewed {
            Some(request) => request,
            None => self.request(&flow, "SUBSCRIBE", &id),
        };
        let event = match topic {
            // One id for all of a subscription's life.
            Topic::Catalog => profile.catalog_event(EVENT_ID),
            Topic::Alarm => "presence".to_owned(),
        };
        request.headers.push("Event", event);
        request.headers.push("Contact", self.contact(&flow));
        request.headers.push("Expires", SUBSCRIBE_FOR.as_secs().to_string());
        request.headers.push("Content-Type", "Application/MANSCDP+xml");
        request.body = body.into();
        let pending = Pending::Subscribe { device: id, topic, request: Box::new(request.clone()) };
        if self.send(flow, request, pending).await.is_err() {
            return self.subscription_failed(id, topic, 0);
        }
        if let Some(device) = self.devices.get_mut(&id) {
            device.inventory.subscriptions[topic as usize].asked = true;
        }
    }

    pub(super) fn on_subscribed(
        &mut self,
        id: DeviceId,
        topic: Topic,
        request: &Request,
        response: &Response,
        flow: Flow,
    ) {
        if response.status >= 300 {
            return self.subscription_failed(id, topic, response.status);
        }
        let Some(device) = self.devices.get_mut(&id) else { return };
        let granted = response.headers.expires().map_or(SUBSCRIBE_FOR, |s| Duration::from_secs(u64::from(s)));
        let subscription = &mut device.inventory.subscriptions[topic as usize];
        subscription.asked = false;
        if subscription.dialog.is_none() {
            match Dialog::uac(request, response, flow) {
                Ok(dialog) => subscription.dialog = Some(Box::new(dialog)),
                Err(_) => return self.subscription_failed(id, topic, response.status),
            }
        }
        subscription.round += 1;
        let round = subscription.round;
        self.after(granted.clamp(Duration::from_secs(30), SUBSCRIBE_FOR) / 2, Timer::Subscription(id, topic, round));
    }

    pub(super) fn subscription_failed(&mut self, id: DeviceId, topic: Topic, status: u16) {
        if let Some(device) = self.devices.get_mut(&id) {
            tracing::info!(device = %id, ?topic, status, "no subscription: its catalogue is polled, alarms come by MESSAGE");
            device.inventory.end_subscription(topic);
            // One that was ended is asked for again; one that is refused with the next catalogue.
            if status == 0 {
                let round = device.inventory.subscriptions[topic as usize].round;
                self.after(RETRY, Timer::Subscription(id, topic, round));
            }
        }
    }

    pub(super) async fn subscription_due(&mut self, id: DeviceId, topic: Topic, round: u32) {
        if self.devices.get(&id).is_some_and(|d| d.inventory.subscriptions[topic as usize].round == round) {
            self.subscribe(id, topic).await;
        }
    }
}
