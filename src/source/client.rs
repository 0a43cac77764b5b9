//! The client of the hub. `hf-hub` provides transfers, resuming and the layout of the cache. This module adds what it
//! leaves open: which files are fetched, that only one process fetches at a time, retries after a broken connection,
//! checks of what arrived, and errors that say what to do.

use crate::progress::Progress;
use crate::source::pinned::{
    cache, home, shards, variable, HubError, Pinned, ADAPTER, CONFIG, INDEX, OPTIONAL,
    QUANTIZATION_FILES, TOKENIZER, WEIGHTS,
};
use crate::text::numbers::bytes;
use crate::text::suggest::nearest;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::api::Progress as _;
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const ENDPOINT: &str = "https://huggingface.co";

/// The longest wait for the list of files, or for [`LEAST`] bytes of a file.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many bytes a connection must bring in that time. A slower one is given up, since a byte a second is of no use.
const LEAST: usize = 16 << 10;

/// Fetches all files of a checkpoint that are not in the cache yet.
pub(super) fn fetch(
    pinned: &Pinned,
    own_tokenizer: bool,
    progress: Progress,
) -> Result<(), HubError> {
    let _lock = one_at_a_time(pinned, progress)?;
    // another process may have fetched some files in the meantime
    if pinned.missing(own_tokenizer).is_empty() {
        return Ok(());
    }
    progress("asking the hub", 0, 0);
    let client = Client::new(pinned, progress)?;
    match &pinned.file {
        Some(_) => pinned.weights().iter().try_for_each(|file| client.get(file)),
        None => client.safetensors(own_tokenizer),
    }
}

/// Fetches files that a commit need not have, and notes those that it does not have.
pub(super) fn fetch_optional(pinned: &Pinned) -> Result<(), HubError> {
    let progress: Progress = &|_, _, _| {};
    let _lock = one_at_a_time(pinned, progress)?;
    if pinned.unasked().is_empty() {
        return Ok(());
    }
    Client::new(pinned, progress)?.optional()
}

/// Waits until no other process of kvgate fetches this commit, since otherwise both would fetch the same files.
fn one_at_a_time(pinned: &Pinned, progress: Progress) -> Result<File, HubError> {
    let folder = cache().join(".locks").join(pinned.folder_name());
    let path = folder.join(format!("kvgate-{}.lock", pinned.revision));
    let lock = || {
        fs::create_dir_all(&folder)?;
        let file = File::create(&path)?;
        if file.try_lock().is_err() {
            progress("waiting for another process that fetches it", 0, 0);
            file.lock()?;
        }
        Ok(file)
    };
    lock().map_err(|error| HubError::Cache { path: path.clone(), error })
}

/// A commit's list of files, as the hub gives it.
#[derive(Deserialize)]
struct Listing {
    siblings: Vec<Entry>,
}

/// A file in the list.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "rfilename")]
    name: String,
    size: Option<u64>,
    /// Git's hash, which names the blob in the cache if the file is not large.
    #[serde(rename = "blobId")]
    git: Option<String>,
    lfs: Option<Large>,
}

/// What the list says about a large file.
#[derive(Deserialize)]
struct Large {
    sha256: String,
}

/// A connection to one commit on the hub.
struct Client<'a> {
    pinned: &'a Pinned,
    progress: Progress<'a>,
    endpoint: String,
    has_token: bool,
    api: Api,
    repo: Repo,
    /// How long the list of files, or [`LEAST`] bytes of a file, may take.
    patience: Duration,
    listed: BTreeMap<String, Entry>,
}

impl<'a> Client<'a> {
    /// Connects and asks for the list of files.
    fn new(pinned: &'a Pinned, progress: Progress<'a>) -> Result<Self, HubError> {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let token = token();
        let has_token = token.is_some();
        let api = ApiBuilder::from_cache(Cache::new(cache()))
            .with_endpoint(endpoint.clone())
            .with_token(token)
            .with_user_agent("kvgate", env!("CARGO_PKG_VERSION"))
            .build();
        let api = api.map_err(|error| HubError::Unreachable {
            pinned: Box::new(pinned.clone()),
            why: error.to_string(),
        })?;
        let (repository, revision) = (pinned.repository.clone(), pinned.revision.clone());
        let repo = Repo::with_revision(repository, RepoType::Model, revision);
        let (patience, listed) = (PATIENCE, BTreeMap::new());
        let mut client =
            Client { pinned, progress, endpoint, has_token, api, repo, patience, listed };
        client.listed = client.list()?;
        Ok(client)
    }

    fn list(&self) -> Result<BTreeMap<String, Entry>, HubError> {
        let request = self.api.repo(self.repo.clone()).info_request();
        let list = request.query("blobs", "true").timeout(self.patience).call();
        let list = list.map_err(|error| self.request_error(error, "such revision"))?;
        let list: Listing = list.into_json().map_err(|error| self.answer(error.to_string()))?;
        Ok(list.siblings.into_iter().map(|entry| (entry.name.clone(), entry)).collect())
    }

    /// The files to fetch, the small ones first. If the weights are there, so are all others then.
    fn safetensors(&self, own_tokenizer: bool) -> Result<(), HubError> {
        self.get(CONFIG)?;
        if own_tokenizer {
            self.get(TOKENIZER)?;
        }
        self.optional()?;
        // files for which a checkpoint is refused, so that it is also refused if another program fetched it whole
        for file in QUANTIZATION_FILES.into_iter().chain([ADAPTER]) {
            if self.listed.contains_key(file) {
                self.get(file)?;
            }
        }
        if self.listed.contains_key(WEIGHTS) || !self.listed.contains_key(INDEX) {
            return self.get(WEIGHTS);
        }
        self.get(INDEX)?;
        let index = self.pinned.cached(INDEX);
        let shards = shards(&index).ok_or_else(|| HubError::Damaged {
            path: index.clone(),
            why: "it does not name the files of the weights".into(),
        })?;
        shards.iter().try_for_each(|file| self.get(file))
    }

    /// Fetches the optional files that the commit has, and writes a note for each that it does not have.
    fn optional(&self) -> Result<(), HubError> {
        for file in OPTIONAL {
            if self.listed.contains_key(file) {
                self.get(file)?;
                continue;
            }
            let note = self.pinned.absent(file);
            let written = fs::create_dir_all(note.parent().unwrap_or(&note))
                .and_then(|()| File::create(&note));
            written.map_err(|error| HubError::Cache { path: note, error })?;
        }
        Ok(())
    }

    /// Fetches a file, unless it is there.
    fn get(&self, file: &str) -> Result<(), HubError> {
        let path = self.pinned.cached(file);
        if path.exists() {
            return Ok(());
        }
        let entry = self.listed.get(file).ok_or_else(|| self.no_file(file))?;
        let blob = entry.blob(&self.pinned.home());
        let prepared = prepare(entry, blob.as_deref(), &path);
        if prepared.map_err(|error| HubError::Cache { path: path.clone(), error })? {
            return Ok(());
        }
        let part = blob.as_ref().map(|blob| blob.with_extension("part"));
        let arrived = || part.as_ref().and_then(|part| fs::metadata(part).ok()).map(|m| m.len());
        loop {
            let before = arrived().unwrap_or(0);
            let told = Told::new(self.progress, file);
            match self.download(file, told) {
                Ok(got) if got == path => return self.check(entry, path),
                Ok(_) => return Err(self.answer(format!("its `{file}` is of another commit"))),
                // a broken transfer is resumed as long as each attempt brings something
                Err(ApiError::IoError(error))
                    if error.kind() != io::ErrorKind::TimedOut && arrived() > Some(before) => {}
                Err(error) => return Err(self.error(error, file)),
            }
        }
    }

    /// Makes one attempt to transfer a file. `hf-hub` would wait for a silent server for ever, so it runs in its own
    /// thread. If too little arrives for too long, that thread is abandoned, and keeps the file's lock and an open
    /// connection until the process ends.
    fn download(&self, file: &str, mut told: Told) -> Result<PathBuf, ApiError> {
        let (sender, events) = mpsc::channel();
        let (api, name) = (self.api.repo(self.repo.clone()), file.to_owned());
        let finished = sender.clone();
        std::thread::spawn(move || {
            let got = api.download_with_progress(&name, Sent(sender));
            // if it comes too late, nobody listens any more
            let _ = finished.send(Event::End(got));
        });
        let mut watch = Watch::new(self.patience);
        loop {
            match events.recv_timeout(watch.rest()) {
                Ok(Event::End(got)) => return got,
                Ok(Event::Size(size)) => told.init(size, file),
                Ok(Event::Bytes(bytes)) => {
                    watch.came(bytes);
                    told.update(bytes);
                }
                Ok(Event::Finish) => told.finish(),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the transfer ended without a word").into());
                }
            }
            if watch.is_over() {
                let why = format!("fewer than {LEAST} bytes came in {} s", self.patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why).into());
            }
        }
    }

    /// Removes a file that has the wrong length.
    fn check(&self, entry: &Entry, path: PathBuf) -> Result<(), HubError> {
        let found = fs::metadata(&path)
            .map_err(|error| HubError::Cache { path: path.clone(), error })?
            .len();
        match entry.size {
            Some(size) if size != found => {
                let blob = fs::canonicalize(&path);
                let removed = blob.and_then(fs::remove_file).and_then(|()| fs::remove_file(&path));
                removed.map_err(|error| HubError::Cache { path, error })?;
                let why = format!("{found} bytes arrived, the hub lists {size}");
                Err(self.answer(why))
            }
            _ => Ok(()),
        }
    }

    fn no_file(&self, file: &str) -> HubError {
        let others = || self.listed.keys().map(String::as_str);
        let weights: Vec<_> = others().filter(|name| name.ends_with(".gguf")).take(8).collect();
        let has = match (nearest(file, others()), weights.as_slice()) {
            (Some(meant), _) => format!("; did you mean `{meant}`?"),
            (None, []) => String::new(),
            (None, weights) => format!("; it has the GGUF files {}", weights.join(", ")),
        };
        HubError::NoFile { pinned: Box::new(self.pinned.clone()), file: file.into(), has }
    }

    fn error(&self, error: ApiError, file: &str) -> HubError {
        let pinned = Box::new(self.pinned.clone());
        match error {
            ApiError::RequestError(error) => self.request_error(*error, &format!("`{file}`")),
            ApiError::IoError(error) => {
                HubError::Interrupted { pinned, file: file.into(), why: error.to_string() }
            }
            ApiError::LockAcquisition(_) => HubError::Interrupted {
                pinned,
                file: file.into(),
                why: "another program fetches it".into(),
            },
            other => self.answer(format!("`{file}`: {other}")),
        }
    }

    /// The error for a failed connection or an HTTP status. `what` was asked for.
    fn request_error(&self, error: ureq::Error, what: &str) -> HubError {
        let pinned = Box::new(self.pinned.clone());
        let (status, response) = match error {
            ureq::Error::Status(status, response) => (status, response),
            ureq::Error::Transport(error) => {
                return HubError::Unreachable { pinned, why: error.to_string() };
            }
        };
        let code = response.header("x-error-code").unwrap_or(response.status_text());
        let answer = format!("{status} {code}");
        match status {
            401 | 403 => HubError::Refused {
                pinned,
                answer,
                page: format!("{}/{}", self.endpoint, self.pinned.repository),
                token: if self.has_token {
                    "use a token of that account: the one in use has no access"
                } else {
                    "set HF_TOKEN to a token of your account"
                },
            },
            404 => HubError::NotFound { pinned, what: what.into(), answer },
            _ => self.answer(answer),
        }
    }

    fn answer(&self, why: String) -> HubError {
        HubError::Answer {
            pinned: Box::new(self.pinned.clone()),
            endpoint: self.endpoint.clone(),
            why,
        }
    }
}

impl Entry {
    /// The place of a file among the blobs of a repository.
    fn blob(&self, home: &Path) -> Option<PathBuf> {
        let name = self.lfs.as_ref().map(|large| &large.sha256).or(self.git.as_ref())?;
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_name.then(|| home.join("blobs").join(name))
    }
}

/// Prepares the cache for a transfer. Returns whether none is needed, because another commit has the same file.
fn prepare(entry: &Entry, blob: Option<&Path>, path: &Path) -> io::Result<bool> {
    if path.is_symlink() {
        // the link's blob is gone
        fs::remove_file(path)?;
    }
    let (Some(blob), Some(size)) = (blob, entry.size) else { return Ok(false) };
    if fs::metadata(blob).is_ok_and(|blob| blob.len() == size) {
        return link(blob, path, &entry.name);
    }
    // a partial file may be complete if its process died just then; the hub cannot serve bytes after the end, so the
    // last byte is fetched again
    let part = blob.with_extension("part");
    match fs::metadata(&part) {
        Ok(found) if found.len() > size => fs::remove_file(&part)?,
        Ok(found) if found.len() == size && size > 0 => {
            OpenOptions::new().write(true).open(&part)?.set_len(size - 1)?;
        }
        _ => {}
    }
    Ok(false)
}

/// Links a commit's file to its blob, relative to `snapshots/COMMIT/FILE`. Returns whether it is linked now.
#[cfg(unix)]
fn link(blob: &Path, path: &Path, file: &str) -> io::Result<bool> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    let up = "../".repeat(2 + file.matches('/').count());
    let blob = blob.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(blob), path)?;
    Ok(true)
}

/// On other systems creating a link may need rights that the user does not have.
#[cfg(not(unix))]
fn link(_: &Path, _: &Path, _: &str) -> io::Result<bool> {
    Ok(false)
}

/// The token from the environment, or the one that `hf auth login` stored.
fn token() -> Option<String> {
    let file = || variable("HF_TOKEN_PATH").map_or_else(|| home().join("token"), PathBuf::from);
    let token = variable("HF_TOKEN").or_else(|| fs::read_to_string(file()).ok())?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// What the thread of a transfer reports.
enum Event {
    Size(usize),
    Bytes(usize),
    Finish,
    End(Result<PathBuf, ApiError>),
}

/// The sending end, in the thread of a transfer.
struct Sent(mpsc::Sender<Event>);

impl hf_hub::api::Progress for Sent {
    fn init(&mut self, size: usize, _: &str) {
        let _ = self.0.send(Event::Size(size));
    }

    fn update(&mut self, bytes: usize) {
        let _ = self.0.send(Event::Bytes(bytes));
    }

    fn finish(&mut self) {
        let _ = self.0.send(Event::Finish);
    }
}

/// Watches whether enough bytes arrive.
struct Watch {
    patience: Duration,
    since: Instant,
    bytes: usize,
}

impl Watch {
    fn new(patience: Duration) -> Self {
        Watch { patience, since: Instant::now(), bytes: 0 }
    }

    fn came(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= LEAST {
            *self = Watch::new(self.patience);
        }
    }

    fn rest(&self) -> Duration {
        self.patience.saturating_sub(self.since.elapsed())
    }

    fn is_over(&self) -> bool {
        self.rest().is_zero()
    }
}

/// Reports the progress of a transfer, each time that some bytes have arrived.
struct Told<'a> {
    progress: Progress<'a>,
    file: &'a str,
    what: String,
    done: u64,
    size: u64,
    told: u64,
}

/// Bytes between two reports.
const STRIDE: u64 = 1 << 20;

impl<'a> Told<'a> {
    fn new(progress: Progress<'a>, file: &'a str) -> Self {
        Told { progress, file, what: String::new(), done: 0, size: 0, told: 0 }
    }

    fn report(&mut self) {
        self.told = self.done;
        (self.progress)(&self.what, self.done, self.size);
    }
}

impl hf_hub::api::Progress for Told<'_> {
    fn init(&mut self, size: usize, _: &str) {
        // this is called twice
        if self.what.is_empty() {
            self.size = size as u64;
            self.what = format!("fetching {} ({})", self.file, bytes(self.size as f64));
            self.report();
        }
    }

    fn update(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if self.done >= self.told + STRIDE {
            self.report();
        }
    }

    fn finish(&mut self) {
        self.report();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    /// Answers what the client asks for first, and then sends a byte now and then, or nothing at all.
    fn serve(mut connection: TcpStream, is_silent: bool) {
        let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
        while !request.ends_with(b"\r\n\r\n") {
            match connection.read(&mut chunk) {
                Ok(read) if read > 0 => request.extend_from_slice(&chunk[..read]),
                _ => return,
            }
        }
        if is_silent {
            return std::thread::sleep(Duration::from_secs(60));
        }
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nx-repo-commit: {COMMIT}\r\netag: \"abc\"\r\n\
             content-range: bytes 0-0/100000\r\nconnection: close\r\n"
        );
        if request.windows(9).any(|window| window == b"bytes=0-0") {
            let _ = connection.write_all(format!("{head}content-length: 1\r\n\r\nx").as_bytes());
            return;
        }
        let _ = connection.write_all(format!("{head}content-length: 100000\r\n\r\n").as_bytes());
        while connection.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_hub_that_says_nothing_or_next_to_nothing_is_given_up() {
        for is_silent in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            std::thread::spawn(move || {
                for connection in listener.incoming().flatten() {
                    std::thread::spawn(move || serve(connection, is_silent));
                }
            });
            let folder = tempfile::tempdir().unwrap();
            let api = ApiBuilder::from_cache(Cache::new(folder.path().into()));
            let pinned: Pinned = format!("hf:org/name@{COMMIT}").parse().unwrap();
            let client = Client {
                pinned: &pinned,
                progress: &|_, _, _| {},
                endpoint: endpoint.clone(),
                has_token: false,
                api: api.with_endpoint(endpoint).with_token(None).build().unwrap(),
                repo: Repo::with_revision("org/name".into(), RepoType::Model, COMMIT.into()),
                patience: Duration::from_millis(500),
                listed: BTreeMap::new(),
            };
            let begun = Instant::now();
            let got = client.download("config.json", Told::new(client.progress, "config.json"));
            let Err(ApiError::IoError(error)) = got else { panic!("{got:?}") };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            assert!(matches!(client.list(), Err(HubError::Unreachable { .. })) || !is_silent);
        }
    }
}
