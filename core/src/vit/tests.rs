//! The fast network against the composed one in float64: values and gradients, for everything that can be injected and
//! read, on every set of instructions that this machine has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use candle_core::Var;

use super::*;
use crate::{Rng, ops::fused::Level};

const SIDE: usize = 28;
const DEPTH: usize = 4;
/// With 50 tokens an image, panels and shares begin and end in the middle of images.
const BATCH: usize = 5;

fn vit(width: usize, heads: usize, recompute: bool) -> Vit {
    let sizes = VitSizes { width, depth: DEPTH, patch_size: 4, image_size: SIDE };
    let options = VitOptions {
        heads: Some(heads),
        depth: None,
        image_size: SIDE,
        normalization: Normalization { mean: [0.4, 0.5, 0.6], std: [0.3, 0.25, 0.2] },
        checkpoint_blocks: recompute,
    };
    let weights = VitWeights::random("fast", sizes).unwrap();
    Vit::new("vit", &weights, &options, Provenance::of_bytes("fast", b"fast"), &Device::Cpu).unwrap()
}

fn at_level(mut vit: Vit, level: Level) -> Vit {
    vit.body = match vit.body {
        Body::Fast(fast) => Body::Fast(fast.with_level(level)),
        Body::Composed(_) => panic!("these sizes suit the fast path"),
    };
    vit
}

/// The same network composed of operations in float64.
fn reference(vit: &Vit) -> Vit {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let linear = |l: &Linear| Linear { weight: wide(&l.weight), bias: wide(&l.bias) };
    let norm = |n: &Norm| Norm { gamma: wide(&n.gamma), beta: wide(&n.beta) };
    let Body::Fast(fast) = &vit.body else { panic!("these sizes suit the fast path") };
    let (stem, blocks) = fast.layers().unwrap();
    let stem =
        Stem { patch: linear(&stem.patch), prefix: wide(&stem.prefix), positions: wide(&stem.positions) };
    let blocks = blocks.iter().map(|b| Block {
        norm1: norm(&b.norm1),
        qkv: linear(&b.qkv),
        proj: linear(&b.proj),
        norm2: norm(&b.norm2),
        fc1: linear(&b.fc1),
        fc2: linear(&b.fc2),
    });
    let body = Composed::new(stem, blocks.collect(), &vit.spec, vit.eps).unwrap();
    Vit {
        spec: vit.spec.clone(),
        body: Body::Composed(body),
        norm: norm(&vit.norm),
        eps: vit.eps,
        sizes: vit.sizes,
    }
}

/// What is injected: shapes by place.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// Blocks with keys and values, rows, and whether every image has its own.
    prefix: &'static [(usize, usize, bool)],
    suffix: &'static [(usize, usize, bool)],
    cls_add: &'static [usize],
    tokens: usize,
    taps: &'static [usize],
    norm: bool,
}

const NOTHING: Case =
    Case { name: "", prefix: &[], suffix: &[], cls_add: &[], tokens: 0, taps: &[], norm: false };

const CASES: [Case; 8] = [
    Case { name: "prefix from the first block", prefix: &[(0, 3, true), (1, 2, false)], ..NOTHING },
    Case { name: "prefix from the third block", prefix: &[(2, 4, true)], ..NOTHING },
    Case { name: "suffix in the last block alone", suffix: &[(3, 5, false)], ..NOTHING },
    Case { name: "vectors on CLS", cls_add: &[0, 1, 2, 3], ..NOTHING },
    Case { name: "a vector on CLS of the last block", cls_add: &[3], ..NOTHING },
    Case { name: "tokens", tokens: 2, ..NOTHING },
    Case {
        name: "everything, with taps",
        prefix: &[(0, 3, true), (3, 2, true)],
        suffix: &[(1, 1, false), (2, 6, true)],
        cls_add: &[1, 3],
        tokens: 1,
        taps: &[1, 2],
        norm: false,
    },
    Case { name: "all tokens read", prefix: &[(1, 3, true)], tokens: 1, taps: &[3], norm: true, ..NOTHING },
];

impl Case {
    /// Trainable tensors in order: keys and values by place, then tokens.
    fn vars(&self, width: usize) -> Vec<Var> {
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
        values.iter().map(|value| Var::from_tensor(value).unwrap()).collect()
    }

    fn injection(&self, vars: &[Tensor]) -> Injection {
        let mut injection = Injection::none();
        let mut vars = vars.iter().cloned();
        let mut kv = || Kv { k: vars.next().unwrap(), v: vars.next().unwrap() };
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
        injection
    }

    /// All outputs asked for, in one row, and the gradient of every variable.
    fn run(&self, vit: &Vit, dtype: DType) -> (Vec<f64>, Vec<Vec<f64>>) {
        let pixels = Rng::new(6).normal(&[BATCH, 3, SIDE, SIDE], 1.0, &Device::Cpu).unwrap();
        let vars: Vec<Var> = self
            .vars(vit.spec.width)
            .iter()
            .map(|var| Var::from_tensor(&var.as_tensor().to_dtype(dtype).unwrap()).unwrap())
            .collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let taps = Taps { blocks: self.taps.iter().copied().collect(), norm: self.norm };
        let features =
            vit.forward(&pixels.to_dtype(dtype).unwrap(), &self.injection(&tensors), &taps).unwrap();
        let mut outputs = vec![features.cls];
        outputs.extend(features.tokens);
        outputs.extend(features.blocks.into_values());
        outputs.extend(features.norm);
        let all: Vec<Tensor> = outputs.iter().map(|t| t.flatten_all().unwrap()).collect();
        let all = Tensor::cat(&all, 0).unwrap();
        // Every output has its own weight, so that no gradient can hide behind another.
        let count = all.elem_count();
        let weights: Vec<f64> = (0..count).map(|i| ((i * 7 + 3) % 11) as f64 / 11.0 - 0.4).collect();
        let weights = Tensor::new(weights, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let gradients = (&all * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let numbers =
            |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        (numbers(&all), vars.iter().map(|var| numbers(gradients.get(var).expect(self.name))).collect())
    }
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    (difference / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn every_level_gives_the_values_and_gradients_of_the_composed_network() {
    // Heads of 16 and of 40 channels: whole registers, and a part of one.
    for (width, heads) in [(48, 3), (80, 2)] {
        let reference = reference(&vit(width, heads, false));
        for case in CASES {
            let (values, gradients) = case.run(&reference, DType::F64);
            for level in Level::available() {
                let (found, found_gradients) =
                    case.run(&at_level(vit(width, heads, false), level), DType::F32);
                let name = format!("{}, width {width}, {}", case.name, level.as_str());
                let error = apart(&found, &values);
                assert!(error < 2e-6, "{name}: values are apart by {error:e}");
                for (index, (found, exact)) in found_gradients.iter().zip(&gradients).enumerate() {
                    let error = apart(found, exact);
                    assert!(error < 1e-5, "{name}: gradient {index} is apart by {error:e}");
                }
            }
        }
    }
}

#[test]
fn threads_and_recomputation_change_no_bit() {
    for case in CASES {
        let on = |threads: usize, recompute: bool| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.run(&vit(48, 3, recompute), DType::F32))
        };
        let one = on(1, false);
        for (threads, recompute) in [(2, false), (3, false), (16, false), (2, true)] {
            assert_eq!(one, on(threads, recompute), "{}: {threads} threads, {recompute}", case.name);
        }
    }
}
