//! `cdl export`.

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
use crate::{config_args::load_recorded, failure::Failure, output_place, terminal::emit};

/// Arguments of `cdl export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cdl export runs/kd --student student
  cdl export runs/kd --student student-3 --teacher teacher-3 --task 3

The folder holds the frozen network, as many blocks of it as are used, prompts and heads, class names and the way from
image files to pixels, all with their SHA-256. `cdl predict` uses it, without the run and without its data. Making it needs
both, as `cdl eval` does. A folder that predicts other bytes than the run's network is not written.")]
pub struct ExportArgs {
    /// Directory of a run
    run_dir: PathBuf,
    /// Folder for the student
    #[arg(long, value_name = "DIR", required_unless_present = "teacher")]
    student: Option<PathBuf>,
    /// Folder for the teacher
    #[arg(long, value_name = "DIR")]
    teacher: Option<PathBuf>,
    /// The networks as they were after this task, counted from 1 [default: the last finished one]
    #[arg(long, value_name = "N")]
    task: Option<usize>,
    /// Replace the exported network that a folder holds
    #[arg(long)]
    overwrite: bool,
    /// Override a value of the run's configuration that cannot change a result, for instance --set device=cpu
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Writes the folders.
pub fn export(args: &ExportArgs) -> Result<(), Failure> {
    refuse_places(args)?;
    let Restored { config, experiment, task, .. } = restored("export", &args.run_dir, args.task, &args.sets)?;
    // Variables of the environment and an edited file are overrides too; another setting is another network.
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
        // Told at once: it is there whatever becomes of the next.
        let (role, after, tasks) = (role.as_str(), task.index + 1, experiment.stream.tasks().len());
        let (classes, folder) = (model.classes().len(), folder.display());
        let [frozen, trained] = [frozen, trained].map(|bytes| bytes as f64 / 1e6);
        emit(&format!(
            "{role} after task {after} of {tasks}, {classes} classes: {folder} ({frozen:.1} MB frozen, {trained:.1} MB trained)\n"
        ))?;
    }
    Ok(())
}

/// Refuses folders that cannot be made, and one for both networks or in the other, however they are written.
fn refuse_places(args: &ExportArgs) -> Result<(), Failure> {
    for (option, folder) in [("--student", &args.student), ("--teacher", &args.teacher)] {
        folder.as_ref().map_or(Ok(()), |folder| output_place::folder(option, folder))?;
    }
    let (Some(student), Some(teacher)) = (&args.student, &args.teacher) else { return Ok(()) };
    let [student, teacher] = [student, teacher].map(|folder| output_place::resolved(folder));
    if !student.starts_with(&teacher) && !teacher.starts_with(&student) {
        return Ok(());
    }
    let (student, teacher) = (student.display(), teacher.display());
    let expected = "expected a folder apart from that of --student";
    Err(Failure::invalid(format!("--teacher {teacher}: {expected}, {student}")))
}
