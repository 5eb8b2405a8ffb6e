//! Plugins: creating, building and loading them.

pub mod compile;
pub mod loading;
pub mod probe;
pub mod scaffold;
pub mod sdk;
