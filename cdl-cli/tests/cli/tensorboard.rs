//! Event files agree with `metrics.jsonl` and the results, also after a run was killed and resumed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::common::{TINY, cdl, command, repository, stderr};
use serde_json::Value;

/// Value in an event file: a number, or height, width and PNG file of an image.
#[derive(Debug, Clone, PartialEq)]
enum Logged {
    Number(f32),
    Image(u64, u64, Vec<u8>),
}

type Points = BTreeMap<(String, u64), (f64, Logged)>;

/// CRC-32C bit by bit.
fn crc(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn masked(data: &[u8]) -> u32 {
    let crc = crc(data);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Splits a file into records and verifies their checksums.
fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        assert_eq!(bytes[8..12], masked(&bytes[..8]).to_le_bytes());
        let data = &bytes[12..12 + length];
        assert_eq!(bytes[12 + length..16 + length], masked(data).to_le_bytes());
        records.push(data);
        bytes = &bytes[16 + length..];
    }
    records
}

/// Fields of a message: number, and the varint or the bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn number(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = number(&mut bytes);
        let (value, length) = match key & 7 {
            0 => (number(&mut bytes), 0),
            1 => (0, 8),
            2 => (0, number(&mut bytes) as usize),
            5 => (0, 4),
            kind => panic!("kind {kind}"),
        };
        found.push((key >> 3, value, &bytes[..length]));
        bytes = &bytes[length..];
    }
    found
}

/// Reads the single event file in `folder`. Asserts that no tag has two values at one step.
fn read(folder: &Path) -> (Vec<u8>, Points) {
    let files: Vec<PathBuf> =
        fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(files[0].display().to_string().contains("tfevents"));
    let bytes = fs::read(&files[0]).expect("file");
    let mut points = Points::new();
    for (index, record) in records(&bytes).into_iter().enumerate() {
        let event = fields(record);
        let field = |wanted: u64| event.iter().find(|(number, ..)| *number == wanted).copied();
        let wall_time = f64::from_le_bytes(field(1).expect("wall time").2.try_into().expect("8 bytes"));
        if index == 0 {
            assert_eq!(field(3).expect("version").2, b"brain.Event:2");
            continue;
        }
        let step = field(2).expect("step").1;
        for (_, _, value) in fields(field(5).expect("summary").2) {
            let value = fields(value);
            let tag = String::from_utf8(value[0].2.to_vec()).expect("tag");
            let shown = match value[1].0 {
                2 => Logged::Number(f32::from_le_bytes(value[1].2.try_into().expect("4 bytes"))),
                _ => {
                    let image = fields(value[1].2);
                    Logged::Image(image[0].1, image[1].1, image[3].2.to_vec())
                }
            };
            assert!(
                points.insert((tag.clone(), step), (wall_time, shown)).is_none(),
                "{tag} twice at {step}"
            );
        }
    }
    (bytes, points)
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("file")).expect("JSON")
}

fn epochs(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Values of one network that `docs/guide/runs-and-metrics.md` describes.
fn expected(run: &Path, role: &str) -> BTreeMap<(String, u64), f64> {
    let mut expected = BTreeMap::new();
    for line in epochs(run).iter().filter(|line| line["role"] == role) {
        let of = |key: &str| line[key].as_u64().expect(key);
        let step = (of("task") - 1) * of("epochs") + of("epoch");
        let mut add =
            |tag: String, value: &Value| expected.insert((tag, step), value.as_f64().expect("number"));
        for (name, value) in line["losses"].as_object().expect("losses") {
            add(format!("loss/{}", if name == "loss" { "total" } else { name }), value);
        }
        add("training/accuracy".into(), &line["accuracy"]);
        add("training/learning_rate".into(), &line["lr"]);
        add("training/images_per_second".into(), &line["images_per_second"]);
    }
    let results = json(&run.join("results.json"));
    let matrix: Vec<Vec<f64>> =
        serde_json::from_value(results[role]["accuracy_matrix"].clone()).expect("matrix");
    let last = matrix.len() as u64;
    for (i, row) in matrix.iter().enumerate() {
        let step = i as u64 + 1;
        for (j, accuracy) in row.iter().enumerate() {
            expected.insert((format!("accuracy/task_{}", j + 1), step), *accuracy);
        }
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        expected.insert(("summary/average_accuracy".into(), step), mean);
    }
    for (name, value) in results[role].as_object().expect("summary") {
        if let Some(value) = value.as_f64() {
            expected.insert((format!("summary/{name}"), last), value);
        }
    }
    expected
}

fn check(run: &Path, folder: &Path) {
    for role in ["student", "teacher"] {
        let (_, points) = read(&folder.join(role));
        let expected = expected(run, role);
        for (key, value) in &expected {
            let (_, shown) = points.get(key).unwrap_or_else(|| panic!("{key:?} is missing"));
            assert_eq!(*shown, Logged::Number(*value as f32), "{key:?}");
        }
        // Other values are metrics after earlier tasks, and images.
        for ((tag, step), (_, shown)) in points.iter().filter(|(key, _)| !expected.contains_key(key)) {
            match shown {
                Logged::Number(_) => assert!(tag.starts_with("summary/"), "{tag}"),
                Logged::Image(height, width, png) => {
                    assert_eq!(tag, "accuracy_matrix");
                    let picture =
                        cdl_core::transform::decode(png, cdl_core::transform::Exif::Ignore).expect("PNG");
                    assert_eq!((u64::from(picture.width()), u64::from(picture.height())), (*width, *height));
                    check_matrix_image(
                        &picture,
                        &json(&run.join("results.json"))[role]["accuracy_matrix"],
                        *step,
                    );
                }
            }
        }
        let pictures = points.keys().filter(|(tag, _)| tag == "accuracy_matrix").count() as u64;
        assert_eq!(Some(pictures), json(&run.join("results.json"))["tasks_done"].as_u64());
    }
}

/// Asserts that the image after task `step` has a cell of the right shade for each learned and tested task, and no
/// others.
fn check_matrix_image(picture: &image::RgbImage, matrix: &Value, step: u64) {
    let rows: Vec<Vec<f64>> = serde_json::from_value(matrix.clone()).expect("matrix");
    // A corner of a cell, outside its digits.
    let corner = |column: usize, row: usize| {
        picture.get_pixel_checked(44 + 46 * column as u32, 75 + 38 * row as u32).map(|pixel| pixel.0[0])
    };
    let tasks = step as usize;
    for (i, row) in rows.iter().take(tasks).enumerate() {
        for j in 0..=tasks {
            let red = row.get(j).map_or(255.0, |accuracy| 232.0 - (232.0 - 8.0) * accuracy / 100.0);
            let shade = corner(j, i);
            assert!(shade.is_none_or(|shade| shade == red.round() as u8), "{shade:?} of {row:?} at {j}");
            assert!(shade.is_some() || j == tasks, "a cell for each task");
        }
    }
    assert!(corner(0, tasks).is_none_or(|below| below == 255), "no more rows than tasks");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

#[test]
fn event_files_contain_the_recorded_values() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let [run, without, converted] = ["run", "without", "converted"].map(|name| folder.path().join(name));
    let sets = ["--set", "epochs=2", "--set", "stream.tasks=5", "--set", "batch_size=8", "-q"];
    let start = |dir: &Path, more: &[&str]| {
        let output =
            cdl(&[&["run", "configs/quickstart.toml", "--run-dir", text(dir)][..], &TINY, &sets, more]
                .concat());
        assert!(output.status.success(), "{}", stderr(&output));
    };
    start(&run, &["--set", "record.tensorboard=true"]);
    start(&without, &[]);
    check(&run, &run.join("tensorboard"));
    assert!(!without.join("tensorboard").exists(), "only if requested");
    let model = |dir: &Path| fs::read(dir.join("models/task_5/student.safetensors")).expect("model");
    assert!(model(&run) == model(&without));

    // Files written from a finished run have the same bytes.
    let output = cdl(&[
        "report",
        text(&run),
        text(&without),
        "--out",
        text(&folder.path().join("report.html")),
        "--tensorboard",
        text(&converted),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    for role in ["student", "teacher"] {
        assert!(read(&run.join("tensorboard").join(role)).0 == read(&converted.join("run").join(role)).0);
    }
    check(&without, &converted.join("without"));

    // Wall times are the start of the run plus the time of training.
    let (_, points) = read(&run.join("tensorboard/student"));
    let seconds: f64 = epochs(&run).iter().map(|line| line["seconds"].as_f64().expect("seconds")).sum();
    let times: Vec<f64> = points.values().map(|(time, _)| *time).collect();
    let (first, last) = times.iter().fold((f64::MAX, f64::MIN), |(a, b), t| (a.min(*t), b.max(*t)));
    assert!(last - first < seconds && last - first > 0.0, "{first} {last} {seconds}");
}

/// Folder with a path so long that a pipe buffers only a few messages that contain it.
#[cfg(target_os = "linux")]
fn long_path(parent: &Path) -> PathBuf {
    (0..16).fold(parent.to_path_buf(), |folder, _| folder.join("d".repeat(200)))
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_run_logs_every_epoch_once() {
    use std::{
        io::{BufRead, BufReader},
        os::unix::process::ExitStatusExt,
        process::Stdio,
    };
    let folder = tempfile::tempdir().expect("temporary folder");
    let [run, converted] = [long_path(folder.path()).join("run"), folder.path().join("converted")];
    let sets = ["--set", "epochs=6", "--set", "record.tensorboard=true", "--set", "checkpoint.every_steps=1"];
    let mut child = command()
        .args(["--verbose", "run", "configs/quickstart.toml", "--run-dir", text(&run)])
        .args([&TINY[..], &sets].concat())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("cdl starts");
    // The run logs the path of each checkpoint. The pipe buffers the messages of about 20 of its 48 steps, so it is
    // always killed before its end.
    let mut stderr_lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let mut checkpoints = 0;
    while checkpoints < 6 {
        let line = stderr_lines.next().expect("a line").expect("text");
        checkpoints += usize::from(line.contains(".safetensors written in "));
    }
    child.kill().expect("SIGKILL");
    assert_eq!(child.wait().expect("end").signal(), Some(9));
    let lines = || fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
    assert!((1..24).contains(&lines()), "{}", lines());
    // Epochs after the newest checkpoint are repeated.
    let saved =
        fs::read_dir(run.join("checkpoints")).expect("folder").map(|entry| entry.expect("entry").path());
    let newest = saved.filter(|file| file.extension().is_some_and(|end| end == "safetensors")).max();
    fs::write(newest.expect("a checkpoint"), "damaged").expect("file");
    let output = cdl(&["resume", text(&run)]);
    assert!(output.status.success(), "{}", stderr(&output));
    check(&run, &run.join("tensorboard"));
    assert_eq!(lines(), 24);
    let report = folder.path().join("report.html");
    let output = cdl(&["report", text(&run), "--out", text(&report), "--tensorboard", text(&converted)]);
    assert!(output.status.success(), "{}", stderr(&output));
    for role in ["student", "teacher"] {
        assert!(read(&run.join("tensorboard").join(role)).0 == read(&converted.join("run").join(role)).0);
    }
}

#[test]
fn the_guide_lists_exactly_the_fields_of_metrics_jsonl() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let run = folder.path().join("run");
    let output =
        cdl(&[&["run", "configs/quickstart.toml", "--run-dir", text(&run), "-q"][..], &TINY].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let page = fs::read_to_string(repository().join("docs/guide/runs-and-metrics.md")).expect("page");
    let section = page.split("## ").find(|section| section.starts_with("metrics.jsonl")).expect("section");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut named: Vec<&str> = rows.map(|(name, _)| name).collect();
    let lines = epochs(&run);
    let mut fields: Vec<&str> = lines[0].as_object().expect("object").keys().map(String::as_str).collect();
    let described = cdl(&["describe", "metrics"]);
    let described = String::from_utf8_lossy(&described.stdout).into_owned();
    for field in &fields {
        assert!(described.contains(&format!("  {field}: ")), "{field} in {described}");
    }
    named.sort_unstable();
    fields.sort_unstable();
    assert_eq!(named, fields);
}
