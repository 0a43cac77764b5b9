//! The report for pull requests and step summaries.

use super::row::{models, numbers, red_cases, rows, Row};
use crate::results::{CaseResult, Results};
use crate::verdict::Verdict;

/// Messages shown in full: a summary over 1 MiB is refused whole, and nobody reads more.
const MESSAGES: usize = 20;

/// The whole report: the verdict with the worst case first, failing rows, their messages, and
/// passing rows folded away.
pub fn render(results: &Results) -> String {
    let red = red_cases(results);
    let mut out = format!("### {}{}\n\n", mark(results), escape(&super::sentence(results)));
    out += &provenance(results);

    let all = models(results).into_iter().flat_map(|model| rows(results, model));
    let (mut failing, passing): (Vec<_>, Vec<_>) = all.partition(Row::is_red);
    let place = |row: &Row| {
        let is_its = |case: &&CaseResult| row.cases.iter().flatten().any(|c| c.case == case.case);
        red.iter().position(is_its)
    };
    failing.sort_by_key(place);
    if !failing.is_empty() {
        out += &table(&failing);
        out += &messages(&red);
    }
    if !passing.is_empty() {
        let title = format!("{} not red", super::count(passing.len(), "scheme"));
        out += &folded(&title, &table(&passing));
    }
    out
}

/// Skipped, reported or not judged at all is never a pass.
fn mark(results: &Results) -> &'static str {
    let held = |case: &CaseResult| matches!(case.verdict, Verdict::Pass | Verdict::FailsAsRequired);
    if results.cases.iter().any(|case| case.verdict.is_red()) {
        "❌ "
    } else if results.cases.iter().any(held) {
        "✅ "
    } else {
        ""
    }
}

/// Where the numbers are from.
fn provenance(results: &Results) -> String {
    let mut facts = vec![results.engine.clone()];
    facts.extend(
        results.head.as_ref().map(|head| format!("commit {}", head.get(..12).unwrap_or(head))),
    );
    for m in &results.measurements {
        let (run, conditions) = (&m.run, &m.conditions);
        facts.push(format!(
            "{}: baseline PPL {:.3}, {} × {}, {}",
            m.model, run.baseline_ppl, conditions.context, conditions.chunks, run.device
        ));
        for control in m.controls.iter().filter(|c| !c.ok) {
            facts.push(format!(
                "⚠️ {} control {} must read {}",
                m.model, control.name, control.must
            ));
        }
    }
    format!("{}\n\n", escape(&facts.join(" · ")))
}

fn table(rows: &[Row]) -> String {
    let (names, numbers) = numbers(rows);
    let mut out = format!("| model | scheme | {} | limits | golden |\n", names.join(" | "));
    out += &format!("|---|---|{}---|---|\n", "--:|".repeat(names.len()));
    for (row, numbers) in rows.iter().zip(numbers) {
        let [limits, golden] = row.cases.map(verdict);
        out += &format!(
            "| {} | {} | {} | {limits} | {golden} |\n",
            code(row.model),
            code(row.label),
            numbers.join(" | ")
        );
    }
    out += "\n";
    let remarks = rows.iter().flat_map(Row::remarks);
    let remarks: String = remarks.map(|remark| format!("- {}\n", escape(&remark))).collect();
    match remarks.is_empty() {
        true => out,
        false => out + &remarks + "\n",
    }
}

fn verdict(case: Option<&CaseResult>) -> String {
    match case.map(|case| case.verdict) {
        None => String::new(),
        Some(Verdict::Pass) => "✅".into(),
        // never a check mark, nor a red one: the policy asks for it
        Some(verdict @ Verdict::FailsAsRequired) => verdict.symbol().into(),
        Some(verdict) if verdict.is_red() => format!("❌ {}", verdict.label()),
        Some(verdict) => verdict.label().into(),
    }
}

fn messages(red: &[&CaseResult]) -> String {
    let mut out = String::new();
    for case in red.iter().filter(|case| !case.message.is_empty()).take(MESSAGES) {
        out += &format!(
            "{} {}\n\n{}\n",
            code(&case.case),
            case.verdict.label(),
            fenced(&case.message)
        );
    }
    if red.len() > MESSAGES {
        out += &format!("Messages of the first {MESSAGES} of {} red cases.\n\n", red.len());
    }
    out
}

fn folded(title: &str, body: &str) -> String {
    format!("<details><summary>{title}</summary>\n\n{body}</details>\n\n")
}

/// A block whose fence is longer than any in the text.
fn fenced(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{}\n{fence}\n", text.trim_end())
}

/// A name, set as code: nothing in it is markup, and nobody is mentioned.
fn code(name: &str) -> String {
    format!("<code>{}</code>", escape(name))
}

/// Characters that markdown, HTML or a mention could take for more than text.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '<' | '>' | '|' | '`' | '@' | '*' | '~' | '[' | ']' | '\\' | '#' => {
                out += &format!("&#{};", u32::from(c));
            }
            // a name that breaks its line would break the table
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn whole_report() {
        assert_eq!(
            render(&fixture::results()),
            "\
### ❌ kvgate: 3 of 7 cases red (worst: gemma-3-270m::q4_0::kld regressed, mean KLD 0.0612)

kvgate 0.1.0 · commit abc123 · gemma-3-270m: baseline PPL 21.100, 512 × 16, Some CPU

| model | scheme | bits K/V | mean KLD | p99 | top-1 | PPL ratio | limits | golden |
|---|---|--:|--:|--:|--:|--:|---|---|
| <code>gemma-3-270m</code> | <code>q4_0</code> | 4.5 / 4.5 | 0.06120 ± 0.00150 | 0.7000 | 86.12 % | 1.0442 | ❌ regressed | ❌ golden changed |
| <code>gemma-3-270m</code> | <code>q8_0/q4_0</code> | 8.5 / 4.5 | – | – | – | – | ❌ error |  |

<code>gemma-3-270m::q4_0::kld</code> regressed

```text
mean_kld 0.0612 is over its limit 0.05 (thresholds.toml:9)
run `kvgate run gemma-3-270m::q4_0`
```

<code>gemma-3-270m::q4_0::golden</code> golden changed

```text
golden changed: 1 statistic left its tolerance
```

<code>gemma-3-270m::q8_0/q4_0::kld</code> error

```text
layer 3: K is NaN
```

<details><summary>2 schemes not red</summary>

| model | scheme | bits K/V | mean KLD | p99 | top-1 | PPL ratio | limits | golden |
|---|---|--:|--:|--:|--:|--:|---|---|
| <code>gemma-3-270m</code> | <code>q8_0</code> | 8.5 / 8.5 | 0.00051 ± 0.00002 | 0.0058 | 99.02 % | 1.0003 | ✅ | ✅ |
| <code>tiny</code> | <code>q4_0</code> | – | – | – | – | – | ✗ (expected) | ignored |

</details>

"
        );
    }

    #[test]
    fn green_says_so_in_its_first_line() {
        let mut results = fixture::results();
        results.cases.retain(|case| !case.verdict.is_red());
        let text = render(&results);
        assert!(text.starts_with("### ✅ kvgate: 4 cases as the policy wants ("), "{text}");
        assert!(!text.contains('❌'));
        results.cases.retain(|case| case.verdict == Verdict::Ignored);
        let text = render(&results);
        assert!(text.starts_with("### kvgate: 1 case as the policy wants (1 ignored)"), "{text}");
    }

    #[test]
    fn a_control_that_failed_is_shown() {
        let mut results = fixture::results();
        results.measurements[0].controls[0].ok = false;
        assert!(render(&results).contains("⚠️ gemma-3-270m control identity must read exactly 0"));
    }

    #[test]
    fn names_and_messages_stay_text() {
        assert_eq!(code("a|b`<c>@d"), "<code>a&#124;b&#96;&#60;c&#62;&#64;d</code>");
        assert_eq!(fenced("x ``` y"), "````text\nx ``` y\n````\n");
    }

    #[test]
    fn long_failures_are_cut_visibly() {
        let mut results = fixture::results();
        let red = results.cases[2].clone();
        results.cases = vec![red; 30];
        let text = render(&results);
        assert_eq!(text.matches("```text").count(), 20);
        assert!(text.contains("Messages of the first 20 of 30 red cases."));
    }
}
