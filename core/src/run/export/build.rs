//! Building what a folder describes. Sizes are compared with the tensors before anything of that size is made.

use std::{path::Path, sync::Arc};

use candle_core::Device;

use crate::{
    error::{Error, Result},
    registry::{self, dynamic},
    rng::Rng,
    run::{
        builder::{distiller_rng, learner_rng},
        export::{CLASSES, Description, FrozenNetwork, MODEL, TRAINED, description, fail},
    },
    system::device,
    train::Stack,
    traits::{
        Backbone, BackboneContext, BackboneSpec, Distiller, DistillerContext, Learner, LearnerContext, Role,
        StateDict, Task,
    },
};

/// Builds what a description names.
pub(super) struct Builder<'a> {
    pub(super) folder: &'a Path,
    pub(super) description: &'a Description,
    /// What the methods are restored from.
    pub(super) trained: &'a StateDict,
    pub(super) classes: usize,
    pub(super) task: &'a Task,
    pub(super) device: &'a Device,
}

impl Builder<'_> {
    /// The frozen network in the folder `name`, which is also its key in the description.
    pub(super) fn backbone(
        &self,
        role: Role,
        name: &str,
        network: &FrozenNetwork,
    ) -> Result<Arc<dyn Backbone>> {
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
        let backbone = built.map_err(|error| self.located(&format!("{name}.settings"), error))?;
        description::same_sizes(&self.folder.join(MODEL), name, &network.spec, backbone.spec())?;
        Ok(backbone)
    }

    pub(super) fn learner(&self, backbone: &BackboneSpec, query_width: usize) -> Result<Box<dyn Learner>> {
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
            saved: Some(self.trained),
        };
        registry::learner(&learner.name, &learner.settings, &context)
            .map_err(|error| self.located("learner", error))
    }

    pub(super) fn distillers(&self, student: &BackboneSpec, learner: &dyn Learner) -> Result<Stack> {
        let mut built: Vec<(String, f64, Box<dyn Distiller>)> = Vec::new();
        for (place, kept) in self.description.distillers.iter().enumerate() {
            let missing = || fail(&self.folder.join(MODEL), "has distillers, and no `teacher`");
            let context = DistillerContext {
                teacher: self.description.teacher.as_ref().ok_or_else(missing)?,
                student,
                learner,
                tasks: self.task.count,
                mode: self.description.mode,
                device: self.device,
                rng: distiller_rng(&Rng::new(self.description.seed), kept.index),
                saved: Some(self.trained),
            };
            let section = &kept.section;
            let distiller = registry::distiller(&section.name, &section.settings, &context)
                .map_err(|error| self.located(&format!("distillers[{place}].section"), error))?;
            built.push((section.name.clone(), section.weight, distiller));
        }
        Stack::new(built)
    }

    /// The error of a method whose settings stand under `section`, with the file and the key where what it refuses
    /// stands, and with the plugins that are wanted where a name is not known.
    fn located(&self, section: &str, error: Error) -> Error {
        let file = self.folder.join(MODEL);
        let wanted: Vec<String> = (self.description.plugins.iter())
            .map(|plugin| format!("{} {}", plugin.name, plugin.version))
            .collect();
        match error {
            unknown @ Error::UnknownName { .. } => {
                let key = match section.strip_suffix(".settings") {
                    Some(network) => format!("{network}.plugin"),
                    None => format!("{section}.name"),
                };
                let plugins = match &wanted[..] {
                    [] => String::new(),
                    wanted => format!("; it was made with the plugin {}, see --plugin", wanted.join(", ")),
                };
                fail(&file, format!("`{key}`: {unknown}{plugins}"))
            }
            // Not settings, but what the method is built for.
            Error::Setting { key, value, expected, .. } if key == "classes" => {
                description::setting(&self.folder.join(CLASSES), &key, &value, expected)
            }
            Error::Setting { key, value, expected, .. }
                if key == "query_width" || key.starts_with("teacher.") =>
            {
                description::setting(&file, &key, &value, expected)
            }
            Error::Setting { key, value, expected, .. } => {
                description::setting(&file, &format!("{section}.{key}"), &value, expected)
            }
            Error::UnknownKey { key, nearest, known, .. } => {
                let (origin, key) = (file.display().to_string(), format!("{section}.{key}"));
                Error::UnknownKey { origin, key, nearest, known }
            }
            Error::State { owner, reason } => fail(&self.folder.join(TRAINED), format!("{owner}: {reason}")),
            Error::Config { reason, .. } => fail(&file, format!("`{section}`: {reason}")),
            error => error,
        }
    }
}

/// Refuses another library under the name of one that the model was made with. Methods that are linked in are taken as they
/// are.
pub(super) fn check_plugins(folder: &Path, description: &Description) -> Result<()> {
    let loaded = dynamic::loaded();
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
