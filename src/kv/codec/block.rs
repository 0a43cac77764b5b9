//! Codecs whose blocks have a fixed size: they implement [`Block`], and a macro makes a codec of it.

use super::contract::Exactness;

/// A format of blocks of `N` elements in `BYTES` bytes. [`block_codec!`] derives
/// [`Codec`](super::contract::Codec) from it.
pub(super) trait Block<const N: usize, const BYTES: usize>: Send + Sync {
    const NAME: &'static str;
    const ACCEPTED_BY: &'static str;
    const EXACTNESS: Exactness = Exactness::Quantized;
    const ROTATED: bool = N > 1;
    const LARGEST: Option<f32> = None;
    fn encode_block(x: &[f32; N], bytes: &mut [u8; BYTES]);
    fn decode_block(bytes: &[u8; BYTES], x: &mut [f32; N]);
}

/// Implements [`Codec`](super::contract::Codec) for a [`Block`]: `block_codec!(Q8_0, 32, 34)`.
macro_rules! block_codec {
    ($ty:ty, $n:literal, $bytes:literal) => {
        impl crate::kv::codec::contract::Codec for $ty {
            fn name(&self) -> &str {
                <Self as crate::kv::codec::block::Block<$n, $bytes>>::NAME
            }
            fn accepted_by(&self) -> &str {
                <Self as crate::kv::codec::block::Block<$n, $bytes>>::ACCEPTED_BY
            }
            fn exactness(&self) -> crate::kv::codec::contract::Exactness {
                <Self as crate::kv::codec::block::Block<$n, $bytes>>::EXACTNESS
            }
            fn block(&self, _: usize) -> usize {
                $n
            }
            fn block_bytes(&self, _: usize) -> usize {
                $bytes
            }
            fn is_rotated(&self) -> bool {
                <Self as crate::kv::codec::block::Block<$n, $bytes>>::ROTATED
            }
            fn largest(&self) -> Option<f32> {
                <Self as crate::kv::codec::block::Block<$n, $bytes>>::LARGEST
            }
            fn encode(&self, x: &[f32], bytes: &mut [u8]) {
                let (x, rest) = x.as_chunks::<$n>();
                let (bytes, more) = bytes.as_chunks_mut::<$bytes>();
                assert!(rest.is_empty() && more.is_empty() && x.len() == bytes.len());
                for (x, bytes) in x.iter().zip(bytes) {
                    <Self as crate::kv::codec::block::Block<$n, $bytes>>::encode_block(x, bytes);
                }
            }
            fn decode(&self, bytes: &[u8], x: &mut [f32]) {
                let (bytes, rest) = bytes.as_chunks::<$bytes>();
                let (x, more) = x.as_chunks_mut::<$n>();
                assert!(rest.is_empty() && more.is_empty() && x.len() == bytes.len());
                for (bytes, x) in bytes.iter().zip(x) {
                    <Self as crate::kv::codec::block::Block<$n, $bytes>>::decode_block(bytes, x);
                }
            }
            fn round_trip(&self, x: &mut [f32]) {
                crate::compute::simd::vectorized!(fn blocks['a](x: &'a mut [[f32; $n]]) {
                    let mut bytes = [0u8; $bytes];
                    for x in x {
                        <$ty as crate::kv::codec::block::Block<$n, $bytes>>::encode_block(x, &mut bytes);
                        <$ty as crate::kv::codec::block::Block<$n, $bytes>>::decode_block(&bytes, x);
                    }
                });
                let (x, rest) = x.as_chunks_mut::<$n>();
                assert!(rest.is_empty());
                blocks(x)
            }
        }
    };
}
pub(super) use block_codec;
