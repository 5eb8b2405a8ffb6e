//! Failures of a command: a message for the terminal and an exit code.

use std::{io, path::PathBuf};

use cdl_core::error::Error;
use signal_hook::consts::{SIGINT, SIGTERM};

/// Offset of exit codes after a signal: a process that signal N stopped exits with this value plus N, as in shells.
pub const SIGNAL_OFFSET: i32 = 128;
/// Exit code of a process whose sweep cell is already run by another process.
pub const BUSY: u8 = 75;

/// Message and exit code of a command that failed.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub code: u8,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { code: if error.is_user_error() { 2 } else { 1 }, message: first_line(&error) }
    }
}

impl Failure {
    /// Invalid input: exit code 2.
    pub fn invalid(message: String) -> Self {
        Self { message, code: 2 }
    }

    /// Failure while running: exit code 1.
    pub fn working(message: String) -> Self {
        Self { message, code: 1 }
    }

    /// True if a signal stopped the process.
    pub fn is_stop(&self) -> bool {
        [SIGINT, SIGTERM].contains(&(i32::from(self.code) - SIGNAL_OFFSET))
    }

    /// Fails if there are `errors`. The message consists of `head(number of errors)` and a line for each error; the
    /// exit code is the highest one of the errors.
    pub fn list(head: impl Fn(usize) -> String, errors: Vec<Error>) -> Result<(), Self> {
        let lines: String = errors.iter().map(|error| format!("\n  {}", first_line(error))).collect();
        let message = format!("{}:{lines}", head(errors.len()));
        let code = errors.into_iter().map(|error| Self::before_writing(error).code).max();
        code.map_or(Ok(()), |code| Err(Self { message, code }))
    }

    /// Failure for an error that occurs before anything is written. The exit code is 2 (invalid input), or 1 if the
    /// network failed.
    pub fn before_writing(error: Error) -> Self {
        let network = matches!(&error, Error::Hub(hub) if !hub.is_user_error());
        Self { code: if network { 1 } else { 2 }, message: first_line(&error) }
    }
}

/// Returns a function that turns an I/O error of `file` into a failure.
pub fn io(file: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Failure {
    let file = file.into();
    move |source| Error::Io { file, source }.into()
}

/// Message of an error on one line. candle appends a backtrace if one is enabled, which is removed; a line break in a
/// path or name is escaped.
pub fn first_line(error: &Error) -> String {
    let message = error.to_string();
    let message = message.split("\n   0: ").next().unwrap_or_default();
    message.trim_end().replace('\n', "\\n")
}
