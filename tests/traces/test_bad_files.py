"""Broken files of every format: an error that names file and line, or a repair that is counted; never silence."""

import gzip
import json
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.traces import formats, history, servegen, tables
from wattkeeper.traces.history import History, Window
from wattkeeper.traces.trace import TraceError

GOOD = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-12 00:00:00+00:00,2162,5\n2024-05-12 00:00:00.009930+00:00,7,8\n2024-05-12 00:00:01.5+00:00,9,3\n",
    "burstgpt": "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n19440161.0,d5983bf9,2,ChatGPT,36,29,65,API log\n"
    "19440192.0,a5c69b35,8,GPT-4,1779,123,1902,Conversation log\n",
    "own": "time_s,prompt_tokens,output_tokens,cached_tokens\n0,7,8,0\n1,9,3,4\n2.5,9,3,4\n",
    "stamped": "timestamp,prompt_tokens,output_tokens\n2024-05-10T00:00:00.5Z,7,8\n2024-05-10T02:00:02+02:00,9,3\n"
    "2024-05-10T00:00:03,9,3\n",
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n1,7,8\n2.5,9,3\n4,9,3\n",
    "mooncake": '{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]}\n'
    '{"timestamp": 500, "input_length": 1500, "output_length": 7, "hash_ids": [1, 2, 9]}\n'
    '{"timestamp": 900, "input_length": 300, "output_length": 7, "hash_ids": [1]}\n',
    "lengths": "num_prefill_tokens,num_decode_tokens\n7,8\n9,3\n9,3\n",
    "rates": "t_s,rate_rps\n0,1\n600,2\n1200,3\n",
    "minutes": "minute_since_start,req_per_min\n0,60\n10,120\n20,60\n",
}
TRACES = [name for name in GOOD if name not in ("lengths", "rates", "minutes")]
COLUMNS = {
    # Format: columns of time, prompt and output in a line.
    "azure": (0, 1, 2),
    "burstgpt": (0, 4, 5),
    "own": (0, 1, 2),
    "stamped": (0, 1, 2),
    "vidur": (0, 1, 2),
}


def put(tmp_path, text, name="broken"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def with_field(text, line, column, value):
    lines = text.splitlines()
    parts = lines[line - 1].split(",")
    parts[column] = value
    lines[line - 1] = ",".join(parts)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", GOOD)
def test_each_good_file_reads_without_repairs(tmp_path, name):
    found = formats.read(put(tmp_path, GOOD[name]))
    assert getattr(found, "repairs", ()) == ()


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("what", [0, 1, 2])
@pytest.mark.parametrize("value", ["", "nan", "inf", "-3", "many", "1e99", "99999999999", "\x00"])
def test_a_wrong_value_names_file_line_and_column(tmp_path, name, what, value):
    column = COLUMNS[name][what]
    if what == 0 and value in ("1e99", "99999999999") and name not in ("azure", "stamped"):
        expected = r"broken: the times span .* days"
    else:
        header = GOOD[name].splitlines()[0].split(",")[column]
        expected = rf"broken:3: {header} is .*, expected .*; correct or remove this line"
    with pytest.raises(TraceError, match=expected):
        formats.read(put(tmp_path, with_field(GOOD[name], 3, column, value)))


@pytest.mark.parametrize("value", ["null", "-1", '"x"', "NaN", "1e400", "[]", "true and"])
@pytest.mark.parametrize("key", ["timestamp", "input_length", "output_length", "hash_ids"])
def test_a_wrong_value_in_json_lines_names_the_line(tmp_path, key, value):
    lines = GOOD["mooncake"].splitlines()
    record = json.loads(lines[1])
    lines[1] = json.dumps({**record, key: "VALUE"}).replace('"VALUE"', value)
    path = put(tmp_path, "\n".join(lines) + "\n")
    if key == "hash_ids" and value in ("null", "[]"):
        assert len(formats.read(path)) == 3
        return
    with pytest.raises(TraceError, match="broken:2: "):
        formats.read(path)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: b"", "is empty: get it again"),
        (lambda text: b"\n\n", "has an empty first line"),
        (lambda text: text.encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        (
            lambda text: text.encode()[:-9] + b"\xff\xfe\xe4" + text.encode()[-9:],
            "is no UTF-8 text somewhere after line",
        ),
        (lambda text: gzip.compress(text.encode() * 50)[:-30], "it is cut off or broken"),
        (lambda text: bytes(20), "unknown format"),
    ],
    ids=["empty", "blank", "utf16", "latin1", "cut gzip", "zeros"],
)
def test_files_that_are_no_such_files(tmp_path, name, spoil, message):
    with pytest.raises(TraceError, match=message):
        formats.read(put(tmp_path, spoil(GOOD[name])))


@pytest.mark.parametrize("name", GOOD)
def test_a_byte_order_mark_other_line_ends_and_gzip_change_nothing(tmp_path, name):
    plain = formats.read(put(tmp_path, GOOD[name], "a"))
    for number, data in enumerate(
        (
            b"\xef\xbb\xbf" + GOOD[name].encode(),
            GOOD[name].replace("\n", "\r\n").encode(),
            gzip.compress(GOOD[name].encode()),
        )
    ):
        other = formats.read(put(tmp_path, data, f"b{number}"))
        for each in ("times_seconds", "prompt_tokens", "output_tokens", "requests_per_second"):
            if hasattr(plain, each):
                assert np.array_equal(getattr(other, each), getattr(plain, each))


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(sorted(GOOD)), data=st.data())
def test_a_file_cut_anywhere_is_an_error_or_says_so(tmp_path_factory, name, data):
    text = GOOD[name]
    end = data.draw(st.integers(0, len(text) - 2))
    path = put(tmp_path_factory.mktemp("cut"), text[:end])
    try:
        found = formats.read(path)
    except TraceError as error:
        assert path.name in str(error)
        return
    if name in TRACES and not text[:end].endswith("\n"):
        assert any("has no line end: the file may be cut off" in note for note in found.repairs)


@pytest.mark.parametrize("name", COLUMNS)
def test_unsorted_and_zero_are_repaired_and_counted(tmp_path, name):
    header, first, second, third = GOOD[name].splitlines()
    found = formats.read(put(tmp_path, "\n".join((header, second, third, first)) + "\n"))
    assert "1 requests out of order, sorted" in found.repairs
    assert (np.diff(found.times_seconds) >= 0).all()
    found = formats.read(put(tmp_path, with_field(GOOD[name], 3, COLUMNS[name][1], "0")))
    assert "1 requests with a length of 0 tokens, taken as 1" in found.repairs
    assert found.prompt_tokens.min() == 1


STAMPS = st.datetimes(datetime(1990, 1, 1), datetime(1998, 1, 1)).map(lambda at: at.isoformat(sep=" "))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(STAMPS, st.sampled_from(["", "+00:00", "Z", "+05:30"]), st.integers(0, 9), st.integers(0, 9)),
        min_size=2,
        max_size=8,
    )
)
def test_whole_blocks_and_single_lines_read_the_same(tmp_path_factory, rows):
    header = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    lines = [f"{stamp}{zone},{prompt},{output}\n" for stamp, zone, prompt, output in rows]
    path = put(tmp_path_factory.mktemp("blocks"), header + "".join(lines))
    whole = formats.read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_plain", lambda *_: None)
        single = formats.read(path)
    assert whole.times_seconds == pytest.approx(single.times_seconds, abs=1e-6)
    assert whole.prompt_tokens.tolist() == single.prompt_tokens.tolist()
    assert whole.repairs == single.repairs


def test_blocks_end_where_they_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_LINES", 2)
    text = GOOD["own"] + "3,oops,1,1\n"
    with pytest.raises(TraceError, match="broken:5: prompt_tokens is 'oops'"):
        formats.read(put(tmp_path, text))
    assert len(formats.read(put(tmp_path, GOOD["own"]))) == 3


@pytest.mark.parametrize("value", ["", "nan", "-1", "x", "1e12"])
@pytest.mark.parametrize("name", ["rates", "minutes"])
def test_wrong_rates_name_the_line(tmp_path, name, value):
    with pytest.raises(TraceError, match="broken:3: r"):
        formats.read(put(tmp_path, with_field(GOOD[name], 3, 1, value)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: {**body, "windows": [{**body["windows"][0], "requests_per_second": -1}]},
        lambda body: {
            **body,
            "windows": [{**body["windows"][0], "prompt": {"tokens": [1], "weights": [float("nan")]}}],
        },
        lambda body: {**body, "windows": [{}]},
        lambda body: {**body, "windows": []},
        lambda body: {**body, "window_seconds": 0},
        lambda body: {**body, "start_seconds": None},
    ],
)
def test_broken_histories(tmp_path, spoil):
    lengths = LengthDistribution.fixed(7)
    window = Window(requests_per_second=1.0, prompt=lengths, output=lengths, prefix_hit_ratio=None, restarts=0.0)
    path = tmp_path / "broken"
    History(source="x", start_seconds=0.0, window_seconds=300.0, windows=(window, window)).write(path)
    assert len(history.read(path).windows) == 2
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(TraceError, match="broken"):
        formats.read(path)


@pytest.mark.parametrize(
    ("rates", "lengths", "message"),
    [
        ("", "{}", "agg"),
        ("t_s,rate_rps,rate_weighted_cv\n0,1,1\n", '{"input_tokens_hist": {"1": 1}}', "agg"),
        ("t_s,rate_rps,rate_weighted_cv\n0,1,1\n600,1\n", "{}", "agg:3: rate_weighted_cv"),
        ("t_s,rate_rps,rate_weighted_cv\n0,1,1\n600,2,1\n", "{", "lengths: no JSON"),
        (
            "t_s,rate_rps,rate_weighted_cv\n0,1,1\n600,2,1\n",
            '{"input_tokens_hist": {"-5": 1}}',
            "lengths: input_t",
        ),
        (
            "t_s,rate_rps,rate_weighted_cv\n0,1,1\n600,2,1\n",
            '{"input_tokens_hist": {"5": NaN}}',
            "lengths: input_t",
        ),
    ],
)
def test_broken_servegen(tmp_path, rates, lengths, message):
    with pytest.raises(TraceError, match=message):
        servegen.load(put(tmp_path, rates, "agg"), put(tmp_path, lengths, "lengths"))


def test_a_table_that_ends_within_a_line_advises_to_get_it_again(tmp_path):
    path = put(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6,1,2\n2023-11-16 18:15:47.6,")
    with pytest.raises(TraceError, match=r":3: ContextTokens is '', .* get the file again: the file may be cut off"):
        formats.read(path)


def test_lengths_of_zero_are_counted(tmp_path):
    found = formats.sharegpt(put(tmp_path, "num_prefill_tokens,num_decode_tokens\n10,0\n0,5\n10,5\n"))
    assert found.repairs == ("2 requests with a length of 0 tokens, taken as 1",)
    assert found.output_tokens.tolist() == [1, 5, 5]
