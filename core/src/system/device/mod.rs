//! Selection of device and precision.

#[cfg(any(feature = "cuda", test))]
mod libraries;

use candle_core::{Device, DeviceLocation, Shape, Tensor};

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
mod cuda {
    //! Replacement for builds without CUDA.

    use candle_core::{Device, Result, Shape, Tensor};

    /// Returns the error of a build without CUDA.
    pub fn open(_ordinal: usize) -> std::result::Result<Device, super::Missing> {
        Err(super::Missing::Build)
    }

    pub fn upload(values: &[f32], shape: Shape, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(values, shape, device)
    }

    /// Returns `None`, since there is no GPU.
    pub fn peak_bytes(_device: &Device) -> Option<u64> {
        None
    }

    /// Does nothing, since there is no GPU.
    pub fn reset_peak(_device: &Device) {}

    pub fn name(_device: &Device) -> Option<String> {
        None
    }
}

use cdl_kernels::fused;

use crate::error::{Error, Result};
pub use crate::system::{
    Precision,
    device::cuda::{peak_bytes, reset_peak},
};

/// Reason why no GPU can be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Missing {
    /// The program was built without CUDA.
    #[error(
        "this program is built without CUDA (docs/guide/gpu.md: build with `--features cuda`, or with `tools/cuda.sh \
         build` if CUDA is not installed)"
    )]
    Build,
    /// A CUDA library cannot be loaded.
    #[error("{library} cannot be loaded ({reason}): {hint}")]
    Library {
        /// File name.
        library: &'static str,
        /// Product that contains the library, and how to make it available.
        hint: &'static str,
        /// Message of the loader.
        reason: String,
    },
    /// The driver or the GPU cannot be used.
    #[error("{0}")]
    Driver(String),
}

impl Missing {
    /// Returns whether a missing GPU is expected: in a build without CUDA, or on a machine without a driver.
    fn is_expected(&self) -> bool {
        match self {
            Self::Build => true,
            Self::Library { library, .. } => library.starts_with("libcuda."),
            Self::Driver(_) => false,
        }
    }
}

/// Opens `auto`, `cpu`, `cuda` or `cuda:N` for networks of `precision`. TF32 is a setting of the whole program: the
/// last call of this function determines it.
///
/// # Errors
/// An unknown name, a device that does not exist or that this build does not support, or a precision that the device
/// does not support.
pub fn open(name: &str, precision: Precision) -> Result<Device> {
    let fail = |reason: String| Error::Device { device: name.into(), reason };
    let cpu = |why: &str| match precision {
        Precision::Float32 => Ok(Device::Cpu),
        precision => {
            let expected = format!("expected float32 on the CPU{why}; tf32 and bf16 require a GPU");
            Err(Error::setting("precision", precision.as_str(), expected))
        }
    };
    let device = match name {
        "cpu" => cpu(" (device `cpu`)")?,
        "auto" => match cuda::open(0) {
            Ok(device) => device,
            Err(missing) => {
                let device = cpu(&format!(", which device `auto` selects: {missing}"))?;
                match missing.is_expected() {
                    true => tracing::debug!("no GPU: {missing}"),
                    false => tracing::warn!("no GPU can be used; using the CPU: {missing}"),
                }
                device
            }
        },
        _ => cuda::open(ordinal(name)?).map_err(|missing| fail(missing.to_string()))?,
    };
    precision_on(&device, precision);
    Ok(device)
}

/// Checks what [`open`] can check without opening a GPU, which would stay in use until the process ends.
///
/// # Errors
/// Errors of [`open`]. With CUDA, whether a GPU exists is not checked.
pub(crate) fn check(name: &str, precision: Precision) -> Result<()> {
    match name {
        "cpu" => open(name, precision).map(drop),
        _ if cfg!(not(feature = "cuda")) => open(name, precision).map(drop),
        "auto" => Ok(()),
        _ => ordinal(name).map(drop),
    }
}

/// Returns the number of the GPU with the name `cuda` or `cuda:N`.
fn ordinal(name: &str) -> Result<usize> {
    let number = match name.strip_prefix("cuda") {
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix(':').and_then(|number| number.parse().ok()),
        None => None,
    };
    let reason = "expected auto, cpu, cuda or cuda:N".into();
    number.ok_or_else(|| Error::Device { device: name.into(), reason })
}

/// Returns the precision to use on `device`: float32 on the CPU, otherwise `precision`. On a GPU, also sets the
/// precision of candle's float32 matrix products.
pub(crate) fn precision_on(device: &Device, precision: Precision) -> Precision {
    if device.is_cpu() {
        return Precision::Float32;
    }
    #[cfg(feature = "cuda")]
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(precision == Precision::Tf32);
    precision
}

/// Copies `values` to a tensor of `shape` on `device`. A copy to a GPU uses pinned memory and does not wait for the
/// work of other threads. It is complete when this function returns, so that any thread may use the tensor.
///
/// # Errors
/// A number of values that does not fit `shape`, and insufficient memory on the device.
pub fn upload(values: Vec<f32>, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    match device {
        Device::Cuda(_) => Ok(cuda::upload(&values, shape.into(), device)?),
        _ => Ok(Tensor::from_vec(values, shape.into(), device)?),
    }
}

/// Returns a description of the device: `cpu, 2 threads`, or `cuda:0` with the name of the GPU.
pub fn describe(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => match rayon::current_num_threads() {
            1 => "cpu, 1 thread".into(),
            threads => format!("cpu, {threads} threads"),
        },
        DeviceLocation::Cuda { gpu_id } => {
            let name = cuda::name(device).unwrap_or_else(|| "unnamed GPU".into());
            format!("cuda:{gpu_id}, {name}")
        }
        other => format!("{other:?}"),
    }
}

/// Returns the name of the kernels of frozen networks on `device`.
pub fn kernels(device: &Device) -> &'static str {
    if device.is_cpu() { fused::SimdLevel::best().as_str() } else { "cuda" }
}
