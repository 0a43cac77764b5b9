// q2_1, as in q2_1.rs: d = (max - min)/3; a code q from 0 to 3 reads as q·half(d) + half(min).

struct Codec : Blocks<32> {
    static __device__ __forceinline__ void round_trip(float (&x)[32]) {
        const Range all = range(x);
        const float d = (all.high - all.low) / 3.0f, id = inverse(d), stored = in_half(d), low = in_half(all.low);
        map(x, [=](float v) {
            const int code = to_u8((v - all.low) * id + 0.5f);
            return (float)(code < 3 ? code : 3) * stored + low;
        });
    }
};
