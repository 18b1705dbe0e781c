"""An asyncio event loop with virtual time: hours pass in milliseconds, and always in the same way.

Time stands still while callbacks run, and jumps to the next timer when there are none left. There
are no threads and no file descriptors, and names are looked up in a table.

Callbacks may belong to a ``Process``, which can be stopped, put to sleep and killed like a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import itertools
import math
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar, TypeVarTuple

from ...address import canonical_ip

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# How long looking up a name takes.
LOOK_UP = 0.005
# Loop turns in a row without time passing; more are a program that spins.
MAX_TURNS = 100_000
# Cyclic garbage is collected every so many loop turns, and not when the interpreter thinks fit:
# what weak references find must not depend on what ran before.
TURNS_PER_COLLECTION = 200_000
# Virtual seconds that ``run`` allows.
LIMIT = 1_000_000.0

_process: ContextVar[Process | None] = ContextVar("openline_process", default=None)


class Deadlock(RuntimeError):
    """Nothing is scheduled and nothing can happen any more, but the program has not ended."""


class Spinning(RuntimeError):
    """Callbacks schedule callbacks without end, and time does not pass."""


class Unhandled(RuntimeError):
    """An exception that nobody handled, in a callback or a task of the simulated program."""


class Killed(Exception):
    """What was waited for runs on a process that has been killed."""


def current_process() -> Process | None:
    """The process that the running code belongs to; None for the test around it."""
    return _process.get()


class Process:
    """What runs on one host, from its start until it is killed.

    Code belongs to a process when it was started by ``spawn``, ``run`` or code that does.
    """

    def __init__(self, loop: VirtualLoop | None, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = self.asleep = False
        # Read for every callback, so an attribute: alive, and neither frozen nor asleep.
        self.running = True
        # How long this process's monotonic clock has stood still.
        self.lag = 0.0
        self.context = copy_context()
        self.context.run(_process.set, self)
        # Told after every thaw.
        self.on_thaw: list[Callable[[], object]] = []
        self._loop = loop
        self._held: list[_Handle | _Timer] = []
        self._gone: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped" if self.alive else "killed"
        return f"<process {self.name}, {state}>"

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that belongs to this process."""
        if not self.alive:
            coroutine.close()
            raise Killed(f"{self.name} was killed")
        loop = asyncio.get_running_loop()
        return loop.create_task(coroutine, context=self.context.copy())

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it in this process, and wait for its result. Raises ``Killed`` where that never comes."""
        task = self.spawn(coroutine)
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
        either: list[asyncio.Future[Any]] = [task, self._gone]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            raise Killed(f"{self.name} was killed")
        return task.result()

    def freeze(self) -> None:
        """As SIGSTOP does: nothing runs, time goes on."""
        self.frozen = True
        self._update()

    def thaw(self) -> None:
        """As SIGCONT does."""
        self.frozen = False
        self._update()

    def sleep(self, seconds: float) -> None:
        """As a laptop does: nothing runs, and the monotonic clock stands still."""
        if self.asleep or not self.alive:
            return
        loop = self._virtual("sleep")
        self.asleep = True
        self._update()
        loop.call_at_clock(loop.clock + seconds, lambda: self._wake(seconds))

    def _wake(self, seconds: float) -> None:
        self.asleep = False
        self.lag += seconds
        self._update()

    def kill(self) -> None:
        """As SIGKILL does: no more code of it runs, not even to clean up."""
        if not self.alive:
            return
        self.alive = False
        self._update()
        self._held.clear()
        self._virtual("kill").bury(self)
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def _update(self) -> None:
        loop = self._virtual("stop")
        before, self.running = self.running, self.alive and not (self.frozen or self.asleep)
        if self.running and not before:
            held, self._held = self._held, []
            # A loop that wakes up looks at its sockets first, or at its timers.
            arrived = self.on_thaw
            if loop.coin():
                loop.take_back(held)
                held = []
            for callback in arrived:
                loop.call_soon(callback, context=self.context)
            loop.take_back(held)

    def hold(self, handle: _Handle | _Timer) -> None:
        """A callback is due, and the process cannot run it."""
        if self.alive:
            self._held.append(handle)

    def _virtual(self, what: str) -> VirtualLoop:
        if self._loop is None:
            raise RuntimeError(f"only on a VirtualLoop can a process {what}")
        return self._loop


class _Handle(asyncio.Handle):
    __slots__ = ("process",)

    process: Process | None


class _Timer(asyncio.TimerHandle):
    __slots__ = ("due", "lag", "process")

    process: Process | None
    lag: float
    due: float


class _Task(asyncio.Task[Any]):
    """Hashes by its number: the order of a set of tasks would else depend on memory addresses."""

    _numbers = itertools.count()

    def __init__(self, coroutine: Any, **options: Any) -> None:
        self._number = next(self._numbers)
        context = options.get("context")
        self.process = _process.get() if context is None else context.get(_process)
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    return _Task(coroutine, loop=loop, **options)


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. ``clock`` is virtual seconds since the start; ``seed`` decides what a thawed
    process sees first."""

    def __init__(self, seed: int = 0, limit: float = LIMIT) -> None:
        super().__init__()
        self.clock = 0.0
        self.limit = limit
        # Host names, and the IPs they stand for.
        self.names: dict[str, list[str]] = {}
        # What went wrong where nobody looked, as asyncio's exception handlers are told.
        self.errors: list[dict[str, Any]] = []
        self.processes: list[Process] = []
        self._chance = seed * 2 + 1
        self._soon: deque[_Handle | _Timer] = deque()
        self._queue: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()
        self._cancelled = 0
        self._turns = self._turns_at_once = 0
        self._graveyard: list[asyncio.Task[Any]] = []
        self._finishing = False
        self._outside = Context()
        _Task._numbers = itertools.count()
        self.set_task_factory(_make_task)
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def process(self, name: str) -> Process:
        """A new process."""
        process = Process(self, name)
        self.processes.append(process)
        return process

    def coin(self) -> bool:
        """Heads or tails: xorshift, as this must not disturb anybody else's random numbers."""
        self._chance ^= self._chance << 13 & 0xFFFFFFFF
        self._chance ^= self._chance >> 17
        self._chance ^= self._chance << 5 & 0xFFFFFFFF
        return bool(self._chance & 0x80)

    # Time ----------------------------------------------------------------------------------------

    def time(self) -> float:
        process = _process.get()
        return self.clock - process.lag if process is not None else self.clock

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        handle.process = _process.get() if context is None else context.get(_process)
        self._soon.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        caller = _process.get()
        owner = caller if context is None else context.get(_process)
        if caller is not None:
            when += caller.lag
        timer = _Timer(when, callback, args, self, context)
        timer.due, timer.process, timer.lag = when, owner, owner.lag if owner is not None else 0.0
        self._push(timer)
        return timer

    def call_at_clock(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts
    ) -> asyncio.TimerHandle:
        """As ``call_at``, by ``clock``, and belonging to no process whoever calls."""
        timer = _Timer(when, callback, args, self, self._outside)
        timer.due, timer.process, timer.lag = when, None, 0.0
        self._push(timer)
        return timer

    def _push(self, timer: _Timer) -> None:
        heapq.heappush(self._queue, (timer.due, next(self._numbers), timer))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._cancelled += 1

    def take_back(self, held: Iterable[_Handle | _Timer]) -> None:
        """Callbacks of a process that runs again."""
        for handle in held:
            if not (isinstance(handle, _Timer) and self._postponed(handle)):
                self._soon.append(handle)

    def _postponed(self, timer: _Timer) -> bool:
        """Its process has slept meanwhile, so it is due later."""
        process = timer.process
        if process is None or process.lag == timer.lag or process.asleep:
            return False
        timer.due += process.lag - timer.lag
        timer.lag = process.lag
        if timer.due <= self.clock:
            return False
        self._push(timer)
        return True

    def _run_once(self) -> None:
        ready = self._soon
        if self._cancelled > 64 and self._cancelled * 2 > len(self._queue):
            self._sweep()
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            self._advance()
        self._take_due()
        self._count_turn()
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle.process
            if process is None or process.running:
                handle._run()
            else:
                process.hold(handle)

    def _advance(self) -> None:
        queue = self._queue
        while queue and queue[0][2].cancelled():
            heapq.heappop(queue)
        if not queue:
            raise Deadlock(self._describe(f"nothing is scheduled any more at {self.clock:.3f} s"))
        if queue[0][0] > self.limit:
            raise TimeoutError(self._describe(f"not finished after {self.limit:g} virtual seconds"))
        if queue[0][0] > self.clock:
            self.clock = queue[0][0]
            self._turns_at_once = 0

    def _take_due(self) -> None:
        queue, clock = self._queue, self.clock
        while queue and queue[0][0] <= clock:
            timer = heapq.heappop(queue)[2]
            if not timer.cancelled() and not self._postponed(timer):
                self._soon.append(timer)

    def _sweep(self) -> None:
        self._queue = [entry for entry in self._queue if not entry[2].cancelled()]
        heapq.heapify(self._queue)
        self._cancelled = 0

    def _count_turn(self) -> None:
        self._turns += 1
        self._turns_at_once += 1
        if self._turns % TURNS_PER_COLLECTION == 0:
            gc.collect()
        if self._turns_at_once > MAX_TURNS:
            doing = "\n".join(f"  {handle!r}" for handle in list(self._soon)[:10])
            raise Spinning(
                self._describe(f"{MAX_TURNS} loop turns at {self.clock:.3f} s, and no end; next:\n{doing}")
            )

    def _describe(self, what: str) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=hash)
        waiting = [f"  {task.process.name + ': ' if task.process else ''}{_where(task)}" for task in tasks]  # type: ignore[attr-defined]
        return "\n".join([what, *(["waiting:"] if waiting else []), *waiting])

    # What needs an outside world -----------------------------------------------------------------

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """The addresses of a name in ``names``, or of an IP."""
        if host is None:
            host = "0.0.0.0"
        ip = canonical_ip(host)
        await asyncio.sleep(0 if ip else LOOK_UP)
        found = [ip] if ip else self.names.get(host)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [_address_info(each, int(port or 0)) for each in found]

    def run_in_executor(self, executor: object, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """There are no threads."""
        raise RuntimeError("no threads in virtual time: their work takes real time")

    def _write_to_self(self) -> None:
        """Nothing sleeps here that would have to be woken."""

    # The end -------------------------------------------------------------------------------------

    def bury(self, process: Process) -> None:
        """Its tasks will never run again, and are kept so that they do not clean up, either."""
        for task in asyncio.all_tasks(self):
            if task.process is process:  # type: ignore[attr-defined]
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                self._graveyard.append(task)

    def finish(self) -> None:
        """Kill all processes, cancel all other tasks, and close."""
        for process in self.processes:
            process.kill()
        self._turns_at_once, self.limit = 0, math.inf
        try:
            dead = set(self._graveyard)
            rest = [task for task in sorted(asyncio.all_tasks(self), key=hash) if task not in dead]
            for task in rest:
                task.cancel()
            if rest:
                self.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        finally:
            self._finishing = True
            self._close_graves()
            self.close()

    def _close_graves(self) -> None:
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            self._graveyard.append(task)
        for task in set(self._graveyard):
            coroutine = task.get_coro()
            # What a dead program does about its own end is of no interest.
            with contextlib.suppress(BaseException):
                if coroutine is not None:
                    coroutine.close()
        self._graveyard.clear()

    def _asyncgen_finalizer_hook(self, generator: AsyncGenerator[Any, Any]) -> None:
        """What a dead program was iterating over is not closed, either."""
        if not self._finishing:
            super()._asyncgen_finalizer_hook(generator)  # type: ignore[misc]

    def close(self) -> None:
        self._soon.clear()
        self._queue.clear()
        super().close()


def _where(task: asyncio.Task[Any]) -> str:
    stack = task.get_stack(limit=1)
    place = f" at {stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else ""
    return f"{getattr(task.get_coro(), '__qualname__', task.get_name())}{place}"


def _address_info(ip: str, port: int) -> tuple[Any, ...]:
    base, _, scope = ip.partition("%")
    if ":" in ip:
        sockaddr = (base, port, 0, int(scope) if scope.isdigit() else 0)
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", sockaddr
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (ip, port)


@contextlib.contextmanager
def _no_collector() -> Generator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def run(main: Coroutine[Any, Any, T], *, seed: int = 0, limit: float = LIMIT) -> T:
    """Run a coroutine in virtual time, and return its result.

    Raises ``Deadlock`` when nothing can happen any more, ``TimeoutError`` after ``limit`` virtual
    seconds, and ``Unhandled`` when something went wrong that nobody handled.
    """
    loop = VirtualLoop(seed, limit)
    with _no_collector():
        try:
            result = loop.run_until_complete(main)
        finally:
            loop.finish()
    if loop.errors:
        first = loop.errors[0]
        raise Unhandled(first["message"]) from first.get("exception")
    return result
