//! A codec of one's own in the gate.
//!
//! In a model repository the same line stands in the test target, with `main` instead of `program`:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     kvgate::Gate::new().codec(Logarithmic).main()
//! }
//! ```
//!
//! Here it is the command line, so that the codec can be looked at on any model:
//! `cargo run --release --example own_codec -- measure MODEL --corpus FILE --schemes log8,q8_0`.

use kvgate::kv::codec::Codec;

/// A byte an element: a sign, and the logarithm of the magnitude in steps of an eighth of an octave.
struct Logarithmic;

/// The code of 1.
const ONE: f32 = 80.0;
const STEPS: f32 = 8.0;
const SIGN: u8 = 0x80;

impl Codec for Logarithmic {
    fn name(&self) -> &str {
        "log8"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn accepted_by(&self) -> &str {
        "this example"
    }

    fn block(&self, _: usize) -> usize {
        1
    }

    fn block_bytes(&self, _: usize) -> usize {
        1
    }

    fn is_rotated(&self) -> bool {
        true
    }

    fn encode(&self, x: &[f32], bytes: &mut [u8]) {
        for (x, byte) in x.iter().zip(bytes) {
            let code = (x.abs().log2() * STEPS + ONE).round().clamp(0.0, 127.0) as u8;
            *byte = code | if *x < 0.0 { SIGN } else { 0 };
        }
    }

    fn decode(&self, bytes: &[u8], x: &mut [f32]) {
        for (x, byte) in x.iter_mut().zip(bytes) {
            let magnitude = match byte & !SIGN {
                0 => 0.0,
                code => ((f32::from(code) - ONE) / STEPS).exp2(),
            };
            *x = if byte & SIGN == 0 { magnitude } else { -magnitude };
        }
    }
}

pub fn main() -> std::process::ExitCode {
    kvgate::Gate::new().codec(Logarithmic).program()
}
