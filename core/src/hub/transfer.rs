//! Transfers from the hub, limited in time and in size.
//!
//! The library `hf-hub` joins response headers to paths of the cache unchecked, and waits without limit for as many bytes
//! as a server sends. All requests are therefore sent from here. Redirects are followed one by one: the token is
//! sent to the hub alone.

use std::{
    error::Error,
    fmt::Display,
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use hf_hub::repository::RepoTreeEntry;
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, LINK, LOCATION},
    redirect::Policy,
};
use sha2::{Digest as _, Sha256};

use crate::{
    error::HubError,
    hub::{
        cache::{Digest, RepositoryCache},
        environment::{Environment, public},
    },
    system::hex,
};

/// Number of attempts of a transfer.
const ATTEMPTS: u32 = 3;
/// Pause after the first failed attempt; doubled after each further one.
const PAUSE: Duration = Duration::from_millis(200);
/// Largest number of redirects of a request.
const MAX_REDIRECTS: usize = 10;
/// Largest size of one page of a list of files, in bytes.
const MAX_PAGE: usize = 16 << 20;
/// Largest size of a list of files, in bytes.
const MAX_LIST: usize = 64 << 20;
/// Largest number of pages of a list of files.
const MAX_PAGES: usize = 1000;
/// Smallest rate of a transfer, in bytes per second. A server that sends a byte now and then never stays silent.
const MIN_RATE: u64 = 1000;
/// Interval between log lines about the progress of a transfer.
const REPORT_EVERY: Duration = Duration::from_secs(10);

const REPO_COMMIT: &str = "X-Repo-Commit";
const ETAG: &str = "ETag";
const LINKED_ETAG: &str = "X-Linked-ETag";
const LINKED_SIZE: &str = "X-Linked-Size";
const ERROR_CODE: &str = "X-Error-Code";

/// Connection to the hub for one source.
pub(super) struct Transfer {
    http: Client,
    endpoint: Url,
    token: Option<String>,
    stall: Duration,
    /// Folder of fetched repositories, for messages.
    cache: PathBuf,
    /// Source as written by the user, for messages.
    wanted: String,
}

/// Response of the hub to the request for a file.
pub(super) enum Answer {
    /// The blob `etag` of the cache has the contents that the file has in `commit`.
    File { commit: Digest, etag: Digest },
    /// The revision has no such file. The commit of the revision, if the response contains one.
    Missing(Option<Digest>),
}

/// Rate of a transfer, measured over periods as long as a silence may be.
struct Pace {
    period: Duration,
    start: Instant,
    bytes: u64,
}

impl Pace {
    fn new(period: Duration) -> Self {
        Self { period, start: Instant::now(), bytes: 0 }
    }

    /// Adds received bytes. Returns whether fewer than [`MIN_RATE`] bytes per second arrived in the period that ends.
    fn is_too_slow(&mut self, bytes: usize) -> bool {
        self.bytes += bytes as u64;
        let elapsed = self.start.elapsed();
        if elapsed < self.period {
            return false;
        }
        let slow = (self.bytes as f64) < MIN_RATE as f64 * elapsed.as_secs_f64();
        (self.start, self.bytes) = (Instant::now(), 0);
        slow
    }
}

/// Failure of one attempt.
enum Failure {
    /// A repetition may succeed.
    Passing(HubError),
    /// A repetition fails too.
    Lasting(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Lasting(error)
    }
}

impl Transfer {
    /// Sets up the connection; sends nothing.
    ///
    /// # Errors
    /// An address whose scheme is not `http` or `https`, or a system without CA certificates.
    pub(super) fn new(wanted: &str, environment: &Environment) -> Result<Self, HubError> {
        let unusable = |reason: String| HubError::Client { wanted: wanted.to_owned(), reason };
        let address = public(&environment.endpoint);
        let endpoint = Url::parse(&environment.endpoint)
            .map_err(|error| unusable(format!("`{address}` is not an address: {error}")))?;
        if !["http", "https"].contains(&endpoint.scheme()) {
            return Err(unusable(format!("`{address}` has the scheme `{}`", endpoint.scheme())));
        }
        let http = client(environment).map_err(|error| unusable(innermost(&error)))?;
        let (token, stall) = (environment.token.clone(), environment.stall);
        let cache = environment.cache.clone();
        Ok(Self { http, endpoint, token, stall, cache, wanted: wanted.to_owned() })
    }

    /// Returns whether the hub has the page of the API at `path`, such as `models/owner/name`. Reads no body.
    ///
    /// # Errors
    /// No connection, or a response other than success and "not found".
    pub(super) async fn exists(&self, path: &[&str]) -> Result<bool, HubError> {
        let first = self.url(["api"].iter().chain(path).copied());
        self.repeated(async || {
            let mut url = first.clone();
            for _ in 0..=MAX_REDIRECTS {
                let response = self.send(&url).await?;
                match response.status() {
                    StatusCode::NOT_FOUND => return Ok(false),
                    status if status.is_success() => return Ok(true),
                    status if status.is_redirection() => {
                        url = self.redirected(&url, header(response.headers(), LOCATION.as_str()))?;
                    }
                    status => return Err(self.refusal(&url, status)),
                }
            }
            Err(self.not_a_hub(&url, &format!("there are more than {MAX_REDIRECTS} redirects")).into())
        })
        .await
    }

    /// Requests a file of a revision and stores its contents as a blob of the cache, unless the blob exists.
    ///
    /// `repository` is the path of the repository on the hub: `owner/name`, for data sets `datasets/owner/name`.
    ///
    /// # Errors
    /// No connection, a transfer that stops, headers that are missing or unsafe, or a cache that cannot be written.
    pub(super) async fn file(
        &self,
        repository: &str,
        revision: &str,
        name: &str,
        cache: &RepositoryCache,
    ) -> Result<Answer, HubError> {
        let url = self.url(repository.split('/').chain(["resolve", revision]).chain(name.split('/')));
        self.repeated(async || {
            let (answer, body) = self.request_file(&url, revision, cache).await?;
            if let (Answer::File { etag, .. }, Some((body, size))) = (&answer, body) {
                self.store(body, size, etag, name, cache).await?;
            }
            Ok(answer)
        })
        .await
    }

    /// Lists the names of all files of a revision. `repository` is a path as in [`file`](Self::file).
    ///
    /// # Errors
    /// No connection, a transfer that stops, or a list that is too long or is not the hub's.
    pub(super) async fn list(&self, repository: &str, revision: &str) -> Result<Vec<String>, HubError> {
        let mut first = self.url(["api"].into_iter().chain(repository.split('/')).chain(["tree", revision]));
        first.set_query(Some("recursive=true"));
        let mut next = Some(first);
        let (mut names, mut pages, mut bytes) = (Vec::new(), 0, 0);
        while let Some(url) = next {
            let (page, link) = self.repeated(async || self.page(&url).await).await?;
            (pages, bytes) = (pages + 1, bytes + page.len());
            if pages > MAX_PAGES || bytes > MAX_LIST {
                let problem =
                    format!("the list of files has more than {MAX_PAGES} pages or {MAX_LIST} bytes");
                return Err(self.not_a_hub(&url, &problem));
            }
            let entries: Vec<RepoTreeEntry> = serde_json::from_slice(&page).map_err(|error| {
                self.not_a_hub(&url, &format!("the list of files is not valid JSON ({error})"))
            })?;
            names.extend(entries.into_iter().filter_map(|entry| match entry {
                RepoTreeEntry::File { path, .. } => Some(path),
                RepoTreeEntry::Directory { .. } => None,
            }));
            // A mirror may pass on links to the hub that it copies; only the endpoint itself receives the token.
            next = link.map(|link| self.redirected(&url, Some(link.into()))).transpose()?;
        }
        Ok(names)
    }

    /// Requests a file and follows redirects. Returns the commit and the entity tag of the file from the first response
    /// that has them. Unless the cache has the contents, also returns the response whose body contains them, and the
    /// size of the body in bytes.
    async fn request_file(
        &self,
        url: &Url,
        revision: &str,
        cache: &RepositoryCache,
    ) -> Result<(Answer, Option<(Response, u64)>), Failure> {
        let mut url = url.clone();
        let (mut described, mut size) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&url).await?;
            let (status, headers) = (response.status(), response.headers());
            let text = |name: &str| header(headers, name);
            if status == StatusCode::NOT_FOUND && described.is_none() {
                return match text(ERROR_CODE).as_deref() {
                    Some("RevisionNotFound") => {
                        let (wanted, revision) = (self.wanted.clone(), revision.to_owned());
                        Err(HubError::NoRevision { wanted, revision }.into())
                    }
                    _ => {
                        let commit = text(REPO_COMMIT).and_then(|text| Digest::commit(&text));
                        Ok((Answer::Missing(commit), None))
                    }
                };
            }
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(&url, status));
            }
            if described.is_none()
                && let Some(commit) = text(REPO_COMMIT)
                && let Some((name, etag)) = [LINKED_ETAG, ETAG].iter().find_map(|&n| Some((n, text(n)?)))
            {
                let commit = Digest::commit(&commit).ok_or_else(|| {
                    self.unsafe_header(&url, REPO_COMMIT, &commit, "a commit of 40 hexadecimal digits")
                })?;
                if Digest::commit(revision).is_some_and(|wanted| wanted != commit) {
                    return Err(self
                        .unsafe_header(&url, REPO_COMMIT, commit.as_str(), &format!("`{revision}`"))
                        .into());
                }
                let etag = Digest::etag(&etag)
                    .ok_or_else(|| self.unsafe_header(&url, name, &etag, "40 or 64 hexadecimal digits"))?;
                size = match text(LINKED_SIZE) {
                    None => None,
                    Some(text) => Some(
                        text.parse::<u64>()
                            .map_err(|_| self.unsafe_header(&url, LINKED_SIZE, &text, "a number of bytes"))?,
                    ),
                };
                if cache.blob(&etag).exists() {
                    return Ok((Answer::File { commit, etag }, None));
                }
                described = Some((commit, etag));
            }
            if status.is_redirection() {
                url = self.redirected(&url, text(LOCATION.as_str()))?;
                continue;
            }
            let Some((commit, etag)) = described else {
                let missing = if text(REPO_COMMIT).is_none() { REPO_COMMIT } else { ETAG };
                return Err(self.not_a_hub(&url, &format!("the response has no header {missing}")).into());
            };
            let length = text(CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
            let Some(size) = size.or(length) else {
                return Err(self.not_a_hub(&url, "the response states no size (Content-Length)").into());
            };
            return Ok((Answer::File { commit, etag }, Some((response, size))));
        }
        Err(self.not_a_hub(&url, &format!("there are more than {MAX_REDIRECTS} redirects")).into())
    }

    /// Writes a body of `size` bytes to a blob of the cache, which appears only when it is complete and has the SHA-256
    /// that the hub announced.
    async fn store(
        &self,
        mut body: Response,
        size: u64,
        etag: &Digest,
        name: &str,
        cache: &RepositoryCache,
    ) -> Result<(), Failure> {
        let url = body.url().clone();
        let unwritable = |error: std::io::Error| {
            let reason = error.to_string();
            Failure::Lasting(HubError::Cache {
                wanted: self.wanted.clone(),
                cache: cache.folder.clone(),
                reason,
            })
        };
        let _lock = cache.lock(etag).map_err(unwritable)?;
        if cache.blob(etag).exists() {
            return Ok(());
        }
        let free =
            fs4::available_space(&cache.folder).or_else(|_| fs4::available_space(".")).map_err(unwritable)?;
        if size > free {
            let short = format!("`{name}` has {} MB, {} MB are free", megabytes(size), megabytes(free));
            return Err(unwritable(std::io::Error::other(short)));
        }
        let mut file = cache.new_blob().map_err(unwritable)?;
        tracing::info!(
            "fetching `{name}` of `{}`, {} MB, from {}",
            self.wanted,
            megabytes(size),
            public(url.as_str())
        );
        let (mut received, mut hasher, mut reported) = (0, Sha256::new(), Instant::now());
        let mut pace = Pace::new(self.stall);
        while received < size {
            let stopped = |problem: String| {
                Failure::Passing(
                    self.failed(&url, &format!("stopped after {received} of {size} bytes: {problem}")),
                )
            };
            let chunk = match body.chunk().await {
                Err(error) => return Err(stopped(self.reason(&error))),
                Ok(None) => return Err(stopped("the server closed the connection".to_owned())),
                Ok(Some(chunk)) => chunk,
            };
            if pace.is_too_slow(chunk.len()) {
                return Err(stopped(format!("fewer than {MIN_RATE} bytes per second arrive")));
            }
            received += chunk.len() as u64;
            if received > size {
                break;
            }
            hasher.update(&chunk);
            file.write_all(&chunk).map_err(unwritable)?;
            if reported.elapsed() >= REPORT_EVERY {
                tracing::info!("fetched {} of {} MB of `{name}`", megabytes(received), megabytes(size));
                reported = Instant::now();
            }
        }
        if received > size {
            return Err(self
                .not_a_hub(&url, &format!("it sends more than the announced {size} bytes"))
                .into());
        }
        let found = hex(&hasher.finalize());
        if let Some(announced) = etag.sha256().filter(|announced| *announced != found) {
            let problem =
                format!("failed: the bytes have the SHA-256 {found}, the hub announced {announced}");
            return Err(Failure::Passing(self.failed(&url, &problem)));
        }
        file.as_file().sync_all().map_err(unwritable)?;
        file.persist(cache.blob(etag)).map_err(|error| unwritable(error.error))?;
        Ok(())
    }

    /// Reads one page of a list. Also returns the address of the next page, if there is one.
    async fn page(&self, url: &Url) -> Result<(Vec<u8>, Option<Url>), Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut response = self.send(&url).await?;
            if response.status().is_redirection() {
                url = self.redirected(&url, header(response.headers(), LOCATION.as_str()))?;
                continue;
            }
            if !response.status().is_success() {
                return Err(self.refusal(&url, response.status()));
            }
            let next = header(response.headers(), LINK.as_str()).and_then(|links| next_page(&links));
            let next = next.and_then(|link| url.join(&link).ok());
            let (mut page, mut pace) = (Vec::new(), Pace::new(self.stall));
            while let Some(chunk) = response.chunk().await.map_err(|error| self.interrupted(&url, &error))? {
                if pace.is_too_slow(chunk.len()) {
                    let problem = format!("stopped: fewer than {MIN_RATE} bytes per second arrive");
                    return Err(Failure::Passing(self.failed(&url, &problem)));
                }
                page.extend_from_slice(&chunk);
                if page.len() > MAX_PAGE {
                    let problem = format!("a page of the list of files has more than {MAX_PAGE} bytes");
                    return Err(self.not_a_hub(&url, &problem).into());
                }
            }
            return Ok((page, next));
        }
        Err(self.not_a_hub(&url, &format!("there are more than {MAX_REDIRECTS} redirects")).into())
    }

    /// Runs an attempt up to [`ATTEMPTS`] times, until it succeeds or fails for good.
    async fn repeated<A>(&self, attempt: impl AsyncFn() -> Result<A, Failure>) -> Result<A, HubError> {
        let mut count = 0;
        loop {
            count += 1;
            match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(error)) if count == ATTEMPTS => return Err(error),
                Err(Failure::Passing(error)) => {
                    if !matches!(error, HubError::Unreachable { .. }) {
                        tracing::warn!("{error} (attempt {count} of {ATTEMPTS})");
                    }
                    tokio::time::sleep(PAUSE * 2_u32.pow(count - 1)).await;
                }
            }
        }
    }

    /// Sends a request, with the token if it goes to the hub itself.
    async fn send(&self, url: &Url) -> Result<Response, Failure> {
        let mut request = self.http.get(url.clone());
        // A user name and password in the address are sent in the same header.
        let takes_token = url.origin() == self.endpoint.origin() && url.username().is_empty();
        if let Some(token) = self.token.as_ref().filter(|_| takes_token) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.send().await.map_err(|error| self.interrupted(url, &error))
    }

    /// Returns the target of a redirect from `url`.
    fn redirected(&self, url: &Url, location: Option<String>) -> Result<Url, HubError> {
        let Some(location) = location else {
            return Err(self.not_a_hub(url, "it redirects without a target (header Location)"));
        };
        let target = url.join(&location);
        let Some(target) = target.ok().filter(|target| ["http", "https"].contains(&target.scheme())) else {
            return Err(self.not_a_hub(url, &format!("it redirects to `{}`", location.escape_debug())));
        };
        if url.scheme() == "https" && target.scheme() == "http" {
            let problem = format!("it redirects to {}, which is not encrypted", public(target.as_str()));
            return Err(self.not_a_hub(url, &problem));
        }
        tracing::debug!("{} redirects to {}", public(url.as_str()), public(target.as_str()));
        Ok(target)
    }

    fn url<'a>(&self, parts: impl Iterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // Addresses of http(s) always have a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Returns the error of a status that is neither success, redirect nor "not found".
    fn refusal(&self, url: &Url, status: StatusCode) -> Failure {
        let (wanted, endpoint) = (self.wanted.clone(), public(url.as_str()));
        match status {
            StatusCode::UNAUTHORIZED => HubError::TokenRequired { wanted, endpoint }.into(),
            StatusCode::FORBIDDEN => HubError::Forbidden { wanted, endpoint }.into(),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Failure::Passing(self.failed(url, &format!("failed: {status}")))
            }
            _ if status.is_server_error() => Failure::Passing(self.failed(url, &format!("failed: {status}"))),
            _ => self.not_a_hub(url, &format!("the response is {status}")).into(),
        }
    }

    fn interrupted(&self, url: &Url, error: &reqwest::Error) -> Failure {
        if error.is_connect() {
            // Large files are served by other hosts than the hub.
            let (wanted, endpoint) = (self.wanted.clone(), public(&url.origin().ascii_serialization()));
            let (cache, reason) = (self.cache.clone(), self.reason(error));
            return Failure::Passing(HubError::Unreachable { wanted, endpoint, cache, reason });
        }
        Failure::Passing(self.failed(url, &format!("failed: {}", self.reason(error))))
    }

    fn reason(&self, error: &reqwest::Error) -> String {
        match error.is_timeout() {
            true => format!("no byte arrived for {} s (HF_HUB_DOWNLOAD_TIMEOUT)", self.stall.as_secs()),
            false => innermost(error),
        }
    }

    fn failed(&self, url: &Url, problem: &str) -> HubError {
        HubError::Transfer {
            wanted: self.wanted.clone(),
            endpoint: public(url.as_str()),
            problem: problem.to_owned(),
        }
    }

    fn not_a_hub(&self, url: &Url, reason: &str) -> HubError {
        HubError::Endpoint {
            wanted: self.wanted.clone(),
            endpoint: public(url.as_str()),
            reason: reason.to_owned(),
        }
    }

    fn unsafe_header(&self, url: &Url, name: &str, value: &str, expected: &str) -> HubError {
        let value: String = value.chars().take(100).collect();
        let problem = format!("its header {name} is `{}`, expected {expected}", value.escape_debug());
        self.not_a_hub(url, &problem)
    }
}

/// Returns an HTTP client with the time limits of the environment.
fn client(environment: &Environment) -> reqwest::Result<Client> {
    let builder = Client::builder().user_agent(concat!("cdl/", env!("CARGO_PKG_VERSION")));
    builder
        .redirect(Policy::none())
        .connect_timeout(environment.stall)
        .read_timeout(environment.stall)
        .build()
}

/// Returns the innermost cause of an error: the outer ones only repeat the address.
fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// Returns the address of the next page in the header `Link: <address>; rel="next"`.
fn next_page(links: &str) -> Option<String> {
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

fn megabytes(bytes: u64) -> impl Display {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        let links = r#"<https://hub/first>; rel="first", <https://hub/api?cursor=a%3D>; rel="next""#;
        assert_eq!(next_page(links).as_deref(), Some("https://hub/api?cursor=a%3D"));
        assert_eq!(next_page(r#"<https://hub/first>; rel="first""#), None);
    }
}
