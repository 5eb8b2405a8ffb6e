//! Using the folder.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use serde::{Serialize, de::DeserializeOwned};

use super::{CLASSES, Description, FORMAT, FrozenNetwork, MODEL, NETWORK, QUERY, TRAINED, fail};
use crate::{
    Backbone, BackboneContext, BackboneSpec, Distiller, DistillerContext, Error, Learner, LearnerContext,
    Network, Query, Result, Rng, Role, Stack, StateDict, Task,
    device::{self, Precision},
    experiment::{distiller_rng, learner_rng},
    hub::checksum,
    manifest::{self, Manifest},
    plugin, registry,
    transform::{TransformConfig, write_pixels},
};

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

/// An exported model, ready to be asked.
///
/// ```no_run
/// # fn main() -> cdl_core::Result<()> {
/// let model = cdl_core::Predictor::load("student")?;
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
    distiller: Stack,
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
    ///
    /// # Errors
    /// As [`Predictor::load`].
    pub fn load_on(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let folder = folder.as_ref();
        let description = read_description(folder)?;
        let classes: Vec<String> = read_json(&folder.join(CLASSES))?;
        let task = description.task(classes.len()).map_err(|reason| fail(&folder.join(MODEL), reason))?;
        check_plugins(folder, &description)?;
        let builder =
            Builder { folder, description: &description, classes: classes.len(), task: &task, device };
        let backbone = builder.backbone(description.role, NETWORK, &description.network)?;
        let query = match &description.query {
            Some(query) => Some(builder.backbone(Role::Student, QUERY, query)?),
            None => None,
        };
        let file = folder.join(TRAINED);
        let trained = StateDict::read(&file, device)?;
        let in_file = |error: Error| match error {
            Error::State { owner, reason } => fail(&file, format!("{owner}: {reason}")),
            error => error,
        };
        let asked = query.as_ref().unwrap_or(&backbone).spec().width;
        let mut learner = builder.learner(backbone.spec(), asked)?;
        learner.restore(&task, &trained).map_err(in_file)?;
        let mut distiller = builder.distillers(backbone.spec(), learner.as_ref())?;
        distiller.restore(&trained).map_err(in_file)?;
        let network = Network { backbone, learner };
        // Another thread may be the one that asks.
        device.synchronize()?;
        let trained_bytes = bytes(trained.iter().map(|(_, tensor)| tensor));
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
    ///
    /// # Errors
    /// Frozen tensors that cannot be had.
    pub fn weight_bytes(&self) -> Result<(usize, usize)> {
        let mut frozen = 0;
        for backbone in [Some(&self.network.backbone), self.query.as_ref()].into_iter().flatten() {
            frozen += bytes(backbone.weights()?.iter().map(|(_, tensor)| tensor));
        }
        Ok((frozen, self.trained_bytes))
    }

    /// The `top` classes for each image, the best first.
    ///
    /// # Errors
    /// What goes wrong in a method or in a tensor operation.
    pub fn predict(&self, images: &[RgbImage], top: usize) -> Result<Vec<Vec<Prediction>>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.logits(&self.pixels(images)?)?.to_vec2::<f32>()?;
        Ok(logits.iter().map(|logits| best(logits, self.classes(), top)).collect())
    }

    /// Images as the network sees them, `(B, 3, S, S)` in `[0, 1]`.
    ///
    /// # Errors
    /// What goes wrong in a tensor operation.
    pub fn pixels(&self, images: &[RgbImage]) -> Result<Tensor> {
        let transform: &TransformConfig = &self.description.transform;
        let side = transform.image_size;
        let mut values = vec![0f32; images.len() * 3 * side * side];
        images
            .par_iter()
            .zip(values.par_chunks_exact_mut(3 * side * side))
            .for_each(|(image, values)| write_pixels(&transform.test(image), values));
        device::upload(values, (images.len(), 3, side, side), &self.device)
    }

    /// Logits `(B, C)` over all classes, also those not learned yet, of pixels `(B, 3, S, S)`: what the run's network
    /// computes, to the bit.
    ///
    /// # Errors
    /// Shapes that do not fit the network.
    pub fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let asked = self.query.as_ref().unwrap_or(&self.network.backbone);
        let query = Query::of(asked.as_ref(), pixels);
        match self.description.role {
            Role::Teacher => Ok(self.network.teacher_logits(pixels, &query)?.0),
            Role::Student => Ok(self.network.student_logits(&self.distiller, pixels, &query)?.0),
        }
    }
}

/// Builds what a description names.
struct Builder<'a> {
    folder: &'a Path,
    description: &'a Description,
    classes: usize,
    task: &'a Task,
    device: &'a Device,
}

impl Builder<'_> {
    fn backbone(&self, role: Role, name: &str, network: &FrozenNetwork) -> Result<Arc<dyn Backbone>> {
        let folder = self.folder.join(name);
        let context = BackboneContext {
            role,
            image_size: self.description.transform.image_size,
            mode: self.description.mode,
            device: self.device,
            precision: device::precision_on(self.device, self.description.precision),
            folder: Some(&folder),
        };
        let built = registry::backbone(&network.plugin, &network.settings, &context);
        let backbone = built.map_err(|error| self.known(error))?;
        let spec = BackboneSpec { provenance: network.spec.provenance.clone(), ..backbone.spec().clone() };
        match spec == network.spec {
            true => Ok(backbone),
            false => Err(fail(&folder, format!("is a network of other sizes than {MODEL} says"))),
        }
    }

    fn learner(&self, backbone: &BackboneSpec, query_width: usize) -> Result<Box<dyn Learner>> {
        let Description { role, mode, seed, ref learner, .. } = *self.description;
        let context = LearnerContext {
            role,
            backbone,
            query_width,
            classes: self.classes,
            tasks: self.task.count,
            mode,
            device: self.device,
            rng: learner_rng(&Rng::new(seed), role),
        };
        registry::learner(&learner.name, &learner.settings, &context).map_err(|error| self.known(error))
    }

    fn distillers(&self, student: &BackboneSpec, learner: &dyn Learner) -> Result<Stack> {
        let mut built: Vec<(String, f64, Box<dyn Distiller>)> = Vec::new();
        for kept in &self.description.distillers {
            let missing = || fail(&self.folder.join(MODEL), "has distillers, and no `teacher`");
            let context = DistillerContext {
                teacher: self.description.teacher.as_ref().ok_or_else(missing)?,
                student,
                learner,
                tasks: self.task.count,
                mode: self.description.mode,
                device: self.device,
                rng: distiller_rng(&Rng::new(self.description.seed), kept.index),
            };
            let section = &kept.section;
            let distiller = registry::distiller(&section.name, &section.settings, &context);
            built.push((section.name.clone(), section.weight, distiller.map_err(|error| self.known(error))?));
        }
        Stack::new(built)
    }

    /// The error, with the plugins that are wanted where a name is not known.
    fn known(&self, error: Error) -> Error {
        let plugins = self.description.plugins.iter();
        let wanted: Vec<String> =
            plugins.map(|plugin| format!("{} {}", plugin.name, plugin.version)).collect();
        match error {
            unknown @ Error::UnknownName { .. } if !wanted.is_empty() => {
                let reason =
                    format!("{unknown}; it was made with the plugin {}, see --plugin", wanted.join(", "));
                fail(self.folder, reason)
            }
            error => error,
        }
    }
}

/// Refuses another library under the name of one that the model was made with. Methods that are linked in are taken as they
/// are.
fn check_plugins(folder: &Path, description: &Description) -> Result<()> {
    let loaded = plugin::loaded();
    let other = description.plugins.iter().find_map(|wanted| {
        let found = loaded.iter().find(|loaded| loaded.manifest.name == wanted.name)?;
        (found.sha256 != wanted.sha256).then_some((wanted, found))
    });
    match other {
        None => Ok(()),
        Some((wanted, found)) => {
            let reason = format!(
                "was made with the plugin {} of the SHA-256 {}; that of {} is {}",
                wanted.name,
                wanted.sha256,
                found.file.display(),
                found.sha256
            );
            Err(fail(&folder.join(MODEL), reason))
        }
    }
}

/// `model.json` of a folder whose files are those that were written.
fn read_description(folder: &Path) -> Result<Description> {
    let file = folder.join(MODEL);
    let value: serde_json::Value = read_json(&file)?;
    match value["format"].as_u64() {
        Some(FORMAT) => {}
        Some(other) => {
            let reason = format!("has format {other}, and this version of cdl reads {FORMAT}");
            return Err(fail(&file, reason));
        }
        None => return Err(fail(&file, "has no `format`: it is no exported model")),
    }
    let sums_file = folder.join(manifest::NAME);
    let sums = Manifest::read(&sums_file).map_err(|error| match error {
        Error::Io { file, source } => fail(&file, format!("cannot be read: {source}")),
        error => error,
    })?;
    let listed = |name: &str| -> Result<()> {
        let file: PathBuf = folder.join(name);
        let Some(sum) = sums.0.get(name) else {
            return Err(fail(&sums_file, format!("does not list {name}")));
        };
        if !file.is_file() {
            return Err(fail(&file, "is missing; export the model again"));
        }
        let (_, found) = checksum(&file)?;
        match found == *sum {
            true => Ok(()),
            false => {
                let list = manifest::NAME;
                Err(fail(
                    &file,
                    format!("is damaged: its SHA-256 is {found}, in {list} {sum}; export it again"),
                ))
            }
        }
    };
    listed(MODEL)?;
    let description: Description = serde_json::from_value(value).map_err(|e| fail(&file, e.to_string()))?;
    description.transform.validate().map_err(|reason| fail(&file, reason))?;
    description.files().iter().try_for_each(|name| listed(name))?;
    Ok(description)
}

fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let bytes = fs::read(file).map_err(|e| {
        fail(file, format!("cannot be read ({e}); expected a folder that `cdl export` has made"))
    })?;
    serde_json::from_slice(&bytes).map_err(|e| fail(file, format!("is damaged: {e}")))
}

fn bytes<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> usize {
    tensors.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
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

    #[test]
    fn the_best_come_first_and_only_classes_that_were_learned() {
        let classes = ["a", "b", "c"].map(String::from);
        let best = best(&[0.0, (3f32).ln(), 0.0, 100.0], &classes, 2);
        let found: Vec<_> = best.iter().map(|p| (p.class.as_str(), p.index, p.logit)).collect();
        assert_eq!(found, [("b", 1, (3f32).ln()), ("a", 0, 0.0)]);
        assert!((best[0].probability - 0.6).abs() < 1e-6 && (best[1].probability - 0.2).abs() < 1e-6);
    }
}
