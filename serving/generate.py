"""Python from the protobuf files: ``python -m serving.generate`` writes it, ``--check`` fails where it is stale.

The files are compiled from the repository's root, so that the generated modules import each other as parts of the
package ``serving``; the protobuf package is ``headwater.v1`` all the same.
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import serving

ROOT = Path(serving.__file__).resolve().parents[1]
PROTO = Path("serving/proto/headwater/v1")
QUIET = "# mypy: ignore-errors\n"


def generate(out: Path) -> list[Path]:
    """Compile every ``.proto`` into ``out``; paths written, relative to ``out``."""
    from grpc_tools import protoc  # type: ignore[import-untyped]  # a development dependency

    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / PROTO).glob("*.proto"))
    arguments = [
        "protoc", f"--proto_path={ROOT}", f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}",
    ]  # fmt: skip
    if protoc.main([*arguments, *sources]):
        raise SystemExit("protoc failed, see above")
    written = sorted((out / PROTO).glob("*_pb2*.py*"))
    for path in written:
        path.write_text(QUIET + path.read_text())
    return [path.relative_to(out) for path in written]


def main(arguments: list[str]) -> int:
    """Exit 1 where a check finds generated code that is not what the protobuf files say."""
    if "--check" not in arguments:
        for path in generate(ROOT):
            print(path)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        stale = [path for path in generate(fresh) if not _same(ROOT / path, fresh / path)]
    for path in stale:
        print(f"{path} is stale: run python -m serving.generate", file=sys.stderr)
    return 1 if stale else 0


def _same(ours: Path, fresh: Path) -> bool:
    return ours.is_file() and ours.read_text() == fresh.read_text()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
