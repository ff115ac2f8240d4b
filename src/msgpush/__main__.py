"""`python -m msgpush` is the `msgpush` command."""

from msgpush.entrypoints.cli import main

if __name__ == "__main__":
    main()
