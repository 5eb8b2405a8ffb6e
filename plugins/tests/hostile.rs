//! Tests of damaged and malicious files: each gives a clear error, and none causes a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{fs, io::Write, path::Path};

use cdl_core::{
    error::{Error, Result},
    rng::Rng,
};
use common::{failure, fixtures, stream, untouched};

/// Draws a number below `bound`.
fn below(rng: &mut Rng, bound: usize) -> usize {
    let mut four = [0; 4];
    randomize(rng, &mut four);
    u32::from_le_bytes(four) as usize % bound.max(1)
}

/// Replaces `bytes` by random bytes.
fn randomize(rng: &mut Rng, bytes: &mut [u8]) {
    let uniform = rng.uniform(&[bytes.len()], 0.0, 256.0, &cdl_core::candle_core::Device::Cpu).unwrap();
    for (byte, value) in bytes.iter_mut().zip(uniform.to_vec1::<f32>().unwrap()) {
        *byte = value as u8;
    }
}

/// Makes one to four changes: replaces bytes by random or extreme values, removes or duplicates bytes, or truncates.
fn mutate(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..1 + below(rng, 4) {
        if bytes.is_empty() {
            break;
        }
        // Change the beginning and the end, which contain headers, as often as the rest.
        let at = match below(rng, 4) {
            0 => below(rng, bytes.len().min(64)),
            1 => bytes.len() - 1 - below(rng, bytes.len().min(600)),
            _ => below(rng, bytes.len()),
        };
        let end = (at + 1 + below(rng, 8)).min(bytes.len());
        match below(rng, 6) {
            0 => bytes[at] ^= 1 << below(rng, 8),
            1 => randomize(rng, &mut bytes[at..end]),
            2 => bytes[at..end].fill([0x00, 0x7f, 0x80, 0xff][below(rng, 4)]),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Builds a stream and decodes its test images.
fn read(name: &str, settings: &str) -> Result<()> {
    let stream = stream(name, settings, 0)?;
    for task in 0..stream.tasks().len() {
        stream.test_batches(task, 100).try_for_each(|batch| batch.map(|_| ()))?;
    }
    Ok(())
}

#[test]
fn mutated_files_never_panic() {
    const ROUNDS: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let images = root.join("images");
    for class in ["a", "b"] {
        fs::create_dir_all(images.join(class)).unwrap();
        for number in 0..2 {
            fs::copy(fixtures().join("make.py"), images.join(class).join(format!("{number}.png"))).unwrap();
        }
    }
    fs::write(root.join("list.txt"), "data/set/a/0.png 0\na/1.png 0\nb/0.png 1\nb/1.png 1\n").unwrap();
    let yaml = "data:\n- data/set/a/0.png\n- a/1.png\n- b/0.png\n- b/1.png\ntargets:\n- 0\n- 0\n- 1\n- 1\n";
    fs::write(root.join("list.yaml"), yaml).unwrap();
    for set in ["cifar-100-python", "cifar-100-binary", "plain", "packed"] {
        fs::create_dir_all(root.join(set)).unwrap();
        for file in fs::read_dir(fixtures().join(set)).unwrap().flatten() {
            fs::copy(file.path(), root.join(set).join(file.file_name())).unwrap();
        }
    }
    fs::create_dir_all(root.join("hub")).unwrap();
    for file in fs::read_dir(fixtures().join("hub/data")).unwrap().flatten() {
        fs::copy(file.path(), root.join("hub").join(file.file_name())).unwrap();
    }
    let path = |name: &str| format!("path = \"{}\"\n", root.join(name).display());
    let lists = |file: &str| {
        let list = root.join(file).display().to_string();
        let lists = format!("train_list = \"{list}\"\ntest_list = \"{list}\"\n");
        path("images") + &lists + "verify = false\n" + &untouched(4)
    };
    let cases = [
        ("cifar100", "cifar-100-python/test", path("cifar-100-python") + &untouched(32)),
        ("cifar100", "cifar-100-python/meta", path("cifar-100-python") + &untouched(32)),
        ("cifar100", "cifar-100-binary/test.bin", path("cifar-100-binary") + &untouched(32)),
        ("hub_images", "plain/train.parquet", path("plain") + "label_column = \"species\"\n" + &untouched(8)),
        (
            "hub_images",
            "plain/validation.parquet",
            path("plain") + "label_column = \"species\"\n" + &untouched(8),
        ),
        ("hub_images", "packed/train.parquet", path("packed") + &untouched(8)),
        ("hub_images", "packed/test.parquet", path("packed") + &untouched(8)),
        ("cifar100", "hub/test-00000-of-00001.parquet", path("hub") + &untouched(32)),
        ("domainnet", "list.txt", lists("list.txt")),
        ("imagenet_r", "list.yaml", lists("list.yaml")),
    ];
    for (name, file, settings) in cases {
        let whole = fs::read(root.join(file)).unwrap();
        let mut rng = Rng::new(1).derive(file);
        let mut refused = 0;
        for round in 0..ROUNDS {
            fs::write(root.join(file), mutate(&whole, &mut rng)).unwrap();
            let outcome = std::panic::catch_unwind(|| read(name, &settings));
            let outcome = outcome.unwrap_or_else(|_| panic!("{file}: round {round} panicked"));
            if let Err(error) = outcome {
                assert!(error.is_user_error(), "{file}: {error}");
                refused += 1;
            }
        }
        fs::write(root.join(file), whole).unwrap();
        assert!(refused > ROUNDS / 20, "{file}: only {refused} of {ROUNDS} mutants were refused");
    }
}

/// Returns the error for a CIFAR-100 folder whose training file is this pickle.
fn error_of_pickle(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    for file in ["test", "meta"] {
        fs::copy(fixtures().join("cifar-100-python").join(file), folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join("train"), bytes).unwrap();
    failure("cifar100", &format!("path = \"{}\"", folder.path().display()))
}

#[test]
fn pickles_that_name_functions_are_refused() {
    let marker = std::env::temp_dir().join("a_pickle_was_run");
    let command = format!("touch {}", marker.display());
    let mut protocol_2 = b"\x80\x02cos\nsystem\n".to_vec();
    protocol_2.extend([b"U", &[command.len() as u8][..], command.as_bytes(), b"\x85R."].concat());
    let mut protocol_4 = b"\x80\x04\x8c\x05posix\x8c\x06system\x93".to_vec();
    protocol_4.extend([b"\x8c", &[command.len() as u8][..], command.as_bytes(), b"\x85R."].concat());
    for (pickle, name) in [
        (protocol_2.as_slice(), "`os.system`"),
        (&protocol_4, "`posix.system`"),
        (b"\x80\x02c__builtin__\neval\n.", "`__builtin__.eval`"),
        (b"\x80\x02cnumpy.core.multiarray\nfromfile\n.", "`numpy.core.multiarray.fromfile`"),
    ] {
        let message = error_of_pickle(pickle);
        assert!(
            message.contains("train: byte") && message.contains(name) && message.contains("refused"),
            "{message}"
        );
    }
    assert!(!marker.exists());
    // Opcodes that construct objects, extension codes and persistent ids.
    for opcode in [b'i', b'o', 0x81, 0x92, 0x82, b'P', b'Q'] {
        let message = error_of_pickle(&[0x80, 2, b'N', opcode, b'.']);
        assert!(message.contains(&format!("opcode {opcode:#04x}")), "{message}");
    }
}

#[test]
fn invalid_pickles_are_refused() {
    let train = fs::read(fixtures().join("cifar-100-python/train")).unwrap();
    let replaced = |from: &[u8], to: &[u8]| {
        let at = train.windows(from.len()).position(|window| window == from).unwrap();
        [&train[..at], to, &train[at + from.len()..]].concat()
    };
    for (bytes, words) in [
        (train[..train.len() - 1].to_vec(), "truncated"),
        (b"(dp0\nS'data'\n".to_vec(), "not a pickle of protocol 2 to 5"),
        (b"\x80\x09".to_vec(), "pickle protocol 9"),
        (b"\x80\x02T\xff\xff\xff\x7f".to_vec(), "2147483647 more bytes expected"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), "truncated"),
        (b"\x80\x02].".to_vec(), "not a pickled dictionary"),
        (b"\x80\x02}.".to_vec(), "has no entry `data`"),
        (b"\x80\x02tuR.".to_vec(), "no mark"),
        (b"\x80\x02h\x07.".to_vec(), "reads memo entry 7"),
        ([b"\x80\x02".as_slice(), &[b'N'; (1 << 22) + 1]].concat(), "more than 4194304 opcodes"),
        // Replace the shape (4, 3072) by (4, 3071), (1000000, 1000000) and (-1, 3072), then the type by a wider one.
        (replaced(b"K\x04M\x00\x0c", b"K\x04M\xff\x0b"), "shape [4, 3071]"),
        (replaced(b"K\x04M\x00\x0c", b"J\x40\x42\x0f\x00J\x40\x42\x0f\x00"), "shape [1000000, 1000000]"),
        (replaced(b"K\x04M\x00\x0c", b"J\xff\xff\xff\xffM\x00\x0c"), "-1 rows or columns"),
        (replaced(b"U\x02u1", b"U\x02f8"), "values are not unsigned bytes"),
    ] {
        let message = error_of_pickle(&bytes);
        assert!(message.contains("train: ") && message.contains(words), "{words}: {message}");
    }
}

#[test]
fn repeated_text_in_a_pickle_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["train", "test"] {
        fs::copy(fixtures().join("cifar-100-python").join(file), folder.path().join(file)).unwrap();
    }
    // {"fine_label_names": a list that has one text of a kilobyte 2,000 times}
    let text = [b"X\0\x04\0\0".as_slice(), &[b'a'; 1 << 10], b"q\0"].concat();
    let names =
        [b"\x80\x02}U\x10fine_label_names](".as_slice(), &text, &b"h\0".repeat(1_999), b"es."].concat();
    fs::write(folder.path().join("meta"), names).unwrap();
    let message = failure("cifar100", &format!("path = \"{}\"", folder.path().display()));
    assert!(message.ends_with("meta: more than a megabyte of text"), "{message}");
}

#[test]
fn gzip_is_decompressed_at_most_to_the_size_in_the_header() {
    let folder = tempfile::tempdir().unwrap();
    let zip = |data: &[u8], cut: usize| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).unwrap();
        let bytes = encoder.finish().unwrap();
        bytes[..bytes.len() - cut].to_vec()
    };
    let images =
        |more: usize| [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2][..], &vec![7; 8 + more]].concat();
    for split in ["train", "t10k"] {
        fs::write(folder.path().join(format!("{split}-labels-idx1-ubyte")), [0, 0, 8, 1, 0, 0, 0, 2, 0, 1])
            .unwrap();
        fs::write(folder.path().join(format!("{split}-images-idx3-ubyte.gz")), zip(&images(0), 0)).unwrap();
    }
    let settings = format!("path = \"{}\"\n{}", folder.path().display(), untouched(2));
    assert!(read("idx", &settings).is_ok());
    let train = folder.path().join("train-images-idx3-ubyte.gz");
    fs::write(&train, zip(&images(10_000_000), 0)).unwrap();
    let message = failure("idx", &settings);
    assert!(
        message.contains("images-idx3-ubyte.gz: 9 bytes of data"),
        "decompression stops after 8 bytes and one more: {message}"
    );
    fs::write(&train, zip(&images(0), 12)).unwrap();
    assert!(failure("idx", &settings).contains("images-idx3-ubyte.gz: cannot be read"));
    // A header that states more than the memory is refused before its data are decompressed.
    if cfg!(target_os = "linux") {
        let header = [[0, 0, 8, 3].as_slice(), &[0xff; 12], &[7; 100]].concat();
        fs::write(&train, zip(&header, 0)).unwrap();
        let message = failure("idx", &settings);
        assert!(message.contains("its header states 18446744073709 MB"), "{message}");
    }
}

#[test]
fn invalid_parquet_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let settings = format!("path = \"{}\"\nlabel_column = \"species\"", folder.path().display());
    let whole = fs::read(fixtures().join("plain/train.parquet")).unwrap();
    fs::copy(fixtures().join("plain/validation.parquet"), folder.path().join("test.parquet")).unwrap();
    let half = whole.len() / 2;
    for bytes in [
        &b""[..],
        b"PAR1",
        b"GIF89a, nearly",
        b"PAR1\xff\xff\xff\x7fPAR1",
        &whole[..whole.len() - 4],
        &[&whole[..half], b"PAR1"].concat(),
        &[&vec![0xff; half], &whole[half..]].concat(),
    ] {
        fs::write(folder.path().join("train.parquet"), bytes).unwrap();
        let message = failure("hub_images", &settings);
        assert!(message.contains("train.parquet: is "), "{message}");
    }
}

#[test]
fn parquet_pages_expand_within_bounds() {
    let settings = format!("path = \"{}\"\ntrain_split = \"bomb\"", fixtures().join("packed").display());
    let said = failure("hub_images", &settings);
    assert!(said.contains("bomb.parquet: is damaged") && said.contains("expand to far more"), "{said}");
}

/// Reads a training list of the image folder `root/in`. The folder `root/out` contains a file that lists must not reach.
fn listed(root: &Path, extension: &str, text: &str) -> Result<(), Error> {
    let (list, test) = (root.join(format!("list.{extension}")), root.join("test.txt"));
    fs::write(&list, text).unwrap();
    fs::write(&test, "a/1.png 0\n").unwrap();
    let (list, test) = (list.display(), test.display());
    let path = root.join("in").display().to_string();
    let settings =
        format!("path = \"{path}\"\ntrain_list = \"{list}\"\ntest_list = \"{test}\"\nverify = false");
    stream("image_folder", &settings, 0).map(|_| ())
}

#[test]
fn lists_cannot_leave_the_folder_or_expand_aliases() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in ["in/a", "out"] {
        fs::create_dir_all(root.join(name)).unwrap();
        fs::write(root.join(name).join("0.png"), "an image").unwrap();
    }
    fs::write(root.join("in/a/1.png"), "an image").unwrap();
    assert!(listed(root, "txt", "a/0.png 0\n").is_ok());
    assert!(listed(root, "yaml", "data: [a/0.png]\ntargets: [0]\n").is_ok());
    // Files of some editors begin with a byte order mark.
    assert!(listed(root, "txt", "\u{feff}a/0.png 0\n").is_ok());
    assert!(listed(root, "yaml", "\u{feff}data: [a/0.png]\ntargets: [0]\n").is_ok());
    let message =
        |extension: &str, text: &str| listed(root, extension, text).expect_err("an error").to_string();
    for path in
        ["../out/0.png", "a/../../out/0.png", &root.join("out/0.png").display().to_string(), "/etc/passwd"]
    {
        for (extension, text) in
            [("txt", format!("{path} 0\n")), ("yaml", format!("data:\n- {path}\ntargets:\n- 0\n"))]
        {
            let message = message(extension, &text);
            assert!(message.contains("leads out of") && message.contains(path), "{message}");
        }
    }
    let bomb = "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\ndata: *c\ntargets: *c\n";
    let deep = "[".repeat(100_000);
    for (text, words) in [
        (bomb, "an alias"),
        ("data: &a [a/0.png]\ntargets: *a\n", "`targets` is not a list"),
        (deep.as_str(), "recursion limit"),
        (&format!("data: {deep}"), "recursion limit"),
        ("data: [a/0.png]\n", "no list `targets`"),
        ("data: [a/0.png]\ntargets: [0, 1]\n", "`data` has length 1, but `targets` has length 2"),
        ("data: [a/0.png]\ntargets: [!!python/object/apply:os.system [true]]\n", "expected paths or numbers"),
        ("data: [a/0.png]\ntargets: [zero]\n", "label `zero` is not a number"),
        ("data: [a/0.png]\ndata: [a/0.png]\ntargets: [0]\n", "`data` twice"),
        ("data: [a/0.png\n", "is not YAML"),
        ("", "expected a mapping"),
    ] {
        let message = message("yaml", text);
        assert!(message.contains(words), "{words}: {message}");
    }
}

/// Message about a Git LFS pointer, without the file's name before it.
const POINTER: &str =
    "cannot be read: it is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`";

#[test]
fn pointers_of_git_lfs_are_named_in_every_format() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234567\n";
    let folder = tempfile::tempdir().unwrap();
    let copy = |set: &str| {
        fs::create_dir_all(folder.path().join(set)).unwrap();
        for file in fs::read_dir(fixtures().join(set)).unwrap().flatten().filter(|file| file.path().is_file())
        {
            fs::copy(file.path(), folder.path().join(set).join(file.file_name())).unwrap();
        }
        folder.path().join(set)
    };
    for (stream, set, file, more) in [
        ("cifar100", "cifar-100-python", "train", ""),
        ("cifar100", "cifar-100-binary", "test.bin", ""),
        ("hub_images", "plain", "train.parquet", "label_column = \"species\""),
    ] {
        let root = copy(set);
        fs::write(root.join(file), pointer).unwrap();
        let said = failure(stream, &format!("path = \"{}\"\n{more}", root.display()));
        assert!(said.contains(file) && said.contains("Git LFS pointer"), "{said}");
    }
    fs::write(folder.path().join("train-images-idx3-ubyte"), pointer).unwrap();
    let said = failure("idx", &format!("path = \"{}\"", folder.path().display()));
    assert!(said.contains(&format!("train-images-idx3-ubyte: {POINTER}")), "{said}");
    let lists = folder.path().join("lists");
    fs::create_dir_all(lists.join("in/a")).unwrap();
    for name in ["0.png", "1.png"] {
        fs::write(lists.join("in/a").join(name), pointer).unwrap();
    }
    let text = std::str::from_utf8(pointer).unwrap();
    let said = listed(&lists, "txt", text).expect_err("an error").to_string();
    assert!(said.contains(&format!("list.txt: {POINTER}")), "{said}");
}
