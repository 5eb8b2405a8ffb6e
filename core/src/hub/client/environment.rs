//! Settings of the hub from environment variables, with the meaning that they have in the Python library.

use std::{env, path::PathBuf, time::Duration};

use crate::{error::HubError, system::files};

/// Address of the public hub.
const PUBLIC_HUB: &str = "https://huggingface.co";
/// Default of `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds.
const STALL_SECONDS: u64 = 10;

/// Settings of the hub. Reading them needs neither a network nor a client.
pub(super) struct Environment {
    /// Address of the hub or of a mirror, without a trailing `/`. May contain a password: messages use [`public`].
    pub(super) endpoint: String,
    /// Folder of fetched repositories.
    pub(super) cache: PathBuf,
    /// Access token.
    pub(super) token: Option<String>,
    /// Whether requests are forbidden.
    pub(super) offline: bool,
    /// Longest time to wait for a connection or for the next byte.
    pub(super) stall: Duration,
}

impl Environment {
    /// Reads the environment.
    ///
    /// # Errors
    /// A time limit that is not a whole number of seconds above 0.
    pub(super) fn read() -> Result<Self, HubError> {
        let home = folder("HF_HOME")
            .or_else(|| folder("XDG_CACHE_HOME").map(|caches| caches.join("huggingface")))
            .unwrap_or_else(|| expanded("~/.cache/huggingface"));
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.to_owned());
        let offline = variable("HF_HUB_OFFLINE").is_some_and(|value| {
            ["1", "true", "yes", "on"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
        });
        let stall = match variable("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => STALL_SECONDS,
            Some(value) => match value.parse() {
                Ok(seconds) if seconds > 0 => seconds,
                _ => return Err(HubError::Timeout { value }),
            },
        };
        let from_file =
            |path: PathBuf| files::read_to_string(&path).ok().map(|token| token.trim().to_owned());
        let token = variable("HF_TOKEN")
            .or_else(|| folder("HF_TOKEN_PATH").and_then(from_file))
            .or_else(|| from_file(home.join("token")))
            .filter(|token| !token.is_empty() && variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_none());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            token,
            offline,
            stall: Duration::from_secs(stall),
        })
    }
}

/// Returns the value of an environment variable, or `None` if the variable is unset or empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn folder(name: &str) -> Option<PathBuf> {
    variable(name).map(|value| expanded(&value))
}

/// Replaces `~` and variables in a path: no shell expands the values in, for instance, a container's environment file.
fn expanded(path: &str) -> PathBuf {
    let home = || env::home_dir().and_then(|home| home.into_os_string().into_string().ok());
    let known = |name: &str| env::var(name).ok();
    PathBuf::from(shellexpand::full_with_context_no_errors(path, home, known).as_ref())
}

/// Returns an address without user name, password, query and fragment, for messages. A query may contain a signature.
pub(super) fn public(address: &str) -> String {
    let address = address.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_addresses_contain_no_password_and_no_signature() {
        for (address, printed) in [
            ("https://huggingface.co", "https://huggingface.co"),
            ("http://me:p@ss@mirror:81/hf", "http://mirror:81/hf"),
            ("https://cdn/blob?X-Signature=abc#part", "https://cdn/blob"),
            ("https://mirror/a@b/c", "https://mirror/a@b/c"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(public(address), printed);
        }
    }
}
