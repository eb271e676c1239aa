//! What a reader of another log gives, and what it is told.

use std::ops::Range;

use lakegate_model::{StreamName, TenantId};

use crate::api::Source;

/// Where records of another log are to go.
#[derive(Debug, Clone)]
pub struct UpstreamTarget {
    /// Whose records they become.
    pub tenant: TenantId,
    /// Of which stream.
    pub stream: StreamName,
    /// By which way they come.
    pub source: Source,
    /// What tells this way from others of the process.
    pub name: String,
    /// The payloads' content type; empty: JSON.
    pub content_type: String,
}

/// How far a table has absorbed a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamPosition {
    /// How many of its records were read.
    pub records: u64,
    /// The position in the reader's own words; at most 64 bytes.
    pub state: Vec<u8>,
}

/// Records of one partition, in order.
#[derive(Debug)]
pub struct UpstreamRecords<'a> {
    /// The partition's identity, the same for ever and in all processes.
    pub partition: u128,
    /// What the table's property is called that says, for people, how far the partition is absorbed.
    pub label_name: &'a str,
    /// What it says after these records.
    pub label: String,
    /// Where they come from, for people.
    pub place: &'a str,
    /// What is known of all of them, for a column of attributes.
    pub attributes: &'a [(&'a str, &'a str)],
    /// The bytes that the records lie in.
    pub body: &'a [u8],
    /// The records.
    pub records: &'a [UpstreamRecord],
    /// The position after them; at most 64 bytes.
    pub next: Vec<u8>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamRecord {
    /// Its number in the partition.
    pub offset: u64,
    /// Where it lies as it came.
    pub raw: Range<u32>,
    /// When it was written, in microseconds since 1970, where its log says so.
    pub time_us: Option<i64>,
    /// What is to be read.
    pub payload: UpstreamPayload,
}

/// A record's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamPayload {
    /// The record as it came.
    Raw,
    /// What was made of it.
    Decoded(Range<u32>),
    /// It cannot be decoded, and why.
    Refused(String),
}

/// What became of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UpstreamTaken {
    /// Rows that go into the table.
    pub accepted: u64,
    /// Records that were set aside.
    pub dead_lettered: u64,
}

/// A commit that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamCommit {
    /// How many rows it added.
    pub rows: u64,
    /// The partitions whose position it moved, and to where.
    pub positions: Vec<(u128, Vec<u8>)>,
    /// The table's snapshot.
    pub snapshot_id: i64,
}

/// Why records could not be taken or committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// The stream cannot take such records; someone has to change the configuration.
    #[error("{0}")]
    Stream(String),
    /// There is no room at the moment.
    #[error("{0}")]
    OutOfRoom(String),
    /// Another process has committed one of the partitions further: begin anew from the table's positions.
    #[error("another process has read a partition further: {0}")]
    TakenOver(String),
    /// The lake cannot be reached, or refused.
    #[error("{0}")]
    Lake(String),
    /// The table was replaced, or this process was fenced off: trying again cannot help.
    #[error("{0}")]
    Halted(String),
    /// The process is ending.
    #[error("{0}")]
    Closed(String),
}
