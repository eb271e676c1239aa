//! The same rows in columns as in payloads: one way must give what the other does, before and after a restart.

use arrow::array::{AsArray, Int64Array, StringArray};
use arrow::datatypes::Int64Type;
use arrow::ipc::writer::StreamWriter;
use lakegate_model::{StreamName, TableName, TenantId};

use super::*;
use crate::test_gate::{Ground, Opened};
use crate::{ArrowRows, Client, FollowFrom, Source, Submission, SubmissionOutcome, SubmitError, Wire};

fn contract() -> lakegate_model::Contract {
    let text = r#"{"columns":[{"name":"n","column_type":"long","source":{"path":["n"]},"required":true},
        {"name":"t","column_type":"string","source":{"path":["t"]},"required":false},
        {"name":"id","column_type":"string","source":{"envelope":"event_id"},"required":true},
        {"name":"via","column_type":"string","source":{"envelope":"source"},"required":true}],
        "payload":"json","event_key":["n"],"duplicate_window_ms":3600000,"time":null,"malformed":"skip",
        "undeclared":"ignore","table":"{tenant}.{endpoint}","partitions":[],"sort":[]}"#;
    serde_json::from_str(text).unwrap()
}

fn ipc(batches: &[RecordBatch]) -> Bytes {
    let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    writer.into_inner().unwrap().into()
}

fn numbers(numbers: &[Option<i64>]) -> RecordBatch {
    let texts: StringArray = numbers.iter().map(|n| n.map(|n| format!("t{n}"))).collect();
    let n = Int64Array::from(numbers.to_vec());
    RecordBatch::try_from_iter([("n", Arc::new(n) as ArrayRef), ("t", Arc::new(texts))]).unwrap()
}

fn rows(stream: &str) -> ArrowRows {
    let (stream, batch_id) = (StreamName::new(stream).unwrap(), String::new());
    ArrowRows { tenant: None, stream, atomic: false, batch_id, by_name: false, declares: true }
}

async fn send(opened: &Opened, rows: ArrowRows, body: Bytes) -> Result<SubmissionOutcome, SubmitError> {
    let submission = Submission {
        principal: None,
        source: Source::Flight,
        wire: Wire::Arrow(rows),
        body,
        correlation_id: None,
        client: Client::default(),
        in_order: true,
    };
    opened.gate.submit(submission).await
}

async fn followed(opened: &Opened, stream: &'static str, frames: usize) -> Vec<i64> {
    let mut follower = opened.gate.follow(FollowFrom::Earliest).unwrap();
    let mut found = Vec::new();
    for _ in 0..frames {
        let delivery = follower.next(move |key| key.stream.as_str() == stream).await.unwrap();
        for rows in &delivery.streams {
            found.extend_from_slice(rows.batch.column_by_name("n").unwrap().as_primitive::<Int64Type>().values());
        }
    }
    found
}

#[tokio::test]
async fn columns_are_stored_refused_and_taken_for_duplicates_as_payloads_are() {
    let ground = Ground::new(&[("a", contract())]);
    let opened = ground.open().await;
    let body = ipc(&[numbers(&[Some(1), None, Some(2)]), numbers(&[Some(1), Some(3)])]);
    let outcome = send(&opened, rows("a"), body).await.unwrap();
    assert_eq!((outcome.accepted, outcome.duplicates, outcome.dead_lettered), (3, 1, 1));
    assert_eq!(outcome.duplicate_indexes, [3]);
    assert_eq!((outcome.errors[0].index, outcome.errors[0].refusal.field.as_deref()), (1, Some("n")));
    // A payload with the key of a row, and a row with the key of a payload.
    let again = opened.send("a", &[r#"{"n":2}"#, r#"{"n":4}"#]).await.unwrap();
    assert_eq!((again.accepted, again.duplicate_indexes), (1, vec![0]));
    let late = send(&opened, rows("a"), ipc(&[numbers(&[Some(4), Some(5)])])).await.unwrap();
    assert_eq!((late.accepted, late.duplicates), (1, 1));
    assert_eq!(followed(&opened, "a", 3).await, [1, 2, 3, 4, 5]);
    opened.close();

    let opened = ground.open().await;
    assert_eq!(followed(&opened, "a", 3).await, [1, 2, 3, 4, 5]);
    let same = send(&opened, rows("a"), ipc(&[numbers(&[Some(5), Some(6)])])).await.unwrap();
    assert_eq!((same.accepted, same.duplicates), (1, 1));
    let balance = opened.gate.balance();
    let tally = balance.iter().find(|(key, _)| key.stream.as_str() == "a").unwrap().1;
    assert_eq!((tally.received, tally.accepted, tally.duplicate, tally.dead_lettered), (11, 6, 4, 1));
    opened.close();
}

#[tokio::test]
async fn all_or_nothing_names_the_row_the_column_and_the_reason() {
    let ground = Ground::new(&[("a", contract())]);
    let opened = ground.open().await;
    let atomic = ArrowRows { atomic: true, ..rows("a") };
    let error = send(&opened, atomic, ipc(&[numbers(&[Some(1), None])])).await.unwrap_err();
    let SubmitError::Invalid { field, message, errors, .. } = error else { panic!("{error}") };
    assert_eq!((field.as_str(), errors.len()), ("records[1]", 1));
    assert!(message.contains("n is required"), "{message}");
    assert_eq!(send(&opened, rows("a"), ipc(&[numbers(&[Some(1)])])).await.unwrap().accepted, 1);
    opened.close();
}

#[tokio::test]
async fn a_stream_that_nobody_declared_gets_the_columns_of_its_first_rows() {
    let ground = Ground::new(&[]);
    let opened = ground.open().await;
    assert_eq!(send(&opened, rows("new"), ipc(&[numbers(&[Some(1)])])).await.unwrap().accepted, 1);
    let tenant = TenantId::new("default").unwrap();
    let table = TableName::new("default", "new").unwrap();
    let (key, contract) = opened.gate.stream_of_table(&tenant, &table).await.unwrap();
    assert_eq!((key.stream.as_str(), contract.columns.len()), ("new", 2));
    opened.close();
}

#[tokio::test]
async fn s31_bytes_that_are_no_arrow_are_refused_with_the_place() {
    let ground = Ground::new(&[("a", contract())]);
    let opened = ground.open().await;
    let whole = ipc(&[numbers(&[Some(1), Some(2)])]);
    for body in [Bytes::from_static(b"no arrow at all"), whole.slice(..whole.len() / 2), Bytes::new()] {
        let error = send(&opened, rows("a"), body).await.unwrap_err();
        assert!(error.to_string().contains("Arrow IPC"), "{error}");
    }
    opened.close();
}

#[tokio::test]
async fn a_table_is_made_written_to_dropped_and_made_again_and_old_rows_stay_away() {
    let ground = Ground::new(&[("a", contract())]);
    let (tenant, table) = (TenantId::new("default").unwrap(), TableName::new("bronze", "t").unwrap());
    let columns = || crate::OwnColumns::Schema(numbers(&[]).schema()).contract().unwrap();
    let opened = ground.open().await;
    let key = opened.gate.create_table(&tenant, &table, columns()).await.unwrap();
    assert!(opened.gate.create_table(&tenant, &table, columns()).await.is_err());
    let stream = key.stream.as_str().to_owned();
    assert_eq!(send(&opened, rows(&stream), ipc(&[numbers(&[Some(1)])])).await.unwrap().accepted, 1);
    assert!(opened.gate.drop_table(&tenant, &TableName::new("default", "a").unwrap()).await.is_err());
    opened.gate.drop_table(&tenant, &table).await.unwrap();
    assert!(opened.gate.stream_of_table(&tenant, &table).await.is_err());
    opened.close();

    let opened = ground.open().await;
    assert!(opened.gate.stream_of_table(&tenant, &table).await.is_err());
    opened.gate.create_table(&tenant, &table, columns()).await.unwrap();
    assert_eq!(send(&opened, rows(&stream), ipc(&[numbers(&[Some(7)])])).await.unwrap().accepted, 1);
    assert!(opened.gate.flush_all().await.is_empty());
    opened.close();
    let opened = ground.open().await;
    let (_, contract) = opened.gate.stream_of_table(&tenant, &table).await.unwrap();
    assert_eq!(contract.columns.len(), 2);
    opened.close();
}

#[test]
fn columns_that_share_a_request_are_not_copied_off_it_and_a_small_part_of_one_is() {
    let shared = arrow::buffer::Buffer::from(vec![0u8; 16_000]);
    let part = |first, count| {
        let values = arrow::buffer::ScalarBuffer::new(shared.clone(), first, count);
        Arc::new(Int64Array::new(values, None)) as ArrayRef
    };
    let halves = RecordBatch::try_from_iter([("a", part(0, 1000)), ("b", part(1000, 1000))]).unwrap();
    assert!(holds_little_else(&halves));
    let little = RecordBatch::try_from_iter([("a", part(0, 100)), ("b", part(1000, 100))]).unwrap();
    assert!(!holds_little_else(&little));
    assert_eq!(own(little.column(0)).get_buffer_memory_size(), 832);
}
