//! What learners and distillers promise.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, Var};

use crate::{
    error::{Error, Result},
    metrics::UseTally,
    rng::Rng,
    testing::lab::{BATCH, CLASSES, Lab, Noise},
    train::{Optimizer, Trainer},
    traits::{
        BackboneSpec, Injection, Mode, NamedVar, Pass, QuerySource, Role, StateDict, Taps, Task, TaskStream,
    },
};

/// A plugin under test in a trainer that can be built again and again, from a seed and what it runs on.
pub(super) struct Check<'a> {
    pub(super) plugin: String,
    pub(super) build: &'a dyn Fn(u64, Lab) -> Result<Trainer>,
}

impl Check<'_> {
    fn broken<T>(&self, promise: impl Into<String>) -> Result<T> {
        Err(Error::Promise { plugin: self.plugin.clone(), promise: promise.into() })
    }

    fn trainer(&self, seed: u64) -> Result<Trainer> {
        (self.build)(seed, Lab::new(seed)?)
    }

    /// What holds for learners and distillers alike.
    pub(super) fn everything(&self) -> Result<()> {
        self.what_is_trained_moves_and_nothing_else(Lab::new(3)?)?;
        self.what_is_trained_moves_and_nothing_else(
            Lab::new(3)?.with_mode(Mode::Corrected, QuerySource::Own),
        )?;
        self.a_seed_decides_everything()?;
        self.evaluation_leaves_no_trace()?;
        self.a_saved_state_restores_it()
    }

    pub(super) fn learner_shapes(&self, lab: Lab) -> Result<()> {
        let mut trainer = (self.build)(1, lab)?;
        let stream = Noise::new(1);
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            for (role, network) in [(Role::Teacher, &trainer.teacher), (Role::Student, &trainer.student)] {
                let spec = network.backbone.spec();
                for (pass, images) in
                    [(Pass::Train, BATCH), (Pass::Teach, BATCH), (Pass::Test, BATCH), (Pass::Test, 1)]
                {
                    let pixels = stream.batch(task.index, 0)?.pixels.narrow(0, 0, images)?;
                    let injection = network.learner.inject(&trainer.query(role, &pixels), pass)?;
                    self.injection_fits(&injection, spec, images)?;
                    if injection.penalty.as_ref().is_some_and(|penalty| penalty.rank() != 0) {
                        return self.broken("a penalty is a scalar");
                    }
                    if pass != Pass::Train && injection.penalty.is_some() {
                        return self
                            .broken(format!("a penalty applies in training alone, but {pass:?} has one"));
                    }
                    let features = network.backbone.forward(&pixels, &injection, &Taps::none())?;
                    self.logits_fit("logits", &network.learner.logits(&features)?, images)?;
                    let head = network.learner.new_head("second", &mut Rng::new(0))?;
                    self.logits_fit("the logits of a further head", &head.logits(&features.cls)?, images)?;
                    if !head.trainable().iter().all(|var| var.name.starts_with("second.")) {
                        return self.broken(
                            "a further head trains tensors called after it, `second.weight` and so on",
                        );
                    }
                }
            }
            trainer.end_task(task)?;
        }
        Ok(())
    }

    pub(super) fn distiller_shapes(&self, lab: Lab) -> Result<()> {
        let mut trainer = (self.build)(1, lab)?;
        let stream = Noise::new(1);
        let taps = trainer.distiller.taps();
        for (network, taps) in [(&trainer.teacher, &taps.teacher), (&trainer.student, &taps.student)] {
            let spec = network.backbone.spec();
            if let Some(block) = taps.blocks.iter().find(|block| **block >= spec.depth) {
                return self
                    .broken(format!("it taps block {block} of a network with {} (from 0)", spec.depth));
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
                if let Some((name, value)) = loss.values()?.iter().find(|(_, value)| !value.is_finite()) {
                    return self.broken(format!("the loss term `{name}` is a finite number, not {value}"));
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
        match bits(&alone.predict(Role::Student, &pixels)?)? == bits(&in_a_run)? {
            true => Ok(()),
            false => {
                self.broken("a distiller whose `predict` is not the learner's logits says so by `predicts`")
            }
        }
    }

    fn injection_fits(&self, injection: &Injection, spec: &BackboneSpec, images: usize) -> Result<()> {
        if injection.blocks.len() > spec.depth {
            return self.broken(format!("it prompts block {} of {}", injection.blocks.len(), spec.depth));
        }
        let fits = |tensor: &Tensor| {
            tensor
                .dims3()
                .is_ok_and(|(batch, _, width)| (batch == 1 || batch == images) && width == spec.width)
        };
        for block in &injection.blocks {
            for kv in [&block.prefix, &block.suffix, &block.cls_add].into_iter().flatten() {
                let (k, v) = (kv.k()?, kv.v()?);
                if !fits(&k) || !fits(&v) || k.dims() != v.dims() {
                    let (k, v, width) = (k.dims(), v.dims(), spec.width);
                    return self.broken(format!(
                        "keys and values are (B or 1, P, {width}) alike, not {k:?} and {v:?}"
                    ));
                }
            }
            if block
                .cls_add
                .as_ref()
                .map(crate::traits::Kv::count)
                .transpose()?
                .is_some_and(|count| count != 1)
            {
                return self.broken("one vector is added to the CLS token's key and one to its value");
            }
        }
        if let Err(error) = UseTally::default().add(0, images, &injection.selections) {
            return self.broken(format!("what it says of its selections is true of them: {error}"));
        }
        match &injection.tokens {
            Some(tokens) if !fits(tokens) => {
                self.broken(format!("tokens are (B or 1, K, {}), not {:?}", spec.width, tokens.dims()))
            }
            _ => Ok(()),
        }
    }

    fn logits_fit(&self, what: &str, logits: &Tensor, images: usize) -> Result<()> {
        if logits.dims() != [images, CLASSES] {
            return self.broken(format!(
                "{what} of {images} images are ({images}, {CLASSES}), not {:?}",
                logits.dims()
            ));
        }
        match numbers(logits)?.iter().all(|v| v.is_finite()) {
            true => Ok(()),
            false => self.broken(format!("{what} are finite numbers")),
        }
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
                let gradient = match gradients.get(var.as_tensor()) {
                    Some(gradient) => numbers(gradient)?,
                    None => vec![0.0; var.elem_count()],
                };
                let length = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
                for number in 0..4 {
                    let direction = random_signs(&name, number, gradient.len());
                    let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                    let near = |found: f64| (found - expected).abs() <= 0.02 * length + noise;
                    let found = derivative_near(&var, &direction, &loss, &near)?;
                    if let Some(nearest) = nearest(&found, expected).filter(|found| !near(*found)) {
                        return self.broken(format!(
                            "the gradient of `{name}` is the derivative of the {} loss: along a direction it is \
                             {expected:.3e}, finite differences give {nearest:.3e}; a value taken out of the graph \
                             (`detach`, `to_vec`) or an operation without a backward pass (`softmax_last_dim`, \
                             `ops::layer_norm`) often is why",
                            role.as_str()
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn what_is_trained_moves_and_nothing_else(&self, lab: Lab) -> Result<()> {
        let mut trainer = (self.build)(3, lab)?;
        let stream = Noise::new(4);
        let frozen = |trainer: &Trainer| -> Result<Vec<Vec<u64>>> {
            let both = [&trainer.teacher, &trainer.student];
            let mut all = Vec::new();
            for network in both {
                for (_, tensor) in network.backbone.weights()? {
                    all.push(bits(&tensor)?);
                }
            }
            Ok(all)
        };
        let before = frozen(&trainer)?;
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            for (role, other) in [(Role::Teacher, Role::Student), (Role::Student, Role::Teacher)] {
                let (others, own) = (state_bits(&trainer.state(other)?)?, state_bits(&trainer.state(role)?)?);
                let vars = trainer.trainable(role);
                let names: BTreeSet<_> = vars.iter().map(|var| var.name.clone()).collect();
                if names.len() != vars.len() {
                    return self.broken("tensors that are trained have different names");
                }
                let mut optimizer = Optimizer::new(&trainer.settings.optimizer, vars.clone())?;
                let mut reached = BTreeSet::new();
                for step in 0..4 {
                    let gradients =
                        trainer.loss(role, task, &stream.batch(task.index, step)?)?.total.backward()?;
                    for var in &vars {
                        let gradient =
                            gradients.get(var.tensor()).map(numbers).transpose()?.unwrap_or_default();
                        if gradient.iter().any(|g| !g.is_finite()) {
                            return self.broken(format!("the gradient of `{}` is finite", var.name));
                        }
                        if gradient.iter().any(|g| *g != 0.0) {
                            reached.insert(var.name.clone());
                        }
                    }
                    optimizer.step(&gradients)?;
                }
                if let Some(name) = names.difference(&reached).next() {
                    return self.broken(format!(
                        "`{name}` is trained by the {}, but never gets a gradient",
                        role.as_str()
                    ));
                }
                if state_bits(&trainer.state(other)?)? != others {
                    return self.broken(format!(
                        "the {}'s phase leaves the {} as it is",
                        role.as_str(),
                        other.as_str()
                    ));
                }
                let now = state_bits(&trainer.state(role)?)?;
                if let Some(name) = names.iter().find(|name| !now.contains_key(*name)) {
                    return self.broken(format!("`{name}` is trained, but not part of the state"));
                }
                for (name, now) in &now {
                    if names.contains(name) == (own.get(name) == Some(now)) {
                        return self.broken(format!("`{name}` changes in a phase exactly if it is trained"));
                    }
                }
            }
            trainer.end_task(task)?;
        }
        match frozen(&trainer)? == before {
            true => Ok(()),
            false => self.broken("frozen weights stay as they are"),
        }
    }

    fn a_seed_decides_everything(&self) -> Result<()> {
        let run = || -> Result<_> {
            let mut trainer = self.trainer(4)?;
            trainer.run(&Noise::new(3), &mut |_| Ok(()))?;
            states(&trainer)
        };
        match run()? == run()? {
            true => Ok(()),
            false => self.broken("the same seed gives the same run"),
        }
    }

    /// Saved in the middle of the second task and at its end, into trainers that were made with another seed:
    /// predictions and what is trained afterwards, also in the next task, are the same. An empty state is refused.
    pub(super) fn a_saved_state_restores_it(&self) -> Result<()> {
        let stream = Noise::new(2);
        let [mut original, mut middle, mut end] = [self.trainer(5)?, self.trainer(6)?, self.trainer(7)?];
        // What is drawn at the start of a task follows from the run's seed, not from the state.
        (middle.rng, end.rng) = (original.rng.clone(), original.rng.clone());
        let [first, second, third] = [0, 1, 2].map(|index| &stream.tasks()[index]);
        original.begin_task(first)?;
        train(&mut original, &stream, first, 2)?;
        original.end_task(first)?;
        original.begin_task(second)?;
        train(&mut original, &stream, second, 2)?;
        restore(&original, &mut middle, second)?;
        let pixels = stream.batch(1, 77)?.pixels;
        let predictions = |trainer: &Trainer| -> Result<_> {
            Ok([
                bits(&trainer.predict(Role::Teacher, &pixels)?)?,
                bits(&trainer.predict(Role::Student, &pixels)?)?,
            ])
        };
        if predictions(&original)? != predictions(&middle)? {
            return self.broken("a restored state predicts as the saved one: is every tensor that `new` draws in `trainable` or in `state`?");
        }
        for trainer in [&mut original, &mut middle] {
            train(trainer, &stream, second, 2)?;
            trainer.end_task(second)?;
        }
        if predictions(&original)? != predictions(&middle)? {
            return self.broken("a restored state trains on as the saved one");
        }
        restore(&original, &mut end, second)?;
        if predictions(&original)? != predictions(&end)? {
            return self.broken("a state restored at the end of a task predicts as the saved one");
        }
        for trainer in [&mut original, &mut end] {
            trainer.begin_task(third)?;
            train(trainer, &stream, third, 2)?;
            trainer.end_task(third)?;
        }
        if predictions(&original)? != predictions(&end)? {
            return self.broken("a state restored at the end of a task learns the next one as the saved one");
        }
        for role in [Role::Teacher, Role::Student] {
            if !end.trainable(role).is_empty() && end.restore(role, third, &StateDict::default()).is_ok() {
                return self.broken("a saved state without its tensors is refused");
            }
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
                        for role in [Role::Teacher, Role::Student] {
                            trainer.predict(role, &stream.batch(task.index, 55)?.pixels)?;
                        }
                    }
                }
                trainer.end_task(task)?;
            }
            states(&trainer)
        };
        match run(true)? == run(false)? {
            true => Ok(()),
            false => self.broken("evaluation changes nothing"),
        }
    }
}

/// `steps` of the teacher, then of the student.
fn train(trainer: &mut Trainer, stream: &Noise, task: &Task, steps: usize) -> Result<()> {
    for role in [Role::Teacher, Role::Student] {
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
    for role in [Role::Teacher, Role::Student] {
        let bytes = from.state(role)?.to_bytes()?;
        let saved = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?.into_iter().collect();
        to.restore(role, task, &saved)?;
    }
    Ok(())
}

/// Signs that depend on the tensor's name and a number.
fn random_signs(name: &str, number: usize, count: usize) -> Vec<f64> {
    let mut rng = Rng::new(0).derive(&format!("{name} {number}"));
    (0..count).map(|_| rng.standard_normal().signum()).collect()
}

/// Estimates of the derivative along a direction until one is `near`: central differences at ever smaller steps, and
/// what each gives with the one before when their error in `h²` is cancelled.
fn derivative_near(
    var: &Var,
    direction: &[f64],
    loss: &dyn Fn() -> Result<f64>,
    near: &dyn Fn(f64) -> bool,
) -> Result<Vec<f64>> {
    let mut estimates = Vec::new();
    let mut last: Option<f64> = None;
    for step in [2.7e-2, 9e-3, 3e-3, 1e-3, 1e-3 / 3.0] {
        let now = central_difference(var, direction, step, loss)?;
        estimates.push(now);
        estimates.extend(last.map(|last| (9.0 * now - last) / 8.0));
        if estimates.iter().any(|estimate| near(*estimate)) {
            break;
        }
        last = Some(now);
    }
    Ok(estimates)
}

/// The estimate nearest to `expected`.
fn nearest(estimates: &[f64], expected: f64) -> Option<f64> {
    let distance = |estimate: &f64| (estimate - expected).abs();
    estimates.iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// `(f(x + h d) - f(x - h d)) / 2h` of a variable, which is put back.
fn central_difference(
    var: &Var,
    direction: &[f64],
    step: f64,
    loss: &dyn Fn() -> Result<f64>,
) -> Result<f64> {
    let original = var.as_tensor().detach().copy()?;
    let direction = Tensor::new(direction, &Device::Cpu)?.reshape(var.shape())?.to_dtype(var.dtype())?;
    let at = |step: f64| -> Result<f64> {
        var.set(&(&original + (&direction * step)?)?)?;
        loss()
    };
    let (up, down) = (at(step)?, at(-step)?);
    var.set(&original)?;
    Ok((up - down) / (2.0 * step))
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

/// The entries exactly; float64 holds whatever a state is made of.
fn bits(tensor: &Tensor) -> Result<Vec<u64>> {
    Ok(numbers(tensor)?.into_iter().map(f64::to_bits).collect())
}

fn state_bits(state: &StateDict) -> Result<BTreeMap<String, Vec<u64>>> {
    state.iter().map(|(name, tensor)| Ok((name.to_string(), bits(tensor)?))).collect()
}

/// Everything trained of both networks.
fn states(trainer: &Trainer) -> Result<[BTreeMap<String, Vec<u64>>; 2]> {
    Ok([state_bits(&trainer.state(Role::Teacher)?)?, state_bits(&trainer.state(Role::Student)?)?])
}
