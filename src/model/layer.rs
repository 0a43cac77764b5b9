//! One layer of the decoder: mixer, feed-forward part, and what Gemma 4 adds behind them.

use super::attention::Attention as Kernel;
use super::decoder::{norm, product, At};
use super::delta_net::Rule;
use super::elementwise::{Bias, Gate, Heads, Residual, RmsNorm, RopeTable, SigmoidGate};
use super::experts::{Mixture, SharedExpert};
use super::spec::{
    self, Activation, Attention, DeltaNet, Experts, FeedForward, Kv, Mixer, Mlp, Spec,
};
use super::tensors::Reader;
use super::ModelError;
use crate::kv::cache::{CacheError, KvCache, View};
use candle_core::{Result as TensorResult, Tensor};
use std::sync::Arc;
use tracing::trace_span;

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
        let View { k, v, queries } = match a.kv {
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
            keys: k.dim(1)?,
        };
        let attended = trace_span!("attention").in_scope(|| q.apply_op3_no_bwd(&k, &v, &kernel))?;
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

impl RmsNorm {
    /// Reads the weights of a norm.
    pub(super) fn read(
        reader: &Reader,
        name: &str,
        len: usize,
        eps: f32,
    ) -> Result<Self, ModelError> {
        Ok(RmsNorm { weight: Arc::new(vector(reader, name, len)?), eps })
    }

    /// A norm without weights.
    fn plain(len: usize, eps: f32) -> Self {
        RmsNorm { weight: Arc::new(vec![1.0; len]), eps }
    }
}

fn vector(reader: &Reader, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
    Ok(reader.tensor(name, &[len])?.to_vec1()?)
}

/// Reads the tensors of one layer.
struct LayerReader<'a> {
    spec: &'a Spec,
    index: usize,
    reader: &'a Reader<'a>,
}

impl Layer {
    pub fn read(spec: &Spec, index: usize, reader: &Reader) -> Result<Self, ModelError> {
        let layer = &spec.layers[index];
        let own = LayerReader { spec, index, reader };
        Ok(Layer {
            mixer_norm: own.norm("attn_norm.weight", spec.hidden)?,
            mixer: match &layer.mixer {
                Mixer::Attention(attention) => MixerWeights::Attention(own.attention(attention)?),
                Mixer::DeltaNet(net) => MixerWeights::DeltaNet(own.delta_net(net)?),
            },
            mixer_residual: own.residual("post_attention_norm.weight", layer.post_norms)?,
            feed_norm: own.norm("ffn_norm.weight", spec.hidden)?,
            feed: own.feed(layer)?,
            feed_residual: own.residual("post_ffw_norm.weight", layer.post_norms)?,
            inputs: own.inputs(layer.activation)?,
            scale: layer.scaled.then(|| own.scale()).transpose()?,
        })
    }
}

impl LayerReader<'_> {
    fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.index)
    }

    fn tensor(&self, part: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.reader.tensor(&self.name(part), shape)
    }

    fn vector(&self, part: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        vector(self.reader, &self.name(part), len)
    }

    fn norm(&self, part: &str, len: usize) -> Result<RmsNorm, ModelError> {
        RmsNorm::read(self.reader, &self.name(part), len, self.spec.norm_eps)
    }

    fn residual(&self, part: &str, normed: bool) -> Result<Residual, ModelError> {
        let norm = normed.then(|| self.norm(part, self.spec.hidden)).transpose()?;
        Ok(Residual { norm })
    }

    /// Matrices with the same input, one below the other.
    fn stacked(&self, parts: &[(&str, usize)]) -> Result<Tensor, ModelError> {
        let read = |(part, out): &(&str, usize)| self.tensor(part, &[*out, self.spec.hidden]);
        let parts = parts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }

    fn bias(&self, parts: &[(&str, usize)]) -> Result<Bias, ModelError> {
        let read = |(part, len): &(&str, usize)| self.vector(part, *len);
        let parts = parts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Bias(Arc::new(parts.concat())))
    }

    fn attention(&self, a: &Attention) -> Result<AttentionWeights, ModelError> {
        let (q, kv) = (a.q_width(), a.kv_width());
        let biases = || -> Result<_, ModelError> {
            let bias = |part: &str, len| self.vector(part, len).map(Arc::new);
            Ok([bias("attn_q.bias", q)?, bias("attn_k.bias", kv)?, bias("attn_v.bias", kv)?])
        };
        let qk_norm = |part: &str, has: bool| has.then(|| self.norm(part, a.head_dim)).transpose();
        let output_bias = || self.bias(&[("attn_output.bias", self.spec.hidden)]);
        if !a.owns_kv() {
            // the original files of E2B and E4B hold them all the same
            for part in ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"] {
                self.reader.idle(&self.name(part));
            }
        }
        Ok(AttentionWeights {
            spec: a.clone(),
            input: self.attention_input(a)?,
            biases: a.qkv_bias.then(biases).transpose()?,
            q_norm: qk_norm("attn_q_norm.weight", a.qk_norm)?,
            k_norm: qk_norm("attn_k_norm.weight", a.qk_norm && a.owns_kv())?,
            v_norm: a.v_norm.then(|| RmsNorm::plain(a.head_dim, self.spec.norm_eps)),
            output: Linear {
                weight: self.tensor("attn_output.weight", &[self.spec.hidden, q])?,
                bias: a.output_bias.then(output_bias).transpose()?,
            },
        })
    }

    /// Rows of Q, K, V and the gate. Files hold a head's gate behind its Q.
    fn attention_input(&self, a: &Attention) -> Result<Tensor, ModelError> {
        let (q, kv, hidden) = (a.q_width(), a.kv_width(), self.spec.hidden);
        let both = self.tensor("attn_q.weight", &[if a.gated { 2 * q } else { q }, hidden])?;
        let half = |at: usize| {
            self.reader.arranged(both.clone(), |both| {
                let heads = both.reshape((a.heads, 2, a.head_dim, hidden))?;
                heads.narrow(1, at, 1)?.contiguous()?.reshape((q, hidden))
            })
        };
        let mut rows = vec![if a.gated { half(0)? } else { both.clone() }];
        if a.owns_kv() {
            rows.push(self.tensor("attn_k.weight", &[kv, hidden])?);
        }
        if a.kv == Kv::Projected {
            rows.push(self.tensor("attn_v.weight", &[kv, hidden])?);
        }
        if a.gated {
            rows.push(half(1)?);
        }
        Ok(Tensor::cat(&rows, 0)?)
    }

    fn delta_net(&self, net: &DeltaNet) -> Result<DeltaNetWeights, ModelError> {
        let (heads, channels) = (net.value_heads, net.channels());
        let convolution = self.tensor("ssm_conv1d.weight", &[channels, net.kernel])?;
        Ok(DeltaNetWeights {
            spec: net.clone(),
            input: self.stacked(&[
                ("attn_qkv.weight", channels),
                ("attn_gate.weight", net.value_width()),
                ("ssm_beta.weight", heads),
                ("ssm_alpha.weight", heads),
            ])?,
            rule: Rule {
                convolution: convolution.flatten_all()?.to_vec1()?,
                decay: self.vector("ssm_a", heads)?,
                time_bias: self.vector("ssm_dt.bias", heads)?,
                norm: self.vector("ssm_norm.weight", net.value_dim)?,
                norm_eps: self.spec.norm_eps,
            },
            output: self.tensor("ssm_out.weight", &[self.spec.hidden, net.value_width()])?,
        })
    }

    fn feed(&self, layer: &spec::Layer) -> Result<Feed, ModelError> {
        let (activation, hidden) = (layer.activation, self.spec.hidden);
        Ok(match &layer.feed_forward {
            FeedForward::Dense(mlp) => Feed::Dense(self.mlp(mlp, activation)?),
            FeedForward::Experts(spec) => {
                Feed::Experts { spec: spec.clone(), activation, mixture: self.mixture(spec)? }
            }
            FeedForward::Both(mlp, spec) => Feed::Both(Box::new(Both {
                mlp: self.mlp(mlp, activation)?,
                mlp_norm: self.norm("post_ffw_norm_1.weight", hidden)?,
                spec: spec.clone(),
                activation,
                experts_norm: self.norm("pre_ffw_norm_2.weight", hidden)?,
                mixture: self.mixture(spec)?,
                mixture_norm: self.norm("post_ffw_norm_2.weight", hidden)?,
            })),
        })
    }

    fn mlp(&self, mlp: &Mlp, activation: Activation) -> Result<MlpWeights, ModelError> {
        let (hidden, width) = (self.spec.hidden, mlp.width);
        let inner = || self.bias(&[("ffn_gate.bias", width), ("ffn_up.bias", width)]);
        let outer = || self.bias(&[("ffn_down.bias", hidden)]);
        Ok(MlpWeights {
            activation,
            gate_up: Linear {
                weight: self.stacked(&[("ffn_gate.weight", width), ("ffn_up.weight", width)])?,
                bias: mlp.bias.then(inner).transpose()?,
            },
            down: Linear {
                weight: self.tensor("ffn_down.weight", &[hidden, width])?,
                bias: mlp.bias.then(outer).transpose()?,
            },
        })
    }

    fn mixture(&self, spec: &Experts) -> Result<Mixture, ModelError> {
        let (hidden, count, width) = (self.spec.hidden, spec.count, spec.width);
        Ok(Mixture {
            router: self.tensor("ffn_gate_inp.weight", &[count, hidden])?,
            router_norm: spec.scaled_router.then(|| self.router_norm()).transpose()?,
            gate_up: self.tensor("ffn_gate_up_exps.weight", &[count, 2 * width, hidden])?,
            down: self.tensor("ffn_down_exps.weight", &[count, hidden, width])?,
            scales: spec
                .scaled_router
                .then(|| self.vector("ffn_down_exps.scale", count))
                .transpose()?,
            shared: spec.shared.map(|width| self.shared_expert(width)).transpose()?,
        })
    }

    /// rms(x) ⊙ scale / √H, as one norm.
    fn router_norm(&self) -> Result<RmsNorm, ModelError> {
        let mut weight = self.vector("ffn_gate_inp.scale", self.spec.hidden)?;
        let root = (self.spec.hidden as f32).sqrt();
        weight.iter_mut().for_each(|w| *w /= root);
        Ok(RmsNorm { weight: Arc::new(weight), eps: self.spec.norm_eps })
    }

    fn shared_expert(&self, width: usize) -> Result<SharedExpert, ModelError> {
        Ok(SharedExpert {
            gate_up: self
                .stacked(&[("ffn_gate_shexp.weight", width), ("ffn_up_shexp.weight", width)])?,
            down: self.tensor("ffn_down_shexp.weight", &[self.spec.hidden, width])?,
            weight: self.tensor("ffn_gate_inp_shexp.weight", &[1, self.spec.hidden])?,
        })
    }

    fn inputs(&self, activation: Activation) -> Result<Option<OwnInputs>, ModelError> {
        let Some(inputs) = &self.spec.per_layer_inputs else { return Ok(None) };
        let (hidden, width) = (self.spec.hidden, inputs.width);
        Ok(Some(OwnInputs {
            activation,
            width,
            gate: self.tensor("inp_gate.weight", &[width, hidden])?,
            projection: self.tensor("proj.weight", &[hidden, width])?,
            residual: self.residual("post_norm.weight", true)?,
        }))
    }

    fn scale(&self) -> Result<f64, ModelError> {
        // empty where nothing is read
        let scale = self.vector("layer_output_scale.weight", 1)?;
        Ok(scale.first().map_or(1.0, |&scale| scale.into()))
    }
}
