//! Time of a step by the spans of `cdl-core`: phases on the thread that trains (level debug), within
//! them operations on the threads that compute (level trace).

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Level, Subscriber, span};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

/// Time by phase and operation, collected as a layer of `tracing`.
#[derive(Debug, Clone, Default)]
pub struct Profile(Arc<Mutex<Times>>);

/// Times since they were last taken.
#[derive(Debug, Default)]
pub struct Times {
    /// Wall time of each phase, without that of phases inside it.
    pub phases: BTreeMap<&'static str, Duration>,
    /// Time of all threads in each operation of a phase.
    pub operations: BTreeMap<(&'static str, &'static str), Duration>,
    /// Phases that are open, each with the time of those inside it.
    open: Vec<(&'static str, Duration)>,
}

thread_local! {
    static STARTS: RefCell<Vec<Instant>> = const { RefCell::new(Vec::new()) };
}

impl Profile {
    /// Takes the collected times; collecting begins anew.
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
