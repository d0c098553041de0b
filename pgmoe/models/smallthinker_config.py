"""SmallThinker's config.json: its names, and what transformers' parts call the same."""

# Without annotations from __future__: `strict` checks no type that it is given as text.

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from pgmoe.errors import UnsupportedModel


@strict
class SmallThinkerConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The published names; a layout has a 1 or 0 for each layer. Defaults are those of the 4B model.

    Raises StrictDataclassError for values of a wrong type and layouts of a wrong length.
    """

    model_type = "smallthinker"
    default_theta = 1e6
    attribute_map = {  # noqa: RUF012 -- transformers' own annotation
        "no_rope_layers": "rope_layout",
        "sliding_window": "sliding_window_size",
        "num_experts": "moe_num_primary_experts",
        "num_local_experts": "moe_num_primary_experts",
        "num_experts_per_tok": "moe_num_active_primary_experts",
        "moe_intermediate_size": "moe_ffn_hidden_size",
    }
    use_sliding_window = True  # in the layers that `sliding_window_layout` names

    vocab_size: int = 151936
    hidden_size: int = 1536
    num_hidden_layers: int = 32
    num_attention_heads: int = 12
    num_key_value_heads: int = 2
    head_dim: int = 128
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    max_position_embeddings: int = 32768
    rope_parameters: RopeParameters | dict[str, Any] | None = None
    rope_layout: list[int] | None = None
    """Layers with rotary positions; all where None."""
    sliding_window_layout: list[int] | None = None
    """Layers that see no further back than `sliding_window_size`; none where None."""
    sliding_window_size: int | None = 4096
    layer_types: list[str] | None = None
    """What transformers calls `sliding_window_layout`; made of it."""
    moe_num_primary_experts: int = 32
    moe_num_active_primary_experts: int = 4
    moe_ffn_hidden_size: int = 768
    moe_primary_router_apply_softmax: bool = False
    """Weights are the softmax over a token's chosen logits; else their sigmoids, made to sum to one."""
    hidden_act: str = "relu"
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.rope_layout is None:
            self.rope_layout = [1] * self.num_hidden_layers
        if self.sliding_window_layout is None:
            self.sliding_window_layout = [0] * self.num_hidden_layers
        self.layer_types = [
            "sliding_attention" if slides else "full_attention" for slides in self.sliding_window_layout
        ]
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def validate_layouts(self) -> None:
        """Raise ValueError for layouts that are not of this many layers."""
        for name in ("rope_layout", "sliding_window_layout"):
            length = len(getattr(self, name))
            if length != self.num_hidden_layers:
                raise ValueError(f"{name} is of {length} layers, num_hidden_layers {self.num_hidden_layers}")
        if any(self.sliding_window_layout or ()) and not self.sliding_window_size:
            raise ValueError("sliding_window_layout names layers, and sliding_window_size is missing")


_UNSERVED: dict[str, tuple[object, str]] = {
    "moe_enable_early_router": (True, "routers that read the input of their experts, not of their layer"),
    "moe_enable_secondary_experts": (False, "experts split into parts with a router of their own"),
    "moe_shared_primary_experts": (0, "experts that all tokens use"),
    "use_qk_norm": (False, "normalised queries and keys"),
    "hidden_act": ("relu", "experts gated by anything but ReLU"),
}
"""Options that the family's code knows and no published model uses: the value that is served, and what
another one means."""


def check_served(config: SmallThinkerConfig) -> None:
    """Raise UnsupportedModel for what no published model is.

    `norm_topk_prob` counts neither here nor in the published code: weights always sum to one.
    """
    for option, (served, meaning) in _UNSERVED.items():
        value = getattr(config, option, served)
        if value not in (served, None):
            raise UnsupportedModel(f"SmallThinker with {option} {value!r}, {meaning}, is not served")
    if not all(getattr(config, "moe_layer_layout", None) or ()):
        raise UnsupportedModel("SmallThinker with moe_layer_layout 0, layers without experts, is not served")
