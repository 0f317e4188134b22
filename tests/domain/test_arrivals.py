import pytest

from wattkeeper.domain.arrivals import POISSON, ArrivalRecord, Dispersion


def test_between_windows_the_index_follows_the_logarithms():
    found = Dispersion(windows_seconds=(0.1, 10.0), index=(1.0, 100.0))
    assert found.at([0.01, 0.1, 1.0, 10.0, 1e3]) == pytest.approx([1.0, 1.0, 10.0, 100.0, 100.0])


def test_a_thinned_stream_comes_closer_to_poisson():
    found = Dispersion(windows_seconds=(1.0, 60.0), index=(3.0, 9.0)).thinned(0.25)
    assert found.index == pytest.approx((1.5, 3.0))
    assert POISSON.thinned(0.5) == POISSON


def test_stretched_times_move_the_windows():
    found = Dispersion(windows_seconds=(1.0, 60.0), index=(3.0, 9.0)).stretched(2.0)
    assert float(found.at(2.0)) == pytest.approx(3.0)
    assert float(found.at(120.0)) == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("windows", "index"),
    [((), ()), ((1.0,), (1.0, 2.0)), ((2.0, 1.0), (1.0, 1.0)), ((0.0,), (1.0,)), ((1.0,), (-1.0,))],
)
def test_what_is_no_dispersion_is_refused(windows, index):
    with pytest.raises(ValueError, match="dispersion"):
        Dispersion(windows_seconds=windows, index=index)


def test_a_record_knows_its_mean_rate():
    record = ArrivalRecord(edges_seconds=(0.0, 5.0, 15.0), counts=(10.0, 20.0))
    assert record.requests_per_second == pytest.approx(2.0)
    with pytest.raises(ValueError, match="edge"):
        ArrivalRecord(edges_seconds=(0.0, 1.0), counts=(1.0, 2.0))
    with pytest.raises(ValueError, match="negative"):
        ArrivalRecord(edges_seconds=(0.0, 1.0), counts=(-1.0,))
