"""A CUDA driver made of main memory: what ``libcuda.so.1`` exports, as far as edgec calls it.

It is strict where the real one is treacherous: it wants ctypes of the right width, a context that is
current in the calling thread, and memory that it gave out. Work on a stream is done only when the stream
is waited for, as the real one may put it off until then.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

_OK, _INVALID_VALUE, _OUT_OF_MEMORY, _NOT_INITIALIZED, _INVALID_CONTEXT = 0, 1, 2, 3, 201
_CONTEXT = 0xC0FFEE


class FakeDriver:
    """The functions of a driver with one GPU.

    Attributes:
        memory: What was given out and not given back: the bytes, by address.
        streams: Work that waits, by stream.
        retained: How often the primary context is held.
    """

    def __init__(
        self, *, capability: tuple[int, int] = (8, 7), cuda: int = 12060, free_bytes: int = 1 << 32
    ) -> None:
        self.capability, self.cuda, self.free_bytes = capability, cuda, free_bytes
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.retained = 0
        self.started = False
        self._current = threading.local()
        self._next_stream = 1

    def is_clean(self) -> bool:
        """Whether everything was given back."""
        return not self.memory and not self.streams and self.retained == 0

    def has_context(self) -> bool:
        """Whether the calling thread may use the GPU."""
        return self.retained > 0 and getattr(self._current, "context", None) == _CONTEXT

    def is_memory(self, address: int, nbytes: int) -> bool:
        """Whether that many bytes at the address were given out."""
        return any(a <= address and address + nbytes <= a + len(m) for a, m in self.memory.items())

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        self.started = True
        return _OK

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return _OK if self.started else _NOT_INITIALIZED

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return _OK if self.started and ordinal == 0 else _INVALID_VALUE

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.cuda
        return _OK

    def cuDeviceGetAttribute(self, value: Any, attribute: ctypes.c_int, device: int) -> int:
        assert device == 0
        value._obj.value = {75: self.capability[0], 76: self.capability[1]}[attribute.value]
        return _OK

    def cuDeviceGetName(self, name: Any, size: ctypes.c_int, device: int) -> int:
        assert device == 0
        assert size.value <= len(name)
        name.value = b"Fake Orin"
        return _OK

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:
        assert device == 0
        self.retained += 1
        context._obj.value = _CONTEXT
        return _OK

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:
        assert device == 0
        self.retained -= 1
        return _OK if self.retained >= 0 else _INVALID_CONTEXT

    def cuCtxSetCurrent(self, context: ctypes.c_void_p) -> int:
        self._current.context = context.value
        return _OK if context.value == _CONTEXT else _INVALID_VALUE

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = self.free_bytes, 1 << 33
        return self._checked()

    def cuMemAlloc_v2(self, address: Any, size: ctypes.c_size_t) -> int:
        if not 0 < size.value <= self.free_bytes:
            return _OUT_OF_MEMORY if size.value else _INVALID_VALUE
        memory = (ctypes.c_ubyte * size.value)()
        address._obj.value = ctypes.addressof(memory)
        self.memory[ctypes.addressof(memory)] = memory
        return self._checked()

    def cuMemFree_v2(self, address: ctypes.c_uint64) -> int:
        _wide(address)
        return self._checked() if self.memory.pop(address.value, None) is not None else _INVALID_VALUE

    def cuStreamCreate(self, stream: Any, flags: ctypes.c_uint) -> int:
        assert flags.value == 0
        stream._obj.value = self._next_stream
        self.streams[self._next_stream] = []
        self._next_stream += 1
        return self._checked()

    def cuStreamDestroy_v2(self, stream: ctypes.c_void_p) -> int:
        _wide(stream)
        return self._checked() if self.streams.pop(stream.value or 0, None) is not None else _INVALID_VALUE

    def cuMemcpyHtoDAsync_v2(
        self,
        address: ctypes.c_uint64,
        host: ctypes.c_void_p,
        size: ctypes.c_size_t,
        stream: ctypes.c_void_p,
    ) -> int:
        return self._copy(address.value, address.value, host.value or 0, size.value, stream)

    def cuMemcpyDtoHAsync_v2(
        self,
        host: ctypes.c_void_p,
        address: ctypes.c_uint64,
        size: ctypes.c_size_t,
        stream: ctypes.c_void_p,
    ) -> int:
        return self._copy(address.value, host.value or 0, address.value, size.value, stream)

    def cuStreamSynchronize(self, stream: ctypes.c_void_p) -> int:
        _wide(stream)
        work = self.streams[stream.value or 0]
        while work:
            work.pop(0)()
        return self._checked()

    def _copy(self, on_gpu: int, to: int, source: int, size: int, stream: ctypes.c_void_p) -> int:
        _wide(stream)
        if not self.is_memory(on_gpu, size):
            return _INVALID_VALUE

        def copy() -> None:
            ctypes.memmove(to, source, size)

        self.streams[stream.value or 0].append(copy)
        return self._checked()

    def _checked(self) -> int:
        return _OK if self.has_context() else _INVALID_CONTEXT


def _wide(value: Any) -> None:
    # A plain int would be passed as 32 bits.
    assert ctypes.sizeof(value) == 8, f"{value!r} would be cut short"
