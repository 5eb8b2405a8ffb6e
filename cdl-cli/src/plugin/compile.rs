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

use cargo_metadata::{Dependency, DependencyKind, MetadataCommand, Package, Target, TargetKind};
use clap::Args;
use serde_json::{Map, Value, json};

use super::sdk::{SHARED_CRATE, Sdk};
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
        args.dir.canonicalize().map_err(|e| Failure::mistake(format!("{}: {e}", args.dir.display())))?;
    let found = rustc(&["-vV"], &dir)?;
    if found != sdk.compiler {
        return Err(Failure::mistake(format!(
            "plugins of this `cdl` have to be built with {}, which made it; here is {}. Install that one with rustup, \
             and choose it by `rustup override` or RUSTC",
            first(&sdk.compiler),
            first(&found)
        )));
    }
    let package = package(&dir)?;
    let library = package
        .targets
        .iter()
        .find(|target| target.kind.iter().any(|kind| matches!(kind, TargetKind::Lib | TargetKind::RLib)))
        .ok_or_else(|| {
            Failure::mistake(format!("{}: the crate has no library (src/lib.rs)", package.manifest_path))
        })?;
    let (shared, own): (Vec<&Dependency>, Vec<&Dependency>) = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind == DependencyKind::Normal)
        .partition(|dependency| sdk.crates.contains_key(&dependency.name));
    for dependency in &shared {
        fits(dependency, &sdk, &package)?;
    }
    if !shared.iter().any(|dependency| dependency.name == "cdl-core") {
        return Err(Failure::mistake(format!(
            "{}: does not depend on cdl-core, whose traits a plugin implements",
            package.manifest_path
        )));
    }

    let target = dir.join("target").join("cdl");
    let work = target.join("build");
    fs::create_dir_all(&work).map_err(io(&work))?;
    let names: Vec<String> = shared.iter().map(|dependency| name_in_source(dependency)).collect();
    let externs = sdk.externs(shared.iter().map(|d| d.name.as_str()).zip(names.iter().map(String::as_str)));
    let script = package.targets.iter().find(|target| target.kind.contains(&TargetKind::CustomBuild));
    let compiled = match own.is_empty() && script.is_none() {
        true => Compiled { library: compile(&dir, &package, library, &externs, &work)?, dependencies: None },
        false => compile_with_cargo(&package, library, script, &own, &externs, &work)?,
    };
    let file = link(&sdk, &package, library, &compiled, &work, &target)?;
    emit(&format!("{}\n", file.display()))
}

fn first(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The crate in `dir`, as cargo reads its manifest.
fn package(dir: &Path) -> Result<Package, Failure> {
    let manifest = dir.join("Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(&manifest)
        .no_deps()
        .exec()
        .map_err(|e| Failure::mistake(format!("{}: {}", manifest.display(), e.to_string().trim())))?;
    let here = |package: &Package| {
        package.manifest_path.as_std_path().canonicalize().ok() == manifest.canonicalize().ok()
    };
    metadata.packages.into_iter().find(here).ok_or_else(|| {
        Failure::mistake(format!("{}: is a workspace; give the folder of one crate", manifest.display()))
    })
}

/// Refuses a dependency if the program's version of that crate does not match it, or lacks features that it requests.
fn fits(dependency: &Dependency, sdk: &Sdk, package: &Package) -> Result<(), Failure> {
    let Some(shared) = sdk.crates.get(&dependency.name) else { return Ok(()) };
    let place = &package.manifest_path;
    if !dependency.req.matches(&shared.version) {
        return Err(Failure::mistake(format!(
            "{place}: asks for {} {}, and this program, with which a plugin shares it, has {}",
            dependency.name, dependency.req, shared.version
        )));
    }
    let default = dependency.uses_default_features.then(|| "default".to_string());
    // A crate without a feature called `default` has none to turn on.
    let default = default.filter(|_| shared.has_default);
    let missing: Vec<String> =
        dependency.features.iter().cloned().chain(default).filter(|f| !shared.features.contains(f)).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::mistake(format!(
            "{place}: asks for {} with the features {}, and this program, with which a plugin shares it, has it with {}",
            dependency.name,
            missing.join(", "),
            if shared.features.is_empty() { "none".into() } else { shared.features.join(", ") },
        ))),
    }
}

/// Name of a library in Rust.
fn name_of(library: &Target) -> String {
    library.name.replace('-', "_")
}

/// Name of a dependency in Rust.
fn name_in_source(dependency: &Dependency) -> String {
    dependency.rename.as_ref().unwrap_or(&dependency.name).replace('-', "_")
}

/// The crate as a Rust library.
struct Compiled {
    library: PathBuf,
    /// Folder of the crates that were compiled for it.
    dependencies: Option<PathBuf>,
}

/// Compiles a crate that needs nothing but what the program has.
fn compile(
    dir: &Path,
    package: &Package,
    library: &Target,
    externs: &[String],
    work: &Path,
) -> Result<PathBuf, Failure> {
    let name = name_of(library);
    let mut command = compiler(dir);
    command
        .args(["--crate-name", &name, "--edition", package.edition.as_str(), "--crate-type", "rlib"])
        .args(["-C", "opt-level=3", "-C", &format!("metadata=cdl-plugin-{}", package.version)])
        .arg("--out-dir")
        .arg(work)
        .args(externs);
    for feature in default_features(package) {
        command.args(["--cfg", &format!("feature=\"{feature}\"")]);
    }
    // As cargo sets them.
    command
        .env("CARGO_PKG_NAME", package.name.as_str())
        .env("CARGO_PKG_VERSION", package.version.to_string());
    command.env("CARGO_MANIFEST_DIR", dir).env("CARGO_CRATE_NAME", &name);
    run(command.arg(&library.src_path), "the plugin does not compile")?;
    Ok(work.join(format!("lib{name}.rlib")))
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

/// Compiles a crate with dependencies of its own or a build script: cargo sees a manifest without the crates that the
/// program has, and the compiler gets those by hand.
fn compile_with_cargo(
    package: &Package,
    library: &Target,
    script: Option<&Target>,
    own: &[&Dependency],
    externs: &[String],
    work: &Path,
) -> Result<Compiled, Failure> {
    let folder = work.join("cargo");
    let manifest = folder.join("Cargo.toml");
    let text = toml::to_string(&manifest_of(package, library, script, own))
        .map_err(|e| Failure::working(format!("{}: {e}", manifest.display())))?;
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    fs::write(&manifest, text).map_err(io(&folder))?;
    let lock = package.manifest_path.with_file_name("Cargo.lock");
    if lock.exists() {
        fs::copy(&lock, folder.join("Cargo.lock")).map_err(io(&folder))?;
    }
    let mut cargo = cargo();
    cargo
        .args(["rustc", "--release", "--lib", "--message-format=json-render-diagnostics", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(work.join("cargo-target"))
        .arg("--")
        .args(externs)
        // The same crate in the program and in the plugin must be two crates to Rust.
        .env("RUSTFLAGS", "-Cmetadata=cdl-plugin");
    let made = artifacts(&mut cargo)?.into_iter().flatten();
    let own = made.filter(|artifact| artifact.target.src_path == library.src_path);
    let files = own.flat_map(|artifact| artifact.filenames).filter(|file| file.extension() == Some("rlib"));
    let library = files.map(PathBuf::from).next_back();
    let library = library.ok_or_else(|| Failure::mistake("the plugin does not compile".into()))?;
    Ok(Compiled { dependencies: Some(work.join("cargo-target").join("release").join("deps")), library })
}

/// A manifest for the same sources with the dependencies `own` alone.
fn manifest_of(package: &Package, library: &Target, script: Option<&Target>, own: &[&Dependency]) -> Value {
    // Features of the program's crates are on already.
    let of_own = |name: &str| own.iter().any(|own| own.rename.as_ref().unwrap_or(&own.name) == name);
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
        "lib": { "name": name_of(library), "path": library.src_path, "crate-type": ["rlib"] },
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
    section[dependency.rename.as_ref().unwrap_or(&dependency.name)] = entry;
}

/// Links the compiled crate behind the lines that make it a plugin.
fn link(
    sdk: &Sdk,
    package: &Package,
    library: &Target,
    compiled: &Compiled,
    work: &Path,
    target: &Path,
) -> Result<PathBuf, Failure> {
    let name = name_of(library);
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
        .arg("--extern")
        .arg(format!("{SHARED_CRATE}={}", sdk.shared_library().display()))
        .arg("--extern")
        .arg(format!("{name}={}", compiled.library.display()))
        .arg("-o")
        .arg(&file);
    if let Some(dependencies) = &compiled.dependencies {
        command.arg("-L").arg(format!("dependency={}", dependencies.display()));
    }
    run(command.arg(&root), "the plugin cannot be linked")?;
    Ok(file)
}

/// Runs a compiler, which says itself what is wrong.
fn run(command: &mut Command, or: &str) -> Result<(), Failure> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Failure::mistake(or.into())),
        Err(e) => Err(Failure::working(format!("rustc: {e}"))),
    }
}
