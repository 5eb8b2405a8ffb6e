//! Every registered learner with every registered distiller: what a phase trains gets a gradient, and everything else is
//! byte-identical afterwards; saved models predict the same. And the built-in plugins are all there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use cdl_core::{
    Error, Event, Optimizer, Result, Role, StateDict, TaskStream, Trainer,
    candle_core::{Device, Tensor},
    registry::{self, Kind},
    testing::{Lab, Noise, Shape},
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

fn pairs() -> Result<Vec<(&'static str, &'static str)>> {
    let distillers = names(Kind::Distiller)?;
    Ok(names(Kind::Learner)?
        .into_iter()
        .flat_map(|learner| distillers.iter().map(move |d| (learner, *d)))
        .collect())
}

fn trainer(learner: &str, distiller: &str) -> Result<Trainer> {
    Lab::new(1)?.trainer_of(learner, distiller)
}

#[test]
fn every_trainable_tensor_gets_a_gradient_and_every_frozen_one_stays() -> Result<()> {
    for (learner, distiller) in pairs()? {
        check(learner, distiller)?;
    }
    Ok(())
}

fn check(learner: &str, distiller: &str) -> Result<()> {
    let what = format!("{learner} x {distiller}");
    let stream = Noise::new(4);
    let mut trainer = trainer(learner, distiller)?;
    let frozen = |trainer: &Trainer| -> Result<Vec<Vec<u32>>> {
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

/// Depths other than published, among them a teacher of 24 blocks with a student of 12, a teacher with fewer blocks than
/// its student and networks too shallow for all prompts, and a student that cuts the image into other patches.
#[test]
fn networks_of_any_sizes_go_together() -> Result<()> {
    let stream = Noise::new(1);
    for (teacher, student, patch) in [(24, 12, 4), (3, 6, 4), (4, 4, 4), (2, 1, 4), (7, 6, 8), (6, 6, 2)] {
        let student = Shape { depth: student, patch, ..Shape::STUDENT };
        let lab = Lab::with_shapes(1, Shape { depth: teacher, ..Shape::TEACHER }, student)?;
        for (learner, distiller) in pairs()? {
            let what = format!("{learner} x {distiller}, {teacher} and {student:?}");
            let mut trainer = lab.trainer_of(learner, distiller)?;
            let task = &stream.tasks()[0];
            trainer.begin_task(task)?;
            for role in [Role::Teacher, Role::Student] {
                let loss = trainer.loss(role, task, &stream.batch(0, 0)?)?;
                assert!(loss.total.to_scalar::<f32>()?.is_finite(), "{what}");
                let gradients = loss.total.backward()?;
                for var in trainer.trainable(role) {
                    assert!(gradients.get(var.tensor()).is_some(), "{what}: no gradient for {}", var.name);
                }
                assert_eq!(trainer.predict(role, &stream.batch(0, 1)?.pixels)?.dims(), [4, 6], "{what}");
            }
        }
    }
    Ok(())
}

/// CODA-Prompt's components of earlier tasks share a tensor with the trained ones, but must not move.
#[test]
fn past_components_are_byte_identical_after_a_later_task() -> Result<()> {
    cdl_plugins::link();
    let stream = Noise::new(3);
    let mut trainer = trainer("coda_prompt", "kd")?;
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
    for (learner, distiller) in pairs()? {
        let stream = Noise::new(2).poisoned_from(1);
        let mut trainer = trainer(learner, distiller)?;
        let mut finished = 0;
        let error = trainer.run(&stream, &mut |event| {
            finished += usize::from(matches!(event, Event::Task { .. }));
            Ok(())
        });
        assert_eq!(finished, 1);
        let Err(Error::NotFinite { what, task, step, .. }) = error else {
            panic!("{learner} x {distiller}: {error:?}")
        };
        assert_eq!((what.as_str(), task, step), ("ce", 2, 1));
    }
    Ok(())
}

#[test]
fn saved_state_gives_the_same_predictions() -> Result<()> {
    let stream = Noise::new(3);
    for (learner, distiller) in pairs()? {
        let mut trained = trainer(learner, distiller)?;
        trained.run(&stream, &mut |_| Ok(()))?;
        let mut restored = Lab::new(2)?.trainer_of(learner, distiller)?;
        let task = &stream.tasks()[1];
        let pixels = stream.batch(1, 77)?.pixels;
        for role in [Role::Teacher, Role::Student] {
            let folder = tempfile::tempdir().expect("temporary folder");
            let path = folder.path().join("model.safetensors");
            std::fs::write(&path, trained.state(role)?.to_bytes()?).expect("model file");
            restored.restore(role, task, &StateDict::read(&path, &Device::Cpu)?)?;
            let (a, b) = (trained.predict(role, &pixels)?, restored.predict(role, &pixels)?);
            assert!(bytes(&a)? == bytes(&b)?, "{learner} x {distiller}");
        }
    }
    Ok(())
}

/// A linker that drops the plugins would leave the listing empty: every file must have registered what it holds.
#[test]
fn all_built_in_plugins_are_registered() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for kind in Kind::ALL {
        cdl_plugins::link();
        let origins: Vec<_> = registry::entries(kind)?.iter().map(|entry| entry.origin).collect();
        let files = std::fs::read_dir(source.join(format!("{kind}s"))).expect("folder of a kind");
        let files: Vec<_> = files.map(|file| file.expect("file").path()).collect();
        assert!(!files.is_empty() && files.len() <= origins.len());
        for file in files {
            let module = format!("cdl_plugins::{kind}s::{}", file.file_stem().expect("name").display());
            assert!(origins.contains(&module.as_str()), "{} registers nothing", file.display());
        }
    }
    Ok(())
}
