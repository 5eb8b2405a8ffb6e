//! Tests of streams that read small files in their original formats.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use cdl_core::{
    candle_core::Tensor,
    config::Config,
    error::Result,
    image::RgbImage,
    registry::{self, Settings},
    run::joint_preflight::check_all,
    traits::{BackboneContext, EpochKey, Role, StreamContext, TaskStream},
};
use common::{failure, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

fn idx_header(dims: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    bytes.extend(dims.iter().flat_map(|dim| dim.to_be_bytes()));
    bytes
}

/// Writes images of 3 x 2 pixels (rows x columns) whose values are 10 times their number, with labels 0, 1, 2, 0, ...
fn write_idx(folder: &Path, split: &str, count: u32, gz: bool) {
    let mut images = idx_header(&[count, 3, 2]);
    images.extend((0..count).flat_map(|number| [10 * number as u8; 6]));
    let mut labels = idx_header(&[count]);
    labels.extend((0..count).map(|number| (number % 3) as u8));
    for (kind, bytes) in [("images-idx3", images), ("labels-idx1", labels)] {
        let file = folder.join(format!("{split}-{kind}-ubyte"));
        if gz {
            let file = fs::File::create(file.with_extension("gz")).unwrap();
            let mut zip = flate2::write::GzEncoder::new(file, flate2::Compression::default());
            zip.write_all(&bytes).unwrap();
            zip.finish().unwrap();
        } else {
            fs::write(file, bytes).unwrap();
        }
    }
}

/// Returns the first pixel of each image of a batch.
fn first_pixels(pixels: &Tensor) -> Vec<u8> {
    let first = pixels.flatten_from(1).unwrap().narrow(1, 0, 1).unwrap();
    let first = first.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    first.into_iter().map(|value| (value * 255.0).round() as u8).collect()
}

#[test]
fn a_memory_rehearses_earlier_classes_and_joint_training_has_one_task() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    write_idx(folder.path(), "train", 9, false);
    write_idx(folder.path(), "t10k", 6, false);
    let with = |more: &str| {
        let path = folder.path().display();
        stream(
            "idx",
            &format!("path = \"{path}\"\ntasks = 3\n{more}\n[transform]\nimage_size = 4\ntest = \"resize\""),
            0,
        )
    };
    let labels = |stream: &dyn TaskStream, task: usize| -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for batch in stream.train_batches(EpochKey { task, role: Role::Student, epoch: 0 }, 1, 0) {
            all.extend(batch?.labels.to_vec1::<u32>()?);
        }
        all.sort();
        Ok(all)
    };
    let plain = with("")?;
    assert_eq!((plain.train_count(2), plain.train_classes(2)), (3, 2..3));
    let rehearsing = with("memory = 3")?;
    assert_eq!((rehearsing.train_count(0), rehearsing.train_classes(0)), (3, 0..1));
    assert_eq!((rehearsing.train_count(2), rehearsing.train_classes(2)), (6, 0..3));
    assert_eq!(labels(rehearsing.as_ref(), 1)?, [0, 0, 0, 1, 1, 1]);
    assert_eq!(
        labels(rehearsing.as_ref(), 2)?,
        [0, 0, 1, 2, 2, 2],
        "two of the first class, one of the second"
    );
    assert_eq!(rehearsing.test_count(2), plain.test_count(2));
    let joint = with("joint = true")?;
    assert_eq!((joint.tasks().len(), joint.train_count(0), joint.train_classes(0)), (1, 9, 0..3));
    Ok(())
}

#[test]
fn idx_files_are_read_plain_and_gzipped() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    write_idx(folder.path(), "train", 9, false);
    write_idx(folder.path(), "t10k", 6, true);
    let settings = format!(
        "path = \"{}\"\ntasks = 3\n[transform]\nimage_size = 4\ntrain = \"test\"\nflip = false\ntest = \"resize\"",
        folder.path().display()
    );
    let stream_of = stream("idx", &settings, 0)?;
    assert_eq!(stream_of.classes(), ["0", "1", "2"]);
    assert_eq!((stream_of.train_count(1), stream_of.test_count(1)), (3, 2));
    let batches: Vec<_> = stream_of.test_batches(1, 8).collect::<Result<_>>()?;
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].pixels.dims(), [2, 3, 4, 4]);
    assert_eq!(batches[0].labels.to_vec1::<u32>()?, [1, 1]);
    assert_eq!(first_pixels(&batches[0].pixels), [10, 40], "test images 1 and 4 are of class 1");

    // Every epoch has a different order of the same images; the last incomplete batch is dropped.
    let order = |seed: u64, epoch: usize| -> Result<Vec<u8>> {
        let stream = stream("idx", &settings.replace("tasks = 3", "tasks = 1"), seed)?;
        let key = EpochKey { task: 0, role: Role::Student, epoch };
        let batches: Vec<_> = stream.train_batches(key, 2, 0).collect::<Result<_>>()?;
        assert_eq!(batches.len(), 4, "9 images in batches of 2");
        Ok(batches.iter().flat_map(|batch| first_pixels(&batch.pixels)).collect())
    };
    assert_eq!(order(1, 0)?, order(1, 0)?);
    assert_ne!(order(1, 0)?, order(1, 1)?);
    assert_ne!(order(1, 0)?, order(2, 0)?);
    assert_eq!(order(1, 0)?.into_iter().collect::<BTreeSet<_>>().len(), 8, "no image twice");
    Ok(())
}

#[test]
fn idx_labels_may_begin_with_1() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    for (split, count) in [("train", 9), ("t10k", 6)] {
        write_idx(folder.path(), split, count, false);
        let labels: Vec<u8> = (0..count).map(|number| 1 + (number % 3) as u8).collect();
        let bytes = [idx_header(&[count]), labels].concat();
        fs::write(folder.path().join(format!("{split}-labels-idx1-ubyte")), bytes).unwrap();
    }
    let path = folder.path().display();
    let with = |names: &str| {
        let settings = format!("path = \"{path}\"\ntasks = 3\n{names}\n[transform]\nimage_size = 4");
        stream("idx", &settings, 0)
    };
    assert_eq!(with("")?.classes(), ["1", "2", "3"]);
    let named = with("class_names = [\"a\", \"b\", \"c\"]")?;
    assert_eq!((named.classes(), named.train_count(2)), (&["a", "b", "c"].map(String::from)[..], 3));
    assert!(with("class_names = [\"a\", \"b\"]").is_err());
    Ok(())
}

#[test]
fn damaged_and_missing_idx_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_idx(folder.path(), "train", 9, false);
    let settings = format!("path = \"{}\"\n[transform]\nimage_size = 4", folder.path().display());
    assert!(failure("idx", &settings).contains("t10k-images-idx3-ubyte: not found"));
    write_idx(folder.path(), "t10k", 6, false);
    let images = folder.path().join("t10k-images-idx3-ubyte");
    let bytes = fs::read(&images).unwrap();
    fs::write(&images, &bytes[..bytes.len() - 1]).unwrap();
    let message = failure("idx", &settings);
    assert!(message.contains("t10k-images-idx3-ubyte") && message.contains("truncated"), "{message}");
    fs::write(&images, "GIF89a").unwrap();
    assert!(failure("idx", &settings).contains("not an IDX file"));
    write_idx(folder.path(), "t10k", 6, false);
    fs::write(folder.path().join("t10k-labels-idx1-ubyte"), [idx_header(&[2]), vec![0, 1]].concat()).unwrap();
    assert!(failure("idx", &settings).contains("6 images, but 2 labels"));
}

/// Writes five grey images for each of two classes.
fn write_images(folder: &Path) {
    for class in ["night owl", "cat"] {
        let folder = folder.join("pictures").join(class);
        fs::create_dir_all(&folder).unwrap();
        for number in 0..5u8 {
            RgbImage::from_pixel(6, 5, [number * 40; 3].into())
                .save(folder.join(format!("{number}.png")))
                .unwrap();
        }
    }
}

#[test]
fn image_folders_are_split_by_lists() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    write_images(folder.path());
    let list = |name: &str, numbers: &[usize], labels: [&str; 2]| {
        let mut text = String::new();
        for number in numbers {
            text += &format!("pictures/night owl/{number}.png {}\n", labels[0]);
            text += &format!("pictures/cat/{number}.png {}\n", labels[1]);
        }
        fs::write(folder.path().join(name), text).unwrap();
    };
    let root = folder.path().display();
    let settings = format!(
        "path = \"{root}\"\ntrain_list = \"{root}/train.txt\"\ntest_list = \"{root}/test.txt\"\ntasks = 2\n\
         [transform]\nimage_size = 4\ntest = \"resize\""
    );
    list("train.txt", &[0, 1, 2], ["0", "1"]);
    list("test.txt", &[3, 4], ["0", "1"]);
    let labelled = stream("image_folder", &settings, 0)?;
    assert_eq!(labelled.classes(), ["night owl", "cat"], "labels set the order");
    assert_eq!((labelled.train_count(0), labelled.test_count(1)), (3, 2));
    let batch = labelled.test_batches(1, 2).next().expect("a batch")?;
    assert_eq!(first_pixels(&batch.pixels), [120, 160]);

    list("train.txt", &[0, 1, 2], ["", ""]);
    list("test.txt", &[3, 4], ["", ""]);
    let named = stream("image_folder", &settings, 0)?;
    assert_eq!(named.classes(), ["cat", "night owl"], "without labels, names set the order");
    assert_ne!(named.record()?.fingerprint, labelled.record()?.fingerprint);

    list("train.txt", &[0, 1], ["0", "0"]);
    list("test.txt", &[3], ["0", "0"]);
    assert!(failure("image_folder", &settings).contains("have the same label 0"));
    list("test.txt", &[3], ["1", "0"]);
    assert!(failure("image_folder", &settings).contains("label 1, but 0 earlier for class `night owl`"));
    list("test.txt", &[9], ["0", "1"]);
    list("train.txt", &[0], ["0", "1"]);
    let message = failure("image_folder", &settings);
    assert!(message.contains("line 1") && message.contains("9.png"), "{message}");
    Ok(())
}

#[test]
fn the_embedded_stream_has_ten_classes_of_350_images() -> Result<()> {
    let stream = stream("embedded", "tasks = 5\n[transform]\nimage_size = 28\ntest = \"resize\"", 0)?;
    assert_eq!(stream.classes().len(), 10);
    assert_eq!((stream.classes()[0].as_str(), stream.classes()[9].as_str()), ("T-shirt/top", "Ankle boot"));
    for task in 0..5 {
        assert_eq!((stream.train_count(task), stream.test_count(task)), (500, 200));
    }
    Ok(())
}

static READ_STREAMS: AtomicUsize = AtomicUsize::new(0);
static READ_NETWORKS: AtomicUsize = AtomicUsize::new(0);

/// Stream `embedded` that counts how often it is built.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct CountedStream {
    tasks: usize,
    class_order: String,
}

cdl_core::register!(Stream {
    name: "counted",
    about: "",
    citation: "",
    config: CountedStream,
    build: |config: CountedStream, context: &StreamContext<'_>| {
        READ_STREAMS.fetch_add(1, Ordering::SeqCst);
        let CountedStream { tasks, class_order } = config;
        let text = format!(
            "tasks = {tasks}\nclass_order = {class_order:?}\n[transform]\nimage_size = 28\ntest = \"resize\""
        );
        registry::stream("embedded", &toml::from_str(&text).unwrap(), context)
    },
});

/// Network `vit` that counts how often it is built.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct CountedNetwork {
    weights: String,
}

cdl_core::register!(Backbone {
    name: "counted",
    about: "",
    citation: "",
    config: CountedNetwork,
    build: |config: CountedNetwork, context: &BackboneContext<'_>| {
        READ_NETWORKS.fetch_add(1, Ordering::SeqCst);
        registry::backbone("vit", &Settings::try_from(&config).unwrap(), context)
    },
});

#[test]
fn runs_that_are_checked_together_read_what_they_share_once() {
    cdl_plugins::link();
    let config = |order: &str, seed: u64, pool: usize, teacher: &str| {
        let text = format!(
            "seed = {seed}\nmode = \"published\"\n\
             [stream]\nname = \"counted\"\ntasks = 5\nclass_order = \"{order}\"\n\
             [learner]\nname = \"coda_prompt\"\npool = {pool}\n[distiller]\nname = \"kd\"\n\
             [teacher]\nname = \"counted\"\nweights = \"{teacher}\"\n\
             [student]\nname = \"counted\"\nweights = \"embedded:micro_student\"\n"
        );
        Config::parse("test", &text, &[]).unwrap()
    };
    let teacher = "embedded:micro_teacher";
    let count = |configs: &[Config]| {
        for counter in [&READ_STREAMS, &READ_NETWORKS] {
            counter.store(0, Ordering::SeqCst);
        }
        let found = check_all(configs, 1, &|| {});
        let found =
            found.into_iter().map(|shared| (shared.error.to_string(), shared.configs)).collect::<Vec<_>>();
        (READ_STREAMS.load(Ordering::SeqCst), READ_NETWORKS.load(Ordering::SeqCst), found)
    };
    let seeds = |order: &str| -> Vec<Config> {
        let of_pool = |pool| (1..6).map(move |seed| config(order, seed, pool, teacher));
        [10, 20].into_iter().flat_map(of_pool).collect()
    };
    // With a fixed order, two seeds give equal tasks; the check then reads the data for no further seed.
    assert_eq!(count(&seeds("fixed")), (2, 2, vec![]));
    assert_eq!(count(&seeds("shuffled")), (5, 2, vec![]));

    // Every error is reported once, with all runs that have it; a network that cannot be read is tried once.
    let configs = [
        config("fixed", 1, 10, teacher),
        config("fixed", 1, 3, teacher),
        config("fixed", 2, 3, "nowhere"),
        config("fixed", 2, 10, "nowhere"),
        config("fixed", 2, 3, teacher),
    ];
    let (streams, networks, found) = count(&configs);
    assert_eq!((streams, networks), (2, 3));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].0.contains("learner.pool = 3") && found[0].1 == [1, 2, 4], "{found:?}");
    assert!(found[1].0.contains("nowhere") && found[1].1 == [2, 3], "{found:?}");
}
