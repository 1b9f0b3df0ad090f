"""What the import of the package does, and leaves alone."""

import os
import subprocess
import sys

import pytest

SIMULATED = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


@pytest.mark.parametrize(
    ("given", "threads"),
    [({}, None), (SIMULATED, "16 or more"), (SIMULATED | {"PJRT_NPROC": "3"}, "3")],
)
def test_import_loads_no_jax_and_gives_simulated_devices_threads(given, threads):
    code = "import os, sys; before = dict(os.environ); import matta_jax"
    code += "; after = dict(os.environ); print(after.pop('PJRT_NPROC', ''))"
    code += "; before.pop('PJRT_NPROC', ''); assert after == before"
    code += "; assert 'jax' not in sys.modules and 'scipy' not in sys.modules"
    names = ("PJRT_NPROC", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, check=True
    )
    shown = result.stdout.decode().strip()
    if threads is None:
        assert shown == ""
    else:
        assert shown == threads or (threads == "16 or more" and int(shown) >= 16)
