//! The same program as `cargo kvgate`: cargo passes the subcommand's name as the first argument.

fn main() -> std::process::ExitCode {
    let named = |(i, argument): &(usize, std::ffi::OsString)| *i == 1 && argument == "kvgate";
    let arguments = std::env::args_os().enumerate().filter(|a| !named(a)).map(|(_, a)| a);
    kvgate::internals::cli::main(arguments)
}
