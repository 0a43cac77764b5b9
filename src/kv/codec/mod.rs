//! Codecs: the ways to store a run of K or V numbers. One file each; [`CODECS`] is the registry.
//!
//! Formats and rounding are those of the reference functions of the engine that has the format, ggml's
//! where llama.cpp has it, little endian, so that bytes written here are the bytes that its cache would
//! hold. Where that is not so, the codec's file says it.

mod float;
mod fp8;
mod int4_pth;
mod iq4_nl;
mod kivi;
mod kvarn;
mod mlx;
mod mxfp4;
mod nvfp4;
mod pack;
mod pth;
mod q2_0;
mod q2_1;
mod q3_0;
mod q3_1;
mod q4_0;
mod q4_1;
mod q5_0;
mod q5_1;
mod q6_0;
mod q6_1;
mod q8_0;
mod sign;
mod small_float;
mod tcq;
mod turbo;

use super::exact::{Exact, Tail};
use std::sync::RwLock;

/// Every codec that a scheme may name, options included (`turbo4:quantile`), in the order in which the
/// catalogue lists them.
pub static CODECS: &[&dyn Codec] = &[
    &float::F32,
    &float::F16,
    &float::Bf16,
    &q8_0::Q8_0,
    &kvarn::KVARN8[0],
    &kvarn::KVARN8[1],
    &kvarn::KVARN8[2],
    &kvarn::KVARN8[3],
    &mlx::MLX8,
    &pth::INT8,
    &pth::FP8,
    &fp8::E4m3,
    &fp8::E5m2,
    &q6_1::Q6_1,
    &q6_0::Q6_0,
    &kvarn::KVARN6[0],
    &kvarn::KVARN6[1],
    &kvarn::KVARN6[2],
    &kvarn::KVARN6[3],
    &q5_1::Q5_1,
    &q5_0::Q5_0,
    &kvarn::KVARN5[0],
    &kvarn::KVARN5[1],
    &kvarn::KVARN5[2],
    &kvarn::KVARN5[3],
    &q4_1::Q4_1,
    &kivi::KIVI4,
    &q4_0::Q4_0,
    &iq4_nl::Iq4Nl,
    &mlx::MLX4,
    &nvfp4::Nvfp4,
    &kvarn::KVARN4[0],
    &kvarn::KVARN4[1],
    &kvarn::KVARN4[2],
    &kvarn::KVARN4[3],
    &mxfp4::Mxfp4,
    &int4_pth::Int4PerTokenHead,
    &turbo::TURBO4,
    &turbo::TURBO4_QUANTILE,
    &turbo::TURBO4_UNBIASED,
    &q3_1::Q3_1,
    &q3_0::Q3_0,
    &kvarn::KVARN3[0],
    &kvarn::KVARN3[1],
    &kvarn::KVARN3[2],
    &kvarn::KVARN3[3],
    &tcq::TURBO3_TCQ,
    &turbo::TURBO3,
    &turbo::TURBO3_UNBIASED,
    &q2_1::Q2_1,
    &kivi::KIVI2,
    &q2_0::Q2_0,
    &kvarn::KVARN2[0],
    &kvarn::KVARN2[1],
    &kvarn::KVARN2[2],
    &kvarn::KVARN2[3],
    &tcq::TURBO2_TCQ,
    &turbo::TURBO2,
    &turbo::TURBO2_UNBIASED,
];

/// What the deliberately bad control lane stores K and V as; no scheme can name it.
pub(crate) static BAD: &dyn Codec = &sign::Sign;

/// One way to store a head of K or V: blocks of [`block`](Codec::block) consecutive elements, each of
/// [`group`](Codec::group) tokens, [`block_bytes`](Codec::block_bytes) bytes each. Most formats fix the block
/// and take one token; in some the block is the head, some take many tokens together.
pub trait Codec: Send + Sync {
    /// The name in schemes and reports: ggml's where ggml has the format, else its engine's or a short form.
    fn name(&self) -> &str;

    /// The engines that accept this format, and what their users type; empty if none does.
    fn engines(&self) -> &str;

    /// The version of a format that did not come with this crate, which goes up when its values change:
    /// goldens made with another one are stale. Empty for the crate's own.
    fn version(&self) -> &str {
        ""
    }

    /// Elements in a block of a head of `head_dim`, which must be a multiple of it.
    fn block(&self, head_dim: usize) -> usize;

    /// Bytes in an encoded block.
    fn block_bytes(&self, head_dim: usize) -> usize;

    /// Whether llama.cpp's rotation comes before it, as before all of ggml's block formats
    /// (`ggml_is_quantized`): not before floats, nor where another engine rotates by itself or not at all.
    fn is_rotated(&self) -> bool;

    /// The largest number of a format without scales, which a calibrated scale fits to what is stored.
    fn largest(&self) -> Option<f32> {
        None
    }

    /// Tokens that are encoded together, at multiples of this in the sequence.
    fn group(&self) -> usize {
        1
    }

    /// The format of V, where it is laid out otherwise than K.
    fn for_values(&self) -> Option<&'static dyn Codec> {
        None
    }

    /// What stays exact with the tail and sink that a scheme asks for, or by default. A tail of a format
    /// that takes tokens in groups is a multiple of [`group`](Codec::group), and not zero.
    fn exact(&self, tail: Option<usize>, sink: Option<usize>) -> Exact {
        Exact { sink: sink.unwrap_or(0), tail: Tail::Newest(tail.unwrap_or(0)) }
    }

    /// Encodes one head of a group of tokens, (group, D), into [`encoded_bytes`](Codec::encoded_bytes)
    /// bytes.
    ///
    /// # Panics
    /// If `x` is not whole blocks or `bytes` has another length than they need.
    fn encode(&self, x: &[f32], bytes: &mut [u8]);

    /// Decodes what [`encode`](Codec::encode) wrote, with the same rules on lengths.
    fn decode(&self, bytes: &[u8], x: &mut [f32]);

    /// Replaces `x` by decode(encode(x)): what attention reads from a cache of this codec.
    fn round_trip(&self, x: &mut [f32]) {
        let mut bytes = vec![0; self.encoded_bytes(x.len() / self.group())];
        self.encode(x, &mut bytes);
        self.decode(&bytes, x);
    }

    /// Whether a scale of the encoded head stands at a limit that its format sets to it, and so does less
    /// than it should: such scales and all scales. Nothing to count for most formats.
    fn clamped(&self, _x: &[f32]) -> Option<[u64; 2]> {
        None
    }

    /// Bytes of an encoded head.
    fn encoded_bytes(&self, head_dim: usize) -> usize {
        head_dim / self.block(head_dim) * self.block_bytes(head_dim)
    }

    /// Storage cost, scales included.
    fn bits_per_element(&self, head_dim: usize) -> f64 {
        (8 * self.encoded_bytes(head_dim)) as f64 / (head_dim * self.group()) as f64
    }
}

/// A codec of fixed-size blocks, from which [`Codec`] follows.
pub(crate) trait Block<const N: usize, const BYTES: usize>: Send + Sync {
    const NAME: &'static str;
    const ENGINES: &'static str;
    const ROTATED: bool = N > 1;
    const LARGEST: Option<f32> = None;
    fn encode_block(x: &[f32; N], bytes: &mut [u8; BYTES]);
    fn decode_block(bytes: &[u8; BYTES], x: &mut [f32; N]);
}

/// Implements [`Codec`] for a [`Block`]: `block_codec!(Q8_0, 32, 34)`.
macro_rules! block_codec {
    ($ty:ty, $n:literal, $bytes:literal) => {
        impl crate::kv::codec::Codec for $ty {
            fn name(&self) -> &str {
                <Self as crate::kv::codec::Block<$n, $bytes>>::NAME
            }
            fn engines(&self) -> &str {
                <Self as crate::kv::codec::Block<$n, $bytes>>::ENGINES
            }
            fn block(&self, _: usize) -> usize {
                $n
            }
            fn block_bytes(&self, _: usize) -> usize {
                $bytes
            }
            fn is_rotated(&self) -> bool {
                <Self as crate::kv::codec::Block<$n, $bytes>>::ROTATED
            }
            fn largest(&self) -> Option<f32> {
                <Self as crate::kv::codec::Block<$n, $bytes>>::LARGEST
            }
            fn encode(&self, x: &[f32], bytes: &mut [u8]) {
                let (x, rest) = x.as_chunks::<$n>();
                let (bytes, more) = bytes.as_chunks_mut::<$bytes>();
                assert!(rest.is_empty() && more.is_empty() && x.len() == bytes.len());
                for (x, bytes) in x.iter().zip(bytes) {
                    <Self as crate::kv::codec::Block<$n, $bytes>>::encode_block(x, bytes);
                }
            }
            fn decode(&self, bytes: &[u8], x: &mut [f32]) {
                let (bytes, rest) = bytes.as_chunks::<$bytes>();
                let (x, more) = x.as_chunks_mut::<$n>();
                assert!(rest.is_empty() && more.is_empty() && x.len() == bytes.len());
                for (bytes, x) in bytes.iter().zip(x) {
                    <Self as crate::kv::codec::Block<$n, $bytes>>::decode_block(bytes, x);
                }
            }
            fn round_trip(&self, x: &mut [f32]) {
                crate::compute::simd::vectorized!(fn blocks['a](x: &'a mut [[f32; $n]]) {
                    let mut bytes = [0u8; $bytes];
                    for x in x {
                        <$ty as crate::kv::codec::Block<$n, $bytes>>::encode_block(x, &mut bytes);
                        <$ty as crate::kv::codec::Block<$n, $bytes>>::decode_block(&bytes, x);
                    }
                });
                let (x, rest) = x.as_chunks_mut::<$n>();
                assert!(rest.is_empty());
                blocks(x)
            }
        }
    };
}
pub(crate) use block_codec;

/// Codecs that did not come with this crate.
static FOREIGN: RwLock<Vec<&'static dyn Codec>> = RwLock::new(Vec::new());

/// Why a codec cannot join the catalogue.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Schemes would mean something else.
    #[error("codec `{0}`: another codec has this name; choose one of its own")]
    Taken(String),
    /// Schemes could not spell it.
    #[error("codec `{0}`: a name is made of letters, digits, `_`, `-` and `.`")]
    Name(String),
    /// Goldens could not tell when its values change.
    #[error("codec `{0}` has no version; its method `version` must give one, such as \"1\", of letters, digits, `_`, `-` and `.`")]
    Version(String),
    /// A format of V that goldens would not know.
    #[error("codec `{0}`: the format of V that it gives must have its name and its version")]
    Sides(String),
    /// Groups of no tokens, or blocks of no elements.
    #[error("codec `{0}` stores groups of 0 tokens, or blocks of 0 elements")]
    Empty(String),
    /// Queries would read keys whose group is not complete.
    #[error("codec `{0}` stores {1} tokens together: by its method `exact` a multiple of them must stay exact by default")]
    Group(String, usize),
}

/// Adds a codec from outside to the catalogue of this process.
///
/// # Errors
/// A name that is taken or cannot be spelled, no version.
pub fn register(codec: &'static dyn Codec) -> Result<(), RegisterError> {
    let name = codec.name();
    let spelled = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || !name.chars().all(spelled) {
        return Err(RegisterError::Name(name.into()));
    }
    if all().any(|known| known.name().eq_ignore_ascii_case(name)) {
        return Err(RegisterError::Taken(name.into()));
    }
    let version = codec.version();
    if version.is_empty() || !version.chars().all(spelled) {
        return Err(RegisterError::Version(name.into()));
    }
    for side in [codec, codec.for_values().unwrap_or(codec)] {
        let (Tail::Newest(tail) | Tail::Chunk(tail)) = side.exact(None, None).tail;
        let group = side.group();
        if side.name() != name || side.version() != version {
            return Err(RegisterError::Sides(name.into()));
        }
        if group == 0 || side.block(64) == 0 {
            return Err(RegisterError::Empty(name.into()));
        }
        if group > 1 && (tail == 0 || !tail.is_multiple_of(group)) {
            return Err(RegisterError::Group(name.into(), group));
        }
    }
    FOREIGN.write().unwrap_or_else(|poisoned| poisoned.into_inner()).push(codec);
    Ok(())
}

/// The catalogue: [`CODECS`], and those from outside.
pub fn all() -> impl Iterator<Item = &'static dyn Codec> {
    let foreign = FOREIGN.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    CODECS.iter().copied().chain(foreign)
}

/// The codec of that name, if the catalogue has it.
pub fn find(name: &str) -> Option<&'static dyn Codec> {
    all().find(|c| c.name() == name)
}

/// The signed element with the largest magnitude; the first one wins on ties, as in ggml.
#[inline(always)]
fn extreme(x: &[f32; 32]) -> f32 {
    x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m })
}

/// The largest magnitude.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |m, v| m.max(v.abs()))
}

/// Smallest and largest element.
#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::MAX, f32::MIN), |(lo, hi), &v| {
        (if v < lo { v } else { lo }, if v > hi { v } else { hi })
    })
}

/// The scale that fits `x` best if it reads as `levels` times the scale, errors weighted by x² as ggml
/// does; none if all levels or all of `x` are zero.
#[inline(always)]
fn refitted(x: &[f32; 32], levels: &[f32; 32]) -> Option<f32> {
    let (mut num, mut den) = (0.0f32, 0.0f32);
    for (&v, &l) in x.iter().zip(levels) {
        let w = v * v;
        num += w * l * v;
        den += w * l * l;
    }
    (den > 0.0).then(|| num / den)
}

/// `1/d`, or 0 for a block without scale. Taken from the f32 scale before it is rounded to half.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d != 0.0 {
        1.0 / d
    } else {
        0.0
    }
}

#[inline(always)]
fn put_half(bytes: &mut [u8], at: usize, v: f32) {
    bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(v).to_le_bytes());
}

#[inline(always)]
fn get_half(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
