"""Who holds a run's leases, and whether that process is gone."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from pipedag_core.ports.catalogs import Owner

_PROC = Path("/proc")


def this_process(note: str = "") -> Owner:
    """Return this process as the owner of a run whose steps it executes alone: when it dies, its leases are free at once.

    Args:
        note: Who it is, for people.
    """
    pid = os.getpid()
    return Owner(host=socket.gethostname(), boot=_boot(), pid=pid, started=_start_time(pid) or "", note=note)


def many_processes(note: str = "") -> Owner:
    """Return the owner of a run whose steps are executed in many processes: only expiry ends its leases.

    Args:
        note: Who it is, for people.
    """
    return Owner(host=socket.gethostname(), boot=_boot(), pid=0, started="", note=note)


def is_gone(owner: Owner) -> bool:
    """Return whether the owner is a process of this machine that certainly does not live any more.

    False for owners on other machines, and for owners that are not one process: nothing can be known of them from here.
    """
    return lives(owner) is False


def lives(owner: Owner) -> bool | None:
    """Return whether the owner is a process of this machine that lives, or lived; None where nothing can be known from here."""
    if owner.pid <= 0 or sys.platform == "win32" or (owner.host, owner.boot) != (socket.gethostname(), _boot()):
        return None
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, under another user
    found = _start_time(owner.pid)
    return found is None or owner.started in ("", found)


def _boot() -> str:
    """Return what must be equal for two process ids to mean the same process: the boot, and the namespace of process ids."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        # Containers of one machine share its boot id, but not their process ids.
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot; None where the system does not tell; "dead" for a zombie.

    Source:
        Linux manual, proc_pid_stat(5): the state is field 3 and the start time field 22; field 2, the command, may hold spaces and brackets.
    """
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20:
        return None
    return "dead" if fields[0] in (b"Z", b"X") else fields[19].decode()
