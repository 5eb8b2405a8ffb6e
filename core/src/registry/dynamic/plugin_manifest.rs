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

/// Reason to refuse a library that was linked with a copy of this crate.
pub(super) const SELF_CONTAINED: &str = "has a copy of cdl-core of its own and would compute wrong gradients: it was linked without cdl-core's shared \
     library; plugins are made by `cdl plugin build`";

const NAME: &str = "CDL_PLUGIN_MANIFEST";
const HEADER: &str = "cdl-plugin 1";
/// No manifest is longer; a damaged file may claim anything.
const LONGEST: u64 = 1 << 16;

impl Manifest {
    /// Reads the manifest of a library.
    pub(super) fn of_library(bytes: &[u8]) -> Result<Self, String> {
        let no_library = |why: String| format!("is no shared library that this system can load ({why})");
        let library = object::File::parse(bytes).map_err(|e| no_library(e.to_string()))?;
        if library.kind() != object::ObjectKind::Dynamic {
            return Err(no_library(format!("it is of the kind {:?}", library.kind())));
        }
        let manifest = Self::parse(&text(&library)?)?;
        manifest.check(super::STAMP)?;
        let import = library.dynamic_symbols().find(|symbol| symbol.name() == Ok(super::SYMBOL));
        match import {
            Some(symbol) if symbol.is_undefined() => Ok(manifest),
            _ => Err(SELF_CONTAINED.into()),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(unreadable(&format!("it does not begin with `{HEADER}`")));
        }
        let mut lines = lines.map(|line| line.split_once(' ').unwrap_or((line, "")));
        let mut named = |name: &str| match lines.next() {
            Some((key, value)) if key == name => Ok(value.to_string()),
            _ => Err(unreadable(&format!("`{name}` is missing"))),
        };
        let (name, version) = (named("name")?, named("version")?);
        Ok(Self { name, version, stamp: lines.map(|(what, which)| (what.into(), which.into())).collect() })
    }

    /// Compares what the plugin was built with, line by line, with `host`.
    fn check(&self, host: &str) -> Result<(), String> {
        for (what, host) in host.lines().filter_map(|line| line.split_once(' ')) {
            let own = self.stamp.iter().find(|(own, _)| own == what).map_or("unknown", |(_, which)| which);
            if own != host {
                return Err(format!(
                    "was built with {what} {own}, this program with {what} {host}; build it again with this program's \
                     `cdl plugin build`"
                ));
            }
        }
        Ok(())
    }
}

fn unreadable(why: &str) -> String {
    format!("has a manifest that cannot be read: {why}")
}

/// The manifest's text.
fn text(library: &object::File<'_>) -> Result<String, String> {
    let symbol = library
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok(NAME) && !symbol.is_undefined())
        .ok_or(
            "is a shared library, but no plugin: it has no CDL_PLUGIN_MANIFEST; plugins are made by `cdl plugin build`",
        )?;
    if symbol.size() > LONGEST {
        return Err(unreadable("it is too long"));
    }
    let section = symbol.section_index().and_then(|index| library.section_by_index(index).ok());
    let data = section.and_then(|section| section.data_range(symbol.address(), symbol.size()).ok().flatten());
    let bytes = data.ok_or_else(|| unreadable("it lies outside the file"))?;
    String::from_utf8(bytes.into()).map_err(|_| unreadable("it is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::parse(&format!("cdl-plugin 1\nname m\nversion 0.2.0\n{}", super::super::STAMP)).unwrap()
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
            let own = &manifest.stamp[at].1;
            let host = &own[..own.len() - 1];
            let expected = format!("was built with {what} {own}, this program with {what} {host};");
            let refused = manifest.check(super::super::STAMP);
            assert!(refused.as_ref().is_err_and(|said| said.starts_with(&expected)), "{refused:?}");
        }
    }

    #[test]
    fn text_that_is_no_manifest_is_refused() {
        for text in
            ["", "cdl-plugin 2\nname m\nversion 1\n", "cdl-plugin 1\nversion 1\n", "cdl-plugin 1\nname m"]
        {
            assert!(Manifest::parse(text).is_err_and(|said| said.contains("cannot be read")), "{text}");
        }
        for bytes in [&b"no library"[..], b""] {
            assert!(Manifest::of_library(bytes).is_err_and(|said| said.contains("no shared library")));
        }
    }
}
