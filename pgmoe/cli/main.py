"""The `pgmoe` command. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import os
import sys

import typer

from pgmoe import openmp
from pgmoe.cli.answers import answers
from pgmoe.cli.bench import app as bench
from pgmoe.cli.default_model import default_model
from pgmoe.cli.finetune import finetune
from pgmoe.cli.generate import generate
from pgmoe.cli.info import info
from pgmoe.cli.pack import pack
from pgmoe.cli.plan import plan
from pgmoe.cli.pregate import pregate
from pgmoe.cli.selftest import selftest
from pgmoe.cli.simulate import simulate
from pgmoe.cli.trace import trace
from pgmoe.cli.upcycle import upcycle
from pgmoe.errors import PgmoeError

app = typer.Typer(
    name="pgmoe",
    help="Serve Mixture-of-Experts models that do not fit on their device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(info)
app.command()(pack)
app.command()(plan)
app.command()(selftest)
app.command()(trace)
app.command()(answers)
app.command()(simulate)
app.command()(upcycle)
app.command()(pregate)
app.command()(finetune)
app.command()(default_model)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line; pgmoe's own errors end it with a message and status 2."""
    # To be set before torch and tqdm are imported; transformers' bars would mix with ours.
    for name, value in {**openmp.ENVIRONMENT, "TQDM_DISABLE": "1"}.items():
        os.environ.setdefault(name, value)
    try:
        app()
    except PgmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
