//! Quantized checkpoints: weights that are stored as codes and scales, and are dequantized to f32 tensor by tensor.
//!
//! A format is a file with a [`Known`] and a line in [`KNOWN`]. It reads the description that a configuration gives,
//! of which no member may remain unread, and takes the tensors that make up its weights. What it leaves over is read
//! as in any other checkpoint: plain weights stay plain, and a tensor that nobody understands is an error.

mod autoround;
mod autoround_members;
mod awq;
mod bitsandbytes;
mod columns;
mod compressed;
mod described;
mod fp4;
mod fp8;
mod gptq;
mod kv_scheme;
mod left_out;
mod mlx;
mod modelopt;
mod mxfp4;
mod numbers;
mod raw;
mod scaled;
mod weight;

pub(super) use raw::Raw;
pub(super) use weight::{Part, Quantized};

use super::files::optional;
use super::{json, refused, Located, Stored};
use crate::model::ModelError;
use crate::source::pinned::{CONFIG, QUANTIZATION_FILES};
use described::Described;
use left_out::LeftOut;
use safetensors::Dtype;
use serde_json::{Map, Value};
use std::fmt::Debug;
use std::path::Path;

/// A method of quantization.
struct Known {
    /// Its names as `quant_method`.
    names: &'static [&'static str],
    /// Reads a description, whose method is taken already.
    read: fn(Described) -> Result<Box<dyn Method>, ModelError>,
}

const KNOWN: &[Known] = &[
    autoround::AUTOROUND,
    awq::AWQ,
    bitsandbytes::BITSANDBYTES,
    compressed::COMPRESSED,
    fp8::FP8,
    gptq::GPTQ,
    mlx::MLX,
    modelopt::MODELOPT,
    mxfp4::MXFP4,
];

/// How a checkpoint's weights are quantized.
trait Method: Debug {
    /// Puts weights in the place of the tensors that they are computed from.
    fn claim(&self, raw: &mut Raw) -> Result<(), ModelError>;

    /// Modules that the description leaves out.
    fn plain(&self) -> &[String];

    /// Whether weights are quantized, and not the cache alone.
    fn has_weights(&self) -> bool {
        true
    }

    /// Whether programs that serve the checkpoint quantize activations, too.
    fn quantizes_activations(&self) -> bool {
        false
    }

    /// What two descriptions of one checkpoint must agree in.
    fn settings(&self) -> Vec<Setting> {
        vec![("what they say of the weights", Some(format!("{self:?}")))]
    }

    /// What the names of scales end with, beside a weight whose own name does not tell that it is quantized. One of
    /// them must be there.
    fn scales(&self) -> &'static [&'static str] {
        &[]
    }
}

/// What a description says of one thing, which messages name so. `None` if it says nothing.
type Setting = (&'static str, Option<String>);

/// What two methods of one name say in different ways, if both speak of it.
fn difference(one: &dyn Method, other: &dyn Method) -> Option<&'static str> {
    let mut pairs = one.settings().into_iter().zip(other.settings());
    let differ = |((_, a), (_, b)): &(Setting, Setting)| a.is_some() && b.is_some() && a != b;
    pairs.find(differ).map(|((name, _), _)| name)
}

/// How a checkpoint says that it is quantized.
pub(super) struct Quantization {
    method: Box<dyn Method>,
    name: &'static str,
    /// Where the description stands.
    place: String,
    /// Whether it is about all projections, and not about such as it names.
    is_about_all: bool,
    /// Further descriptions, which contradict nothing in this one and may say more.
    others: Vec<Quantization>,
}

/// Members of config.json that describe how weights, activations or caches are quantized. `quantization` is
/// MLX's, `compression_config` was that of compressed-tensors, which also has `transform_config` for rotations.
const MEMBERS: [&str; 6] = [
    "quantization_config",
    "quantization",
    "compression_config",
    "quantize_config",
    "quant_config",
    "transform_config",
];

/// Reads all descriptions that a folder has, which must agree.
pub(super) fn described(
    folder: &Path,
    whole: &Value,
    text: &Value,
) -> Result<Option<Quantization>, ModelError> {
    let config = folder.join(CONFIG);
    let mut found: Option<Quantization> = None;
    let mut add = |path: &Path, place: &str, value: &Value| -> Result<(), ModelError> {
        let Some(new) = read(path, place, value)? else { return Ok(()) };
        let Some(first) = &mut found else {
            found = Some(new);
            return Ok(());
        };
        for known in std::iter::once(&*first).chain(&first.others) {
            let differ = match known.name == new.name {
                true => difference(&*known.method, &*new.method),
                false => Some("the method"),
            };
            let Some(differ) = differ else { continue };
            let (one, other) = (&known.place, &new.place);
            let message = format!(
                "{one} and {other} describe quantization in different ways: they differ in {differ}, and nothing says \
                 which is right"
            );
            return Err(ModelError::refused(folder, message));
        }
        first.others.push(new);
        Ok(())
    };
    for key in MEMBERS {
        add(&config, key, &text[key])?;
        if whole[key] != text[key] {
            add(&config, key, &whole[key])?;
        }
    }
    for name in QUANTIZATION_FILES {
        let path = folder.join(name);
        if let Some(bytes) = optional(&path)? {
            add(&path, "", &json::object(&path, &bytes)?)?;
        }
    }
    Ok(found)
}

/// Reads one description. `None` if it says that nothing is quantized.
fn read(path: &Path, place: &str, value: &Value) -> Result<Option<Quantization>, ModelError> {
    let Some(words) = refused::method(value) else { return Ok(None) };
    let unknown = || refused::quantized(path, place, &words);
    let members = value.as_object().ok_or_else(unknown)?;
    let name = method_of(members).filter(|_| place != "transform_config").ok_or_else(unknown)?;
    let known = KNOWN.iter().find_map(|known| {
        let name = known.names.iter().find(|known| **known == name)?;
        Some((known, *name))
    });
    let (known, name) = known.ok_or_else(unknown)?;
    let mut described = Described::new(path, place, members);
    described.pass_over(&["quant_method"]);
    let method = (known.read)(described)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let place = if place.is_empty() { format!("`{file}`") } else { format!("`{place}` of {file}") };
    let name = known.names.first().unwrap_or(&name);
    let is_about_all = is_about_all(name, members);
    Ok(Some(Quantization { method, name, place, is_about_all, others: Vec::new() }))
}

/// Whether a description is about all projections that its lists do not leave out.
fn is_about_all(name: &str, members: &Map<String, Value>) -> bool {
    let names = ["modules_in_block_to_quantize", "modules_to_convert"];
    let has_names = names.iter().any(|key| members.get(*key).is_some_and(|list| !list.is_null()));
    let linear = Value::from("Linear");
    let is_of_class = |group: &Value| {
        let targets = group.get("targets").and_then(Value::as_array);
        targets.is_none_or(|targets| targets.contains(&linear))
    };
    let groups = members.get("config_groups").and_then(Value::as_object);
    let is_of_classes = groups.is_none_or(|groups| groups.values().any(is_of_class));
    // MXFP4 is for experts alone
    name != "mxfp4" && !has_names && is_of_classes
}

/// The name of a method, given or by the members that only its descriptions have.
fn method_of(members: &Map<String, Value>) -> Option<String> {
    let given = members.get("quant_method").and_then(Value::as_str);
    if let Some(given) = given {
        return Some(given.to_ascii_lowercase());
    }
    let has = |key: &str| members.get(key).is_some_and(|value| !value.is_null());
    let signs: [(&str, &[&str]); 5] = [
        ("modelopt", &["quantization", "quant_algo", "kv_cache_quant_algo"]),
        ("bitsandbytes", &["load_in_4bit", "load_in_8bit"]),
        ("awq", &["w_bit"]),
        ("gptq", &["desc_act"]),
        ("mlx", &["group_size"]),
    ];
    let found = signs.into_iter().find(|(_, keys)| keys.iter().any(|key| has(key)));
    found.map(|(name, _)| name.into())
}

impl Quantization {
    /// Puts the quantized weights together, and returns notes for people about them.
    pub fn claim(&self, raw: &mut Raw) -> Result<Vec<String>, ModelError> {
        self.others.iter().try_for_each(|other| other.fits(raw))?;
        self.method.claim(raw)?;
        self.has_no_codes_left(raw)?;
        if raw.count == 0 && self.method.has_weights() {
            let message = format!(
                "{} says that the weights are quantized by `{}`, and no tensor is: the description is another \
                 checkpoint's",
                self.place, self.name
            );
            return Err(ModelError::refused(raw.folder, message));
        }
        self.leaves_out(raw)?;
        let mut notes = Vec::new();
        if raw.count > 0 {
            notes.push(format!(
                "{} of the weights are quantized ({}) and are measured as f32 of what is stored{}",
                raw.count,
                self.name,
                if self.method.quantizes_activations() {
                    "; activations, which programs that serve the checkpoint quantize, too, are not quantized"
                } else {
                    ""
                }
            ));
        }
        notes.extend(self.unexplained(raw));
        if !raw.zero_biases.is_empty() {
            notes.push(format!(
                "{} biases beside quantized weights are all zeros, as old tools wrote one for every layer: where the \
                 family has no bias, they are passed over",
                raw.zero_biases.len()
            ));
        }
        Ok(notes)
    }

    /// Checks a description by itself, since it may say of the tensors what no other one says.
    fn fits(&self, raw: &Raw) -> Result<(), ModelError> {
        raw.on_a_copy(|copy| {
            self.method.claim(copy)?;
            self.has_no_codes_left(copy)?;
            self.leaves_out(copy)
        })
    }

    /// Refuses codes that the method has left, because their scales are missing, or because the description is about
    /// others.
    fn has_no_codes_left(&self, raw: &Raw) -> Result<(), ModelError> {
        let codes = [Dtype::F8_E4M3, Dtype::I8, Dtype::U8, Dtype::I32, Dtype::U32];
        let mut left = raw.stems(".weight").into_iter().filter_map(|module| {
            let dtype = raw.dtype(&format!("{module}.weight"))?;
            codes.contains(&dtype).then_some((module, dtype))
        });
        let Some((module, dtype)) = left.next() else { return Ok(()) };
        let scales = self.method.scales().iter().map(|end| format!("{module}.{end}"));
        let scales: Vec<_> = scales.collect();
        let is_there = scales.is_empty() || scales.iter().any(|name| raw.dtype(name).is_some());
        let message = match is_there {
            true => format!(
                "is {dtype:?}, which is not what {} describes (`{}`)",
                self.place, self.name
            ),
            false => format!(
                "is {dtype:?}, and the scales that `{}` has beside it are missing (`{}`)",
                self.name,
                scales.join("` or `")
            ),
        };
        Err(raw.refuse(&format!("{module}.weight"), message))
    }

    /// A note about what the descriptions do not explain: patterns that are not compared with the tensors, or plain
    /// projections that nothing leaves out.
    fn unexplained(&self, raw: &Raw) -> Option<String> {
        let all = || std::iter::once(self).chain(&self.others);
        let left_out = LeftOut::new(all().flat_map(|one| one.method.plain()));
        let unread = left_out.unread();
        if let Some(first) = unread.first() {
            return Some(format!(
                "{} patterns in the lists of modules that are left out, such as `{first}`, are not compared with the \
                 tensors",
                unread.len()
            ));
        }
        let is_plain = |module: &String| {
            let dtype = raw.dtype(&format!("{module}.weight"));
            module.ends_with("_proj") && dtype.is_some_and(|dtype| raw::SCALES.contains(&dtype))
        };
        let plain = raw.stems(".weight").into_iter().filter(is_plain);
        let plain: Vec<_> = plain.filter(|module| left_out.entry(module).is_none()).collect();
        let first = plain.first().filter(|_| raw.count > 0 && all().all(|one| one.is_about_all))?;
        Some(format!(
            "{} projections, such as `{first}`, are not quantized, although {} does not leave them out",
            plain.len(),
            self.place
        ))
    }

    /// Modules that the description leaves out must not be quantized.
    fn leaves_out(&self, raw: &Raw) -> Result<(), ModelError> {
        let left_out = LeftOut::new(self.method.plain().iter());
        let weights =
            raw.tensors.iter().filter(|(_, stored)| matches!(stored, Stored::Quantized(_)));
        for (name, _) in weights {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            if let Some(plain) = left_out.entry(module) {
                let message = format!(
                    "is quantized, and {} leaves `{plain}` out: nothing says which is right",
                    self.place
                );
                return Err(raw.refuse(name, message));
            }
        }
        Ok(())
    }
}
