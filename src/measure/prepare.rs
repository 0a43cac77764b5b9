//! The preparation for everybody who opens a model: for measuring, for calibrating and for `kvgate check`.
//!
//! Whatever can be known before a layer runs is found out here: the checkpoint and its hash, the corpus and its
//! chunks, the calibration, the prompts and the accepted text, what each scheme is for this model, and what people
//! should be told. So an error costs seconds and not minutes, and what passes `kvgate check` cannot fail in a run
//! for a reason that was known beforehand.

use super::baseline_text::BaselineText;
use super::corpus::{self, Corpus, Text};
use super::prompts::PromptSet;
use super::request::{MeasureError, Request};
use super::retrieval::{self, Haystacks};
use super::NUMERICS;
use crate::compute::{is_out_of_memory, Device};
use crate::hash;
use crate::kv::calibration::Calibration;
use crate::kv::effective::{remarks_on_missing_layers, Effective};
use crate::kv::layout::LayerKv;
use crate::kv::Scheme;
use crate::model::decoder::{self, Decoder, Residency};
use crate::model::{warnings_first, Checkpoint, ModelError};
use crate::progress::Progress;
use crate::results::retrieval::Plan;
use crate::results::{Conditions, CorpusFile, Subject};
use crate::source;
use crate::source::Source;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A model and its texts, ready to run.
pub struct Prepared<'r> {
    pub request: &'r Request<'r>,
    /// Where the model will be computed.
    pub device: Device,
    pub checkpoint: Checkpoint,
    pub subject: Subject,
    /// What each layer keeps in the cache.
    pub layout: Vec<Option<LayerKv>>,
    pub baseline: Effective,
    /// The request's schemes, in its order.
    pub schemes: Vec<PreparedScheme<'r>>,
    pub texts: Vec<Text>,
    pub corpus: Corpus,
    /// What the baseline is asked to continue, and the accepted text if there is one.
    pub text: Option<BaselineText>,
    /// The long contexts from which schemes must retrieve something, length by length.
    pub haystacks: Vec<Haystacks>,
    /// The conditions of the measurement. What each scheme needs beside them stands in
    /// [`PreparedScheme::needs`].
    pub conditions: Conditions,
}

/// A scheme of the request, and what it is for the model.
pub struct PreparedScheme<'r> {
    pub label: &'r str,
    pub scheme: &'r Scheme,
    /// What the scheme does in each layer, or why the model cannot be measured with it. Such a scheme fails
    /// alone; the others are measured.
    pub effective: Result<Effective, String>,
    /// What its values depend on beside the conditions of all schemes: the calibration, and codecs from outside
    /// of this crate. It is empty for a scheme that does not fit.
    pub needs: Vec<String>,
}

impl<'r> Prepared<'r> {
    /// Fetches the checkpoint if it is not on disk yet, and prepares the request.
    ///
    /// # Errors
    /// What concerns the whole model. A scheme that does not fit carries its own error.
    pub fn open(request: &'r Request<'r>, progress: Progress) -> Result<Self, MeasureError> {
        // prompts are read before weights are fetched or hashed, which may take minutes
        let prompts = read_prompts(request)?;
        source::fetch(request.source, progress)?;
        progress("reading", 0, 0);
        Self::read(request, prompts.as_ref())
    }

    /// Prepares a request whose checkpoint is on disk. It fetches nothing, whatever is missing.
    ///
    /// # Errors
    /// As [`Prepared::open`].
    pub fn on_disk(request: &'r Request<'r>) -> Result<Self, MeasureError> {
        let prompts = read_prompts(request)?;
        source::verify(request.source)?;
        Self::read(request, prompts.as_ref())
    }

    fn read(request: &'r Request<'r>, prompts: Option<&PromptSet>) -> Result<Self, MeasureError> {
        let checkpoint = Checkpoint::open(request.source)?;
        let subject = subject_of(request.source, &checkpoint)?;
        let layout = checkpoint.spec.kv_layout();
        let baseline =
            Effective::new(&request.baseline, &layout, None).map_err(MeasureError::Baseline)?;
        let texts = request.corpus.iter().map(|path| corpus::read(path));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let schemes = prepare_schemes(request, &subject, &texts, &layout)?;
        let wanted = (request.draw, request.chunks);
        let corpus = corpus::tokenized(&texts, &checkpoint.tokenizer, request.context, wanted)?;
        if request.is_gated {
            corpus::mostly_new(&corpus.chunks)?;
            corpus.even()?;
        }
        let text = request.generate.as_ref().zip(prompts).map(|(generate, prompts)| {
            let sha256 = &subject.weights_sha256;
            BaselineText::new(prompts, generate, request.model, sha256, &baseline, &checkpoint)
        });
        let text = text.transpose()?;
        let haystacks = request.retrieval.map(|plan| {
            let trained = checkpoint.spec.trained_context;
            retrieval::build(plan, &corpus.tokens, &checkpoint.tokenizer, trained)
        });
        let haystacks = haystacks.transpose()?.unwrap_or_default();
        let device = match request.mimic {
            None => request.device.clone(),
            // what is imitated are another engine's roundings on the processor's f32
            Some(_) => Device::cpu(),
        };
        let conditions =
            conditions(request, &device, &checkpoint, &baseline, &texts, text.as_ref());
        Ok(Prepared {
            request,
            device,
            checkpoint,
            subject,
            layout,
            baseline,
            schemes,
            texts,
            corpus,
            text,
            haystacks,
            conditions,
        })
    }

    /// Reads the weights, all of them or those outside of the layers. If a card turns out to have no memory for all, the
    /// layers stay in the file, unless somebody asked for resident weights.
    ///
    /// # Errors
    /// Values that are not finite, and files that cannot be read.
    pub fn load(&self) -> Result<Decoder, MeasureError> {
        let load = |residency| self.checkpoint.load_on(&self.device, residency);
        Ok(match load(self.residency()) {
            Err(ModelError::Tensor(error))
                if is_out_of_memory(&error) && self.request.residency.is_none() =>
            {
                load(Residency::Streamed)?
            }
            loaded => loaded?,
        })
    }

    /// Where the weights are while the model runs.
    pub fn residency(&self) -> Residency {
        let bytes = decoder::parameters(&self.checkpoint.spec)
            * self.device.weight_bytes(self.checkpoint.has_short_weights());
        self.request.residency.unwrap_or_else(|| residency_for(&self.device, bytes))
    }

    /// What people should know before they believe the numbers, warnings first. What was remarked on the
    /// baseline after it was measured has its place among the notes.
    pub fn notes(&self, on_baseline: impl IntoIterator<Item = String>) -> Vec<String> {
        let mut notes = self.checkpoint.notes.clone();
        notes.extend(self.texts.iter().flat_map(Text::remarks));
        notes.extend(corpus::repeated(&self.corpus.chunks));
        notes.extend(self.corpus.uneven.iter().map(ToString::to_string));
        notes.extend(self.text.iter().flat_map(|text| text.prompts.remarks.clone()));
        let schemes = self.schemes.iter();
        notes.extend(schemes.flat_map(|s| remarks_on_missing_layers(s.scheme, &self.layout)));
        let fit = self.schemes.iter().filter_map(|scheme| scheme.effective.as_ref().ok());
        let on_host: BTreeSet<_> = fit.flat_map(|e| e.codecs_on_host(&self.device)).collect();
        notes.extend(on_host.iter().map(|codec| {
            format!(
                "`{codec}` is carried out on the host, at least for some heads of this model, because it has no kernel \
                 for them; this takes longer"
            )
        }));
        notes.extend(on_baseline);
        notes.extend(retrieval::remark(&self.layout, &self.haystacks));
        let (context, trained) = (self.request.context, self.checkpoint.spec.trained_context);
        if context > trained {
            notes.push(format!("context {context} is beyond the model's trained {trained}"));
        }
        warnings_first(&mut notes);
        notes
    }
}

fn read_prompts(request: &Request) -> Result<Option<PromptSet>, MeasureError> {
    let generate = request.generate.as_ref();
    Ok(generate.map(|generate| PromptSet::read(generate.prompts)).transpose()?)
}

/// Hashes the checkpoint, and compares the hash with the one that its source must have.
fn subject_of(source: &Source, checkpoint: &Checkpoint) -> Result<Subject, MeasureError> {
    let hash_of = |files: &[PathBuf]| {
        hash::of_files(files).map_err(|(path, error)| MeasureError::Io { path, error })
    };
    let found = hash_of(checkpoint.files())?;
    if let Some(expected) = source.sha256.as_ref().filter(|expected| **expected != found) {
        let path = checkpoint.path().display();
        let what = match checkpoint.files().len() {
            1 => path.to_string(),
            count => format!("the list, as `sha256sum` prints it, of the {count} files of {path}"),
        };
        return Err(MeasureError::Hash { what, expected: expected.clone(), found });
    }
    let tokenizer = checkpoint.tokenizer_file().map(|file| hash_of(&[file.into()]));
    Ok(Subject {
        weights_sha256: found,
        tokenizer_sha256: tokenizer.transpose()?,
        architecture: checkpoint.spec.architecture.clone(),
    })
}

fn prepare_schemes<'r>(
    request: &'r Request,
    subject: &Subject,
    texts: &[Text],
    layout: &[Option<LayerKv>],
) -> Result<Vec<PreparedScheme<'r>>, MeasureError> {
    let calibration = calibration(request, subject, &files(texts))?;
    let (calibration, sha256) = calibration.unzip();
    let prepare = |(label, scheme): &'r (String, Scheme)| {
        let effective =
            effective(scheme, (request.context, request.retrieval), layout, calibration.as_ref());
        let needs = effective.as_ref().map(|e| needs(scheme, e, sha256.as_deref()));
        PreparedScheme { label, scheme, needs: needs.unwrap_or_default(), effective }
    };
    Ok(request.schemes.iter().map(prepare).collect())
}

/// The calibration that a request names and the hash of its file. It is read only if a scheme needs it.
fn calibration(
    request: &Request,
    subject: &Subject,
    corpus: &[CorpusFile],
) -> Result<Option<(Calibration, String)>, MeasureError> {
    let is_needed = request.schemes.iter().any(|(_, scheme)| scheme.is_calibrated());
    let Some(path) = request.calibration.filter(|_| is_needed) else { return Ok(None) };
    let calibration = Calibration::read(path, &subject.weights_sha256, corpus)?;
    let sha256 =
        hash::of_file(path).map_err(|error| MeasureError::Io { path: path.into(), error })?;
    Ok(Some((calibration, sha256)))
}

fn effective(
    scheme: &Scheme,
    (context, retrieval): (usize, Option<&Plan>),
    layout: &[Option<LayerKv>],
    calibration: Option<&Calibration>,
) -> Result<Effective, String> {
    let least = scheme.least_context();
    let lengths = retrieval.map_or(&[][..], |plan| &plan.lengths);
    let lengths = lengths.iter().map(|length| (*length, " in `retrieval.lengths`"));
    let too_short = |(context, _): &(usize, &str)| *context < least;
    if let Some((context, place)) = [(context, "")].into_iter().chain(lengths).find(too_short) {
        // an exact tail that covers most of what is scored would make any codec look good
        return Err(format!(
            "a context of {context}{place} is too short for its exact tail and sink: they would hide what the codec \
             does to most of it; measure at {least} at least"
        ));
    }
    Effective::new(scheme, layout, calibration).map_err(|error| error.to_string())
}

fn needs(scheme: &Scheme, effective: &Effective, calibration: Option<&str>) -> Vec<String> {
    let calibration = calibration.filter(|_| scheme.is_calibrated());
    let calibration = calibration.map(|sha256| format!("calibration {sha256}"));
    let codecs = effective.foreign_codecs();
    calibration.into_iter().chain(codecs.into_iter().map(|c| format!("codec {c}"))).collect()
}

fn files(texts: &[Text]) -> Vec<CorpusFile> {
    texts.iter().map(|text| text.file.clone()).collect()
}

fn conditions(
    request: &Request,
    device: &Device,
    checkpoint: &Checkpoint,
    baseline: &Effective,
    texts: &[Text],
    text: Option<&BaselineText>,
) -> Conditions {
    Conditions {
        corpus: files(texts),
        context: request.context,
        chunks: request.chunks,
        baseline: baseline.to_string(),
        engine: match request.mimic {
            None => NUMERICS.into(),
            Some(mimic) => format!("{NUMERICS}, mimicking {}", mimic.name()),
        },
        device: device.name().into(),
        weights: device.weights().into(),
        reading: checkpoint.reading.clone(),
        prompts: text.map(|text| text.generated.conditions()),
        needs: Vec::new(),
    }
}

/// Keeps the weights in the device's memory if they take no more than half of it. Otherwise they are read from the
/// file layer by layer. The numbers are the same either way.
fn residency_for(device: &Device, bytes: u64) -> Residency {
    if bytes <= device.memory() / 2 {
        Residency::Resident
    } else {
        Residency::Streamed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length of the contexts with needles is no fault of the policy's `context`, and the message says which it is.
    #[test]
    fn a_tail_that_hides_the_codec_says_in_which_context() {
        let scheme: Scheme = "q4_0:tail=300".parse().unwrap();
        let of = |context, lengths: &[usize]| {
            let plan = Plan { lengths: lengths.to_vec(), contexts: 8, needles: 8, seed: 0 };
            effective(&scheme, (context, Some(&plan)), &[], None).err().unwrap_or_default()
        };
        let says = of(4096, &[2048, 512]);
        assert!(says.starts_with("a context of 512 in `retrieval.lengths` is too short"), "{says}");
        assert!(says.ends_with("measure at 600 at least"), "{says}");
        assert!(of(256, &[512]).starts_with("a context of 256 is too short"));
    }
}
