//! Measuring: corpus, chunks, lanes, the engine, the streaming head, statistics.

pub mod stats;
