//! The test target: each case of the policy is a test that `cargo test` and nextest run.

use crate::gate::select::nothing_selected;
use crate::gate::select::Ignored;
use crate::gate::select::Selection;
use crate::gate::store::Store;
use crate::gate::{self, Case};
use crate::golden;
use crate::progress;
use crate::report::{self, Outputs, Report};
use crate::results::sidecar;
use crate::results::statistics::Position;
use crate::results::verdict::Verdict;
use crate::results::{CaseResult, Measurement};
use crate::text;
use crate::text::out;
use libtest_mimic::{Arguments, Completion, Conclusion, Failed, FormatSetting, Trial};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};

/// What libtest exits with when something failed.
pub(crate) const FAILED: u8 = 101;

/// Runs the gate of the policy with the process's arguments, and gives what the process exits with.
pub fn main() -> ExitCode {
    let (arguments, filters) = arguments();
    let config = std::env::var_os("KVGATE_CONFIG").map_or("thresholds.toml".into(), PathBuf::from);
    match run(&config, arguments, &filters) {
        Ok(code) => code,
        Err(message) => {
            out::eprint(message);
            ExitCode::from(FAILED)
        }
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
    let selection = selection(&arguments, filters);
    let mut cases = gate.cases();
    cases.retain(|case| selection.names(case));
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
        out::eprint_coloured(warning.styled());
    }
    let chosen: Vec<Case> = cases.iter().filter(|case| selection.runs(case)).cloned().collect();
    if chosen.is_empty() {
        return Err(nothing_selected(&gate, filters));
    }
    if cfg!(debug_assertions) {
        out::eprint(SLOW_BUILD);
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

/// What libtest's arguments select.
fn selection<'a>(arguments: &'a Arguments, filters: &'a [String]) -> Selection<'a> {
    let ignored = if arguments.ignored {
        Ignored::Only
    } else if arguments.include_ignored {
        Ignored::Include
    } else {
        Ignored::LeaveOut
    };
    Selection { filters, skip: &arguments.skip, exact: arguments.exact, ignored }
}

/// What the harness came to; none where standard output takes nothing any more, which it answers with a panic.
fn conclusion(run: impl FnOnce() -> Conclusion) -> Option<Conclusion> {
    let ended = catch_unwind(AssertUnwindSafe(run));
    if ended.is_err() {
        out::eprint("error: standard output was closed or is full: what was judged cannot be told");
    }
    ended.ok()
}

const SLOW_BUILD: &str =
    "warning: kvgate was built without optimisation, which makes it many times slower; \
add to Cargo.toml:\n\n[profile.test.package.\"*\"]\nopt-level = 3\ndebug-assertions = false\n\
overflow-checks = false\n";

fn trial(
    case: Case,
    run: impl FnOnce(&Case) -> Result<Completion, Failed> + Send + 'static,
) -> Trial {
    let (name, ignored) = (case.name.clone(), case.ignored);
    Trial::ignorable_test(name, move || run(&case)).with_ignored_flag(ignored)
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
                self.gate.measure(model, cells, &|s, done, all| bar.update(s, done, all))?;
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
            out::eprint(format!("error: {judged} of {chosen} selected cases were judged"));
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
            out::eprint_coloured(report::terminal::render_tables(&report.view()).trim_end());
        }
        for error in &errors {
            out::eprint(format!(
                "{}: {error}",
                if error.is_warning() { "warning" } else { "error" }
            ));
        }
        let troubles = lock(&self.troubles);
        for trouble in troubles.iter() {
            out::eprint(format!("error: {trouble}"));
        }
        troubles.is_empty() && errors.iter().all(report::ReportError::is_warning)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
