//! Values that enter candle's graph with their own backward pass.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Storage, Tensor, bail, op::BackpropOp,
};

use crate::slices::Real;

/// Computed value that is not yet a tensor.
pub struct Value {
    storage: Storage,
    shape: Shape,
}

/// Gradients of two inputs; `None` for an input without gradient.
pub type Gradients = (Option<Tensor>, Option<Tensor>);

impl Value {
    /// Creates a value on the device of its `storage`.
    pub fn new(storage: Storage, shape: impl Into<Shape>) -> Self {
        Self { storage, shape: shape.into() }
    }

    /// Creates a value on the CPU.
    pub fn on_cpu<T: Real>(values: Vec<T>, shape: impl Into<Shape>) -> Self {
        Self::new(Storage::Cpu(T::to_cpu_storage_owned(values)), shape)
    }

    /// Converts the value to a tensor without a graph.
    pub fn tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }

    /// Enters the value into the graph as a function of `x`. `backward(x, y, dy)` returns the gradient of `x` for a
    /// contiguous `dy`.
    pub fn of(
        self,
        x: &Tensor,
        backward: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        self.of_both(x, x, move |x, _, y, dy| Ok((Some(backward(x, y, dy)?), None)))
    }

    /// Enters the value into the graph as a function of `a` and `b`. `backward(a, b, y, dy)` returns their gradients
    /// for a contiguous `dy`.
    pub fn of_both(
        self,
        a: &Tensor,
        b: &Tensor,
        backward: impl Fn(&Tensor, &Tensor, &Tensor, &Tensor) -> Result<Gradients> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        a.apply_op2(b, Node { value: Mutex::new(Some(self)), backward })
    }
}

/// Node of candle's graph whose value is already computed.
struct Node<F> {
    value: Mutex<Option<Value>>,
    backward: F,
}

impl<F> Node<F> {
    fn value(&self) -> Result<Value> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(|| {
            candle_core::Error::Msg("a computed value can enter candle's graph only once".into())
        })
    }
}

impl<F: Fn(&Tensor, &Tensor, &Tensor, &Tensor) -> Result<Gradients>> CustomOp2 for Node<F> {
    fn name(&self) -> &'static str {
        "frozen-network"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.value()? {
            Value { storage: Storage::Cpu(storage), shape } => Ok((storage, shape)),
            _ => bail!("expected a value and its inputs on one device"),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        match self.value()? {
            Value { storage: Storage::Cuda(storage), shape } => Ok((storage, shape)),
            _ => bail!("expected a value and its inputs on one device"),
        }
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Gradients> {
        (self.backward)(a, b, y, &dy.contiguous()?)
    }
}
