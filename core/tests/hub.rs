//! Fetching weights from a loopback hub, from the cache and from paths.
//!
//! The settings of the hub are environment variables of the process. Every fetch therefore runs in a child process:
//! this test binary again, running only [`child`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cdl_core::{
    hub::{FileSource, fetch},
    traits::Provenance,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const TOKEN: &str = "hf_loopback";
/// Files that the hub stores outside git.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
/// Port 1 is reserved and nothing listens there: connections are refused at once.
const UNREACHABLE: &str = "http://127.0.0.1:1";

// ---------------------------------------------------------------------------------------------
// Text form of a source
// ---------------------------------------------------------------------------------------------

#[test]
fn sources_survive_parsing_and_printing() {
    let hub = |repo: &str, revision: Option<&str>| FileSource::Hub {
        repo: repo.to_owned(),
        revision: revision.map(str::to_owned),
    };
    let path = |path: &str| FileSource::Path(PathBuf::from(path));
    for (written, source) in [
        ("hf:google/vit-base-patch16-224", hub("google/vit-base-patch16-224", None)),
        ("hf:a/b.c_d-1@v1.0", hub("a/b.c_d-1", Some("v1.0"))),
        ("hf:a/b@refs/pr/1", hub("a/b", Some("refs/pr/1"))),
        ("hf:a/b@x@y", hub("a/b", Some("x@y"))),
        ("weights.safetensors", path("weights.safetensors")),
        ("/some where/vit", path("/some where/vit")),
        ("./hf:a/b", path("./hf:a/b")),
    ] {
        assert_eq!(written.parse(), Ok(source.clone()), "{written}");
        assert_eq!(source.to_string(), written);
    }
}

#[test]
fn malformed_sources_are_refused_with_what_was_expected() {
    for (written, problem) in [
        ("", "it is empty"),
        (" hf:a/b", "white space"),
        ("hf:a/b ", "white space"),
        ("hf:", "must be followed by an owner"),
        ("hf:owner", "must be followed by an owner"),
        ("hf:owner@main", "must be followed by an owner"),
        ("hf:/name", "`` cannot be an owner or a name"),
        ("hf:owner/", "`` cannot be an owner or a name"),
        ("hf:owner/a b", "`a b` cannot be an owner or a name"),
        ("hf: owner/name", "` owner` cannot be an owner or a name"),
        ("hf:owner/name/file", "`name/file` cannot be an owner"),
        ("hf:../name", "`..` cannot be an owner or a name"),
        ("hf:a/b--c", "`b--c` cannot be an owner or a name"),
        ("hf:a/b..c", "`b..c` cannot be an owner or a name"),
        ("hf:a/b@", "`` cannot be a branch"),
        ("hf:a/b@v1..v2", "`v1..v2` cannot be a branch"),
        ("hf:a/b@v 1", "`v 1` cannot be a branch"),
        ("hf:a/b@../../x", "`../../x` cannot be a branch"),
        ("hf:a/b@/x", "`/x` cannot be a branch"),
    ] {
        let error = written.parse::<FileSource>().expect_err(written).to_string();
        assert!(error.contains(&format!("`{written}`")), "{error}");
        assert!(error.contains(problem), "{error}");
        assert!(error.contains("expected `hf:owner/name`"), "{error}");
    }
}

// ---------------------------------------------------------------------------------------------
// Paths
// ---------------------------------------------------------------------------------------------

#[test]
fn local_files_and_folders_are_used_in_place() {
    let folder = TempDir::new().unwrap();
    let weights = folder.path().join("model.safetensors");
    let config = folder.path().join("config.json");
    fs::write(&weights, b"abc").unwrap();
    fs::write(&config, b"{}").unwrap();

    let of_folder = fetch(&FileSource::Path(folder.path().to_owned())).unwrap();
    assert_eq!(of_folder.weights, weights);
    assert_eq!(of_folder.config, Some(config));
    assert_eq!(
        of_folder.provenance,
        Provenance {
            source: folder.path().display().to_string(),
            repository: None,
            revision: None,
            file: "model.safetensors".to_owned(),
            bytes: 3,
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned(),
        }
    );

    let of_file = fetch(&FileSource::Path(weights.clone())).unwrap();
    assert_eq!(of_file.weights, weights);
    assert_eq!(of_file.config, None);
    assert_eq!(of_file.provenance.sha256, of_folder.provenance.sha256);

    // PyTorch weights without safetensors, with a preprocessor configuration.
    let (torch, preprocessor) =
        (folder.path().join("pytorch_model.bin"), folder.path().join("preprocessor_config.json"));
    fs::rename(&weights, &torch).unwrap();
    fs::write(&preprocessor, b"{}").unwrap();
    let of_folder = fetch(&FileSource::Path(folder.path().to_owned())).unwrap();
    assert_eq!(of_folder.weights, torch);
    assert_eq!(of_folder.preprocessor, Some(preprocessor));
    assert_eq!(of_folder.provenance.file, "pytorch_model.bin");
}

#[test]
fn the_error_names_a_path_without_weights() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("nowhere");
    let deceptive = folder.path().join("deceptive");
    fs::create_dir_all(deceptive.join("model.safetensors")).unwrap();

    for (path, problem) in [
        (missing.as_path(), "no file or folder"),
        (folder.path(), "has no file `model.safetensors` or `pytorch_model.bin`"),
        (deceptive.as_path(), "has no file `model.safetensors`"),
        (Path::new("/dev/null"), "neither a file nor a folder"),
    ] {
        let error = fetch(&FileSource::Path(path.to_owned())).expect_err(problem);
        let message = error.to_string();
        assert!(message.contains(problem), "{message}");
        assert!(message.contains(&path.display().to_string()), "{message}");
        assert!(error.is_user_error());
    }
}

// ---------------------------------------------------------------------------------------------
// The hub
// ---------------------------------------------------------------------------------------------

#[test]
fn the_default_and_an_explicit_revision_are_fetched() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    world.publish("own/vit", "v1", b"old weights", Some(b"{ }"));

    let newest = world.fetch("hf:own/vit").files();
    assert_eq!(fs::read(&newest.weights).unwrap(), b"weights");
    assert_eq!(fs::read(newest.config.unwrap()).unwrap(), b"{}");
    assert_eq!(
        newest.provenance,
        Provenance {
            source: "hf:own/vit".to_owned(),
            repository: Some("own/vit".to_owned()),
            revision: Some(commit(b"weights")),
            file: "model.safetensors".to_owned(),
            bytes: 7,
            sha256: sha256(b"weights"),
        }
    );

    let old = world.fetch("hf:own/vit@v1").files();
    assert_eq!(fs::read(&old.weights).unwrap(), b"old weights");
    assert_eq!(fs::read(old.config.unwrap()).unwrap(), b"{ }");
    assert_eq!(old.provenance.source, "hf:own/vit@v1");
    assert_eq!(old.provenance.revision, Some(commit(b"old weights")));
    assert_eq!(old.provenance.sha256, sha256(b"old weights"));
}

#[test]
fn files_are_cached_in_hf_home_or_hf_hub_cache() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));

    let at_home = world.fetch("hf:own/vit").files();
    assert!(at_home.weights.starts_with(world.home().join("hub")));

    let elsewhere = world.folder.path().join("elsewhere");
    let moved = world.fetch_with("hf:own/vit", &[("HF_HUB_CACHE", elsewhere.to_str().unwrap())]).files();
    assert!(moved.weights.starts_with(&elsewhere));
    assert!(moved.config.unwrap().starts_with(&elsewhere));
}

#[test]
fn cached_files_are_not_transferred_again() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let first = world.fetch("hf:own/vit").files();
    let sent = |requests: &[String]| requests.iter().filter(|r| r.starts_with("GET /cdn/")).count();
    assert_eq!(sent(&world.hub.requests()), 1);

    let second = world.fetch("hf:own/vit").files();
    assert_eq!(second, first);
    assert_eq!(sent(&world.hub.requests()), 1);

    // For a commit, which cannot change, there is not even a request.
    let before = world.hub.requests();
    let pinned = format!("hf:own/vit@{}", commit(b"weights"));
    assert_eq!(world.fetch(&pinned).files().weights, first.weights);
    assert_eq!(world.hub.requests(), before);
}

#[test]
fn a_branch_that_moved_is_fetched_again() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let first = world.fetch("hf:own/vit").files();
    world.publish("own/vit", "main", b"better weights", Some(b"{}"));
    let second = world.fetch("hf:own/vit").files();
    assert_eq!(fs::read(&second.weights).unwrap(), b"better weights");
    assert_eq!(fs::read(&first.weights).unwrap(), b"weights");
    assert_ne!(second.provenance.revision, first.provenance.revision);
}

#[test]
fn a_repository_may_lack_a_config() {
    let world = World::new();
    world.publish("own/bare", "main", b"weights", None);
    assert_eq!(world.fetch("hf:own/bare").files().config, None);
    // The result is the same from the cache, for a branch and for a commit.
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(world.fetch_with("hf:own/bare", &offline).files().config, None);
    let before = world.hub.requests();
    let pinned = format!("hf:own/bare@{}", commit(b"weights"));
    assert_eq!(world.fetch(&pinned).files().config, None);
    assert_eq!(world.hub.requests(), before);
}

#[test]
fn a_repository_may_have_only_pytorch_weights() {
    let world = World::new();
    world.publish_torch("own/torch", b"pickled weights");
    let first = world.fetch("hf:own/torch").files();
    assert!(first.weights.ends_with("pytorch_model.bin"));
    assert_eq!(fs::read(&first.weights).unwrap(), b"pickled weights");
    assert_eq!(fs::read(first.config.clone().unwrap()).unwrap(), b"{}");
    assert_eq!(fs::read(first.preprocessor.clone().unwrap()).unwrap(), b"{ }");
    assert_eq!(
        first.provenance,
        Provenance {
            source: "hf:own/torch".to_owned(),
            repository: Some("own/torch".to_owned()),
            revision: Some(commit(b"pickled weights")),
            file: "pytorch_model.bin".to_owned(),
            bytes: 15,
            sha256: sha256(b"pickled weights"),
        }
    );

    // The cache serves these files, also offline, and records that the repository has no safetensors file.
    assert_eq!(world.fetch_with("hf:own/torch", &[("HF_HUB_OFFLINE", "1")]).files(), first);
    let before = world.hub.requests();
    let pinned = format!("hf:own/torch@{}", commit(b"pickled weights"));
    assert_eq!(world.fetch(&pinned).files().weights, first.weights);
    assert_eq!(world.hub.requests(), before);

    // The cached file is compared with the checksum of the hub.
    fs::write(&first.weights, b"w").unwrap();
    world.fetch("hf:own/torch").refusal().assert_contains(&["`hf:own/torch` is damaged", &sha256(b"w")]);
}

#[test]
fn safetensors_are_preferred_to_pytorch_weights() {
    let world = World::new();
    world.publish_torch("own/both", b"pickled weights");
    world.publish("own/both", "main", b"weights", Some(b"{}"));
    let files = world.fetch("hf:own/both").files();
    assert_eq!(fs::read(&files.weights).unwrap(), b"weights");
    assert!(world.hub.requests().iter().all(|request| !request.contains("pytorch_model.bin")));
}

#[test]
fn offline_mode_reads_only_the_cache() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    world.publish("own/other", "main", b"weights", Some(b"{}"));
    let online = world.fetch("hf:own/vit").files();

    let before = world.hub.requests();
    for value in ["1", "true", "YES", "on"] {
        let offline = [("HF_HUB_OFFLINE", value)];
        assert_eq!(world.fetch_with("hf:own/vit", &offline).files(), online);
        for missed in ["hf:own/other", "hf:own/vit@v1"] {
            let refusal = world.fetch_with(missed, &offline).refusal();
            assert!(refusal.user, "{refusal:?}");
            refusal.assert_contains(&[
                missed,
                "cannot be fetched in offline mode (HF_HUB_OFFLINE)",
                world.home().to_str().unwrap(),
            ]);
        }
    }
    assert_eq!(world.hub.requests(), before);

    world.fetch_with("hf:own/other", &[("HF_HUB_OFFLINE", "0")]).files();
}

#[test]
fn without_a_network_the_cache_is_used_with_a_warning() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let online = world.fetch("hf:own/vit");
    let cut_off = world.fetch_with("hf:own/vit", &[("HF_ENDPOINT", UNREACHABLE)]);

    for words in [UNREACHABLE, "using the cached copy of `hf:own/vit`", &commit(b"weights")] {
        assert!(cut_off.log.contains(words), "{}", cut_off.log);
    }
    assert!(!online.log.contains("cached copy"), "{}", online.log);
    assert_eq!(cut_off.files(), online.files());
}

#[test]
fn without_a_network_and_a_cached_copy_the_error_names_both() {
    let world = World::new();
    let refusal = world.fetch_with("hf:own/vit", &[("HF_ENDPOINT", UNREACHABLE)]).refusal();
    assert!(refusal.user);
    refusal.assert_contains(&["`hf:own/vit` is not in the cache", "http://127.0.0.1:1 cannot be reached"]);
}

#[test]
fn a_server_error_is_handled_like_a_missing_network() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let files = world.fetch("hf:own/vit").files();
    fs::write(world.served().join("down"), b"").unwrap();

    let troubled = world.fetch("hf:own/vit");
    assert!(troubled.log.contains("using the cached copy"));
    assert_eq!(troubled.files(), files);

    let refusal = world.fetch("hf:own/other").refusal();
    assert!(!refusal.user);
    refusal.assert_contains(&["transfer of `hf:own/other`", "503", "try again"]);
}

#[test]
fn an_invalid_address_is_an_error_of_hf_endpoint() {
    let world = World::new();
    for endpoint in ["nonsense", "ftp://127.0.0.1"] {
        let refusal = world.fetch_with("hf:own/vit", &[("HF_ENDPOINT", endpoint)]).refusal();
        assert!(refusal.user);
        refusal.assert_contains(&["hf:own/vit", "HF_ENDPOINT"]);
    }
}

#[test]
fn the_error_names_a_cache_that_cannot_be_written() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let cache = world.folder.path().join("file");
    fs::write(&cache, b"").unwrap();
    let cache = cache.to_str().unwrap();
    let refusal = world.fetch_with("hf:own/vit", &[("HF_HUB_CACHE", cache)]).refusal();
    assert!(refusal.user);
    refusal.assert_contains(&["cannot store `hf:own/vit`", cache, "HF_HOME"]);
}

#[test]
fn a_private_repository_requires_a_token() {
    let world = World::new();
    world.publish("private/vit", "main", b"weights", Some(b"{}"));
    for setting in [[].as_slice(), &[("HF_TOKEN", "hf_wrong")]] {
        let refusal = world.fetch_with("hf:private/vit", setting).refusal();
        assert!(refusal.user);
        refusal.assert_contains(&["`hf:private/vit`", "HF_TOKEN"]);
    }

    let by_variable = world.fetch_with("hf:private/vit", &[("HF_TOKEN", TOKEN)]).files();
    assert_eq!(by_variable.provenance.sha256, sha256(b"weights"));

    let world = World::new();
    world.publish("private/vit", "main", b"weights", Some(b"{}"));
    fs::create_dir_all(world.home()).unwrap();
    fs::write(world.home().join("token"), format!("{TOKEN}\n")).unwrap();
    let by_file = world.fetch("hf:private/vit").files();
    assert_eq!(by_file.provenance, by_variable.provenance);
}

#[test]
fn a_token_without_access_gives_an_error_with_the_remedy() {
    let world = World::new();
    world.publish("gated/vit", "main", b"weights", Some(b"{}"));
    let refusal = world.fetch_with("hf:gated/vit", &[("HF_TOKEN", TOKEN)]).refusal();
    assert!(refusal.user);
    refusal.assert_contains(&[
        "denies the account of this token access to `hf:gated/vit`",
        "request access",
        "HF_TOKEN",
    ]);
}

#[test]
fn missing_repositories_revisions_and_files_give_different_errors() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    fs::remove_file(world.publish("own/empty", "main", b"", Some(b"{}"))).unwrap();

    let never = "0".repeat(40);
    for (source, problem) in [
        ("hf:own/nothing", "no model repository for `hf:own/nothing`"),
        ("hf:own/vit@v9", "`hf:own/vit@v9` has no revision `v9`"),
        (&format!("hf:own/vit@{never}"), "has no revision `0000"),
        (
            "hf:own/empty",
            "`hf:own/empty` has no file `model.safetensors` or `pytorch_model.bin` at revision `main`",
        ),
    ] {
        let refusal = world.fetch(source).refusal();
        assert!(refusal.user);
        refusal.assert_contains(&[problem]);
    }
}

#[test]
fn a_broken_transfer_leaves_no_cached_file() {
    let world = World::new();
    world.publish("broken/vit", "main", b"weights", Some(b"{}"));
    let refusal = world.fetch("hf:broken/vit").refusal();
    assert!(!refusal.user);
    refusal.assert_contains(&["transfer of `hf:broken/vit`", "try again"]);

    let offline = world.fetch_with("hf:broken/vit", &[("HF_HUB_OFFLINE", "1")]);
    offline.refusal().assert_contains(&["not in the cache"]);
}

#[test]
fn damaged_cached_weights_are_refused() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let files = world.fetch("hf:own/vit").files();
    fs::write(&files.weights, b"w").unwrap();

    let refusal = world.fetch("hf:own/vit").refusal();
    assert!(refusal.user);
    let folder = world.home().join("hub").join("models--own--vit");
    refusal.assert_contains(&[
        "`hf:own/vit` is damaged",
        &sha256(b"w"),
        &sha256(b"weights"),
        &format!("delete the folder `{}`", folder.display()),
    ]);

    fs::remove_dir_all(folder).unwrap();
    assert_eq!(world.fetch("hf:own/vit").files(), files);
}

/// Lists files and links below a folder.
fn contents(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() && !entry.is_symlink() {
            true => found.extend(contents(&entry)),
            false => found.push(entry),
        }
    }
    found
}

#[test]
fn headers_that_are_paths_are_refused_by_name() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let outside = world.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("mine"), b"mine").unwrap();
    let commit = commit(b"weights");
    for (header, value) in [
        ("X-Repo-Commit", outside.to_str().unwrap().to_owned()),
        ("X-Repo-Commit", format!("../../../../{}", &commit[12..])),
        ("X-Repo-Commit", "deadbeef".to_owned()),
        ("X-Linked-ETag", format!("\"{}\"", outside.join("new").display())),
        ("X-Linked-ETag", format!("\"{}\"", outside.join("mine").display())),
        ("X-Linked-ETag", "..".to_owned()),
        ("X-Linked-Size", "7 bytes".to_owned()),
    ] {
        fs::write(world.served().join("headers"), format!("{header}: {value}")).unwrap();
        let refusal = world.fetch("hf:own/vit").refusal();
        assert!(refusal.user);
        refusal.assert_contains(&["hf:own/vit", header, "expected", &world.hub.endpoint()]);
        assert_eq!(contents(&outside), [outside.join("mine")]);
        assert_eq!(contents(&world.home()), [] as [PathBuf; 0], "{header}: {value}");
    }
    // A commit cannot have another commit's files.
    fs::write(world.served().join("headers"), format!("X-Repo-Commit: {}", "0".repeat(40))).unwrap();
    let refusal = world.fetch(&format!("hf:own/vit@{commit}")).refusal();
    refusal.assert_contains(&["X-Repo-Commit", &"0".repeat(40), &commit]);
    assert_eq!(contents(&world.home()), [] as [PathBuf; 0]);
}

#[test]
fn a_cached_revision_that_is_a_path_is_ignored() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    world.fetch("hf:own/vit").files();
    let folder = world.home().join("hub/models--own--vit");
    fs::write(folder.join("model.safetensors"), b"elsewhere").unwrap();
    fs::write(folder.join("refs/main"), "../").unwrap();
    world
        .fetch_with("hf:own/vit", &[("HF_HUB_OFFLINE", "1")])
        .refusal()
        .assert_contains(&["not in the cache"]);
}

#[test]
fn transfers_are_limited_in_size_and_time() {
    let world = World::new();
    for (owner, problem) in [
        ("endless", "it sends more than the announced 7 bytes"),
        ("stalled", "stopped after 3 of 7 bytes: no byte arrived for 1 s (HF_HUB_DOWNLOAD_TIMEOUT)"),
        ("slow", "fewer than 1000 bytes per second arrive"),
        ("broken", "stopped after 3 of 7 bytes"),
    ] {
        let weights = if owner == "slow" { [b'w'; 1000].to_vec() } else { b"weights".to_vec() };
        world.publish(&format!("{owner}/vit"), "main", &weights, Some(b"{}"));
        let refusal =
            world.fetch_with(&format!("hf:{owner}/vit"), &[("HF_HUB_DOWNLOAD_TIMEOUT", "1")]).refusal();
        let address = format!("{}/cdn/{owner}/vit/main/model.safetensors", world.hub.endpoint());
        refusal.assert_contains(&[problem, &address]);
        // Nothing is left but the lock.
        let left = contents(&world.home());
        assert!(left.iter().all(|file| file.extension().is_some_and(|end| end == "lock")), "{left:?}");
        // A transfer is retried twice after errors that may be temporary.
        let address = format!("GET /cdn/{owner}/vit/main/model.safetensors");
        let attempts = world.hub.requests().iter().filter(|request| **request == address).count();
        assert_eq!(attempts, if owner == "endless" { 1 } else { 3 });
    }
}

#[test]
fn sizes_and_errors_of_a_server_fill_neither_disk_nor_memory() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    fs::write(world.served().join("headers"), format!("X-Linked-Size: {}", 1_u64 << 62)).unwrap();
    let refusal = world.fetch("hf:own/vit").refusal();
    refusal.assert_contains(&["cannot store `hf:own/vit`", "4611686018427.4 MB", "MB are free"]);
    world.publish("angry/vit", "main", b"weights", None);
    world.fetch("hf:angry/vit").refusal().assert_contains(&["the response is 400"]);
}

#[test]
fn bytes_that_differ_from_the_announced_checksum_are_not_stored() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let promised = sha256(b"other weights");
    fs::write(world.served().join("headers"), format!("X-Linked-ETag: \"{promised}\"")).unwrap();
    let refusal = world.fetch("hf:own/vit").refusal();
    assert!(!refusal.user);
    refusal.assert_contains(&["transfer of `hf:own/vit`", &promised, &sha256(b"weights")]);
    assert!(!world.home().join("hub/models--own--vit/snapshots").exists());
}

#[test]
fn redirects_of_a_mirror_are_followed_without_the_token() {
    let world = World::new();
    world.publish("moved/vit", "main", b"weights", Some(b"{}"));
    let files = world.fetch_with("hf:moved/vit", &[("HF_TOKEN", TOKEN)]).files();
    assert_eq!(fs::read(&files.weights).unwrap(), b"weights");
    assert_eq!(fs::read(files.config.unwrap()).unwrap(), b"{}");
    // A private repository of the other server does not receive the token of the mirror.
    let with_token = |request: &String| request.ends_with("localhost with token");
    assert!(!world.hub.requests().iter().any(with_token), "{:?}", world.hub.requests());
}

#[test]
fn a_password_in_the_address_is_not_printed() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let secret = |endpoint: &str| endpoint.replace("://", "://user:s3cret@");
    let files = world.fetch_with("hf:own/vit", &[("HF_ENDPOINT", &secret(&world.hub.endpoint()))]);
    assert!(!files.log.contains("s3cret"), "{}", files.log);
    files.files();
    fs::write(world.served().join("down"), b"").unwrap();
    for (source, endpoint) in [
        ("hf:own/vit", secret(UNREACHABLE)),
        ("hf:own/other", secret(UNREACHABLE)),
        ("hf:own/other", secret(&world.hub.endpoint())),
        ("hf:own/other", "http://user:s3cret@127.0.0.1:port".to_owned()),
        ("hf:own/other", "ftp://user:s3cret@127.0.0.1".to_owned()),
    ] {
        let report = world.fetch_with(source, &[("HF_ENDPOINT", &endpoint)]);
        let text = format!("{} {:?}", report.log, report.outcome);
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[test]
fn paths_in_variables_are_expanded_as_in_python() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let home = world.folder.path().to_str().unwrap();
    for (setting, folder) in
        [("~/hf", "hf"), ("$HOME/by-variable", "by-variable"), ("${HOME}/braces", "braces")]
    {
        let files = world.fetch_with("hf:own/vit", &[("HOME", home), ("HF_HOME", setting)]).files();
        assert!(files.weights.starts_with(world.folder.path().join(folder).join("hub")), "{files:?}");
    }
    let files = world.fetch_with("hf:own/vit", &[("HOME", home), ("HF_HUB_CACHE", "~/cache")]).files();
    assert!(files.weights.starts_with(world.folder.path().join("cache")));
}

#[test]
fn an_invalid_time_limit_is_refused() {
    for value in ["0", "-1", "ten", "1.5"] {
        let refusal = World::new().fetch_with("hf:own/vit", &[("HF_HUB_DOWNLOAD_TIMEOUT", value)]).refusal();
        assert!(refusal.user);
        refusal
            .assert_contains(&[&format!("HF_HUB_DOWNLOAD_TIMEOUT = `{value}`"), "whole number of seconds"]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_system_without_certificates_reads_the_cache() {
    let world = World::new();
    world.publish("own/vit", "main", b"weights", Some(b"{}"));
    let online = world.fetch("hf:own/vit").files();
    let nothing = world.folder.path().join("nothing");
    let none = [("SSL_CERT_FILE", nothing.to_str().unwrap()), ("SSL_CERT_DIR", nothing.to_str().unwrap())];
    let offline = [none.as_slice(), &[("HF_HUB_OFFLINE", "1")]].concat();
    assert_eq!(world.fetch_with("hf:own/vit", &offline).files(), online);
    let pinned = format!("hf:own/vit@{}", commit(b"weights"));
    assert_eq!(world.fetch_with(&pinned, &none).files().weights, online.weights);
    // Without certificates, no client can be set up.
    let uncached = world.fetch_with("hf:own/other", &none).refusal();
    uncached.assert_contains(&["cannot fetch `hf:own/other`", "CA certificates"]);
    // A branch needs the hub. Without a client, the cached copy is used as if there were no network.
    let moving = world.fetch_with("hf:own/vit", &none);
    assert_eq!(moving.files(), online);
}

// ---------------------------------------------------------------------------------------------
// Fetching in a child process
// ---------------------------------------------------------------------------------------------

/// Result of a [`fetch`], as reported by a child process.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Files(Files),
    Refusal(Refusal),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Files {
    weights: PathBuf,
    config: Option<PathBuf>,
    preprocessor: Option<PathBuf>,
    provenance: Provenance,
}

#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    message: String,
    user: bool,
}

impl Refusal {
    fn assert_contains(&self, words: &[&str]) {
        for words in words {
            assert!(self.message.contains(words), "{words:?} not in {:?}", self.message);
        }
    }
}

const SOURCE: &str = "TEST_HUB_SOURCE";
const OUTCOME: &str = "TEST_HUB_OUTCOME";

/// Fetch of the other tests, which runs in a child process. Does nothing if run by hand.
#[test]
#[ignore = "runs only as a child process of the other tests"]
fn child() {
    let Ok(source) = std::env::var(SOURCE) else {
        return;
    };
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let outcome = match fetch(&source.parse().unwrap()) {
        Ok(files) => Outcome::Files(Files {
            weights: files.weights,
            config: files.config,
            preprocessor: files.preprocessor,
            provenance: files.provenance,
        }),
        Err(error) => Outcome::Refusal(Refusal { message: error.to_string(), user: error.is_user_error() }),
    };
    let report = serde_json::to_vec(&outcome).unwrap();
    fs::write(std::env::var_os(OUTCOME).unwrap(), report).unwrap();
}

/// Outcome and log of a child process.
struct Report {
    outcome: Outcome,
    log: String,
}

impl Report {
    fn files(self) -> Files {
        match self.outcome {
            Outcome::Files(files) => files,
            Outcome::Refusal(refusal) => panic!("{}", refusal.message),
        }
    }

    fn refusal(self) -> Refusal {
        match self.outcome {
            Outcome::Refusal(refusal) => refusal,
            Outcome::Files(files) => panic!("{files:?}"),
        }
    }
}

/// A hub and a client with its cache, both in one temporary folder.
struct World {
    folder: TempDir,
    hub: LoopbackHub,
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let hub = LoopbackHub::serve(folder.path().join("served"));
        Self { folder, hub }
    }

    /// Returns the folder that the hub serves.
    fn served(&self) -> PathBuf {
        self.folder.path().join("served")
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Publishes files on the hub. Returns the path of the weights in the served folder.
    fn publish(&self, repo: &str, revision: &str, weights: &[u8], config: Option<&[u8]>) -> PathBuf {
        let folder = self.served().join(repo).join(revision);
        fs::create_dir_all(&folder).unwrap();
        if let Some(config) = config {
            fs::write(folder.join("config.json"), config).unwrap();
        }
        fs::write(folder.join("model.safetensors"), weights).unwrap();
        folder.join("model.safetensors")
    }

    /// Publishes weights in PyTorch's format on the hub, with both configuration files.
    fn publish_torch(&self, repo: &str, weights: &[u8]) {
        let folder = self.served().join(repo).join("main");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("pytorch_model.bin"), weights).unwrap();
        fs::write(folder.join("config.json"), b"{}").unwrap();
        fs::write(folder.join("preprocessor_config.json"), b"{ }").unwrap();
    }

    fn fetch(&self, source: &str) -> Report {
        self.fetch_with(source, &[])
    }

    fn fetch_with(&self, source: &str, settings: &[(&str, &str)]) -> Report {
        let outcome = self.folder.path().join("outcome.json");
        let mut command = Command::new(std::env::current_exe().unwrap());
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(name)) {
            command.env_remove(name);
        }
        let output = command
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("HF_HOME", self.home())
            .env("HF_ENDPOINT", self.hub.endpoint())
            .env(SOURCE, source)
            .env(OUTCOME, &outcome)
            .envs(settings.iter().copied())
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        Report { outcome: serde_json::from_slice(&fs::read(outcome).unwrap()).unwrap(), log }
    }
}

/// Returns whether an environment variable would change the behaviour of a child.
fn is_setting(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_ascii_uppercase();
    name.starts_with("HF_") || name.starts_with("HUGGINGFACE_") || name.ends_with("_PROXY")
}

// ---------------------------------------------------------------------------------------------
// Server of the hub's protocol
// ---------------------------------------------------------------------------------------------

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Server of the routes of the hub that a fetch needs, for the folder `<root>/<owner>/<name>/<revision>`.
///
/// As on the hub, weights are stored separately: their address redirects to one without access control and states their
/// SHA-256, while a configuration is served directly. Some owners are special: `private` requires a token, `gated`
/// refuses it, `broken` closes the connection in the middle of the weights, `stalled` stops sending there, `slow`
/// sends ten bytes a second from there on, `endless` sends weights without end, `angry` answers every request with an
/// error page without end, and `moved` redirects to another name of the same server. While there is a file
/// `<root>/down`, every response is 503. Lines `name: value` in a file `<root>/headers` replace headers of files.
struct LoopbackHub {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

struct Request {
    method: String,
    path: String,
    host: String,
    authorization: Option<String>,
}

struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// Returns the commit of a revision with these weights. Like a real commit, it changes with the contents.
fn commit(weights: &[u8]) -> String {
    sha256(weights)[..40].to_owned()
}

impl LoopbackHub {
    fn serve(root: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, log) = (root.clone(), Arc::clone(&log));
                // One thread for each connection, since a client may open a connection and leave it unused.
                thread::spawn(move || serve_connection(&stream, address, &root, &log));
            }
        });
        Self { address, requests }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns all requests so far, as `METHOD /path`.
    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Answers the single request of a connection.
fn serve_connection(mut stream: &TcpStream, address: SocketAddr, root: &Path, log: &Mutex<Vec<String>>) {
    let Some(request) = read_request(stream) else {
        return;
    };
    let token = if request.authorization.is_some() { " with token" } else { "" };
    let host = request.host.split(':').next().unwrap();
    log.lock().unwrap().push(match host {
        "localhost" => format!("{} {} of localhost{token}", request.method, request.path),
        _ => format!("{} {}", request.method, request.path),
    });
    let response = answer(&request, address, root);

    let mut head = format!("HTTP/1.1 {} -\r\nConnection: close\r\n", response.status);
    if !["/cdn/endless/", "/api/models/angry/"].iter().any(|path| request.path.starts_with(path)) {
        head.push_str(&format!("Content-Length: {}\r\n", response.body.len()));
    }
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");

    let body = match request.method.as_str() {
        "HEAD" => &[],
        _ if ["/cdn/broken/", "/cdn/stalled/", "/cdn/slow/"]
            .iter()
            .any(|cut| request.path.starts_with(cut)) =>
        {
            &response.body[..response.body.len() / 2]
        }
        _ => response.body.as_slice(),
    };
    // The client may have closed the connection.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    if request.path.starts_with("/cdn/slow/") {
        for _ in 0..100 {
            thread::sleep(Duration::from_millis(100));
            let _ = stream.write_all(b"w");
        }
    }
    if request.path.starts_with("/cdn/endless/") || request.path.starts_with("/api/models/angry/") {
        while stream.write_all(&[0; 1 << 16]).is_ok() {}
    }
    if request.path.starts_with("/cdn/stalled/") {
        thread::sleep(Duration::from_secs(60));
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ');
    let mut request = Request {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        host: String::new(),
        authorization: None,
    };
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "authorization" => request.authorization = Some(value.to_owned()),
                "host" => request.host = value.to_owned(),
                _ => {}
            }
        }
    }
    Some(request)
}

fn answer(request: &Request, address: SocketAddr, root: &Path) -> Response {
    let plain = |status, body: &[u8]| Response { status, headers: Vec::new(), body: body.to_owned() };
    let parts: Vec<&str> = request.path.split('/').skip(1).collect();
    let (owner, name, revision, file) = match parts[..] {
        ["cdn", ..] => {
            let path = request.path.trim_start_matches("/cdn/");
            return plain(200, &fs::read(root.join(path)).unwrap());
        }
        ["api", "models", owner, name] => (owner, name, None, None),
        ["api", "models", owner, name, "revision", revision] => (owner, name, Some(revision), None),
        [owner, name, "resolve", revision, file] => (owner, name, Some(revision), Some(file)),
        _ => return plain(404, b""),
    };

    let known = request.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"));
    match owner {
        _ if root.join("down").exists() => return plain(503, b""),
        "private" if !known => return plain(401, b""),
        "angry" => return plain(400, b""),
        "gated" if file.is_some() => return plain(if known { 403 } else { 401 }, b""),
        "moved" if file.is_some() && request.host.starts_with("127.") => {
            let location = format!("http://localhost:{}{}", address.port(), request.path);
            return Response { status: 308, headers: vec![("Location", location)], body: Vec::new() };
        }
        _ => {}
    }
    let repository = root.join(owner).join(name);
    if !repository.is_dir() {
        return plain(404, b"");
    }
    let Some(revision) = revision else {
        return plain(200, b"{}");
    };
    let Some((folder, commit)) = resolve(&repository, revision) else {
        return plain(404, b"");
    };
    let Some(file) = file else {
        return plain(200, b"{}");
    };

    let mut headers = vec![("X-Repo-Commit", commit)];
    let Ok(content) = fs::read(folder.join(file)) else {
        return Response { status: 404, headers, body: Vec::new() };
    };
    let large = WEIGHTS.contains(&file);
    let etag = match large {
        true => format!("\"{}\"", sha256(&content)),
        false => format!("\"{}\"", &sha256(&content)[..40]),
    };
    let (status, body) = if large {
        let path = folder.strip_prefix(root).unwrap().join(file);
        let location = format!("http://{address}/cdn/{}", path.display());
        headers.push(("Location", location));
        headers.push(("X-Linked-ETag", etag));
        headers.push(("X-Linked-Size", content.len().to_string()));
        (302, Vec::new())
    } else {
        headers.push(("ETag", etag));
        (200, content)
    };
    let replaced = fs::read_to_string(root.join("headers")).unwrap_or_default();
    for (name, value) in replaced.lines().filter_map(|line| line.split_once(": ")) {
        headers.iter_mut().filter(|header| header.0 == name).for_each(|header| header.1 = value.to_owned());
    }
    Response { status, headers, body }
}

/// Returns folder and commit of a revision, given by its name or by its commit.
fn resolve(repository: &Path, revision: &str) -> Option<(PathBuf, String)> {
    fs::read_dir(repository).unwrap().find_map(|entry| {
        let folder = entry.unwrap().path();
        let weights = WEIGHTS.iter().find_map(|name| fs::read(folder.join(name)).ok());
        let commit = commit(&weights.unwrap_or_default());
        (folder.ends_with(revision) || commit == revision).then_some((folder, commit))
    })
}
