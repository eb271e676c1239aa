//! The consumers that follow from the settings of sinks and routes, and what is wrong with these.

use std::collections::BTreeMap;

use lakegate_model::{StreamName, TenantId};
use lakegate_sinks::{
    BatchSettings, Body, BreakerSettings, ClickHouseSettings, Condition, ConsumerSettings, Filter, Json,
    KAFKA_PROPERTIES, KafkaSettings, RedisSettings, RetrySettings, Signature, Start, Target, Text, What,
};
use serde_json::Value;

use super::consumers::{
    Breaker, Brings, ClickHouse, KafkaTopic, Picked, RedisStream, Retry, RouteSettings, SinkSettings, StartAt,
};
use super::problem::Problem;
use super::stream_column::paths;

type Wrong = (&'static str, String);

impl Picked {
    fn filter(&self) -> Result<Filter, Wrong> {
        let streams = self.streams.iter().map(|name| StreamName::new(name));
        let tenants = self.tenants.iter().map(|name| TenantId::new(name));
        let condition = match self.condition.as_str() {
            "" => None,
            text => Some(Condition::parse(text).map_err(|error| ("from.where", error.to_string()))?),
        };
        Ok(Filter {
            streams: streams.collect::<Result<_, _>>().map_err(|error| ("from.streams", error.to_string()))?,
            tenants: tenants.collect::<Result<_, _>>().map_err(|error| ("from.tenants", error.to_string()))?,
            event_types: self.event_types.clone(),
            condition,
        })
    }
}

impl Retry {
    fn settings(&self) -> RetrySettings {
        RetrySettings {
            attempts: self.attempts,
            pause_min: self.pause_min.get(),
            pause_max: self.pause_max.get(),
            give_up_after: self.give_up_after.get(),
        }
    }
}

impl Breaker {
    fn settings(&self) -> BreakerSettings {
        BreakerSettings {
            window: self.window.get(),
            calls_min: usize::try_from(self.calls_min).unwrap_or(usize::MAX),
            failure_share: self.failure_share,
            slow_after: self.slow_after.get(),
            slow_share: self.slow_share,
            failures_in_a_row: self.failures_in_a_row,
            open_for: self.open_for.get(),
            trials: self.trials,
        }
    }
}

fn start_of(start: StartAt) -> Start {
    match start {
        StartAt::Tail => Start::Tail,
        StartAt::Head => Start::Head,
        StartAt::Lake => Start::Lake,
    }
}

fn what_of(brings: Brings) -> What {
    match brings {
        Brings::Records => What::Records,
        Brings::Notices => What::Notices,
    }
}

/// An address of a service; never repeated in messages, it may hold what is secret.
fn address(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text).map_err(|_| "is not an address; write \"http://host:port\"".to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("is not an address of HTTP; write \"http://host:port\" or \"https://host\"".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "has a user or password in the address, where it would be logged; use the settings for them".to_owned()
        );
    }
    Ok(url)
}

impl SinkSettings {
    /// The consumer of that name.
    ///
    /// # Errors
    /// The setting that is wrong, and why.
    pub(crate) fn consumer(&self, name: &str) -> Result<ConsumerSettings, Wrong> {
        let target = match (&self.clickhouse, &self.kafka, &self.redis) {
            (Some(table), None, None) => Target::ClickHouse(table.settings()?),
            (None, Some(topic), None) => Target::Kafka(topic.settings()?),
            (None, None, Some(stream)) => Target::Redis(stream.settings()?),
            _ => return Err(("", "needs exactly one of `clickhouse`, `kafka` and `redis`".to_owned())),
        };
        if self.brings == Brings::Notices && self.clickhouse.is_some() {
            return Err(("brings", "ClickHouse takes records; notices go to kafka, redis or a route".to_owned()));
        }
        Ok(ConsumerSettings {
            name: name.to_owned(),
            filter: self.from.filter()?,
            what: what_of(self.brings),
            start: start_of(self.start),
            batch: BatchSettings {
                records: usize::try_from(self.batch.records).unwrap_or(usize::MAX),
                bytes: self.batch.bytes.as_usize(),
                wait: self.batch.wait.get(),
            },
            order_key: paths(&self.order_key),
            concurrency: 1,
            retry: self.retry.settings(),
            breaker: self.breaker.settings(),
            dead_bytes_max: self.dead_letters_max.bytes(),
            target,
        })
    }
}

impl ClickHouse {
    fn settings(&self) -> Result<ClickHouseSettings, Wrong> {
        let named =
            |path, text: &str| if text.is_empty() { Err((path, "is empty".to_owned())) } else { Ok(text.to_owned()) };
        Ok(ClickHouseSettings {
            url: address(&self.url).map_err(|why| ("clickhouse.url", why))?,
            database: named("clickhouse.database", &self.database)?,
            table: named("clickhouse.table", &self.table)?,
            user: self.user.clone(),
            password: self.password.reveal().to_owned(),
            engine: named("clickhouse.engine", &self.engine)?,
            order_by: self.order_by.clone(),
            connect_timeout: self.connect_timeout.get(),
            timeout: self.timeout.get(),
        })
    }
}

impl KafkaTopic {
    fn settings(&self) -> Result<KafkaSettings, Wrong> {
        if self.brokers.is_empty() || self.topic.is_empty() {
            return Err(("kafka", "needs `brokers` and `topic`".to_owned()));
        }
        if let Some(name) = self.properties.keys().find(|name| !KAFKA_PROPERTIES.contains(&name.as_str())) {
            return Err((
                "kafka.properties",
                format!("{name:?} may not be set; may be: {}", KAFKA_PROPERTIES.join(", ")),
            ));
        }
        Ok(KafkaSettings {
            brokers: self.brokers.clone(),
            topic: self.topic.clone(),
            username: self.username.clone(),
            password: self.password.reveal().to_owned(),
            properties: self.properties.clone().into_iter().collect(),
            timeout: self.timeout.get(),
        })
    }
}

impl RedisStream {
    fn settings(&self) -> Result<RedisSettings, Wrong> {
        if !self.url.reveal().starts_with("redis://") || self.key.is_empty() {
            return Err(("redis", "needs `url`, such as \"redis://host:6379/0\", and `key`".to_owned()));
        }
        Ok(RedisSettings {
            url: self.url.reveal().to_owned(),
            key: self.key.clone(),
            entries_max: self.entries_max,
            timeout: self.timeout.get(),
        })
    }
}

impl RouteSettings {
    /// The consumer.
    ///
    /// # Errors
    /// The setting that is wrong, and why.
    pub(crate) fn consumer(&self) -> Result<ConsumerSettings, Wrong> {
        Ok(ConsumerSettings {
            name: self.name.clone(),
            filter: self.from.filter()?,
            what: what_of(self.brings),
            start: start_of(self.start),
            batch: BatchSettings {
                records: usize::try_from(self.window).unwrap_or(usize::MAX),
                bytes: 64 << 20,
                wait: std::time::Duration::ZERO,
            },
            order_key: paths(&self.order_key),
            concurrency: usize::try_from(self.concurrency).unwrap_or(1),
            retry: self.retry.settings(),
            breaker: self.breaker.settings(),
            dead_bytes_max: self.dead_letters_max.bytes(),
            target: Target::Http(Box::new(self.request()?)),
        })
    }

    fn request(&self) -> Result<lakegate_sinks::RouteSettings, Wrong> {
        let url = Text::parse(&self.url).map_err(|error| ("url", error.to_string()))?;
        address(url.head()).map_err(|why| ("url", why))?;
        let rest = url.head().split_once("://").map_or("", |(_, rest)| rest);
        if !url.is_plain() && !rest.contains('/') {
            return Err(("url", "has a place in the host; places may stand behind \"http://host:port/\"".to_owned()));
        }
        let body = match &self.body {
            Value::String(text) if text == "event" => Body::Event,
            Value::String(text) if text == "row" => Body::Row,
            Value::String(_) => {
                return Err(("body", "is neither \"event\" nor \"row\" nor an object with places".to_owned()));
            }
            template => Body::Template(Json::parse(template).map_err(|error| ("body", error.to_string()))?),
        };
        let mut headers = http::HeaderMap::new();
        for (name, value) in &self.headers {
            let name = http::HeaderName::try_from(name.as_str());
            let value = http::HeaderValue::try_from(value.reveal());
            let (Ok(name), Ok(mut value)) = (name, value) else {
                return Err(("headers", "a name or value is not one of a header".to_owned()));
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let header = http::HeaderName::try_from(self.signature_header.as_str());
        let header = header.map_err(|_| ("signature_header", "is not the name of a header".to_owned()))?;
        let secret = self.signature_secret.reveal();
        let method = http::Method::try_from(self.method.as_str());
        Ok(lakegate_sinks::RouteSettings {
            url,
            method: method.map_err(|_| ("method", "is not a method; write \"POST\"".to_owned()))?,
            headers,
            body,
            signature: (!secret.is_empty()).then(|| Signature::new(header, secret.as_bytes())),
            connect_timeout: self.connect_timeout.get(),
            timeout: self.timeout.get(),
        })
    }
}

/// A name becomes that of a file, and a part of addresses.
fn is_name(name: &str) -> bool {
    let right = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    !name.is_empty() && name.len() <= 63 && !name.starts_with('-') && name.bytes().all(right)
}

/// Finds what is wrong with sinks and routes.
pub(crate) fn check(sinks: &BTreeMap<String, SinkSettings>, routes: &[RouteSettings], problems: &mut Vec<Problem>) {
    let mut names: Vec<&str> = Vec::new();
    let all = sinks.iter().map(|(name, sink)| (format!("sinks.{name}"), name.as_str(), sink.consumer(name)));
    let routes =
        routes.iter().enumerate().map(|(i, route)| (format!("routes[{i}]"), route.name.as_str(), route.consumer()));
    for (path, name, consumer) in all.chain(routes) {
        if !is_name(name) {
            let message = format!("{name:?} is not a name: it needs 1 to 63 lower-case letters, digits, '_' or '-'");
            problems.push(Problem::new(path.clone(), message));
        }
        if names.contains(&name) {
            problems.push(Problem::new(path.clone(), format!("{name:?} is the name of two consumers")));
        }
        names.push(name);
        if let Err((setting, why)) = consumer {
            let path = if setting.is_empty() { path } else { format!("{path}.{setting}") };
            problems.push(Problem::new(path, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load, problems};

    #[test]
    fn s27_secrets_of_sinks_and_routes_are_not_shown() {
        let config = load(
            r#"{ "limits": { "downstream": { "hosts": ["a:80"] } },
            "sinks": { "raw": { "clickhouse": { "url": "http://ch:8123", "password": "hunter2" } },
                       "r": { "redis": { "url": "redis://:hunter2@h:6379/0" } } },
            "routes": [{ "name": "p", "url": "http://a/x/{{event_id}}", "headers": { "authorization": "hunter2" },
                         "signature_secret": "hunter2", "body": { "id": "{{event_id}}" } }] }"#,
        )
        .unwrap();
        let shown = crate::config::show(&config, crate::config::ShowWhat { effective: true, origin: false });
        assert!(!shown.contains("hunter2") && shown.contains("********"), "{shown}");
        let consumers: Vec<_> = config.settings.consumers().collect();
        assert_eq!(consumers.len(), 3);
        assert!(!format!("{consumers:?}").contains("hunter2"), "{consumers:?}");
    }

    #[test]
    fn what_is_wrong_with_a_sink_or_route_is_said_at_its_place() {
        let found = problems(
            r#"{ "sinks": { "raw": {}, "Big": { "kafka": { "brokers": "b", "topic": "t", "properties": { "sasl.jaas.config": "x" } } },
                 "c": { "from": { "where": "n >" }, "clickhouse": { "url": "http://u:p@h" } } },
               "routes": [{ "name": "raw", "url": "http://{{event_id}}/x" }, { "name": "b", "url": "http://h/x", "body": "all" }] }"#,
        )
        .join("\n");
        for part in [
            "sinks.raw: needs exactly one of",
            "sinks.Big: \"Big\" is not a name",
            "sinks.Big.kafka.properties: \"sasl.jaas.config\" may not be set",
            "sinks.c.clickhouse.url: has a user or password",
            "routes[0]: \"raw\" is the name of two consumers",
            "routes[0].url: ",
            "routes[1].body: is neither",
        ] {
            assert!(found.contains(part), "{part:?} is not in\n{found}");
        }
    }
}
