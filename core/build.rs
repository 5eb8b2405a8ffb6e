//! Computes the build stamp, which must be equal in a run-time plugin and in the program that loads it.
//! `src/registry/dynamic/build_stamp.rs` includes the generated code.
//!
//! Rust's symbol names do not encode the layout of types: a plugin built against older sources would load and
//! misbehave. The hash covers sources, dependencies, features, compiler and code generation. It is part of the name of
//! a symbol that this library exports and the plugin imports, so that an outdated plugin fails to load before any of
//! its code runs.

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
        // In a package from a registry this folder is missing: there the kernels are a dependency
        // with a version.
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
    // The lock file has the versions of all dependencies. A crate unpacked by a registry has none in its ancestors.
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
        "/// Properties that must be equal in plugin and program, one per line.\npub const STAMP: &str = {stamp:?};\n\
                  /// Name of the symbol that a plugin imports.\npub const SYMBOL: &str = \"cdl_abi_{hash}\";\n\
                  /// Symbol that a plugin imports. Its address identifies the loaded copy of this library.\n\
                  // SAFETY: the name contains a hash, so that no other symbol has it.\n\
         #[unsafe(export_name = \"cdl_abi_{hash}\")]\npub static IDENTITY: u8 = 0;\n\
         /// Text of a plugin's manifest.\n#[doc(hidden)]\n#[macro_export]\n\
         macro_rules! __plugin_manifest {{\n\
         \x20   ($name:literal, $version:literal) => {{\n\
         \x20       concat!(\"cdl-plugin 1\\nname \", $name, \"\\nversion \", $version, \"\\n\", {stamp:?})\n\
         }} }}\n\
         /// Imports the symbol of the library that the plugin is compiled against.\n#[doc(hidden)]\n#[macro_export]\n\
         macro_rules! __plugin_identity {{ () => {{\n\
         \x20   unsafe extern \"C\" {{ #[link_name = \"cdl_abi_{hash}\"] static CDL_IDENTITY: u8; }}\n\
                  \x20   /// Keeps the linker from removing the import.\n\
         \x20   #[used] static CDL_IMPORT: $crate::registry::dynamic::Import = $crate::registry::dynamic::Import(&raw const CDL_IDENTITY);\n\
         }} }}\n"
    );
    fs::write(Path::new(&variable("OUT_DIR")).join("stamp.rs"), code)
}

/// Returns all files below `folder`, sorted.
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

/// Returns the names of the enabled features.
fn features() -> BTreeSet<String> {
    let on = env::vars_os().filter_map(|(name, _)| {
        let name = name.into_string().ok()?;
        Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase())
    });
    on.collect()
}

/// Returns the version of a package in a lock file.
fn locked<'a>(lock: &'a str, package: &str) -> &'a str {
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{package}\""));
    lines.nth(1).and_then(|line| line.split('"').nth(1)).unwrap_or("unknown")
}
