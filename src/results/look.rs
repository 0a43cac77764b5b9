//! Further looks at a scheme: chunks that were measured because the first ones left its verdict open.

use super::statistics::{Part, Statistics};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

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
}
