//! Tables for a terminal, whose columns line up.

use anstyle::Style;

/// The text of one cell, and its style, which has no width.
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

    /// The width in characters. No cell has characters that are two columns wide.
    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// The side of its column that a cell stands at.
#[derive(Clone, Copy)]
pub(crate) enum Align {
    Left,
    Right,
}

/// One line for each row, with two blanks before each column.
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
