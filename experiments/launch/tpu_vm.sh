#!/usr/bin/env bash
# Trains on all workers of a TPU VM slice, and gets a new slice when it is taken away.
#
#   export ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-16
#   export MOUNT='mountpoint -q ~/bucket || { mkdir -p ~/bucket && gcsfuse BUCKET ~/bucket; }'
#   experiments/launch/tpu_vm.sh NAME --config=... --workdir=/home/USER/bucket/runs/NAME
#
# Runs where gcloud is logged in, in the repository, whose committed files go to the workers.
# Every worker runs the local launcher, which restarts training; this script cares for the
# slice. Exit status: 0 finished, and the slice is deleted; 1 an error that is yours to mend,
# and the slice stays. The workdir must outlive the slice: it lies on what MOUNT mounts.
set -euo pipefail

usage="usage: ZONE=... ACCELERATOR_TYPE=... $0 NAME FLAGS_OF_FSDIT_MAIN..."
name="${1:?$usage}"
shift
zone="${ZONE:?$usage}"
type="${ACCELERATOR_TYPE:?$usage}"
runtime="${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}"
poll="${POLL_SECONDS:-30}"
mount="${MOUNT:-true}"
# Makes .venv in the code's folder. TPU images carry an older Python than is needed.
install="${INSTALL:-pip install --user --quiet uv &&
  ~/.local/bin/uv venv --quiet --allow-existing --python 3.11 .venv &&
  ~/.local/bin/uv pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[tpu]'}"
if [ "${SPOT:-yes}" = yes ]; then spot=(--spot); else spot=(); fi

say() { echo "tpu_vm: $*" >&2; }

state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
    --format='value(state.state)' 2>/dev/null || echo ABSENT
}

on_all_workers() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

delete() {
  gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
}

# Returns once the slice is there. A request of this name that has had its slice goes first.
acquire() {
  local now
  while true; do
    now=$(state)
    case "$now" in
      ACTIVE) return ;;
      ABSENT)
        say "asking for $type in $zone"
        gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
          --accelerator-type="$type" --runtime-version="$runtime" "${spot[@]}"
        ;;
      FAILED | SUSPENDED)
        say "$now: deleting the request"
        delete
        ;;
      *)
        say "$now: looking again in $poll s"
        sleep "$poll"
        ;;
    esac
  done
}

setup() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz --output="$archive" HEAD &&
    gcloud compute tpus tpu-vm scp "$archive" "$name:fsdit.tar.gz" --zone="$zone" --worker=all &&
    on_all_workers "set -e; $mount; mkdir -p fsdit; tar -xzf fsdit.tar.gz -C fsdit; cd fsdit; $install"
  local status=$?
  rm -f "$archive"
  return "$status"
}

# flock: a launcher that an earlier, broken connection has left ends before this one starts.
printf -v flags ' %q' "$@"
train="cd fsdit && exec flock .launcher .venv/bin/python -m experiments.launch.local --$flags"

failures=0
while true; do
  acquire
  status=0
  { setup && on_all_workers "$train"; } || status=$?
  case "$status" in
    0)
      say "finished: deleting the slice"
      delete
      exit 0
      ;;
    1)
      say "an error of training or of its set-up, above; the slice stays until you delete it"
      exit 1
      ;;
  esac
  if [ "$(state)" = ACTIVE ]; then
    failures=$((failures + 1))
    if [ "$failures" -gt "${MAX_FAILURES:-5}" ]; then
      say "status $status, $failures times on a slice that is there: giving up"
      exit "$status"
    fi
  else
    failures=0
  fi
  say "status $status: going on in $poll s"
  sleep "$poll"
done
