//! The goals with their figures, and the plot.

use anyhow::Result;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use strata_tests::report::Screen;

/// One goal.
pub struct Goal {
    pub name: String,
    pub figure: String,
    pub goal: String,
    pub met: bool,
}

/// All of them.
#[derive(Default)]
pub struct Goals(pub Vec<Goal>);

impl Goals {
    /// A figure that is to be at most `most`.
    pub fn at_most(&mut self, name: &str, figure: f64, most: f64, unit: &str) {
        self.0.push(Goal {
            name: name.to_owned(),
            figure: format!("{} {unit}", number(figure)),
            goal: format!("at most {} {unit}", number(most)),
            met: figure <= most,
        });
    }

    /// A figure that is to be at least `least`.
    pub fn at_least(&mut self, name: &str, figure: f64, least: f64, unit: &str) {
        self.0.push(Goal {
            name: name.to_owned(),
            figure: format!("{} {unit}", number(figure)),
            goal: format!("at least {} {unit}", number(least)),
            met: figure >= least,
        });
    }

    /// Prints one line a goal; gives how many were missed.
    pub fn print(&self, screen: &mut Screen) -> usize {
        screen.chapter("Goals");
        for g in &self.0 {
            let line = format!("{}: {}, goal {}: {}", g.name, g.figure, g.goal, if g.met { "met" } else { "missed" });
            if g.met { screen.proven(&line) } else { screen.short(&line) }
        }
        self.0.iter().filter(|g| !g.met).count()
    }
}

/// Three digits that count.
pub fn number(v: f64) -> String {
    match v.abs() {
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        _ => format!("{v:.2}"),
    }
}

/// A bar of the plot: what, and its CPU time on heap, on warm and in DuckDB, in milliseconds.
pub type Bar = (String, [Option<f64>; 3]);

/// CPU times as bars on a logarithmic scale, as SVG.
pub fn plot(bars: &[Bar], file: &Path) -> Result<()> {
    const COLOURS: [&str; 3] = ["#8a8f98", "#1b7f5c", "#d9a404"];
    const NAMES: [&str; 3] = ["heap", "warm", "DuckDB, one thread"];
    const LEFT: f64 = 290.0;
    const WIDTH: f64 = 560.0;
    const ROW: f64 = 54.0;
    let values = || bars.iter().flat_map(|(_, v)| v.iter().flatten().copied());
    let low = values().fold(f64::INFINITY, f64::min).max(1e-4).log10().floor();
    let high = values().fold(1e-3, f64::max).log10().ceil().max(low + 1.0);
    let x = |v: f64| LEFT + WIDTH * ((v.max(1e-4).log10() - low) / (high - low)).clamp(0.0, 1.0);
    let height = 70.0 + ROW * bars.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + 90.0
    );
    for (i, name) in NAMES.iter().enumerate() {
        let at = LEFT + 150.0 * i as f64;
        writeln!(out, "<rect x=\"{at}\" y=\"14\" width=\"12\" height=\"12\" fill=\"{}\"/>", COLOURS[i])?;
        writeln!(out, "<text x=\"{}\" y=\"25\">{name}</text>", at + 18.0)?;
    }
    let mut power = low;
    while power <= high {
        let at = x(10f64.powf(power));
        writeln!(out, "<line x1=\"{at}\" x2=\"{at}\" y1=\"50\" y2=\"{}\" stroke=\"#ddd\"/>", height - 16.0)?;
        writeln!(
            out,
            "<text x=\"{at}\" y=\"46\" text-anchor=\"middle\" fill=\"#555\">{} ms</text>",
            10f64.powf(power)
        )?;
        power += 1.0;
    }
    for (row, (name, values)) in bars.iter().enumerate() {
        let top = 56.0 + ROW * row as f64;
        let name = name.replace('&', "&amp;").replace('<', "&lt;");
        writeln!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>", LEFT - 8.0, top + 24.0)?;
        for (i, value) in values.iter().enumerate() {
            let Some(v) = value else { continue };
            let (y, end) = (top + 14.0 * i as f64, x(*v));
            writeln!(
                out,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"12\" fill=\"{}\"/>",
                end - LEFT,
                COLOURS[i]
            )?;
            writeln!(out, "<text x=\"{:.1}\" y=\"{}\" font-size=\"11\">{}</text>", end + 4.0, y + 10.0, number(*v))?;
        }
    }
    out += "</svg>\n";
    fs::write(file, out)?;
    Ok(())
}
