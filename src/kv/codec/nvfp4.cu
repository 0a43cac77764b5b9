// nvfp4, as in nvfp4.rs: the scale is E4M3(max|x|/6), and a code reads as E2M1(x/scale)·scale. With a scale of 0 the block
// reads as zeros.

struct Codec : Blocks<16> {
    static __device__ __forceinline__ void round_trip(float (&x)[16]) {
        const float scale = E4M3::decode(E4M3::encode(largest(x) / 6.0f));
        map(x, [=](float v) {
            const float quotient = scale == 0.0f ? 0.0f : v / scale;
            const float magnitude = E2M1::decode(E2M1::encode(quotient));
            return (to_bits(quotient) >> 31 ? -magnitude : magnitude) * scale;
        });
    }
};
