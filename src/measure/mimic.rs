//! llama-perplexity's habits, so that a difference to its numbers can be explained and not argued.
//!
//! Its first pass stores the baseline's log-probabilities in 16 bits, nothing lower than 16 nats below
//! the largest logit; its second pass drops terms whose stored baseline log-probability is not above
//! -16, and never renormalizes (`tools/perplexity/perplexity.cpp`, b11434). Its CPU attention also
//! rounds Q to 8 bits whenever K is quantized. None of this is used unless it is asked for.

use crate::kv::effective::Effective;
use crate::results::statistics::Position;

/// Whose habits a measurement takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mimic {
    /// The 16-bit baseline and its cut-off.
    #[value(name = "llama.cpp-cuda")]
    LlamaCppCuda,
    /// The same, and Q rounded to the format that llama.cpp's CPU multiplies K with.
    #[value(name = "llama.cpp-cpu")]
    LlamaCppCpu,
}

impl Mimic {
    /// The scheme with the habits of the engine's attention.
    pub(super) fn adapt(self, scheme: Effective) -> Effective {
        match self {
            Mimic::LlamaCppCuda => scheme,
            Mimic::LlamaCppCpu => scheme.with_rounded_queries(),
        }
    }

    /// The name in conditions.
    pub fn name(self) -> &'static str {
        match self {
            Mimic::LlamaCppCuda => "llama.cpp-cuda",
            Mimic::LlamaCppCpu => "llama.cpp-cpu",
        }
    }
}

/// Nothing lower than this below the largest logit is stored, and nothing lower is summed.
const FLOOR: f32 = 16.0;

/// A baseline row as the file stores it; the vocabulary is walked once to know its range.
pub(super) struct QuantizedRow {
    max: f32,
    min: f32,
    sum: f64,
}

impl QuantizedRow {
    pub fn new() -> Self {
        QuantizedRow { max: f32::NEG_INFINITY, min: f32::INFINITY, sum: 0.0 }
    }

    /// First walk.
    pub fn add(&mut self, base: &[f32]) {
        let (sum, max) = log_sum_exp_step(self.sum, self.max, base);
        (self.sum, self.max) = (sum, max);
        self.min = base.iter().fold(self.min, |m, &v| m.min(v));
    }

    /// Log-probability of a logit as it is read back.
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

/// Σ e^(x - max) continued over more logits.
fn log_sum_exp_step(sum: f64, max: f32, x: &[f32]) -> (f64, f32) {
    let new = x.iter().fold(max, |m, &v| m.max(v));
    let old = if sum > 0.0 { sum * f64::from(max - new).exp() } else { 0.0 };
    (old + x.iter().map(|v| f64::from((v - new).exp())).sum::<f64>(), new)
}

/// The second walk: a position's lanes against the stored baseline.
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
    /// Σ p (log p - x), and Σ p
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
                // the file keeps no more of the baseline than this
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

    /// A row worked out by hand from the C source's arithmetic.
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
