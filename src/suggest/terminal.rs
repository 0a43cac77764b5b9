//! A suggestion for a terminal.

use super::words::{bits, is_numbered, kld, shown};
use super::{Row, Suggestion};
use crate::text;
use crate::text::numbers::significant;
use crate::text::table::{self, Align, Cell};
use anstyle::{AnsiColor, Style};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GREEN: Style = AnsiColor::Green.on_default();
/// The whole suggestion with its colours. Print it through a stream that strips them where they are not wanted.
pub fn render(suggestion: &Suggestion) -> String {
    let Suggestion { model, conditions, device, arithmetic, seconds, lane_chunks, .. } = suggestion;
    let mut out = format!(
        "\n{BOLD}{}{BOLD:#}  for {}{} · baseline {} PPL {:.3} · {}, {} · {lane_chunks} lane-chunks · {seconds:.1} s\n",
        text::name(model),
        suggestion.engine.name(),
        only(&suggestion.codecs),
        text::name(&conditions.baseline),
        suggestion.baseline_ppl,
        text::name(device),
        text::name(arithmetic),
    );
    for note in &suggestion.notes {
        out += &format!("  {DIM}note: {}{DIM:#}\n", text::remark(note));
    }
    out.push('\n');
    for sentence in &suggestion.answer {
        out += &text::wrapped(&text::message(sentence));
    }
    out + &rows(suggestion) + &long_names(suggestion) + &flags(suggestion) + &unfit(suggestion)
}

/// The codecs that were asked for, if any were.
fn only(codecs: &[String]) -> String {
    match codecs {
        [] => String::new(),
        names => format!(", only {}", text::listed(names.iter().map(|name| text::name(name)))),
    }
}

/// The rows, those on the frontier bright. A star marks the scheme to serve.
fn rows(suggestion: &Suggestion) -> String {
    let head = ["", "scheme", "bits", "predicted", "measured KLD", "verified KLD", "p99", "top-1"];
    let mut lines = vec![head.map(|name| Cell::styled(name, DIM)).into()];
    for (i, row) in suggestion.rows.iter().enumerate() {
        let is_recommended = suggestion.is_recommended(i);
        let style = match row.is_frontier {
            _ if is_recommended => GREEN,
            true => Style::new(),
            false => DIM,
        };
        let reading = row.verified.as_ref().unwrap_or(&row.measured);
        let cells = [
            if is_recommended { "*".into() } else { String::new() },
            name(i, row),
            bits(row.bits).to_string(),
            row.predicted.map_or("–".into(), |kld| significant(kld, 2)),
            kld(&row.measured),
            row.verified.as_ref().map_or("–".into(), kld),
            significant(reading.p99_kld, 2),
            format!("{:.2} %", 100.0 * reading.top1_agreement),
        ];
        lines.push(cells.map(|cell| Cell::styled(cell, style)).into());
    }
    let mut align = vec![Align::Left, Align::Left];
    align.extend([Align::Right; 6]);
    format!("\n{}", table::render(&align, &lines))
}

fn name(i: usize, row: &Row) -> String {
    text::name(&shown(i, row))
}

fn long_names(suggestion: &Suggestion) -> String {
    let rows = suggestion.rows.iter().enumerate();
    let long = rows.filter(|(_, row)| is_numbered(row));
    let lines =
        long.map(|(i, row)| format!("  {} = {}\n", name(i, row), text::printable(&row.scheme)));
    let lines: String = lines.collect();
    if lines.is_empty() {
        lines
    } else {
        format!("\n{lines}")
    }
}

/// What the users of engines type for the rows on the frontier.
fn flags(suggestion: &Suggestion) -> String {
    let mut lines = String::new();
    for (i, row) in suggestion.rows.iter().enumerate() {
        if (row.is_frontier || suggestion.is_recommended(i)) && suggestion.may_serve(i) {
            for flags in &row.flags {
                let (engine, flags) = (text::name(&flags.engine), text::printable(&flags.flags));
                lines += &format!("  {}  {DIM}{engine}:{DIM:#} {flags}\n", name(i, row));
            }
        }
    }
    if lines.is_empty() {
        lines
    } else {
        format!("\n{lines}")
    }
}

fn unfit(suggestion: &Suggestion) -> String {
    let line = |unfit: &super::Unfit| {
        let (codec, why) = (text::name(&unfit.codec), text::remark(&unfit.why));
        format!("  {DIM}not tried: {codec}: {why}{DIM:#}\n")
    };
    suggestion.unfit.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{row, suggestion};
    use super::super::words::answer;
    use super::super::REFERENCE;
    use super::*;

    fn plain(suggestion: &Suggestion) -> String {
        anstream::adapter::strip_str(&render(suggestion)).to_string()
    }

    #[test]
    fn whole_suggestion() {
        let rows = vec![
            row("q5_0/q4_0@0=f16/q4_0@3-4=q8_0@7=q4_0", 5.25, 0.004),
            row(REFERENCE, 6.5, 0.0077),
            row("q8_0", 8.5, 0.001),
        ];
        let mut suggestion = suggestion(rows, None);
        suggestion.answer = answer(&suggestion);
        insta::assert_snapshot!(plain(&suggestion), @r"

tiny  for any engine · baseline f16 PPL 21.100 · Some CPU, f32 · 120 lane-chunks · 12.3 s
  note: BOS 2 before each chunk

  Serve mixture 1: 5.25 bits (5 MiB for 512 tokens), KLD 0.0044 (0.0042–0.0048) on 10 chunks that
    did not choose it. No budget was given: of what has fewer bits than q8_0/q4_0 and surely does no
    more on the chunks that chose, it has the fewest bits, and the other chunks do not refute that.
    Neither llama.cpp nor vLLM has options for it (`kvgate schemes` says which engines have its
    codecs).
  q8_0/q4_0 has 6.5 bits and KLD 0.0085 (0.0081–0.0093). mixture 1 has 1.25 bits fewer and does no
    more: its KLD differs by −0.0041 (−0.0043 to −0.0038) on the same chunks, which did not choose
    it.
  Single parts predicted the mixed schemes that were measured by their sum: on the same 2 chunks
    they do 1.1 × as much.
  10 chunks of 512 tokens of prose chose, and 10 other chunks of the same texts verified.

     scheme     bits  predicted             measured KLD            verified KLD    p99    top-1
  *  mixture 1  5.25     0.0036   0.0040 (0.0038–0.0044)  0.0044 (0.0042–0.0048)  0.044  96.68 %
     q8_0/q4_0   6.5     0.0069   0.0077 (0.0074–0.0085)  0.0085 (0.0081–0.0093)  0.085  95.40 %
     q8_0        8.5    0.00090  0.0010 (0.00096–0.0011)  0.0011 (0.0011–0.0012)  0.011  98.34 %

  mixture 1 = q5_0/q4_0@0=f16/q4_0@3-4=q8_0@7=q4_0

  q8_0  llama.cpp: --cache-type-k q8_0 --cache-type-v q8_0
");
    }

    #[test]
    fn strangers_texts_command_nobody() {
        let mut suggestion = suggestion(vec![row(REFERENCE, 6.5, 0.0077)], None);
        suggestion.model = "\u{1b}]0;x".into();
        suggestion.notes = vec!["one\n::error::two".into()];
        suggestion.answer = vec!["a\u{1b}[2Jb".into()];
        let shown = plain(&suggestion);
        assert!(shown.contains("\\u{1b}]0;x") && shown.contains("a\\u{1b}[2Jb"), "{shown}");
        assert!(!shown.lines().any(|line| line.trim_start().starts_with("::")), "{shown}");
    }
}
