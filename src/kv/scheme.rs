//! The grammar of KV schemes.
//!
//! ```text
//! scheme = side [ "/" side ]        one side: K and V alike; two: K first
//! side   = codec { ":" option }     codec of the catalogue
//! option = "norot"                  no Hadamard rotation before a codec that has one
//!        | "quantile" | "unbiased"  another table or scale, of codecs that have them
//! ```

use super::codec::{self, Codec, CODECS};
use crate::nearest::did_you_mean;
use std::fmt;
use std::str::FromStr;

/// How one of K and V is stored.
#[derive(Clone, Copy)]
pub struct Side {
    /// The storage format.
    pub codec: &'static dyn Codec,
    /// Whether llama.cpp's automatic rotation may apply (it does for ggml's block formats where the
    /// head size allows it; `:norot` forbids it).
    pub may_rotate: bool,
}

/// A KV scheme as it was asked for: a codec for K and one for V, with their options.
///
/// Two schemes are equal if they ask for the same, however they were spelled (`q8_0`, `q8_0/q8_0`).
#[derive(Clone, Copy)]
pub struct Scheme {
    /// How K is stored.
    pub k: Side,
    /// How V is stored.
    pub v: Side,
}

/// Why a text is no scheme. The message names what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemeError {
    /// No codec of that name.
    #[error("unknown codec `{name}`{}; known codecs: {}", did_you_mean(.name, codec_names()), codec_names().collect::<Vec<_>>().join(", "))]
    UnknownCodec {
        /// The name that was written.
        name: String,
    },
    /// No option of that name.
    #[error(
        "unknown option `:{option}` of codec `{codec}`, which knows {}", known_options(.codec)
    )]
    UnknownOption {
        /// The option that was written, without its colon.
        option: String,
        /// The codec that it was written for.
        codec: String,
    },
    /// An option that says nothing about this codec.
    #[error(
        "`:norot` has no meaning for `{codec}`, before which nothing is rotated: write `{codec}`"
    )]
    IdleOption {
        /// The codec that it was written for.
        codec: String,
    },
    /// More than two sides.
    #[error("`{text}` has more than two sides: write K/V, such as q8_0/q4_0")]
    TooManySides {
        /// The whole scheme.
        text: String,
    },
}

fn known_options(codec: &str) -> String {
    let rotated = codec::find(codec).is_some_and(|codec| codec.is_rotated());
    let variants = codec_names().filter_map(|name| name.strip_prefix(codec)?.strip_prefix(':'));
    let options: Vec<_> =
        rotated.then_some("norot").into_iter().chain(variants).map(|o| format!(":{o}")).collect();
    if options.is_empty() {
        "none".into()
    } else {
        options.join(", ")
    }
}

fn codec_names() -> impl Iterator<Item = &'static str> {
    CODECS.iter().map(|c| c.name())
}

impl FromStr for Side {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let mut words = text.split(':');
        let name = words.next().unwrap_or_default();
        let codec =
            codec::find(name).ok_or_else(|| SchemeError::UnknownCodec { name: name.into() })?;
        let mut side = Side { codec, may_rotate: codec.is_rotated() };
        for option in words {
            let name = side.codec.name();
            match (option, codec::find(&format!("{name}:{option}"))) {
                ("norot", _) if side.codec.is_rotated() => side.may_rotate = false,
                ("norot", _) => return Err(SchemeError::IdleOption { codec: name.into() }),
                (_, Some(variant)) => side.codec = variant,
                (_, None) => {
                    return Err(SchemeError::UnknownOption {
                        option: option.into(),
                        codec: name.into(),
                    })
                }
            }
        }
        Ok(side)
    }
}

impl FromStr for Scheme {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, SchemeError> {
        let mut sides = text.trim().split('/');
        let k: Side = sides.next().unwrap_or_default().parse()?;
        let v = sides.next().map_or(Ok(k), str::parse)?;
        match sides.next() {
            None => Ok(Scheme { k, v }),
            Some(_) => Err(SchemeError::TooManySides { text: text.into() }),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.codec.name())?;
        if self.codec.is_rotated() && !self.may_rotate {
            f.write_str(":norot")?;
        }
        Ok(())
    }
}

impl PartialEq for Side {
    fn eq(&self, other: &Self) -> bool {
        self.codec.name() == other.codec.name() && self.may_rotate == other.may_rotate
    }
}
impl Eq for Side {}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.k == self.v {
            write!(f, "{}", self.k)
        } else {
            write!(f, "{}/{}", self.k, self.v)
        }
    }
}

impl PartialEq for Scheme {
    fn eq(&self, other: &Self) -> bool {
        self.k == other.k && self.v == other.v
    }
}
impl Eq for Scheme {}

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
    }

    #[test]
    fn errors_name_the_mend() {
        let error = |text: &str| text.parse::<Scheme>().unwrap_err().to_string();
        assert!(error("q8_O").contains("did you mean `q8_0`"), "{}", error("q8_O"));
        assert!(error("int3").contains("iq4_nl"), "{}", error("int3"));
        assert!(error("q4_0:rot").contains(":norot"));
        assert!(error("f16:norot").contains("write `f16`"));
        assert!(error("turbo4:quantil").contains("knows :quantile, :unbiased"));
        assert!(error("turbo4:quantile:unbiased").contains("`turbo4:quantile`, which knows none"));
        assert!(error("turbo3:norot").contains("write `turbo3`"));
        assert!(error("q8_0/q4_0/q4_0").contains("K/V"));
        assert!(error("").contains("unknown codec ``"));
    }
}
