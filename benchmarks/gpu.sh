#!/usr/bin/env bash
# Prove and measure on a GPU what was built without one, in at most eight minutes; options are those of benchmarks.gpu.
# In an environment with torch that is not the project's own, what it lacks is unpacked from .gpu/wheels, which
# `python -m benchmarks.gpu.carry` fetches on a machine with a package index.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
export PYTHONPATH="workflow:.${PYTHONPATH:+:$PYTHONPATH}"
if [ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ]; then
    python=.venv/bin/python
elif ! "$python" -c 'import sys; from importlib.metadata import version
pins = dict(line.strip().split("==") for line in open("requirements.lock") if "==" in line)
sys.exit(any(version(name) != pins[name] for name in ("transformers", "pydantic", "safetensors")))' 2>/dev/null; then
    if ! ls .gpu/wheels/*.whl > /dev/null 2>&1; then
        echo "no .venv, and no wheels in .gpu/wheels: run \`python -m benchmarks.gpu.carry\` where there is a package index" >&2
        exit 1
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))'; then
        echo "the wheels in .gpu/wheels are for Python 3.12; name one with PYTHON=" >&2
        exit 1
    fi
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    for wheel in .gpu/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
    export PYTHONPATH="$site:$PYTHONPATH"
fi
if [ ! -e .gpu/results.tar.xz ] && [ ! -x .venv/bin/python ]; then
    echo "no .gpu/results.tar.xz: without a network the part \`pipeline\` has no text to work on" >&2
fi
"$python" -m benchmarks.gpu "$@"
