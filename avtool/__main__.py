"""Entry point: takes over the interrupt signals, then hands over to the command line."""

import os
import sys

from avtool import interrupts


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    interrupts.install()
    _reserve_standard_streams()
    # Threads of torch that wait for each other sleep instead of spinning: a quarter less processor time for networks
    # this small, and four times faster where other programs keep the cores busy. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from avtool import allocator

    allocator.keep_memory()
    if not sys.warnoptions:  # deprecations inside libraries are no news to users
        import warnings

        warnings.simplefilter("ignore")
    from avtool.cli.app import run
    from avtool.files import clean_temporaries

    interrupts.on_interrupt(clean_temporaries)
    interrupts.leave(run())


def _reserve_standard_streams() -> None:
    """Fills streams that the caller closed, so that no result file gets their number; writing to them still fails."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)


if __name__ == "__main__":
    main()
