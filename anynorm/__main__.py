"""`anynorm` and `python -m anynorm`: the command line as a process."""

import logging
import os
import sys
from typing import NoReturn

from anynorm.cli import main


def run() -> NoReturn:
    """Run the command line and end the process."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # which tells of tasks that Zarr leaves after an error
    status = main()
    if status == 130:  # a thread may be left that waits for input, for which Python would wait in turn
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
