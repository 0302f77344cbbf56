"""From a teacher, a student and data to a trained student."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.errors import ModelError, RecipeError
from edgelm_converters.data import Dataset, read_dataset
from edgelm_converters.distill.course import Course, make_course
from edgelm_converters.distill.kinds import Kind, kind_of
from edgelm_converters.distill.lessons import inputs_of
from edgelm_converters.distill.measure import Measured, measure
from edgelm_converters.distill.record import Distillation
from edgelm_converters.distill.settings import Training
from edgelm_converters.distill.student import cut_student, layers_of_teacher, read_shape
from edgelm_converters.distill.targets import keep_targets
from edgelm_converters.distill.teacher import Teacher, read_teacher, unread_teacher, without_activation
from edgelm_converters.families import recognise
from edgelm_converters.reference import make_reference
from edgelm_converters.run_labels import label_names
from edgelm_converters.source import Source, load_source
from edgelm_converters.spec import Layer, Stack, TransformerSpec, parameters
from edgelm_converters.tokens import find_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Distillation", "distil", "distil_spec"]

Progress = Callable[[str, int, int], None]

_POINTS = 200  # of a loss curve


def distil(
    teacher: object,
    student: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    labels: str | Path | Sequence[str] | None = None,
    validation: str | Path | None = None,
    sequence_length: int | None = None,
    training: Training | None = None,
    custom_objects: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda step, done, total: None,
) -> Distillation:
    """Train a student, and write it as a ``.keras`` file with its tokenizer; a ``.json`` beside it says how it went.

    While it runs, ``OUTPUT.checkpoint/`` holds the last checkpoint.

    Args:
        teacher: What `convert` takes as a model. One that is not recognised teaches by its answers alone.
        student: The path of a model, such as a pruned one; or a shape to cut out of the teacher, such as
            ``layers=2,width=128,heads=4,ffn=512``.
        data: What it is taught with (csv, tsv, jsonl, txt, npz).
        output: The file to write.
        tokenizer: As `convert` takes it; without, the one that the teacher or the student carries.
        labels: Names of the classes in the order of the outputs, or a file of them, where the data name them.
        validation: Data that teacher and student are measured on.
        sequence_length: The most tokens of a sample; of a language model, of each sequence.
        training: The settings.
        custom_objects: A Python file that defines the teacher's own layers. It is run.
        resume: Go on from the checkpoint.
        force: Replace a file that exists.
        stop: Asked after each step; True writes a checkpoint and raises KeyboardInterrupt.
        progress: Called with the step's description, and how much of it is done.

    Raises:
        EdgelmError: Something does not fit, and the message says what to do.
        KeyboardInterrupt: `stop` said so.
    """
    from edgelm_converters.distill.saving import check_output, save_student
    from edgelm_converters.keras_model import build_keras_model

    training = training or Training()
    training.check()
    path = Path(output)
    check_output(path, force=force)
    progress("Reading the models", 0, 1)
    source = load_source(teacher, custom_objects=None if custom_objects is None else Path(custom_objects))
    reference = make_reference(source)
    spec = recognise(source.model, None).spec if source.kind == "keras" else None
    pupil, own = _student(student, spec)
    training.rounding(pupil)
    tokens = find_tokens(tokenizer, source, spec)
    if tokens.tokenizer is None and own is not None:
        tokens = find_tokens(None, own, pupil)
    course = make_course(
        spec, reference, pupil, tokens,
        read_dataset(Path(data)), None if validation is None else read_dataset(Path(validation)),
        names=label_names(labels), asked=sequence_length,
    )  # fmt: skip
    progress("Reading the models", 1, 1)
    taught, record = _run(course, training, checkpoint=checkpoint_of(path), resume=resume, stop=stop, progress=progress)
    carried = None if tokens.tokenizer is None else tokens.tokenizer.to_str()
    save_student(build_keras_model(taught, tokenizer=carried), record, path, checkpoint_of(path))
    return record


def checkpoint_of(output: Path) -> Path:
    """Return the folder of the checkpoints of a training that writes `output`."""
    return output.with_name(f"{output.name}.checkpoint")


def distil_spec(
    teacher: TransformerSpec,
    student: TransformerSpec,
    data: Dataset,
    tokenizer: Tokenizer | None,
    *,
    labels: Sequence[str] | None = None,
    validation: Dataset | None = None,
    sequence_length: int | None = None,
    training: Training | None = None,
    progress: Progress = lambda step, done, total: None,
) -> tuple[TransformerSpec, Distillation]:
    """Train a student, and return it with what was done; nothing is written.

    Args:
        teacher: The model to answer like.
        student: Where it starts, such as the teacher after pruning.
        data: What it is taught with.
        tokenizer: Of both; None where the data are arrays.
        labels: Names of the classes, where the data name them.
        validation: Data that both are measured on.
        sequence_length: The most tokens of a sample.
        training: The settings.
        progress: Called with the step's description, and how much of it is done.

    Raises:
        EdgelmError: Something does not fit, and the message says what to do.
    """
    from edgelm_converters.keras_model import build_keras_model

    training = training or Training()
    training.check()
    training.rounding(student)
    source = load_source(build_keras_model(teacher))
    tokens = find_tokens(tokenizer, source, teacher)
    course = make_course(
        teacher, make_reference(source), student, tokens, data, validation, names=labels, asked=sequence_length
    )
    return _run(course, training, progress=progress)


def _student(student: str | Path, teacher: TransformerSpec | None) -> tuple[TransformerSpec, Source | None]:
    """Return the student, and the model that it was read from where it was."""
    if isinstance(student, str) and "=" in student:
        if teacher is None:
            raise RecipeError(
                "No student can be cut out of a teacher that is not recognised: give a .keras file with --student."
            )
        return cut_student(teacher, read_shape(student)), None
    own = load_source(student)
    recognition = recognise(own.model, None)
    if recognition.spec is None:
        raise ModelError(
            f"The student {own.description} is not recognised, so it cannot be taught: {recognition.reason}."
        )
    return recognition.spec, own


def _run(
    course: Course,
    training: Training,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress,
) -> tuple[TransformerSpec, Distillation]:
    from edgelm_converters.distill.teach import compile_pupil, teach, thinned
    from edgelm_converters.distill.watcher import Pupil, relation_heads

    student, lessons, kind = course.student, course.lessons, kind_of(course.student)
    watched: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    if course.teacher is not None and training.hidden:
        few, many = len(_layers(student)), len(_layers(course.teacher))
        watched = tuple(layers_of_teacher(few, many)) if few <= many else tuple(range(many))
        widths = (course.teacher.width,) * len(watched)
    if course.teacher is not None and training.relations:
        pair = [_layers(spec)[-1].attention for spec in (course.teacher, student)]
        kernels = [[part.kernel.shape[1] for part in (one.query, one.key, one.value)] for one in pair]
        heads = tuple(relation_heads(wide, narrow, pair[0].heads) for wide, narrow in zip(*kernels, strict=True))
    teacher = _teacher(course, kind, watched, training)
    plain = without_activation(student)
    pupil = Pupil(plain, kind, widths, heads, training)
    compile_pupil(pupil, training, lessons.batches(training.batch_size) * training.epochs)
    mine = Teacher(student, (), lambda batch: {"answer": pupil.ask(inputs_of(plain, batch))})
    before = _measure(course, teacher, mine, kind, training)
    with tempfile.TemporaryDirectory(prefix="edgelm-teacher-") as folder:
        targets = keep_targets(
            teacher, lessons, Path(folder), batch_size=training.batch_size,
            tick=lambda done, total: progress("Asking the teacher", done, total),
        )  # fmt: skip
        taught = teach(
            pupil, student, targets, lessons, training, checkpoint=checkpoint, resume=resume, stop=stop,
            tick=lambda done, total: progress("Teaching the student", done, total),
        )  # fmt: skip
    output = dataclasses.replace(taught.spec.head, output=student.head.output)
    spec = dataclasses.replace(taught.spec, head=output)
    record = Distillation(
        data=lessons.name,
        samples=len(lessons),
        steps=len(taught.losses),
        seconds=taught.seconds,
        teacher_parameters=None if course.teacher is None else _count(course.teacher),
        student_parameters=_count(student),
        before=before,
        after=_measure(course, teacher, mine, kind, training),
        losses=thinned(taught.losses, _POINTS),
        training=training,
        notes=course.notes,
    )
    return spec, record


def _teacher(course: Course, kind: Kind, watched: tuple[int, ...], training: Training) -> Teacher:
    if course.teacher is not None:
        return read_teacher(course.teacher, watched, relations=training.relations > 0)
    if training.watches:
        raise RecipeError(
            "The teacher is not recognised, so only its answers can be taught: leave --hidden and --relations at 0."
        )
    return unread_teacher(course.reference, kind)


def _measure(course: Course, teacher: Teacher, student: Teacher, kind: Kind, training: Training) -> Measured | None:
    if course.validation is None:
        return None
    language = course.student.head.tokens is not None
    return measure(teacher, student, course.validation, kind, language=language, batch_size=training.batch_size)


def _layers(spec: TransformerSpec) -> tuple[Layer, ...]:
    stack: Stack = spec.decoder if spec.decoder.layers else spec.encoder
    return stack.layers


def _count(spec: TransformerSpec) -> int:
    return sum(array.size for _, array in parameters(spec))
