//! Images of random noise, for benchmarks and trials: they need no files, and there is nothing to learn.

use cdl_core::prelude::*;

/// Settings of `noise`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NoiseConfig {
    /// Number of classes.
    pub classes: usize,
    /// Number of training images of each class, which is also the number of test images of each class.
    pub images_per_class: usize,
    /// Tasks, subsets and transforms.
    #[serde(flatten)]
    pub tasks: TaskSettings,
}

impl Default for NoiseConfig {
    fn default() -> Self {
        Self { classes: 10, images_per_class: 10, tasks: TaskSettings::default() }
    }
}

cdl_core::register!(Stream {
    name: "noise",
    about: "Images of random noise, for benchmarks",
    citation: "",
    config: NoiseConfig,
    build: build,
});

/// Side of an image before transforms.
const SIDE: u32 = 32;

struct Noise {
    count: usize,
    classes: usize,
    rng: Rng,
}

impl ImageSet for Noise {
    fn len(&self) -> usize {
        self.count
    }

    fn label(&self, index: usize) -> usize {
        index % self.classes
    }

    fn image(&self, index: usize) -> Result<RgbImage> {
        let mut rng = self.rng.derive(&index.to_string());
        let mut grey = || (128.0 + 50.0 * rng.standard_normal()) as u8;
        Ok(RgbImage::from_fn(SIDE, SIDE, |_, _| [grey(), grey(), grey()].into()))
    }
}

fn build(config: NoiseConfig, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    let NoiseConfig { classes, images_per_class, tasks } = config;
    let names = (0..classes).map(|class| format!("class {class}")).collect();
    let set = |name: &str| -> Box<dyn ImageSet> {
        Box::new(Noise {
            count: classes * images_per_class,
            classes: classes.max(1),
            rng: context.rng.derive(name),
        })
    };
    Ok(Box::new(ImageStream::new("noise", names, set("train"), set("test"), &tasks, context)?))
}
