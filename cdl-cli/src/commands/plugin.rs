//! `cdl plugin`: creates, builds, checks and lists plugins.

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
        loading::{NO_PLUGINS, PLUGIN_PATH, load, refused, searched},
        probe::load_and_report,
        scaffold::{NewArgs, new},
    },
    terminal::emit,
};

/// Commands of `cdl plugin`.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Create a crate with a working method as a starting point
    New(NewArgs),
    /// Compile a crate into a library that this program can load
    Build(BuildArgs),
    /// Load a library and run the conformance tests on its methods
    Check(CheckArgs),
    /// List loaded libraries, and those in CDL_PLUGIN_PATH that cannot be loaded
    List,
    /// Load a library and exit; `cdl` runs this command in a separate process before it loads the library itself
    #[command(hide = true)]
    Probe {
        /// Library file
        file: PathBuf,
    },
}

impl PluginCommand {
    /// Runs the command.
    pub fn run(&self, plugins: &[PathBuf]) -> Result<(), Failure> {
        match self {
            Self::New(args) => new(args),
            Self::Build(args) => build(args),
            Self::Check(args) => check(args),
            Self::List => list(plugins),
            Self::Probe { file } => load_and_report(file),
        }
    }
}

/// Arguments of `cdl plugin check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Methods are tested on tiny random networks, with their default settings or those of --settings: shapes, gradients against \
finite differences, trained and frozen parameters, determinism, saving and restoring. NAME is a method that is linked into \
the program.

Examples:
  cdl plugin check my_method/target/cdl/my_method.so
  cdl plugin check my_method/target/cdl/my_method.so --settings 'alpha = 0.9'
  cdl plugin check NAME")]
pub struct CheckArgs {
    /// Library file, or name of a method
    plugin: PathBuf,
    /// Settings of the methods in TOML
    #[arg(long, default_value = "", value_name = "TOML")]
    settings: String,
}

/// Checks the methods and prints the results.
pub fn check(args: &CheckArgs) -> Result<(), Failure> {
    let mut text = String::new();
    // The argument is a method's name unless a file of that name exists.
    let name = args.plugin.to_str().filter(|_| !args.plugin.exists()).unwrap_or_default();
    let mut entries: Vec<&Entry> = Kind::ALL.into_iter().filter_map(|kind| find(kind, name).ok()).collect();
    if entries.is_empty() {
        let loaded = load(&args.plugin)?;
        text += &format!("{} {}\n", loaded.manifest.name, loaded.manifest.version);
        for (key, value) in &loaded.manifest.stamp {
            text += &format!("  {key:14} {value}\n");
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
        text += &format!("{kind} {name}: all checks passed\n");
        if matches!(kind, Kind::Learner | Kind::Distiller) {
            let digest = testing::gradient_digest(kind, name, settings)?;
            text += &format!("  SHA-256 of the gradients of a first step: {digest}\n");
        }
    }
    emit(&text)
}

/// Prints the loaded libraries and those that cannot be loaded.
fn list(plugins: &[PathBuf]) -> Result<(), Failure> {
    let mut text = String::new();
    for file in searched()?.iter().chain(plugins) {
        if let Err(failure) = load(file) {
            text += &format!("not loaded: {}\n", failure.message);
        }
    }
    for loaded in dynamic::loaded() {
        text += &format!("{} {}  {}\n", loaded.manifest.name, loaded.manifest.version, loaded.file.display());
        for entry in &loaded.entries {
            text += &format!("  {:10} {:14} {}\n", entry.build.kind().as_str(), entry.name, entry.about);
        }
    }
    if refused() {
        text = format!("no plugins loaded because of {NO_PLUGINS}\n");
    } else if text.is_empty() {
        text =
            format!("no plugins loaded; load them with --plugin FILE, `plugins = [...]` or {PLUGIN_PATH}\n");
    }
    emit(&text)
}
