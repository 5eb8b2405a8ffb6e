//! Registry of plugins by name. A method registers itself with [`register!`](crate::register). No other code of the
//! framework contains its name.

use std::{fmt, sync::Arc};

use crate::{
    error::{Error, Result, nearest},
    registry::{Settings, panic_guard::Guarded, settings::leaves},
    traits::{
        Backbone, BackboneContext, Distiller, DistillerContext, Learner, LearnerContext, StreamContext,
        TaskStream,
    },
};

/// Kind of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A frozen network.
    Backbone,
    /// A prompt method.
    Learner,
    /// A distillation method.
    Distiller,
    /// A data set divided into tasks.
    Stream,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Backbone, Self::Learner, Self::Distiller, Self::Stream];

    /// Returns the lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backbone => "backbone",
            Self::Learner => "learner",
            Self::Distiller => "distiller",
            Self::Stream => "stream",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Function that builds a plugin from its settings, one variant for each kind.
#[derive(Debug, Clone, Copy)]
pub enum Build {
    /// Builds a backbone.
    Backbone(fn(&Settings, &BackboneContext<'_>) -> Result<Arc<dyn Backbone>>),
    /// Builds a learner.
    Learner(fn(&Settings, &LearnerContext<'_>) -> Result<Box<dyn Learner>>),
    /// Builds a distiller.
    Distiller(fn(&Settings, &DistillerContext<'_>) -> Result<Box<dyn Distiller>>),
    /// Builds a stream.
    Stream(fn(&Settings, &StreamContext<'_>) -> Result<Box<dyn TaskStream>>),
}

impl Build {
    /// Returns the kind of plugin that the function builds.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Backbone(_) => Kind::Backbone,
            Self::Learner(_) => Kind::Learner,
            Self::Distiller(_) => Kind::Distiller,
            Self::Stream(_) => Kind::Stream,
        }
    }
}

/// Registered plugin, created by [`register!`](crate::register).
#[derive(Debug)]
pub struct Entry {
    /// Name in configurations.
    pub name: &'static str,
    /// Description in one line, for lists.
    pub about: &'static str,
    /// Paper or data set to cite.
    pub citation: &'static str,
    /// Source of a stream's data: a data set on the hub (`hf:owner/name`), which can be fetched, or a sentence with
    /// address and licence.
    pub source: Option<&'static str>,
    /// Crate and module that registered the plugin.
    pub origin: &'static str,
    /// Returns the JSON schema of the settings.
    pub schema: fn() -> serde_json::Value,
    /// Returns the default settings.
    pub defaults: fn() -> Result<Settings>,
    /// Checks keys and types of settings and fills in the defaults.
    pub complete: fn(&Settings) -> Result<Settings>,
    /// Builds the plugin.
    pub build: Build,
}

inventory::collect!(Entry);

/// Registers a plugin of the kind `Backbone`, `Learner`, `Distiller` or `Stream`.
///
/// `config` is the type of the settings; its doc comments are the user documentation of `cdl describe`, its `Default`
/// the default settings. `build` is a function of `(config, &context)`. A stream may state the source of its data after
/// the citation, as `source: "hf:owner/name",` or in a sentence.
///
/// ```
/// use cdl_core::prelude::*;
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// /// Settings of `scaled_cross_entropy`.
/// #[derive(Debug, Serialize, Deserialize, JsonSchema)]
/// #[serde(default)]
/// struct ScaledCrossEntropy {
///     /// Weight of cross-entropy.
///     weight_of_labels: f64,
/// }
///
/// impl Default for ScaledCrossEntropy {
///     fn default() -> Self {
///         Self { weight_of_labels: 0.5 }
///     }
/// }
///
/// impl Distiller for ScaledCrossEntropy {
///     fn cross_entropy_weight(&self) -> f64 {
///         self.weight_of_labels
///     }
///
///     fn loss(&self, _: &Output, _: Option<&Output>, _: &Tensor, _: &Task) -> Result<Vec<LossTerm>> {
///         Ok(Vec::new())
///     }
/// }
///
/// cdl_core::register!(Distiller {
///     name: "scaled_cross_entropy",
///     about: "Cross-entropy with a weight, without distillation",
///     citation: "none",
///     config: ScaledCrossEntropy,
///     build: |config: ScaledCrossEntropy, _context| {
///         ranges::positive("weight_of_labels", config.weight_of_labels)?;
///         Ok(Box::new(config) as Box<dyn Distiller>)
///     },
/// });
///
/// # fn main() -> Result<()> {
/// use cdl_core::registry::{Kind, find};
///
/// let entry = find(Kind::Distiller, "scaled_cross_entropy")?;
/// assert_eq!((entry.defaults)()?["weight_of_labels"].as_float(), Some(0.5));
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! register {
    ($kind:ident {
        name: $name:literal,
        about: $about:literal,
        citation: $citation:literal,
        $(source: $source:literal,)?
        config: $config:ty,
        build: $build:expr $(,)?
    }) => {
        $crate::inventory::submit! {
            $crate::registry::Entry {
                name: $name,
                about: $about,
                citation: $citation,
                source: {
                    const GIVEN: &[&str] = &[$($source)?];
                    GIVEN.first().copied()
                },
                origin: module_path!(),
                schema: $crate::registry::schema_of::<$config>,
                defaults: $crate::registry::defaults_of::<$config>,
                complete: $crate::registry::complete::<$config>,
                build: $crate::registry::Build::$kind(|settings, context| {
                    let build = $build;
                    build($crate::registry::parse::<$config>(settings)?, context)
                }),
            }
        }
    };
}

/// Returns all plugins of a kind, sorted by name.
///
/// # Errors
/// Two plugins with the same name. The error contains both origins.
pub fn entries(kind: Kind) -> Result<Vec<&'static Entry>> {
    let mut entries: Vec<_> =
        inventory::iter::<Entry>.into_iter().filter(|entry| entry.build.kind() == kind).collect();
    entries.sort_by_key(|entry| (entry.name, entry.origin));
    match entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(Error::DuplicateName {
            kind: kind.as_str(),
            name: pair[0].name.into(),
            first: pair[0].origin.into(),
            second: pair[1].origin.into(),
        }),
        None => Ok(entries),
    }
}

/// Returns the plugin of this kind and name.
///
/// # Errors
/// An unknown name. The error contains the nearest and all registered names.
pub fn find(kind: Kind, name: &str) -> Result<&'static Entry> {
    let entries = entries(kind)?;
    entries.iter().find(|entry| entry.name == name).copied().ok_or_else(|| Error::UnknownName {
        kind: kind.as_str(),
        name: name.into(),
        nearest: nearest(name, entries.iter().map(|entry| entry.name)),
        known: entries.iter().map(|entry| entry.name.to_string()).collect(),
    })
}

/// Builds the backbone `name`.
///
/// # Errors
/// An unknown name, settings that the plugin refuses, and a panic of the plugin.
pub fn backbone(name: &str, settings: &Settings, context: &BackboneContext<'_>) -> Result<Arc<dyn Backbone>> {
    match find(Kind::Backbone, name)?.build {
        Build::Backbone(build) => {
            Ok(Arc::new(Guarded::build(Kind::Backbone, name, || build(settings, context))?))
        }
        ref other => Err(wrong_kind(name, other)),
    }
}

/// Builds the learner `name`.
///
/// # Errors
/// An unknown name, settings that the plugin refuses, and a panic of the plugin.
pub fn learner(name: &str, settings: &Settings, context: &LearnerContext<'_>) -> Result<Box<dyn Learner>> {
    match find(Kind::Learner, name)?.build {
        Build::Learner(build) => {
            let built = Guarded::build(Kind::Learner, name, || build(settings, context));
            Ok(Box::new(built.map_err(|error| too_large(settings, error))?))
        }
        ref other => Err(wrong_kind(name, other)),
    }
}

/// Builds the distiller `name`.
///
/// # Errors
/// An unknown name, settings that the plugin refuses, and a panic of the plugin.
pub fn distiller(
    name: &str,
    settings: &Settings,
    context: &DistillerContext<'_>,
) -> Result<Box<dyn Distiller>> {
    match find(Kind::Distiller, name)?.build {
        Build::Distiller(build) => {
            let built = Guarded::build(Kind::Distiller, name, || build(settings, context));
            Ok(Box::new(built.map_err(|error| too_large(settings, error))?))
        }
        ref other => Err(wrong_kind(name, other)),
    }
}

/// Builds the stream `name`.
///
/// # Errors
/// An unknown name, settings that the plugin refuses, and a panic of the plugin.
pub fn stream(name: &str, settings: &Settings, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    match find(Kind::Stream, name)?.build {
        Build::Stream(build) => {
            Ok(Box::new(Guarded::build(Kind::Stream, name, || build(settings, context))?))
        }
        ref other => Err(wrong_kind(name, other)),
    }
}

/// Converts the error of a tensor that exceeds memory to the error of the setting that caused it: the largest setting
/// equal to a dimension of the tensor.
fn too_large(settings: &Settings, error: Error) -> Error {
    let Error::Memory { ref shape, needed, free } = error else { return error };
    let size = |value: &toml::Value| usize::try_from(value.as_integer()?).ok().filter(|n| shape.contains(n));
    let sizes = leaves(settings).into_iter().filter_map(|(key, value)| Some((size(value)?, key)));
    match sizes.max() {
        Some((value, key)) => {
            let [needed, free] = [needed, free].map(|bytes| bytes as f64 / 1e9);
            let expected = format!(
                "expected a smaller number: a tensor would need {needed:.1} GB, {free:.1} GB are free"
            );
            Error::setting(&key, value, expected)
        }
        None => error,
    }
}

fn wrong_kind(name: &str, build: &Build) -> Error {
    Error::Config { origin: name.into(), reason: format!("is registered as a {}", build.kind()) }
}
