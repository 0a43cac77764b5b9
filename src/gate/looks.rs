//! Further looks: while the verdict of a scheme is open, more chunks are measured, if the policy lets it.

use super::{request, GateError};
use crate::compute::Device;
use crate::judge::{limits, Evidence};
use crate::measure::{self, Draw, Measured, Request};
use crate::policy::{Cell, ModelPolicy};
use crate::progress::Progress;
use crate::results::measured_by::MeasuredBy;
use crate::results::statistics::{Position, Statistics};
use crate::results::verdict::Verdict;
use crate::results::{Look, Measurement, Outcome, SchemeResult};
use std::borrow::Cow;

/// Measures further chunks of the schemes whose verdict is open, and looks again, until none is open, or until there are
/// as many chunks as the policy allows, or the texts have. What was measured of the first chunks stays as it is.
pub(super) fn look_again(
    model: &ModelPolicy,
    cells: &[&Cell],
    device: &Device,
    measured: &mut Measured,
    progress: Progress,
) -> Result<(), GateError> {
    let planned = model.looks();
    let looks = planned.len();
    let mut seen = model.chunks;
    let mut positions = measured.positions.clone();
    for (look, counts) in planned.windows(2).enumerate() {
        let open = open_cells(model, cells, &measured.measurement);
        if open.is_empty() {
            return Ok(());
        }
        let wanted = (counts[1] - seen).min(measured.chunks_left);
        if wanted == 0 {
            break;
        }
        let taken = seen - model.chunks;
        let request = Request {
            draw: Draw::Further { first: model.chunks, taken },
            chunks: wanted,
            generate: None,
            retrieval: None,
            ..request(model, &open, None, device)
        };
        let look = look + 2;
        let progress = |what: &str, done: u64, all: u64| {
            progress(&format!("look {look} of at most {looks}: {what}"), done, all);
        };
        let more = measure::measure(&request, &progress)?;
        measured.chunks_left = more.chunks_left;
        seen += wanted;
        add(measured, &mut positions, more);
    }
    let most = planned.last().copied().unwrap_or(seen);
    if seen < most && !open_cells(model, cells, &measured.measurement).is_empty() {
        measured.measurement.run.notes.push(no_more_text(seen, most));
    }
    Ok(())
}

fn no_more_text(chunks: usize, most: usize) -> String {
    format!(
        "a text has no more than its share of {chunks} chunks, and `max_chunks` allows {most}: add text to measure more \
         where a verdict is open"
    )
}

/// The cells whose verdict is open.
fn open_cells<'c>(
    model: &ModelPolicy,
    cells: &[&'c Cell],
    measurement: &Measurement,
) -> Vec<&'c Cell> {
    let evidence = Evidence::new(Cow::Borrowed(measurement), MeasuredBy::Kvgate);
    let is_open = |cell: &&&Cell| {
        evidence.to_judge(model, cell).is_ok_and(|(scheme, obstacle)| {
            let judged = limits::judge(model, cell, &scheme.outcome, obstacle.as_deref(), None);
            judged.verdict == Verdict::Inconclusive
        })
    };
    cells.iter().filter(is_open).copied().collect()
}

/// Adds what a further look gave. A scheme that could be measured before, and cannot now, has failed.
fn add(measured: &mut Measured, positions: &mut [(String, Vec<Position>)], more: Measured) {
    let measurement = &mut measured.measurement;
    let others = more.measurement.controls.into_iter();
    let others = others.filter(|control| !measurement.controls.contains(control));
    let others: Vec<_> = others.collect();
    measurement.controls.extend(others);
    let notes = more.measurement.run.notes.into_iter();
    let notes: Vec<_> = notes.filter(|note| !measurement.run.notes.contains(note)).collect();
    measurement.run.notes.extend(notes);
    measurement.run.seconds += more.measurement.run.seconds;
    measurement.run.peak_bytes = measurement.run.peak_bytes.max(more.measurement.run.peak_bytes);
    for found in more.measurement.schemes {
        let own = |scheme: &&mut SchemeResult| scheme.scheme == found.scheme;
        let all = positions.iter_mut().find(|(label, _)| *label == found.scheme);
        let new = more.positions.iter().find(|(label, _)| *label == found.scheme);
        let (Some(scheme), Some((_, all))) = (measurement.schemes.iter_mut().find(own), all) else {
            continue;
        };
        all.extend(new.into_iter().flat_map(|(_, positions)| positions));
        match (&mut scheme.outcome, found.outcome) {
            (Outcome::Measured { looks, .. }, Outcome::Measured { parts, .. }) => {
                looks.push(Look { statistics: Statistics::of(all), parts });
            }
            (outcome, failed) => *outcome = failed,
        }
    }
}
