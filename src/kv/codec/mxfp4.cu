// mxfp4, as in mxfp4.rs: the scale is 2^(e - 127), where e - 127 is the exponent of max|x| minus 2; a code reads as an E2M1
// number times the scale. Ties go to the smaller magnitude, and zero is always +0. A block that is not finite reads as
// NaN.

/// The E2M1 number nearest to v.
__device__ __forceinline__ float nearest(float v) {
    const float midpoints[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    const float values[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    float magnitude = values[0];
#pragma unroll
    for (int i = 0; i < 7; i++) {
        magnitude = fabsf(v) > midpoints[i] ? values[i + 1] : magnitude;
    }
    return v < 0.0f && magnitude > 0.0f ? -magnitude : magnitude;
}

struct Codec : Blocks<32> {
    static __device__ __forceinline__ void round_trip(float (&x)[32]) {
        const unsigned bits = to_bits(largest(x)), exponent = bits >> 23;
        const unsigned e = exponent == 255u ? 255u : exponent < 2u ? 0u : exponent - 2u;
        const float inverse = from_bits((e == 255u ? 0u : 254u - e) << 23);
        // 2^-127 is subnormal
        const float scale = e == 0u ? from_bits(1u << 22) : e == 255u ? from_bits(0x7fc00000u) : from_bits(e << 23);
        map(x, [=](float v) { return nearest(v * inverse) * scale; });
    }
};
