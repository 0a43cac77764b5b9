//! `kvgate calibrate`: writes the file that calibrated schemes need.

use super::shared::{file_to_write, name, say, On, Reading, Stop, NOT_MEASURED};
use crate::measure::calibrate::{calibrate, Calibrated};
use crate::policy::LEAST_CONTEXT;
use crate::progress::Bar;
use crate::text::out;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The model: a GGUF file, a folder with config.json and safetensors files, or a checkpoint of the Hugging
    /// Face hub: hf:ORG/NAME@COMMIT, or hf:ORG/NAME@COMMIT/FILE.gguf for one of its GGUF files
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Text to calibrate on, which must not be the text that is measured on later; if there are several files,
    /// chunks are taken from them in turn
    #[arg(long, required = true, value_delimiter = ',', value_name = "FILE")]
    corpus: Vec<PathBuf>,
    /// How many tokens a chunk has; each chunk begins with an empty cache
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(LEAST_CONTEXT as i64..))]
    context: u32,
    /// How many chunks to read
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: u32,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    on: On,
    /// The file to write [default: the model's name, followed by `.calibration`]
    #[arg(long, short, value_name = "FILE", value_parser = file_to_write())]
    output: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Stop> {
    let source = arguments.reading.source(&arguments.model)?;
    let name = name(&source);
    let (context, chunks) = (arguments.context as usize, arguments.chunks as usize);
    let device = arguments.on.device()?;
    let calibrated = {
        let bar = Bar::new(&name);
        let report = |what: &str, done, all| bar.update(what, done, all);
        calibrate(&source, &arguments.corpus, context, chunks, &device, &report)
    };
    let Calibrated { calibration, notes } =
        calibrated.map_err(|error| Stop::new(NOT_MEASURED, error.to_string()))?;
    notes.iter().for_each(|note| out::eprint(format!("note: {note}")));
    let output = arguments.output.clone().unwrap_or_else(|| format!("{name}.calibration").into());
    calibration.write(&output).map_err(|error| Stop::new(NOT_MEASURED, error.to_string()))?;
    say(format!(
        "{}: K and V of {} layers over {} tokens; name it by `calibration = \"…\"` in the policy, or --calibration",
        output.display(),
        calibration.layers.len(),
        calibration.tokens
    ))?;
    Ok(0)
}
