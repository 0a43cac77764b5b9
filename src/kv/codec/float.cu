// codec f32: F32
// codec f16: F16
// codec bf16: Bf16
//
// f32, f16 and bf16, as in float.rs. Behind this text stands which of them `Codec` is.

struct F32 : Blocks<1> {
    static __device__ __forceinline__ void round_trip(float (&)[1]) {}
};

struct F16 : Blocks<1> {
    static __device__ __forceinline__ void round_trip(float (&x)[1]) { x[0] = in_half(x[0]); }
};

struct Bf16 : Blocks<1> {
    static __device__ __forceinline__ void round_trip(float (&x)[1]) { x[0] = in_bf16(x[0]); }
};
