"""Engines make text from token ids. `base` is the contract; each other engine module is one engine."""

from synthia_batch.engine.base import Engine
from synthia_batch.engine.environment import prepare_environment
from synthia_batch.engine.placement import Placement
from synthia_batch.job.resolved import EngineSpec


def load_engine(spec: EngineSpec, placement: Placement) -> Engine:
    """Return the engine that `spec` describes, loaded: seconds for a small model, minutes for a large.

    Call it in the thread that will own the engine's memory, before anything has imported vllm.
    """
    if spec.kind == "scripted":
        from synthia_batch.engine.scripted_engine import ScriptedEngine

        return ScriptedEngine(spec, placement)
    prepare_environment(spec, placement)
    from synthia_batch.engine.vllm_engine import VllmEngine

    return VllmEngine(spec, placement)
