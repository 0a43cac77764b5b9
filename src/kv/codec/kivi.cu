// codec kivi4: Kivi<4, Keys>
// codec kivi4/values: Kivi<4, Values>
// codec kivi2: Kivi<2, Keys>
// codec kivi2/values: Kivi<2, Values>
//
// kivi4 and kivi2, as in kivi.rs: 32 numbers share a scale s = (max - min)/(2^b - 1). In K they are one channel of 32
// tokens, in V they are 32 channels of one token. All operations are rounded to half precision until the code is taken,
// and what is read is f32.
//
// Behind this text stands which of them `Codec` is: `Kivi<4, Keys>` or `Kivi<4, Values>`.

using Keys = Blocks<1, 32>;
using Values = Blocks<32>;

template <int BITS, class Side> struct Kivi : Side {
    static __device__ __forceinline__ void round_trip(float (&x)[32]) {
        const float top = (float)((1 << BITS) - 1);
        map(x, [](float v) { return in_half(v); });
        const Range all = range(x);
        const float scale = in_half(in_half(all.high - all.low) / top), stored_low = in_half(all.low);
        map(x, [=](float v) {
            const float steps = in_half(in_half(v - all.low) / scale);
            // makes 0 of a NaN, which 0/0 is
            const int code = to_u8(rintf(clamp(steps, 0.0f, top)));
            return (float)code * scale + stored_low;
        });
    }
};
