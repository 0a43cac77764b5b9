// codec int8_pth: PerTokenHead<Int8>
// codec fp8_pth: PerTokenHead<Float8>
//
// int8_pth and fp8_pth, as in pth.rs: the scale is s = max(max|x|/m, 1e-6) over a head, and a code reads as code(x·(1/s))·s.
// Behind this text stands which of them `Codec` is: `PerTokenHead<Int8>` or `PerTokenHead<Float8>`.

struct Int8 {
    static constexpr float LARGEST = 127.0f;

    static __device__ __forceinline__ float round_trip(float v) { return (float)to_i8(rintf(v)); }
};

struct Float8 {
    static constexpr float LARGEST = 448.0f;

    static __device__ __forceinline__ float round_trip(float v) { return E4M3::round_trip(v); }
};

template <class Byte> struct PerTokenHead : Pieces {
    static __device__ __forceinline__ int width(int head_dim) { return head_dim; }

    static __device__ __forceinline__ void round_trip(float (&x)[32], const Piece& piece) {
        const float s = fmaxf(piece.largest(x) / Byte::LARGEST, 1e-6f), inverse = 1.0f / s;
        map(x, [=](float v) { return Byte::round_trip(v * inverse) * s; });
    }
};
