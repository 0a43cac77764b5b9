// `finish` of split.cu, the gated activation of gate.cu and then `split`, with the same bits as the three one after
// the other. It stands between the two products of a gated MLP.
//
// sums is what the product with the gate's and the up projection's weights gives, (lanes·rows, 2·width), together with
// the scales of its rows and columns and perhaps a bias. terms and scales are what `split` makes of the activations,
// (lanes·rows, width).

#include "common.cuh"

namespace {

constexpr int GATE_THREADS = 512;  // for the launch
constexpr int GATE_STRIDE = GROUP * GATE_THREADS;

// The most lanes that a block works on at once. They share the columns' scales, and the baseline's sums and
// activations, which each further turn needs again.
constexpr int MOST_TOGETHER = 4;  // for the launch

struct GateScratch {
    unsigned largest[MOST_TOGETHER][GATE_THREADS / WARP];
};

// The same columns of the gate and the up projection.
struct Gates {
    float4 gate;
    float4 up;
};

template <bool ALIGNED>
__device__ Gates load_gates(const float* row, int column, int width) {
    return {load(row, column, width, ALIGNED), load(row + width, column, width, ALIGNED)};
}

__device__ Gates unscaled(const Gates& v, float scale) { return {unscaled(v.gate, scale), unscaled(v.up, scale)}; }

__device__ Gates with_difference(const Gates& baseline, const Gates& sums, float scale) {
    return {with_difference(baseline.gate, sums.gate, scale), with_difference(baseline.up, sums.up, scale)};
}

// What makes activations of sums without their rows' scales.
struct Columns {
    Gates scales;
    Gates bias;
    bool has_bias;
    int kind;

    __device__ float4 activation(const Gates& v) const {
        const float4 gate = unscaled(v.gate, scales.gate);
        const float4 up = unscaled(v.up, scales.up);
        return has_bias ? activated(plus(gate, bias.gate), plus(up, bias.up), kind) : activated(gate, up, kind);
    }
};

}  // namespace

// The argument of the kernel.
struct GateSplit {
    const float* sums;           // (lanes·rows, 2·width)
    const float* row_scales;     // (lanes·rows)
    const float* column_scales;  // (2·width)
    const float* bias;           // (2·width), or null
    half* terms;                 // as those of `split`
    float* scales;               // (lanes·rows)
    int lanes;
    int rows;
    int width;
    int together;  // how many lanes a block works on at once, 1 to 4
    int activation;  // SILU, GELU or CLAMPED
    int whole;     // as that of `split`
};

constexpr int ARGUMENT_BYTES = 72;  // for the launch
static_assert(sizeof(GateSplit) == ARGUMENT_BYTES, "the launch mirrors the layout");

namespace {

// Computes a group of columns of `count` lanes: the activations, or their differences from the baseline's. It keeps
// them, and raises the largest magnitudes.
template <bool ALIGNED>
__device__ void gate_columns(const GateSplit& op, int first, int count, int column, float* kept,
                             unsigned (&largest)[MOST_TOGETHER]) {
    const int row = blockIdx.x;
    const int width = op.width;
    const auto index = [&](int lane) { return static_cast<long long>(lane) * op.rows + row; };
    Gates sums[MOST_TOGETHER];
#pragma unroll
    for (int k = 0; k < MOST_TOGETHER; ++k) {
        if (k < count) {
            sums[k] = load_gates<ALIGNED>(op.sums + index(first + k) * (2 * width), column, width);
        }
    }
    Columns columns{load_gates<ALIGNED>(op.column_scales, column, width), {}, op.bias != nullptr, op.activation};
    if (columns.has_bias) {
        columns.bias = load_gates<ALIGNED>(op.bias, column, width);
    }
    Gates baseline{};
    float4 activation = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (op.whole == 0) {
        const Gates from = load_gates<ALIGNED>(op.sums + index(0) * (2 * width), column, width);
        baseline = unscaled(from, op.row_scales[row]);
        activation = columns.activation(baseline);
    }
#pragma unroll
    for (int k = 0; k < MOST_TOGETHER; ++k) {
        if (k < count) {
            const int lane = first + k;
            const float scale = op.row_scales[index(lane)];
            float4 v = activation;
            if (op.whole != 0) {
                v = columns.activation(unscaled(sums[k], scale));
            } else if (lane != 0) {
                v = differences(columns.activation(with_difference(baseline, sums[k], scale)), activation);
            }
            group(kept + k * padded(width), column) = v;
            largest[k] = max(largest[k], magnitude(v));
        }
    }
}

// Works on `count` lanes of the block's row, from `first` on.
template <bool ALIGNED>
__device__ void gate_lanes(const GateSplit& op, int first, int count, float* kept, GateScratch& shared) {
    unsigned largest[MOST_TOGETHER] = {};
    for (int column = GROUP * threadIdx.x; column < op.width; column += GATE_STRIDE) {
        gate_columns<ALIGNED>(op, first, count, column, kept, largest);
    }
#pragma unroll
    for (int k = 0; k < MOST_TOGETHER; ++k) {
        post_max(largest[k], shared.largest[k]);
    }
    __syncthreads();
    for (int k = 0; k < count; ++k, kept += padded(op.width)) {
        const Power power = power_for(posted_max(shared.largest[k]), ACTIVATION_EXPONENT);
        const Terms to = terms_of(op.terms, first + k, blockIdx.x, op.lanes, op.rows, op.width, op.whole != 0);
        for (int column = GROUP * threadIdx.x; column < op.width; column += GATE_STRIDE) {
            store_terms(to, column, op.width, group(kept, column), power);
        }
        if (threadIdx.x == 0) {
            op.scales[static_cast<long long>(first + k) * op.rows + blockIdx.x] = power.down;
        }
    }
}

}  // namespace

// A block takes a row of all lanes, `together` at a time.
//
// Grid: rows. Block: 512. Dynamic shared memory: together·padded(width)·4 bytes, where padded rounds up to a multiple
// of 4. `together` is best as large as fits.
extern "C" __global__ void __launch_bounds__(GATE_THREADS) gate_split(const GateSplit op) {
    __shared__ GateScratch shared;
    for (int first = 0; first < op.lanes; first += op.together) {
        const int count = min(op.together, op.lanes - first);
        by_alignment(op.width, [&](auto aligned) {
            gate_lanes<aligned.value>(op, first, count, shared_floats(), shared);
        });
        // the next turn writes to the scratch that this one has read
        __syncthreads();
    }
}
