//! The plain vision transformer of timm, with timm's parameter names, for inference and for training.

use std::{collections::BTreeMap, collections::HashMap, path::Path};

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor, Var, safetensors};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::{ops, resample::resample};

/// Standard deviation of the initial class token and position embedding: positions are to stand out from the start.
const INITIAL_TOKEN_STD: f32 = 0.5;

/// How random weights are drawn, always from normal distributions.
#[derive(Clone, Copy, Debug)]
pub enum Initial {
    /// Standard deviation 0.02 throughout, as timm starts vision transformers.
    Usual,
    /// Linear layers keep the variance of their input, which lets small networks learn to attend sooner.
    KeepVariance,
}

/// The sizes of a network for square images.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Side of an image in pixels.
    pub image: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    pub width: usize,
    pub depth: usize,
    pub heads: usize,
}

impl Shape {
    const CHANNELS: usize = 3;
    const MLP_RATIO: usize = 4;

    /// Patches along one side of an image.
    pub fn grid(&self) -> usize {
        self.image / self.patch
    }

    /// Name and dimensions of every parameter.
    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let width = self.width;
        let hidden = Self::MLP_RATIO * width;
        let mut all = vec![
            ("cls_token".into(), vec![1, 1, width]),
            ("pos_embed".into(), vec![1, 1 + self.grid().pow(2), width]),
        ];
        let mut layer = |name: &str, weight: Vec<usize>| {
            all.push((format!("{name}.bias"), vec![weight[0]]));
            all.push((format!("{name}.weight"), weight));
        };
        let patch = vec![width, Self::CHANNELS, self.patch, self.patch];
        layer("patch_embed.proj", patch);
        for block in 0..self.depth {
            let name = |part: &str| format!("blocks.{block}.{part}");
            layer(&name("norm1"), vec![width]);
            layer(&name("attn.qkv"), vec![3 * width, width]);
            layer(&name("attn.proj"), vec![width, width]);
            layer(&name("norm2"), vec![width]);
            layer(&name("mlp.fc1"), vec![hidden, width]);
            layer(&name("mlp.fc2"), vec![width, hidden]);
        }
        layer("norm", vec![width]);
        all
    }
}

/// A vision transformer: B images of C x S x S pixels become 1 + P tokens of width D, the class token first.
pub struct Vit {
    pub shape: Shape,
    parameters: BTreeMap<String, Tensor>,
}

impl Vit {
    /// Random weights: the same seed gives the same ones.
    pub fn random(shape: Shape, initial: Initial, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut parameters = BTreeMap::new();
        for (name, dims) in shape.parameters() {
            let tensor = if name.ends_with("bias") {
                Tensor::zeros(dims, DType::F32, &Device::Cpu)?
            } else if name.contains("norm") {
                Tensor::ones(dims, DType::F32, &Device::Cpu)?
            } else {
                let std = match initial {
                    Initial::Usual => 0.02,
                    Initial::KeepVariance if name.ends_with("weight") => {
                        let inputs: usize = dims[1..].iter().product();
                        (inputs as f32).sqrt().recip()
                    }
                    Initial::KeepVariance => INITIAL_TOKEN_STD,
                };
                let normal = Normal::new(0.0, std)?;
                let count = dims.iter().product();
                let values = normal.sample_iter(&mut rng).take(count).collect();
                Tensor::from_vec(values, dims, &Device::Cpu)?
            };
            parameters.insert(name, tensor);
        }
        Ok(Self { shape, parameters })
    }

    /// Reads weights from a safetensors file; all but the number of heads shows in their shapes.
    pub fn load(path: &Path, heads: Option<usize>) -> Result<Self> {
        let stored = safetensors::load(path, &Device::Cpu)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut parameters = BTreeMap::new();
        for (name, tensor) in stored {
            parameters.insert(name, tensor.to_dtype(DType::F32)?);
        }
        let dims = |name: &str| {
            let tensor = parameters.get(name).with_context(|| format!("{} lacks {name}", path.display()))?;
            Ok::<_, anyhow::Error>(tensor.dims().to_vec())
        };
        let projection = dims("patch_embed.proj.weight")?;
        let positions = dims("pos_embed")?;
        ensure!(
            projection.len() == 4 && positions.len() == 3 && positions[1] > 1,
            "{} does not hold a vision transformer",
            path.display()
        );
        let (width, patch) = (projection[0], projection[2]);
        let shape = Shape {
            image: (positions[1] - 1).isqrt() * patch,
            patch,
            width,
            depth: (0..)
                .take_while(|block| parameters.contains_key(&format!("blocks.{block}.norm1.weight")))
                .count(),
            // Where nothing else is said, a head is 64 wide.
            heads: heads.unwrap_or(width / 64),
        };
        ensure!(
            shape.heads > 0 && width.is_multiple_of(shape.heads),
            "{}: width {width} does not divide into {} heads",
            path.display(),
            shape.heads
        );
        for (name, expected) in shape.parameters() {
            let found = dims(&name)?;
            ensure!(found == expected, "{}: {name} is {found:?}, expected {expected:?}", path.display());
        }
        Ok(Self { shape, parameters })
    }

    /// Writes the weights as float16.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut halves = HashMap::new();
        for (name, tensor) in &self.parameters {
            halves.insert(name.clone(), tensor.detach().to_dtype(DType::F16)?);
        }
        safetensors::save(&halves, path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The same network with parameters that an optimiser can change, and these parameters.
    pub fn trainable(self) -> Result<(Self, Vec<Var>)> {
        let mut variables = Vec::with_capacity(self.parameters.len());
        let mut parameters = BTreeMap::new();
        for (name, tensor) in self.parameters {
            let variable = Var::from_tensor(&tensor)?;
            parameters.insert(name, variable.as_tensor().clone());
            variables.push(variable);
        }
        let network = Self { shape: self.shape, parameters };
        Ok((network, variables))
    }

    /// Resamples the position embedding for images of another size.
    pub fn resize(&mut self, image: usize) -> Result<()> {
        let width = self.shape.width;
        let old = self.shape.grid();
        self.shape.image = image;
        let new = self.shape.grid();
        let positions = self.parameter("pos_embed")?;
        let class = positions.narrow(1, 0, 1)?; // (1, 1, D)
        let maps = positions
            .narrow(1, 1, old * old)?
            .reshape((old, old, width))?
            .permute((2, 0, 1))? // (D, old, old)
            .contiguous()?;
        let maps = resample(&maps, new)?
            .permute((1, 2, 0))? // (new, new, D)
            .reshape((1, new * new, width))?;
        let resized = Tensor::cat(&[class, maps], 1)?; // (1, 1 + P, D)
        self.parameters.insert("pos_embed".into(), resized);
        Ok(())
    }

    /// All tokens after the final norm: images (B, C, S, S) become (B, 1 + P, D).
    pub fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        let width = self.shape.width;
        let batch = images.dim(0)?;
        let patches = self.embed(images)?; // (B, P, D)
        let class = self.parameter("cls_token")?.broadcast_as((batch, 1, width))?;
        let mut x = Tensor::cat(&[class, patches], 1)?.broadcast_add(&self.parameter("pos_embed")?)?;
        for block in 0..self.shape.depth {
            let name = |part: &str| format!("blocks.{block}.{part}");
            let mixed = self.attention(&name("attn"), &self.norm(&name("norm1"), &x)?)?;
            x = (x + self.layer_scale(&name("ls1"), mixed)?)?;
            let mapped = self.mlp(&name("mlp"), &self.norm(&name("norm2"), &x)?)?;
            x = (x + self.layer_scale(&name("ls2"), mapped)?)?;
        }
        self.norm("norm", &x)
    }

    /// The patch projection, a convolution whose stride is its size: (B, C, S, S) become (B, P, D).
    fn embed(&self, images: &Tensor) -> Result<Tensor> {
        let Shape { patch, width, .. } = self.shape;
        let grid = self.shape.grid();
        let batch = images.dim(0)?;
        let pixels = Shape::CHANNELS * patch * patch;
        let patches = images
            .reshape(&[batch, Shape::CHANNELS, grid, patch, grid, patch])?
            .permute(vec![0, 2, 4, 1, 3, 5])? // (B, grid, grid, C, patch, patch)
            .reshape((batch * grid * grid, pixels))?;
        let weight = self.parameter("patch_embed.proj.weight")?.reshape((width, pixels))?;
        let tokens =
            ops::add_bias(&patches.matmul(&weight.t()?)?, &self.parameter("patch_embed.proj.bias")?)?;
        Ok(tokens.reshape((batch, grid * grid, width))?)
    }

    /// Self-attention of all heads: (B, T, D) stay (B, T, D).
    fn attention(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let (batch, count, width) = x.dims3()?;
        let heads = self.shape.heads;
        let head_width = width / heads;
        let qkv = self
            .linear(&format!("{name}.qkv"), x)?
            .reshape((batch, count, 3, heads, head_width))?
            .permute((2, 0, 3, 1, 4))?; // (3, B, H, T, D/H)
        let query = qkv.get(0)?.contiguous()?;
        let key = qkv.get(1)?.contiguous()?;
        let value = qkv.get(2)?.contiguous()?;
        let scores = query.matmul(&key.transpose(D::Minus2, D::Minus1)?)?; // (B, H, T, T)
        let weights = ops::scaled_softmax(&scores, (head_width as f32).sqrt().recip())?;
        let mixed = weights
            .matmul(&value)? // (B, H, T, D/H)
            .transpose(1, 2)?
            .reshape((batch, count, width))?;
        self.linear(&format!("{name}.proj"), &mixed)
    }

    fn mlp(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let hidden = ops::gelu(&self.linear(&format!("{name}.fc1"), x)?)?; // (B, T, 4D)
        self.linear(&format!("{name}.fc2"), &hidden)
    }

    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(
            x,
            &self.parameter(&format!("{name}.weight"))?,
            &self.parameter(&format!("{name}.bias"))?,
        )?)
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.parameter(&format!("{name}.weight"))?, &self.parameter(&format!("{name}.bias"))?)
    }

    /// The factor that some networks give each channel of a residual branch.
    fn layer_scale(&self, name: &str, x: Tensor) -> Result<Tensor> {
        match self.parameters.get(&format!("{name}.gamma")) {
            Some(gamma) => Ok(x.broadcast_mul(gamma)?),
            None => Ok(x),
        }
    }

    fn parameter(&self, name: &str) -> Result<Tensor> {
        let tensor = self.parameters.get(name);
        tensor.cloned().with_context(|| format!("no parameter {name}"))
    }
}

/// A linear layer on the last dimension: (.., I) becomes (.., O) by a weight (O, I) and a bias (O).
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (out, inputs) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    let rows = x.elem_count() / inputs;
    let y = x.reshape((rows, inputs))?.matmul(&weight.t()?)?;
    if let Some(last) = dims.last_mut() {
        *last = out;
    }
    Ok(ops::add_bias(&y, bias)?.reshape(dims)?)
}
