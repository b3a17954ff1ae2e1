"""A standalone Flink cluster from the scripts of the pip package: a JobManager, and TaskManagers of one slot each."""

from pathlib import Path

import psutil

from headwater.runtime import process
from headwater.runtime.java import SHORT_RUN, find_java
from headwater.runtime.ports import free_port
from streaming import health
from streaming.cluster import pyflink_home

HOST = "127.0.0.1"
QUICK = ("heartbeat.interval=1000", "heartbeat.timeout=10000")
"""A lost TaskManager is noticed within seconds, not within a minute."""
SMALL = (
    "taskmanager.memory.process.size=900m", "taskmanager.memory.jvm-metaspace.size=192m",
    "taskmanager.memory.jvm-overhead.min=64m", "taskmanager.memory.jvm-overhead.max=64m",
    "taskmanager.memory.managed.size=64m", "taskmanager.memory.network.min=64m", "taskmanager.memory.network.max=64m",
)  # fmt: skip


class FlinkCluster:
    """Servers in the foreground, so that each is ended by its pid."""

    def __init__(self, folder: Path) -> None:
        self._bin, self._folder = pyflink_home() / "bin", folder
        self._rpc, self._rest = free_port(), free_port()
        self.rest = f"http://{HOST}:{self._rest}"
        self._started: list[tuple[Path, process.Process]] = []
        self._task_managers: list[process.Process] = []

    def start(self, task_managers: int) -> None:
        options = (f"rest.port={self._rest}", f"rest.address={HOST}", "jobmanager.memory.process.size=800m")
        self._spawn("jobmanager", options)
        for _ in range(task_managers):
            self.start_task_manager()

    def start_task_manager(self) -> None:
        options = (f"taskmanager.host={HOST}", "taskmanager.numberOfTaskSlots=1", *SMALL)
        self._task_managers.append(self._spawn("taskmanager", options))

    def task_managers(self) -> int:
        try:
            return len(health.get(f"{self.rest}/taskmanagers")["taskmanagers"])
        except OSError:
            return 0

    def kill_task_manager(self) -> None:
        """``kill -9`` of the first TaskManager and of its Python workers, as when a machine is lost."""
        leader = psutil.Process(self._task_managers.pop(0).pid)
        for member in [leader, *leader.children(recursive=True)]:
            member.kill()

    def supervise(self) -> None:
        """Start another for each TaskManager that has ended by itself, as Kubernetes does."""
        for ended in [one for one in self._task_managers if not one.is_alive()]:
            self._task_managers.remove(ended)
            self.start_task_manager()

    def told(self) -> str:
        """Who runs still, and what each warned of and said last."""
        said: list[str] = []
        for log, one in self._started:
            lines = process.last_lines(log, 400)
            warned = [line for line in lines if " WARN " in line or " ERROR " in line]
            said += [f"{log.parent.name} {'runs' if one.is_alive() else 'has ended'}:", *warned[-10:], *lines[-10:]]
        return "\n".join(line[:300] for line in said)

    def end(self) -> None:
        for _, started in reversed(self._started):
            process.end(started, patience_s=0)  # told to end, each waits for the others first

    def _spawn(self, script: str, options: tuple[str, ...]) -> process.Process:
        shared = (f"jobmanager.rpc.address={HOST}", f"jobmanager.rpc.port={self._rpc}", *QUICK)
        told = [word for option in (*shared, *options) for word in ("-D", option)]
        folder = self._folder / f"{script}{len(self._started)}"
        folder.mkdir(parents=True)
        environment = {
            "JAVA_HOME": str(find_java().home), "FLINK_LOG_DIR": str(folder), "FLINK_PID_DIR": str(folder),
            "JVM_ARGS": f"{SHORT_RUN} -Djava.io.tmpdir={folder}",
        }  # fmt: skip
        command = [str(self._bin / f"{script}.sh"), "start-foreground", *told]
        started = process.spawn(command, folder / "out", environment)
        self._started.append((folder / "out", started))
        return started
