"""Names that the Open Inference Protocol has for what edgec has names for, too; of clients and servers."""

from __future__ import annotations

# Numpy's name of what a model declares, and the protocol's.
DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "object": "BYTES",
}  # fmt: skip
HEADER_SIZE = "Inference-Header-Content-Length"
# Headers of edgec's own: milliseconds in which an answer is of use, and which model is to give it.
DEADLINE, DIGEST, SOURCE = "Edgec-Deadline-Ms", "Edgec-Model-Digest", "Edgec-Source-Digest"
