//! The report as a section of a model card, in Markdown: which KV scheme to serve, by which options, and how that was
//! measured.

use super::advice::Advised;
use super::flags::{self, Flags};
use super::markdown::{code, code_of};
use super::row::{worst_limit, Row};
use super::view::{arithmetic, ModelView, View};
use crate::results::Measurement;

/// The most models that are shown.
const MODELS: usize = 50;
/// The most schemes of a model that are shown.
const SCHEMES: usize = 100;

/// The whole section.
pub fn render(view: &View) -> String {
    let mut out = String::from("## KV cache\n\n");
    let shown: Vec<_> = view.models.iter().take(MODELS).collect();
    for model in &shown {
        let verdict = model.advice.as_ref().map_or("not judged".into(), |one| one.words(&code));
        out += &format!("- {}: {verdict}\n", code(model.name));
    }
    if view.models.len() > MODELS {
        out += &format!("- … and {} more\n", view.models.len() - MODELS);
    }
    out += "\nKLD is the mean KL divergence of the next-token distribution from that under the baseline's cache, in nats \
            per token.\n\n";
    out.extend(shown.iter().map(|model| section(model)));
    if let Some(by) = view.measured_by(&code) {
        out += &format!("All of this was {by}.\n");
    }
    out
}

fn section(model: &ModelView) -> String {
    let mut out = format!("### {}\n\n", code(model.name));
    out += &table(model);
    if let Some(advice) = &model.advice {
        out += &serving(&advice.passing());
    }
    if let Some(measurement) = model.measurement {
        out += &measured(measurement);
    }
    out
}

fn table(model: &ModelView) -> String {
    let rows: Vec<&Row> = model.rows.iter().filter(|row| !row.is_ignored()).collect();
    if rows.is_empty() {
        return "None of its schemes was run.\n\n".into();
    }
    let mut out = String::from("| scheme | bits K/V | mean KLD | limit | top-1 | verdict |\n");
    out += "|---|--:|--:|--:|--:|---|\n";
    for row in rows.iter().take(SCHEMES) {
        let numbers = row.card().join(" | ");
        out += &format!("| {} | {numbers} | {} |\n", code(row.label), verdict(model, row));
    }
    out.push('\n');
    if rows.len() > SCHEMES {
        out += &format!("… and {} more schemes\n\n", rows.len() - SCHEMES);
    }
    let remarks = rows.iter().take(SCHEMES).flat_map(|row| row.remarks());
    let remarks: String = remarks.map(|remark| format!("- {}\n", code_of(&remark))).collect();
    if !remarks.is_empty() {
        out += &remarks;
        out.push('\n');
    }
    out
}

/// What the row's verdicts come to. It is left out where nothing can be recommended, because a reader of the table would
/// take a pass for a recommendation.
fn verdict(model: &ModelView, row: &Row) -> String {
    let advice = model.advice.as_ref().filter(|advice| advice.withheld.is_none());
    let mut rows = advice.into_iter().flat_map(|advice| &advice.rows);
    let advised = rows.find(|(own, _)| own.label == row.label).map(|(_, advised)| *advised);
    match advised {
        None | Some(Advised::Unjudged) => "–".into(),
        Some(Advised::Passes) => "✅ passes".into(),
        Some(Advised::Breaks) => {
            let limit = row.cases[0].and_then(|case| worst_limit(case, &code));
            limit.map_or("❌ breaks a limit".into(), |limit| format!("❌ {limit}"))
        }
        Some(Advised::Unmeasured) => "not measured".into(),
        Some(Advised::Open) => {
            let red = row.cases.iter().flatten().find(|case| case.verdict.is_red());
            red.map_or("open".into(), |case| format!("open: {}", case.verdict.label()))
        }
    }
}

/// What engines' users type to serve the recommended scheme, which is the first of those that pass. If no engine has it,
/// the next one that an engine has is named as well.
fn serving(passing: &[Row]) -> String {
    let Some(best) = passing.first() else { return String::new() };
    let mut served = passing.iter().map(|row| (row, flags::of(row)));
    let found = served.find(|(_, flags)| !flags.is_empty());
    let missing = match &found {
        Some((row, _)) if row.label == best.label => String::new(),
        _ => format!("No engine is known to have {} by options of its own.\n\n", code(best.label)),
    };
    missing + &found.map_or(String::new(), |(row, flags)| options(row, &flags))
}

fn options(row: &Row, all: &[Flags]) -> String {
    let line = |Flags { engine, flags, short }: &Flags| {
        let short = short.as_ref().map(|short| format!(", in short {}", code(short)));
        format!("- {engine}: {}{}\n", code(flags), short.unwrap_or_default())
    };
    let lines: String = all.iter().map(line).collect();
    format!("To serve {}, which passes:\n\n{lines}\n", code(row.label))
}

/// On what was measured, against what, and where.
fn measured(measurement: &Measurement) -> String {
    let (run, conditions) = (&measurement.run, &measurement.conditions);
    let categories: Vec<_> = conditions.corpus.iter().map(|file| code(&file.category)).collect();
    // another engine's log does not say what it read
    let text = if categories.is_empty() {
        String::new()
    } else {
        format!(" of {}", categories.join(", "))
    };
    format!(
        "Measured on {} chunks of {} tokens{text}, against the baseline {} (perplexity {:.3}), with {} on {}, {}.\n\n",
        conditions.chunks,
        conditions.context,
        code(&conditions.baseline),
        run.baseline_ppl,
        code(&conditions.engine),
        code(&run.device),
        code(&arithmetic(measurement)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use crate::results::verdict::Verdict;
    use crate::results::{CaseResult, Outcome};
    use crate::testing::fixture;

    #[test]
    fn whole_card() {
        insta::assert_snapshot!(render(&fixture::report().view()), @"
## KV cache

- `gemma-3-270m`: serve `q8_0` (8.5 bits, KLD 0.00051 of 0.05) · not `q4_0` · not measured `q8_0/q4_0`
- `tiny`: no scheme passes · not `q4_0`

KLD is the mean KL divergence of the next-token distribution from that under the baseline's cache, in nats per token.

### `gemma-3-270m`

| scheme | bits K/V | mean KLD | limit | top-1 | verdict |
|---|--:|--:|--:|--:|---|
| `q8_0` | 8.5 / 8.5 | 0.00051 ± 0.00002 | 0.05 | 99.02 % | ✅ passes |
| `q4_0` | 4.5 / 4.5 | 0.06120 ± 0.00150 | 0.05 | 86.12 % | ❌ mean_kld 1.22 × its limit |
| `q8_0/q4_0` | 8.5 / 4.5 | – | – | – | not measured |

To serve `q8_0`, which passes:

- llama.cpp: `--flash-attn on --cache-type-k q8_0 --cache-type-v q8_0`, in short `-fa on -ctk q8_0 -ctv q8_0`

Measured on 16 chunks of 512 tokens of `prose`, `code`, against the baseline `f16` (perplexity 21.100), with `kvgate 0.1.0` on `Some CPU`, `f32`.

### `tiny`

| scheme | bits K/V | mean KLD | limit | top-1 | verdict |
|---|--:|--:|--:|--:|---|
| `q4_0` | – | – | – | – | ❌ breaks a limit |

All of this was measured by `kvgate 0.1.0`: the scheme in its own engine, not a serving kernel.
");
    }

    #[test]
    fn what_is_recommended_has_its_options() {
        let mut report = fixture::report();
        let text = render(&report.view());
        let flags =
            "- llama.cpp: `--flash-attn on --cache-type-k q8_0 --cache-type-v q8_0`, in short \
                     `-fa on -ctk q8_0 -ctv q8_0`\n";
        assert!(text.contains(flags), "{text}");
        report.results.measurements[0].schemes[0].effective =
            "q8_0·H64:tail=32/q8_0·H64:tail=32".into();
        let text = render(&report.view());
        assert!(text.contains("No engine is known to have `q8_0` by"), "{text}");
    }

    #[test]
    fn if_no_engine_has_the_best_scheme_the_next_one_is_named() {
        let mut report = fixture::report();
        let (m, cases) = (&mut report.results.measurements[0], &mut report.results.cases);
        m.schemes[2].outcome = m.schemes[0].outcome.clone();
        m.schemes[2].effective = "q8_0·H64:tail=32/q4_0·H64:tail=32".into();
        let Outcome::Measured { statistics, .. } = &mut m.schemes[2].outcome else { panic!() };
        statistics.mean_kld = 0.0077;
        (cases[4].verdict, cases[4].limits) = (Verdict::Pass, cases[0].limits.clone());
        cases.push(CaseResult::new("gemma-3-270m::q8_0/q4_0::golden", Verdict::Pass, ""));
        let text = render(&report.view());
        let next = "No engine is known to have `q8_0/q4_0` by options of its own.\n\nTo serve `q8_0`, which passes:";
        assert!(text.contains("serve `q8_0/q4_0` (6.5 bits") && text.contains(next), "{text}");
    }

    #[test]
    fn a_card_without_ground_has_neither_check_marks_nor_options() {
        let edits: [fn(&mut Report); 3] = [
            |report| report.results.measurements[0].controls[0].ok = false,
            |report| report.results.findings = vec![fixture::weakened()],
            |report| report.results.cases.clear(),
        ];
        for edit in edits {
            let mut report = fixture::report();
            assert!(render(&report.view()).contains('✅'));
            edit(&mut report);
            let text = render(&report.view());
            for bad in ["✅", "serve", "--cache-type-k"] {
                assert!(!text.contains(bad), "{bad} in {text}");
            }
            assert!(text.contains("0.00051"), "{text}");
        }
    }
}
