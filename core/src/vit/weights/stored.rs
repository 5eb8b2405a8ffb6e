//! Tensors of a checkpoint as its file stores them.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor, safetensors::Load};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Maximum number of dimensions of a tensor. Those of a ViT have at most four.
pub(super) const MAX_DIMENSIONS: usize = 16;

/// Maximum number of names that a message lists.
const MAX_SHOWN: usize = 6;

/// Tensor of a file.
pub(super) enum Stored {
    /// Tensor of a floating-point type.
    Values(Tensor),
    /// Reason why a tensor cannot be a weight of a network. Files may contain such tensors beside the weights.
    Unusable(String),
}

/// Tensors of a file, or of the part of it that `weights_prefix` selects, by name.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) tensors: BTreeMap<String, Stored>,
    /// Values of `weights_prefix` that select other parts of the file.
    pub(super) others: BTreeSet<String>,
}

impl Contents {
    /// Returns the end of a message about a file whose tensors are not those of a network: it lists the other parts.
    pub(super) fn hint(&self) -> String {
        let parts: Vec<&str> = self.others.iter().map(String::as_str).collect();
        let parts = list(&parts).map(|parts| {
            format!("; it also contains tensors under {parts}: set `weights_prefix` to read one of them")
        });
        parts.unwrap_or_default()
    }
}

/// Formats the first of `names` and the number of the others; `None` if there are none.
pub(super) fn list<S: AsRef<str>>(names: &[S]) -> Option<String> {
    let shown: Vec<String> =
        names.iter().take(MAX_SHOWN).map(|name| format!("`{}`", name.as_ref())).collect();
    match names.len() {
        0 => None,
        count if count <= MAX_SHOWN => Some(shown.join(", ")),
        count => Some(format!("{} and {} more", shown.join(", "), count - MAX_SHOWN)),
    }
}

/// Reads a safetensors file.
pub(super) fn safetensors(bytes: &[u8], prefix: Option<&str>) -> Result<Contents, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| {
        format!("is not a complete safetensors file, nor a `torch.save` file ({e}); fetch or copy it again")
    })?;
    let mut contents = Contents::default();
    for (name, view) in file.iter() {
        match prefix {
            Some(prefix) if !is_in(name, prefix) => {
                contents.others.extend(name.split_once('.').map(|(part, _)| part.to_string()));
            }
            _ => drop(contents.tensors.insert(name.to_string(), stored(&view)?)),
        }
    }
    Ok(contents)
}

fn stored(view: &TensorView<'_>) -> Result<Stored, String> {
    Ok(match view.dtype() {
        _ if view.shape().len() > MAX_DIMENSIONS => Stored::Unusable(too_many_dimensions(view.shape().len())),
        Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 => {
            Stored::Values(view.load(&Device::Cpu).map_err(|e| e.to_string())?)
        }
        other => Stored::Unusable(wrong_type(&other.to_string())),
    })
}

/// Returns whether a dotted name begins with the components of `prefix`.
pub(super) fn is_in(name: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('.');
    prefix.is_empty() || name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
}

/// Returns the reason for refusing a tensor of an integer, quantised, complex or 8-bit float type.
pub(super) fn wrong_type(found: &str) -> String {
    format!("has values of type {found}; expected float16, bfloat16, float32 or float64")
}

/// Returns the reason for refusing a tensor with more than [`MAX_DIMENSIONS`] dimensions.
pub(super) fn too_many_dimensions(found: usize) -> String {
    format!("has {found} dimensions; expected at most {MAX_DIMENSIONS}")
}
