//! The event keys of a commit of imported rows, durable before the commit and worth something only with it.
//!
//! ```text
//! keys/<commit id>-<file id>.claim
//! 4 bytes "LKC1"   u32 length and CRC-32C of the head   head (JSON: stream, table, commit, time)
//! u32 CRC-32C of the keys   then the keys, u128 each
//! ```
//! Little-endian. The file is written and synced before the commit is tried, and removed once its keys are kept with all
//! others ([`crate::keys`]). After a crash the table says whether the commit stands: then the keys are kept, else they
//! are forgotten with the rows. A file that is torn belongs to a commit that was not tried.

use std::io;
use std::path::{Path, PathBuf};

use lakegate_env::Disk;
use lakegate_lake::Lake;
use lakegate_model::{StreamKey, TableName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::duplicates::stream_hash;
use crate::gate::GateOpenError;
use crate::keys::{BlockFiles, KeyEntry};

const MAGIC: &[u8; 4] = b"LKC1";
const KEY_BYTES: usize = 16;

/// Whose keys, of which commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClaimHead {
    pub(crate) stream: StreamKey,
    pub(crate) table: TableName,
    pub(crate) file: u128,
    pub(crate) commit_id: Uuid,
    pub(crate) received_us: i64,
}

/// Files may share a commit: each has its own keys.
fn path_of(dir: &Path, commit_id: Uuid, file: u128) -> PathBuf {
    dir.join(format!("{}-{file:032x}.claim", commit_id.simple()))
}

/// Writes the keys of a commit that is about to be tried.
pub(crate) fn write(disk: &dyn Disk, dir: &Path, head: &ClaimHead, keys: &[u128]) -> io::Result<()> {
    let json = serde_json::to_vec(head).map_err(io::Error::other)?;
    let length = u32::try_from(json.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut body = Vec::with_capacity(keys.len() * KEY_BYTES);
    keys.iter().for_each(|key| body.extend_from_slice(&key.to_le_bytes()));
    let mut bytes = Vec::with_capacity(16 + json.len() + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&json).to_le_bytes());
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    disk.write_atomic(&path_of(dir, head.commit_id, head.file), &bytes)
}

/// Removes the file of a commit whose keys are kept, or that will not be tried again.
pub(crate) fn remove(disk: &dyn Disk, dir: &Path, commit_id: Uuid, file: u128) -> io::Result<()> {
    match disk.remove(&path_of(dir, commit_id, file)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(bytes: &[u8]) -> Option<(ClaimHead, Vec<u128>)> {
    let number = |bytes: &[u8]| bytes.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
    let rest = bytes.strip_prefix(MAGIC)?;
    let (length, crc) = (usize::try_from(number(rest)?).ok()?, number(rest.get(4..)?)?);
    let head = rest.get(8..8usize.checked_add(length)?)?;
    let rest = rest.get(8 + length..)?;
    let (keys_crc, keys) = (number(rest)?, rest.get(4..)?);
    if crc32c::crc32c(head) != crc || crc32c::crc32c(keys) != keys_crc {
        return None;
    }
    let keys =
        keys.chunks_exact(KEY_BYTES).filter_map(|key| key.first_chunk::<16>()).map(|key| u128::from_le_bytes(*key));
    Some((serde_json::from_slice(head).ok()?, keys.collect()))
}

/// A file of keys whose commit cannot be looked up.
#[derive(Debug)]
struct NotTold {
    table: TableName,
    error: String,
}

/// What an earlier process left: the keys of commits that stand, and the files to be removed when they are kept.
async fn settle(
    disk: &dyn Disk,
    dir: &Path,
    lake: &Lake,
) -> io::Result<Result<(Vec<KeyEntry>, Vec<PathBuf>), NotTold>> {
    let (mut entries, mut files) = (Vec::new(), Vec::new());
    disk.create_dir_all(dir)?;
    for name in disk.list(dir)?.into_iter().filter(|name| name.ends_with(".claim")) {
        let path = dir.join(&name);
        if let Some((head, keys)) = read(&disk.read(&path)?) {
            let stands = match lake.find_table(&head.table).await {
                Ok(None) => Ok(false),
                Ok(Some(table)) => table.has_absorbed_by(head.file, head.commit_id).await,
                Err(error) => Err(error),
            };
            let stands = match stands {
                Ok(stands) => stands,
                Err(error) => return Ok(Err(NotTold { table: head.table, error: error.to_string() })),
            };
            if stands {
                let (stream, received_us) = (stream_hash(&head.stream), head.received_us);
                entries.extend(keys.into_iter().map(|key| KeyEntry { stream, key, received_us }));
            }
        }
        files.push(path);
    }
    Ok(Ok((entries, files)))
}

/// The keys of imported rows whose commit an earlier process did not see through; kept with all others from now on.
pub(crate) async fn settle_claims(
    disk: &dyn Disk,
    data_dir: &Path,
    lake: &Lake,
    keys: &BlockFiles,
) -> Result<Vec<KeyEntry>, GateOpenError> {
    let left = settle(disk, &data_dir.join("keys"), lake).await.map_err(GateOpenError::Keys)?;
    let (entries, files) = left.map_err(|NotTold { table, error }| GateOpenError::Lake { table, error })?;
    KeyEntry::keep_all(&entries, keys).map_err(GateOpenError::Keys)?;
    for file in files {
        disk.remove(&file).map_err(GateOpenError::Keys)?;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use lakegate_env::MemDisk;
    use lakegate_model::{StreamName, TenantId};

    use super::*;

    #[test]
    fn keys_read_back_as_written_and_a_torn_file_is_none() {
        let disk = MemDisk::new();
        let dir = Path::new("/keys");
        disk.create_dir_all(dir).unwrap();
        let head = ClaimHead {
            stream: StreamKey { tenant: TenantId::new("acme").unwrap(), stream: StreamName::new("orders").unwrap() },
            table: TableName::new("acme", "orders").unwrap(),
            file: 3,
            commit_id: Uuid::from_u128(5),
            received_us: 17,
        };
        write(&disk, dir, &head, &[1, u128::MAX, 7]).unwrap();
        let bytes = disk.read(&path_of(dir, head.commit_id, head.file)).unwrap();
        assert_eq!(read(&bytes), Some((head.clone(), vec![1, u128::MAX, 7])));
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]), None, "cut at {end}");
        }
        remove(&disk, dir, head.commit_id, head.file).unwrap();
        remove(&disk, dir, head.commit_id, head.file).unwrap();
        assert!(disk.list(dir).unwrap().is_empty());
    }
}
