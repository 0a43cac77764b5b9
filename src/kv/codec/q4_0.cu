// q4_0, as in q4_0.rs: d = m/-8, where m is the element of largest magnitude with its sign; a code q from 0 to
// 15 reads as (q - 8)·half(d).

struct Codec : Blocks<32> {
    static __device__ __forceinline__ void round_trip(float (&x)[32]) {
        const float d = extreme(x) / -8.0f, id = inverse(d), stored = in_half(d);
        map(x, [=](float v) {
            const int code = to_u8(v * id + 8.5f);
            return ((float)(code < 15 ? code : 15) - 8.0f) * stored;
        });
    }
};
