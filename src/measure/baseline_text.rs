//! The text that the baseline writes after each prompt: what it is asked, and the text that people accepted.

use super::prompts::{Prompt, PromptSet, Prompts};
use super::request::{Generate, MeasureError};
use crate::kv::effective::Effective;
use crate::model::Checkpoint;
use crate::results::replay::{Continuation, Generated};

/// The prompts as a model reads them, and the accepted text if it belongs to them.
pub struct BaselineText {
    pub prompts: Prompts,
    /// Holds the accepted continuations. If there are none, the baseline has yet to write them.
    pub generated: Generated,
}

impl BaselineText {
    /// Tokenizes the prompts, and takes over the accepted text if it is of the same model, prompts and length.
    ///
    /// # Errors
    /// A prompt that the model's template cannot render, that is empty, or that leaves too little of the trained
    /// context; an accepted text that the baseline cannot have written.
    pub(super) fn new(
        set: &PromptSet,
        generate: &Generate,
        model: &str,
        weights_sha256: &str,
        baseline: &Effective,
        checkpoint: &Checkpoint,
    ) -> Result<Self, MeasureError> {
        let prompts = set.tokens(checkpoint)?;
        for prompt in &prompts.prompts {
            check_length(prompt, generate.tokens, checkpoint.spec.trained_context)?;
        }
        let mut generated = Generated {
            weights_sha256: weights_sha256.into(),
            prompts_sha256: prompts.sha256.clone(),
            template_sha256: prompts.template_sha256.clone(),
            thinking: prompts.thinking,
            tokens: generate.tokens,
            baseline: baseline.to_string(),
            continuations: Vec::new(),
            accepted: false,
            own_flips: 0,
            wrong_ties: 0,
        };
        if let Some(kept) = generate.kept.filter(|kept| generated.is_of(kept)) {
            if let Some(why) = fault(kept, &prompts, checkpoint) {
                return Err(MeasureError::Text { model: model.into(), why });
            }
            generated.continuations = kept.continuations.clone();
            generated.accepted = true;
        }
        Ok(BaselineText { prompts, generated })
    }
}

/// Refuses a prompt that gives the model nothing to read, or that does not fit into the trained context together
/// with its continuation.
fn check_length(prompt: &Prompt, continued: usize, trained: usize) -> Result<(), MeasureError> {
    let length = prompt.tokens.len();
    let why = if length == 0 {
        "it gives the model nothing to read".into()
    } else if length.saturating_add(continued) > trained {
        format!(
            "it has {length} tokens, and {continued} after them are more than the {trained} that the model was \
             trained for; shorten it, or lower `generate`"
        )
    } else {
        return Ok(());
    };
    Err(MeasureError::Generating { prompt: prompt.id.clone(), why })
}

/// Says why the baseline cannot have written an accepted text after these prompts.
fn fault(kept: &Generated, prompts: &Prompts, checkpoint: &Checkpoint) -> Option<String> {
    let ids = prompts.prompts.iter().map(|prompt| &prompt.id);
    if !kept.continuations.iter().map(|continuation| &continuation.prompt).eq(ids) {
        return Some("does not continue the prompts one by one, in their order".into());
    }
    let fault = |continuation| fault_in_continuation(continuation, kept.tokens, checkpoint);
    kept.continuations.iter().find_map(fault)
}

/// Says why a model cannot have written a continuation of so many tokens at most: it does not end where it would, or
/// its tokens do not spell its text.
pub(crate) fn fault_in_continuation(
    Continuation { prompt, tokens, text, .. }: &Continuation,
    most: usize,
    checkpoint: &Checkpoint,
) -> Option<String> {
    let vocab = checkpoint.spec.vocab;
    let count = tokens.len();
    if count == 0 || count > most {
        return Some(format!("has {count} tokens for `{prompt}`, not 1 to {most}"));
    }
    let ends = |id: &u32| checkpoint.end_tokens.contains(id);
    let (last, others) = tokens.split_last()?;
    if others.iter().any(ends) || (count < most && !ends(last)) {
        return Some(format!("does not end where its text for `{prompt}` would"));
    }
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
        return Some(format!("has token {id} for `{prompt}`, of a vocabulary of {vocab}"));
    }
    let is_its_text = checkpoint.tokenizer.decode(tokens).is_ok_and(|read| read == *text);
    (!is_its_text).then(|| format!("has ids for `{prompt}` that do not spell its text"))
}
