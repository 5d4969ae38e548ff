//! What every table shows alike: its cells, moments, and texts of others.

use std::borrow::Cow;

use warren_core::types::Timestamp;
use warren_core::types::text::clean;

/// Bytes of a cell: all the routes of a large gateway.
const CELL_BYTES: usize = 60 * 1024;

pub(super) fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// On one line, and nothing in it that a terminal would obey.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    clean(text, CELL_BYTES)
}

pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    warren_shell::table(std::iter::once(head.map(str::to_owned)).chain(rows), CELL_BYTES)
}
