//! A stream of tasks over images that can be had one by one.

use std::{ops::Range, sync::Arc};

use candle_core::Device;
use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    data::{
        ClassOrder, InputSettings, OnError, TaskSettings,
        batches::{Assembly, Prepared},
        cache::Cache,
        image_source::Source,
        ordered::{Ordered, ahead},
        rehearsal::Memory,
        tasks::order_and_tasks,
    },
    error::{Error, Result},
    rng::Rng,
    traits::{
        Batches, ClassCount, DataRecord, EpochKey, ImageFiles, Inspection, LeftOut, Quirk, StreamContext,
        StreamRecord, Task, TaskStream,
    },
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

    /// The files that the images come from, for the run record.
    fn files(&self) -> Result<Vec<DataRecord>> {
        Ok(Vec::new())
    }

    /// Whether the pixels lie in memory, so that keeping them once more gains nothing.
    fn in_memory(&self) -> bool {
        false
    }

    /// A stable name of image `index` for fingerprints: a relative path, or by default its number.
    fn id(&self, index: usize) -> String {
        index.to_string()
    }
}

/// A [`TaskStream`] over two image sets.
pub struct ImageStream {
    classes: Vec<String>,
    tasks: Vec<Task>,
    train: Split,
    test: Split,
    input: InputSettings,
    cache: Arc<Cache>,
    /// Whether classes come as the data set counts them, not by seed or by the user's lists.
    fixed_order: bool,
    memory: Memory,
    rng: Rng,
    device: Device,
    fingerprint: String,
}

/// One image set, sorted into tasks.
struct Split {
    source: Arc<Source>,
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
        settings.input.validate()?;
        let cache = Arc::new(Cache::new(settings.input.cache_mb.saturating_mul(1_000_000)));
        let (order, mut tasks) = order_and_tasks(&classes, settings, context)?;
        let listed = settings.task_classes.is_some() && !settings.joint;
        let fixed_order = !listed && settings.order(context.mode) == ClassOrder::Fixed;
        for (key, limit) in [
            ("max_tasks", settings.max_tasks),
            ("train_per_class", settings.train_per_class),
            ("test_per_class", settings.test_per_class),
        ] {
            if limit == Some(0) {
                return Err(Error::setting(key, 0, "expected at least 1"));
            }
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
                    let (image, classes) = (set.id(index), classes.len());
                    Error::Tasks(format!("{name}: image {image} has label {class}, of {classes} classes"))
                })?;
                if held_out.as_ref().is_some_and(|held_out| held_out[index] != held) {
                    continue;
                }
                counts[class] += 1;
                let task = tasks.iter().position(|task| task.classes.contains(&at));
                if let Some(task) = task.filter(|_| limit.is_none_or(|limit| counts[class] <= limit)) {
                    members[task].push((index, at as u32));
                }
            }
            if let Some(class) = counts.iter().position(|&count| count == 0) {
                let (class, mend) = (&classes[class], "remove the class or add images");
                return Err(Error::Tasks(format!("{name}: class `{class}` has no {what} images; {mend}")));
            }
            Ok(Split { source: Arc::new(Source::new(set, settings, cache.clone())), members })
        };
        let train = sort(train, "training", false, settings.train_per_class)?;
        let test = sort(test, "test", true, settings.test_per_class)?;
        let classes: Vec<String> = order.iter().map(|&class| classes[class].clone()).collect();
        let fingerprint = fingerprint(&classes, [&train, &test]);
        let memory =
            Memory::new(settings.memory, &train.members, classes.len(), &context.rng.derive("memory"));
        Ok(Self {
            classes,
            tasks,
            train,
            test,
            input: settings.input.clone(),
            cache,
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
    /// The first damaged image in order, by file name, unless damaged images are skipped.
    pub fn verify(&self) -> Result<()> {
        self.train.check(|source, index| source.decode(index).err())?;
        // What is worked out here need not be later, where there is room to keep it.
        self.test.check(|source, index| source.test_square(index).err())
    }

    /// Images of each class that the tasks use.
    fn class_counts(&self) -> Vec<ClassCount> {
        let empty = |name: &String| ClassCount { name: name.clone(), train: 0, test: 0 };
        let mut counts: Vec<ClassCount> = self.classes.iter().map(empty).collect();
        self.train.members.iter().flatten().for_each(|&(_, label)| counts[label as usize].train += 1);
        self.test.members.iter().flatten().for_each(|&(_, label)| counts[label as usize].test += 1);
        counts.retain(|count| count.train + count.test > 0);
        counts
    }

    /// The batches of a pass over `what`; `prepare` makes the square of an image, given its place in the pass and its
    /// number.
    fn batches<'a>(
        &'a self,
        pass: Pass<'a>,
        what: &str,
        prepare: impl Fn(&Source, usize, usize) -> Result<Arc<RgbImage>> + Send + Sync + 'static,
    ) -> Batches<'a> {
        let Pass { split, members, batch_size, first, partial } = pass;
        let source = &split.source;
        let size = batch_size.max(1);
        let least = if partial { 1 } else { size };
        let barren = format!(
            "not one batch: of {} {what}, fewer than {least} can be read; the warnings name the others",
            members.len()
        );
        let barren = (members.len() >= least && first == 0).then_some(barren);
        // Places count all images, so that what an image draws does not depend on when another was found damaged.
        let mut images: Vec<(usize, Member)> = members.into_iter().enumerate().collect();
        images.retain(|(_, (index, _))| !source.damaged().contains(index));
        if !partial && self.input.on_error == OnError::Stop {
            images.truncate(images.len() / size * size);
        }
        // A run that goes on knows what was damaged in the batches before, so these were filled by what comes first.
        images.drain(..first.saturating_mul(size).min(images.len()));
        let (count, shared) = (images.len(), source.clone());
        let job = move |at: usize| {
            let (place, (index, label)) = images[at];
            Prepared { index, label, square: prepare(&shared, place, index) }
        };
        // Without workers there is nothing to prepare ahead: one batch at once.
        let images_ahead = size * if self.input.workers == 0 { 1 } else { self.input.prefetch };
        let images = Ordered::new(count, self.input.workers, images_ahead, Arc::new(job));
        let (source, device) = (source.clone(), self.device.clone());
        let assembly = Assembly { source, images, size, partial, device, barren };
        if self.device.is_cpu() || self.input.workers == 0 {
            return Box::new(assembly);
        }
        // Copying a batch to a GPU then costs no step any time.
        Box::new(ahead(assembly))
    }
}

/// Images to go through once.
struct Pass<'a> {
    split: &'a Split,
    members: Vec<Member>,
    batch_size: usize,
    /// The first batch that is wanted.
    first: usize,
    /// Whether the last batch may be smaller.
    partial: bool,
}

impl Split {
    /// Looks for damage in all images at once, and then at what was found in order.
    fn check(&self, error: impl Fn(&Source, usize) -> Option<Error> + Sync) -> Result<()> {
        let source = &self.source;
        let members: Vec<usize> = self.members.iter().flatten().map(|&(index, _)| index).collect();
        let found: Vec<_> = members.into_par_iter().map(|index| (index, error(source, index))).collect();
        let damaged = found.into_iter().filter_map(|(index, error)| Some((index, error?)));
        damaged.into_iter().try_for_each(|(index, error)| source.leave_out(index, error))
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
        self.train.source.side()
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

    fn train_batches(&self, key: EpochKey, batch_size: usize, first: usize) -> Batches<'_> {
        let EpochKey { task, role, epoch } = key;
        let rng = self.rng.derive(&format!("task {task}, {}, epoch {epoch}", role.as_str()));
        let mut members = self.train.members[task].clone();
        members.extend(self.memory.before(&self.tasks[task]));
        self.cache.retain_train(&members.iter().map(|&(index, _)| index).collect());
        rng.derive("order").shuffle(&mut members);
        let pass = Pass { split: &self.train, members, batch_size, first, partial: false };
        // A generator for each image: what it draws does not depend on which thread decodes it.
        self.batches(pass, &format!("training images of task {}", task + 1), move |source, place, index| {
            source.train_square(index, &mut rng.derive(&format!("image {place}")))
        })
    }

    fn test_batches(&self, task: usize, batch_size: usize) -> Batches<'_> {
        let members = self.test.members[task].clone();
        let pass = Pass { split: &self.test, members, batch_size, first: 0, partial: true };
        self.batches(pass, &format!("test images of task {}", task + 1), |source, _, index| {
            source.test_square(index)
        })
    }

    fn record(&self) -> Result<StreamRecord> {
        let mut files: Vec<DataRecord> = Vec::new();
        for split in [&self.train, &self.test] {
            // With a validation split both halves come from the same files.
            let new = split.source.set.files()?.into_iter().filter(|file| !files.contains(file));
            files.extend(new.collect::<Vec<_>>());
        }
        Ok(StreamRecord {
            fingerprint: self.fingerprint.clone(),
            class_counts: self.class_counts(),
            files,
            transform: Some(self.test.source.transform.clone()),
        })
    }

    fn image_files(&self) -> Option<&dyn ImageFiles> {
        Some(self)
    }
}

impl ImageFiles for ImageStream {
    fn inspect(&self, task: usize, most: usize, seen: &(dyn Fn() + Sync)) -> Inspection {
        let mut all = Inspection::default();
        for Split { source, members } in [&self.train, &self.test] {
            let found = source.inspect(&members[task], most, seen);
            all.looked_at += found.looked_at;
            all.damaged.extend(found.damaged);
        }
        all
    }

    fn left_out(&self) -> LeftOut {
        let [train, test] = [&self.train, &self.test].map(|s| s.source.damaged().iter().copied().collect());
        LeftOut { train, test }
    }

    fn leave_out(&self, images: &LeftOut) {
        self.train.source.damaged().extend(&images.train);
        self.test.source.damaged().extend(&images.test);
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
                hash.update(format!("{task} {label} {}\n", split.source.set.id(index)));
            }
        }
        hash.update([0]);
    }
    crate::system::hex(&hash.finalize())
}
