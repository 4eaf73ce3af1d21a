"""A decoder that does to its process what files do to real ones, told by a word in the file's name.

As ``decode.backend=hostile:HostileReader``, it is PyAV for all other files:

* ``segfault``: reads address 0.
* ``hang``: never returns, in native code that holds Python's lock.
* ``hungry``: asks for 64 GiB.
* ``unlucky``: is killed while it reads the file for the first time (remembered in a file beside it).
"""

import ctypes
import os
import signal
from pathlib import Path

from clips.decode import DecodeConfig, DecodeError
from clips.decode.failures import decode_errors
from clips.decode.pyav import PyavReader

BACKEND = "hostile:HostileReader"


class HostileReader(PyavReader):
    def __init__(
        self, source: str | bytes, *, config: DecodeConfig, size: int | None = None
    ) -> None:
        name = Path(source).name if isinstance(source, str) else ""
        if "segfault" in name:
            ctypes.string_at(0)
        if "hang" in name:
            ctypes.PyDLL(None).sleep(3600)
        if "hungry" in name:
            with decode_errors("opening"):
                bytearray(64 << 30)
            raise DecodeError("corrupt", "nothing bounded its memory")
        if "unlucky" in name and not (mark := Path(f"{source}.met")).exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(source, config=config, size=size)
