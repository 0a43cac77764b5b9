//! What a codec is.
//!
//! `CONTRIBUTING.md` says how to add one. A codec that lives in another crate needs nothing of that:
//! `kvgate::Gate::codec` adds it to the catalogue.
#![deny(missing_docs)]

use crate::kv::exact::{Exact, Tail};

/// One way to store a head of K or V.
///
/// A head is cut into blocks of [`block`](Codec::block) consecutive elements. A block is stored in
/// [`block_bytes`](Codec::block_bytes) bytes. In most formats the block has a fixed size; in some it is the
/// whole head. A codec that encodes several tokens together says how many in [`group`](Codec::group); its
/// blocks then hold that many tokens each.
pub trait Codec: Send + Sync {
    /// The name in schemes and reports: ggml's name if ggml has the format, otherwise the name in the
    /// engine that has it, or a short form of that.
    fn name(&self) -> &str;

    /// The engines that accept this format and what their users type for it. Empty if no engine does.
    fn accepted_by(&self) -> &str;

    /// The version of a codec that is not part of this crate, empty for the crate's own codecs.
    ///
    /// It must go up whenever the codec gives other values: goldens that were made with another version
    /// are stale.
    fn version(&self) -> &str {
        ""
    }

    /// What storing a number in this format does to it. The default is right for every codec that saves
    /// memory against half precision, and a codec that is not part of this crate must not say anything else.
    fn exactness(&self) -> Exactness {
        Exactness::Quantized
    }

    /// Elements in a block, for heads of `head_dim` elements. The format fits a model only if this divides
    /// `head_dim`.
    fn block(&self, head_dim: usize) -> usize;

    /// Bytes of an encoded block, for heads of `head_dim` elements.
    fn block_bytes(&self, head_dim: usize) -> usize;

    /// Whether llama.cpp's Hadamard rotation is applied before this codec.
    ///
    /// llama.cpp rotates before all of ggml's block formats (`ggml_is_quantized`). It does not rotate before
    /// float formats. Formats of other engines, which rotate by themselves or not at all, say `false`, too.
    fn is_rotated(&self) -> bool;

    /// The largest number that a format without scales can hold. Only formats that answer here take the
    /// options `:tensor` and `:head`, whose calibrated scales bring the data into that range.
    fn largest(&self) -> Option<f32> {
        None
    }

    /// How many tokens are encoded together. Groups begin at multiples of this number in the sequence.
    fn group(&self) -> usize {
        1
    }

    /// The format of V, if it differs from that of K.
    fn for_values(&self) -> Option<&'static dyn Codec> {
        None
    }

    /// Which tokens stay exact if the scheme asks for this `tail` and this `sink`, or for none.
    ///
    /// The tail of a codec that encodes tokens in groups is a multiple of [`group`](Codec::group) and never
    /// zero, since a token can only be encoded once its group is complete.
    fn exact(&self, tail: Option<usize>, sink: Option<usize>) -> Exact {
        Exact { sink: sink.unwrap_or(0), tail: Tail::Newest(tail.unwrap_or(0)) }
    }

    /// Encodes one head of a group of tokens, (group, D), into [`encoded_bytes`](Codec::encoded_bytes)
    /// bytes.
    ///
    /// # Panics
    /// If `x` is not a whole number of blocks, or if `bytes` is not as long as these blocks need.
    fn encode(&self, x: &[f32], bytes: &mut [u8]);

    /// Decodes what [`encode`](Codec::encode) wrote. The lengths must fit in the same way.
    fn decode(&self, bytes: &[u8], x: &mut [f32]);

    /// Replaces `x` by decode(encode(x)), which is what attention reads from a cache in this format.
    fn round_trip(&self, x: &mut [f32]) {
        let mut bytes = vec![0; self.encoded_bytes(x.len() / self.group())];
        self.encode(x, &mut bytes);
        self.decode(&bytes, x);
    }

    /// The text of a device kernel, for a codec that is not part of this crate. Without one the codec is carried out on
    /// the host even if the model runs on a card, which takes longer.
    ///
    /// The text defines a type `Codec` in CUDA C++, which replaces numbers by decode(encode(x)) and must give the bits
    /// that [`encode`](Codec::encode) and [`decode`](Codec::decode) give. `src/compute/cuda/prelude.cuh` says which
    /// forms it may have and what it is written with, and `src/kv/codec/q4_0.cu` is a short example. It is compiled when
    /// the program runs, without contraction to fused multiply-adds. Use `include_str!` to keep it in a file.
    fn kernel(&self) -> Option<&'static str> {
        None
    }

    /// The name of the kernel of a codec of this crate, if another codec has the same name.
    fn kernel_name(&self) -> &str {
        self.name()
    }

    /// A number that the kernel is given, by which codecs with one kernel differ.
    fn kernel_variant(&self) -> u32 {
        0
    }

    /// Whether the kernel takes heads of `head_dim` elements. If it does not, the codec is carried out on the host in
    /// layers with such heads.
    fn kernel_takes(&self, _head_dim: usize) -> bool {
        true
    }

    /// Counts the scales of an encoded head that stand at a limit of their format: how many do, and how
    /// many scales there are. Such a scale does less than it should. `None` if the format has no such limit.
    fn clamped(&self, _x: &[f32]) -> Option<[u64; 2]> {
        None
    }

    /// Bytes of an encoded head of a group of tokens.
    fn encoded_bytes(&self, head_dim: usize) -> usize {
        head_dim / self.block(head_dim) * self.block_bytes(head_dim)
    }

    /// Storage cost in bits per element, scales included.
    fn bits_per_element(&self, head_dim: usize) -> f64 {
        (8 * self.encoded_bytes(head_dim)) as f64 / (head_dim * self.group()) as f64
    }
}

/// What storing a number in a format does to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exactness {
    /// Every f32 comes back as it was.
    Exact,
    /// Half precision, f16. Schemes are compared with it, exact tails and sinks are kept in it, and it is
    /// what "exact" means in reports.
    Half,
    /// A float format that models are served in and that is coarser than half precision, such as bf16.
    ShortFloat,
    /// A format that trades precision for memory.
    Quantized,
}

impl Exactness {
    /// Whether a number loses something that half precision would keep.
    pub fn is_lossy(self) -> bool {
        !matches!(self, Exactness::Exact | Exactness::Half)
    }

    /// Whether a model is called unquantized if its cache is stored in the format.
    pub fn is_unquantized(self) -> bool {
        self != Exactness::Quantized
    }
}
