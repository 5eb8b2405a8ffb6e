//! Plugins: creating, building and loading them.

pub mod compile;
pub mod loading;
pub mod scaffold;
pub mod sdk;
