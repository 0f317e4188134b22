import importlib.resources

import pytest
import yaml

from wattkeeper.domain.errors import UnknownAcceleratorError, UnknownModelError
from wattkeeper.physics import catalogue
from wattkeeper.physics.architecture import Cache, Precision


@pytest.mark.parametrize(
    "name",
    ["nvidia-h100-sxm", "H100", "NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-80GB-HBM3-SHARED"],
)
def test_one_card_under_all_its_names(name):
    assert catalogue.gpu(name).name == "nvidia-h100-sxm"


def test_every_alias_finds_its_entry():
    for gpu in catalogue.gpus():
        assert all(catalogue.gpu(name) is gpu for name in (gpu.name, *gpu.aliases))
    for model in catalogue.models():
        assert all(catalogue.model(name) is model for name in (model.name, *model.aliases))


def test_catalogue_is_broad_and_sourced():
    assert len(catalogue.gpus()) >= 9
    assert len(catalogue.models()) >= 18
    assert all(gpu.source for gpu in catalogue.gpus())
    assert all(pair.source for pair in catalogue.fitted_pairs())


def test_unknown_names_come_with_close_ones():
    with pytest.raises(UnknownAcceleratorError, match="nvidia-h100"):
        catalogue.gpu("nvidia-h100-smx")
    with pytest.raises(UnknownModelError, match="llama-3-1-8b"):
        catalogue.model("meta-llama/Llama-3.1-8B-Instruc")


def test_organisation_may_be_left_out():
    assert catalogue.model("llama-3.1-8b-instruct").name == "meta-llama/Llama-3.1-8B-Instruct"


def state_parameters(name):
    """Projections of the Mamba-2 or gated delta net layers of a model, from the facts of its entry."""
    text = (importlib.resources.files("wattkeeper.physics") / "data" / "models.yaml").read_text(encoding="utf-8")
    entry = next(each for each in yaml.safe_load(text) if name in (each["name"], *each.get("variants", ())))
    total = 0
    for group in entry.get("groups", ()):
        if mamba := group.get("mamba"):
            inner = mamba["heads"] * mamba["head_dim"]
            width = 3 * inner + 2 * mamba["groups"] * mamba["state"] + mamba["heads"]
        elif linear := group.get("linear"):
            width = 2 * linear["key_heads"] * linear["key_dim"] + 3 * linear["value_heads"] * linear["value_dim"]
        else:
            continue
        total += group["layers"] * entry["hidden"] * width
    return total


@pytest.mark.parametrize("model", catalogue.models(), ids=lambda model: model.name)
def test_published_parameter_count_is_that_of_the_architecture(model):
    """Wrong widths, layers, heads or experts would show here; projections of latents are not counted."""
    matrices = 3 if model.gated else 2
    total = model.vocab * model.hidden * (1 if model.tied_embeddings else 2) + model.expert_parameters
    for group in model.groups:
        keys_and_values = group.kv_heads * (group.key_dim + group.value_dim)
        total += group.layers * model.hidden * (model.heads * (group.key_dim + group.value_dim) + keys_and_values)
    dense = model.dense_layers if model.experts else model.feed_forward_layers
    total += dense * matrices * model.hidden * model.intermediate + state_parameters(model.name)
    total += model.expert_layers * model.hidden * (matrices * model.shared_intermediate + model.experts)
    if model.name == "google/gemma-3n-E4B-it":
        total += model.layers * 256 * 262_144  # embeddings per layer
    slack = 0.04 if model.latent or model.state_layers or "gemma-3n" in model.name else 0.005
    assert total == pytest.approx(model.parameters, rel=slack)
    if model.experts:
        assert model.expert_parameters * model.experts_per_token / model.experts < model.activated_parameters


def test_weights_that_are_published_in_bytes():
    assert catalogue.model("openai/gpt-oss-120b").weight_bytes == pytest.approx(65.2e9, rel=0.01)
    assert catalogue.model("openai/gpt-oss-20b").weight_bytes == pytest.approx(13.8e9, rel=0.01)
    assert catalogue.model("deepseek-ai/DeepSeek-V3").weight_bytes == pytest.approx(671e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "base", "precision"),
    [
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "meta-llama/Llama-3.1-70B-Instruct", Precision.FP8),
        ("Qwen/Qwen2.5-72B-Instruct-AWQ", "Qwen/Qwen2.5-72B-Instruct", Precision.INT4),
        ("Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-32B-Instruct", Precision.INT4),
        ("Qwen/Qwen2.5-32B-Instruct-GPTQ-Int8", "Qwen/Qwen2.5-32B-Instruct", Precision.INT8),
        ("neuralmagic/gemma-2-9b-it-quantized.w4a16", "google/gemma-2-9b-it", Precision.INT4),
        ("someone/Qwen3-8B-NVFP4", "Qwen/Qwen3-8B", Precision.NVFP4),
    ],
)
def test_a_quantised_copy_is_its_base_in_fewer_bytes(name, base, precision):
    found, plain = catalogue.model(name), catalogue.model(base)
    assert (found.name, found.precision, found.groups) == (name, precision, plain.groups)
    assert precision.bytes / 2 * plain.weight_bytes < found.weight_bytes < plain.weight_bytes


def test_a_quantised_copy_of_an_unknown_model_is_unknown():
    with pytest.raises(UnknownModelError):
        catalogue.model("acme/mystery-FP8")


def test_figures_of_cards_say_what_is_measured_and_what_assumed():
    a100, l4 = catalogue.gpu("a100"), catalogue.gpu("l4")
    assert a100.measured == ("idle_watts",)
    assert l4.assumed == ("idle_watts",)
    assert all(gpu.link_bytes_per_second > 1e10 for gpu in catalogue.gpus())


def test_catalogue_covers_kinds_of_cards_layers_and_precisions():
    cards = {"a100", "h100", "h200", "b200", "l40s", "l4", "rtx-pro-6000", "mi300x"}
    assert all(catalogue.gpu(name) for name in cards)
    assert {group.cache for model in catalogue.models() for group in model.groups} == set(Cache)
    precisions = {model.precision for model in catalogue.models()}
    assert precisions >= {Precision.BF16, Precision.FP8, Precision.INT4, Precision.NVFP4, Precision.MXFP4}
