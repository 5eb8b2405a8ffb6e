//! The frozen vision transformer: `model` is its forward pass, `weights` reads its checkpoints.

mod model;
mod prompts;
mod timm_checkpoint;
mod weights;

pub use model::{Vit, VitOptions};
pub use weights::{Geometry, VitSizes, VitWeights, position_embedding::resample};
