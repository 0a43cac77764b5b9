// codec kvarn: Kvarn<Keys>
// codec kvarn/values: Kvarn<Values>
//
// kvarn8 to kvarn2 with their variants, as in kvarn.rs: 128 tokens of a head, or 128 channels of them, form a tile, which is
// divided by a scale for each row and for each column before its rows are rounded. Rows are channels in K and tokens in V.
//
// Heads of 64, 128 and 256 are taken, as kvarn.rs says. A tile of 128 tokens of a head of 512 is larger than shared
// memory.
//
// All variants share one kernel for K and one for V, because a kernel takes long to compile. Behind this text stands which
// of them `Codec` is.

constexpr int TOKENS = 128, SLICE = 128;

/// The longest side of a tile.
constexpr int LONGEST = 256;

/// How many partial sums of a row run side by side.
constexpr int PARTIAL = 8;

constexpr float LEAST_DEVIATION = 1e-3f, LARGEST_DEVIATION = 1e3f;
constexpr float LEAST_LOG = -0.3f, LARGEST_LOG = 10.0f;
constexpr float SMALLEST_STEP = 1e-10f;

constexpr double LN_2 = 0.69314718055994530942, LN_2_REST = 2.3190468138462995584e-17;

/// e^x for x from LEAST_LOG to LARGEST_LOG, correctly rounded: for these x the error of the f64 before the last rounding
/// is too small to change the f32.
__device__ __forceinline__ float exponential(float x) {
    const double n = rint((double)x * 1.4426950408889634074);
    const double r = fma(-n, LN_2_REST, fma(-n, LN_2, (double)x));
    // the coefficients of the exponential series
    double q = 1.6059043836821614599e-10;
    q = fma(q, r, 2.0876756987868098979e-09);
    q = fma(q, r, 2.5052108385441718775e-08);
    q = fma(q, r, 2.7557319223985890653e-07);
    q = fma(q, r, 2.7557319223985890653e-06);
    q = fma(q, r, 2.4801587301587301587e-05);
    q = fma(q, r, 1.9841269841269841270e-04);
    q = fma(q, r, 1.3888888888888888889e-03);
    q = fma(q, r, 8.3333333333333333333e-03);
    q = fma(q, r, 4.1666666666666666667e-02);
    q = fma(q, r, 1.6666666666666666667e-01);
    q = fma(q, r, 0.5);
    const double power = __longlong_as_double((long long)(n + 1023.0) << 52);
    return (float)((1.0 + fma(r * r, q, r)) * power);
}

/// ln x for x from LEAST_DEVIATION to LARGEST_DEVIATION, correctly rounded in the same sense.
__device__ __forceinline__ float logarithm(float x) {
    const unsigned shifted = to_bits(x) - 0x3f3504f3u;
    // x = 2^k·m with m from √½ to √2
    const int k = (int)shifted >> 23;
    const double m = (double)from_bits(to_bits(x) - ((unsigned)k << 23));
    const double f = m - 1.0, s = f / (2.0 + f), z = s * s;
    // ln m = 2s + s·z·(2/3 + z·(2/5 + …))
    double q = 2.0 / 27.0;
    q = fma(q, z, 2.0 / 25.0);
    q = fma(q, z, 2.0 / 23.0);
    q = fma(q, z, 2.0 / 21.0);
    q = fma(q, z, 2.0 / 19.0);
    q = fma(q, z, 2.0 / 17.0);
    q = fma(q, z, 2.0 / 15.0);
    q = fma(q, z, 2.0 / 13.0);
    q = fma(q, z, 2.0 / 11.0);
    q = fma(q, z, 2.0 / 9.0);
    q = fma(q, z, 2.0 / 7.0);
    q = fma(q, z, 2.0 / 5.0);
    q = fma(q, z, 2.0 / 3.0);
    const double ln_m = f - s * (f - z * q);
    return (float)fma((double)k, LN_2, fma((double)k, LN_2_REST, ln_m));
}

/// What shared memory holds of a tile beside its numbers: a number for every row and every column, several times.
struct Sides {
    float rows[LONGEST];
    float columns[LONGEST];
};

/// The largest deviation divided by the smallest one.
__device__ __forceinline__ float spread(const float* deviations, int count) {
    Range all;
    for (int i = 0; i < count; i++) {
        all.take(deviations[i]);
    }
    return all.high / fmaxf(all.low, 1e-8f);
}

/// The sample standard deviation of `count` numbers, from their sum and the sum of their squares.
__device__ __forceinline__ float deviation(double sum, double squares, int count) {
    const double n = count, mean = sum / n;
    return (float)sqrt(fmax((squares - n * mean * mean) / (n - 1.0), 0.0));
}

/// In K, the tile's rows are channels. In V they are tokens.
struct Keys {
    static __device__ __forceinline__ int rows(int channels) { return channels; }
    static __device__ __forceinline__ int columns(int) { return TOKENS; }
    static __device__ __forceinline__ int place(int row, int column, int stride) { return column * stride + row; }
};

struct Values {
    static __device__ __forceinline__ int rows(int) { return TOKENS; }
    static __device__ __forceinline__ int columns(int channels) { return channels; }
    static __device__ __forceinline__ int place(int row, int column, int stride) { return row * stride + column; }
};

/// A tile in shared memory. All threads call its functions together, and each works on rows and columns of its own.
template <class Side> struct Tile {
    float* numbers;
    int stride;
    int rows;
    int columns;
    /// What the numbers are divided by, the logarithms of that, the best ones so far, and the deviations of the quotients.
    Sides* scales;
    Sides* logs;
    Sides* best;
    Sides* deviations;

    __device__ __forceinline__ float& at(int row, int column) const { return numbers[Side::place(row, column, stride)]; }

    __device__ __forceinline__ float quotient(int row, int column) const {
        return at(row, column) / (scales->columns[column] * scales->rows[row]);
    }

    __device__ void start() const {
        for (int i = threadIdx.x; i < LONGEST; i += THREADS) {
            scales->rows[i] = scales->columns[i] = 1.0f;
            logs->rows[i] = logs->columns[i] = 0.0f;
            best->rows[i] = best->columns[i] = 0.0f;
        }
        __syncthreads();
        find_column_deviations();
        find_row_deviations();
        __syncthreads();
    }

    __device__ void find_column_deviations() const {
        for (int c = threadIdx.x; c < columns; c += THREADS) {
            double sum = 0.0, squares = 0.0;
            for (int r = 0; r < rows; r++) {
                const double v = quotient(r, c);
                sum += v;
                squares += v * v;
            }
            deviations->columns[c] = deviation(sum, squares, rows);
        }
    }

    __device__ void find_row_deviations() const {
        for (int r = threadIdx.x; r < rows; r += THREADS) {
            double sums[PARTIAL] = {}, squares[PARTIAL] = {};
            for (int from = 0; from < columns; from += PARTIAL) {
#pragma unroll
                for (int i = 0; i < PARTIAL; i++) {
                    const double v = quotient(r, from + i);
                    sums[i] += v;
                    squares[i] += v * v;
                }
            }
            double sum = -0.0, square = -0.0;
#pragma unroll
            for (int i = 0; i < PARTIAL; i++) {
                sum += sums[i];
                square += squares[i];
            }
            deviations->rows[r] = deviation(sum, square, columns);
        }
    }

    /// Adds the logarithms of the deviations, within the limits of scales.
    static __device__ void grow(float* logs, float* scales, const float* deviations, int count) {
        for (int i = threadIdx.x; i < count; i += THREADS) {
            const float step = logarithm(clamp(deviations[i], LEAST_DEVIATION, LARGEST_DEVIATION));
            logs[i] = clamp(logs[i] + step, LEAST_LOG, LARGEST_LOG);
            scales[i] = exponential(logs[i]);
        }
        __syncthreads();
    }

    __device__ float imbalance() const { return spread(deviations->columns, columns) + spread(deviations->rows, rows); }

    /// Finds the scales that make rows and columns most alike. If several are equally good, the last ones win.
    __device__ void balance(int iterations) const {
        start();
        float least = imbalance();
        for (int iteration = 0; iteration < iterations; iteration++) {
            grow(logs->columns, scales->columns, deviations->columns, columns);
            find_row_deviations();
            __syncthreads();
            grow(logs->rows, scales->rows, deviations->rows, rows);
            find_column_deviations();
            find_row_deviations();
            __syncthreads();
            const float now = imbalance();
            if (now <= least) {
                least = now;
                for (int i = threadIdx.x; i < LONGEST; i += THREADS) {
                    best->rows[i] = logs->rows[i];
                    best->columns[i] = logs->columns[i];
                }
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < LONGEST; i += THREADS) {
            scales->rows[i] = exponential(best->rows[i]);
            scales->columns[i] = exponential(best->columns[i]);
        }
        __syncthreads();
    }

    /// Replaces the numbers by what is read of them, with codes up to `top`.
    __device__ void round(float top) const {
        for (int r = threadIdx.x; r < rows; r += THREADS) {
            Range all;
            for (int c = 0; c < columns; c++) {
                all.take(quotient(r, c));
            }
            const float step = fmaxf((all.high - all.low) / top, SMALLEST_STEP), scale = scales->rows[r];
            const float stored_step = in_half(scale * step), stored_low = in_half(scale * all.low);
            for (int c = 0; c < columns; c++) {
                const int code = to_u8(clamp(roundf((quotient(r, c) - all.low) / step), 0.0f, top));
                at(r, c) = ((float)code * stored_step + stored_low) * in_half(scales->columns[c]);
            }
        }
        __syncthreads();
    }

    /// Counts the scales that are as small as they may be, and all of them.
    __device__ void count(unsigned long long* clamped) const {
        unsigned long long at_limit = 0;
        for (int r = threadIdx.x; r < rows; r += THREADS) {
            at_limit += best->rows[r] == LEAST_LOG ? 1 : 0;
        }
        for (int c = threadIdx.x; c < columns; c += THREADS) {
            at_limit += best->columns[c] == LEAST_LOG ? 1 : 0;
        }
        if (at_limit > 0) {
            atomicAdd(&clamped[0], at_limit);
        }
        if (threadIdx.x == 0) {
            atomicAdd(&clamped[1], (unsigned long long)(rows + columns));
        }
    }
};

/// Multiplies heads by the orthonormal Hadamard matrix: first within their slices, then across them. The factors come
/// last.
__device__ __forceinline__ void rotate(float* x, int stride, int head_dim) {
    const int slice = head_dim < SLICE ? head_dim : SLICE;
    add_and_subtract(x, TOKENS, stride, head_dim, 1, slice);
    multiply(x, TOKENS, stride, head_dim, (float)(1.0 / sqrt((double)slice)));
    if (head_dim > slice) {
        add_and_subtract(x, TOKENS, stride, head_dim, slice, head_dim);
        multiply(x, TOKENS, stride, head_dim, (float)(1.0 / sqrt((double)(head_dim / slice))));
    }
    __syncthreads();
}

template <class Side> struct Kvarn : Tiles<TOKENS> {
    /// The lowest byte of `variant` is the number of bits, the next one that of iterations, and the third one says whether
    /// a head is one tile.
    static __device__ void round_trip(float* x, int stride, int head_dim, unsigned variant, unsigned long long* clamped) {
        const int bits = variant & 0xffu, iterations = variant >> 8 & 0xffu;
        const bool is_whole = variant >> 16 != 0;
        __shared__ Sides scales, logs, best, deviations;
        rotate(x, stride, head_dim);
        for (int i = threadIdx.x; i < TOKENS * head_dim; i += THREADS) {
            float& v = x[i / head_dim * stride + i % head_dim];
            v = in_half(v);
        }
        __syncthreads();
        const int channels = is_whole || head_dim < SLICE ? head_dim : SLICE;
        for (int from = 0; from < head_dim; from += channels) {
            const Tile<Side> tile = {
                x + from, stride, Side::rows(channels), Side::columns(channels), &scales, &logs, &best, &deviations,
            };
            tile.balance(iterations);
            if (clamped) {
                tile.count(clamped);
            }
            tile.round((float)((1 << bits) - 1));
        }
        rotate(x, stride, head_dim);
    }
};
