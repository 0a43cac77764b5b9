//! The test target of a model's repository: each case of the policy is a test that `cargo test` and nextest run.

use crate::gate::device::Asked;
use crate::gate::select::{nothing_selected, Ignored, Selection};
use crate::gate::store::Store;
use crate::gate::{self, Case, GateError, Project};
use crate::golden;
use crate::judge::{Evidence, ModelEvidence};
use crate::policy::{Cell, DEFAULT_PATH};
use crate::report::{self, Columns, Outputs, Report};
use crate::results::measured_by::MeasuredBy;
use crate::results::sidecar::SidecarError;
use crate::results::verdict::Verdict;
use crate::results::{CaseResult, Measurement};
use crate::text;
use crate::text::out;
use libtest_mimic::{Arguments, Completion, Conclusion, Failed, FormatSetting, Trial};
use std::borrow::Cow;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};

/// The exit code of libtest when something failed.
pub(crate) const FAILED: u8 = 101;

/// Runs the gate with the arguments of this process, and returns the exit code.
pub fn main() -> ExitCode {
    let (arguments, filters) = arguments();
    let config = std::env::var_os("KVGATE_CONFIG").map_or(DEFAULT_PATH.into(), PathBuf::from);
    match run(&config, arguments, &filters) {
        Ok(code) => code,
        Err(message) => {
            out::eprint(message);
            ExitCode::from(FAILED)
        }
    }
}

/// The arguments of this process, and the filters among them. libtest takes several filters and `--no-capture`, and
/// libtest-mimic takes only one filter, so both are handled here.
fn arguments() -> (Arguments, Vec<String>) {
    /// Options whose value is the next argument.
    const VALUED: [&str; 6] =
        ["--test-threads", "--logfile", "--skip", "--color", "--format", "-Z"];
    let mut options = Vec::new();
    let mut filters = Vec::new();
    let mut is_value = true; // the first argument is the program's own name
    let given = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    for argument in given.filter(|argument| argument != "--no-capture") {
        let is_option = is_value || argument.starts_with('-');
        is_value = !is_value && VALUED.contains(&argument.as_str());
        if is_option { &mut options } else { &mut filters }.push(argument);
    }
    (Arguments::from_iter(options), filters)
}

fn run(config: &Path, arguments: Arguments, filters: &[String]) -> Result<ExitCode, String> {
    let (mut project, warnings) = Project::open(config).map_err(|error| error.to_string())?;
    project.case_by_case = std::env::var_os("NEXTEST").is_some();
    let selection = selection(&arguments, filters);
    let mut cases = project.cases();
    cases.retain(|case| selection.names(case));
    if arguments.list {
        return Ok(list(&arguments, cases));
    }
    refuse_unusable(&arguments)?;
    for warning in &warnings {
        out::eprint_coloured(warning.styled());
    }
    let chosen: Vec<Case> = cases.iter().filter(|case| selection.runs(case)).cloned().collect();
    if chosen.is_empty() {
        return Err(nothing_selected(&project, filters));
    }
    if cfg!(debug_assertions) {
        out::eprint(SLOW_BUILD);
    }
    project.device = Asked::default().open().map_err(|error| format!("error: {error}"))?;
    gate::prepare_results(&project.results_of(&chosen[0].name))
        .map_err(|error| format!("error: {error}"))?;
    golden::prepare_insta(&project.root);
    Ok(run_cases(&arguments, cases, Session::new(project, chosen)))
}

/// Lists cases as libtest does.
fn list(arguments: &Arguments, cases: Vec<Case>) -> ExitCode {
    let trials = cases.into_iter().map(|case| trial(case, |_| Ok(Completion::Completed)));
    let conclusion = conclusion(|| libtest_mimic::run(arguments, trials.collect()));
    conclusion.map_or(ExitCode::from(FAILED), |conclusion| conclusion.exit_code())
}

/// Refuses arguments that libtest-mimic accepts and that would judge nothing.
fn refuse_unusable(arguments: &Arguments) -> Result<(), String> {
    if arguments.test_threads == Some(0) {
        return Err(
            "error: --test-threads must be at least 1: with 0 nothing would ever run".into()
        );
    }
    if arguments.bench {
        return Err("error: the gate has no benchmarks: drop --bench".into());
    }
    Ok(())
}

/// Runs the cases and writes the reports. It succeeds only if every chosen case was judged and everything was written.
fn run_cases(arguments: &Arguments, cases: Vec<Case>, session: Session) -> ExitCode {
    let session = Arc::new(session);
    let trials = cases.into_iter().map(|case| {
        let session = session.clone();
        trial(case, move |case| session.run(case))
    });
    let conclusion = conclusion(|| libtest_mimic::run(arguments, trials.collect()));
    let is_complete = session.all_judged() & session.report(arguments);
    match conclusion {
        Some(conclusion) if is_complete => conclusion.exit_code(),
        _ => ExitCode::from(FAILED),
    }
}

/// The cases that libtest's arguments select.
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

/// Runs libtest-mimic. None if it panicked, which is told.
///
/// A panic of a case never comes here: libtest-mimic catches it and fails the case. What comes here are panics of
/// libtest-mimic itself, which answers with one if its log file cannot be created or its output cannot be written.
fn conclusion(run: impl FnOnce() -> Conclusion) -> Option<Conclusion> {
    let panic = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(conclusion) => return Some(conclusion),
        Err(panic) => panic,
    };
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    out::eprint(harness_panic(message));
    None
}

/// What a panic of libtest-mimic means.
fn harness_panic(message: &str) -> String {
    if message.starts_with("failed to create logfile") {
        format!("error: --logfile: {message}; name a file in a folder that can be written to")
    } else if message.contains("on an `Err` value: Os {")
        || message.contains("on an `Err` value: Error {")
    {
        "error: standard output was closed or is full: verdicts cannot be printed".into()
    } else {
        format!("error: the test harness panicked, so no verdict counts: {message}")
    }
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

/// One run of the test target. Each model is measured once, when its first case needs it.
struct Session {
    project: Project,
    /// The cases that run.
    chosen: Vec<Case>,
    /// What was measured of each model of the policy.
    models: Vec<OnceLock<ModelEvidence<'static>>>,
    /// Held while a model is measured: measuring uses all cores, so models wait for each other.
    measuring: Mutex<()>,
    judged: Mutex<Vec<CaseResult>>,
    /// Positions that could not be written.
    unwritten: Mutex<Vec<SidecarError>>,
    /// Under nextest each process runs one case, so processes share what they measure.
    store: Option<Store>,
}

impl Session {
    fn new(project: Project, chosen: Vec<Case>) -> Self {
        let models = project.policy.models.iter().map(|_| OnceLock::new()).collect();
        let store = project.case_by_case.then(|| {
            Store::new(project.results.join("store"), project.root.clone(), project.device.clone())
        });
        Session {
            project,
            chosen,
            models,
            measuring: Mutex::default(),
            judged: Mutex::default(),
            unwritten: Mutex::default(),
            store,
        }
    }

    fn run(&self, case: &Case) -> Result<Completion, Failed> {
        let evidence = self.models[case.model].get_or_init(|| {
            let _one_at_a_time = lock(&self.measuring);
            let measured = self.measure(case).map_err(|error| error.to_string())?;
            Ok(Evidence::new(Cow::Owned(measured), MeasuredBy::Kvgate))
        });
        let result = self.project.judge(case, evidence);
        let (verdict, message) = (result.verdict, result.message.clone());
        lock(&self.judged).push(result);
        match verdict {
            _ if verdict.is_red() => Err(text::error(&message).into()),
            Verdict::Reported | Verdict::Ignored => Ok(Completion::ignored_with(verdict.label())),
            _ => Ok(Completion::Completed),
        }
    }

    fn measure(&self, case: &Case) -> Result<Measurement, GateError> {
        let measure = |cells: &[&Cell]| {
            let measured = self.project.measure(case.model, cells)?;
            lock(&self.unwritten).extend(measured.positions.err());
            Ok(measured.measurement)
        };
        match &self.store {
            None => measure(&self.project.cells(case.model, &self.chosen)),
            Some(store) => {
                let cells = self.project.cells(case.model, &self.shared_cases(case));
                let policy = &self.project.policy.models[case.model];
                store.get_or_measure(policy, &cells, || measure(&cells))
            }
        }
    }

    /// The cases that a process measures for all other processes of the same model: its own case, and every
    /// case that is not ignored. `KVGATE_SCHEMES`, a list of labels with commas between them, narrows the
    /// latter.
    fn shared_cases(&self, own: &Case) -> Vec<Case> {
        let wanted = std::env::var("KVGATE_SCHEMES").ok();
        let is_wanted = |label: &str| match &wanted {
            Some(list) => list.split(',').any(|name| name.trim() == label),
            None => true,
        };
        let label = |case: &Case| &self.project.policy.models[case.model].cells[case.cell].label;
        let mut cases = self.project.cases();
        cases.retain(|c| {
            c.model == own.model && (c.cell == own.cell || (!c.ignored && is_wanted(label(c))))
        });
        cases
    }

    /// Whether every chosen case got a verdict. The harness is not asked: it could have lost one.
    fn all_judged(&self) -> bool {
        let (judged, chosen) = (lock(&self.judged).len(), self.chosen.len());
        if judged != chosen {
            out::eprint(format!("error: {judged} of {chosen} selected cases were judged"));
        }
        judged == chosen
    }

    /// Writes the results and the reports. Returns whether everything could be written.
    fn report(&self, arguments: &Arguments) -> bool {
        let measured = self.models.iter().filter_map(|model| model.get()?.as_ref().ok());
        let measured = measured.map(|evidence| evidence.measurement().clone()).collect();
        let order = |result: &CaseResult| {
            self.chosen.iter().position(|case| case.name == result.case).unwrap_or(usize::MAX)
        };
        let mut judged = lock(&self.judged).clone();
        judged.sort_by_key(order);
        let report = Report::from(self.project.results(measured, judged));
        let outputs = Outputs {
            terminal: None,
            folder: self.chosen.first().map(|case| self.project.results_of(&case.name)),
            step_summary: match &self.store {
                None => std::env::var_os("GITHUB_STEP_SUMMARY").map(PathBuf::from),
                Some(_) => None,
            },
        };
        let errors = report::emit(&report, &outputs);
        if self.store.is_none() && !matches!(arguments.format, Some(FormatSetting::Json)) {
            out::eprint_coloured(
                report::terminal::render_tables(&report.view(), Columns::Deciding).trim_end(),
            );
        }
        for error in &errors {
            out::eprint(format!(
                "{}: {error}",
                if error.is_warning() { "warning" } else { "error" }
            ));
        }
        let unwritten = lock(&self.unwritten);
        for error in unwritten.iter() {
            out::eprint(format!("error: {error}"));
        }
        unwritten.is_empty() && errors.iter().all(report::ReportError::is_warning)
    }
}

/// Locks a mutex. A panic of another case while it held the lock left whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_harness_is_told_as_what_it_is() {
        let says = |fault: fn()| {
            let panic = catch_unwind(fault).unwrap_err();
            harness_panic(panic.downcast_ref::<String>().unwrap())
        };
        let closed = || {
            let written = || Err::<(), _>(std::io::Error::from_raw_os_error(32));
            written().unwrap();
        };
        assert!(says(closed).contains("standard output was closed or is full"));
        let no_folder = || {
            std::fs::File::create("/no/such/folder/log").expect("failed to create logfile");
        };
        assert!(says(no_folder).starts_with("error: --logfile: failed to create logfile: "));
        assert!(harness_panic("index out of bounds").ends_with("counts: index out of bounds"));
    }
}
