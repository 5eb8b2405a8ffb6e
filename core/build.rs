//! States what a run-time plugin and the program that loads it must have in common, for `src/registry/dynamic/build_stamp.rs`.
//!
//! Rust's symbol names do not cover the layout of types: a plugin built against yesterday's sources would load and
//! misbehave. The hash written here covers sources, dependencies, features, compiler and code generation. It becomes a
//! symbol's name, which the plugin imports and this library exports, so that a stale plugin fails to load before any of its
//! code runs.

use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    env, fs,
    hash::{Hash, Hasher},
    io,
    path::{Path, PathBuf},
    process::Command,
};

fn main() -> io::Result<()> {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    println!("cargo:rerun-if-changed=build.rs");

    let mut hasher = DefaultHasher::new();
    let cuda = env::var_os("CARGO_FEATURE_CUDA").is_some();
    for (folder, counts) in [("src", true), ("kernels/src", true), ("kernels/cuda", cuda)] {
        // Outside the source tree the kernels are a package of their own, with a version.
        let path = root.join(folder);
        if !path.exists() {
            continue;
        }
        println!("cargo:rerun-if-changed={folder}");
        for file in sources(&path)?.into_iter().filter(|_| counts) {
            file.strip_prefix(&root).unwrap_or(&file).to_string_lossy().hash(&mut hasher);
            fs::read(&file)?.hash(&mut hasher);
        }
    }
    // Versions of everything below; a crate from a registry has no lock file above it.
    let mut lock = String::new();
    let mut locks = root.ancestors().skip(1).map(|folder| folder.join("Cargo.lock"));
    if let Some(file) = locks.find(|file| file.exists()) {
        println!("cargo:rerun-if-changed={}", file.display());
        lock = fs::read_to_string(file)?;
    }
    lock.hash(&mut hasher);
    let compiler = Command::new(variable("RUSTC")).arg("-vV").output()?.stdout;
    let compiler = String::from_utf8_lossy(&compiler);
    compiler.hash(&mut hasher);
    let features = features();
    let code = [
        "TARGET",
        "OPT_LEVEL",
        "DEBUG",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_CFG_PANIC",
        "CARGO_CFG_TARGET_FEATURE",
        "CARGO_CFG_DEBUG_ASSERTIONS",
    ];
    for name in code {
        (name, variable(name)).hash(&mut hasher);
    }
    features.hash(&mut hasher);

    let hash = format!("{:016x}", hasher.finish());
    let stamp = format!(
        "compiler {}\ncdl-core {}\ncandle-core {}\nfeatures {}\ntarget {}\noptimisation {}\nbuild {hash}\n",
        compiler.lines().next().unwrap_or("unknown"),
        variable("CARGO_PKG_VERSION"),
        locked(&lock, "candle-core"),
        if features.is_empty() { "none".into() } else { Vec::from_iter(features).join(",") },
        variable("TARGET"),
        variable("OPT_LEVEL"),
    );
    let code = format!(
        "/// What both sides must have in common, a line each.\npub const STAMP: &str = {stamp:?};\n\
         /// The symbol that a plugin imports.\npub const SYMBOL: &str = \"cdl_abi_{hash}\";\n\
         /// Its address says whose copy of this library one runs in.\n\
         // SAFETY: the name holds a hash and collides with nothing.\n\
         #[unsafe(export_name = \"cdl_abi_{hash}\")]\npub static IDENTITY: u8 = 0;\n\
         /// Text of a plugin's manifest.\n#[doc(hidden)]\n#[macro_export]\n\
         macro_rules! __plugin_manifest {{\n\
         \x20   ($name:literal, $version:literal) => {{\n\
         \x20       concat!(\"cdl-plugin 1\\nname \", $name, \"\\nversion \", $version, \"\\n\", {stamp:?})\n\
         }} }}\n\
         /// Imports the symbol of the library that the plugin is compiled against.\n#[doc(hidden)]\n#[macro_export]\n\
         macro_rules! __plugin_identity {{ () => {{\n\
         \x20   unsafe extern \"C\" {{ #[link_name = \"cdl_abi_{hash}\"] static CDL_IDENTITY: u8; }}\n\
         \x20   /// Keeps the import.\n\
         \x20   #[used] static CDL_IMPORT: $crate::registry::dynamic::Import = $crate::registry::dynamic::Import(&raw const CDL_IDENTITY);\n\
         }} }}\n"
    );
    fs::write(Path::new(&variable("OUT_DIR")).join("stamp.rs"), code)
}

/// All files below `folder`, in order.
fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

/// Names of the features that are on.
fn features() -> BTreeSet<String> {
    let on = env::vars_os().filter_map(|(name, _)| {
        let name = name.into_string().ok()?;
        Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase())
    });
    on.collect()
}

/// The version of a package in a lock file.
fn locked<'a>(lock: &'a str, package: &str) -> &'a str {
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{package}\""));
    lines.nth(1).and_then(|line| line.split('"').nth(1)).unwrap_or("unknown")
}
