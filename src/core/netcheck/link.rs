//! What the links of this host lead to.

/// What an interface of ours probably leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    /// Everything: the default route leaves by it.
    Uplink,
    /// Other machines.
    #[default]
    Plain,
    /// This machine's own guests: bridges of containers and virtual machines, of which a host may have dozens.
    Virtual,
}
