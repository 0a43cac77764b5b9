//! Marks that are recognised by their spelling: ends of answers, beginnings of turns, and the marks of infilling.
//!
//! Some files declare such a token as ordinary text, or as text that is always one token. llama.cpp treats ends of
//! answers and marks of infilling as control tokens whatever the file says (`llama_vocab::impl::load`). kvgate uses
//! the same lists and the same exceptions, so that its token ids are those of llama.cpp.

use super::kinds::{NORMAL, USER_DEFINED};

/// Tokens that end an answer.
const ENDS: [&str; 23] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|ifm|im_end|>",
];

/// A token that llama.cpp reads otherwise than by the file's type or by the list above.
pub(super) struct Exception {
    pub token: &'static str,
    /// The row holds if all tokens of one of these groups end an answer.
    beside: &'static [&'static [&'static str]],
    /// The type that the token has instead, as in `tokenizer.ggml.token_type`.
    pub kind: u64,
    /// Whether it still ends an answer if a key says so.
    pub may_end: bool,
}

impl Exception {
    /// A token that is always one token, also in plain text, whatever else the vocabulary has.
    const fn always_one(token: &'static str) -> Self {
        Exception { token, beside: &[&[]], kind: USER_DEFINED, may_end: true }
    }

    /// Whether the row holds in a vocabulary in which these tokens end an answer.
    pub fn holds(&self, ends: impl Fn(&str) -> bool) -> bool {
        self.beside.iter().any(|group| group.iter().all(|token| ends(token)))
    }
}

/// The exceptions. The marks of harmony, the format of gpt-oss, are always one token. Its `<|end|>` and that of Solar
/// Open end a message, and the answer goes on. For Gemma 4 and PLaMo `</s>` is HTML.
pub(super) const EXCEPTIONS: [Exception; 6] = [
    Exception::always_one("<|channel|>"),
    Exception::always_one("<|message|>"),
    Exception::always_one("<|start|>"),
    Exception::always_one("<|constrain|>"),
    Exception {
        token: "<|end|>",
        beside: &[
            &["<|return|>", "<|call|>"],
            &["<|return|>", "<|calls|>"],
            &["<|flush|>", "<|call|>"],
            &["<|flush|>", "<|calls|>"],
        ],
        kind: USER_DEFINED,
        may_end: false,
    },
    Exception {
        token: "</s>",
        beside: &[&["<|tool_response>"], &["<|plamo:eos|>"]],
        kind: NORMAL,
        may_end: false,
    },
];

/// A mark of infilling: the keys that name its token, of which the first that names one counts; the spellings by which
/// it is recognised if no key does; and whether it ends an answer.
pub(super) struct Infill {
    pub keys: &'static [&'static str],
    spellings: &'static [&'static str],
    pub ends: bool,
}

/// The marks of infilling. Older files name three of them by other keys, which llama.cpp reads last, so that they count.
pub(super) const INFILL: [Infill; 6] = [
    Infill {
        keys: &["tokenizer.ggml.prefix_token_id", "tokenizer.ggml.fim_pre_token_id"],
        spellings: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
            "<|plamo:fim_prefix|>",
        ],
        ends: false,
    },
    Infill {
        keys: &["tokenizer.ggml.suffix_token_id", "tokenizer.ggml.fim_suf_token_id"],
        spellings: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
            "<|plamo:fim_suffix|>",
        ],
        ends: false,
    },
    Infill {
        keys: &["tokenizer.ggml.middle_token_id", "tokenizer.ggml.fim_mid_token_id"],
        spellings: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
            "<|plamo:fim_middle|>",
        ],
        ends: false,
    },
    Infill {
        keys: &["tokenizer.ggml.fim_pad_token_id"],
        spellings: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        ends: true,
    },
    Infill {
        keys: &["tokenizer.ggml.fim_rep_token_id"],
        spellings: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
        ends: true,
    },
    Infill {
        keys: &["tokenizer.ggml.fim_sep_token_id"],
        spellings: &["<|file_sep|>", "<|plamo:file_separator|>"],
        ends: true,
    },
];

/// Tokens that begin a turn or stand within its head. llama.cpp does not change their types, so in plain text they
/// are what the file says. In text that a chat template wrote they are always read as marks.
const BEGINS: [&str; 10] = [
    "<|im_start|>",
    "<|im_sep|>",
    "<start_of_turn>",
    "<|turn>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
];

/// Whether a token of this spelling ends an answer.
pub(crate) fn ends_answers(text: &str) -> bool {
    ENDS.contains(&text)
}

/// Whether a token of this spelling begins a turn.
pub(super) fn begins_turns(text: &str) -> bool {
    BEGINS.contains(&text)
}

impl Infill {
    /// Looks up the mark by its spellings. If several exist, the one that is listed first counts.
    pub fn spelled<T>(&self, token: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.spellings.iter().find_map(|text| token(text))
    }
}

/// The marks that a template writes, each once, in the order of the template: all known marks, and every word between
/// `<|` and `|>`.
pub(crate) fn written_by(template: &str) -> Vec<&str> {
    let mut found: Vec<(usize, &str)> = Vec::new();
    for known in ENDS.iter().chain(&BEGINS) {
        found.extend(template.find(known).map(|at| (at, *known)));
    }
    for (at, _) in template.match_indices("<|") {
        let inner = &template[at + 2..];
        let length = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(0);
        if length > 0 && inner[length..].starts_with("|>") {
            found.push((at, &template[at..at + length + 4]));
        }
    }
    found.sort_unstable();
    let mut marks: Vec<&str> = Vec::new();
    for (_, mark) in found {
        if !marks.contains(&mark) {
            marks.push(mark);
        }
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marks_of_a_template_are_found_in_its_order() {
        let template =
            "{% if a <|b %}<|tool_7|>x<end_of_turn>{{ '<|im_start|>' }}<|im_start|><|no no|>";
        assert_eq!(written_by(template), ["<|tool_7|>", "<end_of_turn>", "<|im_start|>"]);
    }
}
