//! Ordered results of jobs that run ahead on other threads.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, sync_channel},
    },
    thread::{self, JoinHandle},
};

use rayon::prelude::*;

/// Function of a position that computes its result. It must not panic.
type Job<T> = dyn Fn(usize) -> T + Send + Sync;

/// Iterator over `job(0)`, `job(1)`, ... in order.
///
/// Worker `i` of `n` computes positions `i`, `i + n`, `i + 2n`, ... and sends the results through its own
/// queue. The order therefore needs no sorting, and the lengths of the queues bound the number of finished results.
/// Dropping the iterator closes the queues, which ends every worker after its current job.
pub(super) struct Ordered<T> {
    job: Arc<Job<T>>,
    remaining: Range<usize>,
    /// Results and thread of each worker. `None` for a thread that could not be started.
    workers: Vec<(Receiver<T>, Option<JoinHandle<()>>)>,
    /// Without workers: the number of results computed at once, and the finished ones.
    chunk: usize,
    ready: VecDeque<T>,
}

impl<T: Send + 'static> Ordered<T> {
    /// Starts the workers for the first `count` results. They compute up to `ahead` results ahead, rounded up to the
    /// same number for each worker. Without workers, the calling thread and rayon compute `ahead` results at a time.
    pub(super) fn new(count: usize, workers: usize, ahead: usize, job: Arc<Job<T>>) -> Self {
        let ahead = ahead.clamp(1, count.max(1));
        let workers = workers.min(count).min(ahead);
        let workers = (0..workers)
            .map(|first| {
                // The worker itself holds one more result than its queue.
                let (sender, results) = sync_channel(ahead.div_ceil(workers) - 1);
                let mut positions = (first..count).step_by(workers);
                let job = job.clone();
                // Ends after the last position, or when the receiver is dropped.
                let work = move || drop(positions.try_for_each(|position| sender.send(job(position))));
                let thread = thread::Builder::new().name(format!("images {first}")).spawn(work);
                if let Err(error) = &thread {
                    tracing::debug!(
                        "cannot start a thread to prepare images; preparing them when needed: {error}"
                    );
                }
                (results, thread.ok())
            })
            .collect();
        Self { job, remaining: 0..count, workers, chunk: ahead, ready: VecDeque::new() }
    }

    /// Returns the number of remaining results.
    pub(super) fn remaining(&self) -> usize {
        self.remaining.len()
    }
}

impl<T: Send + 'static> Iterator for Ordered<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let position = self.remaining.next()?;
        if !self.workers.is_empty() {
            let (results, _) = &self.workers[position % self.workers.len()];
            // A worker that could not be started sends no results.
            return Some(results.recv().unwrap_or_else(|_| (self.job)(position)));
        }
        if self.ready.is_empty() {
            let end = self.remaining.end.min(position.saturating_add(self.chunk));
            let results: Vec<T> = (position..end).into_par_iter().map(|at| (self.job)(at)).collect();
            self.ready = results.into();
        }
        self.ready.pop_front()
    }
}

impl<T> Ordered<T> {
    /// Ends the iteration and the workers.
    pub(super) fn stop(&mut self) {
        self.remaining = 0..0;
        // All queues close before the first thread is joined, so that all workers end at the same time.
        let threads: Vec<_> = self.workers.drain(..).filter_map(|(_, thread)| thread).collect();
        for thread in threads {
            // The panic hook has reported a panic already.
            let _ = thread.join();
        }
    }
}

impl<T> Drop for Ordered<T> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns the items of `source`, up to two of which are computed ahead on another thread.
pub(super) fn prefetched<T: Send + 'static>(
    source: impl Iterator<Item = T> + Send + 'static,
) -> impl Iterator<Item = T> {
    let source = Mutex::new(source);
    // After a panic of `source`, which the panic hook has reported, the iteration ends.
    let next = move |_| source.lock().ok().and_then(|mut source| source.next());
    Ordered::new(usize::MAX, 1, 2, Arc::new(next)).map_while(|item| item)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_are_in_order_for_any_number_of_workers() {
        for workers in [0, 1, 2, 5, 40] {
            for ahead in [1, 2, 7, 100] {
                let results = Ordered::new(23, workers, ahead, Arc::new(|position| 3 * position));
                assert!(results.eq((0..23).map(|position| 3 * position)), "{workers} workers, {ahead} ahead");
            }
        }
        // Queues are no longer than the number of results, so that a huge `ahead` allocates little.
        let results = Ordered::new(3, 2, usize::MAX, Arc::new(|position| position));
        assert!(results.eq(0..3));
        assert_eq!(Ordered::new(0, 2, 3, Arc::new(|position| position)).next(), None);
    }

    #[test]
    fn prefetched_items_are_in_order_and_the_thread_ends_when_dropped() {
        assert!(prefetched(0..100).eq(0..100));
        let computed = Arc::new(AtomicUsize::new(0));
        let counter = computed.clone();
        let endless = std::iter::repeat_with(move || counter.fetch_add(1, Ordering::SeqCst));
        let mut items = prefetched(endless);
        assert_eq!(items.next(), Some(0));
        drop(items);
        let after = computed.load(Ordering::SeqCst);
        // One received, one in the queue, and the current one.
        assert!(after <= 4, "{after} were computed");
        assert_eq!(Arc::strong_count(&computed), 1, "the thread is still running");
    }
}
