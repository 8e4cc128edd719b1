#!/usr/bin/env bash
# Ray on the nodes of one Slurm job: sbatch cluster/slurm.sh run jobs/suites/quick.toml --store /scratch/me/store
#SBATCH --job-name=manyminds
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
# For GPUs: sbatch --gres=gpu:4 cluster/slurm.sh encode ...
set -euo pipefail
[ $# -gt 0 ] || { echo "error: sbatch cluster/slurm.sh VERB SUITE --store DIR, from the clone" >&2; exit 2; }
cd "$SLURM_SUBMIT_DIR"
export PATH=$PWD/.venv/bin:$PATH

private=$(umask 077; mktemp -d "$HOME/.manyminds-$SLURM_JOB_ID.XXXXXX") # in the home folder, which all nodes share
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes this number from sbatch
scratch=/tmp/ray-$SLURM_JOB_ID                 # on every node; /tmp/ray may be another user's
finish() {                                     # Ray ends together with its srun step
  jobs -p | xargs -r kill 2>/dev/null || true
  wait
  rm -rf "$private"
  srun --ntasks-per-node=1 rm -rf "$scratch" || true
}
trap finish EXIT
trap 'exit 143' TERM
# Slurm sends USR1 120 s before the time is up. The requeued job continues from the store.
trap 'scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token RAY_USAGE_STATS_ENABLED=0
(umask 077; python -c "import secrets; print(secrets.token_hex(32), end='')" >"$RAY_AUTH_TOKEN_PATH")

read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 10000)) # nodes may be shared with others' jobs
export RAY_ADDRESS=$head:$port
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # otherwise Ray waits 30 s for Ray Serve, which is not used
# Without limits, Ray would use the cores and the memory of the whole node.
limits=(--num-cpus="$SLURM_CPUS_PER_TASK" --object-store-memory=4000000000 --block)

srun --nodes=1 --ntasks=1 --nodelist="$head" \
  env -u RAY_ADDRESS ray start --head --port="$port" --include-dashboard=false \
  --temp-dir="$scratch" "${limits[@]}" &
joined='import os, sys, ray
ray.init(log_to_driver=False, logging_level="CRITICAL")
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]))'
await() { # wait until N nodes have joined, or the last step has ended; Ray loads slowly on many nodes
  until python -c "$joined" "$1" 2>/dev/null; do
    if [ "$SECONDS" -gt 600 ] || ! kill -0 $!; then
      echo "error: fewer than $1 Ray nodes have joined after $SECONDS s; see the messages of srun above" >&2
      exit 1
    fi
    sleep 1
  done
}
await 1
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  others=$((SLURM_JOB_NUM_NODES - 1))
  srun --nodes="$others" --ntasks="$others" --exclude="$head" ray start --address="$RAY_ADDRESS" "${limits[@]}" &
  await "$SLURM_JOB_NUM_NODES"
fi

manyminds "$@" & # in the background, so that bash can handle signals meanwhile
wait $!
