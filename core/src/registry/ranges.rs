//! Ranges that settings often have, each refused with the key, the value and what was expected.

use crate::error::{Error, Result};

/// `value` is from 0 to 1.
pub fn fraction(key: &str, value: f64) -> Result<()> {
    refuse((0.0..=1.0).contains(&value), key, value, "expected a number from 0 to 1")
}

/// `value` is finite and above 0.
pub fn positive(key: &str, value: f64) -> Result<()> {
    refuse(value.is_finite() && value > 0.0, key, value, "expected a finite number above 0")
}

/// `value` is finite and not below 0.
pub fn non_negative(key: &str, value: f64) -> Result<()> {
    refuse(value.is_finite() && value >= 0.0, key, value, "expected a finite number, 0 or more")
}

/// `rows` of a prompt are half keys, half values: an even number, 2 or more.
pub fn halves(key: &str, rows: usize) -> Result<()> {
    let expected = "expected an even number, 2 or more: half are keys, half values";
    refuse(rows >= 2 && rows.is_multiple_of(2), key, rows, expected)
}

fn refuse(good: bool, key: &str, value: impl std::fmt::Display, expected: &str) -> Result<()> {
    if good { Ok(()) } else { Err(Error::setting(key, value, expected)) }
}
