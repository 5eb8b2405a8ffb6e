//! Choosing where to compute.

use candle_core::Device;

use crate::{Error, Result};

/// Opens `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// An unknown name, or a device that this build or machine does not have.
pub fn open(name: &str) -> Result<Device> {
    let fail = |reason: String| Error::Device { device: name.into(), reason };
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" if candle_core::utils::cuda_is_available() => {
            Ok(Device::new_cuda(0).unwrap_or_else(|error| {
                tracing::warn!("no GPU can be used ({error}); computing on the CPU");
                Device::Cpu
            }))
        }
        "auto" => Ok(Device::Cpu),
        _ => {
            let ordinal = match name.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse().ok()),
                None => None,
            };
            let ordinal = ordinal.ok_or_else(|| fail("expected auto, cpu, cuda or cuda:N".into()))?;
            if !candle_core::utils::cuda_is_available() {
                return Err(fail(
                    "this build has no CUDA support; build with `--features cuda`, or use cpu".into(),
                ));
            }
            Device::new_cuda(ordinal).map_err(|e| fail(e.to_string()))
        }
    }
}
