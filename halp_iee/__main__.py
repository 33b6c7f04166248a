"""`python -m halp_iee` is the command line."""

from halp_iee.cli.main import main

if __name__ == "__main__":
    main()
