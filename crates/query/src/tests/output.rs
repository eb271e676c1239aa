//! Results as bytes.

use datafusion::arrow::ipc::reader::StreamReader;
use futures::TryStreamExt;

use super::*;
use crate::SqlRequest;
use crate::output::OutputFormat;

const VALUES: &str = "SELECT * FROM (VALUES \
    (1, 'plain', 1.5, TIMESTAMP '2025-06-01 12:00:00', DATE '2025-06-01', CAST(12.50 AS DECIMAL(38, 2)), true), \
    (9007199254740993, 'a \"b\", c', CAST('NaN' AS DOUBLE), NULL, NULL, NULL, NULL)) \
    AS t(id, name, ratio, at, day, price, ok)";

async fn answer(sql: &str, accept: Option<&str>) -> (String, Vec<u8>) {
    let house = House::new();
    let body = serde_json::json!({ "sql": sql }).to_string();
    let response = house.engine.answer(body.as_bytes(), accept, None).await.unwrap();
    let bytes: Vec<bytes::Bytes> = response.body.try_collect().await.unwrap();
    (response.content_type.to_owned(), bytes.concat())
}

#[tokio::test]
async fn json_is_one_array_of_objects_with_every_digit() {
    let (kind, bytes) = answer(VALUES, None).await;
    assert_eq!(kind, "application/json");
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(
        text,
        "[\n\
         {\"id\":1,\"name\":\"plain\",\"ratio\":1.5,\"at\":\"2025-06-01T12:00:00\",\"day\":\"2025-06-01\",\"price\":12.50,\"ok\":true},\n\
         {\"id\":9007199254740993,\"name\":\"a \\\"b\\\", c\",\"ratio\":null,\"at\":null,\"day\":null,\"price\":null,\"ok\":null}\n\
         ]\n"
    );
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
}

#[tokio::test]
async fn a_result_without_rows_is_well_formed_in_every_format() {
    let none = format!("{VALUES} WHERE id < 0");
    assert_eq!(answer(&none, Some("application/json")).await.1, b"[]\n");
    assert_eq!(answer(&none, Some("application/x-ndjson")).await.1, b"");
    assert_eq!(answer(&none, Some("text/csv")).await.1, b"id,name,ratio,at,day,price,ok\n");
    assert!(String::from_utf8(answer(&none, Some("text/plain")).await.1).unwrap().ends_with("(0 rows)\n"));
    let arrow = answer(&none, Some("application/vnd.apache.arrow.stream")).await.1;
    let reader = StreamReader::try_new(arrow.as_slice(), None).unwrap();
    assert_eq!(reader.schema().fields().len(), 7);
    assert_eq!(reader.count(), 0);
}

#[tokio::test]
async fn many_batches_are_one_document() {
    let sql = "SELECT value FROM generate_series(1, 30000)";
    let json: Vec<serde_json::Value> = serde_json::from_slice(&answer(sql, None).await.1).unwrap();
    assert_eq!(json.len(), 30_000);
    let csv = String::from_utf8(answer(sql, Some("text/csv")).await.1).unwrap();
    assert_eq!((csv.lines().count(), csv.lines().next()), (30_001, Some("value")));
    let lines = String::from_utf8(answer(sql, Some("application/x-ndjson")).await.1).unwrap();
    assert_eq!(lines.lines().count(), 30_000);
    let table = String::from_utf8(answer(sql, Some("text/plain")).await.1).unwrap();
    assert_eq!(table.lines().count(), 30_005);
    assert!(table.ends_with("(30000 rows)\n"));
    let arrow = answer(sql, Some("application/vnd.apache.arrow.stream")).await.1;
    let rows: usize = StreamReader::try_new(arrow.as_slice(), None).unwrap().map(|b| b.unwrap().num_rows()).sum();
    assert_eq!(rows, 30_000);
}

#[tokio::test]
async fn a_table_keeps_control_characters_from_the_terminal() {
    let (_, bytes) = answer("SELECT chr(27) || '[31mred' AS name, 1 AS n", Some("text/plain")).await;
    let text = String::from_utf8(bytes).unwrap();
    let expected = [
        "+---------------+---+",
        "| name          | n |",
        "+---------------+---+",
        "| \\u{1b}[31mred | 1 |",
        "+---------------+---+",
        "(1 row)\n",
    ];
    assert_eq!(text, expected.join("\n"));
}

#[test]
fn the_accept_header_chooses_the_format() {
    let format = OutputFormat::for_accept;
    assert_eq!(format(None), Some(OutputFormat::Json));
    assert_eq!(format(Some("*/*")), Some(OutputFormat::Json));
    assert_eq!(format(Some("text/csv;q=0.5, application/vnd.apache.arrow.stream")), Some(OutputFormat::Arrow));
    assert_eq!(format(Some("image/png, text/csv; q=0.1")), Some(OutputFormat::Csv));
    assert_eq!(format(Some("image/png")), None);
}

#[tokio::test]
async fn a_request_that_is_not_of_the_form_says_what_is() {
    let house = House::new();
    for body in [
        "",
        "[]",
        "{}",
        r#"{"sql": 1}"#,
        r#"{"sql": "SELECT 1", "limits": 3}"#,
        r#"{"sql": "SELECT 1", "timeout": "soon"}"#,
    ] {
        let error = house.engine.answer(body.as_bytes(), None, None).await.unwrap_err();
        assert!(matches!(error, QueryError::Syntax(_)), "{body}: {error}");
    }
    let error = house.engine.answer(br#"{"sql": "SELECT 1"}"#, Some("image/png"), None).await.unwrap_err();
    assert_eq!(error.code(), "not_acceptable");
}

#[tokio::test]
async fn limit_and_timeout_of_a_request_lower_those_of_the_server() {
    let house = House::new();
    let body = br#"{"sql": "SELECT $1 AS a FROM generate_series(1, 1000000000000)", "parameters": ["x"], "limit": 2, "timeout": "1h"}"#;
    let request = SqlRequest::read(body).unwrap().into_query(&house.engine, None).unwrap();
    assert_eq!(request.limits.unwrap().timeout, Duration::from_secs(3600));
    assert_eq!(lines(&house.request(request).await.unwrap()), ["x", "x"]);
    let body = br#"{"sql": "SELECT count(*) FROM generate_series(1, 1000000000000)", "timeout": "50ms"}"#;
    let error = house.engine.answer(body, None, None).await.unwrap_err();
    assert_eq!(error, QueryError::Timeout { after: Duration::from_millis(50) });
}
