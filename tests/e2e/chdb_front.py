"""ClickHouse's current engine (chdb) behind as much of the HTTP interface as a client needs that inserts and asks.

    python chdb_front.py PORT FOLDER        `GET /lose` makes the next insert lose its answer once it is done
"""

import http.server
import pathlib
import re
import sys
import threading
import urllib.parse

from chdb import session

PORT, FOLDER = int(sys.argv[1]), pathlib.Path(sys.argv[2])
OURS = ("query",)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, text, **headers):
        self.send_response(status)
        for name, value in {"content-length": str(len(text)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        if self.path == "/lose":
            self.server.lose = True
        self.answer(200, b"Ok.\n")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        given = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        statement = given.get("query") or body.decode()
        settings = ", ".join(f"{name}='{value}'" for name, value in given.items() if name not in OURS)
        is_insert = "query" in given
        if is_insert:
            file = FOLDER / f"{threading.get_ident()}.bin"
            file.write_bytes(body)
            into, form = re.fullmatch(r"(?s)(.*) FORMAT (\w+)", statement).groups()
            statement = f"{into} FROM INFILE '{file}' {'SETTINGS ' + settings if settings else ''} FORMAT {form}"
        try:
            with self.server.lock:
                found = self.server.session.query(statement, "TabSeparated").bytes() or b""
        except Exception as error:
            text = str(error)
            code = re.search(r"Code: (\d+)", text)
            return self.answer(500, text.encode(), x_clickhouse_exception_code=code[1] if code else "0")
        if is_insert and self.server.lose:
            self.server.lose = False
            self.close_connection = True
            return
        self.answer(200, found)

    def log_message(self, *_):
        pass


FOLDER.mkdir(parents=True, exist_ok=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
server.daemon_threads = True
server.lock = threading.Lock()
server.session = session.Session(str(FOLDER / "data"))
server.lose = False
server.serve_forever()
