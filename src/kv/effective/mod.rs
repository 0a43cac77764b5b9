//! A scheme carried out for one model: what reports call the *effective scheme*.

mod clauses;
mod composed;
mod error;
mod names;
mod side;

pub(crate) use clauses::{remarks_on_missing_layers, spans};
pub use error::UnfitError;
pub use names::codec_names;
pub(super) use side::Held;
pub use side::SideScheme;

use super::calibration::Calibration;
use super::codec::{self, Exactness};
use super::layout::LayerKv;
use super::rotate;
use super::scheme::{Pair, Scheme};
use crate::compute::round_trip::Counters;
use crate::compute::Device;
use clauses::clause_by_layer;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// What a scheme does in each layer of a model.
#[derive(Clone)]
pub struct Effective {
    /// One entry for each layer, `None` if the layer owns no cache.
    layers: Arc<[Option<LayerScheme>]>,
    /// Whether the scheme has clauses for some layers.
    has_clauses: bool,
    /// Every cache of this scheme counts here.
    clamped: Arc<Counters>,
}

/// How a layer's cache is stored.
#[derive(Clone)]
pub(super) struct LayerScheme {
    pub kv: LayerKv,
    pub k: SideScheme,
    pub v: SideScheme,
    /// How queries are rounded. `None` if they are left as they are, which is the rule.
    pub queries: Option<SideScheme>,
}

impl Effective {
    /// What `scheme` is for a model whose layers keep what `layout` says.
    ///
    /// # Errors
    /// If a codec's blocks do not divide a head, if the scheme names layers that the model does not have, if
    /// no layer carries out a part of the scheme, or if the calibration is missing or another model's.
    pub fn new(
        scheme: &Scheme,
        layout: &[Option<LayerKv>],
        calibration: Option<&Calibration>,
    ) -> Result<Self, UnfitError> {
        let clauses = clause_by_layer(scheme, layout)?;
        let layers = layout.iter().zip(&clauses).enumerate().map(|(index, (kv, clause))| {
            let Some(kv) = kv else { return Ok(None) };
            let pair = clause.map_or(&scheme.default, |clause| &scheme.layers[clause].1);
            LayerScheme::new(index, *kv, pair, calibration).map(Some)
        });
        Ok(Effective {
            layers: layers.collect::<Result<_, _>>()?,
            has_clauses: !scheme.layers.is_empty(),
            clamped: Arc::default(),
        })
    }

    /// The deliberately bad scheme of the control lane.
    pub(crate) fn bad(layout: &[Option<LayerKv>]) -> Self {
        let bad = SideScheme::plain(codec::BAD, None);
        let layer =
            |kv: &LayerKv| LayerScheme { kv: *kv, k: bad.clone(), v: bad.clone(), queries: None };
        let layers = layout.iter().map(|kv| kv.as_ref().map(layer)).collect();
        Effective { layers, has_clauses: false, clamped: Arc::default() }
    }

    /// The same scheme with queries rounded to what llama.cpp's CPU attention multiplies K with.
    pub(crate) fn with_rounded_queries(self) -> Self {
        let layers = self.layers.iter().cloned();
        let layers = layers.map(|layer| layer.map(LayerScheme::with_rounded_queries)).collect();
        Effective { layers, ..self }
    }

    /// How a layer is stored.
    pub(super) fn layer(&self, index: usize) -> &LayerScheme {
        self.layers[index].as_ref().expect("the specification says which layers own a cache")
    }

    /// Counts the scales that stand at a limit of their format.
    pub(crate) fn clamped(&self) -> &Counters {
        &self.clamped
    }

    /// The share of the scales written so far that stand at a limit of their format. `None` if no codec of
    /// the scheme has such a limit.
    pub fn clamped_share(&self) -> Option<f64> {
        self.clamped.share()
    }

    /// The same scheme, which counts its clamped scales anew.
    pub(super) fn counted_anew(self) -> Self {
        Effective { clamped: Arc::default(), ..self }
    }

    /// Whether each token is encoded by itself and read as it was encoded, so that what the cache gives back of it
    /// never changes.
    pub fn encodes_tokens_alone(&self) -> bool {
        let mut sides = self.owners().flat_map(|layer| [&layer.k, &layer.v]);
        sides.all(|side| side.codec.group() == 1 && !side.keeps_exact())
    }

    /// The codecs that a device leaves to the host, in some layer at least.
    pub(crate) fn codecs_on_host(&self, device: &Device) -> BTreeSet<&str> {
        let sides = self.owners().flat_map(|layer| {
            [&layer.k, &layer.v]
                .map(|side| (side.codec, side.codec.kernel_takes(layer.kv.head_dim)))
        });
        let on_host = sides.filter(|(codec, is_taken)| {
            !device.has_kernel(codec.kernel_name(), codec.kernel(), *is_taken)
        });
        on_host.map(|(codec, _)| codec.name()).collect()
    }

    fn owners(&self) -> impl Iterator<Item = &LayerScheme> {
        self.layers.iter().flatten()
    }

    /// Storage cost of what the codecs encode, of K and of V: the mean over all elements of a token.
    pub fn bits_per_element(&self) -> [f64; 2] {
        let elements: usize = self.owners().map(|layer| layer.kv.width()).sum();
        let (bytes, tokens) = self.encoded_bytes();
        bytes.map(|bytes| (8 * bytes) as f64 / (elements * tokens).max(1) as f64)
    }

    /// How many bytes some encoded tokens take, of K and of V, and how many tokens these are: the fewest
    /// that are whole groups of every codec.
    ///
    /// Bytes are counted as integers. Adding up shares that were divided one by one gave 15.999999999999998
    /// bits for half precision, and no comparison is possible with that.
    fn encoded_bytes(&self) -> ([usize; 2], usize) {
        let groups = self.owners().flat_map(|layer| [layer.k.codec, layer.v.codec]);
        let tokens = groups.fold(1, |tokens, codec| least_common_multiple(tokens, codec.group()));
        let bytes = self.sum_over_layers(|kv, side| {
            tokens / side.codec.group() * kv.heads * side.codec.encoded_bytes(kv.head_dim)
        });
        (bytes, tokens)
    }

    /// Storage cost at a context of `tokens` tokens, of K and of V: bits per element that is kept, exact
    /// tails and sinks included.
    pub fn bits_at(&self, tokens: usize) -> [f64; 2] {
        let kept = |kv: &LayerKv| kv.width() * kv.kept_tokens(tokens);
        let elements: usize = self.owners().map(|layer| kept(&layer.kv)).sum();
        self.side_bytes_at(tokens).map(|bytes| (8 * bytes) as f64 / elements.max(1) as f64)
    }

    /// Bytes by which an encoded token makes the cache longer. Windows, which let old tokens go, are not
    /// considered.
    pub fn bytes_per_token(&self) -> f64 {
        let (bytes, tokens) = self.encoded_bytes();
        bytes.iter().sum::<usize>() as f64 / tokens as f64
    }

    /// Bytes of the cache of one sequence of `tokens` tokens. Recurrent states are not counted.
    pub fn bytes_at(&self, tokens: usize) -> usize {
        self.side_bytes_at(tokens).iter().sum()
    }

    fn side_bytes_at(&self, tokens: usize) -> [usize; 2] {
        self.sum_over_layers(|kv, side| side.held(kv, tokens).bytes(kv, side))
    }

    /// How much of what the queries at the positions `scored` read is charged to the scheme, for K and for
    /// V: of all pairs of such a query and a key that it sees, over layers and heads, the share whose key is
    /// not read in half precision.
    pub fn charged_share(&self, scored: Range<usize>) -> [f64; 2] {
        let seen = |kv: &LayerKv, p: usize| kv.window.map_or(p + 1, |w| w.min(p + 1));
        let pairs = |kv: &LayerKv| scored.clone().map(|p| kv.heads * seen(kv, p)).sum::<usize>();
        let all: usize = self.owners().map(|layer| pairs(&layer.kv)).sum();
        let charged = |kv: &LayerKv, side: &SideScheme| {
            if side.codec.exactness() == Exactness::Half {
                return 0;
            }
            let keys = |p: usize| {
                let lowest = (p + 1 - seen(kv, p)).max(side.exact.sink);
                side.exact.first(p).min(p + 1).saturating_sub(lowest)
            };
            scored.clone().map(|p| kv.heads * keys(p)).sum::<usize>()
        };
        self.sum_over_layers(charged).map(|pairs| pairs as f64 / all as f64)
    }

    /// Adds up a number over layers, for K and for V.
    fn sum_over_layers<N: std::iter::Sum>(
        &self,
        number: impl Fn(&LayerKv, &SideScheme) -> N,
    ) -> [N; 2] {
        [
            self.owners().map(|layer| number(&layer.kv, &layer.k)).sum(),
            self.owners().map(|layer| number(&layer.kv, &layer.v)).sum(),
        ]
    }

    /// Names and versions of the codecs that are not part of this crate.
    pub fn foreign_codecs(&self) -> Vec<String> {
        let sides = self.owners().flat_map(|layer| [layer.k.codec, layer.v.codec]);
        let foreign = sides.filter(|codec| !codec.version().is_empty());
        let mut names: Vec<_> = foreign.map(|c| format!("{} {}", c.name(), c.version())).collect();
        names.sort();
        names.dedup();
        names
    }
}

impl LayerScheme {
    fn new(
        index: usize,
        kv: LayerKv,
        pair: &Pair,
        calibration: Option<&Calibration>,
    ) -> Result<Self, UnfitError> {
        let v = pair.v.for_values();
        let [k_ranges, v_ranges] = match calibration {
            Some(calibration) if pair.k.is_calibrated() || v.is_calibrated() => {
                let ranges = calibration.ranges_of(index, &kv);
                ranges.ok_or(UnfitError::OtherModel { layer: index })?.each_ref().map(Some)
            }
            _ => [None, None],
        };
        let [k_stored, v_stored] = [0, 1].map(|side| kv.stored_scales.map(|scales| scales[side]));
        Ok(LayerScheme {
            kv,
            k: SideScheme::new(&pair.k, &kv, rotate::k_size, k_ranges, k_stored)?,
            v: SideScheme::new(&v, &kv, rotate::v_size, v_ranges, v_stored)?,
            queries: None,
        })
    }

    /// Rounds queries as llama.cpp's CPU attention does.
    ///
    /// If K is stored in a ggml block format, queries are rounded to q8_0 in K's rotated basis. If K is a
    /// float format, they are rounded to that format, unless K and V are both f16 or both f32. For formats
    /// that llama.cpp does not have, queries stay as they are.
    fn with_rounded_queries(self) -> Self {
        let (k, v) = (self.k.codec, self.v.codec);
        let are_alike = !k.exactness().is_lossy() && k.name() == v.name();
        let format = if k.is_rotated() {
            Some(codec::Q8_0)
        } else if k.exactness().is_unquantized() && !are_alike {
            Some(k)
        } else {
            None
        };
        let queries = format.map(|codec| SideScheme::plain(codec, self.k.rotation));
        LayerScheme { queries, ..self }
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor * b
}

/// Writes `q4_0·H256/q4_0·H64`: K first. If layers differ, each way of storing them is written once, joined
/// by ` + `. If the scheme has clauses for some layers, each way also names its layers.
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
        let names_layers = self.has_clauses && ways.len() > 1;
        let way = |(way, layers): (String, Vec<usize>)| {
            if names_layers {
                format!("{way} in {}", spans(&layers))
            } else {
                way
            }
        };
        f.write_str(&ways.into_iter().map(way).collect::<Vec<_>>().join(" + "))
    }
}
