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
use choice::{Choice, Comparison};
use engines::{Coded, Engine, Family, Unfit, EXACT};
use frontier::Point;
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

/// Which scheme to serve.
#[derive(Debug, Clone, Serialize)]
pub struct Suggestion {
    pub format: u32,
    pub model: String,
    pub engine: Engine,
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
    /// The fewest bits that any scheme of the engine has.
    pub fewest_bits: f64,
    /// The schemes that were measured, those with the fewest bits first.
    pub rows: Vec<Row>,
    /// The index of the scheme to serve.
    pub recommended: Option<usize>,
    /// The index of [`REFERENCE`].
    pub reference: Option<usize>,
    /// The scheme with fewer bits that comes closest to the reference, or beats it.
    pub rival: Option<Comparison>,
    /// What was found, in words.
    pub answer: Vec<String>,
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
    /// The mean KLD that its parts add up to on the chunks of the scouts. None if some part was not measured alone.
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
    /// No codec of the engine fits the model.
    #[error("no codec for {engine} fits this model: {why}")]
    NoCodec { engine: &'static str, why: String },
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
    /// If no codec fits the model, or if the texts have too few chunks to verify what is found.
    pub fn new(prepared: &'p Prepared<'p>, options: Options) -> Result<Self, SuggestError> {
        let engine = options.engine;
        let (coded, unfit) = engine.codecs(&options.codecs, &prepared.layout);
        if coded.len() <= EXACT + 1 {
            let why = unfit.iter().map(|unfit| format!("{}: {}", unfit.codec, unfit.why));
            let why = why.collect::<Vec<_>>().join("; ");
            return Err(SuggestError::NoCodec { engine: engine.name(), why });
        }
        let families = engine.families(&coded, &prepared.baseline.slots());
        let others = other_chunks(prepared, options.verifying)?;
        Ok(Search { prepared, options, coded, unfit, families, others })
    }

    /// What the search costs, in words, before it begins.
    pub fn cost(&self) -> String {
        let slots = self.prepared.baseline.slots().len();
        let mixtures =
            if self.options.engine.mixes_slots() { slots * self.options.mixed } else { 0 };
        let parts: usize = self.families.iter().map(scouting::lanes).sum();
        let most = 1 + self.most_measured();
        let (chunks, scouting) = (self.prepared.request.chunks, self.options.scouting);
        let lane_chunks =
            (parts + mixtures) * scouting + most * chunks + choice::VERIFIED * self.others.len();
        format!(
            "{} of single parts on {}, then at most {most} schemes on {}, then at most {} on {}: at most {lane_chunks} times a \
             lane through a chunk of {} tokens",
            count(parts + mixtures, "lane"),
            count(scouting, "chunk"),
            count(chunks, "chunk"),
            choice::VERIFIED,
            count(self.others.len(), "other chunk"),
            self.prepared.request.context,
        )
    }

    fn most_measured(&self) -> usize {
        let mixes = self.options.engine.mixes_slots() && self.options.mixed > 0
            || self.families.iter().any(|family| family.is_mixed);
        choice::UNIFORM + if mixes { choice::MIXED } else { 0 }
    }

    /// Searches.
    ///
    /// # Errors
    /// If the baseline cannot be measured, if a control reads what it must not, or if nothing could be measured.
    pub fn run(self, progress: Progress) -> Result<Suggestion, SuggestError> {
        let began = Instant::now();
        let prepared = self.prepared;
        let decoder = prepared.load()?;
        let mut passes = Passes::new(prepared, &decoder, progress);
        let choosing = &prepared.corpus.chunks[..];
        let scouting = &choosing[..self.options.scouting.min(choosing.len())];
        let scouts = Scouts {
            exact: &prepared.baseline,
            coded: &self.coded,
            layout: &prepared.layout,
            served: self.options.served,
            chunks: scouting,
        };
        let harms = scouts.look("measuring single parts", &self.families, &mut passes)?;
        let families = self.families.iter().zip(&harms);
        let mut candidates: Vec<Candidate> =
            families.flat_map(|(family, harms)| scouts.promising(family, harms)).collect();
        if self.options.engine.mixes_slots() && self.options.mixed > 0 {
            let family = [scouts.mixtures(&self.families[0], &harms[0], self.options.mixed)];
            let harms = scouts.look("measuring single layers", &family, &mut passes)?;
            candidates.extend(scouts.promising(&family[0], &harms[0]));
        }
        let fewest_bits = candidates.iter().map(|c| c.point.bits).fold(f64::INFINITY, f64::min);
        let limit = self.options.budget.as_ref().map(|budget| budget.bits);
        let chosen = choice::to_measure(candidates, limit);
        let chosen = with_reference(chosen, &scouts, prepared);
        let mut rows = self.rows(chosen, scouting.len(), &mut passes)?;
        choice::mark_frontier(&mut rows);
        let reference = rows.iter().position(|row| row.scheme == REFERENCE);
        let Choice { recommended, rival, verified } =
            choice::choose(&rows, reference, self.options.engine, limit);
        if !self.others.is_empty() {
            self.verify(&mut rows, &verified, &mut passes)?;
        }
        let standing = rival.zip(reference).map(|(own, of)| choice::standing(own, &rows, of));
        let recommended = match (limit, &standing) {
            (None, Some(standing)) => {
                let was_rival = recommended == rival;
                let recommended = if was_rival { Some(standing.row) } else { recommended };
                choice::upheld(recommended, standing, reference, self.options.engine)
            }
            _ => recommended,
        };

        let scored = passes.scored();
        let baseline_ppl = passes.baseline_ppl();
        let remark = remark_on_perplexity(prepared, baseline_ppl, scored)?;
        let mut suggestion = Suggestion {
            format: FORMAT,
            model: prepared.request.model.into(),
            engine: self.options.engine,
            subject: prepared.subject.clone(),
            conditions: prepared.conditions.clone(),
            scouting: scouting.len(),
            verifying: self.others.len(),
            served: self.options.served,
            budget: self.options.budget.clone(),
            controls: passes.controls().to_vec(),
            baseline_ppl,
            device: prepared.device.describe(),
            arithmetic: prepared.device.arithmetic().into(),
            lane_chunks: passes.lane_chunks(),
            seconds: 0.0,
            notes: prepared.notes(remark).into_iter().chain(passes.failures()).collect(),
            unfit: self.unfit,
            fewest_bits,
            rows,
            recommended,
            reference,
            rival: standing,
            answer: Vec::new(),
        };
        suggestion.answer = words::answer(&suggestion);
        suggestion.seconds = began.elapsed().as_secs_f64();
        Ok(suggestion)
    }

    /// Measures schemes on the chunks that choose.
    fn rows(
        &self,
        chosen: Vec<Candidate>,
        scouting: usize,
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
                on_scouts: measured.mean_of_first(scouting),
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
        Ok(rows)
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

/// Adds the scheme that all are compared with, if the model can be stored with it.
fn with_reference(
    mut chosen: Vec<Candidate>,
    scouts: &Scouts,
    prepared: &Prepared,
) -> Vec<Candidate> {
    let scheme: Scheme = REFERENCE.parse().expect("the grammar has it");
    if chosen.iter().all(|candidate| candidate.scheme != scheme) {
        if let Ok(effective) = Effective::new(&scheme, &prepared.layout, None) {
            let point = Point { bits: scouts.bits(&effective), harm: f64::NAN };
            let is_mixed = false;
            chosen.push(Candidate { scheme, effective, point, predicted: None, is_mixed });
        }
    }
    chosen
}
