//! `kvgate report` makes a report from the results of a run or of all its shards, for people and other tools.

use super::judge::read_results;
use super::shared::{
    file_to_write, say_coloured, say_whole, Config, Stop, Wide, NOT_MEASURED, USAGE,
};
use crate::files::write_atomically;
use crate::judge::merge::complete;
use crate::report::{badge, card, markdown, terminal, Columns, Report};
#[cfg(feature = "reports")]
use crate::report::{html, junit};
use crate::results::json;
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The results of a run or of all its shards
    #[arg(required = true, value_name = "RESULTS.json")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    config: Config,
    /// The format of the report
    #[arg(long, default_value = "terminal", value_name = "FORMAT")]
    format: Format,
    #[command(flatten)]
    wide: Wide,
    /// Write the report into this file instead of to standard output
    #[arg(long, short, value_name = "FILE", value_parser = file_to_write())]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// Tables for a terminal
    Terminal,
    /// Markdown for pull requests and step summaries
    Markdown,
    /// A section of a model card, in Markdown: which scheme to serve, by which options
    Card,
    /// The JSON of a badge of shields.io
    Badge,
    /// One page of HTML with plots
    #[cfg(feature = "reports")]
    Html,
    /// JUnit's XML, for CI servers that show test results
    #[cfg(feature = "reports")]
    Junit,
    /// One results.json, merged from all the files
    Json,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    if arguments.wide.columns() == Columns::All && !matches!(arguments.format, Format::Terminal) {
        let message =
            "--wide is about tables in a terminal; the other formats have all columns, folded away";
        return Err(Stop::new(USAGE, message));
    }
    let project = arguments.config.project()?;
    let mut results = read_results(&arguments.files).map_err(|error| Stop::new(USAGE, error))?;
    if let Some(theirs) = results.policy.as_ref().filter(|p| p.sha256 != project.policy.sha256) {
        let ours = project.policy.path.display();
        return Err(Stop::new(
            USAGE,
            format!(
                "these results are of another {} than {ours}: `kvgate judge` judges them by this one",
                theirs.path
            ),
        ));
    }
    complete(&mut results, &project.policy);
    let report = Report::from(results);
    let text = rendered(&report, arguments.format, arguments.wide.columns())
        .map_err(|error| Stop::new(NOT_MEASURED, format!("the report cannot be made: {error}")))?;
    match &arguments.output {
        None if matches!(arguments.format, Format::Terminal) => say_coloured(text.trim_end())?,
        None => say_whole(text.trim_end())?,
        Some(path) => write_atomically(path, |file| file.write_all(text.as_bytes()))
            .map_err(|error| Stop::new(NOT_MEASURED, format!("{}: {error}", path.display())))?,
    }
    Ok(report.exit_code())
}

fn rendered(report: &Report, format: Format, columns: Columns) -> Result<String, String> {
    let view = report.view();
    Ok(match format {
        Format::Terminal => terminal::render(&view, columns),
        Format::Markdown => markdown::render(&view, markdown::STEP_SUMMARY),
        Format::Card => card::render(&view),
        Format::Badge => badge::render(&view).map_err(|error| error.to_string())?,
        #[cfg(feature = "reports")]
        Format::Html => html::render(&view).map_err(|error| error.to_string())?,
        #[cfg(feature = "reports")]
        Format::Junit => junit::render(&view).map_err(|error| error.to_string())?,
        Format::Json => json::text(&report.results).map_err(|error| error.to_string())?,
    })
}
