//! Honest archives come out as they went in; hostile ones are refused with a sentence, and nothing is left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    cell::Cell,
    fs::{self, File},
    io::Write,
    path::Path,
};

use cdl_core::unpack::{Limits, unpack};
use flate2::{Compression, write::GzEncoder};
use tar::{Builder, EntryType, Header};
use zip::{ZipWriter, write::SimpleFileOptions};

/// An entry whose name is written as it is, which the builder would not do.
fn add(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, contents: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    if kind == EntryType::Symlink || kind == EntryType::Link {
        header.set_link_name("/etc").unwrap();
    }
    header.set_cksum();
    tar.append(&header, contents).unwrap();
}

fn tar_of(entries: &[(EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    entries.iter().for_each(|(kind, name, contents)| add(&mut tar, *kind, name, contents));
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let mut zip = ZipWriter::new(&mut bytes);
    for (name, contents) in entries {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(contents).unwrap();
    }
    zip.finish().unwrap();
    bytes.into_inner()
}

/// Refusal with all of `words`; the folder has nothing but the archive afterwards.
fn refused(archive: &[u8], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("archive");
    fs::write(&file, archive).unwrap();
    let limits = Limits { entries: 10, ..Limits::default() };
    let error = unpack(&file, &folder.path().join("a/b/out"), None, limits, &|| ()).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "`{word}` is missing in: {error}");
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["archive"], "{words:?}");
    assert!(!folder.path().parent().unwrap().join("escaped").exists());
}

#[test]
fn archives_of_every_form_come_out_whole() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("cat/{}/3.png", "long".repeat(50));
    let mut tar = Builder::new(Vec::new());
    add(&mut tar, EntryType::Directory, "./", b"");
    add(&mut tar, EntryType::Directory, "dog/", b"");
    add(&mut tar, EntryType::Regular, "./dog/1.png", b"one");
    add(&mut tar, EntryType::Regular, "cat/2.png", &[7; 100_000]);
    // By GNU's long names, and by pax headers.
    let mut header = Header::new_gnu();
    header.set_size(5);
    tar.append_data(&mut header, &long, &b"three"[..]).unwrap();
    tar.append_pax_extensions([("path", "cat/four.png".as_bytes())]).unwrap();
    add(&mut tar, EntryType::Regular, "short", b"four");
    let tar = tar.into_inner().unwrap();
    let zip = zip_of(&[
        ("dog/1.png", b"one"),
        ("cat/2.png", &[7; 100_000]),
        (&long, b"three"),
        ("cat/four.png", b"four"),
    ]);
    let loose = Limits { growth: 1_000, ..Limits::default() };
    for (name, bytes) in [("a.tar", tar.clone()), ("a.tar.gz", gzip(&tar)), ("a.zip", zip)] {
        let (file, out) = (folder.path().join(name), folder.path().join(format!("out/{name}")));
        fs::write(&file, bytes).unwrap();
        let seen = Cell::new(0);
        let done = unpack(&file, &out, None, loose, &|| seen.set(seen.get() + 1)).unwrap();
        assert_eq!((done.files, done.bytes, seen.get()), (4, 100_012, 4), "{name}");
        let read = |path: &str| fs::read(out.join(path)).unwrap();
        assert_eq!((read("dog/1.png"), read("cat/2.png")), (b"one".to_vec(), vec![7; 100_000]), "{name}");
        assert_eq!((read(&long), read("cat/four.png")), (b"three".to_vec(), b"four".to_vec()), "{name}");

        let again = unpack(&file, &out, None, loose, &|| ()).unwrap_err().to_string();
        assert!(again.contains("is there already"), "{again}");
        let other = folder.path().join("other");
        let wrong = unpack(&file, &other, Some("00"), loose, &|| ()).unwrap_err().to_string();
        assert!(wrong.contains(&done.sha256) && wrong.contains("in place of 00"), "{wrong}");
        unpack(&file, &other, Some(&done.sha256.to_uppercase()), loose, &|| ()).unwrap();
        fs::remove_dir_all(&other).unwrap();
    }
}

#[test]
fn paths_out_of_the_folder_are_refused() {
    let outside = "a path out of the folder";
    for name in ["../escaped", "a/../../escaped", "/tmp/escaped", "a\\..\\escaped", "C:escaped"] {
        refused(&tar_of(&[(EntryType::Regular, "fine", b"x"), (EntryType::Regular, name, b"x")]), &[outside]);
        refused(&zip_of(&[("fine", b"x"), (name, b"x")]), &[outside]);
    }
    let mut tar = Builder::new(Vec::new());
    tar.append_pax_extensions([("path", "../escaped".as_bytes())]).unwrap();
    add(&mut tar, EntryType::Regular, "short", b"x");
    refused(&tar.into_inner().unwrap(), &[outside, "../escaped"]);
    let long = [(EntryType::GNULongName, "l", &b"../escaped\0"[..]), (EntryType::Regular, "short", b"x")];
    refused(&tar_of(&long), &[outside, "../escaped"]);
}

#[test]
fn links_and_devices_are_refused() {
    for (kind, word) in [
        (EntryType::Symlink, "a link"),
        (EntryType::Link, "a link"),
        (EntryType::Char, "a device"),
        (EntryType::Fifo, "a device"),
        (EntryType::GNUSparse, "unknown kind"),
    ] {
        refused(
            &tar_of(&[(kind, "way-out", b""), (EntryType::Regular, "way-out/x", b"x")]),
            &[word, "way-out"],
        );
    }
    let mut bytes = std::io::Cursor::new(Vec::new());
    let mut zip = ZipWriter::new(&mut bytes);
    zip.add_symlink("way-out", "/etc", SimpleFileOptions::default()).unwrap();
    zip.finish().unwrap();
    refused(&bytes.into_inner(), &["a link", "way-out"]);
}

#[test]
fn bombs_are_refused() {
    let zeros = vec![0; 8 << 20];
    refused(&gzip(&tar_of(&[(EntryType::Regular, "bomb", &zeros)])), &["unpacks to more than 1 MB"]);
    refused(&zip_of(&[("bomb", &zeros)]), &["unpacks to more than 1 MB"]);
    let many: Vec<String> = (0..11).map(|number| number.to_string()).collect();
    let entries: Vec<_> = many.iter().map(|name| (EntryType::Regular, name.as_str(), &b""[..])).collect();
    refused(&tar_of(&entries), &["more than 10 files"]);
    refused(&tar_of(&[(EntryType::GNULongName, "l", &zeros)]), &["a name or attributes of 8388608 bytes"]);
    // One name may hold thousands of folders; they are counted, and what they take on disk.
    let deep = |count: usize, end: &str| "1/".repeat(count) + end;
    for (name, contents) in [(deep(11, ""), &b""[..]), (deep(10, "x"), b"x")] {
        let folder = name.ends_with('/');
        let kind = if folder { EntryType::Directory } else { EntryType::Regular };
        refused(&tar_of(&[(kind, name.as_str(), contents)]), &["more than 10 files and folders"]);
        refused(&zip_of(&[(name.as_str(), contents)]), &["more than 10 files and folders"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("archive"), folder.path().join("out"));
    let limits = |entries| Limits { entries, growth: 0 };
    for (count, fits) in [(256, true), (257, false)] {
        let long = deep(count, "\0");
        let entries =
            [(EntryType::GNULongName, "l", long.as_bytes()), (EntryType::Directory, "short", &b""[..])];
        fs::write(&file, tar_of(&entries)).unwrap();
        let refusal = unpack(&file, &out, None, limits(count - 1), &|| ()).unwrap_err().to_string();
        assert!(refusal.contains("files and folders"), "{refusal}");
        let done = unpack(&file, &out, None, limits(count), &|| ());
        assert_eq!(done.is_ok(), fits, "{count} folders of 4 KiB in 1 MiB: {done:?}");
        assert_eq!(out.is_dir(), fits);
        let _ = fs::remove_dir_all(&out);
    }
    let twice = (EntryType::Regular, "same", &b"x"[..]);
    refused(&tar_of(&[twice, twice]), &["holds `same` twice"]);
    // The writer makes no such zip archive, so a name is changed in both places where it stands.
    let mut zip = zip_of(&[("same", b"first"), ("else", b"second")]);
    for at in 0..zip.len() - 4 {
        if zip[at..].starts_with(b"else") {
            zip[at..at + 4].copy_from_slice(b"same");
        }
    }
    refused(&zip, &["holds a name twice"]);
    refused(&zip_of(&[("./same", b"first"), ("same", b"second")]), &["holds `same` twice"]);
}

#[test]
fn damaged_archives_are_refused() {
    let tar = tar_of(&[(EntryType::Regular, "one", &[1; 1000]), (EntryType::Regular, "two", &[2; 1000])]);
    // Within a file, within a header, between two entries, before the end mark.
    for length in [700, 1700, 1536, 3072] {
        refused(&tar[..length], &[]);
    }
    refused(&tar[..3072], &["truncated"]);
    let zipped = gzip(&tar);
    for length in [20, zipped.len() / 2, zipped.len() - 1] {
        refused(&zipped[..length], &["truncated"]);
    }
    let mut wrong = zipped.clone();
    let checksum = wrong.len() - 6;
    wrong[checksum] ^= 1;
    refused(&wrong, &["cannot be read"]);
    let zip = zip_of(&[("one", &[1; 1000])]);
    refused(&zip[..zip.len() / 2], &["is damaged"]);
    refused(b"<html>not found</html>", &["is no tar, tar.gz or zip"]);
    let missing = unpack(Path::new("no/such.tar"), Path::new("no/out"), None, Limits::default(), &|| ());
    assert!(missing.unwrap_err().to_string().contains("no/such.tar"));
    assert!(File::open("no").is_err());
}
