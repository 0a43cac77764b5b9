//! Building the contexts: a haystack of the corpus with needles in it, and the questions behind it.
//!
//! Everything is counted in tokens, and what was built is checked: every value stands in the haystack and behind its
//! question, the questions come last, and a context has as many tokens as it must have.

use super::needles::{self, Needle};
use super::random::Random;
use crate::hash;
use crate::measure::corpus::Chunk;
use crate::model::tokenizer::Tokenizer;
use crate::results::retrieval::Plan;
use std::ops::Range;

/// The shares of the haystack before and behind which no needle stands.
const DEPTH: (f64, f64) = (0.02, 0.98);

/// How far a needle is moved at most, in tokens, to stand behind the end of a sentence.
const TO_SENTENCE: usize = 48;

/// Why contexts cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum RetrievalError {
    /// Beyond this length the baseline fails as well.
    #[error("retrieval: a context of {length} tokens is beyond the {trained} that the model was trained for; shorten `lengths`")]
    BeyondTraining { length: usize, trained: usize },
    /// Hardly any haystack would be left.
    #[error("retrieval: {needles} needles and their questions take {taken} of {length} tokens, and at least half must be text of the corpus; lower `needles`, or use longer contexts")]
    TooManyNeedles { needles: usize, taken: usize, length: usize },
    /// No text is long enough.
    #[error("retrieval: a context of {length} tokens needs a text of as many, and the longest text of the corpus has {longest}; shorten `lengths`, or add text")]
    TooShort { length: usize, longest: usize },
    /// The text leaves no needle, or the tokenizer cannot spell one.
    #[error("retrieval: context {index} of {length} tokens cannot be built: {why}")]
    Unsound { length: usize, index: usize, why: String },
}

/// A context.
pub struct Haystack {
    /// All positions are scored: those of the haystack for the KLD by depth, and those of the answers.
    pub chunk: Chunk,
    /// Where the questions begin.
    pub questions: usize,
    /// Where the tokens of each answer's value stand.
    pub answers: Vec<Range<usize>>,
}

/// All contexts of one length.
pub struct Haystacks {
    pub length: usize,
    pub all: Vec<Haystack>,
}

/// Builds the contexts of a plan, length by length, of the tokens of the corpus' texts.
///
/// # Errors
/// Lengths beyond what the model was trained for, and a corpus or needles that do not fit.
pub fn build(
    plan: &Plan,
    texts: &[Vec<u32>],
    tokenizer: &Tokenizer,
    trained: usize,
) -> Result<Vec<Haystacks>, RetrievalError> {
    let of_length = |&length: &usize| {
        if length > trained {
            return Err(RetrievalError::BeyondTraining { length, trained });
        }
        let builder = Builder { plan, texts, tokenizer, length };
        let all =
            (0..plan.contexts).map(|index| builder.context(index)).collect::<Result<_, _>>()?;
        Ok(Haystacks { length, all })
    };
    plan.lengths.iter().map(of_length).collect()
}

impl Haystacks {
    /// SHA-256 of the tokens of all contexts.
    pub fn sha256(&self) -> String {
        let tokens = self.all.iter().flat_map(|haystack| &haystack.chunk.tokens);
        hash::of_bytes(&tokens.flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>())
    }
}

struct Builder<'a> {
    plan: &'a Plan,
    texts: &'a [Vec<u32>],
    tokenizer: &'a Tokenizer,
    length: usize,
}

/// The tokens of three parts of a sentence, and which of them are the value.
struct Sentence {
    tokens: Vec<u32>,
    value: Range<usize>,
}

impl Builder<'_> {
    fn context(&self, index: usize) -> Result<Haystack, RetrievalError> {
        let unsound = |why: String| RetrievalError::Unsound { length: self.length, index, why };
        let mut random = Random::new(self.plan.seed, self.length, index);
        // values decide how many tokens are left for the haystack, and may not stand in it: so all of a window is
        // looked at, of which the haystack is the beginning
        let window = self.window(index, &mut random)?;
        let text = self.tokenizer.decode(window).map_err(unsound)?;
        let needles = needles::draw(self.plan.needles, &mut random, &|what| text.contains(what));
        let needles = needles.map_err(|why| unsound(format!("of its text, {why}")))?;
        let spell = |parts: &dyn Fn(&Needle) -> [String; 3]| {
            needles
                .iter()
                .map(|needle| self.sentence(&parts(needle)))
                .collect::<Result<Vec<_>, _>>()
        };
        let hidden = spell(&Needle::sentence).map_err(unsound)?;
        let mut questions = spell(&Needle::question).map_err(unsound)?;
        random.shuffle(&mut questions);
        let taken: usize =
            hidden.iter().chain(&questions).map(|sentence| sentence.tokens.len()).sum();
        if 2 * taken > self.length {
            let needles = self.plan.needles;
            return Err(RetrievalError::TooManyNeedles { needles, taken, length: self.length });
        }
        let haystack = &window[..self.length - taken];
        let places = self.places(haystack, &mut random).map_err(unsound)?;
        let haystack = self.assemble(index, haystack, &places, &hidden, &questions);
        self.check(&haystack, &needles).map_err(unsound)?;
        Ok(haystack)
    }

    /// As many tokens of a text as a context has, from a random place. Texts take turns.
    fn window(&self, index: usize, random: &mut Random) -> Result<&[u32], RetrievalError> {
        let length = self.length;
        let fitting: Vec<&Vec<u32>> =
            self.texts.iter().filter(|text| text.len() >= length).collect();
        if fitting.is_empty() {
            let longest = self.texts.iter().map(Vec::len).max().unwrap_or(0);
            return Err(RetrievalError::TooShort { length, longest });
        }
        let text = fitting[index % fitting.len()];
        let start = random.below(text.len() - length + 1);
        Ok(&text[start..start + length])
    }

    /// Spells a sentence as one text, and finds the tokens of its value. A token that the value shares with its
    /// neighbour belongs to it.
    fn sentence(&self, [before, value, behind]: &[String; 3]) -> Result<Sentence, String> {
        let tokens = self.spell(&format!("{before}{value}{behind}"))?;
        let common = |text: &str| -> Result<usize, String> {
            let own = self.spell(text)?;
            Ok(own.iter().zip(&tokens).take_while(|(a, b)| a == b).count())
        };
        let start = common(before)?;
        let with_value = format!("{before}{value}");
        let whole = self.spell(&with_value)?.len();
        let end = common(&with_value)?;
        let end = if end == whole { end } else { (end + 1).min(tokens.len()) };
        let read = self.tokenizer.decode(&tokens[start..end])?;
        if start >= end || !read.contains(value.trim()) {
            return Err(format!("the tokenizer reads `{}` back as `{read}`", value.trim()));
        }
        Ok(Sentence { tokens, value: start..end })
    }

    /// The tokens of a text within a context, which has its BOS already.
    fn spell(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut tokens = self.tokenizer.encode(text)?;
        if self.tokenizer.bos.is_some() {
            tokens.remove(0);
        }
        Ok(tokens)
    }

    /// Where needles are put, one in each of equal strata of the haystack, at a random place behind the end of a sentence.
    fn places(&self, haystack: &[u32], random: &mut Random) -> Result<Vec<usize>, String> {
        let (first, last) = DEPTH;
        let count = self.plan.needles;
        let at = |share: f64| {
            ((first + (last - first) * share / count as f64) * haystack.len() as f64) as usize
        };
        let place = |stratum: usize| -> Result<usize, String> {
            let (start, end) = (at(stratum as f64), at((stratum + 1) as f64));
            let drawn = start + random.below((end - start).max(1));
            for place in drawn..end.min(drawn + TO_SENTENCE) {
                let before = self.tokenizer.decode(&haystack[place.saturating_sub(1)..place])?;
                if before.ends_with(['.', '!', '?', '\n']) {
                    return Ok(place);
                }
            }
            Ok(drawn)
        };
        (0..count).map(place).collect()
    }

    fn assemble(
        &self,
        index: usize,
        haystack: &[u32],
        places: &[usize],
        hidden: &[Sentence],
        questions: &[Sentence],
    ) -> Haystack {
        let mut tokens = Vec::with_capacity(self.length);
        let mut read = 0;
        for (&place, needle) in places.iter().zip(hidden) {
            tokens.extend(&haystack[read..place]);
            tokens.extend(&needle.tokens);
            read = place;
        }
        tokens.extend(&haystack[read..]);
        if let Some(bos) = self.tokenizer.bos {
            tokens[0] = bos;
        }
        let start = tokens.len();
        let mut answers = Vec::new();
        for Sentence { tokens: question, value } in questions {
            answers.push(tokens.len() + value.start..tokens.len() + value.end);
            tokens.extend(question);
        }
        let scored = 0..tokens.len().saturating_sub(1);
        let chunk = Chunk { category: "retrieval".into(), index, tokens, scored };
        Haystack { chunk, questions: start, answers }
    }

    /// Checks what was built by reading it as text.
    fn check(&self, haystack: &Haystack, needles: &[Needle]) -> Result<(), String> {
        let Haystack { chunk, questions, answers } = haystack;
        let tokens = &chunk.tokens;
        if tokens.len() != self.length {
            return Err(format!("it has {} tokens", tokens.len()));
        }
        let text = self.tokenizer.decode(&tokens[..*questions])?;
        let asked = self.tokenizer.decode(&tokens[*questions..])?;
        for needle in needles {
            for (part, text, parts) in [
                ("haystack", &text, needle.sentence()),
                ("part with the questions", &asked, needle.question()),
            ] {
                // blanks and line feeds at the edges are the tokenizer's to change
                let sentence = parts.concat();
                if text.matches(sentence.trim()).count() != 1 {
                    return Err(format!("its {part} does not have `{}` once", sentence.trim()));
                }
            }
            let is_answer = |answer: &Range<usize>| {
                let read = self.tokenizer.decode(&tokens[answer.clone()]);
                read.is_ok_and(|read| read.contains(&needle.value))
            };
            if answers.iter().filter(|answer| is_answer(answer)).count() != 1 {
                return Err(format!("`{}` is not the answer to one question", needle.value));
            }
        }
        Ok(())
    }
}
