//! The figures as a table and as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::sample::{Figure, Spread, short};

/// All figures of a run, printed as they come.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
}

impl Report {
    /// Adds a figure that is compared with another's in the same run.
    pub(crate) fn compare(
        &mut self,
        name: &str,
        unit: &'static str,
        hull: &[f64],
        baseline: &str,
        other: &[f64],
        promised: Option<f64>,
    ) -> Result<()> {
        let hull = Spread::of(hull).with_context(|| format!("{name}: nothing measured"))?;
        let other = Spread::of(other).with_context(|| format!("{name}: nothing measured of {baseline}"))?;
        let ratio = Some(hull.median / other.median);
        self.add(Figure {
            name: name.to_owned(),
            unit,
            baseline: baseline.to_owned(),
            hull,
            other: Some(other),
            ratio,
            promised,
        });
        Ok(())
    }

    /// Adds a figure that stands alone.
    pub(crate) fn value(
        &mut self,
        name: &str,
        unit: &'static str,
        values: &[f64],
        promised: Option<f64>,
    ) -> Result<()> {
        let hull = Spread::of(values).with_context(|| format!("{name}: nothing measured"))?;
        self.add(Figure {
            name: name.to_owned(),
            unit,
            baseline: String::new(),
            hull,
            other: None,
            ratio: None,
            promised,
        });
        Ok(())
    }

    fn add(&mut self, figure: Figure) {
        if self.figures.is_empty() {
            println!(
                "{:46} {:>6}  {:30} {:30} {:>7} {:>9}",
                "what (min / median / max)", "unit", "hull", "compared with", "ratio", "promised"
            );
        }
        let other = figure.other.map_or_else(String::new, |spread| format!("{spread} {}", figure.baseline));
        println!(
            "{:46} {:>6}  {:30} {other:30} {:>7} {:>9}",
            figure.name,
            figure.unit,
            figure.hull.to_string(),
            figure.ratio.map_or_else(String::new, short),
            figure.promised.map_or_else(String::new, short),
        );
        self.figures.push(figure);
    }

    /// Writes the figures as JSON.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.figures).context("Writing the figures as JSON")?;
        fs::write(path, text).with_context(|| format!("Writing {}", path.display()))
    }
}
