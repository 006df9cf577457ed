"""`segcore`, and `python -m segcore`."""

from segcore.commands.main import main

if __name__ == "__main__":
    main()
