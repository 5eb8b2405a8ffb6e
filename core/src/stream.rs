//! The stream of tasks: its contract, and [`ImageStream`], which makes one of any set of labelled images.

use std::{ops::Range, sync::Arc};

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Error, Mode, Quirk, Result, Rng, Role,
    error::nearest,
    transform::{TransformConfig, write_pixels},
};

/// One task: a range of the classes in stream order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Counted from 0.
    pub index: usize,
    /// Number of tasks in the stream.
    pub count: usize,
    /// Its classes; those before are past, those after unseen. In losses: the classes that are learned now, which
    /// with a rehearsal memory are all seen so far.
    pub classes: Range<usize>,
}

impl Task {
    /// Classes seen up to and including this task.
    pub fn seen(&self) -> usize {
        self.classes.end
    }
}

/// Images with their labels.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(B, 3, S, S)` float32 in `[0, 1]`, not normalised.
    pub pixels: Tensor,
    /// `(B,)` u32, positions in stream order over all classes.
    pub labels: Tensor,
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.elem_count()
    }

    /// Whether it holds no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Names one pass over a task's training images; order and augmentation follow from it and the stream's seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochKey {
    /// Task index.
    pub task: usize,
    /// Who learns.
    pub role: Role,
    /// Counted from 0.
    pub epoch: usize,
}

/// Batches, one after the other.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch>> + 'a>;

/// Classes arriving task by task.
pub trait TaskStream: Send + Sync {
    /// Class names in stream order.
    fn classes(&self) -> &[String];

    /// All tasks in order.
    fn tasks(&self) -> &[Task];

    /// Side of the images in pixels.
    fn image_size(&self) -> usize;

    /// Classes among which a task is learned: its own, or all seen so far where images of earlier ones are rehearsed.
    fn train_classes(&self, task: usize) -> Range<usize> {
        self.tasks()[task].classes.clone()
    }

    /// Departures of the published code that this stream can switch, for the run record.
    fn quirks(&self) -> Vec<Quirk> {
        Vec::new()
    }

    /// Training images of a task, rehearsed ones included.
    fn train_count(&self, task: usize) -> usize;

    /// Test images of a task.
    fn test_count(&self, task: usize) -> usize;

    /// SHA-256 over classes, order and membership of both splits: equal splits have equal fingerprints.
    fn fingerprint(&self) -> &str;

    /// Shuffled, augmented batches; the last incomplete one is dropped.
    fn train_batches(&self, key: EpochKey, batch_size: usize) -> Batches<'_>;

    /// All test images of a task in a fixed order, the last batch possibly smaller.
    fn test_batches(&self, task: usize, batch_size: usize) -> Batches<'_>;
}

/// What a stream is built for.
#[derive(Debug)]
pub struct StreamContext<'a> {
    /// `published` or `corrected`: defaults of settings that differ between the two.
    pub mode: Mode,
    /// Where batches go.
    pub device: &'a Device,
    /// Generator for class order, batch order and augmentation.
    pub rng: Rng,
}

/// A set of labelled images that can be had one by one.
pub trait ImageSet: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class of image `index`, counted in the set's own order of classes.
    fn label(&self, index: usize) -> usize;

    /// Decodes image `index`.
    ///
    /// # Errors
    /// An unreadable image, by file name.
    fn image(&self, index: usize) -> Result<RgbImage>;

    /// A stable name of image `index` for fingerprints: a relative path or a number.
    fn id(&self, index: usize) -> String;
}

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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<usize>,
    /// Explicit tasks as lists of class names, each class exactly once; they win over `tasks` and `class_order`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_classes: Option<Vec<Vec<String>>>,
    /// `fixed`: classes in the data set's order, `shuffled`: by the run's seed. Default: fixed in mode `published`,
    /// shuffled in mode `corrected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_order: Option<ClassOrder>,
    /// All classes at once, as one task: joint training, the upper bound of continual learning. It wins over `tasks`
    /// and `task_classes`. Methods whose published form is at odds with a single task (APT's student then learns from
    /// a teacher without prompts) have settings for that.
    pub joint: bool,
    /// Stop after the first so many tasks. They are those of the whole stream: the classes that never come stay in
    /// the networks' heads, unused. Default: all tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tasks: Option<usize>,
    /// Share of each class's training images, above 0 and below 1, that is held out and tested on in place of the test
    /// set, to choose settings without it; published: 0.2. The same images are held out whatever the run's seed.
    /// Default: none, and the test set is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<f64>,
    /// Images of earlier tasks that are kept for rehearsal, shared out evenly over the classes seen before (drawn by
    /// the run's seed; a class gives up images as others arrive). With a memory, cross-entropy and distillation are
    /// over all classes seen so far instead of the current task's. 0: no rehearsal.
    pub memory: usize,
    /// Use only the first so many training images of each class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_per_class: Option<usize>,
    /// Use only the first so many test images of each class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_per_class: Option<usize>,
    /// Crops, sizes and flips.
    pub transform: TransformConfig,
}

/// A [`TaskStream`] over two image sets.
pub struct ImageStream {
    classes: Vec<String>,
    tasks: Vec<Task>,
    train: Split,
    test: Split,
    transform: TransformConfig,
    /// Whether classes come as the data set counts them, not by seed or by the user's lists.
    fixed_order: bool,
    memory: Memory,
    rng: Rng,
    device: Device,
    fingerprint: String,
}

/// One image set, sorted into tasks.
struct Split {
    set: Arc<dyn ImageSet>,
    /// By task: image number and label in stream order.
    members: Vec<Vec<(usize, u32)>>,
}

impl ImageStream {
    /// Sorts both sets into tasks. `name` is used in messages; `classes` are the sets' class names in their order.
    ///
    /// # Errors
    /// Settings that do not fit the classes, and classes without images, by name.
    pub fn new(
        name: &str,
        classes: Vec<String>,
        train: Box<dyn ImageSet>,
        test: Box<dyn ImageSet>,
        settings: &TaskSettings,
        context: &StreamContext<'_>,
    ) -> Result<Self> {
        settings.transform.validate().map_err(Error::Tasks)?;
        let (order, mut tasks) = order_and_tasks(&classes, settings, context)?;
        let listed = settings.task_classes.is_some() && !settings.joint;
        let fixed_order = !listed && settings.order(context.mode) == ClassOrder::Fixed;
        if settings.max_tasks == Some(0) {
            return Err(Error::setting("max_tasks", 0, "expected at least 1"));
        }
        tasks.truncate(settings.max_tasks.unwrap_or(usize::MAX));
        let train: Arc<dyn ImageSet> = train.into();
        let (test, held_out): (Arc<dyn ImageSet>, _) = match settings.validation {
            Some(share) => (train.clone(), Some(hold_out(name, &classes, train.as_ref(), share)?)),
            None => (test.into(), None),
        };
        let mut position = vec![0; classes.len()];
        for (at, &class) in order.iter().enumerate() {
            position[class] = at;
        }
        // `held` says which half of a divided training set is wanted.
        let sort = |set: Arc<dyn ImageSet>, what: &str, held: bool, limit: Option<usize>| -> Result<Split> {
            let mut counts = vec![0; classes.len()];
            let mut members = vec![Vec::new(); tasks.len()];
            for index in 0..set.len() {
                let class = set.label(index);
                let at = *position.get(class).ok_or_else(|| {
                    Error::Tasks(format!(
                        "{name}: image {} has label {class}, of {} classes",
                        set.id(index),
                        classes.len()
                    ))
                })?;
                if held_out.as_ref().is_some_and(|held_out| held_out[index] != held) {
                    continue;
                }
                counts[class] += 1;
                if limit.is_some_and(|limit| counts[class] > limit) {
                    continue;
                }
                let task = tasks.iter().position(|task| task.classes.contains(&at));
                if let Some(task) = task {
                    members[task].push((index, at as u32));
                }
            }
            match counts.iter().position(|&count| count == 0) {
                Some(class) => Err(Error::Tasks(format!(
                    "{name}: class `{}` has no {what} images; remove the class or add images",
                    classes[class]
                ))),
                None => Ok(Split { set, members }),
            }
        };
        if settings.train_per_class == Some(0) {
            return Err(Error::setting("train_per_class", 0, "expected at least 1"));
        }
        if settings.test_per_class == Some(0) {
            return Err(Error::setting("test_per_class", 0, "expected at least 1"));
        }
        let train = sort(train, "training", false, settings.train_per_class)?;
        let test = sort(test, "test", true, settings.test_per_class)?;
        let classes: Vec<String> = order.iter().map(|&class| classes[class].clone()).collect();
        let fingerprint = fingerprint(&classes, [&train, &test]);
        let memory = Memory::new(settings.memory, &train, classes.len(), &context.rng.derive("memory"));
        Ok(Self {
            classes,
            tasks,
            train,
            test,
            transform: settings.transform.clone(),
            fixed_order,
            memory,
            rng: context.rng.derive("batches"),
            device: context.device.clone(),
            fingerprint,
        })
    }

    /// Decodes every image that the run will use, so that a damaged one is found before the first step.
    ///
    /// # Errors
    /// The first damaged image in order, by file name.
    pub fn verify(&self) -> Result<()> {
        for split in [&self.train, &self.test] {
            let members: Vec<usize> = split.members.iter().flatten().map(|&(index, _)| index).collect();
            let failures: Vec<_> = members.par_iter().map(|&index| split.set.image(index).err()).collect();
            if let Some(error) = failures.into_iter().flatten().next() {
                return Err(error);
            }
        }
        Ok(())
    }

    fn batch(
        &self,
        split: &Split,
        members: &[(usize, u32)],
        transform: impl Fn(usize, &RgbImage) -> RgbImage + Sync,
    ) -> Result<Batch> {
        let side = self.transform.image_size;
        let mut pixels = vec![0f32; members.len() * 3 * side * side];
        pixels
            .par_chunks_mut(3 * side * side)
            .zip(members)
            .enumerate()
            .map(|(at, (pixels, &(index, _)))| {
                write_pixels(&transform(at, &split.set.image(index)?), pixels);
                Ok(())
            })
            // Collected in order, so that of several damaged images always the first is named.
            .collect::<Vec<Result<()>>>()
            .into_iter()
            .collect::<Result<()>>()?;
        let labels: Vec<u32> = members.iter().map(|&(_, label)| label).collect();
        Ok(Batch {
            pixels: Tensor::from_vec(pixels, (members.len(), 3, side, side), &self.device)?,
            labels: Tensor::from_vec(labels, members.len(), &self.device)?,
        })
    }
}

/// Images of earlier tasks that are seen again.
struct Memory {
    /// How many in all.
    size: usize,
    /// By class in stream order: its images (number and label) in the order in which they are kept.
    classes: Vec<Vec<(usize, u32)>>,
}

impl Memory {
    fn new(size: usize, train: &Split, classes: usize, rng: &Rng) -> Self {
        let mut by_class = vec![Vec::new(); classes];
        if size > 0 {
            for &(image, label) in train.members.iter().flatten() {
                by_class[label as usize].push((image, label));
            }
            for (class, images) in by_class.iter_mut().enumerate() {
                rng.derive(&format!("class {class}")).shuffle(images);
            }
        }
        Self { size, classes: by_class }
    }

    /// What is rehearsed in `task`: the same share of every class before it, the first ones taking what is left over.
    fn before(&self, task: &Task) -> impl Iterator<Item = (usize, u32)> {
        let past = task.classes.start;
        let share = move |class: usize| match past {
            0 => 0,
            _ => self.size / past + usize::from(class < self.size % past),
        };
        self.classes[..past]
            .iter()
            .enumerate()
            .flat_map(move |(class, images)| images.iter().take(share(class)).copied())
    }
}

impl TaskSettings {
    /// The order of the classes, by `mode` if nothing is said.
    fn order(&self, mode: Mode) -> ClassOrder {
        self.class_order.unwrap_or(match mode {
            Mode::Published => ClassOrder::Fixed,
            Mode::Corrected => ClassOrder::Shuffled,
        })
    }
}

impl TaskStream for ImageStream {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    fn image_size(&self) -> usize {
        self.transform.image_size
    }

    fn train_classes(&self, task: usize) -> Range<usize> {
        let Range { start, end } = self.tasks[task].classes;
        if self.memory.size == 0 { start..end } else { 0..end }
    }

    fn quirks(&self) -> Vec<Quirk> {
        vec![("fixed_class_order", self.fixed_order)]
    }

    fn train_count(&self, task: usize) -> usize {
        self.train.members[task].len() + self.memory.before(&self.tasks[task]).count()
    }

    fn test_count(&self, task: usize) -> usize {
        self.test.members[task].len()
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn train_batches(&self, key: EpochKey, batch_size: usize) -> Batches<'_> {
        let EpochKey { task, role, epoch } = key;
        let rng = self.rng.derive(&format!("task {task}, {}, epoch {epoch}", role.as_str()));
        let mut members = self.train.members[task].clone();
        members.extend(self.memory.before(&self.tasks[task]));
        rng.derive("order").shuffle(&mut members);
        let count = members.len() / batch_size;
        Box::new((0..count).map(move |step| {
            let members = &members[step * batch_size..(step + 1) * batch_size];
            self.batch(&self.train, members, |at, image| {
                // A generator for each image: what it draws does not depend on which thread decodes it.
                let mut rng = rng.derive(&format!("image {}", step * batch_size + at));
                self.transform.train(image, &mut rng)
            })
        }))
    }

    fn test_batches(&self, task: usize, batch_size: usize) -> Batches<'_> {
        let batches = self.test.members[task].chunks(batch_size);
        Box::new(
            batches.map(|members| self.batch(&self.test, members, |_, image| self.transform.test(image))),
        )
    }
}

/// The order of the classes (set's numbers in stream order) and the tasks.
fn order_and_tasks(
    classes: &[String],
    settings: &TaskSettings,
    context: &StreamContext<'_>,
) -> Result<(Vec<usize>, Vec<Task>)> {
    if let (Some(lists), false) = (&settings.task_classes, settings.joint) {
        return explicit_tasks(classes, lists);
    }
    let count = if settings.joint { 1 } else { settings.tasks.unwrap_or(1) };
    if count == 0 || !classes.len().is_multiple_of(count) {
        return Err(Error::setting(
            "tasks",
            count,
            format!("expected a divisor of the {} classes, or explicit `task_classes`", classes.len()),
        ));
    }
    let mut order: Vec<usize> = (0..classes.len()).collect();
    if settings.order(context.mode) == ClassOrder::Shuffled {
        context.rng.derive("class order").shuffle(&mut order);
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
                let near = nearest(name, classes.iter().map(String::as_str));
                let near = near.map(|n| format!(" (did you mean `{n}`?)")).unwrap_or_default();
                return Err(Error::Tasks(format!(
                    "task {} of `task_classes` names `{name}`, which is no class{near}",
                    index + 1
                )));
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

/// Which images of the training set are held out for validation: `share` of each class, at least one and not all.
fn hold_out(name: &str, classes: &[String], train: &dyn ImageSet, share: f64) -> Result<Vec<bool>> {
    if !(share > 0.0 && share < 1.0) {
        return Err(Error::setting("validation", share, "expected a share above 0 and below 1, as 0.2"));
    }
    let mut by_class = vec![Vec::new(); classes.len()];
    for index in 0..train.len() {
        if let Some(images) = by_class.get_mut(train.label(index)) {
            images.push(index);
        }
    }
    let mut held_out = vec![false; train.len()];
    for (class, mut images) in by_class.into_iter().enumerate() {
        if images.len() == 1 {
            return Err(Error::Tasks(format!(
                "{name}: class `{}` has one training image, too few to hold out some for `validation`",
                classes[class]
            )));
        }
        // No generator of the run: settings are chosen on the same images whatever its seed.
        Rng::new(0).derive(&format!("validation, class {class}")).shuffle(&mut images);
        let count = (share * images.len() as f64).round() as usize;
        for &index in images.iter().take(count.clamp(1, images.len().max(2) - 1)) {
            held_out[index] = true;
        }
    }
    Ok(held_out)
}

fn fingerprint(classes: &[String], splits: [&Split; 2]) -> String {
    let mut hash = Sha256::new();
    for class in classes {
        hash.update(class.as_bytes());
        hash.update([0]);
    }
    for split in splits {
        for (task, members) in split.members.iter().enumerate() {
            for &(index, label) in members {
                hash.update(format!("{task} {label} {}\n", split.set.id(index)));
            }
        }
        hash.update([0]);
    }
    crate::hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_out_evenly_over_the_classes_before() {
        let train = Split {
            set: Arc::new(NoImages),
            members: vec![
                vec![(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)],
                vec![(6, 2), (7, 2), (8, 2)],
                vec![(9, 3)],
            ],
        };
        let memory = Memory::new(5, &train, 4, &Rng::new(1));
        let kept = |start: usize| -> Vec<u32> {
            let task = Task { index: 0, count: 3, classes: start..start + 1 };
            memory.before(&task).map(|(_, label)| label).collect()
        };
        assert!(kept(0).is_empty());
        assert_eq!(kept(2), [0, 0, 0, 1, 1]);
        assert_eq!(kept(3), [0, 0, 1, 1, 2]);
        let images = |start: usize| -> Vec<usize> {
            memory
                .before(&Task { index: 0, count: 3, classes: start..start + 1 })
                .map(|(image, _)| image)
                .collect()
        };
        let (early, late) = (images(2), images(3));
        assert!(
            late[..4].iter().all(|image| early.contains(image)),
            "memory only shrinks: {early:?}, {late:?}"
        );
    }

    struct NoImages;

    impl ImageSet for NoImages {
        fn len(&self) -> usize {
            0
        }
        fn label(&self, _index: usize) -> usize {
            0
        }
        fn image(&self, _index: usize) -> Result<RgbImage> {
            Err(Error::Tasks("no images".into()))
        }
        fn id(&self, _index: usize) -> String {
            String::new()
        }
    }

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
    fn task_lists_must_name_each_class_once() {
        let list = |names: &[&[&str]]| -> Vec<Vec<String>> {
            names.iter().map(|n| n.iter().map(|s| s.to_string()).collect()).collect()
        };
        let classes = names(3);
        let error = |lists: Vec<Vec<String>>| {
            explicit_tasks(&classes, &lists).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(error(list(&[&["class0"], &["class1"]])).contains("`class2` is in no task"));
        assert!(error(list(&[&["class0", "class1", "class2", "clas0"]])).contains("did you mean `class0`"));
        assert!(error(list(&[&["class0"], &["class0", "class1", "class2"]])).contains("twice"));
        let (order, tasks) =
            explicit_tasks(&classes, &list(&[&["class2"], &["class0", "class1"]])).unwrap_or_default();
        assert_eq!(order, [2, 0, 1]);
        assert_eq!(tasks.iter().map(Task::seen).collect::<Vec<_>>(), [1, 3]);
    }
}
