//! Division of classes into tasks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    data::InputSettings,
    error::{Error, Result, nearest, suggest},
    rng::Rng,
    traits::{Mode, StreamContext, Task},
    transform::TransformConfig,
};

/// Label by which a stream's generator is derived from the run's.
pub(crate) const STREAM_RNG: &str = "stream";

/// Order of the classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClassOrder {
    /// Order of the data set.
    Fixed,
    /// Random order, drawn with the run's seed.
    Shuffled,
}

/// Division of classes into tasks. Every image stream has these settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TaskSettings {
    /// Number of tasks of equal size; must divide the number of classes. Default: one task.
    pub tasks: Option<usize>,
    /// Explicit tasks as lists of class names, each class exactly once. Overrides `tasks` and `class_order`. Classes that
    /// share a name are called by name and label: `crane (134)`.
    pub task_classes: Option<Vec<Vec<String>>>,
    /// `fixed`: the data set's order of classes; `shuffled`: an order drawn with the run's seed. Default: fixed in mode
    /// `published`, shuffled in mode `corrected`.
    pub class_order: Option<ClassOrder>,
    /// Seed of a shuffled class order, so that the order can be varied independently of other random numbers. The order
    /// equals that of a run with this `seed`. Default: the run's seed.
    pub class_order_seed: Option<u64>,
    /// Joint training: all classes in one task, the upper bound of continual learning. Overrides `tasks` and
    /// `task_classes`. Some methods do not suit a single task in their published form (APT's student then learns from a
    /// teacher without prompts); their settings offer an alternative.
    pub joint: bool,
    /// Number of tasks after which the run stops. The division into tasks does not change; the heads of the networks
    /// keep the unused classes. Default: all tasks.
    pub max_tasks: Option<usize>,
    /// Share of each class's training images, above 0 and below 1, that is held out and replaces the test set, to
    /// choose settings without the test set; published: 0.2. The same images are held out for every seed. Default:
    /// none, and the test set is used.
    pub validation: Option<f64>,
    /// Number of images of earlier tasks in the rehearsal memory, divided evenly among the classes seen before and
    /// drawn with the run's seed; a class loses images as new classes arrive. With a memory, cross-entropy and
    /// distillation are over all classes seen so far instead of the current task's. 0: no rehearsal.
    pub memory: usize,
    /// Maximum number of training images of each class; the first ones are used.
    pub train_per_class: Option<usize>,
    /// Maximum number of test images of each class; the first ones are used.
    pub test_per_class: Option<usize>,
    /// Crops, sizes and flips.
    pub transform: TransformConfig,
    /// Threads that prepare images, image cache, and treatment of damaged images.
    pub input: InputSettings,
}

impl TaskSettings {
    /// Returns the class order. The default depends on `mode`.
    pub(super) fn order(&self, mode: Mode) -> ClassOrder {
        self.class_order.unwrap_or(match mode {
            Mode::Published => ClassOrder::Fixed,
            Mode::Corrected => ClassOrder::Shuffled,
        })
    }
}

/// Returns the class order (indices of the set's classes, in stream order) and the tasks.
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
            format!("expected a divisor of {}, the number of classes, or `task_classes`", classes.len());
        return Err(Error::setting("tasks", count, expected));
    }
    let mut order: Vec<usize> = (0..classes.len()).collect();
    let shuffled = settings.order(context.mode) == ClassOrder::Shuffled;
    match settings.class_order_seed {
        Some(seed) if shuffled => Rng::new(seed).derive(STREAM_RNG).derive("class order").shuffle(&mut order),
        Some(seed) => {
            let expected =
                "it has no effect, since the class order is fixed; add `class_order = \"shuffled\"`";
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
                let task = index + 1;
                let shared: Vec<String> = classes
                    .iter()
                    .filter(|class| class.strip_prefix(name.as_str()).is_some_and(is_label))
                    .map(|class| format!("`{class}`"))
                    .collect();
                if shared.len() > 1 {
                    let shared = shared.join(" and ");
                    return Err(Error::Tasks(format!(
                        "task {task} of `task_classes` names `{name}`, which stands for several classes: {shared}"
                    )));
                }
                let near = suggest(&nearest(name, classes.iter().map(String::as_str)));
                let unknown =
                    format!("task {task} of `task_classes` names `{name}`, which is not a class{near}");
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

/// Returns whether a text is the suffix of a class that shares its name with others: ` (134)`.
fn is_label(suffix: &str) -> bool {
    let label = suffix.strip_prefix(" (").and_then(|rest| rest.strip_suffix(')'));
    label.is_some_and(|label| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()))
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
    fn class_order_seed_gives_the_class_order_of_a_run_with_that_seed() -> Result<()> {
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
