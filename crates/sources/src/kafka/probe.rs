//! Asks the brokers before a group is joined: whether they answer, whether the topic is there, which cluster they are.
//!
//! Promises: what keeps them from answering is said in words, with the setting to look at. The client library tells the
//! reason only beside the call that failed, and calls each of them a broker that does not answer.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::KafkaSource;
use super::assign::ANSWER;
use super::reader::End;

/// The first question's time: a broker that refuses has said so by then.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// How long it is listened to what the library tells beside its answer.
const LISTEN: Duration = Duration::from_millis(200);

/// What the library told beside its answers, the latest last.
#[derive(Default)]
struct Told(Mutex<Vec<(RDKafkaErrorCode, String)>>);

impl ClientContext for Told {
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(code) = error.rdkafka_error_code() {
            self.0.lock().push((code, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Told {}

/// The cluster's id, once it is known that the topic is there.
///
/// # Errors
/// What to do about it, in words.
pub(super) fn cluster_of(source: &KafkaSource, config: &ClientConfig) -> Result<String, End> {
    let made: Result<BaseConsumer<Told>, _> = config.create_with_context(Told::default());
    let probe = made.map_err(|error| End::Stopped(format!("the client cannot be made: {error}")))?;
    let topic = Some(source.topic.as_str()).filter(|topic| !topic.starts_with('^'));
    let mut answer = probe.fetch_metadata(topic, FIRST_ANSWER);
    if answer.is_err() && refusal(&probe, source).is_none() {
        answer = probe.fetch_metadata(topic, ANSWER);
    }
    let metadata = answer.map_err(|error| {
        let brokers = &source.brokers;
        let why = refusal(&probe, source).unwrap_or_else(|| last_words(&probe, &error));
        End::Again(format!("no broker of {brokers} answers: {why}"))
    })?;
    if let Some(topic) = topic
        && metadata.topics().iter().all(|found| found.name() != topic || found.partitions().is_empty())
    {
        let hidden = metadata.topics().iter().any(|found| found.error().is_some_and(is_forbidden));
        return Err(End::Again(if hidden {
            format!("the brokers do not let this user read the topic {topic}; allow it Read and Describe there")
        } else {
            format!("the topic {topic} is not there; create it, or correct the setting topic")
        }));
    }
    let cluster = probe.client().fetch_cluster_id(ANSWER);
    cluster.ok_or_else(|| End::Again("the broker does not tell its cluster's id".to_owned()))
}

fn is_forbidden(code: rdkafka::types::RDKafkaRespErr) -> bool {
    code == rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
}

/// Hears what the library has to tell. That nothing came is not told from that something was heard.
fn listen(probe: &BaseConsumer<Told>) {
    let until = Instant::now() + LISTEN;
    while Instant::now() < until {
        let _ = probe.poll(LISTEN / 10);
    }
}

/// Why the brokers refuse, where they do, and what to change.
fn refusal(probe: &BaseConsumer<Told>, source: &KafkaSource) -> Option<String> {
    listen(probe);
    let told = probe.context().0.lock();
    let setting = |name: &str| {
        let found = source.properties.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    told.iter().rev().find_map(|(code, reason)| {
        let advice = match code {
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => format!(
                "the user {:?} is refused ({}); correct security.user, security.password or security.mechanism",
                setting("sasl.username"),
                setting("sasl.mechanism")
            ),
            RDKafkaErrorCode::SSL if reason.contains("certificate verify failed") => {
                "the broker's certificate is not trusted; set security.ca_file to the certificate of the authority that signed it, and \
                 name the broker in brokers as its certificate does"
                    .to_owned()
            }
            RDKafkaErrorCode::SSL => {
                "there is no TLS with the broker; correct security.protocol, and security.certificate_file where it asks for one"
                    .to_owned()
            }
            // The library's guess at a listener of another kind.
            _ if reason.contains("security.protocol") => "correct security.protocol".to_owned(),
            _ => return None,
        };
        Some(format!("{advice} of the Kafka source {:?} ({reason})", source.name))
    })
}

fn last_words(probe: &BaseConsumer<Told>, error: &KafkaError) -> String {
    let told = probe.context().0.lock();
    let last = told.iter().rev().find(|(code, _)| *code != RDKafkaErrorCode::AllBrokersDown);
    last.map_or_else(|| error.to_string(), |(_, reason)| reason.clone())
}
