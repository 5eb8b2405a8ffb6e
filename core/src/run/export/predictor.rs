//! Using the folder.

use std::{path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;

use crate::{
    data::upload_squares,
    error::{Error, Result},
    run::{
        builder::Setup,
        export::{Description, FrozenNetwork, Kept, MODEL, NETWORK, QUERY, TRAINED, description, fail},
    },
    system::{
        device::{self, Precision},
        memory,
    },
    train::{DistillerStack, Network},
    traits::{Backbone, BackboneSpec, Distiller, Query, Role, StateDict},
    transform::TransformConfig,
};

/// Images of the largest batch, whatever the machine has.
pub const LARGEST_BATCH: usize = 1 << 16;

/// A class with how well an image fits it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Its name.
    pub class: String,
    /// Its place in `classes.json`.
    pub index: usize,
    /// Softmax of the logits over all classes that the model has learned.
    pub probability: f32,
    /// As the run's network computes it.
    pub logit: f32,
}

/// An image as a network sees it: a square of 8-bit pixels.
#[derive(Debug, Clone)]
pub struct PreprocessedImage(RgbImage);

impl PreprocessedImage {
    /// An image, however large, as a network with this [`Description::transform`] sees it.
    pub fn of(image: &RgbImage, transform: &TransformConfig) -> Self {
        Self(transform.test(image))
    }
}

/// An exported model, ready to be asked.
///
/// ```no_run
/// # fn main() -> cdl_core::error::Result<()> {
/// let model = cdl_core::run::export::Predictor::load("student")?;
/// let image = cdl_core::transform::open("boot.png".as_ref())?;
/// for best in &model.predict(&[image], 5)?[0] {
///     println!("{} {:.1} %", best.class, 100.0 * best.probability);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Predictor {
    description: Description,
    classes: Vec<String>,
    network: Network,
    query: Option<Arc<dyn Backbone>>,
    distiller: DistillerStack,
    device: Device,
    trained_bytes: usize,
}

impl Predictor {
    /// Loads a folder that was exported, onto a GPU if this build and machine have one. The methods that it names have to
    /// be registered, as those of `cdl_plugins` are.
    ///
    /// # Errors
    /// Files that are missing, damaged or of a newer format, by name; methods that are not registered.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        Self::load_on(folder, &device::open("auto", Precision::Float32)?)
    }

    /// The same on a device.
    pub fn load_on(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let folder = folder.as_ref();
        let description = description::description(folder)?;
        let classes = description::classes(folder)?;
        let task = description.task(classes.len()).map_err(|reason| fail(&folder.join(MODEL), reason))?;
        description::check_plugins(folder, &description)?;
        let trained = StateDict::read(&folder.join(TRAINED), device)?;
        description::check_sizes(folder, &description, classes.len(), &trained)?;
        let setup = Setup {
            seed: description.seed,
            mode: description.mode,
            device,
            precision: device::precision_on(device, description.precision),
            image_size: description.transform.image_size,
            classes: classes.len(),
            tasks: task.count,
            locate: Box::new(|section, error| description::located(folder, &description, section, error)),
        };
        let role = description.role;
        let frozen = |role: Role, name: &str, network: &FrozenNetwork| {
            let section = (network.plugin.as_str(), &network.settings);
            let built =
                setup.backbone(role, &format!("{name}.settings"), section, Some(&folder.join(name)))?;
            description::same_sizes(&folder.join(MODEL), name, &network.spec, built.spec())?;
            Ok::<_, Error>(built)
        };
        let backbone = frozen(role, NETWORK, &description.network)?;
        let query =
            description.query.as_ref().map(|query| frozen(Role::Student, QUERY, query)).transpose()?;
        let own = query.as_ref().unwrap_or(&backbone).spec().width;
        let query_width = description.query_width.unwrap_or(own);
        let trained_bytes = bytes(trained.iter().map(|(_, tensor)| tensor));
        // No tensor of a method may take more than the saved ones do.
        let most = trained_bytes as u64;
        let mut learner = memory::within(most, || {
            setup.learner(role, "learner", &description.learner, backbone.spec(), query_width)
        })?;
        learner.restore(&task, &trained).map_err(|error| (setup.locate)("learner", error))?;
        let mut distillers = Vec::new();
        for (place, Kept { index, section }) in description.distillers.iter().enumerate() {
            let missing = || fail(&folder.join(MODEL), "has distillers, and no `teacher`");
            let networks = [description.teacher.as_ref().ok_or_else(missing)?, backbone.spec()];
            let place = format!("distillers[{place}].section");
            let distiller = memory::within(most, || {
                setup.distiller(*index, &place, section, networks, learner.as_ref())
            })?;
            distillers.push((section.name.clone(), section.weight, distiller));
        }
        let mut distiller = DistillerStack::new(distillers)?;
        distiller.restore(&trained).map_err(|error| (setup.locate)("distillers", error))?;
        drop(setup);
        let network = Network { backbone, learner };
        // Another thread may be the one that asks.
        device.synchronize()?;
        Ok(Self { description, classes, network, query, distiller, device: device.clone(), trained_bytes })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The classes that it can answer with.
    pub fn classes(&self) -> &[String] {
        let seen = self.description.tasks.last().map_or(0, |last| last.end);
        self.classes.get(..seen).unwrap_or(&self.classes)
    }

    /// Bytes of the tensors: the frozen ones, that of another network's query included, and the trained ones.
    pub fn weight_bytes(&self) -> Result<(usize, usize)> {
        let mut frozen = 0;
        for backbone in [Some(&self.network.backbone), self.query.as_ref()].into_iter().flatten() {
            frozen += bytes(backbone.weights()?.iter().map(|(_, tensor)| tensor));
        }
        Ok((frozen, self.trained_bytes))
    }

    /// The most images of a batch for which there is room: on the CPU as far as memory is free, after an estimate of what
    /// a pass through the network takes; anywhere no more than 65,536.
    pub fn most_images(&self) -> usize {
        let free = memory::available_bytes().filter(|_| self.device.is_cpu());
        free.map_or(LARGEST_BATCH, |free| most_images(free, self.network.backbone.spec()))
    }

    /// The `top` classes for each image, the best first.
    pub fn predict(&self, images: &[RgbImage], top: usize) -> Result<Vec<Vec<Prediction>>> {
        let transform = &self.description.transform;
        let seen: Vec<PreprocessedImage> =
            images.par_iter().map(|image| PreprocessedImage::of(image, transform)).collect();
        self.predict_preprocessed(&seen, top)
    }

    /// The same of images that are transformed already.
    pub fn predict_preprocessed(
        &self,
        images: &[PreprocessedImage],
        top: usize,
    ) -> Result<Vec<Vec<Prediction>>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.logits(&self.pixels(images)?)?.to_vec2::<f32>()?;
        Ok(logits.iter().map(|logits| best(logits, self.classes(), top)).collect())
    }

    /// Pixels `(B, 3, S, S)` in `[0, 1]` of images as this network sees them.
    ///
    /// # Errors
    /// What goes wrong in a tensor operation, as with images that another network sees.
    pub fn pixels(&self, images: &[PreprocessedImage]) -> Result<Tensor> {
        let side = self.description.transform.image_size;
        if let Some(PreprocessedImage(other)) =
            images.iter().find(|PreprocessedImage(square)| square.width() as usize != side)
        {
            let promise =
                format!("it is a square of {side} px, as this network sees it, not of {}", other.width());
            return Err(Error::Promise { plugin: "an image".into(), promise });
        }
        let squares: Vec<&RgbImage> = images.iter().map(|PreprocessedImage(square)| square).collect();
        upload_squares(&squares, side, &self.device)
    }

    /// Logits `(B, C)` over all classes, also those not learned yet, of pixels `(B, 3, S, S)`: what the run's network
    /// computes, to the bit.
    pub fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let asked = self.query.as_ref().unwrap_or(&self.network.backbone);
        let query = Query::of(asked.as_ref(), pixels);
        let student = self.description.role == Role::Student;
        let distiller = student.then_some(&self.distiller as &dyn Distiller);
        Ok(self.network.predict(distiller, pixels, &query)?.0)
    }
}

fn bytes<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> usize {
    tensors.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
}

/// How many images there is room for in `free` bytes: of each, the pixels, a block's activations (the residual and what it
/// is normalised to, queries, keys and values, the hidden layer and what comes back), and the scores of its attention.
fn most_images(free: u64, spec: &BackboneSpec) -> usize {
    let [side, width, heads, tokens] =
        [spec.image_size, spec.width, spec.heads, spec.patches + 1].map(|size| size as u64);
    let numbers = 3 * side * side + 12 * tokens * width + heads * tokens * tokens;
    usize::try_from(free / (4 * numbers)).unwrap_or(LARGEST_BATCH).clamp(1, LARGEST_BATCH)
}

/// The `top` of `classes` by their logits, the first of equal ones first.
fn best(logits: &[f32], classes: &[String], top: usize) -> Vec<Prediction> {
    let mut places: Vec<(usize, f32)> = logits.iter().copied().take(classes.len()).enumerate().collect();
    places.sort_by(|a, b| b.1.total_cmp(&a.1));
    let most = places.first().map_or(0.0, |best| f64::from(best.1));
    let weight = |logit: f32| (f64::from(logit) - most).exp();
    let total: f64 = places.iter().map(|&(_, logit)| weight(logit)).sum();
    let prediction = |&(index, logit): &(usize, f32)| Prediction {
        class: classes[index].clone(),
        index,
        probability: (weight(logit) / total) as f32,
        logit,
    };
    places.iter().take(top).map(prediction).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traits::{Normalization, Provenance};

    #[test]
    fn the_best_come_first_and_only_classes_that_were_learned() {
        let classes = ["a", "b", "c"].map(String::from);
        let best = best(&[0.0, (3f32).ln(), 0.0, 100.0], &classes, 2);
        let found: Vec<_> = best.iter().map(|p| (p.class.as_str(), p.index, p.logit)).collect();
        assert_eq!(found, [("b", 1, (3f32).ln()), ("a", 0, 0.0)]);
        assert!((best[0].probability - 0.6).abs() < 1e-6 && (best[1].probability - 0.2).abs() < 1e-6);
    }

    #[test]
    fn a_batch_has_room_in_memory_and_an_end_anywhere() {
        // ViT-B/16 at 224 px: 7.9 MB for the pixels and 197 tokens of width 768, and 1.9 MB for the scores of twelve heads.
        let spec = BackboneSpec {
            plugin: "test".into(),
            width: 768,
            depth: 12,
            heads: 12,
            patch_size: 16,
            image_size: 224,
            patches: 196,
            normalization: Normalization::NONE,
            provenance: Provenance::of_bytes("test", &[]),
        };
        let one = 4 * (3 * 224 * 224 + 12 * 197 * 768 + 12 * 197 * 197);
        assert_eq!(most_images(10 * one + 1, &spec), 10);
        assert_eq!(most_images(0, &spec), 1, "one image is always tried");
        assert_eq!(most_images(u64::MAX, &spec), LARGEST_BATCH);
    }
}
