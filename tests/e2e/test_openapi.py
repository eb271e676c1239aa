"""The OpenAPI document against the running server, by schemathesis, which makes requests out of it."""

import subprocess
import sys

import pytest
import requests

# They do not end by themselves (a feed), or are no HTTP once they are open (WebSocket).
ENDLESS = ["/api/feeds/{stream}", "/events/stream", "/api/ingest/stream"]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"

# Lines of JSON are a type that schemathesis leaves to its users to write.
RUN = """
import schemathesis
from schemathesis.cli import schemathesis as run

@schemathesis.serializer("application/x-ndjson", "application/ndjson", "application/jsonl")
def lines(context, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")

run()
"""


def check(server, *more):
    """Runs schemathesis on all that ends by itself."""
    without = [word for path in ENDLESS for word in ("--exclude-path", path)]
    command = [
        sys.executable, "-c", RUN, "run", f"{server.http}/openapi.json", "--checks", CHECKS,
        "--phases", "examples,fuzzing", "--max-examples", "15", "--seed", "1", "--generation-database", "none", "--request-timeout", "40", "--continue-on-failure", *without, *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=server.folder)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:] + server.tail(10)


@pytest.fixture
def document(server):
    answer = requests.get(f"{server.http}/openapi.json", timeout=10)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


def test_what_is_documented_is_what_the_server_answers(server, document):
    assert document["openapi"].startswith("3.1")
    check(server)


def test_every_documented_path_is_there_and_says_what_it_takes(server, document):
    for path, operations in document["paths"].items():
        answer = requests.request("PATCH", server.http + path.format(stream="s", id="i", namespace="n", table="t"), timeout=10)
        assert answer.status_code == 405, f"{path}: {answer.status_code} {answer.text}"
        allowed = {method.strip().lower() for method in answer.headers["allow"].split(",")}
        assert set(operations) <= allowed, f"{path} takes {allowed}"
        assert answer.headers["content-type"] == "application/problem+json"


def test_s04_what_is_documented_holds_with_credentials_of_every_reach(make_server):
    from test_security import REQUIRED, make_key

    server = make_server(REQUIRED)
    whole = make_key(server, "write", "read", "admin", "operator")["key"]
    narrow = make_key(server, "write:cart")["key"]
    server.start()
    document = requests.get(f"{server.http}/openapi.json", headers={"x-api-key": whole}, timeout=10).json()
    assert document["components"]["securitySchemes"], "how to show who asks is documented"
    for key in (whole, narrow):
        check(server, "--header", f"x-api-key: {key}")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answer = requests.request(method, server.http + path.format(stream="s", id="i", namespace="n", table="t"), timeout=10)
            if path in ("/health", "/livez", "/readyz"):
                assert answer.status_code == 200, path
                continue
            assert (answer.status_code, answer.json()["code"]) == (401, "credentials_missing"), f"{method} {path}"
            assert "401" in operation["responses"], f"{method} {path}"


def test_feeds_and_sockets_answer_as_documented(server, document):
    feed = document["paths"]["/api/feeds/{stream}"]["get"]["responses"]
    requests.post(f"{server.http}/api/ingest/streams/s", json={"a": 1}, timeout=10)
    for query, headers in [
        ({"from": "earliest", "limit": 1}, {}),
        ({"from": "earliest", "limit": 1}, {"accept": "text/event-stream"}),
        ({"from": "yesterday"}, {}),
        ({"limit": -1}, {}),
        ({"tenant": "No Such"}, {}),
        ({"other": 1}, {}),
        ({"limit": 1}, {"last-event-id": "x"}),
    ]:
        answer = requests.get(f"{server.http}/api/feeds/s", params=query, headers=headers, timeout=20)
        documented = feed[str(answer.status_code)]
        while "$ref" in documented:
            documented = document["components"]["responses"][documented["$ref"].rsplit("/", 1)[1]]
        assert answer.headers["content-type"].split(";")[0] in documented["content"], (query, answer.headers)
    for path in ("/events/stream", "/api/ingest/stream"):
        socket = document["paths"][path]["get"]["responses"]
        upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
        for headers in ({}, upgrade, {**upgrade, "sec-websocket-key": "short"}, {**upgrade, "sec-websocket-version": "8"}):
            answer = requests.get(server.http + path, headers=headers, timeout=10)
            assert str(answer.status_code) in socket and answer.status_code >= 400, (path, headers, answer.status_code)
