"""Packaging of d2prune: the one place for its version, its dependencies and its extras.

``pip install .`` is for models without Detectron2; ``pip install .[detectron2]`` adds what its users need.
Detectron2 itself is not listed, because PyPI does not serve it under its own name: ``make setup`` or
``python tools/install_detectron2.py`` sees to it. AdelaiDet is optional and never installed.
"""

from pathlib import Path

from setuptools import find_packages, setup

VERSION = "0.1.0.dev0"

REQUIRED = ["numpy>=1.24", "safetensors>=0.4.3", "torch>=2.6", "torch-pruning>=1.6,<1.7"]

EXTRAS = {
    # What Detectron2's users need of d2prune; Detectron2 itself is another step, see above.
    "detectron2": [
        "cloudpickle>=2",
        "filelock>=3.12",
        "fvcore>=0.1.5",
        "jinja2>=3",
        "matplotlib>=3.7",
        "omegaconf>=2.1,<2.4",
        "pillow>=9.5",
        "pycocotools>=2.0.7",
        "PyYAML>=6",
        "torchvision>=0.21",
        "tqdm>=4.60",
    ],
    "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.2"],
    "data": ["mlxtend>=0.23", "scikit-image>=0.22"],
    "zoo": ["timm>=1.0", "transformers>=4.57"],  # Detectron2's ViTDet, Swin and MViT need timm, too
    "dev": [
        "hypothesis>=6.100",
        "mypy>=1.11",
        "pre-commit>=3",
        "pytest>=8",
        "pytest-xdist>=3.5",
        "ruff>=0.9",
    ],
}
EXTRAS["all"] = sorted(name for names in EXTRAS.values() for name in names)

README = Path(__file__).parent / "README.md"

setup(
    name="d2prune",
    version=VERSION,
    description="Structured pruning for Detectron2, AdelaiDet and plain PyTorch, every prune proved exact",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["d2prune", "d2prune.*"]),
    package_data={"d2prune": ["py.typed", "**/*.html", "**/*.css", "**/*.json"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        # Those that tests were run on; CONTRIBUTING.md says which tests.
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
