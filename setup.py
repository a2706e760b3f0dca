"""The packages of a wheel, in which `suites` lies in `resflow_bench`; see pyproject.toml."""

from setuptools import find_packages, setup

suites = [f"resflow_bench.{name}" for name in find_packages(include=["suites*"])]
setup(
    packages=[*find_packages(include=["resflow_bench*"]), *suites],
    package_dir={"resflow_bench.suites": "suites"},
)
