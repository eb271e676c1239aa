//! Opens imports: the places that the configuration allows, and the jobs that earlier processes left.

use std::path::PathBuf;
use std::sync::Arc;

use lakegate_access::Access;
use lakegate_env::{Clock, SystemRandom};
use lakegate_ingest::Gate;
use lakegate_model::{StreamName, TenantId};
use lakegate_places::{PlaceLimits, Places, PlacesSettings, S3Settings, SystemResolver};
use lakegate_sources::files::{Imports, ImportsOptions, StagingOptions};
use tokio::runtime::Handle;

use super::{ServeError, folder};
use crate::config::Config;

/// Which places, besides those of the configuration, and whether watches and jobs of earlier processes go on.
#[derive(Debug, Default)]
pub(crate) struct Also {
    /// Folders that may be read too: those that the owner of the data folder names on the command line.
    pub(crate) roots: Vec<PathBuf>,
    /// Only what is asked for runs.
    pub(crate) alone: bool,
}

/// Opens them; `access` tells whether the keys that they were begun with still hold.
pub(crate) fn open(
    config: &Config,
    gate: &Gate,
    access: &Access,
    clock: Arc<dyn Clock>,
    also: Also,
) -> Result<Imports, ServeError> {
    let data_dir = config.data_dir();
    let mut dir = data_dir.join("imports");
    if also.alone {
        // Nothing of a command goes on after it: what it left unfinished, the next one finds in the tables.
        dir = dir.join("alone");
        let _ = std::fs::remove_dir_all(&dir);
    }
    let spool_dir = dir.join("spool");
    for dir in [&dir, &spool_dir] {
        folder::make(dir)?;
    }
    let failed = |source| ServeError::Folder { dir: dir.clone(), source };
    let staging = staging(config).filter(|_| !also.alone);
    let settings = places(config, &also, spool_dir.clone(), staging.as_ref());
    let random = Arc::new(SystemRandom);
    let places = Places::new(settings, Handle::current(), Arc::new(SystemResolver), clock.clone(), random.clone());
    let imports = &config.settings.imports;
    Imports::open(ImportsOptions {
        places: Arc::new(places),
        gate: gate.clone(),
        handle: Handle::current(),
        dir: dir.clone(),
        spool_dir,
        clock,
        random,
        parallel_files: usize::try_from(imports.parallel_files).unwrap_or(1),
        settle: imports.watch.settle.get(),
        poll: imports.watch.poll.get(),
        staging,
        access: access.clone(),
    })
    .map_err(failed)
}

/// The folder of the warehouse whose files land in their tables.
fn staging_place(config: &Config) -> String {
    let warehouse = config.settings.storage.warehouse.trim_end_matches('/');
    match warehouse.strip_prefix("file://") {
        Some(path) => format!("{path}/staging"),
        None if warehouse.contains("://") => format!("{warehouse}/staging/"),
        None => {
            let whole = std::path::absolute(warehouse).unwrap_or_else(|_| PathBuf::from(warehouse));
            format!("{}/staging", whole.display())
        }
    }
}

fn staging(config: &Config) -> Option<StagingOptions> {
    let settings = &config.settings.imports.staging;
    let (tenant, stream) = (TenantId::new("default").ok()?, StreamName::new(&settings.stream).ok()?);
    settings.enabled.then(|| StagingOptions {
        place: staging_place(config),
        tenant,
        streams: config.streams.iter().map(|(name, _)| name.clone()).collect(),
        stream,
        after: settings.after,
    })
}

fn places(config: &Config, also: &Also, spool_dir: PathBuf, staging: Option<&StagingOptions>) -> PlacesSettings {
    let settings = &config.settings;
    let imports = &settings.imports;
    let (s3, limits) = (&settings.storage.s3, &imports.limits);
    let mut roots: Vec<PathBuf> = imports.roots.iter().map(PathBuf::from).collect();
    roots.extend(also.roots.iter().cloned());
    let mut buckets = imports.bucket_rules();
    let mut let_in = Vec::new();
    if let Some(staging) = staging {
        match lakegate_places::BucketRule::parse(&staging.place) {
            Ok(rule) if staging.place.starts_with("s3://") => buckets.push(rule),
            _ => {
                let dir = PathBuf::from(&staging.place);
                // Made, so that it can be found, and be told of.
                let _ = std::fs::create_dir_all(&dir);
                roots.push(dir.clone());
                let_in.push(dir);
            }
        }
    }
    let warehouse = settings.storage.warehouse.strip_prefix("file://").unwrap_or(&settings.storage.warehouse);
    PlacesSettings {
        roots,
        kept_out: vec![config.data_dir(), config.wal_dir(), PathBuf::from(warehouse)],
        let_in,
        hosts: imports.host_rules(),
        buckets,
        s3: S3Settings {
            endpoint: s3.endpoint.clone(),
            region: s3.region.clone(),
            access_key: s3.access_key.reveal().to_owned(),
            secret_key: s3.secret_key.reveal().to_owned(),
            path_style: s3.path_style,
        },
        limits: PlaceLimits {
            file_bytes_max: limits.file_bytes_max.bytes(),
            files_max: usize::try_from(limits.files_max).unwrap_or(usize::MAX),
            connect_timeout: limits.connect_timeout.get(),
            answer_timeout: limits.answer_timeout.get(),
            bytes_per_second_min: limits.bytes_per_second_min.bytes(),
            attempts: limits.attempts,
            in_flight: usize::try_from(limits.requests_in_flight).unwrap_or(1),
            ..PlaceLimits::default()
        },
        spool_dir,
    }
}
