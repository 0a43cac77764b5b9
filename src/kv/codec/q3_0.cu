// q3_0, as in q3_0.rs: d = m/-4, where m is the element of largest magnitude with its sign; a code q from 0 to
// 7 reads as (q - 4)·half(d).

struct Codec : Blocks<32> {
    static __device__ __forceinline__ void round_trip(float (&x)[32]) {
        const float d = extreme(x) / -4.0f, id = inverse(d), stored = in_half(d);
        map(x, [=](float v) {
            const int code = to_u8(v * id + 4.5f);
            return ((float)(code < 7 ? code : 7) - 4.0f) * stored;
        });
    }
};
