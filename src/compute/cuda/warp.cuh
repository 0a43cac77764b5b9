// Warps, and sums over their threads.

#pragma once

namespace {

constexpr int WARP = 32;  // for the launch
constexpr unsigned WHOLE_WARP = 0xffffffffu;

// The sum over all threads of a warp, in one order for all of them.
template <typename T>
__device__ T warp_sum(T x) {
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        x += __shfl_xor_sync(WHOLE_WARP, x, mask);
    }
    return x;
}

}  // namespace
