//! Transfer of a file from the hub into the cache, limited in size.

use std::{
    fmt::Display,
    io::Write,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use reqwest::{Response, StatusCode, Url, header::CONTENT_LENGTH};
use sha2::{Digest as _, Sha256};

use crate::{
    error::HubError,
    hub::client::{
        cache::{Digest, RepositoryCache},
        connection::{Body, Connection, Failure, header},
        environment::public,
    },
    system::hex,
};

/// Interval between log lines about the progress of a transfer.
const REPORT_EVERY: Duration = Duration::from_secs(10);

const REPO_COMMIT: &str = "X-Repo-Commit";
const ETAG: &str = "ETag";
const LINKED_ETAG: &str = "X-Linked-ETag";
const LINKED_SIZE: &str = "X-Linked-Size";
const ERROR_CODE: &str = "X-Error-Code";

/// Response of the hub to the request for a file.
pub(super) enum Answer {
    /// The blob `etag` of the cache has the contents that the file has in `commit`.
    File { commit: Digest, etag: Digest },
    /// The revision has no such file. The commit of the revision, if the response contains one.
    Missing(Option<Digest>),
}

/// Description of a file in the headers of the hub.
struct Description {
    commit: Digest,
    etag: Digest,
    /// Size in bytes, for a file that is stored outside git.
    size: Option<u64>,
}

/// Requests a file of a revision and stores its contents as a blob of the cache, unless the blob exists.
///
/// `repository` is the path of the repository on the hub: `owner/name`, for data sets `datasets/owner/name`.
///
/// # Errors
/// No connection, a transfer that stops, headers that are missing or unsafe, or a cache that cannot be written.
pub(super) async fn file(
    hub: &Connection,
    repository: &str,
    revision: &str,
    name: &str,
    cache: &RepositoryCache,
) -> Result<Answer, HubError> {
    let url = hub.url(repository.split('/').chain(["resolve", revision]).chain(name.split('/')));
    hub.repeated(async || {
        let (answer, body) = request(hub, &url, revision, cache).await?;
        if let (Answer::File { etag, .. }, Some((body, size))) = (&answer, body) {
            store(hub, body, size, etag, name, cache).await?;
        }
        Ok(answer)
    })
    .await
}

/// Requests a file and follows redirects. Unless the cache has the contents, also returns the response whose body
/// contains them, and the size of the body in bytes.
async fn request(
    hub: &Connection,
    url: &Url,
    revision: &str,
    cache: &RepositoryCache,
) -> Result<(Answer, Option<(Response, u64)>), Failure> {
    let mut found = None;
    let visit = |url: &Url, response: &Response| {
        if found.is_none() && (response.status().is_success() || response.status().is_redirection()) {
            found = description(hub, url, response, revision)?;
        }
        Ok(match &found {
            Some(Description { etag, .. }) if cache.blob(etag).exists() => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    };
    let (url, response) = hub.follow(url, visit).await?;
    let text = |name: &str| header(response.headers(), name);
    let status = response.status();
    let Some(Description { commit, etag, size }) = found else {
        return match (status, text(ERROR_CODE).as_deref()) {
            (StatusCode::NOT_FOUND, Some("RevisionNotFound")) => {
                let (wanted, revision) = (hub.wanted.clone(), revision.to_owned());
                Err(HubError::NoRevision { wanted, revision }.into())
            }
            (StatusCode::NOT_FOUND, _) => {
                let commit = text(REPO_COMMIT).and_then(|text| Digest::commit(&text));
                Ok((Answer::Missing(commit), None))
            }
            _ if status.is_success() => {
                let missing = if text(REPO_COMMIT).is_none() { REPO_COMMIT } else { ETAG };
                Err(hub.not_a_hub(&url, &format!("the response has no header {missing}")).into())
            }
            _ => Err(hub.refusal(&url, status)),
        };
    };
    if cache.blob(&etag).exists() {
        return Ok((Answer::File { commit, etag }, None));
    }
    if !status.is_success() {
        return Err(hub.refusal(&url, status));
    }
    let length = text(CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
    let Some(size) = size.or(length) else {
        return Err(hub.not_a_hub(&url, "the response states no size (Content-Length)").into());
    };
    Ok((Answer::File { commit, etag }, Some((response, size))))
}

/// Reads commit, entity tag and size from the headers of a response; `None` for a response without them, as those of
/// other servers than the hub.
///
/// # Errors
/// A value that is not of its form, or another commit than the revision.
fn description(
    hub: &Connection,
    url: &Url,
    response: &Response,
    revision: &str,
) -> Result<Option<Description>, HubError> {
    let text = |name: &str| header(response.headers(), name);
    let etag = [LINKED_ETAG, ETAG].into_iter().find_map(|name| Some((name, text(name)?)));
    let (Some(commit), Some((name, etag))) = (text(REPO_COMMIT), etag) else { return Ok(None) };
    let refuse = |name: &str, value: &str, expected: &str| {
        let value: String = value.chars().take(100).collect();
        let problem = format!("its header {name} is `{}`, expected {expected}", value.escape_debug());
        hub.not_a_hub(url, &problem)
    };
    let commit = Digest::commit(&commit)
        .ok_or_else(|| refuse(REPO_COMMIT, &commit, "a commit of 40 hexadecimal digits"))?;
    if Digest::commit(revision).is_some_and(|wanted| wanted != commit) {
        return Err(refuse(REPO_COMMIT, commit.as_str(), &format!("`{revision}`")));
    }
    let etag = Digest::etag(&etag).ok_or_else(|| refuse(name, &etag, "40 or 64 hexadecimal digits"))?;
    let number = |text: String| text.parse().map_err(|_| refuse(LINKED_SIZE, &text, "a number of bytes"));
    let size = text(LINKED_SIZE).map(number).transpose()?;
    Ok(Some(Description { commit, etag, size }))
}

/// Writes a body of `size` bytes to a blob of the cache, which appears only when it is complete and has the SHA-256
/// that the hub announced.
async fn store(
    hub: &Connection,
    response: Response,
    size: u64,
    etag: &Digest,
    name: &str,
    cache: &RepositoryCache,
) -> Result<(), Failure> {
    let url = response.url().clone();
    let unwritable = |error: std::io::Error| {
        let (wanted, cache) = (hub.wanted.clone(), cache.folder.clone());
        Failure::Lasting(HubError::Cache { wanted, cache, reason: error.to_string() })
    };
    let _lock = cache.lock(etag).map_err(unwritable)?;
    if cache.blob(etag).exists() {
        return Ok(());
    }
    let mut file = cache.new_blob().map_err(unwritable)?;
    let free = fs4::available_space(file.path()).map_err(unwritable)?;
    if size > free {
        let short = format!("`{name}` has {} MB, {} MB are free", megabytes(size), megabytes(free));
        return Err(unwritable(std::io::Error::other(short)));
    }
    let from = public(url.as_str());
    tracing::info!("fetching `{name}` of `{}`, {} MB, from {from}", hub.wanted, megabytes(size));
    let (mut received, mut hasher, mut reported) = (0, Sha256::new(), Instant::now());
    let mut body = Body::new(hub, response);
    while received < size {
        let stopped = |problem: String| {
            let problem = format!("stopped after {received} of {size} bytes: {problem}");
            Failure::Passing(hub.failed(&url, &problem))
        };
        let Some(piece) = body.next().await.map_err(stopped)? else {
            return Err(stopped("the server closed the connection".to_owned()));
        };
        received += piece.len() as u64;
        if received > size {
            return Err(hub
                .not_a_hub(&url, &format!("it sends more than the announced {size} bytes"))
                .into());
        }
        hasher.update(&*piece);
        file.write_all(&piece).map_err(unwritable)?;
        if reported.elapsed() >= REPORT_EVERY {
            tracing::info!("fetched {} of {} MB of `{name}`", megabytes(received), megabytes(size));
            reported = Instant::now();
        }
    }
    let found = hex(&hasher.finalize());
    if let Some(announced) = etag.sha256().filter(|announced| *announced != found) {
        let problem = format!("failed: the bytes have the SHA-256 {found}, the hub announced {announced}");
        return Err(Failure::Passing(hub.failed(&url, &problem)));
    }
    file.as_file().sync_all().map_err(unwritable)?;
    file.persist(cache.blob(etag)).map_err(|error| unwritable(error.error))?;
    Ok(())
}

fn megabytes(bytes: u64) -> impl Display {
    format!("{:.1}", bytes as f64 / 1e6)
}
