//! Script that runs the cells of a sweep as a job array of Slurm.

use std::{borrow::Cow, path::Path};

use cdl_core::{config::Config, system::atomic::write_atomic};

use super::{
    cell_states::{read_all, write},
    grid::Sweep,
    plan::Cell,
};
use crate::{failure::Failure, plugin::loading, terminal};

const FILE: &str = "sweep.slurm";
/// Seconds before the time limit at which a cell is signalled to save its run.
const STOP_NOTICE: u32 = 180;

/// Writes the script and prints the commands that start it and collect the results. An array has at most `limit` jobs.
pub fn emit(sweep: &Sweep, limit: usize) -> Result<(), Failure> {
    let states = read_all(sweep)?;
    write(sweep, &states)?;
    let file = sweep.folder.join(FILE);
    write_atomic(&file, script(sweep, limit)?.as_bytes())?;
    let (file, folder) = (quoted(&file)?, quoted(&sweep.folder)?);
    let mut text = format!("{file}\n  start:   sbatch {file}\n");
    for Array { first, jobs } in arrays(sweep.cells.len(), limit).into_iter().skip(1) {
        text += &format!("           sbatch --array=0-{} {file} {first}\n", jobs - 1);
    }
    terminal::emit(&format!("{text}  collect: cdl sweep --resume {folder} --collect\n"))
}

/// Job array that runs some of the cells.
#[derive(Debug, PartialEq, Eq)]
struct Array {
    /// Number of the cell that the first job runs.
    first: usize,
    /// Number of jobs, at least 1.
    jobs: usize,
}

/// Divides the cells among arrays of at most `limit` jobs. Slurm limits the index of a job, not only their number, so
/// each array begins at index 0.
fn arrays(cells: usize, limit: usize) -> Vec<Array> {
    (0..cells).step_by(limit).map(|first| Array { first, jobs: limit.min(cells - first) }).collect()
}

/// Script with a job for each cell. Cells are addressed by name, since their numbers change when the sweep is extended.
/// When a job is signalled to stop (time limit or preemption), the cell saves its run, and the job requeues itself to
/// continue it. Cells without checkpoints are not requeued: they would start from the beginning each time and never
/// finish.
fn script(sweep: &Sweep, limit: usize) -> Result<String, Failure> {
    let fail = |name: &str, e: std::io::Error| Failure::working(format!("{name} cannot be found: {e}"));
    let program = std::env::current_exe().map_err(|e| fail("this program", e))?;
    let here = std::env::current_dir().map_err(|e| fail("the working directory", e))?;
    let last = sweep.cells.len().saturating_sub(1);
    let last_job = last.min(limit.saturating_sub(1));
    let option = if loading::refused() { format!(" {}", loading::NO_PLUGINS) } else { String::new() };
    let (program, here, folder) = (quoted(&program)?, quoted(&here)?, quoted(&sweep.folder)?);
    let names: String = sweep.cells.iter().map(|cell| format!("    {}\n", cell.name)).collect();
    let unsaved = |(cell, config): (&Cell, &Result<Config, String>)| {
        config.as_ref().is_ok_and(|config| config.run.checkpoint.off).then(|| format!("{} ", cell.name))
    };
    let unsaved: String = sweep.cells.iter().zip(&sweep.configs).filter_map(unsaved).collect();
    Ok(format!(
        "#!/bin/bash
#SBATCH --job-name=cdl-sweep
#SBATCH --array=0-{last_job}
#SBATCH --signal=B:TERM@{STOP_NOTICE}
#SBATCH --requeue
#SBATCH --open-mode=append
# Resources of a cell. Options of sbatch override these lines.
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=8
##SBATCH --gres=gpu:1

# Each job of this array runs one cell of a sweep. When it is stopped, the cell saves its run; when it is requeued, it resumes.
# Tables and figure, when all cells are done: cdl sweep --resume {folder} --collect
cells=(
{names})
# Cells with `checkpoint.off = true`.
unsaved=\" {unsaved}\"
cd {here} || exit 1
threads=\"${{SLURM_CPUS_PER_TASK:-}}\"
# The argument of the script is the number of the first cell. A sweep larger than an array takes several.
first=\"${{1:-0}}\"
name=\"${{cells[first + SLURM_ARRAY_TASK_ID]:?the sweep has the cells 0 to {last}}}\"

# The signal is forwarded once: a second one would end the cell before it has saved its run.
signalled= forwarded= cell=
forward() {{
    signalled=1
    if [ -n \"$cell\" ] && [ -z \"$forwarded\" ]; then
        forwarded=1
        kill -TERM \"$cell\" 2>/dev/null
    fi
}}
trap forward TERM INT
{program}{option} ${{threads:+--threads \"$threads\"}} sweep --resume {folder} --cell \"$name\" &
cell=$!
[ -z \"$signalled\" ] || forward
wait \"$cell\"
code=$?
# A wait interrupted by a signal does not return the cell's exit code. Waiting again gives the cell time to save.
while [ -n \"$signalled\" ]; do
    signalled=
    wait \"$cell\"
    code=$?
done
# 143: the cell was stopped and is not finished. A cell without checkpoints would start again and never finish.
if [ \"$code\" = 143 ] && [[ \"$unsaved\" != *\" $name \"* ]] && command -v scontrol >/dev/null; then
    scontrol requeue \"${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}\"
fi
# A killed cell could not record its failure.
if [ \"$code\" -gt 128 ] && [ \"$code\" != 130 ] && [ \"$code\" != 143 ]; then
    echo \"its process was ended by signal $((code - 128))\" > {folder}/logs/\"$name\".failure
fi
exit \"$code\"
"
    ))
}

/// Quotes a path for the shell.
///
/// # Errors
/// Fails for paths that are not UTF-8 or contain line breaks.
fn quoted(path: &Path) -> Result<Cow<'_, str>, Failure> {
    let text = path.to_str().filter(|text| !text.contains('\n'));
    text.and_then(|text| shlex::try_quote(text).ok()).ok_or_else(|| {
        Failure::invalid(format!(
            "{}: this path cannot be written into a script; choose another",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_in_one_array_and_no_index_exceeds_the_limit() {
        let array = |first, jobs| Array { first, jobs };
        assert_eq!(arrays(4, 1001), [array(0, 4)]);
        assert_eq!(arrays(1001, 1001), [array(0, 1001)]);
        assert_eq!(arrays(1002, 1001), [array(0, 1001), array(1001, 1)]);
        assert_eq!(arrays(7, 3), [array(0, 3), array(3, 3), array(6, 1)]);
    }

    #[test]
    fn paths_are_quoted_for_the_shell() {
        let of = |path: &str| quoted(Path::new(path)).map(String::from).map_err(|e| e.message);
        assert_eq!(of("runs/a-b_1.2"), Ok("runs/a-b_1.2".into()));
        assert_eq!(of("a b/$(c)"), Ok("'a b/$(c)'".into()));
        assert_eq!(of("it's"), Ok(r#""it's""#.into()));
        assert!(of("a\nb").is_err_and(|message| message.contains("choose another")));
    }
}
