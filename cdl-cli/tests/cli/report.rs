//! `cdl report`: page, figures and tables.

use std::{fs, path::Path};

use crate::common::{TINY, cdl, command, stderr, succeed};
use serde_json::Value;

fn run(dir: &Path, more: &[&str]) {
    let dir = dir.to_str().expect("UTF-8 path");
    let output = cdl(&[&["run", "configs/quickstart.toml", "--run-dir", dir][..], &TINY, more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

/// Value with all digits of the element `id` of a page.
fn value(page: &str, id: &str) -> String {
    let (_, rest) = page.split_once(&format!("<data id=\"{id}\" value=\"")).expect("a value of that name");
    rest.split('"').next().expect("a value").to_string()
}

/// Costs, by their JSON pointers in `results.json`.
const COST: [&str; 9] = [
    "/trainable_parameters",
    "/training_macs/total",
    "/training_macs/query",
    "/training_macs/teacher",
    "/training_macs/forward",
    "/training_macs/backward",
    "/inference_macs/total",
    "/inference_macs/query",
    "/inference_macs/forward",
];

/// Asserts that mean weights of prompts are equal in the results, beside the models, and in the page's tooltips.
fn check_prompts(page: &str, dir: &Path, results: &Value, role: &str) {
    let beside_models =
        fs::read(dir.join("models/task_2/prompt_use.json")).expect("prompts of the last task");
    let beside_models: Value = serde_json::from_slice(&beside_models).expect("JSON");
    assert_eq!(beside_models, results["prompt_use"]);
    let pools = results["prompt_use"][role].as_array().expect("pools");
    assert!(!pools.is_empty());
    for pool in pools {
        assert_eq!(pool["images"], serde_json::json!([10, 10]), "two test images of each of five classes");
        assert!(page.contains(&format!("{role}, {}: mean weight", pool["pool"].as_str().expect("name"))));
        let weights = pool["mean_weights"].as_array().expect("rows").iter();
        let weights =
            weights.flat_map(|row| row.as_array().expect("row")).map(|w| w.as_f64().expect("weight"));
        let largest = weights.fold(0.0, |largest: f64, weight| largest.max(weight.abs()));
        assert!(largest >= 0.01, "{largest}");
        let scale = format!(">-{largest:.2}</text>");
        assert!(page.contains(&scale), "the scale ends at the largest weight: {scale}");
        for (task, row) in pool["mean_weights"].as_array().expect("rows").iter().enumerate() {
            for (prompt, weight) in row.as_array().expect("row").iter().enumerate() {
                let weight = weight.as_f64().expect("weight");
                let tip = format!("task {}, prompt {}: mean weight {weight:.4}<", task + 1, prompt + 1);
                assert!(page.contains(&tip), "{tip}");
            }
        }
    }
}

#[test]
fn page_figures_and_tables_contain_the_recorded_values() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // A name that must be escaped in HTML.
    let (first, second) = (folder.path().join("a<b>&_1"), folder.path().join("second"));
    run(&first, &[]);
    run(&second, &["--set", "seed=2", "--set", "optimizer.lr=4e-3"]);
    let of = |name: &str| folder.path().join(name).display().to_string();
    let (page, figures, tables) = (of("page.html"), of("figures"), of("tables"));
    let runs = [first.to_str().expect("UTF-8"), second.to_str().expect("UTF-8")];
    let more = ["--out", &page, "--figures", &figures, "--format", "both,pdf", "--tables", &tables];
    let output = cdl(&[&["report"][..], &runs, &more].concat());
    assert!(output.status.success(), "{}", stderr(&output));

    let page = fs::read_to_string(&page).expect("page");
    let csv = fs::read_to_string(Path::new(&tables).join("summary.csv")).expect("table");
    let mut lines = csv.lines().skip(1);
    let costs = fs::read_to_string(Path::new(&tables).join("cost.csv")).expect("table");
    let mut costs = costs.lines().skip(1);
    for (number, dir) in [&first, &second].into_iter().enumerate() {
        let results: Value =
            serde_json::from_slice(&fs::read(dir.join("results.json")).expect("results")).expect("JSON");
        for role in ["student", "teacher"] {
            let line = lines.next().expect("a row for each network");
            let mut cells = line.split(',').skip(2);
            for name in ["average_accuracy", "forgetting", "average_incremental_accuracy"]
                .into_iter()
                .chain(["forgetting_from_best", "backward_transfer", "forward_transfer"])
                .chain(["accuracy_over_images", "incremental_accuracy_over_images"])
            {
                let recorded = results[role][name].as_f64();
                assert_eq!(recorded.is_none(), name == "forward_transfer");
                let shown = value(&page, &format!("{}-{role}-{name}", number + 1));
                assert_eq!(shown.parse().ok(), recorded, "{role} {name}");
                assert_eq!(cells.next().and_then(|cell| cell.parse().ok()), recorded, "{role} {name}");
            }
            assert_eq!(value(&page, &format!("{}-{role}-forward_transfer", number + 1)), "null");

            let row = costs.next().expect("a row for each network");
            let mut cells = row.split(',').skip(2);
            for name in COST {
                let recorded = results["cost"][role].pointer(name).and_then(Value::as_u64);
                assert!(recorded.is_some(), "{name}");
                let id = format!("{}-{role}-{}", number + 1, name[1..].replace('/', "_"));
                assert_eq!(value(&page, &id).parse().ok(), recorded, "{id}");
                assert_eq!(cells.next().and_then(|cell| cell.parse().ok()), recorded, "{id}");
            }
            assert_eq!(cells.next().and_then(|cell| cell.parse().ok()), results["wall_seconds"].as_f64());
            check_prompts(&page, dir, &results, role);

            // The confusion matrix agrees with the accuracies of the same test.
            let file = fs::read_to_string(dir.join(format!("confusion_{role}.csv"))).expect("confusion");
            let rows: Vec<Vec<u64>> = file
                .lines()
                .skip(1)
                .map(|line| line.split(',').skip(1).map(|cell| cell.parse().expect("count")).collect())
                .collect();
            let last = results[role]["accuracy_matrix"][1].as_array().expect("row");
            for (task, accuracy) in last.iter().enumerate() {
                let classes = 5 * task..5 * (task + 1);
                let images: u64 = rows[classes.clone()].iter().flatten().sum();
                let right: u64 = classes.map(|class| rows[class][class]).sum();
                assert_eq!(images, 10, "two test images of each of five classes");
                assert_eq!(accuracy.as_f64(), Some(100.0 * right as f64 / images as f64));
            }
            for (class, row) in rows.iter().enumerate() {
                let share = 100.0 * row[class] as f64 / 2.0;
                assert_eq!(results["class_accuracy"][role][class].as_f64(), Some(share));
            }
        }
    }
    assert!(page.contains("a&lt;b&gt;&amp;_1") && !page.contains("a<b>"), "names are escaped");
    assert!(page.contains("<code>seed</code>"), "settings that differ are listed");
    // Long names wrap, and tables scroll in their own boxes, so that narrow windows are not widened.
    for rule in ["\nh1{", "\np{", "\nsummary{"] {
        let rule = page.split_once(rule).and_then(|(_, rest)| rest.split_once('}')).expect("a rule").0;
        assert!(rule.contains("overflow-wrap:anywhere"), "{rule}");
    }
    assert_eq!(page.matches("<table").count(), page.matches("<div class=\"wide\"><table").count());
    for foreign in ["<script", "src=", "url(", "@import", "href=\"http"] {
        assert!(!page.contains(foreign), "{foreign}: the page has external resources");
    }
    for figure in ["accuracy", "forgetting", "class_accuracy", "1_confusion_student", "loss_student_kd"] {
        let svg = fs::read_to_string(Path::new(&figures).join(format!("{figure}.svg"))).expect("figure");
        assert!(svg.starts_with("<svg ") && !svg.contains("var(") && !svg.contains("a<b>"), "{figure}");
    }
    for figure in ["accuracy", "2_accuracy_matrix_teacher", "2_prompts_student_prompt_e_k_0"] {
        let file = Path::new(&figures).join(figure);
        let svg = fs::read_to_string(file.with_extension("svg")).expect("figure");
        let png = image::open(file.with_extension("png")).expect("figure").to_rgb8();
        let (_, size) = svg.split_once("viewBox=\"0 0 ").expect("a size");
        let (size, _) = size.split_once('"').expect("a size");
        assert_eq!(
            size,
            format!("{} {}", png.width() / 3, png.height() / 3),
            "{figure}: not three times the size"
        );
        let ink = |pixel: &&image::Rgb<u8>| pixel.0.iter().all(|channel| *channel < 100);
        assert!(png.pixels().filter(ink).count() > 500, "{figure}: text is missing");
        assert_eq!(png.get_pixel(0, 0).0, [255; 3], "{figure}: not on white");
        let pdf = fs::read(file.with_extension("pdf")).expect("figure");
        let pdf = String::from_utf8_lossy(&pdf);
        // 72 points for 96 pixels.
        let points = size.split(' ').map(|side| (0.75 * side.parse::<f64>().expect("a number")).to_string());
        let page = format!("/MediaBox [0 0 {}]", points.collect::<Vec<_>>().join(" "));
        assert!(pdf.starts_with("%PDF-") && pdf.contains(&page), "{figure}: {page}");
        assert!(pdf.contains("/ToUnicode") && pdf.contains("DejaVuSansCondensed"), "{figure}: no text");
        assert!(!pdf.contains("/Subtype /Image"), "{figure}: shapes are not vectors");
    }
    let latex = fs::read_to_string(Path::new(&tables).join("summary.tex")).expect("table");
    assert!(latex.contains("\\toprule") && latex.contains("a<b>\\&\\_1 & student"), "{latex}");
    assert!(Path::new(&tables).join("summary.md").exists());

    // Names without a folder are in the working directory.
    for (more, name) in [(vec!["--out", "both.html"], "both.html"), (vec![], "report.html")] {
        let output = command().current_dir(&folder).arg("report").args(runs).args(more).output();
        let output = output.expect("cdl starts");
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{name}\n"));
        assert_eq!(fs::read_to_string(folder.path().join(name)).expect("page"), page);
    }
}

#[test]
fn folders_without_a_run_are_errors() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let output = cdl(&["report", folder.path().to_str().expect("UTF-8 path")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("expected a run directory"), "{}", stderr(&output));
}

#[test]
fn output_paths_that_cannot_be_written_are_errors_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    run(&dir, &[]);
    let path = dir.to_str().expect("UTF-8 path");
    let taken = dir.join("log.txt").display().to_string();
    let deeper = format!("{taken}/deeper");
    for (option, place, words) in [
        ("--tables", &taken, "--tables "),
        ("--tables", &deeper, "log.txt is not a folder"),
        ("--figures", &taken, "--figures "),
        ("--tensorboard", &deeper, "--tensorboard "),
        ("--out", &deeper, "--out "),
        ("--out", &taken, "this file is not an HTML page"),
        ("--out", &path.to_string(), "expected a file name"),
    ] {
        let output = cdl(&["report", path, option, place]);
        assert_eq!(output.status.code(), Some(2), "{option} {place}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{option} {place}: {}", stderr(&output));
        assert!(output.stdout.is_empty() && !dir.join("report.html").exists(), "{option} {place}");
    }
    // Subfolders of the given folders.
    let (events, tables) = (folder.path().join("events"), folder.path().join("tables"));
    let tables = ["--tables", tables.to_str().expect("UTF-8 path")];
    for taken in ["run", "other/run/student"] {
        let taken = events.join(taken);
        fs::create_dir_all(taken.parent().expect("folder")).expect("folder");
        fs::write(&taken, "").expect("file");
        let (events, _) = taken.to_str().expect("UTF-8 path").rsplit_once("/run").expect("a run's folder");
        let output = cdl(&[&["report", path, "--tensorboard", events][..], &tables].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(
            stderr(&output).contains(&format!("{} is not a folder", taken.display())),
            "{}",
            stderr(&output)
        );
        assert!(!dir.join("report.html").exists() && !Path::new(tables[1]).exists());
    }
    for below in ["report.html", "report.html/tables"] {
        let below = dir.join(below).display().to_string();
        let output = cdl(&["report", path, "--tables", &below]);
        assert_eq!(output.status.code(), Some(2), "{below}: {}", stderr(&output));
        assert!(stderr(&output).contains("conflicts with the page"), "{}", stderr(&output));
        assert!(!dir.join("report.html").exists());
    }
    let t = dir.join("t").display().to_string();
    for (page, option, words) in [
        ("t/../t/summary.csv", "--tables", "t/summary.csv, which is also written"),
        ("t/summary.csv/page.html", "--tables", "t/summary.csv, which is also written"),
        ("t/run", "--tensorboard", "t/run/student conflicts with the page"),
    ] {
        let page = dir.join(page).display().to_string();
        let output = cdl(&["report", path, "--out", &page, option, &t]);
        assert_eq!(output.status.code(), Some(2), "{page}: {}", stderr(&output));
        assert!(stderr(&output).contains(words) && !dir.join("t").exists(), "{page}: {}", stderr(&output));
    }
    fs::create_dir(dir.join("report.html")).expect("folder");
    let output = cdl(&[&["report", path][..], &tables].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("report.html: expected a file name"), "{}", stderr(&output));
    assert!(output.stdout.is_empty() && !Path::new(tables[1]).exists());
    let new = dir.join("new/page.html");
    let output = cdl(&["report", path, "--out", new.to_str().expect("UTF-8 path")]);
    assert!(output.status.success() && new.exists(), "{}", stderr(&output));
}

#[test]
fn unfinished_runs_are_reported_up_to_their_last_epoch() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (dir, events) = (folder.path().join("run"), folder.path().join("events"));
    run(&dir, &[]);
    let path = dir.to_str().expect("UTF-8 path");
    let report = |words: &str| {
        let tensorboard = events.to_str().expect("UTF-8 path");
        let tables = events.join("tables").display().to_string();
        let output = cdl(&["report", path, "--tensorboard", tensorboard, "--tables", &tables]);
        assert!(output.status.success(), "{}", stderr(&output));
        let page = fs::read_to_string(dir.join("report.html")).expect("page");
        assert!(page.contains(words), "{words} in {}", page.split("<h2>").next().expect("head"));
        (page, stderr(&output))
    };
    let (page, messages) = report("; 2 of 2 tasks done, ");
    assert!(!page.contains("stopped") && !messages.contains("tasks done"), "{messages}");

    // Pretends that the stream has more tasks.
    let file = dir.join("results.json");
    let whole = fs::read_to_string(&file).expect("results");
    fs::write(&file, whole.replace("\"tasks\": 2", "\"tasks\": 5")).expect("results");
    let (_, messages) = report("; 2 of 5 tasks done, stopped, ");
    assert!(messages.contains("run: 2 of 5 tasks done, stopped"), "{messages}");
    let lock = cdl_core::system::lock::lock(&dir).expect("lock");
    report("; 2 of 5 tasks done, still running, ");
    // A run in its first task has no results yet.
    fs::remove_file(&file).expect("removed");
    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics");
    let first = metrics.lines().next().expect("a line");
    fs::write(dir.join("metrics.jsonl"), format!("{first}\n{{\"task\"")).expect("metrics");
    let (page, _) =
        report("; 0 of 2 tasks done, still running in task 1 after epoch 1 of 1 of the teacher</p>");
    assert!(page.contains("<h2>Losses</h2>") && !page.contains("<h2>Accuracy matrix</h2>"));
    drop(lock);
    fs::write(dir.join("metrics.jsonl"), "").expect("metrics");
    report("; 0 of 2 tasks done, stopped</p>");
}

#[test]
fn selected_prompts_are_drawn_as_shares_and_reproduced_by_eval() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("l2p");
    run(&dir, &["configs/learner/l2p.toml", "--set", "learner.pool=6", "--set", "learner.top_k=2"]);
    let path = dir.to_str().expect("UTF-8 path");
    let output = cdl(&["report", path]);
    assert!(output.status.success(), "{}", stderr(&output));
    let page = fs::read_to_string(dir.join("report.html")).expect("page");
    let results = fs::read(dir.join("results.json")).expect("results");
    let results: Value = serde_json::from_slice(&results).expect("JSON");
    for role in ["student", "teacher"] {
        let pools = results["prompt_use"][role].as_array().expect("pools");
        assert_eq!(pools.len(), 1);
        for (task, row) in pools[0]["counts"].as_array().expect("rows").iter().enumerate() {
            let counts: Vec<u64> = row.as_array().expect("row").iter().filter_map(Value::as_u64).collect();
            assert_eq!((counts.len(), counts.iter().sum()), (6, 20), "ten images select two of six prompts");
            for (prompt, count) in counts.iter().enumerate() {
                let share = 100.0 * *count as f64 / 10.0;
                let tip = format!("task {}, prompt {}: {share:.1} % of the images<", task + 1, prompt + 1);
                assert!(page.contains(&tip), "{tip}");
            }
        }
    }
    for (task, times) in [("2", 2), ("1", 2)] {
        let output = cdl(&["eval", path, "--task", task]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            text.matches("prompts are selected as in the run").count(),
            times,
            "{text}{}",
            stderr(&output)
        );
    }
}

#[test]
fn older_runs_are_reported_and_large_confusion_matrices_are_images() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("older");
    run(&dir, &[]);
    let file = dir.join("results.json");
    let mut results: Value = serde_json::from_slice(&fs::read(&file).expect("results")).expect("JSON");
    let fields = results.as_object_mut().expect("object");
    for field in ["prompt_use", "cost"] {
        assert!(fields.remove(field).is_some());
    }
    fs::write(&file, results.to_string()).expect("results");
    // Three of four images of class 0 are classified as class 119, all others correctly.
    let names: Vec<String> = (0..120).map(|class| format!("class {class}")).collect();
    let mut csv = format!("true_class,{}\n", names.join(","));
    for (truth, name) in names.iter().enumerate() {
        let count = |predicted: usize| match (truth, predicted) {
            (0, 0) => "1",
            (0, 119) => "3",
            (truth, predicted) if truth == predicted && truth > 0 => "4",
            _ => "0",
        };
        csv += &format!("{name},{}\n", (0..120).map(count).collect::<Vec<_>>().join(","));
    }
    fs::write(dir.join("confusion_student.csv"), csv).expect("confusion");
    let figures = folder.path().join("figures");
    let more = ["--figures", figures.to_str().expect("UTF-8 path"), "--format", "png"];
    let output = cdl(&[&["report", dir.to_str().expect("UTF-8 path")][..], &more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let page = fs::read_to_string(dir.join("report.html")).expect("page");
    assert!(!page.contains("<h2>Cost</h2>") && !page.contains("<h2>Prompts</h2>"));
    assert!(page.contains("href=\"data:image/png;base64,") && !page.contains("class 7 classified as"));
    assert!(!figures.join("accuracy.svg").exists() && figures.join("accuracy.png").exists());
    // 600 px for 120 classes, 64 and 72 px from the corner, at three times the size.
    let picture = image::open(figures.join("confusion_student.png")).expect("figure").to_rgb8();
    let at = |truth: u32, predicted: u32| {
        picture.get_pixel(3 * (64 + 5 * predicted) + 7, 3 * (72 + 5 * truth) + 7).0[0]
    };
    assert_eq!([at(5, 5), at(5, 7)], [8, 232]);
    // Shades are square roots: a half for a quarter of the images.
    assert_eq!([at(0, 0), at(0, 119)], [120, 38]);
}

/// Version 1 of the formats has `trained_numbers` and counts tasks and epochs from 0.
#[test]
fn format_version_1_is_read_and_newer_versions_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let run = folder.path().join("run");
    let name = run.to_str().expect("UTF-8");
    succeed(&[&["run", "configs/quickstart.toml", "--run-dir", name, "-q"][..], &TINY].concat());
    let page = |file: &str| {
        let out = folder.path().join(file);
        succeed(&["report", name, "--out", out.to_str().expect("UTF-8"), "--tables", name]);
        let cost = fs::read_to_string(run.join("cost.csv")).expect("cost");
        (fs::read_to_string(out).expect("page"), cost)
    };
    let now = page("now.html");

    let results = fs::read_to_string(run.join("results.json")).expect("results");
    let first = results.replace("trainable_parameters", "trained_numbers").replacen("\"format\": 2,", "", 1);
    assert_ne!(first, results);
    fs::write(run.join("results.json"), first).expect("results");
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let earlier = |line: &str| {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        for key in ["task", "epoch"] {
            line[key] = (line[key].as_u64().expect("number") - 1).into();
        }
        line.as_object_mut().expect("object").remove("format");
        line.to_string() + "\n"
    };
    fs::write(run.join("metrics.jsonl"), metrics.lines().map(earlier).collect::<String>()).expect("metrics");
    assert!(page("first.html") == now);

    fs::write(run.join("results.json"), results.replacen("\"format\": 2", "\"format\": 3", 1))
        .expect("results");
    let refused = cdl(&["report", name]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(
        stderr(&refused).contains("results.json has format 3; this version of cdl reads formats up to 2")
    );
}

/// Results of the runs in `dirs`.
fn results(dirs: &[&Path]) -> Vec<Value> {
    let read = |dir: &&Path| fs::read(dir.join("results.json")).expect("results");
    dirs.iter().map(|dir| serde_json::from_slice(&read(dir)).expect("JSON")).collect()
}

#[test]
fn seeds_of_one_configuration_are_drawn_and_tabulated_as_means() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let place = |name: &str| folder.path().join(name);
    let seeds: Vec<_> = ["1", "2", "3"].map(|seed| place(&format!("base_seed_{seed}"))).into();
    for (dir, seed) in seeds.iter().zip(["seed=1", "seed=2", "seed=3"]) {
        // Settings that do not change results do not make another configuration.
        run(dir, &["--set", seed, "--set", &format!("stream.input.prefetch={}", seed.len())]);
    }
    run(&place("alone"), &["configs/distiller/none.toml"]);
    let dirs: Vec<&Path> = seeds.iter().map(|dir| dir.as_path()).collect();
    let (out, figures) = (place("page.html").display().to_string(), place("figures").display().to_string());
    let tables = place("tables").display().to_string();
    let alone = place("alone");
    let runs = [dirs[0], &alone, dirs[1], dirs[2]].map(|dir| dir.to_str().expect("UTF-8 path"));
    let more = ["--out", &out, "--figures", &figures, "--format", "svg,png,pdf", "--tables", &tables];
    let output = succeed(&[&["report"][..], &runs, &more].concat());
    // Renderers warn about lines without length, such as bands of values that do not differ.
    assert!(!stderr(&output).contains("failed"), "{}", stderr(&output));
    let page = fs::read_to_string(&out).expect("page");
    let read = |file: &str| fs::read_to_string(folder.path().join(file)).expect("file");

    let (repeated, alone) = (results(&dirs), &results(&[&alone])[0]);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    for role in ["student", "teacher"] {
        let values: Vec<f64> =
            repeated.iter().map(|run| run[role]["average_accuracy"].as_f64().expect("number")).collect();
        let spread = (values.iter().map(|value| (value - mean(&values)).powi(2)).sum::<f64>() / 2.0).sqrt();
        let shown = format!("{:.2}</data> ± {spread:.2}", mean(&values));
        let id = format!("{role}-average_accuracy");
        assert!(page.contains(&shown), "{shown}");
        assert_eq!(value(&page, &format!("1-{id}")).parse().ok(), Some(mean(&values)));
        assert_eq!(value(&page, &format!("2-{id}")).parse().ok(), alone[role]["average_accuracy"].as_f64());
        for (number, recorded) in (1..).zip(&values) {
            assert_eq!(value(&page, &format!("run-{number}-{id}")).parse().ok(), Some(*recorded));
        }
        let shown = format!("| base | {role} | 3 | {:.2} ± {spread:.2} |", mean(&values));
        assert!(read("tables/summary.md").contains(&shown), "{shown}");
        let shown = format!("base & {role} & 3 & ${:.2} \\pm {spread:.2}$", mean(&values));
        assert!(read("tables/summary.tex").contains(&shown), "{shown}");

        let cells: Vec<f64> =
            repeated.iter().map(|run| run[role]["accuracy_matrix"][1][0].as_f64().expect("number")).collect();
        let matrix = read(&format!("figures/1_accuracy_matrix_{role}.svg"));
        let tip = format!("<title>task 1 after task 2: {:.2} ± ", mean(&cells));
        assert!(matrix.contains(&tip), "{tip} in {matrix}");
        // Two test images of each of ten classes in each of three runs.
        let confusion = read(&format!("figures/1_confusion_{role}.svg"));
        let counts = confusion
            .split("classified as")
            .skip(1)
            .filter_map(|tip| tip.split_once(": ")?.1.split(' ').next()?.parse::<usize>().ok());
        assert_eq!(counts.sum::<usize>(), 60);
    }
    for (text, file) in
        [("sample standard deviation", &page), ("sample standard deviation", &read("tables/summary.md"))]
    {
        assert!(file.contains(text), "{text}");
    }
    assert!(
        page.contains(
            "<b>base</b>: embedded, learner coda_prompt, distiller kd_prompts, 1 epoch, 4 training"
        )
    );
    let mut varying_classes = 0;
    for (role, class) in
        ["student", "teacher"].into_iter().flat_map(|role| (0..10).map(move |class| (role, class)))
    {
        let values = repeated.iter().map(|run| run["class_accuracy"][role][class].as_f64().expect("number"));
        let values: Vec<f64> = values.collect();
        varying_classes += usize::from(values.iter().any(|value| *value != values[0]));
    }
    for name in ["accuracy", "class_accuracy", "loss_teacher_ce", "loss_student_ce"] {
        let svg = read(&format!("figures/{name}.svg"));
        let legend = svg.matches(">base").count();
        assert!(legend > 0 && !svg.contains("seed"), "{name}: a series for each configuration");
        // A configuration with one run has no band. A loss has one epoch in each task, so its band is a line.
        let bands = svg.matches("fill-opacity").count() + svg.matches("stroke-opacity").count();
        let expected = if name == "class_accuracy" { varying_classes } else { 2 };
        assert_eq!(bands, expected, "{name}");
    }
    // A table for programs has a row for each network of each run.
    assert_eq!(read("tables/summary.csv").lines().count(), 9);
    // The prompts of the runs are not averaged; all heat maps but the first are folded.
    let prompts =
        page.split_once("<h2>Prompts</h2>").expect("a section").1.split("<h2>").next().expect("a section");
    let (shown, folded) = prompts.split_once("<details>").expect("folded plots");
    assert_eq!(shown.matches("<svg").count(), 1);
    let folded = (folded.matches("<svg").count(), folded.matches("</details>").count());
    assert_eq!(folded, (prompts.matches("<svg").count() - 1, 1));
    for number in 1..=3 {
        assert!(folder.path().join(format!("figures/1_{number}_prompts_student_prompt_e_k_0.svg")).exists());
    }
}

#[test]
fn differences_come_first_and_other_data_or_epochs_are_warnings() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let place = |name: &str| folder.path().join(name);
    run(&place("base"), &[]);
    run(&place("rate"), &["--set", "optimizer.lr=4e-3", "--set", "seed=2"]);
    run(&place("long"), &["--set", "epochs=2", "--set", "stream.train_per_class=8"]);
    let report = |others: &[&str]| {
        let out = place("page.html").display().to_string();
        let runs = [&["base"][..], others].concat();
        let runs: Vec<String> = runs.into_iter().map(|name| place(name).display().to_string()).collect();
        let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
        succeed(&[&["report"][..], &runs, &["--out", &out]].concat());
        fs::read_to_string(out).expect("page")
    };
    let page = report(&["rate", "long"]);
    let (head, body) = page.split_once("<h2>Summary</h2>").expect("a summary");
    for text in [
        "<b>base</b>: embedded, learner coda_prompt, distiller kd_prompts, 1 epoch, 4 training and 2 test images a class, \
         seed 1; 2 of 2 tasks done, ",
        "<b>long</b>: embedded, learner coda_prompt, distiller kd_prompts, 2 epochs, 8 training and 2 test images a class, \
         seed 1; ",
        "do not use the same data (stream.train_per_class differs).",
        "not trained for the same number of epochs (1, 1 and 2).",
        "<h2>Settings that differ</h2>",
        "<code>optimizer.<wbr>lr</code>",
        "<code>seed</code>",
    ] {
        assert!(head.contains(text), "{text} in {head}");
    }
    assert!(!head.contains("batch_size") && !body.contains("Settings that differ"));
    // Two steps of 10 images in each task, and four in each of two epochs.
    for (name, step) in [("base", 2), ("long", 4), ("long", 8)] {
        for task in [1, 2] {
            let tip = format!("<title>{name}, task {task}, step {step}: ");
            assert!(body.contains(&tip), "{tip}");
        }
    }
    let page = report(&["rate"]);
    assert!(page.contains("<h2>Settings that differ</h2>") && !page.contains("Warning:"));
    let page = report(&[]);
    assert!(!page.contains("Settings that differ") && !page.contains("Warning:"));

    // Plots keep at least 85 % of their size in narrow windows, so that text is legible; smaller windows scroll.
    for style in page.split("<svg ").skip(1).filter_map(|svg| svg.split_once("style=\"")?.1.split('"').next())
    {
        let number = |name: &str| {
            let text = style.split(';').find_map(|rule| rule.strip_prefix(name)?.strip_suffix("px"));
            text.and_then(|text| text.parse::<f64>().ok()).expect(style)
        };
        assert!(number("min-width:") >= 0.84 * number("width:"), "{style}");
    }
}
