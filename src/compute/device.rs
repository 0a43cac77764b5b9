//! Where a model is computed, and in what arithmetic.

use super::machine;
use candle_core::DType;

/// Where files are read and results are judged: the CPU, whatever device computes.
pub(crate) const HOST: candle_core::Device = candle_core::Device::Cpu;

/// Where a model is computed, and in what arithmetic. The CPU is the only one so far.
#[derive(Debug, Clone)]
pub struct Device {
    at: candle_core::Device,
}

impl Device {
    /// The CPU, on all threads of the program's pool.
    pub fn cpu() -> Self {
        Device { at: HOST }
    }

    /// Where its tensors are.
    pub(crate) fn at(&self) -> &candle_core::Device {
        &self.at
    }

    /// The name in a measurement's conditions.
    pub fn name(&self) -> &'static str {
        "cpu"
    }

    /// The type in which products take weights, as a measurement's conditions name it.
    pub fn weights(&self) -> &'static str {
        DType::F32.as_str()
    }

    /// The type of everything between products, as reports name it.
    pub fn dtype(&self) -> &'static str {
        DType::F32.as_str()
    }

    /// The device in words for people.
    pub fn describe(&self) -> String {
        format!("{} CPU threads", rayon::current_num_threads())
    }

    /// Bytes of memory for weights and hidden states.
    pub fn memory(&self) -> u64 {
        machine::memory()
    }

    /// Rows of a product that a lane's chunks are put together to. The last bits of a product may depend on its
    /// rows, so another number makes other goldens.
    pub fn tile_rows(&self) -> usize {
        1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Conditions with other words would make every golden stale.
    #[test]
    fn conditions_call_the_cpu_what_they_always_did() {
        let cpu = Device::cpu();
        assert_eq!((cpu.name(), cpu.weights(), cpu.dtype()), ("cpu", "f32", "f32"));
        assert!(cpu.describe().ends_with(" CPU threads"));
    }
}
