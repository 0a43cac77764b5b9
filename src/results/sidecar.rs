//! The file beside `results.json` that holds every scored position of a model's schemes, in NumPy's `.npz` format.
//!
//! Percentiles, distributions and plots can be made from it. No verdict depends on it. For example,
//! `numpy.load("gemma-3-270m.npz")["q8_0+q4_0/kld"]` is one array of one scheme.

use crate::files::write_atomically;
use crate::results::case::file_words;
use crate::results::statistics::Position;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::ZipWriter;

/// The positions could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; is the folder writable, and the disk not full?")]
pub struct SidecarError {
    path: String,
    source: io::Error,
}

/// Writes the positions of a model's schemes, each with its label, into `<model>.npz` in a folder. Returns
/// the file's path.
pub fn write(
    folder: &Path,
    model: &str,
    schemes: &[(&str, &[Position])],
) -> Result<PathBuf, SidecarError> {
    let path = folder.join(format!("{}.npz", file_words(model)));
    write_atomically(&path, |file| archive(file, schemes))
        .map_err(|source| SidecarError { path: path.display().to_string(), source })?;
    Ok(path)
}

fn archive(file: impl Write + Seek, schemes: &[(&str, &[Position])]) -> io::Result<()> {
    let mut zip = ZipWriter::new(file);
    for (label, positions) in schemes {
        let mut array = |name: &str, descr: &str, bytes: &dyn Fn(&Position) -> [u8; 4]| {
            let name = format!("{}/{name}.npy", file_words(label));
            zip.start_file(name, SimpleFileOptions::DEFAULT)?;
            zip.write_all(&header(descr, positions.len()))?;
            let data: Vec<u8> = positions.iter().flat_map(bytes).collect();
            zip.write_all(&data)
        };
        array("token", "<u4", &|p| p.target.to_le_bytes())?;
        array("kld", "<f4", &|p| p.kld.to_le_bytes())?;
        array("logp_base", "<f4", &|p| p.logp_base.to_le_bytes())?;
        array("logp", "<f4", &|p| p.logp.to_le_bytes())?;
        array("top_base", "<u4", &|p| p.top_base.to_le_bytes())?;
        array("top", "<u4", &|p| p.top.to_le_bytes())?;
        array("margin", "<f4", &|p| p.margin.to_le_bytes())?;
    }
    zip.finish()?.flush()
}

/// The header of a one-dimensional array in NumPy's format 1.0. It is padded so that the data starts at a
/// multiple of 64 bytes.
fn header(descr: &str, len: usize) -> Vec<u8> {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({len},), }}");
    let prefix = 10; // magic, version, length
    let padded = (prefix + dict.len() + 1).next_multiple_of(64) - prefix;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((padded as u16).to_le_bytes());
    header.extend(format!("{dict:<width$}\n", width = padded - 1).bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn positions() -> Vec<Position> {
        let one =
            |i: u32| Position { target: i, kld: i as f32 / 8.0, top: 7, ..Default::default() };
        (0..1000).map(one).collect()
    }

    #[test]
    fn arrays_of_every_scheme() {
        let folder = tempfile::tempdir().unwrap();
        let positions = positions();
        let path =
            write(folder.path(), "tiny@long", &[("q8_0/q4_0", &positions), ("f16", &[])]).unwrap();
        assert_eq!(path, folder.path().join("tiny@long.npz"));
        let mut zip = zip::ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(zip.len(), 14);
        let mut bytes = Vec::new();
        zip.by_name("q8_0+q4_0/kld.npy").unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 128 + 4 * 1000);
        let text = String::from_utf8_lossy(&bytes[10..128]);
        let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000,), }";
        assert_eq!(text.trim_end(), dict);
        assert_eq!(bytes[127], b'\n');
        assert_eq!(bytes[128 + 4 * 3..][..4], 0.375f32.to_le_bytes());
        assert!(std::fs::metadata(&path).unwrap().len() < 12_000, "it is compressed");
    }

    #[test]
    fn the_same_positions_are_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let positions = positions();
        let write =
            |model| std::fs::read(write(folder.path(), model, &[("q4_0", &positions)]).unwrap());
        assert_eq!(write("a").unwrap(), write("b").unwrap());
    }

    #[test]
    fn an_unwritable_folder_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = write(file.path(), "m", &[]).unwrap_err().to_string();
        assert!(error.contains("m.npz: ") && error.contains("writable"), "{error}");
    }
}
