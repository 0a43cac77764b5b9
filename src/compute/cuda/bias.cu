// Adds a bias to each row: out = x + bias, where x and out are (rows, width) and the bias is (width).

#include "common.cuh"

// x and out may be the same.
//
// Grid: rows, or (rows, y) with y up to ⌈width/1024⌉, which the blocks of a row then share; it pays for few rows.
// Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS) bias(const float* x, const float* __restrict__ added, float* out,
                                                           int width) {
    const long long start = static_cast<long long>(blockIdx.x) * width;
    for (int column = GROUP * threadIdx.x + STRIDE * blockIdx.y; column < width; column += STRIDE * gridDim.y) {
        store(out + start, column, width, plus(load(x + start, column, width), load(added, column, width)));
    }
}
