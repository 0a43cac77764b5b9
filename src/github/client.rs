//! Requests to GitHub's API: to one server only, paced and retried by GitHub's rules, and with bounds for time and
//! size.

use super::error::{mend, one_line};
use super::{Environment, Error, Repository, Token};
use reqwest::blocking::Response;
use reqwest::header::{HeaderMap, HeaderValue, ACCEPT, AUTHORIZATION};
use reqwest::{redirect, Method, Url};
use serde::de::DeserializeOwned;
use serde_json::{json, Value};
use std::cell::Cell;
use std::io::Read;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time, which a test replaces by one that passes at once.
pub trait Clock {
    /// The time now.
    fn now(&self) -> SystemTime;
    /// Waits.
    fn sleep(&self, time: Duration);
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// The most tries of one request, the first included.
const TRIES: u32 = 5;

/// How long a client waits.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For a connection.
    connect: Duration,
    /// For one answer, from the connection to its last byte, so that a server that sends a byte a second cannot hold
    /// it for longer.
    answer: Duration,
    /// For all requests without an answer and the tries after them, together.
    lost: Duration,
    /// For each further answer once `lost` is used up, so that the commit status, which comes last, is tried as well.
    last: Duration,
    /// For all waits between tries and all requests without an answer, together.
    whole: Duration,
}

const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(10),
    answer: Duration::from_secs(30),
    lost: Duration::from_secs(90),
    last: Duration::from_secs(10),
    whole: Duration::from_secs(300),
};
/// The first wait when GitHub asks to wait and does not say how long. It is doubled each time.
const SECONDARY: Duration = Duration::from_secs(60);
/// The time that GitHub's rules ask for between two writes.
const BETWEEN_WRITES: Duration = Duration::from_secs(1);
/// The most bytes of an answer: a hundred comments of 65,536 characters, escaped.
const LARGEST: u64 = 64 << 20;
/// More bytes than an answer has that only refuses.
const SHORT: usize = 4096;
/// The most pages of a list, which are ten thousand comments.
const PAGES: usize = 100;

/// A client of GitHub's API for one repository.
pub struct Client {
    http: reqwest::blocking::Client,
    api: Url,
    graphql: Url,
    repository: Repository,
    token: Token,
    clock: Box<dyn Clock>,
    last_write: Cell<Option<SystemTime>>,
    patience: Patience,
    /// How much of `patience.whole` is used up.
    waited: Cell<Duration>,
    /// How much of `patience.lost` is used up.
    lost: Cell<Duration>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Client({} at {})", self.repository, self.api)
    }
}

/// One request, and the permission that it needs.
pub(super) struct Request {
    method: Method,
    url: Url,
    body: Option<Value>,
    permission: &'static str,
}

impl Request {
    pub(super) fn with_query(mut self, query: &[(&str, &str)]) -> Self {
        self.url.query_pairs_mut().extend_pairs(query);
        self
    }

    /// The error of an answer that is not what GitHub's documentation promises.
    pub(super) fn unusable(&self, why: String) -> Error {
        Error::Answer { request: self.name(), why }
    }

    /// How an error names it. The query is left out.
    fn name(&self) -> String {
        format!("{} {}", self.method, self.url.path())
    }

    fn is_write(&self) -> bool {
        self.body.is_some() && !self.url.path().ends_with("/graphql")
    }
}

/// An answer that was read to its end.
pub(super) struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// Why a request failed this time.
pub(super) enum Failure {
    /// There is no answer, or only a part of one, so it is not known whether the request was carried out.
    Lost(String),
    /// An answer that reports no success.
    Answer(Box<Answer>),
}

impl Failure {
    pub(super) fn is(&self, status: u16) -> bool {
        matches!(self, Failure::Answer(answer) if answer.status == status)
    }

    pub(super) fn error(self, client: &Client, request: &Request) -> Error {
        let name = request.name();
        let answer = match self {
            Failure::Lost(why) => return Error::Unreachable { request: name, why },
            Failure::Answer(answer) => answer,
        };
        let message = client.words(&answer.message());
        let mend = mend(answer.status, &message, request.permission);
        let permission = mend.contains(request.permission).then_some(request.permission);
        Error::Refused { request: name, status: answer.status, message, permission, mend }
    }
}

impl Client {
    /// A client for a repository. It uses the proxy of `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, and trusts the
    /// system's certificate authorities or those of `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// There is no token, or an address cannot be used.
    pub fn new(
        environment: &Environment,
        repository: &Repository,
        clock: Box<dyn Clock>,
    ) -> Result<Self, Error> {
        let token = environment.token.clone().ok_or_else(no_token)?;
        let api = address("GITHUB_API_URL", &environment.api)?;
        let graphql = address("GITHUB_GRAPHQL_URL", &environment.graphql)?;
        if graphql.origin() != api.origin() {
            return Err(Error::Invalid(format!(
                "GITHUB_GRAPHQL_URL is at another server than GITHUB_API_URL, {}: the token goes to \
                 one alone",
                api.origin().ascii_serialization()
            )));
        }
        Ok(Client {
            http: http(&token)?,
            api,
            graphql,
            repository: repository.clone(),
            token,
            clock,
            last_write: Cell::new(None),
            patience: PATIENCE,
            waited: Cell::new(Duration::ZERO),
            lost: Cell::new(Duration::ZERO),
        })
    }

    /// The repository.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    pub(super) fn get(&self, path: &[&str], permission: &'static str) -> Request {
        Request { method: Method::GET, url: self.url(path), body: None, permission }
    }

    pub(super) fn post(&self, path: &[&str], permission: &'static str, body: Value) -> Request {
        Request { method: Method::POST, url: self.url(path), body: Some(body), permission }
    }

    pub(super) fn patch(&self, path: &[&str], permission: &'static str, body: Value) -> Request {
        Request { method: Method::PATCH, ..self.post(path, permission, body) }
    }

    /// The address of something of the repository.
    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.api.clone();
        let Repository { owner, name } = &self.repository;
        // an address that cannot have a path was refused by `new`
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["repos", owner, name]).extend(path);
        }
        url
    }

    /// The name of the token's account.
    pub(super) fn viewer(&self) -> Result<String, Error> {
        let request = Request {
            method: Method::POST,
            url: self.graphql.clone(),
            body: Some(json!({ "query": "query{viewer{login}}" })),
            permission: "pull-requests: write",
        };
        let answer: Value = self.parse(&request, &self.send(&request)?)?;
        let login = answer.pointer("/data/viewer/login").and_then(Value::as_str);
        login.map(Into::into).ok_or_else(|| {
            let said = answer.pointer("/errors/0/message").and_then(Value::as_str);
            let why = match said {
                Some(said) => format!("GitHub says {}", self.words(said)),
                None => "it does not name the token's account".into(),
            };
            request.unusable(why)
        })
    }

    /// Sends a request that may be sent twice, until it succeeds or no further try would help.
    pub(super) fn send(&self, request: &Request) -> Result<Answer, Error> {
        let mut tries = 0;
        loop {
            match self.once(request) {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    tries += 1;
                    self.wait(request, failure, tries)?;
                }
            }
        }
    }

    /// The first entry of a list for which `choose` returns something. The list is read page by page.
    pub(super) fn find<T: DeserializeOwned, U>(
        &self,
        first: Request,
        choose: impl Fn(T) -> Option<U>,
    ) -> Result<Option<U>, Error> {
        let mut request = first;
        for _ in 0..PAGES {
            let answer = self.send(&request)?;
            let page: Vec<T> = self.parse(&request, &answer)?;
            if let Some(found) = page.into_iter().find_map(&choose) {
                return Ok(Some(found));
            }
            match self.next(&request, &answer)? {
                Some(url) => request.url = url,
                None => return Ok(None),
            }
        }
        let why = format!("the list has more than {PAGES} pages");
        Err(request.unusable(why))
    }

    pub(super) fn parse<T: DeserializeOwned>(
        &self,
        request: &Request,
        answer: &Answer,
    ) -> Result<T, Error> {
        serde_json::from_slice(&answer.body)
            .map_err(|why| request.unusable(self.words(&why.to_string())))
    }

    /// The address of the next page. It must be at the same server, because the token is sent with the request.
    fn next(&self, request: &Request, answer: &Answer) -> Result<Option<Url>, Error> {
        let Some(next) = answer.header("link").and_then(next) else { return Ok(None) };
        match Url::parse(next) {
            Ok(url) if url.origin() == self.api.origin() && has_no_account(&url) => Ok(Some(url)),
            _ => {
                let why = format!("its next page is at another server: {}", self.words(next));
                Err(request.unusable(why))
            }
        }
    }

    /// Sends a request once.
    pub(super) fn once(&self, request: &Request) -> Result<Answer, Failure> {
        if request.is_write() {
            self.pace();
        }
        let builder = self.http.request(request.method.clone(), request.url.clone());
        // the timeout of a request; the client's would begin anew with each read
        let builder = builder.timeout(self.time_for_an_answer());
        let builder = match &request.body {
            Some(body) => builder.json(body),
            None => builder,
        };
        let begun = Instant::now();
        let answer = builder
            .send()
            .map_err(|error| Failure::Lost(self.words(&causes(&error.without_url()))));
        let answer = answer.and_then(|response| self.whole(response));
        if matches!(answer, Err(Failure::Lost(_))) {
            self.spend(begun.elapsed(), true);
        }
        if request.is_write() {
            self.last_write.set(Some(self.clock.now()));
        }
        match answer? {
            answer if answer.is_success() => Ok(answer),
            answer => Err(Failure::Answer(Box::new(answer))),
        }
    }

    /// How long the next answer may take.
    fn time_for_an_answer(&self) -> Duration {
        let rest = self.patience.lost.saturating_sub(self.lost.get());
        self.patience.answer.min(rest.max(self.patience.last))
    }

    /// Counts time as used up, by a wait or, with `is_lost`, by a request without an answer.
    fn spend(&self, time: Duration, is_lost: bool) {
        self.waited.set(self.waited.get().saturating_add(time));
        if is_lost {
            self.lost.set(self.lost.get().saturating_add(time));
        }
    }

    /// Waits until a second has passed since the last write.
    fn pace(&self) {
        let Some(last) = self.last_write.get() else { return };
        let passed = self.clock.now().duration_since(last).unwrap_or_default();
        if let Some(rest) = BETWEEN_WRITES.checked_sub(passed).filter(|rest| !rest.is_zero()) {
            self.clock.sleep(rest);
        }
    }

    fn whole(&self, response: Response) -> Result<Answer, Failure> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = Vec::new();
        let read = response.take(LARGEST + 1).read_to_end(&mut body);
        read.map_err(|error| Failure::Lost(self.words(&error.to_string())))?;
        if body.len() as u64 > LARGEST {
            return Err(Failure::Lost(format!("the answer has more than {LARGEST} bytes")));
        }
        Ok(Answer { status, headers, body })
    }

    /// Waits until a request that has failed `tries` times may be made again.
    ///
    /// # Errors
    /// No further try would help, or the wait would be too long.
    pub(super) fn wait(
        &self,
        request: &Request,
        failure: Failure,
        tries: u32,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let (pause, is_asked_for) = match &failure {
            Failure::Lost(_) => (backoff(tries), false),
            Failure::Answer(answer) => match answer.pause(tries, now) {
                Some(pause) => pause,
                None => return Err(failure.error(self, request)),
            },
        };
        let is_lost = matches!(failure, Failure::Lost(_));
        let fits = |spent: &Cell<Duration>, most| spent.get().saturating_add(pause) <= most;
        let has_patience = fits(&self.waited, self.patience.whole)
            && (!is_lost || fits(&self.lost, self.patience.lost));
        if tries < TRIES && has_patience {
            self.spend(pause, is_lost);
            self.clock.sleep(pause);
            return Ok(());
        }
        match failure {
            Failure::Answer(answer) if is_asked_for => Err(Error::Limited {
                request: request.name(),
                status: answer.status,
                message: self.words(&answer.message()),
                wait: pause,
                at: now.checked_add(pause).unwrap_or(now),
            }),
            failure => Err(failure.error(self, request)),
        }
    }

    /// Somebody else's text as part of an error. If it contains the token, that is replaced.
    fn words(&self, text: &str) -> String {
        one_line(&text.replace(self.token.secret(), "…"))
    }
}

fn no_token() -> Error {
    Error::Invalid(
        "GITHUB_TOKEN is not set: give the step `env: GITHUB_TOKEN: ${{ github.token }}`".into(),
    )
}

fn address(name: &str, text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).ok();
    let is_usable = |url: &Url| {
        matches!(url.scheme(), "http" | "https") && url.host().is_some() && has_no_account(url)
    };
    url.filter(is_usable)
        .ok_or_else(|| Error::Invalid(format!("{name}: `{}` is no address", one_line(text))))
}

fn has_no_account(url: &Url) -> bool {
    url.username().is_empty() && url.password().is_none()
}

fn http(token: &Token) -> Result<reqwest::blocking::Client, Error> {
    // it fails if a provider has been chosen already, which is then used
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bearer = HeaderValue::from_str(&format!("Bearer {}", token.secret()));
    let mut bearer = bearer
        .map_err(|_| Error::Invalid("GITHUB_TOKEN has characters that no token has".into()))?;
    bearer.set_sensitive(true);
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, bearer);
    headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
    headers.insert("x-github-api-version", HeaderValue::from_static("2022-11-28"));
    let client = reqwest::blocking::Client::builder()
        .user_agent(concat!("kvgate/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(redirect::Policy::none())
        .connect_timeout(PATIENCE.connect)
        .timeout(PATIENCE.answer)
        .build();
    client.map_err(|why| Error::Invalid(format!("no HTTP client: {}", one_line(&causes(&why)))))
}

/// An error of the HTTP client with all its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The wait after so many tries: 1, 2, 4, 8 s.
fn backoff(tries: u32) -> Duration {
    Duration::from_secs(1 << tries.saturating_sub(1).min(8))
}

impl Answer {
    /// Whether the request succeeded. GraphQL reports its rate limit with a status of 200.
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status) && !self.is_limited_query()
    }

    fn is_limited_query(&self) -> bool {
        let is_limit = |body: Value| body.pointer("/errors/0/type") == Some(&json!("RATE_LIMITED"));
        self.status == 200
            && self.body.len() < SHORT
            && serde_json::from_slice(&self.body).is_ok_and(is_limit)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }

    /// GitHub's own message, or, if the answer is that of a proxy, the beginning of its text.
    fn message(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = |value: &Value| value["message"].as_str().map(str::to_owned);
        let details = body["errors"].as_array().into_iter().flatten().take(3);
        let details = details.filter_map(|error| {
            let code = || error["code"].as_str().map(str::to_owned);
            text(error).or_else(code).or_else(|| error.as_str().map(Into::into))
        });
        let all: Vec<_> = text(&body).into_iter().chain(details).collect();
        if all.is_empty() {
            return String::from_utf8_lossy(&self.body[..self.body.len().min(1024)]).into();
        }
        all.join(": ")
    }

    /// How long to wait before another try, if one may help, and whether GitHub asked for the wait.
    fn pause(&self, tries: u32, now: SystemTime) -> Option<(Duration, bool)> {
        let is_limit = self.is_limit();
        if !is_limit && self.status < 500 {
            return None;
        }
        // a wait of 0 would make all tries at once
        let asked = self.number("retry-after").map(|seconds| Duration::from_secs(seconds.max(1)));
        let reset = || {
            let reset = self.number("x-ratelimit-reset").filter(|_| self.is_used_up())?;
            let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
            // a second more, because clocks differ
            Some(Duration::from_secs(reset.saturating_sub(now.as_secs()).saturating_add(1)))
        };
        match asked.or_else(|| reset().filter(|_| is_limit)) {
            Some(pause) => Some((pause, true)),
            None if is_limit => Some((SECONDARY * (1 << tries.saturating_sub(1).min(8)), true)),
            None => Some((backoff(tries), false)),
        }
    }

    fn is_used_up(&self) -> bool {
        self.number("x-ratelimit-remaining") == Some(0)
    }

    /// Whether GitHub asks to try again later. A 403 means either that or that the request is not allowed.
    fn is_limit(&self) -> bool {
        if self.status == 429 || self.is_limited_query() {
            return true;
        }
        let message = self.message().to_lowercase();
        let says = |words| message.contains(words);
        self.status == 403
            && !says("not accessible by")
            && (self.headers.contains_key("retry-after")
                || self.is_used_up()
                || says("rate limit")
                || says("abuse detection"))
    }
}

/// The address of the next page in a `Link` header.
fn next(link: &str) -> Option<&str> {
    link.split(',').find_map(|entry| {
        let (url, parameters) = entry.split_once(';')?;
        let mut parameters = parameters.split(';').map(str::trim);
        let is_next = parameters.any(|p| p == "rel=\"next\"" || p == "rel=next");
        url.trim().strip_prefix('<')?.strip_suffix('>').filter(|_| is_next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
        let headers = headers.iter().map(|(name, value)| {
            (reqwest::header::HeaderName::from_static(name), value.parse().unwrap())
        });
        Answer { status, headers: headers.collect(), body: body.into() }
    }

    fn pause(answer: Answer, tries: u32) -> Option<u64> {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        answer.pause(tries, now).map(|(pause, _)| pause.as_secs())
    }

    #[test]
    fn waits_follow_the_rules() {
        let says = |message| format!("{{\"message\":\"{message}\"}}");
        let secondary = says("You have exceeded a secondary rate limit.");
        let (later, at_once) = ([("retry-after", "7")], [("retry-after", "0")]);
        let used_up = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1030")];
        let some_left = [("x-ratelimit-remaining", "9"), ("x-ratelimit-reset", "1030")];
        assert_eq!(pause(answer(429, &later, ""), 1), Some(7));
        assert_eq!(pause(answer(429, &at_once, ""), 1), Some(1));
        assert_eq!(pause(answer(429, &[], ""), 1), Some(60));
        assert_eq!(pause(answer(403, &later, &secondary), 1), Some(7));
        assert_eq!(pause(answer(403, &[], &secondary), 1), Some(60));
        assert_eq!(pause(answer(403, &[], &secondary), 2), Some(120));
        assert_eq!(pause(answer(403, &used_up, ""), 1), Some(31));
        assert_eq!(pause(answer(403, &some_left, ""), 1), None);
        let never = says("Resource not accessible by integration");
        assert_eq!(pause(answer(403, &used_up, &never), 1), None);
        assert_eq!(pause(answer(404, &later, ""), 1), None);
        assert_eq!(pause(answer(502, &[], ""), 3), Some(4));
        assert_eq!(pause(answer(503, &later, ""), 1), Some(7));
        let query = r#"{"errors":[{"type":"RATE_LIMITED","message":"API rate limit exceeded"}]}"#;
        assert_eq!(pause(answer(200, &used_up, query), 1), Some(31));
    }

    #[test]
    fn hostile_numbers_are_only_long() {
        let max = u64::MAX.to_string();
        assert_eq!(pause(answer(429, &[("retry-after", &max)], ""), 1), Some(u64::MAX));
        let reset = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &max[..])];
        assert!(pause(answer(403, &reset, ""), 1) > Some(1 << 60));
    }

    /// A clock whose sleeps take no time.
    struct Impatient;

    impl Clock for Impatient {
        fn now(&self) -> SystemTime {
            SystemTime::now()
        }

        fn sleep(&self, _: Duration) {}
    }

    /// A client of a server that does with each connection as it is told.
    fn client_of(serve: fn(std::net::TcpStream)) -> Client {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                std::thread::spawn(move || serve(connection));
            }
        });
        let variable = |name: &str| match name {
            "GITHUB_API_URL" => Some(format!("http://{address}")),
            "GITHUB_TOKEN" => Some("secret".into()),
            "GITHUB_REPOSITORY" => Some("owner/name".into()),
            _ => None,
        };
        let environment = Environment::read(&variable).unwrap();
        let repository = environment.repository.clone().unwrap();
        let mut client = Client::new(&environment, &repository, Box::new(Impatient)).unwrap();
        client.patience = Patience {
            connect: Duration::from_secs(1),
            answer: Duration::from_millis(200),
            lost: Duration::from_millis(2500),
            last: Duration::from_millis(100),
            whole: Duration::from_secs(60),
        };
        client
    }

    /// Connections are taken, and nothing is said.
    fn silent(connection: std::net::TcpStream) {
        std::thread::sleep(Duration::from_secs(60));
        drop(connection);
    }

    /// An answer that never ends.
    fn trickling(mut connection: std::net::TcpStream) {
        use std::io::Write;
        let mut request = [0; 4096];
        let Ok(1..) = connection.read(&mut request) else { return };
        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n[");
        while connection.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_server_that_never_answers_holds_nobody() {
        for serve in [silent, trickling] {
            let client = client_of(serve);
            let begun = Instant::now();
            let first = client.send(&client.get(&["pulls"], "pull-requests: write")).map(drop);
            assert!(matches!(first, Err(Error::Unreachable { .. })), "{:?}", first.err());
            // two answers and a second between them; two seconds more would be more than it may spend
            assert!(client.lost.get() > Duration::from_millis(1350), "{:?} {first:?}", client.lost);
            // a second thing has one short try
            client.lost.set(client.patience.lost);
            assert_eq!(client.time_for_an_answer(), Duration::from_millis(100));
            let second = client.send(&client.get(&["issues"], "pull-requests: write"));
            assert!(matches!(second, Err(Error::Unreachable { .. })), "{:?}", second.err());
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            assert!(client.waited.get() >= Duration::from_millis(1200), "{:?}", client.waited);
        }
    }

    #[test]
    fn next_page() {
        let link = r#"<https://h/x?page=1>; rel="prev", <https://h/x?page=3>; rel="next""#;
        assert_eq!(next(link), Some("https://h/x?page=3"));
        assert_eq!(next(r#"<https://h/x?page=1>; rel="last""#), None);
        assert_eq!(next("nonsense"), None);
    }

    #[test]
    fn messages_name_their_details() {
        let body = r#"{"message":"Validation Failed","errors":[{"code":"custom","message":"body is too long"},"x"]}"#;
        assert_eq!(answer(422, &[], body).message(), "Validation Failed: body is too long: x");
        assert_eq!(answer(502, &[], "<html>").message(), "<html>");
    }
}
