//! The report for a terminal.

use super::row::{measurement, models, numbers, red_cases, rows, verdict_words, Row};
use super::Report;
use crate::results::verdict::Verdict;
use crate::results::{CaseResult, Finding, Measurement, Results};
use crate::text;
use crate::text::table::{self, Align, Cell};
use anstyle::{AnsiColor, Style};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// The whole report with its colours; print it through a stream that strips them where they are not
/// wanted.
pub fn render(report: &Report) -> String {
    let messages: String = red_cases(&report.results).into_iter().map(message).collect();
    render_with(report, &messages)
}

/// The same without messages, which a test harness has printed already.
pub fn render_tables(report: &Report) -> String {
    render_with(report, "")
}

fn render_with(report: &Report, messages: &str) -> String {
    let findings: String = report.results.findings.iter().map(finding).collect();
    let by = report.measured_by(&text::name).map(|by| format!("\n{DIM}{by}{DIM:#}\n"));
    tables(&report.results) + messages + &findings + &by.unwrap_or_default() + &sentence(report)
}

/// Something beside the cases.
fn finding(finding: &Finding) -> String {
    let verdict = if finding.is_red { Verdict::Regressed } else { Verdict::Reported };
    let style = colour(verdict);
    let place = finding.place.as_ref().map(|place| format!(" {}", text::name(place)));
    let name = text::name(&finding.name);
    let title = format!("{} {name}{}", verdict.symbol(), place.unwrap_or_default());
    format!("\n{style}{title}{style:#}\n{}", quoted(&finding.message))
}

fn tables(results: &Results) -> String {
    let mut out = String::new();
    for model in models(results) {
        let rows = rows(results, model);
        if rows.iter().all(Row::is_ignored) {
            out += &ignored(model, &rows);
            continue;
        }
        let facts = measurement(results, model).map_or("\n".into(), facts);
        out += &format!("\n{BOLD}{}{BOLD:#}{facts}", text::name(model));
        out += &scheme_table(&rows, !results.cases.is_empty());
    }
    out
}

/// A model of which nothing was asked for is a line, not a table of dashes.
fn ignored(model: &str, rows: &[Row]) -> String {
    let labels: Vec<_> = rows.iter().map(|row| text::name(row.label)).collect();
    let model = text::name(model);
    let style = colour(Verdict::Ignored);
    format!("\n{BOLD}{model}{BOLD:#}  {style}– ignored{style:#}: {}\n", labels.join(", "))
}

fn sentence(report: &Report) -> String {
    let style = if report.exit_code() == 0 { BOLD } else { colour(Verdict::Error).bold() };
    format!("\n{style}{}{style:#}\n", report.sentence())
}

/// What was measured, on what, and the lanes that prove the ruler.
fn facts(measurement: &Measurement) -> String {
    let (run, conditions) = (&measurement.run, &measurement.conditions);
    let corpus: Vec<_> = conditions.corpus.iter().map(|f| f.category.as_str()).collect();
    let mut out = format!(
        "  baseline {} PPL {:.3} · {} × {} of {} · {}, {} · {:.1} s · {}\n",
        text::name(&conditions.baseline),
        run.baseline_ppl,
        conditions.context,
        conditions.chunks,
        text::name(&corpus.join(", ")),
        text::name(&run.device),
        text::name(&arithmetic(measurement)),
        run.seconds,
        memory(run.peak_bytes),
    );
    if !measurement.controls.is_empty() {
        let controls = measurement.controls.iter().map(|c| {
            let mark = if c.ok { "✓" } else { "✗" };
            let style = colour(if c.ok { Verdict::Pass } else { Verdict::Error });
            format!(
                "{} {} KLD {} {style}{mark} {}{style:#}",
                text::name(&c.name),
                text::name(&c.effective),
                c.reading(),
                text::name(&c.must)
            )
        });
        out += &format!("  controls: {}\n", controls.collect::<Vec<_>>().join(" · "));
    }
    for note in &run.notes {
        out += &format!("  {DIM}note: {}{DIM:#}\n", text::remark(note));
    }
    out
}

fn scheme_table(rows: &[Row], judged: bool) -> String {
    let (names, numbers) = numbers(rows);
    let mut align = vec![Align::Left];
    align.extend(names.iter().map(|_| Align::Right));
    let mut head = vec![Cell::styled("scheme", DIM)];
    head.extend(names.iter().map(|name| Cell::styled(*name, DIM)));
    if judged {
        align.extend([Align::Left; 2]);
        head.extend(["limits", "golden"].map(|name| Cell::styled(name, DIM)));
    }
    let mut table = vec![head];
    for (row, numbers) in rows.iter().zip(numbers) {
        let mut cells = vec![Cell::new(text::name(&row.name()))];
        cells.extend(numbers.into_iter().map(Cell::new));
        if judged {
            cells.extend(row.cases.map(verdict));
        }
        table.push(cells);
    }
    let remarks = rows.iter().flat_map(Row::remarks);
    let remarks: String =
        remarks.map(|remark| format!("  {DIM}{}{DIM:#}\n", text::remark(&remark))).collect();
    table::render(&align, &table) + &remarks
}

fn verdict(case: Option<&CaseResult>) -> Cell {
    case.map_or(Cell::new(""), |case| Cell::styled(verdict_words(case), colour(case.verdict)))
}

fn message(case: &CaseResult) -> String {
    let style = colour(case.verdict);
    let title = format!("{} {}", case.verdict.symbol(), text::name(&case.case));
    format!("\n{style}{title}: {}{style:#}\n{}", case.verdict.label(), quoted(&case.message))
}

/// A message under its title. The bar keeps a line of it from being a command to GitHub's runner, which
/// obeys lines that begin with `::` after any blanks.
fn quoted(message: &str) -> String {
    text::message(message).lines().map(|line| format!("  │ {line}\n")).collect()
}

fn colour(verdict: Verdict) -> Style {
    let colour = match verdict {
        Verdict::Pass => AnsiColor::Green,
        Verdict::FailsAsRequired | Verdict::Reported | Verdict::Ignored => AnsiColor::Cyan,
        Verdict::GoldenChanged | Verdict::Stale | Verdict::Inconclusive => AnsiColor::Yellow,
        Verdict::Regressed | Verdict::UnexpectedPass | Verdict::Error => AnsiColor::Red,
    };
    colour.on_default()
}

/// The type of activations, and of weights where they are kept in another.
pub(super) fn arithmetic(measurement: &Measurement) -> String {
    let (dtype, weights) = (&measurement.run.dtype, &measurement.conditions.weights);
    match dtype == weights {
        true => dtype.clone(),
        false => format!("{dtype}, weights kept as {weights}"),
    }
}

/// Bytes for people, in binary units.
pub(super) fn memory(bytes: u64) -> String {
    let mib = bytes as f64 / (1 << 20) as f64;
    if mib < 1024.0 {
        format!("{mib:.0} MiB")
    } else {
        format!("{:.1} GiB", mib / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    fn plain(report: &Report) -> String {
        anstream::adapter::strip_str(&render(report)).to_string()
    }

    #[test]
    fn whole_report() {
        assert_eq!(
            plain(&fixture::report()),
            "
gemma-3-270m  baseline f16 PPL 21.100 · 512 × 16 of prose, code · Some CPU, f32 · 61.3 s · 1.5 GiB
  controls: identity f16 KLD 0.0000 ✓ exactly 0 · bad lane q4_0:norot KLD 2.5000 ✓ at least 0.5
  note: code: 37 tokens of the tail dropped
  scheme      bits K/V           mean KLD  limit  Δ golden     p99    top-1  limits                       golden
  q8_0       8.5 / 8.5  0.00051 ± 0.00002   0.05    +2.0 %  0.0058  99.02 %  ✓ pass                       ✓ pass
  q4_0       4.5 / 4.5  0.06120 ± 0.00150   0.05    +206 %  0.7000  86.12 %  ✗ regressed mean_kld 1.22 ×  ≠ golden changed
  q8_0/q4_0  8.5 / 4.5                  –      –         –       –        –  ! error

tiny
  scheme  bits K/V  mean KLD  limit  Δ golden  p99  top-1  limits        golden
  q4_0           –         –      –         –    –      –  ✗ (expected)  – ignored

✗ gemma-3-270m::q4_0::kld: regressed
  │ mean_kld 0.0612 is over its limit 0.05 (thresholds.toml:9)
  │ run `kvgate run gemma-3-270m::q4_0`

≠ gemma-3-270m::q4_0::golden: golden changed
  │ golden changed: 1 statistic left its tolerance

! gemma-3-270m::q8_0/q4_0::kld: error
  │ layer 3: K is NaN

measured by kvgate 0.1.0: the scheme in its own engine, not a serving kernel

kvgate: 3 of 7 cases red (worst: gemma-3-270m q4_0: mean_kld 1.22 × its limit)
"
        );
    }

    #[test]
    fn measured_without_a_policy() {
        let mut report = fixture::report();
        report.results.cases.clear();
        report.results.measurements[0].schemes[0].scheme = "prod".into();
        let text = plain(&report);
        assert!(!text.contains("limits"), "{text}");
        assert!(text.contains("  prod = q8_0  8.5 / 8.5"), "{text}");
        assert!(text.ends_with("\n\nkvgate: 3 schemes measured, nothing judged\n"), "{text}");
    }

    /// GitHub's runner obeys lines that begin with `::`, a terminal escape sequences.
    #[test]
    fn messages_command_nobody() {
        let mut report = fixture::report();
        report.results.cases[2].message = "one\n  ::error::two\n\u{1b}]0;three".into();
        report.results.findings = vec![fixture::weakened()];
        report.results.findings[0].message = "::stop-commands::x".into();
        let text = plain(&report);
        assert!(text.contains("  │ one\n  │   ::error::two\n  │ \\u{1b}]0;three\n"), "{text}");
        assert!(
            text.contains("✗ policy::weakened thresholds.toml:9\n  │ ::stop-commands"),
            "{text}"
        );
        assert!(!text.lines().any(|line| line.trim_start().starts_with("::")), "{text}");
    }

    #[test]
    fn colours_are_there_to_be_stripped() {
        assert!(
            render(&fixture::report()).contains("\u{1b}[31m✗ regressed mean_kld 1.22 ×\u{1b}[0m")
        );
    }
}
