//! Multi-head attention with injected keys and values.

use candle_core::{Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::composed;
use crate::{
    slices::{self, Real, View, gemm},
    storage::{by_dtype, has_kernels, on_cpu, return_on_gpu, slice},
    tape::Value,
};

/// Computes `softmax(q kᵀ / √(D/H)) v` for each of `heads` heads and concatenates the results: `(B, N, D)`.
///
/// `qkv` `(B, N, 3D)` contains queries, keys and values of the tokens, the output of a fused projection. `extra`
/// `(B, P, 2D)` contains injected keys and values, prefix and suffix together: attention does not depend on the order
/// of keys.
///
/// The scores are never stored: the backward pass recomputes them, one image and head at a time.
///
/// # Errors
/// Tensors whose shapes do not fit each other or the heads.
pub fn attention(qkv: &Tensor, extra: Option<&Tensor>, heads: usize) -> Result<Tensor> {
    if !has_kernels(qkv) {
        return composed::attention(qkv, extra, heads);
    }
    let (qkv, extra) = (qkv.contiguous()?, extra.map(Tensor::contiguous).transpose()?);
    let (y, log_sums) = forward(&qkv, extra.as_ref(), heads)?;
    let injects = extra.is_some();
    // Without injected rows, `qkv` is a placeholder for them and is not read.
    y.of_both(&qkv, extra.as_ref().unwrap_or(&qkv), move |qkv, extra, y, dy| {
        let attended = Attended { y: y.clone(), log_sums: log_sums.clone() };
        let (d_qkv, d_extra) = attend_backward(qkv, Some(extra).filter(|_| injects), &attended, dy, heads)?;
        Ok((Some(d_qkv), d_extra))
    })
}

/// Output of [`attend`].
#[derive(Debug)]
pub struct Attended {
    /// Output `(B, N, D)`.
    pub y: Tensor,
    /// Logarithm of each query's sum of exponentials, `(B, H, N)`. Only CUDA kernels keep it for the backward pass.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "kept only by CUDA kernels"))]
    pub log_sums: Option<Tensor>,
}

/// Computes [`attention`] of contiguous tensors, without a graph.
pub fn attend(qkv: &Tensor, extra: Option<&Tensor>, heads: usize) -> Result<Attended> {
    let (y, log_sums) = forward(qkv, extra, heads)?;
    Ok(Attended { y: y.tensor(), log_sums })
}

/// Computes the gradients of `qkv` and `extra` for the gradient `dy` `(B, N, D)` of the output.
pub fn attend_backward(
    qkv: &Tensor,
    extra: Option<&Tensor>,
    attended: &Attended,
    dy: &Tensor,
    heads: usize,
) -> Result<(Tensor, Option<Tensor>)> {
    let dy = dy.contiguous()?;
    return_on_gpu!(qkv => attend_backward(qkv, extra, attended, &dy, heads));
    let s = Sizes::new(qkv.layout(), extra.map(Tensor::layout), heads)?;
    by_dtype!(qkv.dtype(), T => {
        on_cpu!(T: qkv => values, attended.y => y, dy => dy);
        let storage = extra.map(Tensor::storage_and_layout);
        let injected = storage.as_ref().map(slice::<T>).transpose()?.unwrap_or_default();
        let (d_qkv, d_extra) = backward_on_cpu(s, values, injected, y, dy);
        let d_extra = extra.map(|extra| Value::on_cpu(d_extra, extra.shape()).tensor());
        Ok((Value::on_cpu(d_qkv, qkv.shape()).tensor(), d_extra))
    })
}

/// Computes the output and, on a GPU, the logarithms of the sums of exponentials.
fn forward(qkv: &Tensor, extra: Option<&Tensor>, heads: usize) -> Result<(Value, Option<Tensor>)> {
    return_on_gpu!(qkv => attend(qkv, extra, heads));
    let s = Sizes::new(qkv.layout(), extra.map(Tensor::layout), heads)?;
    by_dtype!(qkv.dtype(), T => {
        on_cpu!(T: qkv => qkv);
        let storage = extra.map(Tensor::storage_and_layout);
        let injected = storage.as_ref().map(slice::<T>).transpose()?.unwrap_or_default();
        Ok((Value::on_cpu(forward_on_cpu(s, qkv, injected), (s.batch, s.tokens, s.width)), None))
    })
}

/// Sizes of attention, on the CPU or the GPU: number of images `batch`, `tokens` and injected rows `extra` of an image,
/// `width`, number of `heads`, and the width `head` of a head.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub tokens: usize,
    pub extra: usize,
    pub width: usize,
    pub heads: usize,
    pub head: usize,
}

impl Sizes {
    /// Returns the sizes of `qkv` `(B, N, 3D)` with `extra` `(B, P, 2D)`.
    ///
    /// # Errors
    /// Shapes that do not fit each other or the heads.
    pub fn new(qkv: &Layout, extra: Option<&Layout>, heads: usize) -> Result<Self> {
        let (batch, tokens, triple) = qkv.shape().dims3()?;
        let width = triple / 3;
        if triple % 3 != 0 || heads == 0 || width % heads != 0 {
            let dims = qkv.dims();
            bail!(
                "attention: expected a shape (B, N, 3D) with D a multiple of {heads} heads, found {dims:?}"
            );
        }
        let rows = match extra.map(|layout| layout.shape().dims3()).transpose()? {
            None => 0,
            Some((b, rows, w)) if b == batch && w == 2 * width => rows,
            Some(dims) => {
                bail!(
                    "attention: expected injected keys and values ({batch}, P, {}), found {dims:?}",
                    2 * width
                )
            }
        };
        Ok(Self { batch, tokens, extra: rows, width, heads, head: width / heads })
    }

    /// Returns the factor of the scores, `1 / √(D/H)`.
    pub fn scale(&self) -> f64 {
        1.0 / (self.head as f64).sqrt()
    }

    /// Returns the number of keys to which each query attends.
    pub fn keys(&self) -> usize {
        self.extra + self.tokens
    }
}

/// Queries, keys and values of one image and head, as matrices inside the image's slices.
struct HeadViews<'a, T> {
    q: View<'a, T>,
    k: View<'a, T>,
    v: View<'a, T>,
    extra_k: View<'a, T>,
    extra_v: View<'a, T>,
}

impl<'a, T: Real> HeadViews<'a, T> {
    fn new(s: Sizes, head: usize, qkv: &'a [T], extra: &'a [T]) -> Self {
        let at = head * s.head;
        let token = |part: usize| View::rows(&qkv[part * s.width + at..], 3 * s.width);
        let injected =
            |part: usize| View::rows(extra.get(part * s.width + at..).unwrap_or_default(), 2 * s.width);
        Self { q: token(0), k: token(1), v: token(2), extra_k: injected(0), extra_v: injected(1) }
    }

    /// Computes the attention weights `(N, P + N)`, weights of the injected rows first.
    fn weights(&self, s: Sizes, weights: &mut [T]) {
        let keys = s.keys();
        if s.extra > 0 {
            let size = (s.tokens, s.head, s.extra);
            gemm(size, weights, keys, false, self.q, self.extra_k.t(), 1);
        }
        let size = (s.tokens, s.head, s.tokens);
        gemm(size, &mut weights[s.extra..], keys, false, self.q, self.k.t(), 1);
        slices::softmax(weights, keys, T::from_f64(s.scale()));
    }
}

fn forward_on_cpu<T: Real>(s: Sizes, qkv: &[T], extra: &[T]) -> Vec<T> {
    let mut y = vec![T::default(); s.batch * s.tokens * s.width];
    y.par_chunks_mut(s.tokens * s.width).enumerate().for_each(|(image, y)| {
        let qkv = &qkv[image * s.tokens * 3 * s.width..][..s.tokens * 3 * s.width];
        let extra = &extra[image * s.extra * 2 * s.width..][..s.extra * 2 * s.width];
        let keys = s.keys();
        let mut weights = vec![T::default(); s.tokens * keys];
        for head in 0..s.heads {
            let views = HeadViews::new(s, head, qkv, extra);
            views.weights(s, &mut weights);
            let y = &mut y[head * s.head..];
            let of_tokens = View::rows(&weights[s.extra..], keys);
            gemm((s.tokens, s.tokens, s.head), y, s.width, false, of_tokens, views.v, 1);
            if s.extra > 0 {
                let of_extra = View::rows(&weights, keys);
                gemm((s.tokens, s.extra, s.head), y, s.width, true, of_extra, views.extra_v, 1);
            }
        }
    });
    y
}

/// Returns the gradients of `qkv` and `extra`.
///
/// With weights `A`, output `y` and `g = dy`: `dV = Aᵀ g`, `dA = g Vᵀ`, `dS = A ∘ (dA - rowsum(g ∘ y)) / √(D/H)`,
/// `dQ = dS K`, `dK = dSᵀ Q`.
fn backward_on_cpu<T: Real>(s: Sizes, qkv: &[T], extra: &[T], y: &[T], dy: &[T]) -> (Vec<T>, Vec<T>) {
    let (own, injected) = (s.tokens * 3 * s.width, s.extra * 2 * s.width);
    let mut d_qkv = vec![T::default(); s.batch * own];
    let mut d_extra = vec![T::default(); s.batch * injected];
    let mut of_extra = d_extra.chunks_mut(injected.max(1));
    let images: Vec<_> =
        d_qkv.chunks_mut(own).map(|d_qkv| (d_qkv, of_extra.next().unwrap_or_default())).collect();
    images.into_par_iter().enumerate().for_each(|(image, (d_qkv, d_extra))| {
        let qkv = &qkv[image * own..][..own];
        let extra = &extra[image * injected..][..injected];
        let y = &y[image * s.tokens * s.width..][..s.tokens * s.width];
        let dy = &dy[image * s.tokens * s.width..][..s.tokens * s.width];
        let keys = s.keys();
        let scale = T::from_f64(s.scale());
        let mut weights = vec![T::default(); s.tokens * keys];
        let mut d_scores = vec![T::default(); s.tokens * keys];
        for head in 0..s.heads {
            let at = head * s.head;
            let views = HeadViews::new(s, head, qkv, extra);
            views.weights(s, &mut weights);
            let g = View::rows(&dy[at..], s.width);

            let size = (s.tokens, s.head, s.tokens);
            gemm(size, &mut d_scores[s.extra..], keys, false, g, views.v.t(), 1);
            if s.extra > 0 {
                let size = (s.tokens, s.head, s.extra);
                gemm(size, &mut d_scores, keys, false, g, views.extra_v.t(), 1);
            }
            for row in 0..s.tokens {
                let of_head = row * s.width + at..row * s.width + at + s.head;
                let mean = slices::dot(&dy[of_head.clone()], &y[of_head]);
                let of_row = row * keys..(row + 1) * keys;
                for (d, &w) in d_scores[of_row.clone()].iter_mut().zip(&weights[of_row]) {
                    *d = (*d - mean) * w * scale;
                }
            }

            let (w, ds) = (View::rows(&weights[s.extra..], keys), View::rows(&d_scores[s.extra..], keys));
            let square = (s.tokens, s.tokens, s.head);
            let stride = 3 * s.width;
            gemm(square, &mut d_qkv[at..], stride, false, ds, views.k, 1);
            gemm(square, &mut d_qkv[s.width + at..], stride, false, ds.t(), views.q, 1);
            gemm(square, &mut d_qkv[2 * s.width + at..], stride, false, w.t(), g, 1);
            if s.extra > 0 {
                let (w, ds) = (View::rows(&weights, keys), View::rows(&d_scores, keys));
                let stride = 2 * s.width;
                let size = (s.tokens, s.extra, s.head);
                gemm(size, &mut d_qkv[at..], 3 * s.width, true, ds, views.extra_k, 1);
                let size = (s.extra, s.tokens, s.head);
                gemm(size, &mut d_extra[at..], stride, false, ds.t(), views.q, 1);
                gemm(size, &mut d_extra[s.width + at..], stride, false, w.t(), g, 1);
            }
        }
    });
    (d_qkv, d_extra)
}
