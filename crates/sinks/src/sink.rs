//! What takes batches: one call for each kind, and the records of a batch that are refused for what they are.
//!
//! A batch is taken whole but for the records that it names, or not at all: then it is sent again. Where every record of
//! a large batch is refused, it is not about the records: the batch is not taken.

use lakegate_model::Contract;

use crate::channel::ChannelSink;
use crate::clickhouse::ClickHouse;
use crate::dead::DeadRecord;
use crate::kafka::Kafka;
use crate::outgoing::{Message, parcels};
use crate::record::Rows;
use crate::redis::Redis;
use crate::route::Parcel;
use crate::settings::{ConsumerSettings, Target};

/// From so many refused records on, with none taken, it is not about the records.
const ALL_REFUSED: usize = 100;

/// A record that was refused for what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Which of the batch.
    pub(crate) at: usize,
    /// What the system said.
    pub(crate) reason: String,
}

/// Fails where many were refused and none was taken.
pub(crate) fn check_some_taken(refused: &[Refused], taken: usize) -> Result<(), String> {
    match refused.last() {
        Some(last) if taken == 0 && refused.len() >= ALL_REFUSED => {
            Err(format!("every record is refused, so that it is not about them: {}", last.reason))
        }
        _ => Ok(()),
    }
}

/// What takes batches.
pub(crate) enum Sink {
    ClickHouse(ClickHouse),
    Kafka(Kafka),
    Redis(Redis),
    Channel(ChannelSink),
}

impl Sink {
    pub(crate) fn open(target: &Target) -> Result<Self, String> {
        match target {
            Target::ClickHouse(settings) => ClickHouse::open(settings.clone()).map(Self::ClickHouse),
            Target::Kafka(settings) => Kafka::open(settings.clone()).map(Self::Kafka),
            Target::Redis(settings) => Redis::open(settings.clone()).map(Self::Redis),
            Target::Channel(settings) => Ok(Self::Channel(settings.open())),
            Target::Http(_) => Err("records go to services one by one".to_owned()),
        }
    }

    pub(crate) fn needs_same_batches(&self) -> bool {
        matches!(self, Self::ClickHouse(sink) if sink.needs_same_batches())
    }

    /// The rows as messages, for those that take such.
    pub(crate) fn messages(&self, rows: &[Rows], order: &[Vec<String>]) -> Vec<Message> {
        match self {
            Self::ClickHouse(_) | Self::Channel(_) => Vec::new(),
            Self::Kafka(_) | Self::Redis(_) => {
                rows.iter().flat_map(parcels).map(|parcel| Message::of(&parcel, order)).collect()
            }
        }
    }

    /// Sends a batch, of which `token` tells the place: taken but for the records that are returned.
    pub(crate) async fn deliver(
        &mut self,
        rows: &[Rows],
        messages: &[Message],
        token: &str,
    ) -> Result<Vec<Refused>, String> {
        let refused = match self {
            Self::ClickHouse(sink) => sink.deliver(rows, token).await?,
            Self::Kafka(sink) => sink.deliver(messages).await?,
            Self::Redis(sink) => sink.deliver(messages).await?,
            Self::Channel(sink) => sink.deliver(rows, token).await?,
        };
        let records = rows.iter().map(Rows::len).sum::<usize>().max(messages.len());
        check_some_taken(&refused, records - refused.len())?;
        Ok(refused)
    }

    /// Sends a record again that was refused; `contract` is that of its stream.
    pub(crate) async fn deliver_again(
        &mut self,
        record: &DeadRecord,
        contract: Option<std::sync::Arc<Contract>>,
        order: &[Vec<String>],
    ) -> Result<(), String> {
        let refused = match self {
            Self::ClickHouse(_) | Self::Channel(_) => {
                let contract = contract.ok_or_else(|| format!("there is no stream {} any more", record.stream))?;
                let rows = record.rows(contract)?;
                self.deliver(&[rows], &[], &record.key).await?
            }
            Self::Kafka(_) | Self::Redis(_) => {
                let message = Message::of(&Parcel::of_dead(record), order);
                self.deliver(&[], &[message], &record.key).await?
            }
        };
        refused.into_iter().next().map_or(Ok(()), |refused| Err(refused.reason))
    }
}

/// The records of a batch that were refused, as they are kept.
pub(crate) fn dead_of(
    rows: &[Rows],
    refused: &[Refused],
    settings: &ConsumerSettings,
    (attempts, now_us): (u32, i64),
) -> Vec<DeadRecord> {
    let in_columns = matches!(settings.target, Target::ClickHouse(_) | Target::Channel(_));
    let mut dead = Vec::with_capacity(refused.len());
    for Refused { at, reason } in refused {
        let (mut first, mut found) = (0, None);
        for some in rows {
            if *at < first + some.len() {
                found = Some(some.one(at - first));
                break;
            }
            first += some.len();
        }
        let Some(row) = found else { continue };
        let cells = if in_columns { row.cells() } else { String::new() };
        let (place, number) = (row.place.to_string(), row.numbers.first().copied().unwrap_or_default());
        dead.extend(parcels(&row).into_iter().map(|parcel| DeadRecord {
            cells: cells.clone(),
            place: place.clone(),
            number,
            ..parcel.into_dead(attempts, reason.clone(), now_us)
        }));
    }
    dead
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::channel;
    use crate::record::tests::rows;

    #[test]
    fn a_refused_record_comes_back_from_what_is_kept_as_it_was() {
        let batch = [rows(&[("a", 1, "{}"), ("b", 2, r#"{"x":1}"#)]), rows(&[("c", 3, "{}")])];
        let (settings, _) = channel("c");
        let refused = [1, 2].map(|at| Refused { at, reason: "no room".to_owned() });
        let dead = dead_of(&batch, &refused, &settings, (3, 77));
        let again: Vec<DeadRecord> =
            dead.iter().map(|one| serde_json::from_str(&serde_json::to_string(one).unwrap()).unwrap()).collect();
        assert_eq!(again, dead);
        assert_eq!(
            (again[0].key.clone(), again[1].key.clone()),
            (batch[0].keys()[1].clone(), batch[1].keys()[0].clone())
        );
        let back = again[0].rows(batch[0].contract.clone()).unwrap();
        assert_eq!((back.len(), back.batch), (1, batch[0].batch.slice(1, 1)));
        assert_eq!((again[1].attempts, again[1].given_up_us, again[1].reason.as_str()), (3, 77, "no room"));
    }

    #[test]
    fn where_all_of_many_are_refused_it_is_not_about_the_records() {
        let refused = vec![Refused { at: 0, reason: "no".to_owned() }; ALL_REFUSED];
        assert!(check_some_taken(&refused, 0).unwrap_err().contains("no"));
        assert_eq!((check_some_taken(&refused, 1), check_some_taken(&refused[1..], 0)), (Ok(()), Ok(())));
    }
}
