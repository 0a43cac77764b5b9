//! The one variable of the environment that tests of this executable set.

use std::sync::Once;

/// Keeps clients in this process from asking a proxy for this machine.
///
/// Rust locks the environment while it is changed, but C code, such as libgit2, reads it without that lock. A test
/// calls this before it makes a client or calls libgit2, so that the change is over before anybody reads.
pub fn settle() {
    static SETTLED: Once = Once::new();
    SETTLED.call_once(|| std::env::set_var("NO_PROXY", "127.0.0.1"));
}
