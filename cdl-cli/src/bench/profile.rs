//! Profile of a step from the tracing spans of `cdl-core`: phases of the training thread (level debug), and within them
//! operations of the compute threads (level trace).

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Level, Subscriber, span};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

/// Layer of `tracing` that collects times by phase and operation.
#[derive(Debug, Clone, Default)]
pub struct Profile(Arc<Mutex<Times>>);

/// Times since the last [`Profile::take`].
#[derive(Debug, Default)]
pub struct Times {
    /// Wall time of each phase, without nested phases.
    pub phases: BTreeMap<&'static str, Duration>,
    /// Time of each operation of a phase, summed over threads.
    pub operations: BTreeMap<(&'static str, &'static str), Duration>,
    /// Open phases, each with the time of its nested phases.
    open: Vec<(&'static str, Duration)>,
}

thread_local! {
    /// Start times of the spans that are open on this thread, the innermost last.
    static STARTS: RefCell<Vec<Instant>> = const { RefCell::new(Vec::new()) };
}

impl Profile {
    /// Returns the collected times and resets them.
    pub fn take(&self) -> Times {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Profile {
    fn on_enter(&self, id: &span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if *span.metadata().level() == Level::DEBUG {
            let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            times.open.push((span.name(), Duration::ZERO));
        }
        STARTS.with_borrow_mut(|starts| starts.push(Instant::now()));
    }

    fn on_exit(&self, id: &span::Id, context: Context<'_, S>) {
        let Some(start) = STARTS.with_borrow_mut(Vec::pop) else { return };
        let Some(span) = context.span(id) else { return };
        let elapsed = start.elapsed();
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *span.metadata().level() != Level::DEBUG {
            let phase = times.open.last().map_or("", |(name, _)| name);
            *times.operations.entry((phase, span.name())).or_default() += elapsed;
            return;
        }
        let Some((name, inside)) = times.open.pop() else { return };
        if let Some((_, around)) = times.open.last_mut() {
            *around += elapsed;
        }
        *times.phases.entry(name).or_default() += elapsed.saturating_sub(inside);
    }
}
