use crate::golden::GoldenError;
use crate::measure::MeasureError;
use std::io;
use std::path::PathBuf;

/// Why a model of the gate could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The accepted text of the baseline cannot be read.
    #[error(transparent)]
    Text(#[from] GoldenError),
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error(
        "cannot write results into {}: {source}; name another folder with --results or KVGATE_RESULTS",
        folder.display()
    )]
    Results { folder: PathBuf, source: io::Error },
    /// nextest's processes share measurements through a folder.
    #[error("cannot share results through {}: {source}", folder.display())]
    Store { folder: PathBuf, source: io::Error },
}
