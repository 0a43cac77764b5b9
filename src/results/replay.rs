//! The text that the baseline wrote after prompts, and what schemes make of it.
//!
//! Schemes write no text of their own: each is fed the baseline's text (teacher forcing), and it is counted
//! where its most likely token is another one, which is a *flip*.

use crate::results::Sides;
use serde::{Deserialize, Serialize};

/// Stands for the hash of a chat template if the model has none.
pub(crate) const NO_TEMPLATE: &str = "none";
/// Stands for that hash if files are missing that may hold a template or its special tokens.
pub(crate) const UNKNOWN_TEMPLATE: &str = "unknown";

/// The baseline's text: what it writes after each prompt by greedy decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// SHA-256 of the weights that wrote the text.
    pub weights_sha256: String,
    /// SHA-256 of the prompts.
    pub prompts_sha256: String,
    /// SHA-256 of the chat template; `none` if there is none, and `unknown` if files are missing that may hold it.
    pub template_sha256: String,
    /// Whether the template was asked to let the model think.
    pub thinking: bool,
    /// The largest number of tokens that was written after a prompt.
    pub tokens: usize,
    /// The effective scheme of the cache that the text was written with.
    pub baseline: String,
    /// The continuations, in the order of the prompts.
    pub continuations: Vec<Continuation>,
    /// Whether the text was read from an accepted golden. Otherwise it was written by this run.
    pub accepted: bool,
    /// Hard flips of the baseline on its own text. There must be none.
    pub own_flips: u64,
    /// In an accepted text, positions that are listed as near ties and are none, and near ties that are not
    /// listed. There must be none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wrong_ties: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What the baseline writes after one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Continuation {
    /// The prompt's name.
    pub prompt: String,
    /// The tokens, including the one that ends the text.
    pub tokens: Vec<u32>,
    /// Positions at which the two most likely tokens are so close that another machine may write the other one.
    pub near_ties: Vec<usize>,
    /// The tokens as text.
    pub text: String,
}

impl Generated {
    /// Whether an accepted text was written by the same model, after the same prompts, in the same way.
    pub fn is_of(&self, kept: &Generated) -> bool {
        self.unlike(kept).is_none()
    }

    /// The first respect in which an accepted text was written by another model or in another way.
    pub fn unlike(&self, kept: &Generated) -> Option<&'static str> {
        let differs = [
            ("weights", self.weights_sha256 != kept.weights_sha256),
            ("prompts", self.prompts_sha256 != kept.prompts_sha256),
            // a template that nobody knows may have been another one then
            (
                "chat template",
                self.template_sha256 != kept.template_sha256 || self.is_template_unknown(),
            ),
            ("baseline", self.baseline != kept.baseline),
            ("thinking", self.thinking != kept.thinking),
            ("length", self.tokens != kept.tokens),
        ];
        differs.into_iter().find(|(_, differs)| *differs).map(|(what, _)| what)
    }

    fn is_template_unknown(&self) -> bool {
        self.template_sha256 == UNKNOWN_TEMPLATE
    }

    /// SHA-256 of the tokens of all continuations.
    pub fn sha256(&self) -> String {
        let line = |c: &Continuation| {
            let ids: Vec<_> = c.tokens.iter().map(u32::to_string).collect();
            format!("{} {}\n", c.prompt, ids.join(" "))
        };
        let lines: String = self.continuations.iter().map(line).collect();
        crate::hash::of_bytes(lines.as_bytes())
    }

    /// One line with everything that a replay of this text depends on, for the conditions of a measurement.
    pub fn conditions(&self) -> String {
        let Generated { prompts_sha256: prompts, template_sha256: template, tokens, .. } = self;
        let thinking = if self.thinking { "on" } else { "off" };
        format!("{prompts} template {template} thinking {thinking} tokens {tokens}")
    }
}

/// How a scheme does on the baseline's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// SHA-256 of the baseline's text.
    pub text_sha256: String,
    /// Mean KLD on the generated positions, in nats.
    pub mean_kld: f64,
    /// Of all pairs of a generated position's query and a key that it sees, the share in which the key was quantized.
    pub charged_share: Sides,
    /// The counts of each prompt, in the order of the prompts.
    pub prompts: Vec<PromptReplay>,
    /// For a few prompts, how the scheme's own text goes on where it diverges from the baseline's, for people to judge.
    pub texts: Vec<Divergence>,
}

/// How a scheme does on what the baseline wrote after one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptReplay {
    /// The prompt's name.
    pub prompt: String,
    /// The prompt's category.
    pub category: String,
    /// The number of generated positions.
    pub positions: u64,
    /// The number of near ties among them. Flips there are not counted, since another machine may write another token.
    pub undecided: u64,
    /// The number of flips: other positions at which the scheme's most likely token is not the baseline's.
    pub flips: u64,
    /// The number of hard flips: those at which the baseline's most likely token led clearly.
    pub hard_flips: u64,
    /// The position of the first flip, near ties included: there greedy decoding with the scheme diverges
    /// from the baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_flip: Option<usize>,
}

/// Where the scheme's own text diverges from the baseline's, and how both go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The prompt's name.
    pub prompt: String,
    /// The number of generated tokens that both have in common.
    pub at: usize,
    /// By how much probability the baseline's most likely token led its second there.
    pub margin: f64,
    /// How the baseline goes on.
    pub baseline: String,
    /// How the scheme goes on.
    pub scheme: String,
}

impl PromptReplay {
    /// How the counts contradict each other.
    fn contradiction(&self) -> Option<&'static str> {
        let (flips, undecided) = (self.flips, self.undecided);
        let first = self.first_flip.map(|at| at as u64);
        let behind = first.map_or(0, |at| self.positions.saturating_sub(at));
        let wrong = [
            (undecided > self.positions, "more positions are undecided than there are"),
            (self.hard_flips > flips, "more flips are hard than there are"),
            (
                first.is_some_and(|at| at >= self.positions),
                "the first flip stands behind the end of the text",
            ),
            (flips > 0 && first.is_none(), "there are flips, and no first one"),
            (flips > behind, "there are more flips than positions from the first one on"),
            (
                flips > self.positions.saturating_sub(undecided),
                "there are more flips than positions where they are counted",
            ),
            (first.is_some() && flips == 0 && undecided == 0, "there is a first flip, and no flip"),
        ];
        wrong.into_iter().find(|(is_so, _)| *is_so).map(|(_, what)| what)
    }
}

impl Replay {
    /// Sums a count over all prompts. Results may be a stranger's with any counts, so the sum saturates.
    fn sum(&self, of: impl Fn(&PromptReplay) -> u64) -> u64 {
        self.prompts.iter().map(of).fold(0, u64::saturating_add)
    }

    /// The first prompt whose counts contradict each other, and how.
    pub(crate) fn contradiction(&self) -> Option<String> {
        let wrong = self.prompts.iter().find_map(|p| Some((p, p.contradiction()?)));
        wrong.map(|(p, what)| format!("of the prompt `{}` {what}", p.prompt))
    }

    /// Generated positions of all prompts.
    pub fn positions(&self) -> u64 {
        self.sum(|p| p.positions)
    }

    /// Flips of all prompts.
    pub fn flips(&self) -> u64 {
        self.sum(|p| p.flips)
    }

    /// Hard flips of all prompts.
    pub fn hard_flips(&self) -> u64 {
        self.sum(|p| p.hard_flips)
    }

    /// Positions at which flips are counted: all but the near ties.
    pub fn decided(&self) -> u64 {
        self.sum(|p| p.positions.saturating_sub(p.undecided))
    }

    /// Flips per 1,000 decided positions.
    pub fn flips_per_1k(&self) -> f64 {
        1e3 * self.flips() as f64 / self.decided().max(1) as f64
    }

    /// Hard flips per 1,000 decided positions.
    pub fn hard_flips_per_1k(&self) -> f64 {
        1e3 * self.hard_flips() as f64 / self.decided().max(1) as f64
    }

    /// How often texts diverge: the number of texts with a first flip, per 1,000 positions up to it. Texts
    /// without one count with all their positions.
    pub fn hazard_per_1k(&self) -> f64 {
        let parted = self.prompts.iter().filter(|p| p.first_flip.is_some()).count();
        let exposure =
            self.sum(|p| p.first_flip.map_or(p.positions, |at| (at as u64).saturating_add(1)));
        1e3 * parted as f64 / exposure as f64
    }

    /// The share of prompts whose text never diverges.
    pub fn exact_prompts(&self) -> f64 {
        let exact = self.prompts.iter().filter(|p| p.first_flip.is_none()).count();
        exact as f64 / self.prompts.len() as f64
    }

    /// The position by which half of the texts have diverged. None if fewer than half do.
    ///
    /// It is estimated as Kaplan and Meier do, since a text that ends without a flip says nothing about later
    /// positions.
    pub fn median_first_flip(&self) -> Option<usize> {
        let mut flips: Vec<usize> = self.prompts.iter().filter_map(|p| p.first_flip).collect();
        flips.sort_unstable();
        flips.dedup();
        // a text of n positions was seen at 0 to n - 1
        let at_risk = |p: &PromptReplay, at: usize| match p.first_flip {
            Some(flip) => flip >= at,
            None => p.positions as usize > at,
        };
        let mut surviving = 1.0;
        flips.into_iter().find(|&at| {
            let at_risk = self.prompts.iter().filter(|p| at_risk(p, at)).count() as f64;
            let parted = self.prompts.iter().filter(|p| p.first_flip == Some(at)).count() as f64;
            surviving *= 1.0 - parted / at_risk;
            surviving <= 0.5
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(prompts: &[(u64, u64, u64, Option<usize>)]) -> Replay {
        let prompt =
            |&(positions, flips, hard_flips, first_flip): &(u64, u64, u64, Option<usize>)| {
                let (prompt, category) = (String::new(), String::new());
                let undecided = 0;
                PromptReplay {
                    prompt,
                    category,
                    positions,
                    undecided,
                    flips,
                    hard_flips,
                    first_flip,
                }
            };
        Replay {
            mean_kld: 0.0,
            text_sha256: String::new(),
            charged_share: Sides { k: 1.0, v: 1.0 },
            prompts: prompts.iter().map(prompt).collect(),
            texts: Vec::new(),
        }
    }

    /// Worked out by hand.
    #[test]
    fn rates_and_the_median_of_first_flips() {
        let four =
            replay(&[(10, 2, 1, Some(3)), (20, 0, 0, None), (4, 0, 0, None), (16, 3, 0, Some(7))]);
        assert_eq!((four.positions(), four.flips(), four.hard_flips()), (50, 5, 1));
        assert_eq!((four.flips_per_1k(), four.hard_flips_per_1k()), (100.0, 20.0));
        // exposures 4, 20, 4 and 8
        assert_eq!(four.hazard_per_1k(), 2000.0 / 36.0);
        assert_eq!(four.exact_prompts(), 0.5);
        // 4 at risk at 3: 3/4; the third ends at 4: 2 at risk at 7: 3/8
        assert_eq!(four.median_first_flip(), Some(7));
        assert_eq!(
            replay(&[(10, 1, 1, Some(0)), (9, 0, 0, None), (9, 0, 0, None)]).median_first_flip(),
            None
        );
        // one that ended at 3 was not at risk there: 1/2
        assert_eq!(
            replay(&[(9, 1, 1, Some(3)), (9, 0, 0, None), (3, 0, 0, None)]).median_first_flip(),
            Some(3)
        );
        // a token that ends the text too late, or too early, is a flip like any other
        assert_eq!(replay(&[(1, 1, 1, Some(0))]).median_first_flip(), Some(0));
    }
}
