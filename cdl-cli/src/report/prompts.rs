//! Which prompts the test images take.

use cdl_core::{PoolUse, Role, UseTable};

use super::{
    Run, file_name, numbers,
    plot::{self, Cell, Plot},
};

/// A heat map for each pool of a network.
pub fn plots(run: &Run, role: Role, title: &str) -> Vec<(String, Plot)> {
    let pools = run.results.prompt_use.of(role).into_iter().flatten();
    let one = |pool: &PoolUse| {
        let file = format!("prompts_{}_{}", role.as_str(), file_name(&pool.pool));
        (file, heat(pool, title))
    };
    pools.map(one).collect()
}

fn heat(pool: &PoolUse, title: &str) -> Plot {
    let rows = pool.rows();
    let prompts = rows.iter().map(Vec::len).max().unwrap_or(0);
    let largest = rows.iter().flatten().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let cell = |task: usize, prompt: usize, value: f64| {
        let place = format!("task {}, prompt {}", task + 1, prompt + 1);
        match &pool.table {
            UseTable::Counts(_) => Cell {
                shade: value,
                label: if value == 0.0 { String::new() } else { format!("{:.0}", 100.0 * value) },
                tip: format!("{place}: {:.1} % of the images", 100.0 * value),
            },
            UseTable::MeanWeights(_) => Cell {
                shade: value.abs() / largest.max(f64::MIN_POSITIVE),
                label: format!("{value:.2}").replace("-0.00", "0.00"),
                tip: format!("{place}: mean weight {value:.4}"),
            },
        }
    };
    let cells: Vec<Vec<Option<Cell>>> = (rows.iter().enumerate())
        .map(|(task, row)| {
            row.iter().enumerate().map(|(prompt, value)| Some(cell(task, prompt, *value))).collect()
        })
        .collect();
    let what = match &pool.table {
        UseTable::Counts(_) => "% of images",
        UseTable::MeanWeights(_) => "mean weight",
    };
    let names = (&numbers(rows.len())[..], &numbers(prompts)[..]);
    plot::heat(&format!("{title}, {}: {what}", pool.pool), names, ("image's task", "prompt"), &cells)
}
