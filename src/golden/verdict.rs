//! What a comparison with a golden comes to: the verdict, and a message that shows what differs.

use super::{Compared, Comparison, Difference, Row, Tolerance};
use crate::results::measured_by::MeasuredBy;
use crate::results::verdict::Verdict;
use crate::results::Moved;
use crate::text::table::{render, Align, Cell};

/// The verdict of a `golden` case: `Pass`, `GoldenChanged` or `Stale`.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenVerdict {
    pub verdict: Verdict,
    /// What differs, in lines for people. Empty for a pass.
    pub message: String,
    /// Each value in the golden and now. Empty where the golden's values say nothing about the new ones.
    pub moved: Vec<Moved>,
}

impl Compared<'_> {
    /// Judges the comparison. Equal values are not enough: the text that they were measured on must be accepted
    /// as well.
    pub fn verdict(&self) -> GoldenVerdict {
        let (verdict, message): (_, String) = match &self.comparison {
            Comparison::Matches(_) if !self.is_text_accepted => {
                let what = "the baseline's text, which it was measured on, is not accepted yet\n";
                (Verdict::GoldenChanged, what.into())
            }
            Comparison::Matches(_) => (Verdict::Pass, String::new()),
            Comparison::Missing => (Verdict::GoldenChanged, "no golden yet\n".into()),
            Comparison::Stale(differences) => (Verdict::Stale, stale_message(differences)),
            Comparison::Changed { effective, subject, rows } => {
                (Verdict::GoldenChanged, changed_message(effective.as_ref(), subject, rows))
            }
        };
        GoldenVerdict { verdict, message, moved: self.comparison.moved() }
    }
}

impl Comparison {
    /// Each value in the golden and now. Empty where there is no golden, or one that was made under other
    /// conditions.
    pub fn moved(&self) -> Vec<Moved> {
        let rows: &[Row] = match self {
            Comparison::Matches(rows) | Comparison::Changed { rows, .. } => rows,
            Comparison::Missing | Comparison::Stale(_) => &[],
        };
        rows.iter().map(Moved::from).collect()
    }
}

impl From<&Row> for Moved {
    fn from(row: &Row) -> Self {
        let (name, within) = (row.name.into(), row.holds());
        Moved { name, golden: row.old, now: row.new, within, change: None }
    }
}

fn stale_message(differences: &[Difference]) -> String {
    let mut text = "stale: the golden was made under other conditions, which says nothing about \
                    these values\n"
        .to_string();
    for difference in differences {
        text += &format!("  {difference}\n");
    }
    let engine = |difference: &&Difference| difference.what == "engine";
    let by = differences.iter().find(engine).map(|difference| MeasuredBy::of(&difference.new));
    if by == Some(MeasuredBy::LlamaCpp) {
        text += "llama.cpp's numerics change from build to build\n";
    }
    text
}

fn changed_message(effective: Option<&Difference>, subject: &[Difference], rows: &[Row]) -> String {
    let out = rows.iter().filter(|row| !row.holds()).count();
    let mut text = match out {
        0 => "golden changed: values within tolerance\n".to_string(),
        1 => "golden changed: 1 statistic left its tolerance\n".to_string(),
        n => format!("golden changed: {n} statistics left their tolerance\n"),
    };
    if let Some(effective) = effective {
        text += &format!("  {effective}\n");
    }
    for difference in subject {
        text += &format!("  subject changed: {difference}\n");
    }
    let align = [Align::Left, Align::Right, Align::Right, Align::Right, Align::Left, Align::Left];
    let head = ["statistic", "golden", "now", "change", "tolerance", ""];
    let mut table = vec![head.map(Cell::new).into()];
    table.extend(rows.iter().map(|row| -> Vec<Cell> {
        let [old, new] = &row.text;
        let mark = if row.holds() { "" } else { "✗" };
        [row.name, old, new, &shown_change(row), &row.tolerance.to_string(), mark]
            .map(Cell::new)
            .into()
    }));
    text + &render(&align, &table)
}

/// The change in the tolerance's own terms: a difference where that is absolute, else a share.
fn shown_change(row: &Row) -> String {
    match row.tolerance {
        Tolerance::Absolute(_) if ["tokens_scored", "first_flips"].contains(&row.name) => {
            format!("{:+}", row.new - row.old)
        }
        Tolerance::Absolute(_) => format!("{:+.4}", row.new - row.old),
        _ if row.old == row.new => "0 %".into(),
        _ if row.old == 0.0 => "from 0".into(),
        _ => format!("{:+.1} %", (row.new / row.old - 1.0) * 100.0),
    }
}
