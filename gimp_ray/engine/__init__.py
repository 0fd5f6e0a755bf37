"""How anything is trained on Ray: `protocol` (what a task must offer), `loop`, `checkpoint`, `log`, `launch` (Ray
Train).
"""
