// Adds the output of a half-layer to the residual stream: out = x + y, or x + norm(y) for models that normalize what is
// added, and then times a factor for models that scale the stream. All tensors are (rows, width).
//
// norm(y) = y/√(mean y² + ε) ⊙ weight. 0 is added to a scaled sum, which makes 0 of -0.

#include "common.cuh"

// weight: (width), or null for no norm. `scale` is used if `is_scaled` is not 0. A result of row r that is not finite
// is reported to flags[r/rows], where `rows` is the number of rows of one lane. If `flags` is null, nobody looks.
//
// Grid: all rows of all lanes. Block: 256. Dynamic shared memory: padded(width)·4 bytes, where padded rounds up to a
// multiple of 4, or none if `weight` is null.
extern "C" __global__ void __launch_bounds__(THREADS)
    residual(const float* __restrict__ x, const float* __restrict__ y, const float* __restrict__ weight,
             float* __restrict__ out, unsigned* flags, unsigned code, int rows, int width, float eps, float scale,
             int is_scaled) {
    __shared__ float scratch[WARPS];
    const long long start = static_cast<long long>(blockIdx.x) * width;
    unsigned largest = 0;
    const auto add = [&](int column, float4 added) {
        float4 v = plus(load(x + start, column, width), added);
        if (is_scaled != 0) {
            v = each(v, [=](float sum) { return __fadd_rn(__fmul_rn(sum, scale), 0.0f); });
        }
        store(out + start, column, width, v);
        largest = max(largest, magnitude(v));
    };
    if (weight == nullptr) {
#pragma unroll 4
        for (int column = GROUP * threadIdx.x; column < width; column += STRIDE) {
            add(column, load(y + start, column, width));
        }
    } else {
        float* kept = shared_floats();
        begin_row(kept, y + start, width);
        await_rows();
        const float norm = norm_scale(block_sum(squares(kept, width), scratch), width, eps);
#pragma unroll 4
        for (int column = GROUP * threadIdx.x; column < width; column += STRIDE) {
            add(column, normed(group(kept, column), norm, load(weight, column, width)));
        }
    }
    if (flags != nullptr) {
        report(flags, blockIdx.x / rows, code, largest);
    }
}
