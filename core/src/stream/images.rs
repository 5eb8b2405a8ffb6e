//! A stream of tasks over images that can be had one by one.

use std::ops::Range;

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{
    Batch, Batches, ClassOrder, EpochKey, StreamContext, Task, TaskSettings, TaskStream, memory::Memory,
    tasks::order_and_tasks,
};
use crate::{
    Error, Quirk, Result, Rng,
    transform::{TransformConfig, write_pixels},
};

/// Number of an image in its set, and its label in stream order.
pub(super) type Member = (usize, u32);

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
    set: Box<dyn ImageSet>,
    /// By task.
    members: Vec<Vec<Member>>,
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
        let (order, tasks) = order_and_tasks(&classes, settings, context)?;
        let listed = settings.task_classes.is_some() && !settings.joint;
        let fixed_order = !listed && settings.order(context.mode) == ClassOrder::Fixed;
        let mut position = vec![0; classes.len()];
        for (at, &class) in order.iter().enumerate() {
            position[class] = at;
        }
        let sort = |set: Box<dyn ImageSet>, what: &str, limit: Option<usize>| -> Result<Split> {
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
        let train = sort(train, "training", settings.train_per_class)?;
        let test = sort(test, "test", settings.test_per_class)?;
        let classes: Vec<String> = order.iter().map(|&class| classes[class].clone()).collect();
        let fingerprint = fingerprint(&classes, [&train, &test]);
        let memory =
            Memory::new(settings.memory, &train.members, classes.len(), &context.rng.derive("memory"));
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
        members: &[Member],
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
