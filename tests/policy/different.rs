//! Captures that we answer differently on purpose, each with the reason.

const DIFFERENT: &[(&str, &str)] = &[
    (
        "acl-k03",
        "captured before the router's route was approved: its autoApprovers approve it, as in every other capture",
    ),
    (
        "ssh-e1",
        "the captured message names another domain than the policy does: names were replaced in one and not in the other",
    ),
];

/// Why a capture is answered differently, if it is.
pub(crate) fn reason(id: &str) -> Option<&'static str> {
    DIFFERENT.iter().find(|(listed, _)| *listed == id).map(|(_, reason)| *reason)
}
