//! The test target: each case of the policy is a test that `cargo test` and nextest run.

use crate::gate::{self, Case};
use crate::golden;
use crate::kv::codec::{self, Codec, RegisterError};
use crate::measure::stats::Position;
use crate::out;
use crate::progress;
use crate::report::{self, sidecar, Outputs, Report};
use crate::results::{CaseResult, Measurement};
use crate::store::Store;
use crate::text;
use crate::verdict::Verdict;
use libtest_mimic::{Arguments, Completion, Conclusion, Failed, FormatSetting, Trial};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};

/// What libtest exits with when something failed.
const FAILED: u8 = 101;

/// Runs the gate of `thresholds.toml` beside the package's `Cargo.toml` (`KVGATE_CONFIG` names
/// another) with the arguments of the command line, as libtest would.
///
/// All that a model repository's test target needs, with `harness = false`:
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     kvgate::main()
/// }
/// ```
#[must_use = "return it from main: it is the verdict"]
pub fn main() -> ExitCode {
    let (arguments, filters) = arguments();
    let config = std::env::var_os("KVGATE_CONFIG").map_or("thresholds.toml".into(), PathBuf::from);
    match run(&config, arguments, &filters) {
        Ok(code) => code,
        Err(message) => {
            out::tell(message);
            ExitCode::from(FAILED)
        }
    }
}

/// The gate of a repository that has codecs of its own.
///
/// ```no_run
/// # use kvgate::kv::codec::Codec;
/// # fn gate(my_codec: impl Codec + 'static) -> std::process::ExitCode {
/// kvgate::Gate::new().codec(my_codec).main()
/// # }
/// ```
#[derive(Default)]
pub struct Gate {
    /// Why a codec could not be added.
    faults: Vec<RegisterError>,
}

impl Gate {
    /// The gate as [`main()`] runs it.
    pub fn new() -> Self {
        Gate::default()
    }

    /// Adds a codec: schemes may name it, and its name and version are conditions of their goldens.
    pub fn codec(mut self, codec: impl Codec + 'static) -> Self {
        // schemes refer to codecs for the life of the process
        let codec: &'static dyn Codec = Box::leak(Box::new(codec));
        self.faults.extend(codec::register(codec).err());
        self
    }

    /// The test target: as [`main()`].
    #[must_use = "return it from main: it is the verdict"]
    pub fn main(self) -> ExitCode {
        self.or_faults(main)
    }

    /// The command line of the program `kvgate`, for a binary of the repository: the program alone does
    /// not know its codecs, and could not accept their goldens.
    #[must_use = "return it from main: it is the verdict"]
    pub fn program(self) -> ExitCode {
        self.or_faults(|| crate::cli::main(std::env::args_os()))
    }

    fn or_faults(self, run: impl FnOnce() -> ExitCode) -> ExitCode {
        if self.faults.is_empty() {
            return run();
        }
        for fault in &self.faults {
            out::tell(format!("error: {fault}"));
        }
        ExitCode::from(FAILED)
    }
}

/// libtest-mimic knows one filter and not `--no-capture`; libtest knows more.
fn arguments() -> (Arguments, Vec<String>) {
    /// Options whose value is the next argument.
    const VALUED: [&str; 6] =
        ["--test-threads", "--logfile", "--skip", "--color", "--format", "-Z"];
    let mut options = Vec::new();
    let mut filters = Vec::new();
    let mut valued = true; // the program's own name
    let given = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    for argument in given.filter(|argument| argument != "--no-capture") {
        let option = valued || argument.starts_with('-');
        valued = !valued && VALUED.contains(&argument.as_str());
        if option { &mut options } else { &mut filters }.push(argument);
    }
    (Arguments::from_iter(options), filters)
}

fn run(config: &Path, arguments: Arguments, filters: &[String]) -> Result<ExitCode, String> {
    let (mut gate, warnings) = gate::Gate::open(config).map_err(|error| error.to_string())?;
    gate.case_by_case = std::env::var_os("NEXTEST").is_some();
    let cases = select(gate.cases(), &arguments, filters);
    if arguments.list {
        let listed = cases.into_iter().map(|case| trial(case, |_| Ok(Completion::Completed)));
        let conclusion = conclusion(|| libtest_mimic::run(&arguments, listed.collect()));
        return Ok(conclusion.map_or(ExitCode::from(FAILED), |conclusion| conclusion.exit_code()));
    }
    if arguments.test_threads == Some(0) {
        return Err(
            "error: --test-threads must be at least 1: with 0 nothing would ever run".into()
        );
    }
    if arguments.bench {
        return Err("error: the gate has no benchmarks: drop --bench".into());
    }
    for warning in &warnings {
        out::tell_coloured(warning.styled());
    }
    let chosen: Vec<Case> =
        cases.iter().filter(|case| will_run(case, &arguments)).cloned().collect();
    if chosen.is_empty() {
        return Err(nothing_selected(&gate, filters));
    }
    if cfg!(debug_assertions) {
        out::tell(SLOW_BUILD);
    }
    gate::prepare_results(&gate.results_of(&chosen[0].name))
        .map_err(|message| format!("error: {message}"))?;
    golden::prepare_insta(&gate.root);
    let session = Arc::new(Session::new(gate, chosen));
    let trials = cases
        .into_iter()
        .map(|case| {
            let session = session.clone();
            trial(case, move |case| session.run(case))
        })
        .collect();
    let conclusion = conclusion(|| libtest_mimic::run(&arguments, trials));
    let whole = session.all_judged() & session.report(&arguments);
    Ok(match conclusion {
        Some(conclusion) if whole => conclusion.exit_code(),
        _ => ExitCode::from(FAILED),
    })
}

/// What the harness came to; none where standard output takes nothing any more, which it answers with a panic.
fn conclusion(run: impl FnOnce() -> Conclusion) -> Option<Conclusion> {
    let ended = catch_unwind(AssertUnwindSafe(run));
    if ended.is_err() {
        out::tell("error: standard output was closed or is full: what was judged cannot be told");
    }
    ended.ok()
}

const SLOW_BUILD: &str =
    "warning: kvgate was built without optimisation, which makes it many times slower; \
add to Cargo.toml:\n\n[profile.test.package.\"*\"]\nopt-level = 3\ndebug-assertions = false\n\
overflow-checks = false\n";

/// The cases that filters, `--skip` and `--exact` leave.
fn select(cases: Vec<Case>, arguments: &Arguments, filters: &[String]) -> Vec<Case> {
    let matches = |name: &str, filter: &String| match arguments.exact {
        true => name == filter,
        false => name.contains(filter.as_str()),
    };
    cases
        .into_iter()
        .filter(|case| filters.is_empty() || filters.iter().any(|f| matches(&case.name, f)))
        .filter(|case| !arguments.skip.iter().any(|skip| matches(&case.name, skip)))
        .collect()
}

fn will_run(case: &Case, arguments: &Arguments) -> bool {
    match case.ignored {
        true => arguments.ignored || arguments.include_ignored,
        false => !arguments.ignored,
    }
}

fn trial(
    case: Case,
    run: impl FnOnce(&Case) -> Result<Completion, Failed> + Send + 'static,
) -> Trial {
    let (name, ignored) = (case.name.clone(), case.ignored);
    Trial::ignorable_test(name, move || run(&case)).with_ignored_flag(ignored)
}

/// What to type instead of a filter that matches nothing.
pub(crate) fn nothing_selected(gate: &gate::Gate, filters: &[String]) -> String {
    let all = gate.cases();
    let shown: Vec<_> = all.iter().take(6).map(|case| format!("  {}", case.name)).collect();
    let more = match all.len().saturating_sub(shown.len()) {
        0 => String::new(),
        n => format!("\n  … and {n} more"),
    };
    let what = match filters {
        [] => "no case is left: --skip and --ignored leave none, or all are ignored \
               (--include-ignored runs them)"
            .to_string(),
        [filter, ..] if all.iter().any(|case| case.ignored && case.name.contains(filter)) => {
            format!("all that matches `{filter}` is ignored: --include-ignored runs it")
        }
        [filter, ..] => format!(
            "no case of the gate that is not ignored matches `{}`; for a unit test of that name: \
             cargo test --lib {filter}",
            filters.join("`, `")
        ),
    };
    format!("error: nothing selected: {what}\ncases are:\n{}{more}", shown.join("\n"))
}

/// A run of the harness: each model is measured once, when its first case needs it.
struct Session {
    gate: gate::Gate,
    /// The cases that run.
    chosen: Vec<Case>,
    models: Vec<OnceLock<Result<Measurement, String>>>,
    /// Measuring uses all cores: one model at a time.
    measuring: Mutex<()>,
    judged: Mutex<Vec<CaseResult>>,
    troubles: Mutex<Vec<String>>,
    /// Under nextest a process runs one case and shares what it measures.
    store: Option<Store>,
}

impl Session {
    fn new(gate: gate::Gate, chosen: Vec<Case>) -> Self {
        let models = gate.policy.models.iter().map(|_| OnceLock::new()).collect();
        let store =
            gate.case_by_case.then(|| Store::new(gate.results.join("store"), gate.root.clone()));
        Session {
            gate,
            chosen,
            models,
            measuring: Mutex::default(),
            judged: Mutex::default(),
            troubles: Mutex::default(),
            store,
        }
    }

    fn run(&self, case: &Case) -> Result<Completion, Failed> {
        let measured = self.models[case.model].get_or_init(|| {
            let _one_at_a_time = self.measuring.lock().unwrap_or_else(|e| e.into_inner());
            self.measure(case)
        });
        let result = self.gate.judge(case, measured);
        let (verdict, message) = (result.verdict, result.message.clone());
        lock(&self.judged).push(result);
        match verdict {
            _ if verdict.is_red() => Err(text::error(&message).into()),
            Verdict::Reported | Verdict::Ignored => Ok(Completion::ignored_with(verdict.label())),
            _ => Ok(Completion::Completed),
        }
    }

    fn measure(&self, case: &Case) -> Result<Measurement, String> {
        let model = case.model;
        let name = &self.gate.policy.models[model].name;
        let bar = progress::Bar::new(name);
        let fresh = |cells: &[_]| {
            let measured =
                self.gate.measure(model, cells, &|s, done, all| bar.tell(s, done, all))?;
            self.keep_positions(name, &measured.positions);
            Ok(measured.measurement)
        };
        match &self.store {
            None => fresh(&self.gate.cells(model, &self.chosen)),
            Some(store) => {
                let cells = self.gate.cells(model, &self.shared_cases(case));
                let policy = &self.gate.policy.models[model];
                store.get_or_measure(policy, &cells, || fresh(&cells))
            }
        }
    }

    /// What a process measures for all the others of its model: every scheme that is not ignored,
    /// narrowed by `KVGATE_SCHEMES` (labels, separated by commas), and its own.
    fn shared_cases(&self, own: &Case) -> Vec<Case> {
        let wanted = std::env::var("KVGATE_SCHEMES").ok();
        let named = |label: &str| match &wanted {
            Some(list) => list.split(',').any(|name| name.trim() == label),
            None => true,
        };
        let label = |case: &Case| &self.gate.policy.models[case.model].cells[case.cell].label;
        let mut cases = self.gate.cases();
        cases.retain(|c| {
            c.model == own.model && (c.cell == own.cell || (!c.ignored && named(label(c))))
        });
        cases
    }

    fn keep_positions(&self, model: &str, positions: &[(String, Vec<Position>)]) {
        let lanes: Vec<_> = positions.iter().map(|(l, p)| (l.as_str(), p.as_slice())).collect();
        if let Err(error) = sidecar::write(&self.gate.results, model, &lanes) {
            lock(&self.troubles).push(error.to_string());
        }
    }

    /// Whether every case that was chosen came to a verdict, whatever the harness did with it.
    fn all_judged(&self) -> bool {
        let (judged, chosen) = (lock(&self.judged).len(), self.chosen.len());
        if judged != chosen {
            out::tell(format!("error: {judged} of {chosen} selected cases were judged"));
        }
        judged == chosen
    }

    /// Writes what was found; whether all of it got out.
    fn report(&self, arguments: &Arguments) -> bool {
        let measured = self.models.iter().filter_map(|m| m.get()?.as_ref().ok());
        let order = |result: &CaseResult| {
            self.chosen.iter().position(|case| case.name == result.case).unwrap_or(usize::MAX)
        };
        let mut judged = lock(&self.judged).clone();
        judged.sort_by_key(order);
        let report = Report::from(self.gate.results(measured.cloned().collect(), judged));
        let outputs = Outputs {
            terminal: false,
            folder: self.chosen.first().map(|case| self.gate.results_of(&case.name)),
            step_summary: match &self.store {
                None => std::env::var_os("GITHUB_STEP_SUMMARY").map(PathBuf::from),
                Some(_) => None,
            },
        };
        let errors = report::emit(&report, &outputs);
        if self.store.is_none() && !matches!(arguments.format, Some(FormatSetting::Json)) {
            out::tell_coloured(report::terminal::render_tables(&report).trim_end());
        }
        for error in &errors {
            out::tell(format!("{}: {error}", if error.is_warning() { "warning" } else { "error" }));
        }
        let troubles = lock(&self.troubles);
        for trouble in troubles.iter() {
            out::tell(format!("error: {trouble}"));
        }
        troubles.is_empty() && errors.iter().all(report::ReportError::is_warning)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
