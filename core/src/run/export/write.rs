//! Writes an exported model.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Tensor};
use walkdir::WalkDir;

use crate::{
    config::Config,
    error::{Error, Result, if_there},
    hub::{
        checksum,
        checksum_list::{self, ChecksumList},
    },
    registry::{Kind, dynamic::Loaded},
    run::{
        Experiment, PluginRecord,
        builder::RunBuilder,
        export::{
            CLASSES, Description, ExportedDistiller, FORMAT, FrozenNetwork, MODEL, NETWORK, Predictor, QUERY,
            TRAINED, fail,
        },
    },
    system::{
        atomic::{is_temporary, sync_below, walk_error, write_atomic, write_json},
        staging::{Placement, Staging, place_of, recover},
    },
    traits::{Pass, Portable, Query, QuerySource, Role, StateDict, Task},
    transform::{TestTransform, TransformConfig},
};

/// Number of test images whose logits are verified before the folder is moved to its final place.
const VERIFIED_IMAGES: usize = 4;

/// Writes the network `role` of `experiment`, in its state after `task`, to the new folder `root`. The folder is
/// written atomically, and only if a model read from it computes byte-identical logits.
///
/// # Errors
/// A folder that is not empty, unless `overwrite` is set and it contains an exported model; a backbone that cannot be
/// exported; a folder that cannot be written.
pub fn write(
    experiment: &Experiment,
    config: &Config,
    role: Role,
    task: &Task,
    root: &Path,
    overwrite: bool,
) -> Result<Description> {
    let place = place_of(root)?;
    recover(&place)?;
    let temporary = Staging::new(&place, Placement::of(&place, occupied(root, overwrite)?))?;
    let folder = temporary.path();
    let (description, trained) = describe(experiment, config, role, task)?;
    network(experiment, role, root, &folder.join(NETWORK))?;
    if description.query.is_some() {
        network(experiment, Role::Student, root, &folder.join(QUERY))?;
    }
    write_atomic(&folder.join(TRAINED), &trained.to_bytes()?)?;
    write_json(&folder.join(CLASSES), &experiment.stream.classes())?;
    write_json(&folder.join(MODEL), &description)?;
    let sums: Result<BTreeMap<String, String>> = description
        .files()
        .into_iter()
        .map(|name| Ok((name.clone(), checksum(&folder.join(name))?.1)))
        .collect();
    ChecksumList(sums?).write(&folder.join(checksum_list::NAME))?;
    check(experiment, role, folder)?;
    sync_below(folder)?;
    temporary.move_to(&place, MODEL)?;
    Ok(description)
}

/// Returns whether the folder contains an exported model that is to be replaced.
///
/// # Errors
/// A folder that is not empty, unless `overwrite` is set and it contains only an exported model.
fn occupied(root: &Path, overwrite: bool) -> Result<bool> {
    let entries = if_there(fs::read_dir(root)).map_err(|e| fail(root, format!("cannot be used: {e}")))?;
    // A killed process may have left a temporary folder, which is removed.
    let is_left = |entry: &std::io::Result<fs::DirEntry>| {
        entry.as_ref().is_ok_and(|entry| is_temporary(&entry.file_name()))
    };
    if entries.is_none_or(|mut entries| entries.all(|entry| is_left(&entry))) {
        return Ok(false);
    }
    // Checked also without --overwrite, so that the message does not suggest an option that would fail.
    only_exported(root)?;
    match overwrite {
        true => Ok(true),
        false => Err(fail(root, "already exists; choose another folder or add --overwrite")),
    }
}

/// Checks that a folder contains nothing but an exported model.
fn only_exported(root: &Path) -> Result<()> {
    let refuse =
        |file: &Path, what: &str| fail(file, format!("{what} and is not overwritten; choose another folder"));
    let model = root.join(MODEL);
    let bytes = crate::system::files::read(&model).unwrap_or_default();
    let Ok(description) = serde_json::from_slice::<Description>(&bytes) else {
        return Err(refuse(&model, "is not the description of an exported model"));
    };
    let mut known: Vec<PathBuf> = description.files().iter().map(|name| root.join(name)).collect();
    known.push(root.join(checksum_list::NAME));
    let is_above = |folder: &Path| known.iter().any(|file| file.starts_with(folder));
    for entry in WalkDir::new(root).min_depth(1) {
        let path = entry.map_err(walk_error(root))?.into_path();
        if !(known.contains(&path) || path.is_dir() && is_above(&path)) {
            return Err(refuse(&path, "is not part of an exported model"));
        }
    }
    Ok(())
}

/// Returns the description and the trained tensors of the exported model.
fn describe(
    experiment: &Experiment,
    config: &Config,
    role: Role,
    task: &Task,
) -> Result<(Description, StateDict)> {
    let (run, trainer, stream) = (&config.run, &experiment.trainer, experiment.stream.as_ref());
    let frozen = |role: Role| -> Result<FrozenNetwork> {
        let section = run.network(role);
        Ok(FrozenNetwork {
            plugin: section.name.clone(),
            settings: section.settings.clone(),
            spec: trainer.network(role).backbone.spec().clone(),
        })
    };
    let (distillers, trained) = match role {
        Role::Teacher => (Vec::new(), trainer.teacher.learner.state()?),
        Role::Student => student(experiment, config)?,
    };
    let students_query = role == Role::Teacher && trainer.settings.query == QuerySource::Student;
    let needs_query = students_query && uses_query(experiment, role)?;
    let query_width = trainer.query_backbone(role).spec().width;
    let record = stream.record()?;
    let transform = record.transform.unwrap_or_else(|| {
        tracing::warn!(
            "the stream `{}` has no transform for image files; the exported model will resize images to a square of {} px",
            run.stream.name,
            stream.image_size()
        );
        let image_size = stream.image_size();
        TransformConfig { image_size, test: TestTransform::Resize, ..TransformConfig::default() }
    });
    let description = Description {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        role,
        tasks: stream.tasks().iter().take(task.index + 1).map(|task| task.classes.clone()).collect(),
        task_count: task.count,
        transform,
        batch_size: run.batch_size,
        network: frozen(role)?,
        query: if needs_query { Some(frozen(Role::Student)?) } else { None },
        query_width: (students_query && !needs_query).then_some(query_width),
        learner: run.learner(role).0,
        teacher: (!distillers.is_empty()).then(|| trainer.teacher.backbone.spec().clone()),
        distillers,
        seed: run.seed,
        mode: run.mode,
        precision: run.precision,
        plugins: Vec::new(),
        split_sha256: record.fingerprint,
    };
    let loaded = run.loaded_plugins().into_iter().filter(|loaded| needs(&description, loaded));
    let plugins = loaded.map(PluginRecord::of).collect();
    Ok((Description { plugins, ..description }, trained))
}

/// Returns whether the learner of `role` uses the query in prediction. If not, the network that computes the query is
/// not exported.
fn uses_query(experiment: &Experiment, role: Role) -> Result<bool> {
    let trainer = &experiment.trainer;
    let zeros =
        Tensor::zeros((1, trainer.query_backbone(role).spec().width), DType::F32, &experiment.device)?;
    let query = Query::known(zeros);
    trainer.network(role).learner.inject(&query, Pass::Test)?;
    Ok(query.was_requested())
}

/// Returns whether a model uses a method of a loaded plugin.
fn needs(model: &Description, loaded: &Loaded) -> bool {
    let mut networks = [Some(&model.network), model.query.as_ref()].into_iter().flatten();
    let mut distillers = model.distillers.iter();
    networks.any(|network| loaded.registers(Kind::Backbone, &network.plugin))
        || loaded.registers(Kind::Learner, &model.learner.name)
        || distillers.any(|distiller| loaded.registers(Kind::Distiller, &distiller.section.name))
}

/// Returns the student's distillation methods that inject prompts at test or replace the prediction, and the trained
/// tensors of the learner and of these methods.
fn student(experiment: &Experiment, config: &Config) -> Result<(Vec<ExportedDistiller>, StateDict)> {
    let (run, trainer) = (&config.run, &experiment.trainer);
    let all = trainer.state(Role::Student)?;
    let mut trained = trainer.student.learner.state()?;
    let mut exported = Vec::new();
    let builder = RunBuilder::new(config, &experiment.device, experiment.stream.as_ref());
    let specs = [trainer.teacher.backbone.spec(), trainer.student.backbone.spec()];
    for (index, section) in run.distillers().iter().enumerate() {
        let mut distiller = builder.distiller(index, section, specs, trainer.student.learner.as_ref())?;
        distiller.restore(&all)?;
        let injection = distiller.inject(Pass::Test)?;
        if distiller.predicts() || injection.tokens.is_some() || !injection.blocks.is_empty() {
            trained.extend(distiller.state()?);
            exported.push(ExportedDistiller { index, section: section.clone() });
        }
    }
    Ok((exported, trained))
}

fn network(experiment: &Experiment, role: Role, root: &Path, folder: &Path) -> Result<()> {
    let backbone = &experiment.trainer.network(role).backbone;
    let portable = backbone.portable()?.ok_or_else(|| {
        let plugin = &backbone.spec().plugin;
        fail(root, format!("the backbone `{plugin}` cannot be exported: it does not implement `portable`"))
    })?;
    write_network(&portable, folder)
}

/// Writes the files of a network to `folder`, which is created if necessary.
pub(crate) fn write_network(network: &Portable, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(crate::error::io(folder))?;
    write_atomic(&folder.join(Portable::WEIGHTS), &network.weights.to_bytes()?)?;
    write_atomic(&folder.join(Portable::CONFIG), format!("{:#}\n", network.config).as_bytes())
}

/// Checks that the exported model computes the same logits as the network of the run.
fn check(experiment: &Experiment, role: Role, folder: &Path) -> Result<()> {
    let Some(batch) = experiment.stream.test_batches(0, VERIFIED_IMAGES).next() else { return Ok(()) };
    let pixels = batch?.pixels;
    let values = |logits: Tensor| -> Result<Vec<f32>> { Ok(logits.flatten_all()?.to_vec1()?) };
    let original = values(experiment.trainer.predict(role, &pixels)?)?;
    let exported = values(Predictor::load_on(folder, &experiment.device)?.logits(&pixels)?)?;
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    if bits(&original) != bits(&exported) {
        return Err(Error::ContractViolation {
            plugin: format!("the {} of this run", role.as_str()),
            promise: "a model built from its exported files computes the same logits".into(),
        });
    }
    Ok(())
}
