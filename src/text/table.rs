//! Columns that line up on a terminal.

use anstyle::Style;

/// Text of one cell and how it looks. The style takes no room.
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), style: Style::new() }
    }

    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }

    /// In characters: every text of ours is one column a character.
    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// Which side of its column a cell keeps to.
#[derive(Clone, Copy)]
pub(crate) enum Align {
    Left,
    Right,
}

/// One line a row, two spaces before the first column and between columns.
pub(crate) fn render(align: &[Align], rows: &[Vec<Cell>]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(Cell::width).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..align.len()).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, side), width) in row.iter().zip(align).zip(&widths) {
            let pad = " ".repeat(width - cell.width());
            let Cell { text, style } = cell;
            match side {
                Align::Left => line += &format!("  {style}{text}{style:#}{pad}"),
                Align::Right => line += &format!("  {pad}{style}{text}{style:#}"),
            }
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}
