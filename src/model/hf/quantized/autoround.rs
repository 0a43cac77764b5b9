//! AutoRound: whole numbers in the packing of GPTQ or of AWQ, by the name of the packing.

use super::autoround_members::members_of_autoround;
use super::awq::{self, Awq};
use super::described::Described;
use super::gptq::{group, Gptq};
use super::{Known, Method};
use crate::model::ModelError;

pub(super) const AUTOROUND: Known = Known { names: &["auto-round", "auto_round"], read };

/// Names of packings, and what is added to stored zero points in that of GPTQ. That of AWQ has `None`.
const PACKINGS: [(&str, Option<i32>); 6] = [
    ("auto_round:auto_gptq", Some(1)),
    ("auto_round:gptq", Some(1)),
    ("auto_round", Some(0)),
    ("auto_round:gptqmodel", Some(0)),
    ("auto_round:auto_awq", None),
    ("auto_round:awq", None),
];

fn read(mut described: Described) -> Result<Box<dyn Method>, ModelError> {
    let packing = packing(&mut described)?;
    let more = PACKINGS.iter().find(|(name, _)| *name == packing).and_then(|(_, more)| *more);
    let known: &[usize] = if more.is_some() { &[2, 4, 8] } else { &[awq::BITS] };
    let bits = described.number("bits")?.unwrap_or(4);
    if !known.contains(&bits) {
        let message =
            format!("is {bits}, which this version of kvgate does not read as `{packing}`");
        return Err(described.error("bits", message));
    }
    let group = match described.take("group_size") {
        Some(size) => group(&described, &size)?,
        None => Some(128),
    };
    let symmetric = described.flag("sym")?.unwrap_or(true);
    let plain = layers_of_their_own(&mut described)?;
    members_of_autoround(&mut described)?;
    // the blocks outside of these are plain
    described.pass_over(&["block_name_to_quantize", "to_quant_block_names", "lm_head"]);
    described.close()?;
    let Some(more) = more else {
        return Ok(Box::new(Awq { group, zero_point: Some(!symmetric), plain }));
    };
    Ok(Box::new(Gptq {
        bits,
        group,
        more,
        wraps: false,
        is_ordered: false,
        desc_act: Some(false),
        static_groups: None,
        symmetric: Some(symmetric),
        plain,
    }))
}

/// The name of the packing. If a description has none, transformers takes the first version of GPTQ's. Beside a packing,
/// `backend` is about kernels, which are a matter of who runs the model. Without one, it may be what versions of AutoRound
/// before 0.5 called the packing.
fn packing(described: &mut Described) -> Result<String, ModelError> {
    let packing = described.one_of("packing_format", &PACKINGS.map(|(name, _)| name))?;
    let backend = described.text("backend")?.filter(|backend| backend != "auto");
    match (packing, backend) {
        (Some(packing), _) => Ok(packing),
        (None, None) => Ok("auto_round:gptq".into()),
        (None, Some(backend)) => {
            let message = format!(
                "is missing beside a `backend` of `{backend}`, by which old versions of AutoRound named the packing: \
                 say by `packing_format` whether zero points are stored less one (`auto_round:auto_gptq`) or not \
                 (`auto_round`)"
            );
            Err(described.error("packing_format", message))
        }
    }
}

/// The modules that `extra_config` leaves plain. Modules that it quantizes in another way are refused.
fn layers_of_their_own(described: &mut Described) -> Result<Vec<String>, ModelError> {
    let Some(extra) = described.take("extra_config") else { return Ok(Vec::new()) };
    let Some(modules) = extra.as_object() else {
        return Err(described.error("extra_config", "must be an object"));
    };
    for (module, own) in modules {
        let bits = own.get("bits").and_then(serde_json::Value::as_u64);
        if bits.is_none_or(|bits| bits < 16) {
            let message = format!(
                "quantizes `{module}` in another way ({own}), which this version of kvgate does not carry out"
            );
            return Err(described.error("extra_config", message));
        }
    }
    Ok(modules.keys().cloned().collect())
}
