//! Ranges that settings often have, each refused with the key, the value and what was expected.

use crate::{
    error::{Error, Result},
    system::memory,
    traits::StateDict,
};

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

/// There is room in memory for as many numbers as the settings `sizes` and `numbers` come to when multiplied; otherwise the
/// largest of the settings is refused.
///
/// It is the host's memory that is looked at, whatever the device is: initial values are drawn there before a GPU has them.
/// What a GPU has free is not asked.
pub fn room(sizes: &[(&str, usize)], numbers: usize) -> Result<()> {
    let free = memory::available_bytes().unwrap_or(1 << 40) as f64;
    let bytes = sizes.iter().map(|(_, size)| *size as f64).product::<f64>() * numbers as f64 * 4.0;
    let Some((key, value)) = sizes.iter().max_by_key(|(_, size)| *size).filter(|_| bytes > free) else {
        return Ok(());
    };
    let [wanted, free] = [bytes, free].map(|bytes| bytes / 1e9);
    let expected = format!("expected less: {wanted:.1} GB would be taken, {free:.1} GB are free");
    Err(Error::setting(key, value, expected))
}

/// Sizes `(key, value, tensor, axis)` are those that the tensors have along these axes, where the tensors are known before
/// the method makes its own: a model from elsewhere may claim sizes that no memory holds.
pub fn as_saved(saved: Option<&StateDict>, sizes: &[(&str, usize, &str, usize)]) -> Result<()> {
    let Some(saved) = saved else { return Ok(()) };
    for &(key, value, name, axis) in sizes {
        let wrong = |reason: String| Error::State { owner: name.into(), reason };
        let tensor = saved.get(name).ok_or_else(|| wrong("missing from the saved state".into()))?;
        let size = tensor.dims().get(axis).ok_or_else(|| {
            wrong(format!("saved with shape {:?}, expected {} dimensions or more", tensor.dims(), axis + 1))
        })?;
        refuse(value == *size, key, value, &format!("expected {size}, as `{name}` was saved"))?;
    }
    Ok(())
}

fn refuse(good: bool, key: &str, value: impl std::fmt::Display, expected: &str) -> Result<()> {
    if good { Ok(()) } else { Err(Error::setting(key, value, expected)) }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn the_largest_of_sizes_that_have_no_room_is_refused() -> Result<()> {
        room(&[("pool", 100), ("length", 8)], 768)?;
        let said = room(&[("pool", 100), ("length", usize::MAX)], usize::MAX).err().map(|e| e.to_string());
        assert!(
            said.unwrap_or_default().contains("`length = 18446744073709551615` is not valid: expected less")
        );
        Ok(())
    }

    #[test]
    fn sizes_are_those_that_were_saved() -> Result<()> {
        let mut saved = StateDict::default();
        saved.insert("p", Tensor::zeros((3, 4), DType::F32, &Device::Cpu)?);
        let said = |sizes: &[(&str, usize, &str, usize)]| {
            as_saved(Some(&saved), sizes).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(said(&[("pool", 3, "p", 0), ("length", 4, "p", 1)]), "");
        let huge = said(&[("pool", 3, "p", 0), ("length", usize::MAX, "p", 1)]);
        assert!(
            huge.contains("`length = 18446744073709551615`") && huge.contains("expected 4, as `p`"),
            "{huge}"
        );
        assert!(said(&[("pool", 3, "q", 0)]).contains("q: missing"));
        assert!(said(&[("pool", 3, "p", 2)]).contains("[3, 4], expected 3 dimensions"));
        as_saved(None, &[("pool", usize::MAX, "p", 0)])
    }
}
