//! The frozen vision transformer: the network itself, its two ways of computing, and its weight files.

mod composed;
mod fast;
mod model;
mod portable;
mod prompts;
mod run;
mod weights;

pub use model::{Vit, VitOptions};
pub use weights::{Geometry, VitSizes, VitWeights, position_embedding::resample};
