//! This repository's own gate: the cases of `thresholds.toml` as tests.

fn main() -> std::process::ExitCode {
    kvgate::main()
}
