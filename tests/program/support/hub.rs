//! A hub on this machine: one repository, one address, and what can go wrong on the way. It answers as
//! the real one does: a list of files, small files behind a relative redirect, large ones behind a
//! redirect to a CDN that serves ranges.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub const REPOSITORY: &str = "org/tiny";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What happens to a transfer.
#[derive(Clone, Copy)]
pub enum Mishap {
    /// The connection ends after so many bytes.
    Drop(usize),
    /// The same, of an answer that does not say how long it is.
    Unannounced(usize),
    /// Nothing comes after so many bytes.
    Stall(usize),
}

/// A file of the repository.
#[derive(Clone)]
struct File {
    bytes: Vec<u8>,
    /// Its hash, which names its blob: SHA-256 for a large file.
    hash: String,
    large: bool,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, File>,
    /// Mishaps of the next transfers, each for one.
    mishaps: VecDeque<Mishap>,
    /// Status and code of every answer, instead of answers.
    refusal: Option<(u16, &'static str)>,
    /// The commit that answers are of, if it is another.
    commit: Option<String>,
    /// Requests without this token are refused as gated.
    token: Option<&'static str>,
    /// Path and range of each request.
    requests: Vec<String>,
}

/// The hub, until the test's process ends.
pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let hub = Hub { endpoint: endpoint.clone(), state: state.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, endpoint) = (state.clone(), endpoint.clone());
                // a client may go away at any time
                std::thread::spawn(move || drop(answer(stream, &state, &endpoint)));
            }
        });
        hub
    }

    pub fn small(&self, name: &str, bytes: &[u8]) {
        // git's own hash is of the content, too; any name will do for a blob
        let hash = format!("{:040x}", self.state().files.len());
        let file = File { bytes: bytes.into(), hash, large: false };
        self.state().files.insert(name.into(), file);
    }

    pub fn large(&self, name: &str, bytes: &[u8], sha256: &str) {
        let file = File { bytes: bytes.into(), hash: sha256.into(), large: true };
        self.state().files.insert(name.into(), file);
    }

    pub fn mishap(&self, mishap: Mishap) {
        self.state().mishaps.push_back(mishap);
    }

    pub fn refuse(&self, status: u16, code: &'static str) {
        self.state().refusal = Some((status, code));
    }

    pub fn answer_with(&self, commit: String) {
        self.state().commit = Some(commit);
    }

    pub fn ask_for(&self, token: &'static str) {
        self.state().token = Some(token);
    }

    /// Paths and ranges of the requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// Ranges in which the CDN was asked for contents since the last call, probes of one byte aside.
    pub fn transfers(&self) -> Vec<String> {
        let of_cdn = |request: String| request.strip_prefix("/cdn/").map(String::from);
        let ranges = self.requests().into_iter().filter_map(of_cdn);
        let ranges = ranges.filter_map(|request| Some(request.split_once(' ')?.1.to_owned()));
        ranges.filter(|range| range != "bytes=0-0").collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>, endpoint: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: BTreeMap<String, String> = reader
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned())))
        .collect();
    let range = headers.get("range").cloned().unwrap_or_default();
    let mut reply = Reply { stream };
    let (refusal, file) = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{path} {range}"));
        let open = state.token.is_none_or(|token| {
            headers.get("authorization").is_some_and(|got| *got == format!("Bearer {token}"))
        });
        let gated = (!open && path.contains("/resolve/")).then_some((403, "GatedRepo"));
        (state.refusal.or(gated), state.file(&path).cloned())
    };
    if let Some((status, code)) = refusal {
        return reply.send(status, &[("X-Error-Code", code.into())], b"refused");
    }
    if path == format!("/api/models/{REPOSITORY}/revision/{COMMIT}?blobs=true") {
        let list = state.lock().unwrap().list();
        return reply.send(200, &[], list.as_bytes());
    }
    let Some(file) = file else {
        return reply.send(404, &[("X-Error-Code", "EntryNotFound".into())], b"no such file");
    };
    let commit = state.lock().unwrap().commit.clone().unwrap_or_else(|| COMMIT.into());
    let commit = ("X-Repo-Commit", commit);
    let quoted = format!("\"{}\"", file.hash);
    if path.starts_with("/cdn/") {
        // as CDNs do, a range of what may be compressed is not served
        let range = headers.get("range").filter(|_| !headers.contains_key("accept-encoding"));
        let mishap = match range.is_some_and(|range| range != "bytes=0-0") {
            true => state.lock().unwrap().mishaps.pop_front(),
            false => None,
        };
        reply.content(&file.bytes, range, &[("ETag", quoted)], mishap)
    } else if file.large {
        let location = format!("{endpoint}/cdn/{}", file.hash);
        let size = file.bytes.len().to_string();
        let linked =
            [commit, ("X-Linked-Etag", quoted), ("X-Linked-Size", size), ("Location", location)];
        reply.send(302, &linked, b"")
    } else if let Some(name) = path.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/")) {
        let location = format!("/api/resolve-cache/models/{REPOSITORY}/{COMMIT}/{name}");
        reply.send(307, &[commit, ("Location", location)], b"")
    } else {
        reply.content(&file.bytes, headers.get("range"), &[commit, ("ETag", quoted)], None)
    }
}

impl State {
    /// The file that an address is of.
    fn file(&self, path: &str) -> Option<&File> {
        if let Some(hash) = path.strip_prefix("/cdn/") {
            return self.files.values().find(|file| file.hash == hash);
        }
        let direct = format!("/{REPOSITORY}/resolve/{COMMIT}/");
        let cached = format!("/api/resolve-cache/models/{REPOSITORY}/{COMMIT}/");
        let name = path.strip_prefix(&direct).or(path.strip_prefix(&cached))?;
        self.files.get(name)
    }

    fn list(&self) -> String {
        let siblings = self.files.iter().map(|(name, file)| {
            let mut entry = serde_json::json!({
                "rfilename": name,
                "size": file.bytes.len(),
                "blobId": file.hash[..40],
            });
            if file.large {
                entry["lfs"] = serde_json::json!({ "sha256": file.hash, "pointerSize": 134 });
            }
            entry
        });
        let siblings: Vec<_> = siblings.collect();
        serde_json::json!({ "id": REPOSITORY, "sha": COMMIT, "siblings": siblings }).to_string()
    }
}

struct Reply {
    stream: TcpStream,
}

impl Reply {
    fn send(
        &mut self,
        status: u16,
        headers: &[(&str, String)],
        body: &[u8],
    ) -> std::io::Result<()> {
        self.head(status, headers, Some(body.len()))?;
        self.stream.write_all(body)
    }

    fn head(
        &mut self,
        status: u16,
        headers: &[(&str, String)],
        length: Option<usize>,
    ) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {status} Said\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(length) = length {
            head += &format!("Content-Length: {length}\r\n");
        }
        self.stream.write_all(format!("{head}\r\n").as_bytes())
    }

    /// A file, or from `bytes=A-B` or `bytes=A-` that part of it.
    fn content(
        &mut self,
        bytes: &[u8],
        range: Option<&String>,
        headers: &[(&str, String)],
        mishap: Option<Mishap>,
    ) -> std::io::Result<()> {
        let Some(range) = range else { return self.send(200, headers, bytes) };
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        if from >= bytes.len() {
            let all = ("Content-Range", format!("bytes */{}", bytes.len()));
            return self.send(416, &[all], b"");
        }
        let to = to.parse().unwrap_or(bytes.len() - 1);
        let part = &bytes[from..=to];
        let mut headers = headers.to_vec();
        headers.push(("Content-Range", format!("bytes {from}-{to}/{}", bytes.len())));
        let length = match mishap {
            Some(Mishap::Unannounced(_)) => None,
            _ => Some(part.len()),
        };
        self.head(206, &headers, length)?;
        match mishap {
            None => self.stream.write_all(part),
            Some(Mishap::Drop(n) | Mishap::Unannounced(n)) => self.stream.write_all(&part[..n]),
            Some(Mishap::Stall(n)) => {
                self.stream.write_all(&part[..n])?;
                std::thread::sleep(Duration::from_secs(600));
                Ok(())
            }
        }
    }
}
