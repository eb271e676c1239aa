"""What is sent again: the same answer, one copy, over kills, instances and engines."""

import concurrent.futures
import json

import grpc
import pytest

STREAMS = {
    "orders": {"event_key": ["event_id"]},
    "strict": {"event_key": ["event_id"], "on_conflict": "reject"},
    "short": {"event_key": ["event_id"], "duplicate_window": "1s"},
    "typed": {
        "columns": [{"name": "event_id", "type": "string", "envelope": "event_id"}, {"name": "n", "type": "long", "required": True}],
        "payload": "json",
        "event_key": ["event_id"],
    },
}


def batch(stubs, stream, payloads, batch_id="", **more):
    records = [
        stubs.common.DataRecord(endpoint_id=stream, event_id=event_id, payload=json.dumps(payload).encode())
        for event_id, payload in payloads
    ]
    return stubs.ingestion.IngestBatchRequest(records=records, batch_id=batch_id, **more)


def count(server, stream):
    return server.sql(f"SELECT count(*) AS n FROM default.{stream}")[0]["n"]


@pytest.fixture
def server(make_server):
    return make_server({"streams": STREAMS}).start()


def test_f50_a_request_sent_again_gets_the_same_answer_also_after_a_restart(server, stubs):
    request = batch(stubs, "typed", [(f"e{i}", {"n": i if i % 10 else "no number"}) for i in range(100)], "one")
    first = server.client().IngestBatch(request)
    assert (first.accepted, first.rejected, len(first.errors)) == (90, 10, 10)
    assert server.client().IngestBatch(request) == first
    server.kill()
    server.start()
    assert server.client().IngestBatch(request) == first
    server.wait_absorbed()
    server.stop()
    server.start()
    assert server.client().IngestBatch(request) == first
    assert count(server, "typed") == 90
    tally = audit(server)["typed"]
    assert (tally["received"], tally["accepted"], tally["rejected"], tally["duplicate"]) == (400, 90, 10, 300)


def test_f50_the_same_request_many_times_at_once_is_stored_once_and_answered_alike(server, stubs):
    request = batch(stubs, "undeclared", [(f"e{i}", {"n": i}) for i in range(500)], "many")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: server.client().IngestBatch(request, timeout=30), range(64)))
    assert all(answer == answers[0] for answer in answers) and answers[0].accepted == 500
    assert count(server, "undeclared") == 500


def test_f50_beyond_the_window_a_key_is_new_again(server, stubs):
    request = batch(stubs, "short", [("e", {"n": 1})])
    client = server.client()
    assert client.IngestBatch(request).accepted == 1
    assert client.IngestBatch(request).duplicates == 1
    for _ in range(600):
        if client.IngestBatch(request).accepted:
            break
        threading_wait(0.05)
    assert count(server, "short") == 2


def test_f51_the_same_id_with_another_content_is_a_conflict(server, stubs):
    client = server.client()
    assert client.IngestBatch(batch(stubs, "orders", [("a", {"n": 1})], "id")).accepted == 1
    for other in ([("a", {"n": 2})], [("b", {"n": 1})], [("a", {"n": 1}), ("b", {"n": 1})]):
        with pytest.raises(grpc.RpcError) as refused:
            client.IngestBatch(batch(stubs, "orders", other, "id"))
        assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS, refused.value
    server.kill()
    server.start()
    with pytest.raises(grpc.RpcError) as refused:
        server.client().IngestBatch(batch(stubs, "orders", [("a", {"n": 2})], "id"))
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert count(server, "orders") == 1


def test_f51_an_event_key_with_another_payload_is_given_back_where_the_stream_says_so(server, stubs):
    client = server.client()
    first = [("a", {"n": 1}), ("b", {"n": 1})]
    assert client.IngestBatch(batch(stubs, "strict", first)).accepted == 2
    server.kill()
    server.start()
    client = server.client()
    answer = client.IngestBatch(batch(stubs, "strict", [("c", {"n": 1}), ("a", {"n": 2}), ("b", {"n": 1})]))
    assert (answer.accepted, answer.rejected, answer.duplicates) == (1, 1, 1)
    assert [(e.index, e.event_id, e.code) for e in answer.errors] == [(1, "a", "CONFLICT")]
    with pytest.raises(grpc.RpcError) as refused:
        client.IngestBatch(batch(stubs, "strict", [("d", {"n": 1}), ("a", {"n": 2})], atomic=True))
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS or refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    record = stubs.common.DataRecord(endpoint_id="strict", event_id="a", payload=b'{"n": 3}')
    with pytest.raises(grpc.RpcError) as refused:
        client.IngestRecord(stubs.ingestion.IngestRecordRequest(record=record))
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert {row["event_id"]: json.loads(row["payload"])["n"] for row in server.sql("SELECT event_id, payload FROM default.strict")} == {
        "a": 1, "b": 1, "c": 1,
    }


def test_s47_one_tenants_ids_say_nothing_to_another(server, stubs):
    client = server.client()
    for tenant in ("a", "b"):
        request = batch(stubs, "orders", [("e", {"of": tenant})], "id")
        request.tenant_id = tenant
        assert client.IngestBatch(request).accepted == 1
    assert server.sql("SELECT payload FROM a.orders") == [{"payload": '{"of": "a"}'}]


def audit(server):
    answer = server.cli("audit", "--json", "--url", server.http)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return {stream["stream"]: stream for stream in json.loads(answer.stdout)["streams"]}


def threading_wait(seconds):
    import threading

    threading.Event().wait(seconds)
