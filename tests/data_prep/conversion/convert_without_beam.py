"""Runs data_prep.convert where Beam cannot be imported."""

import runpy
import sys

if __name__ == "__main__":
    sys.modules["apache_beam"] = None
    runpy.run_module("data_prep.convert", run_name="__main__")
