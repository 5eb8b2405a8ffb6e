//! Whole batches made ahead by a thread of their own, so that copying one to a GPU costs no step any time.

use std::{
    sync::mpsc::{Receiver, sync_channel},
    thread::{self, JoinHandle},
};

/// What another iterator gives, one item ahead. Dropping it ends the thread after the item at hand.
pub(super) struct Ahead<T> {
    items: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Ahead<T> {
    /// Gives `items` back where no thread can be started.
    pub(super) fn new<I>(items: I) -> Result<Self, I>
    where
        I: Iterator<Item = T> + Send + 'static,
    {
        let (sender, received) = sync_channel(1);
        let (work, handed) = sync_channel::<I>(1);
        let thread = thread::Builder::new().name("batches".into()).spawn(move || {
            for item in handed.into_iter().flatten() {
                if sender.send(item).is_err() {
                    return;
                }
            }
        });
        match thread {
            Err(error) => {
                tracing::debug!("no thread to prepare batches, so they are prepared when needed: {error}");
                Err(items)
            }
            Ok(thread) => match work.send(items) {
                Ok(()) => Ok(Self { items: Some(received), thread: Some(thread) }),
                Err(back) => Err(back.0),
            },
        }
    }
}

impl<T> Iterator for Ahead<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.items.as_ref()?.recv().ok()
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        // The queue closes before the thread is waited for.
        self.items = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "a test fails by panicking")]

    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[test]
    fn items_come_in_order_and_end() {
        let Ok(ahead) = Ahead::new(0..100) else { panic!("no thread") };
        assert!(ahead.eq(0..100));
    }

    #[test]
    fn dropping_it_ends_the_thread() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let endless = std::iter::repeat_with(move || counter.fetch_add(1, Ordering::SeqCst));
        let Ok(mut ahead) = Ahead::new(endless) else { panic!("no thread") };
        assert_eq!(ahead.next(), Some(0));
        drop(ahead);
        let after = made.load(Ordering::SeqCst);
        // The one taken, one in the queue, and the one at hand.
        assert!(after <= 4, "{after} were made");
        assert_eq!(Arc::strong_count(&made), 1, "the thread still holds what it made");
    }
}
