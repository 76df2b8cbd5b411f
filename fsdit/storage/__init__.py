"""Where files are: on a local disk or in a bucket, and the few things in which these differ."""

from fsdit.storage.copies import copy, folder_of, is_there, local_copy, local_file
from fsdit.storage.outputs import Mirror, changed_folder, mirrored, new_folder, output_file
from fsdit.storage.places import (
    AnyPath,
    PathLike,
    absolute,
    check_place,
    is_remote,
    place,
    size_of,
    split,
)
from fsdit.storage.trouble import is_out_of_reach, is_unavailable

__all__ = [
    "AnyPath",
    "Mirror",
    "PathLike",
    "absolute",
    "changed_folder",
    "check_place",
    "copy",
    "folder_of",
    "is_out_of_reach",
    "is_remote",
    "is_there",
    "is_unavailable",
    "local_copy",
    "local_file",
    "mirrored",
    "new_folder",
    "output_file",
    "place",
    "size_of",
    "split",
]
