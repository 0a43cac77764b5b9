//! Reads files of a commit.

use super::files::{bounded, lfs_bytes, whole, MOST_FILES, MOST_LFS_POINTER};
use super::{Files, RepoError};
use git2::{ErrorCode, ObjectType, Oid};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The largest number of links that are followed to reach a file.
const MOST_LINKS: usize = 8;
/// The largest depth of folders in which files are listed.
const MOST_DEPTH: usize = 64;

const LINK: i32 = 0o120_000;

/// The files of a commit. Paths start from the repository's root, or from the folder that
/// [`Tree::seen_from`] names.
pub struct Tree<'r> {
    repository: &'r git2::Repository,
    tree: git2::Tree<'r>,
    folder: PathBuf,
}

impl<'r> Tree<'r> {
    pub(super) fn new(repository: &'r git2::Repository, tree: git2::Tree<'r>) -> Self {
        Tree { repository, tree, folder: PathBuf::new() }
    }

    /// The same files with paths that start from a folder, that of the policy.
    /// [`Repository::relative`](super::Repository::relative) makes its path.
    #[must_use]
    pub fn seen_from(self, folder: &Path) -> Self {
        Tree { folder: folder.into(), ..self }
    }

    /// The entry that a path leads to. Links within the repository are followed.
    fn find(&self, path: &Path) -> Result<Option<(Oid, ObjectType)>, RepoError> {
        let Some(mut rest) = words(&self.folder.join(path)) else { return Ok(None) };
        let mut place = PathBuf::new();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                match (place.pop(), links) {
                    (true, _) => continue,
                    (false, 0) => return Ok(None),
                    (false, _) => return Err(RepoError::Outside(path.into())),
                }
            }
            place.push(&name);
            let Ok(entry) = self.tree.get_path(&place) else { return Ok(None) };
            if entry.kind() == Some(ObjectType::Commit) {
                return Err(RepoError::InSubmodule { path: path.into(), submodule: place });
            }
            if entry.filemode() == LINK {
                links += 1;
                let target = self.target(path, entry.id()).filter(|_| links <= MOST_LINKS);
                let target = target.ok_or_else(|| RepoError::Outside(path.into()))?;
                target.into_iter().rev().for_each(|name| rest.push_front(name));
                place.pop();
            }
        }
        if place.as_os_str().is_empty() {
            return Ok(Some((self.tree.id(), ObjectType::Tree)));
        }
        let entry = self.tree.get_path(&place).ok();
        Ok(entry.and_then(|entry| Some((entry.id(), entry.kind()?))))
    }

    /// The components of a link's target, if it is relative.
    fn target(&self, path: &Path, id: Oid) -> Option<VecDeque<OsString>> {
        words(Path::new(std::str::from_utf8(&self.bytes(path, id).ok()?).ok()?))
    }

    fn blob(&self, path: &Path) -> Result<Option<Oid>, RepoError> {
        let found = self.find(path)?;
        Ok(found.filter(|(_, kind)| *kind == ObjectType::Blob).map(|(id, _)| id))
    }

    fn bytes_of(&self, path: &Path, id: Oid) -> Result<u64, RepoError> {
        let header = self.repository.odb().and_then(|odb| odb.read_header(id));
        header.map(|(bytes, _)| bytes as u64).map_err(|error| unreadable(path, &error))
    }

    /// The content of a blob. Its size is checked before it is unpacked.
    fn bytes(&self, path: &Path, id: Oid) -> Result<Vec<u8>, RepoError> {
        bounded(path, self.bytes_of(path, id)?)?;
        let blob = self.repository.find_blob(id).map_err(|error| unreadable(path, &error))?;
        Ok(blob.content().to_vec())
    }

    fn walk(
        &self,
        folder: &Path,
        id: Oid,
        depth: usize,
        found: &mut Vec<PathBuf>,
    ) -> Result<(), RepoError> {
        let tree = self.repository.find_tree(id).map_err(|error| unreadable(folder, &error))?;
        for entry in &tree {
            // a name that is no text is none that a policy or golden has
            let Ok(name) = entry.name() else { continue };
            let path = folder.join(name);
            match entry.kind() {
                Some(ObjectType::Tree) if depth < MOST_DEPTH => {
                    self.walk(&path, entry.id(), depth + 1, found)?;
                }
                Some(ObjectType::Blob) if entry.filemode() != LINK => found.push(path),
                _ => {}
            }
            if found.len() > MOST_FILES {
                return Err(RepoError::TooMany { folder: folder.into(), most: MOST_FILES });
            }
        }
        Ok(())
    }
}

/// The components of a relative path, including `..`. `None` for an absolute path.
fn words(path: &Path) -> Option<VecDeque<OsString>> {
    let words = path.components().filter(|component| *component != Component::CurDir);
    let word = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    words.map(word).collect()
}

impl Files for Tree<'_> {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, RepoError> {
        let Some(id) = self.blob(path)? else { return Ok(None) };
        whole(path, self.bytes(path, id)?).map(Some)
    }

    fn size(&self, path: &Path) -> Result<Option<u64>, RepoError> {
        let Some(id) = self.blob(path)? else { return Ok(None) };
        let bytes = self.bytes_of(path, id)?;
        if bytes >= MOST_LFS_POINTER {
            return Ok(Some(bytes));
        }
        Ok(Some(lfs_bytes(&self.bytes(path, id)?).unwrap_or(bytes)))
    }

    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, RepoError> {
        let mut found = Vec::new();
        if let Some((id, ObjectType::Tree)) = self.find(folder)? {
            self.walk(folder, id, 0, &mut found)?;
        }
        found.sort();
        Ok(found)
    }
}

fn unreadable(path: &Path, error: &git2::Error) -> RepoError {
    match error.code() {
        ErrorCode::NotFound => RepoError::NotFetched(path.into()),
        _ => RepoError::Unreadable { path: path.into(), message: error.message().into() },
    }
}
