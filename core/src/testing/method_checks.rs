//! What learners and distillers promise.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, Var};

use crate::{
    error::Result,
    metrics::PromptUseSums,
    rng::Rng,
    testing::{
        lab::{BATCH, CLASSES, Lab, Noise, ROLES},
        promise,
    },
    train::{Optimizer, Trainer},
    traits::{
        BackboneSpec, Injection, Kv, Mode, NamedVar, Pass, QuerySource, Role, StateDict, Taps, Task,
        TaskStream,
    },
};

/// A plugin under test in a trainer that can be built again and again, from what it runs on.
pub(super) struct Check<'a> {
    pub(super) plugin: String,
    pub(super) build: &'a dyn Fn(&Lab) -> Result<Trainer>,
}

impl Check<'_> {
    fn promise(&self, kept: bool, what: impl Into<String>) -> Result<()> {
        promise(&self.plugin, kept, what)
    }

    fn trainer(&self, seed: u64) -> Result<Trainer> {
        (self.build)(&Lab::new(seed)?)
    }

    /// What holds for learners and distillers alike.
    pub(super) fn everything(&self) -> Result<()> {
        let corrected = Lab::new(3)?.with_mode(Mode::Corrected, QuerySource::Own);
        self.what_is_trained_moves_and_nothing_else(Lab::new(3)?)?;
        self.what_is_trained_moves_and_nothing_else(corrected)?;
        self.a_seed_decides_everything()?;
        self.evaluation_leaves_no_trace()?;
        self.a_saved_state_restores_it()
    }

    pub(super) fn learner_shapes(&self, lab: Lab) -> Result<()> {
        let mut trainer = (self.build)(&lab)?;
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
                        let promise = format!("a penalty applies in training alone, but {pass:?} has one");
                        self.promise(pass == Pass::Train, promise)?;
                    }
                    let features = backbone.forward(&pixels, &injection, &Taps::none())?;
                    self.logits_fit("logits", &learner.logits(&features)?, images)?;
                    let head = learner.new_head("second", &mut Rng::new(0))?;
                    self.logits_fit("the logits of a further head", &head.logits(&features.cls)?, images)?;
                    let named = head.trainable().iter().all(|var| var.name.starts_with("second."));
                    let promise = "a further head trains tensors called after it, `second.weight` and so on";
                    self.promise(named, promise)?;
                }
            }
            trainer.end_task(task)?;
        }
        Ok(())
    }

    pub(super) fn distiller_shapes(&self, lab: Lab) -> Result<()> {
        let mut trainer = (self.build)(&lab)?;
        let stream = Noise::new(1);
        let taps = trainer.distiller.taps();
        for (network, taps) in [(&trainer.teacher, &taps.teacher), (&trainer.student, &taps.student)] {
            let depth = network.backbone.spec().depth;
            for block in &taps.blocks {
                let promise = format!("it taps block {block} of a network with {depth} (from 0)");
                self.promise(*block < depth, promise)?;
            }
        }
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            for pass in [Pass::Train, Pass::Test] {
                self.injection_fits(&trainer.distiller.inject(pass)?, trainer.student.backbone.spec(), 1)?;
            }
            // The task's own classes, and all seen so far as with rehearsal.
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

    /// A prediction of its own counts only if the distiller says that it has one.
    pub(super) fn prediction_is_announced(&self, alone: &Trainer) -> Result<()> {
        let pixels = Noise::new(1).batch(0, 0)?.pixels;
        let in_a_run = self.trainer(1)?.predict(Role::Student, &pixels)?;
        let same = bits(&alone.predict(Role::Student, &pixels)?)? == bits(&in_a_run)?;
        self.promise(same, "a distiller whose `predict` is not the learner's logits says so by `predicts`")
    }

    fn injection_fits(&self, injection: &Injection, spec: &BackboneSpec, images: usize) -> Result<()> {
        let (blocks, depth, width) = (injection.blocks.len(), spec.depth, spec.width);
        self.promise(blocks <= depth, format!("it prompts block {blocks} of {depth}"))?;
        let fits = |tensor: &Tensor| {
            let dims = tensor.dims3();
            dims.is_ok_and(|(batch, _, columns)| (batch == 1 || batch == images) && columns == width)
        };
        for block in &injection.blocks {
            for kv in [&block.prefix, &block.suffix, &block.cls_add].into_iter().flatten() {
                let (k, v) = (kv.k()?, kv.v()?);
                let (ks, vs) = (k.dims(), v.dims());
                let promise =
                    format!("keys and values are (B or 1, P, {width}) alike, not {ks:?} and {vs:?}");
                self.promise(fits(&k) && fits(&v) && ks == vs, promise)?;
            }
            let added = block.cls_add.as_ref().map(Kv::count).transpose()?.unwrap_or(1);
            self.promise(added == 1, "one vector is added to the CLS token's key and one to its value")?;
        }
        if let Err(error) = PromptUseSums::default().add(0, images, &injection.selections) {
            self.promise(false, format!("what it says of its selections is true of them: {error}"))?;
        }
        let Some(tokens) = &injection.tokens else { return Ok(()) };
        self.promise(fits(tokens), format!("tokens are (B or 1, K, {width}), not {:?}", tokens.dims()))
    }

    fn logits_fit(&self, what: &str, logits: &Tensor, images: usize) -> Result<()> {
        let dims = logits.dims();
        let promise = format!("{what} of {images} images are ({images}, {CLASSES}), not {dims:?}");
        self.promise(dims == [images, CLASSES], promise)?;
        self.promise(numbers(logits)?.iter().all(|v| v.is_finite()), format!("{what} are finite numbers"))
    }

    /// Central differences of the loss along random directions in every tensor, in the first task (later ones may hold
    /// what earlier ones trained). In float32 and with choices that jump, no one step size is right for all tensors:
    /// the nearest of several counts, which a gradient that is wrong or partly missing cannot meet in all directions.
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
            // What rounding makes of a difference of losses.
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
                            "the gradient of `{name}` is the derivative of the {} loss: along a direction it is \
                             {expected:.3e}, finite differences give {nearest:.3e}; a value taken out of the graph \
                             (`detach`, `to_vec`) or an operation without a backward pass (`softmax_last_dim`, \
                             `ops::layer_norm`) often is why",
                            role.as_str()
                        ),
                    )?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn what_is_trained_moves_and_nothing_else(&self, lab: Lab) -> Result<()> {
        let mut trainer = (self.build)(&lab)?;
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
                self.promise(names.len() == vars.len(), "tensors that are trained have different names")?;
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
                    let promise = format!("`{name}` is trained by the {who}, but never gets a gradient");
                    self.promise(reached.contains(name), promise)?;
                }
                let untouched = state_bits(&trainer, other)? == others;
                self.promise(untouched, format!("the {who}'s phase leaves the {whom} as it is"))?;
                let now = state_bits(&trainer, role)?;
                for name in &names {
                    let saved = now.contains_key(name);
                    self.promise(saved, format!("`{name}` is trained, but not part of the state"))?;
                }
                for (name, now) in &now {
                    let moved = own.get(name) != Some(now);
                    let promise = format!("`{name}` changes in a phase exactly if it is trained");
                    self.promise(moved == names.contains(name), promise)?;
                }
            }
            trainer.end_task(task)?;
        }
        self.promise(frozen(&trainer)? == before, "frozen weights stay as they are")
    }

    fn a_seed_decides_everything(&self) -> Result<()> {
        let run = || -> Result<_> {
            let mut trainer = self.trainer(4)?;
            trainer.run(&Noise::new(3), &mut |_| Ok(()))?;
            states(&trainer)
        };
        self.promise(run()? == run()?, "the same seed gives the same run")
    }

    /// Saved in the middle of the second task and at its end, into trainers that were made with another seed:
    /// predictions and what is trained afterwards, also in the next task, are the same. An empty state is refused.
    pub(super) fn a_saved_state_restores_it(&self) -> Result<()> {
        let stream = Noise::new(2);
        let [mut original, mut middle, mut end] = [self.trainer(5)?, self.trainer(6)?, self.trainer(7)?];
        // What is drawn at the start of a task follows from the run's seed, not from the state.
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
        let hint = "is every tensor that `new` draws in `trainable` or in `state`?";
        same(&original, &middle, &format!("a restored state predicts as the saved one: {hint}"))?;
        for trainer in [&mut original, &mut middle] {
            train(trainer, &stream, second, 2)?;
            trainer.end_task(second)?;
        }
        same(&original, &middle, "a restored state trains on as the saved one")?;
        restore(&original, &mut end, second)?;
        same(&original, &end, "a state restored at the end of a task predicts as the saved one")?;
        for trainer in [&mut original, &mut end] {
            trainer.begin_task(third)?;
            train(trainer, &stream, third, 2)?;
            trainer.end_task(third)?;
        }
        same(&original, &end, "a state restored at the end of a task learns the next one as the saved one")?;
        for role in ROLES {
            let nothing = end.trainable(role).is_empty();
            let refused = nothing || end.restore(role, third, &StateDict::default()).is_err();
            self.promise(refused, "a saved state without its tensors is refused")?;
        }
        Ok(())
    }

    /// A run with predictions between all steps is the run without.
    pub(super) fn evaluation_leaves_no_trace(&self) -> Result<()> {
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

/// `steps` of the teacher, then of the student.
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

/// Takes the state of one trainer, by way of the bytes of a file, into another.
fn restore(from: &Trainer, to: &mut Trainer, task: &Task) -> Result<()> {
    for role in ROLES {
        let bytes = from.state(role)?.to_bytes()?;
        let saved = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?.into_iter().collect();
        to.restore(role, task, &saved)?;
    }
    Ok(())
}

/// Estimate nearest to `expected` of the derivative along a direction, from central differences
/// `(f(x + h d) - f(x - h d)) / 2h` at ever smaller steps until one is within `tolerance`, and from what each gives with the
/// one before when their error in `h²` is cancelled. The variable is put back.
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
        let cancelled = last.map_or(now, |last: f64| (9.0 * now - last) / 8.0);
        let nearer = |best, one| if error(one) < error(best) { one } else { best };
        nearest = [now, cancelled].into_iter().fold(nearest, nearer);
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

/// The entries exactly; float64 holds whatever a state is made of.
fn bits(tensor: &Tensor) -> Result<Vec<u64>> {
    Ok(numbers(tensor)?.into_iter().map(f64::to_bits).collect())
}

fn state_bits(trainer: &Trainer, role: Role) -> Result<BTreeMap<String, Vec<u64>>> {
    trainer.state(role)?.iter().map(|(name, tensor)| Ok((name.to_string(), bits(tensor)?))).collect()
}

/// Everything trained of both networks.
fn states(trainer: &Trainer) -> Result<[BTreeMap<String, Vec<u64>>; 2]> {
    Ok([state_bits(trainer, Role::Teacher)?, state_bits(trainer, Role::Student)?])
}
