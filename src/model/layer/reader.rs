//! Reading a layer: which tensors its parts are made of.

use super::{AttentionWeights, Both, DeltaNetWeights, Feed, Layer, Linear, MixerWeights};
use super::{MlpWeights, OwnInputs};
use crate::compute::bias::Bias;
use crate::compute::delta_rule::RuleWeights;
use crate::compute::norm::RmsNorm;
use crate::compute::product::{Matrix, MatrixStack};
use crate::model::experts::{Mixture, SharedExpert};
use crate::model::spec::{
    self, Activation, Attention, DeltaNet, Experts, FeedForward, Kv, Mixer, Mlp, QkNorm, Scoring,
    Spec,
};
use crate::model::tensors::Reader;
use crate::model::ModelError;
use candle_core::{DType, Tensor};

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
            mixer_norm: own.half_norm("attn_norm.weight", layer.pre_norms)?,
            mixer: match &layer.mixer {
                Mixer::Attention(attention) => MixerWeights::Attention(own.attention(attention)?),
                Mixer::DeltaNet(net) => MixerWeights::DeltaNet(own.delta_net(net)?),
            },
            mixed_norm: own.half_norm("post_attention_norm.weight", layer.post_norms)?,
            feed_norm: own.half_norm("ffn_norm.weight", layer.pre_norms)?,
            feed: own.feed(layer)?,
            fed_norm: own.half_norm("post_ffw_norm.weight", layer.post_norms)?,
            inputs: own.inputs(layer.activation)?,
            added_scale: (layer.added_scale != 1.0).then_some(layer.added_scale),
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

    fn matrix(&self, part: &str, shape: &[usize]) -> Result<Matrix, ModelError> {
        self.reader.matrix(&self.name(part), shape)
    }

    fn norm(&self, part: &str, len: usize) -> Result<RmsNorm, ModelError> {
        self.reader.norm(&self.name(part), len, self.spec.norm_eps)
    }

    /// Reads a norm before or behind a half of the layer, if there is one.
    fn half_norm(&self, part: &str, normed: bool) -> Result<Option<RmsNorm>, ModelError> {
        normed.then(|| self.norm(part, self.spec.hidden)).transpose()
    }

    /// Stacks matrices with the same input into one.
    fn stacked(&self, parts: &[(&str, usize)]) -> Result<Matrix, ModelError> {
        let read = |(part, out): &(&str, usize)| self.tensor(part, &[*out, self.spec.hidden]);
        let parts = parts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        self.reader.matrix_of(Tensor::cat(&parts, 0)?)
    }

    fn bias(&self, parts: &[(&str, usize)]) -> Result<Bias, ModelError> {
        let read = |(part, len): &(&str, usize)| self.tensor(part, &[*len]);
        let parts = parts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Bias(Tensor::cat(&parts, 0)?))
    }

    fn attention(&self, a: &Attention) -> Result<AttentionWeights, ModelError> {
        let (q, kv) = (a.q_width(), a.kv_width());
        let biases = || -> Result<_, ModelError> {
            let bias = |part: &str, len| self.tensor(part, &[len]);
            let joined = "attn_qkv.bias";
            if self.reader.has(&self.name(joined)) {
                let all = bias(joined, q + 2 * kv)?;
                let part =
                    |start, len| self.reader.arranged(all.clone(), |all| all.narrow(0, start, len));
                return Ok([part(0, q)?, part(q, kv)?, part(q + kv, kv)?]);
            }
            Ok([bias("attn_q.bias", q)?, bias("attn_k.bias", kv)?, bias("attn_v.bias", kv)?])
        };
        let qk_norm = |part: &str, row: usize, has: bool| match a.qk_norm {
            QkNorm::Heads if has => self.norm(part, a.head_dim).map(Some),
            QkNorm::Rows if has => self.norm(part, row).map(Some),
            _ => Ok(None),
        };
        let own_scores = || self.tensor("attn_sinks.weight", &[a.heads]);
        let v_norm = || self.reader.plain_norm(a.head_dim, self.spec.norm_eps);
        let output_bias = || self.bias(&[("attn_output.bias", self.spec.hidden)]);
        if !a.owns_kv() {
            // the original files of E2B and E4B have these tensors although nothing uses them
            for part in ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"] {
                self.reader.allow_unused(&self.name(part));
            }
        }
        Ok(AttentionWeights {
            spec: a.clone(),
            input: self.attention_input(a)?,
            biases: a.qkv_bias.then(biases).transpose()?,
            q_norm: qk_norm("attn_q_norm.weight", q, true)?,
            k_norm: qk_norm("attn_k_norm.weight", kv, a.owns_kv())?,
            v_norm: a.v_norm.then(v_norm).transpose()?,
            own_scores: a.own_scores.then(own_scores).transpose()?,
            output: Linear {
                weight: self.matrix("attn_output.weight", &[self.spec.hidden, q])?,
                bias: a.output_bias.then(output_bias).transpose()?,
            },
        })
    }

    /// Stacks the rows of Q, K, V and the gate. In the files the gate of each head follows its Q.
    fn attention_input(&self, a: &Attention) -> Result<Matrix, ModelError> {
        let (q, kv, hidden) = (a.q_width(), a.kv_width(), self.spec.hidden);
        // some GGUF files of other families have joined matrices, too
        let joined = "attn_qkv.weight";
        let is_plain = !a.gated && a.kv == Kv::Projected;
        if a.fused || is_plain && self.reader.has(&self.name(joined)) {
            return self.matrix(joined, &[q + 2 * kv, hidden]);
        }
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
        self.reader.matrix_of(Tensor::cat(&rows, 0)?)
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
            rule: RuleWeights {
                convolution,
                decay: self.tensor("ssm_a", &[heads])?,
                time_bias: self.tensor("ssm_dt.bias", &[heads])?,
                norm: self.norm("ssm_norm.weight", net.value_dim)?,
            },
            output: self.matrix("ssm_out.weight", &[self.spec.hidden, net.value_width()])?,
        })
    }

    fn feed(&self, layer: &spec::Layer) -> Result<Feed, ModelError> {
        let (activation, hidden) = (layer.activation, self.spec.hidden);
        Ok(match &layer.feed_forward {
            FeedForward::Dense(mlp) => Feed::Dense(self.mlp(mlp, activation)?),
            FeedForward::Experts(spec) => Feed::Experts {
                spec: spec.clone(),
                activation,
                mixture: Box::new(self.mixture(spec)?),
            },
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
                weight: match mlp.fused {
                    true => self.matrix("ffn_up.weight", &[2 * width, hidden])?,
                    false => {
                        self.stacked(&[("ffn_gate.weight", width), ("ffn_up.weight", width)])?
                    }
                },
                bias: mlp.bias.then(inner).transpose()?,
            },
            down: Linear {
                weight: self.matrix("ffn_down.weight", &[hidden, width])?,
                bias: mlp.bias.then(outer).transpose()?,
            },
        })
    }

    fn mixture(&self, spec: &Experts) -> Result<Mixture, ModelError> {
        let (hidden, count, width) = (self.spec.hidden, spec.count, spec.width);
        Ok(Mixture {
            router: self.matrix("ffn_gate_inp.weight", &[count, hidden])?,
            router_bias: spec
                .biases
                .then(|| self.bias(&[("ffn_gate_inp.bias", count)]))
                .transpose()?,
            correction: match spec.scoring {
                Scoring::Softmax => None,
                Scoring::Sigmoid => Some(self.tensor("exp_probs_b.bias", &[count])?),
            },
            router_norm: spec.scaled_router.then(|| self.router_norm()).transpose()?,
            gate_up: self.experts("ffn_gate_up_exps.weight", &[count, 2 * width, hidden])?,
            down: self.experts("ffn_down_exps.weight", &[count, hidden, width])?,
            biases: spec.biases.then(|| self.expert_biases(spec)).transpose()?,
            scales: self.expert_scales(spec)?,
            shared: spec.shared.as_ref().map(|shared| self.shared_expert(shared)).transpose()?,
        })
    }

    /// A matrix for each expert.
    fn experts(&self, part: &str, shape: &[usize]) -> Result<MatrixStack, ModelError> {
        self.reader.matrices(&self.name(part), shape)
    }

    /// rms(x) ⊙ scale / √H, as one norm.
    fn router_norm(&self) -> Result<RmsNorm, ModelError> {
        let norm = self.norm("ffn_gate_inp.scale", self.spec.hidden)?;
        let root = Tensor::new((self.spec.hidden as f32).sqrt(), self.reader.place())?;
        Ok(RmsNorm { weight: norm.weight.broadcast_div(&root)?, ..norm })
    }

    fn expert_biases(&self, spec: &Experts) -> Result<[Tensor; 2], ModelError> {
        Ok([
            self.tensor("ffn_gate_up_exps.bias", &[spec.count, 2 * spec.width])?,
            self.tensor("ffn_down_exps.bias", &[spec.count, self.spec.hidden])?,
        ])
    }

    /// The factors of the experts' weights, unless all of them are 1.
    fn expert_scales(&self, spec: &Experts) -> Result<Option<Tensor>, ModelError> {
        let scales = match spec.scaled_router {
            true => self.tensor("ffn_down_exps.scale", &[spec.count])?,
            false if spec.factor == 1.0 => return Ok(None),
            false => Tensor::ones(spec.count, DType::F32, self.reader.place())?,
        };
        Ok(Some(scales.affine(f64::from(spec.factor), 0.0)?))
    }

    fn shared_expert(&self, shared: &spec::SharedExpert) -> Result<SharedExpert, ModelError> {
        let (hidden, width) = (self.spec.hidden, shared.width);
        let weight = || self.matrix("ffn_gate_inp_shexp.weight", &[1, hidden]);
        Ok(SharedExpert {
            gate_up: match shared.fused {
                true => self.matrix("ffn_gate_up_shexp.weight", &[2 * width, hidden])?,
                false => self
                    .stacked(&[("ffn_gate_shexp.weight", width), ("ffn_up_shexp.weight", width)])?,
            },
            down: self.matrix("ffn_down_shexp.weight", &[hidden, width])?,
            weight: shared.gated.then(weight).transpose()?,
        })
    }

    fn inputs(&self, activation: Activation) -> Result<Option<OwnInputs>, ModelError> {
        let Some(inputs) = &self.spec.per_layer_inputs else { return Ok(None) };
        let (hidden, width) = (self.spec.hidden, inputs.width);
        Ok(Some(OwnInputs {
            activation,
            width,
            gate: self.matrix("inp_gate.weight", &[width, hidden])?,
            projection: self.matrix("proj.weight", &[hidden, width])?,
            norm: self.norm("post_norm.weight", hidden)?,
        }))
    }

    fn scale(&self) -> Result<f32, ModelError> {
        // empty where nothing is read
        let scale = self.tensor("layer_output_scale.weight", &[1])?.to_vec1()?;
        Ok(scale.first().copied().unwrap_or(1.0))
    }
}
