"""The parts of `benchmarks/step.py`. None imports torch, Limbeck or TRL at module level except the workers."""
