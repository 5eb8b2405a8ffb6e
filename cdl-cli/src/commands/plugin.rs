//! `cdl plugin`: methods that are loaded at run time.

use std::path::PathBuf;

use cdl_core::{
    registry::{Entry, Kind, dynamic, find},
    testing,
};
use clap::{Args, Subcommand};

use crate::{
    failure::Failure,
    plugin::{
        compile::{BuildArgs, build},
        loading::{LOADED, SEARCH, load, searched},
        scaffold::{NewArgs, new},
    },
    terminal::emit,
};

/// The commands of `cdl plugin`.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Make a crate with a method that works, to change into one's own
    New(NewArgs),
    /// Compile a crate into a library that this program loads
    Build(BuildArgs),
    /// Look at a library, load it, and test what its methods promise
    Check(CheckArgs),
    /// List the libraries that are loaded, and those in CDL_PLUGIN_PATH that cannot be
    List,
    /// Load a library and end: what another process asks for before it loads it itself
    #[command(hide = true)]
    Probe {
        /// The library
        file: PathBuf,
    },
}

impl PluginCommand {
    /// Runs it.
    pub fn run(&self, plugins: &[PathBuf]) -> Result<(), Failure> {
        match self {
            Self::New(args) => new(args),
            Self::Build(args) => build(args),
            Self::Check(args) => check(args),
            Self::List => list(plugins),
            Self::Probe { file } => {
                dynamic::load(file)?;
                emit(LOADED)
            }
        }
    }
}

/// Arguments of `cdl plugin check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Methods are tested at their defaults, or with --settings, on tiny random networks: shapes, gradients against finite
differences, what is trained and what is not, determinism, save and restore. A method that is linked in can be named
instead of a file.

Examples:
  cdl plugin check my_method/target/cdl/my_method.so
  cdl plugin check my_method/target/cdl/my_method.so --settings 'alpha = 0.9'
  cdl plugin check NAME")]
pub struct CheckArgs {
    /// The library, or a method's name
    plugin: PathBuf,
    /// Settings in TOML
    #[arg(long, default_value = "", value_name = "TOML")]
    settings: String,
}

/// Checks it and says what was looked at.
pub fn check(args: &CheckArgs) -> Result<(), Failure> {
    let mut text = String::new();
    // A method's name, unless it is a file.
    let name = args.plugin.to_str().filter(|_| !args.plugin.exists()).unwrap_or_default();
    let mut entries: Vec<&Entry> = Kind::ALL.into_iter().filter_map(|kind| find(kind, name).ok()).collect();
    if entries.is_empty() {
        let loaded = load(&args.plugin)?;
        text += &format!("{} {}\n", loaded.manifest.name, loaded.manifest.version);
        for (what, which) in &loaded.manifest.stamp {
            text += &format!("  {what:14} {which}\n");
        }
        text += &format!("  {:14} {}\n", "SHA-256", loaded.sha256);
        text += "  shares cdl-core, its registry and its tensor ids with this program\n";
        entries = loaded.entries;
    }
    for entry in entries {
        let (kind, name, settings) = (entry.build.kind(), entry.name, &args.settings);
        match kind {
            Kind::Backbone => testing::check_backbone(name, settings)?,
            Kind::Learner => testing::check_learner(name, settings)?,
            Kind::Distiller => testing::check_distiller(name, settings)?,
            Kind::Stream => testing::check_stream(name, settings)?,
        }
        text += &format!("{kind} {name}: keeps its promises\n");
        if matches!(kind, Kind::Learner | Kind::Distiller) {
            let digest = testing::gradient_digest(kind, name, settings)?;
            text += &format!("  SHA-256 of the gradients of a first step: {digest}\n");
        }
    }
    emit(&text)
}

/// Prints what is loaded.
fn list(plugins: &[PathBuf]) -> Result<(), Failure> {
    let mut text = String::new();
    for file in searched()?.iter().chain(plugins) {
        if let Err(failure) = load(file) {
            text += &format!("refused: {}\n", failure.message);
        }
    }
    for loaded in dynamic::loaded() {
        text += &format!("{} {}  {}\n", loaded.manifest.name, loaded.manifest.version, loaded.file.display());
        for entry in &loaded.entries {
            text += &format!("  {:10} {:14} {}\n", entry.build.kind().as_str(), entry.name, entry.about);
        }
    }
    if text.is_empty() {
        text = format!("no plugins: name them with --plugin FILE, `plugins = [...]` or {SEARCH}\n");
    }
    emit(&text)
}
