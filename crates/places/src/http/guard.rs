//! Decides whether an address may be asked, and which machine that is.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use url::{Host, Url};

use super::address::{Inside, inside};
use crate::error::PlaceError;
use crate::location::without_secrets;
use crate::settings::HostRule;
use crate::text::shown;

/// The ports that a host has while its rule names none.
const USUAL_PORTS: [u16; 2] = [80, 443];

/// Finds the addresses of a name.
pub trait Resolver: Send + Sync + 'static {
    /// All addresses of `host`, each with `port`.
    fn resolve(&self, host: &str, port: u16) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;
}

/// The resolver of the system.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }
}

/// A machine that may be asked: the name, and the addresses that were checked.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub(super) host: String,
    pub(super) addresses: Vec<SocketAddr>,
}

/// Checks an address against the rules, resolves its name once, and checks each address that the name has.
pub(super) async fn check(url: &Url, rules: &[HostRule], resolver: &dyn Resolver) -> Result<Checked, PlaceError> {
    let place = shown(&without_secrets(url));
    let invalid = |reason: &str| PlaceError::Invalid { place: place.clone(), reason: reason.into() };
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid("only http and https are read"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(
            "it holds a user or password, which would be logged; serve the file without, or by a signed address",
        ));
    }
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err(invalid("it names no host"));
    };
    let name = host.to_string();
    let named: Vec<&HostRule> = rules.iter().filter(|rule| rule.names(&name)).collect();
    if named.is_empty() {
        return Err(forbidden(
            place,
            format!("{} is not among the hosts that may be asked", shown(&name)),
            "add the host to imports.hosts",
        ));
    }
    let has_port = |rule: &&&HostRule| {
        if rule.ports.is_empty() { USUAL_PORTS.contains(&port) } else { rule.ports.contains(&port) }
    };
    let Some(rule) = named.iter().find(has_port) else {
        return Err(forbidden(
            place,
            format!("port {port} of {} may not be asked", shown(&name)),
            "add \"host:port\" to imports.hosts",
        ));
    };
    let addresses = match host {
        Host::Ipv4(ip) => vec![SocketAddr::new(IpAddr::V4(ip), port)],
        Host::Ipv6(ip) => vec![SocketAddr::new(IpAddr::V6(ip), port)],
        Host::Domain(domain) => {
            resolver.resolve(domain.trim_end_matches('.'), port).await.map_err(|e| PlaceError::Unavailable {
                place: place.clone(),
                reason: format!("the name {} has no address: {e}", shown(domain)),
                attempts: 1,
            })?
        }
    };
    if addresses.is_empty() {
        return Err(PlaceError::Unavailable { place, reason: "its name has no address".into(), attempts: 1 });
    }
    for address in &addresses {
        check_address(address.ip(), &name, rule, &place)?;
    }
    Ok(Checked { host: name, addresses })
}

/// Checks whether a server may be asked, and gives the addresses that its name has: each of them was checked, and they
/// are the ones to dial.
///
/// # Errors
/// No rule names the host and port, one of its addresses is of the inside, or it has none.
pub async fn check_destination(url: &Url, rules: &[HostRule]) -> Result<Vec<SocketAddr>, PlaceError> {
    Ok(check(url, rules, &SystemResolver).await?.addresses)
}

fn check_address(ip: IpAddr, name: &str, rule: &HostRule, place: &str) -> Result<(), PlaceError> {
    let name = shown(name);
    match inside(ip) {
        None => Ok(()),
        Some(Inside::Private(_)) if rule.allow_private => Ok(()),
        Some(Inside::Private(what)) => Err(forbidden(
            place.to_owned(),
            format!("{name} leads to {what}"),
            &format!("write {{\"host\": \"{name}\", \"allow_private\": true}} in imports.hosts if that is meant"),
        )),
        Some(Inside::Never(what)) => {
            Err(forbidden(place.to_owned(), format!("{name} leads to {what}"), "such addresses are never asked"))
        }
    }
}

fn forbidden(place: String, reason: String, remedy: &str) -> PlaceError {
    PlaceError::Forbidden { place, reason, remedy: remedy.to_owned(), setting: "imports.hosts" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives each of these answers once, then the last one again and again.
    struct Scripted(parking_lot::Mutex<Vec<Vec<&'static str>>>);

    impl Resolver for Scripted {
        fn resolve(&self, _: &str, port: u16) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> {
            let mut answers = self.0.lock();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            let found = answer.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port)).collect();
            Box::pin(async move { Ok(found) })
        }
    }

    async fn ask(url: &str, rules: &[&str], answers: Vec<&'static str>) -> Result<Checked, PlaceError> {
        let rules: Vec<HostRule> = rules.iter().map(|rule| HostRule::parse(rule).unwrap()).collect();
        check(&Url::parse(url).unwrap(), &rules, &Scripted(parking_lot::Mutex::new(vec![answers]))).await
    }

    #[tokio::test]
    async fn s13_addresses_of_the_inside_are_refused_also_for_hosts_that_are_allowed() {
        let rules = [
            "127.0.0.1",
            "0.0.0.0",
            "[::1]",
            "[::ffff:169.254.169.254]",
            "169.254.169.254",
            "100.64.0.1",
            "[fe80::1]",
            "[fc00::1]",
            "localhost",
            "169.254.0.1",
        ];
        for url in [
            "http://127.0.0.1/",
            "http://0.0.0.0/",
            "http://[::1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://169.254.169.254/latest/meta-data",
            "http://100.64.0.1/",
            "http://[fe80::1]/",
            "http://[fc00::1]/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://0x7f.1/",
            "http://0x7f000001/",
            "http://127.1/",
            "http://localhost/",
            "http://localhost./",
            "http://LOCALHOST/",
        ] {
            let refused = ask(url, &rules, vec!["127.0.0.1"]).await.unwrap_err();
            assert!(matches!(refused, PlaceError::Forbidden { setting: "imports.hosts", .. }), "{url}: {refused}");
        }
    }

    #[tokio::test]
    async fn s13_user_parts_other_ports_and_unknown_hosts_are_refused() {
        let rules = ["data.example.com", "127.0.0.1"];
        for url in ["http://data.example.com@127.0.0.1/", "http://u:p@data.example.com/"] {
            assert!(matches!(ask(url, &rules, vec!["8.8.8.8"]).await, Err(PlaceError::Invalid { .. })), "{url}");
        }
        for url in [
            "http://data.example.com:22/",
            "http://data.example.com:25/",
            "http://data.example.com:6379/",
            "http://other.example.com/",
            "http://data.example.com.evil.net/",
        ] {
            assert!(matches!(ask(url, &rules, vec!["8.8.8.8"]).await, Err(PlaceError::Forbidden { .. })), "{url}");
        }
        ask("https://data.example.com/x", &rules, vec!["8.8.8.8"]).await.unwrap();
    }

    #[tokio::test]
    async fn s14_a_name_with_one_address_of_the_inside_is_refused_and_the_checked_ones_are_kept() {
        let refused = ask("http://two.example.com/", &["two.example.com"], vec!["8.8.8.8", "127.0.0.1"]).await;
        assert!(matches!(refused, Err(PlaceError::Forbidden { .. })));
        let checked = ask("http://two.example.com/", &["two.example.com"], vec!["8.8.8.8", "1.1.1.1"]).await.unwrap();
        assert_eq!(checked.addresses, ["8.8.8.8:80".parse().unwrap(), "1.1.1.1:80".parse().unwrap()]);
    }

    #[tokio::test]
    async fn s13_a_private_host_is_asked_where_its_rule_says_so_but_never_a_link_local_one() {
        let rule = |host: &str| HostRule { allow_private: true, ..HostRule::parse(host).unwrap() };
        let ask = async |url: &str, answer| {
            let rules = [rule("files.local:8080"), rule("169.254.169.254")];
            check(&Url::parse(url).unwrap(), &rules, &Scripted(parking_lot::Mutex::new(vec![vec![answer]]))).await
        };
        ask("http://files.local:8080/x", "10.0.0.7").await.unwrap();
        assert!(ask("http://files.local:8080/x", "169.254.169.254").await.is_err());
        assert!(ask("http://169.254.169.254/x", "8.8.8.8").await.is_err());
    }
}
