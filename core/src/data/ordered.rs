//! Results in order, some of them computed ahead by threads.

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

/// What is computed for each position. It must not panic.
type Job<T> = dyn Fn(usize) -> T + Send + Sync;

/// `job(0)`, `job(1)`, ... in order.
///
/// Of `n` workers, worker `i` computes positions `i`, `i + n`, `i + 2n`, ... and hands them over through a queue of its
/// own, so that the order needs no sorting and the queues' lengths bound what is ready. Dropping the iterator closes
/// the queues, which ends every worker after the job at hand.
pub(super) struct Ordered<T> {
    job: Arc<Job<T>>,
    left: Range<usize>,
    /// Results and thread of each worker; no thread where none could be started.
    workers: Vec<(Receiver<T>, Option<JoinHandle<()>>)>,
    /// Without workers: how many are computed at once, and those that are ready.
    chunk: usize,
    ready: VecDeque<T>,
}

impl<T: Send + 'static> Ordered<T> {
    /// The first `count` results. Workers are up to `ahead` results ahead, rounded up to the same number for each; with
    /// no workers, the calling thread and rayon's compute `ahead` results whenever none is left.
    pub(super) fn new(count: usize, workers: usize, ahead: usize, job: Arc<Job<T>>) -> Self {
        let ahead = ahead.clamp(1, count.max(1));
        let workers = workers.min(count).min(ahead);
        let workers = (0..workers)
            .map(|first| {
                // One more result than the queue holds waits in the hands of the worker.
                let (sender, results) = sync_channel(ahead.div_ceil(workers) - 1);
                let mut positions = (first..count).step_by(workers);
                let job = job.clone();
                // Until all is done or nobody listens any more.
                let work = move || drop(positions.try_for_each(|position| sender.send(job(position))));
                let thread = thread::Builder::new().name(format!("images {first}")).spawn(work);
                if let Err(error) = &thread {
                    tracing::debug!("no thread to prepare images, so they are prepared when needed: {error}");
                }
                (results, thread.ok())
            })
            .collect();
        Self { job, left: 0..count, workers, chunk: ahead, ready: VecDeque::new() }
    }

    /// How many are still to come.
    pub(super) fn left(&self) -> usize {
        self.left.len()
    }
}

impl<T: Send + 'static> Iterator for Ordered<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let position = self.left.next()?;
        if !self.workers.is_empty() {
            let (results, _) = &self.workers[position % self.workers.len()];
            // A worker that could not be started hands over nothing.
            return Some(results.recv().unwrap_or_else(|_| (self.job)(position)));
        }
        if self.ready.is_empty() {
            let end = self.left.end.min(position.saturating_add(self.chunk));
            let results: Vec<T> = (position..end).into_par_iter().map(|at| (self.job)(at)).collect();
            self.ready = results.into();
        }
        self.ready.pop_front()
    }
}

impl<T> Ordered<T> {
    /// Ends it here: none is to come, and the workers end.
    pub(super) fn stop(&mut self) {
        self.left = 0..0;
        // All queues close before the first thread is waited for.
        let threads: Vec<_> = self.workers.drain(..).filter_map(|(_, thread)| thread).collect();
        for thread in threads {
            // A panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

impl<T> Drop for Ordered<T> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Items of `source`, up to two of them made ahead by a thread of their own.
pub(super) fn ahead<T: Send + 'static>(
    source: impl Iterator<Item = T> + Send + 'static,
) -> impl Iterator<Item = T> {
    let source = Mutex::new(source);
    // A panic has been reported where it happened; nothing follows it.
    let next = move |_| source.lock().ok().and_then(|mut source| source.next());
    Ordered::new(usize::MAX, 1, 2, Arc::new(next)).map_while(|item| item)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_come_in_order_whoever_computes_them() {
        for workers in [0, 1, 2, 5, 40] {
            for ahead in [1, 2, 7, 100] {
                let results = Ordered::new(23, workers, ahead, Arc::new(|position| 3 * position));
                assert!(results.eq((0..23).map(|position| 3 * position)), "{workers} workers, {ahead} ahead");
            }
        }
        // Queues are no longer than there are results; room for all that was allowed could not be had.
        let results = Ordered::new(3, 2, usize::MAX, Arc::new(|position| position));
        assert!(results.eq(0..3));
        assert_eq!(Ordered::new(0, 2, 3, Arc::new(|position| position)).next(), None);
    }

    #[test]
    fn items_of_an_iterator_come_in_order_and_its_thread_ends_early_or_late() {
        assert!(ahead(0..100).eq(0..100));
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let endless = std::iter::repeat_with(move || counter.fetch_add(1, Ordering::SeqCst));
        let mut items = ahead(endless);
        assert_eq!(items.next(), Some(0));
        drop(items);
        let after = made.load(Ordering::SeqCst);
        // The one taken, one in the queue, and the one at hand.
        assert!(after <= 4, "{after} were made");
        assert_eq!(Arc::strong_count(&made), 1, "the thread still holds what it made");
    }
}
