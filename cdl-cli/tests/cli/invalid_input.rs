//! Invalid input: one error message, exit code 2, and nothing is written.

use std::{collections::BTreeSet, fs, path::Path};

use crate::common::{SMALL, cdl, command, repository, stderr};

/// Runs the small quickstart with `more` arguments. Asserts one error with all `words`, and no run directory.
fn refused(more: &[&str], words: &[&str]) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    let dir_name = dir.to_str().expect("UTF-8 path");
    let output =
        cdl(&[&["run", "configs/quickstart.toml", "--run-dir", dir_name][..], &SMALL, more].concat());
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{more:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{more:?}: `{word}` is missing in: {stderr}");
    }
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    assert!(!dir.exists(), "{more:?}: something was written");
}

fn set(value: &str) -> [&str; 2] {
    ["--set", value]
}

#[test]
fn unknown_keys_and_names_are_errors_with_the_nearest_valid_one() {
    refused(&set("learner.pol=3"), &["--set learner.pol=3", "unknown key `learner.pol`", "`pool`"]);
    refused(&set("batchsize=3"), &["unknown key `batchsize`", "did you mean `batch_size`"]);
    refused(&set("stream.transform.image_sise=28"), &["stream.transform.image_sise", "`image_size`"]);
    refused(&set("optimizer.lrr=0.1"), &["optimizer.lrr", "`lr`"]);
    refused(&set("distiller.weigth=0.5"), &["`distiller.weigth`", "did you mean `weight`", "alpha"]);
    refused(&set("optimizer.batch_size=8"), &["`batch_size` is in section [optimizer]", "before the first"]);
    refused(&set("learner.seed=8"), &["`seed` is in section [learner]", "before the first"]);
    refused(&set("schedule.name=step"), &["`schedule.milestones = []`", "at least one epoch"]);
    refused(
        &set("distiller.name=kd_promts"),
        &["unknown distiller `kd_promts`", "did you mean `kd_prompts`"],
    );
    refused(&set("teacher.weights=embedded:micro_teachr"), &["did you mean `micro_teacher`"]);
}

#[test]
fn further_errors_are_counted() {
    refused(&["--set", "epochs=0", "--set", "batchsize=3"], &["(and 1 more: run `cdl check` to see all)"]);
    refused(&["configs"], &["configs: is a folder; expected a configuration"]);
}

/// Names of variables that `text` reads from the environment (Rust) or exports (shell).
fn variables(text: &str) -> impl Iterator<Item = String> + '_ {
    ["var(\"", "var_os(\"", "from_env(\"", "export "].into_iter().flat_map(move |before| {
        text.split(before).skip(1).flat_map(|after| {
            let names = after.split('\n').next().unwrap_or_default().split([' ', '=', '"', ':', '$', '{']);
            names.filter(|name| name.starts_with("CDL_")).map(String::from)
        })
    })
}

#[test]
fn variables_that_the_sources_read_are_known() {
    fn collect(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs" || end == "sh") {
                found.extend(variables(&fs::read_to_string(path).expect("source")));
            }
        }
    }
    let mut found = BTreeSet::new();
    for folder in
        ["core/kernels/src", "core/src", "core/tests", "plugins/src", "plugins/tests", "cdl-cli/src", "tools"]
    {
        collect(&repository().join(folder), &mut found);
    }
    for known in ["CDL_CUDA_LIBS", "CDL_GOLDEN_DIR", "CDL_LOG", "CDL_REQUIRE_GPU", "CDL_SIMD"] {
        assert!(found.contains(known), "{known} is not among {found:?}");
    }
    for name in found {
        let mut command = command();
        let output =
            command.args(["explain", "configs/quickstart.toml"]).env(&name, "").output().expect("cdl");
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
    }
}

/// Inputs that once took very long or never ended. Each is refused within seconds.
#[test]
fn endless_and_exploding_inputs_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("file");
        file.to_str().expect("UTF-8").to_string()
    };
    let keys: String = (0..20_000).map(|key| format!("k{key} = {key}\n")).collect();
    let many = write("many.toml", &format!("[learner]\n{keys}"));
    refused(&[&many], &["unknown key `learner.k0`", "49 more"]);
    // Each file extends the one before twice: a million readings of the first.
    write("0.toml", "seed = 1");
    for level in 1..=20 {
        let below = level - 1;
        write(&format!("{level}.toml"), &format!("extends = [\"{below}.toml\", \"{below}.toml\"]"));
    }
    let twice = folder.path().join("20.toml");
    refused(&[twice.to_str().expect("UTF-8")], &["extends at most 256 files"]);
    let deep = format!("{}=1", vec!["a"; 5_000].join("."));
    refused(&set(&deep), &["expected key=value"]);
    refused(
        &set("seed=9223372036854775808"),
        &["--set seed=9223372036854775808", "`seed = 9223372036854775808`"],
    );
    let threads = cdl(&["--threads", "100000", "explain", "configs/quickstart.toml"]);
    assert_eq!(threads.status.code(), Some(2));
    assert!(stderr(&threads).contains("expected a whole number from 1 to"), "{}", stderr(&threads));
}

/// Reading a pipe would block; reading a device would never end.
#[test]
#[cfg(unix)]
fn pipes_and_devices_are_not_read() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let pipe = folder.path().join("pipe");
    let pipe_name = pipe.to_str().expect("UTF-8");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    for file in [pipe_name, "/dev/zero"] {
        refused(&[file], &[file, "not a regular file"]);
        refused(&set(&format!("student.weights={file}")), &[file, "neither a file nor a folder"]);
    }
}

#[test]
fn values_out_of_range_or_of_another_type_are_errors() {
    refused(&set("optimizer.lr=nan"), &["`optimizer.lr = NaN`", "finite number above 0"]);
    refused(&set("optimizer.lr=-1"), &["`optimizer.lr = -1`"]);
    refused(&set("epochs=0"), &["`epochs = 0`", "at least 1"]);
    refused(&set("epochs=many"), &["epochs", "many"]);
    refused(&set("learner.length=\"long\""), &["learner.length", "long"]);
    refused(&set("learner.length=7"), &["`learner.length = 7`", "even number"]);
    refused(&set("distiller.length=5"), &["`distiller.length = 5`", "even number"]);
    refused(&set("stream.tasks=five"), &["`stream.tasks = \"five\"`"]);
    refused(
        &set("stream.transform.train=crop"),
        &["`stream.transform.train = \"crop\"`", "random_resized_crop"],
    );
    refused(&set("learner.pool=2"), &["`learner.pool = 2`", "5 tasks"]);
    // Larger than any memory.
    for (key, method) in
        [("pool", "coda_prompt"), ("length", "coda_prompt"), ("pool", "l2p"), ("g_length", "dual_prompt")]
    {
        let (name, size) = (format!("learner.name={method}"), format!("learner.{key}=1000000000000"));
        let words = format!("`learner.{key} = 1000000000000` is not valid: expected a smaller number");
        refused(&["--set", &name, "--set", &size], &[&words, "GB are free"]);
    }
    refused(&set("distiller.length=1000000000000"), &["`distiller.length = 1000000000000`", "GB are free"]);
    refused(&set("teacher.weights=nosuch"), &["--set", "`teacher.weights = nosuch`", "no file or folder"]);
    let folder = ["--set", "stream.name=image_folder", "--set", "stream.path=nosuch"];
    refused(&folder, &["--set", "`stream.path = nosuch`", "expected the folder with the images"]);
    refused(&set("distiller.alpha=1.5"), &["`distiller.alpha = 1.5`", "0 to 1"]);
    refused(&set("student.depth=9"), &["`student.depth = 9`", "1 to 5"]);
    refused(&set("stream.transform.image_size=30"), &["`stream.transform.image_size = 30`", "patch size 4"]);
    refused(&set("device=gpu"), &["device `gpu`", "expected auto, cpu, cuda"]);
    refused(&set("precision=tf16"), &["precision", "tf16", "float32"]);
    for precision in ["bf16", "tf32"] {
        let wanted = format!("precision={precision}");
        let value = format!("`precision = {precision}`");
        let on_cpu = ["--set", &wanted, "--set", "device=cpu"];
        refused(&on_cpu, &["--set", &value, "expected float32 on the CPU (device `cpu`)"]);
        if !cfg!(feature = "cuda") {
            refused(&set(&wanted), &["--set", &value, "built without CUDA (docs/guide/gpu.md: build with"]);
        }
    }
    refused(&set("batch_size=21"), &["`batch_size = 21`", "at most 20"]);
    refused(&set("train_teacher=false"), &["train_teacher", "`kd_prompts` learns from the teacher"]);
    refused(&set("no-equals-sign"), &["--set no-equals-sign", "key=value"]);
}

#[test]
fn methods_that_cannot_be_combined_are_errors() {
    let list = |names: &[&str]| {
        let tables: Vec<String> = names.iter().map(|name| format!("{{ name = \"{name}\" }}")).collect();
        format!("distillers=[{}]", tables.join(", "))
    };
    refused(
        &set(&list(&["kd_prompts", "kd_prompts"])),
        &["`kd_prompts` and `kd_prompts` cannot be combined", "prediction"],
    );
    refused(
        &set(&list(&["fitnets", "kd", "fitnets"])),
        &["`fitnets` and `fitnets` cannot be combined", "project_t_s.proj"],
    );
    refused(&set(&list(&["kd", "dkdd"])), &["unknown distiller `dkdd`", "did you mean `dkd`"]);
    refused(
        &set("distillers=[]"),
        &["--set distillers=[]: `distillers = []`", "a list of at least one table"],
    );
    refused(&set("distillers=[{ alpha = 0.5 }]"), &["expected a `name` in distillers[0]"]);
    refused(
        &set("distillers=[{ name = \"kd\", weight = -1.0 }]"),
        &["`distillers[0].weight = -1`", "0 or more"],
    );
    refused(
        &["--set", &list(&["kd", "dkd"]), "--set", "distiller.alpha=0.5"],
        &["has both [distiller] and `distillers`"],
    );
    refused(
        &set("distillers=[{ name = \"kd\" }, { name = \"dkd\", alpa = 0.3 }]"),
        &["unknown key `distillers[1].alpa`", "did you mean `alpha`"],
    );
    refused(&set("distiller.weight=nan"), &["`distiller.weight = NaN`"]);
    refused(&["--set", "train_teacher=false", "--set", "train_student=false"], &["at least one of them"]);
    refused(&set("train_student=false"), &["train_student", "`kd_prompts` teaches the student"]);
    refused(
        &set("teacher.learner=l2p"),
        &["`teacher.learner = \"l2p\"`", "`teacher.learner.name` sets its name"],
    );
    refused(&set("teacher.learner.name=l2pp"), &["`teacher.learner.name = \"l2pp\"`", "did you mean `l2p`"]);
    refused(&set("query=teacher"), &["query", "`student` or `own`"]);
    refused(&set("distiller=kd"), &["`distiller = \"kd\"`", "`distiller.name` sets its name"]);
    refused(&set("optimizer=sgd"), &["`optimizer = \"sgd\"`", "`optimizer.name` sets its name"]);
}

#[test]
fn invalid_settings_of_methods_are_errors() {
    let with = |learner: &str, value: &str, words: &[&str]| {
        let name = format!("learner.name={learner}");
        refused(&["--set", &name, "--set", value], words);
    };
    with("l2p", "learner.pool=4", &["`learner.top_k = 5`", "1 to 4"]);
    with("l2p", "learner.length=3", &["`learner.length = 3`", "even number"]);
    with("dual_prompt", "learner.pool=4", &["`learner.pool = 4`", "5 tasks"]);
    with("dual_prompt", "learner.g_length=0", &["`learner.g_length = 0`", "even number"]);
    with("dual_prompt", "learner.candidates=some", &["learner.candidates", "`pool` or `seen`"]);
    with("apt", "learner.ema=1.5", &["`learner.ema = 1.5`", "0 to 1"]);
    let with = |distiller: &str, value: &str, words: &[&str]| {
        let name = format!("distiller.name={distiller}");
        refused(&["--set", &name, "--set", value], words);
    };
    with("dkd", "distiller.nckd_weight=-1", &["`distiller.nckd_weight = -1`", "0 or more"]);
    with("fitnets", "distiller.feature_weight=nan", &["`distiller.feature_weight = NaN`"]);
    with("review_kd", "distiller.temperature=0", &["`distiller.temperature = 0`", "above 0"]);
    refused(&set("teacher.learner.pool=2"), &["`teacher.learner.pool = 2`", "5 tasks"]);
    refused(&set("teacher.learner.name=l2pp"), &["unknown learner `l2pp`", "did you mean `l2p`"]);
    refused(&set("optimizer.name=adagrad"), &["optimizer.name", "adagrad"]);
}

#[test]
fn tasks_that_do_not_cover_the_classes_are_errors() {
    refused(&set("stream.tasks=3"), &["`stream.tasks = 3`", "divisor of 10, the number of classes"]);
    refused(&set("stream.task_classes=[[\"Bag\"],[\"Coat\"]]"), &["`T-shirt/top` is in no task"]);
    refused(&set("stream.task_classes=[[\"Bags\"]]"), &["`Bags`", "did you mean `Bag`"]);
}

#[test]
fn configurations_that_cannot_be_read_are_errors() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let refused = |name: &str, text: &str, words: &[&str]| {
        let config = folder.path().join(name);
        fs::write(&config, text).expect("config");
        let output = cdl(&["run", config.to_str().expect("path")]);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    };
    refused("syntax.toml", "epochs = = 3", &["syntax.toml: line 1, column 10: extra"]);
    refused("empty.toml", "", &["section [stream] is missing"]);
    refused("nameless.toml", "[stream]\n", &["[stream] has no `name`"]);
    refused("itself.toml", "extends = [\"itself.toml\"]", &["extends itself"]);
    refused(
        "parent.toml",
        "extends = [\"nowhere.toml\"]",
        &["nowhere.toml", "cannot be read", "extended by"],
    );
    refused("text.toml", "extends = \"elsewhere.toml\"", &["elsewhere.toml", "cannot be read"]);
    let output = cdl(&["run", "no/such/file.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no/such/file.toml"));
}

#[test]
fn a_file_without_effect_is_a_warning() {
    let warned = |files: &[&str]| {
        let output = cdl(&[&["explain"], files].concat());
        assert!(output.status.success());
        stderr(&output).lines().filter(|line| line.contains("has no effect")).count()
    };
    let (base, method) = ("configs/quickstart.toml", "configs/distiller/dkd.toml");
    assert_eq!(warned(&[method, base]), 1);
    assert_eq!(warned(&[base, method]), 0);
    assert_eq!(warned(&[base, method, "configs/baseline/joint.toml"]), 0);
}

#[test]
fn weights_that_are_missing_truncated_or_do_not_fit_are_errors() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("path").to_string();
    refused(&set(&format!("teacher.weights={}", path("none.safetensors"))), &["none.safetensors"]);
    let assets = repository().join("plugins/assets/micro_vit");
    let bytes = fs::read(assets.join("teacher.safetensors")).expect("weights");
    fs::write(path("short.safetensors"), &bytes[..bytes.len() / 2]).expect("file");
    let short = format!("teacher.weights={}", path("short.safetensors"));
    refused(
        &["--set", &short, "--set", "teacher.normalize=none"],
        &["short.safetensors", "not a complete safetensors file"],
    );
    fs::write(path("text.safetensors"), "these are no weights").expect("file");
    refused(
        &set(&format!("teacher.weights={}", path("text.safetensors"))),
        &["text.safetensors", "safetensors"],
    );

    // The student's position embedding in the teacher's file.
    let student = fs::read(assets.join("student.safetensors")).expect("weights");
    let student = safetensors::SafeTensors::deserialize(&student).expect("safetensors");
    let teacher = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mixed = teacher.iter().map(|(name, view)| match name {
        "pos_embed" => (name, student.tensor(name).expect("tensor")),
        _ => (name, view),
    });
    fs::write(path("mixed.safetensors"), safetensors::serialize(mixed, None).expect("bytes")).expect("file");
    let mixed = format!("teacher.weights={}", path("mixed.safetensors"));
    refused(
        &["--set", &mixed, "--set", "teacher.normalize=none", "--set", "teacher.heads=4"],
        &["pos_embed", "128"],
    );
    for (name, missing) in [("bias", "blocks.3.mlp.fc1.bias"), ("block", "blocks.2.norm1.weight")] {
        let rest = teacher.iter().filter(|(name, _)| *name != missing);
        let file = path(&format!("{name}.safetensors"));
        fs::write(&file, safetensors::serialize(rest, None).expect("bytes")).expect("file");
        let weights = format!("teacher.weights={file}");
        let options = ["--set", &weights, "--set", "teacher.normalize=none", "--set", "teacher.heads=4"];
        refused(&options, &[&format!("no tensor `{missing}`")]);
    }
    let only = teacher.iter().filter(|(name, _)| *name != "norm.weight");
    fs::write(path("part.safetensors"), safetensors::serialize(only, None).expect("bytes")).expect("file");
    let part = format!("teacher.weights={}", path("part.safetensors"));
    refused(
        &["--set", &part, "--set", "teacher.normalize=none", "--set", "teacher.heads=4"],
        &["no tensor `norm.weight`"],
    );
}

/// Writes a copy of a network that ships with the program into a new folder, after `change`. Returns its name.
fn network(root: &Path, change: impl Fn(&mut Vec<u8>)) -> String {
    let assets = repository().join("plugins/assets/micro_vit");
    let mut bytes = fs::read(assets.join("student.safetensors")).expect("weights");
    change(&mut bytes);
    let folder = tempfile::tempdir_in(root).expect("folder").keep();
    fs::write(folder.join("model.safetensors"), bytes).expect("file");
    fs::copy(assets.join("student.json"), folder.join("config.json")).expect("file");
    folder.to_str().expect("UTF-8").to_string()
}

/// Writes the float16 NaN 0x7e00 into weights, which are stored as float16.
#[test]
fn weights_with_values_that_are_not_finite_are_refused_by_run_and_check() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let name = "blocks.0.mlp.fc1.weight";
    let odd = network(folder.path(), |bytes| {
        let tensors = safetensors::SafeTensors::deserialize(bytes).expect("safetensors");
        let start = bytes.as_ptr() as usize;
        let at = tensors.tensor(name).expect("tensor").data().as_ptr() as usize - start;
        bytes[at + 10..at + 12].copy_from_slice(&0x7e00u16.to_le_bytes());
    });
    let set = ["--set", &format!("student.weights={odd}")];
    let message = format!("`{name}` contains NaN, which is not a finite float32 number");
    refused(&set, &["model.safetensors", &message]);
    let check = cdl(&[&["check", "configs/quickstart.toml", "--steps", "0"][..], &set].concat());
    assert_eq!(check.status.code(), Some(2), "{}", stderr(&check));
    assert!(stderr(&check).contains(&message), "{}", stderr(&check));
}

#[test]
fn pointers_of_git_lfs_are_named_in_place_of_files() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234567\n";
    let words = ["is a Git LFS pointer, not the file itself", "`git lfs pull`", "from the hub"];
    let refused = |more: &[&str], file: &str| refused(more, &[&[file][..], &words].concat());
    let weights = network(folder.path(), |bytes| *bytes = pointer.to_vec());
    refused(&set(&format!("student.weights={weights}")), "model.safetensors");
    let config = network(folder.path(), |_| ());
    fs::write(Path::new(&config).join("config.json"), pointer).expect("file");
    refused(&set(&format!("student.weights={config}")), "config.json");
    let toml = folder.path().join("more.toml");
    fs::write(&toml, pointer).expect("file");
    refused(&[toml.to_str().expect("UTF-8")], "more.toml");
    fs::create_dir(folder.path().join("a")).expect("folder");
    fs::write(folder.path().join("a/1.jpg"), pointer).expect("file");
    let verify = cdl(&["data", "verify", folder.path().to_str().expect("UTF-8")]);
    assert_eq!(verify.status.code(), Some(2));
    assert!(
        stderr(&verify).contains("1.jpg: cannot be read: it is a Git LFS pointer"),
        "{}",
        stderr(&verify)
    );
}

#[test]
fn a_byte_order_mark_in_files_that_users_write_is_ignored() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let weights = network(folder.path(), |_| ());
    let config = Path::new(&weights).join("config.json");
    let text = fs::read(&config).expect("file");
    fs::write(&config, [b"\xef\xbb\xbf".as_slice(), &text].concat()).expect("file");
    let toml = folder.path().join("marked.toml");
    fs::write(&toml, format!("\u{feff}seed = 7\n[student]\nweights = {weights:?}\n")).expect("file");
    let toml = toml.to_str().expect("UTF-8");
    let check = cdl(&["check", "configs/quickstart.toml", toml, "--steps", "0"]);
    assert!(check.status.success(), "{}", stderr(&check));
    assert!(String::from_utf8_lossy(&check.stdout).contains(&format!("student: {weights}")));
}

#[test]
fn a_prefix_of_weights_needs_a_file_with_such_names() {
    refused(
        &set("student.weights_prefix=teacher"),
        &["`student.weights_prefix = teacher`", "`embedded:micro_student` is a single network"],
    );
    let folder = tempfile::tempdir().expect("temporary folder");
    let weights = network(folder.path(), |_| ());
    let weights = format!("student.weights={weights}");
    let options = ["--set", &weights, "--set", "student.weights_prefix=block"];
    refused(&options, &["`student.weights_prefix = block`", "did you mean `blocks`?"]);
}

#[test]
fn pytorch_weights_that_are_damaged_or_not_a_vit_are_errors() {
    let fixtures = repository().join("plugins/tests/fixtures/vit");
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("path").to_string();
    let bytes = fs::read(fixtures.join("torch_vit/pytorch_model.bin")).expect("weights");
    fs::write(path("short.bin"), &bytes[..bytes.len() / 2]).expect("file");
    let short = format!("teacher.weights={}", path("short.bin"));
    refused(
        &["--set", &short, "--set", "teacher.normalize=none"],
        &["short.bin", "not a complete PyTorch file", "fetch or copy it again"],
    );
    let fixture = |name: &str| format!("teacher.weights={}", fixtures.join(name).display());
    refused(&set(&fixture("legacy.pth")), &["legacy.pth", "PyTorch before 1.6"]);
    refused(
        &set(&fixture("transformers_clip")),
        &["transformers_clip", "vision_model.pre_layrnorm.weight", "CLIP's vision towers"],
    );
    // A single file comes without the normalisation of pixels.
    refused(
        &["--set", &fixture("state_dict.pth"), "--set", "teacher.heads=4"],
        &["teacher.normalize = checkpoint", "has no mean and standard deviation", "preprocessor_config.json"],
    );
}

/// Writes two classes with four training images and a test image each.
fn image_folder(root: &Path) {
    for (split, count) in [("train", 4), ("test", 1)] {
        for class in ["cat", "dog"] {
            let folder = root.join(split).join(class);
            fs::create_dir_all(&folder).expect("folder");
            for number in 0..count {
                let image =
                    image::RgbImage::from_fn(9, 7, |x, y| [x as u8, y as u8 * 20, number * 40].into());
                image.save(folder.join(format!("{number}.png"))).expect("image");
            }
        }
    }
}

const FOLDER: [&str; 8] = [
    "--set",
    "stream.name=image_folder",
    "--set",
    "stream.transform={image_size=28}",
    "--set",
    "batch_size=4",
    "--set",
    "stream.tasks=2",
];

#[test]
fn unreadable_images_and_classes_without_images_are_errors() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let root = folder.path();
    image_folder(root);
    let path = format!("stream.path={}", root.display());
    let folder_run = |words: &[&str]| {
        let dir = root.join("run");
        let dir_name = dir.to_str().expect("path");
        let args = [
            &["run", "configs/quickstart.toml", "--run-dir", dir_name, "--set", &path, "--set", "epochs=1"][..],
            &FOLDER,
        ];
        let output = cdl(&args.concat());
        let stderr = stderr(&output);
        if words.is_empty() {
            assert!(output.status.success(), "{stderr}");
            fs::remove_dir_all(&dir).expect("run directory");
        } else {
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            assert!(words.iter().all(|word| stderr.contains(word)), "{words:?} in {stderr}");
            assert!(!dir.exists(), "something was written");
        }
    };
    folder_run(&[]);
    let image = root.join("train/dog/2.png");
    let whole = fs::read(&image).expect("image");
    fs::write(&image, &whole[..whole.len() / 2]).expect("image");
    folder_run(&["train/dog/2.png", "not a readable image"]);
    fs::write(&image, whole).expect("image");
    fs::remove_file(root.join("test/cat/0.png")).expect("image");
    folder_run(&["class `cat` has no test images"]);
    fs::remove_dir_all(root.join("test")).expect("folder");
    folder_run(&["no folders `train` and `test`"]);
}

#[test]
fn run_directories_that_cannot_be_used_are_errors() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("file");
    fs::write(&file, "in the way").expect("file");
    let below = file.join("run");
    let refuse = |dir: &Path, more: &[&str], word: &str| {
        let dir = dir.to_str().expect("path");
        let output = cdl(&[&["run", "configs/quickstart.toml", "--run-dir", dir][..], &SMALL, more].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    };
    #[cfg(target_os = "linux")]
    refuse(Path::new("/proc/no-such-run"), &[], "cannot be written");
    refuse(&below, &[], "run directory");
    refuse(&file, &[], "run directory");
    let other = folder.path().join("other");
    fs::create_dir(&other).expect("folder");
    fs::write(other.join("thesis.tex"), "years of work").expect("file");
    // --overwrite would not help, so the message does not suggest it.
    refuse(&other, &[], "is not a run directory; choose another directory\n");
    refuse(&other, &["--overwrite"], "is not a run directory; choose another directory\n");
    assert!(other.join("thesis.tex").exists(), "other files are kept");
}

#[test]
fn a_loss_that_is_not_finite_is_a_failure_while_running() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let dir = folder.path().join("run");
    let dir_name = dir.to_str().expect("path");
    let args = [
        &["run", "configs/quickstart.toml", "--run-dir", dir_name, "--set", "optimizer.lr=1e38"][..],
        &SMALL,
    ];
    let output = cdl(&args.concat());
    let stderr = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("in task 1, teacher phase") && stderr.contains("0 finished tasks saved in"),
        "{stderr}"
    );
    assert!(dir.join("config.toml").exists(), "the run directory is kept");
}

#[test]
fn invalid_arguments_are_errors() {
    assert_eq!(cdl(&["run"]).status.code(), Some(2));
    assert_eq!(cdl(&["list", "--threads", "0"]).status.code(), Some(2));
    let output = cdl(&["describe", "kdprompts"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("did you mean `kd_prompts`"));
    let output = cdl(&["eval", "no/such/run"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no/such/run"));
}
