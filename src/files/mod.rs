//! Writing files so that a reader sees the old content or the new one, never half of one. Mapping them. And what can
//! be said of a file before it is read.

pub(crate) mod foreign;
pub(crate) mod gguf_parts;
pub(crate) mod safetensors_header;

use memmap2::Mmap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// The folder that a file is in: `.` for a name without a folder, whose parent is an empty path that cannot be
/// opened.
pub(crate) fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Writes `path` through a temporary file in the same folder, which is created if it is missing.
pub(crate) fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = temporary_beside(path)?;
    let mut buffered = BufWriter::new(file.as_file_mut());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Writes a file under a temporary name in its own folder, which is created if it is missing. `persist` or
/// `persist_noclobber` then puts the file in its place. To write several files all or none, stage them all before
/// the first `persist`.
pub(crate) fn staged(path: &Path, text: &str) -> io::Result<tempfile::NamedTempFile> {
    let mut file = temporary_beside(path)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// A temporary file in the folder of `path`, which is created when missing. Temporary files are private by
/// default; results and goldens get the permissions that the umask leaves to every new file.
fn temporary_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let folder = folder_of(path);
    std::fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".kvgate-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Maps a file into memory, so that reading a tensor touches only its own pages.
#[allow(unsafe_code)]
pub(crate) fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is read-only and is read as bytes only, all values of which are valid. If somebody
    // shortens a model's file while it is measured, SIGBUS ends the process: the gate is red, never green.
    unsafe { Mmap::map(&file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/file");
        write_atomically(&path, |w| w.write_all(b"old")).unwrap();
        let full = |w: &mut BufWriter<&mut File>| {
            w.write_all(b"ne")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        };
        assert!(write_atomically(&path, full).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
