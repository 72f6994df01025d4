//! The catalogue of one device as a sound tree, and the channels in it that can be played.
//! Standard: [GB/T28181-2022 E.1, annex J], [GB/T28181-2016 annex O] for who is whose parent.
//! In: the items of a catalogue, in any state. Out: `CatalogTree`, `ChannelPlan`s.
//! Invariants: every item is reached from the root on one path of at most `MAX_DEPTH`; the result does not depend on
//! the order of the items (but for duplicates: the last counts); nothing recurses on what a peer sent.
//! Deviations lived with: the device lists itself, parents unknown, in a circle, several, none; groups that disagree.
//! Not here: reading items (`catalog`), channel ids of our own, whether a channel really plays.

use super::catalog::CatalogItem;
use super::policy::{CatalogPolicy, Policies};
use crate::proto::gb28181::{DeviceId, IdKind};
use std::collections::BTreeMap;

/// Most items of a tree, as many as an answer holds.
pub const MAX_ITEMS: usize = 20_000;
/// Deepest place of an item. Four levels of divisions, a group, and organisations within organisations.
pub const MAX_DEPTH: usize = 24;

/// Why an item counts as a channel, the strongest first. [GB/T28181-2022 A.2.1, E.1]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Evidence {
    /// It has a field that only a picture has: PTZType, Resolution, EncodeType and the like.
    VideoFields,
    /// A camera by its type (131, 132), with nothing under it, that does not claim to have anything.
    CameraLeaf,
    /// A camera that claims children nobody listed, or a device of an open type that claims none: worth a try.
    Doubtful,
}

/// A channel to be offered.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelPlan {
    /// Its id at the device.
    pub own_id: DeviceId,
    /// Its name; the id where it has none.
    pub name: String,
    /// What it lies in, outermost first; without the device itself.
    pub chain: Vec<DeviceId>,
    /// The virtual organisation it is in, or the business group.
    pub group: Option<DeviceId>,
    /// Why it counts as a channel.
    pub evidence: Evidence,
    /// All the device says of it; BusinessGroupID is made true.
    pub item: CatalogItem,
}

/// A place in the tree.
#[derive(Debug, Clone, PartialEq)]
struct Node {
    item: CatalogItem,
    /// `None`: the device.
    parent: Option<usize>,
    /// The organisation or group it is in.
    group: Option<usize>,
    children: Vec<usize>,
    /// 1 directly under the device.
    depth: usize,
}

/// The items of a device, each with one parent.
#[derive(Debug, Clone, PartialEq)]
pub struct CatalogTree {
    root: DeviceId,
    own: Option<Box<CatalogItem>>,
    nodes: Vec<Node>,
    index: BTreeMap<DeviceId, usize>,
    top: Vec<usize>,
    /// Parents before their children.
    order: Vec<usize>,
    policies: Policies,
}

impl CatalogTree {
    /// Builds the tree of the device `root`.
    pub fn build(root: DeviceId, items: impl IntoIterator<Item = CatalogItem>) -> Self {
        let mut policies = Policies::default();
        let mut own = None;
        let mut by_id: BTreeMap<DeviceId, CatalogItem> = BTreeMap::new();
        for item in items {
            if item.device_id == root {
                policies.note(CatalogPolicy::OwnItem);
                own = Some(Box::new(item));
            } else if by_id.len() >= MAX_ITEMS && !by_id.contains_key(&item.device_id) {
                policies.note(CatalogPolicy::OverLimit);
            } else if by_id.insert(item.device_id, item).is_some() {
                policies.note(CatalogPolicy::DuplicateId);
            }
        }
        // in order of ids: the smallest index is the smallest id
        let index: BTreeMap<DeviceId, usize> = by_id.keys().enumerate().map(|(at, id)| (*id, at)).collect();
        let node = |item| Node { item, parent: None, group: None, children: Vec::new(), depth: 0 };
        let nodes = by_id.into_values().map(node).collect();
        let mut tree = Self { root, own, nodes, index, top: Vec::new(), order: Vec::new(), policies };
        tree.choose_parents();
        tree.open_loops();
        tree.hang();
        tree.settle_groups();
        tree
    }

    fn choose_parents(&mut self) {
        for at in 0..self.nodes.len() {
            let (parent, group) = self.parent_of(at);
            self.nodes[at].parent = parent;
            self.nodes[at].group = group;
        }
    }

    /// The parent of a node and the group it names.
    fn parent_of(&mut self, at: usize) -> (Option<usize>, Option<usize>) {
        let item = &self.nodes[at].item;
        let kind = item.device_id.kind();
        if kind == IdKind::Division {
            // divisions are each other's parents by their digits
            return (self.division(item.device_id.as_str(), Some(at)), None);
        }
        let known = |id: &DeviceId| self.index.get(id).copied().filter(|p| *p != at);
        let kind_at = |p: usize| self.nodes[p].item.device_id.kind();
        let is_group = |p: &usize| matches!(kind_at(*p), IdKind::BusinessGroup | IdKind::VirtualOrganisation);
        let candidates: Vec<usize> = item.parent_id.iter().filter_map(known).collect();
        let business_group = item.business_group_id.as_ref().and_then(known).filter(is_group);
        // an organisation lies nearer than the business group, and of two the last that is named
        let group =
            candidates.iter().copied().filter(is_group).max_by_key(|p| kind_at(*p) == IdKind::VirtualOrganisation);
        let group = group.or(business_group).filter(|_| kind != IdKind::Platform && kind != IdKind::BusinessGroup);
        // the nearest kind of thing to lie in: a device, then an organisation, a division, a platform
        let nearness = |p: &usize| match kind_at(*p) {
            IdKind::FrontEnd | IdKind::Peripheral => 5,
            IdKind::VirtualOrganisation => 4,
            IdKind::BusinessGroup => 3,
            IdKind::Division => 2,
            IdKind::Platform => 0,
            _ => 1,
        };
        // the last of equals, as the other readers of such lists have it
        let mut parent = candidates.into_iter().max_by_key(nearness);
        let root_named = item.parent_id.contains(&self.root);
        // an organisation directly under its business group names no parent, or the platform
        let by_group = match kind {
            IdKind::VirtualOrganisation => parent.is_none_or(|p| kind_at(p) == IdKind::Platform),
            IdKind::BusinessGroup | IdKind::Platform => false,
            _ => parent.is_none() && !root_named,
        };
        if by_group {
            parent = business_group.or(parent);
        }
        let unknown = parent.is_none() && !item.parent_id.is_empty() && !root_named;
        if parent.is_none() && kind != IdKind::BusinessGroup {
            let code = item.civil_code.as_deref().or(item.device_id.civil_code()).unwrap_or("");
            parent = self.division(code, Some(at));
        }
        self.policies.note_if(unknown, CatalogPolicy::UnknownParent);
        (parent, group)
    }

    /// The listed division of the longest code that `code` begins with.
    fn division(&self, code: &str, but: Option<usize>) -> Option<usize> {
        [8, 6, 4, 2].into_iter().find_map(|digits| {
            let id = DeviceId::parse(code.get(..digits)?).ok()?;
            self.index.get(&id).copied().filter(|at| Some(*at) != but)
        })
    }

    /// Cuts each circle of parents at its smallest id.
    fn open_loops(&mut self) {
        // 0 not seen, otherwise the number of the walk that saw it
        let mut seen = vec![0usize; self.nodes.len()];
        for start in 0..self.nodes.len() {
            let walk = start + 1;
            let mut at = Some(start);
            while let Some(node) = at.filter(|n| seen[*n] == 0) {
                seen[node] = walk;
                at = self.nodes[node].parent;
            }
            // back on this very walk: a circle that `met` is part of
            let Some(met) = at.filter(|n| seen[*n] == walk) else { continue };
            let (mut smallest, mut on) = (met, self.nodes[met].parent);
            while let Some(node) = on.filter(|n| *n != met) {
                smallest = smallest.min(node);
                on = self.nodes[node].parent;
            }
            self.nodes[smallest].parent = None;
            self.policies.note(CatalogPolicy::ParentLoop);
        }
    }

    /// Fills in children, depths and the order from the top down. There are no loops any more.
    fn hang(&mut self) {
        let mut below: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for at in 0..self.nodes.len() {
            match self.nodes[at].parent {
                Some(parent) => below[parent].push(at),
                None => self.top.push(at),
            }
        }
        self.order = self.top.clone();
        let mut next = 0;
        for at in &self.top {
            self.nodes[*at].depth = 1;
        }
        while let Some(at) = self.order.get(next).copied() {
            next += 1;
            let depth = self.nodes[at].depth + 1;
            let children = std::mem::take(&mut below[at]);
            self.order.extend(&children);
            if depth <= MAX_DEPTH {
                children.iter().for_each(|child| self.nodes[*child].depth = depth);
                self.nodes[at].children = children;
                continue;
            }
            for child in children {
                self.policies.note(CatalogPolicy::TooDeep);
                (self.nodes[child].parent, self.nodes[child].depth) = (None, 1);
                self.top.push(child);
            }
        }
    }

    /// Makes BusinessGroupID the group an item really lies in: that of its parents' if they have one, else the one it
    /// names if that is listed.
    fn settle_groups(&mut self) {
        let mut lies_in: Vec<Option<usize>> = vec![None; self.nodes.len()];
        for at in self.order.clone() {
            let node = &self.nodes[at];
            let kind = node.item.device_id.kind();
            if kind == IdKind::BusinessGroup {
                lies_in[at] = Some(at);
                continue;
            }
            let named = node.item.business_group_id;
            let listed = named
                .and_then(|id| self.index.get(&id).copied())
                .filter(|g| self.nodes[*g].item.device_id.kind() == IdKind::BusinessGroup);
            // groups come before devices only where they are parents: what a device names beside its parent is looked
            // up on the way
            let of_group = node.group.and_then(|group| self.business_group_above(group));
            lies_in[at] = node.parent.and_then(|p| lies_in[p]).or(of_group).or(listed);
            let real = lies_in[at].map(|g| self.nodes[g].item.device_id);
            if real != named {
                self.policies.note_if(named.is_some(), CatalogPolicy::GroupDiffers);
                self.nodes[at].item.business_group_id = real;
            }
        }
    }

    fn business_group_above(&self, from: usize) -> Option<usize> {
        let mut at = Some(from);
        // bounded by the depth: `hang` has run
        while let Some(node) = at {
            if self.nodes[node].item.device_id.kind() == IdKind::BusinessGroup {
                return Some(node);
            }
            at = self.nodes[node].parent;
        }
        None
    }

    /// The device.
    pub fn root(&self) -> DeviceId {
        self.root
    }

    /// What the device says of itself, if it does.
    pub fn own_item(&self) -> Option<&CatalogItem> {
        self.own.as_deref()
    }

    /// Items in the tree; the device is none of them.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What was tolerated.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// An item by its id.
    pub fn item(&self, id: &DeviceId) -> Option<&CatalogItem> {
        self.index.get(id).map(|at| &self.nodes[*at].item)
    }

    /// The parent of an item: the device for those at the top; `None` for who is not in the tree.
    pub fn parent(&self, id: &DeviceId) -> Option<DeviceId> {
        let at = self.index.get(id)?;
        Some(self.nodes[*at].parent.map_or(self.root, |p| self.nodes[p].item.device_id))
    }

    /// The items directly under an item or the device, in order of their ids.
    pub fn children(&self, id: &DeviceId) -> impl Iterator<Item = &CatalogItem> {
        let of = match self.index.get(id) {
            Some(at) => self.nodes[*at].children.as_slice(),
            None if *id == self.root => self.top.as_slice(),
            None => &[],
        };
        of.iter().map(|at| &self.nodes[*at].item)
    }

    /// All items, parents before their children.
    pub fn items(&self) -> impl Iterator<Item = &CatalogItem> {
        self.order.iter().map(|at| &self.nodes[*at].item)
    }

    /// What can be played, parents before their children. A device that lists nothing of the kind but itself is its own
    /// channel if it is a camera.
    pub fn channels(&mut self) -> Vec<ChannelPlan> {
        let mut holds_video = vec![false; self.nodes.len()];
        let mut found: Vec<(usize, Evidence)> = Vec::new();
        // children before their parents
        for at in self.order.iter().rev().copied() {
            let node = &self.nodes[at];
            let below = node.children.iter().any(|child| holds_video[*child]);
            let evidence = evidence(&node.item, below, !node.children.is_empty());
            found.extend(evidence.map(|e| (at, e)));
            holds_video[at] = below || evidence.is_some();
        }
        found.reverse();
        let plans: Vec<ChannelPlan> = found.into_iter().map(|(at, evidence)| self.plan(at, evidence)).collect();
        let own = self.own.as_deref().filter(|_| plans.is_empty());
        match own.and_then(|item| Some((item.clone(), evidence(item, false, false)?))) {
            Some((item, evidence)) => {
                if !self.policies.has(CatalogPolicy::OwnChannel) {
                    self.policies.note(CatalogPolicy::OwnChannel);
                }
                let name = shown_name(&item);
                vec![ChannelPlan { own_id: self.root, name, chain: Vec::new(), group: None, evidence, item }]
            }
            None => plans,
        }
    }

    fn plan(&self, at: usize, evidence: Evidence) -> ChannelPlan {
        let node = &self.nodes[at];
        let mut chain = Vec::with_capacity(node.depth);
        let mut above = node.parent;
        while let Some(parent) = above {
            chain.push(self.nodes[parent].item.device_id);
            above = self.nodes[parent].parent;
        }
        chain.reverse();
        let is_group = |id: &&DeviceId| matches!(id.kind(), IdKind::BusinessGroup | IdKind::VirtualOrganisation);
        let group = node.group.map(|g| self.nodes[g].item.device_id).or(chain.iter().rev().find(is_group).copied());
        ChannelPlan {
            own_id: node.item.device_id,
            name: shown_name(&node.item),
            chain,
            group,
            evidence,
            item: node.item.clone(),
        }
    }
}

fn shown_name(item: &CatalogItem) -> String {
    let name = item.name.trim();
    if name.is_empty() { item.device_id.to_string() } else { name.to_owned() }
}

/// Why an item would be a channel. Its type alone says little: recorders number channels as 131 and 132 alike, cameras
/// themselves as 132 with a channel 132 below.
fn evidence(item: &CatalogItem, holds_video: bool, has_children: bool) -> Option<Evidence> {
    let i = &item.info;
    // the panorama of a device whose other lenses are its children is the one picture with pictures below
    if holds_video && i.ptz_type != Some(6) {
        return None;
    }
    let id = &item.device_id;
    let type_code = id.type_code();
    match (id.kind(), type_code) {
        (IdKind::Division | IdKind::Platform | IdKind::BusinessGroup | IdKind::VirtualOrganisation, _) => return None,
        (IdKind::User | IdKind::External, _) => return None,
        // decoder, matrices, alarm controller; display, alarm in and out, microphone, loudspeaker; relay, barrier, door, reader
        (_, Some(114..=117 | 133..=137 | 140..=143)) => return None,
        _ => {}
    }
    let pictured = i.ptz_type.is_some()
        || i.resolution.is_some()
        || i.encode_type.is_some()
        || i.photoelectric_imaging_type.is_some()
        || i.capture_position_type.is_some()
        || i.stream_number_list.is_some()
        || i.svc_space_support_mode.is_some()
        || i.svc_time_support_mode.is_some();
    if pictured {
        return Some(Evidence::VideoFields);
    }
    let claims_children = item.parental == Some(true);
    match (id.kind(), type_code) {
        // alarms and microphones below a camera are its own
        (_, Some(131 | 132)) if has_children || !claims_children => Some(Evidence::CameraLeaf),
        (_, Some(131 | 132)) => Some(Evidence::Doubtful),
        _ if has_children => None,
        // encoders and the like with one picture say that they have no children
        (IdKind::FrontEnd, Some(111 | 118 | 130)) => None,
        (IdKind::FrontEnd, _) => (item.parental == Some(false)).then_some(Evidence::Doubtful),
        _ => (!claims_children).then_some(Evidence::Doubtful),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::manscdp::ItemInfo;
    use CatalogPolicy::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const ROOT: &str = "34020000001180000001";
    const PLATFORM: &str = "34020000002000000009";
    const GROUP: &str = "34020000002150000001";
    const OTHER_GROUP: &str = "34020000002150000002";
    const ORG: &str = "34020000002160000001";
    const INNER_ORG: &str = "34020000002160000002";

    fn id(text: &str) -> DeviceId {
        DeviceId::parse(text).unwrap()
    }

    fn of_type(code: u16, serial: u32) -> DeviceId {
        DeviceId::mint("3402000000", code, 0, serial).unwrap()
    }

    fn item(own: DeviceId, parents: &[&str]) -> CatalogItem {
        CatalogItem { parent_id: parents.iter().map(|p| id(p)).collect(), ..CatalogItem::new(own, "n") }
    }

    fn camera(serial: u32, parents: &[&str]) -> CatalogItem {
        item(of_type(132, serial), parents)
    }

    fn build(items: Vec<CatalogItem>) -> CatalogTree {
        let tree = CatalogTree::build(id(ROOT), items);
        check(&tree);
        tree
    }

    /// What holds of every tree.
    fn check(tree: &CatalogTree) {
        let mut reached = BTreeSet::new();
        let mut open = vec![(tree.root(), 0)];
        while let Some((at, depth)) = open.pop() {
            assert!(depth <= MAX_DEPTH);
            for child in tree.children(&at) {
                assert!(reached.insert(child.device_id), "{} is reached twice", child.device_id);
                assert_eq!(tree.parent(&child.device_id), Some(at));
                let group =
                    tree.item(&at).and_then(|i| i.business_group_id).filter(|_| at.kind() != IdKind::BusinessGroup);
                let group = group.or((at.kind() == IdKind::BusinessGroup).then_some(at));
                if group.is_some() && child.device_id.kind() != IdKind::BusinessGroup {
                    assert_eq!(child.business_group_id, group, "{} below {at}", child.device_id);
                }
                open.push((child.device_id, depth + 1));
            }
        }
        assert_eq!(reached.len(), tree.len(), "all are reached");
        assert!(!reached.contains(&tree.root()));
        assert_eq!(tree.items().count(), tree.len());
        for plan in tree.clone().channels() {
            let from_top: Vec<_> = [tree.root()].into_iter().chain(plan.chain.iter().copied()).collect();
            assert!(from_top.windows(2).all(|pair| tree.parent(&pair[1]) == Some(pair[0])));
            if plan.own_id != tree.root() {
                assert_eq!(tree.parent(&plan.own_id).as_ref(), from_top.last());
            }
        }
    }

    fn noted(tree: &CatalogTree) -> Vec<CatalogPolicy> {
        tree.policies().iter().map(|(p, _)| p).collect()
    }

    fn own_ids(plans: &[ChannelPlan]) -> Vec<DeviceId> {
        plans.iter().map(|p| p.own_id).collect()
    }

    #[test]
    fn a_recorder() {
        let mut tree = build(vec![
            item(id(ROOT), &[ROOT]),
            camera(1, &[ROOT]),
            camera(2, &[]),
            item(of_type(134, 1), &[ROOT]),
            item(of_type(137, 1), &[ROOT]),
        ]);
        assert_eq!((tree.len(), tree.is_empty()), (4, false));
        assert!(tree.own_item().is_some() && tree.item(&id(ROOT)).is_none());
        assert_eq!(noted(&tree), [OwnItem]);
        let plans = tree.channels();
        assert_eq!(own_ids(&plans), [of_type(132, 1), of_type(132, 2)]);
        assert!(plans.iter().all(|p| p.chain.is_empty() && p.evidence == Evidence::CameraLeaf));
        assert_eq!(tree.parent(&of_type(132, 2)), Some(id(ROOT)));
        assert_eq!(tree.parent(&id(ROOT)), None);
    }

    #[test]
    fn a_camera_that_lists_itself_alone_is_its_own_channel() {
        let me = of_type(132, 5);
        let mut tree = CatalogTree::build(me, [CatalogItem { name: " ".into(), ..item(me, &[]) }]);
        let plans = tree.channels();
        assert_eq!((plans.len(), plans[0].own_id, plans[0].name.as_str()), (1, me, me.as_str()));
        assert_eq!(noted(&tree), [OwnItem, OwnChannel]);
        // with an alarm input beside it too, but not with a channel
        let alarm = item(of_type(134, 1), &[]);
        assert_eq!(CatalogTree::build(me, [item(me, &[]), alarm]).channels().len(), 1);
        assert_eq!(own_ids(&CatalogTree::build(me, [item(me, &[]), camera(6, &[])]).channels()), [of_type(132, 6)]);
        // a recorder does not become one
        assert!(build(vec![item(id(ROOT), &[])]).channels().is_empty());
    }

    #[test]
    fn groups_and_divisions() {
        let organisation = |own: &str, parents: &[&str], group: &str| CatalogItem {
            business_group_id: Some(id(group)),
            ..item(id(own), parents)
        };
        let mut tree = build(vec![
            item(id("34"), &[]),
            item(id("340200"), &[]),
            item(id(PLATFORM), &[]),
            item(id(GROUP), &[PLATFORM]),
            organisation(ORG, &[], GROUP),
            organisation(INNER_ORG, &[ORG], OTHER_GROUP),
            CatalogItem { business_group_id: Some(id(OTHER_GROUP)), ..camera(1, &[PLATFORM, INNER_ORG]) },
            camera(2, &[INNER_ORG, "34020000001180000007"]),
            item(of_type(118, 7), &[ROOT]),
            camera(3, &[]),
            CatalogItem { civil_code: Some("350100".into()), ..camera(4, &[]) },
        ]);
        let parent = |own: DeviceId| tree.parent(&own).unwrap();
        assert_eq!(parent(id("340200")), id("34"));
        assert_eq!(parent(id("34")), id(ROOT));
        assert_eq!((parent(id(GROUP)), parent(id(ORG)), parent(id(INNER_ORG))), (id(PLATFORM), id(GROUP), id(ORG)));
        assert_eq!(parent(of_type(132, 3)), id("340200"));
        assert_eq!(parent(of_type(132, 4)), id(ROOT));
        assert_eq!(tree.item(&id(INNER_ORG)).unwrap().business_group_id, Some(id(GROUP)));
        assert_eq!(tree.policies().count(GroupDiffers), 2);
        let plans = tree.channels();
        let plan = |serial| plans.iter().find(|p| p.own_id == of_type(132, serial)).unwrap();
        // a platform says less of a place than an organisation, a recorder says more
        let chain = ["34", "340200", PLATFORM, GROUP, ORG, INNER_ORG].map(id);
        assert_eq!(plan(1).chain, chain);
        assert_eq!((plan(1).group, plan(1).item.business_group_id), (Some(id(INNER_ORG)), Some(id(GROUP))));
        assert_eq!(plan(2).chain.last(), Some(&of_type(118, 7)));
        assert_eq!((plan(2).group, plan(2).item.business_group_id), (Some(id(INNER_ORG)), Some(id(GROUP))));
        assert_eq!(plan(3).group, None);
    }

    #[test]
    fn unsound_parents() {
        // unknown
        let tree = build(vec![camera(1, &["34020000001180000099"])]);
        assert_eq!((tree.parent(&of_type(132, 1)), noted(&tree)), (Some(id(ROOT)), vec![UnknownParent]));
        // circles, opened at the smallest id whatever the order
        let circle = || {
            vec![
                item(of_type(118, 3), &["34020000001180000002"]),
                item(of_type(118, 2), &["34020000001180000004"]),
                item(of_type(118, 4), &["34020000001180000003"]),
                camera(1, &["34020000001180000004"]),
            ]
        };
        let tree = build(circle());
        assert_eq!(tree.parent(&of_type(118, 2)), Some(id(ROOT)));
        assert_eq!(tree.parent(&of_type(118, 4)), Some(of_type(118, 3)));
        assert_eq!(noted(&tree), [ParentLoop]);
        assert_eq!(build(circle().into_iter().rev().collect()), tree);
        // a long chain
        let chain: Vec<CatalogItem> = (2..200u32)
            .map(|n| CatalogItem { parent_id: vec![of_type(118, n - 1)], ..item(of_type(118, n), &[]) })
            .collect();
        let tree = build(chain);
        assert_eq!(tree.policies().count(TooDeep), 8);
        // ids twice, the later counts
        let tree = build(vec![camera(1, &[]), CatalogItem { name: "later".into(), ..camera(1, &[]) }]);
        assert_eq!(tree.item(&of_type(132, 1)).unwrap().name, "later");
        assert_eq!(noted(&tree), [DuplicateId]);
    }

    #[test]
    fn more_items_than_a_tree_holds() {
        let tree = CatalogTree::build(id(ROOT), (0..MAX_ITEMS as u32 + 5).map(|n| camera(n, &[])));
        assert_eq!((tree.len(), tree.policies().count(OverLimit)), (MAX_ITEMS, 5));
    }

    #[test]
    fn evidence_for_a_channel() {
        let ptz = |n| ItemInfo { ptz_type: Some(n), ..ItemInfo::default() };
        let with = |code, parental, info| CatalogItem { parental, info, ..item(of_type(code, 1), &[]) };
        let none = ItemInfo::default;
        for (item, expected) in [
            (with(132, Some(false), none()), Some(Evidence::CameraLeaf)),
            (with(131, None, none()), Some(Evidence::CameraLeaf)),
            (with(132, Some(true), none()), Some(Evidence::Doubtful)),
            (with(132, Some(true), ptz(1)), Some(Evidence::VideoFields)),
            (with(118, Some(false), none()), None),
            (with(118, Some(false), ptz(3)), Some(Evidence::VideoFields)),
            (with(113, Some(false), none()), Some(Evidence::Doubtful)),
            (with(113, None, none()), None),
            (with(134, Some(false), ptz(3)), None),
            (with(137, None, none()), None),
            (with(150, None, none()), Some(Evidence::Doubtful)),
            (with(700, Some(true), none()), None),
            (with(200, None, ptz(1)), None),
            (with(216, None, none()), None),
            (item(id("340200000032000001"), &[]), Some(Evidence::Doubtful)),
            (item(id("340200"), &[]), None),
        ] {
            let plans = build(vec![item.clone()]).channels();
            assert_eq!(plans.first().map(|p| p.evidence), expected, "{item:?}");
        }
        // a camera above its channel, and a camera above its microphone
        let device = "34020000001320000001";
        let mut tree = build(vec![camera(1, &[]), camera(2, &[device])]);
        assert_eq!(own_ids(&tree.channels()), [of_type(132, 2)]);
        let mut tree =
            build(vec![CatalogItem { parental: Some(true), ..camera(1, &[]) }, item(of_type(136, 1), &[device])]);
        assert_eq!(own_ids(&tree.channels()), [of_type(132, 1)]);
        // a panorama above its parts
        let mut tree = build(vec![
            CatalogItem { info: ptz(6), ..camera(1, &[]) },
            CatalogItem { info: ptz(7), ..camera(2, &[device]) },
        ]);
        assert_eq!(tree.channels().len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Any graph of parents gives a tree with everything in it, the same for any order of the items.
        #[test]
        fn any_graph_becomes_a_tree(edges in proptest::collection::vec((0usize..40, proptest::collection::vec(0usize..45, 0..4), proptest::option::of(0usize..45)), 0..60)) {
            let pool: Vec<DeviceId> = (0..45u32).map(|n| match n % 9 {
                0 => id(ROOT),
                1 => of_type(118, n),
                2 => of_type(215, n % 3),
                3 | 4 => of_type(216, n),
                5 => id(["34", "3402", "340200", "34020000"][n as usize % 4]),
                6 => of_type(200, n),
                _ => of_type(132, n),
            }).collect();
            let mut items = BTreeMap::new();
            for (own, parents, group) in edges {
                let item = CatalogItem {
                    parent_id: parents.into_iter().map(|p| pool[p]).collect(),
                    business_group_id: group.map(|g| pool[g]),
                    ..CatalogItem::new(pool[own], "n")
                };
                items.insert(item.device_id, item);
            }
            let tree = build(items.values().cloned().collect());
            prop_assert_eq!(tree.len(), items.keys().filter(|i| **i != id(ROOT)).count());
            prop_assert_eq!(build(items.into_values().rev().collect()), tree.clone());
        }
    }
}
