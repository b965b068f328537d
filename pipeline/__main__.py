"""``python -m fairlung.pipeline`` is the console program ``fairlung``."""

from .cli.app import app

if __name__ == "__main__":
    app(prog_name="fairlung")
