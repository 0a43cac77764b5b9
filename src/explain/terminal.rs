//! An explanation for a terminal.

use super::map::{heat, HeatMap};
use super::words::kld;
use super::Explanation;
use crate::text;
use crate::text::numbers::significant;
use crate::text::table::{self, Align, Cell};
use anstyle::{AnsiColor, Style};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
/// The shade of a site, and its colour, by its heat.
const SHADES: [(&str, Style); 5] = [
    ("  ", DIM),
    ("░░", Style::new()),
    ("▒▒", AnsiColor::Yellow.on_default()),
    ("▓▓", AnsiColor::Yellow.on_default()),
    ("██", AnsiColor::Red.on_default()),
];

/// The whole explanation with its colours. Print it through a stream that strips them where they are not wanted.
pub fn render(explanation: &Explanation) -> String {
    let Explanation { model, scheme, conditions, device, arithmetic, seconds, .. } = explanation;
    let mut out = format!(
        "\n{BOLD}{}{BOLD:#}  {} as {} · baseline {} PPL {:.3} · {}, {} · {seconds:.1} s\n",
        text::name(model),
        text::name(scheme),
        text::name(&explanation.effective),
        text::name(&conditions.baseline),
        explanation.baseline_ppl,
        text::name(device),
        text::name(arithmetic),
    );
    for note in &explanation.notes {
        out += &format!("  {DIM}note: {}{DIM:#}\n", text::remark(note));
    }
    out.push('\n');
    for sentence in &explanation.answer {
        out += &text::wrapped(&text::message(sentence));
    }
    out + &heat_map(explanation) + &trials(explanation) + &skipped(explanation)
}

/// Sites by layer. A lane quantizes that site alone.
fn heat_map(explanation: &Explanation) -> String {
    let map = HeatMap::of(&explanation.sites);
    let mut head = vec![Cell::styled("layer", DIM)];
    for column in &map.columns {
        head.extend([Cell::new(""), Cell::styled(format!("{column} alone"), DIM)]);
        head.push(Cell::styled("of the sum", DIM));
    }
    let mut rows = vec![head];
    for (layer, sites) in &map.rows {
        let mut row = vec![Cell::new(layer.to_string())];
        for site in sites {
            row.extend(match site {
                None => ["", "", ""].map(Cell::new),
                Some(site) => {
                    let (shade, style) = SHADES[heat(site.share)];
                    let share = format!("{:.1} %", 100.0 * site.share);
                    [shade.to_string(), kld(site.reading.mean_kld), share]
                        .map(|text| Cell::styled(text, style))
                }
            });
        }
        rows.push(row);
    }
    let mut align = vec![Align::Right];
    align.extend(map.columns.iter().flat_map(|_| [Align::Left, Align::Right, Align::Right]));
    format!("\n{}", table::render(&align, &rows))
}

fn trials(explanation: &Explanation) -> String {
    let head = ["the whole scheme, but", "mean KLD", "of the whole", "top-1"];
    let mut rows = vec![head.map(|name| Cell::styled(name, DIM)).into()];
    let row = |words: &str, reading: &super::Reading, of_whole: f64| {
        let cells = [
            text::name(words),
            format!("{} ± {}", kld(reading.mean_kld), kld(reading.mean_kld_se)),
            significant(of_whole, 2),
            format!("{:.2} %", 100.0 * reading.top1_agreement),
        ];
        cells.map(Cell::new).into()
    };
    rows.push(row("(as it is)", &explanation.whole, 1.0));
    let trials = explanation.experiments.iter();
    rows.extend(trials.map(|trial| row(&trial.words, &trial.reading, trial.of_whole)));
    let align = [Align::Left, Align::Right, Align::Right, Align::Right];
    format!("\n{}", table::render(&align, &rows))
}

fn skipped(explanation: &Explanation) -> String {
    let line = |skipped: &super::Skipped| {
        format!("  {DIM}not tried: {}: {}{DIM:#}\n", skipped.experiment, skipped.why)
    };
    explanation.skipped.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::explanation;
    use super::*;

    fn plain(explanation: &Explanation) -> String {
        anstream::adapter::strip_str(&render(explanation)).to_string()
    }

    #[test]
    fn whole_explanation() {
        let shown = plain(&explanation([[0.05, 0.01], [0.5, 0.02]], 0.6));
        insta::assert_snapshot!(shown, @r"

tiny  q4_0 as q4_0·H64/q4_0·H64 · baseline f16 PPL 21.100 · Some CPU, f32 · 12.3 s
  note: BOS 2 before each chunk

  q4_0 costs tiny a mean KLD of 0.600 ± 0.0300 nats per token (512 × 16 of prose and code).
  With only K quantized it is 0.570, with only V 0.0300: nearly all of it comes from K.
  K of layer 1 is 86 % of what all 4 parts (each K or V of a layer) add up to. With it exact, 0.0600
    remains.
  One by one, the parts add up to 0.580, which is 0.97 × the whole.
  Outlier channels there: 11 and 43 of K of layer 1 (RoPE pair 11), up to 24 × the rms of the median
    channel, 44 % of the energy.
  K's mean holds 12 % of the energy of its heads there (before RoPE, which makes waves of constants,
    75 %).
  The codec's relative error in K of layer 1 is 6.0 % of the whole and 18 % in its median channel
    with rotation, 10 % of the whole and 30 % in its median channel without.
  Of the experiments, these help: the 4 worst channels of each head exact (0.0150, ÷ 40) and the
    last layer exact (0.300, ÷ 2.0). These change little: K's mean taken out. These make it worse:
    without rotation (2.70, × 4.5).

  layer      K alone  of the sum      V alone  of the sum
      0  ▒▒   0.0500       8.6 %  ░░   0.0100       1.7 %
      1  ██    0.500      86.2 %  ░░   0.0200       3.4 %

  the whole scheme, but                             mean KLD  of the whole    top-1
  (as it is)                                  0.600 ± 0.0300           1.0  90.00 %
  only K quantized                            0.570 ± 0.0285          0.95  90.00 %
  only V quantized                          0.0300 ± 0.00150         0.050  90.00 %
  K's mean taken out                          0.540 ± 0.0270          0.90  90.00 %
  the 4 worst channels of each head exact  0.0150 ± 0.000750         0.025  90.00 %
  the last layer exact                        0.300 ± 0.0150          0.50  90.00 %
  without rotation                              2.70 ± 0.135           4.5  90.00 %
  K of layer 1 exact                        0.0600 ± 0.00300          0.10  90.00 %
  not tried: first_layers_exact: there are too few
");
    }

    #[test]
    fn strangers_texts_command_nobody() {
        let mut explanation = explanation([[0.05, 0.01], [0.5, 0.02]], 0.6);
        explanation.model = "\u{1b}]0;x".into();
        explanation.notes = vec!["one\n::error::two".into()];
        explanation.answer = vec!["a\u{1b}[2Jb".into()];
        let shown = plain(&explanation);
        assert!(shown.contains("\\u{1b}]0;x") && shown.contains("a\\u{1b}[2Jb"), "{shown}");
        assert!(!shown.lines().any(|line| line.trim_start().starts_with("::")), "{shown}");
    }
}
