"""``python -m sctool``."""

from sctool.cli.main import main

if __name__ == "__main__":
    main()
