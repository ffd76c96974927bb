"""Every error that pipedag raises, by what the user has to do about it.

    PipedagError
    |-- ConfigError             mend the configuration or the command line
    |-- FlowError               mend the declaration of the flow
    |   |-- DuplicateName           two things want one name
    |   |-- UnknownItem             a reference points to an item that a task does not return
    |   |-- UnsupportedValue        a value that cannot be kept or passed on
    |   |-- WrongType               something of a wrong type was given (a TypeError, too)
    |   `-- PlanMismatch            a plan was made from another wiring than the flow has now
    |-- CacheError              look at versions and cache functions
    |   |-- FreshInput              ASSERT_NO_FRESH_INPUT met a task that would have to run
    |   `-- TracingRefused          AUTO_VERSION cannot see all that the task does
    |-- LeaseError              another run is at work
    |   |-- LeaseHeld               a stage is being written by another run
    |   `-- LeaseLost               this run no longer owns the stage it writes
    |-- MaterializationError    mend what the task returns, or its query
    |   `-- QueryFailed             the store refused a query
    |-- StoreError              look at the place where tables and blobs are kept
    |   |-- StoredDataMissing       a stored table or blob is gone, cut short or damaged
    |   |-- OtherVersionMissing     a table is not in another version of its stage (given to a task, not raised)
    |   `-- UnsupportedByStore      this store cannot do what was asked
    |-- CatalogError            look at the catalog database
    |-- ProductionError         a production flow cannot be made, loaded or run
    |   |-- ExtractionRefused       mend the InOutSpecification, or run the flow first
    |   |-- InputMismatch           supply inputs like those in training
    |   |-- VerificationFailed      production and training do not give the same
    |   `-- BundleRefused           a bundle is damaged, foreign, or from a newer version
    |-- ObserverFailed          look at the program that was to be told about a run
    `-- RunError                a run or a step could not be carried out

The user's own exception is never replaced: it passes through with a note that says where it happened.
"""

from __future__ import annotations

from typing import Any


def _restore(cls: type[PipedagError], args: tuple[object, ...], facts: dict[str, Any]) -> PipedagError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(facts)
    return error


class PipedagError(Exception):
    """Base of all errors of this package.

    Args:
        message: What happened, where, and what to do next.
        facts: The same facts for programs (`stage="features"`), readable as attributes of the error.
    """

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by their constructor's arguments, which a subclass may have changed;
        # engines that use processes have to hand errors over whole.
        return _restore, (type(self), self.args, self.__dict__)


class ConfigError(PipedagError):
    """The configuration, or the command line, asks for something that is not there."""


class FlowError(PipedagError):
    """The flow is declared in a way that cannot be carried out."""


class DuplicateName(FlowError):
    """Two things want one name, where names are unique (case-insensitively)."""

    @classmethod
    def of_tasks(cls, stage: str, name: str, first: str, second: str) -> DuplicateName:
        """Return the error of two tasks of one stage that want one name for what they return."""
        return cls(
            f"Tasks {first!r} and {second!r} of stage {stage!r} both want the name {name!r} for what they return. "
            "Give one of them another name; a name that ends in %% is made unique.",
            stage=stage,
            name=name,
            tasks=(first, second),
        )


class UnknownItem(FlowError):
    """A reference points to an item or attribute that the task does not return."""


class UnsupportedValue(FlowError):
    """A value, inside an argument or a return value, that cannot be kept or passed on."""


class WrongType(FlowError, TypeError):
    """An option was given something of a wrong type or shape."""


class PlanMismatch(FlowError):
    """The plan was made from another wiring than the flow has now."""


class CacheError(PipedagError):
    """Whether a stored result may stand in could not be decided as asked."""


class FreshInput(CacheError):
    """`ASSERT_NO_FRESH_INPUT` met a task that would have to run on fresh input."""


class TracingRefused(CacheError):
    """`AUTO_VERSION` cannot see everything that the task does, so it cannot make a version of it."""


class LeaseError(PipedagError):
    """The right to write a stage is not with this run."""


class LeaseHeld(LeaseError):
    """Another run writes the stage at present."""


class LeaseLost(LeaseError):
    """This run's right to write the stage has passed to another run, or has ended."""


class MaterializationError(PipedagError):
    """What a task returned could not be written."""


class QueryFailed(MaterializationError):
    """The store refused a query; the message holds the query."""


class StoreError(PipedagError):
    """A table store or blob store could not do its work."""


class StoredDataMissing(StoreError):
    """A stored table or blob is gone, cut short, or not what the catalog says it is."""


class OtherVersionMissing(StoreError):
    """A table that a task compares is not in the other version of its stage; given to the task in the table's place."""


class UnsupportedByStore(StoreError):
    """This store cannot do what was asked."""


class CatalogError(PipedagError):
    """The catalog cannot be read or written."""


class ProductionError(PipedagError):
    """A production flow cannot be made, loaded or run."""


class ExtractionRefused(ProductionError):
    """The production flow cannot be carved out as specified; `problems` holds all that is in the way."""


class InputMismatch(ProductionError):
    """What was supplied is not like the input that the flow was trained on; `problems` holds all differences."""


class VerificationFailed(ProductionError):
    """The production flow does not give what training has committed; `problems` holds where it differs."""


class BundleRefused(ProductionError):
    """A bundle is damaged, incomplete, foreign, from a newer version, or needs trust that it was not given."""


class BundleWarning(UserWarning):
    """A bundle is loaded with other versions of Python, packages or code than it was made with."""


class ObserverFailed(PipedagError):
    """An observer that a run must not do without could not take note of it."""


class RunError(PipedagError):
    """A run or a step could not be carried out."""
