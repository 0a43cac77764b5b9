//! Imitates how llama-perplexity computes and stores numbers, so that kvgate's numbers can be compared with those
//! of that program.
//!
//! The program's first pass stores the baseline's log-probabilities in 16 bits; what is lower than 16 nats
//! below the largest logit is stored as that bound. The second pass drops terms whose stored log-probability
//! is not above -16, and does not renormalize (`tools/perplexity/perplexity.cpp`, b11434). Its CPU attention
//! also rounds Q to 8 bits whenever K is quantized. kvgate imitates this only if `--mimic` asks for it.

use crate::kv::effective::Effective;
use crate::results::statistics::Position;

/// The build of llama-perplexity that a measurement imitates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mimic {
    /// Store the baseline's log-probabilities in 16 bits, cut off as llama-perplexity does.
    #[value(name = "llama.cpp-cuda")]
    LlamaCppCuda,
    /// Do the same, and round Q to the format in which llama.cpp's CPU attention multiplies it with K.
    #[value(name = "llama.cpp-cpu")]
    LlamaCppCpu,
}

impl Mimic {
    /// The scheme as that program's attention carries it out.
    pub(super) fn adapt(self, scheme: Effective) -> Effective {
        match self {
            Mimic::LlamaCppCuda => scheme,
            Mimic::LlamaCppCpu => scheme.with_rounded_queries(),
        }
    }

    /// The name in a measurement's conditions.
    pub fn name(self) -> &'static str {
        match self {
            Mimic::LlamaCppCuda => "llama.cpp-cuda",
            Mimic::LlamaCppCpu => "llama.cpp-cpu",
        }
    }
}

/// How far below the largest logit the stored range ends, in nats. Terms with a lower log-probability are not summed
/// either.
const FLOOR: f32 = 16.0;

/// The baseline's logits at one position as the file stores them. A first walk over the vocabulary finds their range,
/// which the 16 bits are spread over.
pub(super) struct QuantizedRow {
    max: f32,
    min: f32,
    sum: f64,
}

impl QuantizedRow {
    pub fn new() -> Self {
        QuantizedRow { max: f32::NEG_INFINITY, min: f32::INFINITY, sum: 0.0 }
    }

    /// Takes the next tile of the first walk.
    pub fn add(&mut self, base: &[f32]) {
        let (sum, max) = log_sum_exp_step(self.sum, self.max, base);
        (self.sum, self.max) = (sum, max);
        self.min = base.iter().fold(self.min, |m, &v| m.min(v));
    }

    /// Gives the log-probability of a logit as it is read back from the file.
    fn quantizer(&self) -> impl Fn(f32) -> f32 {
        let min = self.min.max(self.max - FLOOR);
        let min_logp = min - self.max - self.sum.ln() as f32;
        let scale = (self.max - min) / 65535.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        move |x| {
            let q = if x > min { ((x - min) * inverse).round_ties_even() } else { 0.0 };
            scale * q + min_logp
        }
    }
}

/// Continues the sum Σ e^(x - max) over more logits. The maximum may rise.
fn log_sum_exp_step(sum: f64, max: f32, x: &[f32]) -> (f64, f32) {
    let new = x.iter().fold(max, |m, &v| m.max(v));
    let old = if sum > 0.0 { sum * f64::from(max - new).exp() } else { 0.0 };
    (old + x.iter().map(|v| f64::from((v - new).exp())).sum::<f64>(), new)
}

/// The second walk over the vocabulary: compares the lanes of one position with the stored baseline.
pub(super) struct Comparison {
    base: QuantizedRow,
    target: u32,
    target_logp: f32,
    best: f32,
    top: u32,
    lanes: Vec<FileLane>,
}

#[derive(Clone)]
struct FileLane {
    sum: f64,
    max: f32,
    top: u32,
    target_logit: f32,
    /// Σ p (log p - x). Beside it, `mass` is Σ p.
    cross: f64,
    mass: f64,
}

impl Comparison {
    pub fn new(base: QuantizedRow, target: u32, lanes: usize) -> Self {
        let lane = FileLane {
            sum: 0.0,
            max: f32::NEG_INFINITY,
            top: 0,
            target_logit: f32::NAN,
            cross: 0.0,
            mass: 0.0,
        };
        Comparison {
            base,
            target,
            target_logp: f32::NAN,
            best: f32::NEG_INFINITY,
            top: 0,
            lanes: vec![lane; lanes],
        }
    }

    pub fn add<'a>(&mut self, start: u32, base: &[f32], lanes: impl Iterator<Item = &'a [f32]>) {
        let quantize = self.base.quantizer();
        let logps: Vec<f32> = base.iter().map(|&x| quantize(x)).collect();
        let target = self.target.wrapping_sub(start) as usize;
        for (id, &logp) in (start..).zip(&logps) {
            if logp > self.best {
                (self.best, self.top) = (logp, id);
            }
        }
        if let Some(&logp) = logps.get(target) {
            self.target_logp = logp;
        }
        for (lane, x) in self.lanes.iter_mut().zip(lanes) {
            lane.add(start, &logps, x);
            if let Some(&x) = x.get(target) {
                lane.target_logit = x;
            }
        }
    }

    pub fn finish(&self) -> impl Iterator<Item = Position> + '_ {
        self.lanes.iter().map(|lane| {
            let log_sum = f64::from(lane.max) + lane.sum.ln();
            Position {
                target: self.target,
                kld: (lane.cross + lane.mass * log_sum) as f32,
                logp_base: self.target_logp,
                logp: (f64::from(lane.target_logit) - log_sum) as f32,
                top_base: self.top,
                top: lane.top,
                // what the file keeps of the baseline does not give its margin
                margin: 0.0,
            }
        })
    }
}

impl FileLane {
    fn add(&mut self, start: u32, logps: &[f32], x: &[f32]) {
        let before = self.max;
        (self.sum, self.max) = log_sum_exp_step(self.sum, self.max, x);
        if self.max > before {
            self.top = start + x.iter().position(|v| *v == self.max).unwrap_or(0) as u32;
        }
        for (&logp, &x) in logps.iter().zip(x).filter(|(logp, _)| **logp > -FLOOR) {
            let p = logp.exp();
            self.cross += f64::from(p * (logp - x));
            self.mass += f64::from(p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values were worked out by hand from the arithmetic of the C source.
    #[test]
    fn known_row() {
        let base = [2.0f32, 1.0, 0.5, -1.0, -20.0];
        let lane = [1.9f32, 1.125, 0.5, -0.75, -18.0];
        let mut stored = QuantizedRow::new();
        stored.add(&base[..2]);
        stored.add(&base[2..]);
        let mut comparison = Comparison::new(stored, 1, 2);
        for (start, range) in [(0, 0..3), (3, 3..5)] {
            let lanes = [&lane[range.clone()], &base[range.clone()]].into_iter();
            comparison.add(start, &base[range], lanes);
        }
        let got: Vec<_> = comparison.finish().collect();
        assert!((f64::from(got[0].kld) - 0.005_607_091_1).abs() < 2e-6, "{}", got[0].kld);
        assert!((got[0].logp + 1.350_462).abs() < 1e-6, "{}", got[0].logp);
        assert!((got[0].logp_base + 1.495_197_3).abs() < 1e-6, "{}", got[0].logp_base);
        assert!((got[0].dp() - 0.034_916_2).abs() < 1e-6, "{}", got[0].dp());
        assert!((f64::from(got[1].kld) + 8.16e-6).abs() < 2e-6, "{}", got[1].kld);
    }
}
