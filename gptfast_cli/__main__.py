"""Lets `python -m gptfast_cli` do what `gptfast` does."""

from gptfast_cli.app import main

if __name__ == "__main__":
    main()
