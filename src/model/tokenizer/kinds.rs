//! Types of tokens, as `tokenizer.ggml.token_type` of a GGUF file and a SentencePiece model number them.

/// Pieces that merging makes.
pub(super) const NORMAL: u64 = 1;
/// What stands for text that the vocabulary cannot spell.
pub(super) const UNKNOWN: u64 = 2;
/// Tokens that text spells only where special tokens are asked for.
pub(super) const CONTROL: u64 = 3;
/// Tokens that text always spells.
pub(super) const USER_DEFINED: u64 = 4;
/// Single bytes.
pub(super) const BYTE: u64 = 6;
