//! Command line arguments that name a configuration, and reading it.

use std::path::{Path, PathBuf};

use cdl_core::config::{Config, ConfigLayers};
use clap::Args;

use crate::{
    failure::{Failure, io},
    plugin::loading,
};

/// Configuration files with overrides.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// Configuration files (TOML), later ones over earlier ones
    #[arg(required = true, value_name = "CONFIG")]
    pub configs: Vec<PathBuf>,
    /// Override a value, for instance --set learner.pool=50; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

impl ConfigArgs {
    /// Reads the configuration and warns about files that have no effect: their order is probably wrong.
    pub fn load(&self) -> Result<Config, Failure> {
        let layers = ConfigLayers::read(&self.configs, &self.sets);
        let without_effect: Vec<String> =
            layers.without_effect().into_iter().map(|file| file.display().to_string()).collect();
        let config = build(layers)?;
        for file in without_effect {
            tracing::warn!(
                "{file} has no effect: later files override every key it sets; the base comes first"
            );
        }
        Ok(config)
    }
}

/// Reads a configuration after loading the plugins that it names.
pub fn load_config<P: AsRef<Path>>(configs: &[P], sets: &[String]) -> Result<Config, Failure> {
    build(ConfigLayers::read(configs, sets))
}

/// Reads a configuration that was recorded in `file`, whatever the environment says now, after loading the plugins that it
/// names.
pub fn load_recorded(file: &Path) -> Result<Config, Failure> {
    build(ConfigLayers::recorded(file, &cdl_core::system::files::read_to_string(file).map_err(io(file))?))
}

fn build(layers: ConfigLayers) -> Result<Config, Failure> {
    loading::load_named(&layers)?;
    let draft = layers.draft();
    let more = draft.errors.len().saturating_sub(1);
    draft.into_config().map_err(|error| {
        let mut failure = Failure::before_writing(error);
        if more > 0 {
            failure.message += &format!(" (and {more} more: see `cdl check`)");
        }
        failure
    })
}
