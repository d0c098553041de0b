"""See `_kernels.c`."""

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
