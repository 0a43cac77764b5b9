// Causal softmax attention of many sequences at once, on the tensor cores, with keys and values in one or two versions.
//
// A sequence has T queries of H heads and N ≥ T keys and values of H_kv heads; head h reads head h/(H/H_kv) of them.
// The last T keys are at the queries' own positions. Query t, whose own key is o = N - T + t, sees the keys
// j ≤ o, and with a window W only those with j > o - W. For each query and head
//
//     s_j = scale·q·k_j,    or c·tanh(scale·q·k_j / c) with a softcap c
//     out = Σ_j e^(s_j - m)·v_j / (Σ_j e^(s_j - m) + e^(own - m)),    where m is the largest s_j
//
// own is a learned score of the head that has no value. Its term is missing if there are no such scores.
//
//     q    (sequences, T, H, D)       out  (sequences, T, H·D)
//     k, v (sequences, N, H_kv, D)
//
// Keys or values may have a second, exact version beside the stored one. A rule for each lane then says which version
// of a key a query reads: see `Rule`. All of them enter one softmax.
//
// Three kernels run one after the other on one stream, each with the same `Attention` as its only argument:
//
//   attention_peaks       the largest |v| of each block of keys
//   attention_pack        k and v as f16 in tiles, ready to be copied to shared memory
//   attention_P           the attention itself, for a head dimension that is padded to P = 64, 96, 128, 192, 256 or 512
//   attention_P_versions  the same where k or v has an exact version
//
// Arithmetic. A row of q·scale or of k is multiplied by a power of two that brings its largest element to [2^14,
// 2^15), and each element becomes the sum of two f16, high + low. A score is high·high + high·low + low·high, summed
// in f32. Its error is below 2^-20·|q||k|, and most of it comes from sums that the tensor cores truncate. The power of
// two is taken out of the score. A weight is 2^14·e^(s_j - m), as the sum of two f16, too. v is rounded to f16 after a
// multiplication by a power of two, which is common to a sequence and head. Values of a cache in f16 stay exact. The sum
// of the weights comes out of the same tensor core products as the weighted values do, as though v had one more column
// of ones. So the rounding of a weight only moves the result between values. What is left
// against exact arithmetic is the error of the scores, and that of rounding values with more than 11 bits.
//
// A query's bits depend on its own sequence alone. Blocks of keys begin at multiples of the block's size, and a block
// that a query does not see leaves its sums as they are, whichever queries share its tile. NaN and infinities of a key
// that some query reads make the results that see it non-finite. Nothing here reports them: the flag of the residual,
// behind the layer's output, catches a result that is not finite.

#include <cuda_fp16.h>

#include "tensor_cores.cuh"
#include "warp.cuh"

// How many queries a block takes and how many keys a tile holds, for heads that are padded up to so many elements, or
// beyond.
constexpr int QUERIES_TO_128 = 128;  // for the launch
constexpr int QUERIES_TO_256 = 64;  // for the launch
constexpr int QUERIES_TO_512 = 32;  // for the launch
constexpr int KEYS_TO_128 = 64;  // for the launch
constexpr int KEYS_BEYOND_128 = 32;  // for the launch

// Which version of a key a query reads. It reads exactly the keys at positions below `sink` and those of its tail:
// those that are newest at its own position p, or those from the last multiple of the tail's size that is not above p.
struct Rule {
    int sink;
    int chunked;  // 0 or 1
    int tail;     // chunked: the size, 1 or more; else how many of the newest, the query's own included
};

// The argument of every kernel. Pointers to tensors are aligned to 16 bytes.
struct Attention {
    const float* q;        // (sequences, queries, heads, head_dim)
    const float* k;        // (sequences, keys, kv_heads, head_dim)
    const float* k_exact;  // the same, or null if k has one version
    const float* v;        // (sequences, keys, kv_heads, head_dim)
    const float* v_exact;  // the same, or null if v has one version
    const Rule* k_rules;   // one for each lane, read if k_exact is not null; without a rule {0, 0, 0}
    const Rule* v_rules;   // one for each lane, read if v_exact is not null
    const float* own_scores;  // (heads), or null
    float* out;            // (sequences, queries, heads·head_dim)
    unsigned char* scratch;  // scratch_bytes(), aligned to 16 bytes
    int sequences;
    int batch;  // sequences of a lane
    int queries;
    int keys;
    int heads;  // a multiple of kv_heads
    int kv_heads;
    int head_dim;  // a multiple of 8, at most 512
    int window;    // 0 if there is none
    int start;     // the position of the first key in its sequence
    float scale;
    float softcap;  // 0 if there is none

    __host__ __device__ int padded() const {
        return head_dim <= 128 ? (head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : 128)
                               : (head_dim <= 192 ? 192 : head_dim <= 256 ? 256 : 512);
    }
    // How many keys a tile holds.
    __host__ __device__ int block_keys() const { return padded() <= 128 ? KEYS_TO_128 : KEYS_BEYOND_128; }
    __host__ __device__ int key_blocks() const { return (keys + block_keys() - 1) / block_keys(); }
    __host__ __device__ long long key_tile_bytes() const { return 4ll * block_keys() * (padded() + 1); }
    __host__ __device__ long long value_tile_bytes() const { return 2ll * block_keys() * padded(); }
    __host__ __device__ int k_versions() const { return k_exact == nullptr ? 1 : 2; }
    __host__ __device__ int v_versions() const { return v_exact == nullptr ? 1 : 2; }
    // Tiles of a block of keys for each sequence and kv head.
    __host__ __device__ long long tiles() const { return 1ll * sequences * kv_heads * key_blocks(); }
    __host__ __device__ long long value_tiles_at() const { return tiles() * k_versions() * key_tile_bytes(); }
    __host__ __device__ long long peaks_at() const {
        return value_tiles_at() + tiles() * v_versions() * value_tile_bytes();
    }
    __host__ __device__ long long scratch_bytes() const { return peaks_at() + tiles() * 4; }
};

constexpr int ARGUMENT_BYTES = 128;  // for the launch
static_assert(sizeof(Attention) == ARGUMENT_BYTES, "the launch mirrors the layout");

namespace {

// Threads of every block.
constexpr int THREADS = 128;  // for the launch
constexpr int WARPS = THREADS / WARP;

// Bits of an f32: its magnitude, and the magnitude of infinity.
constexpr unsigned MAGNITUDE = 0x7fffffffu;
constexpr unsigned INFINITE = 0x7f800000u;

constexpr float LOG2_E = 1.44269504088896340736f;
// A weight of 1 is this power of two in f16, so that weights down to 2^-28 keep all their bits.
constexpr float WEIGHT_EXPONENT = 14.0f;

// After how many additions of a tensor core a sum is added to others by an ordinary addition, which rounds.
constexpr int MAX_STEPS = 16;

// The most float4 of a row that a lane of a warp holds.
constexpr int MAX_SLOTS = 4;

// Where the 16 bytes with index `chunk` of a tile's row are. Eight neighbouring rows have the same chunk in eight
// different groups of banks. A row has a multiple of 8 chunks, or 12.
__host__ __device__ constexpr int swizzle(int padded, int row, int chunk) {
    return chunk ^ (padded % 64 == 0 ? row & 7 : (row >> 1) & 3);
}

// The byte of element `column` of a tile of f16.
__device__ int tile_byte(int padded, int row, int column) {
    return (row * (padded / 8) + swizzle(padded, row, column / 8)) * 16 + column % 8 * 2;
}

// A power of two and 1 divided by it.
struct Scaling {
    float scale;
    float inverse;
};

// Brings numbers of at most this magnitude, given as the bits of an f32, below 2^15. The largest of them comes to
// 2^14 or more, unless it is below 2^-112.
__device__ Scaling scaling_for(unsigned magnitude) {
    int exponent = static_cast<int>(magnitude >> 23);
    int scale = min(268 - exponent, 253);
    return {__int_as_float(scale << 23), __int_as_float((254 - scale) << 23)};
}

__device__ unsigned magnitude(float4 x) {
    unsigned a = max(__float_as_uint(x.x) & MAGNITUDE, __float_as_uint(x.y) & MAGNITUDE);
    unsigned b = max(__float_as_uint(x.z) & MAGNITUDE, __float_as_uint(x.w) & MAGNITUDE);
    return max(a, b);
}

__device__ float4 times(float4 x, float y) { return make_float4(x.x * y, x.y * y, x.z * y, x.w * y); }

__device__ uint2 to_halves(float4 x) {
    __half2 a = __floats2half2_rn(x.x, x.y);
    __half2 b = __floats2half2_rn(x.z, x.w);
    return make_uint2(*reinterpret_cast<unsigned*>(&a), *reinterpret_cast<unsigned*>(&b));
}

// What is left of x after the subtraction of its f16. It is exact, and NaN if x is not finite.
__device__ float4 remainder_of(float4 x, uint2 halves) {
    float2 a = __half22float2(*reinterpret_cast<__half2*>(&halves.x));
    float2 b = __half22float2(*reinterpret_cast<__half2*>(&halves.y));
    return make_float4(x.x - a.x, x.y - a.y, x.z - b.x, x.w - b.y);
}

// A rule in terms of keys: their indices instead of their positions.
struct Versions {
    Rule rule;
    int start;

    // Keys below this one are exact.
    __device__ int sink() const { return max(rule.sink - start, 0); }

    // For the query whose own key is `own`, keys from this one on are exact. Those from the sink to here are stored.
    __device__ int first(int own) const {
        int p = start + own;
        int first = rule.chunked ? p / rule.tail * rule.tail : max(p + 1 - rule.tail, 0);
        return max(first - start, sink());
    }

    __device__ bool has_no_tail() const { return rule.chunked == 0 && rule.tail == 0; }
    __device__ bool is_never_exact() const { return rule.sink == 0 && has_no_tail(); }

    __device__ bool operator==(const Versions& x) const {
        return rule.sink == x.rule.sink && rule.chunked == x.rule.chunked && rule.tail == x.rule.tail;
    }
};

__device__ Versions versions_of(const Attention& a, const float* exact, const Rule* rules, int sequence) {
    Rule rule = {0, 0, 0};
    if (exact != nullptr) {
        rule = rules[sequence / a.batch];
    }
    return {rule, a.start};
}

// Whether any query reads this version of the key. A version that none reads may hold anything.
__device__ bool is_read(const Attention& a, const Versions& versions, int key, bool exact) {
    int first = max(key, a.keys - a.queries);
    int last = a.window > 0 && a.window <= a.keys - key ? key + a.window - 1 : a.keys - 1;
    if (key >= a.keys || first > last) {
        return false;
    }
    if (exact) {
        return key < versions.sink() || key >= versions.first(first);
    }
    return key >= versions.sink() && key < versions.first(last);
}

// A block of keys of one sequence and kv head.
struct KeyBlock {
    int sequence;
    int kv_head;
    int block;

    __device__ KeyBlock(const Attention& a, unsigned index) {
        unsigned blocks = a.key_blocks();
        block = index % blocks;
        unsigned head = index / blocks;
        kv_head = head % a.kv_heads;
        sequence = head / a.kv_heads;
    }
};

// The first element of a lane's part of a row.
__device__ int column_of(int slot) { return 4 * (slot * WARP + threadIdx.x % WARP); }

// A lane's part of a row of q, k or v that is up to 128·SLOTS wide.
template <int SLOTS>
struct Row {
    float4 x[SLOTS];

    // Zeros if the row is not read.
    __device__ void load(const float* row, int width, bool read) {
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot) {
            x[slot] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (read && column_of(slot) < width) {
                x[slot] = __ldg(reinterpret_cast<const float4*>(row + column_of(slot)));
            }
        }
    }

    __device__ void multiply(float y) {
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot) {
            x[slot] = times(x[slot], y);
        }
    }

    // The largest magnitude of this lane's part.
    __device__ unsigned peak() const {
        unsigned peak = 0;
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot) {
            peak = max(peak, magnitude(x[slot]));
        }
        return peak;
    }

    // Writes the row of a tile as high + low, after a multiplication by a power of two. Gives 1 divided by that.
    __device__ float store_split(unsigned char* high, unsigned char* low, int padded, int row, unsigned peak) const {
        Scaling scaling = scaling_for(peak);
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot) {
            if (column_of(slot) < padded) {
                int byte = tile_byte(padded, row, column_of(slot));
                float4 scaled = times(x[slot], scaling.scale);
                uint2 halves = to_halves(scaled);
                *reinterpret_cast<uint2*>(high + byte) = halves;
                *reinterpret_cast<uint2*>(low + byte) = to_halves(remainder_of(scaled, halves));
            }
        }
        return scaling.inverse;
    }
};

// One version of the keys or values of a sequence.
struct Source {
    const float* x;
    bool exact;
    Versions versions;

    __device__ bool is_never_read() const { return exact && versions.is_never_exact(); }
};

using KeyRow = Row<MAX_SLOTS>;

// Calls use(row, x) for each row of a block of keys. Each warp takes some of the rows, and has several under way.
template <class Use>
__device__ void for_each_row(const Attention& a, const Source& source, const KeyBlock& at, Use use) {
    constexpr int UNDER_WAY = 4;
    const int rows = a.block_keys();
    const long long stride = 1ll * a.kv_heads * a.head_dim;
    const float* head = source.x + 1ll * at.sequence * a.keys * stride + at.kv_head * a.head_dim;
    for (int begin = threadIdx.x / WARP; begin < rows; begin += UNDER_WAY * WARPS) {
        KeyRow x[UNDER_WAY];
#pragma unroll
        for (int i = 0; i < UNDER_WAY; ++i) {
            int key = at.block * rows + begin + i * WARPS;
            x[i].load(head + key * stride, a.head_dim, is_read(a, source.versions, key, source.exact));
        }
#pragma unroll
        for (int i = 0; i < UNDER_WAY; ++i) {
            use(begin + i * WARPS, x[i]);
        }
    }
}

__device__ Source keys_of(const Attention& a, int sequence, bool exact) {
    return {exact ? a.k_exact : a.k, exact, versions_of(a, a.k_exact, a.k_rules, sequence)};
}

__device__ Source values_of(const Attention& a, int sequence, bool exact) {
    return {exact ? a.v_exact : a.v, exact, versions_of(a, a.v_exact, a.v_rules, sequence)};
}

__device__ void pack_keys(const Attention& a, const KeyBlock& at, bool exact) {
    const Source source = keys_of(a, at.sequence, exact);
    if (source.is_never_read()) {
        return;
    }
    const int padded = a.padded(), rows = a.block_keys();
    long long head = 1ll * at.sequence * a.kv_heads + at.kv_head;
    long long tile = (head * a.k_versions() + exact) * a.key_blocks() + at.block;
    unsigned char* high = a.scratch + tile * a.key_tile_bytes();
    unsigned char* low = high + 2 * rows * padded;
    float* scales = reinterpret_cast<float*>(high + 4 * rows * padded);
    for_each_row(a, source, at, [&](int row, const KeyRow& x) {
        unsigned peak = __reduce_max_sync(WHOLE_WARP, x.peak());
        float scale = x.store_split(high, low, padded, row, peak);
        if (threadIdx.x % WARP == 0) {
            scales[row] = scale;
        }
    });
}

// The largest magnitude of the finite elements of the values of a head, from all of its blocks.
__device__ unsigned value_peak(const Attention& a, long long head) {
    const unsigned* peaks = reinterpret_cast<const unsigned*>(a.scratch + a.peaks_at()) + head * a.key_blocks();
    unsigned peak = 0;
    for (int i = threadIdx.x % WARP; i < a.key_blocks(); i += WARP) {
        peak = max(peak, peaks[i]);
    }
    return __reduce_max_sync(WHOLE_WARP, peak);
}

__device__ void pack_values(const Attention& a, const KeyBlock& at, bool exact) {
    const Source source = values_of(a, at.sequence, exact);
    if (source.is_never_read()) {
        return;
    }
    const int padded = a.padded();
    long long head = 1ll * at.sequence * a.kv_heads + at.kv_head;
    long long tile = (head * a.v_versions() + exact) * a.key_blocks() + at.block;
    unsigned char* values = a.scratch + a.value_tiles_at() + tile * a.value_tile_bytes();
    Scaling scaling = scaling_for(value_peak(a, head));
    for_each_row(a, source, at, [&](int row, const KeyRow& x) {
#pragma unroll
        for (int slot = 0; slot < MAX_SLOTS; ++slot) {
            if (column_of(slot) < padded) {
                int byte = tile_byte(padded, row, column_of(slot));
                *reinterpret_cast<uint2*>(values + byte) = to_halves(times(x.x[slot], scaling.scale));
            }
        }
    });
}

// 0 in place of what is not finite.
__device__ float4 finite_part(float4 x) {
    auto part = [](float y) { return (__float_as_uint(y) & MAGNITUDE) < INFINITE ? y : 0.0f; };
    return make_float4(part(x.x), part(x.y), part(x.z), part(x.w));
}

}  // namespace

// Grid a.tiles(), 128 threads. A block of threads looks at all versions of the values of a block of keys.
extern "C" __global__ void __launch_bounds__(THREADS) attention_peaks(const Attention a) {
    __shared__ unsigned peaks[WARPS];
    const KeyBlock at(a, blockIdx.x);
    unsigned peak = 0;
    for (int exact = 0; exact < a.v_versions(); ++exact) {
        for_each_row(a, values_of(a, at.sequence, exact != 0), at, [&](int, const KeyRow& x) {
#pragma unroll
            for (int slot = 0; slot < MAX_SLOTS; ++slot) {
                peak = max(peak, magnitude(finite_part(x.x[slot])));
            }
        });
    }
    peak = __reduce_max_sync(WHOLE_WARP, peak);
    if (threadIdx.x % WARP == 0) {
        peaks[threadIdx.x / WARP] = peak;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned* out = reinterpret_cast<unsigned*>(a.scratch + a.peaks_at());
        out[blockIdx.x] = max(max(peaks[0], peaks[1]), max(peaks[2], peaks[3]));
    }
}

// Grid (a.tiles(), 4), 128 threads. The second index says what is packed: k, its exact version, v or its exact version.
extern "C" __global__ void __launch_bounds__(THREADS) attention_pack(const Attention a) {
    const KeyBlock at(a, blockIdx.x);
    const bool exact = blockIdx.y % 2 == 1;
    if (blockIdx.y < 2) {
        if (!exact || a.k_exact != nullptr) {
            pack_keys(a, at, exact);
        }
    } else if (!exact || a.v_exact != nullptr) {
        pack_values(a, at, exact);
    }
}

namespace {

// How a block of threads divides its work. A warp has 16·M queries. G warps share the same queries: each computes all
// of their scores and one G-th of the columns of the result, because more do not fit into its registers.
template <int P, int M, int G, int B>
struct Shape {
    static constexpr int PADDED = P;
    static constexpr int ROW_TILES = M;
    static constexpr int BLOCKS = B;  // of threads, on one multiprocessor
    static constexpr int KEYS = P <= 128 ? KEYS_TO_128 : KEYS_BEYOND_128;
    static constexpr int WARP_QUERIES = 16 * M;
    static constexpr int QUERIES = WARPS / G * WARP_QUERIES;
    static_assert(QUERIES == (P <= 128 ? QUERIES_TO_128 : P <= 256 ? QUERIES_TO_256 : QUERIES_TO_512));
    static constexpr int COLUMNS = P / G;
    // The tensor cores truncate sums, which adds up if there are many terms. Then the products high·low and low·high
    // have sums of their own, and a sum ends after MAX_STEPS products of 16 columns.
    static constexpr bool SPLIT_SUMS = P > 128;

    // Shared memory: q high, q low, a tile of keys with the scales of its rows, a tile of values, the scales of q.
    static constexpr int Q_BYTES = 2 * QUERIES * P;
    static constexpr int KEY_HALF_BYTES = 2 * KEYS * P;
    static constexpr int KEY_BYTES = 2 * KEY_HALF_BYTES + 4 * KEYS;
    static constexpr int VALUE_BYTES = 2 * KEYS * P;
    static constexpr int KEYS_AT = 2 * Q_BYTES;
    static constexpr int VALUES_AT = KEYS_AT + KEY_BYTES;
    static constexpr int SCALES_AT = VALUES_AT + VALUE_BYTES;
};

__device__ void copy_16_bytes(unsigned shared, const unsigned char* global) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

__device__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

__device__ void wait_for_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Starts the copy of a tile by all threads.
template <int BYTES>
__device__ void copy_tile(unsigned shared, const unsigned char* global) {
    constexpr int CHUNKS = BYTES / 16;
#pragma unroll
    for (int i = 0; i < CHUNKS; i += THREADS) {
        int chunk = i + threadIdx.x;
        if (i + THREADS <= CHUNKS || chunk < CHUNKS) {
            copy_16_bytes(shared + 16 * chunk, global + 16 * chunk);
        }
    }
    commit_copies();
}

__device__ void load_transposed(unsigned (&x)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

// 2^x to 2^-22. 0 for -∞, and NaN for NaN.
__device__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ unsigned pair_of(float x, float y) {
    __half2 halves = __floats2half2_rn(x, y);
    return *reinterpret_cast<unsigned*>(&halves);
}

// The address of a lane's row of matrices in a swizzled tile. `row` and `chunk` belong to the lane; the chunk is 0 or
// 1. at() gives the same for a row `rows` further, a multiple of 8, and a chunk `chunks` further, an even number.
template <int P>
struct TileAddress {
    static constexpr int GROUP = P % 64 == 0 ? 8 : 4;
    unsigned row_at;
    unsigned chunk_at;

    __device__ __forceinline__ TileAddress(unsigned tile, int row, int chunk)
        : row_at(tile + row * P * 2), chunk_at(swizzle(P, row, chunk) * 16) {}

    __device__ __forceinline__ unsigned at(int rows, int chunks) const {
        int inside = chunks % GROUP;
        return row_at + (chunk_at ^ (inside * 16)) + (chunks - inside) * 16 + rows * P * 2;
    }
};

// Goes through the blocks of keys that a block of queries sees. A block that is read in more than one combination of
// versions takes one step for each of them.
template <bool VERSIONS>
struct Steps {
    int block;
    int end;
    // The combinations that are still to come in this block: bit i stands for keys that are exact if i is odd, and
    // values that are exact if i is 2 or 3.
    unsigned left;
    // Whether the block is read in more than one combination.
    bool mixed;

    __device__ __forceinline__ bool done() const { return block >= end; }
    __device__ __forceinline__ int version() const { return VERSIONS ? __ffs(left) - 1 : 0; }
    __device__ __forceinline__ bool exact_keys() const { return (version() & 1) != 0; }
    __device__ __forceinline__ bool exact_values() const { return (version() & 2) != 0; }
};

// The queries of a block of threads.
struct Queries {
    int sequence;
    int head;
    int kv_head;
    int first;  // index of the first one
    int count;
    int own;     // the own key of the first one
    int window;  // one that hides no key if there is none
    Versions k;
    Versions v;

    __device__ __forceinline__ Queries(const Attention& a, int most) {
        sequence = blockIdx.x / a.heads;
        head = blockIdx.x % a.heads;
        kv_head = head / (a.heads / a.kv_heads);
        // the last queries see the most keys, so they are started first
        first = (gridDim.y - 1 - blockIdx.y) * most;
        count = min(most, a.queries - first);
        own = a.keys - a.queries + first;
        window = a.window > 0 ? min(a.window, a.keys) : a.keys;
        k = versions_of(a, a.k_exact, a.k_rules, sequence);
        v = versions_of(a, a.v_exact, a.v_rules, sequence);
    }

    __device__ __forceinline__ int last_own() const { return own + count - 1; }

    // In which versions keys are read: bit 0 for the stored one, bit 1 for the exact one.
    __device__ __forceinline__ unsigned versions_in(const Versions& x, int begin, int end) const {
        if (end <= x.sink() || begin >= x.first(last_own())) {
            return 2;
        }
        return begin >= x.sink() && (x.has_no_tail() || end <= x.first(own)) ? 1 : 3;
    }

    // In which combinations: see `Steps`.
    __device__ __forceinline__ unsigned combinations_in(int begin, int end) const {
        unsigned of_k = versions_in(k, begin, end);
        unsigned of_v = versions_in(v, begin, end);
        unsigned all = (of_v & 1 ? of_k : 0) | (of_v & 2 ? of_k << 2 : 0);
        // under one rule for both, a key and its value are in the same version
        return k == v ? all & 0x9 : all;
    }

    template <bool VERSIONS>
    __device__ __forceinline__ void enter(Steps<VERSIONS>& step, int keys) const {
        step.left = VERSIONS ? combinations_in(step.block * keys, (step.block + 1) * keys) : 1;
        step.mixed = VERSIONS && (step.left & (step.left - 1)) != 0;
    }

    template <bool VERSIONS>
    __device__ __forceinline__ Steps<VERSIONS> steps(int keys) const {
        Steps<VERSIONS> step;
        step.block = max(own + 1 - window, 0) / keys;
        step.end = last_own() / keys + 1;
        enter(step, keys);
        return step;
    }

    template <bool VERSIONS>
    __device__ __forceinline__ Steps<VERSIONS> next(Steps<VERSIONS> step, int keys) const {
        step.left &= step.left - 1;
        if (step.left == 0) {
            ++step.block;
            enter(step, keys);
        }
        return step;
    }
};

// The numbers that a thread holds of a 16·M x 8·N matrix: in each 16x8 tile, columns 2t and 2t + 1 of rows g and g + 8,
// where g = lane/4 and t = lane%4.
template <int M, int N>
struct Fragments {
    float x[M][N][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
                x[m][n][0] = x[m][n][1] = x[m][n][2] = x[m][n][3] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ void add(const Fragments& y) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    x[m][n][i] += y.x[m][n][i];
                }
            }
        }
    }
};

// What a row of a warp sees of the keys in one step: those from `begin` to before `end`, but none from k_from to before
// k_to and none from v_from to before v_to, which other steps read.
struct Sight {
    int begin, end;
    int k_from, k_to;
    int v_from, v_to;

    __device__ __forceinline__ static bool within(int key, int from, int to) { return key >= from && key < to; }

    __device__ __forceinline__ bool sees(int key) const {
        return within(key, begin, end) && !within(key, k_from, k_to) && !within(key, v_from, v_to);
    }

    // Leaves the keys that a query reads in the version of this step: those from `from` to before `to` are stored.
    __device__ __forceinline__ void restrict_to(bool exact, int from, int to, int& hidden_from, int& hidden_to) {
        if (exact) {
            hidden_from = from;
            hidden_to = to;
        } else {
            begin = max(begin, from);
            end = min(end, to);
        }
    }
};

// A warp's part of the attention of a block of queries.
template <class S, bool VERSIONS>
struct Warp {
    static constexpr int M = S::ROW_TILES;
    static constexpr int KEY_TILES = S::KEYS / 8;
    static constexpr int COLUMN_TILES = S::COLUMNS / 8;
    using Scores = Fragments<M, KEY_TILES>;

    const Attention& a;
    const Queries& queries;
    unsigned shared;
    int lane;
    int first;   // index of the warp's first query in the block
    int count;   // how many there are, 0 or less if there is none
    int column;  // the first one

    // Scores, and then in the place of each two the high parts of their weights, as a pair of f16, and the low parts.
    Scores scores;
    Fragments<M, COLUMN_TILES> out;
    // The sum of each row's weights, in every column.
    Fragments<M, 1> sums;
    // For rows g and g + 8 of each tile: the largest score so far, and what brings a score to base 2.
    float most[M][2];
    float factor[M][2];

    __device__ __forceinline__ Warp(const Attention& a, const Queries& queries, unsigned shared)
        : a(a), queries(queries), shared(shared), lane(threadIdx.x % WARP) {
        constexpr int GROUP = S::PADDED / S::COLUMNS;
        int warp = threadIdx.x / WARP;
        first = warp / GROUP * S::WARP_QUERIES;
        count = min(S::WARP_QUERIES, queries.count - first);
        column = warp % GROUP * S::COLUMNS;
        out.clear();
        sums.clear();
#pragma unroll
        for (int m = 0; m < M; ++m) {
            most[m][0] = most[m][1] = -INFINITY;
        }
    }

    __device__ __forceinline__ int own(int query) const { return queries.own + first + query; }

    // Whether any query of the warp sees any of these keys.
    __device__ __forceinline__ bool sees(int begin) const {
        return count > 0 && begin <= own(count - 1) && begin + S::KEYS > own(0) + 1 - queries.window;
    }

    // Whether some query of the warp does not see all of these keys.
    __device__ __forceinline__ bool needs_mask(int begin) const {
        return begin + S::KEYS > own(0) + 1 || begin < own(count - 1) + 1 - queries.window;
    }

    // A product's sums depend on each other, so the tiles of as many pairs take turns.
    static constexpr int PAIRS = 2 / M;

    template <class Sums>
    __device__ __forceinline__ static void multiply_all(Sums& sums, int n, const unsigned (&q)[M][4],
                                                        const unsigned (&k)[PAIRS][4]) {
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    multiply_add(sums.x[m][n + 2 * pair + i], q[m], k[pair][2 * i], k[pair][2 * i + 1]);
                }
            }
        }
    }

    // Adds high·high + high·low + low·high for 16 columns of q and k.
    __device__ __forceinline__ void multiply_columns(Scores& large, Scores& small, int step) const {
        const TileAddress<S::PADDED> q_at(shared, first + lane % 16, lane / 16);
        const TileAddress<S::PADDED> k_at(shared + S::KEYS_AT, lane / 16 * 8 + lane % 8, lane / 8 % 2);
        unsigned high[M][4], low[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            load_matrices(high[m], q_at.at(16 * m, 2 * step));
            load_matrices(low[m], q_at.at(16 * m, 2 * step) + S::Q_BYTES);
        }
#pragma unroll
        for (int n = 0; n < KEY_TILES; n += 2 * PAIRS) {
            unsigned k_high[PAIRS][4], k_low[PAIRS][4];
#pragma unroll
            for (int pair = 0; pair < PAIRS; ++pair) {
                load_matrices(k_high[pair], k_at.at(8 * n + 16 * pair, 2 * step));
                load_matrices(k_low[pair], k_at.at(8 * n + 16 * pair, 2 * step) + S::KEY_HALF_BYTES);
            }
            multiply_all(small, n, low, k_high);
            multiply_all(small, n, high, k_low);
            multiply_all(large, n, high, k_high);
        }
    }

    // q·k of all keys of the tile, times the powers of two of both.
    __device__ __forceinline__ void multiply_keys() {
        constexpr int STEPS = S::PADDED / 16;
        scores.clear();
        if constexpr (!S::SPLIT_SUMS) {
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                multiply_columns(scores, scores, step);
            }
        } else {
            constexpr int PART = STEPS < MAX_STEPS ? STEPS : MAX_STEPS;
#pragma unroll
            for (int part = 0; part < STEPS; part += PART) {
                Scores large, small;
                large.clear();
                small.clear();
#pragma unroll
                for (int step = part; step < part + PART; ++step) {
                    multiply_columns(large, small, step);
                }
                large.add(small);
                scores.add(large);
            }
        }
    }

    // Takes the powers of two out of the scores: those of the keys here, those of the queries in `factor`, unless
    // there is a softcap.
    __device__ __forceinline__ void scale_scores(const unsigned char* memory) {
        const float* scales = reinterpret_cast<const float*>(memory + S::KEYS_AT + 2 * S::KEY_HALF_BYTES);
#pragma unroll
        for (int n = 0; n < KEY_TILES; ++n) {
            float2 scale = *reinterpret_cast<const float2*>(scales + 8 * n + lane % 4 * 2);
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    scores.x[m][n][i] *= i % 2 == 0 ? scale.x : scale.y;
                }
            }
        }
    }

    __device__ __forceinline__ float q_scale(const unsigned char* memory, int m, int half) const {
        const float* scales = reinterpret_cast<const float*>(memory + S::SCALES_AT);
        return scales[first + 16 * m + 8 * half + lane / 4];
    }

    __device__ __forceinline__ void set_factors(const unsigned char* memory) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                factor[m][half] = a.softcap > 0.0f ? LOG2_E : q_scale(memory, m, half) * LOG2_E;
            }
        }
    }

    __device__ __forceinline__ void cap_scores(const unsigned char* memory) {
        float inverse = 1.0f / a.softcap;
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float scale = q_scale(memory, m, half) * inverse;
#pragma unroll
                for (int n = 0; n < KEY_TILES; ++n) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i) {
                        scores.x[m][n][i] = a.softcap * tanhf(scores.x[m][n][i] * scale);
                    }
                }
            }
        }
    }

    __device__ __forceinline__ Sight sight(int own, const Steps<VERSIONS>& step) const {
        Sight sight = {own + 1 - queries.window, own + 1, 0, 0, 0, 0};
        if (VERSIONS && step.mixed) {
            const Versions &k = queries.k, &v = queries.v;
            sight.restrict_to(step.exact_keys(), k.sink(), k.first(own), sight.k_from, sight.k_to);
            sight.restrict_to(step.exact_values(), v.sink(), v.first(own), sight.v_from, sight.v_to);
        }
        return sight;
    }

    // Sets the scores of keys that a query does not see to -∞.
    __device__ __forceinline__ void mask(const Steps<VERSIONS>& step) {
        int key = step.block * S::KEYS + lane % 4 * 2;
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                Sight seen = sight(own(16 * m + 8 * half + lane / 4), step);
#pragma unroll
                for (int n = 0; n < KEY_TILES; ++n) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float& score = scores.x[m][n][2 * half + i];
                        score = seen.sees(key + 8 * n + i) ? score : -INFINITY;
                    }
                }
            }
        }
    }

    // Turns the scores of a pair of rows into weights, and brings the sums so far to the new largest score.
    __device__ __forceinline__ void weigh(int m, int half) {
        float largest = most[m][half];
#pragma unroll
        for (int n = 0; n < KEY_TILES; ++n) {
            largest = fmaxf(largest, fmaxf(scores.x[m][n][2 * half], scores.x[m][n][2 * half + 1]));
        }
        largest = fmaxf(largest, __shfl_xor_sync(WHOLE_WARP, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(WHOLE_WARP, largest, 2));
        // fmaxf drops NaN, but a score that is NaN has a weight that is NaN
        float f = factor[m][half];
        float before = exponent(most[m][half], f);
        float now = exponent(largest, f);
        // a row that has seen nothing has sums of 0, or of NaN, which 0·NaN keeps
        float change = most[m][half] == -INFINITY ? 0.0f : exp2_of(now - before);
        most[m][half] = largest;
#pragma unroll
        for (int n = 0; n < KEY_TILES; ++n) {
            float x = exp2_of(fmaf(scores.x[m][n][2 * half], f, now));
            float y = exp2_of(fmaf(scores.x[m][n][2 * half + 1], f, now));
            unsigned high = pair_of(x, y);
            float2 taken = __half22float2(*reinterpret_cast<__half2*>(&high));
            scores.x[m][n][2 * half] = __uint_as_float(high);
            scores.x[m][n][2 * half + 1] = __uint_as_float(pair_of(x - taken.x, y - taken.y));
        }
        sums.x[m][0][2 * half] *= change;
        sums.x[m][0][2 * half + 1] *= change;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n) {
            out.x[m][n][2 * half] *= change;
            out.x[m][n][2 * half + 1] *= change;
        }
    }

    // What is added to a score in base 2, so that the weight of the largest one is 2^14.
    __device__ __forceinline__ static float exponent(float largest, float factor) {
        return largest == -INFINITY ? 0.0f : WEIGHT_EXPONENT - largest * factor;
    }

    // Adds the weighted values of the tile.
    __device__ __forceinline__ void multiply_values() {
        constexpr unsigned ONES = 0x3c003c00;
        const TileAddress<S::PADDED> v_at(shared + S::VALUES_AT, lane / 8 % 2 * 8 + lane % 8, lane / 16);
#pragma unroll
        for (int step = 0; step < S::KEYS / 16; ++step) {
            unsigned high[M][4], low[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    high[m][i] = __float_as_uint(scores.x[m][2 * step + i / 2][i % 2 * 2]);
                    low[m][i] = __float_as_uint(scores.x[m][2 * step + i / 2][i % 2 * 2 + 1]);
                }
                multiply_add(sums.x[m][0], high[m], ONES, ONES);
                multiply_add(sums.x[m][0], low[m], ONES, ONES);
            }
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n += 2) {
                unsigned v[4];
                load_transposed(v, v_at.at(16 * step, n) + column * 2);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    multiply_add(out.x[m][n], high[m], v[0], v[1]);
                    multiply_add(out.x[m][n + 1], high[m], v[2], v[3]);
                    multiply_add(out.x[m][n], low[m], v[0], v[1]);
                    multiply_add(out.x[m][n + 1], low[m], v[2], v[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void add_values() {
#pragma unroll
        for (int m = 0; m < M; ++m) {
            weigh(m, 0);
            weigh(m, 1);
        }
        multiply_values();
    }

    // The weight of the head's own score beside those of a pair of rows. It is infinite, and the result 0, if it is more than
    // 2^100 times as large as all of them together.
    __device__ __forceinline__ float own_weight(int m, int half) const {
        if (a.own_scores == nullptr) {
            return 0.0f;
        }
        return exp2_of(fmaf(__ldg(a.own_scores + queries.head), LOG2_E, exponent(most[m][half], factor[m][half])));
    }

    __device__ __forceinline__ void store(float value_scale) const {
        long long width = 1ll * a.heads * a.head_dim;
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int query = 16 * m + 8 * half + lane / 4;
                long long row = 1ll * queries.sequence * a.queries + queries.first + first + query;
                float* to = a.out + row * width + queries.head * a.head_dim;
                float inverse = 1.0f / (sums.x[m][0][2 * half] + own_weight(m, half));
#pragma unroll
                for (int n = 0; n < COLUMN_TILES; ++n) {
                    int at = column + 8 * n + lane % 4 * 2;
                    if (query < count && at < a.head_dim) {
                        float x = out.x[m][n][2 * half] * inverse * value_scale;
                        float y = out.x[m][n][2 * half + 1] * inverse * value_scale;
                        *reinterpret_cast<float2*>(to + at) = make_float2(x, y);
                    }
                }
            }
        }
    }
};

// Splits the queries of a block, times `scale`, into high + low in shared memory. A warp takes a row at a time.
template <class S>
__device__ void load_queries(const Attention& a, const Queries& queries, unsigned char* memory) {
    constexpr int SLOTS = (S::PADDED + 4 * WARP - 1) / (4 * WARP);
    constexpr int UNDER_WAY = 8 / SLOTS;
    float* scales = reinterpret_cast<float*>(memory + S::SCALES_AT);
    const long long stride = 1ll * a.heads * a.head_dim;
    const float* q = a.q + (1ll * queries.sequence * a.queries + queries.first) * stride + queries.head * a.head_dim;
    for (int begin = threadIdx.x / WARP; begin < S::QUERIES; begin += UNDER_WAY * WARPS) {
        Row<SLOTS> x[UNDER_WAY];
#pragma unroll
        for (int i = 0; i < UNDER_WAY; ++i) {
            int row = begin + i * WARPS;
            x[i].load(q + row * stride, a.head_dim, row < queries.count);
        }
#pragma unroll
        for (int i = 0; i < UNDER_WAY; ++i) {
            int row = begin + i * WARPS;
            x[i].multiply(a.scale);
            unsigned peak = __reduce_max_sync(WHOLE_WARP, x[i].peak());
            float scale = x[i].store_split(memory, memory + S::Q_BYTES, S::PADDED, row, peak);
            if (threadIdx.x % WARP == 0) {
                scales[row] = scale;
            }
        }
    }
}

// The tiles of a head.
template <class S>
struct Tiles {
    const unsigned char* keys;
    const unsigned char* values;
    int blocks;

    __device__ Tiles(const Attention& a, long long head) {
        blocks = a.key_blocks();
        keys = a.scratch + head * a.k_versions() * blocks * S::KEY_BYTES;
        values = a.scratch + a.value_tiles_at() + head * a.v_versions() * blocks * S::VALUE_BYTES;
    }

    __device__ const unsigned char* keys_of(int block, bool exact) const {
        return keys + ((exact ? blocks : 0ll) + block) * S::KEY_BYTES;
    }

    __device__ const unsigned char* values_of(int block, bool exact) const {
        return values + ((exact ? blocks : 0ll) + block) * S::VALUE_BYTES;
    }
};

// While the scores of a tile are computed, its values arrive; while the values are added, the next keys do.
template <class S, bool VERSIONS>
__device__ void attend(const Attention& a) {
    extern __shared__ __align__(128) unsigned char memory[];
    const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(memory));
    const Queries queries(a, S::QUERIES);
    const long long head = 1ll * queries.sequence * a.kv_heads + queries.kv_head;
    const Tiles<S> tiles(a, head);
    Steps<VERSIONS> step = queries.template steps<VERSIONS>(S::KEYS);
    copy_tile<S::KEY_BYTES>(shared + S::KEYS_AT, tiles.keys_of(step.block, step.exact_keys()));
    load_queries<S>(a, queries, memory);
    Warp<S, VERSIONS> warp(a, queries, shared);
    __syncthreads();
    warp.set_factors(memory);
    while (!step.done()) {
        const int begin = step.block * S::KEYS;
        const bool sees = warp.sees(begin);
        wait_for_copies();
        __syncthreads();
        copy_tile<S::VALUE_BYTES>(shared + S::VALUES_AT, tiles.values_of(step.block, step.exact_values()));
        if (sees) {
            warp.multiply_keys();
            warp.scale_scores(memory);
            if (a.softcap > 0.0f) {
                warp.cap_scores(memory);
            }
            if (step.mixed || warp.needs_mask(begin)) {
                warp.mask(step);
            }
        }
        wait_for_copies();
        __syncthreads();
        step = queries.next(step, S::KEYS);
        if (!step.done()) {
            copy_tile<S::KEY_BYTES>(shared + S::KEYS_AT, tiles.keys_of(step.block, step.exact_keys()));
        }
        if (sees) {
            warp.add_values();
        }
    }
    warp.store(scaling_for(value_peak(a, head)).inverse);
}

using Attention64 = Shape<64, 2, 1, 2>;
using Attention96 = Shape<96, 2, 1, 2>;
using Attention128 = Shape<128, 2, 1, 2>;
using Attention192 = Shape<192, 1, 1, 2>;
using Attention256 = Shape<256, 1, 1, 2>;
using Attention512 = Shape<512, 1, 2, 1>;

}  // namespace

// Grid (sequences·heads, queries / Q rounded up), 128 threads. With the padded head dimension P = padded(), Q queries
// to a block and C = block_keys() keys to a tile, the dynamic shared memory is 4·Q·(P + 1) + 2·C·(3·P + 2) bytes:
//
//       P     64     96     128    192     256     512
//       Q    128    128     128     64      64      32
//       C     64     64      64     32      32      32
//   bytes  58112  86784  115456  86400  115072  164096
//
// More than 48 KiB have to be allowed by cudaFuncSetAttribute or cuFuncSetAttribute.
extern "C" __global__ void __launch_bounds__(THREADS, Attention64::BLOCKS)
    attention_64(const Attention a) {
    attend<Attention64, false>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention96::BLOCKS)
    attention_96(const Attention a) {
    attend<Attention96, false>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention128::BLOCKS)
    attention_128(const Attention a) {
    attend<Attention128, false>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention192::BLOCKS)
    attention_192(const Attention a) {
    attend<Attention192, false>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention256::BLOCKS)
    attention_256(const Attention a) {
    attend<Attention256, false>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention512::BLOCKS)
    attention_512(const Attention a) {
    attend<Attention512, false>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention64::BLOCKS)
    attention_64_versions(const Attention a) {
    attend<Attention64, true>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention96::BLOCKS)
    attention_96_versions(const Attention a) {
    attend<Attention96, true>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention128::BLOCKS)
    attention_128_versions(const Attention a) {
    attend<Attention128, true>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention192::BLOCKS)
    attention_192_versions(const Attention a) {
    attend<Attention192, true>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention256::BLOCKS)
    attention_256_versions(const Attention a) {
    attend<Attention256, true>(a);
}

extern "C" __global__ void __launch_bounds__(THREADS, Attention512::BLOCKS)
    attention_512_versions(const Attention a) {
    attend<Attention512, true>(a);
}
