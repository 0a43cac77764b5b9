//! A GitHub on this machine: one repository, its pull requests and comments, and what can go wrong on
//! the way. Every request is checked by GitHub's own description of its API, and so is every answer: what
//! the description does not know fails the test.

use super::environment;
use kvgate::internals::github::{Clock, Environment, Run};
use serde_json::{json, Value};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub const REPOSITORY: &str = "org/model";
pub const BOT: &str = "github-actions[bot]";
pub const TOKEN: &str = "ghs_0123456789verysecret";
pub const BASE: &str = "ba5eba5eba5eba5eba5eba5eba5eba5eba5eba5e";

/// What happens to a request.
pub enum Mishap {
    /// The connection ends, and nothing was done.
    DropBefore,
    /// It is done, and the connection ends without an answer.
    DropAfter,
    /// It is done, and the connection ends within the answer.
    Half,
    /// Another answer, and nothing is done.
    Answer(u16, Vec<(&'static str, String)>, Value),
    /// Something else happens first.
    Meanwhile(Box<dyn FnOnce(&mut State) + Send>, Box<Mishap>),
}

impl Mishap {
    pub fn answer(status: u16, headers: &[(&'static str, &str)], message: &str) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned()));
        Mishap::Answer(status, headers.collect(), refusal(message))
    }
}

fn refusal(message: &str) -> Value {
    json!({ "message": message, "documentation_url": "https://docs.github.com/rest" })
}

/// What the repository has.
#[derive(Default)]
pub struct State {
    pub pulls: Vec<Value>,
    pub comments: Vec<Value>,
    pub statuses: Vec<Value>,
    pub check_runs: Vec<Value>,
    /// The account of the token.
    pub viewer: String,
    /// Characters of a comment that are too many.
    pub longest: usize,
    /// The address of a next page, if it is not the real one.
    pub next: Option<String>,
    mishaps: VecDeque<(&'static str, Mishap)>,
    requests: Vec<String>,
    faults: Vec<String>,
}

impl State {
    /// A comment, by an author.
    pub fn comment(&mut self, author: &str, body: &str) -> u64 {
        let id = 1000 + self.comments.len() as u64;
        let mut comment = description().example("issue-comment");
        comment["id"] = id.into();
        comment["user"]["login"] = author.into();
        comment["body"] = body.into();
        self.comments.push(comment);
        id
    }

    /// Comments of somebody.
    pub fn chat(&mut self, number: usize) {
        for n in 0..number {
            self.comment("octocat", &format!("comment {n}"));
        }
    }

    /// A pull request from a branch.
    pub fn pull(&mut self, number: u64, source: (&str, &str), head: &str, labels: &[&str]) {
        let mut pull = description().example("pull-request");
        pull["number"] = number.into();
        pull["head"]["sha"] = head.into();
        pull["head"]["ref"] = source.1.into();
        pull["head"]["label"] = format!("{}:{}", source.0, source.1).into();
        pull["head"]["repo"]["full_name"] = format!("{}/model", source.0).into();
        pull["base"]["sha"] = BASE.into();
        pull["base"]["ref"] = "main".into();
        pull["base"]["repo"]["full_name"] = REPOSITORY.into();
        let label = &pull["labels"][0];
        let named = |name: &&str| {
            let mut label = label.clone();
            label["name"] = (*name).into();
            label
        };
        pull["labels"] = labels.iter().map(named).collect();
        self.pulls.push(pull);
    }
}

/// GitHub, until the test ends; it fails the test if a request or an answer was not by the description.
pub struct GitHub {
    address: String,
    base: &'static str,
    state: Arc<Mutex<State>>,
}

impl GitHub {
    pub fn new() -> Self {
        GitHub::with_base("")
    }

    /// A server whose API is under a path, as GitHub Enterprise's is.
    pub fn with_base(base: &'static str) -> Self {
        environment::settle();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let viewer = BOT.to_owned();
        let state = State { viewer, longest: 65_536, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = (address.clone(), state.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // a client that goes away is the test's own doing
                let _ = Connection { stream, base, address: &shared.0, state: &shared.1 }.serve();
            }
        });
        GitHub { address, base, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn api(&self) -> String {
        format!("{}{}", self.address, self.base)
    }

    /// Each mishap is for the next request that begins so.
    pub fn fail(&self, request: &'static str, mishap: Mishap) {
        self.state().mishaps.push_back((request, mishap));
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// Takes a fault that a test is about out of the list.
    pub fn forgive(&self, words: &str) {
        let mut state = self.state();
        let before = state.faults.len();
        state.faults.retain(|fault| !fault.contains(words));
        assert_eq!(state.faults.len() + 1, before, "{:?}", state.faults);
    }

    /// What a job sees.
    pub fn environment(&self, more: &[(&str, &str)]) -> Environment {
        let api = self.api();
        let all = [
            ("GITHUB_API_URL", &api[..]),
            ("GITHUB_SERVER_URL", &self.address),
            ("GITHUB_REPOSITORY", REPOSITORY),
            ("GITHUB_TOKEN", TOKEN),
            ("GITHUB_RUN_ID", "50"),
            ("GITHUB_RUN_ATTEMPT", "1"),
        ];
        let all = [more, &all].concat();
        let find = |name: &str| all.iter().find(|(known, _)| *known == name);
        Environment::read(&|name| find(name).map(|(_, value)| (*value).to_owned())).unwrap()
    }
}

impl Drop for GitHub {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let state = self.state();
        let left: Vec<_> = state.mishaps.iter().map(|(request, _)| request).collect();
        assert!(left.is_empty(), "never asked for: {left:?}");
        assert!(state.faults.is_empty(), "{}", state.faults.join("\n"));
    }
}

/// A request as it came.
struct Request {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Option<Value>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| &value[..])
    }

    fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| &value[..])
    }
}

type Answer = (u16, Vec<(&'static str, String)>, Value);

struct Connection<'a> {
    stream: TcpStream,
    base: &'a str,
    address: &'a str,
    state: &'a Mutex<State>,
}

impl Connection<'_> {
    fn serve(mut self) -> std::io::Result<()> {
        let Some(request) = self.read()? else { return Ok(()) };
        let mut state = self.state.lock().unwrap();
        let name = name(&request);
        state.requests.push(name.clone());
        if let Err(fault) = description().check_request(&request) {
            state.faults.push(format!("{name}: {fault}"));
        }
        let mut mishap = match state.mishaps.front() {
            Some((wanted, _)) if name.starts_with(wanted) => state.mishaps.pop_front(),
            _ => None,
        }
        .map(|(_, mishap)| mishap);
        if let Some(Mishap::Meanwhile(act, then)) = mishap {
            act(&mut state);
            mishap = Some(*then);
        }
        let answer = match &mishap {
            Some(Mishap::DropBefore) => return Ok(()),
            Some(Mishap::Answer(status, headers, body)) => (*status, headers.clone(), body.clone()),
            _ => self.answer(&request, &mut state),
        };
        if let Err(fault) = description().check_answer(&request, &answer) {
            state.faults.push(format!("{name}: the answer: {fault}"));
        }
        drop(state);
        match mishap {
            Some(Mishap::DropAfter) => Ok(()),
            Some(Mishap::Half) => self.write(&answer, 2),
            _ => self.write(&answer, 1),
        }
    }

    fn read(&mut self) -> std::io::Result<Option<Request>> {
        let mut reader = BufReader::new(&mut self.stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut parts = line.split(' ');
        let (Some(method), Some(target)) = (parts.next(), parts.next()) else { return Ok(None) };
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let url = reqwest::Url::parse(self.address).unwrap().join(target).unwrap();
        let path = url.path();
        let query = url.query_pairs().map(|(name, value)| (name.into(), value.into()));
        let graphql = match self.base {
            "" => "/graphql",
            _ => "/api/graphql",
        };
        let path = match path.strip_prefix(self.base) {
            _ if path == graphql => "/graphql".into(),
            // as GitHub's own links have it
            Some(path) => path.replace("/repositories/1296269/", "/repos/org/model/"),
            None => format!("not under {}: {path}", self.base),
        };
        let mut request =
            Request { method: method.into(), path, query: query.collect(), headers, body: None };
        if let Some(length) = request.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body)?;
            request.body = serde_json::from_slice(&body).ok();
        }
        Ok(Some(request))
    }

    fn write(&mut self, (status, headers, body): &Answer, part: usize) -> std::io::Result<()> {
        let body = body.to_string();
        write!(self.stream, "HTTP/1.1 {status} Status\r\nconnection: close\r\n")?;
        for (name, value) in headers {
            write!(self.stream, "{name}: {value}\r\n")?;
        }
        let (length, sent) = (body.len(), &body.as_bytes()[..body.len() / part]);
        write!(self.stream, "content-type: application/json\r\ncontent-length: {length}\r\n\r\n")?;
        self.stream.write_all(sent)
    }

    fn answer(&self, request: &Request, state: &mut State) -> Answer {
        let path: Vec<_> = request.path.split('/').skip(1).collect();
        let body = request.body.clone().unwrap_or_default();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        match (&request.method[..], &path[..]) {
            ("POST", ["graphql"]) => {
                (200, Vec::new(), json!({ "data": { "viewer": { "login": state.viewer } } }))
            }
            ("GET", ["repos", _, _, "pulls"]) => (200, Vec::new(), listed(request, state)),
            ("GET", ["repos", _, _, "pulls", number]) => {
                let is_it = |pull: &&Value| pull["number"].as_u64() == number.parse().ok();
                found(200, state.pulls.iter().find(is_it).cloned())
            }
            ("GET", ["repos", _, _, "issues", _, "comments"]) => self.page(request, state),
            ("POST", ["repos", _, _, "issues", _, "comments"]) => {
                if text("body").chars().count() > state.longest {
                    return too_long(state.longest);
                }
                let author = state.viewer.clone();
                state.comment(&author, &text("body"));
                found(201, state.comments.last().cloned())
            }
            ("PATCH", ["repos", _, _, "issues", "comments", id]) => {
                if text("body").chars().count() > state.longest {
                    return too_long(state.longest);
                }
                let is_it = |comment: &&mut Value| comment["id"].as_u64() == id.parse().ok();
                let comment = state.comments.iter_mut().find(is_it);
                found(
                    200,
                    comment.map(|comment| {
                        comment["body"] = text("body").into();
                        comment.clone()
                    }),
                )
            }
            ("POST", ["repos", _, _, "statuses", _]) => {
                let mut status = description().example("status");
                merge(&mut status, &body);
                state.statuses.push(body);
                (201, Vec::new(), status)
            }
            ("POST", ["repos", _, _, "check-runs"]) => {
                let mut run = description().example("check-run");
                merge(&mut run, &body);
                state.check_runs.push(body);
                (201, Vec::new(), run)
            }
            _ => (404, Vec::new(), refusal("Not Found")),
        }
    }

    /// A page of comments, with links as GitHub makes them.
    fn page(&self, request: &Request, state: &State) -> Answer {
        let number =
            |name: &str, or: usize| request.query(name).map_or(Ok(or), str::parse).unwrap();
        let (size, page) = (number("per_page", 30).min(100), number("page", 1));
        let start = ((page - 1) * size).min(state.comments.len());
        let end = (start + size).min(state.comments.len());
        let mut headers = Vec::new();
        if end < state.comments.len() {
            let path = request.path.replace("/repos/org/model/", "/repositories/1296269/");
            let url = format!("{}{}{path}?per_page={size}&page=", self.address, self.base);
            let next = state.next.clone().unwrap_or_else(|| format!("{url}{}", page + 1));
            let last = state.comments.len().div_ceil(size);
            let links = format!("<{next}>; rel=\"next\", <{url}{last}>; rel=\"last\"");
            headers.push(("link", links));
        }
        (200, headers, state.comments[start..end].into())
    }
}

fn found(status: u16, value: Option<Value>) -> Answer {
    match value {
        Some(value) => (status, Vec::new(), value),
        None => (404, Vec::new(), refusal("Not Found")),
    }
}

fn too_long(longest: usize) -> Answer {
    let message = format!("body is too long (maximum is {longest} characters)");
    let error = json!({
        "resource": "IssueComment", "code": "custom", "field": "body", "message": message,
    });
    let mut body = refusal("Validation Failed");
    body["errors"] = json!([error]);
    (422, Vec::new(), body)
}

/// Pull requests as GitHub filters them.
fn listed(request: &Request, state: &State) -> Value {
    let head = request.query("head").filter(|head| head.contains(':'));
    let is_listed = |pull: &&Value| {
        let is_open = request.query("state").unwrap_or("open") == pull["state"];
        is_open && head.is_none_or(|head| pull["head"]["label"] == head)
    };
    state.pulls.iter().filter(is_listed).cloned().collect()
}

fn merge(into: &mut Value, from: &Value) {
    for (name, value) in from.as_object().into_iter().flatten() {
        match (into.get_mut(name), value) {
            (Some(old @ Value::Object(_)), Value::Object(_)) => merge(old, value),
            _ => into[name] = value.clone(),
        }
    }
}

/// A request as tests name it.
fn name(request: &Request) -> String {
    let path = request.path.strip_prefix("/repos/org/model/").unwrap_or(&request.path);
    let query: Vec<_> =
        request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{} {path}{mark}{}", request.method, query.join("&"))
}

/// GitHub's description of its API.
struct Description(Value);

fn description() -> &'static Description {
    static DESCRIPTION: OnceLock<Description> = OnceLock::new();
    DESCRIPTION.get_or_init(|| {
        let text = include_str!("../../fixtures/github-openapi.json");
        Description(serde_json::from_str(text).unwrap())
    })
}

impl Description {
    fn example(&self, name: &str) -> Value {
        let example = &self.0["examples"][name];
        assert!(!example.is_null(), "no example of {name}");
        example.clone()
    }

    /// What a reference names.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(name) => self.0.pointer(name.trim_start_matches('#')).expect(name),
            None => value,
        }
    }

    /// The operation, and what its path's parameters are.
    fn operation(&self, request: &Request) -> Option<(&Value, Vec<(String, String)>)> {
        let parts: Vec<_> = request.path.split('/').collect();
        self.0["paths"].as_object().unwrap().iter().find_map(|(template, methods)| {
            let template: Vec<_> = template.split('/').collect();
            let mut parameters = Vec::new();
            let is_it = template.len() == parts.len()
                && template.iter().zip(&parts).all(|(wanted, part)| {
                    let name = wanted.strip_prefix('{').and_then(|name| name.strip_suffix('}'));
                    parameters.extend(name.map(|name| (name.to_owned(), (*part).to_owned())));
                    name.is_some() || wanted == part
                });
            let operation = methods.get(request.method.to_lowercase())?;
            is_it.then_some((operation, parameters))
        })
    }

    fn check_request(&self, request: &Request) -> Result<(), String> {
        for (name, wanted) in [
            ("accept", "application/vnd.github+json"),
            ("x-github-api-version", "2022-11-28"),
            ("user-agent", concat!("kvgate/", env!("CARGO_PKG_VERSION"))),
            ("authorization", &format!("Bearer {TOKEN}")),
        ] {
            let found = request.header(name);
            (found == Some(wanted)).then_some(()).ok_or(format!("{name}: {found:?}"))?;
        }
        if request.path == "/graphql" {
            // the description is of REST
            let wanted = json!({ "query": "query{viewer{login}}" });
            return match (&request.method[..], &request.body) {
                ("POST", Some(body)) if *body == wanted => Ok(()),
                (method, body) => Err(format!("no query of ours: {method} {body:?}")),
            };
        }
        let (operation, in_path) = self.operation(request).ok_or("GitHub has no such operation")?;
        self.check_parameters(operation, "path", &in_path)?;
        self.check_parameters(operation, "query", &request.query)?;
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        match (&request.body, schema) {
            (None, Value::Null) => Ok(()),
            (Some(_), Value::Null) => Err("it has no body".into()),
            (None, _) => Err("it has no body of JSON".into()),
            (Some(_), _) if request.header("content-type") != Some("application/json") => {
                Err("its body is not said to be JSON".into())
            }
            (Some(body), schema) => {
                // GitHub takes no notice of what it does not know: here it is a mistake
                let mut schema = schema.clone();
                schema["additionalProperties"] = false.into();
                self.check(&schema, body)
            }
        }
    }

    fn check_parameters(
        &self,
        operation: &Value,
        place: &str,
        given: &[(String, String)],
    ) -> Result<(), String> {
        let known = operation["parameters"].as_array().into_iter().flatten();
        let known: Vec<_> = known.map(|p| self.resolve(p)).filter(|p| p["in"] == place).collect();
        for (name, value) in given {
            let parameter = known.iter().find(|parameter| parameter["name"] == **name);
            let schema = &parameter.ok_or(format!("no parameter `{name}`"))?["schema"];
            let value = match schema["type"] == "integer" {
                true => value.parse::<i64>().map_or(Value::Null, Value::from),
                false => Value::from(&value[..]),
            };
            self.check(schema, &value).map_err(|why| format!("{name}: {why}"))?;
        }
        let is_given = |p: &&Value| given.iter().any(|(name, _)| p["name"] == **name);
        match known.into_iter().find(|p| p["required"] == true && !is_given(p)) {
            Some(missing) => Err(format!("{} is missing", missing["name"])),
            None => Ok(()),
        }
    }

    /// An answer that the description knows is by it.
    fn check_answer(&self, request: &Request, (status, _, body): &Answer) -> Result<(), String> {
        let Some((operation, _)) = self.operation(request) else { return Ok(()) };
        let answer = &operation["responses"][status.to_string()];
        let schema = &self.resolve(answer)["content"]["application/json"]["schema"];
        match (schema, *status) {
            (Value::Null, 200..=299) => Err(format!("the description has no {status}")),
            (Value::Null, _) => Ok(()),
            (schema, _) => self.check(schema, body),
        }
    }

    fn check(&self, schema: &Value, instance: &Value) -> Result<(), String> {
        let mut schema = schema.clone();
        schema["components"] = self.0["components"].clone();
        let options = jsonschema::options().should_validate_formats(true);
        let validator = options.with_draft(jsonschema::Draft::Draft202012).build(&schema).unwrap();
        let errors: Vec<_> = validator
            .iter_errors(instance)
            .map(|error| format!("{}: {error:.300}", error.instance_path()))
            .collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors.join("; "))
        }
    }
}

/// A clock that a sleep moves on at once, and that remembers.
#[derive(Clone)]
pub struct Time(Rc<(Cell<SystemTime>, RefCell<Vec<Duration>>)>);

impl Time {
    pub const START: u64 = 1_800_000_000;

    pub fn new() -> Self {
        let start = UNIX_EPOCH + Duration::from_secs(Time::START);
        Time(Rc::new((Cell::new(start), RefCell::default())))
    }

    /// Seconds slept since the last call.
    pub fn slept(&self) -> Vec<u64> {
        self.0 .1.take().iter().map(Duration::as_secs).collect()
    }
}

impl Clock for Time {
    fn now(&self) -> SystemTime {
        self.0 .0.get()
    }

    fn sleep(&self, time: Duration) {
        self.0 .0.set(self.now() + time);
        self.0 .1.borrow_mut().push(time);
    }
}

/// The last lines of a comment.
pub fn marker(id: &str, run: Run, head: &str, hash: &str) -> String {
    let Run { id: number, attempt } = run;
    format!(
        "<!-- kvgate:v1 id={id} -->\n\
         <!-- kvgate-data: run={number} attempt={attempt} head={head} hash={hash} -->"
    )
}
