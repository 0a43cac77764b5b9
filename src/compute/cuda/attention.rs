//! The launch of causal attention.

use super::by_value::{by_value, size};
use super::constants::attention::{
    ARGUMENT_BYTES, KEYS_BEYOND_128, KEYS_TO_128, QUERIES_TO_128, QUERIES_TO_256, QUERIES_TO_512,
    THREADS,
};
use super::kernels::ATTENTION;
use super::launch::{empty, shared_memory, tensor, Call, Grid, Place};
use crate::compute::attention::{SoftmaxAttention, Versions};
use crate::compute::exact::{Exact, Tail};
use crate::compute::op::{Kernel, Op};
use candle_core::backend::BackendStorage;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Layout, Result, Shape, Storage, Tensor};

/// How heads of a size are computed: they are padded to `padded` elements, a block takes `queries` queries, and a tile
/// holds `keys` keys.
struct Tiling {
    padded: usize,
    queries: usize,
    keys: usize,
    /// The kernel for keys and values in one version, and the one for two.
    kernels: [&'static str; 2],
}

const TILINGS: [Tiling; 6] = [
    Tiling::new(64, QUERIES_TO_128, KEYS_TO_128, ["attention_64", "attention_64_versions"]),
    Tiling::new(96, QUERIES_TO_128, KEYS_TO_128, ["attention_96", "attention_96_versions"]),
    Tiling::new(128, QUERIES_TO_128, KEYS_TO_128, ["attention_128", "attention_128_versions"]),
    Tiling::new(192, QUERIES_TO_256, KEYS_BEYOND_128, ["attention_192", "attention_192_versions"]),
    Tiling::new(256, QUERIES_TO_256, KEYS_BEYOND_128, ["attention_256", "attention_256_versions"]),
    Tiling::new(512, QUERIES_TO_512, KEYS_BEYOND_128, ["attention_512", "attention_512_versions"]),
];

impl Tiling {
    const fn new(padded: usize, queries: usize, keys: usize, kernels: [&'static str; 2]) -> Self {
        Tiling { padded, queries, keys, kernels }
    }

    /// The first that heads of a size fit into, and that fits into so many bytes of shared memory. So heads of 128 are
    /// computed as if they had 192 elements on cards whose blocks have less than 113 KiB.
    fn of(head_dim: usize, shared: usize) -> Result<&'static Self> {
        let takes = |tiling: &&Self| head_dim.is_multiple_of(8) && head_dim <= tiling.padded;
        let mut all = TILINGS.iter().filter(takes);
        let Some(smallest) = all.clone().map(Self::shared).min() else {
            candle_core::bail!(
                "attention: cards have no kernel for heads of {head_dim} elements, only for multiples of 8 up to 512; \
                 use --device cpu"
            );
        };
        match all.find(|tiling| tiling.shared() <= shared) {
            Some(tiling) => Ok(tiling),
            None => candle_core::bail!(
                "attention: heads of {head_dim} elements need {smallest} bytes of shared memory for a block, and this \
                 card has {shared}; use --device cpu"
            ),
        }
    }

    /// Bytes of packed keys and values, for so many tiles of keys in so many versions of K and of V.
    fn scratch(&self, tiles: usize, [of_k, of_v]: [usize; 2]) -> usize {
        let keys = 4 * self.keys * (self.padded + 1);
        let values = 2 * self.keys * self.padded;
        tiles * (of_k * keys + of_v * values + 4)
    }

    /// Bytes of shared memory of a block.
    fn shared(&self) -> usize {
        4 * self.queries * (self.padded + 1) + 2 * self.keys * (3 * self.padded + 2)
    }
}

by_value! {
    /// `Attention` in `attention.cu`.
    struct Arguments<'a>: ARGUMENT_BYTES bytes {
        q: Place<'a, f32>,
        k: Place<'a, f32>,
        k_exact: Place<'a, f32>,
        v: Place<'a, f32>,
        v_exact: Place<'a, f32>,
        k_rules: Place<'a, u32>,
        v_rules: Place<'a, u32>,
        own_scores: Place<'a, f32>,
        out: Place<'a, f32>,
        scratch: Place<'a, u8>,
        sequences: i32,
        batch: i32,
        queries: i32,
        keys: i32,
        heads: i32,
        kv_heads: i32,
        head_dim: i32,
        window: i32,
        start: i32,
        scale: f32,
        softcap: f32,
    }
}

impl Kernel<1> for SoftmaxAttention {
    fn launch(
        &self,
        _: &'static str,
        [q]: [(&CudaStorage, &Layout); 1],
    ) -> Result<(CudaStorage, Shape)> {
        match &self.wide_values[..] {
            kinds if !kinds.contains(&true) => self.launch_with(&self.v, q),
            kinds if !kinds.contains(&false) => self.launch_in_two_parts(q),
            kinds => self.launch_by_lane(kinds.len(), q),
        }
    }
}

impl SoftmaxAttention {
    /// The kernel rounds values to f16, so their high parts and what is left of them pass it one after the other.
    fn launch_in_two_parts(&self, q: (&CudaStorage, &Layout)) -> Result<(CudaStorage, Shape)> {
        let attended = |(storage, shape)| tensor(storage, shape);
        let [high, low] = in_two_parts(&self.v)?;
        let high = attended(self.launch_with(&high, q)?);
        storage_of(&(high + attended(self.launch_with(&low, q)?))?)
    }

    /// Attention of one lane after the other.
    fn launch_by_lane(
        &self,
        lanes: usize,
        (q, layout): (&CudaStorage, &Layout),
    ) -> Result<(CudaStorage, Shape)> {
        let rows = layout.shape().dims()[0] / lanes;
        let attended = |lane: usize| {
            let layout = layout.narrow(0, lane * rows, rows)?;
            let (storage, shape) = self.of_lane(lane, lanes)?.launch(Self::NAME, [(q, &layout)])?;
            Ok(tensor(storage, shape))
        };
        storage_of(&Tensor::cat(&(0..lanes).map(attended).collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn of_lane(&self, lane: usize, lanes: usize) -> Result<Self> {
        let own = |x: &Tensor| x.narrow(0, lane * (x.dim(0)? / lanes), x.dim(0)? / lanes);
        let versions = |x: &Versions| -> Result<Versions> {
            let exact = match &x.exact {
                Some((exact, rules)) => Some((own(exact)?, vec![rules[lane]])),
                None => None,
            };
            Ok(Versions { stored: own(&x.stored)?, exact })
        };
        let wide_values = vec![self.wide_values[lane]];
        Ok(SoftmaxAttention {
            k: versions(&self.k)?,
            v: versions(&self.v)?,
            wide_values,
            ..self.clone()
        })
    }
}

impl SoftmaxAttention {
    /// Attention to some values instead of its own.
    fn launch_with(
        &self,
        v: &Versions,
        q: (&CudaStorage, &Layout),
    ) -> Result<(CudaStorage, Shape)> {
        let shape = Op::<1>::shape(self, [q.1.shape()])?;
        let device = q.0.device();
        let tiling = Tiling::of(self.head_dim, shared_memory(device)?)?;
        let sequences = shape.dims2()?.0 / self.queries;
        let versions = [&self.k, v].map(|x| if x.exact.is_some() { 2 } else { 1 });
        let tiles = sequences * self.kv_heads * self.keys.div_ceil(tiling.keys);
        let bytes = Shape::from(tiling.scratch(tiles, versions));
        let scratch = tensor(empty(device, &bytes, DType::U8)?, bytes);
        let out = empty(device, &shape, DType::F32)?;
        let rules = [&self.k, v].map(|x| rules(x, device));
        let [k_rules, v_rules] = rules;
        let (k_rules, v_rules) = (k_rules?, v_rules?);
        let lanes = [&self.k, v].iter().find_map(|x| Some(x.exact.as_ref()?.1.len()));
        let exact = |x: &'_ Versions| x.exact.as_ref().map(|(exact, _)| exact.clone());
        let (k_exact, v_exact) = (exact(&self.k), exact(v));
        let arguments = Arguments {
            q: Place::of_input(q)?,
            k: Place::of(&self.k.stored)?,
            k_exact: Place::of_optional(k_exact.as_ref())?,
            v: Place::of(&v.stored)?,
            v_exact: Place::of_optional(v_exact.as_ref())?,
            k_rules: Place::of_optional(k_rules.as_ref())?,
            v_rules: Place::of_optional(v_rules.as_ref())?,
            own_scores: Place::of_optional(self.own_scores.as_ref())?,
            out: Place::of_storage(&out)?,
            scratch: Place::of(&scratch)?,
            sequences: size(sequences)?,
            batch: size(sequences / lanes.unwrap_or(sequences))?,
            queries: size(self.queries)?,
            keys: size(self.keys)?,
            heads: size(self.heads)?,
            kv_heads: size(self.kv_heads)?,
            head_dim: size(self.head_dim)?,
            window: size(self.window.unwrap_or(0))?,
            start: size(self.start)?,
            scale: self.scale,
            softcap: self.softcap.unwrap_or(0.0),
        };
        let call = |kernel, blocks, shared| {
            let grid = Grid { blocks, threads: THREADS, shared };
            Call::new(device, &ATTENTION, kernel)?.value(&arguments).launch(grid)
        };
        call("attention_peaks", [tiles, 1, 1], 0)?;
        call("attention_pack", [tiles, 4, 1], 0)?;
        let kernel = tiling.kernels[usize::from(versions != [1, 1])];
        let blocks = [sequences * self.heads, self.queries.div_ceil(tiling.queries), 1];
        call(kernel, blocks, tiling.shared())?;
        Ok((out, shape))
    }
}

/// The storage of a tensor that a kernel has written.
fn storage_of(x: &Tensor) -> Result<(CudaStorage, Shape)> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
        _ => candle_core::bail!("attention left the card"),
    }
}

/// Values as the sum of their highest 11 bits, which f16 holds, and the rest (Dekker, 1971).
fn in_two_parts(v: &Versions) -> Result<[Versions; 2]> {
    const SPLITTER: f64 = 8193.0;
    let high = |x: &Tensor| -> Result<Tensor> {
        let scaled = (x * SPLITTER)?;
        &scaled - (&scaled - x)?
    };
    let part = |part: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<Versions> {
        let exact = match &v.exact {
            Some((exact, rules)) => Some((part(exact)?, rules.clone())),
            None => None,
        };
        Ok(Versions { stored: part(&v.stored)?, exact })
    };
    Ok([part(&high)?, part(&|x| x - high(x)?)?])
}

/// The rule of each lane as the kernel reads it: the sink, whether the tail begins at multiples of a number, and the
/// tail.
fn rules(versions: &Versions, device: &CudaDevice) -> Result<Option<Tensor>> {
    let Some((_, rules)) = &versions.exact else { return Ok(None) };
    let rule = |rule: &Exact| {
        let (is_chunked, tail) = match rule.tail {
            Tail::Newest(tail) => (0, tail),
            Tail::Chunk(tail) => (1, tail),
        };
        [rule.sink as u32, is_chunked, tail as u32]
    };
    let words: Vec<u32> = rules.iter().flat_map(rule).collect();
    Tensor::from_slice(&words, words.len(), &Device::Cuda(device.clone())).map(Some)
}
