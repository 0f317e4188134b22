"""The page on what is read names all that is read."""

from pathlib import Path

from wattkeeper.telemetry import aliases

PAGE = (Path(__file__).parents[2] / "docs" / "metrics-read.md").read_text(encoding="utf-8")


def test_every_name_and_label_is_on_the_page():
    names = [
        name
        for metrics in (aliases.ENGINE_METRICS, aliases.STEP_METRICS, aliases.DCGM_METRICS)
        for metric in metrics.values()
        for name in metric.names
    ]
    kepler = [aliases.KEPLER_POD_WATTS, aliases.KEPLER_CONTAINER_JOULES, aliases.KEPLER_NODE_WATTS]
    labels = [*aliases.POD_LABELS, *aliases.NAMESPACE_LABELS, *aliases.UUID_LABELS, *aliases.NODE_LABELS]
    labels += [label for metric in aliases.ENGINE_METRICS.values() for label in metric.split_labels]
    for name in (*names, *kepler, *labels):
        assert f"`{name}`" in PAGE, name
