// The codec of the control lane, as in sign.rs: negative numbers read as -1, others as 1.

struct Codec : Blocks<1> {
    static __device__ __forceinline__ void round_trip(float (&x)[1]) { x[0] = x[0] < 0.0f ? -1.0f : 1.0f; }
};
