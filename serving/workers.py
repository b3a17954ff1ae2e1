"""Worker processes that answer on one port, and the parent that starts them, watches them and ends them.

The kernel gives each new connection to one of the processes that listen on the port (SO_REUSEPORT), so requests of one
connection go to one worker, and a client that wants all of them opens several. Workers are forked from a process that
has done their imports (multiprocessing's fork server). To each leads a pipe, over which it says that it answers and
hands over its metrics; the pipe's end, whether the parent closes it or dies, is the word to drain.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from prometheus_client import CollectorRegistry, Counter, generate_latest

from headwater.errors import HeadwaterError, ResourceError
from headwater.log import configure_logging, get_logger
from headwater.metrics import expose
from headwater.runtime.ports import comes_free, holder
from headwater.runtime.ready import mark_ready, ready_path
from headwater.settings import Settings, addresses, get_settings
from serving.metrics_page import Gathered

log = get_logger("serving")
SETTLED_S = 60.0
PAUSE_S, MOST_PAUSE_S = 0.5, 30.0
"""Before a worker that ended soon after its start is started again; doubled each time."""
ANSWER_S = 2.0
ENDING_S = 18.0
"""A worker may take so long to drain: calls under way, then impressions on their way."""
_IMPORTED_ONCE = ["serving.server", "serving.build", "serving.impressions", "serving.spill", "lightgbm"]


def serve(settings: Settings) -> None:
    """Answer until SIGTERM or Ctrl-C, in this process or in as many workers as the settings say.

    Raises
    ------
    ResourceError
        A port is taken, or a worker ended while it started.
    """
    if settings.serve_workers == 1:
        from serving import server

        server.serve(settings)
        return
    ended, end = multiprocessing.Pipe(duplex=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.send_bytes(b"end"))
    with _reserved(settings):
        workers = Workers(settings)
        expose(settings, workers.registry, "metrics_port")
        try:
            workers.start(ended)
            mark_ready(settings, "serve", address=addresses(settings).grpc, workers=settings.serve_workers)
            workers.watch(ended)
        finally:
            ready_path(settings, "serve").unlink(missing_ok=True)
            workers.close()
    log.info("drained")


class Worker:
    """One process and the pipe that leads to it."""

    def __init__(self, number: int, settings: Settings) -> None:
        self.number = number
        self.started = time.monotonic()
        self.answers, self.is_awaited = False, True
        self._asked = 0
        self._lock = threading.Lock()
        forked = multiprocessing.get_context("forkserver")
        self._pipe, theirs = forked.Pipe()
        self.process = forked.Process(target=_work, args=(number, settings, theirs), name=f"serve-{number}")
        self.process.start()
        theirs.close()

    @property
    def pipe(self) -> Connection:
        """Has something to read once the worker answers, or has ended."""
        return self._pipe

    def hear(self) -> None:
        """Take the word that it answers."""
        self.is_awaited = False
        with suppress(OSError, EOFError):
            self._pipe.recv()
            self.answers = True

    def metrics(self) -> str | None:
        """The worker's page; ``None`` where it starts, ends or hangs."""
        with self._lock, suppress(OSError, EOFError):
            if not self.answers:
                return None
            self._asked += 1
            self._pipe.send(self._asked)
            until = time.monotonic() + ANSWER_S
            while self._pipe.poll(max(0.0, until - time.monotonic())):
                asked, page = self._pipe.recv()
                if asked == self._asked:  # no late answer to an earlier question
                    return str(page)
        return None

    def end(self) -> None:
        """Tell it to drain."""
        with self._lock:
            self._pipe.close()


@dataclass
class _Place:
    """A worker's number, who has it, and when it is started again."""

    number: int
    worker: Worker | None = None
    start_at: float = 0.0
    pause_s: float = field(default=PAUSE_S)


class Workers:
    """As many workers as the settings say; one that ends is started again."""

    def __init__(self, settings: Settings) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # maths of one request does not gain by threads; processes scale
        multiprocessing.set_forkserver_preload(_IMPORTED_ONCE)
        self._settings = settings
        self._places = [_Place(number) for number in range(settings.serve_workers)]
        self.registry = CollectorRegistry()
        self.registry.register(Gathered(self._pages))
        self._starts = Counter(
            "headwater_worker_starts", "Times that a worker was started.", ["worker"], registry=self.registry
        )

    def start(self, ended: Connection) -> None:
        """Start all and wait until they answer, or until the end is asked for.

        Raises
        ------
        ResourceError
            One ended before it answered.
        """
        for place in self._places:
            self._start(place)
        while not ended.poll() and not all(worker.answers for worker in self._all()):
            self._listen(ended, None)
            self._require_alive()

    def watch(self, ended: Connection) -> None:
        """Start again what ends, until the end is asked for."""
        while not ended.poll():
            self._listen(ended, self._until_next())
            now = time.monotonic()
            for place in self._places:
                if place.worker is not None and not place.worker.process.is_alive():
                    self._bury(place, now)
                if place.worker is None and place.start_at <= now:
                    self._start(place)

    def close(self) -> None:
        """Drain all at once; what has not ended then is killed."""
        until = time.monotonic() + ENDING_S
        for worker in self._all():
            worker.end()
        for worker in self._all():
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                log.error("worker_killed", worker=worker.number, pid=worker.process.pid)
                worker.process.kill()
                worker.process.join()

    def _listen(self, ended: Connection, timeout_s: float | None) -> None:
        """Return once a worker answers or ends, or the end is asked for."""
        awaited: dict[Any, Worker] = {worker.pipe: worker for worker in self._all() if worker.is_awaited}
        for heard in wait([ended, *awaited, *(worker.process.sentinel for worker in self._all())], timeout_s):
            if heard in awaited:
                awaited[heard].hear()

    def _start(self, place: _Place) -> None:
        place.worker = Worker(place.number, self._settings)
        self._starts.labels(str(place.number)).inc()

    def _bury(self, place: _Place, now: float) -> None:
        worker = place.worker
        assert worker is not None
        place.pause_s = PAUSE_S if now - worker.started > SETTLED_S else min(2 * place.pause_s, MOST_PAUSE_S)
        place.worker, place.start_at = None, now + place.pause_s
        worker.end()
        log.error("worker_ended", worker=worker.number, pid=worker.process.pid, code=worker.process.exitcode,
                  again_in_s=place.pause_s)  # fmt: skip

    def _all(self) -> list[Worker]:
        return [place.worker for place in self._places if place.worker is not None]

    def _until_next(self) -> float | None:
        due = [place.start_at for place in self._places if place.worker is None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _require_alive(self) -> None:
        for worker in self._all():
            if not worker.process.is_alive():
                raise ResourceError(
                    f"serve: worker {worker.number} ended while starting, exit code {worker.process.exitcode}. "
                    "Its reason stands above; mend that and start again."
                )

    def _pages(self) -> dict[int, str]:
        found = {worker.number: worker.metrics() for worker in self._all()}
        return {number: page for number, page in found.items() if page is not None}


def _reserved(settings: Settings) -> socket.socket:
    """Hold the port without listening, so that no stranger has it while workers come and go."""
    host, port = settings.host, settings.grpc_port
    if not comes_free(host, port):
        raise ResourceError(
            f"grpc_port: {host}:{port} is taken by {holder(port)}. End it, or set HEADWATER_GRPC_PORT to a free port."
        )
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((host, port))
    return held


def _work(number: int, settings: Settings, pipe: Connection) -> None:
    """A worker's life: answer calls, and the parent's questions for metrics, until the pipe or SIGTERM ends it."""
    from serving import server

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says when to end
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    configure_logging("info")
    try:
        answering = server.opened(settings, number)
        answering.start()
    except HeadwaterError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    with suppress(EOFError, OSError, KeyboardInterrupt):
        pipe.send((0, ""))
        while True:
            pipe.send((pipe.recv(), generate_latest(answering.registry).decode()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answering.close()


def main() -> int:
    """Exit 1 with one sentence where the server cannot start."""
    configure_logging("info")
    try:
        serve(get_settings())
    except HeadwaterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
