"""`wattkeeper fit` and `wattkeeper catalogue` as people call them."""

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tests.physics import engines
from wattkeeper.api.model_profile import ModelProfileSpec
from wattkeeper.cli import fit_live
from wattkeeper.cli.main import app
from wattkeeper.controller import overrides
from wattkeeper.domain.errors import TelemetryError
from wattkeeper.physics import profiles
from wattkeeper.physics.profile import Provenance

RUNNER = CliRunner()
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def page(sample, *, engine="0"):
    """A /metrics page of one engine at the moment of a sample, with 1,000 requests behind it per 1,000 steps."""
    capacity, block = 400_000, 16
    usage = (sample.kv_tokens + 0.5 * block * sample.running) / capacity
    done = sample.generation_tokens / engines.CONVERSATION[1][0]
    values = {
        "inter_token_latency_seconds_sum": sample.inter_token_seconds_sum,
        "inter_token_latency_seconds_count": sample.inter_token_count,
        "iteration_tokens_total_sum": sample.iteration_tokens_sum,
        "iteration_tokens_total_count": sample.iteration_count,
        "generation_tokens_total": sample.generation_tokens,
        "num_preemptions_total": sample.preemptions,
        "num_requests_running": sample.running,
        "kv_cache_usage_perc": usage,
        "request_prompt_tokens_sum": done * engines.CONVERSATION[0][0],
        "request_prompt_tokens_count": done,
        "request_generation_tokens_sum": sample.generation_tokens,
        "request_generation_tokens_count": done,
    }
    labels = f'{{engine="{engine}",model_name="m"}}'
    lines = [f"vllm:{name}{labels} {value!r}" for name, value in values.items()]
    info = f'engine="{engine}",num_gpu_blocks="{capacity // block + 1}",block_size="{block}",cache_dtype="auto"'
    return "\n".join([*lines, f"vllm:cache_config_info{{{info}}} 1.0"]) + "\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Pages of an engine under a load that goes up and down."""
    folder = tmp_path_factory.mktemp("pages")
    samples = engines.scrapes(lambda at: 7.0 + 6.0 * np.sin(at / 90.0), seconds=420.0, spacing=3.0)
    for sample in samples:
        (folder / f"{sample.time_seconds}.txt").write_text(page(sample), encoding="utf-8")
    return folder


def fit(*arguments):
    return RUNNER.invoke(app, ["fit", "iteration", *map(str, arguments)])


def live(saved, *more):
    return fit("--source", "live", "--model", LLAMA, "--accelerator", "h100", "--scrapes", saved, *more)


def test_saved_scrapes_give_the_engines_own_coefficients(saved):
    answer = live(saved, "-o", "json")
    assert answer.exit_code == 0, answer.output
    found, true = json.loads(answer.stdout), engines.truth()
    step = found["terms"]["d0"]["seconds"] + 40 * found["terms"]["dn"]["seconds"]
    assert step == pytest.approx(true.d0_seconds + 40 * true.dn_seconds_per_decode, rel=0.15)
    assert found["quality"]["mape"] < 0.05
    assert found["quality"]["rows"] > 24


def test_a_fit_is_a_model_profile_that_the_operator_takes(saved):
    answer = live(saved, "-o", "yaml", "--name", "own", "--namespace", "llm")
    assert answer.exit_code == 0, answer.output
    document = yaml.safe_load(answer.stdout)
    assert (document["apiVersion"], document["kind"]) == ("wattkeeper.io/v1alpha1", "ModelProfile")
    assert document["metadata"]["name"] == "own"
    assert document["metadata"]["namespace"] == "llm"
    spec = ModelProfileSpec.model_validate(document["spec"])
    given = overrides.of_profile("own", spec)
    profile = profiles.serving_profile(
        model=spec.model,
        accelerator=spec.accelerator,
        gpus_per_replica=spec.gpus_per_replica,
        engine=profiles.EngineSettings(),
        overrides=given,
    )
    assert profile.provenance is Provenance.MEASURED
    assert profile.iteration.decode_seconds_per_sequence == pytest.approx(
        document["spec"]["iteration"]["dnMsPerDecode"] / 1e3
    )
    assert profile.coefficient("dn_seconds_per_decode").provenance is Provenance.MEASURED
    assert profile.coefficient("static_watts").provenance is Provenance.FITTED
    with pytest.raises(KeyError):
        profile.coefficient("nothing")


def test_the_table_says_how_good_the_fit_is(saved):
    answer = live(saved)
    assert answer.exit_code == 0, answer.output
    for words in ("d0", "ms per step", "MAPE", "R2", "condition", "windows, left out"):
        assert words in answer.stdout


def test_engines_of_one_page_are_told_apart(saved):
    texts = [path.read_text() for path in sorted(saved.iterdir(), key=lambda path: float(path.stem))[:30]]
    pages = [(3.0 * at, "pod", text + text.replace('engine="0"', 'engine="1"')) for at, text in enumerate(texts)]
    both, one = (
        fit_live.windows(pages),
        fit_live.windows([(at, origin, text) for (at, origin, _), text in zip(pages, texts, strict=True)]),
    )
    assert len(both.windows) == 2 * len(one.windows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "live"), "needs either --url"),
        (("--source", "live", "--scrapes", "nowhere"), "no folder of saved /metrics pages"),
        (("--source", "kernels", "--data", "nowhere"), "does not exist"),
    ],
)
def test_bad_input_says_what_to_do(arguments, message):
    answer = fit("--model", LLAMA, "--accelerator", "h100", *arguments)
    assert answer.exit_code == 1
    assert message in answer.output


def test_unknown_names_are_refused():
    assert "close names" in fit("--source", "itl", "--model", "Qwen/Qwen3-9B", "--accelerator", "h100").output
    assert "is not in the catalogue" in fit("--source", "itl", "--model", LLAMA, "--accelerator", "x").output


def test_pages_that_are_none_are_refused(tmp_path, saved):
    (tmp_path / "1.txt").write_text("vllm:iteration_tokens_total_count one\n")
    assert "1 pages" in live(tmp_path).output
    (tmp_path / "2.txt").write_text("some words\n")
    assert "not a page of metrics" in live(tmp_path).output
    (tmp_path / "1.txt").write_text("up 1\n")
    assert "has no series vllm:iteration_tokens_total_count" in live(tmp_path).output
    (tmp_path / "today.txt").write_text("")
    assert "the time of its scrape" in live(tmp_path).output


def test_too_few_windows_say_for_how_long_to_scrape(tmp_path, saved):
    for path in sorted(saved.iterdir(), key=lambda path: float(path.stem))[:8]:
        (tmp_path / path.name).write_text(path.read_text())
    answer = live(tmp_path)
    assert answer.exit_code == 1
    assert "TooFewWindows" in answer.output
    assert "Scrape for longer" in answer.output


def test_scraping_keeps_time_and_tells_failures(monkeypatch):
    now, calls = [0.0], []

    class Answer:
        text = "up 1"

        def raise_for_status(self):
            if len(calls) == 2:
                raise fit_live.httpx.ConnectError("refused")

    def get(self, url):
        calls.append(url)
        return Answer()

    monkeypatch.setattr(fit_live.httpx.Client, "get", get)
    told = []
    timing = {"clock": lambda: now[0], "sleep": lambda seconds: now.__setitem__(0, now[0] + seconds)}
    pages = fit_live.scrape(["http://pod"], seconds=20.0, every=5.0, tell=told.append, **timing)
    assert [at for at, _, _ in pages] == [0.0, 10.0, 15.0, 20.0]
    assert told == ["http://pod: refused"]


def test_a_page_that_never_answers_is_named(monkeypatch):
    def get(self, url):
        raise fit_live.httpx.ConnectError("refused")

    monkeypatch.setattr(fit_live.httpx.Client, "get", get)
    with pytest.raises(TelemetryError, match="http://pod never answered"):
        fit_live.scrape(["http://pod"], seconds=0.0, every=5.0, tell=lambda _: None)


@pytest.mark.data
def test_an_entry_of_the_catalogue_is_what_its_command_prints(data_folder):
    for source, accelerator, gpus in (("itl", "nvidia-h100-sxm", 2), ("kernels", "nvidia-a100-sxm", 2)):
        answer = fit(
            "--source", source, "--model", "Qwen/Qwen3-32B", "--accelerator", accelerator, "--tp", gpus,
            "--data", data_folder, "-o", "entry",
        )  # fmt: skip
        assert answer.exit_code == 0, answer.output
        [entry] = yaml.safe_load(answer.stdout)
        [shipped] = [
            pair
            for pair in profiles.catalogue.fitted_pairs()
            if pair.models == ("Qwen/Qwen3-32B",) and (pair.accelerator, pair.tensor_parallel) == (accelerator, gpus)
        ]
        assert entry["source"] == shipped.source
        for name in ("d0_ms", "dn_ms", "dkv_ms", "dt_ms", "da_ms", "relative_error"):
            assert entry[name] == pytest.approx(getattr(shipped, name), rel=0.01)


@pytest.mark.data
def test_no_runs_of_a_pair_say_which_there_are(data_folder):
    answer = fit(
        "--source", "itl", "--model", "Qwen/Qwen3-32B", "--accelerator", "h100", "--tp", 8, "--data", data_folder
    )
    assert answer.exit_code == 1
    assert "only on 1 nvidia-b200, 1 nvidia-h100-sxm, 2 nvidia-h100-sxm" in answer.output


def test_the_catalogue_shows_every_number_with_its_provenance():
    answer = RUNNER.invoke(
        app, ["catalogue", "--model", "google/gemma-3-27b-it", "--accelerator", "h100", "--tp", "2", "-o", "json"]
    )
    assert answer.exit_code == 0, answer.output
    document = json.loads(answer.stdout)
    marks = {each["name"]: each["provenance"] for each in document["coefficients"]}
    assert marks["d0_seconds"] == "Fitted"
    assert marks["dt_seconds_per_token"] == marks["static_watts"] == "Estimated"
    assert all(each["relative_error"] >= 0 and each["source"] for each in document["coefficients"])
    capacities = [each["capacity_tokens"] for each in document["kv"]]
    assert capacities == sorted(capacities)
    assert set(document["estimated_step_milliseconds"]) == {"1", "32", "256"}


def test_the_catalogue_lists_and_draws_tables():
    listed = json.loads(RUNNER.invoke(app, ["catalogue", "-o", "json"]).stdout)
    assert len(listed["models"]) >= 60
    assert len(listed["accelerators"]) >= 10
    table = RUNNER.invoke(app, ["catalogue", "--model", LLAMA, "--accelerator", "l4"])
    assert "one-sigma error of step time" in table.stdout
    short = RUNNER.invoke(app, ["catalogue", "--model", "acme/Foo-13B", "--accelerator", "l4", "-o", "json"])
    assert "kv" not in json.loads(short.stdout)
    assert RUNNER.invoke(app, ["catalogue", "--accelerator", "l4"]).exit_code == 0
