// Takes some heads out of the rows of a projection, and applies their bias, RMS norm and RoPE, in this order:
// (rows, columns) → (rows, heads·head_dim).
//
// The norm of a head v is v·(weight/√(mean v² + ε)). RoPE rotates each pair (a, b) of a head to
// (a·cos - b·sin, a·sin + b·cos), where the row of the tables is the row's position, first + row mod tokens. The pairs
// are the elements i and i + pairs, or 2i and 2i + 1 where `adjacent` is not 0. Elements behind the last pair stay.

#include "common.cuh"

// The argument of the kernel. Pointers that may be null are those to what a model may lack.
struct Heads {
    const float* x;     // (rows, columns)
    const float* bias;  // (heads·head_dim), or null
    const float* norm;  // (head_dim), or null
    const float* cos;   // (positions, pairs), or null
    const float* sin;   // (positions, pairs), or null
    float* out;         // (rows, heads·head_dim)
    int rows;
    int columns;
    int start;  // the column of the first head
    int heads;
    int head_dim;
    int pairs;  // at most head_dim/2
    int adjacent;
    int first;
    int tokens;
    float eps;

    __host__ __device__ int width() const { return heads * head_dim; }
};

constexpr int ARGUMENT_BYTES = 88;  // for the launch
static_assert(sizeof(Heads) == ARGUMENT_BYTES, "the launch mirrors the layout");

namespace {

constexpr int WARP_STRIDE = GROUP * WARP;

// How many elements a warp reads at once, in whole heads. With a single short one it would wait for memory most of the
// time.
constexpr int ELEMENTS = 512;  // for the launch

__host__ __device__ constexpr int heads_of_warp(int head_dim) {
    return head_dim < ELEMENTS ? ELEMENTS / head_dim : 1;
}

// The heads of all rows are counted through: head `index % heads` of row `index / heads`.
struct Place {
    int row;
    int head;

    __device__ Place(const Heads& op, int index) : row(index / op.heads), head(index % op.heads) {}
};

// Begins to copy the warp's part of a head.
__device__ void begin_head(const Heads& op, int index, float* kept) {
    const Place place(op, index);
    const bool aligned = op.head_dim % GROUP == 0 && op.start % GROUP == 0 && op.columns % GROUP == 0;
    const float* x = op.x + static_cast<long long>(place.row) * op.columns + op.start + place.head * op.head_dim;
    for (int column = GROUP * (threadIdx.x % WARP); column < op.head_dim; column += WARP_STRIDE) {
        if (aligned) {
            __pipeline_memcpy_async(kept + column, x + column, GROUP * sizeof(float));
        } else {
            group(kept, column) = load(x, column, op.head_dim, false);
        }
    }
}

// Adds the bias and applies the norm. Each lane does so to its own groups.
__device__ void normalize(const Heads& op, int head, float* kept) {
    const int own = GROUP * (threadIdx.x % WARP);
    if (op.bias != nullptr) {
        const float* bias = op.bias + head * op.head_dim;
        for (int column = own; column < op.head_dim; column += WARP_STRIDE) {
            group(kept, column) = plus(group(kept, column), load(bias, column, op.head_dim));
        }
    }
    if (op.norm == nullptr) {
        return;
    }
    float sum = 0.0f;
    for (int column = own; column < op.head_dim; column += WARP_STRIDE) {
        sum = add_squares(sum, group(kept, column));
    }
    const float scale = norm_scale(rounded_warp_sum(sum), op.head_dim, op.eps);
    for (int column = own; column < op.head_dim; column += WARP_STRIDE) {
        const float4 weight = unscaled(load(op.norm, column, op.head_dim), scale);
        group(kept, column) = each(group(kept, column), weight, [](float x, float w) { return __fmul_rn(x, w); });
    }
}

// The two elements of a rotated pair.
__device__ float2 rotated(float a, float b, float cos, float sin) {
    return make_float2(__fsub_rn(__fmul_rn(a, cos), __fmul_rn(b, sin)),
                       __fadd_rn(__fmul_rn(a, sin), __fmul_rn(b, cos)));
}

// The rotation at one position.
struct Rotation {
    const float* cos;
    const float* sin;
    int pairs;
    bool adjacent;

    // An element of a head after the rotation.
    __device__ float element(const float* head, int column) const {
        if (column >= 2 * pairs) {
            return head[column];
        }
        const bool is_second = adjacent ? column % 2 == 1 : column >= pairs;
        const int pair = adjacent ? column / 2 : column % pairs;
        const int a = adjacent ? 2 * pair : pair;
        const int b = adjacent ? 2 * pair + 1 : pair + pairs;
        const float2 both = rotated(head[a], head[b], cos[pair], sin[pair]);
        return is_second ? both.y : both.x;
    }

    // A group of which all elements are in the same half.
    __device__ float4 half_group(float* head, int column) const {
        const int pair = column < pairs ? column : column - pairs;
        const float4 a = group(head, pair);
        const float4 b = group(head, pair + pairs);
        const float4 c = *reinterpret_cast<const float4*>(cos + pair);
        const float4 s = *reinterpret_cast<const float4*>(sin + pair);
        const float2 x = rotated(a.x, b.x, c.x, s.x);
        const float2 y = rotated(a.y, b.y, c.y, s.y);
        const float2 z = rotated(a.z, b.z, c.z, s.z);
        const float2 w = rotated(a.w, b.w, c.w, s.w);
        return column >= pairs ? make_float4(x.y, y.y, z.y, w.y) : make_float4(x.x, y.x, z.x, w.x);
    }

    // A group of two adjacent pairs.
    __device__ float4 pair_group(float4 v, int column) const {
        const float2 c = *reinterpret_cast<const float2*>(cos + column / 2);
        const float2 s = *reinterpret_cast<const float2*>(sin + column / 2);
        const float2 low = rotated(v.x, v.y, c.x, s.x);
        const float2 high = rotated(v.z, v.w, c.y, s.y);
        return make_float4(low.x, low.y, high.x, high.y);
    }

    __device__ float4 of(float* head, int column) const {
        if (column >= 2 * pairs) {
            return group(head, column);
        }
        if (!adjacent && pairs % GROUP == 0) {
            return half_group(head, column);
        }
        if (adjacent && pairs % 2 == 0) {
            return pair_group(group(head, column), column);
        }
        return make_float4(element(head, column), element(head, column + 1), element(head, column + 2),
                           element(head, column + 3));
    }
};

// Writes a head that all lanes see, after its rotation.
__device__ void write_head(const Heads& op, const Place& place, float* kept) {
    const long long position = op.first + place.row % op.tokens;
    const Rotation rotation{op.cos + position * op.pairs, op.sin + position * op.pairs, op.pairs, op.adjacent != 0};
    float* out = op.out + static_cast<long long>(place.row) * op.width() + place.head * op.head_dim;
    for (int column = GROUP * (threadIdx.x % WARP); column < op.head_dim; column += WARP_STRIDE) {
        const float4 v = op.cos == nullptr ? group(kept, column) : rotation.of(kept, column);
        store(out, column, op.head_dim, v);
    }
}

}  // namespace

// A warp works on heads_of_warp(head_dim) = max(1, ⌊512/head_dim⌋) heads, one row's after the other's. rows·heads is
// below 2^31.
//
// Grid: ⌈rows·heads/(8·heads_of_warp)⌉. Block: 256. Dynamic shared memory: 8·heads_of_warp·padded(head_dim)·4 bytes,
// where padded rounds up to a multiple of 4. That is at most 16 KB for heads up to 512.
extern "C" __global__ void __launch_bounds__(THREADS) heads(const Heads op) {
    const int count = heads_of_warp(op.head_dim);
    const int warp = threadIdx.x / WARP;
    const int begin = (blockIdx.x * WARPS + warp) * count;
    const int end = min(begin + count, op.rows * op.heads);
    float* kept = shared_floats() + warp * count * padded(op.head_dim);
    for (int index = begin; index < end; ++index) {
        begin_head(op, index, kept + (index - begin) * padded(op.head_dim));
    }
    await_rows();
    for (int index = begin; index < end; ++index, kept += padded(op.head_dim)) {
        const Place place(op, index);
        normalize(op, place.head, kept);
        __syncwarp();
        write_head(op, place, kept);
    }
}
