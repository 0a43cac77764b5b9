//! What schemes retrieve from long contexts, as reports show it: one short block for each model.

use super::row::Row;
use crate::judge::interval::{self, Interval, SHOWN};
use crate::results::retrieval::{Haystacks, Retrieved};
use crate::results::Measurement;
use crate::text::numbers::{count, significant};

/// The columns: one row is a scheme at a length.
pub(super) const COLUMNS: [&str; 8] = [
    "scheme",
    "tokens",
    "baseline finds",
    "lost",
    "gained",
    "Δ answer NLL",
    "KLD of answers",
    "KLD by depth",
];

/// A baseline whose mean negative log-likelihood of answers is below this, in nats per token, leads by more than 8 nats:
/// what it knows so surely, only great harm takes away.
const TOO_EASY: f64 = 3.4e-4;

/// What was asked for, if contexts with needles were measured.
pub(super) fn title(measurement: &Measurement) -> Option<String> {
    let Haystacks { plan, .. } = measurement.haystacks.as_ref()?;
    let contexts = count(plan.contexts, "context");
    Some(format!(
        "retrieval: {} in each of {contexts} of each length, seed {}",
        count(plan.needles, "needle"),
        plan.seed
    ))
}

/// A row for each scheme at each length. `depths` says how many of the eight depths are shown.
pub(super) fn rows(rows: &[Row], depths: Depths) -> Vec<Vec<String>> {
    let retrieved = rows.iter().flat_map(|row| {
        let own = row.scheme.map_or(&[][..], |scheme| &scheme.retrieved);
        own.iter().map(|retrieved| (row.label, retrieved))
    });
    // the policy has one confidence for all schemes of a model
    let confidence = rows.iter().find_map(Row::asked_confidence).unwrap_or(SHOWN);
    retrieved.map(|(label, retrieved)| cells(label, retrieved, (depths, confidence))).collect()
}

/// How many depths a row has room for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Depths {
    /// The first and the last.
    Ends,
    #[cfg_attr(not(feature = "reports"), allow(dead_code))]
    All,
}

fn cells(label: &str, retrieved: &Retrieved, (depths, confidence): (Depths, f64)) -> Vec<String> {
    let all = retrieved.all();
    let lost = match retrieved.loss() {
        None => "not measured".into(),
        Some(_) => {
            let Interval { low, high } =
                interval::of_share(all.lost, all.retrieved_base, confidence);
            let [low, high] = [low, high].map(|end| significant(end * 100.0, 2));
            format!("{} ({low}–{high} %)", all.lost)
        }
    };
    let more = significant(all.answer_nll(), 2);
    let more = match interval::of_answers(&retrieved.parts, confidence) {
        Ok(interval) => {
            let [low, high] = [interval.low, interval.high].map(|end| significant(end, 2));
            format!("{more} ({low} to {high})")
        }
        Err(_) => more,
    };
    let klds = retrieved.by_depth.iter().map(|kld| significant(*kld, 2)).collect::<Vec<_>>();
    let by_depth = match (&klds[..], depths) {
        ([first, .., last], Depths::Ends) => format!("{first} → {last}"),
        _ => klds.join(" "),
    };
    vec![
        label.into(),
        retrieved.length.to_string(),
        format!("{} of {}", all.retrieved_base, all.needles),
        lost,
        all.gained.to_string(),
        more,
        significant(all.mean_kld(), 2),
        by_depth,
    ]
}

/// What the numbers cannot say, of each length.
pub(super) fn remarks(measurement: &Measurement) -> Vec<String> {
    let first = measurement.schemes.iter().find(|scheme| !scheme.retrieved.is_empty());
    let remark = |retrieved: &Retrieved| {
        let (all, length) = (retrieved.all(), retrieved.length);
        let nll = all.nll_base / all.tokens as f64;
        if !all.is_measured() {
            Some(format!(
                "at {length} tokens the baseline itself retrieves {} of {} needles, which is under 90 %: what schemes lose \
                 is not measured",
                all.retrieved_base, all.needles
            ))
        } else if nll < TOO_EASY {
            Some(format!(
                "at {length} tokens the baseline is so sure of its answers ({} nats per token) that only great harm shows",
                significant(nll, 2)
            ))
        } else {
            None
        }
    };
    first.into_iter().flat_map(|scheme| scheme.retrieved.iter().filter_map(remark)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::row::Cells;
    use crate::testing::fixture;

    #[test]
    fn a_scheme_has_a_row_for_each_length() {
        let mut results = fixture::sound();
        fixture::with_needles(&mut results.measurements[0]);
        let cells = Cells::new(&results);
        let model = &results.measurements[0].model;
        let lines = ["q8_0", "q4_0"].map(|label| cells.row(model, label));
        let [q8_0, q4_0] = &rows(&lines, Depths::Ends)[..] else { panic!() };
        assert_eq!(
            q8_0[..],
            ["q8_0", "512", "10 of 10", "0 (0–31 %)", "0", "0.00050", "0.00050", "1.0e-5 → 8.0e-5"]
        );
        assert_eq!(q4_0[3], "3 (6.7–65 %)");
        let mut judged = results.cases[2].clone();
        fixture::with_broken_loss(&mut judged);
        judged.retrieval[0].confidence = Some(0.8);
        let of_policy = lines.map(|row| Row { cases: [Some(&judged), None], ..row });
        assert_eq!(rows(&of_policy, Depths::Ends)[0][3], "0 (0–21 %)");
        assert_eq!(rows(&lines, Depths::All)[0][7].split(' ').count(), 8);
        let measurement = &mut results.measurements[0];
        assert!(title(measurement).unwrap().contains("5 needles in each of 2 contexts"));
        assert_eq!(remarks(measurement), [""; 0]);
        measurement.schemes[0].retrieved[0].parts[0].retrieved_base = 1;
        assert!(remarks(measurement)[0].contains("retrieves 6 of 10"));
    }
}
