//! The page: one file without scripts that needs no network.

use cdl_core::{DEFINITIONS, Role};

use super::{
    Run, cost,
    plot::{PALETTE, Plot},
};

/// `text` with nothing in it that HTML or XML would take for more than text.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            // XML has no other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// A part of the page with its plots.
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// A sentence about it.
    pub note: &'static str,
    /// What it shows, with the name of each one's file.
    pub plots: Vec<(String, Plot)>,
}

const STYLE: &str = "
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,'Segoe UI',Helvetica,Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:24px;margin:8px 0 2px;overflow-wrap:anywhere}h2{font-size:18px;margin:34px 0 4px}
p{margin:2px 0 10px;color:var(--quiet);max-width:75ch;overflow-wrap:anywhere}
.plots{display:flex;flex-wrap:wrap;gap:18px 26px}.plots>div{overflow-x:auto;max-width:100%;flex:0 1 auto}
.wide{overflow-x:auto}svg{display:block;height:auto}
table{border-collapse:collapse;font-size:14px}th,td{text-align:left;vertical-align:top;padding:6px 14px 6px 0;border-bottom:1px solid var(--rule)}
th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.part{padding-left:1.2em}
td small,th small{display:block;font-weight:400;color:var(--quiet);font-size:12px}code,pre{font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace}
td code{overflow-wrap:anywhere}pre{overflow-x:auto;border:1px solid var(--rule);padding:10px 12px;border-radius:6px}
summary{cursor:pointer;padding:4px 0;overflow-wrap:anywhere}
";

/// A page as far as its heading; `title` is safe.
pub fn head(title: &str) -> String {
    let colours = |at: fn(&(&str, &str, &str)) -> String| PALETTE.iter().map(at).collect::<String>();
    let light = colours(|(name, light, _)| format!("--{name}:{light};"));
    let dark = colours(|(name, _, dark)| format!("--{name}:{dark};"));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{title}</title>\n<style>\n:root{{color-scheme:light dark;{light}}}\n\
         @media (prefers-color-scheme:dark){{:root{{{dark}}}}}{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n"
    )
}

/// The whole page.
pub fn page(runs: &[Run], sections: &[Section]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let mut page = head(&escape(&names.join(", ")));
    for run in runs {
        page += &format!("<p>{}</p>\n", escape(&run.headline()));
    }
    page += "<h2>Summary</h2>\n<p>All in percent. A[i][j] is the accuracy on task j's test images after learning task i, \
             among all classes seen; T tasks, i and j count from 0.";
    if runs.len() > 1 {
        page += " Below each value stands its difference from the first run's.";
    }
    page += "</p>\n<div class=\"wide\">";
    page += &summary(runs);
    page += "</div>\n";
    for Section { title, note, plots } in sections.iter().filter(|section| !section.plots.is_empty()) {
        page += &format!("<h2>{title}</h2>\n<p>{note}</p>\n<div class=\"plots\">\n");
        for (_, plot) in plots {
            page += &format!("<div>{}</div>\n", plot.inline());
        }
        page += "</div>\n";
    }
    if let Some(table) = cost::table(runs) {
        page += &table;
    }
    page += "<h2>Configuration and record</h2>\n";
    if let Some(differences) = differences(runs) {
        page += &differences;
    }
    for run in runs {
        let (name, config) = (escape(&run.name), escape(&run.config));
        let record = serde_json::to_string_pretty(&run.record).unwrap_or_default();
        page += &format!(
            "<details><summary>{name}: config.toml</summary><pre>{config}</pre></details>\n\
             <details><summary>{name}: run.json</summary><pre>{}</pre></details>\n",
            escape(&record)
        );
    }
    page + "</main>\n</body>\n</html>\n"
}

/// A row for each definition, a column for each network of each run.
fn summary(runs: &[Run]) -> String {
    let columns: Vec<(&Run, Role)> =
        runs.iter().flat_map(|run| run.roles().map(move |role| (run, role))).collect();
    let mut table = String::from("<table>\n<thead><tr><th>Definition</th>");
    for (run, role) in &columns {
        let run =
            if runs.len() > 1 { format!("<small>{}</small>", escape(&run.name)) } else { String::new() };
        table += &format!("<th class=\"n\">{}{run}</th>", role.as_str());
    }
    table += "</tr></thead>\n<tbody>\n";
    for definition in DEFINITIONS {
        table += &format!("<tr><td>{}<small>{}</small></td>", definition.title, escape(definition.formula));
        for (run, role) in &columns {
            let value_of = |run: &Run| run.summary(*role).and_then(definition.value);
            let value = value_of(run);
            let exact = value.map_or("null".to_string(), |value| value.to_string());
            let shown = value.map_or("–".to_string(), |value| format!("{value:.2}"));
            let first = runs.first().filter(|first| !std::ptr::eq(*first, *run)).and_then(value_of);
            let apart =
                value.zip(first).map(|(value, first)| format!("<small>{:+.2}</small>", value - first));
            table += &format!(
                "<td class=\"n\"><data id=\"{}-{}-{}\" value=\"{exact}\">{shown}</data>{}</td>",
                run.number + 1,
                role.as_str(),
                definition.name,
                apart.unwrap_or_default()
            );
        }
        table += "</tr>\n";
    }
    table + "</tbody>\n</table>\n"
}

/// What the configurations of several runs have different.
fn differences(runs: &[Run]) -> Option<String> {
    let keys: std::collections::BTreeSet<&String> = runs.iter().flat_map(|run| run.values.keys()).collect();
    let different = |key: &&String| {
        let mut values = runs.iter().map(|run| run.values.get(*key));
        let first = values.next();
        values.any(|value| Some(value) != first)
    };
    if runs.len() < 2 {
        return None;
    }
    let mut table =
        String::from("<p>Settings that differ.</p>\n<div class=\"wide\"><table>\n<thead><tr><th>Key</th>");
    for run in runs {
        table += &format!("<th>{}</th>", escape(&run.name));
    }
    table += "</tr></thead>\n<tbody>\n";
    for key in keys.into_iter().filter(different) {
        table += &format!("<tr><td><code>{}</code></td>", escape(key));
        for run in runs {
            table +=
                &format!("<td><code>{}</code></td>", escape(run.values.get(key).map_or("–", String::as_str)));
        }
        table += "</tr>\n";
    }
    Some(table + "</tbody>\n</table></div>\n")
}
