//! Tests that the conformance kit finds every violation of the contracts of backbones and streams, and accepts valid
//! plugins.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use cdl_core::{
    candle_core::{Device, Tensor},
    error::Result,
    rng::Rng,
    testing,
    traits::{
        Backbone, BackboneContext, BackboneSpec, Batch, Batches, EpochKey, Features, Injection,
        Normalization, Provenance, StreamContext, StreamRecord, Taps, Task, TaskStream,
    },
    vit::{Vit, VitOptions, VitSizes, VitWeights},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Number of calls of [`drift`].
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Returns a value that grows from call to call.
fn drift() -> f64 {
    CALLS.fetch_add(1, Ordering::Relaxed) as f64 * 1e-3
}

/// Checks that the kit reports the violation of `promise` for this fault.
fn assert_found(check: fn(&str, &str) -> Result<()>, fault: &str, promise: &str) {
    let error = check("faulty", &format!("fault = {fault:?}")).expect_err(fault).to_string();
    assert!(error.contains("violates its contract") && error.contains(promise), "{fault}: {error}");
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum NetworkFault {
    #[default]
    None,
    OtherName,
    HeadsUneven,
    ShapeOfCls,
    BlockMissing,
    NormMissing,
    TokensForgotten,
    BatchMixed,
    Random,
    PrefixIgnored,
    SuffixIgnored,
    ClsIgnored,
    GradientLost,
    GradientScaled,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct NetworkConfig {
    /// Fault of the network.
    fault: NetworkFault,
}

cdl_core::register!(Backbone {
    name: "faulty",
    about: "",
    citation: "",
    config: NetworkConfig,
    build: |config: NetworkConfig, context: &BackboneContext<'_>| Ok(Arc::new(Network::new(
        config.fault,
        context
    )?) as Arc<dyn Backbone>),
});

struct Network {
    fault: NetworkFault,
    vit: Vit,
    spec: BackboneSpec,
}

impl Network {
    fn new(fault: NetworkFault, context: &BackboneContext<'_>) -> Result<Self> {
        let sizes = VitSizes { width: 16, depth: 2, patch_size: 56, image_size: 224 };
        let options = VitOptions {
            heads: Some(2),
            depth: None,
            image_size: context.image_size,
            normalization: Normalization::NONE,
            checkpoint_blocks: false,
            precision: context.precision,
        };
        let weights = VitWeights::random("faulty", sizes)?;
        let vit =
            Vit::new("faulty", &weights, &options, Provenance::of_bytes("faulty", b""), context.device)?;
        let mut spec = vit.spec().clone();
        match fault {
            NetworkFault::OtherName => spec.plugin = "other".into(),
            NetworkFault::HeadsUneven => spec.heads = 3,
            _ => {}
        }
        Ok(Self { fault, vit, spec })
    }
}

impl Backbone for Network {
    fn spec(&self) -> &BackboneSpec {
        &self.spec
    }

    fn forward(&self, pixels: &Tensor, injection: &Injection, taps: &Taps) -> Result<Features> {
        let mut injection = injection.clone();
        for block in &mut injection.blocks {
            match self.fault {
                NetworkFault::PrefixIgnored => block.prefix = None,
                NetworkFault::SuffixIgnored => block.suffix = None,
                NetworkFault::ClsIgnored => block.cls_add = None,
                _ => {}
            }
        }
        let mut features = self.vit.forward(pixels, &injection, taps)?;
        match self.fault {
            NetworkFault::ShapeOfCls => features.cls = features.cls.unsqueeze(1)?,
            NetworkFault::BlockMissing => drop(features.blocks.remove(&0)),
            NetworkFault::NormMissing => features.norm = None,
            NetworkFault::TokensForgotten => features.tokens = None,
            NetworkFault::BatchMixed => {
                features.cls = features.cls.broadcast_add(&features.cls.mean_keepdim(0)?)?;
            }
            NetworkFault::Random => features.cls = (&features.cls + 0.01 * drift())?,
            NetworkFault::GradientLost => features.cls = features.cls.detach(),
            // The value of x with the gradient of 1.5 x.
            NetworkFault::GradientScaled => {
                features.cls = ((&features.cls * 1.5)? - (features.cls.detach() * 0.5)?)?;
            }
            _ => {}
        }
        Ok(features)
    }

    fn weights(&self) -> Result<Vec<(String, Tensor)>> {
        self.vit.weights()
    }
}

#[test]
fn every_contract_violation_of_a_backbone_is_found() {
    for (fault, promise) in [
        ("other_name", "`spec` contains the registered name"),
        ("heads_uneven", "the width in `spec` is a multiple of the number of heads"),
        ("shape_of_cls", "the CLS token has the shape"),
        ("block_missing", "every tapped block is returned"),
        ("norm_missing", "tokens after the final norm are returned"),
        ("tokens_forgotten", "the injected tokens are returned"),
        ("batch_mixed", "do not depend on the other images"),
        ("random", "equal settings and images give equal features"),
        ("prefix_ignored", "a prefix in block 0 has an effect"),
        ("suffix_ignored", "a suffix in block 0 has an effect"),
        ("cls_ignored", "a CLS addition in block 0 has an effect"),
        ("gradient_lost", "gets a gradient"),
        ("gradient_scaled", "agrees with finite differences"),
    ] {
        assert_found(testing::check_backbone, fault, promise);
    }
}

#[test]
fn a_valid_backbone_passes() -> Result<()> {
    testing::check_backbone("faulty", "")
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum StreamFault {
    #[default]
    None,
    NoTasks,
    NumbersWrong,
    ClassesTwice,
    ClassesUnnamed,
    FingerprintRandom,
    CountWrong,
    TestCountWrong,
    BatchShort,
    ShapeWrong,
    PixelsOutOfRange,
    LabelOfOtherTask,
    PixelsRandom,
    FirstIgnored,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct StreamConfig {
    /// Fault of the stream.
    fault: StreamFault,
}

cdl_core::register!(Stream {
    name: "faulty",
    about: "",
    citation: "",
    config: StreamConfig,
    build: |config: StreamConfig, context: &StreamContext<'_>| Ok(
        Box::new(Stream::new(config.fault, context)) as Box<dyn TaskStream>
    ),
});

/// Stream of two tasks with two classes, six training images and four test images each.
struct Stream {
    fault: StreamFault,
    classes: Vec<String>,
    tasks: Vec<Task>,
    fingerprint: String,
    rng: Rng,
}

const SIDE: usize = 4;

impl Stream {
    fn new(fault: StreamFault, context: &StreamContext<'_>) -> Self {
        let task = |index: usize, classes: Range<usize>| Task { index, count: 2, classes };
        let tasks = match fault {
            StreamFault::NoTasks => vec![],
            StreamFault::NumbersWrong => vec![task(1, 0..2), task(0, 2..4)],
            StreamFault::ClassesTwice => vec![task(0, 0..2), task(1, 1..4)],
            StreamFault::ClassesUnnamed => vec![task(0, 0..2), task(1, 2..5)],
            _ => vec![task(0, 0..2), task(1, 2..4)],
        };
        let fingerprint = match fault {
            StreamFault::FingerprintRandom => drift().to_string(),
            _ => "fingerprint".into(),
        };
        let classes = (0..4).map(|class| class.to_string()).collect();
        Self { fault, classes, tasks, fingerprint, rng: context.rng.derive("pixels") }
    }

    fn batch(&self, task: usize, name: &str, size: usize) -> Result<Batch> {
        let side = if self.fault == StreamFault::ShapeWrong { SIDE + 1 } else { SIDE };
        let mut rng = self.rng.derive(&format!("{task} {name}"));
        let mut pixels = rng.uniform(&[size, 3, side, side], 0.0, 0.5, &Device::Cpu)?;
        match self.fault {
            StreamFault::PixelsOutOfRange => pixels = (pixels * 4.0)?,
            StreamFault::PixelsRandom => pixels = (pixels + drift())?,
            _ => {}
        }
        let task = if self.fault == StreamFault::LabelOfOtherTask { 1 - task } else { task };
        let labels: Vec<u32> = (0..size).map(|image| (2 * task + image % 2) as u32).collect();
        Ok(Batch { pixels, labels: Tensor::new(labels.as_slice(), &Device::Cpu)? })
    }
}

impl TaskStream for Stream {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    fn image_size(&self) -> usize {
        SIDE
    }

    fn train_count(&self, _task: usize) -> usize {
        if self.fault == StreamFault::CountWrong { 60 } else { 6 }
    }

    fn test_count(&self, _task: usize) -> usize {
        if self.fault == StreamFault::TestCountWrong { 5 } else { 4 }
    }

    fn record(&self) -> Result<StreamRecord> {
        Ok(StreamRecord::of(&self.fingerprint))
    }

    fn train_batches(&self, key: EpochKey, batch_size: usize, first: usize) -> Batches<'_> {
        let size = if self.fault == StreamFault::BatchShort { batch_size - 1 } else { batch_size };
        let first = if self.fault == StreamFault::FirstIgnored { 0 } else { first };
        Box::new(
            (first..6 / batch_size).map(move |step| self.batch(key.task, &format!("train {step}"), size)),
        )
    }

    fn test_batches(&self, task: usize, batch_size: usize) -> Batches<'_> {
        let sizes = [batch_size.min(4), 4 - batch_size.min(4)].into_iter().filter(|size| *size > 0);
        Box::new(sizes.map(move |size| self.batch(task, &format!("test {size}"), size)))
    }
}

#[test]
fn every_contract_violation_of_a_stream_is_found() {
    for (fault, promise) in [
        ("no_tasks", "a stream has tasks"),
        ("numbers_wrong", "numbered in order"),
        ("classes_twice", "each once"),
        ("classes_unnamed", "all of them named"),
        ("fingerprint_random", "equal fingerprints"),
        ("count_wrong", "has 20 batches, as `train_count` states, not 2"),
        ("test_count_wrong", "has 5 test images, as `test_count` states, not 4"),
        ("batch_short", "training batches are full"),
        ("shape_wrong", "pixels have the shape"),
        ("pixels_out_of_range", "pixels lie in [0, 1]"),
        ("label_of_other_task", "labels lie in 0..2"),
        ("pixels_random", "the seed determines every batch"),
        ("first_ignored", "an epoch resumes with the remaining batches"),
    ] {
        assert_found(testing::check_stream, fault, promise);
    }
}

#[test]
fn a_valid_stream_passes() -> Result<()> {
    testing::check_stream("faulty", "")
}
