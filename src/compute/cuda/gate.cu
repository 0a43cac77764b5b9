// Elementwise gates.
//
//   `gated_activation`  act(gate) ⊙ up, where a row holds gate and up side by side: (rows, 2·width) → (rows, width).
//                       act(g) is g·σ(g) (SiLU), or the tanh form of GELU, g·σ(2t) with t = √(2/π)(g + 0.044715 g³),
//                       or that of gpt-oss (`clamped`).
//   `sigmoid_gate`      x ⊙ σ(gate), where the gate stands in wider rows, from the column `start` on.
//   `sigmoid`           σ(x).
//
// σ(z) is 1/(1 + e^-z). NaN gives NaN.

#include "common.cuh"

// x: (rows, 2·width). out: (rows, width). `activation` is SILU, GELU or CLAMPED.
//
// Grid: rows, or (rows, y) with y up to ⌈width/1024⌉, which the blocks of a row then share; it pays for few rows.
// Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS) gated_activation(const float* __restrict__ x,
                                                                       float* __restrict__ out, int width,
                                                                       int activation) {
    const float* gate = x + 2 * (static_cast<long long>(blockIdx.x) * width);
    const float* up = gate + width;
    float* to = out + static_cast<long long>(blockIdx.x) * width;
    for (int column = GROUP * threadIdx.x + STRIDE * blockIdx.y; column < width; column += STRIDE * gridDim.y) {
        store(to, column, width, activated(load(gate, column, width), load(up, column, width), activation));
    }
}

// x and out: (rows, width). gate: (rows, columns), of which the columns start..start + width are read.
//
// Launched like `gated_activation`.
extern "C" __global__ void __launch_bounds__(THREADS)
    sigmoid_gate(const float* __restrict__ x, const float* __restrict__ gate, float* __restrict__ out, int width,
                 int columns, int start) {
    const float* from = x + static_cast<long long>(blockIdx.x) * width;
    const float* gates = gate + static_cast<long long>(blockIdx.x) * columns + start;
    float* to = out + static_cast<long long>(blockIdx.x) * width;
    const bool aligned = width % GROUP == 0 && columns % GROUP == 0 && start % GROUP == 0;
    for (int column = GROUP * threadIdx.x + STRIDE * blockIdx.y; column < width; column += STRIDE * gridDim.y) {
        const float4 g = load(gates, column, width, aligned);
        store(to, column, width, each(load(from, column, width), g, sigmoid_gated));
    }
}

// x and out: (count), which may be the same.
//
// Grid: ⌈count/256⌉. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS) sigmoid(const float* x, float* out, long long count) {
    const long long index = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    if (index < count) {
        out[index] = sigmoid_gated(1.0f, x[index]);
    }
}
