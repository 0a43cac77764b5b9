// q8_0, as in q8_0.rs: d = max|x|/127; a code q is the integer nearest to x/d, ties away from zero, and reads as q·half(d).

struct Codec : Blocks<32> {
    static __device__ __forceinline__ void round_trip(float (&x)[32]) {
        const float d = largest(x) / 127.0f, id = inverse(d), stored = in_half(d);
        map(x, [=](float v) { return (float)to_i8(roundf(v * id)) * stored; });
    }
};
