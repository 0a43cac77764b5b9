// codec fp8_e4m3: Fp8<E4M3>
// codec fp8_e5m2: Fp8<E5M2>
//
// fp8_e4m3 and fp8_e5m2, as in fp8.rs: each number is rounded to the format, and beyond its largest number it saturates.
// Behind this text stands which of them `Codec` is: `Fp8<E4M3>` or `Fp8<E5M2>`.

template <class Format> struct Fp8 : Blocks<1> {
    static __device__ __forceinline__ void round_trip(float (&x)[1]) { x[0] = Format::round_trip(x[0]); }
};
