//! Tests of plugins at run time: a folder that `cdl dist` created and that was moved, crates in other folders, methods
//! linked in and loaded, and libraries that must not be loaded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

/// Program with the methods of `examples/plugin` linked in.
const LINKED: &str = env!("CARGO_BIN_EXE_with_plugin");

fn source_tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Folder that `cdl dist` created, moved to another place, and the plugin of `examples/plugin` that it built.
struct Dist {
    root: PathBuf,
    plugin: PathBuf,
}

/// Creates an empty folder that is removed when this process ends for any reason. A static is never dropped, so a shell
/// removes the folder: it waits for the end of a pipe that this process keeps open. Its own process group protects the
/// shell from Ctrl-C.
fn folder_of_this_process() -> PathBuf {
    let folder = tempfile::tempdir().unwrap().keep();
    let mut shell = Command::new("sh");
    shell.args(["-c", "cat; rm -rf -- \"$1\"", "sh"]).arg(&folder).stdin(Stdio::piped()).process_group(0);
    let waiting = shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::mem::forget(waiting);
    folder
}

impl Dist {
    fn get() -> &'static Self {
        static DIST: OnceLock<Dist> = OnceLock::new();
        DIST.get_or_init(|| {
            let root = folder_of_this_process();
            let created = root.join("created");
            let output = Command::new(LINKED).arg("dist").arg(&created).current_dir(source_tree()).output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
            fs::rename(&created, root.join("moved")).unwrap();
            let mut dist = Self { root, plugin: PathBuf::new() };
            // Copy only the plugin's sources, without the workspace.
            let crate_dir = dist.folder("plugin");
            let manifest = "[package]\nname = \"cdl-example-plugin\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n\
                            [dependencies]\ncdl-core = \"0.1\"\nschemars = \"1\"\nserde = \"1\"\n";
            fs::write(crate_dir.join("Cargo.toml"), manifest).unwrap();
            fs::create_dir(crate_dir.join("src")).unwrap();
            for file in fs::read_dir(source_tree().join("examples/plugin/src")).unwrap().flatten() {
                fs::copy(file.path(), crate_dir.join("src").join(file.file_name())).unwrap();
            }
            dist.plugin = dist.build(&crate_dir);
            dist
        })
    }

    /// Creates an empty folder of this name outside the source tree.
    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.root.join(name);
        fs::create_dir(&folder).unwrap();
        folder
    }

    fn installed(&self) -> PathBuf {
        self.root.join("moved")
    }

    fn cdl(&self) -> Command {
        let mut command = Command::new(self.installed().join("bin/cdl"));
        command.current_dir(&self.root).env_remove("CDL_PLUGIN_PATH");
        command
    }

    fn build(&self, crate_dir: &Path) -> PathBuf {
        let output = self.cdl().args(["plugin", "build"]).arg(crate_dir).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap().trim().into()
    }

    /// Writes a crate with the given name, dependencies and source.
    fn write(&self, name: &str, dependencies: &str, source: &str) -> PathBuf {
        let folder = self.folder(name);
        let manifest = format!(
            "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n{dependencies}"
        );
        fs::write(folder.join("Cargo.toml"), manifest).unwrap();
        fs::create_dir(folder.join("src")).unwrap();
        fs::write(folder.join("src/lib.rs"), source).unwrap();
        folder
    }

    /// Returns the arguments of a shortened quickstart.
    fn quickstart(&self) -> Vec<String> {
        let config = self.installed().join("configs/quickstart.toml");
        let short =
            ["stream.train_per_class=40", "stream.test_per_class=10", "stream.max_tasks=2", "epochs=1"];
        let sets = short.iter().flat_map(|set| ["--set".to_string(), set.to_string()]);
        [config.display().to_string()].into_iter().chain(sets).collect()
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command, checks its exit code and returns its output.
fn expect(code: i32, command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{}", text(&output));
    text(&output)
}

/// Returns the files of a run that must be equal, without the parts that differ between any two runs.
fn results(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn collect(folder: &Path, root: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().to_path_buf();
            match path.extension().and_then(|extension| extension.to_str()) {
                _ if path.is_dir() => collect(&path, root, files),
                Some("csv" | "safetensors") => drop(files.insert(name, fs::read(&path).unwrap())),
                Some("jsonl") => drop(files.insert(name, losses(&fs::read_to_string(&path).unwrap()))),
                _ => {}
            }
        }
    }
    let mut files = BTreeMap::new();
    for name in ["models", "accuracy_student.csv", "accuracy_teacher.csv", "metrics.jsonl"] {
        let path = run.join(name);
        match path.is_dir() {
            true => collect(&path, run, &mut files),
            false if name.ends_with("jsonl") => {
                drop(files.insert(name.into(), losses(&fs::read_to_string(path).unwrap())));
            }
            false => drop(files.insert(name.into(), fs::read(path).unwrap())),
        }
    }
    files
}

fn losses(lines: &str) -> Vec<u8> {
    let line = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        format!("{} {}\n", value["losses"], value["accuracy"])
    };
    lines.lines().map(line).collect::<String>().into_bytes()
}

/// Returns, for each method, the line of `cdl plugin check` with the digest of gradients.
fn digests(message: &str) -> Vec<String> {
    message
        .lines()
        .filter_map(|line| line.split_once("first step: "))
        .map(|(_, digest)| digest.into())
        .collect()
}

#[test]
fn a_method_computes_the_same_bytes_linked_in_and_loaded() {
    let dist = Dist::get();
    let linked: Vec<String> = ["token_hint", "shared_prompts"]
        .iter()
        .flat_map(|name| digests(&expect(0, Command::new(LINKED).args(["plugin", "check", name]))))
        .collect();
    let mut loaded = digests(&expect(0, dist.cdl().args(["plugin", "check"]).arg(&dist.plugin)));
    assert_eq!((linked.len(), loaded.len()), (2, 2));
    let sorted = |mut digests: Vec<String>| {
        digests.sort();
        digests
    };
    loaded = sorted(loaded);
    assert_eq!(sorted(linked), loaded, "gradients and parameters after a step");

    let mut runs = Vec::new();
    let overlay = source_tree().join("examples/configs/plugin.toml");
    for (name, mut command, plugin) in
        [("linked", Command::new(LINKED), None), ("loaded", dist.cdl(), Some(&dist.plugin))]
    {
        let dir = dist.root.join(name);
        let mut arguments = dist.quickstart();
        arguments.insert(1, overlay.display().to_string());
        command.arg("run").args(&arguments).arg("--run-dir").arg(&dir);
        if let Some(plugin) = plugin {
            command.arg("--plugin").arg(plugin);
        }
        expect(0, &mut command);
        runs.push(dir);
    }
    let [linked, loaded] = [&runs[0], &runs[1]].map(|run| results(run));
    assert!(linked.len() >= 6, "{:?}", linked.keys());
    assert_eq!(linked.keys().collect::<Vec<_>>(), loaded.keys().collect::<Vec<_>>());
    for (name, bytes) in &linked {
        assert!(bytes == &loaded[name], "{} differs", name.display());
    }

    // The run records its plugin and finds it on resuming.
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(runs[1].join("run.json")).unwrap()).unwrap();
    assert_eq!(record["plugins"][0]["name"], "cdl-example-plugin");
    assert!(expect(0, dist.cdl().arg("eval").arg(&runs[1])).contains("as recorded by the run"));
    // The exported student gives the same predictions with the plugin linked in and loaded, and requires the plugin.
    let (student, images) = (dist.root.join("student"), dist.folder("images"));
    expect(0, dist.cdl().arg("export").arg(&runs[1]).arg("--student").arg(&student));
    fs::write(images.join("grey.pgm"), [b"P5 28 28 255\n".to_vec(), vec![99; 784]].concat()).unwrap();
    let predict = |command: &mut Command| {
        command.arg("predict").arg(&student).arg(&images).args(["--format", "json"]).output().unwrap()
    };
    let linked = predict(&mut Command::new(LINKED));
    let loaded = predict(dist.cdl().arg("--plugin").arg(&dist.plugin));
    assert!(linked.status.success() && linked.stdout == loaded.stdout, "{}{}", text(&linked), text(&loaded));
    assert!(String::from_utf8_lossy(&loaded.stdout).contains("\"logit\""));
    let message = expect(2, dist.cdl().arg("predict").arg(&student).arg(&images));
    assert!(
        message.contains("the model needs the plugin cdl-example-plugin 0.1.0, see --plugin"),
        "{message}"
    );

    // A different library with the same name is a different method.
    let config = runs[1].join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let other = dist.folder("other").join("examples.so");
    fs::write(&other, [fs::read(&dist.plugin).unwrap(), vec![0]].concat()).unwrap();
    let path = |path: &Path| format!("{:?}", path.display().to_string());
    assert!(text.contains(&path(&dist.plugin)), "{text}");
    fs::write(&config, text.replace(&path(&dist.plugin), &path(&other))).unwrap();
    let message = expect(2, dist.cdl().arg("eval").arg(&runs[1]));
    assert!(message.contains("the plugins are not those of the run"), "{message}");
    let message = expect(2, dist.cdl().arg("predict").arg(&student).arg(&images).arg("--plugin").arg(&other));
    assert!(message.contains("needs the plugin cdl-example-plugin with the SHA-256"), "{message}");
}

/// candle's tensor ids come from one counter, so gradients of a loaded method are correct after any number of tensors.
#[test]
fn gradients_do_not_depend_on_the_number_of_tensors_created_before() {
    let dist = Dist::get();
    let folder = dist.folder("host");
    let source = r#"
        extern crate cdl_dylib as _;
        use cdl_core::{candle_core::{Device, Tensor}, registry::{Kind, dynamic}, testing};
        fn main() {
            let arguments: Vec<String> = std::env::args().collect();
            for _ in 0..arguments[2].parse::<usize>().unwrap() {
                Tensor::new(0f32, &Device::Cpu).unwrap();
            }
            dynamic::load(arguments[1].as_ref()).unwrap();
            println!("{}", testing::gradient_digest(Kind::Distiller, "token_hint", "").unwrap());
        }
    "#;
    fs::write(folder.join("host.rs"), source).unwrap();
    let (lib, sdk) = (dist.installed().join("lib"), dist.installed().join("lib/cdl"));
    let index: serde_json::Value = serde_json::from_slice(&fs::read(sdk.join("sdk.json")).unwrap()).unwrap();
    let core = sdk.join(index["crates"]["cdl-core"]["file"].as_str().unwrap());
    let shared = lib.join(index["shared_library"].as_str().unwrap());
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--edition", "2024", "-C", "opt-level=1", "-o"])
        .arg(folder.join("host"))
        .arg(folder.join("host.rs"));
    rustc.arg("--extern").arg(format!("cdl_core={}", core.display()));
    rustc.arg("--extern").arg(format!("cdl_dylib={}", shared.display()));
    rustc.arg("-L").arg(format!("dependency={}", sdk.display()));
    expect(0, rustc.arg("-C").arg(format!("link-arg=-Wl,-rpath,{}", lib.display())));

    let linked = digests(&expect(0, Command::new(LINKED).args(["plugin", "check", "token_hint"])));
    for before in 0..80 {
        let mut host = Command::new(folder.join("host"));
        let message =
            expect(0, host.arg(&dist.plugin).arg(before.to_string()).env("CANDLE_NUM_THREADS", "1"));
        assert_eq!(message.trim(), linked[0], "after {before} tensors");
    }
}

#[test]
fn a_new_plugin_of_each_kind_builds_passes_its_test_and_runs_unchanged() {
    let dist = Dist::get();
    let work = dist.folder("new");
    for kind in ["distiller", "learner", "backbone", "stream"] {
        let name = format!("my_{kind}");
        let cdl = || {
            let mut cdl = dist.cdl();
            cdl.current_dir(&work);
            cdl
        };
        expect(0, cdl().args(["plugin", "new", &name, "--kind", kind]));
        let library = dist.build(&work.join(&name));
        let checked = expect(0, cdl().args(["plugin", "check"]).arg(&library));
        assert!(checked.contains(&format!("{kind} {name}: all checks passed")), "{checked}");
        let mut arguments = dist.quickstart();
        arguments.insert(1, format!("{name}/{name}.toml"));
        if kind == "stream" {
            arguments.retain(|argument| {
                !argument.ends_with("_per_class=40") && !argument.ends_with("_per_class=10")
            });
            // Remove the options that lost their value.
            let mut kept = Vec::new();
            for (at, argument) in arguments.iter().enumerate() {
                let orphan = argument == "--set" && arguments.get(at + 1).is_none_or(|next| next == "--set");
                if !orphan {
                    kept.push(argument.clone());
                }
            }
            arguments = kept;
        }
        let message =
            expect(0, cdl().arg("run").args(&arguments).args(["--run-dir", &format!("run_{kind}")]));
        assert!(message.contains("results are in"), "{message}");

        // The method is listed and described like any other, with its source.
        let plugin = ["--plugin", library.to_str().unwrap()];
        let listed = expect(0, cdl().arg("list").args(plugin));
        assert!(listed.contains(&format!("loaded from {}", library.display())), "{listed}");
        let described = expect(0, cdl().args(["describe", &name]).args(plugin));
        assert!(
            described.contains("loaded from") && described.contains(&format!("{name} ({kind})")),
            "{described}"
        );
        // Its settings are checked.
        if kind == "distiller" {
            arguments.extend(["--set".into(), "distiller.alpah=0.1".into()]);
            let message = expect(2, cdl().arg("run").args(&arguments));
            assert!(message.contains("did you mean `alpha`"), "{message}");
        }
    }
    let message = expect(2, dist.cdl().args(["plugin", "new", "2much", "--kind", "stream"]));
    assert!(message.contains("expected a name like"), "{message}");
    expect(2, dist.cdl().current_dir(&work).args(["plugin", "new", "my_stream", "--kind", "stream"]));
}

#[test]
fn a_folder_of_plugins_is_searched() {
    let dist = Dist::get();
    let folder = dist.folder("search");
    fs::copy(&dist.plugin, folder.join("examples.so")).unwrap();
    fs::write(folder.join("readme.txt"), "no plugin").unwrap();
    let message = expect(0, dist.cdl().arg("list").env("CDL_PLUGIN_PATH", &folder));
    assert!(message.contains("token_hint"), "{message}");
    fs::write(folder.join("broken.so"), "no library").unwrap();
    // A library that cannot be loaded is reported, and the program continues.
    let message = expect(0, dist.cdl().arg("list").env("CDL_PLUGIN_PATH", &folder));
    assert!(
        message.contains("skipped") && message.contains("broken.so: is not a shared library"),
        "{message}"
    );
    assert!(message.contains("token_hint"), "{message}");
    let message = expect(0, dist.cdl().args(["plugin", "list"]).env("CDL_PLUGIN_PATH", &folder));
    assert!(
        message.contains("not loaded:") && message.contains("broken.so") && message.contains("half_size"),
        "{message}"
    );
    let message = expect(2, dist.cdl().arg("list").env("CDL_PLUGIN_PATH", folder.join("nowhere")));
    assert!(message.contains("CDL_PLUGIN_PATH"), "{message}");
}

/// Returns the bytes of `file` with `from` replaced by `to`, which has the same length.
fn patched(file: &Path, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(file).unwrap();
    let mut found = 0;
    for at in 0..bytes.len() - from.len() {
        if bytes[at..].starts_with(from.as_bytes()) {
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "{from} is not in {}", file.display());
    bytes
}

/// Returns the source of a distiller without settings, built by `build`.
fn distiller(name: &str, build: &str) -> String {
    format!(
        "use cdl_core::prelude::*;\n\
         #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)] pub struct C {{}}\n\
         pub struct M;\n\
         impl Distiller for M {{\n\
             fn loss(&self, s: &Output, _: Option<&Output>, _: &Tensor, task: &Task) -> Result<Vec<LossTerm>> {{\n\
                 if task.index == 1 {{ panic!(\"lost in task two\") }}\n\
                 Ok(vec![LossTerm::new(\"none\", (s.logits.sum_all()? * 0.0)?)])\n\
             }}\n\
         }}\n\
         fn build(_: C, _: &DistillerContext<'_>) -> Result<Box<dyn Distiller>> {{ {build} }}\n\
         cdl_core::register!(Distiller {{ name: \"{name}\", about: \"\", citation: \"\", config: C, build: build }});\n"
    )
}

/// Returns the source of an initialiser that runs `body` when the library is loaded.
fn initialiser(body: &str) -> String {
    format!(
        "extern \"C\" fn start() {{ {body} }}\n#[used]\n#[unsafe(link_section = \".init_array\")]\n\
         static START: extern \"C\" fn() = start;\n"
    )
}

const DEPENDENCIES: &str = "cdl-core = \"0.1\"\nschemars = \"1\"\nserde = \"1\"\n";

/// Checks that `cdl list` and `cdl plugin check` refuse a library with exit code 2 and a message that contains all of
/// `expected`.
fn refused(library: &Path, expected: &[&str]) {
    let dist = Dist::get();
    for command in [&["list"][..], &["plugin", "check"]] {
        let mut cdl = dist.cdl();
        match command {
            ["list"] => cdl.args(["list", "--plugin"]).arg(library),
            command => cdl.args(command).arg(library),
        };
        let message = expect(2, &mut cdl);
        for part in expected {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
        assert!(message.contains(library.file_name().unwrap().to_str().unwrap()), "{message}");
    }
}

#[test]
fn libraries_that_do_not_fit_are_refused_before_their_code_runs() {
    let dist = Dist::get();
    let folder = dist.folder("hostile");
    let file = |name: &str, bytes: Vec<u8>| {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let good = fs::read(&dist.plugin).unwrap();
    let stamp = cdl_core::registry::dynamic::STAMP;
    let of = |what: &str| {
        let line = stamp.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_once(' ').unwrap().1.to_string()
    };

    refused(&folder.join("absent.so"), &["cannot be read"]);
    refused(&folder, &["is a folder"]);
    refused(&file("text.so", b"no library".to_vec()), &["is not a shared library"]);
    for length in [0, 10, 64, good.len() / 2, good.len() - 100] {
        refused(&file(&format!("truncated_{length}.so"), good[..length].to_vec()), &["is"]);
    }
    let shared = fs::read_dir(dist.installed().join("lib")).unwrap().flatten();
    let shared =
        shared.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("libstd")).unwrap();
    refused(&shared, &["is a shared library but not a plugin"]);

    let rustc = of("compiler");
    let other = rustc.replacen("rustc 1.", "rustc 9.", 1);
    refused(&file("compiler.so", patched(&dist.plugin, &rustc, &other)), &["compiler", &rustc, &other]);
    let line = format!("cdl-core {}", of("cdl-core"));
    let newer = format!("cdl-core 9{}", &of("cdl-core")[1..]);
    refused(&file("core.so", patched(&dist.plugin, &line, &newer)), &[&line, &newer]);
    refused(
        &file("features.so", patched(&dist.plugin, "features default,hub", "features default,tub")),
        &["features default,tub", "features default,hub"],
    );
    let candle = format!("candle-core {}", of("candle-core"));
    let old = format!("candle-core 9{}", &of("candle-core")[1..]);
    refused(&file("candle.so", patched(&dist.plugin, &candle, &old)), &[&candle, &old]);
    // A library built from other sources of cdl-core, whose structs may differ: manifest and symbol have another hash.
    let hash = of("build");
    let stale: String = hash.chars().map(|c| if c == '0' { '1' } else { '0' }).collect();
    refused(&file("stale.so", patched(&dist.plugin, &hash, &stale)), &["build", &hash, &stale]);
    // With the correct hash in the manifest, the symbol still differs from the program's.
    let lying =
        file("lying.so", patched(&dist.plugin, &format!("cdl_abi_{hash}"), &format!("cdl_abi_{stale}")));
    refused(&lying, &["its own copy of cdl-core"]);

    // Methods that are loaded twice, and a name that is already registered.
    let again = file("again.so", good.clone());
    let message =
        expect(2, dist.cdl().args(["list", "--plugin"]).arg(&dist.plugin).arg("--plugin").arg(&again));
    assert!(message.contains("have the name"), "{message}");
    let taken = dist.write("taken", DEPENDENCIES, &distiller("kd", "Ok(Box::new(M))"));
    refused_name(&dist.build(&taken), "two distiller plugins have the name `kd`");
}

fn refused_name(library: &Path, expected: &str) {
    let message = expect(2, Dist::get().cdl().args(["list", "--plugin"]).arg(library));
    assert!(message.contains(expected), "{message}");
}

#[test]
fn a_library_with_its_own_cdl_core_is_refused() {
    let dist = Dist::get();
    let folder = dist.folder("alone");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "-p", "cdl-dynamic"]);
    build.arg("--message-format=json").current_dir(source_tree());
    let output = build.output().unwrap();
    let library = String::from_utf8(output.stdout).unwrap().lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let own = message["target"]["name"] == "cdl_core" && message["reason"] == "compiler-artifact";
        let files = message["filenames"].as_array()?.iter().filter_map(|file| file.as_str());
        own.then(|| files.into_iter().find(|file| file.ends_with(".rlib")).map(PathBuf::from))?
    });
    let library = library.expect("cargo reports the file of cdl-core");
    let source = "cdl_core::export_plugin!(\"alone\", \"0.1.0\");\n\
                  pub fn keep() -> usize { cdl_core::registry::entries(cdl_core::registry::Kind::Learner).map_or(0, |e| e.len()) }\n";
    fs::write(folder.join("alone.rs"), source).unwrap();
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(folder.join("alone.so"));
    rustc.arg("--extern").arg(format!("cdl_core={}", library.display()));
    rustc.arg("-L").arg(format!("dependency={}", library.parent().unwrap().display()));
    expect(0, rustc.arg(folder.join("alone.rs")));
    refused(&folder.join("alone.so"), &["contains its own copy of cdl-core", "wrong gradients"]);
}

#[test]
fn errors_inside_a_plugin_name_the_plugin() {
    let dist = Dist::get();
    // A plugin that registers nothing.
    let empty = dist.write("empty", DEPENDENCIES, "pub use cdl_core as _;\n");
    refused(&dist.build(&empty), &["registers nothing"]);
    // An initialiser that ends the process.
    let source = distiller("abort", "Ok(Box::new(M))") + &initialiser("panic!(\"no start\")");
    let abort = dist.write("abort", DEPENDENCIES, &source);
    refused(&dist.build(&abort), &["ends the program when it is loaded"]);

    let run = |library: &Path, name: &str, dir: &str| {
        let mut arguments = dist.quickstart();
        arguments.extend(["--set".into(), format!("distiller.name={name}"), "--plugin".into()]);
        let mut cdl = dist.cdl();
        cdl.arg("run").args(arguments).arg(library).args(["--run-dir", dir]);
        cdl
    };
    // A constructor that panics, before anything is written.
    let early = dist.write("early", DEPENDENCIES, &distiller("early", "panic!(\"cannot be built\")"));
    let message = expect(2, &mut run(&dist.build(&early), "early", "run_early"));
    assert!(message.contains("distiller `early` panicked in `build`: cannot be built"), "{message}");
    assert!(!dist.root.join("run_early").exists());
    // A method that panics in the second task: the results of the first task are kept.
    let late = dist.write("late", DEPENDENCIES, &distiller("late", "Ok(Box::new(M))"));
    let message = expect(1, &mut run(&dist.build(&late), "late", "run_late"));
    assert!(message.contains("distiller `late` panicked in `loss`: lost in task two"), "{message}");
    assert!(message.contains("1 finished task saved in"), "{message}");
    let results: serde_json::Value =
        serde_json::from_slice(&fs::read(dist.root.join("run_late/results.json")).unwrap()).unwrap();
    assert_eq!(results["tasks_done"], 1);
    assert!(dist.root.join("run_late/models/task_1/student.safetensors").exists());
}

#[test]
fn dependencies_of_a_plugin_are_compiled_and_shared_ones_must_match() {
    let dist = Dist::get();
    // Cargo compiles a crate that the program does not contain.
    let helper = dist.write("helper", "", "pub fn weight() -> f64 { 0.25 }\n");
    let build = "assert_eq!(helper::weight(), 0.25); assert!(cfg!(feature = \"strict\")); Ok(Box::new(M))";
    // The plugin's features are kept: a default feature, and a dependency that it enables.
    let dependencies = format!(
        "{DEPENDENCIES}helper = {{ path = {:?}, optional = true }}\n[features]\ndefault = [\"strict\"]\n\
         strict = [\"dep:helper\", \"serde/derive\"]\n",
        helper.display().to_string()
    );
    let with = dist.write("with_helper", &dependencies, &distiller("with_helper", build));
    let library = dist.build(&with);
    let message = expect(0, dist.cdl().args(["describe", "with_helper", "--plugin"]).arg(&library));
    assert!(message.contains("with_helper (distiller)"), "{message}");
    // The assertions in `build` hold, so the check reaches `loss`, which panics in the second task.
    let message = expect(2, dist.cdl().args(["plugin", "check"]).arg(library));
    assert!(message.contains("panicked in `loss`: lost in task two"), "{message}");

    let fails = |name: &str, dependencies: &str, source: &str, expected: &[&str]| {
        let folder = dist.write(name, dependencies, source);
        let message = expect(2, dist.cdl().args(["plugin", "build"]).arg(folder));
        for part in expected {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    };
    let source = distiller("x", "Ok(Box::new(M))");
    fails("other_core", "cdl-core = \"9\"\n", &source, &["requires cdl-core ^9", "has 0.1.0"]);
    let candle = format!("{DEPENDENCIES}candle-core = \"0.3\"\n");
    fails("other_candle", &candle, &source, &["requires candle-core ^0.3"]);
    let features = "cdl-core = \"0.1\"\nserde = { version = \"1\", features = [\"rc\"] }\n";
    fails("other_features", features, &source, &["serde with the features rc"]);
    fails("no_core", "", "", &["does not depend on cdl-core"]);
    fails("no_rust", DEPENDENCIES, "this is no Rust", &["the plugin does not compile"]);
    let message = expect(2, dist.cdl().args(["plugin", "build", "nowhere"]));
    assert!(message.contains("nowhere"), "{message}");
}

#[test]
fn a_statically_linked_program_reports_that_it_cannot_load_plugins() {
    let dist = Dist::get();
    for arguments in [&["plugin", "check"][..], &["list", "--plugin"]] {
        let message = expect(2, Command::new(LINKED).args(arguments).arg(&dist.plugin));
        assert!(message.contains("cannot load plugins") && message.contains("cdl dist"), "{message}");
    }
    let config = dist.folder("named").join("named.toml");
    fs::write(
        &config,
        format!(
            "extends = [{:?}]\nplugins = [\"some.so\"]\n",
            dist.installed().join("configs/quickstart.toml").display().to_string()
        ),
    )
    .unwrap();
    let message = expect(2, Command::new(LINKED).arg("explain").arg(&config));
    assert!(message.contains("named.toml") && message.contains("cannot load plugins"), "{message}");
    let message = expect(2, Command::new(LINKED).args(["plugin", "build"]).arg(&dist.root));
    assert!(message.contains("cannot build plugins"), "{message}");
    for (name, expected) in
        [("while", "expected a name like"), ("kd", "a distiller of this name exists already")]
    {
        let message = expect(2, Command::new(LINKED).args(["plugin", "new", name, "--kind", "distiller"]));
        assert!(message.contains(expected), "{message}");
    }
    // Files of the user are not removed.
    let message = expect(2, Command::new(LINKED).arg("dist").arg(&dist.root).current_dir(source_tree()));
    assert!(message.contains("did not write"), "{message}");
    let message =
        expect(2, Command::new(LINKED).arg("dist").arg(dist.root.join("x")).current_dir(&dist.root));
    assert!(message.contains("is not in the source tree"), "{message}");
}

#[test]
fn an_initialiser_may_write_more_than_a_pipe_holds() {
    let dist = Dist::get();
    let chatter = "for _ in 0..20_000 { println!(\"loading the weights of a very large table ...\"); \
                   eprintln!(\"still loading the weights of a very large table ...\"); } print!(\"no line end\");";
    let chatty =
        dist.write("chatty", DEPENDENCIES, &(distiller("chatty", "Ok(Box::new(M))") + &initialiser(chatter)));
    let message = expect(0, dist.cdl().args(["describe", "chatty", "--plugin"]).arg(dist.build(&chatty)));
    assert!(message.contains("chatty (distiller)"), "{message}");
}

#[test]
fn a_library_that_others_can_change_is_refused() {
    use fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    let dist = Dist::get();
    let folder = dist.folder("shared");
    let library = folder.join("examples.so");
    fs::copy(&dist.plugin, &library).unwrap();
    let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    for (path, mode, before) in [(&library, 0o664, 0o644), (&library, 0o646, 0o644), (&folder, 0o777, 0o755)]
    {
        set(path, mode);
        let place = format!("{} (mode {mode:o})", path.display());
        refused(&library, &["another user", &place, &format!("chmod go-w {}", path.display())]);
        // The folder of a search path is no exception, and the program continues without the library.
        let message = expect(0, dist.cdl().arg("list").env("CDL_PLUGIN_PATH", &folder));
        assert!(message.contains(&place) && !message.contains("token_hint"), "{message}");
        set(path, before);
    }
    // In a folder such as /tmp, users can only change their own files.
    set(&folder, 0o1777);
    let message = expect(0, dist.cdl().args(["list", "--plugin"]).arg(&library));
    assert!(message.contains("token_hint"), "{message}");
}

#[test]
fn the_inspected_file_is_the_one_that_is_loaded() {
    let dist = Dist::get();
    let file = dist.root.join("swap.so");
    // The initialiser replaces the file when `cdl` tries the library in another process, before `cdl` loads it itself.
    let source = |body: String| distiller("swap", "Ok(Box::new(M))") + &initialiser(&body);
    let other = dist.root.join("other_file");
    fs::write(&other, "no library").unwrap();
    let swap = source(format!("let _ = std::fs::rename({other:?}, {file:?});"));
    fs::copy(dist.build(&dist.write("swap", DEPENDENCIES, &swap)), &file).unwrap();
    let describe = |code: i32| expect(code, dist.cdl().args(["describe", "swap", "--plugin"]).arg(&file));
    assert!(describe(0).contains("swap (distiller)"));
    assert_eq!(fs::read(&file).unwrap(), b"no library");

    // An initialiser that appends to the file instead of replacing it.
    let grow = "use std::io::Write; let file = std::fs::OpenOptions::new().append(true).open(";
    let grow =
        source(format!("{grow}{file:?}); let _ = file.and_then(|mut file| file.write_all(b\"more\"));"));
    fs::copy(dist.build(&dist.write("grow", DEPENDENCIES, &grow)), &file).unwrap();
    let message = describe(2);
    assert!(message.contains("was changed while it was loaded"), "{message}");
}

#[test]
fn only_commands_that_need_a_plugin_run_its_code() {
    let dist = Dist::get();
    let (mark, config) = (dist.root.join("mark"), dist.root.join("marked.toml"));
    let source = distiller("marked", "Ok(Box::new(M))")
        + &initialiser(&format!("let _ = std::fs::write({mark:?}, \"\");"));
    let library = dist.build(&dist.write("marked", DEPENDENCIES, &source));
    fs::write(&config, format!("plugins = [{library:?}]\n[distiller]\nname = \"marked\"\n")).unwrap();
    let with_config = |command: &[&str]| {
        let mut cdl = dist.cdl();
        cdl.args(command).args(dist.quickstart()).arg(&config).args(["--set", "stream.max_tasks=1"]);
        cdl
    };
    let ran = || fs::remove_file(&mark).is_ok();
    let run = dist.root.join("run_marked");
    expect(0, with_config(&["run"]).arg("--run-dir").arg(&run));
    assert!(ran());
    expect(0, &mut with_config(&["explain"]));
    assert!(ran(), "explain needs the settings of the method");

    // Commands that only read files do not load plugins.
    for command in [
        &["resume", "RUN"][..],
        &["report", "RUN"],
        &["compare", "RUN", "--paper"],
        &["configs", "new_configs"],
        &["completions", "bash"],
    ] {
        let arguments = command.iter().map(|part| if *part == "RUN" { run.to_str().unwrap() } else { part });
        expect(0, dist.cdl().args(arguments).env("CDL_PLUGIN_PATH", library.parent().unwrap()));
        assert!(!ran(), "{command:?}");
    }
    // These commands need only the stream, which is built in.
    for command in [&["data", "verify"][..], &["data", "fetch"]] {
        expect(0, &mut with_config(command));
        assert!(!ran(), "{command:?}");
    }

    // With --no-plugins, a method of a plugin is refused by name.
    for command in [&["explain"][..], &["check"], &["run"], &["sweep", "--seeds", "1"]] {
        let message = expect(2, with_config(command).arg("--no-plugins"));
        for part in ["distiller.name = \"marked\"", "not loaded, although `plugins` lists it: ", "marked.so"]
        {
            assert!(message.contains(part), "{command:?}: {part} in {message}");
        }
    }
    for command in [&["eval"][..], &["export", "--student", "x"]] {
        let message = expect(2, dist.cdl().args(command).arg(&run).arg("--no-plugins"));
        assert!(message.contains("unknown distiller `marked`") && message.contains("marked.so"), "{message}");
    }
    let message = expect(2, dist.cdl().args(["plugin", "check", "--no-plugins"]).arg(&library));
    assert!(message.contains("is not loaded because of --no-plugins"), "{message}");
    let searched = |command: &[&str]| {
        expect(0, dist.cdl().args(command).env("CDL_PLUGIN_PATH", library.parent().unwrap()))
    };
    assert!(searched(&["list"]).contains("marked") && ran());
    assert!(!searched(&["list", "--no-plugins"]).contains("marked"));
    // A method that is built in needs no plugin, whatever the configuration lists.
    expect(0, with_config(&["explain"]).args(["--no-plugins", "--set", "distiller.name=kd"]));
    // The processes that compute the cells of a sweep also get --no-plugins.
    let grid = dist.root.join("grid_without_plugins");
    let mut sweep = with_config(&["sweep", "--seeds", "1", "--no-plugins", "--set", "distiller.name=kd"]);
    expect(0, sweep.arg("--out").arg(&grid));
    assert!(!ran());
}
