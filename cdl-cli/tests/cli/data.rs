//! `cdl data verify` and `cdl data split` on a folder of images, and sources that cannot be downloaded.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use crate::common::{cdl, repository, stderr};

/// Writes 10 images of each of two classes. The name of one class begins like a comment in a list; the images of the
/// other class are in a subfolder of its class folder.
fn images(root: &Path) -> PathBuf {
    let folder = root.join("images");
    for (at, class) in ["#hash cat", "dog/deep"].iter().enumerate() {
        fs::create_dir_all(folder.join(class)).unwrap();
        for number in 0..10_u8 {
            let image = image::RgbImage::from_pixel(8, 8, [number, at as u8, 0].into());
            image.save(folder.join(class).join(format!("image {number}.png"))).unwrap();
        }
    }
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output, words: &[&str]) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is missing in: {stderr}");
    }
}

#[test]
fn splits_are_reproducible_and_streams_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path());
    let split = |seed: &str, fraction: &str, out: &str| {
        let out = folder.path().join(out);
        let more = ["--seed", seed, "--fraction", fraction, "--out", text(&out)];
        cdl(&[&["data", "split", text(&images)][..], &more].concat())
    };
    // A list uses the folder of an image as its class.
    refused(
        &split("7", "0.2", "none"),
        &["dog/deep/image 0.png", "in a subfolder of its class folder", "move the images into `dog`"],
    );
    fs::rename(images.join("dog/deep"), images.join("deep")).unwrap();
    fs::remove_dir(images.join("dog")).unwrap();
    let stdout = printed(&split("7", "0.2", "lists"));
    assert!(stdout.contains("2 classes, 16 training and 4 test images"), "{stdout}");
    let read = |out: &str, name: &str| fs::read_to_string(folder.path().join(out).join(name)).unwrap();
    let (train, test) = (read("lists", "train.txt"), read("lists", "test.txt"));
    assert!(test.starts_with("# test images: 4 of 20 images in 2 classes\n# seed 7, fraction 0.2"), "{test}");

    // Every image is in exactly one list, two of each class in the test list.
    let lines = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).map(String::from).collect()
    };
    let mut all = [lines(&train), lines(&test)].concat();
    all.sort();
    let mut expected: Vec<String> = (0..10).map(|n| format!("./#hash cat/image {n}.png 0")).collect();
    expected.extend((0..10).map(|n| format!("deep/image {n}.png 1")));
    expected.sort();
    assert_eq!(all, expected);
    assert_eq!(lines(&test).iter().filter(|line| line.ends_with(" 0")).count(), 2);

    printed(&split("7", "0.2", "again"));
    assert_eq!((read("again", "train.txt"), read("again", "test.txt")), (train.clone(), test));
    printed(&split("8", "0.2", "other"));
    assert_ne!(lines(&read("other", "train.txt")), lines(&train), "the split depends on the seed");
    refused(&split("7", "0.2", "lists"), &["train.txt", "already exists"]);
    refused(&split("7", "1.5", "none"), &["`fraction = 1.5`", "below 1"]);
    fs::create_dir(images.join("empty")).unwrap();
    refused(&split("7", "0.2", "none"), &["images/empty", "needs at least 2"]);
    assert!(!folder.path().join("none").exists(), "nothing is written");
    fs::remove_dir(images.join("empty")).unwrap();

    // A stream draws the same split with the same seed.
    let stream = |more: &str| {
        let path = text(&images);
        let set =
            format!("stream={{name=\"imagenet_r\", path=\"{path}\", transform={{image_size=28}}, {more}}}");
        let output = cdl(&[
            "check",
            "configs/quickstart.toml",
            "--json",
            "--steps",
            "0",
            "--set",
            "batch_size=4",
            "--set",
            &set,
        ]);
        serde_json::from_str::<serde_json::Value>(&printed(&output)).unwrap()["data"].clone()
    };
    let lists = ["train", "test"].map(|half| folder.path().join(format!("lists/{half}.txt")));
    let listed = stream(&format!("train_list={:?}, test_list={:?}", text(&lists[0]), text(&lists[1])));
    assert_eq!(listed["tasks"][0]["train"], 16);
    assert_eq!(listed["tasks"][0]["test"], 4);
    assert_eq!(listed["split_sha256"], stream("split_seed=7")["split_sha256"]);
    assert_ne!(listed["split_sha256"], stream("split_seed=8")["split_sha256"]);
}

/// The commands of the guide for ImageNet-R, whose archive contains the folder `imagenet-r`.
#[cfg(unix)]
#[test]
fn an_unpacked_archive_is_split_and_read() {
    let root = tempfile::tempdir().unwrap();
    let classes = ["n01443537", "n01484850"];
    for class in classes {
        let folder = root.path().join("original/imagenet-r").join(class);
        fs::create_dir_all(&folder).unwrap();
        for number in 0..5_u8 {
            let image = image::RgbImage::from_pixel(8, 8, [number, 0, 0].into());
            image.save(folder.join(format!("art_{number}.png"))).unwrap();
        }
    }
    let tar = |args: &[&str]| {
        let status = std::process::Command::new("tar").args(args).current_dir(&root).status().unwrap();
        assert!(status.success(), "{args:?}");
    };
    tar(&["-cf", "imagenet-r.tar", "-C", "original", "imagenet-r"]);
    fs::create_dir(root.path().join("data")).unwrap();
    tar(&["-xf", "imagenet-r.tar", "-C", "data"]);
    let (data, out) = (root.path().join("data/imagenet-r"), root.path().join("splits"));
    let said = printed(&cdl(&["data", "split", text(&data), "--seed", "1", "--out", text(&out)]));
    assert!(said.contains("2 classes, 8 training and 2 test images"), "{said}");
    let stream = format!(
        "stream={{name=\"imagenet_r\", path={:?}, train_list={:?}, test_list={:?}, transform={{image_size=28}}}}",
        text(&data),
        text(&out.join("train.txt")),
        text(&out.join("test.txt"))
    );
    let said = printed(&cdl(&["data", "verify", "configs/quickstart.toml", "--set", &stream]));
    assert!(said.contains("       4         1  n01443537\n") && said.contains("10 images checked"), "{said}");
}

#[test]
fn images_and_classes_that_are_left_out_are_counted_and_named() {
    let root = tempfile::tempdir().unwrap();
    let images = images(root.path());
    fs::rename(images.join("dog/deep"), images.join("deep")).unwrap();
    fs::remove_dir(images.join("dog")).unwrap();
    let lists = ["train", "test"].map(|half| root.path().join(format!("{half}.txt")));
    let line = |number: usize| format!("./#hash cat/image {number}.png\ndeep/image {number}.png\n");
    fs::write(&lists[0], line(0) + "# again\n" + &line(0) + &line(1)).unwrap();
    fs::write(&lists[1], line(2)).unwrap();
    let stream = format!(
        "stream={{name=\"image_folder\", path={:?}, train_list={:?}, test_list={:?}, transform={{image_size=28}}}}",
        text(&images),
        text(&lists[0]),
        text(&lists[1])
    );
    let verified = cdl(&["data", "verify", "configs/quickstart.toml", "--set", &stream]);
    let said = stderr(&verified);
    assert!(
        said.contains(
            "train.txt: dropped lines that repeat an image: 2; the first is line 4, `./#hash cat/image 0.png`"
        ),
        "{said}"
    );
    assert!(printed(&verified).contains("6 images checked"));

    let names = repository().join("plugins/tests/fixtures/streams/names");
    let stream =
        format!("stream={{name=\"hub_images\", path={:?}, transform={{image_size=28}}}}", text(&names));
    let verified = cdl(&["data", "verify", "configs/quickstart.toml", "--set", &stream]);
    let said = stderr(&verified);
    for words in [
        "classes that share a name with others are called by name and label: 2 (`crane (0)`, `crane (2)`)",
        "left out classes without images: 2 (`boat`, `elk`)",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    assert!(printed(&verified).contains("       2         1  crane (0)\n"));
}

#[test]
fn verify_names_every_missing_damaged_or_unlisted_file() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path());
    let verify = |more: &[&str]| cdl(&[&["data", "verify", text(&images)][..], more].concat());
    let stdout = printed(&verify(&[]));
    assert!(stdout.contains("10  #hash cat") && stdout.contains("10  dog/deep"), "{stdout}");
    assert!(stdout.contains("20  images in 2 folders") && stdout.contains("no SHA256SUMS"), "{stdout}");
    assert!(printed(&verify(&["--record"])).contains("20  files listed in"));
    printed(&verify(&[]));
    refused(&verify(&["--record"]), &["SHA256SUMS exists already"]);

    // The format is that of `sha256sum`.
    use sha2::Digest;
    let first = fs::read(images.join("dog/deep/image 3.png")).unwrap();
    let digest: String = sha2::Sha256::digest(first).iter().map(|byte| format!("{byte:02x}")).collect();
    let list = fs::read_to_string(images.join("SHA256SUMS")).unwrap();
    assert!(list.contains(&format!("{digest}  dog/deep/image 3.png\n")), "{list}");

    fs::remove_file(images.join("dog/deep/image 0.png")).unwrap();
    image::RgbImage::new(9, 9).save(images.join("dog/deep/image 1.png")).unwrap();
    fs::write(images.join("#hash cat/image 2.png"), "no image").unwrap();
    fs::copy(images.join("dog/deep/image 5.png"), images.join("dog/new.png")).unwrap();
    let found = verify(&[]);
    refused(
        &found,
        &[
            "5 files missing, damaged or not listed",
            "image 0.png: is missing",
            "image 1.png: has the SHA-256",
            "dog/new.png: is not listed in SHA256SUMS",
            "is not a readable image",
        ],
    );
    assert_eq!(count_lines(&found, "image 2.png"), 2, "damaged, and not as listed");
    fs::write(images.join("SHA256SUMS"), format!("{digest}  ../outside\n")).unwrap();
    refused(&verify(&[]), &["line 1", "`../outside` is not a path inside the folder"]);
    fs::write(images.join("SHA256SUMS"), "abc  x\n").unwrap();
    refused(&verify(&[]), &["64 hexadecimal digits"]);
}

fn count_lines(output: &Output, word: &str) -> usize {
    stderr(output).lines().filter(|line| line.contains(word)).count()
}

#[test]
fn verify_of_a_configuration_checks_every_image_of_its_run() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path());
    fs::rename(images.join("dog/deep"), images.join("deep")).unwrap();
    fs::remove_dir(images.join("dog")).unwrap();
    let set = format!(
        "stream={{name=\"imagenet_r\", path=\"{}\", split_seed=7, transform={{image_size=28}}}}",
        text(&images)
    );
    let verify = || cdl(&["data", "verify", "configs/quickstart.toml", "--set", &set]);
    let stdout = printed(&verify());
    assert!(stdout.contains("       8         2  deep\n"), "{stdout}");
    assert!(stdout.contains("20 images checked in 20 files"), "{stdout}");
    for number in [3, 6] {
        fs::write(images.join(format!("deep/image {number}.png")), "no image").unwrap();
    }
    refused(&verify(), &["2 images cannot be read", "image 3.png", "image 6.png"]);
}

#[test]
fn data_that_cannot_be_downloaded_is_an_error_with_its_source() {
    refused(
        &cdl(&["data", "fetch", "imagenet_r"]),
        &["cannot be downloaded", "github.com/hendrycks/imagenet-r", "licence"],
    );
    refused(&cdl(&["data", "fetch", "cifar1000"]), &["did you mean `cifar100`"]);
    refused(&cdl(&["data", "fetch", "embedded"]), &["`embedded` states no source"]);
    refused(&cdl(&["data", "fetch", "cifar100", "--dir", "configs"]), &["configs: exists already"]);
}
