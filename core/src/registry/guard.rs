//! Panics of plugins become errors that name the plugin and the method, whether it is linked in or loaded: whatever a
//! method does, the finished tasks of a run stay. The registry puts a guard around everything that it builds.

use std::{
    any::Any,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    registry::Kind,
    rng::Rng,
    system::panics,
    traits::{
        Backbone, BackboneSpec, Batch, Batches, ClassCount, DataRecord, Distiller, DistillerTaps, EpochKey,
        Features, Head, Injection, Inspection, Learner, LeftOut, Lengths, LossTerm, Macs, NamedVar, Output,
        Pass, Portable, Query, Quirk, Skipped, StateDict, Taps, Task, TaskStream,
    },
    transform::TransformConfig,
};

/// Runs `run`; a panic of a plugin that could not be returned where it happened is returned here.
///
/// # Errors
/// Those of `run`, and [`Error::Panicked`].
pub fn catch<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| match panic.downcast::<Error>() {
        Ok(error) => Err(*error),
        Err(panic) => resume_unwind(panic),
    })
}

/// Runs a backward pass, in which a plugin's own operations may panic.
pub(crate) fn backward<T>(run: impl FnOnce() -> candle_core::Result<T>) -> Result<T> {
    Name { kind: "loss", plugin: "total".into() }.result("backward", || Ok(run()?))
}

/// Whose methods are called.
#[derive(Clone)]
struct Name {
    kind: &'static str,
    plugin: String,
}

impl Name {
    fn of(kind: Kind, plugin: &str) -> Self {
        Self { kind: kind.as_str(), plugin: plugin.into() }
    }

    fn error(&self, method: &'static str, panic: Box<dyn Any + Send>) -> Error {
        match panic.downcast::<Error>() {
            Ok(inner) => *inner,
            Err(panic) => Error::Panicked {
                kind: self.kind,
                plugin: self.plugin.clone(),
                method,
                message: panics::first_line(panic.as_ref()).into(),
            },
        }
    }

    /// The result of `run`, or its panic as an error.
    fn result<T>(&self, method: &'static str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(self.error(method, panic)))
    }

    /// The value of `run`; its panic goes on as an error, for [`catch`] or the next guard that can return one.
    fn value<T>(&self, method: &'static str, run: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|panic| resume_unwind(Box::new(self.error(method, panic))))
    }
}

/// A plugin between guards.
struct Guarded<T> {
    name: Name,
    inner: T,
}

/// Builds a plugin and puts guards around it.
fn build<T>(kind: Kind, plugin: &str, build: impl FnOnce() -> Result<T>) -> Result<Guarded<T>> {
    let name = Name::of(kind, plugin);
    let inner = name.result("build", build)?;
    Ok(Guarded { name, inner })
}

pub(crate) fn backbone(
    name: &str,
    make: impl FnOnce() -> Result<Arc<dyn Backbone>>,
) -> Result<Arc<dyn Backbone>> {
    Ok(Arc::new(build(Kind::Backbone, name, make)?))
}

pub(crate) fn learner(
    name: &str,
    make: impl FnOnce() -> Result<Box<dyn Learner>>,
) -> Result<Box<dyn Learner>> {
    Ok(Box::new(build(Kind::Learner, name, make)?))
}

pub(crate) fn distiller(
    name: &str,
    make: impl FnOnce() -> Result<Box<dyn Distiller>>,
) -> Result<Box<dyn Distiller>> {
    Ok(Box::new(build(Kind::Distiller, name, make)?))
}

pub(crate) fn stream(
    name: &str,
    make: impl FnOnce() -> Result<Box<dyn TaskStream>>,
) -> Result<Box<dyn TaskStream>> {
    Ok(Box::new(build(Kind::Stream, name, make)?))
}

// A method that is not passed on would silently be the trait's default.
#[deny(clippy::missing_trait_methods)]
impl Backbone for Guarded<Arc<dyn Backbone>> {
    fn spec(&self) -> &BackboneSpec {
        self.name.value("spec", || self.inner.spec())
    }

    fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features> {
        self.name.result("forward", || self.inner.forward(pixels, injection, taps))
    }

    fn macs(&self, lengths: &Lengths) -> Macs {
        self.name.value("macs", || self.inner.macs(lengths))
    }

    fn weights(&self) -> Result<Vec<(String, Tensor)>> {
        self.name.result("weights", || self.inner.weights())
    }

    fn portable(&self) -> Result<Option<Portable>> {
        self.name.result("portable", || self.inner.portable())
    }
}

#[deny(clippy::missing_trait_methods)]
impl Learner for Guarded<Box<dyn Learner>> {
    fn begin_task(&mut self, task: &Task, rng: &mut Rng) -> Result<()> {
        self.name.result("begin_task", || self.inner.begin_task(task, rng))
    }

    fn inject(&self, query: &Query<'_>, pass: Pass) -> Result<Injection> {
        self.name.result("inject", || self.inner.inject(query, pass))
    }

    fn logits(&self, features: &Features) -> Result<Tensor> {
        self.name.result("logits", || self.inner.logits(features))
    }

    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        let inner = self.name.result("new_head", || self.inner.new_head(name, rng))?;
        Ok(Box::new(Guarded { name: self.name.clone(), inner }))
    }

    fn end_task(&mut self, task: &Task) -> Result<()> {
        self.name.result("end_task", || self.inner.end_task(task))
    }

    fn quirks(&self) -> Vec<Quirk> {
        self.name.value("quirks", || self.inner.quirks())
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.name.value("trainable", || self.inner.trainable())
    }

    fn state(&self) -> Result<StateDict> {
        self.name.result("state", || self.inner.state())
    }

    fn restore(&mut self, task: &Task, state: &StateDict) -> Result<()> {
        self.name.result("restore", || self.inner.restore(task, state))
    }
}

#[deny(clippy::missing_trait_methods)]
impl Head for Guarded<Box<dyn Head>> {
    fn logits(&self, token: &Tensor) -> Result<Tensor> {
        self.name.result("logits of a head", || self.inner.logits(token))
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.name.value("trainable of a head", || self.inner.trainable())
    }
}

#[deny(clippy::missing_trait_methods)]
impl Distiller for Guarded<Box<dyn Distiller>> {
    fn cross_entropy_weight(&self) -> f64 {
        self.name.value("cross_entropy_weight", || self.inner.cross_entropy_weight())
    }

    fn needs_teacher(&self) -> bool {
        self.name.value("needs_teacher", || self.inner.needs_teacher())
    }

    fn taps(&self) -> DistillerTaps {
        self.name.value("taps", || self.inner.taps())
    }

    fn inject(&self, pass: Pass) -> Result<Injection> {
        self.name.result("inject", || self.inner.inject(pass))
    }

    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>> {
        self.name.result("loss", || self.inner.loss(student, teacher, labels, task))
    }

    fn predicts(&self) -> bool {
        self.name.value("predicts", || self.inner.predicts())
    }

    fn predict(&self, student: &Output) -> Result<Tensor> {
        self.name.result("predict", || self.inner.predict(student))
    }

    fn trainable(&self) -> Vec<NamedVar> {
        self.name.value("trainable", || self.inner.trainable())
    }

    fn state(&self) -> Result<StateDict> {
        self.name.result("state", || self.inner.state())
    }

    fn restore(&mut self, state: &StateDict) -> Result<()> {
        self.name.result("restore", || self.inner.restore(state))
    }
}

#[deny(clippy::missing_trait_methods)]
impl TaskStream for Guarded<Box<dyn TaskStream>> {
    fn classes(&self) -> &[String] {
        self.name.value("classes", || self.inner.classes())
    }

    fn tasks(&self) -> &[Task] {
        self.name.value("tasks", || self.inner.tasks())
    }

    fn image_size(&self) -> usize {
        self.name.value("image_size", || self.inner.image_size())
    }

    fn transform(&self) -> Option<TransformConfig> {
        self.name.value("transform", || self.inner.transform())
    }

    fn train_classes(&self, task: usize) -> Range<usize> {
        self.name.value("train_classes", || self.inner.train_classes(task))
    }

    fn quirks(&self) -> Vec<Quirk> {
        self.name.value("quirks", || self.inner.quirks())
    }

    fn train_count(&self, task: usize) -> usize {
        self.name.value("train_count", || self.inner.train_count(task))
    }

    fn test_count(&self, task: usize) -> usize {
        self.name.value("test_count", || self.inner.test_count(task))
    }

    fn fingerprint(&self) -> &str {
        self.name.value("fingerprint", || self.inner.fingerprint())
    }

    fn skipped(&self) -> Skipped {
        self.name.value("skipped", || self.inner.skipped())
    }

    fn class_counts(&self) -> Vec<ClassCount> {
        self.name.value("class_counts", || self.inner.class_counts())
    }

    fn files(&self) -> Result<Vec<DataRecord>> {
        self.name.result("files", || self.inner.files())
    }

    fn inspect(&self, task: usize, most: usize, seen: &(dyn Fn() + Sync)) -> Inspection {
        self.name.value("inspect", || self.inner.inspect(task, most, seen))
    }

    fn left_out(&self) -> LeftOut {
        self.name.value("left_out", || self.inner.left_out())
    }

    fn leave_out(&self, images: &LeftOut) {
        self.name.value("leave_out", || self.inner.leave_out(images));
    }

    fn train_batches_from(&self, key: EpochKey, batch_size: usize, first: usize) -> Batches<'_> {
        let batches =
            self.name.value("train_batches_from", || self.inner.train_batches_from(key, batch_size, first));
        Box::new(GuardedBatches { name: &self.name, method: "train_batches_from", batches })
    }

    fn train_batches(&self, key: EpochKey, batch_size: usize) -> Batches<'_> {
        let batches = self.name.value("train_batches", || self.inner.train_batches(key, batch_size));
        Box::new(GuardedBatches { name: &self.name, method: "train_batches", batches })
    }

    fn test_batches(&self, task: usize, batch_size: usize) -> Batches<'_> {
        let batches = self.name.value("test_batches", || self.inner.test_batches(task, batch_size));
        Box::new(GuardedBatches { name: &self.name, method: "test_batches", batches })
    }
}

/// Batches of a stream between guards.
struct GuardedBatches<'a> {
    name: &'a Name,
    method: &'static str,
    batches: Batches<'a>,
}

impl Iterator for GuardedBatches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.name.result(self.method, || self.batches.next().transpose()).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panicking(name: &Name) -> Result<u8> {
        name.value("inner", || panic!("broken {}", 1))
    }

    #[test]
    fn the_innermost_plugin_is_named() {
        let [outer, inner] = ["outer", "inner"].map(|plugin| Name::of(Kind::Learner, plugin));
        for error in [
            outer.result("method", || panicking(&inner)).unwrap_err(),
            catch(|| panicking(&inner)).unwrap_err(),
        ] {
            assert_eq!(error.to_string(), "learner `inner` panicked in `inner`: broken 1");
        }
        let error = outer.result("method", || -> Result<u8> { panic!("own") }).unwrap_err();
        assert_eq!(error.to_string(), "learner `outer` panicked in `method`: own");
    }

    #[test]
    fn what_is_no_plugins_panic_goes_on() {
        let caught = catch_unwind(|| catch(|| -> Result<u8> { panic!("a defect of the program") }));
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"a defect of the program"));
    }
}
