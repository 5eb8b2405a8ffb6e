//! Gathering of injected keys and values in one operation for all blocks. A graph of narrow, concatenate and broadcast
//! operations would launch a hundred small kernels on a GPU in each step.

use candle_core::{DType, Result, Tensor, bail};

use crate::{
    storage::{by_dtype, on_cpu, return_on_gpu},
    tape::{Gradients, Value},
};

/// Prompts from which rows are gathered. At least one of the fields is present.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Rows that differ from image to image, `(B, O, D)`.
    pub own: Option<&'a Tensor>,
    /// Rows that all images share, `(1, S, D)`.
    pub shared: Option<&'a Tensor>,
}

/// Source row of a key or value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Whether the row is in [`Sources::shared`]; otherwise it is in [`Sources::own`].
    pub shared: bool,
    /// Index of the row.
    pub row: usize,
}

impl Source {
    /// Returns the source that lies `rows` rows later.
    pub fn plus(self, rows: usize) -> Self {
        Self { row: self.row + rows, ..self }
    }
}

/// Gathers keys and values, `(B, R, 2D)`, for `batch` images, as `dtype`.
///
/// `places` contains the sources of each of the `R` keys and its value. No row of a source may be used twice.
///
/// # Errors
/// Sources whose shapes do not fit each other or the places.
pub fn gather_rows(
    sources: Sources<'_>,
    places: &[[Source; 2]],
    batch: usize,
    dtype: DType,
) -> Result<Tensor> {
    let own = sources.own.map(Tensor::contiguous).transpose()?;
    let shared = sources.shared.map(Tensor::contiguous).transpose()?;
    let dims = |source: &Option<Tensor>| source.as_ref().map(Tensor::dims3).transpose();
    let (own_dims, shared_dims) = (dims(&own)?, dims(&shared)?);
    let rows = |dims: Option<(usize, usize, usize)>| dims.map_or(0, |(_, rows, _)| rows);
    let (own_rows, shared_rows) = (rows(own_dims), rows(shared_dims));
    let width = own_dims.or(shared_dims).map_or(0, |(_, _, width)| width);
    let number = |source: &Source| if source.shared { own_rows + source.row } else { source.row };
    let places: Vec<usize> = places.iter().flatten().map(number).collect();
    let fits = own_dims.is_none_or(|dims| dims == (batch, own_rows, width))
        && shared_dims.is_none_or(|dims| dims == (1, shared_rows, width))
        && places.iter().all(|&place| place < own_rows + shared_rows);
    // For a missing source, the other is a placeholder and is not read.
    let (Some(first), Some(second), true) =
        (own.as_ref().or(shared.as_ref()), shared.as_ref().or(own.as_ref()), fits)
    else {
        let count = places.len() / 2;
        bail!(
            "{count} injected rows do not fit prompts of shapes {own_dims:?} (own) and {shared_dims:?} (shared)"
        );
    };
    let gather = Gather { places, own_rows, shared_rows, batch, width };
    let rows = gather.forward(first, second, dtype)?;
    rows.of_both(first, second, move |_, _, _, dy| gather.backward(dy))?.to_dtype(dtype)
}

/// Sources of gathered rows.
struct Gather {
    /// Source index of each key, then of its value: rows of `own`, followed by rows of `shared`.
    places: Vec<usize>,
    /// Number of rows of `own`; 0 if there is none.
    own_rows: usize,
    /// Number of rows of `shared`; 0 if there is none.
    shared_rows: usize,
    batch: usize,
    width: usize,
}

impl Gather {
    /// Gathers the rows: as `dtype` on a GPU, in the type of the sources on the CPU.
    fn forward(&self, own: &Tensor, shared: &Tensor, _dtype: DType) -> Result<Value> {
        let width = self.width;
        let shape = (self.batch, self.places.len() / 2, 2 * width);
        return_on_gpu!(own => gather_rows(own, shared, &self.places, self.own_rows, shape, _dtype));
        by_dtype!(own.dtype(), T => {
            on_cpu!(T: own => own, shared => shared);
            let mut rows = Vec::with_capacity(self.batch * self.places.len() * width);
            for image in 0..self.batch {
                for &place in &self.places {
                    rows.extend_from_slice(match place.checked_sub(self.own_rows) {
                        None => &own[(image * self.own_rows + place) * width..][..width],
                        Some(row) => &shared[row * width..][..width],
                    });
                }
            }
            Ok(Value::on_cpu(rows, shape))
        })
    }

    /// Returns the gradients of both sources. The gradient of a shared row is the sum over the images in order.
    fn backward(&self, dy: &Tensor) -> Result<Gradients> {
        return_on_gpu!(dy => scatter_rows(dy, &self.places, self.own_rows, self.shared_rows));
        let width = self.width;
        by_dtype!(dy.dtype(), T => {
            on_cpu!(T: dy => dy);
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
            let tensor = |gradient: Vec<T>, shape: (usize, usize, usize)| {
                (!gradient.is_empty()).then(|| Value::on_cpu(gradient, shape).tensor())
            };
            let (own, shared) = ((self.batch, self.own_rows, width), (1, self.shared_rows, width));
            Ok((tensor(d_own, own), tensor(d_shared, shared)))
        })
    }
}
