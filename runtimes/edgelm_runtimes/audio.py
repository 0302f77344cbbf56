"""Log-mel frames of audio, as Whisper takes them (Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 2.2).

Dimensions: ``n`` samples, ``F`` frames, ``M`` mel bands.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import AudioRecord
from edgelm.errors import InputError

__all__ = ["log_mel", "read_wave"]

# Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1,000 Hz, 15 mels there, logarithmic above.
_HERTZ_A_MEL = 200.0 / 3.0
_BREAK_HERTZ, _BREAK_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27.0
_FLOOR = 1e-10  # of a power, before its logarithm
_RANGE = 8.0  # decades below the loudest
_CHUNK = 512  # frames at a time: 30 seconds at once would be 10 MB of windows


def read_wave(path: str | Path, record: AudioRecord) -> NDArray[np.float32]:
    """Read a WAV file of 16-bit PCM as samples in [-1, 1); several channels become their mean.

    Raises:
        InputError: It cannot be read, is of another kind, or has another sampling rate than the model.
    """
    advice = f"make one that fits with: ffmpeg -i INPUT -ar {record.sampling_rate} -ac 1 -sample_fmt s16 OUTPUT.wav"
    try:
        with wave.open(str(path), "rb") as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            content = file.readframes(file.getnframes())
    except OSError as error:
        raise InputError(f"The audio {path} cannot be read: {error.strerror}.") from error
    except (wave.Error, EOFError) as error:
        raise InputError(f"{path} is no WAV file of plain PCM ({error}): {advice}.") from error
    if width != 2:
        raise InputError(f"{path} has {8 * width} bits a sample, and 16 are read: {advice}.")
    if rate != record.sampling_rate:
        raise InputError(
            f"{path} has {rate:,} samples a second, and the model hears {record.sampling_rate:,}: {advice}."
        )
    samples = (
        np.frombuffer(content[: len(content) // (2 * channels) * 2 * channels], "<i2").astype(np.float32) / 32768.0
    )
    if not samples.size:
        raise InputError(f"{path} holds no sound.")
    mixed: NDArray[np.float32] = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mixed


def log_mel(samples: NDArray[np.float32], record: AudioRecord) -> NDArray[np.float32]:
    """Return the frames of audio, float32 ``(F, M)``, filled with silence to the length that the model hears.

    The logarithm of the power in each band, no more than 8 decades below the loudest, brought to about [-1, 1].

    Args:
        samples: float32 ``(n,)`` in [-1, 1], at the record's rate.
        record: Of the bundle.

    Raises:
        InputError: It is no sound (empty, of several dimensions, with a NaN or an infinity), or longer than the model hears.
    """
    if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
        raise InputError(f"Audio is one row of finite samples, and an array {list(samples.shape)} was given.")
    count = record.sampling_rate * record.seconds
    if len(samples) > count:
        raise InputError(
            f"The audio lasts {len(samples) / record.sampling_rate:.1f} s, and the model hears {record.seconds} s at once: "
            "cut it where nobody speaks, and give it in parts."
        )
    whole = np.zeros(count, np.float32)
    whole[: len(samples)] = samples
    padded = np.pad(whole, record.window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, record.window)[:: record.hop][: count // record.hop]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(record.window) / record.window)).astype(
        np.float32
    )  # periodic Hann
    filters = _mel_filters(record)
    power = np.empty((len(frames), record.bands), np.float32)
    for start in range(0, len(frames), _CHUNK):
        spectrum = np.abs(np.fft.rfft(frames[start : start + _CHUNK] * window, axis=-1)) ** 2
        power[start : start + _CHUNK] = spectrum.astype(np.float32) @ filters
    logarithm = np.log10(np.maximum(power, np.float32(_FLOOR)))
    logarithm = np.maximum(logarithm, logarithm.max() - np.float32(_RANGE))
    scaled: NDArray[np.float32] = ((logarithm + np.float32(4.0)) / np.float32(4.0)).astype(np.float32, copy=False)
    return scaled


def _mel_filters(record: AudioRecord) -> NDArray[np.float32]:
    """Return triangular filters ``(window / 2 + 1, M)``, evenly spaced in mels up to half the rate, each of the same area."""
    highest = _BREAK_MEL + np.log(record.sampling_rate / 2 / _BREAK_HERTZ) / _LOG_STEP
    mels = np.linspace(0.0, highest, record.bands + 2)
    edges = np.where(mels < _BREAK_MEL, mels * _HERTZ_A_MEL, _BREAK_HERTZ * np.exp(_LOG_STEP * (mels - _BREAK_MEL)))
    bins = np.fft.rfftfreq(record.window, 1.0 / record.sampling_rate)
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    filters: NDArray[np.float32] = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))
    return filters.astype(np.float32)
