//! README and the pages of docs/: commands succeed, links resolve, and quoted code equals that of the repository.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{command, repository};

/// Markdown files below a folder.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            pages.extend(self::pages(&path));
        } else if name.ends_with(".md") {
            pages.push(path);
        }
    }
    pages.sort();
    pages
}

fn text(page: &Path) -> String {
    fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()))
}

/// Contents of the fenced blocks of one language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let (mut blocks, mut open) = (Vec::new(), None::<(bool, String)>);
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(tag)) => open = Some((tag == language, String::new())),
            (Some((wanted, block)), Some(_)) => {
                blocks.extend(wanted.then(|| std::mem::take(block)));
                open = None;
            }
            (Some((_, block)), None) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    blocks
}

/// Anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    };
    heading.trim().to_lowercase().chars().filter_map(kept).collect()
}

#[test]
fn every_link_resolves() {
    let mut checked = 0;
    for page in pages(&repository()) {
        let text = text(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") || link.contains(['`', ' ']) {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.with_file_name("").join(file) };
            assert!(target.exists(), "{}: `{link}` does not exist", page.display());
            if !heading.is_empty() {
                let headings = self::text(&target);
                let found = headings.lines().filter(|line| line.starts_with('#'));
                let found =
                    found.map(|line| anchor(line.trim_start_matches('#'))).any(|name| name == heading);
                assert!(found, "{}: no heading for `{link}`", page.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 60, "only {checked} links");
}

#[test]
fn every_page_of_the_guide_is_in_its_table_of_contents() {
    let guide = repository().join("docs/guide");
    let contents = text(&guide.join("SUMMARY.md"));
    for page in pages(&guide) {
        let name = page.file_name().expect("name").to_string_lossy().into_owned();
        assert!(name == "SUMMARY.md" || contents.contains(&format!("({name})")), "{name}");
    }
}

#[test]
fn the_method_in_readme_equals_the_file_that_it_names() {
    let readme = text(&repository().join("README.md"));
    let method = blocks(&readme, "rust").pop().expect("a method");
    let file = text(&repository().join("examples/src/bin/logit_matching.rs"));
    assert!(method.lines().count() > 20 && file.contains(&method), "{method}");
}

#[test]
fn readme_is_short() {
    let lines = text(&repository().join("README.md")).lines().count();
    assert!(lines <= 150, "{lines} lines");
}

/// Runs all `sh` blocks of a page as one script, in a folder with links to the folders of the repository.
#[cfg(unix)]
fn run(page: &Path, program: &Path) {
    let script = blocks(&text(page), "sh").concat();
    let folder = tempfile::tempdir().expect("temporary folder");
    for name in ["configs", "docs", "examples", "plugins"] {
        std::os::unix::fs::symlink(repository().join(name), folder.path().join(name)).expect("link");
    }
    let mut bash = Command::new("bash");
    let settings = ["EPOCHS=1", "BATCH_SIZE=10", "STREAM__TRAIN_PER_CLASS=10", "STREAM__TEST_PER_CLASS=2"];
    for (key, value) in settings.iter().filter_map(|setting| setting.split_once('=')) {
        bash.env(format!("CDL_{key}"), value);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [program.parent().expect("folder").to_path_buf()];
    let path = std::env::join_paths(folders.into_iter().chain(std::env::split_paths(&path))).expect("PATH");
    let output = bash.env("PATH", path).args(["-euo", "pipefail", "-c", &script]).current_dir(&folder);
    let output = output.output().expect("bash starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{script}\n{stderr}", page.display());
}

#[test]
#[cfg(unix)]
fn commands_of_readme_and_guide_succeed() {
    let command = command();
    let program = Path::new(command.get_program());
    let mut with_commands = 0;
    for page in pages(&repository().join("docs/guide")).into_iter().chain([repository().join("README.md")]) {
        if !blocks(&text(&page), "sh").is_empty() {
            run(&page, program);
            with_commands += 1;
        }
    }
    assert!(with_commands >= 8, "only {with_commands} pages with commands");
}
