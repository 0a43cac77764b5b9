//! Where a model is computed, and in what arithmetic.

pub(crate) use super::place::HOST;

use super::place::{Card, NoDevice};
use super::precision::Precision;
use super::{cuda, machine};
use candle_core::DType;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Where a model is computed, and in what arithmetic.
#[derive(Debug, Clone)]
pub struct Device {
    at: candle_core::Device,
    /// The card, if it is not the CPU.
    card: Option<OpenCard>,
}

/// A card that models are computed on.
#[derive(Debug, Clone)]
struct OpenCard {
    known: Card,
    precision: Precision,
    /// The fewest bytes of its memory that were seen free. All clones of a device share the number.
    least_free: Arc<AtomicU64>,
}

/// The device that somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// A card if this build can use one and one answers, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The card with an ordinal.
    Cuda(usize),
}

/// How many rows of a product are computed at once on the CPU. Wide outputs with more rows would not stay in the
/// processor's caches.
const CPU_PRODUCT_ROWS: usize = 1024;

/// How many rows of a lane are put into one product on a card, if the context is not longer.
const CARD_TILE_ROWS: usize = 8192;

impl Device {
    /// The CPU, on all threads of the program's pool.
    pub fn cpu() -> Self {
        Device { at: HOST, card: None }
    }

    /// Opens the device that is asked for.
    ///
    /// # Errors
    /// A card was asked for, and this build or this machine cannot use it.
    pub fn open(choice: Choice) -> Result<Self, NoDevice> {
        match choice {
            Choice::Cpu => Ok(Device::cpu()),
            Choice::Cuda(ordinal) => Device::on_card(ordinal),
            Choice::Auto => Ok(Device::auto().0),
        }
    }

    /// The device of [`Choice::Auto`]. If it is the CPU although this build can use cards, the reason comes with it.
    pub fn auto() -> (Self, Option<NoDevice>) {
        match Device::on_card(0) {
            Ok(device) => (device, None),
            Err(why) => (Device::cpu(), Device::knows_cards().then_some(why)),
        }
    }

    fn on_card(ordinal: usize) -> Result<Self, NoDevice> {
        let (at, card) = cuda::open(ordinal)?;
        let least_free = Arc::new(card.free.into());
        let card = OpenCard { known: card, precision: Precision::default(), least_free };
        Ok(Device { at, card: Some(card) })
    }

    /// The same device in a precision. On the CPU there is only one, so nothing changes.
    pub fn in_precision(mut self, precision: Precision) -> Self {
        if let Some(card) = &mut self.card {
            card.precision = precision;
        }
        self
    }

    /// In which precision lanes are computed.
    pub fn precision(&self) -> Precision {
        self.card.as_ref().map_or(Precision::Whole, |card| card.precision)
    }

    /// Whether this build can compute on cards at all.
    pub fn knows_cards() -> bool {
        cuda::IS_BUILT
    }

    /// The place of its tensors.
    pub fn at(&self) -> &candle_core::Device {
        &self.at
    }

    /// Waits until everything that was asked of the device is done.
    ///
    /// # Errors
    /// If the device failed at some of it.
    pub fn wait(&self) -> candle_core::Result<()> {
        self.at.synchronize()
    }

    /// The kind of device, as a measurement names it.
    pub fn name(&self) -> &'static str {
        if self.card.is_some() {
            "cuda"
        } else {
            "cpu"
        }
    }

    /// The number type of weights in products, as a measurement names it.
    pub fn weights(&self) -> &'static str {
        if self.card.is_some() { DType::F16 } else { DType::F32 }.as_str()
    }

    /// The number type of everything between products, as reports name it.
    pub fn dtype(&self) -> &'static str {
        DType::F32.as_str()
    }

    /// What numbers depend on: whatever was measured on a device of another identity is measured again.
    pub fn identity(&self) -> String {
        let card = self.card.as_ref().map(|OpenCard { known, precision, .. }| {
            format!(" {} {} {precision}", known.name, known.driver)
        });
        format!("{} {}{}", self.name(), self.weights(), card.unwrap_or_default())
    }

    /// Whether a codec is carried out on the device itself: by the kernel of this name, or by that of a text.
    /// `is_taken` says whether that kernel takes the heads at hand.
    pub fn has_kernel(&self, name: &str, text: Option<&str>, is_taken: bool) -> bool {
        self.card.is_none() || is_taken && (text.is_some() || cuda::has_codec(name))
    }

    /// Bytes that a weight takes. On a card it has a second term of f16, unless it is short, as bf16 and f16 are.
    pub fn weight_bytes(&self, is_short: bool) -> u64 {
        if self.card.is_some() && is_short {
            2
        } else {
            4
        }
    }

    /// Bytes that a number of the embedding takes, if they are others than those of a weight in products.
    pub fn embedding_bytes(&self) -> Option<u64> {
        self.card.is_some().then_some(4)
    }

    /// What reports say of the device.
    pub fn describe(&self) -> String {
        match self.card() {
            None => format!("{} CPU threads", rayon::current_num_threads()),
            Some(Card { name, driver, memory, .. }) => {
                format!("{name}, {} GiB, driver for CUDA {driver}", memory >> 30)
            }
        }
    }

    /// What is known of the card, if it is not the CPU.
    pub fn card(&self) -> Option<&Card> {
        self.card.as_ref().map(|card| &card.known)
    }

    /// The arithmetic of products, as reports name it.
    pub fn arithmetic(&self) -> &'static str {
        self.card.as_ref().map_or("f32", |card| card.precision.arithmetic())
    }

    /// Begins to look at the card's memory anew, for another measurement: what earlier ones have freed is given back.
    pub fn begin_noting_memory(&self) {
        let Some(card) = &self.card else { return };
        // only people read the number that comes of this
        let _ = cuda::release_memory(&self.at);
        card.least_free.store(card.known.free, Ordering::Relaxed);
        self.note_memory();
    }

    /// Notes how much of the card's memory is free now. Freed memory stays with the program, so it is enough to look
    /// now and then.
    pub fn note_memory(&self) {
        let Some(card) = &self.card else { return };
        // only people read the number, so a driver that does not give it stops no measurement
        if let Ok(free) = cuda::free_memory(&self.at) {
            card.least_free.fetch_min(free, Ordering::Relaxed);
        }
    }

    /// The most bytes of the card's memory that were taken at once since [`Device::begin_noting_memory`], as far as
    /// [`Device::note_memory`] has seen. What other programs take meanwhile counts, too.
    pub fn peak_bytes(&self) -> Option<u64> {
        let card = self.card.as_ref()?;
        let peak = card.known.free.saturating_sub(card.least_free.load(Ordering::Relaxed));
        (peak > 0).then_some(peak)
    }

    /// Bytes of memory for weights and hidden states.
    pub fn memory(&self) -> u64 {
        match self.card() {
            None => machine::memory(),
            Some(card) => card.free,
        }
    }

    /// How many rows of a lane are put into one product: as many chunks travel together as fit. The last bits of a
    /// product may depend on how many rows it has, so another number here would change goldens.
    pub fn tile_rows(&self) -> usize {
        match self.card {
            None => 1024,
            Some(_) => CARD_TILE_ROWS,
        }
    }

    /// How many bytes the hidden states of a group of chunks may take.
    pub fn group_bytes(&self) -> usize {
        match self.card() {
            None => 2 << 30,
            Some(card) => (card.free / 4) as usize,
        }
    }

    /// How many lanes can travel at once, the baseline included.
    pub fn most_lanes(&self) -> usize {
        self.card().map_or(usize::MAX, |card| card.lanes)
    }

    /// Which of `lanes` lanes travel together: on a card all of them, because a lane's products there are computed as
    /// differences from the baseline's.
    pub fn lane_sets(&self, lanes: usize) -> Vec<Range<usize>> {
        let together = if self.card.is_some() { lanes } else { 1 };
        (0..lanes).step_by(together.max(1)).map(|lane| lane..lane + together).collect()
    }

    /// How many positions of `lanes` lanes, the baseline included, pass the model's head together.
    pub fn head_positions(&self, lanes: usize) -> usize {
        match self.card {
            None => (2560 / lanes).max(1),
            // a lane's products must not depend on how many others there are
            Some(_) => 1024,
        }
    }

    /// How many entries of the vocabulary a tile has for `rows` rows at the head. On the CPU so many logits stay in the
    /// processor's caches until they are compared.
    pub fn head_width(&self, rows: usize) -> usize {
        match self.card {
            None => ((4 << 20) / rows).max(1),
            Some(_) => 32_768,
        }
    }
}

/// How many rows of activations on a device one call takes. A card takes all of them.
pub(crate) fn product_rows(at: &candle_core::Device) -> usize {
    if at.is_cpu() {
        CPU_PRODUCT_ROWS
    } else {
        usize::MAX
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let ordinal = || s.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        match s {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            _ => ordinal().map(Choice::Cuda).ok_or_else(|| {
                format!("`{s}` is no device; use auto, cpu or cuda:N, such as cuda:0")
            }),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Cpu => f.write_str("cpu"),
            Choice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// A device that takes itself for a card, for tests of what is said of cards. Nothing can be computed on it.
#[cfg(test)]
pub(crate) fn pretended_card() -> Device {
    let (name, driver) = ("Pretended Card".into(), "13.0".into());
    let known = Card { name, driver, memory: 139 << 30, free: 100 << 30, lanes: 453 };
    let least_free = Arc::new(known.free.into());
    let card = OpenCard { known, precision: Precision::default(), least_free };
    Device { at: HOST, card: Some(card) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_call_the_cpu_what_they_always_did() {
        let cpu = Device::cpu();
        assert_eq!((cpu.name(), cpu.weights(), cpu.dtype()), ("cpu", "f32", "f32"));
        assert!(cpu.describe().ends_with(" CPU threads"));
    }

    #[test]
    fn the_peak_is_of_the_least_free_memory_that_any_clone_has_seen() {
        let card = pretended_card();
        assert_eq!(card.peak_bytes(), None, "nothing was seen yet");
        let see = |device: &Device, free: u64| {
            device.card.as_ref().unwrap().least_free.fetch_min(free, Ordering::Relaxed);
        };
        see(&card.clone(), 90 << 30);
        see(&card, 99 << 30);
        assert_eq!(card.peak_bytes(), Some(10 << 30));
        // there is no such card to ask
        card.note_memory();
        assert_eq!((card.peak_bytes(), Device::cpu().peak_bytes()), (Some(10 << 30), None));
    }

    /// What was measured in one precision is no measurement in the other. There is one on the CPU.
    #[test]
    fn the_precision_is_part_of_a_cards_identity_and_of_its_arithmetic() {
        let both = |device: Device| {
            [Precision::Differences, Precision::Whole].map(|precision| {
                let device = device.clone().in_precision(precision);
                (device.identity(), device.arithmetic())
            })
        };
        let [differences, whole] = both(pretended_card());
        assert_eq!(differences.0, "cuda f16 Pretended Card 13.0 differences");
        assert_eq!(whole.0, "cuda f16 Pretended Card 13.0 whole");
        assert_ne!(differences.1, whole.1);
        for same in both(Device::cpu()) {
            assert_eq!(same, ("cpu f32".to_string(), "f32"));
        }
        assert_eq!(Device::cpu().precision(), Precision::Whole);
    }

    #[test]
    fn reports_name_a_card_its_driver_and_its_arithmetic() {
        let card = pretended_card();
        assert_eq!(card.describe(), "Pretended Card, 139 GiB, driver for CUDA 13.0");
        assert!(card.arithmetic().contains("differences from the baseline in f16"));
        assert_eq!(Device::cpu().arithmetic(), "f32");
    }

    #[test]
    fn a_choice_is_read_as_it_is_written() {
        for choice in [Choice::Auto, Choice::Cpu, Choice::Cuda(0), Choice::Cuda(7)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(0)));
        for wrong in ["gpu", "cuda:", "cuda:x", "CPU", ""] {
            assert!(wrong.parse::<Choice>().unwrap_err().contains("cuda:0"), "{wrong}");
        }
    }
}
