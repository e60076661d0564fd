"""`python -m cwt` and the command `cwt`."""

import sys


def main() -> None:
    """Runs the command line, or says which package it lacks."""
    try:
        from cwt.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cwt"):
            raise
        print(
            f"cwt: the application needs the package {error.name}: pip install 'cwt-ext[app]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
