"""A decoder that notes on which node it decodes: ``decode.backend=witness:WitnessReader``.

It adds the process id of its node's raylet, which Ray tells all workers, to the file that ``$WITNESS`` names.
"""

import os

from clips.decode import DecodeConfig
from clips.decode.pyav import PyavReader

BACKEND = "witness:WitnessReader"


class WitnessReader(PyavReader):
    def __init__(
        self, source: str | bytes, *, config: DecodeConfig, size: int | None = None
    ) -> None:
        with open(os.environ["WITNESS"], "a") as file:
            file.write(f"{os.environ['RAY_RAYLET_PID']}\n")
        super().__init__(source, config=config, size=size)
