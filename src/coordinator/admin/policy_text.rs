//! Replies about the policy as text.

use std::fmt::Write;

use super::cells::{printable, table, time};
use warren_core::wire::admin::{PolicyDiffView, PolicyView, RowView, RuleView, WhyView};

/// The text as it was written, so that it can go into a file; who wrote it is said by `versions`.
pub(super) fn policy(view: &PolicyView) -> String {
    match &view.text {
        Some(_) if view.version == 0 => "// No policy was ever set: everything is allowed.\n{}\n".to_owned(),
        Some(text) if text.ends_with('\n') => text.clone(),
        Some(text) => format!("{text}\n"),
        None => String::new(),
    }
}

pub(super) fn set(view: &PolicyView) -> String {
    format!("version {} is in force\n", view.version)
}

pub(super) fn versions(views: &[PolicyView]) -> String {
    let rows = views.iter().map(|view| {
        let state = if view.in_force { "in force" } else { "" };
        let at = view.at.map_or_else(String::new, time);
        [view.version.to_string(), view.by.clone(), at, view.bytes.to_string(), state.to_owned()]
    });
    table(["VERSION", "SET BY", "AT", "BYTES", ""], rows)
}

pub(super) fn diff(view: &PolicyDiffView) -> String {
    let mut text = String::new();
    for (sign, rows) in [('+', &view.gains), ('-', &view.loses)] {
        for RowView { from, to, access } in rows {
            let [from, to, access] = [from, to, access].map(|names| printable(&names.join(", ")).into_owned());
            let _ = writeln!(text, "{sign} {from} -> {to}: {access}");
        }
    }
    for note in &view.notes {
        let _ = writeln!(text, "~ {}", printable(note));
    }
    if view.left_out > 0 {
        let _ = writeln!(text, "… and {} more lines", view.left_out);
    }
    let _ = match (view.pairs_gaining, view.pairs_losing) {
        (0, 0) if view.gains.is_empty() && view.loses.is_empty() && view.notes.is_empty() => {
            writeln!(text, "nothing changes")
        }
        (gaining, losing) => writeln!(text, "{gaining} pairs of nodes gain access, {losing} lose some"),
    };
    text
}

pub(super) fn why(view: &WhyView) -> String {
    let WhyView { allowed, from, to, packet, rules, others, reasons } = view;
    let verdict = if *allowed { "allowed" } else { "denied" };
    let mut text = format!("{verdict}: {packet} from {} to {}\n", printable(from), printable(to));
    for reason in reasons {
        let _ = writeln!(text, "  {}", printable(reason));
    }
    for RuleView { line, text: rule, opens, reference } in rules {
        let _ = writeln!(text, "  line {line} opens {opens} ({reference})\n    {}", printable(rule));
    }
    for RuleView { line, text: rule, opens, .. } in others {
        let _ = writeln!(text, "  line {line} opens only {opens}\n    {}", printable(rule));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_lines_with_signs_and_a_sum() {
        let row = |from: &str| RowView {
            from: vec![from.to_owned()],
            to: vec!["tag:web".to_owned(), "db".to_owned()],
            access: vec!["port 22".to_owned()],
        };
        let view = PolicyDiffView {
            gains: vec![row("group:ops")],
            loses: vec![row("ada\u{1b}")],
            pairs_gaining: 3,
            pairs_losing: 1,
            left_out: 0,
            notes: vec!["other SSH rules hold: db".to_owned()],
        };
        assert_eq!(
            diff(&view),
            "+ group:ops -> tag:web, db: port 22\n- ada\u{fffd} -> tag:web, db: port 22\n~ other SSH rules hold: db\n\
             3 pairs of nodes gain access, 1 lose some\n"
        );
    }
}
