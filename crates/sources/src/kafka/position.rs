//! How far a partition was read, as a table's commit keeps it.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | 1: this form |
//! | 8 | the offset of the next record, little-endian as all numbers here |
//! | 8 | what stands for the cluster's id |
//! | 8 | the offset of the last record that was read; all ones: none |
//! | 8 | what stands for that record's time and value |
//!
//! The last record is the witness: where another record lies at its offset, the topic is not the one that was read, but
//! one that was made anew under its name.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

const FORM: u8 = 1;
const NONE: u64 = u64::MAX;

/// A position in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) next: i64,
    pub(super) cluster: u64,
    pub(super) witness: Option<Witness>,
}

/// The last record before a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) offset: i64,
    pub(super) hash: u64,
}

impl Position {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (offset, hash) = self.witness.map_or((NONE, 0), |w| (w.offset.cast_unsigned(), w.hash));
        let numbers = [self.next.cast_unsigned(), self.cluster, offset, hash];
        std::iter::once(FORM).chain(numbers.into_iter().flat_map(u64::to_le_bytes)).collect()
    }

    /// None: it is not what [`Self::encode`] writes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (form, rest) = bytes.split_first()?;
        let numbers: Vec<u64> =
            rest.chunks_exact(8).map(|c| c.try_into().map(u64::from_le_bytes)).collect::<Result<_, _>>().ok()?;
        let [next, cluster, offset, hash] = numbers.try_into().ok()?;
        let is_whole = *form == FORM && rest.len() == 32;
        let witness = (offset != NONE).then_some(Witness { offset: offset.cast_signed(), hash });
        is_whole.then_some(Self { next: next.cast_signed(), cluster, witness })
    }
}

/// What stands for a record's time and value.
pub(super) fn hash_of(time_ms: Option<i64>, value: Option<&[u8]>) -> u64 {
    let seed = time_ms.unwrap_or(-1).cast_unsigned();
    value.map_or(!seed, |value| xxh3_64_with_seed(value, seed))
}

/// What stands for a cluster.
pub(super) fn cluster_hash(id: &str) -> u64 {
    xxh3_64(id.as_bytes())
}

/// A partition's identity for the tables that absorb it, under one source's name.
pub(super) fn partition_id(source: &str, topic: &str, partition: i32) -> u128 {
    xxh3_128(format!("kafka\0{source}\0{topic}\0{partition}").as_bytes())
}

/// Where a partition is to be read on, by what the table says and what the broker has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// From this offset on; the first record is the witness where there is one.
    GoOn { from: i64, witness: Option<Witness> },
    /// The position means nothing here, and why.
    Lost(String),
}

/// Holds a position against the cluster and the offsets that the partition has: from `low` on, before `high`.
pub(super) fn judge(position: &Position, cluster: u64, low: i64, high: i64) -> Verdict {
    let next = position.next;
    if position.cluster != cluster {
        return Verdict::Lost("the position is of another Kafka cluster".to_owned());
    }
    if next > high {
        return Verdict::Lost(format!(
            "the table has read up to offset {next}, but the partition ends at {high}: the topic was made anew, or its broker lost records"
        ));
    }
    if next < low {
        return Verdict::Lost(format!(
            "the table has read up to offset {next}, but the partition begins at {low}: {} offsets were removed before they were read",
            low - next
        ));
    }
    match position.witness.filter(|witness| witness.offset >= low && witness.offset < next) {
        Some(witness) => Verdict::GoOn { from: witness.offset, witness: Some(witness) },
        None => Verdict::GoOn { from: next, witness: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITNESS: Witness = Witness { offset: 9, hash: 77 };
    const POSITION: Position = Position { next: 10, cluster: 5, witness: Some(WITNESS) };

    #[test]
    fn a_position_is_read_as_it_was_written_and_nothing_else_is() {
        let bytes = POSITION.encode();
        assert!(bytes.len() <= 64);
        assert_eq!(Position::decode(&bytes), Some(POSITION));
        let bare = Position { witness: None, ..POSITION };
        assert_eq!(Position::decode(&bare.encode()), Some(bare));
        for end in 0..bytes.len() {
            assert_eq!(Position::decode(&bytes[..end]), None, "cut at {end}");
        }
        assert_eq!(Position::decode(&[&[2], &bytes[1..]].concat()), None);
    }

    #[test]
    fn f56_a_position_behind_retention_beyond_the_end_or_of_another_cluster_is_lost() {
        let lost = |cluster, low, high| matches!(judge(&POSITION, cluster, low, high), Verdict::Lost(_));
        assert!(lost(5, 11, 20));
        assert!(lost(5, 0, 9));
        assert!(lost(6, 0, 20));
        assert!(!lost(5, 10, 10));
    }

    #[test]
    fn reading_goes_on_at_the_last_record_where_it_is_still_there() {
        assert_eq!(judge(&POSITION, 5, 0, 20), Verdict::GoOn { from: 9, witness: Some(WITNESS) });
        assert_eq!(judge(&POSITION, 5, 10, 20), Verdict::GoOn { from: 10, witness: None });
    }

    #[test]
    fn a_partition_is_another_under_another_source_topic_or_number() {
        let ids = [("a", "t", 1), ("b", "t", 1), ("a", "u", 1), ("a", "t", 2)].map(|(s, t, p)| partition_id(s, t, p));
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    }
}
