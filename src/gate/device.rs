//! The device that options or the environment ask for, and what people are told of it.

use crate::compute::device::Choice;
use crate::compute::place::NoDevice;
use crate::compute::{Device, Precision};
use crate::text::out;
use std::str::FromStr;

/// The variable of the environment that names the device.
const DEVICE: &str = "KVGATE_DEVICE";
/// The variable of the environment that names the precision.
const PRECISION: &str = "KVGATE_PRECISION";

/// What options or the environment ask for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asked {
    pub device: Option<Choice>,
    pub precision: Option<Precision>,
}

impl Asked {
    /// Whether one device is named. `auto` names none.
    pub fn names_a_device(&self) -> bool {
        let asked = self.or_environment().ok().and_then(|asked| asked.device);
        asked.is_some_and(|device| device != Choice::Auto)
    }

    /// The same, with what the environment asks for in the place of what is not given.
    ///
    /// # Errors
    /// If a variable names no device, or no precision.
    pub fn or_environment(self) -> Result<Self, String> {
        Ok(Asked {
            device: self.device.map_or_else(|| variable(DEVICE), |given| Ok(Some(given)))?,
            precision: self
                .precision
                .map_or_else(|| variable(PRECISION), |given| Ok(Some(given)))?,
        })
    }

    /// Opens the device. Says on standard error what nobody could see otherwise: what `auto` came to, and that a
    /// precision was asked for where there is only one.
    ///
    /// # Errors
    /// If the environment names no device or no precision, and if a card is asked for and cannot be used.
    pub fn open(self) -> Result<Device, String> {
        let Asked { device, precision } = self.or_environment()?;
        let (device, on_auto) = match device.unwrap_or_default() {
            Choice::Auto => {
                let (device, no_card) = Device::auto();
                let note = note_on_auto(&device, no_card.as_ref());
                (device, note)
            }
            named => (Device::open(named).map_err(|error| refused(&error))?, None),
        };
        let on_precision = note_on_precision(&device, precision);
        for note in on_auto.into_iter().chain(on_precision) {
            out::eprint(format!("note: {note}"));
        }
        Ok(device.in_precision(precision.unwrap_or_default()))
    }
}

/// The value of a variable of the environment. An empty one counts as not set, because that is how workflows pass on
/// inputs that nobody gave.
fn variable<T: FromStr<Err = String>>(name: &str) -> Result<Option<T>, String> {
    let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let value = value.into_string().map_err(|_| format!("{name} is not text in UTF-8"))?;
    value.parse().map(Some).map_err(|error| format!("{name}: {error}"))
}

fn refused(why: &NoDevice) -> String {
    format!("{why}; to compute on the CPU use --device cpu, or set {DEVICE}=cpu")
}

fn note_on_precision(device: &Device, asked: Option<Precision>) -> Option<String> {
    let asked = asked.filter(|_| device.card().is_none())?;
    Some(format!(
        "the precision `{asked}` changes nothing on the CPU, where every lane is computed whole, in f32"
    ))
}

/// Which device `auto` took, and why it is no card if it is none. In a build that knows no cards there is nothing to
/// say.
fn note_on_auto(device: &Device, no_card: Option<&NoDevice>) -> Option<String> {
    match no_card {
        Some(why) => Some(format!("models run on {}, not on a card: {why}", device.describe())),
        None => Device::knows_cards().then(|| format!("models run on {}", device.describe())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::device::pretended_card;

    /// The reason is the driver's own, or what the card lacks.
    #[test]
    fn auto_says_why_no_card_was_taken() {
        let cpu = Device::cpu();
        let no_card = NoDevice::NoCard { ordinal: 0, why: "CUDA_ERROR_NO_DEVICE".into() };
        let too_old = NoDevice::TooOld { name: "Tesla T4".into(), capability: (7, 5) };
        for (why, words) in [
            (no_card, "not on a card: no CUDA device 0: CUDA_ERROR_NO_DEVICE"),
            (too_old, "not on a card: Tesla T4 has compute capability 7.5; kvgate needs 8.0"),
        ] {
            let note = note_on_auto(&cpu, Some(&why)).unwrap();
            assert!(note.contains(words) && note.contains("CPU threads"), "{note}");
        }
    }

    #[test]
    fn a_build_without_cards_says_nothing_of_them() {
        let (device, no_card) = Device::auto();
        let note = note_on_auto(&device, no_card.as_ref());
        assert_eq!(note.is_some(), Device::knows_cards(), "{note:?}");
    }

    #[test]
    fn a_precision_means_something_on_a_card_only() {
        let asked = Some(Precision::Differences);
        let note = note_on_precision(&Device::cpu(), asked).unwrap();
        assert!(note.contains("`differences` changes nothing on the CPU"), "{note}");
        assert_eq!(note_on_precision(&Device::cpu(), None), None);
        assert_eq!(note_on_precision(&pretended_card(), asked), None);
    }
}
