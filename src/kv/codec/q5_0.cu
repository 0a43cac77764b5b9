// q5_0, as in q5_0.rs: d = m/-16, where m is the element of largest magnitude with its sign; a code q from 0 to
// 31 reads as (q - 16)·half(d).

struct Codec : Blocks<32> {
    static __device__ __forceinline__ void round_trip(float (&x)[32]) {
        const float d = extreme(x) / -16.0f, id = inverse(d), stored = in_half(d);
        map(x, [=](float v) {
            const int code = to_u8(v * id + 16.5f);
            return ((float)(code < 31 ? code : 31) - 16.0f) * stored;
        });
    }
};
