//! The op that turns K and V into what a cache would give back: decode(encode(x)).

use super::elements::read;
use super::finite::FiniteFlag;
use super::op::InPlaceOp;
use candle_core::{DType, Device, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// How K or V of a layer are stored: a codec, and what happens to the numbers before and after it.
pub(crate) trait Storing: Sync {
    /// How many tokens are encoded together.
    fn group(&self) -> usize;

    /// Replaces a group of tokens of one head, (group, D), by what the cache would give back.
    fn round_trip(&self, head: usize, x: &mut [f32]);

    /// The same as plain values, for the kernel of a card, for heads of `head_dim` elements.
    fn on_card(&self, head_dim: usize) -> OnCard<'_>;
}

/// What a card's kernel must know of how K or V are stored.
pub(crate) struct OnCard<'a> {
    /// The name of the codec's kernel among those of this crate.
    pub codec: &'a str,
    /// The text of the kernel, if the codec is not part of this crate and brings one.
    pub text: Option<&'static str>,
    /// A number that the kernel is given.
    pub variant: u32,
    /// Whether the kernel takes heads of this size.
    pub is_taken: bool,
    /// How many tokens are encoded together.
    pub group: usize,
    /// The size of the Hadamard rotation around the codec.
    pub rotation: Option<usize>,
    /// (H_kv, D): is subtracted before the codec and added to what is read.
    pub mean: Option<&'a Mirrored>,
    /// (H_kv): numbers are divided by it before the codec and multiplied with it when they are read.
    pub scales: Option<&'a Mirrored>,
    /// Where scales at the limit of their format are counted.
    pub clamped: Option<&'a Counters>,
}

/// Numbers on the host, of which a card is given a copy once.
#[derive(Debug, Clone)]
pub(crate) struct Mirrored {
    host: Arc<[f32]>,
    card: Arc<OnceLock<Tensor>>,
}

impl From<Arc<[f32]>> for Mirrored {
    fn from(host: Arc<[f32]>) -> Self {
        Mirrored { host, card: Arc::default() }
    }
}

impl Deref for Mirrored {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.host
    }
}

impl Mirrored {
    /// The copy on a card.
    ///
    /// # Errors
    /// If the card has no memory left.
    pub fn on(&self, card: &Device) -> Result<Tensor> {
        once(&self.card, || Tensor::from_slice(&self.host, self.host.len(), card))
    }
}

/// Counts the scales that were written, and how many of them stand at a limit of their format.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    at_limit: AtomicU64,
    all: AtomicU64,
    /// The same two numbers, as the kernels of a card count them.
    card: OnceLock<Tensor>,
    /// How much of these numbers was counted by work that is done again.
    in_vain: [AtomicU64; 2],
}

impl Counters {
    pub fn add(&self, [at_limit, all]: [u64; 2]) {
        self.at_limit.fetch_add(at_limit, Ordering::Relaxed);
        self.all.fetch_add(all, Ordering::Relaxed);
    }

    /// The counters on a card, (2) as i64.
    ///
    /// # Errors
    /// If the card has no memory left.
    pub fn on(&self, card: &Device) -> Result<Tensor> {
        once(&self.card, || Tensor::zeros(2, DType::I64, card))
    }

    /// How many scales stand at a limit, and how many were counted.
    pub fn counts(&self) -> [u64; 2] {
        let mut counts = [&self.at_limit, &self.all].map(|count| count.load(Ordering::Relaxed));
        if let Some(card) = self.card.get() {
            // a card that is lost has failed the measurement already
            let _ = read(card, |card: &[i64]| {
                counts.iter_mut().zip(card).for_each(|(count, more)| *count += *more as u64);
            });
        }
        let in_vain = &self.in_vain;
        [0, 1].map(|i| counts[i].saturating_sub(in_vain[i].load(Ordering::Relaxed)))
    }

    /// Forgets what was counted since the counts were these.
    pub fn set_back(&self, counts: [u64; 2]) {
        for ((in_vain, now), then) in self.in_vain.iter().zip(self.counts()).zip(counts) {
            in_vain.fetch_add(now.saturating_sub(then), Ordering::Relaxed);
        }
    }

    /// The share of scales that stand at a limit. `None` if no scale has one.
    pub fn share(&self) -> Option<f64> {
        let [at_limit, all] = self.counts();
        (all > 0).then(|| at_limit as f64 / all as f64)
    }
}

/// What the cell holds, or what `make` gives if it is empty.
fn once(cell: &OnceLock<Tensor>, make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    if cell.get().is_none() {
        // another thread may be first, whose tensor is as good
        let _ = cell.set(make()?);
    }
    Ok(cell.get().expect("was set").clone())
}

/// Rounds (B, T, H_kv, D) to what the cache would give back. A group of tokens that is not complete yet stays as it is.
///
/// Numbers that are not finite stay as they are, together with their neighbours in the same task, so that no codec has
/// to know what to do with them. The flag `before` reports them.
pub(crate) struct RoundTrip<'a> {
    pub storing: &'a dyn Storing,
    /// Is broken by numbers that are not finite before they are stored.
    pub before: &'a FiniteFlag,
    /// Is broken by numbers that are not finite once they are read back.
    pub after: &'a FiniteFlag,
}

/// How many tokens one task works on, unless the codec takes groups.
const TOKENS: usize = 128;

impl InPlaceOp for RoundTrip<'_> {
    const NAME: &'static str = "kv-round-trip";

    fn cpu(&self, x: &mut [f32], shape: &Shape) -> Result<()> {
        let (_, tokens, heads, head_dim) = shape.dims4()?;
        let width = heads * head_dim;
        let group = self.storing.group();
        if group == 1 {
            x.par_chunks_mut(TOKENS * width).for_each(|x| {
                self.change_if_finite(x, |x| {
                    for (i, head) in x.chunks_exact_mut(head_dim).enumerate() {
                        self.storing.round_trip(i % heads, head);
                    }
                });
            });
            return Ok(());
        }
        let sequences = x.par_chunks_mut(tokens * width);
        sequences.flat_map(|sequence| sequence.par_chunks_mut(group * width)).for_each(|x| {
            let is_complete = x.len() == group * width;
            self.change_if_finite(x, |x| {
                for head in (0..heads).filter(|_| is_complete) {
                    let mut own = gather(x, head, heads, head_dim);
                    self.storing.round_trip(head, &mut own);
                    scatter(&own, x, head, heads, head_dim);
                }
            });
        });
        Ok(())
    }
}

impl RoundTrip<'_> {
    /// Rounds the numbers of a task if they are all finite, and checks the result.
    fn change_if_finite(&self, x: &mut [f32], change: impl FnOnce(&mut [f32])) {
        if self.before.look_at(x) {
            change(x);
            self.after.look_at(x);
        }
    }
}

/// Copies one head out of some tokens, (n, H, D) → (n, D).
pub(crate) fn gather(x: &[f32], head: usize, heads: usize, head_dim: usize) -> Vec<f32> {
    let tokens = x.chunks_exact(heads * head_dim);
    tokens.flat_map(|token| &token[head * head_dim..][..head_dim]).copied().collect()
}

/// Copies the head back to its place.
pub(crate) fn scatter(own: &[f32], x: &mut [f32], head: usize, heads: usize, head_dim: usize) {
    for (token, own) in x.chunks_exact_mut(heads * head_dim).zip(own.chunks_exact(head_dim)) {
        token[head * head_dim..][..head_dim].copy_from_slice(own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::change;
    use crate::compute::textbook::{flat, vector};

    /// Multiplies by 10 to the power of the head, plus 1.
    struct Tens(usize);

    impl Storing for Tens {
        fn group(&self) -> usize {
            self.0
        }

        fn round_trip(&self, head: usize, x: &mut [f32]) {
            x.iter_mut().for_each(|x| *x *= 10f32.powi(head as i32 + 1));
        }

        fn on_card(&self, _: usize) -> OnCard<'_> {
            OnCard {
                codec: "no kernel",
                text: None,
                variant: 0,
                is_taken: true,
                group: self.0,
                rotation: None,
                mean: None,
                scales: None,
                clamped: None,
            }
        }
    }

    /// Two sequences of `tokens` tokens with two heads of two elements.
    fn changed(
        group: usize,
        tokens: usize,
        change_x: impl Fn(&mut [f32]),
    ) -> (Vec<f32>, [bool; 2]) {
        let mut x = vec![1.0f32; 2 * tokens * 4];
        change_x(&mut x);
        let x = vector(&x).reshape((2, tokens, 2, 2)).unwrap();
        let (before, after) = (FiniteFlag::default(), FiniteFlag::default());
        let op = RoundTrip { storing: &Tens(group), before: &before, after: &after };
        change(&op, &x).unwrap();
        (flat(&x), [before.is_finite().unwrap(), after.is_finite().unwrap()])
    }

    #[test]
    fn each_head_goes_its_way_and_incomplete_groups_stay() {
        let token = [10.0, 10.0, 100.0, 100.0];
        assert_eq!(changed(1, 3, |_| {}), (token.repeat(6), [true; 2]));
        let sequence = [&token.repeat(4)[..], &[1.0; 4]].concat();
        assert_eq!(changed(4, 5, |_| {}), (sequence.repeat(2), [true; 2]));
    }

    #[test]
    fn flags_tell_where_numbers_broke() {
        for group in [1, 4] {
            let (x, flags) = changed(group, 5, |x| x[3] = f32::NAN);
            assert_eq!(flags, [false, true], "{group}");
            assert_eq!(x[0], 1.0, "the codec has seen what is not finite");
            assert_eq!(changed(group, 5, |x| x[2] = f32::MAX).1, [true, false], "{group}");
        }
        // in a group that is not complete
        assert_eq!(changed(4, 5, |x| x[16] = f32::INFINITY).1, [false, true]);
    }
}
