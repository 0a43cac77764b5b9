//! The machine that the program runs on.

use std::sync::OnceLock;
use sysinfo::{MemoryRefreshKind, System};

/// Bytes of memory that the program may use: the machine's, or what its control group allows if that is less.
pub(super) fn memory() -> u64 {
    static MEMORY: OnceLock<u64> = OnceLock::new();
    *MEMORY.get_or_init(|| {
        let mut system = System::new();
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let allowed = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
        // 0 means that the system does not say
        match system.total_memory().min(allowed) {
            0 => u64::MAX,
            bytes => bytes,
        }
    })
}

/// The most bytes of memory that this process has held at once. It is known on Linux only and is 0 elsewhere, because
/// the libraries at hand do not read it from other systems.
pub(crate) fn peak_bytes() -> u64 {
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    peak().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_that_of_a_machine() {
        assert!((1 << 28..1 << 50).contains(&memory()), "{}", memory());
    }
}
