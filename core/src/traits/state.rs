//! Named tensors, as stored in checkpoints.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Device, Tensor};

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
    /// A file that cannot be read or is not in safetensors format.
    pub fn read(file: &Path, device: &Device) -> Result<Self> {
        let fail = |reason: String| Error::State { owner: file.display().to_string(), reason };
        let bytes = crate::system::files::read(file).map_err(|e| fail(e.to_string()))?;
        let tensors =
            candle_core::safetensors::load_buffer(&bytes, device).map_err(|e| fail(e.to_string()))?;
        Ok(Self(tensors.into_iter().collect()))
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

impl FromIterator<(String, Tensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}
