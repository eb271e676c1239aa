//! What no single setting shows: settings that do not go together, and those that this version does not have.

use std::net::IpAddr;

use super::auth::AuthMode;
use super::network::Network;
use super::problem::Problem;
use super::settings::Settings;
use super::units::{Period, Size};

/// Finds every reason why these settings cannot be used.
pub(crate) fn check(settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    check_listeners(settings, &mut problems);
    super::auth::check(settings, &mut problems);
    check_sizes(settings, &mut problems);
    check_periods(settings, &mut problems);
    check_storage(settings, &mut problems);
    super::imports::check(&settings.imports, &mut problems);
    super::kafka::check(&settings.kafka, &mut problems);
    super::kafka_log::check(settings, &mut problems);
    super::consumer_of::check(&settings.sinks, &settings.routes, &mut problems);
    settings.limits.downstream.check(&mut problems);
    check_browsers(settings, &mut problems);
    for (name, stream) in &settings.streams {
        problems.extend(stream.check(name));
    }
    problems
}

/// What should be said at start although it stops nothing.
pub(crate) fn warnings(settings: &Settings) -> Vec<String> {
    let mut warnings = Vec::new();
    if !settings.storage.wal_enabled {
        warnings.push(
            "storage.wal_enabled is false: records are acknowledged before they are on disk; whatever is not yet \
             committed to a table is LOST when this process ends unexpectedly"
                .to_owned(),
        );
    }
    if settings.auth.mode == AuthMode::None
        && settings.auth.allow_anonymous_remote
        && !is_loopback(&settings.ingestion.bind)
    {
        warnings.push(format!(
            "authentication is off and the listeners bind to {}: everyone who reaches this address may read and write everything",
            settings.ingestion.bind
        ));
    }
    if settings.auth.mode == AuthMode::Required
        && settings.tls.certificate.is_empty()
        && !is_loopback(&settings.ingestion.bind)
    {
        warnings.push(format!(
            "the listeners bind to {} without TLS (tls.certificate): credentials and records go over the network in plain text",
            settings.ingestion.bind
        ));
    }
    let unused = !settings.auth.api_keys.is_empty() || settings.auth.jwt.is_set() || !settings.auth.mtls.is_empty();
    if settings.auth.mode == AuthMode::None && unused {
        warnings.push("auth names keys, but auth.mode is none: credentials are not looked at".to_owned());
    }
    warnings
}

/// Whether an address is reached from this machine alone.
pub(crate) fn is_loopback(bind: &str) -> bool {
    bind.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) || bind == "localhost"
}

fn check_listeners(settings: &Settings, problems: &mut Vec<Problem>) {
    let ingestion = &settings.ingestion;
    if ingestion.bind != "localhost" && ingestion.bind.parse::<IpAddr>().is_err() {
        let message = format!("{:?} is not an IP address; write \"127.0.0.1\", \"::1\" or \"0.0.0.0\"", ingestion.bind);
        problems.push(Problem::new("ingestion.bind", message));
    } else if settings.auth.mode == AuthMode::None
        && !settings.auth.allow_anonymous_remote
        && !is_loopback(&ingestion.bind)
    {
        let message = format!(
            "{:?} is reached by other machines while authentication is off; bind to 127.0.0.1, or set \
             auth.allow_anonymous_remote to true if everyone who reaches it may read and write everything",
            ingestion.bind
        );
        problems.push(Problem::new("ingestion.bind", message));
    }
    if ingestion.port != 0 && ingestion.port == ingestion.http_port {
        let message = format!("is {} like ingestion.port; the two listeners need different ports", ingestion.http_port);
        problems.push(Problem::new("ingestion.http_port", message));
    }
    if settings.node.id.is_empty() || settings.node.id.len() > 128 || settings.node.id.chars().any(char::is_control) {
        problems.push(Problem::new("node.id", "needs 1 to 128 printable characters"));
    }
    if settings.node.data_dir.is_empty() {
        problems.push(Problem::new("node.data_dir", "is empty; write a folder, such as \"./data\""));
    }
}

fn check_browsers(settings: &Settings, problems: &mut Vec<Problem>) {
    let http = &settings.limits.http;
    for (i, origin) in http.origins.iter().enumerate() {
        let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        if authority.is_none_or(|authority| authority.is_empty() || authority.contains(['/', '*', ' '])) {
            let message = format!("{origin:?} is not an origin; write \"https://shop.example\", without a path");
            problems.push(Problem::new(format!("limits.http.origins[{i}]"), message));
        }
    }
    for (i, proxy) in http.trusted_proxies.iter().enumerate() {
        if Network::parse(proxy).is_none() {
            let message = format!("{proxy:?} is not an address or network; write \"10.0.0.7\" or \"10.0.0.0/8\"");
            problems.push(Problem::new(format!("limits.http.trusted_proxies[{i}]"), message));
        }
    }
}

fn check_sizes(settings: &Settings, problems: &mut Vec<Problem>) {
    let ingestion = &settings.ingestion;
    let wal = &settings.storage.wal;
    let kib = Size::mib(1).bytes() / 1024;
    let mut at_least = |path: &str, found: Size, least: u64, why: &str| {
        if found.bytes() < least {
            problems.push(Problem::new(path, format!("found {found}, expected at least {least} bytes{why}")));
        }
    };
    at_least("ingestion.commit_bytes", ingestion.commit_bytes, 64 * kib, "");
    at_least("ingestion.message_bytes_max", ingestion.message_bytes_max, kib, "");
    at_least("ingestion.payload_bytes_max", ingestion.payload_bytes_max, 1, "");
    at_least(
        "ingestion.memory_budget",
        ingestion.memory_budget,
        4 * ingestion.message_bytes_max.bytes(),
        ": four times ingestion.message_bytes_max",
    );
    at_least("storage.wal.segment_bytes", wal.segment_bytes, 64 * kib, "");
    at_least(
        "storage.wal.quota",
        wal.quota,
        2 * wal.segment_bytes.bytes(),
        ": two segments of storage.wal.segment_bytes",
    );
    at_least("storage.target_file_bytes", settings.storage.target_file_bytes, 64 * kib, "");
    at_least("maintenance.compact_bytes", settings.maintenance.compact_bytes, Size::mib(1).bytes(), "");
    at_least("limits.sql.memory", settings.limits.sql.memory, Size::mib(1).bytes(), "");
    at_least("limits.sql.result_bytes_max", settings.limits.sql.result_bytes_max, kib, "");
    at_least("limits.http.body_bytes_max", settings.limits.http.body_bytes_max, kib, "");
    if ingestion.message_bytes_max.bytes() > u64::from(u32::MAX) / 2 {
        let message = format!(
            "found {}, expected at most 2GiB, the most that one request can frame",
            ingestion.message_bytes_max
        );
        problems.push(Problem::new("ingestion.message_bytes_max", message));
    }
    if ingestion.batch_size > ingestion.batch_size_max {
        let message = format!(
            "found {}, more than ingestion.batch_size_max ({})",
            ingestion.batch_size, ingestion.batch_size_max
        );
        problems.push(Problem::new("ingestion.batch_size", message));
    }
}

fn check_periods(settings: &Settings, problems: &mut Vec<Problem>) {
    let periods = [
        ("ingestion.flush_interval", settings.ingestion.flush_interval),
        ("limits.sql.timeout", settings.limits.sql.timeout),
        ("limits.http.header_timeout", settings.limits.http.header_timeout),
        ("limits.http.request_timeout", settings.limits.http.request_timeout),
    ];
    let least = Period::from_millis(10);
    for (path, found) in periods {
        if found < least {
            problems.push(Problem::new(path, format!("found {found}, expected at least {least}")));
        }
    }
}

fn check_storage(settings: &Settings, problems: &mut Vec<Problem>) {
    check_warehouse(settings, problems);
    let database = settings.catalog.database.reveal();
    if !["sqlite:", "postgres://", "postgresql://"].iter().any(|scheme| database.starts_with(scheme)) {
        let scheme = database.split_once(':').map_or("a database of no scheme", |(scheme, _)| scheme);
        let message = format!(
            "{scheme} is not supported; write \"sqlite://./data/catalog.db\" or \"postgres://user:password@host:5432/database\""
        );
        problems.push(Problem::new("catalog.database", message));
    }
    if settings.telemetry.otlp_endpoint.starts_with("https://") {
        let message = "a collector behind TLS is not in this version; write \"http://host:4317\", or run a collector beside the server";
        problems.push(Problem::new("telemetry.otlp_endpoint", message));
    }
    for (path, uri) in
        [("catalog.uri", &settings.catalog.uri), ("telemetry.otlp_endpoint", &settings.telemetry.otlp_endpoint)]
    {
        let Some(problem) = uri_problem(uri) else { continue };
        problems.push(Problem::new(path, problem));
    }
}

fn check_warehouse(settings: &Settings, problems: &mut Vec<Problem>) {
    let (warehouse, s3) = (settings.storage.warehouse.as_str(), &settings.storage.s3);
    match warehouse.split_once("://") {
        _ if warehouse.is_empty() => {
            let message = "is empty; write a folder, such as \"./data/warehouse\", or \"s3://bucket/prefix\"";
            problems.push(Problem::new("storage.warehouse", message));
        }
        Some(("s3", rest)) => {
            let bucket = rest.split('/').next().unwrap_or_default();
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
            if bucket.len() < 3 || bucket.len() > 63 || !bucket.chars().all(plain) {
                let message = format!("{bucket:?} is not a bucket's name; write \"s3://bucket/prefix\"");
                problems.push(Problem::new("storage.warehouse", message));
            }
            let odd = rest.split('/').any(|part| matches!(part, "." | "..")) || rest.contains(['?', '#', '%']);
            if odd || rest.trim_end_matches('/').contains("//") {
                let message =
                    "has '.', '..', '?', '#', '%' or an empty part in its prefix; write \"s3://bucket/prefix\"";
                problems.push(Problem::new("storage.warehouse", message));
            }
        }
        Some((scheme, _)) if scheme != "file" => {
            let message = format!(
                "a warehouse on {scheme}:// is not supported; write a local folder, such as \"./data/warehouse\", or \"s3://bucket/prefix\""
            );
            problems.push(Problem::new("storage.warehouse", message));
        }
        _ => {}
    }
    if let Some(problem) = uri_problem(&s3.endpoint) {
        problems.push(Problem::new("storage.s3.endpoint", problem));
    }
    let pairs = [
        ("storage.s3.secret_key", &s3.access_key, &s3.secret_key),
        ("storage.s3.engine_secret_key", &s3.engine_access_key, &s3.engine_secret_key),
    ];
    for (path, access, secret) in pairs {
        if access.is_empty() != secret.is_empty() {
            problems.push(Problem::new(path, "an access key and its secret key are set together or not at all"));
        }
    }
}

/// What is wrong with an address of a service. Never repeats the address, which may hold a password.
fn uri_problem(uri: &str) -> Option<&'static str> {
    if uri.is_empty() {
        return None;
    }
    let Some(rest) = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://")) else {
        return Some("is not an address; write \"http://host:port\" or \"https://host\"");
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Some("has a user or password in the address, where it would be logged; use the setting for the token");
    }
    authority.is_empty().then_some("has no host; write \"http://host:port\"")
}
