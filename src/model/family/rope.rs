//! Frequencies of rotary position embeddings, by the scaling that a configuration asks for.
//!
//! Formulas are those of transformers' `modeling_rope_utils` and of llama.cpp, which agree. θ^(-2i/d) is
//! computed in f64 and rounded once.

use super::common::Reach;
use super::keys::CONTEXT;
use crate::compute::device::HOST;
use crate::model::config::{Config, Fact, Format, Key};
use crate::model::spec::{Pairs, Rope};
use crate::model::tensors::{finite, Tensors};
use crate::model::ModelError;
use candle_core::DType;
use std::f64::consts::PI;

/// The default θ, in transformers (`RotaryEmbeddingConfigMixin.default_theta`) and in llama.cpp
/// (`rope_freq_base_train`).
const DEFAULT_BASE: f64 = 10_000.0;

/// Divisors of frequencies that GGUF files keep as a tensor (Llama 3, Gemma 4).
pub(in crate::model) const DIVISORS: &str = "rope_freqs.weight";

const KIND: Key = Key { gguf: "rope.scaling.type", hf: "" };
const FACTOR: Key = Key { gguf: "rope.scaling.factor", hf: "" };
/// The key of linear scaling's factor in the first GGUF files.
const LINEAR_SCALE: Key = Key { gguf: "rope.scale_linear", hf: "" };
pub(super) const ORIGINAL: Key =
    Key { gguf: "rope.scaling.original_context_length", hf: "original_max_position_embeddings" };
const YARN_LOG: Key = Key { gguf: "rope.scaling.yarn_log_multiplier", hf: "" };
const YARN_FAST: Key = Key { gguf: "rope.scaling.yarn_beta_fast", hf: "" };
const YARN_SLOW: Key = Key { gguf: "rope.scaling.yarn_beta_slow", hf: "" };
const MAGNITUDE: Key = Key { gguf: "rope.scaling.attn_factor", hf: "" };
const YARN_MAGNITUDE: Key = Key { gguf: "rope.scaling.yarn_attn_factor", hf: "" };
const DIMS: Key = Key { gguf: "rope.dimension_count", hf: "" };
const SLIDING_DIMS: Key = Key { gguf: "rope.dimension_count_swa", hf: "" };
/// Divisors of frequencies that GGUF files of Phi-3 keep for contexts up to the original one. Others are for longer
/// contexts.
pub(in crate::model) const SHORT_DIVISORS: &str = "rope_factors_short.weight";
pub(in crate::model) const LONG_DIVISORS: &str = "rope_factors_long.weight";

/// The object of transformers 4. The base stands beside it.
const OLDER: &str = "rope_scaling";
const NEWER: &str = "rope_parameters";

/// Members that an object about RoPE in config.json may have, besides its kind and θ.
const MEMBERS: [&str; 13] = [
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "partial_rotary_factor",
    "short_factor",
    "long_factor",
];

/// What a family knows about its RoPE apart from the configuration.
pub(super) struct Wanted {
    pub reach: Reach,
    pub pairs: Pairs,
    pub layout: Layout,
    /// The share of a head that is rotated if config.json does not name one. If this is `None`, transformers' class
    /// rotates whole heads, whatever the file says.
    pub share: Option<f64>,
    /// Whether llama.cpp reads all keys about YaRN for this architecture.
    pub own_yarn: bool,
    /// Whether it is Phi-3, whose class knows LongRoPE by an older name, too, and whose GGUF has divisors for it.
    pub phi: bool,
    /// Whether llama.cpp reads divisors of frequencies ([`DIVISORS`]) for this architecture.
    pub divisors: bool,
    /// The base of layers with a window in a GGUF that has no key for it. `None` is that of layers without one.
    pub sliding_base: Option<f64>,
}

/// The place where config.json describes RoPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Once for all layers, in `rope_scaling` (transformers 4) or in `rope_parameters`.
    Once,
    /// For each kind of layer in `rope_parameters`. The keys of transformers 4 count, too (Gemma 3).
    ByKindOrOlder,
    /// For each kind of layer in `rope_parameters`, and nowhere else (Gemma 4).
    ByKind,
}

/// The usual case: in every layer whole heads are rotated, in pairs of one element from each half.
pub(super) const USUAL: Wanted = Wanted {
    reach: Reach::Full,
    pairs: Pairs::Halves,
    layout: Layout::Once,
    share: None,
    own_yarn: false,
    phi: false,
    divisors: false,
    sliding_base: Some(DEFAULT_BASE),
};

/// RoPE over heads of `head_dim` elements.
pub(super) fn rope(
    file: &dyn Tensors,
    wanted: &Wanted,
    head_dim: usize,
) -> Result<Rope, ModelError> {
    let config: &dyn Config = file;
    let parameters = Parameters::find(file, wanted)?;
    let base = parameters.base()?;
    let dims = parameters.rotated(wanted, head_dim)?;
    // an odd part of a head turns with one element more, as torch's arange(0, dims, 2) has it
    let plain = |dims: usize, pairs: usize| -> Vec<f64> {
        (0..pairs).map(|i| base.powf(-2.0 * i as f64 / dims as f64)).collect()
    };
    let whole = || plain(dims, dims.div_ceil(2));
    let (mut magnitude, mut longest) = (1.0, None);
    let mut frequencies = match parameters.kind()? {
        Kind::Plain => whole(),
        Kind::Linear(factor) => whole().iter().map(|f| f / factor).collect(),
        Kind::Llama3 => parameters.llama3(whole())?,
        Kind::Yarn if !dims.is_multiple_of(2) => {
            return Err(parameters
                .config
                .unsupported(format!("YaRN over {dims} elements of a head")))
        }
        Kind::Yarn => {
            magnitude = parameters.attention_factor()?;
            parameters.yarn(base, whole())?
        }
        Kind::Long => {
            let original = parameters.original()?;
            magnitude = parameters.long_magnitude(original)?;
            longest = Some(original as usize);
            parameters.short(file, whole())?
        }
        // the frequencies change only beyond the context that the model was trained for
        Kind::Dynamic => {
            parameters.positive("factor")?;
            longest = Some(config.number(CONTEXT)?);
            whole()
        }
        // the whole head's frequencies, of which only the first ones turn (Gemma 4)
        Kind::Proportional => {
            let factor = parameters.float("factor")?.unwrap_or(1.0);
            let pairs = (head_dim as f64 * parameters.share(1.0)? / 2.0) as usize;
            let mut all: Vec<_> = plain(head_dim, pairs).iter().map(|f| f / factor).collect();
            all.resize(head_dim / 2, 0.0);
            all
        }
    };
    if wanted.reach == Reach::Full {
        refuse_foreign_divisors(file, wanted)?;
        if file.has(DIVISORS) {
            divide(file, DIVISORS, &mut frequencies)?;
        }
    }
    Ok(Rope {
        base,
        pairs: wanted.pairs,
        frequencies: frequencies.into_iter().map(|f| f as f32).collect(),
        magnitude: magnitude as f32,
        temperature: None,
        longest,
    })
}

/// Refuses divisors of frequencies in a GGUF of an architecture for which llama.cpp does not read them.
fn refuse_foreign_divisors(file: &dyn Tensors, wanted: &Wanted) -> Result<(), ModelError> {
    let config: &dyn Config = file;
    let read = |name: &str| if name == DIVISORS { wanted.divisors } else { wanted.phi };
    let all = [DIVISORS, SHORT_DIVISORS, LONG_DIVISORS];
    match all.into_iter().find(|name| !read(name) && file.has(name)) {
        Some(name) if config.format() == Format::Gguf => Err(config.unsupported(format!(
            "`{name}`, which llama.cpp does not read for this architecture,"
        ))),
        _ => Ok(()),
    }
}

/// How many pairs of a head turn by each position of multimodal RoPE: time, height, width, and a fourth one.
pub(super) const SECTIONS: Key = Key { gguf: "rope.dimension_sections", hf: "" };

/// Whether a pair of a head turns in a text, by the sections of interleaved multimodal RoPE. Time, height and width take
/// every third pair in turn, as far as their sections reach, and have the position of the text. What they leave turns by a
/// fourth position, which is 0 in a text (llama.cpp's `ggml_mrope_cache_init` and `llama_batch_allocr`).
pub(super) fn turns(sections: &[usize], pair: usize) -> bool {
    sections.get(pair % 3).is_some_and(|count| pair < 3 * count)
}

/// Refuses a GGUF file without the base of its RoPE, for architectures of which llama.cpp then computes something else
/// than its default of 10,000 says (measured on OLMo 3 and Qwen3-VL; Qwen3-VL's mixture of experts has the same code there).
/// Converters always write the base.
pub(super) fn needs_base(file: &dyn Tensors) -> Result<(), ModelError> {
    let config: &dyn Config = file;
    match file.format() {
        Format::Gguf => config.float(Key { gguf: "rope.freq_base", hf: "" }).map(drop),
        Format::Hf => Ok(()),
    }
}

fn divide(file: &dyn Tensors, name: &str, frequencies: &mut [f64]) -> Result<(), ModelError> {
    let divisors = finite(file, name, file.read(name, &HOST)?.to_dtype(DType::F32)?)?;
    let divisors: Vec<f32> = divisors.flatten_all()?.to_vec1()?;
    if divisors.len() != frequencies.len() {
        return Err(ModelError::Shape {
            path: file.path().into(),
            tensor: name.into(),
            expected: vec![frequencies.len()],
            found: vec![divisors.len()],
        });
    }
    /// A divisor of at least this means that the pair is not rotated. Converters write 1e30.
    const NEVER: f32 = 1e20;
    for (frequency, divisor) in frequencies.iter_mut().zip(divisors) {
        *frequency = if divisor >= NEVER { 0.0 } else { *frequency / f64::from(divisor) };
    }
    Ok(())
}

/// How frequencies are scaled.
enum Kind {
    Plain,
    Linear(f64),
    Llama3,
    Yarn,
    Long,
    Dynamic,
    Proportional,
}

/// The part of a configuration that describes RoPE.
struct Parameters<'c> {
    config: &'c dyn Config,
    reach: Reach,
    layout: Layout,
    own_yarn: bool,
    phi: bool,
    /// Whether a GGUF has divisors for LongRoPE.
    divides: bool,
    sliding_base: Option<f64>,
    /// The objects of config.json that describe RoPE. If there are two, they agree.
    objects: Vec<&'static str>,
    /// The object that current versions of transformers write.
    newest: &'static str,
}

impl<'c> Parameters<'c> {
    fn find(file: &'c dyn Tensors, wanted: &Wanted) -> Result<Self, ModelError> {
        let config: &dyn Config = file;
        let own = match wanted.reach {
            Reach::Full => "rope_parameters.full_attention",
            Reach::Sliding => "rope_parameters.sliding_attention",
        };
        let (newest, objects) = match (wanted.layout, wanted.reach) {
            (Layout::Once, _) => (NEWER, vec![OLDER, NEWER]),
            (Layout::ByKindOrOlder, Reach::Full) => (own, vec![OLDER, own]),
            (Layout::ByKindOrOlder, Reach::Sliding) | (Layout::ByKind, _) => (own, vec![own]),
        };
        let Wanted { reach, layout, own_yarn, phi, sliding_base, .. } = *wanted;
        let mut parameters = Parameters {
            config,
            reach,
            layout,
            own_yarn,
            phi,
            divides: file.has(SHORT_DIVISORS),
            sliding_base,
            objects: Vec::new(),
            newest,
        };
        parameters.is_object(NEWER)?;
        for object in objects {
            if parameters.is_object(object)? && !parameters.is_empty(object) {
                parameters.objects.push(object);
            }
        }
        if let [older, newer] = parameters.objects[..] {
            parameters.agree(older, newer)?;
        }
        Ok(parameters)
    }

    fn is_object(&self, hf: &str) -> Result<bool, ModelError> {
        let key = Key { gguf: "", hf };
        match self.config.fact(key) {
            None => Ok(false),
            Some(Fact::Other) => Ok(true),
            Some(_) => Err(self.config.bad(key, "must be an object")),
        }
    }

    /// An object without members counts as missing, as in transformers.
    fn is_empty(&self, object: &str) -> bool {
        let members = MEMBERS.into_iter().chain(["rope_type", "type", "rope_theta"]);
        let mut members = members.map(|member| format!("{object}.{member}"));
        let in_file = |hf: &str| self.config.in_file(Key { gguf: "", hf });
        in_file(object) && !members.any(|member| in_file(&member))
    }

    /// Refuses descriptions of transformers 4 and 5 side by side that disagree, because it depends on the reader
    /// which of them counts.
    fn agree(&self, older: &str, newer: &str) -> Result<(), ModelError> {
        let said = |object: &str, member: &str| {
            let hf = format!("{object}.{member}");
            self.config.fact_unasked(Key { gguf: "", hf: &hf })
        };
        let kind = |object| said(object, "rope_type").or_else(|| said(object, "type"));
        let beside = self.config.fact_unasked(Key { gguf: "", hf: "rope_theta" });
        let base = |object| said(object, "rope_theta").or_else(|| beside.clone());
        let pairs = MEMBERS.map(|member| (member, said(older, member), said(newer, member)));
        let pairs = pairs.into_iter().chain([
            ("rope_type", kind(older), kind(newer)),
            ("rope_theta", base(older), base(newer)),
        ]);
        for (member, one, other) in pairs {
            let same = match (&one, &other) {
                (Some(one), Some(other)) => one.same(other),
                (None, None) => true,
                // Gemma 3's class lays one over the other
                _ => self.layout == Layout::ByKindOrOlder,
            };
            if !same {
                let hf = format!("{older}.{member}");
                let message = format!("disagrees with `{}`", self.config.full_name(newer));
                return Err(self.config.bad(Key { gguf: "", hf: &hf }, message));
            }
        }
        Ok(())
    }

    /// A member of the first object that has it. In the other objects it counts as read, too.
    fn at<T>(&self, member: &str, get: impl Fn(Key) -> T) -> T {
        let names = self.objects.iter().map(|object| format!("{object}.{member}"));
        let names: Vec<_> = names.collect();
        let mut has = names.iter().filter(|hf| self.config.has(Key { gguf: "", hf }));
        let first = has.next().cloned();
        let first = first.unwrap_or_else(|| format!("{}.{member}", self.newest));
        has.for_each(drop);
        get(Key { gguf: "", hf: &first })
    }

    fn float(&self, member: &str) -> Result<Option<f64>, ModelError> {
        self.at(member, |key| self.config.optional_float(key))
    }

    /// A number that the scaling needs.
    fn positive(&self, member: &str) -> Result<f64, ModelError> {
        self.at(member, |key| self.config.positive(key))
    }

    fn base(&self) -> Result<f64, ModelError> {
        let gguf = match self.reach {
            Reach::Full => "rope.freq_base",
            Reach::Sliding => "rope.freq_base_swa",
        };
        let beside = match (self.layout, self.reach) {
            (Layout::ByKind, _) => "",
            (_, Reach::Full) => "rope_theta",
            (_, Reach::Sliding) => "rope_local_base_freq",
        };
        let own = self.at("rope_theta", |key| key.hf.to_owned());
        let (own, beside) = (Key { gguf, hf: &own }, Key { gguf: "", hf: beside });
        let base = match (self.config.optional_float(own)?, self.config.optional_float(beside)?) {
            (Some(one), Some(other)) if one != other && self.config.in_file(beside) => {
                let message = format!("says {one}, and `{}` says {other}", beside.hf);
                return Err(self.config.bad(own, message));
            }
            (None, None) if self.layout == Layout::ByKind && self.config.format() == Format::Hf => {
                return Err(self.config.bad(own, "is missing"));
            }
            (None, None) if self.reach == Reach::Sliding && self.sliding_base.is_none() => {
                let full = Key { gguf: "rope.freq_base", hf: "rope_theta" };
                self.config.optional_float(full)?.unwrap_or(DEFAULT_BASE)
            }
            (own, beside) => own.or(beside).or(self.sliding_base).unwrap_or(DEFAULT_BASE),
        };
        if base > 1.0 {
            Ok(base)
        } else {
            Err(self.config.bad(own, "must be above 1"))
        }
    }

    fn kind(&self) -> Result<Kind, ModelError> {
        let kind = match self.config.format() {
            Format::Gguf => return self.gguf_kind(),
            Format::Hf => self.hf_kind()?,
        };
        Ok(match kind.as_str() {
            "default" => Kind::Plain,
            "linear" => Kind::Linear(self.positive("factor")?),
            "llama3" => Kind::Llama3,
            "yarn" if !self.phi => Kind::Yarn,
            "longrope" => Kind::Long,
            "su" if self.phi => Kind::Long,
            "dynamic" => Kind::Dynamic,
            "proportional" => Kind::Proportional,
            other => return Err(self.unknown(other)),
        })
    }

    fn unknown(&self, kind: &str) -> ModelError {
        self.config.unsupported(format!("RoPE scaling `{kind}`"))
    }

    fn hf_kind(&self) -> Result<String, ModelError> {
        let text = |member| self.at(member, |key| self.config.optional_text(key));
        match (text("rope_type")?, text("type")?) {
            (Some(one), Some(other)) if one != other => self.at("rope_type", |key| {
                Err(self.config.bad(key, format!("says `{one}`, and `type` says `{other}`")))
            }),
            (None, None) if self.layout == Layout::ByKind => {
                self.at("rope_type", |key| Err(self.config.bad(key, "is missing")))
            }
            (one, other) => Ok(one.or(other).unwrap_or_else(|| "default".into())),
        }
    }

    /// The scaling of a GGUF file, which llama.cpp applies to full attention only. A factor without a type means
    /// linear scaling.
    fn gguf_kind(&self) -> Result<Kind, ModelError> {
        if self.reach == Reach::Sliding {
            return Ok(Kind::Plain);
        }
        let named = self.config.optional_text(KIND)?;
        if self.phi && named.as_deref().is_none_or(|kind| kind == "longrope") {
            // Phi-3's converter writes no kind, but the original context of every model
            self.config.fact(ORIGINAL);
            return Ok(if self.divides { Kind::Long } else { Kind::Plain });
        }
        if named.as_deref().is_some_and(|kind| kind != "yarn") {
            // llama.cpp's own writer keeps it beside every kind
            self.config.fact(ORIGINAL);
        }
        match named.as_deref() {
            Some("none") => {
                self.config.fact(FACTOR);
                Ok(Kind::Plain)
            }
            Some("yarn") => Ok(Kind::Yarn),
            None if !self.config.has(FACTOR) && !self.config.has(LINEAR_SCALE) => Ok(Kind::Plain),
            None | Some("linear") => Ok(Kind::Linear(self.gguf_factor()?)),
            Some(other) => Err(self.unknown(other)),
        }
    }

    /// The factor of linear scaling, under its current or its first name. llama.cpp reads 0 as 1.
    fn gguf_factor(&self) -> Result<f64, ModelError> {
        let (factor, older) =
            (self.config.optional_float(FACTOR)?, self.config.optional_float(LINEAR_SCALE)?);
        match (factor, older) {
            (Some(factor), Some(older)) if factor != older => {
                let name = self.config.full_name(LINEAR_SCALE.gguf);
                Err(self.config.bad(FACTOR, format!("says {factor}, and `{name}` says {older}")))
            }
            (None, None) => Err(self.config.bad(FACTOR, "is missing")),
            (factor, older) => match factor.or(older) {
                Some(factor) if factor < 0.0 => Err(self.config.bad(FACTOR, "must be positive")),
                Some(factor) if factor > 0.0 => Ok(factor),
                _ => Ok(1.0),
            },
        }
    }

    /// The factor by which YaRN and Llama 3's scaling slow frequencies down.
    fn factor(&self) -> Result<f64, ModelError> {
        match self.config.format() {
            Format::Gguf => self.config.positive(FACTOR),
            Format::Hf => self.positive("factor"),
        }
    }

    /// The context before it was extended. In transformers and llama.cpp a value beside the object overrides one
    /// inside of it, and without either it is the model's context.
    fn original(&self) -> Result<f64, ModelError> {
        let beside = match (self.config.format(), self.layout) {
            (Format::Hf, Layout::ByKind | Layout::ByKindOrOlder) => None,
            _ => self.config.optional_float(ORIGINAL)?,
        };
        let inside = self.float(ORIGINAL.hf)?;
        let key = self.at(ORIGINAL.hf, |key| key.hf.to_owned());
        let key = Key { gguf: ORIGINAL.gguf, hf: &key };
        match (inside, beside) {
            (Some(one), Some(other)) if one != other => {
                let message = format!("says {one}, and `{}` says {other}", ORIGINAL.hf);
                Err(self.config.bad(key, message))
            }
            (inside, beside) => match inside.or(beside) {
                None => self.config.float(CONTEXT),
                Some(original) if original > 0.0 => Ok(original),
                Some(_) => Err(self.config.bad(key, "must be positive")),
            },
        }
    }

    /// How many elements of a head, from its first one on, are rotated.
    fn rotated(&self, wanted: &Wanted, head_dim: usize) -> Result<usize, ModelError> {
        match (self.config.format(), wanted.share) {
            (Format::Gguf, _) => self.counted(wanted, head_dim),
            (Format::Hf, None) => Ok(head_dim),
            (Format::Hf, Some(share)) => {
                let dims = (head_dim as f64 * self.share(share)?) as usize;
                match dims {
                    0 => Err(self.config.unsupported("RoPE that turns nothing")),
                    dims => Ok(dims),
                }
            }
        }
    }

    /// GGUF names the number of rotated elements. If it does not, all are (llama.cpp's `n_rot`). Sliding and full
    /// layers must agree.
    fn counted(&self, wanted: &Wanted, head_dim: usize) -> Result<usize, ModelError> {
        let own = match self.reach {
            Reach::Sliding if self.config.has(SLIDING_DIMS) => SLIDING_DIMS,
            _ => DIMS,
        };
        let Some(count) = self.config.optional_number(own)? else { return Ok(head_dim) };
        // llama.cpp refuses less of a head for most architectures that turn neighbours
        let whole = wanted.pairs == Pairs::Adjacent && wanted.share.is_none() && count != head_dim;
        if whole || count == 0 || count > head_dim || !count.is_multiple_of(2) {
            let message = format!("says that {count} elements of a head of {head_dim} turn");
            Err(self.config.bad(own, message))
        } else {
            Ok(count)
        }
    }

    /// The share of a head that is rotated. It stands in the object, or beside it if the class looks there.
    fn share(&self, usual: f64) -> Result<f64, ModelError> {
        let beside = match self.layout {
            Layout::Once => Key { gguf: "", hf: "partial_rotary_factor" },
            Layout::ByKind | Layout::ByKindOrOlder => Key { gguf: "", hf: "" },
        };
        let inside = self.float("partial_rotary_factor")?;
        let beside = (beside, self.config.optional_float(beside)?);
        match (inside, beside) {
            (Some(one), (key, Some(other))) if one != other => {
                Err(self.config.bad(key, format!("says {other}, and the one of RoPE says {one}")))
            }
            (inside, (key, other)) => match inside.or(other).unwrap_or(usual) {
                share if (0.0..=1.0).contains(&share) => Ok(share),
                _ => Err(self.config.bad(key, "must lie between 0 and 1")),
            },
        }
    }

    /// Llama 3.1: low frequencies are divided by the factor, high ones stay, with a ramp between them.
    fn llama3(&self, plain: Vec<f64>) -> Result<Vec<f64>, ModelError> {
        let factor = self.factor()?;
        let low = self.positive("low_freq_factor")?;
        let high = self.positive("high_freq_factor")?;
        let original = self.original()?;
        let scaled = |f: &f64| {
            let wavelength = 2.0 * PI / f;
            if wavelength < original / high {
                *f
            } else if wavelength > original / low {
                f / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * f / factor + smooth * f
            }
        };
        Ok(plain.iter().map(scaled).collect())
    }

    /// YaRN (arXiv 2309.00071): frequencies that make many turns within the original context stay, those that make
    /// few are divided by the factor, with a ramp between them.
    fn yarn(&self, base: f64, plain: Vec<f64>) -> Result<Vec<f64>, ModelError> {
        let factor = self.factor()?;
        let original = self.original()?;
        // transformers takes 0 for absence; llama.cpp has these numbers for all architectures here
        let turns = |member, usual: f64| -> Result<f64, ModelError> {
            Ok(self.float(member)?.filter(|turns| *turns != 0.0).unwrap_or(usual))
        };
        let (fast, slow) = if self.own_yarn && self.config.format() == Format::Gguf {
            let own = |key, usual| -> Result<f64, ModelError> {
                Ok(self.config.optional_float(key)?.unwrap_or(usual))
            };
            (own(YARN_FAST, 32.0)?, own(YARN_SLOW, 1.0)?)
        } else {
            (turns("beta_fast", 32.0)?, turns("beta_slow", 1.0)?)
        };
        let dims = 2.0 * plain.len() as f64;
        // the pair that turns so often within the original context
        let pair = |turns: f64| dims * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        let (mut low, mut high) = (pair(fast), pair(slow));
        // transformers looks for it where RoPE is described once
        let truncate = match self.layout {
            Layout::Once => self.at("truncate", |key| self.config.optional_flag(key))?,
            Layout::ByKind | Layout::ByKindOrOlder => None,
        };
        if truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let scaled = |(i, f): (usize, &f64)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            f * (1.0 - ramp) + f / factor * ramp
        };
        Ok(plain.iter().enumerate().map(scaled).collect())
    }

    /// The factor of cos and sin in YaRN. GGUF's factor multiplies the usual one, transformers' replaces it.
    fn attention_factor(&self) -> Result<f64, ModelError> {
        let factor = self.factor()?;
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        if self.config.format() == Format::Gguf {
            let all = if self.own_yarn { self.config.optional_float(YARN_LOG)? } else { None };
            return match all.filter(|all| *all != 0.0) {
                Some(all) => self.gguf_magnitude(mscale(1.0) / mscale(all)),
                None => self.gguf_magnitude(mscale(1.0)),
            };
        }
        let given = self.float("attention_factor")?;
        let (one, all) = (self.float("mscale")?, self.float("mscale_all_dim")?);
        Ok(match (given, one, all) {
            (Some(given), _, _) => given,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => mscale(one) / mscale(all),
            _ => mscale(1.0),
        })
    }

    /// Refuses an attention factor other than the usual one: the converter stores it under a key that llama.cpp
    /// ignores, so the two would compute differently.
    fn gguf_magnitude(&self, usual: f64) -> Result<f64, ModelError> {
        let converted = self.config.optional_float(YARN_MAGNITUDE)?;
        if converted.is_some_and(|converted| (converted / usual - 1.0).abs() > 1e-5) {
            let message = format!(
                "is not {usual:.4}: transformers obeys it and llama.cpp does not, and this version \
                 computes only what both do"
            );
            return Err(self.config.bad(YARN_MAGNITUDE, message));
        }
        Ok(usual * self.config.optional_float(MAGNITUDE)?.unwrap_or(1.0))
    }

    /// The factor of cos and sin in LongRoPE. GGUF gives it, and in config.json it follows from how much longer the
    /// context became, unless it is given there, too.
    fn long_magnitude(&self, original: f64) -> Result<f64, ModelError> {
        if self.config.format() == Format::Gguf {
            return Ok(self.config.optional_float(MAGNITUDE)?.unwrap_or(1.0));
        }
        let factor = match self.float("factor")? {
            Some(factor) => factor,
            None => self.config.float(CONTEXT)? / original,
        };
        Ok(match self.float("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        })
    }

    /// LongRoPE (arXiv 2402.13753) within the original context: each frequency has a divisor of its own.
    fn short(&self, file: &dyn Tensors, mut plain: Vec<f64>) -> Result<Vec<f64>, ModelError> {
        if self.config.format() == Format::Gguf {
            divide(file, SHORT_DIVISORS, &mut plain)?;
            return Ok(plain);
        }
        let divisors = self.divisors("short_factor", plain.len())?;
        // these are for contexts that are refused; if they are damaged, the file may be so elsewhere
        self.divisors("long_factor", plain.len())?;
        Ok(plain.iter().zip(divisors).map(|(f, divisor)| f / divisor).collect())
    }

    /// The divisors of so many frequencies that a member of config.json lists.
    fn divisors(&self, member: &str, count: usize) -> Result<Vec<f64>, ModelError> {
        let (divisors, key) = self
            .at(member, |key| Ok::<_, ModelError>((self.config.floats(key)?, key.hf.to_owned())))?;
        if divisors.len() != count || divisors.iter().any(|divisor| *divisor <= 0.0) {
            let message = format!("must be {count} positive numbers");
            return Err(self.config.bad(Key { gguf: "", hf: &key }, message));
        }
        Ok(divisors)
    }
}
