"""A PostgreSQL database: connections that are given out and taken back, and what its errors mean."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, final

import psycopg
from psycopg import conninfo, sql
from psycopg.pq import TransactionStatus

from pipedag_core.errors import ConfigError, PipedagError, StoreError
from pipedag_core.naming import quote_literal

T = TypeVar("T")

#: A connection of psycopg. Its own type takes literal texts only, where ours are made with quoted names.
Connection = Any

#: PostgreSQL cuts longer names off without an error.
MAX_NAME: Final = 63

#: Seconds for which a thread waits for a connection while all are in use.
_PATIENCE_S: Final = 120.0

#: Times that an action is carried out when the database asks for another try.
_TRIES: Final = 4

#: The database gave up one of several transactions that were in each other's way.
_AGAIN: Final = frozenset({"40001", "40P01"})

#: Seconds for which a connection that nobody uses is believed to be there still.
WARM_S: Final = 1.0

#: Without them, the same query would have other results on another server or beside other queries.
_SETTINGS: Final = ("TimeZone = 'UTC'", "synchronize_seqscans = off", "client_min_messages = warning")


@final
@dataclass(slots=True)
class Held:
    """A connection of the pool.

    Attributes:
        connection: In autocommit mode.
        label: Whose the server says that it is (`application_name`).
        untidy: The user's own statements ran on it, so that nobody else may have it.
        used: When it was last known to work (`time.monotonic`).
    """

    connection: Connection
    label: str = ""
    untidy: bool = field(default=False)
    used: float = field(default_factory=time.monotonic)

    @property
    def is_warm(self) -> bool:
        """Whether it was in use a moment ago, so that it is hardly lost without anybody knowing."""
        return time.monotonic() - self.used < WARM_S

    def naming(self, label: str) -> str:
        """Return the statement that tells the server whose it is, with a semicolon; "" if the server knows."""
        if not label or self.label == label:
            return ""
        name = f"pipedag {label}".encode()[:MAX_NAME].decode(errors="ignore")
        return f"SELECT pg_catalog.set_config('application_name', {quote_literal(name)}, false);"


@final
class Database:
    """One database of a PostgreSQL server, as one user. Safe to use from several threads; after a fork the child opens connections of its own.

    Args:
        url: As libpq takes it, or with `+psycopg` behind `postgresql`.
        max_connections: How many connections may be open at once in this process; who needs one more waits.
        connect_timeout: Seconds to wait for the server.
        statement_timeout: Seconds after which the server ends a statement, or None.
        create_database: Make the database if it is not there.
        settings: More of what is said once on every new connection (`synchronous_commit = off`).
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = 20,
        connect_timeout: float = 10.0,
        statement_timeout: float | None = None,
        create_database: bool = False,
        settings: tuple[str, ...] = (),
    ) -> None:
        self._parameters = _parsed(url)
        self._parameters.setdefault("connect_timeout", max(2, round(connect_timeout)))
        self._parameters.setdefault("application_name", "pipedag")
        timeout = () if statement_timeout is None else (f"statement_timeout = {round(statement_timeout * 1000)}",)
        self._settings = (*_SETTINGS, *timeout, *settings)
        self._create = create_database
        self._free = threading.Semaphore(max_connections)
        self._max = max_connections
        self._idle: list[Held] = []
        self._guard = threading.Lock()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"Database({self.address!r})"

    @property
    def address(self) -> str:
        """Host, port and database, without user and password, for messages."""
        host, port = self._parameters.get("host") or "localhost", self._parameters.get("port")
        return f"{host}{f':{port}' if port else ''}/{self.name}"

    @property
    def name(self) -> str:
        """Name of the database."""
        return str(self._parameters.get("dbname") or self._parameters.get("user") or "")

    @property
    def conninfo(self) -> str:
        """What libpq needs to connect, the password included: for drivers, never for people."""
        return conninfo.make_conninfo(**self._parameters)

    @property
    def settings(self) -> str:
        """Statements that are run once on every new connection."""
        return "".join(f"SET {item};" for item in self._settings)

    @contextmanager
    def connection(self, label: str = "") -> Generator[Connection]:
        """Lease a connection in autocommit mode; a transaction that is left open is undone.

        Args:
            label: Who is at work, for the server's list of sessions (`application_name`).

        Raises:
            ConfigError, StoreError: The server or the database cannot be reached.
        """
        held = self.take(label)
        try:
            yield held.connection
        finally:
            self.give_back(held)

    def take(self, label: str | None = "") -> Held:
        """Lease a connection until `give_back` is called with what is returned.

        Args:
            label: As for `connection`; None leaves it to the caller to name it, and to find out whether it was lost while nobody used it.
        """
        if self._pid != os.getpid():
            # What was inherited belongs to the parent, and closing it would end the parent's sessions.
            self._inherited, self._idle, self._pid = self._idle, [], os.getpid()
            self._free, self._guard = threading.Semaphore(self._max), threading.Lock()
        if not self._free.acquire(timeout=_PATIENCE_S):
            raise StoreError(
                f"All {self._max} connections to {self.address} have been in use for {_PATIENCE_S:.0f} s. Raise max_connections, or lower max_workers."
            )
        try:
            while True:
                idle = self._reuse()
                held = idle or Held(self._connect())
                try:
                    if label is not None:
                        tell_name(held, label)
                except psycopg.Error:
                    # It was lost while nobody used it.
                    if idle is None or not held.connection.closed:
                        raise
                else:
                    return held
        except BaseException:
            self._free.release()
            raise

    def give_back(self, held: Held) -> None:
        """Take a connection back; one that is broken, or that the user's code had, is closed."""
        connection = held.connection
        try:
            if not connection.closed and connection.info.transaction_status is not TransactionStatus.IDLE:
                connection.rollback()
            if held.untidy and not connection.closed:
                # All that a session knows, and with it the statements that the driver believes to be prepared: a new one is all that both agree on.
                connection.close()
        except psycopg.Error:
            with suppress(psycopg.Error):
                connection.close()
        finally:
            if not connection.closed:
                held.used = time.monotonic()
                with self._guard:
                    self._idle.append(held)
            self._free.release()

    def run(self, action: Callable[[Connection], T], label: str = "") -> T:
        """Carry out one transaction, again where the database asks for it: a deadlock, or a connection that was lost while it was idle.

        Args:
            action: Works on a connection within a transaction; may be called several times.
            label: As for `connection`.
        """
        for number in range(1, _TRIES + 1):
            with self.connection(label) as connection:
                begun = False
                try:
                    with connection.transaction():
                        begun = True
                        return action(connection)
                except psycopg.Error as error:
                    lost_before = connection.closed and not begun
                    if number == _TRIES or not (lost_before or error.sqlstate in _AGAIN):
                        raise
                    if lost_before:
                        # And others with it.
                        self.close()
            time.sleep(0.01 * number**2)
        raise AssertionError

    def ask(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of one query that changes nothing, as a transaction of its own: one way to the server and back."""
        for number in range(1, _TRIES + 1):
            with self.connection() as connection:
                try:
                    return connection.execute(query, values).fetchall()
                except psycopg.Error:
                    # It was lost, perhaps while nobody used it, and others with it.
                    if number == _TRIES or not connection.closed:
                        raise
            self.close()
        raise AssertionError

    def close(self) -> None:
        """Close all connections that are not in use; the database can be used again afterwards."""
        with self._guard:
            idle, self._idle = self._idle, []
        if self._pid == os.getpid():
            for held in idle:
                held.connection.close()

    def _reuse(self) -> Held | None:
        while True:
            with self._guard:
                held = self._idle.pop() if self._idle else None
            if held is None or not held.connection.closed:
                return held

    def _connect(self) -> Connection:
        connection: Connection
        try:
            connection = psycopg.connect(**self._parameters, autocommit=True)
        except psycopg.OperationalError as error:
            if _sqlstate_of_connect(error) != "3D000":
                raise self._unreachable(error) from error
            if not self._create:
                raise ConfigError(
                    f"The server {self.address} has no database {self.name!r}. Make it with\n    CREATE DATABASE {_quoted(self.name)};\n"
                    "or allow pipedag to make it: create_database: true.",
                    database=self.name,
                ) from error
            self._make_database()
            connection = psycopg.connect(**self._parameters, autocommit=True)
        connection.prepared_max = 1000
        connection.prepare_threshold = 3
        connection.execute(self.settings)
        return connection

    def _make_database(self) -> None:
        parameters = {**self._parameters, "dbname": "postgres"}
        try:
            with psycopg.connect(**parameters, autocommit=True) as connection:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.name)))
        except psycopg.errors.DuplicateDatabase:
            pass  # another process was first
        except psycopg.Error as error:
            raise ConfigError(
                f"The database {self.name!r} of {self.address} could not be made: {text_of(error)}\nLet somebody with the right do it:\n"
                f"    CREATE DATABASE {_quoted(self.name)};",
                database=self.name,
            ) from error

    def _unreachable(self, error: psycopg.OperationalError) -> PipedagError:
        return StoreError(
            f"The PostgreSQL server at {self.address} cannot be reached: {text_of(error)}\n"
            "Check address, user and password in the configuration, and whether the server runs.",
            address=self.address,
        )


def tell_name(held: Held, label: str) -> None:
    """Tell the server whose a connection is."""
    statement = held.naming(label)
    if statement:
        held.connection.execute(statement)
        held.label = label


def is_lost(error: psycopg.Error, connection: Connection) -> bool:
    """Return whether the connection came to its end: nobody knows then whether its last statement was carried out."""
    return connection.closed or (error.sqlstate or "")[:2] == "08" or (error.sqlstate or "") in ("57P01", "57P02", "57P03")


def text_of(error: Exception) -> str:
    """Return what the server said, with its details and hints, on lines of their own."""
    parts = [str(error).strip()]
    diagnostic = getattr(error, "diag", None)
    if diagnostic is not None:
        for part in (diagnostic.message_detail, diagnostic.message_hint):
            if part and part not in parts[0]:
                parts.append(part)
    return "\n".join(parts)


def advice(sqlstate: str, what: str) -> str:
    """Return what to do about an error of this kind; "" where the server's own words are enough.

    Args:
        sqlstate: The server's code.
        what: Whose error it is ("the table store").
    """
    kind = sqlstate[:2]
    if sqlstate == "42501":
        return f"The user of {what} lacks a right; the message names the object. Let its owner GRANT it (CREATE on the database for new schemas)."
    if sqlstate == "57014":
        return "The statement was ended, by statement_timeout or by somebody who cancelled it."
    if sqlstate == "55P03":
        return "Somebody else holds a lock on it for too long; pg_stat_activity lists who."
    if kind == "53":
        return "The server lacks room, memory or connections. Make room, or lower max_connections."
    if kind in ("08", "57", "58", "XX"):
        return "The connection was lost or the server is in trouble. Execute the step again once it is back; nothing half-done is visible."
    return ""


def _parsed(url: str) -> dict[str, Any]:
    scheme, sign, rest = url.partition("://")
    try:
        return conninfo.conninfo_to_dict(f"postgresql://{rest}" if sign and scheme.startswith(("postgres", "postgresql")) else url)
    except psycopg.ProgrammingError as error:
        # The message of the driver may quote the address with its password.
        raise ConfigError("The url is no address of a PostgreSQL server. Write postgresql://user:password@host:port/database.") from error


def _sqlstate_of_connect(error: psycopg.OperationalError) -> str | None:
    # The driver does not tell the code of what went wrong while connecting.
    return "3D000" if error.sqlstate == "3D000" or ("database" in str(error) and "does not exist" in str(error)) else error.sqlstate


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
