// What products with weights in half precision read, and what they give.
//
// A product computes sums = terms·halvesᵀ, where `terms` are the halves of activations and `halves` those of weights.
// Both are scaled by powers of two, a row of activations by its own 2^s and a row of weights by its own 2^t:
//
//   `split`          Activations x, (lanes·rows, width). A row of the baseline, which is lane 0, is x·2^s = high + low
//                    in two halves, with s such that max|x·2^s| lies in [2^14, 2^15). The same row of another lane is
//                    (x - x₀)·2^s in one half, where x₀ is the baseline's row and s is the difference's own. So a
//                    lane is as exact as its difference is small, and is the baseline where it does not differ. If
//                    `whole` is not 0, every row of every lane is high + low. `scales` is 2^-s.
//   `split_weights`  Weights, (rows, width). A row is w·2^t in one half, with t such that max|w·2^t| lies in [1, 2).
//                    `scales` is 2^-t.
//   `finish`         Makes numbers of sums: y₀ = sums₀·2^-s₀·2^-t for the baseline, and
//                    y = (sums₀·2^-s₀ + sums·2^-s)·2^-t for another lane, or y = sums·2^-s·2^-t for every lane if
//                    `whole` is not 0.
//
// A row of zeros has the scale 1. s and t are at most 126, so that the scale back is a normal number; rows with nothing
// above 2^-112 (weights: 2^-126) are scaled to less than said above. A row with NaN or an infinity, or whose
// difference from the baseline is not finite, has halves of 0 and the scale NaN. So all its results are NaN, and it
// cannot touch other rows.

#include "common.cuh"

namespace {

// The columns of a row that a block keeps. It reads those behind them a second time, most of them from the cache.
constexpr int KEPT = 8192;

struct SplitScratch {
    float4 kept[KEPT / GROUP];
    unsigned scratch[WARPS];
};

// A row that is split as it is.
template <bool ALIGNED>
struct OwnRow {
    const float* x;
    int width;

    __device__ float4 at(int column) const { return load(x, column, width, ALIGNED); }
};

// A row of which the difference from the baseline's is split.
template <bool ALIGNED>
struct DifferentRow {
    const float* x;
    const float* baseline;
    int width;

    __device__ float4 at(int column) const {
        return differences(load(x, column, width, ALIGNED), load(baseline, column, width, ALIGNED));
    }
};

// Splits a row and gives the scale back.
template <typename Row>
__device__ float split_row(SplitScratch& shared, const Row& row, const Terms& terms, int width, int exponent) {
    unsigned largest = 0;
#pragma unroll 4
    for (int column = GROUP * threadIdx.x; column < width; column += STRIDE) {
        const float4 v = row.at(column);
        if (column < KEPT) {
            shared.kept[column / GROUP] = v;
        }
        largest = max(largest, magnitude(v));
    }
    const Power power = power_for(block_max(largest, shared.scratch), exponent);
    for (int column = GROUP * threadIdx.x; column < width; column += STRIDE) {
        const float4 v = column < KEPT ? shared.kept[column / GROUP] : row.at(column);
        store_terms(terms, column, width, v, power);
    }
    return power.down;
}

}  // namespace

// terms: (1 + lanes, rows, width), the high and low halves of the baseline and then a block for each other lane. If
// `whole` is not 0: (2·lanes, rows, width), all high halves and then all low halves. scales: (lanes·rows).
//
// Block i works on row i/lanes of lane i%lanes, because then the lanes find the baseline's row in the cache.
//
// Grid: lanes·rows. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS) split(const float* __restrict__ x, half* __restrict__ terms,
                                                            float* __restrict__ scales, int lanes, int rows, int width,
                                                            int whole) {
    __shared__ SplitScratch shared;
    const int row = blockIdx.x / lanes;
    const int lane = blockIdx.x % lanes;
    const long long index = static_cast<long long>(lane) * rows + row;
    const float* own = x + index * width;
    const Terms to = terms_of(terms, lane, row, lanes, rows, width, whole != 0);
    float scale;
    by_alignment(width, [&](auto aligned) {
        if (to.low != nullptr) {
            scale = split_row(shared, OwnRow<aligned.value>{own, width}, to, width, ACTIVATION_EXPONENT);
        } else {
            const float* baseline = x + static_cast<long long>(row) * width;
            scale = split_row(shared, DifferentRow<aligned.value>{own, baseline, width}, to, width, ACTIVATION_EXPONENT);
        }
    });
    if (threadIdx.x == 0) {
        scales[index] = scale;
    }
}

// weights and halves: (rows, width). scales: (rows).
//
// Grid: rows. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS) split_weights(const float* __restrict__ weights,
                                                                    half* __restrict__ halves,
                                                                    float* __restrict__ scales, int rows, int width) {
    constexpr int WEIGHT_EXPONENT = 0;
    const int row = blockIdx.x;
    const long long start = static_cast<long long>(row) * width;
    if (row >= rows) {
        return;
    }
    __shared__ SplitScratch shared;
    const Terms to{halves + start, nullptr};
    float scale;
    by_alignment(width, [&](auto aligned) {
        scale = split_row(shared, OwnRow<aligned.value>{weights + start, width}, to, width, WEIGHT_EXPONENT);
    });
    if (threadIdx.x == 0) {
        scales[row] = scale;
    }
}

namespace {

// How many lanes a thread reads before it writes them. In-place work would otherwise wait for each one in turn.
constexpr int LANES_AT_ONCE = 4;

template <bool ALIGNED>
__device__ void finish_row(float* sums, const float* __restrict__ row_scales, const float* __restrict__ column_scales,
                           int lanes, int rows, int columns, bool whole) {
    const int row = blockIdx.x;
    const long long lane_size = static_cast<long long>(rows) * columns;
    float* first = sums + static_cast<long long>(row) * columns;
    const float baseline_scale = row_scales[row];
    for (int column = GROUP * threadIdx.x; column < columns; column += STRIDE) {
        const float4 scales = load(column_scales, column, columns, ALIGNED);
        const auto finish_group = [&](float* to, float4 v) {
            store(to, column, columns, unscaled(v, scales), ALIGNED);
        };
        const float4 baseline = unscaled(load(first, column, columns, ALIGNED), baseline_scale);
        for (int lane = 1; lane < lanes; lane += LANES_AT_ONCE) {
            float4 v[LANES_AT_ONCE];
#pragma unroll
            for (int k = 0; k < LANES_AT_ONCE; ++k) {
                if (lane + k < lanes) {
                    v[k] = load(first + (lane + k) * lane_size, column, columns, ALIGNED);
                }
            }
#pragma unroll
            for (int k = 0; k < LANES_AT_ONCE; ++k) {
                if (lane + k < lanes) {
                    const float scale = row_scales[static_cast<long long>(lane + k) * rows + row];
                    v[k] = whole ? unscaled(v[k], scale) : with_difference(baseline, v[k], scale);
                    finish_group(first + (lane + k) * lane_size, v[k]);
                }
            }
        }
        finish_group(first, baseline);
    }
}

}  // namespace

// sums: (lanes·rows, columns), overwritten by the results. row_scales: (lanes·rows). column_scales: (columns).
//
// Grid: rows. Block: 256, of which four are to be on a multiprocessor at once. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS, 4) finish(float* sums, const float* __restrict__ row_scales,
                                                             const float* __restrict__ column_scales, int lanes,
                                                             int rows, int columns, int whole) {
    by_alignment(columns, [&](auto aligned) {
        finish_row<aligned.value>(sums, row_scales, column_scales, lanes, rows, columns, whole != 0);
    });
}
