//! What a model repository calls.

use crate::gate::harness;
use crate::kv::codec::{self, Codec, RegisterError};
use crate::text::out;
use std::process::ExitCode;

/// Runs the gate of `thresholds.toml` beside the package's `Cargo.toml` (`KVGATE_CONFIG` names
/// another) with the arguments of the command line, as libtest would.
///
/// All that a model repository's test target needs, with `harness = false`:
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     kvgate::main()
/// }
/// ```
#[must_use = "return it from main: it is the verdict"]
pub fn main() -> ExitCode {
    harness::main()
}

/// The gate of a repository that has codecs of its own.
///
/// ```no_run
/// # use kvgate::Codec;
/// # fn gate(my_codec: impl Codec + 'static) -> std::process::ExitCode {
/// kvgate::Gate::new().codec(my_codec).main()
/// # }
/// ```
#[derive(Default)]
pub struct Gate {
    /// Why a codec could not be added.
    faults: Vec<RegisterError>,
}

impl Gate {
    /// The gate as [`main()`] runs it.
    pub fn new() -> Self {
        Gate::default()
    }

    /// Adds a codec: schemes may name it, and its name and version are conditions of their goldens.
    pub fn codec(mut self, codec: impl Codec + 'static) -> Self {
        // schemes refer to codecs for the life of the process
        let codec: &'static dyn Codec = Box::leak(Box::new(codec));
        self.faults.extend(codec::register(codec).err());
        self
    }

    /// The test target: as [`main()`].
    #[must_use = "return it from main: it is the verdict"]
    pub fn main(self) -> ExitCode {
        self.or_faults(main)
    }

    /// The command line of the program `kvgate`, for a binary of the repository: the program alone does
    /// not know its codecs, and could not accept their goldens.
    #[must_use = "return it from main: it is the verdict"]
    pub fn program(self) -> ExitCode {
        self.or_faults(|| crate::cli::main(std::env::args_os()))
    }

    fn or_faults(self, run: impl FnOnce() -> ExitCode) -> ExitCode {
        if self.faults.is_empty() {
            return run();
        }
        for fault in &self.faults {
            out::eprint(format!("error: {fault}"));
        }
        ExitCode::from(harness::FAILED)
    }
}
