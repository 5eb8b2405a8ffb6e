//! Relational knowledge distillation (Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068):
//! an example of a distiller outside the repository's crates, complete in one file.
//!
//! Matches relations among images instead of features: distances between pairs and angles in triplets of images,
//! measured on the CLS token after the final norm. This program is `cdl` with one additional method:
//!
//! ```sh
//! cargo run --release -p cdl-examples --bin relational_kd -- run examples/configs/relational_kd.toml
//! ```

use cdl_core::{
    candle_core::{D, Tensor},
    error::Result,
    nn::kl_divergence,
    registry::ranges,
    traits::{Distiller, DistillerContext, LossTerm, Output, Task, require_teacher},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of `relational_kd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct RelationalKdConfig {
    /// Weight of the soft targets. Cross-entropy is weighted by `1 - alpha`.
    alpha: f64,
    /// Softmax temperature. Higher values give softer targets.
    temperature: f64,
    /// Weight of the distances between pairs of images.
    distance_weight: f64,
    /// Weight of the angles in triplets of images.
    angle_weight: f64,
}

impl Default for RelationalKdConfig {
    fn default() -> Self {
        Self { alpha: 0.5, temperature: 2.0, distance_weight: 1.0, angle_weight: 2.0 }
    }
}

cdl_core::register!(Distiller {
    name: "relational_kd",
    about: "Relational knowledge distillation: distances and angles between the teacher's features of images",
    citation: "Park et al., CVPR 2019, arXiv:1904.05068",
    config: RelationalKdConfig,
    build: |config, context| Ok(Box::new(RelationalKd::new(config, context)?) as Box<dyn Distiller>),
});

struct RelationalKd {
    config: RelationalKdConfig,
}

impl RelationalKd {
    fn new(config: RelationalKdConfig, _context: &DistillerContext<'_>) -> Result<Self> {
        ranges::fraction("alpha", config.alpha)?;
        ranges::positive("temperature", config.temperature)?;
        ranges::non_negative("distance_weight", config.distance_weight)?;
        ranges::non_negative("angle_weight", config.angle_weight)?;
        Ok(Self { config })
    }
}

impl Distiller for RelationalKd {
    fn cross_entropy_weight(&self) -> f64 {
        1.0 - self.config.alpha
    }

    fn loss(
        &self,
        student: &Output,
        teacher: Option<&Output>,
        _labels: &Tensor,
        task: &Task,
    ) -> Result<Vec<LossTerm>> {
        let teacher = require_teacher(teacher)?;
        let RelationalKdConfig { alpha, temperature, distance_weight, angle_weight } = self.config;
        let current = |logits: &Tensor| logits.narrow(1, task.classes.start, task.classes.len());
        let soft = kl_divergence(&current(&student.logits)?, &current(&teacher.logits)?, temperature)?;
        let (s, t) = (&student.features.cls, &teacher.features.cls); // (B, Ds), (B, Dt)
        let distance = huber(&(distances(s)? - distances(t)?)?)?;
        let angle = huber(&(angles(s)? - angles(t)?)?)?;
        Ok(vec![
            LossTerm::new("kd", (soft * (alpha * temperature * temperature))?),
            LossTerm::new("distance", (distance * distance_weight)?),
            LossTerm::new("angle", (angle * angle_weight)?),
        ])
    }
}

/// Returns `x_i - x_j` `(B, B, D)` of features `(B, D)`.
fn differences(x: &Tensor) -> Result<Tensor> {
    Ok(x.unsqueeze(1)?.broadcast_sub(&x.unsqueeze(0)?)?)
}

/// Returns the lengths of vectors along the last axis, which is kept. Zero vectors get length 1e-12 and no gradient.
fn lengths(x: &Tensor) -> Result<Tensor> {
    Ok(x.sqr()?.sum_keepdim(D::Minus1)?.maximum(1e-24)?.sqrt()?)
}

/// Returns `‖x_i - x_j‖` `(B, B)` divided by their mean over pairs of different images.
fn distances(x: &Tensor) -> Result<Tensor> {
    let distances = lengths(&differences(x)?)?.squeeze(2)?;
    let images = x.dim(0)? as f64;
    let mean = (distances.sum_all()? / (images * (images - 1.0)).max(1.0))?.maximum(1e-12)?;
    Ok(distances.broadcast_div(&mean)?)
}

/// Returns the cosines of the angles at image i between images j and k, `(B, B, B)`.
fn angles(x: &Tensor) -> Result<Tensor> {
    let differences = differences(x)?;
    let directions = differences.broadcast_div(&lengths(&differences)?)?; // (B, B, D)
    Ok(directions.matmul(&directions.transpose(1, 2)?.contiguous()?)?)
}

/// Returns the mean of `e²/2` where `|e| < 1`, else `|e| - 1/2`.
fn huber(error: &Tensor) -> Result<Tensor> {
    let size = error.abs()?;
    let near = size.lt(1.0)?;
    Ok(near.where_cond(&(error.sqr()? * 0.5)?, &(size - 0.5)?)?.mean_all()?)
}

cdl_cli::main!();

#[cfg(test)]
mod tests {
    use super::*;
    use cdl_core::candle_core::Device;

    #[test]
    fn relational_kd_passes_the_conformance_kit() -> Result<()> {
        cdl_core::testing::check_distiller("relational_kd", "")
    }

    /// A right triangle with legs 3 and 4: sides 3, 4, 5 with mean 4; cosine 0 at the right angle.
    #[test]
    fn relations_of_a_right_triangle_are_exact() -> Result<()> {
        let x = Tensor::new(&[[0f64, 0.0], [3.0, 0.0], [0.0, 4.0]], &Device::Cpu)?;
        let distances = distances(&x)?.to_vec2::<f64>()?;
        assert!((distances[0][1] - 0.75).abs() < 1e-9 && (distances[1][2] - 1.25).abs() < 1e-9);
        let angles = angles(&x)?.to_vec3::<f64>()?;
        assert!(angles[0][1][2].abs() < 1e-9 && (angles[1][0][2] - 0.6).abs() < 1e-9);
        // Scaling and rotation preserve the relations, so the loss is zero.
        let rotated = Tensor::new(&[[1f64, 1.0], [1.0, 7.0], [-7.0, 1.0]], &Device::Cpu)?;
        let zero = huber(&(self::distances(&rotated)? - self::distances(&x)?)?)?.to_scalar::<f64>()?;
        assert!(zero < 1e-18, "{zero}");
        Ok(())
    }

    #[test]
    fn huber_is_quadratic_then_linear() -> Result<()> {
        let loss = huber(&Tensor::new(&[0.5f64, -3.0], &Device::Cpu)?)?.to_scalar::<f64>()?;
        assert_eq!(loss, (0.125 + 2.5) / 2.0);
        Ok(())
    }
}
