//! The gate of this repository: the cases of `thresholds.toml` as tests.

fn main() -> std::process::ExitCode {
    kvgate::main()
}
