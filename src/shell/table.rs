//! Tables for people: columns as wide as their widest cell, two blanks apart, the last one not padded.

use comfy_table::{Table, presets};
use warren_core::types::text::clean;

/// The rows as lines. Cells are cut at so many bytes, and none can pass for two, or for a row.
pub fn table<const N: usize>(rows: impl IntoIterator<Item = [String; N]>, cell_bytes: usize) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell, cell_bytes)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = table.trim_fmt();
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_hold_no_control_characters() {
        let cells = [["ID", "NAME"], ["1", "a\u{1b}[31m\u{202e}"], ["100", "b"]];
        let rows = cells.map(|row| row.map(str::to_owned));
        assert_eq!(table(rows, 1_024), "ID   NAME\n1    a\u{fffd}[31m\u{fffd}\n100  b\n");
        assert_eq!(table::<2>([], 1_024), "");
    }

    #[test]
    fn cells_of_the_largest_size_are_printed_whole() {
        let cell = "x".repeat(60 * 1024);
        let text = table([[cell.clone(), cell.clone()], ["a".to_owned(), "b".to_owned()]], 60 * 1024);
        assert_eq!(text.lines().next().unwrap(), format!("{cell}  {cell}"));
    }

    #[test]
    fn a_name_in_wide_letters_keeps_the_columns_straight() {
        let rows = [["東京", "a"], ["x", ""], ["web", "b"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(rows, 1_024), "東京  a\nx\nweb   b\n");
    }
}
