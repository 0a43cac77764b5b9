//! The report as Markdown, for pull requests and step summaries.
//!
//! Names and messages may be a stranger's. They stand in code spans and fenced blocks only, where nothing in them is
//! taken for markup, a link, a mention or a reference.

use super::advice::Advice;
use super::categories;
use super::glossary;
use super::needles::{self, Depths};
use super::row::{numbers, red_limit, Columns, Row};
use super::todo::{self, Step};
use super::view::{arithmetic, memory_of_card, ModelView, Standing, View};
use crate::results::verdict::Verdict;
use crate::results::{CaseResult, Finding, Measurement};
use crate::text;
use crate::text::numbers::count;

/// The most bytes of a step summary. GitHub drops a summary of more than 1 MiB as a whole.
pub const STEP_SUMMARY: usize = 900_000;

/// How much is shown. If a report does not fit, the next detail is tried, which leaves out more.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Detail {
    /// Everything.
    Whole,
    /// The messages of a few cases, and no more than the columns that decide.
    FewMessages,
    /// Only the schemes that are red, and no messages.
    RedOnly,
    /// The verdict, and links to the rest.
    Sentence,
}

/// The most messages at each detail. Nobody reads more.
const MESSAGES: [usize; 4] = [20, 3, 0, 0];
/// The most findings that are shown.
const FINDINGS: usize = 50;
/// The most models of which it is said what to serve.
const MODELS: usize = 30;
/// The most notes on measurements that are shown.
const NOTES: usize = 30;

/// The whole report: the verdict with the worst case, what to do about it, and what to serve; then failing rows and their
/// messages. Everything else is folded away. If that does not fit into so many bytes, sections are left out, and the
/// report says which.
pub fn render(view: &View, bytes: usize) -> String {
    let details = [Detail::Whole, Detail::FewMessages, Detail::RedOnly, Detail::Sentence];
    let texts = details.into_iter().map(|detail| at(view, detail));
    let fitting = texts.into_iter().find(|text| text.len() <= bytes);
    fitting.unwrap_or_else(|| format!("### {}kvgate: the report does not fit here\n", mark(view)))
}

fn at(view: &View, detail: Detail) -> String {
    let sentence = view.sentence_with(&code);
    let mut out = format!("### {}{sentence}\n\n", mark(view));
    if detail < Detail::Sentence {
        out += &what_to_do(view);
        out += &advice(view);
        out += &findings(&view.results.findings);
        out += &tables(view, detail);
        out += &origin(view);
        out += &folds(view, detail);
    }
    if detail > Detail::Whole {
        let left_out = match detail {
            Detail::Whole | Detail::FewMessages => "messages and columns",
            Detail::RedOnly => "messages and schemes that are not red",
            Detail::Sentence => "all but the verdict",
        };
        out += &format!("_Shortened: {left_out} did not fit; `results.json` has them._\n\n");
    }
    out + &links(view)
}

fn mark(view: &View) -> &'static str {
    match view.standing {
        Standing::Red => "❌ ",
        Standing::Pass => "✅ ",
        Standing::Expected | Standing::Unjudged => "",
    }
}

/// What to do about what is red.
fn what_to_do(view: &View) -> String {
    let step = |Step { fault, remedy }: Step| format!("- **{fault}:** {remedy}\n");
    let steps: String = todo::steps(view, &code).into_iter().map(step).collect();
    if steps.is_empty() {
        return steps;
    }
    steps + "\n"
}

/// Which scheme to serve, of each model that was judged.
fn advice(view: &View) -> String {
    let models = view.models.iter().filter_map(|model| Some((model.name, model.advice.as_ref()?)));
    let line =
        |(name, advice): (&str, &Advice)| format!("- {}: {}\n", code(name), advice.words(&code));
    let mut lines: Vec<String> = models.map(line).collect();
    let more = lines.len().saturating_sub(MODELS);
    lines.truncate(MODELS);
    if more > 0 {
        lines.push(format!("- … and {more} more\n"));
    }
    if lines.is_empty() {
        return String::new();
    }
    lines.concat() + "\n"
}

/// Says which engine measured, at which commit, which goldens the numbers are compared with, and what was not run.
fn origin(view: &View) -> String {
    let mut facts: Vec<_> = view.measured_by(&code).into_iter().chain(view.confidence()).collect();
    facts.extend(view.results.head.as_ref().map(|head| format!("commit {}", code(&short(head)))));
    let base = view.links.base.as_ref();
    facts.extend(base.map(|base| format!("changes are against {}", code(&short(base)))));
    facts.extend(view.ignored(&code));
    if facts.is_empty() {
        return String::new();
    }
    format!("{}\n\n", facts.join(" · "))
}

/// What a reader may look up.
fn folds(view: &View, detail: Detail) -> String {
    let mut out = String::new();
    if detail == Detail::Whole {
        out += &by_category(view);
        let rows: Vec<Row> = view.failing.iter().chain(&view.passing).copied().collect();
        if !rows.is_empty() {
            out += &folded("all columns", &table(&rows, Columns::All));
        }
    }
    let how = how(view) + &notes(view);
    if !how.is_empty() {
        out += &folded("how it was measured", &(how + "\n"));
    }
    let word = |(word, meaning): &glossary::Word| format!("- **{word}**: {meaning}\n");
    let words: String = glossary::words(view).iter().map(word).collect();
    out + &folded("what the words mean", &(words + "\n"))
}

/// What each scheme does to each category of text. Red schemes come first, and what makes one red is not folded away.
fn by_category(view: &View) -> String {
    let rows = view.failing.iter().chain(&view.passing);
    let lines: Vec<_> = rows.flat_map(|row| categories::lines(row, &code)).collect();
    if lines.is_empty() {
        return String::new();
    }
    let mut out = format!("| model | scheme | category | {} |\n", categories::HEAD.join(" | "));
    out += &format!("|---|---|---|{}---|\n", "--:|".repeat(categories::HEAD.len() - 1));
    for line in lines {
        let names = [line.model, line.label, &line.category].map(code).join(" | ");
        let limits = line.limits.map(|(_, words)| words).unwrap_or_default();
        out += &format!("| {names} | {} | {limits} |\n", line.numbers.join(" | "));
    }
    let fold = if view.is_red_by_category() { unfolded } else { folded };
    fold("by category of text", &(out + "\n"))
}

/// Says how each model was measured.
fn how(view: &View) -> String {
    let line = |m: &Measurement| {
        let (run, conditions) = (&m.run, &m.conditions);
        let memory = memory_of_card(run).map(|taken| format!(", {taken}")).unwrap_or_default();
        format!(
            "- {}: {} chunks of {} tokens, baseline PPL {:.3}, on {}, {}{memory}\n",
            code(&m.model),
            conditions.chunks,
            conditions.context,
            run.baseline_ppl,
            code(&run.device),
            code(&arithmetic(m)),
        )
    };
    view.results.measurements.iter().take(MODELS).map(line).collect()
}

/// Notes on what was measured.
fn notes(view: &View) -> String {
    let all = view.results.measurements.iter();
    let all = all.flat_map(|m| m.run.notes.iter().map(|note| (&m.model, note)));
    let line = |(model, note): (&String, &String)| {
        format!("- note on {}: {}\n", code(model), code_of(note))
    };
    let mut lines: Vec<String> = all.map(line).collect();
    let more = lines.len().saturating_sub(NOTES);
    lines.truncate(NOTES);
    if more > 0 {
        lines.push(format!("- … and {more} more\n"));
    }
    lines.concat()
}

/// The first digits of a commit, by which people name it.
fn short(sha: &str) -> String {
    sha.chars().take(12).collect()
}

fn findings(findings: &[Finding]) -> String {
    let row = |finding: &Finding| {
        let place = finding.place.as_ref().map(|place| format!(" {}", code(place)));
        let mark = if finding.is_red { "❌" } else { "•" };
        let name = text::name(&finding.name);
        let title = format!("- {mark} **{name}**{}", place.unwrap_or_default());
        if finding.message.contains('\n') {
            format!("{title}\n\n{}\n", fenced(&finding.message))
        } else {
            format!("{title}: {}\n", code_of(&finding.message))
        }
    };
    let mut out: String = findings.iter().take(FINDINGS).map(row).collect();
    if findings.len() > FINDINGS {
        out += &format!("- … and {} more\n", findings.len() - FINDINGS);
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

fn tables(view: &View, detail: Detail) -> String {
    let mut out = String::new();
    if !view.failing.is_empty() {
        out += &table(&view.failing, Columns::Deciding);
        out += &messages(&view.red_cases, MESSAGES[detail as usize]);
    }
    if !view.passing.is_empty() && detail < Detail::RedOnly {
        let title = format!("{} not red", count(view.passing.len(), "scheme"));
        out += &folded(&title, &table(&view.passing, Columns::Deciding));
    }
    if detail < Detail::RedOnly {
        out.extend(view.models.iter().take(MODELS).filter_map(needles));
    }
    out
}

/// What the schemes of a model retrieve from long contexts, folded away.
fn needles(model: &ModelView) -> Option<String> {
    let measurement = model.measurement?;
    let title = needles::title(measurement)?;
    let columns = needles::COLUMNS;
    let mut body = format!("{}\n\n", code(model.name));
    body += &format!("| {} |\n|---|{}\n", columns.join(" | "), "--:|".repeat(columns.len() - 1));
    for row in needles::rows(&model.rows, Depths::Ends) {
        let [label, rest @ ..] = &row[..] else { continue };
        body += &format!("| {} | {} |\n", code(label), rest.join(" | "));
    }
    body.push('\n');
    for remark in needles::remarks(measurement) {
        body += &format!("- {remark}\n");
    }
    Some(folded(&title, &(body + "\n")))
}

fn table(rows: &[Row], columns: Columns) -> String {
    let (names, numbers) = numbers(rows, columns);
    let mut out = format!("| model | scheme | verdict | {} |\n", names.join(" | "));
    out += &format!("|---|---|---|{}\n", "--:|".repeat(names.len()));
    for (row, numbers) in rows.iter().zip(numbers) {
        let names = [row.model, row.label].map(code).join(" | ");
        out += &format!("| {names} | {} | {} |\n", whole_verdict(row), numbers.join(" | "));
    }
    out += "\n";
    let remarks = rows.iter().filter(|_| columns == Columns::All).flat_map(Row::remarks);
    let remarks: String = remarks.map(|remark| format!("- {}\n", code_of(&remark))).collect();
    if !remarks.is_empty() {
        out += &remarks;
        out.push('\n');
    }
    out
}

/// Both verdicts of a row in one cell.
fn whole_verdict(row: &Row) -> String {
    let words: Vec<_> = row.telling().into_iter().map(verdict).collect();
    let half = row.half().map(|half| format!(" ({half})")).unwrap_or_default();
    words.join(", ") + &half
}

fn verdict(case: &CaseResult) -> String {
    match case.verdict {
        Verdict::Pass => "✅".into(),
        // it has no check mark, because it is no recommendation, and no red mark, because the policy asks for it
        verdict @ Verdict::FailsAsRequired => verdict.symbol().into(),
        verdict if verdict.is_red() => match red_limit(case, &code) {
            Some(limit) => format!("❌ {}: {limit}", verdict.label()),
            None => format!("❌ {}", verdict.label()),
        },
        verdict => verdict.label().into(),
    }
}

fn messages(red: &[&CaseResult], most: usize) -> String {
    let mut out = String::new();
    for case in red.iter().filter(|case| !case.message.is_empty()).take(most) {
        out += &format!(
            "{} {}\n\n{}\n",
            code(&case.case),
            case.verdict.label(),
            fenced(&case.message)
        );
    }
    if most > 0 && red.len() > most {
        out += &format!("Messages of the first {most} of {} red cases.\n\n", red.len());
    }
    out
}

fn links(view: &View) -> String {
    let mut out = String::new();
    if let Some(accept) = view.links.accept.as_ref().filter(|_| view.is_acceptable) {
        let how = format!(
            "To accept what was measured, after looking at it:\n\n{}",
            fenced_as("sh", &text::message(accept))
        );
        out += &folded("how to accept", &how);
    }
    if let Some(run) = &view.links.run {
        out += &format!("[the run and its report]({run})\n");
    }
    out
}

fn folded(title: &str, body: &str) -> String {
    format!("<details><summary>{title}</summary>\n\n{body}</details>\n\n")
}

/// A fold that is open.
fn unfolded(title: &str, body: &str) -> String {
    folded(title, body).replacen("<details>", "<details open>", 1)
}

fn fenced(message: &str) -> String {
    fenced_as("text", &text::message(message))
}

/// A fenced block. The fence is longer than any in the text, so that the text cannot end it.
fn fenced_as(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

/// A name in a code span. Characters that would end the span or a table's cell are replaced by others that look like
/// them.
pub(super) fn code(name: &str) -> String {
    span(&text::name(name))
}

/// A longer text in a code span.
pub(super) fn code_of(remark: &str) -> String {
    span(&text::remark(remark))
}

fn span(line: &str) -> String {
    match line.replace('`', "ˋ").replace('|', "¦").trim() {
        "" => "`–`".into(),
        line => format!("`{line}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use crate::results::verdict::Verdict;
    use crate::testing::fixture;

    /// What makes a scheme red is not folded away, as on the page. A limit that is broken as required makes none red.
    #[test]
    fn the_fold_of_categories_is_open_where_one_is_red() {
        let mut report = fixture::by_category();
        let has = |report: &Report, fold: &str| {
            let shown = render(&report.view(), STEP_SUMMARY);
            shown.contains(&format!("{fold}<summary>by category of text</summary>"))
        };
        assert!(has(&report, "<details open>"));
        report.results.cases[2].verdict = Verdict::FailsAsRequired;
        assert!(report.results.cases[3].verdict.is_red(), "its golden makes it red");
        assert!(has(&report, "<details>"));
    }

    #[test]
    fn whole_report() {
        insta::assert_snapshot!(render(&fixture::report().view(), STEP_SUMMARY), @"
### ❌ kvgate: 3 of 7 cases red (worst: `gemma-3-270m q4_0`: mean_kld 1.22 × its limit)

- **Too much harm:** `gemma-3-270m q4_0` (mean_kld 1.22 × its limit, set at `thresholds.toml:9`). Serve another scheme, or find what changed (weights, codec, texts) and mend it. Only if this harm is wanted, raise the limit, which a reviewer must allow.
- **Not the accepted numbers:** `gemma-3-270m q4_0` (mean_kld +206 % against the golden). If a change of the model or of kvgate explains it, look at the numbers and accept them (kvgate accept); if nothing does, find what changed before you merge.
- **Not measured:** `gemma-3-270m q8_0/q4_0`. The message says why. Mend that and run again: an error is neither a pass nor a failure.

- `gemma-3-270m`: serve `q8_0` (8.5 bits, KLD 0.00051 of 0.05) · not `q4_0` · not measured `q8_0/q4_0`
- `tiny`: no scheme passes · not `q4_0`

| model | scheme | verdict | bits K/V | mean KLD | limit | × limit | Δ golden | p99 | top-1 |
|---|---|---|--:|--:|--:|--:|--:|--:|--:|
| `gemma-3-270m` | `q4_0` | ❌ regressed: mean_kld 1.22 × its limit, ❌ golden changed | 4.5 / 4.5 | 0.06120 ± 0.00150 | 0.05 | 1.22 | +206 % | 0.7000 | 86.12 % |
| `gemma-3-270m` | `q8_0/q4_0` | ❌ error | 8.5 / 4.5 | – | – | – | – | – | – |

`gemma-3-270m::q4_0::kld` regressed

```text
mean_kld 0.0612 is over its limit 0.05 (thresholds.toml:9)
run `kvgate run gemma-3-270m::q4_0`
```

`gemma-3-270m::q4_0::golden` golden changed

```text
golden changed: 1 statistic left its tolerance
```

`gemma-3-270m::q8_0/q4_0::kld` error

```text
layer 3: K is NaN
```

<details><summary>2 schemes not red</summary>

| model | scheme | verdict | bits K/V | mean KLD | limit | × limit | Δ golden | p99 | top-1 |
|---|---|---|--:|--:|--:|--:|--:|--:|--:|
| `gemma-3-270m` | `q8_0` | ✅ | 8.5 / 8.5 | 0.00051 ± 0.00002 | 0.05 | 0.01 | +2.0 % | 0.0058 | 99.02 % |
| `tiny` | `q4_0` | ✗ (expected) | – | – | – | – | – | – | – |

</details>

measured by `kvgate 0.1.0`: the scheme in its own engine, not a serving kernel · commit `abc123`

<details><summary>all columns</summary>

| model | scheme | verdict | bits K/V | mean KLD | limit | × limit | Δ golden | p99 | top-1 | PPL ratio | B/token | of f16 | worst × limit |
|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
| `gemma-3-270m` | `q4_0` | ❌ regressed: mean_kld 1.22 × its limit, ❌ golden changed | 4.5 / 4.5 | 0.06120 ± 0.00150 | 0.05 | 1.22 | +206 % | 0.7000 | 86.12 % | 1.0442 | 144 | 28.1 % | 1.22 |
| `gemma-3-270m` | `q8_0/q4_0` | ❌ error | 8.5 / 4.5 | – | – | – | – | – | – | – | 208 | 40.6 % | – |
| `gemma-3-270m` | `q8_0` | ✅ | 8.5 / 8.5 | 0.00051 ± 0.00002 | 0.05 | 0.01 | +2.0 % | 0.0058 | 99.02 % | 1.0003 | 272 | 53.1 % | 0.01 |
| `tiny` | `q4_0` | ✗ (expected) | – | – | – | – | – | – | – | – | – | – | – |

</details>

<details><summary>how it was measured</summary>

- `gemma-3-270m`: 16 chunks of 512 tokens, baseline PPL 21.100, on `Some CPU`, `f32`
- note on `gemma-3-270m`: `code: 37 tokens of the tail dropped`

</details>

<details><summary>what the words mean</summary>

- **scheme**: How the cache stores K and V, the keys and values of attention: q8_0/q4_0 is K in q8_0 and V in q4_0.
- **baseline**: The same model with a cache that is not quantized. Schemes are compared with it.
- **KLD**: The KL divergence, by which the next-token distribution under a scheme differs from that under the baseline, in nats per token (natural logarithms). 0 is no difference. The mean is over all scored tokens.
- **interval**: The range behind a mean KLD, as in 0.0077 (0.0067–0.010): the mean over the whole text lies within it, with 95 % confidence if the policy asks for no other.
- **bits K/V**: How many bits the cache keeps for each number of K and of V at the measured context; f16 has 16.
- **p99**: The KLD that one token in a hundred exceeds.
- **top-1**: How often scheme and baseline have the same most likely token.
- **limit, × limit**: The most mean KLD that the policy allows, and how much of that the scheme has: above 1 is too much.
- **golden, Δ golden**: The accepted numbers of an earlier run, and the change of the mean KLD since; = is no change.
- **✗ (expected)**: The scheme breaks a limit, as the policy requires: it is known to be too coarse for this model. Do not serve it.
- **PPL ratio**: The perplexity under the scheme divided by that under the baseline, on the same text.
- **B/token, of f16**: Bytes that a token adds to the cache, and the size of the cache in percent of one in f16.
- **chunks, category**: Pieces of a text, each of which is read with an empty cache, and the text that they are from.

</details>

");
    }

    #[test]
    fn green_says_so_in_its_first_line() {
        let mut report = fixture::report();
        report.results.cases.retain(|case| !case.verdict.is_red());
        let text = render(&report.view(), STEP_SUMMARY);
        assert!(text.starts_with("### ✅ kvgate: 4 cases as the policy wants ("), "{text}");
        assert!(!text.contains('❌'));
        report.results.cases.retain(|case| case.verdict == Verdict::Ignored);
        let text = render(&report.view(), STEP_SUMMARY);
        assert!(text.starts_with("### kvgate: 1 case as the policy wants (1 ignored)"), "{text}");
    }

    #[test]
    fn a_control_that_failed_is_shown() {
        let mut report = fixture::report();
        report.results.measurements[0].controls[0].ok = false;
        assert!(render(&report.view(), STEP_SUMMARY)
            .contains(
                "- **The measurement itself is broken:** `gemma-3-270m`: the control `identity` must read `exactly 0`"
            ));
    }

    #[test]
    fn names_and_messages_stay_text() {
        assert_eq!(code("a|b`<c>@d -->\n"), "`a¦bˋ<c>@d -->`");
        assert_eq!((code(""), code_of("")), ("`(empty)`".into(), "`–`".into()));
        assert_eq!(fenced("x ``` y"), "````text\nx ``` y\n````\n");
    }

    #[test]
    fn what_does_not_fit_is_left_out_by_sections() {
        let mut report = fixture::report();
        report.links.run = Some("https://example.org/run/1".into());
        let whole = render(&report.view(), STEP_SUMMARY);
        for (bytes, kept, left_out) in [
            (whole.len(), "all columns", "Shortened"),
            (whole.len() - 1, "| `q8_0/q4_0` |", "all columns"),
            (700, "cases red", "| `q8_0/q4_0` |"),
        ] {
            let text = render(&report.view(), bytes);
            assert!(text.len() <= bytes, "{bytes}: {}", text.len());
            assert!(text.starts_with("### ❌ kvgate: 3 of 7 cases red"), "{text}");
            assert!(text.contains(kept) && !text.contains(left_out), "{text}");
            assert!(text.ends_with("(https://example.org/run/1)\n"), "{text}");
        }
        assert_eq!(render(&report.view(), 60), "### ❌ kvgate: the report does not fit here\n");
    }

    #[test]
    fn a_card_is_named_with_its_driver_its_arithmetic_and_the_memory_taken_there() {
        let mut report = fixture::report();
        fixture::on_a_card(&mut report.results.measurements[0]);
        let text = render(&report.view(), STEP_SUMMARY);
        let facts = "`Some Card, 139 GiB, driver for CUDA 13.0`, `f16 weights, sums in f32`, 12.5 GiB of the card";
        assert!(text.contains(facts), "{text}");
    }

    /// Whatever a stranger's results say, it is text: in a code span or a block, on its own line.
    #[test]
    fn hostile_names_stay_text() {
        let hostile =
            "@everyone --> | `code` <img src=x onerror=y> [a](https://evil) #1\n# head\u{202e}";
        let mut report = fixture::report();
        let long = "x".repeat(10_000_000);
        for m in &mut report.results.measurements {
            m.model = hostile.into();
            m.run.device = hostile.into();
            m.run.arithmetic = Some(hostile.into());
            m.schemes[0].scheme = hostile.into();
            m.schemes[1].effective = long.clone();
        }
        for case in &mut report.results.cases {
            case.case = format!("{hostile}::{hostile}::kld");
            case.message = format!("``` \n</details>\n{hostile}\n{long}");
        }
        report.results.head = Some(hostile.into());
        report.results.engine = hostile.into();
        let text = render(&report.view(), 60_000);
        assert!(text.len() <= 60_000);
        // outside of code spans and blocks there is nothing of it
        let mut fence: Option<&str> = None;
        for line in text.lines() {
            let mark = line.trim_start_matches(|c| c != '`').split(|c| c != '`').next().unwrap();
            match fence {
                Some(open) if line.starts_with(open) => fence = None,
                Some(_) => {}
                None if line.starts_with("```") => fence = Some(mark),
                None => {
                    let outside: String = line.split('`').step_by(2).collect();
                    for bad in ["@", "-->", "<img", "https", "#1", "\u{202e}"] {
                        assert!(!outside.contains(bad), "{bad} in {line}");
                    }
                    assert_eq!(line.matches('`').count() % 2, 0, "{line}");
                }
            }
        }
        assert_eq!(fence, None);
    }

    #[test]
    fn long_failures_are_cut_visibly() {
        let mut report = fixture::report();
        let red = report.results.cases[2].clone();
        report.results.cases = vec![red; 30];
        let text = render(&report.view(), STEP_SUMMARY);
        assert_eq!(text.matches("```text").count(), 20);
        assert!(text.contains("Messages of the first 20 of 30 red cases."));
    }
}
