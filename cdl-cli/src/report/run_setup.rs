//! Description of a run in words: data, methods, length, seeds and progress.

use cdl_core::train::EpochReport;

use super::recorded_run::{ROLES, RecordedRun, peak_memory};
use crate::terminal::count;

impl RecordedRun {
    /// Value of a setting.
    fn setting(&self, key: &str) -> Option<&toml::Value> {
        let mut parts = key.split('.');
        let first = self.config.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    /// Setting as text without quotes; `?` if there is none.
    fn text(&self, key: &str) -> String {
        match self.setting(key) {
            Some(toml::Value::String(text)) => text.clone(),
            value => value.map_or("?".into(), toml::Value::to_string),
        }
    }

    /// Setting as a number that is not negative.
    fn number(&self, key: &str) -> Option<usize> {
        self.setting(key)?.as_integer()?.try_into().ok()
    }

    /// Names of the learners and distillers.
    pub fn methods(&self) -> String {
        let [student, teacher] = ROLES.map(|role| {
            let own = format!("{}.learner.name", role.as_str());
            self.text(if self.setting(&own).is_some() { &own } else { "learner.name" })
        });
        let learners = match student == teacher {
            true => format!("learner {student}"),
            false => format!("learners {student} (student) and {teacher} (teacher)"),
        };
        let name = |distiller: &toml::Value| Some(distiller.get("name")?.as_str()?.to_string());
        let distillers = match self.setting("distillers").and_then(toml::Value::as_array) {
            Some(several) => several.iter().filter_map(name).collect::<Vec<_>>().join(" + "),
            None => self.text("distiller.name"),
        };
        format!("{learners}, distiller {distillers}")
    }

    /// Data set, methods, epochs and images of a class.
    pub fn setup(&self) -> String {
        let epochs = self.number("epochs").map(|epochs| format!(", {}", count(epochs, "epoch")));
        let (stream, methods) = (self.text("stream.name"), self.methods());
        format!("{stream}, {methods}{}{}", epochs.unwrap_or_default(), self.images())
    }

    /// Numbers of images of a class, to follow other values on a line; empty if unknown.
    fn images(&self) -> String {
        let counted = |split: &str| {
            let classes = self.record["class_counts"].as_array()?;
            let counts: Vec<u64> = classes.iter().filter_map(|class| class[split].as_u64()).collect();
            let (least, most) = (counts.iter().min()?, counts.iter().max()?);
            Some(if least == most { least.to_string() } else { format!("{least} to {most}") })
        };
        // Earlier versions did not record the numbers.
        let limit =
            |split: &str| Some(format!("up to {}", self.number(&format!("stream.{split}_per_class"))?));
        let [train, test] = ["train", "test"].map(|split| counted(split).or_else(|| limit(split)));
        match train.zip(test) {
            Some((train, test)) => format!(", {train} training and {test} test images a class"),
            None => String::new(),
        }
    }

    /// Seeds of the run.
    pub fn seeds(&self) -> String {
        let order = self.number("stream.class_order_seed").map(|seed| format!(", class order {seed}"));
        format!("seed {}{}", self.text("seed"), order.unwrap_or_default())
    }

    /// Seeds, progress, time and memory.
    pub fn course(&self) -> String {
        let seconds = match self.results.tasks_done {
            0 => String::new(),
            _ => format!(", {:.1} s", self.results.wall_seconds),
        };
        format!("{}; {}{seconds}{}", self.seeds(), self.progress(), peak_memory(&self.results))
    }

    /// Number of training steps of an epoch. Every step has a whole batch.
    pub fn steps(&self, epoch: &EpochReport) -> u64 {
        let images = epoch.images_per_second * epoch.seconds;
        let batch = self.number("batch_size").unwrap_or(1).max(1);
        (images / batch as f64).round().max(1.0) as u64
    }
}
