"""Contracts: what grows is read by other engines; what is cleaned, refused or dated is as the guide says."""

import json

GROWING = {
    "columns": [{"name": "id", "type": "long", "required": True}, {"name": "n", "type": "int"}],
    "payload": "json",
    "undeclared": "evolve",
    "conflicts": "widen",
}


def send(server, stubs, stream, payloads):
    records = [stubs.common.DataRecord(endpoint_id=stream, payload=json.dumps(p).encode()) for p in payloads]
    return server.client().IngestBatch(stubs.ingestion.IngestBatchRequest(records=records))


def judge(server, duck, table):
    """The table's rows and columns as PyIceberg and DuckDB read them."""
    loaded = server.catalog().load_table(table)
    arrow = loaded.scan().to_arrow()
    location = loaded.metadata_location.removeprefix("file://")
    seen = duck().execute(f"SELECT * FROM iceberg_scan('{location}') ORDER BY id").to_arrow_table()
    rows = sorted(arrow.to_pylist(), key=lambda row: row["id"])
    assert seen.to_pylist() == rows
    return rows, {field.name: str(field.field_type) for field in loaded.schema().fields}


def test_f43_a_table_that_grew_and_widened_is_read_by_pyiceberg_and_duckdb_over_a_restart(make_server, stubs, duck):
    server = make_server({"streams": {"things": GROWING}}).start()
    assert send(server, stubs, "things", [{"id": 1, "n": 1}]).accepted == 1
    server.wait_absorbed()
    answer = send(server, stubs, "things", [{"id": 2, "n": 3_000_000_000, "color": "red", "size": 1}, {"id": 3, "size": 1.5}])
    assert answer.accepted == 2
    hot = server.sql("SELECT id, n, color, size FROM default.things ORDER BY id")
    assert [(row["id"], row["n"], row["color"], row["size"]) for row in hot] == [
        (1, 1, None, None),
        (2, 3_000_000_000, "red", 1.0),
        (3, None, None, 1.5),
    ]
    server.kill()
    server.start()
    assert send(server, stubs, "things", [{"id": 4, "size": "large", "late": True}]).accepted == 1
    server.wait_absorbed()
    rows, columns = judge(server, duck, "default.things")
    assert columns["n"] == "long" and columns["size"] == "double" and columns["late"] == "boolean"
    found = [(row["id"], row["n"], row["color"], row["size"], row["late"], row["_rescued"]) for row in rows]
    assert found == [
        (1, 1, None, None, None, None),
        (2, 3_000_000_000, "red", 1.0, None, None),
        (3, None, None, 1.5, None, None),
        (4, None, None, None, True, '{"size":"large"}'),
    ]


def test_f43_a_column_that_another_engine_added_with_another_type_is_not_fought_over(make_server, stubs, duck):
    from pyiceberg.types import StringType

    server = make_server({"streams": {"things": GROWING}}).start()
    send(server, stubs, "things", [{"id": 1}])
    server.wait_absorbed()
    with server.catalog().load_table("default.things").update_schema() as update:
        update.add_column("weight", StringType())
    assert send(server, stubs, "things", [{"id": 2, "weight": 7, "height": 2}]).accepted == 1
    server.wait_absorbed()
    rows, columns = judge(server, duck, "default.things")
    assert columns["weight"] == "string" and columns["height"] == "long"
    assert (rows[1]["weight"], rows[1]["height"], rows[1]["_undeclared"]) == (None, 2, '{"weight":7}')


def test_documents_have_a_table_for_each_event_type_and_carts_are_cleaned(server, stubs, duck):
    documents = [
        {"event_type": "Login", "timestamp": "2025-06-12T23:59:58.997Z", "fields": {"memberCode": "m1", "platform": "web"}},
        {"event_type": "API Error", "@timestamp": "2025-06-12T23:59:58Z", "memberCode": "m1"},
        {"no": "type"},
    ]
    answer = send(server, stubs, "documents", documents)
    assert (answer.accepted, answer.dead_lettered) == (2, 1)
    cart = {
        "eventId": "e1", "eventType": "item_added", "timestamp": "2025-06-12T23:59:58Z", "sessionId": "s", "storeId": "st",
        "data": {"name": "<img src=x onerror=alert(1)>"},
    }
    assert send(server, stubs, "events", [cart]).accepted == 1
    stolen = send(server, stubs, "events", [dict(cart, eventId="e2", eventType="stolen")])
    assert stolen.rejected == 1 and "cart_created" in stolen.errors[0].message
    server.wait_absorbed()
    catalog = server.catalog()
    assert sorted(name for _, name in catalog.list_tables("documents")) == ["api_error", "login"]
    error = catalog.load_table("documents.api_error").scan().to_arrow().to_pylist()[0]
    assert (error["event_type"], error["memberCode"], error["time_source"]) == ("API Error", "m1", "payload")
    stored = catalog.load_table("default.events").scan().to_arrow().to_pylist()[0]
    assert json.loads(stored["data"]) == {"name": "&lt;img src=x onerror=alert(1)&gt;"}


def test_service_events_are_exactly_the_table_of_the_documents(server, stubs):
    event = {
        "event_time": "2024-12-17 10:00:00", "tenant_id": "TENANT_001", "service": "PGR", "event_type": "CaseSubmitted",
        "attributes_json": {"complaint_type": "Water Supply", "sla_hours": 72}, "raw_payload": None,
    }
    assert send(server, stubs, "service_events_raw", [event, {"service": "PGR"}]).dead_lettered == 1
    server.wait_absorbed()
    table = server.catalog().load_table("bronze.service_events_raw")
    assert [field.name for field in table.schema().fields] == (
        "event_date event_time tenant_id service entity_type entity_id event_type status actor_type actor_id channel "
        "ward_id locality_id attributes_json raw_payload"
    ).split()
    assert [field.name for field in table.spec().fields] == ["event_date", "service"]
    row = table.scan().to_arrow().to_pylist()[0]
    assert str(row["event_date"]) == "2024-12-17" and str(row["event_time"]) == "2024-12-17 10:00:00"
    assert json.loads(row["attributes_json"]) == {"complaint_type": "Water Supply", "sla_hours": 72}


def test_a_stream_whose_contract_cannot_hold_is_refused_before_the_start(make_server, stubs):
    wrong = {"columns": [{"name": "a", "type": "string", "pattern": "("}, {"name": "b", "type": "long", "formats": ["%Q"]}]}
    server = make_server({"streams": {"s": wrong}})
    answer = server.cli("config", "check", str(server.config))
    assert answer.returncode == 78
    said = answer.stdout + answer.stderr
    assert "streams.s.columns[0]" in said or "streams.s.columns[1].formats" in said, said


def test_a_plan_is_applied_to_the_tables_before_their_first_rows_or_not_at_all(make_server, stubs):
    columns = [{"name": "id", "type": "long", "required": True}, {"name": "n", "type": "int"}]
    server = make_server({"streams": {"things": {"columns": columns, "payload": "json"}}}).start()
    assert send(server, stubs, "things", [{"id": 1, "n": 1}]).accepted == 1
    server.wait_absorbed()
    schema = lambda *more: server.cli("schema", *more, "--config", str(server.config))

    def declare(*columns):
        config = json.loads(server.config.read_text())
        config["streams"]["things"]["columns"] = list(columns)
        server.config.write_text(json.dumps(config))

    wider = [{"name": "id", "type": "long"}, {"name": "n", "type": "long"}, {"name": "color", "type": "string"}]
    declare(*wider)
    busy = schema("apply", "--yes")
    assert busy.returncode != 0 and "is in use by another lakegate" in busy.stderr, busy
    server.stop()
    declare(wider[0], {"name": "n", "type": "string"}, wider[2])
    refused = schema("apply", "--yes")
    assert refused.returncode == 1 and "! n int cannot become string" in refused.stdout and "nothing was changed" in refused.stderr, refused
    declare(*wider)
    unasked = schema("apply")
    assert unasked.returncode == 1 and "--yes" in unasked.stderr, unasked
    applied = schema("apply", "--yes")
    assert applied.returncode == 0, applied
    assert applied.stdout.splitlines() == ["default.things", "  ~ id long becomes optional", "  ~ n int becomes long", "  + color string"]
    assert "default.things: changed" in applied.stderr
    assert schema("plan", "--check").returncode == 0
    again = schema("apply", "--yes")
    assert again.returncode == 0 and "nothing changes" in again.stderr
    server.start()
    table = server.catalog().load_table("default.things")
    assert [(f.name, str(f.field_type), f.required) for f in table.schema().fields] == [("id", "long", False), ("n", "long", False), ("color", "string", False)]
    assert send(server, stubs, "things", [{"n": 3_000_000_000, "color": "red"}]).accepted == 1
    server.wait_absorbed()
    rows = sorted(server.catalog().load_table("default.things").scan().to_arrow().to_pylist(), key=lambda row: row["n"])
    assert [(row["id"], row["n"], row["color"]) for row in rows] == [(1, 1, None), (None, 3_000_000_000, "red")]
