// codec turbo4: Turbo<Table<LloydMax4>, LENGTH>
// codec turbo4:quantile: Turbo<Table<QuantileMeans4>, LENGTH>
// codec turbo4:unbiased: Turbo<Table<LloydMax4>, PRODUCT>
// codec turbo3: Turbo<Table<LloydMax3>, LENGTH>
// codec turbo3:unbiased: Turbo<Table<LloydMax3>, PRODUCT>
// codec turbo2: Turbo<Table<LloydMax2>, LENGTH>
// codec turbo2:unbiased: Turbo<Table<LloydMax2>, PRODUCT>
//
// turbo4, turbo3 and turbo2 with their variants, as in turbo.rs. A group of 128 elements has a length and coordinates
// y = D2·H·D1·x/length, each of which takes the nearest value c of a table. The group reads as D1·H·D2·(c·scale).
//
// Behind this text stands which of them `Codec` is: `Turbo<Table<LloydMax3>, LENGTH>` for turbo3.

constexpr int GROUP_SIZE = 128;

/// Lengths up to this one count as zero.
constexpr float NO_LENGTH = 1e-10f;

/// The signs of D1 and of D2: bit i of word l is set if element 32·l + i changes its sign.
__device__ const unsigned FIRST_SIGNS[4] = {0xe46a0359u, 0x42f85949u, 0xa4c63bbbu, 0x49f250a9u};
__device__ const unsigned SECOND_SIGNS[4] = {0x16acee90u, 0x3f628fdcu, 0xb7a5357au, 0xbea56562u};

/// What the scale is for: that what is read has the length of what was stored, or that the inner product of both is the
/// square of that length.
enum Scale { LENGTH, PRODUCT };

/// `Quantizer::nearest` replaces the coordinates of a piece by their values.
template <class Quantizer, Scale SCALE> struct Turbo : Pieces {
    static __device__ __forceinline__ int width(int) { return GROUP_SIZE; }

    static __device__ __forceinline__ void round_trip(float (&x)[32], const Piece& piece) {
        const unsigned first = FIRST_SIGNS[piece.index], second = SECOND_SIGNS[piece.index];
        const float length = sqrtf(piece.product(x, x));
        map(x, [=](float v) { return length > NO_LENGTH ? v / length : 0.0f; });
        change_signs(x, first);
        hadamard(x, GROUP_SIZE, orthonormal(GROUP_SIZE));
        change_signs(x, second);

        float values[32];
        Quantizer::nearest(x, values, piece);
        const float divisor = SCALE == LENGTH ? sqrtf(piece.product(values, values)) : piece.product(values, x);
        const float scale = in_half(divisor > NO_LENGTH ? length / divisor : length);

#pragma unroll
        for (int i = 0; i < 32; i++) {
            x[i] = values[i] * scale;
        }
        change_signs(x, second);
        hadamard(x, GROUP_SIZE, orthonormal(GROUP_SIZE));
        change_signs(x, first);
    }
};

/// A symmetric table, of which `Positive` is the positive half in ascending order. Half-way between two values the nearest
/// one is the upper one.
template <class Positive> struct Table {
    static __device__ __forceinline__ float value(int code) {
        return code < Positive::HALF ? -Positive::value(Positive::HALF - 1 - code) : Positive::value(code - Positive::HALF);
    }

    static __device__ __forceinline__ void nearest(const float (&y)[32], float (&values)[32], const Piece&) {
#pragma unroll
        for (int i = 0; i < 32; i++) {
            values[i] = value(0);
#pragma unroll
            for (int code = 0; code + 1 < 2 * Positive::HALF; code++) {
                values[i] = y[i] >= 0.5f * (value(code) + value(code + 1)) ? value(code + 1) : values[i];
            }
        }
    }
};

/// The Lloyd-Max quantizer of N(0, 1/128) with 16 values.
struct LloydMax4 {
    static constexpr int HALF = 8;

    static __device__ __forceinline__ float value(int i) {
        const float values[HALF] = {0.011348625f, 0.03429895f, 0.058049854f, 0.08329192f,
                                    0.1110362f, 0.14301644f, 0.18287702f, 0.24152908f};
        return values[i];
    }
};

/// That with 8 values.
struct LloydMax3 {
    static constexpr int HALF = 4;

    static __device__ __forceinline__ float value(int i) {
        const float values[HALF] = {0.02166347f, 0.06682206f, 0.11878592f, 0.19020693f};
        return values[i];
    }
};

/// That with 4 values.
struct LloydMax2 {
    static constexpr int HALF = 2;

    static __device__ __forceinline__ float value(int i) {
        const float values[HALF] = {0.04002048f, 0.13350332f};
        return values[i];
    }
};

/// The means of 16 equally probable cells.
struct QuantileMeans4 {
    static constexpr int HALF = 8;

    static __device__ __forceinline__ float value(int i) {
        const float values[HALF] = {0.006938f, 0.020989f, 0.035597f, 0.051262f,
                                    0.068756f, 0.089527f, 0.117195f, 0.173926f};
        return values[i];
    }
};
