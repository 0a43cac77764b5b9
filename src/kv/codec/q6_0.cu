// q6_0, as in q6_0.rs: codes are those of d = m/-32, where m is the element of largest magnitude with its sign; the
// stored scale is then refitted. A code q from 0 to 63 reads as (q - 32)·half(scale).

struct Codec : Blocks<32> {
    static __device__ __forceinline__ void round_trip(float (&x)[32]) {
        const float d = extreme(x) / -32.0f, id = inverse(d);
        float levels[32];
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const int code = to_u8(x[i] * id + 32.5f);
            levels[i] = (float)(code < 63 ? code : 63) - 32.0f;
        }
        const float stored = in_half(refitted(x, levels, d));
#pragma unroll
        for (int i = 0; i < 32; i++) {
            x[i] = levels[i] * stored;
        }
    }
};
