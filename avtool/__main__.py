"""Entry point: takes over the interrupt signals, then hands over to the command line."""

from avtool import interrupts


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    interrupts.install()
    from avtool.cli.app import run

    interrupts.leave(run())


if __name__ == "__main__":
    main()
