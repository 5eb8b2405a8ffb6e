//! The figure and the page of a sweep.

use cdl_core::{DEFINITIONS, Role};

use super::{cell_states::State, grid::Sweep, layout::FILE, statistics::Spread, summary::Summary};
use crate::report::{
    html::{escape, head},
    place_page,
    plot::{Axes, Plot, Series, banded},
};

/// Accuracy after each task: means, in bands of one standard deviation.
pub fn figure(summary: &Summary) -> Plot {
    let (mut series, mut bands, mut tasks) = (Vec::new(), Vec::new(), 0);
    for (number, combination) in summary.combinations.iter().enumerate() {
        for role in summary.roles() {
            let progress = combination.progress(role);
            tasks = tasks.max(progress.len());
            if progress.is_empty() {
                continue;
            }
            let name = match summary.roles().len() {
                1 => combination.title(),
                _ => format!("{}, {}", combination.title(), role.as_str()),
            };
            let dashed = role == Role::Teacher;
            let values = progress.iter().map(|spread| spread.map(|spread| spread.mean)).collect();
            series.push(Series { name, colour: number, dashed, values });
            let ends = |spread: Spread| {
                let deviation = spread.deviation?;
                Some((spread.mean - deviation, spread.mean + deviation))
            };
            bands.push(progress.iter().map(|spread| spread.and_then(ends)).collect());
        }
    }
    let places = (1..=tasks).map(|task| task.to_string()).collect();
    let axes = Axes { x: "after task", percent: true, places, groups: Vec::new() };
    banded("Average accuracy over tasks so far, %", &axes, &series, &bands, 620.0)
}

/// The whole page; every cell that is done gets a page of its own, to which it leads.
pub fn page(sweep: &Sweep, summary: &Summary, states: &[State], figure: &Plot) -> String {
    let mut page = head(&escape(&summary.name));
    page += &format!("<p>{} of {} cells done.</p>\n", summary.done(), summary.cells());
    page += "<h2>Means</h2>\n<p>In percent, ± sample standard deviation over the repetitions. Below each value stands its \
             difference from the baseline's, taken repetition by repetition, with its 95 % interval \
             by Student's t distribution.</p>\n";
    for role in summary.roles() {
        page += &means(summary, role);
    }
    page += "<h2>Accuracy after each task</h2>\n<p>Mean over the tasks seen so far, averaged over the repetitions; bands \
             are one standard deviation to either side.</p>\n<div class=\"plots\"><div>";
    page += &figure.inline();
    page += "</div></div>\n<h2>Cells</h2>\n";
    page += &cells(sweep, summary, states);
    let plan = std::fs::read_to_string(sweep.folder.join(FILE)).unwrap_or_default();
    page += &format!(
        "<h2>Plan</h2>\n<details><summary>sweep.toml</summary><pre>{}</pre></details>\n",
        escape(&plan)
    );
    page + "</main>\n</body>\n</html>\n"
}

/// A row for each combination, a column for each definition.
fn means(summary: &Summary, role: Role) -> String {
    let name = if summary.vary.is_empty() { "combination".into() } else { summary.vary.join(", ") };
    let mut table = format!(
        "<div class=\"wide\"><table>\n<thead><tr><th>{}<small>{}</small></th><th class=\"n\">n</th>",
        role.as_str(),
        escape(&name)
    );
    for definition in DEFINITIONS {
        table += &format!(
            "<th class=\"n\">{}<small>{}</small></th>",
            definition.title,
            escape(definition.formula)
        );
    }
    table += "</tr></thead>\n<tbody>\n";
    for (number, combination) in summary.combinations.iter().enumerate() {
        let mark = if number == summary.baseline { "<small>baseline</small>" } else { "" };
        let title = escape(&combination.title());
        table += &format!("<tr><td>{title}{mark}</td><td class=\"n\">{}</td>", combination.done());
        for definition in &DEFINITIONS {
            let spread = combination.spread(role, definition);
            let shown = spread.map_or("–".into(), |spread| format!("{:.2}", spread.mean));
            let exact = spread.map_or("null".into(), |spread| spread.mean.to_string());
            let deviation = spread.and_then(|spread| spread.deviation);
            let deviation = deviation.map(|deviation| format!(" ± {deviation:.2}")).unwrap_or_default();
            let apart = summary.difference(number, role, definition).map(|apart| {
                let interval = apart.interval().map(|(low, high)| format!(" [{low:.2}, {high:.2}]"));
                format!("<small>{:+.2}{}</small>", apart.mean, interval.unwrap_or_default())
            });
            table += &format!(
                "<td class=\"n\"><data id=\"{}-{}-{}\" value=\"{exact}\">{shown}</data>{deviation}{}</td>",
                number + 1,
                role.as_str(),
                definition.name,
                apart.unwrap_or_default()
            );
        }
        table += "</tr>\n";
    }
    table + "</tbody>\n</table></div>\n"
}

/// A row for each cell: what has become of it, its published figures, and the way to its own page.
fn cells(sweep: &Sweep, summary: &Summary, states: &[State]) -> String {
    let mut table = String::from("<div class=\"wide\"><table>\n<thead><tr><th>cell</th><th>state</th>");
    let shown = &DEFINITIONS[..2];
    for role in summary.roles() {
        for definition in shown {
            table += &format!("<th class=\"n\">{}<small>{}</small></th>", definition.title, role.as_str());
        }
    }
    table += "</tr></thead>\n<tbody>\n";
    let outcomes = summary.combinations.iter().flat_map(|combination| &combination.cells);
    for ((cell, outcome), state) in sweep.cells.iter().zip(outcomes).zip(states) {
        let name = escape(&cell.name);
        // What cannot be read of one run is no reason to go without the page of all.
        let (name, missing) = match outcome.results.as_ref().map(|_| place_page(&outcome.root)) {
            Some(Ok(())) => (format!("<a href=\"cells/{name}/report.html\">{name}</a>"), None),
            Some(Err(failure)) => {
                tracing::warn!("{} has no page of its own: {}", cell.name, failure.message);
                (name, Some(failure.message))
            }
            None => (name, None),
        };
        let word = match state {
            State::Done => "done",
            State::Waiting => "not begun",
            State::Stopped => "stopped",
            State::Running => "running",
            State::Failed { .. } => "failed",
            State::Unreadable { .. } => "unreadable",
        };
        let reason = state.reason().or(missing.as_deref());
        let reason = reason.map(|reason| format!("<small>{}</small>", escape(reason)));
        let state = format!("{word}{}", reason.unwrap_or_default());
        table += &format!("<tr><td>{name}</td><td>{state}</td>");
        for role in summary.roles() {
            for definition in shown {
                let value = outcome.value(role, definition).map(|value| format!("{value:.2}"));
                table += &format!("<td class=\"n\">{}</td>", value.unwrap_or("–".into()));
            }
        }
        table += "</tr>\n";
    }
    table + "</tbody>\n</table></div>\n"
}
