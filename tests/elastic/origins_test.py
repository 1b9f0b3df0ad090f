"""The manifest tells where each tensor came from."""

import json


def test_the_manifest_tells_parent_step_spec_slices_and_hashes(run, family):
    spec = "layers=0,2;d_model=16;num_heads=2;d_ff=16,48"
    manifest = json.loads((family[spec].path / "manifest.json").read_text())
    assert manifest["parent"]["step"] == 6
    assert manifest["parent"]["checkpoint"] == str(run[1] / "checkpoints")
    assert manifest["spec"] == spec
    about = manifest["tensors"]["blocks/1/mlp/w_in"]
    assert about["parent"] == "blocks/0/mlp/w_in"
    assert about["kept"] == {"layers": [2], "d_ff_granules": 3, "d_model": 16, "d_ff": 16}
    assert about["axes"] == ["layers", "d_ff_granules", "d_model", "d_ff"]
    assert about["shape"] == [1, 3, 16, 16]
    assert all(
        about["fingerprint"] == about["parent_fingerprint"]
        for about in manifest["tensors"].values()
    )
    assert manifest["certificate"] == {"max_difference": 0, "batch": [2, 32], "backend": "cpu"}


def test_heads_of_a_layer_are_told_by_its_run(family):
    """Each run of layers of equal sizes keeps its own number of heads."""
    manifest = json.loads((family["num_heads=3,2,3"].path / "manifest.json").read_text())
    kept = [manifest["tensors"][f"blocks/{i}/attention/w_out"]["kept"] for i in range(3)]
    assert [part["layers"] for part in kept] == [[0], [1], [2]]
    assert [part["heads_granules"] * part["heads"] for part in kept] == [3, 2, 3]
