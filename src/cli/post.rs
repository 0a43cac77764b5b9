//! `kvgate post` posts the verdict to GitHub, where people merge. This command runs with privileges. It
//! therefore builds and runs nothing that the change brings: results are untrusted text, and are judged again by
//! the policy that is in force.

use super::judge::EngineArgument;
use super::shared::{say, say_whole, Config, Stop, USAGE};
use crate::files::folder_of;
use crate::github::annotations::{self, Annotation};
use crate::github::{
    CheckRun, Comment, Environment, Error, Event, Found, GitHub, Mode, Published, Pull, Reason,
    State, Status, SystemClock,
};
use crate::hash;
use crate::judge::merge::merge;
use crate::policy::DEFAULT_PATH;
use crate::proposal::{Loosening, Proposal};
use crate::repo::Repository;
use crate::report::{self, markdown, Columns, Outputs, Report, View};
use crate::results::json;
use crate::results::verdict::{worst, CaseLimit};
use crate::results::{CaseResult, Finding, Results};
use crate::text::command;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The results of a run or of all its shards
    #[arg(required = true, value_name = "RESULTS.json")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    config: Config,
    /// When to write or edit the comment in the pull request
    #[arg(long, default_value = "on-change", value_name = "WHEN")]
    comment: When,
    /// The name of the commit status, which branch protection can require
    #[arg(long, default_value = "kvgate", value_name = "NAME")]
    context: String,
    /// Also make a check run, which holds the report
    #[arg(long)]
    check_run: bool,
    /// The label that allows a pull request to loosen the policy
    #[arg(long, default_value = "kvgate:policy", value_name = "LABEL")]
    label: String,
    /// A name for this gate's comment; give each gate its own if a pull request has several
    #[arg(long, default_value = "kvgate", value_name = "ID")]
    id: String,
    /// The artifact that holds the results; the comment shows a command that downloads it and accepts them
    #[arg(long, default_value = "kvgate-results", value_name = "NAME")]
    artifact: String,
    /// The engine that measured the results
    #[arg(long, default_value = "kvgate", value_name = "ENGINE")]
    engine: EngineArgument,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum When {
    /// Whenever the report has changed, but not before something is red
    OnChange,
    /// Whenever the report has changed
    Always,
    /// Never
    Never,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let usage = |error: Error| Stop::new(USAGE, error.to_string());
    let environment = Environment::of_process().map_err(usage)?;
    let github = GitHub::new(&environment, Box::new(SystemClock)).map_err(usage)?;
    let found = github.pull();
    let pull = match &found {
        Ok(Found::Pull(pull) | Found::Moved(pull)) => Some(pull),
        Ok(Found::None) | Err(_) => None,
    };
    let mut report = judged(arguments, &github, pull).unwrap_or_else(not_judged);
    if let Err(error) = &found {
        // which policy is in force depends on the pull request's target and labels
        let message = format!("the pull request could not be read: {error}");
        report.results.findings.push(red("not judged", message));
    }
    report.links.run = Some(github.run_url().into());
    report.links.accept = Some(accept(arguments, &github));
    let outputs = Outputs {
        terminal: Some(Columns::Deciding),
        folder: None,
        step_summary: environment.step_summary.clone(),
    };
    for error in report::emit(&report, &outputs) {
        say_whole(annotations::warning("kvgate", &error.to_string()).trim_end())?;
    }
    let view = report.view();
    say_whole(annotations::errors(&annotated(&view)).trim_end())?;
    publish(arguments, &github, &found, &report, &view)?;
    Ok(view.exit_code)
}

/// Judges the results by the policy that is in force.
fn judged(arguments: &Arguments, github: &GitHub, pull: Option<&Pull>) -> Result<Report, String> {
    let repository = Repository::discover(folder_of(&arguments.config.config))
        .map_err(|error| error.to_string())?;
    let head = &github.event().head;
    let target = match pull {
        Some(pull) => target(&repository, pull),
        None => unproposed(&repository, github.event())?,
    };
    let proposal = Proposal::open(&repository, &arguments.config.config, &target, Some(head));
    let mut proposal = proposal.map_err(|error| error.to_string())?;
    proposal.whole = target == *head;
    if pull.is_some_and(|pull| pull.has_label(&arguments.label)) {
        proposal.loosening = Loosening::Allowed;
    }
    let results = results(&arguments.files)?;
    proposal.judge(results, arguments.engine.into()).map_err(|error| error.to_string())
}

/// The commit of the branch that a pull request targets: the one that GitHub names, or else that of this clone's
/// copy of the branch.
fn target(repository: &Repository, pull: &Pull) -> String {
    match repository.resolve(&pull.base) {
        Ok(base) => base,
        Err(_) => format!("origin/{}", pull.base_ref),
    }
}

/// Chooses the revision by whose policy a commit without a pull request is judged. On the default branch or in a
/// merge queue the commit is judged by its own policy, which is in force already. Otherwise it is judged as a
/// proposal to the default branch.
fn unproposed(repository: &Repository, event: &Event) -> Result<String, String> {
    let default = branch(repository, event.default_branch.as_deref())?;
    let is_there =
        || repository.merge_base(&event.head, &default).is_ok_and(|base| base == event.head);
    let holds = event.is_settled() && (event.trigger == "merge_group" || is_there());
    Ok(if holds { event.head.clone() } else { default })
}

/// The default branch, as this clone has it.
fn branch(repository: &Repository, name: Option<&str>) -> Result<String, String> {
    match name {
        Some(name) => Ok(format!("origin/{name}")),
        None => repository
            .default_target(&|name| std::env::var(name).ok())
            .map_err(|error| error.to_string()),
    }
}

fn results(files: &[PathBuf]) -> Result<Results, String> {
    let read = |path: &PathBuf| {
        json::read_untrusted(path).map(|results| (path.display().to_string(), results))
    };
    let files = files.iter().map(read).collect::<Result<Vec<_>, _>>();
    merge(files.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}

/// Posts a red status with the reason if the results could not be judged.
fn not_judged(message: String) -> Report {
    let finding = red("not judged", message);
    Results { findings: vec![finding], ..Results::new(Vec::new(), Vec::new()) }.into()
}

fn red(name: &str, message: String) -> Finding {
    Finding { name: name.into(), place: None, message, is_red: true }
}

/// The commands that fetch the run's results and accept them, as one line to paste.
fn accept(arguments: &Arguments, github: &GitHub) -> String {
    let run = github.event().run.id;
    let folder = format!("kvgate-results/{run}");
    let config = arguments.config.config.to_str().filter(|config| *config != DEFAULT_PATH);
    format!(
        "gh run download {run} -n {} -D {folder} && {}",
        command::word(&arguments.artifact),
        command::accept(&format!("{folder}/results.json"), &[], config)
    )
}

/// The red cases and findings at the lines where their limits stand, the worst first.
fn annotated(view: &View) -> Vec<Annotation> {
    let of_place = |place: Option<&str>, title: &str, message: &str| {
        let (file, line) = match place.and_then(|place| place.rsplit_once(':')) {
            Some((file, line)) => (Some(file.to_string()), line.parse().ok()),
            None => (place.map(Into::into), None),
        };
        let message = message.lines().next().unwrap_or_default().into();
        Annotation { file, line, title: title.into(), message }
    };
    let findings = view.red_findings().map(|f| of_place(f.place.as_deref(), &f.name, &f.message));
    let case =
        |case: &CaseResult| of_place(worst(case).map(CaseLimit::origin), &case.case, &case.message);
    view.red_cases.iter().map(|red| case(red)).chain(findings).collect()
}

/// Posts the verdict to GitHub. A failure to post is only a warning, because the exit code has the verdict, and a
/// required status that is missing blocks the merge.
fn publish(
    arguments: &Arguments,
    github: &GitHub,
    found: &Result<Found, Error>,
    report: &Report,
    view: &View,
) -> Result<(), Stop> {
    let sentence = view.sentence();
    let state = match view.exit_code {
        0 => State::Success,
        1 => State::Failure,
        _ => State::Error,
    };
    let context = context(arguments, github, found);
    let url = Some(github.run_url());
    let status = Status { context: &context, state, description: &sentence, target_url: url };
    if let Err(error) = github.status(&status) {
        warn("the commit status could not be set", &error)?;
    }
    if arguments.check_run {
        let summary = markdown::render(view, CHECK_SUMMARY);
        let run = CheckRun {
            name: &context,
            state,
            title: &sentence,
            summary: &summary,
            details_url: url,
        };
        if let Err(error) = github.check_run(&run) {
            warn("the check run could not be made", &error)?;
        }
    }
    match found {
        Ok(Found::Pull(pull)) if !pull.is_open => {
            say(format!("comment: none, #{} is closed", pull.number))
        }
        Ok(Found::Pull(pull)) => comment(arguments, github, pull.number, report, view),
        Ok(Found::Moved(pull)) => {
            say(format!("comment: left alone, #{} has a newer commit", pull.number))
        }
        Ok(Found::None) => say("comment: none, no open pull request has this commit"),
        Err(_) => Ok(()), // a finding says it
    }
}

/// The name of the status. A commit may be proposed to several branches, and each has its own verdict. The name
/// therefore includes the branch, unless it is the default branch.
fn context(arguments: &Arguments, github: &GitHub, found: &Result<Found, Error>) -> String {
    let is_other = |branch: &String| {
        github.event().default_branch.as_ref().is_some_and(|default| default != branch)
    };
    match found {
        Ok(Found::Pull(pull) | Found::Moved(pull)) if is_other(&pull.base_ref) => {
            format!("{} ({})", arguments.context, pull.base_ref)
        }
        _ => arguments.context.clone(),
    }
}

/// The largest size of a check run's summary, in bytes.
const CHECK_SUMMARY: usize = 65_000;

fn comment(
    arguments: &Arguments,
    github: &GitHub,
    pull: u64,
    report: &Report,
    view: &View,
) -> Result<(), Stop> {
    // the link of the run itself is not worth printing
    let mut news = report.clone();
    news.links.run = None;
    news.links.accept = None;
    let hash = hash::of_bytes(markdown::render(&news.view(), usize::MAX).as_bytes());
    let comment = Comment {
        sticky: &github.sticky(&arguments.id, &hash),
        mode: match arguments.comment {
            When::OnChange => Mode::OnChange,
            When::Always => Mode::Always,
            When::Never => Mode::Never,
        },
        is_green: view.exit_code == 0,
        body: &|bytes| markdown::render(view, bytes),
    };
    match github.comment(pull, &comment) {
        Ok(done) => say(format!("comment: {}", what_became(done))),
        Err(error) => warn("the comment could not be written", &error),
    }
}

fn what_became(done: Published) -> &'static str {
    match done {
        Published::Created => "written",
        Published::Updated => "edited in place",
        Published::Unchanged => "says so already",
        Published::Skipped(Reason::Never) => "none, as asked",
        Published::Skipped(Reason::NothingToSay) => "none, all is well",
        Published::Skipped(Reason::HeadMoved) => "left alone, the pull request has a newer commit",
        Published::Skipped(Reason::NewerRun) => "left alone, a newer run has written it",
    }
}

fn warn(what: &str, error: &Error) -> Result<(), Stop> {
    say_whole(annotations::warning(&format!("kvgate: {what}"), &error.to_string()).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    /// The line of the limit that is broken the most, whichever it is on.
    #[test]
    fn a_red_case_stands_at_its_worst_limit() {
        let mut report = fixture::report();
        let line = |report: &Report| {
            let all = annotated(&report.view());
            let own = all.into_iter().find(|one| one.title == "gemma-3-270m::q4_0::kld");
            own.unwrap().line
        };
        assert_eq!(line(&report), Some(9));
        fixture::with_broken_loss(&mut report.results.cases[2]);
        assert_eq!(line(&report), Some(12));
    }
}
