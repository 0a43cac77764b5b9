//! The state of recurrent layers, which have no KV cache. No scheme changes it. It cannot be cut back to an
//! earlier token, only kept as a copy and restored.

use rayon::prelude::*;

/// What a layer of the gated delta rule carries from one token to the next, in f32. A clone is a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Recurrent {
    /// (B, kernel - 1, channels): the newest inputs of the convolution.
    history: Vec<f32>,
    /// (B, H_v, D_k, D_v): the state of the delta rule.
    states: Vec<f32>,
    sequences: usize,
}

impl Recurrent {
    /// The state before the first token. Each sequence has `history` and `states` numbers.
    pub(crate) fn zero(sequences: usize, history: usize, states: usize) -> Self {
        Recurrent {
            history: vec![0.0; sequences * history],
            states: vec![0.0; sequences * states],
            sequences,
        }
    }

    /// History and states of each sequence.
    pub(crate) fn sequences_mut(
        &mut self,
    ) -> impl IndexedParallelIterator<Item = (&mut [f32], &mut [f32])> {
        let history = self.history.len() / self.sequences;
        let states = self.states.len() / self.sequences;
        self.history.par_chunks_mut(history).zip(self.states.par_chunks_mut(states))
    }
}
