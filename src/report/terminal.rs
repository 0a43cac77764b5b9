//! The report as tables and messages for a terminal.

use super::categories;
use super::needles::{self, Depths};
use super::phrase;
use super::row::{numbers, verdict_words, Columns, Row};
use super::todo::{self, Step};
use super::view::{arithmetic, memory_of_card, ModelView, View};
use crate::results::verdict::{Decision, Verdict};
use crate::results::{CaseResult, Control, Finding, Measurement};
use crate::text;
use crate::text::numbers::bytes;
use crate::text::table::{self, Align, Cell};
use anstyle::{AnsiColor, Style};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// The whole report with its colours. Print it through a stream that strips them where they are not wanted.
pub fn render(view: &View, columns: Columns) -> String {
    let messages: String = view.red_cases.iter().map(|case| message(case)).collect();
    render_with(view, columns, &messages)
}

/// The report without messages, for a test harness that has printed them already.
pub fn render_tables(view: &View, columns: Columns) -> String {
    render_with(view, columns, "")
}

/// The verdict and what to do come first, and the verdict once more at the end, which is what a terminal shows.
fn render_with(view: &View, columns: Columns, messages: &str) -> String {
    let is_judged = !view.results.cases.is_empty();
    let sentence = sentence(view);
    let mut out = if is_judged { sentence.clone() + &what_to_do(view) } else { String::new() };
    let measured = view.models.iter().filter(|model| !model.is_ignored());
    out.extend(measured.map(|one| model(one, is_judged, columns)));
    let ignored = view.ignored(&text::name);
    out.extend(ignored.map(|line| format!("\n{DIM}{line}{DIM:#}\n")));
    out += messages;
    out.extend(view.results.findings.iter().map(finding));
    let facts = view.measured_by(&text::name).into_iter().chain(view.confidence());
    let facts = facts.map(|fact| format!("{DIM}{fact}{DIM:#}\n")).collect::<String>();
    if !facts.is_empty() {
        out.push_str(&format!("\n{facts}"));
    }
    out + "\n" + &sentence
}

/// What to do about what is red, and which scheme to serve of each model that was judged.
fn what_to_do(view: &View) -> String {
    let step = |Step { fault, remedy }: Step| format!("  {BOLD}{fault}{BOLD:#}: {remedy}\n");
    let mut out: String = todo::steps(view, &text::name).into_iter().map(step).collect();
    let advised = view.models.iter().filter_map(|model| Some((model.name, model.advice.as_ref()?)));
    out.extend(advised.map(|(model, advice)| {
        let words = advice.words(&text::name);
        format!("  {BOLD}{}{BOLD:#}: {words}\n", text::name(model))
    }));
    out
}

/// A finding that belongs to no case.
fn finding(finding: &Finding) -> String {
    let verdict = if finding.is_red { Verdict::Regressed } else { Verdict::Reported };
    let style = colour(verdict);
    let place = finding.place.as_ref().map(|place| format!(" {}", text::name(place)));
    let name = text::name(&finding.name);
    let title = format!("{} {name}{}", verdict.symbol(), place.unwrap_or_default());
    format!("\n{style}{title}{style:#}\n{}", quoted(&finding.message))
}

fn model(model: &ModelView, is_judged: bool, columns: Columns) -> String {
    let ModelView { name, measurement, rows, .. } = model;
    let rows: Vec<Row> = rows.iter().filter(|row| !row.is_ignored()).copied().collect();
    let title = format!("{BOLD}{}{BOLD:#}", text::name(name));
    let [how, controls] = measurement.map_or_else(Default::default, |m| [how(m), controls(m)]);
    let needles = measurement.map_or_else(String::new, |m| needles(m, &rows));
    format!("\n{title}{how}\n{controls}")
        + &scheme_table(&rows, is_judged, columns)
        + &by_category(&rows, columns)
        + &needles
}

/// What the schemes of a model retrieve from long contexts, if that was measured.
fn needles(measurement: &Measurement, rows: &[Row]) -> String {
    let Some(title) = needles::title(measurement) else { return String::new() };
    let head = needles::COLUMNS.map(|name| Cell::styled(name, DIM)).into();
    let mut table: Vec<Vec<Cell>> = vec![head];
    for row in needles::rows(rows, Depths::Ends) {
        table.push(row.iter().map(|cell| Cell::new(text::name(cell))).collect());
    }
    let mut align = vec![Align::Left];
    align.extend([Align::Right; needles::COLUMNS.len() - 1]);
    let remarks = needles::remarks(measurement).into_iter();
    let remarks: String = remarks.map(|remark| format!("  {DIM}{remark}{DIM:#}\n")).collect();
    format!("  {title}\n{}{remarks}", table::render(&align, &table))
}

fn sentence(view: &View) -> String {
    let style = if view.exit_code == 0 { BOLD } else { colour(Verdict::Error).bold() };
    format!("{style}{}{style:#}\n", view.sentence())
}

/// Shows what was measured, on which text and machine.
fn how(measurement: &Measurement) -> String {
    let (run, conditions) = (&measurement.run, &measurement.conditions);
    let corpus: Vec<_> = conditions.corpus.iter().map(|f| f.category.as_str()).collect();
    // another engine's log does not say how much memory it took
    let of_process = (run.peak_bytes > 0).then(|| bytes(run.peak_bytes as f64));
    let memory = of_process.into_iter().chain(memory_of_card(run));
    let memory: String = memory.map(|taken| format!(" · {taken}")).collect();
    format!(
        "  baseline {} PPL {:.3} · {} × {} of {} · {}, {} · {:.1} s{memory}",
        text::name(&conditions.baseline),
        run.baseline_ppl,
        conditions.context,
        conditions.chunks,
        text::name(&corpus.join(", ")),
        text::name(&run.device),
        text::name(&arithmetic(measurement)),
        run.seconds,
    )
}

/// Shows the controls, which show that the measurement itself works, and the notes.
fn controls(measurement: &Measurement) -> String {
    let mut out = String::new();
    if !measurement.controls.is_empty() {
        let controls: Vec<_> = phrase::controls(measurement).into_iter().map(control).collect();
        out += &format!("  controls: {}\n", controls.join(" · "));
    }
    if let Some(floor) = &measurement.floor {
        out += &format!("  {DIM}floor: {}{DIM:#}\n", phrase::floor(floor));
    }
    for note in &measurement.run.notes {
        out += &format!("  {DIM}note: {}{DIM:#}\n", text::remark(note));
    }
    out
}

fn control((control, reading): (&Control, String)) -> String {
    let (mark, verdict) = if control.ok { ("✓", Verdict::Pass) } else { ("✗", Verdict::Error) };
    let style = colour(verdict);
    format!(
        "{} {} KLD {} {style}{mark} {}{style:#}",
        text::name(&control.name),
        text::name(&control.effective),
        text::name(&reading),
        text::name(&control.must)
    )
}

fn scheme_table(rows: &[Row], judged: bool, columns: Columns) -> String {
    let (names, numbers) = numbers(rows, columns);
    let verdicts: &[&str] = match columns {
        _ if !judged => &[],
        Columns::Deciding => &["verdict"],
        Columns::All => &["limits", "golden"],
    };
    let mut align = vec![Align::Left];
    align.extend(names.iter().map(|_| Align::Right));
    align.extend(verdicts.iter().map(|_| Align::Left));
    let head = ["scheme"].into_iter().chain(names).chain(verdicts.iter().copied());
    let mut table = vec![head.map(|name| Cell::styled(name, DIM)).collect()];
    for (row, numbers) in rows.iter().zip(numbers) {
        let name = match columns {
            Columns::Deciding => row.short_name(),
            Columns::All => row.name(),
        };
        let mut cells = vec![Cell::new(text::name(&name))];
        cells.extend(numbers.into_iter().map(Cell::new));
        match columns {
            _ if !judged => {}
            Columns::Deciding => cells.push(whole_verdict(row)),
            Columns::All => cells.extend(row.cases.map(verdict)),
        }
        table.push(cells);
    }
    let remarks = rows.iter().flat_map(Row::remarks);
    let remarks: String =
        remarks.map(|remark| format!("  {DIM}{}{DIM:#}\n", text::remark(&remark))).collect();
    table::render(&align, &table) + &remarks
}

/// What each scheme does to each category of text: all of it, or only where there are limits.
fn by_category(rows: &[Row], columns: Columns) -> String {
    let is_shown = |row: &&Row| columns == Columns::All || categories::has_limits(row);
    let lines = rows.iter().filter(is_shown).flat_map(|row| categories::lines(row, &text::name));
    let lines = lines.filter(|line| columns == Columns::All || line.limits.is_some());
    let mut align = vec![Align::Left; 2];
    align.extend([Align::Right; 4]);
    align.push(Align::Left);
    let head = ["scheme", "category"].into_iter().chain(categories::HEAD);
    let mut table: Vec<Vec<Cell>> = vec![head.map(|name| Cell::styled(name, DIM)).collect()];
    table.extend(lines.map(|line| {
        let names = [line.label, &line.category].map(|name| Cell::new(text::name(name)));
        let numbers = line.numbers.map(Cell::new);
        let limits = line.limits.map(|(decision, words)| Cell::styled(words, decided(decision)));
        names.into_iter().chain(numbers).chain(limits).collect()
    }));
    if table.len() == 1 {
        return String::new();
    }
    table::render(&align, &table)
}

fn verdict(case: Option<&CaseResult>) -> Cell {
    case.map_or(Cell::new(""), |case| Cell::styled(verdict_words(case), colour(case.verdict)))
}

/// Both verdicts of a row in one cell, in the colour of the first that says more than a pass.
fn whole_verdict(row: &Row) -> Cell {
    let told = row.telling();
    let words: Vec<_> = told.iter().map(|case| verdict_words(case)).collect();
    let half = row.half().map(|half| format!(" ({half})")).unwrap_or_default();
    let style = told.first().map_or(Style::new(), |case| colour(case.verdict));
    Cell::styled(words.join(", ") + &half, style)
}

fn decided(decision: Decision) -> Style {
    colour(match decision {
        Decision::Kept => Verdict::Pass,
        Decision::Broken => Verdict::Regressed,
        Decision::Undecided => Verdict::Inconclusive,
    })
}

fn message(case: &CaseResult) -> String {
    let style = colour(case.verdict);
    let title = format!("{} {}", case.verdict.symbol(), text::name(&case.case));
    format!("\n{style}{title}: {}{style:#}\n{}", case.verdict.label(), quoted(&case.message))
}

/// A message under its title. The bar before each line keeps it from being a command: GitHub's runner obeys lines
/// that begin with `::` after any blanks.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use crate::testing::fixture;

    fn plain(report: &Report) -> String {
        anstream::adapter::strip_str(&render(&report.view(), Columns::Deciding)).to_string()
    }

    #[test]
    fn whole_report() {
        insta::assert_snapshot!(plain(&fixture::report()), @"
kvgate: 3 of 7 cases red (worst: gemma-3-270m q4_0: mean_kld 1.22 × its limit)
  Too much harm: gemma-3-270m q4_0 (mean_kld 1.22 × its limit, set at thresholds.toml:9). Serve another scheme, or find what changed (weights, codec, texts) and mend it. Only if this harm is wanted, raise the limit, which a reviewer must allow.
  Not the accepted numbers: gemma-3-270m q4_0 (mean_kld +206 % against the golden). If a change of the model or of kvgate explains it, look at the numbers and accept them (kvgate accept); if nothing does, find what changed before you merge.
  Not measured: gemma-3-270m q8_0/q4_0. The message says why. Mend that and run again: an error is neither a pass nor a failure.
  gemma-3-270m: serve q8_0 (8.5 bits, KLD 0.00051 of 0.05) · not q4_0 · not measured q8_0/q4_0
  tiny: no scheme passes · not q4_0

gemma-3-270m  baseline f16 PPL 21.100 · 512 × 16 of prose, code · Some CPU, f32 · 61.3 s · 1.5 GiB
  controls: identity f16 KLD 0.0000 ✓ exactly 0 · bad lane q4_0:norot KLD 2.5000 ✓ at least 0.5
  note: code: 37 tokens of the tail dropped
  scheme      bits K/V           mean KLD  limit  × limit  Δ golden     p99    top-1  verdict
  q8_0       8.5 / 8.5  0.00051 ± 0.00002   0.05     0.01    +2.0 %  0.0058  99.02 %  ✓ pass
  q4_0       4.5 / 4.5  0.06120 ± 0.00150   0.05     1.22    +206 %  0.7000  86.12 %  ✗ regressed mean_kld 1.22 × its limit, ≠ golden changed
  q8_0/q4_0  8.5 / 4.5                  –      –        –         –       –        –  ! error

tiny
  scheme  bits K/V  mean KLD  limit  × limit  Δ golden  p99  top-1  verdict
  q4_0           –         –      –        –         –    –      –  ✗ (expected)

✗ gemma-3-270m::q4_0::kld: regressed
  │ mean_kld 0.0612 is over its limit 0.05 (thresholds.toml:9)
  │ run `kvgate run gemma-3-270m::q4_0`

≠ gemma-3-270m::q4_0::golden: golden changed
  │ golden changed: 1 statistic left its tolerance

! gemma-3-270m::q8_0/q4_0::kld: error
  │ layer 3: K is NaN

measured by kvgate 0.1.0: the scheme in its own engine, not a serving kernel

kvgate: 3 of 7 cases red (worst: gemma-3-270m q4_0: mean_kld 1.22 × its limit)

");
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

    #[test]
    fn a_card_is_named_with_its_driver_its_arithmetic_and_the_memory_taken_there() {
        let mut report = fixture::report();
        fixture::on_a_card(&mut report.results.measurements[0]);
        let text = plain(&report);
        let facts = "of prose, code · Some Card, 139 GiB, driver for CUDA 13.0, f16 weights, sums in f32 · 61.3 s · \
                     1.5 GiB · 12.5 GiB of the card\n";
        assert!(text.contains(facts), "{text}");
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
        assert!(render(&fixture::report().view(), Columns::Deciding).contains(
            "\u{1b}[31m✗ regressed mean_kld 1.22 × its limit, ≠ golden changed\u{1b}[0m"
        ));
    }
}
