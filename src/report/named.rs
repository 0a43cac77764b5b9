//! How a report writes the names in its sentences.

/// Writes a name in a form that nothing obeys, for it may be a stranger's: a code span in Markdown, escaped characters on a
/// terminal.
pub(super) type Named<'n> = &'n dyn Fn(&str) -> String;
