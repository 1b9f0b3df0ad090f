"""What the import of the package does, and leaves alone."""

import subprocess
import sys


def test_import_loads_no_jax_and_changes_no_variable():
    code = "import os, sys; before = dict(os.environ); import matta_jax"
    code += "; assert dict(os.environ) == before"
    code += "; assert 'jax' not in sys.modules and 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
