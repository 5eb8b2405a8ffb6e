//! `cdl plugin build`: compiles a crate into a library that this program loads.
//!
//! The crate is compiled against the metadata of this program's crates, since Rust treats a second build of the same
//! sources as another crate. It is then linked with the program's shared `cdl-core` and a few lines that export it as a
//! plugin. Other dependencies are compiled by cargo and linked statically.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cargo_metadata::{
    Dependency, DependencyKind, MetadataCommand, Package, Target, TargetKind, camino::Utf8Path,
};
use clap::Args;
use serde_json::{Map, Value, json};

use super::sdk::{SHARED_CRATE, Sdk, Shared};
use crate::{
    failure::{Failure, io},
    terminal::emit,
    toolchain::{artifacts, cargo, compiler, rustc},
};

/// Arguments of `cdl plugin build`.
#[derive(Debug, Args)]
#[command(after_help = "\
Writes DIR/target/cdl/NAME.so (.dylib, .dll). The library works with this program only. Building requires the Rust toolchain \
that built this program.

Examples:
  cdl plugin build my_method
  cdl run config.toml --plugin my_method/target/cdl/my_method.so")]
pub struct BuildArgs {
    /// Folder of the crate
    #[arg(default_value = ".")]
    dir: PathBuf,
}

/// Compiles the crate and prints the path of the library.
pub fn build(args: &BuildArgs) -> Result<(), Failure> {
    let sdk = Sdk::find()?;
    let dir =
        args.dir.canonicalize().map_err(|e| Failure::invalid(format!("{}: {e}", args.dir.display())))?;
    let found = rustc(&["-vV"], &dir)?;
    if found != sdk.compiler {
        let [required, found] = [&sdk.compiler, &found].map(|text| text.lines().next().unwrap_or_default());
        return Err(Failure::invalid(format!(
            "plugins of this `cdl` must be built with its own compiler, {required}; found {found}. Install the \
             required compiler with rustup and select it with `rustup override` or RUSTC"
        )));
    }
    let package = package(&dir)?;
    let place = &package.manifest_path;
    let is_library = |kind: &TargetKind| matches!(kind, TargetKind::Lib | TargetKind::RLib);
    let library = package.targets.iter().find(|target| target.kind.iter().any(is_library));
    let library =
        library.ok_or_else(|| Failure::invalid(format!("{place}: the crate has no library (src/lib.rs)")))?;
    let (shared, own): (Vec<&Dependency>, Vec<&Dependency>) = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind == DependencyKind::Normal)
        .partition(|dependency| sdk.crates.contains_key(&dependency.name));
    for dependency in &shared {
        check_shared(dependency, &sdk.crates[&dependency.name], place)?;
    }
    if !shared.iter().any(|dependency| dependency.name == "cdl-core") {
        let reason = "does not depend on cdl-core, whose traits a plugin implements";
        return Err(Failure::invalid(format!("{place}: {reason}")));
    }

    let target = dir.join("target").join("cdl");
    let work = target.join("build");
    fs::create_dir_all(&work).map_err(io(&work))?;
    let externs = sdk.externs(shared.iter().map(|d| (d.name.as_str(), key(d).replace('-', "_"))));
    let name = library.name.replace('-', "_");
    let plugin = Plugin { package: &package, library, name, externs, work };
    let script = package.targets.iter().find(|target| target.kind.contains(&TargetKind::CustomBuild));
    let library = match own.is_empty() && script.is_none() {
        true => plugin.compile(&dir)?,
        false => plugin.compile_with_cargo(script, &own)?,
    };
    emit(&format!("{}\n", plugin.link(&sdk, &library, &target)?.display()))
}

/// Package of the crate in `dir`, as reported by cargo.
fn package(dir: &Path) -> Result<Package, Failure> {
    let manifest = dir.join("Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(&manifest)
        .no_deps()
        .exec()
        .map_err(|e| Failure::invalid(format!("{}: {}", manifest.display(), e.to_string().trim())))?;
    let place = manifest.canonicalize().ok();
    let here = |package: &Package| package.manifest_path.canonicalize().ok() == place;
    metadata.packages.into_iter().find(here).ok_or_else(|| {
        Failure::invalid(format!("{}: is a workspace; expected the folder of a crate", manifest.display()))
    })
}

/// Checks the version and features of a dependency that the program shares with its plugins. `place` is the crate's
/// manifest, for messages.
fn check_shared(dependency: &Dependency, shared: &Shared, place: &Utf8Path) -> Result<(), Failure> {
    let Dependency { name, req, .. } = dependency;
    if !req.matches(&shared.version) {
        return Err(Failure::invalid(format!(
            "{place}: requires {name} {req}, but plugins share {name} with this program, which has {}",
            shared.version
        )));
    }
    // Crates need not have a feature called `default`.
    let default = (dependency.uses_default_features && shared.has_default).then(|| "default".to_string());
    let missing: Vec<String> =
        dependency.features.iter().cloned().chain(default).filter(|f| !shared.features.contains(f)).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::invalid(format!(
            "{place}: requires {name} with the features {}, but plugins share {name} with this program, which has {}",
            missing.join(", "),
            if shared.features.is_empty() { "none".into() } else { shared.features.join(", ") },
        ))),
    }
}

/// Key of a dependency in the manifest.
fn key(dependency: &Dependency) -> &String {
    dependency.rename.as_ref().unwrap_or(&dependency.name)
}

/// Crate that is built as a plugin.
struct Plugin<'a> {
    /// Package as reported by cargo.
    package: &'a Package,
    /// Library target of the package.
    library: &'a Target,
    /// Crate name of the library in Rust sources.
    name: String,
    /// Compiler options that declare the program's crates.
    externs: Vec<String>,
    /// Folder of intermediate files.
    work: PathBuf,
}

impl Plugin<'_> {
    /// Compiles a crate that only depends on the program's crates.
    fn compile(&self, dir: &Path) -> Result<PathBuf, Failure> {
        let Self { package, library, name, externs, work } = self;
        let mut command = compiler(dir);
        command
            .args(["--crate-name", name, "--edition", package.edition.as_str(), "--crate-type", "rlib"])
            .args(["-C", "opt-level=3", "-C", &format!("metadata=cdl-plugin-{}", package.version)])
            .arg("--out-dir")
            .arg(work)
            .args(externs);
        for feature in default_features(package) {
            command.args(["--cfg", &format!("feature=\"{feature}\"")]);
        }
        // Variables that cargo would set.
        command.env("CARGO_PKG_NAME", package.name.as_str()).env("CARGO_CRATE_NAME", name);
        command.env("CARGO_PKG_VERSION", package.version.to_string()).env("CARGO_MANIFEST_DIR", dir);
        run(command.arg(&library.src_path), "the plugin does not compile")?;
        Ok(work.join(format!("lib{name}.rlib")))
    }

    /// Compiles a crate that has other dependencies or a build script. Cargo gets a manifest without the program's
    /// crates, which are passed to the compiler as options.
    fn compile_with_cargo(&self, script: Option<&Target>, own: &[&Dependency]) -> Result<PathBuf, Failure> {
        let folder = self.work.join("cargo");
        let manifest = folder.join("Cargo.toml");
        let text = toml::to_string(&self.manifest(script, own))
            .map_err(|e| Failure::working(format!("{}: {e}", manifest.display())))?;
        fs::create_dir_all(&folder).map_err(io(&folder))?;
        fs::write(&manifest, text).map_err(io(&folder))?;
        let lock = self.package.manifest_path.with_file_name("Cargo.lock");
        if lock.exists() {
            fs::copy(&lock, folder.join("Cargo.lock")).map_err(io(&folder))?;
        }
        let mut cargo = cargo();
        cargo
            .args([
                "rustc",
                "--release",
                "--lib",
                "--message-format=json-render-diagnostics",
                "--manifest-path",
            ])
            .arg(&manifest)
            .arg("--target-dir")
            .arg(self.work.join("cargo-target"))
            .arg("--")
            .args(&self.externs)
            // Crates that program and plugin both contain must be distinct for Rust.
            .env("RUSTFLAGS", "-Cmetadata=cdl-plugin");
        let built = artifacts(&mut cargo)?.into_iter().flatten();
        let own = built.filter(|artifact| artifact.target.src_path == self.library.src_path);
        let files =
            own.flat_map(|artifact| artifact.filenames).filter(|file| file.extension() == Some("rlib"));
        let library = files.map(PathBuf::from).next_back();
        library.ok_or_else(|| Failure::invalid("the plugin does not compile".into()))
    }

    /// Manifest for the same sources with only the dependencies `own`.
    fn manifest(&self, script: Option<&Target>, own: &[&Dependency]) -> Value {
        let package = self.package;
        // Features of the program's crates are left out, since those crates are already built.
        let of_own = |name: &str| own.iter().any(|own| key(own) == name);
        let kept = |implied: &&String| match implied.strip_prefix("dep:") {
            Some(name) => of_own(name),
            None => match implied.split_once('/') {
                Some((name, _)) => of_own(name.trim_end_matches('?')),
                None => package.features.contains_key(*implied),
            },
        };
        let features = package.features.iter();
        let features =
            features.map(|(name, implied)| (name.clone(), implied.iter().filter(kept).cloned().collect()));
        let mut manifest = json!({
            "package": { "name": package.name, "version": package.version, "edition": package.edition },
            "workspace": {},
            "lib": { "name": self.name, "path": self.library.src_path, "crate-type": ["rlib"] },
            "features": features.collect::<Map<String, Value>>(),
        });
        if let Some(script) = script {
            manifest["package"]["build"] = json!(script.src_path);
            for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Build) {
                add(&mut manifest, "build-dependencies", dependency);
            }
        }
        for dependency in own {
            add(&mut manifest, "dependencies", dependency);
        }
        manifest
    }

    /// Links the compiled crate with the lines that export it as a plugin.
    fn link(&self, sdk: &Sdk, library: &Path, target: &Path) -> Result<PathBuf, Failure> {
        let Self { package, name, work, .. } = self;
        let root = work.join("plugin.rs");
        let text = format!(
            "extern crate {SHARED_CRATE} as _;\nextern crate {name} as _;\ncdl_core::export_plugin!({:?}, \"{}\");\n",
            package.name.as_str(),
            package.version
        );
        fs::write(&root, text).map_err(io(&root))?;
        let file = target.join(format!("{name}{}", std::env::consts::DLL_SUFFIX));
        let mut command = compiler(target);
        command
            .args(["--crate-name", &format!("{name}_plugin"), "--edition", "2024"])
            .args(["--crate-type", "cdylib", "-C", "opt-level=3", "-C", "strip=debuginfo"])
            .args(sdk.externs([("cdl-core", "cdl_core")]))
            .args(["--extern", &format!("{SHARED_CRATE}={}", sdk.shared_library().display())])
            .args(["--extern", &format!("{name}={}", library.display())])
            // Crates that cargo compiled as dependencies are beside the library.
            .args(["-L", &format!("dependency={}", library.with_file_name("deps").display())])
            .arg("-o")
            .arg(&file);
        run(command.arg(&root), "the plugin cannot be linked")?;
        Ok(file)
    }
}

/// Features of `package` that are enabled by default.
fn default_features(package: &Package) -> Vec<String> {
    let (mut on, mut open) = (Vec::new(), vec!["default".to_string()]);
    while let Some(feature) = open.pop() {
        if let Some(implied) = package.features.get(&feature).filter(|_| !on.contains(&feature)) {
            open.extend(implied.iter().cloned());
            on.push(feature);
        }
    }
    on
}

/// Adds a dependency to a section of a manifest.
fn add(manifest: &mut Value, section: &str, dependency: &Dependency) {
    let section = match &dependency.target {
        None => &mut manifest[section],
        Some(target) => &mut manifest["target"][target.to_string()][section],
    };
    let mut entry = json!({
        "package": dependency.name,
        "version": dependency.req,
        "features": dependency.features,
        "default-features": dependency.uses_default_features,
        "optional": dependency.optional,
    });
    let source = dependency.source.as_ref().map(|source| source.repr.as_str()).unwrap_or_default();
    if let Some(path) = &dependency.path {
        entry["path"] = json!(path);
    } else if let Some(git) = source.strip_prefix("git+") {
        let (url, query) = git.split_once('?').unwrap_or((git, ""));
        entry["git"] = url.split('#').next().into();
        if let Some((key @ ("branch" | "tag" | "rev"), value)) = query.split_once('=') {
            entry[key] = value.into();
        }
    } else if let Some(registry) = &dependency.registry {
        entry["registry-index"] = json!(registry);
    }
    section[key(dependency)] = entry;
}

/// Runs a compiler, which prints its own errors. Fails with `message` if the compiler reports an error.
fn run(command: &mut Command, message: &str) -> Result<(), Failure> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Failure::invalid(message.into())),
        Err(e) => Err(Failure::working(format!("rustc: {e}"))),
    }
}
