//! The needles: sentences that nobody can guess, and the questions about them.
//!
//! A needle is "The ATTRIBUTE of the ENTITY is VALUE." A value is a number of 6 to 8 digits or a pair of words that
//! hardly anybody has written. Each entity has two attributes, and each attribute belongs to several entities, so that a
//! needle can only be found by both: all other needles of its kind are its distractors.

use super::random::Random;

/// A needle, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needle {
    pub attribute: &'static str,
    pub entity: String,
    pub value: String,
}

const NUMBERED: [&str; 8] = [
    "register number",
    "parcel number",
    "ticket number",
    "locker number",
    "ledger number",
    "serial number",
    "licence number",
    "docket number",
];

const WORDED: [&str; 8] = [
    "call sign",
    "emblem",
    "cargo",
    "watchword",
    "house pattern",
    "toast",
    "nickname",
    "signal phrase",
];

const NAMES: [&str; 40] = [
    "Marlock", "Tavrin", "Orvale", "Dunmere", "Quillan", "Brasker", "Veldane", "Hartsom",
    "Illwick", "Pendrake", "Corvane", "Ashgrim", "Lorrimar", "Thessick", "Wendover", "Galdern",
    "Morvane", "Rushmoor", "Selwick", "Tarlow", "Ulverne", "Varnock", "Wexmoor", "Yarlick",
    "Zelbury", "Brockley", "Cramond", "Drayle", "Elstow", "Farlane", "Grendon", "Holbeck",
    "Inverlay", "Jorvane", "Kelmarsh", "Landrick", "Mirfield", "Norbeck", "Ostrick", "Pelmoor",
];

const KINDS: [&str; 8] =
    ["mill", "ferry", "lighthouse", "inn", "quarry", "observatory", "foundry", "orchard"];

const FIRST: [&str; 24] = [
    "amber", "brittle", "cobalt", "drowsy", "ember", "frosted", "gilded", "hollow", "ivory",
    "jagged", "knotted", "lunar", "mossy", "nimble", "ochre", "pewter", "quiet", "russet",
    "silver", "tangled", "umber", "velvet", "woolen", "zealous",
];

const SECOND: [&str; 24] = [
    "anvil", "bobbin", "cistern", "dulcimer", "easel", "flagon", "gasket", "hammock", "inkwell",
    "jigsaw", "kettle", "lantern", "mallet", "nutmeg", "oboe", "pulley", "quiver", "rudder",
    "sextant", "trellis", "urchin", "valise", "walnut", "zither",
];

/// The most needles that a context can have: each entity has two, and entities have different names.
pub const MOST: usize = 32;

/// The fewest: with a single needle there would be nothing to confuse it with.
pub const LEAST: usize = 2;

/// Draws the needles of a context, in random order. `is_there` says whether the haystack has a text: neither a value nor
/// the name of an entity may stand in it.
///
/// # Errors
/// If the haystack has nearly everything that could be drawn.
pub fn draw(
    count: usize,
    random: &mut Random,
    is_there: &dyn Fn(&str) -> bool,
) -> Result<Vec<Needle>, String> {
    // so few needles are all of one kind, because each needs a distractor
    let numbered = match count {
        0..4 if random.below(2) == 0 => count,
        0..4 => 0,
        _ => count - count / 2,
    };
    let mut names: Vec<&str> = NAMES.into_iter().filter(|name| !is_there(name)).collect();
    random.shuffle(&mut names);
    let mut names = names.into_iter();
    let mut needles: Vec<Needle> = Vec::new();
    for (is_number, count) in [(true, numbered), (false, count - numbered)] {
        let mut attributes = if is_number { NUMBERED } else { WORDED };
        random.shuffle(&mut attributes);
        let mut entity = String::new();
        for i in 0..count {
            if i % 2 == 0 {
                let name = names.next().ok_or("it has too many of the names of needles")?;
                entity = format!("{name} {}", KINDS[random.below(KINDS.len())]);
            }
            let is_taken = |value: &str| {
                let is_within =
                    |needle: &Needle| needle.value.contains(value) || value.contains(&needle.value);
                is_there(value) || needles.iter().any(is_within)
            };
            let value = draw_value(is_number, random, &is_taken)?;
            needles.push(Needle { attribute: attributes[i % 2], entity: entity.clone(), value });
        }
    }
    random.shuffle(&mut needles);
    Ok(needles)
}

fn draw_value(
    is_number: bool,
    random: &mut Random,
    is_taken: &dyn Fn(&str) -> bool,
) -> Result<String, String> {
    const ATTEMPTS: usize = 1000;
    let mut draw = || {
        if is_number {
            let digits = 6 + random.below(3) as u32;
            let least = 10usize.pow(digits - 1);
            (least + random.below(9 * least)).to_string()
        } else {
            let (first, second) = (random.below(FIRST.len()), random.below(SECOND.len()));
            format!("{} {}", FIRST[first], SECOND[second])
        }
    };
    let free = (0..ATTEMPTS).map(|_| draw()).find(|value| !is_taken(value));
    free.ok_or_else(|| "it has nearly every value that a needle could have".into())
}

impl Needle {
    /// The sentence that is hidden, in three parts: what stands before the value, the value with the blank before it, and
    /// what stands behind it.
    pub fn sentence(&self) -> [String; 3] {
        let Needle { attribute, entity, value } = self;
        [format!("\nThe {attribute} of the {entity} is"), format!(" {value}"), ".\n".into()]
    }

    /// The question and its answer, in the same three parts.
    pub fn question(&self) -> [String; 3] {
        let Needle { attribute, entity, value } = self;
        let asked = format!("the {attribute} of the {entity}");
        [
            format!("\nQuestion: What is {asked}?\nAnswer: The {}", &asked[4..]) + " is",
            format!(" {value}"),
            ".\n".into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn drawn(count: usize, seed: u64) -> Vec<Needle> {
        draw(count, &mut Random::new(seed, 512, 0), &|_| false).unwrap()
    }

    #[test]
    fn every_needle_has_a_distractor_of_its_kind_and_a_value_of_its_own() {
        for count in LEAST..=MOST {
            for seed in 0..20 {
                let needles = drawn(count, seed);
                assert_eq!(needles.len(), count);
                let values: BTreeSet<_> = needles.iter().map(|needle| &needle.value).collect();
                assert_eq!(values.len(), count);
                let asked: BTreeSet<_> =
                    needles.iter().map(|needle| (needle.attribute, &needle.entity)).collect();
                assert_eq!(asked.len(), count, "each question has one answer");
                for needle in &needles {
                    let is_number = |needle: &Needle| needle.value.parse::<u64>().is_ok();
                    let others = needles.iter().filter(|other| other.value != needle.value);
                    let of_kind = others.filter(|other| {
                        let is_near =
                            other.attribute == needle.attribute || other.entity == needle.entity;
                        is_near && is_number(other) == is_number(needle)
                    });
                    assert!(of_kind.count() > 0, "{needle:?} of {needles:?}");
                    if is_number(needle) {
                        assert!((6..=8).contains(&needle.value.len()), "{needle:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_haystack_has_is_no_needle() {
        let first = drawn(8, 1);
        let taken: Vec<String> = first
            .iter()
            .flat_map(|needle| {
                let name = needle.entity.split(' ').next().unwrap_or_default();
                [needle.value.clone(), name.to_owned()]
            })
            .collect();
        let is_there = |text: &str| taken.iter().any(|taken| taken == text);
        let second = draw(8, &mut Random::new(1, 512, 0), &is_there).unwrap();
        for needle in &second {
            let name = needle.entity.split(' ').next().unwrap_or_default();
            assert!(!is_there(&needle.value) && !is_there(name), "{needle:?}");
        }
        let everything = draw(8, &mut Random::new(1, 512, 0), &|_| true).unwrap_err();
        assert!(everything.contains("too many of the names"), "{everything}");
    }

    #[test]
    fn a_question_ends_in_what_the_needle_says() {
        let needle = Needle {
            attribute: "cargo",
            entity: "Tavrin ferry".into(),
            value: "ember oboe".into(),
        };
        assert_eq!(needle.sentence().concat(), "\nThe cargo of the Tavrin ferry is ember oboe.\n");
        assert_eq!(
            needle.question().concat(),
            "\nQuestion: What is the cargo of the Tavrin ferry?\nAnswer: The cargo of the Tavrin ferry is ember oboe.\n"
        );
    }
}
