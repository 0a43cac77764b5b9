//! Recognises files that are in the place of a checkpoint but are something else, and says how to mend that.
//!
//! A download that failed often leaves a file of the right name: a Git LFS pointer, a server's error page, an
//! empty file. Their first bytes say what they are, which helps more than a parser's complaint about them.

/// Files of other formats by their first bytes. If one beginning starts with another, the longer one is listed first.
const BEGINNINGS: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", "it is a ZIP archive (PyTorch's `.bin` and `.pt` files are such archives, too): unpack it, or convert the weights to safetensors or GGUF"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it"),
    (b"BZh", "it is compressed with bzip2: unpack it"),
    (b"\xfd7zXZ\x00", "it is compressed with xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive: unpack it"),
    (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file, as Keras writes: convert the weights to safetensors or GGUF"),
    (b"\x93NUMPY", "it is a NumPy array: convert the weights to safetensors or GGUF"),
    (b"ggjt", LEGACY),
    (b"tjgg", LEGACY),
    (b"ggmf", LEGACY),
    (b"fmgg", LEGACY),
    (b"ggml", LEGACY),
    (b"lmgg", LEGACY),
    (b"algg", "it is a ggml LoRA adapter and no model: name the model's own file"),
    (b"FUGG", BIG_ENDIAN),
];

const LEGACY: &str = "it is a ggml file from before GGUF, which no current program reads: \
    convert the model's original files with llama.cpp's `convert_hf_to_gguf.py`";

const BIG_ENDIAN: &str = "it is a GGUF file for big-endian machines: \
    `gguf-convert-endian FILE little` of the Python package `gguf` makes it readable";

/// Beginnings of texts that servers send instead of a file. The comparison ignores case.
const SERVERS_WORDS: [&str; 14] = [
    "entry not found",
    "repository not found",
    "revision not found",
    "file not found",
    "not found",
    "404",
    "403",
    "401",
    "access to model",
    "access denied",
    "invalid username or password",
    "invalid credentials",
    "unauthorized",
    "forbidden",
];

/// How many characters of a file's text an error quotes.
const QUOTED: usize = 120;

/// Says what a file is that is no part of a checkpoint, and what helps, in words that continue `FILE …:`. `None` if
/// the file could be part of one: GGUF of a version that is read, JSON, safetensors, or unknown bytes.
pub(crate) fn complaint(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return Some("it is empty: its download or copy failed; fetch it again".into());
    }
    if begins_like_safetensors(bytes) {
        return None;
    }
    let known = BEGINNINGS.iter().find(|(beginning, _)| bytes.starts_with(beginning));
    if let Some((_, what)) = known {
        return Some((*what).into());
    }
    gguf_version(bytes).or_else(|| pickle(bytes)).or_else(|| text(bytes))
}

/// Says what a file is that should be GGUF but does not begin like it.
pub(crate) fn instead_of_gguf(bytes: &[u8]) -> Option<String> {
    if let Some(complaint) = complaint(bytes) {
        return Some(complaint);
    }
    if begins_like_safetensors(bytes) {
        return Some("it is a safetensors file, a part of a checkpoint: name its folder".into());
    }
    let magic = &bytes[..bytes.len().min(4)];
    let words = || format!("it begins with `{}` and not with `GGUF`", magic.escape_ascii());
    (magic != b"GGUF").then(words)
}

/// Whether a file begins with the length of a header and a brace, as safetensors do. The bytes of the length may look
/// like the beginning of another format.
fn begins_like_safetensors(bytes: &[u8]) -> bool {
    bytes.get(4..9).is_some_and(|bytes| bytes == b"\0\0\0\0{")
}

/// What is said about a GGUF file whose version no current program reads.
fn gguf_version(bytes: &[u8]) -> Option<String> {
    let version = bytes.strip_prefix(b"GGUF")?.first_chunk::<4>()?;
    match u32::from_le_bytes(*version) {
        1 => Some(
            "it is GGUF version 1, which current programs do not read: convert the model again \
             with llama.cpp's `convert_hf_to_gguf.py`"
                .into(),
        ),
        // in the other byte order every version that exists has zeros in its lower half
        version if version != 0 && version & 0xffff == 0 => Some(BIG_ENDIAN.into()),
        _ => None,
    }
}

/// What is said about a bare pickle. Protocols 2 to 5 begin with a marker.
fn pickle(bytes: &[u8]) -> Option<String> {
    let words =
        "it is a Python pickle, as PyTorch writes: convert the weights to safetensors or GGUF";
    matches!(bytes, [0x80, 2..=5, ..]).then(|| words.into())
}

/// What is said about a text that comes from a server or from Git.
fn text(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(4096)];
    let head = String::from_utf8_lossy(head);
    let head = head.trim_start_matches('\u{feff}').trim_start();
    let lower = head.chars().take(256).collect::<String>().to_ascii_lowercase();
    if head.starts_with("version https://git-lfs.github.com/spec/") {
        return Some(lfs_pointer(head));
    }
    if ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| lower.starts_with(tag)) {
        return Some(format!("it is a web page{}, not the file: fetch it again", title(head)));
    }
    if lower.starts_with("<?xml") || lower.starts_with("<error>") {
        let what = "it is an XML text, as a file store sends instead of a file that it refuses";
        return Some(format!("{what} ({}): fetch it again", quoted(head)));
    }
    // a file of weights or a configuration is longer than an error, or begins otherwise
    if bytes.len() <= 4096 && SERVERS_WORDS.iter().any(|words| lower.starts_with(words)) {
        return Some(format!("it is a server's error ({}): fetch it again", quoted(head)));
    }
    json_error(bytes)
}

fn lfs_pointer(head: &str) -> String {
    let size = head.lines().find_map(|line| line.strip_prefix("size ")?.parse::<u64>().ok());
    let size = size.map(|size| format!(" (the file itself has {size} bytes)")).unwrap_or_default();
    format!("it is a Git LFS pointer{size}: `git lfs pull` fetches the file")
}

/// The title of a web page, in parentheses.
fn title(head: &str) -> String {
    let lower = head.to_ascii_lowercase();
    let title = lower.find("<title>").map(|at| at + "<title>".len());
    let title = title.and_then(|at| Some(&head[at..at + lower[at..].find("</title>")?]));
    title.map(|title| format!(" ({})", quoted(title.trim()))).unwrap_or_default()
}

/// A JSON object that says nothing but that something went wrong.
fn json_error(bytes: &[u8]) -> Option<String> {
    /// What the objects hold that servers send instead of a file.
    const MEMBERS: [&str; 7] =
        ["error", "errors", "message", "detail", "status", "statusCode", "path"];
    if bytes.len() > 4096 {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let object = value.as_object()?;
    let is_error = ["error", "errors", "message", "detail"].iter().any(|m| object.contains_key(*m));
    let is_that_alone = object.keys().all(|member| MEMBERS.contains(&member.as_str()));
    (is_error && is_that_alone).then(|| {
        let text = String::from_utf8_lossy(bytes);
        format!("it is a server's error ({}): fetch it again", quoted(text.trim()))
    })
}

/// The first line of a text, without control characters and not longer than an error needs.
fn quoted(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut short: String = line.chars().filter(|c| !c.is_control()).take(QUOTED).collect();
    if line.chars().count() > QUOTED {
        short.push('…');
    }
    format!("`{short}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_checkpoint_is_named_with_the_mend() {
        let pointer =
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 987654321\n";
        for (bytes, words) in [
            (&b""[..], &["empty", "fetch it again"][..]),
            (pointer, &["Git LFS pointer", "987654321 bytes", "git lfs pull"]),
            (
                b"<!DOCTYPE html>\n<html><head><title>Sign in</title>",
                &["web page (`Sign in`)", "fetch it again"],
            ),
            (b"\xef\xbb\xbf <HTML>", &["web page"]),
            (b"{\"error\":\"Repository not found\"}", &["server's error", "Repository not found"]),
            (b"{\"error\": {\"code\": 403}, \"message\": \"no\"}", &["server's error"]),
            (b"Entry not found", &["server's error", "`Entry not found`"]),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied", &["XML", "AccessDenied"]),
            (b"\x1f\x8b\x08\x00", &["gzip", "unpack"]),
            (b"PK\x03\x04\x00\x00", &["ZIP", "PyTorch", "convert"]),
            (b"\x80\x02}q\x00(", &["pickle", "convert"]),
            (b"GGUF\x00\x00\x00\x03", &["big-endian", "gguf-convert-endian"]),
            (b"FUGG\x00\x00\x00\x03", &["big-endian"]),
            (b"GGUF\x01\x00\x00\x00", &["version 1", "convert"]),
            (b"tjgg\x03\x00\x00\x00", &["before GGUF", "convert"]),
            (b"lmgg\x00\x7d\x00\x00", &["before GGUF"]),
        ] {
            let complaint = complaint(bytes).unwrap_or_else(|| panic!("{bytes:?} passes"));
            for word in words {
                assert!(complaint.contains(word), "{complaint} lacks {word}");
            }
        }
    }

    #[test]
    fn what_could_be_a_checkpoint_is_left_to_its_own_reader() {
        for bytes in [
            &b"GGUF\x03\x00\x00\x00\x00"[..],
            b"GGUF\x02\x00\x00\x00",
            b"GGUF",
            b"{\"model_type\": \"llama\", \"message\": \"x\"}",
            b"{}",
            b"\x40\x00\x00\x00\x00\x00\x00\x00{\"a\":{}}",
            b"\x80\x02\x00\x00\x00\x00\x00\x00{\"a\":{}}",
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00{\"a\":{}}",
            b"no checkpoint at all",
        ] {
            assert_eq!(complaint(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_strangers_text_is_quoted_without_escapes_and_cut() {
        let text = format!("404 \u{1b}[31m\u{9b}{}", "x".repeat(1000));
        let complaint = complaint(text.as_bytes()).unwrap();
        assert!(!complaint.contains(char::is_control), "{complaint}");
        assert!(complaint.len() < 300, "{complaint}");
    }
}
