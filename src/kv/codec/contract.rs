//! What a codec is.
//!
//! # How to add one
//!
//! 1. Write its file in this folder, with [`Codec`] or, for blocks of a fixed size, `Block` and the macro
//!    `block_codec!`. The file ends in `ALL`, the list of its variants. `q4_0.rs` is a short example.
//! 2. Declare the file in `mod.rs`: one line. Name its `ALL` in the list of `catalogue.rs`: one line.
//! 3. Write the format a second time in `scripts/oracle/formats.py`, unless gguf has it, name it in
//!    `codecs.py` beside it, and make `tests/fixtures/codecs.json` anew. `cargo test --test engine codecs::`
//!    fails for a codec that no independent implementation has been compared with.
//! 4. Add a row to the table of codecs in `docs/schemes.md`.
//!
//! A codec that lives in another crate needs none of this: `kvgate::Gate::codec` adds it to the catalogue.

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
    /// memory against half precision.
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

    /// The text of a device kernel for this format, if there is one.
    ///
    /// The text defines two device functions over one block: one encodes it, the other decodes it. They are
    /// compiled at run time without fused multiply-add and must give the bits that the CPU gives. The text
    /// stands in a file beside the codec's (`include_str!("q4_0.cu")`).
    ///
    /// Nothing reads it yet. The operation that replaces K and V by decode(encode(x)) on a device will; a
    /// codec without a kernel is then carried out on the host.
    fn kernel(&self) -> Option<&'static str> {
        None
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
