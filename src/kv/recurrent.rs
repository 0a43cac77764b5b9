//! The state of layers that have no KV cache: no scheme touches it, and it cannot be truncated, only
//! kept and restored.

use rayon::prelude::*;

/// What a layer of the gated delta rule carries from one token to the next, f32. A clone is a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Recurrent {
    /// (B, kernel - 1, channels): the last inputs of the convolution.
    history: Vec<f32>,
    /// (B, H_v, D_k, D_v)
    states: Vec<f32>,
    sequences: usize,
}

impl Recurrent {
    /// The state before the first token, with so many numbers a sequence.
    pub(crate) fn zero(sequences: usize, history: usize, states: usize) -> Self {
        Recurrent {
            history: vec![0.0; sequences * history],
            states: vec![0.0; sequences * states],
            sequences,
        }
    }

    /// Each sequence's history and states.
    pub(crate) fn sequences_mut(
        &mut self,
    ) -> impl IndexedParallelIterator<Item = (&mut [f32], &mut [f32])> {
        let history = self.history.len() / self.sequences;
        let states = self.states.len() / self.sequences;
        self.history.par_chunks_mut(history).zip(self.states.par_chunks_mut(states))
    }
}
