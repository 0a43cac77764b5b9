//! Turns logs into a measurement that a policy can judge.

use crate::kv::codec::{self, Exactness};
use crate::kv::scheme::Side;
use crate::logs::llama_perplexity::{quoted, Cache, Log, LogError, LoggedSide, BASELINE};
use crate::policy::{Cell, ModelPolicy};
use crate::results::statistics::Statistics;
use crate::results::{
    Conditions, Floor, Measurement, Outcome, RunInfo, SchemeResult, Sides, Storage, Subject,
};
use std::collections::BTreeMap;

/// Makes one measurement of a model's logs, one for each scheme, in the order of the policy.
///
/// Schemes without a log have no result in it. It has no control lanes, which
/// [`distrust_by`](crate::judge::trust::distrust_by) allows for this engine.
///
/// # Errors
/// If a log's checkpoint, context, number of chunks or scheme is not that of the policy, if logs are of
/// several builds or baseline files, or if two are of one scheme.
pub fn measurement(logs: &[Log], model: &ModelPolicy) -> Result<Measurement, LogError> {
    let first = logs.first().ok_or(LogError::Nothing)?;
    let mut of_cell: BTreeMap<usize, &Log> = BTreeMap::new();
    let mut floor = None;
    for log in logs {
        log.accord(model)?;
        log.beside(first)?;
        let index = model.cells.iter().position(|cell| log.is_of(cell));
        let is_first_floor = floor.is_none() && log.is_of_baseline();
        if is_first_floor {
            floor = Some(log.floor());
        }
        let Some(index) = index else {
            if is_first_floor {
                continue; // a policy need not have the baseline's own cache as a scheme
            }
            return Err(LogError::NoCell {
                path: log.path.clone(),
                scheme: log.scheme(),
                model: model.name.clone(),
                cells: model.cells.iter().map(|cell| format!("`{}`", cell.label)).collect(),
            });
        };
        if let Some(other) = of_cell.insert(index, log) {
            return Err(LogError::Twice {
                path: log.path.clone(),
                scheme: model.cells[index].label.clone(),
                other: other.path.clone(),
            });
        }
    }
    let schemes = of_cell.iter().map(|(&i, log)| log.result(&model.cells[i].label));
    Ok(Measurement {
        model: model.name.clone(),
        subject: Subject {
            weights_sha256: format!("not in the log, file {}", first.model_file),
            tokenizer_sha256: None,
            architecture: first.architecture.clone(),
        },
        conditions: first.conditions(),
        run: run(logs, first),
        controls: Vec::new(),
        schemes: schemes.collect(),
        floor,
        generated: None,
        haystacks: None,
    })
}

fn run(logs: &[Log], first: &Log) -> RunInfo {
    let file = &first.model_file;
    RunInfo {
        baseline_ppl: first.statistics.baseline_ppl,
        device: first.device.clone(),
        dtype: "llama.cpp's own".into(),
        arithmetic: None,
        card: None,
        seconds: logs.iter().filter_map(|log| log.seconds).sum(),
        peak_bytes: 0,
        notes: vec![
            format!("measured by {}, build {}, commit {}, not by kvgate's engine", first.engine.name(), first.build.number, first.build.commit),
            format!("{file}: its hash, the corpus and the baseline's cache are not in the logs; they are those of the run with --kl-divergence-base"),
        ],
    }
}

impl Log {
    /// Whether what ran is what a cell of the policy asks for.
    fn is_of(&self, cell: &Cell) -> bool {
        let pair = &cell.scheme.default;
        let side = |side: &Side, stored: &LoggedSide, i: usize| {
            let plain = !side.center
                && side.scale.is_none()
                && side.tail.unwrap_or(0) == 0
                && side.sink.unwrap_or(0) == 0;
            // neither llama.cpp nor kvgate rotates heads whose size is no multiple of 64
            let rotates = side.may_rotate
                && self.caches.iter().any(|c| c.head_dim[i].is_none_or(|d| d % 64 == 0 && d > 0));
            plain && side.codec.name() == stored.kind && rotates == stored.rotated
        };
        cell.scheme.layers.is_empty() && side(&pair.k, &self.k, 0) && side(&pair.v, &self.v, 1)
    }

    fn is_of_baseline(&self) -> bool {
        [&self.k, &self.v].iter().all(|side| side.kind == "f16")
    }

    /// What the baseline's cache reads against the baseline file, in which other batches may have been computed.
    fn floor(&self) -> Floor {
        let Statistics { mean_kld, tokens_scored, .. } = self.statistics;
        Floor { mean_kld: mean_kld.max(0.0), tokens_scored, batch: 0 }
    }

    /// What the caches cost, by their own figures.
    pub(super) fn storage(&self) -> Option<Storage> {
        let bits = |stored: &LoggedSide| {
            // blocks of 32 divide any head that llama.cpp stores
            codec::find(&stored.kind).map(|codec| codec.bits_per_element(codec.block(64)))
        };
        let (k, v) = (bits(&self.k)?, bits(&self.v)?);
        let bytes = |cache: &Cache| (cache.mib.k + cache.mib.v) * f64::from(1 << 20);
        let held: f64 = self.caches.iter().map(bytes).sum();
        let halves: f64 = self.caches.iter().map(|c| 16.0 * (c.mib.k / k + c.mib.v / v)).sum();
        let share = |stored: &LoggedSide| {
            let codec = codec::find(&stored.kind);
            let is_half = codec.is_some_and(|codec| codec.exactness() == Exactness::Half);
            if is_half {
                0.0
            } else {
                1.0
            }
        };
        let per_token = |cache: &Cache| bytes(cache) / cache.cells.max(1) as f64;
        (halves > 0.0).then(|| Storage {
            bits_per_element: Sides { k, v },
            bits_at_context: Sides { k, v },
            bytes_per_token: self.caches.iter().map(per_token).sum(),
            ratio_to_f16: held / f64::from(1 << 20) / halves,
            charged_share: Sides { k: share(&self.k), v: share(&self.v) },
            clamped_scales: None,
        })
    }

    fn result(&self, label: &str) -> SchemeResult {
        SchemeResult {
            scheme: label.into(),
            effective: self.effective(),
            needs: Vec::new(),
            storage: self.storage(),
            replay: None,
            retrieved: Vec::new(),
            shape: None,
            outcome: Outcome::measured(self.statistics.clone(), Vec::new()),
        }
    }

    fn conditions(&self) -> Conditions {
        Conditions {
            corpus: Vec::new(),
            context: self.context,
            chunks: self.chunks,
            baseline: BASELINE.into(),
            engine: self.engine_name(),
            device: self.device.clone(),
            weights: self.weights.clone(),
            reading: Vec::new(),
            prompts: None,
            needs: Vec::new(),
        }
    }

    /// Refuses a log that was not measured as the policy says.
    fn accord(&self, model: &ModelPolicy) -> Result<(), LogError> {
        let differs = |what, found: String, wanted: String, mend| LogError::OtherConditions {
            path: self.path.clone(),
            what,
            found,
            wanted: format!("the policy's `{}` has {wanted}", model.name),
            mend,
        };
        let again = "; make the baseline file anew with `-c` and `--chunks`";
        let numbers = [
            ("the context", self.context, model.context),
            ("the number of chunks", self.chunks, model.chunks),
        ];
        for (what, found, wanted) in numbers {
            if found != wanted {
                return Err(differs(what, found.to_string(), wanted.to_string(), again));
            }
        }
        let file = model.source.path.file_name().unwrap_or_default().to_string_lossy();
        // a checkpoint in safetensors was converted to a GGUF file, which may have any name
        if file.ends_with(".gguf") && file != self.model_file {
            let found = format!("`{}`", quoted(&self.model_file));
            return Err(differs("the checkpoint", found, format!("`{file}`"), ""));
        }
        Ok(())
    }

    /// Refuses a log that cannot be compared with another one.
    fn beside(&self, other: &Log) -> Result<(), LogError> {
        let base = |log: &Log| log.statistics.baseline_ppl.to_string();
        let facts: [(&'static str, String, String); 4] = [
            ("the engine", self.engine_name(), other.engine_name()),
            ("the device", self.device.clone(), other.device.clone()),
            ("the checkpoint", self.model_file.clone(), other.model_file.clone()),
            ("the baseline's perplexity", base(self), base(other)),
        ];
        match facts.into_iter().find(|(_, one, two)| one != two) {
            None => Ok(()),
            Some((what, found, wanted)) => Err(LogError::OtherRun {
                path: self.path.clone(),
                what,
                found,
                wanted,
                other: other.path.clone(),
            }),
        }
    }
}
