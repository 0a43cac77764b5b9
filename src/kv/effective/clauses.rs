//! Which clause of a scheme is about which layer of a model.
//!
//! In `q4_0@first2=q8_0` the clause `@first2=q8_0` is about two layers and the default about all others.

use super::error::UnfitError;
use crate::kv::layout::LayerKv;
use crate::kv::scheme::{Layers, Scheme};
use std::ops::Range;

/// For each layer the index of the clause that is about it. `None` if the default is.
///
/// Every part of a scheme must be what some layer does. Otherwise the scheme would be measured as something
/// else under its name: if its clauses leave no layer to the default, or if later clauses take all layers
/// from a clause. The schemes of a policy may serve models of different depth, so this is an error of the
/// one model for which it happens.
pub(super) fn clause_by_layer(
    scheme: &Scheme,
    layout: &[Option<LayerKv>],
) -> Result<Vec<Option<usize>>, UnfitError> {
    let owners: Vec<usize> = (0..layout.len()).filter(|&i| layout[i].is_some()).collect();
    let mut clauses = vec![None; layout.len()];
    for (clause, (layers, _)) in scheme.layers.iter().enumerate() {
        let chosen = layers.indices(layout);
        if chosen.is_empty() {
            let owners = spans(&owners);
            return Err(UnfitError::NoLayers { layers: layers.to_string(), owners });
        }
        chosen.into_iter().for_each(|index| clauses[index] = Some(clause));
    }
    let is_idle = |clause: Option<usize>| !owners.iter().any(|&owner| clauses[owner] == clause);
    let idle = (0..scheme.layers.len()).find(|&clause| is_idle(Some(clause)));
    if let Some(clause) = idle {
        let (layers, pair) = &scheme.layers[clause];
        let part =
            format!("`@{layers}={pair}` changes nothing, since later clauses name all its layers");
        return Err(UnfitError::Idle { part, mend: without(scheme, clause).to_string() });
    }
    if !owners.is_empty() && is_idle(None) {
        return Err(no_layer_left(scheme, &clauses));
    }
    Ok(clauses)
}

/// The error if the default is left no layer. The proposal makes the clause of the most layers the default.
fn no_layer_left(scheme: &Scheme, clauses: &[Option<usize>]) -> UnfitError {
    let part = format!("no layer of the model is left to `{}`", scheme.default);
    let layers_of = |clause: &usize| clauses.iter().filter(|c| **c == Some(*clause)).count();
    let most = (0..scheme.layers.len()).max_by_key(layers_of).unwrap_or_default();
    let default = scheme.layers[most].1;
    let mend = Scheme { default, ..without(scheme, most) };
    UnfitError::Idle { part, mend: mend.to_string() }
}

/// A scheme without one of its clauses.
fn without(scheme: &Scheme, clause: usize) -> Scheme {
    let others = scheme.layers.iter().enumerate().filter(|(i, _)| *i != clause);
    Scheme { layers: others.map(|(_, clause)| clause.clone()).collect(), ..scheme.clone() }
}

/// Remarks on clauses that name a range of layers of which the model has only some, or of which only some
/// own a cache. Nothing is wrong with the numbers then: reports name the layers that the clause was for.
pub(crate) fn remarks_on_missing_layers(
    scheme: &Scheme,
    layout: &[Option<LayerKv>],
) -> Vec<String> {
    let remark = |layers: &Layers| {
        let Layers::Index(range) = layers else { return None };
        let there = layers.indices(layout);
        let named = range.end().saturating_sub(*range.start()).saturating_add(1);
        (!there.is_empty() && there.len() < named).then(|| {
            format!("`@{layers}` of {scheme} is about {} only: of its layers the model has no others that own a cache", spans(&there))
        })
    };
    scheme.layers.iter().filter_map(|(layers, _)| remark(layers)).collect()
}

/// Writes ascending indices as ranges: `0-2,7`.
pub(crate) fn spans(indices: &[usize]) -> String {
    let mut spans: Vec<Range<usize>> = Vec::new();
    for &index in indices {
        match spans.last_mut() {
            Some(span) if span.end == index => span.end += 1,
            _ => spans.push(index..index + 1),
        }
    }
    let span = |span: &Range<usize>| match span.len() {
        1 => span.start.to_string(),
        _ => format!("{}-{}", span.start, span.end - 1),
    };
    spans.iter().map(span).collect::<Vec<_>>().join(",")
}
