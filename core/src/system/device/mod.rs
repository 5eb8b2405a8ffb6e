//! Choosing where to compute, and in which precision.

#[cfg(any(feature = "cuda", test))]
mod libraries;

use candle_core::{Device, DeviceLocation, Shape, Tensor};

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
mod cuda {
    //! Of a build without CUDA.

    use candle_core::{Device, Result, Shape, Tensor};

    /// Never a device.
    pub fn open(_ordinal: usize) -> std::result::Result<Device, super::Missing> {
        Err(super::Missing::Build)
    }

    pub fn upload(numbers: &[f32], shape: Shape, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(numbers, shape, device)
    }

    /// Nothing: there is no GPU.
    pub fn peak_bytes(_device: &Device) -> Option<u64> {
        None
    }

    /// Does nothing: there is no GPU.
    pub fn forget_peak(_device: &Device) {}

    pub fn name(_device: &Device) -> Option<String> {
        None
    }
}

use cdl_kernels::fused;

use crate::error::{Error, Result};
pub use crate::system::{
    Precision,
    device::cuda::{forget_peak, peak_bytes},
};

/// Why there is no GPU to compute on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Missing {
    /// The program was built without CUDA.
    #[error(
        "this program is built without CUDA (docs/guide/gpu.md says how to get one that is: `--features cuda`, or \
         `tools/cuda.sh build` where CUDA is not installed)"
    )]
    Build,
    /// A library cannot be loaded.
    #[error("{library} cannot be loaded ({reason}): {what}")]
    Library {
        /// File name.
        library: &'static str,
        /// What it is part of, and how to have it found.
        what: &'static str,
        /// What the loader says.
        reason: String,
    },
    /// The driver, or this card, refuses.
    #[error("{0}")]
    Driver(String),
}

impl Missing {
    /// Whether nobody could have expected a GPU: a build without CUDA, or a machine without a driver.
    fn is_ordinary(&self) -> bool {
        match self {
            Self::Build => true,
            Self::Library { library, .. } => library.starts_with("libcuda."),
            Self::Driver(_) => false,
        }
    }
}

/// Opens `auto`, `cpu`, `cuda` or `cuda:N` for networks of `precision`. TF32 is a setting of the whole program: what was
/// opened last decides.
///
/// # Errors
/// An unknown name, a device that this build or machine does not have, or a precision that it does not know.
pub fn open(name: &str, precision: Precision) -> Result<Device> {
    let fail = |reason: String| Error::Device { device: name.into(), reason };
    let cpu = |why: &str| match precision {
        Precision::Float32 => Ok(Device::Cpu),
        precision => {
            let expected = format!("expected float32 on the CPU{why}; tf32 and bf16 are for GPUs");
            Err(Error::setting("precision", precision.as_str(), expected))
        }
    };
    let device = match name {
        "cpu" => cpu(" (device `cpu`)")?,
        "auto" => match cuda::open(0) {
            Ok(device) => device,
            Err(missing) => {
                let device = cpu(&format!(", where device `auto` computes: {missing}"))?;
                match missing.is_ordinary() {
                    true => tracing::debug!("no GPU: {missing}"),
                    false => tracing::warn!("no GPU can be used, computing on the CPU: {missing}"),
                }
                device
            }
        },
        _ => {
            let ordinal = match name.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse().ok()),
                None => None,
            };
            let ordinal = ordinal.ok_or_else(|| fail("expected auto, cpu, cuda or cuda:N".into()))?;
            cuda::open(ordinal).map_err(|missing| fail(missing.to_string()))?
        }
    };
    precision_on(&device, precision);
    Ok(device)
}

/// The precision on `device` of networks that want `precision`: float32 on the CPU. Matrix products take it up.
pub(crate) fn precision_on(device: &Device, precision: Precision) -> Precision {
    if device.is_cpu() {
        return Precision::Float32;
    }
    #[cfg(feature = "cuda")]
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(precision == Precision::Tf32);
    precision
}

/// `numbers` as a tensor on `device`. To a GPU they go through memory that it reads by itself; when this returns they
/// are there, whichever thread uses them, and no other thread's work had to wait.
///
/// # Errors
/// Numbers that do not fill `shape`, and a device without room.
pub fn upload(numbers: Vec<f32>, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    match device {
        Device::Cuda(_) => Ok(cuda::upload(&numbers, shape.into(), device)?),
        _ => Ok(Tensor::from_vec(numbers, shape.into(), device)?),
    }
}

/// The device for people: `cpu, 2 threads`, or `cuda:0` with the name of the card.
pub fn describe(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => format!("cpu, {} threads", rayon::current_num_threads()),
        DeviceLocation::Cuda { gpu_id } => {
            let name = cuda::name(device).unwrap_or_else(|| "no name".into());
            format!("cuda:{gpu_id}, {name}")
        }
        other => format!("{other:?}"),
    }
}

/// The kernels that frozen networks run on there.
pub fn kernels(device: &Device) -> &'static str {
    if device.is_cpu() { fused::SimdLevel::best().as_str() } else { "cuda" }
}
