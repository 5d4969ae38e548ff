//! What a user may do to the network itself.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a user may do to the network itself. In the order in which one is more than another to a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Nothing: the user has nodes.
    #[default]
    Member,
    /// Look at everything.
    Auditor,
    /// Look at nodes and users.
    BillingAdmin,
    /// Users, nodes and their keys; not who may reach what.
    ItAdmin,
    /// Who may reach what, routes and names; not users and nodes.
    NetworkAdmin,
    /// Anything but pass on ownership.
    Admin,
    /// Anything.
    Owner,
}

/// Whether a user may do anything at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserStatus {
    /// What their role says.
    #[default]
    Active,
    /// Everything of theirs rests until somebody restores them.
    Suspended,
    /// They signed in, and somebody has to say that they are welcome.
    NeedsApproval,
}

/// A text that names no status of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a user is active, suspended or needs-approval")]
pub struct UserStatusError;

/// A text that names no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a role is member, auditor, billing-admin, it-admin, network-admin, admin or owner")]
pub struct RoleError;

impl Role {
    /// All of them, the least first.
    pub const ALL: [Self; 7] =
        [Self::Member, Self::Auditor, Self::BillingAdmin, Self::ItAdmin, Self::NetworkAdmin, Self::Admin, Self::Owner];

    /// As commands and stores write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Auditor => "auditor",
            Self::BillingAdmin => "billing-admin",
            Self::ItAdmin => "it-admin",
            Self::NetworkAdmin => "network-admin",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or(RoleError)
    }
}

impl UserStatus {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Active, Self::Suspended, Self::NeedsApproval];

    /// Its name, as the journal and programs spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::NeedsApproval => "needs-approval",
        }
    }
}

impl fmt::Display for UserStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for UserStatus {
    type Err = UserStatusError;

    fn from_str(text: &str) -> Result<Self, UserStatusError> {
        Self::ALL.into_iter().find(|status| status.name() == text).ok_or(UserStatusError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_reads_back_from_its_name_and_from_json() {
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
        assert!(Role::ALL.is_sorted() && "root".parse::<Role>().is_err());
    }
}
