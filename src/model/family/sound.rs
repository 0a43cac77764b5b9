//! What every specification must satisfy, so that a damaged or hostile header is an error and not a panic.

use crate::model::config::Config;
use crate::model::spec::{Attention, DeltaNet, Experts, FeedForward, Kv, Layer, Mixer, Spec};
use crate::model::ModelError;

/// Checks a specification that a family has read.
pub(super) fn check(config: &dyn Config, spec: &Spec) -> Result<(), ModelError> {
    let sound = || {
        sizes(&[("hidden size", spec.hidden), ("vocabulary", spec.vocab)])?;
        demand(!spec.layers.is_empty(), || "a model without layers".into())?;
        demand(spec.norm_eps > 0.0, || format!("an ε of {} in norms", spec.norm_eps))?;
        if let Some(inputs) = &spec.per_layer_inputs {
            sizes(&[("width of per-layer inputs", inputs.width), ("vocabulary", inputs.vocab)])?;
        }
        for (index, layer) in spec.layers.iter().enumerate() {
            layer_is_sound(spec, index, layer).map_err(|what| format!("{what} (layer {index})"))?;
        }
        Ok(())
    };
    sound().map_err(|what: String| config.unsupported(what))
}

/// Refuses absurd sizes from a header before anything is allocated for them.
pub(super) fn bounded(config: &dyn Config, named: &[(&str, usize)]) -> Result<(), ModelError> {
    sizes(named).map_err(|what| config.unsupported(what))
}

fn demand(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(what())
    }
}

/// Checks that all sizes are at least 1 and no larger than those of any model, so that products of them cannot
/// overflow.
fn sizes(named: &[(&str, usize)]) -> Result<(), String> {
    const MOST: usize = 1 << 20;
    match named.iter().find(|(_, n)| !(1..=MOST).contains(n)) {
        None => Ok(()),
        Some((name, n)) => Err(format!("an absurd {name} of {n}")),
    }
}

fn layer_is_sound(spec: &Spec, index: usize, layer: &Layer) -> Result<(), String> {
    match &layer.mixer {
        Mixer::Attention(attention) => {
            attention_is_sound(attention)?;
            if let Kv::Shared { owner } = attention.kv {
                let below = spec.layers[..index].get(owner).and_then(Layer::attention);
                let fits = |o: &Attention| {
                    let geometry = |a: &Attention| (a.kv_heads, a.head_dim, a.window);
                    o.owns_kv() && geometry(o) == geometry(attention)
                };
                demand(below.is_some_and(fits), || format!("sharing the cache of layer {owner}"))?;
            }
        }
        Mixer::DeltaNet(net) => delta_net_is_sound(net)?,
    }
    let (mlp, experts) = match &layer.feed_forward {
        FeedForward::Dense(mlp) => (Some(mlp), None),
        FeedForward::Experts(experts) => (None, Some(experts)),
        FeedForward::Both(mlp, experts) => (Some(mlp), Some(experts)),
    };
    sizes(&mlp.map(|mlp| ("MLP width", mlp.width)).into_iter().collect::<Vec<_>>())?;
    experts.map_or(Ok(()), experts_are_sound)
}

fn attention_is_sound(a: &Attention) -> Result<(), String> {
    sizes(&[("number of heads", a.heads), ("number of KV heads", a.kv_heads)])?;
    sizes(&[("head size", a.head_dim), ("window", a.window.unwrap_or(1))])?;
    sizes(&[("width of Q", a.q_width())])?;
    let (heads, kv_heads, dim) = (a.heads, a.kv_heads, a.head_dim);
    demand(heads.is_multiple_of(kv_heads), || format!("{kv_heads} KV heads for {heads} heads"))?;
    demand(dim.is_multiple_of(2), || format!("an odd head size of {dim}"))?;
    let steps = a.rope.temperature.as_ref().map_or(1, |temperature| temperature.steps);
    demand(steps > 0, || "a factor of Q that grows at every position".into())?;
    let turns = &a.rope.frequencies;
    let sound = 2 * turns.len() <= dim && turns.iter().all(|f| f.is_finite());
    demand(sound, || format!("RoPE with {} pairs in heads of {dim}", turns.len()))
}

fn delta_net_is_sound(d: &DeltaNet) -> Result<(), String> {
    sizes(&[("number of key heads", d.key_heads), ("number of value heads", d.value_heads)])?;
    sizes(&[("key size", d.key_dim), ("value size", d.value_dim), ("kernel", d.kernel)])?;
    demand(d.kernel > 1, || "a convolution over single tokens".into())?;
    sizes(&[("width of keys", d.key_width()), ("width of values", d.value_width())])?;
    let (values, keys) = (d.value_heads, d.key_heads);
    demand(values.is_multiple_of(keys), || format!("{values} value heads for {keys} key heads"))
}

fn experts_are_sound(e: &Experts) -> Result<(), String> {
    sizes(&[("number of experts", e.count), ("number of experts a token", e.used)])?;
    sizes(&[("expert width", e.width)])?;
    sizes(&[("shared expert's width", e.shared.as_ref().map_or(1, |shared| shared.width))])?;
    demand(e.used <= e.count, || format!("{} of {} experts a token", e.used, e.count))
}
