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

    /// The place of its tensors.
    pub(crate) fn at(&self) -> &candle_core::Device {
        &self.at
    }

    /// The name in a measurement's conditions.
    pub fn name(&self) -> &'static str {
        "cpu"
    }

    /// The number type of weights in products, as a measurement's conditions name it.
    pub fn weights(&self) -> &'static str {
        DType::F32.as_str()
    }

    /// The number type of everything between products, as reports name it.
    pub fn dtype(&self) -> &'static str {
        DType::F32.as_str()
    }

    /// What reports say of the device.
    pub fn describe(&self) -> String {
        format!("{} CPU threads", rayon::current_num_threads())
    }

    /// Bytes of memory for weights and hidden states.
    pub fn memory(&self) -> u64 {
        machine::memory()
    }

    /// How many rows of a lane are put into one product: as many chunks travel together as fit. The last bits of a
    /// product may depend on how many rows it has, so another number here would change goldens.
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
