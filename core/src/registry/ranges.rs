//! Range checks for settings. An error contains key, value and the accepted range.

use crate::error::{Error, Result};

/// Checks that `value` is between 0 and 1.
pub fn fraction(key: &str, value: f64) -> Result<()> {
    check((0.0..=1.0).contains(&value), key, value, "expected a number from 0 to 1")
}

/// Checks that `value` is finite and above 0.
pub fn positive(key: &str, value: f64) -> Result<()> {
    check(value.is_finite() && value > 0.0, key, value, "expected a finite number above 0")
}

/// Checks that `value` is finite and at least 0.
pub fn non_negative(key: &str, value: f64) -> Result<()> {
    check(value.is_finite() && value >= 0.0, key, value, "expected a finite number, 0 or more")
}

/// Checks that the number of rows of a prompt is even and at least 2: half of the rows are keys, half values.
pub fn halves(key: &str, rows: usize) -> Result<()> {
    let expected = "expected an even number, 2 or more: half are keys, half values";
    check(rows >= 2 && rows.is_multiple_of(2), key, rows, expected)
}

fn check(valid: bool, key: &str, value: impl std::fmt::Display, expected: &str) -> Result<()> {
    if valid { Ok(()) } else { Err(Error::setting(key, value, expected)) }
}
