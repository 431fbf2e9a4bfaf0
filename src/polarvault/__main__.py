"""`python -m polarvault`."""

from polarvault.cli.main import main

if __name__ == "__main__":
    main()
