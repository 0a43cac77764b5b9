//! What replaying a baseline's text under a scheme gave.

use crate::results::Sides;
use serde::{Deserialize, Serialize};

/// What stands for the hash of a chat template where there is none.
pub(crate) const NO_TEMPLATE: &str = "none";
/// The same where files are missing that may hold one, or what it writes special tokens by.
pub(crate) const UNKNOWN_TEMPLATE: &str = "unknown";

/// The baseline's text: what it writes after each prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// SHA-256 of the weights that wrote it.
    pub weights_sha256: String,
    /// SHA-256 of the prompts.
    pub prompts_sha256: String,
    /// SHA-256 of the chat template, or `none`.
    pub template_sha256: String,
    /// Whether the template was asked to let the model think.
    pub thinking: bool,
    /// Tokens of each continuation, at most.
    pub tokens: usize,
    /// Effective scheme of the cache that it was written with.
    pub baseline: String,
    /// In the order of the prompts.
    pub continuations: Vec<Continuation>,
    /// Whether it was read from an accepted golden.
    pub accepted: bool,
    /// Hard flips of the baseline itself on its own text, of which there must be none.
    pub own_flips: u64,
    /// Near ties of an accepted text that are none, and positions that are and are not listed: there must be
    /// none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wrong_ties: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What the baseline writes after a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Continuation {
    /// The prompt's name.
    pub prompt: String,
    /// Greedy tokens, the one that ends it included.
    pub tokens: Vec<u32>,
    /// Where the baseline is so undecided that another machine may write another token.
    pub near_ties: Vec<usize>,
    /// The tokens as text.
    pub text: String,
}

impl Generated {
    /// Whether `kept` is what this model writes after these prompts.
    pub fn is_of(&self, kept: &Generated) -> bool {
        self.unlike(kept).is_none()
    }

    /// In what `kept` is of another model, of other prompts or of another length.
    pub fn unlike(&self, kept: &Generated) -> Option<&'static str> {
        let differs = [
            ("weights", self.weights_sha256 != kept.weights_sha256),
            ("prompts", self.prompts_sha256 != kept.prompts_sha256),
            // what nobody knows may have been another thing then
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

    /// The conditions of what is made from it, in a line.
    pub fn conditions(&self) -> String {
        let Generated { prompts_sha256: prompts, template_sha256: template, tokens, .. } = self;
        let thinking = if self.thinking { "on" } else { "off" };
        format!("{prompts} template {template} thinking {thinking} tokens {tokens}")
    }
}

/// A scheme on the baseline's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// SHA-256 of the baseline's text.
    pub text_sha256: String,
    /// Mean KLD on the generated positions, in nats.
    pub mean_kld: f64,
    /// Share of query-key pairs at these positions that read a quantized key.
    pub charged_share: Sides,
    /// In the order of the prompts.
    pub prompts: Vec<PromptReplay>,
    /// Prompts where the scheme's own text parts from the baseline's, for a person to judge.
    pub texts: Vec<Divergence>,
}

/// A scheme on what the baseline writes after one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptReplay {
    /// Its name.
    pub prompt: String,
    /// Its kind.
    pub category: String,
    /// Generated positions.
    pub positions: u64,
    /// Positions where the baseline is so undecided that another machine may read another token: their
    /// flips are not counted.
    pub undecided: u64,
    /// Other positions where the scheme would write another token.
    pub flips: u64,
    /// Those where the baseline was decided.
    pub hard_flips: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    /// The first flip: where greedy decoding with the scheme parts from the baseline.
    pub first_flip: Option<usize>,
}

/// Two texts behind a common beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The prompt's name.
    pub prompt: String,
    /// Generated tokens that both have.
    pub at: usize,
    /// By how much probability the baseline's first token led its second there.
    pub margin: f64,
    /// How the baseline goes on.
    pub baseline: String,
    /// How the scheme goes on.
    pub scheme: String,
}

impl PromptReplay {
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
    /// Results may be a stranger's, and their counts any.
    fn sum(&self, of: impl Fn(&PromptReplay) -> u64) -> u64 {
        self.prompts.iter().map(of).fold(0, u64::saturating_add)
    }

    /// What no replay of one prompt can have given: counts that do not add up.
    pub(crate) fn contradiction(&self) -> Option<String> {
        let wrong = self.prompts.iter().find_map(|p| Some((p, p.contradiction()?)));
        wrong.map(|(p, what)| format!("of the prompt `{}` {what}", p.prompt))
    }

    /// Generated positions.
    pub fn positions(&self) -> u64 {
        self.sum(|p| p.positions)
    }

    /// Flips.
    pub fn flips(&self) -> u64 {
        self.sum(|p| p.flips)
    }

    /// Flips where the baseline was decided.
    pub fn hard_flips(&self) -> u64 {
        self.sum(|p| p.hard_flips)
    }

    /// Positions whose flips are counted.
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

    /// Prompts whose text parts, per 1,000 positions up to there.
    pub fn hazard_per_1k(&self) -> f64 {
        let parted = self.prompts.iter().filter(|p| p.first_flip.is_some()).count();
        let exposure =
            self.sum(|p| p.first_flip.map_or(p.positions, |at| (at as u64).saturating_add(1)));
        1e3 * parted as f64 / exposure as f64
    }

    /// Share of prompts whose text does not part.
    pub fn exact_prompts(&self) -> f64 {
        let exact = self.prompts.iter().filter(|p| p.first_flip.is_none()).count();
        exact as f64 / self.prompts.len() as f64
    }

    /// The position by which half of the texts have parted, by Kaplan and Meier: a text that ends without
    /// a flip says nothing about later ones. None if fewer than half part.
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
