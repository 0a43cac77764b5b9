//! What a decoder is made of: the facts that a family file reads from a checkpoint's configuration.

/// A decoder-only transformer.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Architecture as the checkpoint names it.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Context that the model was trained for.
    pub trained_context: usize,
    /// Embeddings are multiplied by this (1, or √hidden in Gemma).
    pub embed_scale: f32,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// ε of every RMS norm.
    pub norm_eps: f32,
    /// One entry a layer, bottom first.
    pub layers: Vec<Layer>,
}

/// One layer: attention, then a gated MLP, each with a norm before and perhaps one after.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Its attention.
    pub attention: Attention,
    /// Width of the MLP.
    pub mlp: usize,
    /// Activation of the MLP's gate.
    pub activation: Activation,
    /// Gemma normalises what attention and MLP add to the residual stream, too.
    pub post_norms: bool,
}

/// Softmax attention whose keys and values are cached: K after norm and RoPE, V as projected.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head h reads KV head h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Elements in a head of Q, K and V.
    pub head_dim: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// A query sees this many keys, its own included; none: all that came before.
    pub window: Option<usize>,
    /// Whether Q, K and V have biases.
    pub qkv_bias: bool,
    /// Whether each head of Q and K passes an RMS norm before RoPE.
    pub qk_norm: bool,
    /// Rotary position embedding of Q and K.
    pub rope: Rope,
}

/// Rotary position embedding over the whole head.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base θ of the frequencies θ^(-2i/d).
    pub base: f64,
    /// Frequencies are divided by this (linear scaling).
    pub factor: f64,
    /// Which elements turn together.
    pub pairs: Pairs,
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// (2i, 2i+1): GGUF's `llama`, whose converter permutes Q and K.
    Adjacent,
    /// (i, i + d/2): everything else.
    Halves,
}

/// Activation of a gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x)
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

impl Attention {
    /// Elements of K (and of V) that one token adds to the cache.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of Q for one token.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
}

impl Spec {
    /// Number of parameters that the specification implies.
    pub fn parameters(&self) -> u64 {
        let layers: usize = self
            .layers
            .iter()
            .map(|layer| {
                let a = &layer.attention;
                let qkv = a.q_width() + 2 * a.kv_width();
                let norms = (if layer.post_norms { 4 } else { 2 }) * self.hidden
                    + if a.qk_norm { 2 * a.head_dim } else { 0 };
                self.hidden * (qkv + a.q_width() + 3 * layer.mlp)
                    + norms
                    + if a.qkv_bias { qkv } else { 0 }
            })
            .sum();
        let tables = if self.tied_head { 1 } else { 2 };
        (layers + tables * self.vocab * self.hidden + self.hidden) as u64
    }
}
