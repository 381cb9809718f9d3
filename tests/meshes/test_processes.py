"""Training in two processes with four devices each equals training in one process with eight. The processes communicate over loopback."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.support.paths import ROOT


def train(out, processes):
    """Return the trained parameters by mode, and the initial parameters."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Each process sets its own number of devices.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, "-m", "tests.support.training", str(out), str(processes)]
    children = [
        subprocess.Popen([*command, str(i), address], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(processes)
    ]
    try:
        errors = [child.communicate(timeout=240)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * processes, "\n".join(e[-3000:] for e in errors)
    with np.load(out) as saved:
        return dict(saved)


@pytest.mark.nightly
def test_two_processes_train_like_one(tmp_path):
    one, two = (train(tmp_path / f"{n}.npz", n) for n in (1, 2))
    start = one.pop("start")
    two.pop("start")
    assert one.keys() == two.keys() and len(one) == 5
    for mode, parameters in one.items():
        assert np.max(np.abs(parameters - start)) > 0.05
        np.testing.assert_allclose(two[mode], parameters, rtol=1e-6, atol=1e-7, err_msg=mode)
        np.testing.assert_allclose(parameters, one["auto"], rtol=1e-5, atol=1e-6, err_msg=mode)
