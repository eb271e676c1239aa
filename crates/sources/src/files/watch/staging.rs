//! Staging: files that are put into a folder of the warehouse land in the tables they are meant for.

use std::sync::Arc;

use lakegate_model::{StreamName, TenantId};
use lakegate_places::Location;
use uuid::Uuid;

use crate::files::job::{Counts, Job, JobKind};
use crate::files::journal::{Asked, Journal};
use crate::files::request::{After, Asker, ImportRequest, name_of};

/// The id of this watch, the same in each process.
pub(super) const ID: Uuid = Uuid::from_u128(1);

/// How staging is set up.
#[derive(Debug, Clone)]
pub struct StagingOptions {
    /// The folder or prefix.
    pub place: String,
    /// Whose tables take the rows.
    pub tenant: TenantId,
    /// The declared streams: a file whose name begins with one is meant for it.
    pub streams: Vec<StreamName>,
    /// The stream of files that are meant for none of these.
    pub stream: StreamName,
    /// What becomes of the files.
    pub after: After,
}

/// Finds the streams of staged files.
#[derive(Debug)]
pub(crate) struct Staging {
    place: Option<Location>,
    streams: Vec<StreamName>,
    otherwise: StreamName,
}

impl StagingOptions {
    fn request(&self) -> ImportRequest {
        ImportRequest { path: Some(self.place.clone()), recursive: true, after: self.after, ..ImportRequest::default() }
    }

    pub(super) fn asked(&self, created_us: i64) -> Asked {
        let tenant = self.tenant.as_str().to_owned();
        Asked { kind: JobKind::Watch, tenant, shown: None, request: self.request(), created_us, upload: None }
    }

    pub(super) fn job(&self, journal: Journal, before: Counts, created_us: i64) -> Job {
        let asker = Asker::nobody(self.tenant.clone());
        let staging = Staging {
            place: Location::parse(&self.place).ok(),
            streams: self.streams.clone(),
            otherwise: self.stream.clone(),
        };
        let job = Job::new(ID, JobKind::Watch, asker, self.request(), created_us, before, journal);
        job.staged(Some(Arc::new(staging)))
    }
}

impl Staging {
    /// The stream of a staged file: `staging/orders/x.csv` is for `orders`; so is `staging/orders_2024.csv` where
    /// `orders` is declared; any other is for the stream that the configuration names.
    pub(crate) fn stream_of(&self, file: &Location) -> StreamName {
        if let Some(folder) = self.first_folder(file) {
            return name_of(&folder);
        }
        let name = file.file_name().unwrap_or_default().to_ascii_lowercase();
        let fits = |stream: &&StreamName| {
            let rest = name.strip_prefix(stream.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_', '-']))
        };
        let longest = self.streams.iter().filter(fits).max_by_key(|stream| stream.as_str().len());
        longest.unwrap_or(&self.otherwise).clone()
    }

    /// The folder of the staging place that the file lies in, however deep.
    fn first_folder(&self, file: &Location) -> Option<String> {
        match (self.place.as_ref()?, file) {
            (Location::S3 { key: base, .. }, Location::S3 { key, .. }) => {
                let rest = key.strip_prefix(base.trim_end_matches('/'))?.trim_start_matches('/');
                rest.split_once('/').map(|(folder, _)| folder.to_owned())
            }
            (Location::Local(base), Location::Local(path)) => {
                let base = std::fs::canonicalize(base).unwrap_or_else(|_| base.clone());
                let rest = path.strip_prefix(base).ok()?;
                let mut parts = rest.components();
                let first = parts.next()?;
                parts.next().map(|_| first.as_os_str().to_string_lossy().into_owned())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staged_file_is_for_the_stream_of_its_folder_or_name() {
        let name = |text: &str| StreamName::new(text).unwrap();
        let staging = Staging {
            place: Location::parse("s3://warehouse/staging/").ok(),
            streams: vec![name("pgr"), name("pgr_events"), name("orders")],
            otherwise: name("service_events_raw"),
        };
        for (file, stream) in [
            ("orders/2024/x.csv", "orders"),
            ("API Error/x.csv", "api_error"),
            ("pgr_events_20241201.csv", "pgr_events"),
            ("pgr.csv", "pgr"),
            ("orders2.csv", "service_events_raw"),
            ("x.parquet", "service_events_raw"),
        ] {
            let location = Location::parse(&format!("s3://warehouse/staging/{file}")).unwrap();
            assert_eq!(staging.stream_of(&location).as_str(), stream, "{file}");
        }
    }
}
