"""An open-loop load: calls are sent when a clock says so, whether or not earlier ones have been answered.

A generator that waits for replies sends less while the server is slow, and so hides the queue that real users would
stand in ("coordinated omission", Tene 2013). Here latency counts from the instant at which a call was due, so that what
a call waited to be sent, in a late client too, is part of it; how late the client was is told beside it.
"""

# mypy: allow-untyped-calls
# (grpc generates its stubs without types)

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from headwater.clock import Clock
from headwater.errors import DataError, UnavailableError
from headwater.events import Event
from serving.client import message_of
from serving.proto.headwater.v1 import event_pb2, event_pb2_grpc, recommendation_pb2, recommendation_pb2_grpc

CONNECT_S = 10.0
TIMEOUT_S = 10.0
MOST_CALLS = 10_000_000
PERCENTILES = (50, 90, 99, 99.9)
_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]  # else channels share a connection


@dataclass(frozen=True)
class Load:
    """What is sent: ``qps`` calls a second for ``seconds``, each for a user drawn by Zipf's law with exponent ``skew``.

    A ``track`` share of the replies is followed by a purchase of one of the items shown. Calls take the ``connections``
    in turn.
    """

    qps: float
    seconds: float
    users: Sequence[str]
    skew: float = 1.0
    track: float = 0.2
    limit: int = 10
    surface: str = ""
    seed: int = 0
    connections: int = 1

    @property
    def calls(self) -> int:
        return max(1, round(self.qps * self.seconds))

    def drawn(self) -> list[str]:
        """Users of the calls, in order."""
        return [self.users[rank] for rank in zipf(len(self.users), self.skew, self.calls, self.seed).tolist()]


@dataclass
class Told:
    """What came of it; times in seconds, one a call."""

    ok: int = 0
    degraded: int = 0
    items: int = 0
    tracked: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    track_errors: Counter[str] = field(default_factory=Counter)
    latency: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    elapsed: float = 0.0

    def as_dict(self, load: Load) -> dict[str, Any]:
        sent = len(self.lateness)
        return {
            "sent": sent,
            "ok": self.ok,
            "errors": dict(self.errors),
            "degraded": self.degraded,
            "items": self.items,
            "tracked": self.tracked,
            "track_errors": dict(self.track_errors),
            "qps": load.qps,
            "achieved_qps": round(self.ok / self.elapsed, 2) if self.elapsed else 0.0,
            "seconds": round(self.elapsed, 2),
            "latency_ms": _percentiles(self.latency),
            "client_late_ms": {**_percentiles(self.lateness), "max": _ms(max(self.lateness, default=0.0))},
        }


def run(address: str, load: Load, clock: Clock) -> Told:
    """Send the load to one server and wait for its replies.

    Raises
    ------
    DataError
        There are no users, or a number is out of bounds.
    UnavailableError
        No server answers at the address.
    """
    if not load.users:
        raise DataError("users: there are none to draw from. Give a file with --users-file, or promote a bundle.")
    if not (load.qps > 0 and load.seconds > 0 and load.qps * load.seconds <= MOST_CALLS):
        raise DataError(
            f"load: {load.qps} calls a second for {load.seconds} s are not from 1 to {MOST_CALLS:,} calls. "
            "Ask for fewer."
        )
    return asyncio.run(_run(address, load, clock))


def zipf(n: int, skew: float, draws: int, seed: int) -> NDArray[np.int64]:
    """Draw from n ranks, the k-th with a weight of k^-skew; which user has which rank is drawn too; int64 (draws,)."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, n + 1, dtype=np.float64) ** -skew
    return rng.permutation(n)[rng.choice(n, draws, p=weights / weights.sum())]


async def _run(address: str, load: Load, clock: Clock) -> Told:
    async with AsyncExitStack() as stack:
        told, callers = Told(), []
        for number in range(load.connections):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_OPTIONS))
            try:
                await asyncio.wait_for(channel.channel_ready(), CONNECT_S)
            except TimeoutError:
                raise UnavailableError(
                    f"server at {address}: no answer within {CONNECT_S:.0f} s. Start it with headwater up."
                ) from None
            callers.append(_Calls(channel, load, clock, told, load.seed + 1 + number))
        began = time.perf_counter()
        waiting = []
        for number, user in enumerate(load.drawn()):
            due = began + number / load.qps
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            told.lateness.append(time.perf_counter() - due)
            waiting.append(asyncio.create_task(callers[number % len(callers)].call(user, due)))
        await asyncio.gather(*waiting)
        told.elapsed = time.perf_counter() - began
        return told


class _Calls:
    """One channel's calls; ``told`` is what comes of all channels'."""

    def __init__(self, channel: Any, load: Load, clock: Clock, told: Told, seed: int) -> None:
        self.told = told
        self._load, self._clock = load, clock
        self._recommend = recommendation_pb2_grpc.RecommendationServiceStub(channel).Recommend
        self._track = event_pb2_grpc.EventServiceStub(channel).Track
        self._rng = np.random.default_rng(seed)

    async def call(self, user: str, due: float) -> None:
        """One request; its latency counts from when it was due."""
        request = recommendation_pb2.RecommendRequest(user_id=user, surface=self._load.surface, limit=self._load.limit)
        try:
            reply = await self._recommend(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self.told.errors[error.code().name] += 1
            return
        finally:
            self.told.latency.append(time.perf_counter() - due)
        self.told.ok += 1
        self.told.degraded += bool(reply.degraded)
        self.told.items += len(reply.items)
        if reply.items and self._rng.random() < self._load.track:
            await self._buy(user, reply)

    async def _buy(self, user: str, reply: Any) -> None:
        item = reply.items[int(self._rng.integers(len(reply.items)))]
        context = {name: text for name, text in dict(item.attributes).items() if name != "name" and text}
        event = Event(
            event_id=f"load-{uuid.uuid4()}", event_type="purchase", event_time=self._clock.now_ms(), user_id=user,
            item_id=item.item_id, session_id=f"load-{user}", request_id=reply.request_id, position=item.position,
            value=round(float(self._rng.gamma(2.0, 1.5)) + 0.01, 2), context=context,
        )  # fmt: skip
        try:
            await self._track(event_pb2.TrackRequest(event=message_of(event)), timeout=TIMEOUT_S)
            self.told.tracked += 1
        except grpc.aio.AioRpcError as error:
            self.told.track_errors[error.code().name] += 1


def _percentiles(seconds: Sequence[float]) -> Mapping[str, float]:
    if not seconds:
        return {}
    return {f"p{share:g}": _ms(float(np.percentile(seconds, share))) for share in PERCENTILES}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
