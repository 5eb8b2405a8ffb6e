//! The folder of a run's checkpoints, numbered as they were written.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Checkpoint, CheckpointConfig};
use crate::{Position, Result, atomic::write_atomic};

/// The checkpoints of one run.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
    config: CheckpointConfig,
    /// Numbers, the newest last.
    numbers: Vec<u64>,
    /// Those of them that were found damaged.
    damaged: Vec<u64>,
}

impl Checkpoints {
    /// Those in `folder`, which need not be there.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub(crate) fn open(folder: PathBuf, config: &CheckpointConfig) -> Result<Self> {
        let mut numbers = Vec::new();
        match fs::read_dir(&folder) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry.map_err(crate::error::io(&folder))?.file_name();
                    numbers.extend(number(&name.to_string_lossy()));
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(crate::error::io(folder)(e)),
        }
        numbers.sort_unstable();
        Ok(Self { folder, config: config.clone(), numbers, damaged: Vec::new() })
    }

    /// The newest checkpoint that is good, and its file. Each newer one is named with what is wrong with it.
    pub(crate) fn newest(&mut self) -> Option<(Checkpoint, PathBuf)> {
        for &number in self.numbers.iter().rev() {
            let path = self.path(number);
            let bytes = fs::read(&path).map_err(|e| format!("it cannot be read: {e}"));
            match bytes.and_then(|bytes| Checkpoint::from_bytes(&bytes)) {
                Ok(checkpoint) => return Some((checkpoint, path)),
                Err(reason) => {
                    tracing::warn!(
                        "checkpoint {} is damaged, the one before is tried: {reason}",
                        path.display()
                    );
                    self.damaged.push(number);
                }
            }
        }
        None
    }

    /// Whether a checkpoint is to be written at `position` by itself.
    pub(crate) fn due(&self, position: Position) -> bool {
        let CheckpointConfig { every_steps, off, .. } = self.config;
        !off && (position.step == 0 || (every_steps > 0 && position.step.is_multiple_of(every_steps)))
    }

    /// Whether checkpoints are written.
    pub(crate) fn on(&self) -> bool {
        !self.config.off
    }

    /// Writes the next one. Once it is safe, damaged ones and the oldest beyond those to be kept are removed.
    ///
    /// # Errors
    /// No space, no permission; those that are there stay as they are.
    pub(crate) fn save(&mut self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder).map_err(crate::error::io(&self.folder))?;
        let number = self.numbers.last().map_or(1, |last| last.saturating_add(1));
        let path = self.path(number);
        write_atomic(&path, &checkpoint.to_bytes()?)?;
        self.numbers.push(number);
        for damaged in std::mem::take(&mut self.damaged) {
            self.remove(damaged)?;
        }
        while self.numbers.len() > self.config.keep {
            self.remove(self.numbers[0])?;
        }
        Ok(path)
    }

    /// Removes all of them, and the folder if nothing else is in it.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub(crate) fn clear(&mut self) -> Result<()> {
        for number in self.numbers.clone() {
            self.remove(number)?;
        }
        match fs::remove_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other.map_err(crate::error::io(&self.folder)),
        }
    }

    fn remove(&mut self, number: u64) -> Result<()> {
        let path = self.path(number);
        self.numbers.retain(|other| *other != number);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(crate::error::io(path)(e)),
            _ => Ok(()),
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(name(number))
    }
}

fn name(number: u64) -> String {
    format!("{number:06}.safetensors")
}

/// The number in a checkpoint's name.
fn number(file: &str) -> Option<u64> {
    let number = Path::new(file).file_stem()?.to_str()?.parse().ok()?;
    (name(number) == file).then_some(number)
}
