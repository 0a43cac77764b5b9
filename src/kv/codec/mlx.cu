// codec mlx8: Mlx<8>
// codec mlx4: Mlx<4>
//
// mlx8 and mlx4, as in mlx.rs. Behind this text stands which of them `Codec` is: `Mlx<8>` or `Mlx<4>`.

template <int BITS> struct Mlx : Pieces {
    static constexpr int LAST = (1 << BITS) - 1;

    static __device__ __forceinline__ int width(int) { return 64; }

    static __device__ __forceinline__ void round_trip(float (&x)[32], const Piece& piece) {
        const Range all = piece.range(x);
        const float high = fmaxf(all.high, 0.0f);
        float s = fmaxf((high - all.low) / (float)LAST, 1e-7f), edge = all.low;
        if (!(fabsf(all.low) > fabsf(high))) {
            s = -s;
            edge = high;
        }
        // zero is one of the codes
        const float steps = roundf(edge / s);
        float bias = 0.0f;
        if (steps != 0.0f) {
            s = edge / steps;
            bias = edge;
        }
        const float stored = in_half(s), stored_bias = in_half(bias);
        map(x, [=](float v) {
            const int code = to_u8(clamp(roundf((v - bias) / s), 0.0f, (float)LAST));
            return (float)code * stored + stored_bias;
        });
    }
};
