//! How the rows of activations are divided.

/// How the rows of a matrix of activations are divided: into lanes of equally many rows, the baseline first, and a
/// lane into sequences of equally many tokens. On the CPU each lane travels alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// How many lanes travel together.
    pub lanes: usize,
    /// The position of each sequence's first row.
    pub start: usize,
    /// How many rows each sequence has.
    pub tokens: usize,
}

impl Rows {
    /// The rows of whole sequences of one lane.
    pub fn of_lane(tokens: usize) -> Self {
        Rows { lanes: 1, start: 0, tokens }
    }
}
