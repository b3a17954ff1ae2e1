"""The demo's steps: each is a command a user could type, run as one, its result kept so that a rerun resumes."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape

from headwater.cli.output import err
from headwater.errors import HeadwaterError
from headwater.files import write_whole
from serving.demo.resources import Meter

Result = dict[str, Any]
_NOISE = re.compile(r"log level|setLogLevel|INFO mlflow|^Using incubator")
"""What engines say at every start, and nobody acts on."""


@dataclass(frozen=True)
class Step:
    """``keep`` means that a finished step need not run again on a resume; ``feast`` prints no JSON."""

    name: str
    title: str
    arguments: tuple[str, ...]
    keep: bool = True
    program: Literal["headwater", "feast"] = "headwater"

    @property
    def command(self) -> list[str]:
        if self.program == "feast":
            return [str(Path(sys.executable).parent / "feast"), *self.arguments]
        return [sys.executable, "-m", "headwater", *self.arguments, "--json"]


@dataclass(frozen=True)
class Done:
    """A finished step: its JSON result and how long it took, in seconds; ``resumed`` if an earlier run did it."""

    result: Result
    seconds: float
    resumed: bool = False


class Journal:
    """Finished steps of an unfinished demo, on disk; another size or another definition starts afresh."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self._identity = identity
        held = json.loads(path.read_text()) if path.is_file() else {}
        self.resumable = held.get("identity") == identity and not held.get("finished")
        self._done: dict[str, Result] = held["done"] if self.resumable else {}

    def get(self, name: str) -> Done | None:
        held = self._done.get(name)
        return None if held is None else Done(held["result"], held["seconds"], resumed=True)

    def begin(self) -> None:
        """From here on, what lies in the state folder is the demo's own."""
        self._write(finished=False)

    def put(self, name: str, done: Done) -> None:
        self._done[name] = asdict(done)
        self._write(finished=False)

    def finish(self) -> None:
        """The next demo starts from the beginning."""
        self._write(finished=True)

    def _write(self, finished: bool) -> None:
        write_whole(self._path, json.dumps({"identity": self._identity, "finished": finished, "done": self._done}))


def identity_of(repo: Path, *choices: object) -> str:
    """Fingerprint of what a kept step depends on: the definitions and the demo's size."""
    digest = hashlib.sha256(repr(choices).encode())
    for path in sorted(repo.glob("*.py")) + sorted(repo.glob("*.yaml")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Runner:
    """Runs steps, measured, and remembers what they gave."""

    def __init__(self, journal: Journal, meter: Meter) -> None:
        self._journal = journal
        self._meter = meter
        self.done: dict[str, Done] = {}

    def run(self, *steps: Step) -> None:
        """Run commands side by side, but for those that an unfinished demo before this one has finished.

        Raises
        ------
        HeadwaterError
            A command failed, and the others were stopped; the message is its own last words.
        """
        with ThreadPoolExecutor(len(steps)) as pool:
            running: list[subprocess.Popen[str]] = []
            waiting = [pool.submit(self._measured, step, running) for step in steps]
            try:
                for finished in as_completed(waiting):
                    finished.result()
            except BaseException:
                for process in running:
                    process.terminate()
                raise

    def call(self, name: str, title: str, work: Callable[[], Result]) -> None:
        """Run a function of this process, timed like a command."""
        err.print(f"[bold]▸ {title}[/bold]", soft_wrap=True)
        began = time.monotonic()
        self._finished(name, title, Done(work(), round(time.monotonic() - began, 2)))

    def _measured(self, step: Step, running: list["subprocess.Popen[str]"]) -> None:
        held = self._journal.get(step.name) if step.keep else None
        if held is not None:
            err.print(f"[dim]· {step.title} (done before)[/dim]", soft_wrap=True)
            self.done[step.name] = held
            return
        err.print(f"[bold]▸ {step.title}[/bold]", soft_wrap=True)
        began = time.monotonic()
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
        process = subprocess.Popen(step.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet)
        running.append(process)
        with self._meter.command(step.name, process.pid):
            result = _result_of(step, process)
        done = Done(result, round(time.monotonic() - began, 2))
        if step.keep:
            self._journal.put(step.name, done)
        self._finished(step.name, step.title, done)

    def _finished(self, name: str, title: str, done: Done) -> None:
        self.done[name] = done
        err.print(
            f"  [green]✓[/green] {title}: {done.seconds:.1f} s{_highlights(done.result)}",
            highlight=False,
            soft_wrap=True,
        )


def _result_of(step: Step, process: "subprocess.Popen[str]") -> Result:
    """Progress of the command goes through to our stderr; its last line there is the reason if it fails."""
    assert process.stdout is not None
    assert process.stderr is not None
    last = ""
    for line in process.stderr:
        if line.strip():
            last = line.strip()
            if not _NOISE.search(last):
                err.print(f"  [dim]{escape(last[:160])}[/dim]", highlight=False, soft_wrap=True)
    out = process.stdout.read()
    if process.wait():
        asked = " ".join((step.program, *step.arguments))
        raise HeadwaterError(f"{asked}: {last or f'ended with {process.returncode}'}")
    return json.loads(out.strip().splitlines()[-1]) if step.program == "headwater" else {}


def _highlights(result: Result) -> str:
    shown = {
        key: value for key, value in result.items() if isinstance(value, int | float | str) and len(str(value)) < 24
    }
    return "".join(f" · {key.replace('_', ' ')} {value}" for key, value in list(shown.items())[:6])
