//! Named tensors, as stored in checkpoints.

use std::{collections::BTreeMap, path::Path};

use candle_core::{CpuStorage, Device, Storage, Tensor, WithDType};
use half::{bf16, f16};

use crate::{
    error::{Error, Result},
    traits::NamedVar,
};

/// Named tensors in name order.
#[derive(Debug, Clone, Default)]
pub struct StateDict(BTreeMap<String, Tensor>);

impl StateDict {
    /// Copies the current values of `vars`.
    pub fn of(vars: &[NamedVar]) -> Result<Self> {
        vars.iter().map(|v| Ok((v.name.clone(), v.tensor().detach().copy()?))).collect()
    }

    /// Reads a safetensors file.
    ///
    /// # Errors
    /// A file that cannot be read or is not in safetensors format; a tensor with a value that is not finite.
    pub fn read(file: &Path, device: &Device) -> Result<Self> {
        let fail = |reason: String| Error::State { owner: file.display().to_string(), reason };
        let bytes = crate::system::files::read(file).map_err(|e| fail(e.to_string()))?;
        let tensors =
            candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| fail(e.to_string()))?;
        let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        if let Some((name, value)) =
            tensors.iter().find_map(|(name, tensor)| Some((name, not_finite(tensor)?)))
        {
            return Err(fail(format!("`{name}` contains {value}, which is not a finite number")));
        }
        tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_device(device)?))).collect()
    }

    /// Serialises the tensors in safetensors format.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        safetensors::serialize(self.0.iter().map(|(name, tensor)| (name.as_str(), tensor)), None)
            .map_err(|e| Error::State { owner: "model".into(), reason: e.to_string() })
    }

    /// Returns the tensor `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.0.insert(name.into(), tensor);
    }

    /// Adds all tensors of `other`.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Returns names and tensors in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Sets each of `vars` to the tensor of the same name.
    ///
    /// # Errors
    /// A missing tensor, or a tensor of another shape.
    pub fn load_into(&self, vars: &[NamedVar]) -> Result<()> {
        for NamedVar { name, var } in vars {
            let wrong = |reason: String| Error::State { owner: name.clone(), reason };
            let tensor = self.get(name).ok_or_else(|| wrong("missing from the saved state".into()))?;
            if tensor.shape() != var.shape() {
                return Err(wrong(format!(
                    "saved with shape {:?}, expected {:?}",
                    tensor.dims(),
                    var.dims()
                )));
            }
            var.set(&tensor.to_dtype(var.dtype())?.to_device(var.device())?)?;
        }
        Ok(())
    }
}

/// Returns the first value of a contiguous tensor in main memory that is not a finite number in float32. Tensors of
/// integers have none.
pub(crate) fn not_finite(tensor: &Tensor) -> Option<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets()?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => first_unless(values.get(start..end)?, f32::is_finite),
        Storage::Cpu(CpuStorage::F64(values)) => {
            first_unless(values.get(start..end)?, |value| (value as f32).is_finite())
        }
        Storage::Cpu(CpuStorage::F16(values)) => first_unless(values.get(start..end)?, f16::is_finite),
        Storage::Cpu(CpuStorage::BF16(values)) => first_unless(values.get(start..end)?, bf16::is_finite),
        _ => None,
    }
}

/// Returns the first value that lacks `property`. Each chunk is tested without branches, so that the compiler can use
/// vector instructions.
fn first_unless<T: WithDType>(values: &[T], property: impl Fn(T) -> bool) -> Option<f64> {
    const CHUNK: usize = 4096;
    let all = |chunk: &[T]| chunk.iter().fold(true, |all, &value| all & property(value));
    let chunk = values.chunks(CHUNK).find(|chunk| !all(chunk))?;
    chunk.iter().find(|&&value| !property(value)).map(|value| value.to_f64())
}

impl FromIterator<(String, Tensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn values_that_are_not_finite_are_found_in_every_type() -> Result<()> {
        let mut values = vec![1f64; 10_000];
        values[9_000] = f64::NAN;
        let infinite = vec![1.0, f64::NEG_INFINITY];
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let tensor = |values: &[f64]| Tensor::new(values, &Device::Cpu)?.to_dtype(dtype);
            assert!(not_finite(&tensor(&values)?).is_some_and(f64::is_nan), "{dtype:?}");
            assert_eq!(not_finite(&tensor(&infinite)?), Some(f64::NEG_INFINITY), "{dtype:?}");
            assert_eq!(not_finite(&tensor(&values[..9_000])?), None, "{dtype:?}");
        }
        // Finite in float64, but not in float32.
        assert_eq!(not_finite(&Tensor::new(&[1e300], &Device::Cpu)?), Some(1e300));
        assert_eq!(not_finite(&Tensor::new(&[1u32], &Device::Cpu)?), None);
        Ok(())
    }

    #[test]
    fn a_saved_state_with_a_value_that_is_not_finite_is_refused() -> Result<()> {
        let mut state = StateDict::default();
        state.insert("head.weight", Tensor::new(&[1f32, f32::NAN], &Device::Cpu)?);
        let folder = tempfile::tempdir().map_err(crate::error::io("folder"))?;
        let file = folder.path().join("student.safetensors");
        crate::system::atomic::write_atomic(&file, &state.to_bytes()?)?;
        let said = StateDict::read(&file, &Device::Cpu).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains("student.safetensors: `head.weight` contains NaN"), "{said}");
        Ok(())
    }
}
