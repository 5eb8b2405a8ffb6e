//! Networks and images for tests: the embedded micro ViTs on a stream of random pixels.

use cdl_core::{
    BackboneContext, Batch, Batches, DistillerContext, EpochKey, LearnerContext, Mode, Network,
    OptimizerConfig, Result, Rng, Role, ScheduleConfig, Task, TaskStream, TrainSettings, Trainer,
    candle_core::{Device, Tensor},
    registry::{self, Settings},
};

pub const CLASSES: usize = 4;
pub const BATCH: usize = 4;

/// Two tasks of two classes, random images; from `poisoned` on, a task's pixels are no numbers.
pub struct Noise {
    classes: Vec<String>,
    tasks: Vec<Task>,
    steps: usize,
    poisoned: usize,
}

impl Noise {
    pub fn new(steps: usize) -> Self {
        let tasks = (0..2).map(|index| Task { index, count: 2, classes: index * 2..index * 2 + 2 }).collect();
        let classes = (0..CLASSES).map(|class| class.to_string()).collect();
        Self { classes, tasks, steps, poisoned: usize::MAX }
    }

    #[allow(dead_code, reason = "not every test that shares this file needs it")]
    pub fn poisoned_from(self, task: usize) -> Self {
        Self { poisoned: task, ..self }
    }

    pub fn batch(&self, task: usize, number: usize) -> Result<Batch> {
        let mut rng = Rng::new(9).derive(&format!("{task} {number}"));
        let mut pixels = rng.uniform(&[BATCH, 3, 28, 28], 0.0, 1.0, &Device::Cpu)?;
        if task >= self.poisoned {
            pixels = (pixels * f64::NAN)?;
        }
        let first = self.tasks[task].classes.start as u32;
        let labels: Vec<u32> = (0..BATCH as u32).map(|i| first + i % 2).collect();
        Ok(Batch { pixels, labels: Tensor::new(labels.as_slice(), &Device::Cpu)? })
    }
}

impl TaskStream for Noise {
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn tasks(&self) -> &[Task] {
        &self.tasks
    }
    fn image_size(&self) -> usize {
        28
    }
    fn train_count(&self, _task: usize) -> usize {
        self.steps * BATCH
    }
    fn test_count(&self, _task: usize) -> usize {
        BATCH
    }
    fn fingerprint(&self) -> &str {
        "noise"
    }
    fn train_batches(&self, key: EpochKey, _batch_size: usize) -> Batches<'_> {
        Box::new((0..self.steps).map(move |step| self.batch(key.task, 100 * key.epoch + step)))
    }
    fn test_batches(&self, task: usize, _batch_size: usize) -> Batches<'_> {
        Box::new(std::iter::once(self.batch(task, 10_000)))
    }
}

/// A trainer of the two methods with their default settings, `pool` and the like made small where they exist.
pub fn trainer(learner: &str, distiller: &str) -> Result<Trainer> {
    cdl_plugins::link();
    let device = Device::Cpu;
    let backbone = |role: Role| {
        let weights = format!("embedded:micro_{}", role.as_str());
        let settings = Settings::from_iter([("weights".to_string(), toml::Value::String(weights))]);
        let context = BackboneContext { role, image_size: 28, mode: Mode::Corrected, device: &device };
        registry::backbone("vit", &settings, &context)
    };
    let (teacher, student) = (backbone(Role::Teacher)?, backbone(Role::Student)?);
    let mut settings = Settings::new();
    let defaults = (registry::find(registry::Kind::Learner, learner)?.defaults)()?;
    if defaults.contains_key("pool") {
        settings.insert("pool".into(), toml::Value::Integer(8));
    }
    let make = |role, backbone: &std::sync::Arc<dyn cdl_core::Backbone>| {
        let context = LearnerContext {
            role,
            backbone: backbone.spec(),
            query_width: student.spec().width,
            classes: CLASSES,
            tasks: 2,
            mode: Mode::Corrected,
            device: &device,
            rng: Rng::new(1).derive(role.as_str()),
        };
        registry::learner(learner, &settings, &context)
    };
    let (teacher_learner, student_learner) = (make(Role::Teacher, &teacher)?, make(Role::Student, &student)?);
    let context = DistillerContext {
        teacher: teacher.spec(),
        student: student.spec(),
        learner: student_learner.as_ref(),
        tasks: 2,
        mode: Mode::Corrected,
        device: &device,
        rng: Rng::new(2),
    };
    let distiller = registry::distiller(distiller, &Settings::new(), &context)?;
    Ok(Trainer {
        teacher: Network { backbone: teacher, learner: teacher_learner },
        student: Network { backbone: student, learner: student_learner },
        distiller,
        settings: TrainSettings {
            epochs: 1,
            batch_size: BATCH,
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
            mode: Mode::Corrected,
            train_teacher: true,
        },
        rng: Rng::new(3),
    })
}
