//! What a user of the configuration may rely on.

use serde_json::json;

use super::*;

pub(crate) fn load(text: &str) -> Result<Config, Problems> {
    load_with(text, &[])
}

fn load_with(text: &str, environment: &[(&str, &str)]) -> Result<Config, Problems> {
    Config::load(Inputs {
        file: Some(("gate.json".into(), text.into())),
        environment: environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        flags: Flags::default(),
    })
}

pub(crate) fn problems(text: &str) -> Vec<String> {
    load(text).unwrap_err().0.iter().map(ToString::to_string).collect()
}

fn effective(config: &Config) -> Value {
    serde_json::to_value(&config.settings).unwrap()
}

#[test]
fn without_a_file_every_documented_default_holds() {
    let config = Config::load(Inputs::default()).unwrap();
    let documented = json!({
        "node": { "id": "gw-1", "data_dir": "./data" },
        "ingestion": { "bind": "127.0.0.1", "port": 8081, "http_port": 3001, "max_connections": 100, "batch_size": 1000,
                       "batch_size_max": 100000, "commit_bytes": "64MiB", "flush_interval": "5s" },
        "storage": { "wal_enabled": true, "compression_type": "zstd", "warehouse": "./data/warehouse",
                     "s3": { "endpoint": "", "region": "us-east-1", "access_key": "", "secret_key": "", "path_style": true,
                             "engine_access_key": "", "engine_secret_key": "" } },
        "catalog": { "database": "sqlite://./data/catalog.db", "uri": "", "token": "", "warehouse": "" },
        "auth": { "mode": "none", "api_keys": [] },
        "imports": { "roots": [], "hosts": [], "buckets": [] },
        "kafka": { "sources": [] },
        "streams": {}, "sinks": {}, "routes": []
    });
    let found = effective(&config);
    for (section, members) in documented.as_object().unwrap() {
        match members.as_object().filter(|m| !m.is_empty()) {
            Some(members) => {
                for (name, value) in members {
                    assert_eq!(&found[section][name], value, "{section}.{name}");
                }
            }
            None => assert_eq!(&found[section], members, "{section}"),
        }
    }
    // The documented file itself loads as well, comments and all.
    let text = format!("// a comment\n{}", serde_json::to_string_pretty(&documented).unwrap());
    assert_eq!(load(&text).unwrap().settings, config.settings);
}

#[test]
fn the_file_of_the_first_document_loads_with_its_comment() {
    let config = load(
        r#"{
          "ingestion": { "port": 8081, "max_connections": 100, "batch_size": 1000, "flush_interval": "5s" },
          "storage": { "wal_enabled": true, "compression_type": "snappy" },
          // ... other config sections ...
        }"#,
    )
    .unwrap();
    assert_eq!(config.settings.storage.compression_type, CompressionType::Snappy);
}

#[test]
fn an_unknown_setting_is_named_with_its_line_and_the_one_that_was_meant() {
    let found = problems("{\n  \"ingestion\": {\n    \"prot\": 8081\n  }\n}");
    assert_eq!(found, ["gate.json:3:5: ingestion.prot: unknown setting; did you mean `port`?"]);
    let found = problems("{ \"ingestion\": { \"httpPort\": 1 }, \"zzz\": 1 }");
    assert!(found[0].contains("did you mean `http_port`?"), "{found:?}");
    assert!(found[1].contains("unknown setting; known here:"), "{found:?}");
}

#[test]
fn every_problem_is_listed_not_only_the_first() {
    let found = problems(
        r#"{ "ingestion": { "port": "eighty", "max_connections": 0, "flush_interval": 5, "commit_bytes": "big" },
             "storage": { "compression_type": "zstandard", "wal_enabled": "yes" },
             "node": null, "catalog": [] }"#,
    );
    let all = found.join("\n");
    for part in [
        "gate.json:1:18: ingestion.port: found \"eighty\", expected a whole number from 0 to 65535",
        "ingestion.max_connections: found 0, expected a number from 1 to 1000000",
        "ingestion.flush_interval: found 5, expected a duration such as \"5s\"",
        "ingestion.commit_bytes: \"big\" is not a size",
        "storage.compression_type: found \"zstandard\", expected one of snappy, zstd, lz4, gzip, none; did you mean \"zstd\"?",
        "storage.wal_enabled: found \"yes\", expected true or false",
        "node: found null, expected an object",
        "catalog: found a list, expected an object",
    ] {
        assert!(all.contains(part), "{part:?} is not in\n{all}");
    }
    assert_eq!(found.len(), 8);
}

#[test]
fn text_that_is_not_json_is_refused_with_its_place() {
    for (text, place) in [
        ("{ \"a\": }", "gate.json:1:8"),
        ("{\n  \"node\": {", "gate.json:2:"),
        ("[]", "gate.json:1:1"),
        ("{ node: {} }", "gate.json:1:3"),
    ] {
        let found = problems(text);
        assert!(found[0].starts_with(place), "{text:?}: {found:?}");
    }
    assert!(problems("{ \"node\": {}, \"node\": {} }")[0].contains("is set twice"));
    assert!(load("").is_ok(), "an empty file sets nothing");
}

#[test]
fn the_environment_goes_before_the_file_and_a_flag_before_both() {
    let file = r#"{ "ingestion": { "port": 1, "http_port": 2 }, "node": { "id": "file" } }"#;
    let environment = [
        ("LAKEGATE__INGESTION__PORT", "3"),
        ("LAKEGATE__NODE__ID", "17"),
        ("LAKEGATE__INGESTION__FLUSH_INTERVAL", "250ms"),
        ("LAKEGATE__STORAGE__WAL__QUOTA", "1GiB"),
        ("LAKEGATE__STORAGE__WAL_ENABLED", "false"),
        ("LAKEGATE__STREAMS__ORDERS", r#"{"event_key":["event_id"]}"#),
        ("LAKEGATE_FAILPOINTS", "not ours"),
    ];
    let inputs = Inputs {
        file: Some(("gate.json".into(), file.into())),
        environment: environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        flags: Flags { port: Some(4), ..Flags::default() },
    };
    let config = Config::load(inputs).unwrap();
    assert_eq!(config.settings.ingestion.port, 4);
    assert_eq!(config.settings.ingestion.http_port, 2);
    assert_eq!(config.settings.node.id, "17");
    assert_eq!(config.settings.ingestion.flush_interval.as_millis(), 250);
    assert_eq!(config.settings.storage.wal.quota.bytes(), 1 << 30);
    assert!(!config.settings.storage.wal_enabled);
    assert_eq!(config.streams[0].1.event_key, ["event_id"]);
    assert!(config.warnings[0].contains("LOST"), "{:?}", config.warnings);
}

#[test]
fn a_wrong_variable_is_named_as_such() {
    let found = load_with("{}", &[("LAKEGATE__INGESTION__PORT", "x"), ("LAKEGATE__INGESTOIN__PORT", "1")])
        .unwrap_err()
        .to_string();
    assert!(found.contains("environment variable LAKEGATE__INGESTION__PORT: ingestion.port: found \"x\""), "{found}");
    assert!(
        found.contains("LAKEGATE__INGESTOIN__PORT: ingestoin: unknown setting; did you mean `ingestion`?"),
        "{found}"
    );
}

#[test]
fn warehouse_catalog_and_log_follow_the_data_folder_until_they_are_set() {
    let config =
        load(r#"{ "node": { "data_dir": "/srv/gate/" }, "catalog": { "database": "sqlite:///x.db" } }"#).unwrap();
    assert_eq!(config.settings.storage.warehouse, "/srv/gate/warehouse");
    assert_eq!(config.settings.catalog.database.reveal(), "sqlite:///x.db");
    assert_eq!(config.wal_dir(), PathBuf::from("/srv/gate/wal"));
    let shown = show(&config, ShowWhat { effective: true, origin: true });
    assert!(shown.contains("storage.warehouse = \"/srv/gate/warehouse\"  # follows node.data_dir"), "{shown}");
    assert!(shown.contains("ingestion.port = 8081  # default"), "{shown}");
}

#[test]
fn s27_secrets_are_masked_in_what_is_shown_in_messages_and_when_debugged() {
    let config = load(r#"{ "catalog": { "uri": "http://c", "token": "hunter2" } }"#).unwrap();
    for what in [(true, true), (true, false), (false, true), (false, false)] {
        let shown = show(&config, ShowWhat { effective: what.0, origin: what.1 });
        assert!(shown.contains("********") && !shown.contains("hunter2"), "{shown}");
    }
    assert!(!format!("{config:?}").contains("hunter2"));
    for text in [
        r#"{ "catalog": { "token": 20170412 } }"#,
        r#"{ "auth": { "api_keys": "20170412" } }"#,
        r#"{ "auth": { "api_keys": ["20170412"] } }"#,
        r#"{ "catalog": { "uri": "http://u:20170412@c/" } }"#,
        r#"{ "catalog": { "database": "mysql://u:20170412@db/x" } }"#,
    ] {
        let found = problems(text).join("\n");
        assert!(!found.is_empty() && !found.contains("20170412"), "{text}: {found}");
    }
}

#[test]
fn s04_an_open_server_is_not_bound_to_the_world_by_accident() {
    let found = problems(r#"{ "ingestion": { "bind": "0.0.0.0" } }"#);
    assert!(found[0].contains("auth.allow_anonymous_remote"), "{found:?}");
    let config = load(r#"{ "ingestion": { "bind": "0.0.0.0" }, "auth": { "allow_anonymous_remote": true } }"#).unwrap();
    assert!(config.warnings[0].contains("everyone"), "{:?}", config.warnings);
    assert!(problems(r#"{ "ingestion": { "bind": "everywhere" } }"#)[0].contains("not an IP address"));
    assert!(load(r#"{ "ingestion": { "bind": "::1" } }"#).is_ok());
    let config = load(r#"{ "ingestion": { "bind": "0.0.0.0" }, "auth": { "mode": "required" } }"#).unwrap();
    assert!(config.warnings[0].contains("without TLS"), "{:?}", config.warnings);
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    for (text, part) in [
        (r#"{ "ingestion": { "port": 9, "http_port": 9 } }"#, "different ports"),
        (r#"{ "ingestion": { "memory_budget": "1MiB" } }"#, "four times"),
        (r#"{ "storage": { "wal": { "quota": "64MiB" } } }"#, "two segments"),
        (r#"{ "ingestion": { "batch_size": 100, "batch_size_max": 10 } }"#, "batch_size_max"),
        (r#"{ "ingestion": { "flush_interval": "0s" } }"#, "at least 10ms"),
        (r#"{ "storage": { "warehouse": "gs://bucket/x" } }"#, "not supported"),
        (r#"{ "storage": { "warehouse": "s3://Bucket/x" } }"#, "not a bucket's name"),
        (r#"{ "storage": { "warehouse": "s3://bucket/a//b" } }"#, "empty part"),
        (r#"{ "storage": { "s3": { "access_key": "a" } } }"#, "set together"),
        (r#"{ "imports": { "roots": ["srv"] } }"#, "whole path"),
        (r#"{ "auth": { "jwt": { "jwks_url": "http://keys.example/x", "issuers": ["i"] } } }"#, "https://host/path"),
        (
            r#"{ "auth": { "jwt": { "jwks_url": "https://u:p@keys.example/x", "issuers": ["i"] } } }"#,
            "https://host/path",
        ),
        (r#"{ "auth": { "jwt": { "keys_file": "k.pem" } } }"#, "`issuers` or `audiences`"),
        (r#"{ "auth": { "jwt": { "algorithm": "HS256", "secret": "short", "issuers": ["i"] } } }"#, "32 bytes"),
        (r#"{ "auth": { "jwt": { "algorithm": "none" } } }"#, "RS256"),
        (r#"{ "auth": { "api_keys": [{ "tenant": "a", "permissions": ["write"] }] } }"#, "`id` and `hash`"),
        (r#"{ "auth": { "api_keys": [{ "key": "hunter2", "tenant": "a", "permissions": [] }] } }"#, "lgk_"),
        (r#"{ "auth": { "mtls": [{ "name": "cn:x", "tenant": "a", "permissions": [] }] } }"#, "tls.client_ca"),
        (r#"{ "tls": { "certificate": "c.pem" } }"#, "go together"),
        (r#"{ "limits": { "rates": { "tenants": { "A": {} } } } }"#, "not a valid name"),
        (r#"{ "catalog": { "uri": "catalog:8181" } }"#, "http://host:port"),
    ] {
        let found = problems(text);
        assert!(found.len() == 1 && found[0].contains(part), "{text}: {found:?}");
    }
}

const ORDERS: &str = r#"{ "streams": { "orders": {
    "columns": [
      { "name": "order_id", "type": "string", "path": "order.id", "required": true },
      { "name": "amount", "type": "decimal(12,2)", "path": ["order", "amount.total"] },
      { "name": "region", "type": "string" },
      { "name": "event_time", "type": "timestamptz", "envelope": "event_time" }
    ],
    "payload": "json", "event_key": ["order_id"], "duplicate_window": "2h",
    "time": { "path": "created_at", "format": "epoch_ms" },
    "malformed": "skip", "undeclared": "keep", "table": "shop.orders",
    "partitions": ["day(event_time)", "identity region"], "sort": ["event_time desc"]
} } }"#;

#[test]
fn a_declared_stream_becomes_a_contract() {
    use lakegate_model::{ColumnSource, ColumnType, Field, Transform};
    let config = load(ORDERS).unwrap();
    let (name, contract) = &config.streams[0];
    assert_eq!(name.as_str(), "orders");
    contract.check().unwrap();
    assert_eq!(contract.columns[0].source, ColumnSource::Path(vec!["order".into(), "id".into()]));
    assert_eq!(contract.columns[1].source, ColumnSource::Path(vec!["order".into(), "amount.total".into()]));
    assert_eq!(contract.columns[1].column_type, ColumnType::Decimal { precision: 12, scale: 2 });
    assert_eq!(contract.columns[2].source, ColumnSource::Path(vec!["region".into()]));
    assert_eq!(contract.columns[3].source, ColumnSource::Envelope(Field::EventTime));
    assert_eq!(contract.duplicate_window_ms, 7_200_000);
    assert_eq!(contract.partitions[0].transform, Transform::Day);
    assert!(contract.sort[0].descending);
    // Shown and read again it is the same.
    let again = load(&show(&config, ShowWhat { effective: true, origin: false })).unwrap();
    assert_eq!(again.streams, config.streams);
}

#[test]
fn a_stream_without_columns_has_the_default_ones() {
    let config = load(r#"{ "streams": { "clicks": {} } }"#).unwrap();
    assert_eq!(config.streams[0].1, Contract::undeclared_default());
}

#[test]
fn what_is_wrong_with_a_stream_is_said_at_its_own_line() {
    let text = r#"{ "streams": { "orders": {
  "columns": [
    { "name": "id", "type": "text" },
    { "name": "id2", "type": "long", "path": "a..b" },
    { "type": "long" },
    { "name": "v", "type": "long", "envelop": "version" }
  ],
  "partitions": ["weekly(t)"], "sort": ["t downwards"] } } }"#;
    let found = problems(text).join("\n");
    for part in [
        "gate.json:3:21: streams.orders.columns[0].type: \"text\" is not a column type",
        "gate.json:4:38: streams.orders.columns[1].path: \"a..b\" is not a path",
        "gate.json:5:5: streams.orders.columns[2]: `name` is missing",
        "gate.json:6:36: streams.orders.columns[3].envelop: unknown setting; did you mean `envelope`?",
        "gate.json:8:18: streams.orders.partitions[0]: \"weekly(t)\" is not a partition",
        "gate.json:8:41: streams.orders.sort[0]: \"t downwards\" is not a sort field",
    ] {
        assert!(found.contains(part), "{part:?} is not in\n{found}");
    }
}

#[test]
fn a_contract_that_does_not_hold_together_is_refused_part_by_part() {
    let text = r#"{ "streams": { "Orders": { "columns": [
      { "name": "a", "type": "long" }, { "name": "A", "type": "long" },
      { "name": "b", "type": "long", "envelope": "event_id" }, { "name": "c", "type": "long", "path": "c", "envelope": "version" },
      { "name": "d", "type": "string" } ],
      "event_key": ["x"], "partitions": ["identity y", "day(d)"], "sort": ["z"], "table": "{endpoint}" } } }"#;
    let found = problems(text).join("\n");
    for part in [
        "streams.Orders: stream \"Orders\" is not a valid name",
        "columns[1].name: column \"A\" is declared twice",
        "columns[2]: column \"b\" takes EventId, which is string, but is declared as long",
        "columns[3]: has both `path` and `envelope`",
        "event_key[0]: event_key names the column \"x\"",
        "partitions[0]: partitions names the column \"y\"",
        "partitions[1]: \"day(d)\" cannot be applied to column \"d\", which is string",
        "sort[0]: sort names the column \"z\"",
    ] {
        assert!(found.contains(part), "{part:?} is not in\n{found}");
    }
    assert!(problems(r#"{ "streams": { "o": { "table": "{endpoint}" } } }"#)[0].contains("namespace.table"));
}

#[test]
fn s45_a_json_schema_becomes_columns_and_what_it_cannot_say_here_is_refused_with_its_place() {
    let config = load(
        r#"{ "streams": { "o": { "json_schema": { "type": "object", "additionalProperties": false, "required": ["id"],
             "properties": { "id": { "type": "string", "maxLength": 9 }, "n": { "type": "integer" } } },
           "columns": [{ "name": "n", "type": "int" }, { "name": "at", "type": "timestamptz", "envelope": "received_at" }] } } }"#,
    )
    .unwrap();
    let contract = &config.streams[0].1;
    contract.check().unwrap();
    let columns: Vec<_> = contract.columns.iter().map(|c| format!("{} {}", c.name, c.column_type.name())).collect();
    assert_eq!(columns, ["id string", "n int", "at timestamptz"]);
    assert_eq!(contract.undeclared, lakegate_model::Undeclared::Reject);
    let found = problems(
        r#"{ "streams": { "o": { "json_schema": { "properties": { "a": { "$ref": "http://127.0.0.1/x" } } } },
                          "p": { "json_schema": "/no/such/file.json" } } }"#,
    )
    .join("\n");
    assert!(found.contains("streams.o.json_schema: #/properties/a: \"http://127.0.0.1/x\" leads out"), "{found}");
    assert!(found.contains("streams.p.json_schema: /no/such/file.json: cannot be read"), "{found}");
}

#[test]
fn the_contracts_of_the_binary_are_there_by_default_and_by_name() {
    let config = load(
        r#"{ "streams": { "events": { "columns": [{ "name": "a", "type": "long" }] },
        "carts": { "contract": "cart", "malformed": "skip", "keep_raw": true } } }"#,
    )
    .unwrap();
    let names: Vec<&str> = config.streams.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["carts", "events", "documents", "service_events_raw"]);
    let carts = &config.streams[0].1;
    carts.check().unwrap();
    assert_eq!(carts.event_key, ["event_id"]);
    assert_eq!((carts.malformed, carts.duplicate_window_ms), (lakegate_model::Malformed::Skip, 3_600_000));
    assert_eq!(carts.columns.last().map(|column| column.name.as_str()), Some("_raw"));
    assert_eq!(config.streams[1].1.columns.len(), 1, "a declared stream has what it declares");
}

/// Compares a generated file with its source, or writes it anew.
pub(crate) fn assert_generated(file: &str, fresh: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide").join(file);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&path, fresh).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == fresh,
        "docs/guide/{file} differs from its source; run UPDATE_GENERATED=1 cargo test -p lakegate-server drift"
    );
}

#[test]
fn drift_of_the_json_schema_and_of_the_reference_is_seen() {
    assert_generated("config.schema.json", &schema_text());
    assert_generated("configuration.md", &reference::reference_markdown());
}

#[test]
fn every_setting_is_described() {
    let undescribed: Vec<&str> = Vec::new();
    let mut missing = Vec::new();
    collect_undescribed(&schema(), "", &mut missing);
    assert_eq!(missing, undescribed);
}

fn collect_undescribed(schema: &Value, path: &str, missing: &mut Vec<String>) {
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = layers::join(path, name);
        if inner.get("description").is_none() {
            missing.push(path.clone());
        }
        collect_undescribed(inner, &path, missing);
    }
}
