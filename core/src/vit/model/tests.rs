//! Comparison of the fused and the taped network with candle's graph in float64: values and gradients for all kinds of
//! injections and outputs, on every instruction set that this machine supports.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use candle_core::{D, Var};

use super::*;
use crate::{
    error::Error,
    rng::Rng,
    traits::{BlockInjection, Kv},
    vit::VitSizes,
};
use cdl_kernels::layers::Linear;

/// Image size that gives 50 tokens per image, so that panels and the threads' shares begin and end within images.
const SIDE: usize = 28;
const DEPTH: usize = 4;
const BATCH: usize = 5;

fn vit(width: usize, heads: usize, recompute: bool) -> Vit {
    let sizes = VitSizes { width, depth: DEPTH, patch_size: 4, image_size: SIDE };
    let options = VitOptions {
        heads: Some(heads),
        image_size: SIDE,
        normalization: Normalization { mean: [0.4, 0.5, 0.6], std: [0.3, 0.25, 0.2] },
        checkpoint_blocks: recompute,
        ..VitOptions::default()
    };
    let weights = VitWeights::random("fast", sizes).unwrap();
    Vit::new("vit", &weights, &options, Provenance::of_bytes("fast", b"fast"), &Device::Cpu).unwrap()
}

/// Returns the network with its blocks computed by `blocks`.
fn with_blocks(vit: &Vit, norm: Norm, blocks: Blocks) -> Vit {
    Vit { spec: vit.spec.clone(), blocks, norm, eps: vit.eps, sizes: vit.sizes }
}

fn at_level(vit: &Vit, level: SimdLevel) -> Vit {
    let (stem, blocks) = vit.layers().unwrap();
    let blocks = blocks.into_iter().map(Ok::<_, Error>);
    let blocks = FusedBlocks::new(&stem, blocks, settings(&vit.spec, vit.eps, false), level).unwrap();
    with_blocks(vit, vit.norm.clone(), Blocks::Fused(blocks))
}

/// Returns the network in taped tensor operations, in float64.
fn taped(vit: &Vit, recompute: bool) -> Vit {
    let wide = |t: &Tensor| t.to_dtype(DType::F64);
    let linear = |l: &Linear| l.to_dtype(DType::F64);
    assert!(matches!(vit.blocks, Blocks::Fused(_)), "these sizes suit the fused path");
    let (stem, blocks) = vit.layers().unwrap();
    let stem = stem.map(linear, wide).unwrap();
    let blocks = blocks.iter().map(|block| Ok(block.map(linear, wide)?));
    let settings = settings(&vit.spec, vit.eps, recompute);
    let blocks = TapedBlocks::new::<Error>(&stem, blocks, settings, DType::F64).unwrap();
    let norm = Norm { gamma: wide(&vit.norm.gamma).unwrap(), beta: wide(&vit.norm.beta).unwrap() };
    with_blocks(vit, norm, Blocks::Taped(blocks))
}

/// Returns the keys and values that a block attends to besides its tokens, `(B, rows, 2D)`.
fn attended_rows(injection: &BlockInjection) -> Result<Option<Tensor>> {
    let rows = [&injection.prefix, &injection.suffix].into_iter().flatten().map(|kv| {
        let (_, rows, width) = kv.k()?.dims3()?;
        Ok(Tensor::cat(&[kv.k()?, kv.v()?], D::Minus1)?.broadcast_as((BATCH, rows, 2 * width))?)
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    Ok(if rows.is_empty() { None } else { Some(Tensor::cat(&rows, 1)?) })
}

/// Reference implementation: the network operation by operation, with gradients from candle's graph only.
fn reference(vit: &Vit, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features> {
    let Vit { spec, norm, eps, .. } = vit;
    let (stem, blocks) = vit.layers()?;
    let linear = |x: &Tensor, l: &Linear| cdl_kernels::composed::linear(x, &l.weight, Some(&l.bias));
    let normal = |x: &Tensor, n: &Norm| cdl_kernels::composed::layer_norm(x, &n.gamma, &n.beta, *eps);
    let channel = |v: [f32; 3]| Tensor::new(&v, &Device::Cpu)?.to_dtype(DType::F64)?.reshape((1, 3, 1, 1));
    let pixels = pixels
        .broadcast_sub(&channel(spec.normalization.mean)?)?
        .broadcast_mul(&channel(spec.normalization.std.map(|s| 1.0 / s))?)?;
    let (p, grid) = (spec.patch_size, SIDE / spec.patch_size);
    let patches = pixels
        .reshape(vec![BATCH, 3, grid, p, grid, p])?
        .permute(vec![0, 2, 4, 1, 3, 5])?
        .reshape((BATCH, grid * grid, 3 * p * p))?;
    let patches = linear(&patches, &stem.patch)?.broadcast_add(&stem.positions)?;
    let prefix = stem.prefix.broadcast_as((BATCH, stem.prefix.dim(1)?, spec.width))?;
    let mut x = Tensor::cat(&[prefix, patches], 1)?;
    if let Some(tokens) = &injection.tokens {
        x = Tensor::cat(&[x, tokens.broadcast_as((BATCH, tokens.dim(1)?, spec.width))?], 1)?;
    }
    let mut tapped = BTreeMap::new();
    for (index, block) in blocks.iter().enumerate() {
        let injected = injection.blocks.get(index).cloned().unwrap_or_default();
        let mut qkv = linear(&normal(&x, &block.norm1)?, &block.qkv)?;
        if let Some(added) = &injected.cls_add {
            let (k, v) = (added.k()?, added.v()?);
            let zeros = Tensor::zeros((BATCH, 1, spec.width), DType::F64, &Device::Cpu)?;
            let cls = (qkv.narrow(1, 0, 1)? + Tensor::cat(&[zeros, k, v], D::Minus1)?)?;
            qkv = Tensor::cat(&[cls, qkv.narrow(1, 1, qkv.dim(1)? - 1)?], 1)?;
        }
        let extra = attended_rows(&injected)?;
        let attended = cdl_kernels::composed::attention(&qkv, extra.as_ref(), spec.heads)?;
        x = (x + linear(&attended, &block.proj)?)?;
        let hidden = cdl_kernels::composed::gelu(&linear(&normal(&x, &block.norm2)?, &block.fc1)?)?;
        x = (x + linear(&hidden, &block.fc2)?)?;
        if taps.blocks.contains(&index) {
            tapped.insert(index, x.clone());
        }
    }
    let x = normal(&x, norm)?;
    let tokens = injection.token_count()?;
    Ok(Features {
        cls: x.narrow(1, 0, 1)?.squeeze(1)?,
        tokens: if tokens > 0 { Some(x.narrow(1, x.dim(1)? - tokens, tokens)?) } else { None },
        blocks: tapped,
        norm: taps.norm.then_some(x),
    })
}

/// Test case: shapes of the injected tensors by position.
#[derive(Default)]
struct Case {
    name: &'static str,
    /// Blocks with keys and values, each with the number of rows and whether every image has its own rows.
    prefix: &'static [(usize, usize, bool)],
    suffix: &'static [(usize, usize, bool)],
    cls_add: &'static [usize],
    tokens: usize,
    taps: &'static [usize],
    norm: bool,
    /// Whether blocks use rows of two tensors, one shared by all images and one with rows for each image: disjoint and
    /// overlapping rows, and rows that no block uses.
    parts: bool,
}

fn cases() -> [Case; 9] {
    [
        Case {
            name: "prefix from the first block",
            prefix: &[(0, 3, true), (1, 2, false)],
            ..Case::default()
        },
        Case { name: "prefix from the third block", prefix: &[(2, 4, true)], ..Case::default() },
        Case { name: "suffix in the last block alone", suffix: &[(3, 5, false)], ..Case::default() },
        Case { name: "vectors added to CLS", cls_add: &[0, 1, 2, 3], ..Case::default() },
        Case { name: "a vector added to CLS in the last block", cls_add: &[3], ..Case::default() },
        Case { name: "tokens", tokens: 2, ..Case::default() },
        Case {
            name: "everything, with taps",
            prefix: &[(0, 3, true), (3, 2, true)],
            suffix: &[(1, 1, false), (2, 6, true)],
            cls_add: &[1, 3],
            tokens: 1,
            taps: &[1, 2],
            ..Case::default()
        },
        Case { name: "parts of two tensors", tokens: 1, taps: &[2], parts: true, ..Case::default() },
        Case {
            name: "all tokens read",
            prefix: &[(1, 3, true)],
            tokens: 1,
            taps: &[3],
            norm: true,
            ..Case::default()
        },
    ]
}

type Forward = fn(&Vit, &Tensor, &Injection, &Taps) -> Result<Features>;
type Outcome = (Vec<f64>, Vec<Vec<f64>>);

impl Case {
    /// Returns the values of the trainable tensors: keys and values by position, then tokens.
    fn values(&self, width: usize) -> Vec<Tensor> {
        let mut rng = Rng::new(5);
        let mut draw = |shape: &[usize]| rng.normal(shape, 1.0, &Device::Cpu).unwrap();
        let mut values = Vec::new();
        for &(_, rows, own) in self.prefix.iter().chain(self.suffix) {
            values.extend((0..2).map(|_| draw(&[if own { BATCH } else { 1 }, rows, width])));
        }
        values.extend(self.cls_add.iter().flat_map(|_| 0..2).map(|_| draw(&[BATCH, 1, width])));
        if self.tokens > 0 {
            values.push(draw(&[1, self.tokens, width]));
        }
        if self.parts {
            values.extend([BATCH, 1].map(|images| draw(&[images, 14, width])));
        }
        values
    }

    fn injection(&self, vars: &[Tensor]) -> Injection {
        let mut injection = Injection::none();
        let mut vars = vars.iter().cloned();
        let mut kv = || Kv::new(vars.next().unwrap(), vars.next().unwrap());
        for &(block, ..) in self.prefix {
            injection.block_mut(block).prefix = Some(kv());
        }
        for &(block, ..) in self.suffix {
            injection.block_mut(block).suffix = Some(kv());
        }
        for &block in self.cls_add {
            injection.block_mut(block).cls_add = Some(kv());
        }
        injection.tokens = if self.tokens > 0 { vars.next() } else { None };
        if self.parts {
            let (own, shared) = (vars.next().unwrap(), vars.next().unwrap());
            let part = |all: &Tensor, rows| Some(Kv::rows(all, rows).unwrap());
            injection.block_mut(0).prefix = part(&own, 0..4);
            injection.block_mut(1).prefix = part(&shared, 0..6);
            injection.block_mut(1).suffix = part(&own, 4..6);
            injection.block_mut(2).prefix = part(&own, 2..8);
            injection.block_mut(2).suffix = part(&shared, 8..10);
            injection.block_mut(3).cls_add = part(&own, 10..12);
        }
        injection
    }

    /// Returns all requested outputs in one row, and the gradient of every variable.
    fn run(&self, vit: &Vit, dtype: DType, forward: Forward) -> Outcome {
        let pixels = Rng::new(6).normal(&[BATCH, 3, SIDE, SIDE], 1.0, &Device::Cpu).unwrap();
        let values = self.values(vit.spec.width).into_iter().map(|value| value.to_dtype(dtype).unwrap());
        let vars: Vec<Var> = values.map(|value| Var::from_tensor(&value).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let taps = Taps { blocks: self.taps.iter().copied().collect(), norm: self.norm };
        let features =
            forward(vit, &pixels.to_dtype(dtype).unwrap(), &self.injection(&tensors), &taps).unwrap();
        let outputs = [features.cls].into_iter().chain(features.tokens).chain(features.blocks.into_values());
        let all: Vec<Tensor> = outputs.chain(features.norm).map(|t| t.flatten_all().unwrap()).collect();
        let all = Tensor::cat(&all, 0).unwrap();
        // Every output has a different weight, so that errors of gradients cannot cancel.
        let count = all.elem_count();
        let weights: Vec<f64> = (0..count).map(|i| ((i * 7 + 3) % 11) as f64 / 11.0 - 0.4).collect();
        let weights = Tensor::new(weights, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let gradients = (&all * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let numbers =
            |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        (numbers(&all), vars.iter().map(|var| numbers(gradients.get(var).expect(self.name))).collect())
    }
}

fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    (difference / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Asserts that the errors of values and gradients are below the bounds.
fn assert_near(found: &Outcome, exact: &Outcome, [values, gradients]: [f64; 2], name: &str) {
    let error = relative_error(&found.0, &exact.0);
    assert!(error < values, "{name}: values differ by {error:e}");
    for (index, (found, exact)) in found.1.iter().zip(&exact.1).enumerate() {
        let error = relative_error(found, exact);
        assert!(error < gradients, "{name}: gradient {index} differs by {error:e}");
    }
}

#[test]
fn the_taped_network_gives_the_values_and_gradients_of_the_graph() {
    let vit = vit(48, 3, false);
    for case in cases() {
        let exact = case.run(&taped(&vit, false), DType::F64, reference);
        for recompute in [false, true] {
            let found = case.run(&taped(&vit, recompute), DType::F64, Vit::forward);
            assert_near(&found, &exact, [1e-13, 1e-12], case.name);
        }
    }
}

#[test]
fn a_second_backward_pass_through_one_graph_gives_equal_gradients() {
    let vit = taped(&vit(48, 3, false), false);
    let prompt = Rng::new(3).normal(&[1, 2, 48], 1.0, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    let prompt = Var::from_tensor(&prompt).unwrap();
    let mut injection = Injection::none();
    injection.block_mut(1).prefix = Some(Kv::new(prompt.as_tensor().clone(), prompt.as_tensor().clone()));
    let pixels = Tensor::ones((BATCH, 3, SIDE, SIDE), DType::F64, &Device::Cpu).unwrap();
    let y = vit.forward(&pixels, &injection, &Taps::none()).unwrap().cls.sqr().unwrap().sum_all().unwrap();
    let gradient = || y.backward().unwrap().get(&prompt).unwrap().to_vec3::<f64>().unwrap();
    assert_eq!(gradient(), gradient());
}

#[test]
fn every_level_gives_the_values_and_gradients_of_the_graph() {
    // Heads of 16 channels fill whole registers, heads of 40 channels do not.
    for (width, heads) in [(48, 3), (80, 2)] {
        let network = vit(width, heads, false);
        for case in cases() {
            let exact = case.run(&taped(&network, false), DType::F64, reference);
            for level in SimdLevel::available() {
                let found = case.run(&at_level(&network, level), DType::F32, Vit::forward);
                let name = format!("{}, width {width}, {}", case.name, level.as_str());
                assert_near(&found, &exact, [2e-6, 1e-5], &name);
            }
        }
    }
}

#[test]
fn threads_and_recomputation_change_no_bit() {
    for case in cases() {
        let on = |threads: usize, recompute: bool| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.run(&vit(48, 3, recompute), DType::F32, Vit::forward))
        };
        let one = on(1, false);
        for (threads, recompute) in [(2, false), (3, false), (16, false), (2, true)] {
            assert_eq!(one, on(threads, recompute), "{}: {threads} threads, {recompute}", case.name);
        }
    }
}
