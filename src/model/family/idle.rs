//! Keys that no family reads, and the reason why each may be passed over.
//!
//! Each row is a fact about transformers' classes (5.24) or about llama.cpp, which are the references. Some keys
//! change the numbers in some models, but have a neutral value. Such a key is passed over only if it has that value.

use crate::model::config::{Fact, Format, Key};

/// A key that no family reads.
pub(in crate::model) struct Idle {
    /// Its names. A `*` at the end stands for anything.
    key: Key<'static>,
    pub standing: Standing,
    /// Why it may be passed over.
    pub why: &'static str,
}

/// Which values an unread key may have.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::model) enum Standing {
    /// Any value: the key has no part in the forward pass.
    Any,
    /// Any value: another part of the program reads the key.
    Elsewhere,
    /// One of these numbers. True and false count as 1 and 0.
    Numbers(&'static [f64]),
}

impl Standing {
    /// Whether other values would change the numbers.
    pub fn limits(self) -> bool {
        matches!(self, Standing::Numbers(_))
    }

    pub fn admits(self, fact: &Fact) -> bool {
        match self {
            Standing::Any | Standing::Elsewhere => true,
            Standing::Numbers(neutral) => neutral_number(neutral, fact),
        }
    }
}

fn neutral_number(neutral: &[f64], fact: &Fact) -> bool {
    let number = match fact {
        Fact::Bool(flag) => f64::from(u8::from(*flag)),
        Fact::Integer(n) => *n as f64,
        Fact::Float(x) => *x,
        Fact::List(list) => return list.iter().all(|fact| neutral_number(neutral, fact)),
        Fact::Text(_) | Fact::Other => return false,
    };
    neutral.contains(&number)
}

impl Idle {
    pub fn name(&self, format: Format) -> &'static str {
        match format {
            Format::Gguf => self.key.gguf,
            Format::Hf => self.key.hf,
        }
    }

    /// Whether the row is about a key. If `exact`, the row must name the whole key, else the beginning of it.
    pub fn stands_for(&self, format: Format, key: &str, exact: bool) -> bool {
        match (self.name(format).strip_suffix('*'), exact) {
            (None, true) => self.name(format) == key,
            (Some(start), false) => key.starts_with(start),
            _ => false,
        }
    }
}

/// All rows of a format, those of the family first.
pub(super) fn rows(format: Format, family: &'static [Idle]) -> impl Iterator<Item = &'static Idle> {
    let all = family.iter().chain(ALL);
    all.filter(move |row| !row.name(format).is_empty())
}

/// Whether a key of a GGUF file does not have the architecture's prefix.
pub(super) fn has_prefix_of_its_own(format: Format, key: &str) -> bool {
    let own = ["general.", "tokenizer.", "quantize.", "split."];
    format == Format::Gguf && own.iter().any(|prefix| key.starts_with(prefix))
}

/// A row about config.json.
pub(super) const fn hf(hf: &'static str, standing: Standing, why: &'static str) -> Idle {
    Idle { key: Key { gguf: "", hf }, standing, why }
}

/// A row about GGUF.
pub(super) const fn gguf(gguf: &'static str, standing: Standing, why: &'static str) -> Idle {
    Idle { key: Key { gguf, hf: "" }, standing, why }
}

pub(super) use Standing::{Any, Elsewhere, Numbers};

pub(super) const DENSE: &str =
    "it is the width of dense layers' MLPs, which this checkpoint has not";

const OFF: Standing = Numbers(&[0.0]);
pub(super) const ON: Standing = Numbers(&[1.0]);
/// No value: what the key says would have to be carried out.
pub(super) const NONE: Standing = Numbers(&[]);
/// For llama.cpp 0 means "not set".
const OFF_OR_ONE: Standing = Numbers(&[0.0, 1.0]);

const KIND: &str = "it says what the checkpoint is";
const TOKENS: &str = "it is about special tokens, which come from the tokenizer";
const OTHER_KINDS: &str = "llama.cpp reads it of kinds of tokenizers that are not rebuilt here";
const OLLAMA: &str = "Ollama's converter writes it, and what is read stands under other keys";
const TRAINING: &str = "it is about training";
const GENERATION: &str = "it is about how text is chosen";
const RUNNING: &str = "it is about how transformers runs or keeps the model";
const HEADLINE: &str = "it is about classification heads";
const TOWERS: &str = "it is about images and sound, which a text does not pass through";
const OPENED: &str = "it is read where the checkpoint is opened";
const BIASES: &str = "biases are read of `llama` only";
const SCALES: &str = "the architecture has no such scale";
const MIXTURE: &str = "the architecture has no such mixture of experts";
const LAYERS: &str = "the architecture has no such layers";
const YARN: &str =
    "llama.cpp passes it over for this architecture where transformers obeys it, so \
                    that only the usual value means the same to both";

/// Rows for every family.
const ALL: &[Idle] = &[
    // config.json: what transformers' PreTrainedConfig and its kin keep
    hf("model_type", Elsewhere, KIND),
    hf("per_layer_config.*", NONE, "transformers gives layers settings of their own by it"),
    hf("architectures", Elsewhere, KIND),
    hf("_name_or_path", Any, KIND),
    hf("name_or_path", Any, KIND),
    hf("_commit_hash", Any, KIND),
    hf("transformers_version", Any, KIND),
    hf("transformers.js_config.*", Any, KIND),
    hf("auto_map.*", Elsewhere, KIND),
    hf("model_file", Elsewhere, KIND),
    hf("is_llama_config", Any, KIND),
    hf("unsloth*", Any, KIND),
    hf("model_name", Any, KIND),
    hf("dtype", Any, "weights are widened to f32, whatever they are stored in"),
    hf("torch_dtype", Any, "weights are widened to f32, whatever they are stored in"),
    hf("mamba_ssm_dtype", Any, "recurrent states are f32"),
    hf("quantization_config", Elsewhere, OPENED),
    hf("quantization_config.*", Elsewhere, OPENED),
    hf("quantization", Elsewhere, OPENED),
    hf("quantization.*", Elsewhere, OPENED),
    hf("compression_config", Elsewhere, OPENED),
    hf("compression_config.*", Elsewhere, OPENED),
    hf("quantize_config", Elsewhere, OPENED),
    hf("quantize_config.*", Elsewhere, OPENED),
    hf("quant_config", Elsewhere, OPENED),
    hf("quant_config.*", Elsewhere, OPENED),
    hf("transform_config", Elsewhere, OPENED),
    hf("transform_config.*", Elsewhere, OPENED),
    hf("tie_word_embeddings", Elsewhere, "a head in the files is the head"),
    // tokens
    hf("bos_token_id", Elsewhere, TOKENS),
    hf("eos_token_id", Elsewhere, TOKENS),
    hf("pad_token_id", Any, TOKENS),
    hf("sep_token_id", Any, TOKENS),
    hf("unk_token_id", Any, TOKENS),
    hf("cls_token_id", Any, TOKENS),
    hf("mask_token_id", Any, TOKENS),
    hf("eod_token_id", Any, TOKENS),
    hf("eom_token_id", Any, TOKENS),
    hf("eot_token_id", Any, TOKENS),
    hf("decoder_start_token_id", Any, TOKENS),
    hf("tokenizer_class", Any, TOKENS),
    hf("prefix", Any, TOKENS),
    // training
    hf("initializer_range", Any, TRAINING),
    hf("initializer_factor", Any, TRAINING),
    hf("attention_dropout", Any, TRAINING),
    hf("hidden_dropout", Any, TRAINING),
    hf("resid_pdrop", Any, TRAINING),
    hf("embd_pdrop", Any, TRAINING),
    hf("router_aux_loss_coef", Any, TRAINING),
    hf("output_router_logits", Any, TRAINING),
    hf("gradient_checkpointing", Any, TRAINING),
    hf("pretraining_tp", Any, "a product that is cut into slices is the same product"),
    // running
    hf("use_cache", Any, RUNNING),
    hf("cache_implementation", Any, RUNNING),
    hf("return_dict", Any, RUNNING),
    hf("output_attentions", Any, RUNNING),
    hf("output_hidden_states", Any, RUNNING),
    hf("torchscript", Any, RUNNING),
    hf("use_bfloat16", Any, RUNNING),
    hf("chunk_size_feed_forward", Any, RUNNING),
    hf("_attn_implementation*", Any, RUNNING),
    hf("attn_implementation", Any, RUNNING),
    hf("_experts_implementation*", Any, RUNNING),
    hf("experts_implementation", Any, RUNNING),
    hf("_flash_attn_2_enabled", Any, RUNNING),
    hf("is_encoder_decoder", OFF, "encoders are not computed"),
    hf("is_decoder", Any, "all that is read here are decoders"),
    hf("add_cross_attention", OFF, "attention to another model's states is not computed"),
    hf("tie_encoder_decoder", Any, "there is no encoder"),
    hf("tf_legacy_loss", Any, TRAINING),
    // generation, as transformers 4 kept it here
    hf("max_length", Any, GENERATION),
    hf("max_sequence_length", Any, GENERATION),
    hf("min_length", Any, GENERATION),
    hf("max_new_tokens", Any, GENERATION),
    hf("do_sample", Any, GENERATION),
    hf("early_stopping", Any, GENERATION),
    hf("num_beams", Any, GENERATION),
    hf("num_beam_groups", Any, GENERATION),
    hf("diversity_penalty", Any, GENERATION),
    hf("temperature", Any, GENERATION),
    hf("top_k", Any, GENERATION),
    hf("top_p", Any, GENERATION),
    hf("typical_p", Any, GENERATION),
    hf("repetition_penalty", Any, GENERATION),
    hf("length_penalty", Any, GENERATION),
    hf("no_repeat_ngram_size", Any, GENERATION),
    hf("encoder_no_repeat_ngram_size", Any, GENERATION),
    hf("bad_words_ids", Any, GENERATION),
    hf("num_return_sequences", Any, GENERATION),
    hf("output_scores", Any, GENERATION),
    hf("return_dict_in_generate", Any, GENERATION),
    hf("forced_bos_token_id", Any, GENERATION),
    hf("forced_eos_token_id", Any, GENERATION),
    hf("remove_invalid_values", Any, GENERATION),
    hf("exponential_decay_length_penalty", Any, GENERATION),
    hf("suppress_tokens", Any, GENERATION),
    hf("begin_suppress_tokens", Any, GENERATION),
    // classification
    hf("id2label.*", Any, HEADLINE),
    hf("label2id.*", Any, HEADLINE),
    hf("num_labels", Any, HEADLINE),
    hf("problem_type", Any, HEADLINE),
    hf("finetuning_task", Any, HEADLINE),
    hf("task_specific_params.*", Any, HEADLINE),
    hf("classifier_dropout", Any, HEADLINE),
    // towers
    hf("vision_config.*", Any, TOWERS),
    hf("audio_config.*", Any, TOWERS),
    hf("image_token_id", Any, TOWERS),
    hf("image_token_index", Any, TOWERS),
    hf("video_token_id", Any, TOWERS),
    hf("audio_token_id", Any, TOWERS),
    hf("boi_token_id", Any, TOWERS),
    hf("boi_token_index", Any, TOWERS),
    hf("eoi_token_id", Any, TOWERS),
    hf("eoi_token_index", Any, TOWERS),
    hf("boa_token_id", Any, TOWERS),
    hf("eoa_token_id", Any, TOWERS),
    hf("eoa_token_index", Any, TOWERS),
    hf("vision_start_token_id", Any, TOWERS),
    hf("vision_end_token_id", Any, TOWERS),
    hf("vision_soft_tokens_per_image", Any, TOWERS),
    hf("mm_tokens_per_image", Any, TOWERS),
    hf("multimodal_projector_bias", Any, TOWERS),
    hf("projector_hidden_act", Any, TOWERS),
    hf("projector_layernorm_eps", Any, TOWERS),
    hf("vision_feature_layer", Any, TOWERS),
    hf("vision_feature_layers", Any, TOWERS),
    hf("vision_feature_select_strategy", Any, TOWERS),
    hf("vision_aspect_ratio", Any, TOWERS),
    hf("image_seq_length", Any, TOWERS),
    hf("spatial_merge_size", Any, TOWERS),
    hf("image_grid_pinpoints", Any, TOWERS),
    hf("use_image_newline_parameter", Any, TOWERS),
    hf("video_token_index", Any, TOWERS),
    hf("downsample_ratio", Any, TOWERS),
    hf("ignore_index", Any, TRAINING),
    hf("language_model_only", Any, TOWERS),
    // what changes the numbers unless it is neutral
    hf("is_causal", ON, "attention that looks ahead is not computed"),
    hf("attention_bias", OFF, BIASES),
    hf("mlp_bias", OFF, BIASES),
    hf("qkv_bias", OFF, BIASES),
    hf("lm_head_bias", OFF, "heads have no biases here"),
    hf("partial_rotary_factor", ON, "transformers' class turns whole heads"),
    hf("rope_parameters.partial_rotary_factor", ON, "transformers' class turns whole heads"),
    hf("rope_scaling.partial_rotary_factor", ON, "transformers' class turns whole heads"),
    hf("use_sliding_window", OFF, "the class has no window"),
    hf("use_mrope", OFF, "positions of a text are plain"),
    hf("rope_interleaved", OFF, "pairs of neighbours in safetensors are not computed"),
    hf("num_experts", OFF, MIXTURE),
    hf("shared_expert_intermediate_size", OFF, MIXTURE),
    hf("decoder_sparse_step", ON, MIXTURE),
    hf("mlp_only_layers", Numbers(&[]), MIXTURE),
    hf("norm_topk_prob", ON, "experts' weights are divided by their sum"),
    hf("num_local_experts", OFF, MIXTURE),
    hf("attention_multiplier", Numbers(&[]), SCALES),
    hf("residual_multiplier", ON, SCALES),
    hf("embedding_multiplier", ON, SCALES),
    hf("logits_scaling", ON, SCALES),
    hf("logit_scale", ON, SCALES),
    // GGUF: by prefix
    gguf("general.architecture", Elsewhere, KIND),
    gguf("general.alignment", Elsewhere, OPENED),
    gguf("general.type", Elsewhere, OPENED),
    gguf("general.quantization_version", Elsewhere, OPENED),
    gguf("general.*", Any, KIND),
    gguf("quantize.*", Any, "it says how the weights were quantized"),
    gguf("split.count", Elsewhere, OPENED),
    gguf("split.no", Elsewhere, OPENED),
    gguf("split.tensors.count", Elsewhere, OPENED),
    gguf("tokenizer.ggml.model", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.pre", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.tokens", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.token_type", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.token_type_count", Any, TOKENS),
    gguf("tokenizer.ggml.scores", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.merges", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.bos_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.eos_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.eos_token_ids", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.eot_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.eom_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.add_bos_token", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.add_eos_token", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.add_sep_token", Any, TOKENS),
    gguf("tokenizer.ggml.add_cls_token", Any, OLLAMA),
    gguf("tokenizer.ggml.add_mask_token", Any, OLLAMA),
    gguf("tokenizer.ggml.add_padding_token", Any, OLLAMA),
    gguf("tokenizer.ggml.add_seperator_token", Any, OLLAMA),
    gguf("tokenizer.ggml.add_unknown_token", Any, OLLAMA),
    gguf("tokenizer.ggml.cls_token_id", Any, OLLAMA),
    gguf("tokenizer.ggml.bos_token_ids", Any, OLLAMA),
    gguf("tokenizer.ggml.cls_token_ids", Any, OLLAMA),
    gguf("tokenizer.ggml.mask_token_ids", Any, OLLAMA),
    gguf("tokenizer.ggml.padding_token_ids", Any, OLLAMA),
    gguf("tokenizer.ggml.seperator_token_ids", Any, OLLAMA),
    gguf("tokenizer.ggml.unknown_token_ids", Any, OLLAMA),
    gguf("tokenizer.ggml.add_space_prefix", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.unknown_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.seperator_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.separator_token_id", Any, "llama.cpp reads the other spelling"),
    gguf("tokenizer.ggml.padding_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.mask_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.fim_pre_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.fim_suf_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.fim_mid_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.prefix_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.suffix_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.middle_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.fim_pad_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.fim_rep_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.ggml.fim_sep_token_id", Elsewhere, TOKENS),
    gguf("tokenizer.chat_template", Elsewhere, TOKENS),
    gguf("tokenizer.chat_templates", Any, TOKENS),
    gguf("tokenizer.chat_template.*", Any, "it is a template for a purpose of its own"),
    gguf("tokenizer.ggml.suppress_tokens", Any, GENERATION),
    gguf("tokenizer.ggml.remove_extra_whitespaces", Any, OTHER_KINDS),
    gguf("tokenizer.ggml.precompiled_charsmap", Any, OTHER_KINDS),
    gguf("tokenizer.ggml.normalizer.lowercase", Any, OTHER_KINDS),
    gguf("tokenizer.ggml.normalizer.strip_accents", Any, OTHER_KINDS),
    gguf("tokenizer.rwkv.world", Any, OTHER_KINDS),
    gguf("tokenizer.huggingface.json", Any, "the file's own tables say the same"),
    // GGUF: the architecture's
    gguf("vision.*", Any, TOWERS),
    gguf("audio.*", Any, TOWERS),
    gguf("mm.*", Any, TOWERS),
    gguf("vocab_size", Any, "the embedding tells the size"),
    gguf("tensor_data_layout", Any, "old converters kept it, and all that is left is this layout"),
    gguf("pooling_type", Any, "it is about embeddings of texts"),
    gguf("rope.scaling.finetuned", Any, "llama.cpp shows it and computes nothing by it"),
    gguf("attention.layer_norm_epsilon", Any, "llama.cpp reads it of architectures with LayerNorm"),
    gguf("attention.causal", ON, "attention that looks ahead is not computed"),
    gguf("attention.sliding_window", OFF, "the architecture has no window"),
    gguf("attention.clamp_kqv", OFF, SCALES),
    gguf("attention.max_alibi_bias", OFF, "positions are not biases here"),
    gguf("attention.scale", OFF, SCALES),
    gguf("attention.output_scale", OFF_OR_ONE, SCALES),
    gguf("attention.value_scale", OFF_OR_ONE, SCALES),
    gguf("attention.temperature_scale", OFF, SCALES),
    gguf("attn_logit_softcapping", OFF, "the architecture has no such cap"),
    gguf("router_logit_softcapping", OFF, "the architecture has no such cap"),
    gguf("final_logit_softcapping", OFF, "the architecture has no such cap"),
    gguf("logit_scale", OFF_OR_ONE, SCALES),
    gguf("residual_scale", OFF_OR_ONE, SCALES),
    gguf("embedding_scale", OFF_OR_ONE, SCALES),
    gguf("expert_weights_scale", OFF_OR_ONE, "experts' weights are not scaled"),
    gguf("expert_weights_norm", ON, "experts' weights are divided by their sum"),
    gguf("expert_gating_func", OFF_OR_ONE, "experts are chosen by softmax"),
    gguf("expert_count", OFF, MIXTURE),
    gguf("expert_used_count", OFF, MIXTURE),
    gguf("expert_shared_count", OFF, MIXTURE),
    gguf("expert_group_count", OFF_OR_ONE, MIXTURE),
    gguf("expert_group_used_count", OFF_OR_ONE, MIXTURE),
    gguf("expert_feed_forward_length", OFF, MIXTURE),
    gguf("expert_shared_feed_forward_length", OFF, MIXTURE),
    gguf("leading_dense_block_count", OFF, LAYERS),
    gguf("nextn_predict_layers", OFF, LAYERS),
    gguf("use_parallel_residual", OFF, "residuals are not parallel"),
    gguf("swin_norm", OFF, "there are no such norms"),
    gguf("rope.scaling.alpha", OFF, "llama.cpp scales by it in another architecture only"),
    gguf("rope.scaling.attn_factor", ON, "cos and sin are multiplied under YaRN only"),
    gguf("rope.scaling.yarn_ext_factor", Numbers(&[1.0, -1.0]), YARN),
    gguf("rope.scaling.yarn_attn_factor", ON, YARN),
    gguf("rope.scaling.yarn_beta_fast", Numbers(&[32.0]), YARN),
    gguf("rope.scaling.yarn_beta_slow", ON, YARN),
    gguf("rope.scaling.yarn_log_multiplier", OFF, YARN),
];
