//! Tests of what a model repository builds of this crate: its test target, and a program with a codec of its own.
//!
//! This executable has a main function of its own because it plays three parts. With `KVGATE_TEST_AS_GATE` set it
//! is the test target of the repository that it runs in; with `KVGATE_TEST_AS_EXAMPLE` set it is
//! `examples/own_codec.rs`; otherwise it runs the tests, which start it again in one of these parts.

#[path = "../../examples/own_codec.rs"]
mod example;
mod own_codec;
mod support;
mod target;

use libtest_mimic::Arguments;
use std::process::ExitCode;

/// Makes tests of functions; their names are those that Rust's own harness would show.
#[macro_export]
macro_rules! trials {
    ($module:ident: $($test:ident),* $(,)?) => {
        vec![$(Trial::test(concat!(stringify!($module), "::", stringify!($test)), || {
            $test();
            Ok(())
        })),*]
    };
}

fn main() -> ExitCode {
    let is_set = |part| std::env::var_os(part).is_some();
    if is_set(target::AS_GATE) {
        return kvgate::main();
    }
    if is_set(own_codec::AS_EXAMPLE) {
        return example::main();
    }
    let mut tests = target::tests();
    tests.extend(own_codec::tests());
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}
