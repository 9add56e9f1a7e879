"""What pyproject.toml cannot say: kernels/ installs as sinfusion.kernels, and CMake builds the native libraries."""

from setuptools import setup

setup(
    packages=["sinfusion"] + [f"sinfusion.{name}" for name in ("cli", "kernels", "media", "ops", "patches")],
    package_dir={"sinfusion": "sinfusion", "sinfusion.kernels": "kernels"},
    package_data={"sinfusion": ["py.typed"]},
    exclude_package_data={"sinfusion": ["*.so"]},
    cmake_source_dir=".",
)
