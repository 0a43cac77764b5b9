// Looks for numbers that are not finite.

#include "common.cuh"

// x: (count). flags[0] becomes `code`, or stays as it is if that is less, if a number is not finite.
//
// Grid: any number of blocks, which share the elements. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS)
    look_at(const float* __restrict__ x, unsigned* flags, long long count, unsigned code) {
    unsigned largest = 0;
    const long long step = static_cast<long long>(gridDim.x) * THREADS;
    for (long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; i < count; i += step) {
        largest = max(largest, magnitude(x[i]));
    }
    report(flags, 0, code, largest);
}
