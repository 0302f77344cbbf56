from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import TEXTS, make_classifier_bundle

from edgelm.bundle import open_bundle, pack
from edgelm.errors import BundleError, IntegrityError, OutputError

VERSION_1 = Path(__file__).parents[2] / "data" / "version-1.edgelm"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_classifier_bundle(tmp_path, fake_files=True)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where zips are unpacked, seen to be empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def write_zip(path: Path, bundle: Path, extra: list[tuple[zipfile.ZipInfo | str, bytes]] = []) -> Path:  # noqa: B006
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(bundle.iterdir()):
            archive.write(file, file.name)
        for entry, content in extra:
            archive.writestr(entry, content)
    return path


class TestFolder:
    def test_opens(self, bundle: Path) -> None:
        with open_bundle(bundle) as opened:
            assert opened.manifest.name == "tiny"
            assert opened.path("model.tflite") == bundle / "model.tflite"
            assert [case.text for case in opened.golden()] == list(TEXTS)
        assert (bundle / "model.tflite").exists()

    def test_a_bundle_of_the_first_schema_opens_for_ever(self) -> None:
        with open_bundle(VERSION_1) as opened:
            assert opened.manifest.schema_version == 1
            case = opened.golden()[0]
            assert case.ids == case.inputs["token_ids"][0].tolist()
            assert case.outputs["answer"].shape == (1, 3)

    @pytest.mark.parametrize("kind", ["missing", "empty folder", "text file", "no manifest"])
    def test_what_is_no_bundle(self, bundle: Path, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "other.edgelm"
        if kind == "empty folder":
            path.mkdir()
        elif kind == "text file":
            path.write_text("hello")
        elif kind == "no manifest":
            path = bundle
            (bundle / "manifest.json").unlink()
        message = {
            "missing": "There is no bundle at",
            "empty folder": "has no manifest.json",
            "text file": "neither a folder nor a zip file",
            "no manifest": "its copy was not finished",
        }
        with pytest.raises(BundleError, match=message[kind]):
            open_bundle(path)

    def test_a_name_with_a_nul(self) -> None:
        with pytest.raises(BundleError, match="There is no bundle"):
            open_bundle("a\0b")

    def test_a_changed_file(self, bundle: Path) -> None:
        data = bytearray((bundle / "model.tflite").read_bytes())
        data[3] ^= 1
        (bundle / "model.tflite").write_bytes(data)
        with pytest.raises(IntegrityError, match=r"model\.tflite is not the file that was written: its SHA-256 is"):
            open_bundle(bundle)

    def test_a_shortened_file(self, bundle: Path) -> None:
        (bundle / "model.onnx").write_bytes(b"not")
        with pytest.raises(IntegrityError, match=r"it has 3 bytes, the manifest says \d+"):
            open_bundle(bundle)

    def test_a_missing_file(self, bundle: Path) -> None:
        (bundle / "golden.npz").unlink()
        with pytest.raises(IntegrityError, match=r"golden\.npz is in the manifest and not in the bundle"):
            open_bundle(bundle)

    def test_a_file_that_is_a_link(self, bundle: Path, tmp_path: Path) -> None:
        shutil.move(bundle / "model.tflite", tmp_path / "elsewhere")
        (bundle / "model.tflite").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(IntegrityError, match="is a link or a folder"):
            open_bundle(bundle)

    def test_a_manifest_that_is_a_link(self, bundle: Path, tmp_path: Path) -> None:
        shutil.move(bundle / "manifest.json", tmp_path / "elsewhere")
        (bundle / "manifest.json").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BundleError, match="is a link"):
            open_bundle(bundle)

    def test_a_named_pipe_is_refused_without_waiting(self, bundle: Path) -> None:
        (bundle / "model.tflite").unlink()
        os.mkfifo(bundle / "model.tflite")
        with pytest.raises(IntegrityError):
            open_bundle(bundle)

    def test_files_that_are_not_listed_are_ignored(self, bundle: Path) -> None:
        (bundle / "README").write_text("mine")
        with open_bundle(bundle) as opened, pytest.raises(BundleError, match="has no file 'README'"):
            opened.path("README")

    def test_newer_schema(self, bundle: Path) -> None:
        edit_manifest(bundle, lambda data: data.update(schema_version=99))
        with pytest.raises(BundleError, match="schema version 99, and this edgelm reads up to 4"):
            open_bundle(bundle)

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"{", b"[" * 100_000, b'{"format": "other"}'])
    def test_a_manifest_that_is_none(self, bundle: Path, content: bytes) -> None:
        (bundle / "manifest.json").write_bytes(content)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            open_bundle(bundle)

    @pytest.mark.parametrize(
        "name",
        [
            "../secret",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "C:x",
            "..",
            ".hidden",
            "",
            "a\nb",
            "manifest.json",
            "ä",
            "x" * 200,
        ],
    )
    def test_names_that_lead_elsewhere(self, bundle: Path, name: str) -> None:
        def change(data: dict[str, Any]) -> None:
            data["files"][name] = data["files"]["model.tflite"]

        edit_manifest(bundle, change)
        with pytest.raises(BundleError, match="which no bundle may hold"):
            open_bundle(bundle)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data: data["files"].pop("golden.npz"), "golden vectors"),
            (lambda data: data["artifacts"][0].update(file="../x"), "does not list it among its files"),
            (lambda data: data["tokenizer"].update(file="other.json"), "names 'other.json' as its tokenizer"),
            (
                lambda data: data["files"].update({"MODEL.tflite": data["files"]["model.tflite"]}),
                "upper and lower case",
            ),
            (lambda data: data["files"]["model.tflite"].update(size_bytes=-1), "no valid size"),
            (lambda data: data["files"]["model.tflite"].update(sha256="abc"), "no valid size or SHA-256"),
            (lambda data: data.update(artifacts=[]), "no model file"),
            (lambda data: data["artifacts"][0].update(signatures=[]), "no signature"),
            (lambda data: data["artifacts"][0]["signatures"][0].update(inputs=[]), "no input"),
            (lambda data: data["artifacts"][0]["signatures"][0].update(sequence_length=0), "0 tokens"),
            (lambda data: data["artifacts"][0]["signatures"][0]["inputs"][0].update(dtype="object"), "unknown dtype"),
            (lambda data: data["artifacts"][0]["signatures"][0]["inputs"][0].update(shape=[1, -4]), "impossible shape"),
            (lambda data: data["artifacts"][0]["signatures"].reverse(), "not in the order of their length"),
            (lambda data: data["artifacts"][0]["signatures"][1]["inputs"].pop(), "different inputs"),
            (lambda data: data["artifacts"][0]["signatures"][2].update(sequence_length=10**12), "1000000000000 tokens"),
            (lambda data: data.update(labels=["one"]), "names 1 labels, and 'model.tflite' gives"),
            (lambda data: data["tokenizer"].update(pad_id=99_999), "impossible tokenizer"),
            (lambda data: data.update(surprise=1), "does not follow its schema"),
        ],
    )
    def test_a_manifest_that_contradicts_itself(self, bundle: Path, change: Callable[..., Any], message: str) -> None:
        edit_manifest(bundle, change)
        with pytest.raises(BundleError, match=message):
            open_bundle(bundle)

    def test_golden_vectors_with_a_pickle_are_not_run(self, bundle: Path, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "trapped"),)

        np.savez(bundle / "golden.npz", **{"0/input/x": np.array([Trap()], object)})
        refresh(bundle)
        with open_bundle(bundle) as opened, pytest.raises(BundleError, match="does not hold golden vectors"):
            opened.golden()
        assert not (tmp_path / "trapped").exists()


def refresh(bundle: Path) -> None:
    """Make the manifest agree with the golden file."""
    import hashlib

    content = (bundle / "golden.npz").read_bytes()
    record = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(bundle, lambda data: data["files"].update({"golden.npz": record}))


class TestZip:
    def test_opens_and_cleans_up(self, bundle: Path, tmp_path: Path, temporary: Path) -> None:
        packed = pack(bundle, tmp_path / "packed.edgelm", force=False)
        with open_bundle(packed) as opened:
            assert opened.path("model.tflite").read_bytes() == (bundle / "model.tflite").read_bytes()
            assert len(opened.golden()) == len(TEXTS)
            assert stat.S_IMODE(opened.folder.stat().st_mode) == 0o700
        assert list(temporary.iterdir()) == []

    def test_a_zip_made_by_another_program(self, bundle: Path, tmp_path: Path, temporary: Path) -> None:
        (bundle / "README").write_text("mine")
        path = Path(shutil.make_archive(str(tmp_path / "other"), "zip", bundle))  # deflated
        with open_bundle(path) as opened:
            assert not (opened.folder / "README").exists()
        assert list(temporary.iterdir()) == []

    def test_a_zip_of_the_folder(self, bundle: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.edgelm", "w") as archive:
            for file in sorted(bundle.iterdir(), key=lambda path: path.name != "manifest.json"):
                archive.write(file, f"tiny.edgelm/{file.name}")
        with pytest.raises(BundleError, match="zip what is in the folder, not the folder"):
            open_bundle(tmp_path / "x.edgelm")

    @pytest.mark.parametrize("keep", [10, 0.5, 0.999])
    def test_cut_short(self, bundle: Path, tmp_path: Path, temporary: Path, keep: float) -> None:
        packed = pack(bundle, tmp_path / "packed.edgelm", force=False)
        content = packed.read_bytes()
        packed.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
        with pytest.raises(BundleError, match="cut short or damaged"):
            open_bundle(packed)
        assert list(temporary.iterdir()) == []

    def test_every_single_flipped_byte_is_noticed_or_harmless(
        self, bundle: Path, tmp_path: Path, temporary: Path
    ) -> None:
        packed = pack(bundle, tmp_path / "packed.edgelm", force=False)
        content = packed.read_bytes()
        wanted = {file.name: file.read_bytes() for file in bundle.iterdir() if file.name != "manifest.json"}
        for place in range(0, len(content), 37):
            damaged = bytearray(content)
            damaged[place] ^= 0xFF
            packed.write_bytes(damaged)
            try:
                with open_bundle(packed) as opened:
                    assert {name: opened.path(name).read_bytes() for name in opened.manifest.files} == wanted
            except BundleError:
                pass
            assert list(temporary.iterdir()) == []

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "a\\b", "C:x", "..", ".hidden", "a\0b"])
    def test_names_that_lead_elsewhere(self, bundle: Path, tmp_path: Path, temporary: Path, name: str) -> None:
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = name
        path = write_zip(tmp_path / "x.edgelm", bundle, [(entry, b"x")])
        with pytest.raises(BundleError, match="no plain file name"):
            open_bundle(path)
        assert list(temporary.iterdir()) == []

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_a_name_twice(self, bundle: Path, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "x.edgelm", bundle, [("model.tflite", b"other")])
        with pytest.raises(BundleError, match="twice"):
            open_bundle(path)

    def test_a_link(self, bundle: Path, tmp_path: Path) -> None:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        path = write_zip(tmp_path / "x.edgelm", bundle, [(entry, b"/etc/passwd")])
        with pytest.raises(BundleError, match="is a link or a device"):
            open_bundle(path)

    def test_a_bomb(self, bundle: Path, tmp_path: Path, temporary: Path) -> None:
        path = tmp_path / "x.edgelm"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in bundle.iterdir():
                archive.write(file, file.name)
            archive.writestr("zeros", bytes(20 * 2**20))
        with pytest.raises(BundleError, match="which no model does"):
            open_bundle(path)
        assert list(temporary.iterdir()) == []

    def test_too_many_entries(self, bundle: Path, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "x.edgelm", bundle, [(f"f{index}", b"") for index in range(1500)])
        with pytest.raises(BundleError, match=r"1,50\d entries"):
            open_bundle(path)

    def test_an_entry_that_declares_less_than_it_holds(self, bundle: Path, tmp_path: Path, temporary: Path) -> None:
        # The directory of the zip says 5 bytes; the manifest says so too; the deflated stream goes on to a megabyte.
        content = bytes(2**20)
        (bundle / "model.tflite").write_bytes(content[:5])
        import hashlib

        record = {"size_bytes": 5, "sha256": hashlib.sha256(content[:5]).hexdigest()}
        edit_manifest(bundle, lambda data: data["files"].update({"model.tflite": record}))
        path = tmp_path / "x.edgelm"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(bundle.iterdir()):
                archive.writestr(file.name, content if file.name == "model.tflite" else file.read_bytes())
        raw = bytearray(path.read_bytes())
        place = raw.rindex(b"model.tflite") - 46
        raw[place + 24 : place + 28] = struct.pack("<I", 5)
        path.write_bytes(raw)
        with pytest.raises(BundleError):
            open_bundle(path)
        assert list(temporary.iterdir()) == []

    def test_encrypted(self, bundle: Path, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "x.edgelm", bundle)
        raw = bytearray(path.read_bytes())
        raw[raw.rindex(b"model.tflite") - 46 + 8] |= 1
        path.write_bytes(raw)
        with pytest.raises(BundleError, match="encrypted"):
            open_bundle(path)

    def test_a_tampered_file(self, bundle: Path, tmp_path: Path, temporary: Path) -> None:
        (bundle / "model.tflite").write_bytes((bundle / "model.tflite").read_bytes()[::-1])
        path = write_zip(tmp_path / "x.edgelm", bundle)
        with pytest.raises(IntegrityError, match=r"model\.tflite is not the file that was written"):
            open_bundle(path)
        assert list(temporary.iterdir()) == []

    def test_a_missing_file(self, bundle: Path, tmp_path: Path) -> None:
        (bundle / "model.tflite").unlink()
        with pytest.raises(IntegrityError, match="not in the zip"):
            open_bundle(write_zip(tmp_path / "x.edgelm", bundle))

    def test_no_room_to_unpack(
        self, bundle: Path, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packed = pack(bundle, tmp_path / "packed.edgelm", force=False)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
        with pytest.raises(OutputError, match="set TMPDIR to a larger disk"):
            open_bundle(packed)
        assert list(temporary.iterdir()) == []
