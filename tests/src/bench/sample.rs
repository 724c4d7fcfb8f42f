//! Repeated measurements and what is reported of them.

use serde::Serialize;

/// One figure of the report.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// What was measured beside it in the same run, or where the number comes from.
    pub(crate) baseline: String,
    pub(crate) hull: Spread,
    pub(crate) other: Option<Spread>,
    /// Median against median.
    pub(crate) ratio: Option<f64>,
    /// What SPECIFICATION.md promises: of the ratio if there is one, of the value otherwise.
    pub(crate) promised: Option<f64>,
}

/// Minimum, median and maximum of several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
    pub(crate) runs: usize,
}

impl Spread {
    /// None without a measurement.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(Self { min, median: f64::midpoint(lower, upper), max, runs: sorted.len() })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} / {} / {}", short(self.min), short(self.median), short(self.max))
    }
}

/// Four significant digits, without an exponent.
pub(crate) fn short(value: f64) -> String {
    let digits = if value.abs() >= 1000.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        3
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max, spread.runs), (1.0, 2.5, 4.0, 4));
        assert!(Spread::of(&[]).is_none());
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(
            (short(12345.6), short(12.34), short(0.12345)),
            ("12346".into(), "12.3".into(), "0.123".into())
        );
    }
}
