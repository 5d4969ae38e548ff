//! The heart: what should be, what is, and the printable steps between them.
//!
//! `desired` turns the map, the preferences and the chosen paths into the whole wish;
//! `diff` compares it with what the kernel was seen to hold, over the union of both, and touches only
//! what carries our tag ([`own`]). Log-out, `warren down`, removal and clean-up are all the difference to
//! `Desired::default()`: there is no teardown code.

pub mod own;

mod ability;
mod allowance;
mod allowed_ips;
mod carve;
mod classes;
mod desired;
mod diff;
mod difference;
mod display;
mod exit_names;
mod explain;
mod firewall;
mod flows;
mod forwarding;
mod from_map;
mod handover;
mod kernel;
mod lookup;
mod model;
mod observed;
mod planner;
mod prefs;
mod probes;
mod reconciler;
mod served;
mod step;
mod union;

pub use ability::Ability;
pub use allowed_ips::AllowedIps;
pub use desired::{Desired, DesiredEndpoint, Device, PeerConfig, Route, RouteTarget, Rule, RuleAction, RulePackets};
pub use diff::diff;
pub use difference::differences;
pub use explain::{Count, Figures, rights_of, rules_naming};
pub use firewall::{
    Admit, Class, ClassId, Denied, Firewall, FirewallOptions, Lacks, Packet, PortRange, Protocol, RuleId, SourceNat,
};
pub use flows::FlowJudge;
pub use forwarding::{Before, Forwarding, ForwardingStep, ObservedForwarding, Switch};
pub use kernel::{Change, Kernel, KernelError};
pub use lookup::{Egress, Misroute, RouteLookup};
pub use model::{Leaving, ModelKernel};
pub use observed::{Observed, ObservedDevice, ObservedFirewall, ObservedLink, ObservedPeer, Obstacle};
pub use planner::{Derived, Planner, desired};
pub use prefs::{ExitNode, Host, Path, Paths, Prefs};
pub use probes::Probes;
pub use reconciler::{KernelAction, Reconciler, ReconcilerEvent, Trouble};
pub use served::Served;
pub use step::{DeviceStep, FirewallStep, LinkStep, PeerStep, Plan, RouteStep, RuleStep, Step};
