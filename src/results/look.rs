//! Further looks at a scheme: chunks that were measured because the first ones left its verdict open.

use super::statistics::{Part, Statistics};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A further look at a scheme.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// The statistics of all chunks up to this look: the first ones, those of earlier looks, and those of this one.
    pub statistics: Statistics,
    /// The chunks that this look added, from all over the texts.
    pub parts: Vec<Part>,
}

/// What had been measured of a scheme when somebody looked at it.
#[derive(Debug, Clone)]
pub(crate) struct Seen<'a> {
    pub statistics: &'a Statistics,
    /// All chunks that the statistics are of.
    pub parts: Cow<'a, [Part]>,
}

impl<'a> Seen<'a> {
    /// What was there at each look, the first one included.
    pub fn all(
        statistics: &'a Statistics,
        parts: &'a [Part],
        looks: &'a [Look],
    ) -> impl Iterator<Item = Seen<'a>> {
        let first = Seen { statistics, parts: Cow::Borrowed(parts) };
        std::iter::successors(Some((first, looks)), |(seen, looks)| {
            let (look, rest) = looks.split_first()?;
            let parts = [&seen.parts[..], &look.parts].concat();
            Some((Seen { statistics: &look.statistics, parts: Cow::Owned(parts) }, rest))
        })
        .map(|(seen, _)| seen)
    }

    /// Whether a text may have no more: the last chunk that anybody knows of it and all before it are there. Then a run ends,
    /// because texts take turns.
    pub fn is_whole(&self) -> bool {
        let mut texts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for part in &self.parts[..] {
            let (end, found) = texts.entry(&part.category).or_default();
            *end = part.chunk.saturating_add(1).max(*end);
            *found += 1;
        }
        texts.into_values().any(|(end, found)| end == found)
    }
}
