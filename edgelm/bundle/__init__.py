"""The bundle: one folder, or one zip file, that holds everything a device needs to run a model."""

from edgelm.bundle.golden import GoldenCase, write_golden
from edgelm.bundle.manifest import (
    FORMAT,
    SCHEMA_VERSION,
    Accuracy,
    Artifact,
    CacheRecord,
    CalibrationRecord,
    CompressionStep,
    FileRecord,
    GateRecord,
    GateStep,
    GenerationRecord,
    Manifest,
    ModelRecord,
    Parity,
    Perplexity,
    Port,
    RuntimeRecord,
    Signature,
    TokenizerRecord,
)
from edgelm.bundle.reader import Bundle, open_bundle
from edgelm.bundle.writer import BundleWriter, pack

__all__ = [
    "FORMAT",
    "SCHEMA_VERSION",
    "Accuracy",
    "Artifact",
    "Bundle",
    "BundleWriter",
    "CacheRecord",
    "CalibrationRecord",
    "CompressionStep",
    "FileRecord",
    "GateRecord",
    "GateStep",
    "GenerationRecord",
    "GoldenCase",
    "Manifest",
    "ModelRecord",
    "Parity",
    "Perplexity",
    "Port",
    "RuntimeRecord",
    "Signature",
    "TokenizerRecord",
    "open_bundle",
    "pack",
    "write_golden",
]
