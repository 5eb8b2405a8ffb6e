//! Tests of every registered learner with every registered distiller: trainable tensors of a phase get gradients, all
//! others are byte-identical afterwards, and saved models give the same predictions, in networks of any sizes. All
//! built-in plugins are registered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use cdl_core::{
    candle_core::{Device, Tensor},
    error::{Error, Result},
    registry::{self, Kind, Settings},
    testing::{self, Noise, Shape, TestBed},
    train::{Event, Trainer},
    traits::{Injection, Mode, Pass, Query, QuerySource, Role, StateDict, Taps, TaskStream},
};

fn bytes(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
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

/// Returns settings with a small pool of prompts, if the learner has a pool.
fn small(learner: &str) -> Result<&'static str> {
    let has_pool = (registry::find(Kind::Learner, learner)?.defaults)()?.contains_key("pool");
    Ok(if has_pool { "pool = 8" } else { "" })
}

fn trainer_in(bed: &TestBed, learner: &str, distiller: &str) -> Result<Trainer> {
    let settings: Settings = toml::from_str(small(learner)?).expect("TOML");
    bed.trainer_of((learner, &settings), (distiller, &Settings::new()))
}

fn trainer(learner: &str, distiller: &str) -> Result<Trainer> {
    trainer_in(&TestBed::new(1)?, learner, distiller)
}

#[test]
fn every_trainable_tensor_gets_a_gradient_and_frozen_tensors_never_change() -> Result<()> {
    for (learner, distiller) in pairs()? {
        testing::check_pair((learner, small(learner)?), (distiller, ""))?;
    }
    Ok(())
}

/// Depths that differ from the published ones: a teacher of 24 blocks with a student of 12, a teacher with fewer blocks
/// than its student, networks too shallow for all prompts, and a student with another patch size.
#[test]
fn networks_of_any_sizes_can_be_combined() -> Result<()> {
    let stream = Noise::new(1);
    for (teacher, student, patch) in [(24, 12, 4), (3, 6, 4), (4, 4, 4), (2, 1, 4), (7, 6, 8), (6, 6, 2)] {
        let student = Shape { depth: student, patch, ..Shape::STUDENT };
        let bed = TestBed::with_shapes(1, Shape { depth: teacher, ..Shape::TEACHER }, student)?;
        for (learner, distiller) in pairs()? {
            let what = format!("{learner} x {distiller}, {teacher} and {student:?}");
            let mut trainer = trainer_in(&bed, learner, distiller)?;
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

/// CODA-Prompt's components of earlier tasks share a tensor with the trained ones, but must not change.
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
                bytes(&tensor.narrow(0, 0, 2)?.contiguous()?)
            };
            let now = [past("prompt.e_p_0")?, past("prompt.e_k_2")?, past("prompt.e_a_4")?];
            match &first {
                None => first = Some(now),
                Some(before) => assert!(*before == now, "components of the first task changed in the second"),
            }
        }
        Ok(())
    })?;
    assert!(first.is_some());
    Ok(())
}

#[test]
fn a_nan_loss_stops_the_run_and_keeps_finished_tasks() -> Result<()> {
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
        let mut restored = trainer_in(&TestBed::new(2)?, learner, distiller)?;
        let task = &stream.tasks()[2];
        let pixels = stream.batch(2, 77)?.pixels;
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

/// The teacher's query is the CLS token of the student's or of its own frozen network. Only the query determines
/// prompts.
#[test]
fn the_teachers_query_is_the_students_or_its_own() -> Result<()> {
    cdl_plugins::link();
    let stream = Noise::new(1);
    let task = &stream.tasks()[0];
    for (query, width) in [(QuerySource::Student, 16), (QuerySource::Own, 24)] {
        let mut trainer =
            trainer_in(&TestBed::new(1)?.with_mode(Mode::Published, query), "coda_prompt", "kd")?;
        trainer.begin_task(task)?;
        let pixels = stream.batch(0, 3)?.pixels;
        let network = if width == 24 { &trainer.teacher } else { &trainer.student };
        let cls = network.backbone.forward(&pixels, &Injection::none(), &Taps::none())?.cls;
        assert_eq!(cls.dims(), [4, width]);
        let injection = trainer.teacher.learner.inject(&Query::known(cls), Pass::Test)?;
        let features = trainer.teacher.backbone.forward(&pixels, &injection, &Taps::none())?;
        let expected = trainer.teacher.learner.logits(&features)?;
        assert!(bytes(&expected)? == bytes(&trainer.predict(Role::Teacher, &pixels)?)?, "{query:?}");
        for (role, width) in [(Role::Teacher, width), (Role::Student, 16)] {
            let state = trainer.state(role)?;
            let keys = state.get("prompt.e_k_0").map(|keys| keys.dims().to_vec());
            assert_eq!(keys, Some(vec![8, width]), "{query:?}, {}", role.as_str());
        }
    }
    Ok(())
}

/// If the linker dropped the plugins, the list would be empty. Every file must have registered its methods.
#[test]
fn all_built_in_plugins_are_registered() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for kind in Kind::ALL {
        cdl_plugins::link();
        let origins: Vec<_> = registry::entries(kind)?.iter().map(|entry| entry.origin).collect();
        let files = std::fs::read_dir(source.join(format!("{kind}s"))).expect("folder of a kind");
        let files: Vec<_> = files.map(|file| file.expect("file").path()).collect();
        assert!(!files.is_empty() && !origins.is_empty());
        for file in files {
            if !std::fs::read_to_string(&file).expect("source").contains("cdl_core::register!") {
                continue;
            }
            let module = format!("cdl_plugins::{kind}s::{}", file.file_stem().expect("name").display());
            assert!(origins.contains(&module.as_str()), "{} registers nothing", file.display());
        }
    }
    Ok(())
}
