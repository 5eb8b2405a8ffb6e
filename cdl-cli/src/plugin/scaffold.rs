//! `cdl plugin new`: a crate with a method that works, from which to go on.

use std::{fs, path::PathBuf};

use cdl_core::registry::{Entry, Kind, find};
use clap::Args;

use crate::{
    failure::{Failure, io},
    terminal::emit,
};

/// Arguments of `cdl plugin new`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cdl plugin new my_method --kind distiller")]
pub struct NewArgs {
    /// Name of the method in configurations, for instance my_method
    name: String,
    /// Kind of the plugin: backbone, learner, distiller, stream
    #[arg(long, value_parser = parse_kind)]
    kind: Kind,
    /// Folder of the crate [default: the name]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Method of the kind that is wanted: source, name, name of its types, section of a configuration that uses it, and further
/// settings there.
fn example(kind: Kind) -> [&'static str; 5] {
    macro_rules! example {
        ($name:literal, $types:literal, $section:literal, $more:expr) => {
            [
                include_str!(concat!("../../assets/plugin_examples/", $name, ".rs")),
                $name,
                $types,
                $section,
                $more,
            ]
        };
    }
    let transform = "tasks = 5\n\n[stream.transform]\nimage_size = 28   # the network's\n";
    match kind {
        Kind::Distiller => example!("token_hint", "TokenHint", "distiller", ""),
        Kind::Learner => example!("shared_prompts", "SharedPrompts", "learner", ""),
        Kind::Backbone => example!("half_size", "HalfSize", "student", ""),
        Kind::Stream => example!("gratings", "Gratings", "stream", transform),
    }
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == text);
    kind.ok_or_else(|| format!("expected {}", Kind::ALL.map(Kind::as_str).join(", ")))
}

/// Makes the crate and says how to go on.
pub fn new(NewArgs { name, kind, dir }: &NewArgs) -> Result<(), Failure> {
    let good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !good || TAKEN.split_whitespace().any(|word| word == name) {
        let expected =
            "expected a name like `my_method`: lower-case letters, digits and _, and no word of Rust's";
        return Err(Failure::invalid(format!("`{name}`: {expected}")));
    }
    if let Ok(Entry { origin, .. }) = find(*kind, name) {
        return Err(Failure::invalid(format!("`{name}`: there is a {kind} of this name, by {origin}")));
    }
    let dir = dir.clone().unwrap_or_else(|| name.into());
    if dir.exists() {
        return Err(Failure::invalid(format!("{}: is there already", dir.display())));
    }
    let [source, own, types, section, more] = example(*kind);
    let source = source.replace(own, name).replace(types, &camel(name));
    let source = source.replace("citation: \"\"", "citation: \"yours\"");
    let library = format!("target/cdl/{name}{}", std::env::consts::DLL_SUFFIX);
    let settings = format!(
        "# Laid over another configuration: cdl run configs/quickstart.toml {name}.toml\nplugins = [{:?}]\n\n\
         [{section}]\nname = \"{name}\"\n{more}",
        dir.join(&library).display().to_string(),
    );
    let files = [
        ("Cargo.toml", cargo_toml(name)),
        ("src/lib.rs", source),
        (&format!("{name}.toml"), settings),
        (".gitignore", "/target\n".into()),
    ];
    for (file, text) in files {
        let file = dir.join(file);
        let written = file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&file, text));
        written.map_err(io(&file))?;
    }
    let dir = dir.display();
    emit(&format!(
        "{dir}: a {kind} that works; change {dir}/src/lib.rs into yours\n  \
         cdl plugin build {dir}\n  cdl plugin check {dir}/{library}\n  \
         cdl run configs/quickstart.toml {dir}/{name}.toml\n"
    ))
}

/// Words that are no names in Rust, and crates that a plugin uses.
const TAKEN: &str = "abstract alloc as async await become box break cdl_core const continue core crate do dyn else enum \
                     extern false final fn for gen if impl in let loop macro match mod move mut override priv pub ref \
                     return schemars self serde static std struct super test trait true try type typeof unsafe unsized \
                     use virtual where while yield";

fn camel(name: &str) -> String {
    let capital = |word: &str| word.split_at_checked(1).map(|(first, rest)| first.to_uppercase() + rest);
    name.split('_').filter_map(capital).collect()
}

/// The manifest. Versions are those of this program: its crates are what a plugin is built with.
fn cargo_toml(name: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n# `cdl plugin build` takes cdl-core, \
         serde and schemars from the program itself, other crates from their\n# registries. To link the method into a \
         program of your own, or for `cargo test`, say where cdl-core's sources are:\n# cdl-core = {{ path = \"...\" }}\n\
         [dependencies]\ncdl-core = \"{version}\"\nschemars = \"1\"\nserde = {{ version = \"1\", features = [\"derive\"] \
         }}\n\n[workspace]\n"
    )
}
