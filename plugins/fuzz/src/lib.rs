//! Shared code of the fuzz targets: a folder in memory for readers that take paths, and a function that reads a stream
//! to its end.

use std::{path::Path, sync::LazyLock};

use cdl_core::{
    candle_core::Device,
    error::{Error, Result},
    registry::{self, Settings},
    rng::Rng,
    system::panics,
    traits::{Mode, StreamContext},
};
use tempfile::TempDir;

/// Folder that is created when it is first used.
pub type Folder = LazyLock<TempDir>;

/// Prepares a target for its first input. Panics that a reader catches do not end the process; other panics do.
pub fn start() {
    panics::silence_caught();
    cdl_plugins::link();
}

/// Checks that an error, if there is one, is a user error with a message of limited length.
pub fn judge<T>(outcome: Result<T>) {
    if let Err(error) = outcome {
        let message = error.to_string();
        assert!(error.is_user_error(), "{message}");
        assert!(!message.is_empty() && message.len() < 20_000, "{} bytes of message", message.len());
    }
}

/// Creates a temporary folder, in memory if the system supports it.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let created = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    created.expect("cannot create a folder for inputs")
}

/// Writes `bytes` to the file `name` in `folder`.
pub fn write(folder: &TempDir, name: &str, bytes: &[u8]) {
    let file = folder.path().join(name);
    std::fs::create_dir_all(file.parent().unwrap_or(folder.path())).expect("folder");
    std::fs::write(file, bytes).expect("input");
}

/// Creates a folder with copies of fixtures of the plugins' tests.
pub fn fixtures(names: &[&str]) -> TempDir {
    let (all, copies) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/streams"), folder());
    for name in names.iter().map(Path::new) {
        let copy = copies.path().join(name.file_name().unwrap_or_default());
        std::fs::copy(all.join(name), copy).unwrap_or_else(|e| panic!("{}: {e}", name.display()));
    }
    copies
}

/// Builds the stream `name` of the data set in `folder` and decodes its test images.
pub fn read(name: &str, folder: &TempDir, settings: &str) -> Result<()> {
    let settings = format!(
        "path = \"{}\"\n{settings}\ninput = {{ workers = 0, cache_mb = 0 }}\n\
         transform = {{ image_size = 8, test = \"resize\" }}",
        folder.path().display()
    );
    let settings: Settings = toml::from_str(&settings).map_err(|e| Error::Tasks(e.to_string()))?;
    let context = StreamContext { mode: Mode::Published, device: &Device::Cpu, rng: Rng::new(0) };
    let stream = registry::stream(name, &settings, &context)?;
    for task in 0..stream.tasks().len() {
        stream.test_batches(task, 100).try_for_each(|batch| batch.map(|_| ()))?;
    }
    Ok(())
}
