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


@pytest.fixture
def document(server):
    answer = requests.get(f"{server.http}/openapi.json", timeout=10)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


def test_what_is_documented_is_what_the_server_answers(server, document):
    assert document["openapi"].startswith("3.1")
    without = [word for path in ENDLESS for word in ("--exclude-path", path)]
    command = [
        sys.executable, "-c", RUN, "run", f"{server.http}/openapi.json", "--checks", CHECKS,
        "--phases", "examples,fuzzing", "--max-examples", "15", "--seed", "1", "--generation-database", "none", "--request-timeout", "40", "--continue-on-failure", *without,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=server.folder)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:] + server.tail(10)


def test_every_documented_path_is_there_and_says_what_it_takes(server, document):
    for path, operations in document["paths"].items():
        answer = requests.request("PATCH", server.http + path.format(stream="s", id="i"), timeout=10)
        assert answer.status_code == 405, f"{path}: {answer.status_code} {answer.text}"
        allowed = {method.strip().lower() for method in answer.headers["allow"].split(",")}
        assert set(operations) <= allowed, f"{path} takes {allowed}"
        assert answer.headers["content-type"] == "application/problem+json"
