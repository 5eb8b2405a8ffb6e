//! Crates that a program shares with its plugins, in a folder beside it. Plugins are compiled against these very crates.
//!
//! ```text
//! bin/cdl                   the program
//! lib/libcdl_dylib.so       cdl-core as a shared library, and Rust's own beside it
//! lib/cdl/*.rmeta           metadata of cdl-core and of all crates below it
//! lib/cdl/sdk.json          which of them a plugin may name, with versions and features
//! ```

use std::{collections::BTreeMap, fmt::Display, path::PathBuf};

use cargo_metadata::semver::Version;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, io};

/// Name of the shared library's crate.
pub const SHARED_CRATE: &str = "cdl_dylib";
/// The folder of metadata, seen from the one above `bin`.
pub const FOLDER: &str = "lib/cdl";
/// Table of contents of the folder.
pub const INDEX: &str = "sdk.json";

/// A crate that a program and its plugins have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    pub version: Version,
    /// Features that are on.
    pub features: Vec<String>,
    /// True if the crate has a feature called `default`.
    pub has_default: bool,
    /// Metadata, a file beside the index.
    pub file: PathBuf,
}

/// The table of contents.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sdk {
    /// Output of `rustc -vV` for the compiler of these crates.
    pub compiler: String,
    /// File name of the shared library, in the folder above.
    pub shared_library: PathBuf,
    /// Crates that a plugin may name, by package.
    pub crates: BTreeMap<String, Shared>,
    /// Folder of the file.
    #[serde(skip)]
    pub folder: PathBuf,
}

impl Sdk {
    /// The one beside the running program.
    pub fn find() -> Result<Self, Failure> {
        let program = std::env::current_exe().and_then(|program| program.canonicalize()).ok();
        let folder = program.and_then(|program| Some(program.parent()?.parent()?.join(FOLDER)));
        let folder = folder.filter(|folder| folder.join(INDEX).exists()).ok_or_else(|| {
            let other = "use the one in the folder that `cdl dist DIR` makes, DIR/bin/cdl";
            Failure::invalid(format!("this `cdl` has nothing beside it to build plugins with: {other}"))
        })?;
        let file = folder.join(INDEX);
        let bytes = std::fs::read(&file).map_err(io(&file))?;
        let sdk: Self = serde_json::from_slice(&bytes).map_err(|e| io(&file)(e.into()))?;
        Ok(Self { folder, ..sdk })
    }

    /// Options for `rustc` that make `packages` (package, name in the source) known.
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

    /// The shared library.
    pub fn shared_library(&self) -> PathBuf {
        self.folder.join("..").join(&self.shared_library)
    }
}
