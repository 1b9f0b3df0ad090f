#!/usr/bin/env bash
# Smoke test of a distributed run on this machine: two processes with four simulated devices each train as one.
#
#   experiments/launch/two_processes.sh matta-train --config=configs/quickstart.py --workdir=/tmp/two \
#     --config.train.num_steps=20 --config.optimizer.warmup_steps=5 --config.mesh.fsdp=2 --config.mesh.data=-1
#
# Killed by hand in between (kill -9 either of them), the same command goes on.
set -euo pipefail
: "${1:?name a command, such as matta-train --config=F --workdir=D}"
# What a run has compiled stays in its workdir, so that a restart does not compile it again.
cache=${JAX_COMPILATION_CACHE_DIR:-}
for word in "$@"; do
  if [[ -z $cache && $word == --workdir=* ]]; then cache=${word#--workdir=}/compiled; fi
done
export JAX_COMPILATION_CACHE_DIR="$cache"
export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=4"
port=$((20000 + RANDOM % 20000))
flags=(--coordinator="localhost:$port" --num_processes=2 --heartbeat_seconds=10)
"$@" "${flags[@]}" --process_id=1 &
other=$!
trap 'kill "$other" 2> /dev/null || true' EXIT
code=0
"$@" "${flags[@]}" --process_id=0 || code=$?
wait "$other" || code=$?
exit "$code"
