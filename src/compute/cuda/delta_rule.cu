// The gated delta rule, a linear attention with a state for each head of v, for many sequences at once.
//
// A projected row holds, for one token of one sequence, the inputs of q, k and v (the channels), then the output's
// gate z, and then the inputs of β and of g, one of each for every head of v:
//
//     key_heads·key_dim | key_heads·key_dim | value_heads·value_dim | value_heads·value_dim | value_heads | value_heads
//            q          |         k         |           v           |           z           |      b      |      a
//
// Row sequence·tokens + t belongs to token t of the sequence. For each token in turn:
//
//   1. Each channel is convolved with its last `kernel` inputs, of which the last column of the weights belongs to the
//      current one, and becomes x/(1 + e^-x). The inputs before the first token are those that the sequence has kept.
//   2. Each head of q and k is divided by √(Σx² + 1e-6), and q also by √key_dim.
//   3. β = 1/(1 + e^-b) and g = decay·ln(1 + e^(a + time_bias)), which is never above 0, for each head of v.
//   4. Each head of v has a state S of (key_dim, value_dim). With S̃ = e^g·S it becomes S' = S̃ + k·δᵀ, where
//      δ = β·(v - S̃ᵀk), and the head's output is o = S'ᵀq.
//   5. The output is o/√(mean o² + ε) ⊙ norm ⊙ z/(1 + e^-z), for each head.
//
// Head h of v reads head h/(value_heads/key_heads) of q and k, or head h mod key_heads where `tiled` is not 0.
//
// Four kernels run one after the other on one stream, each with the same `DeltaRule` as its only argument:
//
//   delta_mix        steps 1 to 3; q and k go to `keys`, e^g and β to `gates`, and v to `out`
//   delta_history    keeps the last inputs of the convolution
//   delta_recur_*    step 4, token by token; it reads v from `out` and puts o in its place
//   delta_norm       step 5, in place in `out`
//
// Everything is f32. A sequence's bits depend on that sequence alone: a sum is always taken in the same order, and
// nothing is shared between sequences. NaN and infinities stay in the heads and the sequence that they came from, and
// from the state they reach all later tokens.

#include <cuda_pipeline_primitives.h>

#include "warp.cuh"

// The argument of every kernel. All pointers are to device memory and are aligned to 16 bytes. Widths may be odd, but
// only where key_dim, value_dim and 2·value_heads are multiples of 4 are all accesses of 16 bytes.
struct DeltaRule {
    const float* projected;    // (sequences·tokens, width())
    const float* convolution;  // (channels(), kernel)
    const float* decay;        // (value_heads), never above 0
    const float* time_bias;    // (value_heads)
    const float* norm;         // (value_dim)
    float* history;            // (sequences, kernel - 1, channels()), read and then overwritten
    float* states;             // (sequences, value_heads, key_dim, value_dim), read and then overwritten
    float* keys;               // scratch of sequences·tokens·key_heads·2·padded_key() numbers
    float* gates;              // scratch of sequences·tokens·value_heads·2 numbers
    float* out;                // (sequences·tokens, value_width())
    int sequences;
    int tokens;
    int key_heads;
    int value_heads;  // a multiple of key_heads
    int key_dim;      // at most 128
    int value_dim;
    int kernel;  // 2 to 4
    int tiled;
    float norm_eps;

    __host__ __device__ int key_width() const { return key_heads * key_dim; }
    __host__ __device__ int value_width() const { return value_heads * value_dim; }
    __host__ __device__ int channels() const { return 2 * key_width() + value_width(); }
    __host__ __device__ int width() const { return channels() + value_width() + 2 * value_heads; }
    // A head of q or k in the scratch is padded by zeros, so that every head begins at a multiple of 16 bytes.
    __host__ __device__ int padded_key() const { return (key_dim + 3) / 4 * 4; }
};

constexpr int ARGUMENT_BYTES = 120;  // for the launch
static_assert(sizeof(DeltaRule) == ARGUMENT_BYTES, "the launch mirrors the layout");

namespace {

// Threads of every block, except those of `delta_recur_*`, which have up to MAX_WARPS warps.
constexpr int THREADS = 256;  // for the launch
// What a warp reads in one instruction if each of its lanes reads 16 bytes.
constexpr int WARP_WIDTH = 128;  // for the launch
static_assert(WARP_WIDTH == 4 * WARP);

constexpr int MAX_KERNEL = 4;  // for the launch
// How many inputs before the current one the longest kernel spans.
constexpr int PAST = MAX_KERNEL - 1;
constexpr float L2_EPS = 1e-6f;

// ln(1 + e^x). For large x, where e^x would overflow, that is x.
__device__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// The first `count` of four neighbouring numbers, and 0 for the others.
__device__ float4 load(const float* x, int count, bool aligned) {
    if (aligned && count >= 4) {
        return *reinterpret_cast<const float4*>(x);
    }
    float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (count > 0) y.x = x[0];
    if (count > 1) y.y = x[1];
    if (count > 2) y.z = x[2];
    if (count > 3) y.w = x[3];
    return y;
}

__device__ void store(float* out, float4 y, int count, bool aligned) {
    if (aligned && count >= 4) {
        *reinterpret_cast<float4*>(out) = y;
        return;
    }
    if (count > 0) out[0] = y.x;
    if (count > 1) out[1] = y.y;
    if (count > 2) out[2] = y.z;
    if (count > 3) out[3] = y.w;
}

// Whether 16 bytes can be read at every fourth channel of a projected row, of the history and of `out`.
__device__ bool rows_are_aligned(const DeltaRule& rule) {
    return rule.width() % 4 == 0 && rule.key_dim % 4 == 0 && rule.value_width() % 4 == 0;
}

__device__ long long row_of(const DeltaRule& rule, int sequence, int token) {
    return static_cast<long long>(sequence) * rule.tokens + token;
}

// The channels of a token. The token -1 is the last one that the sequence has kept.
__device__ const float* inputs(const DeltaRule& rule, int sequence, int token) {
    if (token >= 0) {
        return rule.projected + row_of(rule, sequence, token) * rule.width();
    }
    const int past = rule.kernel - 1;
    return rule.history + (static_cast<long long>(sequence) * past + past + token) * rule.channels();
}

// ---------------------------------------------------------------------------------------------------------------------
// Steps 1 to 3
// ---------------------------------------------------------------------------------------------------------------------

// How many tokens a warp mixes. It reads each input once, and in addition those before its first token.
constexpr int RUN = 32;  // for the launch
// How many tokens a warp loads before it waits for the first of them.
constexpr int BATCH = 4;

// The tokens that a warp mixes.
struct Run {
    int sequence;
    int first;
    int count;
};

// Which four channels a lane mixes, and where the results go.
struct Channels {
    int start;
    int count;    // how many of the four exist
    int written;  // how many numbers are written, which includes the padding
    float* out;   // of token 0 of sequence 0
    int stride;   // from the row of one token to that of the next, in `out`
    bool aligned_out;
    bool normed;
    float scale;  // of a normed head
};

// Unit u of the channels is head u of q and k together, and after those it is the next 128 channels of v.
__device__ Channels channels_of(const DeltaRule& rule, int unit, int lane) {
    const int at = 4 * lane;
    if (unit < 2 * rule.key_heads) {
        const bool is_k = unit >= rule.key_heads;
        const int head = is_k ? unit - rule.key_heads : unit;
        const int padded = rule.padded_key();
        return {
            unit * rule.key_dim + at,
            rule.key_dim - at,
            padded - at,
            rule.keys + (2 * head + is_k) * padded + at,
            2 * rule.key_heads * padded,
            true,
            true,
            is_k ? 1.0f : 1.0f / sqrtf(static_cast<float>(rule.key_dim)),
        };
    }
    const int column = (unit - 2 * rule.key_heads) * WARP_WIDTH + at;
    const int count = rule.value_width() - column;
    return {
        2 * rule.key_width() + column,
        count,
        count,
        rule.out + column,
        rule.value_width(),
        rows_are_aligned(rule),
        false,
        1.0f,
    };
}

// The weights of four channels. The last belong to the current input, and where the kernel is shorter than the longest
// one, the first are missing.
__device__ void load_weights(const DeltaRule& rule, const Channels& channels, float4 (&weights)[MAX_KERNEL]) {
    const float* w = rule.convolution + static_cast<long long>(channels.start) * rule.kernel;
#pragma unroll
    for (int tap = 0; tap < MAX_KERNEL; tap++) {
        const int at = tap - (MAX_KERNEL - rule.kernel);
        weights[tap] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (at >= 0) {
            if (channels.count > 0) weights[tap].x = w[at];
            if (channels.count > 1) weights[tap].y = w[rule.kernel + at];
            if (channels.count > 2) weights[tap].z = w[2 * rule.kernel + at];
            if (channels.count > 3) weights[tap].w = w[3 * rule.kernel + at];
        }
    }
}

// x/(1 + e^-x). The exponentials come before the divisions, because the compiler does not overlap what stands on two
// sides of a division, which branches for rare operands.
__device__ float4 silu(float4 x) {
    const float4 y = make_float4(1.0f + expf(-x.x), 1.0f + expf(-x.y), 1.0f + expf(-x.z), 1.0f + expf(-x.w));
    return make_float4(x.x / y.x, x.y / y.y, x.z / y.z, x.w / y.w);
}

__device__ float4 times(float4 x, float factor) {
    return make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
}

__device__ float4 times(float4 x, float4 y) { return make_float4(x.x * y.x, x.y * y.y, x.z * y.z, x.w * y.w); }

__device__ float sum_of_squares(float4 x) { return fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, x.x * x.x))); }

// `inputs` are the last ones up to the current one, the oldest first. What is older than the kernel is left out rather
// than multiplied by 0, because it may be NaN.
__device__ float4 convolve(const float4 (&weights)[MAX_KERNEL], const float4* inputs, int kernel) {
    float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int tap = 0; tap < MAX_KERNEL; tap++) {
        if (tap >= MAX_KERNEL - kernel) {
            y.x = fmaf(weights[tap].x, inputs[tap].x, y.x);
            y.y = fmaf(weights[tap].y, inputs[tap].y, y.y);
            y.z = fmaf(weights[tap].z, inputs[tap].z, y.z);
            y.w = fmaf(weights[tap].w, inputs[tap].w, y.w);
        }
    }
    return y;
}

// Mixes up to 128 channels of the tokens of a run.
__device__ void mix_channels(const DeltaRule& rule, Run run, int unit, int lane) {
    const Channels channels = channels_of(rule, unit, lane);
    const bool aligned = rows_are_aligned(rule);
    float4 weights[MAX_KERNEL];
    load_weights(rule, channels, weights);
    // the inputs before a batch of tokens, and then those of the batch
    float4 window[PAST + BATCH] = {};
#pragma unroll
    for (int i = 0; i < PAST; i++) {
        const int age = PAST - i;
        if (age < rule.kernel) {
            window[i] = load(inputs(rule, run.sequence, run.first - age) + channels.start, channels.count, aligned);
        }
    }
    const float* x = inputs(rule, run.sequence, run.first) + channels.start;
    float* out = channels.out + row_of(rule, run.sequence, run.first) * channels.stride;
    for (int start = 0; start < run.count; start += BATCH) {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (start + i < run.count) window[PAST + i] = load(x, channels.count, aligned);
            x += rule.width();
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (start + i < run.count) {
                float4 y = silu(convolve(weights, window + i, rule.kernel));
                if (channels.normed) {
                    y = times(y, channels.scale / sqrtf(warp_sum(sum_of_squares(y)) + L2_EPS));
                }
                store(out, y, channels.written, channels.aligned_out);
            }
            out += channels.stride;
        }
#pragma unroll
        for (int i = 0; i < PAST; i++) {
            window[i] = window[BATCH + i];
        }
    }
}

// e^g and β of the tokens of a run.
__device__ void mix_gates(const DeltaRule& rule, Run run, int lane) {
    const int heads = rule.value_heads;
    const long long first = row_of(rule, run.sequence, run.first);
    float2* gates = reinterpret_cast<float2*>(rule.gates) + first * heads;
    const float* rows = rule.projected + first * rule.width() + rule.channels() + rule.value_width();
    for (int i = lane; i < run.count * heads; i += WARP) {
        const int token = i / heads;
        const int head = i - token * heads;
        const float* row = rows + static_cast<long long>(token) * rule.width();
        const float beta = 1.0f / (1.0f + expf(-row[head]));
        const float step = softplus(row[heads + head] + rule.time_bias[head]);
        gates[i] = make_float2(expf(rule.decay[head] * step), beta);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Step 4
// ---------------------------------------------------------------------------------------------------------------------
//
// The columns of a state do not depend on each other. A block holds up to 128 columns of one state in its registers
// from the first token to the last. A warp has 32 of them: each of its lanes has 4 neighbouring columns of every fourth
// group of 4 rows, so that the 4 lanes that share columns hold all rows between them.
//
// The state is kept as S/c, where c is the product of all e^g since the state was last rescaled. That leaves three
// multiplications and additions for each element and token, and all three in one pass over the registers:
//
//     S/c += k·(δ/c)ᵀ,  o/c += (S/c)ᵀq,  and for the next token  p += (S/c)ᵀk, from which it finds S̃ᵀk = e^g·c·p.
//
// q, k, v and the gates arrive in shared memory while earlier tokens are computed, in stages of 8 tokens.

constexpr int COLUMNS = 4;
// How many lanes share the rows of a column.
constexpr int GROUPS = 4;
constexpr int STAGE_TOKENS = 8;
constexpr int STAGES = 3;
constexpr int MAX_WARPS = 4;  // for the launch
constexpr int WARP_COLUMNS = 32;  // for the launch
static_assert(WARP_COLUMNS == WARP / GROUPS * COLUMNS);
constexpr int BLOCK_COLUMNS = MAX_WARPS * WARP_COLUMNS;

// The state is rescaled when c leaves these bounds, in which neither S/c nor δ/c comes near the range of f32.
constexpr float SMALLEST_SCALE = 1.0f / (1 << 24);
constexpr float LARGEST_SCALE = 1 << 24;

// A few tokens of one head, for a key_dim of up to 4·ROWS. What lies beyond the head's sizes is 0.
template <int ROWS>
struct alignas(16) Stage {
    float q[STAGE_TOKENS][GROUPS * ROWS];
    float k[STAGE_TOKENS][GROUPS * ROWS];
    float v[STAGE_TOKENS][BLOCK_COLUMNS];
    float2 gates[STAGE_TOKENS];
};

// What a block and one of its threads work on.
struct Place {
    int sequence;
    int head;
    int key_head;
    int first_column;  // of the block
    int warp;
    int warps;
    int lane;

    __device__ int group() const { return lane % GROUPS; }
    // The first of the lane's columns, counted from those of the block.
    __device__ int column() const { return warp * WARP_COLUMNS + lane / GROUPS * COLUMNS; }
};

__device__ Place place_of(const DeltaRule& rule) {
    Place place;
    place.sequence = blockIdx.x / rule.value_heads;
    place.head = blockIdx.x % rule.value_heads;
    place.key_head =
        rule.tiled ? place.head % rule.key_heads : place.head / (rule.value_heads / rule.key_heads);
    place.first_column = blockIdx.y * BLOCK_COLUMNS;
    place.warp = threadIdx.x / WARP;
    place.warps = blockDim.x / WARP;
    place.lane = threadIdx.x % WARP;
    return place;
}

// Row `row` of the lane's part of a state, where the lane's rows are 4 of every 16.
__device__ int key_row(const Place& place, int row) { return row / 4 * (4 * GROUPS) + 4 * place.group() + row % 4; }

// Starts copying the tokens from `first` on. Each warp copies every fourth token, if there are four warps.
template <int ROWS>
__device__ void fetch(const DeltaRule& rule, const Place& place, int first, Stage<ROWS>& stage) {
    const int padded = rule.padded_key();
    const int columns = min(BLOCK_COLUMNS, rule.value_dim - place.first_column);
    for (int i = place.warp; i < STAGE_TOKENS && first + i < rule.tokens; i += place.warps) {
        const long long row = row_of(rule, place.sequence, first + i);
        const float* keys = rule.keys + (row * rule.key_heads + place.key_head) * 2 * padded;
        for (int at = 4 * place.lane; at < 2 * padded; at += WARP_WIDTH) {
            float* to = at < padded ? &stage.q[i][at] : &stage.k[i][at - padded];
            __pipeline_memcpy_async(to, keys + at, 4 * sizeof(float));
        }
        const float* v =
            rule.out + row * rule.value_width() + place.head * rule.value_dim + place.first_column;
        if (rule.value_dim % 4 == 0) {
            const int at = 4 * place.lane;
            if (at < columns) __pipeline_memcpy_async(&stage.v[i][at], v + at, 4 * sizeof(float));
        } else {
            for (int at = place.lane; at < columns; at += WARP) {
                __pipeline_memcpy_async(&stage.v[i][at], v + at, sizeof(float));
            }
        }
        if (place.lane == 0) {
            const float* gates = rule.gates + (row * rule.value_heads + place.head) * 2;
            __pipeline_memcpy_async(&stage.gates[i], gates, sizeof(float2));
        }
    }
    __pipeline_commit();
}

// Waits until everything that the block has started to copy is there for all of its threads.
__device__ void await_fetched() {
    __pipeline_wait_prior(0);
    __syncthreads();
}

// A lane's part of a state, which is divided by `scale`.
template <int ROWS>
struct Part {
    float state[ROWS][COLUMNS];
    float scale;
    float k[ROWS];           // of the next token
    float product[COLUMNS];  // the state, transposed, times the k of the next token
};

__device__ float sum_over_groups(float x) {
    x += __shfl_xor_sync(WHOLE_WARP, x, 1);
    return x + __shfl_xor_sync(WHOLE_WARP, x, 2);
}

// The sum over the groups of the column that belongs to this lane: lane g of the four that share columns gets column g.
__device__ float own_sum_over_groups(const float (&x)[COLUMNS], int group) {
    const bool odd = group & 1;
    const bool upper = group & 2;
    float low = odd ? x[1] : x[0];
    float high = odd ? x[3] : x[2];
    low += __shfl_xor_sync(WHOLE_WARP, odd ? x[0] : x[1], 1);
    high += __shfl_xor_sync(WHOLE_WARP, odd ? x[2] : x[3], 1);
    const float own = upper ? high : low;
    return own + __shfl_xor_sync(WHOLE_WARP, upper ? low : high, 2);
}

// Where a lane's part of a state begins in memory.
__device__ float* state_of(const DeltaRule& rule, const Place& place) {
    const long long head = static_cast<long long>(place.sequence) * rule.value_heads + place.head;
    return rule.states + head * rule.key_dim * rule.value_dim + place.first_column + place.column();
}

template <int ROWS>
__device__ void load_state(const DeltaRule& rule, const Place& place, Part<ROWS>& part) {
    const float* state = state_of(rule, place);
    const int columns = rule.value_dim - place.first_column - place.column();
    part.scale = 1.0f;
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const int at = key_row(place, row);
        const int count = at < rule.key_dim ? columns : 0;
        const float4 x = load(state + static_cast<long long>(at) * rule.value_dim, count, rule.value_dim % 4 == 0);
        part.state[row][0] = x.x;
        part.state[row][1] = x.y;
        part.state[row][2] = x.z;
        part.state[row][3] = x.w;
    }
}

template <int ROWS>
__device__ void store_state(const DeltaRule& rule, const Place& place, const Part<ROWS>& part) {
    float* state = state_of(rule, place);
    const int columns = rule.value_dim - place.first_column - place.column();
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const int at = key_row(place, row);
        const float(&x)[COLUMNS] = part.state[row];
        const float4 y = times(make_float4(x[0], x[1], x[2], x[3]), part.scale);
        const int count = at < rule.key_dim ? columns : 0;
        store(state + static_cast<long long>(at) * rule.value_dim, y, count, rule.value_dim % 4 == 0);
    }
}

// Four of the lane's rows of q or k, from row `row` of its part on.
__device__ float4 rows_of(const Place& place, const float* x, int row) {
    return *reinterpret_cast<const float4*>(x + key_row(place, row));
}

// Prepares the part for the first token.
template <int ROWS>
__device__ void begin(const Place& place, const float* k, Part<ROWS>& part) {
    float sums[COLUMNS] = {};
#pragma unroll
    for (int row = 0; row < ROWS; row += 4) {
        const float4 four = rows_of(place, k, row);
        const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            part.k[row + i] = values[i];
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                sums[c] = fmaf(part.state[row + i][c], values[i], sums[c]);
            }
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        part.product[c] = sum_over_groups(sums[c]);
    }
}

// Multiplies the state by e^g, which is to say its scale. A scale of 0 or NaN goes into the state as well.
template <int ROWS>
__device__ void decay(Part<ROWS>& part, float factor) {
    part.scale *= factor;
    if (part.scale > SMALLEST_SCALE && part.scale < LARGEST_SCALE) {
        return;
    }
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            part.state[row][c] *= part.scale;
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        part.product[c] *= part.scale;
    }
    part.scale = 1.0f;
}

// Advances the state by one token, and gives the output of the lane's own column, which is the first of its columns
// plus its group.
template <int ROWS>
__device__ float step(const Place& place, const Stage<ROWS>& stage, int token, const float* next_k, Part<ROWS>& part) {
    const float2 gates = stage.gates[token];
    const float4 v = *reinterpret_cast<const float4*>(&stage.v[token][place.column()]);
    decay(part, gates.x);
    const float write = gates.y / part.scale;
    const float wanted[COLUMNS] = {v.x, v.y, v.z, v.w};
    float delta[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        delta[c] = write * fmaf(-part.scale, part.product[c], wanted[c]);
    }
    float out[COLUMNS] = {};
    float product[COLUMNS] = {};
#pragma unroll
    for (int row = 0; row < ROWS; row += 4) {
        const float4 q4 = rows_of(place, stage.q[token], row);
        const float4 k4 = rows_of(place, next_k, row);
        const float q[4] = {q4.x, q4.y, q4.z, q4.w};
        const float k[4] = {k4.x, k4.y, k4.z, k4.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                float& state = part.state[row + i][c];
                state = fmaf(part.k[row + i], delta[c], state);
                out[c] = fmaf(state, q[i], out[c]);
                product[c] = fmaf(state, k[i], product[c]);
            }
            part.k[row + i] = k[i];
        }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        part.product[c] = sum_over_groups(product[c]);
    }
    return part.scale * own_sum_over_groups(out, place.group());
}

// Runs the columns of a block over all tokens.
template <int ROWS>
__device__ void recur(const DeltaRule& rule) {
    __shared__ Stage<ROWS> ring[STAGES];
    const Place place = place_of(rule);
    constexpr int NUMBERS = STAGES * sizeof(Stage<ROWS>) / sizeof(float);
    for (int i = threadIdx.x; i < NUMBERS; i += blockDim.x) {
        reinterpret_cast<float*>(ring)[i] = 0.0f;
    }
    __syncthreads();
    fetch(rule, place, 0, ring[0]);
    fetch(rule, place, STAGE_TOKENS, ring[1]);
    Part<ROWS> part;
    load_state(rule, place, part);
    await_fetched();
    begin(place, ring[0].k[0], part);

    const int own_column = place.column() + place.group();
    const bool owns = place.first_column + own_column < rule.value_dim;
    float* out = rule.out + row_of(rule, place.sequence, 0) * rule.value_width() + place.head * rule.value_dim +
                 place.first_column + own_column;
    int current = 0;
#pragma unroll 1
    for (int first = 0; first < rule.tokens; first += STAGE_TOKENS) {
        const int next = current + 1 < STAGES ? current + 1 : 0;
        const int after = next + 1 < STAGES ? next + 1 : 0;
        // the last token of this stage needs the first k of the next one; and no thread reads the stage before this
        // one any more, whose place the one after the next takes
        await_fetched();
        fetch(rule, place, first + 2 * STAGE_TOKENS, ring[after]);
        const int count = min(STAGE_TOKENS, rule.tokens - first);
#pragma unroll 1
        for (int token = 0; token < count; token++) {
            const float* next_k = token + 1 < STAGE_TOKENS ? ring[current].k[token + 1] : ring[next].k[0];
            const float o = step(place, ring[current], token, next_k, part);
            if (owns) *out = o;
            out += rule.value_width();
        }
        current = next;
    }
    store_state(rule, place, part);
}

}  // namespace

// Steps 1 to 3. A warp mixes one head of q or k, or 128 channels of v, or the gates, for up to 32 tokens.
//
// Its loads of 4 tokens at a time need 24 warps a multiprocessor to hide their latency, hence the bound on registers.
//
// Grid: x = ⌈(2·key_heads + ⌈value_width/128⌉ + 1) / 8⌉, y = ⌈tokens/32⌉, z = sequences. Block: 256. Shared memory: 0.
extern "C" __global__ void __launch_bounds__(THREADS, 3) delta_mix(DeltaRule rule) {
    const int lane = threadIdx.x % WARP;
    const int unit = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const int first = blockIdx.y * RUN;
    const Run run = {static_cast<int>(blockIdx.z), first, min(RUN, rule.tokens - first)};
    const int channel_units = 2 * rule.key_heads + (rule.value_width() + WARP_WIDTH - 1) / WARP_WIDTH;
    if (unit < channel_units) {
        mix_channels(rule, run, unit, lane);
    } else if (unit == channel_units) {
        mix_gates(rule, run, lane);
    }
}

// Keeps the last kernel - 1 inputs of each channel. It runs after delta_mix, which still reads those kept before. A
// thread has a channel of a sequence to itself and reads all of it before it writes.
//
// Grid: x = ⌈channels/256⌉, y = sequences. Block: 256. Shared memory: 0.
extern "C" __global__ void __launch_bounds__(THREADS) delta_history(DeltaRule rule) {
    const int channel = blockIdx.x * blockDim.x + threadIdx.x;
    const int sequence = blockIdx.y;
    if (channel >= rule.channels()) {
        return;
    }
    const int past = rule.kernel - 1;
    float kept[PAST];
#pragma unroll
    for (int i = 0; i < PAST; i++) {
        if (i < past) kept[i] = inputs(rule, sequence, rule.tokens - past + i)[channel];
    }
    float* history = rule.history + static_cast<long long>(sequence) * past * rule.channels() + channel;
#pragma unroll
    for (int i = 0; i < PAST; i++) {
        if (i < past) history[static_cast<long long>(i) * rule.channels()] = kept[i];
    }
}

// Step 4, for heads of q and k of at most 32, 64 or 128 elements. The smallest that fits is the fastest. Two blocks a
// multiprocessor leave a thread the 240 registers that its part of the state and of k needs.
//
// Grid: x = sequences·value_heads, y = ⌈value_dim/128⌉. Block: 32·min(4, ⌈value_dim/32⌉). Shared memory: 0 dynamic.
extern "C" __global__ void __launch_bounds__(MAX_WARPS * WARP, 2) delta_recur_32(DeltaRule rule) { recur<8>(rule); }
extern "C" __global__ void __launch_bounds__(MAX_WARPS * WARP, 2) delta_recur_64(DeltaRule rule) { recur<16>(rule); }
extern "C" __global__ void __launch_bounds__(MAX_WARPS * WARP, 2) delta_recur_128(DeltaRule rule) { recur<32>(rule); }

// Step 5. A block norms one row, and each of its warps every eighth head.
//
// Grid: x = sequences·tokens. Block: 256. Shared memory: 0.
extern "C" __global__ void __launch_bounds__(THREADS) delta_norm(DeltaRule rule) {
    const int lane = threadIdx.x % WARP;
    const int warps = blockDim.x / WARP;
    const int size = rule.value_dim;
    const bool aligned = size % 4 == 0 && rule.width() % 4 == 0 && rule.channels() % 4 == 0;
    const long long row = blockIdx.x;
    const float* z_row = rule.projected + row * rule.width() + rule.channels();
    float* out_row = rule.out + row * rule.value_width();
    for (int head = threadIdx.x / WARP; head < rule.value_heads; head += warps) {
        const float* z = z_row + head * size;
        float* out = out_row + head * size;
        // most heads have no more than these, so that they are read once
        const float4 first_o = load(out + 4 * lane, size - 4 * lane, aligned);
        const float4 first_z = load(z + 4 * lane, size - 4 * lane, aligned);
        float sum = sum_of_squares(first_o);
        for (int at = 4 * lane + WARP_WIDTH; at < size; at += WARP_WIDTH) {
            sum += sum_of_squares(load(out + at, size - at, aligned));
        }
        const float scale = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(size) + rule.norm_eps);
        auto finish = [&](int at, float4 o, float4 gate) {
            const float4 w = load(rule.norm + at, size - at, size % 4 == 0);
            store(out + at, times(times(times(o, scale), w), silu(gate)), size - at, aligned);
        };
        finish(4 * lane, first_o, first_z);
        for (int at = 4 * lane + WARP_WIDTH; at < size; at += WARP_WIDTH) {
            finish(at, load(out + at, size - at, aligned), load(z + at, size - at, aligned));
        }
    }
}
