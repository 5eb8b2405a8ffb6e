//! Plugins: loading them into the program, and making them.

pub mod compile;
pub mod loading;
pub mod scaffold;
pub mod sdk;
