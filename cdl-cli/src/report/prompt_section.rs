//! Plots of the prompts that the learner selects for the test images.

use cdl_core::metrics::{PoolUsage, PromptUsageTable};

use super::{
    configuration::Configuration,
    configuration_series::{Plots, each_network, file_name, numbers},
    plot::{self, Cell, Key, Plot},
};

/// Heat map for each pool of each network of each run. Runs are not averaged: a prompt's number means something else
/// with every seed.
pub fn prompts(configurations: &[Configuration]) -> Plots {
    each_network(configurations, |configuration, role, title| {
        let mut plots = Plots::new();
        for (number, run) in (1..).zip(&configuration.runs) {
            let (seed, title) = match configuration.is_repeated() {
                true => (format!("{number}_"), format!("{}: {}", run.name, role.as_str())),
                false => (String::new(), title.to_string()),
            };
            let name =
                |pool: &PoolUsage| format!("{seed}prompts_{}_{}", role.as_str(), file_name(&pool.pool));
            let pools = run.results.prompt_use.of(role).iter().flatten();
            plots.extend(pools.map(|pool| (name(pool), heat(pool, &title))));
        }
        plots
    })
}

fn heat(pool: &PoolUsage, title: &str) -> Plot {
    let rows = pool.rows();
    let prompts = rows.iter().map(Vec::len).max().unwrap_or(0);
    let largest = rows.iter().flatten().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let cell = |task: usize, prompt: usize, &value: &f64| {
        let place = format!("task {}, prompt {}", task + 1, prompt + 1);
        match &pool.table {
            PromptUsageTable::Counts(_) => Cell {
                shade: value,
                label: if value == 0.0 { String::new() } else { format!("{:.0}", 100.0 * value) },
                tip: format!("{place}: {:.1} % of the images", 100.0 * value),
            },
            PromptUsageTable::MeanWeights(_) => Cell {
                shade: value / largest.max(f64::MIN_POSITIVE),
                label: format!("{value:.2}").replace("-0.00", "0.00"),
                tip: format!("{place}: mean weight {value:.4}"),
            },
        }
    };
    let (what, key) = match &pool.table {
        PromptUsageTable::Counts(_) => {
            let what = "shade: share of the task's images for which the prompt is selected";
            ("% of images", Key { what, ends: ("0 %".into(), "100 %".into()), signed: false })
        }
        PromptUsageTable::MeanWeights(_) => {
            let what = "shade: mean weight; negative values are brown and have a minus sign";
            let small = largest < 0.01 && largest > 0.0;
            let end = if small { format!("{largest:.1e}") } else { format!("{largest:.2}") };
            ("mean weight", Key { what, ends: (format!("-{end}"), end), signed: true })
        }
    };
    let names = (&numbers(rows.len())[..], &numbers(prompts)[..]);
    let title = format!("{title}, {}: {what}", pool.pool);
    plot::heat(&title, names, ("image's task", "prompt"), &rows, cell, Some(&key))
}
