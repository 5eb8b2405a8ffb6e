//! Means, standard deviations and confidence intervals.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Probability outside the confidence interval, on each side.
const TAIL_PROBABILITY: f64 = 0.025;

/// Mean and standard deviation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Number of values.
    pub n: usize,
    pub mean: f64,
    /// Sample standard deviation, `sqrt(sum (x - mean)^2 / (n - 1))`; a single value has none.
    pub deviation: Option<f64>,
}

impl Spread {
    /// Mean and standard deviation of `values`; `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self { n, mean, deviation: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()) })
    }

    /// 95 % confidence interval of the mean: `mean -+ t * deviation / sqrt(n)`, with `t` the 0.975 quantile of
    /// Student's t distribution with `n - 1` degrees of freedom. Assumes that the values are approximately normally
    /// distributed.
    pub fn interval(&self) -> Option<(f64, f64)> {
        let student = StudentsT::new(0.0, 1.0, self.n.checked_sub(1)? as f64).ok()?;
        let half = student.inverse_cdf(1.0 - TAIL_PROBABILITY) * self.deviation? / (self.n as f64).sqrt();
        Some((self.mean - half, self.mean + half))
    }

    /// Number of values, mean and deviation with all digits.
    pub fn fields(&self) -> [String; 3] {
        [self.n.to_string(), self.mean.to_string(), self.deviation.map(|d| d.to_string()).unwrap_or_default()]
    }

    /// Mean and deviation with two digits after the point.
    pub fn text(&self) -> String {
        rounded(self.mean) + &self.deviation_text()
    }

    /// Deviation, to follow a mean; empty for a single value.
    pub fn deviation_text(&self) -> String {
        self.deviation.map(|deviation| format!(" ± {deviation:.2}")).unwrap_or_default()
    }

    /// Confidence interval, to follow a mean; empty for a single value.
    pub fn interval_text(&self) -> String {
        self.interval()
            .map(|(low, high)| format!(" [{}, {}]", rounded(low), rounded(high)))
            .unwrap_or_default()
    }
}

/// Formats a value with two digits after the point. Zero has no minus sign.
pub fn rounded(value: f64) -> String {
    let text = format!("{value:.2}");
    if text == "-0.00" { "0.00".into() } else { text }
}

/// Formats a difference with its sign and two digits after the point. Zero is `+0.00`.
pub fn signed(value: f64) -> String {
    let text = format!("{value:+.2}");
    if text == "-0.00" { "+0.00".into() } else { text }
}

/// Paired differences `of - from`, for pairs in which both values exist.
pub fn differences(of: &[Option<f64>], from: &[Option<f64>]) -> Vec<f64> {
    of.iter().zip(from).filter_map(|(of, from)| Some((*of)? - (*from)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation_match_examples_computed_by_hand() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[7.5]), Some(Spread { n: 1, mean: 7.5, deviation: None }));
        // Squares 9, 1, 1, 9 and 16 about 6: 36 / 4 = 9.
        assert_eq!(Spread::of(&[3.0, 5.0, 7.0, 9.0, 6.0]).map(|s| (s.n, s.mean)), Some((5, 6.0)));
        let spread = Spread::of(&[2.0, 4.0, 9.0]).expect("three values");
        // Squares 9, 1 and 16 about 5: 26 / 2 = 13.
        assert_eq!((spread.mean, spread.deviation), (5.0, Some(13f64.sqrt())));
    }

    #[test]
    fn intervals_match_tabulated_quantiles() {
        assert_eq!(Spread::of(&[1.0]).and_then(|s| s.interval()), None);
        // 0.975 quantiles by degrees of freedom.
        for (freedom, quantile) in
            [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (29, 2.0452), (99, 1.9842)]
        {
            let n: usize = freedom + 1;
            let spread = Spread { n, mean: 10.0, deviation: Some((n as f64).sqrt()) };
            let (low, high) = spread.interval().expect("two values or more");
            assert!((high - 10.0 - quantile).abs() < 5e-5, "{freedom}: {high}");
            assert!((10.0 - low - quantile).abs() < 5e-5, "{freedom}: {low}");
        }
        // Without any deviation the interval is the mean.
        assert_eq!(Spread::of(&[4.0; 3]).and_then(|s| s.interval()), Some((4.0, 4.0)));
    }

    #[test]
    fn zero_has_no_minus_sign() {
        assert_eq!([-0.001, 0.0, -0.01, 1.0].map(rounded), ["0.00", "0.00", "-0.01", "1.00"]);
        assert_eq!([-0.001, 0.0, -0.01, 1.0].map(signed), ["+0.00", "+0.00", "-0.01", "+1.00"]);
    }

    #[test]
    fn incomplete_pairs_have_no_difference() {
        let found =
            differences(&[Some(3.0), None, Some(5.0), Some(1.0)], &[Some(1.0), Some(2.0), None, Some(4.0)]);
        assert_eq!(found, [2.0, -3.0]);
    }
}
