//! kvgate: the regression gate for quantized KV caches.
//!
//! Each *model × KV scheme* pair of a `thresholds.toml` is a test case: inference with a quantized
//! KV cache, compared with an unquantized one by the KL divergence of next-token distributions,
//! judged by limits, and diffed against an accepted golden. A model repository's test target calls
//! [`main()`]; the program `kvgate` does the same from the command line.
//!
//! The layout is the pipeline: [`policy`] → [`model`] and [`kv`] → [`measure`] → [`verdict`] and
//! [`golden`] → [`report`], tied together by [`gate`].
#![deny(unsafe_code)]

mod cli;
mod compute;
mod entry;
mod files;
mod gate;
#[cfg(feature = "github")]
mod github;
mod golden;
mod hash;
mod init;
mod judge;
mod kv;
mod logs;
mod measure;
mod model;
mod policy;
mod progress;
#[cfg(feature = "git")]
mod proposal;
mod repo;
mod report;
pub mod results;
mod source;
#[cfg(test)]
mod testing;
mod text;

pub use entry::{main, Gate};
pub use kv::codec::{Codec, RegisterError};
pub use kv::exact::{Exact, Tail};

/// What this repository's own tests and benchmarks reach for. It is no part of the crate's interface: anything in
/// it may change in any release.
#[doc(hidden)]
pub mod internals {
    pub mod cli {
        pub use crate::cli::*;
    }
    pub mod gate {
        pub use crate::gate::*;
    }
    #[cfg(feature = "github")]
    pub mod github {
        pub use crate::github::*;
    }
    pub mod golden {
        pub use crate::golden::*;
    }
    pub mod hash {
        pub use crate::hash::*;
    }
    pub mod judge {
        pub use crate::judge::*;
    }
    pub mod kv {
        pub use crate::kv::*;
    }
    pub mod logs {
        pub use crate::logs::*;
    }
    pub mod measure {
        pub use crate::measure::*;
    }
    pub mod model {
        pub use crate::model::*;
    }
    pub mod policy {
        pub use crate::policy::*;
    }
    #[cfg(feature = "git")]
    pub mod proposal {
        pub use crate::proposal::*;
    }
    pub mod repo {
        pub use crate::repo::*;
    }
    pub mod report {
        pub use crate::report::*;
    }
    pub mod results {
        pub use crate::results::*;
    }
    pub mod source {
        pub use crate::source::*;
    }
}
