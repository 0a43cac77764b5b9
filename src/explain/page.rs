//! An explanation as a page of HTML: one file without scripts.

use super::map::HeatMap;
use super::statistics::CodecError;
use super::words::kld;
use super::{Explanation, Reading};
use crate::text;
use crate::text::numbers::significant;
use askama::Template;

#[derive(Template)]
#[template(path = "explain.html")]
struct Page {
    title: String,
    facts: Vec<String>,
    notes: Vec<String>,
    answer: Vec<String>,
    columns: Vec<String>,
    rows: Vec<(usize, Vec<Option<Spot>>)>,
    trials: Vec<[String; 4]>,
    skipped: Vec<String>,
    heads: Vec<Vec<String>>,
}

/// A site on the heat map.
struct Spot {
    kld: String,
    share: String,
    /// How much of the colour for harm it has, from 0 to 100.
    heat: u32,
}

/// Makes the page.
///
/// # Errors
/// If the template cannot be filled.
pub fn render(explanation: &Explanation) -> Result<String, askama::Error> {
    let page = Page {
        title: format!(
            "{} under {}",
            text::name(&explanation.model),
            text::name(&explanation.scheme)
        ),
        facts: facts(explanation),
        notes: explanation.notes.iter().map(|note| text::remark(note)).collect(),
        answer: explanation.answer.iter().map(|sentence| text::message(sentence)).collect(),
        columns: HeatMap::of(&explanation.sites).columns,
        rows: rows(explanation),
        trials: trials(explanation),
        skipped: explanation
            .skipped
            .iter()
            .map(|skipped| format!("{}: {}", skipped.experiment, skipped.why))
            .collect(),
        heads: explanation.heads.iter().map(head).collect(),
    };
    page.render()
}

fn facts(explanation: &Explanation) -> Vec<String> {
    let Explanation { conditions, device, arithmetic, baseline_ppl, seconds, .. } = explanation;
    let corpus = conditions.corpus.iter().map(|file| text::name(&file.category));
    vec![
        format!("effective scheme {}", text::name(&explanation.effective)),
        format!(
            "baseline {}, perplexity {baseline_ppl:.3}, on {} chunks of {} tokens of {}",
            text::name(&conditions.baseline),
            conditions.chunks,
            conditions.context,
            corpus.collect::<Vec<_>>().join(", ")
        ),
        format!("{}, {}, {seconds:.1} s", text::name(device), text::name(arithmetic)),
        format!("weights {}", text::name(&explanation.subject.weights_sha256)),
    ]
}

fn rows(explanation: &Explanation) -> Vec<(usize, Vec<Option<Spot>>)> {
    let spot = |site: &super::SiteReading| Spot {
        kld: kld(site.reading.mean_kld),
        share: percent(site.share),
        // the root makes small shares visible
        heat: (100.0 * site.share.clamp(0.0, 1.0).sqrt()) as u32,
    };
    let row = |(layer, sites): (usize, Vec<Option<&super::SiteReading>>)| {
        (layer, sites.into_iter().map(|site| site.map(spot)).collect())
    };
    HeatMap::of(&explanation.sites).rows.into_iter().map(row).collect()
}

fn trials(explanation: &Explanation) -> Vec<[String; 4]> {
    let row = |words: &str, reading: &Reading, of_whole: f64| {
        [
            text::name(words),
            format!("{} ± {}", kld(reading.mean_kld), kld(reading.mean_kld_se)),
            significant(of_whole, 2),
            percent(reading.top1_agreement),
        ]
    };
    let whole = row("(as it is)", &explanation.whole, 1.0);
    let trials = explanation.experiments.iter();
    let trials = trials.map(|trial| row(&trial.words, &trial.reading, trial.of_whole));
    std::iter::once(whole).chain(trials).collect()
}

/// A row of the table of heads.
fn head(head: &super::HeadStatistics) -> Vec<String> {
    let number = |value: f64| significant(value, 3);
    let share = |value: Option<f64>| value.map_or("–".into(), percent);
    let error = |error: Option<CodecError>| match error {
        None => "–".into(),
        Some(error) => format!("{} / {}", percent(error.head), percent(error.median_channel)),
    };
    let worst = head.channels.iter().take(4).map(|channel| {
        let ratio = channel.of_median.map_or("∞".into(), |ratio| significant(ratio, 2));
        match channel.pair {
            Some(pair) => format!("{} (pair {}) {ratio} ×", channel.channel, pair.index),
            None => format!("{} {ratio} ×", channel.channel),
        }
    });
    vec![
        format!("{} {} head {}", head.layer, head.side, head.head),
        number(head.rms),
        number(head.absmax / head.rms.max(f64::MIN_POSITIVE)),
        number(head.kurtosis),
        share(Some(head.mean_share)),
        share(head.mean_share_before_rope),
        error(head.error_rotated),
        error(head.error_unrotated),
        worst.collect::<Vec<_>>().join(", "),
    ]
}

fn percent(value: f64) -> String {
    format!("{} %", significant(100.0 * value, 3))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::explanation;
    use super::*;

    #[test]
    fn strangers_texts_are_escaped() {
        let mut explanation = explanation([[0.05, 0.01], [0.5, 0.02]], 0.6);
        explanation.model = "<b>bold</b>".into();
        explanation.notes = vec!["<script>".into()];
        explanation.answer.push("<i>".into());
        let page = render(&explanation).unwrap();
        for raw in ["<b>", "<script", "<i>"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert!(page.contains("--heat: 92"), "the root of 0.5 / 0.58");
    }
}
