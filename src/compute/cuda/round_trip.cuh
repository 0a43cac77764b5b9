// The round trip of K or V through a cache: x becomes what attention would read, decode(encode(x)).
//
// x is (sequences, tokens, heads, head_dim) in f32 and is changed in place. Each head of a token, or of a group of
// tokens, goes this way:
//
//     x - mean, divided by the head's scale, rotated by H, through the codec, rotated by H, times the scale, + mean
//
// H is the orthonormal Hadamard matrix over each `rotation` consecutive elements. Every step rounds to f32 as the
// loops for the CPU do, so the result has their bits.
//
// Groups of tokens begin at multiples of their size in each sequence. A group that is not complete stays as it is.
//
// Numbers that are not finite stay as they are, together with those that are rotated or encoded with them, so that
// no codec has to know what to do with them. If neither concerns more than 32 numbers, these are the 32 around them.
//
// The file is a template over the codec. For each codec there is one kernel:
//
//     namespace codec_q8_0 { (the codec's text) }
//     extern "C" __global__ void __launch_bounds__(THREADS, 4) kv_round_trip_q8_0(const RoundTrip task) {
//         round_trip<codec_q8_0::Codec>(task);
//     }
//
// Launch with one token a group: THREADS = 128 threads, no dynamic shared memory, and as many blocks as there are
// 4096 numbers, rounded up. Any other number of blocks gives the same result.
// Launch with more tokens a group: 128 threads, one block for each head of each group of each sequence, which is
// sequences · ceil(tokens / group) · heads, and group · (4·ceil(head_dim / 4) + 4) · 4 bytes of dynamic shared memory.

/// What a launch works on. Fields of eight bytes come first.
struct RoundTrip {
    /// (sequences, tokens, heads, head_dim).
    float* x;
    /// (heads, head_dim), or null.
    const float* mean;
    /// (heads), or null.
    const float* scales;
    /// Becomes at most `code` if a number is not finite before it is stored. May be null.
    unsigned* before;
    /// Becomes at most `code` if a number is not finite once it is read back. May be null.
    unsigned* after;
    /// Two counters: how many scales stand at a limit of their format, and how many scales there are. May be null.
    unsigned long long* clamped;
    long long sequences;
    long long tokens;
    int heads;
    int head_dim;
    /// A power of two from 16 to 1024 that divides head_dim, or 0 if numbers are not rotated.
    int rotation;
    /// What becomes of a flag, unless it is smaller already.
    unsigned code;
    /// By what codecs with one kernel differ.
    unsigned variant;
};

constexpr int ARGUMENT_BYTES = 88;  // for the launch
static_assert(sizeof(RoundTrip) == ARGUMENT_BYTES, "the launch mirrors the layout");

__device__ __forceinline__ void lower(unsigned* flag, unsigned code) {
    if (flag) {
        atomicMin(flag, code);
    }
}

// ----------------------------------------------------------------------------------------------------- four numbers

/// Four consecutive numbers.
struct Quad {
    float e[4];

    __device__ __forceinline__ bool is_finite() const {
        return ::is_finite(e[0]) && ::is_finite(e[1]) && ::is_finite(e[2]) && ::is_finite(e[3]);
    }
};

__device__ __forceinline__ Quad quad(const float4& v) { return {{v.x, v.y, v.z, v.w}}; }

__device__ __forceinline__ float4 vector(const Quad& v) { return {v.e[0], v.e[1], v.e[2], v.e[3]}; }

/// Reads numbers of which `count` exist. The others are zero. Aligned ones exist all four or not at all.
template <bool IS_ALIGNED> __device__ __forceinline__ Quad load(const float* x, int count) {
    Quad v = {};
    if constexpr (IS_ALIGNED) {
        if (count > 0) {
            v = quad(*reinterpret_cast<const float4*>(x));
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i < count) {
                v.e[i] = x[i];
            }
        }
    }
    return v;
}

/// Writes those of the numbers that exist. Gives whether they are finite.
template <bool IS_ALIGNED> __device__ __forceinline__ bool store(float* x, const Quad& v, int count) {
    if constexpr (IS_ALIGNED) {
        if (count > 0) {
            *reinterpret_cast<float4*>(x) = vector(v);
        }
        return count <= 0 || v.is_finite();
    } else {
        bool are_finite = true;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i < count) {
                x[i] = v.e[i];
                are_finite &= is_finite(v.e[i]);
            }
        }
        return are_finite;
    }
}

/// Whether every head begins at a multiple of 16 bytes.
__device__ __forceinline__ bool has_aligned_heads(const RoundTrip& task) {
    return task.head_dim % 4 == 0 && reinterpret_cast<unsigned long long>(task.x) % 16 == 0;
}

/// The mean and the scales, which are taken out of numbers on their way from memory and put back on their way there.
struct Offset {
    // null if there is none
    const float* mean;
    const float* scales;
    unsigned head_dim;
    /// How many elements a token has.
    unsigned channels;

    __device__ __forceinline__ bool is_none() const { return !mean && !scales; }

    __device__ __forceinline__ void take_out(Quad& v, unsigned channel, int count) const {
        each(v, channel, count, [this](float& v, unsigned channel, unsigned head) {
            v = mean ? v - mean[channel] : v;
            v = scales ? v / scales[head] : v;
        });
    }

    __device__ __forceinline__ void put_back(Quad& v, unsigned channel, int count) const {
        each(v, channel, count, [this](float& v, unsigned channel, unsigned head) {
            v = scales ? v * scales[head] : v;
            v = mean ? v + mean[channel] : v;
        });
    }

  private:
    /// Calls `change` with each number that exists, its channel of the token and its head. Channels go on with those of
    /// the next token.
    template <class F>
    __device__ __forceinline__ void each(Quad& v, unsigned channel, int count, F change) const {
        channel %= channels;
        unsigned head = channel / head_dim, end = (head + 1) * head_dim;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (channel == end) {
                channel = end == channels ? 0 : channel;
                head = channel == 0 ? 0 : head + 1;
                end = (head + 1) * head_dim;
            }
            if (i < count) {
                change(v.e[i], channel, head);
            }
            channel++;
        }
    }
};

__device__ __forceinline__ Offset offset_of(const RoundTrip& task) {
    return {task.mean, task.scales, (unsigned)task.head_dim, (unsigned)task.head_dim * (unsigned)task.heads};
}

// ------------------------------------------------------------------------------------- codecs of one token at a time

// Each lane holds 32 numbers, a unit. A warp fetches its 32 units with coalesced accesses and hands them to its lanes
// through shared memory, where a unit is a row of nine vectors; the ninth keeps lanes off each other's banks.

constexpr int ROW = OWN / 4 + 1;

__device__ __forceinline__ int within(long long v, int low, int high) {
    return v < low ? low : v > high ? high : (int)v;
}

/// How heads are cut into units.
struct Cut {
    /// How many elements a piece has, and how many lanes hold it.
    int width;
    int lanes;
    /// How many pieces a head has.
    int parts;
    /// Whether units follow each other in memory without a gap. Otherwise the end of a head leaves lanes half empty.
    bool is_gapless;
    long long units;
    /// How many neighbouring lanes depend on each other's numbers.
    int span;
    long long elements;
};

template <class Codec> __device__ __forceinline__ Cut cut_heads(const RoundTrip& task) {
    const long long rows = task.sequences * task.tokens * task.heads;
    Cut cut;
    cut.elements = rows * task.head_dim;
    cut.width = Codec::width(task.head_dim);
    cut.lanes = 1;
    while (cut.lanes * OWN < cut.width) {
        cut.lanes *= 2;
    }
    cut.parts = (task.head_dim + cut.width - 1) / cut.width;
    const bool fits = cut.lanes * OWN == cut.width && task.head_dim % cut.width == 0;
    cut.is_gapless = fits || (Codec::FORM == BLOCKS && Codec::BLOCK <= OWN);
    cut.units = cut.is_gapless ? (cut.elements + OWN - 1) / OWN : rows * cut.parts * cut.lanes;
    cut.span = task.rotation > cut.lanes * OWN ? task.rotation / OWN : cut.lanes;
    return cut;
}

/// Where a unit begins, and how many numbers it has.
struct Unit {
    long long start;
    int count;
};

__device__ __forceinline__ Unit unit_at(const Cut& cut, int head_dim, long long index) {
    if (cut.is_gapless) {
        return {index * OWN, within(cut.elements - index * OWN, 0, OWN)};
    }
    const long long piece = index / cut.lanes;
    const int before = (int)(index % cut.lanes) * OWN, part = (int)(piece % cut.parts);
    const int rest = head_dim - part * cut.width;
    const int count = within((rest < cut.width ? rest : cut.width) - before, 0, OWN);
    return {piece / cut.parts * head_dim + part * cut.width + before, index < cut.units ? count : 0};
}

/// Encodes and decodes what this lane holds.
template <class Codec> __device__ __forceinline__ void apply(float (&x)[OWN], const Piece& piece, float4* tile) {
    if constexpr (Codec::FORM == PIECES) {
        Codec::round_trip(x, piece);
    } else if constexpr (Codec::BLOCK <= OWN) {
#pragma unroll
        for (int from = 0; from < OWN; from += Codec::BLOCK) {
            float block[Codec::BLOCK];
#pragma unroll
            for (int i = 0; i < Codec::BLOCK; i++) {
                block[i] = x[from + i];
            }
            Codec::round_trip(block);
#pragma unroll
            for (int i = 0; i < Codec::BLOCK; i++) {
                x[from + i] = block[i];
            }
        }
    } else {
        // the first of the block's lanes works for all of them
        float* rows = reinterpret_cast<float*>(tile + lane_of_warp() * ROW);
        for (int i = 0; i < OWN; i++) {
            rows[i] = x[i];
        }
        __syncwarp();
        if (piece.index == 0) {
            float block[Codec::BLOCK];
            for (int i = 0; i < Codec::BLOCK; i++) {
                block[i] = rows[i / OWN * (4 * ROW) + i % OWN];
            }
            Codec::round_trip(block);
            for (int i = 0; i < Codec::BLOCK; i++) {
                rows[i / OWN * (4 * ROW) + i % OWN] = block[i];
            }
        }
        __syncwarp();
        for (int i = 0; i < OWN; i++) {
            x[i] = rows[i];
        }
    }
}

/// A warp's 32 units: where they are, for coalesced accesses. Turn t of 8 concerns vector lane%8 of unit 4t + lane/8.
struct Batch {
    /// The first number of the first unit.
    float* x;
    /// How many numbers there are from there on, 1024 at most, if units follow each other without a gap. Otherwise a lane
    /// says for its unit how far behind `x` it begins and how many numbers it has.
    int rest;
    int own_start;
    int own_count;
    /// The channel of the own unit's first number.
    unsigned own_channel;
    bool is_gapless;
    bool is_aligned;
    Offset offset;

    __device__ __forceinline__ int unit(int turn) const { return 4 * turn + lane_of_warp() / 8; }

    __device__ __forceinline__ int column() const { return lane_of_warp() % 8; }

    /// How many of the four numbers exist. It may be more than four, or less than zero.
    __device__ __forceinline__ int count(int turn) const {
        const int before = 4 * (32 * turn + lane_of_warp());
        return is_gapless ? rest - before : __shfl_sync(ALL_LANES, own_count, unit(turn)) - 4 * column();
    }

    __device__ __forceinline__ float* place(int turn) const {
        const int start = is_gapless ? unit(turn) * OWN : __shfl_sync(ALL_LANES, own_start, unit(turn));
        return x + (start + 4 * column());
    }

    __device__ __forceinline__ unsigned channel(int turn) const {
        return __shfl_sync(ALL_LANES, own_channel, unit(turn)) + 4 * column();
    }

    __device__ __forceinline__ float4& at(float4* tile, int turn) const { return tile[unit(turn) * ROW + column()]; }

    /// Fetches units into the tile. Gives one bit for each unit that has a number that is not finite.
    __device__ __forceinline__ unsigned fetch(float4* tile) const {
        unsigned spoiled = 0;
        if (is_aligned) {
            // all eight accesses are on their way before the first result is needed
            Quad v[8];
#pragma unroll
            for (int turn = 0; turn < 8; turn++) {
                v[turn] = load<true>(place(turn), count(turn));
            }
#pragma unroll
            for (int turn = 0; turn < 8; turn++) {
                spoiled |= (v[turn].is_finite() ? 0u : 1u) << turn;
                at(tile, turn) = vector(v[turn]);
            }
        } else {
#pragma unroll 1
            for (int turn = 0; turn < 8; turn++) {
                const Quad v = load<false>(place(turn), count(turn));
                spoiled |= (v.is_finite() ? 0u : 1u) << turn;
                at(tile, turn) = vector(v);
            }
        }
        return __any_sync(ALL_LANES, spoiled != 0) ? spoiled_units(spoiled) : 0;
    }

    /// From one bit for each turn of this lane, one bit for each unit.
    __device__ __forceinline__ unsigned spoiled_units(unsigned turns) const {
        unsigned units = 0;
#pragma unroll 1
        for (int turn = 0; turn < 8; turn++) {
            const unsigned lanes = __ballot_sync(ALL_LANES, (turns >> turn & 1u) != 0);
            for (int i = 0; i < 4; i++) {
                units |= (lanes >> (8 * i) & 0xffu ? 1u : 0u) << (4 * turn + i);
            }
        }
        return units;
    }

    /// Takes the offset out of the numbers in the tile that this lane has fetched.
    __device__ __forceinline__ void take_out(float4* tile) const {
#pragma unroll 1
        for (int turn = 0; turn < 8; turn++) {
            Quad v = quad(at(tile, turn));
            offset.take_out(v, channel(turn), count(turn));
            at(tile, turn) = vector(v);
        }
    }

    /// Puts it back into those that this lane is going to write.
    __device__ __forceinline__ void put_back(float4* tile) const {
#pragma unroll 1
        for (int turn = 0; turn < 8; turn++) {
            Quad v = quad(at(tile, turn));
            offset.put_back(v, channel(turn), count(turn));
            at(tile, turn) = vector(v);
        }
    }

    /// Writes units back, except those that have a bit in `kept`. Gives whether what this lane wrote is finite.
    __device__ __forceinline__ bool put(float4* tile, unsigned kept) const {
        bool are_finite = true;
        if (is_aligned) {
#pragma unroll
            for (int turn = 0; turn < 8; turn++) {
                const int existing = count(turn), written = kept >> unit(turn) & 1u ? 0 : existing;
                are_finite &= store<true>(place(turn), quad(at(tile, turn)), written);
            }
        } else {
#pragma unroll 1
            for (int turn = 0; turn < 8; turn++) {
                const int existing = count(turn), written = kept >> unit(turn) & 1u ? 0 : existing;
                are_finite &= store<false>(place(turn), quad(at(tile, turn)), written);
            }
        }
        return are_finite;
    }
};

/// Sets the bits of all units that depend on one that has a bit.
__device__ __forceinline__ unsigned spread(unsigned bad, int span) {
    const unsigned own = span == 32 ? ALL_LANES : (1u << span) - 1u;
    return __ballot_sync(ALL_LANES, (bad >> (lane_of_warp() & ~(span - 1)) & own) != 0);
}

template <class Codec>
__device__ __forceinline__ void round_trip_batch(const RoundTrip& task, const Cut& cut, long long first, float4* tile) {
    const Offset offset = offset_of(task);
    const Unit own = unit_at(cut, task.head_dim, first + lane_of_warp());
    const long long start = unit_at(cut, task.head_dim, first).start;
    Batch batch;
    batch.x = task.x + start;
    batch.rest = within(cut.elements - start, 0, 32 * OWN);
    batch.own_start = (int)(own.start - start);
    batch.own_count = own.count;
    batch.own_channel = offset.is_none() ? 0 : (unsigned)(own.start % offset.channels);
    batch.is_gapless = cut.is_gapless;
    batch.is_aligned = has_aligned_heads(task) && cut.width % 4 == 0;
    batch.offset = offset;
    const unsigned bad = batch.fetch(tile);
    if (!offset.is_none()) {
        batch.take_out(tile);
    }
    __syncwarp();

    float x[OWN];
    float4* row = tile + lane_of_warp() * ROW;
#pragma unroll
    for (int i = 0; i < OWN; i += 4) {
        const Quad v = quad(row[i / 4]);
        x[i] = v.e[0], x[i + 1] = v.e[1], x[i + 2] = v.e[2], x[i + 3] = v.e[3];
    }
    if (task.rotation) {
        hadamard(x, task.rotation, orthonormal(task.rotation));
    }
    apply<Codec>(x, {cut.lanes, lane_of_warp() & (cut.lanes - 1), cut.width}, tile);
    if (task.rotation) {
        hadamard(x, task.rotation, orthonormal(task.rotation));
    }
#pragma unroll
    for (int i = 0; i < OWN; i += 4) {
        row[i / 4] = {x[i], x[i + 1], x[i + 2], x[i + 3]};
    }
    __syncwarp();
    if (bad && lane_of_warp() == 0) {
        lower(task.before, task.code);
    }
    if (!offset.is_none()) {
        batch.put_back(tile);
    }
    if (!batch.put(tile, bad ? spread(bad, cut.span) : 0)) {
        lower(task.after, task.code);
    }
    __syncwarp();
}

template <class Codec> __device__ __forceinline__ void round_trip_tokens(const RoundTrip& task) {
    __shared__ float4 tiles[WARPS][32 * ROW];
    const int warp = threadIdx.x / 32;
    const Cut cut = cut_heads<Codec>(task);
    const long long step = (long long)gridDim.x * THREADS;
    for (long long unit = ((long long)blockIdx.x * WARPS + warp) * 32; unit < cut.units; unit += step) {
        round_trip_batch<Codec>(task, cut, unit, tiles[warp]);
    }
}

// -------------------------------------------------------------------------------------------- codecs of token groups

extern __shared__ float4 group_tile[];

// Rows in shared memory belong to warps: row r to warp r % WARPS. So the next two functions may follow each other without
// a barrier of the block.

/// Multiplies all numbers of all rows by `factor`.
__device__ __forceinline__ void multiply(float* x, int rows, int stride, int head_dim, float factor) {
    for (int r = threadIdx.x / 32; r < rows; r += WARPS) {
        for (int i = lane_of_warp(); i < head_dim; i += 32) {
            x[r * stride + i] *= factor;
        }
    }
    __syncwarp();
}

/// The stages of the Hadamard transform of each `size` numbers of every row, from distance `half` on.
__device__ __forceinline__ void add_and_subtract(float* x, int rows, int stride, int head_dim, int half, int size) {
    for (; half < size; half *= 2) {
        for (int r = threadIdx.x / 32; r < rows; r += WARPS) {
            for (int pair = lane_of_warp(); pair < head_dim / 2; pair += 32) {
                const int i = r * stride + 2 * pair - pair % half;
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
        __syncwarp();
    }
}

/// Multiplies each `size` numbers of every row by the orthonormal Hadamard matrix.
__device__ __forceinline__ void rotate_rows(float* x, int rows, int stride, int head_dim, int size) {
    multiply(x, rows, stride, head_dim, orthonormal(size));
    add_and_subtract(x, rows, stride, head_dim, 1, size);
    __syncthreads();
}

/// Encodes and decodes a head of a group of tokens in shared memory.
template <class Codec> __device__ __forceinline__ void apply_to_group(float* tile, int stride, const RoundTrip& task) {
    const int head_dim = task.head_dim;
    if constexpr (Codec::FORM == TILES) {
        Codec::round_trip(tile, stride, head_dim, task.variant, task.clamped);
    } else {
        constexpr int BLOCK = Codec::BLOCK;
        for (int from = threadIdx.x * BLOCK; from < head_dim; from += THREADS * BLOCK) {
            float block[Codec::GROUP * BLOCK];
#pragma unroll
            for (int i = 0; i < Codec::GROUP * BLOCK; i++) {
                block[i] = tile[i / BLOCK * stride + from + i % BLOCK];
            }
            Codec::round_trip(block);
#pragma unroll
            for (int i = 0; i < Codec::GROUP * BLOCK; i++) {
                tile[i / BLOCK * stride + from + i % BLOCK] = block[i];
            }
        }
    }
}

/// One head of a group of tokens: where it is, and how it is divided among the threads of a block. Each thread works on
/// vectors of its own until the head is rotated or encoded.
struct Group {
    /// The head of the first token, and how far from there the next token's is.
    float* x;
    long long channels;
    int rows;
    int head_dim;
    /// The head's first channel.
    unsigned channel;
    Offset offset;

    __device__ __forceinline__ int quads() const { return (head_dim + 3) / 4; }

    /// How many vectors a row of the tile has. One more than needed keeps lanes off each other's banks.
    __device__ __forceinline__ int width() const { return quads() + 1; }

    /// Fetches the group into the tile. Gives whether all numbers of this thread are finite.
    template <bool IS_ALIGNED> __device__ __forceinline__ bool fetch(float4* tile) const {
        bool are_finite = true;
#pragma unroll 8
        for (int i = threadIdx.x; i < rows * quads(); i += THREADS) {
            const int row = i / quads(), q = i % quads();
            const Quad v = load<IS_ALIGNED>(x + row * channels + 4 * q, head_dim - 4 * q);
            are_finite &= v.is_finite();
            tile[row * width() + q] = vector(v);
        }
        return are_finite;
    }

    __device__ __forceinline__ void take_out(float4* tile) const {
#pragma unroll 1
        for (int i = threadIdx.x; i < rows * quads(); i += THREADS) {
            const int row = i / quads(), q = i % quads();
            Quad v = quad(tile[row * width() + q]);
            offset.take_out(v, channel + 4 * q, head_dim - 4 * q);
            tile[row * width() + q] = vector(v);
        }
    }

    __device__ __forceinline__ void put_back(float4* tile) const {
#pragma unroll 1
        for (int i = threadIdx.x; i < rows * quads(); i += THREADS) {
            const int row = i / quads(), q = i % quads();
            Quad v = quad(tile[row * width() + q]);
            offset.put_back(v, channel + 4 * q, head_dim - 4 * q);
            tile[row * width() + q] = vector(v);
        }
    }

    /// Writes the tile back. Gives whether what this thread wrote is finite.
    template <bool IS_ALIGNED> __device__ __forceinline__ bool put(const float4* tile) const {
        bool are_finite = true;
#pragma unroll 8
        for (int i = threadIdx.x; i < rows * quads(); i += THREADS) {
            const int row = i / quads(), q = i % quads();
            const Quad v = quad(tile[row * width() + q]);
            are_finite &= store<IS_ALIGNED>(x + row * channels + 4 * q, v, head_dim - 4 * q);
        }
        return are_finite;
    }
};

/// The group that this block works on. A group that is not complete has fewer rows.
__device__ __forceinline__ Group group_of_block(const RoundTrip& task, int size) {
    const long long groups = (task.tokens + size - 1) / size, index = blockIdx.x / task.heads;
    const long long token = index % groups * size;
    Group group;
    group.channels = (long long)task.heads * task.head_dim;
    group.channel = blockIdx.x % task.heads * task.head_dim;
    group.x = task.x + (index / groups * task.tokens + token) * group.channels + group.channel;
    group.rows = within(task.tokens - token, 0, size);
    group.head_dim = task.head_dim;
    group.offset = offset_of(task);
    return group;
}

template <class Codec> __device__ __forceinline__ void round_trip_group(const RoundTrip& task) {
    const Group group = group_of_block(task, Codec::GROUP);
    const bool is_aligned = has_aligned_heads(task), has_offset = !group.offset.is_none();
    if (!__syncthreads_and(is_aligned ? group.fetch<true>(group_tile) : group.fetch<false>(group_tile))) {
        if (threadIdx.x == 0) {
            lower(task.before, task.code);
        }
        return;
    }
    if (group.rows < Codec::GROUP) {
        return;
    }
    float* tile = reinterpret_cast<float*>(group_tile);
    const int stride = 4 * group.width();
    if (has_offset) {
        group.take_out(group_tile);
        __syncthreads();
    }
    if (task.rotation) {
        rotate_rows(tile, Codec::GROUP, stride, task.head_dim, task.rotation);
    }
    apply_to_group<Codec>(tile, stride, task);
    __syncthreads();
    if (task.rotation) {
        rotate_rows(tile, Codec::GROUP, stride, task.head_dim, task.rotation);
    }
    if (has_offset) {
        group.put_back(group_tile);
    }
    if (!(is_aligned ? group.put<true>(group_tile) : group.put<false>(group_tile))) {
        lower(task.after, task.code);
    }
}

template <class Codec> __device__ __forceinline__ void round_trip(const RoundTrip& task) {
    if constexpr (Codec::GROUP == 1 && Codec::FORM != TILES) {
        round_trip_tokens<Codec>(task);
    } else {
        round_trip_group<Codec>(task);
    }
}
