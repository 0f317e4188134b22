import pytest

from wattkeeper.domain.errors import UnknownAcceleratorError, UnknownModelError
from wattkeeper.physics import catalogue


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


@pytest.mark.parametrize("model", catalogue.models(), ids=lambda model: model.name)
def test_parameter_counts_fit_the_architecture(model):
    """Attention and embeddings alone are below the total; experts and the rest are not above it."""
    kv_width = model.kv_latent_dim or 2 * model.kv_heads * model.head_dim
    attention = model.layers * model.hidden * (2 * model.heads * model.head_dim + kv_width)
    assert model.vocab * model.hidden < model.parameters
    assert model.activated_parameters <= model.parameters
    if not model.kv_latent_dim:
        assert attention + model.expert_parameters <= 1.02 * model.parameters
    if model.experts:
        activated = model.expert_parameters * model.experts_per_token / model.experts
        assert activated < model.activated_parameters
