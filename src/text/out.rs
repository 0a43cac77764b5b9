//! All that a process prints, and no `println!` elsewhere: a text is escaped and bounded on its way out, and
//! a stream that is closed or full ends nothing by a panic.
//!
//! A reader that has gone (`| head`) needs no more lines, so that is no error, and the exit code stays the
//! verdict's. A disk that is full is one, on standard output; on standard error there is nobody left to tell.

use crate::text;
use std::fmt::Display;
use std::io::{self, Write};

/// Prints lines for people to standard output.
///
/// # Errors
/// A stream that takes nothing, but for a reader that has gone.
pub(crate) fn say(lines: impl Display) -> io::Result<()> {
    write_out(&text::error(&lines.to_string()))
}

/// Prints what has colours of ours, and quotes nothing that is not escaped yet.
///
/// # Errors
/// As of [`say()`].
pub(crate) fn say_coloured(lines: impl Display) -> io::Result<()> {
    write_out(&text::coloured(&lines.to_string()))
}

/// Prints a document for other programs, whole.
///
/// # Errors
/// As of [`say()`].
pub(crate) fn say_whole(document: impl Display) -> io::Result<()> {
    write_out(&text::plain(&document.to_string()))
}

/// Prints lines for people to standard error.
pub(crate) fn tell(lines: impl Display) {
    write_err(&text::error(&lines.to_string()));
}

/// Prints to standard error what has colours of ours, and quotes nothing that is not escaped yet.
pub(crate) fn tell_coloured(lines: impl Display) {
    write_err(&text::coloured(&lines.to_string()));
}

fn write_out(text: &str) -> io::Result<()> {
    let mut stream = anstream::stdout();
    match writeln!(stream, "{text}").and_then(|()| stream.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

fn write_err(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}
