//! The released models that nobody downloads for a test: their configurations, and the names and
//! shapes of all their tensors (fixtures: `scripts/oracle/manifests.py`), in files without content.

use crate::support;
use crate::support::fixture;
use crate::support::forward::{difference, logits};
use crate::support::manifest::{manifest, write, Tensor};
use kvgate::internals::compute::Device;
use kvgate::internals::model::decoder::Decoder;
use kvgate::internals::model::spec::{Attention, FeedForward, Kv, Layer, Mixer, QkNorm, Spec};
use kvgate::internals::model::{decoder, Checkpoint};
use kvgate::internals::source::Source;

fn open(model: &str, tensors: &[Tensor]) -> Result<Checkpoint, String> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), model, tensors);
    Checkpoint::open(&Source::at(folder.path().into())).map_err(|error| error.to_string())
}

const MODELS: [&str; 21] = [
    "Qwen3.6-35B-A3B",
    "Gemma4-E2B",
    "Gemma4-E4B",
    "Gemma4-26B-A4B",
    "Gemma4-31B",
    "Qwen3-30B-A3B",
    "Mistral-7B-v0.3",
    "Ministral-3-8B",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "Phi-4",
    "SmolLM3-3B",
    "OLMo-2-7B",
    "Olmo-3-7B",
    "Granite-3.3-2B",
    "Granite-3.1-3B-A800M",
    "Granite-4.0-Micro",
    "Granite-4.0-350M",
    "GLM-4-9B",
    "GLM-4.5-Air",
    "Qwen3-VL-8B",
];

/// Opening checks that every tensor is used once or deliberately not at all.
#[test]
fn every_tensor_has_its_place_and_parameters_are_the_published_ones() {
    let totals = fixture("real/totals.json");
    for model in MODELS {
        let checkpoint = open(model, &manifest(model)).unwrap_or_else(|e| panic!("{e}"));
        let published = totals[model]["text_parameters"].as_u64().unwrap();
        assert_eq!(decoder::parameters(&checkpoint.spec), published, "{model}");
        assert_eq!(support::notes_on_keys(&checkpoint), [""; 0], "{model}");
    }
}

fn spec(model: &str) -> Spec {
    open(model, &manifest(model)).unwrap_or_else(|e| panic!("{e}")).spec
}

/// Layers that own a cache: index, KV heads, head size, window.
fn owners(spec: &Spec) -> Vec<(usize, usize, usize, Option<usize>)> {
    let owner = |(i, layer): (usize, &Layer)| {
        let a = layer.attention().filter(|a| a.owns_kv())?;
        Some((i, a.kv_heads, a.head_dim, a.window))
    };
    spec.layers.iter().enumerate().filter_map(owner).collect()
}

#[test]
fn qwen_3_6_is_three_recurrent_layers_to_one_of_gated_attention() {
    let spec = spec("Qwen3.6-35B-A3B");
    let full: Vec<_> = (0..10).map(|i| (4 * i + 3, 2, 256, None)).collect();
    assert_eq!(owners(&spec), full);
    let a = spec.layers[3].attention().unwrap();
    assert!(a.gated && a.qk_norm == QkNorm::Heads && !a.v_norm && a.softcap.is_none());
    assert_eq!((a.heads, a.scale, a.rope.frequencies.len(), a.rope.base), (16, 0.0625, 32, 1e7));
    // 1e7^(-2/64)
    assert!((a.rope.frequencies[1] - 0.604_296_4).abs() < 1e-6, "{}", a.rope.frequencies[1]);
    let Mixer::DeltaNet(net) = &spec.layers[0].mixer else { panic!() };
    assert_eq!((net.key_heads, net.value_heads, net.kernel), (16, 32, 4));
    assert_eq!(net.state_bytes(), 98_304 + 2_097_152);
    let FeedForward::Experts(experts) = &spec.layers[0].feed_forward else { panic!() };
    assert_eq!(
        (experts.count, experts.used, experts.shared.as_ref().map(|shared| shared.width)),
        (256, 8, Some(512))
    );
    assert_eq!(spec.layers_before_kv(), 3);
}

#[test]
fn gemma_4_e2b_shares_two_caches_among_twenty_layers() {
    let spec = spec("Gemma4-E2B");
    assert_eq!((spec.layers.len(), spec.final_softcap), (35, Some(30.0)));
    let own = |i: usize| match i % 5 {
        4 => (i, 1, 512, None),
        _ => (i, 1, 256, Some(512)),
    };
    assert_eq!(owners(&spec), (0..15).map(own).collect::<Vec<_>>());
    for (i, layer) in spec.layers.iter().enumerate() {
        let a = layer.attention().unwrap();
        assert!(a.scale == 1.0 && a.qk_norm == QkNorm::Heads && a.v_norm);
        assert!(layer.scaled && layer.post_norms);
        let turning = a.rope.frequencies.iter().filter(|f| **f != 0.0).count();
        let (owner, turns) = if i % 5 == 4 { (14, 64) } else { (13, 128) };
        assert_eq!(turning, turns, "layer {i}");
        let shared = if i < 15 { Kv::Projected } else { Kv::Shared { owner } };
        assert_eq!(a.kv, shared, "layer {i}");
        let FeedForward::Dense(mlp) = &layer.feed_forward else { panic!() };
        assert_eq!(mlp.width, if i < 15 { 6144 } else { 12288 }, "layer {i}");
    }
}

#[test]
fn gemma_4_31b_and_26b_take_v_from_k_in_full_layers() {
    for (model, sliding, full) in [("Gemma4-31B", 16, 4), ("Gemma4-26B-A4B", 8, 2)] {
        let spec = spec(model);
        for (i, layer) in spec.layers.iter().enumerate() {
            let a = layer.attention().unwrap();
            let want = match (i + 1) % 6 {
                0 => (full, 512, None, Kv::KeyIsValue),
                _ => (sliding, 256, Some(1024), Kv::Projected),
            };
            assert_eq!((a.kv_heads, a.head_dim, a.window, a.kv), want, "{model}, layer {i}");
        }
    }
}

/// YaRN's bounds of the released files are 8.09 and 17.40 pairs, and transformers does not round them.
#[test]
fn gpt_oss_has_heads_with_scores_of_their_own_and_a_window_in_every_other_layer() {
    for (model, layers, count) in [("gpt-oss-20b", 24, 32), ("gpt-oss-120b", 36, 128)] {
        let spec = spec(model);
        let window = |i: usize| (i, 8, 64, i.is_multiple_of(2).then_some(128));
        assert_eq!(owners(&spec), (0..layers).map(window).collect::<Vec<_>>());
        for layer in &spec.layers {
            let a = layer.attention().unwrap();
            assert!(a.own_scores && a.qkv_bias && a.output_bias && a.scale == 0.125);
            assert!((a.rope.magnitude - 1.346_573_6).abs() < 1e-6, "{}", a.rope.magnitude);
            let turn = |i: usize| 150_000f64.powf(-2.0 * i as f64 / 64.0) as f32;
            let scaled = |i: usize| turn(i) / 32.0;
            let f = &a.rope.frequencies;
            assert_eq!((f[8], f[18]), (turn(8), scaled(18)));
            assert!(f[9] < turn(9) && f[17] > scaled(17));
            let FeedForward::Experts(experts) = &layer.feed_forward else { panic!() };
            assert_eq!((experts.count, experts.used, experts.biases), (count, 4, true));
        }
    }
}

#[test]
fn tensors_that_some_releases_leave_out_are_not_needed() {
    for model in ["Gemma4-E2B", "Gemma4-E4B"] {
        let mut tensors = manifest(model);
        let all = tensors.len();
        tensors.retain(|tensor| !tensor.optional);
        assert!(tensors.len() < all);
        open(model, &tensors).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn a_tensor_too_few_or_too_many_or_of_another_shape_is_named() {
    for model in MODELS {
        let text = |name: &str| name.contains("layers.1.") && !name.contains("tower");
        let tensors = manifest(model);
        let at = tensors.iter().position(|t| text(&t.name) && !t.optional).unwrap();
        let name = tensors[at].name.clone();

        let mut fewer = manifest(model);
        fewer.remove(at);
        let error = open(model, &fewer).err().unwrap();
        assert!(error.contains(&format!("tensor `{name}` is missing")), "{error}");

        let mut bent = manifest(model);
        bent[at].shape[0] += 1;
        let (expected, found) = (&tensors[at].shape, &bent[at].shape);
        let error = open(model, &bent).err().unwrap();
        assert!(error.contains(&name) && error.contains(&format!("{found:?}")), "{error}");
        assert!(error.contains(&format!("{:?}", expected)), "{error}");

        let mut more = manifest(model);
        let extra = name.replace("layers.1.", "layers.1.unheard_of.");
        more.push(Tensor { name: extra.clone(), shape: vec![4], bytes: false, optional: false });
        let error = open(model, &more).err().unwrap();
        assert!(error.contains(&extra), "{error}");
    }
}

/// A model of a few of a released model's layers, and of a small part of its vocabulary.
fn excerpt(model: &str, layers: &[usize]) -> Spec {
    let whole = spec(model);
    let pick = |&index: &usize| {
        let mut layer = whole.layers[index].clone();
        if let Mixer::Attention(Attention { kv: Kv::Shared { owner }, .. }) = &mut layer.mixer {
            // the cache of the picked layer that is like its owner
            let alike = |&other: &usize| {
                let [a, b] = [other, *owner].map(|i| whole.layers[i].attention());
                a.zip(b).is_some_and(|(a, b)| a.owns_kv() && a.window == b.window)
            };
            *owner = layers.iter().position(alike).unwrap();
        }
        layer
    };
    let layers: Vec<_> = layers.iter().map(pick).collect();
    Spec { vocab: 4096, layers, ..whole }
}

/// One layer of each kind, with the same random weights on both devices.
#[test]
#[ignore = "needs a card, which KVGATE_DEVICE names, and 16 GB of memory"]
fn layers_of_real_sizes_give_on_a_card_what_they_give_on_the_cpu() {
    let card = Device::open(std::env::var("KVGATE_DEVICE").unwrap().parse().unwrap()).unwrap();
    assert_ne!(card.name(), "cpu");
    let ids: Vec<u32> = (0..512).map(|i| (i * i * 7 + i * 13) % 4096).collect();
    // three of four layers of the one are recurrent; some layers of the other read the caches of others
    for (model, layers) in [("Qwen3.6-35B-A3B", &[0, 3][..]), ("Gemma4-E2B", &[0, 4, 15, 19])] {
        let spec = excerpt(model, layers);
        let [there, here] = [&card, &Device::cpu()].map(|device| {
            let decoder = Decoder::with_random_weights(&spec, &card, device).unwrap();
            logits(&decoder, &ids)
        });
        let difference = difference(&there, &here);
        println!("{model}, layers {layers:?}: {difference:.1e}");
        assert!(difference < 2e-4, "{model}: {difference:e}");
    }
}
