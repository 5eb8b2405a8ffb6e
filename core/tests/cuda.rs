//! Tests on a GPU in every precision: operations are compared with float64 on the CPU, a network and training steps
//! with float32. Without a GPU the tests print that nothing is compared; with `CDL_REQUIRE_GPU` they fail.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use cdl_core::{
    candle_core::{DType, Device, Result, Tensor, Var},
    kernels,
    nn::{Linear, cross_entropy},
    rng::Rng,
    system::device::{self, Precision},
    train::{Optimizer, OptimizerConfig},
    traits::{Backbone, Injection, Kv, NamedVar, Normalization, Provenance, Taps},
    vit::{Vit, VitOptions, VitSizes, VitWeights},
};

const PRECISIONS: [Precision; 3] = [Precision::Float32, Precision::Tf32, Precision::Bf16];

/// Opens the first GPU.
fn gpu(precision: Precision) -> Option<Device> {
    match device::open("cuda", precision) {
        Ok(device) => Some(device),
        Err(error) if std::env::var_os("CDL_REQUIRE_GPU").is_some() => panic!("{error}"),
        Err(error) => {
            println!("not compared: {error}");
            None
        }
    }
}

/// Serialises the tests, because TF32 is a setting of the whole process.
fn run_alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Maximum error of an operation relative to float64, in the norm. float32 sums have errors of about 1e-7; TF32 rounds
/// inputs of products to 2^-11, bf16 all values to 2^-9, and several roundings add up.
fn max_error(precision: Precision) -> f64 {
    match precision {
        Precision::Float32 => 5e-6,
        Precision::Tf32 => 5e-3,
        Precision::Bf16 => 1e-2,
    }
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Returns the norm of the difference, relative to the norm of `exact`.
fn relative_error(found: &Tensor, exact: &Tensor) -> f64 {
    assert_eq!(found.dims(), exact.dims());
    let (found, exact) = (numbers(found), numbers(exact));
    let difference: f64 = found.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b)).sum();
    (difference / exact.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Returns a scalar with a different weight for every output, so that errors of gradients do not cancel.
fn scalar(y: &Tensor) -> Tensor {
    let y = y.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    let weights: Vec<f64> = (0..y.elem_count()).map(|i| ((i * 7 + 3) % 11) as f64 / 11.0 - 0.4).collect();
    (&y * Tensor::from_vec(weights, y.shape(), &Device::Cpu).unwrap()).unwrap().sum_all().unwrap()
}

/// Returns value and gradients of `f` at `inputs`.
fn value_and_gradients(inputs: &[Tensor], f: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let gradients = scalar(&y).backward().unwrap();
    (y, vars.iter().map(|var| gradients.get(var).unwrap().clone()).collect())
}

/// Compares `f` on the GPU, in every precision, with `f` in float64. `frozen` are the shapes of its constants; with
/// `norm`, they are vectors of a layer norm and stay float32.
fn compare(
    name: &str,
    shapes: &[&[usize]],
    frozen: &[&[usize]],
    norm: bool,
    f: impl Fn(&[Tensor], &[Tensor]) -> Result<Tensor>,
) -> Vec<String> {
    let mut failures = Vec::new();
    let mut rng = Rng::new(11);
    let mut draw = |shape: &&[usize]| rng.normal(shape, 1.0, &Device::Cpu).unwrap();
    let inputs: Vec<Tensor> = shapes.iter().map(&mut draw).collect();
    let constants: Vec<Tensor> = frozen.iter().map(&mut draw).collect();
    for precision in PRECISIONS {
        let Some(gpu) = gpu(precision) else { return failures };
        let dtype = precision.dtype();
        // GPU and CPU get the same values, which the precision can represent.
        let rounded = |t: &Tensor, dtype| t.to_dtype(dtype).unwrap();
        let constants_dtype = if norm { DType::F32 } else { dtype };
        let place = |t: &Tensor, dtype| rounded(t, dtype).to_device(&gpu).unwrap();
        let exact = |t: &Tensor, dtype| rounded(t, dtype).to_dtype(DType::F64).unwrap();
        let on_gpu: Vec<Tensor> = inputs.iter().map(|t| place(t, dtype)).collect();
        let constants_on_gpu: Vec<Tensor> = constants.iter().map(|t| place(t, constants_dtype)).collect();
        let on_cpu: Vec<Tensor> = inputs.iter().map(|t| exact(t, dtype)).collect();
        let constants_on_cpu: Vec<Tensor> = constants.iter().map(|t| exact(t, constants_dtype)).collect();
        let (found, found_gradients) = value_and_gradients(&on_gpu, &|x| f(x, &constants_on_gpu));
        let (value, gradients) = value_and_gradients(&on_cpu, &|x| f(x, &constants_on_cpu));
        let mut errors = vec![("value".to_string(), relative_error(&found, &value))];
        for (index, (found, exact)) in found_gradients.iter().zip(&gradients).enumerate() {
            errors.push((format!("gradient {index}"), relative_error(found, exact)));
        }
        for (what, error) in errors {
            println!("{name:<34} {:<8} {what:<10} {error:.1e}", precision.as_str());
            if error.is_nan() || error >= max_error(precision) {
                failures.push(format!("{name}, {}: {what} {error:e}", precision.as_str()));
            }
        }
    }
    failures
}

#[test]
fn every_operation_matches_the_cpu() {
    let _guard = run_alone();
    // All errors are printed before the test fails.
    let mut failures = Vec::new();
    for shape in [&[3usize, 5, 7][..], &[2, 197, 768]] {
        failures
            .extend(compare(&format!("gelu {shape:?}"), &[shape], &[], false, |x, _| kernels::gelu(&x[0])));
    }
    for width in [7, 48, 192, 768, 1024, 1280] {
        let (name, frozen) = (format!("layer norm {width}"), [&[width][..], &[width]]);
        failures.extend(compare(&name, &[&[2, 33, width]], &frozen, true, |x, frozen| {
            kernels::layer_norm(&x[0], &frozen[0], &frozen[1], 1e-6)
        }));
    }
    for (inputs, outputs) in [(7, 5), (192, 576), (768, 3072)] {
        let (name, x) = (format!("linear {inputs} to {outputs}"), [&[3, 50, inputs][..]]);
        let frozen = [&[outputs, inputs][..], &[outputs]];
        failures.extend(compare(&name, &x, &frozen, false, |x, frozen| {
            kernels::linear(&x[0], &frozen[0], Some(&frozen[1]))
        }));
        let name = format!("linear {inputs} to {outputs}, no bias, one row");
        failures.extend(compare(&name, &[&[1, inputs]], &frozen, false, |x, frozen| {
            kernels::linear(&x[0], &frozen[0], None)
        }));
        let name = format!("linear {inputs} to {outputs}, part of a tensor");
        failures.extend(compare(&name, &x, &frozen, false, |x, frozen| {
            kernels::linear(&x[0].narrow(0, 1, 2)?, &frozen[0], Some(&frozen[1]))
        }));
    }
    for (tokens, heads, head, extra) in
        [(1, 1, 8, 0), (50, 3, 16, 5), (65, 2, 80, 10), (197, 12, 64, 0), (202, 6, 64, 20), (33, 2, 128, 1)]
    {
        let width = heads * head;
        let name = format!("attention {tokens}+{extra}, {heads}x{head}");
        let qkv: &[usize] = &[2, tokens, 3 * width];
        failures.extend(match extra {
            0 => compare(&name, &[qkv], &[], false, |x, _| kernels::attention(&x[0], None, heads)),
            _ => compare(&name, &[qkv, &[2, extra, 2 * width]], &[], false, |x, _| {
                kernels::attention(&x[0], Some(&x[1]), heads)
            }),
        });
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Losses and prompts are float32 in every precision.
#[test]
fn row_operations_match_the_cpu() {
    let _guard = run_alone();
    let Some(gpu) = gpu(Precision::Float32) else { return };
    type Operation = fn(&Tensor) -> Result<Tensor>;
    let operations: [(&str, Operation); 4] = [
        ("log-softmax", kernels::log_softmax),
        ("softmax", kernels::softmax),
        ("l2_normalize", kernels::l2_normalize),
        ("l2_normalize of columns", |x| kernels::l2_normalize(&x.t()?)),
    ];
    for width in [1, 20, 33, 200] {
        let x = Rng::new(2).normal(&[5, width], 3.0, &Device::Cpu).unwrap();
        for (name, operation) in operations {
            let on_cpu = value_and_gradients(&[x.to_dtype(DType::F64).unwrap()], &|x| operation(&x[0]));
            let on_gpu = value_and_gradients(&[x.to_device(&gpu).unwrap()], &|x| operation(&x[0]));
            for (what, found, exact) in
                [("value", &on_gpu.0, &on_cpu.0), ("gradient", &on_gpu.1[0], &on_cpu.1[0])]
            {
                let (found, exact) = (numbers(found), numbers(exact));
                assert_eq!(found.len(), exact.len());
                // Compare absolute errors, because some values are 0.
                let error = found.iter().zip(&exact).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
                println!("{name} {width}: {what} {error:.1e}");
                assert!(error < 5e-6, "{name} {width}: {what} {error:e}");
                assert!(found.iter().all(|x| x.is_finite()), "{name} {width}: {what}");
            }
        }
    }
}

const SIDE: usize = 96;
const BATCH: usize = 4;

/// Creates a network of six blocks with random weights.
fn network(precision: Precision, recompute: bool, device: &Device) -> Vit {
    let sizes = VitSizes { width: 192, depth: 6, patch_size: 16, image_size: SIDE };
    let options = VitOptions {
        heads: Some(3),
        depth: None,
        image_size: SIDE,
        normalization: Normalization { mean: [0.4, 0.5, 0.6], std: [0.3, 0.25, 0.2] },
        checkpoint_blocks: recompute,
        precision,
    };
    let weights = VitWeights::random("gpu", sizes).unwrap();
    Vit::new("vit", &weights, &options, Provenance::of_bytes("gpu", b"gpu"), device).unwrap()
}

/// Returns CLS, injected tokens and a tapped block, and the gradients of all kinds of injection.
fn pass(vit: &Vit, device: &Device) -> (Vec<Tensor>, Vec<Tensor>) {
    let mut rng = Rng::new(4);
    let pixels = rng.uniform(&[BATCH, 3, SIDE, SIDE], 0.0, 1.0, &Device::Cpu).unwrap();
    let pixels = pixels.to_device(device).unwrap();
    let mut var = |shape: &[usize]| {
        let value = rng.normal(shape, 1.0, &Device::Cpu).unwrap().to_device(device).unwrap();
        Var::from_tensor(&value).unwrap()
    };
    let vars = [
        var(&[BATCH, 5, 192]),
        var(&[1, 5, 192]),
        var(&[1, 3, 192]),
        var(&[BATCH, 3, 192]),
        var(&[BATCH, 1, 192]),
        var(&[BATCH, 1, 192]),
        var(&[1, 2, 192]),
        var(&[1, 6, 192]),
        var(&[BATCH, 4, 192]),
    ];
    let t = |index: usize| vars[index].as_tensor().clone();
    let mut injection = Injection::none();
    injection.block_mut(0).prefix = Some(Kv::new(t(0), t(1).broadcast_as((BATCH, 5, 192)).unwrap()));
    injection.block_mut(2).suffix = Some(Kv::new(t(2).broadcast_as((BATCH, 3, 192)).unwrap(), t(3)));
    injection.block_mut(4).cls_add = Some(Kv::new(t(4), t(5)));
    injection.tokens = Some(t(6));
    // Parts of one tensor, two rows of which are not used.
    injection.block_mut(1).suffix = Some(Kv::rows(&t(7), 0..2).unwrap());
    injection.block_mut(3).prefix = Some(Kv::rows(&t(7), 2..4).unwrap());
    injection.block_mut(5).prefix = Some(Kv::halves(&t(8)).unwrap());
    let features = vit.forward(&pixels, &injection, &Taps::block(3)).unwrap();
    let outputs = vec![features.cls, features.tokens.unwrap(), features.blocks[&3].clone()];
    let total = outputs.iter().map(scalar).reduce(|a, b| (a + b).unwrap()).unwrap();
    let gradients = total.backward().unwrap();
    (outputs, vars.iter().map(|var| gradients.get(var).unwrap().clone()).collect())
}

#[test]
fn a_network_matches_the_cpu() {
    let _guard = run_alone();
    let (values, gradients) = pass(&network(Precision::Float32, false, &Device::Cpu), &Device::Cpu);
    let mut failures = Vec::new();
    for (precision, allowed) in [(Precision::Float32, 5e-5), (Precision::Tf32, 1e-2), (Precision::Bf16, 8e-2)]
    {
        let Some(gpu) = gpu(precision) else { return };
        for recompute in [false, true] {
            let (found, found_gradients) = pass(&network(precision, recompute, &gpu), &gpu);
            let found = found.iter().chain(&found_gradients);
            for (index, (found, exact)) in found.zip(values.iter().chain(&gradients)).enumerate() {
                let error = relative_error(found, exact);
                println!(
                    "network {:<8} recompute {recompute:<5} tensor {index} {error:.1e}",
                    precision.as_str()
                );
                if error.is_nan() || error >= allowed {
                    failures.push(format!("{}: tensor {index} {error:e}", precision.as_str()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Returns the variables after three steps with a head on the CLS token, a slice of all tokens.
fn trained(device: &Device) -> Vec<Tensor> {
    let vit = network(Precision::Float32, false, device);
    let mut rng = Rng::new(8);
    let pixels = rng.uniform(&[BATCH, 3, SIDE, SIDE], 0.0, 1.0, &Device::Cpu).unwrap();
    let pixels =
        device::upload(pixels.flatten_all().unwrap().to_vec1().unwrap(), pixels.dims(), device).unwrap();
    let labels = Tensor::new(&[0u32, 4, 2, 1], device).unwrap();
    let prompts = rng.normal(&[1, 6, 192], 1.0, &Device::Cpu).unwrap().to_device(device).unwrap();
    let prompts = NamedVar::new("prompts", &prompts).unwrap();
    let head = Linear::new("head", 192, 5, &mut rng, device).unwrap();
    let vars: Vec<NamedVar> = std::iter::once(prompts.clone()).chain(head.trainable()).collect();
    let mut optimizer = Optimizer::new(&OptimizerConfig::default(), vars.clone()).unwrap();
    for _ in 0..3 {
        let mut injection = Injection::none();
        injection.block_mut(1).prefix = Some(Kv::halves(prompts.tensor()).unwrap());
        injection.tokens = Some(prompts.tensor().narrow(1, 0, 2).unwrap());
        let features = vit.forward(&pixels, &injection, &Taps { blocks: [].into(), norm: true }).unwrap();
        let loss = cross_entropy(&head.forward(&features.cls).unwrap(), &labels, &(0..5)).unwrap();
        optimizer.step(&loss.backward().unwrap()).unwrap();
    }
    vars.iter().map(|var| var.tensor().detach()).collect()
}

#[test]
fn parameters_after_training_steps_match_the_cpu() {
    let _guard = run_alone();
    let Some(gpu) = gpu(Precision::Float32) else { return };
    for (index, (found, exact)) in trained(&gpu).iter().zip(trained(&Device::Cpu)).enumerate() {
        let error = relative_error(found, &exact);
        println!("after three steps: tensor {index} {error:.1e}");
        assert!(error < 1e-3, "tensor {index} {error:e}");
    }
}

#[test]
fn repeated_passes_give_the_same_bytes() {
    let _guard = run_alone();
    for precision in PRECISIONS {
        let Some(gpu) = gpu(precision) else { return };
        let vit = network(precision, false, &gpu);
        let bytes = || -> Vec<Vec<f64>> {
            let (values, gradients) = pass(&vit, &gpu);
            values.iter().chain(&gradients).map(numbers).collect()
        };
        assert_eq!(bytes(), bytes(), "{}", precision.as_str());
    }
}

#[test]
fn memory_on_the_gpu_does_not_grow() {
    let _guard = run_alone();
    let Some(gpu) = gpu(Precision::Float32) else { return };
    let vit = network(Precision::Float32, false, &gpu);
    let mut peaks = Vec::new();
    for _ in 0..30 {
        device::reset_peak(&gpu);
        pass(&vit, &gpu);
        gpu.synchronize().unwrap();
        peaks.push(device::peak_bytes(&gpu).unwrap());
    }
    assert_eq!(peaks[4], peaks[29], "{peaks:?}");
}

/// Calls `make` on another thread and `look` with its result while that thread is still running, because the end of a
/// thread waits for all pending work.
fn on_another_thread<T: Send, R>(make: impl FnOnce() -> T + Send, look: impl FnOnce(T) -> R) -> R {
    let (made, arrived) = mpsc::channel();
    let (finished, until) = mpsc::channel::<()>();
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            made.send(make()).unwrap();
            let _ = until.recv();
        });
        let seen = look(arrived.recv().unwrap());
        drop(finished);
        seen
    })
}

/// Uploads two buffers of the same size: the second reuses the pinned memory while the first copy may be pending.
#[test]
fn uploads_from_another_thread_are_complete() {
    let _guard = run_alone();
    let Some(gpu) = gpu(Precision::Float32) else { return };
    for size in [7usize, 100_000, 13] {
        let values = |first: f32| -> Vec<f32> { (0..size).map(|i| first + i as f32 * 0.5).collect() };
        let send = || [1.0, 2.0].map(|first| device::upload(values(first), size, &gpu).unwrap());
        let arrived =
            on_another_thread(send, |buffers| buffers.map(|values| values.to_vec1::<f32>().unwrap()));
        assert_eq!(arrived, [values(1.0), values(2.0)]);
    }
}

#[test]
fn a_network_created_on_another_thread_is_complete() {
    let _guard = run_alone();
    let Some(gpu) = gpu(Precision::Float32) else { return };
    let made = || network(Precision::Float32, false, &gpu);
    let numbers_of = |vit: Vit| {
        let (values, gradients) = pass(&vit, &gpu);
        values.iter().chain(&gradients).map(numbers).collect::<Vec<_>>()
    };
    assert_eq!(on_another_thread(made, numbers_of), numbers_of(made()));
}
