//! What the operator chooses of the firewall when the agent is started.

use clap::Args;

use warren_core::plan::FirewallOptions;

/// The flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
pub struct FirewallFlags {
    /// Log denied packets to this nflog group, ten a second for each reason; without a number, to group 5741
    #[arg(long, env = "WARREN_LOG_DENIED", value_name = "GROUP", num_args = 0..=1, default_missing_value = "5741")]
    pub log_denied: Option<u16>,

    /// Let packets from and to 100.64.0.0/10 and fd7a:115c:a1e0::/48 pass by other interfaces too, for hosts whose own
    /// networks use these ranges behind a router
    #[arg(long, env = "WARREN_ALLOW_SHARED_RANGE")]
    pub allow_shared_range: bool,

    /// Let the networks that this host carries open connections to peers, and not only answer them
    #[arg(long, env = "WARREN_ALLOW_LAN_TO_OVERLAY")]
    pub allow_lan_to_overlay: bool,

    /// Let other programs change and flush our nftables table also where the kernel could keep them off (Linux 6.9):
    /// for hosts that save and load their whole ruleset
    #[arg(long, env = "WARREN_SHARE_TABLE")]
    pub share_table: bool,
}

impl FirewallFlags {
    /// The same for the planner.
    pub fn options(&self) -> FirewallOptions {
        FirewallOptions {
            shared_range: self.allow_shared_range,
            lan_may_open: self.allow_lan_to_overlay,
            log_denied: self.log_denied,
        }
    }
}
