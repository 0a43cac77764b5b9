//! The options by which engines are told to serve a scheme.
//!
//! Options are given only if the engine then stores what was measured: one format for all K and one for all V, without
//! options that the engine does not have. What ran decides, which is the effective scheme.

use super::row::Row;
use crate::kv::codec::{self, Codec};
use crate::kv::Scheme;
use crate::results::SchemeResult;
use std::ops::RangeInclusive;

/// An engine, and what its users type.
pub(crate) struct Flags {
    pub engine: String,
    pub flags: String,
    /// The same in short, if the engine has short options.
    pub short: Option<String>,
}

/// llama.cpp's types of its cache that are floating-point numbers, which it neither rotates nor needs flash attention
/// for.
pub(crate) const LLAMA_CPP_FLOATS: [&str; 3] = ["f32", "f16", "bf16"];

/// Its other types.
pub(crate) const LLAMA_CPP_BLOCKS: [&str; 6] = ["q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"];

/// The option by which vLLM's users name the type of its cache, up to the name.
pub(crate) const VLLM_TYPE: &str = "--kv-cache-dtype ";

/// K or V, as the effective scheme writes it for all layers.
#[derive(Clone, Copy)]
struct Stored<'a> {
    /// The codec with its options, and without its rotation.
    codec: &'a str,
    /// Whether it is rotated in every layer.
    is_rotated: bool,
}

/// What the users of each engine that has the row's scheme type. There is nothing for a scheme that leaves layers as they
/// are: results do not say which layers read the cache of such a layer, and users must name these, too.
pub(super) fn of(row: &Row) -> Vec<Flags> {
    let of_all_layers =
        |scheme: &SchemeResult| Some(uniform(row.label, stored(&scheme.effective)?));
    row.scheme.and_then(of_all_layers).unwrap_or_default()
}

/// What the users of each engine type that has the scheme with this label, which is stored as `effective`. `readers` are
/// the layers that read the cache of a layer.
pub(crate) fn of_scheme(
    label: &str,
    effective: &str,
    readers: impl Fn(usize) -> Vec<usize>,
) -> Vec<Flags> {
    match stored(effective) {
        Some(sides) => uniform(label, sides),
        None => vllm_skipping(effective, readers).into_iter().collect(),
    }
}

/// What they type for a scheme that is the same in all layers.
fn uniform(label: &str, sides: [Stored; 2]) -> Vec<Flags> {
    llama_cpp(label, sides).into_iter().chain(vllm(sides)).collect()
}

/// Whether vLLM has the codec as the type of its cache.
pub(crate) fn is_vllm(codec: &dyn Codec) -> bool {
    vllm_option(codec.accepted_by()).is_some()
}

/// Whether vLLM can leave layers out of the type of its cache that stores this codec. It documents that for FP8.
pub(crate) fn is_skipped_in_vllm(codec: &str) -> bool {
    ["fp8_e4m3", "fp8_e5m2"].contains(&codec)
}

/// K and V, if each is stored in one way in all layers. Only the size of the rotation may differ, which follows from that
/// of the heads.
fn stored(effective: &str) -> Option<[Stored<'_>; 2]> {
    let ways = effective.split(" + ").map(|way| {
        let way = way.split_once(" in ").map_or(way, |(way, _)| way);
        let (k, v) = way.split_once('/').unwrap_or((way, way));
        [side(k), side(v)]
    });
    ways.map(Some).reduce(|all, way| {
        let (all, way) = (all?, way?);
        let alike = all.iter().zip(&way).all(|(a, b)| a.codec == b.codec);
        let merged =
            [0, 1].map(|i| Stored { is_rotated: all[i].is_rotated && way[i].is_rotated, ..all[i] });
        alike.then_some(merged)
    })?
}

fn side(text: &str) -> Stored<'_> {
    match text.split_once('·') {
        // options behind the rotation stay with the codec, so that no engine has it
        Some((codec, rotation)) if !rotation.contains(':') => Stored { codec, is_rotated: true },
        _ => Stored { codec: text, is_rotated: false },
    }
}

/// llama.cpp rotates before its block formats wherever the size of the heads allows it. A scheme that is not rotated is
/// the same only if it did not forbid the rotation, which its label says.
fn llama_cpp(label: &str, [k, v]: [Stored; 2]) -> Option<Flags> {
    let asked = label.parse::<Scheme>().ok().filter(|scheme| scheme.layers.is_empty());
    let asked = asked.map(|scheme| [scheme.default.k, scheme.default.v]);
    let has = |side: Stored, i: usize| {
        let may_rotate = || {
            let asked = asked.as_ref().map(|sides| sides[i]);
            asked.is_some_and(|asked| asked.may_rotate && asked.codec.name() == side.codec)
        };
        LLAMA_CPP_FLOATS.contains(&side.codec)
            || LLAMA_CPP_BLOCKS.contains(&side.codec) && (side.is_rotated || may_rotate())
    };
    if !(has(k, 0) && has(v, 1)) {
        return None;
    }
    let needs_flash = !LLAMA_CPP_FLOATS.contains(&v.codec);
    let [long, short] =
        [["--flash-attn on ", "--cache-type-k", "--cache-type-v"], ["-fa on ", "-ctk", "-ctv"]]
            .map(|[flash, k_type, v_type]| {
                let flash = if needs_flash { flash } else { "" };
                format!("{flash}{k_type} {} {v_type} {}", k.codec, v.codec)
            });
    Some(Flags { engine: "llama.cpp".into(), flags: long, short: Some(short) })
}

/// vLLM has one type for K and V. The codec says what its users type, and which engines understand the same.
fn vllm([k, v]: [Stored; 2]) -> Option<Flags> {
    if k.codec != v.codec {
        return None;
    }
    let (name, of_checkpoint) = match k.codec.strip_suffix(":checkpoint") {
        Some(name) => (name, true),
        None => (k.codec, false),
    };
    let (engines, flags) = vllm_option(codec::find(name)?.accepted_by())?;
    // only vLLM is known to read a checkpoint's scales as they were measured
    let engine = if of_checkpoint { "vLLM" } else { engines };
    Some(Flags { engine: engine.into(), flags: flags.into(), short: None })
}

/// The engines that understand what vLLM's users type for a codec, and that option.
fn vllm_option(accepted_by: &str) -> Option<(&str, &str)> {
    let (engines, flags) = accepted_by.split_once(": ")?;
    let has = engines.starts_with("vLLM") && flags.starts_with(VLLM_TYPE);
    // what a pull request proposes is not in the engine
    (has && !engines.contains("pull request")).then_some((engines, flags))
}

/// vLLM can leave layers as they are: `fp8_e4m3/fp8_e4m3 in 2-5 + f16/f16 in 0-1`. There each layer has a type of its own,
/// so the layers that read the cache of a skipped one must be named, too.
fn vllm_skipping(effective: &str, readers: impl Fn(usize) -> Vec<usize>) -> Option<Flags> {
    let ways: Vec<_> = effective.split(" + ").map(|way| way.split_once(" in ")).collect();
    let [Some(one), Some(other)] = ways[..] else { return None };
    let is_exact = |way: &str| stored(way).is_some_and(|sides| sides.iter().all(is_half));
    let (coded, skipped) = if is_exact(other.0) { (one, other) } else { (other, one) };
    let sides = stored(coded.0).filter(|[k, _]| is_skipped_in_vllm(k.codec))?;
    let Flags { flags, .. } = vllm(sides).filter(|_| is_exact(skipped.0))?;
    let ranges: Option<Vec<_>> = skipped.1.split(',').map(range).collect();
    let owners: Vec<usize> = ranges?.into_iter().flatten().collect();
    let mut layers: Vec<usize> = owners.iter().flat_map(|&owner| readers(owner)).collect();
    layers.extend(owners);
    layers.sort_unstable();
    let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
    let flags = format!("{flags} --kv-cache-dtype-skip-layers {}", layers.join(" "));
    Some(Flags { engine: "vLLM".into(), flags, short: None })
}

fn is_half(side: &Stored) -> bool {
    side.codec == "f16" || side.codec == "bf16"
}

/// A range of layers, `2-4` or `7`.
fn range(text: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Results;
    use crate::testing::fixture;

    /// What an engine's users type for a scheme with this label that ran as `effective`.
    fn typed(label: &str, effective: &str) -> Vec<String> {
        let mut results: Results = fixture::results();
        let scheme = &mut results.measurements[0].schemes[0];
        (scheme.scheme, scheme.effective) = (label.into(), effective.into());
        let cells = super::super::row::Cells::new(&results);
        let flags = of(&cells.row("gemma-3-270m", label));
        flags.into_iter().map(|one| format!("{}: {}", one.engine, one.flags)).collect()
    }

    #[test]
    fn engines_get_what_was_measured() {
        let q8_q4 = "llama.cpp: --flash-attn on --cache-type-k q8_0 --cache-type-v q4_0";
        for (label, effective, flags) in [
            ("q8_0/q4_0", "q8_0·H256/q4_0·H64", q8_q4),
            ("q8_0/q4_0", "q8_0·H64/q4_0·H64 + q8_0·H256/q4_0·H64", q8_q4),
            ("prod", "q8_0·H64/q4_0·H64", q8_q4),
            // heads that 64 does not divide are rotated nowhere
            ("q8_0/q4_0", "q8_0/q4_0", q8_q4),
            ("q8_0/f16", "q8_0·H64/f16", "llama.cpp: --cache-type-k q8_0 --cache-type-v f16"),
            ("fp8_e4m3", "fp8_e4m3/fp8_e4m3", "vLLM, SGLang: --kv-cache-dtype fp8_e4m3"),
            (
                "fp8_e4m3:checkpoint",
                "fp8_e4m3:checkpoint/fp8_e4m3:checkpoint",
                "vLLM: --kv-cache-dtype fp8_e4m3",
            ),
            ("int8_pth", "int8_pth/int8_pth", "vLLM: --kv-cache-dtype int8_per_token_head"),
        ] {
            assert_eq!(typed(label, effective), [flags], "{label} as {effective}");
        }
    }

    #[test]
    fn vllm_skips_layers_of_fp8() {
        let flags = |effective: &str| -> Vec<String> {
            let all = of_scheme("mixed", effective, |_| Vec::new());
            all.into_iter().map(|one| format!("{}: {}", one.engine, one.flags)).collect()
        };
        let skipping = "vLLM: --kv-cache-dtype fp8_e4m3 --kv-cache-dtype-skip-layers 0 1 7";
        assert_eq!(flags("f16/f16 in 0-1,7 + fp8_e4m3/fp8_e4m3 in 2-6"), [skipping]);
        assert_eq!(flags("fp8_e4m3/fp8_e4m3 in 2-6 + bf16/bf16 in 0-1,7"), [skipping]);
        for other in [
            "f16/f16 in 0 + q8_0·H64/q8_0·H64 in 1",
            "f16/fp8_e4m3 in 0 + fp8_e4m3/fp8_e4m3 in 1",
            "f16/f16 in 0 + fp8_e4m3/fp8_e5m2 in 1",
            "f16/f16 in 0 + fp8_e4m3/fp8_e4m3 in 1 + q8_0·H64/q8_0·H64 in 2",
        ] {
            assert_eq!(flags(other), [""; 0], "{other}");
        }
        // a report does not know which layers read the cache of layer 0
        assert_eq!(typed("mixed", "f16/f16 in 0 + fp8_e4m3/fp8_e4m3 in 1"), [""; 0]);
    }

    #[test]
    fn vllm_skips_the_layers_that_read_a_skipped_cache() {
        let readers = |owner| if owner == 1 { vec![3, 5] } else { Vec::new() };
        let effective = "f16/f16 in 1,4 + fp8_e4m3/fp8_e4m3 in 0,2";
        let flags = of_scheme("fp8_e4m3@1=f16@4=f16", effective, readers).remove(0).flags;
        assert_eq!(flags, "--kv-cache-dtype fp8_e4m3 --kv-cache-dtype-skip-layers 1 3 4 5");
    }

    #[test]
    fn no_engine_gets_what_it_does_not_have() {
        for (label, effective) in [
            ("q4_0:norot", "q4_0/q4_0"),
            ("prod", "q4_0/q4_0"),
            ("q6_0", "q6_0·H64/q6_0·H64"),
            ("q4_0:tail=32", "q4_0·H64:tail=32/q4_0·H64:tail=32"),
            ("q4_0@first2=q8_0", "q8_0·H64/q8_0·H64 in 0-1 + q4_0·H64/q4_0·H64 in 2-5"),
            ("q8_0/q4_0", "q8_0·H64/q4_0·H64 + q8_0·H64/q8_0·H64"),
            ("fp8_e4m3:head", "fp8_e4m3:head/fp8_e4m3:head"),
            ("fp8_e4m3/fp8_e5m2", "fp8_e4m3/fp8_e5m2"),
            ("mxfp4", "mxfp4·H64/mxfp4·H64"),
            ("kvarn4:it8:whole", "kvarn4:it8:whole/kvarn4:it8:whole"),
            ("q4_0", ""),
        ] {
            assert_eq!(typed(label, effective), [""; 0], "{label} as {effective}");
        }
    }
}
