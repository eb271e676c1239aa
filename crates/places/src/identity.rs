//! What tells one file from another.

use xxhash_rust::xxh3::xxh3_128;

/// Which file, in which state. The same place with other contents is another file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Where it lies: `file:///srv/a.csv`, `https://host/a.csv`, `s3://bucket/a.csv`. Without secrets.
    pub uri: String,
    /// In which state: the store's tag for it, else size and time of change.
    pub version: String,
}

impl FileIdentity {
    /// A number that stands for both: XXH3 (128 bits) of the address, a zero byte, and the version.
    #[must_use]
    pub fn id(&self) -> u128 {
        let mut bytes = Vec::with_capacity(self.uri.len() + self.version.len() + 1);
        bytes.extend_from_slice(self.uri.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(self.version.as_bytes());
        xxh3_128(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_place_and_another_state_are_other_files() {
        let identity = |uri: &str, version: &str| FileIdentity { uri: uri.into(), version: version.into() }.id();
        assert_eq!(identity("file:///a", "1"), identity("file:///a", "1"));
        assert_ne!(identity("file:///a", "1"), identity("file:///a", "2"));
        assert_ne!(identity("file:///a", "1"), identity("file:///a1", ""));
    }
}
