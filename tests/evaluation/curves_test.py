from matta_jax import config as c
from matta_jax.evaluation._curves import plot_curves
from matta_jax.reporting import new_figure


def test_a_panel_holds_one_kind_and_what_the_run_has(tmp_path):
    config = c.from_dict(
        {"nest": {"mix_per_step": 2}, "objective": {"divergence": "reverse_kl", "temperature": 2.0}}
    )
    metrics = [
        {
            "step": step,
            "student": 2.0,
            "ta": 1.9,
            "mix_0": 1.95,
            "gap": 0.1,
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
        }
        for step in (1, 2)
    ]
    figure = new_figure((4, 4))
    plot_curves(
        tmp_path / "curves.png",
        figure,
        config,
        [*metrics, {"step": 2, "eval/student": 2.1, "distill": 0.3}],
    )
    drawn = [
        [line.get_label() for line in axes.lines if line.get_xdata()[0] > 0] for axes in figure.axes
    ]
    assert drawn[0] == [
        "Student, training",
        "TA, training",
        "random mix 1, training",
        "Student, held out",
    ]
    assert drawn[1] == ["loss of the Student minus loss of the TA", "T² KL(Student ‖ TA), T = 2"]
    assert [axes.get_ylabel() for axes in figure.axes][2:] == ["gradient norm", "learning rate"]
