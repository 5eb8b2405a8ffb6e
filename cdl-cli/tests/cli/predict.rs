//! `cdl predict` and `cdl bench --inference`: input files, batch sizes, and damaged folders.

use std::fs;

use crate::common::exports::{edit_description, exported, lines, run, sums, text, update_checksums};
use crate::common::{cdl, stderr, succeed};
use cdl_core::{
    candle_core::{DType, Device, Tensor, safetensors},
    image::RgbImage,
};
use serde_json::{Value, json};

#[test]
fn images_are_read_from_files_and_folders_and_unreadable_ones_are_named() {
    let (folder, model, image) = exported();
    let images = folder.path().join("images");
    fs::create_dir_all(images.join("b")).expect("folder");
    for name in ["b/2.png", "a.png", "c.jpg"] {
        fs::copy(&image, images.join(name)).expect("copy");
    }
    fs::write(images.join("notes.txt"), "no image").expect("file");
    let table = succeed(&["predict", text(&model), text(&image), text(&images), "--top", "2"]);
    assert!(
        stderr(&table).contains("images: skipped files without an image extension: 1 (1 .txt)"),
        "{}",
        stderr(&table)
    );
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let ends = ["image.png", "a.png", "2.png", "c.jpg"];
    assert_eq!(table.lines().count(), ends.len(), "{table}");
    for (line, end) in table.lines().zip(ends) {
        let (path, classes) = line.split_once("  ").expect("columns");
        assert!(path.trim_end().ends_with(end), "{table}");
        assert_eq!(classes.matches(" %").count(), 2, "{table}");
    }
    fs::write(images.join("b/1.png"), b"\x89PNG\r\n\x1a\nbroken").expect("file");
    let gone = folder.path().join("gone.png");
    let output = cdl(&["predict", text(&model), text(&images), text(&gone), "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("2 of 5 images cannot be read") && message.contains("b/1.png"), "{message}");
    let lines = lines(&output);
    let errors: Vec<bool> = lines.iter().map(|line| line["error"].is_string()).collect();
    assert_eq!(errors, [false, true, false, false, true], "{lines:?}");
    assert_eq!(lines[0]["predictions"].as_array().map(Vec::len), Some(5));
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("folder");
    let output = cdl(&["predict", text(&model), text(&empty)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("contains no images"), "{}", stderr(&output));
}

#[test]
fn batch_sizes_are_limited_by_memory() {
    let (_folder, model, image) = exported();
    for (command, option) in [
        (vec!["predict", text(&model), text(&image)], "--batch-size"),
        (vec!["bench", "--inference", text(&model), "--steps", "1"], "--batch"),
    ] {
        for size in ["0", "4000000000", "18446744073709551615"] {
            let output = cdl(&[&command[..], &[option, size]].concat());
            assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
            let expected = format!("`{option} = {size}` is not valid: expected 1 to ");
            assert!(stderr(&output).contains(&expected) && output.stdout.is_empty(), "{}", stderr(&output));
        }
        succeed(&[&command[..], &[option, "3"]].concat());
    }
    // The batch size of the run is reduced with a warning.
    edit_description(&model, &|value| value["batch_size"] = u64::MAX.into());
    let output = succeed(&["predict", text(&model), text(&image)]);
    assert!(
        stderr(&output).contains("not enough free memory for the run's batch size of 18446744073709551615"),
        "{}",
        stderr(&output)
    );
}

/// 24 images of 48 MB each in one batch, in 700 MB of address space.
#[cfg(target_os = "linux")]
#[test]
fn only_preprocessed_pixels_of_large_images_are_kept() {
    let (folder, model, _) = exported();
    let images = folder.path().join("large images");
    fs::create_dir(&images).expect("folder");
    let first = images.join("00.png");
    RgbImage::from_pixel(4000, 4000, [200, 100, 0].into()).save(&first).expect("image");
    for number in 1..24 {
        fs::copy(&first, images.join(format!("{number:02}.png"))).expect("copy");
    }
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 700000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_cdl")])
        .args(["predict", text(&model), text(&images), "--batch-size", "24", "--threads", "1"])
        // The mappings of a GPU's driver would count towards the limit.
        .args(["--device", "cpu"])
        .output()
        .expect("cdl starts");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 24);
}

#[cfg(target_os = "linux")]
#[test]
fn names_with_control_characters_or_invalid_utf8_are_accepted() {
    use std::os::unix::ffi::OsStrExt;
    let (folder, model, image) = exported();
    let images = folder.path().join("two words");
    fs::create_dir(&images).expect("folder");
    for name in
        [&b"a b.png"[..], b"line\nbreak \x1b[31m.png", b"no utf \xff.png", "Stiefel \"ß\".png".as_bytes()]
    {
        fs::copy(&image, images.join(std::ffi::OsStr::from_bytes(name))).expect("copy");
    }
    fs::write(images.join("c\nd.png"), "no image").expect("file");
    let both = |format: &str| {
        let output = cdl(&["predict", text(&model), text(&images), "--format", format]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("1 of 5 images cannot be read"), "{}", stderr(&output));
        assert!(stderr(&output).contains("c\\nd.png: is not a readable image"), "{}", stderr(&output));
        output
    };
    let lines = lines(&both("json"));
    let names: Vec<&str> = lines.iter().map(|line| line["image"].as_str().expect("path")).collect();
    let ends =
        ["a b.png", "c\nd.png", "line\nbreak \u{1b}[31m.png", "no utf \u{fffd}.png", "Stiefel \"ß\".png"];
    for end in ends {
        assert!(names.iter().any(|name| name.ends_with(end)), "{end:?} in {names:?}");
    }
    let table = String::from_utf8_lossy(&both("table").stdout).into_owned();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("line\\nbreak \\u{1b}[31m.png") && !table.contains('\u{1b}'), "{table}");
}

#[test]
fn inference_is_measured_for_each_folder() {
    let (_folder, model, image) = exported();
    let args = ["bench", "--inference", text(&model), text(&model), "--batch", "4", "--steps", "2", "--json"];
    for line in lines(&succeed(&args)) {
        for number in ["latency_s", "images_s", "frozen_bytes", "trained_bytes"] {
            assert!(line[number].as_f64().is_some_and(|value| value > 0.0), "{number} in {line}");
        }
        assert_eq!((&line["role"], &line["batch"]), (&"student".into(), &4.into()));
    }
    let table =
        succeed(&["bench", "--inference", text(&model), "--batch", "4", "--steps", "1", "--device", "cpu"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("images/s, batch 4"));
    let usual = succeed(&["bench", "--inference", text(&model), "--steps", "1", "--json"]);
    assert_eq!(lines(&usual)[0]["batch"], 32);
    for command in [vec!["bench", "--inference", text(&model)], vec!["predict", text(&model), text(&image)]] {
        let refused = |device: &str, words: &str| {
            let output = cdl(&[&command[..], &["--device", device]].concat());
            assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
            assert!(stderr(&output).contains(words), "{}", stderr(&output));
        };
        refused("gpu", "device `gpu`: expected auto, cpu, cuda or cuda:N");
        if !cfg!(feature = "cuda") {
            refused("cuda:0", "device `cuda:0`: this program is built without CUDA (docs/guide/gpu.md");
        }
    }
}

#[test]
fn damaged_folders_are_errors_that_name_the_file() {
    let (folder, model, image) = exported();
    let copy = folder.path().join("copy");
    let predict = || cdl(&["predict", text(&copy), text(&image)]);
    let fresh = || {
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir_all(copy.join("network")).expect("folder");
        for file in sums(&model).iter().map(|(_, name)| name.clone()).chain(["SHA256SUMS".to_string()]) {
            fs::copy(model.join(&file), copy.join(&file)).expect("copy");
        }
    };
    let cut = |name: &str| {
        let bytes = fs::read(copy.join(name)).expect("file");
        fs::write(copy.join(name), &bytes[..bytes.len() - 100]).expect("file");
    };
    let edit = |name: &str, from: &str, to: &str| {
        let text = fs::read_to_string(copy.join(name)).expect("file");
        assert!(text.contains(from), "{from} in {name}");
        fs::write(copy.join(name), text.replacen(from, to, 1)).expect("file");
    };
    let update = || update_checksums(&copy);
    type Damage<'a> = (&'a str, Box<dyn Fn() + 'a>, [&'a str; 2]);
    let cases: Vec<Damage<'_>> = vec![
        (
            "a file cut short",
            Box::new(|| cut("network/model.safetensors")),
            ["network/model.safetensors", "is damaged"],
        ),
        (
            "trained tensors cut short",
            Box::new(|| cut("trained.safetensors")),
            ["trained.safetensors", "is damaged"],
        ),
        (
            "cut short, with a matching checksum",
            Box::new(|| {
                cut("trained.safetensors");
                update()
            }),
            ["trained.safetensors", "state of"],
        ),
        (
            "weights cut short, with a matching checksum",
            Box::new(|| {
                cut("network/model.safetensors");
                update()
            }),
            ["network/model.safetensors", "not a complete safetensors file"],
        ),
        (
            "another name of a class",
            Box::new(|| edit("classes.json", "Bag", "Bog")),
            ["classes.json", "is damaged"],
        ),
        (
            "no names",
            Box::new(|| fs::remove_file(copy.join("classes.json")).expect("removed")),
            ["classes.json", "is missing"],
        ),
        (
            "no names for all classes",
            Box::new(|| {
                fs::write(copy.join("classes.json"), "[\"a\"]").expect("file");
                update()
            }),
            ["model.json", "within 1 classes"],
        ),
        ("an edited checksum", Box::new(|| edit("SHA256SUMS", "0", "1")), ["SHA-256", "is damaged"]),
        (
            "a file that is not listed",
            Box::new(|| {
                let text: String = fs::read_to_string(copy.join("SHA256SUMS"))
                    .expect("file")
                    .lines()
                    .filter(|line| !line.ends_with("trained.safetensors"))
                    .map(|line| format!("{line}\n"))
                    .collect();
                fs::write(copy.join("SHA256SUMS"), text).expect("file")
            }),
            ["SHA256SUMS", "does not list trained.safetensors"],
        ),
        (
            "no list",
            Box::new(|| fs::remove_file(copy.join("SHA256SUMS")).expect("removed")),
            ["SHA256SUMS", "cannot be read"],
        ),
        (
            "an invalid list",
            Box::new(|| fs::write(copy.join("SHA256SUMS"), "hello").expect("file")),
            ["SHA256SUMS", "line 1"],
        ),
        (
            "a newer format",
            Box::new(|| edit("model.json", "\"format\": 1", "\"format\": 2")),
            ["model.json", "has format 2; this version of cdl reads format 1"],
        ),
        (
            "an edited description",
            Box::new(|| edit("model.json", "\"seed\": 1", "\"seed\": 2")),
            ["model.json", "is damaged"],
        ),
        (
            "tasks that overlap",
            Box::new(|| {
                edit("model.json", "\"start\": 5", "\"start\": 4");
                update()
            }),
            ["model.json", "`tasks` contains 4..10"],
        ),
        (
            "a batch size of 0",
            Box::new(|| {
                edit("model.json", "\"batch_size\": 10", "\"batch_size\": 0");
                update()
            }),
            ["model.json", "`batch_size = 0` is not valid: expected at least 1"],
        ),
        (
            "an unknown learner",
            Box::new(|| {
                edit("model.json", "coda_prompt", "koda_prompt");
                update()
            }),
            ["model.json", "`learner.name`: unknown learner `koda_prompt` (did you mean `coda_prompt`"],
        ),
        (
            "a setting that does not fit",
            Box::new(|| {
                edit("model.json", "\"length\": 8", "\"length\": 10");
                update()
            }),
            ["trained.safetensors: prompt.e_p_0", "saved with shape [20, 8, 64], expected [20, 10, 64]"],
        ),
        (
            "another image size",
            Box::new(|| {
                edit("model.json", "\"image_size\": 28", "\"image_size\": 5600");
                update()
            }),
            ["network/model.safetensors", "28 px; the images have 5600 px"],
        ),
        (
            "no description",
            Box::new(|| fs::write(copy.join("model.json"), "[").expect("file")),
            ["model.json", "is damaged"],
        ),
        (
            "no folder at all",
            Box::new(|| fs::remove_dir_all(&copy).expect("removed")),
            ["model.json", "cdl export"],
        ),
    ];
    for (what, damage, words) in &cases {
        fresh();
        assert!(predict().status.success(), "the copy works");
        damage();
        let output = predict();
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{what}: {message}");
        for word in words {
            assert!(message.contains(word), "{what}: {word} in {message}");
        }
        assert!(output.stdout.is_empty(), "{what}");
    }
}

/// Change of `model.json`, and words of the error.
type Change = (Box<dyn Fn(&mut Value)>, &'static [&'static str]);

/// Replaces the value at `pointer`.
fn set(pointer: &'static str, to: impl Into<Value>, words: &'static [&'static str]) -> Change {
    let to: Value = to.into();
    (Box::new(move |value| *value.pointer_mut(pointer).expect(pointer) = to.clone()), words)
}

/// Tensors of these sizes would exhaust memory.
#[test]
fn sizes_that_exceed_the_tensors_are_refused() {
    const HUGE: u64 = 1_000_000_000_000;
    let with_prompts = vec![
        set("/learner/pool", HUGE, &["`learner.pool = 1000000000000` is not valid: expected at most"]),
        set("/learner/length", HUGE, &["`learner.length = 1000000000000` is not valid: expected at most"]),
        set("/learner/pool", "many", &["`learner.pool = \"many\"`", "invalid type"]),
        set(
            "/distillers/0/section/length",
            HUGE,
            &["`distillers[0].section.length = 1000000000000`", "expected at most 4294967296"],
        ),
        set(
            "/network/spec/depth",
            HUGE,
            &["`network.spec.depth = 1000000000000`", "the tensors in network/"],
        ),
        set(
            "/network/spec/width",
            HUGE,
            &["`network.spec.width = 1000000000000`", "the tensors in network/"],
        ),
        set("/network/spec/heads", -1, &["`network.spec.heads = -1`", "expected a whole number"]),
        set("/teacher/width", HUGE, &["`teacher.width = 1000000000000`", "1 to 65536"]),
        set("/teacher/patches", HUGE, &["`teacher.patches = 1000000000000`", "1 to 8192"]),
        set("/tasks/0/end", "five", &["`tasks[0].end = \"five\"`", "expected a whole number"]),
        (
            Box::new(|value| value["query_width"] = HUGE.into()),
            &["`query_width = 1000000000000`", "no tensor in trained.safetensors"],
        ),
        (
            Box::new(|value| value["distillers"][0]["section"]["laers"] = 3.into()),
            &["`distillers[0].section.laers`", "did you mean `layers`"],
        ),
        (
            Box::new(|value| drop(value.as_object_mut().expect("object").remove("learner"))),
            &["missing field `learner`"],
        ),
    ];
    let with_pool = vec![
        set("/learner/pool", HUGE, &["`learner.pool = 1000000000000` is not valid: expected at most"]),
        set("/learner/length", HUGE, &["`learner.length = 1000000000000` is not valid: expected at most"]),
    ];
    let with_experts = vec![
        set("/learner/pool", HUGE, &["`learner.pool = 1000000000000` is not valid: expected at most"]),
        set(
            "/learner/e_length",
            HUGE,
            &["`learner.e_length = 1000000000000` is not valid: expected at most"],
        ),
        set(
            "/learner/g_length",
            HUGE,
            &["`learner.g_length = 1000000000000` is not valid: expected at most"],
        ),
    ];
    for (learner, distiller, changes) in [
        ("coda_prompt", "kd_prompts", with_prompts),
        ("l2p", "none", with_pool),
        ("dual_prompt", "none", with_experts),
    ] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let run = run(
            &folder,
            &[&format!("configs/learner/{learner}.toml"), &format!("configs/distiller/{distiller}.toml")],
        );
        let (model, image) = (folder.path().join("student"), folder.path().join("image.png"));
        succeed(&["export", text(&run), "--student", text(&model)]);
        RgbImage::from_pixel(40, 30, [200, 100, 0].into()).save(&image).expect("image");
        let whole = fs::read(model.join("model.json")).expect("file");
        let refused = |words: &[&str]| {
            let output = cdl(&["predict", text(&model), text(&image)]);
            let message = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{learner}, {words:?}: {message}");
            for word in words {
                assert!(message.contains(word), "{learner}, {word}: {message}");
            }
        };
        for (change, words) in changes {
            fs::write(model.join("model.json"), &whole).expect("file");
            edit_description(&model, &change);
            refused(&[&["model.json"], words].concat());
        }
        fs::write(model.join("model.json"), &whole).expect("file");
        let names: Vec<String> = (0..3_000_000).map(|class| class.to_string()).collect();
        fs::write(model.join("classes.json"), serde_json::to_vec(&names).expect("JSON")).expect("file");
        update_checksums(&model);
        refused(&["classes.json: `classes = 3000000` is not valid: expected at most"]);
    }
}

/// Exports never contain these methods, but other folders may name them.
#[test]
fn tensors_that_do_not_match_the_width_of_the_teacher_are_errors() {
    let (_folder, model, image) = exported();
    let trained = model.join("trained.safetensors");
    for (distiller, name, words) in [
        ("fitnets", "project_t_s.proj.weight", "saved with shape [5, 7], expected [65536, 64]"),
        ("review_kd", "ReviewKD_layers.abfs.0.proj1.weight", "saved with shape [5, 7], expected [64, 64]"),
    ] {
        let mut tensors = safetensors::load(&trained, &Device::Cpu).expect("tensors");
        let five = Tensor::zeros((5, 7), DType::F32, &Device::Cpu).expect("tensor");
        tensors.insert(name.into(), five);
        safetensors::save(&tensors, &trained).expect("file");
        edit_description(&model, &|value| {
            value["teacher"] = value["network"]["spec"].clone();
            value["teacher"]["width"] = 65536.into();
            value["distillers"] = json!([{ "index": 0, "section": { "name": distiller } }]);
        });
        let output = cdl(&["predict", text(&model), text(&image)]);
        let words = format!("trained.safetensors: {name}: {words}");
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(&words), "{}", stderr(&output));
    }
}
