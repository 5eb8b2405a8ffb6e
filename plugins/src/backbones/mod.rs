//! Frozen networks.

pub mod vit;
