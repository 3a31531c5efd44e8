"""What pyproject.toml cannot say: conf/ lies at the top level and is installed as `esper.conf`."""

from setuptools import find_packages, setup

setup(
    # Hydra finds launchers in the namespace package hydra_plugins, which is nobody's.
    packages=[*find_packages(include=["esper*"]), "esper.conf", "hydra_plugins.esper"],
    package_dir={"esper.conf": "conf"},
)
