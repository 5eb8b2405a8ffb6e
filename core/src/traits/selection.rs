//! Prompts that the images of a batch take from a pool, as a learner reports them.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// What the images of a batch take of one pool of prompts. It is said for the record and changes nothing.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Name of the pool, for instance that of its keys in the saved models; no two pools of a pass have one name.
    pub pool: String,
    /// Which prompts, or how much of them.
    pub taken: Taken,
}

/// How images share out the prompts of a pool. Where the first dimension is 1, all images take the same.
#[derive(Debug, Clone)]
pub enum Taken {
    /// Each image takes some prompts and leaves the others.
    Chosen {
        /// Numbers of the prompts, `(B or 1, k)` (u32), no two alike in a row.
        numbers: Tensor,
        /// Prompts in the pool.
        of: usize,
    },
    /// Each image takes every prompt by a weight, `(B or 1, M)`, without gradient.
    Weighted(Tensor),
}

impl Selection {
    /// Each image takes the prompts `numbers` `(B or 1, k)` (u32) out of a pool of so many.
    pub fn chosen(pool: impl Into<String>, numbers: &Tensor, of: usize) -> Self {
        Self { pool: pool.into(), taken: Taken::Chosen { numbers: numbers.detach(), of } }
    }

    /// Each image takes the prompts of the pool by `weights` `(B or 1, M)`.
    pub fn weighted(pool: impl Into<String>, weights: &Tensor) -> Self {
        Self { pool: pool.into(), taken: Taken::Weighted(weights.detach()) }
    }

    /// How much `images` images take of each prompt, a row an image: 1 or 0, or the weights.
    ///
    /// # Errors
    /// Shapes that are none of the above, numbers beyond the pool or twice in a row, weights that are no finite numbers.
    pub(crate) fn rows(&self, images: usize) -> Result<Vec<Vec<f64>>> {
        let broken = |promise: String| {
            Err(Error::Promise { plugin: format!("what is said of the pool `{}`", self.pool), promise })
        };
        let (Taken::Chosen { numbers: tensor, .. } | Taken::Weighted(tensor)) = &self.taken;
        let (rows, columns) = match *tensor.dims() {
            [rows, columns] if rows == images || rows == 1 => (rows, columns),
            _ => {
                return broken(format!(
                    "it has a row for each of {images} images, or one, not {:?}",
                    tensor.dims()
                ));
            }
        };
        if tensor.track_op() {
            return broken("it is cut off from the graph (`detach`)".into());
        }
        let mut found = Vec::with_capacity(images);
        match &self.taken {
            Taken::Chosen { of, .. } if *of > LARGEST => {
                return broken(format!("it has at most {LARGEST} prompts, not {of}"));
            }
            Taken::Chosen { numbers, of } => {
                if numbers.dtype() != DType::U32 {
                    return broken(format!("prompts are chosen by number (u32), not {:?}", numbers.dtype()));
                }
                for chosen in numbers.to_vec2::<u32>()? {
                    let mut row = vec![0.0; *of];
                    for number in chosen {
                        match row.get_mut(number as usize) {
                            Some(taken) if *taken == 0.0 => *taken = 1.0,
                            Some(_) => {
                                return broken(format!("an image takes prompt {number} once, not twice"));
                            }
                            None => {
                                return broken(format!(
                                    "an image takes one of {of} prompts from 0, not {number}"
                                ));
                            }
                        }
                    }
                    found.push(row);
                }
            }
            Taken::Weighted(weights) => {
                found = weights.to_dtype(DType::F64)?.to_vec2::<f64>()?;
                if let Some(weight) = found.iter().flatten().find(|weight| !weight.is_finite()) {
                    return broken(format!(
                        "the weights of {columns} prompts are finite numbers, not {weight}"
                    ));
                }
            }
        }
        if rows < images {
            found = found.first().map(|row| vec![row.clone(); images]).unwrap_or_default();
        }
        Ok(found)
    }
}

/// Prompts of the largest pool.
const LARGEST: usize = 1 << 20;
