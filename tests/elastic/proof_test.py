"""A model is certified: one that differs is refused."""

import jax
import numpy as np
import pytest

from matta_jax import checkpoints, extract, nesting, packages
from matta_jax.elastic import _extract, _proof
from matta_jax.errors import UserError


def test_a_model_that_differs_is_refused_and_nothing_is_left(run, scaled, tmp_path, monkeypatch):
    write = _extract.write_weights

    def altered(folder, packaging, weights, *rest, **more):
        return write(folder, packaging, scaled(weights), *rest, **more)

    monkeypatch.setattr(_extract, "write_weights", altered)
    with pytest.raises(UserError, match="differs from the TA's slice"):
        extract(str(run[1]), ["student"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "path", ["embed/positions", "blocks/1/attention/w_qkv", "blocks/2/mlp/w_out", "norm/bias"]
)
def test_one_altered_entry_is_found(run, family, path):
    """Wherever it stands; the proof reads what was written, and goes by what was read."""
    source = checkpoints.open_source(str(run[1]))
    spec = "num_heads=3,2,3"
    sub_model = nesting.parse_spec(spec, source.nest)
    written = packages.open_model(family[spec].path).stored
    params = source.read(sub_model)
    assert _proof.prove(source.plan, params, written, sub_model)[0] == 0

    flat = nesting.flatten(params)
    flat[path] = np.array(flat[path])
    flat[path].flat[0] += 0.1
    difference, _ = _proof.prove(source.plan, nesting.unflatten(flat), written, sub_model)
    assert difference > 1e-3


def test_the_proof_is_made_on_the_cpu_whatever_jax_prefers(run, family, monkeypatch):
    _, workdir, _ = run
    source = checkpoints.open_source(workdir)
    params = source.read(source.nest.student)
    written = packages.open_model(family["student"].path).stored
    used = set()
    note = _proof._Proof._note

    def watched(self, a, b):
        used.update(a.devices() | b.devices())
        note(self, a, b)

    monkeypatch.setattr(_proof._Proof, "_note", watched)
    # Another device stands for an accelerator.
    host, preferred = jax.local_devices(backend="cpu")[:2]
    with jax.default_device(preferred):
        _proof.prove(source.plan, params, written, source.nest.student)
    assert used == {host}


def test_a_jax_without_the_cpu_is_one_line(run, family, monkeypatch):
    def refuse(**kwargs):
        raise RuntimeError("Unknown backend cpu")

    _, workdir, _ = run
    source = checkpoints.open_source(workdir)
    written = packages.open_model(family["student"].path).stored
    monkeypatch.setattr(jax, "local_devices", refuse)
    with pytest.raises(UserError, match="JAX_PLATFORMS='cpu' leaves out the CPU"):
        _proof.prove(source.plan, None, written, source.nest.student)
