//! Multi-head attention with injected keys and values.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{
    by_dtype, fused,
    kernel::{Real, View, gemm},
    portable, slice,
};
#[cfg(feature = "cuda")]
use super::{cuda, on_gpu};
use candle_core::Result;

/// `softmax(q kᵀ / √(D/H)) v` for each of `heads` heads.
///
/// `qkv` `(B, N, 3D)` holds the tokens' queries, keys and values side by side, as a fused projection makes them.
/// `extra` `(B, P, 2D)` holds further keys and values that only are attended to: prefix and suffix alike, since
/// attention does not look at the order of its keys. Gives `(B, N, D)`, heads side by side.
///
/// The scores are never stored: the backward pass computes them again, one image and head at a time.
pub fn attention(qkv: &Tensor, extra: Option<&Tensor>, heads: usize) -> Result<Tensor> {
    if !fused(qkv) {
        return portable::attention(qkv, extra, heads);
    }
    let qkv = qkv.contiguous()?;
    Ok(match extra {
        Some(extra) => qkv.apply_op2(&extra.contiguous()?, Attention { heads })?,
        None => qkv.apply_op1(Attention { heads })?,
    })
}

/// What [`attend`] gives.
#[derive(Debug)]
pub struct Attended {
    /// `(B, N, D)`.
    pub y: Tensor,
    /// Logarithm of each row's sum of exponentials, `(B, H, N)`, from kernels that leave it for the backward pass.
    pub log_sums: Option<Tensor>,
}

/// [`attention`] without a graph, for what has a backward pass of its own.
pub fn attend(qkv: &Tensor, extra: Option<&Tensor>, heads: usize) -> Result<Attended> {
    let qkv = qkv.contiguous()?;
    #[cfg(feature = "cuda")]
    if on_gpu(&qkv) {
        return Ok(cuda::attend(&qkv, extra.map(Tensor::contiguous).transpose()?.as_ref(), heads)?);
    }
    let y = match extra {
        Some(extra) => qkv.apply_op2_no_bwd(&extra.contiguous()?, &Attention { heads })?,
        None => qkv.apply_op1_no_bwd(&Attention { heads })?,
    };
    Ok(Attended { y, log_sums: None })
}

/// Gradients of `qkv` and `extra` for that of the output, `dy`.
pub fn attend_backward(
    qkv: &Tensor,
    extra: Option<&Tensor>,
    attended: &Attended,
    dy: &Tensor,
    heads: usize,
) -> Result<(Tensor, Option<Tensor>)> {
    #[cfg(feature = "cuda")]
    if on_gpu(qkv) {
        return Ok(cuda::attend_backward(qkv, extra, attended, &dy.contiguous()?, heads)?);
    }
    let backward = Backward { heads, extra };
    let gradients = qkv.apply_op3_no_bwd(&attended.y, &dy.contiguous()?, &backward)?;
    let (batch, tokens, triple) = qkv.dims3()?;
    let own = tokens * triple;
    let d_qkv = gradients.narrow(1, 0, own)?.reshape((batch, tokens, triple))?;
    let d_extra = match extra {
        Some(extra) => Some(gradients.narrow(1, own, gradients.dim(1)? - own)?.reshape(extra.shape())?),
        None => None,
    };
    Ok((d_qkv, d_extra))
}

struct Attention {
    heads: usize,
}

/// Sizes of one call: images, tokens, injected rows, width, heads, head width.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) tokens: usize,
    pub(super) extra: usize,
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) head: usize,
}

impl Sizes {
    pub(super) fn new(qkv: &Layout, extra: Option<&Layout>, heads: usize) -> candle_core::Result<Self> {
        let (batch, tokens, triple) = qkv.shape().dims3()?;
        let width = triple / 3;
        if triple % 3 != 0 || heads == 0 || width % heads != 0 {
            bail!("attention with {heads} heads on queries, keys and values of shape {:?}", qkv.dims());
        }
        let rows = match extra.map(|layout| layout.shape().dims3()).transpose()? {
            None => 0,
            Some((b, rows, w)) if b == batch && w == 2 * width => rows,
            Some(dims) => bail!("injected keys and values of shape {dims:?} for {:?}", qkv.dims()),
        };
        Ok(Self { batch, tokens, extra: rows, width, heads, head: width / heads })
    }

    pub(super) fn keys(&self) -> usize {
        self.extra + self.tokens
    }
}

/// One image's queries, keys and values for one head, as matrices inside the image's slices.
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

    /// Attention weights `(N, P + N)`, the injected rows' first.
    fn weights(&self, s: Sizes, weights: &mut [T]) {
        let keys = s.keys();
        if s.extra > 0 {
            let size = (s.tokens, s.head, s.extra);
            gemm(size, weights, keys, false, T::one(), self.q, self.extra_k.t(), 1);
        }
        let size = (s.tokens, s.head, s.tokens);
        gemm(size, &mut weights[s.extra..], keys, false, T::one(), self.q, self.k.t(), 1);
        T::softmax(weights, keys, T::from_f64(1.0 / (s.head as f64).sqrt()));
    }
}

fn forward<T: Real>(s: Sizes, qkv: &[T], extra: &[T]) -> Vec<T> {
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
            let all = View::rows(&weights[s.extra..], keys);
            gemm((s.tokens, s.tokens, s.head), y, s.width, false, T::one(), all, views.v, 1);
            if s.extra > 0 {
                let injected = View::rows(&weights, keys);
                gemm((s.tokens, s.extra, s.head), y, s.width, true, T::one(), injected, views.extra_v, 1);
            }
        }
    });
    y
}

/// Gradients of `qkv` and `extra`, one after the other for each image: `(B, N * 3D + P * 2D)`.
///
/// With weights `A`, output `y` and `g = dy`: `dV = Aᵀ g`, `dA = g Vᵀ`, `dS = A ∘ (dA - rowsum(g ∘ y)) / √(D/H)`,
/// `dQ = dS K`, `dK = dSᵀ Q`.
fn backward<T: Real>(s: Sizes, qkv: &[T], extra: &[T], y: &[T], dy: &[T]) -> Vec<T> {
    let (own, injected) = (s.tokens * 3 * s.width, s.extra * 2 * s.width);
    let mut gradients = vec![T::default(); s.batch * (own + injected)];
    gradients.par_chunks_mut(own + injected).enumerate().for_each(|(image, gradient)| {
        let qkv = &qkv[image * own..][..own];
        let extra = &extra[image * injected..][..injected];
        let y = &y[image * s.tokens * s.width..][..s.tokens * s.width];
        let dy = &dy[image * s.tokens * s.width..][..s.tokens * s.width];
        let (d_qkv, d_extra) = gradient.split_at_mut(own);
        let keys = s.keys();
        let scale = T::from_f64(1.0 / (s.head as f64).sqrt());
        let mut weights = vec![T::default(); s.tokens * keys];
        let mut d_scores = vec![T::default(); s.tokens * keys];
        for head in 0..s.heads {
            let at = head * s.head;
            let views = HeadViews::new(s, head, qkv, extra);
            views.weights(s, &mut weights);
            let g = View::rows(&dy[at..], s.width);

            let size = (s.tokens, s.head, s.tokens);
            gemm(size, &mut d_scores[s.extra..], keys, false, T::one(), g, views.v.t(), 1);
            if s.extra > 0 {
                let size = (s.tokens, s.head, s.extra);
                gemm(size, &mut d_scores, keys, false, T::one(), g, views.extra_v.t(), 1);
            }
            for row in 0..s.tokens {
                let of_head = row * s.width + at..row * s.width + at + s.head;
                let mean = T::dot(&dy[of_head.clone()], &y[of_head]);
                let of_row = row * keys..(row + 1) * keys;
                for (d, &w) in d_scores[of_row.clone()].iter_mut().zip(&weights[of_row]) {
                    *d = (*d - mean) * w * scale;
                }
            }

            let (w, ds) = (View::rows(&weights[s.extra..], keys), View::rows(&d_scores[s.extra..], keys));
            let square = (s.tokens, s.tokens, s.head);
            let stride = 3 * s.width;
            gemm(square, &mut d_qkv[at..], stride, false, T::one(), ds, views.k, 1);
            gemm(square, &mut d_qkv[s.width + at..], stride, false, T::one(), ds.t(), views.q, 1);
            gemm(square, &mut d_qkv[2 * s.width + at..], stride, false, T::one(), w.t(), g, 1);
            if s.extra > 0 {
                let (w, ds) = (View::rows(&weights, keys), View::rows(&d_scores, keys));
                let stride = 2 * s.width;
                gemm(
                    (s.tokens, s.extra, s.head),
                    &mut d_qkv[at..],
                    3 * s.width,
                    true,
                    T::one(),
                    ds,
                    views.extra_k,
                    1,
                );
                let size = (s.extra, s.tokens, s.head);
                gemm(size, &mut d_extra[at..], stride, false, T::one(), ds.t(), views.q, 1);
                gemm(size, &mut d_extra[s.width + at..], stride, false, T::one(), w.t(), g, 1);
            }
        }
    });
    gradients
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let s = Sizes::new(layout, None, self.heads)?;
        let y = by_dtype!(qkv, T => <T as Real>::storage(forward::<T>(s, slice(qkv, layout)?, &[])));
        Ok((y, (s.batch, s.tokens, s.width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, qkv: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let (y, _, s) = cuda::attention(qkv, layout, None, self.heads)?;
        Ok((y, (s.batch, s.tokens, s.width).into()))
    }

    fn bwd(&self, qkv: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let attended = Attended { y: y.clone(), log_sums: None };
        let (d_qkv, _) =
            attend_backward(qkv, None, &attended, dy, self.heads).map_err(candle_core::Error::wrap)?;
        Ok(Some(d_qkv))
    }
}

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "attention-with-prompts"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        extra: &CpuStorage,
        extra_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let s = Sizes::new(qkv_layout, Some(extra_layout), self.heads)?;
        let y = by_dtype!(qkv, T => {
            <T as Real>::storage(forward::<T>(s, slice(qkv, qkv_layout)?, slice(extra, extra_layout)?))
        });
        Ok((y, (s.batch, s.tokens, s.width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        qkv: &CudaStorage,
        qkv_layout: &Layout,
        extra: &CudaStorage,
        extra_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (y, _, s) = cuda::attention(qkv, qkv_layout, Some((extra, extra_layout)), self.heads)?;
        Ok((y, (s.batch, s.tokens, s.width).into()))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        extra: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let attended = Attended { y: y.clone(), log_sums: None };
        let (d_qkv, d_extra) =
            attend_backward(qkv, Some(extra), &attended, dy, self.heads).map_err(candle_core::Error::wrap)?;
        Ok((Some(d_qkv), d_extra))
    }
}

/// The gradient as an operation on `(qkv, y, dy)`, see [`backward`].
struct Backward<'a> {
    heads: usize,
    extra: Option<&'a Tensor>,
}

impl CustomOp3 for Backward<'_> {
    fn name(&self) -> &'static str {
        "attention-backward"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let extra = self.extra.map(Tensor::storage_and_layout);
        let s = Sizes::new(qkv_layout, extra.as_ref().map(|(_, layout)| *layout), self.heads)?;
        let gradients = by_dtype!(qkv, T => {
            let injected: &[T] = match &extra {
                None => &[],
                Some((storage, layout)) => match &**storage {
                    candle_core::Storage::Cpu(storage) => slice(storage, layout)?,
                    _ => bail!("injected keys and values are not on the CPU"),
                },
            };
            let (qkv, y, dy) = (slice(qkv, qkv_layout)?, slice(y, y_layout)?, slice(dy, dy_layout)?);
            <T as Real>::storage(backward::<T>(s, qkv, injected, y, dy))
        });
        let width = s.tokens * 3 * s.width + s.extra * 2 * s.width;
        Ok((gradients, (s.batch, width).into()))
    }
}
