//! Unpacking archives that may be hostile: no path leaves the folder, nothing but files and folders is made, what comes out
//! is bounded, and it appears whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Component, Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType, PaxExtensions};
use zip::ZipArchive;

use crate::{
    error::{self, Error, Result},
    hub::checksum,
    run::directory::free_bytes,
    system::atomic::{beside, sync_below},
};

/// Most bytes of an entry's name or attributes in a tar archive.
const LONGEST_NAME: u64 = 1 << 16;
/// What an archive may grow to whatever its own size.
const LEAST: u64 = 1 << 20;
/// What a folder takes on disk, about.
const FOLDER: u64 = 1 << 12;

/// Bounds on what comes out of an archive.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Files and folders, also those that only the paths of others name.
    pub entries: usize,
    /// Times the size of the archive, in bytes, a folder counted as 4 KiB; images are packed already and hardly grow.
    pub growth: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 5_000_000, growth: 50 }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Number of files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// SHA-256 of the archive.
    pub sha256: String,
}

/// Unpacks a tar, tar.gz or zip archive into the new folder `dir`; `seen` is told of each file. With `sha256`, the archive
/// must have this checksum.
///
/// # Errors
/// A folder that is there already; an archive of another checksum, that is damaged, or that holds what no data set needs:
/// paths out of the folder, links, devices, more than `limits` or the free space allow. Nothing is left behind.
pub fn unpack(
    archive: &Path,
    dir: &Path,
    sha256: Option<&str>,
    limits: Limits,
    seen: &dyn Fn(),
) -> Result<Unpacked> {
    let fail = |reason: String| Error::Data { file: archive.into(), reason };
    if fs::symlink_metadata(dir).is_ok() {
        return Err(Error::Data { file: dir.into(), reason: "is there already; name a new folder".into() });
    }
    let (size, found) = checksum(archive)?;
    if let Some(expected) = sha256.filter(|expected| !expected.eq_ignore_ascii_case(&found)) {
        return Err(fail(format!("has the SHA-256 {found} in place of {expected}; fetch it again")));
    }
    let mut file = File::open(archive).map_err(error::io(archive))?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let free = free_bytes(parent)?;
    let made = first_missing(parent);
    fs::create_dir_all(parent).map_err(error::io(parent))?;
    let unpacked = (|| {
        let fresh = beside(parent)?;
        let most = size.saturating_mul(limits.growth).max(LEAST);
        let mut out = Out { root: fresh.path(), limits, most, free, files: 0, folders: 0, bytes: 0, seen };
        out.archive(&mut file).map_err(fail)?;
        let (files, bytes) = (out.files, out.bytes);
        sync_below(fresh.path())?;
        fs::rename(fresh.path(), dir).map_err(error::io(dir))?;
        // It lies in its place now and must not be removed with its old name.
        let _ = fresh.keep();
        Ok(Unpacked { files, bytes, sha256: found })
    })();
    if let (Err(_), Some(made)) = (&unpacked, made) {
        // Folders above the place that were made for it; those that others have filled meanwhile stay.
        let mut folder = Some(parent);
        while let Some(empty) = folder.filter(|folder| folder.starts_with(&made)) {
            if fs::remove_dir(empty).is_err() {
                break;
            }
            folder = empty.parent();
        }
    }
    unpacked
}

/// The uppermost folder of a path that is not there.
fn first_missing(path: &Path) -> Option<PathBuf> {
    let missing = path.ancestors().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    missing.last().map(Path::to_path_buf)
}

/// Where an archive goes, and how much of it there is so far.
struct Out<'a> {
    root: &'a Path,
    limits: Limits,
    /// Most bytes in all.
    most: u64,
    /// Bytes of free space.
    free: u64,
    files: usize,
    folders: usize,
    bytes: u64,
    seen: &'a dyn Fn(),
}

impl Out<'_> {
    /// Unpacks a file in the form that its first bytes say.
    fn archive(&mut self, file: &mut File) -> Result<(), String> {
        let mut start = Vec::new();
        file.take(262).read_to_end(&mut start).map_err(unreadable)?;
        file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        match start.as_slice() {
            [0x1f, 0x8b, ..] => self.tar(MultiGzDecoder::new(BufReader::new(file))),
            [b'P', b'K', 3 | 5, 4 | 6, ..] => self.zip(file),
            tar if tar.get(257..262) == Some(b"ustar") => self.tar(BufReader::new(file)),
            _ => Err("is no tar, tar.gz or zip archive".into()),
        }
    }

    fn tar(&mut self, reader: impl Read) -> Result<(), String> {
        // Headers count as well, so that an endless archive of empty files ends.
        let most = self.most.saturating_add(2 * LEAST);
        let mut archive = Archive::new(Bounded { reader, left: most, most, ended: false });
        let mut long: Option<PathBuf> = None;
        for entry in archive.entries().map_err(unreadable)?.raw(true) {
            let mut entry = entry.map_err(unreadable)?;
            let header = entry.header();
            let (kind, size) = (header.entry_type(), header.entry_size().map_err(unreadable)?);
            match kind {
                EntryType::GNULongName | EntryType::XHeader | EntryType::XGlobalHeader => {
                    if size > LONGEST_NAME {
                        return Err(format!("has a name or attributes of {size} bytes"));
                    }
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).map_err(unreadable)?;
                    if bytes.len() as u64 != size {
                        return Err(truncated());
                    }
                    match kind {
                        EntryType::GNULongName => {
                            long = Some(text_of(bytes.split(|b| *b == 0).next())?.into())
                        }
                        EntryType::XHeader => long = pax_path(&bytes)?.or(long),
                        _ => {}
                    }
                }
                EntryType::Regular | EntryType::Continuous | EntryType::Directory => {
                    let path = match long.take() {
                        Some(path) => path,
                        None => entry.path().map_err(unreadable)?.into_owned(),
                    };
                    // Old archives mark folders by the end of their names alone.
                    let folder = kind == EntryType::Directory || path.to_string_lossy().ends_with('/');
                    self.entry(&path, folder, Some(size), &mut entry)?;
                }
                other => {
                    let path = long.take().or_else(|| entry.path().ok().map(|path| path.into_owned()));
                    return Err(refused(&path.unwrap_or_default(), kind_of(other)));
                }
            }
        }
        let mut rest = archive.into_inner();
        if rest.ended {
            return Err(truncated());
        }
        // What follows is padding; a gzip stream has its checksum at the end.
        io::copy(&mut rest, &mut io::sink()).map(drop).map_err(unreadable)
    }

    fn zip(&mut self, file: &mut File) -> Result<(), String> {
        let wrong = |e: zip::result::ZipError| format!("is damaged or of an unknown form: {e}");
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(wrong)?;
        // Of entries of one name the reader knows the last alone.
        if archive.has_duplicate_names() {
            return Err("holds a name twice".into());
        }
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index).map_err(wrong)?;
            let path = PathBuf::from(entry.name().map_err(wrong)?.into_owned());
            // The upper bits of a Unix mode say what an entry is: none, a regular file or a folder.
            let kind = entry.unix_mode().unwrap_or(0) & 0o170_000;
            if entry.is_symlink() || ![0, 0o100_000, 0o040_000].contains(&kind) {
                return Err(refused(&path, "a link or device"));
            }
            let folder = entry.is_dir();
            self.entry(&path, folder, None, &mut entry)?;
        }
        Ok(())
    }

    /// Makes a file or folder; of a file, `size` bytes must come if a size is known.
    fn entry(
        &mut self,
        path: &Path,
        folder: bool,
        size: Option<u64>,
        from: &mut dyn Read,
    ) -> Result<(), String> {
        let relative = below(path)?;
        let target = self.root.join(&relative);
        let unwritable = |e: io::Error| format!("`{}` cannot be written: {e}", relative.display());
        if folder {
            return self.folder(&relative);
        }
        if relative.as_os_str().is_empty() {
            return Err(refused(path, "a file without a name"));
        }
        self.folder(relative.parent().unwrap_or(Path::new("")))?;
        self.files += 1;
        self.bounded()?;
        let file = OpenOptions::new().write(true).create_new(true).open(&target);
        let mut file = file.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => format!("holds `{}` twice", relative.display()),
            _ => unwritable(e),
        })?;
        let mut written = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(format!("`{}`: {}", relative.display(), unreadable(e))),
            };
            written += count as u64;
            self.bytes += count as u64;
            self.bounded()?;
            file.write_all(&buffer[..count]).map_err(unwritable)?;
        }
        if size.is_some_and(|size| size != written) {
            return Err(truncated());
        }
        (self.seen)();
        Ok(())
    }

    /// Makes a folder and those above it, as far as they are not there. One long name may hold thousands of them.
    fn folder(&mut self, relative: &Path) -> Result<(), String> {
        let mut folder = self.root.to_path_buf();
        for part in relative {
            folder.push(part);
            if folder.is_dir() {
                continue;
            }
            self.folders += 1;
            self.bounded()?;
            fs::create_dir(&folder)
                .map_err(|e| format!("`{}` cannot be written: {e}", relative.display()))?;
        }
        Ok(())
    }

    /// Refuses what is more than was allowed, so far.
    fn bounded(&self) -> Result<(), String> {
        if self.files + self.folders > self.limits.entries {
            return Err(format!("holds more than {} files and folders", self.limits.entries));
        }
        let taken = self.bytes.saturating_add(FOLDER.saturating_mul(self.folders as u64));
        if taken > self.most {
            return Err(too_large(self.most));
        }
        if taken > self.free {
            return Err(format!("holds more than the {} MB that are free", self.free / 1_000_000));
        }
        Ok(())
    }
}

/// An entry's path below the folder.
fn below(path: &Path) -> Result<PathBuf, String> {
    let text = path.to_string_lossy();
    // A backslash or a drive's colon means a folder on some systems.
    let foreign = text.contains(['\\', '\0']) || text.get(1..2) == Some(":");
    let mut parts = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            _ => return Err(refused(path, "a path out of the folder")),
        }
    }
    if foreign { Err(refused(path, "a path out of the folder")) } else { Ok(parts) }
}

/// The path in a pax header, if it has one.
fn pax_path(bytes: &[u8]) -> Result<Option<PathBuf>, String> {
    let mut path = None;
    for attribute in PaxExtensions::new(bytes) {
        let attribute = attribute.map_err(unreadable)?;
        match attribute.key_bytes() {
            b"path" => path = Some(text_of(Some(attribute.value_bytes()))?.into()),
            b"size" => return Err("has a file whose size is in an extended header, which is not read".into()),
            key if key.starts_with(b"GNU.sparse") => {
                return Err("has a sparse file, which is not read".into());
            }
            _ => {}
        }
    }
    Ok(path)
}

fn text_of(bytes: Option<&[u8]>) -> Result<&str, String> {
    std::str::from_utf8(bytes.unwrap_or_default()).map_err(|_| "has a name that is not UTF-8".into())
}

fn kind_of(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Symlink | EntryType::Link | EntryType::GNULongLink => "a link",
        EntryType::Char | EntryType::Block | EntryType::Fifo => "a device",
        _ => "an entry of unknown kind",
    }
}

fn refused(path: &Path, what: &str) -> String {
    format!("holds {what}, `{}`; only files and folders below one folder are unpacked", path.display())
}

fn too_large(most: u64) -> String {
    format!("unpacks to more than {} MB, too much for its size", most / 1_000_000)
}

fn truncated() -> String {
    "ends too early: truncated? fetch it again".into()
}

fn unreadable(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated(),
        _ => format!("cannot be read: {error}"),
    }
}

/// Refuses to deliver more than so many bytes, and notes whether the end was met.
struct Bounded<R> {
    reader: R,
    left: u64,
    most: u64,
    ended: bool,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = self.reader.read(buffer)?;
        self.ended |= count == 0;
        self.left =
            self.left.checked_sub(count as u64).ok_or_else(|| io::Error::other(too_large(self.most)))?;
        Ok(count)
    }
}
