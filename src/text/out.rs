//! Everything that the process prints. Nothing else calls `println!`, for two reasons: texts are bounded and escaped
//! on their way out, and a stream that is closed or full causes no panic.
//!
//! If the reader of standard output has gone (`| head`), that is no error, and the exit code stays that of the
//! verdict. A full disk is an error. If standard error cannot be written, nothing is left that could be told.

use crate::text;
use std::fmt::Display;
use std::io::{self, Write};

/// Prints lines for people to standard output.
///
/// # Errors
/// A stream that cannot be written, unless its reader has gone.
pub(crate) fn print(lines: impl Display) -> io::Result<()> {
    write_out(&text::error(&lines.to_string()))
}

/// Prints lines that have colours, and in which quoted texts are escaped already, to standard output.
///
/// # Errors
/// As for [`print()`].
pub(crate) fn print_coloured(lines: impl Display) -> io::Result<()> {
    write_out(&text::coloured(&lines.to_string()))
}

/// Prints a document for other programs to standard output, whatever its length.
///
/// # Errors
/// As for [`print()`].
pub(crate) fn print_document(document: impl Display) -> io::Result<()> {
    write_out(&text::plain(&document.to_string()))
}

/// Prints lines for people to standard error.
pub(crate) fn eprint(lines: impl Display) {
    write_err(&text::error(&lines.to_string()));
}

/// Prints lines that have colours, and in which quoted texts are escaped already, to standard error.
pub(crate) fn eprint_coloured(lines: impl Display) {
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
