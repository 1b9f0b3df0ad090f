#!/usr/bin/env bash
# A run on every worker of a Cloud TPU VM slice:
#
#   export TPU=my-v5e-16 ZONE=us-west4-a
#   experiments/launch/tpu_vm.sh install
#   experiments/launch/tpu_vm.sh start matta-train --config=configs/gpt2_medium.py --workdir=gs://my-bucket/runs/gpt2_medium
#   experiments/launch/tpu_vm.sh log     # what the first worker has printed; Ctrl-C leaves the run alone
#   experiments/launch/tpu_vm.sh stop    # SIGTERM to one worker: all save and end; `start` goes on from there
#
# The workdir must be one that all workers see: gs://my-bucket/runs/gpt2_medium, or a folder of Filestore.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"

on() { # on WORKER COMMAND
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

case "${1:-}" in
  install) # This checkout's last commit; TPU images have an older Python than 3.11, so uv brings one.
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:matta_jax.tar.gz" --zone="$ZONE" --worker=all
    # shellcheck disable=SC2016 # Expanded on the workers.
    on all 'set -e
      mkdir -p matta_jax && tar -xzf matta_jax.tar.gz -C matta_jax && cd matta_jax
      command -v "$HOME/.local/bin/uv" > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
      "$HOME/.local/bin/uv" venv --quiet --clear --python 3.12 .venv
      "$HOME/.local/bin/uv" pip install --quiet --python .venv -e ".[tpu,tokenizers,gcs]"'
    ;;
  start)
    shift
    # What a run has compiled stays in its workdir, so that a restart does not compile it again.
    cache=${JAX_COMPILATION_CACHE_DIR:-}
    for word in "$@"; do
      if [[ -z $cache && $word == --workdir=* ]]; then cache=${word#--workdir=}/compiled; fi
    done
    printf -v command '%q ' env "JAX_COMPILATION_CACHE_DIR=$cache" "${@:?name a command, such as matta-train --config=F --workdir=D}"
    on all "cd matta_jax && . .venv/bin/activate && nohup ${command}--distributed > ../matta.log 2>&1 < /dev/null &"
    ;;
  log) on 0 'tail -n 50 -f matta.log' ;;
  stop) on 0 'pkill -TERM -o -f "bin/matta-train"' ;;
  *)
    echo "error: ${1:-nothing} must be install, start, log or stop" >&2
    exit 2
    ;;
esac
