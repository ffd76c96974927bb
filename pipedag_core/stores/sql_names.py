"""Names of schemas and tables in a SQL store: what readers see, where tables really are, and how an address from the catalog is read again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, final

from pipedag_core.errors import FlowError, StoreError
from pipedag_core.naming import quote_identifier

_LOCATION: Final = re.compile(r'"((?:[^"]|"")+)"\."((?:[^"]|"")+)"')
_GENERATION: Final = re.compile(r"(.+)__g(\d+)(?:__s\d+)?", re.DOTALL)
_SCRIPT: Final = re.compile(r".+__g\d+__s\d+", re.DOTALL)
_OLD: Final = re.compile(r"(.+)__old\d+", re.DOTALL)

#: Bytes that stand behind the stage's name: `__g1234567__s12345`.
_ROOM: Final = 18


@lru_cache(maxsize=64)
def _schemas(names: Names, stages: frozenset[str]) -> Mapping[str, str]:
    return {f"{names.prefix}{stage}{names.suffix}".casefold(): stage for stage in stages}


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A table or view in a schema. As SQL it is also the table's location in the catalog."""

    schema: str
    table: str

    @property
    def sql(self) -> str:
        """Both names, quoted."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.table)}"


def is_of_script(schema: str) -> bool:
    """Return whether a schema is that of one script within a generation."""
    return _SCRIPT.fullmatch(schema) is not None


@final
@dataclass(frozen=True, slots=True)
class Names:
    """How an instance names its schemas.

    Attributes:
        prefix, suffix: Stand around the name of each stage.
        max_bytes: Longest name that the database keeps.
        system: Which schemas are the database's own, without regard to case.
    """

    prefix: str
    suffix: str
    max_bytes: int
    system: str = r"(?!)"

    def readable(self, stage: str) -> str:
        """Return the schema in which readers find the stage.

        Raises:
            FlowError: The database would cut the name, or that of a generation, off, or has a schema of its own that is called so.
        """
        schema = f"{self.prefix}{stage}{self.suffix}"
        if re.fullmatch(self.system, schema, re.IGNORECASE):
            raise FlowError(
                f"Stage {stage!r} cannot be kept in this store: the name of its schema, {schema!r}, is one of those that the database has for itself. "
                "Rename the stage, or set a schema_prefix.",
                stage=stage,
            )
        size = len(schema.encode()) + _ROOM
        if size > self.max_bytes:
            raise FlowError(
                f"The name of stage {stage!r} is too long for this store: schema {schema!r}, with the number of a generation behind it, needs {size} bytes "
                f"of {self.max_bytes}. Shorten the stage's name by {size - self.max_bytes} bytes, or the schema_prefix.",
                stage=stage,
            )
        return schema

    def schemas(self, stages: frozenset[str]) -> Mapping[str, str]:
        """Return in which schema, casefolded, readers find each of some stages."""
        return _schemas(self, stages)

    def generation(self, stage: str, number: int) -> str:
        """Return the schema that holds what was written for a generation."""
        return f"{self.readable(stage)}__g{number}"

    def next(self, stage: str) -> str:
        """Return the schema in which a commit builds what readers will see."""
        return f"{self.readable(stage)}__next"

    def old(self, stage: str, number: int) -> str:
        """Return a schema for what readers saw before a commit."""
        return f"{self.readable(stage)}__old{number}"

    def stage_of(self, schema: str) -> tuple[str, int] | None:
        """Return stage and generation of a schema that holds tables; None for any other schema."""
        found = _GENERATION.fullmatch(schema)
        stage = None if found is None else self._stage(found[1])
        return None if found is None or stage is None else (stage, int(found[2]))

    def is_old(self, schema: str) -> bool:
        """Return whether a schema holds what readers saw before a commit."""
        found = _OLD.fullmatch(schema)
        return found is not None and self._stage(found[1]) is not None

    def is_old_of(self, stage: str, schema: str) -> bool:
        """Return whether a schema holds what readers saw of this stage before a commit."""
        found = _OLD.fullmatch(schema)
        return found is not None and found[1] == f"{self.prefix}{stage}{self.suffix}"

    def place(self, location: str) -> Place:
        """Return the place that the catalog names.

        Raises:
            StoreError: It is not one that this store gives.
        """
        found = _LOCATION.fullmatch(location)
        place = None if found is None else Place(found[1].replace('""', '"'), found[2].replace('""', '"'))
        if place is None or self.stage_of(place.schema) is None:
            raise StoreError(
                f"The catalog names {location!r} as the place of a table, which is no place of the store with schema_prefix {self.prefix!r}. "
                "Nothing was touched. The catalog is damaged or belongs to another store: check `metadata_store` and `schema_prefix`.",
                location=location,
            )
        return place

    def attempts(self, schema: str, name: str) -> Iterator[Place]:
        """Yield the places that a table may take, best first."""
        yield Place(schema, name)
        for number in range(2, 10_000):
            ending = f"__a{number}"
            if len(name.encode()) + len(ending) <= self.max_bytes:
                yield Place(schema, name + ending)
            else:
                digest = hashlib.sha256(name.encode()).hexdigest()[:12]
                kept = name.encode()[: self.max_bytes - len(ending) - 13].decode(errors="ignore")
                yield Place(schema, f"{kept}_{digest}{ending}")

    def _stage(self, readable: str) -> str | None:
        if not (
            readable.startswith(self.prefix) and readable.endswith(self.suffix) and len(readable) > len(self.prefix) + len(self.suffix)
        ):
            return None
        return readable[len(self.prefix) : len(readable) - len(self.suffix)]
