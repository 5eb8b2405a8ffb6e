//! Which prompts the test images take.

use cdl_core::{PoolUse, Role, UseTable};

use super::{
    Run, file_name, numbers,
    plot::{self, Cell, Key, Plot},
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
                shade: value / largest.max(f64::MIN_POSITIVE),
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
    let (what, key) = match &pool.table {
        UseTable::Counts(_) => ("% of images", shares()),
        UseTable::MeanWeights(_) => ("mean weight", weights(largest)),
    };
    let names = (&numbers(rows.len())[..], &numbers(prompts)[..]);
    let title = format!("{title}, {}: {what}", pool.pool);
    plot::heat(&title, names, ("image's task", "prompt"), &cells, Some(&key))
}

fn shares() -> Key {
    let what = "shade: share of the task's images that take the prompt".into();
    Key { what, ends: ("0 %".into(), "100 %".into()), signed: false }
}

/// Up to the `largest` of this pool, whatever its sign.
fn weights(largest: f64) -> Key {
    let what = "shade: mean weight; below zero brown, with a stroke or a minus".into();
    let end =
        if largest < 0.01 && largest > 0.0 { format!("{largest:.1e}") } else { format!("{largest:.2}") };
    Key { what, ends: (format!("-{end}"), end), signed: true }
}
