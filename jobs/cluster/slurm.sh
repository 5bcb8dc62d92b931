#!/usr/bin/env bash
# A run on Slurm: sbatch slurm.sh questions.parquet --model migtissera/Synthia-70B-v1.1 --tensor-parallel-size 8
#
# Starts a Ray on the nodes of the allocation, runs the job on the first of them and takes the Ray down
# with it. Arguments are those of `synthia-batch run`. Submitted again, it goes on where it was; ten
# minutes before the time limit it drains by itself and is put back into the queue.
# To be filled in: the #SBATCH lines, and VENV, the same environment on a file system of all nodes.
#SBATCH --job-name=synthia-batch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=synthia-batch-%j.log
set -euo pipefail

VENV=${VENV:-$SLURM_SUBMIT_DIR/.venv}
PORT=${RAY_PORT:-6379}
export PATH="$VENV/bin:$PATH" RAY_USAGE_STATS_ENABLED=0
# Other users reach these nodes' ports, too. srun hands the token on to every node.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

steps=()
trap '((${#steps[@]})) && kill "${steps[@]}" 2>/dev/null || true' EXIT

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname --ip-address | awk '{print $1}')
address=$head_ip:$PORT
resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats)

# --block keeps Ray in the step, so that Slurm ends it with the job.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head_node" \
    ray start --head --node-ip-address="$head_ip" --port="$PORT" --include-dashboard=false \
    "${resources[@]}" --block &
steps+=($!)
for _ in $(seq 60); do
    ray status --address "$address" >/dev/null 2>&1 && break
    sleep 2
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head_node" \
        ray start --address="$address" "${resources[@]}" --block &
    steps+=($!)
fi

# The job uses machines that join while it runs, so it need not wait for all of them; it needs one engine's.
sleep "${RAY_SETTLE_SECONDS:-30}"

# Slurm's TERM comes to this script, which hands it on: the run drains and ends with 75.
synthia-batch run "$@" --ray-address "$address" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' TERM
code=0
wait "$run" || code=$?
# A trapped signal ends the first wait; the run's own code comes from the second.
if kill -0 "$run" 2>/dev/null; then
    code=0
    wait "$run" || code=$?
fi
if ((code == 75)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
