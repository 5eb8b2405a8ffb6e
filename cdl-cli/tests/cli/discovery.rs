//! JSON output, schema of configurations, completions, manual pages, built-in configuration files, and messages.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use crate::common::{cdl, command, repository, stderr, succeed};

fn json(args: &[&str]) -> Value {
    serde_json::from_slice(&succeed(args).stdout).unwrap_or_else(|error| panic!("{args:?}: {error}"))
}

/// Files below a folder, by their paths relative to it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(open) = folders.pop() {
        for path in fs::read_dir(&open).expect("folder").map(|entry| entry.expect("entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").to_string_lossy().into_owned();
                files.insert(name, fs::read(&path).expect("file"));
            }
        }
    }
    files
}

fn schema() -> jsonschema::Validator {
    jsonschema::validator_for(&json(&["schema"])).expect("a JSON Schema")
}

fn from_toml(text: &[u8]) -> Value {
    toml::from_str(std::str::from_utf8(text).expect("UTF-8")).expect("TOML")
}

#[test]
fn without_plugins_only_methods_that_are_missing_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let config = folder.path().join("named.toml");
    let base = repository().join("configs/quickstart.toml").canonicalize().expect("file");
    fs::write(&config, format!("extends = [{base:?}]\nplugins = [\"mine.so\"]\n")).expect("written");
    let config = config.to_str().expect("UTF-8 path");
    let refused = |args: &[&str], expected: &str| {
        let output = cdl(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
    };
    // This program is linked statically.
    refused(&["explain", config], "cannot load plugins");
    succeed(&["explain", config, "--no-plugins"]);
    let mine = ["--no-plugins", "--set", "distiller.name=mine"];
    let missing = "unknown distiller `mine`; ";
    refused(&[&["explain", config][..], &mine].concat(), missing);
    refused(&[&["check", config][..], &mine].concat(), "not loaded, although `plugins` lists it: ");
    refused(&["--no-plugins", "plugin", "check", "./mine.so"], "is not loaded because of --no-plugins");
    // The folders of the search path are not read.
    for (more, code) in [(&[][..], 2), (&["--no-plugins"], 0)] {
        let output =
            command().arg("list").args(more).env("CDL_PLUGIN_PATH", "nowhere").output().expect("cdl");
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    }
    // Commands that do not use the distiller need no plugin for it.
    succeed(&["data", "verify", config, "--set", "distiller.name=mine"]);
}

#[test]
fn every_configuration_fits_the_schema() {
    let schema = schema();
    let configs = files(&repository().join("configs"));
    assert!(configs.len() > 30);
    for (name, text) in configs {
        let errors: Vec<String> = schema.iter_errors(&from_toml(&text)).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
}

#[test]
fn the_schema_rejects_unknown_keys_and_names() {
    let schema = schema();
    let fits = |text: &str| schema.is_valid(&from_toml(text.as_bytes()));
    assert!(fits(
        "epochs = 3\n[learner]\nname = \"l2p\"\ndeep = true\n[distiller]\nname = \"kd\"\nalpha = 0.5"
    ));
    // A layer may change settings without naming the method.
    assert!(fits("[learner]\npool = 20"));
    for wrong in [
        "epoch = 3",
        "epochs = \"three\"",
        "[learner]\nname = \"l3p\"",
        "[learner]\nname = \"coda_prompt\"\ndeep = true",
        "[distiller]\nname = \"kd\"\nalfa = 0.5",
        "distillers = [{ name = \"kd\", alfa = 0.5 }]",
        "[teacher]\nname = \"vit\"\nwieghts = \"x\"",
        "[teacher.learner]\nname = \"coda_prompt\"\ndeep = true",
    ] {
        assert!(!fits(wrong), "{wrong}");
    }
}

#[test]
fn plugins_and_values_are_listed_as_json() {
    let list = json(&["list", "--json"]);
    let kd = list.as_array().expect("list").iter().find(|plugin| plugin["name"] == "kd").expect("kd");
    assert_eq!(kd["kind"], "distiller");
    let described = json(&["describe", "kd", "--json"]);
    assert_eq!(described[0]["defaults"]["alpha"], 0.5);
    assert!(described[0]["schema"]["properties"]["temperature"]["description"].is_string());
    assert_eq!(json(&["describe", "optimizer", "--json"])["defaults"]["name"], "adam");
    let query = json(&["describe", "query", "--json"]);
    assert_eq!(query["schema"]["properties"].as_object().map(|keys| keys.len()), Some(1), "{query}");
    for (key, words) in
        [("query", "\"student\" | \"own\""), ("seed", "integer"), ("plugins", "list of string")]
    {
        let text = String::from_utf8(succeed(&["describe", key]).stdout).expect("UTF-8");
        assert!(text.contains(&format!("  {key}: {words}")), "{text}");
    }

    let values = json(&["explain", "configs/quickstart.toml", "--set", "seed=7", "--json"]);
    let values = values.as_array().expect("list");
    let of = |key: &str| values.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("{key}"));
    assert_eq!((&of("seed")["value"], &of("seed")["origin"]), (&7.into(), &"--set seed=7".into()));
    assert_eq!(of("learner.name")["value"], "coda_prompt");
    assert_eq!(of("learner.name")["origin"], "configs/learner/coda_prompt.toml");
}

#[test]
fn paths_of_plugins_are_relative_to_their_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).expect("folder");
    fs::write(inner.join("base.toml"), "plugins = [\"target/a.so\", \"/b.so\"]\n").expect("written");
    fs::write(folder.path().join("outer.toml"), "extends = \"inner/base.toml\"\n").expect("written");
    let outer = folder.path().join("outer.toml").display().to_string();
    let refused = |more: &[&str]| {
        let output = cdl(&[&["explain", "configs/quickstart.toml", &outer][..], more].concat());
        assert_eq!(output.status.code(), Some(2));
        stderr(&output)
    };
    let first = inner.join("target/a.so");
    let said = refused(&[]);
    assert!(said.contains(&first.display().to_string()) && said.contains("base.toml"), "{said}");
    // The option is relative to the working directory.
    let said = refused(&["--set", "plugins=[\"c.so\"]"]);
    let here = fs::canonicalize(repository()).expect("folder").join("c.so");
    assert!(said.contains(&here.display().to_string()), "{said}");
}

#[test]
fn explained_values_fit_a_terminal_of_80_columns() {
    let output = succeed(&["explain", "configs/quickstart.toml"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(long.is_empty() && text.lines().count() > 40, "{long:#?}");
}

#[test]
fn built_in_configurations_equal_those_of_the_repository() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("configs");
    let dir_name = dir.to_str().expect("UTF-8");
    succeed(&["configs", dir_name]);
    assert!(files(&dir) == files(&repository().join("configs")));
    let again = cdl(&["configs", dir_name]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("exists already"), "{}", stderr(&again));
}

#[test]
fn completions_and_manual_pages_cover_all_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = String::from_utf8(succeed(&["completions", shell]).stdout).expect("UTF-8");
        assert!(script.contains("resume") && script.contains("run-dir"), "{shell}");
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    succeed(&["man", folder.path().to_str().expect("UTF-8")]);
    let pages = files(folder.path());
    for page in ["cdl.1", "cdl-run.1", "cdl-sweep.1", "cdl-plugin-build.1"] {
        assert!(pages.contains_key(page), "{page} of {:?}", pages.keys());
    }
}

#[test]
fn unknown_environment_variables_are_warnings() {
    let mut command = command();
    command.args(["explain", "configs/quickstart.toml"]).env("CDL_EPOCH", "5").env("CDL_SEED", "9");
    let output = command.output().expect("cdl");
    assert!(output.status.success(), "{}", stderr(&output));
    let expected = "warning: environment variable CDL_EPOCH is not a setting and has no effect; did you mean CDL_EPOCHS?";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("seed = 9") && text.contains("epochs = 3"), "{text}");
}

#[test]
fn rust_log_filters_messages_unless_an_option_is_given() {
    let loud = |args: &[&str]| {
        let mut command = command();
        command
            .args(["explain", "configs/quickstart.toml"])
            .args(args)
            .env("RUST_LOG", "error")
            .env("CDL_EPOCH", "5");
        stderr(&command.output().expect("cdl")).contains("CDL_EPOCH")
    };
    assert!(!loud(&[]) && loud(&["--verbose"]));
}
