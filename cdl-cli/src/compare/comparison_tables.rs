//! Comparisons as plain text, Markdown and CSV.

use super::{
    comparison::{Comparison, Difference, PublishedRow},
    published::{NONE, PARTS, Published, Subject, shown},
};
use crate::{
    failure::Failure,
    report::table_formats::{self, markdown, markdown_safe},
    statistics::signed,
    terminal::{columns, count},
};

impl Difference {
    fn published(&self) -> String {
        if self.published_is_known { shown(&self.published) } else { "not stated".into() }
    }
}

/// Describes a subject.
fn describe(subject: &Subject, published: &Published) -> String {
    let [dataset, teacher, student, learner, distiller, tasks] = &subject.0;
    let networks = match teacher.as_str() {
        NONE => format!("{} alone", published.network(student)),
        teacher => format!("{} to {}", published.network(teacher), published.network(student)),
    };
    format!(
        "{dataset}, {networks}, {learner}, {distiller}, {tasks} {}",
        if tasks == "1" { "task" } else { "tasks" }
    )
}

/// Describes the parts in which two subjects differ.
fn differences(ours: &Subject, other: &Subject, published: &Published) -> String {
    let parts = PARTS.iter().zip(ours.0.iter().zip(&other.0)).filter(|(_, (a, b))| a != b);
    let parts = parts.map(|(part, (a, b))| {
        let name =
            |name: &str| if name == NONE { "none".to_string() } else { published.network(name).into() };
        let part = if *part == "dataset" { "data set" } else { part };
        format!("{part} {} instead of {}", name(a), name(b))
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// Tables for the terminal or in Markdown: own and published results, then the settings that differ.
pub fn text(comparisons: &[Comparison], published: &Published, in_markdown: bool) -> String {
    let safe = |text: String| if in_markdown { markdown_safe(&text) } else { text };
    let table = |head: &[&str], mut rows: Vec<Vec<String>>| {
        let head: Vec<String> = head.iter().copied().map(String::from).collect();
        if in_markdown {
            return markdown(head.len(), &head, &rows);
        }
        rows.insert(0, head);
        columns(&rows)
    };
    let one = |Comparison { own, published: rows, settings_that_differ, notes, nearest }: &Comparison| {
        let title = format!("{}, {}: {}", own.run, own.role.as_str(), describe(&own.subject, published));
        let runs = format!("ours, {}", count(own.average_accuracy.n, "run"));
        let none = String::new;
        let mut figures =
            vec![vec![runs, own.average_accuracy.text(), none(), own.forgetting.text(), none()]];
        figures.extend(rows.iter().map(|row| {
            vec![
                format!("{}, {}", row.version, row.method),
                format!("{:.2}", row.average_accuracy),
                signed(row.average_accuracy_difference),
                format!("{:.2}", row.forgetting),
                signed(row.forgetting_difference),
            ]
        }));
        let head = ["", "average accuracy", "difference", "forgetting", "difference"];
        let mut text = if in_markdown { format!("### {}\n\n", safe(title)) } else { format!("{title}\n") };
        text += &table(&head, figures);
        text.push('\n');
        if let Some(over_images) = &own.accuracy_over_images {
            text += &format!(
                "the average accuracy is over tasks; over all test images (top-1), ours is {}\n\n",
                over_images.text()
            );
        }
        if rows.is_empty() {
            text += "no published row matches; the nearest rows:\n\n";
            for other in nearest {
                let other = format!(
                    "{}: {}",
                    describe(other, published),
                    differences(&own.subject, other, published)
                );
                text += &format!("- {}\n", safe(other));
            }
            return text;
        }
        let row = |one: &Difference| vec![one.what.clone(), shown(&one.ours), one.published()];
        text += &table(&["setting", "ours", "published"], settings_that_differ.iter().map(row).collect());
        for note in notes {
            text += &format!("\nnote: {}\n", safe(note.clone()));
        }
        text
    };
    comparisons.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// CSV with a row for each published row, with all digits. A network without published rows has one row.
pub fn csv(comparisons: &[Comparison]) -> Result<String, Failure> {
    let head = "run,network,dataset,teacher,student,learner,distiller,tasks,n,average_accuracy,average_accuracy_deviation,\
                forgetting,forgetting_deviation,version,published_method,published_average_accuracy,published_forgetting,\
                settings_that_differ";
    let mut lines: Vec<Vec<String>> = Vec::new();
    for Comparison { own, published: rows, settings_that_differ, .. } in comparisons {
        let mut fields = vec![own.run.clone(), own.role.as_str().into()];
        fields.extend(own.subject.0.clone());
        fields.extend(own.average_accuracy.fields());
        fields.extend(own.forgetting.fields().into_iter().skip(1));
        let differ =
            |one: &Difference| format!("{}: {}, published {}", one.what, shown(&one.ours), one.published());
        let differ = settings_that_differ.iter().map(differ).collect::<Vec<_>>().join("; ");
        for PublishedRow { version, method, average_accuracy, forgetting, .. } in rows {
            let figures = [average_accuracy, forgetting].map(f64::to_string);
            lines.push(
                [&fields[..], &[version.clone(), method.clone()], &figures, std::slice::from_ref(&differ)]
                    .concat(),
            );
        }
        if rows.is_empty() {
            fields.resize(fields.len() + 5, String::new());
            lines.push(fields);
        }
    }
    table_formats::csv("CSV", head.split(',').map(String::from).collect(), lines)
}
