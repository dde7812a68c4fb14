"""The errors avtool raises on purpose, each with the exit code of the command line.

AvtoolError                 1   a bug if it ever surfaces bare
├── UsageError              2   wrong option, name or combination
├── InputError              3   the file cannot be read as media
│   └── PartialInputError   3   only a part of it can be decoded
├── WeightsError            4   weights missing, damaged or refused
├── DeviceError             5   device or memory
├── OutputError             6   a result cannot be written
├── BatchFailures           7   a batch ended with failed files
└── Interrupted           130   Ctrl-C or SIGTERM
"""


class AvtoolError(Exception):
    """One line what happened, one line why, one line what to try.

    Attributes:
        what: the failure, with the file or option it is about.
        why: the cause as far as it is known, or "".
        hint: what to try next, or "".
        exit_code: exit status of the command line.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.what, self.why, self.hint)


class UsageError(AvtoolError):
    """A wrong option, name or combination of them."""

    exit_code = 2


class InputError(AvtoolError):
    """The file is missing, not a regular file, or not readable as media."""

    exit_code = 3


class PartialInputError(InputError):
    """The file is media, but too much of it cannot be decoded."""


class WeightsError(AvtoolError):
    """Weights are missing, damaged, or refused because their hash is unknown."""

    exit_code = 4


class DeviceError(AvtoolError):
    """The device is not available or out of memory at the smallest batch."""

    exit_code = 5


class OutputError(AvtoolError):
    """A result cannot be written."""

    exit_code = 6


class BatchFailures(AvtoolError):
    """A batch finished, but some files failed."""

    exit_code = 7


class Interrupted(AvtoolError):
    """The user or the system asked to stop."""

    exit_code = 130
