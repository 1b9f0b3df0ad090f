#!/usr/bin/env bash
# A run on GPU nodes under SLURM, one task for each GPU:
#
#   sbatch --nodes=4 experiments/launch/slurm.sh matta-train --config=configs/gpt2_medium.py --workdir=/shared/runs/gpt2_medium
#
# Five minutes before the time limit all save and end, and the job goes back into the queue, until the run is finished.
# Submit from the checkout, with its environment (pip install -e '.[cuda]') in .venv.
#SBATCH --job-name=matta
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=matta-%j.log
set -euo pipefail
: "${1:?name a command, such as matta-train --config=F --workdir=D}"
# shellcheck source=/dev/null
. .venv/bin/activate
# What a run has compiled stays in its workdir, so that a restart does not compile it again.
cache=${JAX_COMPILATION_CACHE_DIR:-}
for word in "$@"; do
  if [[ -z $cache && $word == --workdir=* ]]; then cache=${word#--workdir=}/compiled; fi
done
export JAX_COMPILATION_CACHE_DIR="$cache"
code=0 asked=0
srun --kill-on-bad-exit=0 "$@" --distributed &
step=$!
trap 'asked=1; kill -TERM "$step"' TERM # srun passes it on to the tasks.
wait "$step" || code=$?
while kill -0 "$step" 2> /dev/null; do # The signal interrupts `wait`.
  code=0
  wait "$step" || code=$?
done
# 3: a process died. A mistake (2) would only be repeated.
if [[ $asked == 1 || $code == 3 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
