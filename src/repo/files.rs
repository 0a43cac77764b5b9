//! Files of a policy's folder: on disk, or as a commit has them.

use super::RepoError;
use crate::hash;
use std::fs::{self, Metadata};
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

/// The largest file that is read. Texts to measure on are the largest that a gate needs.
pub(super) const MOST_BYTES: u64 = 64 << 20;
/// The largest number of files that a folder may have.
pub(super) const MOST_FILES: usize = 100_000;
/// A pointer of Git LFS is smaller than this.
pub(super) const MOST_LFS_POINTER: u64 = 1024;

/// The place that a policy, its goldens and its texts are read from. Paths start from the policy's folder. Files
/// outside of the repository count as missing.
pub trait Files {
    /// The content of a file. `None` if there is no such file.
    ///
    /// # Errors
    /// If the file exists but cannot be read whole.
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, RepoError>;

    /// The size of a file in bytes. `None` if there is no such file. For a pointer of Git LFS it is the size of the
    /// file that the pointer stands for.
    ///
    /// # Errors
    /// If the file exists but cannot be looked at.
    fn size(&self, path: &Path) -> Result<Option<u64>, RepoError>;

    /// The SHA-256 of a file in hex. `None` if there is no such file. For a pointer of Git LFS it is that of the file
    /// that the pointer stands for.
    ///
    /// # Errors
    /// If the file exists but cannot be read whole.
    fn sha256(&self, path: &Path) -> Result<Option<String>, RepoError> {
        match self.read(path) {
            Ok(content) => Ok(content.map(|content| hash::of_bytes(&content))),
            Err(RepoError::LfsPointer { sha256, .. }) => Ok(Some(sha256)),
            Err(error) => Err(error),
        }
    }

    /// All files in a folder and its subfolders, sorted, as paths for `read`. There are none if there is no such
    /// folder. Links are not followed.
    ///
    /// # Errors
    /// If the folder cannot be read.
    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, RepoError>;
}

/// Files on disk.
#[derive(Debug, Clone)]
pub struct Folder {
    folder: PathBuf,
    within: PathBuf,
}

impl Folder {
    /// The files of a policy's folder. Files outside of `within`, which is the repository or the folder itself, count
    /// as missing, and links that lead out of it are refused.
    ///
    /// # Errors
    /// If the folder does not exist.
    pub fn new(folder: &Path, within: &Path) -> Result<Folder, RepoError> {
        let real = |path: &Path| path.canonicalize().map_err(|error| unreadable(path, &error));
        Ok(Folder { folder: real(folder)?, within: real(within)? })
    }

    /// The place of a file and its size. `None` if it is no file.
    fn find(&self, path: &Path) -> Result<Option<(PathBuf, Metadata)>, RepoError> {
        let asked = self.folder.join(path);
        if !lexical(&asked).is_some_and(|place| place.starts_with(&self.within)) {
            return Ok(None);
        }
        let real = match asked.canonicalize() {
            Ok(real) => real,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(unreadable(path, &error)),
        };
        if !real.starts_with(&self.within) {
            return Err(RepoError::Outside(path.into()));
        }
        let meta = fs::metadata(&real).map_err(|error| unreadable(path, &error))?;
        Ok(Some((real, meta)))
    }

    fn file(&self, path: &Path) -> Result<Option<(PathBuf, u64)>, RepoError> {
        let found = self.find(path)?;
        Ok(found.filter(|(_, meta)| meta.is_file()).map(|(place, meta)| (place, meta.len())))
    }

    fn walk(&self, folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), RepoError> {
        let fault = |error: &_| unreadable(folder, error);
        for entry in fs::read_dir(self.folder.join(folder)).map_err(|error| fault(&error))? {
            let entry = entry.map_err(|error| fault(&error))?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type().map_err(|error| fault(&error))?;
            if kind.is_dir() {
                self.walk(&path, found)?;
            } else if kind.is_file() {
                found.push(path);
            }
            if found.len() > MOST_FILES {
                return Err(RepoError::TooMany { folder: folder.into(), most: MOST_FILES });
            }
        }
        Ok(())
    }
}

impl Files for Folder {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, RepoError> {
        let Some((place, bytes)) = self.file(path)? else { return Ok(None) };
        bounded(path, bytes)?;
        let content = content(&place).map_err(|error| unreadable(path, &error))?;
        // the file may have grown since its size was read
        bounded(path, content.len() as u64)?;
        whole(path, content).map(Some)
    }

    fn size(&self, path: &Path) -> Result<Option<u64>, RepoError> {
        let Some((place, bytes)) = self.file(path)? else { return Ok(None) };
        if bytes >= MOST_LFS_POINTER {
            return Ok(Some(bytes));
        }
        let content = content(&place).map_err(|error| unreadable(path, &error))?;
        Ok(Some(lfs_bytes(&content).unwrap_or(bytes)))
    }

    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, RepoError> {
        let mut found = Vec::new();
        if self.find(folder)?.is_some_and(|(_, meta)| meta.is_dir()) {
            self.walk(folder, &mut found)?;
        }
        found.sort();
        Ok(found)
    }
}

fn content(place: &Path) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(place)?.take(MOST_BYTES + 1).read_to_end(&mut content)?;
    Ok(content)
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn unreadable(path: &Path, error: &std::io::Error) -> RepoError {
    RepoError::Unreadable { path: path.into(), message: error.to_string() }
}

/// A path without `.` and `..`. `None` if it leads above its root.
pub(super) fn lexical(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if !plain.pop() => return None,
            Component::ParentDir => {}
            other => plain.push(other),
        }
    }
    Some(plain)
}

pub(super) fn bounded(path: &Path, bytes: u64) -> Result<(), RepoError> {
    if bytes > MOST_BYTES {
        Err(RepoError::TooLarge { path: path.into(), bytes, most: MOST_BYTES })
    } else {
        Ok(())
    }
}

/// The content, unless it is a pointer of Git LFS, which is an error.
pub(super) fn whole(path: &Path, content: Vec<u8>) -> Result<Vec<u8>, RepoError> {
    match lfs_pointer(&content) {
        Some((sha256, bytes)) => Err(RepoError::LfsPointer { path: path.into(), sha256, bytes }),
        None => Ok(content),
    }
}

/// The size that a pointer of Git LFS names, if the content is such a pointer.
pub(super) fn lfs_bytes(content: &[u8]) -> Option<u64> {
    lfs_pointer(content).map(|(_, bytes)| bytes)
}

/// The SHA-256 and the size that a pointer of Git LFS names, if the content is such a pointer.
fn lfs_pointer(content: &[u8]) -> Option<(String, u64)> {
    if content.len() as u64 >= MOST_LFS_POINTER {
        return None;
    }
    let text = std::str::from_utf8(content).ok()?;
    let rest = text.strip_prefix("version https://git-lfs.github.com/spec/v1\n")?;
    let value = |key: &str| rest.lines().find_map(|line| line.strip_prefix(key));
    Some((value("oid sha256:")?.into(), value("size ")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTER: &str =
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";

    fn folder() -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("repo/gate/goldens/b.snap", "b"),
            ("repo/gate/goldens/llama.cpp/a.snap", "a"),
            ("repo/corpora/c.txt", "corpus"),
            ("repo/weights.bin", POINTER),
            ("secret", "s"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let repo = root.path().join("repo");
        let folder = Folder::new(&repo.join("gate"), &repo).unwrap();
        (root, folder)
    }

    #[test]
    fn files_of_the_repository_are_read_and_no_others() {
        let (root, folder) = folder();
        let read = |path: &str| folder.read(Path::new(path));
        assert_eq!(read("goldens/b.snap"), Ok(Some(b"b".to_vec())));
        assert_eq!(read("../corpora/c.txt"), Ok(Some(b"corpus".to_vec())));
        for absent in ["none", "none/none", "goldens", "goldens/b.snap/c", "../../secret"] {
            assert_eq!(read(absent), Ok(None), "{absent}");
        }
        assert_eq!(read(root.path().join("secret").to_str().unwrap()), Ok(None));
        assert_eq!(
            folder.list(Path::new("goldens")).unwrap(),
            ["goldens/b.snap", "goldens/llama.cpp/a.snap"].map(PathBuf::from)
        );
        assert_eq!(folder.list(Path::new("none")), Ok(Vec::new()));
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_nowhere_outside() {
        let (root, folder) = folder();
        let link = |to: &str, at: &str| {
            let at = root.path().join("repo/gate").join(at);
            std::os::unix::fs::symlink(to, at).unwrap();
        };
        link("../../secret", "out");
        link("../corpora", "in");
        link("nowhere", "dangling");
        let read = |path: &str| folder.read(Path::new(path));
        assert_eq!(read("out"), Err(RepoError::Outside("out".into())));
        assert_eq!(read("in/c.txt"), Ok(Some(b"corpus".to_vec())));
        assert_eq!(read("dangling"), Ok(None));
    }

    #[test]
    fn pointers_of_git_lfs_are_no_content() {
        let (_root, folder) = folder();
        let path = Path::new("../weights.bin");
        let pointer =
            RepoError::LfsPointer { path: path.into(), sha256: "4d7a".into(), bytes: 12345 };
        assert_eq!(folder.sha256(path), Ok(Some("4d7a".into())));
        let text = folder.sha256(Path::new("../corpora/c.txt"));
        assert_eq!(text, Ok(Some(crate::hash::of_bytes(b"corpus"))));
        assert_eq!(folder.read(path), Err(pointer));
        assert_eq!(folder.size(path), Ok(Some(12345)));
        assert_eq!(folder.size(Path::new("../corpora/c.txt")), Ok(Some(6)));
    }

    #[test]
    fn size_is_bounded() {
        let (root, folder) = folder();
        let file = fs::File::create(root.path().join("repo/gate/large")).unwrap();
        file.set_len(MOST_BYTES + 1).unwrap();
        let path = Path::new("large");
        let bytes = MOST_BYTES + 1;
        let large = RepoError::TooLarge { path: path.into(), bytes, most: MOST_BYTES };
        assert_eq!(folder.read(path), Err(large));
        assert_eq!(folder.size(path), Ok(Some(bytes)));
    }
}
