"""Builds the wheel of an editable install of the current folder: python FILE OUTPUT_DIR."""

import sys

from setuptools import build_meta

print(build_meta.build_editable(sys.argv[1]))
