//! `cdl dist`: builds a relocatable folder with a program that loads plugins.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::{
    Artifact, CrateType, DependencyKind, Metadata, MetadataCommand, NodeDep, PackageId, TargetKind,
};
use clap::Args;
use walkdir::WalkDir;

use crate::{
    failure::{Failure, io},
    plugin::sdk::{FOLDER, INDEX, SHARED_CRATE, Sdk, Shared},
    terminal::emit,
    toolchain::{artifacts, cargo, rustc},
};

/// Arguments of `cdl dist`.
#[derive(Debug, Args)]
#[command(after_help = "\
Must be run in the source tree. DIR may be moved afterwards. DIR/bin/cdl builds and loads plugins; building requires \
the Rust toolchain that built DIR/bin/cdl.

Examples:
  cargo run --release -p cdl-cli -- dist ~/cdl
  ~/cdl/bin/cdl plugin new my_method --kind distiller")]
pub struct DistArgs {
    /// Folder to create; a folder written by an earlier `cdl dist` is replaced
    dir: PathBuf,
}

/// Builds the program with a shared `cdl-core` and writes the folder.
pub fn dist(args: &DistArgs) -> Result<(), Failure> {
    let source = source_tree()?;
    if let Some(name) = foreign_entry(&args.dir)? {
        let reason = "which `cdl dist` did not write and would remove; choose another folder";
        return Err(Failure::invalid(format!("{}: contains `{name}`, {reason}", args.dir.display())));
    }
    let mut build = cargo();
    build.args(["build", "--release", "-p", "cdl-dynamic", "--message-format=json-render-diagnostics"]);
    let artifacts = artifacts(build.current_dir(&source))?
        .ok_or_else(|| Failure::working("cargo could not build the program".into()))?;
    let metadata = MetadataCommand::new()
        .manifest_path(source.join("Cargo.toml"))
        .exec()
        .map_err(|e| Failure::working(format!("cargo metadata: {e}")))?;

    let parent = args.dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(io(parent))?;
    let fresh = tempfile::Builder::new().prefix(".cdl-dist-").tempdir_in(parent).map_err(io(parent))?;
    write_folder(fresh.path(), &source, &artifacts, &metadata)?;
    let earlier = tempfile::Builder::new().prefix(".cdl-dist-").tempdir_in(parent).map_err(io(parent))?;
    if args.dir.exists() {
        fs::rename(&args.dir, earlier.path().join("dist")).map_err(io(&args.dir))?;
    }
    if let Err(e) = fs::rename(fresh.path(), &args.dir) {
        let _ = fs::rename(earlier.path().join("dist"), &args.dir);
        return Err(io(&args.dir)(e));
    }
    // The folder has been moved; the temporary name must not be removed on drop.
    let _ = fresh.keep();
    emit(&format!("{}\n", args.dir.join("bin/cdl").display()))
}

/// Files and folders that are copied beside `bin` and `lib`.
const COPIED: [&str; 5] = ["configs", "docs", "README.md", "LICENSE-APACHE", "LICENSE-MIT"];

/// Name of an entry of `dir` that `cdl dist` has not written, if there is one. Without the index file, no entry counts
/// as written by `cdl dist`.
fn foreign_entry(dir: &Path) -> Result<Option<String>, Failure> {
    if !dir.exists() {
        return Ok(None);
    }
    let names = fs::read_dir(dir).map_err(io(dir))?.flatten().map(|entry| entry.file_name());
    let mut names = names.map(|name| name.to_string_lossy().into_owned());
    let known = |name: &str| ["bin", "lib"].contains(&name) || COPIED.contains(&name);
    let is_dist = dir.join(FOLDER).join(INDEX).exists();
    Ok(names.find(|name| !is_dist || !known(name)))
}

/// Root of the workspace that contains the working directory.
fn source_tree() -> Result<PathBuf, Failure> {
    let here = std::env::current_dir()
        .map_err(|e| Failure::working(format!("the working directory cannot be found: {e}")))?;
    let tree = here.ancestors().find(|folder| folder.join("core/dylib/Cargo.toml").exists());
    let reason = "is not in the source tree of cdl, from which `cdl dist` builds";
    tree.map(Path::to_path_buf).ok_or_else(|| Failure::invalid(format!("{}: {reason}", here.display())))
}

/// Writes program, libraries, crate metadata and documents into `root`.
fn write_folder(
    root: &Path,
    source: &Path,
    artifacts: &[Artifact],
    metadata: &Metadata,
) -> Result<(), Failure> {
    let (bin, lib, sdk) = (root.join("bin"), root.join("lib"), root.join(FOLDER));
    for folder in [&bin, &lib, &sdk] {
        fs::create_dir_all(folder).map_err(io(folder))?;
    }
    let missing = |what: &str| Failure::working(format!("cargo did not build the {what}"));
    let program =
        artifacts.iter().filter(|a| a.target.name == "cdl-dynamic").find_map(|a| a.executable.as_ref());
    let program = program.ok_or_else(|| missing("program"))?.as_std_path();
    copy(program, &bin.join(format!("cdl{}", std::env::consts::EXE_SUFFIX)))?;
    let shared = artifacts.iter().find(|a| a.target.name == SHARED_CRATE).and_then(|a| a.filenames.first());
    let shared_library = copy_into(shared.ok_or_else(|| missing("shared library"))?.as_std_path(), &lib)?;

    let libraries = PathBuf::from(rustc(&["--print", "target-libdir"], source)?.trim());
    for file in fs::read_dir(&libraries).map_err(io(&libraries))?.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if name.contains("std-") && name.ends_with(std::env::consts::DLL_SUFFIX) {
            copy_into(&file.path(), &lib)?;
        }
    }

    let core = metadata.packages.iter().find(|package| package.name.as_str() == "cdl-core");
    let core = &core.ok_or_else(|| missing("cdl-core"))?.id;
    let mut files = BTreeMap::new();
    for package in dependency_tree(core, metadata) {
        // Crates that build scripts also use are built twice. The optimised build must win, so it comes last.
        let mut built: Vec<_> = artifacts.iter().filter(|artifact| artifact.package_id == *package).collect();
        built.sort_by_key(|artifact| artifact.profile.opt_level != "0");
        for artifact in built {
            if let Some(file) = metadata_file(artifact) {
                files.insert(package, (copy_into(file, &sdk)?, artifact.features.clone()));
            }
        }
    }
    let named = metadata.packages.iter().filter_map(|package| {
        let (file, features) = files.get(&package.id)?.clone();
        let (version, has_default) = (package.version.clone(), package.features.contains_key("default"));
        (package.id == *core || direct(core, metadata).contains(&package.id))
            .then(|| (package.name.to_string(), Shared { version, features, has_default, file }))
    });
    let (compiler, crates) = (rustc(&["-vV"], source)?, named.collect());
    let index = Sdk { compiler, shared_library, crates, folder: PathBuf::new() };
    let text = serde_json::to_vec_pretty(&index).map_err(|e| Failure::working(e.to_string()))?;
    fs::write(sdk.join(INDEX), text).map_err(io(&sdk))?;
    for name in COPIED {
        copy_tree(&source.join(name), &root.join(name))?;
    }
    Ok(())
}

/// File of a crate that the compiler reads: metadata, a procedural macro, or the library if cargo built no metadata.
fn metadata_file(artifact: &Artifact) -> Option<&Path> {
    let with = |extension: &str| artifact.filenames.iter().find(|file| file.extension() == Some(extension));
    let macros = artifact.target.kind.contains(&TargetKind::ProcMacro);
    let library = |kind: &CrateType| matches!(kind, CrateType::Lib | CrateType::RLib);
    let file = match macros {
        true => artifact.filenames.first(),
        false if artifact.target.crate_types.iter().any(library) => with("rmeta").or_else(|| with("rlib")),
        false => None,
    };
    file.map(|file| file.as_std_path())
}

/// Direct dependencies that `package` links, without those of its tests and its build script.
fn direct<'a>(package: &PackageId, metadata: &'a Metadata) -> BTreeSet<&'a PackageId> {
    let node = metadata.resolve.as_ref().and_then(|all| all.nodes.iter().find(|node| node.id == *package));
    let normal = |node: &&NodeDep| node.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
    node.into_iter().flat_map(|node| &node.deps).filter(normal).map(|dependency| &dependency.pkg).collect()
}

/// `package` and all its dependencies, except for those of procedural macros, which are self-contained.
fn dependency_tree<'a>(package: &'a PackageId, metadata: &'a Metadata) -> BTreeSet<&'a PackageId> {
    let is_macro = |package: &&cargo_metadata::Package| {
        package.targets.iter().any(|target| target.kind.contains(&TargetKind::ProcMacro))
    };
    let macros: BTreeSet<_> = metadata.packages.iter().filter(is_macro).map(|package| &package.id).collect();
    let (mut seen, mut open) = (BTreeSet::from([package]), vec![package]);
    while let Some(package) = open.pop() {
        if macros.contains(package) {
            continue;
        }
        open.extend(direct(package, metadata).into_iter().filter(|dependency| seen.insert(dependency)));
    }
    seen
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::copy(from, to).map(|_| ()).map_err(io(from))
}

/// Copies a file into a folder and returns its name.
fn copy_into(file: &Path, folder: &Path) -> Result<PathBuf, Failure> {
    let name = file.file_name().map(PathBuf::from).unwrap_or_default();
    copy(file, &folder.join(&name))?;
    Ok(name)
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), Failure> {
    if !from.is_dir() {
        return copy(from, to);
    }
    for entry in WalkDir::new(from) {
        let entry = entry.map_err(|e| io(from)(e.into()))?;
        let place = to.join(entry.path().strip_prefix(from).unwrap_or(entry.path()));
        match entry.file_type().is_dir() {
            true => fs::create_dir_all(&place).map_err(io(&place))?,
            false => copy(entry.path(), &place)?,
        }
    }
    Ok(())
}
