"""The catalogue's YAML entries, checked and turned into plain data."""

from dataclasses import dataclass, field

import pydantic

from wattkeeper.physics import profile
from wattkeeper.physics.architecture import Cache, CacheGroup, ModelSpec, Precision, precision_in_name

TERMS = ("d0", "dt", "dn", "dkv", "da")
MODEL_SOURCES = {
    "config": "published config.json, read in a public copy of it",
    "recalled": "general knowledge of the published config.json, not read again",
}


@dataclass(frozen=True, kw_only=True)
class FittedPair:
    """Coefficients fitted to measurements of a model architecture on an accelerator; None: not fitted."""

    models: tuple[str, ...]
    accelerator: str
    tensor_parallel: int
    """GPUs that work on one step together (with expert parallelism for the mixtures of ML.ENERGY)."""
    d0_ms: float
    dn_ms: float
    dkv_ms: float
    dt_ms: float
    da_ms: float
    prefill_clock_ceiling: float
    static_watts: float | None = None
    idle_watts: float | None = None
    e0_joules: float | None = None
    en_joules: float | None = None
    ekv_joules: float | None = None
    et_joules: float | None = None
    relative_error: float
    """One-sigma, of step time."""
    source: str
    estimated: tuple[str, ...] = ()
    """Those of `TERMS` whose value is carried over from elsewhere or from the roofline instead of fitted."""
    term_errors: dict[str, float] = field(default_factory=dict)
    """Relative standard error of fitted terms, where the fit gave one."""
    end_to_end: bool = False
    """Fitted to whole steps of an engine: estimates of similar pairs may lean on it."""


class GpuEntry(pydantic.BaseModel):
    """One accelerator."""

    model_config = pydantic.ConfigDict(extra="forbid")

    name: str
    aliases: tuple[str, ...]
    memory_gb: pydantic.PositiveFloat
    bandwidth_gb_per_second: pydantic.PositiveFloat
    bf16_tflops: pydantic.PositiveFloat
    fp8_tflops: pydantic.PositiveFloat | None = None
    fp4_tflops: pydantic.PositiveFloat | None = None
    link_gb_per_second: pydantic.PositiveFloat
    tdp_watts: pydantic.PositiveFloat
    min_cap_watts: pydantic.PositiveFloat
    max_clock_mhz: pydantic.PositiveFloat
    min_clock_mhz: pydantic.PositiveFloat
    idle_watts: pydantic.PositiveFloat
    measured: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    source: str

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "GpuEntry":
        if not (self.idle_watts < self.tdp_watts and self.min_cap_watts < self.tdp_watts):
            raise ValueError(f"{self.name}: idle and smallest cap must lie below the TDP")
        if self.min_clock_mhz >= self.max_clock_mhz:
            raise ValueError(f"{self.name}: the smallest clock must lie below the largest")
        unknown = {*self.measured, *self.assumed} - set(GpuEntry.model_fields)
        if unknown:
            raise ValueError(f"{self.name}: {', '.join(sorted(unknown))} is no figure of a GPU")
        return self

    def spec(self) -> profile.GpuSpec:
        """In SI units."""
        return profile.GpuSpec(
            name=self.name,
            aliases=self.aliases,
            memory_bytes=self.memory_gb * 1e9,
            bandwidth_bytes_per_second=self.bandwidth_gb_per_second * 1e9,
            bf16_flops=self.bf16_tflops * 1e12,
            fp8_flops=None if self.fp8_tflops is None else self.fp8_tflops * 1e12,
            fp4_flops=None if self.fp4_tflops is None else self.fp4_tflops * 1e12,
            link_bytes_per_second=self.link_gb_per_second * 1e9,
            tdp_watts=self.tdp_watts,
            min_cap_watts=self.min_cap_watts,
            max_clock_mhz=self.max_clock_mhz,
            min_clock_mhz=self.min_clock_mhz,
            idle_watts=self.idle_watts,
            measured=self.measured,
            assumed=self.assumed,
            source=self.source,
        )


class _Mamba(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    heads: pydantic.PositiveInt
    head_dim: pydantic.PositiveInt
    state: pydantic.PositiveInt
    groups: pydantic.PositiveInt
    conv: pydantic.PositiveInt

    @property
    def values(self) -> int:
        """Convolution window and state of one sequence (Mamba-2)."""
        inner = self.heads * self.head_dim
        return (inner + 2 * self.groups * self.state) * (self.conv - 1) + inner * self.state


class _Linear(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    key_heads: pydantic.PositiveInt
    key_dim: pydantic.PositiveInt
    value_heads: pydantic.PositiveInt
    value_dim: pydantic.PositiveInt
    conv: pydantic.PositiveInt

    @property
    def values(self) -> int:
        """Convolution window and state of one sequence (gated delta net)."""
        width = 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
        return width * (self.conv - 1) + self.value_heads * self.key_dim * self.value_dim


class _Group(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    cache: Cache
    layers: pydantic.PositiveInt
    kv_heads: pydantic.PositiveInt | None = None
    key_dim: pydantic.PositiveInt | None = None
    value_dim: pydantic.PositiveInt | None = None
    window: pydantic.NonNegativeInt = 0
    latent_dim: pydantic.NonNegativeInt = 0
    indexer_bytes: pydantic.NonNegativeInt = 0
    mamba: _Mamba | None = None
    linear: _Linear | None = None

    @pydantic.model_validator(mode="after")
    def _complete(self) -> "_Group":
        needs = {
            "window": (self.cache in (Cache.SLIDING, Cache.CHUNKED), bool(self.window)),
            "latent_dim": (self.cache is Cache.LATENT, bool(self.latent_dim)),
            "mamba or linear": (self.cache is Cache.STATE, bool(self.mamba) != bool(self.linear)),
        }
        for name, (needed, given) in needs.items():
            if needed != given:
                raise ValueError(f"a group of {self.cache.value} layers {'needs' if needed else 'has no'} {name}")
        return self

    def group(self, kv_heads: int, head_dim: int) -> CacheGroup:
        state = self.mamba or self.linear
        keeps_keys = self.cache in (Cache.FULL, Cache.SLIDING, Cache.CHUNKED)
        return CacheGroup(
            cache=self.cache,
            layers=self.layers,
            kv_heads=(self.kv_heads or kv_heads) if keeps_keys else 0,
            key_dim=(self.key_dim or head_dim) if keeps_keys else 0,
            value_dim=(self.value_dim or head_dim) if keeps_keys else 0,
            window=self.window,
            latent_dim=self.latent_dim,
            indexer_bytes=self.indexer_bytes,
            state_values=state.values if state else 0,
        )


class ModelEntry(pydantic.BaseModel):
    """One model and its variants in other weight precisions."""

    model_config = pydantic.ConfigDict(extra="forbid")

    name: str
    aliases: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    precision: Precision = Precision.BF16
    experts_only_quantised: bool = False
    layers: pydantic.PositiveInt
    groups: tuple[_Group, ...] = ()
    hidden: pydantic.PositiveInt
    heads: pydantic.PositiveInt
    kv_heads: pydantic.PositiveInt
    head_dim: pydantic.PositiveInt
    intermediate: pydantic.NonNegativeInt = 0
    gated: bool = True
    dense_layers: pydantic.NonNegativeInt = 0
    feed_forward_layers: pydantic.PositiveInt | None = None
    vocab: pydantic.PositiveInt
    tied_embeddings: bool = False
    parameters: pydantic.PositiveFloat
    activated_parameters: pydantic.PositiveFloat | None = None
    experts: pydantic.NonNegativeInt = 0
    experts_per_token: pydantic.NonNegativeInt = 0
    expert_intermediate: pydantic.NonNegativeInt = 0
    shared_intermediate: pydantic.NonNegativeInt = 0
    max_model_len: pydantic.PositiveInt
    source: str

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "ModelEntry":
        if self.activated_parameters is not None and self.activated_parameters > self.parameters:
            raise ValueError(f"{self.name}: a part of the parameters exceeds the whole")
        if len({bool(self.experts), bool(self.experts_per_token), bool(self.expert_intermediate)}) > 1:
            raise ValueError(f"{self.name}: experts, experts_per_token and expert_intermediate go together")
        if not self.experts and not self.intermediate:
            raise ValueError(f"{self.name}: a dense model needs intermediate")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.name}: heads must be a multiple of kv_heads")
        if sum(group.layers for group in self.groups) > self.layers:
            raise ValueError(f"{self.name}: groups have more layers than the model")
        if self.source not in MODEL_SOURCES:
            raise ValueError(f"{self.name}: source must be one of {', '.join(MODEL_SOURCES)}")
        for name in self.variants:
            if precision_in_name(name)[1] is None:
                raise ValueError(f"{self.name}: the name of variant {name} tells no weight precision")
        return self

    def specs(self) -> list[ModelSpec]:
        """The model and its variants."""
        groups = self.groups or (_Group(cache=Cache.FULL, layers=self.layers),)
        blocks = self.feed_forward_layers or self.layers
        expert_layers = max(blocks - self.dense_layers, 0) if self.experts else 0
        expert = (3 if self.gated else 2) * self.hidden * self.expert_intermediate
        base = ModelSpec(
            name=self.name,
            aliases=self.aliases,
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab=self.vocab,
            parameters=self.parameters * 1e9,
            activated_parameters=(self.activated_parameters or self.parameters) * 1e9,
            max_model_len=self.max_model_len,
            source=MODEL_SOURCES[self.source],
            groups=tuple(group.group(self.kv_heads, self.head_dim) for group in groups),
            precision=self.precision,
            experts_only_quantised=self.experts_only_quantised,
            intermediate=self.intermediate,
            gated=self.gated,
            dense_layers=self.dense_layers,
            feed_forward_layers=blocks,
            experts=self.experts,
            experts_per_token=self.experts_per_token,
            expert_intermediate=self.expert_intermediate,
            shared_intermediate=self.shared_intermediate,
            expert_parameters=float(expert_layers * self.experts * expert),
            tied_embeddings=self.tied_embeddings,
        )
        variants = [(name, precision_in_name(name)[1]) for name in self.variants]
        return [base, *(base.quantised(name, precision) for name, precision in variants if precision is not None)]
