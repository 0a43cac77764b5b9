// What the kernels over rows share: four neighbouring elements at a time, sums and maxima over a block, the RMS norm,
// the activations, and the rules by which numbers become halves and sums become numbers again.
//
// A block of 256 threads works on a row. Thread t owns the groups of four elements that begin at columns
// 4·(t + 256·k), whatever the width is, and nothing but the width decides how they are read. So a sum over a row is
// always taken in one order, and kernels that do several steps at once give the same bits as kernels that do one step
// each. For the same reason arithmetic that a compiler could contract to fused multiply-adds, here so and there
// otherwise, is written with the functions that it must not contract.
//
// Pointers to tensors are aligned to 16 bytes. A row then is too if its width is a multiple of 4, and in this case all
// accesses have 16 bytes (8 bytes for halves).

#pragma once

#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>

#include "warp.cuh"

namespace {

constexpr int THREADS = 256;  // for the launch
constexpr int WARPS = THREADS / WARP;

// How many neighbouring elements a thread works on.
constexpr int GROUP = 4;  // for the launch
// From one group of a thread to its next.
constexpr int STRIDE = GROUP * THREADS;

// The bits of infinity. Those of a number without its sign are above them for NaN, and below them if it is finite.
constexpr unsigned INFINITE = 0x7f800000u;

__host__ __device__ constexpr int padded(int width) { return (width + GROUP - 1) / GROUP * GROUP; }

// The block's dynamic shared memory.
__device__ float* shared_floats() {
    extern __shared__ float4 shared_groups[];
    return reinterpret_cast<float*>(shared_groups);
}

// ------------------------------------------------------------------------------------------------ groups of elements

// The group at a column of a row. Behind the row's end it holds zeros.
__device__ float4 load(const float* row, int column, int width, bool aligned) {
    if (aligned) {
        return *reinterpret_cast<const float4*>(row + column);
    }
    float4 v = make_float4(row[column], 0.0f, 0.0f, 0.0f);
    if (column + 1 < width) v.y = row[column + 1];
    if (column + 2 < width) v.z = row[column + 2];
    if (column + 3 < width) v.w = row[column + 3];
    return v;
}

__device__ float4 load(const float* row, int column, int width) {
    return load(row, column, width, width % GROUP == 0);
}

__device__ void store(float* row, int column, int width, float4 v, bool aligned) {
    if (aligned) {
        *reinterpret_cast<float4*>(row + column) = v;
        return;
    }
    row[column] = v.x;
    if (column + 1 < width) row[column + 1] = v.y;
    if (column + 2 < width) row[column + 2] = v.z;
    if (column + 3 < width) row[column + 3] = v.w;
}

__device__ void store(float* row, int column, int width, float4 v) {
    store(row, column, width, v, width % GROUP == 0);
}

// Calls f with a constant that says whether rows of this width are aligned. A loop that branches for each access could
// not have several of them in flight.
template <bool VALUE>
struct Aligned {
    static constexpr bool value = VALUE;
};

template <typename F>
__device__ void by_alignment(int width, F f) {
    if (width % GROUP == 0) {
        f(Aligned<true>{});
    } else {
        f(Aligned<false>{});
    }
}

// A group in memory that is padded to whole groups.
__device__ float4& group(float* row, int column) { return *reinterpret_cast<float4*>(row + column); }

template <typename F>
__device__ float4 each(float4 a, F f) {
    return make_float4(f(a.x), f(a.y), f(a.z), f(a.w));
}

template <typename F>
__device__ float4 each(float4 a, float4 b, F f) {
    return make_float4(f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w));
}

// Begins to copy the thread's groups of a row to shared memory, padded by zeros to whole groups. `await_rows` ends it,
// after which the thread may read its own groups. Other threads may read them after a barrier.
__device__ void begin_row(float* kept, const float* row, int width) {
    for (int column = GROUP * threadIdx.x; column < width; column += STRIDE) {
        if (width % GROUP == 0) {
            __pipeline_memcpy_async(kept + column, row + column, GROUP * sizeof(float));
            continue;
        }
        for (int i = column; i < column + GROUP; ++i) {
            if (i < width) {
                __pipeline_memcpy_async(kept + i, row + i, sizeof(float));
            } else {
                kept[i] = 0.0f;
            }
        }
    }
}

__device__ void await_rows() {
    __pipeline_commit();
    __pipeline_wait_prior(0);
}

// ----------------------------------------------------------------------------------------------- sums and maxima

// `warp_sum` whose first addition is not contracted either, where x is a product.
__device__ float rounded_warp_sum(float x) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        x = __fadd_rn(x, __shfl_xor_sync(WHOLE_WARP, x, mask));
    }
    return x;
}

// The sum over all threads of a block of 256. Every thread calls it and gets it. A barrier must stand between two uses
// of one `scratch`.
__device__ float block_sum(float x, float (&scratch)[WARPS]) {
    x = rounded_warp_sum(x);
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    float sum = scratch[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) {
        sum = __fadd_rn(sum, scratch[warp]);
    }
    return sum;
}

// The maximum over a block in two steps, with a barrier between them.
template <int COUNT>
__device__ void post_max(unsigned x, unsigned (&scratch)[COUNT]) {
    x = __reduce_max_sync(WHOLE_WARP, x);
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = x;
    }
}

template <int COUNT>
__device__ unsigned posted_max(const unsigned (&scratch)[COUNT]) {
    unsigned largest = scratch[0];
#pragma unroll
    for (int warp = 1; warp < COUNT; ++warp) {
        largest = max(largest, scratch[warp]);
    }
    return largest;
}

// The maximum over all threads of a block of 256, as `block_sum`.
__device__ unsigned block_max(unsigned x, unsigned (&scratch)[WARPS]) {
    post_max(x, scratch);
    __syncthreads();
    return posted_max(scratch);
}

// The bits of |x|. They grow with |x|, and NaN has the largest, so that no maximum of them loses it.
__device__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__device__ unsigned magnitude(float4 v) {
    return max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
}

// Reports what is not finite to a lane's flag, which keeps the lowest code.
__device__ void report(unsigned* flags, int lane, unsigned code, unsigned largest) {
    if (largest >= INFINITE) {
        atomicMin(flags + lane, code);
    }
}

// ------------------------------------------------------------------------------------------------------- the RMS norm

// Adds the squares of a group to a sum.
__device__ float add_squares(float sum, float4 v) {
    sum = fmaf(v.x, v.x, sum);
    sum = fmaf(v.y, v.y, sum);
    sum = fmaf(v.z, v.z, sum);
    return fmaf(v.w, v.w, sum);
}

// The sum of the squares of the thread's groups of a row.
__device__ float squares(float* kept, int width) {
    float sum = 0.0f;
    for (int column = GROUP * threadIdx.x; column < width; column += STRIDE) {
        sum = add_squares(sum, group(kept, column));
    }
    return sum;
}

// 1/√(mean x² + ε). It is NaN if the squares are too large, so that the row does not become zeros without a word.
__device__ float norm_scale(float squares, int width, float eps) {
    const float mean = __fdiv_rn(squares, static_cast<float>(width));
    const float scale = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, eps)));
    return mean < __uint_as_float(INFINITE) ? scale : __uint_as_float(0x7fc00000u);
}

__device__ float4 normed(float4 v, float scale, float4 weight) {
    return each(v, weight, [=](float x, float w) { return __fmul_rn(__fmul_rn(x, scale), w); });
}

// ---------------------------------------------------------------------------------------------------- the activations

// g·σ(z)·u. It is SiLU(g)·u for z = g, and GELU(g)·u in its tanh form for z = `gelu_argument(g)`.
__device__ float gated(float g, float u, float z) {
    return __fmul_rn(__fdiv_rn(g, __fadd_rn(1.0f, expf(-z))), u);
}

// (1 + tanh t)/2 = σ(2t) with t = √(2/π)(g + 0.044715 g³).
__device__ float gelu_argument(float g) {
    constexpr float TWICE_ROOT_2_OVER_PI = 1.595769f;
    const float cubic = __fmul_rn(__fmul_rn(__fmul_rn(0.044715f, g), g), g);
    return __fmul_rn(TWICE_ROOT_2_OVER_PI, __fadd_rn(g, cubic));
}

// The activations of gated MLPs.
constexpr int SILU = 0;  // for the launch
constexpr int GELU = 1;  // for the launch
constexpr int CLAMPED = 2;  // for the launch

constexpr float CLAMP_LIMIT = 7.0f;
constexpr float CLAMP_ALPHA = 1.702f;

// NaN stays NaN, unlike in fminf.
__device__ float at_most(float x, float limit) { return x > limit ? limit : x; }

// gpt-oss: the gate's σ has a factor, and up is raised by 1, after both were cut off.
__device__ float clamped(float gate, float up) {
    const float g = at_most(gate, CLAMP_LIMIT);
    const float u = -at_most(-at_most(up, CLAMP_LIMIT), CLAMP_LIMIT);
    return gated(g, __fadd_rn(u, 1.0f), __fmul_rn(CLAMP_ALPHA, g));
}

__device__ float4 activated(float4 gate, float4 up, int activation) {
    if (activation == CLAMPED) {
        return each(gate, up, clamped);
    }
    return each(gate, up, [=](float g, float u) { return gated(g, u, activation == GELU ? gelu_argument(g) : g); });
}

// x·σ(g)
__device__ float sigmoid_gated(float x, float g) { return __fdiv_rn(x, __fadd_rn(1.0f, expf(-g))); }

// --------------------------------------------------------------------------------------------- from numbers to halves

// The powers of two that scale a row to the range of halves, and back.
struct Power {
    float up;
    float down;  // NaN if the row is not finite
    bool finite;
};

// The powers for a row whose largest magnitude has these bits: it is scaled to 2^exponent or above, and below twice
// that. A row of zeros is not scaled. 2^126 is the largest power of two whose inverse is a normal number, and the
// scale does not go beyond it: the halves of rows with nothing above 2^(exponent - 126) are smaller than they could be.
__device__ Power power_for(unsigned largest, int exponent) {
    constexpr int BIAS = 127;
    constexpr int MANTISSA_BITS = 23;
    if (largest >= INFINITE) {
        return {0.0f, __uint_as_float(0x7fc00000u), false};
    }
    if (largest == 0) {
        return {1.0f, 1.0f, true};
    }
    const int shift = min(exponent + BIAS - static_cast<int>(largest >> MANTISSA_BITS), BIAS - 1);
    return {ldexpf(1.0f, shift), ldexpf(1.0f, -shift), true};
}

// What an activation is scaled to: halves end at 65504.
constexpr int ACTIVATION_EXPONENT = 14;

// The group times the power. A row that is not finite becomes zeros, and its `down` makes NaN of its products.
__device__ float4 scaled(float4 v, const Power& power) {
    return each(v, [&](float x) { return power.finite ? __fmul_rn(x, power.up) : 0.0f; });
}

struct alignas(8) Halves {
    __half2 low;
    __half2 high;
};

__device__ Halves to_halves(float4 v) { return {__floats2half2_rn(v.x, v.y), __floats2half2_rn(v.z, v.w)}; }

// What is left of numbers when their halves are taken off. The difference is exact.
__device__ float4 rest(float4 v, const Halves& halves) {
    const float2 low = __half22float2(halves.low);
    const float2 high = __half22float2(halves.high);
    return each(v, make_float4(low.x, low.y, high.x, high.y), [](float x, float h) { return __fsub_rn(x, h); });
}

__device__ void store(half* row, int column, int width, const Halves& v) {
    if (width % GROUP == 0) {
        *reinterpret_cast<Halves*>(row + column) = v;
        return;
    }
    row[column] = __low2half(v.low);
    if (column + 1 < width) row[column + 1] = __high2half(v.low);
    if (column + 2 < width) row[column + 2] = __low2half(v.high);
    if (column + 3 < width) row[column + 3] = __high2half(v.high);
}

__device__ float4 differences(float4 a, float4 b) {
    return each(a, b, [](float x, float y) { return __fsub_rn(x, y); });
}

// Where the halves of a lane's row stand in the operand of a product, blocks of (rows, width). If `whole`, these are
// the high halves of all rows of all lanes and then their low halves. Otherwise they are the high and the low halves of
// the baseline, and then the differences of each other lane, which have no low halves.
struct Terms {
    half* high;
    half* low;  // null for a difference
};

__device__ Terms terms_of(half* terms, int lane, int row, int lanes, int rows, int width, bool whole) {
    const auto block = [=](int index) { return terms + (static_cast<long long>(index) * rows + row) * width; };
    if (whole) {
        return {block(lane), block(lanes + lane)};
    }
    return lane == 0 ? Terms{block(0), block(1)} : Terms{block(lane + 1), nullptr};
}

__device__ void store_terms(const Terms& terms, int column, int width, float4 v, const Power& power) {
    v = scaled(v, power);
    const Halves high = to_halves(v);
    store(terms.high, column, width, high);
    if (terms.low != nullptr) {
        store(terms.low, column, width, to_halves(rest(v, high)));
    }
}

// ------------------------------------------------------------------------------------------- from products to numbers

// Takes the scales of rows, or of columns, off the accumulators of a product. Both are powers of two.
__device__ float4 unscaled(float4 v, float scale) {
    return each(v, [=](float x) { return __fmul_rn(x, scale); });
}

__device__ float4 unscaled(float4 v, float4 scales) {
    return each(v, scales, [](float x, float scale) { return __fmul_rn(x, scale); });
}

__device__ float4 plus(float4 a, float4 b) {
    return each(a, b, [](float x, float y) { return __fadd_rn(x, y); });
}

// The baseline's accumulators plus a difference's, both without the scales of their rows.
__device__ float4 with_difference(float4 baseline, float4 sums, float row_scale) {
    return plus(baseline, unscaled(sums, row_scale));
}

}  // namespace
