"""What the kernels and the network between two hosts do to a connection, as TCP does.

Bytes arrive in order, whenever the path lets them; they are acknowledged by the receiving kernel,
whether its program runs or not, until its buffer is full. A cut holds everything back and loses
nothing. What a kernel has forgotten is answered by a reset.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from ...backends.memory.link import SocketUser
from .loop import Process
from .path import Clock, Path, Timer

# Bytes that a kernel takes in before the program reads them.
RECEIVE_BUFFER = 256 * 1024
# Seconds after which what is not acknowledged is sent again; it does not get rarer here.
SEND_AGAIN = 0.4
# A program that has this much to read lets the loop have a turn in between.
READ_AT_ONCE = 256 * 1024


class _Mark:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


# On a path with little bandwidth, frames travel in parts of so many seconds each, and a connection
# has so many seconds' worth under way, so that connections share the path.
PART_SECONDS, AHEAD_SECONDS = 0.25, 0.5
# A part of a frame that is not its end.
PART: Final = _Mark("part")
# The end of a direction, in order behind its data; and a reset.
END: Final = _Mark("end")
RESET: Final = _Mark("reset")


class Pipe:
    """One direction of one connection."""

    __slots__ = (
        "_acked",
        "_acks",
        "_acks_timer",
        "_clock",
        "_flying",
        "_held_until",
        "_last",
        "_low",
        "_timer",
        "arrived",
        "back",
        "forgotten",
        "last_ack",
        "last_arrival",
        "muted",
        "path",
        "queue",
        "read",
        "sent",
        "source",
        "stuck_since",
        "target",
        "window",
        "written",
    )

    def __init__(self, clock: Clock, path: Path, back: Path, window: int) -> None:
        self.path, self.back, self.window = path, back, window
        self.source: Socket
        self.target: Socket
        # Bytes, in the order in which they pass these points.
        self.written = self.sent = self.arrived = self.read = self._acked = 0
        self.queue: deque[tuple[object, int]] = deque()
        # When bytes last came, and an acknowledgement of some.
        self.last_arrival = self.last_ack = clock.now()
        # The sender's kernel has forgotten it: what is lost now is never sent again.
        self.forgotten = False
        # Since when the path has swallowed what is sent, for its size.
        self.stuck_since: float | None = None
        # Something in between swallows all of it.
        self.muted = False
        self._flying: deque[tuple[float, object, int]] = deque()
        self._acks: deque[tuple[float, int]] = deque()
        self._clock = clock
        self._last = self._held_until = 0.0
        self._low: int | None = None
        self._timer: Timer | None = None
        self._acks_timer: Timer | None = None
        path.pipes[self] = back.returns[self] = None

    @property
    def up(self) -> bool:
        return self.path.up and not self.muted

    # Data ----------------------------------------------------------------------------------------

    def write(self, item: object, size: int) -> None:
        self.written += size
        if not self.forgotten:
            self.queue.append((item, size))
            self.transmit()

    def transmit(self) -> None:
        """Send what the path and the receiver's buffer let through."""
        queue = self.queue
        if not queue or not self.up:
            return
        rate = self.path.bandwidth
        while queue and self.sent - self.read < self.window:
            if queue[0][1] > self.path.longest_tcp:
                # Sent again and again, and what is behind it waits.
                self.stuck_since = self._clock.now() if self.stuck_since is None else self.stuck_since
                return
            self.stuck_since = None
            if rate != math.inf and self.sent - self.arrived > rate * AHEAD_SECONDS:
                break
            item, size = queue.popleft()
            if size > rate * PART_SECONDS:
                part = math.ceil(rate * PART_SECONDS)
                queue.appendleft((item, size - part))
                item, size = PART, part
            self.sent += size
            self._fly(item, size)

    def _fly(self, item: object, size: int) -> None:
        path = self.path
        start = max(path.leave(size), self._held_until)
        self._last = max(self._last, start + path.delay())
        self._flying.append((self._last, item, size))
        if self._timer is None:
            self._timer = self._clock.call_at(self._last, self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        flying, now, target = self._flying, self._clock.now(), self.target
        while flying and flying[0][0] <= now:
            _, item, size = flying.popleft()
            self.arrived += size
            self.last_arrival = now
            target.take_in(item, size)
        if self.queue:
            self.transmit()
        if flying and self._timer is None:
            self._timer = self._clock.call_at(flying[0][0], self._arrive)
        if target.open:
            self._acks.append((now + self.back.delay(), self.arrived))
            if self._low is not None:
                self.look_for_acks()
            target.deliver()

    def interrupt(self) -> None:
        """The path is down: what is under way is lost, and will be sent again."""
        flying = self._flying
        while flying:
            _, item, size = flying.pop()
            if not self.forgotten:
                self.queue.appendleft((item, size))
                self.sent -= size
        self._stop_timer()

    def lose_after(self, frames: int) -> None:
        """Only so many of the frames under way arrive, and none after them."""
        while len(self._flying) > frames:
            self._flying.pop()
        self.forget()

    @property
    def again(self) -> int:
        """How often what the path swallows has been sent again."""
        return 0 if self.stuck_since is None else int((self._clock.now() - self.stuck_since) / SEND_AGAIN)

    @property
    def under_way(self) -> int:
        return len(self._flying)

    def resume(self, when: float) -> None:
        """The path is up again, and data flows from then on."""
        self._held_until = when
        self.transmit()

    def mute(self) -> None:
        self.muted = True
        self.interrupt()

    def forget(self) -> None:
        """The sender's kernel knows nothing of it any more; what is under way arrives."""
        self.forgotten = True
        self.queue.clear()
        self._low = None

    def reset(self) -> None:
        """Forget it and tell the other side, if the path is up: a reset is not sent twice."""
        self.forget()
        if self.up and not (self._flying and self._flying[-1][1] is RESET):
            self._fly(RESET, 0)

    def retire(self) -> None:
        """Neither side knows of it."""
        self.path.pipes.pop(self, None)
        self.back.returns.pop(self, None)
        self.forget()
        self._flying.clear()
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Acknowledgements ----------------------------------------------------------------------------

    @property
    def acked(self) -> int:
        if self.back.up and not self.muted:
            self.settle_until_now()
        return self._acked

    def settle_until_now(self) -> None:
        """Count the acknowledgements that have come back."""
        acks, now = self._acks, self._clock.now()
        while acks and acks[0][0] <= now:
            self.last_ack, self._acked = acks.popleft()

    def when_drained(self, low: int) -> None:
        """Tell the source when at most ``low`` bytes are not acknowledged."""
        self._low = low
        self.look_for_acks()

    def look_for_acks(self) -> None:
        if self._low is None or self._acks_timer is not None or self.muted or not self.back.up:
            return
        if self.written - self.acked <= self._low:
            self._acks_timer = self._clock.call_at(self._clock.now(), self._on_ack)
        elif self._acks:
            self._acks_timer = self._clock.call_at(self._acks[0][0], self._on_ack)

    def _on_ack(self) -> None:
        self._acks_timer = None
        if self._low is not None and self.written - self.acked <= self._low:
            self._low = None
            self.source.drained()
        else:
            self.look_for_acks()


class Socket:
    """One end of a connection, as its kernel keeps it. ``backends.memlink.Socket`` is what links see."""

    def __init__(
        self, clock: Clock, process: Process, local: tuple[str, int], remote: tuple[str, int]
    ) -> None:
        self.local, self.remote = local, remote
        self.process = process
        self.user: SocketUser | None = None
        self.out: Pipe
        self.into: Pipe
        # The kernel knows of it and the program has not closed it.
        self.open = True
        self.paused = False
        # A reset has come; the end of the other side's data has come.
        self.failed = self.ended = False
        self.on_shut: Callable[[Socket], object] = lambda _: None
        # Told of every frame, where somebody wants to know.
        self.note: Callable[..., object] | None = None
        self._clock = clock
        self._buffer: deque[tuple[object, int]] = deque()

    def __repr__(self) -> str:
        return f"<socket {self.local[0]}:{self.local[1]} – {self.remote[0]}:{self.remote[1]}>"

    @property
    def peer(self) -> Socket:
        return self.out.target

    # The program's side --------------------------------------------------------------------------

    def send(self, item: object, size: int) -> None:
        if not self.open:
            return
        if self.note is not None:
            self.note("%s sends %s", self, item)
        if self.failed:
            self.soon(self._lose)
        else:
            self.out.write(item, size)

    @property
    def waiting(self) -> int:
        return self.out.written - self.out.acked

    @property
    def acked(self) -> int:
        return self.out.acked

    @property
    def again(self) -> int:
        return self.out.again

    @property
    def received(self) -> int:
        return self.into.arrived

    @property
    def gone(self) -> bool:
        return self.failed or self.ended or not self.open

    def when_drained(self, low: int) -> None:
        if self.open and not self.failed:
            self.out.when_drained(low)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        if self._buffer:
            self.soon(self.read_on)

    def soon(self, callback: Callable[[], object]) -> None:
        self._clock.call_soon(callback, self.process)

    def close(self) -> None:
        """The program is done with it; the kernel still sends what it has."""
        if self.open:
            if not self.failed:
                self.out.write(END, 0)
            self._shut()

    def reset(self) -> None:
        """The program is done with it, and so is the kernel."""
        if self.open:
            self.out.reset()
            self._shut()

    # The kernel's side ---------------------------------------------------------------------------

    def take_in(self, item: object, size: int) -> None:
        """It has arrived."""
        if not self.open or self.failed:
            if item is not END and item is not RESET:
                self.out.reset()
        elif item is RESET:
            self.fail()
        else:
            self.ended = self.ended or item is END
            self._buffer.append((item, size))

    def fail(self) -> None:
        """A reset: what has arrived can still be read."""
        if self.open and not self.failed:
            self.failed = True
            self.out.forget()
            self._buffer.append((RESET, 0))

    def vanish(self) -> None:
        """The kernel forgets it and tells nobody."""
        if self.open:
            self.out.forget()
            self._shut()

    def drop(self) -> None:
        """The kernel forgets it and tells only its own program."""
        if self.open:
            self.fail()
            self.deliver()

    def drained(self) -> None:
        self.soon(self._tell_drained)

    def _tell_drained(self) -> None:
        if self.user is not None:
            self.user.on_drained()

    def deliver(self) -> None:
        """Hand over what has arrived, if the program runs and reads."""
        process = self.process
        if self._buffer and process.running and self.user is not None and not self.paused:
            process.context.run(self.read_on)

    def read_on(self) -> None:
        """Read what has arrived; called in the program's own context."""
        buffer, into, size = self._buffer, self.into, 0
        while buffer and not self.paused and self.user is not None:
            if size > READ_AT_ONCE:
                self.soon(self.read_on)
                break
            item, size_of_item = buffer.popleft()
            size += size_of_item
            into.read += size_of_item
            if item is PART:
                continue
            if self.note is not None:
                self.note("%s reads %s", self, item)
            if item is END or item is RESET:
                self._lose()
                return
            self.user.on_item(item)
        into.transmit()

    def _lose(self) -> None:
        user = self.user
        if self.open:
            if not self.failed:
                self.out.write(END, 0)
            self._shut()
            if user is not None:
                user.on_end()

    def _shut(self) -> None:
        self.open = False
        self.user = None
        self._buffer.clear()
        self.on_shut(self)
        if not self.peer.open:
            self.out.retire()
            self.into.retire()


def connected(clock: Clock, near: Socket, far: Socket, there: Path, back: Path) -> None:
    """Make two sockets the ends of one connection."""
    near.out = far.into = Pipe(clock, there, back, RECEIVE_BUFFER)
    far.out = near.into = Pipe(clock, back, there, RECEIVE_BUFFER)
    near.out.source, near.out.target = near, far
    far.out.source, far.out.target = far, near
