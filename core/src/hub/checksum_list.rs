//! The files of a folder with their SHA-256, in the form of `sha256sum`: a line `digest  path` for each.

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
    system::atomic::{beside, folder_of, settle, sync_below, write_atomic},
};

/// The name of such a list in its folder.
pub const NAME: &str = "SHA256SUMS";

/// SHA-256 in lower-case hexadecimal digits by path, with `/` between folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest(pub BTreeMap<String, String>);

impl Manifest {
    /// Reads all files below `folder` but hidden ones and the list itself.
    ///
    /// # Errors
    /// Files that cannot be read, and names that no line can hold.
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
    /// Lines that are not `digest  path`, and paths that leave the folder.
    pub fn read(file: &Path) -> Result<Self> {
        let text = crate::system::files::read_to_string(file).map_err(io(file))?;
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
            // After the space stands another, or a star for files that were read as binary.
            let name = name.strip_prefix([' ', '*']).unwrap_or(name);
            let below = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            if name.is_empty() || !below {
                return Err(fail(&format!("`{name}` is no path below the folder")));
            }
            files.insert(name.to_string(), digest.to_ascii_lowercase());
        }
        Ok(Self(files))
    }

    /// Copies files into a new folder `dir`, with their list; a list of this name among them gives way to it. The folder
    /// is made whole beside its place and then moved there.
    ///
    /// # Errors
    /// A folder that is there already, or a place that cannot be written.
    pub fn place(files: &[DataFile], dir: &Path) -> Result<()> {
        if dir.exists() {
            let reason = "is there already; name a new folder".into();
            return Err(Error::Data { file: dir.into(), reason });
        }
        let parent = folder_of(dir);
        fs::create_dir_all(parent).map_err(io(parent))?;
        let fresh = beside(parent)?;
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
        settle(fresh, dir, false)
    }

    /// Writes the list whole or not at all.
    pub fn write(&self, file: &Path) -> Result<()> {
        let lines: String = self.0.iter().map(|(name, sha256)| format!("{sha256}  {name}\n")).collect();
        write_atomic(file, lines.as_bytes())
    }

    /// Compares the files below `folder` with the list: those that are missing, those that are not as listed, and those
    /// that it does not list, hidden ones left out.
    pub fn check(&self, folder: &Path, seen: &(dyn Fn() + Sync)) -> Vec<Error> {
        let look = |(name, listed): (&String, &String)| {
            let file = folder.join(name);
            let found = match file.is_file().then(|| checksum(&file)) {
                None => Some(Error::Data { file, reason: format!("is missing; {NAME} lists it") }),
                Some(Err(error)) => Some(error.into()),
                Some(Ok((_, sha256))) => (sha256 != *listed).then(|| {
                    let reason = format!("has the SHA-256 {sha256} in place of {listed}");
                    Error::Data { file, reason }
                }),
            };
            seen();
            found
        };
        let mut found: Vec<Error> = self.0.par_iter().filter_map(look).collect();
        // As paths, so that `a//b` is `a/b`.
        let listed: BTreeSet<&Path> = self.0.keys().map(Path::new).collect();
        match names_below(folder) {
            Err(error) => found.push(error.into()),
            Ok(names) => {
                let strange = names.iter().filter(|name| *name != NAME && !listed.contains(Path::new(name)));
                found.extend(strange.map(|name| Error::Data {
                    file: folder.join(name),
                    reason: format!("is not listed in {NAME}"),
                }));
            }
        }
        found
    }
}
