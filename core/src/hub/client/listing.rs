//! List of the files of a data set repository on the hub.

use std::ops::ControlFlow;

use hf_hub::repository::RepoTreeEntry;
use reqwest::{Url, header::LINK};

use crate::{
    error::HubError,
    hub::client::connection::{Body, Connection, Failure, header},
};

/// Largest size of one page of a list, in bytes.
const MAX_PAGE: usize = 16 << 20;
/// Largest size of a list, in bytes.
const MAX_LIST: usize = 64 << 20;
/// Largest number of pages of a list.
const MAX_PAGES: usize = 1000;

/// Lists the names of all files of a revision. `repository` is the path of the repository in the API,
/// `datasets/owner/name`.
///
/// # Errors
/// No connection, a transfer that stops, or a list that is too long or is not the hub's.
pub(super) async fn names(
    hub: &Connection,
    repository: &str,
    revision: &str,
) -> Result<Vec<String>, HubError> {
    let mut first = hub.url(["api"].into_iter().chain(repository.split('/')).chain(["tree", revision]));
    first.set_query(Some("recursive=true"));
    let mut next = Some(first);
    let (mut names, mut pages, mut bytes) = (Vec::new(), 0, 0);
    while let Some(url) = next {
        let (page, link) = hub.repeated(async || page(hub, &url).await).await?;
        (pages, bytes) = (pages + 1, bytes + page.len());
        if pages > MAX_PAGES || bytes > MAX_LIST {
            let problem = format!("the list of files has more than {MAX_PAGES} pages or {MAX_LIST} bytes");
            return Err(hub.not_a_hub(&url, &problem));
        }
        let entries: Vec<RepoTreeEntry> = serde_json::from_slice(&page).map_err(|error| {
            hub.not_a_hub(&url, &format!("the list of files is not valid JSON ({error})"))
        })?;
        names.extend(entries.into_iter().filter_map(|entry| match entry {
            RepoTreeEntry::File { path, .. } => Some(path),
            RepoTreeEntry::Directory { .. } => None,
        }));
        // A mirror may pass on links to the hub that it copies; only the endpoint itself receives the token.
        next = link.map(|link| hub.redirected(&url, Some(link))).transpose()?;
    }
    Ok(names)
}

/// Reads one page of a list. Also returns the link to the next page, if there is one.
async fn page(hub: &Connection, url: &Url) -> Result<(Vec<u8>, Option<String>), Failure> {
    let (url, response) = hub.follow(url, |_, _| Ok(ControlFlow::Continue(()))).await?;
    if !response.status().is_success() {
        return Err(hub.refusal(&url, response.status()));
    }
    let next = header(response.headers(), LINK.as_str()).and_then(|links| next_page(&links));
    let (mut page, mut body) = (Vec::new(), Body::new(hub, response));
    let stopped = |problem| Failure::Passing(hub.failed(&url, &format!("stopped: {problem}")));
    while let Some(piece) = body.next().await.map_err(stopped)? {
        page.extend_from_slice(&piece);
        if page.len() > MAX_PAGE {
            let problem = format!("a page of the list of files has more than {MAX_PAGE} bytes");
            return Err(hub.not_a_hub(&url, &problem).into());
        }
    }
    Ok((page, next))
}

/// Returns the address of the next page in the header `Link: <address>; rel="next"`.
fn next_page(links: &str) -> Option<String> {
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
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
