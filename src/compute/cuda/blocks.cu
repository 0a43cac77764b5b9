// Dequantizes blocks of ggml's types: the twins of the loops in src/compute/blocks/, with the same bits. Each product and
// each sum is rounded by itself, in the reference's order.
//
// A type is a structure that says how many elements and bytes a block has, and what the number of an element is.
// Elements in half precision are blocks of one. The bytes of blocks have no alignment, so they are read one by one, most
// of them from the cache.

#include <cuda_fp16.h>

namespace {

using Bytes = const unsigned char*;

constexpr int THREADS = 256;

// How many neighbouring elements a thread computes, if blocks have as many.
constexpr int GROUP = 4;

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

struct F16 {
    static constexpr int ELEMENTS = 1, BYTES = 2;
    static __device__ float number(Bytes block, int) { return half_at(block); }
};

struct BF16 {
    static constexpr int ELEMENTS = 1, BYTES = 2;
    static __device__ float number(Bytes block, int) { return __uint_as_float(word(block) << 16); }
};

// ---------------------------------------------------------------------------------------------------- the first types

struct Q4_0 {
    static constexpr int ELEMENTS = 32, BYTES = 18;
    static __device__ float number(Bytes block, int i) { return scaled(half_at(block), nibble(block + 2, i) - 8); }
};

struct Q4_1 {
    static constexpr int ELEMENTS = 32, BYTES = 20;
    static __device__ float number(Bytes block, int i) {
        return raised(half_at(block), nibble(block + 4, i), half_at(block + 2));
    }
};

struct Q5_0 {
    static constexpr int ELEMENTS = 32, BYTES = 22;
    static __device__ float number(Bytes block, int i) {
        return scaled(half_at(block), (nibble(block + 6, i) | fifth(block + 2, i)) - 16);
    }
};

struct Q5_1 {
    static constexpr int ELEMENTS = 32, BYTES = 24;
    static __device__ float number(Bytes block, int i) {
        return raised(half_at(block), nibble(block + 8, i) | fifth(block + 4, i), half_at(block + 2));
    }
};

struct Q8_0 {
    static constexpr int ELEMENTS = 32, BYTES = 34;
    static __device__ float number(Bytes block, int i) { return scaled(half_at(block), signed_byte(block[2 + i])); }
};

// ------------------------------------------------------------------------------------------------------- the k-quants

// The two bits of element i of 256: 128 elements share 32 bytes, of which 32 elements each have the same bits.
__device__ int two_bits(Bytes codes, int i) { return codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; }

struct Q2_K {
    static constexpr int ELEMENTS = 256, BYTES = 84;
    static __device__ float number(Bytes block, int i) {
        const int scales = block[i / 16];
        const float d = scaled(half_at(block + 80), scales & 15);
        const float m = scaled(half_at(block + 82), scales >> 4);
        return lowered(d, two_bits(block + 16, i), m);
    }
};

struct Q3_K {
    static constexpr int ELEMENTS = 256, BYTES = 110;
    static __device__ float number(Bytes block, int i) {
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
    static __device__ float number(Bytes block, int i) { return of_six_bits(block, i, nibble_of_pair(block + 16, i)); }
};

struct Q5_K {
    static constexpr int ELEMENTS = 256, BYTES = 176;
    static __device__ float number(Bytes block, int i) {
        const int fifth = block[16 + i % 32] >> (i / 32) & 1;
        return of_six_bits(block, i, nibble_of_pair(block + 48, i) | fifth << 4);
    }
};

struct Q6_K {
    static constexpr int ELEMENTS = 256, BYTES = 210;
    static __device__ float number(Bytes block, int i) {
        const int low = block[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        const float d = scaled(half_at(block + 208), signed_byte(block[192 + i / 16]));
        return scaled(d, (low | two_bits(block + 128, i) << 4) - 32);
    }
};

// --------------------------------------------------------------------------------------------------------- the kernels

template <typename Type>
__device__ void dequantize(Bytes blocks, float* out, long long elements) {
    const long long thread = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    if constexpr (Type::ELEMENTS % GROUP == 0) {
        const long long start = thread * GROUP;
        if (start < elements) {
            const Bytes block = blocks + start / Type::ELEMENTS * Type::BYTES;
            const int i = static_cast<int>(start % Type::ELEMENTS);
            *reinterpret_cast<float4*>(out + start) =
                make_float4(Type::number(block, i), Type::number(block, i + 1), Type::number(block, i + 2),
                            Type::number(block, i + 3));
        }
    } else if (thread < elements) {
        out[thread] = Type::number(blocks + thread * Type::BYTES, 0);
    }
}

}  // namespace

// blocks: those of `elements` elements. out: (elements). The kernel of a type is named by it in small letters.
//
// Grid: ⌈elements/1024⌉, or ⌈elements/256⌉ for types with blocks of one element. Block: 256. Dynamic shared memory: none.
#define KERNEL(NAME, TYPE)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        NAME(const unsigned char* __restrict__ blocks, float* __restrict__ out, long long elements) {                \
        dequantize<TYPE>(blocks, out, elements);                                                                     \
    }

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
