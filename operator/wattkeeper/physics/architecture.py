"""Architecture of a model as far as time and memory depend on it, and what quantisation leaves of its bytes."""

import enum
import re
from dataclasses import dataclass, replace


class Cache(enum.Enum):
    """What a layer keeps of a sequence."""

    FULL = "full"
    """Keys and values of every token, per KV head (MHA, GQA, MQA)."""
    LATENT = "latent"
    """One compressed vector per token (MLA), the same on every tensor parallel rank."""
    SLIDING = "sliding"
    """Keys and values of the last `window` tokens."""
    CHUNKED = "chunked"
    """Keys and values since the last multiple of `window` tokens (Llama 4)."""
    STATE = "state"
    """A state of constant size per sequence (Mamba, linear attention)."""
    SHARED = "shared"
    """Nothing of its own: reads the cache of an earlier layer."""


@dataclass(frozen=True, kw_only=True)
class CacheGroup:
    """Layers of one kind. Sizes are of one layer and the whole model, before it is divided among GPUs."""

    cache: Cache
    layers: int
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int = 0
    """Tokens, of SLIDING and CHUNKED."""
    latent_dim: int = 0
    """Latent plus rope dimension, of LATENT."""
    indexer_bytes: int = 0
    """Per token, of a sparse-attention indexer beside the latent; not changed by the KV dtype."""
    state_values: int = 0
    """Values per sequence that change with every token, of STATE."""

    @property
    def grows(self) -> bool:
        """True where memory grows with the context without an end."""
        return self.cache in (Cache.FULL, Cache.LATENT)


class Precision(enum.Enum):
    """Of the weights of linear layers (of routed experts alone where `ModelSpec.experts_only_quantised`)."""

    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"
    """Weights only (AWQ, GPTQ): 4 bits with a 16-bit scale and a 4-bit zero per 128 values; computes in bf16."""
    NVFP4 = "nvfp4"
    """4 bits with an 8-bit scale per 16 values; computes in 4 bits where the card can."""
    MXFP4 = "mxfp4"
    """4 bits with an 8-bit scale per 32 values."""

    @property
    def bytes(self) -> float:
        """Bytes per quantised parameter, scales included."""
        return _BYTES[self]


_BYTES = {
    Precision.BF16: 2.0,
    Precision.FP8: 1.0,
    Precision.INT8: 1.0,
    Precision.INT4: 0.52,
    Precision.NVFP4: 0.5625,
    Precision.MXFP4: 0.53125,
}

_PRECISION_IN_NAME = (
    (Precision.NVFP4, re.compile(r"[-_]nv-?fp4(?:a16)?(?=$|[-_])", re.IGNORECASE)),
    (Precision.MXFP4, re.compile(r"[-_]mxfp4(?=$|[-_])", re.IGNORECASE)),
    (Precision.INT8, re.compile(r"[-_](?:gptq-int8|int8|w8a8|quantized\.w8a8)(?=$|[-_])", re.IGNORECASE)),
    (
        Precision.INT4,
        re.compile(
            r"[-_](?:gptq-int4|gptq|awq(?:-int4)?|int4|w4a16(?:_g\d+)?|quantized\.w4a16)(?=$|[-_])", re.IGNORECASE
        ),
    ),
    (Precision.FP8, re.compile(r"[-_]fp8(?:[-_](?:dynamic|block|static|per-?tensor|kv))*(?=$|[-_])", re.IGNORECASE)),
)


def precision_in_name(name: str) -> tuple[str, Precision | None]:
    """(the name without the word for a weight precision, that precision); (name, None) where there is no such word."""
    for precision, pattern in _PRECISION_IN_NAME:
        if pattern.search(name):
            return pattern.sub("", name), precision
    return name, None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Architecture of one model."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    parameters: float
    activated_parameters: float
    """Parameters that one token uses; equal to `parameters` for a dense model."""
    max_model_len: int | None
    source: str
    groups: tuple[CacheGroup, ...]
    """Layers by what they keep; layers without attention or state are in none."""
    aliases: tuple[str, ...] = ()
    precision: Precision = Precision.BF16
    experts_only_quantised: bool = False
    intermediate: int = 0
    """Width of a dense feed-forward block; 0: there is none, or it is not known."""
    gated: bool = True
    """The feed-forward block has a gate beside its up projection."""
    dense_layers: int = 0
    """Layers with a dense feed-forward block in a mixture of experts."""
    feed_forward_layers: int = 0
    """Layers with any feed-forward block (all, but for hybrids that interleave them)."""
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    """Width of all shared experts together."""
    expert_parameters: float = 0.0
    """Parameters inside all routed experts."""
    tied_embeddings: bool = False

    @property
    def state_layers(self) -> int:
        """Layers with a state instead of attention."""
        return sum(group.layers for group in self.groups if group.cache is Cache.STATE)

    @property
    def latent(self) -> bool:
        """True for MLA."""
        return any(group.cache is Cache.LATENT for group in self.groups)

    @property
    def expert_layers(self) -> int:
        """Layers with routed experts."""
        return max(self.feed_forward_layers - self.dense_layers, 0) if self.experts else 0

    @property
    def expert_bytes(self) -> float:
        """Bytes of all routed experts."""
        return self.expert_parameters * self.precision.bytes

    @property
    def embedding_bytes(self) -> float:
        """Bytes of the input embedding, which is not quantised: a look-up reads a few rows of it."""
        return min(2.0 * self.vocab * self.hidden, 0.5 * self.weight_bytes)

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights; embedding and output head stay in bf16."""
        plain = min(self.vocab * self.hidden * (1.0 if self.tied_embeddings else 2.0), self.parameters)
        if self.experts_only_quantised:
            plain = self.parameters - self.expert_parameters
        return 2.0 * plain + self.precision.bytes * (self.parameters - plain)

    def same_work(self, other: "ModelSpec") -> bool:
        """True where a step takes the same time: variants of one architecture in one precision."""
        facts = ("layers", "hidden", "heads", "groups", "precision", "experts", "intermediate", "parameters")
        return all(getattr(self, name) == getattr(other, name) for name in facts)

    def quantised(self, name: str, precision: Precision) -> "ModelSpec":
        """The same architecture under another name and weight precision."""
        return replace(self, name=name, aliases=(), precision=precision)
