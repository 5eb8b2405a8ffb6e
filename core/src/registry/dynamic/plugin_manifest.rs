//! The text in a plugin's file that says what it was built with, read without loading the file.

use object::{Object, ObjectSection, ObjectSymbol};

/// Name and version of a plugin, and what it was built with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Name of its package.
    pub name: String,
    /// Version of its package.
    pub version: String,
    /// What it must have in common with the program, as `(what, which)` in order.
    pub stamp: Vec<(String, String)>,
}

/// Why a file is no plugin for this program.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Not a shared library, or a damaged one.
    #[error("is no shared library that this system can load ({0})")]
    NotALibrary(String),
    /// A library that is no plugin.
    #[error(
        "is a shared library, but no plugin: it has no CDL_PLUGIN_MANIFEST; plugins are made by `cdl plugin build`"
    )]
    NotAPlugin,
    /// A manifest that cannot be read.
    #[error("has a manifest that cannot be read: {0}")]
    Unreadable(String),
    /// Built with something else than this program.
    #[error(
        "was built with {what} {plugin}, this program with {what} {host}; build it again with this program's \
         `cdl plugin build`"
    )]
    Differs {
        /// Compiler, `cdl-core`, ...
        what: String,
        /// The plugin's.
        plugin: String,
        /// The program's.
        host: String,
    },
    /// A library with its own copy of this crate.
    #[error(
        "has a copy of cdl-core of its own and would compute wrong gradients: it was linked without cdl-core's shared \
         library; plugins are made by `cdl plugin build`"
    )]
    SelfContained,
}

const NAME: &str = "CDL_PLUGIN_MANIFEST";
const HEADER: &str = "cdl-plugin 1";
/// No manifest is longer; a damaged file may claim anything.
const LONGEST: u64 = 1 << 16;

impl Manifest {
    /// Reads the manifest of a library.
    ///
    /// # Errors
    /// No library, no plugin, a plugin built with something else, or one with a copy of this crate of its own.
    pub fn of_library(bytes: &[u8]) -> Result<Self, ManifestError> {
        let library = object::File::parse(bytes).map_err(|e| ManifestError::NotALibrary(e.to_string()))?;
        if library.kind() != object::ObjectKind::Dynamic {
            return Err(ManifestError::NotALibrary(format!("it is of the kind {:?}", library.kind())));
        }
        let manifest = Self::parse(&text(&library)?)?;
        manifest.check(super::STAMP)?;
        let import = library.dynamic_symbols().find(|symbol| symbol.name() == Ok(super::SYMBOL));
        match import {
            Some(symbol) if symbol.is_undefined() => Ok(manifest),
            _ => Err(ManifestError::SelfContained),
        }
    }

    fn parse(text: &str) -> Result<Self, ManifestError> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(ManifestError::Unreadable(format!("it does not begin with `{HEADER}`")));
        }
        let mut lines = lines.map(|line| line.split_once(' ').unwrap_or((line, "")));
        let mut named = |name: &str| match lines.next() {
            Some((key, value)) if key == name => Ok(value.to_string()),
            _ => Err(ManifestError::Unreadable(format!("`{name}` is missing"))),
        };
        let (name, version) = (named("name")?, named("version")?);
        Ok(Self { name, version, stamp: lines.map(|(what, which)| (what.into(), which.into())).collect() })
    }

    /// Compares what the plugin was built with, line by line, with `host`.
    fn check(&self, host: &str) -> Result<(), ManifestError> {
        for (what, host) in host.lines().filter_map(|line| line.split_once(' ')) {
            let own = self.stamp.iter().find(|(own, _)| own == what).map_or("unknown", |(_, which)| which);
            if own != host {
                let (what, plugin, host) = (what.into(), own.into(), host.into());
                return Err(ManifestError::Differs { what, plugin, host });
            }
        }
        Ok(())
    }
}

/// The manifest's text.
fn text(library: &object::File<'_>) -> Result<String, ManifestError> {
    let symbol = library
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok(NAME) && !symbol.is_undefined())
        .ok_or(ManifestError::NotAPlugin)?;
    let unreadable = |reason: &str| ManifestError::Unreadable(reason.into());
    if symbol.size() > LONGEST {
        return Err(unreadable("it is too long"));
    }
    let section = symbol.section_index().and_then(|index| library.section_by_index(index).ok());
    let data = section.and_then(|section| section.data_range(symbol.address(), symbol.size()).ok().flatten());
    let bytes = data.ok_or_else(|| unreadable("it lies outside the file"))?;
    String::from_utf8(bytes.into()).map_err(|_| unreadable("it is not text"))
}

/// Bytes of all `parts` together.
pub const fn length(parts: &[&str]) -> usize {
    let (mut total, mut part) = (0, 0);
    while part < parts.len() {
        total += parts[part].len();
        part += 1;
    }
    total
}

/// All `parts` in a row; `N` must be their [`length`].
pub const fn joined<const N: usize>(parts: &[&str]) -> [u8; N] {
    let mut bytes = [0; N];
    let (mut at, mut part) = (0, 0);
    while part < parts.len() {
        let from = parts[part].as_bytes();
        let mut byte = 0;
        while byte < from.len() {
            bytes[at] = from[byte];
            at += 1;
            byte += 1;
        }
        part += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: &[&str] = &["cdl-plugin 1\nname ", "m", "\nversion ", "0.2.0", "\n", super::super::STAMP];
    const TEXT: [u8; length(PARTS)] = joined(PARTS);

    fn manifest() -> Manifest {
        Manifest::parse(std::str::from_utf8(&TEXT).unwrap()).unwrap()
    }

    #[test]
    fn a_manifest_is_read_back() {
        let manifest = manifest();
        assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("m", "0.2.0"));
        assert_eq!(manifest.stamp.len(), super::super::STAMP.lines().count());
        assert_eq!(manifest.check(super::super::STAMP), Ok(()));
    }

    #[test]
    fn every_line_of_the_stamp_counts() {
        for at in 0..manifest().stamp.len() {
            let mut manifest = manifest();
            manifest.stamp[at].1.push('x');
            let what = manifest.stamp[at].0.clone();
            match manifest.check(super::super::STAMP) {
                Err(ManifestError::Differs { what: differs, plugin, host }) => {
                    assert_eq!((differs, plugin), (what, format!("{host}x")));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn text_that_is_no_manifest_is_refused() {
        for text in
            ["", "cdl-plugin 2\nname m\nversion 1\n", "cdl-plugin 1\nversion 1\n", "cdl-plugin 1\nname m"]
        {
            assert!(matches!(Manifest::parse(text), Err(ManifestError::Unreadable(_))), "{text}");
        }
        assert!(matches!(Manifest::of_library(b"no library"), Err(ManifestError::NotALibrary(_))));
        assert!(matches!(Manifest::of_library(b""), Err(ManifestError::NotALibrary(_))));
    }
}
