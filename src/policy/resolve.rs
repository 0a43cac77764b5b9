//! Turns a [`Document`] into models: carries out inheritance, and checks what can only be checked after it.

use super::diagnostic::{Diagnostic, Findings, Severity};
use super::document::{Document, Keys, Limits, RetrievalBody, SchemeBody, SchemeEntry, Section};
use crate::kv::scheme::{Scheme, Side};
use crate::measure::corpus::{category, dealt};
use crate::policy::{
    Cell, Expectation, Limit, ModelPolicy, Places, Prompts, Retrieval, RetrievalLimit, IGNORED,
    MEANING,
};
use crate::results::case::CellName;
use crate::results::retrieval::Measure;
use crate::results::statistics::{Quantity, Statistic, LEAST_CHUNKS};
use crate::source::pinned::Pinned;
use crate::source::Source;
use crate::text::numbers::count;
use crate::text::suggest::nearest;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use toml::Spanned;

/// The range of the ratio of flips (changes of the most likely token) to the square root of mean KLD, over all models
/// and schemes on record. The ratio is nearly constant, because flips grow with the size of a small noise on the
/// logits, and KLD with its square.
pub const FLIPS_PER_ROOT_KLD: (f64, f64) = (0.2, 0.8);
/// A typical value of the ratio, for advice.
const TYPICAL_FLIPS_PER_ROOT_KLD: f64 = 0.6;

/// How many tokens the baseline writes after each prompt if the policy does not say.
const GENERATED: usize = 64;

/// Resolves every model and each of its `at` sections, in the order of the file, and the limits that are for all of them.
pub(super) fn resolve(
    document: &Document,
    findings: &mut Findings,
) -> (Vec<ModelPolicy>, Vec<Limit>) {
    let mut resolver = Resolver { findings, goldens: BTreeMap::new(), named: &document.named };
    let mut models = Vec::new();
    for model in &document.models {
        models.extend(resolver.model(&[&document.defaults, model]));
        for at in &model.at {
            models.extend(resolver.model(&[&document.defaults, model, at]));
        }
    }
    resolver.idle_generates(document);
    let limits = resolver.located(limits(&[&document.defaults], &[]));
    (models, limits)
}

/// The limits that apply to a cell, each with its place in the file.
type Bounds = BTreeMap<Quantity, Spanned<f64>>;

struct Resolver<'f> {
    findings: &'f mut Findings,
    /// The names in `[schemes]`.
    named: &'f Keys,
    /// Which case writes a golden, by the lower-case stem of the golden's file.
    goldens: BTreeMap<String, GoldenOwner>,
}

struct GoldenOwner {
    model: String,
    model_span: Range<usize>,
    cell_span: Range<usize>,
}

/// Adds to a checkpoint's place what its model's section says about reading it.
fn read_as_asked(place: Source, model: &Section) -> Source {
    Source {
        sha256: model.sha256.clone(),
        tokenizer: model.tokenizer.as_ref().map(|file| file.get_ref().clone()),
        fetch: model.fetch.as_ref().map(|command| command.get_ref().clone()),
        bos: model.bos,
        ignore_keys: model.ignore_keys.clone(),
        untrained: model.untrained,
        ..place
    }
}

/// A scheme of a model, with what the sections say about it, the outermost first.
struct Asked<'d> {
    label: &'d str,
    scheme: Option<Scheme>,
    /// The last place where it is named.
    span: Range<usize>,
    bodies: Vec<(usize, &'d SchemeBody)>,
}

impl Resolver<'_> {
    /// Resolves a model from its sections: `[defaults]`, the model's own, and perhaps an `at` section. Later sections
    /// override earlier ones.
    fn model(&mut self, sections: &[&Section]) -> Option<ModelPolicy> {
        let (model, innermost) = (sections[1], sections[sections.len() - 1]);
        let name = match sections.get(2) {
            Some(at) => format!("{}@{}", model.name, at.name),
            None => model.name.clone(),
        };
        let asked = self.asked(sections);
        if asked.is_empty() {
            let help = "name some in its `schemes`, or in [defaults.schemes] for every model";
            let message = format!("`{name}` has no scheme: nothing of it would be gated");
            self.findings.error(innermost.name_span.clone(), message, help);
        }
        self.same_scheme_twice(&asked);
        self.shared_goldens(&name, innermost.name_span.clone(), &asked);
        let baseline = last(sections, |s| s.baseline.clone()).unwrap_or_else(Scheme::f16);
        self.exact_baseline(innermost.name_span.clone(), &baseline);
        let cells = asked.iter().filter_map(|a| self.cell(&name, sections, a)).collect();

        // all values are looked up before any is required, so that every missing one is reported
        let source = self.source(model);
        let corpus = last(sections, |s| s.corpus.as_ref());
        let corpus = self.required(model, "corpus", "corpora/prose.txt", corpus);
        let context = self.required(model, "context", "512", last(sections, |s| s.context));
        let chunks = self.required(model, "chunks", "16", last(sections, |s| s.chunks));
        let (source, corpus, context, chunks) = (source?, corpus?, context?, chunks?);
        self.measurable(&asked, context, model);
        let of_categories = asked.iter().flat_map(|a| limits(sections, &a.bodies));
        self.judgeable_categories(&name, of_categories, corpus, chunks);
        let confidence = last(sections, |s| s.confidence).flatten();
        self.idle_confidence(&name, innermost, (confidence, chunks));
        let max_chunks = last(sections, |s| s.max_chunks).flatten();
        self.idle_maximum(&name, sections, (max_chunks, confidence, chunks));
        let retrieval = innermost.retrieval.as_ref().map(|body| {
            self.unsure_answers(&name, body, confidence);
            self.retrieval(body)
        });
        let prompts = last(sections, |s| s.prompts.as_ref()).and_then(Option::as_ref);
        let files = model.tokenizer.iter().chain(&model.calibration).chain(prompts).chain(corpus);
        let files = files.map(|file| (file.get_ref().clone(), file.span()));
        let weights = [(source.get_ref().path.clone(), source.span())];
        Some(ModelPolicy {
            name,
            source: read_as_asked(source.into_inner(), model),
            calibration: model.calibration.as_ref().map(|file| file.get_ref().clone()),
            generate: prompts.map(|file| Prompts {
                file: file.get_ref().clone(),
                tokens: last(sections, |s| s.generate).unwrap_or(GENERATED),
            }),
            retrieval,
            corpus: corpus.iter().map(|file| file.get_ref().clone()).collect(),
            context,
            chunks,
            confidence,
            max_chunks,
            baseline,
            cells,
            limits: self.located(limits(sections, &[])),
            places: Places {
                text: self.findings.text().clone(),
                spans: files.chain(weights).collect(),
                keys: self.keys(sections, &asked),
            },
        })
    }

    /// The place of each key of a model, in the innermost section that has the key.
    fn keys(
        &self,
        sections: &[&Section],
        asked: &[Asked],
    ) -> BTreeMap<(String, String), Range<usize>> {
        let own = |word: &str| (String::new(), word.to_owned());
        let mut keys = BTreeMap::new();
        for section in sections {
            keys.extend(section.keys.iter().map(|(key, span)| (own(key), span.clone())));
            let dropped = section.schemes.iter().filter(|entry| entry.body.is_none());
            keys.extend(
                dropped.map(|entry| ((entry.label.clone(), String::new()), entry.span.clone())),
            );
        }
        let innermost = sections[sections.len() - 1];
        if let Some(body) = &innermost.retrieval {
            let key = |(key, span): (&String, &Range<usize>)| {
                (own(&format!("retrieval.{key}")), span.clone())
            };
            keys.extend(body.keys.iter().map(key));
        }
        keys.insert(own(""), innermost.name_span.clone());
        for a in asked {
            let of_scheme = |word: &str| (a.label.to_owned(), word.to_owned());
            keys.insert(of_scheme(""), a.span.clone());
            for (_, body) in &a.bodies {
                keys.extend(body.keys.iter().map(|(key, span)| (of_scheme(key), span.clone())));
            }
            if let Some(span) = self.named.get(a.label) {
                keys.insert(of_scheme(MEANING), span.clone());
            }
            if let Some(span) = ignored(sections, a).1 {
                keys.insert(of_scheme(IGNORED), span.clone());
            }
            let limits = merged(sections, &a.bodies).into_iter();
            keys.extend(limits.map(|(limit, bound)| (of_scheme(&limit.name()), bound.span())));
        }
        keys
    }

    fn retrieval(&self, body: &RetrievalBody) -> Retrieval {
        let limit = |(measure, bound): &(Measure, Spanned<f64>)| RetrievalLimit {
            measure: *measure,
            bound: *bound.get_ref(),
            origin: self.findings.text().origin(&bound.span()),
        };
        Retrieval { plan: body.plan.clone(), limits: body.limits.iter().map(limit).collect() }
    }

    /// The place of a model's weights: `path`, or `hf` with a `revision`.
    fn source(&mut self, model: &Section) -> Option<Spanned<Source>> {
        match (&model.path, &model.hf) {
            (Some(path), None) => {
                self.no_repository(model);
                Some(Spanned::new(path.span(), Source::at(path.get_ref().clone())))
            }
            (None, Some(hf)) => self.of_hub(model, hf),
            (Some(path), Some(hf)) => {
                let message = "`path` and `hf` both say where the weights are";
                let text = self.findings.text();
                let error =
                    Diagnostic::new(Severity::Error, text, hf.span(), message, "keep one of them");
                self.findings.add(error.with_related(path.span(), "the other one"));
                None
            }
            (None, None) => {
                if !self.no_repository(model) {
                    self.findings.error(
                        model.name_span.clone(),
                        format!("`{}` has no path", model.name),
                        "add `path = \"models/model.gguf\"`, or `hf = \"org/name\"` with a `revision`",
                    );
                }
                None
            }
        }
    }

    /// Reports keys that have a meaning only together with `hf`. Returns whether there are any.
    fn no_repository(&mut self, model: &Section) -> bool {
        let strays = [("revision", &model.revision), ("file", &model.file)];
        let strays = strays.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let mut any = false;
        for (key, value) in strays {
            any = true;
            self.findings.error(
                value.span(),
                format!("`{key}` belongs to a repository on the hub, but there is no `hf`"),
                "name the repository: `hf = \"org/name\"`, or remove the line",
            );
        }
        any
    }

    fn of_hub(&mut self, model: &Section, hf: &Spanned<String>) -> Option<Spanned<Source>> {
        if let Some(fetch) = &model.fetch {
            self.findings.error(
                fetch.span(),
                "`fetch` beside `hf`: a run fetches from the hub by itself",
                "remove the line",
            );
        }
        let Some(revision) = &model.revision else {
            self.findings.error(
                hf.span(),
                "`hf` without a `revision`: a gate needs weights that do not move with a branch",
                "pin a commit: `revision = \"…\"`, 40 hexadecimal digits",
            );
            return None;
        };
        let pinned = Pinned {
            repository: hf.get_ref().clone(),
            revision: revision.get_ref().to_ascii_lowercase(),
            file: model.file.as_ref().map(|file| file.get_ref().clone()),
        };
        Some(Spanned::new(hf.span(), Source::of_hub(pinned)))
    }

    fn required<T>(
        &mut self,
        model: &Section,
        key: &str,
        example: &str,
        found: Option<T>,
    ) -> Option<T> {
        if found.is_none() {
            let example = match example.parse::<u32>() {
                Ok(number) => format!("`{key} = {number}`"),
                Err(_) => format!("`{key} = \"{example}\"`"),
            };
            self.findings.error(
                model.name_span.clone(),
                format!("`{}` has no {key}", model.name),
                format!("add {example}, here or in [defaults]"),
            );
        }
        found
    }

    /// The schemes of a model, in the order in which they are first named, those of the defaults first.
    fn asked<'d>(&mut self, sections: &[&'d Section]) -> Vec<Asked<'d>> {
        let mut asked: Vec<Asked<'d>> = Vec::new();
        for (depth, section) in sections.iter().enumerate() {
            for entry in &section.schemes {
                let at = asked.iter().position(|a| a.label == entry.label);
                match (&entry.body, at) {
                    (None, None) => self.idle_drop(entry, &asked),
                    (None, Some(at)) => drop(asked.remove(at)),
                    (Some(body), Some(at)) => {
                        asked[at].span = entry.span.clone();
                        asked[at].bodies.push((depth, body));
                    }
                    (Some(body), None) => asked.push(Asked {
                        label: &entry.label,
                        scheme: entry.scheme.clone(),
                        span: entry.span.clone(),
                        bodies: vec![(depth, body)],
                    }),
                }
            }
        }
        asked
    }

    fn idle_drop(&mut self, entry: &SchemeEntry, asked: &[Asked]) {
        let help = match nearest(&entry.label, asked.iter().map(|a| a.label)) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "remove the line".into(),
        };
        let message = format!("`{}` is not inherited: there is nothing to drop", entry.label);
        self.findings.error(entry.span.clone(), message, help);
    }

    fn cell(&mut self, name: &str, sections: &[&Section], asked: &Asked) -> Option<Cell> {
        // a table with an expectation also has the reason for it: an inherited reason would belong to another
        // expectation
        let expecting =
            asked.bodies.iter().rposition(|(_, body)| body.expect.is_some()).unwrap_or(0);
        let expect = asked.bodies[expecting].1.expect.unwrap_or(Expectation::Pass);
        let reason =
            asked.bodies[expecting..].iter().rev().find_map(|(_, body)| body.reason.clone());
        let limits = limits(sections, &asked.bodies);
        if expect != Expectation::Report {
            self.judgeable(name, asked, &limits);
            // with a confidence each limit is held against an interval of its own, and either may be the one that is open
            if last(sections, |s| s.confidence).flatten().is_none() {
                self.idle_limits(asked, &limits);
            }
        }
        if expect == Expectation::Fail && !limits.contains_key(&Statistic::BaselinePpl.into()) {
            self.unlimited_baseline(name, asked);
        }
        Some(Cell {
            label: asked.label.to_owned(),
            scheme: asked.scheme.clone()?,
            expect,
            reason,
            limits: self.located(limits),
            ignored: ignored(sections, asked).0,
        })
    }

    /// Limits, each with the place where it was written.
    fn located(&self, limits: Bounds) -> Vec<Limit> {
        let limit = |(quantity, bound): (Quantity, Spanned<f64>)| Limit {
            quantity,
            bound: *bound.get_ref(),
            origin: self.findings.text().origin(&bound.span()),
        };
        limits.into_iter().map(limit).collect()
    }

    /// Checks that a cell which is judged has limits that can be broken.
    fn judgeable(&mut self, name: &str, asked: &Asked, limits: &Bounds) {
        // a limit on the baseline judges the model and not the effect of the scheme
        if limits.keys().all(|limit| limit.statistic == Statistic::BaselinePpl) {
            self.findings.error(
                asked.span.clone(),
                format!("no limit applies to `{name}::{}`: nothing would be judged", asked.label),
                "add `limits = { mean_kld = 0.05 }`, or only measure it: `expect = \"report\"`",
            );
        }
    }

    /// Checks the limits by category of a model: its corpus has a text of that category, from which enough chunks are
    /// taken.
    fn judgeable_categories(
        &mut self,
        name: &str,
        limits: impl Iterator<Item = (Quantity, Spanned<f64>)>,
        corpus: &[Spanned<PathBuf>],
        chunks: usize,
    ) {
        let places = limits.filter_map(|(limit, bound)| Some((limit.category?, bound.span())));
        // a limit may reach many schemes, and is faulted once
        let places: BTreeMap<_, _> = places.collect();
        let texts: Vec<String> = corpus.iter().map(|file| category(file.get_ref())).collect();
        for (wanted, span) in places {
            let Some(place) = texts.iter().position(|text| *text == wanted) else {
                self.unknown_category(name, &wanted, span, &texts);
                continue;
            };
            let found = dealt(chunks, texts.len(), place);
            if found < LEAST_CHUNKS {
                let message = format!(
                    "{} of `{wanted}` are too few for a limit on `{name}`, which needs {LEAST_CHUNKS}",
                    count(found, "chunk")
                );
                // all texts before it get as many, and those after it one less
                let needed = texts.len() * (LEAST_CHUNKS - 1) + place + 1;
                let help = format!(
                    "measure `chunks = {needed}` at least: {} take turns, and each must be long enough",
                    count(texts.len(), "text")
                );
                self.findings.error(span, message, help);
            }
        }
    }

    fn unknown_category(&mut self, name: &str, wanted: &str, span: Range<usize>, texts: &[String]) {
        let message = format!("`{name}` has no text of the category `{wanted}`");
        let help = match nearest(wanted, texts.iter().map(String::as_str)) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!(
                "a category is the name of a corpus file without its extension, here {}; where a model has no such \
                 text, `category.{wanted}.LIMIT = false` drops an inherited limit",
                texts.join(", ")
            ),
        };
        self.findings.error(span, message, help);
    }

    /// Warns about a case that must fail and has no limit on the baseline: a damaged model would then fulfil the
    /// expectation.
    fn unlimited_baseline(&mut self, name: &str, asked: &Asked) {
        let text = self.findings.text();
        let case = format!("{name}::{}", asked.label);
        let message = format!(
            "`{case}` must break a limit, and a damaged model breaks limits as well: it would look as required"
        );
        let help = "say what the model itself must hold: `limits = { baseline_ppl = 40.0 }`";
        let span = asked.span.clone();
        let warning = Diagnostic::new(Severity::Warning, text, span, message, help);
        self.findings.add(warning);
    }

    /// Warns if a confidence has no effect, because values of so few chunks have no intervals.
    fn idle_confidence(
        &mut self,
        name: &str,
        section: &Section,
        (confidence, chunks): (Option<f64>, usize),
    ) {
        if confidence.is_none() || chunks >= LEAST_CHUNKS {
            return;
        }
        let message = format!("the `confidence` of `{name}` has no effect with {chunks} chunks");
        let help =
            format!("measure `chunks = {LEAST_CHUNKS}` at least, or drop it: `confidence = false`");
        let span = section.keys.get("confidence").unwrap_or(&section.name_span).clone();
        let text = self.findings.text();
        let warning = Diagnostic::new(Severity::Warning, text, span, message, help);
        self.findings.add(warning);
    }

    /// Checks that further chunks can be measured, and that there is something that asks for them.
    fn idle_maximum(
        &mut self,
        name: &str,
        sections: &[&Section],
        (max_chunks, confidence, chunks): (Option<usize>, Option<f64>, usize),
    ) {
        let Some(max_chunks) = max_chunks else { return };
        let span = sections.iter().rev().find_map(|section| section.keys.get("max_chunks"));
        let span = span.unwrap_or(&sections[sections.len() - 1].name_span).clone();
        if confidence.is_none() {
            let message = format!("`max_chunks` of `{name}` has no effect without a `confidence`");
            let help = "a verdict is open, and more chunks are measured, only where limits must be kept with confidence: \
                        `confidence = 0.95`";
            self.findings.error(span, message, help);
        } else if chunks < LEAST_CHUNKS {
            let message = format!(
                "`max_chunks` of `{name}` has no effect with {chunks} chunks, whose values have no intervals"
            );
            let help = format!("measure `chunks = {LEAST_CHUNKS}` at least");
            self.findings.error(span, message, help);
        } else if max_chunks <= chunks {
            let message = format!("`max_chunks` of `{name}` must be more than its {chunks} chunks");
            let help = format!("for instance `max_chunks = {}`", chunks.saturating_mul(8));
            self.findings.error(span, message, help);
        }
    }

    /// Checks that a limit on `answer_nll` can be kept with confidence: its value has an interval only if there are enough
    /// contexts.
    fn unsure_answers(&mut self, name: &str, body: &RetrievalBody, confidence: Option<f64>) {
        let contexts = body.plan.contexts;
        let limit = body.limits.iter().find(|(measure, _)| *measure == Measure::AnswerNll);
        let Some((_, bound)) = limit.filter(|_| confidence.is_some() && contexts < LEAST_CHUNKS)
        else {
            return;
        };
        let message = format!(
            "`answer_nll` of `{name}` cannot be judged with a `confidence`: its value has no interval with {}",
            count(contexts, "context")
        );
        let help = format!(
            "measure `contexts = {LEAST_CHUNKS}` at least, drop this limit, or say `confidence = false`"
        );
        self.findings.error(bound.span(), message, help);
    }

    /// Checks that the baseline itself is not quantized.
    fn exact_baseline(&mut self, span: Range<usize>, baseline: &Scheme) {
        let is_unquantized = |side: Side| side.codec.exactness().is_unquantized();
        if !baseline.sides().all(is_unquantized) {
            let message = format!("the baseline `{baseline}` is quantized itself");
            self.findings.error(span, message, "compare with `f16`, `bf16` or `f32`");
        }
    }

    /// Checks that the context is longer than a scheme's exact tail, and that a calibrated scheme has its
    /// calibration.
    fn measurable(&mut self, asked: &[Asked], context: usize, model: &Section) {
        for a in asked {
            let Some(scheme) = &a.scheme else { continue };
            let least = scheme.least_context();
            if least > context {
                let message = format!("`{}` leaves most of a context of {context} exact", a.label);
                let help = format!("measure at `context = {least}` at least, or shorten its tail");
                self.findings.error(a.span.clone(), message, help);
            }
            if scheme.is_calibrated() && model.calibration.is_none() {
                let message = format!("`{}` needs a calibration of `{}`", a.label, model.name);
                let help =
                    "make one: `kvgate calibrate MODEL --corpus FILE --output FILE`, and name it: \
                            `calibration = \"FILE\"`";
                self.findings.error(a.span.clone(), message, help);
            }
        }
    }

    /// Reports `generate` where it has no effect: neither its section nor one that inherits it has prompts.
    fn idle_generates(&mut self, document: &Document) {
        let has = |sections: &[&Section]| {
            last(sections, |s| s.prompts.as_ref()).and_then(Option::as_ref).is_some()
        };
        let mut any = false;
        for model in &document.models {
            let own = [&document.defaults, model];
            let of_at = |at| has(&[&document.defaults, model, at]);
            let inherited = has(&own) || model.at.iter().any(of_at);
            any |= inherited;
            self.idle_generate(model, inherited);
            model.at.iter().for_each(|at| self.idle_generate(at, of_at(at)));
        }
        // if the defaults name prompts and all models drop them, that is not an error of the defaults
        let own = matches!(document.defaults.prompts, Some(Some(_)));
        self.idle_generate(&document.defaults, own || any || document.models.is_empty());
    }

    fn idle_generate(&mut self, section: &Section, has_prompts: bool) {
        let Some(span) = section.keys.get("generate").filter(|_| !has_prompts) else { return };
        self.findings.error(
            span.clone(),
            "`generate` without `prompts`: nothing would be generated",
            "name a file of prompts: `prompts = \"prompts.toml\"`, or remove the line",
        );
    }

    /// Warns if the limits on mean KLD and on top-1 agreement are far apart. Both statistics move together, so one of
    /// the limits would then never be reached. If one of the two is the scheme's own, the warning is about this scheme alone.
    fn idle_limits(&mut self, asked: &Asked, limits: &Bounds) {
        let of = |statistic: Statistic| limits.get(&Quantity::from(statistic));
        let (Some(kld), Some(top1)) = (of(Statistic::MeanKld), of(Statistic::Top1Agreement)) else {
            return;
        };
        let (mean, agreement) = (*kld.get_ref(), *top1.get_ref());
        let (least, most) = FLIPS_PER_ROOT_KLD;
        let constant = (1.0 - agreement) / mean.sqrt();
        let (name, idle, binding) = if constant > most {
            ("top1_agreement", top1, kld)
        } else if constant < least {
            ("mean_kld", kld, top1)
        } else {
            return;
        };
        let goes_with = |constant: f64| (1.0 - constant * mean.sqrt()).max(0.0);
        let text = self.findings.text().clone();
        let is_own = |limit: &Spanned<f64>| {
            let bounds = asked.bodies.iter().flat_map(|(_, body)| body.limits.values());
            bounds.into_iter().any(|own| own.span() == limit.span())
        };
        let (of, here) = match is_own(kld) || is_own(top1) {
            true => (format!(" for `{}`", asked.label), " for this scheme"),
            false => (String::new(), ""),
        };
        let message = format!("`{}` never binds{of}", &text.text[idle.span()]);
        let help = format!(
            "flips grow with the root of mean KLD: a mean_kld of {mean} goes with a top1_agreement of \
             about {:.2} ({:.2} to {:.2}); tighten the idle limit, or drop it{here}: `{name} = false`",
            goes_with(TYPICAL_FLIPS_PER_ROOT_KLD),
            goes_with(most),
            goes_with(least),
        );
        let warning = Diagnostic::new(Severity::Warning, &text, idle.span(), message, help);
        self.findings.add(warning.with_related(binding.span(), "this limit is broken first"));
    }

    fn same_scheme_twice(&mut self, asked: &[Asked]) {
        for (i, second) in asked.iter().enumerate() {
            let twin = asked[..i].iter().find(|a| a.scheme.is_some() && a.scheme == second.scheme);
            let Some(first) = twin else { continue };
            let message = format!("`{}` and `{}` are the same scheme", first.label, second.label);
            let help = format!("keep one of the names: `{}`", first.label);
            let text = self.findings.text();
            let error = Diagnostic::new(Severity::Error, text, second.span.clone(), message, help);
            self.findings.add(error.with_related(first.span.clone(), "first asked for here"));
        }
    }

    /// Reports two cases that would share a golden, at least on file systems that ignore case. For two models one
    /// finding is enough.
    fn shared_goldens(&mut self, name: &str, model_span: Range<usize>, asked: &[Asked]) {
        for a in asked {
            let stem = CellName::new(name, a.label).file_stem();
            let owner = GoldenOwner {
                model: name.to_owned(),
                model_span: model_span.clone(),
                cell_span: a.span.clone(),
            };
            let Some(first) = self.goldens.insert(stem.to_lowercase(), owner) else { continue };
            let (span, first_span) = if first.model == name {
                (a.span.clone(), first.cell_span)
            } else {
                (model_span, first.model_span)
            };
            let message = format!("another case has the golden `{stem}.snap`, letter case aside");
            let text = self.findings.text();
            let error =
                Diagnostic::new(Severity::Error, text, span, message, "rename one of the two");
            self.findings.add(error.with_related(first_span, "the other one"));
            return;
        }
    }
}

/// Returns the value of the innermost section that has one.
fn last<'s, T>(sections: &[&'s Section], get: impl Fn(&'s Section) -> Option<T>) -> Option<T> {
    sections.iter().rev().find_map(|section| get(section))
}

/// The limits of a cell, without those that `false` removed.
fn limits(sections: &[&Section], bodies: &[(usize, &SchemeBody)]) -> Bounds {
    let kept = |(quantity, bound): (Quantity, Spanned<Option<f64>>)| {
        Some((quantity, Spanned::new(bound.span(), (*bound.get_ref())?)))
    };
    merged(sections, bodies).into_iter().filter_map(kept).collect()
}

/// The limits of a cell by what they bound. Later ones override earlier ones, in this order: `defaults.limits`,
/// `defaults.schemes.S`, those of the model and its `at` section, and those of their schemes.
fn merged(sections: &[&Section], bodies: &[(usize, &SchemeBody)]) -> Limits {
    let of_scheme = |defaults: bool| {
        let bodies = bodies.iter().filter(move |(depth, _)| (*depth == 0) == defaults);
        bodies.map(|(_, body)| &body.limits)
    };
    let layers = [&sections[0].limits]
        .into_iter()
        .chain(of_scheme(true))
        .chain(sections[1..].iter().map(|section| &section.limits))
        .chain(of_scheme(false));
    let mut merged = Limits::new();
    for layer in layers {
        merged.extend(layer.iter().map(|(quantity, bound)| (quantity.clone(), bound.clone())));
    }
    merged
}

/// Whether a cell is ignored, and where the policy says so. What a model's or its `at` section's table for the scheme
/// says counts most, then what the sections themselves say, and last what the defaults say about the scheme.
fn ignored<'s>(sections: &[&'s Section], asked: &Asked<'s>) -> (bool, Option<&'s Range<usize>>) {
    let of_scheme = |defaults: bool| {
        let mut bodies = asked.bodies.iter().rev().filter(|(depth, _)| (*depth == 0) == defaults);
        bodies.find_map(|(_, body)| Some((body.ignored?, body.keys.get(IGNORED))))
    };
    of_scheme(false)
        .or_else(|| last(sections, |s| Some((s.ignored?, s.keys.get(IGNORED)))))
        .or_else(|| of_scheme(true))
        .unwrap_or((false, None))
}
