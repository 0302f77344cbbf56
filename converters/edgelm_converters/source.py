"""What the user hands in: a model from memory, a `.keras` file, a SavedModel, a KerasHub preset folder or its handle."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgelm.errors import ModelError
from edgelm_converters.frameworks import import_keras, import_keras_hub, import_tensorflow
from edgelm_converters.keras_model import REGISTERED

__all__ = ["Source", "load_source"]


_HANDLES = ("hf://", "kaggle://", "modelscope://")


@dataclass(frozen=True)
class Source:
    """A model that was read, and what came with it.

    Attributes:
        kind: ``keras`` (a `keras.Model`) or ``saved_model`` (a TensorFlow function).
        model: The model itself.
        name: The model's own name.
        description: File name, or class of an object from memory.
        preprocessor: KerasHub's preprocessor or tokenizer that the model carries; None where there is none.
        folder: The preset folder that it was read from; None where there was none.
    """

    kind: Literal["keras", "saved_model"]
    model: Any
    name: str
    description: str
    preprocessor: Any | None
    folder: Path | None = None


def load_source(model: object, *, custom_objects: Path | None = None) -> Source:
    """Read a model.

    Args:
        model: A `keras.Model`; the path of one: `.keras`, a SavedModel folder or a KerasHub preset folder; or a handle that
            KerasHub fetches: ``hf://user/model``, ``kaggle://…``, ``modelscope://…``.
        custom_objects: A Python file that defines the model's own layers. It is run: name only a file that you trust.

    Raises:
        ModelError: It is missing, damaged, of another kind, or needs code that was not given.
        MissingPackageError: Keras, TensorFlow or KerasHub is needed and not installed.
    """
    objects = _load_custom_objects(custom_objects) if custom_objects is not None else {}
    if isinstance(model, str) and model.startswith(_HANDLES):
        return _load_handle(model)
    if isinstance(model, (str, Path)):
        return _load_path(Path(model), objects)
    keras = import_keras()
    if not isinstance(model, keras.Model):
        raise ModelError(f"A model must be a keras.Model or a path; this is a {type(model).__name__}.")
    return _from_keras(model, type(model).__name__)


def _load_path(path: Path, objects: dict[str, Any]) -> Source:
    if not path.exists():
        raise ModelError(f"There is no model at {path}.")
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return _load_saved_model(path)
        if (path / "config.json").is_file():
            return _load_config_folder(path, objects)
        raise ModelError(
            f"{path} is neither a SavedModel (no saved_model.pb) nor a KerasHub preset (no config.json): "
            "give a .keras file, a SavedModel or a preset folder."
        )
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _load_hdf5(path, objects)
    if path.suffix.lower() != ".keras":
        raise ModelError(
            f"{path.name} is not a model that edgelm reads: give a .keras file, a SavedModel or a preset folder."
        )
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"{path} is not a whole .keras file (it is no zip archive): it may be cut short; copy or save it again."
        )
    _import_hub_if_used(path)
    return _from_keras(_load_keras(path, objects), path.name)


def _load_keras(path: Path, objects: dict[str, Any]) -> Any:
    keras = import_keras()
    try:
        return keras.models.load_model(path, custom_objects=objects, compile=False)
    except (TypeError, ValueError, KeyError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ModelError(_explain_load_error(path, str(error))) from error


def _explain_load_error(path: Path, message: str) -> str:
    """Turn Keras's message, often a page long, into one line with a way out."""
    unknown = re.search(r"Could not locate (?:class|function) '([^']+)'", message)
    if unknown:
        return (
            f"{path.name} uses '{unknown[1]}', which is not part of Keras: name the Python file that defines it with "
            "--custom-objects FILE.py (custom_objects= in Python)."
        )
    if "ambda" in message and "safe_mode" in message:
        return (
            f"{path.name} holds a Lambda layer, which is code inside the model file: edgelm does not run it. "
            "Load it yourself with safe_mode=False, if you trust it, and pass the model from memory."
        )
    first = next((line.strip() for line in message.splitlines() if line.strip()), "unknown reason")
    return f"Keras cannot load {path.name}: {first[:300]}"


def _import_hub_if_used(path: Path) -> None:
    """Import KerasHub, or edgelm's own layer, where the file's config names its classes: they register themselves on import."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is not a .keras file: it has no config.json.") from error
    if b"keras_hub" in config or b"keras_nlp" in config:
        import_keras_hub()
    if REGISTERED.encode() in config:
        importlib.import_module("edgelm_converters.keras_model.layer")


def _load_saved_model(path: Path) -> Source:
    tf = import_tensorflow()
    try:
        loaded = tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ModelError(f"TensorFlow cannot load the SavedModel {path}: {str(error).splitlines()[0]}") from error
    names = list(loaded.signatures)
    name = "serving_default" if "serving_default" in names else (names[0] if names else None)
    if name is None:
        raise ModelError(f"The SavedModel {path} has no signature: export it with model.export(...).")
    function = loaded.signatures[name]
    function.edgelm_keepalive = loaded  # a signature does not hold its variables
    return Source("saved_model", function, path.name, path.name, None)


def _load_handle(handle: str) -> Source:
    """Let KerasHub fetch a model: its own presets, and Hugging Face checkpoints that it can convert.

    A language model's task is asked for first, then a classifier's, then the backbone; KerasHub refuses what does not fit.
    """
    keras_hub = import_keras_hub()
    reasons = []
    for kind in ("CausalLM", "TextClassifier", "Backbone"):
        try:
            model = getattr(keras_hub.models, kind).from_preset(handle)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reasons.append(f"as {kind}: {str(error).strip().splitlines()[0][:200]}")
        except (OSError, RuntimeError) as error:
            # What the hubs' clients raise where there is no network, no such model, or no permission.
            reason = str(error).strip().splitlines()[0][:200]
            raise ModelError(
                f"{handle} cannot be fetched ({type(error).__name__}: {reason}): check the name, the network and your "
                "access, or give a local preset folder."
            ) from error
        else:
            return _with_tokenizer(_from_keras(model, handle), handle)
    raise ModelError(f"KerasHub cannot load {handle}: {'; '.join(reasons)}")


def _load_config_folder(path: Path, objects: dict[str, Any]) -> Source:
    """Load a KerasHub preset, or a `.keras` that was saved as a folder."""
    try:
        metadata = json.loads((path / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        metadata = {}
    if not any("hub" in key or "nlp" in key for key in metadata):
        return _from_keras(_load_keras(path, objects), path.name)
    keras_hub = import_keras_hub()
    try:
        # `Task.from_preset` refuses to find the class itself.
        task = path / "task.json"
        name = json.loads(task.read_text(encoding="utf-8"))["class_name"] if task.is_file() else "Backbone"
        model = getattr(keras_hub.models, name).from_preset(str(path))
    except (ValueError, TypeError, KeyError, OSError, AttributeError) as error:
        raise ModelError(_explain_load_error(path, str(error))) from error
    source = dataclasses.replace(_from_keras(model, path.name), folder=path)
    return _with_tokenizer(source, str(path)) if (path / "tokenizer.json").is_file() else source


def _with_tokenizer(source: Source, preset: str) -> Source:
    """Return a source with the preset's tokenizer, where the model does not carry one already and the preset has one."""
    if source.preprocessor is not None:
        return source
    try:
        tokenizer = import_keras_hub().tokenizers.Tokenizer.from_preset(preset)
    except (ValueError, OSError, KeyError):
        return source  # a preset of an image model, or one without assets
    return dataclasses.replace(source, preprocessor=tokenizer)


def _load_hdf5(path: Path, objects: dict[str, Any]) -> Source:
    """Load an HDF5 file that Keras 3 wrote; tell what to do with one of Keras 2."""
    import_keras()  # tells what to install where it is missing; h5py comes with it
    import h5py

    try:
        with h5py.File(path, "r") as file:
            version, config = file.attrs.get("keras_version"), file.attrs.get("model_config")
    except OSError as error:
        raise ModelError(f"{path} is not a whole HDF5 file: it may be cut short; copy or save it again.") from error
    version = version.decode() if isinstance(version, bytes) else version
    if config is None:
        raise ModelError(
            f"{path.name} holds weights only, no model: build the model in Python, load_weights('{path.name}'), "
            "then save it as .keras, or pass it from memory."
        )
    if version is None or version.startswith("2"):
        raise ModelError(
            f"{path.name} was saved by Keras {version or '2'}: open it where tf_keras (pip install tf_keras) or that Keras is "
            "installed, rebuild the model in Keras 3, copy the weights with set_weights, and save it as .keras."
        )
    return _from_keras(_load_keras(path, objects), path.name)


def _from_keras(model: Any, description: str) -> Source:
    preprocessor = getattr(model, "preprocessor", None)
    return Source("keras", model, str(model.name), description, preprocessor)


def _load_custom_objects(path: Path) -> dict[str, Any]:
    """Run a Python file and return the classes and functions that it defines, by name."""
    import_keras()
    if not path.is_file():
        raise ModelError(f"There is no Python file at {path} (custom objects).")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file (custom objects).")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # what pickles and dataclasses in the file expect
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError) as error:
        if before is None:
            del sys.modules[path.stem]
        else:
            sys.modules[path.stem] = before
        raise ModelError(f"{path} (custom objects) does not run: {type(error).__name__}: {error}") from error
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == path.stem and not name.startswith("_")
    }
