//! Plugins by name. A method registers itself with one [`register!`](crate::register) line; nothing else in the
//! framework names it.

use std::{fmt, sync::Arc};

use crate::{
    error::{Error, Result, nearest},
    registry::{Settings, panic_guard::Guarded, settings::leaves},
    traits::{
        Backbone, BackboneContext, Distiller, DistillerContext, Learner, LearnerContext, StreamContext,
        TaskStream,
    },
};

/// The four kinds of plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A frozen network.
    Backbone,
    /// A prompt method.
    Learner,
    /// A distillation method.
    Distiller,
    /// A data set arriving in tasks.
    Stream,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Backbone, Self::Learner, Self::Distiller, Self::Stream];

    /// Lower-case name.
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

/// Makes a plugin of its settings; one variant for each kind.
#[derive(Debug, Clone, Copy)]
pub enum Build {
    /// Makes a backbone.
    Backbone(fn(&Settings, &BackboneContext<'_>) -> Result<Arc<dyn Backbone>>),
    /// Makes a learner.
    Learner(fn(&Settings, &LearnerContext<'_>) -> Result<Box<dyn Learner>>),
    /// Makes a distiller.
    Distiller(fn(&Settings, &DistillerContext<'_>) -> Result<Box<dyn Distiller>>),
    /// Makes a stream.
    Stream(fn(&Settings, &StreamContext<'_>) -> Result<Box<dyn TaskStream>>),
}

impl Build {
    /// Kind of plugin that it makes.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Backbone(_) => Kind::Backbone,
            Self::Learner(_) => Kind::Learner,
            Self::Distiller(_) => Kind::Distiller,
            Self::Stream(_) => Kind::Stream,
        }
    }
}

/// A registered plugin; made by [`register!`](crate::register).
#[derive(Debug)]
pub struct Entry {
    /// The name in configurations.
    pub name: &'static str,
    /// One line for listings.
    pub about: &'static str,
    /// Paper or data set to cite.
    pub citation: &'static str,
    /// Of a stream, where its data can be had: a data set on the hub, `hf:owner/name`, which can be fetched, or a sentence
    /// with the address and the licence.
    pub source: Option<&'static str>,
    /// Crate and module that registered it.
    pub origin: &'static str,
    /// JSON schema of its settings.
    pub schema: fn() -> serde_json::Value,
    /// All settings at their defaults.
    pub defaults: fn() -> Result<Settings>,
    /// Its settings read from what was written, with defaults filled in: also a check of types and keys.
    pub complete: fn(&Settings) -> Result<Settings>,
    /// Makes it.
    pub build: Build,
}

inventory::collect!(Entry);

/// Registers a plugin. `config` is its settings type (with `Default`; doc comments are the user's documentation),
/// `build` a function of `(config, &context)`. After its citation a stream may say where its data can be had, as
/// `source: "hf:owner/name",` or in a sentence.
///
/// ```ignore
/// cdl_core::register!(Distiller {
///     name: "kd", about: "...", citation: "...", config: KdConfig, build: Kd::build,
/// });
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

/// All plugins of a kind, sorted by name.
///
/// # Errors
/// Two plugins of one name, with both origins.
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

/// The plugin of this kind and name.
///
/// # Errors
/// An unknown name, with the nearest and all registered ones.
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
pub fn backbone(name: &str, settings: &Settings, context: &BackboneContext<'_>) -> Result<Arc<dyn Backbone>> {
    match find(Kind::Backbone, name)?.build {
        Build::Backbone(build) => {
            Ok(Arc::new(Guarded::build(Kind::Backbone, name, || build(settings, context))?))
        }
        ref other => Err(wrong_kind(name, other)),
    }
}

/// Builds the learner `name`.
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
pub fn stream(name: &str, settings: &Settings, context: &StreamContext<'_>) -> Result<Box<dyn TaskStream>> {
    match find(Kind::Stream, name)?.build {
        Build::Stream(build) => {
            Ok(Box::new(Guarded::build(Kind::Stream, name, || build(settings, context))?))
        }
        ref other => Err(wrong_kind(name, other)),
    }
}

/// Names the setting that asks for a tensor without memory: the largest that is one of the tensor's sizes.
fn too_large(settings: &Settings, error: Error) -> Error {
    let Error::Memory { ref shape, needed, free } = error else { return error };
    let size = |value: &toml::Value| usize::try_from(value.as_integer()?).ok().filter(|n| shape.contains(n));
    let sizes = leaves(settings).into_iter().filter_map(|(key, value)| Some((size(value)?, key)));
    match sizes.max() {
        Some((value, key)) => {
            let [needed, free] = [needed, free].map(|bytes| bytes as f64 / 1e9);
            let expected = format!("expected less: {needed:.1} GB would be taken, {free:.1} GB are free");
            Error::setting(&key, value, expected)
        }
        None => error,
    }
}

fn wrong_kind(name: &str, build: &Build) -> Error {
    Error::Config { origin: name.into(), reason: format!("is a {}", build.kind()) }
}
