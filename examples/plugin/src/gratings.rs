//! `gratings`: a stream of images of stripes. The class is the direction of the stripes; images of one class differ in
//! the width, phase and noise of their stripes.

use cdl_core::{
    data::{ImageSet, ImageStream, TaskSettings},
    image::RgbImage,
    prelude::*,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of `gratings`. `cdl describe gratings` prints these comments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GratingsConfig {
    /// Number of classes.
    pub classes: usize,
    /// Number of training images of each class.
    pub train_images: usize,
    /// Number of test images of each class.
    pub test_images: usize,
    /// Standard deviation of the noise, in grey levels.
    pub noise: f64,
    /// Tasks, subsets and transforms.
    #[serde(flatten)]
    pub tasks: TaskSettings,
}

impl Default for GratingsConfig {
    fn default() -> Self {
        Self { classes: 10, train_images: 40, test_images: 10, noise: 30.0, tasks: TaskSettings::default() }
    }
}

cdl_core::register!(Stream {
    name: "gratings",
    about: "Images of stripes; the class is their direction",
    citation: "",
    config: GratingsConfig,
    build: build,
});

/// Side of an image before transforms.
const SIDE: u32 = 32;

struct Images {
    classes: usize,
    per_class: usize,
    noise: f64,
    rng: Rng,
}

impl ImageSet for Images {
    fn len(&self) -> usize {
        self.classes * self.per_class
    }

    fn label(&self, index: usize) -> usize {
        index % self.classes
    }

    fn image(&self, index: usize) -> Result<RgbImage> {
        let mut rng = self.rng.derive(&index.to_string());
        let angle = std::f64::consts::PI * self.label(index) as f64 / self.classes as f64;
        let frequency = 0.8 + 0.2 * rng.standard_normal();
        let phase = 3.0 * rng.standard_normal();
        let (sin, cos) = angle.sin_cos();
        Ok(RgbImage::from_fn(SIDE, SIDE, |x, y| {
            let stripes = (frequency * (cos * f64::from(x) + sin * f64::from(y)) + phase).sin();
            let grey = (128.0 + 80.0 * stripes + self.noise * rng.standard_normal()) as u8;
            [grey, grey, grey].into()
        }))
    }
}

fn build(config: GratingsConfig, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    let GratingsConfig { classes, train_images, test_images, noise, tasks } = config;
    let names = (0..classes).map(|class| format!("direction {class}")).collect();
    let set = |name: &str, per_class: usize| -> Box<dyn ImageSet> {
        Box::new(Images { classes, per_class, noise, rng: context.rng.derive(name) })
    };
    let (train, test) = (set("train", train_images), set("test", test_images));
    Ok(Box::new(ImageStream::new("gratings", names, train, test, &tasks, context)?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn gratings_passes_the_conformance_kit() -> cdl_core::error::Result<()> {
        cdl_core::testing::check_stream("gratings", "")
    }
}
