// A mixture of experts: which experts work for a row, and the weighted sum of what an expert gives.
//
//   expert_choice      the router's logits (rows, E) → (rows, 2·used): the chosen experts, the best one first, and then
//                      their weights
//   weighted_scatter   out[rows_i] += weights_i·y_i
//
// A row of a result depends on that row's own numbers only. Sums are always taken in the same order.

#include "warp.cuh"

namespace experts {

// What stands for the index of an expert where there is none.
constexpr unsigned NONE = 0xffffffffu;
constexpr int THREADS = 256;  // for the launch
// How many columns of a row a block reads at once, and how often it does so before it waits.
constexpr int STEP = 4 * THREADS;
constexpr int BATCH = 4;

// Bits that are ordered as the numbers are: -NaN, -∞, …, -0, 0, …, ∞, NaN.
__device__ unsigned key_of(float x) {
    const unsigned bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ float number_of(unsigned key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// An expert and the key of its logit.
struct Expert {
    unsigned key;
    unsigned index;

    // Whether this one is chosen before another.
    __device__ bool is_before(const Expert& other) const {
        return key > other.key || (key == other.key && index < other.index);
    }
};

// σ computed as for the gates of rows.
__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// What experts are chosen by: their logits, or σ of them and a correction if there is one.
struct Scores {
    const float* logits;
    const float* correction;  // null, or one for each expert

    __device__ float at(int expert) const {
        const float logit = __ldg(logits + expert);
        return correction == nullptr ? logit : sigmoid(logit) + __ldg(correction + expert);
    }
};

// The best expert of all, or of those that are chosen after `last`. All threads of a warp call this, and get the
// result.
__device__ Expert best_expert(const Scores& scores, int count, const Expert* last) {
    Expert best = {0, NONE};
    for (int i = threadIdx.x % WARP; i < count; i += WARP) {
        const Expert candidate = {key_of(scores.at(i)), static_cast<unsigned>(i)};
        if ((last == nullptr || last->is_before(candidate)) && candidate.is_before(best)) {
            best = candidate;
        }
    }
    const unsigned key = __reduce_max_sync(WHOLE_WARP, best.key);
    return {key, __reduce_min_sync(WHOLE_WARP, best.key == key ? best.index : NONE)};
}

// The softmax's sum over all experts, times e^-max. It is NaN if a logit is.
__device__ float sum_of_all(const float* logits, int count, float max) {
    float sum = 0.0f;
    for (int i = threadIdx.x % WARP; i < count; i += WARP) {
        sum += expf(__ldg(logits + i) - max);
    }
    return warp_sum(sum);
}

// All threads of a warp call this, and get the result.
__device__ bool all_finite(const float* logits, int count) {
    float zeros = 0.0f;
    for (int i = threadIdx.x % WARP; i < count; i += WARP) {
        zeros = fmaf(__ldg(logits + i), 0.0f, zeros);
    }
    return __all_sync(WHOLE_WARP, zeros == 0.0f);
}

// Four numbers of a row, or as many as it has left. Rows of widths that are not multiples of 4 are not aligned.
__device__ float4 load(const float* x, int count, bool is_aligned) {
    if (is_aligned) {
        return *reinterpret_cast<const float4*>(x);
    }
    float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (count > 0) y.x = x[0];
    if (count > 1) y.y = x[1];
    if (count > 2) y.z = x[2];
    if (count > 3) y.w = x[3];
    return y;
}

__device__ void store(float* out, float4 y, int count, bool is_aligned) {
    if (is_aligned) {
        *reinterpret_cast<float4*>(out) = y;
        return;
    }
    if (count > 0) out[0] = y.x;
    if (count > 1) out[1] = y.y;
    if (count > 2) out[2] = y.z;
    if (count > 3) out[3] = y.w;
}

// weight·y + x. It is rounded once.
__device__ float4 multiply_add(float weight, float4 y, float4 x) {
    return make_float4(fmaf(weight, y.x, x.x), fmaf(weight, y.y, x.y), fmaf(weight, y.z, x.z), fmaf(weight, y.w, x.w));
}

// Whether accesses to rows may be of 16 bytes.
__device__ bool can_be_wide(const void* x, const void* out, int width) {
    const unsigned long long bits = reinterpret_cast<unsigned long long>(x) | reinterpret_cast<unsigned long long>(out);
    return width % 4 == 0 && bits % 16 == 0;
}

}  // namespace experts

// Chooses the `used` experts with the largest logits, and weighs them by a softmax over those if `normalised` is not 0,
// or else over all experts. If `correction` (count) is not null, it chooses those with the largest σ + correction, and
// weighs them by σ, divided by the sum of the chosen ones if `normalised` is not 0. Of experts with equal scores the one
// with the lowest index is chosen. -0 is less than 0, and NaN is more than ∞. The weight of an expert is multiplied by
// its scale if `scales` (count) is not null. If a logit is not finite, the weights of its row are NaN.
//
// logits (rows, count), out (rows, 2·used), used ≤ count. flags[0] becomes at most `code` if a logit is not finite.
//
//     grid (⌈rows/8⌉), block 256, no dynamic shared memory
//
// A warp works on a row. It reads the logits again for each expert that it chooses, from the first-level cache.
extern "C" __global__ void __launch_bounds__(experts::THREADS) expert_choice(
    const float* __restrict__ logits, const float* __restrict__ correction, const float* __restrict__ scales,
    float* out, unsigned* flags, int rows, int count, int used, int normalised, unsigned code) {
    using namespace experts;
    const int row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    const int thread = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    logits += static_cast<long long>(row) * count;
    out += static_cast<long long>(row) * 2 * used;
    const Scores scores = {logits, correction};
    Expert chosen = {};
    float max = 0.0f, own = 0.0f;
    for (int i = 0; i < used; i++) {
        chosen = best_expert(scores, count, i == 0 ? nullptr : &chosen);
        const float logit = number_of(chosen.key);
        max = i == 0 ? logit : max;
        if (thread == i % WARP) {
            const float weight = correction == nullptr ? expf(logit - max) : sigmoid(__ldg(logits + chosen.index));
            out[i] = static_cast<float>(chosen.index);
            out[used + i] = weight;
            own += weight;
        }
    }
    const bool is_finite = all_finite(logits, count);
    const float weights = normalised ? warp_sum(own) : correction == nullptr ? sum_of_all(logits, count, max) : 1.0f;
    const float sum = is_finite ? weights : __uint_as_float(0x7fc00000u);
    // a thread reads what it has written itself
    for (int i = thread; i < used; i += WARP) {
        const float scale = scales == nullptr ? 1.0f : scales[static_cast<int>(out[i])];
        out[used + i] = out[used + i] / sum * scale;
    }
    if (!is_finite && thread == 0) {
        atomicMin(&flags[0], code);
    }
}

// Adds weights_i·y_i to row rows_i of out: weights (n), y (n, width), out (any, width). No row may occur twice in
// `rows`. If `rows` is null, then rows_i = i.
//
//     grid (n), block 256, no dynamic shared memory
extern "C" __global__ void __launch_bounds__(experts::THREADS) weighted_scatter(
    float* __restrict__ out, const unsigned* __restrict__ rows, const float* __restrict__ weights,
    const float* __restrict__ y, int width) {
    using namespace experts;
    const long long row = rows == nullptr ? blockIdx.x : rows[blockIdx.x];
    out += row * width;
    y += static_cast<long long>(blockIdx.x) * width;
    const float weight = weights[blockIdx.x];
    const bool is_aligned = can_be_wide(y, out, width);
    for (int start = 4 * threadIdx.x; start < width; start += BATCH * STEP) {
        // all loads come first, because the compiler does not know that the stores change nothing of them
        float4 sums[BATCH], terms[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int column = start + i * STEP;
            if (column < width) {
                sums[i] = load(out + column, width - column, is_aligned);
                terms[i] = load(y + column, width - column, is_aligned);
            }
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int column = start + i * STEP;
            if (column < width) {
                store(out + column, multiply_add(weight, terms[i], sums[i]), width - column, is_aligned);
            }
        }
    }
}
