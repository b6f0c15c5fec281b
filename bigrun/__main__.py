"""`python -m bigrun` is the command `bigrun`."""

from bigrun.cli.app import main

if __name__ == "__main__":
    main(prog_name="bigrun")
