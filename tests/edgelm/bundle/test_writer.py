from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_factory import make_classifier_bundle

from edgelm.bundle import BundleWriter, Manifest, open_bundle, pack
from edgelm.errors import BundleError, OutputError


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """One that fits the files that `fill` writes."""
    folder = tmp_path / "other"
    folder.mkdir()
    with open_bundle(make_classifier_bundle(folder, fake_files=True)) as opened:
        return opened.manifest


def fill(folder: Path, content: bytes = b"x") -> None:
    for name in ("model.tflite", "model.onnx", "golden.npz", "tokenizer.json"):
        (folder / name).write_bytes(content)


def write(
    output: Path, manifest: Manifest, *, force: bool = False, between: Callable[[Path], object] = lambda folder: None
) -> Manifest:
    with BundleWriter(output, force=force) as writer:
        fill(writer.folder)
        between(writer.folder)
        return writer.finish(manifest)


def visible_and_hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "other")


class TestWriter:
    def test_writes_a_bundle_that_opens(self, tmp_path: Path, manifest: Manifest) -> None:
        with BundleWriter(tmp_path / "new.edgelm", force=False) as writer:
            assert not (tmp_path / "new.edgelm").exists()
            fill(writer.folder)
            written = writer.finish(manifest)
        assert visible_and_hidden(tmp_path) == ["new.edgelm"]
        with open_bundle(tmp_path / "new.edgelm") as opened:
            assert opened.manifest == written
            assert written.files["model.tflite"].size_bytes == 1

    def test_a_relative_output(self, tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with BundleWriter(Path("new.edgelm"), force=False) as writer:
            fill(writer.folder)
            writer.finish(manifest)
        open_bundle("new.edgelm").close()

    def test_others_may_read_it(self, tmp_path: Path, manifest: Manifest) -> None:
        previous = os.umask(0o022)
        try:
            with BundleWriter(tmp_path / "new.edgelm", force=False) as writer:
                fill(writer.folder)
                writer.finish(manifest)
        finally:
            os.umask(previous)
        assert (tmp_path / "new.edgelm").stat().st_mode & 0o777 == 0o755

    @pytest.mark.parametrize("name", ["model", "model.zip", ".edgelm"])
    def test_names_that_are_no_bundles(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(OutputError, match=r"A bundle is called NAME\.edgelm"):
            BundleWriter(tmp_path / name, force=True)

    def test_a_missing_parent(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="does not exist: make it first"):
            BundleWriter(tmp_path / "missing" / "new.edgelm", force=False)

    def test_an_existing_output_is_refused_before_any_work(self, tmp_path: Path) -> None:
        (tmp_path / "new.edgelm").mkdir()
        with pytest.raises(OutputError, match=r"exists\. Give another name, or --force"):
            BundleWriter(tmp_path / "new.edgelm", force=False)

    def test_force_does_not_replace_what_is_no_bundle(self, tmp_path: Path) -> None:
        (tmp_path / "photos.edgelm").mkdir()
        (tmp_path / "photos.edgelm" / "cat.jpg").touch()
        with pytest.raises(OutputError, match="not a bundle: it is not replaced"):
            BundleWriter(tmp_path / "photos.edgelm", force=True)

    def test_force_does_not_replace_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "new.edgelm").symlink_to(tmp_path / "nowhere")
        with pytest.raises(OutputError, match="is a link"):
            BundleWriter(tmp_path / "new.edgelm", force=True)

    @pytest.mark.parametrize("as_file", [False, True])
    def test_force_replaces_a_bundle_at_the_end(self, tmp_path: Path, manifest: Manifest, as_file: bool) -> None:
        old = make_classifier_bundle(tmp_path, name="new", fake_files=True)
        if as_file:
            packed = pack(old, tmp_path / "packed.edgelm", force=False)
            shutil.rmtree(old)
            packed.rename(old)
        with BundleWriter(old, force=True) as writer:
            fill(writer.folder)
            open_bundle(old).close()
            writer.finish(manifest)
        with open_bundle(old) as opened:
            assert opened.path("model.tflite").read_bytes() == b"x"
        assert visible_and_hidden(tmp_path) == ["new.edgelm"]

    def test_an_output_that_appears_meanwhile_stays(self, tmp_path: Path, manifest: Manifest) -> None:
        output = tmp_path / "new.edgelm"

        def appear(folder: Path) -> None:
            output.mkdir()
            (output / "mine").touch()

        with pytest.raises(OutputError, match="appeared while it was being made"):
            write(output, manifest, between=appear)
        assert visible_and_hidden(output) == ["mine"]
        assert visible_and_hidden(tmp_path) == ["new.edgelm"]

    def test_leaving_without_finish_leaves_nothing(self, tmp_path: Path, manifest: Manifest) -> None:
        with BundleWriter(tmp_path / "new.edgelm", force=False) as writer:
            fill(writer.folder)
        assert visible_and_hidden(tmp_path) == []

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
    def test_an_error_leaves_nothing_and_passes(
        self, tmp_path: Path, error: type[BaseException], manifest: Manifest
    ) -> None:
        def fail(folder: Path) -> None:
            raise error

        with pytest.raises(error):
            write(tmp_path / "new.edgelm", manifest, between=fail)
        assert visible_and_hidden(tmp_path) == []

    def test_a_full_disk_is_one_line(self, tmp_path: Path, manifest: Manifest) -> None:
        def fail(folder: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)\. Nothing was changed"):
            write(tmp_path / "new.edgelm", manifest, between=fail)
        assert visible_and_hidden(tmp_path) == []

    def test_a_missing_input_of_the_caller_is_not_called_a_full_disk(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), BundleWriter(tmp_path / "new.edgelm", force=False):
            (tmp_path / "labels.txt").read_text()

    def test_a_failed_rename_keeps_the_old_bundle(
        self, tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = make_classifier_bundle(tmp_path, name="new", fake_files=True)
        original = Path.replace

        def failing(self: Path, target: Path) -> Path:
            if target == old and not self.name.endswith(".old"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return original(self, target)

        monkeypatch.setattr(Path, "replace", failing)
        with pytest.raises(OutputError, match="Input/output error"):
            write(old, manifest, force=True)
        with open_bundle(old) as opened:
            assert opened.path("model.tflite").read_bytes().startswith(b"not a model")
        assert visible_and_hidden(tmp_path) == ["new.edgelm"]

    def test_a_manifest_that_names_what_is_not_there(self, tmp_path: Path, manifest: Manifest) -> None:
        with pytest.raises(BundleError, match="does not list it"):
            write(tmp_path / "new.edgelm", manifest, between=lambda folder: (folder / "golden.npz").unlink())
        assert visible_and_hidden(tmp_path) == []

    def test_a_file_with_an_unsafe_name(self, tmp_path: Path, manifest: Manifest) -> None:
        with pytest.raises(BundleError, match="which no bundle may hold"):
            write(tmp_path / "new.edgelm", manifest, between=lambda folder: (folder / "a b").touch())

    def test_a_real_full_disk(self, tmp_path: Path, manifest: Manifest) -> None:
        """The limit on the size of a file stands for the disk: the write fails in the same place, with EFBIG."""
        code = (
            "import resource, signal, sys; from pathlib import Path; from edgelm.bundle import BundleWriter\n"
            "from edgelm.errors import OutputError\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "try:\n"
            "    with BundleWriter(Path(sys.argv[1]), force=False) as writer:\n"
            "        (writer.folder / 'model.tflite').write_bytes(bytes(5000))\n"
            "except OutputError as error: print(error)\n"
        )
        result = run_python(code, tmp_path / "new.edgelm")
        assert "cannot be written (File too large)" in result.stdout, result.stderr
        assert visible_and_hidden(tmp_path) == []

    def test_ctrl_c_in_the_middle(self, tmp_path: Path) -> None:
        code = (
            "import sys, time; from pathlib import Path; from edgelm.bundle import BundleWriter\n"
            "with BundleWriter(Path(sys.argv[1]), force=False) as writer:\n"
            "    (writer.folder / 'model.tflite').write_bytes(bytes(5000))\n"
            "    print('started', flush=True)\n"
            "    time.sleep(60)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "new.edgelm")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert any(name.startswith(".new.edgelm.") for name in visible_and_hidden(tmp_path))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode != 0
        assert visible_and_hidden(tmp_path) == []


class TestPack:
    def test_the_same_bundle_gives_the_same_bytes(self, tmp_path: Path) -> None:
        bundle = make_classifier_bundle(tmp_path, fake_files=True)
        first = pack(bundle, tmp_path / "a.edgelm", force=False).read_bytes()
        time.sleep(0.01)
        assert pack(bundle, tmp_path / "b.edgelm", force=False).read_bytes() == first
        assert pack(tmp_path / "a.edgelm", tmp_path / "c.edgelm", force=False).read_bytes() == first

    def test_an_existing_file(self, tmp_path: Path) -> None:
        bundle = make_classifier_bundle(tmp_path, fake_files=True)
        packed = pack(bundle, tmp_path / "a.edgelm", force=False)
        with pytest.raises(OutputError, match="exists"):
            pack(bundle, packed, force=False)
        pack(bundle, packed, force=True)

    def test_over_itself(self, tmp_path: Path) -> None:
        bundle = make_classifier_bundle(tmp_path, fake_files=True)
        pack(bundle, bundle, force=True)
        assert bundle.is_file()
        open_bundle(bundle).close()
        assert visible_and_hidden(tmp_path) == ["tiny.edgelm"]

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle = make_classifier_bundle(tmp_path, fake_files=True)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(OutputError, match="No space left"):
            pack(bundle, tmp_path / "a.edgelm", force=False)
        assert visible_and_hidden(tmp_path) == ["tiny.edgelm"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60, check=False)
