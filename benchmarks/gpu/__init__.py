"""What the package does on a GPU, in at most eight minutes: ``make gpu``, or ``benchmarks/gpu.sh`` without make."""
