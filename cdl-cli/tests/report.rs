//! Runs as a page, figures and tables, through the program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{fs, path::Path};

use common::{TINY, cdl, said};
use serde_json::Value;

fn run(dir: &Path, more: &[&str]) {
    let dir = dir.to_str().expect("UTF-8 path");
    let output = cdl(&[&["run", "configs/quickstart.toml", "--run-dir", dir][..], &TINY, more].concat());
    assert!(output.status.success(), "{}", said(&output));
}

/// What the page says under `id`, all digits.
fn value(page: &str, id: &str) -> String {
    let (_, rest) = page.split_once(&format!("<data id=\"{id}\" value=\"")).expect("a value of that name");
    rest.split('"').next().expect("a value").to_string()
}

#[test]
fn page_figures_and_tables_have_the_numbers_of_the_results() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // A name that is markup, if it were taken for it.
    let (first, second) = (folder.path().join("a<b>&_1"), folder.path().join("second"));
    run(&first, &[]);
    run(&second, &["--set", "seed=2"]);
    let of = |name: &str| folder.path().join(name).display().to_string();
    let (page, figures, tables) = (of("page.html"), of("figures"), of("tables"));
    let runs = [first.to_str().expect("UTF-8"), second.to_str().expect("UTF-8")];
    let more = ["--out", &page, "--figures", &figures, "--tables", &tables];
    let output = cdl(&[&["report"][..], &runs, &more].concat());
    assert!(output.status.success(), "{}", said(&output));

    let page = fs::read_to_string(&page).expect("page");
    let csv = fs::read_to_string(Path::new(&tables).join("summary.csv")).expect("table");
    let mut lines = csv.lines().skip(1);
    for (number, dir) in [&first, &second].into_iter().enumerate() {
        let results: Value =
            serde_json::from_slice(&fs::read(dir.join("results.json")).expect("results")).expect("JSON");
        for role in ["student", "teacher"] {
            let line = lines.next().expect("a row for each network");
            let mut cells = line.split(',').skip(2);
            for name in ["average_accuracy", "forgetting", "average_incremental_accuracy"]
                .into_iter()
                .chain(["forgetting_from_best", "backward_transfer"])
            {
                let recorded = results[role][name].as_f64();
                let shown = value(&page, &format!("{}-{role}-{name}", number + 1));
                assert_eq!(shown.parse().ok(), recorded, "{role} {name}");
                assert_eq!(cells.next().and_then(|cell| cell.parse().ok()), recorded, "{role} {name}");
            }
            assert_eq!(value(&page, &format!("{}-{role}-forward_transfer", number + 1)), "null");

            // What the networks took each class for, against the accuracies of the same test.
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
    assert!(page.contains("a&lt;b&gt;&amp;_1") && !page.contains("a<b>"), "names are text");
    assert!(page.contains("<code>seed</code>"), "what the runs have different");
    for foreign in ["<script", "src=", "url(", "@import", "href=\"http"] {
        assert!(!page.contains(foreign), "{foreign}: the page needs nothing else");
    }
    for figure in ["accuracy", "forgetting", "class_accuracy", "1_confusion_student", "loss_student_kd"] {
        let svg = fs::read_to_string(Path::new(&figures).join(format!("{figure}.svg"))).expect("figure");
        assert!(svg.starts_with("<svg ") && !svg.contains("var(") && !svg.contains("a<b>"), "{figure}");
    }
    let latex = fs::read_to_string(Path::new(&tables).join("summary.tex")).expect("table");
    assert!(latex.contains("\\toprule") && latex.contains("a<b>\\&\\_1 & student"), "{latex}");
    assert!(Path::new(&tables).join("summary.md").exists());
}

#[test]
fn what_is_no_finished_run_is_named() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let output = cdl(&["report", folder.path().to_str().expect("UTF-8 path")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("has the run finished a task?"), "{}", said(&output));
}
