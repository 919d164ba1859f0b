#!/usr/bin/env bash
# What can only be checked on a GPU: correctness, speed and memory, in one JSON, within nine minutes, without a network.
#
#   scripts/gpu_checks.sh [--out FILE] [--only STAGE…] [--budget SECONDS] [--tiny]
#
# Stages, in this order: doctor, kernels, mixers, resume, mfu-…, swarm, rollouts, clusters, peers, jest, stream. Each is
# a process with its own time limit; the file is written after every stage, and --only adds to one that is there.
# --tiny (or JAXMIX_GPU_CHECKS=tiny) runs all of them at small sizes on any machine, with or without a GPU.
#
# It needs Python ≥ 3.11 with a GPU build of jax, and jaxmix's dependencies. Machines prepared for JAX or PyTorch
# usually lack three of these, which must then be brought along as wheels (5 MB; the rest of grain's needs comes with
# orbax). On a machine with a network, for the GPU machine's Python and processor:
#
#   pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#       --platform manylinux2014_x86_64 --dest wheels grain==0.2.18 array-record==0.8.6 portpicker==1.6.0
#
# and on the GPU machine, before this script:
#
#   python -m pip install --no-index --no-deps --find-links wheels grain array-record portpicker
#
# tensorflow-datasets and tokenizers are not imported by any stage. PyTorch is used by `peers` alone.
# PYTHON names the interpreter; the default is python3.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" experiments/gpu/run.py "$@"
