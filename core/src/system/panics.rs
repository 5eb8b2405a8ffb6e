//! Conversion of panics in file readers to errors.
//!
//! Decoders of images and tables can panic on damaged files. [`catch`] returns such a panic as an error. After
//! [`silence_caught`], the panic hook does not print it.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    /// Depth of nested calls of [`catch`] on this thread.
    static CATCHING: Cell<usize> = const { Cell::new(0) };
}

/// Calls `work`. Returns its result, or the first line of the message if it panics. A panic of `work` must not leave
/// shared state inconsistent.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    CATCHING.set(CATCHING.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(CATCHING.get() - 1);
    result.map_err(|panic| first_line(panic.as_ref()).to_string())
}

/// Returns the first line of the message of a panic.
pub(crate) fn first_line(panic: &(dyn Any + Send)) -> &str {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
    message.and_then(|message| message.lines().next()).unwrap_or("no message")
}

/// Returns whether [`catch`] would catch a panic of this thread.
pub(crate) fn are_caught() -> bool {
    // The variable is gone while a thread ends. Such a thread has left all calls of `catch`.
    CATCHING.try_with(Cell::get).is_ok_and(|depth| depth > 0)
}

/// Disables the current panic hook for panics that [`catch`] returns. A program calls this function once, at its start.
pub fn silence_caught() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !are_caught() {
            hook(info);
        }
    }));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "tests of panics")]

    use super::*;

    #[test]
    fn catch_returns_the_first_line_of_a_panic() {
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
