//! The grammar of KV schemes.
//!
//! ```text
//! scheme = pair { "@" layers "=" pair }   a pair behind an @ is for those layers; if several clauses name
//!                                         a layer, the last one counts
//! pair   = side [ "/" side ]              one side is for K and V alike; of two sides the first is K's
//! side   = codec { ":" option }           a codec of the catalogue
//! option = "norot"                        no Hadamard rotation before a codec that has one
//!        | "center"                       K's mean over a calibration text is subtracted first
//!        | "tensor" | "head"              a calibrated scale for each layer, or for each KV head (fp8)
//!        | "checkpoint"                   the scales that the checkpoint has (fp8_e4m3)
//!        | "tail=" N | "sink=" N          the newest N tokens, or the first N, stay exact
//!        | "quantile" | …                 a variant of the codec, as the catalogue lists them
//! layers = N | N "-" N | "first" N | "last" N | "global" | "sliding"
//! ```

use super::codec::{self, Codec};
use super::exact::Exact;
use super::layout::LayerKv;
use crate::text::suggest::did_you_mean;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// How K, or V, is stored.
#[derive(Clone, Copy)]
pub struct Side {
    /// The storage format.
    pub codec: &'static dyn Codec,
    /// Whether llama.cpp's automatic rotation may take place. It does before ggml's block formats if the
    /// head size allows it, unless `:norot` forbids it.
    pub may_rotate: bool,
    /// Whether a calibrated mean is subtracted before the codec.
    pub center: bool,
    /// Where a scale in front of the codec comes from. `None` if there is no such scale.
    pub scale: Option<Scale>,
    /// How many of the newest tokens stay exact. `None` leaves it to the codec.
    pub tail: Option<usize>,
    /// How many of the first tokens stay exact. `None` leaves it to the codec.
    pub sink: Option<usize>,
}

/// Where a scale comes from: from a calibration, with what shares it, or from the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// All of a layer's K, or all of its V.
    Tensor,
    /// A KV head.
    Head,
    /// The checkpoint has it, one for K and one for V of each layer.
    Checkpoint,
}

/// A codec for K and one for V, with their options.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// How K is stored.
    pub k: Side,
    /// How V is stored.
    pub v: Side,
}

/// A KV scheme as it was asked for.
///
/// Two schemes are equal if they ask for the same storage, however they are spelled: `q8_0` equals
/// `q8_0/q8_0`.
#[derive(Clone, PartialEq, Eq)]
pub struct Scheme {
    /// For every layer that no clause is about.
    pub default: Pair,
    /// The clauses for some layers. If several name a layer, the last one counts.
    pub layers: Vec<(Layers, Pair)>,
}

/// Some of a model's layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layers {
    /// By their index in the checkpoint.
    Index(RangeInclusive<usize>),
    /// The first N that own a cache.
    First(usize),
    /// The last N that own a cache.
    Last(usize),
    /// Those without a window, whose queries see all earlier tokens.
    Global,
    /// Those with a window.
    Sliding,
}

/// Why a text is not a scheme. The message names what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemeError {
    /// There is no codec of that name.
    #[error("unknown codec `{name}`{}; known codecs: {}", did_you_mean(.name, codec_names()), codec_names().collect::<Vec<_>>().join(", "))]
    UnknownCodec {
        /// The name as written.
        name: String,
    },
    /// The codec has no option of that name.
    #[error(
        "unknown option `:{option}` of codec `{codec}`, which knows {}", known_options(.codec)
    )]
    UnknownOption {
        /// The option as written, without its colon.
        option: String,
        /// The codec that it was written for.
        codec: String,
    },
    /// The option has no effect on this codec.
    #[error("`:{option}` has no meaning for `{codec}`, {why}")]
    IdleOption {
        /// The option as written, without its colon.
        option: String,
        /// The codec that it was written for.
        codec: String,
        /// Why, and what to write.
        why: String,
    },
    /// The option is written twice.
    #[error("`:{option}` is said twice of `{codec}`: keep one")]
    TwiceOption {
        /// The option's name.
        option: String,
        /// The codec that it was written for.
        codec: String,
    },
    /// The tail or sink is not a number of tokens, or not one that this codec can leave exact.
    #[error("`:{option}` of `{codec}` takes {takes}")]
    Tokens {
        /// The option as written.
        option: String,
        /// The codec that it was written for.
        codec: String,
        /// What it takes.
        takes: String,
    },
    /// The scheme has more than two sides.
    #[error("`{text}` has more than two sides: write K/V, such as q8_0/q4_0")]
    TooManySides {
        /// The whole scheme.
        text: String,
    },
    /// The text behind an `@` is not `layers=scheme`.
    #[error("`@{text}` is not LAYERS=SCHEME, where LAYERS is 7, 0-2, first2, last2, global or sliding, as in q4_0@first2=q8_0")]
    Layers {
        /// What was written.
        text: String,
    },
}

fn known_options(codec: &str) -> String {
    let Some(found) = codec::find(codec) else { return "none".into() };
    let is_lossy = found.exactness().is_lossy();
    let variants = codec_names().filter_map(|name| name.strip_prefix(codec)?.strip_prefix(':'));
    let options = [
        (found.is_rotated(), "norot"),
        (is_lossy, "tail=N"),
        (is_lossy, "sink=N"),
        (may_center(found), "center"),
        (found.largest().is_some(), "tensor"),
        (found.largest().is_some(), "head"),
        (has_stored_scales(found), "checkpoint"),
    ];
    let options = options.into_iter().filter(|(has, _)| *has).map(|(_, option)| option);
    let options: Vec<_> = variants.chain(options).map(|option| format!(":{option}")).collect();
    if options.is_empty() {
        "none".into()
    } else {
        options.join(", ")
    }
}

/// The largest tail or sink that may be written: more tokens than any context has.
const MOST_TOKENS: usize = 1 << 24;

/// Whether `:center` has an effect. Codecs that store tokens together fit the range of each channel, which
/// already takes its mean into account.
pub(super) fn may_center(codec: &dyn Codec) -> bool {
    codec.exactness().is_lossy() && codec.group() == 1
}

/// Whether checkpoints have scales for the codec. They are made for engines' FP8, which is e4m3.
fn has_stored_scales(codec: &dyn Codec) -> bool {
    codec.name() == "fp8_e4m3"
}

fn codec_names() -> impl Iterator<Item = &'static str> {
    codec::all().map(|c| c.name())
}

impl FromStr for Side {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let mut words = text.split(':');
        let name = words.next().unwrap_or_default();
        let codec =
            codec::find(name).ok_or_else(|| SchemeError::UnknownCodec { name: name.into() })?;
        let mut side = Side::plain(codec);
        let mut variant: Vec<&str> = Vec::new();
        for option in words {
            if !side.set_option(option)? {
                variant.push(option);
            }
        }
        side.choose_variant(&mut variant)?;
        side.check()?;
        Ok(side)
    }
}

impl Side {
    /// A codec without options.
    pub fn plain(codec: &'static dyn Codec) -> Self {
        let may_rotate = codec.is_rotated();
        Side { codec, may_rotate, center: false, scale: None, tail: None, sink: None }
    }

    /// Sets an option that any codec may have. Returns `false` if it is not one of these.
    fn set_option(&mut self, option: &str) -> Result<bool, SchemeError> {
        let again = match option.split_once('=') {
            Some(("tail", n)) => self.tail.replace(self.tokens(option, n)?).is_some(),
            Some(("sink", n)) => self.sink.replace(self.tokens(option, n)?).is_some(),
            _ => match option {
                "norot" if self.codec.is_rotated() => !std::mem::take(&mut self.may_rotate),
                "norot" => {
                    let name = self.codec.name();
                    return Err(self.without_effect(
                        option,
                        &format!("before which nothing is rotated: write `{name}`"),
                    ));
                }
                "center" => std::mem::replace(&mut self.center, true),
                "tensor" => self.scale.replace(Scale::Tensor).is_some(),
                "head" => self.scale.replace(Scale::Head).is_some(),
                "checkpoint" => self.scale.replace(Scale::Checkpoint).is_some(),
                _ => return Ok(false),
            },
        };
        if again {
            return Err(SchemeError::TwiceOption {
                option: option.split('=').next().unwrap_or_default().into(),
                codec: self.codec.name().into(),
            });
        }
        Ok(true)
    }

    fn tokens(&self, option: &str, count: &str) -> Result<usize, SchemeError> {
        let tokens = count.parse().ok().filter(|&tokens| tokens <= MOST_TOKENS);
        tokens.ok_or_else(|| SchemeError::Tokens {
            option: option.into(),
            codec: self.codec.name().into(),
            takes: format!("a number of tokens, such as 128, of {MOST_TOKENS} at most"),
        })
    }

    /// Replaces the codec by the variant that `options` name, in whatever order.
    fn choose_variant(&mut self, options: &mut [&str]) -> Result<(), SchemeError> {
        if options.is_empty() {
            return Ok(());
        }
        options.sort_unstable();
        let name = self.codec.name();
        let Some(variant) = codec::find(&format!("{name}:{}", options.join(":"))) else {
            let unknown = |option: &&&str| codec::find(&format!("{name}:{option}")).is_none();
            let (option, codec) = match options.iter().find(unknown) {
                Some(option) => ((*option).to_string(), name.to_string()),
                // each option exists, but not all of them together
                None => (options[1].to_string(), format!("{name}:{}", options[0])),
            };
            return Err(SchemeError::UnknownOption { option, codec });
        };
        self.codec = variant;
        Ok(())
    }

    /// Refuses options that have no effect on the codec, and tails that it cannot have.
    fn check(&self) -> Result<(), SchemeError> {
        let is_lossy = self.codec.exactness().is_lossy();
        let exact = [("tail", self.tail), ("sink", self.sink)];
        for (option, _) in exact.iter().filter(|(_, tokens)| tokens.is_some()) {
            if !is_lossy {
                return Err(self.without_effect(option, "which is exact"));
            }
        }
        if self.center && !may_center(self.codec) {
            let why = if is_lossy {
                "whose range of each channel takes the mean in"
            } else {
                "which is exact"
            };
            return Err(self.without_effect("center", why));
        }
        if let Some(scale) = self.scale.filter(|_| self.codec.largest().is_none()) {
            return Err(self.without_effect(scale.name(), "which has scales of its own"));
        }
        if self.scale == Some(Scale::Checkpoint) && !has_stored_scales(self.codec) {
            return Err(self.without_effect("checkpoint", "for which no checkpoint has scales"));
        }
        let group = self.codec.group();
        match self.tail {
            Some(tail) if group > 1 && (tail == 0 || tail % group != 0) => {
                Err(SchemeError::Tokens {
                    option: format!("tail={tail}"),
                    codec: self.codec.name().into(),
                    takes: format!("a multiple of the {group} tokens that it stores together"),
                })
            }
            _ => Ok(()),
        }
    }

    fn without_effect(&self, option: &str, why: &str) -> SchemeError {
        let codec = self.codec.name().into();
        SchemeError::IdleOption { option: option.into(), codec, why: why.into() }
    }

    /// Whether the side needs a file that `kvgate calibrate` writes.
    pub fn is_calibrated(&self) -> bool {
        self.center || matches!(self.scale, Some(Scale::Tensor | Scale::Head))
    }

    /// This side as V is stored: with the codec's format of V, if it has one.
    pub(super) fn for_values(self) -> Self {
        Side { codec: self.codec.for_values().unwrap_or(self.codec), ..self }
    }

    /// Which tokens stay exact.
    pub(super) fn exact(&self) -> Exact {
        self.codec.exact(self.tail, self.sink)
    }
}

impl Scale {
    /// The option's name.
    pub fn name(self) -> &'static str {
        match self {
            Scale::Tensor => "tensor",
            Scale::Head => "head",
            Scale::Checkpoint => "checkpoint",
        }
    }
}

impl FromStr for Pair {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let mut sides = text.split('/');
        let k: Side = sides.next().unwrap_or_default().parse()?;
        // only a mean of K falls out of the softmax, so that `:center` is not passed on to V
        let v = sides.next().map_or(Ok(Side { center: false, ..k }), str::parse)?;
        if sides.next().is_some() {
            return Err(SchemeError::TooManySides { text: text.into() });
        }
        if v.center {
            let why = "on V's side: only a mean of K falls out of the softmax";
            return Err(v.without_effect("center", why));
        }
        Ok(Pair { k, v })
    }
}

impl Pair {
    fn sides(&self) -> [Side; 2] {
        [self.k, self.v.for_values()]
    }

    /// The shortest context at which the pair can be measured, so that at least half of the keys are
    /// quantized.
    fn least_context(&self) -> usize {
        let exact = self.sides().map(|side| side.exact().tokens());
        2 * exact[0].max(exact[1])
    }
}

impl FromStr for Scheme {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let mut parts = text.trim().split('@');
        let default = parts.next().unwrap_or_default().parse()?;
        let layers = parts.map(|part| {
            let wrong = || SchemeError::Layers { text: part.into() };
            let (layers, pair) = part.split_once('=').ok_or_else(wrong)?;
            Ok((layers.parse().map_err(|()| wrong())?, pair.parse()?))
        });
        Ok(Scheme { default, layers: layers.collect::<Result<_, SchemeError>>()? })
    }
}

impl FromStr for Layers {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.parse::<usize>().map_err(|_| ());
        match (text, text.strip_prefix("first"), text.strip_prefix("last"), text.split_once('-')) {
            ("global", ..) => Ok(Layers::Global),
            ("sliding", ..) => Ok(Layers::Sliding),
            (_, Some(count), ..) => Ok(Layers::First(number(count)?)),
            (_, _, Some(count), _) => Ok(Layers::Last(number(count)?)),
            (.., Some((from, to))) => Ok(Layers::Index(number(from)?..=number(to)?)),
            _ => number(text).map(|index| Layers::Index(index..=index)),
        }
    }
}

impl Layers {
    /// The indices of the layers that are meant. Only layers that own a cache are considered.
    pub(super) fn indices(&self, layout: &[Option<LayerKv>]) -> Vec<usize> {
        let owners = layout.iter().enumerate().filter_map(|(i, kv)| Some((i, (*kv)?)));
        let all: Vec<(usize, LayerKv)> = owners.collect();
        let chosen: Vec<&(usize, LayerKv)> = match self {
            Layers::Index(range) => all.iter().filter(|(i, _)| range.contains(i)).collect(),
            Layers::First(count) => all.iter().take(*count).collect(),
            Layers::Last(count) => all.iter().rev().take(*count).rev().collect(),
            Layers::Global => all.iter().filter(|(_, kv)| kv.window.is_none()).collect(),
            Layers::Sliding => all.iter().filter(|(_, kv)| kv.window.is_some()).collect(),
        };
        chosen.into_iter().map(|(i, _)| *i).collect()
    }
}

impl Scheme {
    /// Half precision for K and V, which other schemes are compared with.
    pub fn f16() -> Self {
        let side = Side::plain(codec::F16);
        Scheme { default: Pair { k: side, v: side }, layers: Vec::new() }
    }

    /// The pair of the default and those of the clauses.
    fn pairs(&self) -> impl Iterator<Item = &Pair> {
        std::iter::once(&self.default).chain(self.layers.iter().map(|(_, pair)| pair))
    }

    /// Both sides of every pair.
    pub fn sides(&self) -> impl Iterator<Item = Side> + '_ {
        self.pairs().flat_map(Pair::sides)
    }

    /// Whether the scheme needs a file that `kvgate calibrate` writes.
    pub fn is_calibrated(&self) -> bool {
        self.sides().any(|side| side.is_calibrated())
    }

    /// The shortest context at which the scheme can be measured: its tails and sinks must leave at least
    /// half of the tokens to the codec.
    pub fn least_context(&self) -> usize {
        self.pairs().map(Pair::least_context).max().unwrap_or(0)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.codec.name())?;
        if self.codec.is_rotated() && !self.may_rotate {
            f.write_str(":norot")?;
        }
        if self.center {
            f.write_str(":center")?;
        }
        if let Some(scale) = self.scale {
            write!(f, ":{}", scale.name())?;
        }
        let usual = self.codec.exact(None, None);
        if let Some(tail) = self.tail.filter(|_| self.exact().tail != usual.tail) {
            write!(f, ":tail={tail}")?;
        }
        if let Some(sink) = self.sink.filter(|_| self.exact().sink != usual.sink) {
            write!(f, ":sink={sink}")?;
        }
        Ok(())
    }
}

impl PartialEq for Side {
    fn eq(&self, other: &Self) -> bool {
        self.codec.name() == other.codec.name()
            && self.may_rotate == other.may_rotate
            && self.center == other.center
            && self.scale == other.scale
            && self.exact() == other.exact()
    }
}
impl Eq for Side {}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if (Side { center: false, ..self.k }) == self.v {
            write!(f, "{}", self.k)
        } else {
            write!(f, "{}/{}", self.k, self.v)
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layers::Index(range) if range.start() == range.end() => write!(f, "{}", range.start()),
            Layers::Index(range) => write!(f, "{}-{}", range.start(), range.end()),
            Layers::First(count) => write!(f, "first{count}"),
            Layers::Last(count) => write!(f, "last{count}"),
            Layers::Global => f.write_str("global"),
            Layers::Sliding => f.write_str("sliding"),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.default)?;
        self.layers.iter().try_for_each(|(layers, pair)| write!(f, "@{layers}={pair}"))
    }
}

impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scheme({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(text: &str) -> String {
        text.parse::<Scheme>().unwrap().to_string()
    }

    #[test]
    fn spelling_is_canonical() {
        assert_eq!(round("q8_0"), "q8_0");
        assert_eq!(round("q8_0/q8_0"), "q8_0");
        assert_eq!(round("q8_0/q4_0"), "q8_0/q4_0");
        assert_eq!(round("q4_0:norot"), "q4_0:norot");
        assert_eq!(round("q8_0/q4_0:norot"), "q8_0/q4_0:norot");
        assert_eq!(round("f16/q4_0"), "f16/q4_0");
        assert_eq!(round("turbo4:unbiased/turbo4:quantile"), "turbo4:unbiased/turbo4:quantile");
        assert_eq!(round("q4_0:sink=4:tail=128"), "q4_0:tail=128:sink=4");
        assert_eq!(round("q4_0:tail=0"), "q4_0");
        assert_eq!(round("q8_0/q4_0:tail=64"), "q8_0/q4_0:tail=64");
        assert_eq!(round("q4_0:center/q4_0"), "q4_0:center");
        assert_eq!(round("q4_0:center:norot"), "q4_0:norot:center");
        assert_eq!(round("fp8_e4m3:head"), "fp8_e4m3:head");
        assert_eq!(round("fp8_e4m3:checkpoint"), "fp8_e4m3:checkpoint");
        assert_eq!(
            round("q4_0@first2=q8_0@7-9=q8_0/q4_0@5-5=f16"),
            "q4_0@first2=q8_0@7-9=q8_0/q4_0@5=f16"
        );
        assert_eq!(
            round("q4_0:tail=32@global=q8_0/q8_0@sliding=q5_1@last1=f16"),
            "q4_0:tail=32@global=q8_0@sliding=q5_1@last1=f16"
        );
    }

    #[test]
    fn f16_is_what_its_name_says() {
        assert_eq!(Scheme::f16(), "f16/f16".parse().unwrap());
        assert_eq!(Scheme::f16().to_string(), "f16");
    }

    #[test]
    fn errors_name_the_mend() {
        let error = |text: &str| text.parse::<Scheme>().unwrap_err().to_string();
        assert!(error("q8_O").contains("did you mean `q8_0`"), "{}", error("q8_O"));
        assert!(error("int3").contains("iq4_nl"), "{}", error("int3"));
        assert!(error("q4_0:rot").contains(":norot"));
        assert!(error("f16:norot").contains("write `f16`"));
        assert!(error("turbo4:quantil").contains("knows :quantile, :unbiased"));
        assert!(
            error("turbo4:quantile:unbiased").contains("`turbo4:quantile`, which knows :tail=N")
        );
        assert!(error("turbo3:norot").contains("write `turbo3`"));
        assert!(error("q8_0/q4_0/q4_0").contains("K/V"));
        assert!(error("").contains("unknown codec ``"));
        assert!(error("q4_0:tail").contains("knows :norot, :tail=N, :sink=N, :center"));
        assert!(error("q4_0:tail=x").contains("takes a number of tokens"));
        assert!(error("q4_0:tail=4:tail=8").contains("`:tail` is said twice"));
        assert!(error("q4_0:norot:norot").contains("`:norot` is said twice"));
        assert!(error("f16:tail=4").contains("which is exact"));
        assert!(error("q8_0/q8_0:center").contains("only a mean of K"));
        assert!(error("q8_0:head").contains("scales of its own"));
        assert!(error("fp8_e5m2:checkpoint").contains("no checkpoint has scales"));
        assert!(error("fp8_e4m3:head:checkpoint").contains("said twice"));
        for layers in ["q4_0@", "q4_0@first2", "q4_0@firs2=q8_0", "q4_0@first=q8_0", "q4_0@2-=q8_0"]
        {
            assert!(error(layers).contains("is not LAYERS=SCHEME"), "{layers}: {}", error(layers));
        }
        assert!(error("q4_0@first2=q8").contains("unknown codec `q8`"));
    }
}
