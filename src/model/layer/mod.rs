//! One layer of the decoder: mixer, feed-forward part, and what Gemma 4 adds behind them.

use super::attention::Attention as Kernel;
use super::decoder::{norm, product, At};
use super::delta_net::Rule;
use super::elementwise::{Bias, Gate, Heads, Residual, RmsNorm, RopeTable, SigmoidGate};
use super::experts::Mixture;
use super::spec::{Activation, Attention, DeltaNet, Experts, Kv, Spec};
use crate::kv::cache::{CacheError, KvCache, View};
use candle_core::{Result as TensorResult, Tensor};
use std::sync::Arc;
use tracing::trace_span;

mod reader;

/// Rows of a product's output that are made at once: wide outputs of more rows leave the caches.
const ROWS: usize = 1024;

/// RoPE tables for every layer of a decoder, for contexts up to some length.
#[derive(Clone)]
pub struct RopeTables(Arc<Vec<Option<Arc<RopeTable>>>>);

impl RopeTables {
    pub(super) fn new(spec: &Spec, tokens: usize) -> Self {
        let mut tables: Vec<Option<Arc<RopeTable>>> = Vec::new();
        let ropes: Vec<_> =
            spec.layers.iter().map(|layer| layer.attention().map(|a| &a.rope)).collect();
        for (i, rope) in ropes.iter().enumerate() {
            // layers of one kind share a table
            let known = ropes[..i].iter().position(|r| r == rope);
            tables.push(match (known, rope) {
                (Some(same), _) => tables[same].clone(),
                (None, Some(rope)) => Some(Arc::new(RopeTable::new(rope, tokens))),
                (None, None) => None,
            });
        }
        RopeTables(Arc::new(tables))
    }
}

/// A layer with its weights; matrices are (out, in).
pub(super) struct Layer {
    mixer_norm: RmsNorm,
    mixer: MixerWeights,
    mixer_residual: Residual,
    feed_norm: RmsNorm,
    feed: Feed,
    feed_residual: Residual,
    inputs: Option<OwnInputs>,
    /// The residual stream is multiplied by it.
    scale: Option<f64>,
}

enum MixerWeights {
    Attention(AttentionWeights),
    DeltaNet(DeltaNetWeights),
}

/// The part behind the mixer.
enum Feed {
    Dense(MlpWeights),
    Experts { spec: Experts, activation: Activation, mixture: Mixture },
    Both(Box<Both>),
}

/// An MLP and experts side by side (Gemma 4's 26B-A4B).
struct Both {
    mlp: MlpWeights,
    mlp_norm: RmsNorm,
    spec: Experts,
    activation: Activation,
    experts_norm: RmsNorm,
    mixture: Mixture,
    mixture_norm: RmsNorm,
}

/// The layer's own inputs and what lets them into the residual stream.
struct OwnInputs {
    activation: Activation,
    width: usize,
    /// (P, H)
    gate: Tensor,
    /// (H, P)
    projection: Tensor,
    residual: Residual,
}

/// A matrix, and perhaps a bias.
struct Linear {
    weight: Tensor,
    bias: Option<Bias>,
}

struct AttentionWeights {
    spec: Attention,
    /// Rows of Q, of K and V where the layer has its own, and of the gate, one after the other.
    input: Tensor,
    biases: Option<[Arc<Vec<f32>>; 3]>,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    v_norm: Option<RmsNorm>,
    output: Linear,
}

struct DeltaNetWeights {
    spec: DeltaNet,
    /// Rows of q, k and v, of z, and of β's and g's inputs, one after the other.
    input: Tensor,
    rule: Rule,
    /// (H, value width)
    output: Tensor,
}

struct MlpWeights {
    activation: Activation,
    /// Gate and up rows, one after the other.
    gate_up: Linear,
    down: Linear,
}

impl Layer {
    /// Runs the layer on (B·T, H).
    pub fn run(
        &self,
        index: usize,
        x: &Tensor,
        per_layer: Option<&Tensor>,
        at: At,
        ropes: &RopeTables,
        cache: &mut dyn KvCache,
    ) -> Result<Tensor, CacheError> {
        let mixed = match &self.mixer {
            MixerWeights::Attention(attention) => {
                attention.run(index, x, &self.mixer_norm, at, ropes, cache)?
            }
            MixerWeights::DeltaNet(net) => net.run(index, x, &self.mixer_norm, at, cache)?,
        };
        let x = residual(x, &mixed, &self.mixer_residual)?;
        let added = by_rows(&x, |x| self.feed.run(x, &self.feed_norm))?;
        let mut x = residual(&x, &added, &self.feed_residual)?;
        if let (Some(own), Some(inputs)) = (&self.inputs, per_layer) {
            x = residual(&x, &own.run(index, &x, inputs)?, &own.residual)?;
        }
        match self.scale {
            None => Ok(x),
            Some(scale) => Ok((x * scale)?),
        }
    }
}

impl AttentionWeights {
    fn run(
        &self,
        index: usize,
        x: &Tensor,
        before: &RmsNorm,
        at: At,
        ropes: &RopeTables,
        cache: &mut dyn KvCache,
    ) -> Result<Tensor, CacheError> {
        let a = &self.spec;
        let sequences = x.dim(0)? / at.tokens;
        let rope = ropes.0[index].as_ref();
        let projected = by_rows(x, |x| product(&norm(x, before)?, &self.input))?;
        let heads = |op: Heads| trace_span!("heads").in_scope(|| projected.apply_op1_no_bwd(&op));
        let q = heads(self.q(rope, at))?;
        let View { k, v, start, queries } = match a.kv {
            Kv::Shared { owner } => cache.shared(owner)?,
            _ => {
                let stored = (sequences, at.tokens, a.kv_heads, a.head_dim);
                let k = heads(self.k(rope, at))?.reshape(stored)?;
                let v = heads(self.v(at))?.reshape(stored)?;
                trace_span!("cache").in_scope(|| cache.append(index, k, v))?
            }
        };
        if let Some(rounding) = queries {
            rounding.round(&q.reshape((sequences, at.tokens, a.heads, a.head_dim))?)?;
        }
        let kernel = Kernel {
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            scale: a.scale,
            softcap: a.softcap,
            window: a.window,
            queries: at.tokens,
            keys: k.stored.dim(1)?,
            start,
            k,
            v,
        };
        let attended = trace_span!("attention")
            .in_scope(|| q.apply_op3_no_bwd(&kernel.k.stored, &kernel.v.stored, &kernel))?;
        let attended = match a.gated {
            false => attended,
            true => {
                attended.apply_op2_no_bwd(&projected, &SigmoidGate { start: self.gate_start() })?
            }
        };
        Ok(by_rows(&attended, |x| self.output.run(x))?)
    }

    fn gate_start(&self) -> usize {
        let a = &self.spec;
        let stored = match a.kv {
            Kv::Projected => 2,
            Kv::KeyIsValue => 1,
            Kv::Shared { .. } => 0,
        };
        a.q_width() + stored * a.kv_width()
    }

    fn q(&self, rope: Option<&Arc<RopeTable>>, at: At) -> Heads {
        let norm = self.q_norm.clone();
        Heads { norm, rope: rope.cloned(), ..self.part(0, 0, self.spec.heads, at) }
    }

    fn k(&self, rope: Option<&Arc<RopeTable>>, at: At) -> Heads {
        let (start, norm) = (self.spec.q_width(), self.k_norm.clone());
        Heads { norm, rope: rope.cloned(), ..self.part(1, start, self.spec.kv_heads, at) }
    }

    fn v(&self, at: At) -> Heads {
        let a = &self.spec;
        let start = match a.kv {
            Kv::KeyIsValue => a.q_width(),
            _ => a.q_width() + a.kv_width(),
        };
        Heads { norm: self.v_norm.clone(), ..self.part(2, start, a.kv_heads, at) }
    }

    /// The op that takes heads out of the projection: bias only.
    fn part(&self, part: usize, start: usize, heads: usize, at: At) -> Heads {
        Heads {
            start,
            heads,
            head_dim: self.spec.head_dim,
            bias: self.biases.as_ref().map(|biases| biases[part].clone()),
            norm: None,
            rope: None,
            first: at.start,
            tokens: at.tokens,
        }
    }
}

impl DeltaNetWeights {
    fn run(
        &self,
        index: usize,
        x: &Tensor,
        before: &RmsNorm,
        at: At,
        cache: &mut dyn KvCache,
    ) -> Result<Tensor, CacheError> {
        let projected = by_rows(x, |x| product(&norm(x, before)?, &self.input))?;
        let state = cache.recurrent(index);
        let out = trace_span!("delta rule")
            .in_scope(|| self.rule.run(&self.spec, &projected, at.tokens, state))?;
        Ok(by_rows(&out, |x| product(x, &self.output))?)
    }
}

impl Feed {
    /// (rows, H) → what is added to the residual stream.
    fn run(&self, x: &Tensor, before: &RmsNorm) -> TensorResult<Tensor> {
        match self {
            Feed::Dense(mlp) => mlp.run(&norm(x, before)?),
            Feed::Experts { spec, activation, mixture } => {
                let x = norm(x, before)?;
                mixture.run(spec, *activation, &x, &x)
            }
            Feed::Both(both) => {
                let dense = norm(&both.mlp.run(&norm(x, before)?)?, &both.mlp_norm)?;
                let normed = norm(x, &both.experts_norm)?;
                let mixed = both.mixture.run(&both.spec, both.activation, x, &normed)?;
                dense + norm(&mixed, &both.mixture_norm)?
            }
        }
    }
}

impl MlpWeights {
    fn run(&self, x: &Tensor) -> TensorResult<Tensor> {
        let both = self.gate_up.run(x)?;
        let gate = Gate(self.activation);
        self.down.run(&trace_span!("gate").in_scope(|| both.apply_op1_no_bwd(&gate))?)
    }
}

impl OwnInputs {
    /// project(act(gate(x)) ⊙ input), before its norm.
    fn run(&self, index: usize, x: &Tensor, inputs: &Tensor) -> TensorResult<Tensor> {
        let inputs = inputs.narrow(1, index * self.width, self.width)?;
        by_rows(&Tensor::cat(&[&product(x, &self.gate)?, &inputs], 1)?, |both| {
            product(&both.apply_op1_no_bwd(&Gate(self.activation))?, &self.projection)
        })
    }
}

impl Linear {
    fn run(&self, x: &Tensor) -> TensorResult<Tensor> {
        let y = product(x, &self.weight)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.apply_op1_no_bwd(bias),
        }
    }
}

fn residual(x: &Tensor, y: &Tensor, residual: &Residual) -> TensorResult<Tensor> {
    trace_span!("residuals").in_scope(|| x.apply_op2_no_bwd(y, residual))
}

/// Applies `f` to blocks of rows and joins what it gives.
fn by_rows(x: &Tensor, f: impl Fn(&Tensor) -> TensorResult<Tensor>) -> TensorResult<Tensor> {
    let rows = x.dim(0)?;
    if rows <= ROWS {
        return f(x);
    }
    let blocks = (0..rows)
        .step_by(ROWS)
        .map(|start| f(&x.narrow(0, start, ROWS.min(rows - start))?))
        .collect::<TensorResult<Vec<_>>>()?;
    Tensor::cat(&blocks, 0)
}
