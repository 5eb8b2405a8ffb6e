//! Tests of the program as users run it. One binary, so that it is linked once and the tests share the processors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;
mod cases;
mod check;
mod common;
mod compare;
mod data;
mod discovery;
mod export;
mod guide;
mod hub_data;
mod input;
mod invalid_input;
mod methods;
mod predict;
mod published_options;
mod report;
#[cfg(unix)]
mod resume;
mod run;
mod run_places;
#[cfg(unix)]
mod sweep;
#[cfg(unix)]
mod sweep_stops;
mod tensorboard;
