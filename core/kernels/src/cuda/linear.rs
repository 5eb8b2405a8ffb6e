//! Matrix products of frozen layers by cuBLASLt. A product includes the bias and the value of a residual connection.
//! Layouts and algorithm of a product are cached for later products of the same size.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    ptr,
};

use candle_core::{
    CudaDevice, Result, Shape, Tensor, bail,
    cuda_backend::{
        DeviceId, WrapErr,
        cudarc::{
            cublaslt::{
                result::{self, CublasError},
                sys,
            },
            driver::{CudaSlice, CudaView, DevicePtr, DevicePtrMut, sys::CUdeviceptr},
        },
    },
};

use super::launch::{Element, by_dtype, optional, uninitialized, value, views};
use crate::tape::Value;

/// Computes `x Wᵀ + b + plus` of `shape` for `rows` rows of `x`. `plus` has the same shape.
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    plus: Option<&Tensor>,
    rows: usize,
    shape: Shape,
) -> Result<Value> {
    let (device, (outputs, inputs)) = (x.device().as_cuda_device()?, weight.dims2()?);
    let (bias, plus) = (bias.map(Tensor::storage_and_layout), plus.map(Tensor::storage_and_layout));
    by_dtype!(x.dtype(), T => {
        views!(x: T, weight: T);
        let operands = Operands { x, weight, bias: optional::<T>(&bias)?, plus: optional::<T>(&plus)? };
        multiply(device, Product { rows, inputs, outputs, transposed: true }, operands, shape)
    })
}

/// Computes `dy W` of `shape`, the gradient of the input for the gradient `dy` of `rows` rows of the output.
pub fn linear_backward(dy: &Tensor, weight: &Tensor, rows: usize, shape: Shape) -> Result<Tensor> {
    let (device, (inputs, outputs)) = (dy.device().as_cuda_device()?, weight.dims2()?);
    by_dtype!(dy.dtype(), T => {
        views!(dy: T, weight: T);
        let operands = Operands { x: dy, weight, bias: None, plus: None };
        multiply(device, Product { rows, inputs, outputs, transposed: false }, operands, shape)
    })
    .map(Value::tensor)
}

/// Sizes of a product `Y = X Wᵀ` or `Y = X W` of row-major matrices: `X` `(rows, inputs)`, `Y` `(rows, outputs)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Product {
    rows: usize,
    inputs: usize,
    outputs: usize,
    /// Layout of `W`: `(outputs, inputs)` if true, otherwise `(inputs, outputs)`.
    transposed: bool,
}

/// Elements of the operands of a product; `bias` and `plus` are added to it.
struct Operands<'a, T> {
    x: CudaView<'a, T>,
    weight: CudaView<'a, T>,
    bias: Option<CudaView<'a, T>>,
    plus: Option<CudaView<'a, T>>,
}

/// Returns the types of stored elements and of products for [`Element::arithmetic`]. Sums are float32.
fn types(arithmetic: &str) -> (sys::cudaDataType_t, sys::cublasComputeType_t) {
    use sys::{cublasComputeType_t::*, cudaDataType_t::*};
    match arithmetic {
        "bf16" => (CUDA_R_16BF, CUBLAS_COMPUTE_32F),
        "tf32" => (CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32),
        _ => (CUDA_R_32F, CUBLAS_COMPUTE_32F),
    }
}

fn multiply<T: Element>(
    device: &CudaDevice,
    product: Product,
    operands: Operands<'_, T>,
    shape: Shape,
) -> Result<Value> {
    thread_local! {
        /// Each thread has its own CUDA stream, and its products have their own workspace.
        static OF_DEVICE: RefCell<HashMap<DeviceId, Products>> = RefCell::default();
    }
    let Product { rows, inputs, outputs, .. } = product;
    let Operands { x, weight, bias, plus } = &operands;
    let (of_bias, of_y) = (bias.as_ref().map_or(outputs, CudaView::len), rows * outputs);
    let found = [x.len(), weight.len(), of_bias, plus.as_ref().map_or(of_y, CudaView::len)];
    let expected = [rows * inputs, outputs * inputs, outputs, of_y];
    if found != expected {
        bail!(
            "linear layer: expected {expected:?} values in input, weights, bias and residual, found {found:?}"
        );
    }
    let mut y = uninitialized::<T>(device, rows * outputs)?;
    OF_DEVICE.with_borrow_mut(|all| {
        let products = match all.entry(device.id()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Products::new(device)?),
        };
        products.run(device, product, operands, &mut y)
    })?;
    Ok(value(y, device, shape))
}

/// Handle of cuBLASLt, destroyed on drop.
struct Owned<H: Copy> {
    handle: H,
    destroy: unsafe fn(H) -> LtResult<()>,
}

type LtResult<T> = std::result::Result<T, CublasError>;

impl<H: Copy> Owned<H> {
    fn new(created: LtResult<H>, destroy: unsafe fn(H) -> LtResult<()>) -> Result<Self> {
        Ok(Self { handle: check(created)?, destroy })
    }
}

impl<H: Copy> Drop for Owned<H> {
    fn drop(&mut self) {
        // SAFETY: the handle was created by cuBLASLt and is destroyed once. If destruction fails, the handle leaks.
        let _ = unsafe { (self.destroy)(self.handle) };
    }
}

/// Converts an error of cuBLASLt.
fn check<T>(result: LtResult<T>) -> Result<T> {
    result.map_err(|error| candle_core::Error::Msg(format!("cuBLASLt: {error}")))
}

/// Handle, workspace and cached plans of cuBLASLt, for one device and one thread.
struct Products {
    plans: HashMap<(Product, &'static str, bool), Plan>,
    handle: Owned<sys::cublasLtHandle_t>,
    workspace: CudaSlice<u8>,
}

/// Cached plan of all products of one size and arithmetic, with or without bias.
struct Plan {
    operation: Owned<sys::cublasLtMatmulDesc_t>,
    weight: Owned<sys::cublasLtMatrixLayout_t>,
    x: Owned<sys::cublasLtMatrixLayout_t>,
    y: Owned<sys::cublasLtMatrixLayout_t>,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Products {
    fn new(device: &CudaDevice) -> Result<Self> {
        let (major, _) = device.cuda_stream().context().compute_capability().w()?;
        // Size recommended by NVIDIA: https://docs.nvidia.com/cuda/cublas/#cublassetworkspace
        let megabytes = if major >= 9 { 32 } else { 4 };
        Ok(Self {
            plans: HashMap::new(),
            handle: Owned::new(result::create_handle(), result::destroy_handle)?,
            workspace: uninitialized(device, megabytes << 20)?,
        })
    }

    fn run<T: Element>(
        &mut self,
        device: &CudaDevice,
        product: Product,
        operands: Operands<'_, T>,
        y: &mut CudaSlice<T>,
    ) -> Result<()> {
        let stream = device.cuda_stream();
        let mut copies = [const { None }; 4];
        let [of_x, of_weight, of_bias, of_plus] = &mut copies;
        let Operands { x, weight, bias, plus } = operands;
        let (x, weight) = (aligned(device, x, of_x)?, aligned(device, weight, of_weight)?);
        let bias = bias.map(|bias| aligned(device, bias, of_bias)).transpose()?;
        let plus = plus.map(|plus| aligned(device, plus, of_plus)).transpose()?;

        let arithmetic = T::arithmetic();
        let bias = bias.as_ref().map(|bias| bias.device_ptr(&stream));
        let bias_at = bias.as_ref().map(|(at, _)| *at);
        let plan = match self.plans.entry((product, arithmetic, bias.is_some())) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let workspace = self.workspace.len();
                entry.insert(Plan::new(self.handle.handle, product, types(arithmetic), bias_at, workspace)?)
            }
        };
        plan.set_bias(bias_at)?;
        let (x, _x) = x.device_ptr(&stream);
        let (weight, _weight) = weight.device_ptr(&stream);
        let (y, _y) = y.device_ptr_mut(&stream);
        let (workspace, _workspace) = self.workspace.device_ptr(&stream);
        let plus = plus.as_ref().map(|plus| plus.device_ptr(&stream));
        let (add, factor) = match &plus {
            Some((plus, _)) => (*plus, 1.0f32),
            // With the factor 0, cuBLASLt does not read the address.
            None => (y, 0.0),
        };
        // SAFETY: `multiply` has compared the lengths of the operands with the plan's layouts, and all operands live
        // until the product is queued on the stream that also frees them.
        check(unsafe {
            result::matmul(
                self.handle.handle,
                plan.operation.handle,
                ptr::from_ref(&1.0f32).cast(),
                ptr::from_ref(&factor).cast(),
                weight as *const _,
                plan.weight.handle,
                x as *const _,
                plan.x.handle,
                add as *const _,
                plan.y.handle,
                y as *mut _,
                plan.y.handle,
                &plan.algorithm,
                workspace as *mut _,
                self.workspace.len(),
                stream.cu_stream().cast(),
            )
        })
    }
}

impl Plan {
    /// Creates a plan. cuBLASLt's matrices are column-major, so the plan computes the transposed product, `W Xᵀ` or
    /// `Wᵀ Xᵀ`.
    fn new(
        handle: sys::cublasLtHandle_t,
        product: Product,
        (stored, computed): (sys::cudaDataType_t, sys::cublasComputeType_t),
        bias: Option<CUdeviceptr>,
        workspace: usize,
    ) -> Result<Self> {
        let (rows, inputs, outputs) = (product.rows as u64, product.inputs as u64, product.outputs as u64);
        let matrix = |height: u64, width: u64| {
            let created = result::create_matrix_layout(stored, height, width, height as i64);
            Owned::new(created, result::destroy_matrix_layout)
        };
        let weight = if product.transposed { matrix(inputs, outputs)? } else { matrix(outputs, inputs)? };
        let (x, y) = (matrix(inputs, rows)?, matrix(outputs, rows)?);
        let created = result::create_matmul_desc(computed, sys::cudaDataType_t::CUDA_R_32F);
        let operation = Owned::new(created, result::destroy_matmul_desc)?;
        let preference = Owned::new(result::create_matmul_pref(), result::destroy_matmul_pref)?;
        // SAFETY: the attribute is a 64-bit number, which cuBLASLt reads during the call.
        check(unsafe {
            result::set_matmul_pref_attribute(
                preference.handle,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                ptr::from_ref(&workspace).cast(),
                size_of_val(&workspace),
            )
        })?;
        let mut plan =
            Self { operation, weight, x, y, algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] } };
        plan.set(
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
            i32::from(product.transposed),
        )?;
        if bias.is_some() {
            plan.set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE,
                sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            )?;
            plan.set_bias(bias)?;
        }
        // SAFETY: all handles were created above and are not yet destroyed.
        let found = check(unsafe {
            result::get_matmul_algo_heuristic(
                handle,
                plan.operation.handle,
                plan.weight.handle,
                plan.x.handle,
                plan.y.handle,
                plan.y.handle,
                preference.handle,
            )
        })?;
        plan.algorithm = found.algo;
        Ok(plan)
    }

    /// Sets the address of the bias, if there is one.
    fn set_bias(&self, bias: Option<CUdeviceptr>) -> Result<()> {
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        bias.map_or(Ok(()), |bias| self.set(attribute, bias))
    }

    fn set<V>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: V) -> Result<()> {
        // SAFETY: cuBLASLt reads the value during the call and refuses one whose size is not the attribute's.
        check(unsafe {
            result::set_matmul_desc_attribute(
                self.operation.handle,
                attribute,
                ptr::from_ref(&value).cast(),
                size_of::<V>(),
            )
        })
    }
}

/// Alignment in bytes that cuBLASLt assumes of operands. Allocations on the device have at least this alignment.
const ALIGNMENT: u64 = 256;

/// Returns an aligned view of an operand. An operand that is not aligned, such as a part of a tensor, is copied to
/// `copy`.
fn aligned<'a, T: Element>(
    device: &CudaDevice,
    operand: CudaView<'a, T>,
    copy: &'a mut Option<CudaSlice<T>>,
) -> Result<CudaView<'a, T>> {
    let stream = device.cuda_stream();
    let address = operand.device_ptr(&stream).0;
    if address.is_multiple_of(ALIGNMENT) {
        return Ok(operand);
    }
    let mut aligned = uninitialized::<T>(device, operand.len())?;
    stream.memcpy_dtod(&operand, &mut aligned).w()?;
    Ok(copy.insert(aligned).as_view())
}
