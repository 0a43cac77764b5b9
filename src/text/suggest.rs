//! The known name that a mistyped one probably meant.

/// The most names that are offered.
const MOST: usize = 3;

/// The nearest of `known`, if it is near enough for `name` to be a slip of the pen: by at most a third of its
/// letters. Of several that are equally near, the first in the alphabet.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    all_nearest(name, known).first().copied()
}

/// ` (did you mean …?)` to append to an error, with all names that are equally near, or nothing where none is near.
pub(crate) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near: Vec<_> = all_nearest(name, known).iter().map(|k| format!("`{k}`")).collect();
    if near.is_empty() {
        return String::new();
    }
    format!(" (did you mean {}?)", near[..near.len().min(MOST)].join(" or "))
}

fn all_nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let distance = |k: &'a str| (strsim::damerau_levenshtein(name, k), k);
    let mut near: Vec<_> = known.into_iter().map(distance).collect();
    near.sort_unstable();
    near.dedup();
    let least = near.first().map(|(distance, _)| *distance);
    near.retain(|(distance, k)| Some(*distance) == least && *distance <= (k.len() / 3).max(1));
    near.into_iter().map(|(_, k)| k).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_equally_near_are_all_offered() {
        let known = ["m::q8_0", "m::q4_0", "m::q4_1", "other"];
        assert_eq!(nearest("m::q4_O", known), Some("m::q4_0"));
        assert_eq!(did_you_mean("m::q8_1", known), " (did you mean `m::q4_1` or `m::q8_0`?)");
        assert_eq!(did_you_mean("m::q4", known), " (did you mean `m::q4_0` or `m::q4_1`?)");
        assert_eq!((nearest("x", known), did_you_mean("x", known)), (None, String::new()));
    }
}
