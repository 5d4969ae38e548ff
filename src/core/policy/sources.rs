//! Whom a rule lets in: nodes by name, prefixes as they are written, or everybody.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::OnceLock;

use crate::types::{IpNet, OVERLAY_V4, OVERLAY_V6};

use super::index::{Index, SelectorId};
use super::nodeset::NodeSet;
use super::selector::{Autogroup, Selector};
use super::topology::overlaps;

/// The overlay in the form of `*`: ranges, around the addresses that Chrome OS uses for its virtual machines.
const OVERLAY: [&str; 3] = ["100.115.94.0-100.127.255.255", "100.64.0.0-100.115.91.255", "fd7a:115c:a1e0::/48"];

/// A `src` with its postures: what [`Sources`] are computed from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SourceList {
    pub(super) selectors: Vec<SelectorId>,
    pub(super) postures: Vec<String>,
}

/// The sources of all rules that have the same `src`.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    content: Content,
    /// The nodes that traffic may come from or through: those of the content, and routers to its prefixes.
    pub(super) reach: NodeSet,
    digest: OnceLock<u64>,
    /// The wire form as JSON: what most of the text of a filter is, and the same in those of many nodes.
    text: OnceLock<String>,
}

/// What sources are; rules with equal content are one rule on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Content {
    /// Any address whatsoever.
    world: bool,
    /// The whole overlay.
    overlay: bool,
    /// Prefixes, sorted: as written, and with `overlay` also all approved subnet routes.
    nets: Vec<IpNet>,
    /// Nodes named by who owns them.
    nodes: NodeSet,
}

impl Sources {
    /// Finds the sources of a `src`.
    pub(super) fn new(list: &SourceList, index: &Index) -> Self {
        if list.postures.is_empty() { Self::unconditional(list, index) } else { Self::with_postures(list, index) }
    }

    /// Some nodes and nothing else.
    pub(super) fn of_nodes(nodes: NodeSet) -> Self {
        Self { reach: nodes.clone(), content: Content { nodes, ..Content::default() }, ..Self::default() }
    }

    fn unconditional(list: &SourceList, index: &Index) -> Self {
        let (mut content, mut reach) = (Content::default(), NodeSet::default());
        for number in &list.selectors {
            reach.unite(index.selected(*number));
            reach.unite(index.behind(*number));
            match index.selector(*number) {
                Selector::Any => {
                    content.overlay = true;
                    content.nets.extend(index.routes.keys());
                }
                Selector::Auto(Autogroup::DangerAll) => content.world = true,
                Selector::Net(_) | Selector::Set(_) => content.nets.extend(index.prefixes(*number)),
                Selector::User(_) | Selector::Domain(_) | Selector::Group(_) | Selector::Tag(_) | Selector::Auto(_) => {
                    content.nodes.unite(index.selected(*number))
                }
            }
        }
        content.nets.sort_unstable();
        content.nets.dedup();
        Self { content, reach, ..Self::default() }
    }

    /// Only nodes report anything of themselves, so a condition leaves out all that is not a node.
    fn with_postures(list: &SourceList, index: &Index) -> Self {
        let (mut nodes, mut fit) = (NodeSet::default(), NodeSet::default());
        list.selectors.iter().for_each(|number| nodes.unite(index.selected(*number)));
        list.postures.iter().filter_map(|name| index.posture(name)).for_each(|met| fit.unite(met));
        nodes.intersect(&fit);
        Self::of_nodes(nodes)
    }

    pub(super) fn content(&self) -> &Content {
        &self.content
    }

    /// Whether the wire form has the addresses of a node by its name, not in a prefix.
    pub(super) fn names(&self, slot: usize) -> bool {
        self.content.nodes.contains(slot)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.content == Content::default()
    }

    /// Whether packets from `prefix` may be let in.
    pub(super) fn overlap(&self, prefix: &IpNet, index: &Index) -> bool {
        let content = &self.content;
        let is_overlay = || overlaps(prefix, &OVERLAY_V4.into()) || overlaps(prefix, &OVERLAY_V6.into());
        content.world
            || content.overlay && is_overlay()
            || content.nets.iter().any(|net| overlaps(net, prefix))
            || index.slots_in(prefix).any(|slot| content.nodes.contains(slot))
    }

    /// Whether packets from `address` are let in.
    pub(super) fn admit(&self, address: IpAddr, index: &Index) -> bool {
        self.overlap(&IpNet::from(address), index)
    }

    /// Whether any subnet behind a router may be among the sources.
    pub(super) fn has_routes(&self) -> bool {
        self.content.world || !self.content.nets.is_empty()
    }

    /// Whether a subnet behind a router is among the sources, not the router alone.
    pub(super) fn admit_route(&self, route: &IpNet) -> bool {
        self.content.world || self.content.nets.iter().any(|net| overlaps(net, route))
    }

    /// The nodes, the prefixes beyond single nodes, and whether it is any address whatsoever.
    pub(super) fn who(&self, index: &Index) -> (NodeSet, BTreeSet<IpNet>, bool) {
        let Content { world, overlay, nets, nodes } = &self.content;
        let mut nodes = if *world || *overlay { index.everyone.clone() } else { nodes.clone() };
        let mut beyond = BTreeSet::new();
        for net in nets {
            index.slots_in(net).for_each(|slot| nodes.insert(slot));
            if net.prefix_len() < net.max_prefix_len() || index.slots_in(net).next().is_none() {
                beyond.insert(*net);
            }
        }
        (nodes, beyond, *world)
    }

    /// The `SrcIPs` of the wire form.
    pub(super) fn wire(&self, index: &Index) -> Vec<String> {
        let content = &self.content;
        if content.world {
            return vec!["*".to_owned()];
        }
        let overlay = OVERLAY.iter().filter(|_| content.overlay).map(|range| (*range).to_owned());
        let addresses = self.addresses(index).map(ToString::to_string);
        let mut wire: Vec<_> = overlay.chain(content.nets.iter().map(show)).chain(addresses).collect();
        wire.sort_unstable();
        wire.dedup();
        wire
    }

    /// The `SrcIPs` of the wire form as JSON.
    pub(super) fn wire_text(&self, index: &Index) -> &str {
        // Texts always have a JSON form.
        self.text.get_or_init(|| serde_json::to_string(&self.wire(index)).unwrap_or_default())
    }

    /// A number that two sources share only when their wire forms are equal, chance aside.
    pub(super) fn digest(&self, index: &Index) -> u64 {
        *self.digest.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            let Content { world, overlay, nets, nodes: _ } = &self.content;
            (world, overlay, nets).hash(&mut hasher);
            self.addresses(index).for_each(|address| address.hash(&mut hasher));
            hasher.finish()
        })
    }

    fn addresses<'i>(&'i self, index: &'i Index) -> impl Iterator<Item = &'i IpAddr> {
        self.content.nodes.iter().filter_map(|slot| index.place(slot)).flat_map(|place| &place.addresses)
    }
}

/// A prefix the way filters write it: a single address without its length.
pub(super) fn show(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}
