//! Functions that run sweeps and read their files.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use serde_json::Value;

use super::{TINY, command, stderr};

/// Files of a sweep that do not depend on when and where it ran.
const TABLES: [&str; 5] = ["sweep.csv", "sweep.md", "sweep.tex", "summary.json", "accuracy.svg"];

pub fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// Returns the arguments of a short `cdl sweep` of the quickstart into `dir`.
pub fn sweep<'a>(dir: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["sweep", "configs/quickstart.toml", "--out", path(dir)][..], &TINY, more].concat()
}

pub fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("file")).expect("JSON")
}

pub fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

pub fn tables(dir: &Path) -> Vec<String> {
    TABLES.iter().map(|name| text(&dir.join(name))).collect()
}

/// Returns name and state of every cell.
pub fn states(dir: &Path) -> Vec<(String, String)> {
    let manifest = json(&dir.join("sweep.json"));
    let cells = manifest["cells"].as_array().expect("cells").iter();
    let word = |value: &Value| value.as_str().expect("text").to_string();
    cells.map(|cell| (word(&cell["name"]), word(&cell["state"]))).collect()
}

/// Returns the state of one cell, and its reason.
pub fn state(dir: &Path, cell: &str) -> (String, String) {
    let manifest = json(&dir.join("sweep.json"));
    let found = manifest["cells"].as_array().expect("cells").iter().find(|entry| entry["name"] == cell);
    let found = found.unwrap_or_else(|| panic!("no cell {cell}"));
    let word = |key: &str| found[key].as_str().unwrap_or_default().to_string();
    (word("state"), word("reason"))
}

/// Locks a cell as another process would, until the file is closed.
pub fn lock_cell(dir: &Path, cell: &str) -> File {
    let logs = dir.join("logs");
    fs::create_dir_all(&logs).expect("folder");
    let mut file = File::create(logs.join(format!("{cell}.lock"))).expect("file");
    file.lock().expect("lock");
    write!(file, "1").expect("written");
    file
}

/// Waits until no process runs a cell of `dir`.
pub fn wait_for_cells(dir: &Path) {
    for file in fs::read_dir(dir.join("logs")).expect("folder").flatten() {
        if file.path().extension().is_some_and(|end| end == "lock") {
            File::open(file.path()).and_then(|file| file.lock()).expect("lock");
        }
    }
}

/// Child process that is killed on drop.
pub struct Started(Option<Child>);

impl Started {
    pub fn new(command: &mut Command) -> Self {
        Self(Some(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts")))
    }

    pub fn of(args: &[&str]) -> Self {
        Self::new(command().args(args))
    }

    /// Waits until a file exists and is not empty.
    pub fn wait_for(&mut self, file: impl Fn() -> Option<PathBuf>) {
        let exists = || file().is_some_and(|file| fs::metadata(file).is_ok_and(|about| about.len() > 0));
        while !exists() {
            let ended = self.0.as_mut().expect("a process").try_wait().expect("child");
            assert!(ended.is_none(), "the process ended too early: {}", stderr(&self.end()));
            sleep(Duration::from_millis(5));
        }
    }

    /// Sends SIGTERM and waits until the process ends.
    pub fn stop(self) -> Output {
        let id = self.0.as_ref().expect("a process").id();
        assert!(Command::new("kill").args(["-TERM", &id.to_string()]).status().expect("kill").success());
        self.wait()
    }

    pub fn kill(mut self) -> Output {
        self.0.as_mut().expect("a process").kill().expect("SIGKILL");
        self.wait()
    }

    pub fn wait(mut self) -> Output {
        self.end()
    }

    fn end(&mut self) -> Output {
        self.0.take().expect("a process").wait_with_output().expect("end")
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
        }
    }
}

/// Returns the file `name` of the first cell of `dir` that has it.
pub fn of_any_cell(dir: &Path, name: &str) -> Option<PathBuf> {
    let cells = fs::read_dir(dir.join("cells")).ok()?;
    cells.flatten().map(|cell| cell.path().join(name)).find(|file| file.exists())
}
