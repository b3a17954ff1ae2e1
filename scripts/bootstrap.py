"""Install everything into ``.venv`` from the hashed lock: ``make install``.

Needs only what Python ships: venv and pip fetch uv, uv fetches the rest, Ivy (inside PySpark) fetches the jars.
Nothing is done twice: a stamp in ``.venv`` remembers what was installed. Progress goes to stderr, every tool's own
words to ``.bootstrap/install.log``.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".bootstrap"
LOG = TOOLS / "install.log"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".headwater-installed"
MADE = VENV / "share" / "headwater"  # from the packages that are installed: see headwater/runtime/classes.py
LOCK = ROOT / "requirements.lock"
TOOLS_LOCK = ROOT / "scripts" / "bootstrap.lock"
NEEDED_GIB = 10  # the environment is 8, and an interrupted download needs room too
NO_NETWORK = re.compile(
    r"name resolution|Name or service not known|dns error|Connection refused|Network is unreachable|"
    r"NewConnectionError|error sending request|client error \(Connect\)|Could not connect|Max retries exceeded|"
    r"network was disabled|timed out",
    re.IGNORECASE,
)


class Refused(Exception):
    """One sentence for the person at the terminal."""


def fingerprint() -> str:
    """What the environment is made from; another fingerprint is another environment."""
    parts = [LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_installed() -> bool:
    """Whether the stamp is this checkout's and the environment still starts."""
    return STAMP.exists() and STAMP.read_text() == fingerprint() and _runs(PYTHON)


def _runs(python: Path) -> bool:
    """A virtual environment outlives the Python it was made from."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def install() -> None:
    """Make or mend the environment, then write the stamp."""
    check_disk()
    STAMP.unlink(missing_ok=True)
    shutil.rmtree(MADE, ignore_errors=True)
    uv = install_uv()
    if not _runs(PYTHON):
        step("an empty environment", [uv, "venv", "--clear", "--python", sys.executable, VENV])
    step("the packages of requirements.lock (the first time: some minutes)", [
        uv, "pip", "sync", "--require-hashes", "--compile-bytecode", "--python", PYTHON, LOCK,
    ])  # fmt: skip  # compiled once: where Python may write no bytecode, each process took seconds to compile Feast
    step("headwater itself", [
        uv, "pip", "install", "--no-deps", "--no-build-isolation", "--python", PYTHON, "--editable", ROOT,
    ])  # fmt: skip
    step("Kafka's and Flink's jars", [PYTHON, "-m", "headwater.runtime.jars"])
    STAMP.write_text(fingerprint())


def install_uv() -> Path:
    """Fetch uv with pip, into an environment of its own."""
    uv = TOOLS / "bin" / "uv"
    if _answers(uv):
        return uv
    for old in TOOLS.glob("*"):
        if old.is_dir():
            shutil.rmtree(old)
    step("an environment for the installer", [sys.executable, "-m", "venv", TOOLS])
    step("uv, the installer", [
        TOOLS / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "2",
        "--require-hashes", "--requirement", TOOLS_LOCK,
    ])  # fmt: skip
    return uv


def _answers(uv: Path) -> bool:
    """Whether this very version of uv is there."""
    try:
        told = subprocess.run([uv, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return False
    wanted = re.search(r"uv==(\S+)", TOOLS_LOCK.read_text())
    return told.returncode == 0 and wanted is not None and wanted.group(1) in told.stdout.split()


def check_disk() -> None:
    """Refuse before anything is written."""
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < NEEDED_GIB and not STAMP.exists():
        raise Refused(
            f"disk: {free:.1f} GiB are free here and the installation needs {NEEDED_GIB}. Free some and run it again."
        )


def step(what: str, command: "list[str | Path]") -> None:
    """Run one command, its output to the log; on failure say in one sentence why."""
    started = time.monotonic()
    print(f"installing {what} ...", file=sys.stderr, flush=True)
    with LOG.open("a+") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        log.flush()
        begin = log.tell()
        environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_HTTP_TIMEOUT": "180", "UV_NO_PROGRESS": "1"}
        code = subprocess.run(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT
        ).returncode
        log.seek(begin)
        said = log.read()
    if code:
        raise Refused(explain(what, said))
    print(f"  done in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def explain(what: str, said: str) -> str:
    """One sentence from what a tool said before it failed."""
    name = what.partition(" (")[0]
    if "No space left on device" in said:
        return f"disk: it filled up while installing {name}. Free {NEEDED_GIB} GiB and run it again."
    if NO_NETWORK.search(said):
        return f"network: {name} could not be fetched. Connect the machine and run it again; what is fetched is kept."
    if "ensurepip" in said:
        return f"{sys.executable}: its venv module is incomplete. Install this Python's venv package and run it again."
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
    return f"{name}: not installed, {last} (all of it in {LOG.relative_to(ROOT)})"


def main() -> None:
    """Install once; a second run beside the first waits for it."""
    if is_installed():
        return
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_installed():
            install()


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        sys.exit(str(refused))
    except OSError as error:
        sys.exit(f"{error.filename or ROOT}: cannot be written, {error.strerror}. Mend that and run it again.")
    except KeyboardInterrupt:
        sys.exit("Stopped. Run the same command again: what is installed is kept.")
