//! Folder with the crates that a program shares with its plugins. Plugins are compiled against these crates.
//!
//! ```text
//! bin/cdl                   the program
//! lib/libcdl_dylib.so       cdl-core as a shared library; Rust's standard library is beside it
//! lib/cdl/*.rmeta           metadata of cdl-core and all its dependencies
//! lib/cdl/sdk.json          crates that a plugin may use, with versions and features
//! ```

use std::{collections::BTreeMap, fmt::Display, path::PathBuf};

use cargo_metadata::semver::Version;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, io};

/// Name of the shared library's crate.
pub const SHARED_CRATE: &str = "cdl_dylib";
/// Folder of the metadata, relative to the parent of `bin`.
pub const FOLDER: &str = "lib/cdl";
/// Index file of the folder.
pub const INDEX: &str = "sdk.json";

/// Crate shared by the program and its plugins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    pub version: Version,
    /// Enabled features.
    pub features: Vec<String>,
    /// True if the crate has a feature called `default`.
    pub has_default: bool,
    /// Metadata file, beside the index.
    pub file: PathBuf,
}

/// Contents of the index file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sdk {
    /// Output of `rustc -vV` for the compiler of these crates.
    pub compiler: String,
    /// File name of the shared library, in the parent folder.
    pub shared_library: PathBuf,
    /// Crates that a plugin may use, by package name.
    pub crates: BTreeMap<String, Shared>,
    /// Folder of the index file.
    #[serde(skip)]
    pub folder: PathBuf,
}

impl Sdk {
    /// Reads the index beside the running program.
    pub fn find() -> Result<Self, Failure> {
        let program = std::env::current_exe().and_then(|program| program.canonicalize()).ok();
        let folder = program.and_then(|program| Some(program.parent()?.parent()?.join(FOLDER)));
        let folder = folder.filter(|folder| folder.join(INDEX).exists()).ok_or_else(|| {
            let other = "use DIR/bin/cdl, built by `cdl dist DIR`";
            Failure::invalid(format!(
                "this `cdl` cannot build plugins, since it has no folder {FOLDER}; {other}"
            ))
        })?;
        let file = folder.join(INDEX);
        let bytes = std::fs::read(&file).map_err(io(&file))?;
        let sdk: Self = serde_json::from_slice(&bytes).map_err(|e| io(&file)(e.into()))?;
        Ok(Self { folder, ..sdk })
    }

    /// Options of `rustc` that declare `packages` (package name, name in the source).
    pub fn externs<'a, N: Display>(&self, packages: impl IntoIterator<Item = (&'a str, N)>) -> Vec<String> {
        let mut options = vec!["-L".into(), format!("dependency={}", self.folder.display())];
        for (package, name) in packages {
            if let Some(shared) = self.crates.get(package) {
                let file = self.folder.join(&shared.file);
                options.extend(["--extern".into(), format!("{name}={}", file.display())]);
            }
        }
        options
    }

    /// Path of the shared library.
    pub fn shared_library(&self) -> PathBuf {
        self.folder.join("..").join(&self.shared_library)
    }
}
