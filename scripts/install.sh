#!/bin/sh
# Find a Python 3.11 or 3.12 and hand over to bootstrap.py. A name on the PATH may be a shim that starts nothing,
# so each is run before it is believed.
cd "$(dirname "$0")/.." || exit 1
unset VIRTUAL_ENV PYTHONHOME PYTHONPATH

seen=""
for name in ${PYTHON:-python3.11 python3.12 python3 python .venv/bin/python}; do
    found=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null) || continue
    case "$found" in
        3.11 | 3.12) exec "$name" scripts/bootstrap.py "$@" ;;
    esac
    seen="$seen $name is $found,"
done
echo "python:${seen:- nothing found on the PATH runs,} and Headwater needs Python 3.11 or 3.12." \
    "Install one of them, or name it: make install PYTHON=/path/to/python3.11" >&2
exit 1
