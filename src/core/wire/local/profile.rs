//! Login profiles. This agent keeps one; the calls exist so that clients which ask get an answer.

use serde::{Deserialize, Serialize};

use crate::types::StableNodeId;
use crate::wire::control::UserProfile;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LoginProfile {
    #[serde(rename = "ID")]
    pub id: String,
    pub name: String,
    pub network_profile: NetworkProfile,
    pub key: String,
    pub user_profile: UserProfile,
    #[serde(rename = "NodeID")]
    pub node_id: StableNodeId,
    #[serde(rename = "LocalUserID")]
    pub local_user_id: String,
    #[serde(rename = "ControlURL")]
    pub control_url: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkProfile {
    #[serde(rename = "MagicDNSName")]
    pub magic_dns_name: String,
    pub domain_name: String,
    pub display_name: String,
}
