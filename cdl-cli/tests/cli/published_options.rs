//! The table of published options: every key, name and file in it exists, and its example commands are equivalent.

use std::{collections::BTreeMap, fs, path::Path};

use crate::common::{TINY, cdl, repository, stderr};

/// Keys of the published configuration files.
const YAML: &str = "dataset first_split_size other_split_size schedule schedule_type batch_size optimizer lr momentum \
                    weight_decay max_task dataroot workers validation train_aug rand_split";
const FLAGS: &str = "config gpuid learner_type learner_name prompt_param log_dir t_model s_model KD_method \
                     kd_prompt_param kd_alpha Soft_T ema_coeff random_s memory upper_bound_flag overwrite DW debug_mode";

fn page() -> String {
    fs::read_to_string(repository().join("docs/guide/published-options.md")).expect("the page")
}

/// Rows, of three cells each, of the tables under a heading.
fn rows(page: &str, heading: &str) -> Vec<[String; 3]> {
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).expect("section");
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = |row: &str| -> Vec<String> {
        row.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()
    };
    rows.map(|row| cells(row).try_into().unwrap_or_else(|_| panic!("not three cells: {row}"))).collect()
}

/// Texts between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Cache of the program's output by arguments.
#[derive(Default)]
struct Program(BTreeMap<String, String>);

impl Program {
    fn prints(&mut self, args: &str) -> &str {
        self.0.entry(args.into()).or_insert_with(|| {
            let output = cdl(&args.split_whitespace().collect::<Vec<_>>());
            assert!(output.status.success(), "cdl {args}: {}", stderr(&output));
            String::from_utf8(output.stdout).expect("UTF-8")
        })
    }

    /// True if `cdl describe` lists a key: `a.b`, or `section(plugin).key` for keys of one plugin.
    fn has_key(&mut self, key: &str) -> bool {
        let (first, rest) = key.split_once('.').unwrap_or((key, ""));
        let described =
            |text: &str, key: &str| text.lines().any(|line| line.starts_with(&format!("  {key}: ")));
        if let Some((_, plugin)) = first.trim_end_matches(')').split_once('(') {
            return described(self.prints(&format!("describe {plugin}")), rest);
        }
        // The section may be one distiller or a list, so it is described as a whole.
        if key == "distiller.name" {
            return described(self.prints("describe run"), "distiller");
        }
        let plugin = match first {
            "stream" => "imagenet_r",
            "teacher" | "student" => "vit",
            _ => "run",
        };
        described(self.prints("describe run"), key)
            || (plugin != "run" && described(self.prints(&format!("describe {plugin}")), rest))
    }
}

#[test]
fn every_published_option_has_a_row() {
    let page = page();
    for (heading, options, dashes) in [("Keys", YAML, ""), ("Flags", FLAGS, "--")] {
        let rows = rows(&page, heading);
        let named: Vec<&str> = rows.iter().flat_map(|[published, ..]| quoted(published)).collect();
        for option in options.split_whitespace() {
            let option = format!("{dashes}{option}");
            assert!(named.contains(&option.as_str()), "no row for `{option}`");
        }
    }
}

#[test]
fn every_key_and_name_in_the_table_exists() {
    const SECTIONS: [&str; 7] =
        ["stream", "teacher", "student", "learner", "distiller", "optimizer", "schedule"];
    let page = page();
    let mut program = Program::default();
    let mut checked = 0;
    for [published, here, meaning] in rows(&page, "Keys").into_iter().chain(rows(&page, "Flags")) {
        let keys = quoted(&here);
        assert!(!keys.is_empty() || here == "none" || published == "`--config`", "{published}: {here}");
        for key in &keys {
            match key.strip_prefix("cdl ") {
                None => assert!(program.has_key(key), "{published}: no key `{key}`"),
                Some(command) => {
                    let (command, option) = command.split_once(" --").unwrap_or((command, "config"));
                    let option = option.split(' ').next().unwrap_or_default().to_lowercase();
                    let help = program.prints(&format!("{command} --help")).to_lowercase();
                    assert!(help.contains(&option), "{published}: `cdl {command}` has no {option}");
                }
            }
            checked += 1;
        }
        for word in quoted(&meaning) {
            let key = word.split(" = ").next().unwrap_or_default();
            let section = key.split(['.', '(']).next().unwrap_or_default();
            if key.contains('.') && SECTIONS.contains(&section) {
                assert!(program.has_key(key), "{published}: no key `{key}`");
                checked += 1;
            }
            if let Some(preset) = word.strip_prefix("preset:") {
                assert!(program.prints("describe vit").contains(preset), "{published}: no `{word}`");
            }
        }
        // Names are listed as `published`: `here`.
        let ours = meaning.split("`: `").skip(1).map(|rest| rest.split('`').next().unwrap_or_default());
        for name in ours.filter(|_| keys.iter().any(|key| key.ends_with(".name"))) {
            let (listed, described) =
                (program.prints("list").to_string(), program.prints("describe run").to_string());
            let found = listed.split_whitespace().any(|word| word == name)
                || described.contains(&format!("\"{name}\""));
            assert!(found, "{published}: nothing is called `{name}`");
            checked += 1;
        }
    }
    assert!(checked > 60, "only {checked} keys and names");
}

/// Arguments of the commands `cdl run` on the page.
fn commands(page: &str) -> Vec<Vec<String>> {
    let blocks =
        page.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap_or_default());
    let ours = blocks.filter_map(|block| block.strip_prefix("cdl run "));
    ours.map(|block| block.replace("\\\n", " ").split_whitespace().map(String::from).collect()).collect()
}

#[test]
fn the_example_commands_are_equivalent() {
    let page = page();
    let mut meanings = Vec::new();
    for command in commands(&page) {
        let mut args = vec!["explain".to_string()];
        let mut words = command.into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--run-dir" => drop(words.next()),
                "--overwrite" => {}
                _ => args.push(word),
            }
        }
        let output = cdl(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let values = text.lines().map(|line| line.split("  # ").next().unwrap_or(line).trim().to_string());
        meanings.push(values.filter(|line| !line.is_empty()).collect::<Vec<_>>());
    }
    assert_eq!(meanings.len(), 2);
    assert_eq!(meanings[0], meanings[1]);
    for value in ["learner.name = \"coda_prompt\"", "distiller.layers = 12", "epochs = 35", "seed = 1"] {
        assert!(meanings[0].iter().any(|line| line == value), "no {value} in {:#?}", meanings[0]);
    }
}

#[test]
fn a_run_writes_the_files_that_the_table_lists() {
    let page = page();
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    let mut args = vec!["run", "configs/quickstart.toml", "--run-dir", dir.to_str().expect("path")];
    args.extend(TINY);
    let output = cdl(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut files = 0;
    for [_, here, meaning] in rows(&page, "Output files") {
        for name in quoted(&here).into_iter().chain(quoted(&meaning)) {
            match name.split_once('.') {
                Some((network @ ("student" | "teacher"), measure)) => {
                    let results = fs::read(dir.join("results.json")).expect("results");
                    let results: serde_json::Value = serde_json::from_slice(&results).expect("JSON");
                    assert!(results[network][measure].is_number(), "no {name} in results.json");
                }
                _ => {
                    let file = dir.join(Path::new(&name.replace("task_N", "task_1")));
                    assert!(file.is_file(), "no {name}");
                    files += 1;
                }
            }
        }
    }
    assert!(files >= 8, "{files} files");
}
