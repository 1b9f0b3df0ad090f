#!/usr/bin/env bash
# A run on a GKE cluster that xpk (pip install xpk) has made; the image is that of the Dockerfile beside this file:
#
#   export CLUSTER=my-cluster TPU_TYPE=v5litepod-16 IMAGE=us-docker.pkg.dev/my-project/images/matta_jax
#   experiments/launch/xpk.sh gpt2-medium matta-train --config=configs/gpt2_medium.py --workdir=gs://my-bucket/runs/gpt2_medium
#
# On several slices, NUM_SLICES=2 and the flag --config.mesh.slices=2.
# The workdir must be one that all workers see: in a bucket, or on Filestore (`xpk storage attach`).
# Restarted after the end of a worker (exit code 3, or a signal), not after a mistake (exit code 2).
set -euo pipefail
: "${CLUSTER:?set CLUSTER to the name of the cluster}" "${TPU_TYPE:?set TPU_TYPE, such as v5litepod-16}"
: "${IMAGE:?set IMAGE to the image of experiments/launch/Dockerfile}"
workload=${1:?name the workload}
shift
# What a run has compiled stays in its workdir, so that a restart does not compile it again.
cache=${JAX_COMPILATION_CACHE_DIR:-}
for word in "$@"; do
  if [[ -z $cache && $word == --workdir=* ]]; then cache=${word#--workdir=}/compiled; fi
done
printf -v command '%q ' env "JAX_COMPILATION_CACHE_DIR=$cache" "${@:?name a command, such as matta-train --config=F --workdir=D}"
xpk workload create --cluster="$CLUSTER" --workload="$workload" --tpu-type="$TPU_TYPE" --docker-image="$IMAGE" \
  --num-slices="${NUM_SLICES:-1}" --max-restarts="${MAX_RESTARTS:-20}" --restart-on-exit-codes="3,137,143" \
  --command="${command}--distributed"
