//! `kvgate suggest`: which scheme to serve.
//!
//! The way of a search: an engine says which codecs there are and which parts of a cache it can store in ways of their own
//! (`engines`). Lanes of single parts on few chunks say what each part does (`scouting`); harms are taken to add up, so a
//! knapsack (`knapsack`) gives the schemes that are worth their bits (`frontier`), and each is spelled as a text
//! (`spelling`). The best of them are measured on all chunks that choose, and the winners (`choice`) are measured again on
//! chunks that did not choose (`passes`). What came of it is told in words (`words`) and in a terminal, and can be written
//! into a policy (`write`).

pub mod budget;
mod choice;
pub mod engines;
#[cfg(test)]
mod fixture;
mod frontier;
mod knapsack;
mod passes;
mod scouting;
mod spelling;
pub mod terminal;
mod words;
pub mod write;

use crate::kv::effective::Effective;
use crate::kv::Scheme;
use crate::measure::corpus::{self, Chunk, CorpusError, Draw};
use crate::measure::prepare::Prepared;
use crate::measure::{remark_on_perplexity, MeasureError, UncontrolledError};
use crate::progress::Progress;
use crate::report::flags;
use crate::results::{Conditions, Control, Subject};
use crate::text::numbers::count;
use budget::Budget;
use choice::{Comparison, Goal, Recommended, VERIFIED};
use engines::{Coded, Engine, Family, Unfit, EXACT};
use frontier::{fits, Point};
use passes::Passes;
pub use passes::Reading;
use scouting::{Candidate, Scouts};
use serde::Serialize;
use std::time::Instant;

/// The version of the format of a suggestion as JSON.
const FORMAT: u32 = 1;

/// The scheme that others are compared with: what this project recommends for a model of which nothing is known.
pub const REFERENCE: &str = "q8_0/q4_0";

/// What a search may be asked for.
#[derive(Debug, Clone)]
pub struct Options {
    pub engine: Engine,
    /// Names of codecs. If there are none, the engine decides.
    pub codecs: Vec<String>,
    /// How many codecs each slot of a mixture may have. 0 for no mixtures.
    pub mixed: usize,
    /// How many chunks single parts are measured on.
    pub scouting: usize,
    /// How many chunks winners are measured on, beside those that chose them.
    pub verifying: usize,
    /// The context that is served, in tokens.
    pub served: usize,
    pub budget: Option<Budget>,
}

impl Options {
    /// The codecs that are tried, in words that follow "the codecs that".
    fn those_codecs(&self) -> String {
        match &self.codecs[..] {
            [] => format!("{} has", self.engine.name()),
            _ => "--codecs names".into(),
        }
    }
}

/// Which scheme to serve.
#[derive(Debug, Clone, Serialize)]
pub struct Suggestion {
    pub format: u32,
    pub model: String,
    pub engine: Engine,
    /// Names of the codecs that were asked for. If there are none, the engine decided.
    pub codecs: Vec<String>,
    pub subject: Subject,
    /// Its `chunks` are those that chose.
    pub conditions: Conditions,
    /// Chunks that single parts were measured on, and chunks that winners were verified on.
    pub scouting: usize,
    pub verifying: usize,
    /// The context whose cache the bits are about, in tokens.
    pub served: usize,
    pub budget: Option<Budget>,
    pub controls: Vec<Control>,
    pub baseline_ppl: f64,
    pub device: String,
    pub arithmetic: String,
    /// How many lanes ran through how many chunks, all together.
    pub lane_chunks: usize,
    /// Wall-clock time, loading included.
    pub seconds: f64,
    pub notes: Vec<String>,
    pub unfit: Vec<Unfit>,
    /// The schemes that were measured, those with the fewest bits first.
    pub rows: Vec<Row>,
    pub recommended: Option<Recommended>,
    /// The index of [`REFERENCE`].
    pub reference: Option<usize>,
    /// Whether it may be recommended. If not, because the engine does not have it or it has other codecs than those that
    /// were asked for, it was only measured to compare.
    pub serves_reference: bool,
    /// The scheme with fewer bits that comes closest to the reference, or beats it.
    pub rival: Option<Comparison>,
    /// What was found, in words.
    pub answer: Vec<String>,
}

impl Suggestion {
    /// Whether it is the scheme to serve.
    fn is_recommended(&self, row: usize) -> bool {
        self.recommended.is_some_and(|own| own.row == row)
    }

    /// Whether it is not there only to compare.
    fn may_serve(&self, row: usize) -> bool {
        self.serves_reference || self.reference != Some(row)
    }
}

/// A scheme that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub scheme: String,
    pub effective: String,
    /// Bits per element of the whole cache at the served context.
    pub bits: f64,
    /// Bytes of the cache of one sequence of that length.
    pub bytes: usize,
    /// Whether layers differ.
    pub is_mixed: bool,
    /// The mean KLD that its parts add up to on the chunks of the scouts. None if some part was not measured alone, and if
    /// one part is the whole.
    pub predicted: Option<f64>,
    /// The mean KLD that it has on these chunks.
    pub on_scouts: f64,
    /// What it does on the chunks that chose.
    pub measured: Reading,
    /// What it does on other chunks.
    pub verified: Option<Reading>,
    /// Whether no other row has no more bits and no more divergence on the chunks that chose.
    pub is_frontier: bool,
    /// What the users of engines type for it.
    pub flags: Vec<Flags>,
}

/// An engine, and what its users type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flags {
    pub engine: String,
    pub flags: String,
}

/// Why there is no suggestion.
#[derive(Debug, thiserror::Error)]
pub enum SuggestError {
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error(transparent)]
    Uncontrolled(#[from] UncontrolledError),
    /// No codec fits the model.
    #[error("none of the codecs that {those} fits this model: {why}")]
    NoCodec { those: String, why: String },
    /// The budget is smaller than any scheme.
    #[error("nothing fits {asked}: with the codecs that {those}, the fewest at {served} tokens are {bits} bits per element, by `{scheme}`: {mend}")]
    NothingFits {
        asked: String,
        those: String,
        served: usize,
        bits: f64,
        scheme: String,
        mend: String,
    },
    /// The texts have too few chunks beside those that choose.
    #[error("the texts have {left} beside the {choosing} that choose, and {verifying} are needed to verify the winners: add text, take fewer --chunks, or let --verify take fewer (0 verifies nothing)", left = count(*left, "chunk"))]
    NoOtherChunks { left: usize, choosing: usize, verifying: usize },
    /// Nothing could be measured.
    #[error("no scheme could be measured")]
    Nothing,
}

/// A search that is about to begin.
pub struct Search<'p> {
    prepared: &'p Prepared<'p>,
    options: Options,
    coded: Vec<Coded>,
    unfit: Vec<Unfit>,
    families: Vec<Family>,
    others: Vec<Chunk>,
}

impl<'p> Search<'p> {
    /// Finds out what there is to try. Nothing runs yet.
    ///
    /// # Errors
    /// If no codec fits the model, if nothing fits the budget, or if the texts have too few chunks to verify what is found.
    pub fn new(prepared: &'p Prepared<'p>, options: Options) -> Result<Self, SuggestError> {
        let scouting = options.scouting.min(prepared.request.chunks);
        let options = Options { scouting, ..options };
        let (coded, unfit) = options.engine.codecs(&options.codecs, &prepared.layout);
        if coded.len() <= EXACT + 1 {
            let why = unfit.iter().map(|unfit| format!("{}: {}", unfit.codec, unfit.why));
            let why = why.collect::<Vec<_>>().join("; ");
            return Err(SuggestError::NoCodec { those: options.those_codecs(), why });
        }
        let slots = prepared.baseline.slots();
        let families = options.engine.families(&coded, &slots, options.mixed > 0);
        let others = other_chunks(prepared, options.verifying)?;
        let search = Search { prepared, options, coded, unfit, families, others };
        search.refuse_what_nothing_fits()?;
        Ok(search)
    }

    /// The fewest bits follow from what each layer keeps, so nobody has to wait to hear that they are too many.
    fn refuse_what_nothing_fits(&self) -> Result<(), SuggestError> {
        let Some(budget) = &self.options.budget else { return Ok(()) };
        let is_too_large = |own: &Candidate| !fits(own.point.bits, budget.bits);
        let Some(smallest) = self.smallest().filter(is_too_large) else { return Ok(()) };
        let bytes = smallest.effective.bytes_at(self.options.served);
        let allow = budget.allowing(smallest.point.bits, bytes);
        let name_more = if self.options.codecs.is_empty() { "" } else { ", or name more --codecs" };
        Err(SuggestError::NothingFits {
            asked: budget.asked.clone(),
            those: self.options.those_codecs(),
            served: self.options.served,
            bits: budget::enough(smallest.point.bits),
            scheme: smallest.scheme.to_string(),
            mend: format!("{allow}{name_more}"),
        })
    }

    /// The scheme with the fewest bits, whatever harm it does.
    fn smallest(&self) -> Option<Candidate> {
        let mut families = self.families.clone();
        if self.mixes_slots() {
            let slots = self.prepared.baseline.slots();
            let all = |_| (EXACT + 1..self.coded.len()).collect();
            families.push(engines::mixture_of_slots(&slots, all));
        }
        self.scouts().smallest(&families)
    }

    /// What the search costs, in words, before it begins.
    pub fn cost(&self) -> String {
        let slots = self.prepared.baseline.slots().len();
        let mixtures = if self.mixes_slots() { slots * self.options.mixed } else { 0 };
        let parts = mixtures + self.families.iter().map(scouting::lanes).sum::<usize>();
        let most = 1 + self.most_measured();
        let (chunks, scouting) = (self.prepared.request.chunks, self.options.scouting);
        let verifying = match self.others.len() {
            0 => String::new(),
            others => format!(", then at most {VERIFIED} on {}", count(others, "other chunk")),
        };
        let lane_chunks = parts * scouting + most * chunks + VERIFIED * self.others.len();
        format!(
            "{} of single parts on {}, then at most {most} schemes on {}{verifying}: at most {lane_chunks} times a lane \
             through a chunk of {} tokens",
            count(parts, "lane"),
            count(scouting, "chunk"),
            count(chunks, "chunk"),
            self.prepared.request.context,
        )
    }

    fn mixes_slots(&self) -> bool {
        self.options.engine.mixes_slots() && self.options.mixed > 0
    }

    fn most_measured(&self) -> usize {
        let mixes = self.mixes_slots() || self.families.iter().any(|family| family.is_mixed);
        choice::UNIFORM + if mixes { choice::MIXED } else { 0 }
    }

    /// Searches.
    ///
    /// # Errors
    /// If the baseline cannot be measured, if a control reads what it must not, or if nothing could be measured.
    pub fn run(self, progress: Progress) -> Result<Suggestion, SuggestError> {
        let began = Instant::now();
        let decoder = self.prepared.load()?;
        let mut passes = Passes::new(self.prepared, &decoder, progress);
        let candidates = self.scout(&mut passes)?;
        let rows = self.measure(self.to_measure(candidates), &mut passes)?;
        let found = self.choose(rows, &mut passes)?;
        let mut suggestion = self.tell(found, &passes)?;
        suggestion.seconds = began.elapsed().as_secs_f64();
        Ok(suggestion)
    }

    fn scouts(&self) -> Scouts<'_> {
        Scouts {
            exact: &self.prepared.baseline,
            coded: &self.coded,
            layout: &self.prepared.layout,
            served: self.options.served,
            chunks: &self.prepared.corpus.chunks[..self.options.scouting],
        }
    }

    /// Measures single parts, and then single slots if they may be mixed, and finds the schemes that promise most.
    fn scout(&self, passes: &mut Passes) -> Result<Vec<Candidate>, SuggestError> {
        let scouts = self.scouts();
        let harms = scouts.look("measuring single parts", &self.families, passes)?;
        let families = self.families.iter().zip(&harms);
        let mut candidates: Vec<Candidate> =
            families.flat_map(|(family, harms)| scouts.promising(family, harms)).collect();
        if self.mixes_slots() {
            let family = [scouts.mixtures(&self.families[0], &harms[0], self.options.mixed)];
            let harms = scouts.look("measuring single layers", &family, passes)?;
            candidates.extend(scouts.promising(&family[0], &harms[0]));
        }
        Ok(candidates)
    }

    fn limit(&self) -> Option<f64> {
        self.options.budget.as_ref().map(|budget| budget.bits)
    }

    /// The candidates that are worth a measurement, and the scheme that all are compared with, if the model can be stored
    /// with it. If none of them fits the budget, the smallest scheme does: codecs that do much harm are not mixed by layer,
    /// and such a mixture may be the only one that is small enough.
    fn to_measure(&self, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let mut chosen = choice::to_measure(candidates, self.limit());
        if self.limit().is_some_and(|limit| !chosen.iter().any(|own| fits(own.point.bits, limit))) {
            chosen.extend(self.smallest());
        }
        let scheme = reference();
        if chosen.iter().all(|candidate| candidate.scheme != scheme) {
            if let Ok(effective) = Effective::new(&scheme, &self.prepared.layout, None) {
                let point = Point { bits: self.scouts().bits(&effective), harm: f64::NAN };
                let (predicted, is_mixed) = (None, false);
                chosen.push(Candidate { scheme, effective, point, predicted, is_mixed });
            }
        }
        chosen
    }

    /// Measures schemes on the chunks that choose.
    fn measure(
        &self,
        chosen: Vec<Candidate>,
        passes: &mut Passes,
    ) -> Result<Vec<Row>, SuggestError> {
        let lanes = chosen.iter().map(|c| (c.scheme.to_string(), c.effective.clone())).collect();
        let readings =
            passes.run("measuring what looks best", &self.prepared.corpus.chunks, lanes)?;
        let readers = |owner| self.prepared.checkpoint.spec.readers_of(owner);
        let row = |(candidate, reading): (Candidate, Option<Reading>)| {
            let Candidate { scheme, effective, point, predicted, is_mixed } = candidate;
            let (scheme, effective_name) = (scheme.to_string(), effective.to_string());
            let measured = reading?;
            let flags = flags::of_scheme(&scheme, &effective_name, readers).into_iter();
            Some(Row {
                flags: flags.map(|f| Flags { engine: f.engine, flags: f.flags }).collect(),
                scheme,
                effective: effective_name,
                bits: point.bits,
                bytes: effective.bytes_at(self.options.served),
                is_mixed,
                predicted,
                on_scouts: measured.mean_of_first(self.options.scouting),
                measured,
                verified: None,
                is_frontier: false,
            })
        };
        let mut rows: Vec<Row> = chosen.into_iter().zip(readings).filter_map(row).collect();
        if rows.is_empty() {
            return Err(SuggestError::Nothing);
        }
        rows.sort_by(|a, b| {
            a.bits.total_cmp(&b.bits).then(a.measured.mean_kld.total_cmp(&b.measured.mean_kld))
        });
        choice::mark_frontier(&mut rows);
        Ok(rows)
    }

    /// Chooses by the chunks that choose, verifies the winners, and drops what the other chunks refute.
    fn choose(&self, mut rows: Vec<Row>, passes: &mut Passes) -> Result<Found, SuggestError> {
        let reference = rows.iter().position(|row| row.scheme == REFERENCE);
        let serves_reference = self.options.engine.serves(&self::reference().default, &self.coded);
        let goal = Goal { limit: self.limit(), reference, serves_reference };
        let choice = goal.choose(&rows);
        if !self.others.is_empty() {
            self.verify(&mut rows, &choice.verified, passes)?;
        }
        let (recommended, rival) = goal.settle(&choice, &rows);
        Ok(Found { rows, goal, recommended, rival })
    }

    /// Measures winners on chunks that did not choose them.
    fn verify(
        &self,
        rows: &mut [Row],
        which: &[usize],
        passes: &mut Passes,
    ) -> Result<(), SuggestError> {
        let effective = |i: &usize| {
            let scheme: Scheme = rows[*i].scheme.parse().expect("it was spelled by a scheme");
            let effective = Effective::new(&scheme, &self.prepared.layout, None);
            (rows[*i].scheme.clone(), effective.expect("it was measured"))
        };
        let lanes = which.iter().map(effective).collect();
        let readings = passes.run("verifying on other chunks", &self.others, lanes)?;
        for (i, reading) in which.iter().zip(readings) {
            rows[*i].verified = reading;
        }
        Ok(())
    }

    /// All that was found, and what it says in words.
    fn tell(self, found: Found, passes: &Passes) -> Result<Suggestion, SuggestError> {
        let Search { prepared, options, unfit, others, .. } = self;
        let baseline_ppl = passes.baseline_ppl();
        let remark = remark_on_perplexity(prepared, baseline_ppl, passes.scored())?;
        let mut suggestion = Suggestion {
            format: FORMAT,
            model: prepared.request.model.into(),
            engine: options.engine,
            codecs: options.codecs,
            subject: prepared.subject.clone(),
            conditions: prepared.conditions.clone(),
            scouting: options.scouting,
            verifying: others.len(),
            served: options.served,
            budget: options.budget,
            controls: passes.controls().to_vec(),
            baseline_ppl,
            device: prepared.device.describe(),
            arithmetic: prepared.device.arithmetic().into(),
            lane_chunks: passes.lane_chunks(),
            seconds: 0.0,
            notes: prepared.notes(remark).into_iter().chain(passes.failures()).collect(),
            unfit,
            rows: found.rows,
            recommended: found.recommended,
            reference: found.goal.reference,
            serves_reference: found.goal.serves_reference,
            rival: found.rival,
            answer: Vec::new(),
        };
        suggestion.answer = words::answer(&suggestion);
        Ok(suggestion)
    }
}

/// What was measured, and what is chosen of it.
struct Found {
    rows: Vec<Row>,
    goal: Goal,
    recommended: Option<Recommended>,
    rival: Option<Comparison>,
}

fn reference() -> Scheme {
    REFERENCE.parse().expect("the grammar has it")
}

/// Chunks from all over the texts, beside those that choose.
fn other_chunks(prepared: &Prepared, verifying: usize) -> Result<Vec<Chunk>, SuggestError> {
    let (choosing, context) = (prepared.request.chunks, prepared.request.context);
    let draw = Draw::Further { first: choosing, taken: 0 };
    let tokenizer = &prepared.checkpoint.tokenizer;
    match corpus::tokenized(&prepared.texts, tokenizer, context, (draw, verifying)) {
        Ok(corpus) => Ok(corpus.chunks),
        Err(CorpusError::TooShort { found, .. }) => {
            Err(SuggestError::NoOtherChunks { left: found, choosing, verifying })
        }
        Err(error) => Err(MeasureError::from(error).into()),
    }
}
