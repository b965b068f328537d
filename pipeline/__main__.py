"""``python -m fairlung.pipeline`` is the console program ``fairlung``."""

from .cli.app import main

if __name__ == "__main__":
    main()
