//! Tables as text: aligned columns without lines, so that they read well and cut well with `awk`. Pure.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// How a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Names and keys.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a header. Cells must be single lines; a row shorter than the header ends in empty cells.
pub fn rows(header: &[(&str, Align)], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = plain();
    table.set_header(header.iter().map(|(name, _)| *name));
    for row in rows {
        table.add_row(row);
    }
    for (index, (_, align)) in header.iter().enumerate() {
        if let (Align::Right, Some(column)) = (align, table.column_mut(index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    tidy(&table)
}

/// One fact a line: a name and what it is.
pub fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = plain();
    for (name, fact) in facts {
        table.add_row([name.to_owned(), fact]);
    }
    tidy(&table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Without the padding at both ends of a line.
fn tidy(table: &Table) -> String {
    let lines: Vec<String> =
        table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Bytes with a binary unit and at most one digit after the point.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = count as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{size:.1} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_edge() {
        let header = [("ID", Align::Right), ("ADDRESS", Align::Left)];
        let text = rows(&header, [vec!["1".into(), "127.0.0.1:20160".into()], vec!["10".into(), "x".into()]]);
        assert_eq!(text, "ID  ADDRESS\n 1  127.0.0.1:20160\n10  x");
    }

    #[test]
    fn facts_stand_under_each_other() {
        assert_eq!(facts([("id", "7".to_owned()), ("stores", "3".to_owned())]), "id      7\nstores  3");
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes(17), "17 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}
