//! Lists of the files of a folder with their SHA-256, in the format of `sha256sum`: one line `digest  path` per file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path},
};

use rayon::prelude::*;

use crate::{
    error::{Error, Result, io},
    hub::{
        checksum,
        dataset::{DataFile, names_below},
    },
    system::{
        atomic::{sync_below, write_atomic},
        staging::{Placement, Staging, place_of},
    },
};

/// File name of a checksum list in its folder.
pub const NAME: &str = "SHA256SUMS";

/// SHA-256 of files, in lower-case hexadecimal digits, by path with `/` between folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksumList(pub BTreeMap<String, String>);

impl ChecksumList {
    /// Computes the checksums of all files in `folder` and its subfolders, except hidden files and the list itself.
    /// Calls `seen` after each file.
    ///
    /// # Errors
    /// A file that cannot be read, or a name that cannot be written on one line.
    pub fn of(folder: &Path, seen: &(dyn Fn() + Sync)) -> Result<Self> {
        let names: Vec<String> = names_below(folder)?.into_iter().filter(|name| name != NAME).collect();
        if let Some(name) = names.iter().find(|name| name.contains(['\n', '\r', '\\'])) {
            let reason = "a name with a line break or a backslash cannot be listed; rename it".into();
            return Err(Error::Data { file: folder.join(name), reason });
        }
        let hash = |name: String| -> Result<_> {
            let (_, sha256) = checksum(&folder.join(&name))?;
            seen();
            Ok((name, sha256))
        };
        Ok(Self(names.into_par_iter().map(hash).collect::<Result<_>>()?))
    }

    /// Reads a list.
    ///
    /// # Errors
    /// A line that is not `digest  path`, or a path that leaves the folder.
    pub fn read(file: &Path) -> Result<Self> {
        let text = crate::system::files::read_to_string(file)
            .map_err(|e| Error::Data { file: file.into(), reason: format!("cannot be read: {e}") })?;
        let mut files = BTreeMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let fail = |what: &str| Error::Data {
                file: file.into(),
                reason: format!("line {}: {what}; expected `SHA-256  path`", number + 1),
            };
            let (digest, name) = line.split_once(' ').ok_or_else(|| fail("has no path"))?;
            if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(fail("does not begin with 64 hexadecimal digits"));
            }
            // The separator is two spaces, or a space and a star for files that were read as binary.
            let name = name.strip_prefix([' ', '*']).unwrap_or(name);
            let below = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            if name.is_empty() || !below {
                return Err(fail(&format!("`{name}` is not a path inside the folder")));
            }
            files.insert(name.to_string(), digest.to_ascii_lowercase());
        }
        Ok(Self(files))
    }

    /// Copies files into a new or empty folder `dir` and writes their list, which replaces any list among them. The folder is
    /// completed under a temporary name and then renamed.
    ///
    /// # Errors
    /// A folder that is not empty or that cannot be written.
    pub fn copy_with_list(files: &[DataFile], dir: &Path) -> Result<()> {
        let place = place_of(dir)?;
        let is_empty = |folder: &Path| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
        if place.symlink_metadata().is_ok() && !is_empty(&place) {
            let reason = "already exists and is not an empty folder; choose a new folder".into();
            return Err(Error::Data { file: dir.into(), reason });
        }
        let fresh = Staging::new(&place, Placement::of(&place, false))?;
        let files = || files.iter().filter(|file| file.name != NAME);
        for file in files() {
            let copy = fresh.path().join(&file.name);
            let folder = copy.parent().unwrap_or(fresh.path());
            fs::create_dir_all(folder).map_err(io(folder))?;
            fs::copy(&file.path, &copy).map_err(io(&copy))?;
        }
        let listed = files().map(|file| (file.name.clone(), file.provenance.sha256.clone()));
        Self(listed.collect()).write(&fresh.path().join(NAME))?;
        sync_below(fresh.path())?;
        fresh.move_to(&place, NAME)
    }

    /// Writes the list atomically.
    pub fn write(&self, file: &Path) -> Result<()> {
        let lines: String = self.0.iter().map(|(name, sha256)| format!("{sha256}  {name}\n")).collect();
        write_atomic(file, lines.as_bytes())
    }

    /// Compares the files in `folder` and its subfolders with the list. Returns an error for each file that is missing,
    /// differs from its checksum, or is not listed. Hidden files are ignored. Calls `seen` after each listed file.
    pub fn check(&self, folder: &Path, seen: &(dyn Fn() + Sync)) -> Vec<Error> {
        let look = |(name, listed): (&String, &String)| {
            let file = folder.join(name);
            let found = match file.is_file().then(|| checksum(&file)) {
                None => Some(Error::Data { file, reason: format!("is missing; {NAME} lists it") }),
                Some(Err(error)) => Some(error.into()),
                Some(Ok((_, sha256))) => (sha256 != *listed).then(|| {
                    let reason = format!("has the SHA-256 {sha256}, expected {listed}");
                    Error::Data { file, reason }
                }),
            };
            seen();
            found
        };
        let mut found: Vec<Error> = self.0.par_iter().filter_map(look).collect();
        // Compare paths, not strings: `a//b` equals `a/b`.
        let listed: BTreeSet<&Path> = self.0.keys().map(Path::new).collect();
        match names_below(folder) {
            Err(error) => found.push(error.into()),
            Ok(names) => {
                let unlisted = names.iter().filter(|name| *name != NAME && !listed.contains(Path::new(name)));
                found.extend(unlisted.map(|name| Error::Data {
                    file: folder.join(name),
                    reason: format!("is not listed in {NAME}"),
                }));
            }
        }
        found
    }
}
