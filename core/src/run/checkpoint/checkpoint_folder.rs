//! Folder of a run's checkpoints, numbered in the order of writing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    config::CheckpointConfig,
    error::{Error, Result, if_there, io},
    run::{Checkpoint, CheckpointError},
    system::atomic::write_atomic,
    train::Position,
};

/// Checkpoints of a run.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
    config: CheckpointConfig,
    /// Numbers of the checkpoints, newest last.
    numbers: Vec<u64>,
    /// Numbers of unusable checkpoints.
    unusable: Vec<u64>,
}

impl Checkpoints {
    /// Lists the checkpoints in `folder`, which need not exist.
    pub(crate) fn open(folder: PathBuf, config: &CheckpointConfig) -> Result<Self> {
        let mut numbers = Vec::new();
        let entries = if_there(fs::read_dir(&folder)).map_err(io(&folder))?;
        for entry in entries.into_iter().flatten() {
            numbers.extend(number(&entry.map_err(io(&folder))?.file_name().to_string_lossy()));
        }
        numbers.sort_unstable();
        Ok(Self { folder, config: config.clone(), numbers, unusable: Vec::new() })
    }

    /// Returns the newest usable checkpoint and its file. Logs a warning with the reason for each newer one.
    ///
    /// # Errors
    /// No checkpoint is usable, and at least one cannot be read or has another version of the format. Without this
    /// error, the run would start again from the beginning and remove that checkpoint.
    pub(crate) fn newest(&mut self) -> Result<Option<(Checkpoint, PathBuf)>> {
        let mut undamaged = None;
        for &number in self.numbers.iter().rev() {
            let path = self.path(number);
            let bytes =
                crate::system::files::read(&path).map_err(|e| CheckpointError::Unreadable(e.to_string()));
            let reason = match bytes.and_then(|bytes| Checkpoint::from_bytes(&bytes)) {
                Ok(checkpoint) => return Ok(Some((checkpoint, path))),
                Err(reason) => reason,
            };
            tracing::warn!("skipping checkpoint {}: {reason}", path.display());
            if !matches!(reason, CheckpointError::Damaged(_)) && undamaged.is_none() {
                let (owner, reason) = (path.display().to_string(), format!("{reason}; the run is unchanged"));
                undamaged = Some(Error::State { owner, reason });
            }
            self.unusable.push(number);
        }
        undamaged.map_or(Ok(None), Err)
    }

    /// Returns whether the configuration requires a checkpoint at `position`.
    pub(crate) fn due(&self, position: Position) -> bool {
        let CheckpointConfig { every_steps, off, .. } = self.config;
        !off && (position.step == 0 || (every_steps > 0 && position.step.is_multiple_of(every_steps)))
    }

    /// Returns whether checkpoints are written.
    pub(crate) fn enabled(&self) -> bool {
        !self.config.off
    }

    /// Writes the next checkpoint. Then removes unusable checkpoints, and the oldest beyond the number to keep.
    ///
    /// # Errors
    /// A folder without space or permission to write. Existing checkpoints are kept.
    pub(crate) fn save(&mut self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder).map_err(io(&self.folder))?;
        let number = self.numbers.last().map_or(1, |last| last.saturating_add(1));
        let path = self.path(number);
        write_atomic(&path, &checkpoint.to_bytes()?)?;
        self.numbers.push(number);
        for number in std::mem::take(&mut self.unusable) {
            self.remove(number)?;
        }
        while self.numbers.len() > self.config.keep {
            self.remove(self.numbers[0])?;
        }
        Ok(path)
    }

    /// Removes all checkpoints, and the folder if it is then empty.
    pub(crate) fn clear(&mut self) -> Result<()> {
        for number in self.numbers.clone() {
            self.remove(number)?;
        }
        match if_there(fs::remove_dir(&self.folder)) {
            Err(e) if e.kind() != std::io::ErrorKind::DirectoryNotEmpty => Err(io(&self.folder)(e)),
            _ => Ok(()),
        }
    }

    fn remove(&mut self, number: u64) -> Result<()> {
        let path = self.path(number);
        self.numbers.retain(|other| *other != number);
        if_there(fs::remove_file(&path)).map_err(io(path))?;
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(name(number))
    }
}

fn name(number: u64) -> String {
    format!("{number:06}.safetensors")
}

/// Returns the number in the name of a checkpoint.
fn number(file: &str) -> Option<u64> {
    let number = Path::new(file).file_stem()?.to_str()?.parse().ok()?;
    (name(number) == file).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{run::CheckpointMeta, traits::StateDict};
    use candle_core::{Device, Tensor};

    fn checkpoint(step: usize) -> Result<Checkpoint> {
        let meta = CheckpointMeta {
            position: Position { step, ..Position::default() },
            epoch_metrics: Default::default(),
            results: Default::default(),
            skipped: Default::default(),
            metrics_bytes: 0,
            metrics_sha256: None,
            wall_seconds: 0.1,
            config: String::new(),
        };
        let mut tensors = StateDict::default();
        tensors.insert("teacher/x", Tensor::new(&[step as f32, 2.0], &Device::Cpu)?);
        Ok(Checkpoint { meta, tensors })
    }

    fn newest(folder: &Path) -> Option<usize> {
        let mut all = Checkpoints::open(folder.into(), &CheckpointConfig::default()).ok()?;
        all.newest().ok()??.0.meta.position.step.into()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_checkpoints_are_kept_and_clear_removes_all() -> Result<()> {
        let parent = tempfile::tempdir().expect("temporary folder");
        let folder = parent.path().join("checkpoints");
        let config = CheckpointConfig { keep: 3, ..Default::default() };
        let mut all = Checkpoints::open(folder.clone(), &config)?;
        assert!(all.newest()?.is_none());
        for step in 1..=5 {
            all.save(&checkpoint(step)?)?;
        }
        assert_eq!(names(&folder), [3, 4, 5].map(name));
        // A later process continues the numbering. The number of checkpoints to keep may have changed.
        fs::write(folder.join("notes.txt"), "not a checkpoint").expect("written");
        let mut all = Checkpoints::open(folder.clone(), &CheckpointConfig { keep: 1, ..Default::default() })?;
        assert_eq!(newest(&folder), Some(5));
        all.save(&checkpoint(6)?)?;
        assert_eq!(names(&folder), [name(6), "notes.txt".into()]);
        all.clear()?;
        assert_eq!(names(&folder), ["notes.txt"]);
        fs::remove_file(folder.join("notes.txt")).expect("removed");
        all.clear()?;
        assert!(!folder.exists());
        Ok(())
    }

    #[test]
    fn damaged_checkpoints_are_skipped_and_removed_after_the_next_save() -> Result<()> {
        let parent = tempfile::tempdir().expect("temporary folder");
        let folder = parent.path().join("checkpoints");
        let config = CheckpointConfig { keep: 4, ..Default::default() };
        let mut all = Checkpoints::open(folder.clone(), &config)?;
        for step in 1..=4 {
            all.save(&checkpoint(step)?)?;
        }
        for number in 2..=4 {
            let path = folder.join(name(number));
            let bytes = fs::read(&path).expect("checkpoint");
            fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
        }
        let config = CheckpointConfig { keep: 2, ..Default::default() };
        let mut all = Checkpoints::open(folder.clone(), &config)?;
        assert_eq!(all.newest()?.map(|(checkpoint, _)| checkpoint.meta.position.step), Some(1));
        assert_eq!(names(&folder).len(), 4, "damaged checkpoints remain until the next save");
        all.save(&checkpoint(7)?)?;
        assert_eq!(names(&folder), [1, 5].map(name), "the last valid checkpoint is kept");
        assert_eq!(newest(&folder), Some(7));
        Ok(())
    }

    #[test]
    fn checkpoints_of_another_version_are_an_error_unless_an_older_one_is_valid() -> Result<()> {
        let parent = tempfile::tempdir().expect("temporary folder");
        let folder = parent.path().join("checkpoints");
        let mut all = Checkpoints::open(folder.clone(), &CheckpointConfig::default())?;
        all.save(&checkpoint(1)?)?;
        let file = folder.join(name(1));
        let text = fs::read(&file).expect("checkpoint");
        let key = b"\"cdl_checkpoint\":\"1\"";
        let at = text.windows(key.len()).position(|part| part == key).expect("the version");
        let mut newer = text.clone();
        newer[at + key.len() - 2] = b'2';
        fs::write(&file, newer).expect("written");
        let mut all = Checkpoints::open(folder.clone(), &CheckpointConfig::default())?;
        let error = all.newest().map(|_| ()).expect_err("no usable checkpoint").to_string();
        assert!(error.contains("format \"2\"") && error.contains("the run is unchanged"), "{error}");
        // An older valid checkpoint is used.
        all.numbers = vec![1];
        fs::write(folder.join(name(2)), fs::read(&file).expect("checkpoint")).expect("written");
        fs::write(&file, text).expect("written");
        assert_eq!(newest(&folder), Some(1));
        Ok(())
    }

    #[test]
    fn checkpoints_are_due_after_epochs_and_every_n_steps() -> Result<()> {
        let due = |config: CheckpointConfig| -> Result<Vec<usize>> {
            let all = Checkpoints::open("nowhere".into(), &config)?;
            Ok((0..7).filter(|&step| all.due(Position { step, ..Position::default() })).collect())
        };
        assert_eq!(due(CheckpointConfig::default())?, [0]);
        assert_eq!(due(CheckpointConfig { every_steps: 3, ..Default::default() })?, [0, 3, 6]);
        assert!(due(CheckpointConfig { every_steps: 3, off: true, ..Default::default() })?.is_empty());
        Ok(())
    }
}
