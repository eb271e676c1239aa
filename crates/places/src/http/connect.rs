//! Reaches a server: each hop checked, its addresses pinned.

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use url::Url;

use super::guard::{self, Checked, Resolver};
use crate::error::PlaceError;
use crate::location::without_secrets;
use crate::remote::{Endpoint, Failure, Shared, Tag, first_bytes};
use crate::settings::HostRule;
use crate::text::shown;

/// How often a server may send us elsewhere.
const HOPS_MAX: usize = 5;

/// Knows the checked addresses and no others, whatever it is asked: the name is not resolved a second time.
struct Pinned(Vec<SocketAddr>);

impl Resolve for Pinned {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses: Addrs = Box::new(self.0.clone().into_iter());
        Box::pin(async move { Ok(addresses) })
    }
}

/// Finds the server that has the file, following redirects, and asks it for the first bytes.
pub(crate) async fn connect(
    url: &Url,
    rules: &[HostRule],
    resolver: &dyn Resolver,
    shared: &Arc<Shared>,
) -> Result<(Endpoint, reqwest::Response), Failure> {
    let mut url = url.clone();
    url.set_fragment(None);
    for _ in 0..=HOPS_MAX {
        let checked = guard::check(&url, rules, resolver).await?;
        let endpoint = Endpoint::new(client(&checked, shared)?, url.clone(), shared.clone(), None);
        let response = first_bytes(&endpoint, &Tag::default()).await?;
        if !response.status().is_redirection() {
            return Ok((endpoint, response));
        }
        url = next_hop(&url, &response)?;
    }
    Err(Failure::Final(PlaceError::Denied {
        place: shown(&without_secrets(&url)),
        reason: format!("it was reached after more than {HOPS_MAX} redirects"),
    }))
}

/// Whether an address may be asked.
pub(crate) async fn check(url: &Url, rules: &[HostRule], resolver: &dyn Resolver) -> Result<(), PlaceError> {
    guard::check(url, rules, resolver).await.map(|_| ())
}

fn client(checked: &Checked, shared: &Shared) -> Result<reqwest::Client, Failure> {
    let builder = base_client(shared).dns_resolver(Arc::new(Pinned(checked.addresses.clone())));
    builder
        .build()
        .map_err(|e| Failure::Final(PlaceError::Invalid { place: shown(&checked.host), reason: e.to_string() }))
}

/// What all our clients have in common: no proxy (it would resolve names itself), no redirects on its own, one
/// request a connection at a time (so that several ranges don't share one window).
pub(crate) fn base_client(shared: &Shared) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .referer(false)
        .http1_only()
        .connect_timeout(shared.limits.connect_timeout)
        .pool_max_idle_per_host(shared.limits.in_flight * 2)
        .user_agent(concat!("lakegate/", env!("CARGO_PKG_VERSION")))
}

fn next_hop(from: &Url, response: &reqwest::Response) -> Result<Url, PlaceError> {
    let place = || shown(&without_secrets(from));
    let location = response.headers().get(http::header::LOCATION).and_then(|v| v.to_str().ok());
    let Some(location) = location else {
        let reason = format!("it answered {} and did not say where to", response.status());
        return Err(PlaceError::Denied { place: place(), reason });
    };
    let next = from.join(location).map_err(|e| PlaceError::Denied {
        place: place(),
        reason: format!("it redirects to something that is not an address ({e})"),
    })?;
    if from.scheme() == "https" && next.scheme() == "http" {
        let reason = "it redirects from https to http, where anyone on the way could change the file".into();
        return Err(PlaceError::Denied { place: place(), reason });
    }
    Ok(next)
}
