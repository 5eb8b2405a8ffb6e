//! Guards that convert a panic in a plugin's method to an error with the names of plugin and method, so that the
//! finished tasks of a run are kept. The registry guards every plugin that it builds, linked or loaded.

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
    traits::*,
};

/// Calls `run`. Returns the error of a plugin's panic in a method whose signature cannot return errors. Other panics
/// continue.
pub fn catch<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    let to_error =
        |panic: Box<dyn Any + Send>| panic.downcast().map_or_else(|p| resume_unwind(p), |e| Err(*e));
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(to_error)
}

/// Runs a backward pass, in which custom operations of plugins may panic.
pub(crate) fn backward<T>(run: impl FnOnce() -> candle_core::Result<T>) -> Result<T> {
    Name { kind: "loss", plugin: "total".into() }.result("backward", || Ok(run()?))
}

/// Kind and name of a guarded plugin, for errors.
#[derive(Clone)]
struct Name {
    kind: &'static str,
    plugin: String,
}

impl Name {
    /// Calls `run` and converts a panic to an error.
    fn result<T>(&self, method: &'static str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            Err(match panic.downcast() {
                // An inner guard has already converted the panic.
                Ok(error) => *error,
                Err(panic) => Error::Panicked {
                    kind: self.kind,
                    plugin: self.plugin.clone(),
                    method,
                    message: panics::first_line(panic.as_ref()).into(),
                },
            })
        })
    }

    /// Calls `run` for a method that cannot return errors. A panic continues with the error as its payload, for
    /// [`catch`] or for the next guard that can return errors.
    fn value<T>(&self, method: &'static str, run: impl FnOnce() -> T) -> T {
        self.result(method, || Ok(run())).unwrap_or_else(|error| resume_unwind(Box::new(error)))
    }

    /// Calls `make` and guards each of its batches.
    fn batches<'a>(&'a self, method: &'static str, make: impl FnOnce() -> Batches<'a>) -> Batches<'a> {
        let mut batches = self.value(method, make);
        let next = move || self.result(method, || batches.next().transpose()).transpose();
        Box::new(std::iter::from_fn(next))
    }
}

/// Plugin with a guard around each method.
pub(super) struct Guarded<T> {
    name: Name,
    inner: T,
}

impl<T> Guarded<T> {
    /// Builds a plugin and guards it.
    pub(super) fn build(kind: Kind, plugin: &str, build: impl FnOnce() -> Result<T>) -> Result<Self> {
        let name = Name { kind: kind.as_str(), plugin: plugin.into() };
        let inner = name.result("build", build)?;
        Ok(Self { name, inner })
    }
}

/// Forwards trait methods to the guarded plugin. `result` methods can return errors, `value` methods cannot.
macro_rules! forward {
    ($how:ident: $(fn $method:ident(&$([$mut:tt])? $self:ident $(, $name:ident: $type:ty)*) -> $out:ty;)*) => {$(
        fn $method(&$($mut)? $self $(, $name: $type)*) -> $out {
            $self.name.$how(stringify!($method), || $self.inner.$method($($name),*))
        }
    )*};
}

// A method that is not forwarded would silently use the trait's default.
#[deny(clippy::missing_trait_methods)]
impl Backbone for Guarded<Arc<dyn Backbone>> {
    forward! { result:
        fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features>;
        fn weights(&self) -> Result<Vec<(String, Tensor)>>;
        fn portable(&self) -> Result<Option<Portable>>;
    }
    forward! { value:
        fn spec(&self) -> &BackboneSpec;
        fn macs(&self, lengths: &Lengths) -> Macs;
    }
}

#[deny(clippy::missing_trait_methods)]
impl Learner for Guarded<Box<dyn Learner>> {
    forward! { result:
        fn begin_task(&[mut] self, task: &Task, rng: &mut Rng) -> Result<()>;
        fn inject(&self, query: &Query<'_>, pass: Pass) -> Result<Injection>;
        fn logits(&self, features: &Features) -> Result<Tensor>;
        fn end_task(&[mut] self, task: &Task) -> Result<()>;
        fn state(&self) -> Result<StateDict>;
        fn restore(&[mut] self, task: &Task, state: &StateDict) -> Result<()>;
    }
    forward! { value:
        fn quirks(&self) -> Vec<Quirk>;
        fn trainable(&self) -> Vec<NamedVar>;
    }
    fn new_head(&self, name: &str, rng: &mut Rng) -> Result<Box<dyn Head>> {
        let inner = self.name.result("new_head", || self.inner.new_head(name, rng))?;
        Ok(Box::new(Guarded { name: Name { kind: "head of learner", ..self.name.clone() }, inner }))
    }
}

#[deny(clippy::missing_trait_methods)]
impl Head for Guarded<Box<dyn Head>> {
    forward! { result: fn logits(&self, token: &Tensor) -> Result<Tensor>; }
    forward! { value: fn trainable(&self) -> Vec<NamedVar>; }
}

#[deny(clippy::missing_trait_methods)]
impl Distiller for Guarded<Box<dyn Distiller>> {
    forward! { result:
        fn inject(&self, pass: Pass) -> Result<Injection>;
        fn loss(&self, student: &Output, teacher: Option<&Output>, labels: &Tensor, task: &Task)
            -> Result<Vec<LossTerm>>;
        fn predict(&self, student: &Output) -> Result<Tensor>;
        fn state(&self) -> Result<StateDict>;
        fn restore(&[mut] self, state: &StateDict) -> Result<()>;
    }
    forward! { value:
        fn cross_entropy_weight(&self) -> f64;
        fn needs_teacher(&self) -> bool;
        fn taps(&self) -> DistillerTaps;
        fn predicts(&self) -> bool;
        fn trainable(&self) -> Vec<NamedVar>;
    }
}

#[deny(clippy::missing_trait_methods)]
impl TaskStream for Guarded<Box<dyn TaskStream>> {
    forward! { result: fn record(&self) -> Result<StreamRecord>; }
    forward! { value:
        fn classes(&self) -> &[String];
        fn tasks(&self) -> &[Task];
        fn image_size(&self) -> usize;
        fn train_count(&self, task: usize) -> usize;
        fn test_count(&self, task: usize) -> usize;
        fn train_classes(&self, task: usize) -> Range<usize>;
        fn quirks(&self) -> Vec<Quirk>;
        fn image_files(&self) -> Option<&dyn ImageFiles>;
    }
    fn train_batches(&self, key: EpochKey, batch_size: usize, first: usize) -> Batches<'_> {
        self.name.batches("train_batches", || self.inner.train_batches(key, batch_size, first))
    }
    fn test_batches(&self, task: usize, batch_size: usize) -> Batches<'_> {
        self.name.batches("test_batches", || self.inner.test_batches(task, batch_size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panicking(name: &Name) -> Result<u8> {
        name.value("inner", || panic!("broken {}", 1))
    }

    #[test]
    fn an_error_names_the_innermost_plugin() {
        let [outer, inner] = ["outer", "inner"].map(|p| Name { kind: "learner", plugin: p.into() });
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
    fn panics_outside_plugins_continue() {
        let caught = catch_unwind(|| catch(|| -> Result<u8> { panic!("a defect of the program") }));
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"a defect of the program"));
    }
}
