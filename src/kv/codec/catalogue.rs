//! The catalogue: the codecs that a scheme may name.
#![deny(missing_docs)]

use super::contract::{Codec, Exactness};
use crate::kv::exact::Tail;
use std::sync::{LazyLock, RwLock};

/// The codecs of this crate, one row a file. Codecs of equal cost are shown in the order of this list.
static FILES: &[&[&dyn Codec]] = &[
    super::float::ALL,
    super::q8_0::ALL,
    super::pth::ALL,
    super::fp8::ALL,
    super::q6_1::ALL,
    super::q6_0::ALL,
    super::q5_1::ALL,
    super::q5_0::ALL,
    super::q4_1::ALL,
    super::q4_0::ALL,
    super::iq4_nl::ALL,
    super::mlx::ALL,
    super::nvfp4::ALL,
    super::mxfp4::ALL,
    super::int4_pth::ALL,
    super::q3_1::ALL,
    super::q3_0::ALL,
    super::q2_1::ALL,
    super::q2_0::ALL,
    super::kvarn::ALL,
    super::kivi::ALL,
    super::tcq::ALL,
    super::turbo::ALL,
];

/// Size of the heads whose cost decides the order in which codecs are shown.
const SHOWN_HEAD: usize = 128;

/// Half precision: what exact tokens are kept in, and what schemes are compared with.
pub(crate) static F16: &dyn Codec = &super::float::F16;

/// What llama.cpp rounds queries to before it multiplies them with K in a block format.
pub(crate) static Q8_0: &dyn Codec = &super::q8_0::Q8_0;

/// What the deliberately bad control lane stores K and V as. No scheme can name it.
pub(crate) static BAD: &dyn Codec = &super::sign::Sign;

/// The codecs of this crate, variants included (`turbo4:quantile`), the most expensive first.
pub fn built_in() -> &'static [&'static dyn Codec] {
    static SORTED: LazyLock<Vec<&'static dyn Codec>> = LazyLock::new(|| {
        let mut codecs = FILES.concat();
        let bits = |codec: &&dyn Codec| codec.bits_per_element(SHOWN_HEAD);
        codecs.sort_by(|a, b| bits(b).total_cmp(&bits(a)));
        codecs
    });
    &SORTED
}

/// Codecs that are not part of this crate.
static FOREIGN: RwLock<Vec<&'static dyn Codec>> = RwLock::new(Vec::new());

/// Why a codec cannot join the catalogue.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Schemes that name the other codec would mean something else.
    #[error("codec `{0}`: another codec has this name; choose one of its own")]
    Taken(String),
    /// No scheme could spell the name.
    #[error("codec `{0}`: a name is made of letters, digits, `_`, `-` and `.`")]
    Name(String),
    /// Goldens could not tell when the codec's values change.
    #[error("codec `{0}` has no version; its method `version` must give one, such as \"1\", of letters, digits, `_`, `-` and `.`")]
    Version(String),
    /// Goldens record one name and one version, which must cover the format of V as well.
    #[error("codec `{0}`: the format of V that it gives must have its name and its version")]
    Sides(String),
    /// What counts as unquantized may be a baseline, and is not asked for the harm that it does.
    #[error("codec `{0}` calls itself {1:?}; a codec from outside must be Quantized, or its harm could pass unseen")]
    Exactness(String, Exactness),
    /// A group without tokens, or a block without elements.
    #[error("codec `{0}` stores groups of 0 tokens, or blocks of 0 elements")]
    Empty(String),
    /// Queries would read keys whose group is not complete yet.
    #[error("codec `{0}` stores {1} tokens together: by its method `exact` a multiple of them must stay exact by default")]
    Group(String, usize),
}

/// Adds a codec from outside to the catalogue of this process.
///
/// # Errors
/// If the name is taken or cannot be spelled, if there is no version, if the codec does not call itself
/// quantized, or if groups, blocks or the format of V are not what the contract of [`Codec`] asks for.
pub fn register(codec: &'static dyn Codec) -> Result<(), RegisterError> {
    let name = codec.name();
    let is_spelled = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || !name.chars().all(is_spelled) {
        return Err(RegisterError::Name(name.into()));
    }
    if all().any(|known| known.name().eq_ignore_ascii_case(name)) {
        return Err(RegisterError::Taken(name.into()));
    }
    let version = codec.version();
    if version.is_empty() || !version.chars().all(is_spelled) {
        return Err(RegisterError::Version(name.into()));
    }
    for side in [codec, codec.for_values().unwrap_or(codec)] {
        let (Tail::Newest(tail) | Tail::Chunk(tail)) = side.exact(None, None).tail;
        let group = side.group();
        if side.name() != name || side.version() != version {
            return Err(RegisterError::Sides(name.into()));
        }
        if side.exactness() != Exactness::Quantized {
            return Err(RegisterError::Exactness(name.into(), side.exactness()));
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

/// The whole catalogue: the codecs of this crate, then those from outside in the order of registration.
pub fn all() -> impl Iterator<Item = &'static dyn Codec> {
    let foreign = FOREIGN.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    built_in().iter().copied().chain(foreign)
}

/// The codec of that name, if the catalogue has it.
pub fn find(name: &str) -> Option<&'static dyn Codec> {
    all().find(|c| c.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_the_order_is_that_of_the_cost() {
        let names: HashSet<&str> = built_in().iter().map(|codec| codec.name()).collect();
        assert_eq!(names.len(), built_in().len());
        let bits = |codec: &&dyn Codec| codec.bits_per_element(SHOWN_HEAD);
        assert!(built_in().is_sorted_by(|a, b| bits(a) >= bits(b)));
    }

    /// Only floats of 16 bits and more are anything else than quantized.
    #[test]
    fn what_is_unquantized_takes_sixteen_bits_or_more() {
        for codec in built_in() {
            let is_wide = codec.bits_per_element(SHOWN_HEAD) >= 16.0;
            assert_eq!(codec.exactness().is_unquantized(), is_wide, "{}", codec.name());
        }
        let lossless = built_in().iter().filter(|codec| !codec.exactness().is_lossy());
        assert_eq!(lossless.map(|codec| codec.name()).collect::<Vec<_>>(), ["f32", "f16"]);
    }
}
