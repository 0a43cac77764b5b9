//! One layer of the decoder: mixer, feed-forward part, and what Gemma 4 adds behind them.

use super::experts::Mixture;
use super::spec::{Activation, Attention, DeltaNet, Experts, Kv, QkNorm, Rope, Spec};
use crate::compute::attention::SoftmaxAttention;
use crate::compute::bias::Bias;
use crate::compute::delta_rule::{DeltaRule, Recurrent, RuleWeights};
use crate::compute::device::product_rows;
use crate::compute::finite::FiniteFlag;
use crate::compute::gate::{GatedActivation, SigmoidGate};
use crate::compute::heads::Heads;
use crate::compute::norm::RmsNorm;
use crate::compute::product::{GatedMlp, Matrix};
use crate::compute::residual::Residual;
use crate::compute::rope::RopeTable;
use crate::compute::{run, Device, Rows};
use crate::kv::cache::{CacheError, KvCache, StorageCheck, View};
use candle_core::{Result as TensorResult, Tensor};
use std::sync::Arc;
use tracing::trace_span;

mod reader;

/// RoPE tables for every layer of a decoder, for contexts up to some length.
#[derive(Clone)]
pub struct RopeTables(Arc<Vec<LayerRope>>);

/// The RoPE tables of a layer. A layer in which nothing turns has none.
#[derive(Clone, Default)]
struct LayerRope {
    q: Option<Arc<RopeTable>>,
    k: Option<Arc<RopeTable>>,
}

impl LayerRope {
    /// The tables of a RoPE for `tokens` positions. A factor of Q is a factor of Q's cos and sin.
    fn new(rope: &Rope, tokens: usize, device: &Device) -> TensorResult<Self> {
        let Rope { pairs, frequencies, magnitude, temperature, longest, .. } = rope;
        if let Some(longest) = longest.filter(|longest| tokens > *longest) {
            candle_core::bail!(
                "RoPE of this model has other frequencies for contexts above {longest} tokens, which this version does \
                 not compute: measure with a context of {longest} or less"
            );
        }
        if frequencies.is_empty() {
            return Ok(LayerRope::default());
        }
        let table = |magnitude: &dyn Fn(usize) -> f32| {
            RopeTable::new(*pairs, frequencies, magnitude, tokens, device.at()).map(Arc::new)
        };
        let k = table(&|_| *magnitude)?;
        let q = match temperature {
            // the first positions have a factor of 1
            Some(temperature) if tokens > temperature.steps => {
                table(&|position| *magnitude * temperature.at(position))?
            }
            _ => k.clone(),
        };
        Ok(LayerRope { q: Some(q), k: Some(k) })
    }
}

impl RopeTables {
    pub(super) fn new(spec: &Spec, tokens: usize, device: &Device) -> TensorResult<Self> {
        let mut tables: Vec<LayerRope> = Vec::new();
        let ropes: Vec<_> =
            spec.layers.iter().map(|layer| layer.attention().map(|a| &a.rope)).collect();
        for (i, rope) in ropes.iter().enumerate() {
            // layers of one kind share a table
            let known = ropes[..i].iter().position(|r| r == rope);
            tables.push(match (known, rope) {
                (Some(same), _) => tables[same].clone(),
                (None, Some(rope)) => LayerRope::new(rope, tokens, device)?,
                (None, None) => LayerRope::default(),
            });
        }
        Ok(RopeTables(Arc::new(tables)))
    }
}

/// Rows of a layer's input that have a cache of their own.
pub struct Part<'c> {
    /// How they are divided.
    pub rows: Rows,
    /// How many sequences each lane has.
    pub sequences: usize,
    /// Where their K and V are stored.
    pub cache: &'c mut dyn KvCache,
}

impl Part<'_> {
    fn count(&self) -> usize {
        self.rows.lanes * self.sequences * self.rows.tokens
    }
}

/// Why a layer could not run.
pub(crate) struct PartError {
    /// The part whose cache refused, or none if an op failed that all parts share.
    pub part: Option<usize>,
    pub error: CacheError,
}

impl From<candle_core::Error> for PartError {
    fn from(error: candle_core::Error) -> Self {
        PartError { part: None, error: error.into() }
    }
}

/// What the ops of a layer have seen in each lane. It is read once the layer has run, because the flags of a device are
/// in its own memory.
pub(crate) struct Watch {
    layer: usize,
    lanes: usize,
    /// Those of each part.
    checks: Vec<Vec<StorageCheck>>,
    /// Whether the residual stream behind the layer is finite.
    hidden: FiniteFlag,
}

/// What a layer has done to a lane.
pub(crate) enum Fault {
    /// K or V was not finite.
    Stored(CacheError),
    /// The residual stream is no longer finite.
    Hidden,
}

impl Watch {
    /// What went wrong in each lane of a single part. K and V come first, because if they are damaged, all that follows
    /// is damaged by them.
    pub fn faults(&self) -> TensorResult<Vec<Option<Fault>>> {
        let all = &self.checks[0];
        let checks = all.iter().map(|check| (&check.finite, 1));
        let flags = std::iter::once((&self.hidden, self.lanes)).chain(checks);
        let flags = FiniteFlag::all_by_lane(flags)?;
        let (hidden, checks) = (&flags[0], &flags[1..]);
        let mut faults: Vec<_> =
            hidden.iter().map(|is_finite| (!is_finite).then_some(Fault::Hidden)).collect();
        for (check, is_finite) in all.iter().zip(checks).rev() {
            if is_finite.contains(&false) {
                faults[check.lane] = Some(Fault::Stored(check.error(self.layer)));
            }
        }
        Ok(faults)
    }

    /// Fails if K or V of a part was not finite.
    pub fn stored(&self) -> Result<(), PartError> {
        let of_part = |(part, checks)| std::iter::repeat(part).zip(checks);
        let all: Vec<(usize, &StorageCheck)> =
            self.checks.iter().enumerate().flat_map(of_part).collect();
        let flags = FiniteFlag::all_by_lane(all.iter().map(|(_, check)| (&check.finite, 1)))?;
        match all.iter().zip(flags).find(|(_, is_finite)| is_finite.contains(&false)) {
            Some((&(part, check), _)) => {
                Err(PartError { part: Some(part), error: check.error(self.layer) })
            }
            None => Ok(()),
        }
    }
}

/// A layer with its weights; matrices are (out, in).
pub(super) struct Layer {
    /// The norm of the mixer's input, if it has one.
    mixer_norm: Option<RmsNorm>,
    mixer: MixerWeights,
    /// The norm of the mixer's output, if it has one.
    mixed_norm: Option<RmsNorm>,
    /// The norm of the feed-forward part's input, if it has one.
    feed_norm: Option<RmsNorm>,
    feed: Feed,
    /// The norm of the feed-forward part's output, if it has one.
    fed_norm: Option<RmsNorm>,
    inputs: Option<OwnInputs>,
    /// A factor of what the mixer and the feed-forward part add, if it is not 1.
    added_scale: Option<f32>,
    /// A factor of the residual stream after the layer.
    scale: Option<f32>,
}

enum MixerWeights {
    Attention(AttentionWeights),
    DeltaNet(DeltaNetWeights),
}

/// The part behind the mixer.
enum Feed {
    Dense(MlpWeights),
    Experts { spec: Experts, activation: Activation, mixture: Box<Mixture> },
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

/// The weights that bring the layer's additional inputs into the residual stream.
struct OwnInputs {
    activation: Activation,
    width: usize,
    /// (P, H)
    gate: Matrix,
    /// (H, P)
    projection: Matrix,
    /// The norm of what they add.
    norm: RmsNorm,
}

/// A matrix, and perhaps a bias.
struct Linear {
    weight: Matrix,
    bias: Option<Bias>,
}

struct AttentionWeights {
    spec: Attention,
    /// The rows of Q, then those of K and V if the layer has its own, then those of the gate.
    input: Matrix,
    biases: Option<[Tensor; 3]>,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    v_norm: Option<RmsNorm>,
    /// (H)
    own_scores: Option<Tensor>,
    output: Linear,
}

struct DeltaNetWeights {
    spec: DeltaNet,
    /// The rows of q, k and v, then those of z, then those of the inputs of β and of g.
    input: Matrix,
    rule: RuleWeights,
    /// (H, value width)
    output: Matrix,
}

struct MlpWeights {
    activation: Activation,
    /// The rows of gate, then those of up.
    gate_up: Linear,
    down: Linear,
}

impl Layer {
    /// Runs the layer on (rows, H). The rows are those of the parts, one part after the other: either of a single part,
    /// or of several that have one lane each.
    pub fn run(
        &self,
        index: usize,
        x: &Tensor,
        per_layer: Option<&Tensor>,
        parts: &mut [Part],
        ropes: &RopeTables,
    ) -> Result<(Tensor, Watch), PartError> {
        let (mixed, checks) = match &self.mixer {
            MixerWeights::Attention(attention) => {
                attention.run(index, x, self.mixer_norm.as_ref(), parts, ropes)?
            }
            MixerWeights::DeltaNet(net) => {
                (net.run(index, x, self.mixer_norm.as_ref(), parts)?, vec![Vec::new(); parts.len()])
            }
        };
        let lanes = lanes_of(parts);
        let (x, hidden) = self.behind_mixer(index, x, mixed, per_layer, lanes)?;
        Ok((x, Watch { layer: index, lanes, checks, hidden }))
    }

    /// Everything after the mixer. The flag says whether all numbers of the result are finite.
    fn behind_mixer(
        &self,
        index: usize,
        x: &Tensor,
        mixed: Tensor,
        per_layer: Option<&Tensor>,
        lanes: usize,
    ) -> TensorResult<(Tensor, FiniteFlag)> {
        let finite = FiniteFlag::default();
        let inner = |norm| Residual { norm, scale: None, finite: None, lanes };
        let last = |norm| Residual { norm, scale: self.scale, finite: Some(&finite), lanes };
        let scaled = |added: Tensor| match self.added_scale {
            None => Ok(added),
            Some(scale) => added.affine(f64::from(scale), 0.0),
        };
        let x = residual(x, &scaled(mixed)?, &inner(self.mixed_norm.as_ref()))?;
        let added = scaled(by_rows(&x, |x| self.feed.run(x, self.feed_norm.as_ref(), lanes))?)?;
        let norm = self.fed_norm.as_ref();
        let x = match (&self.inputs, per_layer) {
            (Some(own), Some(inputs)) => {
                let x = residual(&x, &added, &inner(norm))?;
                residual(&x, &own.run(index, &x, inputs, lanes)?, &last(Some(&own.norm)))?
            }
            _ => residual(&x, &added, &last(norm))?,
        };
        Ok((x, finite))
    }
}

impl AttentionWeights {
    fn run(
        &self,
        index: usize,
        x: &Tensor,
        before: Option<&RmsNorm>,
        parts: &mut [Part],
        ropes: &RopeTables,
    ) -> Result<(Tensor, Vec<Vec<StorageCheck>>), PartError> {
        let lanes = lanes_of(parts);
        let projected = by_rows(x, |x| product_of(&self.input, x, before, lanes))?;
        let rope = &ropes.0[index];
        let mut checks = Vec::new();
        let mut attended = by_parts(&projected, parts, |projected, part| {
            let (attended, own) = self.attend(index, projected, part, rope)?;
            checks.push(own);
            Ok(attended)
        })?;
        if self.spec.gated {
            attended = run(&SigmoidGate { start: self.gate_start() }, [&attended, &projected])?;
        }
        Ok((by_rows(&attended, |x| self.output.run(x, lanes))?, checks))
    }

    /// Stores K and V of a part, and has its queries attend.
    fn attend(
        &self,
        index: usize,
        projected: &Tensor,
        part: &mut Part,
        rope: &LayerRope,
    ) -> Result<(Tensor, Vec<StorageCheck>), CacheError> {
        let (a, rows) = (&self.spec, part.rows);
        let sequences = rows.lanes * part.sequences;
        let heads = |op: Heads| trace_span!("heads").in_scope(|| run(&op, [projected]));
        let normed = |op: Heads, norm| match a.qk_norm {
            QkNorm::Rows => of_normed_row(op, norm, projected),
            QkNorm::Heads | QkNorm::None => heads(op),
        };
        let q = normed(self.q(rope, rows), &self.q_norm)?;
        let View { k, v, start, wide_values, queries, checks } = match a.kv {
            Kv::Shared { owner } => part.cache.shared(owner)?,
            _ => {
                let stored = (sequences, rows.tokens, a.kv_heads, a.head_dim);
                let k = normed(self.k(rope, rows), &self.k_norm)?.reshape(stored)?;
                let v = heads(self.v(rows))?.reshape(stored)?;
                trace_span!("cache").in_scope(|| part.cache.append(index, k, v))?
            }
        };
        if let Some(rounding) = queries {
            rounding.round(&q.reshape((sequences, rows.tokens, a.heads, a.head_dim))?)?;
        }
        let op = SoftmaxAttention {
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            scale: a.scale,
            wide_values,
            softcap: a.softcap,
            own_scores: self.own_scores.clone(),
            window: a.window,
            queries: rows.tokens,
            keys: k.stored.dim(1)?,
            start,
            k,
            v,
        };
        let attended = trace_span!("attention").in_scope(|| run(&op, [&q]))?;
        Ok((attended, checks))
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

    fn q(&self, rope: &LayerRope, rows: Rows) -> Heads {
        let norm = self.head_norm(&self.q_norm);
        Heads { norm, rope: rope.q.clone(), ..self.part(0, 0, self.spec.heads, rows) }
    }

    fn k(&self, rope: &LayerRope, rows: Rows) -> Heads {
        let (start, norm) = (self.spec.q_width(), self.head_norm(&self.k_norm));
        Heads { norm, rope: rope.k.clone(), ..self.part(1, start, self.spec.kv_heads, rows) }
    }

    /// A norm of Q or K, if it is one of single heads.
    fn head_norm(&self, norm: &Option<RmsNorm>) -> Option<RmsNorm> {
        norm.clone().filter(|_| self.spec.qk_norm == QkNorm::Heads)
    }

    fn v(&self, rows: Rows) -> Heads {
        let a = &self.spec;
        let start = match a.kv {
            Kv::KeyIsValue => a.q_width(),
            _ => a.q_width() + a.kv_width(),
        };
        Heads { norm: self.v_norm.clone(), ..self.part(2, start, a.kv_heads, rows) }
    }

    /// The op that takes heads out of the projection. So far it only adds the bias.
    fn part(&self, part: usize, start: usize, heads: usize, rows: Rows) -> Heads {
        Heads {
            start,
            heads,
            head_dim: self.spec.head_dim,
            bias: self.biases.as_ref().map(|biases| biases[part].clone()),
            norm: None,
            rope: None,
            first: rows.start,
            tokens: rows.tokens,
        }
    }
}

impl DeltaNetWeights {
    fn run(
        &self,
        index: usize,
        x: &Tensor,
        before: Option<&RmsNorm>,
        parts: &mut [Part],
    ) -> Result<Tensor, PartError> {
        let lanes = lanes_of(parts);
        let projected = by_rows(x, |x| product_of(&self.input, x, before, lanes))?;
        let out = by_parts(&projected, parts, |projected, part| {
            let (net, tokens) = (&self.spec, part.rows.tokens);
            let sequences = part.rows.lanes * part.sequences;
            let state = match part.cache.recurrent(index) {
                Some(state) => state,
                none => none.insert(Recurrent::before(net, sequences, x.device())?),
            };
            let rule = DeltaRule { net, weights: &self.rule, tokens, state };
            Ok(trace_span!("delta rule").in_scope(|| run(&rule, [projected]))?)
        })?;
        Ok(by_rows(&out, |x| self.output.product(x, lanes))?)
    }
}

impl Feed {
    /// Computes what is added to the residual stream, (rows, H) → (rows, H).
    fn run(&self, x: &Tensor, before: Option<&RmsNorm>, lanes: usize) -> TensorResult<Tensor> {
        match self {
            Feed::Dense(mlp) => mlp.run(x, before, lanes),
            Feed::Experts { spec, activation, mixture } => {
                let x = before.map_or_else(|| Ok(x.clone()), |before| norm(x, before))?;
                mixture.run(spec, *activation, &x, &x, lanes)
            }
            Feed::Both(both) => {
                let dense = norm(&both.mlp.run(x, before, lanes)?, &both.mlp_norm)?;
                let normed = norm(x, &both.experts_norm)?;
                let mixed = both.mixture.run(&both.spec, both.activation, x, &normed, lanes)?;
                dense + norm(&mixed, &both.mixture_norm)?
            }
        }
    }
}

impl MlpWeights {
    /// The MLP of rows, or of their norms.
    fn run(&self, x: &Tensor, before: Option<&RmsNorm>, lanes: usize) -> TensorResult<Tensor> {
        let mlp = GatedMlp {
            gate_up: &self.gate_up.weight,
            bias: self.gate_up.bias.as_ref(),
            activation: self.activation,
            down: &self.down.weight,
        };
        self.down.biased(mlp.run(x, before, lanes)?)
    }
}

impl OwnInputs {
    /// project(act(gate(x)) ⊙ input), before its norm.
    fn run(&self, index: usize, x: &Tensor, inputs: &Tensor, lanes: usize) -> TensorResult<Tensor> {
        let inputs = inputs.narrow(1, index * self.width, self.width)?;
        // all lanes have the same tokens, so they share the inputs of one
        let inputs = if lanes == 1 { inputs } else { inputs.repeat((lanes, 1))? };
        by_rows(&Tensor::cat(&[&self.gate.product(x, lanes)?, &inputs], 1)?, |both| {
            self.projection.product(&run(&GatedActivation(self.activation), [both])?, lanes)
        })
    }
}

impl Linear {
    fn run(&self, x: &Tensor, lanes: usize) -> TensorResult<Tensor> {
        self.biased(self.weight.product(x, lanes)?)
    }

    fn biased(&self, y: Tensor) -> TensorResult<Tensor> {
        match &self.bias {
            None => Ok(y),
            Some(bias) => run(bias, [&y]),
        }
    }
}

/// The product of rows, or of their norms.
fn product_of(
    matrix: &Matrix,
    x: &Tensor,
    before: Option<&RmsNorm>,
    lanes: usize,
) -> TensorResult<Tensor> {
    match before {
        Some(before) => matrix.product_of_normed(x, before, lanes),
        None => matrix.product(x, lanes),
    }
}

/// The heads of rows that are normalised as wholes.
fn of_normed_row(op: Heads, row: &Option<RmsNorm>, projected: &Tensor) -> TensorResult<Tensor> {
    let width = op.heads * op.head_dim;
    let rows = projected.narrow(1, op.start, width)?.contiguous()?;
    let rows = row.as_ref().map_or_else(|| Ok(rows.clone()), |row| norm(&rows, row))?;
    trace_span!("heads").in_scope(|| run(&Heads { start: 0, ..op }, [&rows]))
}

pub(super) fn norm(x: &Tensor, norm: &RmsNorm) -> TensorResult<Tensor> {
    trace_span!("norms").in_scope(|| run(norm, [x]))
}

fn residual(x: &Tensor, y: &Tensor, residual: &Residual) -> TensorResult<Tensor> {
    trace_span!("residuals").in_scope(|| run(residual, [x, y]))
}

/// How many lanes the rows of some parts have. Several parts have one each.
fn lanes_of(parts: &[Part]) -> usize {
    match parts {
        [part] => part.rows.lanes,
        _ => 1,
    }
}

/// Applies `f` to the rows of each part and joins what it gives.
fn by_parts(
    x: &Tensor,
    parts: &mut [Part],
    mut f: impl FnMut(&Tensor, &mut Part) -> Result<Tensor, CacheError>,
) -> Result<Tensor, PartError> {
    let (mut start, mut results) = (0, Vec::new());
    for (index, part) in parts.iter_mut().enumerate() {
        let count = part.count();
        let result = f(&x.narrow(0, start, count)?, part);
        results.push(result.map_err(|error| PartError { part: Some(index), error })?);
        start += count;
    }
    Ok(Tensor::cat(&results, 0)?)
}

/// Applies `f` to blocks of rows and joins what it gives.
fn by_rows(x: &Tensor, f: impl Fn(&Tensor) -> TensorResult<Tensor>) -> TensorResult<Tensor> {
    let (rows, block) = (x.dim(0)?, product_rows(x.device()));
    if rows <= block {
        return f(x);
    }
    let blocks = (0..rows)
        .step_by(block)
        .map(|start| f(&x.narrow(0, start, block.min(rows - start))?))
        .collect::<TensorResult<Vec<_>>>()?;
    Tensor::cat(&blocks, 0)
}
