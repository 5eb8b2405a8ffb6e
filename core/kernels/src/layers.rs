//! Frozen layers of a vision transformer.
//!
//! Each type is generic over the layout of its matrices and vectors: tensors in the layout of a checkpoint, or the
//! packed strips and plain vectors of the [`fused`](crate::fused) path.

use candle_core::{DType, Result, Tensor};

/// Linear layer `x Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Weight `W`, `(O, I)`.
    pub weight: Tensor,
    /// Bias `b`, `(O,)`.
    pub bias: Tensor,
}

/// Scale and shift of a layer norm.
#[derive(Debug, Clone)]
pub struct Norm<V = Tensor> {
    /// Scale γ, `(D,)`.
    pub gamma: V,
    /// Shift β, `(D,)`.
    pub beta: V,
}

/// Layers before the first block.
#[derive(Debug, Clone)]
pub struct Stem<L = Linear, V = Tensor> {
    /// Patch convolution as a linear layer, `(D, 3 p p)`.
    pub patch: L,
    /// CLS and register tokens with their position embeddings, `(1, 1 + R, D)`.
    pub prefix: V,
    /// Position embeddings of the patches, `(1, patches, D)`.
    pub positions: V,
}

/// Pre-norm block: `m = x + proj(attention(qkv(norm1(x))))`, `y = m + fc2(gelu(fc1(norm2(m))))`.
#[derive(Debug, Clone)]
pub struct Block<L = Linear, V = Tensor> {
    /// Layer norm before attention.
    pub norm1: Norm<V>,
    /// Projection to queries, keys and values, `(3D, D)`.
    pub qkv: L,
    /// Projection of the attended values, `(D, D)`.
    pub proj: L,
    /// Layer norm before the MLP.
    pub norm2: Norm<V>,
    /// First layer of the MLP, `(hidden, D)`.
    pub fc1: L,
    /// Second layer of the MLP, `(D, hidden)`.
    pub fc2: L,
}

impl Linear {
    /// Converts weight and bias to `dtype`.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self { weight: self.weight.to_dtype(dtype)?, bias: self.bias.to_dtype(dtype)? })
    }
}

impl<V> Norm<V> {
    fn map<W>(&self, vector: impl Fn(&V) -> Result<W>) -> Result<Norm<W>> {
        Ok(Norm { gamma: vector(&self.gamma)?, beta: vector(&self.beta)? })
    }
}

impl<L, V> Stem<L, V> {
    /// Converts the layer and the embeddings of the stem.
    pub fn map<M, W>(
        &self,
        linear: impl Fn(&L) -> Result<M>,
        embedding: impl Fn(&V) -> Result<W>,
    ) -> Result<Stem<M, W>> {
        Ok(Stem {
            patch: linear(&self.patch)?,
            prefix: embedding(&self.prefix)?,
            positions: embedding(&self.positions)?,
        })
    }
}

impl<L, V> Block<L, V> {
    /// Converts each linear layer and each vector of the norms.
    pub fn map<M, W>(
        &self,
        linear: impl Fn(&L) -> Result<M>,
        vector: impl Fn(&V) -> Result<W>,
    ) -> Result<Block<M, W>> {
        Ok(Block {
            norm1: self.norm1.map(&vector)?,
            qkv: linear(&self.qkv)?,
            proj: linear(&self.proj)?,
            norm2: self.norm2.map(&vector)?,
            fc1: linear(&self.fc1)?,
            fc2: linear(&self.fc2)?,
        })
    }
}
