//! Stream of tasks over individual images.

use std::{collections::HashMap, ops::Range, sync::Arc};

use candle_core::Device;
use image::RgbImage;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    data::{
        ClassOrder, InputSettings, OnError, TaskSettings,
        batches::{BatchAssembler, Prepared},
        cache::ImageCache,
        image_source::ImageSource,
        ordered::{Ordered, prefetched},
        rehearsal::RehearsalMemory,
        tasks::order_and_tasks,
    },
    error::{Error, Result},
    rng::Rng,
    traits::{
        Batches, ClassCount, DataRecord, EpochKey, ImageFiles, Inspection, Quirk, SkippedImages,
        StreamContext, StreamRecord, Task, TaskStream,
    },
};

/// Maximum number of classes that a warning names.
const MAX_NAMED: usize = 5;

/// Index of an image in its set, and its label in stream order.
pub(super) type Member = (usize, u32);

/// A set of labelled images with random access.
pub trait ImageSet: Send + Sync {
    /// Returns the number of images.
    fn len(&self) -> usize;

    /// Returns whether the set has no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the class of image `index` as an index into the class names of the set.
    fn label(&self, index: usize) -> usize;

    /// Decodes image `index`.
    ///
    /// # Errors
    /// An unreadable image. The error contains the file name.
    fn image(&self, index: usize) -> Result<RgbImage>;

    /// Returns the files that contain the images, for the run record.
    fn files(&self) -> Result<Vec<DataRecord>> {
        Ok(Vec::new())
    }

    /// Returns whether all pixels are in memory already, so that caching them has no benefit.
    fn in_memory(&self) -> bool {
        false
    }

    /// Returns a stable name of image `index` for fingerprints and messages: a relative path, or by default the index.
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
    cache: Arc<ImageCache>,
    /// Whether the class order is that of the data set, neither shuffled nor listed by the user.
    fixed_order: bool,
    memory: RehearsalMemory,
    rng: Rng,
    device: Device,
    fingerprint: String,
}

/// One image set, divided into tasks.
struct Split {
    source: Arc<ImageSource>,
    /// Images of each task.
    members: Vec<Vec<Member>>,
}

impl ImageStream {
    /// Divides both sets into tasks. `name` is used in messages; `classes` are the class names in the order of the
    /// sets.
    ///
    /// # Errors
    /// Settings that do not fit the classes, and classes with images in only one of the sets. Classes without any image are
    /// left out with a warning.
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
        let cache = Arc::new(ImageCache::new(settings.input.cache_mb.saturating_mul(1_000_000)));
        let (classes, labels) = used_classes(name, &classes, [train.as_ref(), test.as_ref()])?;
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
            Some(share) => (train.clone(), Some(hold_out(name, &classes, &labels, train.as_ref(), share)?)),
            None => (test.into(), None),
        };
        let mut position = vec![0; classes.len()];
        for (at, &class) in order.iter().enumerate() {
            position[class] = at;
        }
        // With a validation split, `held` selects the held-out images (true) or the others (false).
        let divide =
            |set: Arc<dyn ImageSet>, what: &str, held: bool, limit: Option<usize>| -> Result<Split> {
                let mut counts = vec![0; classes.len()];
                let mut members = vec![Vec::new(); tasks.len()];
                for index in 0..set.len() {
                    // `used_classes` has checked all labels.
                    let Some(&Some(class)) = labels.get(set.label(index)) else { continue };
                    let at = position[class];
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
                    let (class, other) = (&classes[class], if held { "training" } else { "test" });
                    return Err(Error::Tasks(format!(
                        "{name}: class `{class}` has no {what} images, only {other} images; expected both"
                    )));
                }
                Ok(Split { source: Arc::new(ImageSource::new(set, settings, cache.clone())), members })
            };
        let train = divide(train, "training", false, settings.train_per_class)?;
        let test = divide(test, "test", true, settings.test_per_class)?;
        let classes: Vec<String> = order.iter().map(|&class| classes[class].clone()).collect();
        let fingerprint = fingerprint(&classes, [&train, &test]);
        let memory = RehearsalMemory::new(
            settings.memory,
            &train.members,
            classes.len(),
            &context.rng.derive("memory"),
        );
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

    /// Decodes every image that the run will use, so that damaged images are found before the first step.
    ///
    /// # Errors
    /// The first damaged image, unless damaged images are skipped.
    pub fn verify(&self) -> Result<()> {
        self.train.check(|source, index| source.decode(index).err())?;
        // Transformed test images enter the cache, so that the run need not decode them again.
        self.test.check(|source, index| source.test_square(index).err())
    }

    /// Returns the number of images of each class that the tasks use.
    fn class_counts(&self) -> Vec<ClassCount> {
        let empty = |name: &String| ClassCount { name: name.clone(), train: 0, test: 0 };
        let mut counts: Vec<ClassCount> = self.classes.iter().map(empty).collect();
        self.train.members.iter().flatten().for_each(|&(_, label)| counts[label as usize].train += 1);
        self.test.members.iter().flatten().for_each(|&(_, label)| counts[label as usize].test += 1);
        counts.retain(|count| count.train + count.test > 0);
        counts
    }

    /// Returns the batches of a pass. `what` describes the images in messages. `prepare` computes the transformed image
    /// for a place in the pass and an index in the set.
    fn batches<'a>(
        &'a self,
        pass: Pass<'a>,
        what: &str,
        prepare: impl Fn(&ImageSource, usize, usize) -> Result<Arc<RgbImage>> + Send + Sync + 'static,
    ) -> Batches<'a> {
        let Pass { split, members, batch_size, first, partial } = pass;
        let source = &split.source;
        let size = batch_size.max(1);
        let least = if partial { 1 } else { size };
        let message = format!(
            "no batch can be filled: of {} {what}, fewer than {least} can be read; the warnings name the others",
            members.len()
        );
        let no_batch_message = (members.len() >= least && first == 0).then_some(message);
        // Places count all images: an image's augmentation must not depend on when others were found to be damaged.
        let mut images: Vec<(usize, Member)> = members.into_iter().enumerate().collect();
        images.retain(|(_, (index, _))| !source.damaged().contains(index));
        if !partial && self.input.on_error == OnError::Stop {
            images.truncate(images.len() / size * size);
        }
        // A resumed run restores the list of damaged images. The remaining images at the front are therefore those that
        // filled the batches before `first`.
        images.drain(..first.saturating_mul(size).min(images.len()));
        let (count, shared) = (images.len(), source.clone());
        let job = move |at: usize| {
            let (place, (index, label)) = images[at];
            Prepared { index, label, square: prepare(&shared, place, index) }
        };
        // Without workers, one batch is prepared at a time.
        let images_ahead = size * if self.input.workers == 0 { 1 } else { self.input.prefetch };
        let images = Ordered::new(count, self.input.workers, images_ahead, Arc::new(job));
        let (source, device) = (source.clone(), self.device.clone());
        let batches = BatchAssembler { source, images, size, partial, device, no_batch_message };
        if self.device.is_cpu() || self.input.workers == 0 {
            return Box::new(batches);
        }
        // Batches are copied to the GPU on another thread, so that training steps do not wait for the copy.
        Box::new(prefetched(batches))
    }
}

/// One pass over the images of a split.
struct Pass<'a> {
    split: &'a Split,
    members: Vec<Member>,
    batch_size: usize,
    /// Index of the first batch to return.
    first: usize,
    /// Whether the last batch may be smaller.
    partial: bool,
}

impl Split {
    /// Checks all images in parallel and handles the errors in order.
    fn check(&self, error: impl Fn(&ImageSource, usize) -> Option<Error> + Sync) -> Result<()> {
        let source = &self.source;
        let members: Vec<usize> = self.members.iter().flatten().map(|&(index, _)| index).collect();
        let results: Vec<_> = members.into_par_iter().map(|index| (index, error(source, index))).collect();
        let damaged = results.into_iter().filter_map(|(index, error)| Some((index, error?)));
        damaged.into_iter().try_for_each(|(index, error)| source.skip_image(index, error))
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
        // Each image has its own generator, so that augmentation does not depend on the threads.
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
            // With a validation split, both parts come from the same files.
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
    fn inspect(&self, task: usize, limit: usize, progress: &(dyn Fn() + Sync)) -> Inspection {
        let mut total = Inspection::default();
        for Split { source, members } in [&self.train, &self.test] {
            let part = source.inspect(&members[task], limit, progress);
            total.checked += part.checked;
            total.damaged.extend(part.damaged);
        }
        total
    }

    fn skipped_images(&self) -> SkippedImages {
        let [train, test] = [&self.train, &self.test].map(|s| s.source.damaged().iter().copied().collect());
        SkippedImages { train, test }
    }

    fn skip_images(&self, images: &SkippedImages) {
        self.train.source.damaged().extend(&images.train);
        self.test.source.damaged().extend(&images.test);
    }
}

/// Returns the classes that have images, with distinct names, and the index of each label's class among them. Reports
/// the classes that are left out or renamed.
fn used_classes(
    name: &str,
    classes: &[String],
    sets: [&dyn ImageSet; 2],
) -> Result<(Vec<String>, Vec<Option<usize>>)> {
    let mut has_images = vec![false; classes.len()];
    for (set, index) in sets.into_iter().flat_map(|set| (0..set.len()).map(move |index| (set, index))) {
        let label = set.label(index);
        *has_images.get_mut(label).ok_or_else(|| {
            let (image, classes) = (set.id(index), classes.len());
            Error::Tasks(format!(
                "{name}: image {image} has label {label}; expected less than {classes}, the number of classes"
            ))
        })? = true;
    }
    let (mut used, mut unused, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    for (class, has_images) in distinct(name, classes).into_iter().zip(has_images) {
        labels.push(has_images.then_some(used.len()));
        if has_images { used.push(class) } else { unused.push(class) }
    }
    if !unused.is_empty() {
        let more = if unused.len() > MAX_NAMED { ", ..." } else { "" };
        let named: Vec<String> = unused.iter().take(MAX_NAMED).map(|class| format!("`{class}`")).collect();
        tracing::warn!(
            "{name}: left out classes without images: {} ({}{more})",
            unused.len(),
            named.join(", ")
        );
    }
    Ok((used, labels))
}

/// Makes the names of classes distinct: a name of several classes gets their labels as suffixes, as in `crane (134)`.
fn distinct(name: &str, classes: &[String]) -> Vec<String> {
    let mut counts = HashMap::new();
    classes.iter().for_each(|class| *counts.entry(class).or_insert(0) += 1);
    let mut renamed = Vec::new();
    let mut names = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        let mut own = class.clone();
        // Another class may have the new name too.
        while counts.get(&own).is_some_and(|&count| count > 1 || own != *class) {
            own += &format!(" ({label})");
        }
        if own != *class {
            renamed.push(format!("`{own}`"));
        }
        names.push(own);
    }
    if !renamed.is_empty() {
        let more = if renamed.len() > MAX_NAMED { ", ..." } else { "" };
        let count = renamed.len();
        renamed.truncate(MAX_NAMED);
        let named = renamed.join(", ");
        tracing::warn!(
            "{name}: classes that share a name with others are called by name and label: {count} ({named}{more})"
        );
    }
    names
}

/// Selects the images of the training set that are held out for validation: `share` of each class, at least one and not
/// all.
fn hold_out(
    name: &str,
    classes: &[String],
    labels: &[Option<usize>],
    train: &dyn ImageSet,
    share: f64,
) -> Result<Vec<bool>> {
    if !(share > 0.0 && share < 1.0) {
        return Err(Error::setting("validation", share, "expected a share above 0 and below 1, such as 0.2"));
    }
    let mut by_class = vec![Vec::new(); classes.len()];
    for index in 0..train.len() {
        if let Some(&Some(class)) = labels.get(train.label(index)) {
            by_class[class].push(index);
        }
    }
    let mut held_out = vec![false; train.len()];
    for (class, mut images) in by_class.into_iter().enumerate() {
        if images.len() == 1 {
            return Err(Error::Tasks(format!(
                "{name}: class `{}` has one training image; `validation` needs at least two",
                classes[class]
            )));
        }
        // A fixed seed, not that of the run: settings are compared on the same images for every seed.
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
