//! Unique DNS labels: `web`, `web-1`, `web-2`, …

use crate::types::HostLabel;

/// The label of a machine that gives no usable name.
const FALLBACK: &str = "node";

/// The label that a host name asks for.
pub(super) fn wanted(hostname: &str) -> Option<HostLabel> {
    match HostLabel::from_any(hostname) {
        Some(label) if means_another(&label) => HostLabel::from_any(&format!("{FALLBACK}-{label}")),
        Some(label) => Some(label),
        None => HostLabel::from_any(FALLBACK),
    }
}

/// Whether people who type the label may mean something else by it: a number, or the machine that they sit at.
pub(super) fn means_another(label: &HostLabel) -> bool {
    label.as_str() == "self" || label.as_str().bytes().all(|b| b.is_ascii_digit())
}

/// The first free label of the series that begins with `wanted`.
pub(super) fn unique(wanted: &HostLabel, mut is_taken: impl FnMut(&HostLabel) -> bool) -> HostLabel {
    if !is_taken(wanted) {
        return wanted.clone();
    }
    for number in 1_u32.. {
        let suffix = format!("-{number}");
        let room = HostLabel::MAX_LEN - suffix.len();
        let stem = &wanted.as_str()[..wanted.as_str().len().min(room)];
        if let Ok(label) = format!("{stem}{suffix}").parse::<HostLabel>()
            && !is_taken(&label)
        {
            return label;
        }
    }
    wanted.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_gets_the_first_free_number() {
        let taken = ["web", "web-1", "web-3"];
        let label = unique(&wanted("Web.example.org").unwrap(), |label| taken.contains(&label.as_str()));
        assert_eq!(label.as_str(), "web-2");
    }

    #[test]
    fn a_long_name_makes_room_for_its_number() {
        let long = wanted(&"a".repeat(63)).unwrap();
        let label = unique(&long, |label| *label == long);
        assert_eq!(label.as_str(), format!("{}-1", "a".repeat(61)));
    }

    #[test]
    fn a_name_that_would_be_taken_for_something_else_is_not_given() {
        for (hostname, label) in [("3", "node-3"), ("self", "node-self"), ("3a", "3a"), ("10.0.0.1", "node-10")] {
            assert_eq!(wanted(hostname).unwrap().as_str(), label);
        }
    }

    #[test]
    fn a_machine_without_a_usable_name_is_a_node() {
        assert_eq!(wanted("日本").unwrap().as_str(), "node");
    }
}
