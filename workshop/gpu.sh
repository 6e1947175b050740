#!/bin/sh
# Half an hour on a lent GPU, in calls of less than ten minutes. Each call goes on where the last
# one ended: first tests/test_cuda.py, then benches, then a run of training (workshop/gpu.py has the
# jobs). Results, with tables for the README in summary.md, are in $OUT after each call.
#
# Beforehand, on a machine with a network (a few MB go to .gpu/, which git ignores):
#
#     sh workshop/gpu.sh prepare                    # wheels of what the machine may lack
#     echo 'GRIDS... --init INIT --stage fine-tuning-2 --bfloat16 --compile --batch 32' > .gpu/train
#     cp -r GRIDS INIT .gpu/                        # if they are not in the tree; a few MB
#     sh workshop/gpu.sh pack FOLDER                # or, if they are more: pieces .gpu-1, .gpu-2
#
# There, from the root of the repository, with .gpu carried along:
#
#     sh workshop/gpu.sh                            # three times; or with names of stages:
#     sh workshop/gpu.sh tests                      #   tests, bench, train
#     sh workshop/gpu.sh take .gpu-1                # once for each piece, before the first of these
#     sh workshop/gpu.sh fetch 1                    # the trained model in 16 bits: its first 60 MB
#
# Here, a rehearsal of all of it with small shapes:  DEVICE=cpu OUT=/tmp/out sh workshop/gpu.sh
#
# What the machine needs: python3 with PyTorch 2.11 or later and its compiler's g++, numpy,
# safetensors, tokenizers, huggingface-hub, aiohttp, tqdm, pytest; soundfile and soxr are the
# wheels. It needs no network. At most 64 MiB travel with a call, of which the tree is 56: see
# `pack`. What comes back are eight files of at most 16 MiB. sphn, the Opus of Moshi's clients
# (18 MB), stays at home.
#
# DEVICE: cuda or cpu. OUT: for results. WORK: what lasts from call to call on the same machine.
# SECONDS_A_CALL: when a call ends. On a new machine, done.json of the last call, put into .gpu/,
# tells what need not be run again.
set -eu
cd "$(dirname "$0")/.."

DEVICE=${DEVICE:-cuda}
WORK=${WORK:-/tmp/flm-gpu}
OUT=${OUT:-$WORK/out}
LOAD=${LOAD:-$PWD/.gpu}
SECONDS_A_CALL=${SECONDS_A_CALL:-560}
PYTHON=${PYTHON:-python3}
export DEVICE WORK LOAD
PIECE=7m    # of what is carried there beside the tree
PART=15m    # of what comes back

prepare() {
    mkdir -p "$LOAD/wheels"
    set --
    for version in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do
        set -- "$@" --platform "manylinux_${version}_x86_64"
    done
    # shellcheck disable=SC2046  # one word each
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp "$@" --platform manylinux2014_x86_64 -d "$LOAD/wheels" \
        $(grep -E '^(soundfile|soxr)==' requirements.txt) cffi pycparser
    du -sh "$LOAD"
}

pack() {
    rm -rf .gpu-[0-9]*
    tar -czf - -C "$(dirname "$1")" "$(basename "$1")" | split -b "$PIECE" -d -a 3 - .gpu-piece-
    mkdir -p "$LOAD"
    n=0
    for piece in .gpu-piece-*; do
        n=$((n + 1))
        mkdir ".gpu-$n"
        mv "$piece" ".gpu-$n/"
    done
    echo "$n" > "$LOAD/pieces"
    echo "$n pieces: each is carried by a call of its own, as in: sh workshop/gpu.sh take .gpu-1"
}

take() {
    mkdir -p "$WORK/pieces"
    cp "$1"/.gpu-piece-* "$WORK/pieces/"
    echo "there are $(ls -A "$WORK/pieces" | wc -l) pieces now"
}

unpack() {
    if [ ! -d "$WORK/pieces" ] || [ -d "$WORK/carried" ]; then
        return
    fi
    count=$(ls -A "$WORK/pieces" | wc -l)
    if [ -f "$LOAD/pieces" ] && [ "$count" -lt "$(cat "$LOAD/pieces")" ]; then
        echo "some pieces are missing: sh workshop/gpu.sh take .gpu-N" >&2
        return
    fi
    mkdir "$WORK/carried"
    cat "$WORK"/pieces/.gpu-piece-* | tar -xzf - -C "$WORK/carried"
}

install() {
    if ls "$LOAD"/wheels/*.whl > /dev/null 2>&1 && [ "$DEVICE" = cuda ]; then
        [ -d "$WORK/site" ] || "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
            --target "$WORK/site" "$LOAD"/wheels/*.whl
        PYTHONPATH=$WORK/site${PYTHONPATH:+:$PYTHONPATH}
        export PYTHONPATH
    fi
    # What was compiled in one call need not be compiled in the next. Processes meet on this
    # machine.
    export TORCHINDUCTOR_CACHE_DIR="$WORK/inductor" TRITON_CACHE_DIR="$WORK/triton"
    export GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo
    [ "$DEVICE" = cuda ] && ip link set lo up 2> /dev/null || true
    if ! "$PYTHON" -c 'import torch, soundfile, soxr, safetensors, tokenizers, tqdm, pytest'; then
        echo "gpu.sh: $PYTHON lacks a package: another PYTHON=..., or a wheel in $LOAD/wheels" >&2
        exit 1
    fi
}

# The trained model in 16 bits, four parts of 15 MB at a time.
fetch() {
    folder=$WORK/export
    if [ ! -f "$folder/parts.txt" ]; then
        "$PYTHON" train.py export "$WORK/run" "$folder/model" --dtype bfloat16 --overwrite
        tar -cf - -C "$folder" model | split -b "$PART" -d -a 3 - "$folder/model.tar."
        (cd "$folder" && ls model.tar.* > parts.txt)
    fi
    first=$((4 * ($1 - 1) + 1))
    sed -n "$first,$((first + 3))p" "$folder/parts.txt" | while read -r name; do
        cp "$folder/$name" "$OUT/"
    done
    echo "parts $first to $((first + 3)) of $(wc -l < "$folder/parts.txt"); when all are back:" \
        "cat model.tar.* | tar -xf -"
}

results() {
    "$PYTHON" -m workshop.gpu summary > "$OUT/summary.md"
    cp "$WORK/done.json" "$OUT/" 2>/dev/null || true
    if [ -f "$WORK/run/log.jsonl" ]; then
        cp "$WORK/run/log.jsonl" "$OUT/"
    fi
    tar -czf "$OUT/logs.tar.gz" -C "$WORK" logs
    cat "$OUT/summary.md"
}

started=$(date +%s)
mkdir -p "$WORK/logs" "$OUT"
case "${1:-all}" in
prepare) prepare ;;
pack) pack "$2" ;;
take) take "$2" ;;
unpack) unpack ;;
fetch)
    install
    fetch "${2:-1}"
    ;;
all | tests | bench | train)
    install
    unpack
    stages=${*:-tests bench train}
    [ "$stages" = all ] && stages="tests bench train"
    [ "$DEVICE" = cuda ] && nvidia-smi -L || true
    left=$((SECONDS_A_CALL - ($(date +%s) - started)))
    # shellcheck disable=SC2086  # one word each
    "$PYTHON" -m workshop.gpu jobs "$left" $stages
    results
    ;;
*)
    echo "gpu.sh: prepare, pack FOLDER, take PIECE, tests, bench, train, all or fetch N" >&2
    exit 2
    ;;
esac
