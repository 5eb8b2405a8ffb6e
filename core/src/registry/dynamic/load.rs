//! Loading: look at the file, load it, see what came with it.

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
        dynamic::plugin_manifest::{Manifest, SELF_CONTAINED},
    },
};

/// A library that has been loaded. It stays until the program ends: what it registered points into it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file, absolute.
    pub file: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// Manifest of the library.
    pub manifest: Manifest,
    /// Entries that it registered.
    pub entries: Vec<&'static Entry>,
}

impl Loaded {
    /// Whether the library has registered the plugin `name`.
    pub(crate) fn registers(&self, kind: Kind, name: &str) -> bool {
        self.entries.iter().any(|entry| (entry.build.kind(), entry.name) == (kind, name))
    }
}

static LOADED: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

fn all() -> MutexGuard<'static, Vec<Loaded>> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All libraries loaded so far, in order.
pub fn loaded() -> Vec<Loaded> {
    all().clone()
}

/// The file that registered an entry, if it was loaded.
pub fn origin_of(entry: &Entry) -> Option<PathBuf> {
    let mine = |loaded: &&Loaded| loaded.entries.iter().any(|own| std::ptr::eq(*own, entry));
    all().iter().find(mine).map(|loaded| loaded.file.clone())
}

/// Whose copy of `cdl-core` code runs in: addresses and counters of which there is one in each copy.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Address of this crate's own symbol.
    pub core: usize,
    /// Address of the newest registered entry.
    pub registry: usize,
    /// Number of the tensor made last, which was made for this.
    pub tensor: usize,
}

impl Identity {
    /// As this copy sees it.
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

    /// Whether this copy, asked at the same time as `other`, is the same one: tensors are counted in one row.
    fn is(&self, other: &Self) -> bool {
        (self.core, self.registry) == (other.core, other.registry) && self.tensor < other.tensor
    }
}

/// Manifest of a library, read without loading it.
///
/// # Errors
/// A file that cannot be read or is no plugin for this program, in a sentence that names both sides.
pub fn inspect(path: &Path) -> Result<Manifest> {
    Ok(look(path)?.1)
}

/// The absolute path, the manifest and the SHA-256 of a library.
fn look(path: &Path) -> Result<(PathBuf, Manifest, String)> {
    let fail = |reason: String| Error::Plugin { file: path.into(), reason };
    let unreadable = |e: std::io::Error| fail(format!("cannot be read: {e}"));
    let file = path.canonicalize().map_err(unreadable)?;
    if file.is_dir() {
        return Err(fail("is a folder; expected a shared library made by `cdl plugin build`".into()));
    }
    let bytes = std::fs::read(&file).map_err(unreadable)?;
    let manifest = Manifest::of_library(&bytes).map_err(fail)?;
    Ok((file, manifest, crate::system::hex(&Sha256::digest(&bytes))))
}

/// Loads a plugin, once; what it registers is then found by name. It is never unloaded.
///
/// # Errors
/// A library that is no plugin for this program, which is found out before any of its code runs; one that registers
/// nothing or a name that is taken; one that does not share this crate with the program.
pub fn load(path: &Path) -> Result<Loaded> {
    let (file, manifest, sha256) = look(path)?;
    if let Some(known) = all().iter().find(|loaded| loaded.file == file) {
        return Ok(known.clone());
    }
    let fail = |reason: String| Error::Plugin { file: file.clone(), reason };
    let before = registered();
    let earlier = Identity::here();
    let theirs = open(&file).map_err(fail)?;
    if !(theirs.is(&Identity::here()) && earlier.tensor < theirs.tensor) {
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

fn registered() -> Vec<&'static Entry> {
    inventory::iter::<Entry>.into_iter().collect()
}

/// Loads the library for good and asks it whose `cdl-core` it uses.
fn open(file: &Path) -> std::result::Result<Identity, String> {
    // libloading's own words are short; the system's are the cause.
    let explain = |e: libloading::Error| {
        let cause = std::error::Error::source(&e).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("cannot be loaded: {e}{cause}")
    };
    // SAFETY: loading runs the library's initialisers. It imports this very build of cdl-core by name, so it was made by
    // the same compiler from the same sources; its initialisers are those of `inventory`, and whatever its author
    // added, who is trusted like any code that is linked in. RTLD_NOW (the default) resolves every symbol first.
    let library = unsafe { Library::new(file) }.map_err(explain)?;
    // SAFETY: a plugin's manifest is there, and `export_plugin!` writes both; the signature is the macro's.
    let identity = unsafe { library.get::<extern "C" fn() -> Identity>(b"cdl_plugin_identity") };
    let identity = identity.map_err(explain)?();
    // Never unloaded: registered entries, vtables and types live in it.
    std::mem::forget(library);
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_copy_is_told_by_its_symbol_its_registry_or_its_count_of_tensors() {
        let (first, second) = (Identity::here(), Identity::here());
        assert!(first.is(&second), "{first:?} {second:?}");
        assert!(!second.is(&first), "tensors are counted upwards");
        assert!(!Identity { core: first.core + 1, ..first }.is(&second));
        assert!(!Identity { registry: first.registry + 8, ..first }.is(&second));
        // A copy that has just begun to count.
        assert!(!Identity { tensor: second.tensor, ..first }.is(&second));
    }
}
