//! Parquet data sets from a hub on the loopback interface.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

use crate::common::{repository, stderr};
use sha2::{Digest, Sha256};

/// Port 1 is reserved and nothing listens there: connections are refused at once.
const UNREACHABLE: &str = "http://127.0.0.1:1";
const COMMIT: &str = "0123456789012345678901234567890123456789";
const REPOSITORY: &str = "uoft-cs/cifar100";

/// Hub with one data set, the files of a folder, whose branch `main` is at [`COMMIT`]. As on the real hub, large files
/// are stored elsewhere and listed with their SHA-256.
struct Hub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn serve(folder: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (address, log) = (endpoint.clone(), Arc::clone(&requests));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (folder, address, log) = (folder.clone(), address.clone(), Arc::clone(&log));
                // A thread per connection, since a client may open a connection and leave it unused.
                thread::spawn(move || handle(&stream, &folder, &address, &log));
            }
        });
        Self { endpoint, requests }
    }

    /// Paths of the files sent so far.
    fn sent(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter_map(|path| path.strip_prefix("GET /cdn/")).map(String::from).collect()
    }
}

/// Answers the single request of a connection.
fn handle(mut stream: &TcpStream, folder: &Path, address: &str, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let _headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    log.lock().unwrap().push(format!("{method} {path}"));
    let (status, headers, body) = answer(path, folder, address);
    let mut head = format!("HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    // A file of the same name in `folder/broken` contains the number of transfers to cut in the middle.
    let sent = path.strip_prefix("/cdn/").filter(|_| method != "HEAD");
    let cut = |name: &str| {
        let file = folder.join("broken").join(name);
        let left: u32 = fs::read_to_string(&file).ok()?.parse().ok()?;
        fs::write(file, left.checked_sub(1)?.to_string()).ok()
    };
    let broken = sent.and_then(cut).is_some();
    let body = match (method, broken) {
        ("HEAD", _) => &[],
        (_, true) => &body[..body.len() / 2],
        _ => body.as_slice(),
    };
    // Clients may close the connection early.
    let _ = stream.write_all((head + "\r\n").as_bytes()).and_then(|()| stream.write_all(body));
}

fn answer(path: &str, folder: &Path, address: &str) -> (u16, Vec<(&'static str, String)>, Vec<u8>) {
    let api = format!("/api/datasets/{REPOSITORY}");
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if let Some(name) = path.strip_prefix("/cdn/") {
        // Files in `folder/damaged` are sent in place of the originals.
        let damaged = folder.join("damaged").join(name);
        return (200, Vec::new(), fs::read(damaged).or_else(|_| fs::read(folder.join(name))).unwrap());
    }
    if path.contains("/private/") {
        return (401, Vec::new(), Vec::new());
    }
    let known = |revision: &str| [COMMIT, "main"].contains(&revision);
    if path == api || path.strip_prefix(&format!("{api}/revision/")).is_some_and(known) {
        return (200, Vec::new(), b"{}".into());
    }
    if path.strip_prefix(&format!("{api}/tree/")).is_some_and(known) {
        let mut entries = vec![r#"{"type": "directory", "oid": "0", "size": 0, "path": "data"}"#.to_string()];
        entries
            .push(r#"{"type": "file", "oid": "0", "size": 1, "path": "../../outside-train.parquet"}"#.into());
        for entry in fs::read_dir(folder.join("data")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            entries.push(format!(r#"{{"type": "file", "oid": "0", "size": 1, "path": "data/{name}"}}"#));
        }
        if folder.join("SHA256SUMS").exists() {
            entries.push(r#"{"type": "file", "oid": "0", "size": 1, "path": "SHA256SUMS"}"#.into());
        }
        // A file `folder/next` contains the address of the next page, which follows the first one.
        let next = fs::read_to_string(folder.join("next"))
            .ok()
            .filter(|next| !query.contains("last") || next.contains("again"));
        let links = next.map(|next| ("Link", format!("<{next}>; rel=\"next\""))).into_iter().collect();
        return (200, links, format!("[{}]", entries.join(",")).into());
    }
    let resolved = path.strip_prefix(&format!("/datasets/{REPOSITORY}/resolve/"));
    let Some((revision, name)) = resolved.and_then(|rest| rest.split_once('/')) else {
        return (404, Vec::new(), Vec::new());
    };
    match fs::read(folder.join(name)) {
        Ok(bytes) if known(revision) => {
            let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            let headers = vec![
                ("X-Repo-Commit", COMMIT.to_string()),
                ("X-Linked-ETag", format!("\"{sha256}\"")),
                ("X-Linked-Size", bytes.len().to_string()),
                ("Location", format!("{address}/cdn/{name}")),
            ];
            (302, headers, Vec::new())
        }
        _ => (404, vec![("X-Repo-Commit", COMMIT.to_string())], Vec::new()),
    }
}

/// Hub with the small data set of the streams' fixtures, and a client with its own cache.
struct Setup {
    folder: tempfile::TempDir,
    hub: Hub,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("served/data");
        fs::create_dir_all(&data).unwrap();
        let fixtures = repository().join("plugins/tests/fixtures/streams/hub/data");
        for entry in fs::read_dir(fixtures).unwrap() {
            let file = entry.unwrap();
            fs::copy(file.path(), data.join(file.file_name())).unwrap();
        }
        let hub = Hub::serve(folder.path().join("served"));
        Self { folder, hub }
    }

    /// Runs the program without the caller's environment.
    fn cdl(&self, args: &[&str], settings: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cdl"));
        for (name, _) in std::env::vars() {
            let upper = name.to_uppercase();
            if ["CDL_", "HF_", "HUGGINGFACE_"].iter().any(|start| upper.starts_with(start))
                || upper.ends_with("_PROXY")
            {
                command.env_remove(name);
            }
        }
        command
            .args(args)
            .env("HF_HOME", self.folder.path().join("home"))
            .env("HF_ENDPOINT", &self.hub.endpoint)
            .envs(settings.iter().copied())
            .current_dir(repository())
            .output()
            .unwrap()
    }

    /// Runs the quickstart's methods on the hub's data set.
    fn run(&self, source: &str, settings: &[(&str, &str)]) -> Output {
        let set =
            format!("stream={{name=\"cifar100\", path=\"{source}\", tasks=2, transform={{image_size=28}}}}");
        let run = self.folder.path().join("run");
        let values = ["--set", &set, "--set", "epochs=1", "--set", "batch_size=2"];
        let place = ["--overwrite", "--run-dir", run.to_str().unwrap()];
        self.cdl(&[&["run", "configs/quickstart.toml"][..], &values, &place].concat(), settings)
    }

    fn accuracies(&self) -> String {
        fs::read_to_string(self.folder.path().join("run/accuracy_student.csv")).unwrap()
    }
}

const SHARDS: [&str; 3] = [
    "data/test-00000-of-00001.parquet",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
];

fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_first_run_downloads_and_later_runs_need_no_network() {
    let setup = Setup::new();
    let source = format!("hf:{REPOSITORY}");
    let first = setup.run(&source, &[]);
    assert!(first.status.success(), "{}", stderr(&first));
    let mut sent = setup.hub.sent();
    sent.sort();
    assert_eq!(sent, SHARDS);
    let accuracies = setup.accuracies();

    // The run record lists the files.
    let record = fs::read(setup.folder.path().join("run/run.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let data = record["data"].as_array().unwrap();
    assert_eq!(data.len(), SHARDS.len());
    for (file, name) in data.iter().zip([SHARDS[1], SHARDS[2], SHARDS[0]]) {
        let bytes = fs::read(setup.folder.path().join("served").join(name)).unwrap();
        assert_eq!(file["file"], name);
        assert_eq!(file["repository"], REPOSITORY);
        assert_eq!(file["revision"], COMMIT);
        assert_eq!(file["bytes"], bytes.len());
        assert_eq!(file["sha256"], checksum(&bytes));
        assert_eq!(file["hashed"], "contents");
    }

    let again = setup.run(&source, &[]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert_eq!(setup.hub.sent().len(), 3, "cached files are not sent again");

    let requests = setup.hub.requests.lock().unwrap().len();
    let offline = setup.run(&source, &[("HF_HUB_OFFLINE", "1")]);
    assert!(offline.status.success(), "{}", stderr(&offline));
    let pinned = setup.run(&format!("{source}@{COMMIT}"), &[("HF_HUB_OFFLINE", "1")]);
    assert!(pinned.status.success(), "{}", stderr(&pinned));
    assert_eq!(setup.hub.requests.lock().unwrap().len(), requests, "no requests are sent");
    assert_eq!(setup.accuracies(), accuracies);

    let cut_off = setup.run(&source, &[("HF_ENDPOINT", UNREACHABLE)]);
    assert!(cut_off.status.success(), "{}", stderr(&cut_off));
    assert!(
        stderr(&cut_off).contains("using the cached copy of `hf:uoft-cs/cifar100`"),
        "{}",
        stderr(&cut_off)
    );
}

#[test]
fn missing_and_damaged_files_are_errors() {
    let setup = Setup::new();
    let source = format!("hf:{REPOSITORY}");
    let refused = |source: &str, settings: &[(&str, &str)], words: &[&str]| {
        let output = setup.run(source, settings);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        for word in words {
            assert!(stderr(&output).contains(word), "{word} in {}", stderr(&output));
        }
    };
    refused(&source, &[("HF_HUB_OFFLINE", "1")], &["cannot be fetched in offline mode (HF_HUB_OFFLINE)"]);
    refused("hf:uoft-cs/cifar1000", &[], &["no dataset repository for `hf:uoft-cs/cifar1000`"]);
    refused(&format!("{source}@v9"), &[], &["no revision `v9`"]);
    refused("hf:uoft-cs", &[], &["`hf:` must be followed by an owner"]);

    // A shard whose bytes do not have the announced checksum is an error with both checksums, and is not stored.
    let served = setup.folder.path().join("served");
    let whole = fs::read(served.join(SHARDS[2])).unwrap();
    let damage = [&whole[..whole.len() - 1], b"?"].concat();
    let both = [checksum(&whole), checksum(&damage)];
    fs::create_dir_all(served.join("damaged/data")).unwrap();
    fs::write(served.join("damaged").join(SHARDS[2]), &damage).unwrap();
    for output in [setup.run(&source, &[]), setup.cdl(&["data", "fetch", &source], &[])] {
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        for words in ["the transfer of `hf:uoft-cs/cifar100`", &both[0], &both[1]] {
            assert!(stderr(&output).contains(words), "{words} in {}", stderr(&output));
        }
    }
    let snapshot = setup.folder.path().join("home/hub/datasets--uoft-cs--cifar100/snapshots").join(COMMIT);
    assert!(!snapshot.join(SHARDS[2]).exists());
    fs::remove_dir_all(served.join("damaged")).unwrap();

    // So is a shard that was damaged in the cache, for every command.
    assert!(setup.cdl(&["data", "fetch", &source], &[]).status.success());
    fs::write(snapshot.join(SHARDS[2]), &damage).unwrap();
    refused(&source, &[], &["is damaged", &both[0], &both[1], "delete the folder"]);
    let fetched = setup.cdl(&["data", "fetch", &source], &[]);
    assert_eq!(fetched.status.code(), Some(2), "{}", stderr(&fetched));
    both.iter().for_each(|checksum| assert!(stderr(&fetched).contains(checksum), "{}", stderr(&fetched)));
    for (source, word) in [
        ("hf:uoft-cs/cifar1000", "no dataset repository for `hf:uoft-cs/cifar1000`"),
        ("hf:private/images", "HF_TOKEN"),
    ] {
        let refused = setup.cdl(&["data", "fetch", source], &[]);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(word), "{}", stderr(&refused));
    }

    // In offline mode, a missing shard is an error.
    fs::remove_file(snapshot.join(SHARDS[2])).unwrap();
    refused(&source, &[("HF_HUB_OFFLINE", "1")], &["1 of the 2 files `data/train-*-of-00002.parquet`"]);
}

#[test]
fn fetch_downloads_every_file_once_and_copies_it_with_its_checksum() {
    let setup = Setup::new();
    let copy = setup.folder.path().join("copies/cifar100");
    let offline = [("HF_HUB_OFFLINE", "1")];
    let refused = setup.cdl(&["data", "fetch", "cifar100"], &offline);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("cannot be fetched in offline mode (HF_HUB_OFFLINE)"),
        "{}",
        stderr(&refused)
    );

    let refused = setup.cdl(&["data", "fetch", "cifar100"], &[("HF_ENDPOINT", UNREACHABLE)]);
    assert_eq!(refused.status.code(), Some(2), "not cached and no network: {}", stderr(&refused));
    assert!(stderr(&refused).contains("cannot be reached"), "{}", stderr(&refused));

    let fetched = setup.cdl(&["data", "fetch", "cifar100"], &[]);
    assert!(fetched.status.success(), "{}", stderr(&fetched));
    let mut sent = setup.hub.sent();
    sent.sort();
    assert_eq!(sent, SHARDS);
    let served = |name: &str| fs::read(setup.folder.path().join("served").join(name)).unwrap();
    let lines: String = SHARDS.iter().map(|name| format!("{}  {name}\n", checksum(&served(name)))).collect();
    assert_eq!(String::from_utf8_lossy(&fetched.stdout), lines);

    // A second fetch and a run need no network.
    let source = format!("hf:{REPOSITORY}");
    let again = setup.cdl(&["data", "fetch", &source, "--dir", copy.to_str().unwrap()], &offline);
    assert!(again.status.success(), "{}", stderr(&again));
    assert_eq!(fs::read_to_string(copy.join("SHA256SUMS")).unwrap(), lines);
    SHARDS.iter().for_each(|name| assert_eq!(fs::read(copy.join(name)).unwrap(), served(name)));
    let run = setup.run(&source, &offline);
    assert!(run.status.success(), "{}", stderr(&run));
    assert_eq!(setup.hub.sent().len(), 3, "nothing is sent twice");

    // The copy can be verified like any data set.
    let verified = setup.cdl(&["data", "verify", copy.to_str().unwrap()], &offline);
    assert!(verified.status.success(), "{}", stderr(&verified));
    fs::write(copy.join(SHARDS[0]), "damaged").unwrap();
    let damaged = setup.cdl(&["data", "verify", copy.to_str().unwrap()], &offline);
    assert_eq!(damaged.status.code(), Some(2));
    assert!(stderr(&damaged).contains(&checksum(&served(SHARDS[0]))), "{}", stderr(&damaged));

    let set = format!("stream={{name=\"cifar100\", path=\"{source}\", transform={{image_size=28}}}}");
    let of_config = setup.cdl(&["data", "fetch", "configs/quickstart.toml", "--set", &set], &[]);
    assert!(of_config.status.success(), "{}", stderr(&of_config));
    assert_eq!(String::from_utf8_lossy(&of_config.stdout).lines().count(), 3);

    // The list of the copy replaces one in the data set.
    fs::write(setup.folder.path().join("served/SHA256SUMS"), "another list").unwrap();
    let second = setup.folder.path().join("copies/second");
    let listed = setup.cdl(&["data", "fetch", &source, "--dir", second.to_str().unwrap()], &[]);
    assert!(listed.status.success(), "{}", stderr(&listed));
    assert_eq!(fs::read_to_string(second.join("SHA256SUMS")).unwrap(), lines);
}

#[test]
fn an_interrupted_download_is_repeated() {
    let setup = Setup::new();
    let served = setup.folder.path().join("served");
    fs::create_dir_all(served.join("broken/data")).unwrap();
    fs::write(served.join("broken").join(SHARDS[1]), "4").unwrap();
    let source = format!("hf:{REPOSITORY}");
    let broken = setup.cdl(&["data", "fetch", &source], &[]);
    assert_eq!(broken.status.code(), Some(1), "{}", stderr(&broken));
    for word in ["the transfer of `hf:uoft-cs/cifar100`", "try again"] {
        assert!(stderr(&broken).contains(word), "{}", stderr(&broken));
    }
    // One more interruption remains, after which the same command continues.
    let whole = setup.cdl(&["data", "fetch", &source], &[]);
    assert!(whole.status.success(), "{}", stderr(&whole));
    assert!(stderr(&whole).contains("attempt 1 of 3"), "{}", stderr(&whole));
    let line = |name: &&str| format!("{}  {name}\n", checksum(&fs::read(served.join(name)).unwrap()));
    assert_eq!(String::from_utf8_lossy(&whole.stdout), SHARDS.iter().map(line).collect::<String>());
}

#[test]
fn lists_of_several_pages_are_followed_but_not_without_end() {
    let setup = Setup::new();
    let next = setup.folder.path().join("served/next");
    let page = format!("/api/datasets/{REPOSITORY}/tree/main");
    let source = format!("hf:{REPOSITORY}");
    // The second page is at another name of the same server, as behind a mirror.
    let elsewhere = setup.hub.endpoint.replace("127.0.0.1", "localhost");
    fs::write(&next, format!("{elsewhere}{page}?last")).unwrap();
    let fetched = setup.cdl(&["data", "fetch", &source], &[("HF_TOKEN", "hf_secret")]);
    assert!(fetched.status.success(), "{}", stderr(&fetched));
    let pages = || setup.hub.requests.lock().unwrap().iter().filter(|path| path.contains("/tree/")).count();
    assert_eq!(pages(), 2);
    fs::write(&next, format!("{}{page}?again", setup.hub.endpoint)).unwrap();
    let endless = setup.cdl(&["data", "fetch", &source], &[]);
    assert_eq!(endless.status.code(), Some(2), "{}", stderr(&endless));
    assert!(stderr(&endless).contains("more than 1000 pages"), "{}", stderr(&endless));
    assert_eq!(pages(), 2 + 1001);
}
