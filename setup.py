"""Maps the top-level folders kernels/ and benchmarks/ into the package; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mpamatch", "mpamatch.*"]), "mpamatch.kernels", "mpamatch.benchmarks"],
    package_dir={"mpamatch.kernels": "kernels", "mpamatch.benchmarks": "benchmarks"},
    package_data={"mpamatch.recipes": ["*.yaml", "prompts/*.yaml"]},
)
