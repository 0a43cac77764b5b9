//! How often the intervals of statistics hold the truth, measured on real chunks.
//!
//!     cargo bench --bench coverage -- RESULTS.json [SCHEME,SCHEME,...]
//!
//! The file holds a measurement of many chunks of several categories, each category with as many. Their statistics are
//! the truth. From them chunks are drawn at random, as many of each category, and the interval of 95 % of these is
//! compared with the truth. A line has the share of draws whose interval lies below the truth (the upper end missed),
//! above it, and how far the median upper end lies above the truth. `positions` is the value ± 2 standard errors that take
//! positions as independent.
//!
//! Then it says what verdicts a limit gets that is so many times the true mean KLD, in one look and in several
//! (`max_chunks`, with the share of chunks that all looks would measure), and how often two schemes whose true
//! means differ by 5 to 60 % are told apart on the same chunks, by their intervals and by the differences of their chunks.
//!
//! Without a file, the interval of the mean KLD is measured on made chunks, whose KLD is log-normal and whose categories
//! differ in their means and in their spread.

use kvgate::internals::golden::ChunkMeans;
use kvgate::internals::judge::interval;
use kvgate::results::statistics::{Part, Statistic, Statistics};
use kvgate::results::{json, Outcome};
use std::collections::BTreeMap;
use std::path::Path;

const DRAWS: usize = 1000;
const COUNTS: [usize; 3] = [8, 16, 32];
/// Chunks in all at each look.
const LOOKS: [usize; 4] = [8, 16, 32, 64];
/// Limits, as multiples of the true mean KLD.
const TIMES: [f64; 4] = [1.0, 1.25, 1.5, 2.0];
const STATISTICS: [Statistic; 6] = [
    Statistic::MeanKld,
    Statistic::Top1Agreement,
    Statistic::MedianKld,
    Statistic::P99Kld,
    Statistic::RmsDp,
    Statistic::PplRatio,
];

/// Four categories: their true means, and the standard deviations of the logarithms of their chunks.
type Made = ([f64; 4], [f64; 4]);
const MADE: [Made; 6] = [
    ([1.0; 4], [0.3; 4]),
    ([1.0; 4], [0.8; 4]),
    ([1.0, 0.02, 0.02, 0.02], [0.8; 4]),
    ([1.0, 0.02, 0.02, 0.02], [0.8, 0.2, 0.2, 0.2]),
    ([10.0, 1.0, 1.0, 1.0], [0.8, 0.3, 0.3, 0.3]),
    ([3.0, 1.0, 1.0, 1.0], [1.2, 0.3, 0.3, 0.3]),
];

/// How often the interval of the mean KLD holds the true mean of made chunks.
fn simulated((means, spreads): &Made) {
    let truth = means.iter().sum::<f64>() / means.len() as f64;
    for count in COUNTS {
        let mut random = Random(count as u64);
        let mut misses = Misses::default();
        for _ in 0..DRAWS {
            let mut chunk = |category: usize, chunk: usize| {
                let (mean, spread) = (means[category], spreads[category]);
                let value = mean * (spread * random.normal() - spread * spread / 2.0).exp();
                let category = ["a", "b", "c", "d"][category].into();
                Part { category, chunk, tokens: 1, kld: value, ..Part::default() }
            };
            let places = (0..count).map(|i| (i % 4, i / 4));
            let drawn: Vec<Part> = places.map(|(category, i)| chunk(category, i)).collect();
            let interval = interval::of(Statistic::MeanKld, &made(&drawn), &drawn, 0.95);
            let interval = interval.expect("it has one");
            misses.note(truth, interval.low, interval.high);
        }
        println!("means {means:?}, spreads {spreads:?} {count:3}   {}", misses.line());
    }
}

/// Numbers that look random and are the same in each run (Steele, Lea and Flood's SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n as u64) as usize
    }

    /// A number of the normal distribution with mean 0 and variance 1 (Box and Muller, 1958).
    fn normal(&mut self) -> f64 {
        let mut share = || (self.below(1 << 53) as f64 + 0.5) / (1u64 << 53) as f64;
        (-2.0 * share().ln()).sqrt() * (std::f64::consts::TAU * share()).cos()
    }

    /// So many chunks, as many of each category.
    fn draw(&mut self, categories: &[Vec<Part>], count: usize) -> Vec<Part> {
        let of_each = count / categories.len();
        let mut drawn = Vec::new();
        for parts in categories {
            let mut left: Vec<&Part> = parts.iter().collect();
            for _ in 0..of_each {
                drawn.push(left.swap_remove(self.below(left.len())).clone());
            }
        }
        drawn
    }
}

/// The statistics that parts make, as far as this needs them. Quantiles are those of the histogram's bins.
fn made(parts: &[Part]) -> Statistics {
    let n: f64 = parts.iter().map(|part| part.tokens as f64).sum();
    let mean = |of: &dyn Fn(&Part) -> f64| parts.iter().map(of).sum::<f64>() / n;
    let error = |square: f64, mean: f64| ((square - mean * mean).max(0.0) / (n - 1.0)).sqrt();
    let (kld, top1) = (mean(&|p| p.kld), mean(&|p| p.same_top as f64));
    Statistics {
        tokens_scored: n as u64,
        mean_kld: kld,
        mean_kld_se: error(mean(&|p| p.kld2), kld),
        median_kld: interval::quantile_of(parts, 0.5),
        p99_kld: interval::quantile_of(parts, 0.99),
        top1_agreement: top1,
        top1_agreement_se: error(top1, top1),
        rms_dp: mean(&|p| p.dp2).sqrt(),
        ppl_ratio: mean(&|p| p.nll - p.nll_base).exp(),
        ..Statistics::default()
    }
}

#[derive(Default)]
struct Misses {
    above: usize,
    below: usize,
    reach: Vec<f64>,
}

impl Misses {
    fn note(&mut self, truth: f64, low: f64, high: f64) {
        self.above += usize::from(high < truth);
        self.below += usize::from(low > truth);
        self.reach.push(high / truth - 1.0);
    }

    fn line(&mut self) -> String {
        self.reach.sort_by(f64::total_cmp);
        let share = |count: usize| 100.0 * count as f64 / DRAWS as f64;
        let reach = self.reach[self.reach.len() / 2];
        format!("{:5.1} {:5.1} {:+6.2}", share(self.above), share(self.below), reach)
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let Some(file) = arguments.first() else {
        println!("name a results.json of many chunks, and schemes, for chunks that were measured");
        return MADE.iter().for_each(simulated);
    };
    let wanted: Vec<&str> = arguments.get(1).map_or(Vec::new(), |names| names.split(',').collect());
    let results = json::read(Path::new(file)).unwrap_or_else(|error| panic!("{error}"));
    for measurement in &results.measurements {
        let measured = measurement.schemes.iter().filter_map(|scheme| match &scheme.outcome {
            Outcome::Measured { parts, .. } => Some((scheme.scheme.as_str(), by_category(parts))),
            Outcome::Failed { .. } => None,
        });
        let measured: Vec<_> = measured.collect();
        let is_wanted = |name: &str| wanted.is_empty() || wanted.contains(&name);
        println!("{:48} {:>21}   {:>21}", "", "positions", "interval of 95 %");
        for (scheme, categories) in measured.iter().filter(|(scheme, _)| is_wanted(scheme)) {
            coverage(&format!("{} {scheme}", measurement.model), categories);
        }
        println!(
            "\n{:24} chunks: pass, regressed and inconclusive at 1, 1.25, 1.5 and 2 × the truth",
            ""
        );
        for (scheme, categories) in measured.iter().filter(|(scheme, _)| is_wanted(scheme)) {
            verdicts(&format!("{} {scheme}", measurement.model), categories);
            looks(&format!("{} {scheme}", measurement.model), categories);
        }
        println!(
            "\n{:48} truth  value over a limit of {ROOM} x the old truth, surely over it  by intervals  by differences of \
             chunks, which missed the truth",
            ""
        );
        for (old, old_categories) in &measured {
            for (new, new_categories) in &measured {
                change(
                    &format!("{} {old} → {new}", measurement.model),
                    old_categories,
                    new_categories,
                );
            }
        }
    }
}

fn by_category(parts: &[Part]) -> Vec<Vec<Part>> {
    let mut categories: BTreeMap<&str, Vec<Part>> = BTreeMap::new();
    for part in parts {
        categories.entry(&part.category).or_default().push(part.clone());
    }
    categories.into_values().collect()
}

/// What is made of limits on the mean KLD by looks at 8 chunks and, while they leave the verdict open, at twice as many
/// each time, each look with its share of what the confidence leaves to chance.
fn looks(name: &str, categories: &[Vec<Part>]) {
    let truth = made(&categories.concat()).mean_kld;
    let of_each = 1.0 - 0.05 / LOOKS.len() as f64;
    let mut found = [[0; 3]; 4];
    let mut measured = [0; 4];
    for draw in 0..DRAWS {
        let most = *LOOKS.last().expect("there are looks");
        let parts = Random(draw as u64).draw(categories, most);
        // the first chunks of each category
        let of_category = most / categories.len();
        let first = |count: usize| -> Vec<Part> {
            let each = count / categories.len();
            let of = parts.chunks(of_category);
            of.flat_map(|parts| parts[..each].iter().cloned()).collect()
        };
        let intervals = LOOKS.map(|count| {
            let seen = first(count);
            interval::of(Statistic::MeanKld, &made(&seen), &seen, of_each).expect("it has one")
        });
        for ((found, measured), times) in found.iter_mut().zip(&mut measured).zip(TIMES) {
            let bound = times * truth;
            let decided = |i: &interval::Interval| i.high <= bound || i.low > bound;
            let look = intervals.iter().position(decided).unwrap_or(LOOKS.len() - 1);
            found[verdict(&intervals[look], bound)] += 1;
            *measured += LOOKS[look];
        }
    }
    let cells = found.iter().zip(measured).map(|(found, measured)| {
        let shares = found.map(|n| format!("{:5.1}", 100.0 * f64::from(n) / DRAWS as f64));
        format!("{} {:5.1} chunks", shares.join(" "), measured as f64 / DRAWS as f64)
    });
    println!("{name:24} looks {}", cells.collect::<Vec<_>>().join("  |"));
}

/// Whether a limit is kept, broken, or neither.
fn verdict(interval: &interval::Interval, bound: f64) -> usize {
    match (interval.high <= bound, interval.low > bound) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => 2,
    }
}

/// What is made of limits on the mean KLD, by the interval of drawn chunks.
fn verdicts(name: &str, categories: &[Vec<Part>]) {
    let truth = made(&categories.concat()).mean_kld;
    for count in COUNTS {
        let mut random = Random(count as u64);
        let mut found = [[0; 3]; 4];
        for _ in 0..DRAWS {
            let drawn = random.draw(categories, count);
            let interval = mean_interval(&drawn);
            for (found, times) in found.iter_mut().zip(TIMES) {
                found[verdict(&interval, times * truth)] += 1;
            }
        }
        let shares = found.map(|found| {
            found.map(|n| format!("{:5.1}", 100.0 * f64::from(n) / DRAWS as f64)).join(" ")
        });
        println!("{name:24} {count:3}  {}", shares.join("  |"));
    }
}

fn mean_interval(drawn: &[Part]) -> interval::Interval {
    interval::of(Statistic::MeanKld, &made(drawn), drawn, 0.95).expect("it has one")
}

/// How much room a limit leaves above the true mean KLD of what it was set for.
const ROOM: f64 = 1.25;

/// How often a change from one scheme to another is seen on the same chunks.
fn change(name: &str, old: &[Vec<Part>], new: &[Vec<Part>]) {
    let [was, is] = [old, new].map(|categories| made(&categories.concat()).mean_kld);
    if !(1.05..=1.6).contains(&(is / was)) {
        return;
    }
    for count in COUNTS {
        let (mut apart, mut seen, mut missed) = (0, 0, 0);
        let (mut over, mut regressed) = (0, 0);
        for draw in 0..DRAWS {
            // the same seed draws the same chunks
            let [old, new] = [old, new].map(|categories| {
                let mut parts = Random((draw * 1000 + count) as u64).draw(categories, count);
                let of_each = count / categories.len();
                parts.iter_mut().enumerate().for_each(|(i, part)| part.chunk = i % of_each);
                parts
            });
            let of_new = mean_interval(&new);
            apart += usize::from(mean_interval(&old).high < of_new.low);
            over += usize::from(made(&new).mean_kld > ROOM * was);
            regressed += usize::from(of_new.low > ROOM * was);
            let [low, high] =
                interval::of_change(&new, &ChunkMeans::of(&old)).expect("it is known");
            seen += usize::from(low > 0.0);
            missed += usize::from(!(low..=high).contains(&(is - was)));
        }
        let share = |n: usize| 100.0 * n as f64 / DRAWS as f64;
        println!(
            "{name:40} {count:3}   {:+6.1} % {:8.1} % {:8.1} % {:8.1} % {:8.1} % {:8.1} %",
            (is / was - 1.0) * 100.0,
            share(over),
            share(regressed),
            share(apart),
            share(seen),
            share(missed)
        );
    }
}

fn coverage(name: &str, categories: &[Vec<Part>]) {
    let truth = made(&categories.concat());
    for count in COUNTS {
        let mut random = Random(count as u64);
        let mut misses: Vec<[Misses; 2]> = STATISTICS.map(|_| Default::default()).into();
        for _ in 0..DRAWS {
            let drawn = random.draw(categories, count);
            let found = made(&drawn);
            for (statistic, [today, now]) in STATISTICS.iter().zip(&mut misses) {
                let (value, truth) = (found.get(*statistic), truth.get(*statistic));
                if let (Some(error), true) =
                    (found.standard_error(*statistic), *statistic == Statistic::MeanKld)
                {
                    today.note(truth, value - 2.0 * error, value + 2.0 * error);
                }
                let interval = interval::of(*statistic, &found, &drawn, 0.95).expect("it has one");
                now.note(truth, interval.low, interval.high);
            }
        }
        for (statistic, [today, now]) in STATISTICS.iter().zip(&mut misses) {
            let today = if today.reach.is_empty() { String::new() } else { today.line() };
            println!(
                "{name:24} {:15} {count:3}     {today:>21}   {:>21}",
                statistic.name(),
                now.line()
            );
        }
    }
}
