//! The summary of a step, which GitHub shows on the page of the run.

use super::error::prefix;
use crate::text;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// The most bytes of a step's summary. GitHub shows nothing of a longer one.
const MOST: u64 = 1024 << 10;
const CUT: &str = "\n\n… cut: a step's summary has 1 MiB at most\n";

/// Appends to the file that `GITHUB_STEP_SUMMARY` names, and cuts what GitHub would not show.
///
/// # Errors
/// A file that cannot be written.
pub fn append(path: &Path, markdown: &str) -> io::Result<()> {
    let markdown = text::plain(markdown);
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let room = MOST.saturating_sub(file.metadata()?.len()) as usize;
    if markdown.len() <= room {
        return file.write_all(markdown.as_bytes());
    }
    let Some(room) = room.checked_sub(CUT.len()) else { return Ok(()) };
    file.write_all(format!("{}{CUT}", prefix(&markdown, room)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_follow_each_other_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary");
        append(&path, "one\n").unwrap();
        append(&path, "two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        let hostile: String = text::HOSTILE.iter().collect();
        append(&folder.path().join("other"), &hostile).unwrap();
        let other = std::fs::read_to_string(folder.path().join("other")).unwrap();
        assert!(other.is_ascii() && !other.contains(char::is_control), "{other}");
        append(&path, &"é".repeat(1 << 20)).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        assert!(whole.starts_with("one\ntwo\né") && whole.ends_with(CUT));
        assert!((MOST - 1..=MOST).contains(&(whole.len() as u64)), "{}", whole.len());
        append(&path, "more").unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() <= MOST);
    }
}
