#!/usr/bin/env bash
# One Cloud TPU slice from creation to removal. Needs gcloud, signed in, with a project set.
#
#   tpu.sh [--dry-run] create            make the slice (waits until it is ready)
#   tpu.sh [--dry-run] setup             copy this repository to every host and install it with the tpu extra
#   tpu.sh [--dry-run] run COMMAND...    run a command on all hosts at once, detached, with a log per host
#   tpu.sh [--dry-run] watch             follow the log of host 0
#   tpu.sh [--dry-run] stop              interrupt the run: jaxmix saves a checkpoint and ends
#   tpu.sh [--dry-run] delete            remove the slice
#
# Settings, from the environment:
#   TPU_NAME (jaxmix)  TPU_ZONE (us-central2-b)  TPU_TYPE (v4-8)  TPU_VERSION (tpu-ubuntu2204-base)  TPU_SPOT (0)
#
# --dry-run prints every command and runs none. On a slice every process finds the others by itself, so that
# `tpu.sh run jaxmix train web.yaml --distributed` is all there is to it.
set -euo pipefail

name=${TPU_NAME:-jaxmix} zone=${TPU_ZONE:-us-central2-b} type=${TPU_TYPE:-v4-8}
version=${TPU_VERSION:-tpu-ubuntu2204-base} spot=${TPU_SPOT:-0}
is_dry=0
if [ "${1:-}" = "--dry-run" ]; then is_dry=1; shift; fi

usage() { sed -n '2,/^set -euo/p' "$0" | sed -n 's/^# \{0,1\}//p'; }

do_it() {
  printf '%q ' "$@"; echo
  [ "$is_dry" = 1 ] || "$@"
}

on_hosts() { do_it gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker "$1" --command "$2"; }

action=${1:-}
[ -z "$action" ] || shift
case "$action" in
  create)
    extra=()
    [ "$spot" = 0 ] || extra=(--spot)
    do_it gcloud compute tpus tpu-vm create "$name" --zone "$zone" --accelerator-type "$type" --version "$version" ${extra[@]+"${extra[@]}"}
    ;;
  setup)
    root=$(cd "$(dirname "$0")/.." && pwd)
    archive=$(mktemp -u).tar.gz
    do_it git -C "$root" archive --format=tar.gz -o "$archive" HEAD
    do_it gcloud compute tpus tpu-vm scp "$archive" "$name:jaxmix.tar.gz" --zone "$zone" --worker all
    # The images' own Python may be older than jaxmix needs; uv brings one.
    on_hosts all 'mkdir -p jaxmix && tar -xzf jaxmix.tar.gz -C jaxmix && python3 -m pip install -q --user uv && PATH=$HOME/.local/bin:$PATH && uv venv -q --python 3.12 venv && uv pip install -q --python venv/bin/python "./jaxmix[tpu]" && venv/bin/jaxmix doctor'
    do_it rm -f "$archive"
    ;;
  run)
    [ $# -gt 0 ] || { echo "tpu.sh run: which command?" >&2; exit 2; }
    command=$(printf '%q ' "$@")
    on_hosts all "PATH=\$HOME/venv/bin:\$PATH nohup $command > run.log 2>&1 </dev/null & echo \$! > run.pid"
    ;;
  watch) on_hosts 0 'tail -n 50 -f run.log' ;;
  stop) on_hosts all 'kill -TERM "$(cat run.pid)"' ;;
  delete) do_it gcloud compute tpus tpu-vm delete "$name" --zone "$zone" --quiet ;;
  *) usage; [ -n "$action" ] && [ "$action" != "--help" ] && exit 2 || exit 0 ;;
esac
