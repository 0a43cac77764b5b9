//! How much memory the cache of one sequence takes at the contexts at which models are served.

use crate::kv::effective::Effective;
use crate::text;
use crate::text::numbers::bytes;
use crate::text::table::{self, Align, Cell};

/// Contexts at which people serve models, in tokens.
const CONTEXTS: [usize; 4] = [4 << 10, 32 << 10, 128 << 10, 256 << 10];

/// The lines of a table: a scheme in each row, a context in each column, and notes below. `trained` is the context that
/// the model was trained for, 0 if that is not known. `states` is what recurrent layers keep of a sequence, in bytes.
pub(super) fn lines<'e>(
    trained: usize,
    states: usize,
    schemes: impl IntoIterator<Item = (&'e str, &'e Effective)>,
) -> Vec<String> {
    let contexts = contexts(trained);
    let named = contexts.iter().map(|&tokens| Cell::new(tokens_in_words(tokens)));
    let mut rows = vec![std::iter::once(Cell::new("KV of a sequence")).chain(named).collect()];
    for (name, effective) in schemes {
        let sizes = contexts.iter().map(|&tokens| bytes(effective.bytes_at(tokens) as f64));
        let name = Cell::new(text::name(name));
        rows.push(std::iter::once(name).chain(sizes.map(Cell::new)).collect());
    }
    let mut align = vec![Align::Left];
    align.extend(contexts.iter().map(|_| Align::Right));
    let table = table::render(&align, &rows);
    table.lines().map(str::to_owned).chain(notes(trained, states)).collect()
}

/// The contexts up to the one that the model was trained for.
fn contexts(trained: usize) -> Vec<usize> {
    let longest = if trained == 0 { usize::MAX } else { trained };
    let mut contexts = CONTEXTS.map(|context| context.min(longest)).to_vec();
    contexts.dedup();
    contexts
}

/// A number of tokens, in units of 1,024 if it is whole ones: `32k`.
fn tokens_in_words(tokens: usize) -> String {
    if tokens.is_multiple_of(1 << 10) {
        format!("{}k", tokens >> 10)
    } else {
        tokens.to_string()
    }
}

fn notes(trained: usize, states: usize) -> Vec<String> {
    let mut notes = Vec::new();
    if trained == 0 {
        notes.push("  it is not known for how many tokens the model was trained".into());
    } else if trained < CONTEXTS[CONTEXTS.len() - 1] {
        notes.push(format!(
            "  the model was trained for {trained} tokens: no longer context is shown"
        ));
    }
    if states > 0 {
        let states = bytes(states as f64);
        notes.push(format!("  to all of these add {states} for the states of recurrent layers"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::layout::LayerKv;

    /// A layer that sees all, one with a window of 512, and one that reads the cache of another.
    fn layout() -> [Option<LayerKv>; 3] {
        let full = LayerKv { heads: 2, head_dim: 64, shared: true, ..LayerKv::default() };
        [Some(full), Some(LayerKv { window: Some(512), shared: false, ..full }), None]
    }

    fn shown(trained: usize, states: usize) -> Vec<String> {
        let of = |scheme: &str| Effective::new(&scheme.parse().unwrap(), &layout(), None).unwrap();
        let (f16, mixed) = (of("f16"), of("q8_0/q4_0"));
        lines(trained, states, [("f16", &f16), ("q8_0/q4_0", &mixed)])
    }

    /// K and V of one token and layer take 512 B in f16. At 4k these are 2 MiB, and 255.5 KiB for the 511 tokens that
    /// the window keeps.
    #[test]
    fn windows_are_kept_and_shared_caches_count_once() {
        assert_eq!(
            shown(1 << 20, 0),
            [
                "  KV of a sequence         4k       32k      128k       256k",
                "  f16                 2.2 MiB  16.2 MiB  64.2 MiB  128.2 MiB",
                "  q8_0/q4_0         935.8 KiB   6.6 MiB  26.1 MiB   52.1 MiB",
            ]
        );
    }

    #[test]
    fn no_context_is_longer_than_the_trained_one() {
        let lines = shown(40_000, 3 << 20);
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>()[4..], ["4k", "32k", "40000"]);
        assert_eq!(
            lines[3..],
            [
                "  the model was trained for 40000 tokens: no longer context is shown",
                "  to all of these add 3 MiB for the states of recurrent layers",
            ]
        );
        assert_eq!(contexts(262_144), CONTEXTS);
        assert_eq!(contexts(0), CONTEXTS);
        assert_eq!(contexts(4096), [4096]);
        assert_eq!(contexts(100), [100]);
        assert!(shown(0, 0)[3].contains("not known"));
    }
}
