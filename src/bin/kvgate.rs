//! The program `kvgate`.

fn main() -> std::process::ExitCode {
    kvgate::internals::cli::main(std::env::args_os())
}
