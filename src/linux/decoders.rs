//! What only this module reads, as functions from bytes to whether they were taken: for tests that feed them anything.

pub use super::conntrack::decode as flow;
pub use super::nftables::decoders::{elements as nft_elements, foreign as nft_foreign, listing as nft_listing};
