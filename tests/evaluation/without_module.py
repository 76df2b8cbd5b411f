"""Check Inception weights where one module cannot be imported, and print the error.

python -m tests.evaluation.without_module MODULE WEIGHTS
"""

import sys
from pathlib import Path

from fsdit.errors import ConfigError
from fsdit.evaluation.critics import inception

assert not {"torch", "torch_fidelity", "torchvision"} & sys.modules.keys()

if __name__ == "__main__":
    sys.modules[sys.argv[1]] = None
    try:
        inception.check_inception(Path(sys.argv[2]))
    except ConfigError as error:
        print(error)
