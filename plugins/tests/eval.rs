//! Tests of evaluation: accuracies equal those computed by hand, and queries are not recomputed without need.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use cdl_core::{
    candle_core::Tensor,
    error::Result,
    registry::Settings,
    testing::{Noise, TestBed},
    train::{Accuracies, Evaluator, Trainer},
    traits::{
        Backbone, BackboneSpec, Batches, EpochKey, Features, ImageFiles, Injection, Inspection, Mode,
        QuerySource, Role, SkippedImages, StreamRecord, Taps, Task, TaskStream,
    },
};

/// Network that counts the images of its forward passes without prompts, which compute queries.
struct Counting {
    inner: Arc<dyn Backbone>,
    plain: Arc<AtomicUsize>,
}

impl Backbone for Counting {
    fn spec(&self) -> &BackboneSpec {
        self.inner.spec()
    }

    fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features> {
        if injection.blocks.is_empty() && injection.tokens.is_none() {
            self.plain.fetch_add(pixels.dim(0)?, Ordering::Relaxed);
        }
        self.inner.forward(pixels, injection, taps)
    }

    fn weights(&self) -> Result<Vec<(String, Tensor)>> {
        self.inner.weights()
    }
}

/// Builds a trainer whose networks count their queries.
fn trainer(source: QuerySource) -> Result<(Trainer, Arc<AtomicUsize>)> {
    cdl_plugins::link();
    let bed = TestBed::new(1)?.with_mode(Mode::Published, source);
    let settings: Settings = toml::from_str("pool = 6").expect("TOML");
    let mut trainer = bed.trainer_of(("coda_prompt", &settings), ("kd_prompts", &Settings::new()))?;
    let count = Arc::new(AtomicUsize::new(0));
    for network in [&mut trainer.teacher, &mut trainer.student] {
        network.backbone = Arc::new(Counting { inner: network.backbone.clone(), plain: count.clone() });
    }
    Ok((trainer, count))
}

#[test]
fn queries_of_test_images_are_computed_once_per_run_and_do_not_change_accuracies() -> Result<()> {
    for (source, networks) in [(QuerySource::Student, 1), (QuerySource::Own, 2)] {
        let (mut trainer, count) = trainer(source)?;
        let stream = Noise::new(1);
        let (mut evaluator, mut kept, mut fresh) =
            (Evaluator::default(), Accuracies::default(), Accuracies::default());
        for task in stream.tasks() {
            trainer.begin_task(task)?;
            count.store(0, Ordering::Relaxed);
            evaluator.test(&trainer, task, &stream, &mut kept, &mut || Ok(()))?;
            let images = stream.test_count(task.index);
            assert_eq!(count.load(Ordering::Relaxed), networks * images, "only the new task's images");
            Evaluator::default().test(&trainer, task, &stream, &mut fresh, &mut || Ok(()))?;
        }
        assert_eq!(kept, fresh);
        assert_eq!(kept.student.rows().len(), stream.tasks().len());
    }
    Ok(())
}

#[test]
fn accuracies_use_the_predictions_over_all_classes_seen() -> Result<()> {
    let (mut trainer, _) = trainer(QuerySource::Student)?;
    let stream = Noise::new(1);
    let mut accuracies = Accuracies::default();
    let mut evaluator = Evaluator::default();
    for task in stream.tasks() {
        trainer.begin_task(task)?;
        evaluator.test(&trainer, task, &stream, &mut accuracies, &mut || Ok(()))?;
        for role in [Role::Teacher, Role::Student] {
            let mut row = Vec::new();
            for seen in 0..=task.index {
                let (mut correct, mut total) = (0, 0);
                for batch in stream.test_batches(seen, trainer.settings.batch_size) {
                    let batch = batch?;
                    let labels = batch.labels.to_vec1::<u32>()?;
                    for (index, label) in labels.into_iter().enumerate() {
                        let image = batch.pixels.narrow(0, index, 1)?;
                        let logits: Vec<f32> = trainer.predict(role, &image)?.flatten_all()?.to_vec1()?;
                        let seen = &logits[..task.seen()];
                        correct += usize::from(seen.iter().all(|&other| other <= seen[label as usize]));
                        total += 1;
                    }
                }
                row.push(100.0 * correct as f64 / total as f64);
            }
            assert_eq!(accuracies.of(role).rows().last().expect("a row"), &row, "{role:?}");
        }
    }
    Ok(())
}

/// [`Noise`] without some of its test images. The test changes their number, `lost`.
struct Losing {
    inner: Noise,
    lost: AtomicUsize,
}

impl TaskStream for Losing {
    fn classes(&self) -> &[String] {
        self.inner.classes()
    }
    fn tasks(&self) -> &[Task] {
        self.inner.tasks()
    }
    fn image_size(&self) -> usize {
        self.inner.image_size()
    }
    fn train_count(&self, task: usize) -> usize {
        self.inner.train_count(task)
    }
    fn test_count(&self, task: usize) -> usize {
        self.inner.test_count(task)
    }
    fn record(&self) -> Result<StreamRecord> {
        self.inner.record()
    }
    fn train_batches(&self, key: EpochKey, batch_size: usize, first: usize) -> Batches<'_> {
        self.inner.train_batches(key, batch_size, first)
    }
    fn test_batches(&self, task: usize, _batch_size: usize) -> Batches<'_> {
        // Leaving out an image changes the positions of later images.
        Box::new(std::iter::once(self.inner.batch(task, 10_000 + self.lost.load(Ordering::Relaxed))))
    }
    fn image_files(&self) -> Option<&dyn ImageFiles> {
        Some(self)
    }
}

impl ImageFiles for Losing {
    fn inspect(&self, _: usize, _: usize, _: &(dyn Fn() + Sync)) -> Inspection {
        Inspection::default()
    }
    fn skipped_images(&self) -> SkippedImages {
        SkippedImages { train: Vec::new(), test: (0..self.lost.load(Ordering::Relaxed)).collect() }
    }
    fn skip_images(&self, _: &SkippedImages) {}
}

#[test]
fn queries_are_recomputed_after_a_test_image_is_left_out() -> Result<()> {
    let (mut trainer, count) = trainer(QuerySource::Student)?;
    let stream = Losing { inner: Noise::new(1), lost: AtomicUsize::new(0) };
    let (mut evaluator, mut kept) = (Evaluator::default(), Accuracies::default());
    let task = &stream.tasks()[0];
    trainer.begin_task(task)?;
    for (lost, computed) in [(0, 1), (0, 0), (1, 1), (1, 0)] {
        stream.lost.store(lost, Ordering::Relaxed);
        count.store(0, Ordering::Relaxed);
        evaluator.test(&trainer, task, &stream, &mut kept, &mut || Ok(()))?;
        assert_eq!(count.load(Ordering::Relaxed), computed * stream.test_count(0), "{lost} left out");
        let mut fresh = Accuracies::default();
        Evaluator::default().test(&trainer, task, &stream, &mut fresh, &mut || Ok(()))?;
        assert_eq!(kept.student.rows().last(), fresh.student.rows().last(), "{lost} left out");
    }
    Ok(())
}
