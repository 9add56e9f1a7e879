"""What pyproject.toml cannot say: kernels/ installs as sinfusion.kernels, and CMake builds the native libraries."""

from setuptools import setup

setup(
    packages=["sinfusion", "sinfusion.cli", "sinfusion.media", "sinfusion.ops", "sinfusion.patches", "sinfusion.kernels"],
    package_dir={"sinfusion": "sinfusion", "sinfusion.kernels": "kernels"},
    package_data={"sinfusion": ["py.typed"]},
    exclude_package_data={"sinfusion": ["*.so"]},
    cmake_source_dir=".",
)
