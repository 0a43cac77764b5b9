//! How one side of a layer, its K or its V, is stored.

use super::error::UnfitError;
use crate::compute::round_trip::{Counters, Mirrored, OnCard};
use crate::kv::calibration::Ranges;
use crate::kv::codec::{self, Codec, Exactness};
use crate::kv::exact::{Exact, Tail};
use crate::kv::hadamard::hadamard;
use crate::kv::layout::LayerKv;
use crate::kv::scheme::{may_center, Scale, Side};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// How one side of a layer is stored: the codec, what really happens before it, and what stays exact.
#[derive(Clone)]
pub struct SideScheme {
    pub(in crate::kv) codec: &'static dyn Codec,
    /// Size of the Hadamard rotation, if there is one.
    pub(super) rotation: Option<usize>,
    pub(in crate::kv) exact: Exact,
    /// (H_kv, D): is subtracted before the codec and added to what is read.
    mean: Option<Mirrored>,
    /// (H_kv): numbers are divided by it before the codec and multiplied with it when they are read.
    scales: Option<(Scale, Mirrored)>,
    /// What the codec never sees. `None` in every scheme that a text can name.
    spared: Option<Spared>,
}

/// Channels that stay in half precision, whatever the codec does to the others.
#[derive(Clone)]
struct Spared {
    /// For each head.
    channels: Arc<[Vec<usize>]>,
}

impl Spared {
    /// Takes the channels out of some tokens of a head, (n, D). The codec then finds the head's mean there, or zero
    /// if no mean is subtracted, so that they have no influence on its scales.
    fn take(&self, head: usize, x: &mut [f32], head_dim: usize, mean: Option<&[f32]>) -> Vec<f32> {
        let mut taken = Vec::new();
        for token in x.chunks_exact_mut(head_dim) {
            for &channel in &self.channels[head] {
                taken.push(token[channel]);
                token[channel] = mean.map_or(0.0, |mean| mean[head * head_dim + channel]);
            }
        }
        codec::F16.round_trip(&mut taken);
        taken
    }

    /// Puts them back.
    fn put(&self, head: usize, x: &mut [f32], head_dim: usize, taken: &[f32]) {
        let channels = &self.channels[head];
        let tokens = x.chunks_exact_mut(head_dim).zip(taken.chunks_exact(channels.len().max(1)));
        for (token, taken) in tokens {
            channels.iter().zip(taken).for_each(|(&channel, &x)| token[channel] = x);
        }
    }
}

/// What a cache holds of one side of one layer of a sequence.
pub(in crate::kv) struct Held {
    /// The codec's groups that are encoded and that later queries still see.
    pub(in crate::kv) groups: Range<usize>,
    /// How many exact tokens the sink has.
    sink: usize,
    /// The exact tokens of the tail.
    pub(in crate::kv) tail: Range<usize>,
}

impl Held {
    pub(super) fn bytes(&self, kv: &LayerKv, side: &SideScheme) -> usize {
        let exact = self.sink + self.tail.len();
        self.groups.len() * kv.heads * side.codec.encoded_bytes(kv.head_dim)
            + exact * kv.width() * size_of::<half::f16>()
    }
}

impl SideScheme {
    /// A codec without calibration, tail and sink.
    pub(in crate::kv) fn plain(codec: &'static dyn Codec, rotation: Option<usize>) -> Self {
        SideScheme { codec, rotation, exact: Exact::NEVER, mean: None, scales: None, spared: None }
    }

    /// The same with a mean (H_kv, D) and with scales (H_kv), for tests.
    #[cfg(test)]
    pub(in crate::kv) fn calibrated(self, mean: Option<&[f32]>, scales: Option<&[f32]>) -> Self {
        let mirrored = |x: &[f32]| Mirrored::from(std::sync::Arc::from(x));
        let scales = scales.map(|scales| (Scale::Head, mirrored(scales)));
        SideScheme { mean: mean.map(mirrored), scales, ..self }
    }

    /// Half precision, which is what "exact" means.
    pub(in crate::kv) fn half() -> Self {
        SideScheme::plain(codec::F16, None)
    }

    /// What `side` of a scheme is for a layer of this shape. `rotation_size` is llama.cpp's rule for K or
    /// for V; `ranges` are the layer's, if there is a calibration; `stored` is the scale that the checkpoint has.
    pub(super) fn new(
        side: &Side,
        kv: &LayerKv,
        rotation_size: fn(&dyn Codec, usize) -> Option<usize>,
        ranges: Option<&Ranges>,
        stored: Option<f32>,
    ) -> Result<Self, UnfitError> {
        let (codec, head_dim) = (side.codec, kv.head_dim);
        let block = codec.block(head_dim);
        if !head_dim.is_multiple_of(block) {
            return Err(UnfitError::BlockSize { codec: codec.name().into(), block, head_dim });
        }
        let rotation = if side.may_rotate { rotation_size(codec, head_dim) } else { None };
        let needed = |option| ranges.ok_or(UnfitError::NotCalibrated { option });
        if side.center && kv.absolute_scores {
            return Err(UnfitError::Capped);
        }
        let mean =
            if side.center { Some(Mirrored::from(needed("center")?.mean.clone())) } else { None };
        let scales = match (side.scale, codec.largest()) {
            (Some(Scale::Checkpoint), _) => {
                let stored = stored.ok_or(UnfitError::NotStored)?;
                Some((Scale::Checkpoint, Mirrored::from(Arc::from(vec![stored; kv.heads]))))
            }
            (Some(scale), Some(largest)) => {
                let ranges = needed(scale.name())?;
                // in a layer with one head both kinds of scale are the same and get the same name
                let scale = if kv.heads == 1 { Scale::Tensor } else { scale };
                let by_head = scale == Scale::Head;
                Some((scale, ranges.scales(by_head, largest, mean.as_deref(), kv).into()))
            }
            _ => None,
        };
        let exact = side.exact().within(kv.window);
        Ok(SideScheme { codec, rotation, exact, mean, scales, spared: None })
    }

    /// The same, except that these channels of each head stay in half precision. No engine stores a cache like this, and
    /// no cache but the one for measuring can: it is for experiments about what does the harm.
    pub(super) fn sparing(self, channels: Arc<[Vec<usize>]>) -> Self {
        SideScheme { spared: Some(Spared { channels }), ..self }
    }

    /// The same with a mean (H_kv, D) that is subtracted first. `None` if that changes nothing: if the codec is exact, or
    /// fits the range of each channel, or if a mean is subtracted already.
    pub(super) fn centred(self, mean: Arc<[f32]>) -> Option<Self> {
        let has_effect = self.mean.is_none() && may_center(self.codec);
        has_effect.then(|| SideScheme { mean: Some(Mirrored::from(mean)), ..self })
    }

    /// The same behind a Hadamard rotation of this size, or without one.
    pub(super) fn rotated_by(self, rotation: Option<usize>) -> Self {
        SideScheme { rotation, ..self }
    }

    /// Whether something is rotated before the codec.
    pub(crate) fn is_rotated(&self) -> bool {
        self.rotation.is_some()
    }

    /// Whether numbers lose something that half precision would keep.
    pub(crate) fn is_lossy(&self) -> bool {
        self.codec.exactness().is_lossy()
    }

    /// How many of some tokens are encoded in whole groups.
    pub(crate) fn encoded_of(&self, tokens: usize) -> usize {
        tokens / self.codec.group() * self.codec.group()
    }

    /// Whether every number comes back with all its bits.
    pub(in crate::kv) fn keeps_f32(&self) -> bool {
        self.codec.exactness() == Exactness::Exact
    }

    /// Whether some queries read some keys exactly.
    pub(in crate::kv) fn keeps_exact(&self) -> bool {
        self.exact != Exact::NEVER
    }

    /// How many tokens have been encoded once a sequence has `tokens` tokens.
    pub(in crate::kv) fn encoded_by(&self, tokens: usize) -> usize {
        tokens.checked_sub(1).map_or(0, |newest| self.exact.first(newest).min(tokens))
    }

    /// What a cache holds once a sequence has `tokens` tokens.
    pub(in crate::kv) fn held(&self, kv: &LayerKv, tokens: usize) -> Held {
        let group = self.codec.group();
        let seen = tokens - kv.kept_tokens(tokens);
        let (first, sink) = (self.encoded_by(tokens), self.exact.sink.min(tokens));
        let groups = seen.max(sink) / group..first.div_ceil(group);
        // a group of which only a part is seen is still encoded as a whole
        let tail = first.max(seen / group * group).max(sink)..tokens;
        Held {
            groups: if first > seen.max(sink) { groups } else { 0..0 },
            sink,
            tail: if self.keeps_exact() { tail } else { tokens..tokens },
        }
    }

    /// Takes some tokens of one head, (n, D), into the basis and the range that the codec sees.
    fn enter_codec_basis(&self, head: usize, x: &mut [f32], head_dim: usize) {
        for x in x.chunks_exact_mut(head_dim) {
            if let Some(mean) = &self.mean {
                let mean = &mean[head * head_dim..][..head_dim];
                x.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
            }
            if let Some((_, scales)) = &self.scales {
                x.iter_mut().for_each(|x| *x /= scales[head]);
            }
            if let Some(size) = self.rotation {
                hadamard(x, size);
            }
        }
    }

    /// Takes the tokens back out of the codec's basis and range.
    fn leave_codec_basis(&self, head: usize, x: &mut [f32], head_dim: usize) {
        for x in x.chunks_exact_mut(head_dim) {
            if let Some(size) = self.rotation {
                hadamard(x, size);
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
    pub(in crate::kv) fn round_trip(&self, head: usize, x: &mut [f32], clamped: &Counters) {
        let head_dim = x.len() / self.codec.group();
        let spared = self.spared.as_ref().map(|spared| {
            let mean = self.mean.as_deref();
            (spared, spared.take(head, x, head_dim, mean))
        });
        self.enter_codec_basis(head, x, head_dim);
        if let Some(counts) = self.codec.clamped(x) {
            clamped.add(counts);
        }
        self.codec.round_trip(x);
        self.leave_codec_basis(head, x, head_dim);
        if let Some((spared, taken)) = spared {
            spared.put(head, x, head_dim, &taken);
        }
    }

    /// The same as plain values, for the kernel of a card.
    pub(in crate::kv) fn on_card<'a>(
        &'a self,
        head_dim: usize,
        clamped: &'a Counters,
    ) -> OnCard<'a> {
        let codec = self.codec;
        OnCard {
            codec: codec.kernel_name(),
            text: codec.kernel(),
            variant: codec.kernel_variant(),
            // no kernel spares channels
            is_taken: codec.kernel_takes(head_dim) && self.spared.is_none(),
            group: codec.group(),
            rotation: self.rotation,
            mean: self.mean.as_ref(),
            scales: self.scales.as_ref().map(|(_, scales)| scales),
            clamped: Some(clamped),
        }
    }

    /// Encodes a group of tokens of one head, (group, D). Afterwards `x` is in the codec's basis.
    pub(in crate::kv) fn encode(&self, head: usize, x: &mut [f32], bytes: &mut [u8]) {
        assert!(self.spared.is_none(), "no format has room for channels that are spared");
        self.enter_codec_basis(head, x, x.len() / self.codec.group());
        self.codec.encode(x, bytes);
    }

    /// Decodes what [`encode`](SideScheme::encode) wrote.
    pub(in crate::kv) fn decode(&self, head: usize, bytes: &[u8], x: &mut [f32]) {
        self.codec.decode(bytes, x);
        self.leave_codec_basis(head, x, x.len() / self.codec.group());
    }
}

/// Writes what really happens: `q4_0·H256` is q4_0 behind a rotation of size 256. What is calibrated and
/// what stays exact follows as in a scheme.
impl fmt::Display for SideScheme {
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
        if let Some(spared) = &self.spared {
            let channels: usize = spared.channels.iter().map(Vec::len).sum();
            write!(f, ":spared={channels}")?;
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
