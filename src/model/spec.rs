//! What a decoder is made of: the facts that a family file reads from a checkpoint's configuration.

pub use crate::compute::delta_rule::{DeltaNet, HeadOrder};
pub use crate::compute::gate::Activation;
pub use crate::compute::rope::Pairs;

use crate::kv::layout::LayerKv;
use std::sync::Arc;

/// A decoder-only language model.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Architecture as the checkpoint names it.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// The context length that the model was trained for.
    pub trained_context: usize,
    /// Embeddings are multiplied by this (1, or √hidden in Gemma).
    pub embed_scale: f32,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// ε of every RMS norm.
    pub norm_eps: f32,
    /// Logits are multiplied by this, before they are capped (1, or less in Granite).
    pub logit_scale: f32,
    /// Logits are capped to c·tanh(logits / c).
    pub final_softcap: Option<f32>,
    /// An additional input for each layer (Gemma 4 E2B and E4B).
    pub per_layer_inputs: Option<PerLayerInputs>,
    /// The layers, from the bottom up.
    pub layers: Vec<Layer>,
    /// Prefixes of the names of tensors that are not needed to predict the next token, and that may therefore stay
    /// unread.
    pub ignored_tensors: Vec<String>,
}

/// A second embedding, with a vector for each token and layer.
#[derive(Debug, Clone, PartialEq)]
pub struct PerLayerInputs {
    /// Width of a layer's vector.
    pub width: usize,
    /// Rows of its table.
    pub vocab: usize,
}

/// One layer: a mixer of tokens, then a feed-forward part, each with norms before, after, or both.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// The part that mixes tokens.
    pub mixer: Mixer,
    /// The part that follows the mixer.
    pub feed_forward: FeedForward,
    /// Activation of gated MLPs.
    pub activation: Activation,
    /// Whether the inputs of the mixer and of the feed-forward part are normalised. They are, but in OLMo 2 and 3.
    pub pre_norms: bool,
    /// Whether the outputs of the mixer and of the feed-forward part are normalised before they are added to the
    /// residual stream (Gemma).
    pub post_norms: bool,
    /// What the mixer and the feed-forward part add to the residual stream is multiplied by this (1, or less in
    /// Granite).
    pub added_scale: f32,
    /// Whether the residual stream is multiplied by a learned number after the layer (Gemma 4).
    pub scaled: bool,
}

/// The part that mixes tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Mixer {
    /// Softmax attention over cached K and V.
    Attention(Attention),
    /// Gated delta rule: a recurrent state, no KV cache.
    DeltaNet(DeltaNet),
}

/// Softmax attention whose keys and values are cached: K after norm and RoPE, V without RoPE.
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
    /// Scores are capped to c·tanh(scores / c) before the softmax (Gemma 2).
    pub softcap: Option<f32>,
    /// How many keys a query sees, its own included. `None` means all keys so far.
    pub window: Option<usize>,
    /// Where K and V come from.
    pub kv: Kv,
    /// Whether the files hold Q, K and V as one matrix (Phi-3).
    pub fused: bool,
    /// Whether each head has a learned score that enters the softmax's sum and has no value (gpt-oss's sinks).
    pub own_scores: bool,
    /// Whether Q, K and V have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// The RMS norms that Q and K pass before RoPE.
    pub qk_norm: QkNorm,
    /// Whether each head of V passes an RMS norm without weights (Gemma 4).
    pub v_norm: bool,
    /// Whether the output is multiplied by σ of a projection of the layer's input (Qwen 3.5).
    pub gated: bool,
    /// Rotary position embedding of Q and K.
    pub rope: Rope,
    /// Scales of an FP8 cache of K and V that the checkpoint has.
    pub cache_scales: Option<[f32; 2]>,
}

/// The RMS norms of Q and K.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// There are none.
    None,
    /// Each head has its own mean square, and all heads share the weights.
    Heads,
    /// All heads of Q are one row, and so are all heads of K (OLMo 2 and 3).
    Rows,
}

/// Where an attention layer's K and V come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kv {
    /// A projection each.
    Projected,
    /// One projection: V is K before its norm and RoPE.
    KeyIsValue,
    /// The cache of a lower layer, which this layer reads and never writes.
    Shared {
        /// The layer that owns it.
        owner: usize,
    },
}

/// The part of a layer behind its mixer.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedForward {
    /// A gated MLP.
    Dense(Mlp),
    /// A mixture of experts: a router chooses a few for each token. A shared expert may be added for every token.
    Experts(Experts),
    /// Both side by side, each with norms of its own (Gemma 4's 26B-A4B).
    Both(Mlp, Experts),
}

/// A gated MLP: down(act(gate(x)) ⊙ up(x)).
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    /// Width between up and down.
    pub width: usize,
    /// Whether gate, up and down have biases.
    pub bias: bool,
    /// Whether the files hold gate and up as one matrix (Phi-3, GLM-4).
    pub fused: bool,
}

/// A mixture of gated MLPs.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Experts in all.
    pub count: usize,
    /// Experts that are chosen for a token.
    pub used: usize,
    /// Width of an expert between up and down.
    pub width: usize,
    /// How the router's logits become the weights of experts.
    pub scoring: Scoring,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub normalised: bool,
    /// The weights of the chosen experts are multiplied by this.
    pub factor: f32,
    /// Whether the router, and gate, up and down of each expert have biases (gpt-oss).
    pub biases: bool,
    /// The shared expert, which every token passes.
    pub shared: Option<SharedExpert>,
    /// Whether the router is Gemma 4's, which normalises and scales its input and scales the weight of each expert.
    pub scaled_router: bool,
}

/// How the router's logits become the weights of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// By a softmax. Experts are chosen by their logits.
    Softmax,
    /// By σ. Experts are chosen by their weights and a learned correction (GLM-4.5).
    Sigmoid,
}

/// The expert that every token passes.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedExpert {
    /// Width between up and down.
    pub width: usize,
    /// Whether its output is multiplied by σ of a projection (Qwen 3.5).
    pub gated: bool,
    /// Whether the files hold gate and up as one matrix (Granite).
    pub fused: bool,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base θ, which is only shown to people: the frequencies already contain scaling and partial rotation.
    pub base: f64,
    /// Which elements turn together.
    pub pairs: Pairs,
    /// Radians per position of each pair, beginning with the head's first pair. A frequency of 0 leaves its pair as
    /// it is. So are elements behind the last pair. Without any frequency nothing turns (some layers of SmolLM3).
    pub frequencies: Arc<[f32]>,
    /// cos and sin are multiplied by this (YaRN's attention factor).
    pub magnitude: f32,
    /// A factor of Q that grows with its position (Ministral 3).
    pub temperature: Option<Temperature>,
    /// For longer contexts the frequencies would be others (LongRoPE, dynamic scaling).
    pub longest: Option<usize>,
}

/// Q at position p is multiplied by 1 + β·ln(1 + ⌊p / steps⌋).
#[derive(Debug, Clone, PartialEq)]
pub struct Temperature {
    /// β
    pub beta: f64,
    /// How many positions have the same factor.
    pub steps: usize,
}

impl Rope {
    /// A RoPE that turns nothing.
    pub fn none() -> Self {
        Rope {
            base: 1.0,
            pairs: Pairs::Halves,
            frequencies: Arc::default(),
            magnitude: 1.0,
            temperature: None,
            longest: None,
        }
    }
}

impl Temperature {
    /// The factor of Q at a position.
    pub fn at(&self, position: usize) -> f32 {
        (1.0 + self.beta * ((1 + position / self.steps) as f64).ln()) as f32
    }
}

impl Layer {
    /// The layer's attention, if it has one.
    pub fn attention(&self) -> Option<&Attention> {
        match &self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::DeltaNet(_) => None,
        }
    }
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

    /// Whether the layer writes into the cache.
    pub fn owns_kv(&self) -> bool {
        !matches!(self.kv, Kv::Shared { .. })
    }
}

impl Spec {
    /// What each layer keeps in the KV cache. `None` for a layer that has no cache of its own.
    pub fn kv_layout(&self) -> Vec<Option<LayerKv>> {
        let layers = self.layers.iter().enumerate();
        layers
            .map(|(index, layer)| {
                let attention = layer.attention().filter(|a| a.owns_kv())?;
                Some(LayerKv {
                    heads: attention.kv_heads,
                    head_dim: attention.head_dim,
                    window: attention.window,
                    shared: !self.readers_of(index).is_empty(),
                    absolute_scores: attention.softcap.is_some() || attention.own_scores,
                    stored_scales: attention.cache_scales,
                })
            })
            .collect()
    }

    /// The layers that read the cache of a lower layer, the `owner`.
    pub fn readers_of(&self, owner: usize) -> Vec<usize> {
        let shares =
            |layer: &Layer| layer.attention().is_some_and(|a| a.kv == Kv::Shared { owner });
        (0..self.layers.len()).filter(|&index| shares(&self.layers[index])).collect()
    }

    /// How many bytes the states of recurrent layers take for one sequence, whatever its length.
    pub fn state_bytes(&self) -> usize {
        let states = self.layers.iter().map(|layer| match &layer.mixer {
            Mixer::DeltaNet(net) => net.state_bytes(),
            Mixer::Attention(_) => 0,
        });
        states.sum()
    }

    /// How many layers lie below the first one that owns a KV cache. Up to there all lanes have the same hidden
    /// state.
    pub fn layers_before_kv(&self) -> usize {
        let owns = |layer: &Layer| layer.attention().is_some_and(Attention::owns_kv);
        self.layers.iter().position(owns).unwrap_or(self.layers.len())
    }
}
