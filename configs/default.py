"""Every setting at its default; the other configs start from it and state what differs.

    python main.py --config=configs/default.py --mode=show      every setting, its value and its meaning

docs/settings.md lists all settings of everything that can be chosen. In a config file, a name brings the defaults of what
it chooses: after `config.process.name = "ve_geometric"` the section holds sigma_min, sigma_max and horizon.
"""

from scoreflow import configure


def get_config():
    """The defaults."""
    return configure.defaults()
