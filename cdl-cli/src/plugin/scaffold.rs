//! `cdl plugin new`: creates a crate with a working method as a starting point.

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
    /// Name of the method in configurations, for example my_method
    name: String,
    /// Kind of the plugin: backbone, learner, distiller or stream
    #[arg(long, value_parser = parse_kind)]
    kind: Kind,
    /// Folder of the crate [default: the name]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Example of a kind: source, name, name of its types, section of the configuration, and further settings of the
/// section.
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
    let transform =
        "tasks = 5\n\n[stream.transform]\nimage_size = 28   # as the networks of the quickstart expect\n";
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

/// Creates the crate and prints the next commands.
pub fn new(NewArgs { name, kind, dir }: &NewArgs) -> Result<(), Failure> {
    let good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !good || RESERVED.split_whitespace().any(|word| word == name) {
        let expected = "expected a name like `my_method`: lower-case letters, digits and _, and neither a keyword \
                        of Rust nor a crate used by plugins";
        return Err(Failure::invalid(format!("`{name}`: {expected}")));
    }
    if let Ok(Entry { origin, .. }) = find(*kind, name) {
        return Err(Failure::invalid(format!("`{name}`: a {kind} of this name exists already, in {origin}")));
    }
    let dir = dir.clone().unwrap_or_else(|| name.into());
    if dir.exists() {
        return Err(Failure::invalid(format!(
            "{}: exists already; choose another folder with --dir",
            dir.display()
        )));
    }
    let [source, own, types, section, more] = example(*kind);
    let source = source.replace(own, name).replace(types, &camel(name));
    let source = source.replace("citation: \"\"", "citation: \"yours\"");
    let library = format!("target/cdl/{name}{}", std::env::consts::DLL_SUFFIX);
    let settings = format!(
        "# Use after another configuration: cdl run configs/quickstart.toml {name}.toml\nplugins = [{:?}]\n\n\
         [{section}]\nname = \"{name}\"\n{more}",
        library,
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
        "{dir}: a working {kind}. Edit {dir}/src/lib.rs, then run\n  \
         cdl plugin build {dir}\n  cdl plugin check {dir}/{library}\n  \
         cdl run configs/quickstart.toml {dir}/{name}.toml\n"
    ))
}

/// Keywords of Rust, and names of crates that a plugin uses.
const RESERVED: &str = "abstract alloc as async await become box break cdl_core const continue core crate do dyn else enum \
                     extern false final fn for gen if impl in let loop macro match mod move mut override priv pub ref \
                     return schemars self serde static std struct super test trait true try type typeof unsafe unsized \
                     use virtual where while yield";

/// Converts a name like `my_method` to the name of a type, `MyMethod`.
fn camel(name: &str) -> String {
    let capital = |word: &str| word.split_at_checked(1).map(|(first, rest)| first.to_uppercase() + rest);
    name.split('_').filter_map(capital).collect()
}

/// Manifest of the crate. Versions are those of this program, whose crates a plugin is built with.
fn cargo_toml(name: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n# `cdl plugin build` uses cdl-core, \
         serde and schemars of the program itself and fetches other crates\n# from their registries. To link the method \
         into another program, or for `cargo test`, set the path of cdl-core's sources:\n# cdl-core = {{ path = \"...\" }}\n\
         [dependencies]\ncdl-core = \"{version}\"\nschemars = \"1\"\nserde = {{ version = \"1\", features = [\"derive\"] \
         }}\n\n[workspace]\n"
    )
}
