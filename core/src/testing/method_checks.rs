//! Checks of learners and distillers.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, Var};

use crate::{
    error::Result,
    metrics::PromptUseSums,
    rng::Rng,
    testing::{
        promise,
        test_bed::{BATCH, CLASSES, Noise, ROLES, TestBed},
    },
    train::{Optimizer, Trainer},
    traits::{
        BackboneSpec, Injection, Kv, Mode, NamedVar, Pass, QuerySource, Role, StateDict, Taps, Task,
        TaskStream,
    },
};

/// Plugin under test, with a function that builds a trainer with this plugin in a test bed.
pub(super) struct Check<'a> {
    pub(super) plugin: String,
    pub(super) build: &'a dyn Fn(&TestBed) -> Result<Trainer>,
}

impl Check<'_> {
    fn promise(&self, kept: bool, what: impl Into<String>) -> Result<()> {
        promise(&self.plugin, kept, what)
    }

    fn trainer(&self, seed: u64) -> Result<Trainer> {
        (self.build)(&TestBed::new(seed)?)
    }

    /// Runs the checks that apply to both learners and distillers.
    pub(super) fn everything(&self) -> Result<()> {
        let corrected = TestBed::new(3)?.with_mode(Mode::Corrected, QuerySource::Own);
        self.only_trainable_tensors_change(TestBed::new(3)?)?;
        self.only_trainable_tensors_change(corrected)?;
        self.seed_determines_results()?;
        self.evaluation_changes_nothing()?;
        self.saved_state_is_restored()
    }

    pub(super) fn learner_shapes(&self, bed: TestBed) -> Result<()> {
        let mut trainer = (self.build)(&bed)?;
        let stream = Noise::new(1);
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            for (role, network) in [(Role::Teacher, &trainer.teacher), (Role::Student, &trainer.student)] {
                let (backbone, learner) = (&network.backbone, &network.learner);
                let [train, teach, test] = [Pass::Train, Pass::Teach, Pass::Test];
                for (pass, images) in [(train, BATCH), (teach, BATCH), (test, BATCH), (test, 1)] {
                    let pixels = stream.batch(task.index, 0)?.pixels.narrow(0, 0, images)?;
                    let injection = learner.inject(&trainer.query(role, &pixels), pass)?;
                    self.injection_fits(&injection, backbone.spec(), images)?;
                    if let Some(penalty) = &injection.penalty {
                        self.promise(penalty.rank() == 0, "a penalty is a scalar")?;
                        let promise = format!("only training passes have a penalty, but {pass:?} has one");
                        self.promise(pass == Pass::Train, promise)?;
                    }
                    let features = backbone.forward(&pixels, &injection, &Taps::none())?;
                    self.logits_fit("the tensor of logits", &learner.logits(&features)?, images)?;
                    let head = learner.new_head("second", &mut Rng::new(0))?;
                    self.logits_fit(
                        "the tensor of logits of a new head",
                        &head.logits(&features.cls)?,
                        images,
                    )?;
                    let named = head.trainable().iter().all(|var| var.name.starts_with("second."));
                    let promise =
                        "the tensors of a new head have its name as prefix, such as `second.weight`";
                    self.promise(named, promise)?;
                }
            }
            trainer.end_task(task)?;
        }
        Ok(())
    }

    pub(super) fn distiller_shapes(&self, bed: TestBed) -> Result<()> {
        let mut trainer = (self.build)(&bed)?;
        let stream = Noise::new(1);
        let taps = trainer.distiller.taps();
        for (network, taps) in [(&trainer.teacher, &taps.teacher), (&trainer.student, &taps.student)] {
            let depth = network.backbone.spec().depth;
            for block in &taps.blocks {
                let promise =
                    format!("tapped blocks are less than {depth}, the depth of the network, not {block}");
                self.promise(*block < depth, promise)?;
            }
        }
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            for pass in [Pass::Train, Pass::Test] {
                self.injection_fits(&trainer.distiller.inject(pass)?, trainer.student.backbone.spec(), 1)?;
            }
            // Losses cover the task's classes, or with rehearsal all classes seen so far.
            for classes in [task.classes.clone(), 0..task.seen()] {
                let task = Task { classes, ..*task };
                let loss = trainer.loss(Role::Student, &task, &stream.batch(task.index, 0)?)?;
                for (name, value) in loss.values()? {
                    let promise = format!("the loss term `{name}` is a finite number, not {value}");
                    self.promise(value.is_finite(), promise)?;
                }
            }
            for images in [BATCH, 1] {
                let pixels = stream.batch(task.index, 0)?.pixels.narrow(0, 0, images)?;
                self.logits_fit("the prediction", &trainer.predict(Role::Student, &pixels)?, images)?;
            }
            trainer.end_task(task)?;
        }
        Ok(())
    }

    /// Checks that `predicts` is true if `predict` differs from the learner's logits. If `predicts` is false, a run
    /// never calls `predict`.
    pub(super) fn prediction_is_announced(&self, alone: &Trainer) -> Result<()> {
        let pixels = Noise::new(1).batch(0, 0)?.pixels;
        let in_a_run = self.trainer(1)?.predict(Role::Student, &pixels)?;
        let same = bits(&alone.predict(Role::Student, &pixels)?)? == bits(&in_a_run)?;
        self.promise(same, "`predicts` is true for a distiller whose `predict` is not the learner's logits")
    }

    fn injection_fits(&self, injection: &Injection, spec: &BackboneSpec, images: usize) -> Result<()> {
        let (blocks, depth, width) = (injection.blocks.len(), spec.depth, spec.width);
        self.promise(
            blocks <= depth,
            format!("prompts are injected into at most {depth} blocks, not {blocks}"),
        )?;
        let fits = |tensor: &Tensor| {
            let dims = tensor.dims3();
            dims.is_ok_and(|(batch, _, columns)| (batch == 1 || batch == images) && columns == width)
        };
        for block in &injection.blocks {
            for kv in [&block.prefix, &block.suffix, &block.cls_add].into_iter().flatten() {
                let (k, v) = (kv.k()?, kv.v()?);
                let (ks, vs) = (k.dims(), v.dims());
                let promise = format!(
                    "keys and values both have the shape (B or 1, P, {width}), not {ks:?} and {vs:?}"
                );
                self.promise(fits(&k) && fits(&v) && ks == vs, promise)?;
            }
            let added = block.cls_add.as_ref().map(Kv::count).transpose()?.unwrap_or(1);
            self.promise(added == 1, "one vector is added to the CLS token's key and one to its value")?;
        }
        if let Err(error) = PromptUseSums::default().add(0, images, &injection.selections) {
            self.promise(false, format!("reported selections of prompts are valid: {error}"))?;
        }
        let Some(tokens) = &injection.tokens else { return Ok(()) };
        self.promise(
            fits(tokens),
            format!("tokens have the shape (B or 1, K, {width}), not {:?}", tokens.dims()),
        )
    }

    fn logits_fit(&self, what: &str, logits: &Tensor, images: usize) -> Result<()> {
        let dims = logits.dims();
        let count = if images == 1 { "1 image".into() } else { format!("{images} images") };
        let promise = format!("{what} of {count} has the shape ({images}, {CLASSES}), not {dims:?}");
        self.promise(dims == [images, CLASSES], promise)?;
        self.promise(
            numbers(logits)?.iter().all(|v| v.is_finite()),
            format!("{what} contains only finite numbers"),
        )
    }

    /// Compares gradients with central differences of the loss along random directions in every tensor, in the first
    /// task (later tasks may freeze earlier parameters). In float32, and with discontinuous selections, no single step
    /// size suits all tensors, so the nearest of several estimates counts. A wrong or partly missing gradient matches
    /// none of the estimates in some direction.
    pub(super) fn gradients_are_derivatives(&self, roles: &[Role]) -> Result<()> {
        let mut trainer = self.trainer(2)?;
        let stream = Noise::new(1);
        let (task, batch) = (&stream.tasks()[0], stream.batch(0, 0)?);
        trainer.begin_task(task)?;
        for &role in roles {
            let gradients = trainer.loss(role, task, &batch)?.total.backward()?;
            let loss = || -> Result<f64> {
                Ok(trainer.loss(role, task, &batch)?.total.to_dtype(DType::F64)?.to_scalar::<f64>()?)
            };
            // Rounding error of a difference of losses.
            let noise = 5e-5 * loss()?.abs().max(1.0);
            for NamedVar { name, var } in trainer.trainable(role) {
                let gradient = gradients.get(var.as_tensor()).map(numbers).transpose()?;
                let gradient = gradient.unwrap_or_else(|| vec![0.0; var.elem_count()]);
                let length = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
                for number in 0..4 {
                    let mut rng = Rng::new(0).derive(&format!("{name} {number}"));
                    let direction: Vec<f64> =
                        gradient.iter().map(|_| rng.standard_normal().signum()).collect();
                    let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                    let tolerance = 0.02 * length + noise;
                    let nearest = derivative(&var, &direction, &loss, expected, tolerance)?;
                    self.promise(
                        (nearest - expected).abs() <= tolerance,
                        format!(
                            "the gradient of `{name}` is the derivative of the {} loss: along a random direction the \
                             gradient is {expected:.3e}, but finite differences give {nearest:.3e}; frequent causes \
                             are a value detached from the graph (`detach`, `to_vec`) and an operation without a \
                             backward pass (`softmax_last_dim`, `ops::layer_norm`)",
                            role.as_str()
                        ),
                    )?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn only_trainable_tensors_change(&self, bed: TestBed) -> Result<()> {
        let mut trainer = (self.build)(&bed)?;
        let stream = Noise::new(4);
        let frozen = |trainer: &Trainer| -> Result<Vec<Vec<u64>>> {
            let [teacher, student] = [&trainer.teacher, &trainer.student].map(|of| of.backbone.weights());
            teacher?.iter().chain(&student?).map(|(_, tensor)| bits(tensor)).collect()
        };
        let before = frozen(&trainer)?;
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            for (role, other) in [(Role::Teacher, Role::Student), (Role::Student, Role::Teacher)] {
                let (others, own) = (state_bits(&trainer, other)?, state_bits(&trainer, role)?);
                let vars = trainer.trainable(role);
                let names: BTreeSet<_> = vars.iter().map(|var| var.name.clone()).collect();
                self.promise(names.len() == vars.len(), "trainable tensors have different names")?;
                let mut optimizer = Optimizer::new(&trainer.settings.optimizer, vars.clone())?;
                let mut reached = BTreeSet::new();
                for step in 0..4 {
                    let loss = trainer.loss(role, task, &stream.batch(task.index, step)?)?;
                    let gradients = loss.total.backward()?;
                    for NamedVar { name, var } in &vars {
                        let Some(gradient) = gradients.get(var.as_tensor()) else { continue };
                        let gradient = numbers(gradient)?;
                        let finite = gradient.iter().all(|g| g.is_finite());
                        self.promise(finite, format!("the gradient of `{name}` is finite"))?;
                        if gradient.iter().any(|g| *g != 0.0) {
                            reached.insert(name.clone());
                        }
                    }
                    optimizer.step(&gradients)?;
                }
                let (who, whom) = (role.as_str(), other.as_str());
                for name in &names {
                    let promise =
                        format!("`{name}` is trainable in the {who}'s phase, but never gets a gradient");
                    self.promise(reached.contains(name), promise)?;
                }
                let untouched = state_bits(&trainer, other)? == others;
                self.promise(untouched, format!("the {who}'s phase does not change the {whom}"))?;
                let now = state_bits(&trainer, role)?;
                for name in &names {
                    let saved = now.contains_key(name);
                    self.promise(saved, format!("`{name}` is trainable, but not part of the state"))?;
                }
                for (name, now) in &now {
                    let moved = own.get(name) != Some(now);
                    let promise = format!("`{name}` changes in a phase if and only if it is trainable");
                    self.promise(moved == names.contains(name), promise)?;
                }
            }
            trainer.end_task(task)?;
        }
        self.promise(frozen(&trainer)? == before, "frozen weights never change")
    }

    fn seed_determines_results(&self) -> Result<()> {
        let run = || -> Result<_> {
            let mut trainer = self.trainer(4)?;
            trainer.run(&Noise::new(3), &mut |_| Ok(()))?;
            states(&trainer)
        };
        self.promise(run()? == run()?, "the same seed gives the same run")
    }

    /// Restores states, saved in the middle of the second task and at its end, into trainers with another seed.
    /// Predictions and further training, also in the next task, must be equal. An empty state must be rejected.
    pub(super) fn saved_state_is_restored(&self) -> Result<()> {
        let stream = Noise::new(2);
        let [mut original, mut middle, mut end] = [self.trainer(5)?, self.trainer(6)?, self.trainer(7)?];
        // Random draws at the start of a task depend on the run's seed, not on the state.
        (middle.rng, end.rng) = (original.rng.clone(), original.rng.clone());
        let [first, second, third] = [0, 1, 2].map(|index| &stream.tasks()[index]);
        let pixels = stream.batch(1, 77)?.pixels;
        let same = |one: &Trainer, other: &Trainer, promise: &str| -> Result<()> {
            ROLES.into_iter().try_for_each(|role| {
                let [one, other] = [one, other].map(|trainer| trainer.predict(role, &pixels));
                self.promise(bits(&one?)? == bits(&other?)?, promise)
            })
        };
        original.begin_task(first)?;
        train(&mut original, &stream, first, 2)?;
        original.end_task(first)?;
        original.begin_task(second)?;
        train(&mut original, &stream, second, 2)?;
        restore(&original, &mut middle, second)?;
        let hint = "every tensor created at construction must be in `trainable` or in `state`";
        same(
            &original,
            &middle,
            &format!("a restored state gives the predictions of the saved one: {hint}"),
        )?;
        for trainer in [&mut original, &mut middle] {
            train(trainer, &stream, second, 2)?;
            trainer.end_task(second)?;
        }
        same(&original, &middle, "training from a restored state gives the same results as without saving")?;
        restore(&original, &mut end, second)?;
        same(
            &original,
            &end,
            "a state restored at the end of a task gives the predictions of the saved one",
        )?;
        for trainer in [&mut original, &mut end] {
            trainer.begin_task(third)?;
            train(trainer, &stream, third, 2)?;
            trainer.end_task(third)?;
        }
        same(
            &original,
            &end,
            "learning the next task from a restored state gives the same results as without saving",
        )?;
        for role in ROLES {
            let nothing = end.trainable(role).is_empty();
            let refused = nothing || end.restore(role, third, &StateDict::default()).is_err();
            self.promise(refused, "a saved state without its tensors is refused")?;
        }
        Ok(())
    }

    /// Checks that predictions between the steps of a run do not change the results of the run.
    pub(super) fn evaluation_changes_nothing(&self) -> Result<()> {
        let stream = Noise::new(2);
        let run = |predict: bool| -> Result<_> {
            let mut trainer = self.trainer(8)?;
            for task in stream.tasks() {
                trainer.begin_task(task)?;
                for _ in 0..2 {
                    train(&mut trainer, &stream, task, 1)?;
                    if predict {
                        for role in ROLES {
                            trainer.predict(role, &stream.batch(task.index, 55)?.pixels)?;
                        }
                    }
                }
                trainer.end_task(task)?;
            }
            states(&trainer)
        };
        self.promise(run(true)? == run(false)?, "evaluation changes nothing")
    }
}

/// Trains the teacher, then the student, for `steps` steps each.
fn train(trainer: &mut Trainer, stream: &Noise, task: &Task, steps: usize) -> Result<()> {
    for role in ROLES {
        let mut optimizer = Optimizer::new(&trainer.settings.optimizer, trainer.trainable(role))?;
        for step in 0..steps {
            let loss = trainer.loss(role, task, &stream.batch(task.index, step)?)?;
            optimizer.step(&loss.total.backward()?)?;
        }
    }
    Ok(())
}

/// Restores the state of the trainer `from` in the trainer `to`, through the bytes of a safetensors file.
fn restore(from: &Trainer, to: &mut Trainer, task: &Task) -> Result<()> {
    for role in ROLES {
        let bytes = from.state(role)?.to_bytes()?;
        let saved = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?.into_iter().collect();
        to.restore(role, task, &saved)?;
    }
    Ok(())
}

/// Estimates the derivative along a direction by central differences `(f(x + h d) - f(x - h d)) / 2h` with decreasing
/// steps, and by Richardson extrapolation of successive steps, which cancels the error in `h²`. Returns the estimate
/// nearest to `expected`, and stops at the first estimate within `tolerance`. The variable keeps its value.
fn derivative(
    var: &Var,
    direction: &[f64],
    loss: &dyn Fn() -> Result<f64>,
    expected: f64,
    tolerance: f64,
) -> Result<f64> {
    let original = var.as_tensor().detach().copy()?;
    let direction = Tensor::new(direction, &Device::Cpu)?.reshape(var.shape())?.to_dtype(var.dtype())?;
    let at = |step: f64| -> Result<f64> {
        var.set(&(&original + (&direction * step)?)?)?;
        loss()
    };
    let error = |estimate: f64| (estimate - expected).abs();
    let (mut nearest, mut last) = (f64::INFINITY, None);
    for step in [2.7e-2, 9e-3, 3e-3, 1e-3, 1e-3 / 3.0] {
        let now = (at(step)? - at(-step)?) / (2.0 * step);
        let extrapolated = last.map_or(now, |last: f64| (9.0 * now - last) / 8.0);
        let nearer = |best, one| if error(one) < error(best) { one } else { best };
        nearest = [now, extrapolated].into_iter().fold(nearest, nearer);
        if error(nearest) <= tolerance {
            break;
        }
        last = Some(now);
    }
    var.set(&original)?;
    Ok(nearest)
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

/// Returns the bits of all entries. Float64 represents every element type of a state exactly.
fn bits(tensor: &Tensor) -> Result<Vec<u64>> {
    Ok(numbers(tensor)?.into_iter().map(f64::to_bits).collect())
}

fn state_bits(trainer: &Trainer, role: Role) -> Result<BTreeMap<String, Vec<u64>>> {
    trainer.state(role)?.iter().map(|(name, tensor)| Ok((name.to_string(), bits(tensor)?))).collect()
}

/// Returns the bits of the state of both networks.
fn states(trainer: &Trainer) -> Result<[BTreeMap<String, Vec<u64>>; 2]> {
    Ok([state_bits(trainer, Role::Teacher)?, state_bits(trainer, Role::Student)?])
}
