//! What is told of calls: a span each, counts by method and code, times by method.

use std::sync::OnceLock;
use std::time::Instant;

use http::HeaderMap;
use metrics::{Counter, Histogram, counter, histogram};
use tonic::Code;

/// The most bytes of a correlation id; longer ones are cut.
const CORRELATION_BYTES_MAX: usize = 128;
/// gRPC knows the codes 0 to 16.
const CODES: usize = 17;

/// The methods of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    IngestRecord,
    IngestBatch,
    IngestStream,
    GetIngestionStatus,
    HealthCheck,
}

impl Method {
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::IngestRecord, Self::IngestBatch, Self::IngestStream, Self::GetIngestionStatus, Self::HealthCheck]
            .into_iter()
            .find(|method| method.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::IngestRecord => "IngestRecord",
            Self::IngestBatch => "IngestBatch",
            Self::IngestStream => "IngestStream",
            Self::GetIngestionStatus => "GetIngestionStatus",
            Self::HealthCheck => "HealthCheck",
        }
    }
}

/// The handles of one method; made once, so that a call looks nothing up.
struct CallMetrics {
    method: Method,
    seconds: Histogram,
    /// By code; made when the code is first seen.
    requests: [OnceLock<Counter>; CODES],
}

impl CallMetrics {
    fn new(method: Method) -> Self {
        let seconds = histogram!("lakegate_grpc_request_seconds", "method" => method.name());
        Self { method, seconds, requests: [const { OnceLock::new() }; CODES] }
    }

    fn count(&self, code: Code) {
        let Some(place) = self.requests.get(code as usize) else { return };
        let name = self.method.name();
        place
            .get_or_init(|| counter!("lakegate_grpc_requests_total", "method" => name, "code" => code_name(code)))
            .increment(1);
    }
}

/// The handles of all methods.
pub(crate) struct Metrics {
    record: CallMetrics,
    batch: CallMetrics,
    stream: CallMetrics,
    status: CallMetrics,
    health: CallMetrics,
    pub(crate) connections: metrics::Gauge,
    pub(crate) connections_refused: Counter,
}

impl Metrics {
    /// The recorder must be there already: handles made before it go nowhere.
    pub(crate) fn new() -> Self {
        Self {
            record: CallMetrics::new(Method::IngestRecord),
            batch: CallMetrics::new(Method::IngestBatch),
            stream: CallMetrics::new(Method::IngestStream),
            status: CallMetrics::new(Method::GetIngestionStatus),
            health: CallMetrics::new(Method::HealthCheck),
            connections: metrics::gauge!("lakegate_grpc_connections"),
            connections_refused: counter!("lakegate_grpc_connections_refused_total"),
        }
    }

    /// Notes the end of a call.
    pub(crate) fn note(&self, method: Method, began: Instant, code: Code) {
        let call = match method {
            Method::IngestRecord => &self.record,
            Method::IngestBatch => &self.batch,
            Method::IngestStream => &self.stream,
            Method::GetIngestionStatus => &self.status,
            Method::HealthCheck => &self.health,
        };
        call.seconds.record(began.elapsed());
        call.count(code);
    }
}

/// The codes as the gRPC specification writes them.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What ties a request to others: `x-request-id`, else the trace of `traceparent` (W3C Trace Context).
pub(crate) fn correlation_id(headers: &HeaderMap) -> Option<String> {
    let printable =
        |text: &str| text.chars().filter(char::is_ascii_graphic).take(CORRELATION_BYTES_MAX).collect::<String>();
    let given = headers.get("x-request-id").and_then(|value| value.to_str().ok()).map(printable);
    given.filter(|id| !id.is_empty()).or_else(|| {
        let trace = headers.get("traceparent")?.to_str().ok()?.split('-').nth(1)?;
        let right = trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit());
        right.then(|| trace.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use metrics::{CounterFn, Gauge, Key, KeyName, Metadata, Recorder, SharedString, Unit, with_local_recorder};

    use super::*;

    /// Keeps what is counted, as Prometheus would write it.
    #[derive(Default, Clone)]
    struct Counted(Arc<Mutex<Vec<String>>>);

    struct Named(Counted, String);

    impl CounterFn for Named {
        fn increment(&self, value: u64) {
            self.0.0.lock().unwrap().push(format!("{} +{value}", self.1));
        }
        fn absolute(&self, _: u64) {}
    }

    impl Recorder for Counted {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            Counter::from_arc(Arc::new(Named(self.clone(), format!("{}{{{}}}", key.name(), labels.join(",")))))
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let counted = Counted::default();
        with_local_recorder(&counted, || {
            let metrics = Metrics::new();
            for code in [Code::Ok, Code::ResourceExhausted, Code::Ok] {
                metrics.note(Method::IngestBatch, Instant::now(), code);
            }
        });
        let ok = "lakegate_grpc_requests_total{method=IngestBatch,code=OK} +1";
        let exhausted = "lakegate_grpc_requests_total{method=IngestBatch,code=RESOURCE_EXHAUSTED} +1";
        assert_eq!(*counted.0.lock().unwrap(), [ok, exhausted, ok]);
    }

    #[test]
    fn a_request_is_tied_by_its_own_id_or_else_by_its_trace() {
        let mut headers = HeaderMap::new();
        assert_eq!(correlation_id(&headers), None);
        headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
        assert_eq!(correlation_id(&headers).as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
        headers.insert("x-request-id", format!("a b\t{}", "c".repeat(500)).parse().unwrap());
        assert_eq!(correlation_id(&headers).map(|id| id.len()), Some(CORRELATION_BYTES_MAX));
    }
}
