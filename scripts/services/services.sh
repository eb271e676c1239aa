#!/usr/bin/env bash
# Real services for trying out and for tests, from package registries, on loopback only.
#
#   services.sh up [SERVICE...]        installs what is missing and starts it; prints NAME and address, a line each
#   services.sh down [SERVICE...]      stops it; its data stay
#   services.sh status [SERVICE...]    says what runs
#   services.sh install SERVICE...     installs alone
#
# SERVICE: kafka minio postgres redis clickhouse rest-catalog trino connect; none: all of the light ones (minio postgres
# redis) for `up`, all for the others. Doing it twice changes nothing. `install clients` fetches Trino's command line and JDBC driver
# and the JDBC driver of Arrow Flight SQL.
#
# $SERVICES_DIR (default .services)      data, logs, process ids
# $SERVICES_CACHE (default ~/.cache/lakegate/services)   programs; $HOME/.m2 keeps what Maven fetched
# Ports: KAFKA_PORT 9092, MINIO_PORT 9000, POSTGRES_PORT 5455, REDIS_PORT 6390, CLICKHOUSE_PORT 8123, REST_CATALOG_PORT 8181,
#   TRINO_PORT 8088, CONNECT_PORT 8083.
# S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY, S3_WAREHOUSE (s3://…): what trino, connect and rest-catalog use as bucket.
# CATALOG_URI: what trino and connect use as catalog (default http://127.0.0.1:3001/iceberg).
# KAFKA_SSL_PORT, KAFKA_SASL_PORT, KAFKA_SASL_SSL_PORT: further listeners of kafka: TLS that asks for a certificate, a user
#   without TLS, a user with TLS (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512: KAFKA_USER and KAFKA_PASSWORD, default lakegate and
#   lakegate-secret). What clients need lies in $SERVICES_DIR/kafka/tls: ca.pem, client.pem, client.key.
set -euo pipefail

all="minio postgres redis clickhouse kafka rest-catalog trino connect"
light="minio postgres redis"
mkdir -p "${SERVICES_DIR:=$PWD/.services}" "${SERVICES_CACHE:=$HOME/.cache/lakegate/services}"
folder="$(cd "$SERVICES_DIR" && pwd)"
cache="$(cd "$SERVICES_CACHE" && pwd)"
kafka_version=4.3.1 iceberg_version=1.11.0 trino_version=476 minio_version=v0.0.0-20260212201848-7aac2a2c5b7c
kafka_port="${KAFKA_PORT:-9092}" minio_port="${MINIO_PORT:-9000}" postgres_port="${POSTGRES_PORT:-5455}"
redis_port="${REDIS_PORT:-6390}" clickhouse_port="${CLICKHOUSE_PORT:-8123}" rest_port="${REST_CATALOG_PORT:-8181}"
trino_port="${TRINO_PORT:-8088}" connect_port="${CONNECT_PORT:-8083}"
catalog_uri="${CATALOG_URI:-http://127.0.0.1:3001/iceberg}"
access_key="${S3_ACCESS_KEY:-minioadmin}" secret_key="${S3_SECRET_KEY:-minioadmin}"
s3_endpoint="${S3_ENDPOINT:-http://127.0.0.1:$minio_port}"

say() { echo "services: $*" >&2; }
fail() { say "$*"; exit 1; }

# ---- processes --------------------------------------------------------------------------------------------------

# When a process began, so that a number that was given to another is not taken for ours; nothing for one that has ended,
# also where nobody has asked yet how.
birth() { sed -n 's/.*) //; /^Z/!p' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

runs() {
  local pid born
  [ -s "$folder/$1/pid" ] || return 1
  read -r pid born <"$folder/$1/pid"
  [ -n "$born" ] && [ "$(birth "$pid")" = "$born" ]
}

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null || fail "port $1 is in use; choose another (see the head of this script)"; }

begin() { # begin NAME COMMAND...
  local name="$1" home="$folder/$1"
  shift
  (cd "$home" && exec setsid nohup "$@") >"$home/log" 2>&1 </dev/null &
  echo "$! $(birth $!)" >"$home/pid"
}

until_ready() { # until_ready NAME SECONDS COMMAND...
  local name="$1" end=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    runs "$name" || { tail -20 "$folder/$name/log" >&2; fail "$name ended at once, see $folder/$name/log"; }
    [ "$SECONDS" -lt "$end" ] || { tail -20 "$folder/$name/log" >&2; fail "$name is not ready in time, see $folder/$name/log"; }
    sleep 0.2
  done
}

down() {
  local pid born
  if runs "$1"; then
    read -r pid born <"$folder/$1/pid"
    # PostgreSQL: INT does not wait for clients.
    kill "-$([ "$1" = postgres ] && echo INT || echo TERM)" "$pid"
    for _ in $(seq 100); do runs "$1" || break; sleep 0.2; done
    ! runs "$1" || kill -KILL "$pid"
  fi
  rm -f "$folder/$1/pid"
}

# ---- packages ---------------------------------------------------------------------------------------------------

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

packages() { # packages NAME...: from the system's registry; none of them starts a service of the system's own
  as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$@" >&2
}

java_of() { # java_of VERSION: the lowest JDK of at least that version
  local home version best="" lowest=1000
  for home in ${JAVA_HOME:+"$JAVA_HOME"} /usr/lib/jvm/* /opt/java/* "$HOME"/.jdks/*; do
    version="$(sed -n 's/^JAVA_VERSION="\([0-9]*\).*/\1/p' "$home/release" 2>/dev/null || true)"
    [ -n "$version" ] && [ -x "$home/bin/java" ] || continue
    if [ "$version" -ge "$1" ] && [ "$version" -lt "$lowest" ]; then best="$home" lowest="$version"; fi
  done
  [ -n "$best" ] || fail "a JDK of version $1 or later is needed; install openjdk-17-jdk (Kafka, Connect, the REST catalog) or temurin-25-jdk (Trino)"
  echo "$best/bin/java"
}

maven() { command -v mvn >/dev/null || packages maven; mvn -B -q -ntp "$@"; }

jars() { # jars FOLDER GROUP:NAME:VERSION[:CLASSIFIER]...: those and all that they need, once for each list
  local to="$1" list want group name version classifier
  shift
  list="$*"
  [ "$(cat "$to/list" 2>/dev/null)" != "$list" ] || return 0
  say "fetching $(basename "$to")"
  rm -rf "$to" && mkdir -p "$to"
  {
    echo '<project><modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>jars</artifactId><version>1</version><dependencies>'
    for want in "$@"; do
      IFS=: read -r group name version classifier <<<"$want"
      echo "<dependency><groupId>$group</groupId><artifactId>$name</artifactId><version>$version</version>${classifier:+<classifier>$classifier</classifier>}</dependency>"
    done
    echo '</dependencies></project>'
  } >"$to/pom.xml"
  maven -f "$to/pom.xml" dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$to" >&2 || fail "Maven could not fetch $list"
  echo "$list" >"$to/list"
}

# ---- services ---------------------------------------------------------------------------------------------------

minio_program() { command -v minio || echo "$HOME/.cache/lakegate/bin/minio"; }
install_minio() {
  [ ! -x "$(minio_program)" ] || return 0
  command -v go >/dev/null || fail "MinIO is built with Go (package golang-go, 1.24 or later); it takes minutes, once"
  say "building MinIO"
  CGO_ENABLED=0 GOBIN="$HOME/.cache/lakegate/bin" go install -trimpath "github.com/minio/minio@$minio_version"
}
up_minio() {
  is_free "$minio_port"
  # A bucket of a single-disk MinIO is a folder.
  mkdir -p "$folder/minio/data/${S3_BUCKET:-warehouse}"
  MINIO_ROOT_USER="$access_key" MINIO_ROOT_PASSWORD="$secret_key" MINIO_BROWSER=off MINIO_UPDATE=off MINIO_CALLHOME_ENABLE=off \
    begin minio "$(minio_program)" server --quiet --address "127.0.0.1:$minio_port" "$folder/minio/data"
  until_ready minio 60 curl -fsS "http://127.0.0.1:$minio_port/minio/health/ready"
}
address_minio() { echo "http://127.0.0.1:$minio_port"; }

postgres_folder() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1; }
install_postgres() {
  [ -z "$(postgres_folder)" ] || [ ! -x "$(postgres_folder)/initdb" ] || return 0
  as_root mkdir -p /etc/postgresql-common/createcluster.d
  echo "create_main_cluster = false" | as_root tee /etc/postgresql-common/createcluster.d/lakegate.conf >/dev/null
  packages postgresql
}
up_postgres() {
  local home="$folder/postgres" programs as=() exec=()
  programs="$(postgres_folder)"
  is_free "$postgres_port"
  if [ "$(id -u)" = 0 ]; then # it does not run as root
    as=(runuser -u postgres --) exec=(setpriv --reuid=postgres --regid=postgres --init-groups)
    chown postgres "$home"
    "${as[@]}" test -x "$home" || fail "the user postgres cannot reach $home; choose another SERVICES_DIR, such as one in /tmp"
  fi
  [ -s "$home/data/PG_VERSION" ] || (cd "$home" && LC_ALL=C.UTF-8 "${as[@]}" "$programs/initdb" -D "$home/data" -U postgres -A trust -E UTF8) >"$home/initdb.log" 2>&1 ||
    { tail -5 "$home/initdb.log" >&2; fail "initdb failed"; }
  begin postgres "${exec[@]}" "$programs/postgres" -D "$home/data" -p "$postgres_port" -h 127.0.0.1 -k "$home"
  until_ready postgres 60 "$programs/pg_isready" -q -h 127.0.0.1 -p "$postgres_port" -U postgres
}
address_postgres() { echo "postgres://postgres@127.0.0.1:$postgres_port/postgres"; }

install_redis() { command -v redis-server >/dev/null && command -v redis-cli >/dev/null || packages redis-server; }
up_redis() {
  is_free "$redis_port"
  begin redis redis-server --bind 127.0.0.1 --port "$redis_port" --dir "$folder/redis" --appendonly yes --save "" --daemonize no
  until_ready redis 20 redis-cli -p "$redis_port" ping
}
address_redis() { echo "redis://127.0.0.1:$redis_port"; }

install_clickhouse() { command -v clickhouse-server >/dev/null || [ -x /usr/sbin/clickhouse-server ] || packages clickhouse-server clickhouse-client; }
up_clickhouse() {
  local home="$folder/clickhouse"
  is_free "$clickhouse_port"
  mkdir -p "$home/data" "$home/tmp"
  cat >"$home/config.xml" <<XML
<yandex>
  <logger><level>warning</level><log>$home/server.log</log><errorlog>$home/error.log</errorlog></logger>
  <listen_host>127.0.0.1</listen_host><http_port>$clickhouse_port</http_port>
  <tcp_port>${CLICKHOUSE_TCP_PORT:-9019}</tcp_port><interserver_http_port>${CLICKHOUSE_INTERSERVER_PORT:-9029}</interserver_http_port>
  <path>$home/data/</path><tmp_path>$home/tmp/</tmp_path><users_config>$home/users.xml</users_config>
  <default_profile>default</default_profile><default_database>default</default_database><mark_cache_size>268435456</mark_cache_size>
</yandex>
XML
  cat >"$home/users.xml" <<'XML'
<yandex>
  <profiles><default><max_memory_usage>2000000000</max_memory_usage></default></profiles>
  <users><default><password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default></users>
  <quotas><default><interval><duration>3600</duration><queries>0</queries><errors>0</errors><result_rows>0</result_rows><read_rows>0</read_rows><execution_time>0</execution_time></interval></default></quotas>
</yandex>
XML
  PATH="$PATH:/usr/sbin" begin clickhouse clickhouse-server "--config-file=$home/config.xml"
  until_ready clickhouse 60 curl -fsS "http://127.0.0.1:$clickhouse_port/ping"
}
address_clickhouse() { echo "http://127.0.0.1:$clickhouse_port"; }

log4j() { # what a Kafka process logs, and where to
  printf '%s\n' rootLogger.level=warn rootLogger.appenderRef.a.ref=A appender.a.type=Console appender.a.name=A \
    appender.a.layout.type=PatternLayout 'appender.a.layout.pattern=%d %p %m (%c)%n' "logger.x.name=$1" logger.x.level=info
}
kafka_certificates() { # one authority, which signs the broker's and a client's certificate
  local tls="$1" name
  [ ! -s "$tls/client.pem" ] || return 0
  command -v openssl >/dev/null || packages openssl
  rm -rf "$tls" && mkdir -p "$tls"
  openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=Lakegate trial CA" -keyout "$tls/ca.key" -out "$tls/ca.pem" 2>/dev/null
  printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >"$tls/names"
  for name in broker client; do
    openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout "$tls/$name.key" -out "$tls/$name.csr" 2>/dev/null
    openssl x509 -req -in "$tls/$name.csr" -CA "$tls/ca.pem" -CAkey "$tls/ca.key" -CAcreateserial -days 3650 -extfile "$tls/names" -out "$tls/$name.pem" 2>/dev/null
  done
  cat "$tls/broker.key" "$tls/broker.pem" >"$tls/broker-store.pem"
}
kafka_listeners() { # name and port of each that is asked for beside the plain one
  echo "SSL ${KAFKA_SSL_PORT:-}" "SASL_PLAINTEXT ${KAFKA_SASL_PORT:-}" "SASL_SSL ${KAFKA_SASL_SSL_PORT:-}" | xargs -n 1 | awk '/^[0-9]/ { print name, $1 } { name = $1 }'
}
kafka_security() { # the lines of the broker's settings for them
  local tls="$1" user="${KAFKA_USER:-lakegate}" password="${KAFKA_PASSWORD:-lakegate-secret}" name port module=org.apache.kafka.common.security
  kafka_certificates "$tls"
  printf '%s\n' ssl.keystore.type=PEM "ssl.keystore.location=$tls/broker-store.pem" ssl.truststore.type=PEM "ssl.truststore.location=$tls/ca.pem" \
    listener.name.ssl.ssl.client.auth=required sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
  for name in sasl_plaintext sasl_ssl; do
    printf '%s\n' "listener.name.$name.plain.sasl.jaas.config=$module.plain.PlainLoginModule required user_$user=\"$password\";"
    for port in 256 512; do printf '%s\n' "listener.name.$name.scram-sha-$port.sasl.jaas.config=$module.scram.ScramLoginModule required;"; done
  done
}
install_kafka() {
  jars "$cache/kafka" "org.apache.kafka:kafka_2.13:$kafka_version" "org.apache.kafka:kafka-tools:$kafka_version" org.apache.logging.log4j:log4j-slf4j-impl:2.25.4
}
up_kafka() {
  local home="$folder/kafka" java controller="${KAFKA_CONTROLLER_PORT:-$((kafka_port + 1))}" name port more=() scram=()
  java="$(java_of 17)"
  is_free "$kafka_port"
  is_free "$controller"
  local listeners="PLAINTEXT://127.0.0.1:$kafka_port" map="PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
  while read -r name port; do
    is_free "$port"
    listeners="$listeners,$name://127.0.0.1:$port" map="$map,$name:$name"
    [ ${#more[@]} -gt 0 ] || mapfile -t more < <(kafka_security "$home/tls")
  done < <(kafka_listeners)
  for name in 256 512; do
    scram+=(--add-scram "SCRAM-SHA-$name=[name=${KAFKA_USER:-lakegate},password=${KAFKA_PASSWORD:-lakegate-secret}]")
  done
  printf '%s\n' process.roles=broker,controller node.id=1 "controller.quorum.voters=1@127.0.0.1:$controller" \
    "listeners=$listeners,CONTROLLER://127.0.0.1:$controller" "advertised.listeners=$listeners" \
    controller.listener.names=CONTROLLER "listener.security.protocol.map=$map" \
    inter.broker.listener.name=PLAINTEXT "log.dirs=$home/data" num.partitions=1 offsets.topic.replication.factor=1 \
    offsets.topic.num.partitions=8 transaction.state.log.replication.factor=1 transaction.state.log.min.isr=1 \
    transaction.state.log.num.partitions=8 share.coordinator.state.topic.replication.factor=1 \
    share.coordinator.state.topic.min.isr=1 group.initial.rebalance.delay.ms=0 "${more[@]}" >"$home/server.properties"
  log4j kafka.server.KafkaRaftServer >"$home/log4j2.properties"
  local options=(-Xms256m "-Xmx${KAFKA_HEAP:-512m}" "-Dlog4j2.configurationFile=$home/log4j2.properties" -cp "$cache/kafka/*")
  [ -f "$home/data/meta.properties" ] || "$java" "${options[@]}" kafka.tools.StorageTool format \
    -t "$(head -c16 /dev/urandom | base64 | tr '+/' 'AB' | cut -c1-22)" "${scram[@]}" -c "$home/server.properties" >"$home/format.log" 2>&1 ||
    { tail -5 "$home/format.log" >&2; fail "Kafka's folder could not be formatted"; }
  begin kafka "$java" "${options[@]}" kafka.Kafka "$home/server.properties"
  until_ready kafka 90 grep -q "Kafka Server started" "$home/log"
}
address_kafka() { echo "127.0.0.1:$kafka_port"; }

install_rest-catalog() {
  local g=org.apache.iceberg v="$iceberg_version"
  jars "$cache/rest-catalog" "$g:iceberg-core:$v" "$g:iceberg-core:$v:tests" "$g:iceberg-api:$v:tests" "$g:iceberg-aws:$v" "$g:iceberg-aws-bundle:$v" \
    org.apache.hadoop:hadoop-client-api:3.4.1 org.apache.hadoop:hadoop-client-runtime:3.4.1 org.eclipse.jetty.ee10:jetty-ee10-servlet:12.1.5 \
    org.eclipse.jetty.compression:jetty-compression-server:12.1.5 org.eclipse.jetty.compression:jetty-compression-gzip:12.1.5 \
    org.xerial:sqlite-jdbc:3.49.1.0 org.slf4j:slf4j-simple:2.0.17
}
up_rest-catalog() { # the Iceberg project's own REST catalog, as its tests use it
  local home="$folder/rest-catalog" java
  java="$(java_of 17)"
  is_free "$rest_port"
  mkdir -p "$home/warehouse"
  cat >"$home/Serve.java" <<'JAVA'
import java.util.*;
import org.apache.iceberg.CatalogUtil;
import org.apache.iceberg.rest.*;
import org.eclipse.jetty.ee10.servlet.*;
import org.eclipse.jetty.server.Server;

public class Serve {
  public static void main(String[] arguments) throws Exception {
    Map<String, String> properties = new HashMap<>();
    for (String argument : arguments) {
      int at = argument.indexOf('=');
      properties.put(argument.substring(0, at), argument.substring(at + 1));
    }
    var port = Integer.parseInt(properties.remove("port"));
    var catalog = CatalogUtil.buildIcebergCatalog("backend", properties, new org.apache.hadoop.conf.Configuration());
    var context = new ServletContextHandler();
    context.setContextPath("/");
    context.addServlet(new ServletHolder(new RESTCatalogServlet(new RESTCatalogAdapter(catalog))), "/*");
    var server = new Server(new java.net.InetSocketAddress("127.0.0.1", port));
    server.setHandler(context);
    server.start();
    server.join();
  }
}
JAVA
  local settings=("port=$rest_port" catalog-impl=org.apache.iceberg.jdbc.JdbcCatalog "uri=jdbc:sqlite:$home/catalog.db?busy_timeout=10000"
    jdbc.schema-version=V1 "warehouse=${REST_CATALOG_WAREHOUSE:-${S3_WAREHOUSE:-file://$home/warehouse}}")
  case "${REST_CATALOG_WAREHOUSE:-${S3_WAREHOUSE:-}}" in s3://*)
    settings+=(io-impl=org.apache.iceberg.aws.s3.S3FileIO "s3.endpoint=$s3_endpoint" s3.path-style-access=true client.region=us-east-1
      "s3.access-key-id=$access_key" "s3.secret-access-key=$secret_key") ;;
  esac
  AWS_REGION=us-east-1 begin rest-catalog "$java" -Xmx512m -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$cache/rest-catalog/*" "$home/Serve.java" "${settings[@]}"
  until_ready rest-catalog 60 curl -fsS "http://127.0.0.1:$rest_port/v1/config"
}
address_rest-catalog() { echo "http://127.0.0.1:$rest_port"; }

install_trino() {
  local home="$cache/trino-$trino_version"
  [ ! -f "$home/ready" ] || return 0
  say "fetching Trino $trino_version, half a gigabyte"
  rm -rf "$home" && mkdir -p "$home/fetched" "$home/plugin"
  local want
  for want in "trino-server-core:$trino_version:tar.gz" "trino-iceberg:$trino_version:zip"; do
    maven dependency:copy "-Dartifact=io.trino:$want" "-DoutputDirectory=$home/fetched" -Dmdep.useBaseVersion=true >&2
  done
  tar -xzf "$home/fetched/trino-server-core-$trino_version.tar.gz" -C "$home" --strip-components=1
  python3 -m zipfile -e "$home/fetched/trino-iceberg-$trino_version.zip" "$home/plugin"
  mv "$home/plugin/trino-iceberg-$trino_version" "$home/plugin/iceberg"
  rm -rf "$home/fetched"
  touch "$home/ready"
}
up_trino() {
  local programs="$cache/trino-$trino_version" home="$folder/trino" etc="$folder/trino/etc" java
  java="$(java_of 24)"
  is_free "$trino_port"
  rm -rf "$etc" && mkdir -p "$etc/catalog" "$home/data"
  printf '%s\n' coordinator=true node-scheduler.include-coordinator=true "http-server.http.port=$trino_port" \
    node.internal-address=127.0.0.1 "discovery.uri=http://127.0.0.1:$trino_port" query.max-memory=1GB \
    catalog.management=dynamic >"$etc/config.properties"
  printf 'io.trino=WARN\nio.trino.server.Server=INFO\n' >"$etc/log.properties"
  printf '%s\n' connector.name=iceberg iceberg.catalog.type=rest "iceberg.rest-catalog.uri=$catalog_uri" \
    fs.native-local.enabled=true local.location=/ >"$etc/catalog/iceberg.properties"
  if [ -n "${S3_ENDPOINT:-}" ]; then
    printf '%s\n' fs.native-s3.enabled=true "s3.endpoint=$s3_endpoint" s3.region=us-east-1 s3.path-style-access=true \
      "s3.aws-access-key=$access_key" "s3.aws-secret-key=$secret_key" >>"$etc/catalog/iceberg.properties"
  fi
  begin trino "$java" "-Xmx${TRINO_HEAP:-2G}" -XX:+UseG1GC -Djdk.attach.allowAttachSelf=true --add-modules=jdk.incubator.vector \
    --enable-native-access=ALL-UNNAMED "-Dlog.levels-file=$etc/log.properties" "-Dconfig=$etc/config.properties" \
    "-Dnode.data-dir=$home/data" -Dnode.environment=local -Dnode.bind-ip=127.0.0.1 "-Dplugin.dir=$programs/plugin" \
    -cp "$programs/lib/*" io.trino.server.TrinoServer
  until_ready trino 180 bash -c "curl -fsS http://127.0.0.1:$trino_port/v1/info | grep -q '\"starting\":false'"
}
address_trino() { echo "http://127.0.0.1:$trino_port"; }

install_clients() {
  local home="$cache/clients" want
  mkdir -p "$home"
  for want in "io.trino:trino-cli:$trino_version:jar:executable" "io.trino:trino-jdbc:$trino_version" "org.apache.arrow:flight-sql-jdbc-driver:18.3.0"; do
    [ -n "$(find "$home" -name "$(cut -d: -f2 <<<"$want")-$(cut -d: -f3 <<<"$want")*.jar")" ] ||
      maven dependency:copy "-Dartifact=$want" "-DoutputDirectory=$home" -Dmdep.useBaseVersion=true >&2 || fail "Maven could not fetch $want"
  done
}

install_connect() {
  local g=org.apache.iceberg v="$iceberg_version" k=org.apache.kafka
  jars "$cache/connect" "$k:connect-runtime:$kafka_version" "$k:connect-json:$kafka_version" "$k:connect-transforms:$kafka_version" org.apache.logging.log4j:log4j-slf4j-impl:2.25.4
  # Without iceberg-orc each task dies at its first record.
  jars "$cache/connect-plugins/iceberg" "$g:iceberg-kafka-connect:$v" "$g:iceberg-kafka-connect-transforms:$v" "$g:iceberg-parquet:$v" "$g:iceberg-orc:$v" \
    "$g:iceberg-aws:$v" "$g:iceberg-aws-bundle:$v" org.apache.hadoop:hadoop-client-api:3.4.1 org.apache.hadoop:hadoop-client-runtime:3.4.1
}
up_connect() {
  local home="$folder/connect" java
  java="$(java_of 17)"
  is_free "$connect_port"
  printf '%s\n' "bootstrap.servers=${KAFKA_BROKERS:-127.0.0.1:$kafka_port}" group.id=connect "listeners=http://127.0.0.1:$connect_port" \
    rest.advertised.host.name=127.0.0.1 key.converter=org.apache.kafka.connect.storage.StringConverter \
    value.converter=org.apache.kafka.connect.json.JsonConverter value.converter.schemas.enable=false \
    config.storage.topic=connect-configs offset.storage.topic=connect-offsets status.storage.topic=connect-status \
    config.storage.replication.factor=1 offset.storage.replication.factor=1 offset.storage.partitions=4 \
    status.storage.replication.factor=1 offset.flush.interval.ms=1000 "plugin.path=$cache/connect-plugins" >"$home/worker.properties"
  log4j org.apache.iceberg.connect >"$home/log4j2.properties"
  begin connect "$java" -Xms256m "-Xmx${CONNECT_HEAP:-1g}" "-Dlog4j2.configurationFile=$home/log4j2.properties" -cp "$cache/connect/*" \
    org.apache.kafka.connect.cli.ConnectDistributed "$home/worker.properties"
  until_ready connect 180 curl -fsS "http://127.0.0.1:$connect_port/connectors"
}
address_connect() { echo "http://127.0.0.1:$connect_port"; }

# ---- the command ------------------------------------------------------------------------------------------------

command="${1:-help}"
[ $# -eq 0 ] || shift
if [ $# -gt 0 ]; then names="$*"; elif [ "$command" = up ]; then names="$light"; else names="$all"; fi
for name in $names; do
  case " $all $([ "$command" = install ] && echo clients) " in *" $name "*) ;; *) fail "there is no service $name; there are: $all" ;; esac
done
case "$command" in
  up)
    for name in $names; do
      mkdir -p "$folder/$name"
      if ! runs "$name"; then "install_$name"; "up_$name"; fi
      echo "$name $("address_$name")"
    done ;;
  down) for name in $names; do down "$name"; done ;;
  status) for name in $names; do if runs "$name"; then echo "$name $("address_$name")"; else echo "$name -"; fi; done ;;
  install) for name in $names; do "install_$name"; done ;;
  *) sed -n '2,23p' "$0" >&2; exit 2 ;;
esac
