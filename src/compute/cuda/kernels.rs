//! The compiled kernels, one module for each file with kernels.

use super::launch::Module;

/// The module that the build has made of `NAME.cu`.
macro_rules! module {
    ($name:literal) => {
        Module {
            name: $name,
            image: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin")),
        }
    };
}

pub(super) static ATTENTION: Module = module!("attention");
pub(super) static BIAS: Module = module!("bias");
pub(super) static BLOCKS: Module = module!("blocks");
pub(super) static CODECS: Module = module!("codecs");
pub(super) static DELTA_RULE: Module = module!("delta_rule");
pub(super) static DIVERGENCE: Module = module!("divergence");
pub(super) static EXPERTS: Module = module!("experts");
pub(super) static FINITE: Module = module!("finite");
pub(super) static GATE: Module = module!("gate");
pub(super) static GATE_SPLIT: Module = module!("gate_split");
pub(super) static HEADS: Module = module!("heads");
pub(super) static NORM: Module = module!("norm");
pub(super) static NORM_SPLIT: Module = module!("norm_split");
pub(super) static PAIRS: Module = module!("pairs");
pub(super) static RESIDUAL: Module = module!("residual");
pub(super) static SPLIT: Module = module!("split");

/// The names of the codecs that have a kernel in [`CODECS`].
pub(super) const CODECS_WITH_KERNEL: &[&str] = include!(concat!(env!("OUT_DIR"), "/codecs.rs"));
