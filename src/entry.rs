//! What the test target of a model's repository calls.
#![deny(missing_docs)]

use crate::gate::harness;
use crate::kv::codec::{self, Codec, RegisterError};
use crate::text::out;
use std::process::ExitCode;

/// Runs the gate as a test target, with the arguments that libtest takes.
///
/// The policy is `thresholds.toml` beside the package's `Cargo.toml`, unless the variable `KVGATE_CONFIG` names another
/// file. This is all that the test target of a model's repository needs, if it is declared with `harness = false`:
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     kvgate::main()
/// }
/// ```
#[must_use = "the exit code is the verdict: return it from `main`"]
pub fn main() -> ExitCode {
    harness::main()
}

/// A gate with codecs of the repository's own, beside those of kvgate.
///
/// ```no_run
/// # use kvgate::Codec;
/// # fn gate(my_codec: impl Codec + 'static) -> std::process::ExitCode {
/// kvgate::Gate::new().codec(my_codec).main()
/// # }
/// ```
#[derive(Default)]
pub struct Gate {
    /// Why some of the codecs could not be added. Running the gate shows them and fails.
    faults: Vec<RegisterError>,
}

impl Gate {
    /// A gate that has kvgate's own codecs only, as [`main()`] runs it.
    pub fn new() -> Self {
        Gate::default()
    }

    /// Adds a codec. Schemes of the policy can name it from then on. The goldens of such schemes hold the
    /// codec's name and version, so that a new version makes them stale.
    pub fn codec(mut self, codec: impl Codec + 'static) -> Self {
        // schemes refer to codecs for the life of the process
        let codec: &'static dyn Codec = Box::leak(Box::new(codec));
        self.faults.extend(codec::register(codec).err());
        self
    }

    /// Runs the gate as a test target, as [`main()`] does.
    #[must_use = "the exit code is the verdict: return it from `main`"]
    pub fn main(self) -> ExitCode {
        self.or_faults(main)
    }

    /// Runs the program `kvgate` with the codecs of this gate, for a binary of the repository. The installed
    /// program does not know these codecs, so it could not measure with them or accept their goldens.
    #[must_use = "the exit code is the verdict: return it from `main`"]
    pub fn program(self) -> ExitCode {
        self.or_faults(|| crate::cli::main(std::env::args_os()))
    }

    /// Runs the gate, unless a codec could not be added.
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
