//! Predictions with an exported model.

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
        export::{
            Description, ExportedDistiller, FrozenNetwork, MODEL, NETWORK, QUERY, TRAINED, description, fail,
        },
    },
    system::{
        device::{self, Precision},
        memory,
    },
    train::{DistillerStack, Network},
    traits::{Backbone, BackboneSpec, Distiller, Query, Role, StateDict},
    transform::TransformConfig,
};

/// Maximum number of images in a batch.
pub const MAX_BATCH: usize = 1 << 16;

/// Predicted class of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// Name of the class.
    pub class: String,
    /// Index of the class in `classes.json`, from 0.
    pub index: usize,
    /// Softmax of the logits over all classes that the model has learned.
    pub probability: f32,
    /// Logit of the class.
    pub logit: f32,
}

/// Input image of a network: a square of 8-bit pixels.
#[derive(Debug, Clone)]
pub struct PreprocessedImage(RgbImage);

impl PreprocessedImage {
    /// Transforms an image of any size for a network with this [`Description::transform`].
    pub fn of(image: &RgbImage, transform: &TransformConfig) -> Self {
        Self(transform.test(image))
    }
}

/// Exported model that predicts the classes of images.
///
/// A program that links `cdl-plugins`, so that the built-in methods are registered, prints the five most probable
/// classes of an image, using a folder written by `cdl export`:
///
/// ```no_run
/// use std::path::Path;
///
/// use cdl_core::run::export::Predictor;
///
/// # fn main() -> cdl_core::error::Result<()> {
/// let model = Predictor::load("student")?;
/// let image = model.description().transform.open(Path::new("boot.png"))?;
/// for prediction in &model.predict(&[image], 5)?[0] {
///     println!("{} {:.1} %", prediction.class, 100.0 * prediction.probability);
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
    /// Loads an exported folder, onto a GPU if there is one and this build supports it. The methods of the model must
    /// be registered; linking `cdl-plugins` registers the built-in methods.
    ///
    /// # Errors
    /// Files that are missing, damaged or of another format; methods that are not registered.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        Self::load_on(folder, &device::open("auto", Precision::Float32)?)
    }

    /// Loads an exported folder onto a device.
    ///
    /// # Errors
    /// Errors of [`Predictor::load`].
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
            description::check_spec(&folder.join(MODEL), name, &network.spec, built.spec())?;
            Ok::<_, Error>(built)
        };
        let backbone = frozen(role, NETWORK, &description.network)?;
        let query =
            description.query.as_ref().map(|query| frozen(Role::Student, QUERY, query)).transpose()?;
        let own = query.as_ref().unwrap_or(&backbone).spec().width;
        let query_width = description.query_width.unwrap_or(own);
        let trained_bytes = bytes(trained.iter().map(|(_, tensor)| tensor));
        // No tensor of a method may have more bytes than all saved tensors together.
        let limit = trained_bytes as u64;
        let mut learner = memory::within(limit, || {
            setup.learner(role, "learner", &description.learner, backbone.spec(), query_width)
        })?;
        learner.restore(&task, &trained).map_err(|error| (setup.locate)("learner", error))?;
        let mut distillers = Vec::new();
        for (place, ExportedDistiller { index, section }) in description.distillers.iter().enumerate() {
            let missing = || fail(&folder.join(MODEL), "has distillers but no `teacher`");
            let networks = [description.teacher.as_ref().ok_or_else(missing)?, backbone.spec()];
            let place = format!("distillers[{place}].section");
            let distiller = memory::within(limit, || {
                setup.distiller(*index, &place, section, networks, learner.as_ref())
            })?;
            distillers.push((section.name.clone(), section.weight, distiller));
        }
        let mut distiller = DistillerStack::new(distillers)?;
        distiller.restore(&trained).map_err(|error| (setup.locate)("distillers", error))?;
        drop(setup);
        let network = Network { backbone, learner };
        // Predictions may run on another thread, so that all copies to the device must be complete.
        device.synchronize()?;
        Ok(Self { description, classes, network, query, distiller, device: device.clone(), trained_bytes })
    }

    /// Returns the device of the model.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the description of the model.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Returns the classes that the model can predict.
    pub fn classes(&self) -> &[String] {
        let seen = self.description.tasks.last().map_or(0, |last| last.end);
        self.classes.get(..seen).unwrap_or(&self.classes)
    }

    /// Returns the sizes in bytes of the frozen tensors (including those of a separate query network) and of the
    /// trained tensors.
    pub fn weight_bytes(&self) -> Result<(usize, usize)> {
        let mut frozen = 0;
        for backbone in [Some(&self.network.backbone), self.query.as_ref()].into_iter().flatten() {
            frozen += bytes(backbone.weights()?.iter().map(|(_, tensor)| tensor));
        }
        Ok((frozen, self.trained_bytes))
    }

    /// Returns the maximum batch size: 65,536, on the CPU at most the estimated number of images whose forward pass
    /// fits into the available memory.
    pub fn max_batch(&self) -> usize {
        let free = memory::available_bytes().filter(|_| self.device.is_cpu());
        free.map_or(MAX_BATCH, |free| max_batch(free, self.network.backbone.spec()))
    }

    /// Returns the `top` most probable classes of each image, the best first.
    pub fn predict(&self, images: &[RgbImage], top: usize) -> Result<Vec<Vec<Prediction>>> {
        let transform = &self.description.transform;
        let preprocessed: Vec<PreprocessedImage> =
            images.par_iter().map(|image| PreprocessedImage::of(image, transform)).collect();
        self.predict_preprocessed(&preprocessed, top)
    }

    /// Returns the `top` most probable classes of each preprocessed image, the best first.
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

    /// Returns the pixels `(B, 3, S, S)` in `[0, 1]` of preprocessed images.
    ///
    /// # Errors
    /// Images that were preprocessed for a network with another image size, and errors of tensor operations.
    pub fn pixels(&self, images: &[PreprocessedImage]) -> Result<Tensor> {
        let side = self.description.transform.image_size;
        if let Some(PreprocessedImage(other)) =
            images.iter().find(|PreprocessedImage(square)| square.width() as usize != side)
        {
            let promise =
                format!("its side is {side} px, the image size of the network, not {} px", other.width());
            return Err(Error::ContractViolation { plugin: "a preprocessed image".into(), promise });
        }
        let squares: Vec<&RgbImage> = images.iter().map(|PreprocessedImage(square)| square).collect();
        upload_squares(&squares, side, &self.device)
    }

    /// Returns the logits `(B, C)` of pixels `(B, 3, S, S)` over all classes, including those not learned yet. They are
    /// bit-identical to the logits of the run's network.
    pub fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let query_network = self.query.as_ref().unwrap_or(&self.network.backbone);
        let query = Query::of(query_network.as_ref(), pixels);
        let student = self.description.role == Role::Student;
        let distiller = student.then_some(&self.distiller as &dyn Distiller);
        Ok(self.network.predict(distiller, pixels, &query)?.0)
    }
}

fn bytes<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> usize {
    tensors.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
}

/// Returns the number of images that fit into `free` bytes. Each image needs memory for its pixels, the activations of
/// a block (residual, normalised residual, queries, keys, values, hidden layer and output of the MLP) and the attention
/// scores of the block.
fn max_batch(free: u64, spec: &BackboneSpec) -> usize {
    let [side, width, heads, tokens] =
        [spec.image_size, spec.width, spec.heads, spec.patches + 1].map(|size| size as u64);
    let numbers = 3 * side * side + 12 * tokens * width + heads * tokens * tokens;
    usize::try_from(free / (4 * numbers)).unwrap_or(MAX_BATCH).clamp(1, MAX_BATCH)
}

/// Returns the `top` classes with the largest logits. Of equal logits, the lower index comes first.
fn best(logits: &[f32], classes: &[String], top: usize) -> Vec<Prediction> {
    let mut ranked: Vec<(usize, f32)> = logits.iter().copied().take(classes.len()).enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let max = ranked.first().map_or(0.0, |best| f64::from(best.1));
    let weight = |logit: f32| (f64::from(logit) - max).exp();
    let total: f64 = ranked.iter().map(|&(_, logit)| weight(logit)).sum();
    let prediction = |&(index, logit): &(usize, f32)| Prediction {
        class: classes[index].clone(),
        index,
        probability: (weight(logit) / total) as f32,
        logit,
    };
    ranked.iter().take(top).map(prediction).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traits::{HeadsFrom, Normalization, Provenance};

    #[test]
    fn predictions_are_sorted_and_contain_only_learned_classes() {
        let classes = ["a", "b", "c"].map(String::from);
        let best = best(&[0.0, (3f32).ln(), 0.0, 100.0], &classes, 2);
        let found: Vec<_> = best.iter().map(|p| (p.class.as_str(), p.index, p.logit)).collect();
        assert_eq!(found, [("b", 1, (3f32).ln()), ("a", 0, 0.0)]);
        assert!((best[0].probability - 0.6).abs() < 1e-6 && (best[1].probability - 0.2).abs() < 1e-6);
    }

    #[test]
    fn max_batch_is_limited_by_memory_and_by_a_constant() {
        // ViT-B/16 at 224 px: 7.9 MB for the pixels and 197 tokens of width 768, and 1.9 MB for the scores of twelve
        // heads.
        let spec = BackboneSpec {
            plugin: "test".into(),
            width: 768,
            depth: 12,
            heads: 12,
            heads_from: HeadsFrom::Stated,
            patch_size: 16,
            image_size: 224,
            patches: 196,
            normalization: Normalization::NONE,
            provenance: Provenance::of_bytes("test", &[]),
        };
        let one = 4 * (3 * 224 * 224 + 12 * 197 * 768 + 12 * 197 * 197);
        assert_eq!(max_batch(10 * one + 1, &spec), 10);
        assert_eq!(max_batch(0, &spec), 1, "one image is always allowed");
        assert_eq!(max_batch(u64::MAX, &spec), MAX_BATCH);
    }
}
