"""What a model hears: against KerasHub's front end, and files that cannot be read."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from edgelm_runtimes.audio import log_mel, read_wave

from edgelm.bundle import AudioRecord
from edgelm.errors import InputError

RECORD = AudioRecord(sampling_rate=16_000, window=400, hop=160, bands=80, seconds=2)


def _sound(seconds: float, seed: int = 0) -> np.ndarray:
    """A rising tone in noise."""
    time = np.arange(int(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time) + 0.01 * noise).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.4, 2.0])
def test_frames_are_those_of_keras_hub(seconds: float) -> None:
    """A float32 spectrum sums 400 products, and its logarithm turns a share of 1e-5 of a quiet band into 1e-5 of the answer."""
    layers = pytest.importorskip("keras_hub").layers
    sound = _sound(seconds)
    wanted = np.asarray(layers.WhisperAudioConverter(num_mels=80, max_audio_length=2)(sound))
    found = log_mel(sound, RECORD)
    assert found.shape == wanted.shape == (200, 80)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def _write(path: Path, *, rate: int = 16_000, width: int = 2, channels: int = 1, count: int = 1000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(count * width * channels))
    return path


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    samples = (np.random.default_rng(1).uniform(-1, 1, (500, 2)) * 32767).astype("<i2")
    path = _write(tmp_path / "a.wav", channels=2, count=0)
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    np.testing.assert_allclose(read_wave(path, RECORD), samples.astype(np.float64).mean(axis=1) / 32768, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rate": 44_100}, "44,100 samples a second"),
        ({"width": 1}, "8 bits a sample"),
        ({"count": 0}, "holds no sound"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, options: dict[str, int], why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_wave(_write(tmp_path / "a.wav", **options), RECORD)


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    for path, why in ((tmp_path / "a.wav", "no WAV file"), (tmp_path / "b.wav", "cannot be read")):
        with pytest.raises(InputError, match=why):
            read_wave(path, RECORD)
    with pytest.raises(InputError, match=r"lasts 2\.7 s, and the model hears 2 s"):
        log_mel(_sound(2.7), RECORD)
    for samples in (np.zeros((2, 3), np.float32), np.zeros(0, np.float32), np.array([np.nan], np.float32)):
        with pytest.raises(InputError, match="one row of finite samples"):
            log_mel(samples, RECORD)
