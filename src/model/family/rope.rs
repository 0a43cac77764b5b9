//! Frequencies of rotary position embeddings, by the scaling that a configuration asks for.
//!
//! Formulas are those of transformers' `modeling_rope_utils` and of llama.cpp, which agree. θ^(-2i/d) is
//! computed in f64 and rounded once.

use super::Reach;
use crate::model::config::{Config, Fact, Format, Key};
use crate::model::spec::{Pairs, Rope};
use crate::model::tensors::{finite, Tensors};
use crate::model::ModelError;
use candle_core::DType;
use std::f64::consts::PI;

/// θ where a configuration names none.
const DEFAULT_BASE: f64 = 10_000.0;

/// Divisors of frequencies that GGUF files keep as a tensor (Llama 3, Gemma 4).
pub(in crate::model) const DIVISORS: &str = "rope_freqs.weight";

/// How the first GGUF files spelled linear scaling.
const LINEAR_SCALE: Key = Key { gguf: "rope.scale_linear", hf: "" };

/// What a family knows of its RoPE beside the configuration.
pub(super) struct Wanted {
    pub reach: Reach,
    pub pairs: Pairs,
    /// Share of a head that turns where the configuration names none.
    pub share: f64,
}

/// Pairs of halves over the whole head in every layer: the usual case.
pub(super) const USUAL: Wanted = Wanted { reach: Reach::Full, pairs: Pairs::Halves, share: 1.0 };

/// RoPE over heads of `head_dim` elements.
pub(super) fn rope(
    file: &dyn Tensors,
    wanted: &Wanted,
    head_dim: usize,
) -> Result<Rope, ModelError> {
    let parameters = Parameters::of(file, wanted.reach)?;
    let base = parameters.base()?;
    let rotated = parameters.rotated(head_dim, wanted.share)?;
    let plain = |dims: usize| -> Vec<f64> {
        (0..rotated / 2).map(|i| base.powf(-2.0 * i as f64 / dims as f64)).collect()
    };
    let mut magnitude = 1.0;
    let mut frequencies = match parameters.kind()?.as_str() {
        "default" | "none" => plain(rotated),
        "linear" => {
            let factor = parameters.factor()?;
            plain(rotated).iter().map(|f| f / factor).collect()
        }
        "llama3" => parameters.llama3(plain(rotated))?,
        "yarn" => {
            magnitude = parameters.attention_factor()?;
            parameters.yarn(base, plain(rotated))?
        }
        // the whole head's frequencies, of which only the first ones turn (Gemma 4)
        "proportional" => {
            let factor = parameters.float("", "factor")?.unwrap_or(1.0);
            let mut all: Vec<_> = plain(head_dim).iter().map(|f| f / factor).collect();
            all.resize(head_dim / 2, 0.0);
            all
        }
        other => return Err(parameters.config.unsupported(format!("RoPE scaling `{other}`"))),
    };
    if wanted.reach == Reach::Full && file.has(DIVISORS) {
        divide(file, &mut frequencies)?;
    }
    Ok(Rope {
        base,
        pairs: wanted.pairs,
        frequencies: frequencies.into_iter().map(|f| f as f32).collect(),
        magnitude: magnitude as f32,
    })
}

fn divide(file: &dyn Tensors, frequencies: &mut [f64]) -> Result<(), ModelError> {
    let divisors = finite(file, DIVISORS, file.read(DIVISORS)?.to_dtype(DType::F32)?)?;
    let divisors: Vec<f32> = divisors.flatten_all()?.to_vec1()?;
    if divisors.len() != frequencies.len() {
        return Err(ModelError::Shape {
            path: file.path().into(),
            tensor: DIVISORS.into(),
            expected: vec![frequencies.len()],
            found: vec![divisors.len()],
        });
    }
    /// A divisor from here on means that the pair does not turn; converters write 1e30.
    const NEVER: f32 = 1e20;
    for (frequency, divisor) in frequencies.iter_mut().zip(divisors) {
        *frequency = if divisor >= NEVER { 0.0 } else { *frequency / f64::from(divisor) };
    }
    Ok(())
}

/// RoPE's corner of a configuration. transformers 5 writes `rope_parameters`, by kind of layer where
/// kinds differ; older files have `rope_theta` and `rope_scaling`, which wins where both are.
struct Parameters<'c> {
    config: &'c dyn Config,
    /// The object of config.json; empty where there is none for this reach.
    object: &'static str,
    /// Where θ may stand, in this order.
    bases: [Key<'static>; 3],
    /// Whether GGUF's `rope.scaling` applies, which it does to full attention only.
    scaled: bool,
}

impl<'c> Parameters<'c> {
    fn of(config: &'c dyn Config, reach: Reach) -> Result<Self, ModelError> {
        let object = |hf| match config.fact(Key { gguf: "", hf }) {
            None => Ok(false),
            Some(Fact::Other) => Ok(true),
            Some(_) => Err(config.bad(Key { gguf: "", hf }, "must be an object")),
        };
        let (own, own_base, top_base) = match reach {
            Reach::Full => (
                "rope_parameters.full_attention",
                "rope_parameters.full_attention.rope_theta",
                "rope_theta",
            ),
            Reach::Sliding => (
                "rope_parameters.sliding_attention",
                "rope_parameters.sliding_attention.rope_theta",
                "rope_local_base_freq",
            ),
        };
        let scaled = reach == Reach::Full;
        let any = object("rope_parameters")?;
        let object = match (object(own)?, scaled) {
            (_, true) if object("rope_scaling")? => "rope_scaling",
            (true, _) => own,
            (false, true) if any => "rope_parameters",
            _ => "",
        };
        let shared_base = if scaled { "rope_parameters.rope_theta" } else { "" };
        let gguf = if scaled { "rope.freq_base" } else { "rope.freq_base_swa" };
        let bases = [
            Key { gguf, hf: own_base },
            Key { gguf: "", hf: shared_base },
            Key { gguf: "", hf: top_base },
        ];
        Ok(Parameters { config, object, bases, scaled })
    }

    /// A key of this corner, by its name in each format.
    fn at<T>(&self, gguf: &str, hf: &str, get: impl FnOnce(Key) -> T) -> T {
        let hf = match (self.object, hf) {
            ("", _) | (_, "") => String::new(),
            (object, hf) => format!("{object}.{hf}"),
        };
        get(Key { gguf: if self.scaled { gguf } else { "" }, hf: &hf })
    }

    fn float(&self, gguf: &str, hf: &str) -> Result<Option<f64>, ModelError> {
        self.at(gguf, hf, |key| self.config.optional_float(key))
    }

    /// A number that scaling cannot do without.
    fn positive(&self, gguf: &str, hf: &str) -> Result<f64, ModelError> {
        self.at(gguf, hf, |key| match self.config.float(key)? {
            value if value > 0.0 => Ok(value),
            _ => Err(self.config.bad(key, "must be positive")),
        })
    }

    fn base(&self) -> Result<f64, ModelError> {
        for key in self.bases {
            match self.config.optional_float(key)? {
                None => {}
                Some(base) if base > 1.0 => return Ok(base),
                Some(_) => return Err(self.config.bad(key, "must be above 1")),
            }
        }
        Ok(DEFAULT_BASE)
    }

    fn kind(&self) -> Result<String, ModelError> {
        let text = |gguf, hf| self.at(gguf, hf, |key| self.config.optional_text(key));
        if let Some(kind) = text("rope.scaling.type", "rope_type")?.or(text("", "type")?) {
            return Ok(kind);
        }
        if self.config.has(LINEAR_SCALE) {
            return Err(self.config.bad(LINEAR_SCALE, "is not supported: convert the file again"));
        }
        // early GGUF files name a linear factor and no type
        let factor = self.at("rope.scaling.factor", "", |key| self.config.has(key));
        Ok(if factor { "linear" } else { "default" }.into())
    }

    fn factor(&self) -> Result<f64, ModelError> {
        self.positive("rope.scaling.factor", "factor")
    }

    /// Elements of a head that turn.
    fn rotated(&self, head_dim: usize, share: f64) -> Result<usize, ModelError> {
        let count = if self.scaled { "rope.dimension_count" } else { "rope.dimension_count_swa" };
        if let Some(count) = self.config.optional_number(Key { gguf: count, hf: "" })? {
            return Ok(count.min(head_dim));
        }
        let old = Key { gguf: "", hf: "partial_rotary_factor" };
        let share = match self.float("", "partial_rotary_factor")? {
            Some(share) => share,
            None => self.config.optional_float(old)?.unwrap_or(share),
        };
        match (0.0..=1.0).contains(&share) {
            true => Ok((head_dim as f64 * share) as usize / 2 * 2),
            false => Err(self.config.bad(old, "must lie between 0 and 1")),
        }
    }

    /// Llama 3.1: long waves are slowed by the factor, short ones are not, between them a ramp.
    fn llama3(&self, plain: Vec<f64>) -> Result<Vec<f64>, ModelError> {
        let factor = self.factor()?;
        let low = self.positive("", "low_freq_factor")?;
        let high = self.positive("", "high_freq_factor")?;
        let original = self.positive("", "original_max_position_embeddings")?;
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

    /// YaRN (arXiv 2309.00071): waves that turn often within the original context stay, those that
    /// turn seldom are slowed by the factor, between them a ramp.
    fn yarn(&self, base: f64, plain: Vec<f64>) -> Result<Vec<f64>, ModelError> {
        let factor = self.factor()?;
        let original =
            self.float("rope.scaling.original_context_length", "original_max_position_embeddings")?;
        let original = match original {
            Some(original) if original > 0.0 => original,
            _ => self.config.float(super::CONTEXT)?,
        };
        let fast = self.float("rope.scaling.yarn_beta_fast", "beta_fast")?.unwrap_or(32.0);
        let slow = self.float("rope.scaling.yarn_beta_slow", "beta_slow")?.unwrap_or(1.0);
        let dims = 2.0 * plain.len() as f64;
        // the pair that turns so often within the original context
        let pair = |turns: f64| dims * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        let (mut low, mut high) = (pair(fast), pair(slow));
        let truncate = self.at("", "truncate", |key| self.config.optional_flag(key))?;
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

    /// What YaRN multiplies cos and sin with. GGUF's factor stands beside the usual one, transformers'
    /// instead of it.
    fn attention_factor(&self) -> Result<f64, ModelError> {
        let factor = self.factor()?;
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let given = self.float("rope.scaling.attn_factor", "attention_factor")?;
        if self.config.format() == Format::Gguf {
            return Ok(mscale(1.0) * given.unwrap_or(1.0));
        }
        let (one, all) = (self.float("", "mscale")?, self.float("", "mscale_all_dim")?);
        Ok(match (given, one, all) {
            (Some(given), _, _) => given,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => mscale(one) / mscale(all),
            _ => mscale(1.0),
        })
    }
}
