//! Backbones: frozen pretrained networks.

pub mod vit;
