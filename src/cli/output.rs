//! Results on standard output: text, tables, JSON.

use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::failure::{Failure, Outcome};

/// Prints lines of text.
pub fn text(text: impl AsRef<str>) -> Outcome {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::NobodyReads),
        Err(error) => Err(Failure::failed(format!("standard output: {error}"))),
    }
}

/// Prints one JSON document.
pub fn json(value: &impl Serialize) -> Outcome {
    let document = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
    text(document)
}

/// A table with a header and no lines, as `ls` and `lsblk` print.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| Cell::new(name).set_alignment(CellAlignment::Left)));
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    trim(&table.to_string())
}

/// Names and values, one line each.
pub fn pairs(pairs: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    pairs.into_iter().for_each(|(name, value)| {
        table.add_row([name.to_owned(), value]);
    });
    trim(&table.to_string())
}

/// Without the spaces that pad the last column, and the one before the first.
fn trim(table: &str) -> String {
    let lines: Vec<&str> = table.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_columns_and_no_lines() {
        let rows = [vec!["disk0".to_owned(), "10 GiB".to_owned()], vec!["db".to_owned(), "1 TiB".to_owned()]];
        assert_eq!(table(&["NAME", "SIZE"], rows), "NAME   SIZE\ndisk0  10 GiB\ndb     1 TiB");
    }
}
