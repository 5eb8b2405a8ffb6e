//! Requests to the hub, limited in time.
//!
//! The library `hf-hub` joins response headers to paths of the cache unchecked, and waits without limit for as many
//! bytes as a server sends. All requests are therefore sent from here. Redirects are followed one by one: the token is
//! sent to the hub alone.

use std::{
    error::Error,
    ops::{ControlFlow, Deref},
    path::PathBuf,
    time::{Duration, Instant},
};

use reqwest::{
    Client, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, LOCATION},
    redirect::Policy,
};

use crate::{
    error::HubError,
    hub::client::environment::{Environment, public},
};

/// Number of attempts of a request or transfer.
const ATTEMPTS: u32 = 3;
/// Pause after the first failed attempt; doubled after each further one.
const PAUSE: Duration = Duration::from_millis(200);
/// Largest number of redirects of a request.
const MAX_REDIRECTS: usize = 10;
/// Smallest rate of a transfer, in bytes per second. A server that sends a byte now and then never stays silent.
const MIN_RATE: u64 = 1000;

/// Connection to the hub for one source.
pub(super) struct Connection {
    http: Client,
    endpoint: Url,
    token: Option<String>,
    stall: Duration,
    /// Folder of fetched repositories, for messages.
    cache: PathBuf,
    /// Source as written by the user, for messages.
    pub(super) wanted: String,
}

/// Failure of one attempt.
pub(super) enum Failure {
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

impl Connection {
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
            let (url, response) = self.follow(&first, |_, _| Ok(ControlFlow::Continue(()))).await?;
            match response.status() {
                StatusCode::NOT_FOUND => Ok(false),
                status if status.is_success() => Ok(true),
                status => Err(self.refusal(&url, status)),
            }
        })
        .await
    }

    /// Sends a request and follows its redirects. Returns the first response that is not a redirect, or after which
    /// `visit` stops, with its address. `visit` is called for each response.
    pub(super) async fn follow(
        &self,
        url: &Url,
        mut visit: impl FnMut(&Url, &Response) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(Url, Response), Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&url).await?;
            if visit(&url, &response)?.is_break() || !response.status().is_redirection() {
                return Ok((url, response));
            }
            url = self.redirected(&url, header(response.headers(), LOCATION.as_str()))?;
        }
        Err(self.not_a_hub(&url, &format!("there are more than {MAX_REDIRECTS} redirects")).into())
    }

    /// Runs an attempt up to [`ATTEMPTS`] times, until it succeeds or fails for good.
    pub(super) async fn repeated<A>(
        &self,
        attempt: impl AsyncFn() -> Result<A, Failure>,
    ) -> Result<A, HubError> {
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
    pub(super) fn redirected(&self, url: &Url, location: Option<String>) -> Result<Url, HubError> {
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

    /// Returns the address of the hub followed by path segments, which are escaped.
    pub(super) fn url<'a>(&self, parts: impl Iterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // Addresses of http(s) always have a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Returns the error of a status that is neither success, redirect nor "not found".
    pub(super) fn refusal(&self, url: &Url, status: StatusCode) -> Failure {
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

    /// Returns the error of a transfer that may succeed later.
    pub(super) fn failed(&self, url: &Url, problem: &str) -> HubError {
        HubError::Transfer {
            wanted: self.wanted.clone(),
            endpoint: public(url.as_str()),
            problem: problem.to_owned(),
        }
    }

    /// Returns the error of a response that a hub does not give.
    pub(super) fn not_a_hub(&self, url: &Url, reason: &str) -> HubError {
        HubError::Endpoint {
            wanted: self.wanted.clone(),
            endpoint: public(url.as_str()),
            reason: reason.to_owned(),
        }
    }
}

/// Body of a response, read piece by piece.
pub(super) struct Body<'a> {
    connection: &'a Connection,
    response: Response,
    /// Start of the current period, which is as long as a silence may be, and bytes received in it.
    period: (Instant, u64),
}

impl<'a> Body<'a> {
    pub(super) fn new(connection: &'a Connection, response: Response) -> Self {
        Self { connection, response, period: (Instant::now(), 0) }
    }

    /// Returns the next piece, or `None` at the end.
    ///
    /// # Errors
    /// Reason why the transfer stops: a broken connection, a silence, or a rate below [`MIN_RATE`].
    pub(super) async fn next(&mut self) -> Result<Option<impl Deref<Target = [u8]>>, String> {
        let piece = self.response.chunk().await.map_err(|error| self.connection.reason(&error))?;
        let (start, bytes) = &mut self.period;
        *bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        let elapsed = start.elapsed();
        if piece.is_some() && elapsed >= self.connection.stall {
            if (*bytes as f64) < MIN_RATE as f64 * elapsed.as_secs_f64() {
                return Err(format!("fewer than {MIN_RATE} bytes per second arrive"));
            }
            self.period = (Instant::now(), 0);
        }
        Ok(piece)
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

/// Returns the value of a header as text.
pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
