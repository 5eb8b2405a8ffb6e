//! For every registered learner with every registered distiller: what a phase trains gets a gradient, and everything
//! else is byte-identical afterwards. And the built-in plugins are all there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use cdl_core::{
    Error, Event, Optimizer, Result, Role, StateDict, TaskStream,
    candle_core::Tensor,
    registry::{self, Kind},
};

fn bytes(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

fn state_bytes(state: &StateDict) -> Result<BTreeMap<String, Vec<u32>>> {
    state.iter().map(|(name, tensor)| Ok((name.to_string(), bytes(tensor)?))).collect()
}

fn names(kind: Kind) -> Result<Vec<&'static str>> {
    cdl_plugins::link();
    Ok(registry::entries(kind)?.iter().map(|entry| entry.name).collect())
}

#[test]
fn every_trainable_tensor_gets_a_gradient_and_every_frozen_one_stays() -> Result<()> {
    for learner in names(Kind::Learner)? {
        for distiller in names(Kind::Distiller)? {
            check(learner, distiller)?;
        }
    }
    Ok(())
}

fn check(learner: &str, distiller: &str) -> Result<()> {
    let what = format!("{learner} x {distiller}");
    let stream = common::Noise::new(4);
    let mut trainer = common::trainer(learner, distiller)?;
    let frozen = |trainer: &cdl_core::Trainer| -> Result<Vec<Vec<u32>>> {
        let both = [&trainer.teacher, &trainer.student];
        both.iter().flat_map(|network| network.backbone.weights()).map(|(_, tensor)| bytes(&tensor)).collect()
    };
    let before = frozen(&trainer)?;
    for task in stream.tasks() {
        trainer.begin_task(task)?;
        for (role, other) in [(Role::Teacher, Role::Student), (Role::Student, Role::Teacher)] {
            let others = state_bytes(&trainer.state(other)?)?;
            let own = state_bytes(&trainer.state(role)?)?;
            let vars = trainer.trainable(role);
            let distinct: BTreeSet<_> = vars.iter().map(|var| var.name.clone()).collect();
            assert_eq!(distinct.len(), vars.len(), "{what}: two tensors of one name");
            let mut reached = BTreeSet::new();
            let mut optimizer = Optimizer::new(&trainer.settings.optimizer, vars.clone())?;
            for step in 0..4 {
                let loss = trainer.loss(role, task, &stream.batch(task.index, step)?)?;
                let gradients = loss.total.backward()?;
                for var in &vars {
                    let Some(gradient) = gradients.get(var.tensor()) else { continue };
                    let size = gradient.abs()?.sum_all()?.to_scalar::<f32>()?;
                    assert!(size.is_finite(), "{what}: gradient of {}", var.name);
                    if size > 0.0 {
                        reached.insert(var.name.clone());
                    }
                }
                optimizer.step(&gradients)?;
            }
            let missed: Vec<_> = distinct.difference(&reached).collect();
            assert!(missed.is_empty(), "{what}, {}: no gradient for {missed:?}", role.as_str());
            assert_eq!(state_bytes(&trainer.state(other)?)?, others, "{what}: the other network's state");
            for (name, now) in state_bytes(&trainer.state(role)?)? {
                assert_eq!(own[&name] != now, distinct.contains(&name), "{what}: change of {name}");
            }
        }
        trainer.end_task(task)?;
    }
    assert!(frozen(&trainer)? == before, "{what}: frozen weights changed");
    Ok(())
}

/// CODA-Prompt's components of earlier tasks share a tensor with the trained ones, but must not move.
#[test]
fn past_components_are_byte_identical_after_a_later_task() -> Result<()> {
    let stream = common::Noise::new(3);
    let mut trainer = common::trainer("coda_prompt", "kd")?;
    let mut first = None;
    trainer.run(&stream, &mut |event| {
        if let Event::Task { trainer, .. } = event {
            let state = trainer.state(Role::Student)?;
            let past = |name: &str| -> Result<Vec<u32>> {
                let tensor = state.get(name).ok_or_else(|| Error::Tasks(name.into()))?;
                bytes(&tensor.narrow(0, 0, 4)?.contiguous()?)
            };
            let now = [past("prompt.e_p_0")?, past("prompt.e_k_2")?, past("prompt.e_a_4")?];
            match &first {
                None => first = Some(now),
                Some(before) => assert!(*before == now, "components of the first task moved in the second"),
            }
        }
        Ok(())
    })?;
    assert!(first.is_some());
    Ok(())
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_finished_tasks() -> Result<()> {
    let stream = common::Noise::new(2).poisoned_from(1);
    let mut trainer = common::trainer("coda_prompt", "kd_prompts")?;
    let mut finished = 0;
    let error = trainer.run(&stream, &mut |event| {
        finished += usize::from(matches!(event, Event::Task { .. }));
        Ok(())
    });
    assert_eq!(finished, 1);
    let Err(Error::NotFinite { what, task, step, .. }) = error else { panic!("{error:?}") };
    assert_eq!((what.as_str(), task, step), ("ce", 2, 1));
    Ok(())
}

#[test]
fn saved_state_gives_the_same_predictions() -> Result<()> {
    let stream = common::Noise::new(3);
    for learner in names(Kind::Learner)? {
        for distiller in names(Kind::Distiller)? {
            let mut trained = common::trainer(learner, distiller)?;
            trained.run(&stream, &mut |_| Ok(()))?;
            let mut restored = common::trainer(learner, distiller)?;
            let task = &stream.tasks()[1];
            for role in [Role::Teacher, Role::Student] {
                let file = trained.state(role)?.to_bytes()?;
                let folder = tempfile::tempdir().expect("temporary folder");
                let path = folder.path().join("model.safetensors");
                std::fs::write(&path, file).expect("model file");
                let state = StateDict::read(&path, &cdl_core::candle_core::Device::Cpu)?;
                restored.restore(role, task, &state)?;
            }
            let pixels = stream.batch(1, 77)?.pixels;
            let (a, b) = (trained.predict(&pixels)?, restored.predict(&pixels)?);
            assert!(bytes(&a.0)? == bytes(&b.0)? && bytes(&a.1)? == bytes(&b.1)?, "{learner} x {distiller}");
        }
    }
    Ok(())
}

/// A linker that drops the plugins would leave the listing empty.
#[test]
fn all_built_in_plugins_are_registered() -> Result<()> {
    assert_eq!(names(Kind::Backbone)?, ["vit"]);
    assert_eq!(names(Kind::Learner)?, ["coda_prompt"]);
    assert_eq!(names(Kind::Distiller)?, ["kd", "kd_prompts", "none"]);
    assert_eq!(names(Kind::Stream)?, ["embedded", "idx", "image_folder"]);
    Ok(())
}
