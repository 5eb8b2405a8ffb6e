//! How classes become tasks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    data::InputSettings,
    error::{Error, Result, nearest, suggest},
    rng::Rng,
    traits::{Mode, StreamContext, Task},
    transform::TransformConfig,
};

/// Name by which a stream's generator is derived from the run's.
pub(crate) const STREAM_RNG: &str = "stream";

/// Order of the classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClassOrder {
    /// As the data set counts them.
    Fixed,
    /// Drawn by the run's seed.
    Shuffled,
}

/// How classes become tasks; every image stream has these settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TaskSettings {
    /// Number of tasks of equal size; must divide the number of classes. Default: one task.
    pub tasks: Option<usize>,
    /// Explicit tasks as lists of class names, each class exactly once; they win over `tasks` and `class_order`.
    pub task_classes: Option<Vec<Vec<String>>>,
    /// `fixed`: classes in the data set's order, `shuffled`: by the run's seed. Default: fixed in mode `published`,
    /// shuffled in mode `corrected`.
    pub class_order: Option<ClassOrder>,
    /// The seed of a shuffled class order, so that orders can be varied apart from everything else that is random; the
    /// order is that of a run with this `seed`. Default: the run's seed.
    pub class_order_seed: Option<u64>,
    /// All classes at once, as one task: joint training, the upper bound of continual learning. It wins over `tasks`
    /// and `task_classes`. Methods whose published form is at odds with a single task (APT's student then learns from
    /// a teacher without prompts) have settings for that.
    pub joint: bool,
    /// Stop after the first so many tasks. They are those of the whole stream: the classes that never come stay in
    /// the networks' heads, unused. Default: all tasks.
    pub max_tasks: Option<usize>,
    /// Share of each class's training images, above 0 and below 1, that is held out and tested on in place of the test
    /// set, to choose settings without it; published: 0.2. The same images are held out whatever the run's seed.
    /// Default: none, and the test set is used.
    pub validation: Option<f64>,
    /// Images of earlier tasks that are kept for rehearsal, shared out evenly over the classes seen before (drawn by
    /// the run's seed; a class gives up images as others arrive). With a memory, cross-entropy and distillation are
    /// over all classes seen so far instead of the current task's. 0: no rehearsal.
    pub memory: usize,
    /// Use only the first so many training images of each class.
    pub train_per_class: Option<usize>,
    /// Use only the first so many test images of each class.
    pub test_per_class: Option<usize>,
    /// Crops, sizes and flips.
    pub transform: TransformConfig,
    /// Threads that prepare images, memory for them, and what happens to damaged ones.
    pub input: InputSettings,
}

impl TaskSettings {
    /// The order of the classes, by `mode` if nothing is said.
    pub(super) fn order(&self, mode: Mode) -> ClassOrder {
        self.class_order.unwrap_or(match mode {
            Mode::Published => ClassOrder::Fixed,
            Mode::Corrected => ClassOrder::Shuffled,
        })
    }
}

/// The order of the classes (set's numbers in stream order) and the tasks.
pub(super) fn order_and_tasks(
    classes: &[String],
    settings: &TaskSettings,
    context: &StreamContext<'_>,
) -> Result<(Vec<usize>, Vec<Task>)> {
    if let (Some(lists), false) = (&settings.task_classes, settings.joint) {
        return explicit_tasks(classes, lists);
    }
    let count = if settings.joint { 1 } else { settings.tasks.unwrap_or(1) };
    if count == 0 || !classes.len().is_multiple_of(count) {
        let expected =
            format!("expected a divisor of the {} classes, or explicit `task_classes`", classes.len());
        return Err(Error::setting("tasks", count, expected));
    }
    let mut order: Vec<usize> = (0..classes.len()).collect();
    let shuffled = settings.order(context.mode) == ClassOrder::Shuffled;
    match settings.class_order_seed {
        Some(seed) if shuffled => Rng::new(seed).derive(STREAM_RNG).derive("class order").shuffle(&mut order),
        Some(seed) => {
            let expected = "nothing is drawn, for the class order is fixed; add `class_order = \"shuffled\"`";
            return Err(Error::setting("class_order_seed", seed, expected));
        }
        None if shuffled => context.rng.derive("class order").shuffle(&mut order),
        None => {}
    }
    let size = classes.len() / count;
    let tasks =
        (0..count).map(|index| Task { index, count, classes: index * size..(index + 1) * size }).collect();
    Ok((order, tasks))
}

fn explicit_tasks(classes: &[String], lists: &[Vec<String>]) -> Result<(Vec<usize>, Vec<Task>)> {
    let mut order = Vec::new();
    let mut tasks = Vec::new();
    for (index, list) in lists.iter().enumerate() {
        let start = order.len();
        for name in list {
            let Some(class) = classes.iter().position(|class| class == name) else {
                let near = suggest(&nearest(name, classes.iter().map(String::as_str)));
                let task = index + 1;
                let unknown =
                    format!("task {task} of `task_classes` names `{name}`, which is no class{near}");
                return Err(Error::Tasks(unknown));
            };
            if order.contains(&class) {
                return Err(Error::Tasks(format!("`task_classes` names class `{name}` twice")));
            }
            order.push(class);
        }
        if list.is_empty() {
            return Err(Error::Tasks(format!("task {} of `task_classes` has no classes", index + 1)));
        }
        tasks.push(Task { index, count: lists.len(), classes: start..order.len() });
    }
    match (0..classes.len()).find(|class| !order.contains(class)) {
        Some(missing) => Err(Error::Tasks(format!(
            "`task_classes` does not cover all classes: `{}` is in no task",
            classes[missing]
        ))),
        None => Ok((order, tasks)),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn context(mode: Mode) -> StreamContext<'static> {
        StreamContext { mode, device: &Device::Cpu, rng: Rng::new(3) }
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("class{i}")).collect()
    }

    #[test]
    fn equal_tasks_cover_the_classes_in_order_or_shuffled() -> Result<()> {
        let settings = TaskSettings { tasks: Some(5), ..Default::default() };
        let (order, tasks) = order_and_tasks(&names(10), &settings, &context(Mode::Published))?;
        assert_eq!(order, (0..10).collect::<Vec<_>>());
        assert_eq!(tasks[4], Task { index: 4, count: 5, classes: 8..10 });
        let (mut order, _) = order_and_tasks(&names(10), &settings, &context(Mode::Corrected))?;
        assert_ne!(order, (0..10).collect::<Vec<_>>());
        order.sort();
        assert_eq!(order, (0..10).collect::<Vec<_>>());
        Ok(())
    }

    #[test]
    fn a_class_order_with_a_seed_of_its_own_is_that_of_a_run_with_this_seed() -> Result<()> {
        let of = |class_order_seed: Option<u64>, mode: Mode| {
            let settings = TaskSettings { tasks: Some(5), class_order_seed, ..Default::default() };
            let context = StreamContext { rng: Rng::new(3).derive(STREAM_RNG), ..context(mode) };
            order_and_tasks(&names(10), &settings, &context).map(|(order, _)| order)
        };
        assert_eq!(of(Some(3), Mode::Corrected)?, of(None, Mode::Corrected)?, "the run's seed is 3");
        assert_ne!(of(Some(4), Mode::Corrected)?, of(None, Mode::Corrected)?);
        let refused = of(Some(4), Mode::Published).map_err(|e| e.to_string());
        assert!(refused.is_err_and(|e| e.contains("class_order_seed = 4") && e.contains("shuffled")));
        Ok(())
    }

    #[test]
    fn task_lists_must_name_each_class_once() {
        let list = |names: &[&[&str]]| -> Vec<Vec<String>> {
            names.iter().map(|n| n.iter().map(|s| s.to_string()).collect()).collect()
        };
        let classes = names(3);
        let error = |lists: Vec<Vec<String>>| {
            explicit_tasks(&classes, &lists).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(error(list(&[&["class0"], &["class0", "class1", "class2"]])).contains("twice"));
        let (order, tasks) =
            explicit_tasks(&classes, &list(&[&["class2"], &["class0", "class1"]])).unwrap_or_default();
        assert_eq!(order, [2, 0, 1]);
        assert_eq!(tasks.iter().map(Task::seen).collect::<Vec<_>>(), [1, 3]);
    }
}
