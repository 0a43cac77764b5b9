//! Why a repository does not answer, and the mend.

use std::path::PathBuf;

/// Why a repository, or a file of it, could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepoError {
    /// The folder is in no repository.
    #[error("{} is in no git repository\n  = help: `git clone` it, rather than download it; or `git init`", .0.display())]
    NotARepository(PathBuf),
    /// The repository has no working tree.
    #[error("the repository {place} is bare: it has no files to measure\n  = help: clone it: `git clone {place}`", place = .0.display())]
    Bare(PathBuf),
    /// The repository belongs to another user. git does not trust it either.
    #[error(
        "the repository of {place} belongs to another user\n  = help: `git config --global --add safe.directory {place}` \
         says that it can be trusted", place = .0.display()
    )]
    NotOwned(PathBuf),
    /// The branch has no commit yet.
    #[error("there is no commit yet\n  = help: `git commit` one")]
    Unborn,
    /// The clone does not have the revision.
    #[error("`{revision}` is no revision of this clone\n  = help: {}", fetch(.revision, *.shallow))]
    UnknownRevision {
        /// As it was named.
        revision: String,
        /// Whether the clone lacks history.
        shallow: bool,
    },
    /// There is no branch that changes could be compared with.
    #[error(
        "no branch to compare with: tried {}\n  = help: name one with `--against REVISION`{}",
        .tried.join(", "),
        if *.shallow { format!(", or {DEEPEN}") } else { String::new() }
    )]
    NoTarget {
        /// What was looked for.
        tried: Vec<String>,
        /// Whether the clone lacks history.
        shallow: bool,
    },
    /// The clone is shallow and lacks the common ancestor of two commits.
    #[error(
        "this clone is shallow: where {one} and {other} parted is not in it\n  = help: {DEEPEN}"
    )]
    Shallow {
        /// One commit.
        one: String,
        /// The other.
        other: String,
    },
    /// Two commits have no common ancestor.
    #[error(
        "{one} and {other} have no common history\n  = help: compare with a branch that this one was \
         made from: `--against REVISION`"
    )]
    Unrelated {
        /// One commit.
        one: String,
        /// The other.
        other: String,
    },
    /// libgit2 cannot read this form of repository.
    #[error("cannot read this form of repository: {message}\n  = help: {}", plain(message))]
    Unsupported {
        /// What libgit2 says.
        message: String,
    },
    /// The file is only a pointer of Git LFS.
    #[error(
        "{} is a pointer of Git LFS: the {bytes} bytes that it stands for are not in git\n  = help: \
         `git lfs pull` gets them for files of the working tree", .path.display()
    )]
    LfsPointer {
        path: PathBuf,
        /// The hash of the content, as the pointer says.
        sha256: String,
        /// The size of the content, as the pointer says.
        bytes: u64,
    },
    /// The file is in a submodule. A tree only holds the submodule's commit.
    #[error(
        "{} lies in the submodule {}, whose files are not in this repository's history\n  = help: keep \
         what the gate judges by in the policy's own repository", .path.display(), .submodule.display()
    )]
    InSubmodule {
        path: PathBuf,
        /// The submodule.
        submodule: PathBuf,
    },
    /// A partial clone has not fetched the content. libgit2 does not fetch it on demand as git does.
    #[error(
        "this clone is partial: {} is not in it\n  = help: get the rest: `git fetch --refetch --no-filter`, \
         in a workflow no `filter` of actions/checkout", .0.display()
    )]
    NotFetched(PathBuf),
    /// A symbolic link leads out of the repository, or nowhere.
    #[error(
        "{} is reached by a link that leads out of the repository\n  = help: put the file itself there",
        .0.display()
    )]
    Outside(PathBuf),
    /// The file is larger than what is read.
    #[error("{} has {bytes} bytes, more than the {most} that are read", .path.display())]
    TooLarge {
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        most: u64,
    },
    /// The folder has more files than are looked at.
    #[error("{} holds more than {most} files", .folder.display())]
    TooMany {
        /// The folder.
        folder: PathBuf,
        /// The most that are looked at.
        most: usize,
    },
    /// The system does not give the file.
    #[error("cannot read {}: {message}", .path.display())]
    Unreadable { path: PathBuf, message: String },
    /// Anything else.
    #[error("cannot {doing}: {message}")]
    Git {
        /// What was tried.
        doing: String,
        /// What libgit2 says.
        message: String,
    },
}

/// How a shallow clone gets its history.
const DEEPEN: &str = "get its history: `git fetch --unshallow`, in a workflow `fetch-depth: 0` of \
                      actions/checkout";

/// How a revision is got.
fn fetch(revision: &str, shallow: bool) -> String {
    let name = revision.strip_prefix("origin/").unwrap_or(revision);
    if shallow {
        format!("`git fetch origin {name}`; as this clone is shallow, {DEEPEN}")
    } else {
        format!("`git fetch origin {name}`")
    }
}

/// The form that libgit2 does read.
fn plain(message: &str) -> &'static str {
    match message {
        m if m.contains("sdir") => "`git sparse-checkout reapply --no-sparse-index`",
        m if m.contains("reftable") || m.contains("refstorage") => {
            "`git refs migrate --ref-format=files`"
        }
        _ => "clone it again, without options",
    }
}
