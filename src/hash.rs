//! SHA-256, and a cache of it, because models are too large to be hashed at every run.

use crate::files::write_atomically;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// SHA-256 of bytes, in hex.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

/// Whether a text is a SHA-256 as this crate writes it, in lower case. Digests are compared as text, so one in upper
/// case would never be equal.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a file. It is taken from the cache if path, size, times and inode of the file are those of the last
/// time.
///
/// # Errors
/// A file that cannot be read. A cache that cannot be used is no error: the file is hashed again.
pub fn of_file(path: &Path) -> io::Result<String> {
    let identity = Identity::read(path)?;
    let Some(cache) = cache_path() else {
        return read_and_hash(path);
    };
    let mut known: BTreeMap<PathBuf, Known> = std::fs::read(&cache)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let key = std::path::absolute(path)?;
    if let Some(entry) = known.get(&key).filter(|entry| entry.identity == identity) {
        return Ok(entry.sha256.clone());
    }
    let sha256 = read_and_hash(path)?;
    known.insert(key, Known { identity, sha256: sha256.clone() });
    // if this fails, the next run hashes the file again
    let _ = serde_json::to_vec(&known)
        .map_err(io::Error::from)
        .and_then(|json| write_atomically(&cache, |file| file.write_all(&json)));
    Ok(sha256)
}

/// SHA-256 of several files together: that of the list of their hashes and names, as `sha256sum` prints it. A single
/// file has its own hash.
///
/// # Errors
/// The file that cannot be read, and the reason.
pub fn of_files(paths: &[PathBuf]) -> Result<String, (PathBuf, io::Error)> {
    let hash = |path: &PathBuf| of_file(path).map_err(|error| (path.clone(), error));
    if let [one] = paths {
        return hash(one);
    }
    let mut list = String::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        list += &format!("{}  {name}\n", hash(path)?);
    }
    Ok(of_bytes(list.as_bytes()))
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    bytes: u64,
    modified_ns: u64,
    inode: u64,
    /// The time of the last change of any kind, which no program can set back. 0 where the system has none.
    changed_ns: i64,
}

#[derive(Serialize, Deserialize)]
struct Known {
    #[serde(flatten)]
    identity: Identity,
    sha256: String,
}

impl Identity {
    fn read(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        let modified = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (inode, changed_ns) = unix_identity(&meta);
        let modified_ns = modified.as_nanos() as u64;
        Ok(Identity { bytes: meta.len(), modified_ns, inode, changed_ns })
    }
}

#[cfg(unix)]
fn unix_identity(meta: &std::fs::Metadata) -> (u64, i64) {
    use std::os::unix::fs::MetadataExt;
    (meta.ino(), meta.ctime() * 1_000_000_000 + meta.ctime_nsec())
}

#[cfg(not(unix))]
fn unix_identity(_: &std::fs::Metadata) -> (u64, i64) {
    (0, 0)
}

fn read_and_hash(path: &Path) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(hasher.finalize().as_slice())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// `$XDG_CACHE_HOME/kvgate/hashes.json`, or the same under `~/.cache`. Without a home there is no cache: in a shared
/// temporary folder somebody else could tamper with it.
fn cache_path() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Some(cache.or_else(home)?.join("kvgate/hashes.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digest() {
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_bytes(b"abc"), want);
    }

    #[test]
    fn a_changed_file_is_hashed_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"ab").unwrap();
        let before = of_file(file.path()).unwrap();
        assert_eq!(of_file(file.path()).unwrap(), before);
        file.write_all(b"c").unwrap();
        assert_eq!(of_file(file.path()).unwrap(), of_bytes(b"abc"));
    }

    /// Same path, size, inode and time of modification, other bytes.
    #[cfg(unix)]
    #[test]
    fn a_time_that_was_set_back_does_not_hide_a_change() {
        use std::io::Seek;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"abd").unwrap();
        let modified = file.as_file().metadata().unwrap().modified().unwrap();
        of_file(file.path()).unwrap();
        // the clock of the file system must have moved on
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.rewind().unwrap();
        file.write_all(b"abc").unwrap();
        file.as_file().set_modified(modified).unwrap();
        assert_eq!(of_file(file.path()).unwrap(), of_bytes(b"abc"));
    }
}
