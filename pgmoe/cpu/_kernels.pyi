"""See `_kernels.c`."""

VERSION: int
SIDE: int
SLAB: int
BLOCK: int
MOST_CHOICES: int
MOST_EXPERTS: int
MOST_WIDTH: int

def supported() -> bool: ...
def multiply(
    x: int, w: int, bias: int, y: int, scratch: int, tokens: int, k: int, n: int, threads: int, /
) -> None: ...
def apply_experts(
    experts: list[tuple[int, int, int]],
    ids: int,
    x: int,
    y: int,
    scratch: int,
    elements: int,
    n: int,
    k: int,
    d: int,
    i: int,
    threads: int,
    /,
) -> None: ...
def add_up(
    ids: int, weights: int, y: int, out: int, n: int, k: int, d: int, num_experts: int, threads: int, /
) -> None: ...
def attend(
    queries: int,
    token_stride: int,
    head_stride: int,
    keys: int,
    values: int,
    sinks: int,
    out: int,
    blocks: int,
    spans: int,
    tiles: int,
    count: int,
    scale: float,
    heads: int,
    groups: int,
    width: int,
    value_width: int,
    block_tokens: int,
    threads: int,
    /,
) -> None: ...
def normalise(
    x: int,
    added: int,
    sum: int,
    w: int,
    y: int,
    tokens: int,
    width: int,
    epsilon: float,
    threads: int,
    /,
) -> None: ...
def add(x: int, added: int, sum: int, tokens: int, width: int, threads: int, /) -> None: ...
def count(ids: int, choices: int, num_experts: int, /) -> dict[int, int]: ...
def project(
    x: int,
    cosines: int,
    sines: int,
    scratch: int,
    tokens: int,
    k: int,
    width: int,
    threads: int,
    parts: tuple[tuple[int, int, int, int, int, int, int, float, bool], ...],
    /,
) -> None: ...
def route(
    x: int,
    w: int,
    bias: int,
    logits: int,
    scratch: int,
    tokens: int,
    k: int,
    n: int,
    weights: int,
    ids: int,
    choices: int,
    normalises: bool,
    threads: int,
    /,
) -> None: ...
