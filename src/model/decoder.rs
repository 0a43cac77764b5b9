//! The one decoder: embedding, layers with attention over a [`KvCache`], a final norm and a head.
//!
//! Rows are (B·T): B sequences of T tokens, one after the other. Activations are f32 throughout.
//! The caller drives it layer by layer, so that one layer's weights serve every lane and chunk
//! before the next layer is touched.

use super::attention::Attention;
use super::elementwise::{Gate, Heads, Residual, RmsNorm, RopeTable};
use super::gguf::Gguf;
use super::spec::{Layer, Spec};
use super::ModelError;
use crate::kv::cache::{CacheError, KvCache, View};
use candle_core::{DType, Tensor};
use std::sync::Arc;
use tracing::trace_span;

/// How weights are kept in memory. Products are f32 either way: bf16 weights are widened a layer at
/// a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightStorage {
    /// Four bytes a weight.
    F32,
    /// Two bytes a weight; the mantissa is cut to 8 bits.
    Bf16,
}

impl WeightStorage {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            WeightStorage::F32 => "f32",
            WeightStorage::Bf16 => "bf16",
        }
    }

    /// Bytes of a weight.
    pub fn bytes(self) -> u64 {
        match self {
            WeightStorage::F32 => 4,
            WeightStorage::Bf16 => 2,
        }
    }
}

/// Rows of a product's output that are made at once: wide outputs of more rows leave the caches.
const ROWS: usize = 1024;

/// A decoder with its weights.
pub struct Decoder {
    /// What it is made of.
    pub spec: Spec,
    /// (V, H)
    embedding: Tensor,
    /// (V, H)
    head: Tensor,
    norm: RmsNorm,
    layers: Vec<Weights>,
}

/// Weights of one layer; matrices are (out, in).
struct Weights {
    attention_norm: RmsNorm,
    /// Q, K and V rows, one after the other.
    qkv: Tensor,
    bias: Option<[Arc<Vec<f32>>; 3]>,
    qk_norms: Option<[RmsNorm; 2]>,
    output: Tensor,
    attention_residual: Residual,
    mlp_norm: RmsNorm,
    /// Gate and up rows, one after the other.
    gate_up: Tensor,
    down: Tensor,
    mlp_residual: Residual,
}

/// A layer that is ready to run: its weights in f32.
pub struct ReadyLayer<'a> {
    index: usize,
    spec: &'a Layer,
    weights: &'a Weights,
    qkv: Tensor,
    output: Tensor,
    gate_up: Tensor,
    down: Tensor,
    rope: Arc<RopeTable>,
}

/// RoPE tables for every layer of a decoder, for contexts up to some length.
pub struct Ropes(Vec<Arc<RopeTable>>);

impl Decoder {
    pub(super) fn load(
        spec: &Spec,
        file: &Gguf,
        storage: WeightStorage,
    ) -> Result<Self, ModelError> {
        let reader = Reader { spec, file, storage };
        let table = [spec.vocab, spec.hidden];
        let embedding = reader.matrix("token_embd.weight", &table)?;
        let head = match spec.tied_head {
            true => embedding.clone(),
            false => reader.matrix("output.weight", &table)?,
        };
        let layers = (0..spec.layers.len()).map(|i| reader.layer(i)).collect::<Result<_, _>>()?;
        let norm = reader.norm("output_norm.weight", spec.hidden)?;
        // a tensor that no layer reads means another model than the one that would be measured
        if let [first, ..] = &file.unread()[..] {
            let n = file.unread().len();
            return Err(file.unsupported(format!(
                "an architecture with {n} tensors that `{}` does not have, such as `{first}`,",
                spec.architecture
            )));
        }
        Ok(Decoder { spec: spec.clone(), embedding, head, norm, layers })
    }

    /// Scaled embeddings of token ids, (n, H).
    ///
    /// # Errors
    /// Ids outside of the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let ids = Tensor::new(ids, self.embedding.device())?;
        let rows = self.embedding.index_select(&ids, 0)?.to_dtype(DType::F32)?;
        rows.affine(f64::from(self.spec.embed_scale), 0.0)
    }

    /// RoPE tables for contexts of up to `tokens`.
    pub fn ropes(&self, tokens: usize) -> Ropes {
        let mut tables: Vec<Arc<RopeTable>> = Vec::new();
        for (i, layer) in self.spec.layers.iter().enumerate() {
            let a = &layer.attention;
            // layers of one kind share a table
            let known = self.spec.layers[..i]
                .iter()
                .position(|l| l.attention.rope == a.rope && l.attention.head_dim == a.head_dim);
            tables.push(match known {
                Some(same) => tables[same].clone(),
                None => Arc::new(RopeTable::new(&a.rope, a.head_dim, tokens)),
            });
        }
        Ropes(tables)
    }

    /// Makes a layer ready, widening its weights if they are stored narrow.
    ///
    /// # Errors
    /// Failures of tensor operations.
    pub fn ready(&self, index: usize, ropes: &Ropes) -> candle_core::Result<ReadyLayer<'_>> {
        let weights = &self.layers[index];
        let wide = |w: &Tensor| w.to_dtype(DType::F32);
        Ok(ReadyLayer {
            index,
            spec: &self.spec.layers[index],
            weights,
            qkv: wide(&weights.qkv)?,
            output: wide(&weights.output)?,
            gate_up: wide(&weights.gate_up)?,
            down: wide(&weights.down)?,
            rope: ropes.0[index].clone(),
        })
    }

    /// The final norm.
    ///
    /// # Errors
    /// Failures of tensor operations.
    pub fn normed(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        norm(x, &self.norm)
    }

    /// Logits of normed rows for the vocabulary entries `start..start + len`: (rows, len).
    ///
    /// # Errors
    /// Failures of tensor operations.
    pub fn logits(&self, normed: &Tensor, start: usize, len: usize) -> candle_core::Result<Tensor> {
        let head = self.head.narrow(0, start, len)?.to_dtype(DType::F32)?;
        product(normed, &head)
    }
}

impl ReadyLayer<'_> {
    /// Runs the layer on B sequences of `tokens` tokens from position 0: (B·T, H) → (B·T, H).
    ///
    /// # Errors
    /// What the cache refuses, and failures of tensor operations.
    pub fn run(
        &self,
        x: &Tensor,
        tokens: usize,
        cache: &mut dyn KvCache,
    ) -> Result<Tensor, CacheError> {
        let attended = self.attention(x, tokens, cache)?;
        let x = residual(x, &attended, &self.weights.attention_residual)?;
        let added = by_rows(&x, |x| {
            let both = product(&norm(x, &self.weights.mlp_norm)?, &self.gate_up)?;
            let gate = Gate(self.spec.activation);
            let gated = trace_span!("gate").in_scope(|| both.apply_op1_no_bwd(&gate))?;
            product(&gated, &self.down)
        })?;
        Ok(residual(&x, &added, &self.weights.mlp_residual)?)
    }

    fn attention(
        &self,
        x: &Tensor,
        tokens: usize,
        cache: &mut dyn KvCache,
    ) -> Result<Tensor, CacheError> {
        let a = &self.spec.attention;
        let sequences = x.dim(0)? / tokens;
        let qkv = by_rows(x, |x| product(&norm(x, &self.weights.attention_norm)?, &self.qkv))?;
        let heads = trace_span!("heads").entered();
        let q = qkv.apply_op1_no_bwd(&self.heads(0, tokens))?;
        let stored = (sequences, tokens, a.kv_heads, a.head_dim);
        let k = qkv.apply_op1_no_bwd(&self.heads(1, tokens))?.reshape(stored)?;
        let v = qkv.apply_op1_no_bwd(&self.heads(2, tokens))?.reshape(stored)?;
        drop(heads);
        let View { k, v, queries } =
            trace_span!("cache").in_scope(|| cache.append(self.index, k, v))?;
        if let Some(rounding) = queries {
            rounding.round(&q.reshape((sequences, tokens, a.heads, a.head_dim))?)?;
        }
        let attention = Attention {
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            scale: a.scale,
            window: a.window,
            queries: tokens,
            keys: k.dim(1)?,
        };
        let attended =
            trace_span!("attention").in_scope(|| q.apply_op3_no_bwd(&k, &v, &attention))?;
        Ok(by_rows(&attended, |x| product(x, &self.output))?)
    }

    /// The op that finishes Q (0), K (1) or V (2). V has neither norm nor RoPE.
    fn heads(&self, part: usize, tokens: usize) -> Heads {
        let a = &self.spec.attention;
        Heads {
            start: [0, a.q_width(), a.q_width() + a.kv_width()][part],
            heads: if part == 0 { a.heads } else { a.kv_heads },
            head_dim: a.head_dim,
            bias: self.weights.bias.as_ref().map(|b| b[part].clone()),
            norm: self.weights.qk_norms.as_ref().and_then(|n| n.get(part)).cloned(),
            rope: (part < 2).then(|| self.rope.clone()),
            tokens,
        }
    }
}

/// x·Wᵀ for W of (out, in).
fn product(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    trace_span!("products").in_scope(|| x.matmul(&weight.t()?))
}

fn norm(x: &Tensor, norm: &RmsNorm) -> candle_core::Result<Tensor> {
    trace_span!("norms").in_scope(|| x.apply_op1_no_bwd(norm))
}

fn residual(x: &Tensor, y: &Tensor, residual: &Residual) -> candle_core::Result<Tensor> {
    trace_span!("residuals").in_scope(|| x.apply_op2_no_bwd(y, residual))
}

/// Applies `f` to blocks of rows and joins what it gives.
fn by_rows(
    x: &Tensor,
    f: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let rows = x.dim(0)?;
    if rows <= ROWS {
        return f(x);
    }
    let blocks = (0..rows)
        .step_by(ROWS)
        .map(|start| f(&x.narrow(0, start, ROWS.min(rows - start))?))
        .collect::<candle_core::Result<Vec<_>>>()?;
    Tensor::cat(&blocks, 0)
}

/// Reads tensors under their GGUF names.
struct Reader<'a> {
    spec: &'a Spec,
    file: &'a Gguf,
    storage: WeightStorage,
}

impl Reader<'_> {
    fn matrix(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.stored(self.file.tensor(name, shape)?)
    }

    fn stored(&self, wide: Tensor) -> Result<Tensor, ModelError> {
        Ok(match self.storage {
            WeightStorage::F32 => wide,
            WeightStorage::Bf16 => wide.to_dtype(DType::BF16)?,
        })
    }

    /// Matrices with the same input, one below the other.
    fn stacked(&self, parts: &[(String, usize)]) -> Result<Tensor, ModelError> {
        let parts = parts
            .iter()
            .map(|(name, out)| self.file.tensor(name, &[*out, self.spec.hidden]))
            .collect::<Result<Vec<_>, _>>()?;
        self.stored(Tensor::cat(&parts, 0)?)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Arc<Vec<f32>>, ModelError> {
        Ok(Arc::new(self.file.tensor(name, &[len])?.to_vec1()?))
    }

    fn norm(&self, name: &str, len: usize) -> Result<RmsNorm, ModelError> {
        Ok(RmsNorm { weight: self.vector(name, len)?, eps: self.spec.norm_eps })
    }

    fn layer(&self, index: usize) -> Result<Weights, ModelError> {
        let Layer { attention: a, mlp, post_norms, .. } = &self.spec.layers[index];
        let (hidden, q, kv) = (self.spec.hidden, a.q_width(), a.kv_width());
        let name = |part: &str| format!("blk.{index}.{part}");
        let residual = |part: &str| -> Result<Residual, ModelError> {
            let norm = post_norms.then(|| self.norm(&name(part), hidden)).transpose()?;
            Ok(Residual { norm })
        };
        let bias = || -> Result<_, ModelError> {
            Ok([
                self.vector(&name("attn_q.bias"), q)?,
                self.vector(&name("attn_k.bias"), kv)?,
                self.vector(&name("attn_v.bias"), kv)?,
            ])
        };
        let qk_norms = || -> Result<_, ModelError> {
            Ok([
                self.norm(&name("attn_q_norm.weight"), a.head_dim)?,
                self.norm(&name("attn_k_norm.weight"), a.head_dim)?,
            ])
        };
        Ok(Weights {
            attention_norm: self.norm(&name("attn_norm.weight"), hidden)?,
            qkv: self.stacked(&[
                (name("attn_q.weight"), q),
                (name("attn_k.weight"), kv),
                (name("attn_v.weight"), kv),
            ])?,
            bias: a.qkv_bias.then(bias).transpose()?,
            qk_norms: a.qk_norm.then(qk_norms).transpose()?,
            output: self.matrix(&name("attn_output.weight"), &[hidden, q])?,
            attention_residual: residual("post_attention_norm.weight")?,
            mlp_norm: self.norm(&name("ffn_norm.weight"), hidden)?,
            gate_up: self
                .stacked(&[(name("ffn_gate.weight"), *mlp), (name("ffn_up.weight"), *mlp)])?,
            down: self.matrix(&name("ffn_down.weight"), &[hidden, *mlp])?,
            mlp_residual: residual("post_ffw_norm.weight")?,
        })
    }
}
