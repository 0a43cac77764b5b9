//! Names of tensors in the formats' files.

use crate::model::tensors::Transform;

/// How a format and family name tensors, and what they store otherwise than the decoder wants it.
#[derive(Clone, Copy)]
pub(in crate::model) struct Names {
    /// The decoder's name and the file's; a name without a suffix stands for `.weight` and `.bias`.
    /// They are looked up before the usual ones, and those of a convention before both.
    pub own: &'static [(&'static str, &'static str)],
    /// The format's usual ones; none where files use the decoder's names.
    pub usual: &'static [(&'static str, &'static str)],
    /// What stands before a layer's names, with its index to follow.
    pub layer: &'static str,
    /// Names of norms whose weights are stored around zero end so.
    pub zero_centred: &'static [&'static str],
    /// Names of decays that are stored as logarithms end so.
    pub logarithmic: &'static [&'static str],
    /// Names of tensors that files store with a dimension of 1 more than the decoder has end so, and its place.
    pub unit: &'static [(&'static str, usize)],
    /// What MLX's converter makes of it.
    pub mlx: Mlx,
    /// The names in force that the convention of the files brings; none is transformers'.
    pub converted: &'static [(&'static str, &'static str)],
    /// Beginnings of names that are not the text model's.
    pub other_parts: &'static [&'static str],
}

/// What MLX's converter stores otherwise than transformers: mlx-lm 0.32, `sanitize` of its models.
#[derive(Clone, Copy)]
pub(in crate::model) struct Mlx {
    /// Names that differ. Experts are stacked by projection, so they have a tensor for each.
    pub own: &'static [(&'static str, &'static str)],
    /// Whether norms that transformers stores around zero are stored as 1 + w. Its Gemma 2 and 3 keep them.
    pub plain_norms: bool,
    /// As `unit` of the names.
    pub unit: &'static [(&'static str, usize)],
}

/// GGUF files: the decoder's names are theirs.
pub(super) const GGUF: Names = Names {
    own: &[],
    usual: &[],
    layer: "blk.",
    zero_centred: &[],
    logarithmic: &[],
    unit: &[],
    mlx: Mlx { own: &[], plain_norms: false, unit: &[] },
    converted: &[],
    other_parts: &[],
};

/// Safetensors as transformers names them.
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
    mlx: MLX,
    converted: &[],
    other_parts: ELSEWHERE,
};

/// What MLX's converter makes of experts in most families.
pub(super) const MLX: Mlx = Mlx {
    own: &[
        ("ffn_gate_exps.weight", "mlp.switch_mlp.gate_proj.weight"),
        ("ffn_up_exps.weight", "mlp.switch_mlp.up_proj.weight"),
        ("ffn_down_exps.weight", "mlp.switch_mlp.down_proj.weight"),
    ],
    plain_norms: false,
    unit: &[],
};

/// Towers and projectors of multimodal checkpoints, and what predicts further tokens: the next token of a
/// text does not pass through them.
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

    /// The names of the same family in files that MLX's converter wrote.
    pub fn converted_by_mlx(self) -> Self {
        let zero_centred = if self.mlx.plain_norms { &[] } else { self.zero_centred };
        Names { converted: self.mlx.own, zero_centred, unit: self.mlx.unit, ..self }
    }

    /// The shape in which files store a tensor of the given shape.
    pub fn stored(&self, name: &str, mut shape: Vec<usize>) -> Vec<usize> {
        if let Some((_, place)) = self.unit.iter().find(|(end, _)| name.ends_with(end)) {
            shape.insert(*place, 1);
        }
        shape
    }

    /// What is done to a tensor once it is read.
    pub fn transform(&self, name: &str) -> Transform {
        if self.logarithmic.iter().any(|end| name.ends_with(end)) {
            return Transform::NegativeExp;
        }
        if self.zero_centred.iter().any(|end| name.ends_with(end)) {
            Transform::PlusOne
        } else {
            Transform::None
        }
    }

    /// Whether a file's tensor is no part of the text model, or one that old files computed beforehand.
    pub fn not_the_text_model(&self, own: &str) -> bool {
        let computed = own.ends_with("rotary_emb.inv_freq");
        computed || self.other_parts.iter().any(|start| own.starts_with(start))
    }
}
