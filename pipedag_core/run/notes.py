"""What is said about a user's exception, whatever kind of exception it is."""

from __future__ import annotations

from contextlib import suppress


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception; one that takes no notes stays as it is."""
    # Frozen exceptions refuse with an AttributeError, those with foreign notes with a TypeError: neither may hide the exception itself.
    with suppress(AttributeError, TypeError):
        error.add_note(f"pipedag: {text}")


def message_of(error: BaseException) -> str:
    """Return an exception's type and text."""
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 -- a text that cannot be made must not hide the exception
        text = f"(it has no text: its __str__ raised {type(failure).__name__})"
    return f"{type(error).__name__}: {text}"


def is_interruption(error: BaseException) -> bool:
    """Return whether an exception is Ctrl-C in another shape: DuckDB turns it into a RuntimeError when it comes during a query in the main thread."""
    return type(error) is RuntimeError and str(error).startswith("Query interrupted")
