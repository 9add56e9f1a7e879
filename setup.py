"""What pyproject.toml cannot say: kernels/ installs as sinfusion.kernels, and CMake builds the native libraries."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sinfusion*"]), "sinfusion.kernels"],
    package_dir={"sinfusion": "sinfusion", "sinfusion.kernels": "kernels"},
    package_data={"sinfusion": ["py.typed", "studio/page/*"]},
    exclude_package_data={"sinfusion": ["*.so"]},
    cmake_source_dir=".",
)
