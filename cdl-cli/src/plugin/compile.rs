//! `cdl plugin build`: an ordinary crate becomes a library that this program loads.
//!
//! The crate is compiled against the metadata of the very crates in this program (a second compilation of the same sources
//! would be another crate to Rust), then linked with the program's shared `cdl-core` behind a few lines that make it a
//! plugin. What it depends on besides is compiled by cargo and linked in.

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
The library is DIR/target/cdl/NAME.so (.dylib, .dll). It works with this program alone, and needs the Rust toolchain
that made this program.

Examples:
  cdl plugin build my_method
  cdl run config.toml --plugin my_method/target/cdl/my_method.so")]
pub struct BuildArgs {
    /// Folder of the crate
    #[arg(default_value = ".")]
    dir: PathBuf,
}

/// Compiles the crate and prints where the library is.
pub fn build(args: &BuildArgs) -> Result<(), Failure> {
    let sdk = Sdk::find()?;
    let dir =
        args.dir.canonicalize().map_err(|e| Failure::invalid(format!("{}: {e}", args.dir.display())))?;
    let found = rustc(&["-vV"], &dir)?;
    if found != sdk.compiler {
        let [made, here] = [&sdk.compiler, &found].map(|text| text.lines().next().unwrap_or_default());
        return Err(Failure::invalid(format!(
            "plugins of this `cdl` have to be built with {made}, which made it; here is {here}. Install that one with \
             rustup, and choose it by `rustup override` or RUSTC"
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
        fits(dependency, &sdk.crates[&dependency.name], place)?;
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

/// The crate in `dir`, as cargo reads its manifest.
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
        Failure::invalid(format!("{}: is a workspace; give the folder of one crate", manifest.display()))
    })
}

/// Refuses a dependency of the crate in `place` if the program's version of it does not match, or lacks features that are
/// requested.
fn fits(dependency: &Dependency, shared: &Shared, place: &Utf8Path) -> Result<(), Failure> {
    let Dependency { name, req, .. } = dependency;
    if !req.matches(&shared.version) {
        return Err(Failure::invalid(format!(
            "{place}: asks for {name} {req}, and this program, with which a plugin shares it, has {}",
            shared.version
        )));
    }
    // A crate without a feature called `default` has none to turn on.
    let default = (dependency.uses_default_features && shared.has_default).then(|| "default".to_string());
    let missing: Vec<String> =
        dependency.features.iter().cloned().chain(default).filter(|f| !shared.features.contains(f)).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::invalid(format!(
            "{place}: asks for {name} with the features {}, and this program, with which a plugin shares it, has it with {}",
            missing.join(", "),
            if shared.features.is_empty() { "none".into() } else { shared.features.join(", ") },
        ))),
    }
}

/// Name of a dependency in a manifest.
fn key(dependency: &Dependency) -> &String {
    dependency.rename.as_ref().unwrap_or(&dependency.name)
}

/// A crate that becomes a plugin.
struct Plugin<'a> {
    package: &'a Package,
    library: &'a Target,
    /// Name of the library in Rust.
    name: String,
    /// Options of the compiler that make the program's crates known.
    externs: Vec<String>,
    /// Folder of what is made on the way.
    work: PathBuf,
}

impl Plugin<'_> {
    /// Compiles a crate that needs nothing but what the program has, to a Rust library.
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
        // As cargo sets them.
        command.env("CARGO_PKG_NAME", package.name.as_str()).env("CARGO_CRATE_NAME", name);
        command.env("CARGO_PKG_VERSION", package.version.to_string()).env("CARGO_MANIFEST_DIR", dir);
        run(command.arg(&library.src_path), "the plugin does not compile")?;
        Ok(work.join(format!("lib{name}.rlib")))
    }

    /// Compiles a crate with dependencies of its own or a build script: cargo sees a manifest without the crates that the
    /// program has, and the compiler gets those by hand.
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
            // The same crate in the program and in the plugin must be two crates to Rust.
            .env("RUSTFLAGS", "-Cmetadata=cdl-plugin");
        let made = artifacts(&mut cargo)?.into_iter().flatten();
        let own = made.filter(|artifact| artifact.target.src_path == self.library.src_path);
        let files =
            own.flat_map(|artifact| artifact.filenames).filter(|file| file.extension() == Some("rlib"));
        let library = files.map(PathBuf::from).next_back();
        library.ok_or_else(|| Failure::invalid("the plugin does not compile".into()))
    }

    /// A manifest for the same sources with the dependencies `own` alone.
    fn manifest(&self, script: Option<&Target>, own: &[&Dependency]) -> Value {
        let package = self.package;
        // Features of the program's crates are on already.
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

    /// Links the compiled crate behind the lines that make it a plugin.
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
            // Beside the library are the crates that cargo has compiled for it.
            .args(["-L", &format!("dependency={}", library.with_file_name("deps").display())])
            .arg("-o")
            .arg(&file);
        run(command.arg(&root), "the plugin cannot be linked")?;
        Ok(file)
    }
}

/// The features of `package` that are on by default.
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

/// Runs a compiler, which says itself what is wrong.
fn run(command: &mut Command, or: &str) -> Result<(), Failure> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Failure::invalid(or.into())),
        Err(e) => Err(Failure::working(format!("rustc: {e}"))),
    }
}
