//! Reading a table in the order in which it grew, from a position of a log on: for consumers that were away so long that
//! the log has no more what they lack.
//!
//! A file is looked at by the commit that brought it. A record that lies at an offset was committed by the first commit
//! whose absorbed position is past it, or was rewritten since by a later one: so all files of that commit and of later
//! ones have it for sure, and some records beside it. Where that commit's snapshot is expired, more is read, never less.

use iceberg::spec::{DataFile, ManifestContentType};
use lakegate_model::LogId;

use crate::commit::LogKeys;
use crate::error::LakeError;
use crate::scan::BatchStream;
use crate::view::TableView;

/// A data file, in the order in which the table grew.
#[derive(Debug, Clone)]
pub struct GrownFile {
    /// The place of its commit among the table's commits.
    pub sequence_number: i64,
    /// Where it lies.
    pub location: String,
    file: DataFile,
    spec_id: i32,
}

impl TableView {
    /// The number of the last commit that has nothing of the log at `offset` or later; 0 where that cannot be told.
    #[must_use]
    pub fn commit_before(&self, log: LogId, offset: u64) -> i64 {
        let key = LogKeys::of(log, 0).wal;
        let positions = self
            .snapshots()
            .into_iter()
            .filter_map(|snapshot| Some((snapshot.sequence_number, snapshot.summary.get(&key)?.parse::<u64>().ok()?)));
        positions.filter(|(_, position)| *position <= offset).map(|(sequence, _)| sequence).max().unwrap_or(0)
    }

    /// The files of commits after the one of that number, the oldest commit first.
    ///
    /// # Errors
    /// A manifest cannot be read, or another engine deleted rows by files of their own, which only a whole scan applies.
    pub async fn files_after(&self, sequence_number: i64) -> Result<Vec<GrownFile>, LakeError> {
        let mut files = Vec::new();
        for manifest in self.manifests().await?.iter() {
            if manifest.content == ManifestContentType::Deletes {
                if manifest.has_added_files() || manifest.has_existing_files() {
                    let name = self.name();
                    return Err(LakeError::Invalid(format!(
                        "{name} has delete files of another engine, which reading in the order of commits does not apply; compact it"
                    )));
                }
                continue;
            }
            let content = self.manifest_cache.load(&self.warehouse, manifest).await?;
            for entry in content.entries().iter().filter(|entry| entry.is_alive()) {
                let grown = entry.sequence_number.unwrap_or(manifest.sequence_number);
                if grown > sequence_number {
                    let file = entry.data_file().clone();
                    let (location, spec_id) = (file.file_path().to_owned(), manifest.partition_spec_id);
                    files.push(GrownFile { sequence_number: grown, location, file, spec_id });
                }
            }
        }
        files.sort_by(|a, b| (a.sequence_number, &a.location).cmp(&(b.sequence_number, &b.location)));
        Ok(files)
    }

    /// The rows of one of its files.
    ///
    /// # Errors
    /// The file lies outside the warehouse, or there is no tokio runtime.
    pub fn read_grown(&self, file: &GrownFile) -> Result<BatchStream, LakeError> {
        self.read_file(&file.file, file.spec_id)
    }
}
