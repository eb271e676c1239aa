//! What a file's columns become is compared with what the same rows become as JSON documents.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int32Array,
    Int64Array, LargeStringArray, ListArray, RecordBatch, StringArray, StringViewArray, StructArray,
    TimestampMillisecondArray, TimestampNanosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field as ArrowField, Int32Type, Int64Type};
use lakegate_model::{
    Column, ColumnSource, ColumnType, Contract, Field, PayloadFormat, ReasonCode, TimeField, TimeNotation, Undeclared,
};

use super::*;
use crate::import::documents::shape_documents;

fn column(name: &str, column_type: ColumnType, path: &[&str], required: bool) -> Column {
    let source = ColumnSource::Path(path.iter().map(|part| (*part).to_owned()).collect());
    Column { name: name.to_owned(), column_type, source, required }
}

fn envelope(name: &str, column_type: ColumnType, field: Field) -> Column {
    Column { name: name.to_owned(), column_type, source: ColumnSource::Envelope(field), required: false }
}

fn contract(columns: Vec<Column>) -> Contract {
    Contract { columns, payload: PayloadFormat::Json, ..Contract::undeclared_default() }
}

fn context() -> RowContext<'static> {
    RowContext {
        tenant: "acme",
        stream: "orders",
        event_type: Some("import"),
        received_us: 1_760_000_000_000_000,
        file: 7,
        first_row: 100,
        payload_bytes_max: 1 << 20,
        origin: RowOrigin::File,
    }
}

fn conform(contract: &Contract, rows: &RecordBatch) -> Conformed {
    let shaper = Arc::new(Shaper::new(Arc::new(contract.clone())));
    Conformer::new(&shaper, &rows.schema(), Names::Payload).unwrap().conform(rows, &context()).unwrap()
}

/// The same rows as JSON documents, through the reader of payloads.
fn as_documents(contract: &Contract, rows: &RecordBatch) -> Conformed {
    let (mut body, mut spans) = (Vec::new(), Vec::new());
    for row in 0..rows.num_rows() {
        let start = u32::try_from(body.len()).unwrap();
        body.extend(json::row_text(rows, row, usize::MAX, &JsonOptions::default()));
        spans.push(start..u32::try_from(body.len()).unwrap());
    }
    shape_documents(&Shaper::new(Arc::new(contract.clone())), &body, &spans, &context()).unwrap()
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn events() -> RecordBatch {
    let customer = StructArray::from(vec![
        (
            Arc::new(ArrowField::new("id", DataType::Int64, true)),
            Arc::new(Int64Array::from(vec![Some(1), Some(2), None, Some(4)])) as ArrayRef,
        ),
        (
            Arc::new(ArrowField::new("name", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec![Some("Ann"), Some("B\"ob\n"), Some("é"), None])) as ArrayRef,
        ),
    ]);
    let lines = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(1), Some(2)]),
        None,
        Some(vec![]),
        Some(vec![Some(3)]),
    ]);
    let kind: DictionaryArray<Int32Type> = vec!["a", "b", "a", "b"].into_iter().collect();
    batch(vec![
        ("orderId", Arc::new(LargeStringArray::from(vec!["o1", "o2", "o3", "o4"]))),
        ("kind", Arc::new(kind)),
        ("count", Arc::new(UInt64Array::from(vec![Some(1), Some(7), None, Some(9)]))),
        ("small", Arc::new(Int64Array::from(vec![Some(1), None, Some(-3), Some(2_147_483_647)]))),
        ("ratio", Arc::new(Float64Array::from(vec![Some(0.5), Some(-1e300), None, Some(3.0)]))),
        ("paid", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None, Some(true)]))),
        (
            "price",
            Arc::new(
                Decimal128Array::from(vec![Some(1234), Some(-5), None, Some(0)])
                    .with_precision_and_scale(8, 2)
                    .unwrap(),
            ),
        ),
        ("day", Arc::new(Date32Array::from(vec![Some(0), Some(20_000), None, Some(-1)]))),
        ("at", Arc::new(TimestampMillisecondArray::from(vec![Some(0), Some(1_451_608_204_910), None, Some(-1)]))),
        (
            "exact",
            Arc::new(
                TimestampNanosecondArray::from(vec![Some(1), Some(-1), None, Some(1_451_608_204_910_000_123)])
                    .with_timezone("UTC"),
            ),
        ),
        ("customer", Arc::new(customer)),
        ("lines", Arc::new(lines)),
        ("note", Arc::new(StringViewArray::from(vec![Some("x"), None, Some("{\"not\": parsed"), Some("y")]))),
    ])
}

fn event_contract() -> Contract {
    contract(vec![
        envelope("tenant_id", ColumnType::String, Field::TenantId),
        envelope("endpoint_id", ColumnType::String, Field::EndpointId),
        envelope("event_id", ColumnType::String, Field::EventId),
        envelope("event_type", ColumnType::String, Field::EventType),
        envelope("event_time", ColumnType::Timestamptz, Field::EventTime),
        envelope("received_at", ColumnType::Timestamptz, Field::ReceivedAt),
        envelope("version", ColumnType::Long, Field::Version),
        envelope("time_source", ColumnType::String, Field::TimeSource),
        envelope("attributes", ColumnType::StringMap, Field::Attributes),
        column("order_id", ColumnType::String, &["orderId"], true),
        column("kind", ColumnType::String, &["kind"], false),
        column("count", ColumnType::Long, &["count"], false),
        column("small", ColumnType::Int, &["small"], false),
        column("ratio", ColumnType::Double, &["ratio"], false),
        column("paid", ColumnType::Boolean, &["paid"], false),
        column("price", ColumnType::Decimal { precision: 12, scale: 4 }, &["price"], false),
        column("day", ColumnType::Date, &["day"], false),
        column("at", ColumnType::Timestamp, &["at"], false),
        column("exact", ColumnType::Timestamptz, &["exact"], false),
        column("customer_id", ColumnType::Long, &["customer", "id"], false),
        column("customer", ColumnType::Json, &["customer"], false),
        column("lines", ColumnType::Json, &["lines"], false),
        column("nowhere", ColumnType::Double, &["nowhere"], false),
    ])
}

#[test]
fn columns_become_what_the_same_rows_become_as_documents() {
    for undeclared in [Undeclared::Ignore, Undeclared::Keep] {
        for time in [None, Some("at"), Some("exact")] {
            let mut contract = event_contract();
            contract.undeclared = undeclared;
            contract.add_policy_columns();
            let field = |name: &str| TimeField {
                path: vec![name.to_owned()],
                notation: TimeNotation::default(),
                or_paths: Vec::new(),
            };
            contract.time = time.map(field);
            let (columns, documents) = (conform(&contract, &events()), as_documents(&contract, &events()));
            assert_eq!(columns.bad, documents.bad);
            assert_eq!(columns.rows, documents.rows, "{undeclared:?} {time:?}");
        }
    }
}

#[test]
fn rows_of_a_stream_that_keeps_payloads_are_kept_as_the_documents_that_they_would_have_been() {
    let contract = Contract::undeclared_default();
    let (columns, documents) = (conform(&contract, &events()), as_documents(&contract, &events()));
    assert_eq!(columns.rows, documents.rows);
    assert!(columns.bad.is_empty());
}

#[test]
fn a_row_that_breaks_the_contract_is_taken_out_with_the_reason_that_its_document_gets() {
    let rows = batch(vec![
        ("id", Arc::new(Int64Array::from(vec![Some(1), None, Some(3), Some(4), Some(5), Some(6)]))),
        ("n", Arc::new(Float64Array::from(vec![1.0, 2.0, 2.5, 4.0, 1e12, 6.0]))),
        ("u", Arc::new(UInt64Array::from(vec![1, 2, 3, u64::MAX, 5, 6]))),
        ("f", Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0, 4.0, 5.0, 1e39]))),
    ]);
    let contract = contract(vec![
        column("id", ColumnType::Long, &["id"], true),
        column("n", ColumnType::Int, &["n"], false),
        column("u", ColumnType::Long, &["u"], false),
        column("f", ColumnType::Float, &["f"], false),
    ]);
    let (columns, documents) = (conform(&contract, &rows), as_documents(&contract, &rows));
    assert_eq!(columns.rows, documents.rows);
    let fields = |bad: &Refused| bad.iter().map(|(row, r)| (*row, r.field.clone().unwrap())).collect::<Vec<_>>();
    assert_eq!(fields(&columns.bad), fields(&documents.bad));
    assert_eq!(
        fields(&columns.bad),
        [(1, "id"), (2, "n"), (3, "u"), (4, "n"), (5, "f")].map(|(r, f)| (r, f.to_owned()))
    );
}

#[test]
fn text_is_read_as_the_type_that_the_contract_wants() {
    let text = |values: [&str; 3]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let rows = batch(vec![
        ("n", text(["1", "-7", "x"])),
        ("d", text(["1.5", "1e3", "NaN"])),
        ("b", text(["true", "0", "maybe"])),
        ("t", text(["2016-01-01T00:30:04.91Z", "1451608204910", "soon"])),
        ("day", text(["2000-02-29", "1970-01-01", "2023-02-29"])),
        ("p", text(["12.34", "-0.1", "1.234"])),
        ("j", text(["{\"a\":1}", "plain", "[1"])),
    ]);
    let mut types = contract(vec![
        column("n", ColumnType::Long, &["n"], false),
        column("d", ColumnType::Double, &["d"], false),
        column("b", ColumnType::Boolean, &["b"], false),
        column("t", ColumnType::Timestamptz, &["t"], false),
        column("day", ColumnType::Date, &["day"], false),
        column("p", ColumnType::Decimal { precision: 6, scale: 2 }, &["p"], false),
        column("j", ColumnType::Json, &["j"], false),
    ]);
    let done = conform(&types, &rows);
    assert_eq!(done.bad.keys().copied().collect::<Vec<_>>(), [2]);
    assert_eq!(done.bad[&2].field.as_deref(), Some("n"));
    let found = &done.rows;
    assert_eq!(found.column(0).as_primitive::<Int64Type>().values(), &[1, -7]);
    // By GNU date: `date -u -d 2016-01-01T00:30:04.91Z +%s%6N`.
    let times = found.column(3).as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
    assert_eq!(times.values(), &[1_451_608_204_910_000, 1_451_608_204_910_000]);
    assert_eq!(found.column(5).as_primitive::<arrow::datatypes::Decimal128Type>().values(), &[1234, -10]);
    assert_eq!(found.column(6).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("{\"a\":1}"), Some("\"plain\"")]);
    for keep in 1..types.columns.len() {
        let mut one = types.clone();
        one.columns = vec![types.columns[keep].clone()];
        let bad = conform(&one, &rows).bad;
        let expected: Vec<usize> = if types.columns[keep].name == "j" { vec![] } else { vec![2] };
        assert_eq!(bad.keys().copied().collect::<Vec<_>>(), expected, "{}", types.columns[keep].name);
    }
    types.columns.clear();
}

#[test]
fn a_file_whose_columns_cannot_fit_is_refused_before_its_first_row() {
    let rows = events();
    let refused = |columns: Vec<Column>| {
        let shaper = Arc::new(Shaper::new(Arc::new(contract(columns))));
        Conformer::new(&shaper, &rows.schema(), Names::Payload).unwrap_err().0
    };
    let message = refused(vec![column("lines", ColumnType::Long, &["lines"], false)]);
    assert!(message.contains("\"lines\" is List(") && message.contains("long in the stream's contract"), "{message}");
    let message = refused(vec![column("missing", ColumnType::Long, &["missing"], true)]);
    assert!(message.contains("requires the column \"missing\"") && message.contains("orderId"), "{message}");
    let message = refused(vec![column("other", ColumnType::Long, &["other"], false)]);
    assert!(message.contains("none of the stream's columns"), "{message}");
    let mut strict = contract(vec![column("kind", ColumnType::String, &["kind"], false)]);
    strict.undeclared = Undeclared::Reject;
    let message =
        Conformer::new(&Arc::new(Shaper::new(Arc::new(strict))), &rows.schema(), Names::Payload).unwrap_err().0;
    assert!(message.contains("does not declare") && message.contains("customer"), "{message}");
}

#[test]
fn a_file_may_bring_ids_types_and_times_but_not_whose_records_they_are() {
    let rows = batch(vec![
        ("tenant_id", Arc::new(StringArray::from(vec!["evil", "evil"]))),
        ("event_id", Arc::new(StringArray::from(vec![Some("e1"), None]))),
        ("event_type", Arc::new(StringArray::from(vec![None, Some("own")]))),
        ("event_time", Arc::new(Int64Array::from(vec![Some(1_451_608_204), None]))),
    ]);
    let mut contract = event_contract();
    contract.columns.truncate(8);
    let found = conform(&contract, &rows).rows;
    let text = |name: &str| found.column_by_name(name).unwrap().as_string::<i32>().clone();
    assert_eq!(text("tenant_id").iter().collect::<Vec<_>>(), [Some("acme"); 2]);
    assert_eq!(text("event_id").value(0), "e1");
    assert_eq!(text("event_id").value(1), row_id(7, 101).to_string());
    assert_eq!(text("event_type").iter().collect::<Vec<_>>(), [Some("import"), Some("own")]);
    assert_eq!(text("time_source").iter().collect::<Vec<_>>(), [Some("envelope"), Some("received")]);
    let times = found.column_by_name("event_time").unwrap();
    let times = times.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
    assert_eq!(times.values(), &[1_451_608_204_000_000, context().received_us]);
}

#[test]
fn a_rows_id_is_the_same_whenever_the_file_is_read_and_differs_between_rows_and_files() {
    assert_eq!(row_id(1, 2), row_id(1, 2));
    assert_ne!(row_id(1, 2), row_id(1, 3));
    assert_ne!(row_id(1, 2), row_id(2, 2));
    assert_eq!((row_id(1, 2).get_version_num(), row_id(1, 2).get_variant()), (8, uuid::Variant::RFC4122));
}

#[test]
fn a_time_outside_the_years_1_to_9999_is_refused() {
    let rows = batch(vec![("t", Arc::new(TimestampMillisecondArray::from(vec![0, i64::MAX, 253_402_300_800_000])))]);
    let contract = contract(vec![column("t", ColumnType::Timestamptz, &["t"], false)]);
    let bad = conform(&contract, &rows).bad;
    assert_eq!(
        bad.iter().map(|(row, r)| (*row, r.code)).collect::<Vec<_>>(),
        [(1, ReasonCode::OutOfRange), (2, ReasonCode::OutOfRange)]
    );
    let whole = batch(vec![("t", Arc::new(Int32Array::from(vec![1, 2])))]);
    assert!(conform(&contract, &whole).bad.is_empty());
}
