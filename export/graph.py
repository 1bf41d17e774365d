"""An ONNX graph in the making."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

MICROSOFT: Final = "com.microsoft"
INT64_MAX: Final = np.iinfo(np.int64).max
IR_VERSIONS: Final = {18: 8, 24: 12}  # the first that came with each opset, which the most runtimes read
INLINE_BYTES: Final = 1024  # larger constants go to the data file
PAGE_BYTES: Final = 4096  # where tensors may start, so that a runtime can map them

Dim = int | str


class Graph:
    """Nodes and constants in the order in which they come; nothing is kept of a large constant but where it lies.

    `path.data` takes the large constants as they come, so a model of any size needs the memory of its largest tensor.
    Used as a context: `path` is written at the end, and not after an error.
    """

    def __init__(self, path: Path, opset: int) -> None:
        self.path, self.opset = path, opset
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._data_path = path.with_name(f"{path.name}.data")

    def __enter__(self) -> "Graph":
        self._data = self._data_path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._data.close()
        if kind is None:
            if not self._data_path.stat().st_size:
                self._data_path.unlink()
            self._save()

    def _save(self) -> None:
        graph = helper.make_graph(self._nodes, self.path.stem, self._inputs, self._outputs, self._constants)
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSIONS[self.opset])
        model.producer_name = "qcheck"
        onnx.save(model, self.path)

    def input(self, name: str, dtype: int, shape: Sequence[Dim]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[Dim]) -> str:
        """Declares that the value of this name is an output."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def node(self, op: str, inputs: Sequence[str], *, output: str = "", domain: str = "", **attributes: Any) -> str:
        """One operator with one output, named `output` or by its number; the name of the output."""
        return self.nodes(op, inputs, (output or f"{op}_{len(self._nodes)}",), domain=domain, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str] | int, *, domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """One operator with several outputs: their names, an empty one for an output that is not wanted, or how
        many."""
        number = len(self._nodes)
        if isinstance(outputs, int):
            outputs = [f"{op}_{number}.{index}" for index in range(outputs)]
        made = NodeProto(op_type=op, name=f"{op}_{number}", domain=domain, input=inputs, output=outputs)
        # Sorted, because the bytes of a graph must not depend on how a call was written.
        made.attribute.extend(helper.make_attribute(key, attributes[key]) for key in sorted(attributes))
        self._nodes.append(made)
        return tuple(outputs)

    def constant(self, values: NDArray[Any], name: str = "") -> str:
        """An initialiser. Small ones without a name that are equal are one."""
        data = np.asarray(values, order="C")
        known = (data.dtype.str, data.shape, data.tobytes()) if not name and data.nbytes <= INLINE_BYTES else None
        if known in self._known:
            return self._known[known]
        name = name or f"constant_{len(self._constants)}"
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(data.dtype), dims=data.shape)
        if data.nbytes <= INLINE_BYTES:
            tensor.raw_data = data.tobytes()
        else:
            self._store(tensor, data)
        self._constants.append(tensor)
        if known is not None:
            self._known[known] = name
        return name

    def _store(self, tensor: TensorProto, data: NDArray[Any]) -> None:
        self._data.write(bytes(-self._data.tell() % PAGE_BYTES))
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self._data_path.name, "offset": self._data.tell(), "length": data.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        data.tofile(self._data)

    # What is written often.

    def ints(self, *values: int) -> str:
        """A constant (len(values),) int64."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float, dtype: int = TensorProto.FLOAT) -> str:
        """A constant without dimensions."""
        return self.constant(np.array(value, helper.tensor_dtype_to_np_dtype(dtype)))

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps a dimension, -1 is what is left."""
        return self.node("Reshape", (x, self.ints(*shape)))

    def cast(self, x: str, dtype: int) -> str:
        return self.node("Cast", (x,), to=dtype)

    def slice(self, x: str, axis: int, first: int, end: int = INT64_MAX) -> str:
        return self.node("Slice", (x, self.ints(first), self.ints(end), self.ints(axis)))

    def concat(self, parts: Sequence[str], axis: int) -> str:
        return self.node("Concat", parts, axis=axis)

    def transpose(self, x: str, *order: int) -> str:
        return self.node("Transpose", (x,), perm=order)

    def dim(self, x: str, axis: int) -> str:
        """(1,) int64: how long an axis is."""
        return self.node("Shape", (x,), start=axis, end=axis + 1)
