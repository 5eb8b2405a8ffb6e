//! Panics of code that reads files for us, turned into errors.
//!
//! Decoders of images and tables have been found to panic on damaged files. Such a panic is an answer, not an accident:
//! [`catch`] returns it, and after [`keep_quiet`] nothing is written to standard error about it.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    /// Calls of [`catch`] that this thread is in.
    static CATCHING: Cell<usize> = const { Cell::new(0) };
}

/// Result of `work`, or the first line of what it said if it panicked. It must leave nothing half made behind that outlives it.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    CATCHING.set(CATCHING.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(CATCHING.get() - 1);
    done.map_err(|panic| first_line(panic.as_ref()).to_string())
}

/// The first line of what a panic said.
pub(crate) fn first_line(panic: &(dyn Any + Send)) -> &str {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
    message.and_then(|message| message.lines().next()).unwrap_or("no message")
}

/// Whether a panic of this thread would be caught by [`catch`].
pub(crate) fn are_caught() -> bool {
    // A thread that is ending has left every call.
    CATCHING.try_with(Cell::get).is_ok_and(|depth| depth > 0)
}

/// From now on the panic hook in place is called for panics that end something, not for those that [`catch`] returns.
/// A program calls it once, at its start.
pub fn keep_quiet() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !are_caught() {
            hook(info);
        }
    }));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "panics are what is tested")]

    use super::*;

    #[test]
    fn a_panic_becomes_its_first_line_and_only_inside() {
        assert!(!are_caught());
        let depth = |work: &dyn Fn()| catch(work).map(|()| are_caught());
        assert_eq!(depth(&|| assert!(are_caught())), Ok(false));
        assert_eq!(depth(&|| panic!("row {}\nand more", 7)), Err("row 7".into()));
        assert_eq!(depth(&|| std::panic::panic_any(7)), Err("no message".into()));
        let nested = catch(|| {
            let inner = catch(|| panic!("inner"));
            (inner, are_caught())
        });
        assert_eq!(nested, Ok((Err::<(), _>("inner".into()), true)));
        assert!(!are_caught());
    }
}
