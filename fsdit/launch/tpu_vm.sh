#!/usr/bin/env bash
# Trains on all workers of a TPU VM slice, and gets a new slice when it is taken away.
#
#   export ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-16
#   fsdit/launch/tpu_vm.sh NAME --config=... --workdir=gs://BUCKET/runs/NAME
#
# Run it in the repository, where gcloud is logged in; the committed files go to the workers.
# Every worker runs the local launcher, which restarts training; this script looks after the
# slice. Exit status: that of training. 0: finished, and the slice is deleted. 1: an error that
# you have to fix, and the slice stays. 75: too many failures; the same command resumes. The
# workdir must outlive the slice: it lies in a bucket, or on a disk that the command MOUNT mounts.
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
  ~/.local/bin/uv pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[tpu,gcs]'}"
if [ "${SPOT:-yes}" = yes ]; then spot=(--spot); else spot=(); fi

patience="${MAX_FAILURES:-5}" # failures in a row: of gcloud, or of training on a live slice
failures=0

say() { echo "tpu_vm: $*" >&2; }

# Counts a failure and waits; ends the script with its status when there were too many.
failed() { # STATUS WHAT...
  local status=$1
  shift
  failures=$((failures + 1))
  if [ "$failures" -gt "$patience" ]; then
    say "$*; $failures times: giving up"
    exit "$status"
  fi
  say "$*; trying again in $poll s"
  sleep "$poll"
}

# Sets $now to the state of the request. ABSENT: gcloud says so, or says nothing three times.
look() { # STATUS to exit with if gcloud keeps failing
  local before=$failures silent=0
  while ! now=$(gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
    --format='value(state.state)' 2>"$errors"); do
    if grep -qE 'NOT_FOUND|was not found|404' "$errors" || [ "$silent" -eq 2 ]; then
      now=ABSENT
      break
    elif [ -s "$errors" ]; then
      failed "$1" "cannot see the slice: $(tail -n 1 "$errors")"
    else
      silent=$((silent + 1))
    fi
  done
  failures=$before
}

on_all_workers() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

delete() {
  gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
}

# Returns once the slice is there. Deletes an earlier request whose slice was taken away.
acquire() {
  while true; do
    look 1
    case "$now" in
      ACTIVE) return ;;
      ABSENT)
        say "asking for $type in $zone"
        gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
          --accelerator-type="$type" --runtime-version="$runtime" "${spot[@]}" ||
          failed 1 "the request was refused"
        ;;
      FAILED | SUSPENDED)
        say "$now: deleting the request"
        delete || failed 1 "it cannot be deleted"
        ;;
      *)
        say "${now:-no state}: looking again in $poll s"
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

# Each worker prints the exit status of training, because gcloud itself exits with 1 when the
# slice is taken away while it connects, or when a server is busy.
# flock: waits until a launcher that a broken connection left behind has ended.
printf -v flags ' %q' "$@"
train="cd fsdit && flock .launcher .venv/bin/python -m fsdit.launch.local --$flags; \
status=\$?; echo \"tpu_vm: training ended with \$status\"; exit \$status"

# Returns the status of training on all workers: 1 if any has it, else the largest.
run() {
  local status=0 ends
  on_all_workers "$train" | tee "$output" || status=$?
  ends=$(sed -n 's/.*tpu_vm: training ended with \([0-9]*\).*/\1/p' "$output" | sort -nu)
  if grep -qx 1 <<<"$ends"; then
    users_error=yes
    return 1
  fi
  ends=$(tail -n 1 <<<"$ends")
  if [ "${ends:-0}" -ne 0 ]; then return "$ends"; fi
  return "$status"
}

output=$(mktemp)
errors=$(mktemp)
trap 'rm -f "$output" "$errors"' EXIT
while true; do
  acquire
  status=0 users_error=
  { setup && run; } || status=$?
  if [ "$status" -eq 0 ]; then
    say "finished: deleting the slice"
    delete || delete || say "the slice could not be deleted: it stays until you do it"
    exit 0
  fi
  look "$status"
  if [ "$now" != ACTIVE ]; then
    failures=0
    say "status $status, and the slice is $now: going on in $poll s"
    sleep "$poll"
  elif [ "$users_error" = yes ]; then
    say "an error of training, above; the slice stays until you delete it"
    exit 1
  else
    failed "$status" "status $status on a slice that is there"
  fi
done
