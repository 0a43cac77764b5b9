//! A scheme as a cache carries it out for a model: what *effective scheme* means in reports.

use super::cache::LayerKv;
use super::calibration::{Calibration, Ranges};
use super::codec::{self, Codec};
use super::exact::{Exact, Tail};
use super::rotate;
use super::scheme::{Layers, Pair, Scale, Scheme, Side};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// How one side of a layer is stored: the codec, what really happens before it, and what stays exact.
#[derive(Clone)]
pub struct Stored {
    pub(super) codec: &'static dyn Codec,
    rotation: Option<usize>,
    pub(super) exact: Exact,
    /// (H_kv, D): what is subtracted before the codec and added to what is read.
    mean: Option<Arc<[f32]>>,
    /// (H_kv): what is divided by before the codec.
    scales: Option<(Scale, Arc<[f32]>)>,
}

/// What a scheme does in each layer of a model.
#[derive(Clone)]
pub struct Effective {
    /// One entry a layer; none where it owns no cache.
    layers: Arc<[Option<StoredLayer>]>,
    /// Whether the scheme tells layers apart by name.
    by_layer: bool,
    /// Counted by every cache of this scheme.
    clamped: Arc<Clamped>,
}

/// Scales that stand at a limit of their format, of all scales.
#[derive(Default)]
pub(super) struct Clamped {
    at_limit: AtomicU64,
    all: AtomicU64,
}

impl Clamped {
    pub fn count(&self, [at_limit, all]: [u64; 2]) {
        self.at_limit.fetch_add(at_limit, Ordering::Relaxed);
        self.all.fetch_add(all, Ordering::Relaxed);
    }
}

/// A layer of the cache as a scheme stores it.
#[derive(Clone)]
pub(super) struct StoredLayer {
    pub kv: LayerKv,
    pub k: Stored,
    pub v: Stored,
    pub queries: Option<Stored>,
}

/// Why a scheme cannot be carried out for a model.
#[derive(Debug, thiserror::Error)]
pub enum UnfitError {
    /// Blocks that do not divide a head.
    #[error("{codec} stores blocks of {block} elements, which do not divide the model's head size {head_dim}; use f16 or bf16 for this side")]
    BlockSize {
        /// The codec.
        codec: String,
        /// Elements in its blocks.
        block: usize,
        /// Elements in a head of the model.
        head_dim: usize,
    },
    /// Layers that the model has not, or that own no cache.
    #[error("`@{layers}` names no layer of the model that owns a cache: those are {owners}")]
    NoLayers {
        /// As the scheme names them.
        layers: String,
        /// Those that there are.
        owners: String,
    },
    /// A part of the scheme that no layer of the model carries out.
    #[error("{part}: the scheme would not be what its name says; write `{mend}` for this model")]
    Idle {
        /// Which part, and why nothing comes of it.
        part: String,
        /// The same scheme without it.
        mend: String,
    },
    /// No calibration at hand.
    #[error("`:{option}` needs a calibration: make one by `kvgate calibrate MODEL --corpus FILE -o FILE`, and name it: `calibration = \"FILE\"` in the policy, or --calibration FILE")]
    NotCalibrated {
        /// The option that needs it.
        option: &'static str,
    },
    /// A calibration of another model.
    #[error("the calibration has nothing of this shape for layer {layer}: it is another model's")]
    OtherModel {
        /// Index of the layer.
        layer: usize,
    },
    /// A model whose scores a mean of K does not fall out of.
    #[error("`:center` is not exact for this model: its scores are capped (tanh), and a constant does not fall out of a capped softmax")]
    Capped,
}

impl Effective {
    /// What `scheme` is for a model whose layers keep what `layout` says.
    ///
    /// # Errors
    /// A codec whose blocks do not divide a head, layers that the model has not, a part of the scheme that no
    /// layer carries out, a calibration that is missing or another model's.
    pub fn new(
        scheme: &Scheme,
        layout: &[Option<LayerKv>],
        calibration: Option<&Calibration>,
    ) -> Result<Self, UnfitError> {
        let parts = parts_of(scheme, layout)?;
        let layers = layout.iter().zip(&parts).enumerate().map(|(index, (kv, part))| {
            let Some(kv) = kv else { return Ok(None) };
            let pair = part.map_or(&scheme.default, |clause| &scheme.layers[clause].1);
            StoredLayer::new(index, *kv, pair, calibration).map(Some)
        });
        Ok(Effective {
            layers: layers.collect::<Result<_, _>>()?,
            by_layer: !scheme.layers.is_empty(),
            clamped: Arc::default(),
        })
    }

    /// The deliberately bad scheme of the control lane.
    pub(crate) fn bad(layout: &[Option<LayerKv>]) -> Self {
        let bad = Stored::plain(codec::BAD, None);
        let store =
            |kv: &LayerKv| StoredLayer { kv: *kv, k: bad.clone(), v: bad.clone(), queries: None };
        let layers = layout.iter().map(|kv| kv.as_ref().map(store)).collect();
        Effective { layers, by_layer: false, clamped: Arc::default() }
    }

    /// The same with queries rounded to what llama.cpp's CPU attention multiplies K with.
    pub(crate) fn with_rounded_queries(self) -> Self {
        let layers = self.layers.iter().cloned();
        let layers = layers.map(|layer| layer.map(StoredLayer::with_rounded_queries)).collect();
        Effective { layers, ..self }
    }

    /// How a layer is stored.
    pub(super) fn layer(&self, index: usize) -> &StoredLayer {
        self.layers[index].as_ref().expect("the specification says which layers own a cache")
    }

    pub(super) fn clamped(&self) -> &Clamped {
        &self.clamped
    }

    /// Share of the scales written so far that stand at a limit of their format; none where there is no
    /// such limit.
    pub fn clamped_share(&self) -> Option<f64> {
        let all = self.clamped.all.load(Ordering::Relaxed);
        let at_limit = self.clamped.at_limit.load(Ordering::Relaxed);
        (all > 0).then(|| at_limit as f64 / all as f64)
    }

    fn owners(&self) -> impl Iterator<Item = &StoredLayer> {
        self.layers.iter().flatten()
    }

    /// Storage cost of what the codecs encode, of K and of V: the mean over all elements of a token.
    pub fn bits_per_element(&self) -> [f64; 2] {
        let elements: usize = self.owners().map(|layer| layer.kv.width()).sum();
        let (bytes, tokens) = self.encoded_bytes();
        bytes.map(|bytes| (8 * bytes) as f64 / (elements * tokens).max(1) as f64)
    }

    /// Bytes of so many encoded tokens, of K and of V: the fewest tokens that are whole groups of every codec.
    ///
    /// Counted in integers. A sum of shares that were divided one by one makes 15.999999999999998 bits of
    /// halves, and nothing can be compared with that.
    fn encoded_bytes(&self) -> ([usize; 2], usize) {
        let groups = self.owners().flat_map(|layer| [layer.k.codec, layer.v.codec]);
        let tokens = groups.fold(1, |tokens, codec| least_common_multiple(tokens, codec.group()));
        let bytes = self.sides(|kv, side| {
            tokens / side.codec.group() * kv.heads * side.codec.encoded_bytes(kv.head_dim)
        });
        (bytes, tokens)
    }

    /// Storage cost at a context of so many tokens, exact tails and sinks included: bits over the elements
    /// that layers keep.
    pub fn bits_at(&self, tokens: usize) -> [f64; 2] {
        let kept = |kv: &LayerKv| kv.width() * kv.kept(tokens);
        let elements: usize = self.owners().map(|layer| kept(&layer.kv)).sum();
        self.bytes_of(tokens).map(|bytes| (8 * bytes) as f64 / elements.max(1) as f64)
    }

    /// Bytes that a token adds to the cache once it is encoded, windows aside.
    pub fn bytes_per_token(&self) -> f64 {
        let (bytes, tokens) = self.encoded_bytes();
        bytes.iter().sum::<usize>() as f64 / tokens as f64
    }

    /// Bytes of the cache of one sequence of so many tokens; recurrent states are not counted.
    pub fn bytes_at(&self, tokens: usize) -> usize {
        self.bytes_of(tokens).iter().sum()
    }

    fn bytes_of(&self, tokens: usize) -> [usize; 2] {
        self.sides(|kv, side| side.held(kv, tokens).bytes(kv, side))
    }

    /// Share of the pairs of a query at one of the positions `scored` and a key that it sees, over layers
    /// and heads, that read something else than a half: of K and of V.
    pub fn charged_share(&self, scored: Range<usize>) -> [f64; 2] {
        let seen = |kv: &LayerKv, p: usize| kv.window.map_or(p + 1, |w| w.min(p + 1));
        let pairs = |kv: &LayerKv| scored.clone().map(|p| kv.heads * seen(kv, p)).sum::<usize>();
        let all: usize = self.owners().map(|layer| pairs(&layer.kv)).sum();
        let charged = |kv: &LayerKv, side: &Stored| {
            if side.codec.name() == "f16" {
                return 0; // what is called exact
            }
            let keys = |p: usize| {
                let lowest = (p + 1 - seen(kv, p)).max(side.exact.sink);
                side.exact.first(p).min(p + 1).saturating_sub(lowest)
            };
            scored.clone().map(|p| kv.heads * keys(p)).sum::<usize>()
        };
        self.sides(charged).map(|pairs| pairs as f64 / all as f64)
    }

    /// A sum over layers, of K and of V.
    fn sides<N: std::iter::Sum>(&self, of: impl Fn(&LayerKv, &Stored) -> N) -> [N; 2] {
        [
            self.owners().map(|layer| of(&layer.kv, &layer.k)).sum(),
            self.owners().map(|layer| of(&layer.kv, &layer.v)).sum(),
        ]
    }

    /// Names and versions of the codecs that did not come with this crate.
    pub fn foreign_codecs(&self) -> Vec<String> {
        let sides = self.owners().flat_map(|layer| [layer.k.codec, layer.v.codec]);
        let foreign = sides.filter(|codec| !codec.version().is_empty());
        let mut names: Vec<_> = foreign.map(|c| format!("{} {}", c.name(), c.version())).collect();
        names.sort();
        names.dedup();
        names
    }
}

impl StoredLayer {
    fn new(
        index: usize,
        kv: LayerKv,
        pair: &Pair,
        calibration: Option<&Calibration>,
    ) -> Result<Self, UnfitError> {
        let ranges = |k: bool| match calibration {
            None => Ok(None),
            Some(calibration) => match calibration.of(index, &kv) {
                Some([of_k, of_v]) => Ok(Some(if k { of_k } else { of_v })),
                None => Err(UnfitError::OtherModel { layer: index }),
            },
        };
        let calibrated = |side: &Side| side.center || side.scale.is_some();
        let of = |side: &Side, k| if calibrated(side) { ranges(k) } else { Ok(None) };
        let v = pair.v.for_values();
        let of_k = of(&pair.k, true)?;
        let of_v = of(&v, false)?;
        Ok(StoredLayer {
            kv,
            k: Stored::new(&pair.k, &kv, rotate::k_size, of_k)?,
            v: Stored::new(&v, &kv, rotate::v_size, of_v)?,
            queries: None,
        })
    }

    /// 8 bits in the basis of a K in ggml's blocks, K's own format where K and V are not both f16 or both
    /// f32; untouched beside formats that llama.cpp has not.
    fn with_rounded_queries(self) -> Self {
        let format = match self.k.codec.name() {
            _ if self.k.codec.is_rotated() => codec::find("q8_0"),
            "f16" | "f32" if self.k.codec.name() == self.v.codec.name() => None,
            "f16" | "f32" | "bf16" => Some(self.k.codec),
            _ => None,
        };
        let queries = format.map(|codec| Stored::plain(codec, self.k.rotation));
        StoredLayer { queries, ..self }
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor * b
}

/// For each layer the clause of the scheme that is about it; none where the default is.
///
/// Every part of a scheme must be what some layer does. A default that its clauses leave no layer, or a clause
/// that later ones take all layers from, would be measured as something else under its name. A policy's
/// schemes may serve models of different depth, so this is an error of the one model where it is so.
fn parts_of(scheme: &Scheme, layout: &[Option<LayerKv>]) -> Result<Vec<Option<usize>>, UnfitError> {
    let owners: Vec<usize> = (0..layout.len()).filter(|&i| layout[i].is_some()).collect();
    let mut parts = vec![None; layout.len()];
    for (clause, (layers, _)) in scheme.layers.iter().enumerate() {
        let chosen = layers.of(layout);
        if chosen.is_empty() {
            let owners = spans(&owners);
            return Err(UnfitError::NoLayers { layers: layers.to_string(), owners });
        }
        chosen.into_iter().for_each(|index| parts[index] = Some(clause));
    }
    let is_idle = |part: Option<usize>| !owners.iter().any(|&owner| parts[owner] == part);
    let idle = (0..scheme.layers.len()).find(|&clause| is_idle(Some(clause)));
    if let Some(clause) = idle {
        let (layers, pair) = &scheme.layers[clause];
        let part =
            format!("`@{layers}={pair}` changes nothing, since later clauses name all its layers");
        return Err(UnfitError::Idle { part, mend: without(scheme, clause).to_string() });
    }
    if !owners.is_empty() && is_idle(None) {
        let part = format!("no layer of the model is left to `{}`", scheme.default);
        // the clause of the most layers becomes the default
        let layers_of = |clause: &usize| parts.iter().filter(|p| **p == Some(*clause)).count();
        let most = (0..scheme.layers.len()).max_by_key(layers_of).unwrap_or_default();
        let default = scheme.layers[most].1;
        let mend = Scheme { default, ..without(scheme, most) };
        return Err(UnfitError::Idle { part, mend: mend.to_string() });
    }
    Ok(parts)
}

/// A scheme without one of its clauses.
fn without(scheme: &Scheme, clause: usize) -> Scheme {
    let others = scheme.layers.iter().enumerate().filter(|(i, _)| *i != clause);
    Scheme { layers: others.map(|(_, clause)| clause.clone()).collect(), ..scheme.clone() }
}

/// What a scheme's name says of layers that the model has not or that own no cache, where other layers of the
/// same range are there. That changes no number, and reports name the layers that were meant.
pub(crate) fn beyond(scheme: &Scheme, layout: &[Option<LayerKv>]) -> Vec<String> {
    let remark = |layers: &Layers| {
        let Layers::Index(range) = layers else { return None };
        let there = layers.of(layout);
        let named = range.end().saturating_sub(*range.start()).saturating_add(1);
        (!there.is_empty() && there.len() < named).then(|| {
            format!("`@{layers}` of {scheme} is about {} only: of its layers the model has no others that own a cache", spans(&there))
        })
    };
    scheme.layers.iter().filter_map(|(layers, _)| remark(layers)).collect()
}

/// What a cache holds of one side of one layer of a sequence.
pub(super) struct Held {
    /// Groups of the codec that are encoded and still seen.
    pub groups: Range<usize>,
    /// Exact tokens of the sink.
    pub sink: usize,
    /// Exact tokens of the tail.
    pub tail: Range<usize>,
}

impl Held {
    fn bytes(&self, kv: &LayerKv, side: &Stored) -> usize {
        let exact = self.sink + self.tail.len();
        self.groups.len() * kv.heads * side.codec.encoded_bytes(kv.head_dim)
            + exact * kv.width() * size_of::<half::f16>()
    }
}

impl Stored {
    pub(super) fn plain(codec: &'static dyn Codec, rotation: Option<usize>) -> Self {
        Stored { codec, rotation, exact: Exact::NEVER, mean: None, scales: None }
    }

    fn new(
        side: &Side,
        kv: &LayerKv,
        size: fn(&dyn Codec, usize) -> Option<usize>,
        ranges: Option<&Ranges>,
    ) -> Result<Self, UnfitError> {
        let (codec, head_dim) = (side.codec, kv.head_dim);
        let block = codec.block(head_dim);
        if !head_dim.is_multiple_of(block) {
            return Err(UnfitError::BlockSize { codec: codec.name().into(), block, head_dim });
        }
        let rotation = if side.may_rotate { size(codec, head_dim) } else { None };
        let needed = |option| ranges.ok_or(UnfitError::NotCalibrated { option });
        let mean = match side.center {
            true if kv.capped => return Err(UnfitError::Capped),
            true => Some(needed("center")?.mean.clone()),
            false => None,
        };
        let scales = match (side.scale, codec.largest()) {
            (Some(scale), Some(largest)) => {
                let ranges = needed(scale.name())?;
                // of one head both are the same, and are called the same
                let scale = if kv.heads == 1 { Scale::Tensor } else { scale };
                Some((scale, ranges.scales(scale, largest, mean.as_deref(), kv)))
            }
            _ => None,
        };
        let exact = side.exact().within(kv.window);
        Ok(Stored { codec, rotation, exact, mean, scales })
    }

    /// Whether some queries read some keys exactly.
    pub(super) fn keeps_exact(&self) -> bool {
        self.exact != Exact::NEVER
    }

    /// Tokens that some query among the first so many reads encoded.
    pub(super) fn encoded_by(&self, tokens: usize) -> usize {
        tokens.checked_sub(1).map_or(0, |newest| self.exact.first(newest).min(tokens))
    }

    /// What a cache holds once a sequence has so many tokens.
    pub(super) fn held(&self, kv: &LayerKv, tokens: usize) -> Held {
        let group = self.codec.group();
        let seen = tokens - kv.kept(tokens);
        let (first, sink) = (self.encoded_by(tokens), self.exact.sink.min(tokens));
        let groups = seen.max(sink) / group..first.div_ceil(group);
        // a group that is only partly seen is encoded whole
        let tail = first.max(seen / group * group).max(sink)..tokens;
        Held {
            groups: if first > seen.max(sink) { groups } else { 0..0 },
            sink,
            tail: if self.keeps_exact() { tail } else { tokens..tokens },
        }
    }

    /// Into the basis and range that the codec sees: some tokens of one head, (n, D).
    fn before(&self, head: usize, x: &mut [f32], head_dim: usize) {
        for x in x.chunks_exact_mut(head_dim) {
            if let Some(mean) = &self.mean {
                let mean = &mean[head * head_dim..][..head_dim];
                x.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
            }
            if let Some((_, scales)) = &self.scales {
                x.iter_mut().for_each(|x| *x /= scales[head]);
            }
            if let Some(size) = self.rotation {
                rotate::hadamard(x, size);
            }
        }
    }

    /// Back from it.
    fn after(&self, head: usize, x: &mut [f32], head_dim: usize) {
        for x in x.chunks_exact_mut(head_dim) {
            if let Some(size) = self.rotation {
                rotate::hadamard(x, size);
            }
            if let Some((_, scales)) = &self.scales {
                x.iter_mut().for_each(|x| *x *= scales[head]);
            }
            if let Some(mean) = &self.mean {
                let mean = &mean[head * head_dim..][..head_dim];
                x.iter_mut().zip(mean).for_each(|(x, mean)| *x += mean);
            }
        }
    }

    /// Replaces a group of tokens of one head, (group, D), by what a cache gives back.
    pub(super) fn round_trip(&self, head: usize, x: &mut [f32], clamped: &Clamped) {
        let head_dim = x.len() / self.codec.group();
        self.before(head, x, head_dim);
        if let Some(count) = self.codec.clamped(x) {
            clamped.count(count);
        }
        self.codec.round_trip(x);
        self.after(head, x, head_dim);
    }

    /// Encodes a group of tokens of one head, (group, D), which is left in the codec's basis.
    pub(super) fn encode(&self, head: usize, x: &mut [f32], bytes: &mut [u8]) {
        self.before(head, x, x.len() / self.codec.group());
        self.codec.encode(x, bytes);
    }

    /// Decodes what [`encode`](Stored::encode) wrote.
    pub(super) fn decode(&self, head: usize, bytes: &[u8], x: &mut [f32]) {
        self.codec.decode(bytes, x);
        self.after(head, x, x.len() / self.codec.group());
    }
}

/// `q4_0·H256`, with what is calibrated and what stays exact.
impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.codec.name())?;
        if let Some(size) = self.rotation {
            write!(f, "·H{size}")?;
        }
        if self.mean.is_some() {
            f.write_str(":center")?;
        }
        if let Some((scale, _)) = &self.scales {
            write!(f, ":{}", scale.name())?;
        }
        match self.exact.tail {
            Tail::Newest(0) => {}
            Tail::Newest(tail) => write!(f, ":tail={tail}")?,
            Tail::Chunk(size) => write!(f, ":chunk={size}")?,
        }
        match self.exact.sink {
            0 => Ok(()),
            sink => write!(f, ":sink={sink}"),
        }
    }
}

/// `q4_0·H256/q4_0·H64`; where layers differ, each way once, joined by ` + `, with the layers where the
/// scheme tells them apart.
impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ways: Vec<(String, Vec<usize>)> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let Some(layer) = layer else { continue };
            let way = format!("{}/{}", layer.k, layer.v);
            match ways.iter_mut().find(|(known, _)| *known == way) {
                Some((_, layers)) => layers.push(index),
                None => ways.push((way, vec![index])),
            }
        }
        let named = self.by_layer && ways.len() > 1;
        let way = |(way, layers): (String, Vec<usize>)| match named {
            true => format!("{way} in {}", spans(&layers)),
            false => way,
        };
        f.write_str(&ways.into_iter().map(way).collect::<Vec<_>>().join(" + "))
    }
}

/// `0-2,7`
fn spans(indices: &[usize]) -> String {
    let mut spans: Vec<Range<usize>> = Vec::new();
    for &index in indices {
        match spans.last_mut() {
            Some(span) if span.end == index => span.end += 1,
            _ => spans.push(index..index + 1),
        }
    }
    let span = |span: &Range<usize>| match span.len() {
        1 => span.start.to_string(),
        _ => format!("{}-{}", span.start, span.end - 1),
    };
    spans.iter().map(span).collect::<Vec<_>>().join(",")
}
