//! Columns without lines around them.

use super::{Out, text};
use comfy_table::{Cell, Color, ContentArrangement, presets};
use meepo_core::run::RunState;

/// A table with a header, columns two spaces apart.
pub(crate) struct Table(comfy_table::Table);

impl Table {
    /// An empty table.
    pub(crate) fn new(out: &Out, header: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        if out.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(header.iter().map(Cell::new).collect::<Vec<_>>());
        Self(table)
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.0.add_row(cells);
    }

    /// The table, each line ended by a newline.
    pub(crate) fn render(mut self) -> String {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = self.0.trim_fmt();
        text.push('\n');
        text
    }
}

/// Text from anywhere, on one line.
pub(crate) fn cell(s: impl AsRef<str>) -> Cell {
    Cell::new(text::one_line(s.as_ref()))
}

/// Text that may be missing.
pub(crate) fn maybe(s: Option<impl AsRef<str>>) -> Cell {
    s.map_or_else(|| Cell::new("-"), cell)
}

/// A run's state in its colour.
pub(crate) fn state(s: RunState) -> Cell {
    let cell = Cell::new(s.as_str());
    match s {
        RunState::Success => cell.fg(Color::Green),
        RunState::Running => cell.fg(Color::Cyan),
        RunState::Missed | RunState::Skipped => cell.fg(Color::Yellow),
        RunState::Failed | RunState::Timeout | RunState::Killed | RunState::Lost => {
            cell.fg(Color::Red)
        }
    }
}

/// Good or bad news in its colour.
pub(crate) fn verdict(s: impl AsRef<str>, good: bool) -> Cell {
    cell(s).fg(if good { Color::Green } else { Color::Red })
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;

    fn out(color: bool) -> Out {
        Out { format: Format::Table, terminal: color, color, err_terminal: false, err_color: false }
    }

    fn sample(color: bool) -> String {
        let mut t = Table::new(&out(color), &["NAME", "STATE", "X"]);
        t.row(vec![cell("a\n\x1b[1mb"), state(RunState::Success), maybe(None::<&str>)]);
        t.row(vec![cell("longer-name-here"), state(RunState::Failed), cell("y")]);
        t.render()
    }

    #[test]
    fn columns_line_up_and_nothing_trails() {
        assert_eq!(
            sample(false),
            "NAME              STATE    X\na \\x1b[1mb        success  -\nlonger-name-here  failed   y\n"
        );
    }

    #[test]
    fn colours_only_where_asked_for() {
        assert!(!sample(false).contains('\x1b'));
        assert!(sample(true).contains("\x1b[38;5;10msuccess"), "{:?}", sample(true));
    }
}
