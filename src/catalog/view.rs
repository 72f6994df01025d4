//! What one upper platform sees: the items of its catalogue, in order, and what changed between two moments.
//! Standard: [GB/T28181-2022 annex J, annex N], [GB/T28181-2016 annexes O, P].
//! In: a directory snapshot and the uplink's sharing. Out: [`View`]. Pure: the console shows exactly this value.
//! Invariants: parents come before children; a channel that is not shared is in no answer, no count, no notice.
//! Tree: our system (type 200) is the root; with `groups` there is one business group (215) for the compound and a
//! virtual organisation (216) for each area that has a shared channel; without such areas there is no group. A channel of a
//! device stands below its device (or its place in a lower platform's tree), unless it is shown in an area.

use super::directory::{Channel, DirectorySnapshot};
use crate::proto::gb28181::{DeviceId, IdKind, Version};
use crate::proto::manscdp::{CatalogChange, CatalogEvent, CatalogItem, Status};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A part of what is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// Every channel.
    All,
    /// The channels of an area.
    Area(String),
    /// One channel.
    Channel(String),
}

/// How an uplink sees us.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewSpec {
    /// Our code towards it.
    pub local_id: DeviceId,
    /// Our name.
    pub name: String,
    /// Civil code of the gateway, the default of its channels.
    pub civil_code: String,
    /// What it sees.
    pub share: Vec<Share>,
    /// Areas as business group and virtual organisations.
    pub groups: bool,
    /// ParentID with system and virtual organisation, not one of them.
    pub multi_parent: bool,
    /// Editions before 2016 know no business groups.
    pub version: Version,
}

impl ViewSpec {
    /// True when this uplink may see the channel.
    pub fn shares(&self, channel: &Channel) -> bool {
        self.share.iter().any(|s| match s {
            Share::All => true,
            Share::Area(area) => channel.area.as_deref() == Some(area),
            Share::Channel(id) => *channel.id == **id,
        })
    }

    fn has_groups(&self) -> bool {
        self.groups && self.version >= Version::V2011Amd
    }
}

/// All an uplink sees, parents first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct View {
    items: Vec<CatalogItem>,
    index: HashMap<DeviceId, usize>,
}

impl View {
    /// In catalogue order.
    pub fn items(&self) -> &[CatalogItem] {
        &self.items
    }

    /// One item.
    pub fn get(&self, id: &DeviceId) -> Option<&CatalogItem> {
        self.index.get(id).map(|i| &self.items[*i])
    }

    /// The shared camera channels.
    pub fn devices(&self) -> impl Iterator<Item = &CatalogItem> {
        self.items.iter().filter(|i| matches!(i.device_id.kind(), IdKind::FrontEnd | IdKind::Peripheral))
    }

    /// What a query for `id` answers [GB/T28181-2022 annex J]: a system: everything; a division: what is in it; a group
    /// or organisation: it and what is below; a device: itself. Unknown: nothing.
    pub fn select(&self, id: &DeviceId, local: &DeviceId) -> Vec<&CatalogItem> {
        if id == local {
            return self.items.iter().collect();
        }
        match id.kind() {
            IdKind::Division => self
                .items
                .iter()
                .filter(|i| {
                    i.device_id != *local && i.civil_code.as_deref().is_some_and(|c| c.starts_with(id.as_str()))
                })
                .collect(),
            IdKind::BusinessGroup => {
                self.items.iter().filter(|i| i.device_id == *id || i.business_group_id == Some(*id)).collect()
            }
            _ => self.items.iter().filter(|i| i.device_id == *id || i.parent_id.contains(id)).collect(),
        }
    }

    fn push(&mut self, item: CatalogItem) {
        self.index.insert(item.device_id, self.items.len());
        self.items.push(item);
    }
}

/// Builds the view.
pub fn view(snapshot: &DirectorySnapshot, spec: &ViewSpec) -> View {
    let mut out = View::default();
    let mut root = CatalogItem::new(spec.local_id, spec.name.clone());
    root.manufacturer = Some("Menshen".into());
    root.model = Some("Menshen".into());
    root.owner = Some(spec.name.clone());
    root.address = Some(spec.name.clone());
    root.civil_code = Some(spec.civil_code.clone());
    root.status = Some(Status::On);
    root.parental = Some(true);
    out.push(root);

    let shared: Vec<&Channel> = snapshot.channels.values().filter(|c| spec.shares(c)).collect();
    let group = snapshot.group.as_deref().filter(|_| spec.has_groups()).and_then(|g| DeviceId::parse(g).ok());
    let used: HashSet<&str> = shared.iter().filter_map(|c| c.area.as_deref()).collect();
    let areas = snapshot.areas.iter().filter(|a| used.contains(&*a.id));
    let areas: Vec<_> = areas.filter_map(|a| Some((a, DeviceId::parse(&a.code).ok()?))).collect();
    // A group without organisations would be an empty folder.
    let group = group.filter(|_| !areas.is_empty());
    let mut organisations: HashMap<&str, DeviceId> = HashMap::new();
    if let Some(group) = group {
        let mut item = CatalogItem::new(group, snapshot.group_name.clone());
        item.civil_code = Some(spec.civil_code.clone());
        item.parent_id = vec![spec.local_id];
        out.push(item);
        for (area, code) in areas {
            organisations.insert(&area.id, code);
            let mut item = CatalogItem::new(code, area.name.clone());
            item.civil_code = Some(spec.civil_code.clone());
            // No ParentID: its parent is the business group itself [GB/T28181-2022 annex J].
            item.business_group_id = Some(group);
            out.push(item);
        }
    }
    let mut placed: HashSet<&str> = HashSet::new();
    for channel in shared {
        let mut item: CatalogItem = CatalogItem::clone(&channel.item);
        let organisation = channel.area.as_deref().and_then(|a| organisations.get(a).copied());
        let home = match organisation {
            Some(_) if !spec.multi_parent => None,
            _ => place(&mut out, snapshot, spec, channel.parent.as_deref(), &mut placed),
        };
        item.parent_id = match organisation {
            Some(o) if spec.multi_parent => vec![home.unwrap_or(spec.local_id), o],
            Some(o) => vec![o],
            None => vec![home.unwrap_or(spec.local_id)],
        };
        item.business_group_id = organisation.and(group);
        item.civil_code.get_or_insert_with(|| spec.civil_code.clone());
        item.status = Some(if channel.state.online == Some(true) { Status::On } else { Status::Off });
        out.push(item);
    }
    out
}

/// Nodes above a channel, at most: deeper trees are cut.
const MAX_DEPTH: usize = 16;

/// Puts the nodes from the root down to `id` into the view, those that are not there yet. Tells the code of `id`.
fn place<'a>(
    out: &mut View,
    snapshot: &'a DirectorySnapshot,
    spec: &ViewSpec,
    id: Option<&'a str>,
    placed: &mut HashSet<&'a str>,
) -> Option<DeviceId> {
    let mut chain = Vec::new();
    let mut next = id;
    while let Some(node) = next.and_then(|id| snapshot.nodes.get(id)) {
        if chain.len() >= MAX_DEPTH {
            break;
        }
        // Platforms before 2016 know no groups: what is in one is shown above it.
        let group = matches!(node.item.device_id.kind(), IdKind::BusinessGroup | IdKind::VirtualOrganisation);
        if !group || spec.version >= Version::V2011Amd {
            chain.push(node);
        }
        next = node.parent.as_deref();
    }
    let mut parent = spec.local_id;
    let mut group = None;
    for node in chain.iter().rev() {
        let code = node.item.device_id;
        if code.kind() == IdKind::BusinessGroup {
            group = Some(code);
        }
        if placed.insert(&node.id) {
            let mut item = CatalogItem::clone(&node.item);
            let organisation = code.kind() == IdKind::VirtualOrganisation;
            item.business_group_id = group.filter(|_| organisation);
            // The topmost organisation's parent is the business group itself [GB/T28181-2022 annex J].
            item.parent_id = if organisation && group == Some(parent) { Vec::new() } else { vec![parent] };
            item.civil_code.get_or_insert_with(|| spec.civil_code.clone());
            if !matches!(code.kind(), IdKind::BusinessGroup | IdKind::VirtualOrganisation) {
                item.status = Some(if node.online { Status::On } else { Status::Off });
                item.parental = Some(true);
            }
            out.push(item);
        }
        parent = code;
    }
    (!chain.is_empty()).then_some(parent)
}

/// What a subscriber must be told to get from one view to the other.
pub fn changes(old: &View, new: &View) -> Vec<CatalogChange> {
    let mut out = Vec::new();
    for item in &new.items {
        match old.get(&item.device_id) {
            None => out.push(CatalogChange::of(CatalogEvent::Add, item.clone())),
            Some(before) if before == item => {}
            Some(before) => {
                let same_but_status = {
                    let mut b = before.clone();
                    b.status = item.status;
                    b == *item
                };
                if same_but_status {
                    let event = if item.status == Some(Status::On) { CatalogEvent::On } else { CatalogEvent::Off };
                    out.push(CatalogChange::of(event, item.clone()));
                } else {
                    out.push(CatalogChange::of(CatalogEvent::Update, item.clone()));
                }
            }
        }
    }
    // Children before parents when they go.
    for item in old.items.iter().rev() {
        if new.get(&item.device_id).is_none() {
            out.push(CatalogChange::of(CatalogEvent::Del, item.clone()));
        }
    }
    out
}

/// The shared channel with this id.
pub fn shared_channel(snapshot: &DirectorySnapshot, spec: &ViewSpec, id: &DeviceId) -> Result<Arc<Channel>, NotShared> {
    match snapshot.channels.get(id.as_str()) {
        Some(channel) if spec.shares(channel) => Ok(Arc::new(channel.clone())),
        _ => Err(NotShared),
    }
}

/// Unknown and unshared look the same from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotShared;

#[cfg(test)]
mod tests {
    use super::super::directory::{Area, ChannelState};
    use super::*;
    use crate::media::SourceHandle;
    use tokio::sync::mpsc;

    fn channel(id: &str, area: Option<&str>, online: bool) -> Channel {
        let (tx, _rx) = mpsc::channel(1);
        Channel {
            id: id.into(),
            area: area.map(Into::into),
            parent: None,
            item: Arc::new(CatalogItem::new(DeviceId::parse(id).unwrap(), "c")),
            streams: 1,
            source: SourceHandle::new(tx),
            state: ChannelState { online: Some(online), ..ChannelState::unknown() },
            commands: None,
            kind: "rtsp",
        }
    }

    const A: &str = "41130000581320000001";
    const B: &str = "41130000581320000002";
    const LOCAL: &str = "41130000582000000001";
    const GROUP: &str = "41130000582150000001";
    const GATE: &str = "41130000582160000001";

    fn snapshot() -> DirectorySnapshot {
        let mut s = DirectorySnapshot::default();
        for c in [channel(A, Some("gate"), true), channel(B, None, false)] {
            s.channels.insert(c.id.clone(), c);
        }
        s.areas = vec![
            Area { id: "gate".into(), name: "东门".into(), code: GATE.into() },
            Area { id: "hall".into(), name: "大厅".into(), code: "41130000582160000002".into() },
        ];
        s.group = Some(GROUP.into());
        s.group_name = "大院".into();
        s
    }

    fn spec() -> ViewSpec {
        ViewSpec {
            local_id: DeviceId::parse(LOCAL).unwrap(),
            name: "大院".into(),
            civil_code: "411300".into(),
            share: vec![Share::All],
            groups: true,
            multi_parent: false,
            version: Version::V2016,
        }
    }

    fn ids(items: &[&CatalogItem]) -> Vec<String> {
        items.iter().map(|i| i.device_id.to_string()).collect()
    }

    #[test]
    fn tree_has_groups_organisations_and_channels_parents_first() {
        let v = view(&snapshot(), &spec());
        let all: Vec<_> = v.items().iter().collect();
        assert_eq!(ids(&all), [LOCAL, GROUP, GATE, A, B]);
        let a = v.get(&DeviceId::parse(A).unwrap()).unwrap();
        assert_eq!(a.parent_id, vec![DeviceId::parse(GATE).unwrap()]);
        assert_eq!(a.status, Some(Status::On));
        let b = v.get(&DeviceId::parse(B).unwrap()).unwrap();
        assert_eq!((b.parent_id[0].as_str(), b.status), (LOCAL, Some(Status::Off)));
        let org = v.get(&DeviceId::parse(GATE).unwrap()).unwrap();
        assert!(org.parent_id.is_empty() && org.business_group_id.is_some());
        let flat = view(&snapshot(), &ViewSpec { groups: false, ..spec() });
        assert_eq!(flat.items().len(), 3);
        let old = view(&snapshot(), &ViewSpec { version: Version::V2011, ..spec() });
        assert_eq!(old.items().len(), 3, "2011 knows no groups");
    }

    #[test]
    fn sharing_hides_everything_else() {
        for share in [Share::Area("gate".into()), Share::Channel(A.into())] {
            let v = view(&snapshot(), &ViewSpec { share: vec![share], ..spec() });
            assert!(v.get(&DeviceId::parse(B).unwrap()).is_none());
            assert_eq!(v.devices().count(), 1);
        }
        let v = view(&snapshot(), &ViewSpec { share: vec![], ..spec() });
        assert_eq!(v.items().len(), 1, "the system alone");
    }

    #[test]
    fn a_devices_tree_stands_above_its_channels_and_only_there() {
        use super::super::directory::Node;
        let mut s = snapshot();
        let node = |id: &str, parent: Option<&str>| Node {
            id: id.into(),
            parent: parent.map(Into::into),
            item: Arc::new(CatalogItem::new(DeviceId::parse(id).unwrap(), "n")),
            online: true,
        };
        const PLATFORM: &str = "41130000002000000007";
        const THEIR_GROUP: &str = "41130000002150000007";
        const THEIR_ORG: &str = "41130000002160000007";
        const NVR: &str = "41130000001180000001";
        for n in [
            node(PLATFORM, None),
            node(THEIR_GROUP, Some(PLATFORM)),
            node(THEIR_ORG, Some(THEIR_GROUP)),
            node(NVR, Some(THEIR_ORG)),
            node("41130000001180000002", None),
        ] {
            s.nodes.insert(n.id.clone(), Arc::new(n));
        }
        for (n, area) in [(5, None), (6, None), (7, Some("gate"))] {
            let mut c = channel(&format!("4113000058132000000{n}"), area, true);
            c.parent = Some(NVR.into());
            s.channels.insert(c.id.clone(), c);
        }
        let v = view(&s, &spec());
        let parents = |v: &View, id: &str| -> Vec<String> {
            v.get(&DeviceId::parse(id).unwrap()).unwrap().parent_id.iter().map(|p| p.to_string()).collect()
        };
        let (five, seven) = ("41130000581320000005", "41130000581320000007");
        assert_eq!(parents(&v, five), [NVR]);
        assert_eq!((parents(&v, NVR), parents(&v, PLATFORM)), (vec![THEIR_ORG.to_owned()], vec![LOCAL.to_owned()]));
        let org = v.get(&DeviceId::parse(THEIR_ORG).unwrap()).unwrap();
        assert!(org.parent_id.is_empty() && org.business_group_id.unwrap().as_str() == THEIR_GROUP);
        assert_eq!(parents(&v, seven), [GATE], "shown in its area");
        assert!(v.get(&DeviceId::parse("41130000001180000002").unwrap()).is_none(), "a device without channels");
        let order: Vec<_> = v.items().iter().map(|i| i.device_id.to_string()).collect();
        let at = |id: &str| order.iter().position(|o| o == id).unwrap();
        assert!(at(PLATFORM) < at(THEIR_GROUP) && at(THEIR_GROUP) < at(THEIR_ORG) && at(NVR) < at(five));
        let both = view(&s, &ViewSpec { multi_parent: true, ..spec() });
        assert_eq!(parents(&both, seven), [NVR, GATE]);
        let old = view(&s, &ViewSpec { version: Version::V2011, ..spec() });
        assert_eq!(parents(&old, NVR), [PLATFORM]);
    }

    #[test]
    fn queries_select_by_kind_of_id() {
        let v = view(&snapshot(), &spec());
        let local = DeviceId::parse(LOCAL).unwrap();
        let select = |id: &str| ids(&v.select(&DeviceId::parse(id).unwrap(), &local));
        assert_eq!(select(LOCAL).len(), 5);
        assert_eq!(select(A), [A]);
        assert_eq!(select(GROUP), [GROUP, GATE, A]);
        assert_eq!(select(GATE), [GATE, A]);
        assert_eq!(select("4113"), [GROUP, GATE, A, B]);
        assert!(select("3402").is_empty() && select("41130000581320000009").is_empty());
    }

    #[test]
    fn changes_name_events() {
        let mut s = snapshot();
        let before = view(&s, &spec());
        let gone: Arc<str> = B.into();
        s.channels.remove(&gone);
        let c = channel("41130000581320000003", None, true);
        s.channels.insert(c.id.clone(), c);
        let a: Arc<str> = A.into();
        s.channels.get_mut(&a).unwrap().state.online = Some(false);
        let after = view(&s, &spec());
        let list: Vec<_> = changes(&before, &after).iter().map(|c| (c.event, c.device_id.to_string())).collect();
        assert_eq!(
            list,
            [
                (CatalogEvent::Off, A.to_string()),
                (CatalogEvent::Add, "41130000581320000003".to_string()),
                (CatalogEvent::Del, B.to_string())
            ]
        );
        assert!(changes(&after, &after).is_empty());
    }
}
