#!/usr/bin/env bash
# 54,000 idle WebSockets over three processes with the same settings, and 10,000 events a second beside them.
#
#     scripts/sockets.sh target/release/lakegate [DIR]
#
# A process may open 20,000 files here, so that one takes 18,000 sockets. Each of the three prints the memory of a socket
# (R13), how many stayed open, and how long answers took beside them. Needs about 120,000 open files in all
# (`sysctl fs.file-max`) and 2 GiB of memory; the sockets of each come from a process of their own.
set -euo pipefail
lakegate=${1:?the program}
dir=${2:-$(mktemp -d)}
sockets=${SOCKETS:-18000}
seconds=${SECONDS_EACH:-30}

pids=()
for number in 1 2 3; do
    mkdir -p "$dir/$number"
    "$lakegate" bench ws --idle "$sockets" --beside 3334 --seconds "$seconds" --dir "$dir/$number" >"$dir/$number.txt" 2>&1 &
    pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
for number in 1 2 3; do
    echo "process $number:"
    sed 's/^/  /' "$dir/$number.txt"
done
exit "$failed"
