//! Names of cells and cases, and of the files that are named after them.
//!
//! A cell is one scheme of one model: `gemma-3-270m::q8_0/q4_0`. It has two cases, whose names end in their
//! kind: `gemma-3-270m::q8_0/q4_0::kld` and `…::golden`.

use std::fmt;
use std::str::FromStr;

/// Separates the words of a name. No model's name contains it.
const SEPARATOR: &str = "::";

/// The two cases of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CaseKind {
    /// The case that judges the limits: is the scheme harmful?
    Kld,
    /// The case that compares with the accepted golden: has anything changed?
    Golden,
}

impl CaseKind {
    /// Both kinds, in the order of lists and reports.
    pub const ALL: [CaseKind; 2] = [CaseKind::Kld, CaseKind::Golden];

    /// The last word of a case's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            CaseKind::Kld => "kld",
            CaseKind::Golden => "golden",
        }
    }
}

/// The name of a cell: one scheme of one model, `model::scheme`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CellName {
    /// The model as the policy names it.
    pub model: String,
    /// The scheme's label in the policy.
    pub scheme: String,
}

impl CellName {
    /// The name of a cell.
    pub fn new(model: impl Into<String>, scheme: impl Into<String>) -> Self {
        CellName { model: model.into(), scheme: scheme.into() }
    }

    /// The name of one of the cell's cases.
    #[must_use]
    pub fn case(&self, kind: CaseKind) -> CaseName {
        CaseName { model: self.model.clone(), scheme: self.scheme.clone(), kind }
    }

    /// The stem of files that are named after the cell, such as its golden: `gemma-3-270m__q8_0+q4_0`.
    #[must_use]
    pub fn file_stem(&self) -> String {
        file_words(&self.to_string())
    }
}

impl fmt::Display for CellName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEPARATOR}{}", self.model, self.scheme)
    }
}

/// The name of a case: `model::scheme::kld` or `model::scheme::golden`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaseName {
    /// The model as the policy names it.
    pub model: String,
    /// The scheme's label in the policy.
    pub scheme: String,
    /// Which of the cell's two cases.
    pub kind: CaseKind,
}

impl CaseName {
    /// The cell that the case belongs to.
    #[must_use]
    pub fn cell(&self) -> CellName {
        CellName::new(&self.model, &self.scheme)
    }
}

impl fmt::Display for CaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEPARATOR}{}", self.cell(), self.kind.name())
    }
}

/// The error for a text that is no name of a case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name of a case: expected `model::scheme::kld` or `model::scheme::golden`")]
pub struct NoCaseName(pub String);

impl FromStr for CaseName {
    type Err = NoCaseName;

    fn from_str(text: &str) -> Result<Self, NoCaseName> {
        let parse = || {
            let (cell, kind) = text.rsplit_once(SEPARATOR)?;
            let kind = CaseKind::ALL.into_iter().find(|known| known.name() == kind)?;
            let (model, scheme) = cell.split_once(SEPARATOR)?;
            Some(CellName::new(model, scheme).case(kind))
        };
        parse().ok_or_else(|| NoCaseName(text.into()))
    }
}

/// The model and the scheme in a case's name. Results may be a stranger's with any text in this place. Such a
/// text is taken for a model's name as far as possible, so that a red case is shown under some model and
/// never lost.
pub(crate) fn model_and_scheme(name: &str) -> (&str, &str) {
    let (model, rest) = model_and_rest(name).unwrap_or((name, ""));
    (model, rest.rsplit_once(SEPARATOR).map_or(rest, |(scheme, _)| scheme))
}

/// The model of a cell's or case's name, and what follows it.
pub(crate) fn model_and_rest(name: &str) -> Option<(&str, &str)> {
    name.split_once(SEPARATOR)
}

/// A name in the form that files have: the same words without the characters that file systems refuse.
pub(crate) fn file_words(name: &str) -> String {
    name.replace(SEPARATOR, "__").replace('/', "+").replace(':', ",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (model, scheme) in [("gemma-3-270m@long", "q8_0/q4_0"), ("m", "q4_0:norot")] {
            for kind in CaseKind::ALL {
                let name = CellName::new(model, scheme).case(kind);
                assert_eq!(name.to_string(), format!("{model}::{scheme}::{}", kind.name()));
                assert_eq!(name.to_string().parse(), Ok(name));
            }
        }
        for text in ["", "m", "m::q4_0", "m::q4_0::ppl", "m::kld"] {
            assert_eq!(text.parse::<CaseName>(), Err(NoCaseName(text.into())), "{text}");
        }
    }

    #[test]
    fn stems_have_no_character_that_a_file_system_refuses() {
        let stem = |model, scheme| CellName::new(model, scheme).file_stem();
        assert_eq!(stem("gemma-3-270m@long", "q8_0/q4_0"), "gemma-3-270m@long__q8_0+q4_0");
        assert_eq!(stem("m", "q4_0:norot"), "m__q4_0,norot");
    }
}
