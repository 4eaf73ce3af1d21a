"""clips: videos in, clips out.

* Ingest: find_videos, examine -> Manifest, write_manifest, read_manifest. On Ray: clips.pipeline.
* Training: Manifest (or Mixture of several) .local_table(cache_dir) -> its .video(row) -> Video;
  load_clips(video, ClipConfig, seeds=...) -> uint8 [R, T, S, S, 3]; load_views for evaluation.
* Below: clips.decode (open_video -> Reader), sampling, augment, storage, synthetic.

`import clips` loads neither Ray nor torch nor a decoder, so that a registered model can carry it.
"""

from clips.decode import HARMFUL, DecodeConfig, DecodeError, Reader, open_video
from clips.ingest import Entry, Probe, Rejected, examine, probe
from clips.load import ClipConfig, load_clips, load_views
from clips.local_table import LocalTable, Video
from clips.manifest import Manifest, held_out, write_manifest
from clips.manifest_file import read_manifest
from clips.mixture import MixedTable, Mixture
from clips.sources import Found, find_videos
from clips.storage import StorageError

__all__ = [
    "HARMFUL",
    "ClipConfig",
    "DecodeConfig",
    "DecodeError",
    "Entry",
    "Found",
    "LocalTable",
    "Manifest",
    "MixedTable",
    "Mixture",
    "Probe",
    "Reader",
    "Rejected",
    "StorageError",
    "Video",
    "examine",
    "find_videos",
    "held_out",
    "load_clips",
    "load_views",
    "open_video",
    "probe",
    "read_manifest",
    "write_manifest",
]
