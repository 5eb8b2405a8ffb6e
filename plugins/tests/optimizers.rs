//! Comparison of optimisers with PyTorch, step by step in float64, and after a restore between steps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use cdl_core::{
    candle_core::{Device, Tensor},
    error::Result,
    train::{Optimizer, OptimizerConfig},
    traits::{NamedVar, StateDict},
};
use serde::Deserialize;

/// Eight steps of an optimiser, recorded by `fixtures/golden/make.py`.
#[derive(Deserialize)]
struct Recorded {
    optimizer: String,
    settings: serde_json::Value,
    start: Vec<f64>,
    gradients: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

fn recorded() -> Vec<Recorded> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/optimizers.json");
    serde_json::from_slice(&std::fs::read(file).expect("fixture")).expect("JSON")
}

/// Converts PyTorch's settings to an optimiser's configuration.
fn config(recorded: &Recorded) -> OptimizerConfig {
    let number = |key: &str| recorded.settings[key].as_f64();
    let mut settings = serde_json::Map::new();
    let amsgrad = recorded.settings["amsgrad"].as_bool().unwrap_or(false);
    let name = if amsgrad { "amsgrad".into() } else { recorded.optimizer.to_lowercase() };
    settings.insert("name".into(), name.into());
    let beta = |index: usize| recorded.settings["betas"][index].as_f64();
    for (key, value) in [
        ("lr", number("lr")),
        ("momentum", number("momentum").or(beta(0))),
        ("beta2", beta(1)),
        ("alpha", number("alpha")),
        ("eps", number("eps")),
        ("weight_decay", number("weight_decay")),
    ] {
        settings.extend(value.map(|value| (key.to_string(), value.into())));
    }
    serde_json::from_value(settings.into()).expect("optimiser settings")
}

fn variable(recorded: &Recorded) -> Result<NamedVar> {
    NamedVar::new("p", &Tensor::new(recorded.start.as_slice(), &Device::Cpu)?)
}

/// Takes a step with the given gradient, the gradient of `g · p`.
fn step(optimizer: &mut Optimizer, var: &NamedVar, gradient: &[f64]) -> Result<()> {
    let loss = (var.tensor() * Tensor::new(gradient, &Device::Cpu)?)?.sum_all()?;
    optimizer.step(&loss.backward()?)
}

#[test]
fn every_step_equals_pytorch() -> Result<()> {
    let recorded = recorded();
    assert_eq!(recorded.len(), 5);
    for case in &recorded {
        let var = variable(case)?;
        let mut optimizer = Optimizer::new(&config(case), vec![var.clone()])?;
        for (number, (gradient, expected)) in case.gradients.iter().zip(&case.values).enumerate() {
            step(&mut optimizer, &var, gradient)?;
            for (ours, expected) in var.tensor().to_vec1::<f64>()?.iter().zip(expected) {
                let error = (ours - expected).abs();
                assert!(
                    error < 1e-12 * expected.abs().max(1.0),
                    "{} {}, step {number}: error {error:e}",
                    case.optimizer,
                    case.settings
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_restored_optimiser_continues_like_the_saved_one() -> Result<()> {
    for case in &recorded() {
        let var = variable(case)?;
        let mut optimizer = Optimizer::new(&config(case), vec![var.clone()])?;
        for gradient in &case.gradients[..4] {
            step(&mut optimizer, &var, gradient)?;
        }
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("optimizer.safetensors");
        std::fs::write(&file, optimizer.state()?.to_bytes()?).expect("file");

        let again = NamedVar::new("p", &var.tensor().detach().copy()?)?;
        let mut restored = Optimizer::new(&config(case), vec![again.clone()])?;
        restored.restore(&StateDict::read(&file, &Device::Cpu)?)?;
        for gradient in &case.gradients[4..] {
            step(&mut optimizer, &var, gradient)?;
            step(&mut restored, &again, gradient)?;
        }
        assert_eq!(var.tensor().to_vec1::<f64>()?, again.tensor().to_vec1::<f64>()?, "{}", case.optimizer);
        let other = NamedVar::new("q", again.tensor())?;
        let refused = Optimizer::new(&config(case), vec![other])?.restore(&optimizer.state()?);
        assert!(refused.is_err_and(|e| e.to_string().contains("optimizer, q")));
    }
    Ok(())
}
