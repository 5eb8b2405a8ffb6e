//! Command line arguments that name a configuration, and functions that read it.

use std::path::{Path, PathBuf};

use cdl_core::{
    config::{Config, ConfigLayers, Draft},
    registry::{self, Kind},
};
use clap::Args;

use crate::{
    failure::{Failure, io},
    plugin::loading,
};

/// Configuration files and overrides.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// Configuration files (TOML); later files override earlier ones
    #[arg(required = true, value_name = "CONFIG")]
    pub configs: Vec<PathBuf>,
    /// Override a value, for instance --set learner.pool=50; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

impl ConfigArgs {
    /// Reads the configuration, after loading the plugins that it lists.
    pub fn load(&self) -> Result<Config, Failure> {
        self.read(build)
    }

    /// Reads the configuration for a command that uses only methods of `kinds`. The plugins that it lists are loaded
    /// only if one of these methods is not registered. The settings of other unregistered methods stay as written.
    pub fn load_for(&self, kinds: &[Kind]) -> Result<Config, Failure> {
        let is_missing =
            |(kind, name): (Kind, String)| kinds.contains(&kind) && registry::find(kind, &name).is_err();
        self.read(|layers| {
            let config = valid(layers.draft_without_plugins())?;
            match config.run.methods().into_iter().any(is_missing) {
                true => load_config(&self.configs, &self.sets),
                false => Ok(config),
            }
        })
    }

    /// Reads the layers with `read`. Warns about files that have no effect, since their order is probably wrong.
    fn read(&self, read: impl FnOnce(ConfigLayers) -> Result<Config, Failure>) -> Result<Config, Failure> {
        let layers = ConfigLayers::read(&self.configs, &self.sets);
        let without_effect: Vec<String> =
            layers.without_effect().into_iter().map(|file| file.display().to_string()).collect();
        let config = read(layers)?;
        for file in without_effect {
            tracing::warn!(
                "{file} has no effect: later files override every key it sets; put the base configuration first"
            );
        }
        Ok(config)
    }
}

/// Loads the plugins that a configuration names, then reads it.
pub fn load_config<P: AsRef<Path>>(configs: &[P], sets: &[String]) -> Result<Config, Failure> {
    build(ConfigLayers::read(configs, sets))
}

/// Loads the plugins that a recorded configuration names, then reads it. Environment variables have no effect on it.
pub fn load_recorded(file: &Path) -> Result<Config, Failure> {
    build(ConfigLayers::recorded(file, &cdl_core::system::files::read_to_string(file).map_err(io(file))?))
}

/// Loads the plugins that a recorded configuration names, then reads it. Environment variables and `sets` override it.
pub fn load_recorded_with(file: &Path, sets: &[String]) -> Result<Config, Failure> {
    let text = cdl_core::system::files::read_to_string(file).map_err(io(file))?;
    build(ConfigLayers::parse(&file.display().to_string(), &text, sets))
}

fn build(layers: ConfigLayers) -> Result<Config, Failure> {
    loading::load_named(&layers)?;
    valid(layers.draft())
}

/// Returns a configuration without errors.
fn valid(draft: Draft) -> Result<Config, Failure> {
    let others = draft.errors.len().saturating_sub(1);
    draft.into_config().map_err(|error| {
        let mut failure = Failure::before_writing(error);
        if others > 0 {
            failure.message += &format!(" (and {others} more: run `cdl check` to see all)");
        }
        failure
    })
}
