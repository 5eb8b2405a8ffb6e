//! The folder of a run's checkpoints, numbered as they were written.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    config::CheckpointConfig,
    error::{Error, Result, if_there, io},
    run::{Checkpoint, Unusable},
    system::atomic::write_atomic,
    train::Position,
};

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
    pub(crate) fn open(folder: PathBuf, config: &CheckpointConfig) -> Result<Self> {
        let mut numbers = Vec::new();
        let entries = if_there(fs::read_dir(&folder)).map_err(io(&folder))?;
        for entry in entries.into_iter().flatten() {
            numbers.extend(number(&entry.map_err(io(&folder))?.file_name().to_string_lossy()));
        }
        numbers.sort_unstable();
        Ok(Self { folder, config: config.clone(), numbers, damaged: Vec::new() })
    }

    /// The newest checkpoint that is good, and its file. Each newer one is named with what is wrong with it.
    ///
    /// # Errors
    /// None is good, and not all of them are damaged: one cannot be read, or is of another version of the format. A run
    /// that began anew would remove it.
    pub(crate) fn newest(&mut self) -> Result<Option<(Checkpoint, PathBuf)>> {
        let mut sound = None;
        for &number in self.numbers.iter().rev() {
            let path = self.path(number);
            let bytes = crate::system::files::read(&path).map_err(|e| Unusable::Unread(e.to_string()));
            let reason = match bytes.and_then(|bytes| Checkpoint::from_bytes(&bytes)) {
                Ok(checkpoint) => return Ok(Some((checkpoint, path))),
                Err(reason) => reason,
            };
            tracing::warn!("checkpoint {} is passed over: {reason}", path.display());
            if !matches!(reason, Unusable::Damaged(_)) && sound.is_none() {
                let (owner, reason) = (path.display().to_string(), format!("{reason}; nothing was changed"));
                sound = Some(Error::State { owner, reason });
            }
            self.damaged.push(number);
        }
        sound.map_or(Ok(None), Err)
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
        fs::create_dir_all(&self.folder).map_err(io(&self.folder))?;
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

/// The number in a checkpoint's name.
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
            tally: Default::default(),
            results: Default::default(),
            left_out: Default::default(),
            metrics_bytes: 0,
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
    fn the_newest_are_kept_and_all_go_when_the_run_is_done() -> Result<()> {
        let parent = tempfile::tempdir().expect("temporary folder");
        let folder = parent.path().join("checkpoints");
        let config = CheckpointConfig { keep: 3, ..Default::default() };
        let mut all = Checkpoints::open(folder.clone(), &config)?;
        assert!(all.newest()?.is_none());
        for step in 1..=5 {
            all.save(&checkpoint(step)?)?;
        }
        assert_eq!(names(&folder), [3, 4, 5].map(name));
        // Another process goes on counting, and keeps as many as it is told.
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
    fn damaged_ones_are_passed_over_and_go_once_a_new_one_is_safe() -> Result<()> {
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
        assert_eq!(names(&folder).len(), 4, "nothing goes before a new one is safe");
        all.save(&checkpoint(7)?)?;
        assert_eq!(names(&folder), [1, 5].map(name), "the good one before stays");
        assert_eq!(newest(&folder), Some(7));
        Ok(())
    }

    #[test]
    fn what_is_only_of_another_version_is_not_thrown_away() -> Result<()> {
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
        let error = all.newest().map(|_| ()).expect_err("nothing to go on from").to_string();
        assert!(error.contains("format \"2\"") && error.contains("nothing was changed"), "{error}");
        // A good one before it is taken.
        all.numbers = vec![1];
        fs::write(folder.join(name(2)), fs::read(&file).expect("checkpoint")).expect("written");
        fs::write(&file, text).expect("written");
        assert_eq!(newest(&folder), Some(1));
        Ok(())
    }

    #[test]
    fn checkpoints_are_due_after_epochs_and_every_so_many_steps() -> Result<()> {
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
