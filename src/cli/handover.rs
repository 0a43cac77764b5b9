//! Hands a command over to `kvgate-cuda`, the program for CUDA cards.
//!
//! A program that is built for CUDA does not start where the card's driver is missing, because it is linked with the
//! driver's library. Releases therefore hold two programs in one folder. `kvgate` runs everywhere. If a command
//! has to do with devices, it looks for `kvgate-cuda` beside itself, asks that program for its version, which shows whether
//! it starts on this machine, and lets it run the command.

use crate::compute::device::Choice;
use crate::compute::Device;
use crate::gate::device::Asked;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

/// The commands that compute a model, or say what computing it takes.
const COMPUTING: [&str; 7] = ["calibrate", "check", "explain", "init", "measure", "plan", "run"];

/// Runs the command with `kvgate-cuda` if it may run on a card and that program can run here. Gives its exit code, or
/// nothing if this program has to run the command itself. A program of another version would measure otherwise, so that is
/// an error.
pub(super) fn to_cards_program(arguments: &[OsString]) -> Option<ExitCode> {
    let command = arguments.get(1)?.to_str()?;
    if !COMPUTING.contains(&command) || Device::knows_cards() || asks_for_cpu(arguments) {
        return None;
    }
    let program = beside_this_one()?;
    match version(&program) {
        Ok(theirs) if theirs == own_version() => Some(run(&program, &arguments[1..])),
        Ok(theirs) => {
            crate::text::out::eprint(format!(
                "error: {} is of another version ({theirs}) than this program ({}): put the two programs of one \
                 release into one folder, or use --device cpu",
                program.display(),
                own_version()
            ));
            Some(ExitCode::from(super::shared::NOT_MEASURED))
        }
        Err(why) => {
            crate::text::out::eprint(format!(
                "note: {} does not start on this machine, so no card is used: {why}",
                program.display()
            ));
            None
        }
    }
}

/// How long the other program may take to say its version. It opens the driver's library, which may be slow at first.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command prints. One that takes too long is stopped.
fn answer(command: &mut Command) -> io::Result<Output> {
    let began = Instant::now();
    let pipes = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn()?;
    while child.try_wait()?.is_none() {
        if began.elapsed() > PATIENCE {
            child.kill()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not say its version"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output()
}

/// What this program prints as its version.
fn own_version() -> String {
    format!("kvgate {}", env!("CARGO_PKG_VERSION"))
}

/// What the other program prints as its version, or why it does not start.
fn version(program: &Path) -> Result<String, String> {
    let output = answer(Command::new(program).arg("--version"));
    let output = output.map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = text(&output.stderr);
    Err(said.lines().next().map_or_else(|| output.status.to_string(), str::to_owned))
}

/// Whether the options or the environment ask for the CPU. What cannot be understood is left to the command to refuse.
fn asks_for_cpu(arguments: &[OsString]) -> bool {
    let mut options = arguments.iter().filter_map(|argument| argument.to_str());
    let given = options.by_ref().find_map(|option| match option.strip_prefix("--device") {
        Some("") => Some(None),
        Some(rest) => rest.strip_prefix('=').map(Some),
        None => None,
    });
    match given {
        Some(value) => value.or_else(|| options.next()).is_some_and(|value| value == "cpu"),
        None => {
            let asked = Asked::default().or_environment();
            asked.is_ok_and(|asked| asked.device == Some(Choice::Cpu))
        }
    }
}

fn beside_this_one() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let name = format!("kvgate-cuda{}", std::env::consts::EXE_SUFFIX);
    let program = own.with_file_name(name);
    (own.file_stem() != Some(OsStr::new("kvgate-cuda")) && program.is_file()).then_some(program)
}

/// Lets the other program take this one's place.
#[cfg(unix)]
fn run(program: &Path, arguments: &[OsString]) -> ExitCode {
    use std::os::unix::process::CommandExt;
    let error = Command::new(program).args(arguments).exec();
    failed(program, &error)
}

/// Runs the other program and takes its exit code.
#[cfg(not(unix))]
fn run(program: &Path, arguments: &[OsString]) -> ExitCode {
    match Command::new(program).args(arguments).status() {
        Ok(status) => status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)),
        Err(error) => failed(program, &error),
    }
}

fn failed(program: &Path, error: &std::io::Error) -> ExitCode {
    crate::text::out::eprint(format!("error: cannot run {}: {error}", program.display()));
    ExitCode::from(super::shared::NOT_MEASURED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_asked_for_by_the_option() {
        let asks = |arguments: &[&str]| {
            asks_for_cpu(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
        };
        assert!(asks(&["kvgate", "run", "--device", "cpu"]));
        assert!(asks(&["kvgate", "run", "--device=cpu", "smollm2"]));
        for other in [&["--device", "auto"][..], &["--device=cuda:0"], &["--device"]] {
            assert!(!asks(&[&["kvgate", "run"], other].concat()), "{other:?}");
        }
    }
}
