//! Frozen vision transformer. `model` contains the forward pass; `weights` reads checkpoints.

mod model;
mod prompts;
mod timm_checkpoint;
mod weights;

pub use model::{Vit, VitOptions};
pub use weights::{Geometry, VitSizes, VitWeights, position_embedding::resample};
