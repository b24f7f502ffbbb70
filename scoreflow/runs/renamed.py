"""Settings that have been renamed since a run was configured: their names in a stored `config.json`, and today's."""

from typing import Any

from scoreflow.runs.errors import UserError

_NAMES = {
    "data.levels": "data.num_levels",
    "data.centred": "data.centered",
    "data.dequantisation": "data.dequantization",
    "data.binarised": "data.binarized",
    "score.kind": "score.prediction",
    "score.data_rms": "score.sigma_data",
    "score.energy": "score.energy_power",
    "weight.data_rms": "weight.sigma_data",
    "penalty.law": "penalty.probe",
    "penalty.part": "penalty.fraction",
    "terminal.levels": "terminal.resolutions",
    "training.optimiser": "training.optimizer",
    "training.accumulate": "training.grad_accum",
    "training.split_state": "training.fsdp",
    "eval.dequantisation": "eval.dequantization",
    "eval.neighbours": "eval.neighbors",
}
_SECTIONS = {"dequantiser.": "dequantizer.", "times.": "sample_times."}
_VALUES = {
    "score.energy": {"none": 0, "paper": 1, "code": -1, "noise": 2},
    "sampling.inpaint": {"centre": "center"},
}


def translate(flat: dict[str, Any], *, once: bool = False) -> dict[str, Any]:
    """Settings by dotted name -> the same under today's names; those of today stay as they are.

    Where a setting is there by both names, as in a config file that sets the old one next to today's default, the old
    one counts. With `once` a setting may have one name alone.

    Raises:
      UserError: where a setting has both names and `once` is set.
    """
    out, renamed = {}, {}
    for name, value in flat.items():
        if name in _VALUES and isinstance(value, str):
            value = _VALUES[name].get(value, value)
        today = _NAMES.get(name, name)
        for old, new in _SECTIONS.items():
            if name.startswith(old):
                today = new + name.removeprefix(old)
        (out if today == name else renamed)[today] = value
    if once and (both := out.keys() & renamed.keys()):
        raise UserError(f"{', '.join(sorted(both))}: given twice, by its present name and by an older one")
    return out | renamed


def renamed_section(name: str) -> str:
    """Today's name of a section."""
    return _SECTIONS.get(f"{name}.", f"{name}.").rstrip(".")
