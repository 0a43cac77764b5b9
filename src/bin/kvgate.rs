//! The program `kvgate`.

fn main() -> std::process::ExitCode {
    kvgate::cli::main(std::env::args_os())
}
