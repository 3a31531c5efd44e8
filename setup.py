"""What pyproject.toml cannot say: conf/ lies at the top level and is installed as `esper.conf`."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["esper*"]), "esper.conf"], package_dir={"esper.conf": "conf"})
