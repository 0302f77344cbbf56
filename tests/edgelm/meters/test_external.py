"""External meters: the CSV files that they write, and the lines that they send."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgelm.errors import MeterError
from edgelm.meters import LineMeter, Sampler, energy_between, load_meter_csv, open_serial
from edgelm.meters.lines import DescriptorLines, parse_line
from edgelm.meters.table import parse_meter_csv
from edgelm.meters.units import UNITS, find_unit


@pytest.mark.parametrize(
    ("text", "quantity", "times", "values", "columns"),
    [
        ("Time (s),Power (W)\n0,3.5\n0.5,4.0\n", "watts", [0, 0.5], [3.5, 4.0], ("Time (s)", "Power (W)")),
        ("time_ms,power_mw\n0,3500\n500,4000\n", "watts", [0, 0.5], [3.5, 4.0], ("time_ms", "power_mw")),
        ("t;U [V];I [mA]\n0;5,08;600\n1;5,06;620\n", "watts", [0, 1], [3.048, 3.1372], ("t", "U [V]", "I [mA]")),
        ("Elapsed\tEnergy (Wh)\n0\t0.001\n10\t0.002\n", "joules", [0, 10], [3.6, 7.2], ("Elapsed", "Energy (Wh)")),
        # Power is there, so the voltage, the current and a coarse energy are not needed; nor is the capacity.
        (
            "timestamp,voltage,current,power,energy_mwh,Capacity (mAh),Temp (C)\n1,5,1,4.9,1,3,40\n2,5,1,4.8,2,3,40\n",
            "watts", [1, 2], [4.9, 4.8], ("timestamp", "power"),
        ),
        # A tester's export with lines in front of its table, and a row that was cut off.
        (
            "USB tester export\nfirmware 1.2, serial unknown\nTime,Volts(V),Amps(A)\n00:00:01.5,5.0,1.0\n00:01:02,5.0\n"
            "01:00:00,5.0,2.0\n",
            "watts", [1.5, 3600], [5.0, 10.0], ("Time", "Volts(V)", "Amps(A)"),
        ),
        (
            "Timestamp,Watts\n2026-03-01T12:00:00Z,3\n2026-03-01T12:00:01.250+00:00,4\n",
            "watts", [1772366400.0, 1772366401.25], [3, 4], ("Timestamp", "Watts"),
        ),
    ],
)  # fmt: skip
def test_columns_are_found_by_name_and_unit(
    text: str, quantity: str, times: list[float], values: list[float], columns: tuple[str, ...]
) -> None:
    table = parse_meter_csv(text)
    assert (table.quantity, table.columns) == (quantity, columns)
    np.testing.assert_allclose(table.time_s, times)
    np.testing.assert_allclose(table.value, values)
    assert table.left_out == ("00:01:02,5.0\n" in text)


def test_two_columns_that_would_do_are_not_guessed_between() -> None:
    text = "time,power_in (W),power_out (W)\n0,5,4\n1,6,5\n"
    with pytest.raises(MeterError, match=r"'power_in \(W\)', 'power_out \(W\)'"):
        parse_meter_csv(text)
    assert parse_meter_csv(text, column="power_out (W)").value.tolist() == [4, 5]
    with pytest.raises(MeterError, match="of 'power_net'"):
        parse_meter_csv(text, column="power_net")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Its first line is: missing"),
        ("a,b\n1,2\n", "headings of a time"),
        ("time (s),Temp (C)\n1,2\n", "headings of a time"),
        ("time,power\nx,y\n", "No row"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(MeterError, match=message):
        parse_meter_csv(text)


def test_a_file_becomes_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "plug.csv"
    rows = [f"{second / 2},{3.2 if second < 200 else 6.4}" for second in range(400)]
    path.write_text("\n".join(["time (s),power (W)", *rows, "end,"]))
    trace = load_meter_csv(path)
    assert (trace.facts.scope, trace.facts.rate_hz, trace.facts.lag_s) == ("wall", 2.0, 0.5)
    assert trace.facts.resolution == pytest.approx(3.2)
    assert trace.events == ("1 rows without a number were left out",)
    assert energy_between(trace, 100.0, 160.0).joules == pytest.approx(6.4 * 60)
    with pytest.raises(MeterError, match="cannot be read"):
        load_meter_csv(tmp_path / "none.csv")


def test_units() -> None:
    assert find_unit("mWh") == ("energy", pytest.approx(3.6))
    assert find_unit("MWH") == find_unit("mWh")
    assert find_unit("\N{GREEK SMALL LETTER MU}A") == UNITS["µA"] == UNITS["uA"]
    assert find_unit("mAh") is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("3.153 W", ("watts", 3.153)),
        ("t=12.500 s, 5.08 V, 620.5 mA\r", ("watts", 5.08 * 0.6205)),
        ('{"voltage": "5.08 V", "energy": "1.25 Wh"}', ("joules", 4500.0)),
        ("P: 1.5e3 mW E: 2 J", ("watts", 1.5)),
        ("-0.25W", ("watts", -0.25)),
    ],
)
def test_lines(line: str, expected: tuple[str, float]) -> None:
    quantity, value = parse_line(line)
    assert (quantity, value) == (expected[0], pytest.approx(expected[1]))


@pytest.mark.parametrize(
    ("line", "message"), [("", "no power"), ("5.1 V", "no power"), ("3 W 4 W", "more than one power")]
)
def test_lines_that_are_no_reading(line: str, message: str) -> None:
    with pytest.raises(MeterError, match=message):
        parse_line(line)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def test_lines_of_a_pipe(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    meter = LineMeter(
        DescriptorLines(reader, "stdin", owned=False, timeout_s=0.05), name="tester", rate_hz=10, now=lambda: 4.0
    )
    os.write(writer, b".1 W\n2.5 W\n3.5 ")
    meter.open()  # the first line had begun before; the second is whole
    with pytest.raises(MeterError, match="sent no line"):
        meter.read()
    os.write(writer, b"W\n4.5 J\n")
    reading = meter.read()
    assert (reading.time_s, reading.value) == (4.0, 3.5)
    with pytest.raises(MeterError, match="sent joules where it sent watts"):
        meter.read()
    os.close(writer)
    with pytest.raises(MeterError, match="has ended"):
        meter.read()
    meter.close()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of Unix")
def test_a_serial_port_through_the_sampler() -> None:
    """A pseudo-terminal is a serial port to all that the meter asks of one: raw bytes, a speed, lines."""
    master, slave = os.openpty()
    try:
        meter = LineMeter(open_serial(Path(os.ttyname(slave)), baud=9600), name="tester", rate_hz=100)
        os.write(master, b"x\n" + b"5.0 V 1000 mA\n" * 20)
        sampler = Sampler(meter)
        sampler.start()
        while sampler._count < 15:
            time.sleep(0.005)
        sampler.stop()  # waits for the reading under way, which fails after two seconds without a line
        trace = sampler.trace()
        assert trace.value.tolist() == [5.0] * len(trace.value)
        assert 15 <= len(trace.value) <= 19
    finally:
        os.close(master)
        os.close(slave)


def test_a_serial_port_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match="plugged in"):
        open_serial(tmp_path / "ttyUSB0")
    with pytest.raises(MeterError, match="baud"):
        open_serial(tmp_path / "ttyUSB0", baud=12345)
    (tmp_path / "file").write_text("")
    with pytest.raises(MeterError, match="no serial port"):
        open_serial(tmp_path / "file")
