//! What a change of the policy lets through that was not let through before.
//!
//! Both policies are compared after their defaults are resolved, case by case. So an edit that reaches no case is no
//! finding, and an edit that reaches many cases is a single one.

use crate::golden;
use crate::measure::corpus::{category, dealt};
use crate::policy::{Cell, Expectation, Limit, ModelPolicy, Policy, IGNORED, MEANING};
use crate::repo::{Files, RepoError};
use crate::results::retrieval::Plan;
use crate::results::statistics::Statistic;
use std::fmt;
use std::path::{Path, PathBuf};

/// How many cases a finding names. The others are only counted.
const NAMED_CASES: usize = 3;

/// One of the two policies that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// The policy at the merge base, which holds.
    Base,
    /// The policy that is proposed.
    Head,
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's path, in the way that the policy's path was given.
    pub file: PathBuf,
    /// The line, counted from 1. None for a whole file.
    pub line: Option<usize>,
    /// Whether the line is one of the base, because the head has nothing in its place.
    pub at_base: bool,
}

/// Writes `thresholds.toml:12`, or `thresholds.toml:12 at the base`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(if self.at_base { " at the base" } else { "" })
    }
}

/// One edit that weakens the gate, and the cases that it reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weakened {
    pub place: Place,
    /// What became weaker: `mean_kld limit raised`.
    pub what: String,
    /// All cells that the edit reaches, in the policy's order: `model::scheme`, or `model` if the edit concerns a whole
    /// model. [`Weakened::reach`] names a few of them.
    pub cases: Vec<String>,
    /// The value that holds.
    pub old: String,
    /// The value that is proposed.
    pub new: String,
}

impl Weakened {
    /// The first few cases by name, and the number of the others: `m::q8_0, m::q4_0 and 38 more`.
    pub fn reach(&self) -> String {
        let named = &self.cases[..self.cases.len().min(NAMED_CASES)];
        let named = named.join(", ");
        match self.cases.len().saturating_sub(NAMED_CASES) {
            0 => named,
            more => format!("{named} and {more} more"),
        }
    }
}

/// Writes `thresholds.toml:12: mean_kld limit raised: 0.05 → 0.5 (m::q8_0, m::q4_0 and 38 more)`.
impl fmt::Display for Weakened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Weakened { place, what, old, new, .. } = self;
        write!(f, "{place}: {what}: {old} → {new} ({})", self.reach())
    }
}

/// What `head` lets through that `base` does not, in the order of the base's cases.
///
/// `text_size` gives the bytes of a file of the corpus or of prompts, or none if they are not known.
///
/// New weights (another hash or revision) are what the gate is for, so they are no finding. Another *place*
/// to read them from is one: the gate could then judge a copy while another file is released. For a scheme
/// that must fail, only limits on the model itself are compared: whichever other limit it breaks, it is shown
/// as failing.
pub fn weakened(
    base: &Policy,
    head: &Policy,
    text_size: &dyn Fn(Revision, &Path) -> Option<u64>,
) -> Vec<Weakened> {
    let mut loosenings = Loosenings { head, list: Vec::new() };
    for old in &base.models {
        match head.models.iter().find(|new| new.name == old.name) {
            Some(new) => {
                let pair = Pair { old, new };
                loosenings.compare_settings(pair);
                loosenings.compare_texts(pair, text_size);
                old.cells.iter().for_each(|cell| loosenings.compare_cell(pair, cell));
                let is_there = |new: &Cell| old.cells.iter().any(|old| old.label == new.label);
                let added =
                    |new: &Cell| if is_there(new) { Vec::new() } else { old.limits.clone() };
                loosenings.compare_added(new, "an added scheme", &added);
            }
            None => {
                let what = if old.name.contains('@') { "`at` section" } else { "model" };
                let line = old.places.line("", "");
                let schemes = format!("{} schemes", old.cells.len());
                loosenings.add(
                    (None, line),
                    &format!("{what} removed"),
                    &old.name,
                    schemes,
                    "none",
                );
            }
        }
    }
    let is_new = |new: &&ModelPolicy| base.models.iter().all(|old| old.name != new.name);
    for new in head.models.iter().filter(is_new) {
        let owner = new.name.split_once('@').map(|(owner, _)| owner);
        match base.models.iter().find(|old| Some(&old.name[..]) == owner) {
            Some(old) => {
                let is_of_other_text = (&old.corpus, old.context) != (&new.corpus, new.context);
                let limits = |new: &Cell| {
                    let is_its =
                        |old: &&Cell| old.label == new.label && old.expect == Expectation::Pass;
                    let limits = old.cells.iter().find(is_its).map_or(&old.limits, |o| &o.limits);
                    // on another text the model has another perplexity
                    let is_due = |limit: &&Limit| {
                        let is_stated = new.limits.iter().any(|own| own.quantity == limit.quantity);
                        limit.quantity.statistic != Statistic::BaselinePpl
                            || !(is_of_other_text && is_stated)
                    };
                    limits.iter().filter(is_due).cloned().collect()
                };
                loosenings.compare_added(new, "an added `at` section", &limits);
            }
            None => loosenings.compare_added(new, "an added model", &|_| base.limits.clone()),
        }
    }
    loosenings.list
}

/// The sizes that [`weakened`] asks for, from the files of both revisions as they are seen from the policy's folder. A
/// file that cannot be read has no size.
pub fn text_sizes<'a>(
    policy: &'a Policy,
    base: &'a dyn Files,
    head: &'a dyn Files,
) -> impl Fn(Revision, &Path) -> Option<u64> + 'a {
    let folder = policy.path.parent().unwrap_or(Path::new(""));
    move |side, path| {
        let files = if side == Revision::Base { base } else { head };
        files.size(path.strip_prefix(folder).unwrap_or(path)).ok().flatten()
    }
}

/// Goldens that `base` has and `head` lacks although their cases remain. Without its golden, a change is not seen but
/// accepted anew.
///
/// The files are those of both revisions, seen from the policy's folder. Goldens of other engines count as well.
///
/// # Errors
/// A folder of goldens cannot be listed.
pub fn goldens_removed(
    head_policy: &Policy,
    base: &dyn Files,
    head: &dyn Files,
) -> Result<Vec<Weakened>, RepoError> {
    let goldens = Path::new(golden::FOLDER);
    let left = head.list(goldens)?;
    let folder = head_policy.path.parent().unwrap_or(Path::new(""));
    let gone = base.list(goldens)?.into_iter().filter(|path| !left.contains(path));
    Ok(gone
        .filter_map(|path| {
            let case = case_of_golden(head_policy, &path)?;
            let place = Place { file: folder.join(&path), line: None, at_base: true };
            let (what, old, new) = ("golden deleted".into(), "accepted".into(), "none".into());
            Some(Weakened { place, what, cases: vec![case], old, new })
        })
        .collect())
}

/// The cell that a golden belongs to, or the model if it is the golden of a model's text.
pub(crate) fn case_of_golden(policy: &Policy, path: &Path) -> Option<String> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".snap")?;
    policy.models.iter().find_map(|model| {
        if model.generate.is_some() && golden::text_stem(&model.name) == stem {
            return Some(model.name.clone());
        }
        let has_stem = |cell: &&Cell| model.cell_name(cell).file_stem() == stem;
        model.cells.iter().find(has_stem).map(|cell| model.cell_name(cell).to_string())
    })
}

/// A model as both policies have it.
#[derive(Clone, Copy)]
struct Pair<'p> {
    old: &'p ModelPolicy,
    new: &'p ModelPolicy,
}

/// The line of something in the head's file, and in the base's.
type Lines = (Option<usize>, Option<usize>);

impl Pair<'_> {
    /// The lines of the first of `keys` that each policy has.
    fn lines(self, scheme: &str, keys: &[&str]) -> Lines {
        let line = |model: &ModelPolicy| keys.iter().find_map(|key| model.places.line(scheme, key));
        (line(self.new), line(self.old))
    }
}

/// The edits that were found so far.
struct Loosenings<'p> {
    head: &'p Policy,
    list: Vec<Weakened>,
}

impl Loosenings<'_> {
    /// Adds an edit. If the same edit was found before, it reaches one more case.
    fn add(
        &mut self,
        (head, base): Lines,
        what: &str,
        case: &str,
        old: impl ToString,
        new: impl ToString,
    ) {
        let file = self.head.path.clone();
        let place = Place { file, line: head.or(base), at_base: head.is_none() };
        let (what, cases) = (what.to_owned(), vec![case.to_owned()]);
        let found = Weakened { place, what, cases, old: old.to_string(), new: new.to_string() };
        let same = |w: &&mut Weakened| {
            (&w.place, &w.what, &w.old, &w.new)
                == (&found.place, &found.what, &found.old, &found.new)
        };
        match self.list.iter_mut().find(same) {
            Some(known) => known.cases.extend(found.cases),
            None => self.list.push(found),
        }
    }

    /// Adds an edit of a model's own key if it weakens the gate.
    fn add_if(
        &mut self,
        is_weaker: bool,
        pair: Pair,
        key: &str,
        what: &str,
        [old, new]: [String; 2],
    ) {
        if is_weaker {
            self.add(pair.lines("", &[key]), what, &pair.old.name, old, new);
        }
    }

    /// Compares how a model is measured.
    fn compare_settings(&mut self, pair: Pair) {
        let Pair { old, new } = pair;
        let values = |value: &dyn Fn(&ModelPolicy) -> String| [value(old), value(new)];
        let contexts = values(&|model| model.context.to_string());
        self.add_if(new.context < old.context, pair, "context", "context shortened", contexts);
        let chunks = values(&|model| model.chunks.to_string());
        self.add_if(new.chunks < old.chunks, pair, "chunks", "chunks reduced", chunks);
        let shown = |confidence: Option<f64>| confidence.map_or("none".into(), |c| c.to_string());
        let confidences = values(&|model| shown(model.confidence));
        let is_lower = new.confidence < old.confidence;
        self.add_if(is_lower, pair, "confidence", "confidence lowered", confidences);
        let shown = |most: Option<usize>| most.map_or("none".into(), |most| most.to_string());
        let maxima = values(&|model| shown(model.max_chunks));
        let is_lower = new.max_chunks < old.max_chunks;
        self.add_if(is_lower, pair, "max_chunks", "fewer chunks if a verdict is open", maxima);
        let baselines = values(&|model| model.baseline.to_string());
        let is_other = new.baseline != old.baseline;
        self.add_if(is_other, pair, "baseline", "baseline changed", baselines);
        let places = [place_of_weights(old), place_of_weights(new)];
        let what = "the model is read from another place";
        self.add_if(places[0] != places[1], pair, "path", what, places);
        let is_diluted = old.corpus.iter().all(|file| new.corpus.contains(file))
            && new.chunks * old.corpus.len() < old.chunks * new.corpus.len()
            && new.chunks >= old.chunks;
        let shares = values(&|model| format!("{} / {}", model.chunks, model.corpus.len()));
        self.add_if(is_diluted, pair, "corpus", "fewer chunks for each text", shares);
        self.compare_reading(pair);
        if let Some(file) = &old.calibration {
            let files = [file.display().to_string(), "none".into()];
            let is_removed = new.calibration.is_none();
            self.add_if(is_removed, pair, "calibration", "calibration removed", files);
        }
        self.compare_prompts(pair);
        self.compare_retrieval(pair);
    }

    /// Compares how a checkpoint is read.
    fn compare_reading(&mut self, pair: Pair) {
        let Pair { old, new } = pair;
        let tokenizers = [old, new].map(|model| {
            let file = model.source.tokenizer.as_ref();
            file.map_or("the checkpoint's own".into(), |file| file.display().to_string())
        });
        let is_other = tokenizers[0] != tokenizers[1];
        self.add_if(is_other, pair, "tokenizer", "another tokenizer", tokenizers);
        let is_lifted = new.source.untrained && !old.source.untrained;
        let what = "the bound on the baseline's perplexity lifted";
        self.add_if(is_lifted, pair, "untrained", what, ["false".into(), "true".into()]);
        let is_other = new.source.bos != old.source.bos;
        let bos = [old, new].map(|model| {
            model.source.bos.map_or("as the checkpoint says".into(), |bos| bos.to_string())
        });
        self.add_if(is_other, pair, "bos", "BOS decided in another way", bos);
        for key in &new.source.ignore_keys {
            let is_added = !old.source.ignore_keys.contains(key);
            let what = format!("unread configuration key `{key}` let pass");
            self.add_if(
                is_added,
                pair,
                "ignore_keys",
                &what,
                ["an error".into(), "ignored".into()],
            );
        }
    }

    /// Compares the prompts, and how much the baseline writes after each.
    fn compare_prompts(&mut self, pair: Pair) {
        let Some(old) = &pair.old.generate else { return };
        let file = old.file.display().to_string();
        let Some(new) = &pair.new.generate else {
            return self.add_if(true, pair, "prompts", "prompts dropped", [file, "none".into()]);
        };
        let files = [file, new.file.display().to_string()];
        self.add_if(new.file != old.file, pair, "prompts", "prompts replaced", files);
        let tokens = [old.tokens.to_string(), new.tokens.to_string()];
        let is_shorter = new.tokens < old.tokens;
        self.add_if(is_shorter, pair, "generate", "generated text shortened", tokens);
    }

    /// Compares what must be retrieved from which contexts.
    fn compare_retrieval(&mut self, pair: Pair) {
        let Some(old) = &pair.old.retrieval else { return };
        let lengths =
            |plan: &Plan| plan.lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let (was, key) = (&old.plan, "retrieval");
        let Some(new) = &pair.new.retrieval else {
            let values = [lengths(was), "none".into()];
            return self.add_if(true, pair, key, "retrieval dropped", values);
        };
        let is = &new.plan;
        let is_left_out = was.lengths.iter().any(|length| !is.lengths.contains(length));
        let values = [lengths(was), lengths(is)];
        let (lengths, at) = ("a length of retrieval removed", "retrieval.lengths");
        self.add_if(is_left_out, pair, at, lengths, values);
        let values = [was.contexts.to_string(), is.contexts.to_string()];
        let (what, at) = ("contexts of retrieval reduced", "retrieval.contexts");
        self.add_if(is.contexts < was.contexts, pair, at, what, values);
        let values = [was.needles.to_string(), is.needles.to_string()];
        let (what, at) = ("needles reduced", "retrieval.needles");
        self.add_if(is.needles < was.needles, pair, at, what, values);
        // somebody could look for contexts on which a scheme does well
        let values = [was.seed.to_string(), is.seed.to_string()];
        let (what, at) = ("another seed of retrieval", "retrieval.seed");
        self.add_if(is.seed != was.seed, pair, at, what, values);
        for limit in &old.limits {
            let name = limit.measure.name();
            let bound = new.limits.iter().find(|new| new.measure == limit.measure);
            let word = if bound.is_some() { "raised" } else { "removed" };
            let is_weaker = bound.is_none_or(|new| new.bound > limit.bound);
            let what = format!("{name} limit of retrieval {word}");
            let values =
                [limit.bound.to_string(), bound.map_or("none".into(), |new| new.bound.to_string())];
            self.add_if(is_weaker, pair, &format!("retrieval.{name}"), &what, values);
        }
    }

    /// Compares the texts that a model is measured on.
    fn compare_texts(&mut self, pair: Pair, text_size: &dyn Fn(Revision, &Path) -> Option<u64>) {
        let Pair { old, new } = pair;
        for file in old.corpus.iter().filter(|file| !new.corpus.contains(file)) {
            let lines = pair.lines("", &["corpus"]);
            self.add(lines, "corpus file removed", &old.name, file.display(), "none");
        }
        // a mean is over all texts, so an easy text hides what a hard one shows
        for file in new.corpus.iter().filter(|file| !old.corpus.contains(file)) {
            let lines = pair.lines("", &["corpus"]);
            self.add(lines, "corpus file added", &old.name, "none", file.display());
        }
        self.compare_order(pair);
        let prompts = |model: &ModelPolicy| model.generate.as_ref().map(|p| p.file.clone());
        let kept = old.corpus.iter().filter(|file| new.corpus.contains(file));
        let kept = kept.map(|file| ("corpus", file.clone()));
        let kept = kept.chain(
            prompts(old).filter(|_| prompts(old) == prompts(new)).map(|file| ("prompts", file)),
        );
        for (key, file) in kept {
            let Some(was) = text_size(Revision::Base, &file) else { continue };
            let is = text_size(Revision::Head, &file);
            if is.is_none_or(|is| is < was) {
                let what = format!("{key} file {} shortened", file.display());
                let is = is.map_or("not there".into(), |is| format!("{is} bytes"));
                let lines = pair.lines("", &[key]);
                self.add(lines, &what, &old.name, format!("{was} bytes"), is);
            }
        }
    }

    /// Compares the order of the texts. Chunks are dealt to texts in turn, so the first texts get what is left over.
    fn compare_order(&mut self, pair: Pair) {
        let Pair { old, new } = pair;
        let sorted = |model: &ModelPolicy| {
            let mut texts = model.corpus.clone();
            texts.sort();
            texts
        };
        // other texts and fewer chunks are findings of their own
        let is_other_order = old.corpus != new.corpus && sorted(old) == sorted(new);
        if !is_other_order || new.chunks < old.chunks {
            return;
        }
        let lines = pair.lines("", &["corpus"]);
        let mut is_found = false;
        for file in &old.corpus {
            let (was, is) = (chunks_of(old, file), chunks_of(new, file));
            if is < was {
                let what = format!("texts in another order: fewer chunks of {}", file.display());
                self.add(lines, &what, &old.name, was, is);
                is_found = true;
            }
        }
        // a text may be too short for its share, and then other texts get more
        let is_even = |model: &ModelPolicy| model.chunks.is_multiple_of(model.corpus.len().max(1));
        if !is_found && !is_even(new) {
            let order = |model: &ModelPolicy| {
                let names = model.corpus.iter().map(|file| file.display().to_string());
                names.collect::<Vec<_>>().join(", ")
            };
            self.add(lines, "texts in another order", &old.name, order(old), order(new));
        }
    }

    /// Compares how a scheme is judged.
    fn compare_cell(&mut self, pair: Pair, old: &Cell) {
        let (label, case) = (&old.label, &pair.old.cell_name(old).to_string());
        let Some(new) = pair.new.cells.iter().find(|new| new.label == *label) else {
            self.add(pair.lines(label, &[""]), "scheme removed", case, label, "none");
            return;
        };
        if new.scheme != old.scheme {
            let lines = pair.lines(label, &[MEANING, ""]);
            self.add(lines, "scheme redefined", case, &old.scheme, &new.scheme);
        }
        if new.expect != old.expect {
            let lines = pair.lines(label, &["expect"]);
            self.add(lines, "expectation changed", case, old.expect.name(), new.expect.name());
        }
        if new.ignored && !old.ignored {
            self.add(pair.lines(label, &[IGNORED]), "ignored", case, false, true);
        }
        let limits = old.limits.iter().filter(|limit| counts(old.expect, limit));
        for limit in limits {
            let lines = pair.lines(label, &[&limit.quantity.name()]);
            self.compare_limit(lines, (pair.new, new), limit, "");
        }
    }

    /// Compares the limits of schemes that only the head has with those that the base has for them. Otherwise a scheme that does much harm would be let through under another text or name.
    fn compare_added(
        &mut self,
        new: &ModelPolicy,
        what: &str,
        at_base: &dyn Fn(&Cell) -> Vec<Limit>,
    ) {
        for cell in &new.cells {
            let limits = at_base(cell);
            let due = |limit: &&Limit| counts(cell.expect, limit) && is_about(new, limit);
            for limit in limits.iter().filter(due) {
                let keys = [&limit.quantity.name()[..], ""];
                let line = keys.iter().find_map(|key| new.places.line(&cell.label, key));
                self.compare_limit((line, None), (new, cell), limit, &format!(" of {what}"));
            }
        }
    }

    fn compare_limit(
        &mut self,
        lines: Lines,
        (model, new): (&ModelPolicy, &Cell),
        old: &Limit,
        of: &str,
    ) {
        let Some((word, bound)) = old.loosened_by(&new.limits) else { return };
        let what = format!("{} limit{of} {word}", old.quantity.name());
        let bound = bound.map_or("none".into(), |bound| bound.to_string());
        self.add(lines, &what, &model.cell_name(new).to_string(), old.bound, bound);
    }
}

/// Whether a model has a text that a limit is about: a limit by category is about one of them.
fn is_about(model: &ModelPolicy, limit: &Limit) -> bool {
    let wanted = limit.quantity.category.as_ref();
    wanted.is_none_or(|wanted| model.corpus.iter().any(|text| category(text) == *wanted))
}

/// Whether a limit is one that a scheme with this expectation can be weakened by.
fn counts(expect: Expectation, limit: &Limit) -> bool {
    match expect {
        Expectation::Pass => true,
        Expectation::Fail => limit.quantity.statistic == Statistic::BaselinePpl,
        Expectation::Report => false,
    }
}

/// How many chunks a text gets if all texts are long enough.
fn chunks_of(model: &ModelPolicy, file: &Path) -> usize {
    let texts = &model.corpus;
    let places = texts.iter().enumerate().filter(|(_, text)| *text == file);
    places.map(|(place, _)| dealt(model.chunks, texts.len(), place)).sum()
}

/// Where a model's weights are read from, without their version.
fn place_of_weights(model: &ModelPolicy) -> String {
    match &model.source.hub {
        Some(pinned) => match &pinned.file {
            Some(file) => format!("{}/{file}", pinned.repository),
            None => pinned.repository.clone(),
        },
        None => model.source.path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const BASE: &str = r#"[defaults]
corpus = ["c.txt", "d.txt"]
context = 512
chunks = 4
prompts = "p.toml"
generate = 48
[defaults.limits]
mean_kld = 0.05
top1_agreement = 0.87
rms_dp = 0.5
[defaults.schemes]
q8_0 = { limits = { mean_kld = 0.02 } }
q5_0 = {}
[schemes]
prod = "q4_0:norot"
[models.m]
path = "m.gguf"
calibration = "m.calibration"
limits.baseline_ppl = 40.0
at.long = { context = 1024 }
[models.m.schemes]
prod = {}
q4_0 = { expect = "fail", reason = "outliers" }
q5_1 = { expect = "report" }
[models.n]
path = "n.gguf"
prompts = false
"#;

    fn policy(text: &str) -> Policy {
        let parsed = Policy::parse(text, Path::new("thresholds.toml"));
        parsed.unwrap_or_else(|error| panic!("{error}")).0
    }

    fn sizes(of: &[(&str, u64)]) -> BTreeMap<PathBuf, u64> {
        of.iter().map(|(path, bytes)| (PathBuf::from(path), *bytes)).collect()
    }

    /// Loosenings of going from `base` to `head`, without texts.
    fn between(base: &str, head: &str) -> Vec<String> {
        let found = weakened(&policy(base), &policy(head), &|_, _| None);
        found.iter().map(ToString::to_string).collect()
    }

    /// The edit weakens as said; undone, it tightens, which is no finding.
    #[track_caller]
    fn assert_weaker(edits: &[(&str, &str)], expected: &[&str]) {
        let mut head = BASE.to_owned();
        for (old, new) in edits {
            assert_eq!(head.matches(old).count(), 1, "{old}");
            head = head.replace(old, new);
        }
        assert_eq!(between(BASE, &head), expected);
        assert_eq!(between(&head, BASE), [""; 0], "the way back");
    }

    #[test]
    fn the_same_policy_is_not_weaker() {
        assert_eq!(between(BASE, BASE), [""; 0]);
        assert_eq!(between(BASE, &format!("# a note\n\n{BASE}")), [""; 0]);
    }

    #[test]
    fn a_default_limit_that_reaches_many_cases_is_one_finding() {
        assert_weaker(
            &[("mean_kld = 0.05", "mean_kld = 0.5")],
            &["thresholds.toml:8: mean_kld limit raised: 0.05 → 0.5 \
               (m::q5_0, m::prod, m@long::q5_0 and 2 more)"],
        );
    }

    #[test]
    fn limits_have_a_direction() {
        assert_weaker(
            &[("agreement = 0.87", "agreement = 0.8"), ("rms_dp = 0.5", "rms_dp = false")],
            &[
                "thresholds.toml:9: top1_agreement limit lowered: 0.87 → 0.8 \
                 (m::q8_0, m::q5_0, m::prod and 5 more)",
                "thresholds.toml:10: rms_dp limit removed: 0.5 → none \
                 (m::q8_0, m::q5_0, m::prod and 5 more)",
            ],
        );
    }

    #[test]
    fn a_limit_of_its_own_that_goes_is_found_where_the_inherited_one_stands() {
        assert_weaker(
            &[("q8_0 = { limits = { mean_kld = 0.02 } }", "q8_0 = {}")],
            &["thresholds.toml:8: mean_kld limit raised: 0.02 → 0.05 \
               (m::q8_0, m@long::q8_0, n::q8_0)"],
        );
        assert_weaker(
            &[("limits.baseline_ppl = 40.0", "")],
            &["thresholds.toml:19 at the base: baseline_ppl limit removed: 40 → none \
               (m::q8_0, m::q5_0, m::prod and 5 more)"],
        );
    }

    #[test]
    fn limits_by_category_count_each() {
        let base = BASE.replace("chunks = 4", "chunks = 16").replace(
            "rms_dp = 0.5",
            "rms_dp = 0.5\n[defaults.limits.category.d]\nmean_kld = 0.04\ntop1_agreement = 0.9",
        );
        let every = "(m::q8_0, m::q5_0, m::prod and 5 more)";
        let raised = base.replace("mean_kld = 0.04", "mean_kld = 0.06");
        assert_eq!(
            between(&base, &raised),
            [format!("thresholds.toml:12: mean_kld of d limit raised: 0.04 → 0.06 {every}")]
        );
        assert_eq!(between(&raised, &base), [""; 0]);
        let removed = base.replace("top1_agreement = 0.9", "");
        let [found] = &between(&base, &removed)[..] else { panic!("not one finding") };
        assert!(
            found.contains(&format!("top1_agreement of d limit removed: 0.9 → none {every}")),
            "{found}"
        );
        // the same bound on another category judges other chunks
        let moved = base.replace("category.d]", "category.c]");
        assert_eq!(between(&base, &moved).len(), 2);
    }

    #[test]
    fn a_limit_that_no_case_sees_is_no_finding() {
        let base = BASE.replace("rms_dp = 0.5", "rms_dp = 0.5\np99_kld = 0.5")
            + "limits.p99_kld = 0.4\n[models.n.schemes]\nq8_0 = false\n";
        let base = base.replace("limits.baseline_ppl", "limits.p99_kld = 0.3\nlimits.baseline_ppl");
        assert_eq!(between(&base, &base.replace("p99_kld = 0.5", "p99_kld = 5.0")), [""; 0]);
    }

    #[test]
    fn retrieval_may_not_become_easier() {
        let own =
            "[models.m.retrieval]\nlengths = [512, 1024]\ncontexts = 9\nneedles = 6\nseed = 1\n\
                   limits = { loss = 0.05, answer_nll = 0.1 }\n";
        let base = format!("{BASE}{own}");
        let head = |old: &str, new: &str| {
            assert_eq!(base.matches(old).count(), 1, "{old}");
            base.replace(old, new)
        };
        for (old, new, found) in [
            ("[512, 1024]", "[512]", "29: a length of retrieval removed: 512, 1024 → 512 (m)"),
            ("contexts = 9", "contexts = 8", "30: contexts of retrieval reduced: 9 → 8 (m)"),
            ("needles = 6", "needles = 4", "31: needles reduced: 6 → 4 (m)"),
            ("loss = 0.05", "loss = 0.5", "33: loss limit of retrieval raised: 0.05 → 0.5 (m)"),
            (
                "loss = 0.05, ",
                "",
                "33 at the base: loss limit of retrieval removed: 0.05 → none (m)",
            ),
            (own, "", "28 at the base: retrieval dropped: 512, 1024 → none (m)"),
        ] {
            let head = head(old, new);
            assert_eq!(between(&base, &head), [format!("thresholds.toml:{found}")], "{new}");
            assert_eq!(between(&head, &base), [""; 0], "the way back");
        }
        let other = head("seed = 1", "seed = 2");
        let found = "thresholds.toml:32: another seed of retrieval: 1 → 2 (m)";
        assert_eq!(between(&base, &other), [found]);
    }

    /// A scheme that must fail is shown as failing, whichever limit it breaks; its model must be sound.
    #[test]
    fn of_a_scheme_that_must_fail_the_limits_on_the_model_count() {
        let own = |limits: &str| {
            BASE.replace(
                "reason = \"outliers\"",
                &format!("reason = \"o\", limits = {{ {limits} }}"),
            )
        };
        let (base, head) = (own("mean_kld = 0.05"), own("mean_kld = 0.5"));
        assert_eq!(between(&base, &head), [""; 0]);
        assert_eq!(between(&head, &base), [""; 0]);
        assert_eq!(
            between(&own("baseline_ppl = 30.0"), &own("baseline_ppl = 900.0")),
            ["thresholds.toml:23: baseline_ppl limit raised: 30 → 900 (m::q4_0, m@long::q4_0)"]
        );
    }

    #[test]
    fn another_expectation_is_a_finding_both_ways() {
        let fails = "q5_0 = { expect = \"fail\", reason = \"r\" }";
        for (new, word) in [(fails, "fail"), ("q5_0 = { expect = \"report\" }", "report")] {
            let head = BASE.replace("q5_0 = {}", new);
            let reach = "(m::q5_0, m@long::q5_0, n::q5_0)";
            assert_eq!(
                between(BASE, &head),
                [format!("thresholds.toml:13: expectation changed: pass → {word} {reach}")]
            );
            assert_eq!(
                between(&head, BASE),
                [format!(
                    "thresholds.toml:13 at the base: expectation changed: {word} → pass {reach}"
                )]
            );
        }
    }

    #[test]
    fn what_is_not_measured_any_more_is_found() {
        assert_weaker(
            &[("prod = {}\n", "")],
            &["thresholds.toml:22 at the base: scheme removed: prod → none (m::prod, m@long::prod)"],
        );
        assert_weaker(
            &[("prompts = false\n", "prompts = false\nschemes.q5_0 = false\n")],
            &["thresholds.toml:28: scheme removed: q5_0 → none (n::q5_0)"],
        );
        assert_weaker(
            &[("at.long = { context = 1024 }\n", "")],
            &["thresholds.toml:20 at the base: `at` section removed: 5 schemes → none (m@long)"],
        );
        assert_weaker(
            &[("[models.n]\npath = \"n.gguf\"\nprompts = false\n", "")],
            &["thresholds.toml:25 at the base: model removed: 2 schemes → none (n)"],
        );
    }

    /// Another text or name of a scheme that does harm is no way round the limits.
    #[test]
    fn an_added_scheme_may_do_what_the_base_lets_any_scheme_do() {
        let added = |own: &str| {
            let head = BASE.replace("prod = {}\n", &format!("prod = {{}}\nq4_1 = {own}\n"));
            (between(BASE, &head), between(&head, BASE))
        };
        let (found, back) = added("{ limits = { mean_kld = 2.0, top1_agreement = false } }");
        assert_eq!(
            found,
            [
                "thresholds.toml:23: mean_kld limit of an added scheme raised: 0.05 → 2 \
                 (m::q4_1, m@long::q4_1)",
                "thresholds.toml:23: top1_agreement limit of an added scheme removed: 0.87 → none \
                 (m::q4_1, m@long::q4_1)"
            ]
        );
        assert_eq!(
            back,
            ["thresholds.toml:23 at the base: scheme removed: q4_1 → none (m::q4_1, m@long::q4_1)"]
        );
        for own in [
            "{}",
            "{ limits = { mean_kld = 0.01 } }",
            "{ expect = \"report\" }",
            "{ expect = \"fail\", reason = \"r\", limits = { mean_kld = 2.0 } }",
        ] {
            assert_eq!(added(own).0, [""; 0], "{own}");
        }
        let hidden = "{ expect = \"fail\", reason = \"r\", limits = { baseline_ppl = 900.0 } }";
        let expected =
            "thresholds.toml:23: baseline_ppl limit of an added scheme raised: 40 → 900 \
                        (m::q4_1, m@long::q4_1)";
        assert_eq!(added(hidden).0, [expected]);
    }

    /// Neither is another section, or the same file as another model.
    #[test]
    fn an_added_section_or_model_has_no_looser_limits_than_the_base_gives() {
        let wide = "limits = { mean_kld = 2.0, rms_dp = false }";
        let with = |added: &str| between(BASE, &format!("{BASE}{added}"));
        let section = |more: &str| format!("[models.m.at.short]\ncontext = 256\n{more}\n");
        assert_eq!(with(&section("")), [""; 0], "what is inherited");
        // q8_0 has limits of its own; what must fail at the base may do what the limits of the model say
        let passes = "schemes = { q4_0 = { expect = \"pass\" } }";
        assert_eq!(with(&section(passes)), [""; 0]);
        assert_eq!(
            with(&section(&format!("{wide}\n{passes}"))),
            [
                "thresholds.toml:30: mean_kld limit of an added `at` section raised: 0.02 → 2 \
                 (m@short::q8_0)",
                "thresholds.toml:30: rms_dp limit of an added `at` section removed: 0.5 → none \
                 (m@short::q8_0, m@short::q5_0, m@short::prod and 1 more)",
                "thresholds.toml:30: mean_kld limit of an added `at` section raised: 0.05 → 2 \
                 (m@short::q5_0, m@short::prod, m@short::q4_0)"
            ]
        );
        // the perplexity is that of the text, but some limit on it stays
        let ppl = |bound: &str| with(&section(&format!("limits.baseline_ppl = {bound}")));
        assert_eq!(ppl("90.0"), [""; 0]);
        assert!(ppl("false")[0].contains("baseline_ppl limit of an added `at` section removed"));
        let model = |more: &str| format!("[models.o]\npath = \"m.gguf\"\n{more}\n");
        assert_eq!(with(&model("")), [""; 0]);
        assert_eq!(
            with(&model(wide)),
            [
                "thresholds.toml:30: mean_kld limit of an added model raised: 0.05 → 2 (o::q8_0, o::q5_0)",
                "thresholds.toml:30: rms_dp limit of an added model removed: 0.5 → none (o::q8_0, o::q5_0)"
            ]
        );
        // without `defaults.limits` there is nothing to compare with
        let bare = BASE.replace("rms_dp = 0.5\n", "");
        let head = format!("{bare}{}", model("limits = { rms_dp = 0.9 }"));
        assert_eq!(between(&bare, &head), [""; 0]);
    }

    #[test]
    fn a_renamed_model_is_a_removed_one() {
        let head = BASE.replace("[models.n]", "[models.o]");
        let expected = "thresholds.toml:25 at the base: model removed: 2 schemes → none (n)";
        assert_eq!(between(BASE, &head), [expected]);
    }

    #[test]
    fn newly_ignored() {
        assert_weaker(
            &[("path = \"n.gguf\"", "path = \"n.gguf\"\nignored = true")],
            &["thresholds.toml:27: ignored: false → true (n::q8_0, n::q5_0)"],
        );
        assert_weaker(
            &[("prod = {}", "prod = { ignored = true }")],
            &["thresholds.toml:22: ignored: false → true (m::prod, m@long::prod)"],
        );
        assert_weaker(
            &[("q5_0 = {}", "q5_0 = { ignored = true }")],
            &["thresholds.toml:13: ignored: false → true (m::q5_0, m@long::q5_0, n::q5_0)"],
        );
    }

    #[test]
    fn what_was_ignored_may_stay_so() {
        let ignored = BASE.replace("path = \"n.gguf\"", "path = \"n.gguf\"\nignored = true");
        assert_eq!(between(&ignored, &ignored), [""; 0]);
    }

    #[test]
    fn less_is_measured() {
        assert_weaker(
            &[("context = 512", "context = 256")],
            &["thresholds.toml:3: context shortened: 512 → 256 (m, n)"],
        );
        assert_weaker(
            &[("context = 1024", "context = 600")],
            &["thresholds.toml:20: context shortened: 1024 → 600 (m@long)"],
        );
        assert_weaker(
            &[("chunks = 4", "chunks = 3")],
            &["thresholds.toml:4: chunks reduced: 4 → 3 (m, m@long, n)"],
        );
        let sure = BASE.replace("chunks = 4", "chunks = 8\nconfidence = 0.95");
        let less = sure.replace("0.95", "0.9");
        let what = "thresholds.toml:5: confidence lowered: 0.95";
        assert_eq!(between(&sure, &less), [format!("{what} → 0.9 (m, m@long, n)")]);
        let none = sure.replace("confidence = 0.95\n", "");
        assert_eq!(
            between(&sure, &none),
            [format!("{what} → none (m, m@long, n)").replace(":5:", ":5 at the base:")]
        );
        assert_eq!(between(&less, &sure), [""; 0]);
        let [more, less] = ["64", "32"]
            .map(|most| sure.replace("chunks = 8", &format!("chunks = 8\nmax_chunks = {most}")));
        let what = "thresholds.toml:5: fewer chunks if a verdict is open: 64 → 32 (m, m@long, n)";
        assert_eq!(between(&more, &less), [what]);
        assert_eq!(between(&less, &more), [""; 0]);
        let fewer = BASE.replace("[\"c.txt\", \"d.txt\"]", "[\"d.txt\"]");
        let removed = "thresholds.toml:2: corpus file removed: c.txt → none (m, m@long, n)";
        assert_eq!(between(BASE, &fewer), [removed]);
        assert_weaker(
            &[("generate = 48", "generate = 8")],
            &["thresholds.toml:6: generated text shortened: 48 → 8 (m, m@long)"],
        );
        assert_weaker(
            &[("calibration = \"m.calibration\"\n", "")],
            &["thresholds.toml:18 at the base: calibration removed: m.calibration → none (m, m@long)"],
        );
        assert_weaker(
            &[("path = \"m.gguf\"", "path = \"m.gguf\"\nprompts = false")],
            &["thresholds.toml:18: prompts dropped: p.toml → none (m, m@long)"],
        );
        assert_weaker(
            &[("prompts = \"p.toml\"\ngenerate = 48\n", "")],
            &["thresholds.toml:5 at the base: prompts dropped: p.toml → none (m, m@long)"],
        );
    }

    #[test]
    fn what_has_no_order_is_found_both_ways() {
        for (old, new, line, what, values) in [
            ("= 4\n", "= 4\nbaseline = \"bf16\"\n", 5, "baseline changed", ["f16", "bf16"]),
            ("p.toml", "q.toml", 5, "prompts replaced", ["p.toml", "q.toml"]),
            ("q4_0:norot", "q4_1", 15, "scheme redefined", ["q4_0:norot", "q4_1"]),
        ] {
            assert_eq!(BASE.matches(old).count(), 1, "{old}");
            let head = BASE.replace(old, new);
            for (from, to, [was, is]) in
                [(BASE, head.as_str(), values), (head.as_str(), BASE, [values[1], values[0]])]
            {
                let found = weakened(&policy(from), &policy(to), &|_, _| None);
                let [found] = &found[..] else { panic!("{what}: {found:?}") };
                assert_eq!(found.place.line, Some(line));
                assert_eq!((&*found.what, &*found.old, &*found.new), (what, was, is));
            }
        }
    }

    #[test]
    fn shorter_texts() {
        let policy = policy(BASE);
        let found = |base: &[(&str, u64)], head: &[(&str, u64)]| {
            let (base, head) = (sizes(base), sizes(head));
            let texts = |side, path: &Path| match side {
                Revision::Base => base.get(path).copied(),
                Revision::Head => head.get(path).copied(),
            };
            let found = weakened(&policy, &policy, &texts);
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let base = [("c.txt", 100), ("d.txt", 50), ("p.toml", 9)];
        assert_eq!(
            found(&base, &[("c.txt", 99), ("d.txt", 51), ("p.toml", 9)]),
            ["thresholds.toml:2: corpus file c.txt shortened: 100 bytes → 99 bytes (m, m@long, n)"]
        );
        assert_eq!(
            found(&base, &[("c.txt", 100), ("p.toml", 8)]),
            [
                "thresholds.toml:2: corpus file d.txt shortened: 50 bytes → not there (m, m@long, n)",
                "thresholds.toml:5: prompts file p.toml shortened: 9 bytes → 8 bytes (m, m@long)",
            ]
        );
        assert_eq!(found(&base, &[("c.txt", 101), ("d.txt", 50), ("p.toml", 9)]), [""; 0]);
        assert_eq!(found(&[], &base), [""; 0], "what the base's text was is not known");
    }

    #[test]
    fn the_weights_are_the_subject() {
        let sha256 = format!("path = \"m.gguf\"\nsha256 = \"{}\"", "a".repeat(64));
        assert_eq!(between(BASE, &BASE.replace("path = \"m.gguf\"", &sha256)), [""; 0]);
    }

    /// A copy elsewhere may be judged while another is released.
    #[test]
    fn another_place_of_the_weights_is_found() {
        let found = between(BASE, &BASE.replace("path = \"m.gguf\"", "path = \"copy/m.gguf\""));
        let [finding] = &found[..] else { panic!("{found:?}") };
        let moved = "the model is read from another place: m.gguf → copy/m.gguf";
        assert!(finding.contains(moved), "{finding}");
        let dotted = BASE.replace("path = \"m.gguf\"", "path = \"./m.gguf\"");
        assert_eq!(between(BASE, &dotted), [""; 0]);
    }

    #[test]
    fn what_is_let_pass_or_read_otherwise_is_found() {
        let path = "path = \"m.gguf\"";
        let with = |line: &str| format!("{path}\n{line}");
        let weaker = |line: &str, what: &str| {
            let head = BASE.replace(path, &with(line));
            let [finding] = &between(BASE, &head)[..] else { panic!("{line}: not one finding") };
            assert!(finding.contains(what), "{finding}");
            head
        };
        let head = weaker("untrained = true", "the baseline's perplexity lifted: false → true");
        assert_eq!(between(&head, BASE), [""; 0]);
        let head = weaker("ignore_keys = [\"llama.x\"]", "`llama.x` let pass: an error → ignored");
        assert_eq!(between(&head, BASE), [""; 0]);
        // nobody knows which tokenizer is the easier one, nor which way of reading BOS
        let head =
            weaker("tokenizer = \"t.json\"", "another tokenizer: the checkpoint's own → t.json");
        assert_eq!(between(&head, BASE).len(), 1);
        let head =
            weaker("bos = false", "BOS decided in another way: as the checkpoint says → false");
        assert_eq!(between(&head, BASE).len(), 1);
    }

    /// What is left of the chunks goes to the first texts: with one chunk, the first is all that is measured.
    #[test]
    fn texts_in_another_order_are_found_where_it_matters() {
        let [two, three] = [r#"["c.txt", "d.txt"]"#, r#"["c.txt", "d.txt", "e.txt"]"#];
        let found = |base: &str, head: &str, chunks: [usize; 2]| {
            let with = |corpus: &str, chunks: usize| {
                let policy = BASE.replace(two, corpus);
                policy.replace("chunks = 4", &format!("chunks = {chunks}"))
            };
            between(&with(base, chunks[0]), &with(head, chunks[1]))
        };
        let turned = r#"["d.txt", "c.txt"]"#;
        assert_eq!(found(two, turned, [4, 4]), [""; 0], "each has two either way");
        let fewer = |was: usize, is: usize| {
            format!(
                "thresholds.toml:2: texts in another order: fewer chunks of c.txt: {was} → {is} \
                 (m, m@long, n)"
            )
        };
        assert_eq!(found(two, turned, [3, 3]), [fewer(2, 1)]);
        assert_eq!(found(two, turned, [1, 1]), [fewer(1, 0)]);
        assert_eq!(found(two, turned, [3, 4]), [""; 0], "more of both");
        // where c.txt is too short, the second gets what is left
        let turned = r#"["c.txt", "e.txt", "d.txt"]"#;
        let order = "thresholds.toml:2: texts in another order: c.txt, d.txt, e.txt → \
                     c.txt, e.txt, d.txt (m, m@long, n)";
        assert_eq!(found(three, turned, [4, 4]), [order]);
        assert_eq!(found(three, turned, [6, 6]), [""; 0]);
    }

    /// More texts on as many chunks leave fewer to each that was there.
    #[test]
    fn a_text_is_diluted_by_others() {
        let base =
            BASE.replace("corpus = [", "corpus = [\"x.txt\", ").replace("chunks = ", "chunks = 1");
        assert!(base != BASE, "{BASE}");
        let more = base.replace("\"x.txt\"", "\"x.txt\", \"y.txt\"");
        let found = between(&base, &more);
        assert!(found.iter().any(|f| f.contains("fewer chunks for each text")), "{found:?}");
        assert!(found.iter().any(|f| f.contains("corpus file added: none → y.txt")), "{found:?}");
        assert!(between(&more, &base).iter().all(|f| !f.contains("fewer chunks for each text")));
    }
}
