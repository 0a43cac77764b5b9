// iq4_nl, as in iq4_nl.rs: the element of largest magnitude maps to the codebook's -127 and the others to their nearest
// entry; then the scale is refitted. A block without a magnitude of 1e-15 reads as entry 0 times a scale of 0.

/// The codebook entry nearest to v. Half-way between two entries it is the upper one.
__device__ __forceinline__ float nearest(float v) {
    const float codebook[16] = {-127.0f, -104.0f, -83.0f, -65.0f, -49.0f, -35.0f, -22.0f, -10.0f,
                                1.0f,    13.0f,   25.0f,  38.0f,  53.0f,  69.0f,  89.0f,  113.0f};
    float entry = codebook[0];
#pragma unroll
    for (int i = 0; i < 15; i++) {
        entry = v >= 0.5f * (codebook[i] + codebook[i + 1]) ? codebook[i + 1] : entry;
    }
    return entry;
}

struct Codec : Blocks<32> {
    static __device__ __forceinline__ void round_trip(float (&x)[32]) {
        const float m = extreme(x);
        if (fabsf(m) < 1e-15f) {
            map(x, [](float) { return -127.0f * 0.0f; });
            return;
        }
        const float id = 1.0f / (m / -127.0f);
        float entries[32];
#pragma unroll
        for (int i = 0; i < 32; i++) {
            entries[i] = nearest(x[i] * id);
        }
        const float stored = in_half(refitted(x, entries, 0.0f));
#pragma unroll
        for (int i = 0; i < 32; i++) {
            x[i] = entries[i] * stored;
        }
    }
};
