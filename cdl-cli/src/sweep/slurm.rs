//! Script that runs the cells of a sweep as a job array of Slurm.

use std::{borrow::Cow, path::Path};

use cdl_core::{config::Config, system::atomic::write_atomic};

use super::{
    cell_states::{read_all, write},
    grid::Sweep,
    plan::Cell,
};
use crate::{failure::Failure, terminal};

const FILE: &str = "sweep.slurm";
/// Seconds before the time limit at which a cell is signalled to save its run.
const STOP_NOTICE: u32 = 180;

/// Writes the script and prints the commands that start it and collect the results.
pub fn emit(sweep: &Sweep) -> Result<(), Failure> {
    let states = read_all(sweep)?;
    write(sweep, &states)?;
    let file = sweep.folder.join(FILE);
    write_atomic(&file, script(sweep)?.as_bytes())?;
    let (file, folder) = (quoted(&file)?, quoted(&sweep.folder)?);
    terminal::emit(&format!(
        "{file}\n  start:   sbatch {file}\n  collect: cdl sweep --resume {folder} --collect\n"
    ))
}

/// Script with a job for each cell. Cells are addressed by name, since their numbers change when the sweep is extended.
/// When a job is signalled to stop (time limit or preemption), the cell saves its run, and the job requeues itself to
/// continue it. Cells without checkpoints are not requeued: they would start from the beginning each time and never
/// finish.
fn script(sweep: &Sweep) -> Result<String, Failure> {
    let fail = |name: &str, e: std::io::Error| Failure::working(format!("{name} cannot be found: {e}"));
    let program = std::env::current_exe().map_err(|e| fail("this program", e))?;
    let here = std::env::current_dir().map_err(|e| fail("the working directory", e))?;
    let last = sweep.cells.len().saturating_sub(1);
    let (program, here, folder) = (quoted(&program)?, quoted(&here)?, quoted(&sweep.folder)?);
    let names: String = sweep.cells.iter().map(|cell| format!("    {}\n", cell.name)).collect();
    let unsaved = |(cell, config): (&Cell, &Result<Config, String>)| {
        config.as_ref().is_ok_and(|config| config.run.checkpoint.off).then(|| format!("{} ", cell.name))
    };
    let unsaved: String = sweep.cells.iter().zip(&sweep.configs).filter_map(unsaved).collect();
    Ok(format!(
        "#!/bin/bash
#SBATCH --job-name=cdl-sweep
#SBATCH --array=0-{last}
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
name=\"${{cells[SLURM_ARRAY_TASK_ID]:?the sweep has the cells 0 to {last}}}\"

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
{program} ${{threads:+--threads \"$threads\"}} sweep --resume {folder} --cell \"$name\" &
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
    fn paths_are_quoted_for_the_shell() {
        let of = |path: &str| quoted(Path::new(path)).map(String::from).map_err(|e| e.message);
        assert_eq!(of("runs/a-b_1.2"), Ok("runs/a-b_1.2".into()));
        assert_eq!(of("a b/$(c)"), Ok("'a b/$(c)'".into()));
        assert_eq!(of("it's"), Ok(r#""it's""#.into()));
        assert!(of("a\nb").is_err_and(|message| message.contains("choose another")));
    }
}
