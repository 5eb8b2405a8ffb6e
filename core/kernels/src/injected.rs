//! Injected keys and values put side by side, in one step for all blocks: a graph of narrow, concatenated and broadcast pieces
//! would cost a GPU a hundred small operations in each step.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Layout, Shape, Tensor, backend::BackendStorage, bail,
};

use super::{by_dtype, kernel::Real, slice};
#[cfg(feature = "cuda")]
use super::{cuda, on_gpu};
use candle_core::Result;

/// Prompts that differ from image to image, `(B, O, D)`, and prompts that all share, `(1, S, D)`.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Rows that differ from image to image, `(B, O, D)`.
    pub own: Option<&'a Tensor>,
    /// Rows that all images share, `(1, S, D)`.
    pub shared: Option<&'a Tensor>,
}

/// The row that a key or value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A row of [`Sources::own`].
    Own(usize),
    /// A row of [`Sources::shared`].
    Shared(usize),
}

impl Source {
    /// So many rows on.
    pub fn plus(self, rows: usize) -> Self {
        match self {
            Self::Own(row) => Self::Own(row + rows),
            Self::Shared(row) => Self::Shared(row + rows),
        }
    }
}

/// Keys and values side by side, `(B, R, 2D)`, for `batch` images, as `dtype`: `places` has the sources of each key and its
/// value; no row of a source is taken twice.
pub fn side_by_side(
    sources: Sources<'_>,
    places: &[[Source; 2]],
    batch: usize,
    dtype: DType,
) -> Result<Tensor> {
    let Sources { own, shared } = sources;
    let own = own.map(Tensor::contiguous).transpose()?;
    let shared = shared.map(Tensor::contiguous).transpose()?;
    let rows = |source: &Option<Tensor>| source.as_ref().map_or(Ok(0), |source| source.dim(1));
    let (own_rows, shared_rows) = (rows(&own)?, rows(&shared)?);
    let number = |source: &Source| match *source {
        Source::Own(row) => row,
        Source::Shared(row) => own_rows + row,
    };
    let places = places.iter().flatten().map(number).collect();
    let gather = |dtype: DType| Gather { places, own_rows, shared_rows, batch, dtype };
    let computed = |source: &Tensor| match source.device().is_cpu() {
        true => source.dtype(),
        false => dtype,
    };
    let rows = match (&own, &shared) {
        (Some(own), Some(shared)) => own.apply_op2(shared, gather(computed(own)))?,
        (Some(own), None) => own.apply_op1(gather(computed(own)))?,
        (None, Some(shared)) => shared.apply_op1(gather(computed(shared)))?,
        (None, None) => {
            return Err(candle_core::Error::Msg("injected rows that come from nowhere".into()).into());
        }
    };
    Ok(rows.to_dtype(dtype)?)
}

struct Gather {
    /// Of each key, then its value: a row of `own`, or of `shared` counted on from there.
    places: Vec<usize>,
    own_rows: usize,
    shared_rows: usize,
    batch: usize,
    /// Of the rows.
    dtype: DType,
}

impl Gather {
    /// Width of a row, and the result's shape.
    fn shape(&self, own: Option<&Layout>, shared: Option<&Layout>) -> candle_core::Result<(usize, Shape)> {
        let dims = |layout: Option<&Layout>| layout.map(|layout| layout.shape().dims3()).transpose();
        let (own, shared) = (dims(own)?, dims(shared)?);
        let width = own.or(shared).map_or(0, |(_, _, width)| width);
        let fits = own.is_none_or(|own| own == (self.batch, self.own_rows, width))
            && shared.is_none_or(|shared| shared == (1, self.shared_rows, width))
            && self.places.iter().all(|&place| place < self.own_rows + self.shared_rows);
        if !fits {
            bail!("{} keys and values from prompts of shapes {own:?} and {shared:?}", self.places.len());
        }
        Ok((width, (self.batch, self.places.len() / 2, 2 * width).into()))
    }

    fn on_cpu(
        &self,
        own: Option<(&CpuStorage, &Layout)>,
        shared: Option<(&CpuStorage, &Layout)>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (width, shape) = self.shape(own.map(|(_, layout)| layout), shared.map(|(_, layout)| layout))?;
        let Some((storage, _)) = own.or(shared) else { bail!("injected rows that come from nowhere") };
        if storage.dtype() != self.dtype {
            bail!("injected rows of {:?} from prompts of {:?} on the CPU", self.dtype, storage.dtype());
        }
        let rows = by_dtype!(storage, T => {
            let own: &[T] = own.map(|(storage, layout)| slice(storage, layout)).transpose()?.unwrap_or_default();
            let shared: &[T] =
                shared.map(|(storage, layout)| slice(storage, layout)).transpose()?.unwrap_or_default();
            let mut rows = Vec::with_capacity(self.batch * self.places.len() * width);
            for image in 0..self.batch {
                for &place in &self.places {
                    rows.extend_from_slice(match place.checked_sub(self.own_rows) {
                        None => &own[(image * self.own_rows + place) * width..][..width],
                        Some(row) => &shared[row * width..][..width],
                    });
                }
            }
            <T as Real>::storage(rows)
        });
        Ok((rows, shape))
    }

    /// Gradients of both sources: of those that all images share, sums over the images in their order.
    fn backward(&self, dy: &Tensor) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (images, rows, pair) = dy.dims3()?;
        let width = pair / 2;
        if (images, 2 * rows) != (self.batch, self.places.len()) {
            bail!("a gradient of shape {:?} for {} keys and values", dy.dims(), self.places.len());
        }
        #[cfg(feature = "cuda")]
        if on_gpu(dy) {
            return cuda::scatter_rows(&dy.contiguous()?, &self.places, self.own_rows, self.shared_rows);
        }
        let dy = dy.contiguous()?;
        let (storage, layout) = dy.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { bail!("injected rows are not on the CPU") };
        by_dtype!(storage, T => {
            let dy = slice::<T>(storage, layout)?;
            let mut d_own = vec![T::default(); self.batch * self.own_rows * width];
            let mut d_shared = vec![T::default(); self.shared_rows * width];
            for (index, from) in dy.chunks_exact(width).enumerate() {
                let (image, place) = (index / self.places.len(), self.places[index % self.places.len()]);
                let to = match place.checked_sub(self.own_rows) {
                    None => &mut d_own[(image * self.own_rows + place) * width..][..width],
                    Some(row) => &mut d_shared[row * width..][..width],
                };
                to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
            }
            let cpu = &candle_core::Device::Cpu;
            let made = |numbers: Vec<T>, shape| match numbers.is_empty() {
                true => Ok(None),
                false => Tensor::from_vec(numbers, shape, cpu).map(Some),
            };
            Ok((made(d_own, (self.batch, self.own_rows, width))?, made(d_shared, (1, self.shared_rows, width))?))
        })
    }
}

/// Of the one source that has rows.
impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "injected-rows"
    }

    fn cpu_fwd(&self, source: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let source = Some((source, layout));
        if self.own_rows > 0 { self.on_cpu(source, None) } else { self.on_cpu(None, source) }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        source: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        let own = Some((source, layout)).filter(|_| self.own_rows > 0);
        let shared = Some((source, layout)).filter(|_| self.own_rows == 0);
        let (width, shape) = self.shape(own.map(|(_, layout)| layout), shared.map(|(_, layout)| layout))?;
        let rows =
            cuda::gather_rows(own, shared, &self.places, (self.batch, self.own_rows, width), self.dtype)?;
        Ok((rows, shape))
    }

    fn bwd(&self, _source: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (d_own, d_shared) = self.backward(dy)?;
        Ok(d_own.or(d_shared))
    }
}

impl CustomOp2 for Gather {
    fn name(&self) -> &'static str {
        "injected-rows"
    }

    fn cpu_fwd(
        &self,
        own: &CpuStorage,
        own_layout: &Layout,
        shared: &CpuStorage,
        shared_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.on_cpu(Some((own, own_layout)), Some((shared, shared_layout)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        own: &candle_core::CudaStorage,
        own_layout: &Layout,
        shared: &candle_core::CudaStorage,
        shared_layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        let (width, shape) = self.shape(Some(own_layout), Some(shared_layout))?;
        let (own, shared) = (Some((own, own_layout)), Some((shared, shared_layout)));
        let sizes = (self.batch, self.own_rows, width);
        Ok((cuda::gather_rows(own, shared, &self.places, sizes, self.dtype)?, shape))
    }

    fn bwd(
        &self,
        _own: &Tensor,
        _shared: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(dy)
    }
}
