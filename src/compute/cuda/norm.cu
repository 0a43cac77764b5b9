// The RMS norm of rows: out = x/√(mean x² + ε) ⊙ weight, where x and out are (rows, width) and weight is (width).
//
// The squares are summed in f32, in one order for each width. NaN, an infinity, or squares that are too large for f32 make
// the whole row NaN.

#include "common.cuh"

// Grid: rows. Block: 256. Dynamic shared memory: padded(width)·4 bytes, where padded rounds up to a multiple of 4.
extern "C" __global__ void __launch_bounds__(THREADS) rms_norm(const float* __restrict__ x,
                                                               const float* __restrict__ weight,
                                                               float* __restrict__ out, int width, float eps) {
    __shared__ float scratch[WARPS];
    float* kept = shared_floats();
    const long long start = static_cast<long long>(blockIdx.x) * width;
    begin_row(kept, x + start, width);
    await_rows();
    const float scale = norm_scale(block_sum(squares(kept, width), scratch), width, eps);
    for (int column = GROUP * threadIdx.x; column < width; column += STRIDE) {
        store(out + start, column, width, normed(group(kept, column), scale, load(weight, column, width)));
    }
}
