//! Manifest of a plugin: a text in its file with name, version and build stamp, read without loading the file.

use object::{Object, ObjectSection, ObjectSymbol};

/// Name, version and build stamp of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Name of the package.
    pub name: String,
    /// Version of the package.
    pub version: String,
    /// Properties that must be equal in plugin and program, as `(property, value)` in order.
    pub stamp: Vec<(String, String)>,
}

/// Error of a library that contains its own copy of this crate.
pub(super) const SELF_CONTAINED: &str = "contains its own copy of cdl-core and would compute wrong gradients: it was \
     not linked against the shared library of cdl-core; build plugins with `cdl plugin build`";

const NAME: &str = "CDL_PLUGIN_MANIFEST";
const HEADER: &str = "cdl-plugin 1";
/// Maximum length of a manifest in bytes. A damaged file may state any length.
const MAX_BYTES: u64 = 1 << 16;

impl Manifest {
    /// Reads the manifest of a library.
    pub(super) fn of_library(bytes: &[u8]) -> Result<Self, String> {
        let not_a_library =
            |why: String| format!("is not a shared library that this system can load ({why})");
        let library = object::File::parse(bytes).map_err(|e| not_a_library(e.to_string()))?;
        if library.kind() != object::ObjectKind::Dynamic {
            return Err(not_a_library(format!("it is of the kind {:?}", library.kind())));
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
        let stamp = lines.map(|(property, value)| (property.into(), value.into())).collect();
        Ok(Self { name, version, stamp })
    }

    /// Compares the build stamp, line by line, with the stamp `host` of the program.
    fn check(&self, host: &str) -> Result<(), String> {
        for (property, host) in host.lines().filter_map(|line| line.split_once(' ')) {
            let own =
                self.stamp.iter().find(|(own, _)| own == property).map_or("unknown", |(_, value)| value);
            if own != host {
                return Err(format!(
                    "was built with {property} {own}, this program with {property} {host}; build it again with this \
                     program's `cdl plugin build`"
                ));
            }
        }
        Ok(())
    }
}

fn unreadable(why: &str) -> String {
    format!("has a manifest that cannot be read: {why}")
}

/// Returns the text of the manifest.
fn text(library: &object::File<'_>) -> Result<String, String> {
    let symbol = library
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok(NAME) && !symbol.is_undefined())
        .ok_or(
            "is a shared library but not a plugin: it has no CDL_PLUGIN_MANIFEST; build plugins with `cdl plugin build`",
        )?;
    if symbol.size() > MAX_BYTES {
        return Err(unreadable(&format!("it is longer than {MAX_BYTES} bytes")));
    }
    let section = symbol.section_index().and_then(|index| library.section_by_index(index).ok());
    let data = section.and_then(|section| section.data_range(symbol.address(), symbol.size()).ok().flatten());
    let bytes = data.ok_or_else(|| unreadable("it is outside the file"))?;
    String::from_utf8(bytes.into()).map_err(|_| unreadable("it is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::parse(&format!("cdl-plugin 1\nname m\nversion 0.2.0\n{}", super::super::STAMP)).unwrap()
    }

    #[test]
    fn parse_reads_name_version_and_stamp() {
        let manifest = manifest();
        assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("m", "0.2.0"));
        assert_eq!(manifest.stamp.len(), super::super::STAMP.lines().count());
        assert_eq!(manifest.check(super::super::STAMP), Ok(()));
    }

    #[test]
    fn a_difference_in_any_line_of_the_stamp_is_refused() {
        for at in 0..manifest().stamp.len() {
            let mut manifest = manifest();
            manifest.stamp[at].1.push('x');
            let property = manifest.stamp[at].0.clone();
            let own = &manifest.stamp[at].1;
            let host = &own[..own.len() - 1];
            let expected = format!("was built with {property} {own}, this program with {property} {host};");
            let refused = manifest.check(super::super::STAMP);
            assert!(refused.as_ref().is_err_and(|message| message.starts_with(&expected)), "{refused:?}");
        }
    }

    #[test]
    fn malformed_manifests_and_libraries_are_refused() {
        for text in
            ["", "cdl-plugin 2\nname m\nversion 1\n", "cdl-plugin 1\nversion 1\n", "cdl-plugin 1\nname m"]
        {
            assert!(Manifest::parse(text).is_err_and(|message| message.contains("cannot be read")), "{text}");
        }
        for bytes in [&b"no library"[..], b""] {
            assert!(
                Manifest::of_library(bytes).is_err_and(|message| message.contains("not a shared library"))
            );
        }
    }
}
