//! Tests of the operations against compositions of candle's, and of their gradients against finite differences.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Result, Tensor, Var};
use cdl_kernels as ops;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Draws standard normal numbers in float32 and converts them to `dtype`.
fn draw(rng: &mut ChaCha8Rng, shape: &[usize], dtype: DType) -> Tensor {
    let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| rng.sample(StandardNormal)).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// Returns `‖a - b‖ / ‖b‖`.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    apart / b.iter().map(|b| b * b).sum::<f64>().sqrt()
}

/// Returns a sum of all outputs with different weights, so that errors of gradients cannot cancel.
fn scalar(y: &Tensor) -> Tensor {
    let count = y.elem_count();
    let weights: Vec<f64> = (0..count).map(|i| ((i * 7 + 3) % 11) as f64 / 11.0 - 0.4).collect();
    let weights = Tensor::from_vec(weights, y.shape(), y.device()).unwrap().to_dtype(y.dtype()).unwrap();
    (y * weights).unwrap().sum_all().unwrap()
}

/// Compares `f` and its gradients for all `inputs` with `composed`, and the gradients with central differences.
fn check(
    name: &str,
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let (ours, theirs) = (f(&tensors).unwrap(), composed(&tensors).unwrap());
    assert!(difference(&ours, &theirs) < 1e-12, "{name}: value differs from the composed operation's");
    let gradients = scalar(&ours).backward().unwrap();
    let composed_gradients = scalar(&theirs).backward().unwrap();
    for (which, input) in inputs.iter().enumerate() {
        let analytic =
            gradients.get(&tensors[which]).unwrap_or_else(|| panic!("{name}: input {which} has no gradient"));
        let composed = composed_gradients.get(&tensors[which]).unwrap();
        assert!(
            difference(analytic, composed) < 1e-11,
            "{name}: gradient of input {which} differs from the composed operation's"
        );
        let analytic = analytic.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let values = input.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for i in (0..values.len()).step_by(1 + values.len() / 40) {
            let at = |step: f64| {
                let mut moved = values.clone();
                moved[i] += step;
                let mut all = inputs.to_vec();
                all[which] = Tensor::from_vec(moved, input.shape(), input.device()).unwrap();
                scalar(&f(&all).unwrap()).to_scalar::<f64>().unwrap()
            };
            let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
            let error = (analytic[i] - numeric).abs();
            assert!(
                error < 1e-7 * (1.0 + numeric.abs()),
                "{name}: gradient of input {which}[{i}] is {}, expected {numeric}",
                analytic[i]
            );
        }
    }
}

#[test]
fn linear() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (w, b) = (draw(&mut rng, &[7, 5], DType::F64), draw(&mut rng, &[7], DType::F64));
    let x = draw(&mut rng, &[2, 3, 5], DType::F64);
    check(
        "linear",
        std::slice::from_ref(&x),
        |x| ops::linear(&x[0], &w, Some(&b)),
        |x| ops::composed::linear(&x[0], &w, Some(&b)),
    );
    check(
        "linear without bias",
        &[x],
        |x| ops::linear(&x[0], &w, None),
        |x| ops::composed::linear(&x[0], &w, None),
    );
}

#[test]
fn layer_norm() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    // 37 is not a multiple of the number of lanes.
    let (gamma, beta) = (draw(&mut rng, &[37], DType::F64), draw(&mut rng, &[37], DType::F64));
    let x = (draw(&mut rng, &[3, 20, 37], DType::F64) + 2.0).unwrap();
    check(
        "layer_norm",
        &[x],
        |x| ops::layer_norm(&x[0], &gamma, &beta, 1e-6),
        |x| ops::composed::layer_norm(&x[0], &gamma, &beta, 1e-6),
    );
}

#[test]
fn gelu() {
    let x = (draw(&mut ChaCha8Rng::seed_from_u64(3), &[4, 50], DType::F64) * 2.0).unwrap();
    check("gelu", &[x], |x| ops::gelu(&x[0]), |x| ops::composed::gelu(&x[0]));
}

#[test]
fn attention() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (batch, tokens, width, heads) = (3, 9, 12, 3);
    let qkv = draw(&mut rng, &[batch, tokens, 3 * width], DType::F64);
    check(
        "attention",
        std::slice::from_ref(&qkv),
        |x| ops::attention(&x[0], None, heads),
        |x| ops::composed::attention(&x[0], None, heads),
    );
    let extra = draw(&mut rng, &[batch, 4, 2 * width], DType::F64);
    check(
        "attention with prompts",
        &[qkv, extra],
        |x| ops::attention(&x[0], Some(&x[1]), heads),
        |x| ops::composed::attention(&x[0], Some(&x[1]), heads),
    );
}

/// Float32 has vectorised code of its own. Some sizes are not multiples of the vector width.
#[test]
fn float32_agrees_with_float64() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let (batch, tokens, width, heads) = (2, 50, 96, 3);
    let x = draw(&mut rng, &[batch, tokens, width], DType::F32);
    let (gamma, beta) = (draw(&mut rng, &[width], DType::F32), draw(&mut rng, &[width], DType::F32));
    let (w, b) = (draw(&mut rng, &[3 * width, width], DType::F32), draw(&mut rng, &[3 * width], DType::F32));
    let extra = draw(&mut rng, &[batch, 7, 2 * width], DType::F32);
    let network = |x: &Tensor, extra: &Tensor, cast: &dyn Fn(&Tensor) -> Tensor| -> Result<Tensor> {
        let x = ops::layer_norm(x, &cast(&gamma), &cast(&beta), 1e-6)?;
        let qkv = (ops::linear(&x, &cast(&w), Some(&cast(&b)))? * 0.1)?;
        ops::gelu(&ops::attention(&qkv, Some(extra), heads)?)
    };
    let run = |x: &Tensor, extra: &Tensor, cast: &dyn Fn(&Tensor) -> Tensor| {
        let (x, extra) = (Var::from_tensor(x).unwrap(), Var::from_tensor(extra).unwrap());
        let y = network(x.as_tensor(), extra.as_tensor(), cast).unwrap();
        let gradients = scalar(&y).backward().unwrap();
        (y, gradients.get(&x).unwrap().clone(), gradients.get(&extra).unwrap().clone())
    };
    let single = run(&x, &extra, &|t| t.clone());
    let double = run(&wide(&x), &wide(&extra), &wide);
    for (what, error) in [
        ("value", difference(&single.0, &double.0)),
        ("input gradient", difference(&single.1, &double.1)),
        ("prompt gradient", difference(&single.2, &double.2)),
    ] {
        assert!(error < 3e-6, "{what}: {error:e}");
    }
}

#[test]
fn frozen_tensors_get_no_gradient_and_no_graph() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let w = draw(&mut rng, &[4, 4], DType::F32);
    let x = Var::from_tensor(&draw(&mut rng, &[3, 4], DType::F32)).unwrap();
    let y = ops::linear(x.as_tensor(), &w, None).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&x).is_some());
    assert!(gradients.get(&w).is_none());
    let y = ops::linear(&x.as_tensor().detach(), &w, None).unwrap();
    assert!(!y.track_op(), "an output without trainable inputs must have no graph");
}

#[test]
fn trainable_weights_of_frozen_operations_are_refused() {
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let (x, w, v) = (ones(&[3, 4]), ones(&[4, 4]), ones(&[4]));
    let trainable = |tensor: &Tensor| Var::from_tensor(tensor).unwrap().into_inner();
    // A weight computed from a variable is trainable too, such as one with a low-rank update.
    let updated = (&w + trainable(&w)).unwrap();
    for (result, name) in [
        (ops::linear(&x, &trainable(&w), None), "`weight`"),
        (ops::linear(&x, &updated, None), "`weight`"),
        (ops::linear(&x, &w, Some(&trainable(&v))), "`bias`"),
        (ops::layer_norm(&x, &trainable(&v), &v, 1e-6), "`gamma`"),
        (ops::layer_norm(&x, &v, &trainable(&v), 1e-6), "`beta`"),
    ] {
        let message = result.expect_err(name).to_string();
        assert!(message.contains(name) && message.contains("no gradient"), "{message}");
    }
    assert!(ops::linear(&x, &trainable(&w).detach(), None).is_ok());
}

#[test]
fn wrong_shapes_are_errors() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    assert!(ops::linear(&zeros(&[2, 3]), &zeros(&[4, 5]), None).is_err());
    assert!(ops::layer_norm(&zeros(&[2, 3]), &zeros(&[4]), &zeros(&[4]), 1e-6).is_err());
    assert!(ops::attention(&zeros(&[1, 2, 10]), None, 2).is_err());
    assert!(ops::attention(&zeros(&[1, 2, 12]), Some(&zeros(&[1, 2, 7])), 2).is_err());
    assert!(ops::attention(&zeros(&[1, 2, 12]), None, 3).is_err());
}
