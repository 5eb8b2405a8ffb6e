//! `cdl export`: writes trained networks as self-contained folders.

use std::path::PathBuf;

use cdl_core::{
    run::{
        export::{self, Predictor},
        resume_check::check_config,
    },
    traits::Role,
};
use clap::Args;

use super::eval::{Restored, restored};
use crate::{
    config_args::load_recorded,
    failure::Failure,
    output_paths,
    terminal::{count, emit},
};

/// Arguments of `cdl export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl export runs/first --student student
  cdl export runs/first --student student-3 --teacher teacher-3 --task 3

The folder contains the frozen network (the blocks in use), prompts, heads, class names, the image transform and the \
SHA-256 of every file. `cdl predict` uses it without the run and its data. Exporting needs both, as `cdl eval` does. The \
export is verified: it must reproduce the logits of the run's network bit for bit.")]
pub struct ExportArgs {
    /// Directory of a run
    run_dir: PathBuf,
    /// Folder for the student
    #[arg(long, value_name = "DIR", required_unless_present = "teacher")]
    student: Option<PathBuf>,
    /// Folder for the teacher
    #[arg(long, value_name = "DIR")]
    teacher: Option<PathBuf>,
    /// Export the networks saved after this task (from 1) [default: the last finished task]
    #[arg(long, value_name = "N")]
    task: Option<usize>,
    /// Replace an exported network in the folder
    #[arg(long)]
    overwrite: bool,
    /// Override a value of the run's configuration that cannot change results, for instance --set device=cpu;
    /// repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Exports the requested networks.
pub fn export(args: &ExportArgs) -> Result<(), Failure> {
    check_folders(args)?;
    let Restored { config, experiment, task, .. } = restored("export", &args.run_dir, args.task, &args.sets)?;
    // Environment variables and edits of the file can change settings, too, and with them the network.
    check_config(&config, &load_recorded(&args.run_dir.join("config.toml"))?)?;
    let wanted = [(Role::Student, &args.student), (Role::Teacher, &args.teacher)];
    let wanted = || wanted.iter().filter_map(|&(role, folder)| Some((role, folder.as_ref()?)));
    if let Some((role, _)) = wanted().find(|(role, _)| !experiment.trainer.settings.roles.contains(role)) {
        let (role, run) = (role.as_str(), args.run_dir.display());
        return Err(Failure::invalid(format!("--{role}: the run in {run} has not trained the {role}")));
    }
    for (role, folder) in wanted() {
        export::write(&experiment, &config, role, &task, folder, args.overwrite)?;
        let model = Predictor::load_on(folder, &experiment.device)?;
        let (frozen, trained) = model.weight_bytes()?;
        // Printed at once, since the second export may fail.
        let (role, after, tasks) = (role.as_str(), task.index + 1, experiment.stream.tasks().len());
        let (classes, folder) = (count(model.classes().len(), "class"), folder.display());
        let [frozen, trained] = [frozen, trained].map(|bytes| bytes as f64 / 1e6);
        emit(&format!(
            "{role} after task {after} of {tasks}, {classes}: {folder} ({frozen:.1} MB frozen, {trained:.1} MB trained)\n"
        ))?;
    }
    Ok(())
}

/// Checks that the folders can be created and that neither is inside the other, links and `..` resolved.
fn check_folders(args: &ExportArgs) -> Result<(), Failure> {
    for (option, folder) in [("--student", &args.student), ("--teacher", &args.teacher)] {
        folder.as_ref().map_or(Ok(()), |folder| output_paths::folder(option, folder))?;
    }
    let (Some(student), Some(teacher)) = (&args.student, &args.teacher) else { return Ok(()) };
    let [student, teacher] = [student, teacher].map(|folder| output_paths::resolved(folder));
    if !student.starts_with(&teacher) && !teacher.starts_with(&student) {
        return Ok(());
    }
    let (student, teacher) = (student.display(), teacher.display());
    let expected = "expected a folder separate from that of --student";
    Err(Failure::invalid(format!("--teacher {teacher}: {expected}, {student}")))
}
