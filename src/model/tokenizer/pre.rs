//! The pre-tokenizers that `tokenizer.ggml.pre` of a GGUF file names, as facts.
//!
//! A pre-tokenizer cuts a text into words before merging. The facts are llama.cpp's (`llama_vocab::impl::load`,
//! `llm_tokenizer_bpe`, `unicode_regex_split`), since a GGUF file is served by it. Where llama.cpp differs from the
//! tokenizer that a model's authors released, the pattern here is llama.cpp's:
//!
//! - It knows letters, but no upper and lower case beyond ASCII. Every other letter counts as both.
//! - `\s` is any white space of Unicode. In a pattern that names characters beyond ASCII, however, white space beyond
//!   ASCII matches only `\s`, and no range that spans it.
//! - A letter behind an apostrophe is upper or lower case of ASCII only, so there is no `(?i)` here.
//!
//! A new name is a new row of [`KNOWN`]. A name that is not there is refused, because a wrong pre-tokenizer would
//! give plausible tokens and wrong numbers. Of llama.cpp's names, eleven are left out, all of models that only embed
//! texts: `granite-embed-multi-97m`, `jina-de`, `jina-es`, `jina-v1-en`, `jina-v2-code`, `jina-v2-de`, `jina-v2-es`,
//! `mmbert`, `modern-bert`, `roberta-bpe` and `whitespace`. Not all such names are: `f2llmv2`,
//! `granite-embed-multi-311m` and `jina-v5-nano` have rows, which take the patterns of models that generate.

use Rule::{Adds, Forced};

/// Whether llama.cpp puts BOS before a text if no file says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// It adds BOS, even if the file says otherwise.
    Forced,
    /// BOS.
    Adds,
    /// Nothing.
    Silent,
}

/// Endings behind an apostrophe.
macro_rules! contractions {
    () => {
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}

/// What is neither a word nor digits.
macro_rules! after_words {
    () => {
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

/// The same with slashes behind punctuation.
macro_rules! after_cased_words {
    () => {
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

/// Words of letters and their marks, and words of ASCII behind punctuation.
macro_rules! marked_words {
    () => {
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##
    };
}

/// Han, by the ranges of its blocks.
macro_rules! han {
    () => { r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}\x{2CEB0}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}" };
}

const GPT2_WORDS: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const GPT2: &[&str] = &[GPT2_WORDS];
const DIGITS_GPT2: &[&str] = &[r"\p{N}", GPT2_WORDS];
const LLAMA3: &[&str] =
    &[concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", after_words!())];
const QWEN2_WORDS: &str =
    concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", after_words!());
const QWEN2: &[&str] = &[QWEN2_WORDS];
const BAILING: &[&str] = &[
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
];
const GPT4O: &[&str] = &[concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+",
    contractions!(),
    r"?|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*",
    contractions!(),
    r"?|\p{N}{1,3}",
    after_cased_words!()
)];
/// Digits in threes, counted from the right. What stands before them belongs to the first group.
const DIGITS_FROM_THE_RIGHT: &str = r"(?>[^\p{N}]*)\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|[^\p{N}]+";
const AYA: &[&str] = &[
    DIGITS_FROM_THE_RIGHT,
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        contractions!(),
        r"?|\p{N}{1,3}",
        after_cased_words!()
    ),
];
const HAN_AND_KANA: &str = "[一-龥぀-ゟ゠-ヿ]+";
/// From U+0800 to the Hangul syllables.
const HAN_AND_HANGUL: &str = r"[[一-龥ࠀ-一가-퟿]&&\S]+";
const MARKED_WORDS: &str =
    concat!(marked_words!(), r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+");
const DEEPSEEK3: &[&str] = &[r"\p{N}{1,3}", HAN_AND_KANA, MARKED_WORDS];
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const BLOOM_WORDS: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const BLOOM: &[&str] = &[BLOOM_WORDS];
const LINES: &[&str] = &[r"[^\n]+|[\n]+"];

/// One name.
pub(super) struct Pre {
    /// As `tokenizer.ggml.pre` has it.
    pub name: &'static str,
    /// Patterns that cut a text one after the other: both their matches and what is between them are words.
    pub splits: &'static [&'static str],
    /// Whether a word that is a piece as a whole is that piece, whatever its merges would make.
    pub has_whole_words: bool,
    /// What llama.cpp does about BOS.
    pub bos: Rule,
    /// Whether pieces are spelled as by SentencePiece, and not byte by byte.
    pub is_spelled_as_text: bool,
}

impl Pre {
    const fn new(name: &'static str, splits: &'static [&'static str]) -> Self {
        let bos = Rule::Silent;
        Pre { name, splits, has_whole_words: false, bos, is_spelled_as_text: false }
    }

    const fn whole_words(mut self) -> Self {
        self.has_whole_words = true;
        self
    }

    const fn bos(mut self, rule: Rule) -> Self {
        self.bos = rule;
        self
    }

    const fn read_as_text(mut self) -> Self {
        self.is_spelled_as_text = true;
        self
    }
}

/// The pre-tokenizer of this name.
pub(super) fn named(name: &str) -> Option<&'static Pre> {
    KNOWN.iter().find(|pre| pre.name == name)
}

/// All names, for people.
pub(super) fn names() -> String {
    KNOWN.iter().map(|pre| pre.name).collect::<Vec<_>>().join(", ")
}

/// What llama.cpp takes if a file names none.
pub(super) const DEFAULT: &str = "default";

/// The pre-tokenizer of the kind of tokenizer that Gemma 4 has, whatever the file names.
pub(super) const GEMMA4: &str = "gemma4";

/// All known names.
#[rustfmt::skip] // one row a name
const KNOWN: &[Pre] = &[
    Pre::new(DEFAULT, &[r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"]),
    // GPT-2's words
    Pre::new("gpt-2", GPT2),
    Pre::new("phi-2", GPT2),
    Pre::new("gigachat", GPT2),
    Pre::new("a.x-4.0", GPT2),
    Pre::new("mellum", GPT2),
    Pre::new("mpt", GPT2),
    Pre::new("olmo", GPT2),
    Pre::new("jais", GPT2),
    Pre::new("exaone4", GPT2),
    Pre::new("trillion", GPT2),
    Pre::new("granite-docling", GPT2),
    // the same with single digits
    Pre::new("smollm", DIGITS_GPT2),
    Pre::new("starcoder", DIGITS_GPT2),
    Pre::new("refact", DIGITS_GPT2),
    Pre::new("command-r", DIGITS_GPT2),
    Pre::new("codeshell", DIGITS_GPT2),
    Pre::new("exaone", DIGITS_GPT2),
    Pre::new("minerva-7b", DIGITS_GPT2),
    Pre::new("mellum2", DIGITS_GPT2),
    // other rules around GPT-2's words
    Pre::new("falcon", &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2_WORDS, "[0-9][0-9][0-9]"]),
    Pre::new("chameleon", &["<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", GPT2_WORDS]).bos(Adds),
    // words with the character before them, and up to three digits
    Pre::new("llama-bpe", LLAMA3).whole_words().bos(Adds),
    Pre::new("llama3", LLAMA3).whole_words().bos(Adds),
    Pre::new("llama-v3", LLAMA3).whole_words().bos(Adds),
    Pre::new("falcon3", LLAMA3).whole_words().bos(Adds),
    Pre::new("falcon-h1", LLAMA3).whole_words().bos(Adds),
    Pre::new("pixtral", LLAMA3).whole_words().bos(Adds),
    Pre::new("midm-2.0", LLAMA3).whole_words().bos(Adds),
    Pre::new("lfm2", LLAMA3).whole_words().bos(Adds),
    Pre::new("jina-v5-nano", LLAMA3).whole_words().bos(Adds),
    Pre::new("smaug-bpe", LLAMA3),
    Pre::new("dbrx", LLAMA3),
    Pre::new("chatglm-bpe", LLAMA3),
    Pre::new("glm4", LLAMA3).whole_words(),
    Pre::new("glm5", LLAMA3).whole_words(),
    Pre::new("jais-2", &[concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}")]),
    Pre::new("minicpm5", &[r"\p{N}{1,3}", concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+", after_words!())]).whole_words(),
    // the same with single digits
    Pre::new("qwen2", QWEN2),
    Pre::new("deepseek-r1-qwen", QWEN2),
    Pre::new("kormo", QWEN2),
    Pre::new("f2llmv2", QWEN2),
    Pre::new("megrez", QWEN2),
    Pre::new("stablelm2", QWEN2),
    Pre::new("hunyuan", QWEN2),
    Pre::new("solar-open", QWEN2),
    Pre::new("grok-2", QWEN2),
    Pre::new("laguna", &[r"[^\n]+|[\n]+", QWEN2_WORDS]),
    Pre::new("ufakzeka", &[concat!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", after_words!())]),
    Pre::new("qwen35", &[concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")]),
    Pre::new("seed-coder", &[concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+")]),
    Pre::new("bailingmoe", BAILING),
    Pre::new("bailingmoe2", BAILING),
    Pre::new("llada-moe", BAILING),
    Pre::new("exaone-moe", &[concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+")]),
    // words that begin at a capital letter
    Pre::new("tekken", &[concat!(r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*|\p{N}", after_cased_words!())]).whole_words().bos(Adds),
    Pre::new("gpt-4o", GPT4O),
    Pre::new("llama4", GPT4O),
    Pre::new("kanana2", GPT4O),
    Pre::new("talkie", GPT4O),
    Pre::new("minimax-m2", GPT4O),
    Pre::new("tiny_aya", AYA),
    Pre::new("cohere2moe", AYA),
    Pre::new("youtu", &["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", concat!(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", contractions!(), r"?|\p{N}", after_cased_words!())]).whole_words(),
    Pre::new("kimi-k2", &[concat!("[", han!(), r"]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^", han!(), "]]+", contractions!(), r"?|\p{N}{1,3}", after_words!())]),
    // DeepSeek's
    Pre::new("deepseek-llm", &[r"[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟、-。]+", r"\s+$", HAN_AND_HANGUL, r"\p{N}+"]),
    Pre::new("deepseek-coder", &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL, r"\p{N}"]),
    Pre::new("deepseek-v3", DEEPSEEK3),
    Pre::new("hunyuan-dense", DEEPSEEK3),
    Pre::new("joyai-llm", DEEPSEEK3),
    Pre::new("hy_v4", DEEPSEEK3),
    Pre::new("spark2_5", &[r"\p{N}{1,3}", HAN_AND_KANA, concat!(marked_words!(), r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"), r"\p{N}"]),
    Pre::new("afmoe", &[DIGITS_FROM_THE_RIGHT, "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+", MARKED_WORDS]),
    // words without a rule for letters
    Pre::new("bloom", BLOOM),
    Pre::new("poro-chat", BLOOM),
    Pre::new("gpt3-finnish", BLOOM),
    Pre::new("viking", &[BLOOM_WORDS, r"\p{N}"]),
    Pre::new("superbpe", &[r"\p{N}+", "(?=([0-9]{3})+(?![0-9]))"]),
    // pieces as SentencePiece spells them: words are lines
    Pre::new(GEMMA4, LINES).read_as_text().bos(Forced),
    Pre::new("granite-embed-multi-311m", LINES).read_as_text().bos(Forced),
    Pre::new("sarvam-moe", LINES).read_as_text(),
];
