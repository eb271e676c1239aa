"""The ingestion guide of the analytics platform, step by step: its statements, scripts, files and questions as they are written
there, but for host and port. They run against Lakegate's own Trino protocol, and, where `LAKEGATE_TRINO` is set, against a real
Trino on Lakegate's catalog. Where the guide leaves something out (`...`), it is filled in here."""

import datetime
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import boto3
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import requests

from conftest import ROOT, Server
from stores import KEY, MINIO, SECRET, Services
from test_kafka import COLUMNS, Broker, skip_without_kafka, until

trino = pytest.importorskip("trino")

GUIDE = ROOT.parent / "shared" / "seeds" / "003_2717f8f25279abfa.txt"

# ---- what the guide says ----------------------------------------------------------------------------------------

INSERT = """INSERT INTO iceberg.bronze.service_events_raw (
    event_date, event_time, tenant_id, service, entity_type, entity_id,
    event_type, status, actor_type, actor_id, channel, ward_id, locality_id,
    attributes_json, raw_payload
) VALUES
(DATE '2024-12-01', TIMESTAMP '2024-12-01 10:00:00', 'TENANT_001', 'PGR', 'complaint', 'CMP_001', ...)"""
REST = """'CaseSubmitted', 'OPEN', 'CITIZEN', 'CIT_001', 'WEB', 'WARD_001', 'LOC_001', '{"priority":"MEDIUM"}', NULL"""

CSV = """event_date,event_time,tenant_id,service,entity_type,entity_id,event_type,status,actor_type,actor_id,channel,ward_id,locality_id,attributes_json,raw_payload
2024-12-01,2024-12-01 10:00:00,TENANT_001,PGR,complaint,CMP_001,CaseSubmitted,OPEN,CITIZEN,CIT_001,WEB,WARD_001,LOC_001,"{""complaint_type"":""Water Supply"",""priority"":""MEDIUM"",""sla_hours"":72}",NULL
"""

STAGING_TABLE = """CREATE TABLE iceberg.bronze.temp_pgr_events_staging (
    event_date DATE,
    event_time TIMESTAMP,
    tenant_id VARCHAR,
    service VARCHAR,
    entity_type VARCHAR,
    entity_id VARCHAR,
    event_type VARCHAR,
    status VARCHAR,
    actor_type VARCHAR,
    actor_id VARCHAR,
    channel VARCHAR,
    ward_id VARCHAR,
    locality_id VARCHAR,
    attributes_json VARCHAR,
    raw_payload VARCHAR
)
WITH (
    format = 'CSV',  -- or 'PARQUET'
    external_location = 's3://warehouse/staging/pgr_events_20241201.csv',
    skip_header_line_count = 1  -- if CSV has header
)"""
FROM_STAGING = """INSERT INTO iceberg.bronze.service_events_raw
SELECT * FROM iceberg.bronze.temp_pgr_events_staging"""
DROP_STAGING = "DROP TABLE iceberg.bronze.temp_pgr_events_staging"

FROM_FILE = """INSERT INTO iceberg.bronze.service_events_raw
SELECT * FROM TABLE(
    EXTERNAL('s3://warehouse/staging/pgr_events_20241201.csv', 
             CSV, 
             'event_date DATE, event_time TIMESTAMP, ...')
)"""

SCRIPT = """import trino

# Connect to Trino
conn = trino.dbapi.connect(
    host='localhost',
    port=8090,
    user='trino',
    catalog='iceberg',
    schema='bronze'
)

cur = conn.cursor()

# Insert events
cur.execute(\"\"\"
    INSERT INTO iceberg.bronze.service_events_raw VALUES
    (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
\"\"\", (event_date, event_time, tenant_id, ...))

conn.commit()"""

RPK_EVENT = """{"event_date":"2024-12-17","event_time":"2024-12-17 10:00:00","tenant_id":"TENANT_001","service":"PGR","entity_type":"complaint","entity_id":"CMP_001","event_type":"CaseSubmitted","status":"OPEN","actor_type":"CITIZEN","actor_id":"CIT_001","channel":"WEB","ward_id":"WARD_001","locality_id":"LOC_001","attributes_json":{"complaint_type":"Water Supply","priority":"MEDIUM","sla_hours":72},"raw_payload":null}"""

PRODUCER = """from kafka import KafkaProducer
import json

# RedPanda is fully Kafka protocol compatible
producer = KafkaProducer(
    bootstrap_servers=["localhost:19092"],  # External port for host access
    value_serializer=lambda v: json.dumps(v).encode("utf-8")
)

event = {
    "event_date": "2024-12-17",
    "event_time": "2024-12-17 10:00:00",
    "tenant_id": "TENANT_001",
    "service": "PGR",
    "entity_type": "complaint",
    "entity_id": "CMP_001",
    "event_type": "CaseSubmitted",
    "status": "OPEN",
    # ... other fields
}

producer.send("pgr-events", value=event)
producer.flush()"""

VARIABLES = {"KAFKA_TOPIC": "pgr-events", "KAFKA_GROUP_ID": "bronze-ingestion", "BATCH_SIZE": "100", "FLUSH_INTERVAL_SEC": "5",
             "TRINO_HOST": "trino", "TRINO_PORT": "8080", "TRINO_USER": "trino"}  # fmt: skip

RECENT = """SELECT 
    event_date, 
    event_time, 
    entity_id, 
    event_type, 
    status
FROM iceberg.bronze.service_events_raw
WHERE event_date = CURRENT_DATE
ORDER BY event_time DESC
LIMIT 10"""

DESCRIBE = "DESCRIBE iceberg.bronze.service_events_raw"


def test_the_steps_below_are_the_guides():
    if not GUIDE.exists():
        pytest.skip("the guide is not here")
    guide = GUIDE.read_text()
    for part in (INSERT, *CSV.splitlines(), STAGING_TABLE, FROM_STAGING, DROP_STAGING, FROM_FILE, SCRIPT, RPK_EVENT, PRODUCER, RECENT, DESCRIBE):
        assert part in guide, part
    assert all(f"{name}={text}" in guide for name, text in VARIABLES.items())


# ---- the platform -----------------------------------------------------------------------------------------------


class Platform:
    """Lakegate with its tables in a bucket, and a broker: what the guide's containers are."""

    staging = "s3://warehouse/staging"


@pytest.fixture(scope="module")
def platform(tmp_path_factory, stubs):
    skip_without_kafka()
    if not os.access(MINIO, os.X_OK):
        pytest.skip("minio is not here; `cargo xtask services install minio` builds it")
    it = Platform()
    it.minio = Services(["minio"]).up()
    it.broker = Broker(tmp_path_factory.mktemp("kafka"))
    it.broker.run("up")
    it.broker.topic("pgr-events", 1)
    s3 = {"endpoint": it.minio.address, "access_key": KEY, "secret_key": SECRET}
    it.s3 = boto3.client("s3", endpoint_url=s3["endpoint"], aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1")
    settings = {"storage": {"warehouse": "s3://warehouse/lake", "s3": s3}, "imports": {"buckets": ["warehouse/staging/"]}}
    it.server = Server(tmp_path_factory.mktemp("document"), stubs, settings)
    it.server.start(KAFKA_BROKERS=it.broker.address, **VARIABLES)
    it.lakegate = Engine("lakegate", f"http://localhost:{it.server.http_port}")
    # The table comes with its first row, and Trino inserts into tables that are there.
    it.lakegate.ask(INSERT.replace("...", REST).replace("CMP_001", "FIRST"))
    yield it
    it.server.kill()
    it.broker.run("down")
    it.minio.remove()


class Engine:
    """Where the guide's statements go."""

    def __init__(self, name, url):
        self.name, self.url, self.port = name, url, int(url.rsplit(":", 1)[1])

    def ask(self, sql):
        connection = trino.dbapi.connect(host="localhost", port=self.port, user="trino", catalog="iceberg", schema="bronze")
        return connection.cursor().execute(sql).fetchall()

    def refused(self, sql):
        with pytest.raises(trino.exceptions.TrinoQueryError) as error:
            self.ask(sql)
        return error.value.message


@pytest.fixture(scope="module")
def real_trino(platform):
    if not os.environ.get("LAKEGATE_TRINO"):
        pytest.skip("LAKEGATE_TRINO is not set")
    service = Services(["trino"], CATALOG_URI=f"{platform.server.http}/iceberg", S3_ENDPOINT=platform.minio.address).up()
    yield Engine("trino", service.address)
    service.remove()


@pytest.fixture(scope="module", params=["lakegate", "trino"])
def engine(request, platform):
    return platform.lakegate if request.param == "lakegate" else request.getfixturevalue("real_trino")


def stored(engine, entity_id):
    """The rows of a case, all columns, as that engine finds them."""
    return engine.ask(f"SELECT {', '.join(COLUMNS)} FROM iceberg.bronze.service_events_raw WHERE entity_id = '{entity_id}'")


def expect(entity_id, attributes, day=1, **more):
    """A row of the guide, as the Trino client gives it."""
    row = {
        "event_date": datetime.date(2024, 12, day), "event_time": datetime.datetime(2024, 12, day, 10), "tenant_id": "TENANT_001",
        "service": "PGR", "entity_type": "complaint", "entity_id": entity_id, "event_type": "CaseSubmitted", "status": "OPEN",
        "actor_type": "CITIZEN", "actor_id": "CIT_001", "channel": "WEB", "ward_id": "WARD_001", "locality_id": "LOC_001",
        "attributes_json": attributes, "raw_payload": None, **more,
    }  # fmt: skip
    return [row[name] for name in COLUMNS]


ATTRIBUTES = {"complaint_type": "Water Supply", "priority": "MEDIUM", "sla_hours": 72}


# ---- method 1: INSERT -------------------------------------------------------------------------------------------


def command_line(engine, sql):
    """`docker exec -it dap-trino trino --server http://trino:8080`, without the container."""
    jars = sorted((pathlib.Path.home() / ".cache/lakegate").rglob("trino-cli*.jar"))
    if not jars or not shutil.which("java"):
        pytest.skip("the Trino command line is not here; `cargo xtask services install clients` fetches it")
    return subprocess.run(["java", "-jar", str(jars[-1]), "--server", engine.url, "--execute", sql], capture_output=True, text=True, timeout=120)


def test_method_1_insert_by_the_command_line(engine, platform):
    case = f"M1_{engine.name}"
    done = command_line(engine, INSERT.replace("...", REST).replace("CMP_001", case))
    assert done.returncode == 0 and "INSERT: 1 row" in done.stderr, done.stderr
    wanted = [expect(case, '{"priority":"MEDIUM"}')]
    assert stored(engine, case) == wanted
    until(lambda: stored(platform.lakegate, case) == wanted)


# ---- method 2: files --------------------------------------------------------------------------------------------


def upload(platform, name, body):
    """`mc cp … local/warehouse/staging/`."""
    platform.s3.put_object(Bucket="warehouse", Key=f"staging/{name}", Body=body)


def test_method_2_a_file_in_the_bucket_through_a_staging_table(platform, request):
    upload(platform, "pgr_events_20241201.csv", CSV.replace("CMP_001", "M2_CSV").encode())
    lakegate = platform.lakegate
    lakegate.ask(STAGING_TABLE)
    assert lakegate.ask(FROM_STAGING) == [[1]]
    lakegate.ask(DROP_STAGING)
    wanted = [expect("M2_CSV", json.dumps(ATTRIBUTES, separators=(",", ":")))]
    assert stored(lakegate, "M2_CSV") == wanted
    if os.environ.get("LAKEGATE_TRINO"):
        real = request.getfixturevalue("real_trino")
        until(lambda: stored(real, "M2_CSV") == wanted)


def test_method_2_parquet_and_json_lines_in_the_staging_folder(platform):
    row = dict(zip(COLUMNS, expect("M2_FILE", json.dumps(ATTRIBUTES))))
    types = {"event_date": pa.date32(), "event_time": pa.timestamp("us")}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    for kind, suffix in (("PARQUET", "parquet"), ("JSON", "jsonl")):
        row["entity_id"] = f"M2_{kind}"
        if kind == "PARQUET":
            body = io.BytesIO()
            pq.write_table(pa.Table.from_pylist([row], schema), body)
            body = body.getvalue()
        else:
            texts = {name: str(value) if name in types else value for name, value in row.items()}
            body = (json.dumps(texts) + "\n").encode()
        upload(platform, f"your_file.{suffix}", body)
        made = STAGING_TABLE.replace("'CSV'", f"'{kind}'").replace("pgr_events_20241201.csv", f"your_file.{suffix}")
        platform.lakegate.ask(made.replace(",\n    skip_header_line_count = 1  -- if CSV has header", ""))
        assert platform.lakegate.ask(FROM_STAGING) == [[1]]
        platform.lakegate.ask(DROP_STAGING)
        assert stored(platform.lakegate, f"M2_{kind}") == [list(row.values())]


def test_method_2_the_place_of_a_file_in_a_statement(platform):
    upload(platform, "pgr_events_20241201.csv", CSV.replace("CMP_001", "M2_PLACE").encode())
    # The guide says "if supported by Trino connector", which it is not: the message says what is.
    told = platform.lakegate.refused(FROM_FILE)
    assert "SELECT * FROM 's3://warehouse/staging/pgr_events_20241201.csv'" in told, told
    assert platform.lakegate.ask("INSERT INTO iceberg.bronze.service_events_raw SELECT * FROM 's3://warehouse/staging/pgr_events_20241201.csv'") == [[1]]
    assert len(stored(platform.lakegate, "M2_PLACE")) == 1


# ---- method 3: a program ----------------------------------------------------------------------------------------


def run(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_method_3_the_python_script(engine, platform):
    case = f"M3_{engine.name}"
    event = expect(case, json.dumps(ATTRIBUTES))
    values = "import datetime\n" + "\n".join(f"{name} = {value!r}" for name, value in zip(COLUMNS, event))
    script = SCRIPT.replace("8090", str(engine.port)).replace("tenant_id, ...", ", ".join(COLUMNS[2:]))
    run(f"{values}\n{script}")
    # `conn.commit()` ends no transaction here: the statement is one, and ends when its answer is read.
    until(lambda: stored(engine, case) == [event])
    until(lambda: stored(platform.lakegate, case) == [event])


# ---- method 4: Kafka --------------------------------------------------------------------------------------------


def test_method_4_events_of_a_topic(platform, engine):
    case = f"M4_{engine.name}"
    producer = platform.broker.producer()
    # Option B: the line as it is given to `rpk topic produce`.
    producer.produce("pgr-events", RPK_EVENT.replace("CMP_001", case))
    assert producer.flush(30) == 0
    # Option C: the program, as it stands: what it leaves out stays empty.
    script = PRODUCER.replace("localhost:19092", platform.broker.address).replace("CMP_001", f"{case}_C")
    run(script)
    absent = dict.fromkeys(("actor_type", "actor_id", "channel", "ward_id", "locality_id"))
    until(lambda: stored(engine, f"{case}_C") == [expect(f"{case}_C", None, 17, **absent)])
    [row] = stored(engine, case)
    found = json.loads(row[COLUMNS.index("attributes_json")])
    assert found == ATTRIBUTES and row == expect(case, row[COLUMNS.index("attributes_json")], 17)


def test_method_4_batches_the_log_and_the_verification(platform, engine):
    today = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None, microsecond=0)
    case = f"NOW_{engine.name}"
    event = json.loads(RPK_EVENT)
    at = [str(today - datetime.timedelta(hours=0 if today.hour else 0, seconds=n)) for n in range(100)]
    day = str(today.date())
    events = [{**event, "event_date": day, "event_time": at[n], "entity_id": f"{case}_{n:03}"} for n in range(100)]
    platform.broker.send("pgr-events", [json.dumps(one).encode() for one in events])
    # The guide's question: what came today, the newest first.
    newest = sorted(events, key=lambda one: one["event_time"], reverse=True)[:10]
    wanted = [[today.date(), datetime.datetime.fromisoformat(one["event_time"]), one["entity_id"], "CaseSubmitted", "OPEN"] for one in newest]
    until(lambda: engine.ask(RECENT) == wanted)
    log = platform.server.log.read_text()
    assert "Connected to Kafka" in log
    assert "Starting consumer loop (batch_size=100, flush_interval=5s)..." in log
    assert " events into bronze.service_events_raw" in log
    # `rpk group describe bronze-ingestion`: no lag.
    from confluent_kafka import Consumer, TopicPartition

    watcher = Consumer({"bootstrap.servers": platform.broker.address, "group.id": "bronze-ingestion"})
    partition = TopicPartition("pgr-events", 0)
    until(lambda: watcher.committed([partition], timeout=10)[0].offset == watcher.get_watermark_offsets(partition, timeout=10)[1])
    watcher.close()


# ---- then dbt ---------------------------------------------------------------------------------------------------


def test_then_dbt_builds_silver_and_gold(platform, real_trino, tmp_path):
    """`dbt run --profiles-dir .`, and its tests, on Trino."""
    dbt = os.environ.get("LAKEGATE_DBT")
    if not dbt:
        pytest.skip("LAKEGATE_DBT is not set; it names a dbt with dbt-trino")
    event = json.loads(RPK_EVENT)
    stages = [("CaseSubmitted", "OPEN", 10), ("CaseAssigned", "ASSIGNED", 11), ("CaseResolved", "RESOLVED", 15), ("CaseClosed", "CLOSED", 16)]
    events = []
    for number in range(40):
        for kind, status, hour in stages[: 1 + number % 4]:
            at = f"2023-05-0{1 + number % 5} {hour}:00:00"
            events.append({**event, "event_date": at[:10], "event_time": at, "entity_id": f"DBT_{number}", "event_type": kind, "status": status})
    platform.broker.send("pgr-events", [json.dumps(one).encode() for one in events])
    count = "SELECT count(*) FROM iceberg.bronze.service_events_raw WHERE entity_id LIKE 'DBT_%'"
    until(lambda: real_trino.ask(count) == [[len(events)]])
    project = tmp_path / "dbt"
    shutil.copytree(ROOT / "dbt", project)
    env = dict(os.environ, DBT_TARGET="trino", TRINO_PORT=str(real_trino.port), DBT_SEND_ANONYMOUS_USAGE_STATS="false", DO_NOT_TRACK="1")
    for words in (["run", "--select", "silver_pgr_events"], ["run", "--select", "gold_pgr_case_lifecycle", "gold_pgr_funnel_daily"], ["build"], ["docs", "generate"]):
        done = subprocess.run([dbt, *words, "--profiles-dir", "."], cwd=project, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-4000:]
    wanted = {}
    for number in range(40):
        row = wanted.setdefault(datetime.date(2023, 5, 1 + number % 5), [0, 0, 0, 0])
        for stage in range(1 + number % 4):
            row[stage] += 1
    funnel = "SELECT submitted_on, submitted, assigned, resolved, closed FROM iceberg.gold.gold_pgr_funnel_daily WHERE submitted_on < DATE '2024-01-01' ORDER BY 1"
    assert real_trino.ask(funnel) == [[day, *row] for day, row in sorted(wanted.items())]
    # What Trino made is a table here too.
    assert platform.lakegate.ask("SELECT count(*) FROM iceberg.gold.gold_pgr_case_lifecycle WHERE case_id LIKE 'DBT_%'") == [[40]]


# ---- troubleshooting --------------------------------------------------------------------------------------------


def test_troubleshooting_file_not_found(platform):
    lakegate = platform.lakegate
    told = lakegate.refused("SELECT * FROM 's3://warehouse/staging/pgr_events_20991231.csv'")
    assert "s3://warehouse/staging/pgr_events_20991231.csv" in told and "is not there" in told and "correct the name" in told, told
    told = lakegate.refused(STAGING_TABLE.replace("pgr_events_20241201", "pgr_events_20991231"))
    assert "s3://warehouse/staging/pgr_events_20991231.csv" in told and "is not there" in told and "correct the name" in told, told
    told = lakegate.refused("SELECT * FROM 'file:///warehouse/staging/pgr_events_20241201.csv'")
    assert "imports.roots" in told and "s3://" in told, told
    told = lakegate.refused("SELECT * FROM 's3://elsewhere/pgr_events_20241201.csv'")
    assert "imports.buckets" in told, told


def test_troubleshooting_schema_mismatch(platform, engine):
    wanted = [[name, {"event_date": "date", "event_time": "timestamp(6)"}.get(name, "varchar")] for name in COLUMNS]
    assert [row[:2] for row in engine.ask(DESCRIBE)] == wanted
    if engine.name != "lakegate":
        return
    upload(platform, "wrong.csv", CSV.replace("entity_id", "case_id", 1).encode())
    told = engine.refused("INSERT INTO iceberg.bronze.service_events_raw (event_date, case_id) SELECT event_date, case_id FROM 's3://warehouse/staging/wrong.csv'")
    assert "case_id" in told and "entity_id" in told and "DESCRIBE" in told, told
    told = engine.refused("INSERT INTO iceberg.bronze.service_events_raw SELECT event_date, case_id FROM 's3://warehouse/staging/wrong.csv'")
    assert "2" in told and "15" in told and "DESCRIBE" in told, told
    told = engine.refused(INSERT.replace("...", REST).replace("TIMESTAMP '2024-12-01 10:00:00'", "'ten o''clock'"))
    assert "row 1" in told and "event_time" in told and "ten o'clock" in told, told


def test_troubleshooting_partition_pruning(platform):
    lakegate = platform.lakegate
    # A day that is missing is that of the event's time; one in another form is told with row, column and the right form.
    assert lakegate.ask(INSERT.replace("...", REST).replace("DATE '2024-12-01'", "NULL").replace("CMP_001", "T3_DAY")) == [[1]]
    assert stored(lakegate, "T3_DAY")[0][0] == datetime.date(2024, 12, 1)
    upload(platform, "days.csv", CSV.replace("\n2024-12-01,", "\n01/12/2024,").encode())
    lakegate.ask(STAGING_TABLE.replace("pgr_events_20241201.csv", "days.csv"))
    told = lakegate.refused(FROM_STAGING)
    lakegate.ask(DROP_STAGING)
    assert "row 1" in told and "event_date" in told and "01/12/2024" in told and "YYYY-MM-DD" in told, told
    told = lakegate.refused(INSERT.replace("...", REST).replace("'PGR'", "NULL"))
    assert "service" in told and "required" in told, told
    # The same by Kafka: among the dead letters, with what was found and what would be right.
    broken = RPK_EVENT.replace('"event_date":"2024-12-17"', '"event_date":"17.12.2024"').replace("CMP_001", "T3_KAFKA")
    platform.broker.send("pgr-events", [broken.encode()])
    letters = "SELECT message FROM \"default\".dead_letters WHERE message LIKE '%17.12.2024%'"

    def message():
        tables = requests.post(f"{platform.server.http}/api/sql", json={"sql": letters}, timeout=30)
        return tables.json() if tables.status_code == 200 else None

    [letter] = until(message)
    assert 'event_date must be a date such as "2026-01-31"' in letter["message"] and "pgr-events, partition 0" in letter["message"], letter
