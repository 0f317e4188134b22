import json

from typer.testing import CliRunner

from wattkeeper.bench import energy
from wattkeeper.cli.main import app


def test_a_small_fleet_is_timed_as_asked():
    told = []
    found = energy.run(services=30, candidates=20, repeats=3, tell=told.append)
    assert len(found.pass_seconds) == 3 and found.median_seconds > 0 and found.first_seconds > 0
    assert found.model_bytes > 0 and found.energy_model.startswith("energy-")
    assert "30 services x 20 candidates" in found.line()
    assert told[-1] == "pass 3 of 3"


def test_all_candidates_get_watts():
    model = energy.EnergyModel.load()
    queries = energy._queries(20)
    assert len({query.profile for query in queries}) == len(energy._DEPLOYMENTS)
    for predicted in model.watts(queries):
        assert predicted.watts.shape == (20,) and (predicted.watts > 0).all()


def test_the_command_as_json():
    sizes = ["--services", "8", "--candidates", "10", "--repeats", "1"]
    answer = CliRunner().invoke(app, ["bench", "energy", *sizes, "--output", "json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["services"] == 8
