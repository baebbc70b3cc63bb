"""Pictures of diffusions, bounds and data, alone and in TensorBoard."""

from pyro_mdm.support.files import installing

try:
    import matplotlib as matplotlib
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise  # matplotlib is there, something it imports is not
    raise ModuleNotFoundError(
        "pyro_mdm.plots draws with matplotlib, which is not installed "
        f"and which the rest of the library does without; {installing('plots')}",
        name="matplotlib",
    ) from error
