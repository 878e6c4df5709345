"""The environments that there are, with versions that were seen to work together."""

from __future__ import annotations

from dataclasses import dataclass

from edgec.errors import CompileError


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A converter stack that lives apart.

    Attributes:
        name: What `edgec doctor --install` takes.
        purpose: What it is for, in words.
        pythons: Versions of Python that will do, best first: ``3.12``.
        requirements: What pip is given; exact versions.
        imports: What must be importable once it is installed.
        size_mb: About how large it is, in 1e6 bytes.
        pip_options: What pip is told besides.
    """

    name: str
    purpose: str
    pythons: tuple[str, ...]
    requirements: tuple[str, ...]
    imports: tuple[str, ...]
    size_mb: int
    pip_options: tuple[str, ...] = ()


ENVIRONMENTS: dict[str, Environment] = {
    e.name: e
    for e in (
        Environment(
            name="tf2onnx",
            purpose="reads TFLite, Keras and SavedModel (TensorFlow, tf2onnx)",
            pythons=("3.11", "3.12", "3.13"),
            requirements=(
                "tf2onnx==1.17.0",
                "tensorflow-cpu==2.21.0",
                "keras==3.15.1",
                "h5py==3.14.0",
                "onnx==1.23.2",
                "numpy==2.4.6",
                "protobuf==7.36.2",
                "flatbuffers==25.12.19",
                "ml-dtypes==0.6.0",
            ),
            imports=("tensorflow", "tf2onnx"),
            size_mb=1600,
        ),
        Environment(
            name="torch",
            purpose="reads programs of torch.export (PyTorch, its ONNX exporter)",
            pythons=("3.11", "3.12", "3.13"),
            # The local version: without it pip takes the build for CUDA, which is five times as large.
            requirements=(
                "torch==2.13.0+cpu",
                "onnxscript==0.7.2",
                "onnx==1.23.2",
                "onnx-ir==1.1.0",
                "numpy==2.4.6",
            ),
            imports=("torch", "onnxscript"),
            size_mb=1000,
            pip_options=("--extra-index-url", "https://download.pytorch.org/whl/cpu", "--retries", "1"),
        ),
        Environment(
            name="onnx2tf",
            purpose="writes float TFLite for operators that edgec's own writer lacks (onnx2tf)",
            pythons=("3.12", "3.13"),
            requirements=("onnx2tf==2.6.9",),  # which pins all that it needs, to exact versions
            imports=("onnx2tf",),
            size_mb=700,
        ),
    )
}


def get_environment(name: str) -> Environment:
    """Return an environment by its name.

    Raises:
        CompileError: There is none of this name.
    """
    try:
        return ENVIRONMENTS[name]
    except KeyError:
        raise CompileError(
            f"there is no environment {name!r}: there are {', '.join(sorted(ENVIRONMENTS))}"
        ) from None
