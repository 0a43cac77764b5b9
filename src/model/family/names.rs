//! Names of tensors in the formats' files.

use crate::model::tensors::Transform;

/// How the files of a family name tensors in one format, and which tensors they store differently from how the
/// decoder needs them.
#[derive(Clone, Copy)]
pub(in crate::model) struct Names {
    /// Pairs of the decoder's name and the file's. A name without a suffix stands for `.weight` and `.bias`. These
    /// pairs are looked up before `usual`, and those of `converted` before both.
    pub own: &'static [(&'static str, &'static str)],
    /// The usual pairs of the format. They are empty if the files use the decoder's names.
    pub usual: &'static [(&'static str, &'static str)],
    /// What the names of a layer's tensors begin with. The layer's index follows.
    pub layer: &'static str,
    /// Endings of the names of norms whose weights are stored around zero.
    pub zero_centred: &'static [&'static str],
    /// Endings of the names of decays that are stored as logarithms.
    pub logarithmic: &'static [&'static str],
    /// Endings of the names of tensors that are stored with an additional dimension of 1, and the place of that
    /// dimension.
    pub unit: &'static [(&'static str, usize)],
    /// Names of tensors that are stored in another order.
    pub ordered: &'static [(&'static str, Transform)],
    /// Whether some files hold the experts of `ordered` in the decoder's order. Their shapes tell.
    pub either_order: bool,
    /// Endings of the names of scales in GGUF files that the decoder reads itself, so that they are not multiplied into
    /// the weights beside them.
    pub own_scales: &'static [&'static str],
    /// How files that MLX's converter wrote differ.
    pub mlx: Mlx,
    /// Pairs of names that the convention of the files brings. They are empty for transformers' convention.
    pub converted: &'static [(&'static str, &'static str)],
    /// Prefixes of the names of tensors that do not belong to the text model.
    pub other_parts: &'static [&'static str],
}

/// What MLX's converter stores differently from transformers. The source is `sanitize` of mlx-lm 0.32's models.
#[derive(Clone, Copy)]
pub(in crate::model) struct Mlx {
    /// Names that differ. The experts have one tensor for each projection.
    pub own: &'static [(&'static str, &'static str)],
    /// Whether norms that transformers stores around zero are stored as 1 + w. This is not so for Gemma 2 and 3.
    pub plain_norms: bool,
    /// As [`Names::unit`].
    pub unit: &'static [(&'static str, usize)],
}

/// Names in GGUF files, which are the decoder's own.
pub(super) const GGUF: Names = Names {
    own: &[],
    usual: &[],
    layer: "blk.",
    zero_centred: &[],
    logarithmic: &[],
    unit: &[],
    ordered: &[],
    either_order: false,
    own_scales: &[],
    mlx: Mlx { own: &[], plain_norms: false, unit: &[] },
    converted: &[],
    other_parts: &[],
};

/// Names in safetensors that transformers wrote.
pub(super) const HF: Names = Names {
    own: &[],
    usual: &[
        ("token_embd", "embed_tokens"),
        ("output_norm", "norm"),
        ("output", "lm_head"),
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("ffn_gate_inp", "mlp.gate"),
        ("ffn_gate_up_exps.weight", "mlp.experts.gate_up_proj"),
        ("ffn_down_exps.weight", "mlp.experts.down_proj"),
    ],
    layer: "layers.",
    zero_centred: &[],
    logarithmic: &[],
    unit: &[],
    ordered: &[],
    either_order: false,
    own_scales: &[],
    mlx: MLX,
    converted: &[],
    other_parts: ELSEWHERE,
};

/// How MLX's converter stores experts in most families.
pub(super) const MLX: Mlx = Mlx {
    own: &[
        ("ffn_gate_exps.weight", "mlp.switch_mlp.gate_proj.weight"),
        ("ffn_up_exps.weight", "mlp.switch_mlp.up_proj.weight"),
        ("ffn_down_exps.weight", "mlp.switch_mlp.down_proj.weight"),
    ],
    plain_norms: false,
    unit: &[],
};

/// Towers and projectors of multimodal checkpoints, and layers that predict tokens after the next one. The prediction
/// of a text's next token does not pass through them.
const ELSEWHERE: &[&str] = &[
    "model.visual.",
    "visual.",
    "model.vision_tower.",
    "vision_tower.",
    "model.audio_tower.",
    "audio_tower.",
    "model.embed_vision.",
    "embed_vision.",
    "model.embed_audio.",
    "embed_audio.",
    "model.multi_modal_projector.",
    "image_newline",
    "model.image_newline",
    "mtp.",
    "multi_modal_projector.",
];

impl Names {
    /// The file's name of a tensor, if it differs from the decoder's.
    pub fn own(&self, name: &str) -> Option<String> {
        let (layer, part) = match name.strip_prefix("blk.") {
            Some(rest) => rest.split_once('.').map(|(index, part)| (Some(index), part))?,
            None => (None, name),
        };
        let tables = || self.converted.iter().chain(self.own).chain(self.usual);
        let whole = tables().find(|(known, _)| *known == part).map(|(_, own)| own.to_string());
        let by_stem = || {
            let (stem, suffix) = part.rsplit_once('.')?;
            let (_, own) = tables().find(|(known, _)| *known == stem)?;
            Some(format!("{own}.{suffix}"))
        };
        let own = whole.or_else(by_stem)?;
        Some(match layer {
            Some(index) => format!("{}{index}.{own}", self.layer),
            None => own,
        })
    }

    /// The names for files that MLX's converter wrote.
    pub fn converted_by_mlx(self) -> Self {
        let zero_centred = if self.mlx.plain_norms { &[] } else { self.zero_centred };
        let (converted, unit) = (self.mlx.own, self.mlx.unit);
        Names { converted, zero_centred, unit, ordered: &[], ..self }
    }

    /// The names for files whose tensors have the decoder's order.
    pub fn in_order(self) -> Self {
        Names { ordered: &[], ..self }
    }

    /// The shape in which files store a tensor of the given shape.
    pub fn stored(&self, name: &str, mut shape: Vec<usize>) -> Vec<usize> {
        let transposed = [Transform::Transposed, Transform::TransposedPairs];
        if transposed.contains(&self.transform(name)) {
            if let [.., out, input] = &mut shape[..] {
                std::mem::swap(out, input);
            }
        }
        if let Some((_, place)) = self.unit.iter().find(|(end, _)| name.ends_with(end)) {
            shape.insert(*place, 1);
        }
        shape
    }

    /// What is done to a tensor after it has been read.
    pub fn transform(&self, name: &str) -> Transform {
        if let Some((_, order)) = self.ordered.iter().find(|(end, _)| name.ends_with(end)) {
            return *order;
        }
        if self.logarithmic.iter().any(|end| name.ends_with(end)) {
            return Transform::NegativeExp;
        }
        if self.zero_centred.iter().any(|end| name.ends_with(end)) {
            Transform::PlusOne
        } else {
            Transform::None
        }
    }

    /// Whether a tensor of a file does not belong to the text model, or is a table that old files hold precomputed.
    pub fn not_the_text_model(&self, own: &str) -> bool {
        let computed = own.ends_with("rotary_emb.inv_freq");
        computed || self.other_parts.iter().any(|start| own.starts_with(start))
    }
}
