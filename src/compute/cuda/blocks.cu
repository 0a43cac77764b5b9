// Dequantizes blocks of ggml's types: the twins of the loops in src/compute/blocks/, with the same bits. Each product and
// each sum is rounded by itself, in the reference's order.
//
// A type is a structure that says how many elements and bytes a block has, and what the number of an element is. Elements
// of types without blocks are blocks of one. The bytes of blocks have no alignment, so they are read one by one, most of
// them from the cache. Types that look numbers up in a grid are given it, its rows one after the other.

#include <cuda_fp16.h>

namespace {

using Bytes = const unsigned char*;

constexpr int THREADS = 256;  // for the launch

// How many neighbouring elements a thread computes, if blocks have as many.
constexpr int GROUP = 4;  // for the launch

__device__ unsigned word(Bytes at) { return at[0] | at[1] << 8; }

__device__ unsigned long_word(Bytes at) { return word(at) | word(at + 2) << 16; }

__device__ float half_at(Bytes at) { return __half2float(__ushort_as_half(static_cast<unsigned short>(word(at)))); }

__device__ float real(int code) { return static_cast<float>(code); }

// The signed number that a byte is.
__device__ int signed_byte(unsigned char byte) { return static_cast<signed char>(byte); }

// code·d
__device__ float scaled(float d, int code) { return __fmul_rn(d, real(code)); }

// code·d + m
__device__ float raised(float d, int code, float m) { return __fadd_rn(scaled(d, code), m); }

// code·d - m
__device__ float lowered(float d, int code, float m) { return __fsub_rn(scaled(d, code), m); }

// The code of element i of 32 in 16 bytes: first the low halves, and then the high ones.
__device__ int nibble(Bytes codes, int i) { return codes[i % 16] >> (i / 16 * 4) & 15; }

// The fifth bit of element i, in its place.
__device__ int fifth(Bytes bits, int i) { return static_cast<int>(long_word(bits) >> i & 1) << 4; }

// ---------------------------------------------------------------------------------------------------- without blocks

struct F32 {
    static constexpr int ELEMENTS = 1, BYTES = 4;
    static __device__ float number(Bytes block, Bytes, int) { return __uint_as_float(long_word(block)); }
};

struct F16 {
    static constexpr int ELEMENTS = 1, BYTES = 2;
    static __device__ float number(Bytes block, Bytes, int) { return half_at(block); }
};

struct BF16 {
    static constexpr int ELEMENTS = 1, BYTES = 2;
    static __device__ float number(Bytes block, Bytes, int) { return __uint_as_float(word(block) << 16); }
};

// ---------------------------------------------------------------------------------------------------- the first types

struct Q4_0 {
    static constexpr int ELEMENTS = 32, BYTES = 18;
    static __device__ float number(Bytes block, Bytes, int i) { return scaled(half_at(block), nibble(block + 2, i) - 8); }
};

struct Q4_1 {
    static constexpr int ELEMENTS = 32, BYTES = 20;
    static __device__ float number(Bytes block, Bytes, int i) {
        return raised(half_at(block), nibble(block + 4, i), half_at(block + 2));
    }
};

struct Q5_0 {
    static constexpr int ELEMENTS = 32, BYTES = 22;
    static __device__ float number(Bytes block, Bytes, int i) {
        return scaled(half_at(block), (nibble(block + 6, i) | fifth(block + 2, i)) - 16);
    }
};

struct Q5_1 {
    static constexpr int ELEMENTS = 32, BYTES = 24;
    static __device__ float number(Bytes block, Bytes, int i) {
        return raised(half_at(block), nibble(block + 8, i) | fifth(block + 4, i), half_at(block + 2));
    }
};

struct Q8_0 {
    static constexpr int ELEMENTS = 32, BYTES = 34;
    static __device__ float number(Bytes block, Bytes, int i) { return scaled(half_at(block), signed_byte(block[2 + i])); }
};

// ------------------------------------------------------------------------------------------------------- the k-quants

// The two bits of element i of 256: 128 elements share 32 bytes, of which 32 elements each have the same bits.
__device__ int two_bits(Bytes codes, int i) { return codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; }

struct Q2_K {
    static constexpr int ELEMENTS = 256, BYTES = 84;
    static __device__ float number(Bytes block, Bytes, int i) {
        const int scales = block[i / 16];
        const float d = scaled(half_at(block + 80), scales & 15);
        const float m = scaled(half_at(block + 82), scales >> 4);
        return lowered(d, two_bits(block + 16, i), m);
    }
};

struct Q3_K {
    static constexpr int ELEMENTS = 256, BYTES = 110;
    static __device__ float number(Bytes block, Bytes, int i) {
        const int group = i / 16;
        const Bytes scales = block + 96;
        const int low = scales[group % 8] >> (group / 8 * 4) & 15;
        const int high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        const float d = scaled(half_at(block + 108), (low | high << 4) - 32);
        // 4 is taken off where the third bit is not set
        const int third = block[i % 32] >> (i / 32) & 1;
        return scaled(d, (two_bits(block + 32, i) | third << 2) - 4);
    }
};

// The scale and the least number of a group, of six bits each.
struct SixBits {
    int scale;
    int least;
};

__device__ SixBits six_bits(Bytes scales, int group) {
    if (group < 4) {
        return {scales[group] & 63, scales[group + 4] & 63};
    }
    const int low = scales[group + 4];
    return {(low & 15) | scales[group - 4] >> 6 << 4, low >> 4 | scales[group] >> 6 << 4};
}

// The code of element i of 256 in 128 bytes: 64 elements share 32 bytes.
__device__ int nibble_of_pair(Bytes codes, int i) { return codes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15; }

// A number of Q4_K or Q5_K with this code.
__device__ float of_six_bits(Bytes block, int i, int code) {
    const SixBits group = six_bits(block + 4, i / 32);
    return lowered(scaled(half_at(block), group.scale), code, scaled(half_at(block + 2), group.least));
}

struct Q4_K {
    static constexpr int ELEMENTS = 256, BYTES = 144;
    static __device__ float number(Bytes block, Bytes, int i) { return of_six_bits(block, i, nibble_of_pair(block + 16, i)); }
};

struct Q5_K {
    static constexpr int ELEMENTS = 256, BYTES = 176;
    static __device__ float number(Bytes block, Bytes, int i) {
        const int fifth = block[16 + i % 32] >> (i / 32) & 1;
        return of_six_bits(block, i, nibble_of_pair(block + 48, i) | fifth << 4);
    }
};

struct Q6_K {
    static constexpr int ELEMENTS = 256, BYTES = 210;
    static __device__ float number(Bytes block, Bytes, int i) {
        const int low = block[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        const float d = scaled(half_at(block + 208), signed_byte(block[192 + i / 16]));
        return scaled(d, (low | two_bits(block + 128, i) << 4) - 32);
    }
};

// -------------------------------------------------------------------------------------- the i-quants of 2 and 3 bits

// Whether number i of eight is negative, by the signs of seven: the eighth makes the count of negative ones even.
__device__ bool is_negative(unsigned seven, int i) { return (i < 7 ? seven >> i : __popc(seven & 127)) & 1; }

__device__ float with_sign(float x, bool negative) { return negative ? -x : x; }

// d·(1/2 + scale)·unit
__device__ float scale_and_half(float d, unsigned scale, float unit) {
    return __fmul_rn(__fmul_rn(d, __fadd_rn(0.5f, real(static_cast<int>(scale)))), unit);
}

struct IQ2_XXS {
    static constexpr int ELEMENTS = 256, BYTES = 66;
    static __device__ float number(Bytes block, Bytes grid, int i) {
        const Bytes part = block + 2 + i / 32 * 8;
        const unsigned rest = long_word(part + 4);
        const int row = part[i % 32 / 8];
        const float x = scaled(scale_and_half(half_at(block), rest >> 28, 0.25f), grid[row * 8 + i % 8]);
        return with_sign(x, is_negative(rest >> (i % 32 / 8 * 7), i % 8));
    }
};

// A scale of four bits for 16 numbers.
__device__ float quarter_scale(float d, Bytes scales, int i) {
    return scale_and_half(d, scales[i / 32] >> (i % 32 / 16 * 4) & 15, 0.25f);
}

struct IQ2_XS {
    static constexpr int ELEMENTS = 256, BYTES = 74;
    static __device__ float number(Bytes block, Bytes grid, int i) {
        const unsigned code = word(block + 2 + i / 8 * 2);
        const float x = scaled(quarter_scale(half_at(block), block + 66, i), grid[(code & 511) * 8 + i % 8]);
        return with_sign(x, is_negative(code >> 9, i % 8));
    }
};

struct IQ2_S {
    static constexpr int ELEMENTS = 256, BYTES = 82;
    static __device__ float number(Bytes block, Bytes grid, int i) {
        const int high = block[66 + i / 32] >> (i % 32 / 8 * 2) & 3;
        const int row = block[2 + i / 8] | high << 8;
        const float x = scaled(quarter_scale(half_at(block), block + 74, i), grid[row * 8 + i % 8]);
        return with_sign(x, block[34 + i / 8] >> (i % 8) & 1);
    }
};

struct IQ3_XXS {
    static constexpr int ELEMENTS = 256, BYTES = 98;
    static __device__ float number(Bytes block, Bytes grid, int i) {
        const unsigned rest = long_word(block + 66 + i / 32 * 4);
        const int row = block[2 + i / 4];
        const float x = scaled(scale_and_half(half_at(block), rest >> 28, 0.5f), grid[row * 4 + i % 4]);
        return with_sign(x, is_negative(rest >> (i % 32 / 8 * 7), i % 8));
    }
};

struct IQ3_S {
    static constexpr int ELEMENTS = 256, BYTES = 110;
    static __device__ float number(Bytes block, Bytes grid, int i) {
        const int high = block[66 + i / 32] >> (i % 32 / 4) & 1;
        const int row = block[2 + i / 4] | high << 8;
        const int scale = block[106 + i / 64] >> (i % 64 / 32 * 4) & 15;
        const float x = scaled(scaled(half_at(block), 1 + 2 * scale), grid[row * 4 + i % 4]);
        return with_sign(x, block[74 + i / 8] >> (i % 8) & 1);
    }
};

// --------------------------------------------------------------------------------------------- the i-quants of one bit

// A value of a grid, where it is one more than it is, shifted and scaled.
__device__ float shifted(float d, int value, bool lower) {
    return __fmul_rn(d, __fadd_rn(real(value), lower ? -1.125f : -0.875f));
}

struct IQ1_S {
    static constexpr int ELEMENTS = 256, BYTES = 50;
    static __device__ float number(Bytes block, Bytes grid, int i) {
        const unsigned rest = word(block + 34 + i / 32 * 2);
        const unsigned row = block[2 + i / 8] | (rest >> (i % 32 / 8 * 3) & 7) << 8;
        const float d = scaled(half_at(block), 2 * static_cast<int>(rest >> 12 & 7) + 1);
        return shifted(d, grid[row * 8 + i % 8], rest >> 15);
    }
};

struct IQ1_M {
    static constexpr int ELEMENTS = 256, BYTES = 56;
    static __device__ float number(Bytes block, Bytes grid, int i) {
        const Bytes scales = block + 48;
        // a quarter of the block's own scale stands in the high bits of each word
        const int own = scales[1] >> 4 | scales[3] >> 4 << 4 | scales[5] >> 4 << 8 | scales[7] >> 4 << 12;
        const float d = __half2float(__ushort_as_half(static_cast<unsigned short>(own)));
        const int scale = static_cast<int>(word(scales + i / 64 * 2) >> (i % 64 / 16 * 3) & 7);
        const int rest = block[32 + i / 16] >> (i % 16 / 8 * 4);
        const int row = block[i / 8] | (rest & 7) << 8;
        return shifted(scaled(d, 2 * scale + 1), grid[row * 8 + i % 8], rest >> 3 & 1);
    }
};

// ----------------------------------------------------------------------------------------------- types of few values

__constant__ signed char IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct IQ4_NL {
    static constexpr int ELEMENTS = 32, BYTES = 18;
    static __device__ float number(Bytes block, Bytes, int i) {
        return scaled(half_at(block), IQ4[nibble(block + 2, i)]);
    }
};

struct IQ4_XS {
    static constexpr int ELEMENTS = 256, BYTES = 136;
    static __device__ float number(Bytes block, Bytes, int i) {
        const int part = i / 32;
        const int low = block[4 + part / 2] >> (part % 2 * 4) & 15;
        const int high = static_cast<int>(word(block + 2) >> (part * 2) & 3);
        const float d = scaled(half_at(block), (low | high << 4) - 32);
        return scaled(d, IQ4[nibble(block + 8 + part * 16, i % 32)]);
    }
};

// The digit of a byte that has been multiplied with a power of 3.
__device__ int digit(Bytes bytes, int count, int i) {
    unsigned byte = bytes[i % count];
    for (int power = i / count; power > 0; --power) {
        byte = byte * 3 & 255;
    }
    return static_cast<int>(byte * 3 >> 8) - 1;
}

struct TQ1_0 {
    static constexpr int ELEMENTS = 256, BYTES = 54;
    static __device__ float number(Bytes block, Bytes, int i) {
        const int code = i < 160   ? digit(block, 32, i)
                         : i < 240 ? digit(block + 32, 16, i - 160)
                                   : digit(block + 48, 4, i - 240);
        return scaled(half_at(block + 52), code);
    }
};

struct TQ2_0 {
    static constexpr int ELEMENTS = 256, BYTES = 66;
    static __device__ float number(Bytes block, Bytes, int i) {
        return scaled(half_at(block + 64), two_bits(block, i) - 1);
    }
};

struct Q1_0 {
    static constexpr int ELEMENTS = 128, BYTES = 18;
    static __device__ float number(Bytes block, Bytes, int i) {
        return with_sign(half_at(block), (block[2 + i / 8] >> (i % 8) & 1) == 0);
    }
};

struct Q2_0 {
    static constexpr int ELEMENTS = 64, BYTES = 18;
    static __device__ float number(Bytes block, Bytes, int i) {
        return scaled(half_at(block), (block[2 + i / 4] >> (i % 4 * 2) & 3) - 1);
    }
};

// --------------------------------------------------------------------------------------------------------- microscaling

// Twice the numbers of E2M1. Scales are halved in return.
__constant__ signed char E2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct MXFP4 {
    static constexpr int ELEMENTS = 32, BYTES = 17;
    static __device__ float number(Bytes block, Bytes, int i) {
        const unsigned e = block[0];
        const float d = __uint_as_float(e < 2 ? 0x200000u << e : (e - 1) << 23);
        return scaled(d, E2M1[nibble(block + 1, i)]);
    }
};

struct NVFP4 {
    static constexpr int ELEMENTS = 64, BYTES = 36;
    static __device__ float number(Bytes block, Bytes, int i) {
        const int byte = block[4 + i / 16 * 8 + i % 8];
        return scaled(half_of_e4m3(block[i / 16]), E2M1[byte >> (i % 16 / 8 * 4) & 15]);
    }

    // Half of an E4M3 without its sign. NaN is 0.
    static __device__ float half_of_e4m3(unsigned bits) {
        const unsigned exponent = bits >> 3 & 15;
        const int mantissa = static_cast<int>(bits & 7);
        if (bits == 0x7f) {
            return 0.0f;
        }
        const float unit = __uint_as_float((max(exponent, 1u) + 127 - 11) << 23);
        return scaled(unit, exponent == 0 ? mantissa : 8 + mantissa);
    }
};

// --------------------------------------------------------------------------------------------------------- the kernels

template <typename Type>
__device__ void dequantize(Bytes blocks, Bytes grid, float* out, long long elements) {
    const long long thread = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    if constexpr (Type::ELEMENTS % GROUP == 0) {
        const long long start = thread * GROUP;
        if (start < elements) {
            const Bytes block = blocks + start / Type::ELEMENTS * Type::BYTES;
            const int i = static_cast<int>(start % Type::ELEMENTS);
            *reinterpret_cast<float4*>(out + start) =
                make_float4(Type::number(block, grid, i), Type::number(block, grid, i + 1),
                            Type::number(block, grid, i + 2), Type::number(block, grid, i + 3));
        }
    } else if (thread < elements) {
        out[thread] = Type::number(blocks + thread * Type::BYTES, grid, 0);
    }
}

}  // namespace

// blocks: those of `elements` elements. grid: the type's, or null if it has none. out: (elements). The kernel of a type is
// named by it in small letters.
//
// Grid: ⌈elements/1024⌉, or ⌈elements/256⌉ for types with blocks of one element. Block: 256. Dynamic shared memory: none.
#define KERNEL(NAME, TYPE)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
        NAME(const unsigned char* __restrict__ blocks, const unsigned char* __restrict__ grid, float* __restrict__ out, \
             long long elements) {                                                                                      \
        dequantize<TYPE>(blocks, grid, out, elements);                                                                  \
    }

KERNEL(f32, F32)
KERNEL(f16, F16)
KERNEL(bf16, BF16)
KERNEL(q4_0, Q4_0)
KERNEL(q4_1, Q4_1)
KERNEL(q5_0, Q5_0)
KERNEL(q5_1, Q5_1)
KERNEL(q8_0, Q8_0)
KERNEL(q2_k, Q2_K)
KERNEL(q3_k, Q3_K)
KERNEL(q4_k, Q4_K)
KERNEL(q5_k, Q5_K)
KERNEL(q6_k, Q6_K)
KERNEL(iq1_s, IQ1_S)
KERNEL(iq1_m, IQ1_M)
KERNEL(iq2_xxs, IQ2_XXS)
KERNEL(iq2_xs, IQ2_XS)
KERNEL(iq2_s, IQ2_S)
KERNEL(iq3_xxs, IQ3_XXS)
KERNEL(iq3_s, IQ3_S)
KERNEL(iq4_nl, IQ4_NL)
KERNEL(iq4_xs, IQ4_XS)
KERNEL(tq1_0, TQ1_0)
KERNEL(tq2_0, TQ2_0)
KERNEL(q1_0, Q1_0)
KERNEL(q2_0, Q2_0)
KERNEL(mxfp4, MXFP4)
KERNEL(nvfp4, NVFP4)
