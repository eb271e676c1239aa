//! What a user of contracts may rely on, through a gate: checks, times, shipped contracts, cleaning, growth.

use arrow::json::LineDelimitedWriter;
use lakegate_model::{Contract, ReasonCode, Shipped, TableName};
use serde_json::{Value, json};

use crate::follow::FollowFrom;
use crate::test_gate::{Ground, Opened};

fn contract(columns: Value, others: Value) -> Contract {
    let columns: Vec<Value> = columns.as_array().unwrap().clone();
    let mut rules = serde_json::Map::new();
    let column = |c: Value| {
        let name = c["name"].as_str().unwrap().to_owned();
        if !c["rules"].is_null() {
            rules.insert(name.clone(), c["rules"].clone());
        }
        let source = if c["source"].is_null() { json!({ "path": [name] }) } else { c["source"].clone() };
        json!({ "name": name, "column_type": c["type"], "source": source, "required": c["required"] == true })
    };
    let columns: Vec<Value> = columns.into_iter().map(column).collect();
    let mut whole = json!({
        "columns": columns, "payload": "json", "event_key": [], "duplicate_window_ms": 3_600_000, "time": null,
        "malformed": "reject", "undeclared": "ignore", "table": "{tenant}.{endpoint}", "partitions": [], "sort": [],
        "rules": rules,
    });
    for (name, value) in others.as_object().unwrap() {
        whole[name] = value.clone();
    }
    let contract: Contract = serde_json::from_value(whole).unwrap();
    contract.check().unwrap();
    contract
}

/// All rows of a stream that the log has, as JSON, with their tables.
async fn rows(opened: &Opened, stream: &'static str) -> Vec<(String, Value)> {
    let mut follower = opened.gate.follow(FollowFrom::Earliest).unwrap();
    let end = opened.log.durable_offset();
    let mut found = Vec::new();
    while follower.position() < end {
        let next = follower.next(move |key| key.stream.as_str() == stream);
        let Ok(delivery) = tokio::time::timeout(std::time::Duration::from_secs(1), next).await else { break };
        for rows in delivery.unwrap().streams {
            let mut writer = LineDelimitedWriter::new(Vec::new());
            writer.write(&rows.batch).unwrap();
            writer.finish().unwrap();
            let text = String::from_utf8(writer.into_inner()).unwrap();
            found.extend(text.lines().map(|line| (rows.table.to_string(), serde_json::from_str(line).unwrap())));
        }
    }
    found
}

fn codes(outcome: &crate::SubmissionOutcome) -> Vec<(u32, ReasonCode, String)> {
    let one = |e: &lakegate_model::RecordError| (e.index, e.refusal.code, e.refusal.field.clone().unwrap_or_default());
    outcome.errors.iter().map(one).collect()
}

#[tokio::test]
async fn f52_a_poisoned_record_is_refused_with_its_field_and_its_neighbours_go_on() {
    let columns = json!([
        { "name": "id", "type": "string", "required": true, "rules": { "checks": { "max_length": 8 } } },
        { "name": "kind", "type": "string", "rules": { "checks": { "values": ["a", "b"] } } },
        { "name": "n", "type": "long", "rules": { "checks": { "minimum": 1, "maximum": 9 } } },
        { "name": "code", "type": "string", "rules": { "checks": { "pattern": "^[A-Z]{3}$" } } },
    ]);
    let ground = Ground::new(&[("s", contract(columns, json!({ "event_types": ["", "x"] })))]);
    let opened = ground.open().await;
    let outcome = opened
        .send(
            "s",
            &[
                r#"{"id":"1","kind":"a","n":9,"code":"EUR"}"#,
                r#"{"kind":"a"}"#,
                r#"{"id":"2","kind":"c"}"#,
                r#"{"id":"3","n":10}"#,
                r#"{"id":"4","code":"eur"}"#,
                r#"{"id":"123456789"}"#,
                r#"{"id":5}"#,
                r#"{"id":"6","n":1e400}"#,
                "{\"id\":\"\u{0}\"}",
                r#"{"id":"7""#,
                r#"{"id":"8"}"#,
            ],
        )
        .await
        .unwrap();
    assert_eq!((outcome.accepted, outcome.rejected), (2, 9), "{outcome:?}");
    use ReasonCode as C;
    let expected = [
        (1, C::MissingField, "id"),
        (2, C::NotAllowed, "kind"),
        (3, C::OutOfRange, "n"),
        (4, C::PatternMismatch, "code"),
        (5, C::WrongLength, "id"),
        (6, C::WrongType, "id"),
        (7, C::WrongType, "n"),
        (8, C::MalformedPayload, "payload"),
        (9, C::MalformedPayload, "payload"),
    ];
    let found = codes(&outcome);
    let found: Vec<_> = found.iter().map(|(index, code, field)| (*index, *code, field.as_str())).collect();
    assert_eq!(found, expected);
    assert!(outcome.errors[1].refusal.message.contains(r#"must be one of "a", "b"; found "c""#));
    opened.close();
}

#[tokio::test]
async fn s32_hostile_json_is_answered_and_bounded() {
    let ground = Ground::new(&[("s", contract(json!([{ "name": "a", "type": "json" }]), json!({})))]);
    let opened = ground.open().await;
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    let keys: String = (0..20_000).map(|n| format!("\"k{n}\":0,")).collect();
    let outcome = opened
        .send(
            "s",
            &[
                &format!("{{\"a\":{deep}}}"),
                &format!("{{{keys}\"a\":1}}"),
                r#"{"a":1,"a":2}"#,
                "\u{feff}{\"a\":1}",
                r#"{"a":"\ud800"}"#,
                &format!("{{\"a\":{}}}", "9".repeat(100_000)),
            ],
        )
        .await
        .unwrap();
    let found = codes(&outcome);
    assert_eq!(found.first().map(|(index, code, _)| (*index, *code)), Some((0, ReasonCode::TooDeep)));
    assert!(found.iter().any(|(index, code, _)| (*index, *code) == (3, ReasonCode::MalformedPayload)));
    let rows = rows(&opened, "s").await;
    assert_eq!(rows[1].1["a"], "2", "of a key that comes twice the last counts");
    opened.close();
}

#[tokio::test]
async fn a_time_too_far_from_now_is_clamped_or_refused_and_counted() {
    let time = json!({ "path": ["t"], "format": ["epoch_ms", "date_time_space"], "zone": "+01:00" });
    let columns = json!([
        { "name": "t", "type": "timestamptz", "source": { "envelope": "event_time" } },
        { "name": "from", "type": "string", "source": { "envelope": "time_source" } },
    ]);
    let clock = |skew: &str| json!({ "max_past_ms": null, "max_future_ms": 60_000, "skew": skew });
    let of = |skew| contract(columns.clone(), json!({ "time": time, "clock": clock(skew) }));
    let ground = Ground::new(&[("clamp", of("clamp")), ("refuse", of("reject")), ("take", of("accept"))]);
    let opened = ground.open().await;
    let payloads = [r#"{"t":"2024-12-01 10:00:00"}"#, r#"{"t":4102444800000}"#, "{}"];
    for stream in ["clamp", "take"] {
        assert_eq!(opened.send(stream, &payloads).await.unwrap().accepted, 3);
    }
    let refused = opened.send("refuse", &payloads).await.unwrap();
    assert_eq!(codes(&refused), [(1, ReasonCode::ClockSkew, "event_time".to_owned())]);
    let sources =
        |rows: Vec<(String, Value)>| -> Vec<Value> { rows.into_iter().map(|row| row.1["from"].clone()).collect() };
    assert_eq!(sources(rows(&opened, "clamp").await), ["payload", "clamped", "received"]);
    let taken = rows(&opened, "take").await;
    assert_eq!(taken[0].1["t"], "2024-12-01T09:00:00Z");
    assert_eq!(taken[1].1["t"], "2100-01-01T00:00:00Z");
    let status = opened.gate.status(None, None);
    let skewed: Vec<_> = status.streams.iter().map(|s| (s.key.stream.as_str(), s.clock_skewed)).collect();
    assert_eq!(skewed, [("clamp", 1), ("refuse", 0), ("take", 1)]);
    opened.close();
}

fn shipped() -> Ground {
    let all = Shipped::ALL.map(|shipped| (shipped.stream(), shipped.contract()));
    Ground::new(&all)
}

const CART: &str = r#"{"eventId":"e1","eventType":"cart_created","timestamp":"2025-06-12T23:59:58.997Z","sessionId":"s",
    "storeId":"st","data":{"items":[{"name":"<script>x</script>","price":1.50}]},
    "metadata":{"userAgent":"curl","extra":1},"more":true}"#;

#[tokio::test]
async fn cart_events_are_checked_cleaned_counted_and_stored_once() {
    let ground = shipped();
    let opened = ground.open().await;
    let wrong_type = CART.replace("cart_created", "cart_stolen");
    let no_session = CART.replace("sessionId", "session");
    let no_object = CART.replace(r#"{"userAgent":"curl","extra":1}"#, "7");
    let list = CART.replace(r#"{"items""#, r#"[{"items""#).replace("1.50}]}", "1.50}]}]");
    let outcome = opened.send("events", &[CART, CART, &wrong_type, &no_session, &no_object, &list]).await.unwrap();
    assert_eq!((outcome.accepted, outcome.duplicates, outcome.rejected), (1, 1, 4), "{:?}", outcome.errors);
    let fields: Vec<String> = codes(&outcome).into_iter().map(|(_, _, field)| field).collect();
    assert_eq!(fields, ["event_type", "session_id", "metadata", "data"]);
    let found = rows(&opened, "events").await;
    assert_eq!(found.len(), 1);
    let (table, row) = &found[0];
    assert_eq!(table, "default.events");
    assert_eq!(row["data"], r#"{"items":[{"name":"&lt;script&gt;x&lt;/script&gt;","price":1.50}]}"#);
    assert_eq!(row["_undeclared"], r#"{"metadata.extra":1,"more":true}"#);
    assert_eq!((&row["timestamp"], &row["source"]), (&json!("2025-06-12T23:59:58.997Z"), &json!("rest")));
    let status = opened.gate.status(None, None);
    assert_eq!(status.streams[0].sanitised.get("data"), Some(&2), "of what came, stored or not");
    opened.close();
}

#[tokio::test]
async fn documents_go_into_a_table_for_each_event_type_and_come_back_after_a_restart() {
    let ground = shipped();
    let opened = ground.open().await;
    let login = r#"{"event_type":"Login","timestamp":"2025-06-12T23:59:58.997Z","fields":{"memberCode":"m1","platform":"web"}}"#;
    let error = r#"{"event_type":"API Error","@timestamp":"2025-06-12T23:59:58Z","memberCode":"m1","code":500}"#;
    let plain = r#"{"event_type":"Login","memberCode":"m2"}"#;
    let outcome = opened.send("documents", &[login, error, plain, login, r#"{"x":1}"#, "not json"]).await.unwrap();
    assert_eq!((outcome.accepted, outcome.duplicates, outcome.dead_lettered), (3, 1, 2), "{:?}", outcome.errors);
    let many: Vec<String> =
        (0..40).map(|n| format!(r#"{{"event_type":"Type {}","memberCode":"m{n}","timestamp":{n}}}"#, n % 3)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(opened.send("documents", &many).await.unwrap().accepted, 40);
    let before = rows(&opened, "documents").await;
    opened.close();

    let opened = ground.open().await;
    let found = rows(&opened, "documents").await;
    assert_eq!(found, before);
    let (table, row) = found.iter().find(|(_, row)| row["event_type"] == "Login").unwrap();
    assert_eq!(table.as_str(), "documents.login");
    assert_eq!((&row["memberCode"], &row["fields"]), (&json!("m1"), &json!(r#"{"platform":"web"}"#)));
    assert_eq!(row["@timestamp"], "2025-06-12T23:59:58.997Z");
    let (table, row) = found.iter().find(|(_, row)| row["event_type"] == "API Error").unwrap();
    assert_eq!((table.as_str(), &row["fields"]), ("documents.api_error", &json!(r#"{"code":500}"#)));
    let received = found.iter().filter(|(_, row)| row["time_source"] == "received").count();
    assert_eq!(received, 1, "a document without a time has the time of receipt");
    let again = opened.send("documents", &[login]).await.unwrap();
    assert_eq!(again.duplicates, 1, "the key is remembered over the restart");
    assert_eq!(opened.gate.flush_all().await.len(), 0);
    let tables = opened.gate.inner.lake.list_tables().await.unwrap();
    let names: Vec<String> = tables.iter().filter(|t| t.namespace == "documents").map(|t| t.name.clone()).collect();
    assert_eq!(names, ["api_error", "login", "type_0", "type_1", "type_2"]);
    let status = opened.gate.status(None, None);
    assert_eq!(status.totals.accepted, 43);
    opened.close();
}

#[tokio::test]
async fn service_events_have_exactly_their_15_columns_and_a_day_of_their_time() {
    let ground = shipped();
    let opened = ground.open().await;
    let event = r#"{"event_date":"2024-12-17","event_time":"2024-12-17 10:00:00","tenant_id":"TENANT_001","service":"PGR",
        "event_type":"CaseSubmitted","attributes_json":{"sla_hours":72},"raw_payload":null,"other":1}"#;
    let text = r#"{"event_time":"2024-12-31T23:30:00Z","tenant_id":"T","service":"PGR","event_type":"x",
        "attributes_json":"{\"priority\":\"MEDIUM\"}"}"#;
    let outcome = opened.send("service_events_raw", &[event, text, r#"{"service":"PGR"}"#]).await.unwrap();
    assert_eq!((outcome.accepted, outcome.dead_lettered), (2, 1), "{:?}", outcome.errors);
    let found = rows(&opened, "service_events_raw").await;
    assert_eq!(found[0].0, "bronze.service_events_raw");
    assert_eq!(found[0].1["attributes_json"], r#"{"sla_hours":72}"#);
    assert_eq!(found[1].1["attributes_json"], r#"{"priority":"MEDIUM"}"#);
    assert_eq!(
        (&found[1].1["event_date"], &found[1].1["event_time"]),
        (&json!("2024-12-31"), &json!("2024-12-31T23:30:00"))
    );
    opened.gate.flush_all().await;
    let table = TableName::new("bronze", "service_events_raw").unwrap();
    let table = opened.gate.inner.lake.find_table(&table).await.unwrap().unwrap();
    assert_eq!(table.view().schema().fields().len(), 15);
    opened.close();
}

fn growing(others: Value) -> Contract {
    let columns = json!([{ "name": "id", "type": "long", "required": true }, { "name": "n", "type": "int" }]);
    let mut contract = contract(columns, others);
    contract.add_policy_columns();
    contract
}

/// The table's columns in the lake, with their types.
async fn lake_columns(opened: &Opened, stream: &str) -> Vec<String> {
    let table = TableName::new("default", stream).unwrap();
    let table = opened.gate.inner.lake.find_table(&table).await.unwrap().unwrap();
    let schema = table.view().schema();
    schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect()
}

#[tokio::test]
async fn f43_new_fields_become_columns_in_the_commit_of_their_rows_and_outlive_a_restart() {
    let ground = Ground::new(&[("s", growing(json!({ "undeclared": "evolve", "conflicts": "rescue" })))]);
    let opened = ground.open().await;
    opened.send("s", &[r#"{"id":1}"#]).await.unwrap();
    opened.gate.flush_all().await;
    let first = r#"{"id":2,"color":"red","size":1,"deep":{"a":1},"ok":true,"_rescued":{"x":1}}"#;
    let outcome = opened.send("s", &[first, r#"{"id":3,"size":1.5,"none":null}"#]).await.unwrap();
    assert_eq!(outcome.accepted, 2);
    opened.send("s", &[r#"{"id":4,"size":"large","color":7}"#]).await.unwrap();
    assert_eq!(lake_columns(&opened, "s").await, ["id Int64", "n Int32", "_undeclared Utf8", "_rescued Utf8"]);
    opened.close();

    let opened = ground.open().await;
    opened.send("s", &[r#"{"id":5,"late":1}"#]).await.unwrap();
    let found: Vec<Value> = rows(&opened, "s").await.into_iter().map(|(_, row)| row).collect();
    let by_id = |id: i64| found.iter().find(|row| row["id"] == id).unwrap();
    let two = by_id(2);
    assert_eq!(
        (&two["color"], &two["size"], &two["deep"], &two["ok"]),
        (&json!("red"), &json!(1.0), &json!(r#"{"a":1}"#), &json!(true))
    );
    assert_eq!(two["_undeclared"], r#"{"_rescued":{"x":1}}"#, "s03: a name of ours is not taken");
    assert_eq!((&by_id(3)["size"], &by_id(4)["size"]), (&json!(1.5), &Value::Null));
    assert_eq!(by_id(4)["_rescued"], r#"{"color":7,"size":"large"}"#);
    assert!(opened.gate.flush_all().await.is_empty());
    assert_eq!(
        lake_columns(&opened, "s").await,
        [
            "id Int64",
            "n Int32",
            "_undeclared Utf8",
            "_rescued Utf8",
            "color Utf8",
            "size Float64",
            "deep Utf8",
            "ok Boolean",
            "late Int64"
        ]
    );
    let growth = crate::read_growth(&ground.disk, std::path::Path::new("/data")).unwrap();
    let changes: Vec<_> = growth["default.s"].versions.iter().map(|version| version.changes.join(" ")).collect();
    assert_eq!(changes, ["", "+color string +size double +deep json +ok boolean", "+late long"]);
    opened.close();
}

#[tokio::test]
async fn a_column_becomes_wider_where_iceberg_allows_it_and_other_values_are_rescued() {
    let ground = Ground::new(&[("s", growing(json!({ "conflicts": "widen" })))]);
    let opened = ground.open().await;
    opened.send("s", &[r#"{"id":1,"n":1}"#]).await.unwrap();
    opened.gate.flush_all().await;
    let outcome = opened.send("s", &[r#"{"id":2,"n":3000000000}"#, r#"{"id":3,"n":"x"}"#]).await.unwrap();
    assert_eq!(outcome.accepted, 2);
    let found = rows(&opened, "s").await;
    let n: Vec<_> = found.iter().map(|(_, row)| (row["n"].clone(), row["_rescued"].clone())).collect();
    let tail = n.get(n.len() - 2..).unwrap();
    assert_eq!(tail, [(json!(3_000_000_000_i64), Value::Null), (Value::Null, json!(r#"{"n":"x"}"#))]);
    assert!(opened.gate.flush_all().await.is_empty());
    assert_eq!(lake_columns(&opened, "s").await, ["id Int64", "n Int64", "_rescued Utf8"]);
    assert_eq!(opened.gate.status(None, None).streams[0].rescued, 1);
    opened.close();
}

#[tokio::test]
async fn a_table_stops_growing_at_its_budget_and_keeps_the_rest_as_json() {
    let others = json!({ "undeclared": "evolve", "evolution": { "columns_max": 5, "times": true } });
    let ground = Ground::new(&[("s", growing(others))]);
    let opened = ground.open().await;
    opened.send("s", &[r#"{"id":1,"a":"2024-01-01T00:00:00Z","b":1,"c":2,"ID":3}"#]).await.unwrap();
    opened.send("s", &[r#"{"id":2,"d":4}"#]).await.unwrap();
    let found = rows(&opened, "s").await;
    assert_eq!(found[0].1["a"], "2024-01-01T00:00:00Z");
    assert_eq!((&found[0].1["b"], &found[0].1["_undeclared"]), (&json!(1), &json!(r#"{"c":2,"ID":3}"#)));
    assert_eq!(found[1].1["_undeclared"], r#"{"d":4}"#);
    opened.close();
}

#[tokio::test]
async fn f43_requests_that_grow_a_table_at_once_agree() {
    let ground = Ground::new(&[("s", growing(json!({ "undeclared": "evolve" })))]);
    let opened = ground.open().await;
    let payloads: Vec<String> = (0..40).map(|n| format!(r#"{{"id":{n},"c{}":{n}}}"#, n % 8)).collect();
    let sends = payloads.iter().map(|payload| async { opened.send("s", &[payload.as_str()]).await });
    let outcomes = futures::future::join_all(sends).await;
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().unwrap().accepted == 1));
    let found = rows(&opened, "s").await;
    assert_eq!(found.len(), 40);
    for (_, row) in &found {
        let id = row["id"].as_i64().unwrap();
        assert_eq!(row[format!("c{}", id % 8)], id, "{row}");
    }
    assert!(opened.gate.flush_all().await.is_empty());
    opened.close();
}
