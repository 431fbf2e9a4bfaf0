"""`python -m polarvault`; also the file that a restore_command runs by its path.

By path the package need not be installed for the interpreter's -I and -S, with which it starts faster.
"""

import os
import sys

if not __package__:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == "__main__":
    from polarvault.cli.entry import main

    main()
