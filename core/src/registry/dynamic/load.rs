//! Loading of a plugin: check its file, load it, find the entries that it registered.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use candle_core::{Device, Tensor};
use libloading::Library;
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, Result},
    registry::{
        Entry, Kind,
        dynamic::{
            library_file::LibraryFile,
            plugin_manifest::{Manifest, SELF_CONTAINED},
        },
    },
};

/// A loaded library. It is never unloaded, since its registered entries point into it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Absolute path of the file.
    pub file: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Manifest of the library.
    pub manifest: Manifest,
    /// Entries that the library registered.
    pub entries: Vec<&'static Entry>,
}

impl Loaded {
    /// Returns whether the library has registered the plugin `name`.
    pub(crate) fn registers(&self, kind: Kind, name: &str) -> bool {
        self.entries.iter().any(|entry| (entry.build.kind(), entry.name) == (kind, name))
    }
}

static LOADED: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

fn all() -> MutexGuard<'static, Vec<Loaded>> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns all libraries loaded so far, in order.
pub fn loaded() -> Vec<Loaded> {
    all().clone()
}

/// Returns the loaded file that registered an entry.
pub fn origin_of(entry: &Entry) -> Option<PathBuf> {
    let registers = |loaded: &&Loaded| loaded.entries.iter().any(|own| std::ptr::eq(*own, entry));
    all().iter().find(registers).map(|loaded| loaded.file.clone())
}

/// Identity of a copy of `cdl-core` in the process: addresses and counters that exist once in each copy.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Address of a symbol of this crate.
    pub core: usize,
    /// Address of the newest registered entry.
    pub registry: usize,
    /// Id of a new tensor, from the counter of the copy.
    pub tensor: usize,
}

impl Identity {
    /// Returns the identity of the copy that contains the running code.
    #[inline(never)]
    pub fn here() -> Self {
        let newest = inventory::iter::<Entry>.into_iter().next();
        let id =
            Tensor::new(0f32, &Device::Cpu).map(|tensor| format!("{:?}", tensor.id())).unwrap_or_default();
        let digits: String = id.chars().filter(char::is_ascii_digit).collect();
        Self {
            core: &raw const super::IDENTITY as usize,
            registry: newest.map_or(0, |entry| std::ptr::from_ref(entry) as usize),
            tensor: digits.parse().unwrap_or(0),
        }
    }

    /// Returns whether `other`, obtained after `self`, identifies the same copy: tensor ids increase within a copy.
    fn is_same_as(&self, other: &Self) -> bool {
        (self.core, self.registry) == (other.core, other.registry) && self.tensor < other.tensor
    }
}

/// Library that was inspected and can be loaded. Its file stays open, so that the loaded file is the inspected one.
#[derive(Debug)]
pub struct Inspected {
    file: LibraryFile,
    manifest: Manifest,
    sha256: String,
}

/// Reads the manifest of a library without loading it.
///
/// # Errors
/// A file that cannot be read, is not a plugin of this program, or can be changed by another user.
pub fn inspect(path: &Path) -> Result<Inspected> {
    let fail = |reason: String| Error::Plugin { file: path.into(), reason };
    let mut file = LibraryFile::open(path).map_err(fail)?;
    let bytes = file.read().map_err(fail)?;
    let manifest = Manifest::of_library(&bytes).map_err(fail)?;
    Ok(Inspected { file, manifest, sha256: crate::system::hex(&Sha256::digest(&bytes)) })
}

/// Inspects and loads a plugin, see [`Inspected::load`].
///
/// # Errors
/// Errors of [`inspect`] and [`Inspected::load`].
pub fn load(path: &Path) -> Result<Loaded> {
    inspect(path)?.load()
}

impl Inspected {
    /// Returns the SHA-256 of the file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Loads the plugin, unless it is loaded already. Its methods can then be found by name. The library is never
    /// unloaded.
    ///
    /// # Errors
    /// A library that registers nothing or an existing name, that does not share this crate with the program, or that
    /// was changed since it was inspected.
    pub fn load(self) -> Result<Loaded> {
        let Self { file: library, manifest, sha256 } = self;
        let file = library.path.clone();
        if let Some(known) = all().iter().find(|loaded| loaded.file == file) {
            return Ok(known.clone());
        }
        let fail = |reason: String| Error::Plugin { file: file.clone(), reason };
        let before = registered();
        let earlier = Identity::here();
        let plugin = open(library).map_err(fail)?;
        if !(plugin.is_same_as(&Identity::here()) && earlier.tensor < plugin.tensor) {
            return Err(fail(SELF_CONTAINED.into()));
        }
        let new = |entry: &&'static Entry| !before.iter().any(|old| std::ptr::eq(*old, *entry));
        let entries: Vec<&'static Entry> = registered().into_iter().filter(new).collect();
        if entries.is_empty() {
            let reason = "registers nothing: it needs at least one `cdl_core::register!`";
            return Err(fail(reason.into()));
        }
        for entry in &entries {
            let kind = entry.build.kind();
            let other = registered().into_iter().find(|other| {
                !std::ptr::eq(*other, *entry) && other.build.kind() == kind && other.name == entry.name
            });
            if let Some(other) = other {
                let place = |file: &Path| format!("{} in {}", entry.origin, file.display());
                let first = origin_of(other).map_or(other.origin.into(), |file| place(&file));
                let (kind, name, second) = (kind.as_str(), entry.name.into(), place(&file));
                return Err(Error::DuplicateName { kind, name, first, second });
            }
        }
        let loaded = Loaded { file, sha256, manifest, entries };
        all().push(loaded.clone());
        Ok(loaded)
    }
}

fn registered() -> Vec<&'static Entry> {
    inventory::iter::<Entry>.into_iter().collect()
}

/// Loads the library permanently and returns the identity of the `cdl-core` that it uses.
fn open(file: LibraryFile) -> std::result::Result<Identity, String> {
    let path = file.loader_path();
    // libloading stores the message of the system in the source of its error.
    let explain = |e: libloading::Error| {
        let cause = std::error::Error::source(&e).map(|cause| format!(": {cause}")).unwrap_or_default();
        let message = format!("cannot be loaded: {e}{cause}");
        message.replace(&path.display().to_string(), &file.path.display().to_string())
    };
    // The file could be written between its inspection and this line.
    file.check_unchanged()?;
    // SAFETY: loading runs the initialisers of the library. It imports this build of cdl-core by name, so it was
    // built by the same compiler from the same sources. Its initialisers are those of `inventory` and those of its
    // author, who is trusted like the author of linked code. RTLD_NOW (the default) resolves every symbol first.
    let library = unsafe { Library::new(&path) }.map_err(explain)?;
    // SAFETY: the library has a manifest, so `export_plugin!` has defined this function with this signature.
    let identity = unsafe { library.get::<extern "C" fn() -> Identity>(b"cdl_plugin_identity") };
    let identity = identity.map_err(explain).map(|identity| identity());
    let unchanged = file.check_unchanged();
    // Registered entries, vtables and types point into the library, so it must never be unloaded.
    std::mem::forget(library);
    file.keep_open();
    unchanged.and(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_copy_differs_in_symbol_registry_or_tensor_ids() {
        let (first, second) = (Identity::here(), Identity::here());
        assert!(first.is_same_as(&second), "{first:?} {second:?}");
        assert!(!second.is_same_as(&first), "tensor ids increase");
        assert!(!Identity { core: first.core + 1, ..first }.is_same_as(&second));
        assert!(!Identity { registry: first.registry + 8, ..first }.is_same_as(&second));
        // A copy with its own counter of tensor ids.
        assert!(!Identity { tensor: second.tensor, ..first }.is_same_as(&second));
    }
}
