"""What was set aside: listed, shown, brought again after a fix, and never twice."""

import base64
import json

import requests

from test_duplicates import audit, batch, count


def settings(kind, path="n", **more):
    columns = [
        {"name": "event_id", "type": "string", "envelope": "event_id"},
        {"name": "n", "type": kind, "required": True, "path": path},
    ]
    return {"streams": {"typed": {"columns": columns, "payload": "json", "malformed": "skip", **more}}}


def configure(server, kind, path="n", **more):
    config = json.loads(server.config.read_text())
    config["streams"] = settings(kind, path, **more)["streams"]
    server.config.write_text(json.dumps(config))


def letters(server, **query):
    answer = requests.get(f"{server.http}/api/dlq", params=query, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_dead_letters_are_brought_again_after_a_fix_and_stored_once(make_server, stubs):
    server = make_server(settings("long", event_key=["event_id"])).start()
    answer = server.client().IngestBatch(
        batch(stubs, "typed", [("good", {"n": 1}), ("bad1", {"n": "=one"}), ("bad2", {"n": "two"}), ("none", {})])
    )
    assert (answer.accepted, answer.dead_lettered) == (1, 3)
    listed = letters(server)
    assert {(c["stream"], c["reason"], c["letters"]) for c in listed["counts"]} == {("typed", "WRONG_TYPE", 2), ("typed", "MISSING_FIELD", 1)}
    assert sorted(letter["event_id"] for letter in listed["letters"]) == ["bad1", "bad2", "none"]
    bad = next(letter for letter in listed["letters"] if letter["event_id"] == "bad1")
    assert (bad["field"], bad["attempts"], bad["source"]) == ("n", 1, "grpc")
    shown = requests.get(f"{server.http}/api/dlq/{bad['id']}", timeout=30).json()
    assert json.loads(shown["payload"]) == {"n": "=one"} and base64.b64decode(shown["payload_base64"]) == shown["payload"].encode()
    assert requests.get(f"{server.http}/api/dlq/nothing", timeout=30).status_code == 404

    again = server.cli("dlq", "replay", "--url", server.http)
    assert again.returncode == 1 and "3 refused again" in again.stdout
    assert {letter["attempts"] for letter in letters(server)["letters"]} == {2}

    server.stop()
    configure(server, "string", event_key=["event_id"])
    server.start()
    dry = server.cli("dlq", "replay", "--stream", "typed", "--reason", "WRONG_TYPE", "--dry-run", "--url", server.http)
    assert dry.stdout == "2 would be brought again\n", dry
    assert letters(server, reason="WRONG_TYPE")["counts"][0]["letters"] == 2


def test_a_replay_stores_each_letter_once_and_the_balance_closes(make_server, stubs):
    server = make_server(settings("long", "wrong")).start()
    sent = [(f"e{i}", {"n": i} if i % 2 else {"wrong": "text", "n": "text"}) for i in range(300)]
    server.client().IngestBatch(batch(stubs, "typed", sent))
    before = letters(server, limit=5)
    assert sum(c["letters"] for c in before["counts"]) == 300 and len(before["letters"]) == 5
    server.wait_absorbed()
    server.stop()
    configure(server, "long")
    server.start()
    done = requests.post(f"{server.http}/api/dlq/replay", params={"reason": "MISSING_FIELD"}, timeout=120).json()
    assert (done["stored"], done["duplicates"], done["refused"]) == (150, 0, 0), done
    assert count(server, "typed") == 150
    server.kill()
    server.start()
    again = requests.post(f"{server.http}/api/dlq/replay", params={"reason": "MISSING_FIELD"}, timeout=120).json()
    assert (again["stored"], again["duplicates"], again["refused"]) == (0, 0, 0)
    left = letters(server)
    assert [(c["reason"], c["letters"]) for c in left["counts"]] == [("WRONG_TYPE", 150)]
    server.wait_absorbed()
    assert count(server, "typed") == 150
    assert audit(server)["typed"]["accepted"] == 150


def test_f64_a_letter_whose_mark_was_lost_is_not_stored_twice(make_server, stubs):
    server = make_server(settings("long", "wrong")).start()
    server.client().IngestBatch(batch(stubs, "typed", [("e", {"n": 1})]))
    server.stop()
    configure(server, "long")
    server.start(LAKEGATE_FAILPOINTS="ingest.before_ack=kill@1")
    try:
        requests.post(f"{server.http}/api/dlq/replay", timeout=30)
    except requests.ConnectionError:
        pass
    server.process.wait(20)
    server.start()
    assert count(server, "typed") == 1 and len(letters(server)["letters"]) == 1
    done = requests.post(f"{server.http}/api/dlq/replay", timeout=30).json()
    assert done["stored"] + done["duplicates"] == 1
    assert count(server, "typed") == 1 and letters(server)["letters"] == []


def test_s24_a_table_of_letters_holds_no_formula(make_server, stubs):
    server = make_server(settings("long")).start()
    server.client().IngestBatch(batch(stubs, "typed", [("=cmd|' /C calc'!A0", {})]))
    text = server.cli("dlq", "ls", "--csv", "--url", server.http).stdout
    assert "\"'=cmd|' /C calc'!A0\"" in text, text


def test_a_payload_without_envelope_is_set_aside_and_brought_again(make_server):
    server = make_server(settings("long")).start()
    answer = requests.post(f"{server.http}/api/ingest/streams/typed", json={"n": "x"}, timeout=30)
    listed = letters(server)
    if not listed["letters"]:
        raise AssertionError(f"{answer.status_code} {answer.text}")
    assert listed["letters"][0]["source"] == "rest"
    record = base64.b64decode(requests.get(f"{server.http}/api/dlq/{listed['letters'][0]['id']}", timeout=30).json()["record_base64"])
    assert record.startswith(b"\x12\x05typed")


def test_letters_are_removed_for_good_by_filter_and_age_and_the_balance_closes(make_server, stubs):
    server = make_server(settings("long")).start()
    send = lambda sent: server.client().IngestBatch(batch(stubs, "typed", sent))
    send([(f"w{i}", {"n": "x"}) for i in range(40)] + [(f"m{i}", {}) for i in range(7)] + [("good", {"n": 1})])
    purge = lambda **query: requests.post(f"{server.http}/api/dlq/purge", params=query, timeout=60)
    for wrong in ({}, {"limit": 3, "all": "true"}, {"since": "yesterday"}, {"all": "true", "stream": "typed"}):
        assert purge(**wrong).status_code == 400, wrong
    assert sum(c["letters"] for c in letters(server)["counts"]) == 47
    said = server.cli("dlq", "purge", "--reason", "WRONG_TYPE", "--dry-run", "--url", server.http)
    assert said.stdout == "40 would be removed\n", said
    assert server.cli("dlq", "purge", "--older-than", "1h", "--url", server.http).stdout == "0 removed\n"
    said = server.cli("dlq", "purge", "--reason", "WRONG_TYPE", "--url", server.http)
    assert said.stdout == "40 removed\n", said
    assert [(c["reason"], c["letters"]) for c in letters(server)["counts"]] == [("MISSING_FIELD", 7)]
    tables = lambda: {table["table"]: table for table in requests.get(f"{server.http}/api/audit", timeout=30).json()["tables"]}
    audit(server)
    closing = tables()["default.dead_letters"]
    assert (closing["removed"], closing["other_writers"], closing["closes"]) == (40, 0, True), closing
    server.kill()
    server.start()
    send([("late", {})])
    assert purge(id=letters(server)["letters"][0]["id"]).json()["purged"] == 1, "one by its id"
    assert purge(all="true").json()["purged"] == 7
    audit(server)
    assert letters(server)["letters"] == [] and tables()["default.dead_letters"]["removed"] == 48
    seen = server.catalog().load_table("default.dead_letters").scan().to_arrow()
    assert seen.num_rows == 0, "another engine sees none of them"
    assert server.sql("SELECT count(*) AS n FROM default.typed")[0]["n"] == 1
