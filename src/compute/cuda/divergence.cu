// How far each lane's logits are from the baseline's, summed up over a tile of the vocabulary.
//
// Let b be the baseline's logits and l a lane's, let D = l - b, and let w = e^(b - m), where m is the largest logit of
// the baseline in this tile and all earlier ones. A tile gives, for each position and lane,
//
//     W = Σ w      μ = Σ w·D / W      X = Σ w·(e^(D-μ) - 1 - (D-μ))
//
// and the largest logits. X, the excess, is a sum of terms that are never negative, so that nothing cancels in it. The
// host merges tiles and finds the KL divergence log(1 + X/W) and the lane's log-probabilities.
//
// μ is not known before the end of the row, but the row is read only once. Therefore the sums are taken around a shift
// c that is close to μ: the D of the baseline's most probable entry in the tile. With T = Σ w·(D-c), a = T/W and
// S = Σ w·(e^(D-c) - 1 - (D-c)),
//
//     μ = c + a      X = e^-a·S + W·(e^-a·(1+a) - 1)
//
// The last term is about -W·a²/2. If it is much larger than X, then S and it cancel each other. That is rare: the
// variance of D under the baseline's probabilities is at least p·a², where p is the largest of them. Those lanes, and
// lanes so far off that e^(D-c) might overflow in f32, are summed again, around μ and in f64 throughout.
//
// Sums are f32 within a warp and a segment of the row, and f64 above that, always in the same order. They depend on
// the logits of the baseline and of the one lane, and on nothing else. A lane that equals the baseline gives μ = 0 and
// X = 0 exactly. A logit of a lane that is not finite makes that lane's μ or X NaN or infinite; one of the baseline
// does that to all lanes.

#include "warp.cuh"

// The argument of the kernel. All pointers are to device memory. Accesses are of 16 bytes only where the width is a
// multiple of 4 and `logits` is aligned to 16 bytes. The result is the same in either case.
struct TileSums {
    const float* logits;      // (lanes·positions, width); lane 0 is the baseline
    const unsigned* targets;  // (positions): the tokens that the positions are to predict
    // (positions, 1 + lanes): what earlier tiles have shown, which is the baseline's largest and second largest logit
    // and then the largest logit of each other lane; -∞ before the first tile
    const float* known;
    // (positions, lanes, 6)
    // for the baseline: its largest logit in the tile, the entry of that, the second largest logit, the target's logit,
    // W and an unused 0; the first three are -∞, 0 and -∞ if no logit is above the second largest that is known
    // for other lanes: W, μ, X, the largest logit, its entry and the target's logit; the entry is 0 if that logit is
    // not above the largest that is known
    // the lowest entry of the largest logit counts; the target's logit is NaN if the target is not in the tile
    double* out;
    unsigned* flags;  // (lanes), or null: becomes at most `code` where a logit of the lane is not finite
    int lanes;
    int positions;
    int width;       // at least 1
    unsigned start;  // the vocabulary entry that the tile begins with
    unsigned code;
};

constexpr int ARGUMENT_BYTES = 64;  // for the launch
static_assert(sizeof(TileSums) == ARGUMENT_BYTES, "the launch mirrors the layout");

namespace divergence {

constexpr int THREADS = 384;  // for the launch
constexpr int WARPS = THREADS / WARP;
// How many columns a block reads at once. Thread i reads four of them, beginning with 4·i.
constexpr int STEP = 4 * THREADS;
// The shared memory for what is kept of the baseline. It lets two blocks run on a multiprocessor of Hopper.
constexpr int KEPT_BYTES = 98304;  // for the launch
static_assert(KEPT_BYTES == 8 * STEP * 8);
// How many lanes are summed at once. It is a matter of registers.
constexpr int GROUP = 3;

constexpr float INFINITE = __builtin_huge_valf();
constexpr float NOT_A_NUMBER = __builtin_nanf("");

constexpr int NUMBERS = 6;  // for the launch
// Up to here a polynomial gives e^x - 1 - x, in which the exponential would lose digits.
constexpr float SMALL = 1.0f;
// The largest D - c that is summed in f32. Above it e^(D-c) might overflow, or be multiplied by a denormal weight.
constexpr float WIDE = 60.0f;
// How many times X the term that S cancels with may be.
constexpr double CANCELLED = 16.0;

// Four neighbouring columns of a row.
struct Quad {
    float x[4];
};

__device__ Quad quad(float4 v) { return {{v.x, v.y, v.z, v.w}}; }

__device__ float4 vector(const Quad& v) { return make_float4(v.x[0], v.x[1], v.x[2], v.x[3]); }

// Whether a row has a column. Only the last columns of widths that are not multiples of 4 need the question.
template <bool ALIGNED>
__device__ bool is_there(int column, int width) {
    return ALIGNED || column < width;
}

// Columns that are read several times. Missing ones are 0.
template <bool ALIGNED>
__device__ Quad load(const float* row, int column, int width) {
    if constexpr (ALIGNED) {
        return quad(__ldg(reinterpret_cast<const float4*>(row + column)));
    } else {
        Quad v;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            v.x[k] = column + k < width ? __ldg(row + column + k) : 0.0f;
        }
        return v;
    }
}

// Columns that are read once, so that they should not drive others out of the cache. Missing ones are 0.
template <bool ALIGNED>
__device__ Quad load_once(const float* row, int column, int width) {
    if constexpr (ALIGNED) {
        return quad(__ldcs(reinterpret_cast<const float4*>(row + column)));
    } else {
        return load<false>(row, column, width);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The logits
// ---------------------------------------------------------------------------------------------------------------------

// The rows of one position, one for each lane.
struct Logits {
    const float* row;
    long long stride;
    int width;

    __device__ Logits(const TileSums& tile, int position)
        : row(tile.logits + static_cast<long long>(position) * tile.width),
          stride(static_cast<long long>(tile.positions) * tile.width),
          width(tile.width) {}

    __device__ const float* of_lane(int lane) const { return row + lane * stride; }

    template <bool ALIGNED>
    __device__ Quad baseline(int column) const {
        return load<ALIGNED>(row, column, width);
    }

    __device__ float at(int lane, int column) const { return of_lane(lane)[column]; }
};

// ---------------------------------------------------------------------------------------------------------------------
// Reductions
// ---------------------------------------------------------------------------------------------------------------------

// The sum over a block, which every thread gets. `scratch` has a number for each warp.
__device__ double block_sum(double x, double* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    double sum = 0.0;
    for (int i = 0; i < WARPS; i++) {
        sum += scratch[i];
    }
    return sum;
}

// The largest number of a warp. None of them may be NaN.
__device__ float warp_max(float x) {
    // bits that are ordered as the numbers are
    const unsigned bits = __float_as_uint(x);
    const unsigned key = __reduce_max_sync(WHOLE_WARP, bits >> 31 ? ~bits : bits | 0x80000000u);
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// The largest logit that was seen, and the first column of the first four that it is among.
struct Largest {
    float x = -INFINITE;
    int column = 0;

    __device__ void merge(Largest other) {
        if (other.x > x || (other.x == x && other.column < column)) {
            *this = other;
        }
    }

    __device__ Largest of_warp() const {
        const float most = warp_max(x);
        return {most, static_cast<int>(__reduce_min_sync(WHOLE_WARP, x == most ? static_cast<unsigned>(column) : ~0u))};
    }
};

// The column of a lane's largest logit.
__device__ int exact_column(const Logits& logits, int lane, Largest largest) {
    int column = largest.column;
    for (int k = 3; k >= 0; k--) {
        const int candidate = largest.column + k;
        if (candidate < logits.width && logits.at(lane, candidate) == largest.x) {
            column = candidate;
        }
    }
    return column;
}

// ---------------------------------------------------------------------------------------------------------------------
// The baseline
// ---------------------------------------------------------------------------------------------------------------------

struct Peak {
    Largest largest;
    // The second largest logit. It equals the largest if that occurs twice.
    float second = -INFINITE;
    // 0, or NaN if a logit is not finite.
    float zeros = 0.0f;

    __device__ void add(float x) {
        second = x > largest.x ? largest.x : fmaxf(second, x);
        largest.x = fmaxf(largest.x, x);
        zeros = fmaf(x, 0.0f, zeros);
    }

    __device__ void merge(const Peak& other) {
        second = fmaxf(fminf(largest.x, other.largest.x), fmaxf(second, other.second));
        largest.merge(other.largest);
        zeros += other.zeros;
    }

    __device__ Peak moved(int mask) const {
        Peak other;
        other.largest.x = __shfl_xor_sync(WHOLE_WARP, largest.x, mask);
        other.largest.column = __shfl_xor_sync(WHOLE_WARP, largest.column, mask);
        other.second = __shfl_xor_sync(WHOLE_WARP, second, mask);
        other.zeros = __shfl_xor_sync(WHOLE_WARP, zeros, mask);
        return other;
    }
};

// Looks at the whole row of the baseline. Every thread gets the result. `scratch` has an entry for each warp.
template <bool ALIGNED>
__device__ Peak baseline_peak(const Logits& logits, Peak* scratch) {
    Peak peak;
#pragma unroll 4
    for (int column = 4 * threadIdx.x; column < logits.width; column += STEP) {
        const Quad b = logits.baseline<ALIGNED>(column);
        const float before = peak.largest.x;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (is_there<ALIGNED>(column + k, logits.width)) {
                peak.add(b.x[k]);
            }
        }
        peak.largest.column = peak.largest.x > before ? column : peak.largest.column;
    }
#pragma unroll
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        peak.merge(peak.moved(mask));
    }
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = peak;
    }
    __syncthreads();
    peak = scratch[0];
    for (int i = 1; i < WARPS; i++) {
        peak.merge(scratch[i]);
    }
    return peak;
}

// ---------------------------------------------------------------------------------------------------------------------
// Shared memory
// ---------------------------------------------------------------------------------------------------------------------

// What a warp has summed up of a lane.
struct Partial {
    double weighted;
    double excess;
    Largest largest;
};

// The shared memory of a lane: see `LaneMemory`.
constexpr int LANE_BYTES = 296;  // for the launch
static_assert(LANE_BYTES == WARPS * sizeof(Partial) + sizeof(float) + sizeof(int));

// What a block keeps of a segment of the baseline's row: its logits and its weights. Every thread reads only what it
// has written itself.
struct Kept {
    static constexpr int SLOTS = KEPT_BYTES / 16 / 2;
    static constexpr int COLUMNS = 4 * SLOTS;
    static_assert(COLUMNS % STEP == 0, "a segment is read in whole steps");

    float4* memory;

    __device__ void write(int slot, const Quad& logits, const Quad& weights) {
        memory[slot] = vector(logits);
        memory[SLOTS + slot] = vector(weights);
    }
    __device__ Quad logits(int slot) const { return quad(memory[slot]); }
    __device__ Quad weights(int slot) const { return quad(memory[SLOTS + slot]); }
};

// What a block knows of each lane, in dynamic shared memory behind what is kept of the baseline.
struct LaneMemory {
    Partial* partials;  // (lanes, WARPS)
    float* shifts;      // (lanes)
    int* is_open;       // (lanes): whether the lane must be summed in f64

    __device__ LaneMemory(float4* memory, int lanes)
        : partials(reinterpret_cast<Partial*>(memory + KEPT_BYTES / 16)),
          shifts(reinterpret_cast<float*>(partials + lanes * WARPS)),
          is_open(reinterpret_cast<int*>(shifts + lanes)) {}

    __device__ Partial& partial(int lane, int warp) const { return partials[lane * WARPS + warp]; }
};

// Keeps a segment of the baseline's row. Gives the sum of the thread's weights.
template <bool ALIGNED>
__device__ double keep_segment(const Logits& logits, Kept kept, float max, int start, int end) {
    double sum = 0.0;
    int slot = threadIdx.x;
#pragma unroll 4
    for (int column = start + 4 * threadIdx.x; column < end; column += STEP, slot += THREADS) {
        const Quad b = logits.baseline<ALIGNED>(column);
        Quad w;
        float own = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            w.x[k] = is_there<ALIGNED>(column + k, logits.width) ? expf(b.x[k] - max) : 0.0f;
            own += w.x[k];
        }
        sum += own;
        kept.write(slot, b, w);
    }
    return sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// The other lanes
// ---------------------------------------------------------------------------------------------------------------------

// (e^x - 1 - x)/x² for |x| ≤ SMALL, to about 2e-7 of its value. It is the polynomial whose largest relative error there
// is the least.
__device__ float series(float x) {
    float y = 2.49608234e-5f;
    y = fmaf(y, x, 2.03254838e-4f);
    y = fmaf(y, x, 1.38913352e-3f);
    y = fmaf(y, x, 8.33093048e-3f);
    y = fmaf(y, x, 4.16665156e-2f);
    y = fmaf(y, x, 0.166666962f);
    return fmaf(y, x, 0.5f);
}

// What a thread has summed up of a lane.
struct LaneSum {
    float weighted = 0.0f;
    float excess = 0.0f;
    Largest largest;

    // Rounding is spelled out, because this is compiled for each number of lanes that are summed at once, and all must
    // give the same bits.
    template <bool ALIGNED>
    __device__ void add(const Quad& l, const Quad& b, const Quad& w, float shift, int column, int width) {
        Quad t, u;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const bool there = is_there<ALIGNED>(column + k, width);
            t.x[k] = there ? __fsub_rn(__fsub_rn(l.x[k], b.x[k]), shift) : 0.0f;
            u.x[k] = __fmul_rn(w.x[k], t.x[k]);
            weighted = __fadd_rn(weighted, u.x[k]);
        }
        float most = l.x[0];
        float widest = fabsf(t.x[0]);
#pragma unroll
        for (int k = 1; k < 4; k++) {
            most = is_there<ALIGNED>(column + k, width) ? fmaxf(most, l.x[k]) : most;
            widest = fmaxf(widest, fabsf(t.x[k]));
        }
        largest.column = most > largest.x ? column : largest.column;
        largest.x = fmaxf(largest.x, most);
        if (widest > SMALL) {
            add_any(t, u, w);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                excess = fmaf(__fmul_rn(u.x[k], t.x[k]), series(t.x[k]), excess);
            }
        }
    }

    // Adds terms that may be far off. One that is too far breaks the sum, so that the lane is summed in f64. Columns do
    // not go different ways, because that would send most warps both ways.
    __device__ void add_any(const Quad& t, const Quad& u, const Quad& w) {
        float farthest = t.x[0];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const bool is_far = fabsf(t.x[k]) > SMALL;
            const float far = __fsub_rn(__fsub_rn(expf(t.x[k]), 1.0f), t.x[k]);
            const float near = series(t.x[k]);
            excess = fmaf(is_far ? w.x[k] : __fmul_rn(u.x[k], t.x[k]), is_far ? far : near, excess);
            farthest = fmaxf(farthest, t.x[k]);
        }
        if (farthest > WIDE) {
            excess = INFINITE;
        }
    }
};

// Adds up a segment of some lanes, and merges it into what the warp has of them.
template <int COUNT, bool ALIGNED>
__device__ __noinline__ void add_lanes(
    Logits logits, Kept kept, LaneMemory memory, int lane, int start, int end) {
    const float* rows[COUNT];
    float shifts[COUNT];
    LaneSum sums[COUNT];
    Quad next[COUNT];
    int column = start + 4 * threadIdx.x;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        rows[i] = logits.of_lane(lane + i);
        shifts[i] = memory.shifts[lane + i];
        if (column < end) {
            next[i] = load_once<ALIGNED>(rows[i], column, logits.width);
        }
    }
    for (int slot = threadIdx.x; column < end; column += STEP, slot += THREADS) {
        const Quad b = kept.logits(slot), w = kept.weights(slot);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const Quad l = next[i];
            // the next columns are on their way while these are summed
            if (column + STEP < end) {
                next[i] = load_once<ALIGNED>(rows[i], column + STEP, logits.width);
            }
            sums[i].template add<ALIGNED>(l, b, w, shifts[i], column, logits.width);
        }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const float weighted = warp_sum(sums[i].weighted), excess = warp_sum(sums[i].excess);
        const Largest largest = sums[i].largest.of_warp();
        if (threadIdx.x % WARP == 0) {
            Partial& partial = memory.partial(lane + i, threadIdx.x / WARP);
            partial.weighted += weighted;
            partial.excess += excess;
            partial.largest.merge(largest);
        }
    }
}

template <bool ALIGNED>
__device__ void add_all_lanes(
    const Logits& logits, Kept kept, LaneMemory memory, int lanes, int start, int end) {
    int lane = 1;
    for (; lane + GROUP <= lanes; lane += GROUP) {
        add_lanes<GROUP, ALIGNED>(logits, kept, memory, lane, start, end);
    }
    if (lane + 2 == lanes) {
        add_lanes<2, ALIGNED>(logits, kept, memory, lane, start, end);
    } else if (lane + 1 == lanes) {
        add_lanes<1, ALIGNED>(logits, kept, memory, lane, start, end);
    }
    static_assert(GROUP == 3, "one or two lanes may be left");
}

// ---------------------------------------------------------------------------------------------------------------------
// The result
// ---------------------------------------------------------------------------------------------------------------------

struct Moments {
    double mean;
    double excess;
    // Whether the lane's logits are. It is true if nobody looked, because then the sums are finite.
    bool is_finite;
};

// e^x - 1 - x
__device__ double excess_of(double x) { return expm1(x) - x; }

// The sums of a lane in f64 throughout, with weights relative to the baseline's largest logit in the tile. All threads
// of the block call this, and get the result.
__device__ __noinline__ Moments in_f64(Logits logits, int lane, float max, double* scratch) {
    double weight = 0.0, weighted = 0.0, zeros = 0.0;
    for (int column = threadIdx.x; column < logits.width; column += THREADS) {
        const double b = logits.at(0, column), l = logits.at(lane, column);
        const double w = exp(b - max);
        weight += w;
        weighted += w * (l - b);
        zeros += l * 0.0;
    }
    const bool is_finite = block_sum(zeros, scratch) == 0.0;
    weight = block_sum(weight, scratch);
    const double mean = block_sum(weighted, scratch) / weight;
    double excess = 0.0;
    for (int column = threadIdx.x; column < logits.width; column += THREADS) {
        const double b = logits.at(0, column), l = logits.at(lane, column);
        const double x = l - b - mean;
        const double w = exp(b - max);
        // w·e^x in one step overflows only if the result does
        excess += x > 1.0 ? exp(b - max + x) - w * (1.0 + x) : w * excess_of(x);
    }
    return {mean, block_sum(excess, scratch), is_finite};
}

// A lane's sums from those of its warps. All threads of a warp call this, and get the result.
__device__ Partial merged(const Partial* partials) {
    const int i = threadIdx.x % WARP;
    const Partial own = i < WARPS ? partials[i] : Partial{0.0, 0.0, Largest{}};
    return {warp_sum(own.weighted), warp_sum(own.excess), own.largest.of_warp()};
}

// Moves the sums from the shift to the mean. Gives false if too little is left of them.
__device__ bool moved_to_mean(const Partial& sums, double weight, float shift, Moments* moments) {
    const double a = sums.weighted / weight;
    // W·(e^-a·(1+a) - 1), which is never above 0
    const double moved = weight * (excess_of(-a) + a * expm1(-a));
    const double excess = exp(-a) * sums.excess + moved;
    *moments = {shift + a, excess, true};
    // NaN fails this
    return excess < INFINITE && excess * CANCELLED >= -moved;
}

__device__ double target_logit(const Logits& logits, const TileSums& tile, int position, int lane) {
    const unsigned column = tile.targets[position] - tile.start;
    return column < static_cast<unsigned>(tile.width) ? logits.at(lane, static_cast<int>(column)) : NOT_A_NUMBER;
}

__device__ double* numbers(const TileSums& tile, int position, int lane) {
    return tile.out + (static_cast<long long>(position) * tile.lanes + lane) * NUMBERS;
}

__device__ float known(const TileSums& tile, int position, int which) {
    return tile.known[static_cast<long long>(position) * (1 + tile.lanes) + which];
}

__device__ void raise_flag(const TileSums& tile, int lane) {
    if (tile.flags != nullptr) {
        atomicMin(&tile.flags[lane], tile.code);
    }
}

// What is known of the baseline after the whole row.
struct Baseline {
    Peak peak;
    // The column of the largest logit.
    int top;
    // The sum of the weights relative to the tile's largest logit, and what takes such weights to the scale of all
    // tiles so far.
    double weight;
    double faint;

    __device__ bool is_finite() const { return peak.zeros == 0.0f; }
};

// Writes the baseline's numbers. One thread calls this.
__device__ void write_baseline(const Logits& logits, const TileSums& tile, int position, const Baseline& base) {
    const bool matters = base.peak.largest.x > known(tile, position, 1);
    double* out = numbers(tile, position, 0);
    out[0] = matters ? base.peak.largest.x : -INFINITE;
    out[1] = matters ? tile.start + base.top : 0u;
    out[2] = matters ? base.peak.second : -INFINITE;
    out[3] = target_logit(logits, tile, position, 0);
    out[4] = base.weight * base.faint;
    out[5] = 0.0;
    if (!base.is_finite()) {
        raise_flag(tile, 0);
    }
}

// Writes a lane's numbers. One thread calls this.
__device__ void write_lane(
    const Logits& logits, const TileSums& tile, int position, int lane, const Baseline& base, const Moments& moments,
    Largest largest) {
    // the tile counts for nothing, and 0·∞ would be NaN
    const bool nothing = base.faint == 0.0 && base.is_finite() && moments.is_finite;
    const bool matters = largest.x > known(tile, position, 1 + lane);
    double* out = numbers(tile, position, lane);
    out[0] = nothing ? 0.0 : base.weight * base.faint;
    out[1] = nothing ? 0.0 : moments.mean;
    out[2] = nothing ? 0.0 : moments.excess * base.faint;
    out[3] = largest.x;
    out[4] = matters ? tile.start + exact_column(logits, lane, largest) : 0u;
    out[5] = target_logit(logits, tile, position, lane);
    if (!moments.is_finite) {
        raise_flag(tile, lane);
    }
}

// Makes the shared memory ready for sums around the logits' differences at `top`, the baseline's most probable entry.
__device__ void begin_lanes(const Logits& logits, LaneMemory memory, int lanes, int top) {
    for (int lane = threadIdx.x; lane < lanes; lane += THREADS) {
        memory.shifts[lane] = __fsub_rn(logits.at(lane, top), logits.at(0, top));
    }
    for (int i = threadIdx.x; i < lanes * WARPS; i += THREADS) {
        memory.partials[i] = {0.0, 0.0, Largest{}};
    }
    __syncthreads();
}

// Writes the numbers of all lanes but the baseline, from the sums of their warps.
__device__ void end_lanes(
    const Logits& logits, const TileSums& tile, int position, LaneMemory memory, const Baseline& base,
    double* scratch) {
    __syncthreads();
    for (int lane = 1 + threadIdx.x / WARP; lane < tile.lanes; lane += WARPS) {
        const Partial sums = merged(&memory.partial(lane, 0));
        Moments moments;
        const bool is_done = moved_to_mean(sums, base.weight, memory.shifts[lane], &moments);
        if (threadIdx.x % WARP == 0) {
            memory.is_open[lane] = !is_done;
            if (is_done) {
                write_lane(logits, tile, position, lane, base, moments, sums.largest);
            }
        }
    }
    __syncthreads();
    for (int lane = 1; lane < tile.lanes; lane++) {
        if (memory.is_open[lane]) {
            const Moments moments = in_f64(logits, lane, base.peak.largest.x, scratch);
            const Partial sums = merged(&memory.partial(lane, 0));
            if (threadIdx.x == 0) {
                write_lane(logits, tile, position, lane, base, moments, sums.largest);
            }
        }
    }
}

template <bool ALIGNED>
__device__ void sum_up(const TileSums& tile, float4* memory) {
    const int position = blockIdx.x;
    const Logits logits(tile, position);
    const Kept kept = {memory};
    const LaneMemory lanes(memory, tile.lanes);
    // what is kept of the baseline is not there yet, or not needed any more, whenever the scratch is in use
    Baseline base;
    base.peak = baseline_peak<ALIGNED>(logits, reinterpret_cast<Peak*>(memory));
    base.top = exact_column(logits, 0, base.peak.largest);
    begin_lanes(logits, lanes, tile.lanes, base.top);
    double weight = 0.0;
    for (int start = 0; start < tile.width; start += Kept::COLUMNS) {
        const int end = min(start + Kept::COLUMNS, tile.width);
        weight += keep_segment<ALIGNED>(logits, kept, base.peak.largest.x, start, end);
        add_all_lanes<ALIGNED>(logits, kept, lanes, tile.lanes, start, end);
    }
    double* scratch = reinterpret_cast<double*>(memory);
    base.weight = block_sum(weight, scratch);
    const float before = known(tile, position, 0);
    const float largest = base.peak.largest.x > before ? base.peak.largest.x : before;
    base.faint = exp(static_cast<double>(base.peak.largest.x) - static_cast<double>(largest));
    if (threadIdx.x == 0) {
        write_baseline(logits, tile, position, base);
    }
    end_lanes(logits, tile, position, lanes, base, scratch);
}

__device__ void sum_up_tile(const TileSums& tile) {
    extern __shared__ float4 memory[];
    const bool is_aligned = tile.width % 4 == 0 && reinterpret_cast<unsigned long long>(tile.logits) % 16 == 0;
    if (is_aligned) {
        sum_up<true>(tile, memory);
    } else {
        sum_up<false>(tile, memory);
    }
}

}  // namespace divergence

// The kernel is launched with
//
//     grid (positions), block THREADS, dynamic shared memory KEPT_BYTES + LANE_BYTES·lanes bytes
//
// which needs cudaFuncAttributeMaxDynamicSharedMemorySize to be raised. There may be up to 400 lanes, and up to 50 of
// them let two blocks run on a multiprocessor of Hopper, if cudaFuncAttributePreferredSharedMemoryCarveout is 100.

extern "C" __global__ void __launch_bounds__(divergence::THREADS, 2) tile_sums(const TileSums tile) {
    divergence::sum_up_tile(tile);
}
