//! The cells of a sweep as a job array.

use std::{borrow::Cow, path::Path};

use cdl_core::{config::Config, system::atomic::write_atomic};

use super::{
    cell_states::{look, write},
    grid::Sweep,
    plan::Cell,
};
use crate::{failure::Failure, terminal};

const FILE: &str = "sweep.slurm";
/// Seconds before the time limit at which a cell is told to save.
const NOTICE: u32 = 180;

/// Writes the script and says how it is used.
pub fn emit(sweep: &Sweep) -> Result<(), Failure> {
    let states = look(sweep)?;
    write(sweep, &states)?;
    let file = sweep.folder.join(FILE);
    write_atomic(&file, script(sweep)?.as_bytes())?;
    let (file, folder) = (quoted(&file)?, quoted(&sweep.folder)?);
    terminal::emit(&format!(
        "{file}\n  start:   sbatch {file}\n  collect: cdl sweep --resume {folder} --collect\n"
    ))
}

/// A job for each cell, which it calls by its name: numbers change when the sweep grows. Being told to stop, by the time
/// limit or by preemption, a cell saves its run; the job then puts itself into the queue again and goes on from there.
/// A cell that is not to be saved is not queued again: it would begin anew until the time limit, each time.
fn script(sweep: &Sweep) -> Result<String, Failure> {
    let lost = |what: &str, e: std::io::Error| Failure::working(format!("{what} cannot be found: {e}"));
    let program = std::env::current_exe().map_err(|e| lost("this program", e))?;
    let here = std::env::current_dir().map_err(|e| lost("the working directory", e))?;
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
#SBATCH --signal=B:TERM@{NOTICE}
#SBATCH --requeue
#SBATCH --open-mode=append
# What a cell needs here; options of sbatch win over these lines.
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=8
##SBATCH --gres=gpu:1

# A job of this array runs one cell of a sweep. Told to stop, the cell saves its run; queued again, it goes on.
# When all are done, tables and figure: cdl sweep --resume {folder} --collect
cells=(
{names})
# Those with `checkpoint.off = true`.
unsaved=\" {unsaved}\"
cd {here} || exit 1
threads=\"${{SLURM_CPUS_PER_TASK:-}}\"
name=\"${{cells[SLURM_ARRAY_TASK_ID]:?the sweep has the cells 0 to {last}}}\"

# A signal is passed on once, for a second one would end the cell before it has saved its run.
told= passed= cell=
pass() {{
    told=1
    if [ -n \"$cell\" ] && [ -z \"$passed\" ]; then
        passed=1
        kill -TERM \"$cell\" 2>/dev/null
    fi
}}
trap pass TERM INT
{program} ${{threads:+--threads \"$threads\"}} sweep --resume {folder} --cell \"$name\" &
cell=$!
[ -z \"$told\" ] || pass
wait \"$cell\"
code=$?
# A wait that a signal has ended says nothing of the cell; the next one gives it the time to save, and has its own code.
while [ -n \"$told\" ]; do
    told=
    wait \"$cell\"
    code=$?
done
# 143 is a cell that was told to stop and is not finished. One that was not saved would begin anew, and never end.
if [ \"$code\" = 143 ] && [[ \"$unsaved\" != *\" $name \"* ]] && command -v scontrol >/dev/null; then
    scontrol requeue \"${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}\"
fi
# What has killed the cell kept it from saying so.
if [ \"$code\" -gt 128 ] && [ \"$code\" != 130 ] && [ \"$code\" != 143 ]; then
    echo \"its process was ended by signal $((code - 128))\" > {folder}/logs/\"$name\".failure
fi
exit \"$code\"
"
    ))
}

/// A path as one word of the shell.
fn quoted(path: &Path) -> Result<Cow<'_, str>, Failure> {
    let text = path.to_str().filter(|text| !text.contains('\n'));
    text.and_then(|text| shlex::try_quote(text).ok()).ok_or_else(|| {
        Failure::invalid(format!("{}: a script cannot have this path; choose another", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_word_of_the_shell() {
        let of = |path: &str| quoted(Path::new(path)).map(String::from).map_err(|e| e.message);
        assert_eq!(of("runs/a-b_1.2"), Ok("runs/a-b_1.2".into()));
        assert_eq!(of("a b/$(c)"), Ok("'a b/$(c)'".into()));
        assert_eq!(of("it's"), Ok(r#""it's""#.into()));
        assert!(of("a\nb").is_err_and(|message| message.contains("choose another")));
    }
}
