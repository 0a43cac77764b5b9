//! `mlx8` and `mlx4`: MLX's affine quantization of a cache, which mlx-lm applies with `--kv-bits 8` and
//! `--kv-bits 4`, in its default groups of 64. A group takes 68 and 36 bytes for 64 elements (8.5 and 4.5
//! bits): codes, then scale and bias in half precision. Not rotated.
//!
//! Let lo = min x, hi = max(0, max x) and s = max((hi - lo)/(2^b - 1), 1e-7). Codes count from the edge e,
//! which is lo or hi, whichever has the larger magnitude; if e is hi, s is made negative. Zero is to be one of
//! the codes, so s becomes e/round(e/s) and the bias is e. If round(e/s) is 0, s stays and the bias is 0. The
//! code is round((x - bias)/s) within 0 to 2^b - 1, ties away from zero. In `mlx4` byte i holds code 2i in its
//! low nibble and 2i+1 in its high one. Codes read as `code·half(s) + half(bias)`.
//!
//! Source: MLX `affine_quantize` (mlx/backend/metal/kernels/quantized.h). It computes in f32 and stores scale
//! and bias in the model's type. Here that is f16; in a bf16 model they would be rounded more coarsely.

use super::contract::Codec;
use super::numbers::{get_half, put_half, range};

pub(super) static ALL: &[&dyn Codec] = &[&MLX8, &MLX4];

const GROUP: usize = 64;
const SMALLEST_SCALE: f32 = 1e-7;

/// The format with 8 bits or with 4.
pub(super) struct Mlx {
    name: &'static str,
    accepted_by: &'static str,
    bits: usize,
}

pub(super) static MLX8: Mlx =
    Mlx { name: "mlx8", accepted_by: "mlx-lm: --kv-bits 8 --kv-group-size 64", bits: 8 };
pub(super) static MLX4: Mlx =
    Mlx { name: "mlx4", accepted_by: "mlx-lm: --kv-bits 4 --kv-group-size 64", bits: 4 };

impl Codec for Mlx {
    fn name(&self) -> &str {
        self.name
    }

    fn accepted_by(&self) -> &str {
        self.accepted_by
    }

    fn block(&self, _: usize) -> usize {
        GROUP
    }

    fn block_bytes(&self, _: usize) -> usize {
        GROUP * self.bits / 8 + 4
    }

    fn is_rotated(&self) -> bool {
        false
    }

    fn encode(&self, x: &[f32], bytes: &mut [u8]) {
        let (groups, rest) = x.as_chunks::<GROUP>();
        assert!(rest.is_empty() && bytes.len() == self.encoded_bytes(x.len()));
        for (x, bytes) in groups.iter().zip(bytes.chunks_exact_mut(self.block_bytes(GROUP))) {
            let (s, bias) = self.affine(x);
            let codes = x.map(|v| ((v - bias) / s).round().clamp(0.0, self.last()) as u8);
            let (packed, affine) = bytes.split_at_mut(GROUP * self.bits / 8);
            match self.bits {
                8 => packed.copy_from_slice(&codes),
                _ => {
                    for (byte, q) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
                        *byte = q[0] | q[1] << 4;
                    }
                }
            }
            put_half(affine, 0, s);
            put_half(affine, 2, bias);
        }
    }

    fn decode(&self, bytes: &[u8], x: &mut [f32]) {
        let (groups, rest) = x.as_chunks_mut::<GROUP>();
        assert!(rest.is_empty() && bytes.len() == self.encoded_bytes(groups.len() * GROUP));
        for (bytes, x) in bytes.chunks_exact(self.block_bytes(GROUP)).zip(groups) {
            let (packed, affine) = bytes.split_at(GROUP * self.bits / 8);
            let (s, bias) = (get_half(affine, 0), get_half(affine, 2));
            let code = |i: usize| match self.bits {
                8 => packed[i],
                _ => packed[i / 2] >> (4 * (i % 2)) & 15,
            };
            *x = std::array::from_fn(|i| f32::from(code(i)) * s + bias);
        }
    }
}

impl Mlx {
    /// The largest code.
    fn last(&self) -> f32 {
        ((1 << self.bits) - 1) as f32
    }

    /// The scale and the bias of a group.
    fn affine(&self, x: &[f32; GROUP]) -> (f32, f32) {
        let (lo, hi) = range(x);
        let hi = hi.max(0.0);
        let s = ((hi - lo) / self.last()).max(SMALLEST_SCALE);
        let (s, edge) = if lo.abs() > hi.abs() { (s, lo) } else { (-s, hi) };
        match (edge / s).round() {
            0.0 => (s, 0.0),
            steps => (edge / steps, edge),
        }
    }
}
