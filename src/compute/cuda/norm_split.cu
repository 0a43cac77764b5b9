// The RMS norm of norm.cu and then `split` of split.cu, with the same bits as the two one after the other.
//
// x is (lanes·rows, width), weight is (width), and terms and scales are those of `split`.

#include "common.cuh"

namespace {

struct NormScratch {
    float sum[WARPS];
    unsigned largest[WARPS];
};

// Replaces a kept row by its norm, or by the difference from a baseline that is not null, and gives the largest
// magnitude. Each thread works on its own groups.
__device__ unsigned normalize_row(NormScratch& shared, float* kept, float* baseline, const float* __restrict__ weight,
                                  int width, float eps) {
    const float scale = norm_scale(block_sum(squares(kept, width), shared.sum), width, eps);
    unsigned largest = 0;
#pragma unroll 4
    for (int column = GROUP * threadIdx.x; column < width; column += STRIDE) {
        float4 v = normed(group(kept, column), scale, load(weight, column, width));
        if (baseline != nullptr) {
            v = differences(v, group(baseline, column));
        }
        group(kept, column) = v;
        largest = max(largest, magnitude(v));
    }
    return block_max(largest, shared.largest);
}

__device__ void split_kept(float* kept, unsigned largest, const Terms& terms, float* scale, int width) {
    const Power power = power_for(largest, ACTIVATION_EXPONENT);
    for (int column = GROUP * threadIdx.x; column < width; column += STRIDE) {
        store_terms(terms, column, width, group(kept, column), power);
    }
    if (threadIdx.x == 0) {
        *scale = power.down;
    }
}

}  // namespace

// A block takes a row of all lanes, one lane after the other. A lane is copied to shared memory while the one before it
// is worked on.
//
// Grid: rows. Block: 256. Dynamic shared memory: 3·padded(width)·4 bytes, where padded rounds up to a multiple of 4.
extern "C" __global__ void __launch_bounds__(THREADS)
    norm_split(const float* __restrict__ x, const float* __restrict__ weight, half* __restrict__ terms,
               float* __restrict__ scales, int lanes, int rows, int width, float eps, int whole) {
    __shared__ NormScratch shared;
    const int row = blockIdx.x;
    float* baseline = shared_floats();
    const auto index = [=](int lane) { return static_cast<long long>(lane) * rows + row; };
    const auto buffer = [=](int turn) { return baseline + (1 + turn % 2) * padded(width); };
    const auto write = [=](int lane, float* kept, unsigned largest) {
        const Terms to = terms_of(terms, lane, row, lanes, rows, width, whole != 0);
        split_kept(kept, largest, to, scales + index(lane), width);
    };

    // without differences the baseline is a lane like the others
    const bool has_baseline = whole == 0;
    int lane = has_baseline ? 1 : 0;
    if (has_baseline) {
        begin_row(baseline, x + index(0) * width, width);
    }
    __pipeline_commit();
    if (lane < lanes) {
        begin_row(buffer(0), x + index(lane) * width, width);
    }
    __pipeline_commit();
    if (has_baseline) {
        __pipeline_wait_prior(1);
        const unsigned largest = normalize_row(shared, baseline, nullptr, weight, width, eps);
        write(0, baseline, largest);
    }
    for (int turn = 0; lane < lanes; ++lane, ++turn) {
        if (lane + 1 < lanes) {
            begin_row(buffer(turn + 1), x + index(lane + 1) * width, width);
        }
        __pipeline_commit();
        __pipeline_wait_prior(1);
        float* kept = buffer(turn);
        write(lane, kept, normalize_row(shared, kept, has_baseline ? baseline : nullptr, weight, width, eps));
    }
}
