#!/usr/bin/env bash
# What a GPU shows of halp-iee, in under nine minutes, with nothing downloaded:
#
#   tools/gpu_evidence.sh OUT [--seconds 510] [--only PART ...] [--tiny]
#
# Needs torch, numpy and scipy; what else is missing costs the parts that need it, one line each in OUT/evidence.md.
# WHEELS=FOLDER makes the wheels in it importable without installing anything (pydantic and what it needs, nvidia-ml-py).
# PYTHON=... chooses the interpreter.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
[ $# -ge 1 ] || { sed -n '4s/^# *//p' "$0" >&2; exit 2; }
path=$root:$root/profiler:$root/tools
if [ -n "${WHEELS:-}" ]; then
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    for wheel in "$WHEELS"/*.whl; do
        [ -e "$wheel" ] || { echo "WHEELS=$WHEELS holds no wheel; going on without." >&2; break; }
        "$python" -m zipfile -e "$wheel" "$unpacked" || echo "$wheel cannot be unpacked; going on without it." >&2
    done
    path=$unpacked:$path
fi
PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 "$python" -m gpu_evidence "$@"
