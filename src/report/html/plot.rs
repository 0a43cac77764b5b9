//! Plots as SVG. Colours are CSS classes, so that the page's style sheet can set them for light and dark themes.

use super::HtmlError;
use plotters::chart::ChartBuilder;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Polygon, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, ShapeStyle, TextStyle, TRANSPARENT};
use std::ops::Range;

/// Width and height in pixels, which the page scales.
const SIZE: (u32, u32) = (400, 300);
/// The size of the letters. The backend divides what it is given by 1.24.
const FONT: f64 = 12.0 * 1.24;
/// The first and the last decade that an axis can have. No divergence is outside of them.
const DECADES: (f64, f64) = (-12.0, 3.0);
/// The width of a letter, estimated, because the font is not known here.
const LETTER: i32 = 7;
/// The height of a line of text.
const LINE: i32 = 14;

/// What a stroke or a shape is for. The style sheet has its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    Text,
    Grid,
    Faint,
    Good,
    Bad,
    Neutral,
    Limit,
}

impl Ink {
    const ALL: [(Ink, &'static str); 7] = [
        (Ink::Text, "text"),
        (Ink::Grid, "grid"),
        (Ink::Faint, "faint"),
        (Ink::Good, "good"),
        (Ink::Bad, "bad"),
        (Ink::Neutral, "neutral"),
        (Ink::Limit, "limit"),
    ];

    /// The colour that stands for it until the plot is drawn; [`finished`] replaces it by a class.
    fn placeholder(self) -> RGBColor {
        RGBColor(1, 0, self as u8)
    }

    fn letters(self) -> TextStyle<'static> {
        ("x", FONT).into_font().color(&self.placeholder())
    }

    fn stroke(self, width: u32) -> ShapeStyle {
        self.placeholder().stroke_width(width)
    }
}

/// The shape of a point. It says the same as the colour, for readers who cannot tell colours apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Disc,
    Ring,
    Triangle,
    Cross,
}

/// One axis. Values that it cannot show, such as zero on a logarithmic axis or NaN, stand at its lower end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// A logarithmic axis of whole decades around all values that have a logarithm, within [`DECADES`].
    pub fn log(values: impl Iterator<Item = f64>) -> Self {
        let logs = values.filter(|value| *value > 0.0 && value.is_finite()).map(f64::log10);
        let logs = logs.map(|log| log.clamp(DECADES.0, DECADES.1));
        let (low, high) = extent(logs).unwrap_or((-3.0, 0.0));
        let low = low.floor();
        Self { low, high: high.ceil().max(low + 1.0), log: true }
    }

    /// A linear axis from the smallest value to the largest, with some room.
    pub fn linear(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = extent(values.filter(|value| value.abs() < 1e12)).unwrap_or((0.0, 1.0));
        let room = ((high - low) * 0.06).max(0.5);
        Self { low: low - room, high: high + room, log: false }
    }

    fn place(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        let share = (value - self.low) / (self.high - self.low);
        if share.is_nan() {
            0.0
        } else {
            share.clamp(0.0, 1.0)
        }
    }

    fn value(&self, at: f64) -> f64 {
        if self.log {
            10f64.powf(at)
        } else {
            at
        }
    }
}

fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |extent, value| {
        let (low, high) = extent.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        from + (f64::from(to - from) * self.place(*value)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let most = hint.max_num_points().max(2) as f64;
        let span = self.high - self.low;
        // steps of 1, 2, 5, 10 …, which on a logarithmic axis are numbers of decades
        let steps = (0..9).flat_map(|n| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(n)));
        let mut steps = steps.filter(|step| span / step <= most);
        let step = steps.next().unwrap_or(span);
        let first = (self.low / step).ceil();
        let at = (0..=(span / step) as usize).map(|n| (first + n as f64) * step);
        at.filter(|at| *at <= self.high + 1e-9).map(|at| self.value(at)).collect()
    }

    fn range(&self) -> Range<f64> {
        self.value(self.low)..self.value(self.high)
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        match value.abs() {
            value if value != 0.0 && !(0.0009..1e5).contains(&value) => format!("{value:.0e}"),
            _ => format!("{}", (value * 1e4).round() / 1e4),
        }
    }
}

/// The names of the axes.
pub(super) struct Names {
    pub x: &'static str,
    pub y: &'static str,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// The backend's error.
pub(super) type Error = DrawingAreaErrorKind<std::io::Error>;
type Drawn = Result<(), Error>;
/// Pixels from the left and from the top.
pub(super) type Pixel = (i32, i32);

/// A plot that is being drawn.
pub(super) struct Plot<'a> {
    area: Area<'a>,
    axes: [Axis; 2],
    x: (i32, i32),
    y: (i32, i32),
    taken: Vec<[i32; 4]>,
}

/// Draws a plot, with so much room at its right side for labels.
pub(super) fn draw(
    names: Names,
    axes: [Axis; 2],
    right: u32,
    paint: impl FnOnce(&mut Plot) -> Drawn,
) -> Result<String, HtmlError> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let drawn = Plot::begin(area, names, axes, right).and_then(|mut plot| {
        paint(&mut plot)?;
        plot.area.present()
    });
    drawn.map_err(|error| HtmlError::Plot(error.to_string()))?;
    Ok(finished(&svg))
}

/// The drawing with classes instead of colours and without the backend's `<svg>`, because the page has its own.
fn finished(svg: &str) -> String {
    let (_, drawing) = svg.split_once('>').unwrap_or_default();
    let drawing = drawing.trim_end().trim_end_matches("</svg>");
    let mut drawing = drawing.replace(" opacity=\"1\"", "").replace(" font-family=\"x\"", "");
    for (ink, name) in Ink::ALL {
        let RGBColor(r, g, b) = ink.placeholder();
        let colour = format!("\"#{r:02X}{g:02X}{b:02X}\"");
        drawing = drawing.replace(&format!("fill={colour}"), &format!("class=\"f-{name}\""));
        drawing = drawing.replace(&format!("stroke={colour}"), &format!("class=\"s-{name}\""));
    }
    drawing
}

impl<'a> Plot<'a> {
    fn begin(area: Area<'a>, names: Names, axes: [Axis; 2], right: u32) -> Result<Self, Error> {
        let letters = || Ink::Text.letters();
        let mut chart = ChartBuilder::on(&area)
            .margin_top(24)
            .margin_right(right)
            .x_label_area_size(38)
            .y_label_area_size(46)
            .build_cartesian_2d(axes[0], axes[1])?;
        chart
            .configure_mesh()
            .x_labels(8)
            .y_labels(8)
            .max_light_lines(0)
            .axis_style(Ink::Neutral.placeholder())
            .bold_line_style(Ink::Grid.placeholder())
            .light_line_style(TRANSPARENT)
            .label_style(letters())
            .x_desc(names.x)
            .axis_desc_style(letters())
            .draw()?;
        let (x, y) = chart.plotting_area().get_pixel_range();
        area.draw(&Text::new(names.y.to_owned(), (4, 4), letters()))?;
        let (x, y) = ((x.start, x.end - 1), (y.end - 1, y.start));
        Ok(Self { axes, area, x, y, taken: Vec::new() })
    }

    /// The place of a point.
    pub fn at(&self, x: f64, y: f64) -> Pixel {
        (self.axes[0].map(&x, self.x), self.axes[1].map(&y, self.y))
    }

    /// The left and the right end of the plot.
    pub fn width(&self) -> (i32, i32) {
        self.x
    }

    pub fn line(&self, points: Vec<Pixel>, ink: Ink, width: u32) -> Drawn {
        self.area.draw(&PathElement::new(points, ink.stroke(width)))
    }

    /// Draws a line across the plot at a value.
    pub fn across(&self, value: f64, ink: Ink) -> Drawn {
        let height = self.axes[1].map(&value, self.y);
        self.line(vec![(self.x.0, height), (self.x.1, height)], ink, 2)
    }

    /// Writes the name of a line across the plot at one of its ends, so that it covers no point.
    pub fn name_across(&mut self, value: f64, name: &str, ink: Ink) -> Drawn {
        let height = self.axes[1].map(&value, self.y);
        let width = wide(name);
        let [above, below] = [height - LINE / 2 - 1, height + LINE / 2 + 2];
        let ends = [self.x.1 - width, self.x.0 + 4];
        let places = [above, below].into_iter().flat_map(|y| ends.map(|left| (left, y)));
        let place = places.into_iter().find(|place| self.is_free(*place, width));
        let place = place.unwrap_or((ends[0], above));
        self.occupy(place, width);
        self.text(name, place, ink)
    }

    /// Draws a point, which labels keep clear of.
    pub fn shape(&mut self, at: Pixel, shape: Shape, ink: Ink) -> Drawn {
        let (x, y) = at;
        self.taken.push([x - 5, y - 5, x + 5, y + 5]);
        match shape {
            Shape::Disc => self.area.draw(&Circle::new(at, 5, ink.placeholder().filled())),
            Shape::Ring => self.area.draw(&Circle::new(at, 4, ink.stroke(2))),
            Shape::Triangle => {
                let corners = vec![(x, y - 6), (x + 6, y + 5), (x - 6, y + 5)];
                self.area.draw(&Polygon::new(corners, ink.placeholder().filled()))
            }
            Shape::Cross => {
                self.line(vec![(x - 4, y - 4), (x + 4, y + 4)], ink, 2)?;
                self.line(vec![(x - 4, y + 4), (x + 4, y - 4)], ink, 2)
            }
        }
    }

    pub fn text(&self, text: &str, (x, y): Pixel, ink: Ink) -> Drawn {
        let style = ink.letters().pos(Pos::new(HPos::Left, VPos::Center));
        self.area.draw(&Text::new(text.to_owned(), (x, y), style))
    }

    /// Writes a point's name at a free place beside it, and draws a line to the point if the place is not near.
    pub fn label(&mut self, text: &str, (x, y): Pixel, ink: Ink) -> Drawn {
        let width = wide(text);
        let near = [(9, 0), (-9 - width, 0), (-width / 2, -14), (-width / 2, 14)];
        let far = (1..8).flat_map(|n| {
            let step = n * 12;
            [(12, -step), (12, step), (-12 - width, -step), (-12 - width, step)]
        });
        let places = near.into_iter().chain(far).map(|(dx, dy)| (x + dx, y + dy));
        let mut free = places.filter(|place| self.is_free(*place, width));
        // a name without a place is left out; the table under the plot has it
        let Some((left, middle)) = free.next() else { return Ok(()) };
        self.occupy((left, middle), width);
        if (middle - y).abs() > 14 {
            let end = if left > x { left - 1 } else { left + width + 1 };
            self.line(vec![(x, y), (end, middle)], Ink::Faint, 1)?;
        }
        self.text(text, (left, middle), ink)
    }

    /// Whether a text of that width whose left end is there would be inside the plot and meet nothing.
    fn is_free(&self, place: Pixel, width: i32) -> bool {
        let [l, t, r, b] = around(place, width);
        let inside = l > self.x.0 && r <= SIZE.0 as i32 - 2 && t >= self.y.1 - LINE && b < self.y.0;
        inside
            && self.taken.iter().all(|one| l >= one[2] || one[0] >= r || t >= one[3] || one[1] >= b)
    }

    fn occupy(&mut self, place: Pixel, width: i32) {
        self.taken.push(around(place, width));
    }
}

/// The width of a text, estimated.
fn wide(text: &str) -> i32 {
    text.chars().count() as i32 * LETTER
}

/// Left, top, right and bottom of a text, given the middle of its left end.
fn around((left, middle): Pixel, width: i32) -> [i32; 4] {
    [left, middle - LINE / 2, left + width, middle + LINE / 2]
}

/// The heights of labels, as near as they can be to the heights of what they name without overlapping.
pub(super) fn spread(heights: &[i32], least: i32) -> Vec<i32> {
    let mut order: Vec<usize> = (0..heights.len()).collect();
    order.sort_by_key(|i| heights[*i]);
    let mut spread = heights.to_vec();
    for pair in order.windows(2) {
        spread[pair[1]] = spread[pair[1]].max(spread[pair[0]] + LINE);
    }
    // labels that were pushed out at the bottom move up again
    let mut below = SIZE.1 as i32 - 38;
    for i in order.into_iter().rev() {
        spread[i] = spread[i].min(below).max(least);
        below = spread[i] - LINE;
    }
    spread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_take_what_they_cannot_show() {
        let log = Axis::log([0.0, -1.0, f64::NAN, f64::INFINITY, 0.02, 0.3].into_iter());
        assert_eq!((log.low, log.high), (-2.0, 0.0));
        let map = |value| log.map(&value, (0, 100));
        assert_eq!([0.01, 0.1, 1.0].map(map), [0, 50, 100]);
        assert_eq!([0.0, -1.0, f64::NAN, f64::INFINITY].map(map), [0, 0, 0, 100]);
        assert_eq!(log.key_points(8), [0.01, 0.1, 1.0]);
        let none = Axis::log([0.0, f64::NAN].into_iter());
        assert_eq!(none.range(), 0.001..1.0);
        let extreme = Axis::log([f64::MIN_POSITIVE, f64::MAX].into_iter());
        assert_eq!((extreme.low, extreme.high), (-12.0, 3.0));
        assert!((2..=9).contains(&extreme.key_points(8).len()));
        let linear = Axis::linear([2.0, 16.0, f64::INFINITY, 1e300].into_iter());
        assert!(linear.low < 2.0 && linear.high > 16.0 && linear.high < 20.0);
        assert_eq!(linear.key_points(8), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]);
        assert_eq!(Axis::linear([5.0].into_iter()).map(&5.0, (0, 100)), 50);
    }

    #[test]
    fn ticks_are_short() {
        let axis = Axis::log([1.0].into_iter());
        let shown = [1e-7, 1e-4, 1e-3, 0.01, 1.0, 10.0, 1e5, 0.0].map(|v| axis.format_ext(&v));
        assert_eq!(shown, ["1e-7", "1e-4", "0.001", "0.01", "1", "10", "1e5", "0"]);
    }

    #[test]
    fn labels_keep_apart() {
        let heights = [100, 102, 101, 258];
        let spread = spread(&heights, 20);
        let mut sorted = spread.clone();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= LINE), "{spread:?}");
        assert!(spread[0] < spread[2] && spread[2] < spread[1] && spread[1] < spread[3]);
    }

    #[test]
    fn colours_are_classes_and_text_is_text() {
        let axes = [Axis::linear([1.0].into_iter()), Axis::log([0.1].into_iter())];
        let svg = draw(Names { x: "bits", y: "KLD" }, axes, 10, |plot| {
            for shape in [Shape::Disc, Shape::Ring, Shape::Triangle, Shape::Cross] {
                let at = plot.at(1.0, 0.5);
                plot.shape(at, shape, Ink::Bad)?;
                plot.label("<b>&\"", at, Ink::Text)?;
            }
            Ok(())
        })
        .unwrap();
        assert!(!svg.contains('#') && !svg.contains("http") && !svg.contains("<b>"), "{svg}");
        assert!(svg.contains("&lt;b&gt;&amp;&quot;"), "{svg}");
        assert!(!svg.contains("svg"), "{svg}");
        assert_eq!(svg.matches("class=\"s-bad\"").count(), 3, "{svg}");
    }

    #[test]
    fn names_of_lines_meet_no_point() {
        let axes = [Axis::linear([1.0].into_iter()), Axis::log([0.01, 1.0].into_iter())];
        let at = |svg: &str| -> i32 {
            let text = svg.split("<text").find(|text| text.contains("limit 0.1")).unwrap();
            let x = text.split("x=\"").nth(1).and_then(|x| x.split('"').next());
            x.unwrap().parse().unwrap()
        };
        let named = |is_taken: bool| {
            let svg = draw(Names { x: "", y: "" }, axes, 10, |plot| {
                let (right, height) = (plot.width().1, plot.at(1.0, 0.1).1);
                if is_taken {
                    plot.shape((right - 20, height - 4), Shape::Disc, Ink::Good)?;
                    plot.shape((right - 20, height + 4), Shape::Disc, Ink::Good)?;
                }
                plot.name_across(0.1, "limit 0.1", Ink::Limit)
            });
            at(&svg.unwrap())
        };
        assert!(named(false) > 300 && named(true) < 100);
    }
}
