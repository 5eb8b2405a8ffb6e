//! Tests of CIFAR, parquet and split lists, with files written by the usual tools or in the published formats.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{collections::BTreeSet, fs, path::Path};

use cdl_core::{error::Result, image::RgbImage, traits::TaskStream};
use cdl_plugins::image_files::FolderFiles;
use common::{failure, fixtures, grey, stream, test_numbers, train_numbers, untouched};

/// Returns images `numbers` of the fixtures with their labels, which are the numbers modulo 2.
fn pairs(numbers: impl IntoIterator<Item = usize>) -> Vec<(usize, u32)> {
    numbers.into_iter().map(|i| (i, i as u32 % 2)).collect()
}

fn set(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<(usize, u32)> {
    pairs(numbers).into_iter().collect()
}

fn at(path: &Path) -> String {
    format!("path = \"{}\"\n", path.display())
}

#[test]
fn every_format_of_cifar_gives_the_same_pixels() -> Result<()> {
    for folder in ["cifar-100-python", "cifar-100-binary", "hub", "hub/data", ""] {
        let stream = stream("cifar100", &(at(&fixtures().join(folder)) + &untouched(32)), 0)?;
        assert_eq!(stream.classes(), ["apple", "baby"], "{folder}");
        assert_eq!(train_numbers(stream.as_ref(), 0), set(0..4), "{folder}");
        assert_eq!(test_numbers(stream.as_ref(), 0), pairs(4..6), "{folder}");
    }
    // A byte order mark before the names of the classes is not part of the first name.
    let marked = tempfile::tempdir().unwrap();
    for file in ["fine_label_names.txt", "test.bin", "train.bin"] {
        fs::copy(fixtures().join("cifar-100-binary").join(file), marked.path().join(file)).unwrap();
    }
    let names = marked.path().join("fine_label_names.txt");
    let text = fs::read_to_string(&names).unwrap();
    fs::write(&names, format!("\u{feff}{text}")).unwrap();
    assert_eq!(stream("cifar100", &(at(marked.path()) + &untouched(32)), 0)?.classes(), ["apple", "baby"]);
    for folder in ["cifar-10-batches-py", ""] {
        let stream = stream("cifar10", &(at(&fixtures().join(folder)) + &untouched(32)), 0)?;
        assert_eq!(stream.classes(), ["cat", "dog"]);
        assert_eq!(train_numbers(stream.as_ref(), 0), set(0..5));
        assert_eq!(test_numbers(stream.as_ref(), 0), pairs(5..7));
    }
    Ok(())
}

/// Returns a record of the binary version: label bytes, then red, green and blue values of image `i`.
fn record(labels: &[u8], i: usize) -> Vec<u8> {
    let mut record = labels.to_vec();
    for c in 0..3 {
        for y in 0..32 {
            record.extend((0..32).map(|x| grey(i, x, y, c)));
        }
    }
    record
}

#[test]
fn cifar_without_class_names_gets_the_standard_names_in_order() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let records = |labels: usize, count: u8| -> Vec<u8> {
        (0..count).flat_map(|class| record(&[7, class][2 - labels..], class.into())).collect()
    };
    let below = |name: &str| {
        let folder = folder.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    };
    let ten = below("cifar-10-batches-bin");
    for file in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    {
        fs::write(ten.join(format!("{file}.bin")), records(1, 10)).unwrap();
    }
    let hundred = below("cifar-100-binary");
    for file in ["train", "test"] {
        fs::write(hundred.join(format!("{file}.bin")), records(2, 100)).unwrap();
    }
    let settings = at(folder.path()) + "tasks = 5\n" + &untouched(32);
    let stream_10 = stream("cifar10", &settings, 0)?;
    assert_eq!(stream_10.classes().len(), 10);
    assert_eq!((stream_10.classes()[0].as_str(), stream_10.classes()[9].as_str()), ("airplane", "truck"));
    assert_eq!(stream_10.train_count(4), 10, "five batches of one image per class");
    assert_eq!(test_numbers(stream_10.as_ref(), 1), [(2, 2), (3, 3)]);
    let stream_100 = stream("cifar100", &settings, 0)?;
    assert_eq!(stream_100.classes().iter().collect::<BTreeSet<_>>().len(), 100);
    assert_eq!((stream_100.classes()[0].as_str(), stream_100.classes()[99].as_str()), ("apple", "worm"));
    assert_eq!(test_numbers(stream_100.as_ref(), 4)[..2], [(80, 80), (81, 81)], "labels are the fine labels");

    fs::remove_file(ten.join("data_batch_3.bin")).unwrap();
    assert!(failure("cifar10", &settings).contains("data_batch_3.bin: cannot be read"));
    fs::remove_dir_all(ten).unwrap();
    let message = failure("cifar10", &settings);
    assert!(
        message
            .contains("neither `cifar-10-batches-bin/test_batch.bin` nor `cifar-10-batches-py/test_batch`"),
        "{message}"
    );
    assert!(message.contains("it has `cifar-100-binary`"), "{message}");
    Ok(())
}

#[test]
fn parquet_columns_may_have_any_name_and_type() -> Result<()> {
    let settings = at(&fixtures().join("plain")) + "label_column = \"species\"\n" + &untouched(8);
    let plain = stream("hub_images", &settings, 0)?;
    assert_eq!(plain.classes(), ["cat", "owl"], "names in the column, sorted");
    let swapped = |numbers: std::ops::Range<usize>| numbers.map(|i| (i, 1 - i as u32 % 2));
    assert_eq!(train_numbers(plain.as_ref(), 0), swapped(0..6).collect());
    assert_eq!(
        test_numbers(plain.as_ref(), 0),
        [(6, 1), (7, 0)],
        "`validation` is used if there is no `test`"
    );

    let noted = at(&fixtures().join("hub")) + "label_column = \"coarse_label\"\n" + &untouched(32);
    let coarse = stream("hub_images", &noted, 0)?;
    assert_eq!(coarse.classes(), ["fruit", "people"]);
    assert_eq!(train_numbers(coarse.as_ref(), 0), swapped(0..4).collect());

    let patterns = format!("train_split = \"val*\"\ntest_split = \"*train.parquet\"\n{settings}");
    assert_eq!(test_numbers(stream("hub_images", &patterns, 0)?.as_ref(), 0).len(), 6);

    let message = failure("hub_images", &settings.replace("species", "spices"));
    assert!(
        message.contains("no column `spices`") && message.contains("weight, photo, species"),
        "{message}"
    );
    let message = failure("hub_images", &settings.replace("species", "weight"));
    assert!(message.contains("column `weight`") && message.contains("DOUBLE"), "{message}");
    let message = failure("hub_images", &(at(&fixtures().join("hub")) + &untouched(32)));
    assert!(
        message.contains("label_column") && message.contains("img, fine_label, coarse_label"),
        "{message}"
    );
    let message =
        failure("hub_images", &settings.replace("label_column", "test_split = \"x\"\nlabel_column"));
    assert!(message.contains("split `x` (`test_split`)"), "{message}");
    Ok(())
}

#[test]
fn splits_are_found_by_name_folder_or_pattern() -> Result<()> {
    let (train, test) = (fixtures().join("plain/train.parquet"), fixtures().join("plain/validation.parquet"));
    // Returns the numbers of training and test images in a folder of copies: `train` has six images, `test` two.
    let counts = |copies: &[(&str, &Path)], splits: &str| -> Result<(usize, usize)> {
        let folder = tempfile::tempdir().unwrap();
        for (name, original) in copies {
            let copy = folder.path().join(name);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(original, copy).unwrap();
        }
        let settings = at(folder.path()) + splits + "\nlabel_column = \"species\"\n" + &untouched(8);
        let stream = stream("hub_images", &settings, 0)?;
        Ok((stream.train_count(0), stream.test_count(0)))
    };
    let message = |names: &[&str], splits: &str| {
        let copies: Vec<(&str, &Path)> = names.iter().map(|&name| (name, train.as_path())).collect();
        counts(&copies, splits).unwrap_err().to_string()
    };
    let files = [
        ("README.md", train.as_path()),
        ("data/test-00000-of-00001.parquet", &test),
        ("data/train-00000-of-00002.parquet", &train),
        ("data/train-00001-of-00002.parquet", &train),
        ("data/training.parquet", &train),
    ];
    assert_eq!(counts(&files, "")?, (12, 2));
    assert_eq!(counts(&files, "train_split = \"data/*ing*\"")?, (6, 2));
    // Splits whose names have a common prefix.
    let prefixed = [
        ("test-00000-of-00001.parquet", test.as_path()),
        ("test_hard-00000-of-00001.parquet", &train),
        ("train-00000-of-00001-0123456789abcdef.parquet", &train),
        ("train_small-00000-of-00001.parquet", &test),
    ];
    assert_eq!(counts(&prefixed, "")?, (6, 2));
    assert_eq!(counts(&prefixed, "train_split = \"train_small\"\ntest_split = \"test_hard\"")?, (2, 6));
    let folders = [("a/train/0.parquet", train.as_path()), ("a/val/0.parquet", &test)];
    assert_eq!(counts(&folders, "")?, (6, 2));
    for (pattern, expected) in
        [("a/t*", true), ("*train*.parquet", true), ("b*", false), ("*train*.csv", false)]
    {
        let found = counts(&folders, &format!("train_split = \"{pattern}\""));
        assert_eq!(found.is_ok(), expected, "{pattern}: {found:?}");
    }
    // Parts of a pattern do not overlap.
    assert!(
        message(&["aa.parquet"], "train_split = \"aa*a.parquet\"")
            .contains("split `aa*a.parquet` (`train_split`)")
    );

    for (names, words) in [
        (
            &["data/train-00000-of-00002.parquet"][..],
            ["1 of the 2 files `data/train-*-of-00002.parquet`", "missing: `data/train-00001-of-00002`;"],
        ),
        (
            &["train-00002-of-00004-0a1b.parquet", "train-00000-of-00004-9c8d.parquet"],
            ["2 of the 4 files", "missing: `train-00001-of-00004`, `train-00003-of-00004`;"],
        ),
        (&["train-00003-of-00009.parquet"], ["1 of the 9 files", "`train-00005-of-00009`, ...; fetch"]),
        (
            &["train-00000-of-00001-0a1b.parquet", "train-00000-of-00001-9c8d.parquet"],
            ["`train-00000-of-00001-0a1b.parquet` and", "are the same shard"],
        ),
        (
            &["train-0-of-1.parquet", "train-0-of-2.parquet", "train-1-of-2.parquet"],
            ["`train-*-of-1.parquet` and also `train-*-of-2.parquet`", "set `train_split` to the pattern"],
        ),
    ] {
        let missing = message(names, "");
        assert!(words.iter().all(|word| missing.contains(word)), "{missing}");
    }
    // Shards may be numbered from 1.
    let from_1 = [
        ("train-1-of-2.parquet", train.as_path()),
        ("train-2-of-2.parquet", &train),
        ("test.parquet", &test),
    ];
    assert_eq!(counts(&from_1, "")?, (12, 2));
    // Older names, and names without a split.
    let older = [
        ("pets-train-00000-of-00001.parquet", train.as_path()),
        ("pets-train_small-00000-of-00001.parquet", &test),
        ("pets_test.parquet", &test),
    ];
    assert_eq!(counts(&older, "")?, (6, 2));
    let numbered = [("train/part.0.parquet", train.as_path()), ("train/part.1.parquet", &train)];
    let numbered = [&numbered[..], &[("valid/part.0.parquet", &test)]].concat();
    assert_eq!(counts(&numbered, "")?, (12, 2));
    let flat = [("part.0.parquet", train.as_path()), ("part.1.parquet", &test)];
    let patterns = "train_split = \"part.0*\"\ntest_split = \"part.1*\"";
    assert_eq!(counts(&flat, patterns)?, (6, 2));
    let unnamed = message(&["part.0.parquet", "part.1.parquet"], "");
    assert!(
        unnamed.contains("`part.0.parquet`") && unnamed.contains("a pattern such as `part.*`"),
        "{unnamed}"
    );
    // `train_small` is another split if there is a `train`.
    let longer =
        [("train.parquet", train.as_path()), ("train_small.parquet", &test), ("test.parquet", &test)];
    assert_eq!(counts(&longer, "")?, (6, 2));
    let two = message(&["cats-train.parquet", "dogs-train.parquet"], "");
    assert!(two.contains("patterns `cats-train*`, `dogs-train*`"), "{two}");
    let folders = message(&["a/train/0.parquet", "b/train/0.parquet"], "");
    assert!(folders.contains("patterns `a/train/*`, `b/train/*`"), "{folders}");
    let several = message(&["a/train.parquet", "b/train.parquet"], "");
    assert!(several.contains("`a/train*`, `b/train*`"), "{several}");
    let none = message(&["train.parquet", "more.parquet"], "");
    assert!(
        none.contains("split `test` or `validation` or `valid` or `val` (`test_split`)")
            && none.contains("2 parquet files"),
        "{none}"
    );
    Ok(())
}

#[test]
fn compressed_pages_are_read() -> Result<()> {
    let settings = at(&fixtures().join("packed")) + &untouched(8);
    let packed = stream("hub_images", &settings, 0)?;
    assert_eq!(train_numbers(packed.as_ref(), 0), set(0..6), "zstd, several row groups");
    assert_eq!(test_numbers(packed.as_ref(), 0), pairs(6..8), "gzip, pages of version 2");
    let said = failure("hub_images", &format!("train_split = \"brotli\"\n{settings}"));
    assert!(
        said.contains("`image` is compressed as BROTLI") && said.contains("snappy, zstd, gzip or none"),
        "{said}"
    );
    Ok(())
}

#[test]
fn classes_are_the_labels_that_occur() -> Result<()> {
    let settings = |folder: &str, more: &str| at(&fixtures().join(folder)) + more + &untouched(8);
    let from_1 = stream("hub_images", &settings("from_1", "tasks = 3\n"), 0)?;
    assert_eq!(from_1.classes(), ["1", "2", "5"]);
    assert_eq!(train_numbers(from_1.as_ref(), 0), [(0, 0), (3, 0)].into());
    assert_eq!(test_numbers(from_1.as_ref(), 2), [(4, 2)]);

    // Two classes share the name `crane`, and two classes have no images.
    let names = stream("hub_images", &settings("names", "tasks = 3\n"), 0)?;
    assert_eq!(names.classes(), ["crane (0)", "crane (2)", "dog"]);
    assert_eq!(test_numbers(names.as_ref(), 1), [(5, 1)]);
    let tasks = "task_classes = [[\"dog\", \"crane (2)\"], [\"crane (0)\"]]\n";
    let listed = stream("hub_images", &settings("names", tasks), 0)?;
    assert_eq!(test_numbers(listed.as_ref(), 1), [(4, 2)]);
    let said = failure("hub_images", &settings("names", "task_classes = [[\"dog\", \"crane\"]]\n"));
    assert!(
        said.contains("`crane`, which stands for several classes: `crane (0)` and `crane (2)`"),
        "{said}"
    );
    Ok(())
}

#[test]
fn withheld_labels_are_refused_by_name() -> Result<()> {
    let settings = |more: &str| at(&fixtures().join("withheld")) + more + &untouched(8);
    let said = failure("hub_images", &settings(""));
    for words in ["`test.parquet` are withheld (-1 in every row)", "`test_split`", "there is `validation`"] {
        assert!(said.contains(words), "{said}");
    }
    let said = failure("hub_images", &settings("train_split = \"test\"\ntest_split = \"train\"\n"));
    assert!(said.contains("set `train_split` to a split with labels"), "{said}");
    let validation = stream("hub_images", &settings("test_split = \"validation\"\n"), 0)?;
    assert_eq!(test_numbers(validation.as_ref(), 0), pairs(4..6));
    // Held-out training images replace the test split.
    let held_out = stream("hub_images", &settings("validation = 0.5\n"), 0)?;
    assert_eq!((held_out.train_count(0), held_out.test_count(0)), (2, 2));
    Ok(())
}

/// Folders on Linux have names of any bytes.
#[cfg(target_os = "linux")]
#[test]
fn class_folders_may_have_names_that_are_not_utf_8() -> Result<()> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let root = tempfile::tempdir().unwrap();
    let class = |half: &str, bytes: &[u8]| {
        let folder = root.path().join(half).join(OsStr::from_bytes(bytes));
        fs::create_dir_all(&folder).unwrap();
        RgbImage::new(4, 4).save(folder.join("0.png")).unwrap();
    };
    for half in ["train", "test"] {
        [&b"caf\xe8"[..], b"caf\xe9", "café".as_bytes()].iter().for_each(|name| class(half, name));
    }
    let settings = at(root.path()) + "tasks = 3\n" + &untouched(4);
    let named = stream("image_folder", &settings, 0)?;
    assert_eq!(named.classes(), ["caf\\xE8", "caf\\xE9", "café"]);
    assert_eq!((named.train_count(1), named.test_count(1)), (1, 1));
    class("train", br"caf\xE9");
    let said = failure("image_folder", &settings);
    assert!(said.contains(r"a second class folder whose name is shown as `caf\xE9`"), "{said}");
    Ok(())
}

#[test]
fn a_folder_one_level_too_high_is_an_error_with_the_right_one() {
    let root = tempfile::tempdir().unwrap();
    write_images(&root.path().join("imagenet-r"), &["n01", "n02"], 5);
    for name in ["imagenet_r", "imagenet_a"] {
        let said = failure(name, &(at(root.path()) + &untouched(4)));
        assert!(said.contains("single class folder `imagenet-r`") && said.contains("/imagenet-r?"), "{said}");
    }
    let said = failure("image_folder", &(at(&root.path().join("imagenet-r")) + &untouched(4)));
    assert!(said.contains("/imagenet-r --out splits`") && said.contains("train_list"), "{said}");
}

#[test]
fn exif_orientation_is_applied_on_request() -> Result<()> {
    let originals =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/fixtures/transform/orientation");
    let root = tempfile::tempdir().unwrap();
    for (half, class) in [("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")] {
        let folder = root.path().join(half).join(class);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(originals.join("3.png"), folder.join("0.png")).unwrap();
    }
    // Value of the first pixel: red in the first square of the stored image, grey in its last one.
    for (exif, first) in [("", 250), ("exif = \"apply\"\n", 200), ("exif = \"ignore\"\n", 250)] {
        let turned = stream("image_folder", &(at(root.path()) + &untouched(8) + "\n" + exif), 0)?;
        assert_eq!(values(turned.as_ref())[0].0, first, "{exif}");
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn each_folder_is_listed_once_however_many_symbolic_links_lead_to_it() -> Result<()> {
    let root = tempfile::tempdir().unwrap();
    let inner = root.path().join("inner");
    fs::create_dir(&inner).unwrap();
    for file in ["a.png", "notes", ".hidden.png"] {
        fs::write(inner.join(file), "").unwrap();
    }
    for name in ["one", "two"] {
        std::os::unix::fs::symlink(root.path(), inner.join(name)).unwrap();
    }
    let below = FolderFiles::list(root.path())?;
    assert_eq!((below.images, below.others.values().sum()), (vec![inner.join("a.png")], 1));
    // Two links to the next folder in each of 40 folders make 2^40 paths, but 40 folders.
    let many = tempfile::tempdir().unwrap();
    for number in 0..40 {
        let folder = many.path().join(number.to_string());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.png"), "").unwrap();
        for name in ["one", "two"] {
            let next = many.path().join((number + 1).to_string());
            std::os::unix::fs::symlink(next, folder.join(name)).unwrap();
        }
    }
    assert_eq!(FolderFiles::list(&many.path().join("0"))?.images.len(), 40);
    Ok(())
}

/// Writes `count` grey images of each class to `folder/CLASS/IMAGE.png`; image i of class c has the value 10 (3 c + i).
fn write_images(folder: &Path, classes: &[&str], count: usize) {
    for (class, name) in classes.iter().enumerate() {
        fs::create_dir_all(folder.join(name)).unwrap();
        for i in 0..count {
            let image = RgbImage::from_pixel(4, 4, [10 * (3 * class + i) as u8; 3].into());
            image.save(folder.join(name).join(format!("art_{i}.png"))).unwrap();
        }
    }
}

/// Returns the values and labels of all test images of the first task.
fn values(stream: &dyn TaskStream) -> Vec<(u8, u32)> {
    let batch = stream.test_batches(0, 100).next().unwrap().unwrap();
    let pixels = batch.pixels.flatten_from(1).unwrap().narrow(1, 0, 1).unwrap().flatten_all().unwrap();
    let pixels = pixels.to_vec1::<f32>().unwrap().into_iter().map(|value| (value * 255.0).round() as u8);
    pixels.zip(batch.labels.to_vec1::<u32>().unwrap()).collect()
}

#[test]
fn the_folder_val_replaces_test_and_jfif_files_are_images() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    write_images(&folder.path().join("train"), &["a", "b"], 3);
    let settings = at(folder.path()) + "verify = false\n" + &untouched(8);
    let refused = stream("image_folder", &settings, 0).err().expect("refused").to_string();
    assert!(refused.contains("no folders `train` and `test` (or `val`)"), "{refused}");
    write_images(&folder.path().join("val"), &["a", "b"], 2);
    for (from, to) in [("art_0.png", "art_0.jfif"), ("art_1.png", "art_1.avif")] {
        let class = folder.path().join("train/a");
        fs::rename(class.join(from), class.join(to)).unwrap();
    }
    let stream = stream("image_folder", &settings, 0)?;
    // The AVIF file of class `a` is left out.
    assert_eq!((stream.train_count(0), stream.test_count(0)), (5, 4));
    Ok(())
}

#[test]
fn an_image_in_both_lists_is_refused() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    write_images(folder.path(), &["a", "b"], 3);
    let lists = |train: &str, test: &str| {
        let mut settings = at(folder.path()) + &untouched(8);
        for (half, text) in [("train", train), ("test", test)] {
            let list = folder.path().join(format!("{half}.txt"));
            fs::write(&list, text).unwrap();
            settings = format!("{half}_list = {list:?}\n") + &settings;
        }
        stream("image_folder", &settings, 0)
    };
    let refused = lists("a/art_0.png\na/art_1.png\nb/art_0.png\n", "a/art_1.png\na/art_0.png\nb/art_1.png\n")
        .err()
        .expect("refused")
        .to_string();
    assert!(refused.contains("a/art_1.png") && refused.contains("(and 1 more image)"), "{refused}");
    // A line that repeats an image is dropped.
    let repeating = "a/art_0.png\n./a/art_0.png\nb/art_0.png\nold/a/art_0.png\n";
    assert_eq!(lists(repeating, "a/art_1.png\nb/art_1.png\n")?.train_count(0), 2);
    Ok(())
}

#[test]
fn published_lists_work_for_images_in_any_folder() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("imagenet-r");
    write_images(&images, &["n02", "n01"], 3);
    // Lists like those of the published code: label 1 is the class of the second folder, paths start at the working
    // directory of that code, and the archive has no folders `train` and `test`.
    let list = |name: &str, data: &[&str], targets: &[usize]| {
        let mut text = String::from("data:\n");
        data.iter().for_each(|path| text += &format!("- data/imagenet-r/{path}\n"));
        text += "targets:\n";
        targets.iter().for_each(|target| text += &format!("- {target}\n"));
        fs::write(folder.path().join(name), text).unwrap();
    };
    list("train.yaml", &["test/n01/art_0.png", "train/n02/art_1.png", "train/n01/art_1.png"], &[0, 1, 0]);
    list("test.yaml", &["n02/art_2.png", "train/n01/art_2.png"], &[1, 0]);
    let root = folder.path().display();
    let lists = format!("train_list = \"{root}/train.yaml\"\ntest_list = \"{root}/test.yaml\"\n");
    for name in ["imagenet_r", "imagenet_a", "domainnet", "image_folder"] {
        let listed = stream(name, &(at(&images) + &lists + &untouched(4)), 0)?;
        assert_eq!(listed.classes(), ["n01", "n02"], "{name}");
        assert_eq!(listed.train_count(0), 3, "{name}");
        assert_eq!(values(listed.as_ref()), [(50, 0), (20, 1)], "{name}");
    }
    // The complete path exists if `path` is the parent folder of the data set.
    let parent = folder.path().join("parent");
    fs::create_dir_all(parent.join("data")).unwrap();
    fs::rename(&images, parent.join("data/imagenet-r")).unwrap();
    let message = failure("imagenet_r", &(at(&parent) + &lists + &untouched(4)));
    assert!(message.contains("item 1: no file") && message.contains("test/n01/art_0.png"), "{message}");
    Ok(())
}

#[test]
fn without_lists_each_class_is_split_80_to_20() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    write_images(folder.path(), &["a", "b"], 10);
    let settings = at(folder.path()) + "tasks = 2\n" + &untouched(4);
    for name in ["imagenet_r", "imagenet_a"] {
        let drawn = stream(name, &settings, 0)?;
        for task in 0..2 {
            assert_eq!((drawn.train_count(task), drawn.test_count(task)), (8, 2), "{name}");
        }
        let again = stream(name, &settings, 1)?;
        assert_eq!(
            drawn.record()?.fingerprint,
            again.record()?.fingerprint,
            "the draw is independent of the run's seed"
        );
        let other = stream(name, &format!("split_seed = 1\n{settings}"), 0)?;
        assert_ne!(drawn.record()?.fingerprint, other.record()?.fingerprint);
    }
    Ok(())
}

#[test]
fn domainnet_is_split_by_its_lists() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    for (number, domain) in
        ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"].iter().enumerate()
    {
        write_images(&folder.path().join(domain), &["zebra", "bear"], 2);
        // Label 0 is `zebra`; one domain lacks a class, as `painting` does.
        let list = |split: &str, image: usize| {
            let mut text = format!("{domain}/zebra/art_{image}.png 0\n");
            if number != 2 {
                text += &format!("{domain}/bear/art_{image}.png 1\n");
            }
            fs::write(folder.path().join(format!("{domain}_{split}.txt")), text).unwrap();
        };
        list("train", 0);
        list("test", 1);
    }
    let all = stream("domainnet", &(at(folder.path()) + &untouched(4)), 0)?;
    assert_eq!(all.classes(), ["zebra", "bear"]);
    assert_eq!((all.train_count(0), all.test_count(0)), (11, 11));
    let some = stream(
        "domainnet",
        &(at(folder.path()) + "domains = [\"real\", \"painting\"]\n" + &untouched(4)),
        0,
    )?;
    assert_eq!(values(some.as_ref()), [(10, 0), (10, 0), (40, 1)]);
    let message = failure("domainnet", &(at(folder.path()) + "domains = [\"reel\"]\n"));
    assert!(message.contains("domains") && message.contains("`real`"), "{message}");
    Ok(())
}

/// Returns every stream with the settings of a small data set of two classes, three or more images each.
fn small_streams(folder: &Path) -> Vec<(&'static str, String)> {
    write_images(folder, &["a", "b"], 5);
    let lists = folder.display();
    fs::write(folder.join("train.txt"), "a/art_0.png 0\na/art_1.png 0\nb/art_0.png 1\nb/art_1.png 1\n")
        .unwrap();
    fs::write(folder.join("test.txt"), "a/art_2.png 0\nb/art_2.png 1\n").unwrap();
    let lists = format!("train_list = \"{lists}/train.txt\"\ntest_list = \"{lists}/test.txt\"\n");
    vec![
        ("cifar100", at(&fixtures().join("cifar-100-python"))),
        ("cifar100", at(&fixtures().join("cifar-100-binary"))),
        ("cifar100", at(&fixtures().join("hub"))),
        ("hub_images", at(&fixtures().join("plain")) + "label_column = \"species\"\n"),
        ("imagenet_r", at(folder)),
        ("imagenet_a", at(folder)),
        ("imagenet_r", at(folder) + &lists),
        ("domainnet", at(folder) + &lists),
        ("image_folder", at(folder) + &lists),
        ("noise", "classes = 2\nimages_per_class = 5\n".into()),
        ("embedded", "train_per_class = 4\ntest_per_class = 2\n".into()),
    ]
}

#[test]
fn memory_validation_task_limit_and_joint_training_work_for_every_stream() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    for (name, settings) in small_streams(folder.path()) {
        let with = |more: &str| stream(name, &format!("tasks = 2\n{more}\n{settings}{}", untouched(32)), 0);
        let plain = with("")?;
        let classes = plain.classes().len();
        let counts = |stream: &dyn TaskStream| (stream.train_count(0), stream.test_count(0));
        assert_eq!(plain.tasks().len(), 2, "{name}");

        let rehearsing = with("memory = 2")?;
        assert_eq!(rehearsing.train_count(1), plain.train_count(1) + 2, "{name}");
        assert_eq!(rehearsing.train_classes(1), 0..classes, "{name}");

        let joint = with("joint = true")?;
        assert_eq!((joint.tasks().len(), joint.train_classes(0)), (1, 0..classes), "{name}");
        assert_eq!(joint.train_count(0), plain.train_count(0) + plain.train_count(1), "{name}");

        let limited = with("max_tasks = 1")?;
        assert_eq!(
            (limited.tasks(), counts(limited.as_ref())),
            (&plain.tasks()[..1], counts(plain.as_ref())),
            "{name}"
        );
        assert_eq!(limited.classes(), plain.classes(), "{name}");

        let validating = with("validation = 0.5")?;
        assert_ne!(validating.record()?.fingerprint, plain.record()?.fingerprint, "{name}");
        if !settings.contains("per_class = ") {
            let (train, test) = counts(validating.as_ref());
            assert_eq!(
                train + test,
                plain.train_count(0),
                "{name}: both parts together are the training images"
            );
            assert_eq!(test, plain.train_count(0).div_ceil(2), "{name}");
        }
    }
    Ok(())
}
