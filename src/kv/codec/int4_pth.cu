// int4_pth, as in int4_pth.rs: y = H·D·x over a block of a head; s = max((max y - min y)/15, 1e-6), z = round(-min y/s), and
// the code is round(y·(1/s) + z), all within 0 to 15. It reads as D·H·((code - z)·s)/block, where the low four bits of s are
// cleared, because they hold z.

constexpr unsigned ZERO_POINT = 15u;

/// The signs of D: bit i of word l is set if element 32·l + i changes its sign.
__device__ const unsigned SIGNS[16] = {
    0x9a8ca6f2u, 0x7f7fca4eu, 0x59bbc293u, 0x9480abc7u, 0xb55b747eu, 0x54503bbeu, 0xcdf467b7u, 0x05dfbc5fu,
    0xb291e3ccu, 0x57563834u, 0xe46ae225u, 0x67fc4ca6u, 0xcfc78691u, 0x32d9dff1u, 0x365fdb89u, 0x75625346u,
};

struct Codec : Pieces {
    /// The power of two that holds the head, from 16 to 512.
    static __device__ __forceinline__ int width(int head_dim) {
        int width = 16;
        while (width < head_dim && width < 512) {
            width *= 2;
        }
        return width;
    }

    static __device__ __forceinline__ void round_trip(float (&x)[32], const Piece& piece) {
        const unsigned signs = SIGNS[piece.index];
        change_signs(x, signs);
        hadamard(x, piece.width, 1.0f);
        const Range all = piece.range(x);
        const float s = fmaxf((all.high - all.low) / 15.0f, 1e-6f), inverse = 1.0f / s;
        const float z = clamp(roundf(-all.low / s), 0.0f, 15.0f);
        const float stored = from_bits(to_bits(s) & ~ZERO_POINT), stored_z = (float)to_u8(z);
        map(x, [=](float v) {
            const int code = to_u8(clamp(roundf(v * inverse + z), 0.0f, 15.0f));
            return ((float)code - stored_z) * stored;
        });
        hadamard(x, piece.width, 1.0f);
        change_signs(x, signs);
        // the same as dividing, since it is a power of two
        const float share = 1.0f / (float)piece.width;
        map(x, [=](float v) { return v * share; });
    }
};
