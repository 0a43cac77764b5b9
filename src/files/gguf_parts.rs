//! The names of a GGUF model in several parts: `NAME-00001-of-00003.gguf` and so on, as llama.cpp's `llama-gguf-split`
//! and its converter write them (`llama_split_path` in `src/llama.cpp`).

use std::path::{Path, PathBuf};

/// The name of a part, without its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartName<'a> {
    /// What stands before the numbers.
    pub stem: &'a str,
    /// The number of the part, from 1.
    pub number: usize,
    /// How many parts there are.
    pub count: usize,
}

const DIGITS: usize = 5;

impl<'a> PartName<'a> {
    /// Reads a name or a path. `None` if it is not that of a part, so that the file is a whole model.
    pub fn read(name: &'a str) -> Option<Self> {
        let (rest, count) = numbered(name.strip_suffix(".gguf")?, "-of-")?;
        let (stem, number) = numbered(rest, "-")?;
        (1..=count).contains(&number).then_some(PartName { stem, number, count })
    }

    /// The name of another part of the same model.
    pub fn of(&self, number: usize) -> String {
        let PartName { stem, count, .. } = self;
        format!("{stem}-{number:05}-of-{count:05}.gguf")
    }

    /// The names of all parts, in order.
    pub fn all(&self) -> Vec<String> {
        (1..=self.count).map(|number| self.of(number)).collect()
    }
}

/// Takes a number of [`DIGITS`] digits and what stands before it off the end of a text.
fn numbered<'a>(text: &'a str, before: &str) -> Option<(&'a str, usize)> {
    let (rest, digits) = text.split_at_checked(text.len().checked_sub(DIGITS)?)?;
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    Some((rest.strip_suffix(before)?, digits.parse().ok().filter(|_| is_number)?))
}

/// The files of the GGUF model whose file, or first part, is at `path`.
pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    match name.and_then(PartName::read) {
        Some(part) => part.all().iter().map(|name| path.with_file_name(name)).collect(),
        None => vec![path.into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let part = PartName::read("a/m-Q4_K_M-00002-of-00003.gguf").unwrap();
        assert_eq!(part, PartName { stem: "a/m-Q4_K_M", number: 2, count: 3 });
        assert_eq!(part.of(1), "a/m-Q4_K_M-00001-of-00003.gguf");
        for whole in [
            "m.gguf",
            "m-00001-of-00003.bin",
            "m-0001-of-0003.gguf",
            "m-00000-of-00003.gguf",
            "m-00004-of-00003.gguf",
            "m-+0001-of-00003.gguf",
            "m00001-of-00003.gguf",
            "00001-of-é0003.gguf",
        ] {
            assert_eq!(PartName::read(whole), None, "{whole}");
        }
        let files = files(Path::new("a/m-00001-of-00002.gguf"));
        let names = ["a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf"];
        assert_eq!(files, names.map(PathBuf::from));
    }
}
