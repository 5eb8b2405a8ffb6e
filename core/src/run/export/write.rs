//! Writing the folder.

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
        checksum_list::{self, Manifest},
    },
    registry::{Kind, dynamic::Loaded},
    run::{
        Experiment, PluginRecord,
        builder::RunBuilder,
        export::{
            CLASSES, Description, FORMAT, FrozenNetwork, Kept, MODEL, NETWORK, Predictor, QUERY, TRAINED,
            fail,
        },
    },
    system::atomic::{beside, folder_of, settle, sync_below, unwalked, write_atomic, write_json},
    traits::{Pass, Portable, Query, QuerySource, Role, StateDict, Task},
    transform::{TestTransform, TransformConfig},
};

/// Images on which the folder is tried before it is put into its place.
const TRIED: usize = 4;

/// Writes the network `role` of `experiment`, which is as it was after `task`, into the new folder `root`: whole or not at
/// all, and only if what is read from there predicts the same bytes.
///
/// # Errors
/// A folder that is not empty, unless `overwrite` is set and an exported model is in it; a backbone that cannot be
/// exported; a place that cannot be written.
pub fn write(
    experiment: &Experiment,
    config: &Config,
    role: Role,
    task: &Task,
    root: &Path,
    overwrite: bool,
) -> Result<Description> {
    let replace = occupied(root, overwrite)?;
    let parent = folder_of(root);
    fs::create_dir_all(parent).map_err(crate::error::io(parent))?;
    let fresh = beside(parent)?;
    let folder = fresh.path();
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
    Manifest(sums?).write(&folder.join(checksum_list::NAME))?;
    check(experiment, role, folder)?;
    sync_below(folder)?;
    settle(fresh, root, replace)?;
    Ok(description)
}

/// Whether an exported model is there that is to be replaced.
fn occupied(root: &Path, overwrite: bool) -> Result<bool> {
    let entries = if_there(fs::read_dir(root)).map_err(|e| fail(root, format!("cannot be used: {e}")))?;
    if entries.is_none_or(|mut entries| entries.next().is_none()) {
        return Ok(false);
    }
    // What --overwrite would not replace is refused in the same words without it.
    only_exported(root)?;
    match overwrite {
        true => Ok(true),
        false => Err(fail(root, "already exists; choose another folder or add --overwrite")),
    }
}

/// Refuses a folder that holds anything but an exported model.
fn only_exported(root: &Path) -> Result<()> {
    let stranger =
        |file: &Path, what: &str| fail(file, format!("{what}: it is not overwritten; choose another folder"));
    let model = root.join(MODEL);
    let bytes = fs::read(&model).unwrap_or_default();
    let Ok(description) = serde_json::from_slice::<Description>(&bytes) else {
        return Err(stranger(&model, "is not the description of an exported model"));
    };
    let mut known: Vec<PathBuf> = description.files().iter().map(|name| root.join(name)).collect();
    known.push(root.join(checksum_list::NAME));
    let is_above = |folder: &Path| known.iter().any(|file| file.starts_with(folder));
    for entry in WalkDir::new(root).min_depth(1) {
        let path = entry.map_err(unwalked(root))?.into_path();
        if !(known.contains(&path) || path.is_dir() && is_above(&path)) {
            return Err(stranger(&path, "is no part of an exported model"));
        }
    }
    Ok(())
}

/// What the folder holds besides frozen networks and names.
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
    let asks = students_query && asks_for_query(experiment, role)?;
    let query_width = trainer.querying(role).spec().width;
    let record = stream.record()?;
    let transform = record.transform.unwrap_or_else(|| {
        tracing::warn!(
            "the stream `{}` does not say how its images are made from files: they will be resized to a square of {} px",
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
        query: if asks { Some(frozen(Role::Student)?) } else { None },
        query_width: (students_query && !asks).then_some(query_width),
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

/// Whether the learner of `role` looks at the query when it predicts. If not, the network that makes it is not needed.
fn asks_for_query(experiment: &Experiment, role: Role) -> Result<bool> {
    let trainer = &experiment.trainer;
    let nothing = Tensor::zeros((1, trainer.querying(role).spec().width), DType::F32, &experiment.device)?;
    let query = Query::known(nothing);
    trainer.network(role).learner.inject(&query, Pass::Test)?;
    Ok(query.was_requested())
}

/// Whether a model uses a method of a loaded plugin.
fn needs(model: &Description, loaded: &Loaded) -> bool {
    let mut networks = [Some(&model.network), model.query.as_ref()].into_iter().flatten();
    let mut distillers = model.distillers.iter();
    networks.any(|network| loaded.registers(Kind::Backbone, &network.plugin))
        || loaded.registers(Kind::Learner, &model.learner.name)
        || distillers.any(|kept| loaded.registers(Kind::Distiller, &kept.section.name))
}

/// The student's distillation methods that inject something at test or have a word in the prediction, and what the learner
/// and they have trained.
fn student(experiment: &Experiment, config: &Config) -> Result<(Vec<Kept>, StateDict)> {
    let (run, trainer) = (&config.run, &experiment.trainer);
    let all = trainer.state(Role::Student)?;
    let mut trained = trainer.student.learner.state()?;
    let mut kept = Vec::new();
    let builder = RunBuilder::new(config, &experiment.device, experiment.stream.as_ref());
    let specs = [trainer.teacher.backbone.spec(), trainer.student.backbone.spec()];
    for (index, section) in run.distillers().iter().enumerate() {
        let mut distiller = builder.distiller(index, section, specs, trainer.student.learner.as_ref())?;
        distiller.restore(&all)?;
        let injection = distiller.inject(Pass::Test)?;
        if distiller.predicts() || injection.tokens.is_some() || !injection.blocks.is_empty() {
            trained.extend(distiller.state()?);
            kept.push(Kept { index, section: section.clone() });
        }
    }
    Ok((kept, trained))
}

fn network(experiment: &Experiment, role: Role, root: &Path, folder: &Path) -> Result<()> {
    let backbone = &experiment.trainer.network(role).backbone;
    let portable = backbone.portable()?.ok_or_else(|| {
        let plugin = &backbone.spec().plugin;
        fail(root, format!("the backbone `{plugin}` cannot be exported: it does not implement `portable`"))
    })?;
    write_network(&portable, folder)
}

/// Writes a network's files into `folder`, which is made if it is not there.
pub(crate) fn write_network(network: &Portable, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(crate::error::io(folder))?;
    write_atomic(&folder.join(Portable::WEIGHTS), &network.weights.to_bytes()?)?;
    write_atomic(&folder.join(Portable::CONFIG), format!("{:#}\n", network.config).as_bytes())
}

/// Refuses a folder from which other logits come than from the run's networks.
fn check(experiment: &Experiment, role: Role, folder: &Path) -> Result<()> {
    let Some(batch) = experiment.stream.test_batches(0, TRIED).next() else { return Ok(()) };
    let pixels = batch?.pixels;
    let values = |logits: Tensor| -> Result<Vec<f32>> { Ok(logits.flatten_all()?.to_vec1()?) };
    let ours = values(experiment.trainer.predict(role, &pixels)?)?;
    let exported = values(Predictor::load_on(folder, &experiment.device)?.logits(&pixels)?)?;
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    if bits(&ours) != bits(&exported) {
        return Err(Error::Promise {
            plugin: format!("the {} of this run", role.as_str()),
            promise: "built again from its files, a model predicts the same".into(),
        });
    }
    Ok(())
}
