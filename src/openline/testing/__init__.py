"""Tools for testing programs that use openline, and openline itself.

``run`` and ``VirtualLoop``: virtual time. ``Network`` and ``Host``: a simulated network for whole
transports. ``Faults``: seeded chaos. ``check_backend``: what any backend must do.
"""

from .conformance.checks import backend_checks, check_backend
from .conformance.recording import Violation
from .simulation.faults import Fault, Faults
from .simulation.loop import Deadlock, Killed, Process, Spinning, Unhandled, VirtualLoop, current_process, run
from .simulation.network import Host, Network
from .simulation.trace import Trace

__all__ = [
    "Deadlock",
    "Fault",
    "Faults",
    "Host",
    "Killed",
    "Network",
    "Process",
    "Spinning",
    "Trace",
    "Unhandled",
    "Violation",
    "VirtualLoop",
    "backend_checks",
    "check_backend",
    "current_process",
    "run",
]
