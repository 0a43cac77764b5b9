//! An example of a codec that kvgate does not have, registered with the gate.
//!
//! In a model's repository the test target registers it in the same way, but calls `main` instead of `program`:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     kvgate::Gate::new().codec(Logarithmic).main()
//! }
//! ```
//!
//! This example calls `program`, which is kvgate's command line, so that you can try the codec on any model:
//! `cargo run --release --example own_codec -- measure MODEL --corpus FILE --schemes log8,q8_0`.

use kvgate::Codec;

/// Stores each element in one byte: its sign, and the logarithm of its magnitude in steps of an eighth of an octave.
struct Logarithmic;

/// The code that stands for a magnitude of 1.
const ONE: f32 = 80.0;
/// Steps in an octave.
const STEPS: f32 = 8.0;
/// The bit of a negative sign.
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
