//! What each engine can serve: the codecs that come into question, and the parts of a cache that it can store in ways of
//! their own.

use crate::kv::codec::{self, Codec};
use crate::kv::effective::Effective;
use crate::kv::layout::{KvSide, LayerKv, Slot};
use crate::kv::scheme::{Pair, Scheme, Side};
use crate::report::flags::{is_skipped_in_vllm, is_vllm, LLAMA_CPP_BLOCKS, VLLM_TYPE};
use crate::text::suggest::did_you_mean;
use serde::Serialize;

/// For which engine a scheme is sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub enum Engine {
    /// llama.cpp, which has one type for all K and one for all V
    #[value(name = "llama.cpp")]
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// vLLM, which has one type for K and V, and can leave layers out of FP8
    #[value(name = "vllm")]
    #[serde(rename = "vllm")]
    Vllm,
    /// Any: all codecs of kvgate, and mixtures in which each layer has its own
    #[value(name = "any")]
    #[serde(rename = "any")]
    Any,
}

/// A codec that a model can be stored with, and the scheme that stores all of the model with it.
pub struct Coded {
    pub side: Side,
    pub whole: Effective,
}

/// A codec that is no candidate for the model, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unfit {
    pub codec: String,
    pub why: String,
}

/// The index of half precision among the codecs: what stores a part exactly, and does no harm.
pub const EXACT: usize = 0;

/// Schemes of one shape: the cache has parts, and each part is stored with one of its codecs, or exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    pub parts: Vec<Part>,
    /// Whether layers may differ.
    pub is_mixed: bool,
}

/// A part of the cache that is stored in one way.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub slots: Vec<Slot>,
    /// Indices of codecs. The first is always [`EXACT`].
    pub codecs: Vec<usize>,
}

impl Part {
    fn new(slots: Vec<Slot>, codecs: impl IntoIterator<Item = usize>) -> Self {
        Part { slots, codecs: std::iter::once(EXACT).chain(codecs).collect() }
    }
}

impl Engine {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Engine::LlamaCpp => "llama.cpp",
            Engine::Vllm => "vLLM",
            Engine::Any => "any engine",
        }
    }

    /// What its users call a scheme, by what they type for it, if that is a single name that engines do not share.
    pub fn name_of<'f>(self, mut flags: impl Iterator<Item = &'f str>) -> Option<&'f str> {
        let name = |flags: &'f str| flags.strip_prefix(VLLM_TYPE).filter(|n| !n.contains(' '));
        match self {
            Engine::Vllm => flags.find_map(name),
            Engine::LlamaCpp | Engine::Any => None,
        }
    }

    fn has(self, codec: &dyn Codec) -> bool {
        match self {
            Engine::LlamaCpp => LLAMA_CPP_BLOCKS.contains(&codec.name()),
            Engine::Vllm => is_vllm(codec),
            // variants of a codec are for comparisons, and weights' formats are in no engine's cache
            Engine::Any => !codec.name().contains(':') && !codec.accepted_by().is_empty(),
        }
    }

    /// The codecs that come into question, [`EXACT`] first, and those that do not, with the reason. `asked` are names of
    /// codecs, or none if the engine decides.
    pub fn codecs(self, asked: &[String], layout: &[Option<LayerKv>]) -> (Vec<Coded>, Vec<Unfit>) {
        let is_asked = |name: &str| asked.is_empty() || asked.iter().any(|asked| asked == name);
        let candidates = self.all().filter(|codec| is_asked(codec.name()));
        let (mut coded, mut unfit) = (Vec::new(), Vec::new());
        for codec in std::iter::once(codec::F16).chain(candidates) {
            match stored(codec, layout) {
                Ok(found) => coded.push(found),
                Err(why) => unfit.push(Unfit { codec: codec.name().into(), why }),
            }
        }
        (coded, unfit)
    }

    /// All codecs of the engine that quantize.
    fn all(self) -> impl Iterator<Item = &'static dyn Codec> {
        codec::all().filter(move |codec| !codec.exactness().is_unquantized() && self.has(*codec))
    }

    /// The first name that was asked for and is no candidate whatever the model is, and names that may have been meant.
    pub fn unknown(self, asked: &[String]) -> Option<(&str, String)> {
        let names = || self.all().map(|codec| codec.name());
        let unknown = asked.iter().find(|asked| names().all(|name| name != asked.as_str()))?;
        Some((unknown, did_you_mean(unknown, names())))
    }

    /// Whether it can store all layers with a pair of these codecs.
    pub fn serves(self, pair: &Pair, coded: &[Coded]) -> bool {
        let is_there = |side: Side| coded.iter().any(|coded| coded.side == side);
        let may_differ = self != Engine::Vllm;
        is_there(pair.k) && is_there(pair.v) && (may_differ || pair.k == pair.v)
    }

    /// The families that are tried first, and those in which layers differ only if `mixes` is true. Mixtures of slots
    /// follow when the codecs are known that are worth it.
    pub fn families(self, coded: &[Coded], slots: &[Slot], mixes: bool) -> Vec<Family> {
        let all = || (EXACT + 1)..coded.len();
        match self {
            Engine::LlamaCpp | Engine::Any => {
                let of = |side| -> Vec<Slot> {
                    slots.iter().copied().filter(|slot| slot.side == side).collect()
                };
                let parts = KvSide::BOTH.map(|side| Part::new(of(side), all()));
                vec![Family { parts: parts.into(), is_mixed: false }]
            }
            Engine::Vllm => {
                let whole = Part::new(slots.to_vec(), all());
                let layers = by_layer(slots);
                // with a single layer there is nothing to leave out
                let can_skip = mixes && layers.len() > 1;
                let skipped =
                    all().filter(|&i| can_skip && is_skipped_in_vllm(coded[i].side.codec.name()));
                let skipping = |codec| Family {
                    parts: layers.iter().map(|l| Part::new(l.clone(), [codec])).collect(),
                    is_mixed: true,
                };
                let uniform = Family { parts: vec![whole], is_mixed: false };
                std::iter::once(uniform).chain(skipped.map(skipping)).collect()
            }
        }
    }

    /// Whether a scheme may store each slot in a way of its own.
    pub fn mixes_slots(self) -> bool {
        self == Engine::Any
    }
}

/// Mixtures that store each slot with one of the codecs of its side.
pub fn mixture_of_slots(slots: &[Slot], of: impl Fn(KvSide) -> Vec<usize>) -> Family {
    let part = |slot: &Slot| Part::new(vec![*slot], of(slot.side));
    Family { parts: slots.iter().map(part).collect(), is_mixed: true }
}

fn by_layer(slots: &[Slot]) -> Vec<Vec<Slot>> {
    slots.chunk_by(|a, b| a.layer == b.layer).map(<[Slot]>::to_vec).collect()
}

/// The model stored with one codec.
fn stored(codec: &'static dyn Codec, layout: &[Option<LayerKv>]) -> Result<Coded, String> {
    let side = Side::plain(codec);
    let scheme = Scheme { default: Pair { k: side, v: side }, layers: Vec::new() };
    let whole = Effective::new(&scheme, layout, None).map_err(|error| error.to_string())?;
    if !whole.encodes_tokens_alone() {
        // a measured chunk is short, and a served context is not
        return Err("it keeps a tail of exact tokens, so that short chunks hide what it does in a long context".into());
    }
    Ok(Coded { side, whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(head_dim: usize) -> Vec<Option<LayerKv>> {
        vec![Some(LayerKv { heads: 2, head_dim, ..LayerKv::default() }); 3]
    }

    fn names(engine: Engine, head_dim: usize) -> Vec<String> {
        let (coded, _) = engine.codecs(&[], &layout(head_dim));
        coded.iter().map(|coded| coded.side.to_string()).collect()
    }

    #[test]
    fn engines_are_offered_what_they_serve() {
        let llama = ["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"];
        assert_eq!(names(Engine::LlamaCpp, 64), llama);
        let vllm = names(Engine::Vllm, 64);
        for name in ["int8_pth", "fp8_pth", "fp8_e4m3", "fp8_e5m2", "nvfp4", "int4_pth"] {
            assert!(vllm.iter().any(|own| own == name), "{name} of {vllm:?}");
        }
        assert!(!vllm.iter().any(|own| own.starts_with("q") || own.contains("kvarn")), "{vllm:?}");
        let any = names(Engine::Any, 64);
        assert!(llama.iter().chain(&["turbo4", "q6_0"]).all(|n| any.iter().any(|own| own == n)));
        assert!(!any.iter().any(|own| own.contains(':') || own == "mxfp4" || own == "bf16"));
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let (coded, unfit) = Engine::Any.codecs(&[], &layout(48));
        assert!(!coded.iter().any(|coded| coded.side.codec.name() == "q8_0"));
        let why = |name: &str| &unfit.iter().find(|unfit| unfit.codec == name).unwrap().why;
        assert!(why("q8_0").contains("do not divide"), "{}", why("q8_0"));
        let (_, unfit) = Engine::Any.codecs(&[], &layout(128));
        let tail = unfit.iter().find(|unfit| unfit.codec == "kvarn4").unwrap();
        assert!(tail.why.contains("a tail of exact tokens"), "{}", tail.why);
        let asked = ["q4_0".to_string(), "turbo4".into()];
        assert_eq!(Engine::Any.codecs(&asked, &layout(64)).0.len(), 3, "f16 and two more");
        assert_eq!(Engine::Any.unknown(&asked), None);
        assert_eq!(Engine::LlamaCpp.unknown(&asked), Some(("turbo4", String::new())));
        assert!(Engine::LlamaCpp.unknown(&["f16".into()]).is_some(), "it quantizes nothing");
        let meant = Engine::LlamaCpp.unknown(&["q8_O".into()][..]).unwrap().1;
        assert_eq!(meant, " (did you mean `q8_0`?)");
    }

    #[test]
    fn families_have_the_parts_that_an_engine_can_tell_apart() {
        let shape = |engine: Engine, mixes: bool| {
            let (coded, _) = engine.codecs(&[], &layout(64));
            let slots = coded[EXACT].whole.slots();
            let families = engine.families(&coded, &slots, mixes);
            let parts =
                |f: &Family| f.parts.iter().map(|part| part.slots.len()).collect::<Vec<_>>();
            families.iter().map(parts).collect::<Vec<_>>()
        };
        assert_eq!(shape(Engine::LlamaCpp, true), [vec![3, 3]]);
        assert_eq!(shape(Engine::Vllm, true), [vec![6], vec![2, 2, 2], vec![2, 2, 2]]);
        assert_eq!(shape(Engine::Vllm, false), [vec![6]]);
        assert_eq!(shape(Engine::Any, true), [vec![3, 3]]);
    }

    #[test]
    fn a_pair_is_served_if_its_codecs_are_tried_and_the_engine_has_pairs() {
        let serves = |engine: Engine, asked: &[&str], pair: &str| {
            let asked: Vec<String> = asked.iter().map(|name| name.to_string()).collect();
            let (coded, _) = engine.codecs(&asked, &layout(64));
            engine.serves(&pair.parse().unwrap(), &coded)
        };
        assert!(serves(Engine::LlamaCpp, &[], "q8_0/q4_0"));
        assert!(serves(Engine::Any, &["q8_0", "q4_0"], "q8_0/q4_0"));
        assert!(!serves(Engine::LlamaCpp, &["q5_1", "q4_0"], "q8_0/q4_0"));
        assert!(!serves(Engine::Vllm, &[], "q8_0/q4_0"));
        assert!(serves(Engine::Vllm, &[], "nvfp4"));
        assert!(!serves(Engine::Vllm, &[], "fp8_e4m3/nvfp4"));
    }
}
