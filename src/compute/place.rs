//! The places where numbers can be: the host, and cards.

/// Where files are read and results are judged: the CPU, whatever device computes.
pub(crate) const HOST: candle_core::Device = candle_core::Device::Cpu;

/// What is known of a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// As its driver calls it.
    pub name: String,
    /// The newest version of CUDA that the driver knows, the driver's own version if it is known, and the version of
    /// cuBLAS, such as `13.0 (580.65.06), cuBLAS 13.1.0`.
    pub driver: String,
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes that were free when it was opened.
    pub free: u64,
    /// How many lanes its kernels can take at once, the baseline included.
    pub lanes: usize,
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDevice {
    /// This build has no kernels.
    #[error(
        "this kvgate was built without CUDA; run `kvgate-cuda`, or build it with `--features cuda`"
    )]
    NotBuilt,
    /// The driver does not answer, or has no card with the ordinal.
    #[error("no CUDA device {ordinal}: {why}")]
    NoCard {
        /// The ordinal that was asked for.
        ordinal: usize,
        /// What the driver says.
        why: String,
    },
    /// The card lacks instructions that the kernels need.
    #[error("{name} has compute capability {}.{}; kvgate needs 8.0 or later", capability.0, capability.1)]
    TooOld {
        /// The card's name.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
}
