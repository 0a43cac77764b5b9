//! A git repository: revisions, merge bases, and what changed between them.

use super::files::lexical;
use super::{RepoError, Tree};
use git2::{Commit, Delta, Diff, DiffFindOptions, DiffOptions, ErrorCode, ObjectType, Oid};
use std::path::{Path, PathBuf};

/// A repository with a working tree: a clone, a linked worktree, or a submodule.
pub struct Repository {
    git: git2::Repository,
    workdir: PathBuf,
}

/// A file that differs between two states of the repository. Paths start from the repository's root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileChange {
    /// The path of the file, or its former path if it was deleted.
    pub path: PathBuf,
    /// The former path of a renamed file.
    pub old_path: Option<PathBuf>,
}

impl Repository {
    /// Finds the repository that a folder is in. In a submodule it is that of the submodule.
    ///
    /// # Errors
    /// If the folder is in no repository, in a bare one, or in one that git would not trust.
    pub fn discover(folder: &Path) -> Result<Repository, RepoError> {
        let git = git2::Repository::discover(folder).map_err(|error| not_opened(folder, &error))?;
        let bare = || RepoError::Bare(git.path().into());
        let workdir = git.workdir().ok_or_else(bare)?;
        let workdir = workdir.canonicalize().unwrap_or_else(|_| workdir.into());
        Ok(Repository { git, workdir })
    }

    /// The root of the working tree.
    pub fn workdir(&self) -> &Path {
        &self.workdir
    }

    /// The path of a file relative to the repository's root. `None` if it is not in the repository. The file need not
    /// exist.
    pub fn relative(&self, path: &Path) -> Option<PathBuf> {
        let path = lexical(&std::path::absolute(path).ok()?)?;
        // resolve links of the nearest ancestor that exists, and append the rest of the path
        let real = path.ancestors().find_map(|folder| {
            let rest = path.strip_prefix(folder).ok()?;
            Some(folder.canonicalize().ok()?.join(rest))
        })?;
        Some(real.strip_prefix(&self.workdir).ok()?.components().collect())
    }

    /// Whether the clone is shallow.
    pub fn is_shallow(&self) -> bool {
        self.git.is_shallow()
    }

    /// The commit that is checked out, on a branch or not.
    ///
    /// # Errors
    /// If the branch has no commit yet.
    pub fn head(&self) -> Result<String, RepoError> {
        let head = self.git.head().and_then(|head| head.peel_to_commit());
        let head = head.map_err(|error| match error.code() {
            ErrorCode::UnbornBranch | ErrorCode::NotFound => RepoError::Unborn,
            _ => failed("read HEAD", &error),
        });
        head.map(|commit| commit.id().to_string())
    }

    /// The commit that a revision names: a branch, a tag, a hash, `HEAD~2`.
    ///
    /// # Errors
    /// If the clone does not have the revision.
    pub fn resolve(&self, revision: &str) -> Result<String, RepoError> {
        self.commit(revision).map(|commit| commit.id().to_string())
    }

    /// The branch that changes are compared with. In a pull request's run it is `origin/$GITHUB_BASE_REF`, otherwise
    /// the branch of the remote's HEAD, or else the first that exists of the usual names.
    ///
    /// # Errors
    /// If there is no such branch, or the clone does not have that of the pull request.
    pub fn default_target(
        &self,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<String, RepoError> {
        if let Some(base) = environment("GITHUB_BASE_REF").filter(|base| !base.is_empty()) {
            let target = format!("origin/{base}");
            return self.resolve(&target).map(|_| target);
        }
        const USUAL: [&str; 5] = ["origin/HEAD", "origin/main", "origin/master", "main", "master"];
        let found = USUAL.into_iter().find(|name| self.resolve(name).is_ok());
        found.map(Into::into).ok_or_else(|| RepoError::NoTarget {
            tried: USUAL.map(Into::into).into(),
            shallow: self.is_shallow(),
        })
    }

    /// The merge base of two revisions. If there are several, as after merges in both directions, it is the youngest,
    /// which `git merge-base` prints.
    ///
    /// # Errors
    /// If the clone does not have a revision, or the two have no common history in this clone.
    pub fn merge_base(&self, one: &str, other: &str) -> Result<String, RepoError> {
        let (a, b) = (self.commit(one)?.id(), self.commit(other)?.id());
        let bases = match self.git.merge_bases(a, b) {
            Ok(bases) => bases,
            Err(error) if error.code() == ErrorCode::NotFound => {
                let (one, other) = (one.to_owned(), other.to_owned());
                return Err(if self.is_shallow() {
                    RepoError::Shallow { one, other }
                } else {
                    RepoError::Unrelated { one, other }
                });
            }
            Err(error) => return Err(failed("find the merge base", &error)),
        };
        let age = |id: &&Oid| self.git.find_commit(**id).map_or(i64::MIN, |c| c.time().seconds());
        // of two commits of the same second the first counts; `max_by_key` would give the last
        let youngest = bases.iter().rev().max_by_key(age);
        let nothing = || RepoError::Unrelated { one: one.into(), other: other.into() };
        youngest.map(ToString::to_string).ok_or_else(nothing)
    }

    /// The files of a revision.
    ///
    /// # Errors
    /// If the clone does not have the revision.
    pub fn tree(&self, revision: &str) -> Result<Tree<'_>, RepoError> {
        Ok(Tree::new(&self.git, self.tree_of(revision)?))
    }

    /// The files that differ between two revisions, sorted by path.
    ///
    /// # Errors
    /// If the clone does not have the revision.
    pub fn changed_paths(&self, base: &str, head: &str) -> Result<Vec<FileChange>, RepoError> {
        let (base, head) = (self.tree_of(base)?, self.tree_of(head)?);
        let diff = self.git.diff_tree_to_tree(Some(&base), Some(&head), None);
        self.changes(diff.map_err(|error| failed("compare revisions", &error))?)
    }

    /// The files that differ between a revision and the working tree: by later commits, staged or unstaged changes,
    /// or as new files that git does not ignore.
    ///
    /// # Errors
    /// If the clone does not have the revision.
    pub fn changed_in_workdir(&self, base: &str) -> Result<Vec<FileChange>, RepoError> {
        let base = self.tree_of(base)?;
        let mut options = DiffOptions::new();
        options.include_untracked(true).recurse_untracked_dirs(true);
        let diff = self.git.diff_tree_to_workdir_with_index(Some(&base), Some(&mut options));
        self.changes(diff.map_err(|error| failed("compare with the working tree", &error))?)
    }

    fn changes(&self, mut diff: Diff) -> Result<Vec<FileChange>, RepoError> {
        let mut options = DiffFindOptions::new();
        options.renames(true).for_untracked(true);
        match diff.find_similar(Some(&mut options)) {
            // if a partial clone lacks the contents, a rename shows as a removal and an addition
            Err(error) if error.code() != ErrorCode::NotFound => {
                return Err(failed("find renames", &error));
            }
            _ => {}
        }
        let mut changes: Vec<_> = diff
            .deltas()
            .filter(|delta| !self.is_sparse(delta))
            .filter_map(|delta| {
                let (old, new) = (delta.old_file().path(), delta.new_file().path());
                let renamed =
                    old.filter(|old| Some(*old) != new && delta.status() == Delta::Renamed);
                Some(FileChange { path: new.or(old)?.into(), old_path: renamed.map(Into::into) })
            })
            .collect();
        changes.sort();
        changes.dedup();
        Ok(changes)
    }

    /// Whether a file is only missing because a sparse checkout leaves it out.
    fn is_sparse(&self, delta: &git2::DiffDelta) -> bool {
        let file = delta.old_file();
        let Some(path) = file.path().filter(|_| delta.status() == Delta::Deleted) else {
            return false;
        };
        let entry = self.git.index().ok().and_then(|index| index.get_path(path, 0));
        entry.is_some_and(|entry| {
            let flags = git2::IndexEntryExtendedFlag::from_bits_truncate(entry.flags_extended);
            flags.is_skip_worktree() && entry.id == file.id()
        })
    }

    /// Whether a commit has a file or folder, or the submodule that it is in, so that changes of it show between
    /// commits. The path starts from the repository's root.
    ///
    /// # Errors
    /// If the clone does not have the revision.
    pub fn tracks(&self, revision: &str, path: &Path) -> Result<bool, RepoError> {
        let tree = self.tree_of(revision)?;
        let kind = |path: &Path| tree.get_path(path).ok().and_then(|entry| entry.kind());
        let mut above = path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
        let is_root = path.as_os_str().is_empty();
        Ok(is_root
            || kind(path).is_some()
            || above.any(|path| kind(path) == Some(ObjectType::Commit)))
    }

    /// Whether a commit has a submodule at a path.
    ///
    /// # Errors
    /// If the clone does not have the revision.
    pub fn is_submodule(&self, revision: &str, path: &Path) -> Result<bool, RepoError> {
        let entry = self.tree_of(revision)?.get_path(path).ok();
        Ok(entry.and_then(|entry| entry.kind()) == Some(ObjectType::Commit))
    }

    fn tree_of(&self, revision: &str) -> Result<git2::Tree<'_>, RepoError> {
        self.commit(revision)?.tree().map_err(|error| failed("read a commit's files", &error))
    }

    fn commit(&self, revision: &str) -> Result<Commit<'_>, RepoError> {
        let found = self.git.revparse_single(revision);
        let commit = found.and_then(|object| object.peel(ObjectType::Commit));
        let unknown =
            || RepoError::UnknownRevision { revision: revision.into(), shallow: self.is_shallow() };
        match commit.map(|object| object.into_commit()) {
            Ok(Ok(commit)) => Ok(commit),
            _ if revision == "HEAD" => Err(RepoError::Unborn),
            _ => Err(unknown()),
        }
    }
}

fn not_opened(folder: &Path, error: &git2::Error) -> RepoError {
    match error.code() {
        ErrorCode::NotFound => RepoError::NotARepository(folder.into()),
        ErrorCode::Owner => RepoError::NotOwned(root(folder)),
        _ => RepoError::Unsupported { message: error.message().into() },
    }
}

/// The folder that the user would have to tell git to trust.
fn root(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
    let root = folder.ancestors().find(|ancestor| ancestor.join(".git").exists());
    root.unwrap_or(&folder).into()
}

fn failed(doing: &str, error: &git2::Error) -> RepoError {
    if error.message().contains("sdir") {
        return RepoError::Unsupported { message: error.message().into() };
    }
    RepoError::Git { doing: doing.into(), message: error.message().into() }
}
