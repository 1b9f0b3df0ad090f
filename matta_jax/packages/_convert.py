"""A model of ours is written again, in another format or type."""

from collections.abc import Sequence

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.packages._folder import check_target, new_folder
from matta_jax.packages._formats import check_format
from matta_jax.packages._package import Package, open_model
from matta_jax.packages._packaging import Packaging
from matta_jax.packages._write import write_again
from matta_jax.packages.engines import certify_folder, check_engines


def convert(
    model: str | storage.Path,
    output: str | storage.Path,
    *,
    packaging: Packaging | None = None,
    certify: Sequence[str] = (),
) -> Package:
    """Writes an extracted or imported model again, in another format or type.

    Args:
      model: the folder of the model.
      output: that of the new one.
      packaging: its format and type.
      certify: engines that run its files before they take their place, as `certify` has them.

    Raises:
      UserError: as of `extract`.

    Examples:
      >>> from matta_jax.packages import Packaging
      >>> packaging = Packaging(format="safetensors", dtype="bf16")
      >>> matta_jax.convert("models/mix", "models/half", packaging=packaging).manifest["dtype"]
      'bf16'
    """
    packaging = packaging or Packaging()
    package, target = open_model(model), storage.resolve(output)
    check_target(target, overwrite=packaging.overwrite)
    if packaging.with_optimizer:
        raise UserError(
            "with_optimizer: an optimiser state stays with its model; extract it again from the "
            "checkpoint"
        )
    check_format(packaging, package.architecture)
    check_engines(certify, packaging, package.architecture)
    with new_folder(target) as building:
        write_again(building, package, packaging)
        certify_folder(building, certify)
    return open_model(target)
