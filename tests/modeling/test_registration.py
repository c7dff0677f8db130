"""Who owns the registry names, with and without AdelaiDet. Each case needs a fresh process."""

from __future__ import annotations

import subprocess
import sys
import textwrap

NAMES = ("BlendMask", "OneStageDetector", "FCOS", "build_fcos_resnet_fpn_backbone")
STAND_IN = """
from detectron2.modeling import (
    BACKBONE_REGISTRY, META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY,
)

class BlendMask: pass
class OneStageDetector: pass
class FCOS: pass
def build_fcos_resnet_fpn_backbone(cfg, shape): pass

META_ARCH_REGISTRY.register(BlendMask)
META_ARCH_REGISTRY.register(OneStageDetector)
PROPOSAL_GENERATOR_REGISTRY.register(FCOS)
"""
LAST = "BACKBONE_REGISTRY.register(build_fcos_resnet_fpn_backbone)\n"
REPORT = """
import d2prune.modeling as m
from detectron2.modeling import BACKBONE_REGISTRY
assert "build_fcos_narrow_resnet_fpn_backbone" in BACKBONE_REGISTRY
print(m.HAS_ADELAIDET, *sorted({getattr(m, n).__module__.split(".")[0] for n in NAMES}))
"""


def run(path, adet):
    """Import d2prune.modeling with `adet` (file name -> text) as the only adet there is."""
    folder = path / "adet"
    folder.mkdir()
    for name, text in adet.items():
        (folder / name).write_text(textwrap.dedent(text))
    code = f"import sys; sys.path.insert(0, {str(path)!r})\nNAMES = {NAMES}\n{REPORT}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_ours_without_adelaidet(tmp_path):
    result = run(tmp_path, {"__init__.py": "unrelated = 1  # like PyPI's package of that name"})
    assert result.stdout.split() == ["False", "d2prune"], result.stderr


def test_adelaidets_own_where_it_is_there(tmp_path):
    result = run(tmp_path, {"__init__.py": "", "modeling.py": STAND_IN + LAST})
    assert result.stdout.split() == ["True", "adet"], result.stderr


def test_half_an_adelaidet_is_an_error(tmp_path):
    result = run(tmp_path, {"__init__.py": "", "modeling.py": STAND_IN + "import no_such_thing"})
    assert result.returncode and "PruneError: AdelaiDet registered BlendMask" in result.stderr
