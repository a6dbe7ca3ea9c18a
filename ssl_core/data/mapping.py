"""Read-only memory maps that hold no file descriptor.

Python's own `mmap` keeps one per map, and a corpus of some thousand shards would exceed the usual limit of 1,024.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value


def map_file(path: Path) -> Bytes:
    """The bytes of a file, mapped read-only; unmapped when the last view is gone. Raises OSError with the path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        address: int = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)
    block = (ctypes.c_uint8 * size).from_address(address)
    unmap = weakref.finalize(block, _libc.munmap, address, size)
    unmap.atexit = False  # views may be read until the process ends; then the kernel unmaps the rest
    view: Bytes = np.ctypeslib.as_array(block)
    view.flags.writeable = False
    return view


def will_need(mapped: Bytes, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> None:
    """Tells the kernel to start reading these ranges of a map; returns at once, and a failure does no harm."""
    base = mapped.ctypes.data
    firsts = (starts + base) // mmap.PAGESIZE * mmap.PAGESIZE
    for first, size in zip(firsts.tolist(), (starts + base + lengths - firsts).tolist()):
        _libc.madvise(first, size, mmap.MADV_WILLNEED)
