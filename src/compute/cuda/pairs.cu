// The products of a mixture of experts, for all rows of all lanes at once and without a step on the host.
//
// `choice`, (R, 2·used), holds the experts of each row as numbers, and then their weights. R = lanes·rows, and lane 0
// is the baseline. Pair p = row·used + slot is one expert of one row, and there are P = R·used pairs. A pair is of one
// of two kinds:
//
//   whole        A pair of the baseline, and a pair of another lane whose expert the baseline's same row did not
//                choose. Its activations are two halves, x·2^s = high + low, and its sums are
//                high·Wᵀ + low·Wᵀ + high·restᵀ, where `rest` is what halves do not hold of the weights, if there is
//                such a thing.
//   difference   A pair of another lane whose expert the baseline's same row chose too. Its activations are what the
//                row differs from the baseline's, (x - x₀)·2^s in one half, its sums are d·Wᵀ, and its result is that
//                of the baseline's pair, its mate, plus these sums.
//
// The pairs are sorted by group, which is 2·expert for whole pairs and 2·expert + 1 for differences; pairs of a group
// keep their order. Everything that follows stands in this sorted order, so that a group is a dense product:
//
//   `pair_keys`, `pair_offsets`, `pair_starts`, `pair_places`, `pair_mates`   sort, in this order
//   `grouped_product`   sums, (P, out), of rows that it gathers from the halves of x, or of halves in sorted order
//   `finish_pairs`      makes numbers of sums: first of whole pairs, then of differences, which read those
//   `split_pairs`       makes halves of activations in sorted order, (P, width)
//   `weighted_sum`      adds what the experts of a row gave, (P, width) → (R, width)
//
// The halves of x are made by two calls of `split` (see there) into one buffer of 3R + rows rows: at row 0 those of
// all rows as `whole`, high halves and then low ones, and at row 2R those of the baseline and the differences.
//
// The bits of a pair depend on its row, its mate's row and the weights. Neither other lanes nor other rows matter: each
// element of a product is summed over k in steps of 16 in ascending order, wherever the pair stands in a tile.

#include "common.cuh"
#include "tensor_cores.cuh"

namespace grouped {

constexpr unsigned NONE = 0xffffffffu;

// ------------------------------------------------------------------------------------------------------ sorting pairs

// The pairs that a block sorts: 8 warps, each of which has 256 successive pairs.
constexpr int PAIRS_OF_LANE = 8;  // for the launch
constexpr int PAIRS_OF_WARP = WARP * PAIRS_OF_LANE;
constexpr int CHUNK = WARPS * PAIRS_OF_WARP;
constexpr int MOST_GROUPS = 1024;  // for the launch
// The rows of a tile of the product.
constexpr int TILE_ROWS = 128;  // for the launch

// The expert of a pair. A number that is none becomes one, so that nothing is written out of bounds.
__device__ unsigned expert_at(const float* choice, long long row, int slot, int used, int count) {
    const float expert = choice[row * 2 * used + slot];
    return min(static_cast<unsigned>(fmaxf(expert, 0.0f)), static_cast<unsigned>(count - 1));
}

// A pair's group, and in the upper 16 bits the slot of the baseline's row that has the same expert, for a difference.
__device__ unsigned key_of(const float* choice, int pair, int rows, int used, int count) {
    const int row = pair / used;
    const unsigned expert = expert_at(choice, row, pair % used, used, count);
    if (row >= rows) {
        const int baseline = row % rows;
        for (int slot = 0; slot < used; ++slot) {
            if (expert_at(choice, baseline, slot, used, count) == expert) {
                return 2 * expert + 1 + (static_cast<unsigned>(slot) << 16);
            }
        }
    }
    return 2 * expert;
}

__device__ unsigned group_of(unsigned key) { return key & 0xffffu; }

// The inclusive sum over the lanes of a warp.
__device__ unsigned warp_scan(unsigned x) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const unsigned before = __shfl_up_sync(WHOLE_WARP, x, distance);
        x += lane >= distance ? before : 0;
    }
    return x;
}

// The sum over all threads before this one, and over all threads. A barrier must stand between two uses of one
// `scratch`, which has an element for each warp.
__device__ unsigned block_scan(unsigned x, unsigned* scratch, unsigned& total) {
    const unsigned own = warp_scan(x);
    if (threadIdx.x % WARP == WARP - 1) {
        scratch[threadIdx.x / WARP] = own;
    }
    __syncthreads();
    unsigned before = 0;
    total = 0;
    for (unsigned warp = 0; warp < blockDim.x / WARP; ++warp) {
        before += warp < threadIdx.x / WARP ? scratch[warp] : 0;
        total += scratch[warp];
    }
    return before + own - x;
}

}  // namespace grouped

// The first step of sorting: the keys of pairs, and how many pairs of each group a block has.
//
// choice: (lanes·rows, 2·used), pairs = lanes·rows·used < 2^31, used ≤ 65535, 1 ≤ count ≤ 512 experts.
// keys: (pairs), scratch. counts: (2·count, blocks), scratch.
//
// Grid: blocks = ⌈pairs/2048⌉. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS) pair_keys(const float* __restrict__ choice,
                                                                unsigned* __restrict__ keys,
                                                                unsigned* __restrict__ counts, int pairs, int rows,
                                                                int used, int count) {
    using namespace grouped;
    __shared__ unsigned found[MOST_GROUPS];
    for (int group = threadIdx.x; group < 2 * count; group += THREADS) {
        found[group] = 0;
    }
    __syncthreads();
    const long long start = static_cast<long long>(blockIdx.x) * CHUNK;
#pragma unroll 4
    for (int i = threadIdx.x; i < CHUNK; i += THREADS) {
        if (start + i < pairs) {
            const int pair = static_cast<int>(start + i);
            const unsigned key = key_of(choice, pair, rows, used, count);
            keys[pair] = key;
            atomicAdd(found + group_of(key), 1);
        }
    }
    __syncthreads();
    for (int group = threadIdx.x; group < 2 * count; group += THREADS) {
        counts[static_cast<long long>(group) * gridDim.x + blockIdx.x] = found[group];
    }
}

// The second step of sorting: `counts` becomes how many pairs of the group the blocks before have, and `totals`,
// (2·count), scratch, how many pairs a group has. `blocks` is the grid of `pair_keys`.
//
// Grid: 2·count. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS) pair_offsets(unsigned* __restrict__ counts,
                                                                   unsigned* __restrict__ totals, int blocks) {
    using namespace grouped;
    __shared__ unsigned scratch[WARPS];
    counts += static_cast<long long>(blockIdx.x) * blocks;
    unsigned sum = 0;
    for (int start = 0; start < blocks; start += THREADS) {
        const int i = start + threadIdx.x;
        const unsigned own = i < blocks ? counts[i] : 0;
        unsigned total;
        const unsigned before = block_scan(own, scratch, total);
        if (i < blocks) {
            counts[i] = sum + before;
        }
        sum += total;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        totals[blockIdx.x] = sum;
    }
}

// The third step of sorting. starts: (groups + 1), where each group begins in sorted order. tiles: (groups + 1), how
// many tiles of 128 rows lie before those of the group. Both end with the sum of all. groups = 2·count ≤ 1024.
//
// Grid: 1. Block: 1024. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(grouped::MOST_GROUPS) pair_starts(const unsigned* __restrict__ totals,
                                                                               unsigned* __restrict__ starts,
                                                                               unsigned* __restrict__ tiles,
                                                                               int groups) {
    using namespace grouped;
    __shared__ unsigned scratch[2][MOST_GROUPS / WARP];
    const int group = threadIdx.x;
    const unsigned own = group < groups ? totals[group] : 0;
    unsigned total;
    const unsigned start = block_scan(own, scratch[0], total);
    unsigned all_tiles;
    const unsigned tile = block_scan((own + TILE_ROWS - 1) / TILE_ROWS, scratch[1], all_tiles);
    if (group < groups) {
        starts[group] = start;
        tiles[group] = tile;
    }
    if (group == 0) {
        starts[groups] = total;
        tiles[groups] = all_tiles;
    }
}

// The fourth step of sorting. sorted: (pairs), the pair at each place in sorted order. places: (pairs), the place of
// each pair.
//
// A warp has 32 successive pairs at a time. Those of one group stand in the order of the warp's lanes, behind those
// that this warp, the warps before it and the blocks before had.
//
// Grid: as `pair_keys`. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS)
    pair_places(const unsigned* __restrict__ keys, const unsigned* __restrict__ counts,
                const unsigned* __restrict__ starts, unsigned* __restrict__ sorted, unsigned* __restrict__ places,
                int pairs, int groups) {
    using namespace grouped;
    __shared__ unsigned next[WARPS][MOST_GROUPS];
    for (int i = threadIdx.x; i < WARPS * MOST_GROUPS; i += THREADS) {
        next[i / MOST_GROUPS][i % MOST_GROUPS] = 0;
    }
    __syncthreads();
    const int warp = threadIdx.x / WARP;
    const long long first = static_cast<long long>(blockIdx.x) * CHUNK + warp * PAIRS_OF_WARP + threadIdx.x % WARP;
    unsigned own[PAIRS_OF_LANE];
#pragma unroll
    for (int i = 0; i < PAIRS_OF_LANE; ++i) {
        const long long pair = first + i * WARP;
        own[i] = pair < pairs ? group_of(keys[pair]) : NONE;
    }
#pragma unroll
    for (int i = 0; i < PAIRS_OF_LANE; ++i) {
        if (own[i] != NONE) {
            atomicAdd(&next[warp][own[i]], 1);
        }
    }
    __syncthreads();
    for (int group = threadIdx.x; group < groups; group += THREADS) {
        unsigned place = starts[group] + counts[static_cast<long long>(group) * gridDim.x + blockIdx.x];
        for (int w = 0; w < WARPS; ++w) {
            const unsigned found = next[w][group];
            next[w][group] = place;
            place += found;
        }
    }
    __syncthreads();
    const unsigned lanes_before = (1u << (threadIdx.x % WARP)) - 1;
#pragma unroll
    for (int i = 0; i < PAIRS_OF_LANE; ++i) {
        const unsigned equals = __match_any_sync(WHOLE_WARP, own[i]);
        const unsigned rank = __popc(equals & lanes_before);
        unsigned place = 0;
        if (own[i] != NONE) {
            place = next[warp][own[i]] + rank;
        }
        __syncwarp();
        if (own[i] != NONE) {
            const unsigned pair = static_cast<unsigned>(first + i * WARP);
            if (rank == 0) {
                next[warp][own[i]] = place + __popc(equals);
            }
            sorted[place] = pair;
            places[pair] = place;
        }
        __syncwarp();
    }
}

// The last step of sorting, over places in sorted order, (pairs) each. mates: the place of the mate of a difference,
// and 0xffffffff for whole pairs. experts: the expert. high: the row of x's halves that has the pair's high half, or
// its difference; the low half stands `lanes·rows` rows behind it. A difference's row is at least 2·lanes·rows.
//
// Grid: ⌈pairs/256⌉. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS)
    pair_mates(const unsigned* __restrict__ keys, const unsigned* __restrict__ sorted,
               const unsigned* __restrict__ places, unsigned* __restrict__ mates, unsigned* __restrict__ experts,
               unsigned* __restrict__ high, int pairs, int lanes, int rows, int used) {
    using namespace grouped;
    const long long place = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
    if (place >= pairs) {
        return;
    }
    const unsigned pair = sorted[place];
    const unsigned key = keys[pair];
    const unsigned row = pair / used;
    const bool is_whole = group_of(key) % 2 == 0;
    mates[place] = is_whole ? NONE : places[row % rows * used + (key >> 16)];
    experts[place] = group_of(key) / 2;
    high[place] = is_whole ? row : 2u * lanes * rows + rows + row;
}

// ------------------------------------------------------------------------------------------------ the grouped product

namespace grouped {

constexpr int CHUNK_HALVES = 8;
constexpr int CHUNK_BYTES = 16;

// How a block computes a tile of 128 rows and `COLUMNS` columns: in steps over `DEPTH` of the width, of which `STAGES`
// are in shared memory. A warp has 64·64 of the sums. Shared memory: STAGES·STAGE_BYTES.
//
// A row of a step is a few chunks of 16 bytes. They are permuted so that the eight rows which `ldmatrix` reads at once,
// and the rows that eight threads write at once, lie in different banks.
template <int COLUMNS_, int DEPTH_, int STAGES_>
struct Tiling {
    static constexpr int COLUMNS = COLUMNS_;
    static constexpr int DEPTH = DEPTH_;
    static constexpr int STAGES = STAGES_;
    static constexpr int WARP_TILE = 64;
    static constexpr int WARPS_DOWN = TILE_ROWS / WARP_TILE;
    static constexpr int THREADS = WARP * WARPS_DOWN * (COLUMNS / WARP_TILE);
    static constexpr int CHUNKS = DEPTH / CHUNK_HALVES;
    static constexpr int ROW_BYTES = CHUNKS * CHUNK_BYTES;
    static constexpr int STAGE_BYTES = (TILE_ROWS + COLUMNS) * ROW_BYTES;
    // the rows that the threads copy at once
    static constexpr int PASS = THREADS / CHUNKS;
    static constexpr int TERM_PASSES = TILE_ROWS / PASS;
    static constexpr int WEIGHT_PASSES = COLUMNS / PASS;
    static_assert(CHUNKS == 4 || CHUNKS == 8);
    static_assert(PASS % 8 == 0 && TILE_ROWS % PASS == 0 && COLUMNS % PASS == 0);

    // Rows that are 8 apart have the same permutation.
    static __device__ int permuted(int row, int chunk) { return chunk ^ (CHUNKS == 8 ? row & 7 : (row >> 1) & 3); }
};

// What a product reads. Matrices are rows of `width` halves.
struct Factors {
    const half* terms;
    const half* weights;  // those of the tile's expert
    const half* rest;
    unsigned low;
    int width;
    int out;
};

// Copies steps of a tile to shared memory, one after the other: all of high·Wᵀ, then low·Wᵀ, and then high·restᵀ. A
// thread has one chunk of each of its rows. Rows behind the tile's last are copies of it; what is computed of them is
// not stored. What lies behind the width is filled with zeros.
template <typename T, bool ALIGNED>
struct Copier {
    const Factors& factors;
    const half* terms;
    const half* weights;
    char* shared;
    unsigned rows[T::TERM_PASSES];
    int first_column;
    int term = 0;
    int k = 0;

    // `high` is the list of all pairs' rows or null, and the tile has the places from `first` to `last`.
    __device__ Copier(const Factors& factors, char* shared, const unsigned* high, unsigned first, unsigned last,
                      int column)
        : factors(factors), terms(factors.terms), weights(factors.weights), shared(shared) {
        const int row = threadIdx.x / T::CHUNKS;
#pragma unroll
        for (int i = 0; i < T::TERM_PASSES; ++i) {
            const unsigned place = min(first + row + i * T::PASS, last);
            rows[i] = high == nullptr ? place : high[place];
        }
        first_column = column + row;
        const int chunk = T::permuted(row, threadIdx.x % T::CHUNKS);
        this->shared += row * T::ROW_BYTES + chunk * CHUNK_BYTES;
    }

    __device__ void step(int stage) {
        char* to = shared + stage * T::STAGE_BYTES;
        const int at = k + threadIdx.x % T::CHUNKS * CHUNK_HALVES;
#pragma unroll
        for (int i = 0; i < T::TERM_PASSES; ++i) {
            copy(to, terms, rows[i], at);
            to += T::PASS * T::ROW_BYTES;
        }
#pragma unroll
        for (int i = 0; i < T::WEIGHT_PASSES; ++i) {
            copy(to, weights, min(first_column + i * T::PASS, factors.out - 1), at);
            to += T::PASS * T::ROW_BYTES;
        }
        k += T::DEPTH;
        if (k >= factors.width) {
            k = 0;
            ++term;
            terms = factors.terms + (term == 1 ? static_cast<long long>(factors.low) * factors.width : 0);
            weights = term == 2 ? factors.rest : factors.weights;
        }
    }

    __device__ void copy(char* to, const half* matrix, unsigned row, int at) const {
        const half* from = matrix + static_cast<unsigned long long>(row) * static_cast<unsigned>(factors.width);
        const int left = factors.width - at;
        if constexpr (ALIGNED) {
            const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address),
                         "l"(from + (left > 0 ? at : 0)), "r"(left > 0 ? CHUNK_BYTES : 0)
                         : "memory");
        } else {
            for (int i = 0; i < CHUNK_HALVES; ++i) {
                reinterpret_cast<half*>(to)[i] = i < left ? from[at + i] : __float2half(0.0f);
            }
        }
    }
};

__device__ void end_step() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until no more than the last `COUNT` steps are still on their way, for all threads.
template <int COUNT>
__device__ void await_steps() {
    asm volatile("cp.async.wait_group %0;" ::"n"(COUNT) : "memory");
    __syncthreads();
}

// A warp's part of a tile, and what it reads of 16 of the depth: 64 rows and 64 columns in pieces of 16.
template <typename T>
struct WarpTile {
    static constexpr int PIECES = T::WARP_TILE / 16;
    float sums[PIECES][2 * PIECES][4] = {};
    unsigned terms[2][PIECES][4];
    unsigned weights[2][PIECES][4];
    unsigned terms_at;
    unsigned weights_at;
    int terms_chunk;
    int weights_chunk;

    __device__ explicit WarpTile(const char* shared) {
        const unsigned start = static_cast<unsigned>(__cvta_generic_to_shared(shared));
        const int lane = threadIdx.x % WARP;
        const int row = first_row() + lane % 16;
        const int column = first_column() + lane / 16 * 8 + lane % 8;
        terms_at = start + row * T::ROW_BYTES;
        weights_at = start + (TILE_ROWS + column) * T::ROW_BYTES;
        terms_chunk = T::permuted(row, lane / 16);
        weights_chunk = T::permuted(column, lane / 8 % 2);
    }

    static __device__ int first_row() { return threadIdx.x / WARP % T::WARPS_DOWN * T::WARP_TILE; }
    static __device__ int first_column() { return threadIdx.x / WARP / T::WARPS_DOWN * T::WARP_TILE; }

    // Reads 16 of the depth, the k-th of a stage. A chunk's permutation flips bits of its number, as 2k does.
    __device__ void load(int buffer, int stage, int k) {
        const unsigned offset = stage * T::STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            load_matrices(terms[buffer][i],
                          terms_at + offset + (terms_chunk ^ 2 * k) * CHUNK_BYTES + i * 16 * T::ROW_BYTES);
        }
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            load_matrices(weights[buffer][i],
                          weights_at + offset + (weights_chunk ^ 2 * k) * CHUNK_BYTES + i * 16 * T::ROW_BYTES);
        }
    }

    __device__ void multiply(int buffer) {
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * PIECES; ++j) {
                const auto& piece = weights[buffer][j / 2];
                multiply_add(sums[i][j], terms[buffer][i], piece[j % 2 * 2], piece[j % 2 * 2 + 1]);
            }
        }
    }

    // Stores the rows up to `rows` and the columns up to `columns` of the tile that begins at `to`, (any, out).
    __device__ void store(float* to, int rows, int columns, int out) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int i = 0; i < 2 * PIECES; ++i) {
            const int row = first_row() + i * 8 + lane / 4;
            if (row >= rows) {
                break;
            }
            float* line = to + static_cast<long long>(row) * out;
#pragma unroll
            for (int j = 0; j < 2 * PIECES; ++j) {
                const int column = first_column() + j * 8 + lane % 4 * 2;
                store_two(line + column, sums[i / 2][j][i % 2 * 2], sums[i / 2][j][i % 2 * 2 + 1], columns - column,
                          out % 2 == 0);
            }
        }
    }

    static __device__ void store_two(float* to, float first, float second, int left, bool aligned) {
        if (aligned) {
            if (left > 0) {
                __stcs(reinterpret_cast<float2*>(to), make_float2(first, second));
            }
            return;
        }
        if (left > 0) to[0] = first;
        if (left > 1) to[1] = second;
    }
};

// Copies and multiplies all steps of a tile. Steps are copied STAGES - 1 ahead. What is multiplied next is read from
// shared memory before what was read is multiplied.
template <typename T, bool ALIGNED>
__device__ void multiply_steps(WarpTile<T>& tile, Copier<T, ALIGNED>& copier, int steps) {
    constexpr int INNER = T::DEPTH / 16;
    static_assert(INNER % 2 == 0);
    for (int step = 0; step < T::STAGES - 1; ++step) {
        if (step < steps) {
            copier.step(step);
        }
        end_step();
    }
    await_steps<T::STAGES - 2>();
    tile.load(0, 0, 0);
    int stage = 0;
    for (int step = 0; step < steps; ++step) {
        const int next = stage + 1 == T::STAGES ? 0 : stage + 1;
#pragma unroll
        for (int k = 0; k < INNER; ++k) {
            if (k + 1 < INNER) {
                tile.load((k + 1) % 2, stage, k + 1);
            } else {
                // behind this, no thread reads this stage any more; the last time, what is read here is not used
                await_steps<T::STAGES - 2>();
                tile.load(0, next, 0);
            }
            if (k == 0) {
                if (step + T::STAGES - 1 < steps) {
                    copier.step(stage == 0 ? T::STAGES - 1 : stage - 1);
                }
                end_step();
            }
            tile.multiply(k % 2);
        }
        stage = next;
    }
}

template <typename T, bool ALIGNED>
__device__ void multiply_tile(Factors factors, const unsigned* high, float* sums, const unsigned* starts,
                              const unsigned* tiles, int groups) {
    // the tiles of one row of tiles come one after the other, and so do those of an expert: they run at the same time,
    // and find the terms and the weights in the cache
    const int across = (factors.out + T::COLUMNS - 1) / T::COLUMNS;
    const unsigned tile = blockIdx.x / across;
    const int column = blockIdx.x % across * T::COLUMNS;
    if (tile >= tiles[groups]) {
        return;
    }
    __shared__ int found;
    for (int group = threadIdx.x; group < groups; group += T::THREADS) {
        if (tiles[group] <= tile && tile < tiles[group + 1]) {
            found = group;
        }
    }
    __syncthreads();
    const int group = found;
    const unsigned first = starts[group] + (tile - tiles[group]) * TILE_ROWS;
    const unsigned end = starts[group + 1];
    const long long expert = static_cast<long long>(group / 2) * factors.out * factors.width;
    const bool has_rest = factors.rest != nullptr;
    factors.weights += expert;
    factors.rest += has_rest ? expert : 0;
    const int products = group % 2 == 1 ? 1 : has_rest ? 3 : 2;
    char* shared = reinterpret_cast<char*>(shared_floats());
    Copier<T, ALIGNED> copier(factors, shared, high, first, end - 1, column);
    WarpTile<T> sums_of_tile(shared);
    multiply_steps(sums_of_tile, copier, products * ((factors.width + T::DEPTH - 1) / T::DEPTH));
    sums_of_tile.store(sums + static_cast<long long>(first) * factors.out + column, end - first, factors.out - column,
                       factors.out);
}

constexpr int SMALL_COLUMNS = 128;  // for the launch
constexpr int SMALL_THREADS = 128;  // for the launch
constexpr int SMALL_BYTES = 98304;  // for the launch
constexpr int LARGE_COLUMNS = 256;  // for the launch
constexpr int LARGE_THREADS = 256;  // for the launch
constexpr int LARGE_BYTES = 147456;  // for the launch

using Small = Tiling<SMALL_COLUMNS, 64, 3>;
using Large = Tiling<LARGE_COLUMNS, 64, 3>;

static_assert(Small::THREADS == SMALL_THREADS && Small::STAGES * Small::STAGE_BYTES == SMALL_BYTES);
static_assert(Large::THREADS == LARGE_THREADS && Large::STAGES * Large::STAGE_BYTES == LARGE_BYTES);

}  // namespace grouped

// sums: (pairs, out), in sorted order. terms: (any, width) halves. high: (pairs), the rows of terms that pairs read, or
// null if they are the pairs' places; a whole pair also reads the row that stands `low` rows behind. weights:
// (count·out, width) halves. rest: like weights, or null. starts, tiles: (groups + 1), of `pair_starts`, with
// groups = 2·count. width is a multiple of 8; terms, weights and rest are aligned to 16 bytes.
//
// Grid: (⌈pairs/128⌉ + groups)·⌈out/128⌉. Block: 128. Dynamic shared memory: 98304.
extern "C" __global__ void __launch_bounds__(grouped::Small::THREADS, 2)
    grouped_product(const half* __restrict__ terms, const unsigned* __restrict__ high,
                    const half* __restrict__ weights, const half* __restrict__ rest, float* __restrict__ sums,
                    const unsigned* __restrict__ starts, const unsigned* __restrict__ tiles, unsigned low, int groups,
                    int width, int out) {
    using namespace grouped;
    multiply_tile<Small, true>({terms, weights, rest, low, width, out}, high, sums, starts, tiles, groups);
}

// `grouped_product` with tiles of 256 columns, which is faster. It gives the same bits.
//
// Grid: (⌈pairs/128⌉ + groups)·⌈out/256⌉. Block: 256. Dynamic shared memory: 147456.
extern "C" __global__ void __launch_bounds__(grouped::Large::THREADS, 1)
    grouped_product_large(const half* __restrict__ terms, const unsigned* __restrict__ high,
                          const half* __restrict__ weights, const half* __restrict__ rest, float* __restrict__ sums,
                          const unsigned* __restrict__ starts, const unsigned* __restrict__ tiles, unsigned low,
                          int groups, int width, int out) {
    using namespace grouped;
    multiply_tile<Large, true>({terms, weights, rest, low, width, out}, high, sums, starts, tiles, groups);
}

// `grouped_product` for any width, slowly.
//
// Grid: (⌈pairs/128⌉ + groups)·⌈out/128⌉. Block: 128. Dynamic shared memory: 98304.
extern "C" __global__ void __launch_bounds__(grouped::Small::THREADS, 2)
    grouped_product_of_any_width(const half* __restrict__ terms, const unsigned* __restrict__ high,
                                 const half* __restrict__ weights, const half* __restrict__ rest,
                                 float* __restrict__ sums, const unsigned* __restrict__ starts,
                                 const unsigned* __restrict__ tiles, unsigned low, int groups, int width, int out) {
    using namespace grouped;
    multiply_tile<Small, false>({terms, weights, rest, low, width, out}, high, sums, starts, tiles, groups);
}

// ---------------------------------------------------------------------------------------- rows in sorted order

namespace grouped {

// A warp works on a row: its thread t owns the groups of four elements at columns 4·(t + 32·k).
constexpr int WARP_STRIDE = GROUP * WARP;
// The groups that a thread keeps of a row that it reads twice, and those that it reads before it writes in place.
constexpr int KEPT_GROUPS = 8;
constexpr int BATCH = 4;

__device__ long long row_of_warp() {
    return static_cast<long long>(blockIdx.x) * WARPS + threadIdx.x / WARP;
}

__device__ int first_column() { return GROUP * (threadIdx.x % WARP); }

// The group of a row, or of its difference from its mate's row.
template <bool ALIGNED>
struct SplitSource {
    const float* own;
    const float* mate;  // null for a whole pair
    int width;

    __device__ float4 at(int column) const {
        const float4 v = load(own, column, width, ALIGNED);
        return mate == nullptr ? v : differences(v, load(mate, column, width, ALIGNED));
    }
};

// Splits a row and gives its scale back.
template <bool ALIGNED>
__device__ float split_by_warp(const SplitSource<ALIGNED>& row, const Terms& to, int width) {
    float4 kept[KEPT_GROUPS];
    unsigned largest = 0;
#pragma unroll
    for (int i = 0; i < KEPT_GROUPS; ++i) {
        const int column = first_column() + i * WARP_STRIDE;
        if (column < width) {
            kept[i] = row.at(column);
            largest = max(largest, magnitude(kept[i]));
        }
    }
    const int others = first_column() + KEPT_GROUPS * WARP_STRIDE;
    for (int column = others; column < width; column += WARP_STRIDE) {
        largest = max(largest, magnitude(row.at(column)));
    }
    const Power power = power_for(__reduce_max_sync(WHOLE_WARP, largest), ACTIVATION_EXPONENT);
#pragma unroll
    for (int i = 0; i < KEPT_GROUPS; ++i) {
        const int column = first_column() + i * WARP_STRIDE;
        if (column < width) {
            store_terms(to, column, width, kept[i], power);
        }
    }
    for (int column = others; column < width; column += WARP_STRIDE) {
        store_terms(to, column, width, row.at(column), power);
    }
    return power.down;
}

// Which scale is that of a place's sums.
struct RowScales {
    const unsigned* high;
    const float* whole;
    const float* different;
    unsigned first_different;

    __device__ float at(long long place, bool is_whole) const {
        const long long index = high == nullptr ? place : high[place];
        return is_whole ? whole[index] : different[index - first_different];
    }
};

template <bool ALIGNED>
__device__ void finish_by_warp(float* own, const float* mate, float scale, const float* __restrict__ column_scales,
                               int out) {
    for (int start = first_column(); start < out; start += BATCH * WARP_STRIDE) {
        float4 v[BATCH], base[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            const int column = start + i * WARP_STRIDE;
            if (column < out) {
                v[i] = load(own, column, out, ALIGNED);
                if (mate != nullptr) {
                    base[i] = load(mate, column, out, ALIGNED);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            const int column = start + i * WARP_STRIDE;
            if (column < out) {
                v[i] = unscaled(unscaled(v[i], scale), load(column_scales, column, out, ALIGNED));
                store(own, column, out, mate == nullptr ? v[i] : plus(base[i], v[i]), ALIGNED);
            }
        }
    }
}

}  // namespace grouped

// Splits activations in sorted order, y (pairs, width), by the rule of `split`. terms: (2·pairs, width) halves: row i
// is the high half of a whole pair, or the difference of row i from row mates_i, and row pairs + i is the low half of a
// whole pair; that of a difference is not written. scales: (pairs).
//
// Grid: ⌈pairs/8⌉. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS) split_pairs(const float* __restrict__ y,
                                                                  const unsigned* __restrict__ mates,
                                                                  half* __restrict__ terms, float* __restrict__ scales,
                                                                  int pairs, int width) {
    using namespace grouped;
    const long long place = row_of_warp();
    if (place >= pairs) {
        return;
    }
    const unsigned mate = mates[place];
    const bool is_whole = mate == NONE;
    const float* own = y + place * width;
    const float* base = is_whole ? nullptr : y + static_cast<long long>(mate) * width;
    const Terms to{terms + place * width, is_whole ? terms + (pairs + place) * width : nullptr};
    float scale;
    by_alignment(width, [&](auto aligned) {
        scale = split_by_warp(SplitSource<aligned.value>{own, base, width}, to, width);
    });
    if (threadIdx.x % WARP == 0) {
        scales[place] = scale;
    }
}

// Makes results of sums, (pairs, out), in place: sums·2^-s·2^-t for whole pairs if `differences` is 0, and otherwise
// the mate's result + sums·2^-s·2^-t for differences. It is launched in this order.
//
// mates, experts: (pairs), of `pair_mates`. column_scales: (count·out), the 2^-t. If high is null, the scales 2^-s of
// pairs are in sorted order: whole = different: (pairs), first_different = 0. Otherwise high is that of `pair_mates`,
// whole: (lanes·rows) and different: (lanes·rows), as `split` has made them, and first_different =
// 2·lanes·rows + rows.
//
// Grid: ⌈pairs/8⌉. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS)
    finish_pairs(float* sums, const unsigned* __restrict__ mates, const unsigned* __restrict__ experts,
                 const unsigned* __restrict__ high, const float* __restrict__ whole,
                 const float* __restrict__ different, const float* __restrict__ column_scales,
                 unsigned first_different, int pairs, int out, int differences) {
    using namespace grouped;
    const long long place = row_of_warp();
    if (place >= pairs) {
        return;
    }
    const unsigned mate = mates[place];
    const bool is_whole = mate == NONE;
    if (is_whole == (differences != 0)) {
        return;
    }
    const float scale = RowScales{high, whole, different, first_different}.at(place, is_whole);
    const float* base = is_whole ? nullptr : sums + static_cast<long long>(mate) * out;
    column_scales += static_cast<long long>(experts[place]) * out;
    by_alignment(out, [&](auto aligned) {
        finish_by_warp<aligned.value>(sums + place * out, base, scale, column_scales, out);
    });
}

namespace grouped {

constexpr int MOST_USED = 512;

// The slots of a row in the order of their experts: the places of their pairs, and their weights.
struct Summands {
    unsigned place[MOST_USED];
    float weight[MOST_USED];
};

__device__ void order_summands(Summands& summands, const float* choice, const unsigned* places, int used) {
    for (int slot = threadIdx.x; slot < used; slot += THREADS) {
        const float own = choice[slot];
        int rank = 0;
        for (int other = 0; other < used; ++other) {
            const float expert = choice[other];
            rank += expert < own || (expert == own && other < slot);
        }
        summands.place[rank] = places[slot];
        summands.weight[rank] = choice[used + slot];
    }
}

__device__ float4 add_weighted(float4 sum, float weight, float4 y) {
    return make_float4(fmaf(weight, y.x, sum.x), fmaf(weight, y.y, sum.y), fmaf(weight, y.z, sum.z),
                       fmaf(weight, y.w, sum.w));
}

}  // namespace grouped

// out: (rows, width), the sum of weight·y over a row's pairs in ascending order of their experts, each term rounded
// once with the sum so far. choice: (rows, 2·used), used ≤ 512. y: (rows·used, width) in sorted order. places:
// (rows·used).
//
// Grid: rows. Block: 256. Dynamic shared memory: none.
extern "C" __global__ void __launch_bounds__(THREADS)
    weighted_sum(const float* __restrict__ choice, const unsigned* __restrict__ places, const float* __restrict__ y,
                 float* __restrict__ out, int width, int used) {
    using namespace grouped;
    __shared__ Summands summands;
    const long long row = blockIdx.x;
    order_summands(summands, choice + row * 2 * used, places + row * used, used);
    __syncthreads();
    out += row * width;
    by_alignment(width, [&](auto aligned) {
        for (int column = GROUP * threadIdx.x; column < width; column += STRIDE) {
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
            for (int i = 0; i < used; ++i) {
                const float* from = y + static_cast<long long>(summands.place[i]) * width;
                sum = add_weighted(sum, summands.weight[i], load(from, column, width, aligned.value));
            }
            store(out, column, width, sum, aligned.value);
        }
    });
}
