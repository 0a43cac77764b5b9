//! Weights whose file has a row for each input: AWQ's and GPTQ's. A word holds several numbers of a column or of a row.

use super::weight::{Dequantize, Part, Rows};

/// How a format places the numbers.
pub(super) trait Columns: Send + Sync {
    /// The number of an input and an output.
    fn code(&self, words: &Part, input: usize, output: usize) -> i32;
    /// The zero point of a group of inputs and an output.
    fn zero(&self, zeros: &Part, group: usize, output: usize) -> i32;
}

/// The first zero point that is not in the middle of the range, by which kernels for symmetric weights reckon without
/// reading any.
pub(super) fn off_middle(
    columns: &impl Columns,
    zeros: &Part,
    [groups, outputs]: [usize; 2],
    bits: usize,
) -> Option<i32> {
    let middle = 1 << (bits - 1);
    let places = (0..groups).flat_map(|group| (0..outputs).map(move |output| (group, output)));
    let mut points = places.map(|(group, output)| columns.zero(zeros, group, output));
    points.find(|point| *point != middle)
}

/// Whether every one of the groups has as many inputs as it should. Kernels sort the inputs by their groups and then
/// count them off, so in groups of other sizes they would take other scales.
pub(super) fn groups_are_even(order: &Part, groups: usize, group: usize) -> bool {
    let mut sizes = vec![0; groups];
    let all_are_known = (0..order.count()).all(|input| {
        let size = order.whole(input).and_then(|g| sizes.get_mut(usize::try_from(g).ok()?));
        size.map(|size| *size += 1).is_some()
    });
    all_are_known && sizes.into_iter().all(|size| size == group)
}

/// Words, zero points, scales, and perhaps the group of each input.
pub(super) struct ByColumns<C> {
    pub columns: C,
    /// All outputs.
    pub outputs: usize,
    /// Inputs that share a scale.
    pub group: usize,
}

impl<C: Columns> Dequantize for ByColumns<C> {
    fn rows(&self, parts: &[Part], rows: Rows, out: &mut [f32]) {
        let [words, zeros, scales, order @ ..] = parts else { return };
        let outputs = out.len() / rows.width.max(1);
        let mut of_group = vec![(0f32, 0i32); outputs];
        let mut known = None;
        for input in 0..rows.width {
            let group = match order.first() {
                Some(order) => order.whole(input).unwrap_or(0) as usize,
                None => input / self.group,
            };
            if known != Some(group) {
                for (at, of_group) in of_group.iter_mut().enumerate() {
                    let output = rows.first + at;
                    let zero = self.columns.zero(zeros, group, output);
                    *of_group = (scales.float(group * self.outputs + output), zero);
                }
                known = Some(group);
            }
            for (at, (scale, zero)) in of_group.iter().enumerate() {
                let code = self.columns.code(words, input, rows.first + at);
                out[at * rows.width + input] = (code - zero) as f32 * scale;
            }
        }
    }
}
