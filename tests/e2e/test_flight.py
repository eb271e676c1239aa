"""Arrow Flight and Flight SQL with pyarrow and ADBC; what was stored is read back by PyIceberg."""

import datetime
import decimal
import json

import pyarrow as pa
import pytest

flight = pytest.importorskip("pyarrow.flight")
adbc = pytest.importorskip("adbc_driver_flightsql.dbapi")

BRONZE = {"streams": {"service_events_raw": {"contract": "service_events_raw"}}}


def client(server):
    return flight.FlightClient(f"grpc://127.0.0.1:{server.grpc_port}")


def put(connection, path, batches, ids=None, schema=None):
    """Sends batches one by one; gives what each was answered."""
    writer, reader = connection.do_put(flight.FlightDescriptor.for_path(*path), schema or batches[0].schema)
    answers = []
    for at, batch in enumerate(batches):
        if ids:
            writer.write_with_metadata(batch, ids[at].encode())
        else:
            writer.write_batch(batch)
        answer = reader.read()
        if answer is None:
            writer.close()  # raises what ended the call
        answers.append(json.loads(answer.to_pybytes()))
    writer.done_writing()
    writer.close()
    return answers


def events(first, count):
    at = [datetime.datetime(2024, 12, 1, 10) + datetime.timedelta(seconds=i) for i in range(first, first + count)]
    text = lambda name: [f"{name}_{i}" for i in range(first, first + count)]
    return pa.record_batch({
        "event_date": pa.array([t.date() for t in at]), "event_time": pa.array(at, pa.timestamp("us")),
        "tenant_id": pa.array(["TENANT_001"] * count).dictionary_encode(), "service": ["PGR"] * count, "entity_type": ["complaint"] * count,
        "entity_id": text("CMP"), "event_type": ["CaseSubmitted"] * count, "status": ["OPEN"] * count, "actor_type": ["CITIZEN"] * count,
        "actor_id": text("CIT"), "channel": ["WEB"] * count, "ward_id": text("WARD"), "locality_id": text("LOC"),
        "attributes_json": ['{"priority": "MEDIUM"}'] * count, "raw_payload": pa.nulls(count, pa.string()),
    })


def test_columns_are_acknowledged_when_durable_and_read_by_others(make_server):
    server = make_server(BRONZE).start()
    batches = [events(0, 1000), events(1000, 500)]
    answers = put(client(server), ["service_events_raw"], batches)
    assert [a["accepted"] for a in answers] == [1000, 500] and answers[1]["position"] == 1499
    server.kill()
    server.start()
    assert server.sql("SELECT count(*) AS n, count(DISTINCT entity_id) AS d FROM bronze.service_events_raw")[0] == {"n": 1500, "d": 1500}
    server.wait_absorbed()
    found = server.catalog().load_table("bronze.service_events_raw").scan().to_arrow().sort_by("event_time")
    plain = pa.Table.from_batches([pa.record_batch([c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in b.columns], b.schema.names) for b in batches])
    assert found.select(plain.schema.names).to_pylist() == plain.to_pylist()


def test_a_new_stream_gets_its_columns_and_the_same_batch_again_changes_nothing(server):
    batch = pa.record_batch({"id": [1, 2], "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(10, 2)), "tags": [["a"], []]})
    connection = client(server)
    assert put(connection, ["fresh"], [batch], ids=["one"])[0]["accepted"] == 2
    assert put(connection, ["fresh"], [batch], ids=["one"])[0]["accepted"] == 2
    assert server.sql("SELECT id, price, tags FROM fresh ORDER BY id") == [{"id": 1, "price": 1.50, "tags": ["a"]}, {"id": 2, "price": None, "tags": []}]
    assert put(connection, ["acme", "fresh"], [batch])[0]["accepted"] == 2
    assert server.sql('SELECT count(*) AS n FROM acme.fresh')[0]["n"] == 2
    with pytest.raises((flight.FlightError, pa.ArrowInvalid), match="path"):
        put(connection, ["a", "b", "c"], [batch])
    other = pa.record_batch({"nothing": ["x"]})
    with pytest.raises((flight.FlightError, pa.ArrowInvalid), match="nothing"):
        put(connection, ["fresh"], [other])


def test_bad_rows_are_set_aside_and_named(make_server):
    server = make_server(BRONZE).start()
    batch = events(0, 3).set_column(1, "event_time", pa.array(["2024-12-01 10:00:00", "never", "2024-12-01 10:00:02"]))
    answer = put(client(server), ["service_events_raw"], [batch])[0]
    assert (answer["accepted"], answer["dead_lettered"]) == (2, 1)
    assert answer["errors"][0]["row"] == 1 and "never" in answer["errors"][0]["message"]
    letters = server.cli("dlq", "ls", "--url", server.http)
    assert "service_events_raw" in letters.stdout
    assert server.cli("audit", "--url", server.http).returncode == 0


def test_adbc_asks_inserts_and_ingests(server):
    with adbc.connect(f"grpc://127.0.0.1:{server.grpc_port}", autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE lab.t (n BIGINT, s VARCHAR, d DATE)")
        cursor.execute("INSERT INTO lab.t VALUES (1, 'a', DATE '2024-12-01')")
        cursor.execute("SELECT n, s, d FROM lab.t")
        assert cursor.fetch_arrow_table().to_pylist() == [{"n": 1, "s": "a", "d": datetime.date(2024, 12, 1)}]
        cursor.executemany("INSERT INTO lab.t VALUES (?, ?, ?)", [(2, "it's", None), (3, "x", None)])
        cursor.execute("SELECT count(*) AS c FROM lab.t WHERE n >= ?", (2,))
        assert cursor.fetchone() == (2,)
        rows = pa.table({"n": pa.array(range(1000), pa.int64()), "s": [str(n) for n in range(1000)]})
        assert cursor.adbc_ingest("made", rows, mode="create", db_schema_name="lab") in (1000, -1)
        cursor.adbc_ingest("made", rows, mode="append", db_schema_name="lab")
        cursor.execute("SELECT count(*) AS c, sum(n) AS s FROM lab.made")
        assert cursor.fetchone() == (2000, 2 * sum(range(1000)))
        with pytest.raises(Exception, match="lab.none"):
            cursor.execute("SELECT * FROM lab.none")
            cursor.fetchall()
        found = connection.adbc_get_objects(depth="tables").read_all().to_pylist()
        assert {"t", "made"} <= {t["table_name"] for c in found for s in c["catalog_db_schemas"] for t in s["db_schema_tables"]}
    server.wait_absorbed()
    assert server.catalog().load_table("lab.made").scan().to_arrow().num_rows == 2000


def test_s31_bytes_that_lie_about_their_lengths_end_the_call_and_nothing_else(make_server):
    import grpc

    server = make_server(BRONZE).start()
    batch = events(0, 10)
    schema = batch.schema.serialize().to_pybytes()[8:]
    body = batch.serialize().to_pybytes()

    def field(number, value):
        out, n = bytearray(), len(value)
        key = number << 3 | 2
        for part in (key, n):
            while part >= 0x80:
                out.append(part & 0x7F | 0x80)
                part >>= 7
            out.append(part)
        return bytes(out) + value

    descriptor = field(1, b"\x08\x01" + field(3, b"service_events_raw"))
    with server.channel() as channel:
        call = channel.stream_stream("/arrow.flight.protocol.FlightService/DoPut")
        for cut in (8, len(body) // 2):
            header = int.from_bytes(body[4:8], "little")
            messages = [descriptor + field(2, schema), field(2, body[8 : 8 + header]) + field(1000, body[8 + header : 8 + header + cut])]
            with pytest.raises(grpc.RpcError) as error:
                list(call(iter(messages), timeout=10))
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, error.value
    assert put(client(server), ["service_events_raw"], [batch])[0]["accepted"] == 10


def test_s04_flight_takes_the_same_credentials(guarded):  # noqa: F811
    connection = client(guarded)
    batch = pa.record_batch({"n": [1]})
    with pytest.raises(flight.FlightUnauthenticatedError):
        put(connection, ["t"], [batch])
    pair = connection.authenticate_basic_token("anyone", guarded.keys["a"])
    options = flight.FlightCallOptions(headers=[pair])
    writer, reader = connection.do_put(flight.FlightDescriptor.for_path("t"), batch.schema, options)
    writer.write_batch(batch)
    assert json.loads(reader.read().to_pybytes())["accepted"] == 1
    writer.close()
    with pytest.raises(flight.FlightUnauthorizedError):
        writer, reader = connection.do_put(flight.FlightDescriptor.for_path("umbrella", "t"), batch.schema, options)
        writer.write_batch(batch)
        reader.read()
        writer.close()


from test_security import guarded  # noqa: E402, F401
