"""The command of the experiments."""

import json

import pytest

from matta_jax.errors import UserError


@pytest.fixture
def experiments(load):
    """Two experiments that train nothing: one of another's runs, one with runs of its own; and
    the folders that they are called with.
    """
    folders = {}

    class Shared(load("lab.protocol").Experiment):
        name = "shared"
        runs_of = "owner"

        def write_data(self, data, workdir):
            folders["data"] = workdir

        def config(self, data, workdir):
            folders["config"] = workdir

        def measure(self, lab):
            folders["shared"] = lab.workdir
            return {"rows": []}

        def show(self, results, folder):
            return rf"\1 of {sorted(results)}"

    class Separate(Shared):
        name = "separate"
        runs_of = None

        def measure(self, lab):
            folders["separate"] = lab.workdir
            return {}

    return Shared(), Separate(), folders


def test_runs_of_another_config_have_a_folder_of_their_own(load, experiments, tmp_path):
    """Else runs of one name would meet: a run's name is its overrides."""
    run = load("run")
    shared, separate, folders = experiments
    for experiment, folder in ((shared, "owner"), (separate, "separate")):
        (tmp_path / experiment.name).mkdir()
        run.measure(experiment, tmp_path, tmp_path / "runs", folder=tmp_path)
        assert (tmp_path / experiment.name / "results.json").is_file()
        expected = tmp_path / "runs" / folder
        assert folders["data"] == folders["config"] == folders[experiment.name] == expected


def test_the_table_goes_into_the_readme(load, experiments, tmp_path):
    run = load("run")
    shared, *_ = experiments
    home = tmp_path / "shared"
    home.mkdir()
    with pytest.raises(UserError, match="results.json is missing; name --data_dir"):
        run.show(shared, folder=tmp_path)

    (home / "results.json").write_text(json.dumps({"rows": []}))
    before, after = "# Shared\n\n<!-- results -->\n", "<!-- /results -->\n\nEnd.\n"
    (home / "README.md").write_text(f"{before}\nold\n\n{after}")
    table = run.show(shared, folder=tmp_path)
    assert table == r"\1 of ['rows']"
    assert (home / "README.md").read_text() == f"{before}\n{table}\n\n{after}"
