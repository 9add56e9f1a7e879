"""An operator's arguments are declared once: public function, schema and implementations agree with the declaration."""

import importlib
import inspect

import pytest
import torch

from sinfusion import ops
from sinfusion.ops.registration import schema, takes

SIGNATURES = {
    "dense": "x weight bias residual gelu skip copy",
    "depthwise_norm": "x weight bias shift gain offset skip eps",
    "ddpm_step": "x output prior_mean coefficients seeds stream counter inputs previous known_mask known_image",
    "sample_crops": "frames places condition_frames coefficients coarse_noise seeds step streams changes size dtype",
    "adam_ema": "value exp_avg exp_avg_sq average copy gradient coefficients betas eps",
    "patch_match": "query key patch rounds seed start weight strides value_range",
    "nearest_patches": "query key patch k",
    "posterior": "rows distance values of_distance observed of_observed",
    "vote": "value offsets patch mean weight middle",
}


def declaration(name):
    module = importlib.import_module(f"sinfusion.ops.{name}")
    return getattr(module, "".join(word.capitalize() for word in name.split("_")))


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_public_function_takes_what_is_declared(name):
    parameters = inspect.signature(getattr(ops, name)).parameters
    declared = declaration(name)
    assert list(parameters) == SIGNATURES[name].split() == list(declared._fields)
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert defaults == declared._field_defaults
    assert parameters["x" if "x" in parameters else next(iter(parameters))].annotation == "Tensor"


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_schema_has_the_fields_in_their_order(name):
    for suffix in ("", "_backward") if hasattr(torch.ops.sinfusion, f"{name}_backward") else ("",):
        module = importlib.import_module(f"sinfusion.ops.{name}")
        declared = getattr(module, declaration(name).__name__ + ("Backward" if suffix else ""))
        arguments = [a.name for a in getattr(torch.ops.sinfusion, name + suffix).default._schema.arguments]
        assert arguments in ([*declared._fields], [*declared._fields, "save"])


def test_what_is_written_is_marked_in_the_schema():
    found = schema("adam_ema", declaration("adam_ema"), "()", ["value", "copy"], ["flag"])
    assert found.startswith("adam_ema(Tensor(a!) value, Tensor exp_avg,")
    assert "Tensor(b!)? copy" in found and found.endswith("float[] betas, float eps, bool flag) -> ()")


def test_a_function_of_a_tuple_becomes_one_of_its_fields():
    @takes(declaration("vote"))
    def function(a):
        """Says so."""
        return a

    assert function(1, mean=True, offsets=2) == declaration("vote")(1, 2, mean=True)
    assert function.__doc__ == "Says so."
    with pytest.raises(TypeError, match="offsets"):
        function(1)
