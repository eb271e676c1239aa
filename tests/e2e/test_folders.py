"""Folders of many files: a thousand at once, watched, and read by two processes."""

import concurrent.futures
import json

import requests

from test_files import drop, imported, post, reader, until  # noqa: F401


def write_tree(folder, kinds, files):
    """So many files of two rows, in folders of event types; the sum of all `n`."""
    for kind in kinds:
        (folder / kind).mkdir()
    for n in range(files):
        kind = kinds[n % len(kinds)]
        lines = [json.dumps({"n": 2 * n + i, "memberCode": f"m{2 * n + i}", "@timestamp": "2025-06-12T23:59:58.997Z"}) + "\n" for i in (0, 1)]
        (folder / kind / f"{n:05}.jsonl").write_text("".join(lines))


def ended(server, job):
    """The job when it has ended, which takes its time on a busy machine."""
    view = lambda: requests.get(f"{server.http}/api/jobs/{job}?wait=30s", timeout=60).json()  # noqa: E731
    assert until(lambda: view()["state"] != "running", 500), view()
    return view()


def test_a_tree_of_a_thousand_files_has_its_event_types_from_the_folders(reader, drop):
    server = reader()
    kinds = ["Login", "Game Opened", "API Error", "Fund Transfer"]
    write_tree(drop, kinds, 1000)
    body = {"path": str(drop), "recursive": True, "pattern": "*.jsonl", "event_type_from_dir": True, "parallel_files": 4}
    job = ended(server, post(server, "/api/ingest/bulk?wait=0", body).json()["id"])
    assert (job["files"], job["documents"], job["skipped"], job["files_failed"]) == (1000, 2000, 0, 0), job
    tables = {name for _, name in server.catalog().list_tables("documents")} if ("documents",) in server.catalog().list_namespaces() else set()
    rows = []
    for space in server.catalog().list_namespaces():
        for _, name in server.catalog().list_tables(space):
            loaded = server.catalog().load_table((*space, name)).scan().to_arrow()
            if "event_type" in loaded.column_names:
                rows += loaded.select(["event_type"]).to_pylist()
    found = {kind: sum(row["event_type"] == kind for row in rows) for kind in kinds}
    assert found == {kind: 500 for kind in kinds}, (found, tables)


def test_f54_two_processes_on_one_folder_take_each_file_once(make_server, drop):
    """Two servers, each with a data folder of its own, write to one table of one catalog."""
    write_tree(drop, ["a", "b"], 60)
    imports = {"roots": [str(drop)], "watch": {"settle": "300ms", "poll": "300ms"}}
    first = make_server({"imports": imports}, "first").start()
    warehouse = str(first.data / "warehouse")
    second = make_server({"imports": imports, "storage": {"warehouse": warehouse}, "catalog": {"uri": f"{first.http}/iceberg"}}, "second").start()
    body = {"path": str(drop), "recursive": True, "pattern": "*.jsonl", "stream": "both"}
    # The table is there before they race for it.
    (drop / "first.jsonl").write_text('{"n": 120}\n')
    imported(first, {"path": str(drop / "first.jsonl"), "stream": "both"})
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = list(pool.map(lambda server: post(server, "/api/ingest/bulk?wait=200s", body).json(), (first, second)))
    table = first.catalog().load_table("default.both")
    found = table.scan().to_arrow()
    assert found.num_rows == 121, (found.num_rows, jobs)
    for _ in range(3):
        jobs = [imported(server, body, "/api/ingest/bulk?wait=200s") for server in (first, second)]
    assert all(job["documents"] == 0 and job["files_unchanged"] == 61 for job in jobs), jobs
    assert first.catalog().load_table("default.both").scan().to_arrow().num_rows == 121


def test_f54_a_watch_takes_a_thousand_files_that_come_at_once(reader, drop):
    server = reader()
    watch = post(server, "/api/ingest/watch", {"path": str(drop), "recursive": True, "stream": "many", "parallel_files": 4}).json()
    write_tree(drop, ["x", "y", "z"], 1000)
    figures = lambda: requests.get(f"{server.http}/api/ingest/watches/{watch['id']}").json()  # noqa: E731
    assert until(lambda: figures()["documents"] == 2000, 500), figures()
    assert figures()["files_failed"] == 0
    assert until(lambda: server.sql("SELECT count(*) AS c FROM default.many")[0]["c"] == 2000, 60), figures()
    metrics = requests.get(f"{server.http}/metrics", headers={"accept": "text/plain"}, timeout=10).text
    commits = [float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("lakegate_import_commits_total")]
    assert 1000 / 64 <= sum(commits) < 800, "small files share commits"
    server.stop()
    server.start()
    (drop / "x" / "late.jsonl").write_text('{"n": 2000}\n')
    assert until(lambda: server.sql("SELECT count(*) AS c FROM default.many")[0]["c"] == 2001, 60), figures()
