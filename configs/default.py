"""Every setting at its default. The other configs start from this one and set what differs.

    python main.py --config=configs/default.py --mode=show      # every setting, its value and its meaning

docs/settings.md lists the settings of everything that can be chosen. In a config file, setting a name also sets the
defaults of what is chosen: after `config.process.name = "ve_geometric"` the section has sigma_min, sigma_max and
horizon.
"""

from scoreflow import configure


def get_config():
    """The defaults."""
    return configure.defaults()
