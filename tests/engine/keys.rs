//! Every key of every small checkpoint, in both formats: what happens where it is not there, and where it
//! is misspelt. Nothing may change in silence.
//!
//! All that reaches the forward pass is the specification and the tensors, so that two openings with equal
//! specifications (and one file of weights) give equal numbers.

use crate::support;
use crate::support::forward::{logits, relative};
use crate::support::metadata::{Entry, Metadata};
use crate::support::root;
use kvgate::internals::model::Checkpoint;
use kvgate::internals::source::Source;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A checkpoint one key of which can be edited.
enum Fixture {
    Gguf(Metadata),
    /// config.json, and the folder with the other files.
    Hf(Value, PathBuf),
}

/// What is done to a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edit {
    Remove,
    /// A letter of its last part stands twice.
    Double,
    /// Its last separator is another one, or none.
    Separate,
}

const EDITS: [(Edit, &str); 3] = [
    (Edit::Remove, "without"),
    (Edit::Double, "with a letter twice"),
    (Edit::Separate, "with another separator"),
];

impl Edit {
    /// The key after the edit; none where it is gone.
    fn of(self, key: &str) -> Option<String> {
        let last = key.rfind('.').map_or(0, |dot| dot + 1);
        match self {
            Edit::Remove => None,
            Edit::Double => {
                let middle = last + (key.len() - last) / 2;
                let at = key[..=middle].rfind(char::is_alphanumeric).unwrap();
                Some(format!("{}{}", &key[..=at], &key[at..]))
            }
            Edit::Separate => Some(match key.rfind(['_', '.']) {
                Some(at) if key[at..].starts_with('_') => {
                    format!("{}{}", &key[..at], &key[at + 1..])
                }
                Some(at) => format!("{}_{}", &key[..at], &key[at + 1..]),
                None => format!("_{key}"),
            }),
        }
    }
}

impl Fixture {
    fn keys(&self) -> Vec<String> {
        match self {
            Fixture::Gguf(metadata) => metadata.keys(),
            Fixture::Hf(config, _) => {
                let mut keys = Vec::new();
                leaves("", config, &mut keys);
                keys
            }
        }
    }

    /// The specification without an edit, of which there is nothing to remark.
    fn as_is(&self, name: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = match self {
            Fixture::Gguf(metadata) => {
                let path = folder.path().join("model.gguf");
                std::fs::write(&path, metadata.edited(|_| {})).unwrap();
                path
            }
            Fixture::Hf(_, from) => from.clone(),
        };
        let checkpoint = open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(support::notes_on_keys(&checkpoint), [""; 0], "{name}");
        rendered(&checkpoint)
    }

    /// Writes the checkpoint with a key edited, and says where.
    fn write(&self, folder: &Path, key: &str, edit: Edit) -> PathBuf {
        match self {
            Fixture::Gguf(metadata) => {
                let path = folder.join("model.gguf");
                let file = metadata.edited(|entries| match edit.of(key) {
                    None => entries.retain(|entry| entry.key != key),
                    Some(new) => entries
                        .iter_mut()
                        .filter(|e| e.key == key)
                        .for_each(|e| e.key = new.clone()),
                });
                std::fs::write(&path, file).unwrap();
                path
            }
            Fixture::Hf(config, from) => {
                for file in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
                    let to = folder.join(file.file_name().unwrap());
                    let needed = file.extension().is_none_or(|extension| extension != "gguf");
                    if needed && !to.exists() {
                        std::fs::copy(&file, to).unwrap();
                    }
                }
                let text = without(config, key, edit).to_string();
                std::fs::write(folder.join("config.json"), text).unwrap();
                folder.into()
            }
        }
    }
}

/// A configuration with a key edited.
fn without(config: &Value, key: &str, edit: Edit) -> Value {
    let mut config = config.clone();
    let (path, name) = key.rsplit_once('.').unwrap_or(("", key));
    let pointer = format!("/{}", path.replace('.', "/"));
    let place = if path.is_empty() { Some(&mut config) } else { config.pointer_mut(&pointer) };
    let members = place.unwrap().as_object_mut().unwrap();
    let value = members.remove(name).unwrap();
    if let Some(new) = edit.of(key) {
        // the separator may be the one before the name
        let own = new.strip_prefix(&key[..key.len() - name.len()]);
        members.insert(own.map_or(format!("_{name}"), String::from), value);
    }
    config
}

/// The paths of all members that are no objects.
fn leaves(path: &str, value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            let dot = if path.is_empty() { "" } else { "." };
            members
                .iter()
                .for_each(|(name, member)| leaves(&format!("{path}{dot}{name}"), member, into));
        }
        _ => into.push(path.into()),
    }
}

/// Small checkpoints in both formats, by name.
fn fixtures() -> Vec<(String, Fixture)> {
    let folder = root().join("tests/fixtures/checkpoints");
    let mut folders: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let mut fixtures = Vec::new();
    for folder in folders {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let gguf = folder.join("model.gguf");
        if gguf.exists() {
            let metadata = Metadata::of(&std::fs::read(gguf).unwrap());
            fixtures.push((format!("{name} gguf"), Fixture::Gguf(metadata)));
        }
        let config = std::fs::read(folder.join("config.json")).unwrap();
        let config = serde_json::from_slice(&config).unwrap();
        fixtures.push((format!("{name} config.json"), Fixture::Hf(config, folder)));
    }
    fixtures
}

fn open(path: &Path) -> Result<Checkpoint, String> {
    let opened = Checkpoint::open(&Source::at(path.into()));
    opened.map_err(|error| error.to_string().replace(path.to_str().unwrap(), ""))
}

/// The specification and how a text is read as text, in which differences can be seen.
fn rendered(checkpoint: &Checkpoint) -> String {
    let Checkpoint { spec, tokenizer, end_tokens, .. } = checkpoint;
    let ids = tokenizer.encode("The river ran, 1815.\n");
    format!("{spec:#?}\nbos: {:?}\nends: {end_tokens:?}\nids: {ids:?}", tokenizer.bos)
}

/// The first lines in which two specifications differ.
fn difference(one: &str, other: &str) -> String {
    let lines = one.lines().zip(other.lines()).filter(|(a, b)| a != b);
    let first = lines.map(|(a, b)| format!("{} -> {}", a.trim(), b.trim())).next();
    first.unwrap_or_else(|| "more or fewer lines".into())
}

/// Where the reference has its default of a key whose name ends so: of GGUF in llama.cpp, of config.json in
/// transformers. A change that has none is silent, and no such change may be.
const SOURCES: &[(&str, &str)] = &[
    ("eos_token_id", "GenerationConfig: nothing ends an answer then"),
    (".rope.freq_base", "llama_model_base::load_hparams, rope_freq_base_train"),
    (".rope.dimension_count", "llama_model_base::load_hparams, n_rot_full"),
    (".rope.scaling.original_context_length", "llama_model_base::load_hparams, n_ctx_orig_yarn"),
    ("gemma2.attention.sliding_window", "llama_model_gemma2, n_swa"),
    (".attn_logit_softcapping", "llama_hparams, f_attn_logit_softcapping"),
    (".final_logit_softcapping", "llama_hparams, f_final_logit_softcapping, or the class"),
    ("_parameters.rope_theta", "RotaryEmbeddingConfigMixin.default_theta"),
    ("partial_rotary_factor", "_compute_proportional_rope_parameters, Qwen3_5TextConfig"),
    ("original_max_position_embeddings", "RotaryEmbeddingConfigMixin.standardize_rope_params"),
    ("sliding_window", "the class"),
    ("logit_softcapping", "the class"),
    ("query_pre_attn_scalar", "the class"),
    ("max_position_embeddings", "the class"),
    ("norm_topk_prob", "the class"),
    ("residual_multiplier", "the class"),
    ("embedding_multiplier", "the class"),
    ("attention_multiplier", "the class"),
    ("logits_scaling", "the class"),
    ("num_experts_per_tok", "the class"),
    ("position_embedding_type", "the class"),
    ("routed_scaling_factor", "the class"),
    ("num_nextn_predict_layers", "the class"),
    ("_parameters.truncate", "_compute_yarn_parameters"),
    ("_parameters.mscale", "_compute_yarn_parameters"),
    ("_parameters.mscale_all_dim", "_compute_yarn_parameters"),
    ("_parameters.beta_slow", "_compute_yarn_parameters"),
    (".rope.scaling.attn_factor", "llama_hparams, rope_attn_factor"),
    (".rope.scaling.yarn_log_multiplier", "llama_hparams, rope_yarn_log_mul"),
    (".rope.scaling.yarn_beta_slow", "llama_hparams, yarn_beta_slow"),
    (".attention.temperature_scale", "llama_hparams, f_attn_temp_scale"),
    (".residual_scale", "llama_hparams, f_residual_scale"),
    (".embedding_scale", "llama_hparams, f_embedding_scale"),
    (".attention.scale", "llama_hparams, f_attention_scale"),
    (".expert_weights_scale", "llama_hparams, expert_weights_scale"),
    (".expert_weights_norm", "llama_hparams, expert_weights_norm"),
];

/// The source of a key's default. The names of text models mean the classes that the whole ones make.
fn source(key: &str) -> &'static str {
    if key == "text_config.model_type" {
        return "sub_configs_defaults";
    }
    let found = SOURCES.iter().find(|(end, _)| key.ends_with(end));
    found.map(|(_, source)| *source).unwrap_or_else(|| panic!("{key} changes in silence"))
}

/// What an edit of a key comes to, in few words.
fn outcome(as_is: &str, key: &str, edit: Edit, opened: Result<Checkpoint, String>) -> String {
    match opened {
        Ok(checkpoint) => {
            let now = rendered(&checkpoint);
            let noted = if support::notes_on_keys(&checkpoint).is_empty() { "" } else { ", noted" };
            if now == as_is {
                return format!("same{noted}");
            }
            assert!(edit == Edit::Remove, "a misspelt {key} changes in silence");
            let (source, difference) = (source(key), difference(as_is, &now));
            let is_spec = |rendered: &str| rendered.starts_with(&format!("{:#?}", checkpoint.spec));
            let kind = if is_spec(as_is) { "tokens" } else { "default" };
            format!("{kind}{noted} by {source}: {difference}")
        }
        Err(error) => {
            let known = [
                ("is missing", "missing"),
                ("and resembles", "resembles"),
                ("its name speaks of", "speaks of what counts"),
                ("has no general.architecture", "no architecture"),
                ("names no model_type", "no model_type"),
                ("which this version does not compute", "not neutral"),
                ("which is read; if it may", "stands in an object that is read"),
                ("tokenizer", "no tokenizer"),
                ("has shape", "another shape"),
            ];
            let kind = known.into_iter().find(|(words, _)| error.contains(words));
            let kind = kind.map_or(error.as_str(), |(_, kind)| kind);
            format!("refused: {}", kind.trim_start_matches(": "))
        }
    }
}

/// Set this to write the list anew; then read what changed.
const UPDATE: &str = "UPDATE_KEYS";

#[test]
fn no_key_is_missed_or_misspelt_in_silence() {
    let (mut list, mut counts) = (String::new(), BTreeMap::<&str, usize>::new());
    for (name, fixture) in fixtures() {
        let as_is = fixture.as_is(&name);
        *counts.entry("keys").or_default() += fixture.keys().len();
        for (edit, words) in EDITS {
            writeln!(list, "# {name} {words}").unwrap();
            for (outcome, keys) in outcomes(&fixture, &as_is, edit) {
                let kinds = ["same", "default", "tokens", "refused"];
                let kind = kinds.into_iter().find(|kind| outcome.starts_with(kind)).unwrap();
                *counts.entry(kind).or_default() += keys.len();
                writeln!(list, "{outcome}\n    {}", keys.join(" ")).unwrap();
            }
        }
    }
    println!("{counts:?}");
    let list = format!("{counts:?}\n{list}");
    let path = root().join("tests/fixtures/keys.txt");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &list).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    for (now, then) in list.lines().zip(known.lines()) {
        assert_eq!(now, then, "{UPDATE}=1 writes the list anew");
    }
    assert_eq!(list.lines().count(), known.lines().count());
}

/// What an edit of each key comes to, with the keys that come to the same.
fn outcomes(fixture: &Fixture, as_is: &str, edit: Edit) -> BTreeMap<String, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let mut outcomes = BTreeMap::<String, Vec<String>>::new();
    for key in fixture.keys() {
        let path = fixture.write(folder.path(), &key, edit);
        let outcome = outcome(as_is, &key, edit, open(&path));
        outcomes.entry(outcome).or_default().push(key);
    }
    outcomes
}

/// The checkpoints that people have: none of their keys is left over.
#[test]
fn embedded_checkpoints_have_no_key_that_nothing_reads() {
    for folder in ["models/gemma4-e2b-mini", "models/qwen3.6-moe-mini"] {
        no_key_is_left_over(&root().join(folder));
    }
}

#[test]
#[ignore = "needs scripts/fetch-models"]
fn released_checkpoints_have_no_key_that_nothing_reads() {
    for file in support::MODELS {
        no_key_is_left_over(&support::source(file).path);
    }
}

fn no_key_is_left_over(path: &Path) {
    let checkpoint = open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(support::notes_on_keys(&checkpoint), [""; 0], "{}", path.display());
}

/// The GGUF of a small checkpoint with its entries edited.
fn edited(name: &str, edit: impl FnOnce(&mut Vec<Entry>)) -> (tempfile::TempDir, PathBuf) {
    let from = root().join("tests/fixtures/checkpoints").join(name).join("model.gguf");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let metadata = Metadata::of(&std::fs::read(from).unwrap());
    std::fs::write(&path, metadata.edited(edit)).unwrap();
    (folder, path)
}

/// With an entry instead of its own of that name, if it has one.
fn with(name: &str, entry: Entry) -> (tempfile::TempDir, PathBuf) {
    edited(name, |entries| {
        entries.retain(|own| own.key != entry.key);
        entries.push(entry);
    })
}

#[test]
fn keys_of_other_converters_are_refused_with_the_one_that_is_meant() {
    let base = "llama.rope.freq_base";
    let cases = [
        ("llama", Entry::float("llama.rope_freq_base", 5e5), base),
        ("llama", Entry::float("llama.rope.freqbase", 5e5), base),
        ("llama", Entry::float("qwen2.rope.freq_base", 5e5), base),
        ("llama", Entry::float("llama.rope.theta", 5e5), "speaks of `rope`"),
        ("llama", Entry::float("rope_theta", 5e5), "speaks of `rope`"),
        ("gemma3", Entry::float("gemma3.rope.global.freq_base", 1e6), "speaks of `rope`"),
        ("gemma3", Entry::float("gemma3.attn_logit_softcapping", 50.0), "is 50"),
        ("gemma2", Entry::float("gemma2.rope.freq_base_swa", 5e5), "differs from the base"),
        ("gemma2", Entry::float("gemma2.attn_logit_softcap", 50.0), "softcap"),
        ("llama", Entry::float("llama.final_logit_softcapping", 30.0), "is 30"),
        ("llama", Entry::number("llama.attention.sliding_window", 24), "is 24"),
        ("llama", Entry::float("llama.logit_scale", 0.5), "is 0.5"),
        ("llama", Entry::number("llama.expert_count", 8), "mixture of experts"),
        ("llama", Entry::numbers("llama.feed_forward_length", &[80, 79]), "unsigned integer"),
        ("llama", Entry::numbers("llama.feed_forward_length", &[80]), "unsigned integer"),
        ("granite-moe", Entry::number("granitemoe.rope.scaling.finetuned", 0), "is 0"),
        ("gpt-oss", Entry::float("gpt-oss.rope.freq_base_swa", 5e5), "differs from the base"),
        ("glm4-moe", Entry::number("glm4moe.expert_gating_func", 1), "is 1"),
        ("qwen3-moe", Entry::number("qwen3moe.expert_gating_func", 2), "is 2"),
        (
            "llama",
            Entry::text("tokenizer.ggml.add_boss_token", "x"),
            "tokenizer.ggml.add_bos_token",
        ),
        ("llama-yarn", Entry::float("llama.rope.scaling.yarn_beta_fast", 16.0), "passes it over"),
        ("llama-yarn", Entry::float("llama.rope.scaling.yarn_ext_factor", 0.5), "passes it over"),
        (
            "llama-yarn",
            Entry::float("llama.rope.scaling.yarn_log_multiplier", 0.1),
            "passes it over",
        ),
        ("llama-yarn", Entry::float("llama.rope.scaling.yarn_attn_factor", 0.878), "is not 1.1386"),
        ("llama-linear", Entry::float("llama.rope.scaling.attn_factor", 1.2), "under YaRN only"),
        (
            "llama-linear",
            Entry::float("llama.rope.scale_linear", 2.0),
            "says 4, and `llama.rope.scale_linear` says 2",
        ),
    ];
    for (name, entry, words) in cases {
        let key = entry.key.clone();
        let (_folder, path) = with(name, entry);
        let error = open(&path).err().unwrap_or_else(|| panic!("{key}"));
        assert!(error.contains(words), "{key}: {error}");
    }
}

#[test]
fn neutral_keys_and_vendors_keys_change_nothing() {
    let neutral = [
        ("llama", Entry::float("llama.logit_scale", 1.0)),
        ("llama", Entry::number("llama.expert_count", 0)),
        // one number for each layer
        ("llama", Entry::numbers("llama.feed_forward_length", &[80, 80])),
        ("llama", Entry::numbers("llama.attention.head_count_kv", &[1, 1])),
        ("llama", Entry::float("llama.rope.scaling.yarn_attn_factor", 1.0)),
        ("llama", Entry::float("llama.rope.scaling.yarn_beta_fast", 32.0)),
        ("llama-yarn", Entry::float("llama.rope.scaling.yarn_ext_factor", 1.0)),
        ("llama-yarn", Entry::float("llama.rope.scaling.yarn_attn_factor", 1.138_629_4)),
        ("llama", Entry::text("quantize.imatrix.file", "imatrix.dat")),
        ("gemma2", Entry::float("gemma2.rope.freq_base_swa", 1e4)),
        ("gemma3", Entry::number("gemma3.attention.key_length_swa", 32)),
    ];
    for (name, entry) in neutral {
        let key = entry.key.clone();
        let (_folder, as_is) = edited(name, |_| {});
        let (_folder2, path) = with(name, entry);
        let now = open(&path).unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(support::notes_on_keys(&now), [""; 0], "{key}");
        assert_eq!(rendered(&now), rendered(&open(&as_is).unwrap()), "{key}");
    }
    for key in ["vendor.build", "tokenizer.ggml.vendor_build", "tokenizer.vendor.build"] {
        let (_folder, path) = with("llama", Entry::text(key, "7"));
        let strange = support::notes_on_keys(&open(&path).unwrap());
        assert_eq!(strange, [format!("keys that nothing reads: {key}")]);
    }
}

/// `ignore_keys` would pretend that they are passed over.
#[test]
fn keys_that_other_parts_of_the_program_read_cannot_be_ignored() {
    let tokens = [
        "bos",
        "eos",
        "eot",
        "eom",
        "unknown",
        "seperator",
        "padding",
        "mask",
        "fim_pre",
        "fim_suf",
        "fim_mid",
        "fim_pad",
        "fim_rep",
        "fim_sep",
        "prefix",
        "suffix",
        "middle",
    ];
    let tokens = tokens.map(|name| Entry::number(&format!("tokenizer.ggml.{name}_token_id"), 1));
    let others = [
        Entry::number("split.count", 1),
        Entry::text("general.type", "model"),
        Entry::number("general.quantization_version", 2),
        Entry::number("general.alignment", 32),
        Entry::text("tokenizer.chat_template", "x"),
    ];
    for entry in others.into_iter().chain(tokens) {
        let key = entry.key.clone();
        let (_folder, path) = with("llama", entry);
        let ignore_keys = vec![key.clone()];
        let error = Checkpoint::open(&Source { ignore_keys, ..Source::at(path) }).err();
        let error = error.unwrap_or_else(|| panic!("{key}")).to_string();
        assert!(error.contains("is read: the policy's `ignore_keys` cannot"), "{key}: {error}");
    }
    for (key, value) in [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("auto_map.AutoConfig", json!("configuration.Own")),
        ("model_file", Value::Null),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let from = root().join("tests/fixtures/checkpoints/llama");
        for file in ["model.safetensors", "tokenizer.json"] {
            std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
        }
        let config = std::fs::read(from.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        match key.split_once('.') {
            Some((object, member)) => config[object][member] = value,
            None => config[key] = value,
        }
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let ignore_keys = vec![key.to_owned()];
        let source = Source { ignore_keys, ..Source::at(folder.path().into()) };
        let error = Checkpoint::open(&source).err().unwrap_or_else(|| panic!("{key}")).to_string();
        assert!(error.contains("is read: the policy's `ignore_keys` cannot"), "{key}: {error}");
    }
}

#[test]
fn slips_of_two_letters_are_refused_where_others_read_the_key_too() {
    for (slip, meant) in [
        ("tokenizer.ggml.add_bos_tokne", "add_bos_token"),
        ("tokenizer.ggml.bos_token_if", "bos_token_id"),
        ("tokenizer.ggml.fim_pad_token", "fim_pad_token_id"),
        ("tokenizer.ggml.add_space_perfixx", "add_space_prefix"),
        ("tokenizer.chat_tenplate", "tokenizer.chat_template"),
        ("general.quantisation_versions", "general.quantization_version"),
        ("general.alinement", "general.alignment"),
        ("split.counts", "split.count"),
    ] {
        let (_folder, path) = with("llama", Entry::number(slip, 0));
        let error = open(&path).err().unwrap_or_else(|| panic!("{slip}"));
        assert!(error.contains("is read by nothing, and resembles"), "{slip}: {error}");
        assert!(error.contains(meant), "{slip}: {error}");
    }
}

/// The keys that gguf-py (`constants.py`, 0.17) and llama.cpp know outside of architectures and that kvgate does not
/// read, and those of other programs that resemble one that it reads.
#[test]
fn keys_that_writers_know_are_no_slips_of_the_pen() {
    let general = [
        "file_type",
        "sampling.sequence",
        "sampling.top_k",
        "sampling.top_p",
        "sampling.min_p",
        "sampling.xtc_probability",
        "sampling.xtc_threshold",
        "sampling.temp",
        "sampling.penalty_last_n",
        "sampling.penalty_repeat",
        "sampling.mirostat",
        "sampling.mirostat_tau",
        "sampling.mirostat_eta",
        "name",
        "author",
        "version",
        "organization",
        "finetune",
        "basename",
        "description",
        "quantized_by",
        "size_label",
        "license",
        "license.name",
        "license.link",
        "url",
        "doi",
        "uuid",
        "repo_url",
        "source.url",
        "source.doi",
        "source.uuid",
        "source.repo_url",
        "base_model.count",
        "base_model.0.name",
        "base_model.0.author",
        "base_model.0.version",
        "base_model.0.organization",
        "base_model.0.description",
        "base_model.0.url",
        "base_model.0.doi",
        "base_model.0.uuid",
        "base_model.0.repo_url",
        "dataset.count",
        "dataset.0.name",
        "dataset.0.author",
        "dataset.0.version",
        "dataset.0.organization",
        "dataset.0.description",
        "dataset.0.url",
        "dataset.0.doi",
        "dataset.0.uuid",
        "dataset.0.repo_url",
        "tags",
        "languages",
    ];
    let tokenizer = [
        "token_type_count",
        "add_sep_token",
        "remove_extra_whitespaces",
        "precompiled_charsmap",
        "normalizer.lowercase",
        "normalizer.strip_accents",
        "suppress_tokens",
        "cls_token_id",
        "separator_token_id",
        "add_cls_token",
        "add_mask_token",
        "add_padding_token",
        "add_unknown_token",
        "add_seperator_token",
    ];
    let whole = [
        "tokenizer.huggingface.json",
        "tokenizer.rwkv.world",
        "tokenizer.chat_template.tool_use",
        "tokenizer.chat_templates",
    ];
    let general = general.iter().map(|name| format!("general.{name}"));
    let tokenizer = tokenizer.iter().map(|name| format!("tokenizer.ggml.{name}"));
    for key in general.chain(tokenizer).chain(whole.map(String::from)) {
        let (_folder, path) = with("llama", Entry::text(&key, "x"));
        let checkpoint = open(&path).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(support::notes_on_keys(&checkpoint), [""; 0], "{key}");
    }
}

/// Linear scaling under its first name, and without scaling as llama.cpp's writer spells it.
#[test]
fn linear_scaling_by_its_first_name_and_with_a_factor_of_zero() {
    let factor = "llama.rope.scaling.factor";
    let (_folder, as_is) = edited("llama-linear", |_| {});
    let (_folder2, older) = edited("llama-linear", |entries| {
        entries.retain(|e| e.key != factor && e.key != "llama.rope.scaling.type");
        entries.push(Entry::float("llama.rope.scale_linear", 4.0));
    });
    assert_eq!(rendered(&open(&as_is).unwrap()), rendered(&open(&older).unwrap()));
    let (_folder, as_is) = edited("llama", |_| {});
    let (_folder2, zero) = edited("llama", |entries| {
        entries.push(Entry::text("llama.rope.scaling.type", "linear"));
        entries.push(Entry::float(factor, 0.0));
    });
    assert_eq!(rendered(&open(&as_is).unwrap()), rendered(&open(&zero).unwrap()));
}

#[test]
fn a_count_of_turning_elements_is_taken_as_llama_cpp_takes_it_or_refused() {
    let count = |name: &str, prefix: &str, n| {
        let (folder, path) =
            with(name, Entry::number(&format!("{prefix}.rope.dimension_count"), n));
        let opened = open(&path);
        drop(folder);
        opened
    };
    // heads of 16 in `llama`, which llama.cpp wants whole; of 8 in `qwen2`
    for (name, prefix, n) in [
        ("llama", "llama", 8),
        ("llama", "llama", 0),
        ("llama", "llama", 32),
        ("qwen2", "qwen2", 0),
        ("qwen2", "qwen2", 3),
        ("qwen2", "qwen2", 10),
        ("gemma4-e2b", "gemma4", 128),
    ] {
        let error = count(name, prefix, n).err().unwrap_or_else(|| panic!("{name}: {n}"));
        let words = format!("rope.dimension_count` says that {n} elements");
        assert!(error.contains(&words), "{name}: {error}");
    }
    let turning = |name, prefix, n| {
        let spec = count(name, prefix, n).unwrap().spec;
        spec.layers
            .iter()
            .map(|l| l.attention().unwrap().rope.frequencies.len())
            .collect::<Vec<_>>()
    };
    assert_eq!(turning("qwen2", "qwen2", 4), [2, 2]);
    // what is said of full layers holds for sliding ones, too
    assert_eq!(turning("gemma3", "gemma3", 16), [8; 7]);
}

/// Every default of the list, held against the reference: transformers without that key of config.json,
/// llama.cpp without that key of the GGUF.
#[test]
fn defaults_are_the_references() {
    let oracle = support::fixture("keys.json");
    let cases = oracle["cases"].as_array().unwrap();
    let named =
        |case: &Value| ["name", "format", "key"].map(|k| case[k].as_str().unwrap().to_owned());
    let list = std::fs::read_to_string(root().join("tests/fixtures/keys.txt")).unwrap();
    let sorted = |mut cases: Vec<[String; 3]>| {
        cases.sort();
        cases
    };
    assert_eq!(sorted(cases.iter().map(named).collect()), sorted(defaults(&list)));
    let fixtures: BTreeMap<_, _> = fixtures().into_iter().collect();
    for case in cases {
        let [name, format, key] = named(case);
        let folder = tempfile::tempdir().unwrap();
        let path = fixtures[&format!("{name} {format}")].write(folder.path(), &key, Edit::Remove);
        let decoder = support::load(&open(&path).unwrap());
        let whole = support::fixture(&format!("checkpoints/{name}/logits.json"));
        let logits = logits(&decoder, &support::ids(&whole["ids"]));
        // llama.cpp's GELU rounds to f16 (scripts/oracle/README.md)
        let tolerance = support::tolerance(if format == "gguf" && name.contains("gemma") {
            1e-2
        } else {
            1e-4
        });
        for position in case["positions"].as_array().unwrap() {
            let row = position["position"].as_u64().unwrap() as usize;
            let got: Vec<f32> = logits.get(row).unwrap().to_vec1().unwrap();
            let want = position["logits"].as_array().unwrap();
            let distance = relative(&got, want.iter().map(|x| x.as_f64().unwrap()));
            assert!(distance <= tolerance, "{name} {format} without {key}, {row}: {distance:.1e}");
        }
    }
}

/// Name, format and key of every line of the list that says `default` of a key that is gone.
fn defaults(list: &str) -> Vec<[String; 3]> {
    let (mut found, mut heading, mut default) = (Vec::new(), Vec::new(), false);
    for line in list.lines() {
        if let Some(words) = line.strip_prefix("# ") {
            heading = words.splitn(3, ' ').collect();
        } else if let Some(keys) = line.strip_prefix("    ") {
            for key in keys.split(' ').filter(|_| default && heading[2] == "without") {
                found.push([heading[0], heading[1], key].map(String::from));
            }
        } else {
            default = line.starts_with("default");
        }
    }
    found
}

/// A wrong count would take layers of the model itself for layers that predict further tokens.
#[test]
fn layers_that_predict_further_tokens_are_what_the_count_says() {
    for count in [1, 2] {
        let (_folder, path) = edited("glm4-moe", |entries| {
            entries.retain(|entry| entry.key != "glm4moe.nextn_predict_layers");
            entries.push(Entry::number("glm4moe.nextn_predict_layers", count));
        });
        let opened = open(&path).err();
        let error = opened.unwrap_or_else(|| panic!("{count} layers"));
        assert!(
            error.contains("nextn_predict_layers") && error.contains("which has no"),
            "{error}"
        );
    }
}
