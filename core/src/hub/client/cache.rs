//! One repository in the cache that Hugging Face libraries share.
//!
//! `refs/<revision>` contains a commit, `snapshots/<commit>/<name>` is a link to `blobs/<etag>`, and an empty file
//! `.no_exist/<commit>/<name>` records that the commit has no such file. Commits and etags come from a server. They are
//! [`Digest`]s: hexadecimal digits, which cannot lead out of the folder.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::{
    error::HubError,
    hub::dataset::names_below,
    system::{atomic::UNFINISHED, files},
};

/// Commit or entity tag: 40 or 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Digest(String);

impl Digest {
    /// Parses a commit, which has 40 digits.
    pub(super) fn commit(text: &str) -> Option<Self> {
        Self::of_length(text, &[40])
    }

    /// Parses an entity tag, quoted or not: a git hash of 40 digits, or the SHA-256 of a file that is stored outside git.
    pub(super) fn etag(text: &str) -> Option<Self> {
        let text = text.strip_prefix("W/").unwrap_or(text);
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        Self::of_length(text, &[40, 64])
    }

    fn of_length(text: &str, lengths: &[usize]) -> Option<Self> {
        let valid = lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| Self(text.to_ascii_lowercase()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the digest if it is a SHA-256.
    pub(super) fn sha256(&self) -> Option<&str> {
        (self.0.len() == 64).then_some(&*self.0)
    }
}

/// File in the cache; `name` is its path in the repository.
#[derive(Debug, Clone)]
pub(super) struct CachedFile {
    pub(super) commit: Digest,
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// Result of looking up one file of a repository in the cache.
pub(super) enum Lookup {
    /// The cache has the file.
    Found(CachedFile),
    /// The commit has no such file.
    Absent,
    /// The cache does not contain the revision, or does not record whether the revision has the file.
    Unknown,
}

/// Folder of one repository in the cache.
pub(super) struct RepositoryCache {
    pub(super) folder: PathBuf,
    locks: PathBuf,
}

impl RepositoryCache {
    /// Returns the folder of the repository `owner/name`; `kind` is `models` or `datasets`.
    pub(super) fn new(cache: &Path, kind: &str, repository: &str) -> Self {
        let name = format!("{kind}--{}", repository.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// Returns the commit of a revision, if the cache contains it. A commit is its own revision.
    pub(super) fn commit(&self, revision: &str) -> Option<Digest> {
        Digest::commit(revision).or_else(|| {
            let commit = files::read_to_string(&self.folder.join("refs").join(revision));
            Digest::commit(commit.ok()?.trim())
        })
    }

    /// Looks up a file of a revision.
    pub(super) fn lookup(&self, revision: &str, name: &str) -> Lookup {
        let Some(commit) = self.commit(revision) else { return Lookup::Unknown };
        let path = self.snapshot(&commit).join(name);
        match path.is_file() {
            true => Lookup::Found(CachedFile { commit, name: name.to_owned(), path }),
            false if self.absence(&commit, name).exists() => Lookup::Absent,
            false => Lookup::Unknown,
        }
    }

    /// Lists the cached files of a revision, or returns `None` if the cache does not contain the revision.
    pub(super) fn names(&self, revision: &str) -> Option<Result<(Digest, Vec<String>), HubError>> {
        let commit = self.commit(revision)?;
        let snapshot = self.snapshot(&commit);
        snapshot.is_dir().then(|| Ok((commit, names_below(&snapshot)?)))
    }

    /// Path of a file with the contents of entity tag `etag`.
    pub(super) fn blob(&self, etag: &Digest) -> PathBuf {
        self.folder.join("blobs").join(etag.as_str())
    }

    /// Creates a temporary file in the folder of blobs, with the permissions of any new file.
    pub(super) fn new_blob(&self) -> io::Result<NamedTempFile> {
        let folder = self.folder.join("blobs");
        fs::create_dir_all(&folder)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED).suffix(".incomplete");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder.tempfile_in(folder)
    }

    /// Waits until no other process fetches the contents of entity tag `etag`. The lock ends when the file is dropped.
    pub(super) fn lock(&self, etag: &Digest) -> io::Result<File> {
        fs::create_dir_all(&self.locks)?;
        let path = self.locks.join(format!("{}.lock", etag.as_str()));
        let file = files::open_own(OpenOptions::new().write(true).create(true).truncate(false), &path)?;
        file.lock()?;
        Ok(file)
    }

    /// Adds a file of a commit, whose contents are the blob of `etag`, and records the commit of `revision`.
    pub(super) fn add(
        &self,
        revision: &str,
        commit: Digest,
        name: &str,
        etag: &Digest,
    ) -> io::Result<CachedFile> {
        let path = self.snapshot(&commit).join(name);
        create_folder_of(&path)?;
        // `blobs` is two folders above `snapshots/<commit>`, and each folder in `name` adds one. The link is relative, so
        // that the cache can be moved.
        let up = "../".repeat(Path::new(name).components().count() + 1);
        let blob = PathBuf::from(format!("{up}blobs/{}", etag.as_str()));
        // Another process may add the same link at the same time, so it is created under another name and renamed.
        let folder = path.parent().unwrap_or(&self.folder);
        let link =
            tempfile::Builder::new().prefix(UNFINISHED).make_in(folder, |link| symlink(&blob, link))?;
        link.persist(&path).map_err(|error| error.error)?;
        self.record_revision(revision, &commit)?;
        Ok(CachedFile { commit, name: name.to_owned(), path })
    }

    /// Records that a commit has no file `name`.
    pub(super) fn add_absence(&self, revision: &str, commit: &Digest, name: &str) -> io::Result<()> {
        let path = self.absence(commit, name);
        create_folder_of(&path)?;
        files::open_own(OpenOptions::new().write(true).create(true).truncate(false), &path)?;
        self.record_revision(revision, commit)
    }

    fn record_revision(&self, revision: &str, commit: &Digest) -> io::Result<()> {
        if Digest::commit(revision).is_some() {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        create_folder_of(&path)?;
        // Another process may read the file at the same time.
        let mut file =
            tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(path.parent().unwrap_or(&path))?;
        file.write_all(commit.as_str().as_bytes())?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Folder of the files of a commit.
    pub(super) fn snapshot(&self, commit: &Digest) -> PathBuf {
        self.folder.join("snapshots").join(commit.as_str())
    }

    fn absence(&self, commit: &Digest, name: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit.as_str()).join(name)
    }
}

fn create_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Copies the file: links need a privilege on this system.
#[cfg(not(unix))]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    let target = link.parent().unwrap_or(link).join(target);
    fs::copy(target, link).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_hexadecimal_digits_becomes_a_path() {
        let digits = "0123456789abcdef0123456789abcdef01234567";
        let sha256 = "0".repeat(64);
        assert_eq!(Digest::commit(&digits.to_uppercase()).unwrap().as_str(), digits);
        for etag in [digits, &format!("\"{digits}\""), &format!("W/\"{digits}\""), &sha256] {
            assert!(Digest::etag(etag).is_some(), "{etag}");
        }
        let traversal = format!("../{}", &digits[3..]);
        for text in ["", "/etc/hostname", "..", "deadbeef", &traversal, &digits[1..], "é".repeat(20).as_str()]
        {
            assert_eq!(Digest::commit(text), None, "{text}");
            assert_eq!(Digest::etag(text), None, "{text}");
        }
        assert_eq!(Digest::commit(&sha256), None);
    }
}
