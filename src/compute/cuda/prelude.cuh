// What the device texts of codecs are written with.
//
// A text is the device's twin of a codec: it replaces numbers by decode(encode(x)) and must give the same bits as
// the loops in Rust, for every finite input. It is compiled without contraction (--fmad=false), with subnormal
// numbers and with correctly rounded division and roots. So `a * b + c` rounds twice, as it does in Rust, and a
// text only has to keep the order of operations. Where Rust says `mul_add`, a text says `fmaf`.
//
// A text stands in a namespace of its own and defines a type `Codec` in one of three forms:
//
//   struct Codec : Blocks<32> {                      // one thread encodes a block of 32 consecutive elements
//       static __device__ void round_trip(float (&x)[32]);
//   };
//   struct Codec : Blocks<1, 32> {                   // the same, for one channel of a group of 32 tokens
//       static __device__ void round_trip(float (&x)[32]);
//   };
//   struct Codec : Pieces {                          // neighbouring lanes of a warp encode a piece of a head
//       static __device__ int width(int head_dim);   // how many elements a piece has, 1024 at most
//       static __device__ void round_trip(float (&x)[32], const Piece& piece);
//   };
//   struct Codec : Tiles<128> {                      // a thread block encodes a head of a group of 128 tokens
//       static __device__ void round_trip(float* x, int stride, int head_dim, unsigned variant,
//                                         unsigned long long* clamped);
//   };
//
// In `Blocks` the number of elements is a power of two, or the block lies along tokens. A block of more than 32
// elements works in one thread, but slowly: its place is `Pieces`. In `Pieces` a head is cut into pieces, the last
// of which may be shorter. Zeros fill it up.

// A thread block has this many threads, and each of them holds 32 numbers in registers. A text that needs shared
// memory declares it for every warp of the block.
constexpr int WARPS = 4;  // for the launch
constexpr int THREADS = 32 * WARPS;
constexpr int OWN = 32;  // for the launch

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr float LARGEST_FLOAT = 3.4028235e38f;

__device__ __forceinline__ int lane_of_warp() { return threadIdx.x % 32; }

// ---------------------------------------------------------------------------------------------------- conversions

__device__ __forceinline__ unsigned to_bits(float v) { return __float_as_uint(v); }

__device__ __forceinline__ float from_bits(unsigned bits) { return __uint_as_float(bits); }

__device__ __forceinline__ bool is_finite(float v) { return fabsf(v) <= LARGEST_FLOAT; }

/// 2^exponent, for exponents of normal numbers.
__device__ __forceinline__ float power_of_two(int exponent) { return from_bits((unsigned)(exponent + 127) << 23); }

/// Rust's `v as u8`, as an int: truncates, saturates, and makes 0 of a NaN.
__device__ __forceinline__ int to_u8(float v) { return (int)fminf(fmaxf(v, 0.0f), 255.0f); }

/// Rust's `v as i8`, as an int: truncates, saturates, and makes 0 of a NaN.
__device__ __forceinline__ int to_i8(float v) {
    return v == v ? (int)fminf(fmaxf(v, -128.0f), 127.0f) : 0;
}

/// Rust's `clamp`, which keeps NaN.
__device__ __forceinline__ float clamp(float v, float low, float high) {
    return v < low ? low : v > high ? high : v;
}

/// The nearest number of half precision, ties to even. It is infinite from 65520 on.
__device__ __forceinline__ float in_half(float v) {
#ifdef __CUDA_ARCH__
    unsigned short half;
    float rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(v));
    asm("cvt.f32.f16 %0, %1;" : "=f"(rounded) : "h"(half));
    return rounded;
#else
    const unsigned sign = to_bits(v) & 0x80000000u, magnitude = to_bits(v) & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return v;
    }
    if (magnitude >= 0x477ff000u) {
        return from_bits(sign | 0x7f800000u);
    }
    if (magnitude >= 0x38800000u) {
        return from_bits(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u)) & ~0x1fffu));
    }
    // below 2^-14 half precision has steps of 2^-24
    return from_bits(sign | to_bits(rintf(from_bits(magnitude) * 16777216.0f) * 5.9604644775390625e-8f));
#endif
}

/// The nearest bfloat16, ties to even.
__device__ __forceinline__ float in_bf16(float v) {
    const unsigned bits = to_bits(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return from_bits((bits | 0x00400000u) & 0xffff0000u);
    }
    return from_bits((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

/// A float of eight or of four bits as OCP defines it, without its sign bit. `LOWEST` is the exponent of the smallest
/// normal number.
template <int MANTISSA, int LOWEST, int LARGEST_CODE, int LARGEST> struct SmallFloat {
    /// The code of |x|, rounded to nearest even. Numbers that are too large become the largest finite one.
    static __device__ __forceinline__ int encode(float x) {
        x = fminf(fabsf(x), (float)LARGEST);
        const int own = (int)(to_bits(x) >> 23) - 127;
        const int exponent = own > LOWEST ? own : LOWEST;
        // if rounding up reaches the next power of two, the sum carries into the exponent
        const int steps = (int)rintf(x * power_of_two(MANTISSA - exponent));
        return ((exponent - LOWEST) << MANTISSA) + steps;
    }

    /// The value of a code. Codes above that of the largest number are NaN.
    static __device__ __forceinline__ float decode(int code) {
        if (code > LARGEST_CODE) {
            return from_bits(0x7fc00000u);
        }
        // these are the fields of an f32 whose exponent is too small by a constant
        return from_bits((unsigned)code << (23 - MANTISSA)) * power_of_two(126 + LOWEST);
    }

    /// decode(encode(x)) with the sign of x. A NaN stays one.
    static __device__ __forceinline__ float round_trip(float x) {
        const float magnitude = x == x ? decode(encode(x)) : x;
        return to_bits(x) >> 31 ? -magnitude : magnitude;
    }
};

using E4M3 = SmallFloat<3, -6, 0x7e, 448>;
using E5M2 = SmallFloat<2, -14, 0x7b, 57344>;
using E2M1 = SmallFloat<1, 0, 7, 6>;

// ------------------------------------------------------------------------------------------- numbers of one thread

/// Replaces each number by f of it.
template <int N, class F> __device__ __forceinline__ void map(float (&x)[N], F f) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = f(x[i]);
    }
}

/// The number with the largest magnitude, with its sign. If several have it, the first one counts.
template <int N> __device__ __forceinline__ float extreme(const float (&x)[N]) {
    float extreme = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
    }
    return extreme;
}

/// The largest magnitude.
template <int N> __device__ __forceinline__ float largest(const float (&x)[N]) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        largest = fmaxf(largest, fabsf(x[i]));
    }
    return largest;
}

/// The smallest and the largest of some numbers.
struct Range {
    float low = LARGEST_FLOAT;
    float high = -LARGEST_FLOAT;

    __device__ __forceinline__ void take(float v) {
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
};

template <int N> __device__ __forceinline__ Range range(const float (&x)[N]) {
    Range range;
#pragma unroll
    for (int i = 0; i < N; i++) {
        range.take(x[i]);
    }
    return range;
}

/// 1/d, or 0 if d is 0.
__device__ __forceinline__ float inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

/// The scale d for which `levels`·d is nearest to `x`, with errors weighted by x². `otherwise` if all levels or all
/// elements are zero.
template <int N>
__device__ __forceinline__ float refitted(const float (&x)[N], const float (&levels)[N], float otherwise) {
    float num = 0.0f, den = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float w = x[i] * x[i];
        num += w * levels[i] * x[i];
        den += w * levels[i] * levels[i];
    }
    return den > 0.0f ? num / den : otherwise;
}

/// Changes the sign of number i if bit i is set.
__device__ __forceinline__ void change_signs(float (&x)[OWN], unsigned signs) {
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        x[i] = from_bits(to_bits(x[i]) ^ (signs >> i & 1u) << 31);
    }
}

// ---------------------------------------------------------------------------------------- numbers of several lanes

/// Multiplies each block of `size` numbers by `factor` and by the Hadamard matrix of ±1 in natural order.
///
/// Lane l of a warp holds numbers 32·l to 32·l+31. All 32 lanes take part. `size` is a power of two, 1024 at most.
/// As in ggml, numbers are scaled first. The stages follow each other from distance 1 up; within a stage the order
/// does not matter.
__device__ __forceinline__ void hadamard(float (&x)[OWN], int size, float factor) {
    map(x, [=](float v) { return v * factor; });
#pragma unroll
    for (int half = 1; half < OWN; half *= 2) {
        if (half < size) {
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                if ((i & half) == 0) {
                    const float a = x[i], b = x[i + half];
                    x[i] = a + b;
                    x[i + half] = a - b;
                }
            }
        }
    }
    for (int mask = 1; mask * OWN < size; mask *= 2) {
        // the upper one of two lanes subtracts its number; a product with ±1 is exact, so this rounds once
        const float sign = lane_of_warp() & mask ? -1.0f : 1.0f;
        map(x, [=](float v) { return fmaf(v, sign, __shfl_xor_sync(ALL_LANES, v, mask)); });
    }
}

/// The factor that makes the Hadamard matrix orthonormal.
__device__ __forceinline__ float orthonormal(int size) { return 1.0f / sqrtf((float)size); }

/// A piece of a head, of which each of some neighbouring lanes holds 32 numbers. All lanes of a warp must call its
/// functions together.
struct Piece {
    /// How many lanes hold it: a power of two.
    int lanes;
    /// Which of them this lane is.
    int index;
    /// How many elements a whole piece has. What a lane holds beyond them is zero.
    int width;

    /// The largest magnitude.
    __device__ __forceinline__ float largest(const float (&x)[OWN]) const {
        float own = ::largest(x);
        for (int mask = 1; mask < lanes; mask *= 2) {
            own = fmaxf(own, __shfl_xor_sync(ALL_LANES, own, mask));
        }
        return own;
    }

    /// The smallest and the largest element. Which zero it is, if both are there, is not defined.
    __device__ __forceinline__ Range range(const float (&x)[OWN]) const {
        Range own;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            if (index * OWN + i < width) {
                own.take(x[i]);
            }
        }
        for (int mask = 1; mask < lanes; mask *= 2) {
            const float low = __shfl_xor_sync(ALL_LANES, own.low, mask);
            const float high = __shfl_xor_sync(ALL_LANES, own.high, mask);
            own.low = low < own.low ? low : own.low;
            own.high = high > own.high ? high : own.high;
        }
        return own;
    }

    /// a[0]·b[0] + a[1]·b[1] + …, added one after the other, as Rust's `sum` does it from -0 on.
    __device__ __forceinline__ float product(const float (&a)[OWN], const float (&b)[OWN]) const {
        const int first = lane_of_warp() - index;
        float sum = -0.0f;
        for (int turn = 0; turn < lanes; turn++) {
            // each lane continues the sum, but only that of the lane whose turn it is goes on
            float own = sum;
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                own += a[i] * b[i];
            }
            sum = __shfl_sync(ALL_LANES, own, first + turn);
        }
        return sum;
    }
};

// ------------------------------------------------------------------------------------------------ forms of a codec

constexpr int BLOCKS = 0, PIECES = 1, TILES = 2;

/// One thread encodes a block of `ELEMENTS` channels of each of `TOKENS` tokens, token after token.
template <int ELEMENTS, int TOKENS = 1> struct Blocks {
    static constexpr int FORM = BLOCKS, BLOCK = ELEMENTS, GROUP = TOKENS;
    static __device__ __forceinline__ int width(int) { return ELEMENTS > OWN ? ELEMENTS : OWN; }
};

/// Neighbouring lanes encode a piece of a head.
struct Pieces {
    static constexpr int FORM = PIECES, BLOCK = 0, GROUP = 1;
};

/// A thread block encodes a head of `TOKENS` tokens, which stands in shared memory.
template <int TOKENS> struct Tiles {
    static constexpr int FORM = TILES, BLOCK = 0, GROUP = TOKENS;
};
