//! Records for a consumer in this process: whole batches of columns over a channel, with a stored position as every
//! consumer has it.
//!
//! ```
//! use lakegate_sinks::{Deliveries, Rows, channel};
//!
//! async fn count(mut deliveries: Deliveries) -> usize {
//!     let mut records = 0;
//!     while let Some(delivery) = deliveries.next().await {
//!         records += delivery.rows.iter().map(Rows::len).sum::<usize>();
//!         // Only now the position moves on; a delivery that is dropped comes again.
//!         delivery.done();
//!     }
//!     records
//! }
//!
//! // Opened by `Consumers::open` beside the others; filter, start and batches are as with any.
//! let (mut settings, deliveries) = channel("totals");
//! settings.batch.records = 10_000;
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let counting = tokio::spawn(count(deliveries));
//! drop(settings); // Nobody delivers any more.
//! assert_eq!(counting.await.unwrap(), 0);
//! # });
//! ```

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::record::Rows;
use crate::settings::{BatchSettings, BreakerSettings, ConsumerSettings, Filter, RetrySettings, Start, Target, What};
use crate::sink::Refused;

/// Records on their way to who takes them in this process.
#[derive(Debug)]
pub struct Delivery {
    /// The records, in the order of the log.
    pub rows: Vec<Rows>,
    /// The batch's place in the log.
    pub token: String,
    done: oneshot::Sender<()>,
}

impl Delivery {
    /// All of it is taken: the consumer's position moves behind it.
    pub fn done(self) {
        // A consumer that was stopped or rewound meanwhile brings it again.
        let _ = self.done.send(());
    }
}

/// Where deliveries come out.
#[derive(Debug)]
pub struct Deliveries(mpsc::Receiver<Delivery>);

impl Deliveries {
    /// The next; none when the consumer was ended.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.0.recv().await
    }
}

/// What a consumer brings its batches into.
#[derive(Debug, Clone)]
pub struct ChannelSettings(mpsc::Sender<Delivery>);

impl ChannelSettings {
    pub(crate) fn open(&self) -> ChannelSink {
        ChannelSink(self.0.clone())
    }
}

/// A consumer of that name that brings all records from now on to who holds the other end, one batch at a time. Its
/// fields may be changed before it is opened.
#[must_use]
pub fn channel(name: &str) -> (ConsumerSettings, Deliveries) {
    let (sender, receiver) = mpsc::channel(1);
    let settings = ConsumerSettings {
        name: name.to_owned(),
        filter: Filter::default(),
        what: What::Records,
        start: Start::Tail,
        batch: BatchSettings { records: 50_000, bytes: 32 << 20, wait: Duration::ZERO },
        order_key: Vec::new(),
        concurrency: 1,
        retry: RetrySettings {
            attempts: 8,
            pause_min: Duration::from_millis(100),
            pause_max: Duration::from_secs(30),
            give_up_after: Duration::MAX,
        },
        breaker: BreakerSettings {
            window: Duration::from_secs(10),
            calls_min: 20,
            failure_share: 0.5,
            slow_after: Duration::MAX,
            slow_share: 1.0,
            failures_in_a_row: 5,
            open_for: Duration::from_secs(1),
            trials: 3,
        },
        dead_bytes_max: 0,
        target: Target::Channel(ChannelSettings(sender)),
    };
    (settings, Deliveries(receiver))
}

/// Feeds one channel.
pub(crate) struct ChannelSink(mpsc::Sender<Delivery>);

impl ChannelSink {
    pub(crate) async fn deliver(&mut self, rows: &[Rows], token: &str) -> Result<Vec<Refused>, String> {
        let (done, taken) = oneshot::channel();
        let delivery = Delivery { rows: rows.to_vec(), token: token.to_owned(), done };
        self.0.send(delivery).await.map_err(|_| "nobody takes deliveries any more".to_owned())?;
        taken.await.map(|()| Vec::new()).map_err(|_| "the delivery was dropped".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::rows;
    use crate::sink::Sink;

    #[tokio::test]
    async fn a_delivery_is_taken_when_it_is_done_and_not_when_it_is_dropped() {
        let (settings, mut deliveries) = channel("c");
        let mut sink = Sink::open(&settings.target).unwrap();
        let batch = [rows(&[("a", 1, "{}"), ("b", 2, "{}")])];
        let taker = tokio::spawn(async move {
            drop(deliveries.next().await.unwrap());
            let again = deliveries.next().await.unwrap();
            let found = (again.token.clone(), again.rows[0].keys());
            again.done();
            found
        });
        assert_eq!(sink.deliver(&batch, &[], "t").await, Err("the delivery was dropped".to_owned()));
        assert_eq!(sink.deliver(&batch, &[], "t").await, Ok(Vec::new()));
        assert_eq!(taker.await.unwrap(), ("t".to_owned(), batch[0].keys()));
        assert!(sink.deliver(&batch, &[], "t").await.unwrap_err().contains("nobody takes"));
    }
}
