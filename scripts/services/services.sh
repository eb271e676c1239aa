#!/usr/bin/env bash
# Real services for trying out and for tests: installed from package registries, on loopback, ended by `stop`.
#
#   services.sh start trino [CATALOG_URI]   Trino with the catalog at CATALOG_URI (default: http://127.0.0.1:3001/iceberg)
#   services.sh stop trino
#   services.sh install redis               redis-server from the system's packages; tests start it themselves
#
# Everything is kept below $SERVICES_DIR (default: .services in the current folder). A second start changes nothing.
set -euo pipefail

folder="${SERVICES_DIR:-$PWD/.services}"
trino_version=476
trino_port="${TRINO_PORT:-8088}"

say() { echo "services: $*" >&2; }

# The lowest JDK of at least 24 that is on the machine.
find_java() {
  local home
  for home in $(ls -d /usr/lib/jvm/* /opt/java/* "$HOME"/.jdks/* /opt/*jdk* 2>/dev/null | sort -V); do
    [ -x "$home/bin/java" ] || continue
    if [ "$("$home/bin/java" -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p')" -ge 24 ] 2>/dev/null; then
      echo "$home/bin/java"
      return
    fi
  done
  say "Trino $trino_version needs a JDK of version 24 or later; install one (package temurin-25-jdk or openjdk-25-jdk)"
  exit 1
}

fetch() { # fetch GROUP:NAME:VERSION:KIND FOLDER
  mvn -B -q -ntp "-Dmaven.repo.local=$folder/m2" dependency:copy "-Dartifact=$1" "-DoutputDirectory=$2" -Dmdep.useBaseVersion=true
}

install_trino() {
  local home="$folder/trino"
  [ -f "$home/ready" ] && return
  say "fetching Trino $trino_version"
  rm -rf "$home" && mkdir -p "$home/fetched" "$home/plugin"
  fetch "io.trino:trino-server-core:$trino_version:tar.gz" "$home/fetched"
  fetch "io.trino:trino-iceberg:$trino_version:zip" "$home/fetched"
  tar -xzf "$home/fetched/trino-server-core-$trino_version.tar.gz" -C "$home" --strip-components=1
  python3 -m zipfile -e "$home/fetched/trino-iceberg-$trino_version.zip" "$home/plugin"
  mv "$home/plugin/trino-iceberg-$trino_version" "$home/plugin/iceberg"
  rm -rf "$home/fetched" "$folder/m2/io/trino"
  touch "$home/ready"
}

start_trino() {
  local home="$folder/trino" etc="$folder/trino/etc" java
  install_trino
  java="$(find_java)"
  if [ -s "$home/pid" ] && kill -0 "$(cat "$home/pid")" 2>/dev/null; then
    echo "http://127.0.0.1:$trino_port"
    return
  fi
  rm -rf "$etc" && mkdir -p "$etc/catalog" "$home/data"
  printf '%s\n' coordinator=true node-scheduler.include-coordinator=true "http-server.http.port=$trino_port" \
    node.internal-address=127.0.0.1 "discovery.uri=http://127.0.0.1:$trino_port" query.max-memory=1GB \
    catalog.management=dynamic >"$etc/config.properties"
  printf 'io.trino=WARN\nio.trino.server.Server=INFO\n' >"$etc/log.properties"
  printf '%s\n' connector.name=iceberg iceberg.catalog.type=rest "iceberg.rest-catalog.uri=${1:-http://127.0.0.1:3001/iceberg}" \
    fs.native-local.enabled=true local.location=/ >"$etc/catalog/iceberg.properties"
  # The shell of the background job is replaced, so that no pipe of the caller stays open.
  (cd "$home" && exec setsid nohup "$java" -Xmx2G -XX:+UseG1GC -Djdk.attach.allowAttachSelf=true --add-modules=jdk.incubator.vector \
    --enable-native-access=ALL-UNNAMED "-Dlog.levels-file=$etc/log.properties" "-Dconfig=$etc/config.properties" \
    "-Dnode.data-dir=$home/data" -Dnode.environment=local -Dnode.bind-ip=127.0.0.1 "-Dplugin.dir=$home/plugin" \
    -cp "$home/lib/*" io.trino.server.TrinoServer) >"$home/log" 2>&1 </dev/null &
  echo $! >"$home/pid"
  for _ in $(seq 180); do
    if curl -fsS "http://127.0.0.1:$trino_port/v1/info" 2>/dev/null | grep -q '"starting":false'; then
      echo "http://127.0.0.1:$trino_port"
      return
    fi
    sleep 1
  done
  say "Trino did not start; see $home/log"
  exit 1
}

stop_trino() {
  local pid="$folder/trino/pid"
  [ -s "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true
  rm -f "$pid"
}

install_redis() {
  command -v redis-server >/dev/null && command -v redis-cli >/dev/null && return
  local as_root=""
  [ "$(id -u)" = 0 ] || as_root=sudo
  # No server of the system's own is started by the installation.
  $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends redis-server >&2
}

case "${1:-} ${2:-}" in
  "start trino") start_trino "${3:-}" ;;
  "stop trino") stop_trino ;;
  "install redis") install_redis ;;
  *) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac
