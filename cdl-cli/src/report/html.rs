//! Elements of HTML pages. A page is one file without scripts or external resources.

use std::fmt::Display;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::plot::{self, PALETTE, printable};

const STYLE: &str = "
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,'Segoe UI',Helvetica,Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:24px;margin:8px 0 2px;overflow-wrap:anywhere}h2{font-size:18px;margin:34px 0 4px}
p{margin:2px 0 10px;color:var(--quiet);max-width:75ch;overflow-wrap:anywhere}b,strong{color:var(--ink)}
.warning{border-left:4px solid var(--s1);padding-left:10px}
.plots{display:flex;flex-wrap:wrap;gap:18px 26px;margin-bottom:10px}.plots>div{overflow-x:auto;max-width:100%;flex:0 1 auto}
.wide{overflow-x:auto}svg{display:block;height:auto}
table{border-collapse:collapse;font-size:14px;margin-bottom:14px}th,td{text-align:left;vertical-align:top;padding:6px 14px 6px 0;border-bottom:1px solid var(--rule)}
th{font-weight:600}td.n,th.n{text-align:right}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}th.n{min-width:5em;vertical-align:bottom}
th:first-child,td:first-child{position:sticky;left:0;background:var(--page);min-width:9em;max-width:18em;overflow-wrap:anywhere}
td.key{overflow-wrap:normal;min-width:11em}td.part{padding-left:1.2em}
td small,th small{display:block;font-weight:400;color:var(--quiet);font-size:12px}code,pre{font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace}
td code{overflow-wrap:anywhere}td.key code{overflow-wrap:normal}pre{overflow-x:auto;border:1px solid var(--rule);padding:10px 12px;border-radius:6px}
summary{cursor:pointer;padding:4px 0;overflow-wrap:anywhere}
@media(max-width:480px){th:first-child,td:first-child{max-width:10em}td.key{min-width:9em}}
";

/// Page with a title and a body.
pub fn document(title: &str, body: &Markup) -> String {
    let light = PALETTE.map(|(name, light, _)| format!("--{name}:{light};")).concat();
    let dark = PALETTE.map(|(name, _, dark)| format!("--{name}:{dark};")).concat();
    let colours = format!(
        "\n:root{{color-scheme:light dark;{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    );
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                meta name="color-scheme" content="light dark";
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(colours)) (PreEscaped(STYLE)) (PreEscaped(plot::STYLE)) }
            }
            body { main { h1 { (title) } (body) } }
        }
    };
    printable(&page.into_string())
}

/// Table that scrolls in its own box if the window is narrow.
pub fn table(head: &Markup, rows: &Markup) -> Markup {
    html! { div.wide { table { thead { tr { (head) } } tbody { (rows) } } } }
}

/// Title of a column of numbers, with a note below it.
pub fn number_head(name: &str, note: Option<&str>) -> Markup {
    html! { th.n { (name) @if let Some(note) = note { small { (note) } } } }
}

/// Number in a table: `value` with all digits as an attribute for programs, formatted by `shown` for readers, and
/// followed by `more`.
pub fn number<V: Display>(id: &str, value: Option<V>, shown: impl Fn(V) -> String, more: &Markup) -> Markup {
    let exact = value.as_ref().map_or("null".into(), V::to_string);
    html! { td.n { data id=(id) value=(exact) { (value.map_or("–".into(), shown)) } (more) } }
}

/// Dotted name that may be broken after each dot.
pub fn breakable(name: &str) -> Markup {
    html! { @for part in name.split_inclusive('.') { (part) @if part.ends_with('.') { wbr; } } }
}

/// Text of a file, folded under its name.
pub fn file(name: &str, text: &str) -> Markup {
    html! { details { summary { (name) } pre { (text) } } }
}
