//! The known name that a mistyped one probably meant.

/// The nearest of `known`, if it is near enough for `name` to be a slip of the pen: by at most a third of its
/// letters.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(name, k), k))
        .min()
        .filter(|(distance, k)| *distance <= (k.len() / 3).max(1))
        .map(|(_, k)| k)
}

/// ` (did you mean …?)` to append to an error, or nothing where none of `known` is near.
pub(crate) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map(|k| format!(" (did you mean `{k}`?)")).unwrap_or_default()
}
