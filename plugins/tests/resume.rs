//! Tests of runs that are stopped between any two steps and resumed from the bytes of a checkpoint, with networks and
//! methods created with another seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use cdl_core::{
    error::Result,
    registry::Settings,
    rng::Rng,
    run::Checkpoint,
    testing::{Noise, TestBed},
    train::{Accuracies, EpochReport, Event, OptimizerConfig, Position, RunState, Trainer},
    traits::{Role, TaskStream},
};

const STEPS: usize = 2;
const EPOCHS: usize = 2;

/// Builds a trainer with two epochs per task. `seed` determines only initial values.
fn trainer(seed: u64, methods: (&str, &str), optimizer: &str) -> Result<Trainer> {
    cdl_plugins::link();
    let mut settings = Settings::new();
    if methods.0 == "coda_prompt" {
        settings.insert("pool".into(), 6.into());
    }
    let mut trainer =
        TestBed::new(seed)?.trainer_of((methods.0, &settings), (methods.1, &Settings::new()))?;
    trainer.rng = Rng::new(3);
    trainer.settings.epochs = EPOCHS;
    let given = serde_json::json!({ "name": optimizer, "lr": 1e-2, "weight_decay": 1e-4 });
    trainer.settings.optimizer = serde_json::from_value::<OptimizerConfig>(given).expect("settings");
    Ok(trainer)
}

/// Results of a run, without its times.
#[derive(Debug, PartialEq)]
struct Outcome {
    states: [BTreeMap<String, Vec<u32>>; 2],
    accuracies: Accuracies,
    epochs: Vec<EpochReport>,
}

/// State at which a run can be stopped: its position, the epochs reported so far, and the bytes of a checkpoint.
type Stop = (Position, usize, Vec<u8>);

/// Continues a run from `from`. Returns the outcome and every state at which it can be stopped.
fn run(trainer: &mut Trainer, from: RunState) -> Result<(Outcome, Vec<Stop>)> {
    let stream = Noise::new(STEPS);
    let (mut epochs, mut stops) = (Vec::new(), Vec::new());
    let accuracies = trainer.run_from(from, &stream, &mut |event| {
        match event {
            Event::Epoch(report) => {
                epochs.push(EpochReport { seconds: 0.0, images_per_second: 0.0, ..report.clone() });
            }
            Event::Snapshot(snapshot) => {
                let bytes = Checkpoint::of(&snapshot, "", (0, String::new()), 0.0)?.to_bytes()?;
                stops.push((snapshot.state.position, epochs.len(), bytes));
            }
            _ => {}
        }
        Ok(())
    })?;
    let bits = |role| -> Result<BTreeMap<String, Vec<u32>>> {
        let of = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        trainer
            .state(role)?
            .iter()
            .map(|(name, tensor)| Ok((name.to_string(), of(tensor.flatten_all()?.to_vec1()?))))
            .collect()
    };
    let states = [bits(Role::Teacher)?, bits(Role::Student)?];
    Ok((Outcome { states, accuracies, epochs }, stops))
}

/// Resumes a run from every state at which it can be stopped, and compares the outcomes.
fn resume_from_every_stop(methods: (&str, &str), optimizer: &str) -> Result<()> {
    let (whole, stops) = run(&mut trainer(1, methods, optimizer)?, RunState::default())?;
    let tasks = whole.accuracies.student.rows().len();
    // A run can be stopped after every step, epoch and task.
    assert_eq!(stops.len(), tasks * (2 * EPOCHS * (STEPS + 1) + 1));
    assert!(stops.windows(2).all(|pair| pair[0].0 < pair[1].0), "positions are in order");
    for (position, reported, bytes) in stops {
        let mut other = trainer(2, methods, optimizer)?;
        let checkpoint = Checkpoint::from_bytes(&bytes).expect("checkpoint");
        let from = checkpoint.restore(&mut other, &Noise::new(STEPS))?;
        assert_eq!(from.position, position);
        let (rest, _) = run(&mut other, from)?;
        assert!(rest.states == whole.states, "{methods:?}, {optimizer}, {position:?}: parameters differ");
        assert_eq!(rest.accuracies, whole.accuracies, "{methods:?}, {optimizer}, {position:?}");
        assert_eq!(rest.epochs, whole.epochs[reported..], "{methods:?}, {optimizer}, {position:?}");
    }
    Ok(())
}

#[test]
fn a_run_resumed_between_any_two_steps_equals_an_uninterrupted_one_with_every_optimiser() -> Result<()> {
    for optimizer in ["adam", "amsgrad", "sgd", "rmsprop"] {
        resume_from_every_stop(("coda_prompt", "kd_prompts"), optimizer)?;
    }
    Ok(())
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_for_methods_with_untrained_state() -> Result<()> {
    resume_from_every_stop(("apt", "review_kd"), "adam")?;
    resume_from_every_stop(("dual_prompt", "fitnets"), "adam")
}

#[test]
fn damaged_checkpoints_are_refused() -> Result<()> {
    let (_, stops) = run(&mut trainer(1, ("l2p", "fitnets"), "adam")?, RunState::default())?;
    let (_, _, bytes) = &stops[4];
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let refusal = |bytes: &[u8]| {
        Checkpoint::from_bytes(bytes)
            .err()
            .map(|reason| reason.to_string().replace("it is damaged: ", ""))
            .unwrap_or_default()
    };
    assert_eq!(refusal(bytes), "");
    assert_eq!(refusal(&[]), "it is empty");
    let mut draw = Rng::new(5);
    let mut random = |below: usize| (draw.standard_normal().abs() * 1e9) as usize % below;
    for _ in 0..200 {
        let cut = random(bytes.len());
        assert_ne!(refusal(&bytes[..cut]), "", "the first {cut} bytes");
        let (at, bit) = (header + random(bytes.len() - header), random(8));
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        assert!(refusal(&flipped).contains("SHA-256"), "bit {bit} of byte {at}");
        // A change in the header may affect only white space: the checkpoint is read correctly or refused.
        let at = random(header);
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        let same = Checkpoint::from_bytes(&flipped).is_ok_and(|read| {
            bytes[at].is_ascii_whitespace()
                && read.meta.position == Checkpoint::from_bytes(bytes).expect("good").meta.position
        });
        assert!(same || !refusal(&flipped).is_empty(), "bit {bit} of byte {at}");
    }
    assert_ne!(refusal(&[bytes.as_slice(), &[0]].concat()), "", "one byte too many");
    let version = b"\"cdl_checkpoint\":\"1\"";
    let at = bytes.windows(version.len()).position(|part| part == version).expect("version");
    let mut later = bytes.clone();
    later[at + version.len() - 2] = b'2';
    assert_eq!(refusal(&later), "it has format \"2\"; this version of cdl reads format \"1\"");
    let model = trainer(1, ("l2p", "fitnets"), "adam")?.state(Role::Student)?.to_bytes()?;
    assert!(refusal(&model).contains("it is not a checkpoint"), "{}", refusal(&model));
    Ok(())
}

/// A checkpoint of another run gives an error that names the mismatch.
#[test]
fn a_position_or_tensors_that_the_run_does_not_have_are_refused() -> Result<()> {
    let (_, stops) = run(&mut trainer(1, ("l2p", "fitnets"), "adam")?, RunState::default())?;
    let restore = |stop: usize, mut trainer: Trainer| {
        let checkpoint = Checkpoint::from_bytes(&stops[stop].2).expect("checkpoint");
        checkpoint.restore(&mut trainer, &Noise::new(STEPS)).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let mut short = trainer(1, ("l2p", "fitnets"), "adam")?;
    short.settings.epochs = 1;
    // The checkpoint was written after the first of two epochs.
    assert_eq!(restore(STEPS, short), "state of checkpoint: the run has no task 1, teacher, epoch 2, step 1");
    let message = restore(0, trainer(1, ("dual_prompt", "fitnets"), "adam")?);
    assert!(message.contains("prompt.g_p_0"), "{message}");
    assert_eq!(Noise::new(STEPS).tasks().len(), 3);
    Ok(())
}
