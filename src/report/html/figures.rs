//! The figures of a model: what schemes cost and do, and how their divergence is spread.

use super::plot::{self, Axis, Ink, Names, Pixel, Plot, Shape};
use super::{number, Figure, HtmlError, Table};
use crate::report::row::Row;
use crate::report::view::Standing;
use crate::results::shape;
use crate::results::shape::Run;
use crate::results::shown_bits;
use crate::results::statistics::{Statistic, Statistics};
use crate::results::verdict::limit_on;
use crate::text;

/// The most schemes in a figure, or with figures of their own.
pub(super) const SCHEMES: usize = 24;
/// The most letters of a scheme's name in a plot.
const LETTERS: usize = 16;
/// The most limits that are drawn as lines across the plot.
const LINES: usize = 3;
/// The most runs of positions in a plot. kvgate's own results have fewer.
const RUNS: usize = 64;

impl Standing {
    fn shape(self) -> Shape {
        match self {
            Standing::Pass => Shape::Disc,
            Standing::Red => Shape::Triangle,
            Standing::Expected => Shape::Cross,
            Standing::Unjudged => Shape::Ring,
        }
    }

    fn ink(self) -> Ink {
        match self {
            Standing::Pass => Ink::Good,
            Standing::Red => Ink::Bad,
            Standing::Expected | Standing::Unjudged => Ink::Neutral,
        }
    }

    /// The shape and its meaning, for a legend.
    fn legend(self) -> &'static str {
        match self {
            Standing::Pass => "● as the policy wants",
            Standing::Red => "▲ not as the policy wants",
            Standing::Expected => "× fails as required",
            Standing::Unjudged => "○ not judged",
        }
    }
}

/// A scheme as a point: its bits per element and its mean KLD.
struct Point<'a> {
    label: String,
    bits: f64,
    statistics: &'a Statistics,
    limit: Option<f64>,
    standing: Standing,
}

impl<'a> Point<'a> {
    fn new(row: &Row<'a>) -> Option<Self> {
        let bits = row.scheme?.storage?.bits_at_context;
        let limits = row.cases[0].map_or(&[][..], |case| &case.limits);
        let limit = limit_on(limits, Statistic::MeanKld);
        Some(Self {
            label: text::name(row.label),
            bits: (bits.k + bits.v) / 2.0,
            statistics: row.statistics()?,
            limit: limit.map(|limit| limit.bound).filter(|bound| *bound > 0.0),
            standing: Standing::of_row(row),
        })
    }

    /// Whether the policy lets people use it.
    fn is_usable(&self) -> bool {
        matches!(self.standing, Standing::Pass | Standing::Unjudged)
    }
}

/// Mean KLD against bits per element.
pub(super) fn frontier(rows: &[Row]) -> Result<Option<Figure>, HtmlError> {
    let points: Vec<Point> = rows.iter().filter_map(Point::new).take(SCHEMES).collect();
    if points.is_empty() {
        return Ok(None);
    }
    let kld = |point: &Point| point.statistics.mean_kld;
    let heights = points.iter().flat_map(|p| [Some(kld(p)), p.limit]).flatten();
    let axes = [Axis::linear(points.iter().map(|p| p.bits)), Axis::log(heights)];
    let names = Names { x: "bits per element, K and V averaged", y: "mean KLD, nats" };
    let drawing = plot::draw(names, axes, 14, |plot| {
        let steps = steps(&points);
        plot.line(steps.into_iter().map(|(x, y)| plot.at(x, y)).collect(), Ink::Faint, 2)?;
        let common = common_limits(&points);
        draw_limits(plot, &points, &common)?;
        let at: Vec<Pixel> = points.iter().map(|p| plot.at(p.bits, kld(p))).collect();
        for (point, at) in points.iter().zip(&at) {
            plot.shape(*at, point.standing.shape(), point.standing.ink())?;
        }
        for bound in common {
            plot.name_across(bound, &format!("limit {}", shown_limit(bound)), Ink::Limit)?;
        }
        points
            .iter()
            .zip(at)
            .try_for_each(|(p, at)| plot.label(&text::clipped(&p.label, LETTERS), at, Ink::Text))
    })?;
    let numbers = points.iter().map(|p| {
        let bits = shown_bits(p.bits).to_string();
        let limit = p.limit.map_or("–".into(), shown_limit);
        vec![p.label.clone(), bits, number(kld(p)), limit, p.standing.legend().into()]
    });
    Ok(Some(Figure {
        title: "What bits buy: mean KLD against bits per element".into(),
        caption: legend(&points),
        drawing,
        numbers: Table::new(["scheme", "bits", "mean KLD", "limit", ""], numbers),
    }))
}

fn legend(points: &[Point]) -> String {
    let all = [Standing::Red, Standing::Pass, Standing::Expected, Standing::Unjudged];
    let there = all.into_iter().filter(|one| points.iter().any(|p| p.standing == *one));
    let mut parts: Vec<&str> = there.map(Standing::legend).collect();
    if points.iter().any(|p| p.limit.is_some()) {
        parts.push("┄ limit");
    }
    if steps(points).len() > 1 {
        parts.push("─ least KLD for its bits");
    }
    parts.join(" · ")
}

/// The corners of the line of the best usable schemes: none with as few bits has a smaller KLD.
fn steps(points: &[Point]) -> Vec<(f64, f64)> {
    let mut usable: Vec<_> = points.iter().filter(|p| p.is_usable()).collect();
    usable.sort_by(|a, b| {
        let by_kld = a.statistics.mean_kld.total_cmp(&b.statistics.mean_kld);
        a.bits.total_cmp(&b.bits).then(by_kld)
    });
    let mut corners: Vec<(f64, f64)> = Vec::new();
    for point in usable {
        let kld = point.statistics.mean_kld;
        match corners.last().copied() {
            Some((_, least)) if kld >= least => {}
            Some((_, least)) => corners.extend([(point.bits, least), (point.bits, kld)]),
            None => corners.push((point.bits, kld)),
        }
    }
    corners
}

/// The limits that are drawn as lines across the plot; none if they are many.
fn common_limits(points: &[Point]) -> Vec<f64> {
    let mut bounds: Vec<f64> = points.iter().filter_map(|p| p.limit).collect();
    bounds.sort_by(f64::total_cmp);
    bounds.dedup();
    bounds.truncate(if bounds.len() <= LINES { LINES } else { 0 });
    bounds
}

/// Draws a line across for each limit, or, if they are many, a short line at each scheme.
fn draw_limits(plot: &Plot, points: &[Point], common: &[f64]) -> Result<(), plot::Error> {
    if !common.is_empty() {
        return common.iter().try_for_each(|bound| plot.across(*bound, Ink::Limit));
    }
    let mut limited = points.iter().filter_map(|p| Some((p.bits, p.limit?)));
    limited.try_for_each(|(bits, limit)| {
        let (x, y) = plot.at(bits, limit);
        plot.line(vec![(x - 12, y), (x + 12, y)], Ink::Limit, 2)
    })
}

/// A limit as it is written in the policy if that is short, or in three digits.
fn shown_limit(bound: f64) -> String {
    Some(bound.to_string()).filter(|text| text.len() <= 7).unwrap_or_else(|| number(bound))
}

/// How the KLD of a scheme's positions is distributed: the share of positions with at least so much of it.
struct Tail {
    label: String,
    standing: Standing,
    corners: Vec<(f64, f64)>,
    marks: [(f64, f64); 3],
    numbers: Vec<String>,
}

impl Tail {
    fn new(row: &Row) -> Option<Self> {
        let statistics = row.statistics()?;
        let counts = row.scheme?.shape.as_ref()?.histogram.iter().take(shape::BINS);
        let counts: Vec<f64> = counts.map(|count| *count as f64).collect();
        let total: f64 = counts.iter().sum();
        if total == 0.0 {
            return None;
        }
        let edge = |bin: usize| 10f64.powf(shape::LOWEST + (bin as f64 - 1.0) / shape::PER_DECADE);
        let share = |bin: usize| counts[bin..].iter().sum::<f64>() / total;
        let mut corners: Vec<_> = (1..counts.len()).map(|bin| (edge(bin), share(bin))).collect();
        corners.retain(|corner| corner.1 > 0.0);
        let Statistics { median_kld, p90_kld, p99_kld, p999_kld, max_kld, .. } = *statistics;
        let last = 1.0 / total;
        // the worst position is somewhere in the last bin, so it has a corner of its own
        corners.extend((max_kld.is_finite() && max_kld > 0.0).then_some((max_kld, last)));
        let shown = [median_kld, p90_kld, p99_kld, p999_kld, max_kld].map(number);
        let label = text::name(row.label);
        Some(Self {
            numbers: std::iter::once(label.clone()).chain(shown).collect(),
            label,
            standing: Standing::of_row(row),
            corners,
            marks: [(median_kld, 0.5), (p99_kld, 0.01), (max_kld, last)],
        })
    }
}

/// A plot for each scheme of how its KLD is distributed, with the other schemes faint behind it.
pub(super) fn tails(rows: &[Row]) -> Result<Vec<Figure>, HtmlError> {
    let tails: Vec<Tail> = rows.iter().filter_map(Tail::new).take(SCHEMES).collect();
    let corners = || tails.iter().flat_map(|tail| &tail.corners);
    let axes = [
        Axis::log(corners().map(|corner| corner.0)),
        Axis::log(corners().map(|corner| corner.1).chain([1.0])),
    ];
    tails.iter().map(|tail| panel(tail, &tails, axes)).collect()
}

fn panel(tail: &Tail, all: &[Tail], axes: [Axis; 2]) -> Result<Figure, HtmlError> {
    let names = Names { x: "KLD of a position, nats", y: "share of positions with more" };
    let ink = tail.standing.ink();
    let drawing = plot::draw(names, axes, 14, |plot| {
        for one in all {
            let line = one.corners.iter().map(|(x, y)| plot.at(*x, *y)).collect();
            plot.line(line, Ink::Faint, 1)?;
        }
        plot.line(tail.corners.iter().map(|(x, y)| plot.at(*x, *y)).collect(), ink, 3)?;
        let names = ["p50", "p99", "max"];
        for (x, y) in tail.marks {
            plot.shape(plot.at(x, y), Shape::Disc, ink)?;
        }
        tail.marks
            .into_iter()
            .zip(names)
            .try_for_each(|((x, y), name)| plot.label(name, plot.at(x, y), Ink::Text))
    })?;
    let [median, p99, max] = tail.marks.map(|(kld, _)| number(kld));
    Ok(Figure {
        title: format!("{} {}", tail.standing.symbol(), tail.label),
        caption: format!("p50 {median} · p99 {p99} · max {max}"),
        drawing,
        numbers: Table::default(),
    })
}

/// The numbers of all plots of [`tails`], in one table.
pub(super) fn tail_numbers(rows: &[Row]) -> Table {
    let names = ["scheme", "p50", "p90", "p99", "p99.9", "max"];
    let tails = rows.iter().filter_map(Tail::new).take(SCHEMES);
    Table::new(names, tails.map(|tail| tail.numbers))
}

/// The mean KLD by the position in the chunk.
pub(super) fn positions(rows: &[Row]) -> Result<Option<Figure>, HtmlError> {
    let runs = |row: &Row| -> Option<(String, Standing, Vec<Run>)> {
        let runs = &row.scheme?.shape.as_ref()?.by_position;
        let runs: Vec<Run> = runs.iter().take(RUNS).copied().collect();
        (!runs.is_empty()).then(|| (text::name(row.label), Standing::of_row(row), runs))
    };
    let lines: Vec<_> = rows.iter().filter_map(runs).take(SCHEMES).collect();
    let Some((_, _, longest)) = lines.iter().max_by_key(|(_, _, runs)| runs.len()) else {
        return Ok(None);
    };
    let all = || lines.iter().flat_map(|(_, _, runs)| runs);
    let axes =
        [Axis::linear(all().map(|run| run.from as f64)), Axis::log(all().map(|run| run.mean_kld))];
    let names = Names { x: "position in the chunk", y: "mean KLD, nats" };
    let drawing = plot::draw(names, axes, 124, |plot| {
        let along = |runs: &[Run]| -> Vec<Pixel> {
            runs.iter().map(|run| plot.at(run.from as f64, run.mean_kld)).collect()
        };
        let paths: Vec<_> = lines.iter().map(|(_, _, runs)| along(runs)).collect();
        let ends: Vec<Pixel> = paths.iter().filter_map(|path| path.last().copied()).collect();
        let heights: Vec<i32> = ends.iter().map(|end| end.1).collect();
        let edge = plot.width().1;
        let heights = plot::spread(&heights, 8);
        for (((label, standing, _), path), (end, height)) in
            lines.iter().zip(paths).zip(ends.iter().zip(heights))
        {
            plot.line(path, standing.ink(), 2)?;
            plot.line(vec![*end, (edge + 8, height)], Ink::Faint, 1)?;
            let label = format!("{} {}", standing.sign(), text::clipped(label, LETTERS - 3));
            plot.text(&label, (edge + 10, height), Ink::Text)?;
        }
        Ok(())
    })?;
    let mut head = vec!["from".to_owned()];
    head.extend(longest.iter().map(|run| run.from.to_string()));
    let numbers = lines.iter().map(|(label, _, runs)| {
        std::iter::once(label.clone()).chain(runs.iter().map(|run| number(run.mean_kld))).collect()
    });
    let numbers = Table { rows: numbers.collect(), head };
    Ok(Some(Figure {
        title: "Divergence by position: does it grow with what has been read?".into(),
        caption: "Each scheme's mean over all chunks, in runs of neighbouring positions.".into(),
        drawing,
        numbers,
    }))
}
